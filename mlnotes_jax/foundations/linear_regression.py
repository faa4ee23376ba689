r"""Linear regression: the flat function nearest to the data.

The model is $f(x) = w^\top x + b$. With row weights $s_i$ and the ridge strength $\lambda$ the
answer minimises

$$J(w, b) = \sum_i s_i\, (y_i - w^\top x_i - b)^2 + \lambda \|w\|^2,$$

in which $b$ is not penalised. With the rows centred at their weighted mean ($\tilde X$, $\tilde y$)
it solves the normal equations $(\tilde X^\top S \tilde X + \lambda I)\, w = \tilde X^\top S \tilde
y$, and $b = \bar y - w^\top \bar x$.

Reference: Hastie, Tibshirani and Friedman, *The Elements of Statistical Learning* (2009),
chapter 3.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from mlnotes_jax import _checks
from mlnotes_jax.foundations import gradient_descent

__all__ = [
    "DegreeSelection",
    "ErrorSurface",
    "LinearModel",
    "Prediction",
    "RidgePath",
    "descend",
    "error_surface",
    "fit",
    "hessian",
    "parameter_covariance",
    "polynomial_exponents",
    "polynomial_features",
    "predict",
    "predict_with_error",
    "ridge_path",
    "select_degree",
    "squared_loss",
]

Solver = Literal["svd", "qr", "normal"]


class LinearModel(NamedTuple):
    r"""A fitted linear function, how sure it is, and what proves that it is the answer.

    Attributes:
        coef: $w$, shape `(d,)`.
        intercept: $b$, shape `()`; 0 where none was fitted.
        centre: $\bar x$, the weighted mean of the rows, shape `(d,)`; 0 without an intercept.
        coef_covariance: Of `coef`, over repeated draws of the noise in `y`, shape `(d, d)`.
        centre_variance: Variance of the prediction at `centre`, shape `()`; 0 without an
            intercept.
        noise_variance: Estimate of $\sigma^2$, the variance of an observation of weight 1, shape
            `()`; NaN where no row is left over to estimate it from.
        effective_parameters: Trace of the matrix that maps `y` to the fitted values, shape `()`:
            the number of parameters, or fewer with ridge.
        rank: Rank of the system that was solved, shape `()`. Where it is less than d, the answer
            is not unique: `"svd"` gives the shortest, the other solvers give NaN.
        normal_residual: What is left of the normal equations, divided by
            $\|S^{1/2} \tilde X\|_F\, \|S^{1/2} \tilde y\|$, shape `()`: of the order of the
            rounding error where the answer is right.
    """

    coef: Float[Array, " d"]
    intercept: Float[Array, ""]
    centre: Float[Array, " d"]
    coef_covariance: Float[Array, "d d"]
    centre_variance: Float[Array, ""]
    noise_variance: Float[Array, ""]
    effective_parameters: Float[Array, ""]
    rank: Int[Array, ""]
    normal_residual: Float[Array, ""]


class Prediction(NamedTuple):
    r"""A prediction and its two standard errors.

    Attributes:
        mean: $f(x)$, shape `(...)`.
        mean_error: Standard error of $f(x)$ as an estimate of the true mean at $x$, shape `(...)`.
        observation_error: Standard deviation of a new observation of weight 1 about $f(x)$: the
            same and the noise, shape `(...)`.
    """

    mean: Float[Array, "..."]
    mean_error: Float[Array, "..."]
    observation_error: Float[Array, "..."]


class RidgePath(NamedTuple):
    """Ridge fits of many strengths.

    Attributes:
        coef: Shape `(m, d)`.
        intercept: Shape `(m,)`.
        effective_parameters: As in `LinearModel`, shape `(m,)`.
    """

    coef: Float[Array, "m d"]
    intercept: Float[Array, " m"]
    effective_parameters: Float[Array, " m"]


class ErrorSurface(NamedTuple):
    """A loss at every point of a grid.

    Attributes:
        loss: Shape `(len(axes[0]), len(axes[1]), ...)`.
        best: The grid point with the lowest loss (the first of equals; NaN never is), shape
            `(len(axes),)`.
        best_loss: The loss there, shape `()`.
    """

    loss: Float[Array, "..."]
    best: Float[Array, " p"]
    best_loss: Float[Array, ""]


class DegreeSelection(NamedTuple):
    """Polynomials of degree 0 to D, judged on rows that they have not seen.

    Attributes:
        models: All fits, stacked: each field of `LinearModel` with a leading axis of D + 1. Their
            features are `polynomial_features(x, degree=D)`; the coefficients of higher degrees
            are 0.
        train_error: Mean squared error on the rows that were fitted, shape `(D + 1,)`.
        held_out_error: Mean squared error on the others, shape `(D + 1,)`.
        best_degree: Degree with the lowest held-out error, the lowest of equals, shape `()`.
    """

    models: LinearModel
    train_error: Float[Array, " degrees"]
    held_out_error: Float[Array, " degrees"]
    best_degree: Int[Array, ""]


def fit(
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    *,
    ridge: Float[ArrayLike, ""] = 0.0,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    fit_intercept: bool = True,
    solver: Solver = "svd",
) -> LinearModel:
    r"""Fit by least squares, with a ridge penalty where wanted.

    Minimises $\sum_i s_i (y_i - w^\top x_i - b)^2 + \lambda \|w\|^2$. Everything works under
    `vmap`, over `ridge` and `sample_weight` as well as over data.

    Args:
        x: Rows, shape `(n, d)`.
        y: Targets, shape `(n,)`.
        ridge: $\lambda \ge 0$, added to a *sum* of squares; traced.
        sample_weight: $s_i \ge 0$, shape `(n,)`; zero drops a row. A weight says how precise a row
            is: its noise has variance $\sigma^2 / s_i$. All ones by default.
        fit_intercept: Whether $b$ is fitted, unpenalised, or is 0; static.
        solver: How; static. All three need about $n d^2$ operations.
            `"svd"`: singular value decomposition. Answers always: the shortest of all minimisers
            where there are many. Singular values below $(d + \sqrt n)\,\epsilon$ times the largest
            count as zero ($\epsilon$ is the spacing of the dtype at 1).
            `"qr"`: QR of the rows. As accurate, and faster; NaN where the answer is not unique.
            `"normal"`: Cholesky of the normal equations. Fastest, but they square the condition
            number: in float32 it answers NaN from a condition number of some hundreds on. The one
            to differentiate with respect to `sample_weight` and `ridge` (the others take square
            roots, which have no derivative at 0).

    Returns:
        The model, in the wider dtype of `x` and `y` and at least float32. Under `jit`, what is not
        used of it is not computed.

    Raises:
        ValueError: Shapes do not match, data are empty or (where concrete) not finite, `ridge` or
            a weight is negative, all weights are 0, or the solver is unknown.
        TypeError: Data are not real numbers.

    Example:
        >>> from mlnotes_jax.foundations import linear_regression
        >>> model = linear_regression.fit([[1.0], [2.0], [3.0]], [2.0, 4.0, 6.0], solver="normal")
        >>> round(float(model.coef[0]), 4), int(model.rank)
        (2.0, 1)

    Reference:
        Golub and Van Loan, *Matrix Computations* (2013), chapter 5; Hoerl and Kennard, *Ridge
        Regression* (Technometrics, 1970).

    Note:
        `ridge` is scikit-learn's `Ridge(alpha=...)`. Where a peer minimises the *mean* of squares
        plus $\lambda' \|w\|^2$, its $\lambda'$ is `ridge / sample_weight.sum()`; where it puts ½
        before the penalty only, its $\lambda'$ is twice that.
    """
    x, y, weight = _data(x, y, sample_weight)
    _checks.one_of("solver", solver, tuple(_SOLVERS))
    return _fit(x, y, weight, _ridge(ridge, x.dtype), fit_intercept, solver)


def predict(model: LinearModel, x: Float[ArrayLike, "... d"]) -> Float[Array, "..."]:
    """Evaluate a model.

    Args:
        model: A fitted model.
        x: One row or many, shape `(..., d)`.

    Returns:
        Predictions, shape `(...)`.

    Raises:
        ValueError: The last axis of `x` is not d.

    Example:
        >>> from mlnotes_jax.foundations import linear_regression
        >>> model = linear_regression.fit([[1.0], [2.0], [3.0]], [2.0, 4.0, 6.0])
        >>> round(float(linear_regression.predict(model, [4.0])), 4)
        8.0
    """
    x = _rows(model, x)
    with jax.default_matmul_precision("highest"):
        return x @ model.coef + model.intercept


def predict_with_error(model: LinearModel, x: Float[ArrayLike, "... d"]) -> Prediction:
    r"""Evaluate a model, and say how far it may be off.

    $$\operatorname{se}(f(x))^2 = v_{\bar x} + (x - \bar x)^\top C\, (x - \bar x), \qquad
      \operatorname{se}(y)^2 = \hat\sigma^2 + \operatorname{se}(f(x))^2$$

    with $C$ the `coef_covariance`, $v_{\bar x}$ the `centre_variance` and $\hat\sigma^2$ the
    `noise_variance` of the model. They are honest if the model is: a linear mean, independent
    errors, one variance $\sigma^2 / s_i$. With ridge they tell the spread, not the bias.

    Args:
        model: A fitted model.
        x: One row or many, shape `(..., d)`.

    Returns:
        Predictions and standard errors, in the units of `y`.

    Raises:
        ValueError: The last axis of `x` is not d.

    Example:
        >>> from mlnotes_jax.foundations import linear_regression
        >>> model = linear_regression.fit([[0.0], [1.0], [2.0]], [0.0, 2.0, 1.0])
        >>> predicted = linear_regression.predict_with_error(model, [1.0])
        >>> round(float(predicted.mean_error), 4), round(float(predicted.observation_error), 4)
        (0.7071, 1.4142)

    Reference:
        Seber and Lee, *Linear Regression Analysis* (2003), sections 3.3 and 5.3.
    """
    x = _rows(model, x)
    away = x - jnp.broadcast_to(model.centre, x.shape)
    with jax.default_matmul_precision("highest"):
        spread = jnp.einsum("...i,ij,...j->...", away, model.coef_covariance, away)
        mean = x @ model.coef + model.intercept
    variance = model.centre_variance + spread
    return Prediction(mean, jnp.sqrt(variance), jnp.sqrt(model.noise_variance + variance))


def parameter_covariance(model: LinearModel) -> Float[Array, "p p"]:
    r"""Covariance of all parameters, the coefficients first and the intercept last.

    Since $b = \bar y - w^\top \bar x$, and $\bar y$ and $w$ are uncorrelated,
    $\operatorname{cov}(w, b) = -C \bar x$ and $\operatorname{var}(b) = v_{\bar x} + \bar x^\top C
    \bar x$.

    Args:
        model: A fitted model.

    Returns:
        Shape `(d + 1, d + 1)`; the square root of its diagonal are the standard errors. The last
        row and column are 0 for a model without an intercept.

    Example:
        >>> from mlnotes_jax.foundations import linear_regression
        >>> model = linear_regression.fit([[0.0], [1.0], [2.0]], [0.0, 2.0, 1.0])
        >>> covariance = linear_regression.parameter_covariance(model)
        >>> [round(float(entry), 3) for entry in covariance.ravel()]
        [0.75, -0.75, -0.75, 1.25]
    """
    with jax.default_matmul_precision("highest"):
        cross = -model.coef_covariance @ model.centre
        corner = model.centre_variance - model.centre @ cross
    top = jnp.concatenate([model.coef_covariance, cross[:, None]], axis=1)
    return jnp.concatenate([top, jnp.append(cross, corner)[None]])


def ridge_path(
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    ridges: Float[ArrayLike, " m"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    fit_intercept: bool = True,
) -> RidgePath:
    r"""Fit many ridge strengths with one eigen-decomposition.

    With $\tilde X^\top S \tilde X = V \operatorname{diag}(g) V^\top$ every strength costs only
    $d^2$ operations: $w(\lambda) = V \operatorname{diag}(1 / (g + \lambda))\, V^\top \tilde X^\top
    S \tilde y$.

    Args:
        x: Rows, shape `(n, d)`.
        y: Targets, shape `(n,)`.
        ridges: Strengths as in `fit`, shape `(m,)`. Directions whose $g$ is lost in rounding get
            the coefficient 0, which is the limit for $\lambda \to 0$.
        sample_weight: As in `fit`.
        fit_intercept: As in `fit`.

    Returns:
        Coefficients, intercepts and effective numbers of parameters.

    Raises:
        ValueError: As in `fit`.

    Example:
        >>> from mlnotes_jax.foundations import linear_regression
        >>> path = linear_regression.ridge_path([[-1.0], [1.0]], [-2.0, 2.0], [0.0, 2.0])
        >>> path.coef.tolist()
        [[2.0], [1.0]]
    """
    x, y, weight = _data(x, y, sample_weight)
    ridges = _checks.floating("ridges", ridges, ndim=1)
    _checks.not_negative("ridges", ridges)
    _checks.finite("ridges", ridges)
    return _path(x, y, weight, ridges.astype(x.dtype), fit_intercept)


def squared_loss(
    params: Float[ArrayLike, " p"],
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    *,
    ridge: Float[ArrayLike, ""] = 0.0,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> Float[Array, ""]:
    r"""The loss of any parameters, right or wrong: what search and descent minimise.

    $$L(w, b) = \frac{1}{\sum_i s_i} \Big( \sum_i s_i\, (y_i - w^\top x_i - b)^2 + \lambda \|w\|^2
      \Big)$$

    It is the objective of `fit` divided by a constant: the same answer, and a learning rate that
    does not depend on the number of rows.

    Args:
        params: $(w_1, \dots, w_d, b)$, shape `(d + 1,)`, or without $b$, shape `(d,)`.
        x: Rows, shape `(n, d)`.
        y: Targets, shape `(n,)`.
        ridge: $\lambda$, as in `fit`.
        sample_weight: $s$, as in `fit`.

    Returns:
        The loss, shape `()`. Without ridge, the mean squared error.

    Raises:
        ValueError: Shapes do not match, or as in `fit`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import linear_regression
        >>> float(linear_regression.squared_loss(jnp.zeros(2), [[1.0], [2.0]], [1.0, 3.0]))
        5.0
    """
    x, y, weight = _data(x, y, sample_weight)
    params = _checks.floating("params", params, ndim=1).astype(x.dtype)
    d = x.shape[1]
    if params.shape[0] not in (d, d + 1):
        raise ValueError(f"params must have shape ({d + 1},) or ({d},), got {params.shape}")
    return _loss(params, x, y, weight, _ridge(ridge, x.dtype))


def hessian(
    x: Float[ArrayLike, "n d"],
    *,
    ridge: Float[ArrayLike, ""] = 0.0,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    fit_intercept: bool = True,
) -> Float[Array, "p p"]:
    r"""Hessian of `squared_loss`, the same everywhere: $\frac{2}{\sum s} (X^\top S X + \lambda I)$.

    Here $X$ has a last column of ones for the intercept, whose entry of $I$ is 0. The eigenvalues
    of this matrix decide how fast gradient descent can be.

    Args:
        x: Rows, shape `(n, d)`.
        ridge: As in `fit`.
        sample_weight: As in `fit`.
        fit_intercept: As in `fit`.

    Returns:
        Shape `(d + 1, d + 1)`, or `(d, d)` without an intercept.

    Raises:
        ValueError: As in `fit`.

    Example:
        >>> from mlnotes_jax.foundations import linear_regression
        >>> linear_regression.hessian([[1.0], [3.0]]).tolist()
        [[10.0, 4.0], [4.0, 2.0]]
    """
    x = _checks.floating("x", x, ndim=2)
    x, _, weight = _data(x, jnp.zeros_like(x, shape=x.shape[:1]), sample_weight)
    return _hessian(x, weight, _ridge(ridge, x.dtype), fit_intercept)


def descend(
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    *,
    learning_rate: Float[ArrayLike, "*num_steps"],
    num_steps: int,
    ridge: Float[ArrayLike, ""] = 0.0,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    fit_intercept: bool = True,
    start: Float[ArrayLike, " p"] | None = None,
    tolerance: Float[ArrayLike, ""] = 1e-4,
) -> gradient_descent.Descent:
    r"""Find the same answer by gradient descent on `squared_loss`.

    Args:
        x: Rows, shape `(n, d)`.
        y: Targets, shape `(n,)`.
        learning_rate: Stable below $2 / \lambda_{\max}$ of `hessian`.
        num_steps: How many steps; static.
        ridge: As in `fit`.
        sample_weight: As in `fit`.
        fit_intercept: As in `fit`.
        start: $(w, b)$ to begin with, shape `(d + 1,)`, or `(d,)` without an intercept; 0 by
            default. From 0, the answer is the shortest one where there are many (if there is no
            intercept, or the rows have mean 0).
        tolerance: The gradient norm at which the walk counts as converged.

    Returns:
        The walk; its parameters are $(w_1, \dots, w_d, b)$, shape `(d + 1,)`, or without $b$.

    Raises:
        ValueError: As in `fit` and in `gradient_descent.gradient_descent`.

    Example:
        >>> from mlnotes_jax.foundations import linear_regression
        >>> walk = linear_regression.descend(
        ...     [[1.0], [2.0], [3.0]], [2.0, 4.0, 6.0], learning_rate=0.1, num_steps=500
        ... )
        >>> round(float(walk.params[0]), 3), bool(walk.converged)
        (2.0, True)
    """
    x, y, weight = _data(x, y, sample_weight)
    size = x.shape[1] + bool(fit_intercept)
    if start is None:
        begin = jnp.zeros_like(x, shape=(size,))
    else:
        begin = _checks.floating("start", start, ndim=1).astype(x.dtype)
    if begin.shape != (size,):
        raise ValueError(f"start must have shape ({size},), got {begin.shape}")
    rate = _checks.floating("learning_rate", learning_rate)
    _checks.positive("learning_rate", rate)
    _checks.finite("learning_rate", rate)
    _checks.not_negative("tolerance", tolerance)
    strength = _ridge(ridge, x.dtype)
    return _descend(begin, x, y, weight, strength, rate, jnp.asarray(tolerance), num_steps)


def error_surface(
    loss: Callable[..., Array],
    axes: Sequence[Float[ArrayLike, " k"]],
    *args: Any,
    block_size: int = 1024,
) -> ErrorSurface:
    r"""Try every point of a grid: exhaustive search, and the picture of the loss.

    For p parameters with k values each that is $k^p$ losses: right for two parameters, hopeless
    for ten. Call it under `jit`, as in the example, so that it is compiled as a whole.

    Args:
        loss: Maps a vector of parameters, shape `(len(axes),)`, and `args` to a scalar; for
            instance `squared_loss`.
        axes: The values to try of each parameter, one vector each.
        *args: What else `loss` needs, such as data. Passed, not closed over.
        block_size: Points that are tried at once; static. The memory is this many times that of
            one loss, and the surface itself.

    Returns:
        The surface and its lowest point. On a tilted bowl that may be more than a grid step away
        from the point nearest to the minimum.

    Raises:
        ValueError: There are no axes, or one is not a non-empty vector.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import linear_regression
        >>> grid = jnp.linspace(-4.0, 4.0, 9)
        >>> x, y = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([2.0, 4.0, 6.0])
        >>> search = jax.jit(linear_regression.error_surface, static_argnums=0)
        >>> surface = search(linear_regression.squared_loss, [grid, grid], x, y)
        >>> surface.loss.shape, surface.best.tolist()
        ((9, 9), [2.0, 0.0])
    """
    _checks.positive_int("block_size", block_size)
    if not len(axes):
        raise ValueError("axes must hold at least one vector, got none")
    vectors = [_checks.floating(f"axes[{i}]", axis, ndim=1) for i, axis in enumerate(axes)]
    for i, vector in enumerate(vectors):
        _checks.not_empty(f"axes[{i}]", vector)
    dtype = max((vector.dtype for vector in vectors), key=lambda dtype: dtype.itemsize)
    vectors = [vector.astype(dtype) for vector in vectors]
    shape = tuple(len(vector) for vector in vectors)

    def point(index: Array) -> Array:
        places = jnp.unravel_index(index, shape)
        return jnp.stack([vector[i] for vector, i in zip(vectors, places, strict=True)])

    # The points are made from their number inside the loop: no (k^p, p) array of them.
    count = int(np.prod(shape))
    losses = jax.lax.map(
        lambda index: loss(point(index), *args),
        jnp.arange(count),
        batch_size=min(block_size, count),
    )
    index = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
    return ErrorSurface(losses.reshape(shape), point(index), losses[index])


def polynomial_exponents(
    num_features: int, *, degree: int, include_bias: bool = False
) -> Int[np.ndarray, "m d"]:
    r"""The exponents of every monomial up to a total degree, in the order of the columns.

    Degree by degree; within a degree in lexicographic order: for two features
    $x_1, x_2, x_1^2, x_1 x_2, x_2^2, \dots$. With the constant there are
    $\binom{d + \text{degree}}{d}$.

    Args:
        num_features: d.
        degree: The highest total degree, 0 or more.
        include_bias: Whether the constant comes first.

    Returns:
        A NumPy array, one row for each monomial, shape `(m, d)`.

    Raises:
        ValueError: `num_features` is less than 1 or `degree` less than 0.

    Example:
        >>> from mlnotes_jax.foundations import linear_regression
        >>> linear_regression.polynomial_exponents(2, degree=2).tolist()
        [[1, 0], [0, 1], [2, 0], [1, 1], [0, 2]]

    Note:
        The order is that of scikit-learn's `PolynomialFeatures`.
    """
    _checks.positive_int("num_features", num_features)
    _checks.positive_int("degree", degree, least=0)
    chosen = itertools.chain.from_iterable(
        itertools.combinations_with_replacement(range(num_features), k)
        for k in range(0 if include_bias else 1, degree + 1)
    )
    rows = [np.bincount(np.array(c, int), minlength=num_features) for c in chosen]
    return np.array(rows, int).reshape(-1, num_features)


def polynomial_features(
    x: Float[ArrayLike, "... d"], *, degree: int, include_bias: bool = False
) -> Float[Array, "... m"]:
    r"""All products of features up to a total degree: a curve as a linear model.

    Args:
        x: Rows, shape `(..., d)`. Scale them to about [-1, 1] first: high powers of other values
            are huge or tiny, and the fit loses its digits.
        degree: The highest total degree, 0 or more; static.
        include_bias: Whether a column of ones comes first; static. `fit` has an intercept of its
            own, so by default it does not.

    Returns:
        Columns in the order of `polynomial_exponents`, shape `(..., m)`.

    Raises:
        ValueError: `x` is a scalar or has no features, or `degree` is less than 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import linear_regression
        >>> linear_regression.polynomial_features(jnp.array([2.0, 3.0]), degree=2).tolist()
        [2.0, 3.0, 4.0, 6.0, 9.0]

    Note:
        scikit-learn's `PolynomialFeatures` has `include_bias=True` by default.
    """
    x = _checks.floating("x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have a last axis of features, got shape {x.shape}")
    _checks.positive_int("degree", degree, least=0)
    d = x.shape[-1]
    block, monomials = jnp.ones_like(x[..., :1]), [()]
    blocks = [block] if include_bias else []
    for _ in range(degree):
        # Each monomial is one of the degree below, times a feature not before its last one.
        pairs = [(i, j) for i, m in enumerate(monomials) for j in range(m[-1] if m else 0, d)]
        monomials = [(*monomials[i], j) for i, j in pairs]
        parent, factor = np.array(pairs, int).T
        block = block[..., parent] * x[..., factor]
        blocks.append(block)
    return jnp.concatenate(blocks, axis=-1) if blocks else jnp.zeros_like(x[..., :0])


def select_degree(
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    *,
    max_degree: int,
    held_out: Bool[ArrayLike, " n"],
    ridge: Float[ArrayLike, ""] = 0.0,
) -> DegreeSelection:
    """Fit polynomials of degree 0 to `max_degree`, and choose by the rows that were held out.

    All degrees are one program of fixed shapes: a lower degree is the highest one with columns set
    to 0, and the held-out rows have weight 0. So it also works under `vmap` over `held_out` (many
    splits, or the folds of a cross-validation) and over `ridge`.

    Args:
        x: Rows, shape `(n, d)`, scaled to about [-1, 1] (see `polynomial_features`).
        y: Targets, shape `(n,)`.
        max_degree: The highest degree, 1 or more; static.
        held_out: Which rows judge, shape `(n,)`; the others are fitted.
        ridge: As in `fit`; all degrees share it.

    Returns:
        Models, errors and the best degree.

    Raises:
        ValueError: `held_out` is (where concrete) all true or all false, or as in `fit`.
        TypeError: `held_out` is not Boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import linear_regression
        >>> x = jnp.linspace(-1.0, 1.0, 12)
        >>> noise = 0.1 * (-1.0) ** (jnp.arange(12) // 2)
        >>> chosen = linear_regression.select_degree(
        ...     x[:, None], x**2 + noise, max_degree=5, held_out=jnp.arange(12) % 2 == 1
        ... )
        >>> int(chosen.best_degree)
        2
    """
    x, y, _ = _data(x, y, None)
    _checks.positive_int("max_degree", max_degree)
    held_out = jnp.asarray(held_out)
    if held_out.dtype != jnp.bool_:
        raise TypeError(f"held_out must be a Boolean array, got dtype {held_out.dtype}")
    _checks.same_shape(held_out=held_out, y=y)
    if _checks.is_concrete(held_out) and len(np.unique(np.asarray(held_out))) < 2:
        raise ValueError("held_out must have true and false entries, got one kind only")
    return _select(x, y, held_out, _ridge(ridge, x.dtype), max_degree)


def _data(
    x: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[Array, Array, Array]:
    x, y = _checks.floating("x", x, ndim=2), _checks.floating("y", y, ndim=1)
    _checks.same_length(x=x, y=y)
    _checks.not_empty("x", x)
    _checks.finite("x", x)
    _checks.finite("y", y)
    dtype = max((jnp.dtype(jnp.float32), x.dtype, y.dtype), key=lambda dtype: dtype.itemsize)
    x, y = x.astype(dtype), y.astype(dtype)
    if sample_weight is None:
        return x, y, jnp.ones_like(y)
    weight = _checks.floating("sample_weight", sample_weight, ndim=1)
    _checks.same_length(sample_weight=weight, y=y)
    _checks.finite("sample_weight", weight)
    _checks.not_negative("sample_weight", weight)
    _checks.positive("the sum of sample_weight", weight.sum())
    return x, y, weight.astype(dtype)


def _ridge(ridge: ArrayLike, dtype: Any) -> Array:
    ridge = _checks.floating("ridge", ridge, ndim=0)
    _checks.not_negative("ridge", ridge)
    _checks.finite("ridge", ridge)
    return ridge.astype(dtype)


def _rows(model: LinearModel, x: ArrayLike) -> Array:
    x = _checks.floating("x", x)
    if x.shape[-1:] != model.coef.shape:
        raise ValueError(
            f"x must have {model.coef.shape[0]} features in its last axis, got shape {x.shape}"
        )
    return x.astype(model.coef.dtype)


def _centred(
    x: Array, y: Array, weight: Array, fit_intercept: bool
) -> tuple[Array, Array, Array, Array]:
    if not fit_intercept:
        return x, y, jnp.zeros_like(x[0]), jnp.zeros_like(y[0])
    share = weight / weight.sum()
    x_mean, y_mean = share @ x, share @ y
    return x - x_mean[None], y - y_mean, x_mean, y_mean


@functools.partial(jax.jit, static_argnames=("fit_intercept", "solver"))
def _fit(
    x: Array, y: Array, weight: Array, ridge: Array, fit_intercept: bool, solver: str
) -> LinearModel:
    # Without "highest", a GPU or TPU would multiply with ten bits or fewer.
    with jax.default_matmul_precision("highest"):
        x, y, x_mean, y_mean = _centred(x, y, weight, fit_intercept)
        coef, spread, trace, rank = _SOLVERS[solver](x, y, weight, ridge)
        if solver != "svd":
            unique = rank == x.shape[1]
            coef, spread = (jnp.where(unique, a, jnp.nan) for a in (coef, spread))
        residual = y - x @ coef
        left = x.T @ (weight * residual) - ridge * coef
        size = jnp.sqrt((weight @ x**2).sum() * (weight @ y**2))
        effective = trace + int(fit_intercept)
        spare = (weight > 0).sum().astype(x.dtype) - effective
        noise = jnp.where(spare > 0, weight @ residual**2 / jnp.where(spare > 0, spare, 1), jnp.nan)
        return LinearModel(
            coef=coef,
            intercept=y_mean - x_mean @ coef,
            centre=x_mean,
            coef_covariance=noise * spread,
            centre_variance=noise / weight.sum() if fit_intercept else jnp.zeros_like(noise),
            noise_variance=noise,
            effective_parameters=effective,
            rank=rank,
            normal_residual=jnp.linalg.norm(left) / jnp.where(size > 0, size, 1),
        )


# Each solver returns the coefficients, A⁺GA⁺ (their covariance for unit noise), the trace of GA⁺
# and the rank of A, where G = XᵀSX and A = G + λI.


def _solve_normal(x: Array, y: Array, weight: Array, ridge: Array) -> tuple[Array, ...]:
    d = x.shape[1]
    gram = x.T @ (weight[:, None] * x)
    identity = jnp.eye(d, dtype=x.dtype)
    system = gram + ridge * identity
    eigenvalues = jnp.linalg.eigvalsh(system)
    rank = (eigenvalues > _cutoff(x, eigenvalues)).sum()
    factor = (jnp.linalg.cholesky(system), True)
    inverse = jax.scipy.linalg.cho_solve(factor, identity)
    coef = jax.scipy.linalg.cho_solve(factor, x.T @ (weight * y))
    return coef, inverse @ gram @ inverse, rank.astype(x.dtype) - ridge * jnp.trace(inverse), rank


def _solve_qr(x: Array, y: Array, weight: Array, ridge: Array) -> tuple[Array, ...]:
    (n, d), root = x.shape, jnp.sqrt(weight)
    identity = jnp.eye(d, dtype=x.dtype)
    # Ridge is d more rows: √λ I with the target 0.
    q, r = jnp.linalg.qr(jnp.concatenate([root[:, None] * x, jnp.sqrt(ridge) * identity]))
    singular = jnp.linalg.svdvals(r)
    rank = (singular > _cutoff(x, singular)).sum()
    inverse = jax.scipy.linalg.solve_triangular(r, identity)
    half = inverse @ q[:n].T
    coef = jax.scipy.linalg.solve_triangular(r, q[:n].T @ (root * y))
    trace = rank.astype(x.dtype) - ridge * jnp.square(inverse).sum()
    return coef, half @ half.T, trace, rank


def _solve_svd(x: Array, y: Array, weight: Array, ridge: Array) -> tuple[Array, ...]:
    d, root = x.shape[1], jnp.sqrt(weight)
    u, singular, vt = jnp.linalg.svd(root[:, None] * x, full_matrices=False)
    cutoff = _cutoff(x, singular)
    kept = singular > cutoff
    shrunk = jnp.where(kept, singular, 1) ** 2 + ridge
    gain = jnp.where(kept, singular / shrunk, 0)
    coef = vt.T @ (gain * (u.T @ (root * y)))
    trace = jnp.where(kept, singular**2 / shrunk, 0).sum()
    # Directions without data are still determined by a ridge that is not negligible.
    spectrum = jnp.hypot(jnp.pad(singular, (0, d - len(singular))), jnp.sqrt(ridge))
    rank = (spectrum > cutoff).sum()
    return coef, (vt.T * (gain**2)[None]) @ vt, trace, rank


_SOLVERS = {"svd": _solve_svd, "qr": _solve_qr, "normal": _solve_normal}


def _cutoff(x: Array, spectrum: Array) -> Array:
    """Below this a singular value of x, or an eigenvalue of its Gram matrix, is rounding error."""
    n, d = x.shape
    # Errors of n additions grow like √n. NumPy's max(n, d) would call every matrix of 100 000 rows
    # with a condition number above 84 deficient in float32.
    return (d + n**0.5) * jnp.finfo(x.dtype).eps * spectrum.max()


@functools.partial(jax.jit, static_argnames="fit_intercept")
def _path(x: Array, y: Array, weight: Array, ridges: Array, fit_intercept: bool) -> RidgePath:
    with jax.default_matmul_precision("highest"):
        x, y, x_mean, y_mean = _centred(x, y, weight, fit_intercept)
        g, v = jnp.linalg.eigh(x.T @ (weight[:, None] * x))
        kept = g > _cutoff(x, g)
        moment = v.T @ (x.T @ (weight * y))

        def one(ridge: Array) -> RidgePath:
            inverse = jnp.where(kept, 1 / (jnp.where(kept, g, 1) + ridge), 0)
            coef = v @ (inverse * moment)
            effective = (jnp.where(kept, g, 0) * inverse).sum() + int(fit_intercept)
            return RidgePath(coef, y_mean - x_mean @ coef, effective)

        return jax.vmap(one)(ridges)


@functools.partial(jax.jit, static_argnames="max_degree")
def _select(x: Array, y: Array, held_out: Array, ridge: Array, max_degree: int) -> DegreeSelection:
    features = polynomial_features(x, degree=max_degree)
    degree_of_column = polynomial_exponents(x.shape[1], degree=max_degree).sum(axis=1)
    kept = degree_of_column[None, :] <= np.arange(max_degree + 1)[:, None]
    train = (~held_out).astype(x.dtype)

    def one(kept: Array) -> tuple[LinearModel, Array, Array]:
        model = fit(features * kept[None], y, ridge=ridge, sample_weight=train)
        squares = jnp.square(y - predict(model, features))
        error = (train * squares).sum() / train.sum()
        return model, error, ((1 - train) * squares).sum() / (1 - train).sum()

    models, train_error, held_out_error = jax.vmap(one)(jnp.asarray(kept, x.dtype))
    best = jnp.argmin(jnp.where(jnp.isnan(held_out_error), jnp.inf, held_out_error))
    return DegreeSelection(models, train_error, held_out_error, best)


@jax.jit
def _loss(params: Array, x: Array, y: Array, weight: Array, ridge: Array) -> Array:
    d = x.shape[1]
    with jax.default_matmul_precision("highest"):
        residual = y - x @ params[:d] - (params[d] if len(params) > d else 0)
        squares = weight @ residual**2
    return (squares + ridge * jnp.square(params[:d]).sum()) / weight.sum()


@functools.partial(jax.jit, static_argnames="fit_intercept")
def _hessian(x: Array, weight: Array, ridge: Array, fit_intercept: bool) -> Array:
    penalised = jnp.ones_like(x[0])
    if fit_intercept:
        x = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
        penalised = jnp.append(penalised, jnp.zeros_like(penalised, shape=()))
    with jax.default_matmul_precision("highest"):
        gram = x.T @ (weight[:, None] * x)
    return 2 / weight.sum() * (gram + jnp.diag(ridge * penalised))


@functools.partial(jax.jit, static_argnames="num_steps")
def _descend(
    start: Array,
    x: Array,
    y: Array,
    weight: Array,
    ridge: Array,
    learning_rate: Array,
    tolerance: Array,
    num_steps: int,
) -> gradient_descent.Descent:
    def loss(params: Array) -> Array:
        return _loss(params, x, y, weight, ridge)

    return gradient_descent.gradient_descent(
        loss, start, learning_rate=learning_rate, num_steps=num_steps, tolerance=tolerance
    )
