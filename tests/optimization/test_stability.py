"""Clipping, projections, noise and skipped steps: closed forms, PyTorch and Optax."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos.optimization import stability as demo
from mlnotes_jax.optimization import adam, momentum, stability

RNG = np.random.default_rng(0)
GRADS = {
    "kernel": RNG.normal(size=(4, 3)).astype(np.float32),
    "bias": (RNG.normal(size=3).astype(np.float32), np.float32(-2.0)),
}
PARAMS = jax.tree.map(lambda g: np.float32(0.5) + g[::-1] if np.ndim(g) else g * 0, GRADS)
NORM = float(np.sqrt(sum((g.astype(float) ** 2).sum() for g in jax.tree.leaves(GRADS))))


def leaves(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def close(tree, expected, rtol=1e-6):
    # a handful of float32 roundings
    np.testing.assert_allclose(leaves(tree), leaves(expected), rtol=rtol, atol=1e-7)


# --- The norm -------------------------------------------------------------------------------------


def test_global_norm():
    assert float(stability.global_norm(GRADS)) == pytest.approx(NORM, rel=1e-6)
    assert stability.global_norm({}) == 0
    assert stability.global_norm([jnp.zeros((0, 3)), jnp.zeros(2)]) == 0
    assert float(stability.global_norm([np.arange(3, 5)])) == 5  # integers are numbers


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-19, 1.0, 1e19, 1e25, 1e37])
def test_global_norm_does_not_overflow(scale):
    scale = np.float32(scale)
    tree = jax.tree.map(lambda g: np.asarray(g * scale, np.float32), GRADS)
    exact = np.sqrt((leaves(tree).astype(float) ** 2).sum())
    assert float(stability.global_norm(tree)) == pytest.approx(exact, rel=2e-6)
    if scale in (np.float32(1e-30), np.float32(1e25)):  # why it is needed
        assert float(optax.tree.norm(tree)) in (0, np.inf)
    # What other devices run.
    other = stability._norm_in_two_passes([jnp.asarray(g) for g in jax.tree.leaves(tree)])
    assert float(other) == pytest.approx(exact, rel=2e-6)


def test_global_norm_of_what_is_not_finite():
    norm = partial(stability.global_norm)
    assert norm(jnp.array([1.0, jnp.inf])) == np.inf
    assert norm(jnp.array([1.0, -jnp.inf])) == np.inf
    assert np.isnan(norm([jnp.array([jnp.inf]), jnp.array([jnp.nan])]))
    assert norm(jnp.full(100, 2e38)) == np.inf  # the norm itself is 2e39


def test_global_norm_of_mixed_dtypes(x64):
    tree = [jnp.array([3.0], jnp.bfloat16), jnp.array([4.0], jnp.float32), jnp.array([12.0])]
    norm = stability.global_norm(tree)
    assert norm.dtype == "float64"
    assert norm == 13
    assert stability.global_norm(tree[:2]).dtype == "float32"
    fine = stability.global_norm([jnp.array([1.0, 1e-9])])
    assert float(fine) == float(np.sqrt(1 + 1e-18))


def test_slope_of_the_norm(x64):
    slope = jax.jit(jax.grad(stability.global_norm))
    for scale in (1.0, 1e200, 1e-200):
        x = np.asarray(leaves(GRADS), float) * scale
        unit = x / scale / np.linalg.norm(x / scale)
        np.testing.assert_allclose(slope(x), unit, rtol=1e-12)
    np.testing.assert_array_equal(slope(np.zeros(16)), 0)
    both = jax.jit(jax.grad(lambda x: jax.vmap(stability.global_norm)(x).sum()))
    np.testing.assert_allclose(both(np.array([[0.0, 0], [3, 4]])), [[0, 0], [0.6, 0.8]])


# --- Clipping by norm and by value ----------------------------------------------------------------

jitted_clip = jax.jit(stability.clip_by_global_norm)
jitted_clip_by_value = jax.jit(stability.clip_by_value)


def test_clip_by_global_norm_equals_torch(torch):
    tensors = [torch.nn.Parameter(torch.tensor(g)) for g in jax.tree.leaves(GRADS)]
    for limit in (0.1, NORM, 100.0):
        for tensor, g in zip(tensors, jax.tree.leaves(GRADS), strict=True):
            tensor.grad = torch.tensor(g)
        norm = torch.nn.utils.clip_grad_norm_(tensors, limit)
        ours, seen = jitted_clip(GRADS, limit, epsilon=1e-6)
        assert float(seen) == pytest.approx(float(norm), rel=1e-6)
        close(ours, [tensor.grad.numpy() for tensor in tensors])


@pytest.mark.parametrize("limit", [0.1, 3.0, 100.0])
def test_clipping_equals_optax(limit):
    pairs = [
        (jitted_clip, optax.clip_by_global_norm),
        (jitted_clip_by_value, optax.clip),
    ]
    for clip, peer in pairs:
        expected, _ = peer(limit).update(GRADS, optax.EmptyState())
        close(clip(GRADS, limit)[0], expected)


def test_clip_by_value_equals_torch(torch):
    tensors = [torch.nn.Parameter(torch.tensor(g)) for g in jax.tree.leaves(GRADS)]
    for tensor, g in zip(tensors, jax.tree.leaves(GRADS), strict=True):
        tensor.grad = torch.tensor(g)
    torch.nn.utils.clip_grad_value_(tensors, 0.7)
    ours, largest = stability.clip_by_value(GRADS, 0.7)
    np.testing.assert_array_equal(leaves(ours), leaves([t.grad.numpy() for t in tensors]))
    assert largest == abs(leaves(GRADS)).max()


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=6, max_size=6),
    st.floats(np.float32(1e-3), 1e4, width=32),
)
def test_clipping_keeps_the_direction(entries, limit):
    g = np.array(entries, np.float32)
    g[abs(g) < np.finfo(np.float32).tiny] = 0  # XLA flushes what is not normal
    clipped, norm = jitted_clip(g, limit)
    exact = np.linalg.norm(g.astype(float))
    assert float(norm) == pytest.approx(exact, rel=2e-6)
    if exact < limit * (1 - 1e-6):
        np.testing.assert_array_equal(clipped, g)  # bit for bit
    elif exact > limit * (1 + 1e-6):
        np.testing.assert_allclose(clipped, g * (limit / exact), rtol=1e-5, atol=1e-37)
        assert np.linalg.norm(np.asarray(clipped, float)) == pytest.approx(limit, rel=1e-5)


def test_clipping_by_value_turns_it():
    g = np.array([10.0, 0.1], np.float32)
    np.testing.assert_allclose(jitted_clip_by_value(g, 0.1)[0], [0.1, 0.1])  # along the diagonal
    by_norm, _ = jitted_clip(g, 0.1)
    assert by_norm[1] / by_norm[0] == pytest.approx(0.01, rel=1e-6)


def test_clipping_what_is_not_finite():
    """A norm that is not finite has no direction; what is clipped by value is told."""
    for bad in (np.nan, np.inf, -np.inf):
        clipped, norm = jitted_clip(np.array([1.0, bad], np.float32), 1.0)
        assert np.isnan(clipped).all()
        assert not np.isfinite(norm)
    huge, norm = jitted_clip(np.full(100, 2e38, np.float32), 1.0)
    assert np.isnan(huge).all()  # finite entries are not turned into zeros
    assert norm == np.inf
    clipped, largest = jitted_clip_by_value(np.array([1.0, -np.inf], np.float32), 2.0)
    assert (clipped.tolist(), float(largest)) == ([1.0, -2.0], np.inf)
    clipped, largest = jitted_clip_by_value(np.array([1.0, np.nan], np.float32), 0.5)
    assert clipped[0] == 0.5
    assert np.isnan(clipped[1])
    assert np.isnan(largest)
    # Gradients whose squares are too large for float32 are no trouble.
    clipped, _ = jitted_clip(np.array([3e30, 4e30], np.float32), 1.0)
    np.testing.assert_allclose(clipped, [0.6, 0.8], rtol=1e-6)


def test_an_infinite_limit_is_none():
    @jax.jit
    def all_ways(g, w):
        return (
            stability.clip_by_global_norm(g, np.inf)[0],
            stability.clip_by_value(g, np.inf)[0],
            stability.adaptive_clip(g, w, max_ratio=np.inf)[0],
            stability.project_max_norm(g, np.inf, axis=stability.unit_axes),
        )

    for same in all_ways(GRADS, PARAMS):
        np.testing.assert_array_equal(leaves(same), leaves(GRADS))


def test_narrow_gradients_are_scaled_in_float32():
    """A factor rounded to eight bits would leave the norm off by up to 0.4 %."""
    clipped, norm = jitted_clip(jnp.ones(64, jnp.bfloat16), 1.0)
    assert (clipped.dtype, norm.dtype) == ("bfloat16", "float32")
    assert norm == 8
    np.testing.assert_array_equal(np.asarray(clipped, np.float32), 0.125)


def test_slopes_of_clipping(x64):
    """Along one direction for all arguments, by central differences."""
    x = np.asarray(leaves(GRADS), float).reshape(4, 4)
    start = (x, np.cos(x), np.array([1.5, 0.8, 1.3]))
    way = tuple(RNG.normal(size=np.shape(a)) for a in start)

    def results(x, w, limits):
        by_norm, _ = stability.clip_by_global_norm(x, limits[0])
        by_unit, ratio = stability.adaptive_clip(x, w, max_ratio=limits[1])
        inside = stability.project_max_norm(x, limits[2], axis=1)
        return jnp.stack([(a**3).sum() for a in (by_norm, by_unit, inside)] + [ratio])

    both = jax.jit(
        lambda h: jax.jvp(
            lambda h: results(*(a + h * d for a, d in zip(start, way, strict=True))), (h,), (1.0,)
        )
    )
    slopes = both(0.0)[1]
    numeric = (both(1e-6)[0] - both(-1e-6)[0]) / 2e-6
    np.testing.assert_allclose(slopes, numeric, rtol=1e-7)  # round-off 1e-16 / 1e-6


# --- Adaptive clipping, max-norm ------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 4), (3, 3, 2, 6), (7,), ()])
def test_adaptive_clip_equals_optax(shape):
    g, w = RNG.normal(size=(2, *shape)).astype(np.float32)
    g, w = jnp.asarray(g), jnp.asarray(w * np.float32(0.5))
    with jax.numpy_rank_promotion("allow"):
        expected, _ = jax.jit(optax.adaptive_grad_clip(0.9).update)(g, optax.EmptyState(), w)
    ours, _ = jax.jit(partial(stability.adaptive_clip, max_ratio=0.9))(g, w)
    close(ours, expected)
    assert (np.asarray(ours) != g).any()


def test_adaptive_clip_by_hand():
    w = np.array([[3.0, 0.0, 1.0], [4.0, 0.0, 0.0]], np.float32)  # norms 5, 0, 1
    g = np.array([[0.0, 0.03, 0.3], [1.0, 0.04, 0.4]], np.float32)  # norms 1, 0.05, 0.5
    ours, ratio = stability.adaptive_clip(g, w, max_ratio=0.3, epsilon=0.1)
    # limits 1.5, 0.03, 0.3: the first stays
    np.testing.assert_allclose(ours, g * np.array([[1, 0.6, 0.6]]), rtol=1e-6)
    assert float(ratio) == pytest.approx(0.5)
    by_row, _ = jax.jit(partial(stability.adaptive_clip, axis=1))(g, w, max_ratio=0.1)
    sizes = [np.linalg.norm(x, axis=1) for x in (g, w)]
    factor = np.minimum(1, 0.1 * sizes[1] / sizes[0])
    np.testing.assert_allclose(by_row, g * factor[:, None], rtol=1e-6)


def test_a_function_chooses_the_units():
    axis = lambda leaf: 0 if leaf.ndim == 2 else None  # noqa: E731
    ones = {"k": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}
    clipped, _ = stability.adaptive_clip(ones, ones, max_ratio=0.5, axis=axis)
    np.testing.assert_allclose(clipped["k"], 0.5)
    np.testing.assert_array_equal(clipped["b"], 1)
    small = stability.project_max_norm(ones, 0.1, axis=axis)
    np.testing.assert_allclose(np.linalg.norm(small["k"], axis=0), 0.1, rtol=1e-6)
    np.testing.assert_array_equal(small["b"], 1)
    shapes = [(3, 3, 8, 16), (8, 16), (16,), ()]
    assert [stability.unit_axes(np.zeros(s)) for s in shapes] == [(0, 1, 2), (0,), (0,), ()]


@pytest.mark.parametrize(
    ("shape", "axis"), [((6, 4), 0), ((6, 4), 1), ((6, 4), -2), ((3, 3, 2, 5), (0, 1, 2))]
)
def test_max_norm_takes_the_axis_of_a_unit(shape, axis):
    w = RNG.normal(size=shape).astype(np.float32)
    project = jax.jit(partial(stability.project_max_norm, axis=axis))
    ours = np.asarray(project(w, 1.5))
    norms = np.sqrt((w.astype(float) ** 2).sum(axis=axis, keepdims=True))
    assert norms.size == (4 if axis in (0, -2) else 6 if axis == 1 else 5)
    assert norms.max() > 1.5
    np.testing.assert_allclose(ours, w * np.minimum(1, 1.5 / norms), rtol=2e-6)
    # A unit within the ball is left as it is, bit for bit.
    np.testing.assert_array_equal(project(ours, 1.5 * (1 + 1e-6)), ours)


def test_max_norm_equals_torch(torch):
    w = RNG.normal(size=(6, 4)).astype(np.float32)
    for axis in (0, 1):
        expected = torch.renorm(torch.tensor(w), 2, 1 - axis, 1.2)  # it names the axis of units
        ours = jax.jit(partial(stability.project_max_norm, axis=axis))(w, 1.2)
        close(ours, expected.numpy(), rtol=1e-5)  # torch adds 1e-7 to the norm


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.floats(0.1, 3.0))
def test_it_is_the_nearest_point_of_the_ball(seed, limit):
    """The obtuse angle: (x - Px) . (z - Px) <= 0 for every z in the ball, and only then nearest."""
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=(2, 4, 3)) * rng.uniform(0.1, 3)
    z = z * np.minimum(1, limit / np.linalg.norm(z, axis=0))
    p = np.asarray(stability.project_max_norm(x.astype(np.float32), limit, axis=0), float)
    assert (np.linalg.norm(p, axis=0) <= limit * (1 + 1e-6)).all()
    assert (((x - p) * (z - p)).sum(axis=0) <= 1e-5 * (1 + (x * x).sum(axis=0))).all()


def test_the_constraint_holds_along_a_walk():
    """Gradients pull outwards; norms stay at the limit, and the rest of the tree walks on."""
    axis = lambda leaf: 0 if leaf.ndim == 2 else None  # noqa: E731
    rule = optax.chain(momentum.sgd(0.5), stability.max_norm_constraint(2.0, axis=axis))
    params = {"k": jnp.asarray(GRADS["kernel"]), "b": jnp.zeros(3)}

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            slope = jax.tree.map(lambda w: -w - 1, params)
            update, state = rule.update(slope, state, params)
            params = optax.apply_updates(params, update)
            return (params, state), jnp.linalg.norm(params["k"], axis=0)

        return jax.lax.scan(step, (params, rule.init(params)), None, length=30)

    (last, _), norms = run(params)
    assert (norms <= 2 * (1 + 1e-6)).all()
    np.testing.assert_allclose(norms[-1], 2, rtol=1e-5)
    assert (last["b"] > 1e4).all()


# --- As transformations ---------------------------------------------------------------------------


def test_states_tell_what_was_seen():
    largest = abs(leaves(GRADS)).max()
    ratio = stability.adaptive_clip(GRADS, PARAMS)[1]
    rules = {
        NORM: stability.global_norm_clipping(NORM),
        largest: stability.value_clipping(largest),
        float(ratio): stability.adaptive_clipping(ratio),
    }
    for limit, rule in rules.items():
        state, update = rule.init(PARAMS), jax.jit(rule.update)
        assert (int(state.count), int(state.num_clipped), float(state.seen)) == (0, 0, 0)
        clipped = []
        for k in (0.01, 10.0, 0.02):
            grads = jax.tree.map(lambda g, k=k: np.float32(k) * g, GRADS)
            _, state = update(grads, state, PARAMS)
            assert float(state.seen) == pytest.approx(k * limit, rel=1e-6)
            clipped.append(int(state.num_clipped))
        assert clipped == [0, 1, 1]
        assert state.count == 3


def test_a_nan_counts_as_clipped():
    rule = stability.global_norm_clipping(1.0)
    _, state = rule.update(jnp.array([jnp.nan]), rule.init(jnp.zeros(1)))
    assert state.num_clipped == 1
    assert np.isnan(state.seen)


def test_batched_limits_in_a_chain():
    """One program for all limits, as the demo has it; infinite is none."""

    @partial(chex.assert_max_traces, n=1)
    def end(limit):
        rule = optax.chain(stability.global_norm_clipping(limit), momentum.sgd(0.1))
        params = jnp.array([3.0, 4.0])
        update, state = rule.update(params, rule.init(params), params)
        return update, state[0]

    limits = jnp.array([1.0, 4.9, jnp.inf])
    updates, states = jax.jit(jax.vmap(end))(limits)
    np.testing.assert_allclose(
        -updates, 0.1 * np.minimum(1, limits / 5)[:, None] * np.array([[3, 4]]), rtol=1e-6
    )
    assert states.num_clipped.tolist() == [1, 1, 0]
    assert states.seen.tolist() == [5, 5, 5]
    injected = optax.inject_hyperparams(stability.global_norm_clipping)(max_norm=1.0)
    state = injected.init(jnp.zeros(2))
    state.hyperparams["max_norm"] = jnp.array(2.5)
    clipped, _ = injected.update(jnp.array([3.0, 4.0]), state)
    np.testing.assert_allclose(clipped, [1.5, 2.0], rtol=1e-6)


# --- Noise ----------------------------------------------------------------------------------------


def test_noise_variance():
    t = np.arange(10)
    np.testing.assert_allclose(
        stability.noise_variance(t, eta=0.3, gamma=0.55), 0.3 / (1 + t) ** 0.55, rtol=1e-6
    )


def test_noise_has_its_variance():
    """20000 draws: the standard error of a variance is 1 % of it; five of them."""
    rule = stability.gradient_noise(jax.random.key(1), eta=0.3, gamma=0.55)
    peer = optax.add_noise(eta=0.3, gamma=0.55, key=jax.random.key(1))
    zeros = {"a": jnp.zeros(20_000), "b": jnp.zeros(20_000)}
    state, theirs = rule.init(zeros), peer.init(zeros)
    draws = []
    for t in range(3):
        noise, state = rule.update(zeros, state)
        with jax.numpy_dtype_promotion("standard"):
            other, theirs = peer.update(zeros, theirs)
        expected = 0.3 / (1 + t) ** 0.55
        for leaf in jax.tree.leaves(noise):
            assert float(leaf.var()) == pytest.approx(expected, rel=0.05)
            assert abs(float(leaf.mean())) < 5 * (expected / 20_000) ** 0.5
            draws.append(leaf / expected**0.5)
        assert float(other["a"].var()) == pytest.approx(expected, rel=0.05)
    # Leaves and steps are independent: correlations of a standard error of 0.007.
    correlations = np.corrcoef(np.array(draws)) - np.eye(6)
    assert abs(correlations).max() < 0.035


def test_noise_follows_the_key():
    g = {"a": np.ones(3, np.float32), "b": jnp.ones((2, 2), jnp.bfloat16)}

    @jax.jit
    @jax.vmap
    def second(key):
        rule = stability.gradient_noise(key)
        _, state = rule.update(g, rule.init(g))
        return rule.update(g, state)[0], stability.add_noise(key, g, variance=0.0)

    keys = jax.random.split(jax.random.key(2), 3)
    noisy, quiet = second(keys)
    again, _ = second(keys[jnp.array([1, 1, 0])])
    np.testing.assert_array_equal(noisy["a"][1], again["a"][0])
    np.testing.assert_array_equal(again["a"][0], again["a"][1])
    assert len(np.unique(noisy["a"])) == 9
    assert noisy["b"].dtype == "bfloat16"
    for name in ("a", "b"):
        np.testing.assert_array_equal(np.asarray(quiet[name], np.float32), 1)


# --- Steps left out -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "inner"),
    [(0, momentum.sgd(0.1)), (2, momentum.sgd(0.1)), (5, momentum.heavy_ball(0.1))],
)
def test_skipping_equals_optax(limit, inner):
    rule, peer = (
        stability.skip_non_finite(inner, max_in_a_row=limit),
        optax.apply_if_finite(inner, limit),
    )
    update, their_update = jax.jit(rule.update), jax.jit(peer.update)
    params, skipped = jnp.zeros(2), 0
    state, theirs = rule.init(params), peer.init(params)
    for slope in [1.0, np.nan, 2.0, np.inf, -np.inf, np.nan, 1.0]:
        g = np.array([1.0, slope], np.float32)
        step, state = update(g, state)
        expected, theirs = their_update(g, theirs)
        np.testing.assert_array_equal(step, expected)
        chex.assert_trees_all_equal(state.inner, theirs.inner_state)
        assert state.in_a_row == theirs.notfinite_count
        skipped += bool(~np.isfinite(slope)) and int(theirs.notfinite_count) <= limit
        assert state.num_skipped == skipped
    assert state.count == 7


def test_it_gives_up_aloud():
    """After two in a row the third goes through, and NaN arrives in the parameters."""
    rule = stability.skip_non_finite(momentum.sgd(0.1), max_in_a_row=2)
    params = jnp.zeros(1)
    state, seen = rule.init(params), []
    for _ in range(4):
        update, state = rule.update(jnp.array([jnp.nan]), state, params)
        seen.append(bool(np.isnan(update[0])))
    assert seen == [False, False, True, True]
    assert (int(state.num_skipped), int(state.in_a_row)) == (2, 4)
    patient = stability.skip_non_finite(momentum.sgd(0.1), max_in_a_row=None)
    state = patient.init(params)._replace(in_a_row=jnp.int32(10**6))
    update, state = patient.update(jnp.array([jnp.nan]), state, params)
    assert (float(update[0]), int(state.num_skipped)) == (0, 1)


def test_a_skipped_step_is_as_if_it_had_not_been():
    good = [jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])]
    bad = jnp.array([jnp.inf, 1.0])
    rule, plain = stability.skip_non_finite(adam.adam(0.1)), adam.adam(0.1)
    state, alone = rule.init(bad), plain.init(bad)
    for g in (good[0], bad, good[1]):
        update, state = rule.update(g, state)
    for g in good:
        expected, alone = plain.update(g, alone)
    chex.assert_trees_all_equal(state.inner, alone)
    np.testing.assert_array_equal(update, expected)


def test_a_step_that_overflows_is_skipped():
    """The gradient is finite; what the rule makes of it is not. Optax lets it through."""
    rule = stability.skip_non_finite(momentum.sgd(1e10))
    g = jnp.array([1e30])
    update, state = rule.update(g, rule.init(g))
    assert (float(update[0]), int(state.num_skipped)) == (0, 1)
    peer = optax.apply_if_finite(momentum.sgd(1e10), 5)
    assert np.isinf(peer.update(g, peer.init(g))[0][0])


def test_skipping_passes_arguments_on_and_keeps_keys():
    seen = []

    def update(updates, state, params=None, *, value, **extra):
        seen.append(value)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    noise = stability.gradient_noise(jax.random.key(0))
    rule = stability.skip_non_finite(optax.chain(noise, inner))
    g = jnp.array([1.0])
    state = rule.init(g)
    _, state = rule.update(jnp.array([jnp.nan]), state, g, value=3.0)
    assert seen == [3.0]
    assert state.inner[0].count == 0
    _, state = rule.update(g, state, g, value=4.0)
    assert state.inner[0].count == 1


# --- Bad input ------------------------------------------------------------------------------------

ONES = {"a": jnp.ones(2)}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: stability.global_norm({"a": "x"}), TypeError, "tree['a'] must be a numeric array"),
        (lambda: stability.global_norm(np.ones(2) * 1j), TypeError, "tree must be a real array"),
        (
            lambda: stability.clip_by_global_norm(ONES, 0.0),
            ValueError,
            "max_norm must be positive, got 0.0",
        ),
        (
            lambda: stability.clip_by_global_norm(ONES, np.nan),
            ValueError,
            "max_norm must be positive, got nan",
        ),
        (
            lambda: stability.clip_by_global_norm(ONES, 1.0, epsilon=-1.0),
            ValueError,
            "epsilon must not be negative",
        ),
        (
            lambda: stability.clip_by_global_norm({"a": jnp.arange(2)}, 1.0),
            TypeError,
            "updates['a'] must be a floating-point array, got dtype int32",
        ),
        (lambda: stability.clip_by_value(ONES, -1.0), ValueError, "max_value must be positive"),
        (lambda: stability.value_clipping("x"), TypeError, "max_value must be a numeric array"),
        (
            lambda: stability.global_norm_clipping(np.ones(2)),
            ValueError,
            "max_norm must be 0-D, got shape (2,)",
        ),
        (
            lambda: stability.adaptive_clip(ONES, {"b": jnp.ones(2)}),
            ValueError,
            "updates must have the structure of params",
        ),
        (
            lambda: stability.adaptive_clip(ONES, ONES, max_ratio=0.0),
            ValueError,
            "max_ratio must be positive",
        ),
        (
            lambda: stability.adaptive_clipping().update(
                ONES, stability.adaptive_clipping().init(ONES)
            ),
            ValueError,
            "params must be given to update: adaptive_clipping compares gradients with them",
        ),
        (
            lambda: stability.project_max_norm(ONES, 1.0, axis=1),
            ValueError,
            "axis must be axes of params['a'], of shape (2,), got 1",
        ),
        (
            lambda: stability.project_max_norm({"a": 3}, 1.0, axis=0),
            TypeError,
            "params['a'] must be a floating-point array, got int",
        ),
        (
            lambda: stability.max_norm_constraint(1.0, axis=0).update(ONES, optax.EmptyState()),
            ValueError,
            "params must be given to update",
        ),
        (
            lambda: stability.gradient_noise(jax.random.key(0), eta=-1.0),
            ValueError,
            "eta must not be negative",
        ),
        (lambda: stability.gradient_noise(0), TypeError, "key must be a jax.random.key, got int"),
        (
            lambda: stability.add_noise(jax.random.split(jax.random.key(0), 2), ONES, variance=1.0),
            ValueError,
            "key must be one key, got shape (2,)",
        ),
        (
            lambda: stability.noise_variance(-1),
            ValueError,
            "step must not be negative",
        ),
        (
            lambda: stability.skip_non_finite(momentum.sgd),
            TypeError,
            "inner must be an optax.GradientTransformation, got function",
        ),
        (
            lambda: stability.skip_non_finite(momentum.sgd(0.1), max_in_a_row=-1),
            ValueError,
            "max_in_a_row must be in [0,",
        ),
        (
            lambda: stability.skip_non_finite(momentum.sgd(0.1), max_in_a_row=1.5),
            TypeError,
            "max_in_a_row must be an integer array",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_empty_trees():
    assert stability.clip_by_global_norm({}, 1.0) == ({}, 0)
    assert stability.clip_by_value({}, 1.0) == ({}, 0)
    assert stability.adaptive_clip({}, {}) == ({}, 0)
    assert stability.project_max_norm({}, 1.0, axis=0) == {}
    rule = stability.skip_non_finite(stability.gradient_noise(jax.random.key(0)))
    update, state = rule.update({}, rule.init({}))
    assert (update, int(state.num_skipped)) == ({}, 0)


# --- The demo -------------------------------------------------------------------------------------


def test_slope_of_the_cliff(x64):
    w = np.array([0.9, 0.999, 1.0, 1.001, 1.01])
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(demo.cliff_loss)))(w)
    np.testing.assert_allclose(value, 0.5 * (w**1000 - 1) ** 2, rtol=1e-11)
    np.testing.assert_allclose(slope, (w**1000 - 1) * 1000 * w**999, rtol=1e-11)


def test_demo_holds_what_the_page_says():
    result = demo.run(jax.random.key(0), quick=True)
    cliff, reader = result.cliff, result.reader
    # Without clipping one step leaves the valley for good; with it, no step is longer than that.
    assert abs(np.diff(cliff.free)).max() > 1
    assert cliff.free_loss[-1] == 0.5
    assert cliff.free[-1] == cliff.free[-20]
    longest = cliff.learning_rate * cliff.max_norm
    assert abs(np.diff(cliff.clipped)).max() < longest * 1.01 + 1.2e-7  # float32 near 1
    assert abs(cliff.clipped[-20:] - 1).max() < 1.01 * longest + 1.2e-7
    assert cliff.norms.max() > 100 * cliff.max_norm
    # The network learns at higher rates with clipping.
    learned = np.nan_to_num(reader.accuracy) > demo.LEARNED
    highest = {
        name: reader.rates[row].max() for name, row in zip(reader.methods, learned, strict=True)
    }
    assert highest["by norm"] >= 4 * highest["no clipping"]
    assert (reader.norm_max[0] > 10 * demo.METHODS["by norm"]["norm"]).all()
