"""Digits against digits that were moved or dimmed: which change is noticed, and does it hurt?

A hundred pictures to train on and a hundred to test on are drawn again and again. The test pictures
are moved to the right by part of a pixel, or made darker. Three tests look for a difference: the
right answers of a classifier that learned to tell the two samples apart, the order of its scores,
and Kolmogorov and Smirnov's test of every pixel. Beside it: what the same change does to a
classifier of the digits.
"""

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.generalization import mismatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Problem",
    "Result",
    "change",
    "plot",
    "problem",
    "run",
    "tables",
    "trials",
]

SHIFTS = (0.0, 0.04, 0.06, 0.1, 0.2, 0.5, 1.0)
GAINS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7)
TESTS = ("right answers", "order of scores", "pixel by pixel")
NUM_ROWS = 100
BATCH = 40
LEVEL = 0.05


class Problem(NamedTuple):
    """The pictures.

    Attributes:
        x: Brightness in [0, 1], shape `(n, 8, 8)`.
        y: The digits, shape `(n,)`.
        source: Where they come from.
    """

    x: Float[np.ndarray, "n 8 8"]
    y: np.ndarray
    source: datasets.Source


class Trials(NamedTuple):
    """Many repetitions of three tests.

    Attributes:
        p_values: Shape `(trials, 3)`, in the order of `TESTS`; the last is corrected for 64 pixels.
        found: What the classifier found, each field with a first axis `(trials,)`.
        pictures: Which pictures were drawn: `NUM_ROWS` for training, then as many for testing.
    """

    p_values: Float[Array, "t 3"]
    found: mismatch.TwoSample
    pictures: Array


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        num_trials: How often each change was tried.
        shifts: Pixels to the right.
        gains: Factors of the brightness.
        shift_p_values: Shape `(shifts, trials, 3)`.
        gain_p_values: Shape `(gains, trials, 3)`.
        attained: Of each null trial, the chance of a false alarm that the counting test has: it
            cannot always use the whole level. Shape `(trials,)`.
        shift_accuracy: Of a classifier of the digits, on moved pictures.
        gain_accuracy: The same on darker ones.
        foreign: The four test pictures that look most foreign, of one trial, moved by a pixel.
        homely: The four that look most like training pictures.
        importance: Of each pixel in that trial, shape `(8, 8)`.
    """

    source: datasets.Source
    num_trials: int
    shifts: tuple[float, ...]
    gains: tuple[float, ...]
    shift_p_values: np.ndarray
    gain_p_values: np.ndarray
    attained: np.ndarray
    shift_accuracy: tuple[float, ...]
    gain_accuracy: tuple[float, ...]
    foreign: np.ndarray
    homely: np.ndarray
    importance: np.ndarray


def problem(key: Key[Array, ""] | None = None) -> Problem:
    """Load the digits.

    Args:
        key: Not used: nothing is drawn.

    Returns:
        Pictures and digits.
    """
    del key
    data = datasets.load("digits")
    return Problem((data.x / np.float32(16)).reshape(-1, 8, 8), data.y, data.source)


def change(
    x: Float[ArrayLike, "... 8 8"], shift: Float[ArrayLike, ""], gain: Float[ArrayLike, ""]
) -> Float[Array, "... 8 8"]:
    """Move pictures to the right by part of a pixel, and dim them.

    Args:
        x: Pictures.
        shift: In [0, 1]: between the picture and its copy one pixel to the right.
        gain: Factor of the brightness.

    Returns:
        The changed pictures, rounded to sixteenths as the pictures are.
    """
    x = jnp.asarray(x)
    moved = jnp.concatenate([jnp.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)
    changed = jnp.asarray(gain) * ((1 - shift) * x + shift * moved)
    return jnp.round(16 * changed) / 16  # without it, odd values alone would give them away


@jax.jit
def trials(
    keys: Key[Array, " t"],
    x: Float[Array, "n 8 8"],
    shift: Float[ArrayLike, ""],
    gain: Float[ArrayLike, ""],
) -> Trials:
    """Draw pictures, change half of them, and test; once for each key.

    Args:
        keys: One for each trial.
        x: All pictures.
        shift: As in `change`.
        gain: As in `change`.

    Returns:
        P-values, and what else the tests say.
    """

    def one(key: Array) -> Trials:
        draw_key, test_key = jax.random.split(key)
        drawn = jnp.argsort(jax.random.bits(draw_key, x.shape[:1]))[: 2 * NUM_ROWS]
        train = x[drawn[:NUM_ROWS]].reshape(NUM_ROWS, -1)
        test = change(x[drawn[NUM_ROWS:]], shift, gain).reshape(NUM_ROWS, -1)
        found = mismatch.classifier_two_sample(test_key, train, test, num_permutations=199)
        pixels = mismatch.feature_tests(train, test).adjusted.min()
        p_values = jnp.stack([found.p_value, found.permutation_p_value, pixels])
        return Trials(p_values, found, drawn)

    return jax.vmap(one)(keys)


def run(key: Key[Array, ""], *, quick: bool = False, num_trials: int = 200) -> Result:
    """Try every change many times.

    Args:
        key: Draws pictures, halves and permutations.
        quick: 40 trials, and fewer changes.
        num_trials: How often each change is tried; rounded up to a multiple of 40.

    Returns:
        P-values, accuracies, and one trial to look at.
    """
    shifts, gains = (SHIFTS, GAINS) if not quick else (SHIFTS[::2], GAINS[::2])
    batches = 1 if quick else -(-num_trials // BATCH)
    data = problem()
    x = jnp.asarray(data.x)
    keys = jax.random.split(key, (batches, BATCH))

    changes = [(shift, 1.0) for shift in shifts] + [(0.0, gain) for gain in gains[1:]]
    every = []
    for shift, gain in progress.track(changes, "changes"):
        parts = [jax.device_get(trials(k, x, jnp.float32(shift), jnp.float32(gain))) for k in keys]
        every.append(jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))
    p_values = np.stack([each.p_values for each in every])

    whole = every[len(shifts) - 1]  # moved by a whole pixel
    test = change(x[whole.pictures[0, NUM_ROWS:]], shifts[-1], 1.0)
    order = whole.found.z_rows[0][np.argsort(-whole.found.z_scores[0])]
    accuracies = [_digit_accuracy(data, shift, gain) for shift, gain in changes]
    return Result(
        source=data.source,
        num_trials=batches * BATCH,
        shifts=shifts,
        gains=gains,
        shift_p_values=p_values[: len(shifts)],
        gain_p_values=p_values[[0, *range(len(shifts), len(changes))]],
        attained=np.array([attained_level(counts) for counts in every[0].found.counts]),
        shift_accuracy=tuple(accuracies[: len(shifts)]),
        gain_accuracy=(accuracies[0], *accuracies[len(shifts) :]),
        foreign=np.asarray(test[order[:4]]),
        homely=np.asarray(test[order[-4:]]),
        importance=whole.found.importance[0].reshape(8, 8),
    )


def attained_level(counts: np.ndarray, level: float = LEVEL) -> float:
    """The largest p-value up to the level that these margins allow: the true rate of false alarms.

    Args:
        counts: Held-out rows by sample and by answer, shape `(2, 2)`.
        level: What the test promises.

    Returns:
        The chance that the p-value is at most `level`, if there is no difference.
    """
    from scipy import stats

    hits = np.arange(counts[1].sum() + 1)
    tails = stats.hypergeom.sf(hits - 1, counts.sum(), counts[1].sum(), counts[:, 1].sum())
    return float(tails[tails <= level].max(initial=0))


@functools.cache
def _digit_classifier() -> tuple[np.ndarray, np.ndarray]:
    """Least squares for each digit against the rest, on every other picture."""
    data = problem()
    x, y = data.x[::2].reshape(-1, 64), data.y[::2]
    rows = np.column_stack([x, np.ones(len(x))]).astype(np.float64)
    weights = np.linalg.solve(rows.T @ rows + 1e-1 * np.eye(65), rows.T @ np.eye(10)[y])
    return weights[:-1], weights[-1]


def _digit_accuracy(data: Problem, shift: float, gain: float) -> float:
    weights, bias = _digit_classifier()
    test = np.asarray(change(data.x[1::2], shift, gain), np.float64).reshape(-1, 64)
    return float(np.mean((test @ weights + bias).argmax(axis=1) == data.y[1::2]))


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture.

    Args:
        result: What `run` returned.

    Returns:
        Title to rows.
    """
    rate = np.mean(result.shift_p_values[0] <= LEVEL, axis=0)
    error = (LEVEL * (1 - LEVEL) / result.num_trials) ** 0.5
    changes = (
        (result.shifts, result.shift_p_values, result.shift_accuracy, "pixels to the right"),
        (result.gains, result.gain_p_values, result.gain_accuracy, "times as bright"),
    )
    alarms: dict[str, list[dict[str, object]]] = {
        f"False alarms at {LEVEL:.0%}, {result.num_trials} trials without a change": [
            {
                "test": test,
                "false alarms": f"{rate[i]:.1%}",
                "allowed": f"{LEVEL:.1%} ±{error:.1%}",
                "exact": f"{result.attained.mean():.1%}" if i == 0 else "",
            }
            for i, test in enumerate(TESTS)
        ]
    }
    return alarms | {
        f"Noticed, {NUM_ROWS} against {NUM_ROWS} pictures: {name}": [
            {
                name: size,
                **{t: f"{np.mean(p[:, i] <= LEVEL):.0%}" for i, t in enumerate(TESTS)},
                "median p-value": float(np.median(p[:, 0])),
                "digits right": f"{right:.1%}",
            }
            for size, p, right in zip(sizes, p_values, accuracies, strict=True)
        ]
        for sizes, p_values, accuracies, name in changes
    }


_LOOKS = ((figures.BLUE, "o-"), (figures.VERMILLION, "s--"), (figures.GREEN, "^-."))


def plot(result: Result) -> "Figure":
    """Draw how often each change is noticed, false alarms, damage, and the pictures.

    Args:
        result: What `run` returned.

    Returns:
        A figure of six panels.
    """
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(2, 3, figsize=(9.5, 6.2))
        _draw_power(axes[0, 0], result.shifts, result.shift_p_values, "pixels to the right")
        _draw_power(axes[0, 1], result.gains, result.gain_p_values, "factor of the brightness")
        _draw_null(axes[0, 2], result)
        _draw_damage(axes[1, 0], result)
        _draw_pictures(axes[1, 1], result)
        _draw_importance(axes[1, 2], result, figure)
        figure.suptitle("Do the test pictures come from where the training pictures came from?")
    return figure


def _draw_power(axes, sizes, p_values: np.ndarray, name: str) -> None:
    noticed = np.mean(p_values <= LEVEL, axis=1)
    places = np.arange(len(sizes))
    for i, (test, (color, dash)) in enumerate(zip(TESTS, _LOOKS, strict=True)):
        axes.plot(places, 100 * noticed[:, i], dash, color=color, ms=4, label=test)
    axes.axhline(100 * LEVEL, color=figures.GREY, linestyle=":", label="level")
    axes.set(xlabel=name, ylabel="noticed (%)", title="How often a change is noticed")
    axes.set_xticks(places, [f"{size:g}" for size in sizes])
    axes.legend(fontsize=7)


def _draw_null(axes, result: Result) -> None:
    null = np.sort(result.shift_p_values[0], axis=0)
    share = np.arange(1, len(null) + 1) / len(null)
    for i, (test, (color, dash)) in enumerate(zip(TESTS, _LOOKS, strict=True)):
        axes.step(null[:, i], share, dash[1:], color=color, where="post", label=test)
    axes.plot([0, 1], [0, 1], color=figures.GREY, linestyle=":", label="promised at most")
    axes.set(xlabel="p-value", ylabel="share of trials below", title="No change at all")
    axes.legend(fontsize=7)


def _draw_damage(axes, result: Result) -> None:
    axes.plot(
        result.shifts, 100 * np.array(result.shift_accuracy), "o-", color=figures.BLUE, ms=4,
        label="moved, by pixels",
    )  # fmt: skip
    axes.plot(
        1 - np.array(result.gains), 100 * np.array(result.gain_accuracy), "s--", ms=4,
        color=figures.VERMILLION, label="darkened, by this share",
    )  # fmt: skip
    axes.set(
        xlabel="size of the change", ylabel="digits right (%)", title="Does it hurt?", ylim=(0, 103)
    )
    axes.legend(fontsize=7)


def _draw_pictures(axes, result: Result) -> None:
    rows = [np.concatenate(list(row), axis=1) for row in (result.foreign, result.homely)]
    gap = np.full((2, rows[0].shape[1]), np.nan)
    axes.imshow(np.concatenate([rows[0], gap, rows[1]]), cmap="cividis", vmin=0, vmax=1)
    axes.set(
        xticks=[], yticks=[3.5, 13.5], yticklabels=["most\nforeign", "least"],
        xlabel="test pictures", title="Moved by a pixel",
    )  # fmt: skip
    axes.grid(visible=False)


def _draw_importance(axes, result: Result, figure: "Figure") -> None:
    top = np.abs(result.importance).max()
    drawn = axes.imshow(result.importance, cmap="cividis", vmin=-top, vmax=top)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="added to the separation")
    axes.set(xticks=[], yticks=[], xlabel="column", ylabel="row", title="What gave them away")
    axes.grid(visible=False)
