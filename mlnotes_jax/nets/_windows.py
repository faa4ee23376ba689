"""Numbers that say how a window slides: their checks, padding by name, and the count of stops."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Array

from mlnotes_jax import _checks

__all__ = [
    "Padding",
    "Size",
    "check_rank",
    "given_pads",
    "pads_of",
    "per_axis",
    "stops",
    "taps_of",
]

#: One number for all axes of space, or one for each.
Size = int | Sequence[int]

#: Zeros on every side; or for each axis a number or a pair (before, behind); or a name.
Padding = int | Sequence[int | tuple[int, int]] | Literal["same", "valid"]


def check_rank(name: str, x: Array, rank: int) -> None:
    """Raise unless `x` has the axes of space and one for the channels."""
    if x.ndim < rank + 1:
        space = ("length", "height, width", "depth, height, width")[rank - 1] if rank < 4 else "..."
        raise ValueError(f"{name} must be (..., {space}, channels), got shape {x.shape}")


def taps_of(window: Size) -> tuple[int, ...]:
    """A window's taps; one number is a square."""
    if isinstance(window, Sequence) and not isinstance(window, str):
        if not window:
            raise ValueError(f"window must have at least one axis, got {window!r}")
        return per_axis("window", window, len(window))
    return per_axis("window", window, 2)


def per_axis(name: str, value: Size, rank: int, *, least: int = 1) -> tuple[int, ...]:
    """One integer for each axis."""
    values = (value,) * rank if isinstance(value, int | np.integer) else value
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{name} must be an integer, or one for each axis, got {value!r}")
    if len(values) != rank:
        raise ValueError(f"{name} must be one number or {rank}, got {value!r}")
    for each in values:
        _checks.positive_int(name, each, least=least)
    return tuple(map(int, values))


def given_pads(padding: Padding, rank: int) -> tuple[tuple[int, int], ...]:
    """Numbers or pairs as pairs."""
    if isinstance(padding, str):
        raise ValueError(f"padding must be numbers or pairs here, got {padding!r}")
    values = (padding,) * rank if isinstance(padding, int | np.integer) else padding
    if not isinstance(values, Sequence):
        raise TypeError(f"padding must be an integer, or one or two for each axis, got {padding!r}")
    if len(values) != rank:
        raise ValueError(f"padding must be one number, or {rank} numbers or pairs, got {padding!r}")
    pairs = []
    for each in values:
        pair = (each, each) if isinstance(each, int | np.integer) else each
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"padding must be numbers or pairs (before, behind), got {padding!r}")
        for side in pair:
            _checks.positive_int("padding", side, least=0)
        pairs.append((int(pair[0]), int(pair[1])))
    return tuple(pairs)


def pads_of(
    padding: Padding,
    sizes: Sequence[int],
    window: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[tuple[int, int], ...]:
    """Padding of any kind as pairs."""
    if not isinstance(padding, str):
        return given_pads(padding, len(sizes))
    _checks.one_of("padding", padding, ("same", "valid"))
    if padding == "valid":
        return ((0, 0),) * len(sizes)
    pairs = []
    for size, taps, step, dilate in zip(sizes, window, stride, dilation, strict=True):
        out = -(-size // step)
        total = max((out - 1) * step + dilate * (taps - 1) + 1 - size, 0)
        pairs.append((total // 2, total - total // 2))
    return tuple(pairs)


def stops(
    size: int, window: int, stride: int, pads: tuple[int, int], dilation: int, *, strict: bool
) -> int:
    """One axis of `output_size`."""
    room = size - dilation * (window - 1) - 1 + sum(pads)
    if room >= 0 and not (strict and room % stride):
        return room // stride + 1
    if dilation == 1:
        formula, reach = "(N - F + 2P)/S + 1", str(window)
    else:
        formula, reach = "(N - (D(F - 1) + 1) + 2P)/S + 1", f"({dilation} * {window - 1} + 1)"
    numbers = f"({size} - {reach} + {sum(pads)})/{stride} + 1"
    if room < 0:
        raise ValueError(
            f"the window is larger than what it slides over: {formula} = {numbers} = "
            f"{room / stride + 1:g}, and a size must be at least 1"
        )
    raise ValueError(
        f"stride {stride} does not fit: {formula} = {numbers} = {room / stride + 1:g} is no integer"
    )
