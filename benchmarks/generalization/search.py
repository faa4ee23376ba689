"""Cross-validated search: 5 folds x 64 settings against scikit-learn's GridSearchCV on two cores.

Work: logistic regression on the digits and on breast cancer, 64 penalties; ridge regression on
diabetes, 64 penalties; Gaussian support vector machines on breast cancer and on the digits, 8 costs
x 8 kernel widths. Everybody has the same folds and the same rows, scaled beforehand; ours in
float32, scikit-learn in float64 with its default tolerances and `n_jobs=2`.

The quality is the best mean score. Ours must be within 0.2 points of that of a tightly converged
peer, or the run ends with an error; for ridge regression and the machines scikit-learn's own answer
is tight. The summary also gives the time with compilation: what a program pays that searches once.
For ridge regression NumPy with the same algorithm takes part, too; and the search is timed once as
it is called, with all its checks and its result on the host, and once inside a compiled program.

Predicted, from a study of other programs: 5 for the digits, 5 or more for breast cancer, far above
100 for ridge regression and about as fast as NumPy, 2.5 for the machines of breast cancer.

Came out (`results/generalization-search-cpu.json`, two cores of a Zen 4): 7.4 for the digits, 21
for breast cancer (each fit starts from the one before, with the next stronger penalty; Newton then
takes a step or two), 125 for ridge regression as it is called and 255 inside a program. NumPy with
the same algorithm takes a third of our time there: most of ours are checks on the host. The
machines, more than predicted: 5.3 for breast cancer and 2.7 for the digits, though ours are fitted
one after the other on one core, and the peer's on two: machines of one kernel width share their
Gram matrix, whatever the cost and the fold. A first call compiles for seconds, and loses to all but
the slowest of these searches.
"""

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.svm import SVC

from benchmarks.harness import Case, Job, Row
from mlnotes_jax.classification import logistic_regression
from mlnotes_jax.data import datasets
from mlnotes_jax.foundations import linear_regression
from mlnotes_jax.generalization import cross_validation, metrics, search
from mlnotes_jax.svm import classifier

QUALITY = "best mean score over five folds: accuracy, or R squared"

NUM_FOLDS, TIGHT = 5, 0.002
GOALS = {"logistic, breast": 5, "logistic, digits": 3, "ridge": 100, "SVM, breast": 2.5}
PEER = "GridSearchCV, n_jobs=2"


def cases(size: Literal["small", "full"]) -> Iterable[Case]:
    """All the work; `small` tries fewer settings."""
    count, side = (8, 2) if size == "small" else (64, 8)
    yield _logistic("breast_cancer", count, tol=1e-3)
    yield _logistic("digits", count, tol=3e-3)
    yield _ridge(count)
    yield _ridge(count, inside=True)
    yield _machines("breast_cancer", side)
    yield _machines("digits", side)


def summary(rows: list[Row]) -> list[str]:
    """Warm and cold ratios, and the goals."""
    lines = []
    for row in rows:
        goal = next((g for name, g in GOALS.items() if row.case.startswith(name)), None)
        wanted = f" (goal {goal})" if goal and row.peer == PEER else ""
        cold = row.ours_s + row.compile_s
        lines.append(
            f"{row.case}: {row.peer} takes {row.ratio:.1f} times as long{wanted}; "
            f"{row.peer_s / cold:.2f} times if ours compiles first ({cold:.2f} s)"
        )
    return lines


@functools.cache
def _data(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows scaled, targets, folds."""
    data = datasets.load(name)
    x = data.x / 16 if name == "digits" else (data.x - data.x.mean(axis=0)) / data.x.std(axis=0)
    key = jax.random.key(0)
    if name == "diabetes":
        folds = cross_validation.k_fold(key, len(x), num_folds=NUM_FOLDS)
    else:
        folds = cross_validation.stratified_k_fold(key, data.y, num_folds=NUM_FOLDS)
    return x, data.y, np.asarray(folds)


def _peer(estimator: Any, grid: dict[str, Any], name: str, **options: Any) -> Any:
    """A search by scikit-learn, ready to be timed."""
    x, y, folds = _data(name)
    x = x.astype(float)
    machine = GridSearchCV(
        estimator, grid, cv=PredefinedSplit(folds), refit=False, **{"n_jobs": 2, **options}
    )

    def run() -> float:
        with warnings.catch_warnings():
            # Its default of 100 steps is not always enough; it goes on.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return machine.fit(x, y).best_score_

    return run


def _checked(tight: Callable[[], float]) -> Callable[[float], float]:
    """A quality that must be that of a tightly converged peer, or nearly."""

    def quality(score: float) -> float:
        exact = _once(tight)
        assert abs(score - exact) <= TIGHT, f"ours found {score}, a tight fit {exact}"
        return float(score)

    return quality


@functools.cache
def _once(function: Callable[[], float]) -> float:
    return function()


def _logistic(name: str, count: int, *, tol: float) -> Case:
    x, y, folds = _data(name)
    penalties = np.logspace(-3, 3, count)
    space = {"C": search.log_uniform(1e-3, 1e3)}
    num_classes = int(y.max()) + 1

    def fit(x: jax.Array, y: jax.Array, *, C: jax.Array, **options: Any) -> Any:
        return logistic_regression.fit(x, y, l2=1 / C, num_classes=num_classes, tol=tol, **options)

    def ours() -> Any:
        # From the strongest penalty to the weakest, each fit starts from the one before.
        run = functools.partial(
            search.listed, fit, logistic_regression.predict, metrics.accuracy, jnp.asarray(x),
            jnp.asarray(y), space, {"C": penalties}, folds=folds, warm_start=True,
        )  # fmt: skip
        run()
        return lambda: run().best_score

    grid = {"C": penalties}
    tight = {"tol": 1e-8, "max_iter": 100_000}
    if name != "digits":
        tight["solver"] = "newton-cholesky"
    return Case(
        f"logistic, {name}, {count} penalties",
        Job(ours, _checked(_peer(LogisticRegression(**tight), grid, name))),
        {PEER: Job(lambda: _peer(LogisticRegression(), grid, name), float)},
    )


def _ridge(count: int, *, inside: bool = False) -> Case:
    x, y, folds = _data("diabetes")
    ridges = np.logspace(-3, 5, count)
    space = {"ridge": search.log_uniform(1e-3, 1e5)}

    # One eigen-decomposition for each fold serves all penalties.
    def path(x: jax.Array, y: jax.Array, *, sample_weight: jax.Array, ridge: jax.Array) -> Any:
        return linear_regression.ridge_path(x, y, ridge, sample_weight=sample_weight)

    def predict(model: linear_regression.RidgePath, x: jax.Array) -> jax.Array:
        return x @ model.coef + model.intercept

    what = (path, predict, metrics.r2)
    data = (jnp.asarray(x), jnp.asarray(y))

    def called() -> Any:
        run = functools.partial(
            search.listed, *what, *data, space, {"ridge": ridges}, folds=folds, path=True
        )
        run()
        return lambda: run().best_score

    def compiled() -> Any:
        def best(x: jax.Array, y: jax.Array, fold: jax.Array, ridge: jax.Array) -> jax.Array:
            found = cross_validation.evaluate(
                *what, x, y, folds=fold, num_folds=NUM_FOLDS, settings={"ridge": ridge}, path=True
            )
            return cross_validation.mean_score(found).max()

        arrays = (*data, jnp.asarray(folds), jnp.asarray(ridges))
        run = jax.jit(best).lower(*arrays).compile()
        return lambda: float(run(*arrays))

    tight = _peer(Ridge(solver="svd"), {"alpha": ridges}, "diabetes", n_jobs=1)
    return Case(
        f"ridge, diabetes, {count} penalties{', inside a program' if inside else ''}",
        Job(compiled if inside else called, _checked(tight)),
        {
            PEER: Job(lambda: _peer(Ridge(), {"alpha": ridges}, "diabetes"), float),
            "NumPy, one eigen-decomposition per fold": Job(
                lambda: functools.partial(_numpy_ridge, ridges), float
            ),
        },
    )


def _numpy_ridge(ridges: np.ndarray) -> float:
    """The same algorithm in NumPy, in float64."""
    rows, y, folds = _data("diabetes")
    rows = rows.astype(float)
    scores = []
    for k in range(NUM_FOLDS):
        out = folds == k
        mean, level = rows[~out].mean(axis=0), y[~out].mean()
        x = rows[~out] - mean
        values, vectors = np.linalg.eigh(x.T @ x)
        moment = vectors.T @ (x.T @ (y[~out] - level))
        coef = vectors @ (moment[:, None] / (values[:, None] + ridges[None]))
        error = (rows[out] - mean) @ coef + level - y[out][:, None]
        scores.append(1 - np.square(error).sum(axis=0) / np.square(y[out] - y[out].mean()).sum())
    return float(np.mean(scores, axis=0).max())


def _machines(name: str, side: int) -> Case:
    x, y, folds = _data(name)
    costs = np.logspace(-1, 3, side)
    widths = np.logspace(-4, 0, side) if name == "breast_cancer" else np.logspace(-3, 0, side)

    def ours() -> Any:
        run = functools.partial(
            classifier.grid, jnp.asarray(x), jnp.asarray(y), C=costs, gamma=widths, folds=folds
        )
        jax.block_until_ready(run())
        return lambda: np.asarray(run().scores).mean(axis=2).max()

    # libsvm's own tolerance, 1e-3, is that of ours.
    grid = {"C": costs, "gamma": widths}
    tight = _peer(SVC(tol=1e-6, cache_size=1000), grid, name)
    return Case(
        f"SVM, {name}, {side} costs x {side} widths",
        Job(ours, _checked(tight)),
        {PEER: Job(lambda: _peer(SVC(cache_size=1000), grid, name), float)},
    )
