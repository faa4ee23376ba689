"""Activations and their slopes against closed forms, jax.nn and PyTorch."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mlnotes_jax.demos.foundations import activations as demo
from mlnotes_jax.foundations import activations

C = 5
X = np.linspace(-6, 6, 8 * C).reshape(8, C) + 0.01  # no kink is hit
BETA = np.array([0.3, 1.0, 2.5, -0.7, 0.0])
ALPHA = np.array([0.25, 0.0, -0.5, 1.0, 2.0])

# An elementwise activation, its slope, and parameters.
CASES = {
    "sigmoid": (activations.sigmoid, activations.sigmoid_derivative, {"beta": BETA}),
    "hard_sigmoid": (activations.hard_sigmoid, activations.hard_sigmoid_derivative, {"slope": 0.3}),
    "tanh": (activations.tanh, activations.tanh_derivative, {}),
    "relu": (activations.relu, activations.relu_derivative, {}),
    "leaky_relu": (activations.leaky_relu, activations.leaky_relu_derivative, {"alpha": 0.2}),
    "prelu": (activations.prelu, activations.prelu_derivative, {"alpha": ALPHA}),
    "swish": (activations.swish, activations.swish_derivative, {"beta": BETA}),
}

# float64, a few operations on numbers of order 1
EXACT = {"rtol": 1e-13, "atol": 1e-15}


@functools.partial(jax.jit, static_argnames="slopes")
def every(x, parameters, *, slopes=False):
    """All activations, or all closed-form slopes, in one compiled function."""
    return {name: case[int(slopes)](x, **parameters.get(name, {})) for name, case in CASES.items()}


def parameters(dtype=np.float64):
    return {
        name: {key: np.asarray(value, dtype) for key, value in case[2].items()}
        for name, case in CASES.items()
    }


def test_every_name_is_tested():
    by_parameter = {"sigmoid_beta_derivative", "swish_beta_derivative", "prelu_alpha_derivative"}
    softmax = {"softmax", "log_softmax", "softmax_jacobian", "log_softmax_jacobian"}
    slopes = {f"{name}_derivative" for name in CASES}
    known = {*CASES, *slopes, *by_parameter, *softmax, "saturation", "dead_units"}
    assert known == set(activations.__all__)


# Closed forms


def test_values_against_numpy(x64):
    exact = {
        "sigmoid": 1 / (1 + np.exp(-BETA * X)),
        "hard_sigmoid": np.clip(0.5 + 0.3 * X, 0, 1),
        "tanh": np.tanh(X),
        "relu": np.maximum(X, 0),
        "leaky_relu": np.where(X > 0, X, 0.2 * X),
        "prelu": np.where(X > 0, X, ALPHA * X),
        "swish": X / (1 + np.exp(-BETA * X)),
    }
    for name, value in every(X, parameters()).items():
        np.testing.assert_allclose(value, exact[name], **EXACT, err_msg=name)


def test_closed_form_slopes_are_those_of_autodiff(x64):
    ours = every(X, parameters(), slopes=True)
    values, pull_back = jax.vjp(lambda x: every(x, parameters()), X)
    for name, value in values.items():
        only = {k: jnp.full_like(v, k == name) for k, v in values.items()}
        np.testing.assert_allclose(
            ours[name], pull_back(only)[0], rtol=1e-12, atol=1e-14, err_msg=name
        )
        assert ours[name].shape == value.shape


def test_slopes_by_the_parameters(x64):
    columns = {"sigmoid": BETA, "swish": BETA, "prelu": ALPHA}
    closed = {
        "sigmoid": activations.sigmoid_beta_derivative(X, beta=BETA),
        "swish": activations.swish_beta_derivative(X, beta=BETA),
        "prelu": activations.prelu_alpha_derivative(X),
    }
    for name, value in columns.items():
        function, _, options = CASES[name]
        (key,) = options
        total = jax.jit(jax.grad(lambda v: function(X, **{key: v}).sum()))(value)  # noqa: B023
        # a parameter of a channel receives the sum over its column
        np.testing.assert_allclose(closed[name].sum(0), total, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "slope", "options", "kinks", "expected"),
    [
        (activations.relu, activations.relu_derivative, {}, [0.0], [0]),
        (activations.leaky_relu, activations.leaky_relu_derivative, {"alpha": 0.5}, [0.0], [0.5]),
        (activations.prelu, activations.prelu_derivative, {"alpha": 0.5}, [0.0], [0.5]),
        (activations.hard_sigmoid, activations.hard_sigmoid_derivative, {}, [-2.0, 2.0], [0, 0]),
    ],
)
def test_slopes_at_the_kinks(function, slope, options, kinks, expected):
    auto = jax.jit(jax.vmap(jax.grad(functools.partial(function, **options))))
    x = np.float32(kinks)
    assert auto(x).tolist() == slope(x, **options).tolist() == expected


def test_tanh_is_a_stretched_sigmoid(x64):
    np.testing.assert_allclose(activations.tanh(X), 2 * activations.sigmoid(X, beta=2) - 1, **EXACT)


def test_limits_of_swish():
    x = np.float32([-3, -0.5, 0, 0.5, 3])
    assert activations.swish(x, beta=0.0).tolist() == (x / 2).tolist()
    assert activations.swish(x, beta=1e6).tolist() == [0, 0, 0, 0.5, 3]
    assert activations.swish(x, beta=-1e6).tolist() == [-3, -0.5, 0, 0, 0]


def test_softmax_jacobians(x64):
    z, temperature = X[5], 0.7
    p = np.exp(z / temperature) / np.exp(z / temperature).sum()
    closed = activations.softmax_jacobian(z, temperature=temperature)
    np.testing.assert_allclose(closed, (np.diag(p) - np.outer(p, p)) / temperature, **EXACT)
    log_closed = activations.log_softmax_jacobian(z, temperature=temperature)
    for function, jacobian in [
        (activations.softmax, closed),
        (activations.log_softmax, log_closed),
    ]:
        auto = jax.jit(jax.jacobian(functools.partial(function, temperature=temperature)))(z)
        np.testing.assert_allclose(jacobian, auto, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(closed.sum(1), 0, atol=1e-15)


def test_softmax_of_two_classes_is_the_sigmoid_of_the_difference(x64):
    z = X[:, :2]
    p = activations.softmax(z)[:, 0]
    np.testing.assert_allclose(p, activations.sigmoid(z[:, 0] - z[:, 1]), **EXACT)


def test_temperatures():
    z = np.float32([1, 2, 4])
    cold = activations.softmax(z, temperature=1e-30)
    assert cold.tolist() == [0, 0, 1]
    np.testing.assert_allclose(activations.softmax(z, temperature=1e30), 1 / 3, rtol=1e-6)


# Peers


def torch_activations(torch):
    f, n = torch.nn.functional, torch.tensor
    return {
        "sigmoid": lambda x: torch.sigmoid(n(BETA) * x),
        "tanh": torch.tanh,
        "relu": f.relu,
        "leaky_relu": lambda x: f.leaky_relu(x, 0.2),
        "prelu": lambda x: f.prelu(x, n(ALPHA)),
        "swish": lambda x: x * torch.sigmoid(n(BETA) * x),
    }


def test_values_and_slopes_of_pytorch_in_float64(torch, x64):
    values, slopes = every(X, parameters()), every(X, parameters(), slopes=True)
    for name, theirs in torch_activations(torch).items():
        x = torch.tensor(X, requires_grad=True)
        expected = theirs(x)
        expected.sum().backward()
        np.testing.assert_allclose(values[name], expected.detach(), **EXACT, err_msg=name)
        # PyTorch computes sigma (1 - sigma), which loses digits where sigma is near 1
        np.testing.assert_allclose(slopes[name], x.grad, rtol=1e-11, atol=1e-15, err_msg=name)


def test_conventions_at_zero_of_pytorch(torch):
    x = torch.zeros(1, requires_grad=True)
    f = torch.nn.functional
    for theirs, ours in [
        (f.relu, activations.relu_derivative(0.0)),
        (lambda x: f.leaky_relu(x, 0.2), activations.leaky_relu_derivative(0.0, alpha=0.2)),
        (
            lambda x: f.prelu(x, torch.tensor([0.3])),
            activations.prelu_derivative(0.0, alpha=0.3),
        ),
    ]:
        x.grad = None
        theirs(x).sum().backward()
        assert x.grad.item() == ours
    edge = torch.tensor([-3.0, 3.0], requires_grad=True)
    f.hardsigmoid(edge).sum().backward()
    assert edge.grad.tolist() == [0, 0]


def test_softmax_of_pytorch_in_float64(torch, x64):
    z = torch.tensor(X)
    f = torch.nn.functional
    for axis in (0, -1):
        p = activations.softmax(X, temperature=0.5, axis=axis)
        np.testing.assert_allclose(p, f.softmax(z / 0.5, dim=axis), **EXACT)
        log_p = activations.log_softmax(X, temperature=0.5, axis=axis)
        np.testing.assert_allclose(log_p, f.log_softmax(z / 0.5, dim=axis), **EXACT)


def test_jax_nn(x64):
    x = jnp.asarray(X)
    for ours, theirs in [
        (activations.sigmoid(x), jax.nn.sigmoid(x)),
        (activations.hard_sigmoid(x, slope=1 / 6), jax.nn.hard_sigmoid(x)),
        (activations.relu(x), jax.nn.relu(x)),
        (activations.leaky_relu(x), jax.nn.leaky_relu(x)),
        (activations.swish(x), jax.nn.silu(x)),
        (activations.softmax(x), jax.nn.softmax(x)),
        (activations.log_softmax(x, axis=0), jax.nn.log_softmax(x, axis=0)),
    ]:
        np.testing.assert_allclose(ours, theirs, **EXACT)


def test_slopes_of_jax_nn_at_kinks_are_as_the_docstrings_say():
    assert jax.grad(jax.nn.relu)(0.0) == 0
    assert jax.grad(jax.nn.hard_sigmoid)(3.0) == jax.grad(jax.nn.hard_sigmoid)(-3.0) == 0
    assert jax.grad(jax.nn.leaky_relu)(0.0) == 1  # here we and PyTorch differ


# Numbers


def test_slopes_of_saturated_units_keep_their_digits():
    x = np.float32([17, 30, 80])
    tiny = np.exp(-x.astype(np.float64))
    # sigma (1 - sigma) in float32 would be 0 for all three; a few ulps here
    np.testing.assert_allclose(activations.sigmoid_derivative(x), tiny / (1 + tiny) ** 2, rtol=1e-6)
    np.testing.assert_allclose(
        activations.tanh_derivative(x / 2), 4 * tiny / (1 + tiny) ** 2, rtol=1e-6
    )


@pytest.mark.parametrize("slopes", [False, True])
def test_huge_inputs_are_finite_and_nan_stays_nan(slopes):
    x = np.full((2, C), np.float32(1e4)) * np.float32([[1], [-1]])
    given = parameters(np.float32)
    given["sigmoid"] = given["swish"] = {"beta": np.float32(1)}
    for name, value in every(x, given, slopes=slopes).items():
        assert np.isfinite(value).all(), name
    nan = every(np.full((2, C), np.float32(np.nan)), given)
    assert all(np.isnan(value).all() for value in nan.values())


def test_softmax_of_huge_and_of_impossible_entries():
    assert activations.softmax([1e4, -1e4, 1e4]).tolist() == [0.5, 0, 0.5]
    p, gradient = jax.value_and_grad(lambda z: activations.softmax(z)[0])(
        jnp.array([0.0, 0.0, -jnp.inf])
    )
    assert p == 0.5
    assert gradient.tolist() == [0.25, -0.25, 0]


def test_dtypes_follow_the_input():
    x = jnp.asarray(X, jnp.bfloat16)
    assert {value.dtype for value in every(x, parameters()).values()} == {jnp.dtype(jnp.bfloat16)}
    p = activations.softmax(x)
    assert p.dtype == jnp.bfloat16
    exact = activations.softmax(x.astype(jnp.float32)).astype(jnp.bfloat16)
    assert (p == exact).all()  # computed in float32, rounded once
    assert activations.relu([1, -2]).dtype == jnp.float32
    assert activations.saturation(jnp.ones(1000, jnp.bfloat16)).dtype == jnp.float32


# Saturation and death


def test_saturation_by_hand():
    slopes = np.float32([[0.2, 0.001, 0.0], [0.01, -0.002, 0.5]])
    np.testing.assert_allclose(activations.saturation(slopes), 3 / 6, rtol=1e-6)
    assert activations.saturation(slopes, axis=0).tolist() == [0, 1, 0.5]
    assert activations.saturation(slopes, bound=1.0) == 1
    assert np.isnan(activations.saturation(np.float32([0.0, np.nan])))
    # the docstring: a sigmoid's slope is 0.01 at 4.6
    assert activations.saturation(activations.sigmoid_derivative([4.5, 4.6, -4.6])) == np.float32(
        2 / 3
    )


def test_one_negative_input_does_not_kill_a_unit():
    z = np.float32([[-1, -1, 0], [2, -3, -1]])
    assert activations.dead_units(activations.relu_derivative(z)).tolist() == [False, True, True]
    small = np.float32([[0.1, 0.01], [0.01, 0.01]])
    assert activations.dead_units(small, bound=0.05).tolist() == [False, True]
    assert activations.dead_units(np.zeros((3, 2, 4))).shape == (2, 4)


@settings(deadline=None, max_examples=25)
@given(npst.arrays(np.float32, (6, 4), elements=st.floats(-9, 9, width=32)))
def test_a_dead_unit_receives_no_gradient_and_a_live_one_does(z):
    slopes = activations.relu_derivative(z)
    dead = np.asarray(activations.dead_units(slopes))
    received = gradient_of_bias(z)
    assert (received[dead] == 0).all()
    assert (received[~dead] > 0).all()
    assert activations.saturation(slopes) >= dead.mean() - 1e-6  # the share is rounded


@jax.jit
def bias_gradient(z):
    return jax.grad(lambda bias: activations.relu(z + bias[None]).sum())(jnp.zeros(4))


def gradient_of_bias(z):
    return np.asarray(bias_gradient(z))


# Properties


@settings(deadline=None, max_examples=25)
@given(
    npst.arrays(np.float32, (7,), elements=st.floats(-100, 100, width=32)),
    st.floats(-100, 100, width=32),
    st.floats(0.125, 8, width=32),
)
def test_softmax_sums_to_one_and_ignores_a_shift(z, shift, temperature):
    p, moved = one_softmax(z, temperature), one_softmax(z + np.float32(shift), temperature)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)  # seven roundings
    # z + shift is rounded to 200 * 2^-24, and divided by the temperature
    np.testing.assert_allclose(moved, p, rtol=1e-6 + 4 * 200 * 2**-24 / temperature, atol=1e-30)
    assert (np.argsort(z, kind="stable")[-1] == p.argmax()) or p.max() == p[z.argmax()]


one_softmax = jax.jit(lambda z, t: activations.softmax(z, temperature=t))


# Transformations


def test_jit_equals_eager_and_vmap_equals_a_loop():
    x, given = X.astype(np.float32), parameters(np.float32)
    compiled = every(x, given)
    batched = jax.jit(jax.vmap(lambda row: every(row, given)))(x)
    rows = [every(row, given) for row in x]
    for name, (function, _, _) in CASES.items():
        # the same operations; XLA may fuse a product with a sum, and then rounds once less
        close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7, err_msg=name)
        close(compiled[name], function(x, **given[name]))
        close(batched[name], np.stack([row[name] for row in rows]))


def test_vmap_over_temperature_equals_a_loop():
    temperatures = np.float32([0.5, 1, 3])
    batched = jax.vmap(lambda t: activations.softmax_jacobian(X[0], temperature=t))(temperatures)
    loop = [activations.softmax_jacobian(X[0], temperature=t) for t in temperatures]
    np.testing.assert_allclose(batched, np.stack(loop), rtol=1e-6)


def test_second_call_does_not_recompile():
    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def once(x, beta, slope, alpha, temperature, bound):
        y = activations.swish(x, beta=beta) + activations.hard_sigmoid(x, slope=slope)
        y = activations.softmax(activations.prelu(y, alpha=alpha), temperature=temperature)
        return activations.saturation(y, bound=bound)

    x = X.astype(np.float32)
    first = once(x, BETA, 0.2, ALPHA, 1.0, 0.5)
    assert first != once(x, BETA + 1, 0.3, ALPHA, 2.0, 0.2)


def test_gradients_against_finite_differences(x64):
    def total(x, beta, slope, alpha, temperature):
        y = activations.sigmoid(x, beta=beta) + activations.swish(x, beta=beta)
        y = y + activations.hard_sigmoid(x, slope=slope) + activations.prelu(x, alpha=alpha)
        y = y + activations.tanh(x) + activations.relu(x) + activations.leaky_relu(x, alpha=slope)
        both = activations.softmax(y, temperature=temperature)
        both = both + activations.log_softmax(x, temperature=temperature)
        return (both * jnp.linspace(-1.0, 1.0, C)[None]).sum()

    inputs = (X, BETA, np.array(0.21), ALPHA, np.array(0.9))
    # away from the kinks, central differences are good to eps^(2/3)
    chex.assert_numerical_grads(jax.jit(total), inputs, order=1, atol=1e-7, rtol=1e-6)


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: activations.relu([1j]), TypeError, "x must be a real array, got dtype complex"),
        (
            lambda: activations.sigmoid(np.ones((2, 3)), beta=np.ones(2)),
            ValueError,
            r"beta must be a scalar or have one value for each channel .*\(2, 3\), got shape \(2",
        ),
        (lambda: activations.prelu(1.0, alpha=[1.0]), ValueError, "alpha must be a scalar or"),
        (
            lambda: activations.swish([1.0], beta=[[1.0]]),
            ValueError,
            r"beta must be 0-D or 1-D, got shape \(1, 1\)",
        ),
        (lambda: activations.hard_sigmoid(0.0, slope=0.0), ValueError, "slope must be positive"),
        (lambda: activations.leaky_relu(0.0, alpha=[0.1]), ValueError, "alpha must be 0-D, got"),
        (
            lambda: activations.softmax([1.0], temperature=0.0),
            ValueError,
            "temperature must be positive, got 0",
        ),
        (
            lambda: activations.log_softmax([1.0], axis=1),
            ValueError,
            r"axis must be an axis of x, of shape \(1,\), got 1",
        ),
        (lambda: activations.softmax(1.0), ValueError, r"axis must be an axis of x"),
        (lambda: activations.softmax_jacobian([[1.0]]), ValueError, "x must be 1-D, got shape"),
        (lambda: activations.saturation([]), ValueError, "slopes must not be empty"),
        (lambda: activations.saturation([1.0], bound=0.0), ValueError, "bound must be positive"),
        (lambda: activations.dead_units(1.0), ValueError, "slopes must have examples on the first"),
        (lambda: activations.dead_units(np.ones((0, 3))), ValueError, "slopes must not be empty"),
        (
            lambda: activations.dead_units([1.0], bound=-1.0),
            ValueError,
            "bound must not be negative, got -1",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


# The demo and the page's claims


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


NAMES = [activation.name for activation in demo.ACTIVATIONS]


def test_sigmoids_pass_little_gradient_without_being_flat(result):
    i, tanh = NAMES.index("sigmoid"), NAMES.index("tanh")
    first_over_last = result.gradient_norms[:, 0, 0] / result.gradient_norms[:, 0, -1]
    # three layers with slopes of at most 1/4 lie between the first and the last
    assert first_over_last[i] < 1 / 4**2
    assert first_over_last[tanh] > 0.5
    assert result.saturation[i, 0, 0].max() < 0.01
    assert result.accuracies[i, 0].mean() < result.accuracies[tanh, 0].mean() - 0.3


def test_larger_weights_help_the_sigmoid_and_harm_tanh_and_relu(result):
    accuracies = result.accuracies.mean(axis=2)
    for name, better in [("sigmoid", 1), ("tanh", 0), ("ReLU", 0)]:
        i = NAMES.index(name)
        assert accuracies[i, better] > accuracies[i, 1 - better], name
    assert result.saturation[NAMES.index("tanh"), 1, 0].mean() > 0.2


def test_relus_are_often_off_and_seldom_dead(result):
    i = NAMES.index("ReLU")
    assert result.sometimes_off[i, 0, 1].mean() > 0.9
    assert result.dead[i, 0, 1].mean() < 0.1
    assert result.dead[NAMES.index("leaky ReLU")].max() == 0


def test_parameters_are_learned(result):
    for name in ("PReLU", "Swish"):
        before, after = result.learned[NAMES.index(name), 0]
        assert abs(after - before) > 1e-3


def test_demo_shows_its_numbers(result):
    import matplotlib as mpl

    mpl.use("agg")
    tables = demo.tables(result)
    assert [len(rows) for rows in tables.values()] == [7, 7, 2]
    assert [row["activation"] for row in next(iter(tables.values()))] == NAMES
    figure = demo.plot(result)
    assert len(figure.axes[0].lines) == len(NAMES)
    slopes = np.gradient(result.values, result.grid, axis=1)
    # central differences on a grid of 1/40; not at the two points beside a kink
    assert np.quantile(np.abs(slopes - result.slopes), 0.98) < 2e-3
    assert result.source.name == "digits"
