r"""Probabilities from the scores of machines: Platt scaling, cross-fitting, pairwise coupling.

A score $f$ of a machine becomes a probability by the best sigmoid,

$$ P(y = 1 \mid f) = \sigma(a f + b), \qquad \sigma(z) = \frac{1}{1 + e^{-z}}, $$

fitted to scores of rows that the machine has not seen. Machines of pairs of classes are coupled
into one distribution.

Reference: Platt, "Probabilistic outputs for support vector machines" (1999); Lin, Lin and Weng, "A
note on Platt's probabilistic outputs for support vector machines" (2007); Wu, Lin and Weng,
"Probability estimates for multi-class classification by pairwise coupling" (2004), section 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, Num

from mlnotes_jax import _checks
from mlnotes_jax.generalization._folds import deal
from mlnotes_jax.svm import _linear

__all__ = ["Calibrated", "Sigmoid", "calibrate", "couple", "platt", "predict_proba"]

# Pairwise probabilities are kept this far from 0 and 1, as in libsvm: coupling needs both r_ij and
# r_ji positive to have one answer.
_EDGE = 1e-7


class Sigmoid(NamedTuple):
    r"""A fitted sigmoid, $\sigma(a f + b)$; or many, with leading axes.

    Attributes:
        slope: $a$, shape `(...)`; positive where a larger score speaks for the class.
        offset: $b$, shape `(...)`.
        converged: Whether Newton's method ended at the minimum, shape `(...)`.
    """

    slope: Float[Array, "..."]
    offset: Float[Array, "..."]
    converged: Bool[Array, "..."]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["model", "sigmoid", "scores", "fold", "converged"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Calibrated:
    """A machine that answers with probabilities.

    Attributes:
        model: The machine, fitted to all rows.
        sigmoid: One sigmoid for each of its binary machines, fields of shape `(machines,)`.
        scores: What the sigmoids were fitted to: raw machine values of each row, from a machine
            that did not see the row, shape `(n, machines)`.
        fold: In which fold each row was left out, shape `(n,)`.
        converged: Whether the machine of every fold, the final one and the sigmoid all converged,
            shape `(machines,)`.
    """

    model: Any
    sigmoid: Sigmoid
    scores: Float[Array, "n machines"]
    fold: Int[Array, " n"]
    converged: Bool[Array, " machines"]


def platt(
    scores: Float[ArrayLike, " n"],
    y: Num[ArrayLike, " n"],
    sample_weight: Num[ArrayLike, " n"] | None = None,
) -> Sigmoid:
    r"""Fit the sigmoid that turns scores into probabilities.

    Minimises the weighted cross-entropy

    $$ \sum_i s_i \left[ \log(1 + e^{z_i}) - t_i z_i \right], \qquad z_i = a f_i + b, $$

    towards targets that are not quite 0 and 1: $t_i = \frac{N_+ + 1}{N_+ + 2}$ for the class and
    $\frac{1}{N_- + 2}$ for the rest, with $N_\pm$ the sums of weights. They make the minimum finite
    even where scores separate the classes, and are what Laplace's rule of succession predicts. The
    problem is convex; Newton's method with backtracking solves it, on standardised scores.

    Args:
        scores: $f_i$, shape `(n,)`; best of rows that the machine has not seen.
        y: Whether a row is of the class, 0 / 1 or a mask, shape `(n,)`.
        sample_weight: $s_i \ge 0$, shape `(n,)`; rows of weight 0 are not looked at. All ones by
            default.

    Returns:
        Slope, offset, and whether Newton's method converged, in the dtype of the scores, at least
        float32. With one class only, or equal scores, the slope is 0 and the sigmoid answers the
        mean target.

    Raises:
        ValueError: Shapes do not fit, data are empty, not finite or no 0 / 1, or a weight is
            negative.
        TypeError: An argument is not of numbers.

    Example:
        >>> from mlnotes_jax.svm import classifier
        >>> fitted = classifier.platt([-2.0, -1.0, 1.0, 2.0], [0, 0, 1, 1])
        >>> bool(fitted.slope > 0), abs(round(float(fitted.offset), 4))
        (True, 0.0)

    Reference:
        Lin, Lin and Weng, "A note on Platt's probabilistic outputs for support vector machines"
        (2007).

    Note:
        Platt writes $1 / (1 + e^{A f + B})$: $A = -a$ and $B = -b$. scikit-learn's
        `CalibratedClassifierCV(method="sigmoid")` minimises the same sum.
    """
    f = _wide(_checks.floating("scores", scores, ndim=1))
    labels = jnp.asarray(y)
    labels = labels.astype(jnp.int32) if labels.dtype == jnp.bool_ else labels
    labels = _checks.integer("y", labels, ndim=1)
    weight = _weights(sample_weight, f.shape[0], f.dtype)
    _checks.same_length(scores=f, y=labels, sample_weight=weight)
    _checks.not_empty("scores", f)
    if _checks.is_concrete((f, labels, weight)):
        counted = np.asarray(weight) > 0
        _checks.finite("scores", jnp.where(counted, f, 0))
        _checks.class_labels("y", labels, 2, counted=counted)
        if not counted.any():
            raise ValueError("sample_weight must not be zero everywhere")
    column = jnp.ones((f.shape[0], 1), bool)
    found = _sigmoids(f[:, None], (labels == 1)[:, None], column, weight)
    return Sigmoid(*(field[0] for field in found))


def calibrate(
    key: Key[Array, ""],
    x: Num[ArrayLike, "n ..."],
    y: Int[ArrayLike, " n"],
    *,
    fit: Callable[..., Any],
    num_folds: int = 5,
    sample_weight: Num[ArrayLike, " n"] | None = None,
) -> Calibrated:
    r"""Fit a machine and the sigmoids that turn its scores into probabilities, by cross-fitting.

    The scores of rows that a machine was trained on are no fair sample: it has pushed them out of
    its margin. So rows are divided into folds, each with its share of every class. A machine that
    is fitted without a fold (its rows have weight 0) scores it. The sigmoids are fitted to these
    scores, one for each binary machine and on the rows of its classes. The machine that answers in
    the end is fitted to all rows.

    Args:
        key: Random key; draws the folds.
        x: Rows, shape `(n, d)`; or what `fit` takes, such as a Gram matrix of shape `(n, n)`.
        y: Classes, shape `(n,)`; each that occurs needs two rows of positive weight.
        fit: Called as `fit(x, y, sample_weight=weight)`; returns what the fits of this module
            return: `functools.partial(classifier.fit, kernel=..., C=..., num_classes=...)`, or
            the same of `classifier.fit_linear`. A fold is left out by weights of 0, so that
            `gamma="scale"` is resolved from the other rows alone.
        num_folds: How many folds, at least 2; static.
        sample_weight: Weight of each row, shape `(n,)`; weighs the sigmoids, too.

    Returns:
        The machine with its sigmoids; ask it by `predict_proba`. Called outside of a transformation
        the folds run one after the other through one compiled `fit`; under `jit` they are one loop.

    Raises:
        ValueError: Shapes do not fit, a class has only one row, or `fit` raises it.
        TypeError: `fit` cannot be called, `y` are not integers, or `num_folds` is no integer.

    Example:
        >>> import functools, jax
        >>> from mlnotes_jax.data import datasets
        >>> from mlnotes_jax.svm import classifier, kernels
        >>> iris = datasets.load("iris")
        >>> fit = functools.partial(classifier.fit, kernel=kernels.linear(), num_classes=3)
        >>> model = classifier.calibrate(jax.random.key(0), iris.x, iris.y, fit=fit)
        >>> classifier.predict_proba(model, iris.x[:1]).argmax(axis=1).tolist()
        [0]

    Reference:
        Platt, "Probabilistic outputs for support vector machines" (1999), section 2.

    Note:
        `SVC(probability=True)` of scikit-learn does the same with five folds of libsvm's own; its
        `CalibratedClassifierCV` averages the machines of the folds instead, unless
        `ensemble=False`.
    """
    if not callable(fit):
        raise TypeError(f"fit must be callable as fit(x, y, sample_weight=...), got {fit!r}")
    _checks.positive_int("num_folds", num_folds, least=2)
    rows = jnp.asarray(x)
    classes = _checks.integer("y", y, ndim=1)
    _checks.not_empty("y", classes)
    floating = jnp.issubdtype(rows.dtype, jnp.floating)
    dtype = _wide(rows).dtype if floating else jnp.result_type(float)
    weight = _weights(sample_weight, classes.shape[0], dtype)
    if rows.ndim == 0 or rows.shape[0] != classes.shape[0]:
        raise ValueError(f"x and y must have as many rows, got x {rows.shape}, y {classes.shape}")
    _checks.same_length(y=classes, sample_weight=weight)
    if _checks.is_concrete((classes, weight)):
        found, counts = np.unique(np.asarray(classes)[np.asarray(weight) > 0], return_counts=True)
        if len(found) and counts.min() < 2:
            raise ValueError(
                "y must have at least two rows of each class, so that one can be left out; class "
                f"{found[counts.argmin()]} has one"
            )
    members, fold = _folds(key, classes, weight, num_folds)
    model, scores, converged = _cross_fit(fit, rows, classes, weight, members)
    positive, counted = _roles(model, classes)
    sigmoid = _sigmoids(scores, positive, counted, weight)
    return Calibrated(model, sigmoid, scores, fold, converged & sigmoid.converged)


def predict_proba(model: Calibrated, x: Num[ArrayLike, "m ..."]) -> Float[Array, "m k"]:
    r"""Probabilities of all classes.

    Two classes: the sigmoid of the score. One-vs-one: the sigmoids are probabilities $r_{ij}$ of
    class $i$ against class $j$, which `couple` turns into one distribution. One-vs-rest: the
    sigmoids, divided by their sum.

    Args:
        model: From `calibrate`.
        x: Rows as for the machine itself, shape `(m, d)`.

    Returns:
        Shape `(m, k)`, each row with sum 1. The most probable class is mostly, not always, that of
        `predict`: a vote and a probability are different rules.

    Raises:
        ValueError: As for `decision_function`.

    Example:
        >>> import functools, jax
        >>> from mlnotes_jax.svm import classifier, kernels
        >>> x, y = [[-3.0], [-2.0], [-1.0], [1.0], [2.0], [3.0]], [0, 0, 0, 1, 1, 1]
        >>> fit = functools.partial(classifier.fit, kernel=kernels.linear(), num_classes=2)
        >>> model = classifier.calibrate(jax.random.key(0), x, y, fit=fit, num_folds=3)
        >>> bool(classifier.predict_proba(model, [[2.5]])[0, 1] > 0.7)
        True

    Reference:
        Wu, Lin and Weng, "Probability estimates for multi-class classification by pairwise
        coupling" (2004).
    """
    if not isinstance(model, Calibrated):
        raise TypeError(f"model must come from calibrate, got {type(model).__name__}")
    scores = _machines(model.model, x)
    machine = model.model
    return _probabilities(scores, model.sigmoid, machine.num_classes, _one_vs_one(machine))


@jax.jit
def couple(pairwise: Float[ArrayLike, "... k k"]) -> Float[Array, "... k"]:
    r"""Couple probabilities of pairs of classes into one distribution.

    $r_{ij}$ says how probable class $i$ is if it is $i$ or $j$: if all were right, $r_{ji} p_i =
    r_{ij} p_j$. The answer is the best compromise,

    $$ \min_p \tfrac12 \sum_i \sum_{j \ne i} (r_{ji} p_i - r_{ij} p_j)^2 = p^\top Q p
       \quad \text{with} \quad \sum_i p_i = 1, $$

    $Q_{ii} = \sum_{j \ne i} r_{ji}^2$, $Q_{ij} = -r_{ji} r_{ij}$. It is positive by itself, and
    proportional to the solution of $(Q + e e^\top)\, p = e$ with $e = (1, \dots, 1)$.

    Args:
        pairwise: $r_{ij}$, with $r_{ij} + r_{ji} = 1$; the diagonal is not looked at. Values nearer
            to 0 or 1 than 1e-7 are moved there, as libsvm does.

    Returns:
        Probabilities, each row with sum 1.

    Example:
        >>> from mlnotes_jax.svm import classifier
        >>> r = [[0.0, 0.75, 0.6], [0.25, 0.0, 1 / 3], [0.4, 2 / 3, 0.0]]  # of (.5, .1667, .3333)
        >>> [round(float(p), 4) for p in classifier.couple(r)]
        [0.5, 0.1667, 0.3333]

    Reference:
        Wu, Lin and Weng (2004), section 4.2; libsvm iterates to 0.005 / k, this solves.
    """
    r = _wide(_checks.floating("pairwise", pairwise))
    if r.ndim < 2 or r.shape[-1] != r.shape[-2]:
        raise ValueError(f"pairwise must be square, got shape {r.shape}")
    num_classes = r.shape[-1]
    r = jnp.clip(r, _EDGE, 1 - _EDGE)
    same = jnp.broadcast_to(jnp.eye(num_classes, dtype=bool), r.shape)
    r = jnp.where(same, 0, r)
    turned = jnp.swapaxes(r, -1, -2)
    diagonal = jnp.square(r).sum(axis=-2)  # column i: the sum of r_ji squared over j
    q = jnp.where(same, jnp.broadcast_to(diagonal[..., None], r.shape), -r * turned)
    system = jnp.concatenate([q + 1, jnp.ones_like(r[..., :1])], axis=-1)

    # Gauss-Jordan without pivoting, safe as Q + ee' is positive definite; all rows at once, and no
    # call of LAPACK for each.
    def eliminate(j: Array, a: Array) -> Array:
        pivot = jax.lax.dynamic_index_in_dim(a, j, axis=-2)
        pivot = pivot / jax.lax.dynamic_index_in_dim(pivot, j, axis=-1)
        column = jax.lax.dynamic_index_in_dim(a, j, axis=-1)
        reduced = a - column * pivot
        return jax.lax.dynamic_update_index_in_dim(reduced, pivot, j, axis=reduced.ndim - 2)

    system = jax.lax.fori_loop(0, num_classes, eliminate, system)
    p = jnp.maximum(system[..., -1], 0)  # rounding only: the exact answer is positive
    return p / p.sum(axis=-1, keepdims=True)


# --- Private --------------------------------------------------------------------------------------


def _wide(array: Array) -> Array:
    return array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array


def _weights(sample_weight: Any, num_rows: int, dtype: Any) -> Array:
    if sample_weight is None:
        return jnp.ones(num_rows, dtype)
    weight = _checks.floating("sample_weight", sample_weight, ndim=1)
    _checks.finite("sample_weight", weight)
    _checks.not_negative("sample_weight", weight)
    return weight.astype(dtype)


def _machines(model: Any, x: Any) -> Array:
    """Raw scores of the binary machines of any classifier of this chapter, shape (m, machines)."""
    if isinstance(model, _linear.LinearClassifier):
        scores = _linear.decision_function(model, x)
        return scores[:, None] if scores.ndim == 1 else scores
    # This module's functions are part of the public module that holds the machines: import late.
    from mlnotes_jax.svm import classifier

    return classifier.machines(model, x)


def _one_vs_one(model: Any) -> bool:
    return getattr(model, "multiclass", "one_vs_rest") == "one_vs_one"


@partial(jax.jit, static_argnames="num_folds")
def _folds(key: Array, y: Array, weight: Array, num_folds: int) -> tuple[Array, Array]:
    """Divide rows at random, classes in proportion: rows of each fold, and the fold of each row.

    In an order that goes class by class every `num_folds`-th row belongs to one fold: of each class
    and of all rows together it gets its share, rounded down or up. The rows of a fold are padded
    by `n`, a row that does not exist.
    """
    n = y.shape[0]
    group = jnp.where(weight > 0, y.astype(jnp.int32), jnp.iinfo(jnp.int32).max)  # idle rows last
    order, fold = deal(key, group, num_folds)
    padding = jnp.full(-n % num_folds, n, jnp.int32)
    return jnp.concatenate([order, padding]).reshape(-1, num_folds).T, fold


def _cross_fit(
    fit: Callable[..., Any], x: Array, y: Array, weight: Array, members: Array
) -> tuple[Any, Array, Array]:
    """The machine of all rows, scores of each row by a machine that did not see it, success."""

    def without(rows: Array) -> Array:
        return weight.at[rows].set(0, mode="drop")

    def ask(model: Any, rows: Array) -> Array:
        return _machines(model, jnp.take(x, rows, axis=0, mode="clip"))

    def one(rows: Array) -> tuple[Array, Array]:
        model = fit(x, y, sample_weight=without(rows))
        return ask(model, rows), model.converged

    final = fit(x, y, sample_weight=weight)
    if _checks.is_concrete((x, y, weight, members)):
        parts = [one(rows) for rows in members]
        scores, converged = (jnp.stack(part) for part in zip(*parts, strict=True))
    else:
        scores, converged = jax.lax.map(one, members)
    num_machines = scores.shape[-1]
    scattered = jnp.zeros((x.shape[0], num_machines), scores.dtype)
    scattered = scattered.at[members.ravel()].set(scores.reshape(-1, num_machines), mode="drop")
    return final, scattered, converged.all(axis=0) & final.converged


def _pairs(num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """First and second class of each machine of one-vs-one."""
    return np.triu_indices(num_classes, 1)


def _roles(model: Any, y: Array) -> tuple[Array, Array]:
    """For each row and machine: whether the row is positive, and whether it counts."""
    if model.num_classes == 2:
        return (y == 1)[:, None], jnp.ones((y.shape[0], 1), bool)
    if _one_vs_one(model):
        first, second = (jnp.asarray(c, y.dtype)[None] for c in _pairs(model.num_classes))
        return y[:, None] == first, (y[:, None] == first) | (y[:, None] == second)
    positive = y[:, None] == jnp.arange(model.num_classes, dtype=y.dtype)[None]
    return positive, jnp.ones_like(positive)


@jax.jit
def _sigmoids(scores: Array, positive: Array, counted: Array, weight: Array) -> Sigmoid:
    return jax.vmap(lambda f, up, use: _platt(f, up, jnp.where(use, weight, 0)), in_axes=1)(
        scores, positive, counted
    )


def _platt(f: Array, positive: Array, weight: Array) -> Sigmoid:
    """Newton's method in two unknowns, on standardised scores, with means in place of sums."""
    weight = weight.astype(f.dtype)
    f = jnp.where(weight > 0, f, 0)
    num_positive = jnp.where(positive, weight, 0).sum()
    num_negative = jnp.where(positive, 0, weight).sum()
    share = weight / weight.sum()
    centre = share @ f
    spread = jnp.sqrt(share @ jnp.square(f - centre))
    # Scores that are equal but for rounding carry nothing.
    flat = spread <= 4 * jnp.finfo(f.dtype).eps * jnp.abs(f).max()
    spread = jnp.where(flat, 1, spread)
    f = jnp.where(flat, 0, (f - centre) / spread)
    # Both t and 1 - t, so that neither is a difference of nearly equal numbers.
    target = jnp.where(positive, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))
    rest = jnp.where(positive, 1 / (num_positive + 2), (num_negative + 1) / (num_negative + 2))
    start = jnp.log((num_positive + 1) / (num_negative + 1))
    slope, offset, converged = _newton(f, share, target, rest, start)
    return Sigmoid(slope / spread, offset - slope * centre / spread, converged)


def _newton(
    f: Array, share: Array, target: Array, rest: Array, start: Array, max_iter: int = 100
) -> tuple[Array, Array, Array]:
    eps = jnp.finfo(f.dtype).eps
    scales = 0.5 ** jnp.arange(16, dtype=f.dtype)

    def loss(a: Array, b: Array) -> Array:
        z = a * f + b  # log(1 + exp z) - t z, without the difference of two large numbers
        flank = jnp.where(z >= 0, rest * z, -target * z)
        return share @ (flank + jnp.log1p(jnp.exp(-jnp.abs(z))))

    def newton(state: tuple) -> tuple:
        a, b, iteration, _ = state
        z = a * f + b
        small = jnp.exp(-jnp.abs(z))
        tail = small / (1 + small)  # the smaller of p and 1 - p
        error = share * jnp.where(z >= 0, rest - tail, tail - target)  # p - t
        curvature = share * tail / (1 + small)  # p (1 - p)
        # Eliminate the offset: about this centre slope and offset do not interact.
        total = curvature.sum()
        centre = curvature @ f / total
        away = f - centre
        second = curvature @ jnp.square(away)
        slope_step = jnp.where(second > 0, -(error @ away) / jnp.where(second > 0, second, 1), 0)
        offset_step = -error.sum() / total - centre * slope_step
        decrement = -(error @ f) * slope_step - error.sum() * offset_step
        done = decrement <= eps
        now = loss(a, b)
        tried = jax.vmap(loss)(a + scales * slope_step, b + scales * offset_step)
        enough = tried <= now - 1e-4 * scales * decrement + 4 * eps * now
        # The last step is a full one: so near the minimum its error is the square of what it was.
        scale = jnp.where(done, 1, jnp.max(jnp.where(enough, scales, scales[-1])))
        return a + scale * slope_step, b + scale * offset_step, iteration + 1, done

    def unfinished(state: tuple) -> Array:
        return ~state[3] & (state[2] < max_iter)

    zero = jnp.zeros_like(start)
    state = (zero, start, jnp.int32(0), jnp.bool_(False))
    a, b, _, done = jax.lax.while_loop(unfinished, newton, state)
    return a, b, done & jnp.isfinite(a) & jnp.isfinite(b)


@partial(jax.jit, static_argnames=("num_classes", "one_vs_one"))
def _probabilities(scores: Array, sigmoid: Sigmoid, num_classes: int, one_vs_one: bool) -> Array:
    z = scores * sigmoid.slope[None] + sigmoid.offset[None]
    if num_classes == 2:
        return jnp.concatenate([jax.nn.sigmoid(-z), jax.nn.sigmoid(z)], axis=1)
    if not one_vs_one:
        # p_c / sum p, from logarithms: all may be too small to be told from 0.
        return jax.nn.softmax(jax.nn.log_sigmoid(z), axis=1)
    first, second = _pairs(num_classes)
    r = jnp.zeros((z.shape[0], num_classes, num_classes), z.dtype)
    r = r.at[:, first, second].set(jax.nn.sigmoid(z))
    r = r.at[:, second, first].set(jax.nn.sigmoid(-z))
    return couple(r)
