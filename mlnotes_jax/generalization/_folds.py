r"""Folds: a number 0..K-1 for each row, which says when the row is held out.

Reference: Kohavi, *A Study of Cross-Validation and Bootstrap for Accuracy Estimation and Model
Selection* (1995), section 2.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, Key

from mlnotes_jax import _checks

__all__ = ["deal", "group_k_fold", "k_fold", "leave_one_out", "stratified_k_fold"]


def k_fold(
    key: Key[Array, ""] | None,
    num_rows: int,
    *,
    num_folds: int,
    num_repeats: int | None = None,
) -> Int[Array, "*repeats n"]:
    r"""Divide rows into folds whose sizes differ by one at most.

    The first $n \bmod K$ folds have $\lceil n / K \rceil$ rows, the others $\lfloor n / K \rfloor$.

    Args:
        key: Shuffles the rows. None: a fold is a block of neighbours, which is right where
            neighbours are alike (a time series) and wrong where rows are sorted by class.
        num_rows: n; static.
        num_folds: K, from 2 to n; static.
        num_repeats: Draw so many times; static. Needs a key.

    Returns:
        The fold of each row, int32, shape `(n,)`, or `(num_repeats, n)`.

    Raises:
        ValueError: K is less than 2 or more than n, or there are repeats without a key.
        TypeError: A count is no integer.

    Example:
        >>> from mlnotes_jax.generalization import cross_validation
        >>> cross_validation.k_fold(None, 7, num_folds=3).tolist()
        [0, 0, 0, 1, 1, 2, 2]

    Reference:
        Hastie, Tibshirani and Friedman, *The Elements of Statistical Learning* (2009), section
        7.10.1.

    Note:
        Without a key these are the folds of scikit-learn's `KFold`.
    """
    _checks.positive_int("num_rows", num_rows)
    _checks.positive_int("num_folds", num_folds, least=2)
    if num_folds > num_rows:
        raise ValueError(f"num_folds must be at most the {num_rows} rows, got {num_folds}")
    blocks = np.arange(num_rows, dtype=np.int32)
    sizes = [len(part) for part in np.array_split(blocks, num_folds)]
    fold = jnp.asarray(np.repeat(np.arange(num_folds, dtype=np.int32), sizes))
    return _repeat(lambda key: fold if key is None else _shuffled(key, fold), key, num_repeats)


def stratified_k_fold(
    key: Key[Array, ""] | None,
    labels: Int[ArrayLike, " n"],
    *,
    num_folds: int,
    num_repeats: int | None = None,
) -> Int[Array, "*repeats n"]:
    """Divide rows into folds with the same share of every class.

    Rows are put in order of their classes, in a random order within each, and dealt out in turn
    like cards. So the sizes of the folds differ by one at most, and so do their rows of any class.

    Args:
        key: Shuffles the rows of each class. None: they are dealt out in the order they have.
        labels: Classes, shape `(n,)`. They may be traced: then nothing about them is checked.
        num_folds: K, at least 2 and at most the rows of the smallest class; static.
        num_repeats: Draw so many times; static. Needs a key.

    Returns:
        The fold of each row, int32, shape `(n,)`, or `(num_repeats, n)`.

    Raises:
        ValueError: K is less than 2, a class has fewer rows than folds, a label is negative, or
            there are repeats without a key.
        TypeError: `labels` are not integers, or a count is none.

    Example:
        >>> from mlnotes_jax.generalization import cross_validation
        >>> cross_validation.stratified_k_fold(None, [0, 0, 0, 0, 1, 1], num_folds=2).tolist()
        [0, 1, 0, 1, 0, 1]

    Reference:
        Kohavi (1995), section 2.3.

    Note:
        scikit-learn's `StratifiedKFold` gives the same guarantees. Without shuffling its folds are
        blocks of each class. It only warns where a class has fewer rows than there are folds.
    """
    classes = _checks.integer("labels", labels, ndim=1)
    _checks.not_empty("labels", classes)
    _checks.not_negative("labels", classes)
    _checks.positive_int("num_folds", num_folds, least=2)
    if num_folds > classes.shape[0]:
        raise ValueError(f"num_folds must be at most the {classes.shape[0]} rows, got {num_folds}")
    if _checks.is_concrete(classes):
        found, counts = np.unique(np.asarray(classes), return_counts=True)
        if counts.min() < num_folds:
            raise ValueError(
                f"num_folds must be at most the rows of the smallest class, got {num_folds} folds "
                f"and {counts.min()} rows of class {found[counts.argmin()]}"
            )
    return _repeat(lambda key: deal(key, classes, num_folds)[1], key, num_repeats)


def group_k_fold(groups: Int[ArrayLike, " n"], *, num_folds: int) -> Int[Array, " n"]:
    """Divide rows into folds that split no group: all rows of a group are held out together.

    For rows that are not independent: many pictures of one person, many windows of one record. The
    largest group goes to the fold with the fewest rows (the first of equals), and so on.

    Args:
        groups: The group of each row, any integers, concrete, shape `(n,)`.
        num_folds: K, from 2 to the number of groups; static.

    Returns:
        The fold of each row, int32, shape `(n,)`. Sizes differ by no more than the largest group.

    Raises:
        ValueError: K is less than 2, or more than the groups.
        TypeError: `groups` are not integers, or traced.

    Example:
        >>> from mlnotes_jax.generalization import cross_validation
        >>> cross_validation.group_k_fold([7, 7, 7, 2, 2, 5], num_folds=2).tolist()
        [0, 0, 0, 1, 1, 1]

    Reference:
        Graham, *Bounds on Multiprocessing Timing Anomalies* (SIAM Journal on Applied Mathematics,
        1969): the largest first is at most a third above the best possible largest load.

    Note:
        scikit-learn's `GroupKFold`, which breaks ties between groups of one size otherwise.
    """
    array = _checks.integer("groups", groups, ndim=1)
    _checks.not_empty("groups", array)
    _checks.positive_int("num_folds", num_folds, least=2)
    if not _checks.is_concrete(array):
        raise TypeError("groups must be concrete, got a tracer: draw the folds outside")
    _, index, counts = np.unique(np.asarray(array), return_inverse=True, return_counts=True)
    if num_folds > len(counts):
        raise ValueError(f"num_folds must be at most the {len(counts)} groups, got {num_folds}")
    loads, home = np.zeros(num_folds, np.int64), np.zeros(len(counts), np.int32)
    for group in np.argsort(-counts, kind="stable"):
        home[group] = loads.argmin()
        loads[home[group]] += counts[group]
    return jnp.asarray(home[index.ravel()])


def leave_one_out(num_rows: int) -> Int[Array, " n"]:
    """Hold out every row alone: as many folds as rows.

    Args:
        num_rows: n, at least 2; static.

    Returns:
        The fold of each row, 0..n-1, int32, shape `(n,)`.

    Raises:
        ValueError: n is less than 2.
        TypeError: n is no integer.

    Example:
        >>> from mlnotes_jax.generalization import cross_validation
        >>> cross_validation.leave_one_out(4).tolist()
        [0, 1, 2, 3]

    Reference:
        Stone, *Cross-Validatory Choice and Assessment of Statistical Predictions* (1974).
    """
    _checks.positive_int("num_rows", num_rows, least=2)
    return jnp.arange(num_rows, dtype=jnp.int32)


@partial(jax.jit, static_argnames="num_folds")
def deal(key: Array | None, groups: Array, num_folds: int) -> tuple[Array, Array]:
    """Deal rows out to folds in turn, group by group; at random within a group if there is a key.

    Of each group, and of all rows together, a fold gets its share, rounded down or up.

    Args:
        key: Random key, or None.
        groups: What is to be shared out evenly, integers of shape `(n,)`.
        num_folds: K; static.

    Returns:
        The rows in the order in which they were dealt, and the fold of each row, both `(n,)`.
    """
    n = groups.shape[0]
    by = (groups,) if key is None else (jax.random.bits(key, (n,)), groups)
    order = jnp.lexsort(by).astype(jnp.int32)
    return order, jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32) % num_folds)


# --- Private --------------------------------------------------------------------------------------


@jax.jit
def _shuffled(key: Array, fold: Array) -> Array:
    return jax.random.permutation(key, fold)


def _repeat(draw, key: Array | None, num_repeats: int | None) -> Array:
    if num_repeats is None:
        return draw(key)
    _checks.positive_int("num_repeats", num_repeats)
    if key is None:
        raise ValueError("key must be given for num_repeats, got None: all repeats would be equal")
    return jnp.stack([draw(part) for part in jax.random.split(key, num_repeats)])
