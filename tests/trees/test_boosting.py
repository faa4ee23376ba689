"""Gradient boosting: splits against brute force, leaves by hand, fits against scikit-learn."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from mlnotes_jax.data import datasets
from mlnotes_jax.demos.trees import boosting as demo
from mlnotes_jax.trees import _bins, _by_leaf, _histogram, _rounds, boosting

KEY = jax.random.key(0)
LOSSES = ("squared", "absolute", "huber", "logistic", "softmax")
# XLA takes subnormal numbers for 0.
FLOATS = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)
SMALL = {"num_trees": 5, "max_depth": 2, "num_bins": 32}


def draw(seed=0, n=120, d=4):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    y = (np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * rng.normal(size=n)).astype(np.float32)
    return x, y


@functools.cache
def real(name):
    """Three quarters of the rows to fit, the others to test."""
    data = datasets.load(name)
    order = np.random.default_rng(0).permutation(len(data.y))
    cut = 3 * len(order) // 4
    x, y = data.x.astype(np.float32)[order], data.y[order]
    return x[:cut], y[:cut], x[cut:], y[cut:]


# Bins


@settings(max_examples=30, deadline=None)
@given(
    st.lists(FLOATS | st.just(np.nan), min_size=40, max_size=40),
    st.sampled_from([8, 64]),
)
def test_a_code_is_the_number_of_edges_below(column, num_bins):
    x = np.array(column, np.float32)[:, None]
    bins = _bins.fit(x, num_bins=num_bins)
    edges, codes = np.asarray(bins.edges)[0], np.asarray(_bins.apply(bins, x))[:, 0]
    assert (np.diff(edges[np.isfinite(edges)]) > 0).all()
    known = ~np.isnan(x[:, 0])
    assert (codes[~known] == num_bins - 1).all()
    assert (codes[known] < num_bins - 1).all()
    for b, edge in enumerate(edges):
        np.testing.assert_array_equal(codes[known] <= b, x[known, 0] <= edge)
    distinct = np.unique(x[known, 0] + 0.0)  # -0 is 0
    if len(distinct) < num_bins:  # one bin for each value
        assert len(np.unique(codes[known])) == len(distinct)


def test_edges_are_midpoints_of_few_values_and_quantiles_of_many():
    rng = np.random.default_rng(0)
    many, few = rng.normal(size=2000), rng.integers(0, 5, 2000)
    heavy = np.where(rng.random(2000) < 0.8, 0, many)
    x = np.stack([many, few, heavy, np.full(2000, np.nan)], axis=1).astype(np.float32)
    bins = _bins.fit(x, num_bins=32)
    codes = np.asarray(_bins.apply(bins, x))
    assert np.asarray(bins.edges)[1, :5].tolist() == [0.5, 1.5, 2.5, 3.5, np.inf]
    counts = np.bincount(codes[:, 0], minlength=32)[:31]
    assert counts.max() - counts.min() <= 2  # 2000 rows in 31 bins
    counts = np.bincount(codes[:, 2], minlength=32)[:31]
    zeros = codes[x[:, 2] == 0, 2][0]
    assert counts[zeros] == (x[:, 2] == 0).sum()  # alone, and the others share 30 bins
    others = np.delete(counts, zeros)
    others = others[others > 0]
    assert others.min() > 0
    assert others.max() < 2 * len(many) * 0.2 / 30
    assert np.isinf(bins.edges[3]).all()
    assert (codes[:, 3] == 31).all()


def test_bins_of_weighted_rows_are_those_of_repeated_rows():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 2)).astype(np.float32)
    x[:, 1] = np.round(x[:, 1], 1)
    weight = rng.integers(0, 4, 200)
    x[np.flatnonzero(weight == 0)[0]] = np.nan
    bins = _bins.fit(x, num_bins=16, sample_weight=weight.astype(np.float32))
    again = _bins.fit(np.repeat(x, weight, axis=0), num_bins=16)
    np.testing.assert_array_equal(bins.edges, again.edges)
    one = _bins.fit(x, num_bins=16, sample_weight=np.ones(200, np.float32))
    np.testing.assert_array_equal(one.edges, _bins.fit(x, num_bins=16).edges)


def test_codes_of_categories():
    x = np.array([[0.0], [2], [1], [2]], np.float32)
    bins = _bins.fit(x, num_bins=5, categorical=(0,))
    rows = np.array([[3.0], [0], [2], [4], [-1], [np.nan]], np.float32)
    assert _bins.apply(bins, rows)[:, 0].tolist() == [3, 0, 2, 4, 4, 4]  # 4: none of 0..3


def test_bad_input_of_bins():
    x = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match=r"x must not be empty, got shape \(0, 2\)"):
        _bins.fit(x[:0])
    with pytest.raises(ValueError, match="num_bins must be at most 256, got 257"):
        _bins.fit(x, num_bins=257)
    with pytest.raises(ValueError, match=r"categorical must name columns 0\.\.1, got 2"):
        _bins.fit(x, categorical=(2,))


# One tree


def level(
    seed,
    *,
    missing=False,
    categorical=(),
    monotone=(),
    leaves=None,
    n=300,
    d=3,
    num_bins=16,
    depth=2,
):
    """A tree on random derivatives, and all that went into it."""
    rng = np.random.default_rng(seed)
    n, d = 300, 3
    codes = rng.integers(0, num_bins - 1, (d, n)).astype(np.uint8)
    for j in categorical:
        codes[j] = rng.integers(0, 6, n)
    if missing:
        codes[rng.random((d, n)) < 0.2] = num_bins - 1
    g = (rng.normal(size=n) + np.sin(codes[0]) + codes[1] / 20).astype(np.float32)
    h = rng.uniform(0.1, 1, n).astype(np.float32)
    options = _histogram.Options(depth, num_bins, missing, categorical, monotone, leaves)
    limits = _histogram.Limits(*(jnp.float32(v) for v in (1.5, 0.0, 5.0)))
    grown = _grow(_histogram.arrange(jnp.asarray(codes), options), g, h, limits, options)
    return codes, g.astype(float), h.astype(float), options, grown


@functools.partial(jax.jit, static_argnames="options")
def _grow(codes, g, h, limits, options):
    grow = _by_leaf.grow if options.max_leaves else _histogram.grow
    return grow(codes, g, h, limits, None, options)


def gain(g, h, left, l2=1.5, least=5.0):
    """Of sending these rows to the left, by the formula of the page; -inf if forbidden."""
    if min(h[left].sum(), h[~left].sum()) < least:
        return -np.inf

    def part(rows):
        return g[rows].sum() ** 2 / (h[rows].sum() + l2)

    return 0.5 * (part(left) + part(~left) - part(left | ~left))


def all_splits(codes, options):
    """Every set of rows that a split may send to the left."""
    last = options.num_bins - 1
    for j, column in enumerate(codes):
        absent = column == last
        if j in options.categorical:
            kinds = np.unique(column)
            for size in range(1, len(kinds)):
                for some in itertools.combinations(kinds, size):
                    yield np.isin(column, some)
            continue
        for cut in range(last):
            yield (column <= cut) & ~absent
            if options.missing:
                yield (column <= cut) | absent


@pytest.mark.parametrize("kind", ["plain", "missing", "categorical"])
def test_splits_are_those_of_brute_force(kind):
    options = {
        "plain": {},
        "missing": {"missing": True},
        "categorical": {"missing": True, "categorical": (2,)},
    }[kind]
    for seed in range(3):
        codes, g, h, options_, grown = level(seed, **options)
        leaf = np.asarray(grown.leaf)
        for node, inside in ((0, leaf >= 0), (1, leaf % 2 == 0), (2, leaf % 2 == 1)):
            # The answers on the way to a leaf are the bits of its number, the first one lowest.
            answer = leaf % 2 if node == 0 else leaf // 2
            taken = gain(g[inside], h[inside], answer[inside] == 0)
            best = max(
                gain(g[inside], h[inside], s) for s in all_splits(codes[:, inside], options_)
            )
            # float32, and derivatives in whole units of 2^-30 of their sum
            np.testing.assert_allclose(taken, best, rtol=1e-5)
            np.testing.assert_allclose(grown.gain[node], best, rtol=1e-4)
            np.testing.assert_allclose(grown.weight[node], h[inside].sum(), rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"missing": True, "categorical": (2,)}, {"missing": True, "monotone": (1, 0, -1)}],
    ids=["plain", "categorical", "monotone"],
)
def test_what_gains_most_is_split_first(options):
    *_, levels = level(0, depth=4, **options)
    codes, _, _, options_, grown = level(0, depth=4, leaves=7, **options)
    # The gain of a node does not depend on the order: play it with those of all levels.
    gains, children = np.asarray(levels.gain), np.asarray(levels.children)
    open_nodes, order = [0], []
    while len(order) < 6:
        order.append(max(open_nodes, key=lambda node: gains[node]))
        open_nodes.remove(order[-1])
        open_nodes += [child for child in children[order[-1]] if child >= 0]
    assert np.log2(np.array(order) + 1).max() >= 3  # deep in one place
    np.testing.assert_array_equal(grown.feature, np.asarray(levels.feature)[order])
    # The gains are compiled twice.
    np.testing.assert_allclose(grown.gain, gains[order], rtol=1e-5)
    leaf = np.asarray(_histogram.reach(jnp.asarray(codes), grown, options_))
    np.testing.assert_array_equal(leaf, grown.leaf)
    assert set(leaf) == set(range(7))


def test_with_room_for_all_leaves_the_order_does_not_matter():
    *_, levels = level(0, depth=3)
    *_, leaves = level(0, depth=3, leaves=8)
    np.testing.assert_allclose(
        np.asarray(leaves.value)[leaves.leaf], np.asarray(levels.value)[levels.leaf], rtol=1e-5
    )
    *_, any_depth = level(0, depth=None, leaves=8)
    assert np.sum(any_depth.gain) >= np.sum(leaves.gain) * (1 - 1e-5)


def test_leaves_by_hand():
    _, g, h, _, grown = level(0)
    for number in range(4):
        rows = np.asarray(grown.leaf) == number
        # -G / (H + l2); sums of 300 numbers in units of 2^-30 of their sum
        np.testing.assert_allclose(
            grown.value[number], -g[rows].sum() / (h[rows].sum() + 1.5), rtol=1e-5
        )


def test_the_histograms_of_a_gpu_are_those_of_a_cpu():
    rng = np.random.default_rng(0)
    codes = jnp.asarray(rng.integers(0, 31, (6, 200)), jnp.uint8)
    words = _histogram.arrange(codes, _histogram.Options(2, 32)).words
    pairs = jnp.asarray(rng.integers(-1000, 1000, (200, 2)), jnp.int32)
    node = jnp.asarray(rng.integers(0, 2, 200) + 2 * (rng.random(200) < 0.3), jnp.int32)
    sums = _histogram.histogram(words, node % 2, pairs, (6, 32, 2))
    one = _histogram._by_difference(words, node, pairs, sums, jnp.int32(2))
    other = _histogram._directly(words, node, pairs, sums, jnp.int32(2))
    np.testing.assert_array_equal(one, other)  # bit by bit
    np.testing.assert_array_equal(one[0, 0].sum(axis=0), np.bincount(node, pairs[:, 0]))


def test_a_gpu_parts_the_rows_of_a_leaf_as_a_cpu_does():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 31, (6, 200))
    words = _histogram.arrange(jnp.asarray(codes, jnp.uint8), _histogram.Options(2, 32)).words
    split = _histogram.Split(
        jnp.int32(5),
        jnp.int32(12),
        jnp.array(False),
        jnp.zeros(0, bool),
        jnp.ones(()),
        jnp.ones(()),
    )
    right = _histogram.answers(split, 32, _histogram.Options(2, 32))
    order = rng.permutation(200)
    parts = []
    for form in (_by_leaf._one_by_one, _by_leaf._in_one_pass):
        spare = jnp.zeros(402, jnp.int32)
        begin, count = jnp.int32(30), jnp.int32(100)
        question = _by_leaf._Question(words, jnp.int32(5), right)
        start = jnp.asarray(order, jnp.int32)
        parts.append(form(start, spare, begin, count, question))
    (one, _, lefts), (other, _, also) = parts
    np.testing.assert_array_equal(one, other)
    here = order[30:130]
    goes = codes[5, here] > 12
    assert int(lefts) == int(also) == np.sum(~goes)
    inside = np.concatenate([here[~goes], here[goes]])  # each side in the order in which it came
    np.testing.assert_array_equal(one, np.concatenate([order[:30], inside, order[130:]]))


def test_derivatives_without_digits_lost_in_a_long_sum():
    # 2^25 ones: a float32 that counts by one stands still at 2^24.
    unit = jax.jit(lambda: _histogram._unit(jnp.ones(2**25)))()
    assert float(unit) == 2.0**-5


# Losses


@pytest.mark.parametrize("loss", LOSSES)
def test_derivatives_are_those_of_autodiff(loss, x64):
    rng = np.random.default_rng(0)
    n, k, delta = 30, 4, 0.7
    y = rng.integers(0, {"logistic": 2, "softmax": k}.get(loss, 5), n)
    y = jnp.asarray(y if loss in ("logistic", "softmax") else y + rng.normal(size=n))
    scores = jnp.asarray(rng.normal(size=(n, k) if loss == "softmax" else n))

    def one(score, y):
        return _rounds.loss_of(loss, jnp.atleast_1d(score)[:, None], y[None], delta)[0]

    @jax.jit
    def both(scores):
        by_hand = boosting.derivatives(loss, scores, y, delta=delta)
        first, second = (jax.vmap(d(one))(scores, y) for d in (jax.grad, jax.hessian))
        up, down = (jax.vmap(one)(scores + step, y) for step in (1e-5, -1e-5))
        return by_hand, first, second, (up - down) / 2e-5

    (g, h), first, second, slope = both(scores)
    np.testing.assert_allclose(g, first, rtol=1e-12)
    if loss == "softmax":
        np.testing.assert_allclose(h, jnp.diagonal(second, axis1=1, axis2=2), rtol=1e-10)
        np.testing.assert_allclose(slope, g.sum(axis=1), atol=1e-9)  # all scores a step up: 0
    elif loss in ("squared", "logistic"):
        np.testing.assert_allclose(h, second, rtol=1e-10)
    else:  # a bound
        assert (h >= second).all()
    if loss != "softmax":
        # 1e-9: rounding by the step; near a kink of the Huber loss the step itself
        np.testing.assert_allclose(slope, g, atol=1e-5 if loss == "huber" else 1e-9)


@pytest.mark.parametrize("loss", ["squared", "absolute", "logistic", "softmax"])
def test_the_constant_is_the_best_one(loss, x64):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2 if loss == "logistic" else 3, 51)
    y = jnp.asarray(y if loss in ("logistic", "softmax") else y + rng.normal(size=51))
    weight = jnp.asarray(rng.uniform(0.1, 1, 51))

    @jax.jit
    def losses(away):
        base = _rounds.start(loss, y, weight, 3 if loss == "softmax" else 1)
        scores = base[:, None] + away[: len(base)]
        return jax.vmap(
            lambda s: _rounds.mean(
                _rounds.loss_of(loss, jnp.broadcast_to(s[:, None], (len(s), 51)), y, 1.0), weight
            )
        )(scores.T)

    found = losses(jnp.asarray(1e-3 * rng.normal(size=(3, 50))).at[:, 0].set(0))
    assert (found >= found[0] - 1e-15).all()
    assert found.max() > found[0] + 1e-9


def test_weighted_medians_of_groups():
    rng = np.random.default_rng(0)
    values = rng.normal(size=101).astype(np.float32)
    group = rng.integers(0, 3, 101).astype(np.int32)
    weight = rng.integers(0, 3, 101).astype(np.float32)
    found = jax.jit(_rounds._medians, static_argnums=3)(values, weight, group, 4)
    for j in range(3):
        rows = group == j
        repeated = np.sort(np.repeat(values[rows], weight[rows].astype(int)))
        assert found[j] == repeated[(len(repeated) - 1) // 2]
    assert found[3] == 0  # no rows


# Fits, against peers


def peer(kind, x, y, loss=""):
    """scikit-learn with the same settings; one thread, for idle ones of its would spin."""
    same = {"max_iter": 100, "max_depth": 3, "max_leaf_nodes": None, "min_samples_leaf": 1}
    rest = {"l2_regularization": 1.0, "early_stopping": False} | ({"loss": loss} if loss else {})
    with threadpool_limits(1):
        return kind(**same, **rest).fit(x, y)


def test_equals_scikit_learn_on_diabetes():
    x, y, x_test, _ = real("diabetes")
    y = y.astype(np.float32)
    holes = np.where(np.random.default_rng(0).random(x.shape) < 0.2, np.nan, x)
    for rows in (x, holes):
        model = boosting.fit(KEY, rows, y, max_depth=3, missing=True)
        theirs = peer(HistGradientBoostingRegressor, rows, y)
        # float32 against float64: a hundred rounds of rounding, 6e-8 each
        np.testing.assert_allclose(boosting.predict(model, rows), theirs.predict(rows), rtol=1e-5)
        if rows is x:  # on rows between two values of a column, thresholds may differ
            away = boosting.predict(model, x_test) - theirs.predict(x_test)
            assert np.square(away).mean() < 0.05 * np.var(theirs.predict(x_test))


def test_leaf_by_leaf_equals_scikit_learn():
    x, y, *_ = real("diabetes")
    y = y.astype(np.float32)
    model = boosting.fit(KEY, x, y, max_depth=None, max_leaves=10)
    theirs = HistGradientBoostingRegressor(
        max_leaf_nodes=10, min_samples_leaf=1, l2_regularization=1.0, early_stopping=False
    )
    with threadpool_limits(1):
        theirs.fit(x, y)
    # float32 against float64: a hundred rounds of rounding, 6e-8 each
    np.testing.assert_allclose(boosting.predict(model, x), theirs.predict(x), rtol=1e-5)
    deepest = max(predictor[0].get_max_depth() for predictor in theirs._predictors)
    assert deepest > 4  # ten leaves would fit into four levels


@pytest.mark.parametrize(("name", "most"), [("breast_cancer", 0.02), ("wine", 0.02)])
def test_log_loss_is_that_of_scikit_learn(name, most):
    x, y, x_test, y_test = real(name)
    loss = "logistic" if name == "breast_cancer" else "softmax"
    model = boosting.fit(KEY, x, y, loss=loss, max_depth=3, min_child_weight=0.001)
    theirs = peer(HistGradientBoostingClassifier, x, y).predict_proba(x_test)
    theirs = -np.log(theirs[np.arange(len(y_test)), y_test]).mean()
    # one split: 0.02 is less than a third of the spread over splits (benchmark: 0.05 and 0.1)
    assert boosting.staged_loss(model, x_test, y_test)[-1] < theirs + most
    p = boosting.predict_proba(model, x_test)
    own = -np.log(np.asarray(p)[np.arange(len(y_test)), y_test]).mean()
    np.testing.assert_allclose(own, boosting.staged_loss(model, x_test, y_test)[-1], rtol=1e-4)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(boosting.predict(model, x_test), p.argmax(axis=1))


def test_absolute_loss():
    x, y, x_test, y_test = real("diabetes")
    y, y_test = y.astype(np.float32), y_test.astype(np.float32)
    model = boosting.fit(KEY, x, y, loss="absolute", max_depth=3)
    theirs = peer(HistGradientBoostingRegressor, x, y, "absolute_error")
    ours = np.abs(boosting.predict(model, x_test) - y_test).mean()
    # ours keeps the plain median in a leaf; within 3 % of each other
    assert ours < 1.03 * np.abs(theirs.predict(x_test) - y_test).mean()
    first = np.asarray(boosting.staged_decision_function(model, x)[0])
    for score in np.unique(first):  # every leaf is a tenth of the way to the median of its rows
        away = np.sort(y[first == score] - float(model.base[0]))
        step = 0.1 * away[(len(away) - 1) // 2]
        np.testing.assert_allclose(score - model.base[0], step, rtol=1e-4, atol=1e-4)


def test_huber_does_not_follow_wild_targets():
    x, y = draw()
    wild = y + np.where(np.arange(120) < 5, 100, 0).astype(np.float32)
    options = SMALL | {"learning_rate": 0.5}
    squared = boosting.fit(KEY, x, wild, **options)
    for delta in (0.5, 1e6):
        model = boosting.fit(KEY, x, wild, loss="huber", delta=delta, **options)
        if delta > 1:  # nothing is beyond it; only the constant differs, and fades
            far = np.abs(boosting.predict(model, x) - boosting.predict(squared, x)).max()
            assert far < 0.5**5 * abs(float(model.base[0] - squared.base[0])) * 4
        else:
            error = np.abs(boosting.predict(model, x) - y)[5:].mean()
            assert error < 0.5 * np.abs(boosting.predict(squared, x) - y)[5:].mean()


# What the options do


def test_rounds_lower_the_loss_and_stages_say_so():
    x, y = draw()
    for loss, target in (("squared", y), ("logistic", (y > 0).astype(np.int32))):
        model = boosting.fit(KEY, x, target, loss=loss, **SMALL)
        stages = boosting.staged_decision_function(model, x)
        np.testing.assert_array_equal(stages[-1], boosting.decision_function(model, x))
        losses = boosting.staged_loss(model, x, target)
        assert (np.diff(losses) < 0).all()
        score = np.asarray(stages[2], np.float64)
        by_hand = np.square(score - y) / 2 if loss == "squared" else np.logaddexp(
            0, np.where(target == 1, -score, score)
        )  # fmt: skip
        np.testing.assert_allclose(losses[2], by_hand.mean(), rtol=1e-5)
        assert int(model.num_trees) == 5
        assert np.isinf(model.held_out_loss).all()


def test_the_sign_of_a_slope_is_kept():
    x, y = draw()
    signs = (1, -1, 0, 0)
    model = boosting.fit(KEY, x, y, monotone=signs, learning_rate=0.5, **SMALL)
    grid = np.linspace(-3, 3, 60, dtype=np.float32)
    free = boosting.fit(KEY, x, y, learning_rate=0.5, **SMALL)
    falls = []
    for j, sign in enumerate(signs):
        rows = np.repeat(x[:50], 60, axis=0)
        rows[:, j] = np.tile(grid, 50)
        steps = np.diff(np.asarray(boosting.predict(model, rows)).reshape(50, 60), axis=1)
        if sign:  # 1e-6: sums of the trees in float32
            assert (sign * steps > -1e-6).all()
            without = np.diff(np.asarray(boosting.predict(free, rows)).reshape(50, 60), axis=1)
            falls.append((sign * without).min())
    assert min(falls) < -0.1  # without the signs it turns
    assert boosting.staged_loss(model, x, y)[-1] > boosting.staged_loss(free, x, y)[-1]


def test_categories():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 20, 800)
    effect = rng.normal(size=20)
    x = np.stack([kind, rng.normal(size=800)], axis=1).astype(np.float32)
    y = effect[kind].astype(np.float32)
    # No category of x, no category at all, and a missing value
    unseen = np.array([[20.0, 0], [-3, 0], [1e9, 0], [np.nan, 0]], np.float32)
    target = np.zeros(4, np.float32)
    model = boosting.fit(
        KEY, x, y, categorical=(0,), max_depth=1, num_trees=2, l2=0.0, missing=True,
        held_out=(unseen, target),
    )  # fmt: skip
    # One split in two of 20 categories: the best of 2^19 by Fisher's order, all tried here.
    order = np.argsort(effect)
    total = []
    for i in range(1, 20):
        low = np.isin(kind, order[:i])
        total.append(low.sum() * y[low].var() + (~low).sum() * y[~low].var())
    expected = 0.5 * (len(y) * y.var() - min(total))
    np.testing.assert_allclose(model.gain[0, 0, 0], expected, rtol=1e-4)
    assert np.isnan(model.threshold[0, 0, 0])
    went_left = np.isin(kind, np.flatnonzero(model.left[0, 0, 0]))
    heavier = model.value[0, 0, 0 if went_left.mean() > 0.5 else 1]
    first = boosting.staged_decision_function(model, unseen)[0]
    np.testing.assert_array_equal(first, np.repeat(model.base + heavier, 4))
    # Held-out rows are routed by codes, predictions by values: the same leaf.
    losses = boosting.staged_loss(model, unseen, target)
    np.testing.assert_allclose(model.held_out_loss, losses, rtol=1e-5)


def test_missing_values_go_where_they_gain_or_to_the_heavier_side():
    x = np.array([[0.0], [1], [2], [3], [4], [np.nan], [np.nan]], np.float32)
    y = np.array([0.0, 0, 0, 0, 1, 1, 1], np.float32)
    absent = np.isnan(x[:, 0]).astype(np.float32)

    def fit(y, weight):
        return boosting.fit(
            KEY, x, y, missing=True, sample_weight=weight, max_depth=1, num_trees=1, l2=0.0,
            learning_rate=1.0,
        )  # fmt: skip

    model = fit(y, np.ones(7))
    np.testing.assert_allclose(boosting.predict(model, x), y, atol=1e-6)
    assert float(model.threshold[0, 0, 0]) == 3.5
    assert not model.missing_left[0, 0, 0]
    other = fit(absent, np.ones(7))  # only the missing rows differ: the threshold is infinite
    assert np.isinf(other.threshold[0, 0, 0])
    np.testing.assert_allclose(boosting.predict(other, x), absent, atol=1e-6)
    none = fit(y, 1 - absent)  # none is seen: four rows are left, one is right
    np.testing.assert_allclose(boosting.predict(none, x), [0, 0, 0, 0, 1, 0, 0], atol=1e-6)


def test_it_ends_when_held_out_rows_say_so():
    x, y = draw(n=120)
    x_test, y_test = draw(seed=1, n=120)
    y = y + np.random.default_rng(2).normal(size=120).astype(np.float32)  # much to overfit
    options = SMALL | {"num_trees": 60, "learning_rate": 0.5}
    full = boosting.fit(KEY, x, y, held_out=(x_test, y_test), **options)
    np.testing.assert_allclose(
        full.held_out_loss, boosting.staged_loss(full, x_test, y_test), rtol=1e-5
    )
    short = boosting.fit(KEY, x, y, held_out=(x_test, y_test), patience=5, **options)
    losses = np.asarray(full.held_out_loss)
    best = next(i for i in range(60) if (losses[i + 1 : i + 6] >= losses[: i + 1].min()).all())
    best = int(losses[: best + 1].argmin())
    assert int(short.num_trees) == best + 1 < 50
    np.testing.assert_array_equal(short.held_out_loss[: best + 6], losses[: best + 6])
    assert np.isnan(short.held_out_loss[best + 6 :]).all()
    stages = boosting.staged_decision_function(full, x_test)
    np.testing.assert_allclose(boosting.predict(short, x_test), stages[best], rtol=1e-6)
    assert (np.asarray(short.feature[best + 1 :]) == -1).all()
    by_leaf = options | {"max_depth": None, "max_leaves": 6}
    early = boosting.fit(KEY, x, y, held_out=(x_test, y_test), patience=5, **by_leaf)
    count = int(early.num_trees)
    assert count < 50
    losses = boosting.staged_loss(early, x_test, y_test)
    np.testing.assert_allclose(early.held_out_loss[:count], losses[:count], rtol=1e-5)
    np.testing.assert_allclose(losses[count:], losses[count - 1], rtol=1e-6)


DRAWN = SMALL | {"subsample": 0.5, "feature_fraction": 0.5, "sample_weight": np.ones(120)}


def test_rows_and_columns_are_drawn():
    x, y = draw()
    plain = boosting.fit(KEY, x, y, **SMALL)
    model = boosting.fit(KEY, x, y, **DRAWN)
    asked = [set(np.unique(tree)) - {-1} for tree in np.asarray(model.feature)]
    assert all(len(columns) <= 2 for columns in asked)
    assert len(set.union(*asked)) > 2
    drawn = np.asarray(model.weight)[:, 0, 0]  # rows of each round
    assert len(set(drawn.tolist())) > 1
    assert (np.abs(drawn - 60) < 5 * np.sqrt(120) / 2).all()
    assert (np.asarray(plain.weight)[:, 0, 0] == 120).all()
    np.testing.assert_array_equal(model.value, boosting.fit(KEY, x, y, **DRAWN).value)
    other = boosting.fit(jax.random.key(1), x, y, **DRAWN)
    assert (np.asarray(model.value) != np.asarray(other.value)).any()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_a_whole_weight_is_as_many_rows(seed):
    x, y = draw(seed)
    rng = np.random.default_rng(seed)
    weight = rng.integers(0, 3, len(y))
    # Always 120 repeated rows: one program
    weight = (
        np.bincount(rng.choice(len(y), len(y)), minlength=len(y)) if seed % 2 else weight * 0 + 1
    )
    repeated = np.repeat(x, weight, axis=0), np.repeat(y, weight)
    x[weight == 0], y[weight == 0] = np.nan, np.nan  # rows without weight may hold anything
    model = boosting.fit(KEY, x, y, sample_weight=weight.astype(np.float32), **SMALL)
    again = boosting.fit(KEY, *repeated, **SMALL)
    # the order of sums differs, in float32
    np.testing.assert_allclose(
        boosting.predict(model, repeated[0]), boosting.predict(again, repeated[0]), atol=2e-5
    )


def test_importance():
    x, y = draw()
    model = boosting.fit(KEY, x, y, **SMALL)
    shares = boosting.importance(model)
    by_hand = [
        float(np.asarray(model.gain)[np.asarray(model.feature) == j].sum()) for j in range(4)
    ]
    np.testing.assert_allclose(shares, np.array(by_hand) / sum(by_hand), rtol=1e-5)
    constant = boosting.fit(KEY, x, np.full(120, 0.1, np.float32), **(SMALL | {"l2": 0.0}))
    assert boosting.importance(constant).tolist() == [0] * 4  # no splits
    assert (boosting.predict(constant, x) == np.float32(0.1)).all()


# Under transformations


def test_jit_vmap_and_one_program():
    x, y = draw()

    def held_out_loss(key, rate, weight, y):
        model = boosting.fit(key, x, y, learning_rate=rate, **(DRAWN | {"sample_weight": weight}))
        return boosting.staged_loss(model, x, y, sample_weight=1 - weight)

    keys = jax.random.split(KEY, 4)
    rates = jnp.array([0.1, 0.3, 1.0, 0.1])
    folds = (np.arange(120) % 3 != np.arange(4)[:, None] % 3).astype(np.float32)
    targets = np.stack([y, y, 2 * y, np.where(np.arange(120) == 4, np.nan, y)])
    batch = jax.jit(jax.vmap(held_out_loss))(keys, rates, folds, targets)
    assert np.isnan(batch[3]).all()  # under a transformation a NaN stays a NaN
    single = [held_out_loss(*part) for part in zip(keys[:3], rates, folds, targets[:3])]  # noqa: B905
    np.testing.assert_allclose(batch[:3], np.stack(single), rtol=1e-5)  # compiled otherwise
    small = DRAWN | {"max_depth": None, "max_leaves": 4, "num_trees": 2}
    fits = jax.jit(
        jax.vmap(lambda rate: boosting.fit(KEY, x, y, **(small | {"learning_rate": rate})))
    )
    alone = boosting.fit(KEY, x, y, **(small | {"learning_rate": 0.3}))
    np.testing.assert_allclose(fits(rates[:2]).value[1], alone.value, rtol=1e-5)
    before = boosting._fit._cache_size()
    boosting.fit(KEY, -x, y, learning_rate=0.4, l2=0.1, **(DRAWN | {"subsample": 0.3}))
    assert boosting._fit._cache_size() == before


def test_float64(x64):
    x, y = (part.astype(np.float64) for part in draw())
    model = boosting.fit(KEY, x, y, **SMALL)
    assert model.value.dtype == model.base.dtype == np.float64
    assert model.threshold.dtype == np.float64
    # The values are whole units of 2^-30 of a sum: seven digits, in float64, too.
    single = boosting.predict(boosting.fit(KEY, *draw(), **SMALL), x)
    np.testing.assert_allclose(boosting.predict(model, x), single, rtol=1e-4, atol=1e-5)


# What comes in


def test_classes_that_have_no_rows():
    x, _ = draw()
    y = np.random.default_rng(0).integers(0, 2, 120).astype(np.int32)
    model = boosting.fit(KEY, x, y, loss="softmax", num_classes=3, min_child_weight=0.0, **SMALL)
    p = np.asarray(boosting.predict_proba(model, x))
    assert (p[:, 2] == 0).all()
    assert np.isfinite(p).all()
    sure = boosting.fit(KEY, x, np.ones(120, np.int32), loss="logistic", **SMALL)
    assert (np.asarray(boosting.predict_proba(sure, x)) == [0, 1]).all()


X, Y = draw(n=20)
BAD = {
    "empty": ((X[:0], Y[:0], {}), r"x must not be empty, got shape \(0, 4\)"),
    "rows": ((X, Y[:-1], {}), r"x and y must have as many rows, got x \(20, 4\), y \(19,\)"),
    "loss": ((X, Y, {"loss": "log"}), "loss must be one of .*, got 'log'"),
    "nan in x": (
        (np.where(np.arange(20)[:, None] == 3, np.nan, X), Y, {}),
        r"x must be finite, got nan in row 3, column 0; pass missing=True",
    ),
    "inf in x": (
        (np.where(X[2, 1] == X, np.inf, X), Y, {"missing": True}),
        "x must be finite, got inf in row 2, column 1$",
    ),
    "nan in y": ((X, np.where(Y[5] == Y, np.nan, Y), {}), "y must be finite, got nan in row 5"),
    "weights": (
        (X, Y, {"sample_weight": np.where(np.arange(20) == 1, -1.0, 1)}),
        "sample_weight must not be negative, got -1.0",
    ),
    "no weight": ((X, Y, {"sample_weight": np.zeros(20)}), "positive for at least one row"),
    "labels": (
        (X, np.arange(20), {"loss": "logistic"}),
        r"y must be in 0\.\.1 \(2 classes\), got 2 at index 2",
    ),
    "num_classes": (
        (X, np.arange(20) % 2, {"loss": "logistic", "num_classes": 3}),
        "num_classes must be 2 for loss 'logistic', got 3",
    ),
    "rate": ((X, Y, {"learning_rate": 0.0}), "learning_rate must be positive, got 0.0"),
    "share": ((X, Y, {"subsample": 1.5}), r"subsample must be in \[0, 1\], got 1.5"),
    "none": ((X, Y, {"feature_fraction": 0.0}), "feature_fraction must be positive, got 0.0"),
    "l2": ((X, Y, {"l2": -1.0}), "l2 must not be negative, got -1.0"),
    "bins": ((X, Y, {"num_bins": 300}), "num_bins must be at most 256, got 300"),
    "depth": (
        (X, Y, {"max_depth": 24}),
        "max_depth=24 needs histograms of 16 GiB for 4 columns, 32 bins",
    ),
    "no bound": ((X, Y, {"max_depth": None}), "max_depth must be given where max_leaves is not"),
    "one leaf": ((X, Y, {"max_leaves": 1}), "max_leaves must be at least 2, got 1"),
    "leaves": (
        (X, Y, {"max_depth": None, "max_leaves": 2**24}),
        "max_leaves=16777216 needs histograms of 16 GiB for 4 columns, 32 bins",
    ),
    "column": ((X, Y, {"categorical": (4,)}), r"categorical must name columns 0\.\.3, got 4"),
    "category": (
        (np.abs(X), Y, {"categorical": (1,)}),
        r"x must hold categories 0\.\.254 in column 1, got .* in row 0",
    ),
    "signs": ((X, Y, {"monotone": (1, 2, 0, 0)}), "monotone must be -1, 0 or 1 for each of 4"),
    "patience": ((X, Y, {"patience": 3}), "patience needs held_out rows, got None"),
    "held out": (
        (X, Y, {"held_out": (X[:, :3], Y)}),
        r"held_out x must have 4 columns, got shape \(20, 3\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    (x, y, options), message = BAD[name]
    with pytest.raises(ValueError, match=message):
        boosting.fit(KEY, x, y, **options)


def test_bad_input_of_other_kinds():
    with pytest.raises(TypeError, match="y must be an integer array, got dtype float32"):
        boosting.fit(KEY, X, Y, loss="logistic")
    with pytest.raises(ValueError, match="num_classes must be given where y"):
        jax.jit(lambda y: boosting.fit(KEY, X, y, loss="softmax"))(jnp.zeros(20, jnp.int32))
    model = boosting.fit(KEY, *draw(), **SMALL)
    with pytest.raises(ValueError, match=re.escape("x must have 4 columns, got shape (20, 3)")):
        boosting.predict(model, X[:, :3])
    with pytest.raises(ValueError, match="predict_proba needs loss 'logistic' or 'softmax'"):
        boosting.predict_proba(model, X)


def test_more_bins_than_values_lose_nothing():
    x = np.round(2 * draw()[0]) / 2  # a dozen values a column
    fewer, more = (_bins.fit(x, num_bins=bins) for bins in (32, 64))
    np.testing.assert_array_equal(fewer.edges, more.edges[:, :30])
    np.testing.assert_array_equal(_bins.apply(fewer, x), _bins.apply(more, x))
    # A fit leaves out what no column needs; inside of a program it cannot know.
    assert _bins.trimmed(more).num_bins == 16
    x[::7, 1] = np.nan
    y, options = draw()[1], SMALL | {"num_bins": 64, "missing": True}
    short = boosting.fit(KEY, x, y, **options)
    whole = jax.jit(lambda x, y: boosting.fit(KEY, x, y, **options))(x, y)
    for ours, theirs in zip(jax.tree.leaves(short), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)  # compiled otherwise


# The demo


def test_the_demo_shows_what_the_page_says():
    result = demo.run(jax.random.key(0), quick=True)
    # Shrinkage: the slow learner ends lower on held-out rows than the fast one does at its best.
    slow, fast = min(result.rates), max(result.rates)
    best = dict(zip(result.rates, np.asarray(result.held_out).min(axis=1), strict=True))
    assert best[slow] < best[fast]
    assert (np.diff(result.train[:, :50], axis=1) < 0).all()  # training loss falls, every round
    fast_curve = np.asarray(result.held_out)[result.rates.index(fast)]
    assert fast_curve[-1] > 1.05 * fast_curve.min()  # and held-out loss rises again
    assert result.stages.shape[1] == len(result.grid)
