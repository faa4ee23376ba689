"""A cliff in the loss, with and without clipping; and a recurrent network at many learning rates.

The lectures' example is a recurrent network with one weight: $y = w^{1000}$, a thousand steps of
$h_t = w h_{t-1}$. Its loss is flat below $w = 1$ and a wall above. Descent is run over it without
and with a clipped gradient. Then a real recurrent network reads handwritten digits a few pixels at
a time, and is trained with several learning rates, unclipped and clipped in three ways: one
program.
"""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import _pictures, figures, progress
from mlnotes_jax.foundations import losses
from mlnotes_jax.optimization import momentum, stability
from mlnotes_jax.training import loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "METHODS",
    "Cliff",
    "Reader",
    "Recurrent",
    "Result",
    "cliff_loss",
    "descend",
    "plot",
    "problem",
    "run",
    "tables",
]

OFF = np.inf  # no limit
#: Limits of each way to clip: of an entry, of the global norm, of a unit's ratio to its weights.
METHODS = {
    "no clipping": {},
    "by value": {"value": 0.05},
    "by norm": {"norm": 1.0},
    "adaptive": {"ratio": 0.1},
}
LEARNED = 0.6  # a test accuracy that counts as having learned


class Cliff(NamedTuple):
    """Descent over the cliff.

    Attributes:
        weights: Where the loss is drawn, shape `(points,)`.
        loss: There.
        learning_rate: Of both runs.
        max_norm: Of the clipped run.
        free: Weights of the run without clipping, shape `(steps + 1,)`.
        clipped: Weights of the run with clipping, likewise.
        free_loss: The loss of `free`.
        clipped_loss: The loss of `clipped`.
        norms: The gradient that the clipped run saw, shape `(steps,)`.
    """

    weights: Float[np.ndarray, " points"]
    loss: Float[np.ndarray, " points"]
    learning_rate: float
    max_norm: float
    free: Float[np.ndarray, " steps"]
    clipped: Float[np.ndarray, " steps"]
    free_loss: Float[np.ndarray, " steps"]
    clipped_loss: Float[np.ndarray, " steps"]
    norms: Float[np.ndarray, " steps"]


class Reader(NamedTuple):
    """The recurrent network's runs.

    Attributes:
        rates: Learning rates, shape `(rates,)`.
        methods: Names of the ways to clip.
        accuracy: Of the test pictures at the end, shape `(methods, rates)`; NaN where a run ended
            because it was not finite.
        norm_max: The largest global norm of a gradient, before clipping, likewise.
        curves: Largest norm in each epoch, shape `(methods, rates, epochs)`.
        status: How each run ended.
    """

    rates: Float[np.ndarray, " rates"]
    methods: tuple[str, ...]
    accuracy: Float[np.ndarray, "methods rates"]
    norm_max: Float[np.ndarray, "methods rates"]
    curves: Float[np.ndarray, "methods rates epochs"]
    status: list[list[str]]


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The digits.
        cliff: The loss of one weight.
        reader: The recurrent network.
        num_steps: How many steps it takes over a picture.
        epochs: Of its training.
    """

    source: datasets.Source
    cliff: Cliff
    reader: Reader
    num_steps: int
    epochs: int


class Recurrent(nnx.Module):
    """A recurrent network that reads a picture a few pixels at a time.

    The recurrent weights start as the identity: at first it only adds up what it sees.
    """

    def __init__(
        self, num_pixels: int, num_units: int, num_classes: int, *, num_steps: int, rngs: nnx.Rngs
    ) -> None:
        self.num_steps = num_steps
        init = nnx.initializers.lecun_uniform()
        self.inputs = nnx.Linear(num_pixels // num_steps, num_units, kernel_init=init, rngs=rngs)
        self.recurrent = nnx.Param(jnp.eye(num_units))
        self.readout = nnx.Linear(num_units, num_classes, kernel_init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "n ..."]) -> Float[Array, "n k"]:
        """Compute logits."""
        parts = self.inputs(x.reshape(len(x), self.num_steps, -1))
        weights = self.recurrent[...]

        def step(h: Array, part: Array) -> tuple[Array, None]:
            return jax.nn.relu(part + h @ weights), None

        start = jnp.zeros((len(x), parts.shape[-1]), parts.dtype)
        last, _ = lax.scan(step, start, jnp.swapaxes(parts, 0, 1))
        return self.readout(last)


def cliff_loss(w: Float[ArrayLike, ""], *, num_steps: int = 1000) -> Float[Array, ""]:
    r"""The loss of one recurrent weight, $\tfrac12 (w^{T} - 1)^2$, through all the steps.

    Args:
        w: The weight.
        num_steps: $T$, static.

    Returns:
        The loss, shape `()`. Its lowest point is $w = 1$.
    """
    weight = jnp.asarray(w)
    y, _ = lax.scan(lambda h, _: (weight * h, None), jnp.ones_like(weight), None, length=num_steps)
    return 0.5 * (y - 1) ** 2


@functools.partial(jax.jit, static_argnames="num_updates")
def descend(
    start: Float[ArrayLike, ""],
    learning_rate: Float[ArrayLike, ""],
    max_norm: Float[ArrayLike, ""],
    *,
    num_updates: int,
) -> tuple[Array, Array, Array]:
    """Descend over the cliff with a clipped gradient.

    Args:
        start: The first weight.
        learning_rate: Of plain descent.
        max_norm: Where the gradient is clipped; infinite for not at all.
        num_updates: How many steps; static.

    Returns:
        Weights and losses, each of shape `(num_updates + 1,)`, and the norms that were seen, of
        shape `(num_updates,)`.
    """
    clipping = stability.global_norm_clipping(max_norm)
    rule = optax.chain(clipping, momentum.sgd(learning_rate))

    def update(carry: Any, _: None) -> tuple[Any, Any]:
        w, state = carry
        loss, slope = jax.value_and_grad(cliff_loss)(w)
        after: Any
        step, after = rule.update(slope, state, w)
        return (w + step, after), (w, loss, after[0].seen)

    start = jnp.asarray(start)
    (last, _), (w, loss, seen) = lax.scan(update, (start, rule.init(start)), None, num_updates)
    ends = jnp.append(w, last), jnp.append(loss, cliff_loss(last))
    return *ends, seen


def problem(key: Key[Array, ""]) -> _pictures.Pictures:
    """Read the digits.

    Args:
        key: Draws the split.

    Returns:
        Pictures `(n, 8, 8, 1)` with pixels in [0, 1], classes, names, source.
    """
    return _pictures.load(key, "digits")


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    learning_rate: float = 1e-4,
    max_norm: float = 1.0,
    num_steps: int = 16,
    num_units: int = 32,
    num_epochs: int = 20,
) -> Result:
    """Descend over the cliff, and train a recurrent network at many rates.

    Args:
        key: Draws the split, the weights and the order of the rows.
        quick: Clipping by norm only, half the learning rates, and 8 epochs.
        learning_rate: On the cliff.
        max_norm: On the cliff.
        num_steps: How many steps the network takes over a picture; 64 must be a multiple of it.
        num_units: Of the network.
        num_epochs: Passes over the digits.

    Returns:
        Both walks over the cliff, and how all runs of the network ended.
    """
    split_key, weight_key, fit_key = jax.random.split(key, 3)
    pictures = problem(split_key)
    cliff = _cliff(learning_rate, max_norm)

    rates = np.float32(2.0) ** np.arange(-5, 3, 2 if quick else 1)
    epochs = min(8, num_epochs) if quick else num_epochs
    methods = ("no clipping", "by norm") if quick else tuple(METHODS)
    kinds = sorted({kind for name in methods for kind in METHODS[name]})
    limits = {kind: [METHODS[name].get(kind, OFF) for name in methods] for kind in kinds}
    settings = {
        "rate": np.tile(rates, len(methods)),
        "limits": {
            kind: np.repeat(np.array(limit, np.float32), len(rates))
            for kind, limit in limits.items()
        },
    }
    ticks = progress.track(range(epochs), "training")
    next(ticks, None)
    runs = loop.fit_many(
        fit_key,
        Recurrent(64, num_units, 10, num_steps=num_steps, rngs=nnx.Rngs(weight_key)),
        _rule,
        jax.tree.map(jnp.asarray, settings),
        losses.softmax_cross_entropy_with_integer_labels,
        (jnp.asarray(pictures.x_train), jnp.asarray(pictures.y_train)),
        num_epochs=epochs,
        batch_size=64,
        validation=(jnp.asarray(pictures.x_test), jnp.asarray(pictures.y_test)),
        metrics={"accuracy": _pictures.accuracy},
        keep_best=False,
        record_norm=True,
        on_epoch=lambda state, numbers: next(ticks, None),
    )
    shape = (len(methods), len(rates))
    status = [list(row) for row in np.array(runs.status, object).reshape(shape)]
    accuracy = np.asarray(runs.history["validation_accuracy"])[:, -1].reshape(shape)
    curves = np.asarray(runs.history["grad_norm_max"]).reshape(*shape, -1)
    finite = np.array([[one == "finished" for one in row] for row in status])
    reader = Reader(
        rates=rates,
        methods=methods,
        accuracy=np.where(finite, accuracy, np.nan),
        norm_max=np.max(np.nan_to_num(curves, nan=0.0, posinf=np.inf), axis=-1),
        curves=curves,
        status=status,
    )
    return Result(pictures.source, cliff, reader, num_steps, epochs)


def _rule(setting: Any) -> optax.GradientTransformation:
    """The ways to clip in one chain, with limits that may be infinite; and the heavy ball."""
    ways = {
        "value": stability.value_clipping,
        "norm": stability.global_norm_clipping,
        "ratio": stability.adaptive_clipping,
    }
    return optax.chain(
        *(ways[kind](limit) for kind, limit in setting["limits"].items()),
        momentum.heavy_ball(setting["rate"], momentum=0.9, dampening=0.9, dampen_first=True),
    )


def _cliff(learning_rate: float, max_norm: float) -> Cliff:
    weights = np.linspace(0.99, 1.0025, 400, dtype=np.float32)
    loss = jax.jit(jax.vmap(cliff_loss))(weights)
    walks = jax.jit(jax.vmap(functools.partial(descend, num_updates=120), (None, None, 0)))(
        0.995, learning_rate, jnp.array([OFF, max_norm])
    )
    (free, clipped), (free_loss, clipped_loss), (_, norms) = map(np.asarray, walks)
    return Cliff(
        weights=weights,
        loss=np.asarray(loss),
        learning_rate=learning_rate,
        max_norm=max_norm,
        free=free,
        clipped=clipped,
        free_loss=free_loss,
        clipped_loss=clipped_loss,
        norms=norms,
    )


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    cliff, reader = result.cliff, result.reader
    walks: list[dict[str, object]] = [
        {
            "gradient": name,
            "from": float(path[0]),
            "farthest step": float(abs(np.diff(path)).max()),
            "to": float(path[-1]),
            "loss": float(loss[-1]),
        }
        for name, path, loss in (
            ("as it is", cliff.free, cliff.free_loss),
            (f"clipped to {cliff.max_norm:g}", cliff.clipped, cliff.clipped_loss),
        )
    ]
    rows: list[dict[str, object]] = []
    for i, rate in enumerate(reader.rates):
        row: dict[str, object] = {"rate": f"{rate:g}"}
        for j, name in enumerate(reader.methods):
            value = reader.accuracy[j, i]
            row[name] = reader.status[j][i] if np.isnan(value) else f"{value:.1%}"
        row["norm"] = f"{reader.norm_max[0, i]:.3g}"
        rows.append(row)
    return {
        f"One weight, {len(cliff.free) - 1} updates at rate {cliff.learning_rate:g}": walks,
        f"{result.num_steps} recurrent steps, {result.epochs} epochs: test accuracy, and the "
        "largest norm without clipping": rows,
    }


def plot(result: Result) -> "Figure":
    """Draw the cliff with both walks, and the network's accuracy over the learning rate."""
    import matplotlib.pyplot as plt

    cliff, reader = result.cliff, result.reader
    with figures.style():
        figure, axes = plt.subplots(1, 3, figsize=(10, 3.3))
        parts: Any = axes
        wall, walk, rates = parts
        wall.semilogy(cliff.weights, cliff.loss, color=figures.GREY, label="loss")
        inside = (cliff.free >= cliff.weights[0]) & (cliff.free <= cliff.weights[-1])
        wall.plot(cliff.clipped, cliff.clipped_loss, ".", color=figures.BLUE, label="clipped")
        wall.plot(
            cliff.free[inside],
            cliff.free_loss[inside],
            "s",
            ms=7,
            markerfacecolor="none",
            color=figures.VERMILLION,
            label="not clipped",
        )
        wall.set(xlabel="w", ylabel="loss", title="The cliff of $w^{1000}$")
        wall.set_xticks([0.99, 0.995, 1.0])
        wall.legend(fontsize="small")

        steps = np.arange(len(cliff.free))
        walk.plot(steps, cliff.free, "--", color=figures.VERMILLION, label="not clipped")
        walk.plot(steps, cliff.clipped, "-", color=figures.BLUE, label="clipped")
        walk.set(xlabel="update", ylabel="w", title="One step off the cliff")
        walk.legend(fontsize="small")

        # No clipping has the colour and the dashes that it has on the left.
        colors = (figures.VERMILLION, figures.BLUE, figures.GREEN, figures.PURPLE)
        marks = zip(
            reader.methods, reader.accuracy, colors, "sDov", ("--", "-", "-", "-"), strict=False
        )
        for name, accuracy, color, mark, line in marks:
            rates.semilogx(
                reader.rates,
                100 * np.nan_to_num(accuracy),
                line,
                color=color,
                marker=mark,
                ms=4,
                label=name,
            )
        rates.set(xlabel="learning rate", ylabel="test accuracy, %", title="A recurrent network")
        rates.set_ylim(0, 125)
        rates.legend(fontsize="small", ncols=2, loc="upper center")
    return figure
