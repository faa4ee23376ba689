"""Rows in the order (node, value) of every numeric column: thresholds without sorting again.

A sum along such an order that starts anew at every node is what lies left of each threshold. When a
level is done the rows of each node are parted into those of its children, and stay in order. So a
level costs the same however many nodes it has.

Positions are laid out as (groups, LANES, columns of a group, blocks), the positions of a block side
by side on the second axis. A sum along them is LANES steps on long vectors.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from mlnotes_jax.trees._split import Limits, Plan, Question, Rows, Slots, gain, ratio, slack

__all__ = ["LANES", "Goal", "Positions", "about_number", "argsort", "first", "locate", "part"]

#: Positions of a block.
LANES = 64

#: Sums of a group of columns, about: they stay in cache.
GROUP = 1 << 16


class Positions(NamedTuple):
    """What is at each position, the same for all columns: (LANES, blocks).

    Attributes:
        number: The position.
        slot: Of the row that is there; any where `live` is false.
        live: Whether there is a row.
        first: Whether it is the first of its slot.
        inner: Whether it is not the last of its slot.
        rows: Rows of the slot up to here.
        all_rows: Rows of the slot.
        weight: Of the slot.
        mean: Class shares of the slot, or the mean target, (LANES, outputs, blocks).
    """

    number: Array
    slot: Array
    live: Array
    first: Array
    inner: Array
    rows: Array
    all_rows: Array
    weight: Array
    mean: Array


class Goal(NamedTuple):
    """Where the rows of a level go.

    Attributes:
        branch: Of each row, shape `(n,)`.
        start: Next position of the first row of each branch of each slot, -1 for none.
    """

    branch: Array
    start: Array


def argsort(values: Array) -> Array:
    """Order of a vector as int32, NaN last; as `jnp.argsort(stable=True)`, and faster on a CPU.

    XLA sorts one vector of integers some six times faster than anything with a companion. So bits
    of the value and the place share an integer, as many bits as there is room for, lowest first.
    """
    n = len(values)
    if values.dtype != jnp.float32 or n < 2:
        return jnp.argsort(values, stable=True).astype(jnp.int32)
    width = (n - 1).bit_length()
    bits = lax.bitcast_convert_type(jnp.where(jnp.isnan(values), jnp.nan, values), jnp.uint32)
    key = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))  # ordered as the values
    place = jnp.arange(n, dtype=jnp.uint32)
    order = place
    for low in range(0, 32, 32 - width):
        packed = lax.sort((key[order] >> low) << width | place)
        order = order[packed & jnp.uint32((1 << width) - 1)]
    return order.astype(jnp.int32)


def first(x: Array, order: Array | None, counts: Array, plan: Plan) -> Array:
    """Rows by value, (groups, LANES, columns, blocks), without the rows that do not count."""
    columns = _groups(len(x), plan)

    def arrange(group: Array) -> Array:
        rows = jax.vmap(argsort)(x.T[group]) if order is None else order[group].astype(jnp.int32)
        kept = counts[rows]
        goal = jnp.where(kept, jnp.cumsum(kept, axis=1, dtype=jnp.int32) - 1, -1)
        blank = jnp.zeros((LANES, len(group), -(-len(x) // LANES)), jnp.int32)
        return _place(blank, rows, goal, jnp.arange(len(group), dtype=jnp.int32)[:, None])

    return lax.map(arrange, columns)


def locate(slots: Slots, shape: tuple[int, ...], plan: Plan) -> Positions:
    """Which slot has which positions, from how many rows each has."""
    _, lanes, _, blocks = shape
    number = (
        jnp.arange(lanes, dtype=jnp.int32)[:, None]
        + lanes * jnp.arange(blocks, dtype=jnp.int32)[None]
    )
    every = jnp.arange(plan.slots, dtype=jnp.int32)
    slot = jnp.repeat(every, slots.rows, total_repeat_length=lanes * blocks)[number]
    live = number < slots.rows.sum(dtype=jnp.int32)
    rows, all_rows = number - slots.start[slot] + 1, slots.rows[slot]
    return Positions(
        number=number,
        slot=slot,
        live=live,
        first=rows == 1,
        inner=live & (rows < all_rows),
        rows=rows,
        all_rows=all_rows,
        weight=slots.weight[slot],
        mean=slots.mean[:, : _channels(plan)].T[:, slot].swapaxes(0, 1),
    )


def about_number(
    order: Array,
    here: Positions,
    slot: Array,
    slots: Slots,
    rows: Rows,
    limits: Limits,
    plan: Plan,
) -> Question:
    """The best threshold of each numeric column, for each slot: arrays are (columns, slots)."""
    groups = _groups(len(rows.y), plan)
    found = lax.map(
        lambda group: _thresholds(group[0], group[1], here, slot, slots, rows, limits, plan),
        (order, groups),
    )
    count = len(plan.numeric)
    gain, value, threshold, missing = (part.reshape(-1, plan.slots)[:count] for part in found)
    branch = jnp.full((count, plan.slots, plan.codes), -1, jnp.int32)
    return Question(gain, value, threshold, missing, branch)


def part(order: Array, here: Positions, goal: Goal, plan: Plan) -> Array:
    """Part the rows of each slot into those of its branches, without changing their order."""
    branches = jnp.arange(plan.arity if plan.arity > 2 else 1, dtype=jnp.int32)
    starts = goal.start.T[:, here.slot].swapaxes(0, 1)  # (lanes, branches, blocks)

    def group(order: Array) -> Array:
        columns = jnp.arange(order.shape[1], dtype=jnp.int32)[None, :, None]
        live = here.live[:, None]
        taken = goal.branch[order][:, None] == branches[None, :, None, None]
        before = _along(jnp.add, taken.astype(jnp.int32), here.first)
        if plan.arity == 2:  # who does not go left goes right
            left = taken[:, 0]
            before = jnp.where(left, before[:, 0], here.rows[:, None] - before[:, 0])
            start = jnp.where(left, starts[:, :1], starts[:, 1:])
        else:
            before = jnp.where(taken, before, 0).sum(axis=1)
            start = jnp.where(taken, starts[:, :, None], 0).sum(axis=1)
        at = jnp.where(live & (start >= 0), start + before - 1, -1)
        return _place(jnp.zeros_like(order), order, at, columns)

    return lax.map(group, order)


# --- Positions ------------------------------------------------------------------------------------


def _groups(n: int, plan: Plan) -> Array:
    """Numeric columns in groups of one width; the last one is repeated to fill them."""
    count = len(plan.numeric)
    groups = -(-count // max(1, GROUP // (n * _channels(plan))))
    width = -(-count // groups)
    filled = plan.numeric + plan.numeric[-1:] * (groups * width - count)
    return jnp.array(filled, jnp.int32).reshape(groups, width)


def _place(into: Array, rows: Array, goal: Array, column: Array) -> Array:
    """Put rows at their positions in (LANES, columns, blocks); -1 drops one."""
    lanes, d, blocks = into.shape
    lane, block = goal & (lanes - 1), goal >> (lanes.bit_length() - 1)
    flat = jnp.where(goal >= 0, (lane * d + column) * blocks + block, into.size).reshape(-1)
    return into.reshape(-1).at[flat].set(rows.reshape(-1), mode="drop").reshape(into.shape)


def _next(value: Array) -> Array:
    """The value one position on: one lane on, or the first lane of the next block."""
    end = jnp.full_like(value[:1, ..., :1], jnp.nan)
    turn = jnp.concatenate([value[:1, ..., 1:], end], axis=-1)
    return jnp.concatenate([value[1:], turn])


def _along(combine: Callable[[Any, Any], Any], values: Any, first: Array) -> Any:
    """Running combination along positions, which starts anew at the first of every slot.

    Within a block step by step, all blocks at once. Then every block takes over what came before
    it: the same problem once more, with the blocks as positions.

    Args:
        combine: Associative.
        values: Arrays with the lanes on the first axis and the blocks on the last.
        first: Which are the first of their slot, shape `(lanes, blocks)`.

    Returns:
        Arrays like `values`.
    """

    def restart(mask: Array, new: Any, old: Any) -> Any:
        def pick(new: Array, old: Array) -> Array:
            shape = *mask.shape[:-1], *(1,) * (new.ndim - mask.ndim), mask.shape[-1]
            return jnp.where(mask.reshape(shape), new, old)

        return jax.tree.map(pick, new, old)

    def step(running: Any, now: Any) -> tuple[Any, Any]:
        value, start = now
        running = restart(start, value, combine(running, value))
        return running, running

    begin = jax.tree.map(lambda leaf: leaf[0], values)
    rest = jax.tree.map(lambda leaf: leaf[1:], values)
    last, inner = lax.scan(step, begin, (rest, first[1:]))
    inner = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), begin, inner)
    if first.shape[1] == 1:
        return inner
    turned = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0)[..., None], last)
    ends = _along(combine, turned, first.any(axis=0)[:, None])
    # What the last block holds comes round to the first, where it is not needed.
    before = jax.tree.map(
        lambda leaf: jnp.roll(jnp.moveaxis(leaf[..., 0], 0, -1), 1, axis=-1)[None], ends
    )
    begun = lax.cummax(first.astype(jnp.int32), axis=0) > 0
    return restart(begun, inner, combine(before, inner))


# --- Thresholds -----------------------------------------------------------------------------------


class _Seen(NamedTuple):
    """The best question so far, at each position of a slot."""

    gain: Array
    place: Array  # the last position on the left
    side: Array | None  # of missing values
    left: Array | None  # weight on the left


class _Lost(NamedTuple):
    """Sums over the rows of each slot in which a column has no value: (columns, slots)."""

    rows: Array
    weight: Array
    held: Array  # (sums, columns, slots)


def _better(a: _Seen, b: _Seen) -> _Seen:
    """The better of two, the first of equals."""
    limit = jnp.where(a.gain > 0, (1 + slack(a.gain.dtype)) * a.gain, a.gain)
    return jax.tree.map(lambda p, q: jnp.where(b.gain > limit, q, p), a, b)


def _channels(plan: Plan) -> int:
    """How many sums tell what a node holds: the last class is what the others leave."""
    return max(plan.outputs - 1, 1)


def _thresholds(
    order: Array,
    columns: Array,
    here: Positions,
    slot: Array,
    slots: Slots,
    rows: Rows,
    limits: Limits,
    plan: Plan,
) -> tuple[Array, Array, Array, Array]:
    """Gain, gain ratio, threshold and branch of missing values of a group: (columns, slots)."""
    start = columns * len(rows.y)
    value = rows.columns[start[None, :, None] + order]
    following = _next(value)
    lost = _lost(start, slot, slots, rows, plan) if plan.missing else None
    held = _along(jnp.add, _held(order, value, here, rows, plan), here.first)
    seen = _along(_better, _rate(held, value, following, here, lost, limits, plan), here.first)

    # What was best up to the last row of a slot is its answer.
    def at(number: Array) -> tuple[Array, Array, Array]:
        each = jnp.arange(len(columns), dtype=jnp.int32)[:, None]
        return number % LANES, each, number // LANES

    end = slots.start + jnp.maximum(slots.rows, 1) - 1
    best = jax.tree.map(lambda leaf: leaf[at(end[None])], seen)
    most = jnp.where(slots.rows[None] > 0, best.gain, -1)
    low, high = value[at(best.place)], following[at(best.place)]
    middle = low / 2 + high / 2
    middle = jnp.where(middle < high, middle, low)  # rounding; or NaN
    missing = jnp.full(most.shape, -1, jnp.int32)
    if lost is not None and best.side is not None:
        missing = jnp.where(lost.rows > 0, best.side, -1)
        middle = jnp.where(jnp.isnan(high), jnp.inf, middle)
    share = most
    if best.left is not None:
        left = best.left / slots.weight[None]
        share = ratio(most, jnp.stack([left, 1 - left], axis=-1))
    return most, share, middle, missing


def _held(order: Array, value: Array, here: Positions, rows: Rows, plan: Plan) -> Array:
    """What is summed along positions, (lanes, sums, columns, blocks); the weight is the last."""
    target, dtype = rows.y[order], rows.columns.dtype
    if plan.outputs:
        classes = jnp.arange(_channels(plan), dtype=target.dtype)
        held = (target[:, None] == classes[None, :, None, None]).astype(dtype)
    else:
        held = (target - here.mean)[:, None]
    if rows.weight is not None:
        weight = rows.weight[order][:, None]
        held = jnp.concatenate([held * weight, weight], axis=1)
    return jnp.where(jnp.isnan(value)[:, None], 0, held) if plan.missing else held


def _lost(starts: Array, slot: Array, slots: Slots, rows: Rows, plan: Plan) -> _Lost:
    n, dtype = len(rows.y), rows.columns.dtype
    one = jnp.ones(n, dtype) if rows.weight is None else rows.weight
    if plan.outputs:
        classes = jnp.arange(_channels(plan), dtype=rows.y.dtype)
        held = jnp.where(rows.y[None] == classes[:, None], one[None], 0)
    else:
        held = (one * (rows.y - slots.mean[jnp.minimum(slot, plan.slots - 1), 0]))[None]

    def column(start: Array) -> _Lost:
        value = lax.dynamic_slice(rows.columns, (start,), (n,))
        place = jnp.where(jnp.isnan(value), slot, plan.slots)
        count, weight = (
            jax.ops.segment_sum(part, place, num_segments=plan.slots)
            for part in (jnp.ones_like(slot), one)
        )
        held_ = jax.ops.segment_sum(held.T, place, num_segments=plan.slots)
        return _Lost(count, weight, held_.T)

    lost = lax.map(column, starts)
    return lost._replace(held=lost.held.swapaxes(0, 1))


def _rate(
    held: Array,
    value: Array,
    following: Array,
    here: Positions,
    lost: _Lost | None,
    limits: Limits,
    plan: Plan,
) -> _Seen:
    """The gain of the threshold behind each position, (lanes, columns, blocks)."""
    count = jnp.broadcast_to(here.rows[:, None], value.shape)
    channels = _channels(plan)
    left = held[:, -1] if held.shape[1] > channels else count.astype(value.dtype)
    held = held[:, :channels]
    weight, size = here.weight[:, None], here.all_rows[:, None]
    share = here.mean[:, :, None]
    if not plan.outputs:  # targets are measured from the mean
        share = jnp.zeros_like(share)

    def gains(count: Array, left: Array, held: Array, may: Array) -> Array:
        delta, parts = held - left[:, None] * share, share
        if plan.outputs:  # the last class
            delta = jnp.concatenate([delta, -delta.sum(axis=1, keepdims=True)], axis=1)
            parts = jnp.concatenate([share, 1 - share.sum(axis=1, keepdims=True)], axis=1)
        delta, parts = delta.swapaxes(0, 1), parts.swapaxes(0, 1)
        value = gain(delta, left, weight - left, parts, plan)
        least = limits.min_samples_leaf
        return jnp.where(may & (count >= least) & (size - count >= least), value, -1)

    inner = here.inner[:, None]
    rises = inner & (value < following)
    place = jnp.broadcast_to(here.number[:, None], value.shape)
    keep = plan.method == "c45"
    if lost is None:
        return _Seen(gains(count, left, held, rises), place, None, left if keep else None)
    # Missing values are last. Left and right are tried for them at every threshold, and so is the
    # question whether the value is known.
    known_or_not = inner & ~jnp.isnan(value) & jnp.isnan(following)
    right = gains(count, left, held, rises | known_or_not)
    aside = [jnp.moveaxis(part[..., here.slot], -2, 0) for part in lost]
    heavier = left + aside[1]
    with_left = gains(count + aside[0], heavier, held + aside[2], rises & (aside[0] > 0))
    side = (with_left <= right).astype(jnp.int32)
    left = jnp.where(side == 0, heavier, left)
    return _Seen(jnp.maximum(with_left, right), place, side, left if keep else None)
