r"""Convolution and pooling."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array

__all__ = [
    "Conv", "average_pool", "conv", "global_average_pool", "max_pool", "min_pool", "output_size",
    "require_channels_last",
]


def require_channels_last(name, x, features, *, spatial=2):
    if x.shape[-1] == features:
        return
    if x.ndim > spatial and x.shape[-spatial - 1] == features:
        raise ValueError(
            f"{name} must have its {features} channels last, got shape {x.shape}, whose axis "
            f"{x.ndim - spatial - 1} has {features}: it looks like NCHW; use jnp.moveaxis(x, -3, -1)"
        )
    raise ValueError(f"{name} must have {features} channels on its last axis, got shape {x.shape}")


def _per_axis(value, rank):
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _pairs(padding, rank):
    if isinstance(padding, str):
        return padding.upper()
    return [(p, p) if isinstance(p, int) else tuple(p) for p in _per_axis(padding, rank)]


def conv(x, kernel, *, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Array:
    rank = kernel.ndim - 2
    require_channels_last("x", x, kernel.shape[-2] * groups, spatial=rank)
    spatial = "DHW"[-rank:]
    y = lax.conv_general_dilated(
        x, kernel, _per_axis(stride, rank), _pairs(padding, rank),
        rhs_dilation=_per_axis(dilation, rank), feature_group_count=groups,
        dimension_numbers=("N" + spatial + "C", spatial + "IO", "N" + spatial + "C"),
    )
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def _window(x, init, op, window, stride, padding):
    window = _per_axis(window, 2)
    stride = window if stride is None else _per_axis(stride, 2)
    pairs = _pairs(padding, 2)
    return lax.reduce_window(x, init, op, (1, *window, 1), (1, *stride, 1), [(0, 0), *pairs, (0, 0)])


def max_pool(x, window, *, stride=None, padding=0) -> Array:
    return _window(x, -jnp.inf, lax.max, window, stride, padding)


def min_pool(x, window, *, stride=None, padding=0) -> Array:
    return -max_pool(-x, window, stride=stride, padding=padding)


def average_pool(x, window, *, stride=None, padding=0) -> Array:
    w = _per_axis(window, 2)
    return _window(x, 0.0, lax.add, window, stride, padding) / (w[0] * w[1])


def global_average_pool(x) -> Array:
    return x.mean(axis=(-3, -2))


def output_size(size, window, *, stride=1, padding=0, dilation=1, strict=False):
    return (size + 2 * padding - dilation * (window - 1) - 1) // stride + 1


class Conv(nnx.Module):
    def __init__(self, in_features, out_features, window, *, stride=1, padding=0, dilation=1,
                 groups=1, use_bias=True, kernel_init=None, rngs: nnx.Rngs):
        window = _per_axis(window, 2)
        init: Any = kernel_init or jax.nn.initializers.he_normal()
        self.kernel = nnx.Param(init(rngs.params(), (*window, in_features // groups, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_features)) if use_bias else None
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def __call__(self, x):
        bias = None if self.bias is None else self.bias[...]
        return conv(x, self.kernel[...], bias=bias, stride=self.stride, padding=self.padding,
                    dilation=self.dilation, groups=self.groups)
