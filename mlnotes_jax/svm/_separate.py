r"""The shortest vector between two convex hulls, and what rounding allows to claim about it.

The differences $p_i - q_j$ of a point of one set and a point of the other span the polytope
$P - Q$; its point $z$ of least length joins the nearest points of the hulls. Wolfe's method keeps a
*corral*: pairs whose differences are affinely independent, with positive weights that make their
mean the point of least length of their affine hull. It adds the pair that lies furthest towards the
origin and drops those whose weights would become negative. The edges $b_k = d_k - d_0$ of the
corral are kept as $B = Q R$; so $z = d_0 - Q Q^\top d_0$ is orthogonal to them to the last digit.

Reference: Wolfe, *Finding the nearest point in a polytope* (1976); Golub and Van Loan, *Matrix
Computations* (4th ed., 2013), sections 5.2 and 6.5; Higham, *Accuracy and Stability of Numerical
Algorithms* (2nd ed., 2002), sections 3.1 and 3.5; Rump, *Verification methods* (2010), section 10.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Bool, Float, Int

__all__ = [
    "Nearest",
    "cancels_exactly",
    "lower",
    "meet_inside",
    "midrange",
    "nearest",
    "unit_scale",
    "upper",
]

# Steps without a shorter vector after which rounding is taken to be all that is left.
PATIENCE = 10


class Nearest(NamedTuple):
    r"""Where Wolfe's method ended.

    Attributes:
        weights: At least 0, of total 1 in either class, shape `(n,)`.
        direction: The difference of the nearest points, shape `(d,)`; of all directions seen, the
            one in which the classes are furthest apart.
        num_iterations: Pairs added, and factors rebuilt, shape `()`.
        converged: Whether it ended by itself, shape `()`.
    """

    weights: Float[Array, " n"]
    direction: Float[Array, " d"]
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]


class _Corral(NamedTuple):
    """At most m + 1 pairs; slots past `count` are unused, and their entries are zero."""

    pairs: Int[Array, "k 2"]  # row numbers: one of the positive class, one of the other
    weights: Float[Array, " k"]
    count: Int[Array, ""]
    factor: Float[Array, "m m_and_d"]  # R beside Q^T: column k of R is the edge of slot k + 1


class _State(NamedTuple):
    corral: _Corral
    pair: Array  # the next one to add
    length: Array  # of the shortest vector so far
    stalled: Array  # steps since it became shorter
    width: Array  # the widest strip between the classes so far
    direction: Array  # and the vector across it
    finished: Array  # nothing left to do; believed once the factor has been rebuilt
    done: Array
    step: Array


def nearest(
    x: Float[Array, "n d"],
    positive: Bool[Array, " n"],
    counted: Bool[Array, " n"],
    max_iter: Int[Array, ""],
) -> Nearest:
    """Run Wolfe's method on points of about unit size, centred; rows not `counted` are ignored."""
    n, d = x.shape
    dtype = x.dtype
    eps = float(jnp.finfo(dtype).eps)
    most = min(d, n - 2)  # edges that can be independent
    room = max(2, most)
    ours, theirs = counted & positive, counted & ~positive
    size = jnp.sqrt(jnp.max(jnp.where(counted, jnp.sum(x * x, axis=1), 0.0)))
    # What is computed of a vector of length zero, and of an inner product with one of length one.
    zero, noise = (8.0 + 2.0 * d**0.5) * eps * size, 4.0 * eps * size

    def extremes(z: Array) -> tuple[Array, Array]:
        """The pair furthest against z, and how far it lies along z."""
        scores = x @ z
        low = jnp.argmin(jnp.where(ours, scores, jnp.inf))
        high = jnp.argmax(jnp.where(theirs, scores, -jnp.inf))
        return jnp.stack([low, high]).astype(jnp.int32), scores[low] - scores[high]

    def advance(state: _State) -> _State:
        corral = _extended(x, state.corral, state.pair, afresh=state.finished)
        dependent = ~state.finished & (corral.count == state.corral.count)
        corral = _settled(x, corral)
        z = _shortest(x, corral)
        length = _norm(z)
        pair, along = extremes(z)
        width = along / jnp.maximum(length, jnp.finfo(dtype).tiny)
        wider, shorter = width > state.width, length < state.length
        stalled = jnp.where(shorter, 0, state.stalled + 1)
        finished = (
            (length <= zero)
            | (length - width <= noise)
            | (stalled > PATIENCE)
            | (corral.count > most)
            | dependent
        )
        return _State(
            corral=corral,
            pair=pair,
            length=jnp.where(shorter, length, state.length),
            stalled=stalled,
            width=jnp.where(wider, width, state.width),
            direction=jnp.where(wider, z, state.direction),
            finished=finished,
            done=finished & state.finished,
            step=state.step + 1,
        )

    start = _mean(x, ours) - _mean(x, theirs)
    first, _ = extremes(start)
    corral = _Corral(
        pairs=jnp.zeros((room + 1, 2), jnp.int32).at[0].set(first),
        weights=jnp.zeros(room + 1, dtype).at[0].set(1.0),
        count=jnp.ones((), jnp.int32),
        factor=jnp.zeros((room, room + d), dtype),
    )
    false = jnp.zeros((), bool)
    state = lax.while_loop(
        lambda state: ~state.done & (state.step < max_iter),
        advance,
        _State(
            corral=corral,
            pair=first,
            length=jnp.full((), jnp.inf, dtype),
            stalled=jnp.zeros((), jnp.int32),
            width=jnp.full((), -jnp.inf, dtype),
            direction=start,
            finished=~false,  # the first step builds the factor of the first pair
            done=false,
            step=jnp.zeros((), jnp.int32),
        ),
    )
    end = state.corral
    weights = jnp.zeros(n, dtype).at[end.pairs.reshape(-1)].add(jnp.repeat(end.weights, 2))
    of_ours, of_theirs = (jnp.sum(jnp.where(rows, weights, 0.0)) for rows in (ours, theirs))
    share = jnp.where(positive, of_ours, of_theirs)
    return Nearest(weights / share, state.direction, state.step, state.done)


def _mean(x: Array, rows: Array) -> Array:
    weights = rows.astype(x.dtype)
    return weights @ x / jnp.maximum(jnp.sum(weights), 1.0)


def _reference(x: Array, corral: _Corral) -> Array:
    return x[corral.pairs[0, 0]] - x[corral.pairs[0, 1]]


def _extended(x: Array, corral: _Corral, pair: Array, *, afresh: Array) -> _Corral:
    """The corral with one pair more; or `afresh`, the same pairs with a factor computed anew.

    A pair that depends on the others to rounding is left out.
    """
    order = jnp.argsort(-corral.weights)  # afresh, the heaviest pair comes first
    order = jnp.where(afresh, order.astype(jnp.int32), _slots(corral))
    pairs, weights = corral.pairs[order], corral.weights[order]
    one = jnp.ones((), jnp.int32)
    kept = _slots(corral) < jnp.where(afresh, one, corral.count)
    start = _Corral(
        pairs=pairs,
        weights=jnp.where(kept, weights, 0.0),
        count=jnp.where(afresh, one, corral.count),
        factor=jnp.where(afresh, 0.0, corral.factor),
    )
    first = start.count
    pairs = jnp.where(afresh, pairs, pairs.at[first].set(pair))
    last = jnp.where(afresh, corral.count, first + 1)
    return lax.fori_loop(first, last, lambda i, c: _appended(x, c, pairs[i], weights[i]), start)


def _slots(corral: _Corral) -> Array:
    return jnp.arange(corral.weights.shape[0], dtype=jnp.int32)


def _appended(x: Array, corral: _Corral, pair: Array, weight: Array) -> _Corral:
    m = corral.factor.shape[0]
    q = corral.factor[:, m:]
    edge = (x[pair[0]] - x[pair[1]]) - _reference(x, corral)
    first = q @ edge
    rest = edge - first @ q
    second = q @ rest  # "twice is enough": what rounding left over of the first projection
    rest = rest - second @ q
    length = _norm(rest)
    slot = corral.count
    column = (first + second).at[slot - 1].set(length)
    factor = corral.factor.at[:, slot - 1].set(column)
    factor = factor.at[slot - 1, m:].set(rest / jnp.where(length == 0, 1.0, length))
    larger = _Corral(
        corral.pairs.at[slot].set(pair), corral.weights.at[slot].set(weight), slot + 1, factor
    )
    independent = (slot <= m) & (length > 8.0 * jnp.finfo(x.dtype).eps * _norm(edge))
    return _Corral(*(jnp.where(independent, u, v) for u, v in zip(larger, corral, strict=True)))


def _settled(x: Array, corral: _Corral) -> _Corral:
    """Drop pairs until the point of least length of the affine hull has positive weights."""
    slots = _slots(corral)
    tiny = jnp.finfo(x.dtype).tiny

    def drop(corral: _Corral, target: Array, outside: Array) -> _Corral:
        # Walk from the old weights towards the target until the first one becomes zero.
        ratio = corral.weights / jnp.maximum(corral.weights - target, tiny)
        ratio = jnp.where(outside, ratio, jnp.inf)
        slot = jnp.argmin(ratio).astype(jnp.int32)
        mixed = corral.weights + jnp.minimum(ratio[slot], 1.0) * (target - corral.weights)
        mixed = jnp.where(slots == slot, 0.0, jnp.maximum(mixed, 0.0))
        return _without(corral._replace(weights=mixed), slot)

    def body(carry: tuple[_Corral, Array]) -> tuple[_Corral, Array]:
        corral, _ = carry
        target = _affine_weights(x, corral)
        outside = (slots < corral.count) & ~(target > 0)
        again = outside.any()
        kept = corral._replace(weights=jnp.where(slots < corral.count, target, 0.0))
        return lax.cond(again, lambda: drop(corral, target, outside), lambda: kept), again

    return lax.while_loop(lambda carry: carry[1], body, (corral, jnp.ones((), bool)))[0]


def _affine_weights(x: Array, corral: _Corral) -> Array:
    """Weights of total 1, of any sign, whose mean of the corral has the least length."""
    m = corral.factor.shape[0]
    unused = jnp.arange(m, dtype=jnp.int32) >= corral.count - 1
    r = corral.factor[:, :m] + jnp.diag(unused.astype(x.dtype))
    edges = solve_triangular(r, -(corral.factor[:, m:] @ _reference(x, corral)))
    edges = jnp.where(unused, 0.0, edges)
    return jnp.concatenate([1.0 - jnp.sum(edges, keepdims=True), edges])


def _shortest(x: Array, corral: _Corral) -> Array:
    q = corral.factor[:, corral.factor.shape[0] :]
    z = _reference(x, corral)
    z = z - (q @ z) @ q
    return z - (q @ z) @ q


def _without(corral: _Corral, slot: Array) -> _Corral:
    """The corral without one pair, its factor brought back to a triangle by rotations."""
    m = corral.factor.shape[0]
    count = corral.count
    r, q = corral.factor[:, :m], corral.factor[:, m:]
    # Without slot 0, slot 1 is the reference: its edge, r[0, 0] q_0, goes off all the others.
    used = jnp.arange(m, dtype=jnp.int32) < count - 1
    r = jnp.where(slot == 0, r.at[0].add(-jnp.where(used, r[0, 0], 0.0)), r)
    gone = jnp.maximum(slot - 1, 0)
    left = jnp.concatenate([r[:, 1:], jnp.zeros((m, 1), r.dtype)], axis=1)
    r = jnp.where((jnp.arange(m, dtype=jnp.int32) >= gone)[None, :], left, r)

    def rotate(i: Array, factor: Array) -> Array:
        two = lax.dynamic_slice_in_dim(factor, i, 2)
        a, b = two[0, i], two[1, i]
        h = jnp.sqrt(a * a + b * b)
        c, s = (jnp.where(h > 0, v / jnp.where(h > 0, h, 1.0), e) for v, e in ((a, 1.0), (b, 0.0)))
        turned = jnp.stack([c * two[0] + s * two[1], c * two[1] - s * two[0]])
        return lax.dynamic_update_slice_in_dim(factor, turned.at[1, i].set(0.0), i, 0)

    factor = lax.fori_loop(gone, count - 2, rotate, jnp.concatenate([r, q], axis=1))
    factor = jnp.where((jnp.arange(m, dtype=jnp.int32) >= count - 2)[:, None], 0.0, factor)
    slots = _slots(corral)
    later = jnp.where(slots >= slot, jnp.minimum(slots + 1, m), slots)
    weights = jnp.where(slots < count - 1, corral.weights[later], 0.0)
    return _Corral(corral.pairs[later], weights, count - 1, factor)


def _norm(v: Array) -> Array:
    return jnp.sqrt(jnp.sum(v * v))


# --- Proofs in floating point ---------------------------------------------------------------------
# A sum of m products, added up in any order, differs from the true one by at most about m u times
# the sum of their magnitudes, with u = eps / 2. All slack below is more than twice what that asks,
# which also pays for the roundings of the slack itself.


def lower(
    w: Float[Array, " d"],
    b: Float[Array, ""],
    x: Float[Array, "n d"],
    positive: Bool[Array, " n"],
    counted: Bool[Array, " n"],
) -> Float[Array, ""]:
    """What the smallest geometric margin of the plane is at least, in exact arithmetic."""
    info = jnp.finfo(x.dtype)
    block = math.isqrt(x.shape[1] - 1) + 1
    slack = (2 * block + 8) * float(info.eps)  # of a sum of at most `block` sums of `block`
    c = midrange(x, counted)
    centred = jnp.where(counted[:, None], x - c[None, :], 0.0)
    part, base = _blocked(centred, w, block), _blocked(c[None, :], w, block)[0] + b
    # x - c is rounded relative to itself, so that the error knows the scale of each feature.
    error = jnp.abs(centred) @ jnp.abs(w) + jnp.abs(c) @ jnp.abs(w) + jnp.abs(b)
    error = slack * error + 4.0 * (x.shape[1] + 8) * float(info.tiny)
    worst = jnp.min(
        jnp.where(counted, jnp.where(positive, 1.0, -1.0) * (part + base) - error, jnp.inf)
    )
    length = _length(w)
    slack = (x.shape[1] + 8) * float(info.eps)
    return worst / (length * jnp.where(worst > 0, 1.0 + slack, 1.0 - slack))


def _blocked(rows: Array, w: Array, block: int) -> Array:
    """`rows @ w` as a sum of sums, which have fewer terms: a smaller bound on rounding errors."""
    fill = -w.shape[0] % block
    rows = jnp.pad(rows, ((0, 0), (0, fill))).reshape(rows.shape[0], -1, block)
    parts = jnp.einsum("nbk,bk->nb", rows, jnp.pad(w, (0, fill)).reshape(-1, block))
    # The barrier keeps the compiler from making one long sum of the two.
    return jnp.sum(lax.optimization_barrier(parts), axis=1)


def upper(
    weights: Float[Array, " n"], x: Float[Array, "n d"], positive: Bool[Array, " n"]
) -> Float[Array, ""]:
    """Half the distance of two means, rounded up: what no margin exceeds in exact arithmetic."""
    info = jnp.finfo(x.dtype)
    used = weights > 0
    slack = (jnp.sum(used) + 8).astype(x.dtype) * float(info.eps)
    centred = jnp.where(used[:, None], x - midrange(x, used)[None, :], 0.0)
    ours, theirs = jnp.where(positive, weights, 0.0), jnp.where(positive, 0.0, weights)
    ours, theirs = ours / jnp.sum(ours), theirs / jnp.sum(theirs)
    away = jnp.abs(ours @ centred - theirs @ centred)
    away = away + slack * ((ours + theirs) @ jnp.abs(centred)) + 8.0 * float(info.tiny)
    bound = 0.5 * _length(away) * (1.0 + (x.shape[1] + 8) * float(info.eps))
    return jnp.where(jnp.all(weights >= 0) & jnp.isfinite(bound), bound, jnp.inf)


def meet_inside(
    weights: Float[Array, " n"], x: Float[Array, "n d"], positive: Bool[Array, " n"]
) -> Bool[Array, ""]:
    r"""Whether weights near these ones, still positive, have means that agree exactly.

    With $\tilde x = (x, 1)$, $G = \sum_i \lambda_i \tilde x_i \tilde x_i^\top$ and the remainder
    $r = \sum_i \lambda_i y_i \tilde x_i$ the weights $\lambda_i (1 - y_i \tilde x_i^\top G^{-1} r)$
    have no remainder; they are positive where $|\tilde x_i^\top G^{-1} r| < 1$. The inverse is
    bounded by an approximate one.
    """
    info = jnp.finfo(x.dtype)
    eps, size = float(info.eps), x.shape[1] + 1
    used = weights > 0
    centred = jnp.where(used[:, None], x - midrange(x, used)[None, :], 0.0)
    spread = jnp.max(jnp.abs(centred), axis=0)
    # Scaling a feature by a power of two is exact, and moves no point through a hyperplane. A
    # feature that is constant on these points has no remainder if the weights have none.
    lifted = jnp.concatenate(
        [centred * unit_scale(spread)[None, :], used[:, None].astype(x.dtype)], axis=1
    )
    idle = jnp.diag(jnp.append(spread == 0, False).astype(x.dtype))
    weighted = lifted * weights[:, None]
    moments = weighted.T @ lifted + idle
    sizes = jnp.abs(weighted).T @ jnp.abs(lifted) + idle
    identity = jnp.eye(size, dtype=x.dtype)
    inverse = cho_solve((jnp.linalg.cholesky(moments), True), identity)
    terms = jnp.sum(used).astype(x.dtype)
    slack = 2.0 * (size + terms + 16.0) * eps
    defect = jnp.abs(identity - inverse @ moments)
    defect = jnp.max(jnp.sum(defect + slack * (jnp.abs(inverse) @ sizes), axis=1))
    remainder = jnp.abs(jnp.where(positive, 1.0, -1.0) @ weighted)
    remainder = remainder + slack * (weights @ jnp.abs(lifted))
    change = size * jnp.max(jnp.abs(inverse) @ remainder) / (1.0 - defect)
    # Far below 1, so that the roundings of these last lines do not matter.
    return (defect < 0.5) & (change < 0.5) & jnp.all(weights >= 0)


def cancels_exactly(
    weights: Float[Array, " n"], x: Float[Array, "n d"], positive: Bool[Array, " n"]
) -> Bool[Array, ""]:
    r"""Whether the weighted means agree, and nothing had to be rounded to see it.

    Weights that are multiples of $2^{-a}$ of total at most 1, and coordinates that are multiples of
    $2^{e - c}$ below $2^e$, have sums of products that are exact in any order if $a + c$ is at most
    the number of binary digits.
    """
    digits = jnp.finfo(x.dtype).nmant + 1
    used = weights > 0
    grid = weights[:, None] * jnp.asarray(2.0 ** np.arange(digits), x.dtype)[None, :]
    on_grid = jnp.all(grid == jnp.round(grid), axis=0)  # as a function of a: false, ..., true
    a = jnp.sum(~on_grid).astype(jnp.int32)
    ours, theirs = jnp.where(positive, weights, 0.0), jnp.where(positive, 0.0, weights)
    total = jnp.sum(ours)
    balanced = (total == jnp.sum(theirs)) & (total > 0) & (total <= 1.0) & (a < digits)
    shown = jnp.where(used[:, None], x, 0.0)
    e = _exponent(jnp.max(jnp.abs(shown), axis=0))
    units = shown * _power_of_two(digits - a - e, x.dtype)[None, :]
    short = jnp.all(units == jnp.round(units))
    means = (jnp.sum(ours[:, None] * units, axis=0), jnp.sum(theirs[:, None] * units, axis=0))
    return balanced & short & jnp.all(means[0] == means[1]) & jnp.all(weights >= 0)


def _length(v: Array) -> Array:
    """Euclidean length, without overflow."""
    largest = jnp.max(jnp.abs(v))
    unit = jnp.where(largest > 0, largest, 1.0)
    return unit * jnp.sqrt(jnp.sum((v / unit) ** 2))


def midrange(x: Float[Array, "n d"], counted: Bool[Array, " n"]) -> Float[Array, " d"]:
    """Middle of each feature's range: exactly its value where the feature is constant."""
    low = jnp.min(jnp.where(counted[:, None], x, jnp.inf), axis=0)
    high = jnp.max(jnp.where(counted[:, None], x, -jnp.inf), axis=0)
    return 0.5 * low + 0.5 * high


def _exponent(v: Array) -> Array:
    """The least e with v < 2^e for v > 0, read from the bits."""
    info = jnp.finfo(v.dtype)
    bits = lax.bitcast_convert_type(v, jnp.int32 if info.bits == 32 else jnp.int64)
    return (bits >> info.nmant).astype(jnp.int32) + info.minexp


def _power_of_two(e: Array, dtype: jnp.dtype) -> Array:
    """2^e, written into the bits; for an exponent out of range, the nearest one in it."""
    info = jnp.finfo(dtype)
    whole = jnp.int32 if info.bits == 32 else jnp.int64
    field = jnp.clip(e, info.minexp, info.maxexp - 1).astype(whole) + (1 - info.minexp)
    return lax.bitcast_convert_type(field << info.nmant, dtype)


def unit_scale(v: Float[Array, "..."]) -> Float[Array, "..."]:
    """The power of two that brings v > 0 into [1/2, 1)."""
    return _power_of_two(-_exponent(v), v.dtype)
