"""Linear regression against NumPy, scikit-learn, and what is known on paper."""

from functools import partial

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos.foundations import linear_regression as demo
from mlnotes_jax.foundations import linear_regression as lr

SOLVERS = ["svd", "qr", "normal"]


def draw(seed=0, n=40, d=3, dtype=np.float32):
    """Rows that are not centred, in units that differ, with noisy targets."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.arange(1, d + 1) + np.arange(d)
    y = x @ np.linspace(-1, 1, d) + 0.5 + 0.3 * rng.normal(size=n)
    return x.astype(dtype), y.astype(dtype), rng.uniform(0.2, 2, n).astype(dtype)


def with_ones(x):
    return np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1)


# Closed forms


def test_the_notes_example():
    model = lr.fit([[1.0], [2.0], [3.0]], [2.0, 4.0, 6.0])
    # A few roundings of numbers up to 6 in float32
    np.testing.assert_allclose([model.coef[0], model.intercept], [2, 0], atol=3e-6)
    np.testing.assert_allclose(lr.predict(model, [4.0]), 8, atol=5e-6)


def test_line_through_three_points_by_hand():
    # x = 0, 1, 2; y = 0, 2, 1: slope 1/2, intercept 1/2, residuals -1/2, 1, -1/2, so that
    # sigma^2 = 1.5 / (3 - 2); sum (x - 1)^2 = 2, so that var(w) = 0.75.
    model = lr.fit([[0.0], [1.0], [2.0]], [0.0, 2.0, 1.0])
    exact = {"coef": [0.5], "intercept": 0.5, "noise_variance": 1.5, "coef_covariance": [[0.75]]}
    exact |= {"centre": [1.0], "centre_variance": 0.5, "effective_parameters": 2.0, "rank": 1}
    for name, value in exact.items():
        np.testing.assert_allclose(getattr(model, name), value, rtol=1e-6, err_msg=name)


def test_a_row_more_than_parameters_is_needed_for_the_noise():
    x, y, _ = draw()
    assert np.isnan(lr.fit(x, y, sample_weight=np.arange(40) < 4).noise_variance)
    assert np.isfinite(lr.fit(x, y, sample_weight=np.arange(40) < 5).noise_variance)


# Peers


@pytest.mark.parametrize(
    ("solver", "fit_intercept"), [("svd", True), ("qr", True), ("normal", True), ("qr", False)]
)
def test_equals_lstsq(solver, fit_intercept, x64):
    x, y, _ = draw(dtype=np.float64)
    model = lr.fit(x, y, fit_intercept=fit_intercept, solver=solver)
    peer = np.linalg.lstsq(with_ones(x) if fit_intercept else x, y, rcond=None)[0]
    ours = np.append(model.coef, model.intercept) if fit_intercept else model.coef
    np.testing.assert_allclose(ours, peer, rtol=1e-11)  # condition number about 10, 1e-16 each
    assert model.rank == 3
    assert model.normal_residual < 1e-14


@pytest.mark.parametrize("ridge", [0.1, 10.0])
@pytest.mark.parametrize(
    ("solver", "fit_intercept"), [("svd", True), ("qr", True), ("normal", True), ("qr", False)]
)
def test_equals_sklearn_ridge_with_weights(solver, ridge, fit_intercept, x64):
    from sklearn.linear_model import Ridge

    x, y, weight = draw(dtype=np.float64)
    model = lr.fit(
        x, y, ridge=ridge, sample_weight=weight, fit_intercept=fit_intercept, solver=solver
    )
    peer = Ridge(alpha=ridge, fit_intercept=fit_intercept, solver="cholesky")
    peer.fit(x, y, sample_weight=weight)
    np.testing.assert_allclose(model.coef, peer.coef_, rtol=1e-11)
    np.testing.assert_allclose(model.intercept, peer.intercept_, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(lr.predict(model, x), peer.predict(x), rtol=1e-11)


@pytest.mark.parametrize("solver", SOLVERS)
def test_covariance_equals_the_textbook(solver, x64):
    x, y, weight = draw(dtype=np.float64)
    model = lr.fit(x, y, sample_weight=weight, solver=solver)
    design, scale = with_ones(x), np.diag(weight)
    inverse = np.linalg.inv(design.T @ scale @ design)
    residual = y - design @ inverse @ design.T @ scale @ y
    noise = residual @ scale @ residual / (40 - 4)
    np.testing.assert_allclose(model.noise_variance, noise, rtol=1e-11)
    np.testing.assert_allclose(lr.parameter_covariance(model), noise * inverse, rtol=1e-10)
    point = np.array([0.3, -2.0, 5.0])
    variance = noise * np.append(point, 1) @ inverse @ np.append(point, 1)
    predicted = lr.predict_with_error(model, point)
    np.testing.assert_allclose(predicted.mean_error, np.sqrt(variance), rtol=1e-10)
    np.testing.assert_allclose(predicted.observation_error, np.sqrt(noise + variance), rtol=1e-10)


@pytest.mark.parametrize("solver", SOLVERS)
def test_ridge_covariance_and_effective_parameters(solver, x64):
    x, y, weight = draw(dtype=np.float64)
    model = lr.fit(x, y, ridge=7.0, sample_weight=weight, solver=solver)
    centred = x - weight @ x / weight.sum()
    gram = centred.T @ np.diag(weight) @ centred
    inverse = np.linalg.inv(gram + 7 * np.eye(3))
    sandwich = model.noise_variance * inverse @ gram @ inverse
    np.testing.assert_allclose(model.coef_covariance, sandwich, rtol=1e-10)
    np.testing.assert_allclose(model.effective_parameters, 1 + np.trace(gram @ inverse), rtol=1e-12)


def test_standard_errors_are_the_spread_over_new_noise():
    x, _, weight = draw(n=20, d=2)
    clean = x @ np.array([1.0, -2.0], np.float32) + 3
    noise = jax.random.normal(jax.random.key(0), (4000, 20)) / jnp.sqrt(weight)[None]
    refit = jax.vmap(lambda e: lr.fit(x, clean + e, sample_weight=weight))(noise)
    params = np.concatenate([refit.coef, refit.intercept[:, None]], axis=1)
    design = with_ones(x)
    expected = np.linalg.inv(design.T @ np.diag(weight) @ design)  # sigma is 1
    # 4000 draws: a variance has a relative error of sqrt(2/4000) = 2.2 %; four of those
    np.testing.assert_allclose(np.diag(np.cov(params.T)), np.diag(expected), rtol=0.09)
    np.testing.assert_allclose(refit.noise_variance.mean(), 1, atol=4 * np.sqrt(2 / 17 / 4000))


def test_polynomial_features_equal_sklearn():
    from sklearn.preprocessing import PolynomialFeatures

    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for degree, bias in [(1, False), (4, True)]:
        peer = PolynomialFeatures(degree, include_bias=bias).fit(x)
        ours = lr.polynomial_features(x, degree=degree, include_bias=bias)
        np.testing.assert_allclose(ours, peer.transform(x), rtol=1e-6)  # at most four products
        exponents = lr.polynomial_exponents(3, degree=degree, include_bias=bias)
        np.testing.assert_array_equal(exponents, peer.powers_)
    assert lr.polynomial_features(x, degree=0).shape == (5, 0)
    assert lr.polynomial_features(x, degree=0, include_bias=True).tolist() == [[1.0]] * 5


# What cannot be answered is not answered


def test_rank_deficient_rows():
    x, y, _ = draw(n=5000, d=2)
    x = np.concatenate([x, x[:, :1] + x[:, 1:]], axis=1)
    for solver in ("qr", "normal"):
        model = lr.fit(x, y, solver=solver)
        assert model.rank == 2
        assert np.isnan(model.coef).all()
        assert np.isnan(lr.predict(model, x[0]))
    model = lr.fit(x, y)
    assert model.rank == 2
    assert model.normal_residual < 1e-5
    centred = x.astype(float) - x.mean(axis=0, dtype=float)
    shortest = np.linalg.lstsq(centred, y - y.mean(), rcond=1e-5)[0]
    # float32 with the gap of the spectrum at a condition number of about 10
    np.testing.assert_allclose(model.coef, shortest, rtol=1e-4)


def test_more_features_than_rows(x64):
    x, y, _ = draw(n=4, d=9, dtype=np.float64)
    model = lr.fit(x, y, fit_intercept=False)
    np.testing.assert_allclose(model.coef, np.linalg.pinv(x) @ y, rtol=1e-10)
    assert model.rank == 4
    assert np.isnan(model.noise_variance)
    exact = x.T @ np.linalg.solve(x @ x.T + 0.5 * np.eye(4), y)  # the dual form of ridge
    for solver in SOLVERS:
        ridge = lr.fit(x, y, ridge=0.5, fit_intercept=False, solver=solver)
        np.testing.assert_allclose(ridge.coef, exact, rtol=1e-9)
        assert ridge.rank == 9


def test_many_rows_in_float32_are_not_called_deficient():
    x, y, _ = draw(n=100_000, d=3)
    x[:, 2] = x[:, 0] + 1e-3 * x[:, 2]  # a condition number of about 1000
    model = lr.fit(x, y)
    assert model.rank == 3
    exact = np.linalg.lstsq(with_ones(x.astype(float)), y, rcond=None)[0]
    # condition number times the float32 spacing, 1e-4, times the size of y over that of the answer
    np.testing.assert_allclose(lr.predict(model, x[:50]), with_ones(x[:50]) @ exact, atol=1e-2)


def test_the_certificate_tells_a_wrong_answer(monkeypatch):
    def nearly(x, y, weight, ridge):
        coef, *rest = lr._solve_svd(x, y, weight, ridge)
        return coef + 0.01, *rest

    monkeypatch.setitem(lr._SOLVERS, "nearly", nearly)
    x, y, weight = draw()
    right = lr.fit(x, y, ridge=0.5, sample_weight=weight)
    wrong = lr.fit(x, y, ridge=0.5, sample_weight=weight, solver="nearly")
    assert right.normal_residual < 1e-6  # some float32 roundings
    assert wrong.normal_residual > 1e-3


# Properties

matrices = hnp.arrays(np.float64, (12, 2), elements=st.floats(-4, 4, width=16))
vectors = hnp.arrays(np.float64, 12, elements=st.floats(-4, 4, width=16))


@settings(deadline=None, max_examples=25)
@given(matrices, vectors, st.floats(0.05, 5))
def test_the_optimum_beats_its_neighbours_and_ridge_shortens(x, y, ridge):
    with jax.enable_x64(True):
        few, many = lr.fit(x, y, ridge=ridge), lr.fit(x, y, ridge=2 * ridge)
    best = np.append(few.coef, few.intercept)

    def objective(params):
        return np.sum((y - x @ params[:2] - params[2]) ** 2) + ridge * np.sum(params[:2] ** 2)

    steps = 0.01 * np.concatenate([np.eye(3), -np.eye(3)])
    # 1e-10: rounding of sums of 12 squares up to 100
    assert objective(best) <= min(objective(best + step) for step in steps) + 1e-10
    assert np.linalg.norm(many.coef) <= np.linalg.norm(few.coef) + 1e-10


@settings(deadline=None, max_examples=25)
@given(matrices, vectors, st.integers(1, 10))
def test_a_weight_of_zero_drops_a_row(x, y, dropped):
    weight = (np.arange(12) != dropped).astype(float)
    with jax.enable_x64(True):
        kept = lr.fit(np.delete(x, dropped, 0), np.delete(y, dropped), ridge=0.1)
        zero = lr.fit(x, y, ridge=0.1, sample_weight=weight)
    # Only the order of additions differs
    for name in ("coef", "intercept", "noise_variance", "effective_parameters", "coef_covariance"):
        np.testing.assert_allclose(
            getattr(kept, name), getattr(zero, name), rtol=1e-8, atol=1e-12, err_msg=name
        )


def test_integer_weights_repeat_rows(x64):
    x, y, _ = draw(dtype=np.float64)
    times = np.arange(40) % 4
    repeated = np.linalg.lstsq(np.repeat(with_ones(x), times, axis=0), np.repeat(y, times))[0]
    np.testing.assert_allclose(lr.fit(x, y, sample_weight=times).coef, repeated[:3], rtol=1e-10)


# Transformations


@pytest.mark.parametrize("solver", SOLVERS)
def test_vmap_over_ridge_and_weights_equals_a_loop(solver, x64):
    x, y, weight = draw(dtype=np.float64)
    ridges, weights = jnp.array([0.0, 0.1, 5.0]), jnp.stack([weight, weight[::-1], weight**2])

    def run(ridge, weight):
        return lr.fit(x, y, ridge=ridge, sample_weight=weight, solver=solver)

    batched = jax.jit(jax.vmap(run))(ridges, weights)
    loop = [run(*pair) for pair in zip(ridges, weights, strict=True)]
    for name in lr.LinearModel._fields:
        single = np.stack([getattr(model, name) for model in loop])
        # Batched products may add in another order. The certificate is rounding error itself.
        np.testing.assert_allclose(
            getattr(batched, name), single, rtol=1e-10, atol=1e-14, err_msg=name
        )


def test_ridge_path_equals_single_fits():
    x, y, weight = draw()
    ridges = jnp.array([0.0, 0.5, 20.0, 1e4])
    path = lr.ridge_path(x, y, ridges, sample_weight=weight)
    for i, ridge in enumerate(ridges):
        one = lr.fit(x, y, ridge=ridge, sample_weight=weight)
        # the Gram matrix squares a condition number of 10; 6e-8 times 100
        np.testing.assert_allclose(path.coef[i], one.coef, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(path.intercept[i], one.intercept, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            path.effective_parameters[i], one.effective_parameters, rtol=1e-5
        )


def test_jit_equals_eager_and_does_not_recompile():
    x, y, _ = draw()

    def run(x, y, ridge):
        model = lr.fit(x, y, ridge=ridge)
        return model, lr.predict_with_error(model, x[:3])

    traced = jax.jit(chex.assert_max_traces(run, n=1))
    traced(x, y, 0.0)
    # The fit is compiled either way; only the prediction may be fused differently.
    chex.assert_trees_all_close(traced(x, y, 2.0), run(x, y, 2.0), rtol=1e-4, atol=1e-6)


def test_gradients(x64):
    x, y, weight = draw(n=9, d=2, dtype=np.float64)

    @partial(jax.jit, static_argnums=3)
    def output(y, weight, ridge, solver="normal"):
        model = lr.fit(x, y, ridge=ridge, sample_weight=weight, solver=solver)
        return (model.coef**2).sum() + lr.predict(model, x[0])

    gradient = jax.jit(jax.grad(output, argnums=(0, 1, 2)), static_argnums=3)
    args = (jnp.asarray(y), jnp.asarray(weight), jnp.asarray(0.7))
    chex.assert_numerical_grads(output, args, order=1, modes=["rev"])
    for solver in ("svd", "qr"):  # the same derivative by another road
        chex.assert_trees_all_close(gradient(*args, solver), gradient(*args, "normal"), rtol=1e-9)
    kept = gradient(args[0], args[1].at[0].set(0.0), args[2], "normal")[1]
    assert np.isfinite(kept).all()  # at a weight of 0, too
    assert abs(kept[0]) > 0


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.int32])
def test_narrow_rows_are_fitted_in_float32(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-9, 9, (40, 3))).astype(dtype)
    y = jnp.asarray(rng.integers(-9, 9, 40)).astype(dtype)
    model = lr.fit(x, y)
    assert model.coef.dtype == jnp.float32
    wide = lr.fit(x.astype(jnp.float32), y.astype(jnp.float32))
    np.testing.assert_array_equal(model.coef, wide.coef)  # small integers are exact in each


# Search and descent


def test_squared_loss_and_its_hessian(x64):
    x, y, weight = draw(dtype=np.float64)
    options = {"ridge": 2.0, "sample_weight": weight}
    params = np.array([0.3, -1.0, 2.0, 0.5])
    square = weight @ (y - with_ones(x) @ params) ** 2 + 2 * (params[:3] ** 2).sum()
    ours = lr.squared_loss(params, x, y, **options)
    np.testing.assert_allclose(ours, square / weight.sum(), rtol=1e-12)
    shorter = lr.squared_loss(params[:3], x, y, **options)
    same = lr.squared_loss(np.append(params[:3], 0), x, y, **options)
    np.testing.assert_allclose(shorter, same, rtol=1e-12)
    exact = jax.jit(jax.hessian(lambda p: lr.squared_loss(p, x, y, **options)))(params)
    np.testing.assert_allclose(lr.hessian(x, **options), exact, rtol=1e-12)
    without = lr.hessian(x, **options, fit_intercept=False)
    np.testing.assert_allclose(without, exact[:3, :3], rtol=1e-12)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_descent_arrives_at_the_fit(fit_intercept, x64):
    x, y, weight = draw(dtype=np.float64)
    options = {"ridge": 0.5, "sample_weight": weight, "fit_intercept": fit_intercept}
    curvature = np.linalg.eigvalsh(lr.hessian(x, **options))
    walk = lr.descend(
        x, y, learning_rate=2 / (curvature[0] + curvature[-1]), num_steps=2000, **options
    )
    model = lr.fit(x, y, **options)
    answer = np.append(model.coef, model.intercept) if fit_intercept else model.coef
    # Each step shrinks the error by (k - 1)/(k + 1) with k about 60: 1e-28 after 2000 steps, so
    # that only rounding is left.
    np.testing.assert_allclose(walk.params, answer, rtol=1e-9)
    assert walk.converged
    assert not walk.diverged
    too_fast = lr.descend(x, y, learning_rate=2.1 / curvature[-1], num_steps=2000, **options)
    assert too_fast.diverged


def test_descent_continues_from_start():
    x, y, _ = draw()
    first = lr.descend(x, y, learning_rate=0.01, num_steps=30)
    second = lr.descend(x, y, learning_rate=0.01, num_steps=30, start=first.path[10])
    np.testing.assert_allclose(second.path[:21], first.path[10:], rtol=1e-6)  # the same program


def test_error_surface_tries_every_point():
    x, y, _ = draw(d=1)
    axes = [np.linspace(-1, 1, 7, dtype=np.float32), np.linspace(0, 2, 5, dtype=np.float32)]
    search = jax.jit(partial(lr.error_surface, lr.squared_loss, block_size=8))  # 35 = 4 * 8 + 3
    surface = jax.tree.map(np.asarray, search(axes, x, y))
    for i, w in enumerate(axes[0]):
        for j, b in enumerate(axes[1]):
            exact = np.mean((y - x[:, 0] * w - b) ** 2)
            np.testing.assert_allclose(surface.loss[i, j], exact, rtol=1e-5)  # sums of 40 squares
    place = np.unravel_index(np.argmin(surface.loss), (7, 5))
    assert surface.best.tolist() == [axes[0][place[0]], axes[1][place[1]]]
    assert surface.best_loss == surface.loss.min()


def test_error_surface_never_answers_with_nan():
    search = jax.jit(partial(lr.error_surface, lambda p: jnp.log(p[0])))
    surface = search([jnp.array([-1.0, 2.0, 3.0])])
    assert surface.best.tolist() == [2.0]


# Degrees


def test_select_degree_under_vmap_over_splits_equals_separate_sklearn_fits(x64):
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures

    x = np.stack([np.linspace(-1, 1, 40), np.cos(9 * np.arange(40))], axis=1)
    y = np.sin(3 * x[:, 0]) * x[:, 1] + 0.2 * np.cos(40 * x[:, 0])
    splits = np.stack([np.arange(40) % 3 == 0, np.arange(40) % 4 == 1])
    select = jax.vmap(lambda split: lr.select_degree(x, y, max_degree=4, held_out=split, ridge=0.1))
    batched = select(splits)
    for k, held_out in enumerate(splits):
        train_error, held_out_error = [], []
        for degree in range(5):
            peer = make_pipeline(PolynomialFeatures(degree, include_bias=degree == 0), Ridge(0.1))
            left = y - peer.fit(x[~held_out], y[~held_out]).predict(x)
            train_error.append(np.mean(left[~held_out] ** 2))
            held_out_error.append(np.mean(left[held_out] ** 2))
        # float64 at a condition number below 1000
        np.testing.assert_allclose(batched.train_error[k], train_error, rtol=1e-10)
        np.testing.assert_allclose(batched.held_out_error[k], held_out_error, rtol=1e-10)
        assert batched.best_degree[k] == np.argmin(held_out_error)
    used = lr.polynomial_exponents(2, degree=4).sum(axis=1) <= np.arange(5)[:, None]
    np.testing.assert_array_equal(batched.models.coef[0] != 0, used)


# Bad input

GOOD = (np.ones((3, 2)), np.ones(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lr.fit(np.ones(3), np.ones(3)), r"x must be 2-D, got shape \(3,\)"),
        (lambda: lr.fit(np.ones((3, 2)), np.ones(4)), "x and y must have as many rows"),
        (lambda: lr.fit(np.ones((0, 2)), np.ones(0)), "x must not be empty"),
        (
            lambda: lr.fit(np.array([[1, 2], [3, np.nan]]), np.ones(2)),
            "x must be finite, got nan in row 1, column 1",
        ),
        (lambda: lr.fit(np.ones((1, 1)), [np.inf]), "y must be finite, got inf in row 0"),
        (lambda: lr.fit(*GOOD, ridge=-1.0), "ridge must not be negative, got -1.0"),
        (lambda: lr.fit(*GOOD, ridge=[1.0]), "ridge must be 0-D"),
        (lambda: lr.fit(*GOOD, solver="lu"), "solver must be one of 'svd', 'qr', 'normal'"),
        (
            lambda: lr.fit(*GOOD, sample_weight=[1.0, -1, 1]),
            "sample_weight must not be negative, got -1.0",
        ),
        (
            lambda: lr.fit(*GOOD, sample_weight=[0.0, 0, 0]),
            "the sum of sample_weight must be positive",
        ),
        (lambda: lr.predict(lr.fit(*GOOD), np.ones((1, 3))), "x must have 2 features"),
        (lambda: lr.ridge_path(*GOOD, ridges=[-1.0]), "ridges must not be negative"),
        (
            lambda: lr.squared_loss(np.ones(4), *GOOD),
            r"params must have shape \(3,\) or \(2,\), got \(4,\)",
        ),
        (
            lambda: lr.descend(*GOOD, learning_rate=0.1, num_steps=1, start=[1.0]),
            r"start must have shape \(3,\), got \(1,\)",
        ),
        (lambda: lr.error_surface(lambda p: p[0], []), "axes must hold at least one vector"),
        (lambda: lr.error_surface(lambda p: p[0], [np.ones(0)]), r"axes\[0\] must not be empty"),
        (lambda: lr.polynomial_features(1.0, degree=2), "x must have a last axis of features"),
        (lambda: lr.polynomial_features([1.0], degree=-1), "degree must be at least 0, got -1"),
        (
            lambda: lr.select_degree(*GOOD, max_degree=1, held_out=[True] * 3),
            "held_out must have true and false entries",
        ),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_types():
    with pytest.raises(TypeError, match="x must be a real array, got dtype complex64"):
        lr.fit([[1j]], [1.0])
    with pytest.raises(TypeError, match="held_out must be a Boolean array"):
        lr.select_degree(*GOOD, max_degree=1, held_out=[0, 1, 1])


# The demo


def test_the_claims_of_the_page():
    result = demo.run(jax.random.key(0), quick=True)
    fit, search, walk = result.closed_form, result.search, result.walk
    # Three roads, one answer: descent has converged (gradient norm against a curvature of 0.5 or
    # more), search is within its bound.
    np.testing.assert_allclose(walk.params, fit, rtol=1e-3)
    assert (np.abs(search.best - fit) < 2.5 * result.grid_step).all()
    half = np.square(result.grid_step / 2).sum()
    bound = result.loss + result.eigenvalues[-1] * half / 2
    assert result.loss <= search.best_loss <= bound
    # More degrees always fit the training rows better, and in the end the others worse.
    assert (np.diff(result.train_error) <= 1e-3 * result.train_error[:-1]).all()
    assert 0 < result.best_degree < len(result.train_error) - 1
    assert result.held_out_error[-1] > 1.5 * result.held_out_error[result.best_degree]
    # Ridge makes the curve flatter.
    assert (np.diff(result.slopes) < 0).all()
    assert demo.tables(result)
