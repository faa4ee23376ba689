r"""The interior-point method behind `duality.solve_qp`, and the derivative of its answer.

The program is $\min \tfrac12 x^\top P x + q^\top x$ with $Ax = b$ and $Cx \le c$. All rows are in
one stack: those of $A$, of $G$, and, where there are bounds, $-I$ and $I$ (never formed); so are
their right sides, and their multipliers $w = (\lambda, \mu)$. A row whose right side is infinite
stays in its place, so that shapes are fixed, but is switched off: `keep` is False, the row acts as
zero, and its slack and multiplier rest at 1.

The method solves the homogeneous embedding (docs/svm/duality.md derives it)

$$Px + A^\top\lambda + C^\top\mu + \tau q = 0,\quad Ax = \tau b,\quad Cx + s = \tau c,\quad
q^\top x + b^\top\lambda + c^\top\mu + x^\top P x / \tau + \kappa = 0$$

with $\mu, s, \tau, \kappa \ge 0$: $\tau > 0$ gives a solution, $\tau = 0$ a certificate. $(\mu,
\tau)$ and $(s, \kappa)$ are two vectors of one length, whose products are to vanish.

Reference: Goulart and Chen, "Clarabel: an interior-point solver for conic programs with quadratic
objectives" (2024); Mehrotra (1992) for the predictor and corrector.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

SOLVED, PRIMAL_INFEASIBLE, DUAL_INFEASIBLE, ITERATION_LIMIT, STALLED = range(5)
_RUNNING = -1

_EQUILIBRATIONS = 8
_REFINEMENTS = 3  # of each direction
_TANGENT_REFINEMENTS = 20  # at most, of a derivative
# Powers of the dtype's spacing. Equalities need more of it: where they contradict each other, a
# step has parts as large as its inverse, which cancel.
_REGULAR, _REGULAR_EQUAL = 0.75, 0.5
_SUSPICION = 1e-3  # error of a proof from which on the objective is set aside
_KEEP_INSIDE = 0.98  # share of the way to the boundary
_SHORTEST_STEP = 1e-6


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["P", "q", "matrix", "right", "keep"],
    meta_fields=["num_equal"],
)
@dataclasses.dataclass(frozen=True)
class Program:
    """Data with finite entries, and which rows count.

    Attributes:
        P: Symmetric, shape `(n, n)`.
        q: Shape `(n,)`.
        matrix: The rows of A, then of G; zero where they do not count; shape `(p + m, n)`.
        right: Right sides of all rows, shape `(r,)`; r is p + m, or p + m + 2n where there are
            bounds; zero where they do not count.
        keep: Rows that count, shape `(r,)`.
        num_equal: p.
    """

    P: Float[Array, "n n"]
    q: Float[Array, " n"]
    matrix: Float[Array, "p+m n"]
    right: Float[Array, " r"]
    keep: Bool[Array, " r"]
    num_equal: int

    @property
    def has_bounds(self) -> bool:
        """Whether the last 2n rows are there."""
        return self.right.size > self.matrix.shape[0]


class Point(NamedTuple):
    """A primal point, and a multiplier for each row."""

    x: Float[Array, " n"]
    w: Float[Array, " r"]


class Measures(NamedTuple):
    """What a point is worth, all of it computed from the data; every one of shape `()`."""

    gap: Array
    primal: Array
    dual: Array
    relative_gap: Array


class Outcome(NamedTuple):
    """How a run ended: the best point, its measures and active rows, and both certificates."""

    point: Point
    measures: Measures
    active: Bool[Array, " r"]
    status: Int[Array, ""]
    num_iterations: Int[Array, ""]
    farkas: Float[Array, " r"]
    farkas_error: Float[Array, ""]
    ray: Float[Array, " n"]
    ray_error: Float[Array, ""]


class _Scale(NamedTuple):
    r"""The units in which the method works: $x = E\hat x$, and so on."""

    x: Array
    rows: Array
    cost: Array


class _Iterate(NamedTuple):
    """A point of the embedding: x, the equalities' multipliers, and two partners."""

    x: Array
    y: Array
    z: Array  # (mu, tau)
    s: Array  # (s, kappa)


class _State(NamedTuple):
    iterate: _Iterate
    best: Point
    best_measures: Measures
    best_active: Array
    best_merit: Array
    errors: tuple[Array, Array]
    status: Array
    k: Array


# --- All rows at once -----------------------------------------------------------------------------


def rows(program: Program, x: Array) -> Array:
    """Multiply by the stack of A, G and the bounds."""
    product = program.matrix @ x
    if program.has_bounds:
        product = jnp.concatenate([product, -x, x])
    return jnp.where(program.keep, product, 0)


def columns(program: Program, w: Array, *, sign: int = -1) -> Array:
    """Multiply by the transpose of the stack; `sign` is that of the lower bounds' rows."""
    w = jnp.where(program.keep, w, 0)
    r, n = program.matrix.shape
    product = w[:r] @ program.matrix
    if program.has_bounds:
        product = product + (w[r + n :] + sign * w[r : r + n])
    return product


def _absolute(program: Program) -> Program:
    return jax.tree.map(jnp.abs, program)


def _is_equal(program: Program) -> Array:
    return jnp.arange(program.right.size) < program.num_equal


def _clip(program: Program, x: Array, low: Array, high: Array) -> Array:
    """Put x between `low` and `high` where there are bounds."""
    if not program.has_bounds:
        return x
    r, n = program.matrix.shape
    x = jnp.where(program.keep[r : r + n], jnp.maximum(x, low), x)
    return jnp.where(program.keep[r + n :], jnp.minimum(x, high), x)


def within_bounds(program: Program, x: Array) -> Array:
    """Put x within its bounds."""
    r, n = program.matrix.shape
    return _clip(program, x, -program.right[r : r + n], program.right[r + n :])


# --- What is true of a point, from the data -------------------------------------------------------


def objectives(program: Program, point: Point) -> tuple[Array, Array]:
    """The objective, and the dual function where the gradient of the Lagrangian is zero."""
    x, w = point
    half = 0.5 * (x @ (program.P @ x))
    return half + program.q @ x, -half - program.right @ w


def absorb(program: Program, residual: Array, w: Array) -> tuple[Array, Array]:
    """Give a residual of the dual equality to the multipliers of finite bounds.

    Returns:
        The residual that is left (of variables without a bound on the side that would help), and
        the multipliers.
    """
    if not program.has_bounds:
        return residual, w
    r, n = program.matrix.shape
    # A positive residual wants more of the lower bound's multiplier, which enters with a minus.
    below = jnp.where(program.keep[r : r + n], jnp.maximum(residual, 0), 0)
    above = jnp.where(program.keep[r + n :], jnp.maximum(-residual, 0), 0)
    more = jnp.concatenate([jnp.zeros_like(w[:r]), below, above])
    return residual - below + above, w + more


def examine(program: Program, point: Point, ray: Array) -> tuple[Measures, Array, Array]:
    """Measure a point, its multipliers as a proof of infeasibility, and a direction as another.

    Each residual is divided by the sum of the absolute values of the terms that it is made of, and
    a unit: of a row, its largest coefficient; of the gradient, the largest entry of q; of the
    objective, the same, or what it falls along the way to where P bends it back.
    """
    absolute = _absolute(program)
    x, w = point
    both = jnp.stack([x, ray], axis=1)
    size, w_size = jnp.abs(both), jnp.abs(w)
    curved, curved_size = program.P @ both, absolute.P @ size
    products = jax.vmap(functools.partial(rows, program), 1, 1)(both)
    # A bound's row has one entry, 1, and |x| stands for both signs of it.
    products_size = jnp.abs(jax.vmap(functools.partial(rows, absolute), 1, 1)(size))
    pull = columns(program, w)
    pull_size = columns(absolute, w_size, sign=1)
    slope, bend = absolute.q.max(), absolute.P.max()
    slope = jnp.where(slope > 0, slope, jnp.where(bend > 0, bend, 1))
    # The objective bends back within x = slope / bend, where that is less than 1.
    unit = slope * jnp.minimum(1, slope / jnp.where(bend > 0, bend, slope))

    equal = _is_equal(program)
    left = products[:, 0] - program.right
    broken = jnp.where(equal, jnp.abs(left), jnp.maximum(left, 0))
    largest = jnp.max(absolute.matrix, axis=1, initial=0)
    if program.has_bounds:
        largest = jnp.concatenate([largest, jnp.ones(2 * x.size, x.dtype)])
    gradient = curved[:, 0] + program.q + pull
    quadratic = x @ curved[:, 0]
    gap = x @ gradient - w @ left
    measures = Measures(
        gap=gap,
        primal=_largest_ratio(broken, largest + products_size[:, 0] + absolute.right),
        dual=_largest_ratio(jnp.abs(gradient), slope + curved_size[:, 0] + absolute.q + pull_size),
        relative_gap=jnp.abs(gap) / (unit + jnp.abs(quadratic) + absolute.q @ size[:, 0]),
    )

    unabsorbed, w = absorb(program, pull, w)
    farkas_error = _proof_error(
        jnp.max(jnp.abs(unabsorbed)), jnp.max(pull_size), absolute.right @ w, program.right @ w
    )
    along = products[:, 1]
    wrong = jnp.concatenate(
        [jnp.abs(curved[:, 1]), jnp.where(equal, jnp.abs(along), jnp.maximum(along, 0))]
    )
    terms = jnp.concatenate([curved_size[:, 1], products_size[:, 1]])
    ray_error = _proof_error(wrong.max(), terms.max(), absolute.q @ size[:, 1], program.q @ ray)
    return measures, farkas_error, ray_error


def _proof_error(residual: Array, terms: Array, right: Array, value: Array) -> Array:
    """Residual per value, in units of the point that it would take to break the proof."""
    natural = jnp.where(terms > 0, jnp.abs(right) / jnp.where(terms > 0, terms, 1), 0)
    error = residual * (1 + natural) / jnp.where(value < 0, -value, 1)
    return jnp.where((value < 0) & jnp.isfinite(value), error, jnp.inf)


def _largest_ratio(numerator: Array, denominator: Array) -> Array:
    return jnp.max(numerator / jnp.where(denominator > 0, denominator, 1), initial=0)


# --- The method -----------------------------------------------------------------------------------


def solve(program: Program, tol: Array, max_iter: Array) -> Outcome:
    """Run the method until something is proved."""
    with jax.default_matmul_precision("highest"):
        return _solve(program, tol, max_iter)


def _solve(program: Program, tol: Array, max_iter: Array) -> Outcome:
    scaled, scale = _equilibrate(program)
    dtype, p = program.q.dtype, program.num_equal
    inequalities = jnp.ones(program.right.size - p + 1, dtype)
    start = _Iterate(jnp.zeros_like(program.q), jnp.zeros(p, dtype), inequalities, inequalities)
    unknown = jnp.asarray(jnp.nan, dtype)

    def body(state: _State) -> _State:
        # With P = q = 0 the embedding converges as fast as that of a linear program; with them, a
        # proof of infeasibility comes as slowly as the square root of tau.
        doubt = (state.errors[0] < _SUSPICION) & (state.iterate.s[-1] > 10 * state.iterate.z[-1])
        plain = jnp.where(doubt, 0, 1).astype(dtype)
        now = dataclasses.replace(scaled, P=plain * scaled.P, q=plain * scaled.q)
        new, length = _advance(now, state.iterate)
        moved = jnp.all(jnp.isfinite(jnp.concatenate(new))) & (length > _SHORTEST_STEP)
        iterate = jax.tree.map(lambda a, b: jnp.where(moved, a, b), new, state.iterate)
        point, ray = _meaning(program, scale, iterate)
        measures, *errors = examine(program, point, ray)
        merit = jnp.maximum(jnp.maximum(measures.primal, measures.dual), measures.relative_gap)
        better = merit < state.best_merit  # a NaN is not better
        active = jnp.concatenate([jnp.ones(p, bool), (iterate.z > iterate.s)[:-1]])
        best, best_measures, active, best_merit = jax.tree.map(
            lambda a, b: jnp.where(better, a, b),
            (point, measures, active, merit),
            (state.best, state.best_measures, state.best_active, state.best_merit),
        )
        status = jnp.where(moved, _RUNNING, STALLED)
        status = jnp.where(errors[1] <= tol, DUAL_INFEASIBLE, status)
        status = jnp.where(errors[0] <= tol, PRIMAL_INFEASIBLE, status)
        status = jnp.where(merit <= tol, SOLVED, status)
        return _State(
            iterate=iterate,
            best=best,
            best_measures=best_measures,
            best_active=active,
            best_merit=best_merit,
            errors=(errors[0], errors[1]),
            status=status.astype(jnp.int32),
            k=state.k + 1,
        )

    end = lax.while_loop(
        lambda state: (state.status == _RUNNING) & (state.k < max_iter),
        body,
        _State(
            iterate=start,
            best=Point(start.x, jnp.zeros_like(program.right)),
            best_measures=Measures(unknown, unknown, unknown, unknown),
            best_active=jnp.zeros_like(program.keep),
            best_merit=jnp.asarray(jnp.inf, dtype),
            errors=(unknown, unknown),
            status=jnp.int32(_RUNNING),
            k=jnp.int32(0),
        ),
    )
    (_, w), ray = _meaning(program, scale, end.iterate)
    _, w = absorb(program, columns(program, w), w)
    return Outcome(
        point=end.best,
        measures=end.best_measures,
        active=end.best_active & program.keep,
        status=jnp.where(end.status == _RUNNING, ITERATION_LIMIT, end.status),
        num_iterations=end.k,
        farkas=w / jnp.abs(program.right @ w),
        farkas_error=end.errors[0],
        ray=ray / jnp.abs(program.q @ ray),
        ray_error=end.errors[1],
    )


def _meaning(program: Program, scale: _Scale, iterate: _Iterate) -> tuple[Point, Array]:
    """The point that an iterate stands for, within its bounds; and the direction."""
    tau = iterate.z[-1]
    direction = scale.x * iterate.x
    w = scale.rows * jnp.concatenate([iterate.y, iterate.z[:-1]]) / (scale.cost * tau)
    point = Point(within_bounds(program, direction / tau), jnp.where(program.keep, w, 0))
    return point, _clip(program, direction, jnp.zeros_like(tau), jnp.zeros_like(tau))


def _equilibrate(program: Program) -> tuple[Program, _Scale]:
    """Choose units in which every row and column of the KKT matrix has a largest entry near 1."""
    absolute = _absolute(program)

    def gentle(size: Array) -> Array:
        return lax.rsqrt(jnp.where(size > 0, size, 1))

    def scaled(matrix: Array, left: Array, right: Array) -> Array:
        return left[:, None] * matrix * right[None]

    def balance(_: Array, units: tuple[Array, Array]) -> tuple[Array, Array]:
        e, f = units
        matrix = scaled(absolute.matrix, f, e)
        column = jnp.maximum(
            scaled(absolute.P, e, e).max(axis=0), jnp.max(matrix, axis=0, initial=0)
        )
        return e * gentle(column), f * gentle(jnp.max(matrix, axis=1, initial=0))

    start = jnp.ones_like(program.q), jnp.ones(program.matrix.shape[0], program.q.dtype)
    e, f = lax.fori_loop(0, _EQUILIBRATIONS, balance, start)
    P, q = scaled(program.P, e, e), e * program.q
    largest = jnp.maximum(jnp.abs(P).max(axis=0).mean(), jnp.abs(q).max())
    cost = 1 / jnp.where(largest > 0, largest, 1)
    units = jnp.concatenate([f, 1 / e, 1 / e]) if program.has_bounds else f
    return (
        Program(
            P=cost * P,
            q=cost * q,
            matrix=scaled(program.matrix, f, e),
            right=units * program.right,
            keep=program.keep,
            num_equal=program.num_equal,
        ),
        _Scale(e, units, cost),
    )


def _advance(program: Program, now: _Iterate) -> tuple[_Iterate, Array]:
    """One predictor and corrector with one factorisation."""
    x, y, z, s = now
    p, tau, kappa = program.num_equal, z[-1], s[-1]
    inequality = program.keep[p:]
    keep = jnp.append(inequality, True)
    none = jnp.zeros_like(y)
    spread = jnp.concatenate([none, (s / z)[:-1]])
    system = _System(program, spread, (z / s)[:-1])

    w = jnp.concatenate([y, z[:-1]])
    px, xi = program.P @ x, x / tau
    r_x = px + columns(program, w) + tau * program.q
    slack = jnp.where(inequality, s[:-1], 0)
    r_w = rows(program, x) + jnp.concatenate([none, slack]) - tau * program.right
    r_tau = kappa + program.q @ x + program.right @ w + xi @ px
    products = jnp.where(keep, s * z, 0)
    mu = products.sum() / keep.sum(dtype=tau.dtype)

    def right_sides(rest: Array, products: Array) -> Point:
        extra = jnp.concatenate([none, (products / z)[:-1]])
        return Point(-rest * r_x, extra - rest * r_w)

    # The right sides of the embedding's own column and of the predictor, in one solve.
    one = jnp.ones_like(tau)
    predictor = right_sides(one, products)
    pair = system.solve(
        Point(
            jnp.stack([-program.q, predictor.x], axis=1),
            jnp.stack([program.right, predictor.w], axis=1),
        )
    )
    column, predictor = (Point(*(part[:, i] for part in pair)) for i in (0, 1))
    slope = program.q + 2 * (px / tau)
    off = column.x - xi
    # The sum of squares that the column's product amounts to: no cancellation. The product itself
    # is larger where regularisation mattered, as with equalities that contradict each other.
    squares = off @ (program.P @ off) + column.w @ (spread * column.w)
    product = xi @ px / tau - slope @ column.x - program.right @ column.w
    size = jnp.maximum(squares, product) + kappa / tau

    def finish(part: Point, rest: Array, products: Array) -> _Iterate:
        tail = slope @ part.x + program.right @ part.w
        step = (rest * r_tau - products[-1] / tau + tail) / size
        dx, dw = part.x + step * column.x, part.w + step * column.w
        dz = jnp.append(dw[p:], step)
        return _Iterate(dx, dw[:p], dz, jnp.where(keep, -(products + s * dz) / z, 0))

    affine = finish(predictor, one, products)
    sigma = (1 - jnp.minimum(_longest(now, affine), 1)) ** 3
    aim = products + jnp.where(keep, affine.s * affine.z - sigma * mu, 0)
    corrector = system.solve(Point(*(part[:, None] for part in right_sides(1 - sigma, aim))))
    step = finish(Point(*(part[:, 0] for part in corrector)), 1 - sigma, aim)
    length = jnp.minimum(_KEEP_INSIDE * _longest(now, step), 1)
    x, y, z, s = (a + length * b for a, b in zip(now, step, strict=True))
    # The embedding is homogeneous: any multiple of a point is the same point.
    unit = 1 / jnp.maximum(z[-1], s[-1])
    z, s = (jnp.where(keep, unit * part, 1) for part in (z, s))
    return _Iterate(unit * x, unit * y, z, s), length


def _longest(now: _Iterate, step: _Iterate) -> Array:
    """How many steps fit before s, z, tau or kappa reaches zero."""
    value = jnp.concatenate([now.z, now.s])
    fall = -jnp.concatenate([step.z, step.s])
    return jnp.min(jnp.where(fall > 0, value / jnp.where(fall > 0, fall, 1), jnp.inf))


class _System:
    r"""The matrix $[P, R^\top; R, -W]$ with the rows R and a diagonal $W \ge 0$, factored.

    W is zero for equalities. The other rows are eliminated with the weights $D$ (by rights
    $W^{-1}$), and $P + C^\top D C$ and $A$ make one matrix, which is factored once. Refinement on
    the full matrix takes out what elimination, and a little regularisation, put in.
    """

    def __init__(self, program: Program, diagonal: Array, weight: Array) -> None:
        self.program, self.diagonal, self.weight = program, diagonal, weight
        (r, n), p = program.matrix.shape, program.num_equal
        weight = jnp.where(program.keep[p:], weight, 0)
        A, G, of_g = program.matrix[:p], program.matrix[p:], weight[: r - p]
        top = program.P + (G.T * of_g[None]) @ G
        if program.has_bounds:
            top = top + jnp.diag(weight[r - p : r - p + n] + weight[r - p + n :])
        epsilon = float(jnp.finfo(top.dtype).eps)
        # Units in which the diagonal is 1: the weights span twenty orders of magnitude.
        of_x = lax.rsqrt(jnp.maximum(jnp.diagonal(top), epsilon**0.5))
        A = A * of_x[None]
        lengths = jnp.sum(A * A, axis=1)
        of_y = lax.rsqrt(jnp.where(lengths > 0, lengths, 1))
        A = of_y[:, None] * A
        small = jnp.where(jnp.arange(n + p) < n, epsilon**_REGULAR, -(epsilon**_REGULAR_EQUAL))
        small = small.astype(top.dtype)
        matrix = jnp.block(
            [[of_x[:, None] * top * of_x[None], A.T], [A, jnp.zeros((p, p), top.dtype)]]
        )
        self.units = jnp.concatenate([of_x, of_y])[:, None]
        self.factors, _, self.order = lax.linalg.lu(matrix + jnp.diag(small))

    def solve(self, right: Point) -> Point:
        """Solve for the columns of `right`, with a few rounds of refinement."""

        def refine(_: Array, answer: Point) -> Point:
            return _add(answer, self.solve_once(self.residual(right, answer)))

        # From zero, so that the program holds one solve and not several.
        zero = jax.tree.map(jnp.zeros_like, right)
        return lax.fori_loop(0, 1 + _REFINEMENTS, refine, zero)

    def solve_once(self, right: Point) -> Point:
        """Eliminate, substitute, and put back."""
        n, p = self.program.q.size, self.program.num_equal
        weight = jnp.concatenate([jnp.zeros(p, self.weight.dtype), self.weight])[:, None]
        both = jnp.concatenate([right.x + self._columns(weight * right.w), right.w[:p]])
        both = (self.units * both)[self.order]
        both = lax.linalg.triangular_solve(
            self.factors, both, left_side=True, lower=True, unit_diagonal=True
        )
        both = self.units * lax.linalg.triangular_solve(self.factors, both, left_side=True)
        x = both[:n]
        w = weight * (self._rows(x) - right.w)
        return Point(x, jnp.concatenate([both[n:], w[p:]]))

    def residual(self, right: Point, answer: Point) -> Point:
        """What is left of `right`, by the full matrix."""
        x, w = answer
        return Point(
            right.x - (self.program.P @ x + self._columns(w)),
            right.w - (self._rows(x) - self.diagonal[:, None] * w),
        )

    def _rows(self, x: Array) -> Array:
        return jax.vmap(functools.partial(rows, self.program), 1, 1)(x)

    def _columns(self, w: Array) -> Array:
        return jax.vmap(functools.partial(columns, self.program), 1, 1)(w)


def _add(a: Point, b: Point) -> Point:
    return Point(a.x + b.x, a.w + b.w)


# --- The derivative -------------------------------------------------------------------------------


@jax.custom_jvp
def attach(program: Program, point: Point, active: Array, solved: Array) -> Point:
    """Return `point`, as a function of the program: with the derivative of its KKT conditions.

    Args:
        program: The data, to differentiate by.
        point: Its solution.
        active: Which rows hold with equality.
        solved: Where False, the derivative is NaN.

    Returns:
        `point`.
    """
    del program, active, solved
    return point


@attach.defjvp
def _attach_jvp(primals: tuple, tangents: tuple) -> tuple[Point, Point]:
    with jax.default_matmul_precision("highest"):
        return _implicit(primals, tangents)


def _implicit(primals: tuple, tangents: tuple) -> tuple[Point, Point]:
    program, point, active, solved = primals
    point = attach(program, point, active, solved)

    def conditions(P: Array, q: Array, matrix: Array, right: Array) -> Point:
        here = Program(P, q, matrix, right, program.keep, program.num_equal)
        x, w = point
        return Point(
            here.P @ x + here.q + columns(here, w),
            jnp.where(active, rows(here, x) - here.right, 0),
        )

    def data(program: Any) -> tuple[Any, ...]:
        return program.P, program.q, program.matrix, program.right

    _, change = jax.jvp(conditions, data(program), data(tangents[0]))

    n = program.q.size

    def matrix(change: Array) -> Array:
        x, w = change[:n], change[n:]
        top = program.P @ x + columns(program, jnp.where(active, w, 0))
        return jnp.concatenate([top, jnp.where(active, rows(program, x), -w)])

    def invert(_: object, right: Array) -> Array:
        return jnp.concatenate(_solve_active(program, active, Point(right[:n], right[n:])))

    # One vector: a part of it that does not depend on the data could not be transposed.
    right = -jnp.concatenate(change)
    answer = lax.custom_linear_solve(matrix, right, invert, symmetric=True)
    # A product, not a `where`: NaN must reach the data in reverse mode too.
    valid = jnp.where(solved, 1, jnp.nan).astype(program.q.dtype)
    return point, Point(valid * answer[:n], valid * answer[n:])


def _solve_active(program: Program, active: Array, right: Point) -> Point:
    r"""Solve $[P, R_a^\top; R_a, 0]$ with the active rows; NaN where that has no solution.

    The preconditioner has $-1/\rho$ in the corner of the inequalities, which is the same
    elimination as in the method with weights $\rho$; refinement takes the $\rho$ out.
    """
    only = Program(program.P, program.q, program.matrix, program.right, active, program.num_equal)
    scaled, scale = _equilibrate(only)
    dtype, p = program.q.dtype, program.num_equal
    epsilon = float(jnp.finfo(dtype).eps)
    weight = jnp.where(active[p:], jnp.asarray(epsilon**-0.375, dtype), 1)
    system = _System(scaled, jnp.where(active, 0, 1).astype(dtype), weight)
    b = Point(scale.cost * scale.x * right.x, jnp.where(active, scale.rows * right.w, right.w))
    b = Point(b.x[:, None], b.w[:, None])
    goal = _size(b) * 4 * epsilon

    def unfinished(carry: tuple[Point, Point, Array]) -> Array:
        _, left, k = carry
        return (_size(left) > goal) & (k < _TANGENT_REFINEMENTS)

    def refine(carry: tuple[Point, Point, Array]) -> tuple[Point, Point, Array]:
        answer, left, k = carry
        new = _add(answer, system.solve_once(left))
        new_left = system.residual(b, new)
        better = _size(new_left) < _size(left)
        answer, left = jax.tree.map(
            lambda u, v: jnp.where(better, u, v), (new, new_left), (answer, left)
        )
        return answer, left, jnp.where(better, k + 1, _TANGENT_REFINEMENTS)

    zero = jax.tree.map(jnp.zeros_like, b)
    answer, left, _ = lax.while_loop(unfinished, refine, (zero, b, jnp.int32(0)))
    good = _size(left) <= epsilon ** (1 / 3) * _size(b)
    valid = jnp.where(good, 1, jnp.nan).astype(dtype)
    w = answer.w[:, 0]
    return Point(
        valid * scale.x * answer.x[:, 0],
        valid * jnp.where(active, scale.rows * w / scale.cost, w),
    )


def _size(point: Point) -> Array:
    return jnp.maximum(jnp.max(jnp.abs(point.x)), jnp.max(jnp.abs(point.w), initial=0))
