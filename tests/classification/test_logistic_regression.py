"""Logistic regression against scikit-learn, its own derivatives, and what has no answer."""

import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from mlnotes_jax.classification import _logistic
from mlnotes_jax.classification import logistic_regression as lr
from mlnotes_jax.data import datasets
from mlnotes_jax.demos.classification import logistic_regression as demo

SETS = ["breast_cancer", "wine", "iris", "digits"]
SOLVERS = {2: ("newton", "proximal"), 3: ("newton", "lbfgs")}  # each program takes seconds


@functools.cache
def real(name):
    """Rows in units of one standard deviation, in float64, without columns that never vary."""
    data = datasets.load(name)
    x = data.x.astype(np.float64)
    x = x[:, x.std(axis=0) > 0]
    return (x - x.mean(axis=0)) / x.std(axis=0), data.y


def draw(seed=0, n=60, d=3, k=3, dtype=np.float32):
    """Classes that overlap."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(k), rng.integers(0, k, n - k)]).astype(np.int32)
    return (rng.normal(size=(n, d)) + 0.7 * rng.normal(size=(k, d))[y]).astype(dtype), y


def peer(x, y, *, l1=0.0, l2=0.0, **options):
    """The peer's weights as ours; to a tolerance of 1e-10."""
    total = l1 + l2
    options = {
        "C": 1 / total if total else np.inf,
        "l1_ratio": l1 / total if total else 0.0,
    } | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names of options change; a limit reached shows below
        if l1:
            options |= {"solver": "saga", "max_iter": 200_000, "random_state": 0}
        model = LogisticRegression(**({"tol": 1e-10, "max_iter": 20_000} | options))
        return model.fit(x, y)


def objective(coef, intercept, x, y, l1, l2, weight=1.0):
    """In NumPy, row by row."""
    scores = x @ np.asarray(coef).T + np.asarray(intercept)
    if scores.shape[1] == 1:
        scores = np.concatenate([0 * scores, scores], axis=1)
    loss = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(y)), y]
    coef = np.asarray(coef)
    return (weight * loss).sum() + l1 * np.abs(coef).sum() + l2 / 2 * np.square(coef).sum()


# Peers


@pytest.mark.parametrize("name", SETS)
def test_ridge_equals_the_peer(name, x64):
    x, y = real(name)
    model = lr.fit(x, y, l2=1.0, tol=1e-10)
    theirs = peer(x, y, l2=1.0)
    assert model.converged
    assert not model.separable
    # The peer stops at a gradient of 1e-10 of the mean loss: weights to 1e-7 and better
    np.testing.assert_allclose(model.coef, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(lr.predict_proba(model, x), theirs.predict_proba(x), atol=1e-6)
    # Sums of up to 62 products with values of up to 42
    odds = theirs.decision_function(x)
    np.testing.assert_allclose(lr.decision_function(model, x), odds, atol=1e-3)
    np.testing.assert_array_equal(lr.predict(model, x), theirs.predict(x))
    by_hand = objective(model.coef, model.intercept, x, y, 0.0, 1.0)
    np.testing.assert_allclose(model.objective, by_hand, rtol=1e-12)


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "iris"])
def test_lasso_and_elastic_net_equal_the_peer(name, x64):
    x, y = real(name)
    for l1, l2 in ((8.0, 0.0), (4.0, 4.0)):
        model, theirs = lr.fit(x, y, l1=l1, l2=l2, tol=1e-10), peer(x, y, l1=l1, l2=l2)
        assert model.converged
        p = lr.predict_proba(model, x)
        np.testing.assert_allclose(p, theirs.predict_proba(x), atol=1e-6)
        if l2:  # for k > 2 and l1 alone, weights of a feature may be shifted together
            np.testing.assert_allclose(model.coef, theirs.coef_, atol=1e-5)
        # Exact zeros, the same ones; saga's are.
        assert (np.asarray(model.coef) == 0).sum() >= (theirs.coef_ == 0).sum() > 0
        lowest = objective(theirs.coef_, theirs.intercept_, x, y, l1, l2)
        assert model.objective <= lowest * (1 + 1e-12)


def test_lasso_of_the_digits_satisfies_its_conditions(x64):
    # No peer reaches 1e-10 here in less than minutes. The conditions, computed in NumPy:
    x, y = real("digits")
    model = lr.fit(x, y, l1=20.0, tol=1e-8)
    scores = x @ np.asarray(model.coef).T + np.asarray(model.intercept)
    p = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
    pull = p - np.eye(10)[y]
    slope, coef = pull.T @ x, np.asarray(model.coef)
    scale = np.linalg.norm((0.1 - np.eye(10)[y]).T @ x)
    active = coef != 0
    assert 50 < active.sum() < 300
    np.testing.assert_allclose(slope[active], -20 * np.sign(coef[active]), atol=1e-7 * scale)
    assert (np.abs(slope[~active]) <= 20 + 1e-7 * scale).all()
    np.testing.assert_allclose(pull.sum(axis=0), 0, atol=1e-7 * scale)  # intercepts: no penalty


@pytest.mark.parametrize("k", [2, 3])
def test_without_a_penalty_equals_the_peer(k, x64):
    x, y = draw(k=k, dtype=np.float64)
    theirs = peer(x, y)
    for solver in SOLVERS[k]:
        model = lr.fit(x, y, solver=solver, tol=1e-10)
        assert model.converged, solver
        np.testing.assert_allclose(model.coef, theirs.coef_, atol=1e-6)  # gauge: sums are 0
        np.testing.assert_allclose(model.intercept, theirs.intercept_, atol=1e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_weights_and_no_intercept_equal_the_peer(k, x64):
    x, y = draw(k=k, dtype=np.float64)
    x = x + 0.5
    weight = np.random.default_rng(1).uniform(0, 2, len(y))
    factors = np.array([0.5, 2.0, 3.0])[:k]
    for class_weight, theirs in ((factors, dict(enumerate(factors))), ("balanced", "balanced")):
        model = lr.fit(x, y, l2=0.5, sample_weight=weight, class_weight=class_weight, tol=1e-10)
        options = {"C": 2.0, "tol": 1e-10, "max_iter": 20_000, "class_weight": theirs}
        other = LogisticRegression(**options).fit(x, y, sample_weight=weight)
        np.testing.assert_allclose(model.coef, other.coef_, atol=1e-6)
        np.testing.assert_allclose(model.intercept, other.intercept_, atol=1e-6)
    if k == 3:
        flat = lr.fit(x, y, l2=0.5, fit_intercept=False, tol=1e-10)
        other = peer(x, y, l2=0.5, fit_intercept=False)
        np.testing.assert_allclose(flat.coef, other.coef_, atol=1e-6)
        assert (np.asarray(flat.intercept) == 0).all()


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("l1", [0.0, 1.0])
def test_solvers_agree(k, l1, x64):
    x, y = draw(k=k, dtype=np.float64)
    x = x * [1.0, 10.0, 0.1] + [100.0, 0.0, 0.0]  # units, and far from the origin
    solvers = ("newton", "proximal") if l1 else SOLVERS[k]
    models = [lr.fit(x, y, l1=l1, l2=0.1, solver=s, tol=1e-9) for s in solvers]
    for model in models:
        assert model.converged
        np.testing.assert_allclose(model.objective, models[0].objective, rtol=1e-12)
        np.testing.assert_allclose(model.coef, models[0].coef, atol=1e-6)
    if k == 3 and not l1:  # from the answer there is nothing to do
        again = lr.fit(x, y, l2=0.1, start=models[0], solver="lbfgs", tol=1e-8)
        assert again.num_iterations == 0
        np.testing.assert_allclose(again.coef, models[0].coef, atol=1e-12)


# The mathematics


def test_one_binary_feature_has_a_closed_form(x64):
    # Of x = 0: 4 of 10 in class 1; of x = 1: 8 of 10. Every cell of the table has its own odds.
    x = np.repeat([[0.0], [1.0]], 10, axis=0)
    y = np.array([1] * 4 + [0] * 6 + [1] * 8 + [0] * 2)
    model = lr.fit(x, y, tol=1e-12)
    np.testing.assert_allclose(model.intercept, [np.log(4 / 6)], rtol=1e-9)
    np.testing.assert_allclose(model.coef, [[np.log(8 / 2) - np.log(4 / 6)]], rtol=1e-9)
    errors = lr.standard_errors(model, x)
    # The variance of a log-odds ratio is the sum of 1 / cell (Woolf).
    np.testing.assert_allclose(errors.coef[0, 0] ** 2, 1 / 4 + 1 / 6 + 1 / 8 + 1 / 2, rtol=1e-9)
    np.testing.assert_allclose(errors.intercept[0] ** 2, 1 / 4 + 1 / 6, rtol=1e-9)


@pytest.mark.parametrize("k", [2, 3])
def test_standard_errors_are_the_inverse_hessian(k, x64):
    x, y = draw(k=k, dtype=np.float64)
    x = x + 3
    weight = np.random.default_rng(2).integers(0, 3, len(y)).astype(float)
    model = lr.fit(x, y, sample_weight=weight, tol=1e-10)
    m = len(model.intercept)

    def loss(theta):
        theta = theta.reshape(m, 4)
        scores = jnp.asarray(x) @ theta[:, :3].T + theta[:, 3][None]
        if m == 1:
            scores = jnp.concatenate([jnp.zeros_like(scores), scores], axis=1)
        own = jnp.take_along_axis(scores, jnp.asarray(y)[:, None], axis=1)[:, 0]
        return (weight * (jax.nn.logsumexp(scores, axis=1) - own)).sum()

    theta = jnp.concatenate([model.coef, model.intercept[:, None]], axis=1).ravel()
    inverse = np.linalg.pinv(jax.hessian(loss)(theta), rcond=1e-10)  # sums over classes stay 0
    errors = lr.standard_errors(model, x, sample_weight=weight)
    np.testing.assert_allclose(errors.covariance, inverse, rtol=1e-6, atol=1e-9)
    deviations = np.sqrt(np.diag(inverse)).reshape(m, 4)
    np.testing.assert_allclose(errors.coef, deviations[:, :3], rtol=1e-6)
    np.testing.assert_allclose(errors.intercept, deviations[:, 3], rtol=1e-6)
    if k == 3:  # the data cannot tell a feature from its copy
        twin = np.concatenate([x, x[:, :1]], axis=1)
        both = lr.fit(twin, y, sample_weight=weight)
        assert np.isnan(lr.standard_errors(both, twin, sample_weight=weight).coef).all()


@pytest.mark.parametrize("k", [2, 3])
def test_derivatives_of_the_fit_against_finite_differences(k, x64):
    x, y = draw(k=k, dtype=np.float64)
    rng = np.random.default_rng(3)
    cost = rng.normal(size=(1 if k == 2 else k, 3))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3))
    def outcome(x, weight, l2, l1):
        model = lr.fit(
            x, y, l1=0.0 if k == 2 else l1, l2=l2, sample_weight=weight, num_classes=k, tol=1e-12
        )
        return (cost * model.coef).sum() + model.intercept[0] + 0.1 * model.objective

    for l1 in (0.1, 1.5):
        at = (x, rng.uniform(0.5, 2, len(y)), np.asarray(0.7), np.asarray(l1))
        way = tuple(rng.normal(size=np.shape(leaf)) for leaf in at)
        slopes = outcome(*at)[1]
        by_hand = sum(np.sum(np.asarray(g) * w) for g, w in zip(slopes, way, strict=True))
        ahead, behind = (
            outcome(*(leaf + sign * 1e-5 * w for leaf, w in zip(at, way, strict=True)))[0]
            for sign in (1, -1)
        )
        # The third derivative times h²: 1e-8 or so; rounding: 1e-12 / 1e-5
        np.testing.assert_allclose(by_hand, (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([2, 3]))
def test_an_affine_map_changes_no_probability(seed, k):
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        x, y = draw(seed, k=k, dtype=np.float64)
        turn = rng.normal(size=(3, 3)) + 3 * np.eye(3)
        moved = x @ turn + rng.normal(size=3)
        fits = [lr.fit(rows, y, tol=1e-9) for rows in (x, moved)]
        assert fits[0].separable == fits[1].separable
        if not fits[0].separable:
            # Condition numbers of 1e3: 1e-9 times that
            p, q = (lr.predict_proba(m, r) for m, r in zip(fits, (x, moved), strict=True))
            np.testing.assert_allclose(p, q, atol=1e-6)


# Rows that do not count, and many fits at once


@pytest.mark.parametrize(("solver", "k"), [("newton", 2), ("lbfgs", 3)])
def test_folds_in_one_program(solver, k, x64):
    x, y = draw(k=k, dtype=np.float64)
    folds = (np.arange(60) % 3 != np.arange(3)[:, None]).astype(float)
    traces = 0

    @jax.jit
    def together(x, y, weight, l2):
        nonlocal traces
        traces += 1

        def one(weight, l2):
            options = {"num_classes": k, "solver": solver, "tol": 1e-9}
            return lr.fit(x, y, l2=l2, sample_weight=weight, **options)

        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(weight, l2)

    penalties = np.array([0.3, 3.0])
    models = together(x, y, folds, penalties)
    assert np.asarray(models.converged).all()
    for i, weight in enumerate(folds):
        for j, l2 in enumerate(penalties):
            options = {"l2": l2, "sample_weight": weight, "solver": solver, "tol": 1e-9}
            alone = lr.fit(x, y, **options)
            # Both within 1e-9 of a gradient of 30, with a curvature of 0.3 and more
            np.testing.assert_allclose(models.coef[i, j], alone.coef, atol=1e-6)
            np.testing.assert_allclose(models.objective[i, j], alone.objective, rtol=1e-10)
    together(x, y, folds, 2 * penalties)
    assert traces == 1
    # A weight of 0 is a row that is not there.
    there = folds[2] > 0
    theirs = peer(x[there], y[there], l2=3.0)
    np.testing.assert_allclose(models.coef[2, 1], theirs.coef_, atol=1e-6)


def test_a_path_with_warm_starts_takes_fewer_steps(x64):
    x, y = draw(dtype=np.float64)
    penalties = np.geomspace(30, 0.3, 8)

    @jax.jit
    def path(x, y, penalties, warm):
        def fit(start, l2):
            return lr.fit(x, y, l2=l2, start=start, num_classes=3, solver="lbfgs")

        def step(start, l2):
            chosen = jax.tree.map(lambda old, new: jnp.where(warm, old, new), start, zeros)
            model = fit(chosen, l2)
            return model, model

        shapes = jax.eval_shape(fit, None, penalties[0])
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(step, zeros, penalties)[1]

    warm, cold = path(x, y, penalties, True), path(x, y, penalties, False)
    assert np.asarray(warm.converged).all()
    np.testing.assert_allclose(warm.objective, cold.objective, rtol=1e-6)  # tol squared
    assert warm.num_iterations.sum() < cold.num_iterations.sum()
    alone = lr.fit(x, y, l2=penalties[0], solver="lbfgs")
    np.testing.assert_allclose(alone.coef, cold.coef[0], atol=1e-12)  # zeros are no start


def test_blocks_of_rows_are_one_sum(x64):
    # 5000 rows do not fit into one block, and leave a last one that overlaps.
    x, y = draw(n=5000, k=3, dtype=np.float64)
    weight = np.random.default_rng(4).uniform(0, 2, 5000)
    model = lr.fit(x, y, l2=2.0, sample_weight=weight, tol=1e-10)
    theirs = LogisticRegression(C=0.5, tol=1e-10, max_iter=20_000).fit(x, y, weight)
    np.testing.assert_allclose(model.coef, theirs.coef_, atol=1e-7)
    by_hand = objective(model.coef, model.intercept, x, y, 0.0, 2.0, weight)
    np.testing.assert_allclose(model.objective, by_hand, rtol=1e-12)


@pytest.mark.parametrize("order", ["drawn", "by class", "every sixteenth of one class"])
def test_a_start_from_few_rows_changes_no_result(order, monkeypatch, x64):
    """Where the few rows tell nothing or the wrong thing, too."""
    x, y = draw(n=336, k=2, dtype=np.float64)  # a shape of its own: compiled for this test
    if order == "by class":
        y = np.sort(y)
    elif order != "drawn":
        y[::16] = 1
    monkeypatch.setattr(_logistic, "_MANY", 336)
    model = lr.fit(x, y, l2=0.5, tol=1e-10, solver="newton")
    theirs = peer(x, y, l2=0.5, solver="newton-cholesky")
    assert model.converged
    np.testing.assert_allclose(model.coef, theirs.coef_, atol=1e-8)  # both gradients: 1e-10


# What has no answer says so


@pytest.mark.parametrize("k", [2, 3])
def test_separable_classes_have_no_minimum(k, x64):
    x, y = draw(k=k, dtype=np.float64)
    apart = x + 20.0 * np.eye(3)[y]
    for solver in SOLVERS[k]:
        model = lr.fit(apart, y, solver=solver)
        assert model.separable, solver
        assert not model.converged
        # The proof: these weights tell all rows apart, so larger ones have a smaller loss.
        assert (np.asarray(lr.predict(model, apart)) == y).all()
        larger = objective(2 * model.coef, 2 * model.intercept, apart, y, 0, 0)
        assert larger < model.objective
        # With a penalty there is an answer, and without separation, too.
        for rows, l2 in ((apart, 1e-3), (x, 0.0)):
            other = lr.fit(rows, y, l2=l2, solver=solver)
            assert other.converged
            assert not other.separable


def test_nearly_separable_classes_have_none_either(x64):
    # Rows of class 0 and of class 1 share x = 0: no line is right about both, but it pays to be
    # ever surer about x = 1. (Twelve times the same, and two columns of nothing.)
    x, y = np.zeros((60, 3)), np.tile([0, 1, 1, 1, 1], 12)
    x[:, 0] = np.tile([0, 0, 1, 1, 1], 12)
    for tol in (1e-4, 1e-9):
        model = lr.fit(x, y, tol=tol)
        assert model.separable
        assert not model.converged
        assert model.gradient_norm <= tol  # by its gradient alone one would have believed it
    y[4::5] = 2  # at x = 1 two classes are mixed, and one is ruled out
    for solver in SOLVERS[3]:
        assert lr.fit(x, y, solver=solver).separable
        assert not lr.fit(x, y, l2=1e-3, solver=solver).separable


def test_a_fold_without_a_class_is_not_an_answer(x64):
    x, y = draw(dtype=np.float64)
    fit = jax.jit(functools.partial(lr.fit, num_classes=3))
    weight = (y != 1).astype(float)
    model = fit(x, y, sample_weight=weight)
    assert model.separable
    assert not (np.asarray(lr.predict(model, x)) == 1).any()
    spoilt = fit(x, y + 1, sample_weight=weight)  # a label that is no class
    assert not spoilt.converged
    assert (np.asarray(lr.predict(spoilt, x)) == -1).all()


@pytest.mark.parametrize("k", [2, 3])
def test_too_few_steps_do_not_converge(k, x64):
    x, y = draw(k=k, dtype=np.float64)
    for solver in SOLVERS[k]:
        model = lr.fit(x, y, l2=0.1, solver=solver, max_iter=1, tol=1e-8)
        assert not model.converged
        assert model.num_iterations == 1


def test_float32_and_large_means():
    x, y = real("breast_cancer")
    model = lr.fit(x.astype(np.float32), y, l2=1.0)
    assert model.converged
    assert model.coef.dtype == jnp.float32
    theirs = peer(x, y, l2=1.0)
    # tol = 1e-4 of the gradient, and Newton's last step squares what is left
    np.testing.assert_allclose(lr.predict_proba(model, x), theirs.predict_proba(x), atol=1e-3)
    far = lr.fit((x + 300).astype(np.float32), y, l2=1.0)  # the rows keep 5 digits
    np.testing.assert_allclose(lr.predict_proba(far, x + 300), theirs.predict_proba(x), atol=1e-2)


# One-hot regression


def test_one_hot_regression_is_least_squares(x64):
    x, y = draw(dtype=np.float64)
    weight = np.random.default_rng(5).uniform(0.5, 2, 60)
    lines = lr.fit_one_hot(x, y, sample_weight=weight)
    z = np.column_stack([x, np.ones(60)]) * np.sqrt(weight)[:, None]
    by_hand = np.linalg.lstsq(z, np.eye(3)[y] * np.sqrt(weight)[:, None])[0]
    np.testing.assert_allclose(lines.coef, by_hand[:3].T, atol=1e-12)
    np.testing.assert_allclose(lines.intercept, by_hand[3], atol=1e-12)
    scores = lr.decision_function(lines, x)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(lr.predict(lines, x), scores.argmax(axis=1))


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"solver": "sag"}, ValueError, "solver must be one of 'auto', 'newton', 'lbfgs'"),
        ({"l1": -1.0}, ValueError, "l1 must not be negative, got -1.0"),
        ({"l2": np.inf}, ValueError, "l2 must be finite"),
        ({"l2": [1.0]}, ValueError, "l2 must be 0-D"),
        ({"tol": 0.0}, ValueError, "tol must be positive"),
        ({"max_iter": 0}, ValueError, "max_iter must be in"),
        ({"l1": 1.0, "solver": "lbfgs"}, ValueError, 'solver="lbfgs" needs an l1 that is 0'),
        ({"y": np.zeros(60)}, TypeError, "y must be an integer array"),
        ({"y": np.full(60, 3)}, ValueError, "must have a row of positive weight"),
        ({"x": np.full((60, 3), np.nan)}, ValueError, "x must be finite, got nan in row 0"),
        ({"sample_weight": np.ones(5)}, ValueError, "must have as many rows"),
        ({"class_weight": [1.0, 2.0]}, ValueError, "class_weight must have shape (3,)"),
    ],
)
def test_bad_input(options, error, message):
    x, y = draw()
    with pytest.raises(error, match=re.escape(message)):
        lr.fit(**({"x": x, "y": y} | options))


def test_bad_use_of_a_model(x64):
    x, y = draw(dtype=np.float64)
    model = lr.fit(x, y, l2=1.0)
    with pytest.raises(ValueError, match="x must have 3 features in its last axis"):
        lr.predict(model, x[:, :2])
    with pytest.raises(ValueError, match="x must have 3 features, got shape"):
        lr.standard_errors(model, x[:, :2])
    with pytest.raises(ValueError, match=re.escape("weights of shape (1, 3), got (3, 3)")):
        lr.fit(x, np.minimum(y, 1), start=model)
    with pytest.raises(ValueError, match="num_classes must be given where y is traced"):
        jax.jit(lr.fit)(x, y)
    with pytest.raises(ValueError, match="lbfgs"):
        jax.jit(lambda l1: lr.fit(x, y, l1=l1, solver="lbfgs"))(1.0)
    np.testing.assert_allclose(  # one row, or rows of any shape
        lr.predict_proba(model, x.reshape(4, 15, 3))[1, 2],
        lr.predict_proba(model, x[17]),
        rtol=1e-6,
    )


# The page


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_penalties_and_borders_of_the_demo(result):
    lasso, ridge = result.paths["l1"], result.paths["l2"]
    assert lasso.converged
    assert ridge.converged
    # At the strongest L1 penalty nothing pays, and then one weight after the other does.
    kept = (lasso.coef != 0).sum(axis=1)
    assert kept[0] == 0
    assert 0 < kept[lasso.best] < 30
    assert (ridge.coef != 0).all()
    # Neither the strongest nor the weakest penalty is best.
    for path in (lasso, ridge):
        mean = path.loss.mean(axis=1)
        assert mean[path.best] < 0.9 * min(mean[0], mean[-1])
    # Lines on one-hot classes lose the class in the middle; a product lifts XOR.
    assert result.iris_error["one-hot lines"][1] > 5 * result.iris_error["softmax"][1]
    line, lifted = result.xor_error.values()
    assert line > 0.3
    assert lifted < 0.02
    tables = demo.tables(result)
    assert all(len({tuple(row) for row in rows}) == 1 for rows in tables.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demo.plot(result)
    import matplotlib.pyplot as plt

    plt.close("all")
