r"""Gradient boosting: trees that each mend what the ones before left.

The score of a row is a constant and a sum of trees, one (or, for k classes, k) of a round:

$$
F_m(x) = F_{m-1}(x) + \eta\, f_m(x) , \qquad
f_m = \arg\min_f \sum_i \left( g_i f(x_i) + \tfrac12 h_i f(x_i)^2 \right)
+ \tfrac{\lambda}{2} \sum_{\text{leaves } l} v_l^2 ,
$$

where $g_i$ and $h_i$ are the first two derivatives of the loss of row i by its score. Sums of them
over the rows of a node, $G$ and $H$, give the best value of a leaf and what a split gains,

$$
v = -\frac{G}{H + \lambda} , \qquad
\text{gain} = \frac12 \left( \frac{G_L^2}{H_L + \lambda} + \frac{G_R^2}{H_R + \lambda}
- \frac{G^2}{H + \lambda} \right) .
$$

Features are cut into at most 255 bins, so that all splits of a node are read off one histogram.

Reference: Friedman, *Greedy Function Approximation: A Gradient Boosting Machine*, Annals of
Statistics 29 (2001); Chen and Guestrin, *XGBoost*, KDD (2016), section 2.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from mlnotes_jax import _checks
from mlnotes_jax.trees import _bins, _histogram, _rounds

__all__ = [
    "Boosting",
    "decision_function",
    "derivatives",
    "fit",
    "importance",
    "predict",
    "predict_proba",
    "staged_decision_function",
    "staged_loss",
]

Loss = Literal["squared", "absolute", "huber", "logistic", "softmax"]

_LOSSES = ("squared", "absolute", "huber", "logistic", "softmax")
_CLASSIFIERS = ("logistic", "softmax")
_MOST_BYTES = 2**33  # of the histograms of one level, or of the trees


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "base",
        "feature",
        "threshold",
        "missing_left",
        "left",
        "gain",
        "weight",
        "children",
        "value",
        "num_trees",
        "held_out_loss",
    ],
    meta_fields=["loss", "categorical", "num_features"],
)
@dataclasses.dataclass(frozen=True)
class Boosting:
    r"""A constant, and the trees of every round.

    The root is node 0. Grown level by level, a tree is complete: level l has $2^l$ nodes, which
    stand one level after the other, and the children of node k of a level are the nodes k (left)
    and $k + 2^l$ (right) of the next. Grown leaf by leaf, nodes stand in the order of their splits.
    A node that asks nothing sends everything to the left. Of rounds after `num_trees`, nothing is
    kept.

    Attributes:
        base: Score before the first tree, shape `(k,)`; k is 1 unless the loss is "softmax".
        feature: Column asked, -1 where nothing is, shape `(rounds, k, nodes)`: `2**max_depth - 1`
            or `max_leaves - 1` nodes.
        threshold: $x \le$ `threshold` goes left; infinite if only missing values go right, and NaN
            where nothing is asked, or a category.
        missing_left: Whether a missing value goes left.
        left: Whether a category goes left, shape `(rounds, k, nodes, codes)`; the last code
            stands for missing values and for categories that have none. No codes if no column
            holds categories.
        gain: What the split took from the objective, 0 where there is none.
        weight: Sum of the curvatures $h_i$ of the training rows.
        children: Nodes on the left and on the right, -1 - l for leaf l, shape
            `(rounds, k, nodes, 2)`.
        value: $\eta v$ of the leaves, shape `(rounds, k, nodes + 1)`.
        num_trees: Rounds that count; fewer than `rounds` if the fit ended early. Shape `()`.
        held_out_loss: Mean loss of the held-out rows after each round, shape `(rounds,)`; NaN
            after the end, and all infinite without such rows.
        loss: Its name; static.
        categorical: Columns that hold categories; static.
        num_features: d; static.
    """

    base: Float[Array, " k"]
    feature: Int[Array, "rounds k nodes"]
    threshold: Float[Array, "rounds k nodes"]
    missing_left: Bool[Array, "rounds k nodes"]
    left: Bool[Array, "rounds k nodes codes"]
    gain: Float[Array, "rounds k nodes"]
    weight: Float[Array, "rounds k nodes"]
    children: Int[Array, "rounds k nodes 2"]
    value: Float[Array, "rounds k leaves"]
    num_trees: Int[Array, ""]
    held_out_loss: Float[Array, " rounds"]
    loss: str
    categorical: tuple[int, ...]
    num_features: int


def fit(
    key: Key[Array, ""],
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"] | Int[ArrayLike, " n"],
    *,
    loss: Loss = "squared",
    num_trees: int = 100,
    learning_rate: Float[ArrayLike, ""] = 0.1,
    max_depth: int | None = 6,
    max_leaves: int | None = None,
    l2: Float[ArrayLike, ""] = 1.0,
    min_gain: Float[ArrayLike, ""] = 0.0,
    min_child_weight: Float[ArrayLike, ""] = 1.0,
    subsample: Float[ArrayLike, ""] = 1.0,
    feature_fraction: Float[ArrayLike, ""] = 1.0,
    num_bins: int = 256,
    missing: bool = False,
    categorical: Sequence[int] = (),
    monotone: Sequence[int] | None = None,
    delta: Float[ArrayLike, ""] = 1.0,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    num_classes: int | None = None,
    held_out: tuple[ArrayLike, ...] | None = None,
    patience: int | None = None,
) -> Boosting:
    r"""Grow `num_trees` rounds of trees, each on the derivatives where the last one ended.

    Trees are grown level by level, or, with `max_leaves`, leaf by leaf. A split is taken if it
    gains more than `min_gain`, the first of equals in the order of columns and thresholds. Rows
    without weight do not count, and may hold anything.

    Args:
        key: For `subsample` and `feature_fraction`; nothing is drawn where both are 1.
        x: Rows, shape `(n, d)`.
        y: Targets, shape `(n,)`: numbers, or classes 0..k-1 for "logistic" (k = 2) and "softmax".
        loss: Of a score s and a target y. "squared": $(s - y)^2 / 2$; "absolute": $|s - y|$;
            "huber": squared up to `delta`, then linear; "logistic": $\ln(1 + e^{-s})$ for class 1,
            $\ln(1 + e^s)$ for class 0; "softmax": minus the log-probability. Static.
        num_trees: Rounds, at most; static.
        learning_rate: $\eta$, positive.
        max_depth: Questions from the root to a leaf, at most; None for any number, with
            `max_leaves`. Static.
        max_leaves: Split the leaf that gains most, wherever it is, until there are so many. None
            splits every leaf down to `max_depth`. Static.
        l2: $\lambda$, not negative.
        min_gain: What a split must gain more than.
        min_child_weight: Sum of the curvatures $h_i$ that each side of a split needs: rows, for
            the first three losses; $p (1 - p)$ of the others.
        subsample: Chance of a row to be drawn into a round, above 0.
        feature_fraction: Share of the columns, drawn for each tree, that it may ask; above 0.
        num_bins: Bins of a column and one more for missing values, at most 256; static. A column
            with fewer values has as many bins as values. Where no column needs so many, the fit is
            faster: outside of a program this is seen, inside say it.
        missing: Whether `x` may hold NaN. Such values go to the side where they gain more; at a
            node where none was seen, to the heavier side. Static.
        categorical: Columns that hold categories 0..num_bins-2. A split sends a set of them to the
            left, the best of all sets. A category that was not seen at the node goes to the
            heavier side; one that is no category counts as a missing value. Static.
        monotone: 1, 0 or -1 for each column: the score must not fall, may do anything, must not
            rise with it. Not for "softmax". Static.
        delta: Where the Huber loss turns from a square into a line, positive.
        sample_weight: Weights, not negative. A whole weight is that many equal rows.
        num_classes: k of "softmax"; from the data where they are concrete. Static.
        held_out: Rows and targets, and perhaps weights, on which the loss is followed.
        patience: End after so many rounds that did not lower the loss on `held_out`, and keep the
            rounds up to the best one; static.

    Returns:
        The model. Where all targets are equal it has no splits and predicts their value; a class
        that no row has gets the probability 0. Under a transformation a NaN stays a NaN.

    Raises:
        ValueError: A shape does not fit, an option is out of its range, a tree of this depth would
            take more than 8 GiB, or concrete data are empty, not finite or mislabelled.
        TypeError: The data are no real numbers, or labels no integers.

    Example:
        >>> import jax
        >>> from mlnotes_jax.trees import boosting
        >>> x, y = [[0.0], [1.0], [2.0], [3.0]], [0.0, 0.0, 1.0, 1.0]
        >>> model = boosting.fit(jax.random.key(0), x, y, num_trees=50, max_depth=1, l2=0.0)
        >>> [round(float(score), 2) for score in boosting.predict(model, x)]
        [0.0, 0.0, 1.0, 1.0]

    Reference:
        Friedman (2001); Chen and Guestrin (2016). Categories: Fisher, *On Grouping for Maximum
        Homogeneity*, Journal of the American Statistical Association 53 (1958).

    Note:
        The peers leave the ½ out of the gain. For "softmax" $h = p (1 - p)$ as in scikit-learn;
        LightGBM takes $k / (k - 1)$ and XGBoost 2 times that, and so smaller steps. `min_gain` is
        not LightGBM's `min_gain_to_split`, but half of it.
    """
    _checks.one_of("loss", loss, _LOSSES)
    rows, target, weight, outputs = _training(x, y, sample_weight, loss, num_classes, missing)
    d, dtype = rows.shape[1], rows.dtype
    _checks.positive_int("num_trees", num_trees)
    if max_depth is not None:
        _checks.positive_int("max_depth", max_depth)
    elif max_leaves is None:
        raise ValueError("max_depth must be given where max_leaves is not")
    if max_leaves is not None:
        _checks.positive_int("max_leaves", max_leaves, least=2)
        if max_depth is not None and max_leaves >= 2**max_depth:
            max_leaves = None  # all levels: the same tree, in another order
    columns = _columns(categorical, d)
    signs = _monotone(monotone, columns, d, loss)
    if patience is not None:
        _checks.positive_int("patience", patience)
        if held_out is None:
            raise ValueError("patience needs held_out rows, got None")
    limits = _histogram.Limits(
        *(
            _number(name, value, dtype, _checks.not_negative)
            for name, value in (
                ("l2", l2),
                ("min_gain", min_gain),
                ("min_child_weight", min_child_weight),
            )
        )
    )
    steps = _rounds.Steps(
        _number("learning_rate", learning_rate, dtype, _checks.positive),
        _number("delta", delta, dtype, _checks.positive),
        _share("subsample", subsample, dtype),
        _share("feature_fraction", feature_fraction, dtype),
        limits,
    )
    counted = None if sample_weight is None else weight
    bins = _bins.fit(rows, num_bins=num_bins, sample_weight=counted, categorical=columns)
    bins = _bins.trimmed(bins)
    options = _histogram.Options(max_depth, bins.num_bins, missing, columns, signs, max_leaves)
    _check_size(d, num_trees * outputs, options)
    _check_categories(x, sample_weight, bins)
    test = None
    if held_out is not None:
        test = _held_out(held_out, d, dtype, outputs, loss, missing)
    plan = _rounds.Plan(loss, outputs, num_trees, patience, options)
    return _fit(key, bins, rows, target, counted, test, steps, plan)


def decision_function(
    model: Boosting, x: Float[ArrayLike, "n d"]
) -> Float[Array, " n"] | Float[Array, "n k"]:
    """The scores: the constant and the sum of the trees.

    Args:
        model: A fitted model.
        x: Rows, shape `(n, d)`. NaN is a missing value, in any model.

    Returns:
        Shape `(n,)`: the predicted number, or the log-odds of class 1; `(n, k)` for "softmax".

    Raises:
        ValueError: `x` does not have d columns.

    Example:
        >>> import jax
        >>> from mlnotes_jax.trees import boosting
        >>> x = [[0.0], [1.0], [2.0], [3.0]]
        >>> model = boosting.fit(
        ...     jax.random.key(0), x, [0, 0, 1, 1], loss="logistic", min_child_weight=0.0
        ... )
        >>> (boosting.decision_function(model, x) > 0).tolist()
        [False, False, True, True]
    """
    return _shaped(model, _scores(model, _rows(model, x)))


def predict(model: Boosting, x: Float[ArrayLike, "n d"]) -> Float[Array, " n"] | Int[Array, " n"]:
    """The predicted numbers, or the most probable classes.

    Args:
        model: A fitted model.
        x: Rows, shape `(n, d)`.

    Returns:
        Numbers, or classes as int32, the first of equals, -1 where a score is NaN; shape `(n,)`.

    Raises:
        ValueError: `x` does not have d columns.

    Example:
        >>> import jax
        >>> from mlnotes_jax.trees import boosting
        >>> x, y = [[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]], [0, 0, 1, 1, 2, 2]
        >>> model = boosting.fit(jax.random.key(0), x, y, loss="softmax", min_child_weight=0.0)
        >>> boosting.predict(model, x).tolist()
        [0, 0, 1, 1, 2, 2]
    """
    scores = decision_function(model, x)
    return _classes(scores) if model.loss in _CLASSIFIERS else scores


def predict_proba(model: Boosting, x: Float[ArrayLike, "n d"]) -> Float[Array, "n k"]:
    """The probability of every class.

    Args:
        model: A model with the loss "logistic" or "softmax".
        x: Rows, shape `(n, d)`.

    Returns:
        Shape `(n, 2)` or `(n, k)`; rows add up to 1.

    Raises:
        ValueError: The loss has no classes, or `x` does not have d columns.

    Example:
        >>> import jax
        >>> from mlnotes_jax.trees import boosting
        >>> x = [[0.0], [1.0], [2.0], [3.0]]
        >>> model = boosting.fit(jax.random.key(0), x, [1, 1, 1, 1], loss="logistic")
        >>> boosting.predict_proba(model, x)[0].tolist()
        [0.0, 1.0]
    """
    if model.loss not in _CLASSIFIERS:
        raise ValueError(f"predict_proba needs loss 'logistic' or 'softmax', got {model.loss!r}")
    return _probabilities(decision_function(model, x))


def staged_decision_function(
    model: Boosting, x: Float[ArrayLike, "n d"]
) -> Float[Array, "rounds n"] | Float[Array, "rounds n k"]:
    """The scores after every round.

    Args:
        model: A fitted model.
        x: Rows, shape `(n, d)`.

    Returns:
        As `decision_function`, with a first axis of rounds. After `model.num_trees` rounds they
        stay as they are.

    Raises:
        ValueError: `x` does not have d columns.

    Example:
        >>> import jax
        >>> from mlnotes_jax.trees import boosting
        >>> x, y = [[0.0], [1.0]], [0.0, 1.0]
        >>> model = boosting.fit(
        ...     jax.random.key(0), x, y, num_trees=3, learning_rate=0.5, max_depth=1, l2=0.0
        ... )
        >>> boosting.staged_decision_function(model, x)[:, 1].tolist()  # half of what is left
        [0.75, 0.875, 0.9375]
    """
    return _shaped(model, _staged(model, _rows(model, x)))


def staged_loss(
    model: Boosting,
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"] | Int[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    delta: Float[ArrayLike, ""] = 1.0,
) -> Float[Array, " rounds"]:
    """The mean loss after every round: a learning curve, of any rows.

    Args:
        model: A fitted model.
        x: Rows, shape `(n, d)`.
        y: Targets, shape `(n,)`.
        sample_weight: Weights of the mean.
        delta: Of the Huber loss.

    Returns:
        Shape `(rounds,)`. For "squared" it is half of the mean squared error.

    Raises:
        ValueError: A shape does not fit, or a label is no class of the model.
        TypeError: The data are no real numbers, or labels no integers.

    Example:
        >>> import jax
        >>> from mlnotes_jax.trees import boosting
        >>> x, y = [[0.0], [1.0]], [0.0, 1.0]
        >>> model = boosting.fit(
        ...     jax.random.key(0), x, y, num_trees=2, learning_rate=0.5, max_depth=1, l2=0.0
        ... )
        >>> boosting.staged_loss(model, x, y).tolist()
        [0.03125, 0.0078125]
    """
    rows = _rows(model, x)
    target, weight = _targets(y, sample_weight, rows, model.loss, len(model.base))
    size = _number("delta", delta, rows.dtype, _checks.positive)
    return _staged_loss(model, rows, target, weight, size)


def derivatives(
    loss: Loss,
    scores: Float[ArrayLike, " n"] | Float[ArrayLike, "n k"],
    y: Float[ArrayLike, " n"] | Int[ArrayLike, " n"],
    *,
    delta: Float[ArrayLike, ""] = 1.0,
) -> tuple[Array, Array]:
    r"""What a tree is fitted to: the derivatives of the loss of each row by its scores.

    $g = \partial \ell / \partial s$ and $h = \partial^2 \ell / \partial s^2$ where the loss bends.
    "absolute" does not, and "huber" not beyond `delta`: there $h = 1$, which bounds the second
    derivative of "huber" from above, so that a step never goes too far. With "absolute" the values
    of the leaves are medians, and $h$ only serves to find splits.

    Args:
        loss: As in `fit`.
        scores: Shape `(n,)`; `(n, k)` for "softmax".
        y: Targets, shape `(n,)`.
        delta: Of the Huber loss.

    Returns:
        g and h, in the shape of `scores`.

    Raises:
        ValueError: A shape does not fit, or there is no such loss.

    Example:
        >>> from mlnotes_jax.trees import boosting
        >>> g, h = boosting.derivatives("logistic", [0.0, 0.0], [0, 1])
        >>> g.tolist(), h.tolist()
        ([0.5, -0.5], [0.25, 0.25])

    Reference:
        Friedman (2001), section 4.
    """
    _checks.one_of("loss", loss, _LOSSES)
    array = _checks.floating("scores", scores, ndim=2 if loss == "softmax" else 1)
    outputs = array.shape[1] if loss == "softmax" else 1
    target, _ = _targets(y, None, array, loss, outputs)
    size = _number("delta", delta, array.dtype, _checks.positive)
    stacked = array.T if loss == "softmax" else array[None]
    first, second = _rounds.derivatives(loss, stacked, target, size)
    return (first.T, second.T) if loss == "softmax" else (first[0], second[0])


def importance(model: Boosting) -> Float[Array, " d"]:
    """How much of what all splits gained each column gained.

    Args:
        model: A fitted model.

    Returns:
        Shares with sum one, shape `(d,)`; zeros if no tree asks anything.

    Example:
        >>> import jax
        >>> from mlnotes_jax.trees import boosting
        >>> x, y = [[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]], [0.0, 1.0, 2.0]
        >>> boosting.importance(boosting.fit(jax.random.key(0), x, y)).tolist()
        [1.0, 0.0]
    """
    return _importance(model)


# --- What a fit does ------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="plan")
def _fit(
    key: Array,
    bins: _bins.Bins,
    rows: Array,
    target: Array,
    weight: Array | None,
    held_out: tuple[Array, Array, Array | None] | None,
    steps: _rounds.Steps,
    plan: _rounds.Plan,
) -> Boosting:
    counted = jnp.ones(len(target), rows.dtype) if weight is None else weight
    base = _rounds.start(plan.loss, target, counted, plan.outputs)
    data = _rounds.Data(_bins.apply_by_feature(bins, rows), target, weight)
    test = None
    if held_out is not None:
        test = _rounds.Data(_bins.apply_by_feature(bins, held_out[0]), *held_out[1:])
    # A batch of fits runs one after the other: a batched histogram would be ten times slower.
    run = jax.custom_batching.sequential_vmap(functools.partial(_rounds.boost, plan=plan))
    trees, found = run(key, base, data, test, steps)
    asked = jnp.maximum(trees.feature, 0)
    edges = jnp.pad(bins.edges, ((0, 0), (0, 1)), constant_values=jnp.inf)
    threshold = edges[asked, jnp.minimum(trees.cut, edges.shape[1] - 1)]
    no_threshold = trees.feature < 0
    if bins.categorical:
        no_threshold |= _is_category(asked, bins.categorical, rows.shape[1])
    return Boosting(
        base=base,
        feature=trees.feature,
        threshold=jnp.where(no_threshold, jnp.nan, threshold),
        missing_left=trees.missing_left,
        left=trees.left[..., : plan.options.num_bins],
        gain=trees.gain,
        weight=trees.weight,
        children=trees.children,
        value=trees.value,
        num_trees=found.best,
        held_out_loss=found.loss,
        loss=plan.loss,
        categorical=bins.categorical,
        num_features=rows.shape[1],
    )


def _is_category(feature: Array, categorical: tuple[int, ...], d: int) -> Array:
    kinds = np.zeros(d, bool)
    kinds[list(categorical)] = True
    return jnp.asarray(kinds)[feature]


# --- What a model says ----------------------------------------------------------------------------


def _tree_scores(model: Boosting, x: Array) -> Any:
    """A function of the trees of one round: what they add, shape `(k, n)`."""
    n, d = x.shape
    flat = x.reshape(-1)
    start = jnp.arange(n, dtype=jnp.int32) * d
    missing = model.left.shape[-1] - 1

    def one(tree: tuple[Array, ...]) -> Array:
        feature, threshold, missing_left, left, children, value = tree
        children = children.reshape(-1)

        def step(node: Array) -> Array:
            at = jnp.maximum(node, 0)
            asked = feature[at]
            number = flat[start + jnp.maximum(asked, 0)]
            right = jnp.where(jnp.isnan(number), ~missing_left[at], number > threshold[at])
            if model.categorical:
                code = jnp.ceil(number - 0.5)
                known = (number >= 0) & (code < missing)
                code = jnp.where(known, code, missing).astype(jnp.int32)
                kind = _is_category(jnp.maximum(asked, 0), model.categorical, d)
                right = jnp.where(kind, ~left[at, code], right)
            below = children[2 * at + (right & (asked >= 0)).astype(jnp.int32)]
            return jnp.where(node >= 0, below, node)

        node = lax.while_loop(lambda node: jnp.any(node >= 0), step, jnp.zeros(n, jnp.int32))
        return value[-1 - node]

    return lambda trees: lax.map(one, trees)


def _stack(model: Boosting) -> tuple[Array, ...]:
    asked = model.feature, model.threshold, model.missing_left, model.left
    return *asked, model.children, model.value


@jax.jit
def _scores(model: Boosting, x: Array) -> Array:
    added = _tree_scores(model, x)
    start = jnp.broadcast_to(model.base[:, None], (len(model.base), len(x)))
    return lax.scan(lambda sums, trees: (sums + added(trees), None), start, _stack(model))[0]


@jax.jit
def _staged(model: Boosting, x: Array) -> Array:
    added = _tree_scores(model, x)

    def step(sums: Array, trees: tuple[Array, ...]) -> tuple[Array, Array]:
        sums = sums + added(trees)
        return sums, sums

    start = jnp.broadcast_to(model.base[:, None], (len(model.base), len(x)))
    return lax.scan(step, start, _stack(model))[1]


@jax.jit
def _staged_loss(model: Boosting, x: Array, y: Array, weight: Array | None, delta: Array) -> Array:
    added = _tree_scores(model, x)

    def step(sums: Array, trees: tuple[Array, ...]) -> tuple[Array, Array]:
        sums = sums + added(trees)
        return sums, _rounds.mean(_rounds.loss_of(model.loss, sums, y, delta), weight)

    start = jnp.broadcast_to(model.base[:, None], (len(model.base), len(x)))
    return lax.scan(step, start, _stack(model))[1]


@functools.partial(jax.jit, static_argnames="softmax")
def _turned(scores: Array, softmax: bool) -> Array:
    return jnp.moveaxis(scores, -2, -1) if softmax else scores[..., 0, :]


def _shaped(model: Boosting, scores: Array) -> Array:
    return _turned(scores, model.loss == "softmax")


@jax.jit
def _classes(scores: Array) -> Array:
    if scores.ndim == 1:
        return jnp.where(jnp.isnan(scores), -1, (scores > 0).astype(jnp.int32))
    best = scores.argmax(axis=-1).astype(jnp.int32)
    return jnp.where(jnp.isnan(scores).any(axis=-1), -1, best)


@jax.jit
def _probabilities(scores: Array) -> Array:
    if scores.ndim == 1:
        return jnp.stack([jax.nn.sigmoid(-scores), jax.nn.sigmoid(scores)], axis=-1)
    return jax.nn.softmax(scores, axis=-1)


@jax.jit
def _importance(model: Boosting) -> Array:
    gains = jnp.zeros(model.num_features, model.gain.dtype)
    gains = gains.at[jnp.maximum(model.feature, 0)].add(model.gain)
    total = gains.sum()
    return jnp.where(total > 0, gains / jnp.where(total > 0, total, 1), 0)


# --- What comes in --------------------------------------------------------------------------------


def _number(name: str, value: ArrayLike, dtype: Any, check: Any) -> Array:
    check(name, value)
    return _checks.floating(name, value, ndim=0).astype(dtype)


def _share(name: str, value: ArrayLike, dtype: Any) -> Array | None:
    """None where all are taken: then nothing needs to be drawn."""
    array = _number(name, value, dtype, _checks.positive)
    _checks.in_range(name, value, 0, 1)
    whole = _checks.is_concrete(value) and float(np.asarray(value)) == 1
    return None if whole else array


def _counted(sample_weight: ArrayLike | None, n: int) -> np.ndarray | None:
    """Which rows have weight, where that is known."""
    if sample_weight is None:
        return np.ones(n, bool)
    return np.asarray(sample_weight) != 0 if _checks.is_concrete(sample_weight) else None


def _training(
    x: ArrayLike,
    y: ArrayLike,
    sample_weight: ArrayLike | None,
    loss: str,
    num_classes: int | None,
    missing: bool,
) -> tuple[Array, Array, Array, int]:
    """Rows in at least float32, targets, weights, and scores of a row."""
    rows = _checks.floating("x", x, ndim=2)
    _checks.not_empty("x", rows)
    rows = rows.astype(jnp.float32) if jnp.finfo(rows.dtype).bits < 32 else rows
    counted = _counted(sample_weight, len(rows))
    if loss == "softmax" and num_classes is None:
        if not _checks.is_concrete(y) or counted is None:
            raise ValueError("num_classes must be given where y or sample_weight is traced")
        labels = np.asarray(_checks.integer("y", y, ndim=1))
        kept = labels[counted] if labels.shape == counted.shape else labels
        num_classes = max(int(kept.max(initial=0)) + 1, 1)
    if loss == "logistic" and num_classes not in (None, 2):
        raise ValueError(f"num_classes must be 2 for loss 'logistic', got {num_classes}")
    if loss == "softmax":
        _checks.positive_int("num_classes", num_classes)
    outputs = int(num_classes or 1) if loss == "softmax" else 1
    target, weight = _targets(y, sample_weight, rows, loss, outputs)
    if counted is not None:
        if not counted.any():
            raise ValueError("sample_weight must be positive for at least one row")
        _check_rows("x", x, counted, missing)
    weight = jnp.ones(len(rows), rows.dtype) if weight is None else weight
    return rows, target, weight, outputs


def _targets(
    y: ArrayLike, sample_weight: ArrayLike | None, rows: Array, loss: str, outputs: int
) -> tuple[Array, Array | None]:
    """Numbers in the dtype of the rows, or classes; and weights, if there are any."""
    classes = loss in _CLASSIFIERS
    target = _checks.integer("y", y, ndim=1) if classes else _checks.floating("y", y, ndim=1)
    target = target.astype(jnp.int32 if classes else rows.dtype)
    _checks.same_length(x=rows, y=target)
    weight = None
    if sample_weight is not None:
        weight = _checks.floating("sample_weight", sample_weight, ndim=1).astype(rows.dtype)
        _checks.same_length(x=rows, sample_weight=weight)
        given: Any = sample_weight  # inside of `jit`, an array made of it would be traced
        _checks.finite("sample_weight", given)
        _checks.not_negative("sample_weight", given)
    counted = _counted(sample_weight, len(rows))
    if counted is not None and _checks.is_concrete(y):
        if classes:
            _checks.class_labels(
                "y", y, max(outputs, 2) if loss == "logistic" else outputs, counted=counted
            )
        else:
            kept: Any = np.where(counted, np.asarray(y), 0)
            _checks.finite("y", kept)
    return target, weight


def _check_rows(name: str, x: ArrayLike, counted: np.ndarray, missing: bool) -> None:
    if not _checks.is_concrete(x):
        return
    values: Any = np.where(counted[:, None], np.asarray(x), 0)
    if missing:
        values = np.where(np.isnan(values), 0, values)
    try:
        _checks.finite(name, values)
    except ValueError as error:
        hint = "; pass missing=True for rows with missing values" if np.isnan(values).any() else ""
        raise ValueError(f"{error}{hint}") from None


def _check_categories(x: ArrayLike, sample_weight: ArrayLike | None, bins: _bins.Bins) -> None:
    counted = _counted(sample_weight, np.shape(x)[0])
    if not _checks.is_concrete(x) or counted is None:
        return
    for j in bins.categorical:
        column = np.asarray(x)[:, j]
        fine = (column >= 0) & (column < bins.missing) & (column == np.floor(column))
        bad = np.flatnonzero(~fine & ~np.isnan(column.astype(float)) & counted)
        if len(bad):
            raise ValueError(
                f"x must hold categories 0..{bins.missing - 1} in column {j}, got "
                f"{column[bad[0]]} in row {bad[0]}"
            )


def _columns(categorical: Sequence[int], d: int) -> tuple[int, ...]:
    for j in categorical:
        if isinstance(j, bool) or not isinstance(j, int | np.integer) or not 0 <= j < d:
            raise ValueError(f"categorical must name columns 0..{d - 1}, got {j!r}")
    return tuple(sorted({int(j) for j in categorical}))


def _monotone(
    monotone: Sequence[int] | None, categorical: tuple[int, ...], d: int, loss: str
) -> tuple[int, ...]:
    if monotone is None:
        return ()
    signs = tuple(monotone)
    if len(signs) != d or any(sign not in (-1, 0, 1) for sign in signs):
        raise ValueError(f"monotone must be -1, 0 or 1 for each of {d} columns, got {signs}")
    if loss == "softmax":
        raise ValueError("monotone must be None for loss 'softmax': its scores are not ordered")
    for j in categorical:
        if signs[j]:
            raise ValueError(f"monotone must be 0 for the categorical column {j}, got {signs[j]}")
    return tuple(int(sign) for sign in signs) if any(signs) else ()


def _check_size(d: int, trees: int, options: _histogram.Options) -> None:
    """Say before it is tried what would not fit."""
    by_leaf = options.max_leaves is not None
    name = "max_leaves" if by_leaf else "max_depth"
    leaves = options.max_leaves if by_leaf else 2 ** (options.max_depth or 0)
    assert leaves is not None
    histogram = 8 * d * options.num_bins * leaves
    stored = trees * leaves * (30 + (options.num_bins if options.categorical else 0))
    for what, size in (("histograms", histogram), ("trees", stored)):
        if size > _MOST_BYTES:
            raise ValueError(
                f"{name}={getattr(options, name)} needs {what} of {size / 2**30:.3g} GiB for "
                f"{d} columns, {options.num_bins} bins and {trees} trees; at most "
                f"{_MOST_BYTES / 2**30:g} GiB are allowed"
            )


def _held_out(
    held_out: tuple[ArrayLike, ...], d: int, dtype: Any, outputs: int, loss: str, missing: bool
) -> tuple[Array, Array, Array | None]:
    if not isinstance(held_out, tuple | list) or len(held_out) not in (2, 3):
        raise ValueError("held_out must be (x, y) or (x, y, sample_weight)")
    x, y = held_out[:2]
    sample_weight = held_out[2] if len(held_out) == 3 else None
    rows = _checks.floating("held_out x", x, ndim=2)
    _checks.not_empty("held_out x", rows)
    if rows.shape[1] != d:
        raise ValueError(f"held_out x must have {d} columns, got shape {rows.shape}")
    target, weight = _targets(y, sample_weight, rows.astype(dtype), loss, outputs)
    counted = _counted(sample_weight, len(rows))
    if counted is not None:
        _check_rows("held_out x", x, counted, missing)
    return rows.astype(dtype), target, weight


def _rows(model: Boosting, x: ArrayLike) -> Array:
    array = _checks.floating("x", x, ndim=2)
    if array.shape[1] != model.num_features:
        raise ValueError(f"x must have {model.num_features} columns, got shape {array.shape}")
    return array.astype(model.base.dtype)
