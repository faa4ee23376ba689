"""Decay of the weights against PyTorch, Optax, the paper's algorithms, and closed forms."""

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
from mlnotes_jax.demos.optimization import weight_decay as demo
from mlnotes_jax.optimization import adam, momentum
from mlnotes_jax.optimization import weight_decay as wd

STEPS = 200
START = np.array([1.7, -0.4, 0.3, -1.2, 0.05])
WEIGHTS = np.array([0.3, 1.0, 3.0, 10.0, 0.1])


def slope(x, library):
    """Gradient of sum_i w_i (x_i^2 - 1)^2 / 4 + sin(x_i x_(i+1)) / 3: several valleys."""
    after, before = library.roll(x, -1), library.roll(x, 1)
    coupling = after * library.cos(x * after) + before * library.cos(x * before)
    weights = WEIGHTS if library is np else library.asarray(WEIGHTS)
    return weights * x * (x * x - 1) + coupling / 3


def hilly(x):
    return slope(x, jnp)


def walk(rule, start, num_steps=STEPS, gradient=hilly):
    """The parameters after each of many updates, in one scan."""

    def step(carry, _):
        params, state = carry
        update, state = rule.update(jax.tree.map(gradient, params), state, params)
        params = optax.apply_updates(params, update)
        return (params, state), params

    return jax.lax.scan(step, (start, rule.init(start)), length=num_steps)[1]


def cosine(t, library=jnp):
    """The paper's schedule multiplier of one run of 200 updates."""
    t = t.astype(jnp.result_type(float)) if library is jnp else t
    return 0.5 + 0.5 * library.cos(math.pi * t / STEPS)


# The algorithms of Loshchilov and Hutter (2019), transcribed; t counts from 1 in the paper, and the
# multiplier of the step t is SetScheduleMultiplier(t) = multiplier[t - 1].


def paper_sgd(theta, multiplier, alpha, beta1, lam, decoupled):
    """Algorithm 1: SGD with momentum, with L2 regularization or with decoupled decay."""
    m, path = np.zeros_like(theta), []
    for eta in multiplier:
        g = slope(theta, np)  # 5: the gradient of the batch
        if not decoupled:
            g = g + lam * theta  # 6
        m = beta1 * m + eta * alpha * g  # 8
        theta = theta - m - (eta * lam * theta if decoupled else 0)  # 9
        path.append(theta)
    return np.array(path)


def paper_adam(theta, multiplier, alpha, beta1, beta2, epsilon, lam, decoupled):
    """Algorithm 2: Adam, with L2 regularization or with decoupled decay."""
    m, v, path = np.zeros_like(theta), np.zeros_like(theta), []
    for t, eta in enumerate(multiplier, start=1):
        g = slope(theta, np)
        if not decoupled:
            g = g + lam * theta
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        decay = lam * theta if decoupled else 0
        theta = theta - eta * (alpha * m_hat / (np.sqrt(v_hat) + epsilon) + decay)
        path.append(theta)
    return np.array(path)


def falling(t):
    return 0.05 / (1 + 0.1 * t.astype(jnp.result_type(float)))


TORCH = {
    "adamw": (lambda: wd.adamw(0.01), "AdamW", {"lr": 0.01}),
    "adamw, options": (
        lambda: wd.adamw(falling, weight_decay=0.3, beta1=0.8, beta2=0.95, epsilon=1e-4),
        "AdamW",
        {"lr": 0.05, "weight_decay": 0.3, "betas": (0.8, 0.95), "eps": 1e-4},
    ),
    "adam_l2": (
        lambda: wd.adam_l2(0.01, weight_decay=0.1),
        "Adam",
        {"lr": 0.01, "weight_decay": 0.1},
    ),
    "sgd_l2": (lambda: wd.sgd_l2(0.02, weight_decay=0.1), "SGD", {"lr": 0.02, "weight_decay": 0.1}),
    "sgd_l2, momentum": (
        lambda: wd.sgd_l2(falling, weight_decay=0.1, momentum=0.9),
        "SGD",
        {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.9},
    ),
}
#: Scheduled by hand, as `falling`.
SCHEDULED = ("adamw, options", "sgd_l2, momentum")

PAPER = {
    "sgdw": (
        lambda: wd.sgdw(
            0.02, weight_decay=0.01, momentum=0.9, rate_in_momentum=True, multiplier=cosine,
            decay_by="multiplier",
        ),
        functools.partial(paper_sgd, alpha=0.02, beta1=0.9, lam=0.01, decoupled=True),
    ),
    "sgd_l2": (
        lambda: wd.sgd_l2(lambda t: 0.02 * cosine(t), weight_decay=0.1, momentum=0.9,
                  rate_in_momentum=True),
        functools.partial(paper_sgd, alpha=0.02, beta1=0.9, lam=0.1, decoupled=False),
    ),
    "adamw": (
        lambda: wd.adamw(0.02, weight_decay=0.01, multiplier=cosine, decay_by="multiplier"),
        functools.partial(
            paper_adam, alpha=0.02, beta1=0.9, beta2=0.999, epsilon=1e-8, lam=0.01, decoupled=True
        ),
    ),
    "adam_l2": (
        lambda: wd.adam_l2(lambda t: 0.02 * cosine(t), weight_decay=0.1),
        functools.partial(
            paper_adam, alpha=0.02, beta1=0.9, beta2=0.999, epsilon=1e-8, lam=0.1, decoupled=False
        ),
    ),
}  # fmt: skip

MASK = {"a": True, "b": {"c": False, "d": True}}
OPTAX = {
    "adamw": (
        lambda: wd.adamw(falling, weight_decay=0.3, mask=MASK),
        lambda: optax.adamw(falling, weight_decay=0.3, mask=MASK),
    ),
    "adamw, prefix, scheduled decay": (
        lambda: wd.adamw(0.02, weight_decay=falling, mask={"a": False, "b": True}),
        lambda: optax.adamw(0.02, weight_decay=falling, mask={"a": False, "b": True}),
    ),
    "adam_l2": (
        lambda: wd.adam_l2(0.02, weight_decay=0.1, mask=lambda params: {"a": True, "b": False}),
        lambda: optax.chain(
            optax.add_decayed_weights(0.1, mask=lambda params: {"a": True, "b": False}),
            optax.adam(0.02),
        ),
    ),
    "sgd_l2": (
        lambda: wd.sgd_l2(falling, weight_decay=0.1, momentum=0.9),
        lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(falling, momentum=0.9)),
    ),
}


@functools.cache
def walks():
    """Every walk that is compared with somebody else's: one program."""

    @jax.jit
    def everything(start):
        tree = {"a": start, "b": {"c": -start, "d": 0.5 * start}}
        return (
            {name: walk(make(), start) for name, (make, *_) in TORCH.items()},
            {name: walk(make(), start) for name, (make, _) in PAPER.items()},
            {name: [walk(make(), tree) for make in pair] for name, pair in OPTAX.items()},
        )

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        return jax.tree.map(np.asarray, everything(jnp.asarray(START)))


# Same numbers as the peers; 1e-10 is the bound, and round-off is 1e-16 a step


@pytest.mark.parametrize("name", TORCH)
def test_same_numbers_as_torch(torch, name):
    _, peer, options = TORCH[name]
    params = torch.tensor(START, requires_grad=True)
    optimizer = getattr(torch.optim, peer)([params], foreach=False, **options)
    path = []
    for t in range(STEPS):
        if name in SCHEDULED:
            optimizer.param_groups[0]["lr"] = 0.05 / (1 + 0.1 * t)
        params.grad = torch.from_numpy(slope(params.detach().numpy(), np))
        optimizer.step()
        path.append(params.detach().numpy().copy())
    ours = walks()[0][name]
    assert np.ptp(ours, axis=0).max() > 0.5  # it went somewhere
    np.testing.assert_allclose(ours, np.array(path), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PAPER)
def test_same_numbers_as_the_paper(name):
    path = PAPER[name][1](START, cosine(np.arange(STEPS), np))
    np.testing.assert_allclose(walks()[1][name], path, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OPTAX)
def test_same_numbers_as_optax(name):
    ours, theirs = walks()[2][name]
    chex.assert_trees_all_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_conventions_differ():
    """Each option matters: else the comparisons above would show nothing."""
    paths, start = {}, jnp.asarray(START, jnp.float32)
    for name, rule in {
        "rate": wd.adamw(0.02, weight_decay=0.5),
        "multiplier": wd.adamw(0.02, weight_decay=0.5, decay_by="multiplier"),
        "inside": wd.sgdw(falling, momentum=0.9, rate_in_momentum=True),
        "outside": wd.sgdw(falling, momentum=0.9),
    }.items():
        paths[name] = np.asarray(walk(rule, start, 20))
    assert np.abs(paths["rate"] - paths["multiplier"]).max() > 0.1
    assert np.abs(paths["inside"] - paths["outside"]).max() > 0.01


# Where the two ways are one, and where not


@functools.cache
def _pairs():
    @jax.jit
    def both(start, rate, decay):
        run = functools.partial(walk, start=start, num_steps=12)
        outside = {"weight_decay": rate * decay, "decay_by": "multiplier"}
        return {
            "SGD": (
                run(wd.sgd_l2(rate, weight_decay=decay)),
                run(wd.sgdw(rate, weight_decay=decay)),
            ),
            "SGD by the multiplier": (
                run(wd.sgd_l2(rate, weight_decay=decay)),
                run(wd.sgdw(rate, **outside)),
            ),
            "AdamW by the multiplier": (
                run(wd.adamw(rate, weight_decay=decay)),
                run(wd.adamw(rate, **outside)),
            ),
            "no decay, Adam": (run(wd.adamw(rate, weight_decay=0.0)), run(adam.adam(rate))),
            "no decay, SGD": (
                run(wd.sgdw(rate, weight_decay=0.0, momentum=0.5)),
                run(momentum.heavy_ball(rate, momentum=0.5)),
            ),
        }

    return both


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.floats(-2, 2), min_size=5, max_size=5),
    st.floats(0, 0.05),
    st.floats(0, 2),
)
def test_equal_where_the_page_says_so(start, rate, decay):
    with jax.enable_x64(True):
        pairs = _pairs()(jnp.array(start), jnp.array(rate), jnp.array(decay))
    for name, (ours, theirs) in pairs.items():
        # float64; Adam turns a rounding of a gradient near zero into one of a step
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10, err_msg=name)


def test_under_momentum_l2_decays_faster(x64):
    """Without a gradient: a share of alpha lambda, or the slow root of a recursion."""
    rate, decay, beta = 0.02, 0.01, 0.9
    flat = {"gradient": jnp.zeros_like, "start": jnp.ones(()), "num_steps": 400}
    beside = walk(wd.sgdw(rate, weight_decay=decay, momentum=beta), **flat)
    inside = walk(wd.sgd_l2(rate, weight_decay=decay, momentum=beta), **flat)
    np.testing.assert_allclose(beside, (1 - rate * decay) ** np.arange(1.0, 401), rtol=1e-12)
    # theta_(t+1) = (1 + beta - alpha lambda) theta_t - beta theta_(t-1)
    b = 1 + beta - rate * decay
    root = (b + math.sqrt(b * b - 4 * beta)) / 2
    np.testing.assert_allclose(inside[200:] / inside[199:-1], root, rtol=1e-9)
    assert 1 - root == pytest.approx(rate * decay / (1 - beta), rel=0.03)


def test_where_a_constant_gradient_ends(x64):
    """L2: -g / lambda. AdamW: -sign(g) / lambda. By the multiplier: times alpha."""
    gradient, start = jnp.array([0.1, -1.0, 3.0]), jnp.zeros(3)
    alpha, lam = 0.02, 0.5

    def run(rule):
        return np.asarray(walk(rule, start, 3000, lambda params: gradient)[-1])

    sign = np.sign(gradient)
    np.testing.assert_allclose(run(wd.sgd_l2(alpha, weight_decay=lam)), -gradient / lam, rtol=1e-6)
    np.testing.assert_allclose(run(wd.sgdw(alpha, weight_decay=lam)), -gradient / lam, rtol=1e-6)
    np.testing.assert_allclose(run(wd.adamw(alpha, weight_decay=lam)), -sign / lam, rtol=1e-6)
    outside = {"weight_decay": lam, "decay_by": "multiplier"}
    np.testing.assert_allclose(run(wd.sgdw(alpha, **outside)), -alpha * gradient / lam, rtol=1e-6)
    np.testing.assert_allclose(run(wd.adamw(alpha, **outside)), -alpha * sign / lam, rtol=1e-6)


def test_weights_without_gradient(x64):
    """AdamW shrinks all by one share; under Adam, L2 takes away the rate, whatever lambda is."""
    start = jnp.array([1.0, -0.6, 2.0])
    rate, num = 0.01, 20
    for decay in (1e-3, 1.0):
        beside = walk(wd.adamw(rate, weight_decay=decay), start, num, jnp.zeros_like)
        expected = start[None] * ((1 - rate * decay) ** np.arange(1.0, num + 1))[:, None]
        np.testing.assert_allclose(beside, expected, rtol=1e-12)
        inside = walk(wd.adam_l2(rate, weight_decay=decay), start, num, jnp.zeros_like)
        moved = np.asarray(jnp.abs(start - inside[-1]))
        # not quite: the averages of a shrinking gradient lag behind, by a share of what it lost
        np.testing.assert_allclose(moved, num * rate, rtol=0.05)


# Masks, trees, dtypes


def test_masks():
    params = {"kernel": jnp.full((2, 3), 8.0), "bias": jnp.full(3, 8.0), "scale": (jnp.ones(3),)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for mask, decayed in [
        (None, {"kernel", "bias", "scale"}),
        (wd.matrices, {"kernel"}),
        ({"kernel": True, "bias": False, "scale": True}, {"kernel", "scale"}),
        (lambda p: jax.tree.map(lambda leaf: leaf.size == 3, p), {"bias", "scale"}),
        (False, set()),
    ]:
        for rule in (
            wd.sgd_l2(0.5, weight_decay=0.25, mask=mask),
            wd.sgdw(0.5, weight_decay=0.25, mask=mask),
            wd.adam_l2(0.5, weight_decay=0.25, mask=mask),
            wd.adamw(0.5, weight_decay=0.25, mask=mask),
        ):
            updates, _ = rule.update(zeros, rule.init(params), params)
            moved = {name for name in params if any(map(jnp.any, jax.tree.leaves(updates[name])))}
            assert moved == decayed
    assert wd.matrices(params) == {"kernel": True, "bias": False, "scale": (False,)}


def test_a_function_as_mask_with_hyper_parameters_in_the_state():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    make = optax.inject_hyperparams(wd.adamw, static_args=("mask",))
    rule = make(0.5, weight_decay=0.5, mask=wd.matrices)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = rule.update(zeros, rule.init(params), params)
    chex.assert_trees_all_equal(updates, {"kernel": jnp.full((2, 3), -0.25), "bias": jnp.zeros(3)})


def test_masked_leaves_are_not_looked_at():
    params = {"a": jnp.ones(2), "b": jnp.full(2, jnp.inf)}
    rule = wd.adamw(0.5, mask={"a": True, "b": False})
    updates, _ = rule.update(jax.tree.map(jnp.ones_like, params), rule.init(params), params)
    assert np.isfinite(updates["b"]).all()


def test_inside_of_optax_masked_and_partition():
    params = {"a": jnp.ones(2), "b": jnp.ones((2, 2)), "c": jnp.ones((1, 2))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    rule = optax.masked(
        wd.sgdw(0.5, weight_decay=0.5, mask=wd.matrices), {"a": True, "b": True, "c": False}
    )
    updates, _ = rule.update(zeros, rule.init(params), params)
    assert {name: float(leaf.sum()) for name, leaf in updates.items()} == {"a": 0, "b": -1, "c": 0}
    parts = {"x": wd.adamw(0.5, weight_decay=0.5), "y": wd.sgd_l2(0.5, weight_decay=1.0)}
    rule = optax.partition(parts, {"a": "x", "b": "y", "c": "y"})
    updates, _ = rule.update(zeros, rule.init(params), params)
    assert {name: float(leaf.ravel()[0]) for name, leaf in updates.items()} == {
        "a": -0.25,
        "b": -0.5,
        "c": -0.5,
    }
    assert wd.adamw(0.1).update({}, wd.adamw(0.1).init({}), {})[0] == {}


def test_dtypes_and_states():
    params = {"half": jnp.ones(2, jnp.bfloat16), "single": jnp.ones(3)}
    for rule, peer in [
        (wd.adamw(0.1), adam.adam(0.1)),
        (wd.adam_l2(0.1), adam.adam(0.1)),
        (wd.sgdw(0.1), momentum.sgd(0.1)),
        (wd.sgd_l2(0.1, momentum=0.5), momentum.heavy_ball(0.1)),
        (wd.sgdw(0.1, momentum=0.5, rate_in_momentum=True), momentum.notes_momentum(0.1)),
    ]:
        state = rule.init(params)
        chex.assert_trees_all_equal(state, peer.init(params))  # no memory beside the rule's own
        updates, new = rule.update(params, state, params)
        chex.assert_trees_all_equal_dtypes(updates, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


# Transformations


def test_vmap_recompilation_and_gradients(x64):
    start = jnp.asarray(START)

    def total(rate, decay, beta):
        run = functools.partial(walk, start=start, num_steps=5)
        rules = [
            wd.sgd_l2(rate, weight_decay=decay, momentum=beta),
            wd.sgdw(rate, weight_decay=decay, momentum=beta, decay_by="multiplier"),
            wd.adam_l2(rate, weight_decay=decay, beta1=beta),
            wd.adamw(rate, weight_decay=decay, beta1=beta, multiplier=decay),
        ]
        return jnp.stack([jnp.square(run(rule)[-1]).sum() for rule in rules])

    compiled = jax.jit(chex.assert_max_traces(total, n=1))
    options = [(0.01, 0.1, 0.9), (0.05, 0.5, 0.0), (0.002, 0.0, 0.5)]
    alone = [compiled(*row) for row in options]
    batched = jax.jit(jax.vmap(total))
    np.testing.assert_allclose(batched(*np.array(options).T), alone, rtol=1e-11)
    slopes = jax.jit(jax.jacfwd(total, argnums=(0, 1, 2)))(*options[0])
    shifts = 1e-6 * np.eye(3)
    up, down = (batched(*(np.array(options[0])[:, None] + sign * shifts)) for sign in (1, -1))
    # central differences: an error of 1e-12, and round-off of 1e-16 / 1e-6
    np.testing.assert_allclose(np.array(slopes), (up - down) / 2e-6, rtol=1e-5, atol=1e-7)


# Bad input


def updated(rule, params, updates="same", given=True):
    state = rule.init(params)
    updates = params if updates == "same" else updates
    return rule.update(updates, state, params) if given else rule.update(updates, state)


BAD = [
    (lambda: wd.adamw(-1.0), ValueError, "learning_rate must not be negative, got -1.0"),
    (
        lambda: wd.sgdw(0.1, weight_decay=-0.5),
        ValueError,
        "weight_decay must not be negative, got -0.5",
    ),
    (
        lambda: wd.sgd_l2(0.1, weight_decay=math.inf),
        ValueError,
        "weight_decay must be finite, got inf",
    ),
    (lambda: wd.adam_l2(0.1, beta2=1.0), ValueError, r"beta2 must be in \[0, 1\), got 1.0"),
    (lambda: wd.sgd_l2(0.1, momentum=1.0), ValueError, r"momentum must be in \[0, 1\), got 1.0"),
    (
        lambda: wd.sgdw(0.1, multiplier=-1.0),
        ValueError,
        "multiplier must not be negative, got -1.0",
    ),
    (
        lambda: wd.adamw(0.1, decay_by="rate"),
        ValueError,
        "decay_by must be one of 'learning_rate', 'multiplier', got 'rate'",
    ),
    (
        lambda: wd.sgdw(0.1, rate_in_momentum="yes"),
        ValueError,
        "rate_in_momentum must be one of False, True, got 'yes'",
    ),
    (
        lambda: updated(wd.adamw(0.1), jnp.ones(2), given=False),
        ValueError,
        r"params must be given, as weights decay: call update\(updates, state, params\)",
    ),
    (
        lambda: updated(wd.sgd_l2(0.1), jnp.ones(2), given=False),
        ValueError,
        "params must be given",
    ),
    (
        lambda: updated(wd.sgd_l2(0.1), {"w": jnp.ones(2)}, {"w": jnp.ones(3)}),
        ValueError,
        r"updates\['w'\] must have the shape \(2,\)",
    ),
    (
        lambda: updated(wd.adam_l2(0.1), {"w": jnp.ones(2)}, {"w": jnp.arange(2)}),
        TypeError,
        r"updates\['w'\] must be a floating-point array",
    ),
    (
        lambda: wd.adamw(0.1).init({"w": jnp.arange(2)}),
        TypeError,
        r"params\['w'\] must be a floating-point array, got dtype int32",
    ),
    (
        lambda: wd.adamw(0.1, mask={"v": True}).init({"w": jnp.ones(2)}),
        ValueError,
        "mask must have the structure of params or of its upper part",
    ),
    (
        lambda: wd.sgd_l2(0.1, mask={"w": 1.0}).init({"w": jnp.ones(2)}),
        TypeError,
        "mask must be a tree of bools, got float",
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


def test_demo_claims(result):
    without = result.accuracy[:, :, 0]
    np.testing.assert_array_equal(*without)  # no decay is no decay
    # Either way of decay gains points, and neither wins: 1000 pictures have 1 % of spread.
    best = result.accuracy.max(axis=2)
    assert np.all(best[:, -1] > without[:, -1] + 0.05)
    assert np.all(best.max(axis=1) > without.max() + 0.005)
    assert np.abs(best[0].max() - best[1].max()) < 0.03
    # The closed form of a pixel that is always dark, and what L2 under Adam does to it.
    dark = result.brightness == 0
    assert dark.sum() > 2
    np.testing.assert_allclose(result.kept[1, dark], result.dark_kept, rtol=1e-3)
    assert result.kept[0, dark].max() < 0.1 * result.dark_kept
    # Faint pixels have small gradients: they decay under L2, but not under AdamW.
    faint = (result.brightness > 0) & (result.brightness < 0.1)
    assert result.kept[0, faint].mean() < 0.5 * result.kept[1, faint].mean()


def test_demo_rule():
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
    gradient = jax.tree.map(lambda leaf: leaf + 1, params)
    for l2, decay, expected in [(0.3, 0.0, wd.adam_l2), (0.0, 0.3, wd.adamw)]:
        one = {name: jnp.float32(value) for name, value in [("rate", 0.1), ("l2", l2)]}
        ours = demo.rule({**one, "decay": jnp.float32(decay)})
        peer = expected(0.1, weight_decay=0.3)
        ours, _ = ours.update(gradient, ours.init(params), params)
        peer, _ = peer.update(gradient, peer.init(params), params)
        chex.assert_trees_all_close(ours, peer, rtol=1e-6)


def test_demo_output(result):
    tables = demo.tables(result)
    assert all(len({tuple(row) for row in rows}) == 1 for rows in tables.values())
    assert text_tables.text(tables)
    assert len(demo.plot(result).axes) == 4
    assert result.source.name == "digits"
