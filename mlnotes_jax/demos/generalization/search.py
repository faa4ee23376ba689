"""Grid, random and coarse-to-fine search for two penalties, one of which hardly matters.

The progression of diabetes is predicted from ten measurements and all products of two of them, 65
features, by ridge regression with one penalty for the measurements and one for the products. The
score of every setting is computed first, so that it is known what there was to find. Then the three
searches try 25 settings each; and again, a thousand times, with few settings and with more.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from mlnotes_jax.data import datasets, scaling
from mlnotes_jax.demos import figures
from mlnotes_jax.generalization import cross_validation, metrics, search

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Problem", "Result", "plot", "problem", "run", "tables"]

SPACE = {"measurements": search.log_uniform(1e-2, 1e2), "products": search.log_uniform(1e-2, 1e5)}
METHODS = ("grid", "random", "coarse to fine")
SIDES = (2, 3, 4, 5, 7)  # of the grids that are repeated
SHRINK = 0.3


class Problem(NamedTuple):
    """Patients, in folds.

    Attributes:
        x: Ten measurements of each, shape `(442, 10)`.
        y: Progression of their disease after a year, shape `(442,)`.
        folds: Five, at random.
        source: Where the patients come from.
    """

    x: np.ndarray
    y: np.ndarray
    folds: Array
    source: datasets.Source


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        surface: Scores of a fine grid, shape `(rows, columns)`.
        axes: The penalties of its rows and columns.
        found: One search of each kind, with 25 settings.
        num_settings: How many settings the repeated searches tried.
        num_repeats: How often each was repeated.
        shortfall: How far the best of a search stays below the best of all, for each of `METHODS`
            and each of `num_settings`, shape `(3, 5, num_repeats)`. These searches read their
            scores off the surface.
        best_score: The best of all.
    """

    source: datasets.Source
    surface: np.ndarray
    axes: tuple[np.ndarray, ...]
    found: dict[str, search.Search | search.CoarseToFine]
    num_settings: tuple[int, ...]
    num_repeats: int
    shortfall: np.ndarray
    best_score: float


def problem(key: Key[Array, ""]) -> Problem:
    """Load the patients and divide them into folds.

    Args:
        key: Draws the folds.

    Returns:
        Rows, targets, folds.
    """
    data = datasets.load("diabetes")
    folds = cross_validation.k_fold(key, len(data.y), num_folds=5)
    return Problem(data.x, data.y, folds, data.source)


def run(key: Key[Array, ""], *, quick: bool = False, num_repeats: int = 1000) -> Result:
    """Search once and look; search often and count.

    Args:
        key: Draws folds and settings.
        quick: A coarser surface, and a fifth of the repeats.
        num_repeats: How often each search is repeated.

    Returns:
        The surface, the searches, and what they missed.

    Raises:
        ValueError: There are less than 5 repeats.
    """
    from scipy.interpolate import RectBivariateSpline

    if num_repeats < 5:
        raise ValueError(f"num_repeats must be at least 5, got {num_repeats}")
    repeats = num_repeats // 5 if quick else num_repeats
    fold_key, random_key, fine_key, repeat_key = jax.random.split(key, 4)
    data = problem(fold_key)
    what = (fit, predict, metrics.r2, data.x, data.y, SPACE)
    options: dict[str, Any] = {"folds": data.folds, "prepare": (fit_features, features)}
    found = {
        "grid": search.grid(*what, num_points=5, **options),
        "random": search.random(random_key, *what, num_settings=25, **options),
        # Three stages of nine; two of the 27 were known from the stage before.
        "coarse to fine": search.coarse_to_fine(
            fine_key, *what, num_settings=9, stages=3, shrink=SHRINK, **options
        ),
    }

    # What there was to find: every score of a fine grid, and between its points a cubic spline.
    sides = (15, 22) if quick else (25, 36)
    every = search.grid(*what, num_points=dict(zip(SPACE, sides, strict=True)), **options)
    surface = every.mean_score.reshape(sides)
    axes = tuple(np.linspace(0, 1, n) for n in sides)
    spline = RectBivariateSpline(axes[0], axes[1], surface)

    def score(places: np.ndarray) -> np.ndarray:
        return spline.ev(places[..., 0], places[..., 1])

    best_score = float(spline(np.linspace(0, 1, 201), np.linspace(0, 1, 351)).max())
    sizes = tuple(side**2 for side in SIDES)
    draws = jax.random.uniform(repeat_key, (3 * repeats * sizes[-1] * 2,))
    draws = np.array(draws, float).reshape(3, repeats, sizes[-1], 2)
    bests = [
        [score(_shifted_grids(draws[0, :, :1], side)).max(axis=1) for side in SIDES],
        [score(draws[1, :, :size]).max(axis=1) for size in sizes],
        [_in_stages(score, draws[1], draws[2], size) for size in sizes],
    ]
    return Result(
        source=data.source,
        surface=surface,
        axes=tuple(SPACE[n].at(axis) for n, axis in zip(SPACE, axes, strict=True)),
        found=found,
        num_settings=sizes,
        num_repeats=repeats,
        # Between the points where the best was looked for, a search may be better by a hair.
        shortfall=np.maximum(best_score - np.array(bests), 1e-6),
        best_score=best_score,
    )


# --- The fit --------------------------------------------------------------------------------------


class Features(NamedTuple):
    """Means and deviations of the measurements, and of their products."""

    measurements: scaling.Scaling
    products: scaling.Scaling


class Ridge(NamedTuple):
    """Coefficients of the features, and an intercept."""

    coef: Array
    intercept: Array


def fit_features(x: Array, *, sample_weight: Array | None = None) -> Features:
    """Learn the scales of the measurements and of their products."""
    first = scaling.fit_standard(x, sample_weight=sample_weight)
    products = _products(scaling.apply(first, x))
    return Features(first, scaling.fit_standard(products, sample_weight=sample_weight))


def features(model: Features, x: Array) -> Array:
    """The measurements and all products of two of them, each with mean 0 and variance 1."""
    z = scaling.apply(model.measurements, x)
    return jnp.concatenate([z, scaling.apply(model.products, _products(z))], axis=1)


def fit(z: Array, y: Array, *, sample_weight: Array, measurements: Array, products: Array) -> Ridge:
    """Ridge regression with a penalty for the measurements and one for the products."""
    mean = sample_weight @ y / sample_weight.sum()
    penalty = jnp.where(jnp.arange(z.shape[1]) < 10, measurements, products)
    gram = z.T @ (sample_weight[:, None] * z) + jnp.diag(penalty)
    moment = z.T @ (sample_weight * (y - mean))
    return Ridge(jax.scipy.linalg.solve(gram, moment, assume_a="pos"), mean)


def predict(model: Ridge, z: Array) -> Array:
    """The predicted progression."""
    return z @ model.coef + model.intercept


def _products(z: Array) -> Array:
    first, second = np.triu_indices(z.shape[1])
    return z[:, first] * z[:, second]


# --- Repeated searches ----------------------------------------------------------------------------


def _shifted_grids(shift: np.ndarray, side: int) -> np.ndarray:
    """Square grids in the unit square, moved at random: a grid has no right place."""
    steps = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1)
    return (steps.reshape(1, -1, 2) + shift) / side


def _in_stages(
    score: Callable[[np.ndarray], np.ndarray], first: np.ndarray, draws: np.ndarray, size: int
) -> np.ndarray:
    """The best of three stages, each a third of the settings, for all repeats side by side."""
    rows, third = np.arange(len(first)), size // 3
    tried, width = first[:, : size - 2 * third], 1.0
    scores = score(tried)
    for s in (1, 2):
        best = tried[rows, scores.argmax(axis=1)][:, None]
        ends = tried.min(axis=1, keepdims=True), tried.max(axis=1, keepdims=True)
        width = width * np.where((ends[0] < best) & (best < ends[1]), SHRINK, 1.0)
        low, high = (np.clip(best + sign * width / 2, 0, 1) for sign in (-1, 1))
        window = low + (high - low) * draws[:, (s - 1) * third : s * third]
        tried = np.concatenate([best, window], axis=1)  # the best takes part again
        scores = score(tried)
    return scores.max(axis=1)


# --- Numbers and pictures -------------------------------------------------------------------------


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """Put the numbers into rows.

    Args:
        result: What `run` returned.

    Returns:
        Title to rows.
    """
    median = 1000 * np.median(result.shortfall, axis=2)
    tenth = 1000 * np.quantile(result.shortfall, 0.9, axis=2)
    return {
        f"One search of 25 settings each; the best of all scores {result.best_score:.4f}": [
            {
                "search": method,
                "R²": round(found.best_score, 4),
                **{name: float(f"{value:.3g}") for name, value in found.best.items()},
                "at an edge": ", ".join(f"{b.name} ({b.side})" for b in found.borders) or "-",
            }
            for method, found in result.found.items()
        ],
        f"Thousandths of R² that are missed, median (nine of ten) of {result.num_repeats}": [
            {
                "settings": size,
                **{
                    method: f"{median[m, i]:.1f} ({tenth[m, i]:.1f})"
                    for m, method in enumerate(METHODS)
                },
            }
            for i, size in enumerate(result.num_settings)
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw what each search tried on the surface, and how much the repeated ones missed.

    Args:
        result: What `run` returned.

    Returns:
        A figure of four panels.
    """
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(2, 2, figsize=(9, 7.4))
        for panel, (method, found) in zip(axes.flat, result.found.items(), strict=False):
            _draw_search(panel, result, method, found)
        _draw_shortfall(axes[1, 1], result)
        figure.suptitle("Two penalties, one of which hardly matters")
    return figure


def _draw_search(axes, result: Result, method: str, found: Any) -> None:
    names, (first, second) = list(SPACE), result.axes
    lines = axes.contour(
        second, first, result.surface, levels=[0.39, 0.42, 0.45, 0.47, 0.49, 0.5],
        colors=figures.GREY, linewidths=0.8, linestyles="-",
    )  # fmt: skip
    axes.clabel(lines, fontsize=6)
    stages = found.stages if isinstance(found, search.CoarseToFine) else (found,)
    looks = ((figures.BLUE, "o"), (figures.GREEN, "s"), (figures.OCHRE, "^"))
    for s, (stage, (color, mark)) in enumerate(zip(stages, looks, strict=False)):
        label = f"stage {s + 1}" if len(stages) > 1 else "tried"
        y, x = (stage.settings[name] for name in names)
        axes.plot(x, y, mark, color=color, ms=4, ls="none", label=label)
        # What each has tried of the penalty that matters: a tick on the axis for each value.
        axes.plot(
            x, np.zeros_like(x), "|", color=color, ms=10, ls="none",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    best = found.best
    axes.plot(
        best[names[1]], best[names[0]], "*", color=figures.VERMILLION, ms=13, ls="none",
        label=f"best: {found.best_score:.4f}",
    )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlabel="penalty of the products",
        ylabel="penalty of the measurements", title=method.capitalize(),
    )  # fmt: skip
    axes.legend(fontsize=7, loc="upper left")


def _draw_shortfall(axes, result: Result) -> None:
    middle = np.median(result.shortfall, axis=2)
    low, high = np.quantile(result.shortfall, [0.25, 0.75], axis=2)
    looks = ((figures.VERMILLION, "--", "s"), (figures.BLUE, "-", "o"), (figures.GREEN, "-.", "^"))
    for m, (method, (color, dash, mark)) in enumerate(zip(METHODS, looks, strict=True)):
        axes.plot(
            result.num_settings, middle[m], color=color, linestyle=dash, marker=mark, ms=5,
            label=method,
        )  # fmt: skip
        axes.fill_between(result.num_settings, low[m], high[m], color=color, alpha=0.12, lw=0)
    axes.set(
        xscale="log", yscale="log", xlabel="settings tried", ylabel="R² below the best of all",
        title=f"{result.num_repeats} searches each (median, quartiles)",
    )  # fmt: skip
    axes.set_xticks(result.num_settings, [str(size) for size in result.num_settings])
    axes.minorticks_off()
    axes.legend(fontsize=8)
