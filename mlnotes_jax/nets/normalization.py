r"""Normalization: subtract a mean, divide by a standard deviation, learn a new scale and shift.

For a set $S$ of entries of $x$ that are averaged together,

$$
\mu = \frac{1}{|S|} \sum_{i \in S} x_i, \qquad
\sigma^2 = \frac{1}{|S|} \sum_{i \in S} (x_i - \mu)^2, \qquad
\hat x_i = \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}}, \qquad
y_i = \gamma\, \hat x_i + \beta .
$$

The kinds differ in $S$. For pictures `(n, height, width, c)`, or sequences `(n, time, c)`:

| kind | averaged over | one mean for each |
| --- | --- | --- |
| batch | examples, space | channel |
| layer | channels (and space, if asked) | position of an example (example) |
| instance | space | channel of an example |
| group | space, channels of a group | group of an example |
| switchable | a learned mixture of batch, layer and instance | channel of an example |

Weight and spectral normalization rescale a *kernel* and never look at the data. $\gamma$ (`scale`)
starts at one and $\beta$ (`bias`) at zero.

Features are last everywhere. Statistics are computed in two passes, in at least float32, so that a
large mean costs no digits of the variance; outputs have the dtype of `x`. A mask `where` (true =
counted) has the leading axes of `x`, or all: what it hides is replaced before any arithmetic,
counts in no statistic, and comes out as zero.

Reference: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
Internal Covariate Shift" (2015), section 3.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float, Key

from mlnotes_jax import _checks
from mlnotes_jax.nets import _normalizing as _n

__all__ = [
    "BatchNorm",
    "BatchNormGradient",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "SingularVectors",
    "SpectralNorm",
    "Statistics",
    "SwitchableNorm",
    "WeightNorm",
    "batch_norm",
    "batch_norm_gradient",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "normalize",
    "singular_vectors",
    "spectral_norm",
    "switchable_norm",
    "update_running",
    "weight_norm",
]


class Statistics(NamedTuple):
    """Mean and variance of each feature over a batch.

    Attributes:
        mean: Shape `(c,)`, in at least float32.
        var: The mean squared distance from it, divided by the count (biased), shape `(c,)`.
        count: How many entries were averaged, shape `(c,)`; less than all where some are hidden.
    """

    mean: Float[Array, " c"]
    var: Float[Array, " c"]
    count: Float[Array, " c"]


class BatchNormGradient(NamedTuple):
    """What the gradient of a loss is before batch normalization.

    Attributes:
        x: With respect to the input, its shape.
        scale: With respect to `scale`, shape `(c,)`.
        bias: With respect to `bias`, shape `(c,)`.
    """

    x: Float[Array, "n ... c"]
    scale: Float[Array, " c"]
    bias: Float[Array, " c"]


class SingularVectors(NamedTuple):
    """Estimates of the first singular vectors of a kernel seen as a matrix `(inputs, out)`.

    Attributes:
        left: Of unit length, shape `(inputs,)`; `inputs` counts all axes but the last.
        right: Of unit length, shape `(out,)`.
    """

    left: Float[Array, " inputs"]
    right: Float[Array, " out"]


def batch_norm(
    x: Float[ArrayLike, "n ... c"],
    *,
    scale: Float[ArrayLike, " c"] | None = None,
    bias: Float[ArrayLike, " c"] | None = None,
    epsilon: Float[ArrayLike, ""] = 1e-5,
    where: Bool[ArrayLike, "..."] | None = None,
) -> tuple[Float[Array, "n ... c"], Statistics]:
    r"""Normalize each feature by its own mean and variance over the batch: the *train* mode.

    $$y = \gamma\, \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta$$

    with $\mu$ and $\sigma^2$ over all axes but the last. In eval mode use `normalize` with
    statistics that were kept by `update_running`.

    Derivatives flow through the statistics. They are written by hand (see `batch_norm_gradient`)
    so that backward needs two sums over the batch; both modes of differentiation work, any number
    of times.

    Args:
        x: Shape `(n, c)` or `(n, ..., c)`; the axes between are positions in space or time.
        scale: $\gamma$, shape `(c,)`; 1 where None.
        bias: $\beta$, shape `(c,)`; 0 where None.
        epsilon: $\epsilon$, added to the variance; in the unit of `x` squared.
        where: True = counted, with the leading axes of `x`: shape `(n,)` hides examples, `(n, t)`
            positions. What is hidden comes out as 0, and may be NaN.

    Returns:
        $y$, shape and dtype of `x`, and the statistics of the batch. Where all entries of a
        feature are hidden, its mean, variance and count are 0.

    Raises:
        ValueError: A shape does not fit (channels in the second place are recognized), or there
            is nothing to average.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.nets import normalization
        >>> y, batch = normalization.batch_norm([[1.0], [3.0]], epsilon=0.0)
        >>> print(y.ravel(), batch.mean, batch.var)
        [-1.  1.] [2.] [1.]

    Reference:
        Ioffe and Szegedy (2015), algorithm 1.
    """
    x = _checks.floating("x", x)
    _n.need_rank("x", x, 2, "(n, ..., c)")
    scale, bias = _channels("scale", scale, x), _channels("bias", bias, x)
    y, *moments = _n.standardize(x, scale, bias, epsilon, where, tuple(range(x.ndim - 1)))
    return y, Statistics(*(jnp.broadcast_to(a.ravel(), x.shape[-1:]) for a in moments))


def batch_norm_gradient(
    x: Float[ArrayLike, "n ... c"],
    gradient: Float[ArrayLike, "n ... c"],
    *,
    scale: Float[ArrayLike, " c"] | None = None,
    epsilon: Float[ArrayLike, ""] = 1e-5,
    where: Bool[ArrayLike, "..."] | None = None,
) -> BatchNormGradient:
    r"""Pull the gradient of a loss back through `batch_norm`, by hand.

    With $g_i = \partial L / \partial y_i$ and $m$ entries in each mean,

    $$
    \frac{\partial L}{\partial x_i} = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} \Bigl( g_i -
    \frac1m \sum_j g_j - \hat x_i\, \frac1m \sum_j g_j \hat x_j \Bigr), \qquad
    \frac{\partial L}{\partial \gamma} = \sum_i g_i \hat x_i, \qquad
    \frac{\partial L}{\partial \beta} = \sum_i g_i .
    $$

    `jax.grad` of `batch_norm` gives the same; this is the formula to read.

    Args:
        x: The input, shape `(n, ..., c)`.
        gradient: $g$, the shape of `x`.
        scale: $\gamma$, shape `(c,)`; 1 where None.
        epsilon: $\epsilon$.
        where: As in `batch_norm`.

    Returns:
        The gradients with respect to `x`, `scale` and `bias`.

    Raises:
        ValueError: A shape does not fit.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.nets import normalization
        >>> back = normalization.batch_norm_gradient([[1.0], [3.0], [5.0]], [[1.0], [0.0], [0.0]])
        >>> print(abs(back.x.sum()) < 1e-6, back.bias)  # a common shift of x changes nothing
        True [1.]

    Reference:
        Ioffe and Szegedy (2015), section 3, where the same appears in six lines.
    """
    x = _checks.floating("x", x)
    _n.need_rank("x", x, 2, "(n, ..., c)")
    g = _checks.floating("gradient", gradient)
    _checks.same_shape(x=x, gradient=g)
    axes, wide, kept = tuple(range(x.ndim - 1)), _n.wide_dtype(x.dtype), _n.mask(where, x.shape)
    count = _n.count_kept(kept, x.shape, axes, wide)
    _, var, centred = _n.moments(axes, x.astype(wide), kept, count)
    inverse = jax.lax.rsqrt(var + jnp.asarray(epsilon, wide))
    normalized, g = centred * inverse, _n.hide(kept, g.astype(wide))
    of_bias = g.sum(axes, keepdims=True)
    of_scale = (g * normalized).sum(axes, keepdims=True)
    count = jnp.maximum(count, 1)
    of_x = inverse * (g - of_bias / count - normalized * (of_scale / count))
    if scale is not None:
        of_x = of_x * _n.trailing("scale", scale, x).astype(wide)
    return BatchNormGradient(_n.hide(kept, of_x).astype(x.dtype), of_scale.ravel(), of_bias.ravel())


def normalize(
    x: Float[ArrayLike, "... c"],
    mean: Float[ArrayLike, " c"],
    var: Float[ArrayLike, " c"],
    *,
    scale: Float[ArrayLike, " c"] | None = None,
    bias: Float[ArrayLike, " c"] | None = None,
    epsilon: Float[ArrayLike, ""] = 1e-5,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "... c"]:
    r"""Normalize with given statistics: batch normalization in *eval* mode.

    Each example is treated on its own; the map is affine in `x`.

    Args:
        x: Any shape whose last axis is `c`.
        mean: $\mu$, shape `(c,)`.
        var: $\sigma^2$, shape `(c,)`.
        scale: $\gamma$, shape `(c,)`; 1 where None.
        bias: $\beta$, shape `(c,)`; 0 where None.
        epsilon: $\epsilon$, added to the variance.
        where: True = kept, with the leading axes of `x`; what is hidden comes out as 0.

    Returns:
        $\gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$, shape and dtype of `x`.

    Raises:
        ValueError: A shape does not fit.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.nets import normalization
        >>> print(normalization.normalize([[5.0]], [1.0], [4.0], epsilon=0.0))
        [[2.]]

    Reference:
        Ioffe and Szegedy (2015), algorithm 2.
    """
    x = _checks.floating("x", x)
    _n.need_rank("x", x, 1, "(..., c)")
    wide, kept = _n.wide_dtype(x.dtype), _n.mask(where, x.shape)
    mu, variance = (
        _n.trailing(name, value, x).astype(wide) for name, value in (("mean", mean), ("var", var))
    )
    factor = jax.lax.rsqrt(variance + jnp.asarray(epsilon, wide))
    if scale is not None:
        factor = factor * _n.trailing("scale", scale, x).astype(wide)
    y = (_n.hide(kept, x).astype(wide) - mu) * factor
    if bias is not None:
        y = y + _n.trailing("bias", bias, x).astype(wide)
    return _n.hide(kept, y).astype(x.dtype)


def update_running(
    mean: Float[ArrayLike, " c"],
    var: Float[ArrayLike, " c"],
    batch: Statistics,
    *,
    decay: float | Float[Array, ""] = 0.9,
    unbiased: bool = True,
) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    r"""Move running statistics towards those of a batch.

    $$
    \mu_{\text{run}} \leftarrow \rho\, \mu_{\text{run}} + (1 - \rho)\, \mu, \qquad
    \sigma^2_{\text{run}} \leftarrow \rho\, \sigma^2_{\text{run}} + (1 - \rho)\,
    \frac{m}{m - 1} \sigma^2
    $$

    The batch is *normalized* by $\sigma^2$, the biased variance, in either case.

    Args:
        mean: $\mu_{\text{run}}$, shape `(c,)`.
        var: $\sigma^2_{\text{run}}$, shape `(c,)`.
        batch: What `batch_norm` returned.
        decay: $\rho$ in [0, 1), the weight of the *old* value.
        unbiased: Whether the factor $m / (m - 1)$ is there; static.

    Returns:
        The new mean and variance, with the dtypes of the old ones. A feature with too few entries
        (none, or one where `unbiased`) keeps its old values.

    Raises:
        ValueError: `decay` is not in [0, 1].
        TypeError: An array is not numeric.

    Example:
        >>> from mlnotes_jax.nets import normalization
        >>> _, batch = normalization.batch_norm([[1.0], [3.0]])
        >>> mean, var = normalization.update_running([0.0], [1.0], batch, decay=0.5)
        >>> print(mean, var)  # the unbiased variance of 1 and 3 is 2
        [1.] [1.5]

    Note:
        PyTorch is `unbiased=True` and its `momentum` is $1 - \rho$, the weight of the *new* value;
        Flax is `unbiased=False` and its `momentum` is $\rho$. TensorFlow's is $\rho$, too.

    Reference:
        Ioffe and Szegedy (2015), section 3.1.
    """
    mean, var = _checks.floating("mean", mean), _checks.floating("var", var)
    _checks.in_range("decay", decay, 0, 1)
    count, least, new_var = batch.count, 1, batch.var
    if unbiased:
        least, new_var = 2, batch.var * (count / jnp.maximum(count - 1, 1))

    def move(old: Array, new: Array) -> Array:
        rho, rest = jnp.asarray(decay, new.dtype), jnp.asarray(1 - decay, new.dtype)
        moved = rho * old.astype(new.dtype) + rest * new
        return jnp.where(count >= least, moved.astype(old.dtype), old)

    return move(mean, batch.mean), move(var, new_var)


def layer_norm(
    x: Float[ArrayLike, "... c"],
    *,
    scale: Float[ArrayLike, "..."] | None = None,
    bias: Float[ArrayLike, "..."] | None = None,
    num_axes: int = 1,
    epsilon: Float[ArrayLike, ""] = 1e-5,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "... c"]:
    r"""Normalize over the features of one position, or of one example: no batch, no state.

    Args:
        x: At least `num_axes` axes, `(..., c)`.
        scale: $\gamma$, of the shape of the averaged axes, or `(c,)`; 1 where None.
        bias: $\beta$, as `scale`; 0 where None.
        num_axes: How many of the last axes are averaged: 1 for each position of a sequence (the
            Transformer's), 3 for a whole picture `(height, width, c)`; static.
        epsilon: $\epsilon$, added to the variance.
        where: True = counted, with the leading axes of `x`, or all. What is hidden comes out as 0.

    Returns:
        $y$, shape and dtype of `x`.

    Raises:
        ValueError: A shape does not fit.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.nets import normalization
        >>> print(normalization.layer_norm([[1.0, 3.0], [10.0, 30.0]], epsilon=0.0))
        [[-1.  1.]
         [-1.  1.]]

    Reference:
        Ba, Kiros and Hinton, "Layer Normalization" (2016).
    """
    x = _checks.floating("x", x)
    _checks.positive_int("num_axes", num_axes)
    _n.need_rank("x", x, num_axes, "those that are averaged")
    axes = tuple(range(x.ndim - num_axes, x.ndim))
    y, *_ = _n.standardize(x, None, None, epsilon, where, axes)
    return _n.affine(y, scale, bias, where, num_axes)


def instance_norm(
    x: Float[ArrayLike, "n ... c"],
    *,
    scale: Float[ArrayLike, " c"] | None = None,
    bias: Float[ArrayLike, " c"] | None = None,
    epsilon: Float[ArrayLike, ""] = 1e-5,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "n ... c"]:
    r"""Normalize each channel of each example over space: contrast goes, content stays.

    Args:
        x: At least one axis of space, shape `(n, ..., c)`.
        scale: $\gamma$, shape `(c,)`; 1 where None.
        bias: $\beta$, shape `(c,)`; 0 where None.
        epsilon: $\epsilon$, added to the variance.
        where: True = counted, with the leading axes of `x`, or all. What is hidden comes out as 0.

    Returns:
        $y$, shape and dtype of `x`. A channel without variance comes out as $\beta$.

    Raises:
        ValueError: A shape does not fit; `(n, c)` has no space, and everything would become 0.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.nets import normalization
        >>> print(normalization.instance_norm([[[1.0], [3.0]]], epsilon=0.0).ravel())
        [-1.  1.]

    Reference:
        Ulyanov, Vedaldi and Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
        Stylization" (2016).
    """
    x = _checks.floating("x", x)
    _n.need_rank("x", x, 3, "(n, ..., c) with space between")
    y, *_ = _n.standardize(x, None, None, epsilon, where, tuple(range(1, x.ndim - 1)))
    return _n.affine(y, scale, bias, where)


def group_norm(
    x: Float[ArrayLike, "n ... c"],
    *,
    num_groups: int,
    scale: Float[ArrayLike, " c"] | None = None,
    bias: Float[ArrayLike, " c"] | None = None,
    epsilon: Float[ArrayLike, ""] = 1e-5,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "n ... c"]:
    r"""Normalize each example over space and over groups of neighbouring channels.

    One group is layer normalization over everything, `c` groups are instance normalization.

    Args:
        x: Shape `(n, ..., c)`.
        num_groups: A divisor of `c`; static.
        scale: $\gamma$, shape `(c,)`; 1 where None.
        bias: $\beta$, shape `(c,)`; 0 where None.
        epsilon: $\epsilon$, added to the variance.
        where: True = counted, with the leading axes of `x`, or all. What is hidden comes out as 0.

    Returns:
        $y$, shape and dtype of `x`.

    Raises:
        ValueError: `num_groups` does not divide `c`, or a shape does not fit.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> from mlnotes_jax.nets import normalization
        >>> x = [[1.0, 3.0, 10.0, 30.0]]
        >>> print(normalization.group_norm(x, num_groups=2, epsilon=0.0))
        [[-1.  1. -1.  1.]]

    Reference:
        Wu and He, "Group Normalization" (2018).
    """
    x = _checks.floating("x", x)
    _n.need_rank("x", x, 2, "(n, ..., c)")
    _check_groups(num_groups, x.shape[-1])
    shape = (*x.shape[:-1], num_groups, x.shape[-1] // num_groups)
    kept = _n.mask(where, x.shape)
    kept = None if kept is None else kept.reshape(shape)
    axes = (*range(1, x.ndim - 1), x.ndim)
    y, *_ = _n.standardize(x.reshape(shape), None, None, epsilon, kept, axes)
    return _n.affine(y.reshape(x.shape), scale, bias, where)


def switchable_norm(
    x: Float[ArrayLike, "n ... c"],
    mean_logits: Float[ArrayLike, "3"],
    var_logits: Float[ArrayLike, "3"],
    *,
    scale: Float[ArrayLike, " c"] | None = None,
    bias: Float[ArrayLike, " c"] | None = None,
    epsilon: Float[ArrayLike, ""] = 1e-5,
    running: tuple[ArrayLike, ArrayLike] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> tuple[Float[Array, "n ... c"], Statistics]:
    r"""Let the network mix the statistics of instance, layer and batch normalization.

    $$
    \begin{aligned}
    y &= \gamma\, \frac{x - \sum_k w_k \mu_k}{\sqrt{\sum_k w'_k \sigma_k^2 + \epsilon}} + \beta ,
    \quad k \in \{\text{instance}, \text{layer}, \text{batch}\} , \\
    w &= \operatorname{softmax}(\text{mean\_logits}), \quad
    w' = \operatorname{softmax}(\text{var\_logits}) .
    \end{aligned}
    $$

    One sweep over `x` gives $\mu$ and $\sigma^2$ of every instance; those of layer and batch follow
    by the law of total variance, $\sigma^2 = \overline{\sigma_j^2} + \overline{(\mu_j - \mu)^2}$.

    Args:
        x: At least one axis of space, shape `(n, ..., c)`.
        mean_logits: Logits of the weights of the three means: instance, layer, batch.
        var_logits: The same for the variances.
        scale: $\gamma$, shape `(c,)`; 1 where None.
        bias: $\beta$, shape `(c,)`; 0 where None.
        epsilon: $\epsilon$, added to the variance.
        running: Mean and variance, each `(c,)`, in the place of the batch's: eval mode.
        where: True = counted, with the leading axes of `x`, or all. What is hidden comes out as 0.

    Returns:
        $y$, shape and dtype of `x`, and the statistics of the batch.

    Raises:
        ValueError: A shape does not fit.
        TypeError: An array is not numeric, or the mask is not Boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import normalization
        >>> x = jnp.arange(12.0).reshape(2, 3, 2)
        >>> only_batch = jnp.array([-jnp.inf, -jnp.inf, 0.0])
        >>> y, _ = normalization.switchable_norm(x, only_batch, only_batch)
        >>> bool(jnp.allclose(y, normalization.batch_norm(x)[0], atol=1e-6))
        True

    Reference:
        Luo, Ren, Peng, Zhang and Li, "Differentiable Learning-to-Normalize via Switchable
        Normalization" (2019), section 2.
    """
    x = _checks.floating("x", x)
    _n.need_rank("x", x, 3, "(n, ..., c) with space between")
    wide, kept = _n.wide_dtype(x.dtype), _n.mask(where, x.shape)
    weights = [
        jax.nn.softmax(_three(name, value).astype(wide))
        for name, value in (("mean_logits", mean_logits), ("var_logits", var_logits))
    ]
    space, wider = tuple(range(1, x.ndim - 1)), x.astype(wide)
    count = jnp.broadcast_to(
        _n.count_kept(kept, x.shape, space, wide), (x.shape[0], *[1] * len(space), x.shape[-1])
    )
    mean, var, _ = _n.moments(space, wider, kept, count)
    layer = _pool(mean, var, count, -1)
    batch = _pool(mean, var, count, 0)
    statistics = Statistics(*(a.ravel() for a in batch))
    if running is not None:
        batch = [
            _n.trailing(f"running {name}", value, x).astype(wide)
            for name, value in zip(("mean", "var"), running, strict=True)
        ]
    mu, variance = (
        w[0] * instance + w[1] * over_layer + w[2] * over_batch
        for w, instance, over_layer, over_batch in zip(
            weights, (mean, var), layer[:2], batch[:2], strict=True
        )
    )
    y = (_n.hide(kept, wider) - mu) * jax.lax.rsqrt(variance + jnp.asarray(epsilon, wide))
    return _n.affine(_n.hide(kept, y).astype(x.dtype), scale, bias, where), statistics


def weight_norm(
    direction: Float[ArrayLike, "... out"], magnitude: Float[ArrayLike, " out"]
) -> Float[Array, "... out"]:
    r"""Part the length of a unit's weights from their direction, $w = g\, v / \lVert v \rVert$.

    Args:
        direction: $v$, a kernel whose last axis counts the units: `(in, out)` or
            `(height, width, in, out)`. Each unit has its own length, over all other axes.
        magnitude: $g$, shape `(out,)`.

    Returns:
        The kernel $w$, shape and dtype of `direction`. A direction of length zero gives NaN.

    Raises:
        ValueError: A shape does not fit.
        TypeError: An array is not numeric.

    Example:
        >>> from mlnotes_jax.nets import normalization
        >>> print(normalization.weight_norm([[3.0], [4.0]], [10.0]).ravel())
        [6. 8.]

    Reference:
        Salimans and Kingma, "Weight Normalization" (2016), section 2.
    """
    v = _checks.floating("direction", direction)
    _n.need_rank("direction", v, 2, "(..., out)")
    wide = _n.wide_dtype(v.dtype)
    g = _n.trailing("magnitude", magnitude, v).astype(wide)
    return (v.astype(wide) * (g / _lengths(v.astype(wide)))).astype(v.dtype)


def singular_vectors(
    key: Key[Array, ""], kernel: Float[ArrayLike, "... out"], *, num_steps: int = 15
) -> SingularVectors:
    r"""Start the power iteration of `spectral_norm` from a random vector.

    Args:
        key: For the start.
        kernel: Shape `(..., out)`.
        num_steps: Steps of the power iteration; static.

    Returns:
        Estimates of the first left and right singular vectors.

    Raises:
        ValueError: `kernel` has fewer than two axes, or `num_steps` is less than 1.
        TypeError: `kernel` is not numeric.

    Example:
        >>> import jax
        >>> from mlnotes_jax.nets import normalization
        >>> kernel = [[0.0, 2.0], [1.0, 0.0]]
        >>> print(abs(normalization.singular_vectors(jax.random.key(0), kernel).left.round(3)))
        [1. 0.]

    Reference:
        Golub and Van Loan, *Matrix Computations* (2013), section 8.2.
    """
    matrix = _matrix("kernel", kernel)
    _checks.positive_int("num_steps", num_steps)
    left = jax.random.normal(key, matrix.shape[:1], matrix.dtype)
    return _iterate(matrix, left, num_steps, 1e-12)


def spectral_norm(
    kernel: Float[ArrayLike, "... out"],
    vectors: SingularVectors,
    *,
    num_steps: int = 1,
    epsilon: Float[ArrayLike, ""] = 1e-12,
) -> tuple[Float[Array, "... out"], SingularVectors]:
    r"""Divide a kernel by (an estimate of) its largest singular value.

    The linear map $x \mapsto x W$ then stretches no vector: its Lipschitz constant is 1. With the
    kernel as a matrix $W$ of shape `(inputs, out)`, one step of the power iteration is
    $v \leftarrow W^\top u / \lVert W^\top u \rVert$, $u \leftarrow W v / \lVert W v \rVert$, and
    the estimate is $\hat\sigma = u^\top W v \le \sigma$. The vectors count as constants, so that
    $\partial \hat\sigma / \partial W = u v^\top$, which is exact once they have converged.

    Args:
        kernel: Shape `(in, out)` or `(height, width, in, out)`.
        vectors: $u$ and $v$ so far.
        num_steps: Steps of the power iteration: 1 in training, 0 in eval mode; static.
        epsilon: The least length that is divided by.

    Returns:
        $W / \hat\sigma$, shape and dtype of `kernel`, and the vectors to go on with. A kernel of
        zeros gives NaN.

    Raises:
        ValueError: A shape does not fit, or `num_steps` is negative.
        TypeError: An array is not numeric.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import normalization
        >>> kernel = jnp.array([[3.0, 0.0], [0.0, 1.0]])
        >>> vectors = normalization.singular_vectors(jax.random.key(0), kernel)
        >>> print(normalization.spectral_norm(kernel, vectors)[0].round(3))
        [[1.    0.   ]
         [0.    0.333]]

    Note:
        For a convolution this is the norm of the kernel as a matrix, as in PyTorch and Flax, not
        that of the whole linear map, which depends on the size of the picture and may be larger.
        The step is that of `torch.nn.utils.parametrizations`; Flax starts it from $v$.

    Reference:
        Miyato, Kataoka, Koyama and Yoshida, "Spectral Normalization for Generative Adversarial
        Networks" (2018), section 2.
    """
    matrix = _matrix("kernel", kernel)
    _checks.positive_int("num_steps", num_steps, least=0)
    for name, vector, size in zip(vectors._fields, vectors, matrix.shape, strict=True):
        if vector.shape != (size,):
            raise ValueError(f"vectors.{name} must have shape {(size,)}, got {vector.shape}")
    fixed = SingularVectors(*(vector.astype(matrix.dtype) for vector in vectors))
    if num_steps:
        fixed = _iterate(jax.lax.stop_gradient(matrix), fixed.left, num_steps, epsilon)
    left, right = fixed = jax.lax.stop_gradient(fixed)
    sigma = left @ (matrix @ right)
    kernel = jnp.asarray(kernel)
    scaled = (matrix / sigma).reshape(kernel.shape)
    return scaled.astype(_checks.floating("kernel", kernel).dtype), fixed


class BatchNorm(nnx.Module):
    r"""Batch normalization with running statistics, for `(n, ..., c)`.

    `model.train()` and `model.eval()` set `use_running_average`, which is false at first: the
    batch's own statistics are used, and the running ones move. As a value (`training.loop.bind`)
    the new running statistics are part of the new state.

    Attributes:
        scale: $\gamma$, `nnx.Param` of shape `(c,)`, one at the start; None without `affine`.
        bias: $\beta$, `nnx.Param` of shape `(c,)`, zero at the start; None without `affine`.
        mean: Running mean, `nnx.BatchStat` of shape `(c,)`, zero at the start.
        var: Running variance, `nnx.BatchStat` of shape `(c,)`, one at the start.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import normalization
        >>> norm = normalization.BatchNorm(2, rngs=nnx.Rngs(0))
        >>> y = norm(jnp.array([[1.0, 2.0], [3.0, 6.0]]))
        >>> print(y.round(2).tolist(), norm.mean[...])
        [[-1.0, -1.0], [1.0, 1.0]] [0.2 0.4]

    Note:
        `decay` is the weight of the old value: PyTorch's `momentum=0.1` is `decay=0.9`. `unbiased`
        is as in PyTorch; Flax's layer is `unbiased=False` with `decay=0.99`, called `momentum`.

    Reference:
        Ioffe and Szegedy (2015).
    """

    def __init__(
        self,
        num_features: int,
        *,
        decay: float = 0.9,
        epsilon: float = 1e-5,
        unbiased: bool = True,
        affine: bool = True,
        scale_init: Callable[..., Array] = nnx.initializers.ones,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Make the layer.

        Args:
            num_features: `c`.
            decay: Weight of the old running value in an update, in [0, 1].
            epsilon: Added to the variance.
            unbiased: Whether the running variance is that with $m - 1$.
            affine: Whether there are `scale` and `bias`.
            scale_init: How `scale` starts; zeros for the last one of a residual branch.
            param_dtype: Of parameters and running statistics.
            rngs: For `scale_init`.

        Raises:
            ValueError: `num_features` is less than 1, `decay` is not in [0, 1], or `epsilon` is
                negative.
            TypeError: `num_features` is not an integer.
        """
        _checks.in_range("decay", decay, 0, 1)
        self.decay, self.unbiased = decay, unbiased
        self.use_running_average = False
        _set_up(self, num_features, epsilon, affine, scale_init, param_dtype, rngs)
        self.mean = nnx.BatchStat(jnp.zeros(num_features, param_dtype))
        self.var = nnx.BatchStat(jnp.ones(num_features, param_dtype))

    def __call__(
        self, x: Float[Array, "n ... c"], *, where: Bool[Array, "..."] | None = None
    ) -> Float[Array, "n ... c"]:
        """Normalize by the batch (train) or by the running statistics (eval).

        Args:
            x: Shape `(n, ..., c)`.
            where: As in `batch_norm`.

        Returns:
            Shape and dtype of `x`.

        Raises:
            ValueError: A shape does not fit, or there is one value for each feature in train mode.
        """
        options = _options(self, x, where)
        if self.use_running_average:
            return normalize(x, self.mean[...], self.var[...], **options)
        if x.size == x.shape[-1]:
            raise ValueError(
                f"x must have two values or more of each feature to train, got shape {x.shape}"
            )
        y, batch = batch_norm(x, **options)
        _update(self, batch)
        return y


class LayerNorm(nnx.Module):
    """Layer normalization, for `(..., c)`: the same in train and eval mode.

    Attributes:
        scale: `nnx.Param` of the shape of the averaged axes, one; None without `affine`.
        bias: `nnx.Param` of the shape of the averaged axes, zero; None without `affine`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import normalization
        >>> norm = normalization.LayerNorm(2, rngs=nnx.Rngs(0))
        >>> print(norm(jnp.array([[1.0, 3.0], [10.0, 30.0]])).round(2).tolist())
        [[-1.0, 1.0], [-1.0, 1.0]]

    Reference:
        Ba, Kiros and Hinton (2016).
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        epsilon: float = 1e-5,
        affine: bool = True,
        scale_init: Callable[..., Array] = nnx.initializers.ones,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Make the layer.

        Args:
            num_features: `c`, or the sizes of all axes that are averaged, such as
                `(height, width, c)`.
            epsilon: Added to the variance. PyTorch's default is 1e-5, Flax's 1e-6.
            affine: Whether there are `scale` and `bias`.
            scale_init: How `scale` starts.
            param_dtype: Of the parameters.
            rngs: For `scale_init`.

        Raises:
            ValueError: A size is less than 1, or `epsilon` is negative.
            TypeError: A size is not an integer.
        """
        self.num_features = (
            tuple(num_features) if isinstance(num_features, Sequence) else num_features
        )
        _set_up(self, self.num_features, epsilon, affine, scale_init, param_dtype, rngs)

    def __call__(
        self, x: Float[Array, "... c"], *, where: Bool[Array, "..."] | None = None
    ) -> Float[Array, "... c"]:
        """Normalize; `where` as in `layer_norm`."""
        return layer_norm(x, num_axes=len(_shape(self.num_features)), **_options(self, x, where))


class InstanceNorm(nnx.Module):
    """Instance normalization, for `(n, ..., c)`: the same in train and eval mode.

    Attributes:
        scale: `nnx.Param` of shape `(c,)`, one; None without `affine` (PyTorch's default).
        bias: `nnx.Param` of shape `(c,)`, zero; None without `affine`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import normalization
        >>> norm = normalization.InstanceNorm(1, rngs=nnx.Rngs(0))
        >>> print(norm(jnp.array([[[1.0], [3.0]]])).round(2).ravel())
        [-1.  1.]

    Reference:
        Ulyanov, Vedaldi and Lempitsky (2016).
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-5,
        affine: bool = True,
        scale_init: Callable[..., Array] = nnx.initializers.ones,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Make the layer; the arguments are those of `LayerNorm`."""
        _set_up(self, num_features, epsilon, affine, scale_init, param_dtype, rngs)

    def __call__(
        self, x: Float[Array, "n ... c"], *, where: Bool[Array, "..."] | None = None
    ) -> Float[Array, "n ... c"]:
        """Normalize; `where` as in `instance_norm`."""
        return instance_norm(x, **_options(self, x, where))


class GroupNorm(nnx.Module):
    """Group normalization, for `(n, ..., c)`: the same in train and eval mode.

    Attributes:
        scale: `nnx.Param` of shape `(c,)`, one; None without `affine`.
        bias: `nnx.Param` of shape `(c,)`, zero; None without `affine`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import normalization
        >>> norm = normalization.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
        >>> print(norm(jnp.array([[1.0, 3.0, 10.0, 30.0]])).round(2))
        [[-1.  1. -1.  1.]]

    Reference:
        Wu and He (2018).
    """

    def __init__(
        self,
        num_features: int,
        *,
        num_groups: int,
        epsilon: float = 1e-5,
        affine: bool = True,
        scale_init: Callable[..., Array] = nnx.initializers.ones,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Make the layer; `num_groups` divides `num_features`, the rest is as in `LayerNorm`."""
        _set_up(self, num_features, epsilon, affine, scale_init, param_dtype, rngs)
        _check_groups(num_groups, num_features)
        self.num_groups = num_groups

    def __call__(
        self, x: Float[Array, "n ... c"], *, where: Bool[Array, "..."] | None = None
    ) -> Float[Array, "n ... c"]:
        """Normalize; `where` as in `group_norm`."""
        return group_norm(x, num_groups=self.num_groups, **_options(self, x, where))


class SwitchableNorm(nnx.Module):
    """Switchable normalization, for `(n, ..., c)`, with running statistics for its batch part.

    Attributes:
        mean_logits: `nnx.Param` of shape `(3,)`: instance, layer, batch; zero at the start.
        var_logits: `nnx.Param` of shape `(3,)`, likewise.
        scale: `nnx.Param` of shape `(c,)`, one; None without `affine`.
        bias: `nnx.Param` of shape `(c,)`, zero; None without `affine`.
        mean: Running mean, `nnx.BatchStat` of shape `(c,)`.
        var: Running variance, `nnx.BatchStat` of shape `(c,)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import normalization
        >>> norm = normalization.SwitchableNorm(2, rngs=nnx.Rngs(0))
        >>> norm(jnp.ones((4, 3, 2))).shape
        (4, 3, 2)

    Reference:
        Luo, Ren, Peng, Zhang and Li (2019).
    """

    def __init__(
        self,
        num_features: int,
        *,
        decay: float = 0.9,
        epsilon: float = 1e-5,
        unbiased: bool = True,
        affine: bool = True,
        scale_init: Callable[..., Array] = nnx.initializers.ones,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Make the layer; the arguments are those of `BatchNorm`."""
        _checks.in_range("decay", decay, 0, 1)
        self.decay, self.unbiased = decay, unbiased
        self.use_running_average = False
        _set_up(self, num_features, epsilon, affine, scale_init, param_dtype, rngs)
        self.mean_logits = nnx.Param(jnp.zeros(3, param_dtype))
        self.var_logits = nnx.Param(jnp.zeros(3, param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros(num_features, param_dtype))
        self.var = nnx.BatchStat(jnp.ones(num_features, param_dtype))

    def __call__(
        self, x: Float[Array, "n ... c"], *, where: Bool[Array, "..."] | None = None
    ) -> Float[Array, "n ... c"]:
        """Normalize; `where` as in `switchable_norm`."""
        evaluating = self.use_running_average
        y, batch = switchable_norm(
            x,
            self.mean_logits[...],
            self.var_logits[...],
            running=(self.mean[...], self.var[...]) if evaluating else None,
            **_options(self, x, where),
        )
        if not evaluating:
            _update(self, batch)
        return y


class WeightNorm(nnx.Module):
    """A layer whose kernel is a magnitude times a direction; the direction is its own kernel.

    At the start the wrapped layer computes what it did before. Any layer with a `kernel` whose last
    axis counts the outputs can be wrapped, if its call changes no state: `nnx.Linear`,
    `nnx.Conv`, this library's `Conv`.

    Attributes:
        layer: The wrapped layer; its `kernel` is the direction.
        magnitude: `nnx.Param` of shape `(out,)`, at the start the lengths of the kernel.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import normalization
        >>> linear = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> wrapped = normalization.WeightNorm(linear)
        >>> x = jnp.ones((1, 3))
        >>> bool(jnp.allclose(wrapped(x), linear(x)))
        True

    Reference:
        Salimans and Kingma (2016).
    """

    def __init__(self, layer: Any) -> None:
        """Wrap `layer`.

        Raises:
            TypeError: `layer` has no `kernel`.
        """
        kernel = _kernel(layer)
        self.layer = layer
        self.magnitude = nnx.Param(_lengths(kernel).ravel().astype(kernel.dtype))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer with the composed kernel."""
        kernel = weight_norm(_kernel(self.layer), self.magnitude[...])
        return _with_kernel(self.layer, kernel)(*args, **kwargs)


class SpectralNorm(nnx.Module):
    """A layer whose kernel is divided by its largest singular value, estimated step by step.

    The vectors of the power iteration are state, not parameters. In train mode each call makes
    `num_steps` steps and keeps the vectors; in eval mode the vectors stay. What can be wrapped is
    said at `WeightNorm`.

    Attributes:
        layer: The wrapped layer.
        left: `nnx.BatchStat` of shape `(inputs,)`, of unit length.
        right: `nnx.BatchStat` of shape `(out,)`, of unit length.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import normalization
        >>> rngs = nnx.Rngs(0)
        >>> wrapped = normalization.SpectralNorm(nnx.Linear(3, 2, rngs=rngs), rngs=rngs)
        >>> wrapped(jnp.ones((1, 3))).shape
        (1, 2)

    Reference:
        Miyato, Kataoka, Koyama and Yoshida (2018).
    """

    def __init__(
        self, layer: Any, *, num_steps: int = 1, epsilon: float = 1e-12, rngs: nnx.Rngs
    ) -> None:
        """Wrap `layer`.

        Args:
            layer: It has a `kernel`.
            num_steps: Steps of the power iteration in each call in train mode.
            epsilon: The least length that is divided by.
            rngs: For the first vectors, which have 15 steps behind them.

        Raises:
            ValueError: `num_steps` is less than 1.
            TypeError: `layer` has no `kernel`.
        """
        _checks.positive_int("num_steps", num_steps)
        vectors = singular_vectors(rngs.params(), _kernel(layer))
        self.layer, self.num_steps, self.epsilon = layer, num_steps, epsilon
        self.use_running_average = False
        self.left, self.right = nnx.BatchStat(vectors.left), nnx.BatchStat(vectors.right)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer with the scaled kernel."""
        steps = 0 if self.use_running_average else self.num_steps
        vectors = SingularVectors(self.left[...], self.right[...])
        kernel, moved = spectral_norm(
            _kernel(self.layer), vectors, num_steps=steps, epsilon=self.epsilon
        )
        if steps:
            self.left[...] = moved.left.astype(vectors.left.dtype)
            self.right[...] = moved.right.astype(vectors.right.dtype)
        return _with_kernel(self.layer, kernel)(*args, **kwargs)


def _channels(name: str, value: ArrayLike | None, x: Array) -> Array | None:
    return None if value is None else _n.trailing(name, value, x)


def _check_groups(num_groups: int, num_features: int) -> None:
    _checks.positive_int("num_groups", num_groups)
    if num_features % num_groups:
        raise ValueError(
            f"num_groups must divide the number of features, {num_features}, got {num_groups}"
        )


def _three(name: str, value: ArrayLike) -> Array:
    array = _checks.floating(name, value)
    if array.shape != (3,):
        raise ValueError(f"{name} must have shape (3,), got {array.shape}")
    return array


def _pool(mean: Array, var: Array, count: Array, axis: int) -> list[Array]:
    """Mean, variance and count of the union of sets, one set at each place along `axis`."""
    total = count.sum(axis, keepdims=True)
    share = count / jnp.maximum(total, 1)
    pooled = (share * mean).sum(axis, keepdims=True)
    spread = var + jnp.square(mean - pooled)
    return [pooled, (share * spread).sum(axis, keepdims=True), total]


def _lengths(kernel: Array) -> Array:
    """Euclidean length of each unit's weights, other axes kept as 1, in at least float32."""
    axes = tuple(range(kernel.ndim - 1))
    wide = kernel.astype(_n.wide_dtype(kernel.dtype))
    return jnp.sqrt(jnp.square(wide).sum(axes, keepdims=True))


def _matrix(name: str, kernel: ArrayLike) -> Array:
    array = _checks.floating(name, kernel)
    _n.need_rank(name, array, 2, "(..., out)")
    return array.reshape(-1, array.shape[-1]).astype(_n.wide_dtype(array.dtype))


def _iterate(matrix: Array, left: Array, num_steps: int, epsilon: ArrayLike) -> SingularVectors:
    least = jnp.asarray(epsilon, matrix.dtype)

    def unit(vector: Array) -> Array:
        return vector / jnp.maximum(jnp.linalg.norm(vector), least)

    right = jnp.zeros(matrix.shape[1:], matrix.dtype)
    for _ in range(num_steps):
        right = unit(left @ matrix)
        left = unit(matrix @ right)
    return SingularVectors(left, right)


def _set_up(
    module: Any,
    num_features: int | tuple[int, ...],
    epsilon: float,
    affine: bool,
    scale_init: Callable[..., Array],
    dtype: Any,
    rngs: nnx.Rngs,
) -> None:
    """Give `module` its sizes, epsilon, scale and bias."""
    shape = _shape(num_features)
    for size in shape:
        _checks.positive_int("num_features", size)
    _checks.not_negative("epsilon", epsilon)
    module.num_features, module.epsilon = num_features, epsilon
    module.scale = nnx.Param(scale_init(rngs.params(), shape, dtype)) if affine else None
    module.bias = nnx.Param(jnp.zeros(shape, dtype)) if affine else None


def _options(module: Any, x: Array, where: Array | None) -> dict[str, Any]:
    """Keyword arguments of the pure function, once the features of `x` are checked."""
    shape = _shape(module.num_features)
    if x.shape[-len(shape) :] != shape:
        raise ValueError(
            f"x must have the features {shape} last, got shape {x.shape}" + _n.layout(x, shape)
        )
    return {
        "scale": None if module.scale is None else module.scale[...],
        "bias": None if module.bias is None else module.bias[...],
        "epsilon": module.epsilon,
        "where": where,
    }


def _shape(num_features: int | tuple[int, ...]) -> tuple[int, ...]:
    return num_features if isinstance(num_features, tuple) else (num_features,)


def _update(module: Any, batch: Statistics) -> None:
    """Move the running statistics; no gradient flows into them."""
    module.mean[...], module.var[...] = update_running(
        module.mean[...],
        module.var[...],
        jax.lax.stop_gradient(batch),
        decay=module.decay,
        unbiased=module.unbiased,
    )


def _kernel(layer: Any) -> Array:
    if not isinstance(getattr(layer, "kernel", None), nnx.Variable):
        raise TypeError(f"layer must have a kernel, got {type(layer).__name__}")
    return layer.kernel[...]


def _with_kernel(layer: Any, kernel: Array) -> Any:
    """A copy of `layer` that has this kernel; the layer itself keeps its own."""
    graphdef, state = nnx.split(layer)
    copy = nnx.merge(graphdef, nnx.as_pure(state))
    copy.kernel[...] = kernel
    return copy
