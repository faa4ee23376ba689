"""Support vector regression against scikit-learn, closed forms, and its own certificate."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.data import datasets
from mlnotes_jax.demos.svm import regressor as demo
from mlnotes_jax.svm import kernels, regressor

# Compiling takes most of the time, so nearly all data here have one shape.
N, D = 120, 10


def diabetes(dtype=np.float64):
    data = datasets.load("diabetes_raw")
    x = ((data.x - data.x.mean(0)) / data.x.std(0)).astype(dtype)
    return x[:N], data.y.astype(dtype)[:N]


def wave(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (N, D))
    x[:, 2:] = 0
    y = np.sin(2 * x[:, 0]) + 0.3 * x[:, 1] + 0.1 * rng.normal(size=N)
    return x.astype(dtype), y.astype(dtype)


KERNELS = {
    "linear": kernels.linear(),
    "poly": kernels.polynomial(2, gamma=0.1, offset=1.0),
    "rbf": kernels.gaussian("scale"),
    "manhattan": kernels.laplacian(0.05, norm="manhattan"),
}


def dual_objective(beta, gram, y, epsilon):
    return y @ beta - epsilon * np.abs(beta).sum() - beta @ gram @ beta / 2


# Closed forms


def test_three_points_by_hand(x64):
    x, y = wave(dtype=np.float64)
    x[:3], y[:3] = [[0.0] * D, [1.0] + [0.0] * (D - 1), [2.0] + [0.0] * (D - 1)], [0.0, 1.0, 2.0]
    kept = (np.arange(N) < 3).astype(float)
    model = regressor.fit(
        x @ x.T, y, kernel="precomputed", C=10.0, epsilon=0.5, sample_weight=kept, tol=1e-5
    )
    assert model.converged
    np.testing.assert_allclose(model.dual_coef[:3], [-0.25, 0, 0.25], atol=1e-5)
    np.testing.assert_allclose(regressor.predict(model, x @ x.T)[:3], [0.5, 1, 1.5], atol=1e-5)
    np.testing.assert_array_equal(model.support[:3], [True, False, True])
    assert not model.support[3:].any()
    linear = regressor.fit_linear(x, y, C=10.0, epsilon=0.5, sample_weight=kept, tol=1e-6)
    np.testing.assert_allclose(linear.coef[0], 0.5, atol=1e-3)
    np.testing.assert_allclose(linear.intercept, 0.5, atol=1e-3)


def test_a_tube_that_holds_all_is_constant(x64):
    x, y = wave(dtype=np.float64)
    half = (y.max() - y.min()) / 2
    model = regressor.fit(x, y, kernel=kernels.gaussian(1.0), epsilon=half * 1.001)
    assert model.converged
    assert not model.support.any()
    np.testing.assert_allclose(model.intercept, (y.max() + y.min()) / 2, atol=2e-3)
    linear = regressor.fit_linear(x, y, epsilon=half * 1.001, C=10.0)
    assert linear.converged
    np.testing.assert_allclose(linear.coef, 0, atol=1e-6)
    assert linear.objective < 1e-9


# Peers


@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("name", list(KERNELS))
def test_equals_sklearn_on_diabetes(name, C, x64):
    from sklearn.svm import SVR

    x, y = diabetes()
    kernel = kernels.resolve(KERNELS[name], x)
    gram = np.asarray(kernels.gram(kernel, x))
    options = {"C": C, "epsilon": 10.0}
    for tol, allowed in ((1e-3, 1e-2), (1e-6, 1e-5)):
        if name == "rbf":
            model = regressor.fit(x, y, kernel=kernel, tol=tol, **options)
            peer = SVR(kernel="rbf", tol=tol, **options).fit(x, y)
            rows = fresh = x
        else:  # one program for all kernels
            model = regressor.fit(gram, y, kernel="precomputed", tol=tol, **options)
            peer = SVR(kernel="precomputed", tol=tol, **options).fit(gram, y)
            rows = fresh = gram
        assert model.converged
        proof = regressor.certificate(model, rows, y)
        assert proof.violation <= tol * (1 + 1e-9)
        beta = np.zeros(N)
        beta[peer.support_] = peer.dual_coef_[0]
        best = dual_objective(beta, gram, y, 10.0)
        assert proof.dual >= best - 1e-6 * abs(best)
        f = peer.predict(fresh)
        scale = max(1.0, np.abs(f).max())
        np.testing.assert_allclose(regressor.predict(model, fresh), f, atol=allowed * scale)


def test_float32_and_the_certificate():
    x, y = wave()
    model = regressor.fit(x, y, kernel=kernels.gaussian(1.0), C=1.0)
    assert model.converged
    assert model.dual_coef.dtype == jnp.float32
    with jax.enable_x64(True):
        proof = regressor.certificate(model, x, y)
        assert proof.primal.dtype == jnp.float64
        proof = jax.tree.map(float, proof)
    # The violation in float64 is that in float32 and some roundings of numbers up to 2
    assert proof.violation <= 1e-3 + 1e-5
    np.testing.assert_allclose(proof.primal - proof.dual, proof.gap, rtol=1e-6, atol=1e-9)
    assert 0 <= proof.gap < 1e-2 * proof.primal
    assert proof.num_free + proof.num_bound == int(model.support.sum())


def test_duals_in_float64_over_rows_in_float32(x64):
    x, y = wave()
    options = {"kernel": kernels.gaussian(1.0), "C": 10.0, "tol": 1e-5}
    model = regressor.fit(x, y, dual_dtype="float64", **options)
    assert model.converged
    assert model.x.dtype == jnp.float32
    assert model.dual_coef.dtype == jnp.float64
    wide = regressor.fit(x.astype(float), y.astype(float), **options)
    # A Gram matrix in float32 is off by 1e-7, and the duals add up to some hundreds
    np.testing.assert_allclose(regressor.predict(model, x), regressor.predict(wide, x), atol=2e-4)


def test_precomputed_equals_the_kernel(x64):
    x, y = wave(dtype=np.float64)
    kernel = kernels.gaussian(1.0)
    direct = regressor.fit(x, y, kernel=kernel, C=5.0, tol=1e-6)
    gram = kernels.gram(kernel, x)
    model = regressor.fit(gram, y, kernel="precomputed", C=5.0, tol=1e-6)
    assert model.converged
    fresh = wave(dtype=np.float64, seed=1)[0]
    np.testing.assert_allclose(
        regressor.predict(model, kernels.gram(kernel, fresh, x)),
        regressor.predict(direct, fresh),
        atol=1e-5,  # some times the tolerance
    )
    proofs = [regressor.certificate(m, rows, y) for m, rows in ((model, gram), (direct, x))]
    np.testing.assert_allclose(proofs[0].dual, proofs[1].dual, rtol=1e-6)


def test_any_callable_is_a_kernel():
    x, y = wave()
    ours = regressor.fit(x, y, kernel=kernels.gaussian(1.0), epsilon=0.2)
    own = regressor.fit(x, y, kernel=lambda a, b: jnp.exp(-((a - b) ** 2).sum()), epsilon=0.2)
    assert own.converged
    # twice the tolerance
    np.testing.assert_allclose(regressor.predict(own, x), regressor.predict(ours, x), atol=2e-3)


@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
def test_linear_equals_the_dual(C, x64):
    from sklearn.svm import SVR

    x, y = diabetes()
    weight = np.random.default_rng(0).uniform(0, 2, N)
    model = regressor.fit_linear(x, y, C=C, epsilon=20.0, sample_weight=weight, tol=1e-9)
    peer = SVR(kernel="linear", C=C, epsilon=20.0, tol=1e-9).fit(x, y, sample_weight=weight)
    coef = peer.coef_[0]
    beyond = np.maximum(0, np.abs(y - x @ coef - peer.intercept_) - 20.0)
    value = coef @ coef / 2 + C * weight @ beyond
    assert model.converged
    assert model.objective <= value * (1 + 1e-9)
    ours = regressor.predict(model, x)
    beyond = np.maximum(0, np.abs(y - ours) - 20.0)
    recomputed = model.coef @ model.coef / 2 + C * weight @ np.asarray(beyond)
    np.testing.assert_allclose(model.objective, recomputed, rtol=1e-12)
    np.testing.assert_allclose(model.coef, coef, atol=2e-4 * max(1.0, np.abs(coef).max()))


@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
def test_squared_linear_equals_scipy(C, x64):
    from scipy.optimize import minimize

    x, y = diabetes()
    options = {"C": C, "epsilon": 20.0, "loss": "squared_epsilon_insensitive"}
    model = regressor.fit_linear(x, y, tol=1e-11, **options)

    def value(params):
        residual = y - x @ params[:-1] - params[-1]
        beyond = np.maximum(0, np.abs(residual) - 20.0)
        pull = -2 * C * np.sign(residual) * beyond
        slope = np.append(params[:-1] + x.T @ pull, pull.sum())
        return params[:-1] @ params[:-1] / 2 + C * (beyond**2).sum(), slope

    start = np.append(np.zeros(D), y.mean())
    peer = minimize(value, start, jac=True, method="BFGS", options={"gtol": 1e-7})
    assert model.converged
    np.testing.assert_allclose(model.objective, peer.fun, rtol=1e-9)
    np.testing.assert_allclose(model.coef, peer.x[:-1], atol=1e-4)


def test_squared_tube_of_height_zero_is_ridge(x64):
    x, y = diabetes()
    model = regressor.fit_linear(
        x, y, C=0.25, epsilon=0.0, loss="squared_epsilon_insensitive", tol=1e-12
    )
    # |w|^2 / 2 + C r^2 is C (r^2 + |w|^2 / (2 C))
    centred, target = x - x.mean(0), y - y.mean()
    ridge = np.linalg.solve(centred.T @ centred + 2 * np.eye(D), centred.T @ target)
    np.testing.assert_allclose(model.coef, ridge, rtol=1e-5)
    np.testing.assert_allclose(model.intercept, y.mean() - x.mean(0) @ ridge, rtol=1e-7)


def test_linear_float32_agrees_with_float64():
    x, y = diabetes(np.float32)
    narrow = regressor.fit_linear(x, y, epsilon=10.0)
    assert narrow.converged
    assert narrow.coef.dtype == jnp.float32
    with jax.enable_x64(True):
        wide = regressor.fit_linear(x.astype(float), y.astype(float), epsilon=10.0, tol=1e-9)
        assert wide.converged
        least = float(wide.objective)
    # within tol = 1e-4, and 1e-6 of rounding
    assert abs(float(narrow.objective) - least) <= 1.01e-4 * least


def test_linear_gap_bounds_the_error(x64):
    x, y = diabetes()
    best = regressor.fit_linear(x, y, epsilon=10.0, tol=1e-9)
    for steps in (1, 3, 6):
        early = regressor.fit_linear(x, y, epsilon=10.0, tol=1e-9, max_iter=steps)
        assert not early.converged
        assert -1e-6 <= early.objective - best.objective <= early.gap


# The certificate


def test_the_certificate_tells_a_wrong_answer(x64):
    x, y = wave(dtype=np.float64)
    model = regressor.fit(x, y, kernel=kernels.gaussian(1.0), tol=1e-6)
    right = regressor.certificate(model, x, y)
    assert right.violation <= 1e-6
    assert right.gap < 1e-5 * right.primal
    shifted = jax.tree.map(lambda leaf: leaf, model)
    shifted = type(model)(**{**vars(shifted), "intercept": model.intercept + 0.1})
    assert regressor.certificate(shifted, x, y).gap > 1e-3 * right.primal
    fewer = type(model)(**{**vars(model), "dual_coef": model.dual_coef * 0.5})
    wrong = regressor.certificate(fewer, x, y)
    assert wrong.violation > 0.01
    assert wrong.dual < right.dual
    # Every dual bounds every primal
    assert wrong.dual <= right.primal
    assert right.dual <= wrong.primal


def test_the_certificate_equals_its_definition(x64):
    x, y = wave(dtype=np.float64)
    kernel, epsilon, C = kernels.gaussian(1.0), 0.1, 2.0
    model = regressor.fit(x, y, kernel=kernel, C=C, epsilon=epsilon, max_iter=15)
    assert not model.converged  # so that nothing is zero by luck
    gram, beta = np.asarray(kernels.gram(kernel, x)), np.asarray(model.dual_coef)
    f = gram @ beta + float(model.intercept)
    primal = beta @ gram @ beta / 2 + C * np.maximum(0, np.abs(y - f) - epsilon).sum()
    proof = regressor.certificate(model, x, y)
    np.testing.assert_allclose(proof.primal, primal, rtol=1e-10)
    np.testing.assert_allclose(proof.dual, dual_objective(beta, gram, y, epsilon), rtol=1e-8)
    np.testing.assert_allclose(proof.gap, proof.primal - proof.dual, rtol=1e-8)
    gains = []  # what moving one unit along each pair would gain
    left = y - gram @ beta
    for i in np.flatnonzero(beta < C):
        for j in np.flatnonzero(beta > -C):
            up = left[i] - epsilon * (1 if beta[i] >= 0 else -1)
            down = left[j] - epsilon * (1 if beta[j] > 0 else -1)
            gains.append(up - down)
    np.testing.assert_allclose(proof.violation, max(gains), rtol=1e-9)
    assert proof.num_bound == (np.abs(beta) == C).sum()


def test_running_out_of_steps_is_said():
    x, y = wave()
    model = regressor.fit(x, y, kernel=kernels.gaussian(1.0), max_iter=3)
    assert not model.converged
    assert model.violation > 1e-3


# Properties


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000), st.floats(0.05, 20), st.floats(0.0, 0.5))
def test_who_holds_the_tube(seed, C, epsilon):
    x, y = wave(dtype=np.float64, seed=seed)
    with jax.enable_x64(True):
        model = regressor.fit(x, y, kernel=kernels.gaussian(1.0), C=C, epsilon=epsilon, tol=1e-7)
        f = np.asarray(regressor.predict(model, x))
    assert model.converged
    beta, r, tiny = np.asarray(model.dual_coef), y - f, 1e-6
    size = np.abs(beta)
    assert abs(beta.sum()) < 1e-9
    assert (size <= C).all()
    assert (np.abs(r[size == 0]) <= epsilon + tiny).all()
    free = (size > 0) & (size < C)
    np.testing.assert_allclose(r[free], epsilon * np.sign(beta[free]), atol=tiny)
    assert (r[size == C] * np.sign(beta[size == C]) >= epsilon - tiny).all()


def test_a_weight_of_zero_drops_a_row_and_so_does_being_inside(x64):
    from sklearn.svm import SVR

    x, y = wave(dtype=np.float64)
    options = {"kernel": kernels.gaussian(1.0), "C": 2.0, "tol": 1e-7}
    kept = np.arange(N) % 4 != 0
    zero = regressor.fit(x, y, sample_weight=kept.astype(float), **options)
    gram = np.asarray(kernels.gram(options["kernel"], x))
    peer = SVR(kernel="precomputed", C=2.0, tol=1e-7).fit(gram[np.ix_(kept, kept)], y[kept])
    np.testing.assert_allclose(regressor.predict(zero, x), peer.predict(gram[:, kept]), atol=1e-5)
    whole = regressor.fit(x, y, **options)
    again = regressor.fit(x, y, sample_weight=whole.support.astype(float), **options)
    np.testing.assert_allclose(regressor.predict(whole, x), regressor.predict(again, x), atol=1e-5)


def test_targets_in_another_unit(x64):
    x, y = wave(dtype=np.float64)
    one = regressor.fit(x, y, kernel=kernels.gaussian(1.0), C=2.0, epsilon=0.1, tol=1e-7)
    large = regressor.fit(
        x, 1000 * y + 5e6, kernel=kernels.gaussian(1.0), C=2000.0, epsilon=100.0, tol=1e-4
    )
    np.testing.assert_allclose(
        (regressor.predict(large, x) - 5e6) / 1000, regressor.predict(one, x), atol=1e-5
    )


# Transformations


def test_vmap_equals_a_loop(x64):
    x, y = wave(dtype=np.float64)
    prices, heights = jnp.array([0.1, 1.0, 10.0]), jnp.array([0.2, 0.1, 0.05])
    gammas, targets = jnp.array([0.5, 1.0, 2.0]), jnp.stack([y, -y, y**2])

    def run(C, epsilon, gamma, y):
        model = regressor.fit(x, y, kernel=kernels.gaussian(gamma), C=C, epsilon=epsilon, tol=1e-6)
        return regressor.predict(model, x), model.converged

    values, converged = jax.jit(jax.vmap(run))(prices, heights, gammas, targets)
    assert converged.all()
    for i in range(3):
        one, _ = run(prices[i], heights[i], gammas[i], targets[i])
        np.testing.assert_allclose(values[i], one, atol=2e-6)  # twice the tolerance


def test_vmap_of_the_linear_fit_equals_a_loop(x64):
    x, y = wave(dtype=np.float64)
    prices, heights = jnp.array([0.1, 1.0, 10.0]), jnp.array([0.2, 0.1, 0.0])

    def run(C, epsilon):
        return regressor.fit_linear(x, y, C=C, epsilon=epsilon, tol=1e-9)

    batched = jax.jit(jax.vmap(run))(prices, heights)
    assert batched.converged.all()
    for i in range(3):
        one = run(prices[i], heights[i])
        np.testing.assert_allclose(batched.objective[i], one.objective, rtol=1e-8)
        np.testing.assert_allclose(batched.coef[i], one.coef, atol=1e-3)


def test_jit_equals_eager_and_does_not_recompile():
    x, y = wave()

    def run(x, C, gamma):
        model = regressor.fit(x, y, kernel=kernels.gaussian(gamma), C=C)
        return model, regressor.predict(model, x)

    traced = jax.jit(chex.assert_max_traces(run, n=1))
    traced(x, 1.0, 1.0)
    model, values = traced(x, 2.0, 0.5)
    eager, expected = run(x, 2.0, 0.5)
    np.testing.assert_allclose(values, expected, atol=2e-3)
    assert jax.tree.structure(model) == jax.tree.structure(eager)


def test_narrow_and_integer_data():
    x = jnp.asarray(wave()[0]).astype(jnp.bfloat16)
    model = regressor.fit(x, jnp.arange(N) % 5, kernel=kernels.gaussian(1.0), epsilon=1.0)
    assert model.dual_coef.dtype == jnp.float32
    assert model.converged


# Bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [[0.0], [np.inf], [1.0]]}, ValueError, "x must be finite, got inf in row 1"),
        ({"y": [0.0, np.nan, 1.0]}, ValueError, "y must be finite, got nan in row 1"),
        ({"y": [0.0, 1.0]}, ValueError, "x and y must have as many rows"),
        ({"x": np.zeros((0, 1)), "y": []}, ValueError, "x must not be empty"),
        ({"x": [0.0, 1.0, 2.0]}, ValueError, "x must be 2-D"),
        ({"C": 0.0}, ValueError, "C must be positive"),
        ({"epsilon": -0.1}, ValueError, "epsilon must not be negative"),
        ({"tol": 0.0}, ValueError, "tol must be positive"),
        ({"kernel": 3.0}, TypeError, "kernel must be a kernel or 'precomputed', got 3.0"),
        ({"kernel": "rbf"}, ValueError, "kernel must be one of 'precomputed'"),
        ({"kernel": "precomputed"}, ValueError, "x must be a square Gram matrix"),
        ({"dual_dtype": "float64"}, ValueError, "needs jax.config.update"),
        ({"dual_dtype": "int32"}, ValueError, "dual_dtype must be float32 or float64"),
        ({"sample_weight": [0.0, 0.0, 0.0]}, ValueError, "the sum of sample_weight"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"x": [[0.0], [1.0], [2.0]], "y": [0.0, 1.0, 2.0], "kernel": kernels.linear()}
    arguments |= change
    with pytest.raises(error, match=message):
        regressor.fit(arguments.pop("x"), arguments.pop("y"), **arguments)


def test_a_kernel_that_overflows_is_an_error():
    x, y = wave()
    with pytest.raises(ValueError, match="kernel must be finite on x"):
        regressor.fit(x * 1e25, y, kernel=kernels.gaussian(1.0))


def test_bad_input_of_the_others():
    x, y = wave()
    model = regressor.fit(x, y, kernel=kernels.gaussian(1.0))
    with pytest.raises(ValueError, match="x must have 10 columns, the features of the fit"):
        regressor.predict(model, x[:, :1])
    with pytest.raises(ValueError, match="x must be the 120 rows of the fit"):
        regressor.certificate(model, x[:5], y[:5])
    with pytest.raises(ValueError, match="loss must be one of 'epsilon_insensitive'"):
        regressor.fit_linear(x, y, loss="hinge")
    linear = regressor.fit_linear(x, y)
    with pytest.raises(ValueError, match="x must have 10 features"):
        regressor.predict(linear, x[:, :1])


# What the page and the demo claim


def test_demo():
    result = demo.run(jax.random.key(0), quick=True)
    assert result.converged
    inside, edge, outside = demo._places(result)
    assert inside.sum() + edge.sum() + outside.sum() == 442
    assert result.certificate.num_free == edge.sum()
    assert result.certificate.gap < 1e-3 * result.certificate.primal
    # Those inside have no say: what is left is the tolerance of two fits, 0.01, over the slope
    assert result.moved < 0.2 < result.moved_by_outside
    assert result.errors.min() < 0.8 * result.constant_error
    assert (np.diff(result.support, axis=1) < 0).all()  # a higher tube needs fewer
    titles = demo.tables(result)
    assert all(rows for rows in titles.values())
    assert len(demo.plot(result).axes) == 4
