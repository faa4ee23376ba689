"""AdaBoost against scikit-learn round by round, against its own formulas, and by hand."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_hastie_10_2
from sklearn.ensemble import AdaBoostClassifier
from sklearn.tree import DecisionTreeClassifier

from mlnotes_jax.data import datasets
from mlnotes_jax.demos.ensembles import adaboost as demo
from mlnotes_jax.ensembles import adaboost
from mlnotes_jax.trees import decision_tree


def stump_fit(x, y, *, sample_weight, num_classes):
    """The tests' own learner: the question `x[:, j] <= x[i, j]` of the least weighted error."""
    low = (x[None] <= x[:, None]).astype(x.dtype)  # question i, row, feature
    member = jax.nn.one_hot(y, num_classes, dtype=x.dtype) * sample_weight[:, None]
    below = jnp.einsum("ind,nk->dik", low, member)
    above = member.sum(axis=0)[None, None] - below
    place = jnp.argmax(below.max(axis=2) + above.max(axis=2))
    j, i = place // len(x), place % len(x)
    return j, x[i, j], below[j, i].argmax(), above[j, i].argmax()


def stump_predict(model, x):
    j, threshold, below, above = model
    return jnp.where(x[:, j] <= threshold, below, above)


STUMP = stump_fit, stump_predict


def draw(seed=0, n=50, k=2, dtype=np.float32):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    y = np.digitize(x[:, 0] + x[:, 1], [-0.5, 0.5][: k - 1]) + (rng.random(n) < 0.1)
    return x.astype(dtype), (y % k).astype(np.int32)


def replay(model, x, y, weight=None, rate=1.0):
    """All rounds again from the answers of the learners, in NumPy."""
    if model.mode == "program":
        each = jax.lax.map(lambda one: model.predict_one(one, jnp.asarray(x)), model.models)
    else:
        each = [model.predict_one(one, x) for one in model.models]
    k = model.num_classes
    w = np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)
    w = w / w.sum()
    first, tally, rounds = w, np.zeros((len(y), k)), []
    for answers in np.asarray(each)[: int(model.num_used)]:
        wrong = answers != y
        e = w[wrong].sum()
        alpha = rate * 0.5 * (np.log((1 - e) / e) + np.log(k - 1))
        tally = tally + alpha * (answers[:, None] == np.arange(k))
        z = (1 - e) * np.exp(-alpha) + e * np.exp(alpha)
        rounds.append((e, alpha, z, first[tally.argmax(axis=1) != y].sum()))
        w = w * np.exp(2 * alpha * wrong)
        w = w / w.sum()
        # The learner is now as good as a guess.
        assert rate != 1 or abs(w[wrong].sum() - (1 - 1 / k)) < 1e-9
    e, alpha, z, missed = np.array(rounds).T
    return e, alpha, np.cumprod(z), missed, tally


def agree(model, x, y, tolerance, **options):
    e, alpha, bound, missed, tally = replay(model, x, y, **options)
    used = int(model.num_used)
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    close(model.error[:used], e)
    close(model.alpha[:used], alpha)
    close(model.bound[:used], bound)
    close(model.train_error[:used], missed)
    close(adaboost.votes(model, x), tally)
    assert (bound - missed > -1e-12).all()


# By hand


def test_ten_numbers():
    # 0..9 with the classes + + + - - - + + + -: no threshold is right about all of them, and three
    # questions are. The weighted errors are 3/10, 3/14 and 2/11.
    x, y = np.arange(10.0, dtype=np.float32)[:, None], np.array([1, 1, 1, 0, 0, 0, 1, 1, 1, 0])
    model = adaboost.fit(x, y, learner=STUMP, num_rounds=3)
    np.testing.assert_allclose(model.error, [3 / 10, 3 / 14, 2 / 11], rtol=1e-5)
    odds = np.array([7 / 3, 11 / 3, 9 / 2])
    np.testing.assert_allclose(model.alpha, 0.5 * np.log(odds), rtol=1e-5)
    factors = [2 * np.sqrt(p * (1 - p)) for p in (3 / 10, 3 / 14, 2 / 11)]
    np.testing.assert_allclose(model.bound, np.cumprod(factors), rtol=1e-5)
    np.testing.assert_allclose(model.train_error, [0.3, 0.3, 0.0], atol=1e-6)
    assert model.models[1].tolist() == [2.0, 8.0, 5.0]
    np.testing.assert_array_equal(adaboost.predict(model, x), y)
    staged = adaboost.staged_predict(model, x)
    assert (np.asarray(staged) != y).sum(axis=1).tolist() == [3, 3, 0]
    assert not model.perfect
    assert not model.too_weak
    assert (np.asarray(adaboost.predict(adaboost.first_rounds(model, 2), x)) != y).sum() == 3


# Peers


@functools.cache
def real(name):
    if name == "hastie":  # ten normal numbers, and whether their length is above its median
        x, y = make_hastie_10_2(n_samples=500, random_state=0)
        return x, (y > 0).astype(np.int32)
    data = datasets.load(name)
    return data.x.astype(np.float64), data.y


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "iris", "digits", "hastie"])
def test_staged_errors_of_scikit_learn(name, monkeypatch):
    x, y = real(name)
    sorts, presort = [], decision_tree.presort
    monkeypatch.setattr(decision_tree, "presort", lambda x: sorts.append(1) or presort(x))
    model = adaboost.fit(x, y, num_rounds=25)
    assert len(sorts) == 1  # not in every round
    peer = AdaBoostClassifier(n_estimators=25, random_state=0).fit(x, y)
    # The same stumps. In iris some questions about petals divide the rows in the same way.
    for t, one in enumerate(peer.estimators_):
        ours = int(model.models.tree.feature[t, 0]), float(model.models.tree.threshold[t, 0])
        theirs = one.tree_.feature[0], one.tree_.threshold[0]
        if name != "iris":
            assert ours == pytest.approx(theirs, rel=1e-6)
        sides = [x[:, j].astype(np.float32) <= threshold for j, threshold in (ours, theirs)]
        assert (sides[0] == sides[1]).all()
    # Ours are single precision: sums of up to 1797 weights, and 25 exponentials
    np.testing.assert_allclose(model.error, peer.estimator_errors_, rtol=1e-5)
    np.testing.assert_allclose(2 * model.alpha, peer.estimator_weights_, atol=1e-5)
    scores = list(peer.staged_score(x, y))
    np.testing.assert_allclose(1 - model.train_error, scores, atol=1e-6)
    missed = np.asarray(adaboost.staged_predict(model, x)) != y
    np.testing.assert_allclose(1 - missed.mean(axis=1), scores, atol=1e-12)
    assert (np.asarray(model.train_error) <= np.asarray(model.bound)).all()
    ours = np.asarray(adaboost.decision_function(model, x)) / float(model.alpha.sum())
    if model.num_classes == 2:  # there the sum over two columns that mirror each other
        ours = 2 * ours
    else:  # there a vote for another class counts -1 / (K - 1)
        ours = (model.num_classes * ours - 1) / (model.num_classes - 1)
    np.testing.assert_allclose(ours, peer.decision_function(x), atol=1e-5)


@pytest.mark.parametrize(("name", "rate"), [("wine", 0.5), ("breast_cancer", 1.0)])
def test_any_learner_a_loop_and_weights_like_scikit_learn(name, rate, x64):
    # Its own trees of depth 2, with its own random numbers, cannot be traced.
    x, y = real(name)
    weight = np.random.default_rng(0).uniform(0.2, 3, len(y))
    numbers = np.random.RandomState(7)

    def tree(x, y, *, sample_weight):
        grown = DecisionTreeClassifier(
            max_depth=2, max_features=2, random_state=numbers.randint(np.iinfo(np.int32).max)
        )
        return grown.fit(x, y, sample_weight=sample_weight)

    learner = tree, lambda grown, x: grown.predict(x)
    model = adaboost.fit(
        x, y, learner=learner, num_rounds=12, learning_rate=rate, sample_weight=weight, mode="loop"
    )
    assert model.mode == "loop"
    peer = AdaBoostClassifier(
        DecisionTreeClassifier(max_depth=2, max_features=2), n_estimators=12, learning_rate=rate,
        random_state=7,
    ).fit(x, y, sample_weight=weight)  # fmt: skip
    used = int(model.num_used)
    assert used == len(peer.estimators_)
    np.testing.assert_allclose(model.error[:used], peer.estimator_errors_[:used], rtol=1e-9)
    np.testing.assert_allclose(2 * model.alpha, peer.estimator_weights_, rtol=1e-9)
    scores = list(peer.staged_score(x, y, sample_weight=weight))
    np.testing.assert_allclose(1 - model.train_error[:used], scores, atol=1e-12)
    staged = np.asarray(adaboost.staged_predict(model, x))
    for ours, theirs in zip(staged, peer.staged_predict(x), strict=False):
        np.testing.assert_array_equal(ours, theirs)
    agree(model, x, y, 1e-9, weight=weight, rate=rate)


# The formulas


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10_000), st.sampled_from([2, 3]), st.floats(0.2, 1.0))
def test_every_round_by_its_formula(seed, k, rate):
    x, y = draw(seed, k=k)
    weight = np.random.default_rng(seed).uniform(0.2, 2, len(y)).astype(np.float32)
    model = adaboost.fit(
        x, y, learner=STUMP, num_rounds=8, learning_rate=rate, sample_weight=weight, num_classes=k
    )
    assert (np.asarray(model.train_error) <= np.asarray(model.bound) + 1e-6).all()
    if not model.perfect:  # weights go through eight exponentials in float32
        agree(model, x, y, 2e-4, weight=weight, rate=np.float32(rate))


def test_the_bound_is_the_mean_exponential_loss_and_bounds_margins(x64):
    x, y = draw(dtype=np.float64)
    model = adaboost.fit(x, y, learner=STUMP, num_rounds=20)
    agree(model, x, y, 1e-9)
    sign = 2 * y - 1
    for t in (1, 5, 20):
        part = adaboost.first_rounds(model, t)
        score = np.asarray(adaboost.decision_function(part, x))
        np.testing.assert_allclose(np.exp(-sign * score).mean(), model.bound[t - 1], rtol=1e-12)
        margin = np.asarray(adaboost.margins(part, x, y))
        np.testing.assert_allclose(margin, sign * score / float(part.alpha.sum()), atol=1e-12)
        e = np.asarray(model.error[:t])
        for theta in (-0.2, 0.0, 0.1, 0.3):
            product = np.prod(2 * np.sqrt(e ** (1 - theta) * (1 - e) ** (1 + theta)))
            assert (margin <= theta).mean() <= product + 1e-12
    # alpha is where the loss is lowest along the learner of the round.
    before = np.asarray(adaboost.decision_function(adaboost.first_rounds(model, 4), x))
    step = np.asarray(adaboost.decision_function(adaboost.first_rounds(model, 5), x)) - before
    losses = [np.exp(-sign * (before + c * step)).mean() for c in (0.99, 1.0, 1.01)]
    assert losses[1] < min(losses[0], losses[2])


def test_margins_of_three_classes():
    x, y = draw(k=3)
    model = adaboost.fit(x, y, learner=STUMP, num_rounds=8, sample_weight=np.ones(50))
    tally = np.asarray(adaboost.votes(model, x))
    right = tally[np.arange(50), y]
    rival = np.where(np.arange(3) == y[:, None], -1, tally).max(axis=1)
    margin = np.asarray(adaboost.margins(model, x, y))
    np.testing.assert_allclose(margin, (right - rival) / tally[0].sum(), atol=1e-5)
    wrong = np.asarray(adaboost.predict(model, x)) != y
    assert (margin[wrong] <= 1e-6).all()
    assert (margin[~wrong] >= -1e-6).all()


def test_gradient_of_alpha_against_finite_differences(x64):
    x, y = draw(dtype=np.float64)
    rng = np.random.default_rng(0)

    @jax.jit
    @jax.value_and_grad
    def say(weight):
        model = adaboost.fit(x, y, learner=STUMP, num_rounds=3, sample_weight=weight, num_classes=2)
        return (model.alpha * jnp.arange(1.0, 4.0)).sum() + model.bound[-1]

    weight, way = rng.uniform(0.5, 2, 50), rng.normal(size=50)
    ahead, behind = (say(weight + step * way)[0] for step in (1e-6, -1e-6))
    # Rounding of numbers of order 1: 1e-15 / 1e-6
    np.testing.assert_allclose(say(weight)[1] @ way, (ahead - behind) / 2e-6, rtol=1e-6)


# The ends


def test_a_perfect_learner_ends_the_rounds():
    x, y = np.arange(6.0, dtype=np.float32)[:, None], np.array([0, 0, 1, 1, 1, 1])
    for mode in ("program", "loop"):
        model = adaboost.fit(x, y, learner=STUMP, num_rounds=4, mode=mode)
        assert bool(model.perfect)
        assert not bool(model.too_weak)
        assert int(model.num_used) == 1
        assert model.alpha.tolist() == [1, 0, 0, 0]
        assert float(model.error[0]) == 0
        assert np.isnan(np.asarray(model.error)[1:]).all()
        assert model.train_error.tolist() == [0, 0, 0, 0]
        assert (np.asarray(adaboost.staged_predict(model, x)) == y).all()


def test_rounds_that_are_not_used_hold_a_model():
    # A tree of zeros would lead from its root to its root, for ever.
    x, y = np.arange(4.0, dtype=np.float32)[:, None], np.array([0, 0, 1, 1])
    model = adaboost.fit(x, y, num_rounds=3)
    assert int(model.num_used) == 1
    thresholds = np.asarray(model.models.tree.threshold)[:, 0]
    assert thresholds.tolist() == [1.5, 1.5, 1.5]
    assert adaboost.predict(model, [[1.4], [1.6]]).tolist() == [0, 1]
    assert adaboost.staged_predict(model, [[1.4], [1.6]]).tolist() == [[0, 1]] * 3


def test_a_perfect_learner_in_a_later_round_decides_alone():
    x, y = np.arange(10.0, dtype=np.float32)[:, None], np.array([1, 1, 1, 0, 0, 0, 1, 1, 1, 0])

    def fit(x, y, *, sample_weight, num_classes):
        # Knows all once the ninth row weighs least: in the third round.
        known = sample_weight[8] > 2 * sample_weight[4]
        return known & (sample_weight[3] < sample_weight[8]), stump_fit(
            x, y, sample_weight=sample_weight, num_classes=num_classes
        )

    def predict(model, x):
        known, stump = model
        truth = jnp.isin(x[:, 0], jnp.array([0, 1, 2, 6, 7, 8], x.dtype)).astype(jnp.int32)
        return jnp.where(known, truth, stump_predict(stump, x).astype(jnp.int32))

    model = adaboost.fit(x, y, learner=(fit, predict), num_rounds=5)
    assert int(model.num_used) == 2
    assert bool(model.perfect)
    assert float(model.alpha[1]) == pytest.approx(1 + float(model.alpha[0]))
    np.testing.assert_allclose(model.train_error, [0.3, 0, 0, 0, 0], atol=1e-6)
    assert (np.asarray(model.bound) >= np.asarray(model.train_error)).all()


def test_a_guess_ends_the_rounds():
    x, y = np.zeros((10, 1), np.float32), np.array([0] * 7 + [1] * 3)
    for mode in ("program", "loop"):
        # All that can be said is "0": an error of 3/10, and then, with new weights, of 1/2.
        model = adaboost.fit(x, y, learner=STUMP, num_rounds=4, mode=mode)
        assert bool(model.too_weak)
        assert not bool(model.perfect)
        assert int(model.num_used) == 1
        np.testing.assert_allclose(model.error[:2], [0.3, 0.5], rtol=1e-5)
        assert np.isnan(np.asarray(model.error)[2:]).all()
        np.testing.assert_allclose(model.train_error, 0.3, rtol=1e-5)
    even = np.array([0, 1] * 5)
    with pytest.raises(ValueError, match=r"better than a guess in the first round.* 0\.5, and a g"):
        adaboost.fit(x, even, learner=STUMP, num_rounds=4)
    traced = jax.jit(lambda y: adaboost.fit(x, y, learner=STUMP, num_rounds=4, num_classes=2))
    refused = traced(even)
    assert int(refused.num_used) == 0
    assert bool(refused.too_weak)
    assert (np.asarray(adaboost.predict(refused, x)) == -1).all()
    assert np.isnan(np.asarray(adaboost.margins(refused, x, even))).all()
    np.testing.assert_allclose(refused.train_error, 1, rtol=1e-6)
    # A label that is no class leaves no learner either.
    odd = traced(y + 5)
    assert int(odd.num_used) == 0


# Re-sampling


def shaky_fit(key, x, y, *, sample_weight, num_classes):
    """Half of the time the answer is turned round."""
    stump = stump_fit(x, y, sample_weight=sample_weight, num_classes=num_classes)
    return stump, jax.random.bernoulli(key)


def shaky_predict(model, x):
    stump, turned = model
    answers = stump_predict(stump, x).astype(jnp.int32)
    return jnp.where(turned, 1 - answers, answers)


SHAKY = shaky_fit, shaky_predict


def test_a_learner_that_fails_is_replaced():
    x, y = draw()
    again = adaboost.fit_resampled(jax.random.key(8), x, y, learner=SHAKY, num_rounds=15)
    assert int(again.num_used) == 15
    # Half of the tries fail: 15 rounds throw 15 learners away, with a deviation of 5.5.
    assert 3 < int(again.restarts.sum()) < 32
    agree(again, x, y, 2e-4)
    once = adaboost.fit_resampled(
        jax.random.key(8), x, y, learner=SHAKY, num_rounds=15, max_restarts=0
    )
    used = int(once.num_used)
    assert bool(once.too_weak)
    assert used < 15
    np.testing.assert_allclose(once.alpha[:used], again.alpha[:used], rtol=1e-5)
    assert float(once.error[used]) >= 0.5
    # Re-weighting has one try.
    stopped = adaboost.fit(x, y, learner=SHAKY, num_rounds=15, key=jax.random.key(2))
    assert bool(stopped.too_weak)
    assert int(stopped.num_used) < 15


def test_a_loop_draws_the_same_samples():
    x, y = draw()
    fitted = functools.partial(adaboost.fit_resampled, jax.random.key(0), x, y, num_rounds=15)
    program = fitted(learner=SHAKY)
    loop = fitted(learner=SHAKY, mode="loop")
    np.testing.assert_array_equal(loop.restarts, program.restarts)
    for name in ("alpha", "error", "bound", "train_error"):
        np.testing.assert_allclose(getattr(loop, name), getattr(program, name), rtol=1e-3)

    def nearest(x, y, *, sample_weight):
        member = jnp.stack([1 - y, y]).astype(x.dtype) * sample_weight[None]
        return member @ x / member.sum(axis=1)[:, None]

    def bare(x, y):  # takes no weights: it is given rows as often as they were drawn
        return nearest(x, y, sample_weight=jnp.ones(len(y), x.dtype))

    def predict(means, x):
        return jnp.square(x[:, None] - means[None]).sum(axis=2).argmin(axis=1)

    weighted = fitted(learner=(nearest, predict))
    assert weighted.mode == "program"
    repeated = fitted(learner=(bare, predict))
    assert repeated.mode == "loop"
    np.testing.assert_allclose(repeated.alpha, weighted.alpha, rtol=1e-3)


def test_samples_follow_the_weights():
    x, _ = draw()
    weight = np.where(np.arange(50) < 10, 0, np.arange(50)).astype(np.float32)
    learner = (
        lambda x, y, sample_weight: sample_weight,
        lambda counts, x: jnp.zeros(len(x), jnp.int32),
    )
    label = np.zeros(50, np.int32)

    @jax.jit
    @jax.vmap
    def drawn(key):
        model = adaboost.fit_resampled(
            key, x, label, learner=learner, num_rounds=1, sample_weight=weight, num_classes=2
        )
        return model.models[0]

    counts = np.asarray(drawn(jax.random.split(jax.random.key(0), 4000)))
    assert (counts.sum(axis=1) == 40).all()  # as many as there are rows of positive weight
    share = weight / weight.sum()
    # A mean over 4000 draws of a count whose variance is 40 p (1 - p): five standard errors
    error = 5 * np.sqrt(40 * share * (1 - share) / 4000)
    assert (np.abs(counts.mean(axis=0) - 40 * share) <= error).all()


# Rows that do not count, and many fits at once


def test_rows_of_weight_zero_are_not_there():
    x, y = draw()
    weight = np.where(np.arange(50) % 5 == 0, 0, 1).astype(np.float32)
    there = weight > 0
    junk = np.where(there[:, None], x, np.nan).astype(np.float32), np.where(there, y, 99)
    fewer = adaboost.fit(x[there], y[there], learner=STUMP, num_rounds=8)
    for mode in ("program", "loop"):
        model = adaboost.fit(
            *junk, learner=STUMP, num_rounds=8, sample_weight=weight, num_classes=2, mode=mode
        )
        for name in ("alpha", "error", "bound", "train_error"):
            np.testing.assert_allclose(getattr(model, name), getattr(fewer, name), rtol=2e-4)
        np.testing.assert_array_equal(adaboost.predict(model, x), adaboost.predict(fewer, x))


def test_jit_vmap_and_no_recompilation():
    x, y = draw()
    traces = 0

    def told(rate, weight):
        nonlocal traces
        traces += 1
        return adaboost.fit(
            x, y, learner=STUMP, num_rounds=8, learning_rate=rate, sample_weight=weight,
            num_classes=2,
        )  # fmt: skip

    rates = jnp.array([1.0, 0.5, 0.1])
    weights = jnp.asarray(np.arange(50)[None] % 4 != np.arange(3)[:, None], jnp.float32)
    together = jax.jit(jax.vmap(told))
    models = together(rates, weights)
    for i in range(3):
        alone = told(rates[i], weights[i])
        np.testing.assert_allclose(models.alpha[i], alone.alpha, rtol=2e-4)
        np.testing.assert_allclose(models.train_error[i], alone.train_error, atol=1e-6)
    before = traces
    together(rates / 2, weights[::-1])
    assert traces == before
    said = jax.vmap(lambda model: adaboost.predict(model, x))(models)
    assert said.shape == (3, 50)


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"learner": stump_fit}, TypeError, "learner must be two functions (fit, predict)"),
        ({"num_rounds": 0}, ValueError, "num_rounds must be at least 1, got 0"),
        ({"num_rounds": 2.0}, TypeError, "num_rounds must be an integer, got 2.0"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": [1.0]}, ValueError, "learning_rate must be 0-D"),
        ({"mode": "fast"}, ValueError, "mode must be one of 'auto', 'program', 'loop'"),
        ({"y": np.zeros(50, int)}, ValueError, "y must have at least two classes, got class 0"),
        ({"y": np.full(50, np.nan)}, TypeError, "y must be an integer array"),
        ({"y": np.zeros(49, int)}, ValueError, "x and y must have as many rows"),
        ({"num_classes": 1}, ValueError, "y must be in 0..0 (1 classes), got 1 at index"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0, int)}, ValueError, "x must not be empty"),
        ({"x": np.full((50, 3), np.nan)}, ValueError, "x must be finite, got nan in row 0, col"),
        ({"sample_weight": np.full(50, -1.0)}, ValueError, "sample_weight must not be negative"),
        ({"sample_weight": np.zeros(50)}, ValueError, "sample_weight must be positive for at"),
        ({"learner": SHAKY}, ValueError, "key must be given, since the learner's fit takes one"),
        (
            {"learner": (lambda x, y: 0, stump_predict)},
            ValueError,
            "learner's fit must take sample_weight: use fit_resampled for one without",
        ),
        (
            {"learner": (stump_fit, lambda model, x: x[:, 0])},
            TypeError,
            "the learner's predict must give classes as integers, got dtype float32",
        ),
        (
            {"learner": (stump_fit, lambda model, x: jnp.zeros((50, 2), int))},
            ValueError,
            "must give a class for each row, shape (50,), got (50, 2)",
        ),
    ],
)
def test_bad_input(options, error, message):
    x, y = draw()
    given_ = {"x": x, "y": y, "learner": STUMP} | options
    with pytest.raises(error, match=re.escape(message)):
        adaboost.fit(**given_)


def test_bad_input_elsewhere():
    x, y = draw()
    model = adaboost.fit(x, y, learner=STUMP, num_rounds=8, sample_weight=np.ones(50))
    with pytest.raises(ValueError, match="max_restarts must be at least 0, got -1"):
        adaboost.fit_resampled(jax.random.key(0), x, y, max_restarts=-1)
    with pytest.raises(ValueError, match="num_rounds must be in"):
        adaboost.first_rounds(model, 0)
    with pytest.raises(ValueError, match=r"y must be in 0..1 \(2 classes\), got 2 at index 0"):
        adaboost.margins(model, x, np.full(50, 2))
    with pytest.raises(ValueError, match="x and y must have as many rows, got 50 and 3"):
        adaboost.margins(model, x, [0, 1, 1])
    with pytest.raises(ValueError, match="mode must be 'loop', got 'program'"):
        adaboost.fit_resampled(
            jax.random.key(0), x, y, learner=(lambda x, y: 0, stump_predict), mode="program"
        )
    with pytest.raises(ValueError, match="num_classes must be given where y or sample_weight is"):
        jax.jit(lambda y: adaboost.fit(x, y, learner=STUMP))(y)
    with pytest.raises(TypeError, match="must be concrete for a loop, got tracers"):
        jax.jit(lambda x: adaboost.fit(x, y, learner=STUMP, mode="loop").alpha)(x)


# The page


def test_what_the_page_says_of_the_demo():
    result = demo.run(jax.random.key(0), quick=True)
    assert demo.check(result)
