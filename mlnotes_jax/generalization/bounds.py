r"""Bounds: how far a measured error can be from the true one.

Of a hypothesis $h$ we know the loss $L(h, D_{\text{train}})$, a mean over n rows that were drawn
independently from $D_{\text{all}}$, and want $L(h, D_{\text{all}})$. If the loss of one row lies in
$[0, 1]$ and $h$ is chosen from a finite set $\mathcal H$, by looking at the rows or not,

$$P\big( |L(h, D_{\text{train}}) - L(h, D_{\text{all}})| \ge \varepsilon
  \text{ for some } h \in \mathcal H \big) \le |\mathcal H| \cdot 2 e^{-2 n \varepsilon^2} .$$

Reference: Hoeffding, *Probability Inequalities for Sums of Bounded Random Variables* (1963),
theorem 2; Shalev-Shwartz and Ben-David, *Understanding Machine Learning* (2014), chapter 4.
"""

import math
import operator
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from mlnotes_jax import _checks

__all__ = [
    "ThresholdFit",
    "TrainingDraws",
    "deviation",
    "draw_training_sets",
    "edge_count",
    "edges",
    "expected_best",
    "expected_best_bound",
    "fit_threshold",
    "hoeffding",
    "predict_threshold",
    "sample_size",
    "threshold_losses",
    "union",
]


class ThresholdFit(NamedTuple):
    """The best of a finite set of thresholds, found by trying them all.

    Attributes:
        threshold: The one with the lowest loss, the lowest of equals, shape `()`.
        loss: Its loss, shape `()`.
        losses: The loss of every threshold, shape `(num_hypotheses,)`.
    """

    threshold: Float[Array, ""]
    loss: Float[Array, ""]
    losses: Float[Array, " num_hypotheses"]


class TrainingDraws(NamedTuple):
    r"""Many training sets, drawn from one large set.

    Attributes:
        best: The fit to $D_{\text{all}}$ itself: $h^{\text{all}}$, and all losses there.
        threshold: $h^{\text{train}}$ of each draw, shape `(num_draws,)`.
        train_loss: $L(h^{\text{train}}, D_{\text{train}})$, shape `(num_draws,)`.
        all_loss: $L(h^{\text{train}}, D_{\text{all}})$, shape `(num_draws,)`.
        deviation: $\max_h |L(h, D_{\text{train}}) - L(h, D_{\text{all}})|$ over all thresholds,
            shape `(num_draws,)`. A draw is bad where this is $\varepsilon$ or more.
        single_deviation: The same for $h^{\text{all}}$ alone, shape `(num_draws,)`.
    """

    best: ThresholdFit
    threshold: Float[Array, " num_draws"]
    train_loss: Float[Array, " num_draws"]
    all_loss: Float[Array, " num_draws"]
    deviation: Float[Array, " num_draws"]
    single_deviation: Float[Array, " num_draws"]


# --- The inequalities -----------------------------------------------------------------------------


def hoeffding(
    n: Float[ArrayLike, "..."],
    epsilon: Float[ArrayLike, "..."],
    *,
    width: Float[ArrayLike, "..."] = 1.0,
) -> Float[Array, "..."]:
    r"""Bound on the probability that a mean of n numbers is off by $\varepsilon$ or more.

    $$P(|\bar z - \mathbb E \bar z| \ge \varepsilon) \le 2 e^{-2 n \varepsilon^2 / w^2}$$

    for independent numbers in an interval of width $w$.

    Args:
        n: How many numbers, positive; traced, so a fraction is taken as it is.
        epsilon: $\varepsilon > 0$.
        width: $w > 0$. 1 for a loss in [0, 1].

    Returns:
        The bound, of the common shape of the arguments. It is not cut off: above 1 it says nothing.

    Raises:
        ValueError: An argument is not positive.

    Example:
        >>> from mlnotes_jax.generalization import bounds
        >>> round(float(bounds.hoeffding(100, 0.1)), 4)
        0.2707

    Reference:
        Hoeffding (1963), theorem 2.

    Note:
        For one side, a mean that is too high (or too low), half of it is enough. The bound also
        holds for draws without replacement (section 6 of the paper).
    """
    return union(1, n, epsilon, width=width)


def union(
    num_hypotheses: Float[ArrayLike, "..."],
    n: Float[ArrayLike, "..."],
    epsilon: Float[ArrayLike, "..."],
    *,
    width: Float[ArrayLike, "..."] = 1.0,
) -> Float[Array, "..."]:
    r"""Bound on the probability that *any* of many hypotheses is measured wrongly.

    $$P\big( \max_{h \in \mathcal H} |L(h, D_{\text{train}}) - L(h, D_{\text{all}})| \ge \varepsilon
      \big) \le |\mathcal H| \cdot 2 \exp\Big( -\frac{2 n \varepsilon^2}{w^2} \Big)$$

    Args:
        num_hypotheses: $|\mathcal H|$, 1 or more. A Python integer may be as large as you like
            (`2 ** (32 * num_parameters)` for all networks of float32 weights).
        n: As in `hoeffding`: the number of training rows.
        epsilon: As in `hoeffding`.
        width: As in `hoeffding`: the range of the loss of one row.

    Returns:
        The bound, not cut off at 1.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> from mlnotes_jax.generalization import bounds
        >>> round(float(bounds.union(10_000, 500, 0.1)), 3)
        0.908

    Reference:
        Shalev-Shwartz and Ben-David (2014), section 4.2.
    """
    n, epsilon, width = _numbers(n=n, epsilon=epsilon, width=width)
    exponent = 2 * n * (epsilon / width) ** 2
    return jnp.exp(_log_count("num_hypotheses", num_hypotheses, exponent) + math.log(2) - exponent)


def deviation(
    num_hypotheses: Float[ArrayLike, "..."],
    n: Float[ArrayLike, "..."],
    delta: Float[ArrayLike, "..."],
    *,
    width: Float[ArrayLike, "..."] = 1.0,
) -> Float[Array, "..."]:
    r"""How far off, at most, except with probability $\delta$: `union` solved for $\varepsilon$.

    $$\varepsilon = w \sqrt{\frac{\ln(2 |\mathcal H| / \delta)}{2 n}}$$

    Args:
        num_hypotheses: As in `union`.
        n: As in `union`.
        delta: $\delta$, in (0, 1].
        width: As in `union`.

    Returns:
        $\varepsilon$. With probability $1 - \delta$ or more every hypothesis is measured to within
        it, and the loss of the one that looks best is within $2 \varepsilon$ of the lowest.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> from mlnotes_jax.generalization import bounds
        >>> round(float(bounds.deviation(10_000, 500, 0.05)), 3)
        0.114

    Reference:
        Shalev-Shwartz and Ben-David (2014), corollary 4.6.
    """
    n, delta, width = _numbers(n=n, delta=delta, width=width)
    _checks.in_range("delta", delta, 0, 1)
    log_ratio = _log_count("num_hypotheses", num_hypotheses, delta) + math.log(2) - jnp.log(delta)
    return width * jnp.sqrt(log_ratio / (2 * n))


def sample_size(num_hypotheses: int, epsilon: float, delta: float, *, width: float = 1.0) -> int:
    r"""How many rows are enough: the least n at which `union` is at most $\delta$.

    $$n \ge \frac{w^2}{2 \varepsilon^2} \ln \frac{2 |\mathcal H|}{\delta}$$

    A count sets the shape of an array, so this is computed on the host, in double precision.

    Args:
        num_hypotheses: As in `union`, one number.
        epsilon: As in `union`, one number.
        delta: The probability that is allowed, in (0, 1].
        width: As in `union`, one number.

    Returns:
        n.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: An argument is not one concrete number.

    Example:
        >>> from mlnotes_jax.generalization import bounds
        >>> bounds.sample_size(10_000, 0.1, 0.05)
        645

    Reference:
        Shalev-Shwartz and Ben-David (2014), corollary 4.6.
    """
    epsilon, delta, width = (
        _concrete(name, value)
        for name, value in (("epsilon", epsilon), ("delta", delta), ("width", width))
    )
    for name, value in (("epsilon", epsilon), ("delta", delta), ("width", width)):
        _checks.positive(name, value)
    _checks.in_range("delta", delta, 0, 1)
    try:
        count: float = operator.index(num_hypotheses)
    except TypeError:
        count = _concrete("num_hypotheses", num_hypotheses)
    if not 1 <= count < math.inf:
        raise ValueError(f"num_hypotheses must be at least 1 and finite, got {num_hypotheses}")
    log_ratio = math.log(count) + math.log(2) - math.log(delta)  # `log` takes integers of any size
    return max(1, math.ceil(log_ratio / 2 * (width / epsilon) ** 2))


def expected_best(
    num_models: Float[ArrayLike, ""], n: int, *, accuracy: Float[ArrayLike, ""] = 0.5
) -> Float[Array, ""]:
    r"""The accuracy that the luckiest of many equally good models reaches on n rows, on average.

    Each model is right on each row with probability $p$, independently. With the distribution
    function $F$ of the number of right answers, binomial,

    $$\mathbb E \max_{m \le M} \frac{K_m}{n} = \frac1n \sum_{k=0}^{n-1} \big( 1 - F(k)^M \big) .$$

    Args:
        num_models: M, 1 or more; traced.
        n: Rows of the validation set; static.
        accuracy: $p$, the true accuracy of every model.

    Returns:
        The expected best accuracy; any excess over `accuracy` is luck.

    Raises:
        ValueError: An argument is out of its range.
        TypeError: `n` is not an integer.

    Example:
        >>> from mlnotes_jax.generalization import bounds
        >>> round(float(bounds.expected_best(1000, 100)), 3)
        0.661

    Reference:
        David and Nagaraja, *Order Statistics* (2003), section 3.1.
    """
    _checks.positive_int("n", n)
    (models,) = _numbers(num_models=num_models)
    _checks.in_range("num_models", models, 1, float("inf"))
    p = _checks.floating("accuracy", accuracy, ndim=0).astype(models.dtype)
    _checks.in_range("accuracy", p, 0, 1)
    k = jnp.arange(1, n + 1, dtype=models.dtype)
    # P(K >= k) = I_p(k, n - k + 1) keeps its digits in the upper tail, where 1 - F(k) would not.
    tail = jax.scipy.special.betainc(k, n + 1 - k, jnp.broadcast_to(p, k.shape))
    tail = jnp.minimum(tail, 1)  # what rounding may add would have no logarithm
    return -jnp.expm1(models * jnp.log1p(-tail)).sum() / n


def expected_best_bound(
    num_models: Float[ArrayLike, "..."],
    n: Float[ArrayLike, "..."],
    *,
    accuracy: Float[ArrayLike, "..."] = 0.5,
) -> Float[Array, "..."]:
    r"""A bound on `expected_best` that shows how it grows: $p + \sqrt{\ln M / (2 n)}$.

    It needs no independence between models.

    Args:
        num_models: M, 1 or more.
        n: Rows of the validation set, positive.
        accuracy: $p$, of every model; the highest of all, where they differ.

    Returns:
        The bound, not cut off at 1.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> from mlnotes_jax.generalization import bounds
        >>> round(float(bounds.expected_best_bound(1000, 100)), 3)
        0.686

    Reference:
        Boucheron, Lugosi and Massart, *Concentration Inequalities* (2013), theorem 2.5.
    """
    models, n = _numbers(num_models=num_models, n=n)
    _checks.in_range("num_models", models, 1, float("inf"))
    p = _checks.floating("accuracy", accuracy).astype(models.dtype)
    _checks.in_range("accuracy", p, 0, 1)
    return p + jnp.sqrt(jnp.log(models) / (2 * n))


# --- The threshold classifier ---------------------------------------------------------------------


def edges(
    pictures: Float[ArrayLike, "... height width"], *, sharpness: Float[ArrayLike, ""] = 0.25
) -> Bool[Array, "... height width"]:
    r"""Where a grey picture has an edge: where its brightness changes fast.

    The slope across and down is measured by Sobel's filters, divided by 8 so that a ramp that rises
    by $s$ from pixel to pixel has the slope $s$; an edge is where $g_x^2 + g_y^2 \ge s^2$:

    $$g_x = \frac18 \begin{pmatrix} -1 & 0 & 1 \\ -2 & 0 & 2 \\ -1 & 0 & 1 \end{pmatrix} * x , \quad
      g_y = \frac18 \begin{pmatrix} -1 & -2 & -1 \\ 0 & 0 & 0 \\ 1 & 2 & 1 \end{pmatrix} * x .$$

    Outside the picture the pixels of its border go on, so that the frame is not an edge.

    Args:
        pictures: Brightness, shape `(..., height, width)`. Take `x[..., 0]` of pictures with a
            channel axis.
        sharpness: $s > 0$, in brightness per pixel. A step from 0 to 1 has the slope 0.5 on both
            sides.

    Returns:
        Whether each pixel is on an edge.

    Raises:
        ValueError: There are fewer than two axes, or `sharpness` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import bounds
        >>> bounds.edges(jnp.array([[0.0, 0.0, 1.0, 1.0]])).astype(int).tolist()
        [[0, 1, 1, 0]]

    Reference:
        Gonzalez and Woods, *Digital Image Processing* (2018), section 10.2.
    """
    x = _checks.floating("pictures", pictures)
    if x.ndim < 2:
        raise ValueError(f"pictures must have height and width, got shape {x.shape}")
    limit = _checks.floating("sharpness", sharpness, ndim=0).astype(x.dtype)
    _checks.positive("sharpness", limit)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    across = x[..., :, 2:] - x[..., :, :-2]
    down = x[..., 2:, :] - x[..., :-2, :]
    slope_x = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    slope_y = down[..., :, :-2] + 2 * down[..., :, 1:-1] + down[..., :, 2:]
    return (slope_x / 8) ** 2 + (slope_y / 8) ** 2 >= limit**2


def edge_count(
    pictures: Float[ArrayLike, "... height width"], *, sharpness: Float[ArrayLike, ""] = 0.25
) -> Int[Array, "..."]:
    """How many pixels of a picture are on an edge: one number that says how intricate it is.

    Args:
        pictures: As in `edges`.
        sharpness: As in `edges`.

    Returns:
        The number of edge pixels, int32, shape `(...)`.

    Raises:
        ValueError: As `edges`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import bounds
        >>> int(bounds.edge_count(jnp.zeros((4, 6)).at[:, 3:].set(1.0)))  # a step: two columns
        8
    """
    return edges(pictures, sharpness=sharpness).sum(axis=(-2, -1), dtype=jnp.int32)


def threshold_losses(
    feature: Float[ArrayLike, " n"],
    y: Int[ArrayLike, " n"],
    thresholds: Float[ArrayLike, " num_hypotheses"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> Float[Array, " num_hypotheses"]:
    r"""The share of rows that each threshold gets wrong.

    Hypothesis $h$ answers 1 where the feature is at least $h$, else 0. It errs on rows of class 1
    below $h$ and on rows of class 0 from $h$ on. With the thresholds sorted and each row ranked
    among them, both are cumulative sums: $(n + |\mathcal H|) \log |\mathcal H|$ operations, not
    $n |\mathcal H|$.

    Args:
        feature: One number for each row, shape `(n,)`.
        y: Classes, 0 or 1, shape `(n,)`.
        thresholds: $\mathcal H$, in any order, shape `(num_hypotheses,)`. `-inf` always answers 1,
            `inf` always 0.
        sample_weight: Not negative, shape `(n,)`; zero drops a row. All ones by default.

    Returns:
        The (weighted) error rates.

    Raises:
        ValueError: Shapes do not match, data are empty, not finite or mislabelled, or weights are
            negative or all 0.
        TypeError: `y` does not hold integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import bounds
        >>> feature, y = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([0, 1, 0, 1])
        >>> bounds.threshold_losses(feature, y, [1.0, 2.0, 3.0, 4.0, 5.0]).tolist()
        [0.5, 0.25, 0.5, 0.25, 0.5]
    """
    feature = _checks.floating("feature", feature, ndim=1)
    y = _checks.integer("y", y, ndim=1)
    _checks.same_length(feature=feature, y=y)
    _checks.not_empty("feature", feature)
    _checks.finite("feature", feature)
    _checks.class_labels("y", y, 2)
    thresholds = _checks.floating("thresholds", thresholds, ndim=1).astype(feature.dtype)
    _checks.not_empty("thresholds", thresholds)
    dtype = jnp.promote_types(feature.dtype, jnp.float32)
    if sample_weight is None:
        weight = jnp.ones_like(feature, dtype=dtype)
    else:
        weight = _checks.floating("sample_weight", sample_weight, ndim=1).astype(dtype)
        _checks.same_length(sample_weight=weight, y=y)
        _checks.finite("sample_weight", weight)
        _checks.not_negative("sample_weight", weight)
        _checks.positive("the sum of sample_weight", weight.sum())
    order, passed = _rank(feature, thresholds)
    losses = _losses(passed, y, weight, thresholds.shape[0])
    return jnp.zeros_like(losses).at[order].set(losses)


def fit_threshold(
    feature: Float[ArrayLike, " n"],
    y: Int[ArrayLike, " n"],
    thresholds: Float[ArrayLike, " num_hypotheses"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> ThresholdFit:
    """Try every threshold of a finite set, and keep the one with the lowest loss.

    Args:
        feature: As in `threshold_losses`.
        y: As in `threshold_losses`.
        thresholds: As in `threshold_losses`.
        sample_weight: As in `threshold_losses`.

    Returns:
        The best threshold (the lowest of equals) and the losses of all.

    Raises:
        ValueError: As `threshold_losses`.
        TypeError: As `threshold_losses`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import bounds
        >>> feature, y = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([0, 0, 1, 1])
        >>> found = bounds.fit_threshold(feature, y, jnp.arange(6.0))
        >>> float(found.threshold), float(found.loss)
        (3.0, 0.0)
    """
    losses = threshold_losses(feature, y, thresholds, sample_weight=sample_weight)
    thresholds, loss = _checks.floating("thresholds", thresholds), losses.min()
    return ThresholdFit(jnp.where(losses == loss, thresholds, jnp.inf).min(), loss, losses)


def predict_threshold(model: ThresholdFit, feature: Float[ArrayLike, "..."]) -> Int[Array, "..."]:
    """Answer 1 where the feature is at least the threshold, else 0.

    Args:
        model: From `fit_threshold`.
        feature: Any shape.

    Returns:
        Classes, int32, of the same shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import bounds
        >>> model = bounds.fit_threshold(jnp.array([1.0, 3.0]), jnp.array([0, 1]), [2.0])
        >>> bounds.predict_threshold(model, [1.5, 2.0]).tolist()
        [0, 1]
    """
    feature = _checks.floating("feature", feature)
    return (feature >= model.threshold.astype(feature.dtype)).astype(jnp.int32)


def draw_training_sets(
    key: Key[Array, ""],
    feature: Float[ArrayLike, " n_all"],
    y: Int[ArrayLike, " n_all"],
    thresholds: Float[ArrayLike, " num_hypotheses"],
    *,
    n: Int[ArrayLike, ""],
    num_draws: int = 1000,
    capacity: int | None = None,
    chunk_size: int | None = None,
) -> TrainingDraws:
    r"""Draw many training sets from a large set, and fit a threshold to each.

    The rows given are $D_{\text{all}}$. Each $D_{\text{train}}$ is n of them, drawn independently,
    with replacement: the case for which `union` is proved, with $D_{\text{all}}$ known. In every
    draw, with $\varepsilon$ for `deviation`,

    $$L(h^{\text{train}}, D_{\text{all}}) \le L(h^{\text{train}}, D_{\text{train}}) + \varepsilon
      \le L(h^{\text{all}}, D_{\text{train}}) + \varepsilon
      \le L(h^{\text{all}}, D_{\text{all}}) + 2 \varepsilon .$$

    Args:
        key: Draws the rows.
        feature: As in `threshold_losses`.
        y: As in `threshold_losses`.
        thresholds: As in `threshold_losses`.
        n: Rows of each training set; static, unless `capacity` is given.
        num_draws: How many training sets; static.
        capacity: The most rows; static. With it `n` may be traced, so that many sizes are one
            `vmap`: each training set is the first n of so many rows.
        chunk_size: How many at once; static. All, by default.

    Returns:
        Losses on both sets and the largest deviation, for each draw.

    Raises:
        ValueError: As `threshold_losses`, or a count is too small.
        TypeError: As `threshold_losses`, or a count is not an integer.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import bounds
        >>> feature, y = jnp.arange(100.0), jnp.arange(100) // 50
        >>> draws = bounds.draw_training_sets(
        ...     jax.random.key(0), feature, y, jnp.arange(101.0), n=20, num_draws=50
        ... )
        >>> bool((draws.all_loss - draws.best.loss <= 2 * draws.deviation + 1e-6).all())
        True
    """
    if capacity is None:
        _checks.positive_int("n", n)
        capacity = int(cast(int, n))
    _checks.positive_int("capacity", capacity)
    size = _checks.count("n", n)
    _checks.in_range("n", size, 1, capacity)
    _checks.positive_int("num_draws", num_draws)
    if chunk_size is not None:
        _checks.positive_int("chunk_size", chunk_size)
    best = fit_threshold(feature, y, thresholds)
    feature, y = _checks.floating("feature", feature), _checks.integer("y", y)
    thresholds = _checks.floating("thresholds", thresholds)
    # What a row does to all losses depends only on how many thresholds it passes: rank it once.
    order, passed = _rank(feature, thresholds.astype(feature.dtype))
    thresholds, losses_all = thresholds[order], best.losses[order]
    home = jnp.argmin(losses_all)

    def one(key: Array) -> tuple[Array, ...]:
        rows = jax.random.randint(key, (capacity,), 0, feature.shape[0])
        weight = (jnp.arange(capacity) < size).astype(losses_all.dtype)
        losses = _losses(passed[rows], y[rows], weight, thresholds.shape[0])
        chosen = jnp.argmin(losses)
        off = jnp.abs(losses - losses_all)
        return thresholds[chosen], losses[chosen], losses_all[chosen], off.max(), off[home]

    keys = jax.random.split(key, num_draws)
    if chunk_size is None:
        drawn = jax.vmap(one)(keys)
    else:
        drawn = jax.lax.map(one, keys, batch_size=min(chunk_size, num_draws))
    return TrainingDraws(best, *drawn)


def _rank(feature: Array, thresholds: Array) -> tuple[Array, Array]:
    """The order of the thresholds, and how many of them each row passes."""
    order = jnp.argsort(thresholds)
    return order, jnp.searchsorted(thresholds[order], feature, side="right")


def _losses(passed: Array, y: Array, weight: Array, num_hypotheses: int) -> Array:
    """Losses of the thresholds in their order; threshold k answers 1 to rows that pass more than k.

    Below the lowest threshold all rows of class 0 are wrong. Each threshold turns the answers to
    the rows that do not pass it.
    """
    zeros = jnp.where(y == 1, 0, weight)
    turned = jnp.zeros_like(weight, shape=(num_hypotheses + 1,)).at[passed].add(weight - 2 * zeros)
    return (zeros.sum() + jnp.cumsum(turned[:-1])) / weight.sum()


def _numbers(**values: ArrayLike) -> tuple[Array, ...]:
    """Positive floating-point arrays of one dtype, the widest of them and at least float32."""
    arrays = {name: _checks.floating(name, value) for name, value in values.items()}
    for name, array in arrays.items():
        _checks.positive(name, array)
    dtype = max((jnp.dtype(jnp.float32), *(a.dtype for a in arrays.values())), key=_itemsize)
    return tuple(array.astype(dtype) for array in arrays.values())


def _itemsize(dtype: jnp.dtype) -> int:
    return dtype.itemsize


def _log_count(name: str, value: ArrayLike, like: Array) -> float | Array:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
        return math.log(value)  # of an integer of any size
    array = _checks.floating(name, value)
    _checks.in_range(name, array, 1, float("inf"))
    return jnp.log(array.astype(like.dtype))


def _concrete(name: str, value: ArrayLike) -> float:
    if not _checks.is_concrete(value):
        raise TypeError(f"{name} must be one concrete number, got a traced array")
    array = _checks.floating(name, value, ndim=0)
    return float(value) if isinstance(value, int | float) else float(array)
