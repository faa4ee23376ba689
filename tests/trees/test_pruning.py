"""Pruning against the book's melons, scikit-learn's path, and all subtrees there are."""

import dataclasses
import functools
import itertools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from mlnotes_jax.data import datasets
from mlnotes_jax.demos.trees import pruning as demo
from mlnotes_jax.generalization import cross_validation, metrics
from mlnotes_jax.trees import _tree, decision_tree, pruning

SETS = ("iris", "wine", "breast_cancer", "digits", "diabetes")


def peer_of(task, **options):
    kind = DecisionTreeRegressor if task == "regression" else DecisionTreeClassifier
    return kind(random_state=0, **options)


def from_peer(peer, num_features, slots=None, outputs=0):
    """scikit-learn's tree as ours, breadth first, so that both prune the very same tree."""
    t = peer.tree_
    regression = isinstance(peer, DecisionTreeRegressor)
    order = [0]
    for node in order:
        if t.children_left[node] >= 0:
            order += [t.children_left[node], t.children_right[node]]
    place = np.full(t.node_count + 1, -1)
    place[order] = np.arange(t.node_count)
    children = place[np.stack([t.children_left, t.children_right], axis=1)[order]]
    inner = children[:, 0] >= 0
    parent, depth = np.full(len(order), -1), np.zeros(len(order), int)
    for i in np.flatnonzero(inner):
        parent[children[i]], depth[children[i]] = i, depth[i] + 1
    weight = t.weighted_n_node_samples[order]
    value = t.value[order, 0] * (1 if regression else weight[:, None])
    if not regression:  # classes that never occur
        value = np.pad(value, ((0, 0), (0, max(0, outputs - value.shape[1]))))
    slots = t.node_count + 3 if slots is None else slots  # some slots are not in use

    def put(values, fill, dtype):
        out = np.full((slots, *np.shape(values)[1:]), fill, dtype)
        out[: len(order)] = values
        return jnp.asarray(out)

    real = np.float64 if jax.config.jax_enable_x64 else np.float32
    tree = _tree.Tree(
        feature=put(np.where(inner, t.feature[order], -1), -1, np.int32),
        threshold=put(np.where(inner, t.threshold[order], np.nan), np.nan, real),
        branch=jnp.zeros((slots, 0), np.int32),
        children=put(children, -1, np.int32),
        missing=jnp.full(slots, -1, np.int32),
        parent=put(parent, -1, np.int32),
        depth=put(depth, -1, np.int32),
        value=put(value, 0, real),
        weight=put(weight, 0, real),
        impurity=put(t.impurity[order], 0, real),
        gain=put(inner, 0, real),
        num_nodes=jnp.int32(t.node_count),
    )
    task = "regression" if regression else "classification"
    return decision_tree.DecisionTree(
        tree, task, "cart", "variance" if regression else "gini", (0,) * num_features, False
    )


def grown(task="classification", seed=0, n=60, **options):
    """A small tree of noisy rows, and rows that it has not seen; one shape for all seeds."""
    rng = np.random.default_rng(seed)
    real = np.float64 if jax.config.jax_enable_x64 else np.float32
    x = rng.normal(size=(2 * n, 3)).astype(np.float32).astype(real)
    signal = (x[:, 0] + 0.5 * x[:, 1] + rng.normal(size=2 * n)).astype(real)
    y = signal if task == "regression" else np.digitize(signal, [-0.6, 0.6])
    peer = peer_of(task, max_leaf_nodes=7, **options).fit(x[:n], y[:n])
    return from_peer(peer, 3, slots=15), x[n:], y[n:]


def nested(model, node=0):
    """The tree as (feature, branch, branch, ...); a leaf is its answer."""
    t = jax.tree.map(np.asarray, model.tree)
    if t.feature[node] < 0:
        return int(t.value[node].argmax())
    return (int(t.feature[node]), *(nested(model, c) for c in t.children[node] if c >= 0))


def consistent(model):
    """Used slots are a tree in breadth-first order, the others are blank."""
    t = jax.tree.map(np.asarray, model.tree)
    k = int(t.num_nodes)
    assert (t.depth[:k] >= 0).all()
    assert (np.diff(t.depth[:k]) >= 0).all()
    below = t.children[:k][t.children[:k] >= 0]
    np.testing.assert_array_equal(below, np.arange(1, k))
    inner = t.feature[:k] >= 0
    assert ((t.children[:k] >= 0).any(axis=1) == inner).all()
    for node in np.flatnonzero(inner):
        assert (t.parent[t.children[node][t.children[node] >= 0]] == node).all()
    for values, blank in ((t.feature, -1), (t.children, -1), (t.parent, -1), (t.depth, -1)):
        assert (values[k:] == blank).all()


# The book's melons


@pytest.fixture(scope="module")
def melons():
    return demo.melon_trees()


def test_the_trees_of_the_book(melons):
    good, bad = 0, 1
    navel, colour, root, texture = range(4)  # the columns, navel first; texture is 4 there
    names = [demo.ORDER.index(name) for name in ("navel", "colour", "root", "texture")]
    navel, colour, root, texture = names
    # Figure 4.5. Values without training rows have no branch: the node itself answers, good.
    sunken = (colour, good, good, bad)
    slightly = (root, bad, (colour, good, (texture, bad, good)))
    assert nested(melons.models["unpruned"]) == (navel, sunken, slightly, bad)
    # Figure 4.6
    assert nested(melons.models["pre-pruned"]) == (navel, good, good, bad)
    # Figure 4.7: texture was cut, and colour under "sunken"
    kept = (root, bad, (colour, good, good))
    assert nested(melons.models["ties kept"]) == (navel, good, kept, bad)
    # Quinlan cuts ties, too
    assert nested(melons.models["ties cut"]) == (navel, good, good, bad)
    # 42.9 % and 71.4 % of seven melons
    right = {name: round(7 * accuracy) for name, accuracy in melons.accuracy.items()}
    assert right == {"unpruned": 3, "pre-pruned": 5, "ties kept": 5, "ties cut": 5}
    for model in melons.models.values():
        consistent(model)


def test_the_numbers_of_the_book(melons):
    # Section 4.3: right answers of seven, with a node as a leaf, and with its question
    errors = jax.tree.map(np.asarray, melons.errors)
    tree = melons.models["unpruned"].tree
    sunken, slightly, _ = (int(c) for c in tree.children[0])
    assert 7 - errors.leaf[0] == 3  # 42.9 %: all are good
    assert 7 - errors.split[0] == 5  # 71.4 %: by the navel
    assert 5 - (errors.split[sunken] - errors.leaf[sunken]) == 4  # 57.1 %: then by colour
    assert errors.split[slightly] == errors.leaf[slightly]  # 71.4 % with root and without
    assert 7 - errors.branch[0] == 3  # 42.9 %: the whole tree
    # From the leaves on: texture raises it to 57.1 %, colour above it does not change it, colour
    # under "sunken" raises it to 71.4 %.
    lower = int(tree.children[slightly][1])
    texture = int(tree.children[lower][1])
    assert errors.branch[texture] - errors.leaf[texture] == 1
    assert errors.split[lower] == errors.leaf[lower]
    assert errors.branch[sunken] - errors.leaf[sunken] == 1
    # Below the navel the melons tie; so do colour and navel at the root.
    gains = melons.root_gains
    assert gains["colour"] == pytest.approx(gains["navel"], abs=1e-6)
    assert gains["colour"] == max(gains.values())


# Peers


@pytest.mark.parametrize("name", SETS)
def test_path_equals_scikit_learn(name, x64):
    data = datasets.load(name)
    x, task = data.x.astype(float), "regression" if name == "diabetes" else "classification"
    peer = peer_of(task).fit(x, data.y)
    model = from_peer(peer, x.shape[1], slots=870, outputs=10)  # few shapes, few programs
    path = pruning.cost_complexity_path(model)
    k = int(path.num_steps)
    alphas, risks = np.asarray(path.alphas)[:k], np.asarray(path.risks)[:k]
    theirs = peer.cost_complexity_pruning_path(x, data.y)
    # The peer cuts links that tie one by one: the last of each group is ours. Two alphas tie if
    # they differ by rounding; the next smallest relative difference in these sets is 1e-6.
    ends = np.append(np.diff(theirs.ccp_alphas) > 1e-9 * theirs.ccp_alphas[1:], True)
    # The peer subtracts numbers of the size of the root's impurity: 1e-13 of that is left of it.
    size = theirs.impurities[-1]
    np.testing.assert_allclose(alphas, theirs.ccp_alphas[ends], rtol=1e-9, atol=1e-13 * size)
    np.testing.assert_allclose(risks, theirs.impurities[ends], rtol=1e-9, atol=1e-13 * size)
    assert (np.diff(alphas) > 0).all()
    assert (np.diff(path.num_leaves[:k]) < 0).all()
    assert path.num_leaves[0] == pruning.num_leaves(model)
    # Subtrees between the changes: sizes, and answers
    between = np.append((alphas[1:] + alphas[:-1]) / 2, 2 * alphas[-1])
    for i in np.unique(np.linspace(0, k - 1, 5).astype(int)):
        smaller = peer_of(task, ccp_alpha=between[i]).fit(x, data.y)
        ours = pruning.subtree(model, path, between[i])
        sizes = int(path.num_leaves[i]), int(pruning.num_leaves(ours))
        assert sizes == (smaller.get_n_leaves(),) * 2
        consistent(ours)
        if name in ("wine", "diabetes"):
            answer = decision_tree.predict(ours, x)
            np.testing.assert_allclose(answer, smaller.predict(x), rtol=1e-12)
    # After the last step the root alone is repeated.
    assert (path.num_leaves[k - 1 :] == 1).all()
    assert (path.alphas[k - 1 :] == alphas[-1]).all()


def test_a_fit_with_a_price_equals_the_peers():
    data = datasets.load("iris")
    weight = np.random.default_rng(0).integers(1, 4, len(data.y)).astype(np.float32)
    prices = np.array([0.0, 0.004, 0.02, 0.3])
    models = pruning.fit(data.x, data.y, alpha=prices, sample_weight=weight, num_classes=3)
    for i, price in enumerate(prices):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], models)
        peer = peer_of("classification", ccp_alpha=price).fit(data.x, data.y, sample_weight=weight)
        assert int(pruning.num_leaves(models)[i]) == peer.get_n_leaves()
        # Shares of whole numbers, in float32
        ours = decision_tree.predict_proba(one, data.x)
        np.testing.assert_allclose(ours, peer.predict_proba(data.x), rtol=1e-6)


def test_cross_validation_chooses_a_price():
    data = datasets.load("iris")
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    folds = cross_validation.stratified_k_fold(jax.random.key(0), data.y, num_folds=5)
    prices = jnp.array([0.5, 0.05, 0.01, 0.0])
    found = cross_validation.evaluate(
        functools.partial(pruning.fit, num_classes=3),
        decision_tree.predict,
        metrics.accuracy,
        x,
        y,
        folds=folds,
        settings={"alpha": prices},
        path=True,
    )
    scores = np.asarray(found.test_score)
    for k in range(5):
        train = (folds != k).astype(jnp.float32)
        model = decision_tree.fit(x, y, sample_weight=train, num_classes=3)
        path = pruning.cost_complexity_path(model)
        errors = pruning.path_errors(model, path, x, y, alphas=prices, sample_weight=1 - train)
        np.testing.assert_allclose(scores[:, k], 1 - errors, atol=1e-6)
    assert cross_validation.select(found) in (1, 2, 3)
    assert scores[0].mean() < 0.5 < scores[1].mean()


# All subtrees there are


def subtrees(t, node=0):
    """Every subtree, as the tuple of nodes that keep their question."""
    yield ()
    if t.feature[node] >= 0:
        for parts in itertools.product(*(list(subtrees(t, c)) for c in t.children[node])):
            yield (node, *sum(parts, ()))


def leaves_of(t, kept, node=0):
    if node not in kept:
        return [node]
    return [leaf for child in t.children[node] for leaf in leaves_of(t, kept, child)]


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["classification", "regression"]),
    st.floats(0, 0.2),
    st.sampled_from(["impurity", "error"]),
)
def test_no_subtree_is_better(seed, task, alpha, risk):
    with jax.enable_x64(True):
        model, x, y = grown(task, seed)
        t = jax.tree.map(np.asarray, model.tree)
        risk = "impurity" if task == "regression" else risk
        lost = t.weight * t.impurity if risk == "impurity" else t.weight - t.value.max(axis=1)
        lost = lost / t.weight[0]
        path = pruning.cost_complexity_path(model, risk=risk)
        assume(np.abs(path.alphas - alpha).min() > 1e-9)  # not a tie, which rounding would decide
        found = pruning.subtree(model, path, alpha)
        every = [leaves_of(t, kept) for kept in subtrees(t)]
        costs = np.array([lost[leaves].sum() + alpha * len(leaves) for leaves in every])
        best = costs <= costs.min() + 1e-12  # float64, sums of seven terms
        assert pruning.num_leaves(found) == min(len(every[i]) for i in np.flatnonzero(best))
        # Reduced error: the lowest held-out error there is, in the smallest tree
        errors = jax.tree.map(np.asarray, pruning.node_errors(model, x, y))
        wrong = np.array([errors.leaf[leaves].sum() for leaves in every])
        least = wrong <= wrong.min() + 1e-12 * errors.leaf[0]
        for ties, pick in (("cut", min), ("keep", max)):
            smaller = pruning.reduced_error(model, x, y, ties=ties)
            consistent(smaller)
            sizes = [len(every[i]) for i in np.flatnonzero(least)]
            assert pruning.num_leaves(smaller) == pick(sizes)
            answer = np.asarray(decision_tree.predict(smaller, x))
            rows = answer != y if task == "classification" else (answer - y) ** 2
            np.testing.assert_allclose(rows.sum(), wrong.min(), rtol=1e-10)

        # Pre-pruning, as if grown: ask, look, go on
        def grow(node):
            left = t.children[node]
            asked = t.feature[node] >= 0
            if not asked or errors.leaf[left].sum() >= errors.leaf[node] * (1 - 1e-12):
                return [node]
            return grow(left[0]) + grow(left[1])

        assert pruning.num_leaves(pruning.pre_prune(model, x, y)) == len(grow(0))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_errors_of_the_path_are_those_of_its_subtrees(task):
    model, x, y = grown(task, 3)
    weight = np.random.default_rng(1).integers(0, 3, len(y)).astype(np.float32)
    path = pruning.cost_complexity_path(model)
    errors = np.asarray(pruning.path_errors(model, path, x, y, sample_weight=weight))
    trees = jax.jit(jax.vmap(lambda alpha: pruning.subtree(model, path, alpha)))(path.alphas)
    answers = np.asarray(jax.vmap(decision_tree.predict, (0, None))(trees, jnp.asarray(x)))
    rows = answers != y if task == "classification" else (answers - y) ** 2
    # Sums of 60 terms in float32
    np.testing.assert_allclose(errors, rows @ weight / weight.sum(), rtol=1e-5, atol=1e-6)
    best = float(pruning.best_alpha(path, errors))
    k = int(np.flatnonzero(errors == errors.min())[-1])
    if k < int(path.num_steps) - 1:
        assert path.alphas[k] <= best < path.alphas[k + 1]
    else:
        assert best == path.alphas[k]


# Rows that do not count, branches that are not there, many prunings at once


def test_transformations():
    model, x, y = grown(seed=5)
    x, y = jnp.asarray(x), jnp.asarray(y)
    weights = np.random.default_rng(2).integers(0, 3, (4, len(y))).astype(np.float32)
    alphas = np.array([0.0, 0.01, 0.05, 1.0], np.float32)
    traces = 0

    def prune(model, weight, alpha):
        nonlocal traces
        traces += 1
        path = pruning.cost_complexity_path(model)
        return (
            pruning.reduced_error(model, x, y, sample_weight=weight),
            pruning.pre_prune(model, x, y, sample_weight=weight),
            pruning.subtree(model, path, alpha),
            pruning.path_errors(model, path, x, y, sample_weight=weight),
        )

    together = jax.jit(jax.vmap(prune, (None, 0, 0)))
    first = together(model, weights, alphas)
    again = together(model, weights[::-1], alphas[::-1])
    assert traces == 1
    for i in range(4):
        alone = prune(model, weights[i], alphas[i])
        for found, at in ((first, i), (again, 3 - i)):
            jax.tree.map(
                lambda a, b, at=at: np.testing.assert_allclose(a[at], b, rtol=1e-6), found, alone
            )
    # A weight of 2 is the row twice, a row of weight 0 may hold anything.
    weight = weights[1]
    junk_x = jnp.where(weight[:, None] > 0, x, jnp.nan)
    junk_y = jnp.where(weight > 0, y, -9)
    ours = pruning.node_errors(model, junk_x, junk_y, sample_weight=weight)
    twice = np.repeat(np.arange(len(y)), weight.astype(int))
    repeated = pruning.node_errors(model, x[twice], y[twice])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, repeated)


def test_a_value_without_a_branch_counts_alike_with_and_without_the_question(melons):
    model = melons.models["unpruned"]
    t = model.tree
    stiff = np.full((1, 6), np.nan, np.float32)
    stiff[0, demo.ORDER.index("navel")] = 1  # slightly sunken
    stiff[0, demo.ORDER.index("root")] = 2  # stiff: no training melon was, there
    known = dataclasses.replace(model, missing=True)  # the other columns are not known
    node = int(t.children[0][1])
    assert t.branch[node][2] == -1
    errors = jax.tree.map(np.asarray, pruning.node_errors(known, stiff, [1]))
    for part in (errors.leaf, errors.split, errors.branch):
        assert part[node] == 1  # good melons and bad ones tie there, and good is the answer
    assert errors.weight.sum() == 2  # the root and the node


def test_noise_is_cut_away():
    # Classes are coin flips: every question is noise, and all rules should come near the root.
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(200, 3)), rng.integers(0, 2, 200)
    peer = peer_of("classification").fit(x[:100], y[:100])
    model = from_peer(peer, 3)
    assert pruning.num_leaves(model) > 20
    held_out = x[100:].astype(np.float32), y[100:]
    assert pruning.num_leaves(pruning.reduced_error(model, *held_out)) < 10
    assert pruning.num_leaves(pruning.pre_prune(model, *held_out)) < 5
    path = pruning.cost_complexity_path(model)
    fewest = pruning.subtree(model, path, 1.0)
    assert pruning.num_leaves(fewest) == 1
    assert fewest.tree.num_nodes == 1


X, Y = np.zeros((2, 3), np.float32), np.zeros(2, int)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, p: pruning.num_leaves(p), TypeError, "model must be a DecisionTree, got Path"),
        (
            lambda m, p: pruning.cost_complexity_path(jax.tree.map(lambda a: a[None], m)),
            ValueError,
            "model must hold one tree, got (1,): use jax.vmap",
        ),
        (
            lambda m, p: pruning.cost_complexity_path(m, risk="loss"),
            ValueError,
            "risk must be one of 'impurity', 'error', got 'loss'",
        ),
        (
            lambda m, p: pruning.cost_complexity_path(
                dataclasses.replace(m, task="regression"), risk="error"
            ),
            ValueError,
            "risk must be 'impurity' for regression",
        ),
        (lambda m, p: pruning.subtree(m, p, -0.1), ValueError, "alpha must not be negative"),
        (lambda m, p: pruning.subtree(m, p, [0.1]), ValueError, "alpha must be 0-D, got shape"),
        (
            lambda m, p: pruning.subtree(m, p._replace(collapse=p.collapse[:3]), 0.1),
            ValueError,
            "path must be of the same tree as model (15 slots), got 3",
        ),
        (lambda m, p: pruning.best_alpha(p, [0.1]), ValueError, "errors and alphas must have one"),
        (
            lambda m, p: pruning.reduced_error(m, X, Y, ties="maybe"),
            ValueError,
            "ties must be one of 'cut', 'keep', got 'maybe'",
        ),
        (lambda m, p: pruning.pre_prune(m, X[:, :2], Y), ValueError, "x must have 3 columns, got"),
        (lambda m, p: pruning.pre_prune(m, X[:0], Y[:0]), ValueError, "x must not be empty"),
        (lambda m, p: pruning.pre_prune(m, X, Y[:1]), ValueError, "x and y must have as many rows"),
        (lambda m, p: pruning.pre_prune(m, X, Y + 3), ValueError, "y must be in 0..2 (3 classes)"),
        (lambda m, p: pruning.pre_prune(m, X, Y + 0.5), TypeError, "y must be an integer array"),
        (lambda m, p: pruning.pre_prune(m, X + np.nan, Y), ValueError, "x must be finite, got nan"),
        (
            lambda m, p: pruning.pre_prune(m, X, Y, sample_weight=[-1.0, 1.0]),
            ValueError,
            "sample_weight must not be negative",
        ),
        (
            lambda m, p: pruning.pre_prune(m, X, Y, sample_weight=[0.0, 0.0]),
            ValueError,
            "sample_weight must be positive for at least one row",
        ),
        (
            lambda m, p: pruning.node_errors(
                dataclasses.replace(m, task="regression"), X, [np.nan, 0.0]
            ),
            ValueError,
            "y must be finite, got nan in row 0",
        ),
    ],
)
def test_bad_input(call, error, message):
    model, *_ = grown(seed=5)
    path = pruning.cost_complexity_path(model)
    with pytest.raises(error, match=re.escape(message)):
        call(model, path)


# The page


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_pruned_trees_are_smaller_and_better(result):
    for name, found in result.comparisons.items():
        leaves, error = found.num_leaves.mean(axis=0), found.error.mean(axis=0)
        whole = demo.RULES.index("unpruned")
        for rule in demo.RULES[1:]:
            assert leaves[demo.RULES.index(rule)] < leaves[whole] / 2
        if name == "diabetes":  # much noise
            assert (error[1:] < 0.85 * error[whole]).all()
    tables = demo.tables(result)
    assert all(len({tuple(row) for row in rows}) == 1 for rows in tables.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demo.plot(result)
    import matplotlib.pyplot as plt

    plt.close("all")
