r"""The trees of a forest, grown breadth-first from bins.

The rows of a node lie side by side in one list, `order`. A step takes the next nodes of a level, up
to `lanes` of them, and for each the next features of its drawn permutation, `group` at a time. It

1. counts the rows: a histogram over bins and classes (or weight and weighted target),
2. reads the score of every threshold off the running sums over the bins, and keeps the best,
3. moves the rows of the left child to the front of the node's range and those of the right child
   to its back, and
4. adds up what the children hold.

Only steps 1, 3 and 4 touch rows. A CPU does them in plain loops, one row after the other: XLA
compiles a small loop of scalars to machine code without a call, and rows of finished nodes cost
nothing. An accelerator looks at all rows at once instead, and at many trees. Both find the same
trees; sums of floats (not of whole numbers) may differ by rounding.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt8

__all__ = ["Grown", "Limits", "Plan", "Rows", "draw", "grow", "permutations"]

#: Cells of a step's histograms that stay in a core's cache, and that an accelerator holds for one
#: tree and for all the trees of a batch.
_CELLS_CPU, _CELLS_TREE, _CELLS_BATCH = 1 << 16, 1 << 19, 1 << 27


class Plan(NamedTuple):
    """What is static.

    Attributes:
        num_classes: 0 for regression.
        num_bins: Codes; the last is that of a missing value if `missing`.
        max_nodes: Slots of a tree.
        group: Features whose histograms are made at once.
        counted: Whether rows are counted beside their weights: needed unless a row is enough for a
            leaf and the weights are whole numbers.
        missing: Whether a missing value has a code.
        bootstrap: Whether rows are drawn.
    """

    num_classes: int
    num_bins: int
    max_nodes: int
    group: int
    counted: bool
    missing: bool
    bootstrap: bool


class Limits(NamedTuple):
    """What is traced: see `forest.fit`."""

    max_features: Int[Array, ""]
    max_depth: Int[Array, ""]
    min_samples_leaf: Float[Array, ""]
    min_gain: Float[Array, ""]
    max_samples: Float[Array, ""]


class Rows(NamedTuple):
    """The training data.

    Attributes:
        codes: Bins, one feature after the other, shape `(d, n)`.
        target: Classes, or targets of mean 0 and largest size 1, shape `(n,)`.
        weight: Sample weights, shape `(n,)`, or None for ones.
    """

    codes: UInt8[Array, "d n"]
    target: Array
    weight: Float[Array, " n"] | None


class Grown(NamedTuple):
    """Trees as they are grown, with a leading axis of trees.

    Attributes:
        node: Feature, bin, side of a missing value, left child (the right one is the next) and
            depth of every node that was looked at, shape `(nodes, 5)`; -1 where none.
        sums: Weight of each class, or weight, weighted target and its square, `(nodes, outputs)`.
        num_nodes: Shape `()`.
    """

    node: Int[Array, "*trees nodes 5"]
    sums: Float[Array, "*trees nodes outputs"]
    num_nodes: Int[Array, "*trees"]


def permutations(key: Key[Array, ""], num_features: int) -> Int[Array, " permutations_d"]:
    """Orders of the features, one after the other; a node reads one of them from a drawn place."""
    rows = max(64, min(1024, (1 << 18) // num_features))
    drawn = jax.random.bits(key, (rows, num_features))
    return jnp.argsort(drawn, axis=1).astype(jnp.int32).reshape(-1)


def draw(
    key: Key[Array, ""],
    n: int,
    weight: Float[Array, " n"] | None,
    max_samples: Float[Array, ""],
    bootstrap: bool,
) -> Int[Array, " n"]:
    """How often the tree of a key has each row; out of bag are those with 0."""
    key = jax.random.fold_in(key, 0)
    if not bootstrap:
        return jnp.ones(n, jnp.int32) if weight is None else (weight > 0).astype(jnp.int32)
    if weight is None:
        place, count = None, jnp.int32(n)
    else:
        place, count = _listed(weight > 0)
    share = max_samples * count.astype(max_samples.dtype)
    size = jnp.clip(jnp.round(share).astype(jnp.int32), 1, n)
    rows = _scaled(jax.random.bits(key, (n,), jnp.uint32), count)
    rows = rows if place is None else place[rows]
    drawn = (jnp.arange(n, dtype=jnp.int32) < size).astype(jnp.int32)
    return jnp.zeros(n, jnp.int32).at[rows].add(drawn, mode="promise_in_bounds")


def grow(keys: Key[Array, " trees"], table: Array, rows: Rows, limits: Limits, plan: Plan) -> Grown:
    """Grow one tree for each key: one after the other on a CPU, in batches elsewhere."""

    def one_by_one(keys: Array, table: Array, rows: Rows, limits: Limits) -> Grown:
        return lax.map(lambda key: _tree(key, table, rows, limits, plan, True), keys)

    def at_once(keys: Array, table: Array, rows: Rows, limits: Limits) -> Grown:
        cells = max(_lanes(plan, False) * _lane_cells(plan), rows.codes.shape[1] * plan.group)
        batch = max(1, min(len(keys), _CELLS_BATCH // cells))
        tree = functools.partial(
            _tree, table=table, rows=rows, limits=limits, plan=plan, scalar=False
        )
        return lax.map(tree, keys, batch_size=batch)

    return lax.platform_dependent(keys, table, rows, limits, cpu=one_by_one, default=at_once)


# --- One tree -------------------------------------------------------------------------------------


class _Data(NamedTuple):
    """What the row loops read."""

    codes: Array  # (d * n,)
    target: Array
    weight: Array


class _Queue(NamedTuple):
    """The nodes of a level that may be split: number, first row, end of rows; and how many."""

    node: Array
    size: Array


def _tree(key: Array, table: Array, rows: Rows, limits: Limits, plan: Plan, scalar: bool) -> Grown:
    n = rows.codes.shape[1]
    lanes = _lanes(plan, scalar)
    real = limits.min_gain.dtype
    count = draw(key, n, rows.weight, limits.max_samples, plan.bootstrap).astype(real)
    weight = count if rows.weight is None else count * rows.weight
    data = _Data(rows.codes.reshape(-1), rows.target, weight)
    words = jax.random.bits(jax.random.fold_in(key, 1), (plan.max_nodes,), jnp.uint32)
    order, num_rows = _listed(count > 0)

    # A node in the queue has two rows at least.
    queue = jnp.zeros((n // 2 + lanes + 1, 3), jnp.int32).at[0, 2].set(num_rows)
    low, high = _span(data.target, weight > 0)
    node = jnp.full((plan.max_nodes, 5), -1, jnp.int32)
    sums = jnp.zeros((plan.max_nodes + 2 * lanes, _num_sums(plan)), real)
    sums = sums.at[0].set(_root(data, plan))
    state = (
        _Queue(queue, (low < high).astype(jnp.int32)), order, node, sums, jnp.int32(1), jnp.int32(0)
    )  # fmt: skip

    def level(state: Any) -> Any:
        queue, order, node, sums, num_nodes, depth = state

        def step(carry: Any) -> Any:
            start, filled, below, moved, node, sums, num_nodes = carry
            record = lax.dynamic_slice_in_dim(queue.node, start, lanes)
            live = start + jnp.arange(lanes, dtype=jnp.int32) < queue.size
            number = jnp.where(live, record[:, 0], 0)
            begin = jnp.where(live, record[:, 1], n)
            end = jnp.where(live, record[:, 2], n)
            may = live & (depth < limits.max_depth)
            may &= (end - begin).astype(real) >= 2 * limits.min_samples_leaf
            word = words[number]
            split = _best(order, begin, end, may, word, table, data, limits, plan, scalar)

            found = (split.feature >= 0) & (split.gain >= limits.min_gain)
            left = num_nodes + 2 * _sum_before(found.astype(jnp.int32))
            found &= left + 2 <= plan.max_nodes
            size = jnp.where(found, end - begin, 0)
            first = filled + _sum_before(size)
            divide = _divide if scalar else _divide_at_once
            moved, middle = divide(moved, order, begin, begin + size, first, split, data, plan)

            # Children in their order: two for each lane, empty where there is none.
            begins = jnp.stack([first, middle], axis=1).reshape(-1)
            ends = jnp.stack([middle, first + size], axis=1).reshape(-1)
            child = jnp.stack([left, left + 1], axis=1).reshape(-1)
            real_child = jnp.stack([found, found], axis=1).reshape(-1)
            slot = jnp.where(real_child, child - num_nodes, 2 * lanes)
            add_up = _add_up if scalar else _add_up_at_once
            held, low, high = add_up(moved, begins, ends, slot, data, plan)
            sums = lax.dynamic_update_slice_in_dim(sums, held, num_nodes, axis=0)
            facts = jnp.stack(
                [
                    jnp.where(found, split.feature, -1), split.bin, split.side,
                    jnp.where(found, left, -1), jnp.full(lanes, depth, jnp.int32),
                ],
                axis=1,
            )  # fmt: skip
            node = node.at[jnp.where(live, number, plan.max_nodes)].set(facts, mode="drop")

            # A child whose rows agree is a leaf: it is never looked at.
            mixed = (real_child & (low < high)).astype(jnp.int32)
            at = jnp.where(mixed > 0, below.size + _sum_before(mixed), len(queue.node))
            pushed = below.node.at[at].set(jnp.stack([child, begins, ends], axis=1), mode="drop")
            below = _Queue(pushed, below.size + mixed.sum(dtype=jnp.int32))
            filled = filled + size.sum(dtype=jnp.int32)
            num_nodes = num_nodes + 2 * found.sum(dtype=jnp.int32)
            return start + lanes, filled, below, moved, node, sums, num_nodes

        zero = jnp.int32(0)
        carry = (zero, zero, queue._replace(size=zero), order, node, sums, num_nodes)
        carry = lax.while_loop(lambda carry: carry[0] < queue.size, step, carry)
        return (*carry[2:], depth + 1)

    _, _, node, sums, num_nodes, _ = lax.while_loop(lambda state: state[0].size > 0, level, state)
    return Grown(node, sums[: plan.max_nodes], num_nodes)


class _Split(NamedTuple):
    """The best question of each lane: feature (-1 for none), bin, side of a missing value, gain."""

    feature: Array
    bin: Array
    side: Array
    gain: Array


def _best(
    order: Array,
    begin: Array,
    end: Array,
    live: Array,
    word: Array,
    table: Array,
    data: _Data,
    limits: Limits,
    plan: Plan,
    scalar: bool,
) -> _Split:
    """Look at `max_features` features of each lane, and at more while a lane has no question."""
    n = len(order)
    d = len(data.codes) // n
    lanes, group = len(begin), plan.group
    row = (word % np.uint32(len(table) // d)).astype(jnp.int32) * d
    turn = ((word >> 12) % np.uint32(d)).astype(jnp.int32)
    histogram = _histogram if scalar else _histogram_at_once
    width = jnp.arange(group, dtype=jnp.int32)
    lane = jnp.arange(lanes, dtype=jnp.int32)

    def look(carry: tuple[Array, Array, _Split]) -> tuple[Array, Array, _Split]:
        first, best, split = carry
        wanted = first < limits.max_features
        until = jnp.minimum(first + group, jnp.where(wanted, limits.max_features, d))
        feature = table[row[None] + (turn[None] + (first + width)[:, None]) % d]
        active = live & (wanted | (split.feature < 0))
        stop = jnp.where(active, end, begin)
        held = histogram(order, begin, stop, feature.reshape(-1), until - first, data, plan)
        found = _thresholds(held, limits, plan)
        score = found.score.reshape(group, lanes)
        top = score.max(axis=0)
        which = _first(score == top[None])  # of equals the one drawn first
        place = which * lanes + lane
        # Bins without rows of the node leave the choice of a threshold: half way, as for values.
        below = found.weight[:, place]
        lowest = found.bin[place]
        same = below <= below[lowest, lane][None]
        highest = same.astype(jnp.int32).sum(axis=0, dtype=jnp.int32) - 1
        better = active & (top > best)
        middle = jnp.where(highest < len(below) - 1, (lowest + highest) >> 1, highest)
        chosen = _Split(feature[which, lane], middle, found.side[place], found.gain[place])
        split = jax.tree.map(lambda new, old: jnp.where(better, new, old), chosen, split)
        return until, jnp.where(better, top, best), split

    def more(carry: tuple[Array, Array, _Split]) -> Array:
        first, _, split = carry
        stuck = jnp.any(live & (split.feature < 0)) & (first < d)
        return (first < limits.max_features) | stuck

    none, least = jnp.full(lanes, -1, jnp.int32), jnp.full(lanes, -1, limits.min_gain.dtype)
    start = jnp.int32(0), least, _Split(none, none, none, least)
    return lax.while_loop(more, look, start)[2]


# --- 2. Thresholds --------------------------------------------------------------------------------


class _Candidate(NamedTuple):
    """The best threshold of each lane and feature; flat, one lane beside the next."""

    score: Array
    gain: Array
    bin: Array
    side: Array  # of a missing value
    weight: Array  # that is at most at each bin, shape (bins, lanes * features)


def _thresholds(held: Array, limits: Limits, plan: Plan) -> _Candidate:
    """Read every threshold off the running sums, shape `(bins, sums, lanes * features)`."""
    known = held[:-1] if plan.missing else held

    def add(total: Array, here: Array) -> tuple[Array, Array]:
        total = total + here
        return total, total

    # The loop adds rows of one size: XLA's own running sum takes five times as long on a CPU.
    total, below = lax.scan(add, jnp.zeros_like(held[0]), known)
    below = jnp.moveaxis(below, 1, 0)  # sums, bins, lanes * features
    if not plan.missing:
        score = _score(below, total[:, None], limits, plan)
        side = jnp.zeros_like(score, jnp.int32)
    else:
        lost = held[-1]
        total = total + lost
        right = _score(below, total[:, None], limits, plan)
        left = _score(below + lost[:, None], total[:, None], limits, plan)
        score = jnp.maximum(left, right)
        # Without missing values here both are equal: later ones go where most rows go.
        most = 2 * _weight(below, plan) < _weight(total, plan)[None]
        side = jnp.where(left == right, most, right > left).astype(jnp.int32)
    top = score.max(axis=0)
    at = _first(score == top[None])
    side = jnp.take_along_axis(side, at[None], axis=0)[0]
    weight = _weight(total, plan)
    alone = _purity(total, weight, plan) if plan.num_classes else 0
    gain = jnp.maximum((top - alone) / weight, 0)  # never negative but for rounding
    return _Candidate(top, gain, at, side, _weight(below, plan))


def _score(left: Array, total: Array, limits: Limits, plan: Plan) -> Array:
    r"""What a threshold leaves pure; -1 where a side has too few rows.

    For classes $\sum_k L_k^2 / L + \sum_k R_k^2 / R$, the weight less the children's Gini impurity;
    for numbers $\frac{L R}{L + R} (\bar t_L - \bar t_R)^2$, what the variance loses.
    """
    right = jnp.maximum(total - left, 0) if plan.num_classes else total - left
    a, b = _weight(left, plan), _weight(right, plan)
    if plan.counted:
        enough = jnp.minimum(left[-1], right[-1]) >= limits.min_samples_leaf
        # Lighter than the rounding error of the sums that it is the difference of.
        enough &= jnp.minimum(a, b) > 1e-6 * _weight(total, plan)
    else:
        enough = jnp.minimum(a, b) > 0
    a, b = jnp.where(enough, a, 1), jnp.where(enough, b, 1)
    if plan.num_classes:
        score = _purity(left, a, plan) + _purity(right, b, plan)
    else:
        score = a * b / (a + b) * jnp.square(left[1] / a - right[1] / b)
    return jnp.where(enough, score, -1)


def _weight(sums: Array, plan: Plan) -> Array:
    return _add(sums[: plan.num_classes]) if plan.num_classes else sums[0]


def _purity(sums: Array, weight: Array, plan: Plan) -> Array:
    return _add(jnp.square(sums[: plan.num_classes])) / weight


def _add(parts: Array) -> Array:
    """Sum over the first axis; written out, it becomes part of the loop around it."""
    return functools.reduce(jnp.add, list(parts)) if len(parts) <= 32 else parts.sum(axis=0)


def _first(true: Array) -> Array:
    """Number of the first true element along the first axis; `argmax` is slow on a CPU."""
    number = jnp.arange(len(true), dtype=jnp.int32).reshape(-1, *(1,) * (true.ndim - 1))
    last = len(true) - 1
    return jnp.where(true, jnp.broadcast_to(number, true.shape), last).min(axis=0)


# --- 1, 3 and 4: loops over rows, one after the other ---------------------------------------------
#
# XLA's CPU compiler makes one function of such a nest of loops as long as one turn of it reads and
# writes a few hundred bytes, holds no scatter, and no array is read after it was written. Hence
# scalars only, an array that is written is read at the same place only, and the rest is read-only.


def _histogram(
    order: Array, begin: Array, end: Array, feature: Array, width: Array, data: _Data, plan: Plan
) -> Array:
    """Sums of each bin, `(bins, sums, features * lanes)`, of the first `width` features."""
    n, lanes, cells = len(order), len(begin), len(feature)
    real = data.weight.dtype

    def of_lane(lane: Array, held: list[Array]) -> list[Array]:
        first, stop = _at(begin, lane), _at(end, lane)

        def of_feature(j: Array, held: list[Array]) -> list[Array]:
            place = j * lanes + lane
            column = _at(feature, place) * n

            def of_row(i: Array, held: list[Array]) -> list[Array]:
                row = _at(order, i)
                code = _at(data.codes, column + row).astype(jnp.int32)
                weight, target = _at(data.weight, row), _at(data.target, row)
                at = code * cells + place
                if plan.num_classes:
                    parts = [(code * (plan.num_classes * cells) + target * cells + place, weight)]
                else:
                    parts = [(at, weight), (at, weight * target)]
                if plan.counted:
                    parts.append((at, jnp.ones_like(weight)))
                return [
                    _plus(sums, at, value) for sums, (at, value) in zip(held, parts, strict=True)
                ]

            return lax.fori_loop(first, stop, of_row, held)

        return lax.fori_loop(jnp.int32(0), width, of_feature, held)

    # Each array is written once a turn.
    sizes = [plan.num_classes] if plan.num_classes else [1, 1]
    sizes += [1] * plan.counted
    held = [jnp.zeros(plan.num_bins * size * cells, real) for size in sizes]
    held = lax.fori_loop(jnp.int32(0), jnp.int32(lanes), of_lane, held)
    held = [sums.reshape(plan.num_bins, -1, cells) for sums in held]
    return jnp.concatenate(held, axis=1)


def _divide(
    moved: Array, order: Array, begin: Array, end: Array, first: Array, split: _Split, data: _Data,
    plan: Plan,
) -> tuple[Array, Array]:  # fmt: skip
    """Write the rows of each lane from `first` on, left ones from the front, right from the back.

    Returns them, and where the right ones begin.
    """
    n = len(order)
    column = jnp.maximum(split.feature, 0) * n

    def of_lane(lane: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        moved, middle = carry
        start, stop, to = _at(begin, lane), _at(end, lane), _at(first, lane)

        def of_row(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            moved, front, back = carry
            row = _at(order, i)
            code = _at(data.codes, _at(column, lane) + row)
            right = _goes_right(code, _at(split.bin, lane), _at(split.side, lane), plan)
            moved = _set(moved, jnp.where(right, back, front), row)
            step = right.astype(jnp.int32)
            return moved, front + 1 - step, back - step

        back = to + stop - start - 1
        moved, front, _ = lax.fori_loop(start, stop, of_row, (moved, to, back))
        return moved, _set(middle, lane, front)

    return lax.fori_loop(
        jnp.int32(0), jnp.int32(len(begin)), of_lane, (moved, jnp.zeros_like(begin))
    )


def _add_up(
    order: Array, begin: Array, end: Array, slot: Array, data: _Data, plan: Plan
) -> tuple[Array, Array, Array]:
    """Sums of the rows of each range, in its slot, and the range's least and greatest target."""
    width = _num_sums(plan)
    low, high = _limits(data.target)

    def of_range(u: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        held, lows, highs = carry
        at = _at(slot, u) * width

        def of_row(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            held, low, high = carry
            row = _at(order, i)
            weight, target = _at(data.weight, row), _at(data.target, row)
            if plan.num_classes:
                held = _plus(held, at + target, weight)
            else:
                parts = jnp.stack([weight, weight * target, weight * target * target])
                held = _plus_all(held, at, parts)
            return held, jnp.minimum(low, target), jnp.maximum(high, target)

        held, a, b = lax.fori_loop(_at(begin, u), _at(end, u), of_row, (held, high, low))
        return held, _set(lows, u, a), _set(highs, u, b)

    ranges = len(begin)
    held = jnp.zeros((ranges + 1) * width, data.weight.dtype)
    none = jnp.zeros(ranges, data.target.dtype)
    held, lows, highs = lax.fori_loop(jnp.int32(0), jnp.int32(ranges), of_range, (held, none, none))
    return held[: ranges * width].reshape(ranges, width), lows, highs


def _at(array: Array, i: Array) -> Array:
    return lax.dynamic_index_in_dim(array, i, keepdims=False, allow_negative_indices=False)


def _set(array: Array, i: Array, value: Array) -> Array:
    return lax.dynamic_update_index_in_dim(array, value, i, 0, allow_negative_indices=False)


def _plus(array: Array, i: Array, value: Array) -> Array:
    return _set(array, i, _at(array, i) + value)


def _plus_all(array: Array, i: Array, values: Array) -> Array:
    held = lax.dynamic_slice(array, (i,), (len(values),))
    return lax.dynamic_update_slice(array, held + values, (i,))


# --- The same for all rows at once ----------------------------------------------------------------


def _histogram_at_once(
    order: Array, begin: Array, end: Array, feature: Array, width: Array, data: _Data, plan: Plan
) -> Array:
    n, lanes, cells = len(order), len(begin), len(feature)
    channels = _num_channels(plan)
    shape = (plan.num_bins, channels, cells)
    lane, inside = _lane_of(begin, end, n)
    group = jnp.arange(cells // lanes, dtype=jnp.int32)
    place = group[None] * lanes + lane[:, None]
    code = data.codes[feature[place] * n + order[:, None]].astype(jnp.int32)
    at = code * (channels * cells) + place
    at = jnp.where(inside[:, None] & (group < width)[None], at, math.prod(shape))
    weight, target = data.weight[order][:, None], data.target[order][:, None]
    held = jnp.zeros(math.prod(shape), data.weight.dtype)
    parts: list[Any]
    if plan.num_classes:
        parts = [(target * cells, weight)]
    else:
        parts = [(0, weight), (cells, weight * target)]
    if plan.counted:
        parts.append(((channels - 1) * cells, jnp.ones_like(weight)))
    for offset, value in parts:
        held = held.at[at + offset].add(jnp.broadcast_to(value, at.shape), mode="drop")
    return held.reshape(shape)


def _divide_at_once(
    moved: Array, order: Array, begin: Array, end: Array, first: Array, split: _Split, data: _Data,
    plan: Plan,
) -> tuple[Array, Array]:  # fmt: skip
    n = len(order)
    lane, inside = _lane_of(begin, end, n)
    code = data.codes[jnp.maximum(split.feature, 0)[lane] * n + order]
    right = _goes_right(code, split.bin[lane], split.side[lane], plan)
    left = (inside & ~right).astype(jnp.int32)
    before = jnp.cumsum(left) - left  # left rows before each row, of all lanes
    before = jnp.concatenate([before, left.sum(keepdims=True, dtype=jnp.int32)])
    own = before[:-1] - before[begin][lane]
    place = jnp.arange(n, dtype=jnp.int32) - begin[lane]
    to = first[lane] + jnp.where(right, (end - begin)[lane] - 1 - (place - own), own)
    moved = moved.at[jnp.where(inside, to, n)].set(order, mode="drop")
    return moved, first + before[end] - before[begin]


def _add_up_at_once(
    order: Array, begin: Array, end: Array, slot: Array, data: _Data, plan: Plan
) -> tuple[Array, Array, Array]:
    n, ranges, width = len(order), len(begin), _num_sums(plan)
    lane, inside = _lane_of(begin, end, n)
    weight, target = data.weight[order], data.target[order]
    at = jnp.where(inside, slot[lane], ranges)
    held = jnp.zeros((ranges, width), data.weight.dtype)
    if plan.num_classes:
        held = held.at[at, target].add(weight, mode="drop")
    else:
        held = held.at[at].add(weight[:, None] * _powers(target), mode="drop")
    low, high = _limits(target)
    lane = jnp.where(inside, lane, ranges)
    lows = jnp.full(ranges, high).at[lane].min(target, mode="drop")
    highs = jnp.full(ranges, low).at[lane].max(target, mode="drop")
    return held, lows, highs


def _lane_of(begin: Array, end: Array, n: int) -> tuple[Array, Array]:
    """Which of the ascending ranges each place is in, and whether it is in one."""
    place = jnp.arange(n, dtype=jnp.int32)
    lane = jnp.searchsorted(begin, place, side="right").astype(jnp.int32) - 1
    lane = jnp.maximum(lane, 0)
    return lane, (place >= begin[lane]) & (place < end[lane])


# --- Shared ---------------------------------------------------------------------------------------


def _goes_right(code: Array, threshold: Array, side: Array, plan: Plan) -> Array:
    code = code.astype(jnp.int32)
    right = code > threshold
    return jnp.where(code == plan.num_bins - 1, side == 1, right) if plan.missing else right


def _scaled(word: Array, count: Array) -> Array:
    """A number below `count` from 32 random bits: their product without its lower 32 bits."""
    count = count.astype(jnp.uint32)
    high, low = word >> 16, word & 0xFFFF
    upper, lower = count >> 16, count & 0xFFFF
    one = high * lower + (low * lower >> 16)
    two = low * upper + (one & 0xFFFF)
    return (high * upper + (one >> 16) + (two >> 16)).astype(jnp.int32)


def _sum_before(parts: Array) -> Array:
    """Sum of the few parts before each; XLA takes long to compile a running sum."""
    number = jnp.arange(len(parts))
    return jnp.where(number[:, None] > number[None], parts[None], 0).sum(axis=1, dtype=parts.dtype)


def _listed(true: Array) -> tuple[Array, Array]:
    """Numbers of the true elements, first things first, and how many there are."""
    ones = true.astype(jnp.int32)
    upto = jnp.cumsum(ones)
    n = len(true)
    at = jnp.where(true, upto - 1, n)
    numbers = jnp.zeros(n, jnp.int32).at[at].set(jnp.arange(n, dtype=jnp.int32), mode="drop")
    return numbers, upto[-1]


def _root(data: _Data, plan: Plan) -> Array:
    if plan.num_classes:
        return jnp.zeros(plan.num_classes, data.weight.dtype).at[data.target].add(data.weight)
    return data.weight @ _powers(data.target)


def _powers(target: Array) -> Array:
    return jnp.stack([jnp.ones_like(target), target, jnp.square(target)], axis=1)


def _span(target: Array, counted: Array) -> tuple[Array, Array]:
    low, high = _limits(target)
    return jnp.where(counted, target, high).min(), jnp.where(counted, target, low).max()


def _limits(target: Array) -> tuple[Array, Array]:
    """A number below all targets, and one above."""
    if jnp.issubdtype(target.dtype, jnp.integer):
        low, high = -1, np.iinfo(np.int32).max
    else:
        low, high = -np.inf, np.inf
    return jnp.asarray(low, target.dtype), jnp.asarray(high, target.dtype)


def _num_sums(plan: Plan) -> int:
    return plan.num_classes or 3


def _num_channels(plan: Plan) -> int:
    return (plan.num_classes or 2) + plan.counted


def _lane_cells(plan: Plan) -> int:
    return plan.num_bins * _num_channels(plan) * plan.group


def _lanes(plan: Plan, scalar: bool) -> int:
    """Nodes of a step: a power of two, so that the histograms fit."""
    cells, most = (_CELLS_CPU, 32) if scalar else (_CELLS_TREE, 256)
    return max(4, min(most, 1 << max(0, (cells // _lane_cells(plan)).bit_length() - 1)))
