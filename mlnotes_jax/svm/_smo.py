r"""The dual of a support vector machine, solved by pairs of variables (SMO) in working sets.

One program serves classification and regression. Over signed duals $\beta \in \mathbb R^n$,

$$\max_\beta\; p^\top\beta - \varepsilon\lVert\beta\rVert_1 - \tfrac12 \beta^\top K \beta
\quad\text{with}\quad \textstyle\sum_i \beta_i = 0,\; l \le \beta \le u,\; l \le 0 \le u .$$

With $v = p - K\beta$, raising $\beta_i$ gains $v_i \mp \varepsilon$ a unit, and lowering $\beta_j$
costs as much. The duals are optimal when no raise gains more than some lowering costs; the largest
difference is the *violation*.

How it is solved. Where `is_held` says so, the Gram matrix is held, and pairs of duals are changed
until the violation is small. Beyond, a working set of duals is chosen, its own Gram matrix is made,
its duals are solved with the rest held fixed, and $v$ is brought up to date in blocks: the memory
is that of the working set's matrix, never $n^2$. The working set grows as soon as the duals
strictly between their bounds would crowd it.

Reference: Fan, Chen & Lin (2005), "Working set selection using second order information for
training support vector machines"; Joachims (1999), "Making large-scale SVM learning practical".
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int, Num

from mlnotes_jax.svm import kernels

__all__ = ["Dual", "is_held", "solve"]

# Up to this many rows, the whole Gram matrix is held (16 MB in float32).
_HELD = 2048
# The same for rows of 64 features or more (100 MB): working sets compute a kernel value three to
# four times, and with that many features its cost is most of all.
_HELD_WIDE, _WIDE = 5120, 64
# Sizes of the working set. A larger one is taken when the free duals nearly fill the smaller; the
# largest only if it holds half of all rows: where the free duals fit in none, a larger one is
# slower (7 s against 15 on 20 000 rows).
_WORKING_SETS = (1024, 2048, 4096, 8192)
_CROWDED = 0.95
# Free duals that stay in the working set, as a share of it. Without them, what one set has solved
# the next one undoes: on 10 000 rows this makes 35 passes out of 217.
_KEPT = 0.5
# Rows and columns of a block of the Gram matrix on a CPU: it stays in the cache of one core.
_BLOCK = 256
# Duals, of those that are not zero, whose rows of a held matrix are summed at a time.
_FEW = 32
# Pairs that are changed between two looks at the violation.
_PAIRS = 8
# Two equal rows have no curvature between them: the step then goes to a bound.
_FLAT = 1e-12
# When rounding has hidden that it is not done, v is computed afresh, and more pairs are changed:
# as long as that makes the violation so many times as small; and near the tolerance, where the
# rounding of v alone may decide, in so many more rounds.
_HELPED = 0.5
_NEAR, _ROUNDS = 2, 3
# Pairs are changed until the violation is this share of the tolerance, less the rounding error; and
# not below the second, which would cost more pairs than all before.
_MARGIN, _LEAST = 0.95, 0.1


def is_held(num_rows: int, num_features: int) -> bool:
    """Whether the Gram matrix of so many rows is held as a whole."""
    return num_rows <= (_HELD_WIDE if num_features >= _WIDE else _HELD)


class Dual(NamedTuple):
    """The solution of a dual problem.

    Attributes:
        beta: Signed duals, shape `(n,)`.
        intercept: The offset b of the decision function `K beta + b`, shape `()`.
        violation: The best raise minus the cheapest lowering, computed afresh from the data,
            shape `()`.
        num_iterations: Pairs of duals changed, shape `()`, int32.
        converged: Whether `violation` is at most `tol`, shape `()`.
    """

    beta: Float[Array, " n"]
    intercept: Float[Array, ""]
    violation: Float[Array, ""]
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]


class _Box(NamedTuple):
    """What the duals may be; `epsilon` is None for classification."""

    lower: Array
    upper: Array
    epsilon: Array | None

    def sides(self, beta: Array, v: Array) -> tuple[Array, Array]:
        """Gain of raising each dual (-inf at its upper bound), cost of lowering it (inf)."""
        gain = cost = v
        if self.epsilon is not None:
            gain = v - jnp.where(beta >= 0, self.epsilon, -self.epsilon)
            cost = v - jnp.where(beta > 0, self.epsilon, -self.epsilon)
        gain = jnp.where(beta < self.upper, gain, -jnp.inf)
        return gain, jnp.where(beta > self.lower, cost, jnp.inf)

    def ends(self, beta: Array, v: Array) -> tuple[Array, Array]:
        """The best raise and the cheapest lowering."""
        gain, cost = self.sides(beta, v)
        return _fold(gain, _larger), _fold(cost, _smaller)

    def free(self, beta: Array) -> Array:
        """Which duals are strictly between their bounds, and not zero."""
        return (beta > self.lower) & (beta < self.upper) & (beta != 0)

    def take(self, rows: Array) -> "_Box":
        return _Box(self.lower[rows], self.upper[rows], self.epsilon)


class _State(NamedTuple):
    beta: Array
    v: Array
    violation: Array
    num_iterations: Array
    recent: Array  # in the last working set


def solve(
    kernel: Any,
    x: Num[Array, "n d"],
    linear: Float[Array, " n"],
    lower: Float[Array, " n"],
    upper: Float[Array, " n"],
    *,
    epsilon: Float[Array, ""] | None = None,
    gram: Float[Array, "n n"] | None = None,
    tol: Float[Array, ""] | float = 1e-3,
    max_iter: Int[Array, ""] | int = 10_000_000,
) -> Dual:
    """Solve the dual problem; see the module for its form.

    Args:
        kernel: A kernel of `kernels`, without an unresolved "scale".
        x: Training rows, shape `(n, d)`.
        linear: p, shape `(n,)`: labels of -1 and 1, or targets. Its dtype is that of the duals; it
            may be wider than that of `x`.
        lower: l, shape `(n,)`, at most zero.
        upper: u, shape `(n,)`, at least zero; a row with `lower == upper == 0` is left out.
        epsilon: Half the width of the tube; None for classification.
        gram: The Gram matrix of `x` where it is known.
        tol: Largest violation that counts as converged.
        max_iter: Largest number of changed pairs, rounded up to a multiple of 8.

    Returns:
        The duals; of a batch one after the other. The violation is recomputed from the data: in
        float64 where it is enabled; in float32 else, and then with an estimate of its rounding
        error added.
    """
    tol, max_iter = jnp.asarray(tol, linear.dtype), jnp.asarray(max_iter, jnp.int32)
    return _solve(kernel, x, linear, lower, upper, epsilon, gram, tol, max_iter)


@jax.custom_batching.custom_vmap
def _solve(
    kernel: Any,
    x: Array,
    linear: Array,
    lower: Array,
    upper: Array,
    epsilon: Array | None,
    gram: Array | None,
    tol: Array,
    max_iter: Array,
) -> Dual:
    n, dtype = x.shape[0], linear.dtype
    size = _padded(n)
    pad = size - n
    rows = _prepared(kernel, x, size)
    linear, lower, upper = (jnp.pad(a, (0, pad)) for a in (linear, lower, upper))
    box = _Box(lower, upper, epsilon)
    held = None
    if gram is not None:
        missing = size - gram.shape[0]
        held = jnp.pad(gram.astype(dtype), ((0, missing), (0, missing)))
    elif is_held(*x.shape):
        held = kernels.prepared_gram(kernel, rows, rows).astype(dtype)
    *smaller, largest = _WORKING_SETS
    sizes = [q for q in smaller if q < size]
    if size <= smaller[-1]:
        sizes.append(size)
    elif largest < size <= 2 * largest:
        sizes.append(largest)

    def improve(state: _State, goal: Array) -> _State:
        if held is not None:
            budget = max_iter - state.num_iterations
            beta, v, k = _change_pairs(held, box, state.beta, state.v, goal, budget)
            return state._replace(beta=beta, v=v, num_iterations=state.num_iterations + k)
        for q in sizes:
            crowded = size if q == sizes[-1] else int(_CROWDED * q)
            state = _passes(kernel, rows, box, state, q, goal, max_iter, crowded)
        return state

    def again(carry: tuple[_State, Array, Array]) -> tuple[_State, Array, Array]:
        before, rounding, idle = carry
        state = improve(before, jnp.maximum(_MARGIN * tol - rounding, _LEAST * tol))
        v, violation, rounding = _recompute(kernel, x, rows, linear, box, state.beta, held)
        idle = jnp.where(violation < _HELPED * before.violation, 0, idle + 1)
        return state._replace(v=v, violation=violation), rounding, idle

    def unfinished(carry: tuple[_State, Array, Array]) -> Array:
        state, rounding, idle = carry
        more = (state.num_iterations < max_iter) & (rounding < (_MARGIN - _LEAST) * tol)
        rounds = jnp.where(state.violation < _NEAR * tol, _ROUNDS, 1)
        return (state.violation > tol) & more & (idle < rounds)

    zero = jnp.zeros(size, dtype)
    best, least = box.ends(zero, linear)
    start = _State(zero, linear, best - least, jnp.int32(0), zero > 0)
    carry = (start, jnp.zeros((), dtype), jnp.int32(0))
    state, _, _ = lax.while_loop(unfinished, again, carry)
    return Dual(
        state.beta[:n],
        _intercept(box, state.beta, state.v),
        state.violation,
        state.num_iterations,
        # Without rows on both sides nothing can be changed, and nothing was learnt: -inf.
        jnp.isfinite(state.violation) & (state.violation <= tol),
    )


@_solve.def_vmap
def _one_by_one(size: int, batched: Sequence[Any], *args: Any) -> tuple[Dual, Any]:
    """A batch: lanes that run together take as many steps as the slowest of them.

    Lanes of one kernel and the same rows (costs, weights, labels) share their Gram matrix.
    """
    kernel, x, *rest, gram, tol, max_iter = args
    if gram is None and is_held(*x.shape[-2:]) and not any(jax.tree.leaves(batched[:2])):
        rows = _prepared(kernel, x, _padded(x.shape[0]))
        gram = kernels.prepared_gram(kernel, rows, rows)
        args = (kernel, x, *rest, gram, tol, max_iter)
        batched = [*batched[:-3], False, *batched[-2:]]
    lanes = jax.tree.leaves(batched)
    leaves, tree = jax.tree.flatten(args)

    def lane(k: Array) -> Dual:
        own = [leaf[k] if many else leaf for leaf, many in zip(leaves, lanes, strict=True)]
        return _solve(*jax.tree.unflatten(tree, own))

    found = lax.map(lane, lax.iota(jnp.int32, size))
    return found, jax.tree.map(lambda _: True, found)


def _passes(
    kernel: Any,
    x: Array,
    box: _Box,
    state: _State,
    q: int,
    goal: Array,
    max_iter: Array | int,
    crowded: int,
) -> _State:
    """Working sets of `q` duals, until done or more than `crowded` duals are free."""

    def one(carry: tuple[_State, Array]) -> tuple[_State, Array]:
        s, _ = carry
        rows, rest = _choose(box, s, q)
        columns = x[rows]
        gram = kernels.prepared_gram(kernel, columns, columns).astype(s.beta.dtype)
        before = s.beta[rows]
        after, v_rows, k = _change_pairs(
            gram,
            box.take(rows),
            before,
            s.v[rows],
            jnp.where(s.violation < 20 * goal, goal / 2, 0.1 * s.violation),
            max_iter - s.num_iterations,
        )
        beta = s.beta.at[rows].set(after)
        v = s.v.at[rows].set(v_rows)
        if rest is not None:
            v = v.at[rest].add(-_times(kernel, x[rest], columns, _used(after - before))[0])
        best, least = box.ends(beta, v)
        recent = jnp.zeros_like(s.recent).at[rows].set(True)
        s = _State(beta, v, best - least, s.num_iterations + k, recent)
        return s, jnp.any(after != before)

    def unfinished(carry: tuple[_State, Array]) -> Array:
        s, changed = carry
        fits = jnp.sum(box.free(s.beta)) <= crowded
        return (s.violation > goal) & (s.num_iterations < max_iter) & changed & fits

    return lax.while_loop(unfinished, one, (state, jnp.ones((), bool)))[0]


def _choose(box: _Box, state: _State, q: int) -> tuple[Array, Array | None]:
    """Rows of the next working set, and all others (None where there are none)."""
    n = state.beta.shape[0]
    if q == n:
        return lax.iota(jnp.int32, n), None
    gain, cost = box.sides(state.beta, state.v)
    middle = (jnp.max(gain) + jnp.min(cost)) / 2
    lead = jnp.maximum(gain - middle, middle - cost)
    # The free duals of the last set come before other free ones, the worst violators first.
    again = lead + jnp.where(state.recent, 2 * jnp.max(jnp.abs(state.v)), 0)
    _, kept = lax.top_k(jnp.where(box.free(state.beta), again, -jnp.inf), int(_KEPT * q))
    _, new = lax.top_k(lead.at[kept].set(-jnp.inf), q - kept.shape[0])
    rows = jnp.concatenate([kept, new])
    outside = jnp.ones(n, bool).at[rows].set(False)
    return rows, jnp.nonzero(outside, size=n - q)[0]


def _change_pairs(
    gram: Array, box: _Box, beta: Array, v: Array, goal: Array, budget: Array | int
) -> tuple[Array, Array, Array]:
    """Change pairs of duals until the violation is at most `goal`: (beta, v, number of pairs)."""
    diagonal = jnp.diagonal(gram)

    rows = lax.iota(jnp.int32, v.shape[0])

    def change(carry: tuple[Array, Array, Array], least: Array) -> tuple[Array, Array, Array]:
        beta, v, moved = carry
        gain, cost = box.sides(beta, v)
        i = _argmax(jnp.maximum(gain - least, 0))
        row_i = lax.dynamic_index_in_dim(gram, i, 0, keepdims=False)
        # Of the duals that i can be paired with, the one whose step raises the objective most.
        best, _ = box.take(i).sides(beta[i], v[i])  # as numbers: then no vector of gains is made
        slope = jnp.maximum(best - cost, 0)
        curve = jnp.maximum(diagonal[i] + diagonal - 2 * row_i, _FLAT)
        j = _argmax(slope * slope / curve)
        row_j = lax.dynamic_index_in_dim(gram, j, 0, keepdims=False)
        # A step ends at a bound, or at zero, where the tube has its kink.
        end_i = jnp.where(beta[i] < 0, jnp.minimum(box.upper[i], 0), box.upper[i])
        end_j = jnp.where(beta[j] > 0, jnp.maximum(box.lower[j], 0), box.lower[j])
        room_i, room_j = end_i - beta[i], beta[j] - end_j
        step = jnp.minimum(jnp.minimum(room_i, room_j), slope[j] / curve[j])
        new_i = jnp.where(step >= room_i, end_i, beta[i] + step)
        new_j = jnp.where(step >= room_j, end_j, beta[j] - step)
        moved |= (new_i != beta[i]) | (new_j != beta[j])
        # One pass over all; to write in two places, the compiler would copy the vector twice.
        beta = jnp.where(rows == i, new_i, jnp.where(rows == j, new_j, beta))
        return beta, v - step * (row_i - row_j), moved

    def some(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        beta, v, k, _, least, _ = carry
        start = (beta, v, jnp.zeros((), bool))
        beta, v, moved = lax.fori_loop(0, _PAIRS, lambda _, c: change(c, least), start)
        return beta, v, k + _PAIRS, *box.ends(beta, v), moved

    def unfinished(carry: tuple[Array, ...]) -> Array:
        _, _, k, best, least, moved = carry
        return (best - least > goal) & (k < budget) & moved

    start = (beta, v, jnp.int32(0), *box.ends(beta, v), jnp.ones((), bool))
    beta, v, k, *_ = lax.while_loop(unfinished, some, start)
    return beta, v, k


def _recompute(
    kernel: Any,
    x: Array,
    rows: Array,
    linear: Array,
    box: _Box,
    beta: Array,
    held: Array | None,
) -> tuple[Array, Array, Array]:
    """The vector v and the violation from the data, and an estimate of their rounding error."""
    dtype, wide = beta.dtype, jnp.result_type(float)
    if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype != wide:
        rows, held = _prepared(kernel, x.astype(wide), beta.shape[0]), None
    exact = beta.astype(wide)
    used = _used(exact)
    if held is None:
        product = _times(kernel, rows, rows, used, careful=True)
    else:
        held = held.astype(wide)
        product = _sum(used, _FEW, held.shape[0], lambda places, _: held[places], careful=True)
    v = (linear.astype(wide) - product[0]) - product[1]
    wide_box = jax.tree.map(lambda a: a.astype(wide), box)
    best, least = wide_box.ends(exact, v)
    rounding = jnp.zeros((), wide)
    if wide == jnp.float32:
        # The two forms of the kernel round differently: how far they part on a few rows shows
        # how far v may be off. Both round the value itself, by a quarter of eps in the mean. Four
        # times the root mean square covers nearly every row; the violation is a difference of two.
        some = np.linspace(0, x.shape[0] - 1, 8).astype(np.int32)

        def pairs(places: Array, _: Array) -> Array:
            values = jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(x[some]))(x[places])
            values = values.astype(wide)
            return jnp.concatenate([values, exact[places][:, None] * values**2], axis=1)

        high, low = _sum(used, _FEW, 2 * len(some), pairs, careful=True)
        away = (high[: len(some)] - product[0][some]) + (low[: len(some)] - product[1][some])
        own = (jnp.finfo(wide).eps / 4) ** 2 * high[len(some) :]
        rounding = 8 * jnp.sqrt(jnp.mean(away**2 + own))
    violation = (best - least + rounding).astype(dtype)
    return v.astype(dtype), violation, rounding.astype(dtype)


def _prepared(kernel: Any, x: Array, size: int) -> Array:
    rows = kernels.prepared(kernel, x)
    return jnp.pad(rows, ((0, size - x.shape[0]), (0, 0)))


class _Used(NamedTuple):
    """The entries of a vector that are not zero; behind them zeros."""

    places: Array
    weights: Array
    num: Array


def _used(weights: Array) -> _Used:
    m = weights.shape[0]
    places = jnp.nonzero(weights, size=m)[0].astype(jnp.int32)
    num = jnp.sum(weights != 0, dtype=jnp.int32)
    return _Used(places, jnp.where(lax.iota(jnp.int32, m) < num, weights[places], 0), num)


def _sum(
    used: _Used,
    width: int,
    num_rows: int,
    values: Callable[[Array, Array], Array],
    *,
    careful: bool = False,
) -> tuple[Array, Array]:
    """A matrix times a vector as a sum of two, for so many entries of the vector at a time.

    `values(places, start)` gives columns of the matrix, one after the other: where they are, and
    how many came before. The second part is what the first has lost by rounding, if that is asked
    for; zero else.
    """
    pad = _round_up(used.weights.shape[0], width) - used.weights.shape[0]
    places, weights = jnp.pad(used.places, (0, pad)), jnp.pad(used.weights, (0, pad))

    def add(k: Array, total: tuple[Array, Array]) -> tuple[Array, Array]:
        share = lax.dynamic_slice_in_dim(weights, k * width, width)
        columns = values(lax.dynamic_slice_in_dim(places, k * width, width), k * width)
        columns = columns.astype(share.dtype)
        return _add(total, share, columns) if careful else (total[0] + share @ columns, total[1])

    zero = jnp.zeros(num_rows, weights.dtype)
    return lax.fori_loop(0, (used.num + width - 1) // width, add, (zero, zero))


def _times(
    kernel: Any, x: Array, columns: Array, used: _Used, *, careful: bool = False
) -> tuple[Array, Array]:
    """K(x, columns) times a vector, in blocks that stay in the cache of a core; as `_sum`."""
    n = x.shape[0]
    columns = columns[used.places]
    columns = jnp.pad(columns, ((0, _round_up(len(columns), _BLOCK) - len(columns)), (0, 0)))

    def some_rows(rows: Array) -> tuple[Array, Array]:
        def values(_: Array, start: Array) -> Array:
            block = lax.dynamic_slice_in_dim(columns, start, _BLOCK)
            return kernels.prepared_gram(kernel, block, rows)

        return _sum(used, _BLOCK, rows.shape[0], values, careful=careful)

    def in_cache(x: Array) -> tuple[Array, Array]:
        x = jnp.pad(x, ((0, _round_up(n, _BLOCK) - n), (0, 0)))
        parts = lax.map(some_rows, x.reshape(-1, _BLOCK, x.shape[1]))
        return jax.tree.map(lambda part: part.reshape(-1)[:n], parts)

    return lax.platform_dependent(x, cpu=in_cache, default=some_rows)


def _add(total: tuple[Array, Array], share: Array, columns: Array) -> tuple[Array, Array]:
    """Add `share @ columns` to a sum of two: in float64, also where it is not enabled.

    Where thousands of terms of the size of C cancel, a sum in float32 hides what is sought.
    """

    def narrow(total: tuple[Array, Array], share: Array, columns: Array) -> tuple[Array, Array]:
        return total[0] + share @ columns, total[1]

    def wide(total: tuple[Array, Array], share: Array, columns: Array) -> tuple[Array, Array]:
        with jax.enable_x64(True):
            high, low, share, columns = (a.astype(jnp.float64) for a in (*total, share, columns))
            found = high + low + share @ columns
            high = found.astype(jnp.float32)
            return high, (found - high.astype(jnp.float64)).astype(jnp.float32)

    if share.dtype == jnp.float64:
        return narrow(total, share, columns)
    return lax.platform_dependent(total, share, columns, tpu=narrow, default=wide)


def _intercept(box: _Box, beta: Array, v: Array) -> Array:
    """The mean of v over free duals; the middle of its interval where none is free."""
    gain, cost = box.sides(beta, v)
    free = box.free(beta)
    count = jnp.sum(free)
    mean = jnp.sum(jnp.where(free, gain, 0)) / jnp.maximum(count, 1).astype(v.dtype)
    return jnp.where(count > 0, mean, (jnp.max(gain) + jnp.min(cost)) / 2)


def _argmax(values: Array) -> Array:
    """An index of the largest of non-negative values, to within 2^(bits - 23) of it.

    Bits of a float that is not negative order as an integer. The lowest make room for the index.
    """
    n = values.shape[0]
    low = (1 << max(1, (n - 1).bit_length())) - 1
    bits = lax.bitcast_convert_type(values.astype(jnp.float32), jnp.int32)
    return _fold((bits & ~low) | lax.iota(jnp.int32, n), jnp.maximum) & low


def _fold(values: Array, op: Callable[[Array, Array], Array]) -> Array:
    """Reduce a vector by folding slices onto each other: ten times as fast as a CPU's reduce."""
    while values.shape[0] > 1:
        n = values.shape[0]
        width = n // max((k for k in range(2, 17) if n % k == 0), default=n)
        parts = [values[k : k + width] for k in range(0, n, width)]
        while len(parts) > 1:
            pairs = [parts[k : k + 2] for k in range(0, len(parts), 2)]
            parts = [op(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
        values = parts[0]
    return values[0]


# Not jnp.maximum: its care for NaN keeps the compiler from using vector instructions.
def _larger(a: Array, b: Array) -> Array:
    return jnp.where(b > a, b, a)


def _smaller(a: Array, b: Array) -> Array:
    return jnp.where(b < a, b, a)


def _padded(n: int) -> int:
    """Rows with those that are added so that vectors fold evenly."""
    return _round_up(n, 64 if n > 64 else 16)


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
