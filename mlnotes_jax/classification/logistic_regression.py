r"""Logistic regression: log-odds that are linear, fitted by maximum likelihood.

Two classes: $p(1 \mid x) = \sigma(w^\top x + b)$. More: a softmax of one score for each class,

$$p(c \mid x) = \frac{e^{w_c^\top x + b_c}}{\sum_j e^{w_j^\top x + b_j}} .$$

The parameters minimise the cross-entropy of the labels, with an optional penalty on the weights,
never on the intercepts:

$$F(W, b) = -\sum_i s_i \ln p(y_i \mid x_i) + \lambda_1 \|W\|_1 + \tfrac{\lambda_2}{2} \|W\|^2 .$$

It is convex, so there is one minimum to find, or none: if the classes can be separated and nothing
is penalised, ever larger weights are ever better.

Reference: Hastie, Tibshirani and Friedman, *The Elements of Statistical Learning* (2009), section
4.4; McCullagh and Nelder, *Generalized Linear Models* (1989), chapters 4 and 5.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from mlnotes_jax import _checks
from mlnotes_jax.classification import _common, _logistic
from mlnotes_jax.foundations import linear_regression
from mlnotes_jax.svm import _linear

__all__ = [
    "LogisticRegression",
    "OneHotRegression",
    "StandardErrors",
    "decision_function",
    "fit",
    "fit_one_hot",
    "predict",
    "predict_proba",
    "standard_errors",
]

Solver = Literal["auto", "newton", "lbfgs", "proximal"]

#: Up to so many parameters, a Hessian of all classes costs less than the steps that it saves.
_SMALL = 320

#: With more parameters, a Hessian only to look for classes that nearly separate costs too much.
_CHECKED = 1024


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "coef",
        "intercept",
        "objective",
        "gradient_norm",
        "num_iterations",
        "converged",
        "separable",
    ],
    meta_fields=["num_classes", "fit_intercept"],
)
@dataclasses.dataclass(frozen=True)
class LogisticRegression:
    r"""Weights, intercepts, and how sure they are.

    Two classes have one row of weights, of class 1 against class 0. More have one row each. There
    intercepts add up to 0, and so do the weights of a feature, unless $\lambda_1 > 0$ decides.

    Attributes:
        coef: $W$, shape `(1, d)` or `(k, d)`.
        intercept: $b$, shape `(1,)` or `(k,)`; 0 where none was fitted.
        objective: $F(W, b)$, computed at the end from the rows, shape `()`.
        gradient_norm: Of the shortest subgradient of $F$, over that of the loss at zero, shape
            `()`; with features about their mean.
        num_iterations: Steps of the solver, shape `()`.
        converged: Whether `gradient_norm` is at most `tol`, and there is a minimum, shape `()`.
        separable: Whether there is no minimum, because nothing is penalised and along some
            direction no row ever gets less likely, shape `()`. The weights are then those of a
            step on the way to infinity.
        num_classes: k; static.
        fit_intercept: Whether there is an intercept; static.
    """

    coef: Float[Array, "m d"]
    intercept: Float[Array, " m"]
    objective: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]
    separable: Bool[Array, ""]
    num_classes: int
    fit_intercept: bool


class StandardErrors(NamedTuple):
    """How far weights would vary from one sample to another; NaN where the data do not tell.

    Attributes:
        coef: One standard deviation, in the shape of the weights, `(m, d)`.
        intercept: Likewise, shape `(m,)`; 0 where none was fitted.
        covariance: Of all parameters, class by class, the intercept last within each, shape
            `(m (d + 1), m (d + 1))`.
    """

    coef: Float[Array, "m d"]
    intercept: Float[Array, " m"]
    covariance: Float[Array, "p p"]


class OneHotRegression(NamedTuple):
    """A line for each class, fitted to 1 for its rows and 0 for all others.

    Attributes:
        coef: Shape `(k, d)`.
        intercept: Shape `(k,)`.
    """

    coef: Float[Array, "k d"]
    intercept: Float[Array, " k"]

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self.coef.shape[-2]


def fit(
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"],
    *,
    l1: Float[ArrayLike, ""] = 0.0,
    l2: Float[ArrayLike, ""] = 0.0,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    class_weight: Float[ArrayLike, " k"] | Literal["balanced"] | None = None,
    num_classes: int | None = None,
    fit_intercept: bool = True,
    solver: Solver = "auto",
    start: LogisticRegression | None = None,
    tol: Float[ArrayLike, ""] = 1e-4,
    max_iter: Int[ArrayLike, ""] = 10_000,
) -> LogisticRegression:
    r"""Find the weights that make the labels most probable.

    $$F(W, b) = -\sum_i s_i \ln p(y_i \mid x_i)
      + \lambda_1 \sum_{c, j} |W_{cj}| + \tfrac{\lambda_2}{2} \sum_{c, j} W_{cj}^2$$

    Works under `jit`, and under `vmap` over weights (folds), penalties and data. It can be
    differentiated, forwards and backwards, with respect to `x`, `sample_weight`, `class_weight`,
    `l1` and `l2`, by the implicit function theorem: the steps of the solver are not recorded.

    | `solver` | what | cost of a step |
    | --- | --- | --- |
    | `"newton"` | few steps; proximal Newton if `l1` is not 0 | some need `m² d²` for each row |
    | `"lbfgs"` | needs `l1 = 0` | two products of the data with `m` vectors |
    | `"proximal"` | accelerated gradient with a soft threshold | the same |
    | `"auto"` | `"newton"` for few parameters, else the cheaper of the others | |

    Args:
        x: Rows, shape `(n, d)`; finite, also where the weight is 0. Scale the features first if
            they are penalised.
        y: Classes 0..k-1, shape `(n,)`; `mlnotes_jax.data.labels` maps any others.
        l1: $\lambda_1 \ge 0$. Weights that do not pay are exactly 0. Traced.
        l2: $\lambda_2 \ge 0$; traced.
        sample_weight: $s_i \ge 0$, shape `(n,)`; zero drops a row.
        class_weight: A factor for the rows of each class, shape `(k,)`; or `"balanced"`:
            $n / (k\, n_c)$, as scikit-learn defines it, of the rows with their weights.
        num_classes: k, static; one more than the largest label by default, which must then be
            concrete.
        fit_intercept: Whether $b$ is fitted, never penalised, or is 0; static.
        solver: See above; static. A traced `l1` counts as one that is not 0.
        start: A model to start from, such as one of a similar penalty; one of zeros is as good as
            none.
        tol: Largest norm of the gradient, over that at zero; traced. float32 reaches about 1e-6,
            and less where classes are nearly separable.
        max_iter: Most steps; traced.

    Returns:
        The model, in the dtype of `x` and at least float32. Look at `converged`.

    Raises:
        ValueError: Shapes do not match, data are empty or (where concrete) not finite, a class has
            no row of positive weight, a label, weight, penalty or tolerance is out of range,
            `start` is of another shape, `solver` is unknown, or is `"lbfgs"` with an `l1` that is
            not known to be 0.
        TypeError: Data are not real numbers, or labels are not integers.

    Example:
        >>> from mlnotes_jax.classification import logistic_regression
        >>> x, y = [[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1]
        >>> model = logistic_regression.fit(x, y)
        >>> bool(model.converged), round(float(model.coef[0, 0]), 3)
        (True, 0.908)
        >>> bool(logistic_regression.fit(x, [0, 0, 1, 1]).separable)
        True

    Reference:
        Böhning, *Multinomial logistic regression algorithm* (1992); Lee, Sun and Saunders,
        *Proximal Newton-type methods* (2014); Albert and Anderson, *On the existence of maximum
        likelihood estimates in logistic regression models* (1984).

    Note:
        scikit-learn's `LogisticRegression(C=C)` divides by the penalty: its minimum is that of
        `l2 = 1 / C`; with `l1_ratio=r`, of `l1 = r / C` and `l2 = (1 - r) / C`. It has a penalty by
        default. Its solver "liblinear" penalises the intercept. A tolerance there bounds the
        largest entry of the gradient of the mean loss.
    """
    x, codes, num_classes, weight, factors = _linear.labelled(
        x, y, sample_weight, class_weight, num_classes
    )
    _checks.one_of("solver", solver, ("auto", "newton", "lbfgs", "proximal"))
    smooth = _checks.is_concrete(l1) and bool(np.all(np.asarray(l1) == 0))
    if solver == "lbfgs" and not smooth:
        raise ValueError('solver="lbfgs" needs an l1 that is 0 when it is called: use "proximal"')
    l1, l2 = _amount("l1", l1, x.dtype), _amount("l2", l2, x.dtype)
    tol, steps = _amount("tol", tol, x.dtype), _checks.count("max_iter", max_iter)
    _checks.positive("tol", tol)
    m = 1 if num_classes == 2 else num_classes
    theta = None if start is None else _start(start, (m, x.shape[1]), x.dtype)
    method = _method(solver, m, x.shape[1] + 1, smooth)
    return _fit(
        x, codes, weight * factors, l1, l2, theta, tol, steps, num_classes, fit_intercept, method
    )


def decision_function(
    model: LogisticRegression | OneHotRegression, x: Float[ArrayLike, "... d"]
) -> Float[Array, "..."]:
    r"""Log-odds of two classes, or a score for each of more.

    Args:
        model: A fitted model.
        x: One row or many, shape `(..., d)`.

    Returns:
        For two classes $\ln p(1 \mid x) - \ln p(0 \mid x) = w^\top x + b$, shape `(...)`: positive
        means class 1. For more, $w_c^\top x + b_c$, shape `(..., k)`: differences of scores are
        log-odds. Of a `OneHotRegression`, always a score for each class.

    Raises:
        ValueError: The last axis of `x` is not d.

    Example:
        >>> from mlnotes_jax.classification import logistic_regression
        >>> model = logistic_regression.fit([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1])
        >>> print(f"{logistic_regression.decision_function(model, [2.5]):.3f}")
        0.908
    """
    rows = _linear.features(x, model.coef)
    scores = _common.linear(model.coef, model.intercept, rows)
    return scores[..., 0] if scores.shape[-1] == 1 else scores


def predict_proba(model: LogisticRegression, x: Float[ArrayLike, "... d"]) -> Float[Array, "... k"]:
    """Probability of each class.

    Args:
        model: A fitted model.
        x: One row or many, shape `(..., d)`.

    Returns:
        Shape `(..., k)`; each row adds up to 1.

    Raises:
        ValueError: The last axis of `x` is not d.

    Example:
        >>> from mlnotes_jax.classification import logistic_regression
        >>> model = logistic_regression.fit([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1])
        >>> print(logistic_regression.predict_proba(model, [2.5]).round(2))
        [0.29 0.71]
    """
    return _probabilities(model.coef, model.intercept, _linear.features(x, model.coef))


def predict(
    model: LogisticRegression | OneHotRegression, x: Float[ArrayLike, "... d"]
) -> Int[Array, "..."]:
    """The most probable class, the first of equals.

    Args:
        model: A fitted model.
        x: One row or many, shape `(..., d)`.

    Returns:
        Classes as int32, shape `(...)`; -1 where a score is no number.

    Raises:
        ValueError: The last axis of `x` is not d.

    Example:
        >>> from mlnotes_jax.classification import logistic_regression
        >>> model = logistic_regression.fit([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1])
        >>> logistic_regression.predict(model, [[1.0], [2.0]]).tolist()
        [0, 1]
    """
    rows = _linear.features(x, model.coef)
    return _common.best(_common.linear(model.coef, model.intercept, rows))


def standard_errors(
    model: LogisticRegression,
    x: Float[ArrayLike, "n d"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> StandardErrors:
    r"""Standard errors of the weights of a fit without a penalty.

    The inverse of the Hessian of the loss, which is the Fisher information: for many rows the
    weights are distributed about the true ones with this covariance. For two classes

    $$\operatorname{cov}(w, b) = \Big( \sum_i s_i\, p_i (1 - p_i)\, z_i z_i^\top \Big)^{-1} ,
      \qquad z_i = (x_i, 1) .$$

    For more, the inverse on the subspace in which `fit` answers: sums over classes are 0.

    Args:
        model: From `fit`, without a penalty: with one, the weights are biased, and this is not
            their spread. A model that is `separable` has none.
        x: The rows of the fit.
        sample_weight: Of the fit, as counts of rows.

    Returns:
        Standard errors and covariance; NaN where a feature follows from others, so that the data
        do not determine its weight.

    Raises:
        ValueError: Shapes do not match, or (where concrete) values are not finite or negative.

    Example:
        >>> from mlnotes_jax.classification import logistic_regression
        >>> x, y = [[0.0]] * 10 + [[1.0]] * 10, [1] * 4 + [0] * 6 + [1] * 8 + [0] * 2
        >>> model = logistic_regression.fit(x, y, tol=1e-6)
        >>> errors = logistic_regression.standard_errors(model, x)
        >>> print(f"{errors.coef[0, 0]:.3f}")  # the root of 1/4 + 1/6 + 1/8 + 1/2
        1.021

    Reference:
        Agresti, *Categorical Data Analysis* (2013), sections 5.5 and 8.1.

    Note:
        statsmodels calls them `bse` of `Logit(...).fit()`.
    """
    rows, weight = _linear.rows(x, sample_weight)
    if rows.shape[1] != model.coef.shape[1]:
        raise ValueError(f"x must have {model.coef.shape[1]} features, got shape {rows.shape}")
    return _standard_errors(model, rows.astype(model.coef.dtype), weight.astype(model.coef.dtype))


def fit_one_hot(
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"],
    *,
    ridge: Float[ArrayLike, ""] = 0.0,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    num_classes: int | None = None,
) -> OneHotRegression:
    r"""Least squares on one-hot targets: what regression makes of classes, for contrast.

    Each class has a line that is fitted to 1 for its rows and 0 for the others. The scores add up
    to 1, but are no probabilities. A class between two others may never win: the lines of those
    lie above its own everywhere.

    Args:
        x: Rows, shape `(n, d)`.
        y: Classes 0..k-1, shape `(n,)`.
        ridge: As of `linear_regression.fit`; traced.
        sample_weight: $s_i \ge 0$, shape `(n,)`.
        num_classes: k, static; as in `fit`.

    Returns:
        The lines; `decision_function` and `predict` take them.

    Raises:
        ValueError: As `fit`.
        TypeError: As `fit`.

    Example:
        >>> from mlnotes_jax.classification import logistic_regression
        >>> x, y = [[0.0], [1.0], [2.0]], [0, 1, 2]
        >>> lines = logistic_regression.fit_one_hot(x, y)
        >>> print(logistic_regression.decision_function(lines, [1.0]).round(3))  # of class 1
        [0.333 0.333 0.333]

    Reference:
        Hastie, Tibshirani and Friedman (2009), section 4.2.
    """
    x, codes, num_classes, weight, _ = _linear.labelled(x, y, sample_weight, None, num_classes)
    one_hot = jax.nn.one_hot(codes, num_classes, dtype=x.dtype, axis=0)
    line = functools.partial(linear_regression.fit, x, ridge=ridge, sample_weight=weight)
    lines = jax.vmap(line)(one_hot)
    return OneHotRegression(lines.coef, lines.intercept)


# --- What a fit does ------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("num_classes", "fit_intercept", "method"))
def _fit(
    x: Array,
    codes: Array,
    weight: Array,
    l1: Array,
    l2: Array,
    start: Array | None,
    tol: Array,
    max_iter: Array,
    num_classes: int,
    fit_intercept: bool,
    method: str,
) -> LogisticRegression:
    # Without "highest", a GPU or TPU would multiply with ten bits or fewer.
    with jax.default_matmul_precision("highest"):
        problem = _problem(x, codes, weight, l1, l2, num_classes, fit_intercept)
        if start is not None:
            start = start.at[:, -1].add(start[:, :-1] @ problem.centre)
        steepest = jnp.linalg.norm(_logistic.first_gradient(problem))
        steepest = jnp.where(steepest > 0, steepest, 1)
        found = _argmin(method, problem, start, tol * steepest, max_iter)
        theta = found.theta
        total = _logistic.sums(problem, theta)
        pull = _logistic.subgradient(problem, theta, total.gradient)
        norm = jnp.linalg.norm(pull) / steepest
        within = norm <= tol
        theta = jnp.where(jnp.isfinite(total.loss), theta, jnp.nan)
        free_of_charge = (l1 == 0) & (l2 == 0)
        separable = free_of_charge & (total.margin > 0)
        if theta.size <= _CHECKED:
            moves_on = jax.lax.cond(
                free_of_charge, _moves_on, lambda *_: jnp.array(False), problem, theta, pull
            )
            separable = separable | (within & moves_on)
        w = theta[:, :-1]
        intercept = (theta[:, -1] - w @ problem.centre) * problem.level
        if len(intercept) > 1:  # with l1, the weights need not add up to 0
            intercept = intercept - intercept.mean()
        return LogisticRegression(
            coef=w,
            intercept=intercept,
            objective=total.loss + l1 * jnp.abs(w).sum() + l2 / 2 * jnp.square(w).sum(),
            gradient_norm=jax.lax.stop_gradient(norm),
            num_iterations=found.num_iterations,
            converged=within & ~separable,
            separable=separable,
            num_classes=num_classes,
            fit_intercept=fit_intercept,
        )


def _problem(
    x: Array,
    codes: Array,
    weight: Array,
    l1: Array,
    l2: Array,
    num_classes: int,
    fit_intercept: bool,
) -> _logistic.Problem:
    classes = jnp.arange(num_classes, dtype=codes.dtype)
    target = codes[None] == (classes[1:] if num_classes == 2 else classes)[:, None]
    # Under a transformation a label that is no class spoils every sum.
    weight = jnp.where((codes >= 0) & (codes < num_classes), weight, jnp.nan)
    # Any point among the rows will do; it ignores the weights, so that folds share the rows.
    centre = x[:: 1 + len(x) // 10_000].mean(axis=0) if fit_intercept else jnp.zeros_like(x[0])
    level = jnp.full_like(l2, 1.0 if fit_intercept else 0.0)
    return _logistic.Problem(x, jax.lax.stop_gradient(centre), target, weight, l1, l2, level)


def _method(solver: str, m: int, width: int, smooth: bool) -> str:
    """The solver, with what is known about the penalty."""
    if solver == "auto":
        few = m * width <= (_SMALL if m > 1 else _logistic.MAX_DENSE)
        solver = "newton" if few else "lbfgs" if smooth else "proximal"
    return "proximal newton" if solver == "newton" and not smooth else solver


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _argmin(
    method: str,
    problem: _logistic.Problem,
    start: Array | None,
    least: Array,
    max_iter: Array,
) -> _logistic.Found:
    if method == "lbfgs":
        found = _logistic.lbfgs(problem, start, least, max_iter)
    elif method == "proximal":
        found = _logistic.proximal(problem, start, least, max_iter)
    else:
        found = _logistic.newton(problem, start, least, max_iter, smooth=method == "newton")
    if len(problem.target) == 1:
        return found
    # What no penalty decides: the same number added to all classes changes no probability.
    loose = problem.l1 * problem.penalised == 0
    shift = jnp.where(loose, found.theta.mean(axis=0), 0)
    return found._replace(theta=found.theta - shift[None])


@_argmin.defjvp
def _argmin_jvp(
    method: str, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[_logistic.Found, _logistic.Found]:
    """At the minimum the gradient stays 0: H dtheta + d(gradient) = 0, for weights that move."""
    problem, way = primals[0], tangents[0]
    found = _argmin(method, *primals)
    theta = found.theta

    def gradient(x: Array, weight: Array, l1: Array, l2: Array) -> Array:
        moved = problem._replace(x=x, weight=weight, l1=l1, l2=l2)
        kept = problem.penalised[None] * (l1 * jnp.sign(theta) + l2 * theta)
        return _logistic.sums(moved, theta).gradient + kept

    names = ("x", "weight", "l1", "l2")
    _, change = jax.jvp(
        gradient,
        tuple(getattr(problem, name) for name in names),
        tuple(getattr(way, name) for name in names),
    )
    pull = _logistic.subgradient(problem, theta, _logistic.sums(problem, theta).gradient)
    moving = _logistic.free(problem, theta, pull)
    curved = _logistic.hessian(problem, theta)
    move = -_logistic.solve(problem, curved, moving, jnp.where(moving, change, 0))
    counts = np.zeros(found.num_iterations.shape, jax.dtypes.float0)
    return found, _logistic.Found(move, counts)


def _moves_on(problem: _logistic.Problem, theta: Array, pull: Array) -> Array:
    """Whether a Newton step still changes scores, although the gradient is gone.

    Along a direction to infinity the loss falls like exp(-t): gradient and curvature shrink
    together, and every step has length 1. At a minimum steps shrink with the gradient.
    """
    curved = _logistic.hessian(problem, theta)
    move = _logistic.solve(problem, curved, jnp.ones_like(theta, bool), pull)
    w = move[:, :-1]
    change = w @ problem.x.T + (move[:, -1] * problem.level - w @ problem.centre)[:, None]
    return jnp.abs(jnp.where(problem.weight[None] > 0, change, 0)).max() > 0.1


# --- What a model says ----------------------------------------------------------------------------


@jax.jit
def _probabilities(coef: Array, intercept: Array, x: Array) -> Array:
    scores = _common.linear(coef, intercept, x)
    if scores.shape[-1] > 1:
        return jax.nn.softmax(scores, axis=-1)
    return jax.nn.sigmoid(jnp.concatenate([-scores, scores], axis=-1))


@jax.jit
def _standard_errors(model: LogisticRegression, x: Array, weight: Array) -> StandardErrors:
    m, d = model.coef.shape
    dtype, epsilon = x.dtype, float(jnp.finfo(x.dtype).eps)
    zero = jnp.zeros((), dtype)
    # The Hessian does not depend on the labels.
    codes = jnp.zeros(len(x), jnp.int32)
    problem = _problem(x, codes, weight, zero, zero, model.num_classes, model.fit_intercept)
    with jax.default_matmul_precision("highest"):
        level = model.intercept + model.coef @ problem.centre
        theta = jnp.concatenate([model.coef, level[:, None]], axis=1)
        hessian = _logistic.hessian(problem, theta)
        width = d + int(model.fit_intercept)
        hessian = hessian.reshape(m, d + 1, m, d + 1)[:, :width, :, :width]
        basis = jnp.asarray(_sums_to_zero(m), dtype)
        reduced = jnp.einsum("ap,aibj,bq->piqj", basis, hessian, basis)
        size = reduced.shape[0] * width
        reduced = reduced.reshape(size, size)
        unit = jax.lax.rsqrt(jnp.diag(reduced))
        root = jnp.linalg.cholesky(reduced * unit[:, None] * unit[None, :])
        # Pivots are shares of the information about a parameter that is not about those before.
        known = (jnp.square(jnp.diag(root)) > 10 * size * epsilon).all()
        half = jax.scipy.linalg.solve_triangular(root, jnp.diag(unit), lower=True)
        inverse = jnp.where(known, half.T @ half, jnp.nan).reshape(-1, width, m - 1 or 1, width)
        spread = jnp.einsum("ap,piqj,bq->aibj", basis, inverse, basis)
        # From features about their mean to features as they are: b loses w'c.
        back = jnp.eye(d + 1, width, dtype=dtype)
        if model.fit_intercept:
            back = back.at[d, :d].set(-problem.centre)
        spread = jnp.einsum("ki,aibj,lj->akbl", back, spread, back)
    covariance = spread.reshape(m * (d + 1), m * (d + 1))
    deviations = jnp.sqrt(jnp.diag(covariance)).reshape(m, d + 1)
    return StandardErrors(deviations[:, :d], deviations[:, d], covariance)


def _sums_to_zero(m: int) -> np.ndarray:
    """An orthonormal basis of the vectors of length m whose entries add up to 0."""
    if m == 1:
        return np.ones((1, 1))
    return np.linalg.qr(np.eye(m) - 1 / m)[0][:, : m - 1]


# --- What comes in --------------------------------------------------------------------------------


def _amount(name: str, value: ArrayLike, dtype: Any) -> Array:
    array = _checks.floating(name, value, ndim=0)
    _checks.not_negative(name, array)
    _checks.finite(name, array)
    return array.astype(dtype)


def _start(start: LogisticRegression, shape: tuple[int, int], dtype: Any) -> Array:
    if start.coef.shape != shape:
        raise ValueError(
            f"start must be a model with weights of shape {shape}, got {start.coef.shape}"
        )
    return jnp.concatenate([start.coef, start.intercept[:, None]], axis=1).astype(dtype)
