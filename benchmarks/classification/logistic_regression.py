"""Logistic regression: Newton, L-BFGS and proximal Newton against scikit-learn's solvers.

Work: two classes, 100 000 rows of 50 features, 20 of which matter, with l2 = 1, and with l1 = 100;
ten classes on the same shape; the digits with an L1 penalty; and 5 folds times 64 penalties on the
digits, as a search would fit them. Ours in float32 and to a gradient of 1e-4 of the first one,
scikit-learn in float64 and to its default tolerance of 1e-4: about the same objective.

Predicted: a pass that gathers the Hessian costs about as much as four passes that compute a
gradient, and 4 or 5 are enough, so 2.5 to 3 against the peer's L-BFGS, more against its Newton. For
L1, saga needs hundreds of passes: 10 and more. In the search the peer starts every fit from zero,
and ours from the penalty before: 5 and more.

Came out (`results/classification-logistic_regression-cpu-1thread.json`, one core of a Zen 4): 2.8
against L-BFGS for two classes, at a lower objective, but not with 4 or 5 Hessians: with one, after
a fit to every sixteenth row, and three gradients. 5.7 against the peer's Newton, 40 against saga,
290 on the digits. With ten classes both run L-BFGS, and are equal. The search 3.2, less than
predicted: with weak penalties a fit takes thirty steps from any start.
"""

import functools
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits, make_classification
from sklearn.linear_model import LogisticRegression

from benchmarks.harness import Case, Job
from mlnotes_jax.classification import logistic_regression

QUALITY = "objective in float64 (smaller is better); of the search, the sum over all its fits"


def cases(size: Literal["small", "full"]) -> Iterable[Case]:
    """All the work; `small` has 2000 rows."""
    n = 2000 if size == "small" else 100_000
    yield _ridge(n, 2)
    yield _ridge(n, 10)
    yield _lasso(n)
    yield _digits()
    yield _search(4 if size == "small" else 64)


@functools.cache
def _data(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = make_classification(n, 50, n_informative=20, n_classes=k, flip_y=0.05, random_state=0)
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32), y.astype(np.int32)


@functools.cache
def _pixels() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    x = x[:, x.std(axis=0) > 0]
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32), y.astype(np.int32)


def _objective(
    x: np.ndarray, y: np.ndarray, coef: Any, intercept: Any, l1: float = 0.0, l2: float = 0.0
) -> float:
    coef, intercept = np.asarray(coef, float), np.asarray(intercept, float)
    scores = x.astype(float) @ coef.T + intercept
    if scores.shape[1] == 1:
        scores = np.concatenate([0 * scores, scores], axis=1)
    loss = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(y)), y]
    return float(loss.sum() + l1 * np.abs(coef).sum() + l2 / 2 * np.square(coef).sum())


def _jobs(
    x: np.ndarray, y: np.ndarray, l1: float, l2: float, peers: dict[str, dict], tol: float
) -> tuple[Job, dict[str, Job]]:
    def ours() -> Any:
        rows, labels = jnp.asarray(x), jnp.asarray(y)
        run = functools.partial(logistic_regression.fit, rows, labels, l1=l1, l2=l2, tol=tol)
        jax.block_until_ready(run())
        return lambda: jax.block_until_ready(run())

    def ours_quality(model: logistic_regression.LogisticRegression) -> float:
        assert model.converged, "ours did not converge"
        return _objective(x, y, model.coef, model.intercept, l1, l2)

    def peer(options: dict) -> Job:
        penalty = {"C": 1 / (l1 + l2), "l1_ratio": l1 / (l1 + l2), "max_iter": 10_000}
        machine = LogisticRegression(**(penalty | options))
        return Job(
            lambda: lambda: machine.fit(x.astype(float), y),
            lambda model: _objective(x, y, model.coef_, model.intercept_, l1, l2),
        )

    return Job(ours, ours_quality), {name: peer(options) for name, options in peers.items()}


def _ridge(n: int, k: int) -> Case:
    x, y = _data(n, k)
    peers = {"lbfgs": {"tol": 1e-4}}
    if k == 2:
        peers["newton-cholesky"] = {"solver": "newton-cholesky", "tol": 1e-4}
    ours, theirs = _jobs(x, y, 0.0, 1.0, peers, 1e-4)
    return Case(f"l2 = 1, {k} classes, n = {n} rows, d = 50", ours, theirs)


def _lasso(n: int) -> Case:
    x, y = _data(n, 2)
    peers = {"saga": {"solver": "saga", "tol": 1e-4, "random_state": 0}}
    ours, theirs = _jobs(x, y, 100.0, 0.0, peers, 1e-4)
    return Case(f"l1 = 100, 2 classes, n = {n} rows, d = 50", ours, theirs)


def _digits() -> Case:
    x, y = _pixels()
    peers = {"saga": {"solver": "saga", "tol": 1e-4, "random_state": 0}}
    ours, theirs = _jobs(x, y, 10.0, 0.0, peers, 1e-4)
    return Case("digits, l1 = 10, 10 classes", ours, theirs)


def _search(num_penalties: int) -> Case:
    x, y = _pixels()
    penalties = np.geomspace(1e3, 1e-1, num_penalties).astype(np.float32)
    fold = np.random.default_rng(0).permutation(len(y)) % 5
    train = (fold != np.arange(5)[:, None]).astype(np.float32)

    @jax.jit
    def path(x: jax.Array, y: jax.Array, train: jax.Array, penalties: jax.Array) -> Any:
        def fit(start: Any, weight: jax.Array, l2: jax.Array) -> Any:
            return logistic_regression.fit(
                x, y, l2=l2, sample_weight=weight, num_classes=10, start=start, tol=1e-4
            )

        def step(start: Any, l2: jax.Array) -> Any:
            models = jax.vmap(fit, (0, 0, None))(start, train, l2)
            return models, (models.coef, models.intercept)

        shapes = jax.eval_shape(jax.vmap(lambda w: fit(None, w, penalties[0])), train)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(step, zeros, penalties)[1]

    def ours() -> Any:
        arrays = jax.tree.map(jnp.asarray, (x, y, train, penalties))
        compiled = path.lower(*arrays).compile()
        return lambda: jax.block_until_ready(compiled(*arrays))

    def theirs() -> Any:
        def run() -> Any:
            found = [
                [
                    LogisticRegression(C=1 / float(l2), max_iter=10_000).fit(
                        x[rows > 0].astype(float), y[rows > 0]
                    )
                    for rows in train
                ]
                for l2 in penalties
            ]
            return (
                np.array([[model.coef_ for model in row] for row in found]),
                np.array([[model.intercept_ for model in row] for row in found]),
            )

        return run

    def quality(found: tuple[Any, Any]) -> float:
        coef, intercept = found
        return sum(
            _objective(x[rows > 0], y[rows > 0], coef[i, j], intercept[i, j], l2=float(l2))
            for i, l2 in enumerate(penalties)
            for j, rows in enumerate(train)
        )

    return Case(
        f"digits, 5 folds x {num_penalties} l2 penalties",
        Job(ours, quality),
        {"lbfgs, one by one": Job(theirs, quality)},
    )
