"""What cross-validation is good for, how many folds it wants, and how it is fooled.

Three pictures. *Choosing*: polynomial ridge regression on the diabetes data, scored by five folds
five times over, for forty strengths of the penalty at once. *How many folds*: least squares on many
small subsets of the same data; the estimate of each is compared with its error on the rows that
were not drawn. *Leakage*: features of pure noise and classes drawn by a coin; the features are
chosen by looking at all rows (wrong) or inside each fold (right).
"""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mlnotes_jax.data import datasets, scaling
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.foundations import linear_regression
from mlnotes_jax.generalization import cross_validation as cv
from mlnotes_jax.generalization import metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Problem", "Result", "plot", "problem", "run", "tables"]

PREPARE = (scaling.fit_standard, scaling.apply)
NUM_FOLDS = (2, 5, 10)  # and leave-one-out, by its shortcut
SUBSET = 40
NOISE_ROWS = 50
KEPT = (1, 3, 10, 30, 100, 300)


class Problem(NamedTuple):
    """Rows, targets, and where they come from."""

    x: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, " n"]
    source: datasets.Source


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        num_rows: Rows of it.
        ridges: Strengths of the penalty, from strong to weak, shape `(m,)`.
        choice: Scores ($R^2$) of all strengths in all folds.
        best: Number of the best strength.
        simplest: Number chosen by the one-standard-error rule.
        subset: Rows of a small subset.
        num_subsets: How many were drawn.
        folds: Numbers of folds tried; the last is leave-one-out.
        estimate: Mean squared error as estimated, shape `(len(folds), num_subsets)`.
        true_error: Of the fit to the whole subset, on all rows not drawn, shape `(num_subsets,)`.
        num_noise_rows: Rows of pure noise.
        num_noise_features: Features of pure noise.
        kept: Numbers of features kept.
        accuracy: Of the class, shape `(2, num_datasets, len(kept))`: features chosen outside of the
            folds, and inside.
    """

    source: datasets.Source
    num_rows: int
    ridges: Float[np.ndarray, " m"]
    choice: cv.Evaluation
    best: int
    simplest: int
    subset: int
    num_subsets: int
    folds: tuple[int, ...]
    estimate: Float[np.ndarray, "f r"]
    true_error: Float[np.ndarray, " r"]
    num_noise_rows: int
    num_noise_features: int
    kept: tuple[int, ...]
    accuracy: Float[np.ndarray, "2 r k"]


def problem(key: Key[Array, ""] | None = None) -> Problem:
    """Load the patients: ten measurements each, and how far the disease went in a year.

    Args:
        key: Not used: nothing is drawn.

    Returns:
        Rows in their own units, targets, source.
    """
    del key
    data = datasets.load("diabetes")
    return Problem(data.x, data.y, data.source)


def run(key: Key[Array, ""], *, quick: bool = False, num_subsets: int = 1000) -> Result:
    """Choose a penalty; compare numbers of folds; fool cross-validation.

    Args:
        key: For folds, subsets and noise.
        quick: Fewer subsets, fewer numbers of folds, less noise.
        num_subsets: Small subsets of the data.

    Returns:
        Scores, estimates, accuracies.
    """
    if quick:
        num_subsets = min(num_subsets, 200)
    num_features, num_datasets = (1000, 10) if quick else (3000, 40)
    num_folds = NUM_FOLDS[:2] if quick else NUM_FOLDS
    data = problem()
    fold_key, subset_key, noise_key = jax.random.split(key, 3)
    parts = progress.track(("penalty", "folds", "leakage"), "cross-validation")

    next(parts)
    x = linear_regression.polynomial_features(data.x, degree=2)
    fit, predict = linear_regression.ridge_path, linear_regression.predict
    ridges = np.geomspace(1e4, 1e-2, 40)
    options = {"settings": {"ridges": ridges}, "prepare": PREPARE, "path": True}
    folds = cv.k_fold(fold_key, len(data.y), num_folds=5, num_repeats=5)
    score = metrics.r2
    choice = cv.evaluate(fit, predict, score, x, data.y, folds=folds, train_scores=True, **options)

    next(parts)
    rows = jnp.argsort(jax.random.uniform(subset_key, (num_subsets, len(data.y))), axis=1)
    drawn, rest = rows[:, :SUBSET], rows[:, SUBSET:]
    estimates = [
        _estimate(data.x, data.y, drawn, cv.k_fold(None, SUBSET, num_folds=count), count)
        for count in num_folds
    ]
    alone, true_error = _leave_one_out(data.x, data.y, drawn, rest)

    next(parts)
    keys = jax.random.split(noise_key, num_datasets)
    accuracy = _leak(keys, NOISE_ROWS, num_features)
    next(parts, None)
    return Result(
        source=data.source,
        num_rows=len(data.y),
        ridges=ridges,
        choice=choice,
        best=int(cv.select(choice)),
        simplest=int(cv.select(choice, rule="one_standard_error")),
        subset=SUBSET,
        num_subsets=num_subsets,
        folds=(*num_folds, SUBSET),
        estimate=np.stack([*map(np.asarray, estimates), np.asarray(alone)]),
        true_error=np.asarray(true_error),
        num_noise_rows=NOISE_ROWS,
        num_noise_features=num_features,
        kept=KEPT,
        accuracy=np.asarray(accuracy).swapaxes(0, 1),
    )


def _mse(outputs: Array, y: Array, *, sample_weight: Array) -> Array:
    return sample_weight @ jnp.square(outputs - y) / sample_weight.sum()


@functools.partial(jax.jit, static_argnames="count")
def _estimate(x: Array, y: Array, drawn: Array, folds: Array, count: int) -> Array:
    """The error of least squares that K folds of each subset tell."""

    def one(rows: Array) -> Array:
        found = cv.evaluate(
            linear_regression.fit, linear_regression.predict, _mse, x[rows], y[rows],
            folds=folds, num_folds=count,
        )  # fmt: skip
        return cv.mean_score(found)[0]

    return jax.lax.map(one, drawn)


@jax.jit
def _leave_one_out(x: Array, y: Array, drawn: Array, rest: Array) -> tuple[Array, Array]:
    """The same with as many folds as rows, from one fit; and its error on all other rows."""

    def one(rows: tuple[Array, Array]) -> tuple[Array, Array]:
        (x_in, x_out), (y_in, y_out) = (tuple(a[part] for part in rows) for a in (x, y))
        model = linear_regression.fit(x_in, y_in)
        found = linear_regression.predict_with_error(model, x_in)
        leverage = jnp.square(found.mean_error) / model.noise_variance
        left_out = cv.leave_one_out_predictions(y_in, found.mean, leverage)
        missed = y_out - linear_regression.predict(model, x_out)
        return jnp.square(y_in - left_out).mean(), jnp.square(missed).mean()

    return jax.lax.map(one, (drawn, rest))


class _Means(NamedTuple):
    """The nearest of two class means: which side of the middle a row is on."""

    middle: Array
    direction: Array


def _fit_means(
    x: Array, y: Array, *, num_kept: Array, sample_weight: Array | None = None
) -> _Means:
    """Look at the first columns only."""
    weight = jnp.ones_like(x[:, 0]) if sample_weight is None else sample_weight
    kept = (jnp.arange(x.shape[1], dtype=jnp.int32) < num_kept).astype(x.dtype)
    of_class = [weight * (y == k).astype(x.dtype) for k in (0, 1)]
    first, second = (part @ x / part.sum() for part in of_class)
    return _Means((first + second) / 2, kept * (second - first))


def _nearest(means: _Means, x: Array) -> Array:
    return ((x - means.middle[None]) @ means.direction > 0).astype(jnp.int32)


def _rank(x: Array, y: Array, *, sample_weight: Array) -> Array:
    """The features that go best with the classes, the best first."""
    signs = jnp.where(y == 1, 1, -1).astype(x.dtype)
    away = signs - sample_weight @ signs / sample_weight.sum()
    return jax.lax.top_k(jnp.abs((sample_weight * away) @ x), KEPT[-1])[1]


def _take(order: Array, x: Array) -> Array:
    return x[:, order]


@functools.partial(jax.jit, static_argnames=("n", "d"))
def _leak(keys: Array, n: int, d: int) -> Array:
    """Accuracy on noise, of each data set: features chosen outside of the folds, and inside."""
    y = jnp.arange(n, dtype=jnp.int32) % 2
    options = {
        "folds": cv.k_fold(None, n, num_folds=5),
        "num_folds": 5,
        "settings": {"num_kept": jnp.asarray(KEPT, jnp.int32)},
    }

    def one(key: Array) -> Array:
        x = jax.random.normal(key, (n, d))
        chosen = _take(_rank(x, y, sample_weight=jnp.ones(n)), x)
        outside = cv.evaluate(_fit_means, _nearest, metrics.accuracy, chosen, y, **options)
        inside = cv.evaluate(
            _fit_means, _nearest, metrics.accuracy, x, y, prepare=(_rank, _take), **options
        )
        return jnp.stack([cv.mean_score(outside), cv.mean_score(inside)])

    return jax.lax.map(one, keys)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """Put the numbers into rows.

    Args:
        result: What `run` returned.

    Returns:
        Title to rows.
    """
    means, errors = cv.mean_score(result.choice), cv.standard_error(result.choice)
    seen = np.asarray(result.choice.train_score).mean(axis=1)
    rows = {"least penalty": -1, "best": result.best, "one standard error": result.simplest}
    true = result.true_error.mean()
    return {
        f"Ridge on 65 polynomial features, {result.num_rows} rows, 5 folds, 5 times": [
            {
                "rule": name,
                "penalty": f"{result.ridges[i]:.3g}",
                "R2 fitted": f"{seen[i]:.3f}",
                "R2 held out": f"{means[i]:.3f} ±{errors[i]:.3f}",
            }
            for name, i in rows.items()
        ],
        f"Error of least squares on {result.subset} rows, {result.num_subsets} subsets": [
            {
                "folds": count if count < result.subset else f"{count} (leave one out)",
                "estimate": f"{estimate.mean():.0f}",
                "too high by": f"{100 * (estimate.mean() / true - 1):+.1f} %",
                "spread of it": f"{estimate.std():.0f}",
            }
            for count, estimate in zip(result.folds, result.estimate, strict=True)
        ]
        + [
            {
                "folds": "truth",
                "estimate": f"{true:.0f}",
                "too high by": "",
                "spread of it": f"{result.true_error.std():.0f}",
            }
        ],
        f"Accuracy on noise: {result.num_noise_rows} rows, {result.num_noise_features} features": [
            {
                "features kept": kept,
                "chosen by all rows": f"{result.accuracy[0, :, i].mean():.2f}",
                "chosen in each fold": f"{result.accuracy[1, :, i].mean():.2f}",
            }
            for i, kept in enumerate(result.kept)
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw the choice, the estimates and the leak.

    Args:
        result: What `run` returned.

    Returns:
        A figure of three panels.
    """
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(1, 3, figsize=(11, 3.6))
        _draw_choice(axes[0], result)
        _draw_folds(axes[1], result)
        _draw_leak(axes[2], result)
        figure.suptitle("Cross-validation: choosing, how many folds, and a leak")
    return figure


def _draw_choice(axes: Any, result: Result) -> None:
    means, errors = cv.mean_score(result.choice), cv.standard_error(result.choice)
    seen = np.asarray(result.choice.train_score).mean(axis=1)
    axes.plot(result.ridges, seen, color=figures.OCHRE, linestyle="--", label="rows fitted")
    axes.errorbar(
        result.ridges, means, errors, color=figures.BLUE, marker="o", ms=3, lw=1, capsize=2,
        label="rows held out",
    )  # fmt: skip
    for i, marker, name in ((result.best, "s", "best"), (result.simplest, "D", "one std. error")):
        axes.plot(
            result.ridges[i], means[i], marker, color=figures.VERMILLION, ms=8, mfc="none",
            label=name,
        )  # fmt: skip
    axes.set(
        xscale="log",
        xlabel=r"penalty $\lambda$",
        ylabel="$R^2$",
        title="Ridge, 65 features",
        ylim=(min(float(means.min()), 0) - 0.02, None),
    )
    axes.invert_xaxis()
    axes.legend(fontsize=7, loc="lower right")


def _draw_folds(axes: Any, result: Result) -> None:
    places = np.arange(len(result.folds))
    root = np.sqrt(result.num_subsets)
    axes.errorbar(
        places, result.estimate.mean(axis=1), 2 * result.estimate.std(axis=1) / root,
        color=figures.BLUE, marker="o", linestyle="none", capsize=3, label="estimate",
    )  # fmt: skip
    axes.axhline(
        result.true_error.mean(), color=figures.VERMILLION, linestyle="--", label="true error"
    )
    axes.set_xticks(places, [str(count) for count in result.folds])
    axes.set(
        xlabel="folds K",
        ylabel="mean squared error",
        title=f"Least squares, {result.subset} rows",
    )
    axes.legend(fontsize=7)


def _draw_leak(axes: Any, result: Result) -> None:
    looks = (
        ("chosen by all rows", figures.VERMILLION, "s"),
        ("chosen in each fold", figures.BLUE, "o"),
    )
    for accuracy, (name, color, marker) in zip(result.accuracy, looks, strict=True):
        error = 2 * accuracy.std(axis=0) / np.sqrt(len(accuracy))
        axes.errorbar(
            result.kept, accuracy.mean(axis=0), error, color=color, marker=marker, ms=4, capsize=2,
            label=name,
        )  # fmt: skip
    axes.axhline(0.5, color=figures.GREY, linestyle=":", label="a coin")
    axes.set(
        xscale="log",
        ylim=(0.35, 1.03),
        xlabel="features kept",
        ylabel="accuracy",
        title=f"Pure noise, {result.num_noise_features} features",
    )
    axes.legend(fontsize=7, loc="center right")
