"""Sixteen learning rates in one program; one that fails, and says where; one that stops in time.

The same network is trained from the same weights, on the same batches, with sixteen learning
rates: one `fit_many`. Too small a rate has not arrived at the end, too large a rate ends at a loss
that is not finite. Then the best rate trains on a small part of the data until a stopping rule ends
it, and the parameters of the lowest validation loss are kept.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import _pictures, figures, progress
from mlnotes_jax.foundations import activations, losses
from mlnotes_jax.generalization import early_stopping
from mlnotes_jax.nets.mlp import MLP
from mlnotes_jax.training import loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Result", "plot", "problem", "run", "sgd", "tables"]

LOWEST, HIGHEST = 1e-3, 1e2
HIDDEN = 32
PATIENCE = 10
TOP = 100.0  # of the picture
LOSS = losses.softmax_cross_entropy_with_integer_labels


class Result(NamedTuple):
    """What was measured.

    Attributes:
        source: Which pictures.
        rates: The learning rates, shape `(runs,)`.
        loss: Training loss after each epoch, shape `(runs, epochs)`; NaN from where it was not
            finite.
        accuracy: Validation accuracy after each epoch, likewise.
        status: How each run ended.
        message: The same as sentences.
        best_rate: The rate with the lowest training loss at the end.
        num_rows: How many pictures the second experiment trains on.
        history: Its losses: `loss` and `validation_loss`, one for each epoch.
        stopped: How it ended.
        kept: The epoch whose parameters were kept, from 0.
    """

    source: datasets.Source
    rates: Float[np.ndarray, " runs"]
    loss: Float[np.ndarray, "runs epochs"]
    accuracy: Float[np.ndarray, "runs epochs"]
    status: tuple[str, ...]
    message: tuple[str, ...]
    best_rate: float
    num_rows: int
    history: dict[str, np.ndarray]
    stopped: str
    kept: int


def problem(
    key: Key[Array, ""], *, data: _pictures.Name = "digits", data_dir: Path | None = None
) -> _pictures.Pictures:
    """Read the pictures.

    Args:
        key: Draws the split of the digits.
        data: Which pictures.
        data_dir: Folder of Fashion-MNIST.

    Returns:
        Pictures for training and validation.
    """
    return _pictures.load(key, data, data_dir=data_dir)


def sgd(rate: Float[Array, ""]) -> optax.GradientTransformation:
    """The optimizer of one run."""
    return optax.sgd(rate, momentum=0.9)


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    data: _pictures.Name = "digits",
    data_dir: Path | None = None,
    num_rates: int = 16,
    num_epochs: int = 20,
    batch_size: int = 64,
) -> Result:
    """Train with many rates at once, then with the best one until a rule stops it.

    Args:
        key: For the weights, the order of the rows, and the split of the digits.
        quick: Fewer epochs.
        data: Which pictures.
        data_dir: Folder of Fashion-MNIST.
        num_rates: How many rates, from 0.001 to 100.
        num_epochs: Epochs of each of them.
        batch_size: Rows of a batch.

    Returns:
        Losses, messages, and the run that was stopped.
    """
    split_key, weight_key, fit_key = jax.random.split(key, 3)
    pictures = problem(split_key, data=data, data_dir=data_dir)
    if quick:
        num_epochs = min(num_epochs, 5)
    train, held_out = (
        (jnp.asarray(x).reshape(len(x), -1), jnp.asarray(y))
        for x, y in (
            (pictures.x_train, pictures.y_train),
            (pictures.x_test, pictures.y_test),
        )
    )
    widths = (train[0].shape[1], HIDDEN, len(pictures.class_names))
    # Leaky: with plain ReLU a huge step kills all units, which is a loss that does not move.
    model = MLP(widths, activation=activations.leaky_relu, rngs=nnx.Rngs(weight_key))
    rates = jnp.geomspace(LOWEST, HIGHEST, num_rates)

    [runs] = (
        loop.fit_many(
            fit_key, model, sgd, rates, LOSS, train, num_epochs=num_epochs,
            batch_size=batch_size, validation=held_out, metrics={"accuracy": accuracy},
        )
        for _ in progress.track(range(1), "many rates")
    )  # fmt: skip
    final = np.where(np.isfinite(runs.history["loss"][:, -1]), runs.history["loss"][:, -1], np.inf)
    best = int(final.argmin())

    # A few pictures are soon known by heart.
    few = jax.tree.map(lambda leaf: leaf[: 4 * batch_size], train)
    stopped = loop.fit(
        fit_key, model, sgd(rates[best]), LOSS, few, num_epochs=20 * num_epochs,
        batch_size=batch_size, validation=held_out,
        stopping=early_stopping.no_improvement(PATIENCE),
    )  # fmt: skip
    kept = stopped.state.best
    if kept is None:
        raise AssertionError("with a validation, the best parameters are kept")
    return Result(
        source=pictures.source,
        rates=np.asarray(rates),
        loss=runs.history["loss"],
        accuracy=runs.history["validation_accuracy"],
        status=runs.status,
        message=runs.message,
        best_rate=float(rates[best]),
        num_rows=4 * batch_size,
        history=stopped.history,
        stopped=stopped.message,
        kept=int(kept.epoch),
    )


def accuracy(logits: Float[Array, "n k"], labels: Array) -> Float[Array, ""]:
    """Share of rows whose largest logit is that of their class."""
    return (logits.argmax(axis=-1) == labels).mean()


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    failed = [i for i, status in enumerate(result.status) if status == "not finite"]
    found: dict[str, list[dict[str, object]]] = {
        f"{len(result.rates)} learning rates, one program": [
            {
                "rate": f"{rate:.3g}",
                "ended": status,
                "training loss": f"{loss[-1]:.4g}" if np.isfinite(loss[-1]) else "",
                "accuracy": f"{share[-1]:.1%}" if np.isfinite(loss[-1]) else "",
            }
            for rate, loss, share, status in zip(
                result.rates, result.loss, result.accuracy, result.status, strict=True
            )
        ]
    }
    if failed:
        found["The smallest rate that failed"] = [
            {"rate": f"{result.rates[failed[0]]:.3g}", "message": result.message[failed[0]]}
        ]
    parts = ("loss", "validation_loss")
    ends = {"first": 0, "kept": result.kept, "last": len(result.history["loss"]) - 1}
    found[f"{result.num_rows} pictures, rate {result.best_rate:.3g}, until a rule stops"] = [
        {
            "epoch": name,
            "number": epoch + 1,
            **{part.replace("_", " "): f"{result.history[part][epoch]:.4f}" for part in parts},
        }
        for name, epoch in ends.items()
    ]
    return found


def plot(result: Result) -> "Figure":
    """Draw final loss over rate, loss over epochs, and the run that a rule stopped."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, (over_rate, over_epoch, stopped) = plt.subplots(1, 3, figsize=(9, 3.2))
        final = result.loss[:, -1]
        fine = np.isfinite(final)
        over_rate.loglog(result.rates[fine], final[fine], "o-")
        if not fine.all():
            for rate in result.rates[~fine]:
                over_rate.axvline(rate, color=figures.VERMILLION, linestyle=":", linewidth=1.2)
            over_rate.plot([], [], ":", color=figures.VERMILLION, label="not finite")
            over_rate.legend(fontsize="small")
        over_rate.set(xlabel="learning rate", ylabel="training loss at the end")
        over_rate.set_ylim(top=min(TOP, 2 * final[fine].max()))  # beyond, it only goes up
        over_rate.set_title(f"{len(result.rates)} runs, one program")

        epochs = 1 + np.arange(result.loss.shape[1])
        best = int(np.where(fine, final, np.inf).argmin())
        largest = int(np.flatnonzero(fine & (np.where(fine, final, np.inf) < TOP))[-1])
        for index in dict.fromkeys((0, best // 2, best, largest)):
            label = f"rate {result.rates[index]:.2g}"
            over_epoch.semilogy(epochs, result.loss[index], label=label)
        over_epoch.set(xlabel="epoch", ylabel="training loss", title="Some of them")
        over_epoch.legend(fontsize="small")

        epochs = 1 + np.arange(len(result.history["loss"]))
        stopped.semilogy(epochs, result.history["loss"], label="training")
        stopped.semilogy(epochs, result.history["validation_loss"], label="validation")
        lowest = result.history["validation_loss"][result.kept]
        stopped.plot(result.kept + 1, lowest, "*", color=figures.GREEN, markersize=12, label="kept")
        stopped.set(xlabel="epoch", ylabel="loss", title=f"{result.num_rows} pictures, stopped")
        stopped.legend(fontsize="small")
    return figure
