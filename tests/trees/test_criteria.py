"""Criteria against the printed values of the melons, scipy, scikit-learn, and their own bounds."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from sklearn.metrics import mutual_info_score
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from mlnotes_jax.data import datasets
from mlnotes_jax.demos.trees import criteria as demo
from mlnotes_jax.trees import criteria

ALL = (
    criteria.information_gain,
    criteria.intrinsic_value,
    criteria.gain_ratio,
    criteria.gini_index,
)


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


# By hand


def test_impurities_in_closed_form(x64):
    counts = np.array([[5, 5, 0], [8, 0, 0], [2, 2, 4], [0, 0, 0]])
    np.testing.assert_allclose(criteria.entropy(counts), [1, 0, 1.5, 0], rtol=1e-15)
    np.testing.assert_allclose(criteria.gini(counts), [0.5, 0, 0.625, 0], rtol=1e-15)
    assert not np.signbit(np.asarray(criteria.entropy(counts))).any()
    sums = criteria.moments([0, 0, 0], [1.0, 2.0, 6.0])
    np.testing.assert_allclose(criteria.variance(sums), [14 / 3], rtol=1e-15)


def test_melons(result):
    # Zhou, Machine Learning, section 4.2, printed with three digits. The page shows why colour is
    # 0.109 there and 0.108 to three digits: entropies were rounded on the way.
    printed = {
        "colour 色泽": 0.109,
        "root 根蒂": 0.143,
        "knock 敲声": 0.141,
        "texture 纹理": 0.381,
        "navel 脐部": 0.289,
        "touch 触感": 0.006,
        "number 编号": 0.998,
        "density 密度": 0.262,
        "sugar 含糖率": 0.349,
    }
    assert result.ratings.keys() == printed.keys()
    for name, gain in printed.items():
        assert abs(result.ratings[name].gain - gain) < 0.001
    for name, value in {"touch 触感": 0.874, "colour 色泽": 1.580, "number 编号": 4.088}.items():
        assert abs(result.ratings[name].intrinsic_value - value) < 0.001
    # Tables 4.3: half way between .360 and .403, and between .103 and .149
    assert result.ratings["density 密度"].threshold == pytest.approx(0.3815)
    assert result.ratings["sugar 含糖率"].threshold == pytest.approx(0.126)


def test_every_criterion_of_the_melons_by_hand(x64):
    # Fractions of the table, written out for one attribute, touch: hard 6 good 6 bad, soft 2 and 3
    data = demo.melons()
    counts = criteria.table(data.codes[:, 5], data.y)
    assert counts.tolist() == [[6, 6], [2, 3]]

    def h(p):
        return -p * np.log2(p) - (1 - p) * np.log2(1 - p)

    gain = h(8 / 17) - 12 / 17 - 5 / 17 * h(2 / 5)
    expected = [gain, h(5 / 17), gain / h(5 / 17), 12 / 17 * 0.5 + 5 / 17 * 12 / 25]
    np.testing.assert_allclose([f(counts) for f in ALL], expected, rtol=1e-12)


def test_the_melons_are_those_of_the_book():
    data = demo.melons()
    assert [len(v) for v in demo.ATTRIBUTES.values()] == (data.codes.max(axis=0) + 1).tolist()
    # Good and bad melons of each value, as counted in the book's section 4.2
    found = {
        name: criteria.table(codes, data.y).astype(int).tolist()
        for name, codes in zip(demo.ATTRIBUTES, data.codes.T, strict=True)
    }
    assert found == {
        "colour 色泽": [[3, 3], [4, 2], [1, 4]],
        "root 根蒂": [[5, 3], [3, 4], [0, 2]],
        "knock 敲声": [[6, 4], [2, 3], [0, 2]],
        "texture 纹理": [[7, 2], [1, 4], [0, 3]],
        "navel 脐部": [[5, 2], [3, 3], [0, 4]],
        "touch 触感": [[6, 6], [2, 3]],
    }
    assert data.y.tolist() == [0] * 8 + [1] * 9
    assert data.train.sum() == 10


# Peers


@pytest.mark.parametrize("weighted", [False, True])
def test_against_scipy_and_scikit_learn(weighted, x64):
    rng = np.random.default_rng(0)
    codes, y = rng.integers(0, 4, 90), rng.integers(0, 3, 90)
    weight = rng.integers(0, 4, 90) if weighted else np.ones(90, int)
    counts = criteria.table(codes, y, sample_weight=weight.astype(float))
    repeated = np.repeat(codes, weight), np.repeat(y, weight)  # a weight of 2 is the row twice
    assert counts.sum() == len(repeated[0])
    gain = mutual_info_score(*repeated) / np.log(2)
    np.testing.assert_allclose(criteria.information_gain(counts), gain, rtol=1e-12)
    value = scipy.stats.entropy(np.bincount(repeated[0]), base=2)
    np.testing.assert_allclose(criteria.intrinsic_value(counts), value, rtol=1e-12)
    np.testing.assert_allclose(criteria.gain_ratio(counts), gain / value, rtol=1e-12)
    np.testing.assert_allclose(
        criteria.entropy(counts), scipy.stats.entropy(np.asarray(counts), base=2, axis=1)
    )


@pytest.mark.parametrize("criterion", ["gini", "entropy", "squared_error"])
def test_best_threshold_is_that_of_a_stump(criterion, x64):
    data = datasets.load("diabetes" if criterion == "squared_error" else "wine")
    weight = np.random.default_rng(1).uniform(0, 2, len(data.y)).round(2)
    for j in (2, 8):
        x = data.x[:, j].astype(np.float64)
        if criterion == "squared_error":
            peer = DecisionTreeRegressor(max_depth=1)
            found = criteria.threshold_moments(x, data.y, sample_weight=weight)
            gain = criteria.variance_reduction(found.sums)
        else:
            peer = DecisionTreeClassifier(max_depth=1, criterion=criterion)
            found = criteria.threshold_tables(x, data.y, sample_weight=weight)
            gain = criteria.decrease(found.sums, getattr(criteria, criterion))
        tree = peer.fit(x[:, None], data.y, sample_weight=weight).tree_
        best = int(jnp.argmax(gain))
        # scikit-learn rounds features to float32 before it halves the way between two
        np.testing.assert_allclose(found.threshold[best], tree.threshold[0], rtol=1e-6)
        share = tree.weighted_n_node_samples / tree.weighted_n_node_samples[0]
        after = share[1:] @ tree.impurity[1:]
        np.testing.assert_allclose(gain[best], tree.impurity[0] - after, rtol=1e-8)


def test_variance_reduction_is_the_difference_of_variances(x64):
    rng = np.random.default_rng(2)
    codes, y, weight = rng.integers(0, 5, 60), rng.normal(size=60), rng.uniform(0.1, 2, 60)
    sums = criteria.moments(codes, y, sample_weight=weight, num_branches=6)  # branch 5 is empty

    def var(keep):
        return np.average((y - np.average(y, weights=weight * keep)) ** 2, weights=weight * keep)

    each = np.array([var(codes == v) for v in range(5)])
    np.testing.assert_allclose(criteria.variance(sums), [*each, 0], rtol=1e-10)
    shares = np.bincount(codes, weight) / weight.sum()
    expected = var(codes >= 0) - shares @ each
    np.testing.assert_allclose(criteria.variance_reduction(sums), expected, rtol=1e-10)
    # Far from 0 squares lose all digits in float32, the means of the branches do not.
    far = criteria.moments(codes, (y + 1e4).astype(np.float32), sample_weight=weight)
    np.testing.assert_allclose(criteria.variance_reduction(far), expected, rtol=1e-2)


# Bounds


TABLES = st.lists(
    st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=4, max_size=4
).filter(lambda rows: sum(map(sum, rows)) > 0)


@settings(deadline=None, max_examples=60)
@given(TABLES, st.floats(0.1, 10))
def test_bounds(rows, scale):
    with jax.enable_x64(True):
        counts = np.array(rows, float)
        entropy, gini = float(criteria.entropy(counts.sum(0))), float(criteria.gini(counts.sum(0)))
        gain, value, ratio, index = (float(f(counts)) for f in ALL)
        slack = 1e-12  # float64, sums of a dozen terms of order 1
        assert -slack <= gain <= min(entropy, value) + slack
        assert -slack <= ratio <= 1 + slack
        assert -slack <= index <= gini + slack
        assert entropy <= np.log2(3) + slack
        assert gini <= 2 / 3 + slack
        # Two branches made one tell no more; shares do not know how many rows there are.
        merged = np.concatenate([counts[:2].sum(axis=0, keepdims=True), counts[2:], 0 * counts[:1]])
        assert float(criteria.information_gain(merged)) <= gain + slack
        assert float(criteria.gini_index(merged)) >= index - slack
        assert abs(float(criteria.information_gain(scale * counts)) - gain) < slack
        # Any concave function of the shares will do: here, the share outside the largest class.
        assert float(criteria.decrease(counts, _minority)) >= -slack


def _minority(counts):
    total = counts.sum(axis=-1)
    return jnp.where(total == 0, 0, 1 - counts.max(axis=-1) / jnp.where(total == 0, 1, total))


def test_what_each_criterion_favours(result):
    ratings = result.ratings
    number, texture = ratings["number 编号"], ratings["texture 纹理"]
    # A number of each row has the largest gain there is and the lowest Gini index; its ratio is
    # below that of texture.
    assert number.gain == max(r.gain for r in ratings.values())
    assert number.gini_index == 0
    assert number.gain_ratio < texture.gain_ratio
    # Attributes that tell nothing: gain grows like (values - 1) / (2 n ln 2) ...
    gain, ratio, decrease = result.random.T
    expected = [demo.expected_gain(v, 2, result.num_rows) for v in result.num_values]
    # 300 draws of a chi-square with v - 1 degrees of freedom: four standard errors at v = 2
    np.testing.assert_allclose(gain[:6], expected[:6], rtol=0.33)
    assert gain[-1] / gain[0] > 25
    assert decrease[-1] / decrease[0] > 25
    # ... and the ratio corrects most of that, not all.
    assert 3 < ratio[-1] / ratio[0] < 15
    tables = demo.tables(result)
    assert all(len({tuple(row) for row in rows}) == 1 for rows in tables.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demo.plot(result)
    import matplotlib.pyplot as plt

    plt.close("all")


# Rows to tables


def test_thresholds():
    x = np.array([3, 1, 3, 2, 7], np.float32)
    found = np.asarray(criteria.thresholds(x))
    np.testing.assert_array_equal(found, [1.5, 2.5, np.nan, 5])
    # A row of weight 0 is not there, whatever it holds.
    x[3] = np.nan
    weight = np.array([1, 1, 1, 0, 1], np.float32)
    found = np.asarray(criteria.thresholds(x, sample_weight=weight))
    np.testing.assert_array_equal(found, [2, np.nan, 5, np.nan])
    # Between two neighbouring floats there is none; the sum of the largest overflows.
    low = np.float32(1)
    high = np.nextafter(low, np.float32(2))
    most = np.finfo(np.float32).max
    for a, b in ((low, high), (-high, -low), (-most, most), (most / 2, most)):
        (middle,) = np.asarray(criteria.thresholds(np.array([b, a])))
        assert a <= middle < b


def test_tables_of_thresholds():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 6, 20).astype(np.float32)
    y = rng.integers(0, 3, 20)
    target = rng.normal(size=20).astype(np.float32)
    weight = rng.integers(0, 3, 20).astype(np.float32)
    x[weight == 0], y[weight == 0], target[weight == 0] = np.nan, -7, np.inf
    classes = criteria.threshold_tables(x, y, sample_weight=weight, num_classes=3)
    numbers = criteria.threshold_moments(x, target, sample_weight=weight)
    np.testing.assert_array_equal(classes.threshold, numbers.threshold)
    kept = weight > 0
    known = np.unique(x[kept])
    there = np.isfinite(np.asarray(classes.threshold))
    np.testing.assert_array_equal(classes.threshold[there], (known[1:] + known[:-1]) / 2)
    assert not np.asarray(classes.sums)[~there].any()
    for i in np.flatnonzero(there):
        side = (x[kept] > classes.threshold[i]).astype(int)
        options = {"sample_weight": weight[kept], "num_branches": 2}
        expected = criteria.table(side, y[kept], num_classes=3, **options)
        np.testing.assert_array_equal(classes.sums[i], expected)  # whole numbers: exact
        expected = criteria.moments(side, target[kept], **options)
        np.testing.assert_allclose(numbers.sums[i], expected, rtol=1e-5, atol=1e-5)


def test_rows_that_do_not_count():
    codes, y = np.array([0, 1, -1, 99, 1]), np.array([0, 1, 1, -3, 0])
    weight = np.array([1, 2, 5, 0, 0.5], np.float32)
    found = criteria.table(codes, y, sample_weight=weight)
    assert found.tolist() == [[1, 0], [0.5, 2]]  # a negative code is a missing value
    target = np.where(weight == 0, np.nan, y).astype(np.float32)
    found = criteria.moments(codes, target, sample_weight=weight)
    assert found.tolist() == [[1, 0, 0], [2.5, 2, 2]]


# Transformations


def test_transformations():
    rng = np.random.default_rng(4)
    codes, x, y = rng.integers(0, 3, 30), rng.normal(size=30), rng.integers(0, 2, 30)
    x = x.astype(np.float32)
    weights = rng.integers(0, 3, (4, 30)).astype(np.float32)
    traces = 0

    @jax.jit
    def rate(codes, x, y, weight):
        nonlocal traces
        traces += 1
        counts = criteria.table(codes, y, sample_weight=weight, num_branches=3, num_classes=2)
        splits = criteria.threshold_tables(x, y, sample_weight=weight, num_classes=2)
        sums = criteria.moments(codes, x, sample_weight=weight, num_branches=3)
        return [f(counts) for f in ALL], criteria.gini(splits.sums), criteria.variance(sums)

    together = jax.jit(jax.vmap(rate, (None, None, None, 0)))(codes, x, y, weights)
    for i, weight in enumerate(weights):
        alone = rate(codes, x, y, weight)
        jax.tree.map(
            # Sums in another order, differences of numbers of order 1
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6),
            together,
            alone,
        )
    assert traces == 1  # one for the batch and for all calls after it
    counts = criteria.table(codes, y, sample_weight=weight, num_branches=3, num_classes=2)
    eager = (
        [f(counts) for f in ALL],
        criteria.gini(criteria.threshold_tables(x, y, sample_weight=weight, num_classes=2).sums),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), alone[:2], eager
    )
    # A batch of tables is a leading axis.
    many = jnp.stack([counts, 2 * counts, counts[::-1]])
    np.testing.assert_allclose(
        criteria.information_gain(many), jnp.full(3, eager[0][0]), rtol=1e-4, atol=1e-6
    )
    # Where nothing can be raised, what is wrong stays visible.
    assert jnp.isnan(jax.jit(criteria.entropy)(jnp.array([1.0, -1.0])))
    wrong = jax.jit(lambda y: criteria.table(codes, y, num_branches=3, num_classes=2))(y + 1)
    assert jnp.isnan(wrong).any()


def test_gradients_against_finite_differences(x64):
    counts = np.random.default_rng(5).uniform(0.5, 3, (3, 4))
    sums = np.array([[2.0, 1.0, 4.0], [3.0, -2.0, 5.0]])
    for f, at in [(f, counts) for f in ALL] + [
        (lambda s: criteria.variance(s).sum(), sums),
        (criteria.variance_reduction, sums),
    ]:
        check_grads(f, (at,), order=1, modes=["rev"], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: criteria.entropy(1.0), ValueError, "counts must have shape (..., classes), got"),
        (lambda: criteria.gini(np.zeros((2, 0))), ValueError, "counts must have shape"),
        (lambda: criteria.entropy([1.0, -1.0]), ValueError, "counts must not be negative"),
        (lambda: criteria.gini([1.0, np.nan]), ValueError, "counts must be finite, got nan"),
        (lambda: criteria.entropy([1j]), TypeError, "counts must be a real array"),
        (
            lambda: criteria.gain_ratio([1.0, 2.0]),
            ValueError,
            "counts must have shape (..., branches, classes), got (2,)",
        ),
        (lambda: criteria.variance([1.0, 2.0]), ValueError, "sums must have shape (..., 3)"),
        (
            lambda: criteria.variance_reduction([1.0, 2.0, 3.0]),
            ValueError,
            "sums must have shape (..., branches, 3), got (3,)",
        ),
        (lambda: criteria.variance([-1.0, 0, 0]), ValueError, "the weights in sums must not be"),
        (lambda: criteria.table([0.0], [0]), TypeError, "codes must be an integer array"),
        (lambda: criteria.table([0], [0.0]), TypeError, "y must be an integer array"),
        (lambda: criteria.table([0, 1], [0]), ValueError, "y and rows must have as many rows"),
        (lambda: criteria.table([], []), TypeError, "codes must be an integer array"),
        (lambda: criteria.thresholds([]), ValueError, "x must not be empty"),
        (lambda: criteria.table([0], [-1]), ValueError, "y must be in 0..0 (1 classes), got -1"),
        (
            lambda: criteria.table([0, 3], [0, 1], num_branches=2),
            ValueError,
            "codes must be in 0..1",
        ),
        (
            lambda: criteria.table([0], [0], sample_weight=[-1.0]),
            ValueError,
            "sample_weight must not be negative",
        ),
        (
            lambda: criteria.table([0], [0], sample_weight=[1.0, 2.0]),
            ValueError,
            "codes and sample_weight must have as many rows",
        ),
        (lambda: criteria.table([0], [0], num_classes=0), ValueError, "num_classes must be at"),
        (lambda: criteria.thresholds([1.0, np.nan]), ValueError, "x must be finite, got nan in"),
        (
            lambda: criteria.threshold_moments([1.0, 2.0], [0.0, np.inf]),
            ValueError,
            "y must be finite, got inf in row 1",
        ),
        (
            lambda: jax.jit(criteria.table)(jnp.array([0]), jnp.array([0])),
            ValueError,
            "num_branches must be given where codes or sample_weight is traced",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
