"""What all curves over a threshold are made of: masses at or above each score, ties as one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num


class Above(NamedTuple):
    """For each row, in the order of falling scores: what lies at its score or above it.

    Rows that do not count come last, with the threshold minus infinity, and change nothing.
    """

    thresholds: Float[Array, " n"]
    positive: Num[Array, " n"]
    negative: Num[Array, " n"]


@jax.jit
def above(
    scores: Float[Array, " n"], positive: Bool[Array, " n"], weight: Num[Array, " n"]
) -> Above:
    key = jnp.where(weight != 0, -scores, jnp.inf)
    none = jnp.zeros_like(weight)
    key, first, second = jax.lax.sort(
        (key, jnp.where(positive, weight, none), jnp.where(positive, none, weight)), num_keys=1
    )
    last = _last_of_ties(key)
    return Above(-key, _at_or_above(first, last), _at_or_above(second, last))


def area(positive: Num[Array, " n"], negative: Num[Array, " n"], dtype) -> Float[Array, ""]:
    """Trapezoids under the curve of positives over negatives; NaN where there are none of one."""
    middle = positive.astype(dtype) - 0.5 * steps(positive).astype(dtype)
    shares = steps(negative).astype(dtype) / negative[-1].astype(dtype)
    return (shares * (middle / positive[-1].astype(dtype))).sum()


@jax.jit
def pairs(
    scores: Float[Array, "n k"], classes: Bool[Array, "n k"], weight: Num[Array, " n"]
) -> Float[Array, "k k"]:
    """Entry (a, b): how often the score for a of a row of class a beats that of a row of b."""
    dtype = scores.dtype
    masses = jnp.where(classes, weight[:, None], jnp.zeros((), weight.dtype))

    def one(column: Array, ours: Array) -> Array:
        key = jnp.where(weight != 0, -column, jnp.inf)
        order = jnp.argsort(key)
        last = _last_of_ties(key[order])
        counts = _at_or_above(masses[order], last[:, None])
        mine = jnp.take(counts, ours, axis=1)
        middle = mine.astype(dtype) - 0.5 * steps(mine).astype(dtype)
        middle = middle / mine[-1].astype(dtype)
        shares = steps(counts).astype(dtype) / counts[-1:].astype(dtype)
        return (middle[:, None] * shares).sum(axis=0)

    # One column at a time: the (n, k) masses of all columns at once would be k times as many.
    return jax.lax.map(lambda pair: one(*pair), (scores.T, jnp.arange(scores.shape[1])))


def steps(sums: Num[Array, "n ..."]) -> Num[Array, "n ..."]:
    """What each row adds to a running sum."""
    return jnp.diff(sums, axis=0, prepend=jnp.zeros_like(sums[:1]))


def _last_of_ties(key: Array) -> Array:
    return jnp.append(key[1:] != key[:-1], True)


def _at_or_above(mass: Array, last: Array) -> Array:
    """Running sums, each row of a tie with that of its last row."""
    sums = jnp.cumsum(mass, axis=0, dtype=mass.dtype)
    if jnp.issubdtype(mass.dtype, jnp.floating):
        sums = jax.lax.cummax(sums)  # a sum in parallel may fall by a rounding
        most = jnp.inf
    else:
        most = jnp.iinfo(mass.dtype).max
    return jax.lax.cummin(jnp.where(last, sums, jnp.asarray(most, mass.dtype)), reverse=True)
