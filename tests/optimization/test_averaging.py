"""Averages against closed forms, Optax and PyTorch; variances against simulation."""

import math
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

from mlnotes_jax.optimization import averaging

PATH = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)


def params_at(t, path=PATH):
    return {"w": jnp.asarray(path[t]), "b": jnp.asarray(path[t, 0])}


def after(average, path=PATH, start=None):
    """The value after every update, in one scan."""
    path = jnp.asarray(path)

    def step(state, params):
        state = average.update(state, params)
        return state, average.value(state)

    return jax.lax.scan(step, average.init(path[0] if start is None else start), path)


# Closed forms and peers


def test_ema_is_the_weighted_mean(x64):
    path, decay = PATH.astype(np.float64), 0.8
    steps = np.arange(1, len(path) + 1)
    weights = np.tril(0.2 * 0.8 ** np.abs(steps[:, None] - steps))
    zero, debiased = weights @ path, weights @ path / (1 - 0.8 ** steps[:, None])
    # float64: about thirty roundings
    _, ours = after(averaging.ema(decay), path)
    np.testing.assert_allclose(ours, debiased, rtol=1e-11, atol=1e-13)
    _, ours = after(averaging.ema(decay, debias=False), path)
    np.testing.assert_allclose(ours, zero, rtol=1e-11, atol=1e-13)
    first = np.array([5.0, -1.0, 2.0])
    shadow = averaging.ema(decay, debias=False, start="params")
    _, ours = after(shadow, path, jnp.asarray(first))
    np.testing.assert_allclose(ours, zero + 0.8 ** steps[:, None] * first, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_ema_equals_optax(debias, decay):
    peer = optax.ema(decay, debias=debias)
    state, expected = peer.init(params_at(0)), []
    for t in range(len(PATH)):
        with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer
            value, state = peer.update(params_at(t), state)
        expected.append(value["w"])
    _, ours = after(averaging.ema(decay, debias=debias))
    # Optax divides by 1 - decay**t, which at 0.999 is good to 6e-8 / 0.001 in float32
    np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-5)


def test_uniform_equals_torch(torch):
    start, every = 4, 3
    layer = torch.nn.Linear(3, 1, bias=False)
    peer = torch.optim.swa_utils.AveragedModel(layer)
    average = averaging.uniform(start=start, every=every)
    state = average.init({"w": jnp.zeros(3)})
    update = jax.jit(average.update)
    for t, row in enumerate(PATH):
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(row)[None])
        if t >= start and (t - start) % every == 0:
            peer.update_parameters(layer)
        state = update(state, {"w": jnp.asarray(row)})
        if t >= start:
            # float32, the same recursion
            expected = peer.module.weight.detach().numpy()[0]
            np.testing.assert_allclose(average.value(state)["w"], expected, rtol=1e-5, atol=1e-6)
    assert int(state.weight) == int(peer.n_averaged) == 9


def test_ema_equals_torch(torch):
    """PyTorch starts from the first parameters that it sees."""
    multi = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    layer = torch.nn.Linear(3, 1, bias=False)
    peer = torch.optim.swa_utils.AveragedModel(layer, multi_avg_fn=multi)
    for row in PATH:
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(row)[None])
        peer.update_parameters(layer)
    average = averaging.ema(0.9, debias=False, start="params")
    _, ours = after(average, PATH[1:], jnp.asarray(PATH[0]))
    np.testing.assert_allclose(ours[-1], peer.module.weight.detach()[0], rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 12), st.integers(1, 5), st.integers(1, 12))
def test_uniform_and_snapshots_are_means_of_slices(start, every, num):
    size = 3
    uniform = averaging.uniform(start=start, every=every)
    window = averaging.snapshots(size, start=start, every=every)
    states = uniform.init(0.0), window.init(0.0)
    path = PATH[:num, 0]
    for value in path:
        states = uniform.update(states[0], value), window.update(states[1], value)
    taken = path[start::every]
    expected = taken if len(taken) else path[-1:]
    # float32 means of at most twelve numbers
    np.testing.assert_allclose(uniform.value(states[0]), expected.mean(), rtol=1e-4, atol=1e-6)
    last = expected[-size:]
    np.testing.assert_allclose(window.value(states[1]), last.mean(), rtol=1e-4, atol=1e-6)
    kept = averaging.held(states[1])
    assert kept.filled.tolist() == [False] * max(size - len(taken), 0) + [True] * min(
        size, len(taken)
    )
    np.testing.assert_array_equal(kept.params[np.array(kept.filled)], taken[-size:])


def test_polyak_is_uniform():
    (_, ours), (_, plain) = after(averaging.polyak(start=7)), after(averaging.uniform(start=7))
    np.testing.assert_array_equal(ours, plain)
    np.testing.assert_allclose(ours[-1], PATH[7:].mean(axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(ours[:8], PATH[:8])  # until then the newest, exactly


KINDS = {
    "ema": averaging.ema(0.99),
    "shadow": averaging.ema(0.99, debias=False, start="params"),
    "uniform": averaging.uniform(),
    "swa": averaging.uniform(start=2, every=3),
    "snapshots": averaging.snapshots(4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_of_a_constant_is_that_constant(kind):
    constant = np.float32([0.1, 1e30, -3.7e-20])
    _, ours = after(KINDS[kind], np.tile(constant, (20, 1)), jnp.asarray(constant))
    if kind == "snapshots":  # a sum of shares of 1/3
        np.testing.assert_allclose(ours, np.tile(constant, (20, 1)), rtol=3e-7)
    else:
        np.testing.assert_array_equal(ours, np.tile(constant, (20, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_first_update_the_value_is_the_start(kind):
    average, params = KINDS[kind], params_at(3)
    chex.assert_trees_all_equal(average.value(average.init(params)), params)


def test_parameters_left_out_do_not_matter():
    average = averaging.uniform(start=1, every=2)
    state = average.init(jnp.array(jnp.nan))
    for value in (jnp.inf, 1.0, jnp.nan, 3.0, -jnp.inf):
        state = average.update(state, jnp.float32(value))
    assert float(average.value(state)) == 2.0


# Leaves and dtypes


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_leaves(kind):
    def params(t):
        return {
            "half": jnp.full(2, 1.0 + t / 128, jnp.bfloat16),
            "single": (jnp.array(float(t)),),
            "complex": jnp.array(t * 1j, jnp.complex64),
            "count": jnp.array(t),
            "mask": jnp.array([t % 2 == 0]),
            "key": jax.random.key(t),
            "nothing": None,
        }

    average = KINDS[kind]
    state = average.init(params(0))
    update = jax.jit(average.update)
    for t in range(6):
        state = update(state, params(t))
    value = average.value(state)
    chex.assert_trees_all_equal_dtypes(value, params(0))
    chex.assert_trees_all_equal_structs(value, params(0))
    assert int(value["count"]) == 5
    assert value["mask"].tolist() == [False]
    assert (jax.random.key_data(value["key"]) == jax.random.key_data(jax.random.key(5))).all()
    assert float(value["single"][0]) == pytest.approx(complex(value["complex"]).imag, rel=1e-6)
    if kind != "snapshots":
        assert state.mean["half"].dtype == jnp.float32


def test_narrow_parameters_are_averaged_in_float32():
    """Steps of 0.001 of the way are lost in bfloat16, which has eight bits."""
    path = jnp.concatenate([jnp.ones((1, 1)), jnp.full((2000, 1), 2.0)]).astype(jnp.bfloat16)
    average = averaging.ema(0.999, debias=False, start="params")
    state, ours = after(average, path, path[0])
    expected = 2 - 0.999**2000
    assert float(ours[-1, 0]) == pytest.approx(expected, rel=2**-8)  # bfloat16
    assert float(state.mean[0]) == pytest.approx(expected, rel=1e-4)  # 2000 float32 roundings
    stuck = jnp.array(1.0, jnp.bfloat16)
    for _ in range(3):
        stuck = stuck + jnp.bfloat16(0.001) * (jnp.bfloat16(2.0) - stuck)
    assert float(stuck) == 1.0


def test_double_parameters_are_averaged_in_double(x64):
    path = PATH.astype(np.float64) + 1e-9
    for average, kept in [(averaging.uniform(), 30), (averaging.snapshots(7), 7)]:
        state, ours = after(average, path)
        assert state.mean.dtype == "float64"
        np.testing.assert_allclose(ours[-1], path[-kept:].mean(axis=0), rtol=1e-12, atol=1e-15)
    assert averaging.held(state).filled.all()


# Transformations


@pytest.mark.parametrize("kind", KINDS)
def test_scan_equals_eager_and_vmap_equals_a_loop(kind):
    average = KINDS[kind]
    state, scanned = after(average)
    eager = average.init(jnp.asarray(PATH[0]))
    for row in PATH:
        eager = average.update(eager, jnp.asarray(row))
    chex.assert_trees_all_close(state, eager, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(scanned[-1], average.value(eager), rtol=1e-6, atol=1e-7)
    batched = jax.vmap(lambda path: after(average, path)[1], 1, 1)(jnp.asarray(PATH))
    for i in range(3):
        _, alone = after(average, PATH[:, i])
        np.testing.assert_allclose(batched[:, i], alone, rtol=1e-6, atol=1e-7)


def test_hyper_parameters_batch_and_do_not_recompile():
    def last(decay, start, every):
        ours = [averaging.ema(decay), averaging.uniform(start=start, every=every)]
        return jnp.stack([after(average)[1][-1] for average in ours])

    compiled = jax.jit(chex.assert_max_traces(last, n=1))
    options = [(0.5, 3, 2), (0.9, 0, 1), (0.0, 10, 7)]
    for decay, start, every in options:
        chex.assert_trees_all_close(
            compiled(decay, start, every), last(decay, start, every), rtol=1e-5, atol=1e-7
        )
    batched = jax.vmap(last)(*(jnp.array(column) for column in zip(*options, strict=True)))
    for i, row in enumerate(options):
        chex.assert_trees_all_close(batched[i], last(*row), rtol=1e-5, atol=1e-7)


def test_gradient_of_an_average(x64):
    path = jnp.asarray(PATH[:6], float)

    @jax.jit
    def f(decay, path):
        kinds = averaging.ema(decay), averaging.uniform(start=1, every=2), averaging.snapshots(2)
        ends = [after(kind, path)[1][-1] for kind in kinds]
        return jnp.square(jnp.stack(ends)).sum()

    chex.assert_numerical_grads(f, (jnp.array(0.7), path), order=1, modes=["rev"])


# Half-lives and variances


def test_half_life():
    for decay in (0.5, 0.9, 0.999, 0.99999):
        h = float(averaging.half_life(decay))
        # float32: the decay itself is rounded, 6e-8 of a distance 1 - decay
        assert h == pytest.approx(math.log(0.5) / math.log(decay), rel=1e-6 + 6e-8 / (1 - decay))
        assert float(averaging.decay_of_half_life(h)) == pytest.approx(decay, rel=1e-6)
    weights = 0.9 ** np.arange(100) * 0.1
    h = float(averaging.half_life(0.9))
    assert weights[: round(h * 3)].sum() == pytest.approx(1 - 0.5**3, abs=0.02)


def closed_uniform(a, variance, num, every):
    rho = a**every
    series = (1 + rho) / (1 - rho) - 2 * rho * (1 - rho**num) / (num * (1 - rho) ** 2)
    return variance / num * series


@pytest.mark.parametrize(("rate", "curvature"), [(0.1, 2.0), (0.4, 1.0), (1.0, 1.5), (0.5, 2.0)])
def test_variances_against_the_matrix_of_covariances(rate, curvature):
    """Any average is a weight vector: its variance is w' C w with C_jk = s^2 a^|j - k|."""
    noise, a = 0.7, 1 - rate * curvature
    variance = rate * noise / (curvature * (2 - rate * curvature))
    assert variance == pytest.approx(rate**2 * noise / (1 - a**2))
    options = {"learning_rate": rate, "noise_variance": noise}
    ours = averaging.iterate_variance(curvature, **options)
    assert float(ours) == pytest.approx(variance, rel=1e-6)
    lag = np.abs(np.subtract.outer(np.arange(400), np.arange(400)))
    covariance = variance * np.float64(a) ** lag
    for decay in (0.0, 0.5, 0.9):
        weights = (1 - decay) * decay ** np.arange(400.0)
        ours = averaging.ema_variance(curvature, **options, decay=decay)
        assert float(ours) == pytest.approx(weights @ covariance @ weights, rel=1e-5)
    for num, every in [(1, 1), (7, 1), (12, 3), (100, 4)]:
        rows = np.arange(num) * every
        ours = averaging.uniform_variance(curvature, **options, num=num, every=every)
        expected = covariance[np.ix_(rows, rows)].mean()
        assert float(ours) == pytest.approx(expected, rel=1e-5)
        assert expected == pytest.approx(closed_uniform(a, variance, num, every), rel=1e-9)


def test_a_long_average_does_not_feel_the_learning_rate():
    ours = [
        averaging.uniform_variance(2.0, learning_rate=rate, noise_variance=3.0, num=20_000)
        for rate in (0.05, 0.3, 0.9)
    ]
    # v / (lambda^2 n), up to the correlation time over n: 20 / 20000
    np.testing.assert_allclose(ours, 3.0 / (4.0 * 20_000), rtol=2e-3)


def test_an_unstable_walk_has_no_variance():
    assert np.isinf(averaging.iterate_variance(1.0, learning_rate=2.0, noise_variance=1.0))
    assert np.isinf(averaging.iterate_variance(4.0, learning_rate=1.0, noise_variance=1.0))


def test_simulated_bowl():
    """The averages themselves on noisy descent, against the formulas."""
    rate, curvature, decay, burn, num = 0.2, 1.0, 0.9, 60, 40
    options = {"learning_rate": rate, "noise_variance": 1.0}
    kinds = {
        "iterate": averaging.snapshots(1),
        "ema": averaging.ema(decay),
        "uniform": averaging.uniform(start=burn),
        "swa": averaging.uniform(start=burn, every=4),
    }

    @jax.jit
    def simulate(key):
        def step(carry, noise):
            x, states = carry
            x = x - rate * (curvature * x + noise)
            states = {name: kinds[name].update(states[name], x) for name in kinds}
            return (x, states), None

        start = jnp.zeros(20_000)
        noise = jax.random.normal(key, (burn + num, *start.shape))
        states = {name: kind.init(start) for name, kind in kinds.items()}
        (_, states), _ = jax.lax.scan(step, (start, states), noise)
        return {name: kinds[name].value(states[name]).var() for name in kinds}

    found = simulate(jax.random.key(0))
    expected = {
        "iterate": averaging.iterate_variance(curvature, **options),
        "ema": averaging.ema_variance(curvature, **options, decay=decay),
        "uniform": averaging.uniform_variance(curvature, **options, num=num),
        "swa": averaging.uniform_variance(curvature, **options, num=10, every=4),
    }
    for name, value in expected.items():
        # 20000 draws: a standard error of 1 %; 60 steps of burn-in leave 0.8^120 of the start
        assert float(found[name]) == pytest.approx(float(value), rel=0.04), name
    assert found["uniform"] < found["ema"] < found["iterate"]


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: averaging.ema(1.0), ValueError, "1 - decay must be positive, got 0.0"),
        (lambda: averaging.ema(-0.1), ValueError, "decay must not be negative, got -0.1"),
        (lambda: averaging.ema(math.nan), ValueError, "decay must not be negative, got nan"),
        (
            lambda: averaging.ema(np.array([0.5, 0.9])),
            ValueError,
            "decay must be 0-D, got shape (2,)",
        ),
        (
            lambda: averaging.ema(0.9, debias=False, start="first"),
            ValueError,
            "start must be one of 'zero', 'params', got 'first'",
        ),
        (
            lambda: averaging.ema(0.9, start="params"),
            ValueError,
            "debias must be False with start='params'",
        ),
        (lambda: averaging.uniform(start=-1), ValueError, "start must be in [0, "),
        (lambda: averaging.uniform(every=0), ValueError, "every must be in [1, "),
        (lambda: averaging.uniform(every=1.5), TypeError, "every must be an integer array"),
        (lambda: averaging.uniform(every=True), TypeError, "every must be an integer, got True"),
        (lambda: averaging.snapshots(0), ValueError, "size must be at least 1, got 0"),
        (lambda: averaging.snapshots(2.0), TypeError, "size must be an integer, got 2.0"),
        (lambda: averaging.ema(0.9).init({}), ValueError, "params must hold at least one array"),
        (
            lambda: averaging.held(averaging.ema(0.9).init(jnp.ones(2))),
            ValueError,
            "state must be one of snapshots(...)",
        ),
        (lambda: averaging.half_life(1.0), ValueError, "1 - decay must be positive"),
        (lambda: averaging.decay_of_half_life(0.0), ValueError, "num_updates must be positive"),
        (
            lambda: averaging.iterate_variance(0.0, learning_rate=0.1, noise_variance=1.0),
            ValueError,
            "curvature must be positive, got 0.0",
        ),
        (
            lambda: averaging.uniform_variance(1.0, learning_rate=0.1, noise_variance=1.0, num=0),
            ValueError,
            "num must be at least 1, got 0",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize("kind", KINDS)
def test_other_parameters_are_refused(kind):
    average = KINDS[kind]
    state = average.init(params_at(0))
    update = partial(average.update, state)
    with pytest.raises(ValueError, match="params must have the structure"):
        update({"w": jnp.ones(3)})
    with pytest.raises(ValueError, match=re.escape("params['w'] must have shape (3,) and dtype")):
        update({"w": jnp.ones(4), "b": jnp.ones(())})
    with pytest.raises(ValueError, match=re.escape("got () and bfloat16")):
        update({"w": jnp.ones(3), "b": jnp.ones((), jnp.bfloat16)})
