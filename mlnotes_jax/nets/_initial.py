"""How kernels start: He's rule, and PyTorch's.

A program that draws random numbers is compiled anew for each shape, and three times as slowly for
four axes as for one. So numbers are drawn flat, in sizes that repeat: the powers of two.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from mlnotes_jax import _checks

Initializer = Callable[..., Array]

#: The smallest number of draws; what is not needed costs less than another program.
_LEAST = 2**14


def normal(key: Array, shape: tuple[int, ...], dtype: Any, *, variance: float) -> Array:
    """Normal numbers of mean 0."""
    drawn = jax.random.normal(key, (_drawn(shape),), dtype)
    return _shaped(math.sqrt(variance) * drawn, shape)


def uniform(key: Array, shape: tuple[int, ...], dtype: Any, *, bound: float) -> Array:
    """Uniform numbers in [-bound, bound)."""
    drawn = jax.random.uniform(key, (_drawn(shape),), dtype)
    return _shaped(bound * (2 * drawn - 1), shape)


def he(fan: int) -> Initializer:
    """He's rule, variance 2 / fan: the signal keeps its size through an affine map and ReLU."""

    def draw(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return normal(key, shape, dtype, variance=2 / fan)

    return draw


def of_layer(
    kernel_init: Initializer | Literal["pytorch"] | None, fan_in: int
) -> tuple[Initializer, Initializer]:
    """What draws the kernel, and what the bias, of an affine or a convolutional layer.

    Args:
        kernel_init: None for He's rule and zeros; `"pytorch"` for that library's rule, uniform
            within 1 / sqrt(fan_in) for both; or what draws the kernel, beside zeros.
        fan_in: Inputs of one unit.

    Returns:
        Two functions `(key, shape, dtype) -> array`.
    """
    if kernel_init is None:
        return he(fan_in), nnx.initializers.zeros_init()
    if isinstance(kernel_init, str):
        _checks.one_of("kernel_init", kernel_init, (None, "pytorch"))

        def draw(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
            return uniform(key, shape, dtype, bound=1 / math.sqrt(fan_in))

        return draw, draw
    return kernel_init, nnx.initializers.zeros_init()


def _drawn(shape: tuple[int, ...]) -> int:
    return max(_LEAST, 2 ** (math.prod(shape) - 1).bit_length())


def _shaped(drawn: Array, shape: tuple[int, ...]) -> Array:
    return drawn[: math.prod(shape)].reshape(shape)
