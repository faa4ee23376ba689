"""Three looks at what a loss asks for: two surfaces, two classifiers, two autoencoders."""

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.foundations import losses

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSSES = ("squared error", "cross-entropy")
STARTS = ("from zero", "badly wrong")
PICTURE_LOSSES = ("L2", "L1")
TRUE_CLASS = 0  # of the three classes of the surface
CORNER_STEPS = 30_000
RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Problem(NamedTuple):
    """Digits, split into two parts.

    Attributes:
        x_train: Pixels in [0, 1], shape `(n, 64)`.
        y_train: Digits 0..9, shape `(n,)`.
        x_test: Pixels in [0, 1], shape `(m, 64)`.
        y_test: Digits 0..9, shape `(m,)`.
        source: Where the pictures come from.
    """

    x_train: Float[Array, "n 64"]
    y_train: Int[Array, " n"]
    x_test: Float[Array, "m 64"]
    y_test: Int[Array, " m"]
    source: datasets.Source


class Result(NamedTuple):
    """What was measured. The first axis of two goes over `LOSSES`, or over `PICTURE_LOSSES`.

    Attributes:
        source: Which pictures.
        grid: Values of a logit, shape `(g,)`.
        surfaces: The loss over the first logit (last axis) and the second, shape `(2, g, g)`.
        paths: The two logits after each step of descent, shape `(2, steps + 1, 2)`.
        gradient_norms: At the far corner, shape `(2,)`.
        corner_steps: Steps until the true class has probability above ½; −1 where that took more
            than `CORNER_STEPS`, shape `(2,)`.
        start_accuracy: On the training digits, of both `STARTS`, shape `(2,)`.
        best_rates: The rate with the highest accuracy on the training digits in the end, of each
            loss and start, shape `(2, 2)`.
        accuracies: On the test digits after each step at the best rate, shape `(2, 2, steps)`.
        originals: Test pictures, shape `(m, 64)`.
        pictures: Their reconstructions, cut to [0, 1], shape `(2, m, 64)`.
        absolute_errors: Mean over the test pixels, shape `(2,)`.
        squared_errors: Mean over the test pixels, shape `(2,)`.
        edges_kept: Sum of squared differences of neighbouring pixels, over that of the
            originals, shape `(2,)`.
        ghosts: Share of the blank test pixels that got ink, shape `(2,)`.
        ink_lost: Share of the ink of the originals that is missing, shape `(2,)`.
    """

    source: datasets.Source
    grid: np.ndarray
    surfaces: np.ndarray
    paths: np.ndarray
    gradient_norms: np.ndarray
    corner_steps: np.ndarray
    start_accuracy: np.ndarray
    best_rates: np.ndarray
    accuracies: np.ndarray
    originals: np.ndarray
    pictures: np.ndarray
    absolute_errors: np.ndarray
    squared_errors: np.ndarray
    edges_kept: np.ndarray
    ghosts: np.ndarray
    ink_lost: np.ndarray


def problem(key: Array, *, test_share: float = 0.2) -> Problem:
    """Load the digits and split them at random.

    Args:
        key: Draws the split.
        test_share: Share of the pictures that is kept for testing.

    Returns:
        Pixels in [0, 1] and labels.
    """
    data = datasets.load("digits")
    order = np.asarray(jax.random.permutation(key, len(data.x)))
    test, train = np.split(order, [round(test_share * len(order))])
    x, y = jnp.asarray(data.x / 16), jnp.asarray(data.y)
    return Problem(x[train], y[train], x[test], y[test], data.source)


def run(key: Array, *, quick: bool = False, corner: float = 10.0, bottleneck: int = 4) -> Result:
    """Compare squared error with cross-entropy, and L2 with L1.

    First both losses of a classifier over two of three logits, and descent at rate 1 from the
    corner where the answer is surely wrong. Then softmax regression on digits, from zero and from
    weights that were trained on wrong labels, at the best of several rates. Then one autoencoder,
    trained once with each reconstruction loss.

    Args:
        key: Draws the split, the initial weights and the mini-batches.
        quick: Fewer steps for the digits and the autoencoder.
        corner: Descent starts at logits (-corner, corner, 0); the first class is true.
        bottleneck: Numbers that the autoencoder may keep of a picture.

    Returns:
        Losses, paths, accuracies and pictures.
    """
    split_key, net_key = jax.random.split(key)
    data = problem(split_key)
    stages = (
        lambda: _surfaces(corner),
        lambda: _classifiers(data, num_steps=100 if quick else 500),
        lambda: _autoencoders(net_key, data, bottleneck, num_steps=1000 if quick else 5000),
    )
    parts: dict[str, np.ndarray] = {}
    for stage in progress.track(stages, "comparing losses"):
        parts |= {name: np.asarray(value) for name, value in stage().items()}
    return Result(source=data.source, **parts)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """Rows for the terminal and the page."""
    limit = f"> {CORNER_STEPS}"
    corner = [
        {
            "loss": name,
            "gradient norm": float(norm),
            "steps at rate 1": int(steps) if steps >= 0 else limit,
        }
        for name, norm, steps in zip(
            LOSSES, result.gradient_norms, result.corner_steps, strict=True
        )
    ]
    last = result.accuracies.shape[-1]
    digits = [
        {
            "start": f"{start} ({result.start_accuracy[j]:.1%} right)",
            "loss": name,
            "best rate": float(result.best_rates[i, j]),
            **{
                f"after {n}": f"{result.accuracies[i, j, n - 1]:.1%}"
                for n in (last // 20, last // 5, last)
            },
        }
        for j, start in enumerate(STARTS)
        for i, name in enumerate(LOSSES)
    ]
    pictures = [
        {
            "loss": name,
            "mean |error|": float(result.absolute_errors[i]),
            "mean error²": float(result.squared_errors[i]),
            "edges kept": f"{result.edges_kept[i]:.0%}",
            "ink on blank": f"{result.ghosts[i]:.0%}",
            "ink lost": f"{result.ink_lost[i]:.0%}",
        }
        for i, name in enumerate(PICTURE_LOSSES)
    ]
    return {
        "From the surely wrong corner until the true class has more than ½": corner,
        "Softmax regression on digits, test accuracy": digits,
        "Autoencoder on test digits": pictures,
    }


def plot(result: Result) -> "Figure":
    """Both surfaces with their paths, accuracy by step, and reconstructed digits."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure = plt.figure(figsize=(9, 6.8))
        halves: Any = figure.subfigures(2, 1, height_ratios=[1, 0.95])
        above, below = halves
        for i, panel in enumerate(above.subplots(1, 2)):
            _draw_surface(panel, result, i)
        accuracy, pictures = below.subplots(1, 2, width_ratios=[1.15, 1])
        _draw_accuracy(accuracy, result)
        _draw_pictures(pictures, result)
    return figure


def squared_error(logits: Float[Array, "n k"], targets: Float[Array, "n k"]) -> Float[Array, ""]:
    """Squared error after the softmax, summed over the classes, mean over the examples."""
    each = losses.mse(jax.nn.softmax(logits), targets, reduction="none")
    return each.sum(-1).mean()


def classification_loss(
    which: Int[Array, ""], logits: Float[Array, "n k"], targets: Float[Array, "n k"]
) -> Float[Array, ""]:
    """The loss `LOSSES[which]`; both compile into one program, and one of them runs."""
    return jax.lax.cond(which == 0, squared_error, losses.softmax_cross_entropy, logits, targets)


# --- two logits ---------------------------------------------------------------------------------


@jax.jit
def _descend_from_corner(points: Array, start: Array):
    """For each of `LOSSES`: its surface, the path from `start`, the slope there, the steps."""

    def three(logits):
        return jnp.concatenate([logits, jnp.zeros_like(logits[..., :1])], -1)

    def measure(which):
        def loss(logits):
            target = jax.nn.one_hot(jnp.array([TRUE_CLASS]), 3)
            return classification_loss(which, three(logits)[None], target)

        def step(logits, _):
            logits = logits - jax.grad(loss)(logits)
            return logits, logits

        path = jax.lax.scan(step, start, length=CORNER_STEPS)[1]
        path = jnp.concatenate([start[None], path])
        right = jax.nn.softmax(three(path))[:, TRUE_CLASS] > 0.5
        steps = jnp.where(right.any(), right.argmax(), -1)
        return {
            "surfaces": jax.vmap(jax.vmap(loss))(points),
            "paths": path,
            "gradient_norms": jnp.linalg.norm(jax.grad(loss)(start)),
            "corner_steps": steps,
        }

    return jax.lax.map(measure, jnp.arange(len(LOSSES)))


def _surfaces(corner: float) -> dict[str, Array]:
    grid = jnp.linspace(-corner - 2, corner + 2, 97)
    points = jnp.stack(jnp.meshgrid(grid, grid), -1)  # [i, j] = (grid[j], grid[i])
    return {"grid": grid, **_descend_from_corner(points, jnp.array([-corner, corner]))}


# --- softmax regression -------------------------------------------------------------------------


def _scores(weights: Float[Array, "65 10"], x: Float[Array, "n 64"]) -> Float[Array, "n 10"]:
    return x @ weights[:-1] + weights[-1:]


@partial(jax.jit, static_argnums=1)
def _train_classifiers(data: tuple[Array, ...], num_steps: int):
    """Accuracy of the starts; then, by loss, start and rate, in the end and after each step."""
    x_train, y_train, x_test, y_test = data
    targets = jax.nn.one_hot(y_train, 10)

    def accuracy(weights, x, y):
        return (_scores(weights, x).argmax(-1) == y).mean()

    def descend(loss, weights, rate, num_steps):
        def step(weights, _):
            weights = weights - rate * jax.grad(loss)(weights)
            return weights, accuracy(weights, x_test, y_test)

        return jax.lax.scan(step, weights, length=num_steps)

    def train(which, start, rate):
        def loss(weights):
            return classification_loss(which, _scores(weights, x_train), targets)

        weights, tested = descend(loss, start, rate, num_steps)
        return accuracy(weights, x_train, y_train), tested

    def mistaught(weights):
        """Wants a 1 for every 0, a 2 for every 1, ..., a 0 for every 9."""
        shifted = (y_train + 1) % 10
        return losses.softmax_cross_entropy_with_integer_labels(_scores(weights, x_train), shifted)

    zero = jnp.zeros((65, 10))
    starts = jnp.stack([zero, descend(mistaught, zero, 1.0, 300)[0]])
    before = jax.vmap(accuracy, in_axes=(0, None, None))(starts, x_train, y_train)
    by_rate = jax.vmap(train, in_axes=(None, None, 0))
    by_start = jax.vmap(by_rate, in_axes=(None, 0, None))
    trained = jax.lax.map(
        lambda which: by_start(which, starts, jnp.array(RATES)), jnp.arange(len(LOSSES))
    )
    return before, *trained


def _classifiers(data: Problem, *, num_steps: int) -> dict[str, np.ndarray]:
    before, final, tested = map(np.asarray, _train_classifiers(data[:4], num_steps))
    best = final.argmax(-1)  # chosen on the training digits
    return {
        "start_accuracy": before,
        "best_rates": np.array(RATES)[best],
        "accuracies": np.take_along_axis(tested, best[..., None, None], axis=2)[:, :, 0],
    }


# --- autoencoder --------------------------------------------------------------------------------


def _autoencode(layers: list[tuple[Array, Array]], x: Float[Array, "n 64"]) -> Float[Array, "n 64"]:
    (w1, b1), (w2, b2), (w3, b3), (w4, b4) = layers
    code = jax.nn.relu(x @ w1 + b1) @ w2 + b2
    return jax.nn.relu(code @ w3 + b3) @ w4 + b4


@partial(jax.jit, static_argnums=(3, 4))
def _reconstruct(key: Array, x: Array, x_test: Array, bottleneck: int, num_steps: int):
    """Test pictures after training with L2 and with L1: the same start, the same batches."""
    init_key, batch_key = jax.random.split(key)
    sizes = (64, 64, bottleneck, 64, 64)
    # All parameters in one vector: Adam is then a handful of operations, and compiles sooner.
    spread = [
        (jnp.full((m, n), (2 / m) ** 0.5), jnp.zeros((1, n)))  # He's weights, zero biases
        for m, n in itertools.pairwise(sizes)
    ]
    scale, unravel = ravel_pytree(spread)
    start = scale * jax.random.normal(init_key, scale.shape)
    batches = jax.random.randint(batch_key, (num_steps, 128), 0, len(x))
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))

    def loss(parameters, batch, by_l1):
        out = _autoencode(unravel(parameters), batch)
        return jnp.where(by_l1, losses.mae(out, batch), losses.mse(out, batch))

    def train(by_l1):
        def step(carry, batch):
            parameters, state = carry
            slope = jax.grad(loss)(parameters, x[batch], by_l1)
            with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an int32 power
                updates, state = optimizer.update(slope, state)
            return (parameters + updates, state), None

        (parameters, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), batches)
        return _autoencode(unravel(parameters), x_test)

    return jax.vmap(train)(jnp.array([name == "L1" for name in PICTURE_LOSSES]))


def _edge_energy(pictures: np.ndarray) -> float:
    rows = pictures.reshape(-1, 8, 8)
    return float(np.square(np.diff(rows, axis=1)).sum() + np.square(np.diff(rows, axis=2)).sum())


def _autoencoders(
    key: Array, data: Problem, bottleneck: int, *, num_steps: int
) -> dict[str, np.ndarray]:
    raw = np.asarray(_reconstruct(key, data.x_train, data.x_test, bottleneck, num_steps))
    x, pictures = np.asarray(data.x_test), np.clip(raw, 0, 1)
    blank, one_level = x == 0, 1 / 16
    return {
        "originals": x,
        "pictures": pictures,
        "absolute_errors": np.abs(raw - x).mean((1, 2)),
        "squared_errors": np.square(raw - x).mean((1, 2)),
        "edges_kept": np.array([_edge_energy(p) for p in pictures]) / _edge_energy(x),
        "ghosts": (pictures[:, blank] > one_level).mean(1),
        "ink_lost": np.maximum(x - pictures, 0).sum((1, 2)) / x.sum(),
    }


# --- drawing ------------------------------------------------------------------------------------


def _draw_surface(axes: "Axes", result: Result, i: int) -> None:
    levels = np.linspace(0, result.surfaces[i].max(), 13)
    filled = axes.contourf(result.grid, result.grid, result.surfaces[i], levels)
    axes.figure.colorbar(filled, ax=axes, label="loss", ticks=levels[::3], format="%.3g")
    path, steps = result.paths[i], int(result.corner_steps[i])
    path = path[: steps + 1] if steps >= 0 else path
    axes.plot(path[:, 0], path[:, 1], color=figures.VERMILLION, linestyle="-")
    for point, marker in ((path[0], "o"), (path[-1], "*")):
        axes.plot(*point, marker, color=figures.VERMILLION, markersize=9, markeredgecolor="white")
    spent = f"{steps:,} steps" if steps >= 0 else f"not there after {CORNER_STEPS:,} steps"
    axes.set(
        title=f"{LOSSES[i]}: {spent}",
        xlabel="logit of the true class",
        ylabel="logit of a wrong class",
    )
    axes.grid(False)


def _draw_accuracy(axes: "Axes", result: Result) -> None:
    steps = np.arange(1, result.accuracies.shape[-1] + 1)
    for i, color in enumerate((figures.VERMILLION, figures.BLUE)):
        for j, dash in enumerate((":", "-")):
            axes.plot(
                steps,
                100 * result.accuracies[i, j],
                color=color,
                linestyle=dash,
                label=f"{LOSSES[i]}, {STARTS[j]}",
            )
    axes.set(
        title="softmax regression, each at its best rate",
        xlabel="step",
        ylabel="test accuracy (%)",
        xscale="log",
    )
    axes.set_ylim(0, 118)  # room for the legend
    axes.set_yticks(range(0, 101, 20))
    axes.legend(fontsize="x-small", ncols=2, loc="upper left")


def _draw_pictures(axes: "Axes", result: Result) -> None:
    shown = 5
    rows = [result.originals[:shown], *(p[:shown] for p in result.pictures)]
    tiles = np.pad(np.stack(rows).reshape(3, shown, 8, 8), [(0, 0), (0, 0), (0, 1), (0, 1)])
    sheet = tiles.transpose(0, 2, 1, 3).reshape(27, 9 * shown)
    axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=1, aspect="equal")
    axes.set(title="autoencoder on test digits", xticks=[], yticks=[4, 13, 22])
    axes.set_yticklabels(["original", *PICTURE_LOSSES])
    axes.grid(False)
