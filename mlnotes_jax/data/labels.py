r"""Labels: any class names to the integers 0..k-1 and back, and what is counted with them.

The $k$ distinct labels, sorted, are the classes $c_0 < \dots < c_{k-1}$. The code of a label is
its place, and its one-hot vector is the basis vector of that place:

$$ \mathrm{code}(c_j) = j, \qquad \mathrm{onehot}(j) = \mathbf{e}_j \in \mathbb{R}^k $$

`fit`, `encode` and `decode` run on the host with NumPy, since JAX has no strings; `one_hot`,
`counts` and `balanced_weights` take the integers and run on the device, under any transformation.

Reference: Bishop, *Pattern Recognition and Machine Learning* (2006), section 4.1.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, DTypeLike, Float, Int, Num, Shaped

from mlnotes_jax import _checks

__all__ = ["Encoding", "balanced_weights", "counts", "decode", "encode", "fit", "one_hot"]

Labels = Sequence[Any] | Shaped[np.ndarray, " n"] | Array


class Encoding(NamedTuple):
    """The classes, in the order of their codes.

    Attributes:
        classes: Distinct labels, shape `(k,)`: a NumPy array of strings, integers (int64), bools or
            whole-numbered floats. `fit` sorts them; `encode` accepts any order.
    """

    classes: Shaped[np.ndarray, " k"]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)


def fit(labels: Labels) -> Encoding:
    """Collect the classes of a set of labels.

    Fit on all labels before splitting: a class that happens to be missing from one fold then keeps
    its code.

    Args:
        labels: Strings, or integers, or bools, or floats that are whole numbers, shape `(n,)`,
            n >= 1; not a mixture. Integers need not be contiguous.

    Returns:
        The sorted classes.

    Raises:
        TypeError: Labels of another type, or of more than one; the message names the first row.
        ValueError: No labels, or not one axis; a float that is not a whole number, an integer
            outside of int64, or a string that ends in a NUL character, which NumPy would drop.

    Example:
        >>> from mlnotes_jax.data import labels
        >>> encoding = labels.fit(["cat", "dog", "cat", "ant"])
        >>> encoding.classes.tolist()
        ['ant', 'cat', 'dog']

    Reference:
        `sklearn.preprocessing.LabelEncoder` sorts in the same way; it also accepts mixed lists of
        numbers and fractions, which are refused here.
    """
    return Encoding(np.unique(_labels(labels)))


def encode(encoding: Encoding, labels: Labels) -> Int[np.ndarray, " n"]:
    """Give each label the number of its class.

    Args:
        encoding: From `fit`.
        labels: Of the same type as the classes, shape `(n,)`.

    Returns:
        Codes 0..k-1 as int32, shape `(n,)`.

    Raises:
        TypeError: The labels are of another type than the classes, or mixed.
        ValueError: A label is not among the classes; the message names it and its row.

    Example:
        >>> from mlnotes_jax.data import labels
        >>> encoding = labels.fit([-1, 1])
        >>> labels.encode(encoding, [1, 1, -1]).tolist()
        [1, 1, 0]
    """
    values, classes = _labels(labels), _labels(encoding.classes, "classes")
    if _kind(values) != _kind(classes):
        raise TypeError(f"labels must be {_kind(classes)}, as the classes, got {_kind(values)}")
    order = np.argsort(classes, kind="stable")
    if (classes[order][1:] == classes[order][:-1]).any():
        raise ValueError(f"classes must be distinct, got {_listed(classes)}")
    place = np.searchsorted(classes[order], values).clip(max=len(classes) - 1)
    codes = order[place]
    unknown = np.flatnonzero(classes[codes] != values)
    if len(unknown):
        row = int(unknown[0])
        raise ValueError(
            f"labels[{row}] is {values[row].item()!r}, which is not one of the "
            f"{len(classes)} classes {_listed(classes)}"
        )
    return codes.astype(np.int32)


def decode(
    encoding: Encoding, codes: Int[ArrayLike, "..."] | Sequence[int]
) -> Shaped[np.ndarray, "..."]:
    """Give each number the label of its class: the inverse of `encode`.

    Args:
        encoding: From `fit`.
        codes: Integers in 0..k-1, any shape, such as an `argmax` over scores.

    Returns:
        Labels in the shape of `codes`.

    Raises:
        TypeError: `codes` are not integers.
        ValueError: A code is not in 0..k-1.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.data import labels
        >>> labels.decode(labels.fit(["cat", "dog"]), jnp.array([1, 0])).tolist()
        ['dog', 'cat']
    """
    if not _checks.is_concrete(codes):
        raise TypeError("codes must be concrete: decode runs on the host, not under jit or vmap")
    values = np.asarray(codes)
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"codes must be integers, got dtype {values.dtype}")
    _checks.class_labels("codes", values, encoding.num_classes)
    return encoding.classes[values]


def one_hot(
    codes: Int[ArrayLike, "..."], num_classes: int, *, dtype: DTypeLike | None = None
) -> Float[Array, "... k"]:
    r"""Turn codes into basis vectors: $\mathrm{onehot}(j) = \mathbf{e}_j$.

    Args:
        codes: Integers in 0..k-1, any shape.
        num_classes: $k$, static.
        dtype: A floating dtype; JAX's default float if None. Static.

    Returns:
        Shape `(..., k)`, one 1 in each row. Under a transformation, where values cannot be looked
        at, the row of a code outside of 0..k-1 is NaN: it spoils a loss instead of leaving it
        silently.

    Raises:
        TypeError: `codes` are not integers, or `dtype` is not floating (it must be able to hold
            NaN; `codes[..., None] == jnp.arange(k)` makes a boolean mask).
        ValueError: A concrete code is not in 0..k-1.

    Example:
        >>> from mlnotes_jax.data import labels
        >>> labels.one_hot([2, 0], 3).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]

    Note:
        `jax.nn.one_hot` gives a row of zeros for a code out of range.
    """
    array = _checks.integer("codes", codes)
    _checks.positive_int("num_classes", num_classes)
    dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be floating, got {dtype}")
    _checks.class_labels("codes", array, num_classes)
    known = (array >= 0) & (array < num_classes)
    rows = jax.nn.one_hot(array, num_classes, dtype=dtype)
    return jnp.where(known[..., None], rows, jnp.nan)


def counts(
    codes: Int[ArrayLike, " n"],
    num_classes: int,
    *,
    sample_weight: Num[ArrayLike, " n"] | None = None,
) -> Num[Array, " k"]:
    r"""Count the rows of each class: $n_j = \sum_i w_i [y_i = j]$.

    Args:
        codes: $y$, integers in 0..k-1, shape `(n,)`.
        num_classes: $k$, static.
        sample_weight: $w$, shape `(n,)`, not negative; a boolean mask says which rows count. The
            code of a row of weight 0 may be anything (rows of padding).

    Returns:
        Shape `(k,)`: int32 without weights or with a mask; else in the dtype of the weights, at
        least float32. Under a transformation, if a row that counts has a code outside of 0..k-1,
        every integer count is -1 and every floating one NaN.

    Raises:
        TypeError: `codes` are not integers.
        ValueError: A shape does not fit; concrete codes of rows that count are not in 0..k-1;
            concrete weights are negative.

    Example:
        >>> from mlnotes_jax.data import labels
        >>> labels.counts([0, 2, 2], 3).tolist()
        [1, 0, 2]
        >>> labels.counts([0, 2, 2], 3, sample_weight=[0.5, 1.0, 1.0]).tolist()
        [0.5, 0.0, 2.0]
    """
    array = _checks.integer("codes", codes, ndim=1)
    _checks.positive_int("num_classes", num_classes)
    weight = jnp.ones(array.shape, bool) if sample_weight is None else jnp.asarray(sample_weight)
    if weight.dtype == jnp.bool_:
        _checks.check_rank("sample_weight", weight, 1)
        weight = weight.astype(jnp.int32)
        spoilt = -1
    else:
        weight = _checks.floating("sample_weight", weight, ndim=1)
        if jnp.finfo(weight.dtype).bits < 32:
            weight = weight.astype(jnp.float32)
        _checks.not_negative("sample_weight", weight)
        spoilt = jnp.nan
    _checks.same_length(codes=array, sample_weight=weight)
    if _checks.is_concrete((array, weight)):
        counted = np.asarray(weight) != 0
        _checks.class_labels("codes", array, num_classes, counted=counted)
    # A negative index would wrap around, and one too large be dropped: look before adding.
    known = (array >= 0) & (array < num_classes)
    total = jnp.zeros(num_classes, weight.dtype)
    total = total.at[jnp.where(known, array, 0)].add(jnp.where(known, weight, 0))
    return jnp.where((~known & (weight != 0)).any(), spoilt, total)


def balanced_weights(
    codes: Int[ArrayLike, " n"],
    num_classes: int,
    *,
    sample_weight: Num[ArrayLike, " n"] | None = None,
) -> Float[Array, " k"]:
    r"""Weigh classes so that each that occurs has the same say in a loss.

    $$ u_j = \frac{n}{p \, n_j} $$

    with the counts $n_j$, $n = \sum_j n_j$ and $p$ the number of classes that occur. Then
    $\sum_i u_{y_i} = n$, of which each class that occurs has $n / p$.

    Args:
        codes: $y$, integers in 0..k-1, shape `(n,)`.
        num_classes: $k$, static.
        sample_weight: Weight, or mask, of each row; see `counts`.

    Returns:
        One weight for each class, shape `(k,)`; 0 for a class that does not occur. The weights of
        the rows are `balanced_weights(codes, k)[codes]`.

    Raises:
        TypeError: As for `counts`.
        ValueError: As for `counts`.

    Example:
        >>> from mlnotes_jax.data import labels
        >>> labels.balanced_weights([0, 0, 1, 1, 1, 1], 2).tolist()
        [1.5, 0.75]

    Note:
        The same as `class_weight="balanced"` of scikit-learn when every class occurs.
    """
    found = counts(codes, num_classes, sample_weight=sample_weight)
    if jnp.issubdtype(found.dtype, jnp.integer):
        found = jnp.where(found < 0, jnp.nan, found.astype(jnp.result_type(float)))
    occurs = found != 0
    present = occurs.sum().astype(found.dtype)
    return jnp.where(occurs, found.sum() / present / jnp.where(occurs, found, 1), 0)


_KINDS = {"U": "strings", "i": "integers", "b": "bools", "f": "floats"}


def _kind(values: np.ndarray) -> str:
    return _KINDS[values.dtype.kind]


def _labels(labels: Labels, name: str = "labels") -> np.ndarray:
    """Turn labels into a NumPy array of one kind; refuse what NumPy would convert in silence."""
    if not _checks.is_concrete(labels):
        raise TypeError(f"{name} must be concrete: this runs on the host, not under jit or vmap")
    if isinstance(labels, np.ndarray | jax.Array) and labels.dtype != np.dtype(object):
        values = np.asarray(labels)
    elif isinstance(labels, Sequence | np.ndarray) and not isinstance(labels, str | bytes):
        values = _from_objects(list(labels), name)
    else:
        raise TypeError(f"{name} must be a sequence of labels, got {type(labels).__name__}")
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} must be a non-empty vector, got shape {values.shape}")
    if values.dtype.kind == "u":
        large = np.flatnonzero(values > np.iinfo(np.int64).max)
        if len(large):
            raise ValueError(f"{name} must fit int64, got {values[large[0]]} in row {large[0]}")
    if values.dtype.kind in "iu":
        return values.astype(np.int64)
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        broken = np.flatnonzero(~np.isfinite(values) | (values != np.round(values)))
        if len(broken):
            raise ValueError(
                f"{name} must name classes, but {values[broken[0]]} in row {broken[0]} is not a "
                "whole number"
            )
        return values
    if values.dtype.kind not in "Ub":
        raise TypeError(
            f"{name} must be strings, integers, bools or whole numbers, got dtype {values.dtype}"
        )
    return values


def _from_objects(labels: list[Any], name: str) -> np.ndarray:
    """Check that all elements of a list are of one type of label; make an array of them."""
    kinds = [_type(label) for label in labels]
    for row, (label, kind) in enumerate(zip(labels, kinds, strict=True)):
        if not kind:
            raise TypeError(
                f"{name} must be strings, integers, bools or whole numbers, got {label!r} of type "
                f"{type(label).__name__} in row {row}"
            )
        if kind != kinds[0]:
            raise TypeError(
                f"{name} must be of one type, got {kinds[0]} in row 0 and {kind} in row {row}: "
                f"{labels[0]!r} and {label!r}"
            )
        if kind == "strings" and label.endswith("\0"):
            raise ValueError(f"{name}: {label!r} in row {row} ends in a NUL, which NumPy drops")
        if kind == "integers" and not -(2**63) <= label < 2**63:
            raise ValueError(f"{name} must fit int64, got {label} in row {row}")
    dtypes = {"strings": np.str_, "integers": np.int64, "bools": np.bool_, "floats": np.float64}
    return np.array(labels, dtypes[kinds[0]] if kinds else np.int64)


def _type(label: Any) -> str:
    if isinstance(label, bool | np.bool_):  # before int: a bool is one
        return "bools"
    for kind, types in {
        "strings": str,
        "integers": int | np.integer,
        "floats": float | np.floating,
    }.items():
        if isinstance(label, types):
            return kind
    return ""


def _listed(classes: np.ndarray) -> str:
    shown = [repr(c) for c in classes[:8].tolist()]
    return ", ".join(shown) + (", ..." if len(classes) > 8 else "")
