"""Bagging against scikit-learn with the same draws, against its own definition, and by hand."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import BaggingClassifier, BaggingRegressor
from sklearn.linear_model import LinearRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

from mlnotes_jax.classification import gaussian
from mlnotes_jax.data import datasets
from mlnotes_jax.ensembles import bagging
from mlnotes_jax.foundations import linear_regression

NAIVE = functools.partial(gaussian.fit, covariance="naive"), gaussian.predict
SOFT = NAIVE[0], gaussian.predict_proba
LINE = functools.partial(linear_regression.fit, ridge=1e-3), linear_regression.predict


def mean_fit(x, y, *, sample_weight):
    return sample_weight @ y / sample_weight.sum()


def slopes_fit(x, y, *, sample_weight):
    """One slope for each feature by itself: cheap, smooth, and linear in `y`."""
    return (sample_weight[:, None] * x).T @ y / (1 + sample_weight @ jnp.square(x))


SLOPES = slopes_fit, lambda slopes, x: x @ slopes
MEAN = mean_fit, lambda mean, x: jnp.full(len(x), mean)


@pytest.fixture(scope="module")
def wine():
    data = datasets.load("wine")
    return data.x, data.y


def draw(seed=0, n=40, d=3, dtype=np.float32):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    y = x @ rng.normal(size=d) + rng.normal(size=n)
    return x.astype(dtype), y.astype(dtype)


# Samples


def test_counts_are_multinomial():
    n, many = 20, 20_000
    counts = np.asarray(bagging.draw_counts(jax.random.key(0), n, num_models=many))
    assert counts.dtype == np.int32
    assert (counts.sum(axis=1) == n).all()
    # Means over 2e4 draws: four standard errors are 0.03 of a standard deviation.
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.03)
    np.testing.assert_allclose(counts.var(axis=0), 1 - 1 / n, atol=0.06)
    np.testing.assert_allclose(np.cov(counts.T)[0, 1:], -1 / n, atol=0.03)
    # P(0) = (1 - 1/n)^n: 4e5 indicators that depend on each other a little
    assert abs((counts == 0).mean() - (1 - 1 / n) ** n) < 0.004
    assert abs((1 - 1 / n) ** n - np.exp(-1)) < 0.01


@pytest.mark.parametrize("replace", [True, False])
def test_fractions_and_rows_that_do_not_count(replace):
    weight = np.array([1.0, 0.0, 2.0, 0.5, 0.0, 1.0, 1.0, 3.0, 1.0, 1.0], np.float32)
    drawn = functools.partial(
        bagging.draw_counts, jax.random.key(1), 10, num_models=300, replace=replace
    )
    for fraction, size in ((1.0, 8), (0.5, 4), (0.3, 2), (0.01, 1)):
        counts = np.asarray(drawn(fraction=fraction, sample_weight=weight))
        assert (counts.sum(axis=1) == size).all()
        assert (counts[:, weight == 0] == 0).all()
        assert (counts[:, weight > 0].max(axis=0) >= 1).all()  # each row has its turn
        if not replace:
            assert counts.max() == 1
    share = counts[:, weight > 0].mean(axis=0)  # 300 draws of one of eight rows
    np.testing.assert_allclose(share, 1 / 8, atol=4 * np.sqrt(1 / 8 * 7 / 8 / 300))


# By hand


def test_the_mean_of_means():
    x, y = draw()
    model = bagging.fit(jax.random.key(0), x, y, learner=MEAN, task="regression")
    each = np.asarray(model.counts) @ y / len(y)
    np.testing.assert_allclose(np.asarray(bagging.members(model, x[:1]))[:, 0], each, rtol=1e-5)
    np.testing.assert_allclose(bagging.predict(model, x[:1])[0], each.mean(), rtol=1e-5)
    # A learner that is linear in the rows gains nothing: the average is its own answer, within
    # four standard errors of 50 bootstrap means.
    assert abs(each.mean() - y.mean()) < 4 * y.std() / np.sqrt(len(y) * 50)


def test_votes_and_probabilities(wine):
    x, y = wine
    key = jax.random.key(0)
    hard, soft = (
        bagging.fit(key, x, y, learner=learner, num_models=9, batch_models=3)
        for learner in (NAIVE, SOFT)
    )
    votes, chances = np.asarray(bagging.members(hard, x)), np.asarray(bagging.members(soft, x))
    assert votes.shape == (9, 178)
    assert chances.shape == (9, 178, 3)
    share = (votes[:, :, None] == np.arange(3)).mean(axis=0)
    np.testing.assert_allclose(bagging.predict_proba(hard, x), share, atol=1e-6)
    np.testing.assert_array_equal(bagging.predict(hard, x), share.argmax(axis=1))
    np.testing.assert_allclose(bagging.predict_proba(soft, x), chances.mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(bagging.predict(soft, x), chances.mean(axis=0).argmax(axis=1))


def test_random_subspaces(wine):
    x, y = wine
    model = bagging.fit(jax.random.key(3), x, y, learner=NAIVE, num_models=40, num_features=5)
    columns = np.asarray(model.features)
    assert columns.shape == (40, 5)
    assert (np.diff(columns, axis=1) > 0).all()  # ascending, none twice
    assert len(np.unique(columns)) == 13
    said = np.asarray(bagging.members(model, x))
    for b in (0, 7):
        weight = np.asarray(model.counts[b], np.float32)
        alone = gaussian.fit(x[:, columns[b]], y, covariance="naive", sample_weight=weight)
        np.testing.assert_array_equal(gaussian.predict(alone, x[:, columns[b]]), said[b])


# Peers


def test_the_same_draws_as_scikit_learn_give_the_same(wine, x64):
    x, y = wine[0].astype(np.float64), wine[1]
    x = (x - x.mean(axis=0)) / x.std(axis=0)  # the peer adds to all variances alike
    peer = BaggingClassifier(
        GaussianNB(var_smoothing=1e-12), n_estimators=40, oob_score=True, random_state=0
    )
    peer.fit(x, y)
    counts = np.stack([np.bincount(rows, minlength=len(y)) for rows in peer.estimators_samples_])
    fit = functools.partial(gaussian.fit, covariance="naive", var_smoothing=0.0, num_classes=3)
    models = jax.vmap(lambda w: fit(x, y, sample_weight=w))(counts.astype(float))
    ours = bagging.Bagging(
        models, jnp.asarray(counts, jnp.int32), None, gaussian.predict_proba, 3, 1, "program"
    )
    # The peer's smoothing of 1e-12 and rounding
    np.testing.assert_allclose(bagging.predict_proba(ours, x), peer.predict_proba(x), atol=1e-6)
    out = bagging.out_of_bag(ours, x, y)
    np.testing.assert_allclose(out.average, peer.oob_decision_function_, atol=1e-6)
    assert float(out.score) == pytest.approx(peer.oob_score_)


def test_scores_lie_within_the_spread_of_scikit_learn(wine):
    # Its own tree as the learner: called in a loop, since it cannot be traced.
    x, y = wine
    seen = np.arange(len(y)) % 3 > 0

    def tree(x, y, *, sample_weight):
        return DecisionTreeClassifier(random_state=0).fit(x, y, sample_weight=sample_weight)

    learner = tree, lambda model, x: model.predict_proba(x)
    ours, theirs = [], []
    for seed in range(8):
        model = bagging.fit(
            jax.random.key(seed), x[seen], y[seen], learner=learner, num_models=15, num_features=4
        )
        assert model.mode == "loop"
        out = bagging.out_of_bag(model, x[seen], y[seen])
        ours.append([np.mean(np.asarray(bagging.predict(model, x[~seen])) == y[~seen]), out.score])
        peer = BaggingClassifier(
            DecisionTreeClassifier(), n_estimators=15, max_features=4, random_state=seed
        ).fit(x[seen], y[seen])
        theirs.append(peer.score(x[~seen], y[~seen]))
    ours, theirs = np.array(ours), np.array(theirs)
    error = np.sqrt((ours[:, 0].var(ddof=1) + theirs.var(ddof=1)) / 8)
    assert abs(ours[:, 0].mean() - theirs.mean()) < 3 * error + 0.005
    # Out of bag a row meets a third of the models: a little less than the whole, never far away.
    assert -0.12 < ours[:, 1].mean() - ours[:, 0].mean() < 0.03


def test_regression_like_scikit_learn():
    x, y = draw(n=200)
    new, _ = draw(seed=1)
    model = bagging.fit(
        jax.random.key(0), x, y, learner=LINE, task="regression", num_models=400, fraction=0.5
    )
    peer = BaggingRegressor(LinearRegression(), n_estimators=400, max_samples=0.5, random_state=0)
    peer.fit(x, y)
    # Spread of the average over the draws: that of one member over the root of 400
    spread = np.asarray(bagging.members(model, new)).std(axis=0) / 20
    assert (np.abs(bagging.predict(model, new) - peer.predict(new)) < 6 * spread).all()
    out = bagging.out_of_bag(model, x, y)
    assert 0 < float(out.score) < 1
    np.testing.assert_allclose(np.asarray(out.num_models) / 400, np.exp(-0.5), atol=0.12)


# One program, or a loop


def test_a_loop_does_the_same():
    x, y = draw()
    label = (y > 0).astype(np.int32)

    def bare(x, y):  # takes no weights, and is given rows twice instead
        return np.mean(y)

    fitted = functools.partial(bagging.fit, jax.random.key(2), x, num_models=7, fraction=0.8)
    program = fitted(y, learner=SLOPES, task="regression", num_features=2)
    assert program.mode == "program"
    for options in ({"mode": "loop"}, {"batch_models": None}, {"batch_models": 4}):
        other = fitted(y, learner=SLOPES, task="regression", num_features=2, **options)
        np.testing.assert_array_equal(other.counts, program.counts)
        np.testing.assert_array_equal(other.features, program.features)
        # Rounding of another order of sums
        for function in (bagging.predict, bagging.members):
            np.testing.assert_allclose(function(other, x), function(program, x), atol=1e-5)
        ours, theirs = (bagging.out_of_bag(model, x, y) for model in (other, program))
        np.testing.assert_allclose(ours.average, theirs.average, atol=1e-5)
    means = fitted(y, learner=(bare, MEAN[1]), task="regression")
    assert means.mode == "loop"
    expected = fitted(y, learner=MEAN, task="regression")
    np.testing.assert_allclose(means.models, expected.models, rtol=1e-5)
    hard = [fitted(label, learner=NAIVE, mode=mode) for mode in ("program", "loop")]
    np.testing.assert_array_equal(*(bagging.predict(model, x) for model in hard))


def test_rows_of_weight_zero_are_not_there():
    x, y = draw()
    weight = np.where(np.arange(40) % 4 == 0, 0, 1).astype(np.float32)
    junk = np.where(weight[:, None] > 0, x, np.nan).astype(np.float32)
    fitted = functools.partial(
        bagging.fit, jax.random.key(0), learner=SLOPES, task="regression", num_models=5
    )
    model = fitted(junk, np.where(weight > 0, y, np.nan), sample_weight=weight)
    clean = fitted(x, y, sample_weight=weight)
    np.testing.assert_allclose(bagging.predict(model, x), bagging.predict(clean, x), atol=1e-6)
    assert (np.asarray(model.counts).sum(axis=1) == 30).all()
    cut = fitted(junk, y, sample_weight=weight, mode="loop")
    np.testing.assert_allclose(bagging.predict(model, x), bagging.predict(cut, x), atol=1e-5)
    out = bagging.out_of_bag(clean, x, y, sample_weight=weight)
    assert (np.asarray(out.num_models)[weight == 0] == 5).all()  # nobody has seen them
    there = (weight > 0) & (np.asarray(out.num_models) > 0)
    error = np.asarray(out.prediction)[there] - y[there]
    r2 = 1 - np.square(error).sum() / np.square(y[there] - y[there].mean()).sum()
    assert float(out.score) == pytest.approx(r2, rel=1e-4)


def test_weights_multiply_the_counts():
    x, y = draw()
    weight = np.random.default_rng(0).uniform(0.5, 2, 40).astype(np.float32)
    model = bagging.fit(
        jax.random.key(0), x, y, learner=MEAN, task="regression", sample_weight=weight
    )
    both = np.asarray(model.counts) * weight
    np.testing.assert_allclose(model.models, both @ y / both.sum(axis=1), rtol=1e-4)


def test_a_learner_that_draws_has_a_key_for_each_model():
    def random(key, x, y, *, sample_weight):
        return jax.random.normal(key)

    x, y = draw()
    learner = random, MEAN[1]
    for mode in ("program", "loop"):
        model = bagging.fit(
            jax.random.key(0), x, y, learner=learner, task="regression", num_models=6, mode=mode
        )
        assert len(set(np.asarray(bagging.predict(model, x[:1])).tolist())) == 1
        assert len(np.unique(np.asarray(bagging.members(model, x[:1])))) == 6


def test_jit_vmap_and_no_recompilation():
    x, y = draw()
    traces = 0

    def told(key, fraction, weight):
        nonlocal traces
        traces += 1
        model = bagging.fit(
            key, x, y, learner=SLOPES, task="regression", num_models=5, fraction=fraction,
            sample_weight=weight,
        )  # fmt: skip
        return bagging.predict(model, x), bagging.out_of_bag(
            model, x, y, sample_weight=weight
        ).score

    keys = jax.random.split(jax.random.key(0), 3)
    fractions = jnp.array([1.0, 0.7, 0.4])
    weights = jnp.asarray(np.arange(40)[None] % 4 != np.arange(3)[:, None], jnp.float32)
    together = jax.jit(jax.vmap(told))
    answers, scores = together(keys, fractions, weights)
    for i in range(3):
        alone, score = told(keys[i], fractions[i], weights[i])
        # The same draws; least squares by another order of sums
        np.testing.assert_allclose(answers[i], alone, atol=1e-4)
        np.testing.assert_allclose(scores[i], score, atol=1e-4)
    before = traces
    together(keys[::-1], fractions / 2, weights[::-1])
    assert traces == before
    compiled = bagging._fit_in_program._cache_size()
    for _ in range(2):  # equal partials are the same
        learner = functools.partial(gaussian.fit, covariance="naive"), gaussian.predict
        bagging.fit(keys[0], x, (y > 0).astype(int), learner=learner, num_models=2)
    assert bagging._fit_in_program._cache_size() == compiled + 1


def test_gradients_against_finite_differences(x64):
    x, y = draw(dtype=np.float64)
    rng = np.random.default_rng(3)

    @jax.jit
    @jax.value_and_grad
    def loss(y):
        model = bagging.fit(
            jax.random.key(0), x, y, learner=SLOPES, task="regression", num_models=4
        )
        return jnp.square(bagging.predict(model, x[:5])).sum()

    way = rng.normal(size=len(y))
    ahead, behind = (loss(y + step * way)[0] for step in (1e-6, -1e-6))
    # Rounding of a sum of order 10: 1e-15 / 1e-6
    np.testing.assert_allclose(loss(y)[1] @ way, (ahead - behind) / 2e-6, rtol=1e-6)


# What the average is worth


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_the_average_beats_the_mean_member_by_their_spread(seed):
    x, y = draw(seed)
    model = bagging.fit(
        jax.random.key(seed), x, y, learner=SLOPES, task="regression", num_models=7, fraction=0.3
    )
    new, target = draw(seed + 1)
    each = np.asarray(bagging.members(model, new), np.float64)
    average = np.asarray(bagging.predict(model, new), np.float64)
    gain = np.square(each - target).mean() - np.square(average - target).mean()
    spread = np.square(each - average).mean()
    assert spread > 0
    # An identity, in float32
    assert gain == pytest.approx(spread, rel=1e-3, abs=1e-5)


def test_out_of_bag_by_its_definition(wine):
    x, y = wine
    model = bagging.fit(jax.random.key(0), x, y, learner=SOFT, num_models=4)
    out = bagging.out_of_bag(model, x, y)
    unseen = np.asarray(model.counts) == 0
    each = np.asarray(bagging.members(model, x))
    with np.errstate(invalid="ignore"):
        average = (unseen[:, :, None] * each).sum(axis=0) / unseen.sum(axis=0)[:, None]
    np.testing.assert_allclose(out.average, average, atol=1e-6)
    np.testing.assert_array_equal(out.num_models, unseen.sum(axis=0))
    answered = unseen.any(axis=0)
    assert not answered.all()  # four models leave some rows to none
    assert (np.asarray(out.prediction)[~answered] == -1).all()
    right = average[answered].argmax(axis=1) == y[answered]
    assert float(out.score) == pytest.approx(right.mean())
    whole = bagging.fit(jax.random.key(0), x, y, learner=SOFT, num_models=4, replace=False)
    with pytest.raises(ValueError, match="model must have rows that some of its models were not"):
        bagging.out_of_bag(whole, x, y)
    with pytest.raises(ValueError, match="x must be the 178 rows that were fitted, got 10"):
        bagging.out_of_bag(model, x[:10], y[:10])


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"learner": mean_fit}, TypeError, "learner must be two functions (fit, predict)"),
        ({"num_models": 0}, ValueError, "num_models must be at least 1, got 0"),
        ({"batch_models": 0}, ValueError, "batch_models must be at least 1"),
        ({"fraction": 0.0}, ValueError, "fraction must be positive"),
        ({"fraction": 1.5}, ValueError, "fraction must be in [0, 1], got 1.5"),
        ({"num_features": 4}, ValueError, "num_features must be at most 3, got 4"),
        ({"x": np.zeros((40, 2, 2)), "num_features": 1}, ValueError, "x must be 2-D for num_feat"),
        ({"task": "ranking"}, ValueError, "task must be one of 'classification', 'regression'"),
        ({"mode": "fast"}, ValueError, "mode must be one of"),
        ({"learner": (np.mean, np.mean), "mode": "program"}, ValueError, "takes no sample_weight"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0)}, ValueError, "x must not be empty"),
        ({"x": np.array("a")}, TypeError, "x must be a numeric array"),
        ({"y": np.zeros(39)}, ValueError, "x and y must have as many rows"),
        ({"y": np.full(40, np.nan)}, ValueError, "y must be finite, got nan in row 0"),
        ({"x": np.full((40, 3), np.nan)}, ValueError, "pass missing=True if the learner"),
        ({"x": np.full((40, 3), np.inf)}, ValueError, "x must be finite, got inf in row 0, col"),
        ({"task": "classification"}, TypeError, "y must be an integer array"),
        (
            {"task": "classification", "y": np.arange(40), "num_classes": 3},
            ValueError,
            "y must be in 0..2 (3 classes), got 3 at index 3",
        ),
        ({"sample_weight": np.full(40, -1.0)}, ValueError, "sample_weight must not be negative"),
        ({"sample_weight": np.zeros(40)}, ValueError, "sample_weight must be positive for at"),
        ({"sample_weight": np.ones(7)}, ValueError, "sample_weight and y must have as many rows"),
        (
            {"learner": (lambda x, y: y.mean(), MEAN[1]), "sample_weight": np.full(40, 2.0)},
            ValueError,
            "sample_weight must be 0 or 1 for a learner whose fit takes none, got 2",
        ),
    ],
)
def test_bad_input(options, error, message):
    x, y = draw()
    given = {"x": x, "y": y, "learner": MEAN, "task": "regression"} | options
    with pytest.raises(error, match=re.escape(message)):
        bagging.fit(jax.random.key(0), **given)


def test_bad_input_elsewhere(wine):
    x, y = wine
    model = bagging.fit(jax.random.key(0), *draw(), learner=MEAN, task="regression")
    with pytest.raises(ValueError, match="model must be a classification, got a regression"):
        bagging.predict_proba(model, np.zeros((2, 3)))
    wrong = gaussian.fit, lambda model, x: gaussian.predict_proba(model, x)[:, 0]
    odd = bagging.fit(jax.random.key(0), x, y, learner=wrong, num_models=2)
    with pytest.raises(ValueError, match=r"must give classes as integers, shape \(178,\), or prob"):
        bagging.predict(odd, x)
    with pytest.raises(ValueError, match="num_classes must be given where y or sample_weight is"):
        jax.jit(lambda y: bagging.fit(jax.random.key(0), x, y, learner=NAIVE))(y)
    with pytest.raises(ValueError, match=r"sample_weight must have shape \(3,\), got \(2,\)"):
        bagging.draw_counts(jax.random.key(0), 3, sample_weight=[1.0, 1.0])
    with pytest.raises(TypeError, match="must be concrete for a loop, got tracers"):
        jax.jit(lambda x: bagging.fit(jax.random.key(0), x, y, learner=NAIVE, mode="loop").counts)(
            x
        )
    holes = np.where(np.arange(13) == 2, np.nan, x).astype(np.float32)
    blind = functools.partial(bagging.fit, jax.random.key(0), holes, y, num_models=3)
    learner = lambda x, y, sample_weight: jnp.isnan(x).sum(), lambda holes, x: jnp.zeros(178, int)
    assert (np.asarray(blind(learner=learner, missing=True).models) == 178).all()
