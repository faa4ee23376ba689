r"""Newton's method for linear models: few passes over many rows, and a bound on what is left.

Minimises over $w \in \mathbb R^d$ and $b \in \mathbb R$

$$F(w, b) = \sum_i s_i\, \ell_i(t_i) + \frac{\lambda}{2} \|w\|^2, \qquad t = X w + b,$$

for convex $\ell_i$. Each iteration makes three passes over the rows: one gathers the Hessian
$\sum_i s_i \ell_i''(t_i)\, \tilde x_i \tilde x_i^\top + \lambda I$ block by block, one computes the
direction in the space of the scores, one the bound below. The line search then works on vectors of
n numbers: $\varphi(\alpha) = F(w + \alpha p, b + \alpha p_b)$ needs only $t + \alpha X p$. It looks
at $\varphi'$, not at $\varphi$, whose differences are lost in rounding near the minimum. Where
there are many rows, every sixteenth of them shows where to start; and the Hessian of these few
serves as long as each step brings the gradient down to a quarter.

**The bound.** Write $\ell_i(t) = \max_g\, (g t - \ell_i^*(g))$. For slopes $g$ with $\sum_i s_i g_i
= 0$, weak duality gives $F(w, b) - \min F \le$

$$\mathrm{gap} = \sum_i s_i \big( \ell_i(t_i) + \ell_i^*(g_i) - g_i t_i \big)
  + \frac{1}{2 \lambda} \Big\| \lambda w + \sum_i s_i g_i x_i \Big\|^2 ,$$

a sum of terms that are not negative (the first by Fenchel and Young), so that no digits cancel.

**A loss with a kink** is met by the proximal method of multipliers: Newton's method minimises $F$
with $\ell_i$ replaced by

$$\max_g \left( g t - \ell_i^*(g) - \frac{\mu}{2} (g - c_i)^2 \right),$$

whose slope is the maximiser $g_i(t)$: continuous, and straight lines of slope $1 / \mu$ between
constants. Whenever this is solved well enough, $c$ moves to $g$ and $\mu$ shrinks. The limit solves
the *original* problem, with its dual variables $s_i g_i$, while $\mu$ is still far from 0.

Reference: Mangasarian, *A finite Newton method for classification* (Optimization Methods and
Software, 2002); Rockafellar, *Augmented Lagrangians and applications of the proximal point
algorithm in convex programming* (Mathematics of Operations Research, 1976).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

__all__ = ["Loss", "Minimum", "Proximal", "logistic", "minimize"]

#: More parameters than this are not put into a matrix: conjugate gradients find the direction.
MAX_DENSE = 2048

#: From so many rows on, a fit to every `_EVERY`-th of them comes first.
_MANY, _EVERY = 32_768, 16

#: A factor is kept while each step brings the gradient down by so much.
_SERVES = 4

#: Steps in a row that bring nothing, before it ends: for losses with a derivative, and with a kink.
_IDLE = 10, 25


class Proximal(NamedTuple):
    r"""How a loss with a kink is smoothed.

    Attributes:
        centre: $c$, one slope for each row, shape `(n,)`.
        width: $\mu > 0$, in the unit of `t` over that of the slope, shape `()`.
    """

    centre: Float[Array, " n"]
    width: Float[Array, ""]


class Loss(NamedTuple):
    r"""A convex loss of the score of each row; all functions are elementwise on `(n,)` arrays.

    Attributes:
        value: `t` -> $\ell(t)$.
        derivatives: `(t, proximal)` -> the slope $\ell'(t)$ and the (generalised) second
            derivative. `proximal` is None where `start` is; else the loss is smoothed by it.
        excess: `(t, g)` -> $\ell(t) + \ell^*(g) - g t \ge 0$, in a form that does not cancel.
        start: The first smoothing of a loss with a kink; None for a loss with a derivative.
    """

    value: Callable[[Array], Array]
    derivatives: Callable[[Array, Proximal | None], tuple[Array, Array]]
    excess: Callable[[Array, Array], Array]
    start: Proximal | None = None


class Minimum(NamedTuple):
    r"""Where the objective is lowest, and how sure that is.

    Everything but the first two is recomputed at the end from the rows.

    Attributes:
        coef: $w$, shape `(d,)`.
        intercept: $b$, shape `()`; 0 where none was fitted.
        objective: $F(w, b)$, shape `()`.
        gap: How much the objective may be above its minimum, shape `()`; infinite for $\lambda =
            0$.
        gradient_norm: Of $F$ at the end, over that at the start, shape `()`; of the smoothed $F$
            for a loss with a kink.
        slope: $g$ of the bound, shape `(n,)`: $-s_i g_i$ are the dual variables.
        num_iterations: Newton steps.
        converged: Whether what `criterion` looks at is within the tolerance.
    """

    coef: Float[Array, " d"]
    intercept: Float[Array, ""]
    objective: Float[Array, ""]
    gap: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    slope: Float[Array, " n"]
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]


def minimize(
    x: Float[Array, "n d"],
    weight: Float[Array, " n"],
    loss: Loss,
    *,
    penalty: Float[Array, ""],
    tol: Float[Array, ""],
    max_iter: Int[Array, ""],
    criterion: Literal["gap", "gradient"] = "gap",
    fit_intercept: bool = True,
    of_rows: Callable[[slice], Loss] | None = None,
) -> Minimum:
    r"""Minimise $\sum_i s_i \ell_i(x_i^\top w + b) + \tfrac{\lambda}{2} \|w\|^2$.

    Not compiled by itself: call it inside `jax.jit`. Arguments are not checked. All dtypes are that
    of `x`, float32 or float64. It works under `vmap`, over weights, penalties and what `loss`
    holds; a batch runs as long as its slowest member.

    Args:
        x: Rows, shape `(n, d)`; centred inside, so that a large mean costs no digits.
        weight: $s \ge 0$, shape `(n,)`.
        loss: $\ell$.
        penalty: $\lambda \ge 0$; positive, if `criterion` is `"gap"`.
        tol: For `"gap"`: of the objective. For `"gradient"`: of its norm at the start.
        max_iter: Most Newton steps.
        criterion: When to stop; static. `"gap"` bounds the error of the objective; `"gradient"`
            is for losses with a derivative.
        fit_intercept: Whether $b$ is fitted, unpenalised, or is 0; static.
        of_rows: Slice -> the loss of those rows: then a fit to few of many rows comes first, which
            changes the time, not the result. For losses with a derivative.

    Returns:
        The minimum. It ends early where many steps in a row bring nothing, which is rounding.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax import _linear_newton
        >>> x, y = jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([-1.0, 1.0, -1.0, 1.0])
        >>> found = _linear_newton.minimize(
        ...     x, jnp.ones(4), _linear_newton.logistic(y), penalty=jnp.array(1.0),
        ...     tol=jnp.array(1e-5), max_iter=jnp.array(20),
        ... )
        >>> bool(found.converged), round(float(found.coef[0]), 3)
        (True, 0.291)
    """
    # Without "highest", a GPU or TPU would multiply with ten bits or fewer.
    with jax.default_matmul_precision("highest"):
        near = None
        if of_rows is not None and x.shape[0] >= _MANY:
            few = slice(None, None, _EVERY)
            share = total(weight) / total(weight[few])
            sample = _Problem(x[few], share * weight[few], of_rows(few), penalty, fit_intercept)
            least = jnp.maximum(tol, jnp.asarray(1e-3, x.dtype))
            found = _newton(sample, least, jnp.minimum(max_iter, 10), "gradient")
            near = _Near(found, _factor_near(sample, found))
        problem = _Problem(x, weight, loss, penalty, fit_intercept)
        return _newton(problem, tol, max_iter, criterion, near)


def logistic(signs: Float[Array, " n"]) -> Loss:
    r"""The loss $\log(1 + e^{-y t})$ for $y = \pm 1$.

    Its slope is $-y a$ with $a = 1 / (1 + e^{y t})$, and $\ell^*(-y a) = a \log a + (1 - a) \log(1
    - a)$; the excess of any $a$ is its relative entropy to the right one.

    Args:
        signs: $y$, shape `(n,)`.

    Returns:
        The loss.
    """

    def value(t: Array) -> Array:
        return jax.nn.softplus(-signs * t)

    def derivatives(t: Array, proximal: Proximal | None) -> tuple[Array, Array]:
        del proximal
        a = jax.nn.sigmoid(-signs * t)
        return -signs * a, a * jax.nn.sigmoid(signs * t)

    def excess(t: Array, g: Array) -> Array:
        a, margin = -signs * g, signs * t
        # softplus(±margin) are the negative logarithms of the right probabilities.
        here = xlogx(a) + a * jax.nn.softplus(margin)
        there = xlogx(1 - a) + (1 - a) * jax.nn.softplus(-margin)
        return jnp.maximum(here + there, 0)

    return Loss(value, derivatives, excess)


def xlogx(a: Array) -> Array:
    """The function a log a, which is 0 at 0."""
    return a * jnp.log(jnp.where(a > 0, a, 1))


class _Problem:
    """The rows, centred; and every sum over them."""

    def __init__(
        self, x: Array, weight: Array, loss: Loss, penalty: Array, fit_intercept: bool
    ) -> None:
        self.x, self.weight, self.loss, self.penalty = x, weight, loss, penalty
        self.fit_intercept = fit_intercept
        n, d = x.shape
        self.size = min(n, max(256, min(4096, 131_072 // max(d, 1))))  # a block stays in cache
        self.mean = jnp.zeros_like(x[0])
        if fit_intercept:
            share = weight / jnp.maximum(total(weight), jnp.finfo(x.dtype).tiny)
            self.mean = self.adjoint(share[:, None])[:, 0]

    def over_blocks(self, step: Callable[[Any, Array, Array, Array], Any], start: Any) -> Any:
        """Fold `step(carry, rows, first, fresh)` over the blocks; the last one may overlap."""
        n, size = self.x.shape[0], self.size
        if n == size:
            return step(start, self.x - self.mean[None], jnp.array(0), jnp.ones(n, bool))

        def one(carry: Any, i: Array) -> tuple[Any, None]:
            first = jnp.minimum(i * size, n - size)
            rows = jax.lax.dynamic_slice_in_dim(self.x, first, size)
            fresh = first + jnp.arange(size) >= i * size
            return step(carry, rows - self.mean[None], first, fresh), None

        return jax.lax.scan(one, start, jnp.arange(-(-n // size)))[0]

    def scores(self, coef: Array, intercept: Array) -> Array:
        """The scores of all rows."""
        if not self.fit_intercept:  # nothing to centre
            return self.x @ coef + intercept

        def step(t: Array, rows: Array, first: Array, fresh: Array) -> Array:
            del fresh  # what is computed twice is the same
            return jax.lax.dynamic_update_slice_in_dim(t, rows @ coef + intercept, first, 0)

        return self.over_blocks(step, jnp.zeros_like(self.weight))

    def adjoint(self, columns: Array) -> Array:
        """The rows, transposed, times `(n, k)` columns."""

        def step(sums: Array, rows: Array, first: Array, fresh: Array) -> Array:
            part = jax.lax.dynamic_slice_in_dim(columns, first, self.size)
            # This way round it is twice as fast on a CPU.
            return sums + jnp.where(fresh[:, None], part, 0).T @ rows

        sums = jnp.zeros((columns.shape[1], self.x.shape[1]), self.x.dtype)
        return self.over_blocks(step, sums).T

    def moments(self, curvature: Array) -> tuple[Array, Array]:
        """The rows, transposed, times the diagonal matrix times the rows; and times ones."""
        d = self.x.shape[1]

        def step(
            sums: tuple[Array, Array], rows: Array, first: Array, fresh: Array
        ) -> tuple[Array, Array]:
            part = jax.lax.dynamic_slice_in_dim(curvature, first, self.size)
            scaled = jnp.where(fresh, part, 0)[:, None] * rows
            return sums[0] + rows.T @ scaled, sums[1] + scaled.sum(axis=0)

        return self.over_blocks(step, (jnp.zeros((d, d), self.x.dtype), jnp.zeros_like(self.mean)))

    def squares(self, curvature: Array) -> Array:
        """The diagonal of what `moments` returns."""

        def step(sums: Array, rows: Array, first: Array, fresh: Array) -> Array:
            part = jax.lax.dynamic_slice_in_dim(curvature, first, self.size)
            return sums + jnp.where(fresh, part, 0) @ rows**2

        return self.over_blocks(step, jnp.zeros_like(self.mean))


class _State(NamedTuple):
    coef: Array
    intercept: Array  # of the centred rows
    t: Array
    slope: Array
    curvature: Array
    proximal: Proximal | None
    free: Array | None  # rows whose centre is between the constants
    bound: "_Bound"
    best: "_Best"
    idle: Array
    inner: Array
    num_iterations: Array
    factor: "_Factor | None"  # kept from step to step, where there are many rows
    served: Array  # whether it still brings the gradient down fast


class _Factor(NamedTuple):
    """Of the Hessian, in units in which its diagonal is 1."""

    lower: Array
    unit: Array


class _Near(NamedTuple):
    """A minimum for few of the rows, and the Hessian there."""

    found: Minimum
    factor: _Factor | None


class _Best(NamedTuple):
    measure: Array
    coef: Array
    intercept: Array
    slope: Array | None  # dual variables of a loss with a kink; others follow from the scores


class _Bound(NamedTuple):
    objective: Array
    gap: Array
    kink: Array  # the part of the gap that a smaller gradient would not remove
    gradient: Array
    slope: Array


def _newton(
    problem: _Problem, tol: Array, max_iter: Array, criterion: str, near: _Near | None = None
) -> Minimum:
    """From zero, or from a minimum `near` by where the objective is lower there."""
    x, loss = problem.x, problem.loss
    dtype, epsilon = x.dtype, jnp.finfo(x.dtype).eps

    def measure(bound: _Bound) -> Array:
        return bound.gap if criterion == "gap" else jnp.linalg.norm(bound.gradient)

    coef, intercept = jnp.zeros_like(x[0]), jnp.zeros((), dtype)
    t = jnp.zeros_like(problem.weight)
    slope, curvature = loss.derivatives(t, loss.start)
    kept, served = None, jnp.array(False)
    if near is None:
        first = begin = _bound(problem, coef, t, slope)
    else:
        there = near.found.coef
        by_mean = near.found.intercept + problem.mean @ there
        t_near = problem.scores(there, by_mean)
        slope_near, curvature_near = loss.derivatives(t_near, None)

        def both(*pair: Array) -> Array:
            return jnp.stack(pair)

        # One pass over the rows for both.
        bounds = jax.vmap(partial(_bound, problem))(
            both(coef, there), both(t, t_near), both(slope, slope_near)
        )
        first = jax.tree.map(lambda a: a[0], bounds)
        lower = bounds.objective[1] < bounds.objective[0]  # not where it is NaN
        kept, served = near.factor, lower

        def choose(at_zero: Any, at_near: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(lower, b, a), at_zero, at_near)

        begin = choose(first, jax.tree.map(lambda a: a[1], bounds))
        coef, intercept, t, slope, curvature = choose(
            (coef, intercept, t, slope, curvature),
            (there, by_mean, t_near, slope_near, curvature_near),
        )
    smallest = 0.0 if loss.start is None else 500 * epsilon * loss.start.width
    first_norm = jnp.linalg.norm(first.gradient)

    def within(bound: _Bound) -> Array:
        """Relative; what is zero up to the rounding of the start counts as zero."""
        if criterion == "gap":
            return bound.gap <= tol * jnp.maximum(bound.objective, epsilon * first.objective)
        return jnp.linalg.norm(bound.gradient) <= tol * first_norm

    def go_on(state: _State) -> Array:
        usable = jnp.isfinite(state.bound.objective)
        unfinished = ~within(state.bound) & (state.num_iterations < max_iter)
        return usable & unfinished & (state.idle < _IDLE[loss.start is not None])

    def step(state: _State) -> _State:
        gradient = _gradient(problem, state)
        move, factor = _direction(problem, state, gradient)
        change = problem.scores(move[:-1], move[-1])
        alpha = _search(problem, state, move, change, gradient @ move)
        coef = state.coef + alpha * move[:-1]
        intercept, t = state.intercept + alpha * move[-1], state.t + alpha * change
        slope, curvature = loss.derivatives(t, state.proximal)
        bound = _bound(problem, coef, t, slope)
        proximal, free, inner = state.proximal, state.free, state.inner + 1
        if proximal is not None and free is not None:
            # The smoothed problem is solved well enough once the kink holds most of the gap.
            ready = (bound.gap <= 1.5 * bound.kink) | (inner >= 8)
            shrunk = jnp.maximum(_shrink(inner).astype(dtype) * proximal.width, smallest)
            proximal = Proximal(
                jnp.where(ready, slope, proximal.centre), jnp.where(ready, shrunk, proximal.width)
            )
            inner = jnp.where(ready, 0, inner)
            free = jnp.where(ready, curvature > 0, free)
            slope, curvature = loss.derivatives(t, proximal)
            # A narrower smoothing sees fewer rows, and may see none: after such a change, or a
            # short step, the rows that were seen before are the better guess.
            guess = jnp.where(free, 1 / proximal.width, curvature)
            curvature = jnp.where(ready | (alpha < 0.1), guess, curvature)
        now = _Best(measure(bound), coef, intercept, None if proximal is None else bound.slope)
        best = jax.tree.map(partial(jnp.where, now.measure < state.best.measure), now, state.best)
        better = now.measure < 0.9 * state.best.measure
        return _State(
            coef, intercept, t, slope, curvature, proximal, free, bound,
            best=best,
            idle=jnp.where(better, 0, state.idle + 1),
            inner=inner,
            num_iterations=state.num_iterations + 1,
            factor=factor,
            served=_SERVES * jnp.linalg.norm(bound.gradient) < jnp.linalg.norm(gradient),
        )  # fmt: skip

    zero = jnp.zeros((), jnp.int32)
    start = _State(
        coef,
        intercept,
        t,
        slope,
        curvature,
        loss.start,
        None if loss.start is None else curvature > 0,
        begin,
        _Best(measure(begin), coef, intercept, None if loss.start is None else begin.slope),
        zero,
        zero,
        zero,
        kept,
        served,
    )
    # fmt: on
    end = jax.lax.while_loop(go_on, step, start)
    # Scores, slopes and sums once more from the rows: nothing that was carried along.
    best = end.best
    t = problem.scores(best.coef, best.intercept)
    slope = loss.derivatives(t, None)[0] if best.slope is None else best.slope
    bound = _bound(problem, best.coef, t, slope)
    return Minimum(
        coef=best.coef,
        intercept=best.intercept - problem.mean @ best.coef,
        objective=bound.objective,
        gap=bound.gap,
        gradient_norm=jnp.linalg.norm(bound.gradient) / jnp.where(first_norm > 0, first_norm, 1),
        slope=bound.slope,
        num_iterations=end.num_iterations,
        converged=within(bound),
    )


def _shrink(inner: Array) -> Array:
    """What the smoothing shrinks by when its centre moves: less, if the last one was hard."""
    return jnp.select([inner <= 1, inner <= 2, inner <= 4], [0.1, 0.25, 0.5], 1.0)


def _gradient(problem: _Problem, state: _State) -> Array:
    """Of the objective, smoothed as it stands."""
    if state.proximal is None:
        return state.bound.gradient
    pull = problem.weight * state.slope
    by_coef = problem.penalty * state.coef + problem.adjoint(pull[:, None])[:, 0]
    return jnp.append(by_coef, total(pull) * int(problem.fit_intercept))


def _bound(problem: _Problem, coef: Array, t: Array, slope: Array) -> _Bound:
    """Objective and gap; the slopes are first made to sum to zero, by shrinking one sign."""
    weight, loss, penalty = problem.weight, problem.loss, problem.penalty
    objective = total(weight * loss.value(t)) + penalty / 2 * coef @ coef
    balanced, by_intercept = slope, jnp.zeros_like(penalty)
    if problem.fit_intercept:
        up, down = total(weight * jnp.maximum(slope, 0)), total(weight * jnp.maximum(-slope, 0))
        least, by_intercept = jnp.minimum(up, down), up - down
        shares = [least / jnp.where(side > 0, side, 1) for side in (up, down)]
        balanced = slope * jnp.where(slope > 0, shares[0], shares[1])
    slopes = [slope, balanced] if problem.fit_intercept else [slope]
    pulls = problem.adjoint(weight[:, None] * jnp.stack(slopes, axis=1))
    residual = penalty * coef + pulls[:, -1]
    positive = jnp.where(penalty > 0, penalty, 1)
    gap = total(weight * loss.excess(t, balanced)) + residual @ residual / (2 * positive)
    gap = jnp.where(penalty > 0, gap, jnp.inf)  # without a penalty there is no bound of this form
    return _Bound(
        objective=objective,
        gap=gap,
        kink=jnp.zeros_like(gap) if loss.start is None else total(weight * loss.excess(t, slope)),
        gradient=jnp.append(penalty * coef + pulls[:, 0], by_intercept),
        slope=balanced,
    )


def _direction(problem: _Problem, state: _State, gradient: Array) -> tuple[Array, "_Factor | None"]:
    """Newton's direction for the coefficients and the intercept, and the factor to be kept."""
    if problem.x.shape[1] > MAX_DENSE:
        return _conjugate_gradients(problem, state, gradient), None
    if state.factor is None:
        return _solve(_factor(problem, state.curvature, state.proximal), gradient), None
    factor = jax.lax.cond(
        state.served,
        lambda kept, _: kept,
        lambda _, curvature: _factor(problem, curvature, state.proximal),
        state.factor,
        state.curvature,
    )
    return _solve(factor, gradient), factor


def _factor_near(sample: _Problem, found: Minimum) -> _Factor | None:
    """Of the Hessian of few rows, where their objective is lowest."""
    if sample.x.shape[1] > MAX_DENSE:
        return None
    t = sample.scores(found.coef, found.intercept + sample.mean @ found.coef)
    return _factor(sample, sample.loss.derivatives(t, None)[1], None)


def _factor(problem: _Problem, curvature: Array, proximal: Proximal | None) -> _Factor:
    d, epsilon = problem.x.shape[1], jnp.finfo(problem.x.dtype).eps
    gram, cross = problem.moments(problem.weight * curvature)
    if not problem.fit_intercept:
        cross = jnp.zeros_like(cross)
    top = jnp.concatenate(
        [gram + problem.penalty * jnp.eye(d, dtype=gram.dtype), cross[:, None]], 1
    )
    level = _level(problem, curvature, proximal)
    hessian = jnp.concatenate([top, jnp.append(cross, level)[None]])
    # In units in which the diagonal is 1, rounding errors are of the order of epsilon.
    unit = jax.lax.rsqrt(_positive(jnp.diag(hessian)))
    scaled = hessian * unit[:, None] * unit[None, :]
    scaled = scaled + 4 * d**0.5 * epsilon * jnp.eye(d + 1, dtype=gram.dtype)
    return _Factor(jnp.linalg.cholesky(scaled), unit)


def _solve(factor: _Factor, gradient: Array) -> Array:
    unit = factor.unit
    move = -unit * jax.scipy.linalg.cho_solve((factor.lower, True), unit * gradient)
    return jnp.where(jnp.isfinite(move).all(), move, -gradient * unit**2)


def _level(problem: _Problem, curvature: Array, proximal: Proximal | None) -> Array:
    """The entry of the Hessian for the intercept."""
    level = total(problem.weight * curvature)
    if proximal is not None:
        level = jnp.maximum(level, 1e-3 * total(problem.weight) / proximal.width)
    return level if problem.fit_intercept else jnp.ones_like(level)


def _conjugate_gradients(problem: _Problem, state: _State, gradient: Array) -> Array:
    """The same without a matrix: two passes over the rows for each product."""
    curvature = problem.weight * state.curvature
    level = _level(problem, state.curvature, state.proximal)
    diagonal = _positive(jnp.append(problem.squares(curvature) + problem.penalty, level))

    def product(v: Array) -> Array:
        if not problem.fit_intercept:
            v = v.at[-1].set(0)
        pull = curvature * problem.scores(v[:-1], v[-1])
        by_coef = problem.adjoint(pull[:, None])[:, 0] + problem.penalty * v[:-1]
        return jnp.append(by_coef, total(pull)) if problem.fit_intercept else jnp.append(by_coef, 0)

    return jax.scipy.sparse.linalg.cg(
        product, -gradient, M=lambda v: v / diagonal, tol=0.01, maxiter=200
    )[0]


def _positive(diagonal: Array) -> Array:
    """Raise what is (nearly) zero: a direction that no row sees."""
    largest = diagonal.max()
    floor = jnp.finfo(diagonal.dtype).eps * jnp.where(largest > 0, largest, 1)
    return jnp.maximum(diagonal, floor)


def _search(problem: _Problem, state: _State, move: Array, change: Array, start: Array) -> Array:
    """Where the slope along the direction is at most a tenth of what it was: Newton, bracketed."""
    weight, penalty = problem.weight, problem.penalty
    along, length = state.coef @ move[:-1], move[:-1] @ move[:-1]

    def derivatives(alpha: Array) -> tuple[Array, Array]:
        slope, curvature = problem.loss.derivatives(state.t + alpha * change, state.proximal)
        first = total(weight * slope * change) + penalty * (along + alpha * length)
        return first, total(weight * curvature * change**2) + penalty * length

    def go_on(carry: tuple[Array, ...]) -> Array:
        *_, done, tries = carry
        return ~done & (tries < 30)

    def step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, alpha, _, tries = carry
        first, second = derivatives(alpha)
        done = jnp.abs(first) <= 0.1 * jnp.abs(start)  # false where it is not finite
        far = ~(first < 0)  # an overflow is too far, too
        low, high = jnp.where(far, low, alpha), jnp.where(far, alpha, high)
        newton = alpha - first / second
        open_ended = jnp.isinf(high)
        margin = 0.05 * jnp.where(open_ended, low, high - low)
        inside = (newton >= low + margin) & (
            newton <= jnp.where(open_ended, 8 * low, high - margin)
        )
        other = jnp.where(open_ended, 4 * low, (low + high) / 2)
        proposal = jnp.where(inside, newton, other)
        return low, high, jnp.where(done, alpha, proposal), done, tries + 1

    one = jnp.ones_like(penalty)
    carry = (0 * one, one * jnp.inf, one, jnp.array(False), jnp.array(0))
    low, _, alpha, done, _ = jax.lax.while_loop(go_on, step, carry)
    return jnp.where(done, alpha, low)


def total(values: Array) -> Array:
    """The sum of a vector, in two levels: its rounding errors grow with the root of its length."""
    n = values.shape[0]
    if n <= 512:
        return values.sum()
    width = 256
    padded = jnp.pad(values, (0, -n % width))
    return total(padded.reshape(-1, width).sum(axis=1))
