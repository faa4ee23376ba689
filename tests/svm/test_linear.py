"""Linear machines in the primal against SciPy, scikit-learn, and their own certificate."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax import _linear_newton as newton
from mlnotes_jax.data import datasets
from mlnotes_jax.svm import _linear

LOSSES = ["squared_hinge", "hinge", "logistic", "exponential"]
VALUES = {
    "squared_hinge": lambda z: np.maximum(0, 1 - z) ** 2,
    "hinge": lambda z: np.maximum(0, 1 - z),
    "logistic": lambda z: np.logaddexp(0, -z),
    "exponential": lambda z: np.exp(-z),
}


# Compiling takes most of the time, so nearly all data here have one shape.


def draw(n=120, d=4, dtype=np.float64, seed=0):
    """Two overlapping classes; features in units that differ, not centred."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.normal(size=(n, d)) + 0.9 * y[:, None]
    x = x * np.geomspace(0.5, 2, d) + np.arange(d)
    return x.astype(dtype), y, rng.uniform(0.2, 2, n).astype(dtype)


def objective(x, y, weight, C, loss, coef, intercept):
    coef = np.asarray(coef, float)
    z = np.where(y == 1, 1, -1) * (np.asarray(x, float) @ coef + float(intercept))
    return coef @ coef / 2 + C * weight @ VALUES[loss](z)


# Peers


@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("loss", ["logistic", "exponential", "squared_hinge"])
def test_equals_scipy(loss, C, x64):
    from scipy.optimize import minimize

    x, y, weight = draw()
    model = _linear.fit_linear(x, y, C=C, loss=loss, sample_weight=weight, tol=1e-10)

    def value(params):
        return objective(x, y, weight, C, loss, params[:-1], params[-1])

    def slope(params):
        signs = np.where(y == 1, 1, -1)
        z = signs * (x @ params[:-1] + params[-1])
        by_z = {
            "logistic": -1 / (1 + np.exp(z)),
            "exponential": -np.exp(-z),
            "squared_hinge": -2 * np.maximum(0, 1 - z),
        }[loss]
        pull = C * weight * signs * by_z
        return np.append(params[:-1] + x.T @ pull, pull.sum())

    peer = minimize(value, np.zeros(5), jac=slope, method="BFGS", options={"gtol": 1e-9})
    assert model.converged.all()
    # BFGS stops at a gradient of about 1e-9; objectives are then equal up to rounding
    assert model.objective[0] <= peer.fun * (1 + 1e-9)
    np.testing.assert_allclose(model.objective[0], value(np.append(model.coef[0], model.intercept)))
    np.testing.assert_allclose(model.coef[0], peer.x[:-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
def test_hinge_equals_the_kernel_machine(C, x64):
    from sklearn.svm import SVC

    x, y, weight = draw()
    model = _linear.fit_linear(x, y, C=C, loss="hinge", sample_weight=weight, tol=1e-8)
    peer = SVC(kernel="linear", C=C, tol=1e-8).fit(x, y, sample_weight=weight)
    theirs = objective(x, y, weight, C, "hinge", peer.coef_[0], peer.intercept_[0])
    assert model.converged.all()
    assert model.objective[0] <= theirs * (1 + 1e-7)
    # The objective is strongly convex in w alone: |w - w*|^2 / 2 <= gap
    np.testing.assert_allclose(model.coef[0], peer.coef_[0], atol=1e-3 * np.abs(peer.coef_).max())


@pytest.mark.parametrize("loss", ["squared_hinge", "hinge"])
def test_equals_linear_svc_without_a_free_intercept(loss, x64):
    from sklearn.svm import LinearSVC

    x, y, _ = draw()
    x[:, 3] = 1  # a penalised intercept, as scikit-learn has it
    model = _linear.fit_linear(x, y, loss=loss, fit_intercept=False, tol=1e-8)
    peer = LinearSVC(loss=loss, fit_intercept=False, tol=1e-10, max_iter=1_000_000).fit(x, y)
    theirs = objective(x, y, np.ones(len(x)), 1.0, loss, peer.coef_[0], 0.0)
    assert model.converged.all()
    assert model.intercept[0] == 0
    assert model.objective[0] <= theirs * (1 + 1e-8)
    # |w - w*|^2 / 2 is at most the gap, 1e-8 of some 50
    np.testing.assert_allclose(model.coef[0], peer.coef_[0], atol=2e-3)
    assert (_linear.predict(model, x) == peer.predict(x).astype(np.int32)).mean() > 0.98


def test_class_weights_equal_sklearn(x64):
    from sklearn.svm import SVC

    x, y, _ = draw()
    keep = (y == 0) | (np.arange(len(y)) % 4 == 0)  # unbalanced
    for ours, theirs in [("balanced", "balanced"), ([1.0, 3.0], {0: 1.0, 1: 3.0})]:
        model = _linear.fit_linear(
            x, y, loss="hinge", class_weight=ours, sample_weight=keep, tol=1e-8
        )
        peer = SVC(kernel="linear", class_weight=theirs, tol=1e-8).fit(x[keep], y[keep])
        np.testing.assert_allclose(model.coef[0], peer.coef_[0], atol=1e-3)


def test_logistic_equals_sklearn(x64):
    from sklearn.linear_model import LogisticRegression

    x, y, _ = draw()
    model = _linear.fit_linear(x, y, C=0.7, loss="logistic", tol=1e-12)
    peer = LogisticRegression(C=0.7, tol=1e-10, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(model.coef, peer.coef_, atol=1e-5)
    np.testing.assert_allclose(model.intercept, peer.intercept_, atol=1e-5)


def test_three_classes_are_three_machines():
    data = datasets.load("iris")
    x = (data.x - data.x.mean(0)) / data.x.std(0)
    model = _linear.fit_linear(x, data.y, loss="squared_hinge")
    assert model.coef.shape == (3, 4)
    assert model.converged.all()
    for k in range(3):
        codes = (data.y == k).astype(int)
        value = objective(
            x, codes, np.ones(150), 1.0, "squared_hinge", model.coef[k], model.intercept[k]
        )
        np.testing.assert_allclose(model.objective[k], value, rtol=1e-5)  # that of its own machine
    scores = _linear.decision_function(model, x)
    assert scores.shape == (150, 3)
    classes = _linear.predict(model, x)
    np.testing.assert_array_equal(classes, np.argmax(scores, axis=1))
    assert classes.dtype == jnp.int32
    assert (classes == data.y).mean() > 0.9
    assert _linear.decision_function(model, x[0]).shape == (3,)


# The certificate


@pytest.mark.parametrize(
    ("loss", "fit_intercept"),
    [*((loss, True) for loss in LOSSES), ("squared_hinge", False), ("hinge", False)],
)
def test_the_gap_bounds_the_error_of_any_fit(loss, fit_intercept, x64):
    x, y, weight = draw()
    options = {"C": 2.0, "loss": loss, "sample_weight": weight, "fit_intercept": fit_intercept}
    best = _linear.fit_linear(x, y, tol=1e-9, **options)
    assert best.converged.all()
    assert best.gap[0] >= 0
    for steps in (1, 2):
        early = _linear.fit_linear(x, y, tol=1e-9, max_iter=steps, **options)
        above = early.objective[0] - best.objective[0]
        assert -1e-9 * best.objective[0] <= above <= early.gap[0] + 1e-12
        assert early.converged[0] == (early.gap[0] <= 1e-9 * early.objective[0])
        assert early.num_iterations[0] == steps
        assert steps > 1 or not early.converged.any()


@pytest.mark.parametrize("loss", ["squared_hinge", "hinge", "exponential"])
def test_float32_says_what_it_reaches(loss):
    x, y, weight = draw(dtype=np.float32)
    model = _linear.fit_linear(x, y, loss=loss, sample_weight=weight)
    assert model.converged.all()
    assert model.coef.dtype == jnp.float32
    exact = objective(
        x.astype(float), y, weight.astype(float), 1.0, loss, model.coef[0], model.intercept[0]
    )
    # Sums in two levels: a few units in the last place
    np.testing.assert_allclose(model.objective[0], exact, rtol=2e-6)
    # What cannot be reached is not called reached, and does not run for ever.
    tight = _linear.fit_linear(x, y, loss=loss, sample_weight=weight, tol=1e-12)
    assert tight.converged.all() == (tight.gap[0] <= 1e-12 * tight.objective[0])
    assert tight.num_iterations[0] < 200


def test_separable_rows():
    x, y = np.zeros((120, 4), np.float32), np.arange(120) % 2
    x[:, 0] = (2 * y - 1) * (1 + np.arange(120) % 7)
    # The widest margin is 2, between -1 and 1: w = (1, 0, 0, 0), b = 0, the objective 1/2
    hinge = _linear.fit_linear(x, y, C=100.0, loss="hinge")
    np.testing.assert_allclose(hinge.coef[0], [1, 0, 0, 0], atol=2e-2)
    np.testing.assert_allclose(hinge.objective[0], 0.5, rtol=2e-4)
    for loss in ("squared_hinge", "hinge", "exponential"):  # the penalty keeps w from running away
        model = _linear.fit_linear(x, y, C=100.0, loss=loss)
        assert model.converged.all(), loss
        assert (_linear.predict(model, x) == jnp.asarray(y)).all()


def test_exponential_does_not_overflow():
    # At the first Newton step exp(-y t) would be exp(500)
    rng = np.random.default_rng(0)
    x = (1e3 * rng.normal(size=(120, 4))).astype(np.float32)
    y = (x[:, 0] + 200 * rng.normal(size=120) > 0).astype(int)
    model = _linear.fit_linear(x, y, loss="exponential", C=10.0)
    assert model.converged.all()
    assert np.isfinite(model.coef).all()


def test_a_large_mean_costs_no_digits():
    x, y, _ = draw(dtype=np.float32)
    x = np.round(x * 64) / 64  # exact after the shift, too
    for loss in ("squared_hinge", "hinge"):
        near = _linear.fit_linear(x, y, loss=loss, tol=1e-5)
        far = _linear.fit_linear(x + np.float32(1024), y, loss=loss, tol=1e-5)
        assert far.converged.all()
        np.testing.assert_allclose(far.objective, near.objective, rtol=2e-5)


def test_zero_curvature_and_constant_features():
    x, y, _ = draw(dtype=np.float32)
    x[:, 2] = 7.0
    for loss in ("squared_hinge", "hinge", "exponential"):
        model = _linear.fit_linear(x, y, loss=loss)
        assert model.converged.all()
        assert abs(model.coef[0, 2]) < 1e-6
    flat = _linear.fit_linear(np.zeros_like(x), np.arange(120) // 119, loss="hinge")
    assert flat.converged.all()
    np.testing.assert_allclose(flat.objective[0], 2, rtol=1e-4)  # the majority: one row wrong


def test_conjugate_gradients_give_the_same(monkeypatch, x64):
    x, y, weight = draw(n=119)  # a shape of its own: the limit is read when a program is made
    monkeypatch.setattr(newton, "MAX_DENSE", 2)
    model = _linear.fit_linear(x, y, loss="hinge", sample_weight=weight, tol=1e-8)
    assert model.converged.all()
    monkeypatch.undo()
    more = [np.append(x, x[:1], axis=0), np.append(y, y[:1]), np.append(weight, 0)]
    dense = _linear.fit_linear(*more[:2], loss="hinge", sample_weight=more[2], tol=1e-8)
    np.testing.assert_allclose(model.objective, dense.objective, rtol=3e-8)


# The losses themselves


@pytest.mark.parametrize("loss", LOSSES)
def test_slopes_and_excess(loss, x64):
    signs = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0])
    t = jnp.array([-1.3, -0.4, 0.2, 1.7, 2.5])
    made = _linear._CLASSIFIER_LOSSES[loss](signs)
    np.testing.assert_allclose(made.value(t), VALUES[loss](np.asarray(signs * t)))
    grid = np.linspace(-12, 12, 240_001)
    if made.start is None:
        slope, curvature = made.derivatives(t, None)
        chex.assert_trees_all_close(slope, jax.grad(lambda t: made.value(t).sum())(t))
        by_autodiff = jax.grad(lambda t: made.derivatives(t, None)[0].sum())(t)
        chex.assert_trees_all_close(curvature, by_autodiff)
        np.testing.assert_allclose(made.excess(t, slope), 0, atol=1e-15)
    # l(t) + l*(g) - g t with l*(g) = max over t of g t - l(t), found by search
    for i, a in enumerate([0.1, 0.4, 0.5, 0.7, 0.9]):
        g = -float(signs[i]) * a
        conjugate = (g * grid - VALUES[loss](float(signs[i]) * grid)).max()
        expected = float(made.value(t)[i]) + conjugate - g * float(t[i])
        found = made.excess(t, jnp.full(5, g))[i]
        np.testing.assert_allclose(found, expected, atol=1e-7)  # the step of the grid, squared


def test_totals_are_accurate():
    values = np.random.default_rng(0).uniform(0, 1, 100_003).astype(np.float32)
    # Adding one by one would err by about 1e-5
    np.testing.assert_allclose(
        newton.total(jnp.asarray(values)), values.sum(dtype=float), rtol=4e-7
    )


# Properties and transformations


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 1000), st.floats(0.01, 30), st.sampled_from(["hinge", "squared_hinge"]))
def test_the_optimum_beats_its_neighbours(seed, C, loss):
    x, y, weight = draw(seed=seed)
    with jax.enable_x64(True):
        model = _linear.fit_linear(x, y, C=C, loss=loss, sample_weight=weight, tol=1e-7)
    assert model.converged.all()
    best = np.append(model.coef[0], model.intercept)
    value = objective(x, y, weight, C, loss, best[:-1], best[-1])
    for step in 0.01 * np.concatenate([np.eye(5), -np.eye(5)]):
        near = objective(x, y, weight, C, loss, (best + step)[:-1], (best + step)[-1])
        assert value <= near + 1e-7 * value


def test_vmap_over_prices_weights_and_labels_equals_a_loop(x64):
    loss = "hinge"
    x, y, weight = draw()
    prices = jnp.array([0.01, 1.0, 30.0])
    weights = np.stack([weight, weight[::-1], np.arange(120) % 3 != 0])
    codes = np.stack([y, y[::-1], 1 - y])

    def run(C, weight, y):
        return _linear.fit_linear(
            x, y, C=C, sample_weight=weight, loss=loss, num_classes=2, tol=1e-9
        )

    batched = jax.jit(jax.vmap(run))(prices, weights, codes)
    assert batched.converged.all()
    for i in range(3):
        one = run(prices[i], weights[i], codes[i])
        np.testing.assert_allclose(batched.objective[i], one.objective, rtol=1e-8)
        np.testing.assert_allclose(batched.coef[i], one.coef, atol=1e-3 * np.abs(one.coef).max())
    kept = np.arange(120) % 3 != 0  # a weight of zero drops a row
    value = objective(
        x[kept], (1 - y)[kept], np.ones(kept.sum()), 30.0, loss, batched.coef[2, 0],
        batched.intercept[2, 0],
    )  # fmt: skip
    np.testing.assert_allclose(batched.objective[2, 0], value, rtol=1e-10)


def test_another_price_does_not_recompile():
    x, y, _ = draw(dtype=np.float32)
    _linear.fit_linear(x, y, loss="squared_hinge")
    before = _linear._classify._cache_size()
    model = _linear.fit_linear(x, 1 - y, C=0.3, tol=1e-3, max_iter=50, loss="squared_hinge")
    assert model.converged.all()
    assert _linear._classify._cache_size() == before


@pytest.mark.parametrize("order", ["drawn", "by class", "every sixteenth of one class"])
def test_a_start_from_few_rows_changes_no_result(order, monkeypatch, x64):
    """Where the few rows tell nothing or the wrong thing, too."""
    x, y, weight = draw(n=320)
    if order == "by class":
        y = np.sort(y)
    elif order != "drawn":
        y[::16] = 1
    signs = jnp.asarray(np.where(y == 1, 1.0, -1.0))

    def minimum(of_rows):
        return newton.minimize(
            jnp.asarray(x),
            jnp.asarray(weight),
            newton.logistic(signs),
            penalty=jnp.array(0.1),
            tol=jnp.array(1e-12),
            max_iter=jnp.array(50),
            of_rows=of_rows,
        )

    whole = jax.jit(minimum, static_argnums=0)(None)
    monkeypatch.setattr(newton, "_MANY", 320)
    asked = []

    def of_rows(rows):
        asked.append(rows)
        return newton.logistic(signs[rows])

    started = jax.jit(minimum, static_argnums=0)(of_rows)
    assert asked  # the few rows were fitted
    assert started.converged
    # The gap bounds the objective to 1e-12 of itself; the penalty makes that 1e-6 of the weights.
    np.testing.assert_allclose(started.objective, whole.objective, rtol=1e-12)
    np.testing.assert_allclose(started.coef, whole.coef, atol=1e-5)


def test_blocks_of_rows_add_up(x64):
    x, _, weight = draw(n=5000)  # two blocks, of which the second overlaps the first
    problem = newton._Problem(
        jnp.asarray(x), jnp.asarray(weight), newton.logistic(jnp.ones(5000)), jnp.ones(()), True
    )
    centred = x - weight @ x / weight.sum()
    assert problem.size < 5000
    curvature = np.random.default_rng(1).uniform(size=5000)
    gram, cross = problem.moments(jnp.asarray(curvature))
    np.testing.assert_allclose(gram, centred.T @ (curvature[:, None] * centred), rtol=1e-10)
    np.testing.assert_allclose(cross, centred.T @ curvature, rtol=1e-10)
    np.testing.assert_allclose(problem.squares(jnp.asarray(curvature)), jnp.diag(gram), rtol=1e-10)
    coef = np.arange(4.0)
    np.testing.assert_allclose(
        problem.scores(jnp.asarray(coef), jnp.asarray(2.0)), centred @ coef + 2, rtol=1e-10
    )


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": [0, 0, 0]}, ValueError, "y must have two classes or more"),
        ({"y": [0, 2, 2]}, ValueError, "got none of class 1"),
        ({"y": [0, 1, -1]}, ValueError, r"y must be in 0\.\.1"),
        ({"y": [0.0, 1.0, 1.0]}, TypeError, "y must be an integer"),
        ({"y": [0, 1]}, ValueError, "x and y must have as many rows"),
        ({"x": [[0.0], [np.nan], [1.0]]}, ValueError, "x must be finite, got nan in row 1"),
        ({"x": np.zeros((0, 2))}, ValueError, "x must not be empty"),
        ({"C": 0.0}, ValueError, "C must be positive"),
        ({"C": np.inf}, ValueError, "C must be finite"),
        ({"tol": -1.0}, ValueError, "tol must be positive"),
        ({"max_iter": 0}, ValueError, "max_iter must be in"),
        ({"loss": "huber"}, ValueError, "loss must be one of 'squared_hinge'"),
        ({"class_weight": "equal"}, ValueError, "class_weight must be one of 'balanced'"),
        ({"class_weight": [1.0]}, ValueError, r"class_weight must have shape \(2,\)"),
        ({"sample_weight": [1.0, -1.0, 1.0]}, ValueError, "sample_weight must not be negative"),
        ({"sample_weight": [1.0, 0.0, 0.0]}, ValueError, "got none of class 1"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"x": [[0.0], [1.0], [2.0]], "y": [0, 1, 1]} | change
    with pytest.raises(error, match=message):
        _linear.fit_linear(arguments.pop("x"), arguments.pop("y"), **arguments)


def test_traced_labels_need_a_number_of_classes():
    x = np.zeros((4, 1), np.float32)
    with pytest.raises(ValueError, match="num_classes must be given where y is traced"):
        jax.jit(lambda y: _linear.fit_linear(x, y))(jnp.array([0, 1, 0, 1]))


def test_prediction_checks_its_columns():
    x, y, _ = draw(dtype=np.float32)
    model = _linear.fit_linear(x, y)
    with pytest.raises(ValueError, match="x must have 4 features"):
        _linear.predict(model, x[:, :3])


def test_running_out_of_steps_is_said():
    x, y, _ = draw(dtype=np.float32)
    model = _linear.fit_linear(x, y, loss="hinge", max_iter=2)
    assert not model.converged.any()
    assert model.gap[0] > 1e-4 * model.objective[0]
