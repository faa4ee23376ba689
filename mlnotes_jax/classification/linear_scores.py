r"""Linear scores: a class is the row of a matrix, and two losses judge the same scores.

A classifier gives a row $x$ one score for each class, and chooses the highest:

$$ s = W x + b, \qquad \hat y = \arg\max_j s_j . $$

The multi-class hinge asks that the right class $y$ leads every other by a margin $\Delta$; the
cross-entropy of the softmax asks for a high probability of it:

$$
L_{\text{hinge}} = \sum_{j \ne y} \max(0, \Delta + s_j - s_y), \qquad
L_{\text{softmax}} = -\ln \frac{e^{s_y}}{\sum_j e^{s_j}} .
$$

`fit` minimises the mean of either, plus a penalty of $W$, and says by a duality gap how far from
the minimum it may be.

Reference: Weston and Watkins, *Support Vector Machines for Multi-Class Pattern Recognition* (1999);
Crammer and Singer, *On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines*
(JMLR 2, 2001).
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from mlnotes_jax import _checks
from mlnotes_jax.classification import _common
from mlnotes_jax.foundations import _reduction, losses
from mlnotes_jax.foundations._reduction import Reduction

__all__ = [
    "LinearScores",
    "class_scores",
    "cross_entropy_gradient",
    "decision_function",
    "fit",
    "hinge_gradient",
    "multiclass_hinge",
    "predict",
]

Form = Literal["sum", "max"]
Loss = Literal["hinge", "max_hinge", "cross_entropy"]

# Steps of L-BFGS between two looks at the gap.
_BLOCK = 40


class LinearScores(NamedTuple):
    r"""A linear classifier, and how sure it is that no other is better.

    Attributes:
        coef: $W$, one row for each class, shape `(k, d)`. The rows sum to zero.
        intercept: $b$, shape `(k,)`, with sum zero; $-\infty$ for a class without rows.
        objective: The mean loss plus $\tfrac{\lambda}{2} \|W\|^2$, shape `()`.
        gap: The objective is at most so much above its minimum, shape `()`.
        num_iterations: Steps of L-BFGS, shape `()`.
        converged: Whether `gap` is at most `tol` times `objective`, shape `()`.
    """

    coef: Float[Array, "k d"]
    intercept: Float[Array, " k"]
    objective: Float[Array, ""]
    gap: Float[Array, ""]
    num_iterations: Int[Array, ""]
    converged: Bool[Array, ""]


# --- The losses and their gradients ---------------------------------------------------------------


def multiclass_hinge(
    scores: Float[ArrayLike, "*n k"],
    labels: Int[ArrayLike, "*n"],
    *,
    form: Form = "sum",
    margin: Float[ArrayLike, ""] = 1.0,
    power: int = 1,
    reduction: Reduction = "mean",
    weights: Float[ArrayLike, "..."] | None = None,
    where: Bool[ArrayLike, "..."] | None = None,
) -> Float[Array, "..."]:
    r"""Hinge loss of several classes: the right one is to lead by a margin.

    With the violations $z_j = \Delta + s_j - s_y$ of the wrong classes $j \ne y$,

    $$
    \text{sum: } \ell = \sum_{j \ne y} \max(0, z_j)^p , \qquad
    \text{max: } \ell = \max\Big(0, \max_{j \ne y} z_j\Big)^p .
    $$

    For two classes both are the hinge of $f = s_1 - s_0$. The cross-entropy of the same scores is
    [`losses.softmax_cross_entropy_with_integer_labels`][mlnotes_jax.foundations.losses.softmax_cross_entropy_with_integer_labels].

    Args:
        scores: $s$, shape `(..., k)`, `k` classes last.
        labels: $y$, integers in 0..k-1, shape `(...)`. Under a transformation another label makes
            its loss and gradient NaN. A masked label may be anything.
        form: `"sum"` of Weston and Watkins, or `"max"` of Crammer and Singer; static.
        margin: $\Delta \ge 0$. Traced.
        power: $p$, 1 or 2; static.
        reduction: `"mean"`, `"sum"` or `"none"` over the examples; static.
        weights: Not negative; shape `(...)` or its leading axes.
        where: Which examples count; shape `(...)` or its leading axes.

    Returns:
        The loss, shape `()`, or `(...)` where nothing is reduced, in at least float32.

    Raises:
        ValueError: The shapes do not fit, a concrete label is not a class, or an option or a weight
            is not allowed.
        TypeError: The labels are not integers, the scores are not numeric, or the mask is not
            Boolean.

    Example:
        >>> from mlnotes_jax.classification import linear_scores
        >>> print(linear_scores.multiclass_hinge([3.0, 2.5, -1.0], 1))  # (1 + 3 - 2.5) + 0
        1.5

    Reference: Weston and Watkins (1999); Crammer and Singer (2001).

    Note:
        `torch.nn.functional.multi_margin_loss` divides the sum by the number of classes, the right
        one included. Its `weight` of a class is `weights=weight[labels]` here, but its mean divides
        by the number of rows, ours by the sum of the weights.
    """
    s = _reduction.wide("scores", scores)
    y = _checks.integer("labels", labels)
    kept = _reduction.mask(where, y.shape)
    s, y = _reduction.keep(kept, s), _reduction.keep(kept, y)
    _check_classes(s, y)
    z = _violations(s, y, *_hinge_options(s, form, margin, power))
    return _reduction.reduce(_hinge(z, form, power), reduction, weights, kept)


def hinge_gradient(
    scores: Float[ArrayLike, "*n k"],
    labels: Int[ArrayLike, "*n"],
    *,
    form: Form = "sum",
    margin: Float[ArrayLike, ""] = 1.0,
    power: int = 1,
) -> Float[Array, "*n k"]:
    r"""Gradient of each example's hinge with respect to its scores.

    A wrong class is pushed down by $a_j = p \max(0, z_j)^{p-1} [z_j > 0]$ (form `"max"`: only the
    first of those with the largest $z_j$), and the right one is pushed up by all of it:

    $$ \frac{\partial \ell}{\partial s_j} = a_j \ (j \ne y), \qquad
       \frac{\partial \ell}{\partial s_y} = -\sum_{j \ne y} a_j . $$

    Where $z_j = 0$ there is no gradient, but subgradients; this takes 0, as PyTorch does. With
    respect to the weights the gradient is $\sum_i g_i x_i^\top$, and to the intercept $\sum_i g_i$.

    Args:
        scores: As in `multiclass_hinge`.
        labels: As in `multiclass_hinge`.
        form: As in `multiclass_hinge`.
        margin: As in `multiclass_hinge`.
        power: As in `multiclass_hinge`.

    Returns:
        $g$, shape `(..., k)`, not reduced; each row sums to zero.

    Raises:
        ValueError: As in `multiclass_hinge`.
        TypeError: As in `multiclass_hinge`.

    Example:
        >>> from mlnotes_jax.classification import linear_scores
        >>> print(linear_scores.hinge_gradient([3.0, 2.5, -1.0], 1))
        [ 1. -1.  0.]
    """
    s = _reduction.wide("scores", scores)
    y = _checks.integer("labels", labels)
    _check_classes(s, y)
    z = _violations(s, y, *_hinge_options(s, form, margin, power))
    excess = jax.nn.relu(z)
    push = (z > 0).astype(s.dtype) if power == 1 else 2 * excess
    if form == "max":
        push = jnp.where(_first_largest(excess), push, 0)
    push = jnp.where(jnp.isnan(z), z, push)  # a label that is no class
    return push - jnp.where(_is_own(s, y), push.sum(axis=-1, keepdims=True), 0)


def cross_entropy_gradient(
    scores: Float[ArrayLike, "*n k"], labels: Int[ArrayLike, "*n"]
) -> Float[Array, "*n k"]:
    r"""Gradient of each example's cross-entropy with respect to its scores: $p - e_y$.

    $$ \frac{\partial \ell}{\partial s_j} = p_j - [j = y], \qquad
       p = \operatorname{softmax}(s) . $$

    Every class is pushed, always: a wrong one down by its probability, the right one up by what
    its probability lacks. The entry of $y$ is summed from the others, so that it keeps its digits
    where $p_y$ rounds to 1.

    Args:
        scores: $s$, shape `(..., k)`.
        labels: $y$, integers in 0..k-1, shape `(...)`.

    Returns:
        $g$, shape `(..., k)`, not reduced; each row sums to zero.

    Raises:
        ValueError: The shapes do not fit, or a concrete label is not a class.
        TypeError: The labels are not integers, or the scores are not numeric.

    Example:
        >>> from mlnotes_jax.classification import linear_scores
        >>> print(linear_scores.cross_entropy_gradient([0.0, 0.0], 1))
        [ 0.5 -0.5]
    """
    s = _reduction.wide("scores", scores)
    y = _checks.integer("labels", labels)
    _check_classes(s, y)
    own = _is_own(s, y)
    push = jnp.where(own, 0, jax.nn.softmax(s))
    known = (y >= 0) & (y < s.shape[-1])
    push = push * jnp.where(known, 1, jnp.nan).astype(s.dtype)[..., None]
    return push - jnp.where(own, push.sum(axis=-1, keepdims=True), 0)


def _hinge_options(scores: Array, form: str, margin: ArrayLike, power: int) -> tuple[Array]:
    _checks.one_of("form", form, ("sum", "max"))
    _checks.one_of("power", power, (1, 2))
    width = _checks.floating("margin", margin, ndim=0)
    _checks.not_negative("margin", width)
    return (width.astype(scores.dtype),)


def _check_classes(scores: Array, labels: Array) -> None:
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise ValueError(f"scores must have classes on the last axis, got shape {scores.shape}")
    if labels.shape != scores.shape[:-1]:
        raise ValueError(
            f"labels must have the shape of the scores without the classes, {scores.shape[:-1]}, "
            f"got shape {labels.shape}"
        )
    _checks.class_labels("labels", labels, scores.shape[-1])


def _is_own(scores: Array, labels: Array) -> Array:
    """Whether a score is that of the right class."""
    classes = jnp.arange(scores.shape[-1], dtype=labels.dtype)
    return labels[..., None] == classes.reshape((1,) * labels.ndim + (-1,))


def _violations(scores: Array, labels: Array, margin: Array) -> Array:
    """By how much a wrong class is too high; 0 for the right one, NaN for a label that is none."""
    own = _is_own(scores, labels)
    right = jnp.where(own, scores, 0).sum(axis=-1, keepdims=True)
    right = right + jnp.where(own.any(axis=-1, keepdims=True), 0, jnp.nan).astype(right.dtype)
    return jnp.where(own, 0, margin + scores - right)


def _hinge(z: Array, form: str, power: int) -> Array:
    excess = jax.nn.relu(z)
    if form == "max":  # chosen, not reduced by `max`, which would share the gradient among equals
        excess = jnp.where(_first_largest(excess) | jnp.isnan(excess), excess, 0)
    return (excess if power == 1 else jnp.square(excess)).sum(axis=-1)


def _first_largest(values: Array) -> Array:
    best = values.argmax(axis=-1, keepdims=True)
    places = jnp.arange(values.shape[-1], dtype=best.dtype)
    return best == places.reshape((1,) * (values.ndim - 1) + (-1,))


# --- The fit --------------------------------------------------------------------------------------


def fit(
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"],
    *,
    loss: Loss = "hinge",
    l2: Float[ArrayLike, ""] = 1e-3,
    sample_weight: Float[ArrayLike, " n"] | None = None,
    num_classes: int | None = None,
    fit_intercept: bool = True,
    tol: Float[ArrayLike, ""] = 1e-4,
    max_iter: Int[ArrayLike, ""] = 4000,
) -> LinearScores:
    r"""Fit weights and intercepts: mean loss plus penalty, down to a certified gap.

    $$
    F(W, b) = \frac{\sum_i w_i\, \ell(W x_i + b;\, y_i)}{\sum_i w_i}
    + \frac{\lambda}{2} \|W\|^2 .
    $$

    | `loss` | $\ell$ |
    | --- | --- |
    | `"hinge"` | $\sum_{j \ne y} \max(0, 1 + s_j - s_y)$, of Weston and Watkins |
    | `"max_hinge"` | $\max(0, 1 + \max_{j \ne y} s_j - s_y)$, of Crammer and Singer |
    | `"cross_entropy"` | $-\ln \operatorname{softmax}(s)_y$ |

    L-BFGS of Optax does the steps. A hinge is met by the proximal method of multipliers: it is
    smoothed around a guess of the dual variables, and the guess moves until the solution is that of
    the hinge itself. Works under `jit`, and under `vmap` over `l2` and `sample_weight`.

    Args:
        x: Rows, shape `(n, d)`. Scaled features need fewer steps.
        y: Classes 0..k-1, shape `(n,)`.
        loss: See above; static.
        l2: $\lambda > 0$. $b$ is not penalised. Traced.
        sample_weight: $w_i \ge 0$, shape `(n,)`; zero drops a row, which may then hold anything.
        num_classes: k, static; by default the largest label plus one. Needed where `y` is traced.
            A class without rows gets the intercept $-\infty$ and is never predicted.
        fit_intercept: Whether $b$ is fitted or is 0; static.
        tol: Largest duality gap, relative to the objective. float32 reaches some 1e-5. Traced.
        max_iter: Most steps, rounded up to a multiple of 40. Traced.

    Returns:
        The model, in the dtype of `x` and at least float32; `converged` says whether `tol` was met.

    Raises:
        ValueError: Shapes do not match, data are empty or (where concrete) not finite or no
            classes, or an option is not allowed.
        TypeError: `x` is not real, or `y` are not integers.

    Example:
        >>> from mlnotes_jax.classification import linear_scores
        >>> x, y = [[-2.0], [-1.0], [1.0], [2.0]], [0, 0, 1, 1]
        >>> model = linear_scores.fit(x, y, l2=0.01)
        >>> bool(model.converged), [f"{w:.3f}" for w in model.coef[:, 0]]
        (True, ['-0.500', '0.500'])
        >>> linear_scores.predict(model, [[-0.1], [0.1]]).tolist()
        [0, 1]

    Reference:
        Liu and Nocedal, *On the Limited Memory BFGS Method for Large Scale Optimization* (1989);
        Rockafellar, *Augmented Lagrangians and Applications of the Proximal Point Algorithm in
        Convex Programming* (1976).

    Note:
        With $C = 1 / (\lambda n)$, `sklearn.svm.LinearSVC(multi_class="crammer_singer")` is
        `"max_hinge"`, but penalises the intercept too: append a column of ones and fit none here.
        `LogisticRegression` is `"cross_entropy"`. For two classes the difference of the rows of $W$
        is the answer of
        [`svm.classifier.fit_linear`][mlnotes_jax.svm.classifier.fit_linear] with
        $C = 2 / (\lambda n)$.
    """
    rows, y, weight, k = _common.labelled(x, y, sample_weight, num_classes)
    weight = jnp.ones(len(y), rows.dtype) if weight is None else weight
    _checks.one_of("loss", loss, ("hinge", "max_hinge", "cross_entropy"))
    numbers = {}
    for name, value in (("l2", l2), ("tol", tol)):
        numbers[name] = _checks.floating(name, value, ndim=0).astype(rows.dtype)
        _checks.positive(name, value)
        _checks.finite(name, numbers[name])
    steps = _checks.count("max_iter", max_iter)
    return _fit(rows, y, weight, numbers["l2"], numbers["tol"], steps, loss, k, fit_intercept)


def class_scores(model: LinearScores, x: Float[ArrayLike, "... d"]) -> Float[Array, "... k"]:
    r"""Scores $s = W x + b$ of all classes.

    Args:
        model: A fitted model.
        x: One row or many, shape `(..., d)`.

    Returns:
        Shape `(..., k)`. They are no probabilities: those of a fit by `"cross_entropy"` become some
        by a softmax.

    Raises:
        ValueError: The last axis of `x` is not d.

    Example:
        >>> from mlnotes_jax.classification import linear_scores
        >>> model = linear_scores.fit([[-2.0], [-1.0], [1.0], [2.0]], [0, 0, 1, 1], l2=0.01)
        >>> [f"{score:.2f}" for score in linear_scores.class_scores(model, [3.0])]
        ['-1.50', '1.50']
    """
    array = _checks.floating("x", x)
    d = model.coef.shape[-1]
    if array.shape[-1:] != (d,):
        raise ValueError(f"x must have {d} features in its last axis, got shape {array.shape}")
    return _common.linear(model.coef, model.intercept, array.astype(model.coef.dtype))


def decision_function(
    model: LinearScores, x: Float[ArrayLike, "... d"]
) -> Float[Array, "..."] | Float[Array, "... k"]:
    r"""What the decision rests on: $s_1 - s_0$ of two classes, or all scores of more.

    Args:
        model: A fitted model.
        x: One row or many, shape `(..., d)`.

    Returns:
        For two classes shape `(...)`: positive means class 1. Else shape `(..., k)`.

    Raises:
        ValueError: The last axis of `x` is not d.

    Example:
        >>> from mlnotes_jax.classification import linear_scores
        >>> model = linear_scores.fit([[-2.0], [-1.0], [1.0], [2.0]], [0, 0, 1, 1], l2=0.01)
        >>> print(f"{linear_scores.decision_function(model, [3.0]):.2f}")
        3.00
    """
    scores = class_scores(model, x)
    return scores[..., 1] - scores[..., 0] if scores.shape[-1] == 2 else scores


def predict(model: LinearScores, x: Float[ArrayLike, "... d"]) -> Int[Array, "..."]:
    """The class with the highest score, the first of equals.

    Args:
        model: A fitted model.
        x: One row or many, shape `(..., d)`.

    Returns:
        Classes as int32, shape `(...)`; -1 where a score is no number.

    Raises:
        ValueError: The last axis of `x` is not d.

    Example:
        >>> from mlnotes_jax.classification import linear_scores
        >>> model = linear_scores.fit([[-2.0], [-1.0], [1.0], [2.0]], [0, 0, 1, 1], l2=0.01)
        >>> linear_scores.predict(model, [[-3.0], [3.0]]).tolist()
        [0, 1]
    """
    return _common.best(class_scores(model, x))


class _Rows(NamedTuple):
    """Rows, their shares, and what class is theirs or another's.

    With an intercept, the rows are centred, with a one behind them; else with a zero.
    """

    x: Array
    share: Array
    own: Array
    other: Array


class _Smooth(NamedTuple):
    """How a hinge is smoothed; the solution does not depend on it."""

    centre: Array  # slopes, (n, k)
    width: Array
    kink: Array  # the part of the gap that was due to it


class _State(NamedTuple):
    weights: Array  # (k, d + 1): the intercept, of the centred rows, comes last
    smooth: _Smooth
    objective: Array
    gap: Array
    best: tuple[Array, Array, Array]  # weights, objective and gap
    num_iterations: Array


@functools.partial(jax.jit, static_argnames=("loss", "k", "fit_intercept"))
def _fit(
    x: Array,
    y: Array,
    weight: Array,
    l2: Array,
    tol: Array,
    max_iter: Array,
    loss: str,
    k: int,
    fit_intercept: bool,
) -> LinearScores:
    counted = weight != 0
    x = jnp.where(counted[:, None], x, 0)
    known = (y >= 0) & (y < k)
    # Under a transformation a label that is no class spoils the answer.
    weight = jnp.where(known | ~counted, weight, jnp.nan)
    l2 = jnp.where(l2 > 0, l2, jnp.nan)
    share = weight / weight.sum()
    own = y[:, None] == jnp.arange(k, dtype=y.dtype)[None]
    present = ~(jnp.where(own, share[:, None], 0).sum(axis=0) <= 0)  # NaN is kept
    # Without "highest", a GPU or TPU would multiply with ten bits or fewer.
    with jax.default_matmul_precision("highest"):
        mean = share @ x if fit_intercept else jnp.zeros_like(x[0])
        last = jnp.full_like(x[:, :1], float(fit_intercept))
        z = jnp.concatenate([x - mean[None], last], axis=1)
        found = _minimize(_Rows(z, share, own, present[None] & ~own), l2, tol, max_iter, loss)
        weights, objective, gap = found.best
        coef, intercept = weights[:, :-1], weights[:, -1]
        intercept = intercept - coef @ mean
    level = jnp.where(present, intercept, 0).sum() / present.sum(dtype=x.dtype)
    intercept = jnp.where(present, intercept - level, -jnp.inf)
    return LinearScores(
        coef, intercept, objective, gap, found.num_iterations, _near(gap, objective, tol)
    )


def _near(gap: Array, objective: Array, tol: Array) -> Array:
    return gap <= tol * objective


def _minimize(rows: _Rows, l2: Array, tol: Array, max_iter: Array, loss: str) -> _State:
    optimizer = optax.lbfgs()
    # Narrower, the smoothed hinge would be curved 10 000 times as much as the penalty.
    spread = rows.share @ jnp.square(rows.x - (rows.share @ rows.x)[None]).sum(axis=1)
    widest = jnp.full_like(l2, 0.25)
    narrowest = jnp.minimum(widest, 1e-4 * spread / l2)

    def block(state: _State) -> _State:
        def objective(weights: Array) -> Array:
            values = _values(rows.x @ weights.T, rows, loss, state.smooth)
            return rows.share @ values + l2 * losses.l2_penalty(weights[:, :-1])

        def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            weights, memory = carry
            value, slope = optax.value_and_grad_from_state(objective)(weights, state=memory)
            change, memory = optimizer.update(
                slope, memory, weights, value=value, grad=slope, value_fn=objective
            )
            return (optax.apply_updates(weights, change), memory), None

        # Optax adds integers to floats.
        with jax.numpy_dtype_promotion("standard"):
            start = (state.weights, optimizer.init(state.weights))
            (weights, _), _ = jax.lax.scan(step, start, None, length=_BLOCK)
        push = _pushes(rows.x @ weights.T, rows, loss, state.smooth)
        value, kink, rest = _bound(rows, weights, push, l2, loss)
        gap = kink + rest
        best = jax.tree.map(
            functools.partial(jnp.where, gap < state.best[2]), (weights, value, gap), state.best
        )
        # The smoothed problem is solved well enough once the kink holds most of the gap.
        narrow = jnp.maximum(0.5 * state.smooth.width, narrowest)
        width = jnp.where(kink > 0.5 * state.smooth.kink, narrow, state.smooth.width)
        smooth = jax.tree.map(
            functools.partial(jnp.where, rest <= kink), _Smooth(push, width, kink), state.smooth
        )
        return _State(weights, smooth, value, gap, best, state.num_iterations + _BLOCK)

    def go_on(state: _State) -> Array:
        finite = jnp.isfinite(state.objective)
        far = ~_near(state.gap, state.objective, tol)
        return finite & far & (state.num_iterations < max_iter)

    weights = jnp.zeros((rows.own.shape[1], rows.x.shape[1]), rows.x.dtype)
    push = jnp.zeros_like(rows.own, rows.x.dtype)
    value, _, _ = _bound(rows, weights, push, l2, loss)
    gap = jnp.full_like(value, jnp.inf)
    smooth = _Smooth(push, widest, gap)
    start = _State(weights, smooth, value, gap, (weights, value, gap), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(go_on, block, start)


def _leads(scores: Array, rows: _Rows) -> Array:
    """By how much a wrong class is higher than the right one; 0 where there is nothing to be."""
    right = jnp.where(rows.own, scores, 0).sum(axis=1, keepdims=True)
    return jnp.where(rows.other, scores - right, 0)


def _pushes(scores: Array, rows: _Rows, loss: str, smooth: _Smooth) -> Array:
    """How hard a row pushes each wrong class down: the slopes of the loss, smoothed if a hinge."""
    lead = _leads(scores, rows)
    if loss == "cross_entropy":
        return jnp.where(rows.other, jax.nn.softmax(_among(lead, rows)), 0)
    wish = jnp.where(rows.other, smooth.centre + (1 + lead) / smooth.width, 0)
    return jnp.clip(wish, 0, 1) if loss == "hinge" else _to_corner(wish)


def _values(scores: Array, rows: _Rows, loss: str, smooth: _Smooth) -> Array:
    """The loss of each row, smoothed if a hinge."""
    lead = _leads(scores, rows)
    if loss == "cross_entropy":
        return jax.nn.logsumexp(_among(lead, rows), axis=1)
    # By the envelope theorem the maximiser counts as a constant in the derivative.
    push = jax.lax.stop_gradient(_pushes(scores, rows, loss, smooth))
    away = 0.5 * smooth.width * jnp.square(push - smooth.centre)
    return (push * (1 + lead) - away).sum(axis=1)


def _among(lead: Array, rows: _Rows) -> Array:
    return jnp.where(rows.own | rows.other, lead, -jnp.inf)


def _to_corner(v: Array) -> Array:
    """The nearest point with entries of at least 0 and a sum of at most 1."""
    falling = jnp.sort(v, axis=1, descending=True)
    sizes = jnp.arange(1, v.shape[1] + 1, dtype=jnp.int32).astype(v.dtype)[None]
    excess = ((jnp.cumsum(falling, axis=1) - 1) / sizes).max(axis=1, keepdims=True)
    return jax.nn.relu(v - jax.nn.relu(excess))


def _bound(
    rows: _Rows, weights: Array, push: Array, l2: Array, loss: str
) -> tuple[Array, Array, Array]:
    """The objective, and the two parts of the duality gap."""
    push = push * jnp.where(rows.own, _balance(rows, push)[None], 0).sum(axis=1, keepdims=True)
    pull = push.sum(axis=1, keepdims=True)
    slope = push - jnp.where(rows.own, pull, 0)
    lead = _leads(rows.x @ weights.T, rows)
    if loss == "cross_entropy":
        log_p = jax.nn.log_softmax(_among(lead, rows))
        q = push + jnp.where(rows.own, 1 - pull, 0)
        values = jax.nn.logsumexp(_among(lead, rows), axis=1)
        terms = q * (jnp.log(jnp.where(q > 0, q, 1)) - jnp.where(q > 0, log_p, 0))
        excess = terms.sum(axis=1)
    else:
        z = jnp.where(rows.other, 1 + lead, 0)
        values = _hinge(z, "sum" if loss == "hinge" else "max", 1)
        excess = values - (push * z).sum(axis=1)
    coef = weights[:, :-1]
    rest = l2 * coef + slope.T @ (rows.share[:, None] * rows.x[:, :-1])
    value = rows.share @ values + l2 * losses.l2_penalty(coef)
    # Each excess is at least 0 but for rounding.
    return value, rows.share @ jax.nn.relu(excess), losses.l2_penalty(rest) / l2


def _balance(rows: _Rows, push: Array) -> Array:
    """Factors in 0..1, one for the rows of each class, with which each class is pushed as it pulls.

    Of those that balance, the nearest to all ones: the null space may have more than one dimension,
    if some classes never meet. It is spanned by vectors without negative entries, of which no two
    share a class (what a chain that moves at the rates of `flow` settles to), and so is their sum.
    """
    flow = jnp.where(rows.own, rows.share[:, None], 0).T @ push
    matrix = jnp.diag(flow.sum(axis=1)) - flow.T
    least = 10 * flow.shape[0] * float(jnp.finfo(push.dtype).eps)
    # No intercept, nothing to balance.
    matrix = jnp.where(rows.x[0, -1] != 0, matrix, 0)
    inverse = jnp.linalg.pinv(matrix, rtol=jnp.asarray(least, push.dtype))
    factors = jax.nn.relu(1 - inverse @ matrix.sum(axis=1))
    return factors / factors.max()
