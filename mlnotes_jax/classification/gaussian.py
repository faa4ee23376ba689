r"""Gaussian classifiers: one Gaussian for each class, and the posterior that follows.

A class $k$ has the prior $\pi_k$ and its rows are drawn from $\mathcal N(\mu_k, \Sigma_k)$. Bayes'
rule turns that into the probability of a class,

$$
p(k \mid x) = \frac{\pi_k\, \mathcal N(x \mid \mu_k, \Sigma_k)}
{\sum_j \pi_j\, \mathcal N(x \mid \mu_j, \Sigma_j)} .
$$

If all classes share one $\Sigma$ the borders between classes are flat (linear discriminant
analysis), with their own $\Sigma_k$ they are quadrics, and with diagonal $\Sigma_k$ the features
are independent within a class (Gaussian naive Bayes). The fit is a mean and a covariance: closed
form.

Reference: Bishop, *Pattern Recognition and Machine Learning* (2006), section 4.2.
"""

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from mlnotes_jax import _checks
from mlnotes_jax.classification import _common

__all__ = [
    "Gaussian",
    "LinearForm",
    "decision_function",
    "fit",
    "linear_form",
    "log_joint",
    "log_posterior",
    "predict",
    "predict_proba",
    "sample",
]

Kind = Literal["shared", "own", "naive"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["priors", "means", "covariance", "factor", "singular"],
    meta_fields=["kind"],
)
@dataclasses.dataclass(frozen=True)
class Gaussian:
    r"""One Gaussian for each class.

    Attributes:
        priors: $\pi$, shape `(k,)`. A class without rows has 0 and is never predicted.
        means: $\mu$, shape `(k, d)`; NaN for a class without rows.
        covariance: $\Sigma$ after shrinkage: `(d, d)` if shared, `(k, d, d)` if own, and the
            variances alone, `(k, d)`, if naive.
        factor: The lower Cholesky factor of each, so that $\Sigma = L L^\top$, in the same shape;
            if naive, the standard deviations. NaN where singular.
        singular: Whether a covariance had no inverse to working precision, shape `()` if shared,
            else `(k,)`. Only a fit under a transformation can return true.
        kind: `"shared"`, `"own"` or `"naive"`; static.
    """

    priors: Float[Array, " k"]
    means: Float[Array, "k d"]
    covariance: Float[Array, "..."]
    factor: Float[Array, "..."]
    singular: Bool[Array, "..."]
    kind: str


class LinearForm(NamedTuple):
    r"""The posterior of a shared covariance as a softmax of $W x + b$.

    Attributes:
        coef: $W$, one row for each class, shape `(k, d)`.
        intercept: $b$, shape `(k,)`.
    """

    coef: Float[Array, "k d"]
    intercept: Float[Array, " k"]


def fit(
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"],
    *,
    covariance: Kind = "shared",
    priors: Float[ArrayLike, " k"] | None = None,
    shrinkage: Float[ArrayLike, ""] = 0.0,
    var_smoothing: Float[ArrayLike, ""] | None = None,
    unbiased: bool = False,
    pool: Literal["rows", "priors"] = "rows",
    sample_weight: Float[ArrayLike, " n"] | None = None,
    num_classes: int | None = None,
) -> Gaussian:
    r"""Fit by maximum likelihood: shares, means and covariances of the classes.

    With $n_k = \sum_i w_i [y_i = k]$ and $n = \sum_k n_k$

    $$
    \pi_k = \frac{n_k}{n}, \qquad \mu_k = \frac{1}{n_k} \sum_{i: y_i = k} w_i x_i, \qquad
    S_k = \frac{1}{n_k} \sum_{i: y_i = k} w_i (x_i - \mu_k)(x_i - \mu_k)^\top ,
    $$

    then $\Sigma_k = S_k$ (own), its diagonal (naive), or $\Sigma = \sum_k \frac{n_k}{n} S_k$
    (shared); then $(1 - s)\, \Sigma + s\, \frac{\operatorname{tr} \Sigma}{d} I$. Everything works
    under `vmap`, over `sample_weight` (folds), `shrinkage` and `priors` as well as over data.

    Args:
        x: Rows, shape `(n, d)`.
        y: Classes 0..k-1, shape `(n,)`.
        covariance: One for all classes (`"shared"`), one for each (`"own"`), or variances only,
            of each class (`"naive"`); static.
        priors: $\pi$, shape `(k,)`, not negative, with sum 1; the shares of the classes by default.
        shrinkage: $s$ in [0, 1]: from the covariance as measured to a multiple of the identity.
            Scale the features first, since it compares their variances. Traced.
        var_smoothing: For `"naive"`: this times the largest variance of a feature over all rows is
            added to every variance, so that a constant feature does not divide by zero; $10^{-9}$
            by default. Traced.
        unbiased: Divide by $n_k - 1$ (shared: $n - k$, with the classes that occur) instead;
            static. Only for weights that count rows.
        pool: How a shared covariance weighs the $S_k$: by the rows of the classes, which is the
            maximum of the likelihood, or by `priors`; static. The same unless `priors` are given.
        sample_weight: $w_i \ge 0$, shape `(n,)`; zero drops a row, which may then hold anything.
        num_classes: k, static; by default the largest label plus one. Needed where `y` is traced.

    Returns:
        The model, in the dtype of `x` and at least float32. Where a covariance is singular under a
        transformation, its factor is NaN, `singular` says so, and `predict` answers -1.

    Raises:
        ValueError: Shapes do not match, data are empty or (where concrete) not finite or no
            classes, an option is not allowed, or a covariance is singular: the message says which,
            by which feature, and what to do.
        TypeError: `x` is not real, or `y` are not integers.

    Example:
        >>> from mlnotes_jax.classification import gaussian
        >>> x, y = [[0.0], [2.0], [3.0], [5.0]], [0, 0, 1, 1]
        >>> model = gaussian.fit(x, y)
        >>> model.means.tolist(), model.covariance.tolist()
        ([[1.0], [4.0]], [[1.0]])
        >>> gaussian.predict(model, [[2.4], [2.6]]).tolist()
        [0, 1]

    Reference:
        Hastie, Tibshirani and Friedman, *The Elements of Statistical Learning* (2009), sections
        4.3 and 6.6.3.

    Note:
        The peers are scikit-learn's `LinearDiscriminantAnalysis`, `QuadraticDiscriminantAnalysis`
        and `GaussianNB`. With `priors`, LDA's solvers "lsqr" and "eigen" do as `pool="priors"`,
        "svd" as `pool="rows"`. Its QDA divided by $n_k - 1$ before version 1.8. `GaussianNB`
        leaves the weights out of the variance that `var_smoothing` multiplies; a row of weight 0
        counts in it. "svd" leaves directions of no variance out where this raises.
    """
    x, y, weight, k = _common.labelled(x, y, sample_weight, num_classes)
    _checks.one_of("covariance", covariance, ("shared", "own", "naive"))
    _checks.one_of("pool", pool, ("rows", "priors"))
    shrinkage = _scalar("shrinkage", shrinkage, x.dtype)
    _checks.in_range("shrinkage", shrinkage, 0, 1)
    if var_smoothing is not None and covariance != "naive":
        raise ValueError(
            f'var_smoothing is for covariance="naive", got it with {covariance!r}: use shrinkage'
        )
    smoothing = _scalar("var_smoothing", 1e-9 if var_smoothing is None else var_smoothing, x.dtype)
    _checks.not_negative("var_smoothing", smoothing)
    given = None if priors is None else _priors(priors, k, x.dtype)
    model, counts = _fit(
        x, y, weight, given, shrinkage, smoothing, covariance, k, unbiased, pool == "priors"
    )
    if _checks.is_concrete((model, counts)):
        _check_regular(model, np.asarray(counts))
    return model


def log_joint(model: Gaussian, x: Float[ArrayLike, "... d"]) -> Float[Array, "... k"]:
    r"""Logarithm of $\pi_k\, \mathcal N(x \mid \mu_k, \Sigma_k)$: how likely class and row are.

    Its `logsumexp` over the classes is the log-density of the row, which tells an unusual row.

    Args:
        model: A fitted model.
        x: One row or many, shape `(..., d)`.

    Returns:
        In nats, shape `(..., k)`; minus infinity for a class of prior 0.

    Raises:
        ValueError: The last axis of `x` is not d.

    Example:
        >>> from mlnotes_jax.classification import gaussian
        >>> model = gaussian.fit([[0.0], [2.0], [3.0], [5.0]], [0, 0, 1, 1])
        >>> joint = gaussian.log_joint(model, [1.0])  # ln(1/2) - ln(2 pi)/2 - (0, 9/2)
        >>> [f"{value:.3f}" for value in joint]
        ['-1.612', '-6.112']
    """
    return _scores(model, *_rows(model, x), joint=True)


def log_posterior(model: Gaussian, x: Float[ArrayLike, "... d"]) -> Float[Array, "... k"]:
    r"""Logarithm of $p(k \mid x)$. Arguments as for `log_joint`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.classification import gaussian
        >>> model = gaussian.fit([[0.0], [2.0], [3.0], [5.0]], [0, 0, 1, 1])
        >>> print(jnp.exp(gaussian.log_posterior(model, [2.5])))
        [0.5 0.5]
    """
    return _log_softmax(_scores(model, *_rows(model, x)))


def predict_proba(model: Gaussian, x: Float[ArrayLike, "... d"]) -> Float[Array, "... k"]:
    r"""Posterior probability $p(k \mid x)$ of each class. Arguments as for `log_joint`.

    Example:
        >>> from mlnotes_jax.classification import gaussian
        >>> model = gaussian.fit([[0.0], [2.0], [3.0], [5.0]], [0, 0, 1, 1])
        >>> print(gaussian.predict_proba(model, [2.5]))
        [0.5 0.5]
    """
    return _softmax(_scores(model, *_rows(model, x)))


def decision_function(model: Gaussian, x: Float[ArrayLike, "... d"]) -> Float[Array, "..."]:
    r"""Log-odds of two classes, or a score for each of more.

    Args:
        model: A fitted model.
        x: One row or many, shape `(..., d)`.

    Returns:
        For two classes $\ln p(1 \mid x) - \ln p(0 \mid x)$, shape `(...)`: positive means class 1.
        For more, `log_posterior`, shape `(..., k)`.

    Raises:
        ValueError: The last axis of `x` is not d.

    Example:
        >>> from mlnotes_jax.classification import gaussian
        >>> model = gaussian.fit([[0.0], [2.0], [3.0], [5.0]], [0, 0, 1, 1])
        >>> print(gaussian.decision_function(model, [[2.5], [3.5]]))
        [0. 3.]

    Note:
        scikit-learn's scores for three classes or more differ by a term that all classes share.
    """
    scores = _scores(model, *_rows(model, x))
    return _log_odds(scores) if scores.shape[-1] == 2 else _log_softmax(scores)


def predict(model: Gaussian, x: Float[ArrayLike, "... d"]) -> Int[Array, "..."]:
    """The most probable class, the first of equals.

    Args:
        model: A fitted model.
        x: One row or many, shape `(..., d)`.

    Returns:
        Classes as int32, shape `(...)`; -1 where a posterior is no number, because a covariance of
        the model is singular or the row is not finite.

    Raises:
        ValueError: The last axis of `x` is not d.

    Example:
        >>> from mlnotes_jax.classification import gaussian
        >>> model = gaussian.fit([[0.0], [2.0], [3.0], [5.0]], [0, 0, 1, 1])
        >>> gaussian.predict(model, [[2.4], [2.6]]).tolist()
        [0, 1]
    """
    return _common.best(_scores(model, *_rows(model, x)))


def linear_form(model: Gaussian) -> LinearForm:
    r"""The weights and intercepts of a shared covariance, in closed form.

    $$
    w_k = \Sigma^{-1} \mu_k, \qquad b_k = -\tfrac12 \mu_k^\top \Sigma^{-1} \mu_k + \ln \pi_k, \qquad
    p(k \mid x) = \operatorname{softmax}_k (w_k^\top x + b_k) .
    $$

    For two classes the log-odds are $(w_1 - w_0)^\top x + (b_1 - b_0)$.

    Args:
        model: A fitted model with a shared covariance.

    Returns:
        Weights and intercepts.

    Raises:
        ValueError: The covariance is not shared: the posterior is not of this form.

    Example:
        >>> from mlnotes_jax.classification import gaussian
        >>> model = gaussian.fit([[0.0], [2.0], [3.0], [5.0]], [0, 0, 1, 1])
        >>> coef, intercept = gaussian.linear_form(model)
        >>> print(f"{coef[1, 0] - coef[0, 0]:.2f} {intercept[1] - intercept[0]:.2f}")
        3.00 -7.50

    Reference:
        Bishop (2006), equations 4.66 to 4.70.

    Note:
        `coef_` and `intercept_` of scikit-learn's LDA with the solver "lsqr"; for two classes that
        has one row, the difference of ours. Far from the origin $b_k$ is a large number that
        cancels against $w_k^\top x$: the functions of this module subtract the mean first.
    """
    if model.kind != "shared":
        raise ValueError(f'linear_form needs covariance="shared", got {model.kind!r}')
    return _linear_form(model)


def sample(
    key: Key[Array, ""], model: Gaussian, num_samples: int
) -> tuple[Float[Array, "m d"], Int[Array, " m"]]:
    r"""Draw rows from the model: a class by the priors, then $x = \mu_k + L_k z$.

    Args:
        key: A key.
        model: A fitted model.
        num_samples: How many, static.

    Returns:
        Rows, shape `(num_samples, d)`, and their classes as int32, shape `(num_samples,)`.

    Raises:
        ValueError: `num_samples` is less than 1.

    Example:
        >>> import jax
        >>> from mlnotes_jax.classification import gaussian
        >>> model = gaussian.fit([[0.0], [2.0], [3.0], [5.0]], [0, 0, 1, 1])
        >>> x, y = gaussian.sample(jax.random.key(0), model, 5)
        >>> x.shape, y.shape
        ((5, 1), (5,))
    """
    _checks.positive_int("num_samples", num_samples)
    return _sample(key, model, num_samples)


# --- What a fit does ------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("kind", "num_classes", "unbiased", "by_priors"))
def _fit(
    x: Array,
    y: Array,
    weight: Array | None,
    priors: Array | None,
    shrinkage: Array,
    smoothing: Array,
    kind: str,
    num_classes: int,
    unbiased: bool,
    by_priors: bool,
) -> tuple[Gaussian, Array]:
    weight = jnp.ones(len(y), x.dtype) if weight is None else weight
    x = jnp.where((weight != 0)[:, None], x, 0)
    known = (y >= 0) & (y < num_classes)
    # Under a transformation a label that is no class spoils every count, and so the model.
    weight = jnp.where(known | (weight == 0), weight, jnp.nan)
    place = jnp.where(known, y, 0)
    member = place[:, None] == jnp.arange(num_classes, dtype=y.dtype)[None]
    rows = jnp.where(member, weight[:, None], 0)
    counts = rows.sum(axis=0)
    total = counts.sum()
    priors = counts / total if priors is None else priors
    # Without "highest", a GPU or TPU would multiply with ten bits or fewer.
    with jax.default_matmul_precision("highest"):
        centre = (weight / total) @ x
        z = x - centre[None]  # near 0, so that no digits cancel in what follows
        present = jnp.where(counts == 0, 1, counts)  # a class without rows must not spoil others
        means = (rows.T @ z) / present[:, None]
        z = z - means[place]
        spare = _positive(counts - 1) if unbiased else present
        whole = (weight / total) @ jnp.square(x - centre[None])
        if kind == "naive":
            spread = (rows.T @ jnp.square(z)) / spare[:, None]
            spread = spread + smoothing * whole.max()
        elif kind == "own":
            spread = jax.lax.map(
                lambda part: (part[0][:, None] * z).T @ z / part[1], (rows.T, spare)
            )
        elif by_priors:
            spread = ((weight * (priors / spare)[place])[:, None] * z).T @ z
        else:
            classes = (counts > 0).sum().astype(x.dtype)
            spread = (weight[:, None] * z).T @ z
            spread = spread / (_positive(total - classes) if unbiased else total)
    spread = _shrink(spread, shrinkage, kind)
    factor, regular = _factor(spread, whole, kind)
    absent = (counts == 0) & (priors == 0)  # never predicted: its covariance does not matter
    singular = ~regular if kind == "shared" else ~regular & ~absent
    means = jnp.where((counts == 0)[:, None], jnp.nan, means + centre[None])
    return Gaussian(priors, means, spread, factor, singular, kind), counts


def _positive(count: Array) -> Array:
    return jnp.where(count > 0, count, jnp.nan)


def _shrink(spread: Array, shrinkage: Array, kind: str) -> Array:
    if kind == "naive":
        return (1 - shrinkage) * spread + shrinkage * spread.mean(axis=-1, keepdims=True)
    d = spread.shape[-1]
    mean = jnp.trace(spread, axis1=-2, axis2=-1) / d
    identity = jnp.eye(d, dtype=spread.dtype).reshape((1,) * (spread.ndim - 2) + (d, d))
    return (1 - shrinkage) * spread + shrinkage * mean[..., None, None] * identity


def _factor(spread: Array, whole: Array, kind: str) -> tuple[Array, Array]:
    """The Cholesky factor, and whether the covariance has an inverse.

    A feature is constant within a class if its variance there is what rounding leaves of 0, beside
    its variance over all rows.

    The correlation matrix is factored: its pivots do not depend on the units. Pivot j is the share
    of the variance of feature j that the features before it do not explain.
    """
    least = (16 * float(jnp.finfo(spread.dtype).eps)) ** 2 * whole
    if kind == "naive":
        regular = (spread > least[None]).all(axis=-1)
        return jnp.sqrt(jnp.where(regular[:, None], spread, jnp.nan)), regular
    variances = jnp.diagonal(spread, axis1=-2, axis2=-1)
    varies = variances > jnp.broadcast_to(least, variances.shape)
    deviations = jnp.sqrt(jnp.where(varies, variances, 1))
    scaled = spread / deviations[..., :, None] / deviations[..., None, :]
    root = jnp.linalg.cholesky(scaled)  # NaN where it fails
    pivots = jnp.square(jnp.diagonal(root, axis1=-2, axis2=-1))
    regular = (varies & (pivots > _least_pivot(spread))).all(axis=-1)
    return jnp.where(regular[..., None, None], deviations[..., :, None] * root, jnp.nan), regular


def _least_pivot(spread: Array) -> float:
    """What is left of a pivot that is zero, after d steps of rounding."""
    return 10 * spread.shape[-1] * float(jnp.finfo(spread.dtype).eps)


def _check_regular(model: Gaussian, counts: np.ndarray) -> None:
    """Raise for a covariance without an inverse, and for a class with a prior but no rows."""
    priors = np.asarray(model.priors)
    for k in np.flatnonzero((counts == 0) & (priors > 0)):
        raise ValueError(
            f"y must have a row of every class with a prior, got none of class {k} "
            f"(prior {priors[k]})"
        )
    singular = np.atleast_1d(np.asarray(model.singular))
    if not singular.any():
        return
    k = int(np.argmax(singular))
    spread = np.atleast_2d(np.asarray(model.covariance, np.float64))
    d = spread.shape[-1]
    variances = spread if model.kind == "naive" else np.diagonal(spread, axis1=-2, axis2=-1)
    largest = variances.reshape(-1, d).max(axis=0)
    ratio = variances.reshape(-1, d)[k] / np.where(largest > 0, largest, 1)
    j = int(np.argmin(ratio))
    if model.kind == "naive":
        raise ValueError(
            f"the variance of feature {j} in class {k} is 0: pass a larger var_smoothing, or "
            "shrinkage, or drop the feature"
        )
    whose = "shared covariance" if model.kind == "shared" else f"covariance of class {k}"
    rows = "" if model.kind == "shared" else f" ({counts[k]:g} rows for {d} features)"
    other = ", or covariance='shared' or 'naive'" if model.kind == "own" else ""
    matrix = spread if model.kind == "shared" else spread[k]
    if ratio[j] > 1e-9:  # no feature is constant: one follows from others
        j = _first_without_pivot(matrix, _least_pivot(model.covariance))
    raise ValueError(
        f"the {whose} is singular{rows}: feature {j} is constant within a class or follows from "
        f"features before it. Pass shrinkage=0.1 (scale the features first){other}, or drop it"
    )


def _first_without_pivot(matrix: np.ndarray, least: float) -> int:
    left = matrix.copy()
    for j, variance in enumerate(np.diagonal(matrix)):
        if not left[j, j] > least * variance:
            return j
        left -= np.outer(left[:, j], left[j]) / left[j, j]
    return len(left) - 1


# --- What a model says ----------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("shape", "joint"))
def _scores(model: Gaussian, x: Array, shape: tuple[int, ...], joint: bool = False) -> Array:
    """Log-joint of each class, or without `joint` up to a term that all classes share."""
    k, d = model.means.shape
    with jax.default_matmul_precision("highest"):
        if model.kind == "shared":
            # In the metric of the covariance |x - mu|² = |x - c|² - 2 (x - c)·(mu - c) + |mu - c|².
            # The first is common to all classes: what is left is linear, and c near the data
            # keeps its digits.
            mean = jnp.where((model.priors == 0)[:, None], 0, model.means)
            centre = model.priors @ mean
            x, mean = x - centre[None], mean - centre[None]
            white = solve_triangular(model.factor, mean.T, lower=True)
            coef = solve_triangular(model.factor, white, lower=True, trans=1)
            scores = x @ coef - 0.5 * jnp.square(white).sum(axis=0)[None]
            if joint:
                scores = scores - _half_distance(x, jnp.zeros_like(centre), model.factor)[:, None]
        else:
            scores = -jax.lax.map(
                lambda part: _half_distance(x, *part), (model.means, model.factor)
            ).T
    if joint:
        scores = scores - 0.5 * d * math.log(2 * math.pi)
    prior = model.priors[None]
    scores = jnp.where(prior == 0, -jnp.inf, scores + jnp.log(jnp.where(prior == 0, 1, prior)))
    return scores.reshape(*shape, k)


# Compiled, so that a call outside of a program is two programs and not ten.
_softmax = jax.jit(jax.nn.softmax)
_log_softmax = jax.jit(jax.nn.log_softmax)


@jax.jit
def _log_odds(scores: Array) -> Array:
    return scores[..., 1] - scores[..., 0]


def _half_distance(x: Array, mean: Array, factor: Array) -> Array:
    """Half the squared distance, and half the logarithm of the determinant."""
    away = x - mean[None]
    if factor.ndim == 1:
        squares = jnp.square(away / factor[None]).sum(axis=1)
        return 0.5 * squares + jnp.log(factor).sum()
    white = solve_triangular(factor, away.T, lower=True)
    return 0.5 * jnp.square(white).sum(axis=0) + _half_log_det(factor)


def _half_log_det(factor: Array) -> Array:
    return jnp.log(jnp.diagonal(factor)).sum()


@jax.jit
def _linear_form(model: Gaussian) -> LinearForm:
    with jax.default_matmul_precision("highest"):
        coef = cho_solve((model.factor, True), model.means.T).T
        half = 0.5 * (coef * model.means).sum(axis=1)
    return LinearForm(coef, jnp.log(model.priors) - half)


@functools.partial(jax.jit, static_argnames="num_samples")
def _sample(key: Array, model: Gaussian, num_samples: int) -> tuple[Array, Array]:
    class_key, row_key = jax.random.split(key)
    y = jax.random.categorical(class_key, jnp.log(model.priors), shape=(num_samples,))
    y = y.astype(jnp.int32)
    means = model.means[y]
    z = jax.random.normal(row_key, means.shape, means.dtype)
    with jax.default_matmul_precision("highest"):
        if model.kind == "shared":
            return means + z @ model.factor.T, y
        if model.kind == "naive":
            return means + model.factor[y] * z, y

        def one(noise: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
            label, factor = part
            return jnp.where((y == label)[:, None], z @ factor.T, noise), None

        labels = jnp.arange(len(model.priors), dtype=jnp.int32)
        noise, _ = jax.lax.scan(one, jnp.zeros_like(z), (labels, model.factor))
    return means + noise, y


# --- What comes in --------------------------------------------------------------------------------


def _scalar(name: str, value: ArrayLike, dtype: Any) -> Array:
    return _checks.floating(name, value, ndim=0).astype(dtype)


def _priors(priors: ArrayLike, num_classes: int, dtype: Any) -> Array:
    array = _checks.floating("priors", priors, ndim=1).astype(dtype)
    if array.shape != (num_classes,):
        raise ValueError(f"priors must have shape ({num_classes},), got {array.shape}")
    _checks.not_negative("priors", array)
    _checks.in_range("the sum of priors", array.sum(), 1 - 1e-5, 1 + 1e-5)
    return array


def _rows(model: Gaussian, x: ArrayLike) -> tuple[Array, tuple[int, ...]]:
    array = _checks.floating("x", x)
    d = model.means.shape[-1]
    if array.shape[-1:] != (d,):
        raise ValueError(f"x must have {d} features in its last axis, got shape {array.shape}")
    return array.astype(model.means.dtype).reshape(-1, d), array.shape[:-1]
