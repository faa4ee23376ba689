"""What the models of this chapter share: rows that come in, scores that go out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from mlnotes_jax import _checks

__all__ = ["best", "labelled", "linear"]


def labelled(
    x: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, num_classes: int | None
) -> tuple[Array, Array, Array | None, int]:
    """Rows in at least float32, labels, weights if there are any, and the number of classes.

    A class may have no rows, and a row of weight zero may hold anything.
    """
    rows = _checks.floating("x", x, ndim=2)
    rows = rows.astype(jnp.float32) if jnp.finfo(rows.dtype).bits < 32 else rows
    _checks.not_empty("x", rows)
    labels = _checks.integer("y", y, ndim=1)
    _checks.same_length(x=rows, y=labels)
    weight, counted = _checks.row_weights(sample_weight, labels, rows.dtype)
    # What came is looked at, in NumPy: that compiles nothing, and inside of `jit` an array made of
    # a NumPy array is traced where the NumPy array is not.
    seen = _checks.is_concrete((y, sample_weight))
    if _checks.is_concrete((x, sample_weight)):
        kept: Any = np.where(counted[:, None], np.asarray(x), 0)
        _checks.finite("x", kept)
    if num_classes is None:
        if not seen:
            raise ValueError("num_classes must be given where y or sample_weight is traced")
        num_classes = max(int(np.asarray(y)[counted].max()) + 1, 1)
    _checks.positive_int("num_classes", num_classes)
    if seen:
        _checks.class_labels("y", y, num_classes, counted=counted)
    return rows, labels, weight, num_classes


@jax.jit
def linear(coef: Array, intercept: Array, x: Array) -> Array:
    """The scores x W' + b, without the fewer bits of a GPU or TPU."""
    with jax.default_matmul_precision("highest"):
        scores = x @ coef.T
    return scores + jnp.broadcast_to(intercept, scores.shape)


@jax.jit
def best(scores: Array) -> Array:
    """The class of the highest score, or of one score's sign; -1 where a score is NaN."""
    # `argmax` of a NaN would be the class that has it.
    unknown = jnp.isnan(scores).any(axis=-1)
    found = scores[..., 0] > 0 if scores.shape[-1] == 1 else scores.argmax(axis=-1)
    return jnp.where(unknown, -1, found.astype(jnp.int32))
