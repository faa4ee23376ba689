r"""Questions about one column, and what they are worth.

A question divides the weight $W$ of a node, with the class shares $p$, into branches $W_b$ that
hold $c_b$. With $\delta_b = c_b - W_b\, p$, which sums to zero over the branches, the impurity
falls by

$$
\sum_b \frac{\|\delta_b\|^2}{W W_b} \;\text{(Gini; variance)}, \qquad
\sum_b \frac{W_b}{W} \sum_k p_k \left( (1 + u) \log_2 (1 + u) - \frac{u}{\ln 2} \right),
\; u = \frac{\delta_{bk}}{W_b\, p_k} \;\text{(entropy)} .
$$

No digits cancel in these sums, because no term is negative: large impurities need not be subtracted
to find a small gain.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

__all__ = [
    "Limits",
    "Plan",
    "Question",
    "Rows",
    "Slots",
    "about_category",
    "codes",
    "gain",
    "ratio",
    "slack",
]


class Plan(NamedTuple):
    """What is fixed when the program is compiled.

    Attributes:
        outputs: Number of classes; 0 for regression.
        method: `"cart"`, `"id3"` or `"c45"`.
        criterion: `"gini"`, `"entropy"` or `"variance"`.
        categories: Number of categories of each column, 0 for a numeric one.
        missing: Whether a NaN is a value that is not known.
        max_nodes: Slots of the tree.
        slots: Nodes of one level that may be divided, at most.
    """

    outputs: int
    method: str
    criterion: str
    categories: tuple[int, ...]
    missing: bool
    max_nodes: int
    slots: int

    @property
    def arity(self) -> int:
        """Children of a node, at most."""
        return 2 if self.method == "cart" else max(2, *self.categories)

    @property
    def numeric(self) -> tuple[int, ...]:
        """Columns that hold numbers."""
        return tuple(j for j, count in enumerate(self.categories) if count == 0)

    @property
    def categorical(self) -> tuple[int, ...]:
        """Columns that hold categories."""
        return tuple(j for j, count in enumerate(self.categories) if count > 0)

    @property
    def codes(self) -> int:
        """Categories of a column, at most, and one more for a missing value; 0 without any."""
        return max(self.categories) + 1 if self.categorical else 0

    def bytes(self, n: int, itemsize: int) -> int:
        """About what n rows, the tree and one level of its growing take."""
        outputs = max(self.outputs, 1)
        node = outputs + self.codes + self.arity + 10
        tables = (outputs + 4) * self.slots * self.codes
        return itemsize * (2 * self.max_nodes * node + 6 * n * len(self.categories) + tables)


class Limits(NamedTuple):
    """Where growing ends; traced."""

    max_depth: Array
    min_samples_leaf: Array
    min_gain: Array


class Rows(NamedTuple):
    """The data, one entry for each row."""

    columns: Array  # (d * n,), column after column
    y: Array  # classes, or targets minus their mean
    weight: Array | None


class Slots(NamedTuple):
    """The nodes of a level that may be divided, in the order of their numbers."""

    node: Array  # number in the tree; out of range in a slot that is not used
    rows: Array  # number of rows
    start: Array  # position of the first of its rows, in every order
    weight: Array
    mean: Array  # class shares, or the mean target: (slots, outputs)


class Question(NamedTuple):
    """The best question about a column, for each slot."""

    gain: Array  # -1: there is none
    ratio: Array  # gain ratio, if the method is "c45"
    threshold: Array
    missing: Array  # learned branch of a missing value, -1 if no value was missing
    branch: Array  # of each category, -1 where there is none: (slots, plan.codes)


def slack(dtype: Any) -> float:
    """Gains that differ by less, relatively, are taken for equal: it is rounding."""
    return 32 * float(jnp.finfo(dtype).eps)


def divergence(delta: Array, weight: Array, share: Array, plan: Plan) -> Array:
    """What a branch adds to the gain, times the weight of the node.

    Args:
        delta: c_b - W_b p, classes on the first axis.
        weight: W_b, without the first axis; may be 0.
        share: p, broadcast against `delta`.
        plan: Static.
    """
    if plan.criterion != "entropy":
        return jnp.square(delta).sum(axis=0) / jnp.where(weight > 0, weight, 1)
    expected = weight[None] * share
    u = jnp.maximum(delta / jnp.where(expected > 0, expected, 1), -1)
    return (expected * (jax.scipy.special.xlog1py(1 + u, u) - u)).sum(axis=0) / math.log(2)


def gain(delta: Array, left: Array, right: Array, share: Array, plan: Plan) -> Array:
    """Gain of two branches; `delta` is that of the left one, the other has its negative."""
    weight = left + right
    if plan.criterion != "entropy":  # 1 / left + 1 / right = weight / (left * right)
        product = left * right
        return jnp.square(delta).sum(axis=0) / jnp.where(product > 0, product, 1)
    both = divergence(delta, left, share, plan) + divergence(-delta, right, share, plan)
    return both / weight


def ratio(gain: Array, shares: Array) -> Array:
    """Gain divided by the entropy of the branches, which are on the last axis."""
    value = -jax.scipy.special.xlogy(shares, shares).sum(axis=-1) / math.log(2)
    return jnp.where(value > 0, gain / jnp.where(value > 0, value, 1), 0)


def codes(column: Array, plan: Plan) -> Array:
    """Category codes as integers; the last one for a missing value."""
    return jnp.where(jnp.isnan(column), plan.codes - 1, column).astype(jnp.int32)


# --- Categories -----------------------------------------------------------------------------------


class _Table(NamedTuple):
    """Sums for each slot and category, missing last: (slots, codes), `held` with classes first."""

    rows: Array
    weight: Array
    held: Array
    share: Array  # of the classes in the whole slot: (classes, slots)


def about_category(
    column: Array, slot: Array, slots: Slots, rows: Rows, limits: Limits, plan: Plan
) -> Question:
    """The best question about a category: one branch for each, or two sets.

    Args:
        column: Values, shape `(n,)`.
        slot: Of each row; `plan.slots` for none.
        slots: The nodes.
        rows: The data.
        limits: Where growing ends.
        plan: Static.
    """
    place = slot * plan.codes + codes(column, plan)
    place = jnp.where(slot < plan.slots, place, plan.slots * plan.codes)

    def sums(values: Array) -> Array:
        total = jax.ops.segment_sum(values, place, num_segments=plan.slots * plan.codes)
        return total.reshape(plan.slots, plan.codes)

    dtype = column.dtype
    one = jnp.ones(len(slot), dtype) if rows.weight is None else rows.weight
    if plan.outputs:
        classes = jnp.arange(plan.outputs, dtype=rows.y.dtype)
        held = lax.map(lambda k: sums(jnp.where(rows.y == k, one, 0)), classes)
        share = slots.mean.T
    else:
        mean = slots.mean[jnp.minimum(slot, plan.slots - 1), 0]
        held = sums(one * (rows.y - mean))[None]
        share = jnp.zeros((1, plan.slots), dtype)
    table = _Table(sums(jnp.ones_like(place)), sums(one), held, share)
    ask = _two_sets if plan.method == "cart" else _one_branch_each
    most, value, missing, branch = ask(table, slots, limits, plan)
    return Question(most, value, jnp.full(plan.slots, jnp.nan, dtype), missing, branch)


def _one_branch_each(
    table: _Table, slots: Slots, limits: Limits, plan: Plan
) -> tuple[Array, Array, Array, Array]:
    """As many branches as the node has categories; a missing value goes where it helps most."""
    count, weight, held = table.rows[:, :-1], table.weight[:, :-1], table.held[..., :-1]
    lost_count, lost_weight, lost = table.rows[:, -1], table.weight[:, -1], table.held[..., -1]

    def ask(target: Array) -> tuple[Array, Array]:
        """Gain and ratio if missing values go to `target`, one category of each slot or none."""
        number = count + jnp.where(target, lost_count[:, None], 0)
        amount = weight + jnp.where(target, lost_weight[:, None], 0)
        inside = held + jnp.where(target[None], lost[..., None], 0)
        delta = inside - amount[None] * table.share[..., None]
        total = divergence(delta, amount, table.share[..., None], plan).sum(axis=-1) / slots.weight
        full = ((number == 0) | (number >= limits.min_samples_leaf)).all(axis=1)
        several = (count > 0).sum(axis=1) > 1
        return jnp.where(full & several, total, -1), ratio(total, amount / slots.weight[:, None])

    here = count > 0
    if plan.missing:
        target = jnp.eye(count.shape[1], dtype=bool)[:, None] & here[None]
        gains, ratios = lax.map(ask, target)
        gains = jnp.where(target.any(axis=2), gains, -1)
        best = gains.argmax(axis=0)[None]
        most, value = (jnp.take_along_axis(part, best, axis=0)[0] for part in (gains, ratios))
        missing = jnp.where(lost_count > 0, best[0].astype(jnp.int32), -1)
    else:
        most, value = ask(jnp.zeros_like(here))
        missing = jnp.full(plan.slots, -1, jnp.int32)
    branch = jnp.where(here, jnp.arange(count.shape[1], dtype=jnp.int32)[None], -1)
    return most, value, missing, jnp.append(branch, missing[:, None], axis=1)


def _two_sets(
    table: _Table, slots: Slots, limits: Limits, plan: Plan
) -> tuple[Array, Array, Array, Array]:
    """A beginning of the categories in the order of a class's share, or of the mean target.

    For two classes, and for regression, no other set is better. Missing is one more category.
    """
    empty = table.rows == 0

    def ask(key: Array) -> tuple[Array, Array]:
        mean = jnp.where(empty, jnp.inf, key / jnp.where(empty, 1, table.weight))
        order = jnp.argsort(mean, axis=1)
        number, left = (
            jnp.cumsum(jnp.take_along_axis(part, order, axis=1), axis=1, dtype=part.dtype)
            for part in (table.rows, table.weight)
        )
        inside = jnp.cumsum(jnp.take_along_axis(table.held, order[None], axis=2), axis=2)
        share = table.share[..., None]
        delta = inside - left[None] * share
        gains = gain(delta, left, slots.weight[:, None] - left, share, plan)
        least = limits.min_samples_leaf
        valid = (number >= least) & (slots.rows[:, None] - number >= least)
        gains = jnp.where(valid, gains, -1)
        cut = gains.argmax(axis=1)[:, None]
        side = (jnp.argsort(order, axis=1) > cut).astype(jnp.int32)
        return jnp.take_along_axis(gains, cut, axis=1)[:, 0], jnp.where(empty, -1, side)

    gains, sides = lax.map(ask, table.held[1:] if plan.outputs == 2 else table.held)
    best = gains.argmax(axis=0)[None]
    most = jnp.take_along_axis(gains, best, axis=0)[0]
    side = jnp.take_along_axis(sides, best[..., None], axis=0)[0]
    return most, most, side[:, -1], side
