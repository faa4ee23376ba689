"""Normalization against closed forms, PyTorch, Flax, finite differences and its own definition."""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from mlnotes_jax.demos.nets import normalization as demo
from mlnotes_jax.nets import convolution
from mlnotes_jax.nets import normalization as norm
from mlnotes_jax.training import loop

SHAPE = (4, 3, 5, 6)
#: Of outputs and gradients against a peer: a few roundings of numbers around 1.
RELATIVE = {"float32": 1e-4, "float64": 1e-9}


def draw(shape=SHAPE, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(1, 2, shape).astype(dtype)


def closed_form(x, axes, where=None, epsilon=1e-5):
    """The definition, in float64 NumPy, with NumPy's own masked mean and variance."""
    x = x.astype(np.float64)
    kept = np.broadcast_to(True if where is None else where, x.shape)
    mean = np.mean(x, axes, keepdims=True, where=kept)
    var = np.var(x, axes, keepdims=True, where=kept)
    return np.where(kept, (x - mean) / np.sqrt(var + epsilon), 0)


KINDS = {
    "batch": (lambda x, **o: norm.batch_norm(x, **o)[0], (0, 1, 2)),
    "layer": (norm.layer_norm, (3,)),
    "layer of a picture": (lambda x, **o: norm.layer_norm(x, num_axes=3, **o), (1, 2, 3)),
    "instance": (norm.instance_norm, (1, 2)),
    "one group": (lambda x, **o: norm.group_norm(x, num_groups=1, **o), (1, 2, 3)),
    "groups of one": (lambda x, **o: norm.group_norm(x, num_groups=6, **o), (1, 2)),
}


def near(ours, peer, dtype="float32"):
    ours, peer = np.asarray(ours, np.float64), np.asarray(peer, np.float64)
    assert ours.shape == peer.shape
    assert np.linalg.norm(ours - peer) <= RELATIVE[dtype] * max(np.linalg.norm(peer), 1e-30)


# Definitions


@pytest.mark.parametrize("kind", KINDS)
def test_which_axes(kind):
    function, axes = KINDS[kind]
    near(function(draw()), closed_form(draw(), axes))
    shown = demo.averaged_together  # the picture of the page says the same
    marked = {
        "batch": shown("batch"),
        "layer of a picture": shown("layer"),
        "layer": shown("layer, each position"),
        "instance": shown("instance"),
    }.get(kind)
    if marked is not None:
        space = tuple(sorted({{0: 0, 1: 1, 2: 1, 3: 2}[axis] for axis in axes}))
        expected = np.zeros((4, 4, 4), bool)
        expected[tuple(slice(None) if axis in space else 0 for axis in range(3))] = True
        np.testing.assert_array_equal(marked, expected)


def test_groups():
    x = draw()
    halves = [closed_form(x[..., part], (1, 2, 3)) for part in (slice(0, 3), slice(3, 6))]
    near(norm.group_norm(x, num_groups=2), np.concatenate(halves, axis=3))


def test_scale_and_shift():
    scale, bias = draw((6,), seed=1), draw((6,), seed=2)
    for function, axes in KINDS.values():
        near(function(draw(), scale=scale, bias=bias), closed_form(draw(), axes) * scale + bias)
    whole = draw(SHAPE[1:], seed=1)
    plain = closed_form(draw(), (1, 2, 3))
    near(norm.layer_norm(draw(), num_axes=3, scale=whole, bias=whole), plain * whole + whole)


def test_statistics_and_their_update():
    x = draw((5, 3))
    _, batch = norm.batch_norm(x)
    near(batch.mean, x.mean(0))
    near(batch.var, x.var(0))
    np.testing.assert_array_equal(batch.count, 5)
    mean, var = norm.update_running(np.zeros(3), np.ones(3), batch, decay=0.75)
    near(mean, 0.25 * x.mean(0))
    near(var, 0.75 + 0.25 * x.var(0, ddof=1))
    _, var = norm.update_running(np.zeros(3), np.ones(3), batch, decay=0.75, unbiased=False)
    near(var, 0.75 + 0.25 * x.var(0))


def test_a_large_mean_costs_no_digits():
    x = 1000 + draw((2000, 4)) / 2
    _, batch = norm.batch_norm(x)
    exact = x.astype(np.float64).var(0)
    # Rounding of single differences averages out; the one-pass formula is wrong by a tenth.
    np.testing.assert_allclose(batch.var, exact, rtol=1e-5)
    one_pass = np.square(x).mean(0) - np.square(x.mean(0))
    assert np.abs(one_pass / exact - 1).max() > 1e-3


def test_half_precision_is_summed_in_single():
    x = jnp.asarray(draw((4096, 2)) + 100, jnp.bfloat16)
    y, batch = norm.batch_norm(x)
    assert y.dtype == jnp.bfloat16
    assert batch.mean.dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(batch.mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(batch.var, exact.var(0), rtol=1e-4)
    for function, _ in KINDS.values():
        assert function(jnp.asarray(draw(), jnp.float16)).dtype == jnp.float16


def test_switchable_is_the_mixture():
    x, scale = draw().astype(np.float64), draw((6,), seed=1)
    logits = np.array([[0.3, -1.0, 0.5], [1.0, 0.2, -0.4]], np.float32)
    w = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    axes = ((1, 2), (1, 2, 3), (0, 1, 2))
    mean = sum(wk * x.mean(a, keepdims=True) for wk, a in zip(w[0], axes, strict=True))
    var = sum(wk * x.var(a, keepdims=True) for wk, a in zip(w[1], axes, strict=True))
    ours, batch = norm.switchable_norm(draw(), *logits, scale=scale)
    near(ours, (x - mean) / np.sqrt(var + 1e-5) * scale)
    near(batch.mean, x.mean((0, 1, 2)))
    near(batch.var, x.var((0, 1, 2)))
    only = [np.where(np.arange(3) == k, 0, -np.inf).astype(np.float32) for k in range(3)]
    for logits, axis in zip(only, axes, strict=True):
        near(norm.switchable_norm(draw(), logits, logits)[0], closed_form(draw(), axis))


# Masks


jitted_batch_norm = jax.jit(norm.batch_norm)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.booleans(), min_size=8, max_size=8), st.integers(0, 2**16))
def test_hidden_examples_might_as_well_not_be_there(kept, seed):
    kept = np.array(kept)
    x = draw((8, 3), seed=seed)
    hidden = np.where(kept[:, None], x, np.nan)
    y, batch = jitted_batch_norm(hidden, where=kept)
    np.testing.assert_array_equal(y[~kept], 0)
    np.testing.assert_array_equal(batch.count, kept.sum())
    if kept.any():
        # float32: a small variance magnifies rounding
        np.testing.assert_allclose(y[kept], closed_form(x[kept], 0), atol=2e-5)
        np.testing.assert_allclose(batch.var, x[kept].var(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_positions(kind):
    function, axes = KINDS[kind]
    x, where = draw(), np.random.default_rng(1).random(SHAPE[:3]) < 0.7
    if axes == (3,):
        where = np.broadcast_to(where[:1, :1, :1], where.shape) | (x[..., 0] > 0)
    where[:, 0] = True  # at least one in each mean
    expected = closed_form(x, axes, where[..., None])
    hidden = jnp.where(where[..., None], x, jnp.nan)
    near(function(hidden, where=where), expected)
    loss = jax.jit(lambda x: (function(x, where=where) * draw(seed=2)).sum())
    gradient = jax.grad(loss)(hidden)
    np.testing.assert_array_equal(np.isfinite(gradient), True)
    np.testing.assert_array_equal(gradient[~where], 0)


def test_mask_of_switchable():
    x, where = draw(), np.random.default_rng(1).random(SHAPE[:3]) < 0.7
    for k, axes in enumerate(((1, 2), (1, 2, 3), (0, 1, 2))):
        logits = np.where(np.arange(3) == k, 0, -np.inf).astype(np.float32)
        y, _ = norm.switchable_norm(
            np.where(where[..., None], x, np.nan), logits, logits, where=where
        )
        near(y, closed_form(x, axes, where[..., None]))


def test_a_batch_without_entries_moves_nothing():
    _, batch = norm.batch_norm(draw((4, 2)), where=np.zeros(4, bool))
    np.testing.assert_array_equal(batch.var, 0)
    mean, var = norm.update_running(np.full(2, 3.0), np.full(2, 5.0), batch)
    np.testing.assert_array_equal([mean, var], [[3, 3], [5, 5]])
    # One entry has a mean, but no unbiased variance.
    _, batch = norm.batch_norm(draw((4, 2)), where=np.arange(4) < 1)
    _, var = norm.update_running(np.zeros(2), np.full(2, 5.0), batch)
    np.testing.assert_array_equal(var, 5)


# Gradients


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_of_batch_norm(masked):
    x, g = draw((5, 2, 3), "float64"), draw((5, 2, 3), "float64", seed=1)
    scale, bias = draw((3,), "float64", seed=2), draw((3,), "float64", seed=3)
    where = np.arange(5) < 4 if masked else None

    def f(x, scale, bias, epsilon):
        y, batch = norm.batch_norm(x, scale=scale, bias=bias, epsilon=epsilon, where=where)
        return (y * g).sum() + (batch.mean**2).sum() + batch.var.sum()

    # Finite differences in double precision, of the derivative too: differences of differences
    # leave some five digits.
    arguments = (x, scale, bias, np.float64(0.1))
    check_grads(jax.jit(f), arguments, order=1, modes=("fwd",), rtol=1e-5, atol=1e-5)
    order = 2 if masked else 1
    check_grads(jax.jit(f), arguments, order=order, modes=("rev",), rtol=1e-5, atol=1e-5)

    def loss(x, scale, bias):
        y, _ = norm.batch_norm(x, scale=scale, bias=bias, where=where)
        return (y * g).sum()

    by_hand = norm.batch_norm_gradient(x, g, scale=scale, where=where)
    by_jax = jax.grad(loss, (0, 1, 2))(x, scale, bias)
    for ours, peer in zip(by_hand, by_jax, strict=True):
        np.testing.assert_allclose(ours, peer, rtol=1e-12, atol=1e-13)

    # Autodiff of the definition, written without the library.
    def plain(x):
        kept = np.broadcast_to(True if where is None else where[:, None, None], x.shape)
        mean = jnp.mean(x, (0, 1), keepdims=True, where=kept)
        var = jnp.var(x, (0, 1), keepdims=True, where=kept)
        y = (x - mean) / jnp.sqrt(var + 1e-5) * scale[None, None]
        return jnp.where(kept, y * g, 0).sum()

    np.testing.assert_allclose(by_hand.x, jax.grad(plain)(x), rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_derivatives_of_the_others():
    x, g = draw((3, 2, 4), "float64"), draw((3, 2, 4), "float64", seed=1)
    kernel, out = draw((2, 3, 4), "float64", seed=2), draw((2, 3, 4), "float64", seed=3)

    def f(x, kernel, magnitude):
        outputs = (
            norm.layer_norm(x),
            norm.instance_norm(x),
            norm.group_norm(x, num_groups=2),
            norm.switchable_norm(x, jnp.zeros(3), jnp.arange(3.0))[0],
            norm.normalize(x, np.ones(4), np.full(4, 2.0)),
        )
        of_x = sum((k * (y * g).sum() for k, y in enumerate(outputs, start=1)), jnp.zeros(()))
        return of_x + (norm.weight_norm(kernel, magnitude) * out).sum()

    arguments = (x, kernel, draw((4,), "float64", seed=4))
    check_grads(jax.jit(f), arguments, order=1, modes=("rev",), rtol=1e-6, atol=1e-6)
    # Once the vectors have converged, the derivative of the estimate is that of the norm itself.
    left, sizes, right = np.linalg.svd(kernel.reshape(-1, 4))
    vectors = norm.SingularVectors(jnp.asarray(left[:, 0]), jnp.asarray(right[0]))

    def exact(kernel):
        # The largest eigenvalue of W'W, by its power: (trace of (W'W)^64)^(1/128).
        matrix = kernel.reshape(-1, 4) / sizes[0]
        power = matrix.T @ matrix
        for _ in range(6):
            power = power @ power
        return (kernel / (sizes[0] * jnp.trace(power) ** (1 / 128)) * out).sum()

    ours = jax.grad(lambda kernel: (norm.spectral_norm(kernel, vectors)[0] * out).sum())(kernel)
    # the next singular value to the power of 128 is what is neglected
    assert (sizes[1] / sizes[0]) ** 128 < 1e-12
    np.testing.assert_allclose(ours, jax.grad(exact)(kernel), rtol=1e-9, atol=1e-11)


# Peers


def torch_layer(torch, kind, features):
    return {
        "batch": lambda: torch.nn.BatchNorm2d(features),
        "flat batch": lambda: torch.nn.BatchNorm1d(features),
        "instance": lambda: torch.nn.InstanceNorm2d(features, affine=True),
        "group": lambda: torch.nn.GroupNorm(3, features),
        "layer": lambda: torch.nn.LayerNorm(features),
        "layer of a picture": lambda: torch.nn.LayerNorm(SHAPE[1:]),
    }[kind]()


def our_layer(kind, features, dtype):
    rngs = nnx.Rngs(0)
    return {
        "batch": lambda: norm.BatchNorm(features, rngs=rngs, param_dtype=dtype),
        "flat batch": lambda: norm.BatchNorm(features, rngs=rngs, param_dtype=dtype),
        "instance": lambda: norm.InstanceNorm(features, rngs=rngs, param_dtype=dtype),
        "group": lambda: norm.GroupNorm(features, num_groups=3, rngs=rngs, param_dtype=dtype),
        "layer": lambda: norm.LayerNorm(features, rngs=rngs, param_dtype=dtype),
        "layer of a picture": lambda: norm.LayerNorm(SHAPE[1:], rngs=rngs, param_dtype=dtype),
    }[kind]()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "kind", ["batch", "flat batch", "instance", "group", "layer", "layer of a picture"]
)
def test_torch(torch, kind, dtype):
    """Three batches in train mode, then one in eval mode: everything that PyTorch knows."""
    with jax.enable_x64(dtype == "float64"):
        features = SHAPE[-1]
        channels_second = kind in ("batch", "instance", "group")
        theirs = torch_layer(torch, kind, features).to(getattr(torch, dtype))
        shape = tuple(theirs.weight.shape)
        scale, bias = draw(shape, dtype, seed=1), draw(shape, dtype, seed=2)
        with torch.no_grad():
            theirs.weight.copy_(torch.tensor(scale))
            theirs.bias.copy_(torch.tensor(bias))
        model = our_layer(kind, features, dtype)
        model.scale[...], model.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
        params, state, apply = loop.bind(model)

        @partial(jax.jit, static_argnums=4)
        def pulled(params, state, x, g, train):
            def f(params, x):
                return apply(params, state, x, train=train)

            y, pull, state_after = jax.vjp(f, params, x, has_aux=True)
            return y, *pull(g), state_after

        for step in range(4):
            train = step < 3
            size = (7, features) if kind == "flat batch" else SHAPE
            x, g = draw(size, dtype, seed=10 + step), draw(size, dtype, seed=20 + step)
            y, of_params, of_x, state = pulled(params, state, x, g, train)

            theirs.train(train)
            theirs.zero_grad()
            there = torch.tensor(x, requires_grad=True)
            moved = there.movedim(-1, 1) if channels_second else there
            out = theirs(moved)
            out = out.movedim(1, -1) if channels_second else out
            out.backward(torch.tensor(g))
            near(y, out.detach().numpy(), dtype)
            near(of_x, there.grad.numpy(), dtype)
            near(of_params["scale"], theirs.weight.grad.numpy(), dtype)
            near(of_params["bias"], theirs.bias.grad.numpy(), dtype)
            if "batch" in kind:
                near(state["mean"], theirs.running_mean.numpy(), dtype)
                near(state["var"], theirs.running_var.numpy(), dtype)


def test_flax():
    x = draw()
    pairs = [
        (nnx.LayerNorm(6, epsilon=1e-5, rngs=nnx.Rngs(0)), norm.LayerNorm(6, rngs=nnx.Rngs(0))),
        (
            nnx.GroupNorm(6, num_groups=3, epsilon=1e-5, rngs=nnx.Rngs(0)),
            norm.GroupNorm(6, num_groups=3, rngs=nnx.Rngs(0)),
        ),
        (
            nnx.InstanceNorm(6, epsilon=1e-5, rngs=nnx.Rngs(0)),
            norm.InstanceNorm(6, rngs=nnx.Rngs(0)),
        ),
    ]
    # Flax's variance in one pass loses a few more digits of float32: 1e-4 still holds.
    with jax.numpy_rank_promotion("allow"):
        for theirs, ours in pairs:
            near(ours(x), theirs(x))


@pytest.mark.parametrize("masked", [False, True])
def test_flax_batch_norm_with_its_conventions(masked):
    theirs = nnx.BatchNorm(6, momentum=0.99, epsilon=1e-5, rngs=nnx.Rngs(0))
    ours = norm.BatchNorm(6, decay=0.99, unbiased=False, rngs=nnx.Rngs(0))
    where = np.random.default_rng(0).random(SHAPE[:3]) < 0.7 if masked else np.ones(SHAPE[:3], bool)
    mask = jnp.asarray(where) if masked else None
    x = jnp.asarray(draw())
    for seed in range(3):
        x = jnp.asarray(draw(seed=seed))
        with jax.numpy_rank_promotion("allow"):
            whole = None if mask is None else jnp.broadcast_to(mask[..., None], SHAPE)
            peer = theirs(x, mask=whole)
        near(ours(x, where=mask)[where], np.asarray(peer)[where])
    near(ours.mean[...], theirs.mean[...])
    near(ours.var[...], theirs.var[...])
    theirs.eval()
    ours.eval()
    with jax.numpy_rank_promotion("allow"):
        near(ours(x), theirs(x))


@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 5, 4)])
def test_weight_norm_in_torch(torch, shape):
    v, g, cotangent = draw(shape), draw((4,), seed=1), draw(shape, seed=2)
    w, pull = jax.vjp(norm.weight_norm, jnp.asarray(v), jnp.asarray(g))

    # PyTorch has the outputs first.
    def first(a):
        return torch.tensor(np.moveaxis(a, -1, 0).copy())

    v_t, g_t = first(v).requires_grad_(), torch.tensor(g).reshape(4, *[1] * (len(shape) - 1))
    g_t.requires_grad_()
    w_t = torch._weight_norm(v_t, g_t, 0)
    w_t.backward(first(cotangent))

    def last(a):
        return np.moveaxis(a.detach().numpy(), 0, -1)

    near(w, last(w_t))
    of_v, of_g = pull(jnp.asarray(cotangent))
    near(of_v, last(v_t.grad))
    near(of_g, g_t.grad.numpy().ravel())


def test_spectral_norm_in_torch(torch):
    """The same vectors to begin with; three calls in train mode, then one in eval mode."""
    torch.manual_seed(0)
    linear = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(5, 4, bias=False))
    parts = linear.parametrizations.weight
    ours = norm.SpectralNorm(nnx.Linear(5, 4, use_bias=False, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    ours.layer.kernel[...] = jnp.asarray(parts.original.detach().numpy().T)
    # PyTorch's matrix is (out, in): its u belongs to the outputs.
    ours.left[...] = jnp.asarray(parts[0]._v.numpy())
    ours.right[...] = jnp.asarray(parts[0]._u.numpy())
    x = draw((3, 5))
    params, state, apply = loop.bind(ours)

    @partial(jax.jit, static_argnums=2)
    def gradient(params, state, train):
        def squares(params):
            y, after = apply(params, state, x, train=train)
            return jnp.square(y).sum(), (y, after)

        return jax.grad(squares, has_aux=True)(params)

    for train in (True, True, True, False):
        linear.train(train)
        linear.zero_grad()
        with torch.no_grad():  # as an optimizer would: the vectors have to follow
            parts.original += 0.3 * torch.tensor(draw((4, 5), seed=5))
        params["layer"]["kernel"] = jnp.asarray(parts.original.detach().numpy().T)
        out = linear(torch.tensor(x))
        out.square().sum().backward()
        of_params, (y, state) = gradient(params, state, train)
        near(y, out.detach().numpy())
        near(of_params["layer"]["kernel"], parts.original.grad.numpy().T)
        near(state["left"], parts[0]._v.numpy())
        near(state["right"], parts[0]._u.numpy())


# Properties


@jax.jit
def pull_back(x, g):
    y, pull = jax.vjp(lambda x: norm.batch_norm(x, epsilon=0.0)[0], x)
    return y, pull(g)[0]


@settings(deadline=None, max_examples=20)
@given(st.floats(0.25, 8.0), st.floats(-8.0, 8.0), st.integers(0, 2**16))
def test_what_a_scale_and_a_shift_before_it_do(factor, shift, seed):
    """Nothing; and the gradient shrinks by the factor."""
    x, g = draw((6, 3), seed=seed), draw((6, 3), seed=seed + 1)

    y, gradient = pull_back(x, g)
    moved, there = pull_back(np.float32(factor) * x + np.float32(shift), g)
    # float32: |x| up to some tens against deviations of about 2 / 4
    np.testing.assert_allclose(moved, y, atol=1e-3)
    np.testing.assert_allclose(there * factor, gradient, atol=1e-2)
    # So the gradient is orthogonal to both directions.
    np.testing.assert_allclose(gradient.sum(0), 0, atol=1e-3)
    np.testing.assert_allclose((gradient * y).sum(0), 0, atol=1e-3)


def test_the_gradient_of_weights_before_batch_norm_is_orthogonal_to_them():
    x, w, g = draw((8, 3)), draw((3, 4), seed=1), draw((8, 4), seed=2)

    def loss(w):
        return (norm.batch_norm(x @ w, epsilon=0.0)[0] * g).sum()

    gradient = jax.grad(loss)(jnp.asarray(w))
    lengths = np.linalg.norm(w, axis=0) * np.linalg.norm(gradient, axis=0)
    np.testing.assert_array_less(np.abs((gradient * w).sum(0)), 1e-4 * lengths)


def test_spectral_norm_bounds_the_stretch():
    kernel = draw((3, 2, 5, 4))
    vectors = norm.singular_vectors(jax.random.key(0), kernel, num_steps=100)
    scaled, moved = norm.spectral_norm(kernel, vectors)
    top = np.linalg.svd(np.asarray(scaled).reshape(-1, 4), compute_uv=False)[0]
    assert abs(top - 1) < 1e-5
    np.testing.assert_allclose(np.linalg.norm(moved.left), 1, rtol=1e-6)
    same, kept = norm.spectral_norm(kernel, vectors, num_steps=0)
    np.testing.assert_array_equal(kept.left, vectors.left)
    np.testing.assert_allclose(same, scaled, rtol=1e-5)


# Transformations


def test_jit_equals_eager_and_compiles_once():
    x, where = jnp.asarray(draw()), np.arange(4) < 3
    names, traces = [*KINDS], []

    def all_kinds(x, epsilon):
        traces.append(1)
        return [KINDS[name][0](x, epsilon=epsilon, where=where) for name in names]

    jitted = jax.jit(all_kinds)
    for ours, eager in zip(jitted(x, 1e-5), all_kinds(x, 1e-5), strict=True):
        # float32: XLA fuses, and so rounds, otherwise
        np.testing.assert_allclose(ours, eager, atol=1e-5)
    before = len(traces)
    jitted(x + 1, 1e-3)
    assert len(traces) == before


def test_vmap_equals_a_loop():
    x = jnp.asarray(draw((3, *SHAPE)))

    def all_kinds(x):
        outputs = [function(x) for function, _ in KINDS.values()]
        slope = jax.grad(lambda x: sum((function(x) ** 3).sum() for function, _ in KINDS.values()))
        return [*outputs, slope(x)]

    one = jax.jit(all_kinds)
    each = [one(a) for a in x]
    for k, together in enumerate(jax.jit(jax.vmap(all_kinds))(x)):
        # float32: sums in another order
        np.testing.assert_allclose(together, jnp.stack([a[k] for a in each]), atol=1e-4)


# Modules


def modules():
    rngs = nnx.Rngs(0)
    return {
        "batch": norm.BatchNorm(6, rngs=rngs),
        "layer": norm.LayerNorm(6, rngs=rngs),
        "instance": norm.InstanceNorm(6, rngs=rngs),
        "group": norm.GroupNorm(6, num_groups=2, rngs=rngs),
        "switchable": norm.SwitchableNorm(6, rngs=rngs),
        "weight": norm.WeightNorm(nnx.Linear(6, 2, rngs=rngs)),
        "spectral": norm.SpectralNorm(convolution.Conv(6, 2, 3, rngs=rngs), rngs=rngs),
    }


HAVE_STATE = {"batch", "switchable", "spectral"}


@pytest.mark.parametrize(
    ("name", "graph"), [*((name, False) for name in modules()), ("batch", True), ("spectral", True)]
)
def test_modules_are_values(name, graph):
    x = jnp.asarray(draw())
    with nnx.set_graph_mode(graph):
        model = modules()[name]
        before = jax.tree.map(np.asarray, nnx.as_pure(nnx.state(model)))
        params, state, apply = loop.bind(model)
        jitted = jax.jit(apply, static_argnames="train")
        y, after = jitted(params, state, x, train=True)
        kept_y, kept = jitted(params, after, x, train=False)
        # The model that was bound is untouched.
        jax.tree.map(np.testing.assert_array_equal, before, nnx.as_pure(nnx.state(model)))
    leaves = jax.tree.leaves
    moved = any((a != b).any() for a, b in zip(leaves(state), leaves(after), strict=True))
    assert moved == (name in HAVE_STATE)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for a, b in zip(leaves(after), leaves(kept), strict=True):
        np.testing.assert_array_equal(a, b)
    assert y.shape == kept_y.shape
    assert np.isfinite(y).all()
    gradient = jax.jit(jax.grad(lambda p: (apply(p, state, x, train=True)[0] ** 2).sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in leaves(gradient))
    assert len(leaves(gradient)) >= 2


def test_modes_of_a_model():
    model = norm.BatchNorm(6, rngs=nnx.Rngs(0))
    x = jnp.asarray(draw())
    assert not model.use_running_average
    model.eval()
    # mean 0, variance 1, scale 1, bias 0: nothing happens before the first batch
    np.testing.assert_allclose(model(x), x / np.sqrt(1 + 1e-5), rtol=1e-5, atol=1e-6)
    model.train()
    near(model(x), closed_form(draw(), (0, 1, 2)))
    near(model.mean[...], 0.1 * x.mean((0, 1, 2)))


def test_no_gradient_reaches_the_running_statistics():
    x = jnp.asarray(draw())
    params, state, apply = loop.bind(norm.BatchNorm(6, rngs=nnx.Rngs(0)))

    def running(x):
        return sum(leaf.sum() for leaf in jax.tree.leaves(apply(params, state, x, train=True)[1]))

    np.testing.assert_array_equal(jax.grad(running)(x), 0)


def test_start_of_scale_and_shift():
    for name in ("batch", "layer", "instance", "group", "switchable"):
        model = modules()[name]
        np.testing.assert_array_equal(model.scale[...], np.ones(6))
        np.testing.assert_array_equal(model.bias[...], np.zeros(6))
    zero = norm.BatchNorm(6, scale_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(zero(jnp.asarray(draw())), 0)
    bare = norm.GroupNorm(6, num_groups=2, affine=False, rngs=nnx.Rngs(0))
    assert jax.tree.leaves(nnx.state(bare, nnx.Param)) == []
    halves = [closed_form(draw()[..., part], (1, 2, 3)) for part in (slice(0, 3), slice(3, 6))]
    near(bare(jnp.asarray(draw())), np.concatenate(halves, axis=3))


@pytest.mark.parametrize("layer", ["linear", "flax convolution", "convolution"])
def test_wrappers_around_layers(layer):
    rngs, x = nnx.Rngs(0), jnp.asarray(draw())
    inner = {
        "linear": lambda: nnx.Linear(6, 2, rngs=rngs),
        "flax convolution": lambda: nnx.Conv(6, 2, (3, 3), rngs=rngs),
        "convolution": lambda: convolution.Conv(6, 2, 3, padding=1, rngs=rngs),
    }[layer]()
    kernel = np.asarray(inner.kernel[...])
    with jax.numpy_rank_promotion("allow"):  # Flax adds its bias by promotion
        plain, wrapped = inner(x), norm.WeightNorm(inner)
        np.testing.assert_allclose(wrapped(x), plain, atol=1e-5)
        # Only the magnitude counts, not the length of the direction.
        wrapped.layer.kernel[...] = 3 * wrapped.layer.kernel[...]
        np.testing.assert_allclose(wrapped(x), plain, atol=1e-5)
        wrapped.layer.kernel[...] = jnp.asarray(kernel)

        spectral = norm.SpectralNorm(inner, num_steps=50, rngs=rngs)
        y = spectral(x)
        top = np.linalg.svd(kernel.reshape(-1, 2), compute_uv=False)[0]
        np.testing.assert_allclose(y, plain / top, atol=1e-4)  # the bias is zero
    np.testing.assert_array_equal(inner.kernel[...], kernel)


def test_half_precision_modules_keep_their_state():
    model = norm.BatchNorm(6, rngs=nnx.Rngs(0))
    assert model(jnp.asarray(draw(), jnp.bfloat16)).dtype == jnp.bfloat16
    assert model.mean[...].dtype == model.var[...].dtype == jnp.float32
    model.eval()
    assert model(jnp.asarray(draw(), jnp.bfloat16)).dtype == jnp.bfloat16


# Bad input


def batch(**options):
    return norm.BatchNorm(6, **options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: norm.batch_norm(np.ones(3)), ValueError, "x must have at least 2 axes"),
        (lambda: norm.batch_norm(np.ones((0, 3))), ValueError, "x must not be empty"),
        (lambda: norm.batch_norm(cast(Any, "x")), TypeError, "x must be a numeric array"),
        (
            lambda: norm.batch_norm(np.ones((2, 6, 5, 5)), scale=np.ones(6)),
            ValueError,
            r"scale must have shape \(5,\).* seems to have its channels second",
        ),
        (
            lambda: batch()(jnp.ones((2, 6, 5, 5))),
            ValueError,
            r"features \(6,\) last, got shape \(2, 6, 5, 5\); .* channels second",
        ),
        (lambda: batch()(jnp.ones((1, 6))), ValueError, "two values or more of each feature"),
        (lambda: batch(decay=1.5), ValueError, r"decay must be in \[0, 1\], got 1.5"),
        (lambda: batch(epsilon=-1.0), ValueError, "epsilon must not be negative"),
        (lambda: norm.BatchNorm(0, rngs=nnx.Rngs(0)), ValueError, "num_features must be at least"),
        (
            lambda: norm.LayerNorm(cast(Any, 2.0), rngs=nnx.Rngs(0)),
            TypeError,
            "num_features must be an int",
        ),
        (
            lambda: norm.batch_norm(draw(), where=np.ones(4)),
            TypeError,
            "where must be a Boolean array, got dtype float",
        ),
        (
            lambda: norm.batch_norm(draw(), where=np.ones(3, bool)),
            ValueError,
            r"where must have the leading axes of x, of shape \(4, 3, 5, 6\), got shape \(3,\)",
        ),
        (
            lambda: norm.batch_norm_gradient(draw(), draw((4, 6))),
            ValueError,
            "x and gradient must have one shape",
        ),
        (lambda: norm.normalize(draw(), np.ones(5), np.ones(6)), ValueError, "mean must have sha"),
        (lambda: norm.layer_norm(draw(), num_axes=0), ValueError, "num_axes must be at least 1"),
        (lambda: norm.instance_norm(np.ones((2, 3))), ValueError, "x must have at least 3 axes"),
        (
            lambda: norm.group_norm(draw(), num_groups=4),
            ValueError,
            "num_groups must divide the number of features, 6, got 4",
        ),
        (
            lambda: norm.switchable_norm(draw(), np.zeros(2), np.zeros(3)),
            ValueError,
            r"mean_logits must have shape \(3,\), got \(2,\)",
        ),
        (lambda: norm.weight_norm(np.ones(3), np.ones(3)), ValueError, "direction must have at l"),
        (
            lambda: norm.spectral_norm(
                np.ones((3, 2)), norm.SingularVectors(jnp.ones(2), jnp.ones(2))
            ),
            ValueError,
            r"vectors.left must have shape \(3,\), got \(2,\)",
        ),
        (lambda: norm.WeightNorm(nnx.Dropout(0.5)), TypeError, "layer must have a kernel, got Dro"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_what_cannot_be_normalized_stays_nan():
    """Failure is data: nothing is clipped."""
    assert np.isnan(norm.weight_norm(np.zeros((3, 1)), np.ones(1))).all()
    vectors = norm.SingularVectors(jnp.ones(3) / 3**0.5, jnp.ones(1))
    assert np.isnan(norm.spectral_norm(np.zeros((3, 1)), vectors)[0]).all()
    assert np.isnan(norm.batch_norm(np.array([[1.0], [np.nan]]))[0]).all()
    # But a feature without variance becomes its bias.
    np.testing.assert_array_equal(
        norm.batch_norm(np.ones((3, 2)), bias=np.arange(1, 3))[0], [[1, 2]] * 3
    )


# The demo


def test_what_the_page_claims():
    result = demo.run(jax.random.key(0), quick=True)
    none, before, noisy = (result.probes[name] for name in demo.PROBED)
    medians = {
        name: [float(np.median(getattr(probe, name))) for probe in (none, before, noisy)]
        for name in ("smoothness", "turn", "drift", "shift")
    }
    # Over three seeds the first two ratios were 4 to 6; 2 leaves room.
    assert medians["smoothness"][0] > 2 * medians["smoothness"][1]
    assert medians["turn"][0] > 2 * medians["turn"][1]
    # Noise moves the inputs more than no normalization does, and the surface stays smooth.
    assert medians["drift"][2] > 3 * medians["drift"][0] > 30 * medians["drift"][1]
    assert medians["smoothness"][0] > 2 * medians["smoothness"][2]
    accuracy = {name: np.asarray(sweep.accuracy) for name, sweep in result.sweeps.items()}
    largest = {
        name: result.rates[values > demo.GOOD].max(initial=0) for name, values in accuracy.items()
    }
    # Over three seeds: 0.3 to 1 without normalization, 3 with it; sigmoid 1 to 3 against 10.
    assert min(largest["norm, ReLU"], largest["norm, noise, ReLU"]) > largest["ReLU"]
    assert largest["norm, sigmoid"] > max(largest["sigmoid"], largest["sigmoid, norm"])
    assert all(len(row) for rows in demo.tables(result).values() for row in rows)
    for sweep in result.sweeps.values():
        assert sweep.loss.shape == result.rates.shape
