"""Convolution and pooling against JAX's own operations, closed forms and PyTorch."""

import functools
import itertools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from mlnotes_jax.demos.nets import convolution as demo
from mlnotes_jax.nets import convolution as cv


def normal(shape, *, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def own_conv(x, kernel, *, stride=1, padding=0, dilation=1, groups=1):
    """JAX's convolution of pictures, with plain numbers."""

    def pair(value):
        return (value, value) if isinstance(value, int) else value

    return lax.conv_general_dilated(
        x,
        kernel,
        pair(stride),
        [pair(pad) for pad in pair(padding)],
        rhs_dilation=pair(dilation),
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


# --- Sizes and costs against the arrays that JAX makes --------------------------------------------

numbers = st.tuples(
    st.integers(1, 4),  # window
    st.integers(1, 3),  # stride
    st.tuples(st.integers(0, 3), st.integers(0, 3)),  # padding
    st.integers(1, 3),  # dilation
)


@st.composite
def stacks(draw, least=1):
    """Up to three layers, of different numbers along the two axes, and the shape of an input."""
    layers, channels = [], draw(st.sampled_from([1, 2, 6]))
    shape = (least + draw(st.integers(0, 13)), least + draw(st.integers(0, 13)), channels)
    for _ in range(draw(st.integers(1, 3))):
        window, stride, padding, dilation = zip(*(draw(numbers), draw(numbers)), strict=True)
        if draw(st.integers(0, 2)):
            groups = draw(st.sampled_from([g for g in (1, 2, 3, 6) if channels % g == 0]))
            channels = groups * draw(st.integers(1, 2))
            layer = cv.Layer(
                "conv", channels, window, stride, padding, dilation, groups, draw(st.booleans())
            )
        else:
            layer = cv.Layer("pool", window=window, stride=stride, padding=padding)
        layers.append(layer)
    return layers, shape


def run_layer(layer, x):
    """What JAX makes of a layer whose weights are all one."""
    if layer.kind == "pool":
        pads = [(0, 0), *layer.padding, (0, 0)]
        return lax.reduce_window(
            x, 0.0, lax.add, (1, *layer.window, 1), (1, *layer.stride, 1), pads
        )
    kernel = jnp.ones((*layer.window, x.shape[-1] // layer.groups, layer.features))
    return lax.conv_general_dilated(
        x,
        kernel,
        layer.stride,
        layer.padding,
        rhs_dilation=layer.dilation,
        feature_group_count=layer.groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def products(layer, shape):
    """How many products JAX's convolution makes, as XLA counts them: all of one frameless input."""
    framed = [size + sum(pad) for size, pad in zip(shape[1:-1], layer.padding, strict=True)]
    x = jax.ShapeDtypeStruct((1, *framed, shape[-1]), jnp.float32)
    alone = layer._replace(padding=((0, 0), (0, 0)))
    # XLA leaves out products with a zero of the frame; so the frame is made part of the input.
    count = jax.jit(functools.partial(run_layer, alone)).lower(x).cost_analysis()["flops"]
    return count / 2


@settings(deadline=None, max_examples=30)
@given(stacks())
def test_calculators_agree_with_the_arrays_that_jax_makes(stack):
    layers, shape = stack
    arrays, x = [], jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    for number, layer in enumerate(layers):
        after = jax.eval_shape(functools.partial(run_layer, layer), x)
        if after.size == 0:  # JAX makes an empty array; here it is an error that names the layer
            with pytest.raises(ValueError, match=rf"layers\[{number}\].*at least 1"):
                cv.costs(layers, shape)
            return
        arrays.append((layer, x, after))
        x = after
    rows = cv.costs(layers, shape)
    for row, (layer, before, after) in zip(rows, arrays, strict=True):
        assert row.shape == after.shape[1:]
        assert row.activations == after.size
        if layer.kind == "pool":
            assert row.parameters == row.multiply_adds == 0
            continue
        assert row.multiply_adds == products(layer, before.shape)
        module = nnx.eval_shape(
            lambda layer=layer, inputs=before.shape[-1]: cv.Conv(
                inputs,
                layer.features,
                layer.window,
                groups=layer.groups,
                use_bias=layer.use_bias,
                rngs=nnx.Rngs(0),
            )
        )
        leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
        assert row.parameters == sum(leaf.size for leaf in leaves)
    estimate = cv.memory(layers, shape, batch_size=3, bytes_per_value=8, optimizer_slots=2)
    assert estimate.activations == 2 * 3 * 8 * sum(after.size for *_, after in arrays)
    assert estimate.parameters == 4 * 8 * sum(row.parameters for row in rows)
    assert estimate.rest == 3 * 8 * math.prod(shape)


@settings(deadline=None, max_examples=6)
@given(stacks(least=30))
def test_receptive_field_is_where_the_gradient_is_not_zero(stack):
    layers, shape = stack
    last = cv.costs(layers, shape)[-1]
    place = tuple(size // 2 for size in last.shape[:2])
    first = [s + p * j for s, p, j in zip(last.start, place, last.jump, strict=True)]
    final = [f + r - 1 for f, r in zip(first, last.receptive_field, strict=True)]
    # A field that reaches into a frame is cut off there.
    assume(min(first) >= 0 and all(f < n for f, n in zip(final, shape, strict=False)))

    @jax.jit
    @jax.grad
    def gradient(x):
        for layer in layers:
            x = run_layer(layer, x)
        return x[0, place[0], place[1]].sum()

    seen = np.argwhere(np.asarray(gradient(np.ones((1, *shape), np.float32))).any(axis=(0, 3)))
    assert seen.min(axis=0).tolist() == first
    assert seen.max(axis=0).tolist() == final
    reach = cv.receptive_field(layers)
    assert reach == (last.receptive_field, last.jump)


sizes = st.integers(1, 40)


@settings(deadline=None, max_examples=60)
@given(sizes, numbers)
def test_output_size_floors_and_strict_does_not(size, slide):
    window, stride, padding, dilation = slide
    keywords = {"stride": stride, "padding": (padding,), "dilation": dilation}
    x = jax.ShapeDtypeStruct((1, size, 1), jnp.float32)
    kernel = jax.ShapeDtypeStruct((window, 1, 1), jnp.float32)
    made = jax.eval_shape(
        lambda x, k: lax.conv_general_dilated(
            x, k, (stride,), (padding,), None, (dilation,), ("NHC", "HIO", "NHC")
        ),
        x,
        kernel,
    ).shape[1]
    room = size - dilation * (window - 1) - 1 + sum(padding)
    if room < 0:
        assert made == 0
        for strict in (False, True):
            with pytest.raises(ValueError, match="a size must be at least 1"):
                cv.output_size(size, window, strict=strict, **keywords)
        return
    assert cv.output_size(size, window, **keywords) == made
    assert cv.output_size((size, size), window, stride=stride, padding=(padding, padding),
                          dilation=dilation) == (made, made)  # fmt: skip
    if room % stride:
        with pytest.raises(ValueError, match=rf"stride {stride} does not fit.*is no integer"):
            cv.output_size(size, window, strict=True, **keywords)
    else:
        assert cv.output_size(size, window, strict=True, **keywords) == made
    back = cv.transposed_output_size(made, window, output_padding=room % stride, **keywords)
    assert back == size


@settings(deadline=None, max_examples=40)
@given(sizes, st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_padding_by_name_is_that_of_jax(size, window, stride, dilation):
    x = jax.ShapeDtypeStruct((1, size, 1), jnp.float32)
    kernel = jax.ShapeDtypeStruct((window, 1, 1), jnp.float32)

    def made(name):
        return jax.eval_shape(
            lambda x, k: lax.conv_general_dilated(
                x, k, (stride,), name, None, (dilation,), ("NHC", "HIO", "NHC")
            ),
            x,
            kernel,
        ).shape[1]

    same = cv.output_size(size, window, stride=stride, padding="same", dilation=dilation)
    assert same == made("SAME") == -(-size // stride)
    if made("VALID"):
        valid = cv.output_size(size, window, stride=stride, padding="valid", dilation=dilation)
        assert valid == made("VALID")


def test_strict_message_shows_the_formula_with_its_numbers():
    with pytest.raises(
        ValueError, match=re.escape("(N - F + 2P)/S + 1 = (10 - 3 + 0)/2 + 1 = 4.5")
    ):
        cv.output_size(10, 3, stride=2, strict=True)
    formula = "(N - (D(F - 1) + 1) + 2P)/S + 1 = (10 - (2 * 2 + 1) + 2)/3 + 1 = 3.33333"
    with pytest.raises(ValueError, match=re.escape(formula)):
        cv.output_size(10, 3, stride=3, padding=1, dilation=2, strict=True)
    with pytest.raises(ValueError, match=re.escape("= (2 - 5 + 0)/1 + 1 = -2, and a size")):
        cv.output_size(2, 5)
    layers = [cv.Layer("conv", 4, 3), cv.Layer("pool", window=2)]
    assert cv.costs(layers, (9, 9, 1))[-1].shape == (3, 3, 4)
    with pytest.raises(ValueError, match=r"layers\[1\], 'pool': stride 2 does not fit"):
        cv.costs(layers, (9, 9, 1), strict=True)


def test_the_notes_network_has_the_sizes_they_write():
    layers = []
    for features in (64, 128, 256, 512, 512):
        layers += [
            cv.Layer("conv", features, 3, padding=1),
            cv.Layer("norm"),
            cv.Layer("activation"),
            cv.Layer("pool", window=2),
        ]
    layers += [cv.Layer("dense", 1024), cv.Layer("dense", 512), cv.Layer("dense", 11)]
    rows = cv.costs(layers, (128, 128, 3), strict=True)
    pooled = [row.shape for row in rows if row.layer.kind == "pool"]
    assert pooled == [(64, 64, 64), (32, 32, 128), (16, 16, 256), (8, 8, 512), (4, 4, 512)]
    # 3 * 3 * C * C' + C' for each convolution, 2 C' for each norm, in * out + out for the rest.
    channels = (3, 64, 128, 256, 512, 512)
    expected = sum(9 * a * b + 3 * b for a, b in itertools.pairwise(channels))
    expected += sum(a * b + b for a, b in itertools.pairwise((8192, 1024, 512, 11)))
    assert sum(row.parameters for row in rows) == expected == 12_833_803
    # The pixels of the last map together see 94 + 3 * 32 pixels along an axis.
    assert rows[-4].receptive_field == (94, 94)
    assert rows[-1].receptive_field == (190, 190)
    # The window of 7 that three of 3 replace.
    assert cv.receptive_field([cv.Layer("conv", 8, 3)] * 3) == cv.receptive_field(
        [cv.Layer("conv", 8, 7)]
    )


def test_memory_without_training_holds_two_layers():
    layers = [cv.Layer("conv", 4, 3), cv.Layer("conv", 2, 3), cv.Layer("conv", 8, 3)]
    made = [8 * 8 * 4, 6 * 6 * 2, 4 * 4 * 8]
    estimate = cv.memory(layers, (10, 10, 1), batch_size=5, training=False)
    assert estimate.activations == 4 * 5 * max(made[0] + made[1], made[1] + made[2])
    assert estimate.parameters == 4 * (9 * 4 + 4 + 9 * 8 + 2 + 9 * 16 + 8)
    assert estimate.total == sum(estimate[:3])


# --- Convolution ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "kernel"),
    [
        ({"padding": 1}, (3, 3, 4, 6)),
        ({"stride": (2, 3), "padding": ((0, 3), (2, 1)), "dilation": (2, 1)}, (3, 2, 4, 6)),
        ({"groups": 2, "padding": 2}, (5, 5, 2, 6)),
        ({"groups": 4, "padding": 1, "stride": 2, "dilation": 2}, (3, 2, 1, 4)),  # depthwise
        ({"groups": 4}, (3, 3, 1, 8)),  # two windows for each channel
        ({"stride": (1, 2)}, (1, 1, 4, 6)),
        ({"stride": 3, "padding": 1}, (2, 3, 4, 6)),  # windows do not overlap
        ({"stride": 4}, (3, 3, 4, 6)),  # pixels that no window sees
    ],
)
def test_gradients_equal_those_of_jax(x64, keywords, kernel):
    x, w = normal((2, 9, 10, 4)), normal(kernel, seed=1)

    @jax.jit
    def both(x, w):
        ours, back = jax.vjp(functools.partial(cv.conv, **keywords), x, w)
        peer, stock = jax.vjp(functools.partial(cv.conv, gradient="jax", **keywords), x, w)
        cotangent = jnp.sin(jnp.arange(ours.size, dtype=x.dtype)).reshape(ours.shape)
        return (ours, *back(cotangent)), (peer, *stock(cotangent))

    ours, peer = both(x, w)
    # Sums of at most a few hundred products in float64, in another order.
    chex.assert_trees_all_close(ours, peer, rtol=1e-12, atol=1e-12)
    by_hand = own_conv(x, w, **keywords)
    np.testing.assert_allclose(ours[0], by_hand, rtol=1e-12, atol=1e-12)


@st.composite
def slides(draw):
    """A convolution along one to three axes, and the shapes it takes."""
    rank = draw(st.integers(1, 3))
    many = functools.partial(st.lists, min_size=rank, max_size=rank)
    window = draw(many(st.integers(1, 3)))
    dilation = draw(many(st.integers(1, 2)))
    pads = draw(many(st.tuples(st.integers(0, 3), st.integers(0, 3))))
    least = [
        max(d * (w - 1) + 1 - sum(p), 1) for w, d, p in zip(window, dilation, pads, strict=True)
    ]
    space = [draw(st.integers(size, size + 4)) for size in least]
    groups = draw(st.sampled_from([1, 2, 3]))
    inputs, outputs = draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    keywords = {
        "stride": tuple(draw(many(st.integers(1, 3)))),
        "padding": tuple(pads),
        "dilation": tuple(dilation),
        "groups": groups,
    }
    return (2, *space, groups * inputs), (*window, inputs, outputs), keywords


@settings(deadline=None, max_examples=4)
@given(slides())
def test_gradients_equal_those_of_jax_everywhere(slide):
    shape, kernel, keywords = slide
    with jax.enable_x64(True):
        x, w = normal(shape), normal(kernel, seed=1)

        def gradients(x, w, gradient):
            def total(x, w):
                y = cv.conv(x, w, gradient=gradient, **keywords)
                return (jnp.sin(y) * jnp.arange(y.size, dtype=y.dtype).reshape(y.shape)).sum()

            return jax.grad(total, (0, 1))(x, w)

        ours, peer = jax.jit(lambda x, w: [gradients(x, w, g) for g in ("auto", "jax")])(x, w)
        chex.assert_trees_all_close(ours, peer, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("keywords", "kernel"),
    [
        ({"stride": 2, "padding": 1, "groups": 2}, (3, 2, 1, 4)),
        ({"groups": 2, "padding": 1, "dilation": 2}, (2, 2, 1, 2)),
    ],
)
def test_gradients_against_finite_differences(x64, keywords, kernel):
    x, w, bias = normal((1, 5, 4, 2)), normal(kernel, seed=1), normal(kernel[-1:], seed=2)

    @jax.jit
    def total(x, w, bias):
        return jnp.sin(cv.conv(x, w, bias=bias, **keywords)).sum()

    # Central differences with steps of 1e-5 in float64: errors of 1e-10.
    chex.assert_numerical_grads(total, (x, w, bias), order=1, eps=1e-5, atol=1e-7, modes=["rev"])

    @jax.jit
    def back(y, w):
        return jnp.sin(cv.transposed_conv(y, w, **keywords)).sum()

    y = normal(cv.conv(x, w, **keywords).shape, seed=3)
    chex.assert_numerical_grads(back, (y, w), order=1, eps=1e-5, atol=1e-7, modes=["rev"])


@pytest.mark.parametrize("groups", [1, 4])
def test_hessian_vector_products(x64, groups):
    x, w = normal((2, 6, 6, 4)), normal((3, 3, 4 // groups, 4), seed=1)
    v = normal(w.shape, seed=2)

    def loss(w, gradient):
        return jnp.sin(cv.conv(x, w, padding=1, groups=groups, gradient=gradient)).sum()

    @jax.jit
    def products(w, v):
        def forward_over_reverse(gradient):
            return jax.jvp(lambda w: jax.grad(loss)(w, gradient), (w,), (v,))[1]

        twice = jax.grad(lambda w: (jax.grad(loss)(w, "auto") * v).sum())(w)
        return forward_over_reverse("jax"), forward_over_reverse("auto"), twice

    peer, ahead, twice = products(w, v)
    np.testing.assert_allclose(ahead, peer, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(twice, peer, rtol=1e-11, atol=1e-11)


def test_forward_mode_needs_the_gradient_of_jax(x64):
    x, w = normal((5, 5, 1)), normal((2, 2, 1, 1), seed=1)
    ones = jax.nn.initializers.ones
    layer = cv.Conv(
        1, 1, 2, use_bias=False, kernel_init=ones, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(layer, (x,), (x,))
    nnx.Sequential(layer).set_attributes(gradient="jax")
    np.testing.assert_allclose(jax.jvp(layer, (x,), (x,))[1], layer(x), rtol=1e-12)
    jax.jvp(lambda w: cv.conv(x, w, gradient="jax"), (w,), (w,))


LOOP = {
    "plain": ({"padding": 1}, (3, 3, 4, 4)),
    "strided": ({"padding": 1, "stride": 2}, (3, 3, 4, 4)),
    "grouped": ({"padding": 2, "groups": 2, "dilation": 2}, (3, 3, 2, 4)),
}


@pytest.mark.parametrize("name", LOOP)
def test_gradients_in_a_loop_are_convolutions_that_the_cpu_is_fast_at(name):
    """XLA's CPU compiler has one fast convolution; in a loop it rewrites none into that form."""
    keywords, kernel = LOOP[name]
    x, w = normal((2, 8, 8, 4), dtype=np.float32), normal(kernel, seed=1, dtype=np.float32)

    def descend(w, x, gradient):
        def step(w, _):
            def loss(w, x):
                return jnp.square(cv.conv(x, w, gradient=gradient, **keywords)).mean()

            by_kernel, by_input = jax.grad(loss, (0, 1))(w, x * w.mean())
            return w - 0.1 * by_kernel, by_input

        return lax.scan(step, w, length=3)

    run = jax.jit(descend, static_argnames="gradient")
    # Float32 sums of some hundred products.
    chex.assert_trees_all_close(run(w, x, "auto"), run(w, x, "jax"), rtol=1e-4, atol=1e-5)
    if jax.default_backend() == "cpu":
        labels = {}
        for gradient in ("auto", "jax"):
            text = run.lower(w, x, gradient).compile().as_text()
            assert "conditional(" not in text
            labels[gradient] = set(re.findall(r"dim_labels=(\w+->\w+)", text))
        assert labels["auto"] == {"b01f_01io->b01f"}
        assert labels["jax"] > labels["auto"]


def test_other_devices_get_the_gradient_of_jax():
    x, w = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4))

    def lowered(gradient, platform):
        f = jax.grad(lambda w: jnp.sin(cv.conv(x, w, gradient=gradient)).sum())
        text = jax.jit(f).trace(w).lower(lowering_platforms=(platform,)).as_text()
        return re.findall(r"dim_numbers = ([^,]*, .*?\]->\[.*?\])", text)

    assert lowered("auto", "cuda") == lowered("jax", "cuda") == lowered("jax", "cpu")
    assert lowered("auto", "cpu") != lowered("jax", "cpu")


def test_jit_equals_eager_and_does_not_recompile():
    x, w = normal((2, 6, 6, 3), dtype=np.float32), normal((3, 3, 3, 2), dtype=np.float32)
    bias = np.array([1.0, -1.0], np.float32)

    @jax.jit
    @chex.assert_max_traces(1)
    def jitted(x, w, bias):
        return cv.conv(x, w, bias=bias, stride=2, padding=1)

    # The bias may be added in another place.
    expected = cv.conv(x, w, bias=bias, stride=2, padding=1)
    np.testing.assert_allclose(jitted(x, w, bias), expected, rtol=1e-5, atol=1e-5)
    jitted(x + 1, w, bias)


def test_batch_axes_and_vmap_equal_a_loop():
    x, w = normal((3, 2, 6, 5, 3), dtype=np.float32), normal((3, 3, 3, 2), dtype=np.float32)
    loop = np.stack([np.stack([cv.conv(one, w) for one in part]) for part in x])
    np.testing.assert_allclose(cv.conv(x, w), loop, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda p: cv.conv(p, w))(x), loop, rtol=1e-5, atol=1e-6)
    kernels = np.stack([w, -w, 2 * w])

    @jax.jit
    def gradient(w, x):
        return jax.grad(lambda w: jnp.sin(cv.conv(x, w)).sum())(w)

    many = jax.vmap(gradient)(kernels, x)
    np.testing.assert_allclose(
        many, np.stack([gradient(*pair) for pair in zip(kernels, x, strict=True)]), rtol=1e-4
    )


def test_patches_make_a_convolution_a_product(x64):
    x, w = normal((2, 7, 8, 3)), normal((3, 2, 3, 5), seed=1)
    keywords = {"stride": (2, 1), "padding": ((1, 0), (2, 2)), "dilation": (1, 2)}
    rows = cv.patches(x, (3, 2), **keywords)
    np.testing.assert_allclose(
        rows @ w.reshape(-1, 5), cv.conv(x, w, **keywords), rtol=1e-12, atol=1e-12
    )


@settings(deadline=None, max_examples=4)
@given(slides())
def test_transposed_convolution_is_the_adjoint(slide):
    shape, kernel, keywords = slide
    with jax.enable_x64(True):
        x, w = normal(shape), normal(kernel, seed=1)
        ahead = cv.conv(x, w, **keywords)
        y = normal(ahead.shape, seed=2)
        extra = [
            size - (step * (stops - 1) + dilation * (window - 1) + 1 - sum(pad))
            for size, stops, window, step, dilation, pad in zip(
                shape[1:-1],
                y.shape[1:-1],
                kernel[:-2],
                keywords["stride"],
                keywords["dilation"],
                keywords["padding"],
                strict=True,
            )
        ]

        @jax.jit
        def backs(y, w):
            pull = functools.partial(cv.transposed_conv, output_padding=extra, **keywords)
            return pull(y, w), pull(y, w, gradient="jax")

        back, stock = backs(y, w)
        assert back.shape == x.shape
        np.testing.assert_allclose((ahead * y).sum(), (x * back).sum(), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(back, stock, rtol=1e-12, atol=1e-12)


def test_low_precision_stays_and_integers_are_promoted():
    x = jnp.ones((4, 4, 1), jnp.bfloat16)
    w = jnp.ones((2, 2, 1, 1), jnp.bfloat16)
    assert cv.conv(x, w).dtype == jnp.bfloat16
    assert jax.grad(lambda w: cv.conv(x, w).sum())(w).dtype == jnp.bfloat16
    # A sum of 1024 ones is exact only where it does not run in bfloat16, which stops at 256.
    many = jnp.ones((4, 16, 16, 2), jnp.bfloat16)
    for shape, options in (((1, 1, 2, 2), {}), ((1, 1, 1, 2), {"groups": 2})):
        one = jnp.ones(shape, jnp.bfloat16)
        by_one = jax.jit(jax.grad(lambda w, o=options: cv.conv(many, w, **o).sum()))(one)
        np.testing.assert_array_equal(by_one.astype(jnp.float32), np.full(shape, 1024.0))
    assert cv.average_pool(x, 2).dtype == cv.max_pool(x, 2).dtype == jnp.bfloat16
    picture = np.full((4, 4, 1), 200, np.uint8)
    sums = cv.conv(picture, np.ones((2, 2, 1, 1), np.float32))
    np.testing.assert_array_equal(sums, np.full((3, 3, 1), 800, np.float32))


# --- PyTorch --------------------------------------------------------------------------------------


def to_torch(torch, x, w):
    """Channels first: pictures and kernels."""
    leaves = torch.tensor(np.moveaxis(x, -1, 1)), torch.tensor(np.transpose(w, (3, 2, 0, 1)))
    return [leaf.requires_grad_() for leaf in leaves]


@pytest.mark.parametrize(
    ("keywords", "inputs", "outputs"),
    [
        ({"stride": 2, "padding": 1}, 3, 4),
        ({"groups": 2, "stride": (1, 2), "dilation": 2, "padding": (2, 1)}, 4, 6),
        ({"groups": 4, "padding": 1}, 4, 4),
    ],
)
def test_equals_pytorch(torch, x64, keywords, inputs, outputs):
    x = normal((2, 8, 9, inputs))
    w = normal((3, 3, inputs // keywords.get("groups", 1), outputs), seed=1)
    bias = normal(outputs, seed=2)
    tx, tw = to_torch(torch, x, w)
    peer = torch.nn.functional.conv2d(tx, tw, torch.tensor(bias), **keywords)
    peer.sin().sum().backward()

    ours = cv.conv(x, w, bias=bias, **keywords)
    np.testing.assert_allclose(ours, np.moveaxis(peer.detach().numpy(), 1, -1), rtol=1e-11)
    by_x, by_w = jax.grad(lambda x, w: jnp.sin(cv.conv(x, w, bias=bias, **keywords)).sum(), (0, 1))(
        x, w
    )
    np.testing.assert_allclose(by_x, np.moveaxis(tx.grad.numpy(), 1, -1), rtol=1e-10, atol=1e-12)
    expected = np.transpose(tw.grad.numpy(), (2, 3, 1, 0))
    np.testing.assert_allclose(by_w, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("keywords", "inputs", "outputs"),
    [
        ({"stride": 2, "padding": 1, "output_padding": 1}, 3, 4),
        ({"groups": 2, "stride": (3, 2), "output_padding": (2, 0), "dilation": (1, 2)}, 4, 6),
        ({"padding": 3}, 3, 4),  # cuts off more than a window reaches
    ],
)
def test_transposed_equals_pytorch(torch, x64, keywords, inputs, outputs):
    x = normal((2, 6, 5, inputs))
    w = normal((3, 3, outputs // keywords.get("groups", 1), inputs), seed=1)
    bias = normal(outputs, seed=2)
    tx, tw = to_torch(torch, x, w)
    peer = torch.nn.functional.conv_transpose2d(tx, tw, torch.tensor(bias), **keywords)
    peer.sin().sum().backward()
    ours = cv.transposed_conv(x, w, bias=bias, **keywords)
    np.testing.assert_allclose(
        ours, np.moveaxis(peer.detach().numpy(), 1, -1), rtol=1e-10, atol=1e-12
    )

    def total(x, w):
        return jnp.sin(cv.transposed_conv(x, w, bias=bias, **keywords)).sum()

    by_x, by_w = jax.jit(jax.grad(total, (0, 1)))(x, w)
    np.testing.assert_allclose(by_x, np.moveaxis(tx.grad.numpy(), 1, -1), rtol=1e-9, atol=1e-12)
    expected = np.transpose(tw.grad.numpy(), (2, 3, 1, 0))
    np.testing.assert_allclose(by_w, expected, rtol=1e-9, atol=1e-12)


def test_padding_modes_equal_pytorch(torch):
    x = normal((2, 5, 6, 3), dtype=np.float32)
    w = normal((3, 3, 3, 2), seed=1, dtype=np.float32)
    for mode in ("reflect", "replicate", "circular", "zeros"):
        layer = torch.nn.Conv2d(3, 2, 3, padding=(2, 1), padding_mode=mode, bias=False)
        tx, tw = to_torch(torch, x, w)
        with torch.no_grad():
            layer.weight.copy_(tw)
            peer = np.moveaxis(layer(tx).numpy(), 1, -1)
        ours = cv.conv(x, w, padding=(2, 1), padding_mode=mode)
        np.testing.assert_allclose(ours, peer, rtol=1e-4, atol=1e-5)  # 27 products in float32


@pytest.mark.parametrize(
    ("window", "stride", "padding"),
    [(2, None, 0), (3, 2, 1), ((1, 3), (2, 1), (0, 1))],
)
def test_pooling_equals_pytorch_ties_included(torch, window, stride, padding):
    # Small whole numbers: most windows hold their maximum more than once.
    x = np.random.default_rng(0).integers(0, 3, (2, 9, 8, 3)).astype(np.float32)
    keywords = {"stride": stride, "padding": padding}

    f = torch.nn.functional
    pairs = {
        "max": (cv.max_pool, f.max_pool2d),
        "min": (cv.min_pool, lambda x, *a, **k: -f.max_pool2d(-x, *a, **k)),
        "average": (cv.average_pool, f.avg_pool2d),
        "inside": (
            functools.partial(cv.average_pool, count_padding=False),
            functools.partial(f.avg_pool2d, count_include_pad=False),
        ),
    }

    @jax.jit
    def ours(x, weights):
        def both(pool):
            y, back = jax.vjp(lambda x: pool(x, window, **keywords), x)
            return y, back(weights)[0]

        return {name: both(pool) for name, (pool, _) in pairs.items()}

    def peer(pool):
        tx = torch.tensor(np.moveaxis(x, -1, 1)).requires_grad_()
        out = pool(tx, window, **keywords)
        out.backward(torch.tensor(np.moveaxis(weights, -1, 1)))
        return [np.moveaxis(array.numpy(), 1, -1) for array in (out.detach(), tx.grad)]

    size = cv.output_size((9, 8), window, stride=stride or window, padding=padding)
    weights = np.arange(2 * 3 * math.prod(size), dtype=np.float32).reshape(2, *size, 3)
    for name, results in ours(x, weights).items():
        for result, expected in zip(results, peer(pairs[name][1]), strict=True):
            # Sums of at most nine weights, float32.
            np.testing.assert_allclose(result, expected, rtol=1e-5, err_msg=name)


# --- Pooling --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 1), (2, 1)])
def test_the_first_maximum_has_the_whole_gradient(window, stride):
    x = jnp.zeros((4, 4, 1))
    by_x = jax.jit(jax.grad(lambda x: cv.max_pool(x, window, stride=stride).sum()))(x)
    stops = range(0, 4 - window + 1, stride)
    expected = np.zeros((4, 4))
    for i, j in itertools.product(stops, stops):
        expected[i, j] = 1  # the top left corner of each window
    np.testing.assert_array_equal(by_x[..., 0], expected)


def test_first_is_meant_in_reading_order():
    pair = jnp.array([[0.0, 5.0], [5.0, 5.0]])[..., None]
    for pool, sign in ((cv.max_pool, 1), (cv.min_pool, -1)):
        by_pair = jax.jit(jax.grad(lambda x, p=pool: p(x, 2).sum()))(sign * pair)
        np.testing.assert_array_equal(by_pair[..., 0], [[0, 1], [0, 0]])


def test_pooling_by_hand_and_in_volumes(x64):
    x = normal((2, 6, 4, 5, 3))
    blocks = x[:, :, :, :4].reshape(2, 3, 2, 2, 2, 2, 2, 3)
    np.testing.assert_array_equal(cv.max_pool(x, (2, 2, 2)), blocks.max(axis=(2, 4, 6)))
    np.testing.assert_array_equal(cv.min_pool(x, (2, 2, 2)), blocks.min(axis=(2, 4, 6)))
    mean = blocks.mean(axis=(2, 4, 6))
    np.testing.assert_allclose(cv.average_pool(x, (2, 2, 2)), mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        cv.global_average_pool(x, rank=3), x.mean(axis=(1, 2, 3)), rtol=1e-11, atol=1e-14
    )
    np.testing.assert_allclose(
        cv.global_average_pool(x), x.mean(axis=(2, 3)), rtol=1e-11, atol=1e-14
    )


@settings(deadline=None, max_examples=6)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(3, 8), st.integers(3, 8)
)
def test_pooling_equals_reduce_window(window, stride, padding, height, width):
    assume(padding < window)
    x = normal((height, width, 2), dtype=np.float32)
    keywords = {"stride": stride, "padding": padding}

    @jax.jit
    def both(x):
        def peer(init, operation):
            slide = (window, window, 1), (stride, stride, 1)
            return lax.reduce_window(x, init, operation, *slide, [(padding,) * 2] * 2 + [(0, 0)])

        ours = cv.max_pool(x, window, **keywords), cv.average_pool(x, window, **keywords)
        return ours, (peer(-np.inf, lax.max), peer(0.0, lax.add) / window**2)

    ours, peer = both(x)
    chex.assert_trees_all_close(ours, peer, rtol=1e-5, atol=1e-6)  # sums of nine, float32
    assert ours[0].shape[:2] == cv.output_size((height, width), window, **keywords)


def test_pooling_gradients_both_ways(x64):
    x = normal((2, 5, 6, 2))  # no ties: differentiable

    @jax.jit
    def total(x):
        pooled = [cv.max_pool(x, 2), cv.max_pool(x, 3, stride=2, padding=1)]
        pooled += [cv.average_pool(x, 2), cv.min_pool(x, 3, stride=2, padding=1)]
        return sum(jnp.sin(part).sum() for part in pooled)

    chex.assert_numerical_grads(total, (x,), order=1, eps=1e-6, atol=1e-6)
    ahead = jax.jit(lambda x, v: jax.jvp(total, (x,), (v,))[1])(x, np.cos(x))
    np.testing.assert_allclose(ahead, (jax.jit(jax.grad(total))(x) * np.cos(x)).sum(), rtol=1e-11)


@pytest.mark.parametrize("pool", [cv.max_pool, cv.average_pool])
def test_pooling_under_jit_and_vmap(pool):
    x = normal((2, 5, 6, 2), dtype=np.float32)
    traces = []
    jitted = jax.jit(lambda x: traces.append(1) or pool(x, 2))
    np.testing.assert_allclose(jitted(x), pool(x, 2), rtol=1e-6)
    np.testing.assert_allclose(jitted(x + 1), pool(x + 1, 2), rtol=1e-6)
    assert len(traces) == 1
    np.testing.assert_allclose(jax.vmap(lambda one: pool(one, 2))(x), pool(x, 2), rtol=1e-6)


def test_not_a_number_wins():
    x = jnp.array([[1.0, jnp.nan], [3.0, 2.0]])[..., None]
    assert jnp.isnan(cv.max_pool(x, 2)).all()
    np.testing.assert_array_equal(cv.max_pool(x, (2, 1)).ravel(), [3.0, jnp.nan])


# --- Modules --------------------------------------------------------------------------------------


def test_module_is_the_function_with_its_parameters():
    ramp = jax.nn.initializers.constant(np.arange(72.0, dtype=np.float32).reshape(3, 2, 2, 6))
    options = {"stride": 2, "padding": "same", "groups": 2}
    layer = cv.Conv(4, 6, (3, 2), kernel_init=ramp, **options, rngs=nnx.Rngs(0))
    assert layer.kernel[...].shape == (3, 2, 2, 6)
    assert layer.bias is not None
    assert not layer.bias[...].any()
    x = normal((2, 7, 8, 4), dtype=np.float32)
    layer.bias[...] = jnp.arange(6.0)
    expected = cv.conv(x, layer.kernel[...], bias=jnp.arange(6.0), **options)
    np.testing.assert_array_equal(layer(x), expected)

    params, rest = nnx.split(layer, nnx.Param)[1], nnx.split(layer, nnx.Param, ...)[2:]
    assert len(jax.tree.leaves(params)) == 2
    assert not jax.tree.leaves(rest)
    gradients = jax.jit(jax.grad(lambda layer, x: jnp.square(layer(x)).sum()))(layer, x)
    assert gradients.kernel[...].shape == layer.kernel[...].shape

    ones = jax.nn.initializers.ones
    up = cv.TransposedConv(
        6, 4, 4, stride=2, padding=1, use_bias=False, kernel_init=ones, rngs=nnx.Rngs(1)
    )
    assert up.bias is None
    y = normal((2, 3, 3, 6), dtype=np.float32)
    expected = cv.transposed_conv(y, up.kernel[...], stride=2, padding=1)
    np.testing.assert_array_equal(up(y), expected)
    assert expected.shape == (2, 6, 6, 4)


def test_weights_start_by_the_rules():
    # All of one shape, which is compiled once.
    he = cv.Conv(32, 64, 3, groups=2, use_bias=False, rngs=nnx.Rngs(0)).kernel[...]
    # 9216 numbers: their standard deviation is known to 0.8 %, four times that is allowed.
    np.testing.assert_allclose(he.std(), math.sqrt(2 / (9 * 16)), rtol=0.03)
    up = cv.TransposedConv(64, 32, 3, groups=2, use_bias=False, rngs=nnx.Rngs(0)).kernel[...]
    np.testing.assert_allclose(up.std(), math.sqrt(2 / (9 * 32)), rtol=0.03)
    half = cv.Conv(2, 2, 1, kernel_init=jax.nn.initializers.ones, rngs=nnx.Rngs(0),
                   param_dtype=jnp.bfloat16)  # fmt: skip
    assert half.kernel[...].dtype == half.bias[...].dtype == jnp.bfloat16
    assert (half.kernel[...] == 1).all()


def test_pytorch_rule_is_that_of_pytorch(torch):
    ours = cv.Conv(16, 64, 3, kernel_init="pytorch", rngs=nnx.Rngs(0))
    back = cv.TransposedConv(64, 16, 3, kernel_init="pytorch", rngs=nnx.Rngs(1))
    bound = 1 / math.sqrt(9 * 16)
    peers = torch.nn.Conv2d(16, 64, 3), torch.nn.ConvTranspose2d(64, 16, 3)
    for layer, peer in zip((ours, back), peers, strict=True):
        for values, theirs in ((layer.kernel[...], peer.weight), (layer.bias[...], peer.bias)):
            # The largest of 16 uniform numbers is below 0.6 of the bound with probability 3e-4.
            for each in (values, theirs.detach().numpy()):
                assert 0.6 * bound < abs(np.asarray(each)).max() <= bound


# --- Bad input ------------------------------------------------------------------------------------


def test_channels_first_is_recognised():
    w = jnp.ones((3, 3, 3, 8))
    nchw = np.zeros((4, 3, 32, 30), np.float32)
    message = (
        "x must have its 3 channels on the last axis, got shape (4, 3, 32, 30), which looks like "
        "channels first (NCHW): use jnp.moveaxis(x, -3, -1), of shape (4, 32, 30, 3)"
    )
    layer = cv.Conv(3, 8, 3, kernel_init=jax.nn.initializers.zeros, rngs=nnx.Rngs(0))
    for call in (lambda: cv.conv(nchw, w), lambda: layer(nchw), lambda: jax.jit(layer)(nchw)):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
    assert jax.eval_shape(layer, jnp.moveaxis(nchw, -3, -1)).shape == (4, 30, 28, 8)
    with pytest.raises(ValueError, match=r"channels first \(NCHW\)"):
        cv.conv(jnp.zeros((3, 32, 30)), w)
    with pytest.raises(ValueError, match=r"got shape \(4, 32, 30, 1\)$"):
        cv.conv(jnp.zeros((4, 32, 30, 1)), w)
    with pytest.raises(ValueError, match=r"use jnp.moveaxis\(kernel, \(0, 1\), \(-1, -2\)\)"):
        cv.conv(jnp.zeros((4, 32, 30, 3)), jnp.ones((8, 3, 5, 5)))
    with pytest.raises(ValueError, match="looks like PyTorch's"):
        cv.transposed_conv(jnp.zeros((4, 32, 30, 3)), jnp.ones((3, 8, 5, 5)))


X, W = jnp.zeros((5, 5, 4)), jnp.zeros((3, 3, 4, 2))

BAD = {
    "kernel must be": lambda: cv.conv(X, jnp.zeros((3, 3))),
    "kernel must not be empty": lambda: cv.conv(X, jnp.zeros((3, 3, 4, 0))),
    "height, width, channels": lambda: cv.conv(jnp.zeros((5, 4)), W),
    "at least 1": lambda: cv.conv(jnp.zeros((2, 2, 4)), W),
    "stride must be at least 1": lambda: cv.conv(X, W, stride=0),
    "stride must be one number or 2": lambda: cv.conv(X, W, stride=(1, 1, 1)),
    "dilation must be at least 1": lambda: cv.conv(X, W, dilation=0),
    "padding must be at least 0": lambda: cv.conv(X, W, padding=-1),
    "padding must be one of 'same'": lambda: cv.conv(X, W, padding="full"),
    "padding must be numbers or pairs": lambda: cv.conv(X, W, padding=((1, 2, 3), 1)),
    "numbers or pairs here": lambda: cv.transposed_conv(X, W[..., :1].repeat(4, 3), padding="same"),
    "groups must divide the last axis": lambda: cv.conv(X, W, groups=3),
    "groups must divide in_features": lambda: cv.Conv(4, 6, 3, groups=4, rngs=nnx.Rngs(0)),
    "must have its 8 channels": lambda: cv.conv(X, W, groups=2),
    "gradient must be one of": lambda: cv.conv(X, W, gradient="numpy"),
    "padding_mode must be one of": lambda: cv.conv(X, W, padding_mode="mirror"),
    "must be at most 4 on an axis of 5": lambda: cv.pad(X, 5, mode="reflect"),
    "bias must have shape": lambda: cv.conv(X, W, bias=jnp.zeros(3)),
    "output_padding must be less": lambda: cv.transposed_output_size(4, 3, output_padding=1),
    "nothing is left: S": lambda: cv.transposed_output_size(1, 1, padding=1),
    "padding must be less than the window": lambda: cv.max_pool(X, 2, padding=2),
    "window is larger": lambda: cv.average_pool(X, 6),
    "window must be at least 1": lambda: cv.max_pool(X, 0),
    "window must have at least one": lambda: cv.max_pool(X, ()),
    "x must not be empty": lambda: cv.global_average_pool(jnp.zeros((2, 0, 3, 1))),
    "kernel_init must be one of": lambda: cv.Conv(4, 6, 3, kernel_init="he", rngs=nnx.Rngs(0)),
    "size must be at least 1": lambda: cv.output_size(0, 1),
    "kind must be one of": lambda: cv.costs([cv.Layer("linear", 3)], (4, 4, 1)),
    "features must be given": lambda: cv.costs([cv.Layer("conv", window=3)], (4, 4, 1)),
    "must not come after 'dense'": lambda: cv.costs(
        [cv.Layer("dense", 3), cv.Layer("pool", window=2)], (4, 4, 1)
    ),
    "shape must be \\(height": lambda: cv.costs([], (4,)),
    "batch_size must be at least 1": lambda: cv.memory([], (4, 4, 1), batch_size=0),
    "kind must be one of 'conv', 'pool', 'norm', 'activation', got 'dense'": (
        lambda: cv.receptive_field([cv.Layer("dense", 3)])
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_values(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("x must be a real array", lambda: cv.conv(jnp.zeros((5, 5, 4), complex), W)),
        ("one dtype, got float32 and bfloat16", lambda: cv.conv(X, W.astype(jnp.bfloat16))),
        ("bias must have the dtype", lambda: cv.conv(X, W, bias=jnp.zeros(2, jnp.bfloat16))),
        ("stride must be an integer", lambda: cv.conv(X, W, stride=1.5)),
        ("padding must be an integer", lambda: cv.conv(X, W, padding=1.0)),
        ("window must be an integer", lambda: cv.max_pool(X, 2.0)),
        ("size must be an integer", lambda: cv.output_size((4.0,), 2)),
    ],
)
def test_bad_types(message, call):
    with pytest.raises(TypeError, match=message):
        call()


# --- The page's claims ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_demo_filters_a_photograph(result):
    assert result.picture.shape == (106, 160, 3)
    assert result.responses.shape == (106, 160, 5)
    # Where the brightness does not change there is no edge: the sky; the temple has many.
    sky, temple = result.edges[2:12, 100:140], result.edges[40:80, 25:85]
    assert temple.mean() > 10 * sky.mean()
    assert result.pooled.shape == (13, 20)
    by_hand = np.asarray(result.edges)[:104].reshape(13, 8, 20, 8).max(axis=(1, 3))
    np.testing.assert_array_equal(result.pooled, by_hand)
    # The window for edges from left to right, by hand at one pixel.
    part = np.asarray(result.brightness)[49:52, 29:32]
    np.testing.assert_allclose(
        result.responses[50, 30, 0], (part * np.array(demo.FILTERS["edges left to right"])).sum(),
        rtol=1e-4, atol=1e-6,
    )  # fmt: skip


def test_demo_finds_the_filters_in_noise(result):
    # Descent ends where float32 cannot tell the losses apart.
    np.testing.assert_allclose(result.learned, result.kernel, atol=1e-5)
    assert result.loss[-1] < 1e-9 * result.loss[0]


def test_demo_counts_the_notes_network(result):
    assert sum(row.parameters for row in result.costs) == 12_833_803
    momentum, adam, prediction = result.memory
    assert adam.parameters - momentum.parameters == 4 * 12_833_803
    assert prediction.total < momentum.total
    for rows in demo.tables(result).values():
        assert rows
    figure = demo.plot(result)
    assert len(figure.axes) == 8
