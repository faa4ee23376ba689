r"""One tree of gradient boosting, grown level by level from histograms.

A row has a gradient $g_i$ and a curvature $h_i$, and all that a split needs are their sums on its
two sides. So each level counts, for every node, feature and bin, $\sum g_i$ and $\sum h_i$, and
reads all splits off the running sums over the bins.

The sums are of whole numbers: $g_i$ in units of $2^{-30} \sum_i |g_i|$, $h_i$ likewise. Such a sum
does not depend on the order, so that a CPU and a GPU, which add in different orders, see the same
histogram; a node less one child *is* the other child; and a bin without rows is 0.

A tree is complete: level l has $2^l$ nodes, numbered within the level, and the children of node k
are $k$ (left) and $k + 2^l$ (right). The bits of a leaf's number are the answers on the way, the
first one lowest. A node that is not split sends all its rows to the left.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

__all__ = [
    "Codes",
    "Grown",
    "Level",
    "Limits",
    "Options",
    "Split",
    "answers",
    "arrange",
    "at_once",
    "descend",
    "grow",
    "histogram",
    "leaf_values",
    "of_block",
    "reach",
    "root",
    "search",
    "unpacked",
    "weight_of",
]

_ROLLED = 4  # levels in one loop
_MANY = 2**15  # rows from which on the smaller children are counted in blocks
_SPAN = 2.0**30  # half of what an int32 holds: no sum overflows, whatever the rounding


class Codes(NamedTuple):
    """Rows as bins, in the two layouts that are read.

    Attributes:
        words: For histograms, the lines (see `_line`) of four features in one number, so that
            picking rows moves fewer numbers; shape `(words, n)`.
        rows: For the way through the tree: one row after the other, shape `(n * d,)`.
    """

    words: Int[Array, "words n"]
    rows: UInt8[Array, " nd"]


class Options(NamedTuple):
    """What is static.

    Attributes:
        max_depth: Levels of questions, or None for any number of them.
        num_bins: Codes, the last one for missing values.
        missing: Whether rows may have missing values; their side is learned.
        categorical: Columns whose codes have no order.
        monotone: -1, 0 or 1 for each feature; empty if no feature is held to a direction.
        max_leaves: The leaf that gains most is split next, until there are so many; None for level
            by level.
    """

    max_depth: int | None
    num_bins: int
    missing: bool = False
    categorical: tuple[int, ...] = ()
    monotone: tuple[int, ...] = ()
    max_leaves: int | None = None


class Limits(NamedTuple):
    """What a split is held to.

    Attributes:
        l2: Half of it times the squared value of a leaf is the penalty.
        min_gain: A split gains more than this.
        min_child_weight: Sum of curvatures that each child needs.
    """

    l2: Array
    min_gain: Array
    min_child_weight: Array


class Grown(NamedTuple):
    """A tree, level after level.

    Attributes:
        feature: Column asked, -1 where the node is not split.
        cut: Codes up to this one go left. Of a categorical feature, and where there is no split,
            it has no meaning.
        missing_left: Whether missing values go left.
        left: Codes of a categorical feature that go left; no column if there is none.
        gain: What the split gains, 0 where there is none.
        weight: Sum of curvatures at the node.
        children: Left and right; a leaf l is -1 - l.
        value: What a leaf adds.
        leaf: Of each training row.
    """

    feature: Int[Array, " nodes"]
    cut: Int[Array, " nodes"]
    missing_left: Bool[Array, " nodes"]
    left: Bool[Array, "nodes codes"]
    gain: Float[Array, " nodes"]
    weight: Float[Array, " nodes"]
    children: Int[Array, "nodes 2"]
    value: Float[Array, " leaves"]
    leaf: Int[Array, " n"]


def arrange(codes: UInt8[Array, "d n"], options: Options) -> Codes:
    """Both layouts of the codes of rows."""
    d, n = codes.shape
    parts = jnp.pad(codes, ((0, -d % 4), (0, 0))).astype(jnp.int32).reshape(-1, 4, n)
    parts = _line(parts, _width(options))
    words = parts[:, 0] | (parts[:, 1] << 8) | (parts[:, 2] << 16) | (parts[:, 3] << 24)
    return Codes(words, codes.T.reshape(-1))


def grow(
    codes: Codes,
    gradient: Float[Array, " n"],
    curvature: Float[Array, " n"],
    limits: Limits,
    usable: Bool[Array, " d"] | None,
    options: Options,
) -> Grown:
    """Grow one tree.

    Args:
        codes: The rows.
        gradient: Of the loss by the score, times the row's weight.
        curvature: Likewise; not negative.
        limits: What a split is held to.
        usable: Features that may be asked; all, where None.
        options: What is static.
    """
    units, pairs, state = root(codes, gradient, curvature, options)
    depth = options.max_depth
    assert depth is not None

    def step(state: Level, level: Any, room: int) -> tuple[Level, Split]:
        """One level, of 2^level nodes in arrays of `room`; the next one has twice the room."""
        k = 1 << level
        above = _resized(state, room)
        split, totals, bounds = search(above, k, units, limits, usable, options)
        node = descend(codes.rows, state.node, split, k, options)

        def count() -> Array:
            return _children(codes.words, node, pairs, above.sums, k)

        if isinstance(level, int):
            sums = count() if level + 1 < depth else above.sums
        elif rolled == depth:
            nothing = jnp.zeros((*above.sums.shape[:3], 2 * room), jnp.int32)
            sums = lax.cond(level + 1 < depth, count, lambda: nothing)
        else:
            sums = count()
        return Level(node, sums, totals, bounds), split

    # The first levels are one loop, with room for its last one: it compiles once, and the room that
    # is not used costs little.
    rolled = min(_ROLLED, depth)
    room = 2 ** (rolled - 1)
    levels = jnp.arange(rolled, dtype=jnp.int32)
    state = _resized(state, 2 * room)
    state, found = lax.scan(functools.partial(step, room=room), state, levels)
    splits = [Split(*(part[i, : 2**i] for part in found)) for i in range(rolled)]
    for level in range(rolled, depth):
        state, split = step(state, level, 2**level)
        splits.append(split)
    whole = Split(*(jnp.concatenate(part) for part in zip(*splits, strict=True)))
    values = leaf_values(state.totals, units, limits, state.bounds)
    return Grown(*whole, jnp.asarray(_complete(depth)), values, state.node)


def root(
    codes: Codes, gradient: Array, curvature: Array, options: Options
) -> tuple[Array, Array, "Level"]:
    """The size of one step, the whole numbers of the rows, and the level of one node."""
    n, dtype = len(gradient), gradient.dtype
    units = jnp.stack([_unit(gradient), _unit(curvature)])
    pairs = jnp.stack([gradient, curvature], axis=1) * _inverse(units)[None]
    pairs = jnp.round(pairs).astype(jnp.int32)
    node = jnp.zeros(n, jnp.int32)
    sums = histogram(codes.words, node, pairs, (len(codes.rows) // n, _width(options), 1))
    totals = sums[0].sum(axis=1, dtype=jnp.int32)
    bounds = (jnp.full(1, -jnp.inf, dtype), jnp.full(1, jnp.inf, dtype)) if options.monotone else ()
    return units, pairs, Level(node, sums, totals, bounds)


def leaf_values(totals: Array, units: Array, limits: Limits, bounds: tuple[Array, ...]) -> Array:
    """What leaves with these sums add."""
    g, h = totals.astype(units.dtype) * units[:, None]
    return _held(weight_of(g, h, limits.l2), bounds)


def reach(codes: UInt8[Array, "d n"], tree: Grown, options: Options) -> Int[Array, " n"]:
    """The leaf of other rows."""
    rows = codes.T.reshape(-1)
    split, children = Split(*tree[:6]), tree.children.reshape(-1)

    def step(node: Array) -> Array:
        at = jnp.maximum(node, 0)
        below = children[at + descend(rows, at, split, 1, options)]  # 2 * at, and 1 for the right
        return jnp.where(node >= 0, below, node)

    start = jnp.zeros(codes.shape[1], jnp.int32)
    return -1 - lax.while_loop(lambda node: jnp.any(node >= 0), step, start)


def weight_of(g: Array, h: Array, l2: Array) -> Array:
    """The best value for the rows with these sums, -g / (h + l2); 0 for no rows."""
    bottom = h + l2
    return jnp.where(bottom == 0, 0, -g / jnp.where(bottom == 0, 1, bottom))


# --- Private --------------------------------------------------------------------------------------


class Split(NamedTuple):
    """The best split of each node, as in `Grown`."""

    feature: Array
    cut: Array
    missing_left: Array
    left: Array
    gain: Array
    weight: Array


class Level(NamedTuple):
    """Where the rows are, and what is known of the nodes of a level.

    Attributes:
        node: Of each row.
        sums: Histograms, shape `(d, 2, width, nodes)`.
        totals: Of all rows of a node, shape `(2, nodes)`.
        bounds: Of the values below a node, if a feature has a direction.
    """

    node: Array
    sums: Array
    totals: Array
    bounds: tuple[Array, ...]


def _complete(depth: int) -> np.ndarray:
    """Children of the nodes of a complete tree, one level after the other."""
    levels = []
    for level in range(depth):
        first, size = 2 ** (level + 1) - 1, 2**level
        below = np.arange(size)[:, None] + [[0, size]]
        levels.append(first + below if level + 1 < depth else -1 - below)
    return np.concatenate(levels).astype(np.int32)


def _resized(state: Level, room: int) -> Level:
    """Arrays for so many nodes; those without rows have sums of 0."""

    def one(part: Array) -> Array:
        part = part[..., :room]
        return jnp.pad(part, [*[(0, 0)] * (part.ndim - 1), (0, room - part.shape[-1])])

    sums, totals, bounds = jax.tree.map(one, (state.sums, state.totals, state.bounds))
    return Level(state.node, sums, totals, bounds)


def _joined(left: Array, right: Array, k: Any) -> Array:
    """The left children of k nodes, then the right ones; twice the room."""
    if isinstance(k, int):
        return jnp.concatenate([left, right], axis=-1)
    both = jnp.concatenate([left, jnp.zeros_like(left)], axis=-1)
    return lax.dynamic_update_slice_in_dim(both, right, k, both.ndim - 1)


def _width(options: Options) -> int:
    """Bins of a histogram: a multiple of 16, for the running sums."""
    return -(-options.num_bins // 16) * 16


def _line(code: Any, width: int) -> Any:
    """Where a histogram holds a bin: bins 16 apart are neighbours.

    Then a running sum over each 16 bins is 16 additions of long runs of numbers.
    """
    return code % 16 * (width // 16) + code // 16


def _unit(values: Array) -> Array:
    """The size of one step. In blocks: a single running sum of 10^8 float32 would stand still."""
    size = jnp.abs(values)
    block = max(1, math.isqrt(len(size)))
    size = jnp.pad(size, (0, -len(size) % block)).reshape(-1, block)
    return size.sum(axis=1).sum() / np.asarray(_SPAN, values.dtype)


def _inverse(units: Array) -> Array:
    return jnp.where(units == 0, 0, 1 / jnp.where(units == 0, 1, units))


def unpacked(word: Array, feature: Array) -> Array:
    """The line of a feature in the words that hold it."""
    return (word >> (8 * (feature & 3))) & 255


# --- Histograms -----------------------------------------------------------------------------------


def histogram(words: Array, node: Array, pairs: Array, shape: tuple[int, int, int]) -> Array:
    """Sums for every feature, bin and node: shape `(d, 2, width, k)`, of which `shape` lacks the 2.

    One feature after the other: its sums stay in the cache.
    """
    d, width, k = shape

    def one(feature: Array) -> Array:
        code = unpacked(words[feature >> 2], feature)
        empty = jnp.zeros((width * k, 2), jnp.int32)
        return empty.at[code * k + node].add(pairs, mode="promise_in_bounds").T

    return lax.map(one, jnp.arange(d, dtype=jnp.int32)).reshape(d, 2, width, k)


def _children(words: Array, node: Array, pairs: Array, sums: Array, k: Any) -> Array:
    of_node = words, node, pairs, sums, jnp.asarray(k, jnp.int32)
    by_difference = functools.partial(_by_difference, static=k if isinstance(k, int) else None)
    return lax.platform_dependent(*of_node, cpu=by_difference, default=_directly)


def _directly(words: Array, node: Array, pairs: Array, sums: Array, k: Array) -> Array:
    """Count all rows of all nodes."""
    del k  # the number of a node says all
    d, _, width, room = sums.shape
    return at_once(words, node, pairs, (d, width, 2 * room))


def at_once(words: Array, node: Array, pairs: Array, shape: tuple[int, int, int]) -> Array:
    """As `histogram`, in one scatter."""
    d, width, k = shape
    feature = jnp.arange(d, dtype=jnp.int32)[:, None]
    code = unpacked(words[feature[:, 0] >> 2], feature)
    place = (feature * width + code) * k + node[None]
    found = jnp.zeros((d * width * k, 2), jnp.int32)
    updates = jnp.broadcast_to(pairs[None], (d, *pairs.shape))
    found = found.at[place].add(updates, mode="promise_in_bounds")
    return jnp.moveaxis(found.reshape(d, width, k, 2), 3, 1)


def _by_difference(
    words: Array, node: Array, pairs: Array, sums: Array, k: Array, *, static: int | None = None
) -> Array:
    """Count the smaller child of each node; the other is what is left of the node."""
    n, (d, _, width, room) = len(node), sums.shape
    size = jax.ops.segment_sum(jnp.ones(n, jnp.int32), node, 2 * room)
    smaller = jnp.where(size[:room] <= lax.dynamic_slice_in_dim(size, k, room), 0, 1)
    parent = node & (k - 1)
    # They have at most half of the rows, often far fewer: counted in blocks, as many as it takes.
    block = max(1, n // 8 if n >= _MANY else n // 2)
    most = max(block, -(-(n // 2) // block) * block)
    mask = smaller.at[parent].get(mode="promise_in_bounds") * k + parent == node
    rows, count = _places(mask, most)
    shape = d, width, room

    def add(i: Any, few: Array | int) -> Array:
        return few + of_block(words, rows, i * block, count, block, parent, pairs, shape)

    if block == most:
        few = add(0, 0)
    else:
        num_blocks = lax.div(count + (block - 1), np.int32(block))
        few = lax.fori_loop(0, num_blocks, add, jnp.zeros((d, 2, width, room), jnp.int32))
    many = sums - few
    left_is_smaller = (smaller == 0)[None, None, None]
    left, right = jnp.where(left_is_smaller, few, many), jnp.where(left_is_smaller, many, few)
    return _joined(left, right, k if static is None else static)


def of_block(
    words: Array,
    rows: Array,
    begin: Any,
    end: Array,
    block: int,
    node: Array,
    pairs: Array,
    shape: tuple[int, int, int],
    count: Callable[..., Array] = histogram,
) -> Array:
    """The histogram of `block` of some rows from place `begin` on, less those from `end` on."""
    taken = lax.dynamic_slice_in_dim(rows, begin, block)
    real = begin + jnp.arange(block, dtype=jnp.int32) < end
    at, of_rows = (part.at[taken].get(mode="promise_in_bounds") for part in (node, pairs))
    packed = words.at[:, taken].get(mode="promise_in_bounds")
    return count(packed, at, jnp.where(real[:, None], of_rows, 0), shape)


def _places(mask: Array, size: int) -> tuple[Array, Array]:
    """Where `mask` holds, in at most `size` rows, then any rows; and how many places it is."""

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        places, count = carry
        # Written in any case, and written over by the next if it does not count.
        places = places.at[count].set(i.astype(jnp.int32), mode="promise_in_bounds")
        return places, count + mask[i].astype(jnp.int32)

    # The rest are not all the same row: additions to one bin would wait for each other.
    places = lax.rem(jnp.arange(size + 1, dtype=jnp.int32), np.int32(len(mask)))
    places, count = lax.fori_loop(0, len(mask), step, (places, jnp.zeros((), jnp.int32)))
    return places[:-1], count


def _along(x: Array, axis: int) -> Array:
    """Running sums; for few steps of many numbers, many times faster than `jnp.cumsum`."""

    def step(i: Array, x: Array) -> Array:
        last = lax.dynamic_slice_in_dim(x, i - 1, 1, axis)
        here = lax.dynamic_slice_in_dim(x, i, 1, axis)
        return lax.dynamic_update_slice_in_dim(x, last + here, i, axis)

    return lax.fori_loop(1, x.shape[axis], step, x)


# --- The best split -------------------------------------------------------------------------------


def search(
    state: Level, k: Any, units: Array, limits: Limits, usable: Array | None, options: Options
) -> tuple[Split, Array, tuple[Array, ...]]:
    """The best split of each node; the sums and the bounds of its children.

    First the best of each run of 16 bins, which is all that is written; then the bin in the best
    run of each node.
    """
    _, sums, totals, bounds = state
    d, _, width, room = sums.shape
    groups, l2, dtype = width // 16, limits.l2, units.dtype
    g, h = totals.astype(dtype) * units[:, None]
    value = _held(weight_of(g, h, l2), bounds)
    sign = _signs(options, dtype)
    score = _score(totals, value, bounds, units, limits, options)

    start, runs = _runs(sums, units, options)
    absent = jnp.zeros((d, 2, room), sums.dtype)
    if options.missing:
        absent = sums[:, :, _line(options.num_bins - 1, width)]
        if options.categorical:  # there, a missing value is one more category
            absent = absent.at[np.asarray(options.categorical)].set(0)
    beside = absent[:, 0, None], absent[:, 1, None]
    left_g, left_h = start[:, 0], start[:, 1]
    best = jnp.full(left_g.shape, -jnp.inf, dtype)
    for i in range(16):  # unrolled: one pass over the sums
        left_g, left_h = left_g + runs[:, 0, i], left_h + runs[:, 1, i]
        here, _ = score((left_g, left_h), beside, sign[:, None, None])
        best = jnp.where(here > best, here, best)
    if usable is not None:
        best = jnp.where(usable[:, None, None], best, -jnp.inf)
    # The first of the best, in the order of features and bins. `argmax` would take far longer, and
    # so would a minimum of integers.
    kind = np.dtype(dtype) if d * groups < 2**24 else np.dtype(np.int32)
    order = jnp.arange(d * groups, dtype=kind).reshape(d, groups, 1)
    is_best = best == best.max(axis=(0, 1), keepdims=True)
    first = jnp.where(is_best, order, d * groups - 1).min(axis=(0, 1)).astype(jnp.int32)
    feature, group = lax.div(first, np.int32(groups)), lax.rem(first, np.int32(groups))

    nodes = jnp.arange(room, dtype=jnp.int32)
    steps = runs[feature, :, :, group, nodes][:, :, None]
    upto = jnp.where(np.tri(16, dtype=bool)[None, None], steps, 0).sum(axis=3, dtype=jnp.int32)
    under = start[feature, :, group, nodes][:, :, None] + upto
    under, absent = under.transpose(1, 2, 0), absent[feature, :, nodes].T
    beside = absent[0, None, None], absent[1, None, None]
    direction = sign[feature] if options.monotone else sign
    here, to_left = score((under[0, None], under[1, None]), beside, direction[None, None])
    step, best = jnp.argmax(here[0], axis=0).astype(jnp.int32), here[0].max(axis=0)
    cut, missing_left = group * 16 + step, to_left[0, step, nodes]
    under = under[:, step, nodes] + jnp.where(missing_left[None], absent, 0)
    gain = 0.5 * (best - (_better(g, h, value, l2) if options.monotone else l2 * value * value))
    split = gain > limits.min_gain
    under = jnp.where(split[None], under, totals)
    children = _joined(under, totals - under, k)
    # Where no missing value was seen, one goes with the heavier child.
    heavier = 2 * under[1].astype(dtype) > totals[1].astype(dtype)
    if options.missing:
        missing_left = jnp.where(absent[1] > 0, missing_left, heavier)
    left = jnp.zeros((room, 0), bool)
    if options.categorical:
        left = _chosen(sums, units, feature, _line(cut, width), heavier)
    if options.monotone:
        bounds = _narrowed(under, totals, units, l2, bounds, jnp.where(split, sign[feature], 0), k)
    feature = jnp.where(split, feature, -1)
    gain = jnp.where(split, gain, 0)
    return Split(feature, cut, missing_left, left, gain, h), children, bounds


def _score(
    totals: Array,
    value: Array,
    bounds: tuple[Array, ...],
    units: Array,
    limits: Limits,
    options: Options,
) -> Callable[[tuple[Array, Array], tuple[Array, Array], Array], tuple[Array, Array]]:
    """What cuts gain, for both sums on the left, those of missing values, and signs.

    All of shape `(., ., k)`. The function gives twice the gain, up to a number that is the same for
    all cuts of a node, and whether missing values had better go left.
    """
    l2, dtype = limits.l2, units.dtype
    g, h, own, *held = (part[None, None] for part in (totals[0], totals[1], value, *bounds))

    def of_cut(left_g: Array, left_h: Array, direction: Array) -> Array:
        rest = h - left_h
        gl, hl = left_g.astype(dtype) * units[0], left_h.astype(dtype) * units[1]
        hr = rest.astype(dtype) * units[1]
        fits = (left_h > 0) & (rest > 0)
        fits &= (hl >= limits.min_child_weight) & (hr >= limits.min_child_weight)
        if options.monotone:
            gr = (g - left_g).astype(dtype) * units[0]
            vl, vr = (_held(weight_of(*s, l2), held) for s in ((gl, hl), (gr, hr)))
            found = _better(gl, hl, vl, l2) + _better(gr, hr, vr, l2)
            fits &= (vr - vl) * direction >= 0
        else:
            # What is left of the gradient at the node's own value: no large numbers cancel.
            left = gl + (hl + l2) * own
            right = l2 * own - left
            found = left * left / (hl + l2) + right * right / (hr + l2)
        return jnp.where(fits, found, -jnp.inf)

    def score(
        left: tuple[Array, Array], absent: tuple[Array, Array], direction: Array
    ) -> tuple[Array, Array]:
        right = of_cut(*left, direction)
        if not options.missing:
            return right, jnp.zeros(right.shape, bool)
        with_them = of_cut(left[0] + absent[0], left[1] + absent[1], direction)
        to_left = with_them > right
        return jnp.where(to_left, with_them, right), to_left

    return score


def _runs(sums: Array, units: Array, options: Options) -> tuple[Array, Array]:
    """What lies left of each run of 16 bins, and what each bin of it adds.

    Shapes `(d, 2, runs, k)` and `(d, 2, 16, runs, k)`.
    """
    d, _, width, k = sums.shape
    runs = sums.reshape(d, 2, 16, width // 16, k)
    whole = runs.sum(axis=2, dtype=jnp.int32)
    start = _along(whole, 2) - whole
    if options.categorical:
        columns = np.asarray(options.categorical)
        some = sums[columns]
        ratio = _ratio(some, units)
        # Left of category c lie all whose ratio is not larger.
        upto = (ratio[:, :, None] <= ratio[:, None])[:, None]
        by_ratio = jnp.where(upto, some[:, :, :, None], 0).sum(axis=2, dtype=jnp.int32)
        by_ratio = by_ratio.reshape(len(columns), *runs.shape[1:])
        added = by_ratio.at[:, :, 1:].add(-by_ratio[:, :, :-1])
        start, runs = start.at[columns].set(0), runs.at[columns].set(added)
    return start, runs


def _ratio(sums: Array, units: Array) -> Array:
    """Gradient by curvature of every code, infinite for one without rows."""
    g, h = (sums[..., i, :, :].astype(units.dtype) * units[i] for i in (0, 1))
    return jnp.where(h > 0, g / jnp.where(h > 0, h, 1), jnp.inf)


def _chosen(sums: Array, units: Array, feature: Array, line: Array, heavier: Array) -> Array:
    """Codes that go left if the feature is categorical, shape `(k, width)`."""
    k, width = len(feature), sums.shape[2]
    nodes = jnp.arange(k, dtype=jnp.int32)
    ratio = _ratio(jnp.moveaxis(sums, 3, 0)[nodes, feature][..., None], units)[..., 0]
    upto = ratio <= ratio[nodes, line][:, None]
    left = jnp.where(jnp.isinf(ratio), heavier[:, None], upto)
    return left[:, _line(np.arange(width), width)]


def _signs(options: Options, dtype: jnp.dtype) -> Array:
    return jnp.asarray(options.monotone, dtype) if options.monotone else jnp.zeros(0, dtype)


def _held(value: Array, bounds: tuple[Array, ...] | list[Array]) -> Array:
    return jnp.clip(value, *bounds) if bounds else value


def _better(g: Array, h: Array, value: Array, l2: Array) -> Array:
    """Twice what a leaf of this value gains over 0."""
    return -value * (2 * g + (h + l2) * value)


def _narrowed(
    under: Array,
    totals: Array,
    units: Array,
    l2: Array,
    bounds: tuple[Array, ...],
    sign: Array,
    k: Any,
) -> tuple[Array, ...]:
    """Bounds of the children: the middle of their values, if the feature has a direction."""
    low, high = bounds
    values = []
    for part in (under, totals - under):
        g, h = part.astype(units.dtype) * units[:, None]
        values.append(_held(weight_of(g, h, l2), bounds))
    middle = 0.5 * (values[0] + values[1])
    rising, falling = sign > 0, sign < 0
    lows = jnp.where(falling, middle, low), jnp.where(rising, middle, low)
    highs = jnp.where(rising, middle, high), jnp.where(falling, middle, high)
    return _joined(*lows, k), _joined(*highs, k)


def answers(split: Split, width: int, options: Options) -> Array:
    """For one split, and each line of a histogram: 1 where its rows go right, else 0."""
    code = jnp.asarray(np.argsort(_line(np.arange(width), width)), jnp.int32)
    right = _is_right(code, split.cut, split.missing_left, options)
    if options.categorical:
        listed = (split.feature == np.asarray(options.categorical, np.int32)).any()
        right = jnp.where(listed, ~split.left[code], right)
    return right.astype(jnp.int32)


def _is_right(code: Array, cut: Array, missing_left: Array, options: Options) -> Array:
    """Of a code that has an order, or is missing."""
    right = code > cut
    if options.missing:
        right &= ~missing_left | (code < options.num_bins - 1)
    return right


def descend(rows: Array, node: Array, split: Split, k: Any, options: Options) -> Array:
    """The child of each row; k is the number of nodes of the level."""
    n = len(node)
    d = len(rows) // n
    asked = jnp.maximum(split.feature, 0)
    cut = jnp.where(split.feature < 0, 255, split.cut)
    # One number for each node: a single look-up for each row.
    packed = (asked << 9) | (split.missing_left.astype(jnp.int32) << 8) | cut
    packed = packed.at[node].get(mode="promise_in_bounds")
    place = jnp.arange(n, dtype=jnp.int32) * d + (packed >> 9)
    code = rows.at[place].get(mode="promise_in_bounds").astype(jnp.int32)
    right = _is_right(code, packed & 255, (packed & 256) > 0, options)
    if options.categorical:
        kinds = np.zeros(d, bool)
        kinds[list(options.categorical)] = True
        by_code = ~split.left.at[node, code].get(mode="promise_in_bounds")
        listed = (jnp.asarray(kinds)[asked] & (split.feature >= 0)).at[node].get()
        right = jnp.where(listed, by_code, right)
    return node + jnp.where(right, k, 0)
