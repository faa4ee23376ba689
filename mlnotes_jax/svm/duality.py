r"""Duality: a second problem whose every value is a bound for the first.

The problem is to minimise $f(x)$ subject to $h(x) = 0$ and $g(x) \le 0$. Its Lagrangian, with one
multiplier for each constraint, and its dual function are

$$L(x, \lambda, \mu) = f(x) + \lambda^\top h(x) + \mu^\top g(x), \qquad
d(\lambda, \mu) = \inf_x L(x, \lambda, \mu) .$$

For $\mu \ge 0$, $d(\lambda, \mu) \le f(x)$ at every feasible $x$ (weak duality). `kkt_residuals`
says how far a point and its multipliers are from the conditions of Karush, Kuhn and Tucker;
`solve_qp` solves convex quadratic programs

$$\min_x\ \tfrac12 x^\top P x + q^\top x \quad\text{with}\quad A x = b,\ G x \le h,\ l \le x \le u$$

or proves that there is nothing to solve.

Reference: Boyd and Vandenberghe, *Convex Optimization* (2004), chapter 5 and section 11.7.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.svm import _qp

__all__ = [
    "QP",
    "STATUSES",
    "Certificate",
    "KKTResiduals",
    "Multipliers",
    "Problem",
    "QPMultipliers",
    "QPResiduals",
    "QPSolution",
    "dual_bound",
    "dual_function",
    "duality_gap",
    "kkt_residuals",
    "lagrangian",
    "solve_qp",
]

#: What `QPSolution.status` counts in: `STATUSES[int(solution.status)]`.
STATUSES = ("solved", "primal_infeasible", "dual_infeasible", "iteration_limit", "stalled")


class Problem(NamedTuple):
    """Minimise `objective(x)` subject to `equality(x) == 0` and `inequality(x) <= 0`.

    Attributes:
        objective: Differentiable map from a pytree of real arrays to a scalar.
        equality: Map to an array of any shape, or None.
        inequality: Map to an array of any shape, or None.
    """

    objective: Callable[[Any], Array]
    equality: Callable[[Any], Array] | None = None
    inequality: Callable[[Any], Array] | None = None


class Multipliers(NamedTuple):
    r"""One multiplier for each constraint of a `Problem`.

    Attributes:
        equality: $\lambda$, of the shape of `equality(x)`; None where there is none.
        inequality: $\mu$, of the shape of `inequality(x)`; None where there is none.
    """

    equality: Array | None = None
    inequality: Array | None = None


class KKTResiduals(NamedTuple):
    r"""How far a point and its multipliers are from the four conditions; all zero where they hold.

    Attributes:
        stationarity: $\nabla_x L(x, \lambda, \mu)$, a pytree like $x$.
        equality: $h(x)$.
        inequality: $\max(g(x), 0)$: how far each inequality is broken.
        dual: $\max(-\mu, 0)$: how negative each multiplier is.
        complementarity: $\mu_j\, g_j(x)$.
        largest: The largest absolute value of all these, shape `()`.
    """

    stationarity: PyTree[Array]
    equality: Array
    inequality: Array
    dual: Array
    complementarity: Array
    largest: Float[Array, ""]


class QP(NamedTuple):
    r"""The data of a quadratic program, in the order of the arguments of `solve_qp`.

    Attributes:
        P: Symmetric and positive semidefinite, shape `(n, n)`.
        q: Shape `(n,)`.
        A: Shape `(p, n)`, or None.
        b: Shape `(p,)`, or None.
        G: Shape `(m, n)`, or None.
        h: Shape `(m,)`, or None; an infinite entry switches its row off.
        lower: $l$, shape `(n,)` or `()`, or None; an entry may be `-inf`.
        upper: $u$, shape `(n,)` or `()`, or None; an entry may be `inf`.
    """

    P: Float[ArrayLike, "n n"]
    q: Float[ArrayLike, " n"]
    A: Float[ArrayLike, "p n"] | None = None
    b: Float[ArrayLike, " p"] | None = None
    G: Float[ArrayLike, "m n"] | None = None
    h: Float[ArrayLike, " m"] | None = None
    lower: Float[ArrayLike, "..."] | None = None
    upper: Float[ArrayLike, "..."] | None = None


class QPMultipliers(NamedTuple):
    r"""Multipliers of a quadratic program.

    The Lagrangian is $\tfrac12 x^\top P x + q^\top x + \lambda^\top (Ax - b) + \mu^\top (Gx - h) +
    \mu_l^\top (l - x) + \mu_u^\top (x - u)$.

    Attributes:
        equality: $\lambda$, shape `(p,)`.
        inequality: $\mu \ge 0$, shape `(m,)`.
        lower: $\mu_l \ge 0$, shape `(n,)`; zero where there is no bound.
        upper: $\mu_u \ge 0$, shape `(n,)`; zero where there is no bound.
    """

    equality: Float[Array, " p"]
    inequality: Float[Array, " m"]
    lower: Float[Array, " n"]
    upper: Float[Array, " n"]


class QPResiduals(NamedTuple):
    r"""Relative residuals of a point, computed from the data; each is compared with `tol`.

    Each number is an absolute residual over the sum of the absolute values of the terms that it is
    made of, and a unit. The unit is a constraint's largest coefficient; for the gradient, the
    largest entry $\hat q$ of $|q|$ (of $|P|$, where $q = 0$); for the gap, $\hat q \min(1, \hat q /
    \hat p)$ with the largest entry $\hat p$ of $|P|$. So the units in which a row or the objective
    is given do not matter.

    Attributes:
        primal: The constraint that is broken most, shape `()`.
        dual: The largest entry of the gradient of the Lagrangian, shape `()`.
        gap: The duality gap, shape `()`.
    """

    primal: Float[Array, ""]
    dual: Float[Array, ""]
    gap: Float[Array, ""]


class Certificate(NamedTuple):
    r"""Proof that a program has no feasible point, or that its dual has none.

    Attributes:
        duals: Where the status is `"primal_infeasible"`: $\lambda$ and $\mu, \mu_l, \mu_u \ge 0$
            with $A^\top\lambda + G^\top\mu - \mu_l + \mu_u = 0$ and $b^\top\lambda + h^\top\mu -
            l^\top \mu_l + u^\top\mu_u = -1$ (Farkas); NaN elsewhere.
        direction: Where the status is `"dual_infeasible"`: $d$ with $Pd = 0$, $Ad = 0$, $Gd \le 0$,
            $q^\top d = -1$, and $d_i \ge 0$ where $l_i$ is finite, $d_i \le 0$ where $u_i$ is;
            shape `(n,)`; NaN elsewhere.
        residual: How far the equations are from zero, relative to what it would take to break the
            proof, shape `()`; at most `tol`; NaN where there is no certificate.
    """

    duals: QPMultipliers
    direction: Float[Array, " n"]
    residual: Float[Array, ""]


class QPSolution(NamedTuple):
    """How `solve_qp` ended.

    Attributes:
        x: The minimiser, shape `(n,)`; the best point found where the status is
            `"iteration_limit"` or `"stalled"`; NaN where it is infeasible.
        duals: Its multipliers; NaN where it is infeasible.
        objective: At `x`, shape `()`; `inf` where no point is feasible; NaN where the dual has
            none.
        dual_objective: Of `duals`, shape `()`; `-inf` where the dual has no feasible point; NaN
            where the primal has none.
        gap: Their difference, computed from slacks, shape `()`.
        residuals: Recomputed from the data; all at most `tol` where the status is `"solved"`.
        num_iterations: How many steps were taken, shape `()`.
        status: Index into `STATUSES`, shape `()`.
        certificate: Where something is infeasible, the proof.
    """

    x: Float[Array, " n"]
    duals: QPMultipliers
    objective: Float[Array, ""]
    dual_objective: Float[Array, ""]
    gap: Float[Array, ""]
    residuals: QPResiduals
    num_iterations: Int[Array, ""]
    status: Int[Array, ""]
    certificate: Certificate

    @property
    def solved(self) -> Bool[Array, ""]:
        """Whether the status is `"solved"`."""
        return self.status == _qp.SOLVED


def lagrangian(problem: Problem, x: PyTree[Array], dual: Multipliers) -> Float[Array, ""]:
    r"""Evaluate $L(x, \lambda, \mu) = f(x) + \lambda^\top h(x) + \mu^\top g(x)$.

    Args:
        problem: What is minimised, and subject to what.
        x: A point, any pytree of real arrays; it need not be feasible.
        dual: A multiplier for each constraint.

    Returns:
        The value, shape `()`.

    Raises:
        ValueError: `dual` does not fit the constraints, or the objective is not a scalar.
        TypeError: Something is not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import duality
        >>> problem = duality.Problem(lambda x: x @ x, inequality=lambda x: 1 - x.sum())
        >>> dual = duality.Multipliers(inequality=jnp.array(1.0))
        >>> print(duality.lagrangian(problem, jnp.array([0.5, 0.5]), dual))
        0.5
    """
    return _lagrangian(problem, *_pair(problem, x, dual))


def kkt_residuals(problem: Problem, x: PyTree[Array], dual: Multipliers) -> KKTResiduals:
    r"""Measure how far a point and its multipliers are from the Karush-Kuhn-Tucker conditions.

    $$\nabla f(x) + \sum_i \lambda_i \nabla h_i(x) + \sum_j \mu_j \nabla g_j(x) = 0, \quad
    h(x) = 0,\ g(x) \le 0, \quad \mu \ge 0, \quad \mu_j\, g_j(x) = 0 .$$

    The derivatives are taken by automatic differentiation. For a convex problem, residuals of zero
    prove that $x$ is a minimum; without convexity they are necessary only (and that under a
    constraint qualification).

    Args:
        problem: What is minimised, and subject to what.
        x: A point, any pytree of real arrays.
        dual: A multiplier for each constraint.

    Returns:
        The residual of each condition, and the largest; absolute, in the units of the problem.

    Raises:
        ValueError: `dual` does not fit the constraints, or the objective is not a scalar.
        TypeError: Something is not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import duality
        >>> problem = duality.Problem(lambda x: x @ x, inequality=lambda x: 1 - x.sum())
        >>> dual = duality.Multipliers(inequality=jnp.array(1.0))
        >>> print(duality.kkt_residuals(problem, jnp.array([0.5, 0.5]), dual).largest)
        0.0

    Reference: Boyd and Vandenberghe, *Convex Optimization* (2004), section 5.5.3.
    """
    x, dual = _pair(problem, x, dual)
    stationarity = jax.grad(lambda x: _lagrangian(problem, x, dual))(x)
    empty = jnp.zeros(0, jnp.result_type(float))
    equality = empty if problem.equality is None else jnp.asarray(problem.equality(x))
    inequality = wrong = complementarity = empty
    if problem.inequality is not None and dual.inequality is not None:
        values = jnp.asarray(problem.inequality(x))
        inequality, wrong = jnp.maximum(values, 0), jnp.maximum(-dual.inequality, 0)
        complementarity = dual.inequality * values
    parts = (stationarity, equality, inequality, wrong, complementarity)
    sizes = [jnp.max(jnp.abs(part), initial=0) for part in jax.tree.leaves(parts)]
    dtype = _widest(sizes)
    return KKTResiduals(*parts, largest=jnp.max(jnp.stack([size.astype(dtype) for size in sizes])))


def dual_function(
    qp: QP, duals: QPMultipliers, *, tol: Float[ArrayLike, ""] | None = None
) -> Float[Array, ""]:
    r"""Evaluate the dual function of a quadratic program, $\inf_x L(x, \lambda, \mu)$.

    With $c = q + A^\top\lambda + G^\top\mu - \mu_l + \mu_u$ the Lagrangian is
    $\tfrac12 x^\top P x + c^\top x$ and a constant. If $c = Pv$ for some $v$, the infimum is

    $$d = -\tfrac12\, c^\top P^+ c - b^\top\lambda - h^\top\mu + l^\top\mu_l - u^\top\mu_u ,$$

    and $-\infty$ otherwise. It bounds the minimum from below where all $\mu \ge 0$.

    Args:
        qp: The program.
        duals: Multipliers; their signs are not checked.
        tol: An eigenvalue of P below `tol` times the largest counts as zero, and so does the part
            of c in their directions if its length is at most `tol` times the sum of the lengths of
            c's terms. By default the square root of the dtype's spacing.

    Returns:
        The value, shape `()`; `-inf` where the Lagrangian has no lower bound.

    Raises:
        ValueError: Shapes do not match, or the data are not a convex program, as in `solve_qp`.
        TypeError: Something is not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import duality
        >>> qp = duality.QP([[2.0]], [0.0], lower=1.0)  # minimise x^2 with x >= 1
        >>> at = lambda mu: duality.QPMultipliers(jnp.zeros(0), jnp.zeros(0), mu, jnp.zeros(1))
        >>> [float(duality.dual_function(qp, at(jnp.array([mu])))) for mu in (1.0, 2.0, 3.0)]
        [0.75, 1.0, 0.75]

    Note:
        Rounding decides whether c lies in the range of P. A bound that does not depend on that is
        [`dual_bound`][mlnotes_jax.svm.duality.dual_bound].
    """
    program = _program(qp)
    w = _stack(program, duals)
    with jax.default_matmul_precision("highest"):
        pull = _qp.columns(program, w)
        c = program.q + pull
        values, vectors = jnp.linalg.eigh(program.P)
        parts = c @ vectors
        tol = _tolerance(tol, c.dtype, float(jnp.finfo(c.dtype).eps) ** 0.5)
        positive = values > tol * values[-1]
        outside = jnp.linalg.norm(jnp.where(positive, 0, parts))
        size = jnp.linalg.norm(program.q) + jnp.linalg.norm(pull)
        curved = jnp.where(positive, parts**2 / jnp.where(positive, values, 1), 0).sum()
        # A multiplier of a constraint that is infinitely far away makes L infinitely low.
        lost = jnp.any(~program.keep & (w != 0))
        value = -0.5 * curved - program.right @ w
        return jnp.where((outside > tol * size) | lost, -jnp.inf, value)


def dual_bound(qp: QP, x: Float[ArrayLike, " n"], duals: QPMultipliers) -> Float[Array, ""]:
    r"""Bound the minimum of a quadratic program from below, from any point and multipliers.

    For every $v$, $\tfrac12 x^\top P x \ge v^\top P x - \tfrac12 v^\top P v$. So with $r = Pv + q +
    A^\top\lambda + G^\top\mu - \mu_l + \mu_u$ the Lagrangian is at least $r^\top x - \tfrac12
    v^\top P v$ and a constant. Where a variable has a finite bound on the side that would help, its
    multiplier takes over $r_i$, which makes the residual zero. What is returned then is

    $$-\tfrac12 v^\top P v - b^\top\lambda - h^\top\mu + l^\top\mu_l - u^\top\mu_u ,$$

    a true bound (up to rounding of this sum), however rough $v$ and the multipliers are.

    Args:
        qp: The program.
        x: $v$: any point, best near the minimiser; shape `(n,)`.
        duals: Any multipliers; negative ones of inequalities count as zero.

    Returns:
        The bound, shape `()`; `-inf` where some $r_i \ne 0$ and no bound of $x_i$ can take it over.

    Raises:
        ValueError: Shapes do not match, or the data are not a convex program, as in `solve_qp`.
        TypeError: Something is not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import duality
        >>> qp = duality.QP([[2.0]], [0.0], lower=1.0, upper=5.0)  # the minimum is 1, at x = 1
        >>> none = duality.QPMultipliers(jnp.zeros(0), jnp.zeros(0), jnp.zeros(1), jnp.zeros(1))
        >>> [float(duality.dual_bound(qp, [v], none)) for v in (0.5, 1.0, 1.5)]
        [0.75, 1.0, 0.75]

    Reference: Dorn, "Duality in quadratic programming", *Quarterly of Applied Mathematics* 18
        (1960); Neumaier and Shcherbina, "Safe bounds in linear and mixed-integer linear
        programming" (2004).
    """
    program = _program(qp)
    w, v = _stack(program, duals), _like("x", x, program.q)
    with jax.default_matmul_precision("highest"):
        free = jnp.arange(w.size) < program.num_equal
        w = jnp.where(program.keep & (free | (w > 0)), w, 0)
        pv = program.P @ v
        left, w = _qp.absorb(program, pv + program.q + _qp.columns(program, w), w)
        value = -0.5 * (v @ pv) - program.right @ w
        return jnp.where(jnp.any(left != 0), -jnp.inf, value)


def duality_gap(
    qp: QP,
    x: Float[ArrayLike, " n"],
    duals: QPMultipliers,
    *,
    tol: Float[ArrayLike, ""] | None = None,
) -> Float[Array, ""]:
    r"""Subtract the dual function from the objective: how far $x$ is from the minimum, at most.

    Args:
        qp: The program.
        x: A feasible point, shape `(n,)`; that it is feasible is not checked.
        duals: Multipliers, those of inequalities not negative.
        tol: Passed to `dual_function`.

    Returns:
        $\tfrac12 x^\top P x + q^\top x - d(\lambda, \mu)$, shape `()`.

    Raises:
        ValueError: Shapes do not match, or the data are not a convex program, as in `solve_qp`.
        TypeError: Something is not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import duality
        >>> qp = duality.QP([[2.0]], [0.0], lower=1.0)
        >>> duals = duality.QPMultipliers(
        ...     jnp.zeros(0), jnp.zeros(0), jnp.array([1.0]), jnp.zeros(1)
        ... )
        >>> float(duality.duality_gap(qp, [1.5], duals))  # 2.25 - 0.75; the minimum is 1
        1.5
    """
    program = _program(qp)
    x = _like("x", x, program.q)
    with jax.default_matmul_precision("highest"):
        objective = 0.5 * (x @ (program.P @ x)) + program.q @ x
    return objective - dual_function(qp, duals, tol=tol)


def solve_qp(
    P: Float[ArrayLike, "n n"],
    q: Float[ArrayLike, " n"],
    A: Float[ArrayLike, "p n"] | None = None,
    b: Float[ArrayLike, " p"] | None = None,
    G: Float[ArrayLike, "m n"] | None = None,
    h: Float[ArrayLike, " m"] | None = None,
    lower: Float[ArrayLike, "..."] | None = None,
    upper: Float[ArrayLike, "..."] | None = None,
    *,
    tol: Float[ArrayLike, ""] | None = None,
    max_iter: Int[ArrayLike, ""] = 100,
) -> QPSolution:
    r"""Solve a dense convex quadratic program, or prove that it has no solution.

    $$\min_x\ \tfrac12 x^\top P x + q^\top x \quad\text{with}\quad A x = b,\ G x \le h,\
    l \le x \le u$$

    by a primal-dual interior-point method (Mehrotra's predictor and corrector) on a homogeneous
    embedding, in which a program without a solution ends in a certificate of that. Every step
    factors one matrix of $n + p$ rows. $P = 0$ makes a linear program.

    Args:
        P: Symmetric and positive semidefinite, shape `(n, n)`. Under a transformation that is not
            checked: the answer then is a point that meets the KKT conditions.
        q: Shape `(n,)`.
        A: Equalities, shape `(p, n)`; redundant rows are allowed.
        b: Their right sides, shape `(p,)`.
        G: Inequalities, shape `(m, n)`.
        h: Their right sides, shape `(m,)`; `inf` switches a row off.
        lower: Bounds from below, shape `(n,)` or a number; `-inf` for none.
        upper: Bounds from above, shape `(n,)` or a number; `inf` for none.
        tol: All three `residuals` must be at most this for `"solved"`, and the residual of a
            certificate for an infeasible status; traced. By default 1e-8 in float64, 1e-5 in
            float32.
        max_iter: Steps at most; traced.

    Returns:
        The solution with its multipliers and the residuals that prove it, or a certificate. In the
        widest dtype of the data, at least float32.

    Raises:
        ValueError: Shapes do not match; `A` comes without `b`, or `G` without `h`; concrete data
            are not finite where they must be; a concrete `P` is not symmetric or has a negative
            eigenvalue; `tol` or `max_iter` is not positive.
        TypeError: Something is not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.svm import duality
        >>> solution = duality.solve_qp(jnp.eye(2), [0.0, 0.0], G=[[-1.0, -1.0]], h=[-1.0])
        >>> print(solution.x.round(4), solution.duals.inequality.round(4))
        [0.5 0.5] [0.5]
        >>> duality.STATUSES[int(solution.status)]
        'solved'

    Reference: Goulart and Chen, "Clarabel" (2024); Mehrotra, "On the implementation of a
        primal-dual interior point method" (1992).

    Note:
        `x`, `duals` and the two objectives are differentiable in all the data, by the implicit
        function theorem on the KKT conditions, forward and in reverse, any number of times. At a
        weakly active constraint (its slack and its multiplier both zero) the derivative is that of
        one side. Where it does not exist because the solution is not unique, and where the status
        is not `"solved"`, it is NaN. The other fields have no derivative.

        Under `vmap` all programs run until the slowest is done. What "infeasible" means in floating
        point: every point that satisfies the constraints, if there is one after all, has a 1-norm
        of at least `1 / tol`; and likewise for the dual.
    """
    program = _program(QP(P, q, A, b, G, h, lower, upper))
    default = 1e-8 if program.q.dtype == jnp.float64 else 1e-5
    tol = _tolerance(tol, program.q.dtype, default)
    fixed = lax.stop_gradient((program, tol, _checks.count("max_iter", max_iter)))
    return _finish(program, lax.stop_gradient(_run(*fixed)))


# Two programs: the one that is differentiated holds no loop, and the other is compiled once.
_run = jax.jit(_qp.solve)


@jax.jit
def _finish(program: _qp.Program, end: _qp.Outcome) -> QPSolution:
    with jax.default_matmul_precision("highest"):
        point = _qp.attach(program, end.point, end.active, end.status == _qp.SOLVED)
        objective, dual_objective = _qp.objectives(program, point)
    no_primal = end.status == _qp.PRIMAL_INFEASIBLE
    no_dual = end.status == _qp.DUAL_INFEASIBLE
    neither = ~(no_primal | no_dual)

    def known(value: Array) -> Array:
        return jnp.where(neither, value, jnp.nan)

    found = end.measures
    proof = jnp.where(no_primal, end.farkas_error, jnp.where(no_dual, end.ray_error, jnp.nan))
    return QPSolution(
        x=known(point.x),
        duals=_split(program, known(point.w)),
        objective=jnp.where(no_primal, jnp.inf, known(objective)),
        dual_objective=jnp.where(no_dual, -jnp.inf, known(dual_objective)),
        gap=known(found.gap),
        residuals=QPResiduals(*map(known, (found.primal, found.dual, found.relative_gap))),
        num_iterations=end.num_iterations,
        status=end.status,
        certificate=Certificate(
            duals=_split(program, jnp.where(no_primal, end.farkas, jnp.nan)),
            direction=jnp.where(no_dual, end.ray, jnp.nan),
            residual=proof,
        ),
    )


def _split(program: _qp.Program, w: Array) -> QPMultipliers:
    (r, n), p = program.matrix.shape, program.num_equal
    if not program.has_bounds:
        w = jnp.concatenate([w, jnp.zeros(2 * n, w.dtype)])
    return QPMultipliers(w[:p], w[p:r], w[r : r + n], w[r + n :])


def _stack(program: _qp.Program, duals: QPMultipliers) -> Array:
    (r, n), p = program.matrix.shape, program.num_equal
    wanted = {"equality": (p,), "inequality": (r - p,), "lower": (n,), "upper": (n,)}
    parts = []
    for name, value in zip(wanted, duals, strict=True):
        value = _checks.floating(f"duals.{name}", value)
        if value.shape != wanted[name]:
            raise ValueError(f"duals.{name} must have shape {wanted[name]}, got {value.shape}")
        if name in ("lower", "upper") and not program.has_bounds:
            if _checks.is_concrete(value) and np.any(value):
                raise ValueError(f"duals.{name} must be zero for a program without bounds")
            continue
        parts.append(value.astype(program.q.dtype))
    return jnp.concatenate(parts)


def _program(qp: QP) -> _qp.Program:
    """Check the data, and bring them into one dtype and one shape."""
    P, q = _checks.floating("P", qp.P, ndim=2), _checks.floating("q", qp.q, ndim=1)
    _checks.not_empty("q", q)
    n = q.size
    if P.shape != (n, n):
        raise ValueError(f"P must have shape {(n, n)} (q has {n} entries), got {P.shape}")
    A, b = _constraint("A", qp.A, "b", qp.b, n)
    G, h = _constraint("G", qp.G, "h", qp.h, n)
    lower, upper = _bound("lower", qp.lower, n), _bound("upper", qp.upper, n)
    for name, array in (("P", P), ("q", q), ("A", A), ("b", b), ("G", G)):
        if array is not None:
            _checks.finite(name, array)
    _not_beyond("h", h, -np.inf)
    _not_beyond("lower", lower, np.inf)
    _not_beyond("upper", upper, -np.inf)

    given = [array for array in (P, q, A, b, G, h, lower, upper) if array is not None]
    dtype = _widest(given)
    P, q, A, b, G, h, lower, upper = (
        None if array is None else array.astype(dtype) for array in (P, q, A, b, G, h, lower, upper)
    )
    assert P is not None
    assert q is not None
    _check_convex(P)
    if A is None or b is None:
        A, b = jnp.zeros((0, n), dtype), jnp.zeros(0, dtype)
    if G is None or h is None:
        G, h = jnp.zeros((0, n), dtype), jnp.zeros(0, dtype)
    right = [b, h]
    if lower is not None or upper is not None:
        free = jnp.full(n, jnp.inf, dtype)
        right += [free if lower is None else -lower, free if upper is None else upper]
    right = jnp.concatenate(right)
    keep = right != jnp.inf  # a NaN under a transformation stays, and is seen in the answer
    matrix = jnp.concatenate([A, G])
    return _qp.Program(
        P=0.5 * (P + P.T),
        q=q,
        matrix=jnp.where(keep[: len(matrix), None], matrix, 0),
        right=jnp.where(keep, right, 0),
        keep=keep,
        num_equal=len(A),
    )


def _constraint(
    name: str, matrix: ArrayLike | None, right_name: str, right: ArrayLike | None, n: int
) -> tuple[Array | None, Array | None]:
    if (matrix is None) != (right is None):
        raise ValueError(f"{name} and {right_name} must be given together, or neither")
    if matrix is None or right is None:
        return None, None
    matrix = _checks.floating(name, matrix, ndim=2)
    right = _checks.floating(right_name, right, ndim=1)
    if matrix.shape != (right.size, n):
        raise ValueError(
            f"{name} must have shape {(right.size, n)} ({right_name} has {right.size} entries, q "
            f"{n}), got {matrix.shape}"
        )
    return matrix, right


def _bound(name: str, value: ArrayLike | None, n: int) -> Array | None:
    if value is None:
        return None
    array = _checks.floating(name, value, ndim=(0, 1))
    if array.ndim == 1 and array.size != n:
        raise ValueError(f"{name} must have shape {(n,)} or (), got {array.shape}")
    return jnp.broadcast_to(array, (n,))


def _not_beyond(name: str, array: Array | None, forbidden: float) -> None:
    """Raise where a concrete right side is NaN, or infinite on the side that nothing satisfies."""
    if array is None or not _checks.is_concrete(array):
        return
    values = np.asarray(array)
    bad = np.flatnonzero(np.isnan(values) | (values == forbidden))
    if bad.size:
        raise ValueError(
            f"{name} must not be NaN or {forbidden}, got {values[bad[0]]} at index {bad[0]}"
        )


def _check_convex(P: Array) -> None:
    if not _checks.is_concrete(P):
        return
    values = np.asarray(P)
    rounding = 4 * len(values) * np.finfo(values.dtype).eps * np.abs(values).max()
    skew = np.abs(values - values.T)
    if skew.max() > rounding:
        i, j = (int(k) for k in np.unravel_index(skew.argmax(), skew.shape))
        raise ValueError(
            f"P must be symmetric, got {values[i, j]} in row {i}, column {j} and {values[j, i]} in "
            f"row {j}, column {i}"
        )
    wide = np.asarray(values, float)
    shift = rounding + np.finfo(float).tiny  # the Cholesky of P = 0 exists, too
    try:
        np.linalg.cholesky(0.5 * (wide + wide.T) + shift * np.eye(len(wide)))
    except np.linalg.LinAlgError:
        lowest = np.linalg.eigvalsh(0.5 * (wide + wide.T))[0]
        raise ValueError(
            f"P must be positive semidefinite, got an eigenvalue of {lowest:.6g}: the program is "
            "not convex"
        ) from None


def _tolerance(tol: ArrayLike | None, dtype: Any, default: float) -> Array:
    if tol is None:
        return jnp.asarray(default, dtype)
    _checks.positive("tol", tol)
    return _checks.floating("tol", tol, ndim=0).astype(dtype)


def _widest(arrays: list[Array]) -> Any:
    dtype = max((array.dtype for array in arrays), key=lambda dtype: dtype.itemsize)
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


def _like(name: str, value: ArrayLike, vector: Array) -> Array:
    array = _checks.floating(name, value, ndim=1)
    if array.shape != vector.shape:
        raise ValueError(f"{name} must have shape {vector.shape}, got {array.shape}")
    return array.astype(vector.dtype)


def _lagrangian(problem: Problem, x: PyTree[Array], dual: Multipliers) -> Array:
    terms = [jnp.asarray(problem.objective(x))]
    for constraint, multiplier in zip(problem[1:], dual, strict=True):
        if constraint is not None and multiplier is not None:
            terms.append(jnp.sum(multiplier * jnp.asarray(constraint(x))))
    dtype = _widest(terms)
    return sum((term.astype(dtype) for term in terms[1:]), terms[0].astype(dtype))


def _pair(
    problem: Problem, x: PyTree[Array], dual: Multipliers
) -> tuple[PyTree[Array], Multipliers]:
    """Check a point and its multipliers against the problem."""
    x = jax.tree.map(lambda leaf: _checks.floating("each leaf of x", leaf), x)
    if not jax.tree.leaves(x):
        raise ValueError(f"x must hold at least one number, got {x!r}")
    _result("objective", problem.objective, x, shape=())
    parts: list[Array | None] = []
    for name, constraint, value in zip(problem._fields[1:], problem[1:], dual, strict=True):
        if constraint is None or value is None:
            if constraint is not None or value is not None:
                has, lacks = ("problem", "dual") if value is None else ("dual", "problem")
                raise ValueError(f"{lacks}.{name} must not be None: {has}.{name} is given")
            parts.append(None)
            continue
        shape = _result(name, constraint, x)
        value = _checks.floating(f"dual.{name}", value)
        if value.shape != shape.shape:
            raise ValueError(
                f"dual.{name} must have the shape {shape.shape} of problem.{name}(x), got "
                f"{value.shape}"
            )
        parts.append(value.astype(shape.dtype))
    return x, Multipliers(*parts)


def _result(
    name: str, function: Callable[[Any], Array], x: Any, shape: tuple[int, ...] | None = None
) -> jax.ShapeDtypeStruct:
    result = jax.eval_shape(function, x)
    if not isinstance(result, jax.ShapeDtypeStruct) or shape not in (None, result.shape):
        what = "a scalar" if shape == () else "an array"
        raise ValueError(f"problem.{name} must return {what}, got {result}")
    if not jnp.issubdtype(result.dtype, jnp.floating):
        raise TypeError(f"problem.{name} must return real numbers, got dtype {result.dtype}")
    return result
