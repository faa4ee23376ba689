r"""Random forests: many trees that err in different ways, and their average.

Each tree $b$ gets rows drawn with replacement (a bootstrap sample), and at each of its nodes only
some features, drawn anew, to choose the question from. The forest answers with the mean of its
trees,

$$
\hat f(x) = \frac1B \sum_{b=1}^B T_b(x), \qquad
\operatorname{Var} \hat f(x) = \rho \sigma^2 + \frac{1 - \rho}{B} \sigma^2 ,
$$

with $\sigma^2$ the variance of one tree and $\rho$ the correlation of two. More trees take the
second term away, drawn features lower $\rho$. A row is missing from about $1/e$ of the trees: these
judge it (out of bag).

Reference: Breiman, *Random Forests*, Machine Learning 45 (2001).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Key

from mlnotes_jax import _checks
from mlnotes_jax.trees import _bins, _forest_grow, _tree

__all__ = [
    "Forest",
    "OutOfBag",
    "PermutationImportance",
    "fit",
    "importance",
    "join",
    "out_of_bag",
    "permutation_importance",
    "predict",
    "predict_proba",
    "staged_error",
    "tree_predictions",
]

Task = Literal["classification", "regression"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["trees", "keys", "max_samples"],
    meta_fields=["task", "num_rows", "num_features", "bootstrap", "missing"],
)
@dataclasses.dataclass(frozen=True)
class Forest:
    """Fitted trees.

    Attributes:
        trees: The questions and answers of every tree, a `mlnotes_jax.trees._tree.Tree` whose
            arrays have a leading axis of trees. `value` holds the weight of each class, or the
            mean target; `jax.tree.map(lambda leaf: leaf[b], model.trees)` is tree b.
        keys: What each tree's rows were drawn with, shape `(trees,)`.
        max_samples: Share of the rows that were drawn for a tree, shape `()`.
        task: `"classification"` or `"regression"`; static.
        num_rows: Training rows; static.
        num_features: d; static.
        bootstrap: Whether rows were drawn; static.
        missing: Whether a NaN is a value that is not known; static.
    """

    trees: _tree.Tree
    keys: Key[Array, " trees"]
    max_samples: Float[Array, ""]
    task: str
    num_rows: int
    num_features: int
    bootstrap: bool
    missing: bool

    @property
    def num_trees(self) -> int:
        """B."""
        return self.keys.shape[0]


class OutOfBag(NamedTuple):
    """What the trees that have not seen a row say about it.

    Attributes:
        error: Of all trees together: share of wrong answers, or mean squared error, shape `()`.
            NaN if no row was left out.
        curve: The same of the first 1, 2, ..., B trees, over the rows that one of them left out,
            shape `(trees,)`.
        prediction: Mean probability of each class, shape `(n, k)`, or mean answer, shape `(n,)`;
            NaN for a row that every tree has seen.
        num_trees: How many trees have not seen the row, shape `(n,)`; 0 for a row of weight zero.
    """

    error: Float[Array, ""]
    curve: Float[Array, " trees"]
    prediction: Float[Array, "n ..."]
    num_trees: Int[Array, " n"]


class PermutationImportance(NamedTuple):
    """How much worse a forest gets if a feature is shuffled.

    Attributes:
        mean: Mean rise of the error, shape `(d,)`; about 0, or below, for a feature of no use.
        rise: Of each shuffle, shape `(d, repeats)`.
        error: Without shuffling: share of wrong answers, or mean squared error, shape `()`.
    """

    mean: Float[Array, " d"]
    rise: Float[Array, "d repeats"]
    error: Float[Array, ""]


def fit(
    key: Key[Array, ""],
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"] | Float[ArrayLike, " n"],
    *,
    task: Task = "classification",
    num_trees: int = 100,
    max_features: Int[ArrayLike, ""] | Literal["sqrt", "third", "all"] | None = None,
    max_depth: Int[ArrayLike, ""] | None = None,
    min_samples_leaf: Int[ArrayLike, ""] = 1,
    min_gain: Float[ArrayLike, ""] = 0.0,
    bootstrap: bool = True,
    max_samples: Float[ArrayLike, ""] = 1.0,
    num_bins: int | None = None,
    max_nodes: int | None = None,
    missing: bool = False,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    num_classes: int | None = None,
) -> Forest:
    r"""Grow the trees, all in one compiled program.

    At a node with the classes' weights $N_k$, $N = \sum_k N_k$, a question that divides them into
    $L_k$ and $R_k$ takes away the Gini impurity

    $$
    \text{gain} = \left(1 - \sum_k \tfrac{N_k^2}{N^2}\right)
    - \tfrac{L}{N} \left(1 - \sum_k \tfrac{L_k^2}{L^2}\right)
    - \tfrac{R}{N} \left(1 - \sum_k \tfrac{R_k^2}{R^2}\right)
    = \tfrac1N \left( \sum_k \tfrac{L_k^2}{L} + \sum_k \tfrac{R_k^2}{R}
    - \sum_k \tfrac{N_k^2}{N} \right) ,
    $$

    and for numbers the variance $\frac{L R}{N^2} (\bar y_L - \bar y_R)^2$. The best question about
    `max_features` drawn features is asked; if each of them is constant, or leaves too few rows,
    further features are drawn until one is not, or none is left. By default trees grow until the
    rows of a leaf agree or cannot be told apart.

    Thresholds lie between bins. A feature with fewer than `num_bins` distinct values has a bin for
    each: then nothing is lost. Settings that are traced can be batched: `jax.lax.map` over arrays
    of them, around `fit`, is a random search in one program. So is `jax.vmap`, which runs one fit
    after the other.

    Args:
        key: Draws rows and features.
        x: Rows, shape `(n, d)`. A category must be given as a number. One that no training row had
            goes to the side of each threshold where its number lies.
        y: Classes 0..k-1 or real targets, shape `(n,)`.
        task: What `y` are; static.
        num_trees: B; static.
        max_features: How many features a node looks at: a number (traced), or `"sqrt"` of d,
            a `"third"` of d, `"all"`, rounded down and at least one. By default `"sqrt"` for
            classes and `"third"` for numbers.
        max_depth: Most questions on a way; no bound by default. Traced.
        min_samples_leaf: Least number of rows in a leaf; a row that was drawn twice is one. Traced.
        min_gain: Least gain of a question. Traced.
        bootstrap: Whether rows are drawn, with replacement; else every tree has all; static.
        max_samples: How many are drawn, as a share of the rows, in (0, 1]. Traced.
        num_bins: At most 256, of which one is for missing values; static. By default 64, and 256 if
            there are more than 20 000 rows. More of them take more time, above all with many
            classes.
        max_nodes: Slots of a tree; static. A tree that has used them up stops growing, level by
            level. By default enough for leaves of one row: twice the number of different rows that
            a bootstrap sample is likely to have; outside of a transformation, the slots that no
            tree needed are cut off.
        missing: Whether `x` may be NaN: each question then learns the side of a missing value; one
            that saw none sends it where most rows went. Static.
        sample_weight: Not negative, shape `(n,)`; zero drops a row, which may then hold anything.
            Rows are drawn with equal chances, and count with their weights.
        num_classes: k, static; by default the largest label plus one. Needed where `y` is traced.

    Returns:
        The forest, in the dtype of `x` and at least float32. If a row that counts is not finite, or
        is no class, under a transformation, all values are NaN and `predict` answers -1 or NaN.

    Raises:
        ValueError: Shapes do not match, data are empty or (where concrete) not finite or no
            classes, an option is not allowed, or the trees need more memory than 16 GB: the message
            says how much, and what to pass.
        TypeError: `x` or targets are not real, or labels are not integers.

    Example:
        >>> import jax
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.trees import forest
        >>> iris = datasets.load("iris")
        >>> model = forest.fit(jax.random.key(0), iris.x, iris.y)
        >>> bool(forest.out_of_bag(model, iris.x, iris.y).error < 0.07)
        True

    Reference:
        Breiman (2001); Hastie, Tibshirani and Friedman, *The Elements of Statistical Learning*
        (2009), chapter 15.

    Note:
        scikit-learn's `RandomForestClassifier` averages probabilities as this does; Breiman counted
        votes. Its regressor looks at all features unless told otherwise. Its thresholds are midway
        between values, these between bins. Its `min_impurity_decrease` is `min_gain` times the
        node's share of all rows.
    """
    data = _data(x, y, task, sample_weight, num_classes, missing)
    n, d = data.x.shape
    _checks.positive_int("num_trees", num_trees)
    features = _max_features(max_features, task, d)
    depth: Any = np.int32(np.iinfo(np.int32).max)
    if max_depth is not None:
        depth = _checks.count("max_depth", max_depth, least=0)
    least = _checks.count("min_samples_leaf", min_samples_leaf)
    gain = _scalar("min_gain", min_gain, data.x.dtype)
    _checks.not_negative("min_gain", gain)
    share = _scalar("max_samples", max_samples, data.x.dtype)
    _checks.positive("max_samples", share)
    _checks.in_range("max_samples", share, 0, 1)
    if not bootstrap and not (_checks.is_concrete(share) and float(share) == 1):
        raise ValueError("max_samples needs bootstrap=True: without, every tree has all rows")
    slots = _slots(n, bootstrap, max_nodes, None if max_depth is None else depth)
    concrete = _checks.is_concrete((key, data, features, depth, least, gain, share))
    blocks = _blocks(num_trees, n, d, slots, data.num_classes or 3, concrete)

    edges, codes, used = _prepare(data.x, data.weight, num_bins, missing)
    counted = data.weight is not None or not _is_one(min_samples_leaf)
    plan = _forest_grow.Plan(
        num_classes=data.num_classes,
        num_bins=used,
        max_nodes=slots,
        group=_group(features, d),
        counted=counted,
        missing=missing,
        bootstrap=bool(bootstrap),
    )
    limits = _forest_grow.Limits(
        features, depth, least.astype(gain.dtype), gain / jnp.square(data.facts.scale), share
    )
    table_key, tree_key = jax.random.split(key)
    keys = jax.random.split(tree_key, num_trees)
    given = codes, data.y, data.weight, limits
    grown = [_grow(keys[block], table_key, *given, plan) for block in blocks]
    if concrete and max_nodes is None:  # keep the slots that are in use
        most = max(int(part.num_nodes.max()) for part in grown)
        slots = min(slots, _rounded(most, 1))
    parts = [_assemble(part, edges, data.facts, plan, slots) for part in grown]
    # The last block ends with the last tree, and may begin with trees of the block before.
    again = sum(block.stop - block.start for block in blocks) - num_trees
    parts[-1] = jax.tree.map(lambda leaf: leaf[again:], parts[-1]) if again else parts[-1]
    trees = parts[0] if len(parts) == 1 else _concatenate(parts)
    return Forest(trees, keys, jnp.asarray(share), task, n, d, bool(bootstrap), missing)


def predict(model: Forest, x: Float[ArrayLike, "n d"]) -> Int[Array, " n"] | Float[Array, " n"]:
    """The class that is most probable on average, the first of equals; or the mean answer.

    Args:
        model: A fitted forest.
        x: Rows, shape `(n, d)`.

    Returns:
        Classes as int32, or numbers, shape `(n,)`; -1 or NaN where there is no answer.

    Raises:
        ValueError: The shape does not fit, or a concrete row is not finite (NaN is allowed if the
            forest was fitted with `missing`).

    Example:
        >>> import jax
        >>> from mlnotes_jax.trees import forest
        >>> x, y = [[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1]
        >>> model = forest.fit(jax.random.key(0), x, y)
        >>> forest.predict(model, [[0.2], [2.9]]).tolist()
        [0, 1]
    """
    values = _mean(model, _rows(model, x))
    return _best(values) if model.task == "classification" else values[:, 0]


def predict_proba(model: Forest, x: Float[ArrayLike, "n d"]) -> Float[Array, "n k"]:
    """Mean over the trees of the shares of the classes in the row's leaf; arguments as `predict`.

    Example:
        >>> import jax
        >>> from mlnotes_jax.trees import forest
        >>> x, y = [[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1]
        >>> model = forest.fit(jax.random.key(0), x, y)
        >>> forest.predict_proba(model, [[0.2], [2.9]]).shape
        (2, 2)
    """
    if model.task != "classification":
        raise ValueError("predict_proba needs a forest of classes, got one of numbers")
    return _mean(model, _rows(model, x))


def tree_predictions(model: Forest, x: Float[ArrayLike, "n d"]) -> Float[Array, "trees n ..."]:
    """What each tree says, before the mean; arguments as `predict`.

    Returns:
        Probabilities of the classes, shape `(trees, n, k)`, or numbers, shape `(trees, n)`.

    Example:
        >>> import jax
        >>> from mlnotes_jax.trees import forest
        >>> x, y = [[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1]
        >>> model = forest.fit(jax.random.key(0), x, y, num_trees=7)
        >>> forest.tree_predictions(model, x).shape
        (7, 4, 2)
    """
    found = _each(model, _rows(model, x))
    return found if model.task == "classification" else found[..., 0]


def out_of_bag(
    model: Forest,
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"] | Float[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> OutOfBag:
    r"""Judge each training row by the trees that have not seen it: a test set for free.

    With $n$ draws of $n$ rows a row is left out of a tree with probability
    $(1 - 1/n)^n \to 1/e \approx 36.8\,\%$. The draws are made again from the trees' keys, so a
    forest need not store them.

    Args:
        model: A forest fitted with `bootstrap`.
        x: The rows it was fitted to, in the same order.
        y: Their classes or targets.
        sample_weight: As in `fit`.

    Returns:
        Error, its curve over the number of trees, predictions and numbers of trees.

    Raises:
        ValueError: Not as many rows as in `fit`, every tree has seen all rows, or as in `fit`.

    Example:
        >>> import jax
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.trees import forest
        >>> wine = datasets.load("wine")
        >>> model = forest.fit(jax.random.key(0), wine.x, wine.y)
        >>> forest.out_of_bag(model, wine.x, wine.y).prediction.shape
        (178, 3)

    Reference:
        Breiman (2001), section 3.1.

    Note:
        scikit-learn's `oob_score_` is one less this error, or, for numbers, $R^2$.
    """
    if not model.bootstrap:
        raise ValueError("out_of_bag needs a forest with bootstrap=True: no row was left out")
    rows, target, weight = _judged(model, x, y, sample_weight)
    if len(rows) != model.num_rows:
        raise ValueError(f"x must be the {model.num_rows} rows of the fit, got {len(rows)} rows")
    curve, prediction, seen = _staged(model, rows, target, weight, True)
    prediction = prediction if model.task == "classification" else prediction[:, 0]
    return OutOfBag(curve[-1], curve, prediction, seen)


def staged_error(
    model: Forest,
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"] | Float[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> Float[Array, " trees"]:
    """Error of the first 1, 2, ..., B trees on given rows.

    Args:
        model: A fitted forest.
        x: Rows, shape `(n, d)`, held out for an honest answer.
        y: Their classes or targets.
        sample_weight: Not negative, shape `(n,)`; zero drops a row.

    Returns:
        Share of wrong answers, or mean squared error, shape `(trees,)`.

    Raises:
        ValueError: As `predict`, and where `y` do not fit.

    Example:
        >>> import jax
        >>> from mlnotes_jax.trees import forest
        >>> x, y = [[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1]
        >>> model = forest.fit(jax.random.key(0), x, y, num_trees=20)
        >>> forest.staged_error(model, x, y).shape
        (20,)
    """
    return _staged(model, *_judged(model, x, y, sample_weight), False)[0]


def importance(model: Forest) -> Float[Array, " d"]:
    r"""Share of the impurity that the questions about each feature took away.

    For one tree $I_j = \sum_{t:\, \text{feature}(t) = j} w_t \cdot \text{gain}(t)$, divided by
    $\sum_j I_j$; of the trees that ask anything the mean. It is measured on the training rows, so a
    feature with many values, which offers many thresholds, gets a share even if it is noise:
    `permutation_importance` on other rows does not.

    Args:
        model: A fitted forest.

    Returns:
        Shares, shape `(d,)`, with sum one; zeros if no tree asks anything.

    Example:
        >>> import jax
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.trees import forest
        >>> iris = datasets.load("iris")
        >>> shares = forest.importance(forest.fit(jax.random.key(0), iris.x, iris.y))
        >>> bool(shares[2:].sum() > 0.7)  # length and width of the petals
        True

    Reference:
        Breiman, Friedman, Olshen and Stone (1984), section 5.3.4.
    """
    return _importance(model)


def permutation_importance(
    key: Key[Array, ""],
    model: Forest,
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"] | Float[ArrayLike, " n"],
    *,
    num_repeats: int = 5,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> PermutationImportance:
    r"""How much the error rises when one feature is shuffled over the rows.

    $\text{error}(\text{column } j \text{ shuffled}) - \text{error}$: what the forest uses the
    feature for. Two features that tell the same share their importance.

    Args:
        key: Shuffles.
        model: A fitted forest.
        x: Rows, shape `(n, d)`: held-out ones tell what helps, training ones what was learnt.
        y: Their classes or targets.
        num_repeats: Shuffles of each feature; static.
        sample_weight: Not negative, shape `(n,)`. A row of weight zero takes no part in the
            shuffles either.

    Returns:
        Mean, every rise, and the error without shuffling.

    Raises:
        ValueError: As `staged_error`.

    Example:
        >>> import jax
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.trees import forest
        >>> iris = datasets.load("iris")
        >>> model = forest.fit(jax.random.key(0), iris.x, iris.y)
        >>> found = forest.permutation_importance(jax.random.key(1), model, iris.x, iris.y)
        >>> found.rise.shape
        (4, 5)

    Reference:
        Breiman (2001), section 10; Strobl and others, *Bias in Random Forest Variable Importance
        Measures*, BMC Bioinformatics 8 (2007).

    Note:
        scikit-learn's function of this name gives the fall of a score: for numbers pass it
        `scoring="neg_mean_squared_error"`.
    """
    _checks.positive_int("num_repeats", num_repeats)
    rows, target, weight = _judged(model, x, y, sample_weight)
    rise, error = _permuted(key, model, rows, target, weight, num_repeats)
    return PermutationImportance(rise.mean(axis=1), rise, error)


def join(*models: Forest) -> Forest:
    """Put forests of the same data together: more trees, grown apart.

    Args:
        models: Forests fitted with other keys and the same settings.

    Returns:
        One forest with all their trees.

    Raises:
        ValueError: None was given, or they do not fit together.

    Example:
        >>> import jax
        >>> from mlnotes_jax.trees import forest
        >>> x, y = [[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1]
        >>> one, two = (forest.fit(jax.random.key(seed), x, y, num_trees=5) for seed in (0, 1))
        >>> forest.join(one, two).num_trees
        10
    """
    if not models:
        raise ValueError("models must not be empty, got none")
    first = models[0]
    for model in models[1:]:
        for name in ("task", "num_rows", "num_features", "bootstrap", "missing"):
            if getattr(model, name) != getattr(first, name):
                raise ValueError(
                    f"models must have one {name}, got {getattr(first, name)!r} "
                    f"and {getattr(model, name)!r}"
                )
        if model.trees.value.shape[-1] != first.trees.value.shape[-1]:
            raise ValueError("models must have the same classes")
        shares = model.max_samples, first.max_samples
        if _checks.is_concrete(shares) and shares[0] != shares[1]:
            raise ValueError(f"models must have one max_samples, got {shares[1]} and {shares[0]}")
    trees = _concatenate([model.trees for model in models])
    keys = jnp.concatenate([model.keys for model in models])
    return dataclasses.replace(first, trees=trees, keys=keys)


# --- What comes in --------------------------------------------------------------------------------

_MAX_BYTES = 1 << 34
_BLOCK_BYTES = 1 << 28  # of trees that are grown before they are cut to the slots in use


class _Data(NamedTuple):
    x: Array
    y: Array
    weight: Array | None
    num_classes: int
    facts: "_Facts"


class _Facts(NamedTuple):
    """What undoes the scaling of targets and weights, and whether all that counts is sound."""

    centre: Array
    scale: Array
    heaviest: Array
    sound: Array


def _data(
    x: ArrayLike,
    y: ArrayLike,
    task: str,
    sample_weight: ArrayLike | None,
    num_classes: int | None,
    missing: bool,
) -> _Data:
    _checks.one_of("task", task, ("classification", "regression"))
    if task == "regression" and num_classes is not None:
        raise ValueError(f"num_classes must be None for regression, got {num_classes}")
    rows = _checks.floating("x", x, ndim=2)
    rows = rows.astype(jnp.float32) if jnp.finfo(rows.dtype).bits < 32 else rows
    _checks.not_empty("x", rows)
    target, weight, counted = _target(rows, y, task, sample_weight)
    if _checks.is_concrete((x, sample_weight)):
        _check_rows(np.where(counted[:, None], np.asarray(x), 0), missing)
    seen = _checks.is_concrete((y, sample_weight))
    if task == "classification":
        if num_classes is None:
            if not seen:
                raise ValueError("num_classes must be given where y or sample_weight is traced")
            num_classes = max(int(np.asarray(y)[counted].max()) + 1, 1)
        _checks.positive_int("num_classes", num_classes)
        if seen:
            _checks.class_labels("y", y, num_classes, counted=counted)
    elif seen:
        _check_targets(y, counted)
    kinds = num_classes or 0
    target, weight, facts = _normalised(rows, target, weight, kinds, missing)
    return _Data(rows, target, weight, kinds, facts)


def _target(
    rows: Array, y: ArrayLike, task: str, sample_weight: ArrayLike | None
) -> tuple[Array, Array | None, np.ndarray]:
    """Targets and weights as arrays, and which rows count as far as that is known."""
    if task == "classification":
        target = _checks.integer("y", y, ndim=1).astype(jnp.int32)
    else:
        target = _checks.floating("y", y, ndim=1).astype(rows.dtype)
    _checks.same_length(x=rows, y=target)
    weight, counted = _checks.row_weights(sample_weight, target, rows.dtype)
    return target, weight, counted


def _check_rows(values: Any, missing: bool) -> None:
    if missing:
        values = np.where(np.isnan(values), 0, values)
    elif np.isnan(values).any():
        row, column = np.argwhere(np.isnan(values))[0]
        raise ValueError(
            f"x must be finite, got nan in row {row}, column {column}: pass missing=True if NaN "
            "stands for a value that is not known"
        )
    _checks.finite("x", values)


def _check_targets(y: ArrayLike, counted: np.ndarray) -> None:
    values: Any = np.where(counted, np.asarray(y), 0)
    _checks.finite("y", values)


@functools.partial(jax.jit, static_argnames=("num_classes", "missing"))
def _normalised(
    x: Array, y: Array, weight: Array | None, num_classes: int, missing: bool
) -> tuple[Array, Array | None, _Facts]:
    """Targets of size one at most, weights of one at most, and what undoes it."""
    real = x.dtype
    counts = jnp.ones(len(y), bool) if weight is None else weight != 0
    fine = jnp.isfinite(x) | (jnp.isnan(x) & missing)
    sound = (fine.all(axis=1) | ~counts).all()
    heaviest = jnp.ones((), real)
    if weight is not None:
        sound &= (jnp.isfinite(weight) & (weight >= 0)).all() & counts.any()
        heaviest = jnp.where(sound, weight.max(), 1)
        weight = jnp.where(sound, weight / heaviest, 1)
    if num_classes:
        sound &= (((y >= 0) & (y < num_classes)) | ~counts).all()
        centre, scale = jnp.zeros((), real), jnp.ones((), real)
        y = jnp.where(counts, jnp.clip(y, 0, num_classes - 1), 0)
    else:
        sound &= (jnp.isfinite(y) | ~counts).all()
        y = jnp.where(counts & jnp.isfinite(y), y, 0)
        share = counts.astype(real) if weight is None else weight
        share = share / share.sum()
        centre = share @ y
        y = jnp.where(counts, y - centre, 0)
        scale = jnp.abs(y).max()
        scale = jnp.where(scale > 0, scale, 1)
        y = y / scale
    return y, weight, _Facts(centre, scale, heaviest, sound)


def _max_features(value: Any, task: str, d: int) -> Array:
    if value is None:
        value = "sqrt" if task == "classification" else "third"
    if isinstance(value, str):
        _checks.one_of("max_features", value, ("sqrt", "third", "all"))
        counts = {"sqrt": math.isqrt(d), "third": d // 3, "all": d}
        return jnp.int32(max(1, counts[value]))
    count = _checks.count("max_features", value)
    _checks.in_range("max_features", count, 1, d)
    return jnp.minimum(count, d)


def _group(max_features: Array, d: int) -> int:
    """How many features are looked at together: eight, or what leaves few places empty."""
    most = int(max_features) if _checks.is_concrete(max_features) else d
    return -(-most // -(-most // 8))


def _slots(n: int, bootstrap: bool, max_nodes: int | None, max_depth: Array | None) -> int:
    if max_nodes is not None:
        _checks.positive_int("max_nodes", max_nodes)
        return max_nodes
    leaves = n
    if bootstrap:  # mean number of different rows, and more than six standard deviations
        leaves = min(n, math.ceil((1 - 1 / math.e) * n + 2 * math.sqrt(n)) + 1)
    slots = 2 * leaves - 1
    if max_depth is not None and _checks.is_concrete(max_depth):
        slots = min(slots, 2 ** (min(int(max_depth), 30) + 1) - 1)
    return slots


def _is_one(value: Any) -> bool:
    return _checks.is_concrete(value) and int(value) == 1


def _scalar(name: str, value: ArrayLike, dtype: Any) -> Array:
    return _checks.floating(name, value, ndim=0).astype(dtype)


def _blocks(
    num_trees: int, n: int, d: int, slots: int, outputs: int, concrete: bool
) -> list[slice]:
    """Which trees are grown in one call: as many as fit, and all under a transformation."""
    if n * d >= 2**31:
        raise ValueError(f"x must have fewer than 2^31 numbers, got {n} x {d}: draw rows before")
    each = slots * (4 * (5 + outputs) if concrete else 4 * (15 + 2 * outputs))
    most = each * (1 if concrete else num_trees)
    if most > _MAX_BYTES:
        trees = "a tree" if concrete else f"num_trees={num_trees} trees"
        raise ValueError(
            f"{trees} of {slots} nodes need {most / 1e9:.0f} GB, more than "
            f"{_MAX_BYTES / 1e9:.0f} GB: pass a smaller max_nodes or max_depth, or fit in parts "
            "and join them"
        )
    if not concrete:
        return [slice(0, num_trees)]
    count = -(-num_trees * each // _BLOCK_BYTES)
    size = -(-num_trees // count)
    starts = [min(i, num_trees - size) for i in range(0, num_trees, size)]
    return [slice(i, i + size) for i in starts]


def _rounded(number: int, digits: int) -> int:
    """Up to so many binary digits: fits of about one size share their programs."""
    unit = 1 << max(0, number.bit_length() - digits)
    return -(-number // unit) * unit


@functools.partial(jax.jit, static_argnames="num_bins")
def _codes(x: Array, weight: Array | None, num_bins: int) -> tuple[Array, Array, Array]:
    """Edges, codes, and how many of the codes of known values occur."""
    if weight is not None:
        # A row of no weight may hold anything; the others are worth the same to the bins.
        x = jnp.where((weight > 0)[:, None], x, jnp.nan)
    bins = _bins.fit(x, num_bins=num_bins)
    codes = _bins.apply_by_feature(bins, x)
    lost = codes == bins.missing
    return bins.edges, codes, jnp.where(lost, 0, codes).max().astype(jnp.int32) + 1


def _prepare(
    x: Array, weight: Array | None, num_bins: int | None, missing: bool
) -> tuple[Array, Array, int]:
    """Edges, codes and the number of codes; the code of a missing value, if any, is the last."""
    if num_bins is None:
        num_bins = 64 if len(x) <= 20_000 else 256
    _checks.positive_int("num_bins", num_bins, least=3)
    edges, codes, known = _codes(x, weight, num_bins)
    used = num_bins - 1
    if _checks.is_concrete(known):
        used = min(used, max(16, _rounded(int(known), 3)))
    # Without `missing`, what is missing has no weight, or makes the answer NaN.
    codes = _with_missing(codes, np.uint8(num_bins - 1), np.uint8(used if missing else 0))
    return edges, codes, used + missing


@jax.jit
def _with_missing(codes: Array, old: Array, new: Array) -> Array:
    return jnp.where(codes == old, new, codes)


# --- Trees ----------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="plan")
def _grow(
    keys: Array,
    table_key: Array,
    codes: Array,
    target: Array,
    weight: Array | None,
    limits: _forest_grow.Limits,
    plan: _forest_grow.Plan,
) -> _forest_grow.Grown:
    # Trees of a batch take as many steps as the deepest: one fit after the other.
    @jax.custom_batching.sequential_vmap
    def one(keys: Array, table_key: Array, rows: Any, limits: Any) -> _forest_grow.Grown:
        table = _forest_grow.permutations(table_key, rows.codes.shape[0])
        return _forest_grow.grow(keys, table, rows, limits, plan)

    return one(keys, table_key, _forest_grow.Rows(codes, target, weight), limits)


@functools.partial(jax.jit, static_argnames=("plan", "slots"))
def _assemble(
    grown: _forest_grow.Grown, edges: Array, facts: _Facts, plan: Any, slots: int
) -> _tree.Tree:
    return jax.vmap(lambda part: _assembled(part, edges, facts, plan, slots))(grown)


def _assembled(
    grown: _forest_grow.Grown, edges: Array, facts: _Facts, plan: Any, slots: int
) -> _tree.Tree:
    """One tree from what was written down while it grew."""
    feature, code, side, left, depth = grown.node[:slots].T
    sums, real = grown.sums[:slots], grown.sums.dtype
    number = jnp.arange(slots, dtype=jnp.int32)
    split, used = left >= 0, number < grown.num_nodes
    beyond = jnp.full((len(edges), 1), jnp.inf, edges.dtype)  # all values but the missing ones
    edge = jnp.concatenate([edges, beyond], axis=1)[jnp.maximum(feature, 0), jnp.maximum(code, 0)]
    children = jnp.where(split[:, None], jnp.stack([left, left + 1], axis=1), -1)
    parent = jnp.full(slots, -1, jnp.int32)
    for child in (left, left + 1):
        parent = parent.at[jnp.where(split, child, slots)].set(number, mode="drop")
    # Leaves were never looked at: their depth is that of the parent and one.
    depth = jnp.where(parent >= 0, depth[parent] + 1, jnp.where(number == 0, 0, -1))
    if plan.num_classes:
        weight = sums.sum(axis=1)
        share = sums / _not_zero(weight)[:, None]
        mixed = sums.max(axis=1) < weight  # else the quotient may round to less than one
        impurity = jnp.where(mixed, 1 - jnp.square(share).sum(axis=1), 0)
        value = sums * facts.heaviest
    else:
        weight = sums[:, 0]
        mean, square = (sums[:, i] / _not_zero(weight) for i in (1, 2))
        impurity = jnp.square(facts.scale) * jnp.maximum(square - jnp.square(mean), 0)
        value = jnp.where(used, facts.centre + facts.scale * mean, 0)[:, None]
    held = weight * impurity
    below = jnp.where(split[:, None], held[children], 0).sum(axis=1)
    gain = jnp.where(split, jnp.maximum(impurity - below / _not_zero(weight), 0), 0)
    return _tree.Tree(
        feature=feature,
        threshold=jnp.where(split, edge, jnp.nan),
        branch=jnp.zeros((slots, 0), jnp.int32),
        children=children,
        missing=jnp.where(split & plan.missing, side, -1),
        parent=parent,
        depth=depth,
        value=jnp.where(facts.sound, value, jnp.nan),
        weight=(weight * facts.heaviest).astype(real),
        impurity=impurity,
        gain=gain,
        num_nodes=grown.num_nodes,
    )


def _not_zero(value: Array) -> Array:
    return jnp.where(value == 0, 1, value)


def _concatenate(parts: list[_tree.Tree]) -> _tree.Tree:
    """One axis of trees; shorter trees get unused slots."""
    slots = max(part.feature.shape[1] for part in parts)
    unused: Any = _tree.Tree._make([-1, np.nan, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0])

    def pad(leaf: Array, fill: float) -> Array:
        width = [(0, 0)] * leaf.ndim
        if leaf.ndim > 1:
            width[1] = (0, slots - leaf.shape[1])
        return jnp.pad(leaf, width, constant_values=fill)

    padded = [jax.tree.map(pad, part, unused) for part in parts]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *padded)


# --- What comes out -------------------------------------------------------------------------------


def _rows(model: Forest, x: ArrayLike) -> Array:
    rows = _checks.floating("x", x, ndim=2).astype(model.trees.threshold.dtype)
    if rows.shape[1] != model.num_features:
        raise ValueError(f"x must have {model.num_features} columns, got shape {rows.shape}")
    if _checks.is_concrete(x):
        _check_rows(np.asarray(x), model.missing)
    return rows


def _judged(
    model: Forest, x: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Rows, targets and weights to measure an error with."""
    rows = _checks.floating("x", x, ndim=2).astype(model.trees.threshold.dtype)
    if rows.shape[1] != model.num_features:
        raise ValueError(f"x must have {model.num_features} columns, got shape {rows.shape}")
    _checks.not_empty("x", rows)
    target, weight, counted = _target(rows, y, model.task, sample_weight)
    if _checks.is_concrete((x, sample_weight)):
        _check_rows(np.where(counted[:, None], np.asarray(x), 0), model.missing)
    if _checks.is_concrete((y, sample_weight)):
        if model.task == "classification":
            kinds = model.trees.value.shape[-1]
            _checks.class_labels("y", y, kinds, counted=counted)
        else:
            _check_targets(y, counted)
    return rows, target, jnp.ones(len(target), rows.dtype) if weight is None else weight


@jax.jit
def _best(values: Array) -> Array:
    """The most probable class, -1 where a probability is NaN."""
    unknown = jnp.isnan(values).any(axis=1)
    return jnp.where(unknown, -1, values.argmax(axis=1).astype(jnp.int32))


def _answer(model: Forest, tree: _tree.Tree, x: Array) -> Array:
    """What one tree says: probabilities, or a number, shape `(n, outputs)`."""
    value = _tree.leaf_value(tree, x)
    if model.task == "classification":
        value = value / value.sum(axis=1, keepdims=True)
    if not model.missing:
        value = jnp.where(jnp.isnan(x).any(axis=1, keepdims=True), jnp.nan, value)
    return value


def _fold(step: Callable[..., Any], start: Any, model: Forest, *data: Array) -> Any:
    """Scan over the trees: one a step on a CPU, several elsewhere.

    `step(carry, trees, keys, *data)` is given a batch of trees; it returns the carry, and what it
    found for each of them.
    """

    def run(batch: int, model: Forest, start: Any, *data: Array) -> Any:
        def cut(leaf: Array) -> Array:
            return leaf.reshape(model.num_trees // batch, batch, *leaf.shape[1:])

        parts = jax.tree.map(cut, (model.trees, model.keys))
        carry, found = lax.scan(lambda carry, part: step(carry, *part, *data), start, parts)
        flat = jax.tree.map(lambda leaf: leaf.reshape(model.num_trees, *leaf.shape[2:]), found)
        return carry, flat

    most = max(size for size in range(1, 33) if model.num_trees % size == 0)
    return lax.platform_dependent(
        model,
        start,
        *data,
        cpu=functools.partial(run, 1),
        default=functools.partial(run, most),
    )


@jax.jit
def _mean(model: Forest, x: Array) -> Array:
    def step(total: Array, trees: _tree.Tree, keys: Array, x: Array) -> tuple[Array, None]:
        del keys
        return total + jax.vmap(lambda tree: _answer(model, tree, x))(trees).sum(axis=0), None

    start = jnp.zeros((len(x), model.trees.value.shape[-1]), model.trees.value.dtype)
    return _fold(step, start, model, x)[0] / model.num_trees


@jax.jit
def _each(model: Forest, x: Array) -> Array:
    def step(carry: tuple, trees: _tree.Tree, keys: Array, x: Array) -> tuple[tuple, Array]:
        del keys
        return carry, jax.vmap(lambda tree: _answer(model, tree, x))(trees)

    return _fold(step, (), model, x)[1]


@jax.jit
def _staged(
    model: Forest, x: Array, y: Array, weight: Array, left_out: bool | Array
) -> tuple[Array, Array, Array]:
    """Error of the first trees, mean answer, and number of trees that answered, for each row."""
    n = len(x)
    outputs = model.trees.value.shape[-1]

    def step(
        carry: tuple[Array, Array], trees: _tree.Tree, keys: Array, x: Array, y: Array, w: Array
    ) -> tuple[tuple[Array, Array], Array]:
        answer = jax.vmap(lambda tree: _answer(model, tree, x))(trees)
        drawn = jax.vmap(
            lambda key: _forest_grow.draw(key, n, w, model.max_samples, model.bootstrap)
        )(keys)
        judge = (drawn == 0) & (w > 0)[None] | jnp.logical_not(left_out)
        answer = jnp.where(judge[..., None], answer, 0)
        total = carry[0][None] + jnp.cumsum(answer, axis=0)
        count = carry[1][None] + jnp.cumsum(judge.astype(jnp.int32), axis=0)
        error = jax.vmap(lambda total, count: _error(model, total, count, y, w))(total, count)
        return (total[-1], count[-1]), error

    start = jnp.zeros((n, outputs), model.trees.value.dtype), jnp.zeros(n, jnp.int32)
    (total, count), curve = _fold(step, start, model, x, y, weight)
    return curve, _per_tree(total, count), count


def _per_tree(total: Array, count: Array) -> Array:
    """The mean; NaN where no tree answered."""
    return total / jnp.where(count > 0, count.astype(total.dtype), jnp.nan)[:, None]


def _error(model: Forest, total: Array, count: Array, y: Array, weight: Array) -> Array:
    """Share of wrong answers or mean squared error over the rows with an answer."""
    mean = _per_tree(total, count)
    if model.task == "classification":
        loss = (_best(mean) != y).astype(weight.dtype)
    else:
        loss = jnp.square(mean[:, 0] - y)
    weight = jnp.where(count > 0, weight, 0)
    return jnp.where(weight > 0, weight * loss, 0).sum() / weight.sum()


@jax.jit
def _importance(model: Forest) -> Array:
    shares = jax.vmap(lambda tree: _tree.importance(tree, model.num_features))(model.trees)
    total = shares.sum()
    return shares.sum(axis=0) / jnp.where(total > 0, total, 1)


@functools.partial(jax.jit, static_argnames="num_repeats")
def _permuted(
    key: Array, model: Forest, x: Array, y: Array, weight: Array, num_repeats: int
) -> tuple[Array, Array]:
    n, d = x.shape

    def error(x: Array) -> Array:
        total = _mean(model, x)
        return _error(model, total, jnp.ones(n, jnp.int32), y, weight)

    # Rows that count come first in both orders: they are shuffled among themselves.
    place = jnp.argsort(weight == 0, stable=True)

    def rise(part: tuple[Array, Array]) -> Array:
        column, key = part
        drawn = jnp.where(weight == 0, 2, jax.random.uniform(key, (n,), x.dtype))
        shuffled = x[:, column].at[place].set(x[jnp.argsort(drawn), column])
        return error(x.at[:, column].set(shuffled))

    columns = jnp.repeat(jnp.arange(d, dtype=jnp.int32), num_repeats)
    base = error(x)
    risen = lax.map(rise, (columns, jax.random.split(key, len(columns))))
    return risen.reshape(d, num_repeats) - base, base
