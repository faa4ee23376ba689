"""The guide: every combination, a rule table written the other way round, and real trainings."""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlnotes_jax.demos.generalization import diagnosis as demo
from mlnotes_jax.generalization import diagnosis
from mlnotes_jax.generalization.bias_variance import Estimate
from mlnotes_jax.generalization.diagnosis import Verdict

# --- The rules

#: Verdict and the answers that lead there, "-" for any: train, size, validation, test, mismatched;
#: "?" where it was not asked. Each row is a conjunction; together they must cover each case once.
RULES = [
    (Verdict.OPTIMIZATION_ISSUE, "yy---"),
    (Verdict.MODEL_BIAS, "yn---"),
    (Verdict.OVERFITTING, "n-y?n"),
    (Verdict.OVERFITTING, "n-y??"),
    (Verdict.MISMATCH, "n-y?y"),
    (Verdict.OVERFITTING, "n-yy-"),
    (Verdict.OVERFITTING, "n-yn-"),
    (Verdict.MISMATCH, "n-nyy"),
    (Verdict.MISMATCH, "n-ny?"),
    (Verdict.OVERFITTING, "n-nyn"),
    (Verdict.FINE, "n-nn-"),
    (Verdict.FINE, "n-n?-"),
]


def test_every_combination_has_one_verdict():
    cases = list(itertools.product("yn", "yn", "yn", "yn?", "yn?"))
    assert len(cases) == 72
    names = ("train_large", "worse_than_small", "validation_large", "test_large", "mismatched")
    reached = set()
    for case in cases:
        matching = [
            v for v, rule in RULES if all(r in ("-", c) for r, c in zip(rule, case, strict=True))
        ]
        assert len(matching) == 1, case
        answers = {
            n: None if c == "?" else np.array(c == "y") for n, c in zip(names, case, strict=True)
        }
        assert int(diagnosis.decide(**answers)) == matching[0], case
        reached.update(matching)
    assert reached == set(Verdict) == set(diagnosis.ADVICE)


def test_all_at_once():
    grid = np.array(list(itertools.product([False, True], repeat=5))).T
    names = ("train_large", "worse_than_small", "validation_large", "test_large", "mismatched")
    verdicts = diagnosis.decide(**dict(zip(names, grid, strict=True)))
    one_by_one = [
        int(diagnosis.decide(**dict(zip(names, column, strict=True)))) for column in grid.T
    ]
    np.testing.assert_array_equal(verdicts, one_by_one)
    assert verdicts.dtype == jnp.int32


# --- From losses


def name(**losses):
    return Verdict(int(diagnosis.diagnose(**losses).verdict)).name


@given(losses=st.tuples(*[st.floats(0, 4)] * 5), tolerance=st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_losses_by_plain_comparisons(losses, tolerance):
    small, large, validation, test, desired = losses
    gaps = [large - desired, large - small, validation - desired, test - desired]
    if min(abs(gap - tolerance) for gap in gaps) < 1e-4:
        return  # decided by rounding
    train, size, held_out, elsewhere = (gap > tolerance for gap in gaps)
    if train:
        expected = "OPTIMIZATION_ISSUE" if size else "MODEL_BIAS"
    elif held_out:
        expected = "OVERFITTING"
    else:
        expected = "MISMATCH" if elsewhere else "FINE"
    found = name(
        small_train=small, large_train=large, validation=validation, test=test, desired=desired,
        tolerance=tolerance,
    )  # fmt: skip
    assert found == expected


def test_standard_errors_make_a_margin():
    sure = diagnosis.diagnose(
        small_train=0.1, large_train=0.1, validation=Estimate(0.5, 0.1), test=0.1, desired=0.2
    )
    np.testing.assert_allclose(sure.validation.margin, 0.2, rtol=1e-6)  # two errors
    assert Verdict(int(sure.verdict)) is Verdict.OVERFITTING
    for few in (
        {"num_standard_errors": 3.1},
        {"tolerance": 0.11},
    ):
        unsure = diagnosis.diagnose(
            small_train=0.1, large_train=0.1, validation=Estimate(0.5, 0.1), desired=0.2, **few
        )
        assert Verdict(int(unsure.verdict)) is Verdict.FINE
    # Without a desired loss: against the training loss, and both errors count.
    both = diagnosis.diagnose(
        small_train=0.1, large_train=Estimate(0.1, 0.03), validation=Estimate(0.25, 0.04)
    )
    np.testing.assert_allclose(both.validation.margin, 2 * 0.05, rtol=1e-6)
    assert both.train is None
    assert Verdict(int(both.verdict)) is Verdict.OVERFITTING


def test_p_value_decides_without_a_test_loss():
    losses = {"small_train": 0.1, "large_train": 0.1, "validation": 0.9, "desired": 0.2}
    assert name(**losses) == "OVERFITTING"
    assert name(**losses, mismatch_p_value=0.5) == "OVERFITTING"
    assert name(**losses, mismatch_p_value=0.01) == "MISMATCH"
    assert name(**losses, mismatch_p_value=0.01, level=0.001) == "OVERFITTING"
    # A validation set that was asked too often: fine there, not on fresh rows of the same source.
    losses |= {"validation": 0.1, "test": 0.9}
    assert name(**losses, mismatch_p_value=0.5) == "OVERFITTING"


def test_losses_that_are_no_numbers():
    for lost in (math.nan, math.inf):
        for small in (0.1, lost):
            for desired in (None, 0.5):
                found = name(small_train=small, large_train=lost, validation=lost, desired=desired)
                assert found == "OPTIMIZATION_ISSUE"
        # The small one alone went astray: it says nothing about the large one.
        assert name(small_train=lost, large_train=0.1, validation=0.1, desired=0.2) == "FINE"
        assert name(small_train=lost, large_train=0.3, validation=0.3, desired=0.2) == "MODEL_BIAS"
        assert name(small_train=0.1, large_train=0.1, validation=lost, desired=9) == "OVERFITTING"
        losses = {"small_train": 0.1, "large_train": 0.1, "validation": 0.1, "desired": 9}
        assert name(**losses, test=lost) == "MISMATCH"


def test_mean_loss_by_numpy(x64):
    losses = np.random.default_rng(0).exponential(size=50)
    mean, error = diagnosis.mean_loss(losses)
    np.testing.assert_allclose(mean, losses.mean(), rtol=1e-12)
    np.testing.assert_allclose(error, losses.std(ddof=1) / math.sqrt(50), rtol=1e-12)


def test_transformations_and_compiling_once():
    def verdict(small, large, validation):
        return diagnosis.diagnose(
            small_train=small, large_train=large, validation=validation, desired=0.5,
            mismatch_p_value=0.2,
        )  # fmt: skip

    losses = np.random.default_rng(1).uniform(0, 1, (3, 8)).astype(np.float32)
    traced = jax.jit(chex.assert_max_traces(verdict, n=1))
    one_by_one = [traced(*column) for column in losses.T]
    chex.assert_trees_all_close(verdict(*losses[:, 0]), one_by_one[0])
    batched = jax.jit(jax.vmap(verdict))(*losses)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
    chex.assert_trees_all_equal(batched, stacked)
    assert len(set(batched.verdict.tolist())) > 2
    with pytest.raises(TypeError, match="diagnosis must be concrete, got a tracer"):
        jax.jit(lambda loss: diagnosis.explain(verdict(loss, 0.1, 0.1)) and 0)(0.1)
    with pytest.raises(ValueError, match=r"diagnosis must be one, got verdicts of shape \(8,\)"):
        diagnosis.explain(batched)


def test_words():
    common = {"small_train": 0.25, "desired": 0.25}
    bias = diagnosis.explain(diagnosis.diagnose(large_train=0.5, validation=1, **common))
    assert bias.splitlines()[:3] == [
        "optimization issue",
        "- training loss 0.5 is above the desired 0.25",
        "- training loss 0.5 is above the small model's 0.25",
    ]
    foreign = diagnosis.explain(
        diagnosis.diagnose(
            large_train=0.125,
            validation=0.2,
            test=1,
            mismatch_p_value=1e-3,
            tolerance=0.1,
            **common,
        )
    )
    assert foreign.splitlines()[:5] == [
        "mismatch",
        "- training loss 0.125 is not above the desired 0.25 by more than 0.1",
        "- validation loss 0.2 is not above the desired 0.25 by more than 0.1",
        "- test loss 1 is above the desired 0.25 by more than 0.1",
        "- the rows come from elsewhere: p-value 0.001",
    ]
    plain = diagnosis.explain(diagnosis.diagnose(small_train=1, large_train=0.5, validation=0.5))
    assert plain.splitlines()[:3] == [
        "fine",
        "- training loss 0.5 is not above the small model's 1",
        "- validation loss 0.5 is not above the training loss 0.5",
    ]
    for verdict, advice in diagnosis.ADVICE.items():
        assert advice, verdict
    assert foreign.splitlines()[-3:] == [f"- {a}" for a in diagnosis.ADVICE[Verdict.MISMATCH]]


# --- Real trainings


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_every_verdict_is_reached_by_a_real_training(result):
    verdicts = [Verdict(int(each.found.verdict)) for each in result.experiments]
    assert verdicts == [
        Verdict.MODEL_BIAS,
        Verdict.OPTIMIZATION_ISSUE,
        Verdict.OVERFITTING,
        Verdict.MISMATCH,
        Verdict.FINE,
    ]


def test_the_losses_are_what_the_page_says(result):
    bias, optimization, overfitting, mismatch, fine = result.experiments
    # Without a bend, two layers are one: both stay near the loss of a guess.
    assert abs(bias.large_curves[-1, 0] - bias.small_curve[-1]) < 1e-3
    assert bias.small_curve[-1] > 0.65
    # The deeper network has not learned anything at all.
    assert optimization.large_curves[-1, 0] > 0.65 > 0.35 > optimization.small_curve[-1]
    # A validation loss that rises again while the training loss falls.
    train, validation = overfitting.large_curves.T
    assert train[-1] < 0.01 < 1 < validation[-1]
    assert validation.min() < 0.9 * validation[-1]
    # The same network on the same rows: only the test rows differ.
    np.testing.assert_array_equal(mismatch.large_curves, fine.large_curves)
    assert mismatch.found.p_value < 1e-6 < 0.05 < fine.found.p_value
    assert mismatch.found.test.value > 5 * fine.found.test.value


def test_losses_of_a_training_by_hand(result):
    """The curve's first entries, from the first weights in NumPy."""
    data_key, small_key, _ = jax.random.split(jax.random.key(0), 3)
    task = demo.problem(data_key).disc
    weights = np.asarray(jax.random.normal(jax.random.split(small_key, 1)[0], (2, 2))) / 2**0.5
    logits = task.x @ weights
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(task.y)), task.y]
    expected = losses[task.part == 0].mean()
    np.testing.assert_allclose(result.experiments[0].small_curve[0], expected, rtol=1e-5)


def test_demo_can_be_shown(result):
    for rows in demo.tables(result).values():
        assert len({tuple(row) for row in rows}) == 1
    figure = demo.plot(result)
    assert len(figure.axes) == 6


# --- Bad input


def test_bad_input():
    good = {"small_train": 0.1, "large_train": 0.1, "validation": 0.1}
    with pytest.raises(ValueError, match="tolerance must not be negative, got -1"):
        diagnosis.diagnose(**good, tolerance=-1)
    with pytest.raises(ValueError, match=r"level must be in \[0, 1\], got 2"):
        diagnosis.diagnose(**good, level=2)
    with pytest.raises(ValueError, match=r"mismatch_p_value must be in \[0, 1\], got nan"):
        diagnosis.diagnose(**good, mismatch_p_value=math.nan)
    with pytest.raises(ValueError, match="desired must be finite, got nan"):
        diagnosis.diagnose(**good, desired=math.nan)
    with pytest.raises(ValueError, match=r"validation must be 0-D, got shape \(2,\)"):
        diagnosis.diagnose(**(good | {"validation": jnp.ones(2)}))
    with pytest.raises(ValueError, match=r"test\.standard_error must not be negative"):
        diagnosis.diagnose(**good, test=Estimate(0.1, -0.1))
    with pytest.raises(TypeError, match="small_train must be a numeric array, got str"):
        diagnosis.diagnose(**(good | {"small_train": "low"}))
    with pytest.raises(TypeError, match="test_large must be boolean, got dtype float32"):
        diagnosis.decide(
            train_large=True, worse_than_small=True, validation_large=True, test_large=1.0
        )
    with pytest.raises(ValueError, match="losses must have at least 2 rows"):
        diagnosis.mean_loss([1.0])
