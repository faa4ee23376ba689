r"""Metrics: how good predictions are, in numbers that a reader of the results can use.

Classes are judged through counts $n_{ab}$ of rows of class $a$ that were taken for $b$, scores
through pairs of rows, probabilities through their match with frequencies:

$$
\text{accuracy} = \frac{\sum_a n_{aa}}{\sum_{a,b} n_{ab}}, \qquad
\text{AUC} = P(s^+ > s^-) + \tfrac12 P(s^+ = s^-), \qquad
\text{ECE} = \sum_m \frac{W_m}{W} \left| \bar p_m - \bar y_m \right| .
$$

- Predictions first, truth second, as in the losses and in `training.loop`; scikit-learn has it
  the other way round.
- Every function takes `sample_weight` $w_i \ge 0$ and `mask` (true = counted). A row that is
  masked or weighs 0 may hold anything: it is not looked at.
- Shapes are fixed, so everything works under `jit` and `vmap`. What has no answer is NaN.
- What can be added up exactly has a `streaming_...` form: a small pytree that batches update and
  devices merge.

Mean squared and mean absolute error, and cross-entropies with soft labels, are
[losses][mlnotes_jax.foundations.losses].

Reference: Fawcett, *An introduction to ROC analysis* (Pattern Recognition Letters, 2006).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.foundations import losses
from mlnotes_jax.generalization import _ranking, _sums

__all__ = [
    "CalibrationCurve",
    "ClassScores",
    "PrecisionRecallCurve",
    "ROCCurve",
    "RegressionScores",
    "Streaming",
    "accuracy",
    "average_precision",
    "brier_score",
    "calibration_curve",
    "confusion_matrix",
    "expected_calibration_error",
    "explained_variance",
    "f1",
    "log_loss",
    "precision",
    "precision_recall_curve",
    "precision_recall_f1",
    "r2",
    "recall",
    "regression_scores",
    "rmse",
    "roc_auc",
    "roc_curve",
    "streaming_calibration",
    "streaming_confusion_matrix",
    "streaming_mean",
    "streaming_regression",
]

Average = Literal["binary", "macro", "micro", "weighted"]
Outputs = Int[ArrayLike, "*n"] | Float[ArrayLike, "*n k"]


class ClassScores(NamedTuple):
    """Precision, recall and F, of each class or averaged.

    Attributes:
        precision: Of the rows taken for the class, the share that belongs to it, shape `(k,)` or
            `()`.
        recall: Of the rows of the class, the share that was found, likewise.
        f_score: Their weighted harmonic mean, likewise.
        support: Weight of the rows of each class, shape `(k,)`, whatever the average.
    """

    precision: Float[Array, "..."]
    recall: Float[Array, "..."]
    f_score: Float[Array, "..."]
    support: Num[Array, " k"]


class ROCCurve(NamedTuple):
    """One point for each row, by falling score, and the origin before them.

    Equal scores are one threshold: all rows of a tie hold the same point. Rows that do not count
    come last, hold the point (1, 1) and have the threshold minus infinity. So the curve can be
    drawn as it is, and its length never depends on the values.

    Attributes:
        false_positive_rate: Share of the negatives with `score >= threshold`, shape `(n + 1,)`.
        true_positive_rate: Share of the positives, likewise.
        thresholds: Falling, the first is infinity, likewise.
    """

    false_positive_rate: Float[Array, " n_plus_1"]
    true_positive_rate: Float[Array, " n_plus_1"]
    thresholds: Float[Array, " n_plus_1"]


class PrecisionRecallCurve(NamedTuple):
    """One point for each row, by falling score, as in `ROCCurve`; first (precision 1, recall 0).

    Attributes:
        precision: Of the rows with `score >= threshold`, the share that is positive, shape
            `(n + 1,)`.
        recall: Of the positives, the share with `score >= threshold`, likewise.
        thresholds: Falling, the first is infinity, likewise.
    """

    precision: Float[Array, " n_plus_1"]
    recall: Float[Array, " n_plus_1"]
    thresholds: Float[Array, " n_plus_1"]


class CalibrationCurve(NamedTuple):
    """What was predicted and what happened, bin by bin.

    Attributes:
        mean_probability: Mean prediction in each bin, shape `(num_bins,)`; NaN in an empty one.
        frequency: How often it came true, likewise.
        weight: Weight of the rows in each bin, likewise.
        edges: Borders, shape `(num_bins + 1,)`. A probability on a border counts below it.
    """

    mean_probability: Float[Array, " m"]
    frequency: Float[Array, " m"]
    weight: Float[Array, " m"]
    edges: Float[Array, " m_plus_1"]


class RegressionScores(NamedTuple):
    r"""Five views of the errors $e_i = \hat y_i - y_i$, each of shape `()`.

    Attributes:
        mae: Mean absolute error, in the unit of the targets.
        mse: Mean squared error, in its square.
        rmse: Its root, in the unit of the targets.
        r2: Share of the squared distance from the mean target that is explained; 0 for the mean
            as prediction. Constant targets: minus infinity, or NaN where all errors are 0.
        explained_variance: The same after the mean error has been taken off.
    """

    mae: Float[Array, ""]
    mse: Float[Array, ""]
    rmse: Float[Array, ""]
    r2: Float[Array, ""]
    explained_variance: Float[Array, ""]


class Streaming(NamedTuple):
    """A metric that is added up: four pure functions on a state, which is a pytree of arrays.

    Sums carry what their roundings lost, so the value is that of the whole data to round-off,
    however many batches there are.

    Attributes:
        init: `init() -> state`, of no rows.
        update: `update(state, outputs, targets, *, sample_weight=None, mask=None) -> state`.
        merge: `merge(state, state) -> state`, of the rows of both: for devices, or for workers.
        value: `value(state) ->` what the metric says of all rows so far.
    """

    init: Callable[[], PyTree]
    update: Callable[..., PyTree]
    merge: Callable[[PyTree, PyTree], PyTree]
    value: Callable[[PyTree], Any]


# --- Classes --------------------------------------------------------------------------------------


def accuracy(
    outputs: Outputs,
    labels: Int[ArrayLike, "*n"],
    *,
    sample_weight: Float[ArrayLike, "*n"] | None = None,
    mask: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, ""]:
    r"""Share of rows that were given their class, $\sum_i w_i [\hat y_i = y_i] / \sum_i w_i$.

    A mean over rows, so it can be passed to `training.loop`.

    Args:
        outputs: Predicted classes, integers in the shape of `labels`; or a score for each class on
            one more, last axis, of which the largest counts (the first of equals).
        labels: True classes, any shape.
        sample_weight: $w$, not negative, the shape of `labels`.
        mask: Which rows count, the shape of `labels`.

    Returns:
        Shape `()`; NaN over no rows. A row with a NaN among its scores is counted as wrong. Under a
        transformation a label that is no class makes it NaN (where there are scores to tell).

    Raises:
        ValueError: Shapes do not fit, data are empty, or a concrete label is no class or a weight
            negative.
        TypeError: `labels` are not integers, or `mask` is not Boolean.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> print(metrics.accuracy([0, 2, 1, 1], [0, 1, 1, 1]))
        0.75
        >>> print(metrics.accuracy([[0.1, 2.0], [3.0, 1.0]], [1, 1]))
        0.5

    Reference:
        Bishop, *Pattern Recognition and Machine Learning* (2006), section 1.5.1.
    """
    return _accuracy(*_classified(outputs, labels, sample_weight, mask))


def confusion_matrix(
    outputs: Outputs,
    labels: Int[ArrayLike, "*n"],
    *,
    num_classes: int,
    sample_weight: Float[ArrayLike, "*n"] | None = None,
    mask: Bool[ArrayLike, "*n"] | None = None,
) -> Num[Array, "k k"]:
    """Count who was taken for what: entry (a, b) counts the rows of class a that were called b.

    Args:
        outputs: As for `accuracy`.
        labels: As for `accuracy`.
        num_classes: k, static.
        sample_weight: As for `accuracy`.
        mask: As for `accuracy`.

    Returns:
        True classes in the rows, predicted ones in the columns, shape `(k, k)`: int32, exact below
        2³¹ rows; with `sample_weight`, in its dtype. Under a transformation, where a label or a
        prediction that counts is no class, every entry is -1, or NaN with weights.

    Raises:
        ValueError: As for `accuracy`, or a concrete prediction is no class.
        TypeError: As for `accuracy`.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> metrics.confusion_matrix([0, 2, 1, 1], [0, 1, 1, 2], num_classes=3).tolist()
        [[1, 0, 0], [0, 1, 1], [0, 1, 0]]

    Reference:
        Fawcett (2006), section 2.
    """
    arguments = _classified(outputs, labels, sample_weight, mask, num_classes)
    return _spoil(*_confusion(*arguments, num_classes))


def precision_recall_f1(
    matrix: Num[ArrayLike, "k k"],
    *,
    average: Average | None = None,
    zero_division: Float[ArrayLike, ""] = 0.0,
    beta: Float[ArrayLike, ""] = 1.0,
) -> ClassScores:
    r"""Precision, recall and F of every class, from a confusion matrix.

    With $n_{cc}$ hits, $n_{\cdot c}$ rows called $c$ and $n_{c \cdot}$ rows of class $c$,

    $$
    P_c = \frac{n_{cc}}{n_{\cdot c}}, \qquad R_c = \frac{n_{cc}}{n_{c \cdot}}, \qquad
    F_c = \frac{(1 + \beta^2)\, n_{cc}}{\beta^2 n_{c \cdot} + n_{\cdot c}} .
    $$

    Args:
        matrix: From `confusion_matrix` or `streaming_confusion_matrix`, shape `(k, k)`.
        average: None: every class for itself. `"macro"`: the mean over classes. `"weighted"`: the
            mean weighted by `support`. `"micro"`: hits and calls added over classes first, which
            makes all three the accuracy. `"binary"`: those of class 1 of two. Static.
        zero_division: What $0/0$ is: precision of a class never called, recall of a class without
            rows, F of a class with neither. NaN leaves such a class out of the averages. Traced.
        beta: How many times as much recall matters as precision; 1 for F1. Traced.

    Returns:
        The scores.

    Raises:
        ValueError: `matrix` is not square or (where concrete) has a negative entry, `average` is
            unknown, or `"binary"` with more than two classes.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> scores = metrics.precision_recall_f1([[90, 5], [2, 3]], average="binary")
        >>> print(f"{scores.precision:.3f} {scores.recall:.3f} {scores.f_score:.3f}")
        0.375 0.600 0.462

    Reference:
        van Rijsbergen, *Information Retrieval* (1979), chapter 7.

    Note:
        scikit-learn averages over the classes that occur in the truth or the predictions; here all
        k do, as with its `labels=range(k)`. `zero_division=nan` leaves the others out.
    """
    array = jnp.asarray(matrix)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise ValueError(f"matrix must be square, got shape {array.shape}")
    _checks.not_negative("matrix", array)
    _checks.one_of("average", average, (None, "binary", "macro", "micro", "weighted"))
    if average == "binary" and len(array) != 2:
        raise ValueError(f'average="binary" needs two classes, got {len(array)}')
    beta = _checks.floating("beta", beta, ndim=0)
    _checks.not_negative("beta", beta)
    return _class_scores(
        array, _checks.floating("zero_division", zero_division, ndim=0), beta, average
    )


def precision(
    outputs: Outputs,
    labels: Int[ArrayLike, "*n"],
    *,
    num_classes: int = 2,
    average: Average | None = "binary",
    zero_division: Float[ArrayLike, ""] = 0.0,
    sample_weight: Float[ArrayLike, "*n"] | None = None,
    mask: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "..."]:
    """Of the rows that were called positive, the share that is.

    Args:
        outputs: As for `accuracy`.
        labels: As for `accuracy`.
        num_classes: k, static.
        average: As for `precision_recall_f1`; static.
        zero_division: As for `precision_recall_f1`.
        sample_weight: As for `accuracy`.
        mask: As for `accuracy`.

    Returns:
        Shape `()`, or `(k,)` without an average.

    Raises:
        ValueError: As for `confusion_matrix` and `precision_recall_f1`.
        TypeError: As for `accuracy`.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> print(f"{metrics.precision([1, 1, 0, 1], [1, 0, 0, 1]):.4f}")
        0.6667
    """
    matrix = confusion_matrix(
        outputs, labels, num_classes=num_classes, sample_weight=sample_weight, mask=mask
    )
    return precision_recall_f1(matrix, average=average, zero_division=zero_division).precision


def recall(
    outputs: Outputs,
    labels: Int[ArrayLike, "*n"],
    *,
    num_classes: int = 2,
    average: Average | None = "binary",
    zero_division: Float[ArrayLike, ""] = 0.0,
    sample_weight: Float[ArrayLike, "*n"] | None = None,
    mask: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "..."]:
    """Of the rows that are positive, the share that was found. Arguments as for `precision`.

    With `average="macro"` this is the balanced accuracy.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> print(metrics.recall([1, 1, 0, 1], [1, 0, 0, 1]))
        1.0
    """
    matrix = confusion_matrix(
        outputs, labels, num_classes=num_classes, sample_weight=sample_weight, mask=mask
    )
    return precision_recall_f1(matrix, average=average, zero_division=zero_division).recall


def f1(
    outputs: Outputs,
    labels: Int[ArrayLike, "*n"],
    *,
    num_classes: int = 2,
    average: Average | None = "binary",
    zero_division: Float[ArrayLike, ""] = 0.0,
    sample_weight: Float[ArrayLike, "*n"] | None = None,
    mask: Bool[ArrayLike, "*n"] | None = None,
) -> Float[Array, "..."]:
    """Harmonic mean of precision and recall. Arguments as for `precision`.

    It is no mean over rows: an average of batches is not that of the whole. To add batches up, use
    `streaming_confusion_matrix`.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> print(f"{metrics.f1([1, 1, 0, 1], [1, 0, 0, 1]):.4f}")
        0.8000
    """
    matrix = confusion_matrix(
        outputs, labels, num_classes=num_classes, sample_weight=sample_weight, mask=mask
    )
    return precision_recall_f1(matrix, average=average, zero_division=zero_division).f_score


# --- Scores ---------------------------------------------------------------------------------------


def roc_curve(
    scores: Float[ArrayLike, " n"],
    labels: Int[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    mask: Bool[ArrayLike, " n"] | None = None,
) -> ROCCurve:
    """Hits against false alarms, as the threshold falls.

    Args:
        scores: Higher means more likely positive, shape `(n,)`; any monotone scale.
        labels: 1 for positive, 0 for negative, shape `(n,)`.
        sample_weight: Not negative, shape `(n,)`.
        mask: Which rows count, shape `(n,)`.

    Returns:
        The curve, with n + 1 points whatever the values (see `ROCCurve`). NaN where there is no
        positive or no negative row, or under a transformation where a score is NaN or a label
        neither 0 nor 1.

    Raises:
        ValueError: Shapes do not fit, data are empty or (where concrete) not finite, or a label is
            neither 0 nor 1.
        TypeError: `labels` are not integers, or `mask` is not Boolean.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> curve = metrics.roc_curve([0.9, 0.4, 0.4, 0.1], [1, 0, 1, 0])
        >>> curve.false_positive_rate.tolist(), curve.true_positive_rate.tolist()
        ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0, 1.0])

    Reference:
        Fawcett (2006), section 5.

    Note:
        scikit-learn's `roc_curve` drops repeated points, and by default those on a straight line.
    """
    return _roc_curve(*_scored("scores", scores, labels, sample_weight, mask, ndim=1))


def roc_auc(
    scores: Float[ArrayLike, " n"] | Float[ArrayLike, "n k"],
    labels: Int[ArrayLike, " n"],
    *,
    multiclass: Literal["one_vs_rest", "one_vs_one"] = "one_vs_rest",
    average: Literal["macro", "weighted"] | None = "macro",
    sample_weight: Float[ArrayLike, " n"] | None = None,
    mask: Bool[ArrayLike, " n"] | None = None,
) -> Float[Array, "..."]:
    r"""Area under the ROC curve: how often a positive row scores higher than a negative one.

    $$
    \text{AUC} = \frac{1}{W^+ W^-} \sum_{i \in +} \sum_{j \in -} w_i w_j
    \left( [s_i > s_j] + \tfrac12 [s_i = s_j] \right)
    $$

    The sum over pairs is made by one sort, in $O(n \log n)$, and equal scores count half, exactly.

    Args:
        scores: Shape `(n,)` as for `roc_curve`; or a score for each of k classes, shape `(n, k)`.
        labels: 0 or 1, or classes 0..k-1, shape `(n,)`.
        multiclass: For `(n, k)`: each class against all others by its own score; or each class
            against each other one (Hand and Till), both scores in turn. Static.
        average: For `(n, k)`: over classes (or pairs) alike, or weighted by their rows; None for
            the classes, or the `(k, k)` pairs, themselves. Static.
        sample_weight: As for `roc_curve`.
        mask: As for `roc_curve`.

    Returns:
        Shape `()`. With k scores and no average, shape `(k,)`; or `(k, k)`, entry (a, b) being the
        probability that a row of a beats one of b in the score of a, the diagonal ½. NaN where a
        class has no rows, and as for `roc_curve`.

    Raises:
        ValueError: As for `roc_curve`, or an option is unknown.
        TypeError: As for `roc_curve`.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> print(metrics.roc_auc([0.9, 0.4, 0.4, 0.1], [1, 0, 1, 0]))  # 3.5 of 4 pairs
        0.875

    Reference:
        Hanley and McNeil, *The Meaning and Use of the Area under a ROC Curve* (Radiology, 1982);
        Hand and Till, *A Simple Generalisation of the Area Under the ROC Curve for Multiple Class
        Classification Problems* (Machine Learning, 2001).

    Note:
        scikit-learn's `roc_auc_score` takes weights for one-vs-rest only, and for k classes wants
        probabilities. A multi-class average takes about $n k^2$ operations besides k sorts.
    """
    _checks.one_of("multiclass", multiclass, ("one_vs_rest", "one_vs_one"))
    _checks.one_of("average", average, ("macro", "weighted", None))
    arguments = _scored("scores", scores, labels, sample_weight, mask)
    if arguments[0].ndim == 1:
        return _roc_auc(*arguments)
    return _averaged(*_pairs(*arguments), multiclass, average)


def precision_recall_curve(
    scores: Float[ArrayLike, " n"],
    labels: Int[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    mask: Bool[ArrayLike, " n"] | None = None,
) -> PrecisionRecallCurve:
    """Precision against recall, as the threshold falls. Arguments as for `roc_curve`.

    Returns:
        The curve, with n + 1 points whatever the values. Without positive rows the recall is NaN.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> curve = metrics.precision_recall_curve([0.9, 0.4, 0.3, 0.1], [1, 0, 1, 0])
        >>> curve.recall.tolist()
        [0.0, 0.5, 0.5, 1.0, 1.0]

    Reference:
        Davis and Goadrich, *The Relationship Between Precision-Recall and ROC Curves* (ICML 2006).

    Note:
        scikit-learn orders the points the other way round, and sets the recall to 1 where there
        are no positives.
    """
    return _precision_recall(*_scored("scores", scores, labels, sample_weight, mask, ndim=1))[0]


def average_precision(
    scores: Float[ArrayLike, " n"],
    labels: Int[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    mask: Bool[ArrayLike, " n"] | None = None,
) -> Float[Array, ""]:
    r"""Mean precision at the thresholds that find a positive, $\sum_i (R_i - R_{i-1})\, P_i$.

    The step area under the precision-recall curve, without interpolation. Arguments as for
    `roc_curve`. The expected value of a random order is about the share of positives.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> print(f"{metrics.average_precision([0.9, 0.4, 0.3, 0.1], [1, 0, 1, 0]):.4f}")
        0.8333

    Reference:
        Davis and Goadrich (2006).

    Note:
        The same as scikit-learn's `average_precision_score`, which says 0 where there are no
        positives; here that is NaN.
    """
    return _precision_recall(*_scored("scores", scores, labels, sample_weight, mask, ndim=1))[1]


# --- Probabilities --------------------------------------------------------------------------------


def log_loss(
    outputs: Float[ArrayLike, " n"] | Float[ArrayLike, "n k"],
    labels: Int[ArrayLike, " n"],
    *,
    from_logits: bool = False,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    mask: Bool[ArrayLike, " n"] | None = None,
) -> Float[Array, ""]:
    r"""Mean of $-\ln p_i(y_i)$, in nats: the cross-entropy of the losses, by its name as a metric.

    Args:
        outputs: Probability of class 1, shape `(n,)`, or of each class, shape `(n, k)`, rows
            summing to 1; or logits in these shapes.
        labels: 0 or 1, or classes 0..k-1, shape `(n,)`.
        from_logits: Whether `outputs` are logits; static. More digits, and never infinite.
        sample_weight: Not negative, shape `(n,)`.
        mask: Which rows count, shape `(n,)`.

    Returns:
        Shape `()`. Infinite where what happened was given probability 0: nothing is clipped. Under
        a transformation a label that is no class makes it NaN.

    Raises:
        ValueError: Shapes do not fit, data are empty, or (where concrete) a label is no class, a
            probability is outside [0, 1] or a row does not sum to 1.
        TypeError: `labels` are not integers, or `mask` is not Boolean.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> print(f"{metrics.log_loss([0.9, 0.2], [1, 0]):.4f}")  # -(ln 0.9 + ln 0.8) / 2
        0.1643

    Reference:
        Good, *Rational Decisions* (1952).

    Note:
        scikit-learn moves probabilities into [eps, 1 - eps] first, so its loss is never infinite.
        For gradients and soft labels see [the losses][mlnotes_jax.foundations.losses].
    """
    name = "outputs" if from_logits else "probabilities"
    rows = _scored(name, outputs, labels, sample_weight, mask, probabilities=not from_logits)
    return _log_loss(*rows, from_logits)


def brier_score(
    probabilities: Float[ArrayLike, " n"] | Float[ArrayLike, "n k"],
    labels: Int[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    mask: Bool[ArrayLike, " n"] | None = None,
) -> Float[Array, ""]:
    r"""Squared error of probabilities: the mean of $(p_i - y_i)^2$.

    With a probability for each class it is the mean of $\sum_c (p_{ic} - [y_i = c])^2$.

    Args:
        probabilities: Of class 1, shape `(n,)`; or of each class, shape `(n, k)`.
        labels: 0 or 1, or classes 0..k-1, shape `(n,)`.
        sample_weight: Not negative, shape `(n,)`.
        mask: Which rows count, shape `(n,)`.

    Returns:
        Shape `()`: in [0, 1] for one probability, in [0, 2] for k.

    Raises:
        ValueError: As for `log_loss`.
        TypeError: As for `log_loss`.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> print(metrics.brier_score([0.75, 0.5], [1, 0]))  # (1/16 + 1/4) / 2
        0.15625

    Reference:
        Brier, *Verification of Forecasts Expressed in Terms of Probability* (1950).

    Note:
        Two columns give twice the value of one; scikit-learn halves that unless told
        `scale_by_half=False`.
    """
    return _brier(
        *_scored("probabilities", probabilities, labels, sample_weight, mask, probabilities=True)
    )


def calibration_curve(
    probabilities: Float[ArrayLike, " n"] | Float[ArrayLike, "n k"],
    labels: Int[ArrayLike, " n"],
    *,
    num_bins: int = 10,
    strategy: Literal["uniform", "quantile"] = "uniform",
    sample_weight: Float[ArrayLike, " n"] | None = None,
    mask: Bool[ArrayLike, " n"] | None = None,
) -> CalibrationCurve:
    """What was predicted against how often it happened, in bins of the prediction.

    Args:
        probabilities: Of class 1, shape `(n,)`; or of each class, shape `(n, k)`: then the
            largest of each row is taken, and what happens is that its class is right.
        labels: 0 or 1, or classes 0..k-1, shape `(n,)`.
        num_bins: Static.
        strategy: Bins of equal width, or with equally many rows; static.
        sample_weight: Not negative, shape `(n,)`. The borders of quantile bins count rows.
        mask: Which rows count, shape `(n,)`.

    Returns:
        The curve, with `num_bins` points whatever the values (see `CalibrationCurve`).

    Raises:
        ValueError: As for `log_loss`, or an option is not allowed.
        TypeError: As for `log_loss`.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> curve = metrics.calibration_curve([0.25, 0.5, 0.75, 1.0], [0, 1, 1, 1], num_bins=2)
        >>> curve.mean_probability.tolist(), curve.frequency.tolist()
        ([0.375, 0.875], [0.5, 1.0])

    Reference:
        Niculescu-Mizil and Caruana, *Predicting Good Probabilities With Supervised Learning* (ICML
        2005).

    Note:
        scikit-learn's leaves empty bins out, has 5 bins by default, and no weights.
    """
    _checks.positive_int("num_bins", num_bins)
    _checks.one_of("strategy", strategy, ("uniform", "quantile"))
    rows = _scored("probabilities", probabilities, labels, sample_weight, mask, probabilities=True)
    sums, edges, valid = _bin_sums(*rows, num_bins, strategy)
    return _curve(sums, edges, valid)


def expected_calibration_error(curve: CalibrationCurve) -> Float[Array, ""]:
    r"""Mean distance between what was predicted and how often it happened.

    $$ \text{ECE} = \sum_m \frac{W_m}{W}\, |\bar p_m - \bar y_m| $$

    over bins $m$ of weight $W_m$ = `curve.weight`.

    Args:
        curve: From `calibration_curve` or `streaming_calibration`. From k probabilities for each
            row it is the error of the confidence, as for networks.

    Returns:
        Shape `()`, in [0, 1]. It depends on the bins: say which.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> curve = metrics.calibration_curve([0.1, 0.3, 0.8, 0.9], [0, 1, 1, 1], num_bins=2)
        >>> print(f"{metrics.expected_calibration_error(curve):.4f}")
        0.2250

    Reference:
        Guo, Pleiss, Sun and Weinberger, *On Calibration of Modern Neural Networks* (ICML 2017).
    """
    return _calibration_error(curve)


# --- Regression -----------------------------------------------------------------------------------


def regression_scores(
    predictions: Float[ArrayLike, " n"],
    targets: Float[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    mask: Bool[ArrayLike, " n"] | None = None,
) -> RegressionScores:
    r"""All measures of a regression at once, each in its own unit.

    With errors $e_i = \hat y_i - y_i$ and weighted means $\bar y$, $\bar e$,

    $$
    R^2 = 1 - \frac{\sum_i w_i e_i^2}{\sum_i w_i (y_i - \bar y)^2}, \qquad
    \text{explained variance} = 1 - \frac{\sum_i w_i (e_i - \bar e)^2}{\sum_i w_i (y_i - \bar y)^2}.
    $$

    Args:
        predictions: $\hat y$, shape `(n,)`.
        targets: $y$, shape `(n,)`.
        sample_weight: $w$, not negative, shape `(n,)`.
        mask: Which rows count, shape `(n,)`.

    Returns:
        The measures, NaN over no rows.

    Raises:
        ValueError: Shapes differ, data are empty or (where concrete) not finite.
        TypeError: `mask` is not Boolean, or data are not real.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> scores = metrics.regression_scores([1.0, 2.0, 4.0], [1.0, 2.0, 3.0])
        >>> print(f"{scores.r2:.4f} {scores.explained_variance:.4f} {scores.mae:.4f}")
        0.5000 0.6667 0.3333

    Reference:
        Draper and Smith, *Applied Regression Analysis* (1998), section 1.3.

    Note:
        For constant targets scikit-learn says 1 or 0 unless told `force_finite=False`. For the
        gradients of the errors use [the losses][mlnotes_jax.foundations.losses].
    """
    return _regression(_error_sums(*_errors(predictions, targets, sample_weight, mask)))


def rmse(
    predictions: Float[ArrayLike, " n"],
    targets: Float[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    mask: Bool[ArrayLike, " n"] | None = None,
) -> Float[Array, ""]:
    """Root of the mean squared error, in the unit of the targets; see `regression_scores`.

    A root is no mean over rows: the mean over batches is not the value of the whole.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> print(metrics.rmse([3.0, 5.0], [0.0, 2.0]))  # two errors of 3
        3.0
    """
    return regression_scores(predictions, targets, sample_weight=sample_weight, mask=mask).rmse


def r2(
    predictions: Float[ArrayLike, " n"],
    targets: Float[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    mask: Bool[ArrayLike, " n"] | None = None,
) -> Float[Array, ""]:
    """Share of the squared distance from the mean that is explained; see `regression_scores`.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> print(metrics.r2([1.0, 2.0, 4.0], [1.0, 2.0, 3.0]))
        0.5
    """
    return regression_scores(predictions, targets, sample_weight=sample_weight, mask=mask).r2


def explained_variance(
    predictions: Float[ArrayLike, " n"],
    targets: Float[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    mask: Bool[ArrayLike, " n"] | None = None,
) -> Float[Array, ""]:
    """As `r2`, but a constant error costs nothing; see `regression_scores`.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> print(metrics.explained_variance([3.0, 4.0, 5.0], [1.0, 2.0, 3.0]))
        1.0
    """
    scores = regression_scores(predictions, targets, sample_weight=sample_weight, mask=mask)
    return scores.explained_variance


# --- Batch by batch -------------------------------------------------------------------------------


def streaming_mean(fn: Callable[[Any, Any], Array]) -> Streaming:
    """Add up any metric or loss that is a mean over rows.

    The mean over one row is what the row adds, so `fn` is asked row by row (by one `vmap`, which
    costs no more than all at once), and weights and masks come in here.

    Args:
        fn: Maps outputs and targets to a scalar mean, as for `training.loop`: `accuracy`,
            `brier_score`, `losses.mse`, or your own. Anything that is no mean over rows (`f1`,
            `rmse`, `roc_auc`) would give a wrong number without a warning.

    Returns:
        The metric; its value has shape `()`, NaN over no rows. Outputs and targets may be pytrees
        of arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import metrics
        >>> metric = metrics.streaming_mean(metrics.accuracy)
        >>> state = metric.update(metric.init(), jnp.array([0, 1, 1]), jnp.array([0, 1, 0]))
        >>> state = metric.update(state, jnp.array([1]), jnp.array([1]))
        >>> print(metric.value(state))
        0.75
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function, got {type(fn).__name__}")

    def init() -> _Mean:
        dtype = jnp.result_type(float)
        return _Mean(_sums.zero((), dtype), _sums.zero((), dtype))

    def value_of(output, target) -> Array:
        value = fn(*jax.tree.map(lambda leaf: leaf[None], (output, target)))
        if jnp.ndim(value):
            raise ValueError(f"fn must return a scalar, got shape {jnp.shape(value)}")
        return value

    @jax.jit
    def add(state: _Mean, outputs, targets, rows: _Rows) -> _Mean:
        values = jax.vmap(value_of)(outputs, targets).astype(state.values.value.dtype)
        weight = _weight(rows, values.shape)
        kept, w = jnp.where(weight != 0, values, 0), weight.astype(values.dtype)
        return _merge_means(state, _Mean(_sums.of((kept * w).sum()), _sums.of(w.sum())))

    def update(state, outputs, targets, *, sample_weight=None, mask=None) -> _Mean:
        outputs, targets = jax.tree.map(jnp.asarray, (outputs, targets))
        n = jax.tree.leaves(targets)[0].shape[:1]
        return add(state, outputs, targets, _rows(n, sample_weight, mask))

    return Streaming(init, update, _merge_means, _mean_so_far)


def streaming_confusion_matrix(num_classes: int, *, weighted: bool = False) -> Streaming:
    """Add up a confusion matrix; accuracy, precision, recall and F1 of the whole follow from it.

    Args:
        num_classes: k, static.
        weighted: Whether `update` will be given `sample_weight`; the counts are then floating.

    Returns:
        The metric; its value is that of `confusion_matrix`, exact without weights below 2³¹ rows.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> metric = metrics.streaming_confusion_matrix(2)
        >>> state = metric.update(metric.init(), [0, 1, 1], [0, 1, 0])
        >>> state = metric.update(state, [1], [1])
        >>> metric.value(state).tolist()
        [[1, 1], [0, 2]]
    """
    _checks.positive_int("num_classes", num_classes)
    dtype = jnp.result_type(float) if weighted else jnp.int32
    shape = (num_classes, num_classes)

    def init() -> _Confusion:
        return _Confusion(jnp.zeros(shape, dtype), jnp.asarray(True))

    def update(state, outputs, targets, *, sample_weight=None, mask=None) -> _Confusion:
        if sample_weight is not None and not weighted:
            raise ValueError("sample_weight needs streaming_confusion_matrix(..., weighted=True)")
        arguments = _classified(outputs, targets, sample_weight, mask, num_classes)
        counts, valid = _confusion(*arguments, num_classes)
        return _merge_counts(state, _Confusion(counts.astype(dtype), valid))

    return Streaming(init, update, _merge_counts, lambda state: _spoil(*state))


def streaming_calibration(num_bins: int = 10) -> Streaming:
    """Add up a calibration curve of bins of equal width.

    Args:
        num_bins: As for `calibration_curve`, static.

    Returns:
        The metric; its value is that of `calibration_curve(..., strategy="uniform")`. Quantile bins
        need all rows at once.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> metric = metrics.streaming_calibration(2)
        >>> state = metric.update(metric.init(), [0.1, 0.3], [0, 1])
        >>> state = metric.update(state, [0.8, 0.9], [1, 1])
        >>> metric.value(state).frequency.tolist()
        [0.5, 1.0]
    """
    _checks.positive_int("num_bins", num_bins)

    def init() -> _Calibration:
        return _Calibration(_sums.zero((3, num_bins), jnp.result_type(float)), jnp.asarray(True))

    def update(state, outputs, targets, *, sample_weight=None, mask=None) -> _Calibration:
        rows = _scored("outputs", outputs, targets, sample_weight, mask, probabilities=True)
        sums, _, valid = _bin_sums(*rows, num_bins, "uniform")
        batch = _sums.of(sums.astype(state.sums.value.dtype))
        return _merge_bins(state, _Calibration(batch, valid))

    def value(state: _Calibration) -> CalibrationCurve:
        sums = _sums.total(state.sums)
        return _curve(sums, _uniform_edges(num_bins, sums.dtype), state.valid)

    return Streaming(init, update, _merge_bins, value)


def streaming_regression() -> Streaming:
    """Add up all measures of a regression; the means are merged, not the squares.

    Returns:
        The metric; its value is that of `regression_scores`.

    Example:
        >>> from mlnotes_jax.generalization import metrics
        >>> metric = metrics.streaming_regression()
        >>> state = metric.update(metric.init(), [1.0, 2.0], [1.0, 2.0])
        >>> state = metric.update(state, [4.0], [3.0])
        >>> print(metric.value(state).r2)
        0.5

    Reference:
        Chan, Golub and LeVeque, *Algorithms for Computing the Sample Variance* (The American
        Statistician, 1983).
    """

    def init() -> _Errors:
        dtype = jnp.result_type(float)
        return _Errors(_sums.no_moments(dtype), _sums.no_moments(dtype), _sums.zero((), dtype))

    def update(state, outputs, targets, *, sample_weight=None, mask=None) -> _Errors:
        batch = _error_sums(*_errors(outputs, targets, sample_weight, mask))
        dtype = state.absolute.value.dtype
        return _merge_errors(state, jax.tree.map(lambda leaf: leaf.astype(dtype), batch))

    return Streaming(init, update, _merge_errors, _regression)


# --- What comes in: checked where values can be looked at, then passed on to one program ----------


class _Rows(NamedTuple):
    """Weights and mask as they came, or None."""

    sample_weight: Array | None
    mask: Array | None


def _rows(shape: tuple[int, ...], sample_weight: ArrayLike | None, mask: ArrayLike | None) -> _Rows:
    if 0 in shape:
        raise ValueError(f"labels must not be empty, got shape {shape}")
    weight, kept = None, None
    if mask is not None:
        kept = jnp.asarray(mask)
        if kept.dtype != jnp.bool_:
            raise TypeError(f"mask must be a Boolean array, got dtype {kept.dtype}")
        if kept.shape != shape:
            raise ValueError(f"mask must have the shape of the rows, {shape}, got {kept.shape}")
    if sample_weight is not None:
        weight = _wide(_checks.floating("sample_weight", sample_weight))
        if weight.shape != shape:
            raise ValueError(
                f"sample_weight must have the shape of the rows, {shape}, got {weight.shape}"
            )
        if _checks.is_concrete((weight, kept)):
            counted: Any = np.asarray(weight) if kept is None else np.where(kept, weight, 0)
            _checks.not_negative("sample_weight", counted)
            _checks.finite("sample_weight", counted)
    return _Rows(weight, kept)


def _counted(rows: _Rows, labels: Array, values: Array) -> np.ndarray | None:
    """Which rows count, in the shape of the labels; None unless everything can be looked at."""
    if not _checks.is_concrete((rows, labels, values)):
        return None
    counted = np.ones(labels.shape, bool) if rows.mask is None else np.asarray(rows.mask)
    if rows.sample_weight is None:
        return counted
    return counted & (np.asarray(rows.sample_weight) != 0)


def _integers(name: str, value: ArrayLike) -> Array:
    if getattr(value, "dtype", None) == np.bool_:
        return jnp.asarray(value).astype(jnp.int32)
    return _checks.integer(name, value)


def _wide(array: Array) -> Array:
    return array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array


def _classified(
    outputs: ArrayLike,
    labels: ArrayLike,
    sample_weight: ArrayLike | None,
    mask: ArrayLike | None,
    num_classes: int | None = None,
) -> tuple[Array, Array, _Rows]:
    """Predicted classes or scores, true classes, rows."""
    if num_classes is not None:
        _checks.positive_int("num_classes", num_classes)
    truth = _integers("labels", labels)
    rows = _rows(truth.shape, sample_weight, mask)
    array = jnp.asarray(outputs)
    has_scores = jnp.issubdtype(array.dtype, jnp.floating)
    if not has_scores:
        array = _integers("outputs", outputs)
        _checks.same_shape(outputs=array, labels=truth)
    elif array.ndim == 0 or array.shape[:-1] != truth.shape or array.shape[-1] == 0:
        raise ValueError(
            "outputs must be integer classes in the shape of labels, or scores with one more "
            f"axis for the classes; got {array.dtype} {array.shape} for labels {truth.shape}"
        )
    if has_scores and num_classes is None:
        num_classes = array.shape[-1]
    counted = _counted(rows, truth, array)
    if counted is not None and num_classes is not None:
        _checks.class_labels("labels", truth, num_classes, counted=counted)
        if not has_scores:
            _checks.class_labels("outputs", array, num_classes, counted=counted)
    return array, truth, rows


def _scored(
    name: str,
    values: ArrayLike,
    labels: ArrayLike,
    sample_weight: ArrayLike | None,
    mask: ArrayLike | None,
    *,
    ndim: int | tuple[int, ...] = (1, 2),
    probabilities: bool = False,
) -> tuple[Array, Array, _Rows]:
    """One score for each row, or one for each class; true classes; rows."""
    scores = _wide(_checks.floating(name, values, ndim=ndim))
    truth = _integers("labels", labels)
    if scores.ndim == 1:
        _checks.same_shape(**{name: scores, "labels": truth})
        num_classes = 2
    elif truth.shape != scores.shape[:1] or scores.shape[1] < 2:
        raise ValueError(
            f"{name} must be (n,) or (n, k) for n labels and k >= 2 classes, got {scores.shape} "
            f"for labels {truth.shape}"
        )
    else:
        num_classes = scores.shape[1]
    rows = _rows(truth.shape, sample_weight, mask)
    counted = _counted(rows, truth, scores)
    if counted is not None:
        _checks.class_labels("labels", truth, num_classes, counted=counted)
        kept: Any = np.where(counted.reshape(-1, *(1,) * (scores.ndim - 1)), scores, 0)
        _checks.finite(name, kept)
        if probabilities:
            _checks.in_range(name, kept, 0, 1)
            if scores.ndim == 2:
                _check_sums(name, kept, counted)
    return scores, truth, rows


def _check_sums(name: str, probabilities: np.ndarray, counted: np.ndarray) -> None:
    sums = probabilities.sum(axis=1)
    off = counted & (np.abs(sums - 1) > np.sqrt(np.finfo(sums.dtype).eps))
    if off.any():
        row = int(np.flatnonzero(off)[0])
        raise ValueError(f"{name} must sum to 1 in every row, got {sums[row]} in row {row}")


def _errors(
    predictions: ArrayLike,
    targets: ArrayLike,
    sample_weight: ArrayLike | None,
    mask: ArrayLike | None,
) -> tuple[Array, Array, _Rows]:
    y_hat = _wide(_checks.floating("predictions", predictions, ndim=1))
    y = _wide(_checks.floating("targets", targets, ndim=1))
    _checks.same_shape(predictions=y_hat, targets=y)
    rows = _rows(y.shape, sample_weight, mask)
    counted = _counted(rows, y, y_hat)
    if counted is not None:
        for name, values in (("predictions", y_hat), ("targets", y)):
            kept: Any = np.where(counted, values, 0)
            _checks.finite(name, kept)
    return y_hat, y, rows


# --- One program for each metric ------------------------------------------------------------------


def _weight(rows: _Rows, shape: tuple[int, ...]) -> Array:
    """What each row counts: int32 without weights, so that counts are exact; 0 where masked."""
    kept = jnp.ones(shape, bool) if rows.mask is None else rows.mask
    if rows.sample_weight is None:
        return kept.astype(jnp.int32)
    return jnp.where(kept, rows.sample_weight, 0)


def _dtype(values: Array) -> Any:
    floating = jnp.issubdtype(values.dtype, jnp.floating)
    return values.dtype if floating else jnp.result_type(float)


def _mean(values: Array, weight: Array) -> Array:
    w = weight.astype(values.dtype)
    kept = jnp.where(weight != 0, values, 0)
    return (kept * w).sum() / weight.sum().astype(values.dtype)


@jax.jit
def _spoil(values: Array, valid: Array) -> Array:
    """NaN, or -1 where the values are integers, unless all rows were valid."""
    bad = -1 if jnp.issubdtype(values.dtype, jnp.integer) else jnp.nan
    return jnp.where(valid, values, jnp.asarray(bad, values.dtype))


def _after(first: float, rest: Array) -> Array:
    return jnp.append(jnp.full((), first, rest.dtype), rest)


def _classes(outputs: Array, truth: Array, rows: _Rows) -> tuple[Array, Array, Array]:
    """Predicted and true classes and weights as vectors; -1 is predicted where a score is NaN."""
    if jnp.issubdtype(outputs.dtype, jnp.floating):
        unknown = jnp.isnan(outputs).any(axis=-1)
        outputs = jnp.where(unknown, -1, outputs.argmax(axis=-1))
    whole = jnp.result_type(int)
    weight = _weight(rows, truth.shape)
    return outputs.reshape(-1).astype(whole), truth.reshape(-1).astype(whole), weight.reshape(-1)


@jax.jit
def _accuracy(outputs: Array, truth: Array, rows: _Rows) -> Array:
    predicted, actual, weight = _classes(outputs, truth, rows)
    right = (predicted == actual).astype(_dtype(weight))
    if jnp.issubdtype(outputs.dtype, jnp.floating):
        right = jnp.where((actual < 0) | (actual >= outputs.shape[-1]), jnp.nan, right)
    return _mean(right, weight)


@functools.partial(jax.jit, static_argnames="num_classes")
def _confusion(outputs: Array, truth: Array, rows: _Rows, num_classes: int) -> tuple[Array, Array]:
    predicted, actual, weight = _classes(outputs, truth, rows)
    known = (actual >= 0) & (actual < num_classes) & (predicted >= 0) & (predicted < num_classes)
    place = jnp.where(known, actual * num_classes + predicted, 0)
    counts = jnp.zeros(num_classes**2, weight.dtype)
    counts = counts.at[place].add(jnp.where(known, weight, jnp.zeros_like(weight)))
    return counts.reshape(num_classes, num_classes), (known | (weight == 0)).all()


@functools.partial(jax.jit, static_argnames="average")
def _class_scores(
    matrix: Array, zero_division: Array, beta: Array, average: str | None
) -> ClassScores:
    dtype = _dtype(matrix)
    zero, squared = zero_division.astype(dtype), jnp.square(beta.astype(dtype))
    spoilt = (matrix < 0).any()  # how `confusion_matrix` says that a label was no class
    hits, called, support = jnp.diagonal(matrix), matrix.sum(axis=0), matrix.sum(axis=1)
    sums = (hits, called, support)
    if average == "micro":
        sums = (hits.sum(keepdims=True), called.sum(keepdims=True), support.sum(keepdims=True))
    true, predicted, actual = (part.astype(dtype) for part in sums)

    def ratio(part: Array, whole: Array) -> Array:
        safe = jnp.where(whole == 0, 1, whole)
        return jnp.where(spoilt, jnp.nan, jnp.where(whole == 0, zero, part / safe))

    def reduce(score: Array) -> Array:
        if average is None:
            return score
        if average in ("binary", "micro"):
            return score[-1]
        weight = actual if average == "weighted" else jnp.ones_like(actual)
        weight = jnp.where(jnp.isnan(score) & ~spoilt, 0, weight)
        return jnp.where(weight == 0, 0, weight * score).sum() / weight.sum()

    return ClassScores(
        reduce(ratio(true, predicted)),
        reduce(ratio(true, actual)),
        reduce(ratio((1 + squared) * true, squared * actual + predicted)),
        support,
    )


def _in_order(scores: Array, truth: Array, rows: _Rows) -> tuple[Array, Array]:
    """Weights in the dtype of the scores, and whether all rows that count are in order."""
    weight = _weight(rows, truth.shape)
    if jnp.issubdtype(weight.dtype, jnp.floating):
        weight = weight.astype(scores.dtype)
    unknown = jnp.isnan(scores)
    known = (truth >= 0) & (truth < (2 if scores.ndim == 1 else scores.shape[1]))
    if scores.ndim == 2:
        unknown = unknown.any(axis=1)
    return weight, ((weight == 0) | (~unknown & known)).all()


@jax.jit
def _roc_curve(scores: Array, truth: Array, rows: _Rows) -> ROCCurve:
    weight, valid = _in_order(scores, truth, rows)
    found = _ranking.above(scores, truth == 1, weight)

    def rate(mass: Array) -> Array:
        share = mass.astype(scores.dtype) / mass[-1].astype(scores.dtype)
        return _after(0, _spoil(share, valid))

    thresholds = _after(jnp.inf, found.thresholds)
    return ROCCurve(rate(found.negative), rate(found.positive), thresholds)


@jax.jit
def _roc_auc(scores: Array, truth: Array, rows: _Rows) -> Array:
    weight, valid = _in_order(scores, truth, rows)
    found = _ranking.above(scores, truth == 1, weight)
    return _spoil(_ranking.area(found.positive, found.negative, scores.dtype), valid)


@jax.jit
def _pairs(scores: Array, truth: Array, rows: _Rows) -> tuple[Array, Array]:
    """The area of each pair of classes, and the weight of each class."""
    weight, valid = _in_order(scores, truth, rows)
    member = _indicators(truth, scores.shape[1])
    support = jnp.where(member, weight[:, None], jnp.zeros((), weight.dtype)).sum(axis=0)
    pairs = _ranking.pairs(scores, member, weight)
    return _spoil(pairs, valid), support.astype(scores.dtype)


@functools.partial(jax.jit, static_argnames=("multiclass", "average"))
def _averaged(pairs: Array, support: Array, multiclass: str, average: str | None) -> Array:
    away = ~jnp.eye(len(support), dtype=bool)
    if multiclass == "one_vs_one":
        if average is None:
            return pairs
        both = support[:, None] + support[None]
        share = jnp.where(away, both if average == "weighted" else jnp.ones_like(both), 0)
        return jnp.where(away, share * pairs, 0).sum() / share.sum()
    # The rest is a mixture of the other classes, in the shares of their rows.
    others = jnp.where(away, jnp.broadcast_to(support[None], pairs.shape), 0)
    rest = jnp.where(others > 0, others * pairs, 0).sum(axis=1) / others.sum(axis=1)
    if average is None:
        return rest
    share = support if average == "weighted" else jnp.ones_like(support)
    return (share * rest).sum() / share.sum()


@jax.jit
def _precision_recall(
    scores: Array, truth: Array, rows: _Rows
) -> tuple[PrecisionRecallCurve, Array]:
    """The curve, and the area of its steps."""
    weight, valid = _in_order(scores, truth, rows)
    found = _ranking.above(scores, truth == 1, weight)
    hits = found.positive.astype(scores.dtype)
    called = (found.positive + found.negative).astype(scores.dtype)
    precisions = hits / called
    curve = PrecisionRecallCurve(
        _after(1, _spoil(precisions, valid)),
        _after(0, _spoil(hits / hits[-1], valid)),
        _after(jnp.inf, found.thresholds),
    )
    gained = _ranking.steps(found.positive).astype(scores.dtype) / hits[-1]
    return curve, _spoil((gained * precisions).sum(), valid)


def _forecasts(
    p: Array, truth: Array, rows: _Rows, logits: bool = False
) -> tuple[Array, Array, Array, Array]:
    """The same with 0 where a row does not count, the weights, and whether all is in order."""
    weight, valid = _in_order(p, truth, rows)
    counted = weight != 0
    p = jnp.where(counted.reshape(-1, *(1,) * (p.ndim - 1)), p, 0)
    if not logits:
        valid &= ((p >= 0) & (p <= 1)).all()
    return p, jnp.where(counted, truth, 0), weight, valid


def _indicators(y: Array, k: int) -> Array:
    return y[:, None] == jnp.arange(k, dtype=y.dtype)[None]


@functools.partial(jax.jit, static_argnames="logits")
def _log_loss(p: Array, truth: Array, rows: _Rows, logits: bool) -> Array:
    p, y, weight, valid = _forecasts(p, truth, rows, logits)
    w, counted = weight.astype(p.dtype), weight != 0
    if p.ndim == 1:
        loss = losses.binary_cross_entropy
        if logits:
            loss = losses.binary_cross_entropy_with_logits
        value = loss(p, y.astype(p.dtype), weights=w, where=counted)
    elif logits:
        value = losses.softmax_cross_entropy_with_integer_labels(p, y, weights=w, where=counted)
    else:
        # Only the entry of the true class: the others' logarithms may be infinite.
        own = jnp.where(_indicators(y, p.shape[1]), p, 1)
        value = losses.nll(jnp.log(own), y, weights=w, where=counted)
    return _spoil(value, valid)


@jax.jit
def _brier(p: Array, truth: Array, rows: _Rows) -> Array:
    p, y, weight, valid = _forecasts(p, truth, rows)
    if p.ndim == 1:
        squares = jnp.square(p - y.astype(p.dtype))
    else:
        squares = jnp.square(p - _indicators(y, p.shape[1]).astype(p.dtype)).sum(axis=1)
    return _spoil(_mean(squares, weight), valid)


def _uniform_edges(num_bins: int, dtype: Any) -> Array:
    return jnp.asarray(np.linspace(0, 1, num_bins + 1), dtype)


@functools.partial(jax.jit, static_argnames=("num_bins", "strategy"))
def _bin_sums(
    p: Array, truth: Array, rows: _Rows, num_bins: int, strategy: str
) -> tuple[Array, Array, Array]:
    """Sums of weight, probability and event in each bin; borders; whether all is in order."""
    p, y, weight, valid = _forecasts(p, truth, rows)
    if p.ndim == 1:
        event = y == 1
    else:
        p, event = p.max(axis=1), p.argmax(axis=1).astype(y.dtype) == y
    if strategy == "uniform":
        edges = _uniform_edges(num_bins, p.dtype)
    else:
        counted = weight != 0
        order = jnp.sort(jnp.where(counted, p, jnp.inf))
        places = _uniform_edges(num_bins, p.dtype) * (counted.sum() - 1).astype(p.dtype)
        low, high = (
            jnp.clip(part.astype(jnp.int32), 0, len(p) - 1)
            for part in (jnp.floor(places), jnp.ceil(places))
        )
        part = places - low.astype(p.dtype)
        edges = order[low] + jnp.where(part > 0, part * (order[high] - order[low]), 0)
    place = jnp.searchsorted(edges[1:-1], p, side="left")
    w = weight.astype(p.dtype)
    terms = jnp.stack([w, w * p, w * event.astype(p.dtype)], axis=1)
    return jnp.zeros((num_bins, 3), p.dtype).at[place].add(terms).T, edges, valid


@jax.jit
def _curve(sums: Array, edges: Array, valid: Array) -> CalibrationCurve:
    weight, probability, event = _spoil(sums, valid)
    return CalibrationCurve(probability / weight, event / weight, weight, edges)


@jax.jit
def _calibration_error(curve: CalibrationCurve) -> Array:
    gap = jnp.abs(curve.mean_probability - curve.frequency)
    filled = jnp.where(curve.weight == 0, 0, curve.weight * gap)
    return filled.sum() / curve.weight.sum()


# --- States that batches add to -------------------------------------------------------------------


class _Mean(NamedTuple):
    values: _sums.Sum
    weight: _sums.Sum


class _Confusion(NamedTuple):
    counts: Num[Array, "k k"]
    valid: Bool[Array, ""]


class _Calibration(NamedTuple):
    sums: _sums.Sum  # of the weight, the probability and the event, shape (3, num_bins)
    valid: Bool[Array, ""]


class _Errors(NamedTuple):
    targets: _sums.Moments
    errors: _sums.Moments
    absolute: _sums.Sum


@jax.jit
def _merge_means(a: _Mean, b: _Mean) -> _Mean:
    return _Mean(_sums.merge(a.values, b.values), _sums.merge(a.weight, b.weight))


@jax.jit
def _mean_so_far(state: _Mean) -> Array:
    return _sums.total(state.values) / _sums.total(state.weight)


@jax.jit
def _merge_counts(a: _Confusion, b: _Confusion) -> _Confusion:
    return _Confusion(a.counts + b.counts, a.valid & b.valid)


@jax.jit
def _merge_bins(a: _Calibration, b: _Calibration) -> _Calibration:
    return _Calibration(_sums.merge(a.sums, b.sums), a.valid & b.valid)


@jax.jit
def _merge_errors(a: _Errors, b: _Errors) -> _Errors:
    return _Errors(
        _sums.merge_moments(a.targets, b.targets),
        _sums.merge_moments(a.errors, b.errors),
        _sums.merge(a.absolute, b.absolute),
    )


@jax.jit
def _error_sums(y_hat: Array, y: Array, rows: _Rows) -> _Errors:
    dtype = max(y_hat.dtype, y.dtype, key=lambda dtype: dtype.itemsize)
    weight = _weight(rows, y.shape)
    y_hat, y = (jnp.where(weight != 0, part.astype(dtype), 0) for part in (y_hat, y))
    weight, error = weight.astype(dtype), y_hat - y
    return _Errors(
        _sums.moments(y, weight),
        _sums.moments(error, weight),
        _sums.of((weight * jnp.abs(error)).sum()),
    )


@jax.jit
def _regression(state: _Errors) -> RegressionScores:
    weight = _sums.total(state.errors.weight)
    spread = _sums.total(state.targets.squares)
    about_mean = _sums.total(state.errors.squares)
    squares = about_mean + weight * jnp.square(state.errors.mean)
    mse = squares / weight
    return RegressionScores(
        mae=_sums.total(state.absolute) / weight,
        mse=mse,
        rmse=jnp.sqrt(mse),
        r2=1 - squares / spread,
        explained_variance=1 - about_mean / spread,
    )
