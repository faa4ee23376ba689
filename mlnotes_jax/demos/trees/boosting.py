"""Gradient boosting: how a sum of trees comes near a curve, and what a small step is good for.

First a noisy curve, and the sum of 1, 3, 10, 30 and 100 trees. Then 569 tumours, malignant or
benign, with ten measured features, half of them held out: the log-loss of both halves after every
round, for learning rates from 0.03 to 1, over several random halves (weights of 0 and 1). All these
fits are one program.
"""

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures
from mlnotes_jax.trees import boosting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Problem", "Result", "plot", "problem", "run", "tables"]

RATES = (1.0, 0.3, 0.1, 0.03)
STAGES = (1, 3, 10, 30, 100)
CURVE_RATE = 0.3


class Problem(NamedTuple):
    """A noisy curve, its truth on a grid; tumours, 1 for benign; and where they come from."""

    t: Float[Array, "m 1"]
    value: Float[Array, " m"]
    grid: Float[np.ndarray, " g"]
    truth: Float[np.ndarray, " g"]
    x: Float[np.ndarray, "n d"]
    y: Int[np.ndarray, " n"]
    source: datasets.Source


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data of the learning curves.
        points: The noisy curve, two vectors.
        grid: Where the stages are drawn.
        truth: The curve without noise on the grid.
        stages: Prediction after 1, 3, 10, 30, 100 rounds, shape `(5, grid)`.
        stage_error: Root mean squared distance of each stage from the truth.
        rates: Learning rates of the learning curves.
        num_halves: Random halves of the data that the curves are means over.
        train: Mean log-loss of the training half after each round, shape `(rates, rounds)`.
        held_out: Of the other half.
        standard_error: Of `held_out`, at its least, from the spread over the halves.
    """

    source: datasets.Source
    points: tuple[np.ndarray, np.ndarray]
    grid: np.ndarray
    truth: np.ndarray
    stages: np.ndarray
    stage_error: np.ndarray
    rates: tuple[float, ...]
    num_halves: int
    train: np.ndarray
    held_out: np.ndarray
    standard_error: np.ndarray


def problem(key: Key[Array, ""], *, num_points: int = 200) -> Problem:
    """Draw the curve and load the tumours.

    Args:
        key: For the points and their noise.
        num_points: Of the curve.

    Returns:
        Both sets.
    """
    point_key, noise_key = jax.random.split(key)
    t = jax.random.uniform(point_key, (num_points, 1), minval=0.0, maxval=6.0)
    value = _curve(t[:, 0]) + 0.3 * jax.random.normal(noise_key, (num_points,))
    grid = np.linspace(0, 6, 301, dtype=np.float32)
    data = datasets.load("breast_cancer")
    columns = [i for i, name in enumerate(data.feature_names) if name.startswith("mean ")]
    x = data.x[:, columns].astype(np.float32)
    return Problem(t, value, grid, np.asarray(_curve(grid)), x, data.y, data.source)


def _curve(t: Array | np.ndarray) -> Array:
    """A wave, and a step that no wave would follow."""
    return jnp.sin(2 * t) + jnp.where(t > 4, 1.5, 0.0)


def run(
    key: Key[Array, ""], *, quick: bool = False, num_trees: int = 200, num_halves: int = 10
) -> Result:
    """Fit the curve, then follow the loss of tumours round by round.

    Args:
        key: For the curve and the halves.
        quick: Fewer halves and learning rates.
        num_trees: Rounds of the learning curves.
        num_halves: Random halves of the data.

    Returns:
        Stages of the curve, and learning curves.
    """
    rates = RATES[::2] if quick else RATES
    if quick:
        num_halves = min(num_halves, 4)
    data_key, half_key, fit_key = jax.random.split(key, 3)
    data = problem(data_key)

    model = boosting.fit(
        fit_key, data.t, data.value, num_trees=max(STAGES), learning_rate=CURVE_RATE, max_depth=2
    )
    stages = boosting.staged_decision_function(model, data.grid[:, None])
    stages = np.asarray(stages)[np.array(STAGES) - 1]

    rank = jnp.argsort(jax.random.uniform(half_key, (num_halves, len(data.y))), axis=1)
    train = (rank < len(data.y) // 2).astype(jnp.float32)
    losses = _curves(fit_key, data.x, data.y, train, jnp.array(rates), num_trees=num_trees)
    losses = np.asarray(losses)  # rates, halves, (train, held out), rounds
    best = losses[:, :, 1].mean(axis=1).argmin(axis=1)
    at_best = losses[np.arange(len(rates)), :, 1, best]
    return Result(
        source=data.source,
        points=(np.asarray(data.t)[:, 0], np.asarray(data.value)),
        grid=data.grid,
        truth=data.truth,
        stages=stages,
        stage_error=np.sqrt(np.square(stages - data.truth[None]).mean(axis=1)),
        rates=rates,
        num_halves=num_halves,
        train=losses[:, :, 0].mean(axis=1),
        held_out=losses[:, :, 1].mean(axis=1),
        standard_error=at_best.std(axis=1, ddof=1) / np.sqrt(num_halves),
    )


@functools.partial(jax.jit, static_argnames="num_trees")
def _curves(key: Array, x: Array, y: Array, train: Array, rates: Array, *, num_trees: int) -> Array:
    """Losses of each learning rate and half, shape `(rates, halves, 2, rounds)`."""

    def one(rate: Array, weight: Array) -> Array:
        model = boosting.fit(
            key, x, y, loss="logistic", num_trees=num_trees, max_depth=3, learning_rate=rate,
            min_child_weight=0.1, sample_weight=weight,
        )  # fmt: skip
        both = jnp.stack([weight, 1 - weight])
        return jax.lax.map(lambda w: boosting.staged_loss(model, x, y, sample_weight=w), both)

    # One after the other. `vmap` would do the same, and take longer to compile.
    return jax.lax.map(lambda rate: jax.lax.map(lambda half: one(rate, half), train), rates)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """Put the numbers into rows.

    Args:
        result: What `run` returned.

    Returns:
        Title to rows.
    """
    best = result.held_out.argmin(axis=1)
    return {
        "A curve, and trees of depth 2": [
            {"rounds": rounds, "distance from the truth": float(f"{error:.3f}")}
            for rounds, error in zip(STAGES, result.stage_error, strict=True)
        ],
        f"Tumours: log-loss over {result.num_halves} halves, trees of depth 3": [
            {
                "learning rate": rate,
                "rounds to the best": int(best[i]) + 1,
                "held out, best": f"{result.held_out[i, best[i]]:.4f}"
                f" ±{result.standard_error[i]:.4f}",
                "at the end": float(f"{result.held_out[i, -1]:.4f}"),
                "training, at the end": f"{result.train[i, -1]:.1e}",
            }
            for i, rate in enumerate(result.rates)
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw the stages on the curve, and the learning curves.

    Args:
        result: What `run` returned.

    Returns:
        A figure of two panels.
    """
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(1, 2, figsize=(9.5, 4))
        _draw_stages(axes[0], result)
        _draw_losses(axes[1], result)
        figure.suptitle("Gradient boosting: the sum of the first trees, and what a small step buys")
    return figure


def _draw_stages(axes, result: Result) -> None:
    axes.plot(*result.points, ".", color=figures.GREY, ms=3, alpha=0.6, label="data")
    axes.plot(result.grid, result.truth, "-", color=figures.GREY, lw=1, label="truth")
    looks = ((figures.OCHRE, ":", 0), (figures.VERMILLION, "--", 2), (figures.BLUE, "-", 4))
    for color, dash, i in looks:
        name = f"{STAGES[i]} tree{'s' if STAGES[i] > 1 else ''}"
        axes.step(result.grid, result.stages[i], dash, where="mid", color=color, lw=1.6, label=name)
    axes.set(xlabel="$x$", ylabel="$y$", title=f"Stages, learning rate {CURVE_RATE}")
    axes.legend(fontsize=7)


def _draw_losses(axes, result: Result) -> None:
    rounds = np.arange(1, result.train.shape[1] + 1)
    dashes = ("-", "--", "-.", ":")
    for i, (rate, color) in enumerate(zip(result.rates, figures.COLORS, strict=False)):
        axes.plot(rounds, result.held_out[i], dashes[i], color=color, label=f"{rate:g}, held out")
        axes.plot(
            rounds, result.train[i], dashes[i], color=color, lw=1, alpha=0.55,
            label=f"{rate:g}, training",
        )  # fmt: skip
    axes.set(
        xscale="log",
        yscale="log",
        ylim=(2e-3, 1),
        xlabel="rounds",
        ylabel="log-loss (nats)",
        title="Tumours, by learning rate",
    )
    axes.legend(fontsize=7, ncol=2, loc="lower left")
