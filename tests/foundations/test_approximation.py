"""Sums of bends against numpy.interp, the error law, and learned curves."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos.foundations import approximation as demo
from mlnotes_jax.foundations import approximation

KNOTS = np.array([-1.0, -0.25, 0.5, 1.0, 2.5])
VALUES = np.array([1.0, 2.0, -0.5, -0.5, 1.5])
X = np.linspace(-4, 5, 181)  # knots are among them, and places outside

BUILDERS = {
    "hard_sigmoid": approximation.hard_sigmoid_units,
    "relu": approximation.relu_units,
    "two_relus": lambda t, y: approximation.as_relus(approximation.hard_sigmoid_units(t, y)),
}


at = jax.jit(approximation.evaluate)


@jax.jit
def every(knots, values, x):
    """All constructions on `x`, in one compiled function."""
    return {name: approximation.evaluate(f(knots, values), x) for name, f in BUILDERS.items()}


# --- The construction -----------------------------------------------------------------------------


def test_equals_numpy_interp(x64):
    exact = np.interp(X, KNOTS, VALUES)
    for name, ours in every(KNOTS, VALUES, X).items():
        # at most 8 terms, each up to 4 * 6 in size, a few roundings each: 100 * eps
        np.testing.assert_allclose(ours, exact, rtol=0, atol=100 * 2**-52, err_msg=name)


PIECES = 6


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(0.01, 10), min_size=PIECES, max_size=PIECES),
    st.lists(st.floats(-100, 100), min_size=PIECES + 1, max_size=PIECES + 1),
    st.floats(-50, 50),
)
def test_any_piecewise_linear_curve(widths, values, start):
    knots = start + np.concatenate([[0.0], np.cumsum(widths)])
    values = np.array(values)
    inside = np.concatenate([np.linspace(a, b, 9) for a, b in itertools.pairwise(knots)])
    x = np.concatenate([inside, [knots[0] - 7, knots[-1] + 7]])
    with jax.enable_x64(True):
        curves = every(knots, values, x)
    # x and the knots are rounded at eps * max |x|, and the slope carries that on; the terms of the
    # ReLU forms are as large as the changes of slope times the reach.
    slopes = np.abs(np.diff(values) / np.diff(knots))
    reach = np.abs(knots).max() + 7
    scale = np.abs(values).max() + slopes.sum() * 2 * reach
    for name, ours in curves.items():
        exact = np.interp(x, knots, values)
        np.testing.assert_allclose(ours, exact, rtol=0, atol=20 * 2**-52 * scale, err_msg=name)


def test_numbers_of_the_construction(x64):
    ramps = approximation.hard_sigmoid_units(KNOTS, VALUES)
    h, middle = np.diff(KNOTS), (KNOTS[1:] + KNOTS[:-1]) / 2
    np.testing.assert_allclose(ramps.coef, np.diff(VALUES))
    np.testing.assert_allclose(ramps.weight, 4 / h)
    np.testing.assert_allclose(ramps.bias, -4 * middle / h)
    relus = approximation.relu_units(KNOTS, VALUES)
    slopes = np.diff(VALUES) / h
    np.testing.assert_allclose(relus.coef, np.diff(slopes, prepend=0, append=0), rtol=1e-14)
    assert (len(ramps.coef), len(relus.coef)) == (4, 5)
    assert len(approximation.as_relus(ramps).coef) == 8


def test_straight_ends(x64):
    units = approximation.relu_units(KNOTS, VALUES, ends="straight")
    assert len(units.coef) == len(KNOTS)
    slopes = np.diff(VALUES) / np.diff(KNOTS)
    exact = np.where(
        KNOTS[0] > X, VALUES[0] + slopes[0] * (X - KNOTS[0]), np.interp(X, KNOTS, VALUES)
    )
    exact = np.where(KNOTS[-1] < X, VALUES[-1] + slopes[-1] * (X - KNOTS[-1]), exact)
    np.testing.assert_allclose(at(units, X), exact, rtol=0, atol=1e-14)
    two = approximation.relu_units(KNOTS[:2], VALUES[:2], ends="straight")
    np.testing.assert_allclose(at(two, X), VALUES[0] + slopes[0] * (X - KNOTS[0]), atol=1e-14)


def test_a_sum_of_hard_sigmoids_stands_still_far_out():
    units = approximation.hard_sigmoid_units([-10.0, 10.0], [-10.0, 10.0])
    assert at(units, np.float32([-1e6, 1e6])).tolist() == [-10, 10]


def test_sigmoids_stay_within_their_bound():
    ramps = approximation.hard_sigmoid_units(KNOTS, VALUES)
    soft = approximation.smooth(ramps)
    assert soft.kind == "sigmoid"
    assert (soft.weight == ramps.weight).all()
    x = np.linspace(-4, 5, 2001, dtype=np.float32)
    moved = np.abs(at(soft, x) - at(ramps, x))
    bound = 1 / (1 + np.exp(2.0)) * np.abs(np.diff(VALUES)).sum()
    assert 0.3 * bound < moved.max() <= bound


def test_dtypes():
    ramps = approximation.hard_sigmoid_units(KNOTS, VALUES)
    assert ramps.coef.dtype == jnp.float32
    x = jnp.asarray(X, jnp.bfloat16)
    low = at(ramps, x)
    assert low.dtype == jnp.bfloat16
    exact = at(ramps, x.astype(jnp.float32))
    assert (low == exact.astype(jnp.bfloat16)).all()  # computed in float32, rounded once
    assert approximation.evaluate(ramps, 1).dtype == jnp.float32
    assert at(ramps, np.zeros((2, 3, 4))).shape == (2, 3, 4)


# --- The error law --------------------------------------------------------------------------------


def largest_error(f, num_pieces, power=1):
    """In NumPy: of the interpolant with knots at `(i / n) ** power`."""
    s = np.arange(64 * num_pieces + 1) / (64 * num_pieces)
    grid, knots = s**power, s[::64] ** power
    return np.abs(np.interp(grid, knots, f(knots)) - f(grid)).max()


SIZES = np.array([4, 8, 16, 32, 64, 128, 256])


@pytest.mark.parametrize(
    ("f", "curvature", "order", "tolerance"),
    [
        (lambda x: np.sin(np.pi * x), np.pi**2, 2, 0.02),
        (np.exp, np.e, 2, 0.03),
        (lambda x: x**2, 2, 2, 1e-6),
        (lambda x: np.abs(x - 1 / 3), None, 1, 0.01),  # 64 places do not hold 1/3 exactly
        (np.sqrt, None, 0.5, 1e-6),
        (lambda x: (x > 1 / 3).astype(float), None, 0, 0.02),
    ],
)
def test_order_of_the_error(x64, f, curvature, order, tolerance):
    errors = np.array([largest_error(f, n) for n in SIZES])
    fitted = approximation.convergence_order(SIZES.astype(float), errors)
    assert abs(fitted - order) < tolerance
    np.testing.assert_allclose(-fitted, np.polyfit(np.log(SIZES), np.log(errors), 1)[0], atol=1e-12)
    if curvature is not None:
        bound = approximation.interpolation_bound(curvature, width=1 / SIZES)
        assert (errors <= bound * (1 + 1e-9)).all()
        assert errors[-1] > 0.95 * bound[-1]  # sharp, as the pieces get small


def test_a_parabola_reaches_the_bound(x64):
    for n in (1, 3, 10):
        np.testing.assert_allclose(
            largest_error(np.square, n), approximation.interpolation_bound(2.0, width=1 / n)
        )


def test_graded_knots_bring_the_order_back(x64):
    errors = [largest_error(np.sqrt, n, power=4) for n in SIZES]
    assert abs(approximation.convergence_order(SIZES.astype(float), errors) - 2) < 0.1


@pytest.mark.parametrize("tolerance", [0.3, 1e-2, 1e-4])
def test_pieces_needed_are_enough_and_hardly_more(tolerance):
    n = approximation.pieces_needed(4 * np.pi**2, length=1.0, tolerance=tolerance)
    assert largest_error(lambda x: np.sin(2 * np.pi * x), n) <= tolerance
    if n > 10:
        assert largest_error(lambda x: np.sin(2 * np.pi * x), int(0.9 * n)) > tolerance


def test_a_straight_line_needs_one_piece():
    assert approximation.pieces_needed(0.0, length=5.0, tolerance=1e-9) == 1
    assert approximation.pieces_needed(2.0, length=1.0, tolerance=0.0025) == 10  # not 11


# --- Learned curves -------------------------------------------------------------------------------

PLACES = np.linspace(2, 5, 40)
HEIGHTS = 10 * np.sin(PLACES) + 3


@functools.partial(jax.jit, static_argnames=("kind", "num_steps"))
def learn(key, x, y, sample_weight, rate, start=None, *, kind="sigmoid", num_steps=400):
    return approximation.fit(
        key,
        x,
        y,
        num_units=5,
        optimizer=optax.sgd(rate, momentum=0.9),
        num_steps=num_steps,
        kind=kind,
        start=start,
        sample_weight=sample_weight,
    )


ONES = np.ones(40)


@pytest.mark.parametrize("kind", ["sigmoid", "relu"])
def test_descent_learns_a_curve(kind):
    model = learn(jax.random.key(0), PLACES, HEIGHTS, ONES, 0.05, kind=kind)
    assert model.units.kind == kind
    assert model.loss.shape == (401,)
    # heights are 0 at first: the mean of y
    np.testing.assert_allclose(model.loss[0], HEIGHTS.var(), rtol=1e-5)
    assert model.loss[-1] < 0.01 * model.loss[0]
    again = np.square(at(model.units, PLACES) - HEIGHTS).mean()
    # the loss is computed on scaled data: equal up to float32 rounding of y, about 10
    np.testing.assert_allclose(again, model.loss[-1], rtol=1e-2)


def test_scales_of_x_and_y_do_not_matter():
    plain = learn(jax.random.key(0), PLACES, HEIGHTS, ONES, 0.05)
    moved = learn(jax.random.key(0), 1000 * PLACES - 7, 0.01 * HEIGHTS, ONES, 0.05)
    # the same descent, but for float32 rounding that 400 steps carry on
    np.testing.assert_allclose(1e4 * moved.loss, plain.loss, rtol=0.02, atol=1e-3)


def test_zero_weight_drops_a_row():
    kept = np.arange(40) != 39  # the last place, so that the interval gets shorter
    plain, wild = (
        learn(jax.random.key(0), x, y, kept.astype(float), 0.05)
        for x, y in [
            (PLACES, HEIGHTS),
            (np.where(kept, PLACES, 100.0), np.where(kept, HEIGHTS, -1e6)),
        ]
    )
    assert (plain.loss == wild.loss).all()
    np.testing.assert_allclose(plain.loss[0], HEIGHTS[kept].var(), rtol=1e-5)


def test_start_from_the_construction(x64):
    knots = np.linspace(2, 5, 6)
    start = approximation.smooth(approximation.hard_sigmoid_units(knots, 10 * np.sin(knots) + 3))
    model = learn(jax.random.key(0), PLACES, HEIGHTS, ONES, 0.05, start)
    first = np.square(at(start, PLACES) - HEIGHTS).mean()
    np.testing.assert_allclose(model.loss[0], first, rtol=1e-12)
    assert model.loss[-1] < 0.1 * first


def test_a_constant_curve_and_a_wild_rate():
    flat = learn(jax.random.key(0), PLACES, 4 * ONES, ONES, 0.05)
    assert np.abs(at(flat.units, PLACES) - 4).max() < 1e-5
    wild = learn(jax.random.key(0), PLACES, HEIGHTS, ONES, 1e4)
    assert not np.isfinite(wild.loss[-1])  # failure is data


def test_vmap_over_keys_and_rates_equals_a_loop():
    keys, rates = jax.random.split(jax.random.key(1), 3), np.float32([0.01, 0.03, 0.05])
    together = jax.vmap(learn, in_axes=(0, None, None, None, 0))(keys, PLACES, HEIGHTS, ONES, rates)
    for i in range(3):
        alone = learn(keys[i], PLACES, HEIGHTS, ONES, rates[i])
        # the same operations in another order: rounding of 1e-7, and later what descent makes of it
        np.testing.assert_allclose(together.loss[i, :30], alone.loss[:30], rtol=1e-4)
        np.testing.assert_allclose(together.loss[i, -1], alone.loss[-1], rtol=0.1)
    assert together.units.coef.shape == (3, 5)


def test_second_call_does_not_recompile():
    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def once(knots, values, x, curvature, width, errors):
        units = approximation.relu_units(knots, values)
        bound = approximation.interpolation_bound(curvature, width=width)
        order = approximation.convergence_order(jnp.arange(1.0, 4.0), errors)
        return at(units, x) + bound + order

    errors = np.float32([1, 0.5, 0.1])
    first = once(KNOTS, VALUES, X, 1.0, 0.5, errors)
    second = once(KNOTS + 1, 2 * VALUES, X, 2.0, 0.1, errors**2)
    assert not np.array_equal(first, second)


def test_gradients_against_finite_differences(x64):
    def total(knots, values, x):
        curves = [
            f(knots, values) for f in (approximation.hard_sigmoid_units, approximation.relu_units)
        ]
        curves.append(approximation.smooth(curves[0]))
        return sum(jnp.sin(at(units, x)).sum() for units in curves)

    x = np.array([-2.0, -0.7, 0.1, 0.8, 1.7, 4.0])  # away from the knots
    # central differences, good to eps^(2/3)
    chex.assert_numerical_grads(jax.jit(total), (KNOTS, VALUES, x), order=1, atol=1e-6, rtol=1e-6)


# --- Bad input ------------------------------------------------------------------------------------


def bad_fit(**changes):
    given = {
        "x": [0.0, 1.0, 2.0],
        "y": [0.0, 1.0, 0.0],
        "num_units": 2,
        "optimizer": optax.sgd(0.1),
        "num_steps": 3,
        **changes,
    }
    return approximation.fit(jax.random.key(0), given.pop("x"), given.pop("y"), **given)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: approximation.hard_sigmoid_units([0.0, 1.0], [1.0]),
            ValueError,
            r"knots and values must have one shape, got knots \(2,\), values \(1,\)",
        ),
        (
            lambda: approximation.relu_units([0.0], [1.0]),
            ValueError,
            "knots must hold at least two",
        ),
        (
            lambda: approximation.relu_units([0.0, 2.0, 1.0], [1.0, 1.0, 1.0]),
            ValueError,
            "knots must increase, got 2.0 before 1.0 at index 2",
        ),
        (
            lambda: approximation.hard_sigmoid_units([0.0, np.nan], [1.0, 1.0]),
            ValueError,
            "knots must be finite, got nan",
        ),
        (
            lambda: approximation.relu_units([0.0, 1.0], [1.0, 1.0], ends="round"),
            ValueError,
            "ends must be one of 'flat', 'straight', got 'round'",
        ),
        (
            lambda: approximation.as_relus(approximation.relu_units([0.0, 1.0], [0.0, 1.0])),
            ValueError,
            "units must be of kind 'hard_sigmoid', got 'relu'",
        ),
        (lambda: approximation.evaluate((1, 2), 0.0), TypeError, "units must be Units, got tuple"),
        (lambda: approximation.smooth(None), TypeError, "units must be Units, got NoneType"),
        (
            lambda: approximation.interpolation_bound(-1.0, width=1.0),
            ValueError,
            "curvature must not be negative, got -1",
        ),
        (
            lambda: approximation.pieces_needed(1.0, length=1.0, tolerance=0.0),
            ValueError,
            "tolerance must be positive, got 0",
        ),
        (
            lambda: approximation.pieces_needed(np.inf, length=1.0, tolerance=1.0),
            ValueError,
            "curvature must be finite",
        ),
        (
            lambda: approximation.convergence_order([1.0], [1.0]),
            ValueError,
            "sizes must hold at least two",
        ),
        (
            lambda: approximation.convergence_order([1.0, 2.0], [1.0, 0.0]),
            ValueError,
            "errors must be positive, got 0",
        ),
        (lambda: bad_fit(y=[0.0, 1.0]), ValueError, "x and y must have one shape"),
        (lambda: bad_fit(x=[], y=[]), ValueError, "x must not be empty"),
        (lambda: bad_fit(x=[1.0] * 3), ValueError, "x must have at least two different places"),
        (lambda: bad_fit(y=[0.0, np.inf, 1.0]), ValueError, "y must be finite, got inf in row 1"),
        (lambda: bad_fit(num_units=0), ValueError, "num_units must be at least 1, got 0"),
        (lambda: bad_fit(num_steps=1.5), TypeError, "num_steps must be an integer, got 1.5"),
        (lambda: bad_fit(optimizer=0.1), TypeError, "optimizer must be an Optax rule, got float"),
        (lambda: bad_fit(kind="tanh"), ValueError, "kind must be one of 'hard_sigmoid', 'sigmoid'"),
        (
            lambda: bad_fit(sample_weight=[1.0, -1.0, 1.0]),
            ValueError,
            "sample_weight must not be negative, got -1",
        ),
        (
            lambda: bad_fit(sample_weight=[0.0] * 3),
            ValueError,
            "sample_weight must not be all zero",
        ),
        (
            lambda: bad_fit(start=approximation.relu_units([0.0, 1.0], [0.0, 1.0])),
            ValueError,
            "start must be of kind 'sigmoid', got 'relu'",
        ),
        (
            lambda: bad_fit(
                kind="relu", start=approximation.relu_units([0.0, 1.0, 2.0], [0.0, 1.0, 0.0])
            ),
            ValueError,
            "start must have 2 units, got 3",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- The demo and the page's claims ---------------------------------------------------------------


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_orders_of_the_demo(result):
    assert result.sizes == (4, 8, 16, 32, 64, 128, 256)
    np.testing.assert_allclose(result.orders, [2, 1, 0.5, 0], atol=0.02)
    # float32: the smallest error, 7e-5, is measured to about a percent
    assert (result.errors[0] <= 1.01 * result.bounds).all()
    assert (result.errors[3] >= 0.5).all()


def test_three_learned_units_beat_twelve_equal_pieces(result):
    few = result.counts.index(demo.SHOWN)
    many = result.counts.index(12)
    assert (result.learned[:, few] < result.closed[many]).all()
    # from 3 to 12 units by less than a factor of 4, where the law would allow 16
    assert (result.learned[:, few] < 4 * result.learned[:, many]).all()


def test_demo_shows_its_numbers(result):
    import matplotlib as mpl

    mpl.use("agg")
    tables = demo.tables(result)
    assert [len(rows) for rows in tables.values()] == [4, len(result.counts)]
    figure = demo.plot(result)
    assert len(figure.axes) == 4
    assert result.source.name == "breast_cancer"
