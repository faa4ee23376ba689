"""How losses treat shapes, dtypes, masks, weights and the final sum."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from mlnotes_jax import _checks

Reduction = Literal["mean", "sum", "none"]


def wide(name: str, value: ArrayLike) -> Array:
    """Turn `value` into a floating-point array of at least 32 bits."""
    array = _checks.floating(name, value)
    return array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array


def pair(**values: ArrayLike) -> tuple[Array, Array]:
    """Two arrays of one shape and of the first one's dtype; a missing axis is never invented."""
    (first_name, first), (second_name, second) = values.items()
    a = wide(first_name, first)
    b = _checks.floating(second_name, second)
    _checks.same_shape(**{first_name: a, second_name: b})
    return a, b.astype(a.dtype)


def mask(where: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """The mask with the shape of the losses, or None where there is none."""
    if where is None:
        return None
    array = jnp.asarray(where)
    if array.dtype != jnp.bool_:
        raise TypeError(f"where must be a Boolean array, got dtype {array.dtype}")
    return _spread("where", array, shape)


def keep(where: Array | None, value: Array, fill: float = 0) -> Array:
    """Put `fill` in the place of what is masked.

    This is done to the *inputs*, before any arithmetic: a NaN that is computed and dropped later
    still reaches the gradient, as 0 * NaN.
    """
    if where is None:
        return value
    where = where.reshape(where.shape + (1,) * (value.ndim - where.ndim))
    return jnp.where(where, value, jnp.asarray(fill, value.dtype))


def reduce(
    losses: Array, reduction: Reduction, weights: ArrayLike | None, where: Array | None
) -> Array:
    """Weigh the losses and reduce them; `where` has their shape."""
    _checks.one_of("reduction", reduction, ("mean", "sum", "none"))
    count: int | Array = losses.size
    if weights is not None:
        w = _spread("weights", _checks.floating("weights", weights), losses.shape)
        w = keep(where, w.astype(losses.dtype))
        _checks.not_negative("weights", w)
        losses = losses * w
        count = w.sum()
    elif where is not None:
        count = where.sum(dtype=losses.dtype)
    losses = keep(where, losses)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / count


def _spread(name: str, value: Array, shape: tuple[int, ...]) -> Array:
    """Repeat `value`, whose axes are the leading ones of `shape`, along the others."""
    if value.shape != shape[: value.ndim]:
        raise ValueError(
            f"{name} must have the leading axes of the losses, of shape {shape}, "
            f"got shape {value.shape}"
        )
    return jnp.broadcast_to(value.reshape(value.shape + (1,) * (len(shape) - value.ndim)), shape)
