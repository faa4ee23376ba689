"""Sums that grow batch by batch and keep their digits, and merge with those of other devices."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

# Adding a million terms one by one in float32 leaves two digits, and a count stops growing at 2^24.
# A second number per sum, for what rounding dropped, is all that it takes to keep them.


class Sum(NamedTuple):
    """A sum, and what its roundings lost."""

    value: Float[Array, "..."]
    lost: Float[Array, "..."]


class Moments(NamedTuple):
    """Total weight, mean, and the weighted sum of squares about the mean."""

    weight: Sum
    mean: Float[Array, ""]
    squares: Sum


def zero(shape: tuple[int, ...], dtype) -> Sum:
    return Sum(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def of(value: Array) -> Sum:
    return Sum(value, jnp.zeros_like(value))


def merge(a: Sum, b: Sum) -> Sum:
    """The sum of two (Knuth's two-sum, renormalised as in double-float arithmetic)."""
    value = a.value + b.value
    arrived = value - a.value
    lost = (a.value - (value - arrived)) + (b.value - arrived)  # exactly what the addition lost
    lost = lost + (a.lost + b.lost)
    # Carried over, so that `lost` stays below the last digit of `value` and loses nothing itself.
    carried = value + lost
    finite = jnp.isfinite(value)
    return Sum(jnp.where(finite, carried, value), jnp.where(finite, lost - (carried - value), 0))


def add(sum_: Sum, term: Array) -> Sum:
    return merge(sum_, of(term))


def total(sum_: Sum) -> Array:
    return sum_.value + sum_.lost


def no_moments(dtype) -> Moments:
    return Moments(zero((), dtype), jnp.zeros((), dtype), zero((), dtype))


def moments(values: Array, weight: Array) -> Moments:
    """Of one batch. Rows of weight 0 must hold a finite value."""
    count = weight.sum()
    share = weight / jnp.where(count == 0, 1, count)
    counted = weight != 0
    low = jnp.where(counted, values, jnp.inf).min()
    # Of equal values the mean is that value, and not a rounding beside it: their spread is 0.
    same = low == jnp.where(counted, values, -jnp.inf).max()
    mean = jnp.where(same, low, (share * values).sum())
    squares = jnp.where(same, 0, (weight * jnp.square(values - mean)).sum())
    return Moments(of(count), mean, of(squares))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Of two batches together, from theirs (Chan, Golub and LeVeque, 1983)."""
    weight = merge(a.weight, b.weight)
    ours, theirs, both = total(a.weight), total(b.weight), total(weight)
    share = theirs / jnp.where(both == 0, 1, both)
    apart = b.mean - a.mean
    return Moments(
        weight,
        a.mean + share * apart,
        add(merge(a.squares, b.squares), jnp.square(apart) * ours * share),
    )
