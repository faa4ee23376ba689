r"""Decision trees: one question after the other.

A node holds the rows that gave the same answers so far. Its question sends the share $q_b$ of their
weight into branch $b$, and is the one that takes most impurity $I$ away:

$$
\text{gain} = I(\text{node}) - \sum_b q_b\, I(b) .
$$

The recursion ends where all rows agree, where no question tells them apart, or at a limit; a branch
that no row takes answers as the node does.

Reference: Breiman, Friedman, Olshen and Stone, *Classification and Regression Trees* (1984);
Quinlan, *C4.5: Programs for Machine Learning* (1993); Zhou, *Machine Learning* (2021), chapter 4.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from mlnotes_jax import _checks
from mlnotes_jax.trees import _export, _grow, _order, _tree

__all__ = [
    "DecisionTree",
    "apply",
    "decision_path",
    "fit",
    "importance",
    "predict",
    "predict_proba",
    "presort",
    "to_graphviz",
    "to_svg",
    "to_text",
]

Task = Literal["classification", "regression"]
Method = Literal["cart", "id3", "c45"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["tree"],
    meta_fields=["task", "method", "criterion", "num_categories", "missing"],
)
@dataclasses.dataclass(frozen=True)
class DecisionTree:
    r"""A fitted tree.

    Attributes:
        tree: Questions, children and answers as arrays; see the table on the page. The slots
            0..`num_nodes - 1` are in use, in breadth-first order, the root first.
        task: `"classification"` or `"regression"`; static.
        method: `"cart"`, `"id3"` or `"c45"`; static.
        criterion: What `tree.impurity` is: `"gini"`, `"entropy"` or `"variance"`; static.
        num_categories: Of each column, 0 for a numeric one; static.
        missing: Whether a NaN is a value that is not known; static.
    """

    tree: _tree.Tree
    task: str
    method: str
    criterion: str
    num_categories: tuple[int, ...]
    missing: bool


def fit(
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"] | Float[ArrayLike, " n"],
    *,
    task: Task = "classification",
    method: Method = "cart",
    criterion: Literal["gini", "entropy"] | None = None,
    categorical: Sequence[int] = (),
    num_categories: int | Sequence[int] | None = None,
    max_depth: Int[ArrayLike, ""] | None = None,
    max_leaves: Int[ArrayLike, ""] | None = None,
    min_samples_leaf: Int[ArrayLike, ""] = 1,
    min_gain: Float[ArrayLike, ""] = 0.0,
    missing: bool = False,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    num_classes: int | None = None,
    order: Int[ArrayLike, "d n"] | None = None,
    max_nodes: int | None = None,
) -> DecisionTree:
    r"""Grow a tree: at every node, the question that takes most impurity away.

    | `method` | question about a number | about a category | which is best |
    | --- | --- | --- | --- |
    | `"cart"` | $x \le t$ | in a set of categories, or not | decrease of `criterion` |
    | `"id3"` | $x \le t$ | one branch for each category | information gain |
    | `"c45"` | $x \le t$ | one branch for each category | gain ratio |

    C4.5 compares only the columns whose gain is not below the mean of all. Thresholds $t$ are
    midpoints of neighbouring values. **Ties:** of equal questions the one about the first column
    wins, then the lowest threshold; gains that differ by rounding (32 units in the last place) are
    equal. Of CART's sets of categories the best is found for two classes and for regression; for
    more classes, the best of those that a threshold on one class's share gives.

    All nodes of a level are grown at once. Batches (`vmap`) of trees are grown one by one.

    Args:
        x: Rows, shape `(n, d)`; categories are codes 0, 1, ... held as numbers.
        y: Classes 0..k-1, or targets, shape `(n,)`.
        task: Static.
        method: Static. `"id3"` and `"c45"` are for classification.
        criterion: For CART, `"gini"` (default) or `"entropy"`; the others measure entropy, in
            bits, and regression the variance. Static.
        categorical: Columns that hold categories; static.
        num_categories: How many categories a column has, for all or for each of `categorical`;
            static. By default the largest code plus one; needed where `x` is traced.
        max_depth: Questions from the root to a leaf, at most; without, until no question is left.
        max_leaves: Leaves, at most: the tree is grown without this bound, then questions are kept
            from the root on, always the one that takes most impurity away, times weight.
        min_samples_leaf: Rows in a leaf, at least; rows of weight 0 do not count.
        min_gain: A question that takes less impurity away from its node is not asked; traced.
        missing: Take a NaN for a value that is not known. Its branch is learned, the one that gives
            the higher gain; where no value was missing, it is the heaviest branch. Static.
        sample_weight: $w_i \ge 0$, shape `(n,)`; zero drops a row, which may then hold anything.
        num_classes: k, static; by default the largest label plus one. Needed where `y` is traced.
        order: What `presort(x)` gave, for many fits to the same rows.
        max_nodes: Slots of the tree, static; by default as many as it can need, $2n - 1$ or what
            `max_depth` allows. Nodes whose children find no room are leaves. With it, all depths
            share one program.

    Returns:
        The tree, in the dtype of `x` and at least float32. Under a transformation, data that are
        not allowed give a tree that answers -1, or NaN.

    Raises:
        ValueError: Shapes do not match, data are empty or (where concrete) not finite, no classes
            or no categories, an option is not allowed, or the tree would not fit into memory.
        TypeError: `x` is not real, classes are not integers, or a count is not one.

    Example:
        >>> from mlnotes_jax.trees import decision_tree
        >>> x, y = [[1.0], [2.0], [3.0], [6.0]], [0, 0, 1, 1]
        >>> model = decision_tree.fit(x, y)
        >>> print(decision_tree.to_text(model, feature_names=["size"]))
        size <= 2.5?
        ├── yes: 0 (2)
        └── no: 1 (2)

    Reference:
        Breiman and others (1984), sections 2.4, 4.2.2 and 5.3; Quinlan (1993), chapters 2 and 3.

    Note:
        scikit-learn's trees break ties at random, take values closer than 1e-7 for equal, and have
        no categories. Its `min_impurity_decrease` multiplies the gain by the node's share of the
        weight. Quinlan's C4.5 sends a row with a missing value into every branch, with parts of its
        weight, and takes $\log_2(\text{number of thresholds})/n$ off the gain of a threshold.
    """
    data = _data(x, y, sample_weight, task, num_classes, missing)
    n, d = data.x.shape
    _checks.one_of("method", method, ("cart", "id3", "c45"))
    measure = _criterion(task, method, criterion)
    columns = _num_categories(x, data, tuple(categorical), num_categories)
    limits = _grow.Limits(
        jnp.asarray(np.int32(np.iinfo(np.int32).max))
        if max_depth is None
        else _checks.count("max_depth", max_depth, least=0),
        _checks.count("min_samples_leaf", min_samples_leaf),
        _checks.floating("min_gain", min_gain, ndim=0).astype(data.x.dtype),
    )
    _checks.not_negative("min_gain", min_gain)
    leaves = None if max_leaves is None else _checks.count("max_leaves", max_leaves)
    known_depth = None
    if max_depth is not None and _checks.is_concrete(max_depth):
        known_depth = int(np.asarray(max_depth))
    plan = _plan(data, method, measure, columns, known_depth, missing, max_nodes)
    if order is not None:
        order = _checks.integer("order", order, ndim=2)
        if order.shape != (d, n):
            raise ValueError(f"order must have shape {(d, n)}, got {order.shape}")
    tree = _fit(data.x, data.y, data.weight, order, limits, plan, data.checked)
    if leaves is not None:
        size = plan.max_nodes
        if _checks.is_concrete(max_leaves):  # every question has two branches or more
            size = min(size, 2 * int(np.asarray(max_leaves)) - 1)
        tree = _best_first(tree, leaves, size)
    return DecisionTree(tree, task, method, measure, columns, missing)


def presort(x: Float[ArrayLike, "n d"]) -> Int[Array, "d n"]:
    """Sort the rows by each column, once for many fits.

    Args:
        x: Rows, shape `(n, d)`.

    Returns:
        Row numbers as int32, the smallest value first and NaN last, shape `(d, n)`.

    Raises:
        ValueError: `x` has not two axes.
        TypeError: `x` is not real.

    Example:
        >>> from mlnotes_jax.trees import decision_tree
        >>> decision_tree.presort([[3.0], [1.0], [2.0]]).tolist()
        [[1, 2, 0]]
    """
    return _presort(_checks.floating("x", x, ndim=2))


def predict(
    model: DecisionTree, x: Float[ArrayLike, "... d"]
) -> Int[Array, "..."] | Float[Array, "..."]:
    """The class of most weight where a row stops, the first of equals; or the mean of the targets.

    A row stops at a leaf; or at a node that has no branch for its category, because no training row
    there had it. A category that no training row had at all is such a case.

    Args:
        model: A fitted tree.
        x: One row or many, shape `(..., d)`.

    Returns:
        Classes as int32, shape `(...)`, or real numbers. -1 or NaN where the fit was spoilt.

    Raises:
        ValueError: The last axis of `x` is not d, or a concrete value is NaN and the model was not
            fitted with `missing=True`.
        TypeError: `x` is not real.

    Example:
        >>> from mlnotes_jax.trees import decision_tree
        >>> model = decision_tree.fit([[1.0], [2.0], [3.0], [6.0]], [0, 0, 1, 1])
        >>> decision_tree.predict(model, [[2.4], [2.6]]).tolist()
        [0, 1]
    """
    rows, shape = _rows(model, x)
    return _predict(model, rows).reshape(shape)


def predict_proba(model: DecisionTree, x: Float[ArrayLike, "... d"]) -> Float[Array, "... k"]:
    """The share of each class where a row stops. Arguments as for `predict`.

    Raises:
        ValueError: As in `predict`, or the tree is for regression.

    Example:
        >>> from mlnotes_jax.trees import decision_tree
        >>> model = decision_tree.fit([[1.0], [1.0], [2.0]], [0, 1, 1])
        >>> decision_tree.predict_proba(model, [1.5]).tolist()
        [0.5, 0.5]
    """
    if model.task != "classification":
        raise ValueError(f'predict_proba needs task="classification", got {model.task!r}')
    rows, shape = _rows(model, x)
    return _predict_proba(model, rows).reshape(*shape, -1)


def apply(model: DecisionTree, x: Float[ArrayLike, "... d"]) -> Int[Array, "..."]:
    """The number of the node where a row stops. Arguments as for `predict`.

    Example:
        >>> from mlnotes_jax.trees import decision_tree
        >>> model = decision_tree.fit([[1.0], [2.0], [3.0], [6.0]], [0, 0, 1, 1])
        >>> decision_tree.apply(model, [[2.4], [2.6]]).tolist()
        [1, 2]
    """
    rows, shape = _rows(model, x)
    return _apply(model, rows).reshape(shape)


def decision_path(
    model: DecisionTree, x: Float[ArrayLike, "... d"], *, max_depth: int | None = None
) -> Int[Array, "... steps"]:
    """The nodes that a row passes, from the root on. Arguments as for `predict`.

    Args:
        model: A fitted tree.
        x: One row or many, shape `(..., d)`.
        max_depth: Questions to follow, static; by default the depth of the tree. Needed where the
            model is traced.

    Returns:
        Node numbers, -1 after the row has stopped, shape `(..., max_depth + 1)`.

    Raises:
        ValueError: As in `predict`, or `max_depth` is missing or negative.

    Example:
        >>> from mlnotes_jax.trees import decision_tree
        >>> model = decision_tree.fit([[1.0], [2.0], [3.0], [6.0]], [0, 0, 1, 1])
        >>> decision_tree.decision_path(model, [2.6]).tolist()
        [0, 2]
    """
    rows, shape = _rows(model, x)
    if max_depth is None:
        if not _checks.is_concrete(model.tree.depth):
            raise ValueError("max_depth must be given where the model is traced")
        max_depth = int(np.asarray(model.tree.depth).max())
    _checks.positive_int("max_depth", max_depth, least=0)
    return _path(model, rows, max_depth).reshape(*shape, -1)


def importance(model: DecisionTree) -> Float[Array, " d"]:
    r"""How much impurity the questions about each column take away, as shares.

    The sum over the nodes $t$ that ask about the column of $W_t I_t - \sum_b W_b I_b$, divided by
    the sum over all columns. It is measured on the training rows: a column with many values that
    the tree over-fits on seems important.

    Args:
        model: A fitted tree.

    Returns:
        Shape `(d,)`, with sum one; zeros if the tree asks nothing.

    Example:
        >>> from mlnotes_jax.trees import decision_tree
        >>> model = decision_tree.fit([[0.0, 5.0], [1.0, 5.0]], [0, 1])
        >>> decision_tree.importance(model).tolist()
        [1.0, 0.0]

    Reference:
        Breiman and others (1984), section 5.3.4.

    Note:
        scikit-learn's `feature_importances_`.
    """
    return _importance(model)


def to_text(
    model: DecisionTree,
    *,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    category_names: Sequence[Sequence[str]] | None = None,
    max_depth: int | None = None,
) -> str:
    """Write a tree as text, one line for each branch.

    A leaf shows its answer and the weight of the training rows there, `(all)` or `(agreeing of
    all)`. A category that no row had at the node shows the node's answer.

    Args:
        model: A fitted tree, concrete.
        feature_names: One for each column; `x[j]` by default.
        class_names: One for each class; its number by default.
        category_names: For each column the names of its categories (anything for a numeric one);
            their codes by default.
        max_depth: Questions to show, from the root on.

    Returns:
        Lines, without a newline at the end.

    Raises:
        ValueError: The model is traced or a batch, or there are not as many names as needed.

    Example:
        >>> from mlnotes_jax.trees import decision_tree
        >>> model = decision_tree.fit([[1.0], [2.0], [3.0]], [0, 0, 1])
        >>> print(decision_tree.to_text(model, class_names=["red", "blue"]))
        x[0] <= 2.5?
        ├── yes: red (2)
        └── no: blue (1)
    """
    return _export.text(_picture(model, feature_names, class_names, category_names, max_depth))


def to_graphviz(
    model: DecisionTree,
    *,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    category_names: Sequence[Sequence[str]] | None = None,
    max_depth: int | None = None,
) -> str:
    r"""Write a tree in the language of Graphviz, for `dot`. Arguments as for `to_text`.

    Example:
        >>> from mlnotes_jax.trees import decision_tree
        >>> model = decision_tree.fit([[1.0], [2.0], [3.0]], [0, 0, 1])
        >>> decision_tree.to_graphviz(model).splitlines()[3]
        '  0 [label="x[0] <= 2.5?"];'
    """
    return _export.graphviz(_picture(model, feature_names, class_names, category_names, max_depth))


def to_svg(
    model: DecisionTree,
    *,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    category_names: Sequence[Sequence[str]] | None = None,
    max_depth: int | None = None,
    title: str = "Decision tree",
) -> str:
    """Draw a tree as an `<svg>` element for a page; nothing else is needed.

    Text and lines have the colour of the text around. A box has a tint of the class that it
    answers, and says its name as well.

    Args:
        model: A fitted tree, concrete.
        feature_names: As for `to_text`.
        class_names: As for `to_text`.
        category_names: As for `to_text`.
        max_depth: As for `to_text`.
        title: What it shows, for a reader who cannot see it.

    Returns:
        The element.

    Raises:
        ValueError: As in `to_text`.

    Example:
        >>> from mlnotes_jax.trees import decision_tree
        >>> model = decision_tree.fit([[1.0], [2.0], [3.0]], [0, 0, 1])
        >>> decision_tree.to_svg(model)[:4]
        '<svg'
    """
    picture = _picture(model, feature_names, class_names, category_names, max_depth)
    return _export.svg(picture, title)


# --- What comes in --------------------------------------------------------------------------------


class _Data(NamedTuple):
    x: Array
    y: Array
    weight: Array | None
    outputs: int  # classes; 0 for regression
    counted: np.ndarray  # rows that are known to count
    checked: bool  # whether all values were looked at


def _data(
    x: ArrayLike,
    y: ArrayLike,
    sample_weight: ArrayLike | None,
    task: str,
    num_classes: int | None,
    missing: bool,
) -> _Data:
    _checks.one_of("task", task, ("classification", "regression"))
    rows = _checks.floating("x", x, ndim=2)
    rows = rows.astype(jnp.float32) if jnp.finfo(rows.dtype).bits < 32 else rows
    _checks.not_empty("x", rows)
    if task == "classification":
        target = _checks.integer("y", y, ndim=1).astype(jnp.int32)
    else:
        target = _checks.floating("y", y, ndim=1)
        dtype = np.promote_types(rows.dtype, target.dtype)
        rows, target = rows.astype(dtype), target.astype(dtype)
    _checks.same_length(x=rows, y=target)
    weight, counted = _checks.row_weights(sample_weight, target, rows.dtype)
    # What came is looked at, in NumPy: inside of `jit` an array made of a NumPy array is traced.
    if _checks.is_concrete((x, sample_weight)):
        kept: Any = np.where(counted[:, None], np.asarray(x), 0)
        if not missing and np.isnan(kept).any():
            row, column = np.argwhere(np.isnan(kept))[0]
            raise ValueError(
                f"x must be finite, got nan in row {row}, column {column}: pass missing=True if it "
                "stands for a value that is not known"
            )
        kept[np.isnan(kept)] = 0
        _checks.finite("x", kept)
    seen = _checks.is_concrete((y, sample_weight))
    if task == "regression":
        if seen:
            real: Any = np.where(counted, np.asarray(y), 0)
            _checks.finite("y", real)
        num_classes = 0
    else:
        if num_classes is None:
            if not seen:
                raise ValueError("num_classes must be given where y or sample_weight is traced")
            num_classes = max(int(np.asarray(y)[counted].max()) + 1, 1)
        _checks.positive_int("num_classes", num_classes)
        if seen:
            _checks.class_labels("y", y, num_classes, counted=counted)
    checked = _checks.is_concrete((x, y, sample_weight))
    return _Data(rows, target, weight, num_classes, counted, checked)


def _criterion(task: str, method: str, criterion: str | None) -> str:
    if task == "regression":
        _checks.one_of('method, for task="regression",', method, ("cart",))
        _checks.one_of('criterion, for task="regression",', criterion, (None,))
        return "variance"
    if method != "cart":
        _checks.one_of(f'criterion, for method="{method}",', criterion, (None, "entropy"))
        return "entropy"
    _checks.one_of("criterion", criterion, (None, "gini", "entropy"))
    return criterion or "gini"


def _num_categories(
    x: ArrayLike, data: _Data, categorical: tuple[int, ...], given: int | Sequence[int] | None
) -> tuple[int, ...]:
    """Number of categories of each column, 0 for a numeric one."""
    d = data.x.shape[1]
    for column in categorical:
        _checks.positive_int("categorical", column, least=0)
        if column >= d or categorical.count(column) > 1:
            raise ValueError(
                f"categorical must be different columns in 0..{d - 1}, got {categorical}"
            )
    if isinstance(given, Sequence):
        if len(given) != len(categorical):
            raise ValueError(
                "num_categories must have as many entries as categorical, "
                f"got {len(given)} and {len(categorical)}"
            )
        sizes = tuple(given)
    else:
        sizes = (given,) * len(categorical)
    counts = [0] * d
    for column, size in zip(categorical, sizes, strict=True):
        codes = None
        if data.checked:
            codes = np.asarray(x)[data.counted, column]
            codes = codes[~np.isnan(codes)] if np.issubdtype(codes.dtype, np.floating) else codes
        if size is None:
            if codes is None:
                raise ValueError("num_categories must be given where the data are traced")
            size = int(codes.max(initial=0)) + 1
        _checks.positive_int("num_categories", size)
        if (
            codes is not None
            and not ((codes == np.floor(codes)) & (codes >= 0) & (codes < size)).all()
        ):
            wrong = codes[~((codes == np.floor(codes)) & (codes >= 0) & (codes < size))][0]
            raise ValueError(
                f"x must hold codes 0..{size - 1} in the categorical column {column}, got {wrong}"
            )
        counts[column] = int(size)
    return tuple(counts)


def _plan(
    data: _Data,
    method: str,
    criterion: str,
    columns: tuple[int, ...],
    depth: int | None,
    missing: bool,
    max_nodes: int | None,
) -> _grow.Plan:
    n = len(data.y)
    plan = _grow.Plan(data.outputs, method, criterion, columns, missing, 1, 1)
    slots, nodes = max(1, n // 2), 2 * n - 1  # who is divided has two rows or more
    if max_nodes is not None:
        _checks.positive_int("max_nodes", max_nodes)
        slots, nodes = min(slots, max_nodes), max_nodes
    elif depth is not None:
        depth = min(depth, n.bit_length())  # a level further down has room for every row
        slots = min(slots, plan.arity ** max(depth - 1, 0))
        nodes = min(nodes, sum(plan.arity**level for level in range(depth + 1)))
    plan = plan._replace(max_nodes=nodes, slots=slots)
    needed = plan.bytes(n, data.x.dtype.itemsize)
    there = _memory()
    if needed > there:
        raise ValueError(
            f"a tree of {nodes} nodes of {len(columns)} columns"
            + (f" with up to {max(columns)} categories" if any(columns) else "")
            + f" needs about {needed / 1e9:.3g} GB, more than the {there / 1e9:.3g} GB of this "
            "device: pass a smaller max_depth or max_nodes"
        )
    return plan


def _memory() -> float:
    """Bytes of the default device; of this machine, if it is a CPU; infinity if nobody says."""
    import os

    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return float("inf")


@functools.partial(jax.jit, static_argnames=("plan", "checked"))
def _fit(
    x: Array,
    y: Array,
    weight: Array | None,
    order: Array | None,
    limits: _grow.Limits,
    plan: _grow.Plan,
    checked: bool,
) -> _tree.Tree:
    tree = _grow.grow(x, y, weight, order, limits, plan)
    if checked:
        return tree
    # Nobody could look at the values: data that are not allowed spoil every answer.
    sizes = jnp.array(plan.categories, x.dtype)[None]
    code = (x == jnp.floor(x)) & (x >= 0) & (x < sizes)
    allowed = jnp.where(sizes > 0, code, jnp.isfinite(x)) | (plan.missing & jnp.isnan(x))
    target = (y >= 0) & (y < plan.outputs) if plan.outputs else jnp.isfinite(y)
    good = allowed.all(axis=1) & target
    if weight is not None:
        good = ((good & (weight > 0)) | (weight == 0)) & (weight.sum() > 0)
    return tree._replace(value=jnp.where(good.all(), tree.value, jnp.nan))


@functools.partial(jax.jit, static_argnames="size")
def _best_first(tree: _tree.Tree, leaves: Array, size: int) -> _tree.Tree:
    return _grow.cut(tree, _grow.best_first(tree, leaves), size)


@jax.jit
def _presort(x: Array) -> Array:
    return jax.vmap(_order.argsort)(x.T)


# --- What a tree says -----------------------------------------------------------------------------


def _rows(model: DecisionTree, x: ArrayLike) -> tuple[Array, tuple[int, ...]]:
    rows = _checks.floating("x", x)
    d = len(model.num_categories)
    if rows.ndim == 0 or rows.shape[-1] != d:
        raise ValueError(f"x must have {d} features in its last axis, got shape {rows.shape}")
    if not model.missing and _checks.is_concrete(x) and np.isnan(np.asarray(rows)).any():
        raise ValueError("x must not be nan for a tree that was fitted without missing=True")
    return rows.reshape(-1, d), rows.shape[:-1]


@jax.jit
def _predict(model: DecisionTree, x: Array) -> Array:
    value = _tree.leaf_value(model.tree, x)
    if model.task == "regression":
        return value[:, 0]
    # `argmax` of a NaN would be the class that has it.
    return jnp.where(jnp.isnan(value).any(axis=1), -1, value.argmax(axis=1).astype(jnp.int32))


@jax.jit
def _predict_proba(model: DecisionTree, x: Array) -> Array:
    value = _tree.leaf_value(model.tree, x)
    return value / value.sum(axis=1, keepdims=True)


@jax.jit
def _apply(model: DecisionTree, x: Array) -> Array:
    return _tree.route(model.tree, x)


@functools.partial(jax.jit, static_argnames="max_depth")
def _path(model: DecisionTree, x: Array, max_depth: int) -> Array:
    return _tree.path(model.tree, x, max_depth)


@jax.jit
def _importance(model: DecisionTree) -> Array:
    return _tree.importance(model.tree, len(model.num_categories))


def _picture(
    model: DecisionTree,
    feature_names: Sequence[str] | None,
    class_names: Sequence[str] | None,
    category_names: Sequence[Sequence[str]] | None,
    max_depth: int | None,
) -> _export.Picture:
    if not _checks.is_concrete(model.tree) or model.tree.feature.ndim != 1:
        raise ValueError("model must be one concrete tree, got a traced one or a batch")
    if max_depth is not None:
        _checks.positive_int("max_depth", max_depth, least=0)
    return _export.picture(
        model.tree,
        model.num_categories,
        model.task,
        feature_names,
        class_names,
        category_names,
        max_depth,
    )
