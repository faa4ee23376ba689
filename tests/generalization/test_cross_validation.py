"""Cross-validation against scikit-learn, against loops, and by hand."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import model_selection
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import log_loss, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlnotes_jax.classification import gaussian
from mlnotes_jax.data import datasets, scaling
from mlnotes_jax.demos import tables
from mlnotes_jax.demos.generalization import cross_validation as demo
from mlnotes_jax.foundations import linear_regression
from mlnotes_jax.generalization import bias_variance, metrics
from mlnotes_jax.generalization import cross_validation as cv

PREPARE = (scaling.fit_standard, scaling.apply)
STRENGTHS = np.array([10.0, 1.0, 0.1])


class Line(NamedTuple):
    coef: jax.Array
    intercept: jax.Array
    num_iterations: jax.Array


@jax.jit
def ridge(x, y, *, alpha=1.0, sample_weight=None):
    """The smallest fit there is, for tests of everything around it."""
    w = jnp.ones_like(y) if sample_weight is None else sample_weight
    x_mean, y_mean = w @ x / w.sum(), w @ y / w.sum()
    away = x - x_mean[None]
    gram = away.T @ (w[:, None] * away) + alpha * jnp.eye(x.shape[1], dtype=x.dtype)
    coef = jnp.linalg.solve(gram, away.T @ (w * (y - y_mean)))
    return Line(coef, y_mean - x_mean @ coef, jnp.zeros((), jnp.int32))


@jax.jit
def logistic(x, y, *, alpha, sample_weight=None, start=None):
    """Newton's method, from zeros or from another answer."""
    design = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    penalty = jnp.full(design.shape[1], alpha, x.dtype).at[-1].set(0)
    w = jnp.ones_like(design[:, 0]) if sample_weight is None else sample_weight
    target = y.astype(x.dtype)

    def slope(theta):
        return design.T @ (w * (jax.nn.sigmoid(design @ theta) - target)) + penalty * theta

    def step(state):
        theta, i = state
        p = jax.nn.sigmoid(design @ theta)
        hessian = (design * (w * p * (1 - p))[:, None]).T @ design + jnp.diag(penalty)
        return theta - jnp.linalg.solve(hessian, slope(theta)), i + 1

    begin = jnp.zeros_like(design[0])
    if start is not None:
        begin = jnp.append(start.coef, start.intercept)
    end, steps = jax.lax.while_loop(
        lambda state: (jnp.abs(slope(state[0])).max() > 1e-9) & (state[1] < 50),
        step,
        (begin, jnp.zeros((), jnp.int32)),
    )
    return Line(end[:-1], end[-1], steps)


@jax.jit
def line(model, x):
    return x @ model.coef + model.intercept


def probability(model, x):
    return jax.nn.sigmoid(line(model, x))


@jax.jit
def fraction(outputs, y, *, sample_weight=None):
    """R squared in four lines, for tests of everything around it."""
    w = jnp.ones_like(outputs) if sample_weight is None else sample_weight.astype(outputs.dtype)
    y = y.astype(outputs.dtype)
    away = y - w @ y / w.sum()
    return 1 - w @ jnp.square(y - outputs) / (w @ jnp.square(away))


LOSS = cv.negated(metrics.log_loss)
LDA = functools.partial(gaussian.fit, num_classes=2), gaussian.predict_proba


@functools.cache
def table(name, n=400):
    """Rows of real data in float64, classes or targets."""
    data = datasets.load(name)
    order = np.random.default_rng(0).permutation(len(data.y))[:n]
    return data.x[order].astype(np.float64), data.y[order]


@functools.cache
def small(n=40, d=3):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, d)).astype(np.float32)
    return x, (x[:, 0] + 0.5 * rng.normal(size=n)).astype(np.float32)


# Folds


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=60, max_size=60), st.sampled_from([2, 3, 5]), st.data())
def test_folds_keep_their_promises(labels, k, data):
    labels = np.array(labels)
    # Every class has rows enough, or it is an error that names it.
    values, counts = np.unique(labels, return_counts=True)
    key = data.draw(st.sampled_from([None, jax.random.key(data.draw(st.integers(0, 9)))]))
    if counts.min() < k:
        with pytest.raises(ValueError, match=f"{counts.min()} rows of class"):
            cv.stratified_k_fold(key, labels, num_folds=k)
    else:
        fold = np.asarray(cv.stratified_k_fold(key, labels, num_folds=k))
        shares = np.stack([np.bincount(fold[labels == value], minlength=k) for value in values])
        peer = model_selection.StratifiedKFold(k)
        theirs = [np.bincount(labels[test], minlength=4) for _, test in peer.split(labels, labels)]
        assert np.ptp(shares, axis=1).max() <= 1
        assert np.ptp(np.bincount(fold, minlength=k)) <= 1
        # The peer has no more even shares either.
        np.testing.assert_array_equal(
            np.sort(shares, axis=1), np.sort(np.stack(theirs, axis=1)[values], axis=1)
        )
    plain = np.bincount(np.asarray(cv.k_fold(key, 60, num_folds=k)), minlength=k)
    assert plain.sum() == 60
    assert np.ptp(plain) <= 1
    if len(values) >= k:
        fold = np.asarray(cv.group_k_fold(labels, num_folds=k))
        assert all(len(set(fold[labels == value])) == 1 for value in values)
        theirs = [
            len(test) for _, test in model_selection.GroupKFold(k).split(labels, None, labels)
        ]
        assert sorted(np.bincount(fold, minlength=k)) == sorted(theirs)


@pytest.mark.parametrize(("n", "k"), [(7, 3), (10, 10), (442, 5)])
def test_unshuffled_folds_are_those_of_the_peer(n, k):
    fold = np.asarray(cv.k_fold(None, n, num_folds=k))
    for number, (_, test) in enumerate(model_selection.KFold(k).split(np.zeros(n))):
        np.testing.assert_array_equal(np.flatnonzero(fold == number), test)
    assert fold.dtype == np.int32


def test_keys_and_repeats():
    key = jax.random.key(3)
    many = np.asarray(cv.k_fold(key, 60, num_folds=5, num_repeats=4))
    assert many.shape == (4, 60)
    assert len({tuple(row) for row in many}) == 4
    assert all((np.bincount(row) == 12).all() for row in many)
    np.testing.assert_array_equal(many, cv.k_fold(key, 60, num_folds=5, num_repeats=4))
    labels = np.arange(60) % 3
    twice = np.asarray(cv.stratified_k_fold(key, labels, num_folds=5, num_repeats=2))
    assert (np.bincount(twice[1] * 3 + labels) == 4).all()
    assert cv.leave_one_out(4).tolist() == [0, 1, 2, 3]


# Scores, against the peer; a program and a loop


PEERS = {
    "ridge": (ridge, line, metrics.r2, lambda a: Ridge(alpha=a), "alpha", STRENGTHS),
    "logistic": (
        logistic,
        probability,
        LOSS,
        lambda a: LogisticRegression(C=1 / a, tol=1e-12, solver="newton-cholesky"),
        "alpha",
        STRENGTHS,
    ),
    "gaussian": (
        *LDA,
        LOSS,
        lambda s: LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s),
        "shrinkage",
        np.array([0.5, 0.1, 0.01]),
    ),
}


@pytest.mark.parametrize("name", list(PEERS))
def test_scores_equal_the_peer_and_the_loop(name, x64):
    fit, predict, score, peer, argument, values = PEERS[name]
    x, y = table("diabetes" if name == "ridge" else "breast_cancer")
    y = y.astype(np.float64) if name == "ridge" else y
    labels = y if name != "ridge" else np.zeros(len(y), int)
    fold = np.asarray(cv.stratified_k_fold(jax.random.key(0), labels.astype(int), num_folds=5))
    run = functools.partial(
        cv.evaluate, fit, predict, score, x, y, folds=fold, prepare=PREPARE, train_scores=True
    )
    program = run(settings={argument: values})
    loop = run(settings={argument: values}, mode="loop")
    assert (program.mode, loop.mode) == ("program", "loop")
    theirs = np.empty((2, 3, 5))
    for i, value in enumerate(values):
        for k in range(5):
            train, test = fold != k, fold == k
            fitted = make_pipeline(StandardScaler(), peer(value)).fit(x[train], y[train])
            for part, rows in enumerate((test, train)):
                theirs[part, i, k] = (
                    r2_score(y[rows], fitted.predict(x[rows]))
                    if name == "ridge"
                    else -log_loss(y[rows], fitted.predict_proba(x[rows]))
                )
    # Rounding only, except that the peer of "logistic" stops at a gradient of 1e-12 per row. The
    # log-loss of a wrong and very sure Gaussian has the digits of a probability near 0.
    np.testing.assert_allclose(program.test_score, theirs[0], rtol=1e-8)
    np.testing.assert_allclose(program.train_score, theirs[1], rtol=1e-8)
    np.testing.assert_allclose(loop.test_score, theirs[0], rtol=1e-8)
    np.testing.assert_allclose(loop.train_score, theirs[1], rtol=1e-8)
    assert not program.failed.any()
    assert not loop.failed.any()


@pytest.fixture(scope="module")
def run():
    """Ridge on 40 rows; three settings, four folds."""
    x, y = small()
    return functools.partial(
        cv.evaluate,
        ridge,
        line,
        fraction,
        x,
        y,
        folds=cv.k_fold(None, 40, num_folds=4),
        settings={"alpha": jnp.array(STRENGTHS, jnp.float32)},
    )


@pytest.fixture(scope="module")
def base(run):
    return run()


def test_other_ways_to_the_same_scores(run, base):
    # One path through all strengths, batches of folds and settings, another order of loops, weights
    # that are all alike: the same sums in another order, in float32.
    x, _ = small()
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
    path = cv.evaluate(
        linear_regression.ridge_path,
        linear_regression.predict,
        fraction,
        *small(),
        folds=cv.k_fold(None, 40, num_folds=4),
        settings={"ridges": jnp.array(STRENGTHS, jnp.float32)},
        path=True,
    )
    close(path.test_score, base.test_score)
    close(run(batch_folds=3, batch_settings=2).test_score, base.test_score)
    doubled = {
        "settings": {"alpha": jnp.array(2 * STRENGTHS, jnp.float32)},
        "sample_weight": np.full(40, 2.0),
    }
    close(run(batch_folds=1, **doubled).test_score, base.test_score)
    close(run(mode="loop", **doubled).test_score, base.test_score)
    listed = run(settings={"alpha": STRENGTHS.tolist()})
    assert listed.mode == "loop"
    close(listed.test_score, base.test_score)
    one = run(settings=None)
    assert one.test_score.shape == (1, 4)
    close(one.test_score[0], base.test_score[1])
    twice = np.stack([np.arange(40) % 4, np.asarray(cv.k_fold(None, 40, num_folds=4))])
    close(run(folds=twice).test_score[:, 4:], base.test_score)
    assert x.dtype == base.test_score.dtype


def test_a_loop_walks_a_path_and_starts_warm(run):
    x, y = small()
    both = [
        cv.evaluate(
            linear_regression.ridge_path,
            linear_regression.predict,
            fraction,
            x,
            y,
            folds=np.arange(40) % 2,
            settings={"ridges": jnp.array(STRENGTHS, jnp.float32)},
            path=True,
            mode=mode,
        ).test_score
        for mode in ("program", "loop")
    ]
    np.testing.assert_allclose(*both, rtol=2e-5, atol=2e-6)  # float32, sums in another order


def steps_of(model, x):
    """Newton steps, as if they were predictions."""
    return jnp.full(len(x), model.num_iterations, jnp.float32)


def minus_mean(outputs, y, *, sample_weight=None):
    w = jnp.ones_like(outputs) if sample_weight is None else sample_weight.astype(outputs.dtype)
    return -(w @ outputs) / w.sum()


def test_warm_starts_save_steps_and_keep_scores(x64):
    x, y = table("breast_cancer", 200)
    x, fold, strengths = x[:, :8], np.arange(200) % 2, np.geomspace(100.0, 1.0, 5)
    run = functools.partial(
        cv.evaluate, logistic, x=x, y=y, folds=fold, settings={"alpha": strengths}, prepare=PREPARE
    )
    cold = run(predict=steps_of, score=minus_mean).test_score
    warm = run(predict=steps_of, score=minus_mean, warm_start=True).test_score
    np.testing.assert_array_equal(warm[0], cold[0])
    assert (warm[1:] > cold[1:]).all()
    ours = run(predict=probability, score=LOSS, warm_start=True).test_score
    for i, strength in enumerate(strengths):
        peer = LogisticRegression(C=1 / strength, tol=1e-12, solver="newton-cholesky")
        theirs = model_selection.cross_val_score(
            make_pipeline(StandardScaler(), peer),
            x,
            y,
            cv=model_selection.PredefinedSplit(fold),
            scoring="neg_log_loss",
        )
        np.testing.assert_allclose(ours[i], theirs, rtol=1e-8)  # gradients of 1e-9 and less


def test_preparation_sees_neither_the_fold_nor_rows_of_no_weight():
    x, y = small()
    weight, fold = np.ones(40, np.float32), np.arange(40) % 4
    weight[::7] = 0

    def show(weight, x):
        return jnp.broadcast_to(weight, (len(x), 40))

    # The "state" is the weight that the preparation was given, and the prediction is the state.
    seen = cv.out_of_fold(
        lambda x, y, sample_weight: sample_weight,
        lambda model, shown: jnp.stack([shown, show(model, shown)]).swapaxes(0, 1),
        x,
        y,
        folds=fold,
        prepare=(lambda x, *, y, sample_weight: sample_weight, show),
        sample_weight=weight,
    )
    expected = np.where(fold[:, None] == fold[None], 0, weight[None])
    np.testing.assert_array_equal(seen[:, 0], expected)
    np.testing.assert_array_equal(seen[:, 1], expected)  # the fit, too

    # So these rows may hold anything, and the score is that of the others.
    junk = x.copy()
    junk[::7] = np.nan
    found = cv.evaluate(
        lambda x, y, sample_weight: ridge(jnp.nan_to_num(x), y, sample_weight=sample_weight),
        lambda model, x: line(model, jnp.nan_to_num(x)),
        fraction,
        junk,
        y,
        folds=fold,
        sample_weight=weight,
        prepare=PREPARE,
    )
    for k in range(4):
        train, test = (weight > 0) & (fold != k), (weight > 0) & (fold == k)
        peer = make_pipeline(StandardScaler(), Ridge(alpha=1.0)).fit(x[train], y[train])
        theirs = r2_score(y[test], peer.predict(x[test]))
        np.testing.assert_allclose(found.test_score[0, k], theirs, rtol=1e-5)  # float32


def test_any_functions_in_a_loop():
    x, y = small()
    found = cv.evaluate(
        lambda x, y, fit_intercept: LinearRegression(fit_intercept=fit_intercept).fit(x, y),
        lambda model, x: model.predict(x),
        lambda outputs, y: r2_score(y, outputs),
        x,
        y,
        folds=np.arange(40) % 4,
        settings={"fit_intercept": [True, False]},
    )
    assert found.mode == "loop"
    splits = model_selection.PredefinedSplit(np.arange(40) % 4)
    for i, option in enumerate((True, False)):
        peer = LinearRegression(fit_intercept=option)
        theirs = model_selection.cross_val_score(peer, x, y, cv=splits, scoring="r2")
        np.testing.assert_allclose(found.test_score[i], theirs, rtol=1e-6)

    def looks(x, y, *, sample_weight=None):  # a value that no program has
        return float(y.mean())

    seen = cv.evaluate(
        looks,
        lambda mean, x: jnp.full(len(x), mean),
        cv.negated(metrics.rmse),
        x,
        y,
        folds=np.arange(40) % 4,
    )
    assert seen.mode == "loop"
    with pytest.raises(jax.errors.ConcretizationTypeError):
        cv.evaluate(looks, line, fraction, x, y, folds=np.arange(40) % 4, mode="program")


def test_a_fit_that_draws_has_one_key_for_a_fold():
    def fit(key, x, y, *, scale, sample_weight=None):
        return scale * jax.random.normal(key, (), x.dtype)

    found = {
        mode: cv.evaluate(
            fit,
            lambda model, x: jnp.full(len(x), model),
            minus_mean,
            *small(),
            folds=np.arange(40) % 4,
            settings={"scale": jnp.array([1.0, 2.0])},
            key=jax.random.key(0),
            mode=mode,
        ).test_score
        for mode in ("program", "loop")
    }
    np.testing.assert_allclose(found["program"], found["loop"], rtol=1e-6)  # a mean of equals
    np.testing.assert_allclose(found["loop"][1], 2 * found["loop"][0], rtol=1e-6)
    assert len(set(found["loop"][0].tolist())) == 4


def test_failures_are_kept_and_explained():
    x, y = small()

    def fit(x, y, *, alpha, sample_weight=None):
        if not isinstance(alpha, jax.core.Tracer) and alpha > 5:
            raise ValueError("alpha is too large")
        return ridge(x, y, alpha=jnp.where(alpha < 0, jnp.nan, alpha), sample_weight=sample_weight)

    run = functools.partial(cv.evaluate, fit, line, fraction, x, y, folds=np.arange(40) % 4)
    alphas = jnp.array([-1.0, 1.0, 10.0])
    program, loop = (run(settings={"alpha": alphas}, mode=mode) for mode in ("program", "loop"))
    assert program.failed.all(axis=1).tolist() == [True, False, False]
    assert loop.failed.all(axis=1).tolist() == [True, False, True]
    assert np.isnan(np.asarray(loop.test_score)).tolist() == np.asarray(loop.failed).tolist()
    assert len(loop.failures) == 8
    assert loop.failures[0][:2] == (0, 0)
    assert "no number" in loop.failures[0].reason
    assert loop.failures[-1] == (2, 3, "ValueError: alpha is too large")
    assert int(cv.select(loop)) == 1
    with pytest.raises(ValueError, match="alpha is too large"):  # all of them: an error
        run(settings={"alpha": alphas[2:]}, mode="loop")
    broken = run(settings={"alpha": alphas[:1]}, mode="program")
    with pytest.raises(ValueError, match="failed in no fold"):
        cv.select(broken)
    assert jax.jit(cv.select)(broken) == -1
    # A class that is none has no accuracy either: a covariance that is singular, for example.
    wine = datasets.load("wine")
    flat = np.repeat(wine.x[:, :1], 2, axis=1)
    singular = cv.evaluate(
        functools.partial(gaussian.fit, num_classes=3),
        gaussian.predict,
        metrics.accuracy,
        flat,
        wine.y,
        folds=np.arange(len(flat)) % 2,
        batch_folds=1,
    )
    assert singular.failed.all()


def test_a_failed_model_is_no_start():
    def fit(x, y, *, scale, sample_weight=None, start=None):
        return scale + (jnp.zeros_like(scale) if start is None else start)

    found = [
        cv.evaluate(
            fit,
            lambda model, x: jnp.full(len(x), model),
            minus_mean,
            *small(),
            folds=np.arange(40) % 2,
            settings={"scale": jnp.array([jnp.nan, 1.0, jnp.nan, 1.0])},
            warm_start=True,
            mode=mode,
        ).test_score[:, 0]
        for mode in ("program", "loop")
    ]
    for scores in found:
        np.testing.assert_array_equal(scores, [np.nan, -1, np.nan, -2])


# Under transformations


def test_compiled_once_and_under_transformations(run, base):
    x, y = small()
    traces = 0

    def counted(x, y, *, alpha, scale, sample_weight=None):
        nonlocal traces
        traces += 1
        return ridge(x, y * scale, alpha=alpha, sample_weight=sample_weight)

    again = functools.partial(cv.evaluate, predict=line, score=cv.negated(metrics.rmse), x=x)
    for alphas in ([1.0, 2.0], [3.0, 4.0]):
        for seed in (0, 1):  # a new partial, other folds, other values: the same program
            again(
                functools.partial(counted, scale=1.0),
                y=y + np.float32(seed),
                folds=cv.k_fold(jax.random.key(seed), 40, num_folds=4),
                settings={"alpha": jnp.array(alphas)},
            )
    assert traces == 1

    fold = cv.k_fold(None, 40, num_folds=4)

    @jax.jit
    def inside(y, fold):
        return run.func(*run.args[:4], y, **{**run.keywords, "folds": fold, "num_folds": 4})

    jitted = inside(y, fold)
    np.testing.assert_allclose(jitted.test_score, base.test_score, rtol=1e-5)  # float32
    targets = np.stack([y, 2 - 3 * y, np.square(y)])
    batch = jax.vmap(inside, (0, None))(targets, fold)
    for i in range(3):
        one = inside(targets[i], fold)
        np.testing.assert_allclose(batch.test_score[i], one.test_score, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="concrete for a loop"):
        jax.jit(lambda y: run.func(*run.args[:4], y, folds=fold, mode="loop"))(y)


def test_gradient_with_respect_to_a_setting(x64):
    x, y = (a.astype(np.float64) for a in small())

    @jax.jit
    def score(alpha):
        found = cv.evaluate(
            ridge,
            line,
            fraction,
            x,
            y,
            folds=np.arange(40) % 4,
            settings={"alpha": jnp.exp(alpha)[None]},
        )
        return cv.mean_score(found)[0]

    at, step = jnp.log(3.0), 1e-5
    expected = (score(at + step) - score(at - step)) / (2 * step)
    # A central difference: step^2 of truncation, 1e-16 / step of rounding
    np.testing.assert_allclose(jax.grad(score)(at), expected, rtol=1e-6, atol=1e-9)


# What is made of the scores


def evaluation(scores, num_folds=None):
    scores = jnp.asarray(scores, float)
    return cv.Evaluation(scores, None, jnp.isnan(scores), num_folds or scores.shape[1], "loop")


def test_means_errors_and_choices():
    found = evaluation([[0.0, 1.0, 2.0], [4.0, 5.0, 9.0], [6.0, 6.0, 7.0], [9.0, 9.0, np.nan]])
    np.testing.assert_allclose(cv.mean_score(found)[:3], [1, 6, 19 / 3], rtol=1e-6)
    np.testing.assert_allclose(cv.standard_error(found)[0], np.sqrt(1 / 3), rtol=1e-6)
    assert int(cv.select(found)) == 2  # the last is higher, but has failed
    assert int(cv.select(found, rule="one_standard_error")) == 1  # 6 >= 6.33 - 0.33
    assert int(jax.jit(functools.partial(cv.select, rule="best"))(found)) == 2
    # Two repeats of three folds are no more data than three folds.
    one, two = evaluation([[1.0, 2.0, 3.0]]), evaluation([[1.0, 2.0, 3.0] * 2], 3)
    ratio = cv.standard_error(two) / cv.standard_error(one)
    np.testing.assert_allclose(ratio, np.sqrt((4 / 5) / (2 / 2)), rtol=1e-6)


def test_refit_uses_all_rows():
    x, y = small()
    options = {"settings": {"alpha": STRENGTHS.astype(np.float32)}, "prepare": PREPARE}
    final = cv.refit(ridge, x, y, index=jnp.int32(2), **options)
    peer = make_pipeline(StandardScaler(), Ridge(alpha=0.1)).fit(x, y)
    ours = line(final.model, scaling.apply(final.state, x))
    np.testing.assert_allclose(ours, peer.predict(x), rtol=1e-4, atol=1e-5)  # float32
    path = cv.refit(
        linear_regression.ridge_path,
        x,
        y,
        settings={"ridges": STRENGTHS},
        index=2,
        prepare=PREPARE,
        path=True,
    )
    np.testing.assert_allclose(path.model.coef, final.model.coef, rtol=1e-4)
    weight = (np.arange(40) < 30).astype(np.float32)
    less = cv.refit(ridge, x, y, sample_weight=weight)
    np.testing.assert_allclose(less.model.coef, ridge(x[:30], y[:30]).coef, rtol=1e-4)
    assert less.state is None
    drawn = cv.refit(lambda key, x, y: key, x, y, key=jax.random.key(5))
    assert drawn.model == jax.random.key(5)


def test_nested_is_a_choice_within_each_fold():
    x, y = small()
    fold = cv.k_fold(jax.random.key(0), 40, num_folds=4)
    alphas = jnp.array([1000.0, 10.0, 0.1])
    run = functools.partial(cv.evaluate, ridge, line, fraction, settings={"alpha": alphas})
    for mode in ("program", "loop"):
        found = cv.nested(
            ridge, line, fraction, x, y, folds=fold, settings={"alpha": alphas}, mode=mode
        )
        for k in range(4):
            rest = np.asarray(fold) != k
            # The other folds by hand, renumbered 0..2
            inner = np.unique(np.asarray(fold)[rest], return_inverse=True)[1]
            choice = int(cv.select(run(x[rest], y[rest], folds=inner)))
            assert int(found.chosen[k]) == choice
            peer = Ridge(alpha=float(alphas[choice])).fit(x[rest], y[rest])
            expected = r2_score(y[~rest], peer.predict(x[~rest]))
            np.testing.assert_allclose(found.test_score[k], expected, rtol=1e-4)  # float32


def test_out_of_fold_predictions():
    x, y = small()
    fold = np.asarray(cv.k_fold(jax.random.key(0), 40, num_folds=4))
    peer = make_pipeline(StandardScaler(), Ridge(alpha=1.0))
    split = model_selection.PredefinedSplit(fold)
    theirs = model_selection.cross_val_predict(peer, x, y, cv=split)
    for options in ({}, {"mode": "loop"}, {"batch_folds": 1}):
        ours = cv.out_of_fold(ridge, line, x, y, folds=fold, prepare=PREPARE, **options)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)  # float32
    # Rows of weight 0 take no part in a fit, and are predicted all the same.
    weight = (np.arange(40) % 5 > 0).astype(np.float32)
    both = [
        cv.out_of_fold(ridge, line, x, y, folds=fold, sample_weight=weight, mode=mode)
        for mode in ("program", "loop")
    ]
    np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-5)
    assert both[0].shape == (40,)
    for mode in ("program", "loop"):
        with pytest.raises(ValueError, match="predict must return one output for each row"):
            cv.out_of_fold(ridge, lambda model, x: line(model, x)[1:], x, y, folds=fold, mode=mode)


@pytest.mark.parametrize("penalty", [0.0, 5.0])
def test_leave_one_out_from_one_fit(penalty, x64):
    x, y = (a.astype(np.float64) for a in small())
    fit = functools.partial(linear_regression.fit, ridge=penalty, solver="normal")
    smoother = bias_variance.linear_smoother(fit, linear_regression.predict, x, x)
    short = cv.leave_one_out_predictions(y, smoother @ y, jnp.diagonal(smoother))
    long = cv.out_of_fold(fit, linear_regression.predict, x, y, folds=cv.leave_one_out(40))
    np.testing.assert_allclose(short, long, rtol=1e-9, atol=1e-11)  # condition numbers below 100
    peer = Ridge(alpha=penalty) if penalty else LinearRegression()
    split = model_selection.LeaveOneOut()
    theirs = model_selection.cross_val_predict(peer, x, y, cv=split)
    np.testing.assert_allclose(short, theirs, rtol=1e-9, atol=1e-11)
    alone = cv.leave_one_out_predictions([1.0, 2.0], [1.0, 2.0], [1.0, 0.5])
    assert np.isnan(alone[0])
    assert alone[1] == 2


# Bad input


BAD = {
    "more folds than rows": (
        lambda: cv.k_fold(None, 3, num_folds=4),
        ValueError,
        "num_folds must be at most the 3 rows, got 4",
    ),
    "one fold": (lambda: cv.k_fold(None, 3, num_folds=1), ValueError, "at least 2, got 1"),
    "no integer": (lambda: cv.k_fold(None, 3, num_folds=2.0), TypeError, "must be an integer"),
    "equal repeats": (
        lambda: cv.k_fold(None, 3, num_folds=2, num_repeats=2),
        ValueError,
        "key must be given for num_repeats",
    ),
    "small class": (
        lambda: cv.stratified_k_fold(None, [0, 0, 0, 7, 7], num_folds=3),
        ValueError,
        "got 3 folds and 2 rows of class 7",
    ),
    "no class": (
        lambda: cv.stratified_k_fold(None, [0, -1, 0, -1], num_folds=2),
        ValueError,
        "labels must not be negative, got -1",
    ),
    "no labels": (
        lambda: cv.stratified_k_fold(None, [0.0, 1.0], num_folds=2),
        TypeError,
        "labels must be an integer array",
    ),
    "few groups": (
        lambda: cv.group_k_fold([1, 1, 2], num_folds=3),
        ValueError,
        "at most the 2 groups, got 3",
    ),
    "traced groups": (
        lambda: jax.jit(lambda g: cv.group_k_fold(g, num_folds=2))(jnp.arange(3)),
        TypeError,
        "groups must be concrete",
    ),
    "one row": (lambda: cv.leave_one_out(1), ValueError, "num_rows must be at least 2"),
    "shape of folds": (
        lambda: call(folds=np.arange(39) % 2),
        ValueError,
        r"folds must have shape \(40,\) or \(r, 40\), got \(39,\)",
    ),
    "empty fold": (
        lambda: call(folds=2 * (np.arange(40) % 2)),
        ValueError,
        "got none in fold 1 of 0..2",
    ),
    "empty by weight": (
        lambda: call(sample_weight=(np.arange(40) % 2).astype(float)),
        ValueError,
        "positive weight, got none in fold 0 of 0..1",
    ),
    "no fold": (
        lambda: call(folds=np.arange(40) % 3, num_folds=2),
        ValueError,
        r"folds must be in 0..1 \(2 classes\), got 2",
    ),
    "only one fold": (lambda: call(folds=np.zeros(40, int)), ValueError, "two folds 0..K-1 at"),
    "fit": (lambda: call(fit=3), TypeError, "fit must be callable, got 3"),
    "predict": (lambda: call(predict=None), TypeError, "predict must be callable, got None"),
    "score": (lambda: call(score="r2"), TypeError, "score must be callable, got 'r2'"),
    "prepare": (lambda: call(prepare=scaling.apply), TypeError, "prepare must be two functions"),
    "rows": (lambda: call(y=np.zeros(39)), ValueError, "x and y must have as many rows"),
    "not finite": (
        lambda: call(x=np.where(np.arange(120).reshape(40, 3) == 7, np.inf, 0)),
        ValueError,
        "x must be finite, got inf in row 2, column 1",
    ),
    "weights": (
        lambda: call(sample_weight=-np.ones(40)),
        ValueError,
        "sample_weight must not be negative",
    ),
    "shape of weights": (
        lambda: call(sample_weight=np.ones(4)),
        ValueError,
        r"sample_weight must have shape \(40,\)",
    ),
    "settings": (lambda: call(settings=[1.0]), TypeError, "settings must map names to values"),
    "one value": (
        lambda: call(settings={"alpha": 1.0}),
        ValueError,
        "settings\\['alpha'\\] must be an array or a list",
    ),
    "lengths": (
        lambda: call(settings={"alpha": [1.0], "beta": [1.0, 2.0]}),
        ValueError,
        "as many values each, at least one, got {'alpha': 1, 'beta': 2}",
    ),
    "a list in a program": (
        lambda: call(settings={"alpha": [1.0]}, mode="program"),
        ValueError,
        "mode must be 'loop', got 'program': settings are lists",
    ),
    "no weights in a program": (
        lambda: call(fit=lambda x, y: 0, mode="program"),
        ValueError,
        "fit takes no sample_weight",
    ),
    "mode": (lambda: call(mode="fast"), ValueError, "mode must be one of"),
    "key": (lambda: call(fit=lambda key, x, y: 0), ValueError, "key must be given, since fit"),
    "start": (lambda: call(warm_start=True), TypeError, "fit must take start"),
    "path without settings": (lambda: call(path=True), ValueError, "settings must be given"),
    "batch": (lambda: call(batch_folds=0), ValueError, "batch_folds must be at least 1"),
    "no scalar": (
        lambda: call(score=lambda outputs, y, sample_weight=None: outputs),
        ValueError,
        r"score must return a scalar, got shape \(40,\)",
    ),
    "rule": (lambda: cv.select(evaluation([[1.0]]), rule="two"), ValueError, "rule must be one of"),
    "index": (
        lambda: cv.refit(ridge, *small(), settings={"alpha": STRENGTHS}, index=3),
        ValueError,
        r"index must be in \[0, 2\], got 3",
    ),
    "two folds to nest": (
        lambda: cv.nested(
            ridge,
            line,
            fraction,
            *small(),
            folds=np.arange(40) % 2,
            settings={"alpha": jnp.ones(1)},
        ),
        ValueError,
        "folds must number at least three, got 2",
    ),
    "leverage": (
        lambda: cv.leave_one_out_predictions([1.0], [1.0], [1.0, 2.0]),
        ValueError,
        "y, fitted and leverage must have one shape",
    ),
}


def call(fit=ridge, predict=line, score=fraction, **options):
    x, y = small()
    options = {"x": x, "y": y, "folds": np.arange(40) % 2, **options}
    return cv.evaluate(fit, predict, score, **options)


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case):
    attempt, error, message = BAD[case]
    with pytest.raises(error, match=message):
        attempt()


# The demo


@pytest.fixture(scope="module")
def result():
    return demo.run(jax.random.key(0), quick=True)


def test_the_demo_shows_what_the_page_says(result):
    means, seen = cv.mean_score(result.choice), result.choice.train_score.mean(axis=1)
    assert (np.diff(seen) > 0).all()  # less penalty, a better fit to the rows fitted
    assert means[result.best] > means[-1] + 0.04
    assert result.simplest < result.best
    error = cv.standard_error(result.choice)[result.best]
    assert means[result.simplest] >= means[result.best] - error
    true, estimate = result.true_error.mean(), result.estimate.mean(axis=1)
    assert result.folds == (2, 5, 40)
    assert estimate[0] > 1.5 * true  # half the rows, many of their parameters lost
    assert 1.05 * true < estimate[1] < 1.3 * true
    # 200 subsets whose estimates scatter by a quarter: a standard error of 2 %
    np.testing.assert_allclose(estimate[2], true, rtol=0.06)
    outside, inside = result.accuracy.mean(axis=1)
    assert outside[0] > 0.6
    assert (outside[3:] > 0.9).all()
    assert (np.abs(inside - 0.5) < 0.12).all()  # 10 data sets of 50 rows: 2.2 % each


def test_the_shortcut_of_the_demo_is_leave_one_out(result):
    data = demo.problem()
    x, y = data.x[:30], data.y[:30]
    rows = np.arange(30)[None]
    short, _ = demo._leave_one_out(data.x, data.y, rows, np.arange(30, 60)[None])
    peer = model_selection.cross_val_predict(
        LinearRegression(), x, y, cv=model_selection.LeaveOneOut()
    )
    # float32, and features that nearly follow from one another
    np.testing.assert_allclose(short[0], np.square(y - peer).mean(), rtol=1e-2)


def test_the_demo_tells_and_draws(result):
    import matplotlib.pyplot as plt

    text = tables.text(demo.tables(result))
    assert "chosen in each fold" in text
    assert max(map(len, text.splitlines())) <= 80
    figure = demo.plot(result)
    assert len(figure.axes) == 3
    plt.close(figure)
