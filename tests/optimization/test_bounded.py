"""AdaBound, AMSBound and SWATS against the papers' pseudo-code, written out in NumPy."""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos.optimization import bounded as demo
from mlnotes_jax.optimization import adam, bounded, momentum

START = np.array([-1.2, 1.0, -0.7, 0.3, 1.4, -0.2, 0.8])
NUM_STEPS = 200


def gradient(x):
    """Of the chain of Rosenbrock's valleys, sum (1 - x_i)^2 + 5 (x_{i+1} - x_i^2)^2, not convex."""
    xp = np if isinstance(x, np.ndarray) else jnp
    bend = x[1:] - x[:-1] ** 2
    head = -2 * (1 - x[:-1]) - 20 * bend * x[:-1]
    return xp.concatenate([head, 0 * x[:1]]) + xp.concatenate([0 * x[:1], 10 * bend])


def tree(x):
    return {"a": x[:3], "b": (x[3:].reshape(2, 2),)}


def flat(t):
    return jnp.concatenate([t["a"], t["b"][0].reshape(4)])


MAKERS = {
    "adabound": bounded.adabound,
    "adabound, paper": partial(bounded.adabound, convention="paper"),
    "amsbound": bounded.amsbound,
    "amsbound, paper": partial(bounded.amsbound, convention="paper"),
    "swats": bounded.swats,
    "adam": partial(adam.adam, epsilon_hat=True),
    "ball": partial(momentum.heavy_ball, dampen_first=True),
}


def steps(rule, x, num_steps=NUM_STEPS, gradient=gradient):
    """All iterates and states of a rule, on a tree of two leaves, as one scan."""

    def step(carry, _):
        params, state = carry
        update, state = rule.update(tree(gradient(flat(params))), state, params)
        params = optax.apply_updates(params, update)
        return (params, state), (flat(params), state)

    return jax.lax.scan(step, (tree(x), rule.init(tree(x))), None, length=num_steps)[1]


@functools.cache
def walker(name):
    """Compiled once for all hyper-parameters."""
    return jax.jit(lambda x, hyper: steps(MAKERS[name](**hyper), x))


def walk(name, start=START, **hyper):
    return walker(name)(jnp.asarray(start), {k: jnp.asarray(v, float) for k, v in hyper.items()})


# --- The papers, in NumPy -------------------------------------------------------------------------


def luo_paper(alpha, final, gamma, beta1, beta2, largest=False):
    """Algorithm 2 (3 with `largest`) of Luo et al. (2019), with their bound functions."""
    x, path, how = START.copy(), [], set()
    m, v, v_hat = np.zeros(7), np.zeros(7), np.zeros(7)
    for t in range(1, NUM_STEPS + 1):
        g = gradient(x)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        v_hat = np.maximum(v_hat, v) if largest else v
        low = final - final / (gamma * t + 1)
        high = final + final / (gamma * t)
        free = alpha / np.sqrt(v_hat)
        eta = np.clip(free, low, high) / np.sqrt(t)
        x = x - eta * m
        path.append(x)
        how |= set(np.sign(np.clip(free, low, high) - free))
    assert how == {-1, 0, 1}  # rates that were free, lifted and held down
    return np.array(path)


def luo_code(alpha, final, gamma, beta1, beta2, epsilon, largest=False, decay=lambda t: 1.0):
    """The authors' code, with a scheduler that multiplies the learning rate by `decay(t)`."""
    x, path, how = START.copy(), [], set()
    m, v, v_hat = np.zeros(7), np.zeros(7), np.zeros(7)
    for t in range(1, NUM_STEPS + 1):
        rate = alpha * decay(t - 1)
        g = gradient(x)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        v_hat = np.maximum(v_hat, v) if largest else v
        size = rate * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        scaled = final * rate / alpha
        low, high = scaled * (1 - 1 / (gamma * t + 1)), scaled * (1 + 1 / (gamma * t))
        free = size / (np.sqrt(v_hat) + epsilon)
        x = x - np.clip(free, low, high) * m
        path.append(x)
        how |= set(np.sign(np.clip(free, low, high) - free))
    assert how == {-1, 0, 1}
    return np.array(path)


def keskar(alpha, beta1, beta2, epsilon, tolerance, relative=0.0, gradient=gradient, start=START):
    """Algorithm 1 of Keskar and Socher (2017): iterates, when it switched, at which rate."""
    w = start.copy()
    m, a, lam, phase, big_lambda, when = 0 * w, 0 * w, 0.0, "Adam", None, None
    path = []
    for k in range(1, NUM_STEPS + 1):
        g = gradient(w)
        if phase == "SGD":
            v = beta1 * v + g
            w = w - (1 - beta1) * big_lambda * v
            path.append(w)
            continue
        m = beta1 * m + (1 - beta1) * g
        a = beta2 * a + (1 - beta2) * g**2
        p = -alpha * np.sqrt(1 - beta2**k) / (1 - beta1**k) * m / (np.sqrt(a) + epsilon)
        w = w + p
        path.append(w)
        if p @ g != 0:
            gamma = (p @ p) / -(p @ g)
            lam = beta2 * lam + (1 - beta2) * gamma
            mean = lam / (1 - beta2**k)
            if k > 1 and abs(mean - gamma) < tolerance + relative * abs(mean):
                phase, v, big_lambda, when = "SGD", 0 * w, mean, k
    return np.array(path), when, big_lambda


# 200 float64 steps, each off by some 1e-16, on a problem that is stretched by no more than 100.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
BOUND = {"final_rate": 0.02, "gamma": 0.02, "beta1": 0.8, "beta2": 0.95}


@pytest.mark.parametrize("largest", [False, True])
def test_adabound_is_the_papers(x64, largest):
    name = "amsbound, paper" if largest else "adabound, paper"
    path, _ = walk(name, learning_rate=0.1, **BOUND, epsilon=0.0)  # the paper has no epsilon
    np.testing.assert_allclose(path, luo_paper(0.1, *BOUND.values(), largest=largest), **CLOSE)


@pytest.mark.parametrize("largest", [False, True])
def test_adabound_is_the_authors_code(x64, largest):
    name = "amsbound" if largest else "adabound"
    path, state = walk(name, learning_rate=0.1, **BOUND, epsilon=1e-3)
    expected = luo_code(0.1, *BOUND.values(), 1e-3, largest=largest)
    np.testing.assert_allclose(path, expected, **CLOSE)
    assert state.count[-1] == NUM_STEPS


def test_a_schedule_for_both_rates_is_the_authors_scheduler(x64):
    def decay(t):
        return 0.99**t

    def both(value):
        return lambda count: value * decay(count.astype(float))

    rule = bounded.adabound(both(0.05), **{**BOUND, "final_rate": both(0.02)}, epsilon=1e-8)
    path, _ = jax.jit(lambda x: steps(rule, x))(START)
    np.testing.assert_allclose(path, luo_code(0.05, *BOUND.values(), 1e-8, decay=decay), **CLOSE)


def walk_swats(tolerance, relative):
    options = {"tolerance": tolerance, "relative_tolerance": relative}
    return walk("swats", learning_rate=0.05, **options)


@pytest.mark.parametrize(("tolerance", "relative"), [(1e-4, 0.0), (0.0, 0.03)])
def test_swats_is_the_papers(x64, tolerance, relative):
    path, states = walk_swats(tolerance, relative)
    expected, when, rate = keskar(0.05, 0.9, 0.999, 1e-9, tolerance, relative)
    assert 2 < when < NUM_STEPS - 50  # both phases are long
    assert states.switched_at[-1] == when
    assert float(states.rate[-1]) == pytest.approx(rate, rel=1e-9)
    np.testing.assert_allclose(path, expected, **CLOSE)


def test_swats_never_switches_by_the_papers_tolerance(x64):
    """Nothing comes within 1e-9 by chance: it stays Adam, epsilon before the correction."""
    path, states = walk_swats(1e-9, 0.0)
    _, when, _ = keskar(0.05, 0.9, 0.999, 1e-9, 1e-9)
    assert when is None
    assert states.switched_at[-1] == 0
    assert states.rate[-1] == 0
    adams, _ = walk("adam", learning_rate=0.05, epsilon=1e-9)
    np.testing.assert_allclose(path, adams, **CLOSE)


# --- What the papers state ------------------------------------------------------------------------


def test_bounds_close_on_the_final_rate(x64):
    t = np.geomspace(1, 1e8, 40)
    low, high = bounded.bounds(t, final_rate=0.1, gamma=1e-3)
    np.testing.assert_allclose(low, 0.1 * (1 - 1 / (1e-3 * t + 1)), rtol=1e-12)
    np.testing.assert_allclose(high, 0.1 * (1 + 1 / (1e-3 * t)), rtol=1e-12)
    np.testing.assert_allclose(low * high, 0.01, rtol=1e-14)
    np.testing.assert_allclose(np.log(high / low), 2 * np.log1p(1 / (1e-3 * t)), atol=1e-14)
    assert (np.diff(low) > 0).all()
    assert (np.diff(high) < 0).all()
    assert high[-1] / low[-1] - 1 < 3e-5


def test_bounds_in_float32_keep_their_digits():
    # The textbook form, 1 - 1 / (gamma t + 1), loses five of them at t = 1.
    low, high = bounded.bounds(1, final_rate=0.1, gamma=1e-5)
    assert float(low) == pytest.approx(0.1 * 1e-5 / (1 + 1e-5), rel=3e-7)
    assert float(high) == pytest.approx(0.1 * (1 + 1e5), rel=3e-7)


def test_open_bounds_are_adam_and_closed_ones_are_sgd(x64):
    adams, _ = walk("adam", learning_rate=0.05, epsilon=1e-8)
    beta = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "learning_rate": 0.05}
    opened, _ = walk("adabound", **beta, final_rate=0.1, gamma=1e-12)
    np.testing.assert_allclose(opened, adams, **CLOSE)
    ball, _ = walk("ball", learning_rate=0.02, momentum=0.9, dampening=0.9)
    closed, _ = walk("adabound", **beta, final_rate=0.02, gamma=1e15)
    np.testing.assert_allclose(closed, ball, **CLOSE)


@functools.cache
def first_rates(convention):
    """The rates of an update after some time without a gradient."""
    rule = bounded.adabound(convention=convention)

    @jax.jit
    def rates(count, slope):
        update, state = rule.update(slope, rule.init(slope)._replace(count=count))
        return -update / state.first_moment

    return rates


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 10**7), st.floats(-6, 6), st.sampled_from(["code", "paper"]))
def test_every_rate_is_between_the_bounds(t, magnitude, convention):
    """At any time, whatever the gradient: -update / m."""
    slope = np.array([10.0**magnitude, -1.0], np.float32)
    rates = np.asarray(first_rates(convention)(np.int32(t - 1), slope), float)
    if convention == "paper":
        rates *= t**0.5
    low, high = 0.1 * (1 - 1 / (1e-3 * t + 1)), 0.1 * (1 + 1 / (1e-3 * t))
    # a handful of float32 roundings
    assert ((rates >= low * (1 - 1e-6)) & (rates <= high * (1 + 1e-6))).all()
    np.testing.assert_allclose(rates, 0.1, rtol=1.001e3 / t + 1e-6)  # 1 / (gamma t)


def test_amsbound_divides_by_the_largest(x64):
    """So that, between the bounds, a rate never grows."""
    _, state = walk("amsbound, paper", learning_rate=0.1, **BOUND, epsilon=0.0)
    second, largest = (
        np.concatenate([moment["a"], moment["b"][0].reshape(-1, 4)], axis=1)
        for moment in (state.second_moment, state.largest)
    )
    np.testing.assert_array_equal(largest, np.maximum.accumulate(second))
    assert (np.diff(second, axis=0) < 0).any()  # so that it is not AdaBound


jitted_rate = jax.jit(bounded.projected_rate)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=6))
def test_projection(pairs):
    """The step of SGD with that rate has p as its shadow; least squares would be cos^2 of it."""
    p, g = np.zeros((2, 6))
    p[: len(pairs)], g[: len(pairs)] = np.array(pairs).T
    cosine = -(p @ g) / max(np.linalg.norm(p) * np.linalg.norm(g), 1e-30)
    if abs(cosine) < 1e-2:  # float32: the product has lost its digits
        return
    gamma = float(jitted_rate({"p": p.astype(np.float32)}, {"p": g.astype(np.float32)}))
    shadow = (p @ (-gamma * g)) / (p @ p) * p
    np.testing.assert_allclose(shadow, p, rtol=1e-3, atol=1e-4)
    best = -(p @ g) / (g @ g)  # argmin over gamma of |p + gamma g|
    assert gamma * cosine**2 == pytest.approx(best, rel=1e-3)


def test_projection_of_special_steps():
    rate, g = jax.jit(bounded.projected_rate), np.array([1.0, -2.0], np.float32)
    assert float(rate(np.float32(-0.3) * g, g)) == pytest.approx(0.3)
    assert rate(np.float32(0.3) * g, g) < 0
    assert np.isinf(rate(np.array([2.0, 1.0], np.float32), g))
    assert np.isnan(rate(0 * g, g))
    assert jax.eval_shape(rate, *[jnp.zeros(2, jnp.bfloat16)] * 2).dtype == "float32"


def test_swats_on_a_constant_slope(x64):
    """Every step of Adam is alpha in each parameter, so the rate is alpha / mean |g|, at once."""
    slope = np.array([1.0, -3.0, 2.0, 0.5, -0.5, 4.0, 1.0])
    rule = bounded.swats(0.01, epsilon=0.0)
    _, states = jax.jit(lambda x: steps(rule, x, 10, lambda x: slope + 0 * x))(START)
    assert states.switched_at.tolist() == [0] + [2] * 9
    np.testing.assert_allclose(states.rate[1:], 0.01 / abs(slope).mean(), rtol=1e-12)


def test_swats_switches_once_and_goes_on_as_sgd(x64):
    path, states = walk_swats(0.0, 0.03)
    when = int(states.switched_at[-1])
    assert (np.diff(states.switched_at) != 0).sum() == 1
    assert (np.asarray(states.switched_at) == np.where(np.arange(1, 201) < when, 0, when)).all()
    assert len(set(states.rate[when - 1 :].tolist())) == 1
    assert states.adam_rate[-1] == 0.05
    # The last estimate was within the tolerance of the corrected average.
    mean = states.average[when - 1] / (1 - 0.999**when)
    assert abs(mean - states.estimate[when - 1]) < 0.03 * mean
    assert float(states.rate[-1]) == pytest.approx(float(mean), rel=1e-12)
    for name in ("average", "estimate"):
        assert len(set(getattr(states, name)[when - 1 :].tolist())) == 1
    # The rest of the path is that of a heavy ball at rest.
    rate = states.rate[-1]
    rest, _ = walk("ball", path[when - 1], learning_rate=rate, momentum=0.9, dampening=0.9)
    np.testing.assert_allclose(path[when:], rest[: NUM_STEPS - when], **CLOSE)


def test_swats_keeps_to_the_schedule(x64):
    """After the switch the rate of SGD falls as that of Adam would have."""
    schedule = lambda count: jnp.where(count < 5, 0.01, 0.0025)  # noqa: E731
    slope = np.arange(1.0, 8.0)
    rule = bounded.swats(schedule, epsilon=0.0)
    path, states = jax.jit(lambda x: steps(rule, x, 200, lambda x: slope + 0 * x))(START)
    assert states.switched_at[-1] == 2
    # The velocity has settled, 0.9^190: steps are rate * g, the rate a quarter of what was found.
    step = path[-1] - path[-2]
    np.testing.assert_allclose(step, -0.25 * states.rate[-1] * slope, rtol=1e-8)


def test_swats_leaves_steps_without_a_rate_out():
    """At a right angle, or up the slope on average, there is no rate to switch to."""
    rule = bounded.swats(0.01, relative_tolerance=10.0)  # any positive rate passes
    update, start = jax.jit(rule.update), rule.init(jnp.zeros(1))
    _, state = update(jnp.ones(1), start)
    _, state = update(jnp.zeros(1), state)  # this step has a direction, but no slope
    assert state.switched_at == 0
    assert float(state.average) == pytest.approx(0.001 * 0.01, rel=1e-6)
    assert float(state.estimate) == pytest.approx(0.01, rel=1e-6)
    up = start._replace(first_moment=jnp.array([-100.0]), count=jnp.int32(5))
    _, up = update(jnp.ones(1), up)
    assert up.estimate < 0
    assert up.switched_at == 0


def test_each_leaf_may_switch_on_its_own():
    rules = {name: bounded.swats(0.01, relative_tolerance=1e-4, epsilon=0.0) for name in ("a", "b")}
    rule = optax.partition(rules, {"a": "a", "b": "b"})
    params = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
    state, update = rule.init(params), jax.jit(rule.update)
    for scale in (1.0, 3.0):  # the slope of "b" is not constant
        _, state = update({"a": jnp.arange(1.0, 4.0), "b": jnp.full(2, scale)}, state)
    inner = {name: s.inner_state for name, s in state.inner_states.items()}
    assert inner["a"].switched_at == 2
    assert float(inner["a"].rate) == pytest.approx(0.01 / 2, rel=1e-5)
    assert inner["b"].switched_at == 0


# --- Transformations ------------------------------------------------------------------------------


def test_batched_tolerances_switch_at_their_own_time(x64):
    """One program; `walk_swats` runs them one by one, without compiling again."""
    options = {"tolerance": jnp.zeros(3), "learning_rate": jnp.full(3, 0.05)}
    tolerances = jnp.array([1e-9, 0.03, 0.3])
    batched = jax.jit(jax.vmap(lambda hyper: steps(MAKERS["swats"](**hyper), START)))
    paths, states = batched({**options, "relative_tolerance": tolerances})
    when = states.switched_at[:, -1].tolist()
    assert when[0] == 0
    assert 0 < when[2] < when[1]
    for i, tolerance in enumerate(tolerances):
        alone, state = walk_swats(0.0, tolerance)
        assert state.switched_at[-1] == when[i]
        np.testing.assert_allclose(paths[i], alone, **CLOSE)
    assert walker("swats")._cache_size() == 1


def test_slopes_of_the_hyper_parameters(x64):
    """The end after six steps as a function of the rates, by central differences."""

    def end(arguments):
        rate, final, gamma = arguments
        rule = bounded.amsbound(rate, final_rate=final, gamma=gamma, beta2=0.9)
        path, _ = steps(rule, START, 6)
        return path[-1] @ path[-1]

    with_slope = jax.jit(lambda x: (end(x), jax.jacfwd(end)(x)))
    arguments = np.array([0.02, 0.01, 0.5])
    _, slopes = with_slope(arguments)
    assert (abs(slopes) > 1e-3).all()  # all three matter here
    for i, slope in enumerate(slopes):
        h = 1e-5 * arguments * (np.arange(3) == i)  # truncation and round-off, each some 1e-9
        numeric = (with_slope(arguments + h)[0] - with_slope(arguments - h)[0]) / (2 * h[i])
        assert float(slope) == pytest.approx(float(numeric), rel=1e-6)


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bounded.adabound(-1.0), ValueError, "learning_rate must not be negative"),
        (lambda: bounded.adabound(final_rate=np.inf), ValueError, "final_rate must be finite"),
        (lambda: bounded.amsbound(final_rate=-0.1), ValueError, "final_rate must not be negative"),
        (lambda: bounded.adabound(gamma=0.0), ValueError, "gamma must be positive, got 0.0"),
        (lambda: bounded.adabound(beta2=1.0), ValueError, "beta2 must be in [0, 1), got 1.0"),
        (lambda: bounded.adabound(epsilon=-1e-8), ValueError, "epsilon must not be negative"),
        (
            lambda: bounded.adabound(convention="torch"),
            ValueError,
            "convention must be one of 'code', 'paper', got 'torch'",
        ),
        (lambda: bounded.swats(beta1=-0.1), ValueError, "beta1 must be in [0, 1), got -0.1"),
        (lambda: bounded.swats(tolerance=-1.0), ValueError, "tolerance must not be negative"),
        (
            lambda: bounded.swats(relative_tolerance=np.nan),
            ValueError,
            "relative_tolerance must be finite",
        ),
        (lambda: bounded.swats("fast"), TypeError, "learning_rate must be a numeric array"),
        (
            lambda: bounded.bounds(0, final_rate=0.1, gamma=1e-3),
            ValueError,
            "step - 1 must not be negative",
        ),
        (
            lambda: bounded.swats().init({"n": jnp.arange(3)}),
            TypeError,
            "params['n'] must be a floating-point array, got dtype int32",
        ),
        (
            lambda: bounded.adabound().update(
                jnp.ones(3), bounded.adabound().init({"a": jnp.ones(3)})
            ),
            ValueError,
            "updates must have the structure of",
        ),
        (
            lambda: bounded.projected_rate(jnp.ones(2), jnp.ones(3)),
            ValueError,
            "step must have the shape (3,) of gradient, got (2,)",
        ),
        (
            lambda: bounded.projected_rate(jnp.arange(2), jnp.ones(2)),
            TypeError,
            "must be a floating-point array, got dtype int32",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


# --- The demo -------------------------------------------------------------------------------------


def test_demo_holds_what_the_page_says():
    result = demo.run(jax.random.key(0), quick=True)
    # Adam's rates are far apart, and the bounds close on them.
    spread = np.log(result.free.max(axis=1) / result.free.min(axis=1))
    held = np.log(result.held.max(axis=1) / result.held.min(axis=1))
    gap = np.log(result.bounds.high / result.bounds.low)
    assert spread[-1] > 3
    assert (held <= gap + 1e-5).all()  # float32
    assert held[-1] < 0.5 * spread[-1]
    # SWATS switches once, with the average that it reports.
    swats = result.swats
    assert 2 <= swats.switched_at <= swats.num_updates
    assert swats.rate > 0
    accuracies = {run.name: run.accuracy for run in result.runs}
    assert min(accuracies.values()) > 0.8
