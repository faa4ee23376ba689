"""Decision trees: exact CART, fit and predict, against scikit-learn's.

Work: two classes and a regression on 10 000 and 100 000 rows of 20 numbers, at depth 6 and grown
in full; the digits (1797 rows of 64 grey values, ten classes); forty stumps on one data set with
other weights, as AdaBoost fits them; and predictions of the full tree. Both have the rows as
float32 arrays. Ours sorts every column within the time, except for the stumps, where one sort
serves all.

Predicted: a level costs about 15 ns for each row, column and two sums, all its nodes together, and
the sort 60 to 100 ns for each value, so 30 ms at depth 6 on 10 000 rows, where the peer sorts each
node anew and needs three times as long. In full growth the last levels hold few rows that are still
open, but cost as much as the first: at most 2. The digits have ten classes, so nine sums, and few
different values, which the peer's sort likes: less than 1.

Came out (`results/trees-decision_tree-cpu-1thread.json`, one core of a Zen 4 that had other work,
too): 3 to 4 at depth 6, 1.3 to 2.2 in full, 5 for the stumps, and a quarter on the digits; all at
the same quality to the last digit. Predictions take 1.5 to 4 times as long as the peer's: every
row goes as many steps as the deepest.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits, make_classification, make_regression
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from benchmarks.harness import Case, Job
from mlnotes_jax.trees import decision_tree

QUALITY = "share of right answers, or R squared, on the rows that were fitted (no row is held out)"


def cases(size: Literal["small", "full"]) -> Iterable[Case]:
    """All the work; `small` has 2000 rows."""
    sizes = (2000,) if size == "small" else (10_000, 100_000)
    for n in sizes:
        for depth in (6, None):
            yield _fit(n, 2, depth)
            yield _fit(n, 0, depth)
        yield _predict(n)
    yield _fit(0, 10, None)
    yield _stumps(sizes[0])


@functools.cache
def _data(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and targets; the digits for ten classes, a regression for none."""
    if k == 10:
        x, y = load_digits(return_X_y=True)
    elif k:
        x, y = make_classification(n, 20, n_informative=10, flip_y=0.05, random_state=0)
    else:
        x, y = make_regression(n, 20, n_informative=10, noise=50.0, random_state=0)[:2]
    return np.asarray(x).astype(np.float32), np.asarray(y).astype(np.int32 if k else np.float32)


def _right(y: np.ndarray, found: Any) -> float:
    found = np.asarray(found)
    if y.dtype == np.int32:
        return float(np.mean(found == y))
    return float(1 - np.var(y - found) / np.var(y))


def _both(
    name: str,
    ours: Callable[[], Callable[[], Any]],
    peer: Callable[[], Any],
    our_quality: Callable[[Any], float],
    peer_quality: Callable[[Any], float],
) -> Case:
    def prepare() -> Callable[[], Any]:
        run = ours()
        jax.block_until_ready(run())
        return lambda: jax.block_until_ready(run())

    return Case(name, Job(prepare, our_quality), {"scikit-learn": Job(lambda: peer, peer_quality)})


def _fit(n: int, k: int, depth: int | None) -> Case:
    x, y = _data(n, k)
    task = "classification" if k else "regression"
    tree = DecisionTreeClassifier if k else DecisionTreeRegressor

    def ours() -> Callable[[], Any]:
        rows, target = jnp.asarray(x), jnp.asarray(y)
        return functools.partial(
            decision_tree.fit, rows, target, task=task, max_depth=depth, num_classes=k or None
        )

    what = "digits" if k == 10 else f"n = {n}, d = 20, {f'{k} classes' if k else 'regression'}"
    return _both(
        f"fit, {what}, {'in full' if depth is None else f'depth {depth}'}",
        ours,
        lambda: tree(max_depth=depth, random_state=0).fit(x, y),
        lambda model: _right(y, decision_tree.predict(model, x)),
        lambda model: _right(y, model.predict(x)),
    )


def _predict(n: int) -> Case:
    x, y = _data(n, 2)
    model = decision_tree.fit(x, y)
    peer = DecisionTreeClassifier(random_state=0).fit(x, y)

    def ours() -> Callable[[], Any]:
        rows = jnp.asarray(x)
        return lambda: decision_tree.predict(model, rows)

    quality = functools.partial(_right, y)
    return _both(
        f"predict, n = {n}, d = 20, 2 classes, tree in full",
        ours,
        lambda: peer.predict(x),
        quality,
        quality,
    )


def _stumps(n: int) -> Case:
    x, y = _data(n, 2)
    weights = np.random.default_rng(0).exponential(size=(40, n)).astype(np.float32)

    def ours() -> Callable[[], Any]:
        rows, target = jnp.asarray(x), jnp.asarray(y)

        @jax.jit
        def fit(rows: Any, target: Any, weights: Any) -> Any:
            order = decision_tree.presort(rows)
            return jax.vmap(
                lambda weight: decision_tree.fit(
                    rows, target, sample_weight=weight, num_classes=2, max_depth=1, order=order
                )
            )(weights)

        return functools.partial(fit, rows, target, jnp.asarray(weights))

    def our_quality(models: Any) -> float:
        found = jax.vmap(decision_tree.predict, (0, None))(models, jnp.asarray(x))
        return float(np.mean([_right(y, answers) for answers in np.asarray(found)]))

    return _both(
        f"40 stumps with other weights, n = {n}, d = 20",
        ours,
        lambda: [
            DecisionTreeClassifier(max_depth=1, random_state=0).fit(x, y, sample_weight=weight)
            for weight in weights
        ],
        our_quality,
        lambda models: float(np.mean([_right(y, model.predict(x)) for model in models])),
    )
