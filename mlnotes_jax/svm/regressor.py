r"""Support vector regression: a tube around the data.

An error of at most $\varepsilon$ costs nothing, a larger one costs what it exceeds $\varepsilon$
by. For $f(x) = \langle w, \phi(x) \rangle + b$,

$$\min_{w, b}\; \tfrac12 \|w\|^2 + C \sum_i s_i \max(0, |y_i - f(x_i)| - \varepsilon) .$$

Its dual has one signed variable for each row,

$$\max_\beta\; y^\top \beta - \varepsilon \|\beta\|_1 - \tfrac12 \beta^\top K \beta
  \quad\text{with}\quad \textstyle\sum_i \beta_i = 0,\; |\beta_i| \le C s_i ,$$

and $f(x) = \sum_i \beta_i k(x_i, x) + b$, in which the rows inside of the tube have $\beta_i = 0$.

Reference: Smola and Schölkopf, *A tutorial on support vector regression* (Statistics and Computing,
2004).
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, DTypeLike, Float, Int

from mlnotes_jax import _checks
from mlnotes_jax.svm import _linear, _machines, _smo, kernels

__all__ = [
    "SVR",
    "Certificate",
    "LinearRegressor",
    "certificate",
    "fit",
    "fit_linear",
    "predict",
]

Loss = Literal["epsilon_insensitive", "squared_epsilon_insensitive"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "kernel",
        "x",
        "dual_coef",
        "intercept",
        "bound",
        "epsilon",
        "violation",
        "num_iterations",
        "converged",
    ],
    meta_fields=["precomputed"],
)
@dataclasses.dataclass(frozen=True)
class SVR:
    r"""A fitted tube: a pytree of fixed shapes, whatever the number of support vectors.

    Attributes:
        kernel: $k$, with every `"scale"` replaced by its number; None for a precomputed matrix.
        x: The rows it was fitted to, shape `(n, d)`; `(n, 0)` for a precomputed matrix.
        dual_coef: $\beta$, shape `(n,)`; positive for rows above the tube's middle.
        intercept: $b$, shape `()`.
        bound: $C s_i$, the largest size of $\beta_i$, shape `(n,)`.
        epsilon: $\varepsilon$, half the height of the tube, shape `()`.
        violation: How far the optimality conditions are violated, in the unit of the targets, shape
            `()`; see `Certificate`.
        num_iterations: Steps of the solver, each of which moves two duals.
        converged: Whether `violation` is at most the tolerance.
        precomputed: Whether kernel rows take the place of rows; static.
    """

    kernel: Any
    x: Float[Array, "n d"]
    dual_coef: Float[Array, " n"]
    intercept: Float[Array, ""]
    bound: Float[Array, " n"]
    epsilon: Float[Array, ""]
    violation: Float[Array, ""]
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]
    precomputed: bool

    @property
    def support(self) -> Bool[Array, " n"]:
        r"""Which rows hold the tube: those with $\beta_i \ne 0$, shape `(n,)`."""
        return self.dual_coef != 0


class LinearRegressor(NamedTuple):
    r"""A linear function with a tube around it, fitted in the primal.

    Attributes:
        coef: $w$, shape `(d,)`.
        intercept: $b$, shape `()`; 0 where none was fitted.
        objective: $\tfrac12 \|w\|^2 + C \sum_i s_i \ell_i$, shape `()`.
        gap: The duality gap: the objective is at most so much above its minimum, shape `()`.
            Computed at the end from the rows.
        num_iterations: Newton steps, shape `()`.
        converged: Whether `gap` is at most `tol` times `objective`, shape `()`.
    """

    coef: Float[Array, " d"]
    intercept: Float[Array, ""]
    objective: Float[Array, ""]
    gap: Float[Array, ""]
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]


class Certificate(NamedTuple):
    r"""What proves how near a fit is to the optimum, computed from the data.

    Attributes:
        primal: $\tfrac12 \beta^\top K \beta + \sum_i C s_i \max(0, |y_i - f(x_i)| - \varepsilon)$,
            shape `()`.
        dual: $y^\top \beta - \varepsilon \|\beta\|_1 - \tfrac12 \beta^\top K \beta$, shape `()`.
        gap: `primal - dual`, added up from terms that are not negative, shape `()`. The primal
            objective is at most so much above its minimum, if the kernel is positive semidefinite.
        violation: What raising the best $\beta_i$ and lowering the best $\beta_j$ by one unit each
            would gain at most, shape `()`; 0 at the optimum. libsvm stops where this is at most
            its `tol`.
        num_free: Rows on the edge of the tube: $0 < |\beta_i| < C s_i$, shape `()`.
        num_bound: Rows with $|\beta_i| = C s_i > 0$, which lie outside, shape `()`.
    """

    primal: Float[Array, ""]
    dual: Float[Array, ""]
    gap: Float[Array, ""]
    violation: Float[Array, ""]
    num_free: Int[Array, ""]
    num_bound: Int[Array, ""]


def fit(
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    *,
    kernel: Any,
    C: Float[ArrayLike, ""] = 1.0,
    epsilon: Float[ArrayLike, ""] = 0.1,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    tol: Float[ArrayLike, ""] = 1e-3,
    max_iter: Int[ArrayLike, ""] = 10_000_000,
    dual_dtype: DTypeLike | None = None,
) -> SVR:
    r"""Fit a tube of half-height $\varepsilon$, from the dual, with any kernel.

    Maximises $y^\top \beta - \varepsilon \|\beta\|_1 - \tfrac12 \beta^\top K \beta$ over
    $\sum_i \beta_i = 0$ and $|\beta_i| \le C s_i$, by pairs of duals in working sets. Up to 2048
    rows (5120 with 64 features or more) the Gram matrix is kept; beyond, its values are computed as
    they are needed, and memory grows with n. Works under `jit`, and under `vmap` over `C`,
    `epsilon`, the parameters of the kernel, weights and targets.

    Args:
        x: Rows, shape `(n, d)`, scaled to comparable features; or the Gram matrix, shape `(n, n)`.
        y: Targets, shape `(n,)`.
        kernel: From `mlnotes_jax.svm.kernels`, or any callable of two examples; or
            `"precomputed"`. A gamma of `"scale"` is resolved on `x`.
        C: What one unit outside of the tube costs, > 0; traced. Large: few errors. Small: a flat
            function.
        epsilon: $\varepsilon \ge 0$, in the unit of the targets; traced.
        sample_weight: $s_i \ge 0$, shape `(n,)`; zero drops a row.
        tol: Largest violation of the optimality conditions, > 0, in the unit of the targets;
            traced. Values f(x) are then usually as exact.
        max_iter: Most steps; traced.
        dual_dtype: In which $\beta$ and the gradient are kept; that of the data by default.
            `"float64"` with float32 data is nearly as fast as float32 and reaches tolerances
            that float32 does not; needs `jax_enable_x64`.

    Returns:
        The model. `converged` is false where `max_iter` or the rounding of the dtype ended the fit.

    Raises:
        ValueError: Shapes do not match, data are empty or (where concrete) not finite, a number is
            out of range, or the kernel is not finite on the data.
        TypeError: Data are not real numbers, or `kernel` is none.

    Example:
        >>> from mlnotes_jax.svm import kernels, regressor
        >>> x, y = [[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0]
        >>> model = regressor.fit(x, y, kernel=kernels.linear(), C=10.0, epsilon=0.5)
        >>> [round(float(value), 3) for value in regressor.predict(model, x)]
        [0.5, 1.0, 1.5]

    Reference:
        Smola and Schölkopf (2004); Fan, Chen and Lin, *Working set selection using second order
        information* (JMLR, 2005).

    Note:
        `sklearn.svm.SVR` has the same objective, tolerance and defaults; its kernel is
        `"rbf"` with gamma `"scale"`, here `kernels.gaussian("scale")`.
    """
    x, y, weight = _data(x, y, sample_weight)
    kernel, precomputed = _machines.checked_kernel(kernel, x)
    numbers = {"C": C, "epsilon": epsilon, "tol": tol}
    scalars = [_checks.floating(name, value, ndim=0) for name, value in numbers.items()]
    for (name, value), check in zip(
        numbers.items(), (_checks.positive, _checks.not_negative, _checks.positive), strict=True
    ):
        check(name, value)
        _checks.finite(name, jnp.asarray(value))
    dtype = _machines.dual_dtype(dual_dtype, x.dtype)
    scalars = [value.astype(dtype) for value in scalars]
    steps = _checks.count("max_iter", max_iter)
    model = _fit(x, y.astype(dtype), weight.astype(dtype), kernel, *scalars, steps, precomputed)
    _machines.check_finite(model.violation)
    return model


def predict(model: SVR | LinearRegressor, x: Float[ArrayLike, "m d"]) -> Float[Array, " m"]:
    """Evaluate a model.

    Args:
        model: From `fit` or `fit_linear`.
        x: Rows, shape `(m, d)`; kernel rows $k(x_i, x)$, shape `(m, n)`, for a model that was
            fitted to a precomputed matrix.

    Returns:
        Predictions in the unit of the targets, shape `(m,)`.

    Raises:
        ValueError: The number of columns is not that of the fit.
        TypeError: `x` is not numeric.

    Example:
        >>> from mlnotes_jax.svm import regressor
        >>> model = regressor.fit_linear([[0.0], [2.0]], [0.0, 2.0], C=10.0, epsilon=0.5)
        >>> round(float(regressor.predict(model, [[1.0]])[0]), 3)
        1.0
    """
    if isinstance(model, LinearRegressor):
        x = _linear.features(_checks.floating("x", x, ndim=2), model.coef)
        with jax.default_matmul_precision("highest"):
            return x @ model.coef + model.intercept
    return _predict(model, _machines.known_rows(model, x))


def certificate(
    model: SVR,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
) -> Certificate:
    """Compute from the data how near a fit is to the optimum.

    Nothing is taken from the solver but the duals and the intercept. The Gram matrix is computed
    again, in blocks, in float64 where `jax_enable_x64` is set, whatever the dtype of the model.

    Args:
        model: From `fit`.
        x: The rows of the fit in their order, or its Gram matrix.
        y: The targets of the fit.

    Returns:
        Objectives, their gap, the violation, and how many rows hold the tube.

    Raises:
        ValueError: `x` or `y` have another shape than in the fit.
        TypeError: Data are not numeric.

    Example:
        >>> from mlnotes_jax.svm import kernels, regressor
        >>> x, y = [[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0]
        >>> model = regressor.fit(x, y, kernel=kernels.linear(), C=10.0, epsilon=0.5)
        >>> proof = regressor.certificate(model, x, y)
        >>> round(float(proof.primal), 3), round(float(proof.dual), 3), int(proof.num_free)
        (0.125, 0.125, 2)

    Reference:
        Smola and Schölkopf (2004), sections 1.3 and 5; the violation is that of Keerthi et al.,
        *Improvements to Platt's SMO algorithm* (2001).
    """
    x, y = _machines.known_rows(model, x), _checks.floating("y", y, ndim=1)
    if x.shape[0] != model.dual_coef.shape[0]:
        raise ValueError(
            f"x must be the {model.dual_coef.shape[0]} rows of the fit, got shape {x.shape}"
        )
    _checks.same_length(x=x, y=y)
    return _certificate(model, x, y)


def fit_linear(
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    *,
    C: Float[ArrayLike, ""] = 1.0,
    epsilon: Float[ArrayLike, ""] = 0.1,
    loss: Loss = "epsilon_insensitive",
    sample_weight: Float[ArrayLike, " n"] | None = None,
    fit_intercept: bool = True,
    tol: Float[ArrayLike, ""] = 1e-4,
    max_iter: Int[ArrayLike, ""] = 200,
) -> LinearRegressor:
    r"""Fit a linear tube in the primal: d + 1 unknowns, however many rows.

    Minimises, with $r_i = y_i - w^\top x_i - b$,

    $$\tfrac12 \|w\|^2 + C \sum_i s_i\, \ell(r_i), \qquad
      \ell(r) = \max(0, |r| - \varepsilon) \text{ or its square,}$$

    by Newton's method; the first loss has kinks, and is solved as it is, not smoothed. Each step
    costs about $n d^2$. The gap certifies the answer. Works under `jit`, and under `vmap` over `C`,
    `epsilon`, weights and targets.

    Args:
        x: Rows, shape `(n, d)`.
        y: Targets, shape `(n,)`.
        C: What a violation costs, > 0; traced.
        epsilon: $\varepsilon \ge 0$, in the unit of the targets; traced.
        loss: `"epsilon_insensitive"` is that of `fit` with a linear kernel;
            `"squared_epsilon_insensitive"` has a derivative. Static.
        sample_weight: $s_i \ge 0$, shape `(n,)`; zero drops a row.
        fit_intercept: Whether $b$ is fitted, unpenalised, or is 0; static.
        tol: Largest duality gap, relative to the objective; traced. float32 reaches about 1e-6, and
            less at a large `C`, where the rounding of a score costs `C` times as much.
        max_iter: Most Newton steps; traced.

    Returns:
        The model, in the wider dtype of `x` and `y` and at least float32.

    Raises:
        ValueError: Shapes do not match, data are empty or (where concrete) not finite, a number is
            out of range, or `loss` is unknown.
        TypeError: Data are not real numbers.

    Example:
        >>> from mlnotes_jax.svm import regressor
        >>> x, y = [[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0]
        >>> model = regressor.fit_linear(x, y, C=10.0, epsilon=0.5)
        >>> bool(model.converged), round(float(model.coef[0]), 3)
        (True, 0.5)

    Reference:
        Ho and Lin, *Large-scale linear support vector regression* (JMLR, 2012).

    Note:
        `sklearn.svm.LinearSVR` penalises the intercept, as one more coefficient, unless
        `fit_intercept=False`, and its `epsilon` is 0 by default.
    """
    _checks.one_of("loss", loss, ("epsilon_insensitive", "squared_epsilon_insensitive"))
    x, y, weight = _data(x, y, sample_weight)
    found = _linear.regress(x, y, weight, C, epsilon, tol, max_iter, loss, fit_intercept)
    return LinearRegressor(
        coef=found.coef,
        intercept=found.intercept,
        objective=found.objective,
        gap=found.gap,
        num_iterations=found.num_iterations,
        converged=found.converged,
    )


def _data(
    x: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[Array, Array, Array]:
    x, weight = _linear.rows(x, sample_weight)
    y = _checks.floating("y", y, ndim=1)
    _checks.same_length(x=x, y=y)
    _checks.finite("y", y)
    dtype = _linear.wider(x.dtype, y.dtype)
    return x.astype(dtype), y.astype(dtype), weight.astype(dtype)


@functools.partial(jax.jit, static_argnames="precomputed")
def _fit(
    x: Array,
    y: Array,
    weight: Array,
    kernel: Any,
    C: Array,
    epsilon: Array,
    tol: Array,
    max_iter: Array,
    precomputed: bool,
) -> SVR:
    if precomputed:
        rows = jnp.arange(x.shape[0])[:, None]
    else:
        rows, kernel = x, kernels.resolve(kernel, x, weight)
    # The duals add up to zero, so a shift of the targets shifts the intercept and nothing else; it
    # takes no digits from the gradient.
    middle = weight @ y / weight.sum()
    bound = C * weight
    dual = _smo.solve(
        kernel, rows, y - middle, -bound, bound, epsilon=epsilon, tol=tol, max_iter=max_iter
    )
    return SVR(
        kernel=None if precomputed else kernel,
        x=jnp.zeros((x.shape[0], 0), x.dtype) if precomputed else x,
        dual_coef=dual.beta,
        intercept=dual.intercept + middle,
        bound=bound,
        epsilon=epsilon,
        violation=dual.violation,
        num_iterations=dual.num_iterations,
        converged=dual.converged,
        precomputed=precomputed,
    )


@jax.jit
def _predict(model: SVR, x: Array) -> Array:
    return _machines.sums(model, x, model.dual_coef) + model.intercept


@jax.jit
def _certificate(model: SVR, x: Array, y: Array) -> Certificate:
    wide = _linear.wider(model.dual_coef.dtype, jnp.result_type(float))
    beta, bound, epsilon, intercept = (
        value.astype(wide)
        for value in (model.dual_coef, model.bound, model.epsilon, model.intercept)
    )
    y = y.astype(wide)
    # Rounding may leave a sum that is not quite zero. The dual objective is a bound only where it
    # is, so one sign is shrunk to the other's sum.
    up, down = jnp.maximum(beta, 0).sum(), jnp.maximum(-beta, 0).sum()
    least = jnp.minimum(up, down)
    shares = [least / jnp.where(side > 0, side, 1) for side in (up, down)]
    feasible = beta * jnp.where(beta > 0, shares[0], shares[1])
    sums = _machines.sums(model, x, jnp.stack([beta, feasible], axis=1))
    values, loss = sums[:, 0], jnp.abs(y - sums[:, 0] - intercept) - epsilon
    residual, size = y - values - intercept, jnp.abs(feasible)
    # primal - dual, row by row: C s ℓ(r) + ε|β| - β r is not negative where |β| <= C s.
    along = jnp.where(feasible < 0, -residual, residual)
    terms = (
        (bound - size) * jnp.maximum(along - epsilon, 0)
        + size * jnp.maximum(epsilon - along, 0)
        + bound * jnp.maximum(-along - epsilon, 0)
    )
    shift = beta - feasible
    left = y - values  # the gradient of the smooth part of the dual
    raised = jnp.where(beta < bound, left - jnp.where(beta >= 0, epsilon, -epsilon), -jnp.inf)
    lowered = jnp.where(beta > -bound, left - jnp.where(beta > 0, epsilon, -epsilon), jnp.inf)
    at_bound = (jnp.abs(beta) >= bound) & (bound > 0)
    return Certificate(
        primal=beta @ values / 2 + bound @ jnp.maximum(loss, 0),
        dual=y @ feasible - epsilon * size.sum() - feasible @ sums[:, 1] / 2,
        gap=terms.sum() + shift @ (values - sums[:, 1]) / 2,
        violation=jnp.maximum(raised.max() - lowered.min(), 0),
        num_free=((beta != 0) & ~at_bound).sum(),
        num_bound=at_bound.sum(),
    )
