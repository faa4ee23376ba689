"""Checks of what a caller passed in; every message names the argument and what came.

Shapes, ranks and dtypes are known under a transformation and are always checked. Values are
checked only where they are concrete: under `jit`, `vmap` or `grad` an array is a tracer.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike


def is_concrete(value: Any) -> bool:
    """Whether the value of every leaf can be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def floating(name: str, value: ArrayLike, *, ndim: int | Sequence[int] | None = None) -> Array:
    """Turn `value` into a floating-point array: floats keep their dtype, integers are promoted.

    Args:
        name: The argument's name, for the message.
        value: What the caller passed.
        ndim: The rank, or the ranks, that are allowed; any, where None.

    Returns:
        The array.

    Raises:
        TypeError: `value` is not numeric, or complex.
        ValueError: The rank is not allowed.
    """
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a numeric array, got {type(value).__name__}") from error
    if jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == jnp.bool_:
        array = array.astype(jnp.result_type(float))
    elif not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be a real array, got dtype {array.dtype}")
    check_rank(name, array, ndim)
    return array


def integer(name: str, value: ArrayLike, *, ndim: int | Sequence[int] | None = None) -> Array:
    """Turn `value` into an integer array; as `floating`, but floats are refused."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an integer array, got {type(value).__name__}") from error
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be an integer array, got dtype {array.dtype}")
    if isinstance(value, np.ndarray) and value.dtype.itemsize > array.dtype.itemsize:
        limits = jnp.iinfo(array.dtype)
        if value.size and (value.max() > limits.max or value.min() < limits.min):
            raise ValueError(
                f"{name} must fit into {array.dtype}, got {value.min()}..{value.max()}"
            )
    check_rank(name, array, ndim)
    return array


def check_rank(name: str, array: Array, ndim: int | Sequence[int] | None) -> None:
    """Raise `ValueError` unless `array` has (one of) the given rank(s)."""
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if allowed is not None and array.ndim not in allowed:
        wanted = " or ".join(f"{n}-D" for n in allowed)
        raise ValueError(f"{name} must be {wanted}, got shape {array.shape}")


def same_shape(**arrays: Array) -> None:
    """Raise `ValueError` unless all arrays, named by keyword, have one shape."""
    if len({array.shape for array in arrays.values()}) > 1:
        raise ValueError(f"{_names(arrays)} must have one shape, got {_shapes(arrays)}")


def same_length(**arrays: Array) -> None:
    """Raise `ValueError` unless all arrays, named by keyword, have one first axis."""
    if len({array.shape[0] for array in arrays.values()}) > 1:
        raise ValueError(f"{_names(arrays)} must have as many rows, got {_shapes(arrays)}")


def not_empty(name: str, array: Array) -> None:
    """Raise `ValueError` where `array` has no element."""
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}")


def finite(name: str, array: Array) -> None:
    """Raise `ValueError` with the first place where a concrete `array` is NaN or infinite."""
    if not is_concrete(array):
        return
    values = np.asarray(array)
    ok = np.isfinite(values)
    if not ok.all():
        bad = np.argwhere(~ok)
        first = tuple(int(i) for i in bad[0])
        place = {0: "", 1: " in row {}", 2: " in row {}, column {}"}.get(
            values.ndim, f" at index {first}"
        )
        raise ValueError(f"{name} must be finite, got {values[first]}{place.format(*first)}")


def positive(name: str, value: ArrayLike) -> None:
    """Raise `ValueError` unless every concrete element of `value` is > 0."""
    _every(name, value, lambda v: v > 0, "must be positive")


def not_negative(name: str, value: ArrayLike) -> None:
    """Raise `ValueError` unless every concrete element of `value` is >= 0."""
    _every(name, value, lambda v: v >= 0, "must not be negative")


def in_range(name: str, value: ArrayLike, low: float, high: float) -> None:
    """Raise `ValueError` unless every concrete element of `value` is in [low, high]."""
    _every(name, value, lambda v: (v >= low) & (v <= high), f"must be in [{low}, {high}]")


def row_weights(
    sample_weight: ArrayLike | None, y: Array, dtype: Any
) -> tuple[Array | None, np.ndarray]:
    """Check the weights of rows: not negative, finite, and some are positive.

    Args:
        sample_weight: What the caller passed, shape `(n,)`, or None.
        y: One entry for each row.
        dtype: Of the weights that are returned.

    Returns:
        The weights, or None; and which rows count, as NumPy's booleans: all of them where the
        weights are traced. A row that does not count may hold anything.
    """
    counted = np.ones(len(y), bool)
    if sample_weight is None:
        return None, counted
    weight = floating("sample_weight", sample_weight, ndim=1).astype(dtype)
    same_length(sample_weight=weight, y=y)
    finite("sample_weight", weight)
    not_negative("sample_weight", weight)
    # What came is looked at: inside of `jit` an array made of a NumPy array is traced.
    if is_concrete(sample_weight):
        counted = np.asarray(sample_weight) != 0
        if not counted.any():
            raise ValueError("sample_weight must be positive for at least one row")
    return weight, counted


def class_labels(
    name: str, labels: ArrayLike, num_classes: int, *, counted: ArrayLike = True
) -> None:
    """Raise `ValueError` unless the concrete integer `labels` that count are in 0..num_classes-1.

    Args:
        name: The argument's name, for the message.
        labels: Integers of any shape.
        num_classes: How many classes there are.
        counted: Which labels matter; broadcast against `labels`.
    """
    if not is_concrete((labels, counted)):
        return
    values = np.asarray(labels)
    bad = np.argwhere(((values < 0) | (values >= num_classes)) & np.asarray(counted))
    if len(bad):
        first = tuple(int(i) for i in bad[0])
        place = f" at index {first[0] if len(first) == 1 else first}" if first else ""
        raise ValueError(
            f"{name} must be in 0..{num_classes - 1} ({num_classes} classes), "
            f"got {values[first]}{place}"
        )


def one_of(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise `ValueError` unless a static option is one of the choices."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}")


def positive_int(name: str, value: object, *, least: int = 1) -> None:
    """Raise unless a static count is a Python or NumPy integer >= `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def count(name: str, value: ArrayLike, *, least: int = 1) -> Array:
    """Turn a count that may be traced into an int32 scalar, at least `least` where concrete."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    array = integer(name, value, ndim=0)
    in_range(name, array, least, np.iinfo(np.int32).max)
    return array.astype(jnp.int32)


def _every(name: str, value: ArrayLike, test: Any, message: str) -> None:
    if not is_concrete(value):
        return
    values = np.asarray(value)
    ok = np.asarray(test(values))  # a NaN fails every comparison, as it should
    if not ok.all():
        first = values[~ok].flat[0] if values.ndim else values[()]
        raise ValueError(f"{name} {message}, got {first}")


def _names(arrays: dict[str, Array]) -> str:
    names = list(arrays)
    return ", ".join(names[:-1]) + " and " + names[-1]


def _shapes(arrays: dict[str, Array]) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
