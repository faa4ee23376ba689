"""Schedules against PyTorch, Optax and closed forms; the range test against a bowl."""

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.data import loading
from mlnotes_jax.demos.optimization import schedules as demo
from mlnotes_jax.foundations import losses
from mlnotes_jax.optimization import schedules as sc
from mlnotes_jax.training import loop

N = 60  # updates of every comparison

# One of each, for what must hold for all.
ALL = {
    "constant": lambda: sc.constant(0.3),
    "linear": lambda: sc.linear(0.3, num_steps=20, final_rate=0.1),
    "step": lambda: sc.step(0.3, every=7, factor=0.5),
    "multi_step": lambda: sc.multi_step(0.3, boundaries=[5, 12, 30], factor=0.5),
    "exponential": lambda: sc.exponential(0.3, factor=0.9),
    "inverse_square_root": lambda: sc.inverse_square_root(0.3, timescale=4),
    "cosine": lambda: sc.cosine(0.3, num_steps=40, final_rate=0.01),
    "linear_warmup": lambda: sc.linear_warmup(
        sc.exponential(0.3, factor=0.9), warmup_steps=10, start_factor=0.1
    ),
    "overlapping warm-up": lambda: sc.linear_warmup(
        sc.exponential(0.3, factor=0.9), warmup_steps=10, start_factor=0.1, overlap=True
    ),
    "resnet_warmup": lambda: sc.resnet_warmup(
        sc.multi_step(0.1, boundaries=[20, 30]), warmup_steps=8
    ),
    "noam": lambda: sc.noam(512, warmup_steps=12, scale=2.0),
    "triangular": lambda: sc.triangular(0.1, 0.9, steps_up=7, steps_down=5),
    "triangular2": lambda: sc.triangular(0.1, 0.9, steps_up=7, mode="triangular2"),
    "exp_range": lambda: sc.triangular(0.1, 0.9, steps_up=7, mode="exp_range", gamma=0.97),
    "warm_restarts": lambda: sc.warm_restarts(0.3, first_period=5, period_factor=2, final_rate=0.1),
    "equal restarts": lambda: sc.warm_restarts(0.3, first_period=7),
    "threefold restarts": lambda: sc.warm_restarts(0.3, first_period=1, period_factor=3),
    "one_cycle": lambda: sc.one_cycle(0.9, num_steps=N),
    "straight one_cycle": lambda: sc.one_cycle(
        0.9, num_steps=N, warmup_share=0.26, start_divisor=10.0, final_divisor=100.0, shape="linear"
    ),
    "three phases": lambda: sc.one_cycle(0.9, num_steps=N, warmup_share=0.4, return_share=0.8),
    "no rise": lambda: sc.one_cycle(0.9, num_steps=N, warmup_share=0.0),
    "join": lambda: sc.join([0.1, sc.cosine(0.3, num_steps=9), sc.step(0.2, every=3)], [4, 20]),
}


def compute(makers, t=None):
    """The curves of many schedules from one program: compiling is what takes time here."""
    t = jnp.arange(N) if t is None else t
    curves = jax.jit(lambda t: {name: make()(t) for name, make in makers.items()})(t)
    return {name: np.asarray(values) for name, values in curves.items()}


@functools.cache
def double():
    """All of them in float64."""
    with jax.enable_x64(True):
        return compute(ALL)


# Peers


def torch_cases(S):
    """Schedulers with the settings of `ALL`: name -> (the optimizer's rate, scheduler)."""
    return {
        "linear": (
            0.3,
            lambda o: S.LinearLR(o, start_factor=1.0, end_factor=1 / 3, total_iters=20),
        ),
        "step": (0.3, lambda o: S.StepLR(o, 7, 0.5)),
        "multi_step": (0.3, lambda o: S.MultiStepLR(o, [5, 12, 30], 0.5)),
        "exponential": (0.3, lambda o: S.ExponentialLR(o, 0.9)),
        "inverse_square_root": (0.3, lambda o: S.LambdaLR(o, lambda t: (1 + t / 4) ** -0.5)),
        "linear_warmup": (
            0.3,
            lambda o: S.SequentialLR(
                o,
                [S.LinearLR(o, start_factor=0.1, total_iters=10), S.ExponentialLR(o, 0.9)],
                [10],
            ),
        ),
        "overlapping warm-up": (
            0.3,
            lambda o: S.ChainedScheduler(
                [S.LinearLR(o, start_factor=0.1, total_iters=10), S.ExponentialLR(o, 0.9)], o
            ),
        ),
        "resnet_warmup": (
            0.1,
            lambda o: S.ChainedScheduler(
                [S.ConstantLR(o, factor=0.1, total_iters=8), S.MultiStepLR(o, [20, 30])], o
            ),
        ),
        "noam": (
            2.0,
            lambda o: S.LambdaLR(
                o, lambda t: 512**-0.5 * min((t + 1) ** -0.5, (t + 1) * 12**-1.5)
            ),
        ),
        "triangular": (
            0.1,
            lambda o: S.CyclicLR(o, 0.1, 0.9, 7, 5, cycle_momentum=False),
        ),
        "triangular2": (
            0.1,
            lambda o: S.CyclicLR(o, 0.1, 0.9, 7, mode="triangular2", cycle_momentum=False),
        ),
        "exp_range": (
            0.1,
            lambda o: S.CyclicLR(
                o, 0.1, 0.9, 7, mode="exp_range", gamma=0.97, cycle_momentum=False
            ),
        ),
        "warm_restarts": (0.3, lambda o: S.CosineAnnealingWarmRestarts(o, 5, 2, 0.1)),
        "equal restarts": (0.3, lambda o: S.CosineAnnealingWarmRestarts(o, 7)),
        "threefold restarts": (0.3, lambda o: S.CosineAnnealingWarmRestarts(o, 1, 3)),
        "one_cycle": (0.9, lambda o: S.OneCycleLR(o, 0.9, N, cycle_momentum=False)),
        "straight one_cycle": (
            0.9,
            lambda o: S.OneCycleLR(
                o, 0.9, N, pct_start=0.26, div_factor=10.0, final_div_factor=100.0,
                anneal_strategy="linear", cycle_momentum=False,
            ),
        ),
        "three phases": (
            0.9,
            lambda o: S.OneCycleLR(
                o, 0.9, N, pct_start=0.4, three_phase=True, cycle_momentum=False
            ),
        ),
        "no rise": (0.9, lambda o: S.OneCycleLR(o, 0.9, N, pct_start=0.0, cycle_momentum=False)),
    }  # fmt: skip


def torch_rates(torch, rate, make, n=N):
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=rate)
    with warnings.catch_warnings():
        # SequentialLR calls its parts in a way that PyTorch itself has deprecated.
        warnings.simplefilter("ignore")
        scheduler, rates = make(optimizer), []
        for _ in range(n):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return np.array(rates)


def test_equal_to_pytorch(torch):
    for name, (rate, make) in torch_cases(torch.optim.lr_scheduler).items():
        peer = torch_rates(torch, rate, make)
        # PyTorch multiplies update by update: 60 roundings of 1e-16.
        np.testing.assert_allclose(double()[name], peer, rtol=2e-14, atol=1e-16, err_msg=name)


def test_cosine_is_pytorchs_until_its_end_and_then_stays(torch):
    make = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40, 0.01)  # noqa: E731
    peer, ours = torch_rates(torch, 0.3, make), double()["cosine"]
    # Its recursion divides by 1 + cos, which is small near the end.
    np.testing.assert_allclose(ours[:41], peer[:41], rtol=1e-12)
    assert (ours[40:] == 0.01).all()
    assert peer[59] > 0.1  # PyTorch goes up again


def test_pytorchs_logarithm_misses_a_restart_and_ours_does_not(torch, x64):
    # T_0 = 1, m = 3: restarts at 1, 4, 13, 40, 121.
    o = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 1, 3)
    begins = (1, 4, 13, 40, 121, 364, 1093)
    ours = lambda: sc.warm_restarts(1.0, first_period=1, period_factor=3)  # noqa: E731
    assert (compute({"": ours}, jnp.array(begins))[""] == 1).all()
    missed = []
    for begin in begins:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.step(begin)
        if o.param_groups[0]["lr"] < 0.5:
            missed.append(begin)
    assert missed, "PyTorch has repaired it: say so in the docstring of warm_restarts"


def optax_cases():
    """Name -> (their schedule, ours)."""
    return {
        "constant": (optax.constant_schedule(0.3), sc.constant(0.3)),
        "linear": (optax.linear_schedule(0.3, 0.1, 20), ALL["linear"]()),
        "staircase": (optax.exponential_decay(0.3, 7, 0.5, staircase=True), ALL["step"]()),
        "exponential": (
            optax.exponential_decay(0.3, 7, 0.5),
            sc.exponential(0.3, factor=0.5, every=7),
        ),
        "piecewise": (
            optax.piecewise_constant_schedule(0.3, {5: 0.5, 12: 0.5, 30: 0.5}),
            ALL["multi_step"](),
        ),
        "cosine": (optax.cosine_decay_schedule(0.3, 40, 0.01 / 0.3), ALL["cosine"]()),
        "warm-up": (
            optax.warmup_constant_schedule(0.03, 0.3, 10),
            sc.linear_warmup(0.3, warmup_steps=10, start_factor=0.1),
        ),
        "warm-up, cosine": (
            optax.warmup_cosine_decay_schedule(0.0, 0.3, 10, 50, 0.01),
            sc.linear_warmup(sc.cosine(0.3, num_steps=40, final_rate=0.01), warmup_steps=10),
        ),
        "warm-up, exponential": (
            optax.warmup_exponential_decay_schedule(0.03, 0.3, 10, 7, 0.5),
            sc.linear_warmup(
                sc.exponential(0.3, factor=0.5, every=7), warmup_steps=10, start_factor=0.1
            ),
        ),
        "restarts": (
            optax.sgdr_schedule(
                {
                    "init_value": 0.3,
                    "peak_value": 0.3,
                    "warmup_steps": 0,
                    "decay_steps": 5 * 2**i,
                    "end_value": 0.1,
                }
                for i in range(4)
            ),
            ALL["warm_restarts"](),
        ),
        "cosine one-cycle": (
            optax.cosine_onecycle_schedule(50, 0.9, 0.25),
            sc.one_cycle(0.9, num_steps=50, warmup_share=0.25, convention="optax"),
        ),
        "straight one-cycle": (
            optax.linear_onecycle_schedule(50, 0.9, 0.3, 0.85),
            sc.one_cycle(0.9, num_steps=50, return_share=0.85, shape="linear", convention="optax"),
        ),
        "join": (
            optax.join_schedules(
                [optax.constant_schedule(0.1), optax.cosine_decay_schedule(0.3, 9)], [4]
            ),
            sc.join([0.1, sc.cosine(0.3, num_steps=9)], [4]),
        ),
    }


def test_equal_to_optax(x64):
    @jax.jit
    def both(t):
        return {
            name: (jax.vmap(lambda c, peer=peer: peer(c) + 0.0 * c)(t), ours(t))
            for name, (peer, ours) in optax_cases().items()
        }

    with jax.numpy_dtype_promotion("standard"):
        for name, (peer, ours) in both(jnp.arange(N)).items():
            # The same few operations in another order.
            np.testing.assert_allclose(ours, peer, rtol=1e-13, atol=1e-16, err_msg=name)


# Identities


def test_noam_is_a_warm_up_and_an_inverse_square_root(x64):
    noam, peak = double()["noam"], 2 / math.sqrt(512 * 12)
    warm = lambda: sc.linear_warmup(  # noqa: E731
        sc.inverse_square_root(peak, timescale=12), warmup_steps=12
    )
    np.testing.assert_allclose(noam, compute({"": warm}, jnp.arange(1, N + 1))[""], rtol=1e-14)
    assert noam.argmax() == 11
    np.testing.assert_allclose(noam.max(), peak, rtol=1e-14)


def test_resnets_own_numbers():
    make = lambda: sc.resnet_warmup(sc.multi_step(0.1, boundaries=[32_000, 48_000]))  # noqa: E731
    got = compute({"": make}, jnp.array([0, 399, 400, 31_999, 32_000, 48_000, 63_999]))
    np.testing.assert_allclose(got[""], [0.01, 0.01, 0.1, 0.1, 0.01, 0.001, 0.001], rtol=1e-6)


def test_the_sums_of_the_page(x64):
    """The closed forms of the page, against the sums of 60 rates."""
    rate, n = 0.3, N
    exact = {
        "step": (lambda: sc.step(rate, every=6, factor=0.5), rate * 6 * (1 - 0.5**10) / 0.5),
        "exponential": (ALL["exponential"], rate * (1 - 0.9**n) / 0.1),
        "linear": (lambda: sc.linear(rate, num_steps=n), rate * (n + 1) / 2),
        "cosine": (lambda: sc.cosine(rate, num_steps=n), rate * (n + 1) / 2),
        "triangular": (lambda: sc.triangular(0.1, 0.9, steps_up=10), n * (0.1 + 0.9) / 2),
        "restarts": (lambda: sc.warm_restarts(rate, first_period=20), 3 * rate * 21 / 2),
        "rise": (lambda: sc.linear_warmup(rate, warmup_steps=n), rate * (n - 1) / 2),
    }
    curves = compute({name: make for name, (make, _) in exact.items()})
    for name, (_, expected) in exact.items():
        np.testing.assert_allclose(curves[name].sum(), expected, rtol=1e-12, err_msg=name)
    # An integral bounds the sum of a falling function, from below and, shifted by one, from above.
    integral = lambda t: 2 * rate * 4 * (math.sqrt(1 + t / 4) - 1)  # noqa: E731
    assert integral(n) < double()["inverse_square_root"].sum() < rate + integral(n - 1)


@settings(deadline=None, max_examples=40)
@given(
    t=st.integers(0, 100_000),
    first=st.integers(1, 500),
    factor=st.integers(1, 5),
)
def test_restarts_are_exact(t, first, factor):
    # Whole numbers in Python against float32.
    begin, length = 0, first
    while t >= begin + length:
        begin, length = begin + length, length * factor
    share = (t - begin) / length
    expected = 0.5 * (1 + math.cos(math.pi * share))
    got = float(_restarts(t, first, factor))
    # A float32 cosine of an argument up to pi.
    assert got == pytest.approx(expected, abs=1e-6)
    assert (got == 1) == (share == 0) or share < 1e-3


@jax.jit
def _restarts(t, first, factor):
    return sc.warm_restarts(1.0, first_period=first, period_factor=factor)(t)


@settings(deadline=None, max_examples=20)
@given(
    low=st.floats(0, 1), width=st.floats(0.01, 1), up=st.integers(1, 50), t=st.integers(0, 10**6)
)
def test_a_cycle_stays_between_its_rates(low, width, up, t):
    got = float(_cycle(t, low, low + width, up))
    assert low - 1e-6 <= got <= low + width + 1e-6
    # Symmetric about the tip of the cycle that t is in.
    begin = t - t % (2 * up)
    mirrored = float(_cycle(begin + (2 * up - t % (2 * up)), low, low + width, up))
    assert got == pytest.approx(mirrored, abs=1e-5)


@jax.jit
def _cycle(t, low, high, up):
    return sc.triangular(low, high, steps_up=up)(t)


# What all schedules must do


@functools.cache
def single():
    """All of them in float32, of counts in two axes."""
    return compute(ALL, jnp.arange(N).reshape(6, 10))


def test_arrays_of_counts_and_float32():
    for name, values in single().items():
        assert values.shape == (6, 10)
        assert values.dtype == np.float32
        assert (values >= 0).all()
        np.testing.assert_allclose(values.ravel(), double()[name], rtol=1e-5, atol=1e-7)
    few = ("step", "linear_warmup", "triangular2", "warm_restarts", "join")
    floats = compute({name: ALL[name] for name in few}, jnp.arange(float(N)))
    for name, values in floats.items():
        np.testing.assert_allclose(values, single()[name].ravel(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["linear_warmup", "triangular2", "warm_restarts", "three phases"])
def test_eager_and_compiled_agree(name):
    one = ALL[name]()(jnp.int32(17))
    assert one.shape == ()
    # Fused or not: a few units in the last place.
    np.testing.assert_allclose(one, single()[name][1, 7], rtol=1e-5)
    assert float(ALL[name]()(17)) == float(one)


def test_long_runs_in_float32():
    # At two million updates, float32 still holds every count.
    t = 2_000_000
    stairs = lambda: sc.step(1.0, every=1_000_000, factor=0.5)  # noqa: E731
    got = compute(
        {
            "triangular": lambda: sc.triangular(0.0, 1.0, steps_up=1000),
            "step": stairs,
            "restarts": lambda: sc.warm_restarts(1.0, first_period=1000),
        },
        jnp.array([t - 1, t, t + 500]),
    )
    assert got["triangular"][2] == 0.5
    assert got["step"].tolist() == [0.5, 0.25, 0.25]
    assert got["restarts"][1] == 1


def test_all_hyper_parameters_may_be_traced_and_batched():
    t = jnp.arange(N)
    rates, lengths = jnp.array([0.1, 0.2, 0.3]), jnp.array([10, 20, 40])
    builders = {
        "cosine": lambda r, n: sc.cosine(r, num_steps=n),
        "step": lambda r, n: sc.step(r, every=n, factor=r),
        "multi_step": lambda r, n: sc.multi_step(r, boundaries=jnp.stack([n, 2 * n]), factor=r),
        "warm-up": lambda r, n: sc.linear_warmup(
            sc.exponential(r, factor=0.9 + r / 10, every=n), warmup_steps=n, start_factor=r
        ),
        "resnet": lambda r, n: sc.resnet_warmup(r, warmup_steps=n, warmup_rate=r / 10),
        "noam": lambda r, n: sc.noam(n, warmup_steps=n, scale=r),
        "cycle": lambda r, n: sc.triangular(
            r / 10, r, steps_up=n, steps_down=n, mode="exp_range", gamma=1 - r / 10
        ),
        "restarts": lambda r, n: sc.warm_restarts(r, first_period=n, period_factor=n // 10),
        "one cycle": lambda r, n: sc.one_cycle(
            r, num_steps=n, warmup_share=r, return_share=2 * r, start_divisor=10 * r
        ),
        "join": lambda r, n: sc.join([r, sc.inverse_square_root(r, timescale=n)], jnp.stack([n])),
    }
    many = jax.jit(
        lambda r, n: {
            name: jax.vmap(lambda r, n, build=build: build(r, n)(t))(r, n)
            for name, build in builders.items()
        }
    )(rates, lengths)
    single_run = jax.jit(lambda r, n: {name: build(r, n)(t) for name, build in builders.items()})
    ones = [single_run(r, n) for r, n in zip(rates, lengths, strict=True)]
    for name in builders:
        for i in (0, 2):
            one = ones[i][name]
            np.testing.assert_allclose(many[name][i], one, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_second_call_does_not_recompile():
    traces = 0

    @jax.jit
    def everything(rate, n, t):
        nonlocal traces
        traces += 1
        return sc.linear_warmup(sc.cosine(rate, num_steps=n), warmup_steps=n)(t)

    everything(0.1, 10, 3)
    everything(0.2, 20, 7)
    assert traces == 1


def test_gradients_against_differences(x64):
    t = jnp.arange(0.0, 40.0, 3.0)

    @jax.jit
    def f(v):
        rate, factor, low = v
        parts = [
            sc.cosine(rate, num_steps=30, final_rate=low),
            sc.linear_warmup(
                sc.exponential(rate, factor=factor), warmup_steps=10, start_factor=low
            ),
            sc.triangular(low, rate, steps_up=7, mode="exp_range", gamma=factor),
            sc.warm_restarts(rate, first_period=4, period_factor=2, final_rate=low),
            sc.one_cycle(rate, num_steps=40, start_divisor=1 / low),
        ]
        return sum(jnp.sum(jnp.sin(t) * part(t)) for part in parts)

    point, direction = jnp.array([0.5, 0.95, 0.1]), jnp.array([1.0, -0.3, 0.2])
    difference = (f(point + 1e-6 * direction) - f(point - 1e-6 * direction)) / 2e-6
    # A central difference of step 1e-6 of a value of about 1.
    np.testing.assert_allclose(jax.grad(f)(point) @ direction, difference, rtol=1e-7)


def test_types(x64):
    assert sc.cosine(0.1, num_steps=5)(3).dtype == jnp.float64
    assert sc.cosine(jnp.bfloat16(0.5), num_steps=5)(jnp.int8(3)).dtype == jnp.float64
    assert sc.step(1, every=2)(np.uint8(3)).dtype == jnp.float64  # an integer rate is promoted


def test_optax_takes_them_under_strict_promotion():
    schedule = sc.linear_warmup(sc.cosine(0.5, num_steps=8), warmup_steps=4)
    expected = -np.cumsum(compute({"": lambda: schedule}, jnp.arange(10))[""])
    rules = {
        "sgd": optax.sgd(schedule),
        "injected": optax.inject_hyperparams(optax.sgd)(schedule),
        "chain": optax.chain(optax.scale_by_schedule(schedule), optax.scale(-1.0)),
    }
    for name, rule in rules.items():

        def update(carry, _, rule=rule):
            x, state = carry
            updates, state = rule.update(jnp.ones(()), state, x)
            return (x + updates, state), x + updates

        _, path = jax.lax.scan(update, (jnp.zeros(()), rule.init(jnp.zeros(()))), length=10)
        np.testing.assert_allclose(path, expected, rtol=1e-6, err_msg=name)


# Effective samples


def test_effective_samples_against_the_weights(x64):
    for beta in (0.0, 0.5, 0.9, 0.999):
        for t in (1, 2, 10, 300):
            weights = beta ** np.arange(t, dtype=float) if beta else np.eye(t)[0]
            weights = weights / weights.sum()
            got = float(sc.effective_samples(beta, t))
            # 1 - beta loses three digits at 0.999.
            assert got == pytest.approx(1 / (weights**2).sum(), rel=1e-11)
    # The limit, which RAdam calls rho_infinity.
    assert float(sc.effective_samples(0.999, 10**7)) == pytest.approx(2 / 0.001 - 1, rel=1e-10)


def test_the_first_steps_of_adam_are_as_long_as_predicted(x64):
    """Pure noise: the mean square of Adam's step is that of a mean of n_t numbers, over 1."""
    beta1, beta2, t = 0.9, 0.999, 40
    g = np.random.default_rng(0).normal(size=(t, 20_000))
    m = v = np.zeros(20_000)
    for i in range(t):
        m, v = beta1 * m + (1 - beta1) * g[i], beta2 * v + (1 - beta2) * g[i] ** 2
        step = (m / (1 - beta1 ** (i + 1))) / np.sqrt(v / (1 - beta2 ** (i + 1)))
        if i == 0:
            assert (np.abs(step) == pytest.approx(1, abs=1e-12)) or np.allclose(np.abs(step), 1)
        if i in (19, 39):
            n = float(sc.effective_samples(beta1, i + 1))
            # v is itself uncertain: relative deviation sqrt(2/t), so some percent on the square.
            assert (step**2).mean() * n == pytest.approx(1, rel=0.15)
            relative = (v / (1 - beta2 ** (i + 1))).var()
            # Kurtosis 3: variance 2 / n_t. 20000 draws of a fourth moment: two percent.
            n2 = float(sc.effective_samples(beta2, i + 1))
            assert relative * n2 / 2 == pytest.approx(1, rel=0.06)


# The range test


def bowl(x, batch):
    return 0.5 * jnp.sum(jnp.array([1.0, 0.1]) * (x - batch) ** 2)


def round_bowl(x, batch):
    return 0.5 * jnp.sum((x - batch) ** 2)


BATCHES = jnp.zeros((1, 2))


def test_range_test_finds_the_limit_of_stability():
    found = sc.range_test(round_bowl, jnp.ones(2), BATCHES, low=1e-3, high=100.0, smoothing=0.0)
    # Descent in one direction is stable below 2 / curvature, and the rates rise by 12 percent.
    assert 2 / 1.13 < float(found.largest) <= 2
    assert bool(found.diverged)
    assert float(found.steepest) < float(found.largest)
    valid = int(found.num_steps)
    assert valid < 100
    assert np.isfinite(found.losses[:valid]).all()
    assert np.isnan(found.losses[valid:]).all()


def test_range_test_with_noise_in_two_directions():
    # Noise keeps the steep direction alive; without it, that must grow anew from rounding.
    targets = jnp.asarray(np.random.default_rng(0).normal(size=(100, 2)), jnp.float32)
    found = sc.range_test(bowl, 30 * jnp.ones(2), targets, low=1e-3, high=100.0)
    assert 0.7 < float(found.largest) < 3
    assert bool(found.diverged)


def test_range_test_against_numpy():
    found = sc.range_test(
        bowl, jnp.ones(2), BATCHES, low=1e-3, high=1.5, num_steps=60, smoothing=0.7
    )
    x, losses_, rates = np.ones(2), [], 1e-3 * 1500 ** (np.arange(60) / 59)
    for rate in rates:
        losses_.append(0.5 * (np.array([1.0, 0.1]) * x**2).sum())
        x = x - rate * np.array([1.0, 0.1]) * x
    np.testing.assert_allclose(found.rates, rates, rtol=1e-5)
    # 60 updates in float32.
    np.testing.assert_allclose(found.losses, losses_, rtol=1e-4)
    weights = 0.7 ** np.abs(np.arange(60)[:, None] - np.arange(60)[None])
    smoothed = weights @ losses_ / weights.sum(axis=1)
    np.testing.assert_allclose(found.smoothed, smoothed, rtol=1e-4)
    slopes = (smoothed[2:] - smoothed[:-2]) / np.log(rates[2:] / rates[:-2])
    assert float(found.steepest) == pytest.approx(rates[1 + slopes.argmin()], rel=1e-5)
    assert not bool(found.diverged)
    assert float(found.largest) == pytest.approx(1.5)  # it was still falling
    assert int(found.num_steps) == 60


def test_range_test_rises_in_a_line_too_and_takes_batches_in_turn():
    targets = jnp.array([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    found = sc.range_test(
        bowl, jnp.ones(2) * 10, targets, low=1e-9, high=3e-9, num_steps=5, rise="linear"
    )
    np.testing.assert_allclose(found.rates, [1e-9, 1.5e-9, 2e-9, 2.5e-9, 3e-9], rtol=1e-5)
    # Nothing moves at such rates: the losses are those of the targets.
    np.testing.assert_allclose(found.losses, [55, 44.55, 13.75, 55, 44.55], rtol=1e-4)


def test_range_test_is_pure_compiled_and_batched():
    traces = 0

    def counted(x, batch):
        nonlocal traces
        traces += 1
        return bowl(x, batch)

    run = functools.partial(sc.range_test, counted, jnp.ones(2), BATCHES, num_steps=30)
    first = run(low=1e-3, high=10.0)
    once = traces
    again = run(low=1e-2, high=20.0, smoothing=0.5)
    # `eval_shape` looks at the loss each time; the program is not made again.
    assert traces - once <= 1
    assert float(first.rates[0]) != float(again.rates[0])
    highs = jnp.array([1.0, 10.0])
    many = jax.jit(jax.vmap(lambda high: run(low=1e-3, high=high)))(highs)
    # Fused otherwise, after 30 updates.
    np.testing.assert_allclose(many.losses[1], first.losses, rtol=1e-4)
    np.testing.assert_allclose(many.steepest[1], first.steepest, rtol=1e-5)
    assert not bool(many.diverged[0])


def test_a_loss_that_never_falls_gives_no_suggestion():
    found = sc.range_test(
        lambda x, batch: 1.0 + 0 * x + batch, 0.0, jnp.zeros(1), num_steps=10, smoothing=0.0
    )
    assert np.isnan(found.steepest)
    assert np.isnan(found.largest)
    broken = sc.range_test(
        lambda x, batch: jnp.log(-1 - x**2) + batch, 0.0, jnp.zeros(1), num_steps=10, smoothing=0.0
    )
    assert int(broken.num_steps) == 0
    assert bool(broken.diverged)


def test_range_test_of_a_model_is_that_of_its_loss():
    key = jax.random.key(0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 3)), jnp.float32)
    data = (x, jnp.arange(32) % 4)
    bound = loop.Bound(jnp.zeros((3, 4)), {}, lambda w, state, x, **mode: (x @ w, state))
    cross_entropy = losses.softmax_cross_entropy_with_integer_labels
    found = sc.range_test_model(key, bound, cross_entropy, data, batch_size=8, num_steps=12)

    # The batches of three epochs, in the order of `loop.fit`.
    orders = [loading.epoch_order(key, epoch, 32) for epoch in range(3)]
    rows = np.concatenate([np.asarray(order).reshape(4, 8) for order in orders])
    peer = sc.range_test(
        lambda w, batch: cross_entropy(batch[0] @ w, batch[1]),
        bound.params,
        jax.tree.map(lambda leaf: leaf[rows], data),
        num_steps=12,
    )
    np.testing.assert_allclose(found.losses, peer.losses, rtol=1e-5)
    np.testing.assert_allclose(found.steepest, peer.steepest, rtol=1e-6)


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sc.constant(-0.1), ValueError, "learning_rate must not be negative, got -0.1"),
        (lambda: sc.constant(math.inf), ValueError, "learning_rate must be finite, got inf"),
        (lambda: sc.constant("x"), TypeError, "learning_rate must be a numeric"),
        (lambda: sc.constant([0.1, 0.2]), ValueError, "learning_rate must be 0-D"),
        (lambda: sc.cosine(0.1, num_steps=0), ValueError, r"num_steps must be in \[1, "),
        (lambda: sc.cosine(0.1, num_steps=2.5), TypeError, "num_steps must be an integer"),
        (lambda: sc.step(0.1, every=2, factor=-1.0), ValueError, "factor must not be negative"),
        (
            lambda: sc.multi_step(0.1, boundaries=[-3]),
            ValueError,
            "boundaries must not be negative, got -3",
        ),
        (
            lambda: sc.multi_step(0.1, boundaries=[1.5]),
            TypeError,
            "boundaries must be an integer array",
        ),
        (
            lambda: sc.linear_warmup("x", warmup_steps=3),
            TypeError,
            "schedule must be a numeric",
        ),
        (
            lambda: sc.triangular(0.1, 0.2, mode="square"),
            ValueError,
            "mode must be one of 'triangular', 'triangular2', 'exp_range', got 'square'",
        ),
        (
            lambda: sc.one_cycle(0.1, num_steps=5, warmup_share=1.5),
            ValueError,
            r"warmup_share must be in \[0, 1\], got 1.5",
        ),
        (
            lambda: sc.one_cycle(0.1, num_steps=5, final_divisor=0.0),
            ValueError,
            "final_divisor must be positive",
        ),
        (
            lambda: sc.join([0.1, 0.2], [3, 4]),
            ValueError,
            "boundaries must be one fewer than the 2 schedules, got 2",
        ),
        (
            lambda: sc.join([0.1, 0.2, 0.3], [4, 3]),
            ValueError,
            r"boundaries must ascend, got \[4, 3",
        ),
        (lambda: sc.effective_samples(1.0, 3), ValueError, "1 - decay must be positive"),
        (
            lambda: sc.range_test(bowl, jnp.ones(2), BATCHES, low=1.0, high=0.5),
            ValueError,
            "high must be above 1.0, got 0.5",
        ),
        (
            lambda: sc.range_test(bowl, jnp.ones(2), BATCHES, divergence=1.0),
            ValueError,
            "divergence must be above 1.0, got 1.0",
        ),
        (
            lambda: sc.range_test(bowl, jnp.ones(2), BATCHES, num_steps=2),
            ValueError,
            "num_steps must be at least 3, got 2",
        ),
        (
            lambda: sc.range_test(bowl, jnp.arange(2), BATCHES),
            TypeError,
            "params must be a floating-point array",
        ),
        (
            lambda: sc.range_test(lambda x, b: x, jnp.ones(2), BATCHES),
            ValueError,
            "loss must return a scalar",
        ),
        (
            lambda: sc.range_test(bowl, jnp.ones(2), (BATCHES, jnp.zeros((2, 2)))),
            ValueError,
            "batches must hold arrays with one leading axis",
        ),
        (
            lambda: sc.range_test_model(
                jax.random.key(0), 3, losses.mse, (jnp.ones((4, 1)), jnp.ones((4, 1)))
            ),
            TypeError,
            "model must be an nnx.Module or a Bound, got int",
        ),
        (
            lambda: sc.range_test_model(
                jax.random.key(0),
                nnx.Linear(1, 1, rngs=nnx.Rngs(0)),
                losses.mse,
                (jnp.ones((4, 1)), jnp.ones((4, 1))),
            ),
            ValueError,
            "batch_size must be at most the number of rows, 4, got 64",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


# The page's claims


def test_demo_claims():
    result = demo.run(jax.random.key(0), quick=True)
    assert result.source.name == "digits"

    # All schedules are drawn, each up to its highest rate.
    assert len(result.curves) == 14
    assert all(values.max() == 1 and values.min() >= 0 for values in result.curves.values())

    # The relative variance of the second moment falls like 1 / n_t.
    early = result.early
    t = np.arange(1, len(early.moment) + 1)
    constant = early.moment * np.asarray(sc.effective_samples(0.999, t))
    # Eight runs: the variance of each weight has a relative deviation of a half; the median over
    # thousands of weights has far less.
    assert constant.max() < 1.5 * constant.min()
    # At first a good share of the step is noise. A warm-up makes just those steps short.
    assert 0.2 < early.plain[0] < 1
    assert early.plain[0] > 10 * early.plain[-1]
    assert early.plain[0] > 100 * early.warm[0]
    np.testing.assert_allclose(early.plain[0], early.at_rest[0], rtol=1e-3)

    # A warm-up costs a little at a low rate, and decides at a high one.
    plain, warm = np.median(result.ladder.plain, axis=1), np.median(result.ladder.warm, axis=1)
    assert plain[0] < warm[0] < 2 * plain[0]
    assert warm[-1] < 0.3 * plain[-1]

    # The range test says which is which.
    found = result.range_tests["Adam"]
    assert found.steepest < result.ladder.rates[0] < found.largest < result.ladder.rates[-1]
    assert bool(found.diverged)

    tables = demo.tables(result)
    assert all(len({tuple(row) for row in rows}) == 1 for rows in tables.values())
    assert len(demo.plot(result).axes) == 7
