"""Decision trees against scikit-learn, against every possible question, and by the book."""

import dataclasses
import functools
import itertools
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from mlnotes_jax.data import datasets
from mlnotes_jax.demos.trees import criteria as melon_demo
from mlnotes_jax.demos.trees import decision_tree as demo
from mlnotes_jax.trees import _grow, _order, decision_tree

PAGE = Path(__file__).parents[2] / "docs" / "trees" / "decision_tree.md"
ROWS, COLUMNS = 1797, 64  # of the digits: smaller sets are filled up, and share their program
NAMES = (*melon_demo.ATTRIBUTES, *melon_demo.NUMBERS)
VALUES = (*melon_demo.ATTRIBUTES.values(), (), ())


def entropy(y):
    share = np.bincount(y) / max(len(y), 1)
    share = share[share > 0]
    return -(share * np.log2(share)).sum()


# Peers


@functools.cache
def real(name):
    data = datasets.load(name)
    return data.x.astype(np.float64), data.y.astype(np.float64 if name == "diabetes" else np.int32)


def fit_real(name, weight=None, **options):
    """Fit in the one program that all sets share; columns of zeros ask nothing."""
    x, y = real(name)
    weight = np.ones(len(y)) if weight is None else weight
    if name == "diabetes":
        return decision_tree.fit(
            x, y, task="regression", sample_weight=weight, max_nodes=2 * len(y) - 1, **options
        )
    n, d = x.shape
    rows, labels = np.full((ROWS, COLUMNS), np.nan), np.full(ROWS, 99)
    rows[:n], labels[:n] = 0, y
    rows[:n, :d] = x
    weights = np.zeros(ROWS)
    weights[:n] = weight
    return decision_tree.fit(
        rows, labels, sample_weight=weights, num_classes=10, max_nodes=2 * ROWS - 1, **options
    )


def answer(model, name):
    x, _ = real(name)
    rows = np.zeros((ROWS, COLUMNS)) if name != "diabetes" else x
    rows[: x.shape[0], : x.shape[1]] = x
    return np.asarray(decision_tree.predict(model, rows))[: len(x)]


def fit_peer(name, seed=0, **options):
    peer = DecisionTreeRegressor if name == "diabetes" else DecisionTreeClassifier
    return peer(random_state=seed, **options).fit(*real(name))


def same_until_ties(model, peer, x):
    """Walk down both trees; give the share of rows that met no tie. Other questions are errors."""
    ours, theirs = jax.tree.map(np.asarray, model.tree), peer.tree_

    def decrease(weight, impurity, node, children):
        below = sum(weight[child] * impurity[child] for child in children)
        return weight[node] * impurity[node] - below

    def walk(a, b, rows):
        # Sums of 1797 terms in float64
        np.testing.assert_allclose(ours.weight[a], theirs.weighted_n_node_samples[b], rtol=1e-12)
        np.testing.assert_allclose(ours.impurity[a], theirs.impurity[b], rtol=1e-9, atol=1e-12)
        assert (ours.feature[a] < 0) == (theirs.children_left[b] < 0)
        if ours.feature[a] < 0:
            value = theirs.value[b, 0]
            mine = ours.value[a, : len(value)]
            mine = mine / mine.sum() if len(ours.value[a]) > 1 else mine
            np.testing.assert_allclose(mine, value, rtol=1e-9, atol=1e-12)
            return rows.sum()
        below = theirs.children_left[b], theirs.children_right[b]
        feature, threshold = ours.feature[a], ours.threshold[a]
        same = feature == theirs.feature[b] and np.isclose(
            threshold, theirs.threshold[b], rtol=1e-12, atol=0
        )
        if not same:
            np.testing.assert_allclose(
                decrease(ours.weight, ours.impurity, a, ours.children[a]),
                decrease(theirs.weighted_n_node_samples, theirs.impurity, b, below),
                rtol=1e-9,
                atol=1e-9,
            )
            return 0
        left = rows & (x[:, feature] <= threshold)
        return walk(ours.children[a, 0], below[0], left) + walk(
            ours.children[a, 1], below[1], rows & ~left
        )

    return walk(0, 0, np.ones(len(x), bool)) / len(x)


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "digits", "diabetes"])
def test_equals_scikit_learn(name, x64):
    x, y = real(name)
    for depth, least in ((1, 1.0), (3, 0.95), (6, 0.5)):
        model, shares = fit_real(name, max_depth=depth), []
        for seed in range(8):  # scikit-learn breaks ties at random: some seed breaks them as we do
            peer = fit_peer(name, seed, max_depth=depth)
            shares.append(same_until_ties(model, peer, x))
            if shares[-1] == 1:
                np.testing.assert_allclose(answer(model, name), peer.predict(x), rtol=1e-12)
                np.testing.assert_allclose(
                    decision_tree.importance(model)[: x.shape[1]],
                    peer.feature_importances_,
                    rtol=1e-8,
                    atol=1e-12,
                )
                break
        # Deep down few rows are left, and many columns tell the same of them.
        assert max(shares) >= least
    full = fit_real(name)
    np.testing.assert_allclose(answer(full, name), y, rtol=1e-12)  # grown until nothing is left
    tree = jax.tree.map(np.asarray, full.tree)
    assert tree.impurity[(tree.depth >= 0) & (tree.feature < 0)].max() < 1e-9
    same_until_ties(full, fit_peer(name), x)


@pytest.mark.parametrize("name", ["breast_cancer", "digits", "diabetes"])
def test_no_question_is_better_at_any_node(name, x64):
    # Wherever ties lead: at every node the peer's best question takes as much impurity away.
    x, y = real(name)
    weight = np.random.default_rng(0).integers(0, 3, len(y)).astype(float)
    model = fit_real(name, weight, min_samples_leaf=3)
    tree = jax.tree.map(np.asarray, model.tree)
    path = x if name == "diabetes" else np.pad(x, ((0, 0), (0, COLUMNS - x.shape[1])))
    nodes = np.asarray(decision_tree.decision_path(model, path))
    peer = DecisionTreeRegressor if name == "diabetes" else DecisionTreeClassifier
    asked = np.flatnonzero(tree.feature >= 0)
    assert len(asked) > 12
    for node in asked[:60]:
        rows = (nodes == node).any(axis=1) & (weight > 0)
        stump = peer(max_depth=1, min_samples_leaf=3).fit(x[rows], y[rows], weight[rows]).tree_
        share = stump.weighted_n_node_samples / stump.weighted_n_node_samples[0]
        best = stump.impurity[0] - (share * stump.impurity)[1:].sum()
        np.testing.assert_allclose(tree.gain[node], best, rtol=1e-8, atol=1e-12)
        for child in tree.children[node]:
            assert ((nodes == child).any(axis=1) & rows).sum() >= 3


def test_max_leaves_is_best_first(x64):

    for leaves in (2, 5, 9):
        model = fit_real("breast_cancer", max_leaves=jnp.asarray(leaves))
        peer = fit_peer("breast_cancer", max_leaf_nodes=leaves)
        tree = jax.tree.map(np.asarray, model.tree)
        ends = (tree.depth >= 0) & (tree.feature < 0)
        assert ends.sum() == leaves == peer.get_n_leaves()
        # Which of equal columns is asked may differ, what is left of the impurity may not.
        theirs = peer.tree_.children_left < 0
        left = (peer.tree_.impurity * peer.tree_.weighted_n_node_samples)[theirs].sum()
        np.testing.assert_allclose((tree.impurity * tree.weight)[ends].sum(), left, rtol=1e-9)


# One small program for many tests: 60 rows of 4 numbers that may be missing, three classes, weights


def draw(seed=0, n=60, d=4, k=3):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n).astype(np.int32)
    return (rng.normal(size=(n, d)) + 0.7 * y[:, None]).astype(np.float32), y


def small(x, y, weight=None, **options):
    """Fill any data up to 60 rows of 4 columns."""
    x, y = np.asarray(x, np.float32), np.asarray(y, np.int32)
    rows, labels, weights = np.zeros((60, 4), np.float32), np.zeros(60, np.int32), np.zeros(60)
    rows[: len(x), : x.shape[1]], labels[: len(y)] = x, y
    weights[: len(y)] = 1 if weight is None else weight
    weights = weights.astype(np.float32)
    options = {"sample_weight": weights, "num_classes": 3, "max_nodes": 119} | options
    return decision_tree.fit(rows, labels, missing=True, **options)


def shape_of(model):
    """Features and thresholds of the nodes in use."""
    tree = jax.tree.map(np.asarray, model.tree)
    return [
        (int(f), None if f < 0 else round(float(t), 5))
        for f, t in zip(
            tree.feature[: tree.num_nodes], tree.threshold[: tree.num_nodes], strict=True
        )
    ]


def test_by_hand():
    model = small([[1.0], [2.0], [3.0], [6.0]], [0, 0, 1, 1])
    assert shape_of(model) == [(0, 2.5), (-1, None), (-1, None)]
    tree = model.tree
    assert tree.children[0].tolist() == [1, 2]
    assert tree.parent[:3].tolist() == [-1, 0, 0]
    assert tree.depth[:4].tolist() == [0, 1, 1, -1]
    assert tree.value[:3].tolist() == [[2, 2, 0], [2, 0, 0], [0, 2, 0]]
    assert tree.weight[:3].tolist() == [4, 2, 2]
    assert tree.impurity[:3].tolist() == [0.5, 0, 0]
    assert float(tree.gain[0]) == 0.5


def test_the_three_stops():
    # 1. All rows of one class; also with one class in all
    assert shape_of(small([[1.0], [2.0]], [2, 2])) == [(-1, None)]
    # 2. No attribute tells the rows apart: the majority answers, the first of equals
    alike = small([[1.0], [1.0], [1.0]], [1, 2, 2])
    assert shape_of(alike) == [(-1, None)]
    assert decision_tree.predict(alike, np.ones((60, 4)))[0] == 2
    assert decision_tree.predict(small([[1.0], [1.0]], [1, 2]), np.ones((60, 4)))[0] == 1
    np.testing.assert_allclose(
        decision_tree.predict_proba(alike, np.ones((60, 4)))[0], [0, 1 / 3, 2 / 3], rtol=1e-6
    )
    # 3. A branch without rows: see the white melons below.
    # A gain of zero is no stop: in a chessboard no first question helps, and the second does.
    board = small([[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0])
    assert float(board.tree.gain[0]) == 0
    assert int(board.tree.num_nodes) == 7
    assert shape_of(small([[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0], min_gain=1e-6)) == [
        (-1, None)
    ]


def test_bounds():
    x, y = draw()
    whole = small(x, y)
    for depth in (0, 2):
        tree = small(x, y, max_depth=depth).tree
        assert int(tree.depth.max()) == depth
        # A bound on the depth cuts; it does not choose other questions.
        kept = np.asarray((tree.depth >= 0) & (tree.feature >= 0))
        inner = np.asarray((whole.tree.depth < depth) & (whole.tree.feature >= 0))
        assert np.asarray(tree.threshold)[kept].tolist() == (
            np.asarray(whole.tree.threshold)[inner].tolist()
        )
    least = small(x, y, min_samples_leaf=7).tree
    leaf = np.asarray((least.depth >= 0) & (least.feature < 0))
    assert np.asarray(least.weight)[leaf].min() >= 7
    gains = small(x, y, min_gain=0.1).tree
    assert np.asarray(gains.gain)[np.asarray(gains.feature) >= 0].min() >= 0.1
    assert small(x, y, max_leaves=4).tree.feature.shape == (7,)


def test_weights_count_rows():
    x, y = draw(n=30)
    weight = np.random.default_rng(1).integers(0, 3, 30)
    repeated = np.repeat(np.arange(30), weight)
    assert len(repeated) <= 60
    assert shape_of(small(x, y, weight)) == shape_of(small(x[repeated], y[repeated]))
    there = weight > 0
    junk = np.where(there[:, None], x, np.nan)
    assert shape_of(small(x, y, weight)) == shape_of(small(junk, np.where(there, y, 77), weight))
    assert shape_of(small(x, y, 2.5 * weight)) == shape_of(small(x, y, weight))


def test_ties_go_to_the_first_column_and_the_lowest_threshold():
    x, y = draw(n=40)
    mirrored = np.stack([x[:, 1], -x[:, 1], 3 * x[:, 1], x[:, 1]], axis=1)
    assert {f for f, _ in shape_of(small(mirrored, y)) if f >= 0} == {0}
    assert shape_of(small([[0.0], [1.0], [2.0]], [0, 1, 0]))[0] == (0, 0.5)
    # Weights that are no binary fractions: the three columns' sums differ by rounding.
    rng = np.random.default_rng(3)
    for _ in range(5):
        weight = rng.uniform(0.1, 1, 40)
        model = small(mirrored, y, weight)
        assert {f for f, _ in shape_of(model) if f >= 0} == {0}


def test_thresholds_are_midpoints_that_divide():
    # The midpoint of two neighbouring floats is one of them: the lower one must be taken.
    low = np.float32(1)
    high = np.nextafter(low, np.float32(2))
    model = small([[low], [high]], [0, 1])
    assert decision_tree.predict(model, np.tile([[low], [high]], (1, 4))).tolist() == [0, 1]
    huge = small([[-3e38], [3e38]], [0, 1])
    assert float(huge.tree.threshold[0]) == 0


def test_transformations():
    x, y = draw()
    weights = np.random.default_rng(2).integers(0, 3, (3, 60)).astype(np.float32)
    order = decision_tree.presort(x)
    traces = 0

    @jax.jit
    def together(x, y, weights, order):
        nonlocal traces
        traces += 1
        fit = functools.partial(decision_tree.fit, num_classes=3, max_nodes=119)
        return jax.vmap(lambda weight: fit(x, y, sample_weight=weight, order=order))(weights)

    models = together(x, y, weights, order)
    for i, weight in enumerate(weights):
        alone = small(x, y, weight)
        for name in alone.tree._fields:
            if name != "missing":  # that one is learned by `small` only
                ours, theirs = getattr(models.tree, name)[i], getattr(alone.tree, name)
                np.testing.assert_array_equal(ours, theirs)
    x, y = draw(1)
    again = together(x, y, weights, decision_tree.presort(x))
    assert traces == 1
    np.testing.assert_array_equal(again.tree.feature[0], small(x, y, weights[0]).tree.feature)
    # What nobody could look at spoils the answer, and nothing else.
    spoilt = together(x, np.where(np.arange(60) == 7, 5, y), weights, order)
    bad = weights[:, 7] > 0
    assert bad.any()
    predict = jax.vmap(decision_tree.predict, (0, None))
    assert ((np.asarray(predict(spoilt, x)) == -1).all(axis=1) == bad).all()
    nan = np.where(np.arange(60)[:, None] == 7, np.float32(np.nan), x)
    lost = together(nan, y, weights, order)
    assert ((np.asarray(predict(lost, x)) == -1).all(axis=1) == bad).all()
    negative = together(x, y, -weights, order)
    assert (np.asarray(predict(negative, x)) == -1).all()


def test_paths_end_where_rows_stop():
    x, y = draw()
    model = small(x, y)
    path = np.asarray(decision_tree.decision_path(model, x))
    stop = np.asarray(decision_tree.apply(model, x))
    parent = np.asarray(model.tree.parent)
    assert path.shape == (60, int(model.tree.depth.max()) + 1)
    for row, end in zip(path, stop, strict=True):
        way = row[row >= 0]
        assert way[0] == 0
        assert way[-1] == end
        assert (parent[way[1:]] == way[:-1]).all()
        assert (row[len(way) :] == -1).all()
    many = decision_tree.predict(model, x.reshape(3, 20, 4))
    np.testing.assert_array_equal(np.asarray(many).ravel(), decision_tree.predict(model, x))
    assert decision_tree.predict(model, x[5]).shape == ()
    # Values of the nodes are sums over the rows that pass them.
    for node in range(int(model.tree.num_nodes)):
        rows = (path == node).any(axis=1)
        assert model.tree.value[node].tolist() == np.bincount(y[rows], minlength=3).tolist()


def test_argsort_is_stable_with_nan_last():
    rng = np.random.default_rng(0)
    values = rng.integers(-3, 4, 500).astype(np.float32) * rng.choice([1, 1e-30, 1e30], 500)
    values[::17], values[3], values[5] = np.nan, -np.nan, np.inf
    values = (values + np.float32(0)).astype(np.float32)  # no -0.0, which NumPy takes for 0.0
    np.testing.assert_array_equal(
        _order.argsort(jnp.asarray(values)), np.argsort(values, kind="stable")
    )
    assert decision_tree.presort([[3.0, 1.0], [1.0, 2.0]]).tolist() == [[1, 0], [0, 1]]


def test_regression_without_classes():
    # Constant target, and a target far from zero in float32
    x = np.linspace(0, 1, 60, dtype=np.float32)[:, None]
    fit = functools.partial(decision_tree.fit, x, task="regression", max_nodes=6)
    constant = fit(np.full(60, 3.0, np.float32))
    assert shape_of(constant) == [(-1, None)]
    assert float(decision_tree.predict(constant, [0.5])) == 3
    steps = (x[:, 0] > 0.3).astype(np.float32) + (x[:, 0] > 0.7)
    model = fit(1e4 + steps)
    assert [f for f, _ in shape_of(model)] == [0, -1, 0, -1, -1]
    np.testing.assert_allclose(decision_tree.predict(model, x), 1e4 + steps, rtol=1e-6)
    # Six slots have no room for a third question: that node stays a leaf.
    short = fit(steps + 0.1 * (x[:, 0] > 0.9))
    assert len(short.tree.feature) == 6
    assert int(short.tree.num_nodes) == 5
    assert np.square(np.asarray(decision_tree.predict(short, x)) - steps).max() < 0.1**2
    with pytest.raises(ValueError, match='predict_proba needs task="classification"'):
        decision_tree.predict_proba(model, x)


# The melons of the book


@functools.cache
def melon_tree():
    data = melon_demo.melons()
    return decision_tree.fit(data.codes, data.y, method="id3", categorical=range(6))


def melon_c45(x):
    return decision_tree.fit(
        x, melon_demo.melons().y, method="c45", categorical=range(6), num_categories=3, missing=True
    )


def shown(write, model, **options):
    return write(
        model,
        feature_names=NAMES[: len(model.num_categories)],
        class_names=melon_demo.CLASSES,
        category_names=VALUES[: len(model.num_categories)],
        **options,
    )


# Zhou, Machine Learning, figure 4.4. Ties at "clear" (root, navel, touch) and at "slightly curled"
# (colour, touch) go to the first column, as there.
FIGURE = """\
texture 纹理?
├── clear 清晰: root 根蒂?
│   ├── curled 蜷缩: good 好瓜 (5)
│   ├── slightly curled 稍蜷: colour 色泽?
│   │   ├── green 青绿: good 好瓜 (1)
│   │   ├── black 乌黑: touch 触感?
│   │   │   ├── hard smooth 硬滑: good 好瓜 (1)
│   │   │   └── soft sticky 软粘: bad 坏瓜 (1)
│   │   └── white 浅白: good 好瓜 (no rows)
│   └── stiff 硬挺: bad 坏瓜 (1)
├── slightly blurry 稍糊: touch 触感?
│   ├── hard smooth 硬滑: bad 坏瓜 (4)
│   └── soft sticky 软粘: good 好瓜 (1)
└── blurry 模糊: bad 坏瓜 (3)"""


def test_the_melon_tree_is_the_books():
    assert shown(decision_tree.to_text, melon_tree()) == FIGURE


def rate(x, y, categorical):
    """Gain and gain ratio of the best question about each column; -1 where there is none."""
    gains, ratios = [], []
    for j, column in enumerate(x.T):
        values = np.unique(column)
        if j in categorical:
            asked = [[column == v for v in values]]
        else:
            asked = [[column <= t, column > t] for t in (values[1:] + values[:-1]) / 2]
        told = [
            entropy(y) - sum(part.mean() * entropy(y[part]) for part in parts) for parts in asked
        ]
        if len(values) < 2:
            gains.append(-1.0), ratios.append(-1.0)
            continue
        best = int(np.argmax(np.array(told) > max(told) - 1e-9))
        share = np.array([part.mean() for part in asked[best]])
        gains.append(told[best])
        ratios.append(told[best] / -(share * np.log2(share)).sum())
    return np.array(gains), np.array(ratios)


def test_every_question_about_melons_is_the_best():
    data = melon_demo.melons()
    numbers = np.concatenate([data.codes.astype(np.float32), data.numbers], axis=1)
    for x, method in ((data.codes.astype(np.float32), "id3"), (numbers, "c45")):
        model = melon_tree() if method == "id3" else melon_c45(x)
        tree = jax.tree.map(np.asarray, model.tree)
        path = np.asarray(decision_tree.decision_path(model, x))
        asked = np.flatnonzero(tree.feature >= 0)
        assert len(asked) > 3
        for node in asked:
            rows = (path == node).any(axis=1)
            gains, ratios = rate(x[rows], data.y[rows], range(6))
            able = gains >= 0
            mean = gains[able].mean()  # C4.5 compares the columns whose gain is not below it
            score = gains if method == "id3" else np.where(gains >= mean - 1e-6, ratios, -1.0)
            best = int(np.argmax(score > score.max() - 1e-6))  # the first of those that are best
            assert tree.feature[node] == best
            np.testing.assert_allclose(tree.gain[node], score[best], rtol=1e-4)  # float32


def test_a_category_without_rows_gets_the_majority_of_its_parent():
    model = melon_tree()
    # Clear, slightly curled, white: no such melon. Green and black are good 2 : 1.
    white = np.array([[2.0, 1.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
    node = int(decision_tree.apply(model, white)[0])
    assert int(model.tree.feature[node]) == 0  # it stops where colour is asked
    assert model.tree.value[node].tolist() == [2, 1]
    assert decision_tree.predict(model, white).tolist() == [0]
    # A code that no melon has is answered in the same way, at the root here: 8 good, 9 bad.
    assert decision_tree.predict(model, white + np.float32([[0, 0, 0, 7, 0, 0]])).tolist() == [1]


# Categories and missing values against all that is possible


def gini_gain(y, left, weight=None):
    weight = np.ones(len(y)) if weight is None else weight

    def amount(rows):
        total = weight[rows].sum()
        share = np.array([weight[rows & (y == k)].sum() for k in range(y.max() + 1)]) / total
        return total * (1 - (share**2).sum())

    every = np.ones(len(y), bool)
    return (amount(every) - amount(left) - amount(~left)) / weight.sum()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000))
def test_no_set_of_categories_is_better(seed):
    rng = np.random.default_rng(seed)
    code = rng.integers(0, 5, 60)
    y = (rng.random(60) < rng.random(5)[code]).astype(np.int32)
    y[:2] = 0, 1
    code[:2] = 0, 1
    model = decision_tree.fit(
        code[:, None], y, categorical=(0,), num_categories=5, max_depth=1, num_classes=2
    )
    sets = [np.isin(code, s) for r in range(1, 5) for s in itertools.combinations(range(5), r)]
    best = max(gini_gain(y, left) for left in sets if 0 < left.sum() < 60)
    np.testing.assert_allclose(model.tree.gain[0], best, rtol=1e-4, atol=1e-6)
    there = np.unique(code)
    assert (np.asarray(model.tree.branch)[0, there] >= 0).all()


def test_no_set_of_categories_is_better_in_regression():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        code = rng.integers(0, 5, 60)
        y = rng.normal(size=5)[code] + rng.normal(size=60)
        model = decision_tree.fit(
            code[:, None], y.astype(np.float32), task="regression", categorical=(0,),
            num_categories=5, max_depth=1,
        )  # fmt: skip
        sets = [np.isin(code, s) for r in range(1, 5) for s in itertools.combinations(range(5), r)]
        best = max(
            y.var() - left.mean() * y[left].var() - (~left).mean() * y[~left].var()
            for left in sets
            if 0 < left.sum() < 60
        )
        np.testing.assert_allclose(model.tree.gain[0], best, rtol=1e-4)


def test_missing_values_learn_their_side():
    learned = 0
    for seed in range(6):
        x, y = draw(seed, k=2)
        rng = np.random.default_rng(seed)
        lost = rng.random(x.shape) < 0.3
        lost[:, 0] |= (y == 1) & (rng.random(60) < 0.5)  # a value may be missing for a reason
        x[lost] = np.nan
        model = small(x, y, min_samples_leaf=2)
        tree = jax.tree.map(np.asarray, model.tree)
        path = np.asarray(decision_tree.decision_path(model, x))
        for node in np.flatnonzero(tree.feature >= 0):
            rows = (path == node).any(axis=1)
            # The peer tries both sides as well, and "known or not".
            stump = DecisionTreeClassifier(max_depth=1, min_samples_leaf=2).fit(x[rows], y[rows])
            share = stump.tree_.weighted_n_node_samples / rows.sum()
            best = stump.tree_.impurity[0] - (share * stump.tree_.impurity)[1:].sum()
            np.testing.assert_allclose(tree.gain[node], best, rtol=1e-4, atol=1e-6)  # float32
            # Where no value was missing, the heavier branch is taken.
            if np.isnan(x[rows, tree.feature[node]]).any():
                learned += 1
            else:
                weight = tree.weight[tree.children[node]]
                assert weight[tree.missing[node]] == weight.max()
        np.testing.assert_array_equal(
            np.asarray(model.tree.value)[path.max(axis=1)].argmax(axis=1),
            decision_tree.predict(model, x),
        )
    assert learned > 20


def test_missing_categories_and_numbers_together():
    data = melon_demo.melons()
    x = np.concatenate([data.codes.astype(np.float32), data.numbers], axis=1)
    x[[2, 4], 6], x[5, 0], x[[0, 8], 3] = np.nan, np.nan, np.nan
    model = melon_c45(x)
    assert decision_tree.predict(model, x).tolist() == data.y.tolist()
    tree = jax.tree.map(np.asarray, model.tree)
    path = np.asarray(decision_tree.decision_path(model, x))
    for node in np.flatnonzero(tree.feature >= 0):
        rows = (path == node).any(axis=1)
        # The stored ratio is that of the branches that the rows, with the missing ones, took.
        y = data.y[rows]
        child = path[rows, tree.depth[node] + 1]
        parts = [child == c for c in np.unique(child)]
        gain = entropy(y) - sum(part.mean() * entropy(y[part]) for part in parts)
        value = gain / entropy(np.searchsorted(np.unique(child), child))
        np.testing.assert_allclose(tree.gain[node], value, rtol=1e-4)


# For people


def test_text_of_bounds_and_weights():
    model = small([[1.0], [2.0], [3.0], [3.0]], [0, 0, 1, 2], np.array([1, 0.5, 1, 2]))
    text = decision_tree.to_text(model, feature_names=["a", "b", "c", "d"], class_names="RGB")
    assert text == "a <= 2.5?\n├── yes: R (1.5)\n└── no | missing: B (2 of 3)"
    top = decision_tree.to_text(model, max_depth=0)
    assert top == "... 2 (2 of 4.5)"
    with pytest.raises(ValueError, match="feature_names must have 4 names, got 1"):
        decision_tree.to_text(model, feature_names=["a"])
    with pytest.raises(ValueError, match="must be one concrete tree"):
        decision_tree.to_text(jax.tree.map(lambda leaf: leaf[None], model))


def test_graphviz_is_well_formed():
    lines = shown(decision_tree.to_graphviz, melon_tree()).splitlines()
    nodes = [line for line in lines if re.fullmatch(r'  \d+ \[label="[^"]+".*\];', line)]
    edges = [line for line in lines if re.fullmatch(r'  \d+ -> \d+ \[label="[^"]+"\];', line)]
    assert lines[0] == "digraph tree {"
    assert lines[-1] == "}"
    assert len(nodes) == len(edges) + 1 == 14
    assert len(lines) == len(nodes) + len(edges) + 4
    quoted = decision_tree.to_graphviz(small([[0.0], [1.0]], [0, 1]), class_names=['"', "\\", "c"])
    assert r'label="\" (1)"' in quoted
    assert r'label="\\ (1)"' in quoted


def test_the_picture_has_every_box_and_no_overlap():
    picture = shown(decision_tree.to_svg, melon_tree(), title="Melons & <tree>")
    root = ElementTree.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    assert root.get("aria-label") == "Melons & <tree>"
    boxes = [
        tuple(float(rect.get(key)) for key in ("x", "y", "width", "height"))
        for rect in root.iter(f"{space}rect")
    ]
    assert len(boxes) == 14
    width, height = float(root.get("width")), float(root.get("height"))
    for i, (x, y, w, h) in enumerate(boxes):
        assert x >= -2
        assert x + w <= width
        assert y + h <= height
        for x2, y2, w2, _ in boxes[:i]:
            assert y != y2 or x + w < x2 or x2 + w2 < x
    texts = [text.text for text in root.iter(f"{space}text")]
    assert "good 好瓜 (no rows)" in texts
    assert "currentColor" in picture
    ink = set(re.findall(r'(?:fill|stroke)="([^"]*)"', picture))
    assert ink == {"currentColor", "none", "#0072B2", "#D55E00"}  # text follows the page


def test_the_page_shows_this_picture():
    title = "The tree that ID3 grows from seventeen melons"
    assert shown(decision_tree.to_svg, melon_tree(), title=title) in PAGE.read_text("utf-8")


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "ranking"}, ValueError, "task must be one of 'classification', 'regression'"),
        ({"method": "c5"}, ValueError, "method must be one of 'cart', 'id3', 'c45'"),
        ({"task": "regression", "method": "id3"}, ValueError, "for task=\"regression\", must be"),
        ({"criterion": "error"}, ValueError, "criterion must be one of None, 'gini', 'entropy'"),
        ({"method": "c45", "criterion": "gini"}, ValueError, 'for method="c45", must be one of'),
        ({"max_depth": -1}, ValueError, "max_depth must be in [0,"),
        ({"max_depth": 2.5}, TypeError, "max_depth must be an integer"),
        ({"max_leaves": 0}, ValueError, "max_leaves must be in [1,"),
        ({"min_samples_leaf": 0}, ValueError, "min_samples_leaf must be in [1,"),
        ({"min_gain": -0.1}, ValueError, "min_gain must not be negative, got -0.1"),
        ({"max_nodes": 0}, ValueError, "max_nodes must be at least 1"),
        ({"num_classes": 2}, ValueError, "y must be in 0..1 (2 classes), got 2"),
        ({"sample_weight": -np.ones(60)}, ValueError, "sample_weight must not be negative"),
        ({"sample_weight": np.zeros(60)}, ValueError, "sample_weight must be positive for at"),
        ({"sample_weight": np.ones(5)}, ValueError, "must have as many rows"),
        ({"order": np.zeros((4, 5), int)}, ValueError, "order must have shape (4, 60)"),
        ({"categorical": (4,)}, ValueError, "categorical must be different columns in 0..3"),
        ({"categorical": (0,)}, ValueError, "x must hold codes 0.."),
        ({"categorical": (0,), "num_categories": (2, 3)}, ValueError, "as many entries as categ"),
        ({"y": np.zeros(60)}, TypeError, "y must be an integer array"),
        ({"y": np.full(60, np.nan), "task": "regression"}, ValueError, "y must be finite, got nan"),
        ({"x": np.zeros(60)}, ValueError, "x must be 2-D"),
        ({"x": np.zeros((0, 4)), "y": np.zeros(0, int)}, ValueError, "x must not be empty"),
        ({"x": np.full((60, 4), np.inf)}, ValueError, "x must be finite, got inf in row 0"),
        ({"x": np.full((60, 4), np.nan)}, ValueError, "row 0, column 0: pass missing=True"),
        ({"x": np.full((60, 4), np.inf), "missing": True}, ValueError, "x must be finite, got inf"),
    ],
)  # fmt: skip
def test_bad_input(options, error, message):
    x, y = draw()
    arguments = {"x": x, "y": y} | options
    with pytest.raises(error, match=re.escape(message)):
        decision_tree.fit(**arguments)


def test_a_tree_that_cannot_fit_is_not_tried():
    x, y = draw()
    with pytest.raises(ValueError, match=r"needs about .* GB, more than the .* smaller max_depth"):
        decision_tree.fit(x, y, max_nodes=10**12)
    codes = np.zeros((60, 4), np.float32)
    with pytest.raises(ValueError, match="with up to 2000000000 categories needs about"):
        decision_tree.fit(codes, y, method="id3", categorical=(0,), num_categories=2_000_000_000)
    # A depth is no danger by itself: there are never more nodes than rows allow.
    shape = jax.eval_shape(
        functools.partial(decision_tree.fit, num_classes=3, max_depth=10**6), x, y
    )
    assert shape.tree.feature.shape == (119,)


def test_bad_use_of_a_model():
    x, y = draw()
    model = small(x, y)
    with pytest.raises(ValueError, match="x must have 4 features in its last axis"):
        decision_tree.predict(model, x[:, :2])
    known = dataclasses.replace(model, missing=False)
    with pytest.raises(ValueError, match="fitted without missing=True"):
        decision_tree.predict(known, np.full((60, 4), np.nan, np.float32))
    with pytest.raises(ValueError, match="num_classes must be given where y"):
        jax.eval_shape(decision_tree.fit, x, y)
    with pytest.raises(ValueError, match="num_categories must be given where"):
        jax.eval_shape(functools.partial(decision_tree.fit, num_classes=3, categorical=(0,)), x, y)
    # A traced NaN stops where it is asked about.
    blind = known.tree._replace(missing=jnp.full_like(model.tree.missing, -1))
    stop = jax.jit(decision_tree.apply)(dataclasses.replace(known, tree=blind), x * jnp.nan)
    assert (np.asarray(stop) == 0).all()


def test_the_way_of_a_row_ends_in_any_arrays():
    model = decision_tree.fit(np.arange(4.0)[:, None], [0, 0, 1, 1])
    zeros = jax.tree.map(jnp.zeros_like, model)  # node 0 is its own child
    assert (np.asarray(decision_tree.apply(zeros, np.arange(4.0)[:, None])) == 0).all()


# Cutting


def test_cut_keeps_the_order_of_nodes():
    x, y = draw()
    whole = small(x, y).tree
    keep = np.asarray(whole.depth) < 3
    got, expected = jax.jit(_grow.cut)(whole, keep), small(x, y, max_depth=3).tree
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# The page


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_deep_trees_over_fit_and_greed_costs(result):
    train, held_out = 100 * result.error.T
    assert train[-1] < 0.1  # the whole tree has learned every training row
    assert (np.diff(train) <= 1e-4).all()
    # The best depth is a small one, and what is added later does not help on held-out rows.
    best = int(np.argmin(held_out))
    assert best + 1 <= 5
    assert held_out[-1] > held_out[best]
    assert held_out[0] > held_out[best] + 1
    np.testing.assert_allclose(result.importance.sum(), 1, rtol=1e-5)
    assert (result.roots > 0).sum() >= 3  # another half, another first question
    assert result.greedy == (4, 4, 0)
    assert result.optimal == (4, 0)
    assert result.leaves[0] <= 2**demo.DEPTH < result.leaves[1]


def test_the_chessboard_needs_eight_leaves():
    board, label = demo.chessboard()
    tree = small(board, label).tree
    assert int(tree.feature[0]) == 2
    assert int(((tree.depth >= 0) & (tree.feature < 0)).sum()) == 8


def test_the_demo_draws(result):
    import matplotlib.pyplot as plt

    tables = demo.tables(result)
    assert all(len({tuple(row) for row in rows}) == 1 for rows in tables.values())
    demo.plot(result)
    plt.close("all")
