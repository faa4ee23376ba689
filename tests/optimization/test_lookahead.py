"""Lookahead: the paper's loops, Optax's pairs, and its quadratic."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.optimization import averaging, lookahead, momentum

START = np.array([-1.2, 1.0, 0.5, -0.7])
NUM_STEPS = 200


def slope(x, np=jnp):
    """Gradient of sum (y - x^2)^2 - cos(3 x) / 3 over neighbours x, y: curved, with waves."""
    inner = x[1:] - x[:-1] ** 2
    zero = np.zeros_like(x[:1])
    valley = np.concatenate([-4 * x[:-1] * inner, zero]) + np.concatenate([zero, 2 * inner])
    return valley + np.sin(3 * x)


def walk(rule, start=START, num_steps=NUM_STEPS, gradient=slope):
    """Fast and slow weights after each step."""

    def step(carry, _):
        x, state = carry
        update, state = rule.update(gradient(x), state, x)
        x = optax.apply_updates(x, update)
        return (x, state), (x, lookahead.slow_weights(state, x))

    x = jnp.asarray(start)
    return jax.lax.scan(step, (x, rule.init(x)), length=num_steps)[1]


def paper(rate, lam, k, alpha, *, reset=False):
    """Algorithm 1 of the paper in NumPy: two loops, around the heavy ball."""
    phi, v = START.copy(), np.zeros(4)
    fast, slow = [], []
    for _ in range(NUM_STEPS // k):
        theta = phi.copy()
        if reset:
            v = np.zeros(4)
        for _ in range(k):
            v = lam * v + slope(theta, np)
            theta = theta - rate * v
            fast.append(theta)
            slow.append(phi)
        phi = phi + alpha * (theta - phi)
        fast[-1] = slow[-1] = phi  # the next period starts from there
    return np.array(fast), np.array(slow)


CASES = {
    "plain": (0.02, 0.0, 5, 0.5, "keep"),
    "momentum": (0.01, 0.9, 5, 0.5, "keep"),
    "reset": (0.01, 0.9, 8, 0.8, "reset"),
    "every step": (0.02, 0.5, 1, 0.3, "keep"),
}


@functools.cache
def all_walks():
    """All cases in one program, in double precision."""
    with jax.enable_x64(True):
        made = {
            name: lookahead.lookahead(
                momentum.heavy_ball(rate, momentum=lam),
                sync_period=k,
                slow_step_size=alpha,
                inner_state=kept,
            )
            for name, (rate, lam, k, alpha, kept) in CASES.items()
        }
        found = jax.jit(lambda: {name: walk(rule) for name, rule in made.items()})()
        return jax.tree.map(np.asarray, found)


def relative(ours, peer):
    return np.linalg.norm(ours - peer) / np.linalg.norm(peer)


# Peers


@pytest.mark.parametrize("name", CASES)
def test_equals_the_papers_loops(name):
    *options, kept = CASES[name]
    ours, peer = all_walks()[name], paper(*options, reset=kept == "reset")
    for mine, theirs in zip(ours, peer, strict=True):
        # 200 steps of double precision on a stable walk
        assert relative(mine, theirs) < 1e-12
    assert np.abs(peer[0][-1] - START).max() > 0.5  # it went somewhere


def test_equals_optax(x64):
    def theirs(rate, lam, k, alpha, kept):
        inner = optax.sgd(rate, momentum=lam)
        rule = optax.lookahead(inner, k, alpha, reset_state=kept == "reset")

        def step(carry, _):
            pair, state = carry
            updates, state = rule.update(slope(pair.fast), state, pair)
            pair = optax.apply_updates(pair, updates)
            return (pair, state), pair

        pair = optax.LookaheadParams.init_synced(jnp.asarray(START))
        return jax.lax.scan(step, (pair, rule.init(pair)), length=NUM_STEPS)[1]

    with jax.numpy_dtype_promotion("standard"):
        found = jax.jit(lambda: {name: theirs(*case) for name, case in CASES.items()})()
    for name, pair in found.items():
        fast, slow = all_walks()[name]
        assert relative(fast, np.asarray(pair.fast)) < 1e-10
        assert relative(slow, np.asarray(pair.slow)) < 1e-10


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 7), st.floats(0, 1))
def test_slow_weights_are_an_average_of_the_ends_of_periods(k, alpha):
    """phi_n = (1 - a)^n phi_0 + sum a (1 - a)^(n - j) theta_j, whatever the inner rule does."""
    rule = lookahead.lookahead(momentum.sgd(1.0), sync_period=k, slow_step_size=alpha)
    moves = np.random.default_rng(0).normal(size=(3 * k, 2)).astype(np.float32)
    params = jnp.zeros(2)
    state, ends = rule.init(params), []
    for t, move in enumerate(moves):
        if (t + 1) % k == 0:
            ends.append(np.asarray(params) + move)  # where the inner rule would have gone
        update, state = rule.update(jnp.asarray(-move), state, params)
        params = params + update
    share = alpha * (1 - alpha) ** np.arange(2, -1, -1)
    expected = (share[:, None] * np.array(ends)).sum(axis=0)
    # float32, some twenty steps of size 1
    np.testing.assert_allclose(lookahead.slow_weights(state, params), expected, atol=1e-5)
    np.testing.assert_allclose(params, expected, atol=1e-5)


# Ends of the range


def test_a_whole_slow_step_is_the_inner_rule(x64):
    inner = momentum.heavy_ball(0.02)
    whole = lookahead.lookahead(inner, slow_step_size=1.0)
    none = lookahead.lookahead(inner, slow_step_size=0.0)

    def plain(carry, _):
        x, state = carry
        update, state = inner.update(slope(x), state)
        return (x + update, state), x + update

    x = jnp.asarray(START)
    expected = jax.jit(lambda: jax.lax.scan(plain, (x, inner.init(x)), length=50)[1])()
    fast, slow = jax.jit(lambda: walk(whole, num_steps=50))()
    np.testing.assert_allclose(fast, expected, rtol=1e-12)
    np.testing.assert_allclose(slow[4::5], expected[4::5], rtol=1e-12)
    _, stuck = jax.jit(lambda: walk(none, num_steps=20))()
    np.testing.assert_array_equal(stuck, np.tile(START, (20, 1)))


# The quadratic


@pytest.mark.parametrize(("k", "alpha"), [(1, 0.5), (5, 0.5), (6, 0.8), (3, 1.0)])
def test_sync_factor_is_what_a_period_does(x64, k, alpha):
    curvature, rate = jnp.array([0.1, 1.0, 1.9, 2.1]), 1.0
    rule = lookahead.lookahead(momentum.sgd(rate), sync_period=k, slow_step_size=alpha)

    def bowl(x):
        return curvature * x

    _, slow = jax.jit(lambda: walk(rule, np.ones(4), 3 * k, bowl))()
    factor = lookahead.sync_factor(
        curvature, learning_rate=rate, sync_period=k, slow_step_size=alpha
    )
    by_hand = 1 - alpha + alpha * (1 - np.asarray(curvature)) ** k
    np.testing.assert_allclose(factor, by_hand, rtol=1e-13, atol=1e-15)
    for period in (1, 2, 3):
        np.testing.assert_allclose(slow[period * k - 1], by_hand**period, rtol=1e-11, atol=1e-14)


def settled(h, eta, v, k, alpha):
    """Variance of the slow weights, period after period, in NumPy."""
    slow = 0.0
    for _ in range(4000):
        # theta = a^k phi + noise; phi' = (1 - alpha) phi + alpha theta
        a = 1 - eta * h
        noise = eta**2 * v * (a ** (2 * np.arange(k))).sum()
        slow = (1 - alpha + alpha * a**k) ** 2 * slow + alpha**2 * noise
    return slow


@pytest.mark.parametrize(
    ("h", "eta", "k", "alpha"),
    [
        (1.0, 0.2, 5, 0.5),
        (0.5, 0.1, 10, 0.8),
        (2.0, 0.9, 4, 0.3),
        (1.0, 2.0, 5, 0.5),
        (1.0, 2.2, 5, 0.5),
    ],
)
def test_slow_variance(h, eta, k, alpha):
    options = {"learning_rate": eta, "noise_variance": 0.7}
    ours = lookahead.slow_variance(h, **options, sync_period=k, slow_step_size=alpha)
    # float32; 1 - a^(2k) loses a digit or two
    assert float(ours) == pytest.approx(settled(h, eta, 0.7, k, alpha), rel=1e-4)
    if eta * h < 2:
        plain = averaging.iterate_variance(h, **options)
        power = (1 - eta * h) ** k
        share = alpha * (1 + power) / (2 - alpha * (1 - power))
        assert float(ours) == pytest.approx(share * float(plain), rel=1e-4)
        whole = lookahead.slow_variance(h, **options, sync_period=k, slow_step_size=1.0)
        assert float(whole) == pytest.approx(float(plain), rel=1e-5)
        assert ours < plain


def test_an_unstable_period_has_no_variance():
    options = {"noise_variance": 1.0, "sync_period": 4}
    assert np.isinf(lookahead.slow_variance(1.0, learning_rate=2.1, **options))  # k even
    assert np.isinf(lookahead.slow_variance(1.0, learning_rate=2.4, noise_variance=1.0))
    found = lookahead.slow_variance(np.float32([0.5, 3.0]), learning_rate=1.0, noise_variance=1.0)
    assert np.isinf(found).tolist() == [False, True]


def test_simulated_noise():
    """The rule itself on noisy gradients, against the formula; and the fast weights between."""
    h, eta, k, alpha = 1.0, 0.3, 4, 0.5
    rule = lookahead.lookahead(momentum.sgd(eta), sync_period=k, slow_step_size=alpha)

    @jax.jit
    def simulate(key):
        def step(carry, key):
            x, state = carry
            update, state = rule.update(h * x + jax.random.normal(key, x.shape), state, x)
            return (x + update, state), (x + update).var()

        x = jnp.zeros(20_000)
        (_, state), fast = jax.lax.scan(step, (x, rule.init(x)), jax.random.split(key, 15 * k))
        return state.slow.var(), fast[-k:]

    slow, fast = simulate(jax.random.key(0))
    options = {"learning_rate": eta, "noise_variance": 1.0}
    variance = float(lookahead.slow_variance(h, **options, sync_period=k, slow_step_size=alpha))
    plain = float(averaging.iterate_variance(h, **options))
    a = 1 - eta * h
    between = [a ** (2 * j) * variance + (1 - a ** (2 * j)) * plain for j in range(1, k)]
    # 20000 draws: a standard error of 1 %; 15 periods leave 0.62^30 of the start
    np.testing.assert_allclose(slow, variance, rtol=0.04)
    np.testing.assert_allclose(fast, [*between, variance], rtol=0.04)
    assert slow < 0.75 * plain


# As a rule


def test_it_goes_around_any_rule_with_any_parameters():
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": (jnp.zeros(3),)}
    inner = optax.chain(optax.scale(0.5), momentum.nesterov(0.1))
    rule = lookahead.lookahead(inner, sync_period=2)
    state = rule.init(params)
    assert jax.tree.map(lambda leaf: leaf.dtype.name, state.slow) == {
        "w": "float32",
        "b": ("float32",),
    }
    update = jax.jit(rule.update)
    for _ in range(4):
        updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        chex.assert_trees_all_equal_dtypes(updates, params)
        params = optax.apply_updates(params, updates)
    assert int(state.count) == 4
    slow = lookahead.slow_weights(state, params)
    chex.assert_trees_all_equal_dtypes(slow, params)
    # bfloat16 has eight bits; three roundings
    chex.assert_trees_all_close(slow, params, rtol=3 * 2**-8)
    empty = rule.init({})
    assert rule.update({}, empty, {})[0] == {}


def test_other_arguments_reach_the_inner_rule():
    def update(updates, state, params=None, *, value):
        return jax.tree.map(lambda g: -value * g, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    rule = lookahead.lookahead(inner)
    x = jnp.ones(2)
    updates, _ = rule.update(x, rule.init(x), x, value=3.0)
    np.testing.assert_array_equal(updates, [-3, -3])


def test_period_and_slow_step_are_traced_and_batched():
    @chex.assert_max_traces(n=2)  # once under jit, once under vmap
    def end(k, alpha):
        rule = lookahead.lookahead(momentum.sgd(0.1), sync_period=k, slow_step_size=alpha)
        return walk(rule, np.float32([1.0, -2.0]), 12, lambda x: x)

    compiled = jax.jit(end)
    options = [(1, 0.5), (5, 0.3), (4, 1.0)]
    batched = jax.jit(jax.vmap(end))(jnp.array([1, 5, 4]), jnp.array([0.5, 0.3, 1.0]))
    for i, row in enumerate(options):
        alone = compiled(*row)
        chex.assert_trees_all_close(
            alone, jax.tree.map(lambda leaf, i=i: leaf[i], batched), rtol=1e-6
        )
        factor = lookahead.sync_factor(
            1.0, learning_rate=0.1, sync_period=row[0], slow_step_size=row[1]
        )
        periods = 12 // row[0]
        # float32, up to twelve periods
        np.testing.assert_allclose(alone[1][-1, 0], factor**periods, rtol=1e-5)


def test_jit_equals_eager():
    rule = lookahead.lookahead(momentum.heavy_ball(0.1), sync_period=2, inner_state="reset")
    params = eager = jnp.array([1.0, -2.0])
    state = other = rule.init(params)
    update = jax.jit(rule.update)
    for _ in range(4):
        step, state = update(params, state, params)
        params = params + step
        step, other = rule.update(eager, other, eager)
        eager = eager + step
    chex.assert_trees_all_close((params, state), (eager, other), rtol=1e-6)
    assert not state.inner.velocity.any()  # a period has just ended: all is new
    assert int(state.inner.count) == 0


def test_parameters_and_state_can_be_donated():
    """The slow weights are a copy: no buffer is given away twice."""
    rule = lookahead.lookahead(momentum.sgd(0.5), sync_period=1)

    def step(params, state):
        update, state = rule.update(params, state, params)
        return params + update, state

    params = jnp.ones(3)
    params, state = jax.jit(step, donate_argnums=(0, 1))(params, rule.init(params))
    np.testing.assert_array_equal(params, np.full(3, 0.75))
    np.testing.assert_array_equal(state.slow, np.full(3, 0.75))


def test_a_reset_state_knows_the_new_parameters():
    """An inner rule that remembers where it began: lookahead itself."""
    inner = lookahead.lookahead(momentum.sgd(0.5), sync_period=3)
    rule = lookahead.lookahead(inner, sync_period=2, inner_state="reset")
    params = jnp.array(1.0)
    state = rule.init(params)
    for _ in range(2):
        update, state = rule.update(params, state, params)
        params = params + update
    # two steps of one half, a quarter; half of the way there
    assert float(params) == 1 - 0.5 * 0.75
    assert float(state.inner.slow) == float(params)
    assert int(state.inner.count) == 0


def test_gradients_of_the_formulas_and_of_a_walk(x64):
    @jax.jit
    def f(rate, alpha):
        rule = lookahead.lookahead(momentum.sgd(rate), sync_period=2, slow_step_size=alpha)

        def bowl(x):
            return jnp.array([0.5, 1.7]) * x

        options = {"learning_rate": rate, "sync_period": 3, "slow_step_size": alpha}
        factor = lookahead.sync_factor([0.5, 1.7], **options)
        variance = lookahead.slow_variance([0.5, 1.7], noise_variance=1.0, **options)
        return (walk(rule, np.ones(2), 5, bowl)[0][-1] * factor).sum() + variance.sum()

    chex.assert_numerical_grads(f, (jnp.array(0.8), jnp.array(0.4)), order=1, modes=["rev"])


# Bad input

SGD = momentum.sgd(0.1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: lookahead.lookahead(0.1),
            TypeError,
            "inner must be an optax.GradientTransformation, got 0.1",
        ),
        (
            lambda: lookahead.lookahead(SGD, sync_period=0),
            ValueError,
            "sync_period must be in [1, ",
        ),
        (
            lambda: lookahead.lookahead(SGD, sync_period=2.5),
            TypeError,
            "sync_period must be an integer array",
        ),
        (
            lambda: lookahead.lookahead(SGD, slow_step_size=1.5),
            ValueError,
            "slow_step_size must be in [0, 1], got 1.5",
        ),
        (
            lambda: lookahead.lookahead(SGD, slow_step_size=np.nan),
            ValueError,
            "slow_step_size must be finite, got nan",
        ),
        (
            lambda: lookahead.lookahead(SGD, inner_state="pullback"),
            ValueError,
            "inner_state must be one of 'keep', 'reset', got 'pullback'",
        ),
        (
            lambda: lookahead.lookahead(SGD).init({"n": jnp.arange(2)}),
            TypeError,
            "params['n'] must be a floating-point array",
        ),
        (
            lambda: lookahead.lookahead(SGD).update(
                jnp.ones(2), lookahead.lookahead(SGD).init(jnp.ones(2))
            ),
            ValueError,
            "params must be given to the update of lookahead",
        ),
        (
            lambda: lookahead.lookahead(SGD).update(
                jnp.ones(3), lookahead.lookahead(SGD).init(jnp.ones(2)), jnp.ones(3)
            ),
            ValueError,
            "updates must have the shape (2,)",
        ),
        (
            lambda: lookahead.slow_weights(SGD.init(jnp.ones(2)), jnp.ones(2)),
            TypeError,
            "state must be a LookaheadState, got SGDState",
        ),
        (
            lambda: lookahead.slow_weights(lookahead.lookahead(SGD).init(jnp.ones(2)), jnp.ones(3)),
            ValueError,
            "params must have the shape (2,) of the slow weights",
        ),
        (
            lambda: lookahead.sync_factor(1.0, learning_rate=0.0),
            ValueError,
            "learning_rate must be positive, got 0.0",
        ),
        (
            lambda: lookahead.slow_variance(-1.0, learning_rate=0.1, noise_variance=1.0),
            ValueError,
            "curvature must be positive, got -1.0",
        ),
        (
            lambda: lookahead.slow_variance(
                1.0, learning_rate=0.1, noise_variance=1.0, slow_step_size=0.0
            ),
            ValueError,
            "slow_step_size must be positive, got 0.0",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
