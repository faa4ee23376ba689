"""Bias and variance against closed forms, NumPy, and the same formulas written as loops."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos.generalization import bias_variance as demo
from mlnotes_jax.foundations import linear_regression as lr
from mlnotes_jax.generalization import bias_variance as bv

NOISE = 0.5
ROWS = jnp.linspace(-1.0, 1.0, 15)
POINTS = jnp.linspace(-0.9, 0.9, 7)
RIDGES = (0.0, 1.0)


def truth(x):
    return jnp.sin(3 * x + 1)


def observe(key, x):
    return truth(x) + NOISE * jax.random.normal(key, x.shape, x.dtype)


def features(x):
    return lr.polynomial_features(x[:, None], degree=3, include_bias=True)


# Ridge in the coordinates in which the Gram matrix of the rows is diagonal: quick to compile.
VANDER = np.vander(np.linspace(-1, 1, 15), 4, True)
GRAM, AXES = np.linalg.eigh(VANDER.T @ VANDER)


def fit(x, y, ridge=0.0):
    axes, gram = jnp.asarray(AXES, y.dtype), jnp.asarray(GRAM, y.dtype)
    return axes @ ((axes.T @ (features(x).T @ y)) / (gram + ridge))


def predict(model, x):
    return features(x) @ model


@functools.partial(jax.jit, static_argnames=("num_datasets", "chunk_size"))
def cubic(key, ridge, num_datasets=2000, chunk_size=None):
    rows, points = (x.astype(ridge.dtype) for x in (ROWS, POINTS))
    return bv.decompose(
        key,
        functools.partial(fit, ridge=ridge),
        predict,
        lambda key: (rows, observe(key, rows)),
        points,
        observe=observe,
        truth=truth,
        num_datasets=num_datasets,
        chunk_size=chunk_size,
    )


@jax.jit
def cubic_smoother(ridge):
    rows, points = (x.astype(ridge.dtype) for x in (ROWS, POINTS))
    return bv.linear_smoother(functools.partial(fit, ridge=ridge), predict, rows, points)


@pytest.fixture(scope="module")
def sweep():
    """Two strengths of ridge, side by side."""
    return jax.vmap(cubic, in_axes=(None, 0))(jax.random.key(1), jnp.array(RIDGES))


def exact_cubic(ridge=0.0):
    smoother = cubic_smoother(jnp.asarray(ridge, float))
    return bv.closed_form(smoother, truth(ROWS), truth(POINTS), noise_variance=NOISE**2)


def loops(p, t, h):
    """Bias squared, variance, noise, error as averages over pairs: U-statistics, by loops."""
    pairs = list(itertools.permutations(range(len(p)), 2))
    d = p - (t if h is None else h)
    bias = np.mean([d[r] * d[s] for r, s in pairs], axis=0)
    variance = np.mean([(p[r] - p[s]) ** 2 / 2 for r, s in pairs], axis=0)
    if h is None:
        noise = np.mean([(t[r] - t[s]) ** 2 / 2 for r, s in pairs], axis=0)
    else:
        noise = ((t - h) ** 2).mean(axis=0)
    error = ((p - t) ** 2).mean(axis=0)
    total = bias + variance + noise
    return np.stack([bias, variance, noise, total, error, error - total])


# --- decompose


@pytest.mark.parametrize("known", [True, False])
def test_estimates_and_jackknife_equal_loops(x64, known):
    h = np.array([0.3, -0.2, 0.1]) if known else None
    found = jax.jit(
        lambda key: bv.decompose(
            key,
            lambda y: 1 + y,
            lambda model, x: model,
            lambda key: (jax.random.normal(key, (3,)),),
            None,
            observe=lambda key, x: jax.random.normal(key, (3,)),
            truth=h,
            num_datasets=8,
        )
    )(jax.random.key(0))
    p, t = np.asarray(found.predictions), np.asarray(found.targets)
    assert p.std() > 0.5
    assert t.std() > 0.5
    whole = loops(p, t, h)
    left_out = [np.delete(np.arange(8), r) for r in range(8)]
    change = np.stack([loops(p[keep], t[keep], h) for keep in left_out])
    change = change - change.mean(axis=0)
    # Double precision, numbers of order 1.
    pointwise = np.stack([part.value for part in found.pointwise])
    np.testing.assert_allclose(pointwise, whole, atol=1e-13)
    errors = np.stack([part.standard_error for part in found.pointwise])
    # The bias has a second term: 2 s^4 / (R (R - 1)).
    spread = (p - (t if h is None else h)).var(axis=0, ddof=1)
    squared = 7 / 8 * (change**2).sum(0)
    squared[0] += 2 * spread**2 / 56
    np.testing.assert_allclose(errors, np.sqrt(squared), atol=1e-13)
    average = np.stack([part.value for part in found.average])
    np.testing.assert_allclose(average, whole.mean(axis=1), atol=1e-13)
    errors = np.stack([part.standard_error for part in found.average])
    squared = 7 / 8 * (change.mean(axis=2) ** 2).sum(0)
    squared[0] += 2 * spread.mean() ** 2 / 56
    np.testing.assert_allclose(errors, np.sqrt(squared), atol=1e-13)
    # What is left over is a covariance of independent numbers, exactly.
    if known:
        gap = -2 * ((p - h) * (t - h)).mean(axis=0)
    else:
        gap = [-2 * np.cov(p[:, i], t[:, i])[0, 1] for i in range(3)]
    np.testing.assert_allclose(found.pointwise.gap.value, gap, atol=1e-13)


@pytest.mark.parametrize("i", [0, 1])
def test_polynomials_agree_with_the_closed_form(sweep, i):
    found = jax.tree.map(lambda leaf: leaf[i], sweep)
    exact = exact_cubic(RIDGES[i])
    for name in ("bias_squared", "variance", "noise", "total"):
        measured = getattr(found.pointwise, name)
        off = (measured.value - getattr(exact, name)) / measured.standard_error
        assert np.abs(off).max() < 4.5, name  # normal: 1 seed in 20 000
        measured = getattr(found.average, name)
        off = (measured.value - getattr(exact, name).mean()) / measured.standard_error
        assert np.abs(off) < 4, name
    error, gap = found.average.error, found.average.gap
    assert np.abs(error.value - exact.total.mean()) < 4 * error.standard_error
    assert np.abs(gap.value) < 4 * gap.standard_error
    # The standard error is small enough to mean something: a hundredth of the error.
    assert gap.standard_error < 0.02 * error.value
    assert int(found.num_failed) == 0
    # Bias goes up and variance down, as ridge should.
    if i:
        assert found.average.bias_squared.value > 3 * sweep.average.bias_squared.value[0]
        assert found.average.variance.value < 0.8 * sweep.average.variance.value[0]


def test_vmap_equals_a_loop_and_chunks_change_nothing(sweep):
    for i, ridge in enumerate(RIDGES):
        alone = cubic(jax.random.key(1), jnp.float32(ridge), chunk_size=300)
        # Another order of the sums in a matrix product: a few roundings of numbers near 1.
        one = jax.tree.map(lambda leaf, i=i: leaf[i], sweep)
        chex.assert_trees_all_close(alone, one, atol=1e-5)
    # One key is one experiment: both strengths were fitted to the same data.
    np.testing.assert_array_equal(sweep.targets[0], sweep.targets[1])


@pytest.mark.parametrize("ridge", [0.0, 5.0])
def test_standard_errors_are_right_and_the_bias_is_unbiased(ridge):
    num_datasets = 40
    many = repeat(jax.random.split(jax.random.key(2), 600), jnp.float32(ridge))
    exact = exact_cubic(ridge)
    plain = ((many.mean_prediction - truth(POINTS)[None]) ** 2).mean(axis=1)
    for name in ("bias_squared", "variance", "noise", "total"):
        part = getattr(many.average, name)
        goal = float(getattr(exact, name).mean())
        mean, scatter = float(part.value.mean()), float(part.value.std())
        assert abs(mean - goal) < 4 * scatter / 600**0.5, name
        # The root mean square of the standard errors against the true scatter: 600 repeats know a
        # scatter to 3 %, and a jackknife of 40 skewed numbers is a few per cent off.
        claimed = float(jnp.sqrt((part.standard_error**2).mean()))
        # Without ridge there is hardly any bias, and the standard error of that is an upper bound.
        limit = 2 if name == "bias_squared" and not ridge else 1.2
        assert 0.85 < claimed / scatter < limit, name
    gap = many.average.gap
    assert 0.85 < float(jnp.sqrt((gap.standard_error**2).mean()) / gap.value.std()) < 1.2
    # The plain square has variance / R too much, and this experiment is large enough to see it.
    excess = float(plain.mean() - exact.bias_squared.mean())
    scatter = float(plain.std()) / 600**0.5
    assert abs(excess - float(exact.variance.mean()) / num_datasets) < 4 * scatter
    if not ridge:
        assert excess > 10 * scatter


@jax.jit
def repeat(keys, ridge):
    many = jax.vmap(lambda key: cubic(key, ridge, num_datasets=40))(keys)
    return many._replace(predictions=0, targets=0)


def test_an_estimator_without_points_or_noise():
    # fit: the variance with 1/n of four normal numbers. Bias -1/4, variance 2 * 3 / 16.
    found = jax.jit(
        lambda key: bv.decompose(
            key,
            lambda y: y.var(),
            lambda model, x: model,
            lambda key: (jax.random.normal(key, (4,)),),
            None,
            truth=1.0,
            num_datasets=20_000,
        )
    )(jax.random.key(3))
    for name, goal in (("bias_squared", 1 / 16), ("variance", 6 / 16), ("error", 7 / 16)):
        part = getattr(found.average, name)
        assert abs(float(part.value) - goal) < 4 * float(part.standard_error), name
    assert float(found.average.noise.value) == float(found.average.noise.standard_error) == 0
    assert abs(float(found.average.gap.value)) < 1e-6  # nothing random is left: rounding


def test_jit_equals_eager_and_compiles_once():
    def mean(key, scale):
        return bv.decompose(
            key,
            lambda y: scale * y.mean(),
            lambda model, x: jnp.broadcast_to(model, x.shape),
            lambda key: (jax.random.normal(key, (5,)),),
            jnp.zeros(2),
            observe=lambda key, x: jax.random.normal(key, x.shape),
            num_datasets=10,
        )

    traced = jax.jit(chex.assert_max_traces(mean, n=1))
    eager = mean(jax.random.key(6), jnp.float32(0.5))
    chex.assert_trees_all_close(traced(jax.random.key(6), jnp.float32(0.5)), eager, atol=1e-6)
    traced(jax.random.key(7), jnp.float32(0.7))


def test_fits_that_draw_outputs_that_are_vectors_and_failures():
    def fit(key, y):
        model = y.mean() + jax.random.normal(key, (2,))
        return jnp.where(y[:2] > 0.99, jnp.nan, model)

    found = jax.jit(
        lambda key: bv.decompose(
            key,
            fit,
            lambda model, x: jnp.broadcast_to(model, (3, 2)),
            lambda key: (jax.random.uniform(key, (4,), minval=-1.0),),
            None,
            truth=jnp.zeros((3, 2)),
            num_datasets=500,
        )
    )(jax.random.key(8))
    assert found.mean_prediction.shape == (3, 2)
    predictions = np.asarray(found.predictions)
    failed = np.isnan(predictions)
    assert int(found.num_failed) == failed.any(axis=(1, 2)).sum() > 0
    assert not failed.all(axis=(1, 2)).any()
    assert np.isnan(found.average.error.value)  # not hidden
    # 1 for the draw, 1 / 12 of a uniform number on an interval of length 2, times 4, over 4.
    assert abs(np.nanvar(predictions) - (1 + 1 / 12)) < 0.2  # 1000 numbers: 4 * 1.1 * sqrt(2/1000)


def test_gradient_over_ridge(x64):
    @jax.jit
    def variance(ridge):
        return cubic(jax.random.key(10), ridge, num_datasets=20).average.variance.value

    slope = jax.jit(jax.grad(variance))(jnp.float64(0.5))
    difference = (variance(jnp.float64(0.5 + 1e-5)) - variance(jnp.float64(0.5 - 1e-5))) / 2e-5
    # Central differences in double precision: 1e-10 of truncation, 1e-11 of rounding.
    np.testing.assert_allclose(slope, difference, rtol=1e-6)

    def exact(ridge):
        return exact_cubic(ridge).total.mean()

    difference = (exact(0.5 + 1e-5) - exact(0.5 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(exact)(jnp.float64(0.5)), difference, rtol=1e-6)


# --- Linear smoothers


def test_smoother_of_polynomials_is_the_hat_matrix(x64):
    x = np.linspace(-1, 1, 9)
    design = np.vander(x, 4)
    hat = design @ np.linalg.pinv(design)
    rows = lr.polynomial_features(jnp.asarray(x)[:, None], degree=3)
    smoother = bv.linear_smoother(lr.fit, lr.predict, rows, rows)
    np.testing.assert_allclose(smoother, hat, atol=1e-12)
    h = np.sin(3 * x + 1)
    parts = bv.closed_form(smoother, h, h, noise_variance=0.25)
    # A projection: the variance adds up to sigma^2 p, the bias is what it cannot reach.
    np.testing.assert_allclose(parts.variance.sum(), 0.25 * 4, rtol=1e-10)
    np.testing.assert_allclose(parts.bias_squared.sum(), ((h - hat @ h) ** 2).sum(), rtol=1e-8)
    np.testing.assert_allclose(parts.total, parts.bias_squared + parts.variance + 0.25)


def test_smoother_of_nearest_neighbours():
    x, at = jnp.arange(6.0), jnp.array([0.1, 3.9])

    def neighbours(model, x):
        rows, y = model
        nearest = jnp.argsort(jnp.abs(x[:, None] - rows[None]), axis=1)[:, :2]
        return y[nearest].mean(axis=1)

    smoother = bv.linear_smoother(lambda x, y: (x, y), neighbours, x, at)
    expected = [[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0, 0.5, 0.5, 0]]
    np.testing.assert_array_equal(smoother, expected)
    parts = bv.closed_form(smoother, x, at, noise_variance=2.0)
    np.testing.assert_allclose(parts.variance, [1, 1])  # sigma^2 / k
    np.testing.assert_allclose(parts.bias_squared, [0.16, 0.16], rtol=1e-5)


@pytest.mark.parametrize("bend", [lambda y: y.max(), lambda y: y.sum() + 1, lambda y: y @ y])
def test_what_is_not_linear_is_refused(bend):
    with pytest.raises(ValueError, match="fit must be linear in the targets"):
        bv.linear_smoother(
            lambda x, y: bend(y), lambda model, x: model[None], jnp.zeros(4), jnp.zeros(1)
        )


# --- The bootstrap


def weighted_mean(x, y, *, sample_weight):
    return sample_weight @ y / sample_weight.sum()


def test_out_of_bag_of_a_mean_in_closed_form():
    y = jnp.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    n = len(y)
    found = jax.jit(
        lambda key: bv.out_of_bag(
            key,
            weighted_mean,
            lambda model, x: jnp.broadcast_to(model, (n,)),
            jnp.zeros((n, 1)),
            y,
            num_resamples=8000,
        )
    )(jax.random.key(11))
    others = np.array([np.delete(np.asarray(y), i) for i in range(n)])
    # A resample that misses row i is n draws from the others.
    variance = others.var(axis=1) / n
    # About 8000 (5/6)^6 = 2700 fits judge each row: a mean to sqrt(variance / 2700), a variance to
    # 2.7 %; five of these.
    off = np.abs(found.mean_prediction - others.mean(axis=1))
    assert (off < 5 * np.sqrt(variance / np.asarray(found.num_fits))).all()
    np.testing.assert_allclose(found.row_variance, variance, rtol=0.15)
    np.testing.assert_allclose(np.asarray(found.num_fits) / 8000, (5 / 6) ** 6, atol=0.03)
    # The identity of each row holds exactly; here for their mean.
    np.testing.assert_allclose(
        found.error.value, found.variance.value + found.bias_squared_and_noise.value, rtol=1e-5
    )
    expected = (np.asarray(y) - others.mean(axis=1)) ** 2
    np.testing.assert_allclose(found.bias_squared_and_noise.value, expected.mean(), rtol=0.05)
    np.testing.assert_allclose(
        found.bias_squared_and_noise.standard_error, expected.std(ddof=1) / n**0.5, rtol=0.05
    )


def test_a_row_without_judges_is_nan():
    found = jax.jit(
        lambda key: bv.out_of_bag(
            key,
            weighted_mean,
            lambda model, x: jnp.full(12, model),
            jnp.zeros((12, 1)),
            jnp.arange(12.0),
            num_resamples=2,
        )
    )(jax.random.key(0))
    few = np.asarray(found.num_fits) < 2
    assert few.any()
    assert not few.all()
    np.testing.assert_array_equal(np.isnan(found.row_variance), few)
    assert np.isnan(found.error.value)


# --- Estimators of a variance


@pytest.mark.parametrize("n", [2, 5])
def test_variance_estimator_by_enumeration(x64, n):
    outcomes = np.array(list(itertools.product([-1.0, 1.0], repeat=n)))  # all equally likely
    squares = ((outcomes - outcomes.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    for divisor in (n - 1, n, n + 1):
        estimate = squares / divisor
        found = bv.variance_estimator(n, divisor=divisor, kurtosis=1.0)  # (+-1)^4 = 1
        np.testing.assert_allclose(found.mean, estimate.mean(), rtol=1e-12)
        np.testing.assert_allclose(found.bias, estimate.mean() - 1, atol=1e-12)
        np.testing.assert_allclose(found.variance, estimate.var(), rtol=1e-12)
        np.testing.assert_allclose(
            found.mean_squared_error, ((estimate - 1) ** 2).mean(), rtol=1e-12
        )


@given(
    n=st.integers(2, 1000),
    divisor=st.floats(0.5, 2000),
    square=st.floats(0.01, 100),
    kurtosis=st.floats(1, 20),
)
@settings(deadline=None, max_examples=30)
def test_variance_estimator_scales(n, divisor, square, kurtosis):
    unit = bv.variance_estimator(n, divisor=divisor, kurtosis=kurtosis)
    scaled = bv.variance_estimator(n, divisor=divisor, variance=square, kurtosis=kurtosis)
    # Float32, a handful of operations.
    np.testing.assert_allclose(scaled.mean, square * unit.mean, rtol=1e-5)
    np.testing.assert_allclose(scaled.variance, square**2 * unit.variance, rtol=1e-5)
    np.testing.assert_allclose(unit.mean, np.float32(n - 1) / np.float32(divisor), rtol=1e-5)
    assert unit.mean_squared_error >= unit.variance


def test_best_divisor_for_normal_numbers(x64):
    def error(divisor):
        return bv.variance_estimator(10, divisor=divisor).mean_squared_error

    np.testing.assert_allclose(jax.grad(error)(jnp.float64(11)), 0, atol=1e-15)  # n + 1
    slope = (error(9 + 1e-5) - error(9 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(error)(jnp.float64(9)), slope, rtol=1e-6)
    assert error(11) < error(10) < error(9)


# --- Bad input


def bad(**changes):
    arguments = {
        "fit": lambda y: y.mean(),
        "predict": lambda model, x: jnp.full(2, model),
        "draw": lambda key: (jnp.zeros(3),),
        "truth": jnp.zeros(2),
        "num_datasets": 4,
        **changes,
    }
    first = [arguments.pop(name) for name in ("fit", "predict", "draw")]
    return bv.decompose(jax.random.key(0), *first, None, **arguments)


def test_bad_input_of_decompose():
    with pytest.raises(ValueError, match="observe or truth must be given"):
        bad(truth=None)
    with pytest.raises(TypeError, match="fit must be a function, got int"):
        bad(fit=3)
    with pytest.raises(TypeError, match="draw must return a tuple of arrays"):
        bad(draw=lambda key: jnp.zeros(3))
    with pytest.raises(ValueError, match=r"truth must have the shape \(2,\).*got \(3,\)"):
        bad(truth=jnp.zeros(3))
    with pytest.raises(ValueError, match=r"observe\(key, x\) must have the shape \(2,\)"):
        bad(observe=lambda key, x: jnp.zeros(()))
    with pytest.raises(ValueError, match="num_datasets must be at least 3, got 2"):
        bad(num_datasets=2)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        bad(chunk_size=0)


def test_bad_input_of_the_others():
    with pytest.raises(ValueError, match="smoother must have shape"):
        bv.closed_form(jnp.zeros((2, 3)), jnp.zeros(2), jnp.zeros(2), noise_variance=1.0)
    with pytest.raises(ValueError, match="noise_variance must not be negative"):
        bv.closed_form(jnp.zeros((2, 3)), jnp.zeros(3), jnp.zeros(2), noise_variance=-1.0)
    with pytest.raises(ValueError, match="divisor must be positive, got 0"):
        bv.variance_estimator(5, divisor=0)
    with pytest.raises(ValueError, match="num_rows must be in"):
        bv.variance_estimator(1, divisor=1)
    with pytest.raises(ValueError, match="kurtosis must be in"):
        bv.variance_estimator(3, divisor=1, kurtosis=0.5)
    with pytest.raises(ValueError, match="y must be finite, got nan in row 1"):
        bv.out_of_bag(
            jax.random.key(0), weighted_mean, predict, jnp.zeros((2, 1)), jnp.array([0, math.nan])
        )
    with pytest.raises(ValueError, match="x and y must have as many rows"):
        bv.out_of_bag(jax.random.key(0), weighted_mean, predict, jnp.zeros((3, 1)), jnp.zeros(2))
    with pytest.raises(ValueError, match="x_train must not be empty"):
        bv.linear_smoother(fit, predict, jnp.zeros(0), POINTS)


# --- The demo


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_demo_adds_up_and_bends_into_a_u(result):
    parts, exact = result.degree, result.degree_exact
    assert (np.abs(parts.gap.value) < 4 * parts.gap.standard_error).all()
    for measured, goal in (
        (parts.bias_squared, exact.bias_squared),
        (parts.variance, exact.variance),
        (parts.total, exact.total),
        (result.ridge.total, result.ridge_exact.total),
        (result.size.total, result.size_exact.total),
    ):
        # 31 settings that share their noise; 1e-5 is rounding where there is hardly any bias.
        assert (np.abs(measured.value - goal) < 4.5 * measured.standard_error + 1e-5).all()
    assert (np.diff(exact.variance) > 0).all()
    assert exact.bias_squared[0] > 100 * exact.bias_squared[-1]
    assert 1 < result.best_degree < len(exact.total) - 2
    # Ridge: bias up, variance down, and somewhere better than none.
    assert (np.diff(result.ridge_exact.bias_squared) > -1e-6).all()
    assert (np.diff(result.ridge_exact.variance) < 0).all()
    assert result.ridge_exact.total.min() < 0.95 * exact.total[-1]


def test_demo_more_data_cures_variance_only(result):
    bias, variance = result.size_exact.bias_squared, result.size_exact.variance
    growth = result.sizes[-1] / result.sizes[0]
    assert (variance[:, 0] / variance[:, -1] > 0.8 * growth).all()
    np.testing.assert_allclose(bias[0], bias[0, -1], rtol=0.1)  # a line stays a line


def test_demo_real_patients(result):
    real = result.real
    together = real.variance.value + real.bias_squared_and_noise.value
    np.testing.assert_allclose(real.error.value, together, rtol=1e-4)  # float32
    assert (np.diff(real.variance.value) < 0).all()  # more neighbours, less variance
    best = int(np.argmin(real.error.value))
    assert 0 < best < len(real.error.value) - 1  # a U on real data, too


def test_demo_tables_and_picture(result):
    import matplotlib.pyplot as plt

    tables = demo.tables(result)
    assert len(tables) == 4
    for rows in tables.values():
        assert len({tuple(row) for row in rows}) == 1
    figure = demo.plot(result)
    assert len(figure.axes) == 7
    plt.close(figure)
    with pytest.raises(ValueError, match="max_degree must be at least 9"):
        demo.run(jax.random.key(0), max_degree=5)
