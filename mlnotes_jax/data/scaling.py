r"""Scaling: put every feature on one scale, learnt from the training rows only, and undo it.

A scaling is a shift $m_j$ and a scale $s_j > 0$ for each feature $j$:

$$ \tilde{x}_{ij} = \frac{x_{ij} - m_j}{s_j}, \qquad x_{ij} = s_j \tilde{x}_{ij} + m_j $$

- standardise: $m_j$ is the mean and $s_j$ the standard deviation (divisor $n$, not $n - 1$);
- min-max: the smallest value goes to `low`, the largest to `high`;
- divide by the maximum: $m_j = 0$ and $s_j = \max_i |x_{ij}|$.

Reference: LeCun, Bottou, Orr and Müller, *Efficient BackProp* (1998), section 4.3.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num, Shaped

from mlnotes_jax import _checks

__all__ = ["Scaling", "apply", "fit_max_abs", "fit_min_max", "fit_standard", "invert"]


class Scaling(NamedTuple):
    r"""A fitted scaling, $x \mapsto (x - m) / s$; a pytree, so it may be batched and saved.

    Attributes:
        shift: $m$, in at least float32. Its shape is that of one row of `x`, with 1 for each
            axis that was pooled: `(d,)` for a table, `(1, 1, c)` for pictures scaled by channel.
        scale: $s$, positive, the same shape.
        constant: Where the training rows have nothing to divide by: one single value, or only
            zeros for `fit_max_abs`. There the feature counts as one of spread 1, and `scale` is
            not 0.
    """

    shift: Float[Array, "..."]
    scale: Float[Array, "..."]
    constant: Bool[Array, "..."]


def fit_standard(
    x: Num[ArrayLike, "n ..."],
    *,
    axis: int | tuple[int, ...] | None = -1,
    sample_weight: Shaped[ArrayLike, " n"] | None = None,
) -> Scaling:
    r"""Learn the mean and the standard deviation of each feature.

    With weights $w_i \ge 0$ and $W = \sum_i w_i$,

    $$ m_j = \frac{1}{W} \sum_i w_i x_{ij}, \qquad
       s_j^2 = \frac{1}{W} \sum_i w_i (x_{ij} - m_j)^2 $$

    The sums run twice over the data, the second time over differences from a first mean, and are
    corrected by the mean that is left: a feature with mean $10^6$ and standard deviation 1 keeps
    its digits in float32, and the square of a large value does not overflow.

    Args:
        x: Training rows, shape `(n, ...)`, floating or integer; a table `(n, d)`, or pictures
            `(n, height, width, channels)`.
        axis: The axis, or axes, that keep a mean of their own; all others are pooled. -1: for each
            feature of a table, each channel of a picture whose channels come last. None: one mean
            for everything. Axis 0, the rows, is always pooled. Static.
        sample_weight: Weight of each row, shape `(n,)`, not negative; a boolean mask will do.
            Rows of weight 0 are not looked at: that is how folds leak nothing.

    Returns:
        The scaling, in at least float32. If all weights are 0 under a transformation, it is NaN.

    Raises:
        TypeError: `x` is not real.
        ValueError: A shape or `axis` does not fit; concrete data of positive weight are not
            finite, or concrete weights are negative or all zero.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.data import scaling
        >>> x = jnp.array([[1.0, 100.0], [3.0, 300.0]])
        >>> scaling.apply(scaling.fit_standard(x), x).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]

    Reference:
        Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983), the
        corrected two-pass algorithm.

    Note:
        `sklearn.preprocessing.StandardScaler` has the same divisor $n$; `pandas.DataFrame.std` and
        `torch.std` divide by $n - 1$ unless told otherwise.
    """
    return _standard(*_checked(x, axis, sample_weight))


def fit_min_max(
    x: Num[ArrayLike, "n ..."],
    *,
    low: Float[ArrayLike, ""] = 0.0,
    high: Float[ArrayLike, ""] = 1.0,
    axis: int | tuple[int, ...] | None = -1,
    sample_weight: Shaped[ArrayLike, " n"] | None = None,
) -> Scaling:
    r"""Learn the smallest and the largest value of each feature, to map them to `low` and `high`.

    With $a$ = `low` and $b$ = `high`,

    $$ s_j = \frac{\max_i x_{ij} - \min_i x_{ij}}{b - a}, \qquad m_j = \min_i x_{ij} - a s_j $$

    Rows that were not in the training set may land outside of `[low, high]`: they are not clipped.
    A constant feature is taken to have range 1, so that it goes to `low`.

    Args:
        x: Training rows, shape `(n, ...)`; see `fit_standard`.
        low: Where the smallest training value goes. Traced.
        high: Where the largest training value goes. Traced.
        axis: Axes that keep extremes of their own; see `fit_standard`. Static.
        sample_weight: Shape `(n,)`; only whether it is 0 matters here.

    Returns:
        The scaling, in at least float32.

    Raises:
        TypeError: `x` is not real.
        ValueError: As for `fit_standard`, or a concrete `low` is not less than a concrete `high`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.data import scaling
        >>> x = jnp.array([[1.0], [2.0], [5.0]])
        >>> scaling.apply(scaling.fit_min_max(x, low=-1.0), x)[:, 0].tolist()
        [-1.0, -0.5, 1.0]

    Reference:
        scikit-learn user guide, section "Scaling features to a range".
    """
    if _checks.is_concrete((low, high)) and not np.all(np.asarray(low) < np.asarray(high)):
        raise ValueError(f"low must be less than high, got low = {low} and high = {high}")
    values, weight, pooled = _checked(x, axis, sample_weight)
    low, high = (jnp.asarray(v, values.dtype) for v in (low, high))
    return _min_max(values, weight, pooled, low, high)


def fit_max_abs(
    x: Num[ArrayLike, "n ..."],
    *,
    axis: int | tuple[int, ...] | None = -1,
    sample_weight: Shaped[ArrayLike, " n"] | None = None,
) -> Scaling:
    r"""Learn the largest magnitude of each feature, to divide by it.

    $m_j = 0$ and $s_j = \max_i |x_{ij}|$: values go into $[-1, 1]$, those that are not negative
    into $[0, 1]$, and zeros stay zeros. A feature of zeros is divided by 1.

    Args:
        x: Training rows, shape `(n, ...)`; see `fit_standard`.
        axis: Axes that keep a maximum of their own; see `fit_standard`. Static.
        sample_weight: Shape `(n,)`; only whether it is 0 matters here.

    Returns:
        The scaling, in at least float32.

    Raises:
        TypeError: `x` is not real.
        ValueError: As for `fit_standard`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.data import scaling
        >>> x = jnp.array([[1.0, -4.0], [2.0, 1.0]])
        >>> scaling.apply(scaling.fit_max_abs(x), x).tolist()
        [[0.5, -1.0], [1.0, 0.25]]

    Reference:
        scikit-learn user guide, section "Scaling features to a range".
    """
    return _max_abs(*_checked(x, axis, sample_weight))


def apply(model: Scaling, x: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Scale rows, seen or unseen: $\tilde{x} = (x - m) / s$.

    Args:
        model: From one of the `fit_` functions.
        x: One row, in the shape of a row of the training set, or any number of leading axes more.

    Returns:
        The scaled values in the shape of `x`, in its dtype if that is floating.

    Raises:
        TypeError: `x` is not real.
        ValueError: The last axes of `x` do not fit the model.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.data import scaling
        >>> model = scaling.fit_max_abs(jnp.array([[1.0, -4.0], [2.0, 1.0]]))
        >>> scaling.apply(model, jnp.array([4.0, 2.0])).tolist()
        [2.0, 0.5]
    """
    x, shift, scale = _fitting("x", x, model)
    return ((x.astype(scale.dtype) - shift) / scale).astype(x.dtype)


def invert(model: Scaling, z: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Bring scaled rows back to their own units: $x = s \tilde{x} + m$.

    Args:
        model: The scaling that was applied.
        z: Scaled values; see `apply` for the shape.

    Returns:
        The values in the shape of `z`, in its dtype if that is floating.

    Raises:
        TypeError: `z` is not real.
        ValueError: The last axes of `z` do not fit the model.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.data import scaling
        >>> model = scaling.fit_min_max(jnp.array([[2.0], [6.0]]))
        >>> scaling.invert(model, jnp.array([[0.5]])).tolist()
        [[4.0]]
    """
    z, shift, scale = _fitting("z", z, model)
    return (z.astype(scale.dtype) * scale + shift).astype(z.dtype)


def _checked(
    x: Num[ArrayLike, "n ..."],
    axis: int | tuple[int, ...] | None,
    sample_weight: Shaped[ArrayLike, " n"] | None,
) -> tuple[Array, Array | None, tuple[int, ...]]:
    """Check the arguments of a fit.

    Returns:
        The values in at least float32, 0 where the weight is; the weights with as many axes; the
        axes to pool.
    """
    array = _checks.floating("x", x)
    if array.ndim == 0:
        raise ValueError("x must have an axis of rows, got shape ()")
    _checks.not_empty("x", array)
    pooled = _pooled(array.ndim, axis)
    values = array.astype(_wide(array.dtype))
    if sample_weight is None:
        _checks.finite("x", array)
        return values, None, pooled
    weight = _checks.floating("sample_weight", sample_weight, ndim=1).astype(values.dtype)
    _checks.same_length(x=array, sample_weight=weight)
    _checks.not_negative("sample_weight", weight)
    concrete = _checks.is_concrete(weight)
    if concrete:
        _checks.finite("sample_weight", weight)
        if not np.any(np.asarray(weight) > 0):
            raise ValueError("sample_weight must be positive for at least one row")
    weight = weight.reshape(-1, *(1,) * (array.ndim - 1))
    values = jnp.where(weight > 0, values, 0.0)  # a NaN times a weight of 0 would still be NaN
    if concrete:
        _checks.finite("x", values)
    return values, weight, pooled


@partial(jax.jit, static_argnums=2)
def _standard(values: Array, weight: Array | None, pooled: tuple[int, ...]) -> Scaling:
    share = _share(values, weight, pooled)
    low, high = _extremes(values, weight, pooled)

    def mean(v: Array) -> Array:
        return (share * v).sum(axis=pooled, keepdims=True)

    constant = low == high
    # Any fixed number may be subtracted first without a change of the result or its gradient; one
    # near the mean leaves small differences, whose sum loses no digits.
    rough = jax.lax.stop_gradient(mean(values))
    centre = rough + mean(values - rough)
    reach = jax.lax.stop_gradient(jnp.maximum(high - centre, centre - low))
    reach = jnp.where(constant, 1.0, reach)  # in units of the largest residual, no overflow
    residual = (values - centre) / reach
    variance = mean(residual**2) - mean(residual) ** 2
    # `where` inside and outside: the gradient of a root at 0 is not finite.
    scale = reach * jnp.sqrt(jnp.where(constant, 1.0, variance))
    return _model(centre, jnp.where(constant, 1.0, scale), constant)


@partial(jax.jit, static_argnums=2)
def _min_max(
    values: Array, weight: Array | None, pooled: tuple[int, ...], low: Array, high: Array
) -> Scaling:
    least, most = _extremes(values, weight, pooled)
    constant = least == most
    scale = jnp.where(constant, 1.0, most - least) / (high - low)
    return _model(least - low * scale, scale, constant)


@partial(jax.jit, static_argnums=2)
def _max_abs(values: Array, weight: Array | None, pooled: tuple[int, ...]) -> Scaling:
    least, most = _extremes(values, weight, pooled)
    largest = jnp.maximum(most, -least)
    constant = largest == 0
    return _model(jnp.zeros_like(largest), jnp.where(constant, 1.0, largest), constant)


def _share(values: Array, weight: Array | None, pooled: tuple[int, ...]) -> Array:
    """The share of each value in a mean."""
    count = int(np.prod([values.shape[a] for a in pooled], dtype=int))
    if weight is None:
        return jnp.full((), 1 / count, values.dtype)
    return weight / weight.sum() / (count // values.shape[0])


def _extremes(values: Array, weight: Array | None, pooled: tuple[int, ...]) -> tuple[Array, Array]:
    """The smallest and the largest value of positive weight; NaN if there is none."""
    if weight is None:
        return values.min(axis=pooled, keepdims=True), values.max(axis=pooled, keepdims=True)
    used = weight > 0
    low = jnp.where(used, values, jnp.inf).min(axis=pooled, keepdims=True)
    high = jnp.where(used, values, -jnp.inf).max(axis=pooled, keepdims=True)
    return jnp.where(used.any(), low, jnp.nan), jnp.where(used.any(), high, jnp.nan)


def _pooled(ndim: int, axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """Axes over which statistics are taken."""
    axes = () if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    kept = set()
    for a in axes:
        if not -ndim <= a < ndim:
            raise ValueError(f"axis must be in {-ndim}..{ndim - 1} for a {ndim}-D x, got {axis}")
        kept.add(a % ndim)
    if 0 in kept:
        raise ValueError(
            f"axis must not name the rows, axis 0 of a {ndim}-D x, got {axis}"
            + (" (for a vector, say axis=None)" if ndim == 1 else "")
        )
    return tuple(a for a in range(ndim) if a not in kept)


def _wide(dtype: np.dtype) -> np.dtype:
    """At least float32."""
    return dtype if jnp.finfo(dtype).bits >= 32 else np.dtype(np.float32)


def _model(shift: Array, scale: Array, constant: Array) -> Scaling:
    return Scaling(shift[0], scale[0], constant[0])  # the axis of rows is 1 after pooling


def _fitting(name: str, x: Num[ArrayLike, "..."], model: Scaling) -> tuple[Array, Array, Array]:
    """Check that `x` fits the model; give both the same number of axes."""
    array = _checks.floating(name, x)
    row = model.scale.shape
    last = array.shape[array.ndim - len(row) :] if array.ndim >= len(row) else None
    if last is None or any(r not in (1, n) for r, n in zip(row, last, strict=True)):
        raise ValueError(f"the last axes of {name} must fit {row}, got shape {array.shape}")
    dtype = max(_wide(array.dtype), model.scale.dtype, key=lambda d: jnp.finfo(d).bits)
    leading = tuple(range(array.ndim - len(row)))
    shift, scale = (jnp.expand_dims(v, leading).astype(dtype) for v in (model.shift, model.scale))
    return array, shift, scale
