"""Backward passes by hand against jax.vjp, PyTorch and finite differences."""

import functools
import itertools
from typing import get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos.foundations import backpropagation as demo
from mlnotes_jax.foundations import activations, losses
from mlnotes_jax.foundations import backpropagation as bp

RNG = np.random.default_rng(0)
N, D = 6, 5
X = RNG.normal(size=(N, D)) * 2
Y_BAR = RNG.normal(size=(N, D))
W, B = RNG.normal(size=(D, 3)), RNG.normal(size=3)
LABELS = np.array([0, 2, 1, 1, 0, 2])
WIDTHS = (D, 7, 7, 3)

# Each activation with a parameter of each shape that it may have; none comes first.
PARAMETERS = {
    "sigmoid": (None, 1.5, RNG.normal(size=D)),
    "hard_sigmoid": (None, 0.2),
    "tanh": (None,),
    "relu": (None,),
    "leaky_relu": (None, 0.3),
    "prelu": (None, 0.3, RNG.normal(size=D)),
    "swish": (None, 0.7, RNG.normal(size=D)),
    "softmax": (None, 0.6),
    "log_softmax": (None, 0.6),
}
CASES = [(name, p) for name, options in PARAMETERS.items() for p in options]

# float64; a few operations on numbers of order 1 to 10, sums of up to 30 terms
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def network(widths=WIDTHS, parameter=None, dtype=np.float64, seed=1):
    rng = np.random.default_rng(seed)
    layers = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(
            bp.Layer(
                np.asarray(rng.normal(size=(a, b)) / a**0.5, dtype),
                np.asarray(rng.normal(size=b), dtype),
                None if last or parameter is None else np.asarray(parameter, dtype),
            )
        )
    return layers


def test_every_activation_is_covered():
    assert set(PARAMETERS) == set(get_args(bp.Activation))
    derivatives = {
        name for name in activations.__all__ if f"{name}_derivative" in activations.__all__
    }
    assert set(PARAMETERS) == derivatives | {"softmax", "log_softmax"}


# --- One layer ------------------------------------------------------------------------------------


@jax.jit
def all_activations(x, adjoint, parameters):
    """By hand and by `jax.vjp`, every case in one compiled function."""
    answers = []
    for (name, _), parameter in zip(CASES, parameters, strict=True):
        inputs = (x,) if parameter is None else (x, parameter)
        _, pull_back = jax.vjp(functools.partial(bp.activate, name), *inputs)
        answers.append((bp.activation_backward(name, adjoint, *inputs), pull_back(adjoint)))
    return answers


def given_parameters(dtype):
    return [None if p is None else np.asarray(p, dtype) for _, p in CASES]


def test_activations_equal_vjp(x64):
    answers = all_activations(X, Y_BAR, given_parameters(np.float64))
    for (name, parameter), (ours, theirs) in zip(CASES, answers, strict=True):
        x_bar, parameter_bar = ours
        np.testing.assert_allclose(x_bar, theirs[0], **EXACT, err_msg=name)
        if parameter is None:
            assert parameter_bar is None
        else:
            assert parameter_bar.shape == np.shape(parameter)
            np.testing.assert_allclose(parameter_bar, theirs[1], **EXACT, err_msg=name)


def test_kinks_equal_vjp():
    # float32: exact, as all numbers are small integers and halves
    x = np.float32([-2.0, 0.0, 2.0])
    for name in ("relu", "leaky_relu", "prelu", "hard_sigmoid"):
        _, pull_back = jax.vjp(lambda v: bp.activate(name, v), x)  # noqa: B023
        ones = jnp.ones(3)
        assert bp.activation_backward(name, ones, x)[0].tolist() == pull_back(ones)[0].tolist()


def jitted(name):
    return jax.jit(functools.partial(bp.activation_backward, name))


def test_affine_equals_vjp_and_torch(torch, x64):
    z_bar = RNG.normal(size=(N, 3))
    ours = bp.affine_backward(z_bar, X, W)
    _, pull_back = jax.vjp(lambda x, w, b: x @ w + jnp.broadcast_to(b, (N, 3)), X, W, B)
    leaves = [torch.tensor(v, requires_grad=True) for v in (X, W, B)]
    (leaves[0] @ leaves[1] + leaves[2]).backward(torch.tensor(z_bar))
    for mine, by_jax, leaf in zip(ours, pull_back(jnp.asarray(z_bar)), leaves, strict=True):
        np.testing.assert_allclose(mine, by_jax, **EXACT)
        np.testing.assert_allclose(mine, leaf.grad.numpy(), **EXACT)


def test_affine_sums_over_all_leading_axes(x64):
    x, z_bar = X.reshape(2, 3, D), RNG.normal(size=(2, 3, 3))
    x_bar, kernel_bar, bias_bar = bp.affine_backward(z_bar, x, W)
    flat = bp.affine_backward(z_bar.reshape(N, 3), X, W)
    np.testing.assert_allclose(x_bar.reshape(N, D), flat[0], **EXACT)
    np.testing.assert_allclose(kernel_bar, flat[1], **EXACT)
    np.testing.assert_allclose(bias_bar, flat[2], **EXACT)
    one = bp.affine_backward(z_bar[0, 0], x[0, 0], W)
    np.testing.assert_allclose(one[1], np.outer(x[0, 0], z_bar[0, 0]), **EXACT)


def test_softmax_cross_entropy_equals_grad_for_every_class(x64):
    logits = RNG.normal(size=(N, 3)) * 4
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ours = jax.jit(bp.softmax_cross_entropy_backward)(logits, LABELS, adjoint=2.5)
    np.testing.assert_allclose(ours, 2.5 * (p - np.eye(3)[LABELS]) / N, **EXACT)
    by_jax = jax.jit(jax.grad(losses.softmax_cross_entropy_with_integer_labels))(logits, LABELS)
    np.testing.assert_allclose(ours, 2.5 * by_jax, **EXACT)
    np.testing.assert_allclose(ours.sum(1), 0, atol=1e-15)
    # by the two layers apart
    y_bar = -np.eye(3)[LABELS] / N
    apart, _ = jitted("log_softmax")(y_bar, logits)
    np.testing.assert_allclose(2.5 * apart, ours, **EXACT)


def test_sure_and_wrong_is_finite_and_impossible_labels_are_nan():
    z = np.float32([[0.0, 200.0], [0.0, 0.0]])
    assert bp.softmax_cross_entropy_backward(z[:1], [0]).tolist() == [[-1, 1]]
    under_jit = jax.jit(bp.softmax_cross_entropy_backward)(z, np.array([0, 7]))
    assert np.isfinite(under_jit[0]).all()
    assert np.isnan(under_jit[1]).all()


def test_impossible_entries_of_a_softmax():
    x = np.float32([0.0, 0.0, -np.inf])
    x_bar, t_bar = bp.activation_backward("softmax", np.float32([1, 0, 5]), x, np.float32(1))
    assert x_bar.tolist() == [0.25, -0.25, 0]
    assert t_bar == 0


# --- The chain ------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="activation")
def both(layers, x, adjoint, *, activation):
    output, tape = bp.forward(layers, x, activation=activation)
    other, pull_back = jax.vjp(lambda p, v: bp.forward(p, v, activation=activation)[0], layers, x)
    ours = bp.backward(layers, tape, adjoint, activation=activation)
    return (output, *ours), (other, *pull_back(adjoint))


CHAINS = [
    ("tanh", None), ("relu", None), ("prelu", RNG.normal(size=7)), ("swish", 1.3), ("softmax", 0.8),
]  # fmt: skip


@pytest.mark.parametrize(("activation", "parameter"), CHAINS, ids=[name for name, _ in CHAINS])
def test_chain_equals_vjp(x64, activation, parameter):
    layers = network(parameter=parameter)
    adjoint = RNG.normal(size=(N, 3))
    ours, theirs = both(layers, X, adjoint, activation=activation)
    chex.assert_trees_all_close(ours, theirs, **EXACT)
    assert jax.tree.structure(ours[1]) == jax.tree.structure(layers)


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_chains_of_any_length(x64, depth):
    layers = network((D,) + (4,) * (depth - 1) + (3,))
    ours, theirs = both(layers, X, RNG.normal(size=(N, 3)), activation="tanh")
    chex.assert_trees_all_close(ours, theirs, **EXACT)


def test_last_layer_has_no_activation(x64):
    layers = network((D, 4, 3), parameter=0.5)
    layers[-1] = layers[-1]._replace(parameter=np.array(0.5))
    ours, theirs = both(layers, X, RNG.normal(size=(N, 3)), activation="prelu")
    chex.assert_trees_all_close(ours, theirs, **EXACT)
    assert ours[1][-1].parameter == 0


by_hand = jax.jit(bp.loss_and_gradients, static_argnames="activation")


def test_loss_and_gradients_of_torch(torch, x64):
    layers = network()
    loss, gradients = by_hand(layers, X, LABELS, activation="tanh")
    params = [tuple(torch.tensor(v, requires_grad=True) for v in layer[:2]) for layer in layers]
    z = torch.tensor(X)
    for kernel, bias in params[:-1]:
        z = torch.tanh(z @ kernel + bias)
    expected = torch.nn.functional.cross_entropy(
        z @ params[-1][0] + params[-1][1], torch.tensor(LABELS)
    )
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), **EXACT)
    for gradient, (kernel, bias) in zip(gradients, params, strict=True):
        np.testing.assert_allclose(gradient.kernel, kernel.grad.numpy(), **EXACT)
        np.testing.assert_allclose(gradient.bias, bias.grad.numpy(), **EXACT)


def test_gradients_against_finite_differences(x64):
    layers = network()
    _, gradients = by_hand(layers, X, LABELS, activation="tanh")

    @jax.jit
    def moved(t, direction):
        there = jax.tree.map(lambda v, d: v + t * d, layers, direction)
        return bp.loss_and_gradients(there, X, LABELS, activation="tanh")[0]

    for seed in range(3):
        direction = network(seed=10 + seed)
        h = 1e-5  # of order eps^(1/3): the difference is good to about 1e-10
        slope = (moved(h, direction) - moved(-h, direction)) / (2 * h)
        products = jax.tree.map(lambda g, d: (g * d).sum(), gradients, direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=1e-7)


def test_jit_equals_eager_vmap_equals_a_loop_and_no_recompilation():
    layers = network((D, 3), dtype=np.float32)
    x = X.astype(np.float32)
    traced = jax.jit(chex.assert_max_traces(bp.loss_and_gradients, n=1))
    compiled = traced(layers, x, LABELS)
    # float32: the same sums in another order
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)
    close(compiled, bp.loss_and_gradients(layers, x, LABELS))
    batches, labels = np.stack([x, 2 * x]), np.stack([LABELS, LABELS[::-1]])
    several = jax.jit(jax.vmap(bp.loss_and_gradients, in_axes=(None, 0, 0)))
    together = several(layers, batches, labels)
    for i in range(2):
        one = jax.tree.map(lambda leaf: np.asarray(leaf)[i], together)  # noqa: B023
        close(one, traced(layers, batches[i], labels[i]))


def test_dtypes():
    x, adjoint = jnp.asarray(X, jnp.bfloat16), jnp.asarray(Y_BAR, jnp.bfloat16)
    x_bar, beta_bar = bp.activation_backward("swish", adjoint, x, jnp.ones((), jnp.float32))
    assert (x_bar.dtype, beta_bar.dtype) == (jnp.bfloat16, jnp.float32)
    assert bp.activation_backward("softmax", adjoint, x)[0].dtype == jnp.bfloat16
    layers = [bp.Layer(jnp.asarray(W, jnp.bfloat16), jnp.asarray(B, jnp.bfloat16))]
    output, tape = bp.forward(layers, x)
    (gradient,), _ = bp.backward(layers, tape, output)
    assert {gradient.kernel.dtype, gradient.bias.dtype} == {jnp.dtype(jnp.bfloat16)}
    assert bp.softmax_cross_entropy_backward(output, LABELS).dtype == jnp.bfloat16


# --- Cost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [64, 256, 2048])
def test_cost_is_what_the_compiler_counts(width):
    widths, n = (64, width, width, 10), 32
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    layers = [bp.Layer(shape((a, b)), shape((b,))) for a, b in itertools.pairwise(widths)]
    logits, tape = jax.eval_shape(bp.forward, layers, shape((n, 64)))

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).cost_analysis()["flops"]

    # Not products: per unit and example a bias and a ReLU, or a slope and a sum.
    few = 4 * n * sum(widths)
    for wanted in (True, False):
        count = bp.cost(widths, batch_size=n, input_gradient=wanted)
        pick = (lambda *v: bp.backward(*v)) if wanted else (lambda *v: bp.backward(*v)[0])
        assert 0 <= flops(bp.forward, layers, shape((n, 64))) - count.forward < few
        assert 0 <= flops(pick, layers, tape, logits) - count.backward < few
        assert count.kept == sum(v.size for v in jax.tree.leaves(tape))
    products = 64 * width + width**2 + 10 * width
    assert count.ratio == pytest.approx(2 - 64 * width / products)
    assert bp.cost(widths, batch_size=n, input_gradient=True).ratio == 2


# --- The graph ------------------------------------------------------------------------------------


def test_sum_of_squares_of_the_notes():
    x = bp.variable("x", [1.0, -2.0, 3.0])
    steps = bp.differentiate((x**2).sum())
    assert [s.name for s in steps] == ["x", "v1", "v2"]
    assert [s.operation for s in steps] == ["", "x ** 2", "sum(v1)"]
    assert steps[0].adjoint.tolist() == [2, -4, 6]
    assert steps[1].adjoint.tolist() == [1, 1, 1]
    assert steps[2].value == 14
    assert bp.table(steps).splitlines() == [
        "node  operation  value     adjoint",
        "x                [1 -2 3]  [2 -4 6]",
        "v1    x ** 2     [1 4 9]   [1 1 1]",
        "v2    sum(v1)    14        1",
    ]


def expression(x, y, a, *, log, exp, sin, tanh, relu, total):
    """Every operation, some values used more than once; `a` is a matrix."""
    s = x * y + sin(x) - 2 * y / (x + 3)
    t = (1 - s) ** 3 / (0.5 + exp(-y)) - (-x) ** 2
    m = tanh(a @ a) * s + a / y
    return total(relu(m - 0.1) * m) + log(t * t + 1) + 5 / y + x**0


def on_nodes(x, y, a):
    nodes = bp.variable("x", x), bp.variable("y", y), bp.variable("a", a)
    output = expression(
        *nodes,
        log=bp.Node.log,
        exp=bp.Node.exp,
        sin=bp.Node.sin,
        tanh=bp.Node.tanh,
        relu=bp.Node.relu,
        total=bp.Node.sum,
    )
    steps = bp.differentiate(output)
    adjoints = {s.name: s.adjoint for s in steps}
    return steps[-1].value, tuple(adjoints[name] for name in "xya")


@jax.jit
def on_arrays(x, y, a):
    f = functools.partial(
        expression,
        log=jnp.log,
        exp=jnp.exp,
        sin=jnp.sin,
        tanh=jnp.tanh,
        relu=activations.relu,
        total=jnp.sum,
    )
    return jax.value_and_grad(f, argnums=(0, 1, 2))(x, y, a)


compiled_nodes = jax.jit(on_nodes)


@settings(deadline=None, max_examples=25)
@given(st.floats(-2, 2), st.floats(0.5, 3), st.integers(0, 10**6))
def test_graph_equals_grad(x, y, seed):
    a = np.random.default_rng(seed).normal(size=(2, 2))
    with jax.enable_x64(True):
        ours, theirs = compiled_nodes(x, y, a), on_arrays(x, y, a)
    # float64; 30 operations on numbers of up to 1e4, with cancellation
    chex.assert_trees_all_close(ours, theirs, rtol=1e-10, atol=1e-9)


def test_graph_without_jit_and_with_integers():
    ours, theirs = on_nodes(1, 2, np.ones((2, 2), int)), on_arrays(1.0, 2.0, jnp.ones((2, 2)))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5)


def test_shared_nodes_are_visited_once():
    node = bp.variable("x", 1.0)
    for _ in range(60):  # 2^60 paths from the output to x
        node = node + node
    steps = bp.differentiate(node)
    assert len(steps) == 61
    assert steps[0].adjoint == 2.0**60


def test_deep_graphs_need_no_recursion():
    node = bp.variable("x", 0.0)
    for _ in range(2000):
        node = -node
    assert bp.differentiate(node)[0].adjoint == 1


def test_a_graph_without_variables_and_an_unused_one():
    x = bp.variable("x", 3.0)
    assert bp.differentiate(x)[0].adjoint == 1
    assert (x**0).value == 1
    assert bp.differentiate(bp.variable("z", 0.0) ** 0)[0].adjoint == 0


# --- Bad input ------------------------------------------------------------------------------------


def node(value):
    return bp.variable("x", value)


TAPE = bp.Tape((), ())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: bp.affine_backward(np.ones((6, 2)), X, W),
            ValueError,
            r"x and adjoint must be \(..., 5\) and \(..., 3\) .* got \(6, 5\) and \(6, 2\)",
        ),
        (
            lambda: bp.activation_backward("relu", [1.0], [1.0, 2.0]),
            ValueError,
            "x and adjoint must have one shape",
        ),
        (
            lambda: bp.activate("gelu", X),
            ValueError,
            "activation must be one of 'sigmoid', .*'gelu'",
        ),
        (lambda: bp.activate("relu", X, 0.5), ValueError, "parameter must be None: relu has none"),
        (
            lambda: bp.softmax_cross_entropy_backward(np.ones((2, 3)), [0]),
            ValueError,
            r"labels must be \(2,\) for logits \(2, 3\), got \(1,\)",
        ),
        (
            lambda: bp.softmax_cross_entropy_backward(np.ones((1, 3)), [3]),
            ValueError,
            r"labels must be in 0..2 \(3 classes\), got 3 at index 0",
        ),
        (lambda: bp.forward([], X), ValueError, "layers must hold at least one layer"),
        (
            lambda: bp.forward([bp.Layer(W, B), bp.Layer(W, B)], X),
            ValueError,
            r"layer 1 must have a kernel .* \(..., 3\) .* got \(5, 3\) and \(3,\)",
        ),
        (
            lambda: bp.backward([bp.Layer(W, B)], TAPE, np.ones((6, 3))),
            ValueError,
            "tape must be of a chain of 1 layers, got one of 0",
        ),
        (lambda: bp.cost((3,), batch_size=1), ValueError, "widths must hold those of the input"),
        (lambda: bp.cost((3, 0), batch_size=1), ValueError, r"widths\[1\] must be at least 1"),
        (lambda: bp.cost((3, 2), batch_size=1.5), TypeError, "batch_size must be an integer"),
        (lambda: bp.variable("v12", 1.0), ValueError, "name must not be empty, nor v1, v2, ..."),
        (lambda: bp.variable(3, 1.0), TypeError, "name must be a string, got int"),
        (lambda: bp.variable("x", "word"), TypeError, "value must be a numeric array"),
        (lambda: bp.differentiate(node([1.0])), ValueError, r"output must be a scalar, got shape"),
        (lambda: bp.differentiate(1.0), TypeError, "output must be a Node, got float"),
        (lambda: bp.differentiate(node(1.0) + node(2.0)), ValueError, "one variable of each name"),
        (
            lambda: node([1.0, 2.0]) + node([1.0]),
            ValueError,
            r"nodes must have one shape, or be scalars, got \(2,\) and \(1,\)",
        ),
        (lambda: node(1.0) + "a", TypeError, "a node is combined with a node or a number, got str"),
        (lambda: node(1.0) ** node(2.0), TypeError, "exponent must be a Python number, got Node"),
        (lambda: node([1.0]) @ node([1.0]), ValueError, r"@ needs shapes \(n, d\) and \(d, m\)"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- The demo and the page's claims ---------------------------------------------------------------


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_demo_agrees_with_jax_and_counts_as_the_compiler_does(result):
    assert result.widths == (64, 512, 2048)
    # a few roundings of float64 and of float32
    assert max(result.gradient_errors.values()) < 1e-14
    assert result.agreement.max() < 1e-5
    _, products, compiler = result.ratios
    np.testing.assert_allclose(compiler, products, rtol=0.05)
    assert (np.diff(products) > 0).all()
    assert products[-1] < 2
    assert (result.seconds > 0).all()


def test_demo_shows_its_numbers(result):
    import matplotlib as mpl

    mpl.use("agg")
    tables = demo.tables(result)
    assert [len(rows) for rows in tables.values()] == [3, 3, len(get_args(bp.Activation))]
    assert len(demo.plot(result).axes) == 3
    assert result.source.name == "digits"
