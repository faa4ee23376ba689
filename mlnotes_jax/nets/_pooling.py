"""Sums and maxima over sliding windows, one axis after the other.

A maximum over a rectangle is a maximum over rows of maxima over columns, and a sum likewise: $2F$
terms instead of $F^2$. Whoever takes the first maximum in each row, and then the first row, has the
first maximum in reading order. Nothing is checked here.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

__all__ = ["max_windows", "sum_windows"]

# Outside of any other program each is one, compiled once for each set of numbers.
_compiled = functools.partial(jax.jit, static_argnames=("window", "stride", "pads"), inline=True)


@_compiled
def sum_windows(
    x: Array, window: tuple[int, ...], stride: tuple[int, ...], pads: tuple[tuple[int, int], ...]
) -> Array:
    """Sum over windows on the axes before the last; padded with zeros."""
    for axis, (size, step, pad) in _axes(window, stride, pads):
        x = _pad(x, axis - 1, pad, 0.0)
        if size == step:
            x = _blocks(x, axis - 1, size).sum(axis=axis - 1)
        else:
            x = functools.reduce(jnp.add, _taps(x, axis - 1, size, step))
    return x


@_compiled
def max_windows(
    x: Array, window: tuple[int, ...], stride: tuple[int, ...], pads: tuple[tuple[int, int], ...]
) -> Array:
    """Maximum over windows on the axes before the last; padded with minus infinity."""
    for axis, (size, step, pad) in _axes(window, stride, pads):
        x = _pad(x, axis - 1, pad, -jnp.inf)
        if size > 1 or step > 1:
            x = _max_along(x, axis - 1, size, step)
    return x


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _max_along(x: Array, axis: int, size: int, step: int) -> Array:
    return functools.reduce(jnp.maximum, _taps(x, axis, size, step))


@_max_along.defjvp
def _max_along_jvp(
    axis: int, size: int, step: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    # JAX would share the gradient among equal maxima; here, as in PyTorch, the first has it all.
    taps = _taps(primals[0], axis, size, step)
    value = next(taps)
    winner = jnp.zeros(value.shape, jnp.int32)
    for number, tap in enumerate(taps, start=1):
        better = (tap > value) | jnp.isnan(tap)
        value = jnp.where(better, tap, value)
        winner = jnp.where(better, number, winner)
    (tangent,) = tangents
    if size == step:  # the transpose writes each block once
        blocks = _blocks(tangent, axis, size)
        numbers = lax.broadcasted_iota(jnp.int32, blocks.shape, axis % blocks.ndim)
        chosen = jnp.broadcast_to(jnp.expand_dims(winner, axis), blocks.shape) == numbers
        return value, jnp.where(chosen, blocks, 0.0).sum(axis=axis)
    parts = [
        jnp.where(winner == number, part, 0.0)
        for number, part in enumerate(_taps(tangent, axis, size, step))
    ]
    return value, functools.reduce(jnp.add, parts)


def _axes(
    window: tuple[int, ...], stride: tuple[int, ...], pads: tuple[tuple[int, int], ...]
) -> list[tuple[int, tuple[int, int, tuple[int, int]]]]:
    """Axes of space from the last to the first, counted from the end, and what slides there."""
    return [
        (-1 - i, each)
        for i, each in enumerate(reversed(list(zip(window, stride, pads, strict=True))))
    ]


def _pad(x: Array, axis: int, pad: tuple[int, int], value: float) -> Array:
    if not any(pad):
        return x
    edges = [(0, 0, 0)] * x.ndim
    edges[axis] = (*pad, 0)
    return lax.pad(x, jnp.asarray(value, x.dtype), edges)


def _blocks(x: Array, axis: int, size: int) -> Array:
    """Cut an axis into whole blocks: the new axis, at the same place from the end, is the block."""
    axis %= x.ndim
    count = x.shape[axis] // size
    x = lax.slice_in_dim(x, 0, count * size, axis=axis)
    return x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])


def _taps(x: Array, axis: int, size: int, step: int) -> Iterator[Array]:
    """What the first, second, ... place of every window sees."""
    span = (x.shape[axis] - size) // step * step + 1
    for first in range(size):
        yield lax.slice_in_dim(x, first, first + span, step, axis=axis)
