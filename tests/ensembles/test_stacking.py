"""Stacking against scikit-learn with the same folds, and against its own definition."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import StackingClassifier, StackingRegressor
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.naive_bayes import GaussianNB

from mlnotes_jax.classification import gaussian, logistic_regression
from mlnotes_jax.data import datasets, scaling
from mlnotes_jax.demos.ensembles import stacking as demo
from mlnotes_jax.ensembles import stacking
from mlnotes_jax.foundations import linear_regression
from mlnotes_jax.generalization import cross_validation, metrics
from mlnotes_jax.trees import decision_tree


def ridge(penalty):
    fit = functools.partial(linear_regression.fit, ridge=penalty)
    return stacking.Learner(fit, linear_regression.predict)


def bayes(covariance, k):
    fit = functools.partial(gaussian.fit, covariance=covariance, num_classes=k)
    return stacking.Learner(fit, gaussian.predict_proba)


LINES = {"line": ridge(0.0), "ridge": ridge(300.0)}
META = ridge(1.0)
MEAN = stacking.Learner(lambda x, y: y.mean(), lambda mean, x: jnp.full(len(x), mean))


@functools.cache
def real(name):
    """Rows in units of one standard deviation, in float64."""
    data = datasets.load(name)
    x = data.x.astype(np.float64)
    y = data.y if data.class_names else data.y.astype(np.float64)
    return (x - x.mean(axis=0)) / x.std(axis=0), y


def draw(seed=0, n=24, dtype=np.float32):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    return x.astype(dtype), (x @ [1.0, -2, 0.5] + rng.normal(size=n)).astype(dtype)


def parts(folds):
    folds = np.asarray(folds)
    return [
        (np.flatnonzero(folds != k), np.flatnonzero(folds == k)) for k in range(folds.max() + 1)
    ]


# Peers


@pytest.mark.parametrize("passthrough", [False, True])
def test_lines_equal_scikit_learn(passthrough, x64):
    x, y = real("diabetes_raw")
    folds = cross_validation.k_fold(jax.random.key(0), len(y), num_folds=5)
    weight = np.random.default_rng(0).uniform(0.5, 2, len(y))
    for s in (None, weight):
        stack = stacking.fit(
            x, y, learners=LINES, meta=META, folds=folds, passthrough=passthrough, sample_weight=s
        )
        peer = StackingRegressor(
            [("line", LinearRegression()), ("ridge", Ridge(300.0))],
            final_estimator=Ridge(1.0),
            cv=parts(folds),
            passthrough=passthrough,
        ).fit(x, y, **({} if s is None else {"sample_weight": s}))
        # Closed forms on both sides: round-off, times condition numbers of 1e4 at most
        np.testing.assert_allclose(stacking.features(stack, x), peer.transform(x), rtol=1e-11)
        np.testing.assert_allclose(stacking.predict(stack, x), peer.predict(x), rtol=1e-9)
        np.testing.assert_allclose(
            stack.meta.model.coef, peer.final_estimator_.coef_, rtol=1e-7, atol=1e-9
        )


@pytest.mark.parametrize("name", ["breast_cancer", "iris"])
def test_gaussians_equal_scikit_learn(name, x64):
    x, y = real(name)
    k = int(y.max()) + 1
    folds = cross_validation.stratified_k_fold(jax.random.key(1), y, num_folds=4)
    learners = {"lda": bayes("shared", k), "bayes": bayes("naive", k)}
    # Three columns that add up to 1 have a singular covariance: a meta-learner that bears that.
    meta = bayes("shared" if k == 2 else "naive", k)
    stack = stacking.fit(x, y, learners=learners, meta=meta, folds=folds)
    peer = StackingClassifier(
        [("lda", LinearDiscriminantAnalysis()), ("bayes", GaussianNB())],
        final_estimator=LinearDiscriminantAnalysis() if k == 2 else GaussianNB(),
        cv=parts(folds),
        stack_method="predict_proba",
    ).fit(x, y)
    assert stack.training_features.shape == (len(y), 2 if k == 2 else 6)
    np.testing.assert_allclose(stacking.features(stack, x), peer.transform(x), atol=1e-8)
    np.testing.assert_allclose(stacking.predict(stack, x), peer.predict_proba(x), atol=1e-6)


def test_blending_equals_a_peer_with_fitted_learners(x64):
    x, y = real("diabetes_raw")
    held_out = np.arange(len(y)) % 4 == 0
    stack = stacking.blend(x, y, learners=LINES, meta=META, held_out=held_out)
    peer = StackingRegressor(
        [
            ("line", LinearRegression().fit(x[~held_out], y[~held_out])),
            ("ridge", Ridge(300.0).fit(x[~held_out], y[~held_out])),
        ],
        final_estimator=Ridge(1.0),
        cv="prefit",
    ).fit(x[held_out], y[held_out])
    np.testing.assert_allclose(stacking.predict(stack, x), peer.predict(x), rtol=1e-9)
    assert (np.asarray(stack.training_features)[~held_out] == 0).all()


# The definition


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_no_feature_knows_its_own_target(seed):
    x, y = draw(seed)
    i = seed % len(y)
    other = y.copy()
    other[i] += 100
    folds = np.arange(len(y)) % 4
    one, two = (
        stacking.fit(x, target, learners={"a": ridge(1.0)}, meta=META, folds=folds)
        for target in (y, other)
    )
    same = folds == folds[i]
    before, after = np.asarray(one.training_features), np.asarray(two.training_features)
    np.testing.assert_allclose(before[same], after[same], rtol=1e-5, atol=1e-5)
    assert (np.abs(before[~same] - after[~same]) > 1e-3).any()
    # The fits to all rows do know it.
    assert np.abs(stacking.features(one, x)[i] - stacking.features(two, x)[i]) > 1


def test_the_meta_learner_is_fitted_to_the_targets(x64):
    x, y = real("diabetes_raw")
    folds = np.arange(len(y)) % 5
    stack = stacking.fit(x, y, learners=LINES, meta=ridge(0.0), folds=5)  # dealt out in turn
    z = np.stack(
        [
            cross_validation.out_of_fold(one.fit, one.predict, x, y, folds=folds)
            for one in LINES.values()
        ],
        axis=1,
    )
    np.testing.assert_allclose(stack.training_features, z, rtol=1e-12)
    full = np.column_stack([z, np.ones(len(y))])
    by_hand = np.linalg.lstsq(full, y, rcond=None)[0]
    np.testing.assert_allclose(stack.meta.model.coef, by_hand[:2], rtol=1e-8)
    # On these features it is at least as good as each learner by itself, and as their mean.
    best = np.mean((full @ by_hand - y) ** 2)
    assert all(best <= np.mean((column - y) ** 2) for column in (*z.T, z.mean(axis=1)))


def test_a_memorising_learner_is_believed_in_sample_only():
    x, y = draw(n=60)
    nearest = functools.partial(demo.local_mean_fit, bandwidth=1e-2)
    learners = {"line": ridge(1.0), "memory": (nearest, demo.local_mean)}
    stack = stacking.fit(x, y, learners=learners, meta=ridge(0.0), folds=5)
    seen = stacking.features(stack, x)
    np.testing.assert_allclose(seen[:, 1], y, rtol=1e-6)
    naive = linear_regression.fit(seen, y)
    np.testing.assert_allclose(naive.coef, [0, 1], atol=1e-4)
    assert abs(stack.meta.model.coef[1]) < 0.5


# Any learner


def test_learners_of_several_kinds():
    x, y = (a[:90] for a in real("wine"))  # two of three classes
    x = x.astype(np.float32)
    scaled = scaling.fit_standard, scaling.apply
    logistic = functools.partial(logistic_regression.fit, l2=1.0, num_classes=2)

    def guess(key, x, y, *, sample_weight=None):
        del y, sample_weight
        return jax.random.normal(key, x.shape[1:])

    learners = {
        "bayes": bayes("naive", 2),
        "logistic": stacking.Learner(logistic, logistic_regression.decision_function, scaled),
        "guess": stacking.Learner(guess, lambda model, x: x @ model),
    }
    meta = stacking.Learner(logistic, logistic_regression.predict)
    stack = stacking.fit(x, y, learners=learners, meta=meta, folds=3, key=jax.random.key(0))
    assert metrics.accuracy(stacking.predict(stack, x), y) > 0.95
    # The same key, the same answer; another, another guess.
    again = stacking.fit(x, y, learners=learners, meta=meta, folds=3, key=jax.random.key(0))
    np.testing.assert_array_equal(again.training_features, stack.training_features)
    other = stacking.fit(x, y, learners=learners, meta=meta, folds=3, key=jax.random.key(1))
    changed = np.abs(other.training_features - stack.training_features).max(axis=0) > 1e-6
    assert changed.tolist() == [False, False, True]
    with pytest.raises(ValueError, match="key must be given, since fit takes one"):
        stacking.fit(x, y, learners=learners, meta=meta, folds=3)


def test_a_tree_in_a_blend():
    x, y = (a[:90] for a in real("wine"))
    x, held_out = x.astype(np.float32), np.arange(90) % 3 == 0
    tree = functools.partial(decision_tree.fit, max_depth=2, num_classes=2)
    learners = {"tree": (tree, decision_tree.predict_proba), "bayes": bayes("naive", 2)}
    mixed = stacking.blend(x, y, learners=learners, meta=bayes("shared", 2), held_out=held_out)
    alone = decision_tree.predict_proba(mixed.models[0].model, x)
    np.testing.assert_array_equal(stacking.features(mixed, x)[:, 0], alone[:, 1])
    np.testing.assert_array_equal(mixed.training_features[:, 0], np.where(held_out, alone[:, 1], 0))
    assert metrics.accuracy(stacking.predict(mixed, x), y) > 0.9


def test_learners_that_know_no_weights():
    x, y = draw()
    stack = stacking.fit(x, y, learners={"mean": MEAN, "line": ridge(0.0)}, meta=META, folds=3)
    without = [y[np.arange(24) % 3 != k].mean() for k in range(3)]
    np.testing.assert_allclose(stack.training_features[:3, 0], without, rtol=1e-6)
    with pytest.raises(TypeError, match="the fit of 'mean' must take sample_weight"):
        stacking.blend(x, y, learners={"mean": MEAN}, meta=META, held_out=np.arange(24) < 8)


# One program


def test_many_stacks_in_one_program():
    x, y = draw()
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 3, (3, 24)).astype(np.float32)
    weights[:, :4] = 1  # of each fold a row
    traces = 0

    @jax.jit
    def together(x, y, weight, penalty):
        nonlocal traces
        traces += 1

        def one(weight, penalty):
            stack = stacking.fit(
                x, y, learners={"a": ridge(penalty), "b": LINES["ridge"]}, meta=META, folds=4,
                sample_weight=weight,
            )  # fmt: skip
            return stacking.predict(stack, x)

        return jax.vmap(one)(weight, penalty)

    penalties = np.array([0.1, 1.0, 10.0], np.float32)
    found = together(x, y, weights, penalties)
    for weight, penalty, ours in zip(weights, penalties, found, strict=True):
        stack = stacking.fit(
            x, y, learners={"a": ridge(penalty), "b": LINES["ridge"]}, meta=META, folds=4,
            sample_weight=weight,
        )  # fmt: skip
        np.testing.assert_allclose(ours, stacking.predict(stack, x), rtol=1e-4, atol=1e-4)
    # A weight of 0 is a row that is not there, whatever it holds.
    there = weights[2] > 0
    junk = np.where(there[:, None], x, np.nan), np.where(there, y, np.nan)
    spoilt = together(*junk, weights, penalties)
    np.testing.assert_allclose(spoilt[2][there], found[2][there], rtol=1e-4, atol=1e-4)
    assert traces == 1
    concrete = stacking.fit(
        *junk, learners={"a": ridge(10.0), "b": LINES["ridge"]}, meta=META, folds=4,
        sample_weight=weights[2],
    )  # fmt: skip
    np.testing.assert_allclose(
        stacking.predict(concrete, x[there]), found[2][there], rtol=1e-4, atol=1e-4
    )


def test_a_stack_is_a_fit_like_any_other():
    x, y = draw(n=36)
    score = functools.partial(
        cross_validation.evaluate,
        functools.partial(stacking.fit, learners=LINES, meta=META, folds=3),
        stacking.predict,
        metrics.r2,
        x,
        y,
        folds=cross_validation.k_fold(jax.random.key(0), 36, num_folds=3),
    )
    found = score()
    assert found.mode == "program"
    assert (np.asarray(found.test_score) > 0.3).all()


def test_gradients_against_finite_differences(x64):
    x, y = draw(dtype=np.float64)
    normal = functools.partial(linear_regression.fit, solver="normal")

    def loss(penalty, y):
        base = stacking.Learner(functools.partial(normal, ridge=penalty), linear_regression.predict)
        meta = stacking.Learner(functools.partial(normal, ridge=1.0), linear_regression.predict)
        stack = stacking.fit(x, y, learners={"a": base}, meta=meta, folds=4)
        return jnp.square(stacking.predict(stack, x) - y).sum()

    both, rng = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))), np.random.default_rng(0)
    at, along = (2.0, y), (1.0, rng.normal(size=24))
    slopes, step = both(*at)[1], 1e-5
    ahead, behind = (
        both(*(leaf + sign * step * way for leaf, way in zip(at, along, strict=True)))[0]
        for sign in (1, -1)
    )
    by_hand = sum(np.sum(np.asarray(g) * way) for g, way in zip(slopes, along, strict=True))
    # Rounding of a sum of order 1e1, over the step
    np.testing.assert_allclose(by_hand, (ahead - behind) / (2 * step), rtol=1e-6)


# Bad input


def answers(outputs):
    return {"odd": stacking.Learner(LINES["line"].fit, lambda model, x: outputs(x))}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"learners": {}}, TypeError, "learners must map names to (fit, predict), got {}"),
        ({"learners": {"a": 3}}, TypeError, "learners['a'] must be (fit, predict) or a Learner"),
        ({"learners": {"a": (3, 4)}}, TypeError, "fit of learners['a'] must be callable, got 3"),
        (
            {"learners": {"a": (*META[:2], scaling.apply)}},
            TypeError,
            "prepare of learners['a'] must be two functions",
        ),
        ({"meta": None}, TypeError, "meta must be (fit, predict) or a Learner, got None"),
        ({"y": np.zeros(5)}, ValueError, "x and y must have as many rows, got x (24, 3), y (5,)"),
        ({"folds": np.zeros(5, int)}, ValueError, "folds must have shape (24,), got (5,)"),
        ({"folds": 1}, ValueError, "folds must be at least 2, got 1"),
        ({"folds": 3, "num_folds": 4}, ValueError, "num_folds must be left out"),
        (
            {"sample_weight": np.ones(5)},
            ValueError,
            "sample_weight must have shape (24,), got (5,)",
        ),
        (
            {"x": np.full((24, 3), np.nan, np.float32)},
            ValueError,
            "x must be finite, got nan in row 0, column 0",
        ),
        (
            {"x": np.zeros((24, 3, 1), np.float32), "passthrough": True},
            ValueError,
            "x must be 2-D for passthrough, got shape (24, 3, 1)",
        ),
        (
            {"learners": answers(lambda x: jnp.zeros(3))},
            ValueError,
            "learner 'odd' must predict shape (24,) or (24, c), got (3,)",
        ),
        (
            {"learners": answers(lambda x: jnp.zeros(len(x), jnp.int32))},
            TypeError,
            "learner 'odd' must predict numbers, such as probabilities, got int32: class codes",
        ),
        (
            {"learners": answers(lambda x: jnp.full(len(x), jnp.nan))},
            ValueError,
            "learner 'odd' must predict finite numbers, got nan in row 0",
        ),
    ],
)
def test_bad_input(options, error, message):
    x, y = draw()
    arguments = {"x": x, "y": y, "learners": LINES, "meta": META, "folds": 3} | options
    with pytest.raises(error, match=re.escape(message)):
        stacking.fit(**arguments)


@pytest.mark.parametrize(
    ("held_out", "error", "message"),
    [
        (np.zeros(24), TypeError, "held_out must be a Boolean array, got dtype float64"),
        (np.zeros(5, bool), ValueError, "held_out must have shape (24,), got (5,)"),
        (np.zeros(24, bool), ValueError, "a row of positive weight within it, got none"),
        (np.ones(24, bool), ValueError, "a row of positive weight without it, got none"),
    ],
)
def test_bad_blends(held_out, error, message):
    x, y = draw()
    with pytest.raises(error, match=re.escape(message)):
        stacking.blend(x, y, learners=LINES, meta=META, held_out=held_out)


# The page


def test_what_the_page_says():
    result = demo.run(jax.random.key(0), quick=True)
    own = result.own_share
    np.testing.assert_allclose(own[0], 1, atol=1e-6)
    np.testing.assert_allclose(result.said["in sample"], result.targets, rtol=1e-5)
    # In sample the learner that memorises gets all, out of fold next to nothing.
    np.testing.assert_allclose(result.weight["in sample"][:, 0], 1, atol=1e-3)
    assert (np.abs(result.weight["out of fold"][:, 0]) < 0.3).all()
    error = {name: values.mean(axis=0) for name, values in result.rmse.items()}
    np.testing.assert_allclose(error["in sample"][0], error["local mean"][0], rtol=1e-3)
    assert error["out of fold"][0] < error["in sample"][0] - 15
    # Where nothing is memorised the two agree.
    assert abs(error["out of fold"][-1] - error["in sample"][-1]) < 2
