r"""Batch normalization against none: learning rates, the error surface, and what layers see.

Three questions, put to a network with three hidden layers of 64 units on handwritten digits (or on
Fashion-MNIST):

1. At which learning rates does it train, with ReLU and with the sigmoid; without normalization,
   with it before the activation, and after? All rates train together, in one `vmap`.
2. How smooth is the error surface? Before each step of gradient descent we look along it, from half
   to four times its length: how much do the loss and its gradient vary?
3. How much does each layer's input move (internal covariate shift)? Measured in two ways: as the
   drift of what comes into the activations, and as what a layer's gradient changes when the layers
   before it take their step.

`draw_axes` draws which entries are averaged together by each kind of normalization. It asks the
functions themselves: an entry belongs to the set if the derivative says so.

Reference: Santurkar, Tsipras, Ilyas and Madry, "How Does Batch Normalization Help Optimization?"
(2018), sections 2 and 3.
"""

import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import _pictures, figures, progress
from mlnotes_jax.foundations import activations, losses
from mlnotes_jax.nets import normalization
from mlnotes_jax.training import loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "KINDS",
    "PLACES",
    "PROBED",
    "REACH",
    "Kind",
    "Network",
    "Probe",
    "Result",
    "Sweep",
    "averaged_together",
    "draw_axes",
    "plot",
    "problem",
    "run",
    "tables",
]

#: Where the normalization is, seen from the activation.
PLACES = ("none", "before", "after")
#: Lengths looked at along the step, in learning rates: half of it to four times.
REACH = (0.5, 1.0, 2.0, 4.0)
BATCH, WIDTH = 64, 64
#: Accuracy that counts as trained; losses above the second are drawn there.
GOOD, TOP = 0.9, 4.0

Place = Literal["none", "before", "after"]


class Kind(NamedTuple):
    """A network of the demo; see `Network`."""

    name: str
    place: Place
    sigmoid: bool = False
    noise: float = 0.0


KINDS = (
    Kind("ReLU", "none"),
    Kind("norm, ReLU", "before"),
    Kind("norm, noise, ReLU", "before", noise=0.25),
    Kind("ReLU, norm", "after"),
    Kind("sigmoid", "none", sigmoid=True),
    Kind("norm, sigmoid", "before", sigmoid=True),
    Kind("sigmoid, norm", "after", sigmoid=True),
)
#: The names of those whose error surface is looked at.
PROBED = tuple(kind.name for kind in KINDS[:3])


class Network(nnx.Module):
    """Fully connected layers, with batch normalization before or after each activation, or not.

    Calling it gives the logits and, for each hidden layer, what comes into its activation. Two
    settings are numbers of the state, so that one compiled program serves all their values:

    Attributes:
        sigmoid: The activation is a sigmoid where true, else ReLU.
        noise: What comes into an activation is multiplied by $1 + a z_1$ and shifted by $a z_2$,
            the same for all examples; this is $a$. The draws $z$ are passed with the input.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        *,
        place: Place = "none",
        sigmoid: bool = False,
        noise: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        # He's variance 2 / inputs for ReLU, 1 / inputs for the sigmoid.
        init = nnx.initializers.variance_scaling(1.0 if sigmoid else 2.0, "fan_in", "uniform")
        sizes = itertools.pairwise(widths)
        self.layers = nnx.List([nnx.Linear(*size, kernel_init=init, rngs=rngs) for size in sizes])
        normed = () if place == "none" else widths[1:-1]
        self.norms = nnx.List([normalization.BatchNorm(width, rngs=rngs) for width in normed])
        self.place = place
        self.sigmoid = nnx.Variable(jnp.asarray(sigmoid))
        self.noise = nnx.Variable(jnp.asarray(noise, jnp.float32))

    def __call__(
        self, x_and_z: tuple[Float[Array, "n d"], Float[Array, "layers 2 units"]]
    ) -> tuple[Array, tuple[Array, ...]]:
        """Logits, and what comes into the activations."""
        x, z = x_and_z
        seen = []
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            if self.place == "before":
                x = self.norms[i](x)
            scale, shift = self.noise[...] * z[i]
            x = x * (1 + scale[None]) + shift[None]
            seen.append(x)
            x = jnp.where(self.sigmoid[...], activations.sigmoid(x), activations.relu(x))
            if self.place == "after":
                x = self.norms[i](x)
        return self.layers[-1](x), tuple(seen)


class Problem(NamedTuple):
    """Pictures as rows, each pixel's scale being that of all pixels together.

    Attributes:
        x: Shape `(n, d)`.
        y: Classes 0..9, shape `(n,)`.
        x_test: Shape `(m, d)`.
        y_test: Shape `(m,)`.
        source: Where they come from.
    """

    x: Float[Array, "n d"]
    y: Int[Array, " n"]
    x_test: Float[Array, "m d"]
    y_test: Int[Array, " m"]
    source: datasets.Source


class Sweep(NamedTuple):
    """One network at all learning rates.

    Attributes:
        loss: Mean loss of the batches of the last epoch, shape `(rates,)`; not finite where the
            training blew up.
        accuracy: On the test pictures, in eval mode, shape `(rates,)`.
    """

    loss: Float[Array, " rates"]
    accuracy: Float[Array, " rates"]


class Probe(NamedTuple):
    r"""What the surface and the layers did while a network trained.

    Attributes:
        loss: Of each batch before its step, shape `(steps,)`.
        low: The lowest loss along the step, up to four times its length, shape `(steps,)`.
        high: The highest, shape `(steps,)`.
        smoothness: $\max_t \lVert g(\theta - t\, g) - g \rVert / (t \lVert g \rVert)$, the largest
            change of the gradient for each unit of length, shape `(steps,)`.
        turn: $\lVert g(\theta - 4\eta\, g) - g \rVert / \lVert g \rVert$, shape `(steps,)`.
        shift: $\lVert g'_i - g_i \rVert / \lVert g_i \rVert$ of the kernel of each hidden layer but
            the first, where $g'_i$ is its gradient on the same batch after the layers before it
            took their step, shape `(steps, layers - 1)`.
        drift: How far the mean of each unit's input to the activation moved in a step, in
            standard deviations of that input, over all training rows; mean over the units, shape
            `(steps - 1, layers)`.
    """

    loss: Float[Array, " steps"]
    low: Float[Array, " steps"]
    high: Float[Array, " steps"]
    smoothness: Float[Array, " steps"]
    turn: Float[Array, " steps"]
    shift: Float[Array, "steps later"]
    drift: Float[Array, "moves layers"]


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The pictures.
        depth: How many hidden layers.
        num_epochs: Of the sweeps.
        rates: The learning rates, ascending.
        sweeps: Name of `KINDS` -> all learning rates.
        probe_rate: The learning rate of the probes.
        probes: Name of `PROBED` -> what the surface and the layers did.
    """

    source: datasets.Source
    depth: int
    num_epochs: int
    rates: Float[np.ndarray, " rates"]
    sweeps: dict[str, Sweep]
    probe_rate: float
    probes: dict[str, Probe]


def problem(
    key: Array,
    *,
    data: _pictures.Name = "digits",
    data_dir: Path | None = None,
    num_examples: int = 10_000,
) -> Problem:
    """Read the pictures as rows.

    Args:
        key: Draws the split of the digits.
        data: Which pictures.
        data_dir: Folder of Fashion-MNIST.
        num_examples: At most so many are trained on.

    Returns:
        The rows.
    """
    pictures = _pictures.load(key, data, data_dir=data_dir)
    x, y = pictures.x_train[:num_examples], pictures.y_train[:num_examples]
    mean, scale = x.mean(), x.std()

    def rows(part: np.ndarray) -> Array:
        return jnp.asarray(((part - mean) / scale).reshape(len(part), -1))

    return Problem(
        rows(x),
        jnp.asarray(y),
        rows(pictures.x_test),
        jnp.asarray(pictures.y_test),
        pictures.source,
    )


def run(
    key: Array,
    *,
    quick: bool = False,
    data: _pictures.Name = "digits",
    data_dir: Path | None = None,
    num_examples: int = 10_000,
    depth: int = 3,
    num_epochs: int = 10,
    num_rates: int = 9,
    probe_rate: float = 0.1,
    probe_steps: int = 120,
) -> Result:
    """Train all networks at all learning rates, and look at the surface under three of them.

    Args:
        key: Draws the split, the weights, the order of the rows and the noise.
        quick: Two hidden layers, five epochs, forty steps of the probes.
        data: Which pictures.
        data_dir: Folder of Fashion-MNIST.
        num_examples: At most so many are trained on; the digits have 1437.
        depth: How many hidden layers, of 64 units each.
        num_epochs: Of each training in the sweep.
        num_rates: How many learning rates from 0.001 to 10, all trained at once.
        probe_rate: The learning rate of the trainings that are probed.
        probe_steps: Their length, in batches.

    Returns:
        Sweeps and probes.
    """
    if quick:
        depth, num_epochs, probe_steps = 2, 5, 40
    split_key, weight_key, draw_key = jax.random.split(key, 3)
    given = problem(split_key, data=data, data_dir=data_dir, num_examples=num_examples)
    rates = np.geomspace(1e-3, 10, num_rates).astype(np.float32)
    widths = (given.x.shape[1], *[WIDTH] * depth, 10)
    order, z = _draw(draw_key, len(given.y), num_epochs, depth)

    starts = {kind.name: _start(weight_key, widths, kind) for kind in KINDS}

    sweeps: dict[str, Sweep] = {}
    for place in progress.track(PLACES, "learning rates"):
        # Those that are one program but for numbers in their state train together.
        names = [kind.name for kind in KINDS if kind.place == place]
        several = jax.tree.map(lambda *leaves: np.stack(leaves), *[starts[name] for name in names])
        found = _sweep(several, given[:4], (order, z), rates, _apply(widths, place))
        found = jax.tree.map(np.asarray, found)
        sweeps |= {name: Sweep(*(a[i] for a in found)) for i, name in enumerate(names)}

    steps = np.arange(probe_steps) % (order.shape[0] * order.shape[1])
    batches = tuple(a.reshape(-1, *a.shape[2:])[steps] for a in (order, z))
    probes: dict[str, Probe] = {}
    for kind in progress.track(KINDS[: len(PROBED)], "error surface"):
        start, apply = starts[kind.name], _apply(widths, kind.place)
        found = _probe(start, given[:2], batches, _lengths(probe_rate, depth), apply)
        probes[kind.name] = jax.block_until_ready(found)
    return Result(
        source=given.source,
        depth=depth,
        num_epochs=num_epochs,
        rates=rates,
        sweeps={kind.name: sweeps[kind.name] for kind in KINDS},
        probe_rate=probe_rate,
        probes=probes,
    )


def _start(key: Array, widths: tuple[int, ...], kind: Kind) -> tuple[Any, Any]:
    """Parameters and state; the weights of all kinds are the same, but for their scale."""
    _, place, sigmoid, noise = kind
    network = Network(widths, place=place, sigmoid=sigmoid, noise=noise, rngs=nnx.Rngs(key))
    return loop.bind(network)[:2]


@functools.cache
def _apply(widths: tuple[int, ...], place: Place) -> Callable[..., Any]:
    """The pure function of a network: one object for each, so that jit knows it again."""
    return loop.bind(nnx.eval_shape(lambda: Network(widths, place=place, rngs=nnx.Rngs(0)))).apply


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(
    key: Array, num_rows: int, num_epochs: int, depth: int
) -> tuple[Int[Array, "epochs batches rows"], Float[Array, "epochs batches layers 2 units"]]:
    """For each epoch, a fresh order of the rows, cut into batches; for each batch, the noise."""
    batch = min(BATCH, num_rows)
    used = num_rows // batch * batch
    order_key, noise_key = jax.random.split(key)
    # Flat draws: XLA takes ten times as long to compile one with many axes.
    order = jax.random.uniform(order_key, (num_epochs * num_rows,))
    order = jnp.argsort(order.reshape(num_epochs, num_rows), axis=1)
    order = order[:, :used].reshape(num_epochs, -1, batch)
    widest = 3**0.5  # so that the variance is 1
    shape = (*order.shape[:2], depth, 2, WIDTH)
    z = jax.random.uniform(noise_key, (math.prod(shape),), minval=-widest, maxval=widest)
    return order, z.reshape(shape)


def _objective(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Map parameters, state and a batch to the loss; new state and inputs of layers beside it."""

    def loss(params: Any, state: Any, x: Array, y: Array, z: Array) -> tuple[Array, Any]:
        (logits, seen), state = apply(params, state, (x, z), train=True)
        return losses.softmax_cross_entropy_with_integer_labels(logits, y), (state, seen)

    return loss


@functools.partial(jax.jit, static_argnames="apply")
def _sweep(
    starts: tuple[Any, Any],
    data: tuple[Array, ...],
    batches: tuple[Array, Array],
    rates: Array,
    apply: Callable[..., Any],
) -> Sweep:
    """Train every start with every learning rate, on the same batches."""
    x, y, x_test, y_test = data
    slope = jax.value_and_grad(_objective(apply), has_aux=True)

    def train(start: tuple[Any, Any], rate: Array) -> Sweep:
        def step(carry: Any, rows_and_z: tuple[Array, Array]) -> tuple[Any, Array]:
            (params, state), (rows, z) = carry, rows_and_z
            (value, (state, _)), grad = slope(params, state, x[rows], y[rows], z)
            return (jax.tree.map(lambda p, g: p - rate * g, params, grad), state), value

        def epoch(carry: Any, batches: tuple[Array, Array]) -> tuple[Any, Array]:
            carry, values = jax.lax.scan(step, carry, batches)
            return carry, values.mean()

        (params, state), history = jax.lax.scan(epoch, start, batches)
        (logits, _), _ = apply(params, state, (x_test, jnp.zeros_like(batches[1][0, 0])))
        return Sweep(history[-1], (logits.argmax(axis=1) == y_test).mean())

    return jax.vmap(jax.vmap(train, in_axes=(None, 0)), in_axes=(0, None))(starts, rates)


def _lengths(rate: float, depth: int) -> Float[np.ndarray, "looks layers"]:
    """How far each layer goes against its gradient in each look.

    First nobody moves; then all move along the step; then only the layers before layer i do, for
    each hidden layer i but the first.
    """
    here = np.zeros((1, depth + 1))
    along = np.outer(REACH, np.ones(depth + 1))
    before = np.tril(np.ones((depth + 1, depth + 1)), -1)[1:depth]
    return (rate * np.concatenate([here, along, before])).astype(np.float32)


@functools.partial(jax.jit, static_argnames="apply")
def _probe(
    start: tuple[Any, Any],
    data: tuple[Array, ...],
    batches: tuple[Array, Array],
    lengths: Array,
    apply: Callable[..., Any],
) -> Probe:
    """Train, and look around before each step."""
    x, y = data
    slope = jax.value_and_grad(_objective(apply), has_aux=True)
    step_row = 1 + REACH.index(1.0)

    def step(carry: Any, rows_and_z: tuple[Array, Array]) -> tuple[Any, Any]:
        (params, state), (rows, z) = carry, rows_and_z

        def look(grad: Any, length_and_first: tuple[Array, Array]) -> tuple[Any, Any]:
            length, first = length_and_first
            there = _move(params, grad, length)
            (value, (after, _)), new = slope(there, state, x[rows], y[rows], z)
            grad = jax.tree.map(lambda old, new: jnp.where(first, new, old), grad, new)
            return grad, (value, after, new)

        zero = jax.tree.map(jnp.zeros_like, params)
        first = jnp.arange(len(lengths)) == 0
        grad, (values, states, grads) = jax.lax.scan(look, zero, (lengths, first))

        many = 1 + len(REACH)
        change = jax.tree.map(lambda there, here: there - here[None], grads, grad)
        along = jax.vmap(_norm)(jax.tree.map(lambda leaf: leaf[1:many], change)) / _norm(grad)
        shift = [
            _norm(change["layers"][i]["kernel"][many + i - 1]) / _norm(grad["layers"][i]["kernel"])
            for i in range(1, lengths.shape[1] - 1)
        ]
        _, (_, seen) = _objective(apply)(params, state, x, y, z)  # all rows
        probe = Probe(
            loss=values[0],
            low=values[1:many].min(),
            high=values[1:many].max(),
            smoothness=(along / lengths[1:many, 0]).max(),
            turn=along[-1],
            shift=jnp.stack(shift),
            drift=values[0],  # comes from the moments of all steps, below
        )
        moments = jnp.stack([jnp.stack([a.mean(axis=0), a.std(axis=0)]) for a in seen])
        after = jax.tree.map(lambda leaf: leaf[0], states)
        return (_move(params, grad, lengths[step_row]), after), (probe, moments)

    _, (probe, moments) = jax.lax.scan(step, start, batches)
    mean, deviation = moments[:, :, 0], moments[:, :, 1]
    # A unit without deviation does not move.
    drift = jnp.abs(mean[1:] - mean[:-1]) / jnp.maximum(deviation[:-1], 1e-6)
    return probe._replace(drift=drift.mean(axis=2))


def _move(params: Any, grad: Any, lengths: Array) -> Any:
    """Each layer, with its normalization, by its own length against its gradient."""

    def move(path: Any, p: Array, g: Array) -> Array:
        return p - lengths[path[1].key] * g  # path: "layers" or "norms", then the number

    return jax.tree_util.tree_map_with_path(move, params, grad)


def _norm(tree: Any) -> Array:
    """Euclidean length of all leaves together."""
    return jnp.sqrt(sum((jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)), jnp.zeros(())))


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    return {
        f"{len(result.rates)} learning rates, {result.num_epochs} epochs": [
            {
                "layer": kind.name,
                **_range(result.rates, np.asarray(result.sweeps[kind.name].accuracy)),
            }
            for kind in KINDS
        ],
        f"The surface along the step, rate {result.probe_rate:g} (medians)": [
            {
                "layer": name,
                "loss climbs in": f"{np.mean(probe.high > probe.loss):.0%} of steps",
                "gradient turns by": round(float(np.median(probe.turn)), 2),
                "smoothness": round(float(np.median(probe.smoothness)), 1),
            }
            for name, probe in result.probes.items()
        ],
        "Internal covariate shift in one step (medians)": [
            {
                "layer": name,
                "input moves by (deviations)": round(float(np.median(probe.drift)), 4),
                "gradient changes by": round(float(np.median(probe.shift)), 3),
                "last loss": round(float(np.mean(probe.loss[-20:])), 3),
            }
            for name, probe in result.probes.items()
        ],
    }


def _range(rates: np.ndarray, accuracy: np.ndarray) -> dict[str, object]:
    """Which rates reach 90 %."""
    good = rates[accuracy >= GOOD]
    if not len(good):
        return {"90 % from rate": "never", "to rate": "", "best accuracy": f"{accuracy.max():.1%}"}
    return {
        "90 % from rate": f"{good.min():.3g}",
        "to rate": f"{good.max():.3g}",
        "best accuracy": f"{accuracy.max():.1%}",
    }


def plot(result: Result) -> "Figure":
    """Draw losses over rates, the surface along the steps, and both covariate shifts."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(2, 3, figsize=(9.5, 5.8))
        for axis, sigmoid in zip(axes[0, :2], (False, True), strict=True):
            marks = iter("osD^")
            for kind in KINDS:
                if kind.sigmoid != sigmoid:
                    continue
                loss = np.asarray(result.sweeps[kind.name].loss)
                # A training that blew up is drawn at the top.
                shown = np.where(np.isfinite(loss), np.minimum(loss, TOP), TOP)
                axis.loglog(result.rates, shown, marker=next(marks), markersize=4, label=kind.name)
            axis.set(
                xlabel="learning rate",
                ylabel="training loss at the end",
                title="sigmoid" if sigmoid else "ReLU",
                ylim=(None, 1.5 * TOP),
            )
            axis.legend(fontsize="x-small")

        colors, dashes = (figures.BLUE, figures.VERMILLION, figures.GREEN), ("-", "--", "-.")
        surface, smooth, drift, shift = axes[0, 2], *axes[1]
        for (name, probe), color, dash in zip(result.probes.items(), colors, dashes, strict=True):
            step = np.arange(len(probe.loss))
            style = {"color": color, "linestyle": dash, "label": name}
            if name != PROBED[2]:
                surface.fill_between(step, probe.low, probe.high, color=color, alpha=0.35, lw=0)
                surface.semilogy(step, probe.loss, lw=1, **style)
            smooth.semilogy(step, probe.smoothness, lw=1, **style)
            drift.semilogy(step[1:], np.maximum(probe.drift.mean(axis=1), 1e-6), lw=1, **style)
            shift.plot(step, probe.shift.mean(axis=1), lw=1, **style)
        surface.set(ylabel="loss, and its range", title="Along the step, ½ to 4 times")
        smooth.set(ylabel="change of gradient / length", title="Smoothness")
        drift.set(ylabel="standard deviations", title="How far inputs move in a step")
        shift.set(ylabel="relative change of the gradient", title="Shift by the layers before")
        for axis in (surface, smooth, drift, shift):
            axis.set_xlabel("step")
        surface.legend(fontsize="x-small")
        drift.legend(fontsize="x-small")  # for its neighbours, too: there is no room there
    return figure


def averaged_together(name: str) -> Any:
    """Ask a kind of normalization which inputs its first output depends on.

    Args:
        name: One of `"batch"`, `"layer"`, `"layer, each position"`, `"instance"`, `"group"`,
            `"switchable"` on activations `(examples, space, channels)` of 4 × 4 × 4, or `"weight"`,
            `"spectral"` on a kernel `(inputs, outputs)` of 4 × 4.

    Returns:
        Boolean array: true where the derivative of the first output is not zero.
    """
    key = jax.random.key(0)
    x = jax.random.normal(key, (4, 4) if name in ("weight", "spectral") else (4, 4, 4))
    flat = jnp.zeros(3)
    functions: dict[str, Callable[[Array], Array]] = {
        "batch": lambda x: normalization.batch_norm(x)[0],
        "layer": lambda x: normalization.layer_norm(x, num_axes=2),
        "layer, each position": normalization.layer_norm,
        "instance": normalization.instance_norm,
        "group": lambda x: normalization.group_norm(x, num_groups=2),
        "switchable": lambda x: normalization.switchable_norm(x, flat, flat)[0],
        "weight": lambda x: normalization.weight_norm(x, jnp.ones(4)),
        "spectral": lambda x: normalization.spectral_norm(
            x, normalization.singular_vectors(key, x)
        )[0],
    }
    corner = (0,) * x.ndim
    return np.asarray(jax.jit(jax.grad(lambda x: functions[name](x)[corner]))(x) != 0)


def draw_axes() -> "Figure":
    """Draw, for each kind of normalization, which entries share one mean or one length."""
    import matplotlib.pyplot as plt

    names = (
        "batch", "layer", "layer, each position", "instance",
        "group", "switchable", "weight", "spectral",
    )  # fmt: skip
    with figures.style():
        figure, axes = plt.subplots(2, 4, figsize=(9, 5.2))
        for axis, name in zip(axes.flat, names, strict=True):
            marked = averaged_together(name)
            if marked.ndim == 3:
                _draw_cube(axis, marked)
                count = f"{marked.sum()} of {marked.size} share a mean"
            else:
                _draw_kernel(axis, marked)
                what = "length" if name == "weight" else "norm"
                count = f"{marked.sum()} of {marked.size} share a {what}"
            axis.set_title(f"{name}\n{count}", fontsize="small")
            axis.set_aspect("equal")
            axis.axis("off")
    return figure


def _draw_cube(axis: Any, marked: np.ndarray) -> None:
    """The three visible faces of (examples, space, channels); corner 0, 0, 0 is in front."""
    # Where an entry is on the paper: channels go right, space goes down, examples go back.
    n, s, c = marked.shape
    back = np.array([0.5, 0.45])

    def at(channel: float, space: float, example: float) -> np.ndarray:
        return np.array([channel, -space]) + example * back

    def face(corners: list[np.ndarray], on: bool, shade: float) -> None:
        color = figures.BLUE if on else figures.GREY
        points = np.array(corners)
        axis.fill(*points.T, facecolor=color, alpha=shade if on else 0.12 * shade, lw=0)
        axis.fill(*points.T, facecolor="none", edgecolor=figures.GREY, lw=0.7, ls="-")

    for i in range(s):
        for j in range(c):  # the front: example 0
            corners = [at(j, i, 0), at(j + 1, i, 0), at(j + 1, i + 1, 0), at(j, i + 1, 0)]
            face(corners, marked[0, i, j], 1.0)
    for k in range(n):
        for j in range(c):  # the top: place 0
            corners = [at(j, 0, k), at(j + 1, 0, k), at(j + 1, 0, k + 1), at(j, 0, k + 1)]
            face(corners, marked[k, 0, j], 0.8)
        for i in range(s):  # the right side: the last channel
            corners = [at(c, i, k), at(c, i + 1, k), at(c, i + 1, k + 1), at(c, i, k + 1)]
            face(corners, marked[k, i, c - 1], 0.6)
    middle = {"ha": "center", "va": "center", "fontsize": "x-small"}
    axis.text(*(at(c / 2, s + 0.5, 0)), "channels", **middle)
    axis.text(*(at(-0.5, s / 2, 0)), "space", rotation=90, **middle)
    axis.text(*(at(-0.6, -0.3, n / 2)), "examples", rotation=42, **middle)


def _draw_kernel(axis: Any, marked: np.ndarray) -> None:
    """A kernel (inputs, outputs): inputs go down, outputs right."""
    rows, columns = marked.shape
    for i, j in np.ndindex(rows, columns):
        color = figures.GREEN if marked[i, j] else figures.GREY
        square = np.array([[j, -i], [j + 1, -i], [j + 1, -i - 1], [j, -i - 1]])
        axis.fill(*square.T, facecolor=color, alpha=1.0 if marked[i, j] else 0.12, lw=0)
        axis.fill(*square.T, facecolor="none", edgecolor=figures.GREY, lw=0.7, ls="-")
    middle = {"ha": "center", "va": "center", "fontsize": "x-small"}
    axis.text(columns / 2, -rows - 0.5, "outputs", **middle)
    axis.text(-0.5, -rows / 2, "inputs", rotation=90, **middle)
