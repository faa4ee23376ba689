r"""Bins: features as small integers, so that a split search counts instead of sorting.

Feature j is cut at ascending edges $e_0 < e_1 < \dots$; a value gets the number of edges below it,

$$
b(x) = \#\{i : e_i < x\}, \qquad\text{so}\qquad b(x) \le i \iff x \le e_i ,
$$

and a missing value (NaN) gets the last code of all. A feature with few distinct values is cut
midway between neighbours: then nothing is lost. Otherwise the edges are quantiles of all rows; a
value so frequent that it fills a bin gets one alone, and the others share the bins that are left.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, UInt8

from mlnotes_jax import _checks

__all__ = ["Bins", "apply", "apply_by_feature", "fit", "from_keys", "to_keys", "trimmed"]

_ROOMS = 16, 32, 64, 128  # codes: few sizes, so that data of one kind share a program


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["edges"], meta_fields=["categorical"]
)
@dataclasses.dataclass(frozen=True)
class Bins:
    """Edges of every feature.

    Attributes:
        edges: Ascending, padded with infinity, shape `(d, num_bins - 2)`; of a categorical feature
            they lie midway between its categories 0, 1, 2, ...
        categorical: The columns that hold categories; static.
    """

    edges: Float[Array, "d m"]
    categorical: tuple[int, ...] = ()

    @property
    def num_bins(self) -> int:
        """How many codes there are, the code of a missing value included."""
        return self.edges.shape[1] + 2

    @property
    def missing(self) -> int:
        """The code of a missing value: the last one."""
        return self.edges.shape[1] + 1


def fit(
    x: Float[ArrayLike, "n d"],
    *,
    num_bins: int = 256,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    categorical: tuple[int, ...] = (),
) -> Bins:
    """Find the edges.

    Args:
        x: Rows; NaN is a missing value.
        num_bins: Codes, at most 256: one is for missing values, the others are bins; static.
        sample_weight: Weights, not negative; an integer weight is that many equal rows, and a row
            of weight zero does not count. One for each row, where None: that is faster.
        categorical: Columns that hold categories 0..num_bins-2; static.

    Returns:
        The bins. A feature with fewer than `num_bins` distinct values has an edge midway between
        any two neighbours, any other has `num_bins - 2` or fewer at quantiles.

    Raises:
        ValueError: `num_bins` is not in 3..256, or a column is not there.
    """
    x = _checks.floating("x", x, ndim=2)
    _checks.not_empty("x", x)
    _checks.positive_int("num_bins", num_bins, least=3)
    if num_bins > 256:
        raise ValueError(f"num_bins must be at most 256, got {num_bins}")
    columns = tuple(int(j) for j in categorical)
    for j in columns:
        if not 0 <= j < x.shape[1]:
            raise ValueError(f"categorical must name columns 0..{x.shape[1] - 1}, got {j}")
    if sample_weight is not None:
        sample_weight = _checks.floating("sample_weight", sample_weight, ndim=1).astype(x.dtype)
        _checks.same_length(x=x, sample_weight=sample_weight)
    return Bins(_edges(x, sample_weight, num_bins, columns), columns)


def trimmed(bins: Bins) -> Bins:
    """Without codes that no column needs, where the edges are known; never with categories.

    A histogram is as long as the codes: a column of 17 values is searched eight times as fast.
    """
    if bins.categorical or not _checks.is_concrete(bins.edges):
        return bins
    used = 2 + int(np.isfinite(np.asarray(bins.edges)).sum(axis=1).max())
    room = min([size for size in _ROOMS if size >= used], default=bins.num_bins)
    return Bins(bins.edges[:, : min(room, bins.num_bins) - 2])


def apply(bins: Bins, x: Float[ArrayLike, "n d"]) -> UInt8[Array, "n d"]:
    """Codes of rows.

    Args:
        bins: What `fit` gave.
        x: Rows.

    Returns:
        Codes: `b <= i` is `x <= bins.edges[:, i]`. A missing value, and a category that is not
        in 0..num_bins-2, have the last code, `num_bins - 1`.
    """
    return _apply(bins, _checks.floating("x", x, ndim=2)).T


def apply_by_feature(bins: Bins, x: Float[ArrayLike, "n d"]) -> UInt8[Array, "d n"]:
    """As `apply`, one row for each feature: the layout that a histogram reads."""
    return _apply(bins, _checks.floating("x", x, ndim=2))


# --- Private --------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("num_bins", "categorical"))
def _edges(x: Array, weight: Array | None, num_bins: int, categorical: tuple[int, ...]) -> Array:
    m = num_bins - 2
    if weight is None:
        keys = jax.lax.map(jnp.sort, to_keys(x).T)
        edges = jax.vmap(lambda keys: _cut(keys, None, m, x.dtype))(keys)
    else:
        x = jnp.where((weight > 0)[:, None], x, jnp.nan)  # a row without weight may hold anything
        pairs = to_keys(x).T, jnp.broadcast_to(weight, x.T.shape)
        keys, weights = jax.lax.map(lambda pair: tuple(jax.lax.sort(pair, num_keys=1)), pairs)
        edges = jax.vmap(lambda keys, below: _cut(keys, below, m, x.dtype))(
            keys, jnp.cumsum(weights, axis=1)
        )
    if categorical:
        midway = jnp.arange(m, dtype=x.dtype) + jnp.asarray(0.5, x.dtype)
        edges = edges.at[np.asarray(categorical)].set(midway[None])
    return edges


def to_keys(values: Array) -> Array:
    """Integers in the order of the floats: XLA sorts them several times faster on a CPU."""
    kind = {4: jnp.int32, 8: jnp.int64}[values.dtype.itemsize]
    values = jnp.where(jnp.isnan(values), jnp.nan, jnp.where(values == 0, 0, values))  # one NaN, +0
    bits = jax.lax.bitcast_convert_type(values, kind)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(kind).max, bits)  # NaN is the largest


def from_keys(keys: Array, dtype: Any) -> Array:
    """The floats of these keys."""
    bits = jnp.where(keys < 0, keys ^ jnp.iinfo(keys.dtype).max, keys)
    return jax.lax.bitcast_convert_type(bits, dtype)


def _cut(keys: Array, below: Array | None, m: int, dtype: Any) -> Array:
    """Edges of one sorted column; `below` are the running sums of its weights.

    A walk from the lowest value upwards. Each bin takes its share of what is left, ends where a
    value ends, and holds at least one value. Beside it goes another that takes one value a bin: if
    it arrives, there is a bin for each value.
    """
    n = len(keys)
    nothing = to_keys(jnp.full((), jnp.nan, dtype))
    count = (keys < nothing).sum(dtype=jnp.int32)  # NaN comes last

    def weight_to(end: Array) -> Array:  # of the rows before `end`
        if below is None:
            return end.astype(dtype)
        return jnp.where(end > 0, below[jnp.maximum(end - 1, 0)], 0)

    def row_at(weight: Array) -> Array:  # where the running sum reaches it
        if below is None:
            return jnp.ceil(weight).astype(jnp.int32) - 1
        return jnp.searchsorted(below, weight).astype(jnp.int32)

    def run(rows: Array) -> Array:  # begin and end of the rows with the value of this one
        key = keys[jnp.clip(rows, 0, n - 1)]
        return jnp.minimum(jnp.searchsorted(keys, jnp.stack([key, key + 1])), count)

    # A value with more than its share gets a bin alone. It covers one of the places where equal
    # shares would end. What such values take is not shared by the others.
    total = weight_to(count)
    share = total / (m + 1)
    lefts, rights = run(row_at(share * jnp.arange(1, m + 1, dtype=dtype)))
    sizes = weight_to(rights) - weight_to(lefts)
    alone = (sizes > share) & (jnp.diff(lefts, prepend=-1) > 0)
    taken = jnp.where(alone, sizes, 0).sum(), alone.sum(dtype=jnp.int32)

    def step(carry: tuple[Array, ...], j: Array) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
        start, single, taken, bins = carry
        done = weight_to(start)
        free = jnp.maximum(m + 1 - j - bins, 1).astype(dtype)
        aim = done + (total - done - taken) / free
        begins, finishes = run(jnp.stack([jnp.maximum(row_at(aim), start), single]))
        left, right = begins[0], finishes[0]
        size = weight_to(right) - weight_to(left)
        # A frequent value may reach far beyond the aim: then it begins the next bin.
        early = (left > start) & (2 * (aim - weight_to(left)) < size)
        passed = (size > share) & ~early
        ends = jnp.where(early, left, right), finishes[1]
        taken, bins = taken - jnp.where(passed, size, 0), bins - passed.astype(jnp.int32)
        return (*ends, taken, bins), ends

    zero = jnp.zeros((), jnp.int32)
    steps = jnp.arange(m + 1, dtype=jnp.int32)
    _, (ends, singles) = jax.lax.scan(step, (zero, zero, *taken), steps)
    ends = jnp.where(singles[m] >= count, singles, ends)[:m]
    lower, upper = (from_keys(keys[jnp.clip(row, 0, n - 1)], dtype) for row in (ends - 1, ends))
    half = jnp.asarray(0.5, dtype)
    middle = half * lower + half * upper
    middle = jnp.where((middle >= lower) & (middle < upper), middle, lower)  # rounding
    return jnp.where(ends < count, middle, jnp.inf)


@jax.jit
def _apply(bins: Bins, x: Array) -> Array:
    m = bins.edges.shape[1]
    length = 1 << m.bit_length()  # a power of two above m: the search below halves it
    edges = jnp.pad(bins.edges, ((0, 0), (0, length - m)), constant_values=jnp.inf)

    def one(part: tuple[Array, Array]) -> Array:
        edge, column = part
        code = jnp.zeros(column.shape, jnp.uint8)
        half = length // 2
        while half:  # unrolled: one pass over the rows
            probe = edge.at[code + np.uint8(half - 1)].get(mode="promise_in_bounds")
            code = code + jnp.where(probe < column, np.uint8(half), np.uint8(0))
            half //= 2
        return jnp.where(jnp.isnan(column), np.uint8(m + 1), code)

    codes = jax.lax.map(one, (edges, x.T.astype(edges.dtype)))
    if bins.categorical:
        columns = np.asarray(bins.categorical)
        category = x.T[columns]
        known = (category >= 0) & (category <= m)
        codes = codes.at[columns].set(jnp.where(known, codes[columns], np.uint8(m + 1)))
    return codes
