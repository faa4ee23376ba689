"""Search: spaces against distributions, searches against scikit-learn, a study against SIGKILL."""

import functools
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from sklearn.linear_model import Ridge
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV, ParameterGrid, PredefinedSplit

from mlnotes_jax.demos.generalization import search as demo
from mlnotes_jax.generalization import search
from mlnotes_jax.training import checkpoints

RNG = np.random.default_rng(0)
N = 60
X = RNG.normal(size=(N, 1)).astype(np.float32)
Y = (0.5 * X[:, 0] + RNG.normal(size=N)).astype(np.float32)
FOLDS = np.arange(N) % 5


def fit(x, y, *, sample_weight=None, penalty, power=1, kind="plain"):
    """Ridge regression on one feature, without LAPACK: quick to compile."""
    if kind == "never":
        raise ValueError("never fits")
    w = jnp.ones_like(y) if sample_weight is None else sample_weight
    z = x[:, 0] ** power
    w_sum = (w * z * y).sum() / ((w * z * z).sum() + penalty)
    return w_sum * jnp.ones(N), power  # of N entries, so that it is no scalar by accident


def predict(model, x):
    return model[0][0] * x[:, 0] ** model[1]


def score(outputs, y, *, sample_weight=None):
    w = jnp.ones_like(y) if sample_weight is None else sample_weight
    return -(w * (outputs - y) ** 2).sum() / w.sum()


PENALTY = {"penalty": search.log_uniform(1e-2, 1e4)}
WHAT = (fit, predict, score, X, Y)


@pytest.fixture(scope="module")
def found():
    """Nine points: one program for most tests."""
    return search.grid(*WHAT, PENALTY, folds=FOLDS, num_points=9)


# Spaces


def p_value(sample, cdf):
    return stats.kstest(sample, cdf).pvalue


def test_samples_have_their_distributions():
    space = {
        "rate": search.log_uniform(1e-5, 10.0),
        "dropout": search.uniform(-0.2, 0.7),
        "depth": search.integer(2, 9),
        "width": search.integer(1, 100, log=True),
        "kind": search.choice(["a", "b", "c"]),
        "momentum": search.choice([0.0, 0.9]),
    }
    drawn = search.sample(jax.random.key(0), space, 4000)
    log_rate = np.log(drawn["rate"])
    # p-values are uniform if the distribution is right: one in a hundred would fall below 0.01.
    assert p_value(log_rate, stats.uniform(np.log(1e-5), np.log(1e6)).cdf) > 0.01
    assert p_value(drawn["rate"], stats.loguniform(1e-5, 10.0).cdf) > 0.01
    assert p_value(drawn["dropout"], stats.uniform(-0.2, 0.9).cdf) > 0.01
    # What is not right is seen: the same draws are not uniform themselves.
    assert p_value(drawn["rate"], stats.uniform(0, 10).cdf) < 1e-100
    assert stats.chisquare(np.bincount(drawn["depth"], minlength=10)[2:]).pvalue > 0.01
    edges = np.log(np.concatenate([np.arange(1, 102) - 0.5]))
    expected = 4000 * np.diff(edges) / (edges[-1] - edges[0])
    counts = np.bincount(drawn["width"], minlength=101)[1:]
    thick = expected > 20
    chi = ((counts - expected) ** 2 / expected)[thick].sum()
    assert stats.chi2(thick.sum()).sf(chi) > 0.01
    assert stats.chisquare([drawn["kind"].count(kind) for kind in "abc"]).pvalue > 0.01
    assert set(drawn["depth"]) == set(range(2, 10))
    # Columns are independent, floats are arrays, all else Python values.
    assert abs(stats.spearmanr(drawn["rate"], drawn["dropout"]).statistic) < 0.05
    assert drawn["momentum"].dtype == float
    assert set(drawn["momentum"]) == {0.0, 0.9}
    assert all(type(value) is int for value in drawn["depth"] + drawn["width"])


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(1e-6, 1e3), ratio=st.floats(1.01, 1e6), log=st.booleans(),
    place=st.floats(0, 1), share=st.floats(0.01, 0.9),
)  # fmt: skip
def test_places_and_values_are_inverse(low, ratio, log, place, share):
    made = search.log_uniform if log else search.uniform
    dimension = made(low, low * ratio)
    value = float(dimension.at(np.array([place]))[0])
    assert dimension.low <= value <= dimension.high
    # A range as narrow as 1 % of its values: six of sixteen digits are lost in place.
    assert dimension.place(value) == pytest.approx(place, abs=1e-9)
    window = dimension.around(value, share)
    assert dimension.low <= window.low <= value * (1 + 1e-12)
    assert value * (1 - 1e-12) <= window.high <= dimension.high
    width = dimension.place(window.high) - dimension.place(window.low)
    assert width <= share + 1e-9
    if share / 2 < place < 1 - share / 2:  # cut off by neither end
        assert width == pytest.approx(share, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(low=st.integers(1, 50), more=st.integers(1, 1000), log=st.booleans(), data=st.data())
def test_integers_stay_integers(low, more, log, data):
    dimension = search.integer(low, low + more, log=log)
    value = data.draw(st.integers(low, low + more))
    window = dimension.around(value, 0.2)
    assert low <= window.low <= value <= window.high <= low + more
    assert dimension.at(np.array([0.0, 1.0])).tolist() == [low, low + more]
    points = dimension.points(4)
    assert (points == np.rint(points)).all()
    assert points[0] == low
    assert points[-1] == low + more


def test_grid_points_equal_parameter_grid():
    space = {
        "a": search.log_uniform(1e-3, 1e3),
        "b": search.choice(["x", "y"]),
        "c": search.integer(1, 3),
    }
    points = search.grid_points(space, {"a": 7, "c": 3})
    ours = [dict(zip(points, row, strict=True)) for row in zip(*points.values(), strict=True)]
    peer = ParameterGrid({"a": np.logspace(-3, 3, 7), "b": ["x", "y"], "c": [1, 2, 3]})
    assert len(ours) == len(peer) == 42
    for row, theirs in zip(ours, peer, strict=True):  # in the same order: names are sorted
        assert row["a"] == pytest.approx(theirs["a"], rel=1e-13)
        assert (row["b"], row["c"]) == (theirs["b"], theirs["c"])
    # Integers that round to one are not tried twice; one point lies in the middle.
    assert search.grid_points({"c": search.integer(1, 3)}, 10)["c"] == [1, 2, 3]
    assert search.grid_points({"a": search.log_uniform(0.01, 100.0)}, 1)["a"] == pytest.approx([1])


# Searches


def test_grid_equals_scikit_learn(found):
    peer = GridSearchCV(
        Ridge(fit_intercept=False, solver="cholesky"),
        {"alpha": found.settings["penalty"]},
        scoring=make_scorer(lambda y, p: -np.mean((y - p) ** 2)),
        cv=PredefinedSplit(FOLDS),
    ).fit(X.astype(float), Y.astype(float))
    results = peer.cv_results_
    theirs = np.stack([results[f"split{k}_test_score"] for k in range(5)], axis=1)
    # float32 sums of 60 terms against float64
    np.testing.assert_allclose(found.scores, theirs, rtol=1e-5)
    np.testing.assert_allclose(found.mean_score, results["mean_test_score"], rtol=1e-5)
    error = theirs.std(axis=1, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-4)
    assert found.best_index == peer.best_index_
    assert found.best == {"penalty": peer.best_params_["alpha"]}
    assert found.best_score == pytest.approx(peer.best_score_, rel=1e-5)
    table = found.table()
    assert [row["score"] for row in table] == sorted((r["score"] for r in table), reverse=True)
    assert table[0]["penalty"] == found.best["penalty"]


def test_random_scores_what_it_draws(found):
    drawn = search.random(jax.random.key(1), *WHAT, PENALTY, folds=FOLDS, num_settings=9)
    again = search.listed(*WHAT, PENALTY, drawn.settings, folds=FOLDS)
    np.testing.assert_array_equal(drawn.scores, again.scores)
    # The loop cuts rows out, the program weighs them with 0.
    loop = search.listed(*WHAT, PENALTY, drawn.settings, folds=FOLDS, mode="loop")
    np.testing.assert_allclose(drawn.scores, loop.scores, rtol=1e-5)
    other = search.random(jax.random.key(2), *WHAT, PENALTY, folds=FOLDS, num_settings=9)
    assert (other.settings["penalty"] != drawn.settings["penalty"]).all()


def test_a_fit_that_draws_gets_a_key():
    def noisy(key, x, y, *, sample_weight, penalty):
        coef, power = fit(x, y, sample_weight=sample_weight, penalty=penalty)
        return coef + jax.random.normal(key), power

    one, two = (
        search.random(jax.random.key(k), noisy, *WHAT[1:], PENALTY, folds=FOLDS, num_settings=9)
        for k in (3, 4)
    )
    assert (one.scores != two.scores).all()


def test_static_settings_are_looped_and_floats_batched(found):
    space = {**PENALTY, "power": search.integer(1, 2), "kind": search.choice(["plain", "other"])}
    both = search.grid(*WHAT, space, folds=FOLDS, num_points={"penalty": 9, "power": 2})
    assert both.scores.shape == (36, 5)
    first = np.array(both.settings["power"]) == 1
    assert both.settings["kind"][:4] == ["plain", "other", "plain", "other"]
    for kind in ("plain", "other"):
        rows = first & (np.array(both.settings["kind"]) == kind)
        np.testing.assert_allclose(both.scores[rows], found.scores, rtol=1e-6)
    assert both.best["power"] == 1
    assert type(both.best["power"]) is int


def test_a_second_search_compiles_nothing(found, caplog):
    space = {**PENALTY, "power": search.integer(1, 2)}
    once = search.grid(*WHAT, space, folds=FOLDS, num_points={"penalty": 9, "power": 2})
    with jax.log_compiles(), caplog.at_level("WARNING"):
        again = search.grid(*WHAT, space, folds=FOLDS, num_points={"penalty": 9, "power": 2})
        wider = {"penalty": search.log_uniform(1e-3, 1e5)}  # other values, the same program
        search.grid(*WHAT, wider, folds=FOLDS, num_points=9)
    assert not [r for r in caplog.records if "Compiling" in r.getMessage()]
    np.testing.assert_array_equal(once.scores, again.scores)


def test_failures_stay_in_the_table_with_their_reason():
    def breaks(x, y, *, sample_weight=None, penalty):
        coef, power = fit(x, y, sample_weight=sample_weight, penalty=penalty)
        return jnp.where(penalty > 50, jnp.nan, coef), power

    some = search.grid(breaks, *WHAT[1:], PENALTY, folds=FOLDS, num_points=9)
    assert some.failed.tolist() == (some.settings["penalty"] > 50).tolist()
    assert np.isnan(some.mean_score[some.failed]).all()
    assert some.best["penalty"] < 50
    last = some.table()[-1]
    assert last["penalty"] > 50
    assert "no finite score in fold 0, 1, 2, 3, 4" in last["failed because"]

    def raises(x, y, *, penalty):  # takes no weights: a loop
        if penalty > 50:
            raise ValueError(f"penalty {penalty:.0f} is too large")
        return fit(x, y, penalty=penalty)

    loop = search.grid(raises, *WHAT[1:], PENALTY, folds=FOLDS, num_points=9)
    assert loop.failed.tolist() == some.failed.tolist()
    assert "ValueError: penalty 10000 is too large" in loop.table()[-1]["failed because"]

    space = {**PENALTY, "kind": search.choice(["plain", "never"])}
    half = search.grid(*WHAT, space, folds=FOLDS, num_points=9)
    assert half.failed.tolist() == [kind == "never" for kind in half.settings["kind"]]
    assert half.table()[-1]["failed because"] == "ValueError: never fits"

    all_fail = "all 9 settings failed, the first because: ValueError: never fits"
    never = functools.partial(fit, kind="never")
    with pytest.raises(ValueError, match=all_fail):
        search.grid(never, *WHAT[1:], PENALTY, folds=FOLDS, num_points=9)


def test_a_best_value_at_the_edge_is_said(found):
    assert found.borders == ()  # the best penalty of this problem is near 30
    low = search.grid(*WHAT, {"penalty": search.log_uniform(1e2, 1e5)}, folds=FOLDS, num_points=9)
    (border,) = low.borders
    assert border == ("penalty", 1e2, "lower", 1e2, 1e5)
    assert str(border) == (
        "the best penalty, 100, is at the lower end of [100, 1e+05]: a better one may lie beyond, "
        "widen the range"
    )
    high = search.random(
        jax.random.key(0), *WHAT, {"penalty": search.log_uniform(1e-9, 1.0)},
        folds=FOLDS, num_settings=99,
    )  # fmt: skip
    assert [b.side for b in high.borders] == ["upper"]
    assert high.best["penalty"] < 1
    space = {**PENALTY, "power": search.integer(1, 2), "kind": search.choice(["plain", "other"])}
    whole = search.grid(*WHAT, space, folds=FOLDS, num_points={"penalty": 9, "power": 2})
    assert [(b.name, b.side) for b in whole.borders] == [("power", "lower")]


def test_coarse_to_fine_closes_in(found):
    fine = search.coarse_to_fine(
        jax.random.key(0), *WHAT, PENALTY, folds=FOLDS, num_settings=9, stages=4, shrink=0.3
    )
    bests = [stage.best_score for stage in fine.stages]
    assert bests == sorted(bests)
    assert fine.best_score == bests[-1]
    assert len(bests) == 4
    whole, last = PENALTY["penalty"], 1.0
    for before, stage in itertools.pairwise(fine.stages):
        window, values, best = stage.space["penalty"], stage.settings["penalty"], before.best
        assert values[0] == best["penalty"]
        assert (values >= window.low - 1e-12).all()
        assert (values <= window.high + 1e-9).all()
        # The window shrinks if the best was between others, else it only moves.
        tried = before.settings["penalty"]
        last *= 0.3 if tried.min() < best["penalty"] < tried.max() else 1.0
        width = whole.place(window.high) - whole.place(window.low)
        assert width == pytest.approx(last, rel=1e-6)  # the ends are far: it is not cut off
    assert last <= 0.09  # it shrank twice at least
    # The optimum in closed form does not exist; a grid of 2001 points stands for it.
    exact = search.grid(*WHAT, PENALTY, folds=FOLDS, num_points=2001)
    # Half a decade about the best is left: a hundredth of what six decades differ by.
    assert exact.best_score - fine.best_score < 0.01 * np.ptp(found.mean_score)
    assert fine.borders == ()
    edge = search.coarse_to_fine(
        jax.random.key(0), *WHAT, {"penalty": search.log_uniform(1e-6, 1.0)},
        folds=FOLDS, num_settings=9, stages=4,
    )  # fmt: skip
    assert [b.side for b in edge.borders] == ["upper"]  # of the whole space
    assert edge.borders[0].low == 1e-6


def steps_fit(x, y, *, sample_weight, rate, num_steps):
    """Gradient descent on the same loss."""
    w, z = sample_weight, x[:, 0]

    def step(c, _):
        return c - rate * (w * z * (c * z - y)).sum() / w.sum(), None

    c, _ = jax.lax.scan(step, jnp.zeros(()), length=num_steps)
    return c * jnp.ones(N), 1


def test_stages_may_train_longer():
    space = {"rate": search.log_uniform(1e-4, 100.0)}
    found = search.coarse_to_fine(
        jax.random.key(0), steps_fit, *WHAT[1:], space, folds=FOLDS, num_settings=9,
        stages=({"num_steps": 3}, {"num_steps": 30}),
    )  # fmt: skip
    assert len(found.stages) == 2
    rate, other = found.stages[0].best["rate"], found.stages[1]
    longer = search.listed(
        functools.partial(steps_fit, num_steps=30), *WHAT[1:], space, other.settings, folds=FOLDS
    )
    np.testing.assert_array_equal(other.scores, longer.scores)
    assert other.settings["rate"][0] == rate
    # A rate that diverges has no finite score after 1000 steps, and stays in the table.
    far = search.listed(
        functools.partial(steps_fit, num_steps=1000), *WHAT[1:], space, {"rate": [1.0, 100.0]},
        folds=FOLDS,
    )  # fmt: skip
    assert far.failed.tolist() == [False, True]


def test_halving_plan():
    plan = search.halving_plan(81, min_budget=5, max_budget=405)
    assert [tuple(rung) for rung in plan] == [(81, 5), (27, 15), (9, 45), (3, 135), (1, 405)]
    # Every rung costs m r; all settings with the full budget cost m R.
    assert {rung.cost for rung in plan} == {81 * 5}
    ragged = search.halving_plan(10, min_budget=4, max_budget=100, factor=4)
    assert [tuple(rung) for rung in ragged] == [(10, 4), (2, 16), (1, 100)]
    assert [tuple(r) for r in search.halving_plan(7, min_budget=3, max_budget=3)] == [(7, 3)]


def test_successive_halving_over_rows():
    found = search.successive_halving(
        jax.random.key(0), *WHAT, PENALTY, folds=FOLDS, num_settings=9, min_budget=10,
        max_budget=60, factor=3,
    )  # fmt: skip
    assert [tuple(rung) for rung in found.plan] == [(9, 10), (3, 30), (1, 60)]
    assert found.cost == 9 * 10 + 3 * 30 + 60 == 240
    assert found.full_cost == 9 * 60
    drawn = found.rungs[0].settings["penalty"]
    for above, below, kept, tried in zip(
        found.rungs, found.rungs[1:], found.survivors[1:], found.survivors, strict=False
    ):
        np.testing.assert_array_equal(below.settings["penalty"], drawn[kept])
        ranked = tried[np.argsort(-above.mean_score)]
        assert set(kept) == set(ranked[: len(kept)])
    # The last rung has all rows, so its score is that of the search without halving.
    whole = search.listed(*WHAT, PENALTY, found.rungs[-1].settings, folds=FOLDS)
    # The rows come in another order.
    assert found.best_score == pytest.approx(whole.best_score, rel=1e-5)


def test_rungs_are_fair_and_nested():
    fold = np.array([0] * 20 + [1] * 20 + [2] * 19)
    order = search._fair_order(jax.random.key(0), fold)
    assert sorted(order) == list(range(59))
    for size in (3, 10, 30, 59):
        counts = np.bincount(fold[order[:size]], minlength=3)
        assert counts.max() - counts.min() <= 1
    assert (order != search._fair_order(jax.random.key(1), fold)).any()


def test_successive_halving_over_steps_drops_what_diverges():
    found = search.successive_halving(
        jax.random.key(0), steps_fit, *WHAT[1:], {"rate": search.log_uniform(0.1, 1e4)},
        folds=FOLDS, num_settings=9, min_budget=30, max_budget=90, budget="num_steps",
    )  # fmt: skip
    assert found.rungs[0].failed.any()
    assert not found.rungs[0].failed[found.survivors[1]].any()
    assert found.best["rate"] < 3


# How good a search can be


def test_chance_of_top():
    # The best of m uniform draws is in the top q if not all m are below: the binomial's tail.
    for m, q in ((1, 0.3), (25, 0.1), (60, 0.05)):
        ours = float(search.chance_of_top(m, q))
        assert ours == pytest.approx(stats.binom(m, q).sf(0), rel=1e-6)
    # 1 - (1 - q)^m is m q for a tiny q; written out in float32 it would be 0.
    assert float(search.chance_of_top(10, 1e-9)) == pytest.approx(1e-8, rel=1e-5)
    assert search.chance_of_top([0.0, 5.0], 1.0).tolist() == [0, 1]


def test_expected_improvement_equals_quadrature(x64):
    mean = np.array([0.3, -2.0, 1.5, -8.0, 2.0])
    deviation = np.array([1.0, 0.5, 2.0, 1.0, 0.0])
    best = np.array([0.0, 0.1, 3.0, 0.0, 1.0])

    def gain(m, s, b):
        if s == 0:
            return max(m - b, 0)

        def integrand(y):
            return (y - b) * math.exp(-(((y - m) / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi))

        # Twelve deviations above the mean nothing is left, nor three above the best.
        return integrate.quad(integrand, b, max(m + 12 * s, b + 3 * s), epsabs=0, epsrel=1e-11)[0]

    exact = [gain(*row) for row in zip(mean, deviation, best, strict=True)]
    ours = search.expected_improvement(mean, deviation, best)
    # the quadrature's own error
    np.testing.assert_allclose(ours, exact, rtol=1e-10)
    arrays = [jnp.asarray(array) for array in (mean, deviation, best)]
    # z is -8 for the fourth: the last two digits are rounding.
    jitted = jax.jit(search.expected_improvement)(*arrays)
    np.testing.assert_allclose(jitted, ours, rtol=1e-12)
    # Values and slopes one by one, against the batch.
    value_and_slopes = jax.value_and_grad(search.expected_improvement, (0, 1))
    mapped, slopes = jax.vmap(value_and_slopes)(*arrays)
    np.testing.assert_allclose(mapped, ours, rtol=1e-12)
    some = deviation > 0
    z = ((mean - best)[some]) / deviation[some]
    # By parts, the slopes are Phi(z) and phi(z).
    np.testing.assert_allclose(slopes[0][some], stats.norm.cdf(z), rtol=1e-9)
    np.testing.assert_allclose(slopes[1][some], stats.norm.pdf(z), rtol=1e-9)
    assert np.isfinite(slopes).all()  # without spread, too
    step = 1e-6 * some
    up, down = (search.expected_improvement(mean + h, deviation, best) for h in (step, -step))
    # central differences: the third derivative times 1e-12, and rounding / 1e-6
    np.testing.assert_allclose(slopes[0][some], (up - down)[some] / 2e-6, atol=1e-8)
    up, down = (search.expected_improvement(mean, deviation + h, best) for h in (step, -step))
    np.testing.assert_allclose(slopes[1][some], (up - down)[some] / 2e-6, atol=1e-8)
    # In float32 the two terms of the formula would cancel to nothing, or below 0.
    far = search.expected_improvement(np.float32(-8), np.float32(1), np.float32(0))
    assert far.dtype == jnp.float32
    np.testing.assert_allclose(far, exact[3], rtol=1e-3)  # 64 times the spacing, with room


# Checkpoints


def test_checkpoints_are_named_by_their_score(tmp_path):
    for number, value in enumerate([0.25, -3.5, 0.75]):
        search.save_scored(tmp_path, np.full(2, value), score=value, number=number)
    (tmp_path / "score_best").mkdir()  # not one of ours
    listing = search.scored(tmp_path)
    assert [value for value, _ in listing] == [0.75, 0.25, -3.5]
    assert listing[0][1].name == "score_+0.750000_trial_00002"
    best = checkpoints.load_model(listing[0][1], np.zeros(2))
    assert best.tolist() == [0.75, 0.75]
    assert search.scored(tmp_path / "none") == []
    with pytest.raises(ValueError, match="score must be finite, got nan"):
        search.save_scored(tmp_path, np.zeros(2), score=math.nan, number=3)


# A study on disk

RATE = {"rate": search.log_uniform(1e-4, 1.0), "kind": search.choice(["a", "b"])}


def bowl(settings, number):
    if settings["kind"] == "b":
        raise ZeroDivisionError("b does not work")
    return -abs(math.log10(settings["rate"]) + 2)


def test_a_study_goes_on_where_it_stopped(tmp_path):
    for folder, parts in (("whole", [None]), ("parts", [3, 4, None])):
        search.create_study(tmp_path / folder, RATE, num_trials=14, seed=3)
        done = [search.work(tmp_path / folder, bowl, max_trials=part) for part in parts]
        assert sum(done) == 14
    whole, parts = (search.trials(tmp_path / name) for name in ("whole", "parts"))
    assert [t.settings for t in whole] == [t.settings for t in parts]
    assert [t.number for t in whole] == list(range(14))
    for trial in whole:
        if trial.settings["kind"] == "b":
            assert (trial.state, trial.reason) == ("failed", "ZeroDivisionError: b does not work")
            assert math.isnan(trial.score)
        else:
            assert trial.state == "complete"
            assert trial.score == bowl(trial.settings, 0)
        assert trial.retry_of is None
        assert trial.seconds >= 0
    assert search.best_trial(tmp_path / "whole").score == max(
        t.score for t in whole if t.state == "complete"
    )
    # Complete: nothing is left to do. Longer: it goes on, and Optuna reads the same study.
    assert search.work(tmp_path / "whole", bowl) == 0
    search.create_study(tmp_path / "whole", RATE, num_trials=16, seed=3)
    assert search.work(tmp_path / "whole", lambda settings, number: math.inf) == 2
    assert search.trials(tmp_path / "whole")[-1].reason == "the score is inf"
    journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / "whole" / "journal.log"))
    verbosity = optuna.logging.get_verbosity()
    peer = optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(journal))
    assert optuna.logging.get_verbosity() == verbosity
    assert peer.best_trial.number == search.best_trial(tmp_path / "whole").number
    assert len(peer.trials) == 16
    ends = peer.trials[0].distributions["rate"]
    assert (ends.low, ends.high, ends.log) == (1e-4, 1.0, True)


def test_tpe_learns(tmp_path):
    """Against random search of the same seed, on a bowl: closer, by the median of later trials."""
    median = {}
    for sampler in ("tpe", "random"):
        space = {"rate": search.log_uniform(1e-6, 1.0)}
        folder = search.create_study(
            tmp_path / sampler, space, num_trials=40, seed=0, sampler=sampler
        )
        search.work(folder, lambda s, number: -abs(math.log10(s["rate"]) + 2))
        median[sampler] = np.median([t.score for t in search.trials(folder)[20:]])
    # Uniform on six decades about a third of the way: the median distance is 1.5 or so.
    assert median["tpe"] > -0.7 > -1.0 > median["random"]


WORKER = """
import os, sys, time
from mlnotes_jax.generalization import _study

folder = sys.argv[1]

def objective(settings, number):
    with open(f"{folder}/log", "a") as log:
        log.write(f"{number}\\n")
    if not os.path.exists(f"{folder}/stuck"):
        with open(f"{folder}/stuck.part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(f"{folder}/stuck.part", f"{folder}/stuck")
        time.sleep(600)
    time.sleep(0.005)
    return settings["rate"]

_study.work(folder, objective)
assert "jax" not in sys.modules
"""

TEAR = """
import os, pathlib, sys, time
from mlnotes_jax.generalization import _study

journal = pathlib.Path(sys.argv[1]) / "journal.log"
with _study._Lock(journal):
    with open(journal, "ab") as file:
        file.write(b'{"op_code":4,"worker')
    (journal.parent / "torn").touch()
    time.sleep(600)
"""


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_killed_workers_lose_nothing(tmp_path):
    space = {"rate": search.log_uniform(1e-4, 1.0)}
    search.create_study(tmp_path, space, num_trials=12, seed=0, sampler="random")

    def start(script):
        return subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])

    workers = [start(WORKER) for _ in range(2)]
    tearing = None
    try:
        # One is killed in the middle of a trial ...
        wait_for(tmp_path / "stuck")
        stuck = int((tmp_path / "stuck").read_text())
        before = {t.number: t for t in search.trials(tmp_path) if t.state == "complete"}
        os.kill(stuck, signal.SIGKILL)
        # ... another with the journal locked and half a line written.
        tearing = start(TEAR)
        wait_for(tmp_path / "torn")
        tearing.kill()
        codes = sorted(worker.wait(timeout=60) for worker in workers)
    finally:
        for process in [*workers, tearing]:
            if process is not None:
                process.kill()
                process.wait()
    assert codes == [-signal.SIGKILL, 0]
    found = search.trials(tmp_path)
    assert Counter(t.state for t in found) == {"complete": 12, "interrupted": 1}
    assert all(found[number] == trial for number, trial in before.items())
    (lost,) = (t for t in found if t.state == "interrupted")
    assert lost.reason == "its process ended before it answered (attempt 1 of 3)"
    assert math.isnan(lost.score)
    (again,) = (t for t in found if t.retry_of is not None)
    assert (again.retry_of, again.settings, again.state) == (lost.number, lost.settings, "complete")
    # Each setting was answered once, and each trial begun once.
    answered = [t.settings["rate"] for t in found if t.state == "complete"]
    assert len(set(answered)) == 12
    assert all(t.score == t.settings["rate"] for t in found[1:])
    begun = Counter((tmp_path / "log").read_text().split())
    assert begun == {str(t.number): 1 for t in found}
    assert not list(tmp_path.glob("worker_*"))


class Killed(BaseException):
    """Ends a worker as SIGKILL would, but for what the kernel does: no answer is written."""


def test_a_setting_that_kills_its_process_fails_in_the_end(tmp_path):
    space = {"rate": search.uniform(0.0, 1.0)}
    search.create_study(tmp_path, space, num_trials=2, seed=0, max_attempts=2)

    def deadly(settings, number):
        raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            search.work(tmp_path, deadly)
    assert search.work(tmp_path, lambda s, number: 1.0) == 1
    found = search.trials(tmp_path)
    assert [t.state for t in found] == ["interrupted", "interrupted", "complete"]
    assert [t.retry_of for t in found] == [None, 0, None]
    assert found[1].reason.endswith("(attempt 2 of 2)")


def test_marking_an_interrupted_trial_may_be_interrupted(tmp_path, monkeypatch):
    space = {"rate": search.uniform(0.0, 1.0)}
    search.create_study(tmp_path, space, num_trials=1, seed=0)

    def killed(*_, **__):
        raise Killed

    with pytest.raises(Killed):
        search.work(tmp_path, killed)
    # The next worker dies after it has queued the setting again, before it has closed the trial.
    with monkeypatch.context() as patch:
        patch.setattr(optuna.storages.JournalStorage, "set_trial_user_attr", killed)
        with pytest.raises(Killed):
            search.work(tmp_path, lambda s, number: 1.0)
    assert [t.state for t in search.trials(tmp_path)] == ["running", "waiting"]
    assert search.work(tmp_path, lambda s, number: 1.0) == 1
    assert [t.state for t in search.trials(tmp_path)] == ["interrupted", "complete"]


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: search.log_uniform(0.0, 1.0), ValueError, r"low must be positive .* got 0.0"),
        (lambda: search.log_uniform(-1.0, 1.0), ValueError, r"low must be positive .* got -1.0"),
        (lambda: search.uniform(2.0, 1.0), ValueError, "low must be below high, got low = 2.0"),
        (lambda: search.uniform(1.0, 1.0), ValueError, "low must be below high"),
        (lambda: search.log_uniform(1.0, math.inf), ValueError, "high must be finite, got inf"),
        (lambda: search.uniform("a", 1.0), TypeError, "low must be a number, got 'a'"),
        (lambda: search.integer(1.5, 3), TypeError, "low must be an integer, got 1.5"),
        (lambda: search.integer(0, 3, log=True), ValueError, "low must be positive"),
        (lambda: search.choice([]), ValueError, "options must not be empty"),
        (lambda: search.choice("abc"), TypeError, "options must be a sequence"),
        (lambda: search.choice([1, 2, 1]), ValueError, "options must differ, got 1 twice"),
        (lambda: search.choice([math.nan]), ValueError, "options must be finite, got nan"),
        (lambda: search.grid_points({}), ValueError, "space must not be empty"),
        (
            lambda: search.grid_points([("a", search.uniform(0, 1))] * 2),
            ValueError,
            "space must name each setting once, got 'a' twice",
        ),
        (lambda: search.grid_points(3), TypeError, "space must be a mapping"),
        (lambda: search.grid_points({"a": 3}), TypeError, r"space\['a'\] must be a log_uniform"),
        (lambda: search.grid_points(PENALTY, 0), ValueError, "num_points must be at least 1"),
        (lambda: search.grid_points(PENALTY, {}), ValueError, "num_points must name the ranges"),
        (
            lambda: search.sample(jax.random.key(0), PENALTY, 0),
            ValueError,
            "num_settings must be at least 1, got 0",
        ),
        (
            lambda: search.listed(*WHAT, PENALTY, {"c": [1.0]}, folds=FOLDS),
            ValueError,
            r"settings must have the names \['penalty'\]",
        ),
        (
            lambda: search.listed(*WHAT, PENALTY, {"penalty": []}, folds=FOLDS),
            ValueError,
            "settings must have as many values of each",
        ),
        (
            lambda: search.grid(*WHAT, PENALTY, folds=FOLDS[:9], num_points=9),
            ValueError,
            "all 9 settings failed, the first because: ValueError: folds must have shape",
        ),
        (
            lambda: search.coarse_to_fine(
                jax.random.key(0), *WHAT, PENALTY, folds=FOLDS, num_settings=9, shrink=1.0
            ),
            ValueError,
            r"shrink must be in \(0, 1\), got 1.0",
        ),
        (
            lambda: search.coarse_to_fine(
                jax.random.key(0), *WHAT, PENALTY, folds=FOLDS, num_settings=9, stages=()
            ),
            ValueError,
            "stages must not be empty",
        ),
        (
            lambda: search.halving_plan(3, min_budget=5, max_budget=4),
            ValueError,
            "max_budget must be at least 5, got 4",
        ),
        (
            lambda: search.successive_halving(
                jax.random.key(0), *WHAT, PENALTY, folds=FOLDS, num_settings=9, min_budget=10,
                max_budget=61,
            ),
            ValueError,
            "max_budget must be at most the 60 rows, got 61",
        ),
        (
            lambda: search.successive_halving(
                jax.random.key(0), *WHAT, PENALTY, folds=FOLDS, num_settings=9, min_budget=10,
                budget="num_steps",
            ),
            ValueError,
            "max_budget must be given for a budget in num_steps",
        ),
        (lambda: search.chance_of_top(3, 1.5), ValueError, r"share must be in \[0, 1\]"),
        (
            lambda: search.expected_improvement(0.0, -1.0, 0.0),
            ValueError,
            "standard_deviation must not be negative",
        ),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_bad_studies(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no study in"):
        search.trials(tmp_path)
    with pytest.raises(ValueError, match="num_trials must be at least 1, got 0"):
        search.create_study(tmp_path, RATE, num_trials=0, seed=0)
    with pytest.raises(TypeError, match=r"seed must be an integer, got 0\.5"):
        search.create_study(tmp_path, RATE, num_trials=1, seed=0.5)
    with pytest.raises(ValueError, match="sampler must be one of 'tpe', 'random', got 'grid'"):
        search.create_study(tmp_path, RATE, num_trials=1, seed=0, sampler="grid")
    space = {"solver": search.choice([max, min])}
    with pytest.raises(TypeError, match="must have text, numbers, Booleans or None"):
        search.create_study(tmp_path, space, num_trials=1, seed=0)
    search.create_study(tmp_path, RATE, num_trials=5, seed=0)
    with pytest.raises(ValueError, match=r"seed must be that of the study in .*, 0, got 1"):
        search.create_study(tmp_path, RATE, num_trials=5, seed=1)
    with pytest.raises(ValueError, match="num_trials must be at least that of the study"):
        search.create_study(tmp_path, RATE, num_trials=4, seed=0)
    with pytest.raises(ValueError, match=r"no trial of .* is complete, of 0"):
        search.best_trial(tmp_path)
    search.work(tmp_path, lambda s, number: math.nan)
    with pytest.raises(ValueError, match=r"of 5; 5 failed, .* the score is nan"):
        search.best_trial(tmp_path)


# The demo, and pictures


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_demo_random_beats_grid_and_stages_beat_both(result):
    middle = np.median(result.shortfall, axis=2)
    assert result.num_settings == (4, 9, 16, 25, 49)
    assert (middle[1] < middle[0]).all()  # random against grid, with every budget
    assert (middle[2, 2:] < middle[1, 2:]).all()  # in stages, from 16 settings on
    # One penalty hardly matters: up to 1, the score changes by less along it than along the other.
    flat = result.surface[:8]
    assert np.ptp(flat, axis=0).max() < 0.1 * np.ptp(flat, axis=1).min()
    assert set(np.round(np.log10(np.unique(result.found["grid"].settings["products"])), 2)) == {
        -2, -0.25, 1.5, 3.25, 5,
    }  # fmt: skip
    assert len(np.unique(result.found["random"].settings["products"])) == 25
    assert [str(b)[:21] for b in result.found["grid"].borders] == ["the best measurements"]


def test_demo_tables_and_picture(result):
    import matplotlib.pyplot as plt

    tables = demo.tables(result)
    assert [len(rows) for rows in tables.values()] == [3, 5]
    figure = demo.plot(result)
    assert len(figure.axes) == 4
    assert all(axes.get_xlabel() for axes in figure.axes)
    plt.close(figure)
    with pytest.raises(ValueError, match="num_repeats must be at least 5, got 4"):
        demo.run(jax.random.key(0), num_repeats=4)


def test_plot_has_a_panel_for_each_setting(result):
    import matplotlib.pyplot as plt

    for found in result.found.values():
        figure = search.plot(found)
        assert [axes.get_xlabel() for axes in figure.axes] == ["measurements", "products"]
        plt.close(figure)
    space = {**PENALTY, "kind": search.choice(["plain", "never"])}
    figure = search.plot(search.grid(*WHAT, space, folds=FOLDS, num_points=9))
    labels = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert labels == ["plain", "never"]
    plt.close(figure)
