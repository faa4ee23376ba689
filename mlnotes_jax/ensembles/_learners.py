"""What the ensembles share: the learner that they are given, the rows, one program or a loop."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mlnotes_jax import _checks, _protocol

__all__ = ["Learner", "Mode", "Rows", "Task", "blanked", "in_program", "pair", "rows"]

Learner = tuple[Callable[..., Any], Callable[[Any, Any], Any]]
Mode = Literal["auto", "program", "loop"]
Task = Literal["classification", "regression"]


class Rows(NamedTuple):
    """Rows that were checked; `x` stays what it was, since a loop may need NumPy's arrays."""

    x: Any
    y: Array
    weight: Array | None
    num_classes: int

    def weights(self) -> Array:
        """Ones where there are none, in a dtype that fits the rows."""
        return jnp.ones(len(self.y), _float(self.x)) if self.weight is None else self.weight

    def present(self) -> np.ndarray:
        """Which concrete rows count."""
        if self.weight is None:
            return np.ones(len(self.y), bool)
        return np.asarray(self.weight) > 0


def pair(learner: Any) -> Learner:
    """Check that `learner` is two functions; partials that hold the same count as the same."""
    if (
        not isinstance(learner, tuple | list)
        or len(learner) != 2
        or not all(map(callable, learner))
    ):
        raise TypeError(f"learner must be two functions (fit, predict), got {learner!r}")
    return _protocol.stable(learner[0]), _protocol.stable(learner[1])


def rows(
    x: Any,
    y: Any,
    sample_weight: Any,
    *,
    task: Task = "classification",
    num_classes: int | None = None,
    missing: bool = False,
) -> Rows:
    """Check everything about the data that is not the business of the learner.

    A class may have no rows, and a row of weight zero may hold anything. `num_classes` is 0 for a
    regression.
    """
    _checks.one_of("task", task, ("classification", "regression"))
    x = x if isinstance(x, np.ndarray | jax.Array) else jnp.asarray(x)
    if not (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool):
        raise TypeError(f"x must be a numeric array, got dtype {x.dtype}")
    if x.ndim == 0:
        raise ValueError("x must have a row for each target, got a scalar")
    _checks.not_empty("x", x)
    classify = task == "classification"
    target = _checks.integer("y", y, ndim=1) if classify else _checks.floating("y", y, ndim=(1, 2))
    _checks.same_length(x=x, y=target)
    weight, counted = _checks.row_weights(sample_weight, target, _float(x))
    # What came is looked at, not the arrays made of it: inside of `jit` those are tracers.
    for name, values, may_miss in (("x", x, missing), ("y", y, False)):
        if _checks.is_concrete((values, sample_weight)):
            _check_finite(name, np.asarray(values), counted, may_miss)
    if not classify:
        return Rows(x, target, weight, 0)
    seen = _checks.is_concrete((y, sample_weight))
    if num_classes is None:
        if not seen:
            raise ValueError("num_classes must be given where y or sample_weight is traced")
        num_classes = max(int(np.asarray(y)[counted].max()) + 1, 1)
    _checks.positive_int("num_classes", num_classes)
    if seen:
        _checks.class_labels("y", y, num_classes, counted=counted)
    return Rows(x, target, weight, num_classes)


def blanked(array: Any, weight: Array) -> Array:
    """Zeros in rows of weight 0: what they held cannot spoil a sum."""
    array = jnp.asarray(array)
    counted = (weight != 0).reshape(-1, *(1,) * (array.ndim - 1))
    return jnp.where(counted, array, jnp.zeros((), array.dtype))


def in_program(mode: str, why_not: str, data: Any, compute: Callable[[], Any]) -> Any:
    """What `compute` gives as one program; None where it is to be a loop.

    Args:
        mode: What the caller asks for.
        why_not: What stands in the way of a program, if anything does.
        data: All arrays: a loop needs their values.
        compute: The program.
    """
    _checks.one_of("mode", mode, ("auto", "program", "loop"))
    if mode == "program" and why_not:
        raise ValueError(f"mode must be 'loop', got 'program': {why_not}")
    if mode != "loop" and not why_not:
        try:
            return compute()
        except _protocol.UNTRACEABLE:
            if mode == "program" or not _checks.is_concrete(data):
                raise
    if not _checks.is_concrete(data):
        raise TypeError("x, y and sample_weight must be concrete for a loop, got tracers")
    return None


def _float(x: Any) -> Any:
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    wide = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize >= 4
    return dtype if wide else jnp.result_type(float)


def _check_finite(name: str, values: np.ndarray, counted: np.ndarray, missing: bool) -> None:
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return
    kept: Any = np.where(counted.reshape(-1, *(1,) * (values.ndim - 1)), values, 0)
    if missing:
        kept = np.where(np.isnan(kept), 0, kept)
    elif name == "x" and np.isnan(kept).any():
        place = tuple(map(int, np.argwhere(np.isnan(kept))[0]))
        where = f"row {place[0]}" + (f", column {place[1]}" if len(place) > 1 else "")
        raise ValueError(
            f"x must be finite, got nan in {where}: pass missing=True if the learner knows what to "
            "do with a missing value"
        )
    _checks.finite(name, kept)
