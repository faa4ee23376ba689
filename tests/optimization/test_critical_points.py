"""The second-order test and Lanczos, against closed forms, NumPy and SciPy."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

from mlnotes_jax.demos.optimization import critical_points as demo
from mlnotes_jax.optimization import critical_points as cp


def quadratic(diagonal):
    return lambda x: 0.5 * x @ (diagonal * x)


def toy(w):
    return (1 - w[0] * w[1]) ** 2


def name(kind):
    return cp.KINDS[int(kind)]


def small_network(seed, dtype=np.float32):
    """A point of a pytree of four leaves with 32 numbers in all."""
    rng = np.random.default_rng(seed)
    params = {
        "hidden": (rng.normal(size=(5, 4)), np.zeros(4)),
        "out": (rng.normal(size=4), 0.1 * np.ones(4)),
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


def network_loss(p):
    dtype = p["out"][0].dtype
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((30, 5), (30,)))
    hidden = jnp.tanh(x @ p["hidden"][0] + p["hidden"][1][None])
    bias = p["out"][1]
    return jnp.mean((hidden @ p["out"][0] + bias[0] - y) ** 2) + 0.3 * jnp.sum(bias[1:] ** 4)


def flatten(tree):
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


network_hessian = jax.jit(lambda p: cp.hessian(network_loss, p))
classify_quadratic = jax.jit(lambda diagonal: cp.classify(quadratic(diagonal), 0 * diagonal))


def symmetric(seed, size):
    a = np.random.default_rng(seed).normal(size=(size, size))
    return (a + a.T) / 2


# Kinds


@pytest.mark.parametrize(
    ("diagonal", "kind"),
    [
        ([1, 2], "minimum"),
        ([-1, -2], "maximum"),
        ([1, -1], "saddle"),
        ([1, 0], "degenerate"),
        ([0, -1], "degenerate"),
        ([0, 0], "degenerate"),
        ([1, 0, -1], "saddle"),  # a zero between the signs changes nothing
        ([5], "minimum"),
    ],
)
def test_kind_of_a_quadratic(diagonal, kind):
    verdict = classify_quadratic(jnp.array(diagonal, float))
    assert name(verdict.kind) == kind
    chex.assert_trees_all_close(verdict.eigenvalues, jnp.sort(jnp.array(diagonal, float)))


def test_zero_is_measured_against_the_largest_eigenvalue():
    # 1e-3 beside 1e3 is rounding in float32; alone it is a minimum.
    assert name(cp.kind(0.0, [1e-3, 1e3])) == "degenerate"
    assert name(cp.kind(0.0, [1e-3, 1e-3])) == "minimum"
    assert name(cp.kind(0.0, [1e-3, 1e3], curvature_tol=1e-7)) == "minimum"
    assert name(cp.kind(0.0, [-1.0, 2.0], error=[1.5, 0.1])) == "degenerate"


def test_a_quartic_minimum_is_degenerate_to_second_order():
    assert name(cp.classify(lambda x: jnp.sum(x**4), jnp.zeros(3)).kind) == "degenerate"
    assert name(cp.classify(lambda x: -jnp.sum(x**4), jnp.zeros(3)).kind) == "degenerate"


def test_a_slope_is_not_critical():
    assert name(cp.classify(lambda x: x.sum(), jnp.zeros(3)).kind) == "not critical"


@pytest.mark.parametrize(
    ("norm", "eigenvalues", "kind"),
    [
        (math.nan, [1.0, 2.0], "not critical"),
        (math.inf, [1.0, 2.0], "not critical"),
        (0.0, [math.nan, math.nan], "degenerate"),
        (0.0, [1.0, math.nan], "degenerate"),
        (0.0, [1.0, math.inf], "degenerate"),
    ],
)
def test_nan_and_infinity_are_never_a_minimum(norm, eigenvalues, kind):
    assert name(cp.kind(norm, eigenvalues)) == kind


def test_toy_saddle_in_closed_form():
    verdict = cp.classify(toy, jnp.zeros(2))
    assert name(verdict.kind) == "saddle"
    # A 2 x 2 matrix of twos: a few units in the last place of 2.
    np.testing.assert_allclose(verdict.eigenvalues, [-2, 2], rtol=1e-6)
    # On the valley w1 w2 = 1 the Hessian is 2 (w2, w1)(w2, w1)^T: one zero.
    assert name(cp.classify(toy, jnp.array([2.0, 0.5])).kind) == "degenerate"


def test_minimum_ratio():
    assert float(cp.minimum_ratio([-1.0, 0.0, 2.0, 3.0])) == 0.5
    assert float(cp.minimum_ratio([1, 1])) == 1
    assert np.isnan(cp.minimum_ratio([1.0, math.nan]))


# Derivatives on pytrees


def test_hessian_against_numpy_differences(x64):
    params = small_network(1, np.float64)
    flat, unflatten = ravel_pytree(params)
    gradient = jax.jit(jax.vmap(lambda v: flatten(jax.grad(network_loss)(unflatten(v)))))
    steps = 1e-5 * np.eye(flat.size)
    rows = (gradient(flat[None] + steps) - gradient(flat[None] - steps)) / 2e-5
    # Central differences: step^2 times third derivatives of about 10, plus 1e-16 / step.
    np.testing.assert_allclose(network_hessian(params), rows, atol=1e-8)


def test_products_agree_with_the_full_hessian():
    params = small_network(2)
    vector = jax.tree.map(
        lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params
    )
    expected = network_hessian(params) @ flatten(vector)
    product = jax.jit(lambda p, v: cp.hessian_vector_product(network_loss, p, v))(params, vector)
    operator = jax.jit(lambda p, v: cp.hessian_operator(network_loss, p)(v))(params, vector)
    for got in (product, operator):
        chex.assert_trees_all_equal_shapes_and_dtypes(got, params)
        # 32-term sums in float32.
        np.testing.assert_allclose(flatten(got), expected, rtol=1e-4, atol=1e-5)


def test_hessian_in_batches_of_rows():
    curvature = jnp.asarray(symmetric(3, 70), jnp.float32)  # two full batches of 32, and 6 rows
    f = lambda x: 0.5 * x @ (curvature @ x)  # noqa: E731
    rows = jax.jit(lambda x: cp.hessian(f, x))(jnp.ones(70))
    np.testing.assert_allclose(rows, curvature, rtol=1e-6)


def test_gradient_norm_runs_over_all_leaves():
    params = {"a": jnp.array([3.0]), "b": jnp.array([[0.0], [4.0]])}
    half_square = lambda p: 0.5 * sum(jnp.sum(x**2) for x in jax.tree.leaves(p))  # noqa: E731
    assert float(cp.gradient_norm(half_square, params)) == 5
    # At the critical point itself the norm has a kink; its derivative there is taken as zero.
    slope = jax.grad(lambda p: cp.gradient_norm(half_square, p))(
        jax.tree.map(jnp.zeros_like, params)
    )
    chex.assert_trees_all_equal(slope, jax.tree.map(jnp.zeros_like, params))


def test_taylor_model_error_is_of_third_order(x64):
    params = small_network(3, np.float64)

    @jax.jit
    def error(scale):
        step = jax.tree.map(lambda leaf: scale * jnp.ones_like(leaf), params)
        model = cp.taylor_model(network_loss, params)
        return jnp.abs(model(step) - network_loss(jax.tree.map(jnp.add, params, step)))

    assert error(0.0) < 1e-14  # one summation order or another, at a loss of about 5
    # Halving the step divides a third-order error by 8, up to the fourth-order term.
    assert float(error(2e-3) / error(1e-3)) == pytest.approx(8, rel=0.05)


def test_taylor_model_is_exact_for_a_quadratic():
    f = quadratic(jnp.array([3, -2, 0.5]))
    model = cp.taylor_model(f, jnp.array([1.0, 2.0, 3.0]))
    # The same three products in another order: a few units in the last place of 10.
    assert float(model(jnp.ones(3))) == pytest.approx(
        float(f(jnp.array([2.0, 3.0, 4.0]))), rel=1e-6
    )


# Escape


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_escape_leaves_the_toy_saddle_on_either_side(sign):
    _, u = cp.escape_direction(toy, jnp.zeros(2))
    result = cp.escape(toy, jnp.zeros(2), sign * u)
    assert bool(result.lowered)
    assert float(result.value) < 1
    chex.assert_trees_all_close(result.params, result.step * sign * u)
    # u is +-(1, 1) / sqrt 2, so a step of 1 makes w1 w2 = 1/2.
    assert float(result.value) == pytest.approx(0.25, abs=1e-6)
    assert float(result.curvature) == pytest.approx(-2, rel=1e-5)


def test_a_whole_eigenvector_may_climb_and_the_search_shortens_it():
    f = lambda x: -(x[0] ** 2) + 4 * x[0] ** 4  # noqa: E731
    assert f(jnp.array([1.0])) > f(jnp.zeros(1))
    result = cp.escape(f, jnp.zeros(1), jnp.array([7.0]))  # of any length
    # Accepted where t^2 - 4 t^4 >= t^2 / 2, so at t <= 0.35: the third trial.
    assert (float(result.step), int(result.num_evaluations)) == (0.25, 3)
    assert float(result.decrease) == pytest.approx(0.0625 - 4 * 0.25**4)


def test_escape_step_is_as_long_as_the_bound_promises():
    # f''' = -12 along +x: rho = 12 for x < 0, curvature -4: every t <= 3 (1 - s) 4 / 12 passes.
    f = lambda x: -2 * x[0] ** 2 + 2 * jnp.abs(x[0]) ** 3  # noqa: E731
    for sufficient in (0.1, 0.5, 0.9):
        longest = 3 * (1 - sufficient) * 4 / 12
        at = lambda t, s=sufficient: cp.escape(  # noqa: E731
            f, jnp.zeros(1), jnp.ones(1), step=t, sufficient=s
        )
        assert int(at(0.999 * longest).num_evaluations) == 1
        assert int(at(1.001 * longest).num_evaluations) == 2


def test_escape_turns_downhill_where_there_is_a_slope():
    f = lambda x: 0.3 * x[0] - x[0] ** 2  # noqa: E731
    result = cp.escape(f, jnp.zeros(1), jnp.ones(1))
    assert float(result.step) == -1
    assert float(result.value) == pytest.approx(-1.3)


def test_no_way_down_is_said_and_nothing_moves():
    point = {"w": jnp.array([1.0, 2.0])}
    f = lambda p: jnp.sum((p["w"] - jnp.array([1.0, 2.0])) ** 2)  # noqa: E731
    result = cp.escape(f, point, {"w": jnp.array([1.0, 1.0])})
    assert not bool(result.lowered)
    assert (float(result.step), float(result.decrease), int(result.num_evaluations)) == (0, 0, 0)
    chex.assert_trees_all_equal(result.params, point)
    nowhere = cp.escape(lambda x: jnp.log(-1 - x[0] ** 2), jnp.zeros(1), jnp.ones(1))
    assert not bool(nowhere.lowered)
    assert float(nowhere.params[0]) == 0


@jax.jit
def leave_quartic(a, quartic):
    f = lambda x: 0.5 * x @ (a @ x) + quartic * jnp.sum(x**2) ** 2  # noqa: E731
    curvature, u = cp.escape_direction(f, jnp.zeros(4))
    result = cp.escape(f, jnp.zeros(4), u)
    return curvature, result, f(result.params)


@settings(deadline=None, max_examples=25)
@given(
    eigenvalues=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    lowest=st.floats(-5, -0.1),
    quartic=st.floats(0.01, 10),
    seed=st.integers(0, 2**31 - 1),
)
def test_escape_lowers_every_saddle_of_a_quartic(eigenvalues, lowest, quartic, seed):
    eigenvalues = np.array([lowest, *eigenvalues])
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))
    a = jnp.asarray(rotation @ (eigenvalues[:, None] * rotation.T), jnp.float32)
    curvature, result, value = leave_quartic(a, quartic)
    # float32 eigenvalues of a matrix of norm 5.
    assert float(curvature) == pytest.approx(eigenvalues.min(), abs=1e-5)
    assert bool(result.lowered)
    assert float(value) < 0
    # Half of what the quadratic model promises, at the step taken; rounding of f is 1e-6.
    assert float(result.decrease) >= 0.25 * abs(float(curvature)) * float(result.step) ** 2 - 1e-6


# Lanczos


@jax.jit
def dense_ends(key, matrix):
    return cp.lanczos(key, lambda v: matrix @ v, matrix[0], num_pairs=3, num_steps=40)


def reflected(v, xp, normal, diagonal):
    """Multiply by Q diag Q, Q the reflection I - 2 n n^T: known eigenvalues, at a cost of d."""
    v = diagonal * (v - 2 * normal * xp.dot(normal, v))
    return v - 2 * normal * xp.dot(normal, v)


@jax.jit
def reflected_ends(key, normal, diagonal):
    def operator(v):
        return reflected(v, jnp, normal, diagonal)

    return cp.lanczos(key, operator, normal, num_pairs=3, num_steps=60)


@jax.jit
def diagonal_ends(diagonal, tol):
    key = jax.random.key(1)
    return cp.lanczos(key, lambda v: diagonal * v, diagonal, num_pairs=2, num_steps=200, tol=tol)


def unit_normal(size):
    normal = np.random.default_rng(0).normal(size=size)
    return normal / np.linalg.norm(normal)


def test_lanczos_against_numpy_eigh(x64):
    params = small_network(4, np.float64)
    matrix = np.asarray(network_hessian(params))
    values, vectors = np.linalg.eigh(matrix)

    @jax.jit
    def run(key, p):
        operator = cp.hessian_operator(network_loss, p)
        return cp.lanczos(key, operator, p, num_pairs=3, num_steps=1000)

    ends = run(jax.random.key(4), params)
    assert int(ends.num_steps) == 32  # d, as num_steps is larger
    # A complete basis: the exact eigenvalues, to rounding of a matrix of norm about 30.
    np.testing.assert_allclose(ends.lowest.values, values[:3], atol=1e-12)
    np.testing.assert_allclose(ends.highest.values, values[-3:], atol=1e-12)
    np.testing.assert_allclose(ends.density.nodes[0], values, atol=1e-12)
    lowest = np.asarray(jax.vmap(flatten)(ends.lowest.vectors))
    # Eigenvectors up to sign; the gaps between these eigenvalues are above 1e-2.
    np.testing.assert_allclose(np.abs(lowest @ vectors[:, :3]), np.eye(3), atol=1e-9)
    residuals = np.linalg.norm(lowest @ matrix - lowest * values[:3, None], axis=1)
    np.testing.assert_allclose(residuals, ends.lowest.residuals, atol=1e-12)


def test_lanczos_against_scipy_eigsh(x64):
    size = 3000
    diagonal = np.concatenate([np.linspace(0, 1, size - 6), [-2, -1.5, -1, 3, 4, 6]])
    normal = unit_normal(size)
    operator = LinearOperator(
        (size, size), lambda v: reflected(v.ravel(), np, normal, diagonal), dtype=float
    )
    peer = np.sort(eigsh(operator, k=6, which="BE", tol=1e-13, return_eigenvectors=False))
    ends = reflected_ends(jax.random.key(0), jnp.asarray(normal), jnp.asarray(diagonal))
    # Six eigenvalues well apart from the rest: both converge to rounding.
    np.testing.assert_allclose(ends.lowest.values, peer[:3], atol=1e-12)
    np.testing.assert_allclose(ends.highest.values, peer[3:], atol=1e-12)


def test_an_eigenvalue_lies_within_each_residual(x64):
    # No eigenvalue stands out, and 60 steps are far too few for 3000: the residuals are large,
    # and still certify.
    values = np.linspace(-1, 1, 3000)
    ends = reflected_ends(jax.random.key(0), jnp.asarray(unit_normal(3000)), jnp.asarray(values))
    assert float(ends.lowest.residuals.max()) > 1e-3
    for pairs in (ends.lowest, ends.highest):
        distance = np.abs(np.asarray(pairs.values)[:, None] - values).min(axis=1)
        assert np.all(distance <= pairs.residuals + 1e-13)
    # Ritz values never leave the spectrum (Rayleigh quotients), but for rounding.
    assert values[0] <= ends.lowest.values[0] + 1e-13
    assert ends.highest.values[-1] <= values[-1] + 1e-13


@pytest.mark.parametrize(
    "diagonal",
    [
        np.ones(60),
        np.zeros(60),
        np.repeat([-1.0, 1.0], 30),
        np.concatenate([np.zeros(55), [-1, -1, 3, 3, 3]]),
    ],
    ids=["identity", "zero", "two values", "low rank"],
)
def test_breakdown_is_left_and_copies_are_found(diagonal):
    ends = dense_ends(jax.random.key(2), jnp.asarray(np.diag(diagonal), jnp.float32))
    expected = np.sort(diagonal)
    # Rounding at a norm of 3 in float32.
    np.testing.assert_allclose(ends.lowest.values, expected[:3], atol=3e-6)
    np.testing.assert_allclose(ends.highest.values, expected[-3:], atol=3e-6)
    assert float(ends.lowest.residuals.max()) < 3e-6
    for pairs in (ends.lowest, ends.highest):
        np.testing.assert_allclose(pairs.vectors @ pairs.vectors.T, np.eye(3), atol=3e-6)


def test_one_key_one_answer():
    a = jnp.asarray(symmetric(0, 60), jnp.float32)
    first, again, other = (dense_ends(jax.random.key(seed), a) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert float(first.lowest.residuals[0]) != float(other.lowest.residuals[0])


def test_lanczos_keeps_a_nan():
    ends = dense_ends(jax.random.key(0), jnp.full((60, 60), jnp.nan))
    assert np.isnan(ends.lowest.values).all()
    assert np.isnan(ends.lowest.residuals).all()


def test_no_ghosts():
    # Without reorthogonalisation, 200 float32 steps report the isolated 100 several times over.
    ends = diagonal_ends(jnp.concatenate([jnp.linspace(0.0, 1.0, 999), jnp.array([100.0])]), 0.0)
    assert int(ends.num_steps) == 200
    np.testing.assert_allclose(ends.highest.values, [1.0, 100.0], rtol=1e-4)


def test_tol_stops_early_and_is_kept():
    diagonal = jnp.concatenate([jnp.linspace(0.0, 1.0, 990), jnp.linspace(2.0, 5.0, 10)])
    steps = []
    for tol in (1e-1, 1e-3):
        ends = diagonal_ends(diagonal, tol)
        steps.append(int(ends.num_steps))
        worst = max(float(ends.lowest.residuals.max()), float(ends.highest.residuals.max()))
        # The test uses the estimate; the residual itself differs by rounding (1e-6 at norm 5).
        assert worst <= tol * 5 + 1e-5
        # The rows that were not used carry no weight.
        assert float(ends.density.weights.sum()) == pytest.approx(1, rel=1e-5)
        assert float(ends.density.nodes.max()) <= 5 + 1e-5
    assert steps[0] < steps[1] < 200


def array_sizes(jaxpr):
    """The number of elements of every intermediate, loops and calls included."""
    for equation in jaxpr.eqns:
        yield from (math.prod(v.aval.shape) for v in equation.outvars)
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from array_sizes(inner)


def test_lanczos_never_forms_a_square_array():
    size = 2000
    point = {"w": jnp.zeros((40, 50))}
    f = lambda p: jnp.sum(jnp.sin(p["w"]) ** 2) + jnp.sum(p["w"]) ** 4  # noqa: E731

    def both(key, p):
        operator = cp.hessian_operator(f, p)
        ends = cp.lanczos(key, operator, p, num_pairs=2, num_steps=20, tol=1e-3)
        return ends, cp.spectral_density(key, operator, p, num_steps=20)

    sizes = list(array_sizes(jax.make_jaxpr(both)(jax.random.key(0), point).jaxpr))
    assert len(sizes) > 500  # the walk went into the loops
    # The largest is the basis: 20 steps, padded to 32 rows.
    assert max(sizes) == 32 * size
    full = jax.make_jaxpr(lambda p: cp.hessian(f, p))(point).jaxpr
    assert max(array_sizes(full)) >= size**2  # and it sees one where there is one


def test_spectral_density_is_a_gauss_quadrature(x64):
    matrix = symmetric(1, 200)

    @jax.jit
    def run(key, a):
        return cp.spectral_density(key, lambda v: a @ v, a[0], num_probes=64, num_steps=30)

    density = run(jax.random.key(0), jnp.asarray(matrix))
    np.testing.assert_allclose(density.weights.sum(axis=1), 1, rtol=1e-12)
    assert float(density.weights.min()) >= 0
    square = float((density.weights * density.nodes**2).sum(axis=1).mean())
    exact = np.trace(matrix @ matrix) / 200
    # Exact for each probe's v^T A^2 v; the probes spread by sqrt(2 / d) = 10 % each, 1.25 % in all.
    assert square == pytest.approx(exact, rel=0.05)


# Transformations and dtypes


def everything(key, w, tol):
    """One of each, at a point of the toy's plane."""
    ends = cp.lanczos(key, cp.hessian_operator(toy, w), w, num_steps=2, tol=tol)
    lowest = ends.lowest.vectors[0]
    return {
        "ends": (ends.lowest.values, ends.highest.values),
        "escape": cp.escape(toy, w, lowest).value,
        "kind": cp.classify(toy, w, gradient_tol=1e3 * tol).kind,
        "model": cp.taylor_model(toy, w)(0.1 * jnp.abs(lowest)),
    }


def test_jit_equals_eager_vmap_equals_loop_and_nothing_recompiles():
    keys = jax.random.split(jax.random.key(1), 3)
    points = jnp.array([[0.0, 0.0], [1.0, 1.0], [0.5, -2.0]])
    tols = jnp.array([1e-7, 1e-7, 1e-2])
    compiled = jax.jit(chex.assert_max_traces(everything, n=1))
    batched = jax.jit(jax.vmap(everything))(keys, points, tols)
    assert [name(k) for k in batched["kind"]] == ["saddle", "degenerate", "saddle"]
    for i, (key, point, tol) in enumerate(zip(keys, points, tols, strict=True)):
        one = compiled(key, point, tol)
        # Other fusions, other rounding, at values up to 10.
        chex.assert_trees_all_close(jax.tree.map(lambda b, i=i: b[i], batched), one, atol=1e-5)
    chex.assert_trees_all_close(everything(key, point, tol), one, atol=1e-5)


def test_gradients_against_differences(x64):
    flat, unflatten = ravel_pytree(small_network(5, np.float64))
    direction = jnp.asarray(np.random.default_rng(0).normal(size=flat.size))

    @jax.jit
    def f(v):
        p = unflatten(v)
        product = cp.hessian_vector_product(network_loss, p, unflatten(direction))
        norm = cp.gradient_norm(network_loss, p)
        lowest = cp.classify(network_loss, p).eigenvalues[0]
        model = cp.taylor_model(network_loss, p)(unflatten(0.1 * direction))
        return jnp.concatenate([jnp.stack([norm, lowest, model]), flatten(product)[:2]])

    # A directional derivative against a central difference of step 1e-5: error about 1e-8 here.
    difference = (f(flat + 1e-5 * direction) - f(flat - 1e-5 * direction)) / 2e-5
    cotangent = jnp.array([1.0, -2.0, 0.5, 3.0, 1.0])
    reverse = jax.grad(lambda v: f(v) @ cotangent)(flat) @ direction
    np.testing.assert_allclose(reverse, difference @ cotangent, rtol=1e-6)
    _, forward = jax.jvp(f, (flat,), (direction,))
    np.testing.assert_allclose(forward, difference, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_parameters_are_kept_and_sums_run_in_float32(dtype):
    def f(p):
        return -(p["w"][0] ** 2) + 2 * p["w"][1] ** 2

    @jax.jit
    def run(point):
        curvature, u = cp.escape_direction(f, point)
        ends = cp.lanczos(jax.random.key(0), cp.hessian_operator(f, point), point)
        return cp.classify(f, point), curvature, u, cp.escape(f, point, u), ends.lowest.values[0]

    point = {"w": jnp.array([0.0, 0.0], dtype)}
    verdict, curvature, u, result, lowest = run(point)
    assert name(verdict.kind) == "saddle"
    assert verdict.eigenvalues.dtype == curvature.dtype == lowest.dtype == jnp.float32
    chex.assert_trees_all_equal_dtypes(u, result.params, point)
    assert bool(result.lowered)
    assert curvature == -2
    # The operand is rounded to 8 bits of precision in bfloat16.
    assert float(lowest) == pytest.approx(-2, rel=2e-2)


def test_float32_stays_float32_under_x64(x64):
    run = jax.jit(lambda w: cp.classify(toy, w).eigenvalues)
    assert run(jnp.zeros(2, jnp.float32)).dtype == jnp.float32
    assert run(jnp.zeros(2)).dtype == jnp.float64
    assert run(jnp.array([1, 1])).dtype == jnp.float64  # integers are promoted


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cp.classify(jnp.sum, jnp.zeros(0)), ValueError, "params must hold at least one"),
        (lambda: cp.classify(lambda x: x, jnp.zeros(2)), ValueError, "f must return a scalar"),
        (lambda: cp.gradient_norm(lambda x: 1j * x, 1.0), TypeError, "f must return a real number"),
        (
            lambda: cp.gradient_norm(jnp.sum, "x"),
            TypeError,
            "each leaf of params must be a numeric",
        ),
        (
            lambda: cp.hessian(jnp.sum, jnp.zeros(5000)),
            ValueError,
            r"max_size = 4096 .* got 5000 .* use lanczos, or raise max_size",
        ),
        (
            lambda: cp.hessian_vector_product(jnp.sum, jnp.zeros(3), jnp.zeros(4)),
            ValueError,
            r"vector must have a leaf of shape \(3,\), got \(4,\)",
        ),
        (
            lambda: cp.hessian_vector_product(jnp.sum, jnp.zeros(3), {"a": jnp.zeros(3)}),
            ValueError,
            "vector must have the structure",
        ),
        (lambda: cp.kind(0.0, []), ValueError, "eigenvalues must not be empty"),
        (lambda: cp.kind(0.0, [1.0], gradient_tol=-1.0), ValueError, "gradient_tol must not be"),
        (lambda: cp.kind(0.0, [1.0, 2.0], error=[1.0]), ValueError, r"error must be a scalar or"),
        (lambda: cp.minimum_ratio(1.0), ValueError, r"eigenvalues must be 1-D, got shape \(\)"),
        (
            lambda: cp.escape(jnp.sum, jnp.ones(2), jnp.zeros(2)),
            ValueError,
            "direction must not be",
        ),
        (
            lambda: cp.escape(jnp.sum, jnp.ones(2), jnp.ones(2), shrink=1.0),
            ValueError,
            "shrink must be less than 1, got 1.0",
        ),
        (
            lambda: cp.escape(jnp.sum, jnp.ones(2), jnp.ones(2), step=0.0),
            ValueError,
            "step must be positive, got 0.0",
        ),
        (
            lambda: cp.lanczos(jax.random.key(0), lambda v: v, jnp.zeros(3), num_pairs=4),
            ValueError,
            r"num_pairs must be at most min\(num_steps, d\) = 3, got 4",
        ),
        (
            lambda: cp.lanczos(jax.random.key(0), lambda v: v[:2], jnp.zeros(3)),
            ValueError,
            "operator must return a pytree like its operand",
        ),
        (
            lambda: cp.lanczos(jax.random.key(0), lambda v: v, jnp.zeros(3), num_steps=2.5),
            TypeError,
            "num_steps must be an integer, got 2.5",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_errors_under_jit_are_still_raised_for_shapes():
    with pytest.raises(ValueError, match="use lanczos"):
        jax.jit(lambda x: cp.hessian(jnp.sum, x))(jnp.zeros(5000))
    # A traced tolerance cannot be looked at; a negative one makes nothing critical.
    assert name(jax.jit(lambda t: cp.kind(0.0, [1.0], gradient_tol=t))(-1.0)) == "not critical"


# The page's claims


def test_demo_claims():
    result = demo.run(jax.random.key(0), quick=True)
    toy_part, net, rarity = result.toy, result.network, result.rarity
    assert name(toy_part.saddle.kind) == "saddle"
    # Both ways down end in the valley w1 w2 = 1, on opposite sides of the saddle.
    ends = np.asarray(toy_part.paths[:, -1])
    np.testing.assert_allclose(ends.prod(axis=1), 1, atol=1e-3)
    np.testing.assert_allclose(ends[0], -ends[1], atol=1e-6)

    assert net.num_parameters > 100_000
    assert 0.05 < float(net.loss) <= 0.1
    assert name(net.kind) == "not critical"
    assert float(net.ends.lowest.values[0]) + float(net.ends.lowest.residuals[0]) < 0
    assert float(net.ends.highest.residuals.max()) < 1e-4 * float(net.ends.highest.values[-1])
    assert bool(net.escape.lowered)
    assert float(net.escape.value) < float(net.loss) < float(net.whole_step)

    matrices, functions = np.asarray(rarity.matrices), np.asarray(rarity.functions)
    # d = 1 and 2 in closed form; 4000 draws spread by at most 0.008, so this is three of that.
    np.testing.assert_allclose(matrices[:2], [0.5, (2 - math.sqrt(2)) / 4], atol=0.025)
    assert np.all(np.diff(matrices[:4]) < 0)
    assert functions[5] < functions[2] < functions[0]
    # Low-lying critical points are mostly minima in few dimensions.
    assert np.all(np.asarray(rarity.low_functions)[:3] > 2 * functions[:3] - 0.1)

    tables = demo.tables(result)
    assert len(tables) == 4
    assert all(len({tuple(row) for row in rows}) == 1 for rows in tables.values())
    figure = demo.plot(result)
    assert len(figure.axes) >= 4
