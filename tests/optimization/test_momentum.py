"""SGD, the heavy ball and Nesterov: peers, the weights of past gradients, rates on quadratics."""

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

from mlnotes_jax.demos.optimization import momentum as demo
from mlnotes_jax.optimization import momentum

NUM_STEPS = 200
START = np.array([-1.2, 1.0, 0.5, -0.7])


def slope(x, np=jnp):
    """Gradient of sum (y - x^2)^2 - cos(3 x) / 3 over neighbours x, y: curved, with waves."""
    inner = x[1:] - x[:-1] ** 2
    zero = np.zeros_like(x[:1])
    valley = np.concatenate([-4 * x[:-1] * inner, zero]) + np.concatenate([zero, 2 * inner])
    return valley + np.sin(3 * x)


def steps(rule, gradients):
    """The updates that a rule makes of given gradients."""

    def step(state, g):
        update, state = rule.update(g, state)
        return state, update

    return jax.lax.scan(step, rule.init(jnp.zeros_like(gradients[0])), gradients)[1]


def path(rule, start=START, num_steps=NUM_STEPS, gradient=slope):
    """The parameters after each step."""

    def step(carry, _):
        x, state = carry
        update, state = rule.update(gradient(x), state, x)
        x = x + update
        return (x, state), x

    x = jnp.asarray(start)
    return jax.lax.scan(step, (x, rule.init(x)), length=num_steps)[1]


def falling(count):
    return 0.02 / (1 + 0.1 * count.astype(jnp.result_type(float)))


def rules():
    return {
        "sgd": momentum.sgd(0.02),
        "heavy ball": momentum.heavy_ball(0.02),
        "dampened": momentum.heavy_ball(0.02, momentum=0.8, dampening=0.3),
        "first too": momentum.heavy_ball(0.02, momentum=0.8, dampening=0.8, dampen_first=True),
        "nesterov": momentum.nesterov(0.02),
        "notes": momentum.notes_momentum(0.02),
        "notes, ahead": momentum.notes_momentum(0.02, nesterov=True),
        "heavy ball, falling": momentum.heavy_ball(falling),
        "nesterov, falling": momentum.nesterov(falling),
        "notes, falling": momentum.notes_momentum(falling),
        "notes, ahead, falling": momentum.notes_momentum(falling, nesterov=True),
    }


@functools.cache
def all_paths():
    """All rules in one program, in double precision."""
    with jax.enable_x64(True):
        found = jax.jit(lambda: {name: path(rule) for name, rule in rules().items()})()
        return {name: np.asarray(value) for name, value in found.items()}


def relative(ours, peer):
    return np.linalg.norm(ours - peer) / np.linalg.norm(peer)


# Peers


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {}),
        ("heavy ball", {"momentum": 0.9}),
        ("dampened", {"momentum": 0.8, "dampening": 0.3}),
        ("nesterov", {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_equals_torch(torch, name, options):
    x = torch.tensor(START, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.02, **options)
    theirs = []
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        ((x[1:] - x[:-1] ** 2).square().sum() - torch.cos(3 * x).sum() / 3).backward()
        optimizer.step()
        theirs.append(x.detach().numpy().copy())
    # 200 steps of double precision; the walk is stable, so that rounding does not grow.
    assert relative(all_paths()[name], np.array(theirs)) < 1e-10
    assert np.abs(np.diff(theirs[::20], axis=0)).max() > 0.1  # it went somewhere


def test_equals_optax(x64):
    peers = {
        "sgd": optax.sgd(0.02),
        "heavy ball": optax.sgd(0.02, momentum=0.9),
        "first too": optax.chain(optax.ema(0.8, debias=False), optax.scale(-0.02)),
        "nesterov": optax.sgd(0.02, momentum=0.9, nesterov=True),
        "heavy ball, falling": optax.sgd(falling, momentum=0.9),
        "nesterov, falling": optax.sgd(falling, momentum=0.9, nesterov=True),
    }
    with jax.numpy_dtype_promotion("standard"):
        theirs = jax.jit(lambda: {name: path(rule) for name, rule in peers.items()})()
    for name, walk in theirs.items():
        assert relative(all_paths()[name], np.asarray(walk)) < 1e-10, name


# The notes' form, and Nesterov's


def test_the_notes_form_is_the_standard_one_for_a_constant_rate():
    found = all_paths()
    for ours, standard in (("notes", "heavy ball"), ("notes, ahead", "nesterov")):
        assert relative(found[ours], found[standard]) < 1e-12
        # with a rate that falls they part
        assert relative(found[f"{ours}, falling"], found[f"{standard}, falling"]) > 1e-3


@pytest.mark.parametrize("name", ["nesterov", "notes, ahead", "notes, ahead, falling"])
def test_nesterov_takes_the_gradient_one_step_ahead(name):
    """Nesterov's own iterates, in NumPy; our parameters are where the gradient is taken."""
    theta, m, ahead = START.copy(), np.zeros(4), []
    for t in range(NUM_STEPS):
        eta = 0.02 / (1 + 0.1 * t) if "falling" in name else 0.02
        m = 0.9 * m - eta * slope(theta + 0.9 * m, np)
        theta = theta + m
        ahead.append(theta + 0.9 * m)
    assert relative(all_paths()[name], np.array(ahead)) < 1e-12


# Weights of past gradients


def test_weights_of_past_gradients(x64):
    """Gradients e_1, e_2, ...: what the steps are made of can be read off."""
    num = 6
    unit = jnp.eye(num)

    def schedule(count):
        return 1.0 / (1.0 + count.astype(jnp.float64))

    options = {
        "heavy": {},
        "damped": {"dampening": 0.4},
        "first": {"dampening": 0.4, "dampen_first": True},
        "nesterov": {"nesterov": True},
    }
    rules = {
        "nesterov": momentum.nesterov(1.0, momentum=0.7),
        "notes": momentum.notes_momentum(schedule, momentum=0.7),
        "falling": momentum.heavy_ball(schedule, momentum=0.7),
    }
    for name in ("heavy", "damped", "first"):
        rules[name] = momentum.heavy_ball(1.0, momentum=0.7, **options[name])

    @jax.jit
    def both(lam):
        made = {name: steps(rule, unit) for name, rule in rules.items()}
        weights = {
            name: {k: momentum.gradient_weights(k, lam, **chosen) for k in (1, 2, num)}
            for name, chosen in options.items()
        }
        return made, weights

    made, weights = both(0.7)
    t = np.arange(1, num + 1)
    plain = np.tril(0.7 ** np.maximum(t[:, None] - t[None], 0))
    # a handful of products in double precision
    np.testing.assert_allclose(made["heavy"], -plain, rtol=1e-14, atol=0)
    for name in options:
        for k, ours in weights[name].items():
            np.testing.assert_allclose(-made[name][k - 1, :k], ours, rtol=1e-14)
            assert not made[name][k - 1, k:].any()
    # The notes' m keeps the rate of each gradient; the heavy ball has the rate of today.
    np.testing.assert_allclose(made["notes"], -plain / t[None], rtol=1e-14)
    np.testing.assert_allclose(made["falling"], -plain / t[:, None], rtol=1e-14)


def test_sums_of_weights_are_speeds_on_a_slope(x64):
    @jax.jit
    @jax.vmap
    def found(lam):
        return (
            momentum.gradient_weights(40, lam),
            momentum.gradient_weights(40, lam, nesterov=True).sum(),
            momentum.terminal_speed(lam),
        )

    t, momenta = np.arange(1, 41), np.array([0.0, 0.5, 0.9])
    for lam, weights, ahead, limit in zip(momenta, *found(momenta), strict=True):
        sums = np.cumsum(np.asarray(weights)[::-1])
        np.testing.assert_allclose(sums, (1 - lam**t) / (1 - lam), rtol=1e-13)
        np.testing.assert_allclose(ahead, (1 - lam**41) / (1 - lam), rtol=1e-13)
        assert float(limit) == pytest.approx(1 / (1 - lam), rel=1e-14)
        assert sums[-1] == pytest.approx(float(limit) * (1 - lam**40), rel=1e-13)
    np.testing.assert_array_equal(momentum.gradient_weights(3, 0), [0, 0, 1])


# Rates on a quadratic


def matrix(h, eta, lam, kind):
    """One step on a quadratic, of (x_t, x_{t-1})."""
    if kind == "heavy_ball":
        return np.array([[1 + lam - eta * h, -lam], [1, 0]])
    return np.array([[(1 + lam) * (1 - eta * h), -lam * (1 - eta * h)], [1, 0]])


@settings(deadline=None, max_examples=30)
@given(
    st.floats(0.02, 0.98),
    st.floats(0.0, 0.99),
    st.floats(0.01, 3.0),
    st.sampled_from(["heavy_ball", "nesterov"]),
)
def test_contraction_factor(low, lam, rate, kind):
    """The spectral radius; and no setting beats the best one."""
    values = np.array([low, 1.0])
    with jax.enable_x64(True):
        ours = float(
            momentum.contraction_factor(values, learning_rate=rate, momentum=lam, kind=kind)
        )
        best = momentum.best_settings(values, kind="heavy_ball")
    radius = max(np.abs(np.linalg.eigvals(matrix(h, rate, lam, kind))).max() for h in values)
    # near a double root an eigenvalue has an error of the root of 1e-16
    assert ours == pytest.approx(radius, abs=1e-7)
    if kind == "heavy_ball":
        assert ours >= float(best.factor) - 1e-9


@pytest.mark.parametrize("kind", ["sgd", "heavy_ball", "nesterov"])
def test_best_settings(x64, kind):
    kappa = 50.0
    best = momentum.best_settings([3.0, 1.0, kappa], kind=kind)
    root = np.sqrt(kappa)
    factor = {
        "sgd": (kappa - 1) / (kappa + 1),
        "heavy_ball": (root - 1) / (root + 1),
        "nesterov": 1 - 1 / root,
    }[kind]
    assert float(best.factor) == pytest.approx(factor, rel=1e-14)
    settings = {"learning_rate": best.learning_rate, "momentum": best.momentum}
    rule = "heavy_ball" if kind == "sgd" else kind
    grid = np.linspace(1.0, kappa, 101)
    worst = float(momentum.contraction_factor(grid, **settings, kind=rule))
    # a double root: the root of 1e-16
    assert worst == pytest.approx(factor, abs=1e-7)
    # With this rate another momentum is worse. (Not so for the best rate of plain descent.)
    for change in (-0.02, 0.02) if kind != "sgd" else ():
        moved = momentum.contraction_factor(
            grid,
            learning_rate=best.learning_rate,
            momentum=best.momentum + change,
            kind=rule,
        )
        assert float(moved) > factor + 1e-3


def test_walks_shrink_by_the_factor(x64):
    """A real walk on a quadratic, all rules in one program."""
    curvature = jnp.array([1.0, 7.0, 100.0])
    made = {
        "sgd": lambda s: momentum.sgd(s.learning_rate),
        "heavy_ball": lambda s: momentum.heavy_ball(s.learning_rate, momentum=s.momentum),
        "nesterov": lambda s: momentum.nesterov(s.learning_rate, momentum=s.momentum),
    }
    best = {kind: momentum.best_settings(curvature, kind=kind) for kind in made}
    walks = jax.jit(
        lambda: {
            kind: path(make(best[kind]), np.ones(3), 1000, lambda x: curvature * x)
            for kind, make in made.items()
        }
    )()
    first = {}
    for kind, walk in walks.items():
        distance = np.linalg.norm(walk, axis=1)
        # Equal roots make it (a + b t) factor^t: from t to 2 t steps that is nearly twice as long,
        # which spread over t = 50 steps is 1.4 % a step.
        late = (distance[99] / distance[49]) ** (1 / 50)
        assert late == pytest.approx(float(best[kind].factor), rel=0.016)
        first[kind] = int(np.argmax(distance < 1e-3 * distance[0]))
    # ln(1000) / -ln(factor): 345, 34 and 66 steps, and some for the double root
    assert first["heavy_ball"] < first["nesterov"] < first["sgd"] / 3


def test_a_saddle_is_left_faster_with_momentum(x64):
    """z^2 - (1 + lam + eta h) z + lam = 0: close to 1 + eta h / (1 - lam)."""
    for lam in (0.0, 0.5, 0.9):
        factor = momentum.contraction_factor([-1.0], learning_rate=1e-4, momentum=lam)
        assert float(factor - 1) == pytest.approx(1e-4 / (1 - lam), rel=2e-2)


# Transformations and dtypes; the rest is in test_rules.py, for every rule


def test_jit_vmap_and_one_trace():
    curvature = np.array([0.5, 2.0], np.float32)

    def both(lam, rate):
        factor = momentum.contraction_factor(curvature, learning_rate=rate, momentum=lam)
        rule = momentum.heavy_ball(rate, momentum=lam)
        return factor, path(rule, np.ones(2, np.float32), 5, lambda x: curvature * x)[-1]

    compiled = jax.jit(chex.assert_max_traces(both, n=1))
    options = [(0.5, 0.1), (0.9, 0.3), (0.0, 0.2)]
    batched = jax.vmap(both)(*(jnp.array(column) for column in zip(*options, strict=True)))
    for i, row in enumerate(options):
        lane = jax.tree.map(lambda leaf, i=i: leaf[i], batched)
        chex.assert_trees_all_close(compiled(*row), lane, rtol=1e-5)
    # five steps of float32
    chex.assert_trees_all_close(both(*options[0]), compiled(*options[0]), rtol=1e-5, atol=1e-6)


def test_gradients_with_respect_to_hyper_parameters(x64):
    curvature = jnp.array([0.5, 2.0])

    @jax.jit
    def end(rate, lam):
        def bowl(x):
            return curvature * x

        walks = [
            path(momentum.heavy_ball(rate, momentum=lam, dampening=lam / 2), np.ones(2), 4, bowl),
            path(momentum.notes_momentum(rate, momentum=lam, nesterov=True), np.ones(2), 4, bowl),
        ]
        factors = [
            momentum.contraction_factor(curvature, learning_rate=rate, momentum=lam, kind=kind)
            for kind in ("heavy_ball", "nesterov")
        ]
        weights = momentum.gradient_weights(4, lam) @ jnp.array([1.0, -1.0, 2.0, 0.5])
        return sum(w[-1].sum() for w in walks) + sum(factors) + weights

    chex.assert_numerical_grads(end, (jnp.array(0.3), jnp.array(0.6)), order=1, modes=["rev"])
    assert np.isfinite(jax.grad(end, argnums=1)(jnp.array(0.3), jnp.array(0.0)))


@pytest.mark.parametrize(
    "rule",
    [momentum.heavy_ball(1.0), momentum.nesterov(1.0), momentum.notes_momentum(1.0)],
)
def test_the_velocity_of_narrow_parameters_is_float32(rule):
    """A thousand small gradients add up; in bfloat16 the sum would stop growing."""
    g = jnp.full(2, 2.0**-9, jnp.bfloat16)
    state = rule.init(g)
    update = jax.jit(rule.update)
    for _ in range(60):
        step, state = update(g, state)
    assert step.dtype == jnp.bfloat16
    assert state.velocity.dtype == jnp.float32
    assert int(state.count) == 60
    expected = 2.0**-9 * (1 - 0.9**60) / 0.1
    np.testing.assert_allclose(np.abs(state.velocity), expected, rtol=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: momentum.sgd(-1.0), ValueError, "learning_rate must not be negative, got -1.0"),
        (lambda: momentum.sgd(np.inf), ValueError, "learning_rate must be finite, got inf"),
        (lambda: momentum.sgd("fast"), TypeError, "learning_rate must be a numeric array, got str"),
        (
            lambda: momentum.heavy_ball(0.1, momentum=1.0),
            ValueError,
            "momentum must be in [0, 1), got 1.0",
        ),
        (
            lambda: momentum.heavy_ball(0.1, dampening=-0.1),
            ValueError,
            "dampening must be in [0, 1), got -0.1",
        ),
        (
            lambda: momentum.heavy_ball(0.1, dampen_first=1),
            TypeError,
            "dampen_first must be True or False, got 1",
        ),
        (
            lambda: momentum.nesterov(0.1, momentum=np.nan),
            ValueError,
            "momentum must be finite, got nan",
        ),
        (
            lambda: momentum.notes_momentum(0.1, momentum=[0.9, 0.8]),
            ValueError,
            "momentum must be 0-D, got shape (2,)",
        ),
        (
            lambda: momentum.notes_momentum(0.1, nesterov="yes"),
            TypeError,
            "nesterov must be True or False, got 'yes'",
        ),
        (
            lambda: momentum.heavy_ball(0.1).init({"w": jnp.arange(3)}),
            TypeError,
            "params['w'] must be a floating-point array, got dtype int32",
        ),
        (
            lambda: momentum.nesterov(0.1).update(
                jnp.ones(3), momentum.nesterov(0.1).init(jnp.ones(2))
            ),
            ValueError,
            "updates must have the shape (2,)",
        ),
        (
            lambda: momentum.gradient_weights(0, 0.9),
            ValueError,
            "num_steps must be at least 1, got 0",
        ),
        (
            lambda: momentum.gradient_weights(3, 0.9, dampening=0.5, nesterov=True),
            ValueError,
            "dampening must be 0 with nesterov, got 0.5",
        ),
        (lambda: momentum.terminal_speed(1.0), ValueError, "1 - momentum must be positive"),
        (
            lambda: momentum.contraction_factor([[1.0]], learning_rate=1.0, momentum=0.0),
            ValueError,
            "eigenvalues must be 1-D, got shape (1, 1)",
        ),
        (
            lambda: momentum.contraction_factor([1.0], learning_rate=0.0, momentum=0.0),
            ValueError,
            "learning_rate must be positive, got 0.0",
        ),
        (
            lambda: momentum.contraction_factor([1.0], learning_rate=1.0, momentum=0.0, kind="x"),
            ValueError,
            "kind must be one of 'heavy_ball', 'nesterov', got 'x'",
        ),
        (
            lambda: momentum.best_settings([1.0, 0.0]),
            ValueError,
            "eigenvalues must be positive, got 0.0",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_empty_trees_give_empty_updates():
    for rule in (momentum.sgd(0.1), momentum.heavy_ball(0.1), momentum.nesterov(0.1)):
        update, state = rule.update({}, rule.init({}))
        assert update == {}
        assert int(state.count) == 1


# The demo


def test_the_claims_of_the_page():
    result = demo.run(jax.random.key(0), quick=True)
    batches, plateau = result.batches, result.plateau
    assert "digits" in result.source.name.lower()
    # Small batches make more updates of the same epochs, and end lower at the same rate.
    assert batches.sizes[0] == 1
    np.testing.assert_array_equal(batches.updates, result.num_rows // batches.sizes)
    assert (np.diff(batches.train_loss[0]) > 0).all()
    assert (np.diff(batches.test_loss[0]) > 0).all()
    # A rate that grows with the size brings the largest batch a good part of the way.
    assert batches.train_loss[1, -1] < batches.train_loss[0, -1] - 0.1
    assert np.isfinite(batches.seconds).all()
    # The plateau: momentum has left it, plain descent at the same rate has hardly moved.
    plain, ball, larger = plateau.loss
    assert plateau.left[0] == -1
    assert 0 < plateau.left[1] < len(ball)
    assert plain[-1] > 0.95 * plain[0]
    assert ball[-1] < 0.5 * ball[0]
    # A ten times larger rate without momentum overshoots.
    assert larger.max() > 2 * larger[0]
    # Near the saddle the slope grows by a factor z: 1 / (1 - lambda / z). Medians over some steps
    # of a real network, where the loss has begun to bend: within 5 %.
    predicted = 1 / (1 - plateau.momentum / plateau.growth)
    np.testing.assert_allclose(plateau.speed[:2], predicted[:2], rtol=0.05)
    assert plateau.growth[1] > plateau.growth[0] > 1
    assert demo.tables(result)
