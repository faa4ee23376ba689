"""Metrics against scikit-learn, against counts by hand, and batch by batch."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as peer
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve as peer_calibration_curve

from mlnotes_jax.foundations import losses
from mlnotes_jax.generalization import metrics

NAN = np.nan


def rows(seed=0, n=60, k=3, dtype=np.float64):
    """Labels, guesses, probabilities with ties, and weights of which some are 0."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    guesses = np.where(rng.uniform(size=n) < 0.6, labels, rng.integers(0, k, n))
    p = rng.uniform(0.02, 1, (n, k))
    p = np.round(p / p.sum(axis=1, keepdims=True), 2)  # two digits: many ties
    p[:, -1] = 1 - p[:, :-1].sum(axis=1)
    weight = np.where(rng.uniform(size=n) < 0.2, 0, rng.uniform(0.1, 3, n))
    return labels, guesses, p.astype(dtype), weight.astype(dtype)


def same(ours, theirs):
    # Some sixty additions of numbers of order 1, 1e-16 each
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


# Closed forms


def test_counts_by_hand():
    matrix = metrics.confusion_matrix([1, 1, 0, 1, 0], [1, 0, 0, 1, 1], num_classes=2)
    assert matrix.dtype == jnp.int32
    assert matrix.tolist() == [[1, 1], [1, 2]]
    scores = metrics.precision_recall_f1(matrix, average="binary")
    np.testing.assert_allclose([*scores[:3]], [2 / 3, 2 / 3, 2 / 3], rtol=1e-6)
    assert metrics.accuracy([1, 1, 0, 1, 0], [1, 0, 0, 1, 1]) == 0.6
    assert metrics.accuracy([[[0.0, 1.0], [1.0, 0.0]]], [[1, 1]]) == 0.5  # rows of any shape


def test_area_is_the_share_of_pairs():
    labels, _, p, weight = rows()
    score, positive = p[:, 0].astype(np.float32), labels == 0
    ahead = score[positive][:, None] - score[~positive][None]
    won = (ahead > 0) + 0.5 * (ahead == 0)
    assert (ahead == 0).sum() > 10
    np.testing.assert_allclose(metrics.roc_auc(score, positive), won.mean(), rtol=1e-6)
    both = weight[positive][:, None] * weight[~positive][None]
    np.testing.assert_allclose(
        metrics.roc_auc(score, positive, sample_weight=weight.astype(np.float32)),
        (both * won).sum() / both.sum(),
        rtol=1e-6,
    )


def test_curves_have_one_point_for_each_row():
    curve = metrics.roc_curve([0.2, 0.7, 0.7, 0.9, NAN], [0, 1, 0, 1, 7], mask=[True] * 4 + [False])
    assert curve.thresholds.tolist()[3:] == [np.float32(0.7), np.float32(0.2), -np.inf]
    assert curve.thresholds[0] == np.inf
    assert curve.false_positive_rate.tolist() == [0, 0, 0.5, 0.5, 1, 1]
    assert curve.true_positive_rate.tolist() == [0, 0.5, 1, 1, 1, 1]


def test_calibration_by_a_loop():
    labels, _, p, weight = rows(n=200)
    prob, happened = p[:, 1].astype(np.float32), labels == 1
    weight = weight.astype(np.float32)
    curve = metrics.calibration_curve(prob, happened, num_bins=8, sample_weight=weight)
    error = 0.0
    for m in range(8):
        inside = (prob > m / 8) & (prob <= (m + 1) / 8)
        w = weight[inside]
        assert np.isclose(curve.weight[m], w.sum(), rtol=1e-5)
        if not w.sum():
            assert np.isnan(curve.frequency[m])
            continue
        gap = abs(w @ prob[inside] - w @ happened[inside])
        error += gap / weight.sum()
        assert np.isclose(curve.frequency[m], w @ happened[inside] / w.sum(), atol=1e-6)
    assert np.isclose(metrics.expected_calibration_error(curve), error, atol=1e-6)


# The peer


@pytest.mark.parametrize("weighted", [False, True])
def test_classes_equal_sklearn(weighted, x64):
    labels, guesses, _, weight = rows()
    mine = {"sample_weight": weight} if weighted else {}
    same(metrics.accuracy(guesses, labels, **mine), peer.accuracy_score(labels, guesses, **mine))
    matrix = metrics.confusion_matrix(guesses, labels, num_classes=4, **mine)
    same(matrix, peer.confusion_matrix(labels, guesses, labels=range(4), **mine))
    for average in (None, "macro", "micro", "weighted"):
        for zero in (0.0, 1.0, NAN):
            theirs = peer.precision_recall_fscore_support(
                labels,
                guesses,
                labels=range(4),
                average=average,
                zero_division=zero,
                beta=2,
                **mine,
            )
            ours = metrics.precision_recall_f1(matrix, average=average, zero_division=zero, beta=2)
            for a, b in zip(ours[:3], theirs[:3], strict=True):
                same(a, b)
    binary = labels % 2, guesses % 2
    for ours, theirs in (
        (metrics.precision, peer.precision_score),
        (metrics.recall, peer.recall_score),
        (metrics.f1, peer.f1_score),
    ):
        same(ours(binary[1], binary[0], **mine), theirs(*binary, **mine))


@pytest.mark.parametrize("weighted", [False, True])
def test_scores_equal_sklearn(weighted, x64):
    labels, _, p, weight = rows()
    mine = {"sample_weight": weight} if weighted else {}
    score, positive = p[:, 1], (labels == 1).astype(int)
    curve = metrics.roc_curve(score, positive, **mine)
    theirs = peer.roc_curve(positive, score, drop_intermediate=False, **mine)
    # Ours repeats the point of a tie for each of its rows, and the last for rows that do not count.
    thresholds = np.asarray(curve.thresholds)
    once = np.append(thresholds[1:] != thresholds[:-1], True) & (thresholds > -np.inf)
    for a, b in zip(curve, theirs, strict=True):
        same(np.asarray(a)[once], b)
    curve = metrics.precision_recall_curve(score, positive, **mine)
    theirs = peer.precision_recall_curve(positive, score, **mine)
    same(np.asarray(curve.precision)[once], theirs[0][::-1])
    same(np.asarray(curve.recall)[once], theirs[1][::-1])
    same(metrics.roc_auc(score, positive, **mine), peer.roc_auc_score(positive, score, **mine))
    same(
        metrics.average_precision(score, positive, **mine),
        peer.average_precision_score(positive, score, **mine),
    )
    for average in ("macro", "weighted", None):
        same(
            metrics.roc_auc(p, labels, average=average, **mine),
            peer.roc_auc_score(labels, p, multi_class="ovr", average=average, **mine),
        )
    if not weighted:  # scikit-learn takes no weights for pairs of classes
        for average in ("macro", "weighted"):
            same(
                metrics.roc_auc(p, labels, multiclass="one_vs_one", average=average),
                peer.roc_auc_score(labels, p, multi_class="ovo", average=average),
            )


@pytest.mark.parametrize("weighted", [False, True])
def test_probabilities_equal_sklearn(weighted, x64):
    labels, _, p, weight = rows()
    mine = {"sample_weight": weight} if weighted else {}
    same(metrics.log_loss(p, labels, **mine), peer.log_loss(labels, p, **mine))
    binary = (labels == 2).astype(int)
    same(metrics.log_loss(p[:, 2], binary, **mine), peer.log_loss(binary, p[:, 2], **mine))
    same(
        metrics.brier_score(p[:, 2], binary, **mine), peer.brier_score_loss(binary, p[:, 2], **mine)
    )
    two = np.stack([1 - p[:, 2], p[:, 2]], axis=1)
    same(metrics.brier_score(two, binary), 2 * peer.brier_score_loss(binary, p[:, 2]))
    own = np.eye(3)[labels]
    squares = np.square(p - own).sum(axis=1)
    same(
        metrics.brier_score(p, labels, **mine),
        np.average(squares, weights=mine.get("sample_weight")),
    )
    # From logits the same numbers come out of the softmax.
    logits = np.log(p)
    same(
        metrics.log_loss(logits, labels, from_logits=True, **mine),
        metrics.log_loss(p, labels, **mine),
    )
    odds = np.log(p[:, 2] / (1 - p[:, 2]))
    same(
        metrics.log_loss(odds, binary, from_logits=True, **mine),
        metrics.log_loss(p[:, 2], binary, **mine),
    )


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_calibration_equals_sklearn(strategy, x64):
    labels, _, p, _ = rows(n=101)
    happened = (labels == 0).astype(int)
    curve = metrics.calibration_curve(p[:, 0], happened, num_bins=10, strategy=strategy)
    frequency, mean = peer_calibration_curve(happened, p[:, 0], n_bins=10, strategy=strategy)
    filled = np.asarray(curve.weight) > 0
    same(np.asarray(curve.frequency)[filled], frequency)
    same(np.asarray(curve.mean_probability)[filled], mean)


@pytest.mark.parametrize("weighted", [False, True])
def test_regression_equals_sklearn(weighted, x64):
    rng = np.random.default_rng(1)
    y = 3 + rng.normal(size=50)
    y_hat = y + 0.3 * rng.normal(size=50) + 0.2
    weight = rows(n=50)[3]
    mine = {"sample_weight": weight} if weighted else {}
    ours = metrics.regression_scores(y_hat, y, **mine)
    same(ours.mae, peer.mean_absolute_error(y, y_hat, **mine))
    same(ours.mse, peer.mean_squared_error(y, y_hat, **mine))
    same(metrics.rmse(y_hat, y, **mine), peer.root_mean_squared_error(y, y_hat, **mine))
    same(metrics.r2(y_hat, y, **mine), peer.r2_score(y, y_hat, **mine))
    same(
        metrics.explained_variance(y_hat, y, **mine),
        peer.explained_variance_score(y, y_hat, **mine),
    )
    # Of fifty times 0.1 the mean is 0.1 here (the peer's is a rounding beside it).
    constant = np.full(50, 0.1)
    assert metrics.r2(y_hat, constant) == -np.inf
    assert np.isnan(metrics.r2(constant, constant))
    with np.errstate(divide="ignore"):
        assert peer.r2_score(np.ones(50), y_hat, force_finite=False) == -np.inf
    assert metrics.r2(y_hat, np.ones(50)) == -np.inf


def test_float32_is_as_good_as_its_digits():
    labels, _, p, weight = rows(n=20_000)
    single, light = p.astype(np.float32), weight.astype(np.float32)
    positive = (labels == 1).astype(int)
    # 2e4 additions: the error of a mean grows more slowly than sqrt(n), 1e2, times 6e-8
    tolerance = {"rtol": 4e-6}
    for ours, theirs in (
        (metrics.roc_auc(single[:, 1], positive, sample_weight=light),
         peer.roc_auc_score(positive, p[:, 1], sample_weight=weight)),
        (metrics.average_precision(single[:, 1], positive),
         peer.average_precision_score(positive, p[:, 1])),
    ):  # fmt: skip
        np.testing.assert_allclose(ours, theirs, **tolerance)


# Rows that do not count


FUNCTIONS = {
    "accuracy": lambda s, y, **o: metrics.accuracy(s > 0.5, y, **o),
    "f1": lambda s, y, **o: metrics.f1(s > 0.5, y, **o),
    "roc_auc": metrics.roc_auc,
    "average_precision": metrics.average_precision,
    "log_loss": metrics.log_loss,
    "brier_score": metrics.brier_score,
    "calibration": lambda s, y, **o: metrics.expected_calibration_error(
        metrics.calibration_curve(s, y, num_bins=4, strategy="quantile", **o)
    ),
    "r2": metrics.r2,
}
COMPILED = {name: jax.jit(fn) for name, fn in FUNCTIONS.items()}


PEERS = {
    "accuracy": lambda s, y: peer.accuracy_score(y, s > 0.5),
    "f1": lambda s, y: peer.f1_score(y, s > 0.5),
    "roc_auc": lambda s, y: peer.roc_auc_score(y, s),
    "average_precision": lambda s, y: peer.average_precision_score(y, s),
    "log_loss": lambda s, y: peer.log_loss(y, s.astype(float)),
    "brier_score": lambda s, y: peer.brier_score_loss(y, s),
    "calibration": lambda s, y: calibration_error(s, y),
    "r2": lambda s, y: peer.r2_score(y, s),
}


def calibration_error(score, y):
    place = np.searchsorted(np.quantile(score, [0.25, 0.5, 0.75]), score)
    return sum(abs(score[place == m].sum() - y[place == m].sum()) for m in range(4)) / len(y)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_masked_rows_may_hold_anything(name):
    labels, _, p, _ = rows(n=40, dtype=np.float32)
    score, y = p[:, 1], (labels == 1).astype(np.int32)
    keep = np.arange(40) % 3 > 0
    expected = PEERS[name](score[keep], y[keep])
    junk = np.where(keep, score, np.float32(NAN)), np.where(keep, y, -5)
    # Compiled: what is not looked at cannot be checked either.
    for option in ({"mask": keep}, {"sample_weight": keep.astype(np.float32)}):
        np.testing.assert_allclose(COMPILED[name](*junk, **option), expected, rtol=1e-5)
    if name in ("roc_auc", "r2"):  # and outside of a program
        np.testing.assert_allclose(FUNCTIONS[name](*junk, mask=keep), expected, rtol=1e-5)


def test_vmap_equals_a_loop_and_compiles_once():
    labels, _, p, _ = rows(n=40, dtype=np.float32)
    score, y = p[:, 1], (labels == 1).astype(np.int32)
    folds = np.arange(40) % 4 == np.arange(4)[:, None]
    traces = 0

    @jax.jit
    def area(score, y, mask):
        nonlocal traces
        traces += 1
        return jax.vmap(lambda mask: metrics.roc_auc(score, y, mask=mask))(mask)

    together = area(score, y, folds)
    for fold, value in zip(folds, together, strict=True):
        np.testing.assert_allclose(value, metrics.roc_auc(score, y, mask=fold), rtol=1e-6)
    area(score[::-1], y, folds)
    assert traces == 1


# What has no answer


def test_nothing_to_count_is_nan():
    none = np.zeros(40, bool)
    for name, fn in COMPILED.items():
        answer = fn(np.full(40, 0.5, np.float32), np.ones(40, np.int32), mask=none)
        assert answer == 0 if name == "f1" else np.isnan(answer), name
    p = np.array([0.2, 0.6, 0.9], np.float32)
    assert np.isnan(metrics.roc_auc(p, [1, 1, 1]))
    assert np.isnan(metrics.precision_recall_curve(p, [0, 0, 0]).recall[1:]).all()
    assert metrics.log_loss([0.0, 0.6, 0.9], [1, 1, 1]) == np.inf
    assert metrics.f1([0, 0, 0], [0, 0, 0]) == 0
    assert metrics.f1([0, 0, 0], [0, 0, 0], zero_division=1.0) == 1


def test_what_cannot_be_checked_is_spoilt():
    keep = np.ones(40, bool)
    good, y = np.full(40, 0.5, np.float32), np.ones(40, np.int32)
    bad_score, bad_label = good.copy(), y.copy()
    bad_score[1], bad_label[1] = NAN, 2
    for s, truth in ((good, bad_label), (bad_score, y)):
        for name in ("roc_auc", "log_loss", "brier_score", "calibration", "average_precision"):
            assert np.isnan(COMPILED[name](s, truth, mask=keep)), name
    counts = jax.jit(partial(metrics.confusion_matrix, num_classes=2))
    assert counts(jnp.array([0, 1]), jnp.array([0, 2])).tolist() == [[-1, -1], [-1, -1]]
    assert np.isnan(jax.jit(metrics.f1)(jnp.array([0, 1]), jnp.array([0, 2])))
    metric = metrics.streaming_confusion_matrix(2)
    state = jax.jit(metric.update)(metric.init(), jnp.array([0, 1]), jnp.array([0, 2]))
    for _ in range(3):  # later batches do not hide it
        state = metric.update(state, [0, 1], [0, 1])
    assert (metric.value(state) == -1).all()
    diverged = jnp.array([[jnp.nan, 1.0], [0.0, 1.0]])
    assert metrics.accuracy(diverged, [1, 1]) == 0.5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.accuracy([0.5, 0.2], [0, 1]), ValueError, "outputs must be integer"),
        (lambda: metrics.accuracy([0, 1], [0.0, 1.0]), TypeError, "labels must be an integer"),
        (lambda: metrics.accuracy([0, 1, 1], [0, 1]), ValueError, "must have one shape"),
        (lambda: metrics.accuracy([0, 1], [0, 1], mask=[1, 0]), TypeError, "mask must be a Bool"),
        (lambda: metrics.accuracy([], np.zeros(0, int)), ValueError, "labels must not be empty"),
        (lambda: metrics.accuracy([0], [0], sample_weight=[-1.0]), ValueError, "not be negative"),
        (lambda: metrics.confusion_matrix([0, 3], [0, 1], num_classes=2), ValueError,
         "outputs must be in 0..1 (2 classes), got 3 at index 1"),
        (lambda: metrics.precision_recall_f1([[1, 2]]), ValueError, "matrix must be square"),
        (lambda: metrics.precision_recall_f1(np.eye(3), average="binary"), ValueError,
         "two classes"),
        (lambda: metrics.roc_curve([0.1, NAN], [0, 1]), ValueError, "scores must be finite"),
        (lambda: metrics.roc_auc([0.1, 0.2], [0, 2]), ValueError, "got 2 at index 1"),
        (lambda: metrics.roc_auc([0.1, 0.2], [0, 1], average="micro"), ValueError,
         "average must be one of"),
        (lambda: metrics.log_loss([0.1, 1.2], [0, 1]), ValueError, "must be in [0, 1], got 1.2"),
        (lambda: metrics.log_loss([[0.1, 0.2]], [0]), ValueError, "must sum to 1 in every row"),
        (lambda: metrics.calibration_curve([0.1], [0], num_bins=0), ValueError, "at least 1"),
        (lambda: metrics.rmse([1.0, 2.0], [1.0]), ValueError, "must have one shape"),
        (lambda: metrics.streaming_mean(3), TypeError, "fn must be a function"),
        (lambda: metrics.streaming_confusion_matrix(2).update(
            metrics.streaming_confusion_matrix(2).init(), [0], [0], sample_weight=[1.0]),
         ValueError, "weighted=True"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


# Properties

pairs = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans()), min_size=8, max_size=8
)


@settings(deadline=None, max_examples=40)
@given(pairs)
def test_the_area_does_not_depend_on_the_scale_and_turns_with_the_sign(drawn):
    score = np.array([s for s, _ in drawn], np.float32)
    y = np.array([positive for _, positive in drawn], np.int32)
    area = COMPILED["roc_auc"](score, y)
    ahead = np.array([s for s, p in drawn if p])[:, None] - np.array([s for s, p in drawn if not p])
    if not ahead.size:
        assert np.isnan(area)
        return
    expected = ((ahead > 0) + 0.5 * (ahead == 0)).mean()
    for other in (score, np.exp(5 * score), 3 * score - 2):
        assert abs(COMPILED["roc_auc"](other, y) - expected) < 1e-6
    assert abs(COMPILED["roc_auc"](-score, y) - (1 - expected)) < 1e-6
    assert abs(COMPILED["roc_auc"](score, 1 - y) - (1 - expected)) < 1e-6


# Gradients


def test_gradients_against_finite_differences(x64):
    labels, _, p, weight = rows(n=12)
    direction = np.random.default_rng(0).normal(size=p.shape)
    step = 1e-6

    def slope(fn, at, along):
        return (fn(at + step * along) - fn(at - step * along)) / (2 * step)

    logits, one = np.log(p), labels == 0
    for fn, at, along in (
        (lambda z: metrics.log_loss(z, labels, from_logits=True), logits, direction),
        (lambda z: metrics.brier_score(jax.nn.softmax(z), labels), logits, direction),
        (lambda w: metrics.roc_auc(p[:, 0], one, sample_weight=w), weight + 1, direction[:, 0]),
    ):
        by_hand = (jax.jit(jax.grad(fn))(at) * along).sum()
        # Rounding 1e-16 / 1e-6 and a curvature of order 1 times 1e-12
        np.testing.assert_allclose(by_hand, slope(jax.jit(fn), at, along), rtol=1e-6, atol=1e-9)
    # A probability of 0 for another class does not spoil the gradient.
    sure = jnp.array([[1.0, 0.0], [0.3, 0.7]])
    assert np.isfinite(jax.jit(jax.grad(metrics.log_loss))(sure, jnp.array([0, 1]))).all()


# Batch by batch

BATCHES = [slice(0, 18), slice(18, 36), slice(36, 54), slice(54, 60)]  # the last one is smaller


def whole_and_parts(metric, outputs, targets, **options):
    """The value of batches one after the other, and of two halves merged."""
    state, halves = metric.init(), [metric.init(), metric.init()]
    for i, part in enumerate(BATCHES):
        chosen = {name: value[part] for name, value in options.items()}
        state = metric.update(state, outputs[part], targets[part], **chosen)
        halves[i % 2] = metric.update(halves[i % 2], outputs[part], targets[part], **chosen)
    return metric.value(state), metric.value(metric.merge(*halves))


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_add_up(weighted, x64):
    labels, guesses, p, weight = rows()
    mask = np.arange(60) % 5 > 0
    mask[18:36] = False  # a batch of no rows
    options = {"sample_weight": weight, "mask": mask} if weighted else {"mask": mask}
    y, y_hat = np.random.default_rng(2).normal(size=(2, 60)) + 100
    positive = (labels == 0).astype(int)
    for metric, outputs, targets, whole in (
        (metrics.streaming_mean(metrics.accuracy), p, labels, metrics.accuracy),
        (metrics.streaming_mean(metrics.log_loss), p, labels, metrics.log_loss),
        (
            metrics.streaming_confusion_matrix(3, weighted=weighted),
            guesses,
            labels,
            partial(metrics.confusion_matrix, num_classes=3),
        ),
        (metrics.streaming_regression(), y_hat, y, metrics.regression_scores),
        (metrics.streaming_calibration(6), p[:, 0], positive,
         partial(metrics.calibration_curve, num_bins=6)),
    ):  # fmt: skip
        expected = whole(outputs, targets, **options)
        for value in whole_and_parts(metric, outputs, targets, **options):
            # As many roundings as rows; about 100 in the targets costs two digits
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11), value, expected)
    empty = metrics.streaming_mean(losses.mse)
    assert np.isnan(empty.value(empty.init()))


def test_a_mean_of_any_loss():
    y, y_hat = np.random.default_rng(3).normal(size=(2, 12, 4)).astype(np.float32)
    metric = metrics.streaming_mean(losses.mse)
    state = metric.update(metric.init(), y_hat, y)
    np.testing.assert_allclose(metric.value(state), np.square(y_hat - y).mean(), rtol=1e-6)
    with pytest.raises(ValueError, match=r"fn must return a scalar, got shape \(1, 4\)"):
        metrics.streaming_mean(lambda o, t: o - t).update(metric.init(), y_hat, y)


def test_many_batches_lose_no_digits():
    # 2^17 batches: plain float32 sums would be wrong in the third digit, and so would be sums that
    # carry what they lost but never put it back.
    values = np.tile(np.array([0.1, 0.3, 0.7], np.float32), (2**17, 1))
    weight = jnp.full(3, 4097.0)
    mean, regression = metrics.streaming_mean(lambda o, t: o.mean()), metrics.streaming_regression()

    @jax.jit
    def run(values):
        def step(states, row):
            a, b = states
            a = mean.update(a, row, row, sample_weight=weight)
            return (a, regression.update(b, row, row + row**2, sample_weight=weight)), None

        states, _ = jax.lax.scan(step, (mean.init(), regression.init()), values)
        return mean.value(states[0]), regression.value(states[1])

    average, scores = run(values)
    row = values[0].astype(float)
    np.testing.assert_allclose(average, row.mean(), rtol=2e-7)
    target, error = row + row**2, row**2
    exact = 1 - (error**2).sum() / ((target - target.mean()) ** 2).sum()
    np.testing.assert_allclose(scores.r2, exact, rtol=1e-6)
    np.testing.assert_allclose(scores.mse, (error**2).mean(), rtol=1e-6)


def test_states_of_devices_merge():
    labels, _, p, _ = rows(n=48, dtype=np.float32)
    metric = metrics.streaming_mean(metrics.log_loss)
    # What four devices would do, each with its rows
    states = jax.jit(jax.vmap(partial(metric.update, metric.init())))(
        p.reshape(4, 12, 3), labels.reshape(4, 12)
    )
    merged = metric.init()
    for i in range(4):
        merged = metric.merge(merged, jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], states))
    np.testing.assert_allclose(metric.value(merged), metrics.log_loss(p, labels), rtol=1e-6)
