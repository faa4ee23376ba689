"""Convolutional networks: PyTorch with the same weights, shapes that are really made, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos.nets import cnn as demo
from mlnotes_jax.foundations import activations, losses
from mlnotes_jax.nets import cnn, convolution
from mlnotes_jax.training import loop

IN_SHAPE = (12, 8, 3)


@functools.cache
def small(*, dropout=0.0, norm="batch", seed=0, **options):
    """Two stages, the first with two convolutions; 12x8 becomes 6x4, then 2x1."""
    return cnn.CNN(
        IN_SHAPE,
        (cnn.Stage((4, 5)), cnn.Stage((6,), window=5, pool=3)),
        hidden=(7,),
        num_classes=4,
        dropout=dropout,
        norm=norm,
        rngs=nnx.Rngs(params=seed, dropout=1),
        **options,
    )


def wide(model):
    """The same module with parameters and statistics in float64."""
    graphdef, state = nnx.split(model)

    def cast(leaf):
        return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return nnx.merge(graphdef, jax.tree.map(cast, state))


def costs(model):
    return convolution.costs(cnn.layers(model), model.in_shape)


def num_params(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


# --- the notes' network


@pytest.fixture(scope="module")
def notes():
    # Shapes only: thirteen million random numbers would take longer than all other tests.
    return nnx.eval_shape(lambda: cnn.notes_cnn(dropout=0.5, rngs=nnx.Rngs(params=0, dropout=1)))


def notes_in_torch(torch, dropout):
    nn, layers, channels = torch.nn, [], 3
    for width in (64, 128, 256, 512, 512):
        layers += [nn.Conv2d(channels, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.MaxPool2d(2, 2, 0))
        channels = width
    layers += [nn.Flatten(), nn.Linear(512 * 4 * 4, 1024), nn.Dropout(dropout), nn.ReLU()]
    layers += [nn.Linear(1024, 512), nn.Dropout(dropout), nn.ReLU(), nn.Linear(512, 11)]
    return nn.Sequential(*layers)


def test_notes_network_has_as_many_parameters_as_in_pytorch(torch, notes):
    theirs = notes_in_torch(torch, 0.5)
    count = sum(p.numel() for p in theirs.parameters())
    assert num_params(notes) == count == 12_833_803
    assert sum(cost.parameters for cost in costs(notes)) == count


def test_notes_network_has_the_shapes_of_the_notes(notes):
    kinds = ("conv", "pool", "dense")
    shapes = [cost.shape for cost in costs(notes) if cost.layer.kind in kinds]
    assert shapes[:4] == [(128, 128, 64), (64, 64, 64), (64, 64, 128), (32, 32, 128)]
    assert shapes[-5:] == [(8, 8, 512), (4, 4, 512), (1024,), (512,), (11,)]
    assert cnn.advice(notes.in_shape, notes.stages) == ()
    params, state, apply = loop.bind(notes)
    x = jax.ShapeDtypeStruct((2, 128, 128, 3), jnp.float32)
    logits, _ = jax.eval_shape(apply, params, state, x)
    assert logits.shape == (2, 11)


def test_dropout_of_the_notes_network_is_the_only_difference(notes):
    without = nnx.eval_shape(lambda: cnn.notes_cnn(rngs=nnx.Rngs(params=0, dropout=1)))
    assert num_params(without) == num_params(notes)
    assert [d.rate for d in notes.dropout] == [0.5, 0.5]
    assert len(without.dropout) == 0


# --- PyTorch with the same weights


def in_torch(torch, model):
    """The same network in PyTorch, weights copied."""
    nn, layers, channels, sides = torch.nn, [], IN_SHAPE[2], IN_SHAPE[:2]
    blocks = iter(model.blocks)
    for stage in model.stages:
        for width in stage.widths:
            block = next(blocks)
            conv = nn.Conv2d(channels, width, stage.window, padding=stage.window // 2)
            conv.weight.data = tensor(torch, jnp.transpose(block.conv.kernel[...], (3, 2, 0, 1)))
            conv.bias.data = tensor(torch, block.conv.bias[...])
            norm = nn.BatchNorm2d(width, dtype=conv.weight.dtype)
            norm.weight.data = tensor(torch, block.norm.scale[...])
            norm.bias.data = tensor(torch, block.norm.bias[...])
            layers += [conv, norm, nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(stage.pool))
        sides = tuple(side // stage.pool for side in sides)
    layers.append(nn.Flatten())
    for i, layer in enumerate(model.linear):
        kernel = layer.kernel[...]
        if i == 0:  # PyTorch flattens (channel, row, column), we (row, column, channel)
            kernel = jnp.moveaxis(kernel.reshape(*sides, channels, -1), 2, 0)
            kernel = kernel.reshape(-1, kernel.shape[-1])
        linear = nn.Linear(*kernel.shape)
        linear.weight.data = tensor(torch, kernel.T)
        linear.bias.data = tensor(torch, layer.bias[...])
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def tensor(torch, array):
    return torch.from_numpy(np.array(array))


def relative(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def compare_with_torch(torch, model, dtype, train):
    """Largest relative error over outputs, input gradient, one SGD step and statistics."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, *IN_SHAPE)).astype(dtype)
    y = rng.integers(0, 4, 6)
    theirs = in_torch(torch, model)
    theirs.train(train)
    x_torch = torch.from_numpy(np.moveaxis(x, -1, 1).copy()).requires_grad_(True)
    out_torch = theirs(x_torch)
    torch.nn.functional.cross_entropy(out_torch, torch.from_numpy(y)).backward()
    with torch.no_grad():
        for p in theirs.parameters():
            p -= 0.1 * p.grad

    params, state, apply = loop.bind(model)

    def loss(params, x):
        logits, new_state = apply(params, state, x, train=train)
        value = losses.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(y))
        return value, (logits, new_state)

    grads, (logits, new_state) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x)
    stepped = loop.merge(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads[0]), new_state)
    errors = {
        "outputs": relative(logits, out_torch.detach()),
        "input gradient": relative(np.moveaxis(grads[1], -1, 1), x_torch.grad),
    }
    after = in_torch(torch, stepped)
    pairs = zip(after.parameters(), theirs.parameters(), strict=True)
    for i, (ours_p, theirs_p) in enumerate(pairs):
        # In training, batch norm takes the bias of a convolution away: both gradients are rounding.
        scale = max(float(theirs_p.detach().norm()), 1e-2)
        errors[f"step {i}"] = float((ours_p - theirs_p).detach().norm()) / scale
    norms = [layer for layer in theirs if isinstance(layer, torch.nn.BatchNorm2d)]
    for i, (block, norm) in enumerate(zip(stepped.blocks, norms, strict=True)):
        errors[f"mean {i}"] = np.abs(block.norm.mean[...] - norm.running_mean.numpy()).max()
        errors[f"var {i}"] = relative(block.norm.var[...], norm.running_var)
    return errors


@pytest.mark.parametrize("train", [True, False])
def test_float32_agrees_with_pytorch(torch, train):
    errors = compare_with_torch(torch, small(), np.float32, train)
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("train", [True, False])
def test_float64_agrees_with_pytorch(torch, x64, train):
    errors = compare_with_torch(torch, wide(small()), np.float64, train)
    assert max(errors.values()) < 1e-9, errors


# --- shapes


stage = st.builds(
    cnn.Stage,
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=2).map(tuple),
    window=st.sampled_from([1, 3, 5]),
    pool=st.sampled_from([None, 2, 3]),
)


@settings(deadline=None, max_examples=25)
@given(
    stages=st.lists(stage, max_size=3),
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    hidden=st.lists(st.integers(1, 5), max_size=2),
    stem=st.sampled_from([None, 3]),
)
def test_layers_are_what_the_network_makes(stages, sides, hidden, stem):
    left = sides
    for one in stages:
        if one.pool is not None and min(left) < one.pool:
            with pytest.raises(ValueError, match="larger than what is left"):
                cnn.CNN((*sides, 2), stages, num_classes=3, rngs=nnx.Rngs(0))
            return
        left = tuple(side // (one.pool or 1) for side in left)

    def trace():  # builds the network and calls its layers, without computing anything
        model = cnn.CNN(
            (*sides, 2), stages, hidden=hidden, num_classes=3, stem=stem, rngs=nnx.Rngs(0)
        )
        shapes, y, blocks = [], jnp.zeros((2, *sides, 2)), iter(model.blocks)

        def note(y):
            shapes.append(y.shape[1:])
            return y

        if stem is not None:
            y = note(model.stem(y))
        for one in stages:
            for _ in one.widths:
                y = note(next(blocks)(y))
            if one.pool is not None:
                y = note(convolution.max_pool(y, one.pool))
        y = y.reshape(2, -1)
        for layer in model.linear:
            y = note(layer(y))
        kinds = ("conv", "pool", "dense")
        rows = [cost for cost in costs(model) if cost.layer.kind in kinds]
        assert [row.shape for row in rows] == shapes
        assert sum(cost.parameters for cost in costs(model)) == num_params(model)

    jax.eval_shape(trace)


def test_multiply_adds_are_those_that_the_compiler_counts():
    model = cnn.CNN((8, 8, 3), cnn.pattern((4,), pool=None), num_classes=5, norm=None,
                    rngs=nnx.Rngs(0))  # fmt: skip
    params, state, apply = loop.bind(model)
    x = jnp.zeros((1, 8, 8, 3))
    counted = jax.jit(apply).lower(params, state, x).compile().cost_analysis()["flops"]
    ours = 2 * sum(cost.multiply_adds for cost in costs(model))
    # The compiler leaves products with the padding out: at most the border, 28 of 64 pixels.
    assert 0.75 * ours < counted < 1.1 * ours


def test_advice_of_the_notes():
    stages = cnn.pattern((8, 8, 8))
    assert cnn.advice((32, 32, 3), stages) == ()
    said = cnn.advice((28, 30, 3), stages)
    assert len(said) == 3
    assert said[0].startswith(
        "stage 2: width 15 is not divisible by its pooling window 2; 1 column"
    )
    large = cnn.advice((32, 32, 3), (cnn.Stage((8,), 7, None), cnn.Stage((8,), 7, 4)))
    assert len(large) == 2  # the first convolution may be large
    assert "3 convolutions 3x3 see as far" in large[0]
    assert "keeps one of 16 values" in large[1]


def test_pattern():
    assert cnn.pattern((4, 8), convs=2, window=5, pool=None) == (
        cnn.Stage((4, 4), 5, None),
        cnn.Stage((8, 8), 5, None),
    )


# --- the block


def test_block_orders_are_what_they_say():
    x = jax.random.normal(jax.random.key(0), (4, 5, 5, 2))
    for order in ("conv-norm-relu", "relu-conv-norm"):
        block = cnn.ConvBlock(2, 3, order=order, rngs=nnx.Rngs(0))
        y = block(x)
        assert y.shape == (4, 5, 5, 3)
        assert bool((y >= 0).all()) == (order == "conv-norm-relu")
        same = block(activations.relu(x))
        assert bool((same == y).all()) == (order == "relu-conv-norm")


def test_stem_and_relu_conv_norm_blocks():
    model = cnn.CNN(
        IN_SHAPE, cnn.pattern((4, 4)), num_classes=3, stem=4, order="relu-conv-norm",
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    assert model(jnp.ones((2, *IN_SHAPE))).shape == (2, 3)
    with pytest.raises(ValueError, match="stem must be a number of filters"):
        cnn.CNN(IN_SHAPE, (), num_classes=3, order="relu-conv-norm", rngs=nnx.Rngs(0))


# --- transformations


def test_jit_equals_eager_and_does_not_recompile():
    params, state, apply = loop.bind(small())
    traces = []

    @jax.jit
    def compiled(params, state, x):
        traces.append(1)
        return apply(params, state, x)[0]

    x = jax.random.normal(jax.random.key(0), (3, *IN_SHAPE))
    # Another order of the same float32 sums: a few units in the last place.
    np.testing.assert_allclose(compiled(params, state, x), apply(params, state, x)[0], rtol=1e-4,
                               atol=1e-5)  # fmt: skip
    compiled(params, state, 2 * x)
    assert len(traces) == 1


def test_vmap_over_networks_equals_a_loop():
    models = [small(seed=seed) for seed in range(2)]
    bound = [loop.bind(model) for model in models]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[b.params for b in bound])
    x = jax.random.normal(jax.random.key(0), (3, *IN_SHAPE))
    state, apply = bound[0].state, bound[0].apply

    @jax.jit
    def logits(params):
        return apply(params, state, x)[0]

    together = jax.jit(jax.vmap(logits))(stacked)
    one_by_one = jnp.stack([logits(b.params) for b in bound])
    np.testing.assert_allclose(together, one_by_one, rtol=1e-4, atol=1e-5)


def test_gradient_against_finite_differences(x64):
    # tanh has no kinks for a difference to cross; pooling has, but not along this short step.
    model = wide(small(activation=activations.tanh))
    params, state, apply = loop.bind(model)
    x = jax.random.normal(jax.random.key(0), (4, *IN_SHAPE), jnp.float64)
    y = jnp.array([0, 1, 2, 3])

    def loss(params):
        logits, _ = apply(params, state, x, train=True)
        return losses.softmax_cross_entropy_with_integer_labels(logits, y)

    loss = jax.jit(loss)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    pairs = zip(keys, leaves, strict=True)
    direction = structure.unflatten([jax.random.normal(k, v.shape, v.dtype) for k, v in pairs])
    slope = sum(
        jnp.vdot(g, d)
        for g, d in zip(
            jax.tree.leaves(jax.jit(jax.grad(loss))(params)),
            jax.tree.leaves(direction),
            strict=True,
        )
    )
    step = 1e-6
    ends = [
        loss(jax.tree.map(lambda p, d, s=s: p + s * step * d, params, direction)) for s in (1, -1)
    ]
    # Central differences: an error of order step^2, and rounding of 1e-16 / step.
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(slope), rel=1e-6)


def test_dropout_depends_on_the_key_in_training_only():
    params, state, apply = loop.bind(small(dropout=0.5))
    apply = jax.jit(apply, static_argnames="train")
    x = jax.random.normal(jax.random.key(0), (3, *IN_SHAPE))
    keys = jax.random.split(jax.random.key(1), 2)
    train = [apply(params, state, x, key=key, train=True)[0] for key in keys]
    assert (train[0] != train[1]).any()
    evaluate = [apply(params, state, x, key=key)[0] for key in keys]
    assert (evaluate[0] == evaluate[1]).all()


# --- bad input


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 12, 8), "NCHW"),
        ((12, 8, 3), "batch of pictures, 4-D, got shape"),
        ((2, 12, 8, 1), "3 channels"),
        ((2, 8, 12, 3), "12x8 pixels, as the network was built for"),
    ],
)
def test_pictures_of_another_shape_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        small()(jnp.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_shape": (8, 8)}, r"in_shape must be \(height, width, channels\)"),
        ({"in_shape": (8, 0, 3)}, "in_shape must be at least 1"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"hidden": (0,)}, "hidden must be at least 1"),
        (
            {"stages": cnn.pattern((4, 4, 4, 4))},
            "pooling window 2 of stage 4 is larger than what is",
        ),
        ({"stages": [((4,), 4, 2)]}, "window must be odd"),
        ({"stages": [((), 3, 2)]}, "at least one convolution"),
        ({"order": "norm-conv"}, "order must be one of"),
        ({"norm": "layer"}, "norm must be one of"),
        ({"dropout": 1.5}, "rate"),
    ],
)
def test_bad_sizes_are_named(arguments, message):
    stages = arguments.get("stages", cnn.pattern((4,)))
    good = {"in_shape": (8, 8, 3), "hidden": (5,), "num_classes": 3, **arguments, "stages": stages}
    with pytest.raises(ValueError, match=message):
        cnn.CNN(good.pop("in_shape"), good.pop("stages"), **good, rngs=nnx.Rngs(0))


# --- the demo


def test_demo():
    with jax.numpy_dtype_promotion("standard"):  # optax.adamw needs it
        result = demo.run(jax.random.key(0), quick=True)
    # Two epochs on 479 digits; guessing names a tenth of them.
    assert result.accuracy > 0.5
    assert result.history["loss"][-1] < result.history["loss"][0]
    assert result.confusion.sum() == 359  # a fifth of each class, of 1797 digits
    assert result.accuracy == pytest.approx(np.trace(result.confusion) / 359)
    assert (result.said != result.truth).all()
    shown = demo.tables(result)
    assert shown["For one picture"][-1]["parameters"] == sum(c.parameters for c in result.costs)


def test_flips_happen_in_training_only():
    model = demo.Flipped(lambda x: x, rngs=nnx.Rngs(dropout=0))
    x = jnp.arange(64.0).reshape(16, 1, 4, 1)
    model.eval()
    assert (model(x) == x).all()
    model.train()
    y = model(x)
    flipped = (y == x[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (y == x).all(axis=(1, 2, 3))
    assert bool((flipped ^ kept).all())
    assert 0 < int(flipped.sum()) < 16
