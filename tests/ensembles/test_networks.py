"""Ensembles of networks against NumPy, PyTorch and their own identities."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos.ensembles import networks as demo
from mlnotes_jax.ensembles import networks
from mlnotes_jax.foundations import losses
from mlnotes_jax.nets.mlp import MLP
from mlnotes_jax.optimization import averaging
from mlnotes_jax.training import loop

AVERAGES = ("probabilities", "logits")
M, N, K = 4, 6, 3
CROSS_ENTROPY = losses.softmax_cross_entropy_with_integer_labels
SGD = optax.sgd(0.2)


def draw(seed=0, dtype=np.float32, scale=2.0):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(M, N, K))).astype(dtype)
    weights = rng.uniform(0.1, 1, M).astype(dtype)
    return logits, rng.integers(0, K, N).astype(np.int32), weights


def net(key):
    return MLP((2, 5, K), rngs=nnx.Rngs(key))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(size=(24, 2)), jnp.float32), jnp.asarray(np.arange(24) % K)


@pytest.fixture(scope="module")
def runs(data):
    """Three starts side by side."""
    keys = jax.random.split(jax.random.key(0), 3)
    return loop.fit_many(keys, net, SGD, keys, CROSS_ENTROPY, data, num_epochs=6, batch_size=8)


@pytest.fixture(scope="module")
def alone(data):
    """The same, one by one; each with the parameters after every epoch."""
    average = averaging.snapshots(3, start=5, every=6)  # three updates an epoch, two a cycle
    results = []
    for key in jax.random.split(jax.random.key(0), 3):
        after = []
        result = loop.fit(
            key,
            net(key),
            SGD,
            CROSS_ENTROPY,
            data,
            num_epochs=6,
            batch_size=8,
            average=average,
            on_epoch=lambda state, row, after=after: after.append(state.params),
        )
        results.append((result, after))
    return results


# Members


def test_each_member_is_what_training_alone_gives(runs, alone, data):
    ensemble = networks.from_runs(runs)
    said = np.asarray(networks.outputs(ensemble, data[0]))
    assert said.shape == (3, 24, K)
    assert ensemble.num_members == 3
    models = [loop.merge(result.model, after[-1], {}) for result, after in alone]
    # The same sums in another order: 18 updates in float32
    for i, model in enumerate(models):
        np.testing.assert_allclose(said[i], loop.predict(model, data[0]), rtol=1e-4, atol=1e-5)
    stacked = networks.from_models(models)
    np.testing.assert_allclose(networks.outputs(stacked, data[0]), said, rtol=1e-4, atol=1e-5)
    # Row by row, and a part of the members, is the same.
    np.testing.assert_allclose(
        networks.outputs(ensemble, data[0], batch_size=7), said, rtol=1e-5, atol=1e-6
    )
    picked = networks.from_runs(runs, [2, 0])
    np.testing.assert_array_equal(networks.outputs(picked, data[0]), said[[2, 0]])


def test_predictions_of_an_ensemble(runs, data):
    ensemble = networks.from_runs(runs)
    said = np.asarray(networks.outputs(ensemble, data[0]))
    chances = scipy.special.softmax(said, axis=-1).mean(axis=0)
    np.testing.assert_allclose(networks.predict_proba(ensemble, data[0]), chances, rtol=1e-5)
    np.testing.assert_array_equal(networks.predict(ensemble, data[0]), chances.argmax(axis=1))
    # A pytree: it goes through `jit`, and a second one of the same form does not compile again.
    traces = 0

    @jax.jit
    def ask(ensemble, x):
        nonlocal traces
        traces += 1
        return networks.predict(ensemble, x)

    for one in (ensemble, networks.from_runs(runs, [1, 1, 0])):
        np.testing.assert_array_equal(ask(one, data[0]), networks.predict(one, data[0]))
    assert traces == 1
    broken = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), ensemble)
    assert (np.asarray(networks.predict(broken, data[0])) == -1).all()


def test_snapshots_are_the_parameters_at_the_ends_of_the_cycles(alone):
    result, after = alone[0]
    ensemble = networks.snapshots(net(jax.random.key(0)), result.state.average)
    assert ensemble.num_members == 3
    for i, epoch in enumerate((1, 3, 5)):
        for ours, seen in zip(
            jax.tree.leaves(ensemble.params), jax.tree.leaves(after[epoch]), strict=True
        ):
            np.testing.assert_array_equal(ours[i], seen)
    # A run that was too short gives fewer, and none is an error.
    average = averaging.snapshots(3, start=1, every=2)
    state = average.init({"slope": jnp.zeros(2)})
    line = loop.Bound({}, {}, lambda params, state, x, **mode: (x * params["slope"][:1], state))
    with pytest.raises(ValueError, match="at least one snapshot, got none"):
        networks.snapshots(line, state)
    for slope in (1.0, 2.0, 3.0, 4.0):
        state = average.update(state, {"slope": jnp.full(2, slope)})
    assert networks.snapshots(line, state).params["slope"].tolist() == [[2.0, 2.0], [4.0, 4.0]]
    with pytest.raises(ValueError, match="no running statistics"):
        networks.snapshots(MLP((2, 3, 2), norm="batch", rngs=nnx.Rngs(0)), state)


def test_best():
    assert networks.best([0.3, np.nan, 0.1, 0.1], 3).tolist() == [2, 3, 0]
    with pytest.raises(ValueError, match="num must be at most the 2 runs, got 3"):
        networks.best([0.1, 0.2], 3)


# Averages


def test_averages_against_numpy_and_scipy(x64):
    logits, _, weights = draw(dtype=np.float64)
    chances = scipy.special.softmax(logits, axis=-1)
    mean = np.average(chances, axis=0, weights=weights)
    ours = networks.combine(logits, weights=weights)
    np.testing.assert_allclose(np.exp(ours), mean, rtol=1e-13)
    geometric = scipy.special.softmax(np.average(logits, axis=0, weights=weights), axis=-1)
    ours = networks.combine(logits, average="logits", weights=weights)
    np.testing.assert_allclose(np.exp(ours), geometric, rtol=1e-13)
    np.testing.assert_allclose(np.exp(networks.combine(logits)), chances.mean(axis=0), rtol=1e-13)


@pytest.mark.parametrize("average", AVERAGES)
def test_a_member_of_weight_zero_may_say_anything(average):
    logits, _, weights = draw()
    weights[1] = 0
    logits[1] = np.nan
    others = [0, 2, 3]
    ours = networks.combine(logits, average=average, weights=weights)
    same = networks.combine(logits[others], average=average, weights=weights[others])
    np.testing.assert_allclose(ours, same, rtol=1e-5, atol=1e-6)
    # vmap over weights equals a loop, jit equals eager
    batch = np.stack([weights, np.eye(M, dtype=np.float32)[2]])
    together = jax.jit(jax.vmap(lambda w: networks.combine(logits, average=average, weights=w)))(
        batch
    )
    np.testing.assert_allclose(together[0], ours, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together[1], jax.nn.log_softmax(logits[2]), rtol=1e-5, atol=1e-6)


def test_a_class_that_a_member_rules_out():
    sure = jnp.array([[[0.0, -jnp.inf]], [[0.0, 0.0]]])
    assert np.exp(networks.combine(sure)).tolist() == [[0.75, 0.25]]
    assert np.exp(networks.combine(sure, average="logits")).tolist() == [[1.0, 0.0]]  # a veto


# The gain


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 1.0, 30.0]))
def test_the_error_of_the_mean_is_the_mean_error_less_the_ambiguity(seed, scale):
    logits, labels, weights = draw(seed, scale=scale)
    targets = np.random.default_rng(seed).normal(size=(N, K)).astype(np.float32)
    for found in (
        networks.ambiguity(logits, targets, weights=weights),
        networks.cross_entropy_ambiguity(logits, labels, weights=weights),
        networks.cross_entropy_ambiguity(logits, labels, average="logits", weights=weights),
    ):
        # Rounding of float32, against the largest of the three
        size = float(jnp.abs(found.mean_error).max())
        np.testing.assert_allclose(
            found.error, found.mean_error - found.ambiguity, rtol=0, atol=3e-6 * size
        )
        assert (np.asarray(found.ambiguity) >= -1e-6 * size).all()


def test_ambiguity_of_logits_is_a_divergence(x64):
    logits, labels, weights = draw(dtype=np.float64)
    share = weights / weights.sum()
    found = networks.cross_entropy_ambiguity(logits, labels, average="logits", weights=weights)
    centre = np.exp(networks.combine(logits, average="logits", weights=weights))
    log_p = scipy.special.log_softmax(logits, axis=-1)
    divergence = (centre * (np.log(centre) - log_p)).sum(axis=-1)
    np.testing.assert_allclose(found.ambiguity, share @ divergence, rtol=1e-12)
    # That of averaged probabilities depends on the label; its mean over the labels that the
    # ensemble expects is a divergence, too.
    chances = np.exp(log_p)
    mean = np.tensordot(share, chances, 1)
    each = [
        networks.cross_entropy_ambiguity(logits, np.full(N, k), weights=weights).ambiguity
        for k in range(K)
    ]
    expected = share @ (mean * (np.log(mean) - log_p)).sum(axis=-1)
    np.testing.assert_allclose((mean.T * np.stack(each)).sum(axis=0), expected, rtol=1e-12)


def test_error_by_size_is_the_mean_over_all_subsets(x64):
    import itertools

    rng = np.random.default_rng(3)
    outputs, targets = rng.normal(size=(M, N, 2)), rng.normal(size=(N, 2))
    found = networks.error_by_size(outputs, targets)
    for size in range(1, M + 1):
        subsets = list(itertools.combinations(range(M), size))
        means = np.stack([outputs[list(chosen)].mean(axis=0) for chosen in subsets])
        brute = np.square(means - targets).sum(axis=-1).mean(axis=0)
        np.testing.assert_allclose(found[size - 1], brute, rtol=1e-12)
    np.testing.assert_allclose(found[-1], networks.ambiguity(outputs, targets).error, rtol=1e-12)


def test_disagreement_counts_pairs():
    logits = draw()[0]
    said = logits.argmax(axis=-1)
    pairs = [(said[i] != said[j]).mean() for i in range(M) for j in range(i)]
    np.testing.assert_allclose(networks.disagreement(logits), np.mean(pairs), rtol=1e-6)
    assert networks.disagreement(np.stack([logits[0]] * 3)) == 0


# Distillation


def test_distillation_loss_against_torch(torch):
    logits, labels, _ = draw()
    student, teacher, temperature, share = logits[0], logits[1:], 3.0, 0.3
    soft = networks.soft_targets(teacher, temperature=temperature)
    z = torch.tensor(student, requires_grad=True)
    t = torch.softmax(torch.tensor(teacher) / temperature, dim=-1).mean(dim=0)
    divergence = torch.nn.KLDivLoss(reduction="batchmean")(
        torch.log_softmax(z / temperature, dim=-1), t
    )
    hard = torch.nn.functional.cross_entropy(z, torch.tensor(labels).long())
    theirs = share * temperature**2 * divergence + (1 - share) * hard
    theirs.backward()
    loss = functools.partial(networks.distillation_loss, temperature=temperature, soft_weight=share)
    ours, slope = jax.value_and_grad(loss)(student, soft, labels)
    # float32: sums of 18 terms, T^2 = 9 times their rounding
    np.testing.assert_allclose(ours, theirs.item(), rtol=2e-6)
    np.testing.assert_allclose(slope, z.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_gradient_against_its_formula_and_finite_differences(x64):
    logits, labels, _ = draw(dtype=np.float64)
    student, alpha, temperature = logits[0], 0.7, 2.5
    soft = networks.soft_targets(logits[1:], temperature=temperature)

    def loss(z, temperature, alpha):
        return networks.distillation_loss(
            z, soft, labels, temperature=temperature, soft_weight=alpha
        )

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    at = (student, temperature, alpha)
    slopes = both(*at)[1]
    softmax = functools.partial(scipy.special.softmax, axis=-1)
    formula = alpha * temperature * (softmax(student / temperature) - np.asarray(soft))
    formula += (1 - alpha) * (softmax(student) - np.eye(K)[labels])
    np.testing.assert_allclose(slopes[0], formula / N, rtol=1e-12, atol=1e-15)
    rng = np.random.default_rng(4)
    along, step = tuple(rng.normal(size=np.shape(leaf)) for leaf in at), 1e-5
    ahead, behind = (
        both(*(leaf + sign * step * way for leaf, way in zip(at, along, strict=True)))[0]
        for sign in (1, -1)
    )
    by_hand = sum(np.sum(np.asarray(g) * way) for g, way in zip(slopes, along, strict=True))
    # Central differences: step^2, and rounding 1e-16 / step
    np.testing.assert_allclose(by_hand, (ahead - behind) / (2 * step), rtol=1e-7)


def test_a_hot_student_matches_logits(x64):
    logits = draw(dtype=np.float64)[0]
    student, teacher = logits[0], logits[1]
    centred = [z - z.mean(axis=-1, keepdims=True) for z in (student, teacher)]
    limit = (centred[0] - centred[1]) / (K * N)
    gaps = []
    for temperature in (1e2, 1e3, 1e4):
        soft = networks.soft_targets(teacher[None], temperature=temperature)
        loss = functools.partial(networks.distillation_loss, temperature=temperature)
        gaps.append(np.abs(jax.grad(loss)(student, soft) - limit).max())
    # The next term is of order 1 / T.
    np.testing.assert_allclose(gaps[0] / gaps[1], 10, rtol=0.1)
    np.testing.assert_allclose(gaps[1] / gaps[2], 10, rtol=0.1)


def test_a_teacher_that_rules_a_class_out():
    soft = jnp.array([[1.0, 0.0]])
    loss, slope = jax.value_and_grad(networks.distillation_loss)(jnp.zeros((1, 2)), soft)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(slope, [[-0.5, 0.5]], rtol=1e-6)


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z, y: networks.combine(z, average="votes"), ValueError, "average must be one of"),
        (lambda z, y: networks.combine(z[0, 0]), ValueError, "logits must have members first"),
        (
            lambda z, y: networks.combine(z, weights=np.ones(3)),
            ValueError,
            "weights must have shape (4,), got (3,)",
        ),
        (
            lambda z, y: networks.combine(z, weights=np.array([1.0, -1, 1, 1])),
            ValueError,
            "weights must not be negative, got -1.0",
        ),
        (
            lambda z, y: networks.combine(z, weights=np.zeros(4)),
            ValueError,
            "the sum of weights must be positive",
        ),
        (
            lambda z, y: networks.ambiguity(z, z[0, :2]),
            ValueError,
            "targets must have shape (6, 3), as each member, got (2, 3)",
        ),
        (
            lambda z, y: networks.cross_entropy_ambiguity(z, y + 3),
            ValueError,
            "labels must be in 0..2 (3 classes)",
        ),
        (
            lambda z, y: networks.cross_entropy_ambiguity(z, y[:2]),
            ValueError,
            "labels must have shape (6,) for 3-D logits, got (2,)",
        ),
        (lambda z, y: networks.disagreement(z[:1]), ValueError, "with two members or more"),
        (
            lambda z, y: networks.soft_targets(z, temperature=0.0),
            ValueError,
            "temperature must be positive, got 0.0",
        ),
        (
            lambda z, y: networks.distillation_loss(z[0], z[0, :1]),
            ValueError,
            "logits and targets must have one shape",
        ),
        (
            lambda z, y: networks.distillation_loss(z[0], z[0]),
            ValueError,
            "targets must not be negative",
        ),
        (
            lambda z, y: networks.distillation_loss(z[0], abs(z[0]), soft_weight=0.5),
            ValueError,
            "labels must be given where soft_weight may be less than 1",
        ),
        (
            lambda z, y: networks.distillation_loss(z[0], abs(z[0]), y, soft_weight=1.5),
            ValueError,
            "soft_weight must be in [0, 1], got 1.5",
        ),
        (lambda z, y: networks.from_models([]), ValueError, "at least one model, got none"),
        (
            lambda z, y: networks.from_models([3]),
            TypeError,
            "models[0] must be an nnx.Module or a Bound, got int",
        ),
        (
            lambda z, y: networks.from_models(
                [MLP((2, width, 2), rngs=nnx.Rngs(0)) for width in (3, 4)]
            ),
            ValueError,
            "models must be of one form, got another in models[1]",
        ),
    ],
)
def test_bad_input(call, error, message):
    logits, labels, _ = draw()
    with pytest.raises(error, match=re.escape(message)):
        call(logits, labels)


def test_bad_members(runs):
    with pytest.raises(ValueError, match=re.escape("index must be in [0, 2], got 3")):
        networks.from_runs(runs, [0, 3])
    label = jax.jit(networks.cross_entropy_ambiguity)(draw()[0], np.full(N, K))
    assert np.isnan(label.error).all()


# The page


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_what_members_add(result):
    seeds = result.ways[0]
    # Of all subsets of other starts: convex losses cannot get worse, and the squared one is known.
    assert (np.diff(seeds.log_loss) < 0).all()
    np.testing.assert_allclose(seeds.brier, result.expected_brier, rtol=1e-5)
    assert seeds.accuracy[-1] > seeds.member_accuracy + 0.005
    # Networks of different starts do not meet in the middle; snapshots of one run do.
    assert result.merged["other starts"] < 0.7
    assert result.merged["snapshots of one run"] > 0.9
    # Checkpoints of one run gain, too, and stay behind other starts.
    for way in result.ways[2:]:
        assert way.member_accuracy < way.accuracy[-1] < seeds.accuracy[-1]


def test_what_a_student_learns(result):
    labels, _, more = result.students
    assert more.accuracy.mean() > labels.accuracy.mean()
    assert more.gap.mean() < labels.gap.mean()
    assert labels.accuracy.mean() < result.teacher_accuracy
