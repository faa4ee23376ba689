"""Every update rule with every feature of Optax, and down every test function.

Each rule meets each feature, and each function, once: pairs, not the full product. What is
particular to a rule, and that its numbers are those of a peer, its own test shows.
"""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlnotes_jax.optimization import adam, adaptive, bounded, lookahead, momentum, weight_decay


class Rule(NamedTuple):
    """A rule, and rates that suit the four functions: Rosenbrock, Beale, bowl, Rastrigin."""

    make: callable
    rates: tuple[float, float, float, float]
    keywords: Mapping = MappingProxyType({})

    def __call__(self, rate):
        return self.make(rate, **self.keywords)


def lookahead_sgd(learning_rate, *, momentum=0.9, slow_step_size=0.5):
    from mlnotes_jax.optimization.momentum import heavy_ball

    return lookahead.lookahead(
        heavy_ball(learning_rate, momentum=momentum), slow_step_size=slow_step_size
    )


PLAIN = (1.5e-3, 1e-2, 1e-2, 3e-3)
MOMENTUM = (6e-4, 3e-3, 3e-3, 1e-3)
ADAM = (3e-3, 3e-3, 3e-3, 3e-3)
RULES = {
    "sgd": Rule(momentum.sgd, PLAIN),
    "heavy_ball": Rule(momentum.heavy_ball, MOMENTUM),
    "notes_momentum": Rule(momentum.notes_momentum, MOMENTUM),
    "nesterov": Rule(momentum.nesterov, MOMENTUM),
    "adagrad": Rule(adaptive.adagrad, (1.0, 1.0, 1.0, 0.1)),
    "root_mean_adagrad": Rule(adaptive.root_mean_adagrad, (6e-3, 1e-2, 1e-2, 1e-2)),
    "rmsprop": Rule(adaptive.rmsprop, (1e-3, 1e-3, 1e-3, 3e-4)),
    "notes_rmsprop": Rule(adaptive.notes_rmsprop, (1e-3, 1e-3, 1e-3, 3e-4)),
    "adam": Rule(adam.adam, ADAM),
    "amsgrad": Rule(adam.amsgrad, (0.1, 0.03, 0.03, 0.01)),
    "nadam": Rule(adam.nadam, ADAM),
    "radam": Rule(adam.radam, ADAM),
    "adabound": Rule(bounded.adabound, ADAM, {"final_rate": 1e-3}),
    "amsbound": Rule(bounded.amsbound, ADAM, {"final_rate": 1e-3}),
    "swats": Rule(bounded.swats, ADAM),
    "sgd_l2": Rule(weight_decay.sgd_l2, PLAIN, {"weight_decay": 0.0}),
    "sgdw": Rule(weight_decay.sgdw, PLAIN, {"weight_decay": 0.0}),
    "adam_l2": Rule(weight_decay.adam_l2, ADAM, {"weight_decay": 0.0}),
    "adamw": Rule(weight_decay.adamw, ADAM, {"weight_decay": 0.0}),
    "lookahead": Rule(lookahead_sgd, MOMENTUM),
}

#: These move on when the rate becomes zero: by past steps, by a second rate, to slow weights.
GO_ON = (momentum.notes_momentum, bounded.adabound, bounded.amsbound, lookahead_sgd)

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


# --- Down the test functions ----------------------------------------------------------------------


def rosenbrock(p):
    return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2


def beale(p):
    x, y = p
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def bowl(p):
    return 0.5 * (p[0] ** 2 + 100 * p[1] ** 2)


def rastrigin(p):
    return 20 + jnp.sum(p**2 - 10 * jnp.cos(2 * jnp.pi * p))


FUNCTIONS = (rosenbrock, beale, bowl, rastrigin)
STARTS = np.array([[-1.2, 1.0], [1.0, 1.0], [3.0, 1.0], [0.2, -1.3]])
MINIMA = np.array([[1.0, 1.0], [3.0, 0.5], [0.0, 0.0]])  # Rastrigin has many
NUM_STEPS = 20_000


def descend(make, index, rate, start):
    """Many steps, in the second half with a rate that falls to a hundredth; function `index`."""

    def schedule(count):
        return rate * jnp.minimum(1.0, 10.0 ** (2 - 4 * count.astype(float) / NUM_STEPS))

    rule = make(schedule)

    def step(carry, _):
        params, state = carry
        slope = jax.lax.switch(index, [jax.grad(f) for f in FUNCTIONS], params)
        updates, state = rule.update(slope, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (start, rule.init(start)), None, length=NUM_STEPS)
    return params


@every_rule
def test_every_rule_reaches_the_minimum(rule, x64):
    traces = []

    @jax.jit
    def run(rates, starts):
        traces.append(1)
        indices = jnp.arange(len(FUNCTIONS))
        return jax.vmap(lambda i, rate, start: descend(rule, i, rate, start))(
            indices, rates, starts
        )

    ends = np.asarray(run(jnp.array(rule.rates), jnp.array(STARTS)))
    # The bottoms of Rosenbrock's and Beale's valleys are flat: a gradient of 1e-4 is 1e-3 away.
    np.testing.assert_allclose(ends[:3], MINIMA, atol=5e-3)
    slopes = [np.abs(jax.grad(f)(p)).max() for f, p in zip(FUNCTIONS, ends, strict=True)]
    assert max(slopes) < 1e-2
    # Other rates and other starts are data: nothing is compiled again.
    run(jnp.array(rule.rates) / 2, jnp.array(STARTS) + 0.1)
    assert len(traces) == 1


# --- With Optax's wrappers ------------------------------------------------------------------------


def some_params():
    return {"a": jnp.array([1.0, -2.0, 0.5]), "b": (jnp.full((2, 3), 0.3), jnp.array(2.0))}


def some_gradients(count):
    rng = np.random.default_rng(7)
    shapes = jax.tree.map(jnp.shape, some_params(), is_leaf=lambda x: hasattr(x, "shape"))
    return [
        jax.tree.map(
            lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple) and all(isinstance(n, int) for n in x),
        )
        for _ in range(count)
    ]


def walk(rule, gradients, params=None, *, compiled=False):
    """Parameters after so many updates, and the state."""
    params = some_params() if params is None else params
    state = rule.init(params)
    update = jax.jit(rule.update) if compiled else rule.update
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_same(ours, theirs, rtol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), ours, theirs)


@every_rule
def test_every_rule_in_a_chain(rule):
    gradients = some_gradients(3)
    plain, _ = walk(rule(0.1), gradients)
    halved, _ = walk(rule(0.1), [jax.tree.map(lambda g: g / 2, g) for g in gradients])
    chained, _ = walk(optax.chain(optax.scale(0.5), rule(0.1)), gradients)
    assert_same(chained, halved)
    doubled, _ = walk(optax.chain(rule(0.1), optax.scale(0.0)), gradients)
    assert_same(doubled, some_params())
    assert not np.allclose(plain["a"], some_params()["a"])


@every_rule
def test_every_rule_on_a_part_of_the_tree(rule):
    gradients = some_gradients(3)
    alone, _ = walk(rule(0.1), [g["a"] for g in gradients], some_params()["a"])
    mask = {"a": True, "b": (False, False)}
    masked = optax.chain(
        optax.masked(rule(0.1), mask), optax.masked(optax.set_to_zero(), _not(mask))
    )
    params, _ = walk(masked, gradients)
    assert_same(params["a"], alone)
    assert_same(params["b"], some_params()["b"])
    labels = {"a": "x", "b": ("y", "y")}
    other, _ = walk(rule(0.01), [g["b"] for g in gradients], some_params()["b"])
    parted, _ = walk(optax.partition({"x": rule(0.1), "y": rule(0.01)}, labels), gradients)
    # SWATS projects the whole step: its parts are those of two rules, each on its own leaves.
    assert_same(parted, {"a": alone, "b": other})


def _not(mask):
    return jax.tree.map(lambda chosen: not chosen, mask)


@every_rule
def test_every_rule_with_hyper_parameters_in_the_state(rule):
    gradients = some_gradients(3)
    plain, _ = walk(rule(0.1), gradients)
    injected = optax.inject_hyperparams(rule.make)(0.1, **rule.keywords)
    with jax.numpy_dtype_promotion("standard"):  # Optax's own arithmetic mixes dtypes
        params, state = walk(injected, gradients)
        # The decays are float32 there, in which 1 - 0.99 and 1 - 0.999 have four or five digits.
        assert_same(params, plain, rtol=5e-5)
        # The rate can be changed between steps: zero stops it.
        state.hyperparams["learning_rate"] = jnp.array(0.0)
        updates, _ = injected.update(gradients[0], state, params)
    if rule.make not in GO_ON:
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))


@every_rule
def test_every_rule_with_gradients_gathered_over_steps(rule):
    gradients = some_gradients(4)
    pairs = [jax.tree.map(lambda a, b: (a + b) / 2, *gradients[i : i + 2]) for i in range(0, 4, 2)]
    plain, _ = walk(rule(0.1), pairs)
    with jax.numpy_dtype_promotion("standard"):  # Optax's own arithmetic mixes dtypes
        gathered, _ = walk(optax.MultiSteps(rule(0.1), 2), gradients, compiled=True)
    assert_same(gathered, plain, rtol=1e-5)


@every_rule
def test_every_rule_takes_a_schedule(rule):
    gradients = some_gradients(4)
    constant, _ = walk(rule(0.1), gradients)
    seen = []

    def schedule(count):
        seen.append(int(count))
        return 0.1

    scheduled, _ = walk(rule(schedule), gradients)
    assert_same(scheduled, constant)
    assert sorted(set(seen)) == [0, 1, 2, 3]
    stopped, _ = walk(rule(lambda count: jnp.where(count < 1, 0.1, 0.0)), gradients[:2])
    first, _ = walk(rule(0.1), gradients[:1])
    if rule.make not in GO_ON:
        assert_same(stopped, first)


@every_rule
def test_every_rule_compiled_is_the_same(rule):
    gradients = some_gradients(3)
    plain, _ = walk(rule(0.1), gradients)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)

    @jax.jit
    def scanned(rate, params):
        made = rule(rate)

        def step(carry, gradient):
            params, state = carry
            updates, state = made.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, made.init(params)), stacked)[0][0]

    assert_same(scanned(0.1, some_params()), plain)


@every_rule
def test_every_rule_keeps_dtypes_and_takes_any_tree(rule):
    params = [
        {"narrow": jnp.ones((2, 2), jnp.bfloat16), "half": jnp.ones(3, jnp.float16)},
        (jnp.float32(0.5), None, jnp.zeros((0, 4))),
    ]
    gradient = jax.tree.map(lambda p: jnp.full_like(p, 0.25), params)
    made = rule(0.1)
    state = made.init(params)
    updates, new = made.update(gradient, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert [u.dtype for u in jax.tree.leaves(updates)] == [p.dtype for p in jax.tree.leaves(params)]
    # Carried through a scan, a state must not change its dtypes or shapes.
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert [leaf.dtype for leaf in jax.tree.leaves(new)] == [
        leaf.dtype for leaf in jax.tree.leaves(state)
    ]
    # Moments of narrow parameters are wide: 0.999 m + 0.001 g would be lost in bfloat16.
    assert all(
        leaf.dtype.itemsize >= 4 for leaf in jax.tree.leaves(state) if leaf.dtype != jnp.bool_
    )
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    exact, _ = made.update(
        jax.tree.map(lambda g: g.astype(jnp.float32), gradient), made.init(wide), wide
    )
    jax.tree.map(
        lambda u, e: np.testing.assert_allclose(u.astype(jnp.float32), e, rtol=2**-7),
        updates,
        exact,
    )
    empty, _ = made.update({}, made.init({}), {})
    assert empty == {}


# --- Bad input ------------------------------------------------------------------------------------


@every_rule
def test_every_rule_refuses_bad_rates_and_decays(rule):
    for rate, message in (
        (-0.1, "learning_rate must not be negative, got -0.1"),
        (float("nan"), "learning_rate must be finite"),
        (float("inf"), "learning_rate must be finite"),
        (jnp.ones(2), "learning_rate must be 0-D"),
    ):
        with pytest.raises(ValueError, match=message):
            rule(rate)
    with pytest.raises(TypeError, match="learning_rate must be a numeric array, got str"):
        rule("fast")
    numbers = {
        name: parameter.default
        for name, parameter in inspect.signature(rule.make).parameters.items()
        if isinstance(parameter.default, float) and name != "learning_rate"
    }
    for name in numbers:
        keywords = {**rule.keywords, name: float("nan")}
        with pytest.raises(ValueError, match=name):
            rule.make(0.1, **keywords)
        keywords[name] = -0.5
        with pytest.raises(ValueError, match=name):
            rule.make(0.1, **keywords)
        if name in ("beta1", "beta2", "momentum", "decay", "alpha"):
            keywords[name] = 1.0
            with pytest.raises(ValueError, match=name):
                rule.make(0.1, **keywords)


@every_rule
def test_every_rule_refuses_other_trees(rule):
    made = rule(0.1)
    with pytest.raises(TypeError, match=r"params\['a'\] must be a floating-point array.*int32"):
        made.init({"a": jnp.arange(3)})
    with pytest.raises(TypeError, match=r"params.*complex64"):
        made.init(jnp.ones(2, jnp.complex64))
    state = made.init(some_params())
    with pytest.raises(ValueError, match="updates must have the structure"):
        made.update({"a": jnp.ones(3)}, state, some_params())
    wrong = {**some_params(), "a": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"updates\['a'\] must have the shape \(3,\)"):
        made.update(wrong, state, some_params())
