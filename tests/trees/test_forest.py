"""Forests against brute force, against scikit-learn's, and against their own bookkeeping."""

import dataclasses
import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.inspection import permutation_importance as peer_permutation

from mlnotes_jax.data import datasets
from mlnotes_jax.demos.trees import forest as demo
from mlnotes_jax.trees import _bins, _forest_grow, _tree, forest

WINE = datasets.load("wine")
SUGAR = datasets.load("diabetes_raw")
ONES = np.ones(len(WINE.y), np.float32)
TREES = 30
BINS = 64

# Few programs serve all tests: to compile one takes seconds, to run it milliseconds.


def grow(key, x=WINE.x, y=WINE.y, *, weight=ONES, **options):
    """One program outside of a transformation: classes, with weights and missing values."""
    usual = {"num_trees": TREES, "max_features": 3, "num_bins": BINS, "missing": True}
    options = {**usual, "max_nodes": 281, **options}
    return forest.fit(key, x, y, sample_weight=weight, num_classes=3, **options)


@functools.partial(jax.jit, static_argnames="num_trees")
@functools.partial(jax.vmap, in_axes=(0, None, None, 0, 0, None))
def _three(key, x, y, weight, limits, num_trees):
    return grow(key, x, y, weight=weight, num_trees=num_trees, **limits)


def three(seed, x=WINE.x, y=WINE.y, *, weight=ONES, **limits):
    """And one under `jit` and `vmap`: three forests, of keys, weights and limits."""
    counts = {"max_features": 3, "max_depth": 1000, "min_samples_leaf": 1}
    shares = {"min_gain": 0.0, "max_samples": 1.0}
    limits = {
        name: jnp.broadcast_to(jnp.asarray(limits.get(name, usual), dtype), (3,))
        for group, dtype in ((counts, "int32"), (shares, "float32"))
        for name, usual in group.items()
    }
    keys = jax.random.split(jax.random.key(seed), 3)
    weight = jnp.broadcast_to(jnp.asarray(weight), (3, len(y)))
    return keys, _three(keys, x, y, weight, limits, TREES)


def lane(model, i):
    return jax.tree.map(lambda leaf: leaf[i], model)


@functools.cache
def numbers(seed=0, constant=None):
    """A forest of numbers in float64 that looks at all features, as the peer does; no weights."""
    with jax.enable_x64(True):
        x, y = SUGAR.x.astype(np.float64), SUGAR.y.astype(np.float64)
        y = y if constant is None else np.full_like(y, constant)
        key, options = jax.random.key(seed), {"num_trees": TREES, "max_features": "all"}
        return forest.fit(key, x, y, task="regression", **options)


def holes():
    """Wine with values missing in two columns, more often in class 0."""
    rng = np.random.default_rng(0)
    x = WINE.x.copy()
    for column in (6, 12):
        x[rng.random(len(x)) < np.where(WINE.y == 0, 0.5, 0.15), column] = np.nan
    return x


def one(model, b):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[b], model.trees)


def drawn(model, b, weight=None):
    n = model.num_rows
    return np.asarray(_forest_grow.draw(model.keys[b], n, weight, model.max_samples, True))


def reach(tree, x):
    """Which rows reach each node, by a walk in NumPy: shape (nodes, n)."""
    there = np.zeros((tree.num_nodes, len(x)), bool)
    there[0] = True
    for t in range(tree.num_nodes):
        if tree.feature[t] < 0:
            continue
        value = x[:, tree.feature[t]]
        right = np.where(np.isnan(value), tree.missing[t] == 1, value > tree.threshold[t])
        for branch, goes in enumerate((~right, right)):
            there[tree.children[t, branch]] = there[t] & goes
    return there


def gini(w, y):
    total = np.bincount(y, w, minlength=3)
    return 1 - np.sum(total**2) / total.sum() ** 2


def variance(w, y):
    mean = w @ y / w.sum()
    return w @ (y - mean) ** 2 / w.sum()


def best_gain(codes, y, w, impurity, missing=None):
    """The best question of all, by trying each: codes of the rows at a node, shape (d, rows)."""
    best, before = -1.0, impurity(w, y)
    for code in codes:
        lost = np.zeros(len(y), bool) if missing is None else code == missing
        for b in np.unique(code[~lost]):
            for side in {bool(lost.any()), False}:
                right = np.where(lost, side, code > b)
                if right.all() or not right.any():
                    continue
                a = w[~right].sum() / w.sum()
                after = a * impurity(w[~right], y[~right])
                after += (1 - a) * impurity(w[right], y[right])
                best = max(best, before - after)
    return best


def check_tree(tree, x, y, weight, impurity, codes, missing=None, tol=1e-5):
    """Every number of a tree, and that no question is better than the one asked.

    Sums of a few hundred numbers, each rounded to 6e-8 or 1e-16, and differences of such sums
    """
    y = y.astype(int) if impurity is gini else y.astype(float)
    there = reach(tree, x) & (weight > 0)
    scale = impurity(weight.astype(float), y)
    for t, rows in enumerate(there):
        w, mine = weight[rows].astype(float), y[rows]
        np.testing.assert_allclose(tree.weight[t], w.sum(), rtol=tol)
        np.testing.assert_allclose(tree.impurity[t], impurity(w, mine), atol=tol * scale)
        if impurity is gini:
            counts = np.bincount(mine, w, minlength=3)
            np.testing.assert_allclose(tree.value[t], counts, rtol=tol, atol=tol)
        else:
            np.testing.assert_allclose(tree.value[t, 0], w @ mine / w.sum(), rtol=tol)
        if t > 60:
            continue  # the rest are small
        best = best_gain(codes[:, rows], mine, w, impurity, missing)
        if tree.feature[t] < 0:
            assert best <= 0 or len(np.unique(mine)) == 1
        else:
            np.testing.assert_allclose(tree.gain[t], best, atol=2 * tol * scale)


def codes_of(x, num_bins):
    return np.asarray(_bins.apply_by_feature(_bins.fit(x, num_bins=num_bins), x))


# By hand and by brute force


def test_no_question_is_better_than_the_one_asked():
    x = holes()
    weight = np.random.default_rng(0).uniform(0.5, 2, len(WINE.y)).astype(np.float32)
    model = lane(three(0, x, weight=weight, max_features=13)[1], 0)
    count = drawn(model, 0, weight)
    tree, codes = one(model, 0), codes_of(x, BINS)
    check_tree(tree, x, WINE.y, count * weight, gini, codes, missing=BINS - 1)
    # Where no missing value was seen, later ones go where most weight went.
    there = reach(tree, x) & (count > 0)
    for t in np.flatnonzero(tree.feature >= 0):
        if not np.isnan(x[there[t], tree.feature[t]]).any():
            sides = [(there[child] * weight * count).sum() for child in tree.children[t]]
            assert sides[tree.missing[t]] > 0.999 * max(sides)
    assert np.mean(forest.predict(model, x) == WINE.y) > 0.97
    assert (np.asarray(forest.predict(model, np.full_like(x, np.nan))) >= 0).all()


def test_no_question_about_numbers_is_better(x64):
    x, y = SUGAR.x.astype(np.float64), SUGAR.y.astype(np.float64)
    model = numbers()
    assert model.trees.value.dtype == jnp.float64
    tree = one(model, 0)
    check_tree(tree, x, y, drawn(model, 0), variance, codes_of(x, BINS), tol=1e-11)
    leaves = tree.feature[: tree.num_nodes] < 0
    # Fully grown: the rows of a leaf agree, but for rounding.
    assert tree.impurity[: tree.num_nodes][leaves].max() < 1e-14 * np.var(y)
    # Outside of a transformation the slots that no tree needed are cut off.
    assert max(model.trees.num_nodes) <= model.trees.feature.shape[1] < 2 * len(y) - 1


def test_nodes_are_numbered_breadth_first():
    model = grow(jax.random.key(1))
    for b in range(3):
        tree = one(model, b)
        used = int(tree.num_nodes)
        assert (np.diff(tree.depth[:used]) >= 0).all()
        inner = np.flatnonzero(tree.feature >= 0)
        np.testing.assert_array_equal(tree.children[inner].ravel(), np.arange(1, used))
        np.testing.assert_array_equal(tree.parent[1:used], np.repeat(inner, 2))
        np.testing.assert_array_equal(tree.depth[1:used], tree.depth[tree.parent[1:used]] + 1)
        assert (tree.feature[used:] == -1).all()
        assert (tree.depth[used:] == -1).all()
        assert (tree.weight[used:] == 0).all()
        leaf = tree.feature[:used] < 0
        assert tree.weight[:used][leaf].sum() == drawn(model, b).sum() == len(WINE.y)
        assert np.isnan(tree.threshold[:used][leaf]).all()
        stop = _tree.route(jax.tree.map(jnp.asarray, tree), jnp.asarray(WINE.x))
        np.testing.assert_array_equal(stop, reach(tree, WINE.x).T @ (leaf * np.arange(used)))


# Draws


def test_what_is_drawn():
    model = grow(jax.random.key(0))
    counts = np.stack([drawn(model, b, jnp.asarray(ONES)) for b in range(TREES)])
    np.testing.assert_array_equal(counts, np.stack([drawn(model, b) for b in range(TREES)]))
    assert (counts.sum(axis=1) == len(ONES)).all()
    # (1 - 1/n)^n = 0.3669; the mean of 30 x 178 rows has a standard error of 0.004
    assert abs((counts == 0).mean() - 0.3669) < 0.02
    # A row's counts are Poisson of mean 1, nearly: its variance is 1 - 1/n
    assert abs(counts.var() - 1) < 0.1
    weight = ONES * (np.arange(178) % 3 > 0)
    share = jnp.float32(0.5)
    for b in range(3):
        count = np.asarray(_forest_grow.draw(model.keys[b], 178, weight, share, True))
        assert count.sum() == round(0.5 * weight.sum())
        assert (count[weight == 0] == 0).all()
    word = np.random.default_rng(0).integers(0, 2**32, 500, np.uint32)
    for count in (1, 7, 1000, 70_000, 2**31 - 1):  # 64-bit products as the peer
        expected = (word.astype(np.uint64) * np.uint64(count)) >> np.uint64(32)
        np.testing.assert_array_equal(_forest_grow._scaled(word, jnp.int32(count)), expected)


def test_nodes_draw_features_uniformly():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=WINE.x.shape).astype(np.float32)  # no feature is better than another
    trees = three(0, noise, max_features=1)[1].trees
    feature = np.asarray(trees.feature).ravel()
    count = np.bincount(feature[feature >= 0], minlength=13)
    # Some 4000 nodes: five standard deviations of a binomial with p = 1/13
    assert np.abs(count / count.sum() - 1 / 13).max() < 5 * np.sqrt(1 / 13 / count.sum())
    assert (np.bincount(np.asarray(trees.feature[..., 0]).ravel(), minlength=13) > 0).all()
    # With constant columns a node looks on until a feature varies: trees still grow fully.
    flat = np.where(np.arange(13) == 5, WINE.y[:, None], np.float32(7))
    trees = three(0, flat, max_features=1)[1].trees
    assert set(np.unique(trees.feature)) == {-1, 5}
    leaf = (np.asarray(trees.feature) < 0) & (np.asarray(trees.depth) >= 0)
    assert np.asarray(trees.impurity)[leaf].max() == 0


def test_out_of_bag_by_hand():
    weight = np.where(np.arange(178) % 5 > 0, ONES, 0).astype(np.float32)
    model = grow(jax.random.key(2), weight=weight)
    found = forest.out_of_bag(model, WINE.x, WINE.y, sample_weight=weight)
    each = np.asarray(forest.tree_predictions(model, WINE.x))
    unseen = np.stack([drawn(model, b, weight) == 0 for b in range(TREES)]) & (weight > 0)
    np.testing.assert_array_equal(found.num_trees, unseen.sum(axis=0))
    total, curve = np.zeros((178, 3), np.float32), []  # as the forest adds: ties fall alike
    for b in range(TREES):
        total += unseen[b][:, None] * each[b]
        judged = unseen[: b + 1].any(axis=0)
        mean = total[judged] / unseen[: b + 1].sum(axis=0)[judged][:, None].astype(np.float32)
        curve.append(np.mean(mean.argmax(axis=1) != WINE.y[judged]))
    np.testing.assert_allclose(found.curve, curve, atol=1e-6)
    np.testing.assert_allclose(found.error, curve[-1], atol=1e-6)
    np.testing.assert_allclose(np.asarray(found.prediction)[judged], mean, atol=1e-6)
    assert np.isnan(np.asarray(found.prediction)[~judged]).all()
    # The mean of the trees, step by step
    staged = forest.staged_error(model, WINE.x, WINE.y)
    means = np.cumsum(each, axis=0) / np.arange(1, TREES + 1, dtype=np.float32)[:, None, None]
    np.testing.assert_allclose(staged, np.mean(means.argmax(axis=2) != WINE.y, axis=1), atol=1e-6)
    np.testing.assert_allclose(forest.predict_proba(model, WINE.x), means[-1], atol=1e-6)


# Peers


def test_as_good_as_the_peer_on_classes():
    ours, theirs = [], []
    for seed in range(6):
        model = grow(jax.random.key(seed))
        ours.append(float(forest.out_of_bag(model, WINE.x, WINE.y).error))
        peer = RandomForestClassifier(TREES, oob_score=True, random_state=seed)
        theirs.append(1 - peer.fit(WINE.x, WINE.y).oob_score_)
    # Within the spread of the peer over seeds, about 0.008
    assert abs(np.mean(ours) - np.mean(theirs)) < 2 * np.std(theirs) + 1e-3


def test_as_good_as_the_peer_on_numbers(x64):
    ours, theirs, shares, peers = [], [], [], []
    for seed in range(3):
        model = numbers(seed)
        ours.append(float(forest.out_of_bag(model, SUGAR.x, SUGAR.y).error))
        peer = RandomForestRegressor(TREES, oob_score=True, random_state=seed)
        peer.fit(SUGAR.x, SUGAR.y)
        theirs.append((1 - peer.oob_score_) * np.var(SUGAR.y))
        shares.append(forest.importance(model))
        peers.append(peer.feature_importances_)
    assert abs(np.mean(ours) - np.mean(theirs)) < 2 * np.std(theirs) + 0.01 * np.mean(theirs)
    # Two features compete for the root, and the winner gets 0.3 more: over 90 trees that has a
    # standard deviation of 0.3 / sqrt(4 * 90) = 0.016, and the difference of two means 0.022.
    np.testing.assert_allclose(np.mean(shares, axis=0), np.mean(peers, axis=0), atol=0.07)
    np.testing.assert_allclose(np.sum(shares, axis=1), 1, rtol=1e-5)


def test_importance_by_the_definition():
    model = grow(jax.random.key(0))
    shares = []
    for b in range(TREES):
        tree = one(model, b)
        taken = np.zeros(13)
        inner = tree.feature >= 0
        np.add.at(taken, tree.feature[inner], tree.weight[inner] * tree.gain[inner])
        shares.append(taken / taken.sum())
    np.testing.assert_allclose(forest.importance(model), np.mean(shares, axis=0), atol=1e-5)


def test_shuffling_against_the_peer():
    model = grow(jax.random.key(0))

    class Estimator:
        def fit(self, x, y):
            return self

        def score(self, x, y):
            return np.mean(np.asarray(forest.predict(model, x.astype(np.float32))) == y)

    rng = np.random.default_rng(0)
    wrong = np.where(rng.random(178) < 0.2, (WINE.y + 1) % 3, WINE.y).astype(np.int32)
    found = forest.permutation_importance(jax.random.key(0), model, WINE.x, wrong, num_repeats=10)
    peer = peer_permutation(Estimator(), WINE.x, wrong, n_repeats=5, random_state=0)
    assert found.rise.shape == (13, 10)
    # Means of ten and of five shuffles, each of standard deviation 0.02 at most
    np.testing.assert_allclose(found.mean, peer.importances_mean, atol=0.03)
    np.testing.assert_allclose(found.error, np.mean(forest.predict(model, WINE.x) != wrong))
    # A row of weight zero may hold anything.
    weight = np.where(np.arange(178) % 2, 1, 0).astype(np.float32)
    junk = np.where(weight[:, None] > 0, WINE.x, 1e9).astype(np.float32)
    apart = forest.permutation_importance(
        jax.random.key(0), model, junk, wrong, num_repeats=10, sample_weight=weight
    )
    kept = forest.permutation_importance(
        jax.random.key(0), model, WINE.x, wrong, num_repeats=10, sample_weight=weight
    )
    np.testing.assert_array_equal(apart.rise, kept.rise)


# Programs


def test_all_rows_at_once_find_the_same_trees():
    x = holes()
    weight = np.random.default_rng(1).choice([1, 2, 4], 178).astype(np.float32)
    key = jax.random.key(0)
    model = grow(key, x, weight=weight)
    plan = _forest_grow.Plan(3, BINS, 281, 3, True, True, True)
    limits = _forest_grow.Limits(
        jnp.int32(3), jnp.int32(99), *(jnp.float32(value) for value in (1, 0, 1))
    )
    table = _forest_grow.permutations(jax.random.split(key)[0], 13)
    rows = _forest_grow.Rows(jnp.asarray(codes_of(x, BINS)), jnp.asarray(WINE.y), weight / 4)

    @jax.jit
    def whole(keys, rows):
        tree = functools.partial(
            _forest_grow._tree, table=table, rows=rows, limits=limits, plan=plan, scalar=False
        )
        return jax.lax.map(tree, keys, batch_size=2)

    grown = whole(model.keys[:4], rows)
    np.testing.assert_array_equal(grown.num_nodes, model.trees.num_nodes[:4])
    np.testing.assert_array_equal(grown.node[..., 0], model.trees.feature[:4])
    left = model.trees.children[:4, :, 0]
    np.testing.assert_array_equal(grown.node[..., 3], left)
    np.testing.assert_array_equal(
        np.where(left >= 0, grown.node[..., 2], -1), model.trees.missing[:4]
    )
    # Whole weights: their sums are exact, in any order.
    np.testing.assert_allclose(4 * grown.sums, model.trees.value[:4], rtol=1e-6)


@pytest.mark.parametrize("kinds", [3, 0])
def test_both_loops_over_rows_agree(kinds):
    rng = np.random.default_rng(0)
    n, d, lanes, group = 90, 4, 4, 2
    plan = _forest_grow.Plan(kinds, 8, 99, group, True, True, True)
    target = rng.integers(0, 3, n).astype(np.int32) if kinds else rng.normal(size=n)
    data = _forest_grow._Data(
        rng.integers(0, 8, n * d).astype(np.uint8),
        target.astype(np.int32 if kinds else np.float32),
        rng.uniform(0.5, 2, n).astype(np.float32),
    )
    data = jax.tree.map(jnp.asarray, data)
    order = jnp.asarray(rng.permutation(n).astype(np.int32))
    begin, end = jnp.array([0, 10, 40, 90]), jnp.array([10, 10, 70, 90])  # gaps, and none
    begin, end = begin.astype(jnp.int32), end.astype(jnp.int32)
    feature = jnp.asarray(rng.integers(0, d, lanes * group).astype(np.int32))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)  # other order
    close(
        *(
            jax.jit(step, static_argnames="plan")(
                order, begin, end, feature, jnp.int32(1), data, plan=plan
            )
            for step in (_forest_grow._histogram, _forest_grow._histogram_at_once)
        )
    )
    split = _forest_grow._Split(
        jnp.array([0, 1, 3, -1]),
        jnp.array([3, 3, 5, -1]),
        jnp.array([0, 1, 1, -1]),
        jnp.zeros(4, jnp.int32),
    )
    split = jax.tree.map(lambda leaf: leaf.astype(jnp.int32), split)
    first = jnp.array([0, 10, 10, 40], jnp.int32)
    halves = [
        jax.jit(step, static_argnames="plan")(
            order, order, begin, end, first, split, data, plan=plan
        )
        for step in (_forest_grow._divide, _forest_grow._divide_at_once)
    ]
    jax.tree.map(np.testing.assert_array_equal, *halves)
    slot = jnp.array([2, 4, 0, 4], jnp.int32)
    sums = [
        jax.jit(step, static_argnames="plan")(order, begin, end, slot, data, plan=plan)
        for step in (_forest_grow._add_up, _forest_grow._add_up_at_once)
    ]
    jax.tree.map(lambda a, b: close(a[jnp.array([0, 2])], b[jnp.array([0, 2])]), *sums)


def test_jit_equals_eager_and_vmap_equals_a_loop():
    weights = (np.arange(178)[None] % 3 != np.arange(3)[:, None]).astype(np.float32)
    limits = {
        "max_depth": [1000, 3, 1000],
        "min_samples_leaf": [1, 2, 4],
        "min_gain": [0.0, 0.01, 0.0],
        "max_samples": [1.0, 0.5, 0.8],
    }
    keys, together = three(5, weight=weights, **limits)
    three(6, weight=weights, max_features=[1, 5, 13])
    assert _three._cache_size() == 1  # other settings, weights and keys: one program
    for i, key in enumerate(keys):
        one_by_one = {name: values[i] for name, values in limits.items()}
        alone = grow(key, weight=weights[i], **one_by_one)
        for name in ("feature", "children", "value", "gain"):
            a, b = (np.asarray(getattr(model.trees, name)) for model in (alone, together))
            # Another program may round otherwise.
            np.testing.assert_allclose(a, b[i], rtol=1e-5, atol=1e-6)


def test_limits_hold():
    shallow = three(0, max_depth=[0, 2, 3], max_features=13)[1]
    np.testing.assert_array_equal(shallow.trees.depth.max(axis=(1, 2)), [0, 2, 3])
    root = lane(shallow, 0)
    assert np.isfinite(np.asarray(forest.predict_proba(root, WINE.x))).all()
    assert (np.asarray(forest.importance(root)) == 0).all()
    limited = three(0, min_gain=[0.05, 0.0, 0.0], min_samples_leaf=[1, 7, 20])[1]
    gains = lane(limited, 0).trees
    assert np.asarray(gains.gain)[np.asarray(gains.feature) >= 0].min() >= 0.05 - 1e-6
    for i, least in ((1, 7), (2, 20)):
        model = lane(limited, i)
        for b in range(3):
            tree = one(model, b)
            rows = (reach(tree, WINE.x) & (drawn(model, b) > 0)).sum(axis=1)  # different ones
            assert rows.min() >= least
            assert tree.num_nodes > 1


def test_rows_of_weight_zero_may_hold_anything():
    weight = (np.arange(178) % 4 > 0).astype(np.float32)
    junk = np.where(weight[:, None] > 0, WINE.x, np.float32(np.nan))
    labels = np.where(weight > 0, WINE.y, 99)
    a = grow(jax.random.key(0), weight=weight)
    b = grow(jax.random.key(0), junk, labels, weight=3 * weight)
    np.testing.assert_array_equal(a.trees.children, b.trees.children)
    np.testing.assert_allclose(3 * a.trees.value, b.trees.value, rtol=1e-6)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10_000))
def test_only_the_order_of_the_values_matters(seed):
    rng = np.random.default_rng(seed)
    moved = np.empty_like(WINE.x)
    for j, column in enumerate(WINE.x.T):
        values, place = np.unique(column, return_inverse=True)
        moved[:, j] = np.cumsum(rng.uniform(0.1, 10, len(values)))[place]
    a, b = (grow(jax.random.key(seed), x) for x in (WINE.x, moved))
    for name in ("feature", "children", "value"):
        np.testing.assert_array_equal(getattr(a.trees, name), getattr(b.trees, name))


def test_join():
    a, b = grow(jax.random.key(0)), grow(jax.random.key(1))
    both = forest.join(a, b)
    assert both.num_trees == 2 * TREES
    mean = (forest.predict_proba(a, WINE.x) + forest.predict_proba(b, WINE.x)) / 2
    np.testing.assert_allclose(forest.predict_proba(both, WINE.x), mean, atol=1e-6)
    with pytest.raises(ValueError, match="models must have one task"):
        forest.join(a, numbers())
    with pytest.raises(ValueError, match="models must not be empty"):
        forest.join()


def test_trees_in_blocks(monkeypatch):
    monkeypatch.setattr(forest, "_BLOCK_BYTES", 4 * 8 * 281 * TREES)
    blocks = forest._blocks(3 * TREES - 2, 178, 13, 281, 3, True)
    assert blocks == [slice(0, 30), slice(30, 60), slice(58, 88)]
    model = grow(jax.random.key(3), num_trees=3 * TREES - 2)
    assert model.trees.feature.shape[0] == model.num_trees == 3 * TREES - 2
    for b in range(model.num_trees):  # each tree has the rows of its key
        count = np.bincount(WINE.y, drawn(model, b))
        np.testing.assert_array_equal(model.trees.value[b, 0], count)


# Bad input


def test_what_can_not_be_split():
    same = np.zeros((178, 13), np.float32)  # rows that no question tells apart
    model = lane(three(0, same)[1], 0)
    assert (np.asarray(model.trees.num_nodes) == 1).all()
    share = np.bincount(WINE.y) / 178
    np.testing.assert_allclose(forest.predict_proba(model, same)[0], share, atol=0.05)
    sole = grow(jax.random.key(0), y=np.ones(178, np.int32))  # one class
    assert (np.asarray(forest.predict(sole, WINE.x)) == 1).all()
    with jax.enable_x64(True):
        flat = numbers(0, 0.1)  # a constant target
        answer = forest.predict(flat, SUGAR.x.astype(np.float64))
        np.testing.assert_allclose(answer, 0.1, rtol=1e-12)
        assert (np.asarray(forest.importance(flat)) == 0).all()
    # A category that no training row had is a number: it goes where its number lies.
    beyond = WINE.x + np.float32(1e6)
    assert (np.asarray(forest.predict(grow(jax.random.key(0)), beyond)) >= 0).all()


def test_failure_is_data_under_a_transformation():
    spoilt = np.where(np.arange(13) == 3, np.inf, WINE.x).astype(np.float32)
    for options in ({"x": spoilt}, {"y": WINE.y + 1}, {"weight": -ONES}, {"weight": 0 * ONES}):
        model = lane(three(0, **options)[1], 1)
        assert (np.asarray(forest.predict(model, WINE.x)) == -1).all()
    # Without `missing` a NaN has no answer.
    model = dataclasses.replace(grow(jax.random.key(0)), missing=False)
    missing = np.where(np.arange(178)[:, None] == 4, np.nan, WINE.x).astype(np.float32)
    answer = np.asarray(jax.jit(forest.predict)(model, missing))
    assert (answer == -1).sum() == 1
    assert answer[4] == -1
    with pytest.raises(ValueError, match="x must be finite, got nan in row 4"):
        forest.predict(model, missing)


def test_what_is_too_large_is_said_before_it_is_tried():
    with pytest.raises(
        ValueError, match=r"x must have fewer than 2\^31 numbers, got 1048576 x 2048"
    ):
        forest._blocks(1, 2**20, 2**11, 99, 2, True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "ranking"}, ValueError, "task must be one of"),
        ({"num_trees": 0}, ValueError, "num_trees must be at least 1"),
        ({"max_features": 14}, ValueError, "max_features must be in [1, 13], got 14"),
        ({"max_features": 0}, ValueError, "max_features must be in [1"),
        ({"max_features": "log"}, ValueError, "max_features must be one of 'sqrt', 'third'"),
        ({"max_features": 0.5}, TypeError, "max_features must be an integer"),
        ({"max_depth": -1}, ValueError, "max_depth must be in [0"),
        ({"min_samples_leaf": 0}, ValueError, "min_samples_leaf must be in [1"),
        ({"min_gain": -0.1}, ValueError, "min_gain must not be negative"),
        ({"max_samples": 1.5}, ValueError, "max_samples must be in [0, 1], got 1.5"),
        ({"max_samples": 0.0}, ValueError, "max_samples must be positive"),
        ({"bootstrap": False, "max_samples": 0.5}, ValueError, "max_samples needs bootstrap"),
        ({"num_bins": 2}, ValueError, "num_bins must be at least 3"),
        ({"num_bins": 300}, ValueError, "num_bins must be at most 256"),
        ({"max_nodes": 0}, ValueError, "max_nodes must be at least 1"),
        ({"max_nodes": 2**31}, ValueError, "a tree of 2147483648 nodes need"),
        ({"sample_weight": np.zeros(178)}, ValueError, "sample_weight must be positive for"),
        ({"sample_weight": -ONES}, ValueError, "sample_weight must not be negative"),
        ({"sample_weight": np.ones(5)}, ValueError, "must have as many rows"),
        ({"num_classes": 2}, ValueError, "y must be in 0..1 (2 classes), got 2"),
        ({"y": WINE.y + 0.5}, TypeError, "y must be an integer array"),
        ({"y": np.full(178, np.nan), "task": "regression"}, ValueError, "y must be finite"),
        ({"task": "regression", "num_classes": 3}, ValueError, "num_classes must be None"),
        ({"x": np.zeros(178)}, ValueError, "x must be 2-D"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0, int)}, ValueError, "x must not be empty"),
        ({"x": np.full((178, 3), np.nan)}, ValueError, "got nan in row 0, column 0: pass missing"),
        ({"x": np.full((178, 3), np.inf)}, ValueError, "x must be finite, got inf in row 0"),
        (
            {"x": np.full((178, 3), np.inf), "missing": True},
            ValueError,
            "x must be finite, got inf",
        ),
    ],
)
def test_bad_input(options, error, message):
    arguments = {"x": WINE.x, "y": WINE.y} | options
    with pytest.raises(error, match=re.escape(message)):
        forest.fit(jax.random.key(0), **arguments)


def test_bad_use_of_a_model():
    model = grow(jax.random.key(0))
    with pytest.raises(ValueError, match="x must have 13 columns"):
        forest.predict(model, WINE.x[:, :2])
    with pytest.raises(ValueError, match="x must be the 178 rows of the fit, got 10"):
        forest.out_of_bag(model, WINE.x[:10], WINE.y[:10])
    with pytest.raises(ValueError, match=r"y must be in 0\.\.2"):
        forest.staged_error(model, WINE.x, WINE.y + 1)
    with pytest.raises(ValueError, match="predict_proba needs a forest of classes"):
        forest.predict_proba(numbers(), SUGAR.x)
    with pytest.raises(ValueError, match="num_repeats must be at least 1"):
        forest.permutation_importance(jax.random.key(0), model, WINE.x, WINE.y, num_repeats=0)
    with pytest.raises(ValueError, match="num_classes must be given where y"):
        jax.jit(forest.fit)(jax.random.key(0), WINE.x, WINE.y)
    with pytest.raises(ValueError, match="100 trees of 20000000 nodes need"):
        jax.jit(lambda x: forest.fit(jax.random.key(0), x, WINE.y, max_nodes=20_000_000))(WINE.x)


# The page


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_a_tree_is_unstable_and_a_forest_is_not(result):
    assert abs(result.left_out - 0.368) < 0.01
    # One tree changes from half to half by what the mean of fifty hardly does, ...
    assert result.variance[-1] < result.variance[0] / 8
    # ... and the law, from other halves, says how much (ten halves each).
    np.testing.assert_allclose(result.variance, result.law, rtol=0.25)
    assert 0 < result.correlation < 0.2
    assert result.set_error[1] < 0.65 * result.set_error[0]
    # Out of bag and held out agree: standard errors 1.3 and 1.6 points
    assert abs(result.out_of_bag[-1] - result.held_out[-1]) < 0.05
    assert result.out_of_bag[-1] < result.out_of_bag[0]
    # By impurity, noise of many values looks better than a coin; by shuffling neither matters.
    different, coin = (result.names.index(name) for name in demo.NOISE)
    assert result.impurity[different] > 2 * result.impurity[coin] > 0
    assert np.abs(result.permuted[[different, coin]]).max() < 0.01
    assert result.permuted[result.impurity.argmax()] > 0.02
    tables = demo.tables(result)
    assert all(len({tuple(row) for row in rows}) == 1 for rows in tables.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demo.plot(result)
    import matplotlib.pyplot as plt

    plt.close("all")
