"""What every kind of normalization is made of: moments, their derivative, masks, shapes."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, ArrayLike

from mlnotes_jax import _checks


def standardize(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    epsilon: ArrayLike,
    where: ArrayLike | None,
    axes: tuple[int, ...],
) -> tuple[Array, Array, Array, Array]:
    """Normalize over `axes`, along which `scale` and `bias` are constant.

    Returns:
        The output in the dtype of `x`; mean, variance and count, with `axes` kept as 1.
    """
    if any(x.shape[axis] == 0 for axis in axes):
        raise ValueError(f"x must not be empty where it is averaged, got shape {x.shape}")
    wide, kept = wide_dtype(x.dtype), mask(where, x.shape)
    count = count_kept(kept, x.shape, axes, wide)
    scale, bias = (None if a is None else a.astype(wide) for a in (scale, bias))
    epsilon = jnp.asarray(epsilon, wide)
    y, mean, var = _standardize(axes, x.astype(wide), scale, bias, epsilon, kept, count)
    return y.astype(x.dtype), mean, var, count


def moments(
    axes: tuple[int, ...], x: Array, kept: Array | None, count: Array
) -> tuple[Array, Array, Array]:
    """Mean, variance and `x - mean`, zero where hidden.

    Two passes. One pass with the mean of the squares minus the square of the mean would be a
    little faster and, where the mean is large, lose every digit of the variance.
    """
    count = jnp.maximum(count, 1)
    mean = hide(kept, x).sum(axes, keepdims=True) / count
    centred = hide(kept, x - mean)
    return mean, jnp.square(centred).sum(axes, keepdims=True) / count, centred


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _standardize(
    axes: tuple[int, ...],
    x: Array,
    scale: Array | None,
    bias: Array | None,
    epsilon: Array,
    kept: Array | None,
    count: Array,
) -> tuple[Array, Array, Array]:
    mean, var, centred = moments(axes, x, kept, count)
    factor = jax.lax.rsqrt(var + epsilon)
    y = centred * (factor if scale is None else factor * scale)
    return hide(kept, y if bias is None else y + bias), mean, var


@partial(_standardize.defjvp, symbolic_zeros=True)
def _standardize_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    # The tangent is written as factor * x_dot + (row) + normalized * (row), because the transpose
    # of this, which is what `jax.grad` runs, needs two sums over the batch: of g, and of
    # g * normalized. They serve x, scale and bias. Autodiff of the plain formula needs more.
    x, scale, bias, epsilon, kept, count = primals
    x_dot, scale_dot, bias_dot, epsilon_dot, _, _ = tangents
    mean, var, centred = moments(axes, x, kept, count)
    inverse = jax.lax.rsqrt(var + epsilon)
    factor = inverse if scale is None else inverse * scale
    normalized = centred * inverse
    y = centred * factor
    y = hide(kept, y if bias is None else y + bias)

    row = slope = mean_dot = var_dot = jnp.zeros_like(mean)
    if _moves(bias_dot):
        row = row + bias_dot
    if _moves(scale_dot):
        slope = slope + scale_dot
    if _moves(epsilon_dot):
        slope = slope - 0.5 * factor * inverse * epsilon_dot
    if not _moves(x_dot):
        return (y, mean, var), (hide(kept, row + normalized * slope), mean_dot, var_dot)
    x_dot, count = hide(kept, x_dot), jnp.maximum(count, 1)
    mean_dot = x_dot.sum(axes, keepdims=True) / count
    along = (normalized * x_dot).sum(axes, keepdims=True) / count
    var_dot = 2 * along / inverse
    y_dot = factor * x_dot + (row - factor * mean_dot) + normalized * (slope - factor * along)
    return (y, mean, var), (hide(kept, y_dot), mean_dot, var_dot)


def _moves(tangent: Any) -> bool:
    return tangent is not None and not isinstance(tangent, SymbolicZero)


def affine(
    y: Array,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    where: ArrayLike | None,
    num_axes: int = 1,
) -> Array:
    """Scale and shift; both of the shape of the last axes."""
    if scale is None and bias is None:
        return y
    wide = wide_dtype(y.dtype)
    out = y.astype(wide)
    if scale is not None:
        out = out * trailing("scale", scale, y, num_axes).astype(wide)
    if bias is not None:
        out = out + trailing("bias", bias, y, num_axes).astype(wide)
    return hide(mask(where, y.shape), out).astype(y.dtype)


def trailing(name: str, value: ArrayLike, x: Array, num_axes: int = 1) -> Array:
    """`value` with leading axes of 1, checked against the last axes of `x`."""
    array = _checks.floating(name, value)
    shapes = [x.shape[-k:] for k in range(1, num_axes + 1)]
    if array.shape not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ValueError(
            f"{name} must have shape {wanted}, as the features of x, got {array.shape}"
            + layout(x, array.shape)
        )
    return array.reshape((1,) * (x.ndim - array.ndim) + array.shape)


def layout(x: Array, features: tuple[int, ...]) -> str:
    """What to add to a message where the features of `x` seem to come second."""
    if x.ndim > 2 and features == x.shape[1:2] != x.shape[-1:]:
        return f"; x of shape {x.shape} seems to have its channels second, they must be last"
    return ""


def need_rank(name: str, x: Array, least: int, axes: str) -> None:
    """Raise `ValueError` where `x` has too few axes."""
    if x.ndim < least:
        raise ValueError(f"{name} must have at least {least} axes, {axes}, got shape {x.shape}")


def wide_dtype(dtype: Any) -> Any:
    """The dtype to sum in: at least float32."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def mask(where: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """The mask with `shape`; it comes with the leading axes of it, or all."""
    if where is None:
        return None
    array = jnp.asarray(where)
    if array.dtype != jnp.bool_:
        raise TypeError(f"where must be a Boolean array, got dtype {array.dtype}")
    if array.shape != shape[: array.ndim]:
        raise ValueError(
            f"where must have the leading axes of x, of shape {shape}, got shape {array.shape}"
        )
    return jnp.broadcast_to(array.reshape(array.shape + (1,) * (len(shape) - array.ndim)), shape)


def hide(kept: Array | None, value: Array) -> Array:
    """Zero where hidden. Done to inputs, too: a NaN times zero would still be NaN."""
    return value if kept is None else jnp.where(kept, value, jnp.zeros((), value.dtype))


def count_kept(
    kept: Array | None, shape: tuple[int, ...], axes: tuple[int, ...], dtype: Any
) -> Array:
    """How many entries each mean averages, `axes` kept as 1."""
    if kept is not None:
        return kept.sum(axes, keepdims=True, dtype=dtype)
    return jnp.full((1,) * len(shape), math.prod(shape[axis] for axis in axes), dtype)
