r"""Criteria: how much a question tells about the answer.

A set of rows has the class shares $p_1, \dots, p_K$. Its impurity is the entropy or the Gini value

$$
H = -\sum_k p_k \log_2 p_k , \qquad G = \sum_k p_k (1 - p_k) .
$$

A question sends the share $q_v$ of the rows into branch $v$. What it tells is the impurity before
it, less the mean impurity after it,

$$
\text{gain} = H - \sum_v q_v H_v \ \ge\ 0 .
$$

Everything here is a function of a table of weights, one row for each branch, one column for each
class (or, for a number instead of a class, of three sums for each branch); leading axes are a
batch. So all questions about all columns are one call.

Reference: Quinlan, *Induction of Decision Trees* (Machine Learning 1, 1986); Breiman, Friedman,
Olshen and Stone, *Classification and Regression Trees* (1984), chapter 4.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from mlnotes_jax import _checks

__all__ = [
    "Thresholds",
    "decrease",
    "entropy",
    "gain_ratio",
    "gini",
    "gini_index",
    "information_gain",
    "intrinsic_value",
    "moments",
    "table",
    "threshold_moments",
    "threshold_tables",
    "thresholds",
    "variance",
    "variance_reduction",
]


class Thresholds(NamedTuple):
    r"""All questions "is $x \le t$?" about one column.

    Attributes:
        threshold: Midpoints of neighbours in the order of the values, shape `(n - 1,)`; NaN where
            two neighbours are equal.
        sums: For each, the table of its two branches (0: $x \le t$), shape `(n - 1, 2, m)`, as
            `table` or `moments` would give it; zeros where the threshold is NaN.
    """

    threshold: Float[Array, " n_minus_1"]
    sums: Float[Array, "n_minus_1 2 m"]


# --- Impurity of one set --------------------------------------------------------------------------


def entropy(counts: Float[ArrayLike, "*batch classes"]) -> Float[Array, "*batch"]:
    r"""Entropy of class shares, in bits: $-\sum_k p_k \log_2 p_k$ with $0 \log_2 0 = 0$.

    How many yes-or-no questions a best code needs on average to name the class of a row. Between 0
    (one class) and $\log_2 K$ (equal shares).

    Args:
        counts: Weights of the classes, not negative, shape `(..., classes)`; divided by their sum
            here. Counts, sums of sample weights, or shares.

    Returns:
        Shape `(...)`, in the dtype of `counts` and at least float32; 0 for a set without rows.

    Raises:
        ValueError: There is no class, or a concrete weight is negative or not finite.
        TypeError: `counts` are not real.

    Example:
        >>> from mlnotes_jax.trees import criteria
        >>> criteria.entropy([[1.0, 1.0], [4.0, 0.0]]).tolist()
        [1.0, 0.0]

    Reference:
        Shannon, *A Mathematical Theory of Communication* (1948).

    Note:
        `scipy.stats.entropy` takes the natural logarithm unless told `base=2`. A negative weight
        under a transformation gives NaN.
    """
    return _entropy(_weights("counts", counts, 1))


def gini(counts: Float[ArrayLike, "*batch classes"]) -> Float[Array, "*batch"]:
    r"""Gini value of class shares: $\sum_k p_k (1 - p_k) = 1 - \sum_k p_k^2$.

    How often two rows, drawn independently, disagree about the class. Between 0 (one class) and
    $1 - 1/K$ (equal shares).

    Args:
        counts: Weights of the classes, not negative, shape `(..., classes)`.

    Returns:
        Shape `(...)`; 0 for a set without rows.

    Raises:
        ValueError: There is no class, or a concrete weight is negative or not finite.
        TypeError: `counts` are not real.

    Example:
        >>> from mlnotes_jax.trees import criteria
        >>> criteria.gini([[1.0, 1.0], [4.0, 0.0]]).tolist()
        [0.5, 0.0]

    Reference:
        Breiman, Friedman, Olshen and Stone, *Classification and Regression Trees* (1984),
        section 4.3.

    Note:
        Not the Gini coefficient of incomes, which measures how unequal numbers are.
    """
    return _gini(_weights("counts", counts, 1))


def variance(sums: Float[ArrayLike, "*batch 3"]) -> Float[Array, "*batch"]:
    r"""Weighted variance of a number, from its three sums: the impurity of a regression.

    With $W = \sum_i w_i$ and $m = \sum_i w_i y_i / W$

    $$
    \operatorname{Var} = \frac{1}{W} \sum_i w_i (y_i - m)^2 = \frac{1}{W} \sum_i w_i y_i^2 - m^2 .
    $$

    Args:
        sums: $(\sum w_i, \sum w_i y_i, \sum w_i y_i^2)$ in the last axis, as `moments` gives them.

    Returns:
        Shape `(...)`; 0 for a set without rows.

    Raises:
        ValueError: The last axis is not of size 3, or a concrete sum is not finite.
        TypeError: `sums` are not real.

    Example:
        >>> from mlnotes_jax.trees import criteria
        >>> criteria.variance([2.0, 4.0, 10.0]).item()  # of 1 and 3
        1.0

    Note:
        The last form subtracts numbers of the size of $m^2$. Where $m$ is far from 0 beside the
        deviations, take the mean of all targets off first: no variance changes.
    """
    return _variance(_sums(sums, 1))


# --- What a question tells ------------------------------------------------------------------------


def decrease(
    counts: Float[ArrayLike, "*batch branches classes"],
    impurity: Callable[[Array], Array] = entropy,
) -> Float[Array, "*batch"]:
    r"""Decrease of any impurity: $I(D) - \sum_v \frac{W_v}{W} I(D_v)$.

    Not negative, if the impurity is a concave function of the shares; the page has the proof.

    Args:
        counts: Weights of the classes in each branch, shape `(..., branches, classes)`.
        impurity: A function of weights of classes in the last axis: `entropy`, `gini` or another.

    Returns:
        Shape `(...)`. Rounding can leave $-10^{-7}$ for 0 in float32.

    Raises:
        ValueError: `counts` have less than two axes or an empty one, or a concrete weight is
            negative or not finite.
        TypeError: `counts` are not real.

    Example:
        >>> from mlnotes_jax.trees import criteria
        >>> criteria.decrease([[2.0, 0.0], [0.0, 2.0]], criteria.gini).item()
        0.5
    """
    return _decrease(_weights("counts", counts, 2), impurity)


def information_gain(
    counts: Float[ArrayLike, "*batch branches classes"],
) -> Float[Array, "*batch"]:
    r"""Information gain: the entropy before the question, less the mean entropy after it.

    $$
    \text{gain} = H(D) - \sum_v \frac{W_v}{W} H(D_v)
    = \sum_{v,k} p_{vk} \log_2 \frac{p_{vk}}{p_v\, p_k} ,
    $$

    the mutual information of branch and class. ID3 asks the question of the highest gain.

    Args:
        counts: Weights of the classes in each branch, shape `(..., branches, classes)`.

    Returns:
        Bits, shape `(...)`. Rounding can leave $-10^{-7}$ for 0 in float32.

    Raises:
        ValueError: As in `decrease`.
        TypeError: `counts` are not real.

    Example:
        >>> from mlnotes_jax.trees import criteria
        >>> criteria.information_gain([[2.0, 0.0], [1.0, 1.0]]).item()  # doctest: +ELLIPSIS
        0.311...

    Reference:
        Quinlan, *Induction of Decision Trees* (Machine Learning 1, 1986), section 4.
    """
    return _decrease(_weights("counts", counts, 2), _entropy)


def intrinsic_value(
    counts: Float[ArrayLike, "*batch branches classes"],
) -> Float[Array, "*batch"]:
    r"""Intrinsic value: the entropy of the branches, $-\sum_v \frac{W_v}{W} \log_2 \frac{W_v}{W}$.

    What a question tells about itself: which branch a row takes. Large for many equal branches.

    Args:
        counts: Weights of the classes in each branch, shape `(..., branches, classes)`.

    Returns:
        Bits, shape `(...)`.

    Raises:
        ValueError: As in `decrease`.
        TypeError: `counts` are not real.

    Example:
        >>> from mlnotes_jax.trees import criteria
        >>> criteria.intrinsic_value([[2.0, 0.0], [1.0, 1.0]]).item()
        1.0

    Reference:
        Quinlan, *Induction of Decision Trees* (1986), section 6; later also "split information".
    """
    return _entropy(_weights("counts", counts, 2).sum(axis=-1))


def gain_ratio(counts: Float[ArrayLike, "*batch branches classes"]) -> Float[Array, "*batch"]:
    r"""Gain ratio: information gain over intrinsic value, between 0 and 1.

    The share of what the branch says that is about the class. C4.5 asks the question of the highest
    ratio among those whose gain is at least average.

    Args:
        counts: Weights of the classes in each branch, shape `(..., branches, classes)`.

    Returns:
        Shape `(...)`; 0 where all rows are in one branch, so that there is no question.

    Raises:
        ValueError: As in `decrease`.
        TypeError: `counts` are not real.

    Example:
        >>> from mlnotes_jax.trees import criteria
        >>> criteria.gain_ratio([[2.0, 0.0], [0.0, 2.0]]).item()
        1.0

    Reference:
        Quinlan, *C4.5: Programs for Machine Learning* (1993), section 2.2.
    """
    return _gain_ratio(_weights("counts", counts, 2))


def gini_index(counts: Float[ArrayLike, "*batch branches classes"]) -> Float[Array, "*batch"]:
    r"""Gini index of a question: the mean Gini value after it, $\sum_v \frac{W_v}{W} G(D_v)$.

    The lowest is the best; the decrease of the Gini value is `gini` of the whole less this.

    Args:
        counts: Weights of the classes in each branch, shape `(..., branches, classes)`.

    Returns:
        Shape `(...)`.

    Raises:
        ValueError: As in `decrease`.
        TypeError: `counts` are not real.

    Example:
        >>> from mlnotes_jax.trees import criteria
        >>> criteria.gini_index([[2.0, 0.0], [1.0, 1.0]]).item()
        0.25

    Note:
        "Gini index" is the name of this mean in Zhou's *Machine Learning* (2021, section 4.2). In
        Breiman et al. it is the name of what `gini` computes.
    """
    return _after(_weights("counts", counts, 2), _gini)


def variance_reduction(sums: Float[ArrayLike, "*batch branches 3"]) -> Float[Array, "*batch"]:
    r"""Variance before a question, less the mean variance after it.

    $$
    \operatorname{Var}(D) - \sum_v \frac{W_v}{W} \operatorname{Var}(D_v)
    = \sum_v \frac{W_v}{W} (m_v - m)^2 ,
    $$

    the variance of the means of the branches. The right side is computed: it needs no squares of
    targets, is never negative, and loses no digits.

    Args:
        sums: $(\sum w_i, \sum w_i y_i, \sum w_i y_i^2)$ of each branch, shape `(..., branches, 3)`.

    Returns:
        Shape `(...)`.

    Raises:
        ValueError: The last axis is not of size 3, or a concrete sum is not finite.
        TypeError: `sums` are not real.

    Example:
        >>> from mlnotes_jax.trees import criteria
        >>> criteria.variance_reduction([[1.0, 1.0, 1.0], [1.0, 3.0, 9.0]]).item()
        1.0

    Reference:
        Breiman, Friedman, Olshen and Stone (1984), section 8.4.
    """
    return _variance_reduction(_sums(sums, 2))


# --- From rows to tables --------------------------------------------------------------------------


def table(
    codes: Int[ArrayLike, " n"],
    y: Int[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    num_branches: int | None = None,
    num_classes: int | None = None,
) -> Float[Array, "branches classes"]:
    """Sum the weights of the rows of each category and class.

    Args:
        codes: The category of each row, 0..branches-1; a negative code is a missing value, whose
            row is left out.
        y: Classes 0..classes-1.
        sample_weight: Not negative, shape `(n,)`; zero drops a row, which may hold anything.
        num_branches: Static; by default the largest code plus one. Needed where `codes` are traced.
        num_classes: Static; by default the largest class plus one. Needed where `y` is traced.

    Returns:
        The table, shape `(num_branches, num_classes)`, in the dtype of `sample_weight`, or JAX's
        default float.

    Raises:
        ValueError: Shapes do not match, data are empty, a weight is negative or not finite, or a
            code or class is out of range.
        TypeError: `codes` or `y` are not integers.

    Example:
        >>> from mlnotes_jax.trees import criteria
        >>> criteria.table([0, 0, 1, 1], [0, 0, 0, 1]).tolist()
        [[2.0, 0.0], [1.0, 1.0]]
    """
    code, weight, counted, branches = _codes(codes, sample_weight, num_branches)
    return _by_branch(code, _one_hot(y, weight, num_classes, counted), branches)


def moments(
    codes: Int[ArrayLike, " n"],
    y: Float[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    num_branches: int | None = None,
) -> Float[Array, "branches 3"]:
    r"""Sum weights, targets and squared targets of the rows of each category.

    Args:
        codes: The category of each row, 0..branches-1; a negative code is a missing value, whose
            row is left out.
        y: Targets.
        sample_weight: Not negative, shape `(n,)`; zero drops a row, which may hold anything.
        num_branches: Static; by default the largest code plus one. Needed where `codes` are traced.

    Returns:
        $(\sum w_i, \sum w_i y_i, \sum w_i y_i^2)$ of each branch, shape `(num_branches, 3)`.

    Raises:
        ValueError: Shapes do not match, data are empty or not finite, a weight is negative, or a
            code is out of range.
        TypeError: `codes` are not integers, or `y` is not real.

    Example:
        >>> from mlnotes_jax.trees import criteria
        >>> criteria.moments([0, 0, 1], [1.0, 3.0, 2.0]).tolist()
        [[2.0, 4.0, 10.0], [1.0, 2.0, 4.0]]
    """
    code, weight, counted, branches = _codes(codes, sample_weight, num_branches)
    return _by_branch(code, _powers(y, weight, counted), branches)


def thresholds(
    x: Float[ArrayLike, " n"], *, sample_weight: Float[ArrayLike, " n"] | None = None
) -> Float[Array, " n_minus_1"]:
    r"""Midpoints of neighbouring distinct values: all questions "is $x \le t$?" that differ.

    Args:
        x: A column, shape `(n,)`.
        sample_weight: Rows of weight zero are not there, and may hold anything.

    Returns:
        In the order of the values, shape `(n - 1,)`; NaN between equal ones. Where the midpoint of
        two floats is rounded to the larger one, it is the smaller.

    Raises:
        ValueError: `x` is empty or not finite, or shapes do not match.
        TypeError: `x` is not real.

    Example:
        >>> from mlnotes_jax.trees import criteria
        >>> criteria.thresholds([3.0, 1.0, 3.0, 2.0]).tolist()
        [1.5, 2.5, nan]

    Note:
        C4.5 takes the largest value of the column that is not above the midpoint, so that all
        thresholds occur in the data.
    """
    column, weight, _ = _column(x, sample_weight)
    return _midpoints(column, weight)[0]


def threshold_tables(
    x: Float[ArrayLike, " n"],
    y: Int[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    num_classes: int | None = None,
) -> Thresholds:
    r"""Build the table of each question "is $x \le t$?": one sort, and one running sum.

    Args:
        x: A column, shape `(n,)`.
        y: Classes 0..classes-1.
        sample_weight: Not negative, shape `(n,)`; zero drops a row, which may hold anything.
        num_classes: Static; by default the largest class plus one. Needed where `y` is traced.

    Returns:
        Thresholds and tables, shapes `(n - 1,)` and `(n - 1, 2, num_classes)`.

    Raises:
        ValueError: Shapes do not match, data are empty or not finite, a weight is negative, or a
            class is out of range.
        TypeError: `x` is not real, or `y` are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.trees import criteria
        >>> found = criteria.threshold_tables([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1])
        >>> best = criteria.information_gain(found.sums).argmax()
        >>> found.threshold[best].item()
        2.5
    """
    column, weight, counted = _column(x, sample_weight)
    return _running(column, weight, _one_hot(y, weight, num_classes, counted))


def threshold_moments(
    x: Float[ArrayLike, " n"],
    y: Float[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> Thresholds:
    r"""Sum weights, targets and squares for each question "is $x \le t$?".

    Args:
        x: A column, shape `(n,)`.
        y: Targets, shape `(n,)`.
        sample_weight: Not negative, shape `(n,)`; zero drops a row, which may hold anything.

    Returns:
        Thresholds and sums, shapes `(n - 1,)` and `(n - 1, 2, 3)`.

    Raises:
        ValueError: Shapes do not match, data are empty or not finite, or a weight is negative.
        TypeError: `x` or `y` are not real.

    Example:
        >>> from mlnotes_jax.trees import criteria
        >>> found = criteria.threshold_moments([1.0, 2.0, 3.0], [0.0, 0.0, 9.0])
        >>> criteria.variance_reduction(found.sums).tolist()
        [4.5, 18.0]
    """
    column, weight, counted = _column(x, sample_weight)
    return _running(column, weight, _powers(y, weight, counted))


# --- The formulas ---------------------------------------------------------------------------------


@jax.jit
def _entropy(counts: Array) -> Array:
    p = _shares(counts)
    return 0 - (p * jnp.log2(jnp.where(p == 0, 1, p))).sum(axis=-1)  # 0, not -0


@jax.jit
def _gini(counts: Array) -> Array:
    p = _shares(counts)
    return (p * (1 - p)).sum(axis=-1)


def _shares(counts: Array) -> Array:
    total = counts.sum(axis=-1, keepdims=True)
    return jnp.where(counts < 0, jnp.nan, counts) / jnp.where(total == 0, 1, total)


@functools.partial(jax.jit, static_argnames="impurity")
def _after(counts: Array, impurity: Callable[[Array], Array]) -> Array:
    return (_shares(counts.sum(axis=-1)) * impurity(counts)).sum(axis=-1)


@functools.partial(jax.jit, static_argnames="impurity")
def _decrease(counts: Array, impurity: Callable[[Array], Array]) -> Array:
    return impurity(counts.sum(axis=-2)) - _after(counts, impurity)


@jax.jit
def _gain_ratio(counts: Array) -> Array:
    value = _entropy(counts.sum(axis=-1))
    return jnp.where(value == 0, 0, _decrease(counts, _entropy) / jnp.where(value == 0, 1, value))


@jax.jit
def _variance(sums: Array) -> Array:
    weight, total, squares = jnp.moveaxis(sums, -1, 0)
    weight = jnp.where(weight == 0, 1, weight)
    return jnp.maximum(squares / weight - jnp.square(total / weight), 0)  # not below 0 by rounding


@jax.jit
def _variance_reduction(sums: Array) -> Array:
    weight, total = sums[..., 0], sums[..., 1]
    mean = total / jnp.where(weight == 0, 1, weight)
    share = _shares(weight)
    centre = (share * mean).sum(axis=-1, keepdims=True)
    return (share * jnp.square(mean - centre)).sum(axis=-1)


# --- Sums over rows -------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="num_branches")
def _by_branch(codes: Array, rows: Array, num_branches: int) -> Array:
    # A code that is no branch, negative ones too, belongs to a segment that is thrown away.
    known = (codes >= 0) & (codes < num_branches)
    codes = jnp.where(known, codes, num_branches).astype(jnp.int32)
    return jax.ops.segment_sum(rows, codes, num_branches + 1)[:-1]


@jax.jit
def _midpoints(x: Array, weight: Array) -> tuple[Array, Array]:
    """Thresholds in the order of the values, NaN between equal ones; and that order."""
    x = jnp.where(weight == 0, jnp.inf, x)  # to the end
    order = jnp.argsort(x)
    low, high = x[order][:-1], x[order][1:]
    middle = low / 2 + high / 2  # the sum could overflow
    middle = jnp.where((low <= middle) & (middle < high), middle, low)
    return jnp.where((low < high) & (high < jnp.inf), middle, jnp.nan), order


@jax.jit
def _running(x: Array, weight: Array, rows: Array) -> Thresholds:
    threshold, order = _midpoints(x, weight)
    rows = rows[order]
    below = jnp.cumsum(rows, axis=0)[:-1]
    above = jnp.cumsum(rows[::-1], axis=0)[::-1][1:]  # the total less `below` would lose digits
    sums = jnp.stack([below, above], axis=1)
    return Thresholds(threshold, jnp.where(jnp.isnan(threshold)[:, None, None], 0, sums))


# --- What comes in --------------------------------------------------------------------------------


def _wide(array: Array) -> Array:
    return array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array


def _weights(name: str, counts: ArrayLike, axes: int) -> Array:
    """Weights of classes, in the last `axes` axes of the table."""
    array = _wide(_checks.floating(name, counts))
    if array.ndim < axes or 0 in array.shape[-axes:]:
        shape = "(..., branches, classes)" if axes == 2 else "(..., classes)"
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    _checks.finite(name, array)
    _checks.not_negative(name, array)
    return array


def _sums(sums: ArrayLike, axes: int) -> Array:
    array = _wide(_checks.floating("sums", sums))
    if array.ndim < axes or array.shape[-1] != 3 or 0 in array.shape[-axes:]:
        shape = "(..., branches, 3)" if axes == 2 else "(..., 3)"
        raise ValueError(f"sums must have shape {shape}, got {array.shape}")
    _checks.finite("sums", array)
    _checks.not_negative("the weights in sums", array[..., 0])
    return array


def _row_weights(
    name: str, first: Array, sample_weight: ArrayLike | None
) -> tuple[Array, np.ndarray | None]:
    """Weights of the rows of `first`, and which rows count, if that can be known."""
    _checks.not_empty(name, first)
    if sample_weight is None:
        floating = jnp.issubdtype(first.dtype, jnp.floating)
        dtype = first.dtype if floating else jnp.result_type(float)
        return jnp.ones(first.shape, dtype), np.ones(first.shape, bool)
    weight = _wide(_checks.floating("sample_weight", sample_weight, ndim=1))
    _checks.same_length(**{name: first, "sample_weight": weight})
    _checks.finite("sample_weight", weight)
    _checks.not_negative("sample_weight", weight)
    known = _checks.is_concrete(sample_weight)
    return weight, np.asarray(sample_weight) != 0 if known else None


def _codes(
    codes: ArrayLike, sample_weight: ArrayLike | None, num_branches: int | None
) -> tuple[Array, Array, np.ndarray | None, int]:
    code = _checks.integer("codes", codes, ndim=1)
    weight, counted = _row_weights("codes", code, sample_weight)
    num_branches = _largest("num_branches", "codes", codes, num_branches, counted)
    if counted is not None and _checks.is_concrete(codes):
        known = counted & (np.asarray(codes) >= 0)
        _checks.class_labels("codes", codes, num_branches, counted=known)
    return code, weight, counted, num_branches


def _column(
    x: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[Array, Array, np.ndarray | None]:
    column = _wide(_checks.floating("x", x, ndim=1))
    weight, counted = _row_weights("x", column, sample_weight)
    _finite("x", x, counted)
    return column, weight, counted


def _one_hot(
    y: ArrayLike, weight: Array, num_classes: int | None, counted: np.ndarray | None
) -> Array:
    """The weight of each row in the column of its class."""
    label = _checks.integer("y", y, ndim=1)
    _checks.same_length(y=label, rows=weight)
    num_classes = _largest("num_classes", "y", y, num_classes, counted)
    if counted is not None:
        _checks.class_labels("y", y, num_classes, counted=counted)
    return _class_weights(label, weight, num_classes)


@functools.partial(jax.jit, static_argnames="num_classes")
def _class_weights(label: Array, weight: Array, num_classes: int) -> Array:
    member = label[:, None] == jnp.arange(num_classes, dtype=label.dtype)[None]
    # Under a transformation a label that is no class spoils the row, and so the table.
    known = member.any(axis=1) | (weight == 0)
    return jnp.where(member | ~known[:, None], jnp.where(known, weight, jnp.nan)[:, None], 0)


def _powers(y: ArrayLike, weight: Array, counted: np.ndarray | None) -> Array:
    """The weight of each row, times 1, its target, and the square of it."""
    target = _wide(_checks.floating("y", y, ndim=1))
    _checks.same_length(y=target, rows=weight)
    _finite("y", y, counted)
    dtype = np.promote_types(weight.dtype, target.dtype)
    return _weighted_powers(target.astype(dtype), weight.astype(dtype))


@jax.jit
def _weighted_powers(target: Array, weight: Array) -> Array:
    target = jnp.where(weight == 0, 0, target)
    return weight[:, None] * jnp.stack([jnp.ones_like(target), target, jnp.square(target)], axis=1)


def _largest(
    name: str, of: str, values: ArrayLike, given: int | None, counted: np.ndarray | None
) -> int:
    """The number of codes or classes: as given, or one more than the largest that counts."""
    if given is None:
        if counted is None or not _checks.is_concrete(values):
            raise ValueError(f"{name} must be given where {of} or sample_weight is traced")
        given = max(int(np.max(np.asarray(values), initial=0, where=counted)) + 1, 1)
    _checks.positive_int(name, given)
    return given


def _finite(name: str, values: ArrayLike, counted: np.ndarray | None) -> None:
    if counted is not None and _checks.is_concrete(values):
        kept: Any = np.where(counted, np.asarray(values), 0)
        _checks.finite(name, kept)
