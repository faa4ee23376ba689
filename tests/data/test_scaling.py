"""Scalings against closed forms, scikit-learn and double precision."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn import preprocessing

from mlnotes_jax.data import datasets, scaling
from mlnotes_jax.demos.data import scaling as demo

FITS = [scaling.fit_standard, scaling.fit_min_max, scaling.fit_max_abs]
PEERS = {
    scaling.fit_standard: preprocessing.StandardScaler,
    scaling.fit_min_max: preprocessing.MinMaxScaler,
    scaling.fit_max_abs: preprocessing.MaxAbsScaler,
}

fits = pytest.mark.parametrize("fit", FITS)


@pytest.fixture(scope="module")
def wine():
    return datasets.load("wine").x


def test_closed_form():
    x = jnp.array([[1.0, -8.0], [2.0, 4.0], [6.0, 4.0]])
    standard = scaling.fit_standard(x)
    assert standard.shift.tolist() == [3, 0]
    # variances 14/3 and 32, each rounded once in a root
    chex.assert_trees_all_close(standard.scale, jnp.sqrt(jnp.array([14 / 3, 32.0])), rtol=1e-6)
    chex.assert_trees_all_close(
        scaling.apply(scaling.fit_min_max(x), x), jnp.array([[0, 0], [0.2, 1], [1, 1]]), rtol=1e-6
    )
    assert scaling.apply(scaling.fit_max_abs(x), x)[:, 1].tolist() == [-1, 0.5, 0.5]


@fits
def test_agrees_with_scikit_learn(fit, wine):
    peer = PEERS[fit]().fit(wine.astype(np.float64))
    model = fit(wine)
    # float32 against float64: one rounding of the model, one of each scaled value (up to 4)
    np.testing.assert_allclose(
        model.scale, 1 / peer.scale_ if fit is FITS[1] else peer.scale_, 1e-6
    )
    np.testing.assert_allclose(scaling.apply(model, wine), peer.transform(wine), atol=4e-6)


def test_sample_weight_agrees_with_scikit_learn(wine):
    weight = np.random.default_rng(0).uniform(0, 2, len(wine)).astype(np.float32)
    weight[::3] = 0
    peer = preprocessing.StandardScaler().fit(wine.astype(np.float64), sample_weight=weight)
    model = scaling.fit_standard(wine, sample_weight=weight)
    np.testing.assert_allclose(model.shift, peer.mean_, rtol=1e-6)  # float32
    np.testing.assert_allclose(model.scale, peer.scale_, rtol=2e-6)


@fits
def test_other_rows_leak_nothing(fit, wine):
    train = np.arange(len(wine)) % 5 != 0
    spoilt = np.where(train[:, None], wine, np.nan)  # not even as 0 times NaN
    masked, chosen = fit(spoilt, sample_weight=train), fit(wine[train])
    # the same sums over other groupings of the rows
    chex.assert_trees_all_close(masked, chosen, rtol=1e-6)


@fits
def test_folds_by_vmap_equal_a_loop(fit, wine):
    masks = jnp.arange(len(wine))[None, :] % 4 != jnp.arange(4)[:, None]
    batched = jax.jit(jax.vmap(lambda mask: fit(wine, sample_weight=mask)))(masks)
    for fold, mask in enumerate(masks):
        # compiled sums group rows in another order
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, fold=fold: leaf[fold], batched),
            fit(wine, sample_weight=mask),
            rtol=1e-6,
        )


@settings(deadline=None, max_examples=25)
@given(
    npst.arrays(np.float32, (7, 2), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from(FITS),
)
def test_inverse_and_range(x, fit):
    model = fit(x)
    z = np.asarray(scaling.apply(model, x))
    low, high = {
        scaling.fit_standard: (-(7**0.5), 7**0.5),  # no value is further out than sqrt(n)
        scaling.fit_min_max: (0, 1),
        scaling.fit_max_abs: (-1, 1),
    }[fit]
    assert z.min() >= low - 1e-3
    assert z.max() <= high + 1e-3
    # a rounding of x - m and of the sum: in units of the largest magnitude of the column
    np.testing.assert_allclose(
        scaling.invert(model, z), x, rtol=0, atol=1e-6 * max(np.abs(x).max(), 1e-30)
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_a_large_mean_costs_no_digits(weighted):
    random = np.random.default_rng(0)
    x = (1e6 + random.normal(size=(999, 4))).astype(np.float32)
    weight = random.uniform(size=999).astype(np.float32) if weighted else np.ones(999, np.float32)
    exact = np.average(x.astype(np.float64), axis=0, weights=weight)
    variance = np.average((x - exact) ** 2, axis=0, weights=weight)
    model = scaling.fit_standard(x, sample_weight=weight if weighted else None)
    # The one-pass formula E[x^2] - E[x]^2 has no digit left here: its terms are 1e12.
    np.testing.assert_allclose(model.scale, np.sqrt(variance), rtol=1e-6)
    # The nearest float32 to the mean, half a unit in the last place away or less; one sum alone
    # misses it by four units.
    np.testing.assert_allclose(np.asarray(model.shift, np.float64), exact, rtol=0, atol=0.03126)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_neither_overflow_nor_vanish(size):
    model = scaling.fit_standard(np.array([[1.0], [3.0]], np.float32) * np.float32(size))
    np.testing.assert_allclose(model.scale, [size], rtol=1e-6)


@fits
def test_constant_features(fit):
    # The float32 mean of seven times 0.1 need not be 0.1; the scaled value must be 0 all the same.
    x = np.stack([np.full(7, 0.1), np.zeros(7), np.arange(7)], axis=1).astype(np.float32)
    model = fit(x)
    z = np.asarray(scaling.apply(model, x))
    assert model.constant.tolist() == [fit is not scaling.fit_max_abs, True, False]
    np.testing.assert_array_equal(z[:, 1], 0)
    np.testing.assert_allclose(z, PEERS[fit]().fit_transform(x), atol=1e-6)
    if fit is not scaling.fit_max_abs:
        np.testing.assert_array_equal(z[:, 0], 0)
    np.testing.assert_allclose(scaling.invert(model, z), x, atol=1e-6)


def test_range_of_min_max(wine):
    z = scaling.apply(scaling.fit_min_max(wine, low=-1.0, high=2.0), wine)
    # 2 - (-1) units of 1e-7
    np.testing.assert_allclose(z.min(axis=0), -1, atol=1e-6)
    np.testing.assert_allclose(z.max(axis=0), 2, atol=1e-6)
    peer = preprocessing.MinMaxScaler(feature_range=(-1, 2)).fit_transform(wine)
    np.testing.assert_allclose(z, peer, atol=1e-6)


def test_channels_of_pictures():
    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    exact = pictures.astype(np.float64)
    model = scaling.fit_standard(pictures)
    # shares of float32 sums over 120 values below 256
    np.testing.assert_allclose(model.scale, exact.std(axis=(0, 1, 2))[None, None], rtol=1e-6)
    assert scaling.apply(model, pictures[0]).shape == (4, 6, 3)
    first = scaling.fit_standard(pictures.transpose(0, 3, 1, 2), axis=1)
    chex.assert_trees_all_close(first.scale, model.scale.reshape(3, 1, 1), rtol=1e-6)
    pixels = scaling.fit_max_abs(pictures, axis=(1, 2, 3))
    np.testing.assert_array_equal(pixels.scale, pictures.max(axis=0))
    whole = scaling.fit_max_abs(pictures, axis=None)
    np.testing.assert_array_equal(whole.scale, [[[pictures.max()]]])


def test_bfloat16_sums_in_float32(wine):
    x = jnp.asarray(wine, jnp.bfloat16)
    model = scaling.fit_standard(x)
    assert model.scale.dtype == jnp.float32
    np.testing.assert_allclose(model.scale, np.asarray(x, np.float64).std(axis=0), rtol=2e-6)
    assert scaling.apply(model, x).dtype == jnp.bfloat16


@fits
def test_jit_equals_eager_and_does_not_recompile(fit, wine):
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(lambda x, w: fit(x, sample_weight=w), n=1))
    weight = jnp.ones(len(wine))
    # fused sums group rows in another order
    chex.assert_trees_all_close(once(wine, weight), fit(wine, sample_weight=weight), rtol=1e-6)
    once(wine + 1, weight * 2)


@fits
def test_gradient(fit, x64):
    # No ties for the largest or smallest value: there the derivative does not exist.
    x = jax.random.normal(jax.random.key(0), (5, 2))
    weight = jnp.array([1.0, 2.0, 0.5, 1.0, 3.0])

    @jax.jit
    def scaled(x):
        model = fit(x, sample_weight=weight)
        return model.shift, model.scale, scaling.apply(model, x)

    chex.assert_numerical_grads(scaled, (x,), order=1)


def test_gradient_at_a_constant_feature_is_finite():
    total = jax.jit(lambda x: scaling.apply(scaling.fit_standard(x), x).sum())
    gradient = jax.grad(total)(jnp.ones((3, 1)))
    assert jnp.isfinite(gradient).all()


def test_no_weight_at_all_is_nan_under_jit():
    model = jax.jit(lambda w: scaling.fit_standard(jnp.ones((3, 2)), sample_weight=w))(jnp.zeros(3))
    assert jnp.isnan(model.scale).all()


@fits
def test_bad_input(fit):
    with pytest.raises(ValueError, match=r"x must have an axis of rows, got shape \(\)"):
        fit(1.0)
    with pytest.raises(ValueError, match=r"x must not be empty, got shape \(0, 2\)"):
        fit(jnp.ones((0, 2)))
    with pytest.raises(TypeError, match="x must be a real array, got dtype complex64"):
        fit(jnp.ones((2, 2), complex))
    with pytest.raises(ValueError, match="x must be finite, got nan in row 1, column 0"):
        fit(jnp.array([[1.0], [jnp.nan]]))
    with pytest.raises(ValueError, match="x must be finite, got inf in row 2, column 0"):
        fit(jnp.array([[1.0], [jnp.nan], [jnp.inf]]), sample_weight=jnp.array([1, 0, 1]))
    with pytest.raises(ValueError, match=r"axis must not name the rows.*say axis=None"):
        fit(jnp.ones(3))
    with pytest.raises(ValueError, match=r"axis must be in -2..1 for a 2-D x, got 2"):
        fit(jnp.ones((3, 2)), axis=2)
    with pytest.raises(ValueError, match=r"x and sample_weight must have as many rows"):
        fit(jnp.ones((3, 2)), sample_weight=jnp.ones(2))
    with pytest.raises(ValueError, match="sample_weight must not be negative, got -1"):
        fit(jnp.ones((2, 2)), sample_weight=jnp.array([1.0, -1.0]))
    with pytest.raises(ValueError, match="sample_weight must be positive for at least one row"):
        fit(jnp.ones((2, 2)), sample_weight=jnp.zeros(2))
    model = fit(jnp.array([[1.0, 2.0], [3.0, 5.0]]))
    with pytest.raises(ValueError, match=r"the last axes of x must fit \(2,\), got shape \(4, 3\)"):
        scaling.apply(model, jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"the last axes of z must fit \(2,\), got shape \(\)"):
        scaling.invert(model, 1.0)


def test_min_max_needs_a_range():
    with pytest.raises(ValueError, match=r"low must be less than high, got low = 1.0 and high = 1"):
        scaling.fit_min_max(jnp.ones((2, 2)), low=1.0)


def test_standardising_is_within_d_of_the_best_diagonal_scaling():
    """Van der Sluis, as the page proves it: kappa(R) <= d kappa(DRD) for every diagonal D."""
    random = np.random.default_rng(0)
    x = random.normal(size=(50, 4)) @ random.normal(size=(4, 4))
    z = np.asarray(scaling.apply(scaling.fit_standard(x), x))
    correlation = z.T @ z / len(z)
    np.testing.assert_allclose(np.diag(correlation), 1, rtol=1e-5)  # float32
    diagonals = np.exp(2 * random.normal(size=(1000, 4, 1)))
    others = np.linalg.cond(diagonals * correlation * diagonals.transpose(0, 2, 1))
    assert np.linalg.cond(correlation) <= 4 * others.min()
    assert np.linalg.cond(correlation) < np.median(others)


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_demo(result):
    """The page's claim: scaling rounds the surface, and the spectrum predicts the steps."""
    none, largest, min_max, standard = result.condition
    assert none > 1e8
    assert none / 1e4 > largest > min_max > 10 * standard
    assert result.reached == [False, True, True, True]
    # float32 may reach the goal a step or two before or after float64 says
    np.testing.assert_allclose(result.steps[1:], result.predicted[1:], rtol=0.01, atol=1)
    assert result.predicted[0] > 1e8
    assert result.steps[3] < 50
    assert next(iter(demo.tables(result))).startswith("Steps to 1 %")


def test_demo_on_other_data():
    result = demo.run(jax.random.key(1), data="diabetes", within=0.1, max_steps=300)
    assert result.steps[0] == 300
    assert result.condition[0] > 100 * result.condition[3]


def test_demo_draws_itself(result):
    import matplotlib.pyplot as plt

    figure = demo.plot(result)
    assert [axes.get_title() for axes in figure.axes] == [
        "Unscaled: 40 steps",
        "Standardised: 40 steps",
        "All features: four descents",
    ]
    plt.close(figure)
