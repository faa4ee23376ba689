"""Random forests against scikit-learn's: speed, and accuracy over ten seeds.

Work: 100 trees grown until the leaves are pure, binning included: 63 bins (`num_bins=64`, the
default up to 20 000 rows: one code is for missing values) and 255, on `make_classification` with
10 000 rows of 20 features, half as many again held out, and 20 trees with 100 000; the digits,
which have 17 grey values and so 17 bins; and six real sets, each split ten times, with one forest a
split: the error that is shown is the mean over the ten. A mean further from scikit-learn's than its
standard deviation over the ten stops the benchmark. Then a random search: 32 settings of a forest
of 50 trees, judged out of bag, ours in one call. As many threads as the process may use: ours grows
a share of the trees in each, and joins them; scikit-learn gets `n_jobs`.

Predicted: scikit-learn sorts the rows of every node for each drawn feature; ours counts them in
bins. With 10 000 rows 4 and more. The digits have ten classes, and 1800 rows, so that most of the
time goes into the bins of nodes with few rows: 1.2. Sets of some hundred rows: equal.

Came out (`results/trees-forest-cpu.json`, two threads of a Zen 4 that had other work, too): 6.1
with 63 bins and 4.0 with 255 on 10 000 rows, 4.6 on 100 000, 2.1 on the digits, 1.2 to 9.5 on the
real sets, the search 3.4 times as fast as its forests one after the other; at the same errors.
"""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.model_selection import train_test_split

from benchmarks.harness import Case, Job
from mlnotes_jax.data import datasets
from mlnotes_jax.trees import forest

QUALITY = (
    "error on held-out rows: share of wrong answers, or mean squared error (smaller is better); "
    "of the search, the error out of bag of the best"
)
SETS = ("iris", "wine", "breast_cancer", "digits", "diabetes", "fashion_mnist")
SEEDS = 10


def cases(size: Literal["small", "full"]) -> Iterable[Case]:
    """All the work; `small` has 2000 rows, two sets and 4 settings."""
    small = size == "small"
    for num_bins in (64, 256):
        yield _made(2000 if small else 10_000, num_bins, 100)
    if not small:
        yield _made(100_000, 256, 20)
    yield _digits()
    for name in SETS[:2] if small else SETS:
        if (data := _load(name)) is not None:
            yield _seeds(name, *data)
    yield _search(4 if small else 32)


def _threads() -> int:
    """As many as `--threads` left to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _grower(x: Any, y: Any, *, num_trees: int = 100, **options: Any) -> Callable[[int], Any]:
    """A fit of a seed: the trees are shared out among the threads, XLA runs outside of the GIL."""
    threads = min(_threads(), num_trees)
    counts = [len(part) for part in np.array_split(np.arange(num_trees), threads)]

    def grow(seed: int) -> forest.Forest:
        keys = jax.random.split(jax.random.key(seed), threads)

        def part(key: jax.Array, count: int) -> forest.Forest:
            return jax.block_until_ready(forest.fit(key, x, y, num_trees=count, **options))

        if threads == 1:
            return part(keys[0], num_trees)
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            return jax.block_until_ready(forest.join(*pool.map(part, keys, counts)))

    return grow


def _peer(task: str, seed: int = 0, num_trees: int = 100, **options: Any) -> Any:
    kind = RandomForestClassifier if task == "classification" else RandomForestRegressor
    return kind(num_trees, random_state=seed, n_jobs=_threads(), **options)


def _error(task: str, answer: Any, y: np.ndarray) -> float:
    answer = np.asarray(answer)
    wrong = answer != y if task == "classification" else (answer - y) ** 2
    return float(np.mean(wrong))


def _versus(name: str, split: Any, num_trees: int = 100, **options: Any) -> Case:
    """One forest each, on one split of classes."""
    x, x_held_out, y, y_held_out = split

    def ours() -> Any:
        grow = _grower(jnp.asarray(x), jnp.asarray(y), num_trees=num_trees, **options)
        grow(0)
        return lambda: grow(0)

    def quality(model: Any) -> float:
        if isinstance(model, forest.Forest):
            return _error("classification", forest.predict(model, x_held_out), y_held_out)
        return _error("classification", model.predict(x_held_out), y_held_out)

    def theirs() -> Any:
        return _peer("classification", 0, num_trees).fit(x, y)

    return Case(name, Job(ours, quality), {"scikit-learn": Job(lambda: theirs, quality)})


def _made(n: int, num_bins: int, num_trees: int) -> Case:
    made = make_classification(n + n // 2, 20, n_informative=10, random_state=0)
    x, y = np.asarray(made[0], np.float32), np.asarray(made[1], np.int32)
    split = x[:n], x[n:], y[:n], y[n:]
    name = f"{n} rows, d = 20, {num_trees} trees, {num_bins - 1} bins"
    return _versus(name, split, num_trees, num_bins=num_bins)


def _digits() -> Case:
    data = datasets.load("digits")
    split = train_test_split(data.x, data.y, test_size=0.3, random_state=0, stratify=data.y)
    return _versus("digits, one split", split)


def _load(name: str) -> tuple[np.ndarray, np.ndarray, str] | None:
    if name == "fashion_mnist":
        try:
            data = datasets.fashion_mnist(part="train")
        except FileNotFoundError:
            return None
        return data.x[:4000].reshape(4000, -1).astype(np.float32), data.y[:4000], "classification"
    table = datasets.load(name)
    task = "classification" if table.class_names else "regression"
    return np.asarray(table.x), np.asarray(table.y), task


def _seeds(name: str, x: np.ndarray, y: np.ndarray, task: str) -> Case:
    """Ten splits, one forest each; a regressor looks at all features, as scikit-learn's does."""
    splits: list[Any] = [
        train_test_split(
            x,
            y,
            test_size=0.3,
            random_state=seed,
            stratify=y if task == "classification" else None,
        )
        for seed in range(SEEDS)
    ]
    options: dict[str, Any] = {"task": task}
    if task == "classification":
        options["num_classes"] = int(y.max()) + 1
    else:
        options["max_features"] = "all"

    def ours() -> Any:
        growers = [
            _grower(jnp.asarray(split[0]), jnp.asarray(split[2]), **options) for split in splits
        ]

        def run() -> Any:
            return [grow(seed) for seed, grow in enumerate(growers)]

        run()
        return run

    def theirs() -> Any:
        return [_peer(task, seed).fit(s[0], s[2]) for seed, s in enumerate(splits)]

    def errors(models: Any) -> np.ndarray:
        return np.array(
            [
                _error(
                    task,
                    forest.predict(model, s[1])
                    if isinstance(model, forest.Forest)
                    else model.predict(s[1]),
                    s[3],
                )
                for model, s in zip(models, splits, strict=True)
            ]
        )

    spread = functools.cache(lambda: errors(theirs()))

    def quality(models: Any) -> float:
        found, peer = errors(models), spread()
        away = abs(found.mean() - peer.mean())
        assert away <= peer.std(ddof=1), f"{name}: {found.mean()} is not within the peer's spread"
        return float(found.mean())

    return Case(
        f"{name}, {SEEDS} splits and seeds",
        Job(ours, quality),
        {"scikit-learn": Job(lambda: theirs, quality)},
    )


def _search(count: int) -> Case:
    """Settings drawn at random; the sizes of the leaves, the features, the rows, the depth."""
    data = datasets.load("breast_cancer")
    rng = np.random.default_rng(0)
    settings = {
        "max_features": rng.integers(1, 15, count),
        "min_samples_leaf": rng.integers(1, 10, count),
        "max_depth": rng.integers(2, 12, count),
        "max_samples": rng.uniform(0.3, 1.0, count),
    }

    @jax.jit
    def search(keys: jax.Array, x: jax.Array, y: jax.Array, settings: dict) -> jax.Array:
        def one(part: tuple[jax.Array, dict]) -> jax.Array:
            key, setting = part
            model = forest.fit(key, x, y, num_trees=50, num_classes=2, **setting)
            return forest.out_of_bag(model, x, y).error

        return jax.lax.map(one, (keys, settings))

    def ours() -> Any:
        arguments = (
            jax.random.split(jax.random.key(0), count),
            jnp.asarray(data.x),
            jnp.asarray(data.y),
            jax.tree.map(jnp.asarray, settings),
        )
        compiled = search.lower(*arguments).compile()
        return lambda: np.asarray(compiled(*arguments))

    def theirs() -> Any:
        def run() -> Any:
            scores = []
            for i in range(count):
                setting = {name: values[i].item() for name, values in settings.items()}
                model = _peer("classification", i, 50, oob_score=True, **setting)
                scores.append(1 - model.fit(data.x, data.y).oob_score_)
            return np.array(scores)

        return run

    def quality(errors: np.ndarray) -> float:
        return float(errors.min())

    return Case(
        f"random search of {count} forests of 50 trees, breast cancer",
        Job(ours, quality),
        {"one after the other": Job(theirs, quality)},
    )
