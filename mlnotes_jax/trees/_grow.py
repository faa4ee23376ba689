"""How a tree is grown: level by level, all nodes of a level at once; and how it is cut."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from mlnotes_jax.trees import _order, _split
from mlnotes_jax.trees._split import Limits, Plan, Question, Rows, Slots
from mlnotes_jax.trees._tree import Tree

__all__ = ["Limits", "Plan", "best_first", "cut", "grow"]


class _Nodes(NamedTuple):
    """Nodes that were made together."""

    rows: Array
    weight: Array
    value: Array
    impurity: Array
    mixed: Array  # whether there is anything to be told apart


class _State(NamedTuple):
    tree: Tree  # with room for one level more than it has slots
    slots: Slots
    num_slots: Array
    slot: Array  # of each row; plan.slots if it is in a leaf
    order: Array | None  # rows by (slot, value) of each numeric column
    level: Array


def grow(
    x: Array, y: Array, weight: Array | None, order: Array | None, limits: Limits, plan: Plan
) -> Tree:
    """Grow one tree; batched calls run one after the other.

    Args:
        x: Rows, shape `(n, d)`; codes of categorical columns are whole numbers.
        y: Classes as int32 or targets, shape `(n,)`.
        weight: Of the rows, shape `(n,)`; zero drops one. A NaN spoils the whole tree.
        order: Rows sorted by each column, shape `(d, n)`.
        limits: Where growing ends.
        plan: Static.

    Returns:
        The tree.
    """
    # In a batch every tree would take as many levels as the deepest, and a batched scatter is
    # slower on a CPU.
    one = jax.custom_batching.sequential_vmap(functools.partial(_grow, plan=plan))
    return one(x, y, weight, order, limits)


def _grow(
    x: Array, y: Array, weight: Array | None, order: Array | None, limits: Limits, plan: Plan
) -> Tree:
    n, dtype = len(y), x.dtype
    counts = jnp.ones(n, bool) if weight is None else weight != 0
    centre = jnp.zeros((), dtype)
    if not plan.outputs:  # near zero, so that no digits cancel
        known = jnp.where(counts, y, 0)
        centre = known.mean() if weight is None else (weight / weight.sum() * known).sum()
        y = known - centre
    rows = Rows(x.T.reshape(-1), y, weight)
    root = _measure(rows, (~counts).astype(jnp.int32), 1, plan)
    slots, place = _open(root, jnp.zeros(1, jnp.int32), jnp.zeros((), jnp.int32), limits, plan)
    state = _State(
        tree=_only_root(root, plan.max_nodes + _width(n, plan), plan),
        slots=slots,
        num_slots=(place < plan.slots).sum(dtype=jnp.int32),
        slot=jnp.where(counts, place[0], plan.slots),
        order=_order.first(x, order, counts, plan) if plan.numeric else None,
        level=jnp.zeros((), jnp.int32),
    )
    body = functools.partial(_level, rows=rows, limits=limits, plan=plan)
    tree = lax.while_loop(lambda state: state.num_slots > 0, body, state).tree
    if not plan.outputs:
        tree = tree._replace(value=jnp.where((tree.depth >= 0)[:, None], tree.value + centre, 0))
    return jax.tree.map(lambda leaf: leaf[: plan.max_nodes] if leaf.ndim else leaf, tree)


def _width(n: int, plan: Plan) -> int:
    """Children of one level, at most."""
    return min(n, plan.arity * plan.slots)


def _only_root(root: _Nodes, size: int, plan: Plan) -> Tree:
    def blank(fill: Any, dtype: Any, *shape: int) -> Array:
        return jnp.full((size, *shape), fill, dtype)

    dtype = root.value.dtype
    return Tree(
        feature=blank(-1, jnp.int32),
        threshold=blank(jnp.nan, dtype),
        branch=blank(-1, jnp.int32, max(plan.categories)),
        children=blank(-1, jnp.int32, plan.arity),
        missing=blank(-1, jnp.int32),
        parent=blank(-1, jnp.int32),
        depth=blank(-1, jnp.int32).at[0].set(0),
        value=blank(0, dtype, plan.outputs or 1).at[0].set(root.value[0]),
        weight=blank(0, dtype).at[0].set(root.weight[0]),
        impurity=blank(0, dtype).at[0].set(root.impurity[0]),
        gain=blank(0, dtype),
        num_nodes=jnp.ones((), jnp.int32),
    )


# --- One level ------------------------------------------------------------------------------------


def _level(state: _State, rows: Rows, limits: Limits, plan: Plan) -> _State:
    """Ask the best question at every open node, and make the children."""
    tree, slots = state.tree, state.slots
    width = _width(len(rows.y), plan)
    positions = None if state.order is None else _order.locate(slots, state.order.shape, plan)
    feature, question = _choose(state, positions, rows, limits, plan)
    numeric = jnp.array([count == 0 for count in plan.categories])[feature]

    # Children are numbered in the order of their parents, and of the branches.
    branches = jnp.arange(plan.arity, dtype=jnp.int32)
    taken = numeric[:, None] & (branches < 2)[None]
    if plan.codes:
        taken |= (question.branch[:, :, None] == branches[None, None]).any(axis=1)
    divide = (question.gain >= 0) & (question.gain >= limits.min_gain)
    more = jnp.cumsum(jnp.where(divide, taken.sum(axis=1, dtype=jnp.int32), 0), dtype=jnp.int32)
    divide &= tree.num_nodes + more <= plan.max_nodes  # there is room
    taken &= divide[:, None]
    number = jnp.cumsum(taken.reshape(-1), dtype=jnp.int32).reshape(taken.shape) - 1
    child = jnp.where(taken, number, width)  # number within the level

    branch, moves = _answers(state.slot, feature, numeric, question, rows, plan)
    here = jnp.minimum(state.slot, plan.slots - 1)
    goes = jnp.where(moves & divide[here], child[here, branch], width)
    made = _measure(rows, goes, width, plan)

    heaviest = jnp.where(taken, made.weight[jnp.minimum(child, width - 1)], -1).argmax(axis=1)
    missing = jnp.where(question.missing >= 0, question.missing, heaviest.astype(jnp.int32))
    question = question._replace(missing=missing if plan.missing else question.missing)
    tree = _write(tree, state, feature, question, divide, taken, child, made, plan)

    new = state.tree.num_nodes + jnp.arange(width, dtype=jnp.int32)
    fresh, place = _open(made, new, state.level + 1, limits, plan)
    num_slots = (place < plan.slots).sum(dtype=jnp.int32)
    place = jnp.append(place, jnp.int32(plan.slots))
    order = state.order
    if positions is not None:
        start = jnp.append(fresh.start, jnp.int32(-1))[place[child]]
        goal = _order.Goal(branch, start)
        order = lax.cond(
            num_slots > 0,
            lambda order: _order.part(order, positions, goal, plan),
            lambda order: order,
            order,
        )
    return _State(tree, fresh, num_slots, place[goes], order, state.level + 1)


def _choose(
    state: _State,
    positions: _order.Positions | None,
    rows: Rows,
    limits: Limits,
    plan: Plan,
) -> tuple[Array, Question]:
    """For each slot, the column to ask and the question: the first of those that are best."""
    parts: list[Question] = []
    if positions is not None and state.order is not None:
        parts.append(
            _order.about_number(state.order, positions, state.slot, state.slots, rows, limits, plan)
        )
    if plan.categorical:
        columns = rows.columns.reshape(-1, len(rows.y))[jnp.array(plan.categorical)]
        parts.append(
            lax.map(
                lambda column: _split.about_category(
                    column, state.slot, state.slots, rows, limits, plan
                ),
                columns,
            )
        )
    every = parts[0]
    if len(parts) > 1:
        back = jnp.argsort(jnp.array(plan.numeric + plan.categorical))
        every = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[back], *parts)
    score, slack = every.gain, _split.slack(every.gain.dtype)
    if plan.method == "c45":
        valid = every.gain >= 0
        count = jnp.maximum(valid.sum(axis=0), 1).astype(score.dtype)
        mean = jnp.where(valid, every.gain, 0).sum(axis=0) / count
        score = jnp.where(valid & (every.gain >= (1 - slack) * mean[None]), every.ratio, -1)
    best = score.max(axis=0)
    best = jnp.where(best > 0, (1 - slack) * best, best)
    first = jnp.argmax(score >= best[None], axis=0).astype(jnp.int32)

    def pick(leaf: Array) -> Array:
        at = first.reshape(1, -1, *(1,) * (leaf.ndim - 2))
        return jnp.take_along_axis(leaf, at, axis=0)[0]

    return first, jax.tree.map(pick, every)


def _answers(
    slot: Array, feature: Array, numeric: Array, question: Question, rows: Rows, plan: Plan
) -> tuple[Array, Array]:
    """The branch of each row, and whether it has one."""
    n = len(slot)
    here = jnp.minimum(slot, plan.slots - 1)
    asked = rows.columns[feature[here] * n + jnp.arange(n, dtype=jnp.int32)]
    branch = (asked > question.threshold[here]).astype(jnp.int32)
    if plan.missing:
        branch = jnp.where(jnp.isnan(asked), question.missing[here], branch)
    if plan.codes:
        of_category = question.branch[here, _split.codes(asked, plan)]
        branch = jnp.where(numeric[here], branch, of_category)
    return branch, slot < plan.slots


def _write(
    tree: Tree,
    state: _State,
    feature: Array,
    question: Question,
    divide: Array,
    taken: Array,
    child: Array,
    made: _Nodes,
    plan: Plan,
) -> Tree:
    """Put the questions of a level, and the nodes that they lead to, into the tree."""
    at = jnp.where(divide, state.slots.node, len(tree.feature))
    categorical = jnp.array([count > 0 for count in plan.categories])[feature]
    branch = question.branch[:, : tree.branch.shape[1]]
    asks = {
        "feature": feature,
        "threshold": jnp.where(categorical, jnp.nan, question.threshold),
        "branch": jnp.where(categorical[:, None], branch, -1),
        "children": jnp.where(taken, tree.num_nodes + child, -1),
        "missing": question.missing,
        "gain": question.ratio if plan.method == "c45" else question.gain,
    }
    written = {name: getattr(tree, name).at[at].set(asks[name], mode="drop") for name in asks}
    parent = jnp.full(len(made.rows), -1, jnp.int32)
    parent = parent.at[child.reshape(-1)].set(jnp.repeat(state.slots.node, plan.arity), mode="drop")
    nodes = {
        "parent": parent,
        "depth": jnp.where(parent >= 0, state.level + 1, -1),
        "value": made.value,
        "weight": made.weight,
        "impurity": made.impurity,
    }
    for name, new in nodes.items():
        written[name] = lax.dynamic_update_slice_in_dim(getattr(tree, name), new, tree.num_nodes, 0)
    count = tree.num_nodes + (parent >= 0).sum(dtype=jnp.int32)
    return tree._replace(**written, num_nodes=count)


def _measure(rows: Rows, node: Array, size: int, plan: Plan) -> _Nodes:
    """What is in each of `size` nodes; `node` says where a row is, `size` for nowhere."""
    add = functools.partial(jax.ops.segment_sum, num_segments=size)
    dtype = rows.columns.dtype
    count = add(jnp.ones_like(node), node)
    one = jnp.ones(len(node), dtype) if rows.weight is None else rows.weight
    weight = add(one, node)
    some = jnp.where(weight == 0, 1, weight)
    if plan.outputs:
        k = plan.outputs
        known = (rows.y >= 0) & (rows.y < k) & (node < size)
        place = jnp.where(known, node * k + rows.y, size * k)
        value = jax.ops.segment_sum(one, place, num_segments=size * k).reshape(size, k)
        share = value / some[:, None]
        if plan.criterion == "gini":
            impurity = (share * (1 - share)).sum(axis=1)
        else:
            impurity = -jax.scipy.special.xlogy(share, share).sum(axis=1) / math.log(2)
        return _Nodes(count, weight, value, impurity, (value > 0).sum(axis=1) > 1)
    mean = add(one * rows.y, node) / some
    away = rows.y - mean[jnp.minimum(node, size - 1)]
    high = jax.ops.segment_max(rows.y, node, num_segments=size)
    low = jax.ops.segment_min(rows.y, node, num_segments=size)
    return _Nodes(count, weight, mean[:, None], add(one * away * away, node) / some, high > low)


def _open(
    made: _Nodes, number: Array, level: Array, limits: Limits, plan: Plan
) -> tuple[Slots, Array]:
    """Give a slot to each node that may be divided; and the slot of each, plan.slots if none."""
    may = made.mixed & (made.rows >= 2 * limits.min_samples_leaf) & (level < limits.max_depth)
    place = jnp.where(may, jnp.cumsum(may, dtype=jnp.int32) - 1, plan.slots)

    def gather(values: Array, fill: int) -> Array:
        empty = jnp.full((plan.slots, *values.shape[1:]), fill, values.dtype)
        return empty.at[place].set(values, mode="drop")

    rows, weight, mean = gather(made.rows, 0), gather(made.weight, 1), gather(made.value, 0)
    mean = mean / weight[:, None] if plan.outputs else mean
    start = jnp.cumsum(rows, dtype=jnp.int32) - rows
    return Slots(gather(number, jnp.iinfo(jnp.int32).max), rows, start, weight, mean), place


# --- Smaller trees --------------------------------------------------------------------------------


def cut(tree: Tree, inner: Array, max_nodes: int | None = None) -> Tree:
    """The tree in which only the questions of `inner` are asked.

    Args:
        tree: One tree.
        inner: Whether a node keeps its question, shape `(nodes,)`; below a node that does not,
            nothing is kept.
        max_nodes: Slots of the answer, static; as many as before by default.

    Returns:
        The tree, with nodes numbered anew, breadth first.
    """
    nodes = len(tree.feature)
    size = nodes if max_nodes is None else max_nodes
    inner = inner & (tree.feature >= 0)
    above = jnp.maximum(tree.parent, 0)

    def spread(kept: Array) -> Array:
        return (tree.depth == 0) | ((tree.parent >= 0) & kept[above] & inner[above])

    kept, _ = lax.while_loop(
        lambda state: (state[0] != state[1]).any(),
        lambda state: (spread(state[0]), state[0]),
        (tree.depth == 0, jnp.zeros(nodes, bool)),
    )
    number = jnp.where(kept, jnp.cumsum(kept, dtype=jnp.int32) - 1, size)

    def rename(old: Array) -> Array:
        new = number[jnp.maximum(old, 0)]
        return jnp.where((old >= 0) & (new < size), new, -1)

    def move(values: Array, fill: Any, only: Array = kept) -> Array:
        empty = jnp.full((size, *values.shape[1:]), fill, values.dtype)
        return empty.at[jnp.where(only, number, size)].set(values, mode="drop")

    return Tree(
        feature=move(tree.feature, -1, inner),
        threshold=move(tree.threshold, jnp.nan, inner),
        branch=move(tree.branch, -1, inner),
        children=move(rename(tree.children), -1, inner),
        missing=move(tree.missing, -1, inner),
        parent=move(rename(tree.parent), -1),
        depth=move(tree.depth, -1),
        value=move(tree.value, 0),
        weight=move(tree.weight, 0),
        impurity=move(tree.impurity, 0),
        gain=move(tree.gain, 0, inner),
        num_nodes=kept.sum(dtype=jnp.int32),
    )


def best_first(tree: Tree, max_leaves: Array) -> Array:
    """Which questions to keep for so many leaves: always the one that takes most impurity away."""
    amount = tree.weight * tree.impurity
    there = tree.children >= 0
    below = jnp.where(there, amount[jnp.maximum(tree.children, 0)], 0).sum(axis=1)
    more = there.sum(axis=1, dtype=jnp.int32) - 1
    worth = jnp.where(tree.feature >= 0, amount - below, -jnp.inf)
    nodes = len(worth)

    def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        inner, front, leaves, _ = state
        best = jnp.where(front, worth, -jnp.inf).argmax()
        go = front[best] & (tree.feature[best] >= 0) & (leaves + more[best] <= max_leaves)
        child = jnp.where(go & there[best], tree.children[best], nodes)
        front = front.at[best].set(False).at[child].set(True, mode="drop")
        return inner.at[best].max(go), front, leaves + jnp.where(go, more[best], 0), go

    start = jnp.zeros(nodes, bool), tree.depth == 0, jnp.ones((), jnp.int32), jnp.ones((), bool)
    return lax.while_loop(lambda state: state[3], step, start)[0]
