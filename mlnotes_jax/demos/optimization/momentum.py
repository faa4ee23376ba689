"""Batch sizes from 1 to 4096, and momentum on a plateau: two experiments on pictures.

First, one network is trained for the same number of epochs with batches of many sizes, once with
one learning rate for all of them and once with a rate that grows like the root of the size. Time
for one update, time for one epoch, and both losses at the end are reported; compilation is not part
of the times. Second, a network starts from weights that are far too small. There its loss is a
plateau: the gradient is nearly zero. Full-batch descent from there, with momentum and without.
"""

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import _pictures, figures, progress
from mlnotes_jax.foundations import activations, losses
from mlnotes_jax.nets.mlp import MLP
from mlnotes_jax.optimization import momentum
from mlnotes_jax.training import loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Batches", "Plateau", "Result", "plot", "problem", "run", "tables"]

SIZES = (1, 4, 16, 64, 256, 1024, 4096)
HIDDEN = 32
LOSS = losses.softmax_cross_entropy_with_integer_labels
METRICS = {"loss": LOSS, "accuracy": _pictures.accuracy}
# Of the second experiment: pictures, their root mean square length, share of He's start, rate,
# momentum.
ROWS = 500
LENGTH = 4.0
SCALE = 0.003
RATE = 0.2
MOMENTUM = 0.9


class Batches(NamedTuple):
    """What batches of each size took, and brought. Rows of losses: one rate for all, rate grown.

    Attributes:
        sizes: Rows of a batch, shape `(k,)`.
        updates: Updates in an epoch, shape `(k,)`.
        seconds: Time for an epoch, the shortest of those that compiled nothing, shape `(k,)`.
        num_epochs: Epochs of each.
        rates: Learning rates, shape `(2, k)`.
        train_loss: After the last epoch, over all training pictures, shape `(2, k)`.
        test_loss: The same over the test pictures.
        test_accuracy: The same, share of hits.
    """

    sizes: Int[np.ndarray, " k"]
    updates: Int[np.ndarray, " k"]
    seconds: Float[np.ndarray, " k"]
    num_epochs: int
    rates: Float[np.ndarray, "2 k"]
    train_loss: Float[np.ndarray, "2 k"]
    test_loss: Float[np.ndarray, "2 k"]
    test_accuracy: Float[np.ndarray, "2 k"]


class Plateau(NamedTuple):
    """Three walks from the same small weights: without momentum, with it, with a larger rate.

    Attributes:
        names: Of the walks.
        rates: Learning rates, shape `(3,)`.
        momentum: Shape `(3,)`.
        loss: Before each update, shape `(3, steps)`.
        gradient_norm: There.
        step_norm: The length of each update, shape `(3, steps)`.
        left: The first update whose loss is below half of the first one; -1 where there is none.
        growth: By what the slope grows in an update while the loss is nearly what it was; the
            median over some updates, shape `(3,)`.
        speed: Length of an update there, in updates of plain descent, shape `(3,)`.
    """

    names: tuple[str, ...]
    rates: Float[np.ndarray, "3"]
    momentum: Float[np.ndarray, "3"]
    loss: Float[np.ndarray, "3 steps"]
    gradient_norm: Float[np.ndarray, "3 steps"]
    step_norm: Float[np.ndarray, "3 steps"]
    left: Int[np.ndarray, "3"]
    growth: Float[np.ndarray, "3"]
    speed: Float[np.ndarray, "3"]


class Result(NamedTuple):
    """Both experiments.

    Attributes:
        source: Which pictures.
        num_rows: How many there are for training.
        batches: The first.
        plateau: The second.
    """

    source: datasets.Source
    num_rows: int
    batches: Batches
    plateau: Plateau


def problem(
    key: Key[Array, ""],
    *,
    data: _pictures.Choice = "auto",
    data_dir: Path | None = None,
) -> _pictures.Pictures:
    """Read the pictures.

    Args:
        key: Draws the split of the digits.
        data: Which pictures; `"auto"` is Fashion-MNIST if its files are there, and digits if not.
        data_dir: Folder of Fashion-MNIST.

    Returns:
        Pictures for training and test.
    """
    return _pictures.load(key, data, data_dir=data_dir)


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    data: _pictures.Choice = "auto",
    data_dir: Path | None = None,
    num_epochs: int = 3,
    learning_rate: float = 0.01,
    num_steps: int = 400,
) -> Result:
    """Train with many batch sizes; then leave a plateau with momentum and without.

    Args:
        key: For the split of the digits, the weights, and the order of the rows.
        quick: Digits, three batch sizes, few steps.
        data: Which pictures; auto is Fashion-MNIST if its files are there, and digits if not.
        data_dir: Folder of Fashion-MNIST.
        num_epochs: Epochs with each batch size, at least 2: the first one is not timed.
        learning_rate: Of all batch sizes; or, grown with the root of the size, that of size 1.
        num_steps: Updates on the plateau.

    Returns:
        Times and losses, and the three walks.
    """
    split_key, weight_key, fit_key = jax.random.split(key, 3)
    if quick:
        num_epochs, num_steps = min(num_epochs, 3), min(num_steps, 90)
        data = "digits" if data == "auto" else data
    pictures = problem(split_key, data=data, data_dir=data_dir)
    train, test = (
        (jnp.asarray(x).reshape(len(x), -1), jnp.asarray(y))
        for x, y in ((pictures.x_train, pictures.y_train), (pictures.x_test, pictures.y_test))
    )
    num_rows = len(train[1])
    sizes = [size for size in SIZES if size <= num_rows]
    if quick:
        sizes = [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
    widths = (train[0].shape[1], HIDDEN, len(pictures.class_names))
    start = nnx.initializers.he_uniform()
    model = MLP(widths, activation=activations.tanh, kernel_init=start, rngs=nnx.Rngs(weight_key))
    batches = _batches(fit_key, model, train, test, sizes, num_epochs, learning_rate)
    plateau = _plateau(model, train, num_steps)
    return Result(pictures.source, num_rows, batches, plateau)


def _batches(
    key: Array,
    model: MLP,
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    sizes: list[int],
    num_epochs: int,
    learning_rate: float,
) -> Batches:
    """Train from the same weights with each size and both rates."""
    # The rate is part of the state: two rates, one program.
    optimizer = optax.inject_hyperparams(momentum.sgd)(learning_rate)
    rates = learning_rate * np.stack([np.ones(len(sizes)), np.sqrt(sizes)])
    seconds, found = [], []
    for index, size in enumerate(progress.track(sizes, "batch sizes")):
        spent = []
        for rate in dict.fromkeys(rates[:, index].tolist()):

            def begin(fresh: loop.TrainState, rate: float = rate) -> loop.TrainState:
                old: Any = fresh.opt_state
                now = {"learning_rate": jnp.full_like(old.hyperparams["learning_rate"], rate)}
                return fresh._replace(opt_state=old._replace(hyperparams=now))

            clock = []
            fitted = loop.fit(
                key, model, optimizer, LOSS, train, num_epochs=num_epochs, batch_size=size,
                start=begin, on_epoch=lambda state, row, clock=clock: clock.append(_now()),
            )  # fmt: skip
            spent += np.diff(clock).tolist()
            ends = [
                loop.evaluate(fitted.model, part, METRICS, batch_size=10_000)
                for part in (train, test)
            ]
            row = (ends[0]["loss"], ends[1]["loss"], ends[1]["accuracy"])
            found.append(row)
            if size == 1:  # both rates are the same
                found.append(row)
        seconds.append(min(spent))
    table = np.array(found, float).reshape(len(sizes), 2, 3).T
    return Batches(
        sizes=np.array(sizes),
        updates=len(train[1]) // np.array(sizes),
        seconds=np.array(seconds),
        num_epochs=num_epochs,
        rates=rates,
        train_loss=table[0],
        test_loss=table[1],
        test_accuracy=table[2],
    )


def _now() -> float:
    return time.perf_counter()


def _plateau(model: MLP, train: tuple[Array, Array], num_steps: int) -> Plateau:
    """Descend from small weights, three times side by side."""
    x, y = train[0][:ROWS], train[1][:ROWS]
    x = LENGTH * x / jnp.sqrt(jnp.square(x).sum(axis=1).mean())
    params, state, apply = loop.bind(model)
    params = jax.tree.map(lambda leaf: SCALE * leaf, params)
    rates = np.array([RATE, RATE, RATE / (1 - MOMENTUM)], np.float32)
    masses = np.array([0.0, MOMENTUM, 0.0], np.float32)
    [rows] = (
        jax.tree.map(np.asarray, _walks(apply, num_steps, params, state, (x, y), rates, masses))
        for _ in progress.track(range(1), "plateau")
    )
    loss, gradient_norm, step_norm = rows
    low = loss < loss[:, :1] / 2
    growth, speed = [], []
    for i in range(len(rates)):
        # Some updates before the loss moves, when the start has been forgotten.
        moves = int(np.append(loss[i] < 0.99 * loss[i, 0], True).argmax())
        some = slice(int(0.7 * moves), int(0.85 * moves) + 2)
        norm = gradient_norm[i, some]
        growth.append(np.median(norm[1:] / norm[:-1]))
        speed.append(np.median(step_norm[i, some] / (rates[i] * norm)))
    larger = f"no momentum, rate × {1 / (1 - MOMENTUM):.0f}"
    return Plateau(
        names=("no momentum", f"momentum {MOMENTUM}", larger),
        rates=rates,
        momentum=masses,
        loss=loss,
        gradient_norm=gradient_norm,
        step_norm=step_norm,
        left=np.where(low.any(axis=1), low.argmax(axis=1), -1),
        growth=np.array(growth),
        speed=np.array(speed),
    )


@partial(jax.jit, static_argnums=(0, 1))
def _walks(
    apply: loop.Apply,
    num_steps: int,
    params: PyTree,
    state: PyTree,
    batch: tuple[Array, Array],
    rates: Array,
    masses: Array,
) -> tuple[Array, Array, Array]:
    """Loss, gradient norm and step length before each update of each walk."""

    def loss(params: PyTree) -> Array:
        return LOSS(apply(params, state, batch[0])[0], batch[1])

    def walk(rate: Array, mass: Array) -> tuple[Array, Array, Array]:
        rule = momentum.heavy_ball(rate, momentum=mass)

        def step(carry: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], Any]:
            params, memory = carry
            value, grad = jax.value_and_grad(loss)(params)
            update, memory = rule.update(grad, memory, params)
            row = (value, optax.tree.norm(grad), optax.tree.norm(update))
            return (optax.apply_updates(params, update), memory), row

        return jax.lax.scan(step, (params, rule.init(params)), length=num_steps)[1]

    return jax.vmap(walk)(rates, masses)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    batches, plateau = result.batches, result.plateau
    times: list[dict[str, object]] = [
        {
            "batch size": int(size),
            "updates an epoch": int(updates),
            "ms an update": float(1e3 * seconds / updates),
            "s an epoch": float(seconds),
        }
        for size, updates, seconds in zip(
            batches.sizes, batches.updates, batches.seconds, strict=True
        )
    ]
    titles = ("One rate for all sizes", "The rate grows with the root of the size")
    found = {f"Time, {result.num_rows} pictures": times}
    for row, title in enumerate(titles):
        found[f"{title}, after {batches.num_epochs} epochs"] = [
            {
                "batch size": int(size),
                "rate": float(batches.rates[row, i]),
                "train loss": float(batches.train_loss[row, i]),
                "test loss": float(batches.test_loss[row, i]),
                "test accuracy": f"{batches.test_accuracy[row, i]:.1%}",
            }
            for i, size in enumerate(batches.sizes)
        ]
    steps = plateau.loss.shape[1]
    found[f"A start that is too small, {steps} updates with {ROWS} pictures at once"] = [
        {
            "descent": name,
            "rate": float(plateau.rates[i]),
            "loss halved after": int(left) if left >= 0 else f"not in {steps}",
            "highest loss": float(plateau.loss[i].max()),
            "last loss": float(plateau.loss[i, -1]),
        }
        for i, (name, left) in enumerate(zip(plateau.names, plateau.left, strict=True))
    ]
    found["On the plateau, before the loss moves"] = [
        {
            "descent": name,
            "slope grows by": f"{plateau.growth[i] - 1:.1%}",
            "speed": float(plateau.speed[i]),
            "formula": float(1 / (1 - plateau.momentum[i] / plateau.growth[i])),
        }
        for i, name in enumerate(plateau.names[:2])
    ]
    return found


def plot(result: Result) -> "Figure":
    """Draw times and losses over batch sizes; losses and speeds on the plateau."""
    import matplotlib.pyplot as plt

    batches, plateau = result.batches, result.plateau
    with figures.style():
        figure, axes = plt.subplots(2, 2, figsize=(9, 6))
        (times, ends), (down, speeds) = axes
        times.loglog(batches.sizes, batches.seconds, "o-", label="an epoch")
        times.loglog(batches.sizes, batches.seconds / batches.updates, "s--", label="an update")
        times.set(xlabel="batch size", ylabel="seconds", title="Time")
        times.legend(fontsize="small")

        for row, name, color in (
            (0, "one rate", figures.BLUE),
            (1, "rate grows", figures.VERMILLION),
        ):
            ends.semilogx(
                batches.sizes, batches.train_loss[row], "o-", color=color, label=f"{name}, train"
            )
            ends.semilogx(
                batches.sizes, batches.test_loss[row], "s:", color=color, label=f"{name}, test"
            )
        title = f"After {batches.num_epochs} epochs"
        ends.set(xlabel="batch size", ylabel="loss", title=title)
        ends.legend(fontsize="small")

        update = np.arange(plateau.loss.shape[1])
        dashes = ("-", "--", ":")
        shown = max(20, int(plateau.left[1]) if plateau.left[1] > 0 else len(update))
        widths = (1.8, 1.8, 1.0)
        for name, loss, dash, width in zip(
            plateau.names, plateau.loss, dashes, widths, strict=True
        ):
            down.plot(update, loss, dash, lw=width, label=name)
        down.set_ylim(0, min(3 * plateau.loss[1, 0], 1.1 * plateau.loss.max()))
        down.set(xlabel="update", ylabel="loss", title="From weights that are too small")
        # Below: the third walk would run through it.
        down.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)

        for i, (name, dash) in enumerate(zip(plateau.names[:2], dashes, strict=False)):
            length = plateau.step_norm[i] / (plateau.rates[i] * plateau.gradient_norm[i])
            speeds.plot(update[:shown], length[:shown], dash, label=name)
        formula = 1 / (1 - plateau.momentum[1] / plateau.growth[1])
        label = f"slope grows by {plateau.growth[1] - 1:.0%} an update"
        speeds.axhline(formula, color=figures.GREEN, lw=1.2, ls="-.", label=label)
        limit = float(momentum.terminal_speed(MOMENTUM))
        speeds.axhline(limit, color=figures.GREY, lw=1.2, ls=":", label="even slope, 1 / (1 - λ)")
        speeds.set_ylim(0, 1.4 * limit)
        speeds.set(xlabel="update", ylabel="step / (rate × gradient)", title="Speed")
        speeds.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return figure
