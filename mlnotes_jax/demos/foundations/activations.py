"""One network on digits, trained with each activation: accuracy, flat units, dead units."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.foundations import activations, losses

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOUND = 0.01  # a slope below it is called flat
BATCH = 64
RATES = (0.02, 0.1, 0.5)
SCALES = (1.0, 4.0)  # of the initial weights of the hidden layers


class Activation(NamedTuple):
    """One column of the comparison; `shape` is its learnable parameter, unused by most."""

    name: str
    value: Callable[[Array, Array], Array]
    slope: Callable[[Array, Array], Array]
    shape: float = 1.0


ACTIVATIONS = (
    Activation(
        "sigmoid",
        lambda x, _: activations.sigmoid(x),
        lambda x, _: activations.sigmoid_derivative(x),
    ),
    Activation(
        "hard sigmoid",
        lambda x, _: activations.hard_sigmoid(x),
        lambda x, _: activations.hard_sigmoid_derivative(x),
    ),
    Activation(
        "tanh", lambda x, _: activations.tanh(x), lambda x, _: activations.tanh_derivative(x)
    ),
    Activation(
        "ReLU", lambda x, _: activations.relu(x), lambda x, _: activations.relu_derivative(x)
    ),
    Activation(
        "leaky ReLU",
        lambda x, _: activations.leaky_relu(x),
        lambda x, _: activations.leaky_relu_derivative(x),
    ),
    Activation(
        "PReLU",
        lambda x, alpha: activations.prelu(x, alpha=alpha),
        lambda x, alpha: activations.prelu_derivative(x, alpha=alpha),
        shape=0.25,
    ),
    Activation(
        "Swish",
        lambda x, beta: activations.swish(x, beta=beta),
        lambda x, beta: activations.swish_derivative(x, beta=beta),
    ),
)


class Problem(NamedTuple):
    """Digits, split into two parts.

    Attributes:
        x_train: Pixels, centred and divided by 8, shape `(n, 64)`.
        y_train: Digits 0..9, shape `(n,)`.
        x_test: Pixels likewise, shape `(m, 64)`.
        y_test: Digits 0..9, shape `(m,)`.
        source: Where the pictures come from.
    """

    x_train: Float[Array, "n 64"]
    y_train: Int[Array, " n"]
    x_test: Float[Array, "m 64"]
    y_test: Int[Array, " m"]
    source: datasets.Source


class Result(NamedTuple):
    """What was measured.

    Axes: `a` goes over `ACTIVATIONS`, `s` over `SCALES` of the initial weights, 2 is before and
    after training. Means are over the seeds, all counts over the training digits.

    Attributes:
        source: Which pictures.
        grid: Inputs of the curves, shape `(g,)`.
        values: Each activation on the grid, shape `(a, g)`.
        slopes: Its closed-form derivative there, shape `(a, g)`.
        best_rates: The rate with the highest accuracy on the training digits, shape `(a, s)`.
        accuracies: On the test digits, after training at that rate, shape `(a, s, seeds)`.
        saturation: Share of flat units, by hidden layer, shape `(a, s, 2, layers)`.
        dead: Share of dead units, by hidden layer, shape `(a, s, 2, layers)`.
        sometimes_off: Share of the units whose slope is 0 for at least one digit, by hidden
            layer, shape `(a, s, 2, layers)`.
        gradient_norms: Of the first mini-batch's loss, for the weights of each hidden layer,
            before training, shape `(a, s, layers)`.
        learned: The learnable parameter, mean over the units, shape `(a, s, 2)`.
    """

    source: datasets.Source
    grid: np.ndarray
    values: np.ndarray
    slopes: np.ndarray
    best_rates: np.ndarray
    accuracies: np.ndarray
    saturation: np.ndarray
    dead: np.ndarray
    sometimes_off: np.ndarray
    gradient_norms: np.ndarray
    learned: np.ndarray


def problem(key: Array, *, test_share: float = 0.2) -> Problem:
    """Load the digits, split them at random, scale the pixels to about [-1, 1].

    Args:
        key: Draws the split.
        test_share: Share of the pictures that is kept for testing.

    Returns:
        Pixels and labels.
    """
    data = datasets.load("digits")
    order = np.asarray(jax.random.permutation(key, len(data.x)))
    test, train = np.split(order, [round(test_share * len(order))])
    x = jnp.asarray((data.x - data.x[train].mean(axis=0)) / 8)
    y = jnp.asarray(data.y)
    return Problem(x[train], y[train], x[test], y[test], data.source)


def run(key: Array, *, quick: bool = False, num_layers: int = 4, num_seeds: int = 2) -> Result:
    """Train the same network with each activation, from the same weights and on the same batches.

    Hidden layers of 64 units, plain stochastic gradient descent at the best of a few rates, from
    Glorot's initial weights and from weights four times as large. PReLU and Swish also learn their
    parameter, one for each unit.

    Args:
        key: Draws the split, the initial weights and the mini-batches.
        quick: Train for 100 steps instead of 600.
        num_layers: Hidden layers.
        num_seeds: Initial weights to try; all are trained at once.

    Returns:
        Accuracies, flat and dead units before and after, and the curves.
    """
    split_key, init_key, batch_key = jax.random.split(key, 3)
    data = problem(split_key)
    # All draws at once, outside the program: random generators take long to compile.
    normals = jax.random.normal(init_key, (num_seeds, num_layers * 64 * 64 + 640))
    num_steps = 100 if quick else 600
    batches = jax.random.randint(batch_key, (num_steps, BATCH), 0, len(data.x_train))
    measured = []
    for which in progress.track(range(len(ACTIVATIONS)), "training"):
        # `which` is traced: all activations share one compiled program.
        lanes = _experiment(which, data[:4], normals, batches)
        measured.append(_at_best_rate({name: np.asarray(v) for name, v in lanes.items()}))
    grid = jnp.linspace(-5, 5, 401)
    return Result(
        source=data.source,
        grid=np.asarray(grid),
        values=np.stack([a.value(grid, jnp.asarray(a.shape)) for a in ACTIVATIONS]),
        slopes=np.stack([a.slope(grid, jnp.asarray(a.shape)) for a in ACTIVATIONS]),
        **{name: np.stack([one[name] for one in measured]) for name in measured[0]},
    )


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """Rows for the terminal and the page."""
    out: dict[str, list[dict[str, object]]] = {}
    for j, scale in enumerate(SCALES):
        start = "Glorot's weights" if scale == 1 else f"weights {scale:g} times as large"
        rows: list[dict[str, object]] = []
        for i, activation in enumerate(ACTIVATIONS):
            flat = 100 * result.saturation[i, j].mean(axis=1)
            dead = 100 * result.dead[i, j].mean(axis=1)
            norms = result.gradient_norms[i, j]
            rows.append(
                {
                    "activation": activation.name,
                    "rate": float(result.best_rates[i, j]),
                    "accuracy": f"{result.accuracies[i, j].mean():.1%}",
                    "flat %": f"{flat[0]:.0f} to {flat[1]:.0f}",
                    "off %": f"{100 * result.sometimes_off[i, j, 1].mean():.0f}",
                    "dead %": f"{dead[0]:.1f} to {dead[1]:.1f}",
                    "1st/last": round(float(norms[0] / norms[-1]), 3),
                }
            )
        out[f"Start from {start}, test digits"] = rows
    out["Learned parameters, Glorot's weights"] = [
        {
            "parameter": f"{greek} of {activation.name}",
            "start": activation.shape,
            "mean after training": float(result.learned[i, 0, 1]),
        }
        for i, activation in enumerate(ACTIVATIONS)
        for greek in [{"PReLU": "alpha", "Swish": "beta"}.get(activation.name)]
        if greek
    ]
    return out


def plot(result: Result) -> "Figure":
    """The functions, their slopes, and the share of flat units by layer, before and after."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(2, 2, figsize=(9, 7))
        for i, activation in enumerate(ACTIVATIONS):
            look = {**_look(i), "markevery": (10 * i, 80)}
            axes[0, 0].plot(result.grid, result.values[i], label=activation.name, **look)
            axes[0, 1].plot(result.grid, result.slopes[i], **look)
        for j, scale in enumerate(SCALES):
            _draw_layers(axes[1, j], result, j)
            start = "Glorot's weights" if scale == 1 else f"weights {scale:g} times as large"
            axes[1, j].set(title=f"flat units, from {start}")
        axes[0, 0].set(title="activation", xlabel="input x", ylabel="f(x)", ylim=(-1.3, 3))
        axes[0, 1].set(title="slope", xlabel="input x", ylabel="f'(x)", ylim=(-0.2, 1.2))
        figure.legend(loc="outside lower center", ncols=4)
    return figure


# --- the network --------------------------------------------------------------------------------


def _init(normals: Float[Array, " p"], scale: Array, shape: Array) -> PyTree[Array]:
    """Glorot's normal weights times `scale`, zero biases; hidden layers stacked on axis 0."""
    hidden, last = normals[:-640].reshape(-1, 64, 64), normals[-640:].reshape(64, 10)
    num_layers = len(hidden)
    return {
        "hidden": {
            "kernel": scale * hidden / 8,
            "bias": jnp.zeros((num_layers, 1, 64)),
            "shape": jnp.full((num_layers, 64), shape),
        },
        "last": {"kernel": last * (2 / 74) ** 0.5, "bias": jnp.zeros((1, 10))},
    }


def _forward(
    which: Int[Array, ""], network: PyTree[Array], x: Float[Array, "n 64"], *, with_slopes: bool
) -> tuple[Float[Array, "n 10"], Any]:
    """Logits and, if wanted, the slope of every hidden unit, shape `(layers, n, 64)`."""

    def branch(activation: Activation):
        def apply(z, shape):
            return activation.value(z, shape), activation.slope(z, shape) if with_slopes else None

        return apply

    def layer(x, parameters):
        z = x @ parameters["kernel"] + parameters["bias"]
        return jax.lax.switch(which, [branch(a) for a in ACTIVATIONS], z, parameters["shape"])

    x, slopes = jax.lax.scan(layer, x, network["hidden"])
    return x @ network["last"]["kernel"] + network["last"]["bias"], slopes


def _measure(which: Array, network: PyTree[Array], data: tuple[Array, ...]) -> dict[str, Array]:
    """Accuracies, and what the hidden units do on the training digits."""
    x, y, x_test, y_test = data
    n = len(x)
    logits, slopes = _forward(which, network, jnp.concatenate([x, x_test]), with_slopes=True)
    right = logits.argmax(axis=-1) == jnp.concatenate([y, y_test])
    slopes = slopes[:, :n]
    return {
        "train_accuracies": right[:n].mean(),
        "accuracies": right[n:].mean(),
        "learned": network["hidden"]["shape"].mean(),
        "saturation": activations.saturation(slopes, bound=BOUND, axis=(1, 2)),
        "dead": jax.vmap(activations.dead_units)(slopes).mean(axis=1),
        "sometimes_off": (slopes == 0).any(axis=1).mean(axis=1),
    }


@jax.jit
def _experiment(
    which: Int[Array, ""],
    data: tuple[Array, ...],
    normals: Float[Array, "seeds p"],
    batches: Int[Array, "steps batch"],
) -> dict[str, Array]:
    """Measure before, and after training at each rate; shapes `(1 + rates, scales, seeds, ...)`.

    Except for the gradient's norms, which are those of the first step, `(scales, layers)`.
    """
    x, y = data[:2]
    shape = jnp.array([a.shape for a in ACTIVATIONS])[which]

    def loss(network, rows):
        logits, _ = _forward(which, network, x[rows], with_slopes=False)
        return losses.softmax_cross_entropy_with_integer_labels(logits, y[rows])

    def train(network, rate):
        def step(network, rows):
            slope = jax.grad(loss)(network, rows)
            norms = jnp.linalg.norm(slope["hidden"]["kernel"], axis=(1, 2))
            return jax.tree.map(lambda w, g: w - rate * g, network, slope), norms

        return jax.lax.scan(step, network, batches)

    # One flat axis of networks, (rate, scale, seed): nested vmaps would compile for longer.
    lanes = (len(RATES), len(SCALES), len(normals))
    rate, scale, seed = jnp.unravel_index(jnp.arange(math.prod(lanes)), lanes)
    starts = jax.vmap(_init, in_axes=(0, 0, None))(normals[seed], jnp.array(SCALES)[scale], shape)
    trained, norms = jax.vmap(train)(starts, jnp.array(RATES)[rate])
    untrained = math.prod(lanes[1:])  # at the first rate: one for each scale and seed
    everyone = jax.tree.map(lambda a, b: jnp.concatenate([a[:untrained], b]), starts, trained)
    measured = jax.vmap(lambda network: _measure(which, network, data))(everyone)
    measured = {k: v.reshape(1 + lanes[0], *lanes[1:], *v.shape[1:]) for k, v in measured.items()}
    first = norms[:untrained, 0].reshape(*lanes[1:], -1)
    return {**measured, "gradient_norms": first.mean(axis=1)}


def _at_best_rate(lanes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keep, for each scale, the start and the rate that fits the training digits best."""
    best = lanes.pop("train_accuracies")[1:].mean(axis=2).argmax(axis=0)
    scale = np.arange(len(SCALES))
    accuracies = lanes.pop("accuracies")[1 + best, scale]
    norms = lanes.pop("gradient_norms")
    pairs = {
        name: np.stack([v[0], v[1 + best, scale]], axis=1).mean(axis=2)  # over the seeds
        for name, v in lanes.items()
    }
    return {
        "best_rates": np.array(RATES)[best],
        "accuracies": accuracies,
        "gradient_norms": norms,
        **pairs,
    }


# --- drawing ------------------------------------------------------------------------------------


def _look(i: int) -> dict[str, Any]:
    dashes = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (3, 3)), (0, (1, 1)))
    color = figures.COLORS[i % len(figures.COLORS)]
    return {"color": color, "linestyle": dashes[i], "marker": "osD^v<>"[i], "markersize": 5}


def _draw_layers(axes: "Axes", result: Result, j: int) -> None:
    """Share of flat units by layer: before training (hollow marks) and after (full marks)."""
    num_layers = result.saturation.shape[-1]
    for i in range(len(ACTIVATIONS)):
        look = _look(i)
        for k, face in enumerate(("none", look["color"])):
            where = np.arange(1, num_layers + 1) + (k - 0.5) * 0.4 + (i - 3) * 0.03
            look["linestyle"] = "none"
            axes.plot(where, 100 * result.saturation[i, j, k], markerfacecolor=face, **look)
    axes.set(
        xlabel="hidden layer: before training (hollow), after (full)",
        ylabel=f"share with |slope| < {BOUND} (%)",
        xticks=range(1, num_layers + 1),
        ylim=(-3, 103),
    )
