"""Linear scores: two losses by hand, against PyTorch, and their fits against other solvers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from mlnotes_jax.classification import linear_scores
from mlnotes_jax.data import datasets
from mlnotes_jax.foundations import losses
from mlnotes_jax.svm import classifier

FORMS = [(form, power) for form in ("sum", "max") for power in (1, 2)]
cross_entropy = losses.softmax_cross_entropy_with_integer_labels


def draw(seed=0, n=20, k=5, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=(n, k)).astype(dtype), rng.integers(0, k, n).astype(np.int32)


@functools.cache
def iris():
    data = datasets.load("iris")
    return data.x.astype(np.float64), data.y


def fitted(loss="hinge", l2=1e-2, weight=None, tol=1e-9, **options):
    """Always with weights and a number of classes, so that few programs serve all tests."""
    x, y = iris()
    weight = np.ones(150) if weight is None else weight
    return linear_scores.fit(
        x, y, loss=loss, l2=l2, sample_weight=weight, num_classes=3, tol=tol, **options
    )


# The losses


def test_by_hand():
    # The right class is the second: leads of the others 0.5 and -3.5
    s, y = [3.0, 2.5, -1.0], 1
    hinge = functools.partial(linear_scores.multiclass_hinge, s, y)
    assert float(hinge()) == 1.5
    assert float(hinge(power=2)) == 2.25
    assert float(hinge(margin=4.0)) == 4.5 + 0.5
    assert float(hinge(margin=4.0, form="max")) == 4.5
    assert float(hinge(margin=4.0, form="max", power=2)) == 20.25
    assert linear_scores.hinge_gradient(s, y).tolist() == [1, -1, 0]
    assert linear_scores.hinge_gradient(s, y, margin=4.0).tolist() == [1, -2, 1]
    assert linear_scores.hinge_gradient(s, y, margin=4.0, form="max").tolist() == [1, -1, 0]
    assert linear_scores.hinge_gradient(s, y, margin=4.0, power=2).tolist() == [9, -10, 1]
    # On the kink, and among equals
    assert linear_scores.hinge_gradient([0.0, 1.0], 1).tolist() == [0, 0]
    assert linear_scores.hinge_gradient([0.0, 0.0, 0.0], 2, form="max").tolist() == [1, 0, -1]
    total = np.exp(0.5) + 1 + np.exp(-3.5)
    p = [np.exp(0.5) / total, 1 / total - 1, np.exp(-3.5) / total]
    np.testing.assert_allclose(linear_scores.cross_entropy_gradient(s, y), p, rtol=1e-6)
    # 1 - p_y is 2e-9, which float32 cannot take from 1
    sure = linear_scores.cross_entropy_gradient([0.0, 20.0], 1)
    np.testing.assert_allclose(sure, [np.exp(-20.0), -np.exp(-20.0)], rtol=1e-5)


@pytest.mark.parametrize("power", [1, 2])
def test_torch(power, torch, x64):
    s, y = draw()
    k = s.shape[1]
    weight = np.random.default_rng(1).uniform(0.5, 2, k)
    leaf = torch.tensor(s, requires_grad=True)
    theirs = torch.nn.functional.multi_margin_loss(
        leaf,
        torch.tensor(y, dtype=torch.long),
        p=power,
        margin=0.7,
        weight=torch.tensor(weight),
        reduction="none",
    )
    ours = linear_scores.multiclass_hinge(
        s, y, power=power, margin=0.7, weights=weight[y], reduction="none"
    )
    # Sums of five numbers in float64
    np.testing.assert_allclose(ours / k, theirs.detach(), rtol=1e-13)
    theirs.sum().backward()
    slope = linear_scores.hinge_gradient(s, y, power=power, margin=0.7) * weight[y][:, None]
    np.testing.assert_allclose(slope / k, leaf.grad, rtol=1e-13, atol=1e-15)
    leaf = torch.tensor(s, requires_grad=True)
    torch.nn.functional.cross_entropy(
        leaf, torch.tensor(y, dtype=torch.long), reduction="sum"
    ).backward()
    slope = linear_scores.cross_entropy_gradient(s, y)
    np.testing.assert_allclose(slope, leaf.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("form", "power"), FORMS)
def test_gradients(form, power, x64):
    s, y = draw()
    options = {"form": form, "power": power, "margin": 1.3}
    loss = functools.partial(linear_scores.multiclass_hinge, labels=y, reduction="sum", **options)
    slope = np.asarray(linear_scores.hinge_gradient(s, y, **options))
    np.testing.assert_allclose(jax.grad(loss)(s), slope, rtol=1e-14)
    np.testing.assert_allclose(slope.sum(axis=1), 0, atol=1e-13)
    # Pieces of degree 1 or 2, and no row within a step of a kink: exact but for rounding / step
    step, along = 1e-6, np.random.default_rng(3).normal(size=s.shape)
    ahead, behind = float(loss(s + step * along)), float(loss(s - step * along))
    np.testing.assert_allclose((slope * along).sum(), (ahead - behind) / (2 * step), rtol=1e-7)
    # Through the weights: the sum of outer products
    x = np.random.default_rng(2).normal(size=(20, 3))
    weights = np.random.default_rng(4).normal(size=(5, 3))
    through = jax.grad(lambda w: loss(x @ w.T))(weights)
    by_hand = np.asarray(linear_scores.hinge_gradient(x @ weights.T, y, **options)).T @ x
    np.testing.assert_allclose(through, by_hand, rtol=1e-12, atol=1e-12)


def test_cross_entropy_gradient(x64):
    s, y = draw()
    loss = functools.partial(cross_entropy, labels=y, reduction="sum")
    slope = linear_scores.cross_entropy_gradient(s, y)
    np.testing.assert_allclose(jax.grad(loss)(s), slope, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(slope.sum(axis=1), 0, atol=1e-15)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.floats(-50, 50))
def test_between_bounds(seed, common):
    with jax.enable_x64(True):
        s, y = draw(seed)
        rows = np.arange(len(y))
        total, worst, soft = (
            np.asarray(value)
            for value in (
                linear_scores.multiclass_hinge(s, y, reduction="none"),
                linear_scores.multiclass_hinge(s, y, form="max", reduction="none"),
                cross_entropy(s, y, reduction="none"),
            )
        )
        moved = linear_scores.multiclass_hinge(s + common, y, reduction="none")
        also = cross_entropy(s + common, y, reduction="none")
        # A number that all scores share: rounding of 50
        np.testing.assert_allclose(moved, total, atol=1e-12)
        np.testing.assert_allclose(also, soft, atol=1e-12)
        lead = np.where(np.arange(5) == y[:, None], -np.inf, s).max(axis=1) - s[rows, y]
    assert (worst <= total + 1e-12).all()
    assert (total <= 4 * worst + 1e-12).all()
    assert (worst >= (lead > 0)).all()  # above the number of errors
    assert (soft / np.log(2) >= (lead > 0)).all()
    assert (soft >= np.maximum(lead, 0)).all()
    assert (soft <= np.maximum(lead, 0) + np.log(5)).all()


@pytest.mark.parametrize("form", ["sum", "max"])
def test_two_classes_are_one_margin(form):
    s, _ = draw(k=2, dtype=np.float32)
    y = np.arange(20) % 2
    ours = linear_scores.multiclass_hinge(s, y, form=form, reduction="none")
    signed = losses.hinge(s[:, 1] - s[:, 0], 2 * y - 1, reduction="none")
    np.testing.assert_allclose(ours, signed, rtol=1e-6, atol=1e-6)


def test_reductions_masks_and_transformations():
    s, y = draw(dtype=np.float32)
    each = np.asarray(linear_scores.multiclass_hinge(s, y, reduction="none"))
    kept = np.arange(20) % 3 > 0
    junk = np.where(kept[:, None], s, np.float32(np.nan)), np.where(kept, y, 99)
    mean = linear_scores.multiclass_hinge(*junk, where=kept)
    np.testing.assert_allclose(mean, each[kept].mean(), rtol=1e-6)
    slope = jax.grad(lambda s: linear_scores.multiclass_hinge(s, junk[1], where=kept))(junk[0])
    assert np.isfinite(np.asarray(slope)).all()
    traces = 0

    @jax.jit
    def compiled(s, y, margin):
        nonlocal traces
        traces += 1
        alone = jax.vmap(lambda s, y: linear_scores.multiclass_hinge(s, y, margin=margin))
        return alone(s, y), linear_scores.hinge_gradient(s, y), s * 0

    one, slope, _ = compiled(s, y, 1.0)
    np.testing.assert_allclose(one, each, rtol=1e-6)
    np.testing.assert_array_equal(slope, linear_scores.hinge_gradient(s, y))
    spoilt, slope, _ = compiled(s, np.where(y == 0, 7, y), 1.0)
    assert traces == 1
    np.testing.assert_array_equal(np.isnan(np.asarray(spoilt)), y == 0)
    np.testing.assert_array_equal(np.isnan(np.asarray(slope)).any(axis=1), y == 0)
    bad = jax.jit(linear_scores.cross_entropy_gradient)(s, np.where(y == 0, 7, y))
    np.testing.assert_array_equal(np.isnan(np.asarray(bad)).all(axis=1), y == 0)
    half = linear_scores.multiclass_hinge(s.astype(jnp.bfloat16), y)
    assert half.dtype == jnp.float32


# The fit


def test_cross_entropy_equals_logistic_regression(x64):
    x, y = iris()
    weight = np.random.default_rng(0).uniform(0.5, 2, 150)
    for l2 in (1.0, 1e-3):
        model = fitted("cross_entropy", l2, weight)
        peer = LogisticRegression(C=1 / (l2 * weight.sum()), tol=1e-12, max_iter=5000)
        peer.fit(x, y, sample_weight=weight)
        # A gap of 1e-9 is a distance of sqrt(2e-9 / l2); the peer is no closer
        far = 2 * np.sqrt(2e-9 / l2)
        assert model.converged
        assert np.abs(model.coef - peer.coef_).max() < far
        scores = linear_scores.class_scores(model, x)
        theirs = peer.decision_function(x)
        gap = jax.nn.softmax(scores) - jax.nn.softmax(theirs)
        assert np.abs(gap).max() < 10 * far


def test_max_hinge_equals_liblinear(x64):
    x, y = iris()
    ones = np.concatenate([x, np.ones((150, 1))], axis=1)
    for l2 in (1e-1, 1e-2):
        model = linear_scores.fit(
            ones, y, loss="max_hinge", l2=l2, fit_intercept=False, num_classes=3, tol=1e-8
        )
        peer = LinearSVC(
            multi_class="crammer_singer",
            C=1 / (150 * l2),
            fit_intercept=False,
            tol=1e-9,
            max_iter=10**6,
            random_state=0,
        ).fit(ones, y)
        assert model.converged
        assert model.intercept.tolist() == [0, 0, 0]
        # As above, the gap being at most 1e-8 of an objective below 1
        np.testing.assert_allclose(model.coef, peer.coef_, atol=2 * np.sqrt(2e-8 / l2))


def test_hinge_equals_a_quadratic_program(x64):
    # Thirty rows, each with a slack for each wrong class
    x, y = iris()
    weight = (np.arange(150) % 5 == 0).astype(float)
    chosen = np.flatnonzero(weight)
    l2, n = 0.02, len(chosen)
    pairs = [(i, j) for i in chosen for j in range(3) if j != y[i]]
    rows = np.zeros((len(pairs), 15 + len(pairs)))
    for p, (i, j) in enumerate(pairs):  # s_y - s_j + slack >= 1
        for c, sign in ((y[i], 1), (j, -1)):
            rows[p, 4 * c : 4 * c + 4] += sign * x[i]
            rows[p, 12 + c] += sign
        rows[p, 15 + p] = 1
    price = np.concatenate([np.zeros(15), np.full(len(pairs), 1 / n)])
    shrink = np.concatenate([np.full(12, l2), np.zeros(3 + len(pairs))])
    found = optimize.minimize(
        lambda v: price @ v + 0.5 * shrink @ v**2,
        np.concatenate([np.zeros(15), np.ones(len(pairs))]),
        jac=lambda v: price + shrink * v,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda v: rows @ v - 1, "jac": lambda v: rows},
        bounds=[(None, None)] * 15 + [(0, None)] * len(pairs),
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.success
    model = fitted("hinge", l2, weight)
    assert model.converged
    # Both are minima: ours within a gap of 1e-9 of 1, SLSQP's within its tolerance
    np.testing.assert_allclose(model.objective, found.fun, rtol=1e-7)
    np.testing.assert_allclose(model.coef, found.x[:12].reshape(3, 4), atol=1e-3)


def test_two_classes_equal_a_support_vector_machine(x64):
    x, y = iris()
    weight = (y != 0).astype(float)  # class 0 has no rows
    l2 = 0.03
    for loss, theirs in (("hinge", "hinge"), ("cross_entropy", "logistic")):
        model = fitted(loss, l2, weight)
        peer = classifier.fit_linear(x[50:], y[50:] - 1, C=2 / (l2 * 100), loss=theirs, tol=1e-9)
        assert model.converged
        np.testing.assert_allclose(model.coef[2] - model.coef[1], peer.coef[0], atol=1e-3)
        f = linear_scores.class_scores(model, x[50:])
        np.testing.assert_allclose(
            f[:, 2] - f[:, 1], classifier.decision_function(peer, x[50:]), atol=5e-3
        )
        assert model.intercept[0] == -jnp.inf
        assert not np.asarray(model.coef[0]).any()
        assert set(np.asarray(linear_scores.predict(model, x)).tolist()) == {1, 2}


@pytest.mark.parametrize("loss", ["hinge", "max_hinge", "cross_entropy"])
def test_the_gap_is_a_bound(loss, x64):
    x, y = iris()
    l2 = 1e-6 if loss == "cross_entropy" else 1e-3  # not done after the first forty steps
    best = fitted(loss, l2)
    early = fitted(loss, l2, max_iter=1)
    assert best.converged
    assert not early.converged
    assert early.num_iterations == 40
    above = float(early.objective - best.objective)
    # The gap of the best, for it may be above the minimum too
    assert above + float(best.gap) > 0
    assert above <= float(early.gap)
    # The objective is what it says: from the public losses
    scores = linear_scores.class_scores(best, x)
    value = {
        "hinge": functools.partial(linear_scores.multiclass_hinge, form="sum"),
        "max_hinge": functools.partial(linear_scores.multiclass_hinge, form="max"),
        "cross_entropy": cross_entropy,
    }[loss](scores, y) + l2 * losses.l2_penalty(best.coef)
    np.testing.assert_allclose(value, best.objective, rtol=1e-12)
    # No direction goes down: a shift of all rows of W costs, and so does any other
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(np.asarray(best.coef).sum(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(np.asarray(best.intercept).sum(), 0, atol=1e-9)
    if loss == "cross_entropy":  # the mean probability of a class is its share
        p = jax.nn.softmax(scores)
        np.testing.assert_allclose(p.mean(axis=0), 1 / 3, atol=1e-5)
        slope = np.asarray(linear_scores.cross_entropy_gradient(scores, y)).T @ x / 150
        np.testing.assert_allclose(slope + l2 * np.asarray(best.coef), 0, atol=1e-5)
    for _ in range(5):
        other = np.asarray(best.coef) + 0.01 * rng.normal(size=(3, 4))
        s = x @ other.T + np.asarray(best.intercept)
        moved = {
            "hinge": linear_scores.multiclass_hinge,
            "max_hinge": functools.partial(linear_scores.multiclass_hinge, form="max"),
            "cross_entropy": cross_entropy,
        }[loss](s, y) + l2 * losses.l2_penalty(other)
        assert float(moved) > float(best.objective) - float(best.gap)


def test_many_fits_in_one_program(x64):
    x, y = iris()
    folds = (np.arange(150) % 2 != np.arange(2)[:, None]).astype(float)
    weights, penalties = folds[[0, 0, 1]], np.array([1e-2, 1e-3, 1e-3])
    traces = 0

    @jax.jit
    def together(x, y, weight, l2):
        nonlocal traces
        traces += 1
        return jax.vmap(
            lambda w, penalty: linear_scores.fit(
                x, y, sample_weight=w, l2=penalty, num_classes=3, tol=1e-6
            )
        )(weight, l2)

    models = together(x, y, weights, penalties)
    assert np.asarray(models.converged).all()
    for i in range(3):
        alone = fitted("hinge", penalties[i], weights[i], tol=1e-6)
        assert alone.converged
        # Both within 1e-6 of an objective below 0.2, which curves by l2 at least
        distance = np.square(np.asarray(models.coef[i] - alone.coef)).sum()
        assert distance < 4 * 2 * 1e-6 * 0.2 / penalties[i]
        np.testing.assert_allclose(models.objective[i], alone.objective, rtol=2e-6)
    # Rows that weigh nothing may hold anything; what is wrong comes out as such.
    gone = folds[0] == 0
    junk = np.where(gone[:, None], np.nan, x), np.where(gone, 77, y)
    same = together(*junk, folds[[0, 0, 0]], np.array([1e-2, -1.0, 0.0]))
    np.testing.assert_allclose(same.coef[0], models.coef[0], atol=1e-9)
    assert np.asarray(same.converged).tolist() == [True, False, False]
    spoilt = together(x, y + 1, weights, penalties)
    assert not np.asarray(spoilt.converged).any()
    assert np.isnan(np.asarray(spoilt.objective)).all()
    one = jax.tree.map(lambda leaf: leaf[0], spoilt)
    assert (np.asarray(linear_scores.predict(one, x)) == -1).all()
    assert traces == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": "squared"}, ValueError, "loss must be one of 'hinge', 'max_hinge', 'cross_ent"),
        ({"l2": 0.0}, ValueError, "l2 must be positive, got 0.0"),
        ({"l2": np.inf}, ValueError, "l2 must be finite"),
        ({"tol": -1.0}, ValueError, "tol must be positive"),
        ({"max_iter": 0}, ValueError, "max_iter must be in [1"),
        ({"sample_weight": np.zeros(6)}, ValueError, "sample_weight must be positive for at"),
        ({"sample_weight": np.ones(5)}, ValueError, "must have as many rows"),
        ({"num_classes": 2}, ValueError, "y must be in 0..1 (2 classes), got 2 at index 2"),
        ({"y": np.zeros(6)}, TypeError, "y must be an integer array"),
        ({"x": np.zeros(6)}, ValueError, "x must be 2-D"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, ValueError, "x must not be empty"),
        ({"x": np.full((6, 2), np.nan)}, ValueError, "x must be finite, got nan in row 0, col"),
    ],
)
def test_bad_input_of_fit(options, error, message):
    arguments = {"x": np.ones((6, 2)), "y": np.arange(6) % 3} | options
    with pytest.raises(error, match=re.escape(message)):
        linear_scores.fit(**arguments)


def test_bad_input():
    s, y = np.zeros((4, 3)), np.array([0, 1, 2, 0])
    hinge = linear_scores.multiclass_hinge
    for options, message in (
        ({"form": "mean"}, "form must be one of 'sum', 'max', got 'mean'"),
        ({"power": 3}, "power must be one of 1, 2, got 3"),
        ({"margin": -1.0}, "margin must not be negative, got -1.0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            hinge(s, y, **options)
        with pytest.raises(ValueError, match=re.escape(message)):
            linear_scores.hinge_gradient(s, y, **options)
    with pytest.raises(ValueError, match="labels must have the shape of the scores without"):
        hinge(s, y[:3])
    with pytest.raises(ValueError, match=re.escape("labels must be in 0..2 (3 classes), got 3")):
        linear_scores.cross_entropy_gradient(s, y + 1)
    with pytest.raises(TypeError, match="labels must be an integer array"):
        hinge(s, s[:, 0])
    with pytest.raises(ValueError, match="scores must have classes on the last axis"):
        hinge(1.0, 0)
    with pytest.raises(ValueError, match="num_classes must be given where y"):
        jax.jit(linear_scores.fit)(s, y)
    model = linear_scores.LinearScores(*(jnp.ones(shape) for shape in ((3, 2), 3, (), (), (), ())))
    with pytest.raises(ValueError, match="x must have 2 features in its last axis"):
        linear_scores.predict(model, s)
    assert linear_scores.predict(model, [[np.nan, 0.0], [1.0, 1.0]]).tolist() == [-1, 0]
    assert linear_scores.decision_function(model, np.ones((2, 5, 2))).shape == (2, 5, 3)
    pair = jax.tree.map(lambda leaf: leaf[:2] if leaf.ndim else leaf, model)
    assert linear_scores.decision_function(pair, np.ones((2, 5, 2))).shape == (2, 5)
