"""Dropout against closed forms over all masks, PyTorch and Flax."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from mlnotes_jax.demos.nets import dropout as demo
from mlnotes_jax.nets import dropout
from mlnotes_jax.nets.dropout import Dropout
from mlnotes_jax.training import loop

TRAIN = {"inverted": dropout.dropout, "vanilla": dropout.vanilla_dropout}


def evaluation(kind, x, rate):
    return x if kind == "inverted" else dropout.vanilla_evaluate(x, rate=rate)


def within_four_errors(draws, formula):
    # A standard error of the measured mean itself: 4 of them are passed once in 16 000 times.
    draws = np.asarray(draws, np.float64)
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert (error > 0).all()
    np.testing.assert_array_less(abs(draws.mean(axis=0) - np.asarray(formula)), 4 * error)


# Mean and variance


@pytest.mark.parametrize("kind", ["inverted", "vanilla"])
@pytest.mark.parametrize("rate", [0.2, 0.6, 0.9])
def test_mean_and_variance_over_masks(kind, rate):
    x = jnp.array([1.0, -2.0, 0.25])
    keys = jax.random.split(jax.random.key(1), 10_000)
    draws = jax.jit(jax.vmap(lambda key, r: TRAIN[kind](key, x, rate=r), (0, None)))(keys, rate)
    mean = evaluation(kind, x, rate)
    within_four_errors(draws, mean)
    within_four_errors((draws - mean[None]) ** 2, dropout.variance(x, rate=rate, kind=kind))


def test_values_are_zero_or_scaled():
    x = jnp.arange(1.0, 1001.0)
    kept = dropout.mask(jax.random.key(0), x.shape, rate=0.2)
    inverted = dropout.dropout(jax.random.key(0), x, rate=0.2)
    np.testing.assert_allclose(inverted, np.where(kept, x / 0.8, 0), rtol=1e-6)  # a division
    vanilla = dropout.vanilla_dropout(jax.random.key(0), x, rate=0.2)
    np.testing.assert_array_equal(vanilla, np.where(kept, x, 0))
    np.testing.assert_allclose(dropout.vanilla_evaluate(x, rate=0.2), 0.8 * x, rtol=1e-6)


def test_rate_drops():
    kept = dropout.mask(jax.random.key(3), (40_000,), rate=0.1)
    within_four_errors(kept, 0.9)


def test_rate_zero_keeps_everything():
    x = jnp.array([1.0, -3.0])
    for f in TRAIN.values():
        np.testing.assert_array_equal(f(jax.random.key(0), x, rate=0.0), x)
    np.testing.assert_array_equal(dropout.variance(x, rate=0), [0, 0])


def test_dropped_nan_is_gone_and_kept_nan_stays():
    x = jnp.full(50, jnp.nan)
    y = dropout.dropout(jax.random.key(0), x, rate=0.5)
    kept = dropout.mask(jax.random.key(0), x.shape, rate=0.5)
    np.testing.assert_array_equal(np.isnan(y), kept)


def test_shared_axes_drop_whole_channels():
    x = jnp.ones((6, 4, 4, 8))
    y = dropout.dropout(jax.random.key(0), x, rate=0.5, shared_axes=(1, 2))
    assert (y == y[:, :1, :1]).all()
    assert 0 < (y[:, 0, 0] == 0).sum() < 48
    layer = Dropout(0.5, shared_axes=(1, -2), rngs=nnx.Rngs(0))
    drawn = layer(x)
    assert (drawn == drawn[:, :1, :1]).all()


# The L2 penalty


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.floats(-2, 2, width=32), min_size=4, max_size=4),
    st.sampled_from([0.0, 0.1, 0.5, 0.8]),
)
def test_penalty_is_the_mean_over_all_masks(coef, rate):
    w = np.array(coef)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 4)), rng.normal(size=6)
    masks = np.array(list(itertools.product([0, 1], repeat=4)))
    chance = np.prod(np.where(masks, 1 - rate, rate), axis=1)
    averaged = np.mean(
        [chance @ (t - (masks * row / (1 - rate)) @ w) ** 2 for row, t in zip(x, y, strict=True)]
    )
    ours = dropout.linear_penalty(x.astype(np.float32), w.astype(np.float32), rate=rate)
    # float32: sums of 24 squares
    np.testing.assert_allclose(np.mean((y - x @ w) ** 2) + ours, averaged, rtol=1e-5)


def test_penalty_gives_ridge_regression():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 3)).astype(np.float32), rng.normal(size=20).astype(np.float32)
    x /= np.sqrt((x**2).mean(axis=0))  # mean square 1
    r = 0.25
    ridge = np.linalg.solve(x.T @ x / 20 + r / (1 - r) * np.eye(3), x.T @ y / 20)

    def loss(w):
        return jnp.square(y - x @ w).mean() + dropout.linear_penalty(x, w, rate=r)

    # A gradient of terms of size 1, in float32
    np.testing.assert_allclose(
        jax.grad(loss)(jnp.asarray(ridge, jnp.float32)), np.zeros(3), atol=1e-5
    )
    assert abs(jax.grad(loss)(jnp.zeros(3))).max() > 0.1


# Peers


@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_gradient_equals_torch_with_the_same_mask(torch, rate):
    # PyTorch draws its own mask: read it from its output, and apply ours.
    torch.manual_seed(0)
    x = torch.linspace(0.5, 2, 40, requires_grad=True)
    y = torch.nn.functional.dropout(x, rate)
    (y**2).sum().backward()
    kept = jnp.asarray((y != 0).numpy())
    ours, grad = jax.value_and_grad(
        lambda v: (jnp.where(kept, v / (1 - rate), 0.0) ** 2).sum()
    )(jnp.asarray(x.detach().numpy()))  # fmt: skip
    np.testing.assert_allclose(ours, (y**2).sum().item(), rtol=1e-5)
    np.testing.assert_allclose(grad, x.grad.numpy(), rtol=1e-5)
    mine = dropout.dropout(jax.random.key(0), jnp.asarray(x.detach().numpy()), rate=rate)
    values = np.unique(np.asarray(mine / x.detach().numpy()).round(4))
    np.testing.assert_allclose(values, np.unique((y / x).detach().numpy().round(4)))


def test_same_bits_as_flax():
    x, key = jnp.arange(1.0, 65.0), jax.random.key(7)
    theirs = nnx.Dropout(0.25)(x, rngs=key)
    # Both divide by 3/4, exactly representable; the quotients are rounded alike or by one ulp
    np.testing.assert_allclose(dropout.dropout(key, x, rate=0.25), theirs, rtol=1e-6)


# Transformations


def test_jit_vmap_and_no_recompilation():
    x = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def jitted(key, x, rate):
        return dropout.dropout(key, x, rate=rate)

    key = jax.random.key(0)
    for rate in (0.1, 0.5):
        np.testing.assert_allclose(
            jitted(key, x, rate), dropout.dropout(key, x, rate=rate), rtol=1e-6
        )
    keys, rates = jax.random.split(key, 3), jnp.array([0.0, 0.3, 0.6])
    batched = jax.vmap(lambda k, v, r: dropout.dropout(k, v, rate=r))(keys, x, rates)
    looped = [dropout.dropout(k, v, rate=r) for k, v, r in zip(keys, x, rates, strict=True)]
    np.testing.assert_allclose(batched, jnp.stack(looped), rtol=1e-6)


def test_gradients_against_finite_differences(x64):
    x = jnp.linspace(-1.0, 1.0, 6)

    def f(x):
        y = dropout.dropout(jax.random.key(0), x, rate=0.5)
        z = dropout.vanilla_dropout(jax.random.key(1), x, rate=0.25)
        return jnp.sin(y).sum() + jnp.square(z + dropout.vanilla_evaluate(x, rate=0.25)).sum()

    # Not by chex, which takes `stop_gradient` out
    check_grads(f, (x,), order=1, modes=["rev", "fwd"], atol=1e-6, rtol=1e-6)
    features = jnp.arange(12.0).reshape(4, 3)
    check_grads(
        lambda w: dropout.linear_penalty(features, w, rate=0.5), (x[:3],), order=2, atol=1e-6
    )
    # What the gradient is in closed form, so that a constant mask would be noticed
    kept = dropout.mask(jax.random.key(0), (6,), rate=0.5)
    grad = jax.grad(lambda x: dropout.dropout(jax.random.key(0), x, rate=0.5).sum())(x)
    np.testing.assert_array_equal(grad, np.where(kept, 2.0, 0.0))


def test_no_gradient_to_the_rate():
    grad = jax.grad(lambda r: dropout.dropout(jax.random.key(0), jnp.ones(9), rate=r).sum())(0.3)
    assert grad == 0


def test_impossible_traced_rate_is_not_silent():
    f = jax.jit(lambda r: dropout.dropout(jax.random.key(0), jnp.ones(5), rate=r))
    for rate in (1.0, 1.5, -0.1, np.nan):
        assert np.isnan(f(rate)).all()
    assert np.isfinite(f(0.0)).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtype_is_kept(dtype):
    x = jnp.ones((2, 3), dtype)
    for f in TRAIN.values():
        assert f(jax.random.key(0), x, rate=0.5).dtype == dtype
    assert dropout.vanilla_evaluate(x, rate=0.5).dtype == dtype
    assert dropout.variance(x, rate=0.5).dtype == dtype
    assert dropout.linear_penalty(x, x[0], rate=jnp.asarray(0.5, dtype)).dtype == dtype
    assert Dropout(0.5, rngs=nnx.Rngs(0))(x).dtype == dtype


# The layer


@pytest.mark.parametrize("kind", ["inverted", "vanilla"])
def test_layer_in_both_modes(kind):
    x = jnp.linspace(1.0, 2.0, 100)
    layer = Dropout(0.25, kind=kind, rngs=nnx.Rngs(0))
    one, two = layer(x), layer(x)
    assert (one != two).any()  # a new mask in every call
    layer.eval()
    np.testing.assert_array_equal(layer(x), evaluation(kind, x, 0.25))
    layer.train()
    assert (layer(x) == 0).any()


@pytest.mark.parametrize("rngs", [{"default": 0}, {"params": 0, "dropout": 1}])
def test_layer_is_reached_by_a_key(rngs):
    layer = Dropout(0.5, rngs=nnx.Rngs(**rngs))
    x = jnp.ones(64)

    def draw(seed):
        nnx.reseed(layer, dropout=jax.random.key(seed))
        return layer(x)

    first, other, again = draw(1), draw(2), draw(1)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_layer_as_a_value():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = Dropout(0.5, rngs=rngs), Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return jnp.stack([self.a(x), self.b(x)])

    params, state, apply = loop.bind(Two(nnx.Rngs(0)))
    traces = []

    @jax.jit
    def train(state, key):
        traces.append(1)
        return apply(params, state, jnp.ones(64), key=key, train=True)[0]

    one = train(state, jax.random.key(0))
    assert (one[0] != one[1]).any()  # two layers, two masks
    assert (one != train(state, jax.random.key(1))).any()
    np.testing.assert_array_equal(one, train(state, jax.random.key(0)))
    assert len(traces) == 1
    many = jax.vmap(lambda key: train(state, key))(jax.random.split(jax.random.key(2), 3))
    each = [train(state, key) for key in jax.random.split(jax.random.key(2), 3)]
    np.testing.assert_array_equal(many, jnp.stack(each))
    np.testing.assert_array_equal(apply(params, state, jnp.ones(4))[0], jnp.ones((2, 4)))


def test_layer_in_tree_mode():
    layer = Dropout(0.5, rngs=nnx.Rngs(0))
    again = nnx.merge(*nnx.split(layer, graph=False), copy=True)
    np.testing.assert_array_equal(again(jnp.ones(30)), layer(jnp.ones(30)))


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: dropout.dropout(k, 1.0, rate=1.0), ValueError, r"rate.*\[0, 1\), got 1"),
        (lambda k: dropout.dropout(k, 1.0, rate=-0.1), ValueError, r"rate.*got -0.1"),
        (lambda k: dropout.dropout(k, 1.0, rate=[0.1]), ValueError, "rate must be 0-D"),
        (lambda k: dropout.vanilla_evaluate(1.0, rate=np.nan), ValueError, "rate.*got nan"),
        (lambda k: dropout.dropout(0, 1.0, rate=0.5), TypeError, "key must come from"),
        (lambda k: dropout.mask(jax.random.split(k), (), rate=0.5), ValueError, "one key.*(2,)"),
        (lambda k: dropout.dropout(k, "x", rate=0.5), TypeError, "x must be a numeric"),
        (
            lambda k: dropout.dropout(k, jnp.ones(3), rate=0.5, shared_axes=(1,)),
            ValueError,
            r"shared_axes must be axes of x \(3,\), got 1",
        ),
        (lambda k: dropout.variance(1.0, rate=0.5, kind="both"), ValueError, "kind must be one of"),
        (
            lambda k: dropout.linear_penalty(jnp.ones((4, 3)), jnp.ones(4), rate=0.5),
            ValueError,
            r"one weight for each column of x, got \(4,\) for x \(4, 3\)",
        ),
        (
            lambda k: dropout.linear_penalty(jnp.ones((0, 3)), jnp.ones(3), rate=0.5),
            ValueError,
            "x must not be empty",
        ),
        (lambda k: Dropout(1.0, rngs=nnx.Rngs(0)), ValueError, r"rate.*\[0, 1\), got 1"),
        (lambda k: Dropout(jnp.array(0.5), rngs=nnx.Rngs(0)), TypeError, "Python number"),
        (lambda k: Dropout(0.5, kind="x", rngs=nnx.Rngs(0)), ValueError, "kind must be one of"),
        (lambda k: Dropout(0.5, rngs=nnx.Rngs(params=0)), ValueError, "`dropout` or `default`"),
        (lambda k: Dropout(0.5, rngs=0), TypeError, "rngs must be an nnx.Rngs, got int"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(jax.random.key(0))


# The demo


def test_demo_shows_what_the_page_says():
    result = demo.run(jax.random.key(0), quick=True)
    assert result.num_train == 200
    # Without dropout the pictures are learned by heart; a quarter dropped tests better.
    assert result.train_loss[0, -1] < 0.05 * result.test_loss[0, -1]
    assert result.test_loss[1, -1] < result.test_loss[0, -1]
    assert result.accuracy[1].mean() > result.accuracy[3].mean()  # three quarters are too much
    # The mean over masks: exact behind a linear layer (35 %: one draw of the error), else not.
    np.testing.assert_allclose(result.head_error, result.head_predicted, rtol=0.35)
    assert result.full_error[-1] > 1.5 * result.head_error[-1]
    assert demo.tables(result)
    with pytest.raises(ValueError, match="num_train must be in"):
        demo.run(jax.random.key(0), quick=True, num_train=10)
    with pytest.raises(ValueError, match="multiple of 20"):
        demo.run(jax.random.key(0), num_steps=30)
