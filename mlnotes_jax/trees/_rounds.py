"""The rounds of gradient boosting: derivatives, a tree, a step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from mlnotes_jax.trees import _bins, _by_leaf, _histogram

__all__ = [
    "Data",
    "HeldOut",
    "Plan",
    "Steps",
    "Trees",
    "boost",
    "derivatives",
    "loss_of",
    "mean",
    "start",
]


class Plan(NamedTuple):
    """What is static.

    Attributes:
        loss: Its name.
        outputs: Scores of a row, and trees of a round.
        num_trees: Rounds.
        patience: Rounds without progress on held-out rows before the end.
        options: Of a tree.
    """

    loss: str
    outputs: int
    num_trees: int
    patience: int | None
    options: _histogram.Options


class Steps(NamedTuple):
    """What is traced.

    Attributes:
        learning_rate: Times the value of a leaf.
        delta: Of the Huber loss.
        subsample: Share of the rows of a round, or None for all.
        feature_fraction: Share of the features of a tree, or None for all.
        limits: Of a split.
    """

    learning_rate: Array
    delta: Array
    subsample: Array | None
    feature_fraction: Array | None
    limits: _histogram.Limits


class Data(NamedTuple):
    """Rows: their codes, features first, targets, and weights or None."""

    codes: Array
    y: Array
    weight: Array | None


class Trees(NamedTuple):
    """The trees of each round and output, as `_histogram.Grown`, without the rows."""

    feature: Array
    cut: Array
    missing_left: Array
    left: Array
    gain: Array
    weight: Array
    children: Array
    value: Array


class HeldOut(NamedTuple):
    """Mean loss on held-out rows after each round, and after how many rounds it was least."""

    loss: Array
    best: Array


# --- Losses. Scores have shape (outputs, n) -------------------------------------------------------


def loss_of(name: str, scores: Array, y: Array, delta: Array) -> Array:
    """The loss of every row."""
    if name == "softmax":
        own = jnp.take_along_axis(scores, y[None], axis=0)[0]
        return jax.nn.logsumexp(scores, axis=0) - own
    score = scores[0]
    if name == "logistic":
        return jax.nn.softplus(jnp.where(y == 1, -score, score))
    away = jnp.abs(score - y)
    if name == "squared":
        return 0.5 * away * away
    if name == "absolute":
        return away
    return jnp.where(away <= delta, 0.5 * away * away, delta * (away - 0.5 * delta))


def derivatives(name: str, scores: Array, y: Array, delta: Array) -> tuple[Array, Array]:
    """The first derivative by each score, and the second or the bound that stands for it."""
    if name == "softmax":
        p = jax.nn.softmax(scores, axis=0)
        classes = jnp.arange(len(scores), dtype=y.dtype)
        return p - (classes[:, None] == y[None]).astype(p.dtype), p * (1 - p)
    if name == "logistic":
        p = jax.nn.sigmoid(scores)
        return p - y[None].astype(p.dtype), p * (1 - p)
    away = scores - y[None]
    first = {
        "squared": lambda: away,
        "absolute": lambda: jnp.sign(away),
        "huber": lambda: jnp.clip(away, -delta, delta),
    }[name]()
    return first, jnp.ones_like(first)


def start(name: str, y: Array, weight: Array, outputs: int) -> Array:
    """The best constant score, shape `(outputs,)`."""
    if name in ("logistic", "softmax"):
        classes = jnp.arange(max(outputs, 2), dtype=y.dtype)
        counts = jnp.where(classes[:, None] == y[None], weight[None], 0).sum(axis=1)
        logs = jnp.log(counts) - jnp.log(counts.sum())
        return logs if name == "softmax" else logs[1:] - logs[:1]
    if name == "squared":
        # From the first row that counts: the mean of a constant is then exact.
        origin = y[jnp.argmax(weight > 0)]
        away = jnp.where(weight > 0, y - origin, 0)
        return (origin + (away * weight).sum() / weight.sum())[None]
    return _medians(y, weight, jnp.zeros(len(y), jnp.int32), 1)


def _medians(values: Array, weight: Array, group: Array, groups: int) -> Array:
    """The weighted median of each group: the least value with half of the weight at or below it.

    Digit by digit: the values as whole numbers in the same order, eight bits at a time.
    """
    bits = 8 * values.dtype.itemsize
    kind = {32: jnp.uint32, 64: jnp.uint64}[bits]
    keys = lax.bitcast_convert_type(_bins.to_keys(values), kind) ^ kind(1 << (bits - 1))
    found, aim, matches = jnp.zeros(groups, kind), None, jnp.ones(len(values), bool)
    for shift in range(bits - 8, -1, -8):
        digit = (keys >> kind(shift)) & kind(255)
        place = group * 256 + digit.astype(jnp.int32)
        counted = jnp.where(matches, weight, 0)
        sums = jax.ops.segment_sum(counted, place, groups * 256).reshape(groups, 256)
        upto = jnp.cumsum(sums, axis=1)
        aim = 0.5 * upto[:, -1] if aim is None else aim
        digits = jnp.arange(256, dtype=jnp.int32)[None]
        last = jnp.where(sums > 0, digits, 0).max(axis=1)  # rounding must not lead beyond it
        chosen = jnp.minimum((upto < aim[:, None]).sum(axis=1, dtype=jnp.int32), last)
        at = jnp.arange(groups, dtype=jnp.int32), chosen
        aim = aim - (upto[at] - sums[at])
        matches &= digit == chosen.astype(kind)[group]
        found = (found << kind(8)) | chosen.astype(kind)
    signed = lax.bitcast_convert_type(found ^ kind(1 << (bits - 1)), f"int{bits}")
    some = jax.ops.segment_sum(weight, group, groups) > 0
    return jnp.where(some, _bins.from_keys(signed, values.dtype), 0)


# --- Rounds ---------------------------------------------------------------------------------------


class _State(NamedTuple):
    scores: Array
    held_scores: Array
    least: Array
    best: Array


def boost(
    key: Array, base: Array, data: Data, held_out: Data | None, steps: Steps, plan: Plan
) -> tuple[Trees, HeldOut]:
    """All rounds, or as many as `patience` allows; the trees of the others do nothing."""
    codes = _histogram.arrange(data.codes, plan.options)
    n, dtype = data.codes.shape[1], base.dtype
    nothing = jnp.zeros((plan.outputs, 0), dtype)
    held = nothing if held_out is None else _constant(base, held_out.codes.shape[1])
    limit = jnp.asarray(jnp.inf, dtype)
    state = _State(_constant(base, n), held, limit, jnp.zeros((), jnp.int32))

    def one(state: _State, i: Array) -> tuple[_State, tuple[Trees, Array]]:
        state, trees = _round(jax.random.fold_in(key, i), state, codes, data, held_out, steps, plan)
        loss = limit
        if held_out is not None:
            losses = loss_of(plan.loss, state.held_scores, held_out.y, steps.delta)
            loss = mean(losses, held_out.weight)
        better = loss < state.least
        best = jnp.where(better, i + 1, state.best)
        return state._replace(least=jnp.where(better, loss, state.least), best=best), (trees, loss)

    count = jnp.asarray(plan.num_trees, jnp.int32)
    if plan.patience is None:
        rounds = jnp.arange(plan.num_trees, dtype=jnp.int32)
        state, (trees, losses) = lax.scan(one, state, rounds)
        return trees, HeldOut(losses, count)
    trees, losses = _until(one, state, plan)
    return trees, losses


def _until(one: Callable[[_State, Array], Any], state: _State, plan: Plan) -> tuple[Trees, HeldOut]:
    """Rounds until `patience` of them brought nothing."""
    shapes = jax.eval_shape(one, state, jnp.zeros((), jnp.int32))[1]
    kept = jax.tree.map(lambda s: jnp.zeros((plan.num_trees, *s.shape), s.dtype), shapes)
    zero = jnp.zeros((), jnp.int32)

    def going(carry: tuple[Any, ...]) -> Array:
        state, i, _ = carry
        return (i < plan.num_trees) & (i - state.best < plan.patience)

    def go(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        state, i, kept = carry
        state, new = one(state, i)
        kept = jax.tree.map(lambda whole, part: whole.at[i].set(part), kept, new)
        return state, i + 1, kept

    state, done, (trees, losses) = lax.while_loop(going, go, (state, zero, kept))
    rounds = jnp.arange(plan.num_trees, dtype=jnp.int32)
    losses = jnp.where(rounds < done, losses, jnp.nan)
    return _first(trees, state.best), HeldOut(losses, state.best)


def _first(trees: Trees, count: Array) -> Trees:
    """The trees of the first rounds; the others ask nothing and add nothing."""
    rounds = jnp.arange(len(trees.value), dtype=jnp.int32) < count

    def only(part: Array, other: Any) -> Array:
        return jnp.where(rounds.reshape(-1, *[1] * (part.ndim - 1)), part, other)

    nothing = -1, 0, False, False, 0, 0, -1, 0
    return Trees(*(only(part, other) for part, other in zip(trees, nothing, strict=True)))


def _round(
    key: Array,
    state: _State,
    codes: _histogram.Codes,
    data: Data,
    held_out: Data | None,
    steps: Steps,
    plan: Plan,
) -> tuple[_State, Trees]:
    rows_key, features_key = jax.random.split(key)
    weight = data.weight
    if steps.subsample is not None:
        drawn = jax.random.uniform(rows_key, data.y.shape) < steps.subsample
        weight = jnp.where(drawn, 1 if weight is None else weight, 0).astype(state.scores.dtype)
    first, second = derivatives(plan.loss, state.scores, data.y, steps.delta)
    if weight is not None:
        keep = (weight > 0)[None]
        first, second = (jnp.where(keep, part * weight[None], 0) for part in (first, second))

    def tree(part: tuple[Array, Array, Array]) -> tuple[Trees, Array, Array]:
        number, g, h = part
        usable = None
        if steps.feature_fraction is not None:
            own = jax.random.fold_in(features_key, number)
            usable = _drawn(own, len(data.codes), steps.feature_fraction)
        by_leaf = plan.options.max_leaves is not None
        grow = _by_leaf.grow if by_leaf else _histogram.grow
        grown = grow(codes, g, h, steps.limits, usable, plan.options)
        if plan.loss == "absolute":
            ones = jnp.ones(len(g), g.dtype) if weight is None else weight
            middle = _medians(data.y - state.scores[0], ones, grown.leaf, len(grown.value))
            grown = grown._replace(value=middle)
        value = steps.learning_rate * grown.value
        added = value[grown.leaf]
        held = added[:0]
        if held_out is not None:
            held = value[_histogram.reach(held_out.codes, grown, plan.options)]
        return Trees(*grown[:7], value), added, held

    if plan.outputs == 1:
        zero = jnp.zeros((), jnp.int32)
        found = jax.tree.map(lambda part: part[None], tree((zero, first[0], second[0])))
    else:
        found = lax.map(tree, (jnp.arange(plan.outputs, dtype=jnp.int32), first, second))
    trees, added, held = found
    scores, held_scores = state.scores + added, state.held_scores + held
    return state._replace(scores=scores, held_scores=held_scores), trees


def _drawn(key: Array, d: int, share: Array) -> Array:
    """So many features of d as the share says, at least one."""
    count = jnp.maximum(jnp.round(share * d), 1)
    place = jax.random.permutation(key, d)
    return place.astype(count.dtype) < count


def _constant(base: Array, n: int) -> Array:
    return jnp.broadcast_to(base[:, None], (len(base), n))


def mean(values: Array, weight: Array | None) -> Array:
    """The weighted mean."""
    if weight is None:
        return values.mean()
    keep = weight > 0
    return jnp.where(keep, values * weight, 0).sum() / jnp.where(keep, weight, 0).sum()
