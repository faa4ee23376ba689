"""Gaussian classifiers against scikit-learn, against their own likelihood, and by hand."""

import functools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import (
    LinearDiscriminantAnalysis,
    QuadraticDiscriminantAnalysis,
)
from sklearn.naive_bayes import GaussianNB

from mlnotes_jax.classification import gaussian
from mlnotes_jax.data import datasets
from mlnotes_jax.demos.classification import gaussian as demo

KINDS = ("shared", "own", "naive")
ONES = np.ones(60, np.float32)  # one program serves tests with weights and without


@functools.cache
def real(name):
    """Rows in units of one standard deviation, in float64, without columns that never vary."""
    data = datasets.load(name)
    x = data.x.astype(np.float64)
    x = x[:, x.std(axis=0) > 0]
    return (x - x.mean(axis=0)) / x.std(axis=0), data.y


def draw(seed=0, n=60, d=3, k=3, dtype=np.float32):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(k), rng.integers(0, k, n - k)]).astype(np.int32)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 2 * rng.normal(size=(k, d))[y]
    return x.astype(dtype), y


def peer_posterior(peer, x):
    """Log-posterior of a peer, from its joint: its own clips tiny probabilities."""
    if hasattr(peer, "predict_joint_log_proba"):
        joint = peer.predict_joint_log_proba(x)
    else:
        joint = peer.decision_function(x)
        if joint.ndim == 1:
            joint = np.stack([np.zeros_like(joint), joint], axis=1)
    top = joint.max(axis=1, keepdims=True)
    return joint - top - np.log(np.exp(joint - top).sum(axis=1, keepdims=True))


def agree(model, peer, x, y):
    ours, theirs = gaussian.log_posterior(model, x), peer_posterior(peer, x)
    # 1e-8 of the size of the logarithms: covariances have condition numbers of 1e5 and less
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8)
    np.testing.assert_array_equal(gaussian.predict(model, x), peer.predict(x))


# By hand


def test_two_classes_in_one_dimension():
    # Means 1 and 4, variance 1: log-odds 3 x - 7.5, the border half way
    model = gaussian.fit([[0.0], [2.0], [3.0], [5.0]], [0, 0, 1, 1])
    assert model.means.tolist() == [[1.0], [4.0]]
    assert model.covariance.tolist() == [[1.0]]
    assert model.priors.tolist() == [0.5, 0.5]
    x = jnp.array([[-1.0], [2.5], [6.0]])
    np.testing.assert_allclose(gaussian.decision_function(model, x), [-10.5, 0, 10.5], atol=1e-5)
    joint = np.log(0.5) - 0.5 * np.log(2 * np.pi) - 0.5 * np.square(np.asarray(x) - [[1.0, 4.0]])
    np.testing.assert_allclose(gaussian.log_joint(model, x), joint, rtol=1e-6)


def test_covariances_of_each_kind(x64):
    x, y = draw(dtype=np.float64)
    counts = np.bincount(y)
    each = np.stack([np.cov(x[y == k].T, ddof=0) for k in range(3)])
    pooled = np.einsum("k,kij->ij", counts / len(y), each)
    for kind, expected in (("own", each), ("shared", pooled)):
        model = gaussian.fit(x, y, covariance=kind)
        np.testing.assert_allclose(model.covariance, expected, rtol=1e-12, atol=1e-14)
        root = np.asarray(model.factor)
        np.testing.assert_allclose(root @ root.swapaxes(-1, -2), expected, rtol=1e-12, atol=1e-13)
        shrunk = gaussian.fit(x, y, covariance=kind, shrinkage=0.3).covariance
        size = np.trace(expected, axis1=-2, axis2=-1)[..., None, None] / 3
        np.testing.assert_allclose(
            shrunk, 0.7 * expected + 0.3 * size * np.eye(3), rtol=1e-12, atol=1e-14
        )
    own = gaussian.fit(x, y, covariance="own", unbiased=True)
    np.testing.assert_allclose(own.covariance[1], np.cov(x[y == 1].T), rtol=1e-12, atol=1e-14)
    one = gaussian.fit(x, y, unbiased=True)
    np.testing.assert_allclose(one.covariance, pooled * 60 / 57, rtol=1e-12, atol=1e-14)
    naive = gaussian.fit(x, y, covariance="naive", var_smoothing=0.0)
    np.testing.assert_allclose(naive.covariance, each[:, range(3), range(3)], rtol=1e-12)
    np.testing.assert_allclose(naive.priors, counts / len(y), rtol=1e-15)


# Peers


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "digits"])
def test_shared_equals_lda(name, x64):
    x, y = real(name)
    model = gaussian.fit(x, y)
    for solver in ("svd", "lsqr", "eigen"):
        agree(model, LinearDiscriminantAnalysis(solver=solver).fit(x, y), x, y)
    for shrinkage in (0.1, 1.0):
        shrunk = gaussian.fit(x, y, shrinkage=shrinkage)
        peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x, y)
        agree(shrunk, peer, x, y)
    if name in ("wine", "breast_cancer"):  # three classes and two
        peer = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
        coef, intercept = gaussian.linear_form(model)
        if len(intercept) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
            odds = gaussian.decision_function(model, x)
            np.testing.assert_allclose(odds, peer.decision_function(x), rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(coef, peer.coef_, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(intercept, peer.intercept_, rtol=1e-8, atol=1e-8)
        p = gaussian.predict_proba(model, x)
        np.testing.assert_allclose(p, peer.predict_proba(x), atol=1e-8)


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "digits"])
def test_own_equals_qda(name, x64):
    x, y = real(name)
    # Before 1.8 scikit-learn divided by n - 1, and its QDA had no shrinkage.
    new = hasattr(QuadraticDiscriminantAnalysis(), "shrinkage")
    if name != "digits":
        # Its default calls any variance below 1e-4 nothing.
        peer = QuadraticDiscriminantAnalysis(tol=1e-12).fit(x, y)
        agree(gaussian.fit(x, y, covariance="own", unbiased=not new), peer, x, y)
    if new:
        peer = QuadraticDiscriminantAnalysis(solver="eigen", shrinkage=0.2).fit(x, y)
        agree(gaussian.fit(x, y, covariance="own", shrinkage=0.2), peer, x, y)


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "digits"])
def test_naive_equals_gaussian_nb(name, x64):
    x, y = real(name)
    agree(gaussian.fit(x, y, covariance="naive"), GaussianNB().fit(x, y), x, y)
    if name != "wine":
        return
    weight, smoothing = np.random.default_rng(0).uniform(0.5, 2, len(y)), 1e-3
    # The peer leaves the weights out of the variance that it smooths with: make up for it.
    ratio = np.var(x, axis=0).max() / np.cov(x.T, ddof=0, aweights=weight).diagonal().max()
    model = gaussian.fit(
        x, y, covariance="naive", sample_weight=weight, var_smoothing=smoothing * ratio
    )
    peer = GaussianNB(var_smoothing=smoothing).fit(x, y, sample_weight=weight)
    agree(model, peer, x, y)


@pytest.mark.parametrize("kind", KINDS)
def test_given_priors(kind, x64):
    x, y = real("wine")
    priors = np.array([0.2, 0.5, 0.3])
    model = gaussian.fit(x, y, covariance=kind, priors=priors)
    if kind == "shared":
        agree(model, LinearDiscriminantAnalysis(priors=priors).fit(x, y), x, y)
        model = gaussian.fit(x, y, priors=priors, pool="priors")
        agree(model, LinearDiscriminantAnalysis(solver="lsqr", priors=priors).fit(x, y), x, y)
    elif kind == "own":
        new = hasattr(QuadraticDiscriminantAnalysis(), "shrinkage")
        model = gaussian.fit(x, y, covariance=kind, priors=priors, unbiased=not new)
        agree(model, QuadraticDiscriminantAnalysis(priors=priors).fit(x, y), x, y)
    else:
        agree(model, GaussianNB(priors=priors).fit(x, y), x, y)


def test_raw_units_and_float32():
    # Areas of hundreds beside shares of hundredths, thirty features: a condition number of 1e12
    # in these units, which the correlation matrix does not see.
    data = datasets.load("breast_cancer")
    with jax.enable_x64(True):
        peer = LinearDiscriminantAnalysis().fit(data.x.astype(np.float64), data.y)
        model = gaussian.fit(data.x.astype(np.float64), data.y)
        ours = np.asarray(gaussian.decision_function(model, data.x))
    theirs = peer.decision_function(data.x.astype(np.float64))
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8)
    single = gaussian.decision_function(gaussian.fit(data.x, data.y), data.x)
    assert single.dtype == jnp.float32
    # Correlations leave pivots of 1e-4 at least: 6e-8 times their inverse
    np.testing.assert_allclose(single, theirs, atol=2e-2)


# The mathematics


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_gaussian_is_likelier(kind, x64):
    x, y = draw(dtype=np.float64)
    model = gaussian.fit(x, y, covariance=kind, var_smoothing=0.0 if kind == "naive" else None)

    def likelihood(params):
        logits, means, root = params
        priors = jax.nn.softmax(logits)
        factor = root if kind == "naive" else jnp.tril(root)
        other = gaussian.Gaussian(priors, means, model.covariance, factor, model.singular, kind)
        joint = gaussian.log_joint(other, x)
        return jnp.take_along_axis(joint, jnp.asarray(y)[:, None], axis=1).sum()

    best = (jnp.log(model.priors), model.means, model.factor)
    both = jax.jit(jax.value_and_grad(likelihood))
    value, slope = both(best)
    for part in jax.tree.leaves(slope):
        np.testing.assert_allclose(part, 0, atol=1e-10)  # sums of 60 terms of order 10
    rng = np.random.default_rng(2)
    for _ in range(5):
        moved = jax.tree.map(lambda leaf: leaf + 0.05 * rng.normal(size=leaf.shape), best)
        assert both(moved)[0] < value


def test_shared_posterior_is_a_softmax_of_a_linear_function(x64):
    x, y = real("wine")
    model = gaussian.fit(x, y)
    coef, intercept = (np.asarray(part) for part in gaussian.linear_form(model))
    linear = np.exp(x @ coef.T + intercept)
    linear /= linear.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(linear, gaussian.predict_proba(model, x), atol=1e-12)
    # The slope of the log-posterior differences is the difference of the weights, everywhere.
    slopes = jax.jit(jax.vmap(jax.jacobian(lambda row: gaussian.log_posterior(model, row))))(x[:20])
    slopes = np.asarray(slopes)
    for slope in slopes - slopes[:, :1]:
        np.testing.assert_allclose(slope, coef - coef[:1], atol=1e-10)
    # With own covariances the log-odds bend by the difference of the inverses.
    own = gaussian.fit(x[y < 2], y[y < 2], covariance="own")
    bend = jax.jit(jax.hessian(lambda row: gaussian.decision_function(own, row)))(x[0])
    inverse = np.linalg.inv(own.covariance)
    np.testing.assert_allclose(bend, inverse[0] - inverse[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_moments_of_the_model(kind):
    x, y = draw()
    model = gaussian.fit(x, y, covariance=kind, sample_weight=ONES, num_classes=3)
    drawn, classes = map(np.asarray, gaussian.sample(jax.random.key(0), model, 30_000))
    # 1e4 draws of a class: four standard errors
    np.testing.assert_allclose(np.bincount(classes) / 30_000, model.priors, atol=0.012)
    for k in range(3):
        mine = drawn[classes == k]
        covariance = np.asarray(model.covariance if kind == "shared" else model.covariance[k])
        covariance = np.diag(covariance) if kind == "naive" else covariance
        deviation = np.sqrt(np.diag(covariance))
        assert (np.abs(mine.mean(axis=0) - model.means[k]) < 0.06 * deviation).all()
        scale = deviation[:, None] * deviation
        assert (np.abs(np.cov(mine.T) - covariance) < 0.08 * scale).all()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from(["shared", "own"]))
def test_an_affine_map_changes_no_posterior(seed, kind):
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        x, y = draw(seed, dtype=np.float64)
        turn = rng.normal(size=(3, 3)) + 3 * np.eye(3)
        moved = x @ turn + rng.normal(size=3)
        ours = gaussian.log_posterior(gaussian.fit(x, y, covariance=kind, num_classes=3), x)
        mapped = gaussian.fit(moved, y, covariance=kind, num_classes=3)
        # Conditions of 1e4 at most
        np.testing.assert_allclose(
            gaussian.log_posterior(mapped, moved), ours, rtol=1e-6, atol=1e-6
        )


# Rows that do not count, and many fits at once


@pytest.mark.parametrize("kind", KINDS)
def test_folds_in_one_program(kind):
    x, y = draw()
    folds = (np.arange(60) % 3 != np.arange(3)[:, None]).astype(np.float32)
    traces = 0

    @jax.jit
    def together(x, y, weight, shrinkage):
        nonlocal traces
        traces += 1
        return jax.vmap(
            lambda w: jax.vmap(
                lambda s: gaussian.fit(
                    x, y, covariance=kind, sample_weight=w, shrinkage=s, num_classes=3
                )
            )(shrinkage)
        )(weight)

    shrinkages = np.array([0.0, 0.25], np.float32)
    models = together(x, y, folds, shrinkages)
    for i, weight in enumerate(folds):
        for j, shrinkage in enumerate(shrinkages):
            alone = gaussian.fit(
                x, y, covariance=kind, shrinkage=shrinkage, sample_weight=weight, num_classes=3
            )
            one = jax.tree.map(lambda leaf, i=i, j=j: np.asarray(leaf)[i, j], models)
            np.testing.assert_allclose(one.covariance, alone.covariance, rtol=2e-5, atol=1e-5)
            np.testing.assert_allclose(
                gaussian.log_posterior(one, x),
                gaussian.log_posterior(alone, x),
                rtol=1e-3,
                atol=1e-3,
            )
    if kind == "own":  # a weight of 0 is a row that is not there
        there = folds[2] > 0
        fewer = gaussian.fit(x[there], y[there], covariance=kind, shrinkage=0.25)
        np.testing.assert_allclose(fewer.covariance, one.covariance, rtol=2e-5, atol=1e-5)
    # Rows that weigh nothing may hold anything, and a second call does not compile.
    junk = np.where(folds[0][:, None] > 0, x, np.float32(np.nan)), np.where(folds[0] > 0, y, 99)
    same = together(*junk, np.stack([folds[0]] * 3), shrinkages)
    assert traces == 1
    np.testing.assert_allclose(
        np.asarray(same.covariance)[0], np.asarray(models.covariance)[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_without_rows_is_never_predicted(kind):
    x, y = draw()
    weight = (y != 1).astype(np.float32)
    model = gaussian.fit(x, y, covariance=kind, sample_weight=weight, num_classes=3)
    assert model.priors[1] == 0
    assert not np.any(model.singular)
    p = np.asarray(gaussian.predict_proba(model, x))
    assert (p[:, 1] == 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    drawn, classes = gaussian.sample(jax.random.key(0), model, 30_000)
    assert np.isfinite(np.asarray(drawn)).all()
    assert not (np.asarray(classes) == 1).any()


def test_gradients_against_finite_differences(x64):
    x, y = draw(dtype=np.float64)
    weight = np.random.default_rng(1).uniform(0.5, 2, 60)
    rng = np.random.default_rng(2)
    for kind in ("shared", "own"):

        def loss(x, weight, shrinkage, kind=kind):
            model = gaussian.fit(
                x, y, covariance=kind, sample_weight=weight, shrinkage=shrinkage, num_classes=3
            )
            return gaussian.log_posterior(model, x[:4]).sum()

        at = (x, weight, np.asarray(0.1))
        along = tuple(rng.normal(size=np.shape(leaf)) for leaf in at)
        both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        slopes = both(*at)[1]
        step = 1e-6
        ahead, behind = (
            both(*(leaf + sign * step * way for leaf, way in zip(at, along, strict=True)))[0]
            for sign in (1, -1)
        )
        by_hand = sum(np.sum(g * way) for g, way in zip(slopes, along, strict=True))
        # Rounding of a sum of order 1e2: 1e-14 / 1e-6
        np.testing.assert_allclose(by_hand, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)


# What cannot be answered is not answered


def test_singular_covariances():
    x, y = draw(n=60)
    twin = np.concatenate([x, x[:, :1] + x[:, 1:2]], axis=1)
    with pytest.raises(ValueError, match=r"shared covariance is singular: feature 3 .*shrinkage=0"):
        gaussian.fit(twin, y)
    few = np.concatenate([np.flatnonzero(y == 0)[:3], np.flatnonzero(y)])
    with pytest.raises(ValueError, match=r"of class 0 is singular \(3 rows for 3 features\)"):
        gaussian.fit(x[few], y[few], covariance="own")
    dead = x.copy()
    dead[y == 2, 1] = 5.0
    with pytest.raises(ValueError, match=r"variance of feature 1 in class 2 is 0"):
        gaussian.fit(dead, y, covariance="naive", var_smoothing=0.0, sample_weight=ONES)
    with pytest.raises(ValueError, match=r"class 2 is singular .*feature 1 is constant"):
        gaussian.fit(dead, y, covariance="own", sample_weight=ONES)
    for kind in KINDS:  # what the messages advise does help
        helped = gaussian.fit(dead, y, covariance=kind, shrinkage=0.1, sample_weight=ONES)
        assert (np.asarray(gaussian.predict(helped, x)) >= 0).all()
    # Under a transformation the answer says that there is none.
    model = jax.jit(gaussian.fit, static_argnames=("covariance", "num_classes"))(
        dead, y, covariance="own", num_classes=3
    )
    assert np.asarray(model.singular).tolist() == [False, False, True]
    assert np.isnan(np.asarray(model.factor)[2]).all()
    assert np.isfinite(np.asarray(model.factor)[:2]).all()
    assert (np.asarray(gaussian.predict(model, x)) == -1).all()
    assert np.isnan(np.asarray(gaussian.log_posterior(model, x))).all()
    assert (np.asarray(gaussian.predict(helped, np.full((60, 3), np.nan))) == -1).all()
    spoilt = jax.jit(gaussian.fit, static_argnames="num_classes")(x, y + 1, num_classes=3)
    assert np.isnan(np.asarray(spoilt.covariance)).all()  # a label that is no class


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"covariance": "full"}, ValueError, "covariance must be one of 'shared', 'own', 'naive'"),
        ({"pool": "all"}, ValueError, "pool must be one of"),
        ({"shrinkage": 1.5}, ValueError, "shrinkage must be in [0, 1], got 1.5"),
        ({"shrinkage": [0.1]}, ValueError, "shrinkage must be 0-D"),
        ({"var_smoothing": 0.1}, ValueError, 'var_smoothing is for covariance="naive"'),
        ({"priors": [0.5, 0.5]}, ValueError, "priors must have shape (3,)"),
        ({"priors": [0.5, 0.4, 0.4]}, ValueError, "the sum of priors must be in"),
        ({"priors": [1.5, -0.5, 0.0]}, ValueError, "priors must not be negative"),
        (
            {"sample_weight": np.zeros(60)},
            ValueError,
            "sample_weight must be positive for at least",
        ),
        ({"sample_weight": np.ones(5)}, ValueError, "must have as many rows"),
        ({"num_classes": 2}, ValueError, "y must be in 0..1 (2 classes), got 2 at index 2"),
        ({"num_classes": 4, "priors": [0.25] * 4}, ValueError, "got none of class 3"),
        ({"y": np.zeros(60)}, TypeError, "y must be an integer array"),
        ({"x": np.zeros(60)}, ValueError, "x must be 2-D"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0, int)}, ValueError, "x must not be empty"),
        (
            {"x": np.full((60, 3), np.inf)},
            ValueError,
            "x must be finite, got inf in row 0, column 0",
        ),
    ],
)
def test_bad_input(options, error, message):
    x, y = draw()
    arguments = {"x": x, "y": y} | options
    with pytest.raises(error, match=re.escape(message)):
        gaussian.fit(**arguments)


def test_bad_use_of_a_model():
    x, y = draw()
    model = gaussian.fit(x, y, covariance="own")
    with pytest.raises(ValueError, match="x must have 3 features in its last axis"):
        gaussian.predict(model, x[:, :2])
    with pytest.raises(ValueError, match="linear_form needs covariance=\"shared\", got 'own'"):
        gaussian.linear_form(model)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        gaussian.sample(jax.random.key(0), model, 0)
    with pytest.raises(ValueError, match="num_classes must be given where y"):
        jax.jit(gaussian.fit)(x, y)
    # One row, or rows of any shape
    many = gaussian.log_posterior(model, x.reshape(4, 15, 3))
    np.testing.assert_allclose(many[1, 2], gaussian.log_posterior(model, x[17]), rtol=1e-5)


# The page


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_the_logistic_fit_of_the_demo_is_the_peers(x64):
    from sklearn.linear_model import LogisticRegression

    x, y = real("breast_cancer")
    x = x[:, :10]
    theta, gradient = demo.fit_logistic(jnp.asarray(x), jnp.asarray(y), jnp.ones(len(y)))
    assert gradient < 1e-10
    peer = LogisticRegression(C=1 / demo.RIDGE, tol=1e-10, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(theta[:-1], peer.coef_[0], rtol=1e-3, atol=1e-3)


def test_few_rows_and_many(result):
    naive, shared, own, logistic = range(4)
    error, sizes = result.held_out_error, result.sizes
    assert result.gradient < 1e-4
    # Own covariances need more than ten rows of each class.
    assert np.isnan(error[own, sizes.index(20)])
    assert np.isfinite(error[own, sizes.index(110) :]).all()
    # With few rows the pooled covariance over-fits less than one for each class, ...
    at = sizes.index(70)
    gap = result.held_out_loss - result.train_loss
    assert gap[shared, at] < gap[own, at] / 2
    # ... and one Gaussian is better than the border fitted straight away, which wins in the end.
    first = sizes.index(30)
    assert error[naive, first] < error[logistic, first] - 2 * result.standard_error[logistic, first]
    assert error[logistic, -1] < error[naive, -1] - 2 * result.standard_error[naive, -1]
    # No softmax of a linear function has a lower training loss than the one that was fitted to it.
    assert (result.train_loss[logistic] < result.train_loss[shared]).all()
    tables = demo.tables(result)
    assert all(len({tuple(row) for row in rows}) == 1 for rows in tables.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demo.plot(result)
    import matplotlib.pyplot as plt

    plt.close("all")
