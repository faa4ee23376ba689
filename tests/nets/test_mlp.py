"""Fully connected networks against PyTorch with copied weights, and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from mlnotes_jax.demos.nets import mlp as demo
from mlnotes_jax.foundations import activations, losses
from mlnotes_jax.nets import mlp
from mlnotes_jax.nets.mlp import MLP
from mlnotes_jax.training import loop

WIDTHS = (12, 16, 8, 5)


# PyTorch with copied weights


def in_torch(torch, widths, norm=None, dropout=0.0, dtype="float32"):
    """The same network in PyTorch, with statistics and scales away from where they start."""
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        layers.append(torch.nn.Linear(inputs, outputs))
        if norm == "batch":
            layers.append(torch.nn.BatchNorm1d(outputs))
            torch.nn.init.normal_(layers[-1].running_mean)
            torch.nn.init.uniform_(layers[-1].running_var, 0.5, 2)
        elif norm == "layer":
            layers.append(torch.nn.LayerNorm(outputs))
        if norm:
            torch.nn.init.uniform_(layers[-1].weight, 0.5, 2)
            torch.nn.init.normal_(layers[-1].bias)
        layers += [torch.nn.ReLU(), torch.nn.Dropout(dropout)]
    behind_last = 3 if norm else 2
    return torch.nn.Sequential(*layers[:-behind_last]).to(getattr(torch, dtype))


def copy(torch, theirs, ours):
    """Copy PyTorch's weights and statistics."""
    linear = [m for m in theirs if isinstance(m, torch.nn.Linear)]
    norms = [m for m in theirs if isinstance(m, torch.nn.BatchNorm1d | torch.nn.LayerNorm)]
    for layer, source in zip(ours.layers, linear, strict=True):
        layer.kernel[...] = array(source.weight).T
        layer.bias[...] = array(source.bias)
    for layer, source in zip(ours.norms, norms, strict=True):
        layer.scale[...], layer.bias[...] = array(source.weight), array(source.bias)
        if hasattr(source, "running_mean"):
            layer.mean[...], layer.var[...] = array(source.running_mean), array(source.running_var)


def array(tensor):
    return jnp.asarray(tensor.detach().numpy().copy())


def relative(ours, theirs):
    theirs = np.asarray(theirs, np.float64)
    return np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)


def agree(torch, widths, norm, dtype, train, bound, batch=32):
    """Outputs, input gradients, one SGD step and statistics, all within `bound`."""
    theirs = in_torch(torch, widths, norm, dropout=0.0 if train else 0.5, dtype=dtype)
    options = {"norm": norm, "param_dtype": dtype, "kernel_init": nnx.initializers.zeros}
    ours = MLP(widths, dropout=0.0 if train else 0.5, rngs=nnx.Rngs(0), **options)
    copy(torch, theirs, ours)
    theirs.train(train)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, widths[0])).astype(dtype)
    y = rng.integers(widths[-1], size=batch)

    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.5)
    inputs = torch.tensor(x, requires_grad=True)
    outputs = theirs(inputs)
    torch.nn.functional.cross_entropy(outputs, torch.tensor(y)).backward()
    optimizer.step()

    params, state, apply = loop.bind(ours)
    sgd = optax.sgd(0.1, momentum=0.5)

    def loss(params, x):
        logits, new = apply(params, state, x, train=train)
        return losses.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(y)), (
            logits,
            new,
        )

    @jax.jit
    def step(params, x):
        (_, (logits, new)), (grads, slope) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            params, x
        )
        updates, _ = sgd.update(grads, sgd.init(params))
        return logits, slope, optax.apply_updates(params, updates), new

    logits, slope, params, state = step(params, jnp.asarray(x))
    assert logits.dtype == dtype
    assert relative(logits, outputs.detach()) < bound
    assert relative(slope, inputs.grad) < bound
    stepped = loop.merge(ours, params, state)
    peer = MLP(widths, rngs=nnx.Rngs(1), **options)
    copy(torch, theirs, peer)
    for mine, theirs_ in zip(
        jax.tree.leaves(nnx.state(stepped, nnx.Param)),
        jax.tree.leaves(nnx.state(peer, nnx.Param)),
        strict=True,
    ):
        assert relative(mine, theirs_) < bound
    for layer, source in zip(stepped.norms, peer.norms, strict=True):
        if norm == "batch":
            assert relative(layer.mean[...], source.mean[...]) < bound
            assert relative(layer.var[...], source.var[...]) < bound


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("norm", [None, "batch", "layer"])
def test_equals_torch_in_float32(torch, norm, train):
    agree(torch, WIDTHS, norm, "float32", train, 1e-4)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("norm", [None, "batch", "layer"])
def test_equals_torch_in_float64(torch, x64, norm, train):
    agree(torch, WIDTHS, norm, "float64", train, 1e-9)


def test_notes_network_equals_torch(torch):
    agree(torch, mlp.NOTES_WIDTHS, None, "float32", True, 1e-4, batch=64)
    theirs = in_torch(torch, mlp.NOTES_WIDTHS)
    assert sum(p.numel() for p in theirs.parameters()) == 575_050


# Initialisation


def test_he_and_pytorch_starts(torch):
    he = MLP((400, 300), rngs=nnx.Rngs(0)).layers[0]
    n = he.kernel[...].size
    # Standard error of a variance: sqrt(2/n) of it, less for these short-tailed draws
    assert abs(he.kernel[...].var() * 400 / 2 - 1) < 4 * np.sqrt(2 / n)
    assert (he.bias[...] == 0).all()

    peer = torch.nn.Linear(400, 300)
    ours = MLP((400, 300), kernel_init="pytorch", rngs=nnx.Rngs(0)).layers[0]
    for values, theirs in ((ours.kernel[...], peer.weight), (ours.bias[...], peer.bias)):
        theirs, bound = array(theirs), 1 / np.sqrt(400)
        assert max(abs(values).max(), abs(theirs).max()) <= bound
        assert abs(values).max() > 0.97 * bound
        # Variance bound²/3; kurtosis 9/5 makes its standard error sqrt(0.8 / n) of it
        for draws in (values, theirs):
            assert abs(draws.var() * 3 / bound**2 - 1) < 4 * np.sqrt(0.8 / draws.size)
    ones = MLP((3, 2), kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0)).layers[0]
    np.testing.assert_array_equal(ones.kernel[...], np.ones((3, 2)))
    np.testing.assert_array_equal(ones.bias[...], np.zeros(2))


def test_dropout_does_not_change_the_start():
    with_, without = (MLP(WIDTHS, dropout=p, rngs=nnx.Rngs(0)) for p in (0.5, 0.0))
    for a, b in zip(mlp.weights(with_), mlp.weights(without), strict=True):
        np.testing.assert_array_equal(a[0], b[0])


# Counts


def test_notes_network():
    net = mlp.notes_mlp(kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    assert net.widths == (784, 512, 256, 128, 64, 10)
    assert [k.shape for k, _ in mlp.weights(net)] == list(itertools.pairwise(net.widths))
    leaves = jax.tree.leaves(nnx.state(net, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == mlp.num_parameters(net.widths) == 575_050


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=5), st.sampled_from([None, "batch", "layer"])
)
def test_count_is_what_the_module_holds(widths, norm):
    net = nnx.eval_shape(lambda: MLP(widths, norm=norm, rngs=nnx.Rngs(0)))
    held = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))
    assert mlp.num_parameters(widths, norm=norm) == held


# The forward pass


@settings(deadline=None, max_examples=15)
@given(st.floats(0.125, 8, width=32), st.integers(0, 2**31))
def test_relu_network_without_biases_is_homogeneous(scale, seed):
    rng = np.random.default_rng(seed)
    layers = [(rng.normal(size=s).astype(np.float32), np.zeros(s[1], np.float32)) for s in SHAPES]
    x = rng.normal(size=(4, 3)).astype(np.float32)
    ours = FORWARD(layers, scale * x)
    # float32: sums of at most five products, three layers deep
    np.testing.assert_allclose(ours, scale * FORWARD(layers, x), rtol=1e-4, atol=1e-4 * scale)


SHAPES = [(3, 5), (5, 5), (5, 2)]
FORWARD = jax.jit(mlp.forward)


def test_forward_by_hand():
    rng = np.random.default_rng(0)
    layers = [
        (rng.normal(size=s).astype(np.float32), rng.normal(size=s[1]).astype(np.float32))
        for s in SHAPES
    ]
    x = rng.normal(size=3).astype(np.float32)
    expected = x
    for i, (kernel, bias) in enumerate(layers):
        expected = np.array(
            [sum(expected[j] * kernel[j, k] for j in range(len(expected))) + bias[k]
             for k in range(len(bias))]
        )  # fmt: skip
        expected = np.tanh(expected) if i < 2 else expected
    ours = mlp.forward(layers, x, activation=jnp.tanh)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)  # float32 sums


def test_module_equals_forward_and_any_batch_axes():
    net = MLP(WIDTHS, activation=activations.tanh, rngs=nnx.Rngs(0))
    x = jnp.linspace(-1.0, 1.0, 72).reshape(6, 12)
    expected = mlp.forward(mlp.weights(net), x, activation=activations.tanh)
    np.testing.assert_allclose(net(x), expected, rtol=1e-6)
    np.testing.assert_allclose(net(x[0]), expected[0], rtol=1e-5, atol=1e-6)
    blocks = mlp.forward(mlp.weights(net), x.reshape(2, 3, 12), activation=activations.tanh)
    np.testing.assert_allclose(blocks.reshape(6, 5), expected, rtol=1e-5, atol=1e-6)


def test_pictures_are_flattened_in_the_order_of_memory():
    net = MLP((24, 4), rngs=nnx.Rngs(0))
    pictures = jnp.arange(48.0).reshape(2, 3, 4, 2)
    np.testing.assert_array_equal(net(pictures), net(pictures.reshape(2, 24)))
    flat = mlp.flatten(pictures, 24)
    i, j, c = 2, 1, 1
    np.testing.assert_array_equal(flat[:, (i * 4 + j) * 2 + c], pictures[:, i, j, c])
    assert mlp.flatten(jnp.ones((2, 3, 3, 16)), 144).shape == (2, 144)  # a CNN's, and NHWC
    grey = MLP((16, 4), rngs=nnx.Rngs(0))
    ints = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    np.testing.assert_array_equal(grey(ints), grey(ints.astype(np.float32)))


def test_jit_vmap_and_no_recompilation():
    params, state, apply = loop.bind(MLP((12, 8, 5), dropout=0.5, rngs=nnx.Rngs(0)))
    traces = []

    @jax.jit
    def run(params, x):
        traces.append(1)
        return apply(params, state, x)[0]

    x = jnp.linspace(-1.0, 1.0, 36).reshape(3, 12)
    eager = apply(params, state, x)[0]
    # The same operations fused otherwise
    np.testing.assert_allclose(run(params, x), eager, rtol=1e-5, atol=1e-6)
    run(jax.tree.map(lambda leaf: 2 * leaf, params), x + 1)
    assert len(traces) == 1
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)
    batched = jax.jit(jax.vmap(lambda p: apply(p, state, x)[0]))(several)
    for i, factor in enumerate((1.0, 0.5)):
        one = run(jax.tree.map(lambda leaf, f=factor: f * leaf, params), x)
        np.testing.assert_allclose(batched[i], one, rtol=1e-5, atol=1e-6)


def test_gradients_against_finite_differences(x64):
    rng = np.random.default_rng(0)
    layers = [(rng.normal(size=s), rng.normal(size=s[1])) for s in SHAPES]
    x = rng.normal(size=(4, 3))

    def f(layers, x):
        return jnp.square(mlp.forward(layers, x, activation=jnp.tanh)).sum()

    check_grads(jax.jit(f), (layers, x), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_train_and_eval_differ_as_they_should():
    net = MLP(WIDTHS, norm="batch", dropout=0.5, rngs=nnx.Rngs(0))
    params, state, apply = loop.bind(net)
    apply = jax.jit(apply, static_argnames="train")
    x = jnp.linspace(-1.0, 1.0, 96).reshape(8, 12)
    one, moved = apply(params, state, x, key=jax.random.key(0), train=True)
    two, _ = apply(params, state, x, key=jax.random.key(1), train=True)
    assert (one != two).any()
    assert (moved["norms"][0]["mean"] != state["norms"][0]["mean"]).any()
    quiet, same = apply(params, state, x)
    np.testing.assert_array_equal(quiet, apply(params, state, x, key=jax.random.key(1))[0])
    np.testing.assert_array_equal(same["norms"][0]["mean"], state["norms"][0]["mean"])


def test_module_in_tree_mode():
    net = MLP(WIDTHS, norm="batch", dropout=0.5, rngs=nnx.Rngs(0))
    net.eval()
    again = nnx.merge(*nnx.split(net, graph=False))
    x = jnp.ones((2, 12))
    np.testing.assert_array_equal(again(x), net(x))
    leaves = jax.tree.leaves(nnx.state(net, nnx.Param))
    assert len(leaves) == 3 * 2 + 2 * 2


# Depth against width


@pytest.mark.parametrize("depth", [1, 2, 5, 12])
def test_tent_folds(depth):
    layers = mlp.tent(depth)
    widths = [1, *(k.shape[1] for k, _ in layers)]
    assert widths == [1, *[2] * depth, 1]
    assert mlp.num_parameters(widths) == 6 * depth + 1
    x = np.arange(2**depth + 1, dtype=np.float32) / 2**depth
    # Dyadic numbers: no rounding at all
    np.testing.assert_array_equal(FORWARD(layers, x.reshape(-1, 1))[:, 0], np.arange(len(x)) % 2)
    assert len(mlp.breakpoints(layers)) + 1 == 2**depth
    np.testing.assert_allclose(mlp.breakpoints(layers), x[1:-1], rtol=1e-12)
    between = np.random.default_rng(0).uniform(size=50).astype(np.float32)
    fold = between.astype(np.float64)
    for _ in range(depth):
        fold = np.minimum(2 * fold, 2 - 2 * fold)
    # A rounding of x is doubled by each fold
    np.testing.assert_allclose(
        FORWARD(layers, between.reshape(-1, 1))[:, 0], fold, atol=2.0 ** (depth - 21)
    )


@pytest.mark.parametrize("num_bits", [1, 2, 3, 4, 7, 8, 10])
def test_parity_of_all_inputs(num_bits):
    bits = np.array(list(itertools.product([0, 1], repeat=num_bits)), np.float32)
    parity = bits.sum(axis=1) % 2
    wide, deep = mlp.parity_wide(num_bits), mlp.parity_deep(num_bits)
    np.testing.assert_array_equal(mlp.forward(wide, bits)[:, 0], parity)
    np.testing.assert_array_equal(mlp.forward(deep, bits)[:, 0], parity)
    count = [sum(k.size + b.size for k, b in layers) for layers in (wide, deep)]
    folds = max(1, int(np.ceil(np.log2(num_bits))))
    assert count == [(num_bits + 1) ** 2, 2 * num_bits + 6 * folds - 1]


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 2**31)
)  # fmt: skip
def test_pieces_are_straight_and_not_too_many(hidden, seed):
    rng = np.random.default_rng(seed)
    widths = [1, *hidden, 1]
    layers = [(rng.normal(size=(i, o)), rng.normal(size=o)) for i, o in itertools.pairwise(widths)]
    bends = mlp.breakpoints(layers, low=-2.0, high=3.0)
    assert len(bends) + 1 <= np.prod(np.array(hidden) + 1)
    knots = np.concatenate([[-2.0], bends, [3.0]])

    def f(x):
        value = np.asarray(x).reshape(-1, 1)
        for kernel, bias in layers[:-1]:
            value = np.maximum(value @ kernel + bias, 0)
        return (value @ layers[-1][0] + layers[-1][1])[:, 0]

    x = np.linspace(-2, 3, 200)
    size = 1 + abs(f(x)).max()
    np.testing.assert_allclose(np.interp(x, knots, f(knots)), f(x), atol=1e-6 * size)


def test_wide_network_of_as_many_parameters_misses_by_one_half():
    # 2 k units, 6 k + 1 parameters as `tent(k)`; k = 5 is the first for which the proof holds.
    depth = 5
    assert mlp.num_parameters((1, 2 * depth, 1)) == 6 * depth + 1
    x = np.arange(2**depth + 1, dtype=np.float32).reshape(-1, 1) / 2**depth
    saw = mlp.forward(mlp.tent(depth), x)
    for seed in range(5):
        wide = MLP((1, 2 * depth, 1), rngs=nnx.Rngs(seed))
        rng = np.random.default_rng(seed)
        wide.layers[0].bias[...] = jnp.asarray(rng.uniform(-1, 1, 2 * depth), jnp.float32)
        units = wide.layers[0](jnp.asarray(x))
        features = np.concatenate([np.maximum(np.asarray(units), 0), np.ones_like(x)], axis=1)
        best = features @ np.linalg.lstsq(features, np.asarray(saw), rcond=None)[0]
        assert abs(best - saw).max() >= 0.5 - 1e-6


# Bad input


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 3, 32, 32)), r"must be NHWC.*\(2, 3, 32, 32\), which looks like NCHW"),
        (np.zeros((2, 1, 28, 28)), "looks like NCHW: use jnp.transpose"),
        (np.zeros((28, 28)), r"784 features.*got shape \(28, 28\); for one picture"),
        (np.zeros((5, 12)), r"784 features.*got shape \(5, 12\)"),
        (np.zeros(12), r"784 features.*got shape \(12,\)"),
        (3.0, r"784 features.*got shape \(\)"),
    ],
)
def test_bad_inputs(x, message):
    net = nnx.eval_shape(lambda: mlp.notes_mlp(rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=message):
        net(x.astype(np.float32) if isinstance(x, np.ndarray) else x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: MLP((3,), rngs=r), ValueError, r"widths must hold.*got \(3,\)"),
        (lambda r: MLP((3, 0, 2), rngs=r), ValueError, r"widths\[1\] must be at least 1, got 0"),
        (lambda r: MLP((3, 1.5), rngs=r), TypeError, r"widths\[1\] must be an integer, got 1.5"),
        (lambda r: MLP((3, 2), activation="relu", rngs=r), TypeError, "activation.*got str"),
        (lambda r: MLP((3, 2), norm="group", rngs=r), ValueError, "norm must be one of None"),
        (lambda r: MLP((3, 2), dropout=1.0, rngs=r), ValueError, r"dropout.*\[0, 1\), got 1.0"),
        (lambda r: MLP((3, 2), dropout="0.5", rngs=r), TypeError, "dropout must be a Python"),
        (lambda r: MLP((3, 2), kernel_init="he", rngs=r), ValueError, "kernel_init must be one of"),
        (lambda r: mlp.num_parameters((2, 2), norm="x"), ValueError, "norm must be one of"),
        (lambda r: mlp.forward([], jnp.ones(2)), ValueError, "at least one layer"),
        (
            lambda r: mlp.forward([(jnp.ones((3, 2)), jnp.ones(2))], jnp.ones((5, 4))),
            ValueError,
            r"layer 0 of weights.*\(..., 4\).*got \(3, 2\) and \(2,\)",
        ),
        (
            lambda r: mlp.forward([(jnp.ones((4, 2)), jnp.ones(3))], jnp.ones((5, 4))),
            ValueError,
            r"bias.*got \(4, 2\) and \(3,\)",
        ),
        (lambda r: mlp.weights(nnx.Linear(1, 1, rngs=r)), TypeError, "must be an MLP, got Linear"),
        (lambda r: mlp.tent(0), ValueError, "depth must be at least 1"),
        (lambda r: mlp.parity_deep(2.0), TypeError, "num_bits must be an integer"),
        (lambda r: mlp.parity_wide(0), ValueError, "num_bits must be at least 1"),
        (lambda r: mlp.breakpoints(mlp.parity_wide(2)), ValueError, "one input and one output"),
        (lambda r: mlp.breakpoints(mlp.tent(1), low=1.0), ValueError, "low must be below high"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(nnx.Rngs(0))


# The demo


def test_demo_shows_what_the_page_says():
    with jax.numpy_dtype_promotion("standard"):  # schedules of Optax mix dtypes
        result = demo.run(jax.random.key(0), quick=True)
    notes, improved = result.runs
    assert result.widths == (64, 512, 256, 128, 64, 10)
    assert len(notes.history["loss"]) == 10
    assert improved.accuracy > 0.94  # 0.97 at the time of writing; half a percent is two pictures
    assert improved.accuracy > notes.accuracy + 0.2
    assert improved.history["loss"][-1] < 0.1 * notes.history["loss"][-1]
    assert result.confusion.sum() == 359
    assert np.trace(result.confusion) / 359 == pytest.approx(improved.accuracy)
    assert demo.tables(result)
