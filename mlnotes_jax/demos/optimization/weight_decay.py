"""L2 in the loss against decay of the weights, on pictures with some wrong labels.

A small network learns a few hundred digits, a fifth of them with a label drawn at random: without
any decay it learns the wrong labels by heart. Adam with L2 in the loss and AdamW are trained with
many learning rates and many strengths of decay at once, from the same weights on the same batches.
Then the weights of the first layer are compared: those of bright pixels, which have large
gradients, and those of pixels that are always dark, which have none.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import _pictures, figures, progress
from mlnotes_jax.foundations import losses
from mlnotes_jax.nets.mlp import MLP
from mlnotes_jax.optimization import weight_decay
from mlnotes_jax.training import loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NAMES", "Problem", "Result", "plot", "problem", "rule", "run", "tables"]

HIDDEN = 64
BATCH = 50
WRONG = 0.2  # share of the training labels that are drawn at random
LOSS = losses.softmax_cross_entropy_with_integer_labels

#: The rules that are compared.
NAMES = ("Adam + L2", "AdamW")
#: Weakest and strongest decay of each, but for none at all.
ENDS = ((1e-4, 1e-1), (1e-2, 1e1))


class Problem(NamedTuple):
    """Pictures in [0, 1] and classes for training, where some are wrong, and for testing.

    Attributes:
        x_train: Shape `(n, d)`.
        y_train: Shape `(n,)`.
        x_test: Shape `(m, d)`.
        y_test: Shape `(m,)`.
        source: Where the pictures come from.
    """

    x_train: Float[Array, "n d"]
    y_train: Int[Array, " n"]
    x_test: Float[Array, "m d"]
    y_test: Int[Array, " m"]
    source: datasets.Source


class Result(NamedTuple):
    """What `run` found; the rules in the order of `NAMES`.

    Attributes:
        source: Which pictures.
        num_rows: How many of them were trained on.
        num_steps: Updates of each run.
        rates: Learning rates, shape `(rates,)`.
        decays: Strengths, lambda, of each rule, shape `(rules, decays)`; the first is 0.
        train_loss: At the end, with the wrong labels, shape `(rules, rates, decays)`.
        loss: On the test pictures, likewise.
        accuracy: On the test pictures, likewise.
        best: Index of the rate and of the decay with the best accuracy, shape `(rules, 2)`.
        brightness: Root mean square of each pixel in the training pictures, shape `(d,)`.
        kept: Norm of the weights of each pixel after training, divided by that before, of the best
            run of each rule, shape `(rules, d)`.
        dark_kept: What the closed form says of `kept` for a pixel without gradient under AdamW.
    """

    source: datasets.Source
    num_rows: int
    num_steps: int
    rates: Float[np.ndarray, " rates"]
    decays: Float[np.ndarray, "rules decays"]
    train_loss: Float[np.ndarray, "rules rates decays"]
    loss: Float[np.ndarray, "rules rates decays"]
    accuracy: Float[np.ndarray, "rules rates decays"]
    best: Int[np.ndarray, "rules 2"]
    brightness: Float[np.ndarray, " d"]
    kept: Float[np.ndarray, "rules d"]
    dark_kept: float


def problem(
    key: Key[Array, ""],
    *,
    data: _pictures.Name = "digits",
    data_dir: Path | None = None,
    num_rows: int = 300,
) -> Problem:
    """Read the pictures, take some of each class, and draw some labels anew.

    Args:
        key: Draws the pictures and the labels.
        data: Which pictures.
        data_dir: Folder of Fashion-MNIST.
        num_rows: Pictures to train on; at most 1000 others are for testing.

    Returns:
        Both parts.
    """
    split_key, draw_key = jax.random.split(key)
    pictures = _pictures.load(split_key, data, data_dir=data_dir)
    x = np.concatenate([pictures.x_train, pictures.x_test])
    y = np.concatenate([pictures.y_train, pictures.y_test])
    draws = np.asarray(jax.random.uniform(draw_key, (3, len(y))))
    order = draws[0].argsort()[: num_rows + 1000]
    x, y = x[order].reshape(len(order), -1), y[order]
    wrong, anew = draws[1, :num_rows] < WRONG, (10 * draws[2, :num_rows]).astype(np.int32)
    return Problem(
        jnp.asarray(x[:num_rows]),
        jnp.asarray(np.where(wrong, anew, y[:num_rows])),
        jnp.asarray(x[num_rows:]),
        jnp.asarray(y[num_rows:]),
        pictures.source,
    )


def rule(one: dict[str, Array]) -> optax.GradientTransformation:
    """Both ways in one rule, so that all runs are one program.

    With `decay` 0 it is `weight_decay.adam_l2`, with `l2` 0 it is `weight_decay.adamw`.

    Args:
        one: `rate`, `l2` and `decay` of one run.

    Returns:
        The rule.
    """
    return optax.chain(
        optax.add_decayed_weights(one["l2"]),
        weight_decay.adamw(one["rate"], weight_decay=one["decay"]),
    )


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    data: _pictures.Name = "digits",
    data_dir: Path | None = None,
    num_rows: int = 300,
    num_epochs: int = 150,
    num_rates: int = 4,
    num_decays: int = 8,
) -> Result:
    """Train with both rules, every learning rate and every strength of decay at once.

    Args:
        key: Draws the pictures, the wrong labels, the weights and the order of the rows.
        quick: Fewer epochs, rates and strengths.
        data: Which pictures.
        data_dir: Folder of Fashion-MNIST.
        num_rows: Pictures to train on, at least 50.
        num_epochs: Passes over them.
        num_rates: How many learning rates, from 0.002 to 0.02.
        num_decays: How many strengths, none at all included.

    Returns:
        Losses, accuracies, and what became of the weights.
    """
    if quick:
        num_epochs, num_rates, num_decays = min(num_epochs, 60), 2, 5
    data_key, weight_key, fit_key = jax.random.split(key, 3)
    pictures = problem(data_key, data=data, data_dir=data_dir, num_rows=num_rows)
    train, test = pictures[:2], pictures[2:4]
    model = MLP((train[0].shape[1], HIDDEN, 10), rngs=nnx.Rngs(weight_key))
    before = np.linalg.norm(model.layers[0].kernel[...], axis=1)

    rates = np.geomspace(2e-3, 2e-2, num_rates)
    decays = np.array([np.append(0.0, np.geomspace(*ends, num_decays - 1)) for ends in ENDS])
    shape = (len(NAMES), num_rates, num_decays)
    grid = np.broadcast_to(decays[:, None], shape)
    mine = [np.where(np.arange(len(NAMES))[:, None, None] == k, grid, 0) for k in (0, 1)]
    settings = {
        name: jnp.asarray(np.broadcast_to(values, shape).ravel(), jnp.float32)
        for name, values in (("rate", rates[:, None]), ("l2", mine[0]), ("decay", mine[1]))
    }
    [runs] = (
        loop.fit_many(
            fit_key, model, rule, settings, LOSS, train, num_epochs=num_epochs, batch_size=BATCH
        )
        for _ in progress.track(range(1), "all rules and settings")
    )
    loss, accuracy = (part.reshape(shape) for part in _measure(runs, test))
    flat = np.where(np.isfinite(loss), accuracy, 0).reshape(len(NAMES), -1)
    highest = flat.argmax(axis=1)
    best = np.stack(np.unravel_index(highest, shape[1:]), axis=1)
    kernels = np.asarray(runs.params["layers"][0]["kernel"]).reshape(*flat.shape, len(before), -1)
    num_steps = num_epochs * (num_rows // BATCH)
    return Result(
        source=pictures.source,
        num_rows=num_rows,
        num_steps=num_steps,
        rates=rates,
        decays=decays,
        train_loss=runs.history["loss"][:, -1].reshape(shape),
        loss=loss,
        accuracy=accuracy,
        best=best,
        brightness=np.sqrt(np.square(np.asarray(train[0])).mean(axis=0)),
        kept=np.linalg.norm(kernels[np.arange(len(NAMES)), highest], axis=2) / before,
        dark_kept=float((1 - rates[best[1, 0]] * decays[1, best[1, 1]]) ** num_steps),
    )


def _measure(runs: loop.Runs, data: tuple[Array, Array]) -> tuple[np.ndarray, np.ndarray]:
    """Loss and accuracy of each run."""

    @jax.jit
    def measure(params: PyTree, state: PyTree, x: Array, y: Array) -> tuple[Array, Array]:
        logits = jax.vmap(lambda p, s: runs.apply(p, s, x)[0])(params, state)
        return jax.vmap(LOSS, (0, None))(logits, y), (logits.argmax(2) == y[None]).mean(1)

    loss, accuracy = measure(runs.params, runs.state, *data)
    return np.asarray(loss), np.asarray(accuracy)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    best: list[dict[str, object]] = []
    moves: list[dict[str, object]] = []
    kept: list[dict[str, object]] = []
    lit = result.brightness > 0
    thirds = np.searchsorted(np.quantile(result.brightness[lit], [1 / 3, 2 / 3]), result.brightness)
    for k, name in enumerate(NAMES):
        without = result.accuracy[k, :, 0].argmax()
        for i, j in ((without, 0), result.best[k]):
            best.append(
                {
                    "rule": name if j else "Adam, no decay",
                    "rate": f"{result.rates[i]:.1e}",
                    "lambda": f"{result.decays[k, j]:.1e}" if j else "0",
                    "train loss": float(result.train_loss[k, i, j]),
                    "test loss": float(result.loss[k, i, j]),
                    "accuracy": f"{result.accuracy[k, i, j]:.1%}",
                }
            )
        kept.append(
            {
                "rule": name,
                f"dark ({(~lit).sum()})": float(result.kept[k][~lit].mean()),
                "faint third": float(result.kept[k][lit & (thirds == 0)].mean()),
                "bright third": float(result.kept[k][lit & (thirds == 2)].mean()),
            }
        )
    for i, rate in enumerate(result.rates):
        row: dict[str, object] = {
            "rate": f"{rate:.1e}",
            "no decay": f"{result.accuracy[0, i, 0]:.1%}",
        }
        for k, name in enumerate(NAMES):
            j = result.accuracy[k, i].argmax()
            row[name] = f"{result.accuracy[k, i, j]:.1%}"
            row[f"its lambda {'':{k}}"] = f"{result.decays[k, j]:.1e}"
        moves.append(row)
    return {
        f"{result.num_rows} pictures, {WRONG:.0%} of the labels drawn anew, "
        f"{result.num_steps} updates": best[1:2] + best[3:] + best[:1],
        "Best test accuracy for each learning rate": moves,
        "Weights of a pixel: norm after / before": kept,
    }


def plot(result: Result) -> "Figure":
    """Draw the accuracy over rate and decay, and what became of the weights."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.4))
        high = 100 * result.accuracy.max()
        for k, (axis, name) in enumerate(zip(axes[:2], NAMES, strict=True)):
            image = axis.imshow(
                100 * result.accuracy[k].T, origin="lower", aspect="auto", vmin=high - 20,
                vmax=high,
            )  # fmt: skip
            axis.plot(
                range(len(result.rates)), result.accuracy[k].argmax(axis=1), "o", color="white",
                markeredgecolor="black",
            )  # fmt: skip
            axis.grid(visible=False)
            axis.set_xticks(range(len(result.rates)), [f"{rate:.0e}" for rate in result.rates])
            labels = ["0", *(f"{decay:.0e}" for decay in result.decays[k][1:])]
            axis.set_yticks(range(len(labels)), labels)
            axis.tick_params(labelsize="small")
            axis.set(xlabel="learning rate", ylabel="decay λ", title=f"{name}; ○: best of a rate")
        figure.colorbar(image, ax=axes[:2], label="test accuracy, % (or less)")

        floor = 1e-3
        for k, (name, mark) in enumerate(zip(NAMES, "os", strict=True)):
            axes[2].semilogy(
                result.brightness, np.maximum(result.kept[k], floor), mark, markersize=4,
                color=figures.COLORS[k], label=name,
            )  # fmt: skip
        axes[2].axhline(
            max(result.dark_kept, floor), color=figures.GREY, lw=1, label="AdamW, no gradient"
        )
        axes[2].set(
            xlabel="root mean square of the pixel", ylabel="norm after / before (0.001: or less)",
            title="Weights of each pixel",
        )  # fmt: skip
        axes[2].legend(fontsize="small")
    return figure
