"""Adam, AMSGrad, NAdam and RAdam against PyTorch, Optax, transcriptions and closed forms."""

import re
from decimal import Decimal, localcontext
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos import tables as text_tables
from mlnotes_jax.demos.optimization import adam as demo
from mlnotes_jax.optimization import adam

STEPS = 200
START = np.array([2.5, -1.3, 0.4, -3.1, 0.02])
BOWL = np.diag([0.1, 0.5, 1.0, 4.0, 20.0]) + 0.2


def slope(x, sin):
    """Gradient of x' A x / 2 + sum cos(3 x): a bowl with ripples."""
    return x @ BOWL - 3 * sin(3 * x)


# Made in the test: a rate is held in the precision of the moment when the rule is made.
# Our rules with PyTorch's name for each, or with Optax's rule.
TORCH = {
    "adam": (partial(adam.adam, 0.03), "Adam", {}),
    "adam, decays": (
        partial(adam.adam, 0.03, beta1=0.5, beta2=0.9, epsilon=1e-2),
        "Adam",
        {"betas": (0.5, 0.9), "eps": 1e-2},
    ),
    "amsgrad": (partial(adam.amsgrad, 0.03), "Adam", {"amsgrad": True}),
    "amsgrad, short": (
        partial(adam.amsgrad, 0.03, beta2=0.9),
        "Adam",
        {"amsgrad": True, "betas": (0.9, 0.9)},
    ),
    "nadam": (partial(adam.nadam, 0.03), "NAdam", {}),
    "nadam, fast": (
        partial(adam.nadam, 0.03, momentum_decay=0.3),
        "NAdam",
        {"momentum_decay": 0.3},
    ),
    "radam": (partial(adam.radam, 0.03), "RAdam", {}),
    "radam, short": (
        partial(adam.radam, 0.03, beta2=0.9, epsilon=1e-2),
        "RAdam",
        {"betas": (0.9, 0.9), "eps": 1e-2},
    ),
    "radam, never": (
        partial(adam.radam, 0.003, beta2=0.6),
        "RAdam",
        {"betas": (0.9, 0.6), "lr": 0.003},
    ),
}
OPTAX = {
    "adam, optax": (partial(adam.adam, 0.03), partial(optax.adam, 0.03)),
    "adam, in root": (
        partial(adam.adam, 0.03, epsilon=1e-2, epsilon_in_root=True),
        partial(optax.adam, 0.03, eps=0.0, eps_root=1e-2),
    ),
    "amsgrad, corrected": (
        partial(adam.amsgrad, 0.03, maximum_of="corrected"),
        partial(optax.amsgrad, 0.03),
    ),
    "amsgrad, corrected, short, in root": (
        partial(
            adam.amsgrad,
            0.03,
            beta2=0.9,
            maximum_of="corrected",
            epsilon=1e-2,
            epsilon_in_root=True,
        ),
        partial(optax.amsgrad, 0.03, b2=0.9, eps=0.0, eps_root=1e-2),
    ),
    "amsgrad, paper": (
        partial(adam.amsgrad, 0.03, bias_correction=False),
        partial(optax.amsgrad, 0.03, bias_correction_mu=False, bias_correction_nu=False),
    ),
    "nadam, simple": (partial(adam.nadam, 0.03, momentum_decay=None), partial(optax.nadam, 0.03)),
    "nadam, simple, in root": (
        partial(adam.nadam, 0.03, momentum_decay=None, epsilon=1e-2, epsilon_in_root=True),
        partial(optax.nadam, 0.03, eps=0.0, eps_root=1e-2),
    ),
    "radam, optax": (
        partial(adam.radam, 0.03, epsilon_hat=False, inclusive=True),
        partial(optax.radam, 0.03),
    ),
    "radam, large epsilon": (
        partial(adam.radam, 0.03, beta2=0.9, epsilon=1e-2, epsilon_hat=False, inclusive=True),
        partial(optax.radam, 0.03, b2=0.9, eps=1e-2),
    ),
    # beta2 = 3/4 has the length 7 in the end, exactly: the threshold is met and not passed.
    "radam, inclusive": (
        partial(adam.radam, 0.03, beta2=0.75, threshold=7.0, epsilon_hat=False, inclusive=True),
        partial(optax.radam, 0.03, b2=0.75, threshold=7.0),
    ),
}
OTHERS = {
    "adam, hat": partial(adam.adam, 0.03, epsilon=1e-2, epsilon_hat=True),
    "adam, hat in root": partial(
        adam.adam, 0.03, epsilon=1e-2, epsilon_hat=True, epsilon_in_root=True
    ),
    "adam, outside": partial(adam.adam, 0.03, epsilon=1e-2),
    "nadam, paper": partial(adam.nadam, 0.03, scheduled_average=True),
    "radam, strict": partial(adam.radam, 0.003, beta2=0.75, threshold=7.0),
    "radam, threshold 4": partial(adam.radam, 0.03, threshold=4.0),
    "radam, in root": partial(
        adam.radam, 0.03, epsilon=1e-2, epsilon_hat=False, epsilon_in_root=True
    ),
    "amsgrad, raw, in root": partial(adam.amsgrad, 0.03, epsilon=1e-2, epsilon_in_root=True),
}


def descend(rules):
    """The parameters after each step of many rules, in one scan."""
    start, rules = jnp.asarray(START), {name: make() for name, make in rules.items()}

    def step(carry, _):
        new = {}
        for name, (x, state) in carry.items():
            move, state = rules[name].update(slope(x, jnp.sin), state, x)
            new[name] = (x + move, state)
        return new, {name: x for name, (x, _) in new.items()}

    carry = {name: (start, rule.init(start)) for name, rule in rules.items()}
    return jax.lax.scan(step, carry, length=STEPS)[1]


@pytest.fixture(scope="module")
def paths():
    """Ours and Optax's ("peer of ..."), in double precision."""
    ours = {name: rule for name, (rule, *_) in (TORCH | OPTAX).items()} | OTHERS
    peers = {f"peer of {name}": peer for name, (_, peer) in OPTAX.items()}
    with jax.enable_x64(True):
        # Many small rules, a few steps: less optimisation by the compiler is faster.
        options = {"xla_backend_optimization_level": 0}
        found = jax.jit(lambda: descend(ours), compiler_options=options)()
        with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer
            found |= jax.jit(lambda: descend(peers), compiler_options=options)()
        return {name: np.asarray(path) for name, path in found.items()}


def distance(ours, theirs):
    assert ours.shape == theirs.shape == (STEPS, len(START))
    assert ours.dtype == theirs.dtype == np.float64
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


# Peers


@pytest.mark.parametrize("name", TORCH)
def test_equals_torch(torch, paths, name):
    _, peer, options = TORCH[name]
    x = torch.tensor(START, requires_grad=True)
    bowl, path = torch.tensor(BOWL), []
    torch.set_default_dtype(torch.float64)  # NAdam holds its product of momenta in this dtype
    try:
        optimizer = getattr(torch.optim, peer)([x], **{"lr": 0.03, **options})
        for _ in range(STEPS):
            point = x.detach()
            x.grad = point @ bowl - 3 * torch.sin(3 * point)
            optimizer.step()
            path.append(x.detach().numpy().copy())
    finally:
        torch.set_default_dtype(torch.float32)
    # Asked for: 1e-10. Each step adds round-off of 1e-16, and the bumps do not amplify it much.
    assert distance(paths[name], np.stack(path)) < 1e-10
    assert np.abs(path[-1] - START).max() > 0.5  # it went somewhere


@pytest.mark.parametrize("name", OPTAX)
def test_equals_optax(paths, name):
    assert distance(paths[name], paths[f"peer of {name}"]) < 1e-10


def test_conventions_differ(paths):
    """The arguments that choose a convention are no decoration."""
    for one, other in [
        ("amsgrad", "amsgrad, corrected"),
        ("amsgrad", "amsgrad, paper"),
        ("amsgrad, short", "adam"),
        ("nadam", "nadam, simple"),
        ("nadam", "nadam, paper"),
        ("radam", "radam, threshold 4"),
        ("radam", "adam"),
        ("adam, outside", "adam, in root"),
        ("adam, outside", "adam, hat"),
        ("adam, hat in root", "adam, hat"),
        ("radam, in root", "radam"),
    ]:
        assert distance(paths[one], paths[other]) > 1e-4, (one, other)
    # Epsilon before or after the correction: 1e-8 either way, so they differ a little.
    assert 3e-10 < distance(paths["radam"], paths["radam, optax"]) < 1e-6


# Transcriptions in NumPy


def transcribed(direction, rate=0.03, beta1=0.9, beta2=0.999):
    """Paths of `direction(t, g, m, v)`, with the moments of Adam."""
    x, m, v, path = START.copy(), 0.0, 0.0, []
    for t in range(1, STEPS + 1):
        g = slope(x, np.sin)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        x = x - rate * direction(t, g, m, v)
        path.append(x)
    return np.stack(path)


def test_epsilon_before_the_correction(paths):
    """Kingma and Ba, end of section 2: a rate of its own, and epsilon beside the raw root."""

    def hat(root):
        def direction(t, g, m, v):
            return np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / root(v)

        return direction

    expected = transcribed(hat(lambda v: np.sqrt(v) + 1e-2))
    assert distance(paths["adam, hat"], expected) < 1e-10
    expected = transcribed(hat(lambda v: np.sqrt(v + 1e-2)))
    assert distance(paths["adam, hat in root"], expected) < 1e-10


def test_nadam_of_the_paper(paths):
    """Dozat, algorithm 2, without its further factor of the second moment."""

    def mu(t):
        return 0.9 * (1 - 0.5 * 0.96 ** (t / 250))

    x, m, v, product, path = START.copy(), 0.0, 0.0, 1.0, []
    for t in range(1, STEPS + 1):
        g = slope(x, np.sin)
        product *= mu(t)
        m, v = mu(t) * m + (1 - mu(t)) * g, 0.999 * v + 0.001 * g**2
        m_bar = mu(t + 1) * m / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product)
        x = x - 0.03 * m_bar / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        path.append(x)
    assert distance(paths["nadam, paper"], np.stack(path)) < 1e-10


def test_amsgrad_with_epsilon_in_the_root(paths):
    largest = 0.0

    def direction(t, g, m, v):
        nonlocal largest
        largest = np.maximum(largest, v)
        return m / (1 - 0.9**t) / np.sqrt(largest / (1 - 0.999**t) + 1e-2)

    assert distance(paths["amsgrad, raw, in root"], transcribed(direction)) < 1e-10


def test_radam_with_other_thresholds(paths):
    def length(t):
        return 1999 - 2 * t * 0.999**t / (1 - 0.999**t)

    def factor(rho):
        return np.sqrt((rho - 4) * (rho - 2) * 1999 / (1995 * 1997 * rho))

    def four(t, g, m, v):
        step, rho = m / (1 - 0.9**t), length(t)
        divisor = (np.sqrt(v) + 1e-8) / np.sqrt(1 - 0.999**t)
        return factor(rho) * step / divisor if rho > 4 else step

    def in_root(t, g, m, v):
        step, rho = m / (1 - 0.9**t), length(t)
        divisor = np.sqrt(v / (1 - 0.999**t) + 1e-2)
        return factor(rho) * step / divisor if rho > 5 else step

    assert distance(paths["radam, threshold 4"], transcribed(four)) < 1e-10
    assert distance(paths["radam, in root"], transcribed(in_root)) < 1e-10
    # The length reaches 7 and does not pass it: nothing but momentum.
    plain = transcribed(lambda t, g, m, v: m / (1 - 0.9**t), rate=0.003, beta2=0.75)
    assert distance(paths["radam, strict"], plain) < 1e-10


# Closed forms


def steps_of(rule, gradients):
    """The steps for given gradients; what the rule remembers after each of them."""
    gradients = jnp.asarray(gradients)

    def step(state, gradient):
        move, state = rule.update(gradient, state)
        return state, (move, state)

    return jax.lax.scan(step, rule.init(jnp.zeros_like(gradients[0])), gradients)[1]


@pytest.mark.parametrize("make", [adam.adam, adam.amsgrad])
def test_a_constant_gradient_gives_steps_of_the_rate(make):
    """Corrected, both averages of a constant are that constant; float32 from the first step on."""
    gradients = np.tile(np.float32([1e-3, -7.0, 1e4]), (3000, 1))
    option = {"maximum_of": "corrected"} if make is adam.amsgrad else {}
    moves, _ = steps_of(make(0.25, epsilon=0.0, **option), gradients)
    # Averages of 3000 terms: some 1e-7 for each of the last hundred or thousand.
    np.testing.assert_allclose(moves, -0.25 * np.sign(gradients), rtol=1e-4)
    np.testing.assert_allclose(moves[:10], -0.25 * np.sign(gradients[:10]), rtol=2e-6)


def test_first_steps_in_closed_form():
    g = np.float32([5.0, -0.01])
    cases = [
        (adam.adam(1.0), np.sign(g)),
        (adam.nadam(1.0, momentum_decay=None), (1 + 0.9 * 0.1 / (1 - 0.9**2)) * np.sign(g)),
        (
            adam.amsgrad(1.0, bias_correction=False, epsilon=0.0),
            0.1 / np.sqrt(0.001) * np.sign(g),
        ),
        (adam.adam(1.0, beta1=0.0, beta2=0.0), np.sign(g)),
        (adam.radam(1.0), g),
        (adam.adam(1.0, epsilon=3.0), g / (np.abs(g) + 3)),
    ]
    first = jax.jit(lambda g: [rule.update(g, rule.init(g))[0] for rule, _ in cases])
    for found, (_, expected) in zip(first(g), cases, strict=True):
        np.testing.assert_allclose(found, -expected, rtol=1e-5)
    # No gradient, no step, where epsilon is not 0.
    assert all((move == 0).all() for i, move in enumerate(first(0 * g)) if i != 2)


@partial(jax.jit, static_argnames="make")
def moves_of(make, gradients, beta1, beta2):
    return steps_of(make(1.0, beta1=beta1, beta2=beta2, epsilon=0.0), gradients)[0]


unit = st.floats(-1, 1, allow_nan=False).filter(lambda x: abs(x) > 1e-3)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(unit, st.integers(-6, 6)), min_size=30, max_size=30),
    st.floats(0, 0.98),
    st.floats(0.05, 0.9999),
    st.floats(1e-4, 1e4),
)
def test_no_step_is_longer_than_the_bound(numbers, beta1, beta2, unit):
    """Whatever the gradients, and whatever their unit."""
    gradients = np.float32([unit * x * 10.0**power for x, power in numbers])
    bound = np.asarray(adam.step_bound(np.arange(1, 31), beta1=beta1, beta2=beta2))
    moves = np.asarray(moves_of(adam.adam, gradients, beta1, beta2))
    # float32: thirty roundings in each average; beta1 near 1 has a weight of 0.02 at first.
    assert (np.abs(moves) <= bound * (1 + 2e-4)).all()
    again = moves_of(adam.adam, gradients * np.float32(2.0**7), beta1, beta2)
    np.testing.assert_allclose(again, moves, rtol=1e-5)  # powers of two change no digit


@pytest.mark.parametrize("decays", [(0.9, 0.999), (0.5, 0.9), (0.9, 0.81), (0.95, 0.7)])
def test_growing_gradients_reach_the_bound(x64, decays):
    beta1, beta2 = decays
    t = np.arange(1, 41)
    gradients = (beta2 / beta1) ** t.astype(float)
    bound = adam.step_bound(t, beta1=beta1, beta2=beta2)
    moves = moves_of(adam.adam, gradients, beta1, beta2)
    assert moves.dtype == bound.dtype == np.float64
    # At each t the last t gradients are such a sequence, so each step reaches its bound.
    np.testing.assert_allclose(-moves, bound, rtol=1e-12)
    direct = [
        (1 - beta1) / (1 - beta1**n)
        * np.sqrt((1 - beta2**n) / (1 - beta2) * ((beta1**2 / beta2) ** np.arange(n)).sum())
        for n in t
    ]  # fmt: skip
    np.testing.assert_allclose(bound, direct, rtol=1e-12)


def test_the_bound_without_momentum_is_that_of_one_gradient():
    """A single gradient after zeros moves by 1 / sqrt(1 - beta2) at most."""
    bound = adam.step_bound(10**6, beta1=0.0, beta2=0.999)
    assert float(bound) == pytest.approx(1 / np.sqrt(0.001), rel=1e-5)
    limit = 0.1 / np.sqrt(0.001 * (1 - 0.81 / 0.999))
    assert float(adam.step_bound(10**6)) == pytest.approx(limit, rel=1e-5)


# AMSGrad


def test_the_corrected_maximum_never_falls_and_the_raw_one_may():
    gradients = np.float32([1.0, *[0.0] * 999])
    divisors = {}
    for order in ("raw", "corrected"):
        _, state = steps_of(adam.amsgrad(1.0, maximum_of=order), gradients)
        weight = 1 - 0.999 ** np.arange(1, 1001)
        divisors[order] = state.largest / (weight if order == "raw" else 1)
    np.testing.assert_allclose(divisors["corrected"], 1.0, rtol=1e-6)
    assert divisors["raw"][-1] == pytest.approx(0.001 / (1 - 0.999**1000), rel=1e-5)
    assert (np.diff(divisors["raw"]) < 0).all()


@settings(deadline=None, max_examples=8)
@given(st.floats(2.2, 9.0))
def test_adam_goes_to_the_worst_point_and_amsgrad_to_the_best(large):
    """Theorem 1 of Reddi, Kale and Kumar: beta1 = 0, beta2 = 1 / (1 + C^2), any C > 2."""
    beta2 = 1 / (1 + large**2)
    game = demo.Game(3, large)
    assert demo.drift(game, beta2) > 0
    ends = demo.play(3, large, 0.0, beta2, num_steps=3000)[:, -3:]
    assert np.min(ends[0]) > 0.95
    assert np.max(ends[1]) < -0.9
    assert demo.drift(game, 0.9999) < 0 < demo.critical_decay(game)
    assert abs(demo.drift(game, demo.critical_decay(game))) < 1e-9


# RAdam


def exact_length(beta2, t):
    with localcontext() as context:
        context.prec = 60
        beta = Decimal(beta2)
        weight = 1 - beta**t
        return float(2 / (1 - beta) - 1 - 2 * t * beta**t / weight)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999])
def test_length_to_round_off(dtype, beta2):
    counts = [1, 2, 4, 5, 6, 7, 20, 50, 150, 1000, 3000, 10**5]
    expected = [exact_length(beta2, t) for t in counts]
    with jax.enable_x64(dtype == "float64"):
        found = adam.rectification(np.array(counts, np.int32), beta2=beta2)
        assert found.length.dtype == dtype
        # The worst place is just beyond the switch of forms, where 20 of 21 parts cancel. In
        # float64 the beta of the test is exact, but 1 - beta is a difference: 1e-16 / 1e-5.
        rtol = 5e-6 if dtype == "float32" else 1e-11
        np.testing.assert_allclose(found.length, expected, rtol=rtol)
    assert found.rectified.tolist() == [rho > 5 for rho in expected]


def test_length_is_that_of_the_mean_age():
    """A simple average over n squares has the mean age (n - 1) / 2."""
    for beta2, t in [(0.9, 3), (0.99, 40), (0.999, 5000)]:
        ages = np.arange(t)
        weights = beta2**ages / (beta2**ages).sum()
        found = adam.rectification(t, beta2=beta2).length
        assert float(found) == pytest.approx(1 + 2 * (weights * ages).sum(), rel=2e-6)


def test_the_factor_holds_the_variance_at_its_least(x64):
    def variance(rho):
        return rho / (2 * (rho - 2) * (rho - 4))

    found = adam.rectification(np.arange(6, 30_000, 7))
    length, factor, rectified = (np.asarray(part) for part in found)
    assert rectified.all()
    np.testing.assert_allclose(factor**2 * variance(length), variance(1999.0), rtol=1e-9)
    assert (np.diff(factor) > 0).all()
    assert factor[-1] == pytest.approx(1, abs=1e-6)


def test_threshold_and_equality():
    for inclusive in (False, True):
        found = adam.rectification(500, beta2=0.75, threshold=7.0, inclusive=inclusive)
        assert (float(found.length), bool(found.rectified)) == (7.0, inclusive)
        assert float(found.factor) == 1.0
    assert not adam.rectification(10**6, beta2=0.6).rectified
    assert [
        int(adam.rectification(np.arange(1, 9), threshold=h).rectified.argmax()) for h in (4, 5)
    ] == [4, 5]


def test_functions_of_a_count_under_transformations():
    counts, decays = jnp.array([[1, 7], [500, 40_000]]), jnp.array([0.9, 0.99])
    for function in (adam.rectification, adam.step_bound):
        eager = [function(counts, beta2=beta2) for beta2 in decays]
        compiled = jax.jit(chex.assert_max_traces(function, n=1))
        batched = jax.vmap(lambda beta2, f=function: f(counts, beta2=beta2))(decays)
        for i, expected in enumerate(eager):
            chex.assert_trees_all_close(compiled(counts, beta2=decays[i]), expected, rtol=1e-6)
            row = jax.tree.map(lambda leaf, i=i: leaf[i], batched)
            chex.assert_trees_all_close(row, expected, rtol=1e-6)


# Derivatives through the rules, and dtypes


def test_derivatives_with_respect_to_hyper_parameters(x64):
    """Three steps with one gradient of zero: in the root, epsilon keeps the derivative finite."""
    gradients = jnp.array([[0.3, 0.0], [-1.2, 0.0], [0.8, 0.5]])

    def far(numbers):
        rate, beta1, beta2, epsilon = numbers[:4]
        options = {"beta1": beta1, "beta2": beta2, "epsilon": epsilon, "epsilon_in_root": True}
        rules = [adam.nadam]
        moves = [steps_of(make(rate, **options), numbers[4] * gradients)[0] for make in rules]
        return jnp.square(jnp.stack(moves)).sum()

    numbers = np.array([0.1, 0.8, 0.9, 1e-3, 1.0])
    found = jax.jit(jax.grad(far))(numbers)
    value = jax.jit(far)
    near = numbers + 1e-6 * np.concatenate([np.eye(5), -np.eye(5)])
    sides = np.array([value(row) for row in near])
    # Central differences: 1e-12 of curvature, round-off of 1e-16 / 1e-6.
    np.testing.assert_allclose(found, (sides[:5] - sides[5:]) / 2e-6, rtol=1e-6, atol=1e-8)
    assert (np.abs(found) > 1e-4).all()
    rule = adam.adam(1.0)
    outside = jax.grad(lambda g: rule.update(g, rule.init(g))[0].sum())(jnp.zeros(2))
    assert np.isnan(outside).all()


def test_narrow_gradients_have_wide_moments():
    rule = adam.nadam(0.1)
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones((), jnp.float32)}
    moves, state = rule.update(params, rule.init(params), params)
    assert (moves["a"].dtype, moves["b"].dtype) == (jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: adam.adam(-0.1), ValueError, "learning_rate must not be negative, got -0.1"),
        (lambda: adam.adam(0.1, beta1=1.0), ValueError, "beta1 must be in [0, 1), got 1.0"),
        (lambda: adam.amsgrad(0.1, beta2=-0.1), ValueError, "beta2 must be in [0, 1), got -0.1"),
        (lambda: adam.nadam(0.1, epsilon=-1.0), ValueError, "epsilon must not be negative"),
        (lambda: adam.radam(np.nan), ValueError, "learning_rate must be finite, got nan"),
        (
            lambda: adam.amsgrad(0.1, maximum_of="both"),
            ValueError,
            "maximum_of must be one of 'raw', 'corrected', got 'both'",
        ),
        (
            lambda: adam.nadam(0.1, momentum_decay=-1.0),
            ValueError,
            "momentum_decay must not be negative, got -1.0",
        ),
        (
            lambda: adam.radam(0.1, threshold=3.0),
            ValueError,
            "threshold must be at least 4, got 3.0",
        ),
        (lambda: adam.adam(0.1, beta1="fast"), TypeError, "beta1 must be a numeric array, got str"),
        (
            lambda: adam.radam(0.1).init({"n": jnp.arange(3)}),
            TypeError,
            "params['n'] must be a floating-point array, got dtype int32",
        ),
        (
            lambda: adam.amsgrad(0.1).update(jnp.ones(2), adam.amsgrad(0.1).init(jnp.ones(3))),
            ValueError,
            "updates must have the shape (3,) of the parameters that `init` saw, got (2,)",
        ),
        (lambda: adam.rectification(0), ValueError, "count must be positive, got 0"),
        (lambda: adam.rectification(1.5), TypeError, "count must be an integer array"),
        (lambda: adam.step_bound(3, beta2=0.0), ValueError, "beta2 must be positive, got 0.0"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


# The page's claims


@pytest.fixture(scope="module")
def shown():
    return demo.run(jax.random.key(0), quick=True)


def test_games_of_the_demo(shown):
    for walk in shown.walks:
        adams, amsgrads = walk.paths[:, -1]
        assert adams > 0.9
        assert amsgrads < -0.9
        assert walk.beta2 < walk.critical
    game, regret = shown.walks[0].game, shown.walks[0].regret
    # At the worst point a round costs 2 (C - 2) more than at the best; AMSGrad's loss fades.
    assert regret[0, -1] == pytest.approx(2 * (game.large - 2) / 3, rel=0.02)
    assert 0 < regret[1, -1] < 0.02
    # float32 walks of hundreds of steps
    np.testing.assert_allclose(shown.measured[0], shown.drifts, atol=2e-3)
    assert (shown.measured[1] < 0).all()
    assert shown.drifts[0] > 0 > shown.drifts[-1]


def test_network_of_the_demo(shown):
    net = shown.network
    assert shown.source.name
    assert net.rules == tuple(demo.RULES)
    best = net.train_loss.min(axis=1)
    assert (best == net.train_loss[np.arange(len(best)), net.best]).all()
    # Every rule learns, each with a rate of its own; the loss of a guess is log 10.
    assert (best < 0.1 * np.log(10)).all()
    # The choice of the rate matters more than that of the rule.
    over_rates = np.median(net.train_loss.max(axis=1) / best)
    assert over_rates > 3 * best.max() / best.min()


def test_tables_and_picture_of_the_demo(shown):
    text = text_tables.text(demo.tables(shown))
    assert "AMSGrad" in text
    figure = demo.plot(shown)
    assert len(figure.axes) == 4
    import matplotlib.pyplot as plt

    plt.close(figure)
