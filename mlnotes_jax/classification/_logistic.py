r"""Three ways to minimise the logistic loss of a linear model, and what they share.

$$F(\theta) = \sum_i s_i\, \ell_i(\theta z_i) + \lambda_1 \|W\|_1 + \tfrac{\lambda_2}{2} \|W\|^2 ,
\qquad \theta = (W, b), \quad z_i = (x_i - c, 1),$$

with $m = 1$ row of $\theta$ and a sigmoid for two classes, else $m = k$ rows and a softmax. Scores
and probabilities have the shape `(m, n)`, classes first: a sum over classes then runs over whole
vectors. $c$, a mean of rows, keeps the digits of data far from the origin; it ignores the
weights, so that the rows stay one array for a batch of folds.

- `newton`: the Hessian in blocks of rows. With $\lambda_1 > 0$, proximal Newton: each step
  minimises the quadratic plus the penalty, by `proximal` steps that need no pass over the rows.
- `lbfgs`: for $\lambda_1 = 0$. In coordinates in which Böhning's bound of the Hessian is the
  identity; a line search works on scores, and needs no pass over the rows.
- `proximal`: accelerated proximal gradient, with a restart where momentum points uphill.

Reference: Böhning, *Multinomial logistic regression algorithm* (1992); Lee, Sun and Saunders,
*Proximal Newton-type methods for minimizing composite functions* (2014); O'Donoghue and Candès,
*Adaptive restart for accelerated gradient schemes* (2015).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = [
    "MAX_DENSE",
    "Found",
    "Problem",
    "Sums",
    "first_gradient",
    "free",
    "hessian",
    "lbfgs",
    "newton",
    "probabilities",
    "proximal",
    "solve",
    "subgradient",
    "sums",
]

#: More parameters of one class than this are not put into a matrix.
MAX_DENSE = 2048

#: From so many rows on, Newton's method first fits every `_EVERY`-th of them.
_MANY, _EVERY = 32_768, 16

#: Steps in a row that bring nothing, before it ends: Newton, L-BFGS, proximal.
_IDLE = 5, 40, 3000


class Problem(NamedTuple):
    r"""What is minimised.

    Attributes:
        x: Rows, shape `(n, d)`.
        centre: $c$, shape `(d,)`; 0 without an intercept.
        target: Whether a row belongs to a class, shape `(m, n)`; for m = 1, to class 1.
        weight: $s$, shape `(n,)`.
        l1: $\lambda_1$, shape `()`.
        l2: $\lambda_2$, shape `()`.
        level: The last entry of every $z_i$: 1, or 0 without an intercept, shape `()`.
    """

    x: Float[Array, "n d"]
    centre: Float[Array, " d"]
    target: Bool[Array, "m n"]
    weight: Float[Array, " n"]
    l1: Float[Array, ""]
    l2: Float[Array, ""]
    level: Float[Array, ""]

    @property
    def penalised(self) -> Float[Array, " d_plus_1"]:
        """1 for a weight, 0 for the intercept."""
        return jnp.append(jnp.ones_like(self.centre), jnp.zeros_like(self.level))


class Found(NamedTuple):
    r"""Where a solver ended.

    Attributes:
        theta: $\theta$, shape `(m, d + 1)`.
        num_iterations: Steps, shape `()`.
    """

    theta: Float[Array, "m d_plus_1"]
    num_iterations: Any


class Sums(NamedTuple):
    r"""What one pass over the rows gives.

    Attributes:
        loss: $\sum_i s_i \ell_i$, shape `()`.
        gradient: Of the loss, shape `(m, d + 1)`.
        margin: The smallest lead of a row's own class over the best other one, shape `()`.
    """

    loss: Float[Array, ""]
    gradient: Float[Array, "m d_plus_1"]
    margin: Float[Array, ""]


# --- The loss -------------------------------------------------------------------------------------


def probabilities(scores: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """Of class 1 from one score, or of each class from its scores."""
    return jax.nn.sigmoid(scores) if len(scores) == 1 else jax.nn.softmax(scores, axis=0)


def _leads(scores: Array, target: Array) -> Array:
    """Scores of the other classes less that of a row's own; minus infinity for its own."""
    if len(scores) == 1:
        return jnp.where(target, -scores, scores)
    own = jnp.where(target, scores, 0).sum(axis=0, keepdims=True)
    return jnp.where(target, -jnp.inf, scores - own)


def _losses(leads: Array) -> Array:
    """Minus the logarithm of the probability of a row's own class: log(1 + sum exp(leads))."""
    if len(leads) == 1:
        return jax.nn.softplus(leads[0])
    top = jnp.maximum(leads.max(axis=0), 0)
    return top + jnp.log(jnp.exp(-top) + jnp.exp(leads - top[None]).sum(axis=0))


def sums(problem: Problem, theta: Float[Array, "m d_plus_1"]) -> Sums:
    """Loss, gradient and smallest margin, in one pass over the rows."""
    dtype = theta.dtype

    def step(total: Any, rows: Array, target: Array, weight: Array) -> Any:
        scores = _scores(problem, theta, rows)
        leads = _leads(scores, target)
        counts = weight != 0  # a NaN counts, and is kept
        loss = jnp.where(counts, weight * _losses(leads), 0).sum()
        pull = weight[None] * (probabilities(scores) - target.astype(dtype))
        lead = jnp.where(counts, leads.max(axis=0), -jnp.inf).max()
        added = jax.tree.map(jnp.add, total[:3], (loss, pull @ rows, pull.sum(axis=1)))
        return *added, jnp.maximum(total[3], lead)

    zero = jnp.zeros((), dtype)
    start = zero, jnp.zeros_like(theta[:, :-1]), jnp.zeros_like(theta[:, -1]), zero - jnp.inf
    loss, by_weight, by_level, lead = _over_blocks(problem, len(theta), step, start)
    by_level = (by_level * problem.level)[:, None]
    return Sums(loss, jnp.concatenate([by_weight, by_level], axis=1), -lead)


def hessian(problem: Problem, theta: Float[Array, "m d_plus_1"]) -> Float[Array, "p p"]:
    """Of the loss: the blocks are sums of s p_a (1[a = b] - p_b) z z'.

    The last entry of z is kept apart: a copy of the rows with one more column would cost as much as
    the products.
    """
    (m, d), dtype = problem.target.shape[:1] + problem.x.shape[1:], theta.dtype

    def step(total: Any, rows: Array, target: Array, weight: Array) -> Any:
        del target  # the curvature does not depend on it
        p = probabilities(_scores(problem, theta, rows))
        spread = weight[None] * p * (1 - p)  # keeps digits that p - p² would lose
        own = tuple(map(jnp.stack, zip(*(_moments(one, rows) for one in spread), strict=True)))
        if m == 1:
            return jax.tree.map(jnp.add, total, (own, ()))
        root = jnp.sqrt(weight)[None] * p
        tall = (root[:, None] * rows.T[None]).reshape(m * d, len(rows))
        return jax.tree.map(jnp.add, total, (own, (tall @ tall.T, tall @ root.T, root @ root.T)))

    def zeros(*shapes: tuple[int, ...]) -> tuple[Array, ...]:
        return tuple(jnp.zeros(shape, dtype) for shape in shapes)

    start = zeros((m, d, d), (m, d), (m,)), zeros((m * d,) * 2, (m * d, m), (m, m)) * (m > 1)
    own, pairs = _over_blocks(problem, m, step, start)
    level = problem.level
    blocks = _bordered(own[0], own[1] * level, own[2] * level**2)
    if m == 1:
        return blocks[0]
    inner = pairs[0].reshape(m, d, m, d).transpose(0, 2, 1, 3)
    border = pairs[1].reshape(m, d, m).transpose(0, 2, 1)
    same = jnp.eye(m, dtype=bool)[:, :, None, None]
    # The border of block (a, b) below is that of (b, a) to the right.
    right, below = border * level, border.transpose(1, 0, 2) * level
    others = jnp.concatenate([inner, below[:, :, None]], axis=2)
    corner = jnp.concatenate([right, (pairs[2] * level**2)[:, :, None]], axis=2)
    others = jnp.concatenate([others, corner[..., None]], axis=3)
    full = jnp.where(same, blocks[:, None], -others)
    return full.transpose(0, 2, 1, 3).reshape(m * (d + 1), m * (d + 1))


def _moments(spread: Array, rows: Array) -> tuple[Array, Array, Array]:
    """Sums of spread times x x', x and 1."""
    scaled = spread[:, None] * rows
    return rows.T @ scaled, scaled.sum(axis=0), spread.sum()


def _bordered(inner: Array, border: Array, corner: Array) -> Array:
    """Symmetric matrices with one row and one column more."""
    wide = jnp.concatenate([inner, border[:, :, None]], axis=2)
    last = jnp.concatenate([border, corner[:, None]], axis=1)
    return jnp.concatenate([wide, last[:, None]], axis=1)


def _scores(problem: Problem, theta: Array, rows: Array) -> Array:
    return (rows @ theta[:, :-1].T).T + (theta[:, -1] * problem.level)[:, None]


def _over_blocks(problem: Problem, m: int, step: Callable[..., Any], start: Any) -> Any:
    """Fold `step(carry, centred rows, targets, weights)` over blocks that stay in cache."""
    n, d = problem.x.shape
    size = min(n, max(64, min(2048, 131_072 // (m * d))))
    if size == n:
        rows = problem.x - problem.centre[None]
        return step(start, rows, problem.target, problem.weight)

    def one(carry: Any, i: Array) -> tuple[Any, None]:
        first = jnp.minimum(i * size, n - size)  # the last block overlaps the one before
        fresh = first + jnp.arange(size) >= i * size
        rows, target, weight = (
            jax.lax.dynamic_slice_in_dim(array, first, size, axis)
            for array, axis in ((problem.x, 0), (problem.target, 1), (problem.weight, 0))
        )
        weight = jnp.where(fresh, weight, 0)
        return step(carry, rows - problem.centre[None], target, weight), None

    return jax.lax.scan(one, start, jnp.arange(-(-n // size)))[0]


def first_gradient(problem: Problem) -> Float[Array, "m d_plus_1"]:
    """Gradient of the loss where all parameters are zero, and all classes equally likely."""
    m = len(problem.target)
    pull = problem.weight[None] * (1 / max(m, 2) - problem.target.astype(problem.x.dtype))
    total = pull.sum(axis=1)
    by_weight = pull @ problem.x - total[:, None] * problem.centre[None]
    return jnp.concatenate([by_weight, (total * problem.level)[:, None]], axis=1)


def _with_level(problem: Problem, rows: Array) -> Array:
    centred = rows - problem.centre[None]
    return jnp.concatenate([centred, jnp.broadcast_to(problem.level, (len(rows), 1))], axis=1)


def _hessian_of_block(p: Array, weight: Array, z: Array) -> Array:
    """Blocks (a, b): sum of s p_a (1[a = b] - p_b) z z'."""
    (m, size), width = p.shape, z.shape[1]
    spread = (weight[None] * p * (1 - p))[:, None, :] * z.T[None]
    own = (spread.reshape(m * width, size) @ z).reshape(m, width, width)
    if m == 1:
        return own[0]
    root = ((jnp.sqrt(weight)[None] * p)[:, None, :] * z.T[None]).reshape(m * width, size)
    others = -(root @ root.T).reshape(m, width, m, width)
    # p (1 - p) keeps digits that p - p² would lose.
    index = jnp.arange(m)
    return others.at[index, :, index, :].set(own).reshape(m * width, m * width)


def subgradient(problem: Problem, theta: Array, gradient: Array) -> Array:
    """The shortest subgradient of the objective, from the gradient of the loss."""
    smooth = gradient + problem.l2 * theta * problem.penalised[None]
    l1 = problem.l1 * problem.penalised[None]
    at_zero = jnp.sign(smooth) * jnp.maximum(jnp.abs(smooth) - l1, 0)
    return jnp.where(theta == 0, at_zero, smooth + l1 * jnp.sign(theta))


def _penalty(problem: Problem, theta: Array) -> Array:
    w = theta[:, :-1]
    return problem.l1 * jnp.abs(w).sum() + problem.l2 / 2 * jnp.square(w).sum()


# --- Newton ---------------------------------------------------------------------------------------


class _Newton(NamedTuple):
    theta: Array
    value: Array  # of the objective
    pull: Array  # subgradient
    hessian: Array
    move: Array
    gain: Array  # what the objective would lose if it were as the model says, not positive
    alpha: Array  # share of the move that is tried next
    best: Array  # theta of the smallest subgradient
    least: Array
    margin: Array
    idle: Array
    num_iterations: Array


def newton(
    problem: Problem,
    start: Array | None,
    target: Array,
    max_iter: Array,
    *,
    smooth: bool,
) -> Found:
    """Newton's method, or proximal Newton where the objective has a kink.

    Without a start, and where there are many rows, a fit to every sixteenth comes first. A pass for
    the gradient is much cheaper than one for the Hessian, which is therefore kept as long as steps
    with it shorten the gradient to less than a third.

    Args:
        problem: What is minimised.
        start: First parameters; zeros by default.
        target: Norm of the subgradient at which it ends.
        max_iter: Most steps.
        smooth: Whether it is known that l1 = 0; static.

    Returns:
        The parameters with the smallest subgradient.
    """
    infinite = jnp.full_like(target, jnp.inf)
    if start is not None:
        return _newton(problem, start, jnp.zeros_like(start), infinite, target, max_iter, smooth)
    (m, n), d = problem.target.shape, problem.x.shape[1]
    origin = jnp.zeros((m, d + 1), problem.x.dtype)
    if n < _MANY:
        return _newton(problem, origin, origin, infinite, target, max_iter, smooth)
    few = slice(None, None, _EVERY)
    share = problem.weight.sum() / problem.weight[few].sum()
    part = problem._replace(
        x=problem.x[few], target=problem.target[:, few], weight=share * problem.weight[few]
    )
    rough = jnp.maximum(target, 3e-3 * jnp.linalg.norm(first_gradient(problem)))
    near = newton(part, None, rough, jnp.minimum(max_iter, 20), smooth=smooth).theta
    near = jnp.where(jnp.isfinite(near), near, 0)
    # From zero, whose loss is known, the first step that is tried goes there.
    known = problem.weight.sum() * math.log(max(m, 2))
    return _newton(problem, origin, near, known, target, max_iter, smooth)


def _newton(
    problem: Problem,
    start: Array,
    move: Array,
    value: Array,
    target: Array,
    max_iter: Array,
    smooth: bool,
) -> Found:
    """From `start`, where the objective is `value` or unknown; first along `move`."""
    epsilon = jnp.finfo(start.dtype).eps

    def go_on(state: _Newton) -> Array:
        unfinished = (state.least > target) & (state.num_iterations <= max_iter)
        useful = (state.idle < _IDLE[0]) & (state.alpha > 1e-9)
        return unfinished & useful & ~_open_ended(problem, state.margin)

    def step(state: _Newton) -> _Newton:
        theta = state.theta + state.alpha * state.move
        total = sums(problem, theta)
        value = total.loss + _penalty(problem, theta)
        slack = 16 * epsilon * jnp.abs(state.value)  # rounding of the sum
        lower = value <= state.value + 1e-4 * state.alpha * state.gain + slack
        pull = subgradient(problem, theta, total.gradient)
        norm, before = jnp.linalg.norm(pull), jnp.linalg.norm(state.pull)
        wanted = lower & ~((norm < 0.3 * before) & (state.alpha == 1)) & (norm > target)
        curved = jax.lax.cond(
            wanted,
            lambda theta, _: hessian(problem, theta),
            lambda _, old: old,
            theta,
            state.hessian,
        )
        move, gain = _direction(problem, theta, total.gradient, pull, curved, smooth)
        better = lower & ((norm < state.least) | _open_ended(problem, total.margin))

        def kept(new: Array, old: Array) -> Array:
            return jnp.where(lower, new, old)

        return _Newton(
            kept(theta, state.theta),
            kept(value, state.value),
            kept(pull, state.pull),
            curved,
            kept(move, state.move),
            kept(gain, state.gain),
            alpha=jnp.where(lower, 1, state.alpha / 2),
            best=jnp.where(better, theta, state.best),
            least=jnp.where(better, jnp.minimum(norm, state.least), state.least),
            margin=kept(total.margin, state.margin),
            idle=jnp.where(
                lower & (norm < 0.9 * state.least), 0, state.idle + lower.astype(jnp.int32)
            ),
            num_iterations=state.num_iterations + lower.astype(jnp.int32),
        )

    infinite, zero = jnp.full_like(target, jnp.inf), jnp.zeros((), jnp.int32)
    nothing = jnp.zeros_like(start)
    first = _Newton(
        start,
        value,
        nothing,
        jnp.zeros((start.size,) * 2, start.dtype),
        move,
        0 * target,
        alpha=jnp.ones_like(target),
        best=start,
        least=infinite,
        margin=-infinite,
        idle=zero,
        num_iterations=zero,
    )
    end = jax.lax.while_loop(go_on, step, first)
    return Found(end.best, end.num_iterations - 1)


def _direction(
    problem: Problem, theta: Array, gradient: Array, pull: Array, curved: Array, smooth: bool
) -> tuple[Array, Array]:
    """A step, and what it changes to first order."""
    if smooth:
        move = -solve(problem, curved, jnp.ones_like(theta, bool), pull)
        return move, jnp.minimum((pull * move).sum(), 0)
    shape = theta.shape
    ridge = jnp.broadcast_to(problem.l2 * problem.penalised[None], shape)
    full = curved + jnp.diag(ridge.ravel())
    slope, origin = gradient + ridge * theta, full @ theta.ravel()

    # The quadratic that touches the loss, with the penalty as it is, by proximal steps.
    best = _accelerated(
        image=lambda there: full @ there.ravel(),
        slope=lambda y, image: (slope + (image - origin).reshape(shape), ()),
        bend=lambda there, image, y, before, _: (image - before) @ (there - y).ravel(),
        unit=_positive(jnp.diag(full)).reshape(shape),
        l1=problem.l1 * problem.penalised[None],
        start=theta,
        target=0.1 * jnp.linalg.norm(pull),
        max_iter=jnp.array(5000, jnp.int32),
        is_over=lambda image: jnp.array(False),
    ).theta
    move = best - theta
    # Of the smooth part by its tangent, and of the kink: not positive, as the whole is convex.
    kink = problem.l1 * (jnp.abs(best[:, :-1]) - jnp.abs(theta[:, :-1])).sum()
    return move, jnp.minimum((slope * move).sum() + kink, 0)


def free(problem: Problem, theta: Array, pull: Array) -> Array:
    """Whether a weight moves: not one that is zero and pulled less than the L1 penalty holds."""
    kinked = (problem.l1 * problem.penalised > 0)[None]
    return ~kinked | (theta != 0) | (pull != 0)


def solve(problem: Problem, curved: Array, moving: Array, right: Array) -> Array:
    """Solve with the Hessian of the objective, given that of the loss, on the weights that move.

    The same number added to the scores of all classes changes nothing. Where no L1 penalty holds
    the weights, a positive matrix is added on that subspace: the solution does not leave the other.
    """
    m, width = moving.shape
    dtype = curved.dtype
    full = curved + jnp.diag(jnp.tile(problem.l2 * problem.penalised, m))
    if m > 1:
        loose = (problem.l1 * problem.penalised == 0).astype(dtype)
        shared = loose * jnp.diag(curved).reshape(m, width).mean(axis=0)
        full = full + jnp.tile(jnp.diag(shared), (m, m))
    # In units in which the diagonal is 1, rounding errors are of the order of epsilon.
    unit = jnp.where(moving.ravel(), jax.lax.rsqrt(_positive(jnp.diag(full))), 0)
    still = jnp.where(moving.ravel(), 4 * (m * width) ** 0.5 * jnp.finfo(dtype).eps, 1)
    scaled = full * unit[:, None] * unit[None, :] + jnp.diag(still.astype(dtype))
    factor = jnp.linalg.cholesky(scaled)
    usable = jnp.isfinite(factor).all()
    found = jax.scipy.linalg.cho_solve((factor, True), unit * right.ravel())
    # Of the right side both are linear, so that this can be differentiated backwards.
    return (unit * jnp.where(usable, found, unit * right.ravel())).reshape(m, width)


def _positive(diagonal: Array) -> Array:
    """Raise what is (nearly) zero: a feature that never varies."""
    least = jnp.finfo(diagonal.dtype).eps ** 2 * diagonal.max()
    return jnp.where(diagonal > least, diagonal, 1)


def _open_ended(problem: Problem, margin: Array) -> Array:
    """Whether it goes downhill for ever: no row is wrong, and nothing holds the weights."""
    return (problem.l1 == 0) & (problem.l2 == 0) & (margin > 0)


# --- L-BFGS ---------------------------------------------------------------------------------------


class _Lbfgs(NamedTuple):
    theta: Array
    scores: Array
    gradient: Array
    memory: Any
    least: Array
    margin: Array
    idle: Array
    num_iterations: Array


def lbfgs(problem: Problem, start: Array | None, target: Array, max_iter: Array) -> Found:
    """L-BFGS with Optax, in coordinates that suit the data; arguments as for `newton`."""
    import optax

    start = _start(problem, start)
    z = _with_level(problem, problem.x)
    back, forth = _coordinates(problem, z)
    rule = optax.scale_by_lbfgs(memory_size=10)
    ridge = problem.l2 * problem.penalised[None]
    dtype = problem.x.dtype

    def gradient(theta: Array, scores: Array) -> Array:
        pull = problem.weight[None] * (probabilities(scores) - problem.target.astype(dtype))
        return pull @ z + ridge * theta

    def go_on(state: _Lbfgs) -> Array:
        norm = jnp.linalg.norm(state.gradient)
        unfinished = (norm > target) & (state.num_iterations < max_iter)
        return unfinished & (state.idle < _IDLE[1]) & ~_open_ended(problem, state.margin)

    def step(state: _Lbfgs) -> _Lbfgs:
        slope = back(state.gradient)
        # Optax mixes dtypes; its memory is float64 where that is enabled.
        with jax.numpy_dtype_promotion("standard"):
            way, memory = rule.update(slope, state.memory, forth(state.theta))
        way = -jnp.asarray(way, dtype)
        way = jnp.where((way * slope).sum() < 0, way, -slope)
        move = back(way, transposed=True)
        change = move @ z.T
        alpha = _search(problem, state, move, change, ridge)
        theta, scores = state.theta + alpha * move, state.scores + alpha * change
        now = gradient(theta, scores)
        norm = jnp.linalg.norm(now)
        return _Lbfgs(
            theta,
            scores,
            now,
            memory,
            least=jnp.minimum(norm, state.least),
            margin=_margin(problem, scores),
            idle=jnp.where(norm < 0.9 * state.least, 0, state.idle + 1),
            num_iterations=state.num_iterations + 1,
        )

    scores = start @ z.T
    slope = gradient(start, scores)
    zero = jnp.zeros((), jnp.int32)
    first = _Lbfgs(
        start,
        scores,
        slope,
        rule.init(forth(start)),
        jnp.linalg.norm(slope),
        _margin(problem, scores),
        zero,
        zero,
    )
    end = jax.lax.while_loop(go_on, step, first)
    return Found(end.theta, end.num_iterations)


def _start(problem: Problem, start: Array | None) -> Array:
    shape = len(problem.target), problem.x.shape[1] + 1
    return jnp.zeros(shape, problem.x.dtype) if start is None else start


def _margin(problem: Problem, scores: Array) -> Array:
    """The smallest lead of a row's own class; only where nothing is penalised."""

    def smallest(scores: Array) -> Array:
        leads = _leads(scores, problem.target).max(axis=0)
        return -jnp.where(problem.weight > 0, leads, -jnp.inf).max()

    nothing = (problem.l1 == 0) & (problem.l2 == 0)
    infinite = jnp.full_like(problem.l2, -jnp.inf)
    return jax.lax.cond(nothing, smallest, lambda _: infinite, scores)


def _coordinates(problem: Problem, z: Array) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """Linear maps from and to coordinates in which a bound of the Hessian is the identity.

    The bound is half (for two classes, a quarter) of the weighted sum of z z', for every class,
    plus the penalty.
    """
    share = _share(problem)
    ridge = problem.l2 * problem.penalised
    width, epsilon = z.shape[1], jnp.finfo(z.dtype).eps
    diagonal = _positive(share * problem.weight @ jnp.square(z) + ridge)
    unit = jax.lax.rsqrt(diagonal)
    if width > MAX_DENSE:
        return (
            lambda g, transposed=False: g * unit[None],
            lambda theta: theta * jnp.sqrt(diagonal)[None],
        )
    bound = share * (z * problem.weight[:, None]).T @ z + jnp.diag(ridge)
    bound = bound * unit[:, None] * unit[None, :]
    # What never varies has an empty row: its coordinate stays what it is.
    spare = jnp.where(jnp.diag(bound) > 0.5, 4 * width**0.5 * epsilon, 1)
    factor = jnp.linalg.cholesky(bound + jnp.diag(spare))
    inverse = jax.scipy.linalg.solve_triangular(factor, jnp.diag(unit), lower=True)
    return (
        lambda g, transposed=False: g @ (inverse if transposed else inverse.T),
        lambda theta: (theta / unit[None]) @ factor,
    )


def _search(problem: Problem, state: _Lbfgs, move: Array, change: Array, ridge: Array) -> Array:
    """Where the slope along the direction is at most half of what it was: Newton, bracketed."""
    weight, target = problem.weight[None], problem.target.astype(change.dtype)
    start = (state.gradient * move).sum()
    along, length = (ridge * state.theta * move).sum(), (ridge * move * move).sum()

    def derivatives(alpha: Array) -> tuple[Array, Array]:
        p = probabilities(state.scores + alpha * change)
        first = (weight * (p - target) * change).sum() + along + alpha * length
        mean = (p * change).sum(axis=0, keepdims=True)
        # For one score the other class has the score 0: E[c²] - E[c]² = p (1 - p) c².
        second = (weight * (p * change**2 - p * change * mean)).sum() + length
        return first, second

    def step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, alpha, _, tries = carry
        first, second = derivatives(alpha)
        done = jnp.abs(first) <= 0.5 * jnp.abs(start)  # false where it is not finite
        far = ~(first < 0)
        low, high = jnp.where(far, low, alpha), jnp.where(far, alpha, high)
        step = alpha - first / second
        limit = jnp.where(jnp.isinf(high), 10 * low, high)
        margin = 0.1 * (limit - low)
        inside = (step >= low + margin) & (step <= limit - margin)
        other = jnp.where(jnp.isinf(high), 4 * low, (low + high) / 2)
        return low, high, jnp.where(done, alpha, jnp.where(inside, step, other)), done, tries + 1

    one = jnp.ones_like(start)
    carry = (0 * one, one * jnp.inf, one, jnp.array(False), jnp.zeros((), jnp.int32))
    low, _, alpha, done, _ = jax.lax.while_loop(lambda c: ~c[3] & (c[4] < 20), step, carry)
    return jnp.where(done, alpha, low)


# --- Proximal gradient ----------------------------------------------------------------------------


def proximal(problem: Problem, start: Array | None, target: Array, max_iter: Array) -> Found:
    """Accelerated proximal gradient; arguments as for `newton`.

    Every parameter has its own unit, the root of its entry in the bound of the Hessian.
    """
    start = _start(problem, start)
    z = _with_level(problem, problem.x)
    weight, dtype = problem.weight[None], problem.x.dtype
    ridge = problem.l2 * problem.penalised[None]

    def slope(y: Array, scores: Array) -> tuple[Array, Array]:
        p = probabilities(scores)
        return (weight * (p - problem.target.astype(dtype))) @ z + ridge * y, p

    def bend(there: Array, scores: Array, y: Array, before: Array, p: Array) -> Array:
        change = (weight * (probabilities(scores) - p) * (scores - before)).sum()
        return 2 * (change + (ridge * (there - y) ** 2).sum())

    return _accelerated(
        image=lambda theta: theta @ z.T,
        slope=slope,
        bend=bend,
        unit=_positive(_share(problem) * problem.weight @ jnp.square(z) + ridge[0])[None],
        l1=problem.l1 * problem.penalised[None],
        start=start,
        target=target,
        max_iter=max_iter,
        is_over=lambda scores: _open_ended(problem, _margin(problem, scores)),
    )


def _share(problem: Problem) -> float:
    """No curvature of the loss, in any direction of the scores, is larger."""
    return 0.25 if len(problem.target) == 1 else 0.5


class _Step(NamedTuple):
    theta: Array
    image: Array
    last: Array
    last_image: Array
    momentum: Array
    steepness: Array
    norm: Array
    least: Array
    over: Array
    idle: Array
    num_iterations: Array


def _accelerated(
    *,
    image: Callable[[Array], Array],
    slope: Callable[[Array, Array], tuple[Array, Any]],
    bend: Callable[[Array, Array, Array, Array, Any], Array],
    unit: Array,
    l1: Array,
    start: Array,
    target: Array,
    max_iter: Array,
    is_over: Callable[[Array], Array],
) -> Found:
    """Minimise f + l1 |theta| for a convex f of a linear image of theta.

    The image of a point between two others follows from theirs: one product with the data for a
    point, and one for a slope.

    Args:
        image: The linear map.
        slope: Of f from a point and its image, and what `bend` wants to know of the point.
        bend: Of a new point, its image, the old ones and that: at least twice what f is above its
            tangent.
        unit: Curvature in each coordinate, up to a common factor.
        l1: Penalty in each coordinate.
        start: First point.
        target: Size of a step, in units of a slope, at which it ends.
        max_iter: Most steps.
        is_over: Of an image: whether to end for another reason.

    Returns:
        The last point.
    """

    def go_on(state: _Step) -> Array:
        unfinished = (state.norm > target) & (state.num_iterations < max_iter)
        return unfinished & (state.idle < _IDLE[2]) & ~state.over

    def step(state: _Step) -> _Step:
        momentum = (1 + jnp.sqrt(1 + 4 * state.momentum**2)) / 2
        ahead = (state.momentum - 1) / momentum
        y = state.theta + ahead * (state.theta - state.last)
        y_image = state.image + ahead * (state.image - state.last_image)
        down, known = slope(y, y_image)

        def at(steepness: Array) -> tuple[Array, Array, Array]:
            there = y - down / (steepness * unit)
            there = jnp.sign(there) * jnp.maximum(jnp.abs(there) - l1 / (steepness * unit), 0)
            its_image = image(there)
            room = (steepness * unit * (there - y) ** 2).sum()
            excess = bend(there, its_image, y, y_image, known)
            return there, its_image, ~(excess <= room * (1 + 1e-3)) & (room > 0)

        steepness, (theta, its_image, _) = jax.lax.while_loop(
            lambda carry: carry[1][2] & (carry[0] < 1e6),
            lambda carry: (2 * carry[0], at(2 * carry[0])),
            (0.45 * state.steepness, (y, y_image, jnp.array(True))),
        )
        uphill = (unit * (y - theta) * (theta - state.theta)).sum() > 0
        norm = 2 * jnp.linalg.norm(steepness * unit * (y - theta))
        return _Step(
            theta,
            its_image,
            last=jnp.where(uphill, theta, state.theta),
            last_image=jnp.where(uphill, its_image, state.image),
            momentum=jnp.where(uphill, 1, momentum),
            steepness=steepness,
            norm=norm,
            least=jnp.minimum(norm, state.least),
            over=is_over(its_image),
            idle=jnp.where(norm < 0.9 * state.least, 0, state.idle + 1),
            num_iterations=state.num_iterations + 1,
        )

    first_image, one = image(start), jnp.ones_like(target)
    infinite, zero = jnp.full_like(target, jnp.inf), jnp.zeros((), jnp.int32)
    first = _Step(
        start, first_image, start, first_image, one, one, infinite, infinite, jnp.array(False),
        zero, zero,
    )  # fmt: skip
    end = jax.lax.while_loop(go_on, step, first)
    return Found(end.theta, end.num_iterations)
