"""Bounds against exact binomial tails (SciPy), brute force, and scikit-learn's ROC curve."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from sklearn import metrics

from mlnotes_jax.demos.generalization import bounds as demo
from mlnotes_jax.generalization import bounds


def binomial_tail(n, p, epsilon):
    """P(|K / n - p| >= epsilon), exactly."""
    k = np.arange(n + 1)
    return stats.binom.pmf(k, n, p)[np.abs(k / n - p) >= epsilon].sum()


# --- The inequalities


def test_formulas():
    # Float32: a relative error of 1e-6 in an exponent of a few units.
    np.testing.assert_allclose(bounds.hoeffding(50, 0.2), 2 * math.exp(-4), rtol=1e-5)
    np.testing.assert_allclose(bounds.hoeffding(50, 0.4, width=2.0), 2 * math.exp(-4), rtol=1e-5)
    np.testing.assert_allclose(bounds.union(1000, 500, 0.1), 2000 * math.exp(-10), rtol=1e-5)
    np.testing.assert_allclose(
        bounds.deviation(1000, 500, 0.05), math.sqrt(math.log(40_000) / 1000), rtol=1e-6
    )
    assert bounds.hoeffding(1, 0.1) > 1  # not cut off


@pytest.mark.parametrize("n", [1, 7, 40, 300])
def test_hoeffding_holds_for_exact_tails(n):
    for p in (0.01, 0.2, 0.5, 0.9):
        for epsilon in (0.01, 0.05, 0.1, 0.3):
            bound = float(bounds.hoeffding(n, epsilon))
            assert binomial_tail(n, p, epsilon) <= bound * (1 + 1e-5)


def test_hoeffding_has_the_right_exponent():
    # For a fair coin and small epsilon the true exponent is 2 n epsilon^2 (1 + 2 epsilon^2 / 3 +
    # ...); what is left is a factor that grows only like a root of n.
    n, epsilon = 20_000, 0.05
    exact = -stats.binom.logsf(math.ceil(n * 0.55) - 1, n, 0.5)
    assert 1 < exact / (2 * n * epsilon**2) < 1.06


@given(count=st.integers(1, 10**12), epsilon=st.floats(0.01, 0.9), delta=st.floats(1e-9, 1.0))
@settings(deadline=None, max_examples=50)
def test_sample_size_is_the_least(count, epsilon, delta):
    n = bounds.sample_size(count, epsilon, delta)

    def log_union(n):  # in double precision
        return math.log(2) + math.log(count) - 2 * n * epsilon**2

    assert log_union(n) <= math.log(delta) + 1e-9
    assert n == 1 or log_union(n - 1) > math.log(delta) - 1e-9
    # And the deviation that n rows allow is at most epsilon (float32).
    assert float(bounds.deviation(count, n, delta)) <= epsilon * (1 + 1e-5)


def test_union_and_deviation_are_inverse(x64):
    n = jnp.array([10.0, 100.0, 1000.0])
    epsilon = bounds.deviation(50, n, 0.05, width=3.0)
    np.testing.assert_allclose(bounds.union(50, n, epsilon, width=3.0), 0.05, rtol=1e-10)
    slope = jax.grad(lambda n: bounds.deviation(50, n, 0.05))(jnp.float64(100))
    np.testing.assert_allclose(slope, -bounds.deviation(50, 100, 0.05) / 200, rtol=1e-10)
    step = 1e-6
    difference = bounds.union(50, 100, 0.1 + step) - bounds.union(50, 100, 0.1 - step)
    slope = jax.grad(lambda e: bounds.union(50, 100, e))(jnp.float64(0.1))
    np.testing.assert_allclose(slope, difference / (2 * step), rtol=1e-6)


def test_more_hypotheses_than_a_float_can_count():
    networks = 2 ** (32 * 1000)  # a thousand weights of 32 bits
    assert bounds.sample_size(networks, 0.1, 0.05) == math.ceil(
        (32_001 * math.log(2) - math.log(0.05)) / 0.02
    )
    expected = math.sqrt((32_001 * math.log(2) - math.log(0.05)) / 2e6)
    np.testing.assert_allclose(bounds.deviation(networks, 10**6, 0.05), expected, rtol=1e-6)
    assert float(bounds.union(networks, 10**7, 0.1)) == 0  # e to the minus 177 000
    assert bounds.union(jnp.array([1.0, 10.0]), 10, 0.5).shape == (2,)


def test_jit_vmap_and_compiling_once():
    def both(count, n, epsilon):
        return bounds.union(count, n, epsilon), bounds.deviation(count, n, 0.05)

    traced = jax.jit(chex.assert_max_traces(both, n=1))
    counts = jnp.array([1.0, 10.0, 100.0])
    for count in counts:
        chex.assert_trees_all_close(traced(count, 50, 0.1), both(count, 50, 0.1), rtol=1e-6)
    batched = jax.vmap(both, in_axes=(0, None, None))(counts, 50, 0.1)
    one_by_one = [both(count, 50, 0.1) for count in counts]
    chex.assert_trees_all_close(
        batched, jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one), rtol=1e-6
    )


# --- The best of many


@pytest.mark.parametrize(("count", "n", "p"), [(1, 10, 0.3), (7, 20, 0.5), (4096, 128, 0.5)])
def test_expected_best_by_the_distribution_function(count, n, p):
    below = stats.binom.cdf(np.arange(n), n, p)
    expected = (1 - below**count).sum() / n
    found = bounds.expected_best(count, n, accuracy=p)
    # betainc in float32 is good to about 1e-5 of its value.
    np.testing.assert_allclose(found, expected, rtol=3e-5)
    assert found <= bounds.expected_best_bound(count, n, accuracy=p) + 1e-6
    if count == 1:
        np.testing.assert_allclose(found, p, rtol=1e-5)


def test_expected_best_at_the_ends():
    assert float(bounds.expected_best(5, 3, accuracy=0.0)) == 0
    assert float(bounds.expected_best(5, 3, accuracy=1.0)) == 1
    # One row, two fair coins: the best is right unless both are wrong.
    np.testing.assert_allclose(bounds.expected_best(2, 1), 0.75, rtol=1e-6)


# --- Edges


def test_edges_are_those_of_sobel():
    pictures = np.random.default_rng(0).uniform(size=(3, 9, 7)).astype(np.float32)
    found = bounds.edges(pictures, sharpness=0.2)
    for picture, ours in zip(pictures, found, strict=True):
        slope = np.hypot(*(ndimage.sobel(picture, axis, mode="nearest") / 8 for axis in (0, 1)))
        clear = np.abs(slope - 0.2) > 1e-5  # not decided by rounding
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(np.asarray(ours)[clear], (slope >= 0.2)[clear])
    np.testing.assert_array_equal(bounds.edge_count(pictures, sharpness=0.2), found.sum((1, 2)))


def test_edges_by_hand():
    step = jnp.zeros((4, 6)).at[:, 3:].set(1)
    np.testing.assert_array_equal(bounds.edges(step)[0], [0, 0, 1, 1, 0, 0])
    assert int(bounds.edge_count(step, sharpness=0.5)) == 8
    assert int(bounds.edge_count(step, sharpness=0.51)) == 0
    assert int(bounds.edge_count(jnp.full((4, 6), 0.7), sharpness=1e-3)) == 0  # no frame


# --- Thresholds


def brute_force(feature, y, thresholds, weight):
    wrong = (feature[None, :] >= thresholds[:, None]).astype(int) != y[None, :]
    return wrong @ weight / weight.sum()


@given(seed=st.integers(0, 1000), ties=st.booleans(), weighted=st.booleans())
@settings(deadline=None, max_examples=20)
def test_losses_by_brute_force(seed, ties, weighted):
    rng = np.random.default_rng(seed)
    feature = rng.normal(size=30).astype(np.float32)
    feature = feature.round() if ties else feature
    y = rng.integers(0, 2, 30)
    thresholds = np.concatenate([rng.normal(size=5), feature[:5], [-np.inf, np.inf]])
    thresholds = thresholds.astype(np.float32)
    weight = rng.integers(0, 3, 30).astype(np.float32) if weighted else None
    found = fit_threshold(feature, y, thresholds, sample_weight=weight)
    losses = found.losses
    expected = brute_force(feature, y, thresholds, np.ones(30) if weight is None else weight)
    np.testing.assert_allclose(losses, expected, atol=1e-6)
    assert float(found.loss) == float(losses.min())
    assert float(found.threshold) == thresholds[np.asarray(losses) == losses.min()].min()


def test_losses_are_those_of_the_roc_curve():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 200)
    feature = (y + rng.normal(size=200)).astype(np.float32)
    false_positive, true_positive, thresholds = metrics.roc_curve(
        y, feature, drop_intermediate=False
    )
    share = y.mean()
    expected = (1 - share) * false_positive + share * (1 - true_positive)
    losses = threshold_losses(feature, y, thresholds)
    np.testing.assert_allclose(losses, expected, atol=1e-6)


def test_prediction_has_the_loss_it_was_given():
    rng = np.random.default_rng(2)
    feature, y = rng.integers(0, 20, 50), rng.integers(0, 2, 50)
    found = fit_threshold(feature, y, np.arange(21))
    wrong = np.asarray(bounds.predict_threshold(found, feature)) != y
    np.testing.assert_allclose(found.loss, wrong.mean(), rtol=1e-6)


# --- Many training sets

N_ALL = 300


fit_threshold = jax.jit(bounds.fit_threshold)
threshold_losses = jax.jit(bounds.threshold_losses)


@pytest.fixture(scope="module")
def large_set():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, N_ALL)
    feature = np.clip(np.round(10 + 4 * y + 3 * rng.normal(size=N_ALL)), 0, 24).astype(np.int32)
    return jnp.asarray(feature), jnp.asarray(y, jnp.int32)


@functools.partial(jax.jit, static_argnames=("num_draws", "chunk_size"))
def draw(key, feature, y, thresholds, n=40, num_draws=2000, chunk_size=None):
    return bounds.draw_training_sets(
        key, feature, y, thresholds, n=n, num_draws=num_draws, capacity=40, chunk_size=chunk_size
    )


def test_draws_keep_the_promises_of_the_page(large_set):
    feature, y = large_set
    thresholds = jnp.arange(26.0)
    found = draw(jax.random.key(0), feature, y, thresholds)
    losses = brute_force(np.asarray(feature), np.asarray(y), np.arange(26), np.ones(N_ALL))
    np.testing.assert_allclose(found.best.losses, losses, atol=1e-6)
    np.testing.assert_allclose(found.all_loss, losses[np.asarray(found.threshold, int)], atol=1e-6)
    lowest = float(found.best.loss)
    assert (np.asarray(found.all_loss) >= lowest - 1e-6).all()  # not smaller; equality is allowed
    assert (np.asarray(found.all_loss) < lowest + 1e-6).any()
    # The chain, in every draw; 1e-6 is rounding.
    excess = found.all_loss - lowest
    assert (np.asarray(excess) <= 2 * np.asarray(found.deviation) + 1e-6).all()
    assert (np.asarray(found.deviation) >= np.asarray(found.single_deviation)).all()
    gap = np.abs(found.train_loss - found.all_loss)
    assert (gap <= np.asarray(found.deviation) + 1e-6).all()
    # On average the training loss is too low, and the true one not the lowest.
    assert found.train_loss.mean() < lowest < found.all_loss.mean()


def test_bad_draws_are_as_rare_as_they_should_be(large_set):
    feature, y = large_set
    found = draw(jax.random.key(1), feature, y, jnp.arange(26.0))
    p = round(float(found.best.loss) * N_ALL) / N_ALL
    for epsilon in (0.051, 0.101, 0.151):  # between the values of k / 40 - p
        exact = binomial_tail(40, p, epsilon)
        rate = float((found.single_deviation >= epsilon).mean())
        assert abs(rate - exact) < 4.5 * math.sqrt(exact * (1 - exact) / 2000) + 1e-9
        any_rate = float((found.deviation >= epsilon).mean())
        assert rate <= any_rate <= float(bounds.union(26, 40, epsilon))


def test_a_training_set_is_what_it_says(large_set):
    # One row of the large set is all that can be drawn: no deviation, and the loss is known.
    found = draw(
        jax.random.key(2), jnp.array([3]), jnp.array([1]), jnp.array([5.0, 1.0, 4.0]), 7, 3
    )
    np.testing.assert_array_equal(found.best.losses, [1, 0, 1])
    np.testing.assert_array_equal(found.threshold, [1, 1, 1])
    for zero in (found.train_loss, found.all_loss, found.deviation, found.single_deviation):
        np.testing.assert_allclose(zero, [0, 0, 0], atol=1e-6)  # 7 / 7 as 7 times a rounded 1/7


def test_order_of_thresholds_and_chunks_change_nothing(large_set):
    feature, y = large_set
    thresholds = jnp.arange(26.0)
    shuffled = jnp.asarray(np.random.default_rng(4).permutation(26), jnp.float32)
    key = jax.random.key(4)
    plain = draw(key, feature, y, thresholds)
    mixed = draw(key, feature, y, shuffled)
    for other in (mixed, draw(key, feature, y, thresholds, chunk_size=300)):
        chex.assert_trees_all_close(plain[1:], other[1:], atol=1e-6)
    chex.assert_trees_all_equal(plain.best[:2], mixed.best[:2])


def test_the_number_of_rows_may_be_traced():
    feature, y = jnp.arange(5), jnp.array([0, 0, 1, 1, 1])
    found = draw(jax.random.key(5), feature, y, jnp.array([3.0]), n=10)
    # One threshold, wrong on row 2: the number of times it was drawn is binomial.
    times = np.asarray(found.train_loss) * 10
    np.testing.assert_allclose(times, times.round(), atol=1e-5)
    share = [(times.round() == k).mean() for k in range(5)]
    # 2000 draws: five standard errors of a share are at most 0.056.
    np.testing.assert_allclose(share, stats.binom.pmf(range(5), 10, 0.2), atol=0.056)


def test_fit_under_transformations(large_set):
    feature, y = large_set
    thresholds = jnp.arange(26.0)
    fit = jax.jit(chex.assert_max_traces(bounds.fit_threshold, n=1))
    chex.assert_trees_all_close(
        fit(feature, y, thresholds), bounds.fit_threshold(feature, y, thresholds), rtol=1e-6
    )
    weights = jax.random.randint(jax.random.key(5), (3, N_ALL), 0, 3).astype(jnp.float32)

    @jax.jit
    def weighted(weight):
        return bounds.fit_threshold(feature, y, thresholds, sample_weight=weight)

    batched = jax.jit(jax.vmap(weighted))(weights)
    one_by_one = [weighted(weight) for weight in weights]
    chex.assert_trees_all_close(
        batched, jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one), rtol=1e-6
    )
    fit(feature + 1, y, thresholds)  # no second trace


# --- Bad input


def test_bad_input_of_the_inequalities():
    with pytest.raises(ValueError, match="n must be positive, got 0"):
        bounds.hoeffding(0, 0.1)
    with pytest.raises(ValueError, match="epsilon must be positive"):
        bounds.union(3, 10, -0.1)
    with pytest.raises(ValueError, match="num_hypotheses must be at least 1, got 0"):
        bounds.union(0, 10, 0.1)
    with pytest.raises(ValueError, match="num_hypotheses must be in"):
        bounds.union(0.5, 10, 0.1)
    with pytest.raises(ValueError, match=r"delta must be in \[0, 1\], got 2"):
        bounds.deviation(3, 10, 2.0)
    with pytest.raises(ValueError, match="delta must be positive"):
        bounds.sample_size(3, 0.1, 0.0)
    with pytest.raises(ValueError, match="num_hypotheses must be at least 1 and finite, got 0"):
        bounds.sample_size(0, 0.1, 0.1)
    with pytest.raises(TypeError, match="epsilon must be one concrete number"):
        jax.jit(lambda e: bounds.sample_size(3, e, 0.1))(0.1)
    with pytest.raises(TypeError, match=r"n must be an integer, got 3\.5"):
        bounds.expected_best(2, 3.5)
    with pytest.raises(ValueError, match="accuracy must be in"):
        bounds.expected_best(2, 3, accuracy=1.5)
    with pytest.raises(ValueError, match="num_models must be in"):
        bounds.expected_best_bound(0.5, 3)


def test_bad_input_of_thresholds():
    good = jnp.arange(3.0), jnp.array([0, 1, 1]), jnp.arange(4.0)
    with pytest.raises(ValueError, match=r"y must be in 0..1 \(2 classes\), got 2 at index 1"):
        bounds.fit_threshold(good[0], jnp.array([0, 2, 1]), good[2])
    with pytest.raises(TypeError, match="y must be an integer array"):
        bounds.fit_threshold(good[0], jnp.zeros(3), good[2])
    with pytest.raises(ValueError, match="feature and y must have as many rows"):
        bounds.threshold_losses(good[0], jnp.array([0, 1]), good[2])
    with pytest.raises(ValueError, match="feature must be finite, got nan in row 2"):
        bounds.threshold_losses(jnp.array([0.0, 1.0, math.nan]), good[1], good[2])
    with pytest.raises(ValueError, match="thresholds must not be empty"):
        bounds.threshold_losses(*good[:2], jnp.zeros(0))
    with pytest.raises(ValueError, match="sum of sample_weight must be positive"):
        bounds.threshold_losses(*good, sample_weight=jnp.zeros(3))
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        bounds.draw_training_sets(jax.random.key(0), *good, n=0)
    with pytest.raises(ValueError, match=r"n must be in \[1, 5\], got 6"):
        bounds.draw_training_sets(jax.random.key(0), *good, n=6, capacity=5)
    with pytest.raises(ValueError, match="pictures must have height and width"):
        bounds.edges(jnp.zeros(3))
    with pytest.raises(ValueError, match="sharpness must be positive"):
        bounds.edge_count(jnp.zeros((3, 3)), sharpness=0.0)


# --- The demo


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_demo_on_real_pictures(result):
    assert result.source.name == "digits"
    assert set(np.unique(result.y)) == {0, 1}
    base = float(min(result.y.mean(), 1 - result.y.mean()))
    assert 0.02 < float(result.best.loss) < 0.7 * base  # edges tell something, not everything
    assert result.broken == 0
    assert (result.any_rate <= result.any_bound).all()
    assert (result.single_rate <= result.any_rate).all()
    spread = np.sqrt(result.single_exact * (1 - result.single_exact) / result.num_draws)
    assert (np.abs(result.single_rate - result.single_exact) < 4.5 * spread + 1e-3).all()
    assert (result.single_exact <= result.single_bound).all()
    assert result.any_rate[-1] < result.any_rate[0]


def test_demo_trade_off_of_the_number_of_hypotheses(result):
    lowest, train, everywhere, deviation = result.count_losses.T
    assert (np.diff(lowest) < 0.02).all()  # more thresholds: as good or better
    assert lowest[-1] < 0.8 * lowest[0]
    assert (train <= lowest + 0.01).all()  # on average too low; 0.01 is three standard errors
    assert train[-1] < lowest[-1] - 0.02
    assert (everywhere >= lowest - 1e-6).all()
    assert deviation[-1] > deviation[0]
    # A U: neither the fewest nor the most hypotheses end up best.
    assert 0 < int(np.argmin(everywhere)) < len(everywhere) - 1


def test_demo_the_luckiest_of_many(result):
    error = np.asarray(result.lucky_error)
    assert (np.abs(result.lucky_validation - result.lucky_exact) < 4.5 * error[:, 0]).all()
    assert (np.abs(result.lucky_test - 0.5) < 4.5 * error[:, 1]).all()
    assert (np.asarray(result.lucky_exact) <= np.asarray(result.lucky_bound) + 1e-6).all()
    assert result.lucky_validation[-1] > 0.6


def test_demo_tables_and_picture(result):
    import matplotlib.pyplot as plt

    tables = demo.tables(result)
    assert len(tables) == 4
    for rows in tables.values():
        assert len({tuple(row) for row in rows}) == 1
    figure = demo.plot(result)
    assert len(figure.axes) == 6
    plt.close(figure)
    with pytest.raises(ValueError, match="classes must be two of"):
        demo.problem(jax.random.key(0), classes=(1, 1))
