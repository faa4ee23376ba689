r"""Mismatch: do the test rows come from where the training rows came from?

Two samples $x_1, \dots, x_n \sim P$ and $z_1, \dots, z_m \sim Q$ are given, and $P = Q$ is doubted.

- A **classifier** learns to tell them apart on half of the rows. If $P = Q$, it can only guess on
  the other half. Of $h$ held-out rows, $h_1$ are from $z$ and $q$ are taken for rows of $z$. The
  number $A$ of those that are both has, whatever the classifier,

$$
P(A = a) = \binom{h_1}{a} \binom{h - h_1}{q - a} \Big/ \binom{h}{q} .
$$

- One feature at a time: **Kolmogorov and Smirnov's** largest difference between the two empirical
  distribution functions, $D = \sup_t |F_n(t) - G_m(t)|$, whose law does not depend on $P$ either;
  with a correction, because many features are looked at.

Reference: Lopez-Paz and Oquab, *Revisiting classifier two-sample tests* (ICLR 2017); Hodges, *The
significance probability of the Smirnov two-sample test* (Arkiv för Matematik, 1958).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc, ndtr, ndtri
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from mlnotes_jax import _checks, _linear_newton, _protocol
from mlnotes_jax.data import scaling

__all__ = [
    "FeatureTests",
    "TwoSample",
    "benjamini_hochberg",
    "binomial_tail",
    "classifier_two_sample",
    "feature_tests",
    "holm",
    "hypergeometric_tail",
    "kolmogorov_smirnov",
    "kolmogorov_tail",
    "mean_difference",
    "power",
    "rows_needed",
]

#: Up to this many elementary steps per feature, "auto" computes the exact law.
EXACT_STEPS = 4_000_000

Method = Literal["auto", "exact", "asymptotic"]


class TwoSample(NamedTuple):
    r"""What a classifier found out about two samples.

    Attributes:
        accuracy: Share of right answers on the held-out rows, both samples counted alike (balanced
            accuracy), shape `()`; ½ is guessing.
        p_value: How likely at least as many right answers are if $P = Q$, exactly, given how often
            the classifier said "z", shape `()`.
        auc: Share of pairs of held-out rows, one of x and one of z, in which the row of z has the
            larger score, equal ones counted half, shape `()`; ½ is guessing.
        permutation_p_value: How likely so large an AUC is if $P = Q$, by permuted labels, shape
            `()`; NaN without permutations. It needs no border between the answers.
        counts: Held-out rows by sample (x, z) and by answer (x, z), int32, shape `(2, 2)`.
        separation: Mean score of the held-out rows of z minus that of x, shape `()`.
        importance: What each feature adds to `separation`, shape `(d,)`: how much smaller it is
            with the feature held at its mean. For a linear classifier these sum to `separation`.
        x_rows: Which rows of x were held out, int32, shape `(n - n // 2,)`.
        x_scores: Their scores, the larger, the more they look like z.
        z_rows: Which rows of z were held out, int32, shape `(m - m // 2,)`.
        z_scores: Their scores: the row of the largest looks most foreign. Of the default
            classifier, a score estimates $\ln Q(z) / P(z)$.
    """

    accuracy: Float[Array, ""]
    p_value: Float[Array, ""]
    auc: Float[Array, ""]
    permutation_p_value: Float[Array, ""]
    counts: Int[Array, "2 2"]
    separation: Float[Array, ""]
    importance: Float[Array, " d"]
    x_rows: Int[Array, " a"]
    x_scores: Float[Array, " a"]
    z_rows: Int[Array, " b"]
    z_scores: Float[Array, " b"]


class FeatureTests(NamedTuple):
    """Two samples compared feature by feature; every field has the shape `(d,)`.

    Attributes:
        statistic: Kolmogorov and Smirnov's D.
        p_value: Of each feature by itself.
        adjusted: Corrected for the number of features: below the level, the feature is reported.
        mean_difference: Mean of z minus mean of x, in standard deviations.
    """

    statistic: Float[Array, " d"]
    p_value: Float[Array, " d"]
    adjusted: Float[Array, " d"]
    mean_difference: Float[Array, " d"]


# --- A classifier for the two samples -------------------------------------------------------------


def classifier_two_sample(
    key: Key[Array, ""],
    x: Float[ArrayLike, "n d"],
    z: Float[ArrayLike, "m d"],
    *,
    fit: Callable[..., PyTree] | None = None,
    predict: Callable[[PyTree, Array], Array] | None = None,
    penalty: Float[ArrayLike, ""] | None = None,
    num_permutations: int = 999,
) -> TwoSample:
    r"""Test whether two samples come from one distribution, by a classifier that learns the answer.

    A random half of each sample is learned from; the other half is judged. If all rows come from
    one distribution, then given the rows, the learned half and the classifier, every choice of the
    $h_1$ of $h$ held-out rows that carry the label "z" is equally likely. So both p-values keep
    their promise, $P(\text{p-value} \le \alpha) \le \alpha$, for every sample size, for shares as
    they are, and for every classifier, good or bad. A good one finds smaller differences.

    It works under `vmap`, over keys and data.

    Args:
        key: Draws the halves and the permutations, and what `fit` draws.
        x: Rows of the first sample, the training rows, shape `(n, d)`, $n \ge 2$.
        z: Rows of the second, shape `(m, d)`, $m \ge 2$.
        fit: `fit(rows, labels, sample_weight=...) -> model`, with labels 0 (x) and 1 (z) as int32
            and weights that count both samples alike; with a first argument called `key`, it gets
            one. Static. By default logistic regression of standardised features.
        predict: `predict(model, rows)`: scores, shape `(h,)`, positive for "z"; or logits, `(h,
            2)`; or classes 0 and 1 as integers. Static; given together with `fit`.
        penalty: $\lambda > 0$ of the default classifier: $\tfrac\lambda2 \|w\|^2$ is added to the
            summed log-loss. 1 by default. Traced.
        num_permutations: How many permutations of the held-out labels, static; 0 for none.

    Returns:
        Accuracy, p-values, and what gave the rows away. Where a score is not finite, the numbers
        are NaN.

    Raises:
        ValueError: Shapes do not match, a sample has fewer than two rows, or concrete rows are not
            finite; or only one of `fit` and `predict` is given, or `penalty` with them.
        TypeError: Rows are not real, or the functions are no functions.

    Example:
        >>> import jax
        >>> from mlnotes_jax.generalization import mismatch
        >>> x = jax.random.normal(jax.random.key(0), (200, 3))
        >>> same, moved = (mismatch.classifier_two_sample(
        ...     jax.random.key(2), x, jax.random.normal(jax.random.key(1), (150, 3)) + shift
        ... ) for shift in (0.0, 0.8))
        >>> bool(same.p_value > 0.05), bool(moved.p_value < 1e-6)
        (True, True)

    Reference:
        Lopez-Paz and Oquab (2017); Kim, Ramdas, Singh and Wasserman, *Classification accuracy as a
        proxy for two-sample testing* (Annals of Statistics, 2021).

    Note:
        Lopez-Paz and Oquab take the number of right answers for binomial. That is exact when every
        label is a coin of its own, so that the sizes of the samples are random; see the page. The
        p-value here is that of `scipy.stats.fisher_exact(counts, alternative="greater")`. The AUC
        is `scipy.stats.mannwhitneyu(z_scores, x_scores).statistic` over the number of pairs.
    """
    x, z = _samples(x, z, least=2)
    if (fit is None) != (predict is None):
        raise ValueError("fit and predict must be given together, got one of them")
    if fit is not None and penalty is not None:
        raise ValueError("penalty is for the default classifier, got it together with fit")
    for name, function in (("fit", fit), ("predict", predict)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function, got {type(function).__name__}")
    _checks.positive_int("num_permutations", num_permutations, least=0)
    strength = _checks.floating("penalty", 1.0 if penalty is None else penalty, ndim=0)
    _checks.positive("penalty", strength)
    return _two_sample(key, x, z, strength.astype(x.dtype), fit, predict, num_permutations)


def hypergeometric_tail(
    hits: Int[ArrayLike, ""],
    *,
    drawn: Int[ArrayLike, ""],
    marked: Int[ArrayLike, ""],
    total: int,
) -> Float[Array, ""]:
    r"""$P(A \ge a)$ for the number $A$ of marked balls among $q$ drawn without replacement.

    $P(A = a) = \binom{h_1}{a} \binom{h - h_1}{q - a} / \binom hq$ is summed from its ratios
    $P(a + 1) / P(a) = \frac{(q - a)(h_1 - a)}{(a + 1)(h - h_1 - q + a + 1)}$, in logarithms: no
    factorial, whose digits would cancel.

    Args:
        hits: $a$, shape `()`.
        drawn: $q$, shape `()`.
        marked: $h_1$, shape `()`.
        total: $h$; static.

    Returns:
        The probability, shape `()`; in float32 good to about four digits.

    Raises:
        ValueError: A concrete count is not in 0..h.
        TypeError: A count is not an integer.

    Example:
        >>> from mlnotes_jax.generalization import mismatch
        >>> print(f"{mismatch.hypergeometric_tail(3, drawn=3, marked=4, total=8):.4f}")  # 4 / 56
        0.0714
    """
    _checks.positive_int("total", total)
    counts = []
    for name, value in (("hits", hits), ("drawn", drawn), ("marked", marked)):
        counts.append(_checks.integer(name, value, ndim=0).astype(jnp.int32))
        _checks.in_range(name, counts[-1], 0, total)
    a, q, h1 = counts
    return _hypergeometric_tail(a, q, h1, total)


def binomial_tail(
    hits: Int[ArrayLike, "..."],
    num_trials: Int[ArrayLike, "..."],
    *,
    probability: Float[ArrayLike, "..."] = 0.5,
) -> Float[Array, "..."]:
    r"""$P(K \ge k)$ for $K \sim \operatorname{Binomial}(h, p)$: the regularised beta function.

    $P(K \ge k) = I_p(k, h - k + 1)$: a row of $h$ uniform numbers has $k$ or more below $p$ just if
    its $k$-th smallest is below $p$, and that one has a beta distribution.

    Args:
        hits: $k$, any shape.
        num_trials: $h$, of the same shape or a scalar.
        probability: $p$ in [0, 1], likewise.

    Returns:
        The probability, of the broadcast shape.

    Raises:
        ValueError: A concrete count is negative, or a probability is not in [0, 1].
        TypeError: A count is not an integer.

    Example:
        >>> from mlnotes_jax.generalization import mismatch
        >>> print(f"{mismatch.binomial_tail(9, 10):.5f}")  # 11 / 1024
        0.01074

    Note:
        `scipy.stats.binomtest(k, h, p, alternative="greater").pvalue`.
    """
    hits, num_trials = _checks.integer("hits", hits), _checks.integer("num_trials", num_trials)
    p = _checks.floating("probability", probability)
    _checks.not_negative("hits", hits)
    _checks.not_negative("num_trials", num_trials)
    _checks.in_range("probability", p, 0, 1)
    p = p.astype(np.promote_types(p.dtype, np.float32))
    shape = jnp.broadcast_shapes(hits.shape, num_trials.shape, p.shape)
    k, h, p = (jnp.broadcast_to(a, shape).astype(p.dtype) for a in (hits, num_trials, p))
    inside = (k > 0) & (k <= h)
    tail = betainc(jnp.where(inside, k, 1), jnp.where(inside, h - k + 1, 1), p)
    return jnp.where(inside, tail, (k <= 0).astype(p.dtype))


def power(
    accuracy: Float[ArrayLike, "..."],
    num_held_out: Float[ArrayLike, "..."],
    *,
    level: Float[ArrayLike, "..."] = 0.05,
) -> Float[Array, "..."]:
    r"""How often a classifier of a given true accuracy is noticed; by the normal approximation.

    $$ \text{power} \approx \Phi\left(
       \frac{(p - \frac12) \sqrt h - \frac12 z_{1 - \alpha}}{\sqrt{p (1 - p)}} \right) . $$

    Args:
        accuracy: $p$, the chance that the classifier is right on a fresh row, in (0, 1).
        num_held_out: $h$, rows that judge, half of them from each sample.
        level: $\alpha$, in (0, 1).

    Returns:
        The probability that the p-value is at most $\alpha$, of the broadcast shape.

    Raises:
        ValueError: A concrete value is out of range.

    Example:
        >>> from mlnotes_jax.generalization import mismatch
        >>> print(f"{mismatch.power(0.6, 200):.3f}")
        0.886
    """
    p, h, alpha = _together(accuracy=accuracy, num_held_out=num_held_out, level=level)
    _checks.positive("num_held_out", h)
    away = (p - 0.5) * jnp.sqrt(h) - 0.5 * ndtri(1 - alpha)
    return ndtr(away / jnp.sqrt(p * (1 - p)))


def rows_needed(
    accuracy: Float[ArrayLike, "..."],
    *,
    power: Float[ArrayLike, "..."] = 0.8,
    level: Float[ArrayLike, "..."] = 0.05,
) -> Float[Array, "..."]:
    r"""Held-out rows that notice a classifier of a given true accuracy: `power`, solved for h.

    $$ h = \left( \frac{\frac12 z_{1 - \alpha} + z_{\text{power}} \sqrt{p (1 - p)}}{p - \frac12}
       \right)^2 . $$

    Args:
        accuracy: $p$ in (½, 1).
        power: Wanted chance to notice, in (0, 1).
        level: $\alpha$, in (0, 1).

    Returns:
        The number of rows, not rounded, of the broadcast shape; infinite at an accuracy of ½.

    Raises:
        ValueError: A concrete value is out of range.

    Example:
        >>> from mlnotes_jax.generalization import mismatch
        >>> print(f"{mismatch.rows_needed(0.6):.0f}")
        152
    """
    p, beta, alpha = _together(accuracy=accuracy, power=power, level=level)
    _checks.in_range("accuracy", p, 0.5, 1)
    root = 0.5 * ndtri(1 - alpha) + ndtri(beta) * jnp.sqrt(p * (1 - p))
    return jnp.square(root / (p - 0.5))


# --- Feature by feature ---------------------------------------------------------------------------


def feature_tests(
    x: Float[ArrayLike, "n d"],
    z: Float[ArrayLike, "m d"],
    *,
    correction: Literal["holm", "benjamini_hochberg", "none"] = "holm",
    method: Method = "auto",
) -> FeatureTests:
    """Compare two samples feature by feature, with a correction for many features.

    Args:
        x: Rows of the first sample, shape `(n, d)`.
        z: Rows of the second, shape `(m, d)`.
        correction: `"holm"`: with probability of at most the level is any feature reported that
            does not differ. `"benjamini_hochberg"`: of the reported ones at most this share does
            not differ, on average. `"none"`. Static.
        method: How `kolmogorov_smirnov` finds p-values; static.

    Returns:
        A number for each feature.

    Raises:
        ValueError: Shapes do not match, there are no rows, an option is unknown, or concrete rows
            are not finite.
        TypeError: Rows are not real.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import mismatch
        >>> x, z = jax.random.normal(jax.random.key(0), (2, 300, 4))
        >>> z = z + jnp.array([[0.0, 0.0, 0.7, 0.0]])
        >>> (mismatch.feature_tests(x, z).adjusted < 0.05).tolist()
        [False, False, True, False]
    """
    _checks.one_of("correction", correction, ("holm", "benjamini_hochberg", "none"))
    statistic, p_value = kolmogorov_smirnov(x, z, method=method)
    adjust = {"holm": holm, "benjamini_hochberg": benjamini_hochberg, "none": lambda p: p}
    return FeatureTests(statistic, p_value, adjust[correction](p_value), mean_difference(x, z))


def kolmogorov_smirnov(
    x: Float[ArrayLike, "n *d"], z: Float[ArrayLike, "m *d"], *, method: Method = "auto"
) -> tuple[Float[Array, "*d"], Float[Array, "*d"]]:
    r"""The largest difference between two empirical distribution functions, and its p-value.

    $D = \sup_t |F_n(t) - G_m(t)|$. The exact p-value is the share of the $\binom{n + m}{n}$ ways to
    deal the pooled values out to the two samples that give as large a $D$. The pooled values are
    walked through in order; the chance that the next one belongs to $x$ is that of an urn, and the
    probability of each count of $x$ is carried along. Whatever gets as far as $D$ leaves. Equal
    values are passed together, so that the law is exact with ties, too.

    Args:
        x: First sample, shape `(n,)`, or `(n, d)` for d features.
        z: Second sample, shape `(m,)` or `(m, d)`.
        method: `"exact"`: $(n + m) \min(n, m)$ steps for each feature. `"asymptotic"`:
            `kolmogorov_tail` of $D \sqrt{n m / (n + m)}$, which is too large for few rows and with
            ties. `"auto"`: exact up to four million steps. Static.

    Returns:
        $D$ and the p-value, each of shape `()` or `(d,)`; NaN where a value is not finite.

    Raises:
        ValueError: Shapes do not match, there are no rows, the method is unknown, the exact one
            would need integers beyond 32 bits, or concrete rows are not finite.
        TypeError: Values are not real.

    Example:
        >>> from mlnotes_jax.generalization import mismatch
        >>> statistic, p_value = mismatch.kolmogorov_smirnov([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
        >>> f"{statistic:.2f} {p_value:.2f}"  # 2 of the 20 ways
        '1.00 0.10'

    Reference:
        Hodges (1958); with ties, Schröer and Trenkler, *Exact and randomization distributions of
        Kolmogorov-Smirnov tests for two or three samples* (Computational Statistics and Data
        Analysis, 1995).

    Note:
        Without ties that of `scipy.stats.ks_2samp(x, z, method="exact")`. With ties SciPy's p-value
        is an upper bound. Its `method="asymp"` takes the one-sample law of $n m / (n + m)$ rows.
    """
    x, z = _samples(x, z, least=1, ndim=(1, 2))
    _checks.one_of("method", method, ("auto", "exact", "asymptotic"))
    n, m = x.shape[0], z.shape[0]
    fits = n * m // math.gcd(n, m) < 2**31
    if method == "exact" and not fits:
        raise ValueError(
            f'method="exact" needs n m / gcd(n, m) < 2^31, got {n} and {m} rows: use "asymptotic"'
        )
    exact = method == "exact" or (method == "auto" and fits and (n + m) * min(n, m) <= EXACT_STEPS)
    flat = (a.reshape(a.shape[0], -1) for a in (x, z))
    statistic, p_value = _smirnov(*flat, exact)
    return statistic.reshape(x.shape[1:]), p_value.reshape(x.shape[1:])


def kolmogorov_tail(value: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Kolmogorov's limit law, $Q(\lambda) = 2 \sum_{j \ge 1} (-1)^{j - 1} e^{-2 j^2 \lambda^2}$.

    Args:
        value: $\lambda \ge 0$, any shape.

    Returns:
        $P(\sqrt{nm / (n + m)}\, D \ge \lambda)$ for many rows, of the same shape.

    Raises:
        ValueError: A concrete value is negative.

    Example:
        >>> from mlnotes_jax.generalization import mismatch
        >>> print(f"{mismatch.kolmogorov_tail(1.3581):.4f}")
        0.0500

    Note:
        `scipy.stats.kstwobign.sf`. Below 0.18 the answer is 1, which is wrong by at most
        $10^{-15}$; above it 25 terms leave less than that.
    """
    value = _checks.floating("value", value)
    _checks.not_negative("value", value)
    value = value.astype(np.promote_types(value.dtype, np.float32))
    total = jnp.zeros_like(value)
    for j in range(25, 0, -1):  # small terms first
        total = 2 * jnp.exp(-2 * jnp.square(j * value)) * (-1) ** (j - 1) + total
    return jnp.where(value < 0.18, 1, total)  # a NaN stays one


def mean_difference(x: Float[ArrayLike, "n *d"], z: Float[ArrayLike, "m *d"]) -> Float[Array, "*d"]:
    r"""Difference of the means in standard deviations.

    $(\bar z - \bar x) / \sqrt{(s_x^2 + s_z^2) / 2}$ is often called Cohen's d. Unlike a p-value it
    does not shrink when rows are added: it says how large a shift is, not how sure one is of it.

    Args:
        x: First sample, shape `(n,)` or `(n, d)`.
        z: Second sample, shape `(m,)` or `(m, d)`.

    Returns:
        Shape `()` or `(d,)`; variances divide by the number of rows. A feature that is constant in
        both has 0 if the constants are the same, else plus or minus infinity.

    Raises:
        ValueError: Shapes do not match, there are no rows, or concrete rows are not finite.
        TypeError: Values are not real.

    Example:
        >>> from mlnotes_jax.generalization import mismatch
        >>> print(mismatch.mean_difference([0.0, 2.0], [3.0, 5.0]))
        3.0
    """
    return _mean_difference(*_samples(x, z, least=1, ndim=(1, 2)))


def holm(p_values: Float[ArrayLike, " d"]) -> Float[Array, " d"]:
    r"""Holm's adjusted p-values: no false report at all, with probability $1 - \alpha$.

    In rising order, $\tilde p_{(i)} = \max_{j \le i} \min(1, (d - j + 1)\, p_{(j)})$.

    Args:
        p_values: One for each hypothesis, shape `(d,)`; they may depend on each other in any way.

    Returns:
        Adjusted p-values, in the same order. Report those that are at most $\alpha$.

    Raises:
        ValueError: There is none, or a concrete one is not in [0, 1].

    Example:
        >>> from mlnotes_jax.generalization import mismatch
        >>> print([f"{p:.2f}" for p in mismatch.holm([0.01, 0.04, 0.03])])
        ['0.03', '0.06', '0.06']

    Reference:
        Holm, *A simple sequentially rejective multiple test procedure* (Scandinavian Journal of
        Statistics, 1979).
    """
    p = _p_values(p_values)
    d = len(p)
    order = jnp.argsort(p)
    raised = jnp.minimum(p[order] * jnp.arange(d, 0, -1).astype(p.dtype), 1)
    return jnp.zeros_like(p).at[order].set(jax.lax.cummax(raised))


def benjamini_hochberg(p_values: Float[ArrayLike, " d"]) -> Float[Array, " d"]:
    r"""Benjamini and Hochberg's adjusted p-values: a share of false reports of at most $\alpha$.

    In rising order, $\tilde p_{(i)} = \min_{j \ge i} \min(1, d\, p_{(j)} / j)$.

    Args:
        p_values: One for each hypothesis, shape `(d,)`; independent, or positively dependent.

    Returns:
        Adjusted p-values, in the same order. Of those at most $\alpha$, at most the share $\alpha$
        is false, on average.

    Raises:
        ValueError: There is none, or a concrete one is not in [0, 1].

    Example:
        >>> from mlnotes_jax.generalization import mismatch
        >>> print([f"{p:.2f}" for p in mismatch.benjamini_hochberg([0.01, 0.04, 0.03])])
        ['0.03', '0.04', '0.04']

    Reference:
        Benjamini and Hochberg, *Controlling the false discovery rate* (Journal of the Royal
        Statistical Society B, 1995).

    Note:
        `scipy.stats.false_discovery_control(p, method="bh")`.
    """
    p = _p_values(p_values)
    d = len(p)
    order = jnp.argsort(p)
    raised = jnp.minimum(p[order] * d / jnp.arange(1, d + 1).astype(p.dtype), 1)
    return jnp.zeros_like(p).at[order].set(jax.lax.cummin(raised, reverse=True))


# --- Checks ---------------------------------------------------------------------------------------


def _samples(x: ArrayLike, z: ArrayLike, *, least: int, ndim: Any = 2) -> tuple[Array, Array]:
    x, z = _checks.floating("x", x, ndim=ndim), _checks.floating("z", z, ndim=ndim)
    if x.shape[1:] != z.shape[1:]:
        raise ValueError(f"x and z must have the same features, got x {x.shape}, z {z.shape}")
    for name, sample in (("x", x), ("z", z)):
        if sample.shape[0] < least:
            raise ValueError(f"{name} must have at least {least} rows, got shape {sample.shape}")
        _checks.not_empty(name, sample)
        _checks.finite(name, sample)
    dtype = np.promote_types(np.promote_types(x.dtype, z.dtype), np.float32)
    return x.astype(dtype), z.astype(dtype)


def _together(**values: ArrayLike) -> list[Array]:
    """Arrays of one shape and dtype; those that are chances are checked."""
    arrays = {name: _checks.floating(name, value) for name, value in values.items()}
    for name, array in arrays.items():
        if name != "num_held_out":
            _checks.in_range(name, array, 0, 1)
    shape = jnp.broadcast_shapes(*(a.shape for a in arrays.values()))
    dtype = functools.reduce(np.promote_types, (a.dtype for a in arrays.values()), np.float32)
    return [jnp.broadcast_to(a, shape).astype(dtype) for a in arrays.values()]


def _p_values(p_values: ArrayLike) -> Array:
    p = _checks.floating("p_values", p_values, ndim=1)
    _checks.not_empty("p_values", p)
    _checks.in_range("p_values", p, 0, 1)
    return p


# --- The classifier -------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("fit", "predict", "num_permutations"))
def _two_sample(
    key: Array,
    x: Array,
    z: Array,
    penalty: Array,
    fit: Callable[..., PyTree] | None,
    predict: Callable[..., Array] | None,
    num_permutations: int,
) -> TwoSample:
    half_key, fit_key, permute_key = jax.random.split(key, 3)
    n, m = len(x), len(z)
    # One sort for both samples, since sorts take long to compile: what is not there comes last.
    there = jnp.arange(max(n, m))[None] < jnp.array([n, m])[:, None]
    ticket = jnp.where(there, jax.random.uniform(half_key, there.shape), 2)
    order = jnp.argsort(ticket, axis=1).astype(jnp.int32)
    x_learn, x_judge = jnp.split(order[0, :n], [n // 2])
    z_learn, z_judge = jnp.split(order[1, :m], [m // 2])

    rows = jnp.concatenate([x[x_learn], z[z_learn]])
    sizes = len(x_learn), len(z_learn)
    labels = jnp.repeat(
        jnp.arange(2, dtype=jnp.int32), np.array(sizes), total_repeat_length=sum(sizes)
    )
    # Both samples weigh the same, whatever their sizes; on average a row weighs 1.
    weight = jnp.array([sum(sizes) / (2 * size) for size in sizes], x.dtype)[labels]
    if fit is None or predict is None:
        model, predict = _fit_logistic(rows, labels, weight, penalty), _logistic_scores
    else:
        model = _protocol.keyed(fit)(fit_key, rows, labels, sample_weight=weight)

    h0, h1 = len(x_judge), len(z_judge)
    judged = jnp.concatenate([x[x_judge], z[z_judge]])
    scores = _scores(predict(model, judged), h0 + h1).astype(x.dtype)
    # The separation is this vector times the scores.
    contrast = jnp.concatenate([jnp.full(h0, -1 / h0, x.dtype), jnp.full(h1, 1 / h1, x.dtype)])
    separation = _dot(contrast, scores)

    def without(column: Array) -> Array:
        here = jnp.arange(x.shape[1]) == column
        held = jnp.where(here[None], judged.mean(axis=0, keepdims=True), judged)
        return _dot(contrast, _scores(predict(model, held), h0 + h1).astype(x.dtype))

    importance = separation - jax.lax.map(without, jnp.arange(x.shape[1]))

    said_z = scores > 0
    wrong, hits = said_z[:h0].sum(dtype=jnp.int32), said_z[h0:].sum(dtype=jnp.int32)
    accuracy = (hits.astype(x.dtype) / h1 + 1 - wrong.astype(x.dtype) / h0) / 2
    p_value = _hypergeometric_tail(hits, hits + wrong, jnp.int32(h1), h0 + h1).astype(x.dtype)

    # Ranks, the mean rank for equal scores, in units of the number of rows.
    ranked = jnp.sort(scores)
    below, up_to = (jnp.searchsorted(ranked, scores, side=side) for side in ("left", "right"))
    ranks = (below + up_to).astype(x.dtype) / (2 * (h0 + h1))
    apart = _dot(contrast, ranks)  # the AUC minus a half: one rank is one pair that is in order
    permutation_p_value = jnp.full((), jnp.nan, x.dtype)
    if num_permutations:
        tickets = jax.random.bits(permute_key, (num_permutations, h0 + h1))
        _, shuffled = jax.lax.sort_key_val(
            tickets, jnp.broadcast_to(ranks[None], tickets.shape), is_stable=False
        )
        # What differs from a tie by the rounding of a sum is a tie, and ties count.
        reached = _dot(shuffled, contrast) >= apart - 8 * jnp.finfo(x.dtype).eps
        permutation_p_value = (1 + reached.sum().astype(x.dtype)) / (1 + num_permutations)

    finite = jnp.isfinite(scores).all()
    accuracy, p_value, auc, permutation_p_value = (
        jnp.where(finite, number, jnp.nan)
        for number in (accuracy, p_value, apart + 0.5, permutation_p_value)
    )
    return TwoSample(
        accuracy=accuracy,
        p_value=p_value,
        auc=auc,
        permutation_p_value=permutation_p_value,
        counts=jnp.array([[h0 - wrong, wrong], [h1 - hits, hits]], jnp.int32),
        separation=separation,
        importance=importance,
        x_rows=x_judge,
        x_scores=scores[:h0],
        z_rows=z_judge,
        z_scores=scores[h0:],
    )


#: Without "highest", a GPU or TPU would multiply with ten bits or fewer.
_dot = functools.partial(jnp.dot, precision="highest")


class _Logistic(NamedTuple):
    scaling: scaling.Scaling
    coef: Array
    intercept: Array


def _fit_logistic(x: Array, labels: Array, weight: Array, penalty: Array) -> _Logistic:
    model = scaling.fit_standard(x)
    # The test holds for any classifier: the last digits of this one are not worth a step.
    found = _linear_newton.minimize(
        scaling.apply(model, x),
        weight,
        _linear_newton.logistic(2 * labels.astype(x.dtype) - 1),
        penalty=penalty,
        tol=jnp.asarray(1e-3, x.dtype),
        max_iter=jnp.asarray(30, jnp.int32),
    )
    return _Logistic(model, found.coef, found.intercept)


def _logistic_scores(model: _Logistic, x: Array) -> Array:
    return _dot(scaling.apply(model.scaling, x), model.coef) + model.intercept


def _scores(outputs: Array, num_rows: int) -> Array:
    """One number for each row, positive for z, of whatever a classifier predicts."""
    outputs = jnp.asarray(outputs)
    if outputs.shape == (num_rows, 2) and jnp.issubdtype(outputs.dtype, jnp.floating):
        return outputs[:, 1] - outputs[:, 0]
    if outputs.shape != (num_rows,):
        raise ValueError(
            f"predict must return shape {(num_rows,)}, or logits of shape {(num_rows, 2)}, "
            f"got {outputs.shape}"
        )
    if jnp.issubdtype(outputs.dtype, jnp.floating):
        return outputs
    return outputs.astype(jnp.float32) - 0.5


def _hypergeometric_tail(hits: Array, drawn: Array, marked: Array, total: int) -> Array:
    dtype = jnp.result_type(float)
    a = jnp.arange(total + 1, dtype=jnp.int32)
    least, most = jnp.maximum(0, drawn + marked - total), jnp.minimum(drawn, marked)
    up = (drawn - a).astype(dtype) * (marked - a).astype(dtype)
    down = (a + 1).astype(dtype) * (total - marked - drawn + a + 1).astype(dtype)
    possible = (a >= least) & (a < most)
    steps = jnp.where(possible, jnp.log(jnp.where(possible, up / down, 1)), 0)
    log_mass = jnp.concatenate([jnp.zeros(1, dtype), jnp.cumsum(steps)[:-1]])
    mass = jnp.where((a >= least) & (a <= most), jnp.exp(log_mass - log_mass.max()), 0)
    return jnp.where(a >= hits, mass, 0).sum() / mass.sum()


# --- Kolmogorov and Smirnov -----------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="exact")
def _smirnov(x: Array, z: Array, exact: bool) -> tuple[Array, Array]:
    if len(x) > len(z):  # the law is the same from either side, and shorter vectors are cheaper
        x, z = z, x
    n, m = len(x), len(z)
    pooled = jnp.concatenate([x, z])
    order = jnp.argsort(pooled, axis=0)
    ranked = jnp.take_along_axis(pooled, order, axis=0)
    # D looks at the functions only behind a value that is not repeated.
    ends = jnp.concatenate([ranked[1:] != ranked[:-1], jnp.ones_like(ranked[:1], bool)])
    seen = jnp.arange(1, n + m + 1, dtype=jnp.int32)[:, None]
    from_x = jnp.cumsum((order < n).astype(jnp.int32), axis=0)
    ok = jnp.isfinite(pooled).all(axis=0)
    if not exact:
        apart = from_x.astype(x.dtype) / n - (seen - from_x).astype(x.dtype) / m
        statistic = jnp.where(ends, jnp.abs(apart), 0).max(axis=0)
        p_value = kolmogorov_tail(statistic * math.sqrt(n * m / (n + m)))
    else:
        common = math.gcd(n, m)
        by_x, by_z = m // common, n // common  # F - G = (i by_x - j by_z) / lcm: whole numbers
        apart = jnp.abs(from_x * by_x - (seen - from_x) * by_z)
        distance = jnp.where(ends, apart, 0).max(axis=0)
        statistic = distance.astype(x.dtype) / (n * by_x)
        chance = functools.partial(_chance_to_reach, n=n, m=m, by_x=by_x, by_z=by_z)
        p_value = jax.vmap(chance, in_axes=(0, 1))(distance, ends).astype(x.dtype)
    return jnp.where(ok, statistic, jnp.nan), jnp.where(ok, p_value, jnp.nan)


def _chance_to_reach(
    distance: Array, ends: Array, *, n: int, m: int, by_x: int, by_z: int
) -> Array:
    """Share of all ways to deal out the values that are this far apart behind some block."""
    dtype = jnp.result_type(float)
    i = jnp.arange(n + 1, dtype=jnp.int32)  # values of x among those seen

    def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[Any, None]:
        inside, gone = carry
        k, end = now
        each = inside / (n + m - k).astype(dtype)
        # Two products, no difference: where no value of a sample is left, exactly nothing moves.
        to_x, to_z = each * (n - i).astype(dtype), each * (m - k + i).astype(dtype)
        moved = to_z + jnp.concatenate([jnp.zeros(1, dtype), to_x[:-1]])
        far = end & (jnp.abs(i * by_x - (k + 1 - i) * by_z) >= distance)
        return (jnp.where(far, 0, moved), gone + jnp.where(far, moved, 0).sum()), None

    start = (i == 0).astype(dtype), jnp.zeros((), dtype)
    k = jnp.arange(n + m, dtype=jnp.int32)
    (_, gone), _ = jax.lax.scan(step, start, (k, ends))
    # Only terms that are not negative were added, so tiny chances keep their digits; 1 may have
    # become 1 plus rounding.
    return jnp.minimum(gone, 1)


@jax.jit
def _mean_difference(x: Array, z: Array) -> Array:
    difference = z.mean(axis=0) - x.mean(axis=0)
    spread = jnp.sqrt((x.var(axis=0) + z.var(axis=0)) / 2)
    return jnp.where(difference == 0, 0, difference / spread)
