r"""Convolution whose gradients are again convolutions in the one layout that is fast on a CPU.

XLA's CPU compiler calls its fast convolution only for batch-space-channel inputs and kernels
stored space-in-out, with a kernel that is not read backwards. It rewrites other convolutions into
this form, but only outside loops: JAX's own gradients, which name the axes in another order,
become slow inside `lax.scan`. Here the axes are moved by explicit transposes, so that every
convolution has the fast form wherever it stands. Where windows do not overlap, both gradients are
one matrix product, and a depthwise convolution is a sum of shifted products. Other devices get
JAX's own convolution and gradients.

All functions take `x` of shape `(n, *space, in)`, `kernel` of shape `(*window, in / groups, out)`
and a `Geometry` of valid numbers; nothing is checked here.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

__all__ = ["Geometry", "conv", "forward", "shifts", "transposed", "wide"]

_MOST_TAPS = 64  # of a depthwise window that is written out, one product for each tap


class Geometry(NamedTuple):
    """How a window slides: one entry for each axis of space.

    Attributes:
        stride: Steps.
        pads: Zeros before and behind.
        dilation: Distance between the taps of a window.
        groups: Parts that the channels are cut into.
    """

    stride: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int


def _compiled(*static: str) -> Any:
    """Outside of any other program a function is one, compiled once for each set of numbers."""
    return functools.partial(jax.jit, static_argnames=static, inline=True)


def forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """The convolution, with JAX's own gradient."""
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.stride,
        geometry.pads,
        rhs_dilation=geometry.dilation,
        feature_group_count=geometry.groups,
        dimension_numbers=_numbers(len(geometry.stride)),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """The convolution, with gradients that stay fast in a loop on a CPU."""
    return _primal(x, kernel, geometry)


@_compiled("geometry")
def _primal(x: Array, kernel: Array, geometry: Geometry) -> Array:
    stock = functools.partial(forward, geometry=geometry)
    if not _depthwise(kernel, geometry):
        return stock(x, kernel)
    own = functools.partial(_slide, geometry=geometry)
    return lax.platform_dependent(x, kernel, cpu=own, default=stock)


def _conv_fwd(x: Array, kernel: Array, geometry: Geometry) -> tuple[Array, tuple[Array, Array]]:
    # Plain primitives here and in `_conv_bwd`: they can be differentiated again, either way.
    return _primal(x, kernel, geometry), (x, kernel)


def _conv_bwd(
    geometry: Geometry, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    space = x.shape[1:-1]
    return (
        input_gradient(cotangent, kernel, space, geometry),
        kernel_gradient(x, cotangent, kernel.shape[:-2], geometry),
    )


conv.defvjp(_conv_fwd, _conv_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def transposed(y: Array, kernel: Array, space: tuple[int, ...], geometry: Geometry) -> Array:
    """The adjoint of `conv` with the same kernel, to inputs of the size `space`."""
    return input_gradient(y, kernel, space, geometry)


def _transposed_fwd(
    y: Array, kernel: Array, space: tuple[int, ...], geometry: Geometry
) -> tuple[Array, tuple[Array, Array]]:
    return input_gradient(y, kernel, space, geometry), (y, kernel)


def _transposed_bwd(
    space: tuple[int, ...], geometry: Geometry, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    y, kernel = saved
    del space
    return (
        _primal(cotangent, kernel, geometry),
        kernel_gradient(cotangent, y, kernel.shape[:-2], geometry),
    )


transposed.defvjp(_transposed_fwd, _transposed_bwd)


@_compiled("space", "geometry")
def input_gradient(g: Array, kernel: Array, space: tuple[int, ...], geometry: Geometry) -> Array:
    """The gradient with respect to `x`, whose size was `space`, of the sum of `g * conv(x)`."""
    channels = kernel.shape[-2] * geometry.groups

    def own(g: Array, kernel: Array) -> Array:
        if _apart(kernel.shape[:-2], geometry):
            return _input_from_patches(g, kernel, space, geometry)
        return _input_by_convolution(g, kernel, space, geometry)

    def stock(g: Array, kernel: Array) -> Array:
        x = jax.ShapeDtypeStruct((g.shape[0], *space, channels), g.dtype)
        return jax.linear_transpose(lambda x: forward(x, kernel, geometry), x)(g)[0]

    return lax.platform_dependent(g, kernel, cpu=own, default=stock)


@_compiled("window", "geometry")
def kernel_gradient(x: Array, g: Array, window: tuple[int, ...], geometry: Geometry) -> Array:
    """The gradient with respect to the kernel of the sum of `g * conv(x)`."""
    shape = (*window, x.shape[-1] // geometry.groups, g.shape[-1])

    def own(x: Array, g: Array) -> Array:
        if _apart(window, geometry):
            return _kernel_from_patches(x, g, window, geometry)
        if geometry.groups == shape[-1] == x.shape[-1] and math.prod(window) <= _MOST_TAPS:
            return _kernel_from_taps(x, g, window, geometry)
        return _kernel_by_convolution(x, g, window, geometry)

    def stock(x: Array, g: Array) -> Array:
        kernel = jax.ShapeDtypeStruct(shape, x.dtype)
        return jax.linear_transpose(lambda kernel: forward(x, kernel, geometry), kernel)(g)[0]

    return lax.platform_dependent(x, g, cpu=own, default=stock)


def _input_by_convolution(
    g: Array, kernel: Array, space: tuple[int, ...], geometry: Geometry
) -> Array:
    """Spread `g` out by the stride, and slide the reversed kernel over it with steps of one."""
    rank, groups = len(space), geometry.groups
    pads = []
    for size, out, window, stride, dilation, (low, _) in zip(
        space,
        g.shape[1:-1],
        kernel.shape,
        geometry.stride,
        geometry.dilation,
        geometry.pads,
        strict=False,
    ):
        reach = dilation * (window - 1)
        # `size` outputs come from `size + reach` inputs.
        spread = stride * (out - 1) + 1
        pads.append((reach - low, size + reach - spread - (reach - low)))
    if max(geometry.stride) > 1 or min(map(min, pads)) < 0:
        interior = [stride - 1 for stride in geometry.stride]
        edges = [(*pad, inner) for pad, inner in zip(pads, interior, strict=True)]
        g = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        pads = [(0, 0)] * rank
    taps = lax.rev(kernel, tuple(range(rank)))
    *window, inputs, outputs = kernel.shape
    # Per group, inputs and outputs change places: (in, groups * out) -> (out, groups * in).
    taps = taps.reshape(*window, inputs, groups, outputs // groups)
    taps = jnp.swapaxes(taps, -1, -3).reshape(*window, outputs // groups, groups * inputs)
    back = Geometry((1,) * rank, tuple(pads), geometry.dilation, groups)
    return _slide(g, taps, back)


def _kernel_by_convolution(
    x: Array, g: Array, window: tuple[int, ...], geometry: Geometry
) -> Array:
    """Slide `g` over `x` with channels and examples in each other's places."""
    rank, groups = len(window), geometry.groups
    edges, pads = [], []
    for size, out, taps, stride, dilation, (low, _) in zip(
        x.shape[1:-1],
        g.shape[1:-1],
        window,
        geometry.stride,
        geometry.dilation,
        geometry.pads,
        strict=True,
    ):
        high = dilation * (taps - 1) + stride * (out - 1) + 1 - size - low
        edges.append((0, min(high, 0), 0))  # rows that no window reached
        pads.append((low, max(high, 0)))
    if any(edge[1] for edge in edges):
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    n, *space, channels = x.shape
    x = x.reshape(n, *space, groups, channels // groups)
    x = x.transpose(rank + 2, *range(1, rank + 1), rank + 1, 0)
    x = x.reshape(channels // groups, *space, groups * n)
    g = g.transpose(*range(1, rank + 1), 0, rank + 1)
    # Strides and dilations change places, too.
    slide = Geometry(geometry.dilation, tuple(pads), geometry.stride, groups)
    return forward(x, g, slide).transpose(*range(1, rank + 1), 0, rank + 1)


def _depthwise(kernel: Array, geometry: Geometry) -> bool:
    """Whether every channel has one window of its own, with few enough taps to write out."""
    *window, inputs, outputs = kernel.shape
    return inputs == 1 and outputs == geometry.groups and math.prod(window) <= _MOST_TAPS


def _slide(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """`forward`, a depthwise one written out."""
    if not _depthwise(kernel, geometry):
        return forward(x, kernel, geometry)
    window = kernel.shape[:-2]
    weights = kernel.reshape(math.prod(window), *(1,) * (x.ndim - 1), kernel.shape[-1])
    dtype = wide(x.dtype)
    terms = [
        part.astype(dtype) * weight.astype(dtype)
        for part, weight in zip(shifts(x, window, geometry), weights, strict=True)
    ]
    return functools.reduce(jnp.add, terms).astype(x.dtype)


def _kernel_from_taps(x: Array, g: Array, window: tuple[int, ...], geometry: Geometry) -> Array:
    places = tuple(range(g.ndim - 1))
    dtype = wide(x.dtype)
    taps = [
        (part.astype(dtype) * g.astype(dtype)).sum(axis=places)
        for part in shifts(x, window, geometry)
    ]
    return jnp.stack(taps).reshape(*window, 1, g.shape[-1]).astype(x.dtype)


def wide(dtype: Any) -> Any:
    """A dtype for sums: at least float32."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def shifts(x: Array, window: tuple[int, ...], geometry: Geometry) -> Iterator[Array]:
    """What each tap of the window sees, in the order of the kernel."""
    x = _edges(x, [(low, high, 0) for low, high in geometry.pads])
    n, *space, channels = x.shape
    steps = list(zip(space, window, geometry.stride, geometry.dilation, strict=True))
    spans = [
        (size - dilation * (taps - 1) - 1) // stride * stride + 1
        for size, taps, stride, dilation in steps
    ]
    for taps in itertools.product(*map(range, window)):
        start = [tap * dilation for tap, dilation in zip(taps, geometry.dilation, strict=True)]
        stop = [first + span for first, span in zip(start, spans, strict=True)]
        yield lax.slice(x, (0, *start, 0), (n, *stop, channels), (1, *geometry.stride, 1))


def _apart(window: tuple[int, ...], geometry: Geometry) -> bool:
    """Whether no two windows share an input, so that patches are a reshape."""
    return (
        geometry.groups == 1
        and max(geometry.dilation) == 1
        and all(taps <= step for taps, step in zip(window, geometry.stride, strict=True))
    )


def _input_from_patches(
    g: Array, kernel: Array, space: tuple[int, ...], geometry: Geometry
) -> Array:
    rank, stride = len(space), geometry.stride
    n, *out, _ = g.shape
    *window, channels, _ = kernel.shape
    # (n, *out, *window, channels)
    patches = _product(g, kernel, [[-1], [-1]])
    zero = jnp.zeros((), g.dtype)
    behind = [(0, step - taps, 0) for taps, step in zip(window, stride, strict=True)]
    if any(edge[1] for edge in behind):
        patches = lax.pad(patches, zero, [(0, 0, 0)] * (rank + 1) + behind + [(0, 0, 0)])
    pairs = [axis for i in range(rank) for axis in (1 + i, 1 + rank + i)]
    x = patches.transpose(0, *pairs, 2 * rank + 1)
    full = [count * step for count, step in zip(out, stride, strict=True)]
    x = x.reshape(n, *full, channels)
    edges = [
        (-low, size + low - length, 0)
        for size, length, (low, _) in zip(space, full, geometry.pads, strict=True)
    ]
    return _edges(x, edges)


def _kernel_from_patches(x: Array, g: Array, window: tuple[int, ...], geometry: Geometry) -> Array:
    rank, stride = len(window), geometry.stride
    n, *space, channels = x.shape
    out = g.shape[1:-1]
    edges = [
        (low, count * step - size - low, 0)
        for size, count, step, (low, _) in zip(space, out, stride, geometry.pads, strict=True)
    ]
    x = _edges(x, edges)
    split = [part for pair in zip(out, stride, strict=True) for part in pair]
    x = x.reshape(n, *split, channels)
    for i, taps in enumerate(window):
        x = lax.slice_in_dim(x, 0, taps, axis=2 + 2 * i)
    places = [0, *range(1, 2 * rank, 2)]
    return _product(x, g, [places, list(range(rank + 1))])


def _product(a: Array, b: Array, axes: list[list[int]]) -> Array:
    dtype = wide(a.dtype)
    return jnp.tensordot(a, b, axes=axes, preferred_element_type=dtype).astype(a.dtype)


def _edges(x: Array, edges: list[tuple[int, int, int]]) -> Array:
    """Add zeros at the edges of space, or cut where a number is negative."""
    if not any(low or high for low, high, _ in edges):
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _numbers(rank: int) -> tuple[str, str, str]:
    # Any letters but N, C, I, O name the axes of space.
    space = "".join(chr(ord("P") + i) for i in range(rank))
    return f"N{space}C", f"{space}IO", f"N{space}C"
