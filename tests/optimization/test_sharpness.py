"""Power iteration, epsilon-sharpness and slices, against closed forms, NumPy and PyTorch."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from mlnotes_jax.demos.optimization import sharpness as demo
from mlnotes_jax.optimization import sharpness as sh

KEY = jax.random.key(0)


def quadratic(matrix):
    return lambda x: 0.5 * x @ (matrix @ x)


@jax.jit
def top_of(matrix, tol, max_steps):
    f = quadratic(matrix)
    return sh.top_eigenvalue(KEY, f, jnp.zeros(len(matrix)), tol=tol, max_steps=max_steps)


def rotated(eigenvalues, seed=0):
    eigenvalues = np.asarray(eigenvalues, float)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))
    return jnp.asarray(q @ (eigenvalues[:, None] * q.T))


def network(seed=0, dtype=np.float32):
    """A ReLU network of one hidden layer, as a pytree: kernels, a bias."""
    rng = np.random.default_rng(seed)
    params = {
        "in": {"kernel": rng.normal(size=(4, 6)), "bias": rng.normal(size=6)},
        "out": {"kernel": rng.normal(size=(6, 3))},
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


X = np.random.default_rng(7).normal(size=(20, 4))
Y = np.random.default_rng(8).integers(0, 3, 20)


def network_loss(p, activation=jax.nn.relu):
    x = jnp.asarray(X, p["out"]["kernel"].dtype)
    hidden = activation(x @ p["in"]["kernel"] + p["in"]["bias"][None])
    log_p = jax.nn.log_softmax(hidden @ p["out"]["kernel"])
    return -jnp.take_along_axis(log_p, jnp.asarray(Y)[:, None], axis=1).mean()


smooth_loss = functools.partial(network_loss, activation=jnp.tanh)


# Power iteration


@pytest.mark.parametrize(
    ("eigenvalues", "top"),
    [
        ([1, 2, 3, 10], 10),
        ([-3, 0, 1, 5], 5),
        ([-8, 0, 1, 5], 5),  # the largest in magnitude is negative
        ([-8, -4, -2, -1], -1),
        ([-8, -4, -2, 0], 0),
        ([0, 0, 0, 0], 0),
        ([4, 4, 4, 4], 4),
    ],
)
def test_top_eigenvalue_of_a_quadratic(x64, eigenvalues, top):
    found = top_of(rotated(eigenvalues), 1e-6, 500)
    assert bool(found.converged)
    scale = max(map(abs, eigenvalues))
    # The value's error is of second order in a residual of 1e-6.
    assert float(found.value) == pytest.approx(top, abs=1e-9 * max(scale, 1))
    assert float(found.residual) <= 1e-6 * scale + 1e-14
    assert float(jnp.linalg.norm(found.vector)) == pytest.approx(1, abs=1e-12)


def test_the_residual_is_what_it_says_and_certifies(x64):
    matrix = rotated(np.linspace(1, 10, 30))  # no eigenvalue stands out
    values = np.linalg.eigvalsh(matrix)
    for steps in (1, 5, 40):
        found = top_of(matrix, 1e-12, steps)
        assert int(found.num_steps) == steps
        assert not bool(found.converged)
        assert np.abs(values - float(found.value)).min() <= float(found.residual)
        assert float(found.value) <= values[-1] + 1e-12
    done = top_of(matrix, 1e-3, 1000)
    u = np.asarray(done.vector)
    residual = np.linalg.norm(matrix @ u - float(done.value) * u)
    assert residual == pytest.approx(float(done.residual), rel=1e-6)


def test_it_shrinks_by_the_ratio_of_two_eigenvalues(x64):
    # The residual falls by 0.8 a step: 100 steps more are 0.8^100 = 2e-10 times as much.
    matrix = jnp.diag(jnp.array([1.0, 0.8, 0.1, 0.0]))
    a, b = (float(top_of(matrix, 0.0, n).residual) for n in (21, 41))
    assert b / a == pytest.approx(0.8**20, rel=0.02)


def test_two_of_one_magnitude_do_not_settle_and_it_is_said():
    found = top_of(jnp.diag(jnp.array([2.0, -2.0])), 1e-3, 100)
    assert not bool(found.converged)
    assert float(found.residual) > 0.1
    assert int(found.num_steps) == 100


def test_a_nan_is_kept():
    found = top_of(jnp.full((4, 4), jnp.nan), 1e-3, 10)
    assert np.isnan(found.value)
    assert not bool(found.converged)


def test_it_agrees_with_pytorch(torch, x64):
    """PyTorch's own Hessian of the same network, and NumPy's eigenvalues of it."""
    params = network(dtype=np.float64)
    flat, unflatten = ravel_pytree(params)

    def loss(v):
        sizes = [leaf.size for leaf in jax.tree.leaves(params)]
        bias, kernel, out = torch.split(v, sizes)
        hidden = torch.tanh(torch.tensor(X) @ kernel.reshape(4, 6) + bias)
        return torch.nn.functional.cross_entropy(hidden @ out.reshape(6, 3), torch.tensor(Y))

    peer = torch.autograd.functional.hessian(loss, torch.tensor(np.asarray(flat))).numpy()
    found = jax.jit(
        lambda v: sh.top_eigenvalue(KEY, lambda w: smooth_loss(unflatten(w)), v, tol=1e-7,
                                    max_steps=2000)
    )(flat)  # fmt: skip
    assert bool(found.converged)
    values, vectors = np.linalg.eigh(peer)
    np.testing.assert_allclose(found.value, values[-1], rtol=1e-10)
    assert abs(vectors[:, -1] @ np.asarray(found.vector)) == pytest.approx(1, abs=1e-6)


# Epsilon-sharpness


@functools.partial(jax.jit, static_argnames=("region", "num_steps"))
def sharp(matrix, slope, point, epsilon, region, num_steps=60):
    def f(x):
        return 0.5 * (x - point) @ (matrix @ (x - point)) + slope @ (x - point) + 1.0

    return sh.epsilon_sharpness(KEY, f, point, epsilon=epsilon, region=region, num_steps=num_steps)


def test_ball_on_a_quadratic_in_closed_form(x64):
    matrix, point = rotated([1, 2, 5]), jnp.array([1.0, -2.0, 3.0])
    found = sharp(matrix, jnp.zeros(3), point, 0.1, "ball")
    expected = 0.5 * 0.1**2 * 5
    # f = 1 at the centre: percent of 1 + 1. 60 steps shrink the rest by 0.8^60.
    assert float(found.highest) == pytest.approx(1 + expected, abs=1e-6)
    assert float(found.value) == pytest.approx(100 * expected / 2, rel=1e-4)
    assert float(jnp.linalg.norm(found.displacement)) == pytest.approx(0.1, rel=1e-12)
    # Along the top eigenvector, to either side.
    u = np.linalg.eigh(matrix)[1][:, -1]
    assert abs(u @ found.displacement) == pytest.approx(0.1, rel=1e-3)


def test_box_on_a_diagonal_quadratic_in_closed_form(x64):
    h, g, point = (
        jnp.array([1.0, 2.0, 5.0]),
        jnp.array([0.0, 0.3, -0.2]),
        jnp.array([1.0, -2.0, 3.0]),
    )
    radius = 0.1 * (np.abs(point) + 1)
    found = sharp(jnp.diag(h), g, point, 0.1, "box")
    # Each coordinate on its own: at the corner that its slope points to.
    expected = float((0.5 * h * radius**2 + jnp.abs(g) * radius).sum())
    assert float(found.highest) == pytest.approx(1 + expected, rel=1e-12)
    np.testing.assert_allclose(jnp.abs(found.displacement), radius, rtol=1e-12)
    assert (jnp.sign(found.displacement)[1:] == jnp.sign(g)[1:]).all()


def test_the_best_point_of_a_grid_is_not_better(x64):
    # A convex function with a full Hessian and a slope, in two dimensions: search the circle.
    matrix, slope = jnp.array([[3.0, 1.0], [1.0, 2.0]]), jnp.array([0.2, -0.1])
    found = sharp(matrix, slope, jnp.zeros(2), 0.5, "ball")
    angle = np.linspace(0, 2 * np.pi, 20_001)
    z = 0.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    values = 0.5 * np.einsum("ni,ij,nj->n", z, matrix, z) + z @ np.asarray(slope) + 1
    assert values.max() - 1e-6 <= float(found.highest) <= values.max() + 1e-6


def test_a_maximum_has_no_sharpness():
    found = sharp(-jnp.eye(3), jnp.zeros(3), jnp.ones(3), 0.1, "ball")
    assert float(found.value) == 0
    chex.assert_trees_all_equal(found.displacement, jnp.zeros(3))


@settings(deadline=None, max_examples=20)
@given(
    eigenvalues=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    epsilon=st.floats(0.05, 1),
    seed=st.integers(0, 2**31 - 1),
)
def test_sharpness_is_between_zero_and_the_second_order_bound(eigenvalues, epsilon, seed):
    matrix = rotated(eigenvalues, seed).astype(jnp.float32)
    found = sharp(matrix, jnp.zeros(3), jnp.zeros(3), epsilon, "ball", num_steps=60)
    bound = 0.5 * epsilon**2 * max(max(eigenvalues), 0)
    rise = float(found.highest) - 1
    assert 0 <= rise <= bound + 1e-5  # float32 at a value of 1 to 2.5
    assert float(jnp.linalg.norm(found.displacement)) <= epsilon * (1 + 1e-5)


def test_tied_to_the_top_eigenvalue_on_a_network(x64):
    params = network(dtype=np.float64)

    @jax.jit
    def both(params):
        # Remove the slope: what is left is a critical point with the same Hessian.
        gradient = jax.grad(smooth_loss)(params)

        def level(p):
            moved = jax.tree.map(lambda a, b, g: jnp.sum((a - b) * g), p, params, gradient)
            return smooth_loss(p) - sum(jax.tree.leaves(moved))

        top = sh.top_eigenvalue(KEY, level, params, tol=1e-4, max_steps=500)
        ball = sh.epsilon_sharpness(KEY, level, params, epsilon=1e-3, region="ball", num_steps=300)
        return top, ball

    top, ball = both(params)
    # Third order: 1e-3 relative to the second.
    expected = 0.5 * 1e-6 * float(top.value)
    assert float(ball.highest - ball.loss) == pytest.approx(expected, rel=5e-3)


# Shifts


def test_the_mean_shift_sees_the_trace(x64):
    h = jnp.array([0.0, 0.0, 1.0, 9.0])

    @jax.jit
    def run(key):
        f = quadratic(jnp.diag(h))
        return sh.shift_increase(key, f, jnp.zeros(4), radius=0.2, num_shifts=4000, batch_size=500)

    rises = np.asarray(run(KEY))
    # 4000 draws with a relative deviation of about 1: two percent.
    assert rises.mean() == pytest.approx(0.5 * 0.04 / 4 * 10, rel=0.06)
    assert rises.max() <= 0.5 * 0.04 * 9 + 1e-12
    assert rises.min() >= 0


# Directions and slices


def test_filters_are_as_long_as_those_of_the_network():
    params = {
        "conv": jnp.cos(jnp.arange(90.0)).reshape(3, 3, 2, 5),
        "dense": jnp.sin(jnp.arange(24.0)).reshape(4, 6),
        "bias": jnp.arange(1.0, 4.0),
        "scale": jnp.float32(2.0),
    }

    @jax.jit
    def draw(params):
        zero = sh.filter_normalized_direction(KEY, jnp.zeros((3, 2)))
        whole = sh.filter_normalized_direction(KEY, params, vectors="whole")
        return sh.filter_normalized_direction(KEY, params), whole, zero

    d, whole, zero = draw(params)
    for name, axes in (("conv", (0, 1, 2)), ("dense", (0,))):
        ours, theirs = (np.sqrt((np.asarray(a[name]) ** 2).sum(axis=axes)) for a in (d, params))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert not np.asarray(d["bias"]).any()
    assert float(d["scale"]) == 0
    assert float(jnp.linalg.norm(whole["bias"])) == pytest.approx(math.sqrt(14), rel=1e-5)
    assert abs(float(whole["scale"])) == pytest.approx(2)
    # A filter of zeros stays where it is.
    assert not np.asarray(zero).any()


def test_rescaling_a_relu_network_changes_its_sharpness_but_not_its_slices():
    """relu(a z) = a relu(z): scale one layer up and the next down, and nothing is computed anew."""
    params = network()
    factor = 5.0
    rescaled = {
        "in": jax.tree.map(lambda leaf: factor * leaf, params["in"]),
        "out": jax.tree.map(lambda leaf: leaf / factor, params["out"]),
    }

    @jax.jit
    def look(params):
        d = sh.filter_normalized_direction(KEY, params)
        line = sh.slice_1d(network_loss, params, d, jnp.linspace(-1, 1, 9))
        top = sh.top_eigenvalue(KEY, network_loss, params)
        return line, top.value

    (line, top), (same, other) = look(params), look(rescaled)
    # float32 sums in another scale.
    np.testing.assert_allclose(line, same, rtol=1e-5)
    assert float(other) > 5 * float(top)


def test_two_directions_are_nearly_at_right_angles():
    @jax.jit
    def draw(like):
        one = sh.filter_normalized_direction(jax.random.split(KEY, 3)[1], like)
        return sh.filter_normalized_directions(KEY, like, num=3), one

    d, one = draw(jnp.ones((200, 50)))
    flat = np.asarray(d).reshape(3, -1)
    cosines = np.corrcoef(flat) - np.eye(3)
    # One over the square root of 10000, times four.
    assert np.abs(cosines).max() < 0.04
    np.testing.assert_allclose(d[1], one, rtol=1e-5)


def test_slices_are_the_loss_on_a_line_and_on_a_grid():
    params = network()
    u = jax.tree.map(lambda leaf: jnp.asarray(np.cos(np.arange(leaf.size)).reshape(leaf.shape),
                                              leaf.dtype), params)  # fmt: skip
    v = jax.tree.map(lambda leaf: jnp.asarray(0.3 * np.asarray(leaf)), params)
    s, t = np.linspace(-1, 1, 5).astype(np.float32), np.linspace(-0.5, 1, 4).astype(np.float32)

    @jax.jit
    def pictures(params):
        def at(a, b):
            return network_loss(jax.tree.map(lambda p, x, y: p + a * x + b * y, params, u, v))

        line = sh.slice_1d(network_loss, params, u, s, batch_size=2)
        # 20 places in blocks of 3: a smaller one is left over.
        plane = sh.slice_2d(network_loss, params, u, v, s, t, batch_size=3)
        grid = jnp.meshgrid(s, t, indexing="ij")
        expected = jax.vmap(jax.vmap(at))(*grid)
        return line, plane, expected, jax.vmap(lambda a: at(a, 0.0))(s)

    line, plane, expected, expected_line = pictures(params)
    assert plane.shape == (5, 4)
    np.testing.assert_allclose(plane, expected, rtol=1e-5)
    np.testing.assert_allclose(line, expected_line, rtol=1e-5)
    eager = sh.slice_1d(lambda p: jnp.sum(p**2), jnp.ones(3), jnp.ones(3), s)
    np.testing.assert_allclose(eager, 3 * (1 + s) ** 2, rtol=1e-6)


# Transformations and dtypes


def test_jit_vmap_and_no_second_compilation():
    traces = 0

    def everything(key, point, epsilon, tol):
        nonlocal traces
        traces += 1
        f = lambda x: jnp.sum(jnp.cosh(x) * jnp.array([1.0, 2.0, 3.0]))  # noqa: E731
        d = sh.filter_normalized_direction(key, point[:, None])[:, 0]
        return (
            sh.top_eigenvalue(key, f, point, tol=tol, max_steps=jnp.int32(50)),
            sh.epsilon_sharpness(key, f, point, epsilon=epsilon, num_steps=5),
            sh.shift_increase(key, f, point, radius=epsilon, num_shifts=3),
            sh.slice_1d(f, point, d, jnp.array([0.0, 1.0])),
        )

    compiled = jax.jit(everything)
    points = jnp.array([[0.1, 0.2, 0.3], [1.0, -0.5, 0.3]])
    keys, epsilons = jax.random.split(KEY, 2), jnp.array([0.01, 0.1])
    one = [compiled(k, p, e, 1e-3) for k, p, e in zip(keys, points, epsilons, strict=True)]
    assert traces == 1
    many = jax.jit(jax.vmap(everything, in_axes=(0, 0, 0, None)))(keys, points, epsilons, 1e-3)
    for i in (0, 1):
        # Other fusions, at values of about 10 in float32; sharpness divides by a small difference.
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, i=i: leaf[i], many), one[i], atol=2e-3
        )
    eager = sh.top_eigenvalue(
        keys[0], lambda x: jnp.sum(jnp.cosh(x) * jnp.array([1.0, 2.0, 3.0])), points[0], tol=1e-3,
        max_steps=50,
    )  # fmt: skip
    chex.assert_trees_all_close(eager, one[0][0], atol=2e-3)


def test_gradients_against_differences(x64):
    params, d = network(dtype=np.float64), network(seed=1, dtype=np.float64)
    flat, unflatten = ravel_pytree(params)
    weights = jnp.array([1.0, -2.0, 0.5])

    @jax.jit
    def f(v):
        return weights @ sh.slice_1d(smooth_loss, unflatten(v), d, jnp.array([-0.3, 0.1, 0.5]))

    direction = jnp.cos(jnp.arange(flat.size, dtype=flat.dtype))
    difference = (f(flat + 1e-6 * direction) - f(flat - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(jax.grad(f)(flat) @ direction, difference, rtol=1e-6)


def test_low_precision_parameters_are_measured_in_float32():
    params = {"w": jnp.array([[0.5, 0.25], [1.0, -1.0]], jnp.bfloat16)}

    def f(p):
        return jnp.sum(p["w"].astype(jnp.float32) ** 2)

    @jax.jit
    def run(params):
        d = sh.filter_normalized_direction(KEY, params)
        return (
            sh.top_eigenvalue(KEY, f, params, tol=0.05),
            sh.epsilon_sharpness(KEY, f, params, epsilon=0.5, num_steps=8),
            sh.slice_1d(f, params, d, jnp.array([0.0, 1.0])),
        )

    top, epsilon, line = run(params)
    assert top.value.dtype == top.vector["w"].dtype == jnp.float32
    # The operand is rounded to eight bits.
    assert float(top.value) == pytest.approx(2, rel=2e-2)
    assert epsilon.displacement["w"].dtype == line.dtype == jnp.float32
    assert float(epsilon.highest) > float(epsilon.loss)


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: sh.top_eigenvalue(KEY, lambda x: x, jnp.ones(2)),
            ValueError,
            "f must return a scalar",
        ),
        (
            lambda: sh.top_eigenvalue(KEY, jnp.sum, jnp.ones(2), tol=-1.0),
            ValueError,
            "tol must not be negative, got -1.0",
        ),
        (
            lambda: sh.top_eigenvalue(KEY, jnp.sum, jnp.ones(2), max_steps=0),
            ValueError,
            r"max_steps must be in \[1, ",
        ),
        (
            lambda: sh.epsilon_sharpness(KEY, jnp.sum, jnp.ones(2), epsilon=0.0),
            ValueError,
            "epsilon must be positive, got 0.0",
        ),
        (
            lambda: sh.epsilon_sharpness(KEY, jnp.sum, jnp.ones(2), region="cube"),
            ValueError,
            "region must be one of 'box', 'ball', got 'cube'",
        ),
        (
            lambda: sh.shift_increase(KEY, jnp.sum, jnp.ones(2), radius=-1.0),
            ValueError,
            "radius must be positive",
        ),
        (
            lambda: sh.filter_normalized_direction(KEY, {}),
            ValueError,
            "params must hold at least one number",
        ),
        (
            lambda: sh.filter_normalized_direction(KEY, jnp.ones(2), vectors="some"),
            ValueError,
            "vectors must be one of 'zero', 'whole'",
        ),
        (
            lambda: sh.slice_1d(jnp.sum, jnp.ones(2), jnp.ones(3), jnp.ones(4)),
            ValueError,
            r"direction must have a leaf of shape \(2,\), got \(3,\)",
        ),
        (
            lambda: sh.slice_1d(jnp.sum, jnp.ones(2), {"a": jnp.ones(2)}, jnp.ones(4)),
            ValueError,
            "direction must have the structure",
        ),
        (
            lambda: sh.slice_1d(jnp.sum, jnp.ones(2), jnp.ones(2), 1.0),
            ValueError,
            "lengths must be 1-D",
        ),
        (
            lambda: sh.slice_2d(
                jnp.sum, jnp.ones(2), jnp.ones(2), jnp.ones(2), [1.0], [1.0], batch_size=0
            ),
            ValueError,
            "batch_size must be at least 1, got 0",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


# The page's claims


def test_demo_claims():
    result = demo.run(KEY, quick=True)
    point = result.point
    top = float(point.measured.top[0])
    # Both carry a residual: an eigenvalue lies within it; the values are better still.
    assert float(point.measured.residual[0]) <= 1e-3 * top * 1.001
    assert top == pytest.approx(float(point.lanczos), rel=1e-4)
    # The ball sees slope and curvature, and not more (third order is a tenth of them here).
    slope, loss = float(point.measured.gradient_norm[0]), float(point.measured.loss[0])
    bound = 100 * (demo.BALL * slope + 0.5 * demo.BALL**2 * top) / (1 + loss)
    assert 0.3 * bound < float(point.measured.ball[0]) < 1.1 * bound

    small, large, high, low = result.minima
    assert (small.top < large.top).all()
    assert (high.top < low.top).all()
    for recipe, one in zip(demo.RECIPES, result.minima, strict=True):
        assert (one.loss <= result.target).all()
        assert (one.rise > 0).all()
        middle = demo.LENGTHS // 2
        np.testing.assert_allclose(one.line[:, middle], one.loss, rtol=1e-4)
        if recipe.batch_size == 0:
            # A limit for staying; training is stopped on the way.
            assert (one.top < 1.1 * 2 / recipe.rate).all()

    tables = demo.tables(result)
    assert all(len({tuple(row) for row in rows}) == 1 for rows in tables.values())
    assert len(demo.plot(result).axes) == 5
