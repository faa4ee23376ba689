r"""Linear machines in the primal: as many unknowns as features, however many rows.

$$\min_{w, b}\; \tfrac12 \|w\|^2 + C \sum_i s_i\, \ell(w^\top x_i + b;\, y_i)$$

for the losses of classification (hinge, squared hinge, logistic, exponential) and of regression
(epsilon-insensitive and its square), solved by `mlnotes_jax._linear_newton` and certified by a
duality gap. $b$ is not penalised.

Reference: Fan, Chang, Hsieh, Wang and Lin, *LIBLINEAR: A library for large linear classification*
(JMLR, 2008); Mangasarian, *A finite Newton method for classification* (2002).
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from mlnotes_jax import _checks, _linear_newton
from mlnotes_jax.data import labels

__all__ = [
    "LinearClassifier",
    "decision_function",
    "features",
    "fit_linear",
    "predict",
    "regress",
    "rows",
    "wider",
]

ClassifierLoss = Literal["squared_hinge", "hinge", "logistic", "exponential"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["coef", "intercept", "objective", "gap", "num_iterations", "converged"],
    meta_fields=["loss", "num_classes"],
)
@dataclasses.dataclass(frozen=True)
class LinearClassifier:
    r"""A linear classifier: one machine for two classes, else one for each class.

    Attributes:
        coef: $w$ of each machine, shape `(machines, d)`. A machine's score is positive for class 1
            where there are two classes, and else for its own class against all others.
        intercept: $b$, shape `(machines,)`; 0 where none was fitted.
        objective: $\tfrac12 \|w\|^2 + C \sum_i s_i \ell_i$ of each machine, shape `(machines,)`.
        gap: The duality gap: the objective is at most so much above its minimum, shape
            `(machines,)`. Computed at the end from the rows, not carried along.
        num_iterations: Newton steps of each machine, shape `(machines,)`.
        converged: Whether `gap` is at most `tol` times `objective`, shape `(machines,)`.
        loss: Name of the surrogate; static.
        num_classes: Static.
    """

    coef: Float[Array, "machines d"]
    intercept: Float[Array, " machines"]
    objective: Float[Array, " machines"]
    gap: Float[Array, " machines"]
    num_iterations: Int[Array, " machines"]
    converged: Bool[Array, " machines"]
    loss: ClassifierLoss
    num_classes: int


def fit_linear(
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"],
    *,
    C: Float[ArrayLike, ""] = 1.0,
    loss: ClassifierLoss = "squared_hinge",
    sample_weight: Float[ArrayLike, " n"] | None = None,
    class_weight: Float[ArrayLike, " k"] | Literal["balanced"] | None = None,
    num_classes: int | None = None,
    fit_intercept: bool = True,
    tol: Float[ArrayLike, ""] = 1e-4,
    max_iter: Int[ArrayLike, ""] = 200,
) -> LinearClassifier:
    r"""Fit a linear classifier in the primal, by Newton's method.

    Minimises, with $y_i = \pm 1$ and $t_i = w^\top x_i + b$,

    $$\tfrac12 \|w\|^2 + C \sum_i s_i\, \ell(y_i t_i)$$

    | `loss` | $\ell(z)$ | |
    | --- | --- | --- |
    | `"hinge"` | $\max(0, 1 - z)$ | the support vector machine |
    | `"squared_hinge"` | $\max(0, 1 - z)^2$ | the same with a derivative; liblinear's default |
    | `"logistic"` | $\log(1 + e^{-z})$ | logistic regression |
    | `"exponential"` | $e^{-z}$ | the loss of AdaBoost |

    The cost grows like $n d^2$ for each of few Newton steps (some 5 to 10; 20 to 60 for the hinge,
    which has a kink, and is solved as it is, not smoothed). Memory beyond the data: a few vectors
    of n numbers and a $d \times d$ matrix. With more than 2048 features conjugate gradients take
    the matrix's place. Works under `jit`, and under `vmap` over `C`, weights and labels. More than
    two classes are fitted one against the rest, side by side.

    Args:
        x: Rows, shape `(n, d)`.
        y: Classes 0..k-1, shape `(n,)`; `mlnotes_jax.data.labels` maps any others.
        C: What a violation costs, > 0; traced.
        loss: The surrogate of the number of errors; static.
        sample_weight: $s_i \ge 0$, shape `(n,)`; zero drops a row.
        class_weight: A factor for the rows of each class, shape `(k,)`; or `"balanced"`:
            $n / (k\, n_c)$, as scikit-learn defines it, of the rows with their weights.
        num_classes: k, static; one more than the largest label by default, which must then be
            concrete.
        fit_intercept: Whether $b$ is fitted or is 0; static.
        tol: Largest duality gap, relative to the objective; traced. float32 reaches about 1e-6, and
            less at a large `C`, where the rounding of a score costs `C` times as much.
        max_iter: Most Newton steps; traced.

    Returns:
        The model, in the dtype of `x` and at least float32.

    Raises:
        ValueError: Shapes do not match, data are empty or (where concrete) not finite, a class has
            no row of positive weight, a label, a weight or `C` is out of range, or `loss` is
            unknown.
        TypeError: Data are not real numbers, or labels are not integers.

    Example:
        >>> from mlnotes_jax.svm import classifier
        >>> x, y = [[-2.0], [-1.0], [1.0], [2.0]], [0, 0, 1, 1]
        >>> model = classifier.fit_linear(x, y, C=10.0, loss="hinge")
        >>> bool(model.converged[0]), round(float(model.coef[0, 0]), 3)
        (True, 1.0)

    Reference:
        Fan, Chang, Hsieh, Wang and Lin, *LIBLINEAR* (2008); Rockafellar, *Augmented Lagrangians*
        (1976), for the loss with a kink.

    Note:
        `sklearn.svm.LinearSVC` penalises the intercept, as one more coefficient, unless
        `fit_intercept=False`. To get its answer, append a column of ones and fit none here. With
        more than two classes, its `class_weight` multiplies only the rows of a machine's own
        class; here a row has the weight of its class in every machine. `LogisticRegression` has the
        objective of `loss="logistic"`.
    """
    _checks.one_of("loss", loss, ("squared_hinge", "hinge", "logistic", "exponential"))
    x, codes, num_classes, weight, factors = labelled(
        x, y, sample_weight, class_weight, num_classes
    )
    weight = weight * factors
    classes = jnp.arange(num_classes, dtype=codes.dtype)
    wanted = (classes if num_classes > 2 else classes[1:])[:, None]
    signs = jnp.where(codes[None, :] == wanted, 1.0, -1.0).astype(x.dtype)
    numbers = options(C, tol, max_iter, x.dtype)
    found = _classify(x, signs, weight, *numbers, loss, fit_intercept)
    return LinearClassifier(
        coef=found.coef,
        intercept=found.intercept,
        objective=found.objective,
        gap=found.gap,
        num_iterations=found.num_iterations,
        converged=found.converged,
        loss=loss,
        num_classes=num_classes,
    )


def regress(
    x: Array,
    y: Array,
    weight: Array,
    C: ArrayLike,
    epsilon: ArrayLike,
    tol: ArrayLike,
    max_iter: ArrayLike,
    loss: str,
    fit_intercept: bool,
) -> _linear_newton.Minimum:
    """Fit a linear tube to rows, targets and weights that were checked; see `svm.regressor`."""
    epsilon = _checks.floating("epsilon", epsilon, ndim=0)
    _checks.not_negative("epsilon", epsilon)
    _checks.finite("epsilon", epsilon)
    numbers = options(C, tol, max_iter, x.dtype)
    return _regress(x, y, weight, epsilon.astype(x.dtype), *numbers, loss, fit_intercept)


def decision_function(model: LinearClassifier, x: Float[ArrayLike, "... d"]) -> Float[Array, "..."]:
    """Scores of a linear classifier.

    Args:
        model: A fitted model.
        x: One row or many, shape `(..., d)`.

    Returns:
        For two classes the score of class 1, shape `(...)`; else the score of each class, shape
        `(..., k)`.

    Raises:
        ValueError: The last axis of `x` is not d.
    """
    x = features(x, model.coef)
    with jax.default_matmul_precision("highest"):
        scores = x @ model.coef.T
    scores = scores + jnp.broadcast_to(model.intercept, scores.shape)
    return scores[..., 0] if model.num_classes == 2 else scores


def predict(model: LinearClassifier, x: Float[ArrayLike, "... d"]) -> Int[Array, "..."]:
    """Classes of a linear classifier: class 1 where the score is positive, or the largest score.

    Args:
        model: A fitted model.
        x: One row or many, shape `(..., d)`.

    Returns:
        Classes 0..k-1, int32, shape `(...)`.

    Raises:
        ValueError: The last axis of `x` is not d.
    """
    scores = decision_function(model, x)
    if model.num_classes == 2:
        return (scores > 0).astype(jnp.int32)
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def wider(*dtypes: Any) -> Any:
    """The widest of some floating dtypes."""
    return max(map(jnp.dtype, dtypes), key=lambda dtype: dtype.itemsize)


def features(x: ArrayLike, coef: Array) -> Array:
    """Rows to be predicted, in the dtype of the model."""
    x = _checks.floating("x", x)
    if x.ndim == 0 or x.shape[-1] != coef.shape[-1]:
        raise ValueError(
            f"x must have {coef.shape[-1]} features in its last axis, got shape {x.shape}"
        )
    return x.astype(coef.dtype)


def rows(x: ArrayLike, sample_weight: ArrayLike | None) -> tuple[Array, Array]:
    """Rows and weights, checked, in at least float32."""
    x = _checks.floating("x", x, ndim=2)
    _checks.not_empty("x", x)
    _checks.finite("x", x)
    x = x.astype(wider(x.dtype, jnp.float32))
    if sample_weight is None:
        return x, jnp.ones_like(x[:, 0])
    weight = _checks.floating("sample_weight", sample_weight, ndim=1)
    _checks.same_length(sample_weight=weight, x=x)
    _checks.finite("sample_weight", weight)
    _checks.not_negative("sample_weight", weight)
    _checks.positive("the sum of sample_weight", weight.sum())
    return x, weight.astype(x.dtype)


def labelled(
    x: ArrayLike,
    y: ArrayLike,
    sample_weight: ArrayLike | None,
    class_weight: ArrayLike | str | None,
    num_classes: int | None,
) -> tuple[Array, Array, int, Array, Array]:
    """Rows, classes, how many there are, weights, and the factor of each row's class; checked."""
    x, weight = rows(x, sample_weight)
    codes, num_classes = _class_codes(y, num_classes, weight)
    _checks.same_length(x=x, y=codes)
    factors = _class_factors(class_weight, codes, num_classes, weight)[codes]
    return x, codes, num_classes, weight, factors


def _class_codes(y: ArrayLike, num_classes: int | None, weight: Array) -> tuple[Array, int]:
    """Labels and how many classes they have, checked."""
    given, codes = y, _checks.integer("y", y, ndim=1)
    if num_classes is None:
        # Inside of `jit` the array made of a NumPy array is traced; the NumPy array is not.
        if not _checks.is_concrete(given):
            raise ValueError("num_classes must be given where y is traced, got None")
        num_classes = int(np.max(np.asarray(given), initial=0)) + 1
        if num_classes < 2:
            raise ValueError("y must have two classes or more, got one only")
    _checks.positive_int("num_classes", num_classes, least=2)
    _checks.class_labels("y", given, num_classes)
    if _checks.is_concrete((codes, weight)) and codes.shape == weight.shape:
        sizes = np.bincount(np.asarray(codes), np.asarray(weight), num_classes)
        missing = np.flatnonzero(sizes <= 0)
        if len(missing):
            raise ValueError(
                f"every class of 0..{num_classes - 1} must have a row of positive weight, "
                f"got none of class {missing[0]}"
            )
    return codes.astype(jnp.int32), int(num_classes)


def _class_factors(
    class_weight: ArrayLike | str | None, codes: Array, num_classes: int, weight: Array
) -> Array:
    """The factor of each class, shape (k,)."""
    if class_weight is None:
        return jnp.ones(num_classes, weight.dtype)
    if isinstance(class_weight, str):
        _checks.one_of("class_weight", class_weight, ("balanced",))
        balanced = labels.balanced_weights(codes, num_classes, sample_weight=weight)
        return balanced.astype(weight.dtype)
    factors = _checks.floating("class_weight", class_weight, ndim=1)
    if factors.shape != (num_classes,):
        raise ValueError(f"class_weight must have shape ({num_classes},), got {factors.shape}")
    _checks.finite("class_weight", factors)
    _checks.positive("class_weight", factors)
    return factors.astype(weight.dtype)


def options(
    C: ArrayLike, tol: ArrayLike, max_iter: ArrayLike, dtype: Any
) -> tuple[Array, Array, Array]:
    """A cost, a tolerance and a number of steps, checked."""
    C, tol = _checks.floating("C", C, ndim=0), _checks.floating("tol", tol, ndim=0)
    for name, value in (("C", C), ("tol", tol)):
        _checks.positive(name, value)
        _checks.finite(name, value)
    return C.astype(dtype), tol.astype(dtype), _checks.count("max_iter", max_iter)


@functools.partial(jax.jit, static_argnames=("loss", "fit_intercept"))
def _classify(
    x: Array,
    signs: Array,
    weight: Array,
    C: Array,
    tol: Array,
    max_iter: Array,
    loss: str,
    fit_intercept: bool,
) -> _linear_newton.Minimum:
    def one(signs: Array) -> _linear_newton.Minimum:
        def of_rows(rows: slice) -> _linear_newton.Loss:
            return _CLASSIFIER_LOSSES[loss](signs[rows])

        return _linear_newton.minimize(
            x,
            C * weight,
            of_rows(slice(None)),
            penalty=jnp.ones_like(C),
            tol=tol,
            max_iter=max_iter,
            fit_intercept=fit_intercept,
            of_rows=None if loss == "hinge" else of_rows,
        )

    if signs.shape[0] == 1:  # a smaller program than a batch of one
        return jax.tree.map(lambda leaf: leaf[None], one(signs[0]))
    return jax.vmap(one)(signs)


@functools.partial(jax.jit, static_argnames=("loss", "fit_intercept"))
def _regress(
    x: Array,
    y: Array,
    weight: Array,
    epsilon: Array,
    C: Array,
    tol: Array,
    max_iter: Array,
    loss: str,
    fit_intercept: bool,
) -> _linear_newton.Minimum:
    share = weight / weight.sum()
    middle = share @ y if fit_intercept else jnp.zeros_like(C)
    spread = jnp.sqrt(share @ (y - middle) ** 2)
    found = _linear_newton.minimize(
        x,
        C * weight,
        _REGRESSOR_LOSSES[loss](y - middle, epsilon, spread),
        penalty=jnp.ones_like(C),
        tol=tol,
        max_iter=max_iter,
        fit_intercept=fit_intercept,
    )
    return found._replace(intercept=found.intercept + middle)


# Losses. Slopes g are with respect to the score t. Classification: g = -y a, a >= 0. Regression:
# g has the sign of the residual r = t - y. Each excess is ℓ(t) + ℓ*(g) - g t, in a form in which
# every term is positive: what is subtracted cancels on paper, not in the computer.


def _squared_hinge(signs: Array) -> _linear_newton.Loss:
    # ℓ*(-ya) = -a + a²/4
    def value(t: Array) -> Array:
        return jnp.maximum(1 - signs * t, 0) ** 2

    def derivatives(t: Array, proximal: Any) -> tuple[Array, Array]:
        short = jnp.maximum(1 - signs * t, 0)
        return -2 * signs * short, jnp.where(short > 0, 2.0, 0.0).astype(t.dtype)

    def excess(t: Array, g: Array) -> Array:
        a, short = -signs * g, 1 - signs * t
        return (jnp.maximum(short, 0) - a / 2) ** 2 + a * jnp.maximum(-short, 0)

    return _linear_newton.Loss(value, derivatives, excess)


def _hinge(signs: Array) -> _linear_newton.Loss:
    # ℓ*(-ya) = -a for 0 <= a <= 1
    def value(t: Array) -> Array:
        return jnp.maximum(1 - signs * t, 0)

    def derivatives(t: Array, proximal: Any) -> tuple[Array, Array]:
        a = -signs * proximal.centre + (1 - signs * t) / proximal.width
        inside = (a > 0) & (a < 1)
        return -signs * jnp.clip(a, 0, 1), jnp.where(inside, 1 / proximal.width, 0)

    def excess(t: Array, g: Array) -> Array:
        a, short = -signs * g, 1 - signs * t
        return (1 - a) * jnp.maximum(short, 0) + a * jnp.maximum(-short, 0)

    # At w = 0 every row is short by 1: with these, a = 3/4 there, inside of (0, 1).
    start = _linear_newton.Proximal(-signs / 2, jnp.asarray(4.0, signs.dtype))
    return _linear_newton.Loss(value, derivatives, excess, start)


def _exponential(signs: Array) -> _linear_newton.Loss:
    # ℓ*(-ya) = a log a - a
    def value(t: Array) -> Array:
        return jnp.exp(-signs * t)

    def derivatives(t: Array, proximal: Any) -> tuple[Array, Array]:
        e = jnp.exp(-signs * t)
        return -signs * e, e

    def excess(t: Array, g: Array) -> Array:
        a, margin = -signs * g, signs * t
        return jnp.maximum(jnp.exp(-margin) - a + a * margin + _linear_newton.xlogx(a), 0)

    return _linear_newton.Loss(value, derivatives, excess)


def _squared_tube(y: Array, epsilon: Array, spread: Array) -> _linear_newton.Loss:
    # ℓ*(g) = ε|g| + g y + g²/4
    del spread

    def value(t: Array) -> Array:
        return jnp.maximum(jnp.abs(t - y) - epsilon, 0) ** 2

    def derivatives(t: Array, proximal: Any) -> tuple[Array, Array]:
        residual = t - y
        beyond = jnp.maximum(jnp.abs(residual) - epsilon, 0)
        curvature = jnp.where(beyond > 0, 2.0, 0.0).astype(t.dtype)
        return 2 * jnp.sign(residual) * beyond, curvature

    def excess(t: Array, g: Array) -> Array:
        size, residual = jnp.abs(g), jnp.where(g < 0, y - t, t - y)
        right = (jnp.maximum(residual - epsilon, 0) - size / 2) ** 2
        inside = size * jnp.maximum(epsilon - residual, 0)
        return right + inside + jnp.maximum(-residual - epsilon, 0) ** 2

    return _linear_newton.Loss(value, derivatives, excess)


def _tube(y: Array, epsilon: Array, spread: Array) -> _linear_newton.Loss:
    # ℓ*(g) = ε|g| + g y for |g| <= 1
    def value(t: Array) -> Array:
        return jnp.maximum(jnp.abs(t - y) - epsilon, 0)

    def derivatives(t: Array, proximal: Any) -> tuple[Array, Array]:
        pull = proximal.centre + (t - y) / proximal.width
        beyond = jnp.abs(pull) - epsilon / proximal.width
        inside = (beyond > 0) & (beyond < 1)
        g = jnp.sign(pull) * jnp.clip(beyond, 0, 1)
        return g, jnp.where(inside, 1 / proximal.width, 0)

    def excess(t: Array, g: Array) -> Array:
        size, residual = jnp.abs(g), jnp.where(g < 0, y - t, t - y)
        right = (1 - size) * jnp.maximum(residual - epsilon, 0)
        inside = size * jnp.maximum(epsilon - residual, 0)
        return right + inside + jnp.maximum(-residual - epsilon, 0)

    width = jnp.where(spread > 0, 2 * spread, 1)
    return _linear_newton.Loss(
        value, derivatives, excess, _linear_newton.Proximal(jnp.zeros_like(y), width)
    )


_CLASSIFIER_LOSSES = {
    "squared_hinge": _squared_hinge,
    "hinge": _hinge,
    "logistic": _linear_newton.logistic,
    "exponential": _exponential,
}
_REGRESSOR_LOSSES = {
    "epsilon_insensitive": _tube,
    "squared_epsilon_insensitive": _squared_tube,
}
