r"""Losses: what it costs to predict $\hat y$ where $y$ is true.

Every loss $\ell_i$ of an entry is reduced in the same way, with weights $w_i \ge 0$ and a mask
$m_i \in \{0, 1\}$, both 1 by default:

$$
\text{none: } m_i w_i \ell_i, \qquad
\text{sum: } \sum_i m_i w_i \ell_i, \qquad
\text{mean: } \frac{\sum_i m_i w_i \ell_i}{\sum_i m_i w_i}.
$$

- `weights` and `where` (the mask, true = counted) have the shape of the losses or its leading
  axes: shape `(n,)` weighs the rows of a loss of shape `(n, d)`.
- What is masked is replaced before any arithmetic, so a NaN there reaches neither the value nor
  a gradient. A weight of zero is only a factor: 0 times infinity is NaN, so mask such an entry.
- A mean over nothing is NaN.
- Predictions and targets have one shape: nothing is broadcast, because `(n,)` against `(n, 1)`
  would quietly make `n * n` errors. The dtype is that of the predictions, at least float32.

Reference: Bishop, *Pattern Recognition and Machine Learning* (2006), sections 1.5, 4.3 and 7.1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Real

from mlnotes_jax import _checks
from mlnotes_jax.foundations import _reduction
from mlnotes_jax.foundations._reduction import Reduction

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "elastic_net_penalty",
    "epsilon_insensitive",
    "exponential",
    "hinge",
    "huber",
    "l1_penalty",
    "l2_penalty",
    "logistic",
    "mae",
    "mse",
    "nll",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "squared_hinge",
]


def mae(
    predictions: Float[ArrayLike, "..."],
    targets: Float[ArrayLike, "..."],
    *,
    reduction: Reduction = "mean",
    weights: Float[ArrayLike, "..."] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Mean absolute error, $\ell = \lvert \hat y - y \rvert$.

    The best constant prediction is the median. The gradient is $\pm 1$, and 0 where the error is
    exactly 0, as in PyTorch (`L1Loss`); `jax.grad` of `jnp.abs` would give 1 there.

    Args:
        predictions: $\hat y$, any shape, in the unit of the targets.
        targets: $y$, the same shape.
        reduction: `"mean"`, `"sum"` or `"none"`; static.
        weights: Not negative; the losses' shape or its leading axes.
        where: Which entries count; the losses' shape or its leading axes.

    Returns:
        The loss, shape `()`, or that of `predictions` where nothing is reduced.

    Raises:
        ValueError: The shapes differ, or an option or a weight is not allowed.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.foundations import losses
        >>> print(losses.mae([1.0, 5.0], [2.0, 2.0]))
        2.0

    Reference: Koenker and Bassett, "Regression Quantiles" (1978).
    """
    y_hat, y, kept = _entries(where, predictions=predictions, targets=targets)
    return _reduction.reduce(_absolute(y_hat - y), reduction, weights, kept)


def mse(
    predictions: Float[ArrayLike, "..."],
    targets: Float[ArrayLike, "..."],
    *,
    reduction: Reduction = "mean",
    weights: Float[ArrayLike, "..."] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Mean squared error, $\ell = (\hat y - y)^2$, without a factor ½.

    The best constant prediction is the mean. PyTorch's `MSELoss`, scikit-learn's
    `mean_squared_error` and `optax.losses.squared_error` agree; `optax.losses.l2_loss` is half of
    it. A prediction of shape `(n, d)` is averaged over all `n * d` entries.

    Args:
        predictions: $\hat y$, any shape, in the unit of the targets.
        targets: $y$, the same shape.
        reduction: `"mean"`, `"sum"` or `"none"`; static.
        weights: Not negative; the losses' shape or its leading axes.
        where: Which entries count; the losses' shape or its leading axes.

    Returns:
        The loss, shape `()`, or that of `predictions` where nothing is reduced.

    Raises:
        ValueError: The shapes differ, or an option or a weight is not allowed.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.foundations import losses
        >>> print(losses.mse([1.0, 5.0], [2.0, 2.0]))
        5.0
        >>> print(losses.mse([1.0, 5.0], [2.0, 2.0], weights=[3.0, 1.0]))  # (3 * 1 + 1 * 9) / 4
        3.0

    Reference: Bishop (2006), section 1.5.5.
    """
    y_hat, y, kept = _entries(where, predictions=predictions, targets=targets)
    return _reduction.reduce(jnp.square(y_hat - y), reduction, weights, kept)


def huber(
    predictions: Float[ArrayLike, "..."],
    targets: Float[ArrayLike, "..."],
    *,
    delta: Float[ArrayLike, ""] = 1.0,
    reduction: Reduction = "mean",
    weights: Float[ArrayLike, "..."] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Huber's loss: half a square near zero, a straight line further out.

    With $e = \hat y - y$ and $\delta$ = `delta`,

    $$
    \ell = \begin{cases} \tfrac12 e^2 & \lvert e \rvert \le \delta \\
    \delta(\lvert e \rvert - \tfrac12 \delta) & \text{otherwise,} \end{cases}
    $$

    so the gradient is $e$ cut off at $\pm\delta$: one wild target cannot pull harder than
    $\delta$. `torch.nn.HuberLoss` and `optax.losses.huber_loss` are the same;
    `torch.nn.SmoothL1Loss` divides by $\delta$.

    Args:
        predictions: $\hat y$, any shape, in the unit of the targets.
        targets: $y$, the same shape.
        delta: Where the square ends, > 0, in the unit of the targets. Traced.
        reduction: `"mean"`, `"sum"` or `"none"`; static.
        weights: Not negative; the losses' shape or its leading axes.
        where: Which entries count; the losses' shape or its leading axes.

    Returns:
        The loss, shape `()`, or that of `predictions` where nothing is reduced.

    Raises:
        ValueError: The shapes differ, `delta` is not positive, or an option or a weight is not
            allowed.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.foundations import losses
        >>> print(losses.huber([0.5, 3.0], [0.0, 0.0], reduction="none"))
        [0.125 2.5  ]

    Reference: Huber, "Robust Estimation of a Location Parameter" (1964).
    """
    _checks.positive("delta", delta)
    y_hat, y, kept = _entries(where, predictions=predictions, targets=targets)
    bound = _scalar("delta", delta, y_hat)
    size = _absolute(y_hat - y)
    near = jnp.minimum(size, bound)
    return _reduction.reduce(0.5 * near**2 + bound * (size - near), reduction, weights, kept)


def epsilon_insensitive(
    predictions: Float[ArrayLike, "..."],
    targets: Float[ArrayLike, "..."],
    *,
    epsilon: Float[ArrayLike, ""] = 0.1,
    reduction: Reduction = "mean",
    weights: Float[ArrayLike, "..."] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""The tube of support vector regression: an error up to $\epsilon$ costs nothing.

    $$
    \ell = \max(0, \lvert \hat y - y \rvert - \epsilon), \qquad \epsilon = \texttt{epsilon}.
    $$

    On the edge of the tube the gradient is
    taken to be 0. scikit-learn's `LinearSVR` sums it and multiplies it by `C`.

    Args:
        predictions: $\hat y$, any shape, in the unit of the targets.
        targets: $y$, the same shape.
        epsilon: Half the width of the tube, >= 0, in the unit of the targets. Traced.
        reduction: `"mean"`, `"sum"` or `"none"`; static.
        weights: Not negative; the losses' shape or its leading axes.
        where: Which entries count; the losses' shape or its leading axes.

    Returns:
        The loss, shape `()`, or that of `predictions` where nothing is reduced.

    Raises:
        ValueError: The shapes differ, `epsilon` is negative, or an option or a weight is not
            allowed.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.foundations import losses
        >>> print(losses.epsilon_insensitive([0.5, 3.0], [0.0, 0.0], epsilon=1.0, reduction="none"))
        [0. 2.]

    Reference: Bishop (2006), section 7.1.4.
    """
    _checks.not_negative("epsilon", epsilon)
    y_hat, y, kept = _entries(where, predictions=predictions, targets=targets)
    excess = _absolute(y_hat - y) - _scalar("epsilon", epsilon, y_hat)
    return _reduction.reduce(jax.nn.relu(excess), reduction, weights, kept)


def binary_cross_entropy(
    probabilities: Float[ArrayLike, "..."],
    targets: Real[ArrayLike, "..."],
    *,
    reduction: Reduction = "mean",
    weights: Float[ArrayLike, "..."] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Cross-entropy of a yes-or-no answer, $\ell = -t \ln p - (1 - t) \ln(1 - p)$, in nats.

    $0 \ln 0$ is 0. A sure and wrong answer costs infinity: nothing is clipped, whereas
    `torch.nn.BCELoss` cuts each logarithm at −100 and scikit-learn's `log_loss` moves $p$ into
    $[\mathrm{eps}, 1 - \mathrm{eps}]$. From logits, use
    [`binary_cross_entropy_with_logits`][mlnotes_jax.foundations.losses.binary_cross_entropy_with_logits]:
    in float32 the sigmoid of 17 is already 1.

    Args:
        probabilities: $p$, in [0, 1], any shape.
        targets: $t$, in [0, 1] (0 or 1, or a soft label), the same shape.
        reduction: `"mean"`, `"sum"` or `"none"`; static.
        weights: Not negative; the losses' shape or its leading axes.
        where: Which entries count; the losses' shape or its leading axes.

    Returns:
        The loss, shape `()`, or that of `probabilities` where nothing is reduced.

    Raises:
        ValueError: The shapes differ, a concrete value is outside [0, 1], or an option or a
            weight is not allowed.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.foundations import losses
        >>> print(losses.binary_cross_entropy([1.0, 0.0], [1, 1], reduction="none"))
        [ 0. inf]

    Reference: Bishop (2006), equation 4.90.
    """
    p, t, kept = _entries(where, probabilities=probabilities, targets=targets)
    _checks.in_range("probabilities", p, 0, 1)
    _checks.in_range("targets", t, 0, 1)
    return _reduction.reduce(0 - _t_log(t, p) - _t_log(1 - t, 1 - p), reduction, weights, kept)


def binary_cross_entropy_with_logits(
    logits: Float[ArrayLike, "..."],
    targets: Real[ArrayLike, "..."],
    *,
    reduction: Reduction = "mean",
    weights: Float[ArrayLike, "..."] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Binary cross-entropy of $p = \sigma(z)$, computed from the logit $z$.

    $$
    \ell = t \ln(1 + e^{-z}) + (1 - t) \ln(1 + e^{z}), \qquad
    \frac{\partial \ell}{\partial z} = \sigma(z) - t.
    $$

    Both terms are positive, so no digits cancel, and neither overflows. The same as
    `torch.nn.BCEWithLogitsLoss` and `optax.losses.sigmoid_binary_cross_entropy` (which does not
    reduce).

    Args:
        logits: $z = \ln\frac{p}{1 - p}$, any shape.
        targets: $t$, in [0, 1] (0 or 1, or a soft label), the same shape.
        reduction: `"mean"`, `"sum"` or `"none"`; static.
        weights: Not negative; the losses' shape or its leading axes.
        where: Which entries count; the losses' shape or its leading axes.

    Returns:
        The loss in nats, shape `()`, or that of `logits` where nothing is reduced.

    Raises:
        ValueError: The shapes differ, a concrete target is outside [0, 1], or an option or a
            weight is not allowed.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.foundations import losses
        >>> print(losses.binary_cross_entropy_with_logits([9999.0, 1e4], [0, 0], reduction="none"))
        [ 9999. 10000.]

    Reference: Bishop (2006), section 4.3.2.
    """
    z, t, kept = _entries(where, logits=logits, targets=targets)
    _checks.in_range("targets", t, 0, 1)
    values = t * jax.nn.softplus(-z) + (1 - t) * jax.nn.softplus(z)
    return _reduction.reduce(values, reduction, weights, kept)


def softmax_cross_entropy(
    logits: Float[ArrayLike, "*n k"],
    targets: Float[ArrayLike, "*n k"],
    *,
    reduction: Reduction = "mean",
    weights: Float[ArrayLike, "..."] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Cross-entropy of $p = \operatorname{softmax}(z)$ against one-hot or soft labels.

    $$
    \ell = -\sum_j t_j \ln p_j, \qquad
    \frac{\partial \ell}{\partial z} = p \sum_j t_j - t = p - t \ \text{ when } \sum_j t_j = 1.
    $$

    The sum over classes is always taken; `reduction` is over the examples. A class whose target
    is 0 costs nothing even where its logit is $-\infty$. Classes are on the last axis; in
    `torch.nn.CrossEntropyLoss` they are on axis 1. `optax.losses.softmax_cross_entropy` is this
    one with `reduction="none"`.

    Args:
        logits: $z$, shape `(..., k)`, `k` classes last.
        targets: $t$, not negative, the same shape. Each row should sum to 1; this is not checked.
        reduction: `"mean"`, `"sum"` or `"none"`; static.
        weights: Not negative; shape `(...)` or its leading axes.
        where: Which examples count; shape `(...)` or its leading axes.

    Returns:
        The loss in nats, shape `()`, or `(...)` where nothing is reduced.

    Raises:
        ValueError: The shapes differ, a concrete target is negative, or an option or a weight is
            not allowed.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.foundations import losses
        >>> print(f"{losses.softmax_cross_entropy([[0.0, 0.0]], [[0.9, 0.1]]):.4f}")
        0.6931

    Reference: Bishop (2006), equation 4.108.
    """
    z, t = _reduction.pair(logits=logits, targets=targets)
    z, kept = _classes("logits", z, where)
    t = _reduction.keep(kept, t)
    _checks.not_negative("targets", t)
    log_p = jax.nn.log_softmax(z)
    # 0 * (-inf) would be NaN; elsewhere the target keeps its gradient, -ln p.
    log_p = jnp.where((t == 0) & jnp.isneginf(log_p), 0, log_p)
    return _reduction.reduce(-jnp.sum(t * log_p, axis=-1), reduction, weights, kept)


def softmax_cross_entropy_with_integer_labels(
    logits: Float[ArrayLike, "*n k"],
    labels: Int[ArrayLike, "*n"],
    *,
    reduction: Reduction = "mean",
    weights: Float[ArrayLike, "..."] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Cross-entropy of $p = \operatorname{softmax}(z)$ when the class $y$ is known.

    $$
    \ell = -\ln p_y = \ln \sum_j e^{z_j} - z_y, \qquad
    \frac{\partial \ell}{\partial z_j} = p_j - [j = y] \ \text{ for every class } j.
    $$

    Logits go in, not probabilities. A weight per class, as PyTorch's `weight`, is
    `weights=class_weights[labels]`: the weighted mean is then divided by the same sum of weights.
    scikit-learn's `log_loss` takes the labels first, and probabilities.

    Args:
        logits: $z$, shape `(..., k)`, `k` classes last.
        labels: $y$, integers in 0..k-1, shape `(...)`. Under a transformation, where the values
            cannot be looked at, another label makes its loss and gradient NaN. A masked label may
            be anything.
        reduction: `"mean"`, `"sum"` or `"none"`; static.
        weights: Not negative; shape `(...)` or its leading axes.
        where: Which examples count; shape `(...)` or its leading axes.

    Returns:
        The loss in nats, shape `()`, or `(...)` where nothing is reduced.

    Raises:
        ValueError: The shapes do not fit, a concrete label is not a class, or an option or a
            weight is not allowed.
        TypeError: The labels are not integers, the logits are not numeric, or the mask is not
            Boolean.

    Example:
        >>> from mlnotes_jax.foundations import losses
        >>> logits = [[2.0, 0.0, 0.0], [0.0, 0.0, 9.0]]
        >>> loss = losses.softmax_cross_entropy_with_integer_labels(
        ...     logits, [0, -1], where=[True, False]
        ... )
        >>> print(f"{loss:.4f}")
        0.2395

    Reference: Bishop (2006), section 4.3.4.
    """
    z, kept = _classes("logits", _reduction.wide("logits", logits), where)
    return nll(jax.nn.log_softmax(z), labels, reduction=reduction, weights=weights, where=kept)


def nll(
    log_probabilities: Float[ArrayLike, "*n k"],
    labels: Int[ArrayLike, "*n"],
    *,
    reduction: Reduction = "mean",
    weights: Float[ArrayLike, "..."] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Negative log-likelihood of the true class, $\ell = -\ln p_y$, from log-probabilities.

    Like `torch.nn.NLLLoss` it only picks an entry: that the rows are logarithms of
    probabilities is the caller's word. Classes are on the last axis; in PyTorch on axis 1.

    Args:
        log_probabilities: $\ln p$, shape `(..., k)`, `k` classes last.
        labels: $y$, integers in 0..k-1, shape `(...)`. Under a transformation another label makes
            its loss and gradient NaN. A masked label may be anything.
        reduction: `"mean"`, `"sum"` or `"none"`; static.
        weights: Not negative; shape `(...)` or its leading axes.
        where: Which examples count; shape `(...)` or its leading axes.

    Returns:
        The loss in nats, shape `()`, or `(...)` where nothing is reduced.

    Raises:
        ValueError: The shapes do not fit, a concrete label is not a class, or an option or a
            weight is not allowed.
        TypeError: The labels are not integers, the others are not numeric, or the mask is not
            Boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import losses
        >>> print(f"{losses.nll(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([1])):.4f}")
        0.2877

    Reference: Bishop (2006), section 4.3.4.
    """
    log_p = _reduction.wide("log_probabilities", log_probabilities)
    log_p, kept = _classes("log_probabilities", log_p, where)
    y = _checks.integer("labels", labels)
    if y.shape != log_p.shape[:-1]:
        raise ValueError(
            f"labels must have the shape of the logits without the classes, {log_p.shape[:-1]}, "
            f"got shape {y.shape}"
        )
    y = _reduction.keep(kept, y)
    num_classes = log_p.shape[-1]
    _checks.class_labels("labels", y, num_classes)
    is_class = (y >= 0) & (y < num_classes)
    safe = jnp.where(is_class, y, 0)
    picked = jnp.take_along_axis(log_p, safe[..., None], axis=-1)[..., 0]
    # A factor, not a choice: it makes the gradient NaN as well.
    values = -picked * jnp.where(is_class, 1, jnp.nan).astype(picked.dtype)
    return _reduction.reduce(values, reduction, weights, kept)


def hinge(
    scores: Float[ArrayLike, "..."],
    labels: Real[ArrayLike, "..."],
    *,
    reduction: Reduction = "mean",
    weights: Float[ArrayLike, "..."] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Hinge loss of the support vector machine, $\ell = \max(0, 1 - y f)$.

    It is 0 once the margin $y f$ is at least 1; at exactly 1 the gradient is taken to be 0.
    `optax.losses.hinge_loss` and scikit-learn's `hinge_loss` (labels first) are the same.

    Args:
        scores: $f$, any shape; the sign is the decision.
        labels: $y$, −1 or +1, the same shape. Under a transformation another label makes its
            loss and gradient NaN.
        reduction: `"mean"`, `"sum"` or `"none"`; static.
        weights: Not negative; the losses' shape or its leading axes.
        where: Which entries count; the losses' shape or its leading axes.

    Returns:
        The loss, shape `()`, or that of `scores` where nothing is reduced.

    Raises:
        ValueError: The shapes differ, a concrete label is not −1 or +1, or an option or a weight
            is not allowed.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.foundations import losses
        >>> print(losses.hinge([2.0, 0.5, -1.0], [1, 1, 1], reduction="none"))
        [0.  0.5 2. ]

    Reference: Cortes and Vapnik, "Support-Vector Networks" (1995), section 3.
    """
    margins, kept = _margins(scores, labels, where)
    return _reduction.reduce(jax.nn.relu(1 - margins), reduction, weights, kept)


def squared_hinge(
    scores: Float[ArrayLike, "..."],
    labels: Real[ArrayLike, "..."],
    *,
    reduction: Reduction = "mean",
    weights: Float[ArrayLike, "..."] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Squared hinge loss, $\ell = \max(0, 1 - y f)^2$, without a factor ½.

    Unlike the hinge it has a gradient everywhere, $-2 y \max(0, 1 - y f)$. It is the default of
    scikit-learn's `LinearSVC`, which sums it and multiplies it by `C`.

    Args:
        scores: $f$, any shape; the sign is the decision.
        labels: $y$, −1 or +1, the same shape. Under a transformation another label makes its
            loss and gradient NaN.
        reduction: `"mean"`, `"sum"` or `"none"`; static.
        weights: Not negative; the losses' shape or its leading axes.
        where: Which entries count; the losses' shape or its leading axes.

    Returns:
        The loss, shape `()`, or that of `scores` where nothing is reduced.

    Raises:
        ValueError: The shapes differ, a concrete label is not −1 or +1, or an option or a weight
            is not allowed.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.foundations import losses
        >>> print(losses.squared_hinge([2.0, 0.5, -1.0], [1, 1, 1], reduction="none"))
        [0.   0.25 4.  ]

    Reference: Fan et al., "LIBLINEAR: A Library for Large Linear Classification" (2008).
    """
    margins, kept = _margins(scores, labels, where)
    return _reduction.reduce(jax.nn.relu(1 - margins) ** 2, reduction, weights, kept)


def exponential(
    scores: Float[ArrayLike, "..."],
    labels: Real[ArrayLike, "..."],
    *,
    reduction: Reduction = "mean",
    weights: Float[ArrayLike, "..."] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Exponential loss of AdaBoost, $\ell = e^{-y f}$.

    It grows without mercy: in float32 it is infinite from a margin of about −88.7 on. Nothing is
    clipped.

    Args:
        scores: $f$, any shape; the sign is the decision.
        labels: $y$, −1 or +1, the same shape. Under a transformation another label makes its
            loss and gradient NaN.
        reduction: `"mean"`, `"sum"` or `"none"`; static.
        weights: Not negative; the losses' shape or its leading axes.
        where: Which entries count; the losses' shape or its leading axes.

    Returns:
        The loss, shape `()`, or that of `scores` where nothing is reduced.

    Raises:
        ValueError: The shapes differ, a concrete label is not −1 or +1, or an option or a weight
            is not allowed.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.foundations import losses
        >>> print(f"{losses.exponential([0.0, 1.0], [1, -1]):.4f}")  # (1 + e) / 2
        1.8591

    Reference: Friedman, Hastie and Tibshirani, "Additive Logistic Regression" (2000), section 4.
    """
    margins, kept = _margins(scores, labels, where)
    return _reduction.reduce(jnp.exp(-margins), reduction, weights, kept)


def logistic(
    scores: Float[ArrayLike, "..."],
    labels: Real[ArrayLike, "..."],
    *,
    reduction: Reduction = "mean",
    weights: Float[ArrayLike, "..."] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Logistic margin loss, $\ell = \ln(1 + e^{-y f})$, in nats.

    The binary cross-entropy of the logit $f$ with target $(y + 1) / 2$. Divide by $\ln 2$ for the
    form that touches the 0-1 loss at 0. `torch.nn.SoftMarginLoss` is the same.

    Args:
        scores: $f$, any shape; the sign is the decision.
        labels: $y$, −1 or +1, the same shape. Under a transformation another label makes its
            loss and gradient NaN.
        reduction: `"mean"`, `"sum"` or `"none"`; static.
        weights: Not negative; the losses' shape or its leading axes.
        where: Which entries count; the losses' shape or its leading axes.

    Returns:
        The loss, shape `()`, or that of `scores` where nothing is reduced.

    Raises:
        ValueError: The shapes differ, a concrete label is not −1 or +1, or an option or a weight
            is not allowed.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.foundations import losses
        >>> print(losses.logistic([-9999.0, -1e4], [1, 1], reduction="none"))
        [ 9999. 10000.]

    Reference: Bishop (2006), section 7.1.2.
    """
    margins, kept = _margins(scores, labels, where)
    return _reduction.reduce(jax.nn.softplus(-margins), reduction, weights, kept)


def l1_penalty(parameters: PyTree[Float[ArrayLike, "..."]]) -> Float[Array, ""]:
    r"""The sum $\sum_i \lvert w_i \rvert$ over all leaves.

    Its gradient is the sign of each parameter, 0 at 0: a small weight is pushed as hard as a
    large one, which is why this penalty makes weights exactly zero. Multiply it by a strength,
    and leave out what should not shrink (biases) by passing part of the tree.

    Args:
        parameters: Any pytree of real arrays.

    Returns:
        The penalty, shape `()`, in at least float32; 0 for a tree without leaves.

    Raises:
        TypeError: A leaf is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import losses
        >>> print(losses.l1_penalty({"kernel": [[1.0, -2.0]], "bias": [0.5]}))
        3.5

    Reference: Tibshirani, "Regression Shrinkage and Selection via the Lasso" (1996), section 1.
    """
    return _over_leaves(_absolute, parameters)


def l2_penalty(parameters: PyTree[Float[ArrayLike, "..."]]) -> Float[Array, ""]:
    r"""Half the sum of squares, $\tfrac12 \sum_i w_i^2$, over all leaves.

    With the ½ its gradient is $w$ itself, so `strength * l2_penalty(w)` is what PyTorch's SGD calls
    `weight_decay=strength`. scikit-learn's `Ridge` has no ½: its `alpha` is twice this strength.

    Args:
        parameters: Any pytree of real arrays.

    Returns:
        The penalty, shape `()`, in at least float32; 0 for a tree without leaves.

    Raises:
        TypeError: A leaf is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import losses
        >>> print(losses.l2_penalty({"kernel": [[1.0, -2.0]], "bias": [1.0]}))
        3.0

    Reference: Hoerl and Kennard, "Ridge Regression" (1970), section 2.
    """
    return 0.5 * _over_leaves(jnp.square, parameters)


def elastic_net_penalty(
    parameters: PyTree[Float[ArrayLike, "..."]], *, l1_ratio: Float[ArrayLike, ""] = 0.5
) -> Float[Array, ""]:
    r"""The mixture $r \sum_i \lvert w_i \rvert + (1 - r) \tfrac12 \sum_i w_i^2$.

    With $r$ = `l1_ratio`; times `alpha` it is the penalty of scikit-learn's `ElasticNet`.

    Args:
        parameters: Any pytree of real arrays.
        l1_ratio: $r$, in [0, 1]: 1 is [`l1_penalty`][mlnotes_jax.foundations.losses.l1_penalty],
            0 is [`l2_penalty`][mlnotes_jax.foundations.losses.l2_penalty]. Traced.

    Returns:
        The penalty, shape `()`, in at least float32; 0 for a tree without leaves.

    Raises:
        ValueError: `l1_ratio` is outside [0, 1].
        TypeError: A leaf is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import losses
        >>> print(losses.elastic_net_penalty([1.0, -2.0], l1_ratio=0.5))
        2.75

    Reference: Zou and Hastie, "Regularization and Variable Selection via the Elastic Net" (2005).
    """
    _checks.in_range("l1_ratio", l1_ratio, 0, 1)
    l1, l2 = l1_penalty(parameters), l2_penalty(parameters)
    ratio = _scalar("l1_ratio", l1_ratio, l1)
    return ratio * l1 + (1 - ratio) * l2


def _entries(where: ArrayLike | None, **values: ArrayLike) -> tuple[Array, Array, Array | None]:
    """Two arrays of one shape with what is masked set to 0, and the mask."""
    a, b = _reduction.pair(**values)
    kept = _reduction.mask(where, a.shape)
    return _reduction.keep(kept, a), _reduction.keep(kept, b), kept


def _classes(name: str, scores: Array, where: ArrayLike | None) -> tuple[Array, Array | None]:
    """Scores of classes on the last axis with masked examples set to 0, and the mask."""
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise ValueError(f"{name} must have classes on the last axis, got shape {scores.shape}")
    kept = _reduction.mask(where, scores.shape[:-1])
    return _reduction.keep(kept, scores), kept


def _margins(
    scores: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> tuple[Array, Array | None]:
    """The margins y f, NaN where a label is not -1 or +1, and the mask."""
    f, y = _reduction.pair(scores=scores, labels=labels)
    kept = _reduction.mask(where, f.shape)
    f, y = _reduction.keep(kept, f), _reduction.keep(kept, y, fill=1)
    is_sign = jnp.abs(y) == 1
    if _checks.is_concrete(y) and not bool(is_sign.all()):
        raise ValueError(f"labels must be -1 or +1, got {y[~is_sign][0]}")
    return f * jnp.where(is_sign, y, jnp.nan), kept


def _absolute(x: Array) -> Array:
    """The absolute value, with gradient 0 at 0; that of `jnp.abs` is 1 there."""
    return x * jnp.sign(x)


def _t_log(t: Array, p: Array) -> Array:
    """The product t ln p with 0 ln 0 = 0, in the value and in the gradient."""
    return t * jnp.log(jnp.where((t == 0) & (p == 0), 1, p))


def _scalar(name: str, value: ArrayLike, like: Array) -> Array:
    """A hyper-parameter of rank 0 in the dtype of `like`."""
    return _checks.floating(name, value, ndim=0).astype(like.dtype)


def _over_leaves(term, parameters: PyTree[ArrayLike]) -> Array:
    """The sum of an elementwise term over all leaves, in the widest of their dtypes."""
    leaves = [_reduction.wide("parameters", leaf) for leaf in jax.tree.leaves(parameters)]
    dtype = max((leaf.dtype for leaf in leaves), key=lambda d: d.itemsize, default=jnp.float32)
    return sum((term(leaf).sum().astype(dtype) for leaf in leaves), jnp.zeros((), dtype))
