"""Two-sample tests against SciPy, exhaustive enumeration, closed forms, and their own promises."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import linear_model, preprocessing

from mlnotes_jax.demos.generalization import mismatch as demo
from mlnotes_jax.generalization import metrics, mismatch

ROWS = demo.NUM_ROWS, 64


@pytest.fixture(scope="module")
def pictures():
    return jnp.asarray(demo.problem().x)


@pytest.fixture(scope="module")
def null(pictures):
    """480 trials in which nothing was changed."""
    keys = jax.random.split(jax.random.key(11), (12, demo.BATCH))
    parts = [jax.device_get(demo.trials(k, pictures, jnp.float32(0), jnp.float32(1))) for k in keys]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


@pytest.fixture(scope="module")
def moved(pictures):
    """Trials with pictures moved by a tenth of a pixel."""
    keys = jax.random.split(jax.random.key(12), demo.BATCH)
    return jax.device_get(demo.trials(keys, pictures, jnp.float32(0.1), jnp.float32(1)))


# --- Tails


@given(
    total=st.sampled_from([1, 7, 20, 300]), shares=st.tuples(*[st.floats(0, 1)] * 3)
)  # few totals: each is a program
@settings(deadline=None, max_examples=40)
def test_hypergeometric_tail_is_that_of_scipy(total, shares):
    marked, drawn = (round(share * total) for share in shares[:2])
    hits = round(shares[2] * min(marked, drawn))
    expected = stats.hypergeom.sf(hits - 1, total, marked, drawn)
    found = hypergeometric_tail(hits, drawn=drawn, marked=marked, total=total)
    # Float32 logarithms of up to 200 are added 300 times at most; below 1e-37 there is no float.
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-37)


hypergeometric_tail = jax.jit(mismatch.hypergeometric_tail, static_argnames="total")


def test_hypergeometric_tail_by_enumeration(x64):
    total, marked, drawn = 9, 4, 5
    hits = [sum(i < marked for i in hand) for hand in itertools.combinations(range(total), drawn)]
    for a in range(marked + 1):
        found = mismatch.hypergeometric_tail(a, drawn=drawn, marked=marked, total=total)
        np.testing.assert_allclose(found, np.mean(np.array(hits) >= a), rtol=1e-12)


def test_binomial_tail_is_that_of_scipy():
    k = np.arange(42)
    for p in (0.5, 0.03):
        expected = [
            stats.binomtest(int(i), 40, p, alternative="greater").pvalue if i <= 40 else 0
            for i in k
        ]
        found = mismatch.binomial_tail(k, 40, probability=p)
        # betainc in float32 is good to about 1e-5 of its value; tails below 1e-37 are 0.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-37)


def test_power_is_what_the_binomial_says():
    for accuracy, h in ((0.6, 200), (0.55, 800)):
        critical = int(stats.binom.isf(0.05, h, 0.5)) + 1
        exact = stats.binom.sf(critical - 1, h, accuracy)
        # The counts are whole, and the level is used up only in part: a few per cent of power.
        assert abs(float(mismatch.power(accuracy, h)) - exact) < 0.04
    rows = mismatch.rows_needed(jnp.array([0.55, 0.6, 0.9]), power=0.7, level=0.01)
    found = mismatch.power(jnp.array([0.55, 0.6, 0.9]), rows, level=0.01)
    np.testing.assert_allclose(found, 0.7, rtol=1e-5)  # one is the other, solved
    assert float(mismatch.power(0.5, 100)) == pytest.approx(0.05, rel=1e-4)  # the level
    assert np.isinf(mismatch.rows_needed(0.5))


def test_slope_of_power(x64):
    power = functools.partial(mismatch.power, num_held_out=100.0)
    slope = jax.grad(power)(jnp.float64(0.6))
    step = 1e-5
    difference = (power(0.6 + step) - power(0.6 - step)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-7)  # step squared, times a third slope


# --- Kolmogorov and Smirnov


@pytest.mark.parametrize(("n", "m"), [(30, 47), (60, 20)])
def test_exact_law_is_that_of_scipy(n, m):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    z = (rng.normal(size=(m, 4)) + np.array([0, 0.5, 1, 4])).astype(np.float32)
    statistic, p_value = mismatch.kolmogorov_smirnov(x, z)
    for j in range(4):
        peer = stats.ks_2samp(x[:, j], z[:, j], method="exact")
        np.testing.assert_allclose(statistic[j], peer.statistic, rtol=1e-6)
        # n + m products of float32; only terms that are not negative are added.
        np.testing.assert_allclose(p_value[j], peer.pvalue, rtol=1e-4)


@given(values=st.lists(st.integers(0, 3), min_size=8, max_size=8))
@settings(deadline=None, max_examples=20)
def test_exact_with_ties_by_enumeration(values):
    """Every way to deal out eight values, many of them equal, to samples of three and five."""
    values = np.array(values, np.float32)

    def distance(chosen):
        x, z = values[list(chosen)], np.delete(values, chosen)
        at = np.unique(values)
        return np.abs((x[:, None] <= at).mean(0) - (z[:, None] <= at).mean(0)).max()

    every = np.array([distance(chosen) for chosen in itertools.combinations(range(8), 3)])
    statistic, p_value = mismatch.kolmogorov_smirnov(values[:3], values[3:])
    np.testing.assert_allclose(statistic, every[0], atol=1e-6)
    np.testing.assert_allclose(p_value, np.mean(every >= every[0] - 1e-9), rtol=1e-5)
    # SciPy ignores that equal values are passed together.
    assert float(p_value) <= stats.ks_2samp(values[:3], values[3:]).pvalue * (1 + 1e-5)


def test_equal_sizes_by_reflection():
    n, x = 20, np.arange(20.0)
    for k in (1, 4, 9, 20):  # D = k / n
        z = np.where(x < k, 100.0, x + 0.5)
        statistic, p_value = mismatch.kolmogorov_smirnov(x, z)
        k = round(float(statistic) * n)
        terms = [(-1) ** (j - 1) * math.comb(2 * n, n - j * k) for j in range(1, n // k + 1)]
        np.testing.assert_allclose(p_value, 2 * sum(terms) / math.comb(2 * n, n), rtol=1e-5)


def test_limit_law(x64):
    value = np.linspace(0, 3, 400)
    found = mismatch.kolmogorov_tail(value)
    # An alternating sum of 25 terms of size 2.
    np.testing.assert_allclose(found, stats.kstwobign.sf(value), atol=1e-14)
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=400), rng.normal(size=600) + 0.08
    statistic, p_value = mismatch.kolmogorov_smirnov(x, z, method="asymptotic")
    exact = stats.ks_2samp(x, z, method="exact").pvalue
    np.testing.assert_allclose(
        p_value, stats.kstwobign.sf(math.sqrt(240) * float(statistic)), rtol=1e-12
    )
    # What is neglected is of the order of one over the root of n m / (n + m) = 240.
    np.testing.assert_allclose(p_value, exact, rtol=1 / math.sqrt(240))


def test_mean_difference():
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=(30, 3)), rng.normal(size=(20, 3))
    x[:, 1:], z[:, 1:] = 2.0, [2.0, 3.0]
    found = mismatch.mean_difference(x, z)
    spread = math.sqrt((x[:, 0].var() + z[:, 0].var()) / 2)
    np.testing.assert_allclose(found[0], (z[:, 0].mean() - x[:, 0].mean()) / spread, rtol=1e-5)
    np.testing.assert_array_equal(found[1:], [0, np.inf])


# --- Many features


def holm_step_by_step(p, level):
    """Reject the smallest while it is at most level / (how many are left)."""
    rejected = np.zeros(len(p), bool)
    for rank, j in enumerate(np.argsort(p, kind="stable")):
        if p[j] > level / (len(p) - rank):
            break
        rejected[j] = True
    return rejected


@given(p=st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6), level=st.floats(0.01, 0.9))
@settings(deadline=None, max_examples=50)
def test_corrections(p, level):
    p = np.array(p)
    adjusted = np.asarray(mismatch.holm(p))
    clear = np.abs(adjusted - level) > 1e-6  # not decided by rounding
    np.testing.assert_array_equal((adjusted <= level)[clear], holm_step_by_step(p, level)[clear])
    np.testing.assert_allclose(
        mismatch.benjamini_hochberg(p), stats.false_discovery_control(p), rtol=1e-5, atol=1e-37
    )
    assert (np.asarray(mismatch.benjamini_hochberg(p)) <= adjusted * (1 + 1e-6)).all()


def test_feature_tests_put_it_together():
    rng = np.random.default_rng(2)
    x, z = (rng.normal(size=(n, 4)).astype(np.float32) for n in (30, 47))
    z[:, 2] += 2
    for correction, adjust in (
        ("holm", mismatch.holm),
        ("benjamini_hochberg", mismatch.benjamini_hochberg),
        ("none", lambda p: p),
    ):
        found = mismatch.feature_tests(x, z, correction=correction)
        statistic, p_value = mismatch.kolmogorov_smirnov(x, z)
        chex.assert_trees_all_equal(found[:2], (statistic, p_value))
        chex.assert_trees_all_close(found.adjusted, adjust(p_value), rtol=1e-6)
        chex.assert_trees_all_close(found.mean_difference, mismatch.mean_difference(x, z))
        np.testing.assert_array_equal(found.adjusted < 1e-5, [False, False, True, False])


# --- The classifier


def test_counts_p_value_and_auc_are_those_of_scipy(null, moved):
    for trials in (null, moved):
        found = trials.found
        for i in range(0, demo.BATCH, 5):
            fisher = stats.fisher_exact(found.counts[i], alternative="greater").pvalue
            np.testing.assert_allclose(found.p_value[i], fisher, rtol=1e-4)
            x, z = found.x_scores[i], found.z_scores[i]
            pairs = len(x) * len(z)
            u = stats.mannwhitneyu(z, x).statistic
            np.testing.assert_allclose(found.auc[i], u / pairs, atol=1e-6)
            np.testing.assert_array_equal(found.counts[i, :, 1], [(x > 0).sum(), (z > 0).sum()])
            right = (np.mean(x <= 0) + np.mean(z > 0)) / 2
            np.testing.assert_allclose(found.accuracy[i], right, rtol=1e-6)
            np.testing.assert_allclose(found.separation[i], z.mean() - x.mean(), atol=1e-4)


def test_auc_is_that_of_metrics(moved):
    x, z = moved.found.x_scores[0], moved.found.z_scores[0]
    y = np.repeat([0, 1], [len(x), len(z)])
    auc = metrics.roc_auc(jnp.concatenate([x, z]), jnp.asarray(y, jnp.int32))
    np.testing.assert_allclose(moved.found.auc[0], auc, atol=1e-6)


def test_permutations_agree_with_the_normal_law_of_ranks(null):
    """Mann and Whitney's p-value, for the trials in which nothing was changed."""
    found = null.found
    for i in range(0, 40, 4):
        expected = stats.mannwhitneyu(
            found.z_scores[i], found.x_scores[i], alternative="greater"
        ).pvalue
        # 199 permutations: five standard errors of a share.
        error = 5 * math.sqrt(expected * (1 - expected) / 199) + 1 / 200
        assert abs(found.permutation_p_value[i] - expected) < error


def test_importance_adds_up(moved):
    # Sums of 64 numbers in float32, the scores being differences of larger ones.
    np.testing.assert_allclose(
        moved.found.importance.sum(axis=1), moved.found.separation, rtol=1e-3, atol=1e-3
    )


def test_halves_are_disjoint_halves(null):
    for rows in (null.found.x_rows, null.found.z_rows):
        assert rows.shape == (480, 50)
        assert (np.diff(np.sort(rows, axis=1), axis=1) > 0).all()
        assert (rows.min(), rows.max()) == (0, 99)
        # Each row is held out half of the time: five standard errors.
        share = np.bincount(rows.ravel(), minlength=100) / 480
        np.testing.assert_allclose(share, 0.5, atol=5 * 0.5 / math.sqrt(480))


def test_false_alarms_are_as_rare_as_promised(null):
    alarms = (null.p_values <= demo.LEVEL).sum(axis=0)
    attained = np.array([demo.attained_level(c) for c in null.found.counts])
    # The counting test has a rate of its own in each trial, known exactly: a sum of such coins.
    expected, spread = attained.sum(), math.sqrt((attained * (1 - attained)).sum())
    assert abs(alarms[0] - expected) < 4 * spread
    assert attained.max() <= demo.LEVEL
    # 199 permutations use the whole level: 10 of 200 ranks.
    low, high = stats.binom.interval(0.999, 480, demo.LEVEL)
    assert low <= alarms[1] <= high
    assert alarms[2] <= high  # Holm promises at most the level
    # And the whole distribution: p-values k / 200 are uniform.
    assert stats.kstest(null.p_values[:, 1] - 1 / 400, "uniform").pvalue > 1e-3


def test_power_grows_with_the_change(pictures, null, moved):
    small = demo.trials(
        jax.random.split(jax.random.key(13), demo.BATCH), pictures, jnp.float32(0), jnp.float32(0.9)
    )
    rates = [(np.asarray(t.p_values) <= 0.05).mean(axis=0) for t in (null, small, moved)]
    assert (rates[0] + 0.2 < rates[1]).all()
    assert (rates[2] > 0.8).all()


def test_the_default_is_logistic_regression(pictures, moved):
    """scikit-learn's, of standardised rows, on the half that was learned."""
    rows, found = moved.pictures[0], moved.found
    x, z = (np.asarray(pictures[part]).reshape(ROWS) for part in (rows[:100], rows[100:]))
    z = np.asarray(demo.change(z.reshape(-1, 8, 8), 0.1, 1.0)).reshape(ROWS)
    learned = np.concatenate([np.delete(x, found.x_rows[0], 0), np.delete(z, found.z_rows[0], 0)])
    scaler = preprocessing.StandardScaler().fit(learned)
    peer = linear_model.LogisticRegression(C=1.0, tol=1e-8, max_iter=1000)
    peer.fit(scaler.transform(learned), np.repeat([0, 1], 50))
    expected = peer.decision_function(scaler.transform(z[found.z_rows[0]]))
    # Ours stops when the objective is within a thousandth: that is a few hundredths of a score.
    error = np.linalg.norm(found.z_scores[0] - expected) / np.linalg.norm(expected)
    assert error < 0.03


def test_accuracy_comes_near_the_best():
    """Two Gaussians of distance 1: the best accuracy is Phi(1/2), and half of total variation."""
    key = jax.random.key(3)
    x = jax.random.normal(key, (3000, 2))
    z = jax.random.normal(jax.random.fold_in(key, 1), (2000, 2)) + jnp.array([[0.6, 0.8]])
    found = mismatch.classifier_two_sample(
        key, x, z, fit=no_fit, predict=best_scores, num_permutations=0
    )
    best = stats.norm.cdf(0.5)
    # Five standard errors of 1500 and 1000 held-out rows.
    error = 5 * math.sqrt(best * (1 - best) * (1 / 1500 + 1 / 1000)) / 2
    assert abs(float(found.accuracy) - best) < error
    np.testing.assert_array_equal(found.counts.sum(axis=1), [1500, 1000])
    # The score is 0.6 x_1 + 0.8 x_2 + const, the means differ by (0.6, 0.8): the squares. Five
    # standard errors of a difference of means.
    error = 5 * 0.8 * math.sqrt(1 / 1500 + 1 / 1000)
    np.testing.assert_allclose(found.importance, [0.36, 0.64], atol=error)
    assert np.isnan(found.permutation_p_value)


def no_fit(key, x, y, *, sample_weight):
    """Nothing is learned; but the weights of both samples have the same sum."""
    return {"balance": (sample_weight * (2 * y - 1).astype(x.dtype)).sum(), "key": key}


def best_scores(model, x):
    balanced = jnp.abs(model["balance"]) < 1e-2
    return jnp.where(balanced, x @ jnp.array([0.6, 0.8], x.dtype) - 0.5, jnp.nan)


def test_classes_and_logits_will_do():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(20, 2)).astype(np.float32)
    z = (rng.normal(size=(25, 2)) + 2).astype(np.float32)
    key = jax.random.key(4)

    def test(predict):
        return mismatch.classifier_two_sample(
            key, x, z, fit=total_weight, predict=predict, num_permutations=0
        )

    def logits(model, rows):
        return jnp.stack([-sums(model, rows), jnp.zeros(len(rows))], axis=1)

    def classes(model, rows):
        return (sums(model, rows) > 0).astype(jnp.int32)

    def broken(model, rows):
        return sums(model, rows).at[0].set(jnp.nan)

    def short(model, rows):
        return rows[:3, 0]

    by_score, by_logit, by_class = test(sums), test(logits), test(classes)
    chex.assert_trees_all_close(by_score, by_logit, rtol=1e-5)
    for name in ("accuracy", "p_value", "counts", "x_rows", "z_rows"):
        chex.assert_trees_all_equal(getattr(by_score, name), getattr(by_class, name))
    # With classes, the AUC is the accuracy: ties are halves.
    np.testing.assert_allclose(by_class.auc, by_class.accuracy, rtol=1e-6)
    failed = test(broken)
    for name in ("accuracy", "p_value", "auc"):
        assert np.isnan(getattr(failed, name))
    with pytest.raises(ValueError, match=r"predict must return shape \(23,\).*got \(3,\)"):
        test(short)


def total_weight(rows, labels, *, sample_weight):
    return sample_weight.sum()


def sums(model, rows):
    return rows.sum(axis=1) - 2 + 0 * model


def test_transformations_and_compiling_once():
    def one(key, x, z):
        return mismatch.classifier_two_sample(
            key, x, z, fit=total_weight, predict=sums, num_permutations=50
        )

    key_x, key_z = jax.random.split(jax.random.key(6))
    x = jax.random.normal(key_x, (3, 20, 2))
    z = jax.random.normal(key_z, (3, 25, 2)) + 1
    keys = jax.random.split(jax.random.key(7), 3)
    trace = jax.jit(chex.assert_max_traces(one, n=1))
    one_by_one = [trace(*arguments) for arguments in zip(keys, x, z, strict=True)]
    batched = jax.vmap(one)(keys, x, z)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
    chex.assert_trees_all_close(batched, stacked, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(one(keys[0], x[0], z[0]), one_by_one[0], rtol=1e-5, atol=1e-6)


def test_kolmogorov_under_transformations():
    rng = np.random.default_rng(5)
    x, z = (jnp.asarray(rng.integers(0, 9, (n, 4)), jnp.float32) for n in (30, 47))
    traced = jax.jit(chex.assert_max_traces(mismatch.kolmogorov_smirnov, n=1))
    one_by_one = [traced(*pair) for pair in zip(x.T, z.T, strict=True)]
    batched = mismatch.kolmogorov_smirnov(x, z)  # eager
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
    chex.assert_trees_all_close(batched, stacked, rtol=1e-6)
    assert np.isnan(traced(x[:, 0].at[3].set(jnp.nan), z[:, 0])).all()


# --- Bad input


def test_bad_input():
    key, x = jax.random.key(0), jnp.ones((4, 2))
    call = mismatch.classifier_two_sample
    with pytest.raises(ValueError, match=r"x and z must have the same features, got x \(4, 2\)"):
        call(key, x, jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="z must have at least 2 rows"):
        call(key, x, x[:1])
    with pytest.raises(ValueError, match="x must be finite, got nan in row 1, column 0"):
        call(key, x.at[1, 0].set(jnp.nan), x)
    with pytest.raises(ValueError, match="fit and predict must be given together"):
        call(key, x, x, fit=no_fit)
    with pytest.raises(ValueError, match="penalty is for the default classifier"):
        call(key, x, x, fit=no_fit, predict=best_scores, penalty=1.0)
    with pytest.raises(ValueError, match="penalty must be positive, got 0"):
        call(key, x, x, penalty=0.0)
    with pytest.raises(TypeError, match="fit must be a function, got int"):
        call(key, x, x, fit=3, predict=best_scores)
    with pytest.raises(ValueError, match="num_permutations must be at least 0, got -1"):
        call(key, x, x, num_permutations=-1)
    with pytest.raises(ValueError, match="method must be one of 'auto', 'exact', 'asymptotic'"):
        mismatch.kolmogorov_smirnov(x, x, method="fast")
    with pytest.raises(ValueError, match="correction must be one of"):
        mismatch.feature_tests(x, x, correction="bonferroni")
    with pytest.raises(ValueError, match=r"p_values must be in \[0, 1\], got 2"):
        mismatch.holm([0.5, 2.0])
    with pytest.raises(ValueError, match=r"marked must be in \[0, 5\], got 6"):
        mismatch.hypergeometric_tail(1, drawn=2, marked=6, total=5)
    with pytest.raises(TypeError, match="hits must be an integer array"):
        mismatch.binomial_tail(1.5, 3)
    with pytest.raises(ValueError, match="value must not be negative"):
        mismatch.kolmogorov_tail(-1.0)
    with pytest.raises(ValueError, match="num_held_out must be positive"):
        mismatch.power(0.6, 0)
    with pytest.raises(ValueError, match=r"accuracy must be in \[0.5, 1\], got 0.4"):
        mismatch.rows_needed(0.4)


# --- The demo


def test_demo():
    result = demo.run(jax.random.key(0), quick=True)
    noticed = np.mean(result.shift_p_values <= demo.LEVEL, axis=1)
    assert result.shifts == (0, 0.06, 0.2, 1)
    assert (noticed[0] < 0.2).all()
    assert (noticed[-1] == 1).all()
    assert (np.diff(noticed, axis=0) >= 0).all()
    # A pixel hurts, a fifth of it hardly does; both are noticed.
    assert result.shift_accuracy[-1] < 0.5 < 0.85 < result.shift_accuracy[2]
    assert min(result.gain_accuracy) > 0.85  # darkness hardly hurts, and is noticed
    assert (np.mean(result.gain_p_values[-1] <= demo.LEVEL, axis=0) > 0.9).all()
    for rows in demo.tables(result).values():
        assert len({tuple(row) for row in rows}) == 1
    demo.plot(result)
