r"""Batches: in which order rows come, how they are grouped, and who reads them.

An *epoch* is one pass over the n rows in the order of a permutation $\pi_e$ drawn for that epoch
alone; a *batch* is the next B rows of it:

$$\pi_e = \operatorname{permutation}(\operatorname{fold\_in}(\text{key}, e)), \qquad
  B_{e,t} = \{ \pi_e(tB), \dots, \pi_e(tB + B - 1) \}.$$

Reference: Bottou, Curtis and Nocedal, *Optimization Methods for Large-Scale Machine Learning*
(SIAM Review, 2018), section 3.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int, Key

from mlnotes_jax import _checks

__all__ = ["BatchIndices", "batch_indices", "epoch_order"]

Remainder = Literal["drop", "keep", "pad"]


class BatchIndices(NamedTuple):
    """Which rows each batch of an epoch holds.

    Attributes:
        full: Batches of full size, shape `(num_full, batch_size)`, int32. Under `"pad"` the last one
            is filled up with rows from the start of the order.
        mask: Which entries of `full` are rows of this epoch and not padding, same shape.
        rest: Under `"keep"` the last, smaller batch, shape `(rest,)`; else of shape `(0,)`.
    """

    full: Int[Array, "num_full batch"]
    mask: Bool[Array, "num_full batch"]
    rest: Int[Array, " rest"]


def epoch_order(key: Key[Array, ""], epoch: Int[ArrayLike, ""], num_rows: int) -> Int[Array, " n"]:
    """The order of the rows in one epoch, int32, drawn on the device.

    Args:
        key: Of the whole training run: every epoch folds its number into it.
        epoch: From 0; traced.
        num_rows: n; static.
    """
    _checks.positive_int("num_rows", num_rows)
    _checks.not_negative("epoch", epoch)
    return jax.random.permutation(
        jax.random.fold_in(key, epoch), jnp.arange(num_rows, dtype=jnp.int32)
    )


def batch_indices(
    order: Int[Array, " n"],
    *,
    batch_size: int,
    remainder: Remainder = "drop",
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIndices:
    """Cut an order into batches; with several processes, take this one's part of each.

    Args:
        order: Row numbers, shape `(n,)`, as `epoch_order` gives them.
        batch_size: B, rows of a batch over all processes, from 1 to n; static.
        remainder: What becomes of the last `n % batch_size` rows; static.
        process_index: Which process asks; static.
        process_count: How many share each batch; static.
    """
    plan = _plan(order.shape[0], batch_size, remainder, process_index, process_count)
    full, mask, rest = plan
    return BatchIndices(order[full], jnp.asarray(mask), order[rest])


def _plan(n, batch_size, remainder, process_index, process_count):
    _checks.positive_int("batch_size", batch_size)
    _checks.one_of("remainder", remainder, ("drop", "keep", "pad"))
    if batch_size > n:
        raise ValueError(f"batch_size must be at most the number of rows, {n}, got {batch_size}")
    num_full, rest = divmod(n, batch_size)
    positions = np.arange(num_full * batch_size, dtype=np.int32)
    tail = np.arange(num_full * batch_size, n if remainder == "keep" else num_full * batch_size)
    if remainder == "pad" and rest:
        positions = np.arange((num_full + 1) * batch_size, dtype=np.int32)
    full = positions.reshape(-1, batch_size)
    mask = full < n
    local = batch_size // process_count
    cut = slice(process_index * local, (process_index + 1) * local)
    return full[:, cut] % n, mask[:, cut], tail.astype(np.int32)
