r"""One tree of gradient boosting, grown leaf by leaf: what gains most is split first.

Each leaf keeps its rows, its histogram and its best split. A step takes the leaf whose split gains
most, parts its rows in two, counts the smaller side, and searches both: it touches no other rows.
With as many leaves as a depth has room for, it ends at the tree that is grown level by level.

Reference: Shi, *Best-first Decision Tree Learning* (2007); Ke et al., *LightGBM: A Highly Efficient
Gradient Boosting Decision Tree*, NIPS (2017).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from mlnotes_jax.trees import _histogram
from mlnotes_jax.trees._histogram import Codes, Grown, Level, Limits, Options, Split

__all__ = ["grow"]


class _Rows(NamedTuple):
    """Which rows are in which leaf.

    Attributes:
        order: Rows, one leaf after the other; behind them any rows, so that a block of the last
            ones is whole.
        spare: Room to sort them.
        begin: Where a leaf begins, shape `(leaves,)`; behind all rows if it is not in use.
        count: Rows in a leaf.
    """

    order: Array
    spare: Array
    begin: Array
    count: Array


class _Question(NamedTuple):
    """What a split asks.

    Attributes:
        words: Lines of all rows; see `Codes`.
        feature: The one that is asked.
        right: 1 for each of its lines that goes right, else 0.
    """

    words: Array
    feature: Array
    right: Array

    def is_right(self, row: Array) -> Array:
        """For one row, or many."""
        word = self.words[self.feature >> 2, row]
        return self.right[_histogram.unpacked(word, self.feature)]


class _State(NamedTuple):
    """Leaves, of which `num` are in use, and the nodes above them.

    Attributes:
        num: Leaves so far.
        rows: Of the leaves.
        sums: Histogram of each leaf, shape `(leaves, d, 2, width)`.
        totals: Of all its rows, shape `(leaves, 2)`.
        bounds: Of its value, if a feature has a direction.
        split: Its best split.
        under: What `totals` would be on both sides, shape `(leaves, 2, 2)`, sides first.
        bounds_under: Likewise.
        depth: Questions above it.
        entry: Where it stands in `children`.
        nodes: The splits that were made.
        children: Left and right of each node, one after the other; a leaf l is -1 - l.
    """

    num: Array
    rows: _Rows
    sums: Array
    totals: Array
    bounds: tuple[Array, ...]
    split: Split
    under: Array
    bounds_under: tuple[Array, ...]
    depth: Array
    entry: Array
    nodes: Split
    children: Array


def grow(
    codes: Codes,
    gradient: Float[Array, " n"],
    curvature: Float[Array, " n"],
    limits: Limits,
    usable: Bool[Array, " d"] | None,
    options: Options,
) -> Grown:
    """Grow one tree; the arguments are those of `_histogram.grow`."""
    room = options.max_leaves
    assert room is not None
    units, pairs, first = _histogram.root(codes, gradient, curvature, options)
    n, (d, _, width, _) = len(gradient), first.sums.shape
    # The smaller sides have at most half of the rows, often far fewer.
    block = max(1, min(n // 2, max(256, n // 128)))

    def searched(part: tuple[Array, Array, tuple[Array, ...]]) -> Any:
        """The split of a leaf, from its sums, totals and bounds; and what is on both sides."""
        level = Level(first.node, *jax.tree.map(lambda a: a[..., None], part))
        split, under, bounds = _histogram.search(level, 1, units, limits, usable, options)
        return jax.tree.map(lambda a: a[0], split), under.T, bounds

    def gains(state: _State) -> Array:
        if options.max_depth is None:
            return state.split.gain
        return jnp.where(state.depth < options.max_depth, state.split.gain, 0)

    def unfinished(state: _State) -> Array:
        return (state.num < room) & (gains(state).max() > 0)

    def step(state: _State) -> _State:
        old, new = jnp.argmax(gains(state)).astype(jnp.int32), state.num
        made = jax.tree.map(lambda part: part[old], state.split)
        right = _histogram.answers(made, width, options)
        rows = _parted(state.rows, old, new, _Question(codes.words, made.feature, right))
        left_is_smaller = rows.count[old] <= rows.count[new]
        smaller = jnp.where(left_is_smaller, old, new)
        begin = rows.begin[smaller]
        end = begin + rows.count[smaller]

        # Both sides in one array: what the smaller one gains, the other loses.
        side = jnp.where(left_is_smaller, jnp.asarray([1, -1]), jnp.asarray([-1, 1]))
        side = side.astype(jnp.int32)[:, None, None, None]

        def add(i: Array, both: Array) -> Array:
            at, shape = begin + i * block, (d, width, 1)
            more = _histogram.of_block(
                codes.words, rows.order, at, end, block, first.node, pairs, shape,
                _histogram.at_once,
            )  # fmt: skip
            return both + side * more[None, ..., 0]

        num_blocks = lax.div(end - begin + (block - 1), np.int32(block))
        both = jnp.where(side > 0, 0, state.sums[old][None])
        both = lax.fori_loop(0, num_blocks, add, both)
        totals, bounds = state.under[old], tuple(bound[old] for bound in state.bounds_under)
        pair, node = jnp.stack([old, new]), new - 1

        def put(whole: Array, part: Array) -> Array:
            return whole.at[pair].set(part)

        split, under, bounds_under = lax.map(searched, (both, totals, bounds))
        ends = 2 * node + jnp.arange(2, dtype=jnp.int32)
        children = state.children.at[state.entry[old]].set(node, mode="drop")
        return _State(
            num=new + 1,
            rows=rows,
            sums=state.sums.at[old].set(both[0]).at[new].set(both[1]),
            totals=put(state.totals, totals),
            bounds=jax.tree.map(put, state.bounds, bounds),
            split=jax.tree.map(put, state.split, split),
            under=put(state.under, under),
            bounds_under=jax.tree.map(put, state.bounds_under, bounds_under),
            depth=put(state.depth, jnp.broadcast_to(state.depth[old] + 1, 2)),
            entry=put(state.entry, ends),
            nodes=jax.tree.map(lambda whole, part: whole.at[node].set(part), state.nodes, made),
            children=children.at[ends].set(-1 - pair),
        )

    def leaves(part: Array) -> Array:
        """Room for all leaves; the first is the root."""
        return jnp.zeros((room, *part.shape), part.dtype).at[0].set(part)

    alone = jax.tree.map(lambda a: a[..., 0], first[1:])
    split, under, bounds_under = searched(alone)
    nothing = jax.tree.map(lambda part: jnp.zeros((room - 1, *part.shape), part.dtype), split)
    order = lax.rem(jnp.arange(n + block, dtype=jnp.int32), np.int32(n))
    start = _State(
        num=jnp.ones((), jnp.int32),
        rows=_Rows(
            order=order,
            spare=jnp.zeros(2 * (n + 1), jnp.int32),
            begin=jnp.full(room, n, jnp.int32).at[0].set(0),
            count=jnp.zeros(room, jnp.int32).at[0].set(n),
        ),
        sums=leaves(alone[0]),
        totals=leaves(alone[1]),
        bounds=jax.tree.map(leaves, alone[2]),
        split=jax.tree.map(leaves, split),
        under=leaves(under),
        bounds_under=jax.tree.map(leaves, bounds_under),
        depth=jnp.zeros(room, jnp.int32),
        entry=jnp.full(room, 2 * (room - 1), jnp.int32),
        nodes=nothing._replace(feature=nothing.feature - 1),
        children=jnp.full(2 * (room - 1), -1, jnp.int32),
    )
    end = lax.while_loop(unfinished, step, start)
    values = _histogram.leaf_values(end.totals.T, units, limits, end.bounds)
    leaf = _leaf_of_rows(end.rows, n)
    return Grown(*end.nodes, end.children.reshape(-1, 2), values, leaf)


def _parted(rows: _Rows, old: Array, new: Array, question: _Question) -> _Rows:
    """The rows of a leaf, those that stay first; the others are those of the new leaf."""
    begin, count = rows.begin[old], rows.count[old]
    order, spare, lefts = lax.platform_dependent(
        rows.order, rows.spare, begin, count, question, cpu=_one_by_one, default=_in_one_pass
    )
    pair = jnp.stack([old, new])
    return _Rows(
        order,
        spare,
        rows.begin.at[pair].set(jnp.stack([begin, begin + lefts])),
        rows.count.at[pair].set(jnp.stack([lefts, count - lefts])),
    )


def _one_by_one(
    order: Array, spare: Array, begin: Array, count: Array, question: _Question
) -> tuple[Array, Array, Array]:
    """Part `count` rows from `begin` on: their order, what is left over, and how many stay."""
    # What is read and what is written are two arrays: else each step would copy them.
    half = len(spare) // 2

    def put(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        spare, lefts, rights = carry
        row = order[begin + i]
        is_right = question.is_right(row)
        # Written on both sides, and written over by the next on the side where it is not.
        spare = spare.at[lefts].set(row, mode="promise_in_bounds")
        spare = spare.at[half + rights].set(row, mode="promise_in_bounds")
        return spare, lefts + 1 - is_right, rights + is_right

    zero = jnp.zeros((), jnp.int32)
    spare, lefts, _ = lax.fori_loop(0, count, put, (spare, zero, zero))

    def back(i: Array, order: Array) -> Array:
        row = spare[jnp.where(i < lefts, i, half + i - lefts)]
        return order.at[begin + i].set(row, mode="promise_in_bounds")

    return lax.fori_loop(0, count, back, order), spare, lefts


def _in_one_pass(
    order: Array, spare: Array, begin: Array, count: Array, question: _Question
) -> tuple[Array, Array, Array]:
    """The same from running sums over all rows, for where a loop over rows is slow."""
    place = jnp.arange(len(order), dtype=jnp.int32)
    here = (place >= begin) & (place < begin + count)
    is_right = question.is_right(order) == 1
    lefts = jnp.cumsum(here & ~is_right, dtype=jnp.int32)
    rights = jnp.cumsum(here & is_right, dtype=jnp.int32)
    moved = begin - 1 + jnp.where(is_right, lefts[-1] + rights, lefts)
    return order.at[jnp.where(here, moved, place)].set(order), spare, lefts[-1]


def _leaf_of_rows(rows: _Rows, n: int) -> Array:
    """The leaf of each row."""
    leaves = jnp.argsort(rows.begin).astype(jnp.int32)
    places = jnp.arange(n, dtype=jnp.int32)
    which = jnp.searchsorted(rows.begin[leaves], places, side="right") - 1
    return jnp.zeros(n, jnp.int32).at[rows.order[:n]].set(leaves[which])
