"""Adagrad and RMSProp against PyTorch, Optax, closed forms, and each other."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos import tables as text_tables
from mlnotes_jax.demos.optimization import adaptive as demo
from mlnotes_jax.optimization import adam, adaptive

STEPS = 200
START = np.array([1.7, -0.4, 0.3, -1.2, 0.05])
WEIGHTS = np.array([0.3, 1.0, 3.0, 10.0, 0.1])
GRADIENTS = np.random.default_rng(0).normal(size=(12, 4)) * [1e-3, 1.0, 30.0, 1e3]


def slope(x, library):
    """Gradient of sum_i w_i (x_i^2 - 1)^2 / 4 + sin(x_i x_(i+1)) / 3: several valleys."""
    after, before = library.roll(x, -1), library.roll(x, 1)
    coupling = after * library.cos(x * after) + before * library.cos(x * before)
    weights = WEIGHTS if library is np else library.asarray(WEIGHTS)
    return weights * x * (x * x - 1) + coupling / 3


def walk(rule, gradient, start, num_steps=STEPS):
    """The parameters after each of many updates, in one scan."""

    def step(carry, _):
        params, state = carry
        update, state = rule.update(gradient(params), state, params)
        params = optax.apply_updates(params, update)
        return (params, state), params

    return jax.lax.scan(step, (start, rule.init(start)), length=num_steps)[1]


def fed(rule, gradients, params=None):
    """The updates and the last state for gradients that are given, in one scan."""
    gradients = jnp.asarray(gradients)
    state = rule.init(jnp.zeros_like(gradients[0]) if params is None else params)

    def step(state, gradient):
        update, state = rule.update(gradient, state)
        return state, update

    state, updates = jax.lax.scan(step, state, gradients)
    return updates, state


def falling(count):
    return 0.05 / (1 + 0.1 * count.astype(jnp.result_type(float)))


# Same numbers as PyTorch and Optax

PEERS = {
    "adagrad": (lambda: adaptive.adagrad(0.1), "Adagrad", {"lr": 0.1}),
    "adagrad, options": (
        lambda: adaptive.adagrad(falling, initial_accumulator=0.1, epsilon=1e-3),
        "Adagrad",
        {"lr": 0.05, "lr_decay": 0.1, "initial_accumulator_value": 0.1, "eps": 1e-3},
    ),
    "rmsprop": (lambda: adaptive.rmsprop(0.01), "RMSprop", {"lr": 0.01}),
    "rmsprop, centered": (
        lambda: adaptive.rmsprop(0.003, decay=0.95, epsilon=0.1, centered=True),
        "RMSprop",
        {"lr": 0.003, "alpha": 0.95, "eps": 0.1, "centered": True},
    ),
    "rmsprop, momentum": (
        lambda: adaptive.rmsprop(0.003, decay=0.95, momentum=0.8),
        "RMSprop",
        {"lr": 0.003, "alpha": 0.95, "momentum": 0.8},
    ),
    "rmsprop, everything": (
        lambda: adaptive.rmsprop(falling, momentum=0.5, centered=True, epsilon=1e-4),
        "RMSprop",
        {"lr": 0.05, "momentum": 0.5, "centered": True, "eps": 1e-4},
    ),
}


@functools.cache
def ours_and_optax():
    """All walks of ours, and those of Optax where its conventions are chosen: one program."""

    @jax.jit
    def everything(start):
        optax_rules = {
            "adagrad": (
                adaptive.adagrad(0.1, initial_accumulator=0.1, epsilon=1e-7, epsilon_in_root=True),
                optax.adagrad(0.1),
            ),
            "adagrad from zero": (
                adaptive.adagrad(falling, epsilon=1e-3, epsilon_in_root=True),
                optax.adagrad(falling, initial_accumulator_value=0.0, eps=1e-3),
            ),
            "rmsprop": (
                # A small epsilon would let it jump about the minimum, and round-off grow.
                adaptive.rmsprop(0.01, decay=0.9, epsilon=0.1, epsilon_in_root=True),
                optax.rmsprop(0.01, eps=0.1),
            ),
            "rmsprop outside": (
                adaptive.rmsprop(0.01, decay=0.9, initial_accumulator=1.0),
                optax.rmsprop(0.01, initial_scale=1.0, eps_in_sqrt=False),
            ),
            "rmsprop centered, momentum": (
                adaptive.rmsprop(
                    falling,
                    decay=0.9,
                    epsilon=1e-3,
                    epsilon_in_root=True,
                    centered=True,
                    momentum=0.5,
                    rate_in_momentum=True,
                ),
                optax.rmsprop(falling, eps=1e-3, centered=True, momentum=0.5),
            ),
        }
        gradient = functools.partial(slope, library=jnp)
        ours = {name: walk(make(), gradient, start) for name, (make, *_) in PEERS.items()}
        pairs = {
            name: [walk(rule, gradient, start) for rule in pair]
            for name, pair in optax_rules.items()
        }
        return ours, pairs

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        return jax.tree.map(np.asarray, everything(jnp.asarray(START)))


@pytest.mark.parametrize("name", PEERS)
def test_same_numbers_as_torch(torch, name):
    _, peer, options = PEERS[name]
    params = torch.tensor(START, requires_grad=True)
    optimizer = getattr(torch.optim, peer)([params], foreach=False, **options)
    path = []
    for t in range(STEPS):
        if name == "rmsprop, everything":  # PyTorch has no schedule inside RMSprop
            optimizer.param_groups[0]["lr"] = 0.05 / (1 + 0.1 * t)
        params.grad = torch.from_numpy(slope(params.detach().numpy(), np))
        optimizer.step()
        path.append(params.detach().numpy().copy())
    ours = ours_and_optax()[0][name]
    assert np.ptp(ours, axis=0).max() > 0.3  # it went somewhere
    # the bound; round-off is 1e-16 a step, and a rule may amplify it some hundred times
    np.testing.assert_allclose(ours, np.array(path), rtol=1e-10, atol=1e-12)


def test_same_numbers_as_optax():
    for name, (ours, theirs) in ours_and_optax()[1].items():
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12, err_msg=name)


def test_the_conventions_differ():
    """Each option matters: else the comparisons above would show nothing."""
    walks, pairs = ours_and_optax()
    assert np.abs(walks["adagrad"] - pairs["adagrad"][0]).max() > 1e-3
    assert np.abs(pairs["rmsprop"][0] - pairs["rmsprop outside"][0]).max() > 1e-3
    gradients = jnp.asarray(GRADIENTS)
    inside, outside = (
        fed(adaptive.rmsprop(falling, momentum=0.5, rate_in_momentum=option), gradients)[0]
        for option in (True, False)
    )
    assert float(jnp.abs(inside - outside).max()) > 1e-3
    same = [
        fed(adaptive.rmsprop(0.1, momentum=0.5, rate_in_momentum=option), gradients)[0]
        for option in (True, False)
    ]
    np.testing.assert_allclose(*same, rtol=1e-5)  # float32, a constant rate


# Closed forms, and the identities that tie the four rules together


@functools.cache
def closed_forms():
    """Updates and squares of each rule for `GRADIENTS`, plain and scaled: one program."""

    @jax.jit
    def everything(gradients):
        rules = {
            "adagrad": adaptive.adagrad(0.3, epsilon=0.0),
            "root_mean_adagrad": adaptive.root_mean_adagrad(0.3, epsilon=0.0),
            "rmsprop": adaptive.rmsprop(0.3, decay=0.8, epsilon=0.0),
            "notes_rmsprop": adaptive.notes_rmsprop(0.3, alpha=0.8, epsilon=0.0),
            "all": adaptive.rmsprop(0.3, decay=0.8, epsilon=0.0, centered=True, momentum=0.9),
            "adam": adam.adam(0.3, beta1=0.0, beta2=0.8, epsilon=0.0),
        }
        return {name: fed(rule, gradients) for name, rule in rules.items()}

    with jax.enable_x64(True):
        gradients = jnp.asarray(GRADIENTS)
        scales = jnp.array([2.0**-20, 1.0, 8.0, 2.0**20])[None]
        return jax.tree.map(np.asarray, [everything(gradients), everything(gradients * scales)])


@pytest.mark.parametrize("rule", ["adagrad", "root_mean_adagrad", "rmsprop", "notes_rmsprop"])
def test_the_divisor_is_the_weighted_sum(x64, rule):
    updates, state = closed_forms()[0][rule]
    for num in (1, 12):
        weights = np.asarray(adaptive.square_weights(num, rule, decay=0.8))
        square = weights @ GRADIENTS[:num] ** 2
        expected = -0.3 * GRADIENTS[num - 1] / np.sqrt(square)
        np.testing.assert_allclose(updates[num - 1], expected, rtol=1e-12)  # a dozen roundings
    np.testing.assert_allclose(state.square, square, rtol=1e-12)
    assert int(state.count) == 12


def test_weights_of_the_squares():
    for num in (1, 40):
        weights = {
            rule: np.asarray(adaptive.square_weights(num, rule, decay=0.9))
            for rule in ("adagrad", "root_mean_adagrad", "rmsprop", "notes_rmsprop")
        }
        sums = {rule: values.sum() for rule, values in weights.items()}
        assert sums["adagrad"] == num
        # float32 sums of at most forty
        assert sums["root_mean_adagrad"] == pytest.approx(1, abs=1e-6)
        assert sums["rmsprop"] == pytest.approx(1 - 0.9**num, abs=1e-6)
        assert sums["notes_rmsprop"] == pytest.approx(1, abs=1e-6)
        rest = weights["notes_rmsprop"] - weights["rmsprop"]
        assert rest[0] == pytest.approx(0.9**num, rel=1e-5)
        np.testing.assert_array_equal(rest[1:], 0)
    # the window: the mean age, and what lies behind it
    weights = np.asarray(adaptive.square_weights(1500, "rmsprop", decay=0.99), np.float64)
    age = np.arange(1499, -1, -1)
    assert weights @ age + 1 == pytest.approx(100, rel=1e-3)
    assert weights[age >= 100].sum() == pytest.approx(0.99**100, rel=1e-3)
    assert weights[age >= 100].sum() == pytest.approx(math.exp(-1), rel=0.01)


@functools.cache
def _identities():
    @jax.jit
    def both(gradients, rate, alpha):
        def root(count):
            return jnp.sqrt(count.astype(jnp.result_type(float)) + 1)

        usual = adaptive.rmsprop(rate, decay=alpha, epsilon=0.0)
        first = jnp.square(gradients[0])
        state = usual.init(gradients[0])._replace(square=first)
        _, updates = jax.lax.scan(lambda s, g: usual.update(g, s)[::-1], state, gradients)
        _, plain = fed(usual, gradients)
        notes, held = fed(adaptive.notes_rmsprop(rate, alpha=alpha, epsilon=0.0), gradients)
        return {
            "root mean with decay": (
                fed(adaptive.root_mean_adagrad(lambda t: rate / root(t), epsilon=0.0), gradients)[
                    0
                ],
                fed(adaptive.adagrad(rate, epsilon=0.0), gradients)[0],
            ),
            "root mean, constant rate": (
                fed(adaptive.root_mean_adagrad(rate, epsilon=0.0), gradients)[0],
                fed(adaptive.adagrad(lambda t: rate * root(t), epsilon=0.0), gradients)[0],
            ),
            "notes' RMSProp": (notes, updates),
            "its divisor": (held.square, plain.square + alpha ** len(gradients) * first),
        }

    return both


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.floats(-100, 100).filter(lambda g: abs(g) > 1e-6), min_size=6, max_size=6),
    st.floats(0, 10),
    st.floats(0, 0.999),
)
def test_the_notes_forms_are_the_standard_rules(gradients, rate, alpha):
    with jax.enable_x64(True):
        pairs = _identities()(jnp.array(gradients), jnp.array(rate), jnp.array(alpha))
    for name, (ours, theirs) in pairs.items():
        # float64; six steps, some with a power and a root
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-300, err_msg=name)


def test_the_first_step():
    gradient = jnp.array([1e-3, -1.0, 30.0, 1e3])
    sign = np.sign(gradient)
    for rule, length in [
        (adaptive.adagrad(0.2), 0.2),
        (adaptive.root_mean_adagrad(0.2), 0.2),
        (adaptive.notes_rmsprop(0.2, alpha=0.99), 0.2),
        (adaptive.rmsprop(0.2, decay=0.99), 0.2 / math.sqrt(1 - 0.99)),
    ]:
        update, _ = rule.update(gradient, rule.init(gradient))
        # float32; epsilon is 1e-8 beside a root of 1e-4
        np.testing.assert_allclose(update, -length * sign, rtol=2e-4)


def test_a_gradient_that_was_large_once():
    """Adagrad's rate stays small for ever, RMSProp's comes back like alpha^(-t/2)."""
    gradients = np.ones((400, 1), np.float32)
    gradients[0] = 100.0
    sums, _ = fed(adaptive.adagrad(1.0), gradients)
    average, _ = fed(adaptive.notes_rmsprop(1.0, alpha=0.9), gradients)
    assert float(sums[-1, 0]) == pytest.approx(-1 / math.sqrt(100**2 + 399), rel=1e-5)
    t = np.arange(400)
    expected = -1 / np.sqrt(0.9**t * (100.0**2 - 1) + 1)
    np.testing.assert_allclose(average[1:, 0], expected[1:], rtol=1e-4)  # float32, 400 steps
    assert float(average[-1, 0]) == pytest.approx(-1, rel=1e-5)


def test_steps_do_not_depend_on_the_scale_of_the_gradient():
    plain, scaled = closed_forms()
    for rule, (updates, _) in plain.items():
        # powers of two: no rounding at all
        np.testing.assert_array_equal(updates, scaled[rule][0], err_msg=rule)


def test_rmsprop_with_its_weights_corrected_is_adam_without_momentum():
    weight = 1 - 0.8 ** np.arange(1.0, len(GRADIENTS) + 1)
    plain, _ = closed_forms()[0]["rmsprop"]
    corrected, _ = closed_forms()[0]["adam"]
    np.testing.assert_allclose(corrected, plain * np.sqrt(weight)[:, None], rtol=1e-12)


# Numbers


def test_centered_variance_is_never_negative():
    """The difference of two averages is, in float32; a constant gradient has the variance 0."""
    gradients = np.full((600, 1), 1000.1, np.float32)
    updates, state = fed(adaptive.rmsprop(0.1, decay=0.9, centered=True), gradients)
    assert np.isfinite(updates).all()
    expected = 0.9 ** np.arange(1.0, 601) * (1 - 0.9 ** np.arange(1.0, 601))
    # the closed form of v - m^2; in float32 until the deviations are lost in rounding
    np.testing.assert_allclose(updates[:50, 0], -0.1 / np.sqrt(expected[:50]), rtol=1e-3)
    assert 0 <= float(state.square[0]) < 1e-6 * 1000.1**2


def test_zero_gradients_do_not_move_and_nan_stays():
    for rule in [
        adaptive.adagrad(0.1, epsilon=0.0),
        adaptive.root_mean_adagrad(0.1, epsilon=0.0),
        adaptive.rmsprop(0.1, epsilon=0.0, centered=True),
        adaptive.notes_rmsprop(0.1, epsilon=0.0, epsilon_in_root=True),
    ]:
        params = jnp.zeros(2)
        update, state = rule.update(jnp.array([0.0, jnp.nan]), rule.init(params))
        np.testing.assert_array_equal(update, [0, np.nan])
        update, _ = rule.update(jnp.array([0.0, 1.0]), state)
        np.testing.assert_array_equal(update, [0, np.nan])


def test_the_mean_does_not_overflow():
    gradients = np.full((9, 1), 1e19, np.float32)  # the square, 1e38, is a third of the largest
    kept, _ = fed(adaptive.root_mean_adagrad(0.5), gradients)
    lost, _ = fed(adaptive.adagrad(0.5), gradients)
    np.testing.assert_allclose(kept, -0.5, rtol=1e-6)
    assert float(lost[-1, 0]) == 0  # divided by infinity


def test_state():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones((), jnp.float32)}
    state = adaptive.adagrad(0.1, initial_accumulator=0.25).init(params)
    chex.assert_trees_all_equal(state.square, {"a": jnp.full(2, 0.25), "b": jnp.float32(0.25)})
    plain = adaptive.rmsprop(0.1).init(params)
    assert plain[2:] == (None, None)
    full = adaptive.rmsprop(0.1, centered=True, momentum=jnp.float32(0)).init(params)
    chex.assert_trees_all_equal_shapes(full.square, full.mean, full.velocity, params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(full[1:]))
    update, new = adaptive.rmsprop(0.1, centered=True, momentum=0.5).update(params, full)
    chex.assert_trees_all_equal_dtypes(update, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, full)


# Transformations


def test_jit_equals_eager(x64):
    rule = adaptive.rmsprop(0.3, decay=0.8, epsilon=0.0, centered=True, momentum=0.9)
    state = rule.init(jnp.zeros(4))
    for gradient, compiled in zip(GRADIENTS, closed_forms()[0]["all"][0], strict=True):
        update, state = rule.update(jnp.asarray(gradient), state)
        np.testing.assert_allclose(update, compiled, rtol=1e-13)


def test_vmap_recompilation_and_gradients(x64):
    gradients = jnp.asarray(GRADIENTS[:6] / [1e-3, 1.0, 30.0, 1e3])

    def total(rate, decay, epsilon):
        rules = [
            adaptive.adagrad(rate, initial_accumulator=decay, epsilon=epsilon),
            adaptive.root_mean_adagrad(rate, epsilon=epsilon),
            adaptive.rmsprop(rate, decay=decay, epsilon=epsilon, centered=True, momentum=decay),
            adaptive.notes_rmsprop(rate, alpha=decay, epsilon=epsilon, epsilon_in_root=True),
        ]
        return jnp.stack([jnp.square(fed(rule, gradients)[0]).sum() for rule in rules])

    compiled = jax.jit(chex.assert_max_traces(total, n=1))
    options = [(0.1, 0.9, 1e-3), (0.5, 0.3, 1e-2), (2.0, 0.0, 0.1)]
    alone = [compiled(*row) for row in options]
    batched = jax.jit(jax.vmap(total))
    columns = np.array(options).T
    np.testing.assert_allclose(batched(*columns), alone, rtol=1e-12)
    # forward through six steps, with respect to the three hyper-parameters
    slopes = jax.jit(jax.jacfwd(total, argnums=(0, 1, 2)))(*options[0])
    shifts = 1e-6 * np.eye(3)
    up, down = (batched(*(np.array(options[0])[:, None] + sign * shifts)) for sign in (1, -1))
    # central differences: an error of 1e-12, and round-off of 1e-16 / 1e-6
    np.testing.assert_allclose(np.array(slopes), (up - down) / 2e-6, rtol=1e-5, atol=1e-7)


# Bad input

BAD = [
    (lambda: adaptive.adagrad(-0.1), ValueError, "learning_rate must not be negative, got -0.1"),
    (lambda: adaptive.adagrad(math.nan), ValueError, "learning_rate must be finite, got nan"),
    (lambda: adaptive.adagrad("fast"), TypeError, "learning_rate must be a numeric array, got str"),
    (
        lambda: adaptive.adagrad(0.1, initial_accumulator=-1),
        ValueError,
        "initial_accumulator must not be negative, got -1",
    ),
    (
        lambda: adaptive.root_mean_adagrad(0.1, epsilon=-1.0),
        ValueError,
        "epsilon must not be negative, got -1.0",
    ),
    (lambda: adaptive.rmsprop(0.1, decay=1.0), ValueError, r"decay must be in \[0, 1\), got 1.0"),
    (
        lambda: adaptive.rmsprop(0.1, momentum=-0.5),
        ValueError,
        r"momentum must be in \[0, 1\), got -0.5",
    ),
    (
        lambda: adaptive.rmsprop(0.1, centered="yes"),
        ValueError,
        "centered must be one of False, True, got 'yes'",
    ),
    (
        lambda: adaptive.notes_rmsprop(0.1, alpha=1.5),
        ValueError,
        r"alpha must be in \[0, 1\), got 1.5",
    ),
    (
        lambda: adaptive.notes_rmsprop(0.1, alpha=[0.5, 0.9]),
        ValueError,
        "alpha must be 0-D, got shape",
    ),
    (
        lambda: adaptive.adagrad(0.1).init({"w": jnp.arange(3)}),
        TypeError,
        r"params\['w'\] must be a floating-point array, got dtype int32",
    ),
    (
        lambda: adaptive.rmsprop(0.1).update(
            {"w": jnp.ones(2)}, adaptive.rmsprop(0.1).init({"w": jnp.ones(3)})
        ),
        ValueError,
        r"updates\['w'\] must have the shape \(2,\)|must have the shape",
    ),
    (
        lambda: adaptive.square_weights(0, "adagrad"),
        ValueError,
        "num_steps must be at least 1, got 0",
    ),
    (lambda: adaptive.square_weights(2.0, "adagrad"), TypeError, "num_steps must be an integer"),
    (lambda: adaptive.square_weights(2, "adam"), ValueError, "rule must be one of 'adagrad'"),
    (
        lambda: adaptive.square_weights(2, "rmsprop", decay=-1),
        ValueError,
        r"decay must be in \[0, 1\), got -1",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


# The page's claims


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_demo_bowl(result):
    bowl = result.bowl
    names = list(bowl.names)
    along, turned = np.asarray(bowl.loss)[:, :, -1].T
    descent = names.index("descent")
    # Along the axes the adaptive rules do not feel the stretch; turned, they lose that.
    for rule in ("Adagrad", "RMSProp"):
        i = names.index(rule)
        assert along[i] < 0.2 * along[descent]
        assert turned[i] > 5 * along[i]
    assert turned[names.index("Adagrad")] > turned[descent]
    np.testing.assert_allclose(along[descent], turned[descent], rtol=1e-3)  # no axes in descent
    rates = np.asarray(bowl.rates)
    np.testing.assert_allclose(rates[descent], rates[descent, 0, 0], rtol=1e-6)
    first = rates[names.index("Adagrad"), 0]
    assert first[0] / first[1] == pytest.approx(demo.STRETCH * abs(demo.START[1] / demo.START[0]))


def test_demo_features(result):
    features = result.features
    names = list(features.names)
    raw, scaled = np.asarray(features.best_loss).T
    descent = names.index("descent")
    adaptive_rules = [i for i in range(len(names)) if i != descent]
    assert raw[adaptive_rules].max() < 0.95 * raw[descent]
    assert raw[names.index("Adagrad")] < 0.75 * raw[descent]
    assert np.all(scaled < 0.3 * raw)
    slopes = np.asarray(features.slope)
    assert slopes[descent] == pytest.approx(0, abs=1e-3)
    assert np.all(np.abs(slopes[adaptive_rules] + 1) < 0.2)


def test_demo_output(result):
    tables = demo.tables(result)
    assert all(len({tuple(row) for row in rows}) == 1 for rows in tables.values())
    assert text_tables.text(tables)
    assert len(demo.plot(result).axes) >= 4
    assert result.source.name == "breast_cancer"
