r"""Critical points: where the gradient vanishes, and what the Hessian says there.

Near a point $\theta$ a smooth $f$ is its second-order Taylor model

$$f(\theta + v) \approx f(\theta) + g^\top v + \tfrac12 v^\top H v, \qquad
g = \nabla f(\theta),\quad H = \nabla^2 f(\theta).$$

At $g = 0$ the eigenvalues $\lambda_1 \le \dots \le \lambda_d$ of $H$ decide: $\lambda_1 > 0$ is a
minimum, $\lambda_d < 0$ a maximum, $\lambda_1 < 0 < \lambda_d$ a saddle; otherwise second order is
silent. Small problems form $H$; large ones multiply by it (`hessian_operator`) and find both ends
of its spectrum by Lanczos' recursion, without a $d \times d$ array.

Every function takes a scalar function `f` of one argument, `params`, which is any pytree of real
arrays (a vector is the simplest). Data belong to the caller's `jit`:
`jax.jit(lambda params, x, y: classify(lambda p: loss(p, x, y), params))`. Vectors that are made
here (eigenvectors, Hessians) have the widest dtype among the leaves, and at least float32.

Reference: Nocedal and Wright, *Numerical Optimization* (2nd ed., 2006), sections 2.1 and 7.1;
Golub and Van Loan, *Matrix Computations* (4th ed., 2013), chapter 10.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.optimization import _lanczos

__all__ = [
    "KINDS",
    "MAX_SIZE",
    "CriticalPoint",
    "Eigenpairs",
    "Escape",
    "SpectralDensity",
    "SpectrumEnds",
    "classify",
    "escape",
    "escape_direction",
    "gradient_norm",
    "hessian",
    "hessian_operator",
    "hessian_vector_product",
    "kind",
    "lanczos",
    "minimum_ratio",
    "spectral_density",
    "taylor_model",
]

#: What `kind` counts in: `KINDS[int(kind(...))]`.
KINDS = ("not critical", "minimum", "maximum", "saddle", "degenerate")

#: Largest number of parameters for which a full Hessian is formed unless asked: 64 MiB of float32.
MAX_SIZE = 4096

_ROWS_AT_ONCE = 32

Params = PyTree[Array]
Objective = Callable[[Any], Array]


class CriticalPoint(NamedTuple):
    r"""Verdict of the second-order test.

    Attributes:
        gradient_norm: $\|\nabla f(\theta)\|_2$, shape `()`.
        eigenvalues: Of the Hessian, ascending, shape `(d,)`.
        kind: Index into `KINDS`, shape `()`.
    """

    gradient_norm: Float[Array, ""]
    eigenvalues: Float[Array, " d"]
    kind: Int[Array, ""]


class Escape(NamedTuple):
    r"""A step away from a critical point.

    Attributes:
        params: $\theta + t\,u$; the point itself where no step lowered the loss.
        value: The loss there, shape `()`.
        decrease: How much lower that is, shape `()`; zero where nothing was found.
        step: $t$ along the unit direction, shape `()`; negative where $-u$ was the way down.
        curvature: $u^\top H u$ of the unit direction, shape `()`.
        lowered: Whether the loss is lower, as measured, shape `()`.
        num_evaluations: How many steps were tried, shape `()`.
    """

    params: Params
    value: Float[Array, ""]
    decrease: Float[Array, ""]
    step: Float[Array, ""]
    curvature: Float[Array, ""]
    lowered: Bool[Array, ""]
    num_evaluations: Int[Array, ""]


class Eigenpairs(NamedTuple):
    r"""Some approximate eigenpairs $(\theta_i, y_i)$ of a symmetric operator $A$.

    Attributes:
        values: Ritz values, ascending, shape `(k,)`.
        vectors: Unit Ritz vectors: the operand's pytree with a leading axis of length `k`.
        residuals: $\|A y_i - \theta_i y_i\|_2$, computed with one more product each, shape `(k,)`.
            An eigenvalue of $A$ lies within this distance of the Ritz value.
    """

    values: Float[Array, " k"]
    vectors: Params
    residuals: Float[Array, " k"]


class SpectralDensity(NamedTuple):
    """A Gauss quadrature of the spectrum, one row for each random probe.

    Attributes:
        nodes: Where the weight sits, shape `(num_probes, m)`.
        weights: Not negative; each row sums to one, shape `(num_probes, m)`.
    """

    nodes: Float[Array, "p m"]
    weights: Float[Array, "p m"]


class SpectrumEnds(NamedTuple):
    """Both ends of a spectrum.

    Attributes:
        lowest: The `k` lowest eigenpairs, ascending.
        highest: The `k` highest eigenpairs, ascending.
        density: Quadrature of the whole spectrum from the same run: one probe, shapes `(1, m)`.
        num_steps: How many Lanczos steps were taken, shape `()`.
    """

    lowest: Eigenpairs
    highest: Eigenpairs
    density: SpectralDensity
    num_steps: Int[Array, ""]


def gradient_norm(f: Objective, params: Params) -> Float[Array, ""]:
    r"""Measure how far `params` is from being critical: $\|\nabla f(\theta)\|_2$.

    Args:
        f: Differentiable map from a pytree like `params` to a scalar.
        params: Where; a pytree of real arrays.

    Returns:
        The Euclidean norm over all leaves, shape `()`.

    Raises:
        TypeError: A leaf of `params` or the value of `f` is not real.
        ValueError: `params` is empty, or `f` does not return a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import critical_points
        >>> print(critical_points.gradient_norm(lambda x: 0.5 * x @ x, jnp.array([3.0, 4.0])))
        5.0
    """
    params = _parameters(f, params)
    return _safe_norm(_Space(params).flatten(jax.grad(f)(params)))


def hessian(f: Objective, params: Params, *, max_size: int = MAX_SIZE) -> Float[Array, "d d"]:
    r"""Form the full Hessian, the leaves of `params` laid end to end.

    It is made from $d$ Hessian-vector products, some at a time.

    Args:
        f: Twice differentiable map from a pytree like `params` to a scalar.
        params: Where; a pytree of real arrays with $d$ numbers in all.
        max_size: Refuse to form more than `max_size` rows. Static.

    Returns:
        $H_{ij} = \partial^2 f / \partial\theta_i \partial\theta_j$, shape `(d, d)`; the order is
        that of `jax.tree.leaves`, each leaf row by row.

    Raises:
        TypeError: A leaf of `params` or the value of `f` is not real.
        ValueError: `params` is empty or has more than `max_size` numbers, or `f` does not return
            a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import critical_points
        >>> print(critical_points.hessian(lambda w: (1 - w[0] * w[1]) ** 2, jnp.zeros(2)))
        [[ 0. -2.]
         [-2.  0.]]
    """
    params = _parameters(f, params)
    space = _Space(params)
    _check_size(space.size, max_size)
    matvec = _flat(hessian_operator(f, params), space)
    rows = jnp.eye(space.size, dtype=space.dtype)
    if space.size <= _ROWS_AT_ONCE:
        return jax.vmap(matvec)(rows)
    # In batches: a vmap over all rows would hold d copies of the activations.
    return lax.map(matvec, rows, batch_size=_ROWS_AT_ONCE)


def hessian_vector_product(f: Objective, params: Params, vector: Params) -> Params:
    r"""Multiply a vector by the Hessian without forming it.

    $Hv$ is the derivative of the gradient along $v$, forward mode over reverse mode:

    $$H v = \frac{d}{dt}\Big|_{t=0} \nabla f(\theta + t v).$$

    Args:
        f: Twice differentiable map from a pytree like `params` to a scalar.
        params: Where, $\theta$; a pytree of real arrays.
        vector: $v$; a pytree of the same structure and shapes, cast to the dtypes of `params`.

    Returns:
        $Hv$, a pytree like `params`.

    Raises:
        TypeError: A leaf of `params` or `vector`, or the value of `f`, is not real.
        ValueError: `params` is empty, `vector` is of another structure or shape, or `f` does not
            return a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import critical_points
        >>> f = lambda p: p["a"] ** 2 * p["b"]
        >>> point, v = {"a": jnp.array(1.0), "b": jnp.array(3.0)}, {"a": 1.0, "b": 0.0}
        >>> product = critical_points.hessian_vector_product(f, point, v)
        >>> print(product["a"], product["b"])
        6.0 2.0

    Reference: Pearlmutter, "Fast exact multiplication by the Hessian" (1994).
    """
    params = _parameters(f, params)
    return jax.jvp(jax.grad(f), (params,), (_like("vector", vector, params),))[1]


def hessian_operator(f: Objective, params: Params) -> Callable[[Params], Params]:
    r"""Make the map $v \mapsto Hv$, for many products at one point.

    The gradient is linearised once, here; its activations are kept for as long as the map is.

    Args:
        f: Twice differentiable map from a pytree like `params` to a scalar.
        params: Where, $\theta$; a pytree of real arrays.

    Returns:
        A linear function from a pytree like `params`, dtypes included, to another.

    Raises:
        TypeError: A leaf of `params` or the value of `f` is not real.
        ValueError: `params` is empty, or `f` does not return a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import critical_points
        >>> point = jnp.array([1.0, 2.0])
        >>> operator = critical_points.hessian_operator(lambda x: jnp.sum(x**3), point)
        >>> print(operator(jnp.ones(2)))
        [ 6. 12.]
    """
    params = _parameters(f, params)
    return jax.linearize(jax.grad(f), params)[1]


def taylor_model(f: Objective, params: Params) -> Callable[[Params], Float[Array, ""]]:
    r"""Make the second-order model $m(v) = f(\theta) + g^\top v + \tfrac12 v^\top H v$.

    Args:
        f: Twice differentiable map from a pytree like `params` to a scalar.
        params: Where, $\theta$; a pytree of real arrays.

    Returns:
        A function of the displacement $v$, a pytree like `params`; each call costs one
        Hessian-vector product. For $\theta + v$ near $\theta$ its error is of third order.

    Raises:
        TypeError: A leaf of `params` or the value of `f` is not real.
        ValueError: `params` is empty, or `f` does not return a scalar; the model raises it if the
            displacement is of another structure or shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import critical_points
        >>> model = critical_points.taylor_model(jnp.exp, jnp.array(0.0))
        >>> print(model(0.5))  # 1 + 1/2 + 1/8
        1.625
    """
    params = _parameters(f, params)
    space = _Space(params)
    (value, gradient), products = jax.linearize(jax.value_and_grad(f), params)

    def model(displacement: Params) -> Array:
        displacement = _like("displacement", displacement, params)
        _, product = products(displacement)
        v, g, hv = (space.flatten(tree) for tree in (displacement, gradient, product))
        return value.astype(space.dtype) + _dot(g, v) + 0.5 * _dot(v, hv)

    return model


def kind(
    gradient_norm: Float[ArrayLike, ""],
    eigenvalues: Float[ArrayLike, " k"],
    *,
    gradient_tol: Float[ArrayLike, ""] = 1e-4,
    curvature_tol: Float[ArrayLike, ""] = 1e-5,
    error: Float[ArrayLike, "*k"] = 0.0,
) -> Int[Array, ""]:
    r"""Name the kind of a point from its gradient and its Hessian's outer eigenvalues.

    | kind | where |
    |---|---|
    | not critical | $\|g\|$ is above `gradient_tol`, or NaN |
    | minimum | every eigenvalue is positive |
    | maximum | every eigenvalue is negative |
    | saddle | some are positive and some negative |
    | degenerate | none of these: one is zero and the others agree; second order is silent |

    An eigenvalue counts as zero where
    $|\lambda_i| \le \max(\text{curvature\_tol} \cdot \max_j |\lambda_j|,\ \text{error}_i)$:
    relative to the largest, as rounding is. `gradient_tol` is absolute, in units of loss per
    unit of parameter. A NaN is never a minimum.

    Args:
        gradient_norm: $\|g\|_2$, shape `()`.
        eigenvalues: All of them, or both ends of the spectrum, in any order, shape `(k,)`.
        gradient_tol: Up to here a gradient counts as zero. Traced.
        curvature_tol: Up to here, relative to the largest, an eigenvalue counts as zero. Traced.
        error: How far each eigenvalue may be off, a scalar or shape `(k,)`; for those of
            `lanczos`, the residuals.

    Returns:
        Index into `KINDS`, shape `()`.

    Raises:
        TypeError: An argument is not real.
        ValueError: A shape is wrong, or a concrete tolerance is negative.

    Example:
        >>> from mlnotes_jax.optimization import critical_points
        >>> for eigenvalues in ([1.0, 2.0], [-1.0, 2.0], [0.0, 2.0]):
        ...     print(critical_points.KINDS[int(critical_points.kind(0.0, eigenvalues))])
        minimum
        saddle
        degenerate

    Note:
        With both ends from `lanczos`, "saddle" rests on certificates, but "minimum" only says
        that no negative curvature was found.
    """
    gradient_norm = _checks.floating("gradient_norm", gradient_norm, ndim=0)
    values = _checks.floating("eigenvalues", eigenvalues, ndim=1)
    _checks.not_empty("eigenvalues", values)
    error = _checks.floating("error", error, ndim=(0, 1))
    if error.ndim and error.shape != values.shape:
        raise ValueError(f"error must be a scalar or have shape {values.shape}, got {error.shape}")
    tols = _tolerances(gradient_tol=gradient_tol, curvature_tol=curvature_tol)
    sign = _signs(values, tols["curvature_tol"], error)
    return jnp.select(
        [
            ~(gradient_norm <= tols["gradient_tol"].astype(gradient_norm.dtype)),
            jnp.all(sign > 0),
            jnp.all(sign < 0),
            jnp.any(sign > 0) & jnp.any(sign < 0),
        ],
        [jnp.int32(index) for index in range(4)],
        default=jnp.int32(4),
    )


def classify(
    f: Objective,
    params: Params,
    *,
    gradient_tol: Float[ArrayLike, ""] = 1e-4,
    curvature_tol: Float[ArrayLike, ""] = 1e-5,
    max_size: int = MAX_SIZE,
) -> CriticalPoint:
    r"""Run the second-order test: gradient, full Hessian, all its eigenvalues, verdict.

    Args:
        f: Twice differentiable map from a pytree like `params` to a scalar.
        params: Where; a pytree of real arrays with $d$ numbers in all.
        gradient_tol: Up to here $\|g\|$ counts as zero; absolute. Traced, so it may be batched.
        curvature_tol: Up to here, relative to the largest magnitude, an eigenvalue counts as zero.
        max_size: Refuse more than `max_size` parameters; use `lanczos` then. Static.

    Returns:
        Gradient norm, eigenvalues and kind.

    Raises:
        TypeError: A leaf of `params` or the value of `f` is not real.
        ValueError: `params` is empty or too large, `f` does not return a scalar, or a concrete
            tolerance is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import critical_points
        >>> verdict = critical_points.classify(lambda w: (1 - w[0] * w[1]) ** 2, jnp.zeros(2))
        >>> print(verdict.eigenvalues, critical_points.KINDS[int(verdict.kind)])
        [-2.  2.] saddle

    Reference: Nocedal and Wright, *Numerical Optimization* (2006), theorems 2.2 to 2.4.
    """
    norm = gradient_norm(f, params)
    eigenvalues = jnp.linalg.eigvalsh(hessian(f, params, max_size=max_size))
    verdict = kind(norm, eigenvalues, gradient_tol=gradient_tol, curvature_tol=curvature_tol)
    return CriticalPoint(norm, eigenvalues, verdict)


def minimum_ratio(
    eigenvalues: Float[ArrayLike, " d"], *, curvature_tol: Float[ArrayLike, ""] = 1e-5
) -> Float[Array, ""]:
    r"""Measure how much a point looks like a minimum: the share of positive eigenvalues.

    Args:
        eigenvalues: All of the Hessian's, in any order, shape `(d,)`.
        curvature_tol: Up to here, relative to the largest magnitude, one counts as zero. Traced.

    Returns:
        1 at a minimum, 0 at a maximum, shape `()`. NaN where an eigenvalue is NaN.

    Raises:
        TypeError: An argument is not real.
        ValueError: `eigenvalues` is not a non-empty vector, or `curvature_tol` is negative.

    Example:
        >>> from mlnotes_jax.optimization import critical_points
        >>> print(critical_points.minimum_ratio([-1.0, 0.0, 2.0, 3.0]))
        0.5
    """
    values = _checks.floating("eigenvalues", eigenvalues, ndim=1)
    _checks.not_empty("eigenvalues", values)
    tol = _tolerances(curvature_tol=curvature_tol)["curvature_tol"]
    positive = _signs(values, tol, jnp.zeros((), values.dtype)) > 0
    share = jnp.mean(positive, dtype=jnp.float32 if values.dtype.itemsize < 4 else values.dtype)
    return jnp.where(jnp.any(jnp.isnan(values)), jnp.nan, share)


def escape_direction(
    f: Objective, params: Params, *, max_size: int = MAX_SIZE
) -> tuple[Float[Array, ""], Params]:
    r"""Find the direction of most negative curvature from the full Hessian.

    It is the unit eigenvector $u$ of the lowest eigenvalue: $u^\top H u = \lambda_1$ is the least
    that any unit vector reaches. Its sign is arbitrary. For a model too large for `max_size`, take
    the first of `lanczos(...).lowest`.

    Args:
        f: Twice differentiable map from a pytree like `params` to a scalar.
        params: Where; a pytree of real arrays.
        max_size: Refuse more than `max_size` parameters. Static.

    Returns:
        $\lambda_1$, shape `()`, and $u$, a pytree like `params`. There is a way down at second
        order only if $\lambda_1 < 0$.

    Raises:
        TypeError: A leaf of `params` or the value of `f` is not real.
        ValueError: `params` is empty or too large, or `f` does not return a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import critical_points
        >>> f = lambda x: x[0] ** 2 - 3 * x[1] ** 2
        >>> curvature, u = critical_points.escape_direction(f, jnp.zeros(2))
        >>> print(curvature, jnp.abs(u))
        -6.0 [0. 1.]
    """
    params = _parameters(f, params)
    eigenvalues, eigenvectors = jnp.linalg.eigh(hessian(f, params, max_size=max_size))
    return eigenvalues[0], _Space(params).unflatten(eigenvectors[:, 0])


def escape(
    f: Objective,
    params: Params,
    direction: Params,
    *,
    step: Float[ArrayLike, ""] = 1.0,
    shrink: Float[ArrayLike, ""] = 0.5,
    sufficient: Float[ArrayLike, ""] = 0.5,
    max_evaluations: int = 40,
) -> Escape:
    r"""Leave a saddle along a direction of negative curvature, by a step that is seen to descend.

    A whole eigenvector is often too long a step. With the unit direction $u$, turned so that
    $g^\top u \le 0$, and $\kappa = u^\top H u$, the lengths $t, ct, c^2t, \dots$ are tried until

    $$f(\theta + t u) \le f(\theta) + s\,\bigl(t\,g^\top u + \tfrac12 t^2 \min(\kappa, 0)\bigr)$$

    and the loss is measured to be lower. If $\kappa < 0$ and the third derivative along $u$ is at
    most $\rho$, every $t \le 3(1 - s)|\kappa| / \rho$ passes, so the search ends.

    Args:
        f: Twice differentiable map from a pytree like `params` to a scalar.
        params: Where, $\theta$; a pytree of real arrays.
        direction: A pytree like `params`, of any length above zero. Where the gradient is zero its
            sign is kept, so that `direction` and its negative lead to the two sides.
        step: The first length tried, $t$. Traced.
        shrink: $c$ in (0, 1). Traced.
        sufficient: $s$ in [0, 1): which share of the promised decrease must be had. Traced.
        max_evaluations: How many lengths are tried at most. Static.

    Returns:
        The new point, its loss, and whether that is lower. Where no length passed (the direction
        has neither slope nor negative curvature, or the loss is not finite) the point is returned
        as it came, `lowered` is false and the step is zero.

    Raises:
        TypeError: A leaf or a hyper-parameter is not real.
        ValueError: `params` is empty, `direction` is of another structure or shape, `f` does not
            return a scalar, or a concrete hyper-parameter is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import critical_points
        >>> f = lambda x: x[0] ** 2 - x[1] ** 2 + 4 * x[1] ** 4  # lowest at x[1] = 0.35
        >>> result = critical_points.escape(f, jnp.zeros(2), jnp.array([0.0, 1.0]))
        >>> print(result.lowered, result.step, result.value, f(jnp.array([0.0, 1.0])))
        True 0.25 -0.046875 3.0

    Note:
        The search is a `while_loop`: it cannot be differentiated in reverse mode, and under
        `vmap` all lanes run as long as the slowest.
    """
    params = _parameters(f, params)
    direction = _like("direction", direction, params)
    _check_not_zero("direction", direction)
    _checks.positive("step", step)
    _checks.positive("shrink", shrink)
    _check_below_one("shrink", shrink)
    _checks.not_negative("sufficient", sufficient)
    _check_below_one("sufficient", sufficient)
    _checks.positive_int("max_evaluations", max_evaluations)
    space = _Space(params)
    start, unit = space.flatten(params), space.flatten(direction)
    unit = unit / _safe_norm(unit)

    (value, gradient), products = jax.linearize(jax.value_and_grad(f), params)
    value = value.astype(space.dtype)
    slope = _dot(space.flatten(gradient), unit)
    curvature = _dot(unit, space.flatten(products(space.unflatten(unit))[1]))
    side = jnp.where(slope > 0, -1, 1).astype(space.dtype)
    first, shrink, sufficient = (
        _checks.floating(name, number, ndim=0).astype(space.dtype)
        for name, number in (("step", step), ("shrink", shrink), ("sufficient", sufficient))
    )

    def at(length: Array) -> Params:
        return space.unflatten(start + length * side * unit)

    def passes(length: Array, reached: Array) -> Array:
        promised = -length * jnp.abs(slope) + 0.5 * length**2 * jnp.minimum(curvature, 0)
        # A NaN fails both. The second line holds the promise even where the first rounds away.
        return (reached <= value + sufficient * promised) & (reached < value)

    def attempt(carry: tuple) -> tuple:
        length, _, _, tried = carry
        length = jnp.where(tried == 0, first, length * shrink)
        reached = f(at(length)).astype(space.dtype)
        return length, reached, passes(length, reached), tried + 1

    promising = (slope != 0) | ~(curvature >= 0)
    length, reached, lowered, tried = lax.while_loop(
        lambda carry: promising & ~carry[2] & (carry[3] < max_evaluations),
        attempt,
        (first, value, jnp.bool_(False), jnp.int32(0)),
    )
    return Escape(
        params=jax.tree.map(lambda new, old: jnp.where(lowered, new, old), at(length), params),
        value=jnp.where(lowered, reached, value),
        decrease=jnp.where(lowered, value - reached, 0),
        step=jnp.where(lowered, side * length, 0),
        curvature=curvature,
        lowered=lowered,
        num_evaluations=tried,
    )


def lanczos(
    key: Key[Array, ""],
    operator: Callable[[Params], Params],
    like: Params,
    *,
    num_pairs: int = 1,
    num_steps: int = 64,
    tol: Float[ArrayLike, ""] | None = None,
) -> SpectrumEnds:
    r"""Find both ends of the spectrum of a symmetric operator from products with it alone.

    From a random unit vector $v_1$ the recursion

    $$\beta_j v_{j+1} = A v_j - \alpha_j v_j - \beta_{j-1} v_{j-1}, \qquad
    \alpha_j = v_j^\top A v_j,$$

    builds an orthonormal basis in which $A$ is tridiagonal; the outer eigenvalues of that small
    matrix (Ritz values) approach those of $A$, the extreme ones first. Every new vector is made
    orthogonal to all before it, so no eigenvalue is reported twice by rounding. An invariant
    subspace (breakdown) is left by a new random vector, so copies of a repeated eigenvalue are
    found; with `num_steps >= d` the result is the whole eigendecomposition.

    Args:
        key: Draws the start (and the restarts); the same key gives the same result.
        operator: Symmetric linear map $A$ from a pytree like `like` to another, such as
            `hessian_operator(f, params)`. That it is symmetric is not checked.
        like: A pytree of real arrays that gives the operand's structure, shapes and dtypes; its
            values are not used. $d$ numbers in all.
        num_pairs: Eigenpairs wanted at each end, $k \le$ `min(num_steps, d)`. Static.
        num_steps: Steps at most, one product with $A$ each; $d$ if that is smaller. Static.
        tol: Stop once every pair's estimated residual is at most `tol` times the largest Ritz value
            in magnitude; tested every 16 steps. None, the default, takes all steps. Traced.

    Returns:
        The pairs of each end with their residuals, the quadrature of `spectral_density` for the one
        start vector, and the number of steps taken. The vectors are
        in the working dtype: the widest among the leaves, at least float32.

    Raises:
        TypeError: A leaf of `like` is not real, or a count is not an integer.
        ValueError: `like` is empty, `operator` returns another structure or shape, `num_pairs` is
            too large, or a concrete `tol` is negative.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import critical_points
        >>> eigenvalues = jnp.linspace(-1.0, 9.0, 1001)
        >>> ends = critical_points.lanczos(
        ...     jax.random.key(0), lambda v: eigenvalues * v, jnp.zeros(1001), num_steps=200
        ... )
        >>> print(ends.lowest.values.round(3), ends.highest.values.round(3))
        [-1.] [9.]
        >>> bool(ends.lowest.residuals[0] < 1e-4)
        True

    Reference: Golub and Van Loan, *Matrix Computations* (2013), sections 10.1 to 10.3.

    Note:
        Memory is that of `num_steps` copies of `like`. With leaves in bfloat16 or float16 the
        operand is rounded to them, and no residual falls much below 1e-2 of the largest
        eigenvalue: cast the parameters up first. On a GPU, products inside `operator` may run in
        TF32 unless `jax.default_matmul_precision("highest")` is set.
    """
    like = _real_leaves("like", like)
    space = _Space(like)
    _checks.positive_int("num_steps", num_steps)
    _checks.positive_int("num_pairs", num_pairs)
    num_steps = min(num_steps, space.size)
    if num_pairs > num_steps:
        raise ValueError(
            f"num_pairs must be at most min(num_steps, d) = {num_steps}, got {num_pairs}"
        )
    _check_operator(operator, like)
    if tol is not None:
        tol = _tolerances(tol=tol)["tol"].astype(space.dtype)

    matvec = _flat(operator, space)
    basis, ritz = _lanczos.tridiagonalize(
        key,
        matvec,
        size=space.size,
        dtype=space.dtype,
        num_steps=num_steps,
        num_pairs=num_pairs,
        tol=tol,
    )

    def pair(value: Array, coordinates: Array) -> tuple[Array, Array]:
        vector = jnp.matmul(coordinates, basis.basis, precision="highest")
        vector = vector / _safe_norm(vector)
        return vector, _safe_norm(matvec(vector) - value * vector)

    values = ritz.values.reshape(-1)
    vectors, residuals = lax.map(
        lambda arguments: pair(*arguments), (values, ritz.vectors.reshape(2 * num_pairs, -1))
    )

    def end(part: slice) -> Eigenpairs:
        return Eigenpairs(values[part], space.unflatten_rows(vectors[part]), residuals[part])

    density = SpectralDensity(ritz.nodes[None], ritz.weights[None])
    return SpectrumEnds(
        end(slice(num_pairs)), end(slice(num_pairs, None)), density, basis.num_steps
    )


def spectral_density(
    key: Key[Array, ""],
    operator: Callable[[Params], Params],
    like: Params,
    *,
    num_probes: int = 4,
    num_steps: int = 64,
) -> SpectralDensity:
    r"""Estimate the whole spectrum's density by stochastic Lanczos quadrature.

    For a random unit vector $v$, $\mathbb E[v^\top h(A) v] = \operatorname{tr} h(A) / d$: the
    average of $h$ over the eigenvalues. With $v$ as its start the recursion gives the Gauss
    quadrature of $v^\top h(A) v$: nodes are the eigenvalues of the tridiagonal matrix, weights the
    squares of the first entries of its eigenvectors; it is exact for polynomials up to degree
    $2m - 1$. So `jnp.sum(weights * h(nodes), axis=1).mean()` estimates the mean of $h$.

    Args:
        key: Draws the probes.
        operator: Symmetric linear map from a pytree like `like` to another.
        like: A pytree of real arrays that gives structure, shapes and dtypes.
        num_probes: How many random vectors; the error falls as one over the square root. Static.
        num_steps: $m$, Lanczos steps for each; $d$ if that is smaller. Static.

    Returns:
        Nodes and weights, one row for each probe.

    Raises:
        TypeError: A leaf of `like` is not real, or a count is not an integer.
        ValueError: `like` is empty, or `operator` returns another structure or shape.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import critical_points
        >>> eigenvalues = jnp.where(jnp.arange(1000) < 300, -1.0, 2.0)
        >>> density = critical_points.spectral_density(
        ...     jax.random.key(0), lambda v: eigenvalues * v, jnp.zeros(1000), num_probes=50
        ... )
        >>> negative = jnp.sum(jnp.where(density.nodes < 0, density.weights, 0), axis=1).mean()
        >>> print(f"{negative:.2f} of the eigenvalues are negative")
        0.30 of the eigenvalues are negative

    Reference: Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos
        quadrature" (2017); Ghorbani, Krishnan and Xiao (2019) for networks.
    """
    like = _real_leaves("like", like)
    space = _Space(like)
    _checks.positive_int("num_probes", num_probes)
    _checks.positive_int("num_steps", num_steps)
    _check_operator(operator, like)
    matvec = _flat(operator, space)

    def probe(key: Array) -> tuple[Array, Array]:
        _, ritz = _lanczos.tridiagonalize(
            key,
            matvec,
            size=space.size,
            dtype=space.dtype,
            num_steps=min(num_steps, space.size),
        )
        return ritz.nodes, ritz.weights

    return SpectralDensity(*lax.map(probe, jax.random.split(key, num_probes)))


class _Space:
    """The vector space of pytrees like `params`: leaves end to end, in the working dtype."""

    def __init__(self, params: Params) -> None:
        self.leaves, self.treedef = jax.tree.flatten(params)
        self.size = sum(leaf.size for leaf in self.leaves)
        self.dtype = max((leaf.dtype for leaf in self.leaves), key=lambda dtype: dtype.itemsize)
        if self.dtype.itemsize < 4:
            self.dtype = jnp.dtype(jnp.float32)

    def flatten(self, tree: Params) -> Float[Array, " d"]:
        parts = [jnp.ravel(leaf).astype(self.dtype) for leaf in jax.tree.leaves(tree)]
        return jnp.concatenate(parts)

    def unflatten(self, vector: Float[Array, " d"], *, cast: bool = True) -> Params:
        parts, begin = [], 0
        for leaf in self.leaves:
            part = vector[begin : begin + leaf.size].reshape(leaf.shape)
            parts.append(part.astype(leaf.dtype) if cast else part)
            begin += leaf.size
        return self.treedef.unflatten(parts)

    def unflatten_rows(self, rows: Float[Array, "k d"]) -> Params:
        return jax.vmap(lambda row: self.unflatten(row, cast=False))(rows)


def _flat(operator: Callable[[Params], Params], space: _Space) -> Callable[[Array], Array]:
    return lambda vector: space.flatten(operator(space.unflatten(vector)))


def _real_leaves(name: str, tree: Params) -> Params:
    tree = jax.tree.map(lambda leaf: _checks.floating(f"each leaf of {name}", leaf), tree)
    if not sum(leaf.size for leaf in jax.tree.leaves(tree)):
        raise ValueError(f"{name} must hold at least one number, got {tree!r}")
    return tree


def _parameters(f: Objective, params: Params) -> Params:
    params = _real_leaves("params", params)
    value = jax.eval_shape(f, params)
    if not isinstance(value, jax.ShapeDtypeStruct) or value.shape != ():
        raise ValueError(f"f must return a scalar, got {value}")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"f must return a real number, got dtype {value.dtype}")
    return params


def _like(name: str, tree: Params, params: Params) -> Params:
    wanted, got = jax.tree.structure(params), jax.tree.structure(tree)
    if wanted != got:
        raise ValueError(f"{name} must have the structure {wanted}, got {got}")

    def leaf_like(value: ArrayLike, leaf: Array) -> Array:
        value = _checks.floating(f"each leaf of {name}", value)
        if value.shape != leaf.shape:
            raise ValueError(f"{name} must have a leaf of shape {leaf.shape}, got {value.shape}")
        return value.astype(leaf.dtype)

    return jax.tree.map(leaf_like, tree, params)


def _check_size(size: int, max_size: int) -> None:
    _checks.positive_int("max_size", max_size)
    if size > max_size:
        raise ValueError(
            f"params must hold at most max_size = {max_size} numbers for a full Hessian, got "
            f"{size} (a {size} x {size} array): use lanczos, or raise max_size"
        )


def _check_operator(operator: Callable[[Params], Params], like: Params) -> None:
    result = jax.eval_shape(operator, like)
    wanted, got = jax.tree.structure(like), jax.tree.structure(result)
    shapes = [leaf.shape for leaf in jax.tree.leaves(like)]
    if wanted != got or shapes != [leaf.shape for leaf in jax.tree.leaves(result)]:
        raise ValueError(f"operator must return a pytree like its operand, got {result}")


def _tolerances(**tols: ArrayLike) -> dict[str, Array]:
    for name, tol in tols.items():
        _checks.not_negative(name, tol)
    return {name: _checks.floating(name, tol, ndim=0) for name, tol in tols.items()}


def _check_below_one(name: str, value: ArrayLike) -> None:
    if _checks.is_concrete(value) and not np.all(np.asarray(value) < 1):
        raise ValueError(f"{name} must be less than 1, got {value}")


def _check_not_zero(name: str, tree: Params) -> None:
    if _checks.is_concrete(tree) and not any(np.any(leaf) for leaf in jax.tree.leaves(tree)):
        raise ValueError(f"{name} must not be zero")


def _signs(values: Array, tol: Array, error: Array) -> Array:
    """-1, 0 or 1 for each value, in int32; a NaN anywhere makes all of them 0."""
    threshold = tol.astype(values.dtype) * jnp.max(jnp.abs(values))
    threshold = jnp.maximum(threshold, error.astype(values.dtype))
    return jnp.where(jnp.abs(values) > threshold, jnp.sign(values), 0).astype(jnp.int32)


def _dot(a: Array, b: Array) -> Array:
    return jnp.vdot(a, b, precision="highest")


def _safe_norm(x: Array) -> Array:
    """The Euclidean norm; its derivative at zero is zero, not NaN."""
    square = _dot(x, x)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))
