r"""Pruning: cutting a tree back to what held-out data, or a price for leaves, support.

A tree that asks until all rows agree also asks about their noise. Three rules turn inner nodes into
leaves. With $E(t)$ the held-out error of node $t$ as a leaf, $E_1(t)$ with its question and leaves
below, and $E_T(t)$ with the whole branch below it,

- pre-pruning keeps a question if $E_1(t) < E(t)$, from the root on;
- reduced-error pruning cuts a branch if $E(t) \le E_T(t)$, from the leaves on;
- cost-complexity pruning needs no held-out data. With the training risk $R$ and the number
  $|T|$ of leaves, it gives for each price $\alpha$ the smallest subtree that minimises

$$
R_\alpha(T) = R(T) + \alpha\, |T| .
$$

The subtrees of growing $\alpha$ are nested: the weakest link $t$, with the lowest
$\frac{R(t) - R(T_t)}{|T_t| - 1}$, is cut next.

All rules take a `decision_tree.DecisionTree` and give one with as many slots; the nodes that are
left are numbered anew, breadth first.

Reference: Breiman, Friedman, Olshen and Stone, *Classification and Regression Trees* (1984),
chapter 3; Quinlan, *Simplifying Decision Trees* (International Journal of Man-Machine Studies 27,
1987).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from mlnotes_jax import _checks
from mlnotes_jax.trees import _grow, _tree, decision_tree
from mlnotes_jax.trees.decision_tree import DecisionTree

__all__ = [
    "NodeErrors",
    "Path",
    "best_alpha",
    "cost_complexity_path",
    "fit",
    "node_errors",
    "num_leaves",
    "path_errors",
    "pre_prune",
    "reduced_error",
    "subtree",
]

Risk = Literal["impurity", "error"]


class NodeErrors(NamedTuple):
    """Held-out error at each node: sums over the rows that reach it, not means.

    Attributes:
        leaf: If the node were a leaf, shape `(nodes,)`.
        split: If its question were asked, and its children were leaves.
        branch: With the whole branch below it.
        weight: Weight of the held-out rows that reach it.
    """

    leaf: Float[Array, " nodes"]
    split: Float[Array, " nodes"]
    branch: Float[Array, " nodes"]
    weight: Float[Array, " nodes"]


class Path(NamedTuple):
    r"""The nested subtrees of cost-complexity pruning.

    Attributes:
        alphas: Where the subtree changes, ascending from 0, shape `(steps,)`. Subtree $k$ is the
            smallest best one for $\alpha_k \le \alpha < \alpha_{k+1}$.
        risks: $R$ of each subtree on the training rows.
        num_leaves: Leaves of each.
        num_steps: How many subtrees there are; from there on the last one, the root alone, is
            repeated.
        collapse: The $\alpha$ from which each node asks nothing, shape `(nodes,)`; $-\infty$ at the
            leaves of the whole tree.
    """

    alphas: Float[Array, " steps"]
    risks: Float[Array, " steps"]
    num_leaves: Int[Array, " steps"]
    num_steps: Int[Array, ""]
    collapse: Float[Array, " nodes"]


# --- Held-out data --------------------------------------------------------------------------------


def node_errors(
    model: DecisionTree,
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"] | Float[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> NodeErrors:
    """Compute what each node gets wrong, as a leaf and with what is below it.

    The error is the weight of wrong classes, or of squared differences for a regression. A row
    whose value has no branch at a node (a category without training rows there, a missing value
    where none was learnt) stops there and gets the answer of the node, as in `predict`: it counts
    the same in all three, and speaks neither for the question nor against it.

    Args:
        model: A fitted tree.
        x: Held-out rows, shape `(n, d)`.
        y: Their classes or targets, shape `(n,)`.
        sample_weight: Not negative, shape `(n,)`; zero drops a row, which may hold anything.

    Returns:
        Sums of errors; zeros in unused slots.

    Raises:
        ValueError: Shapes do not match, there is no row, or (where concrete) data are not finite,
            a weight is negative, a label is no class.
        TypeError: The model is no decision tree, `x` is not real, or `y` has the wrong type.

    Example:
        >>> from mlnotes_jax.trees import decision_tree, pruning
        >>> model = decision_tree.fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])
        >>> errors = pruning.node_errors(model, [[0.5], [2.5], [1.0]], [0, 1, 1])
        >>> errors.leaf[0].item(), errors.branch[0].item()
        (2.0, 1.0)
    """
    leaf, stop, weight = _held_out(model, x, y, sample_weight)
    split, branch = _with_questions(model.tree, leaf, stop)
    return NodeErrors(leaf, split, branch, weight)


def pre_prune(
    model: DecisionTree,
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"] | Float[ArrayLike, " n"],
    *,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> DecisionTree:
    """Keep a question only if asking it lowers the held-out error, from the root on.

    What question a node asks does not depend on what other nodes do. So growing a tree that stops
    where a question does not help gives the same tree as growing all of it and cutting, from the
    root on, where a question does not help. Ties stop.

    Args:
        model: A tree as grown, without a limit on its leaves.
        x: Held-out rows, shape `(n, d)`.
        y: Their classes or targets, shape `(n,)`.
        sample_weight: Not negative, shape `(n,)`; zero drops a row, which may hold anything.

    Returns:
        The smaller tree, with as many slots.

    Raises:
        ValueError: As in `node_errors`.
        TypeError: As in `node_errors`.

    Example:
        >>> from mlnotes_jax.trees import decision_tree, pruning
        >>> model = decision_tree.fit([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 0])
        >>> pruned = pruning.pre_prune(model, [[0.0], [1.0], [3.0]], [0, 0, 0])
        >>> int(pruning.num_leaves(model)), int(pruning.num_leaves(pruned))
        (3, 1)

    Reference:
        Zhou, *Machine Learning* (2021), section 4.3.1.
    """
    leaf, stop, _ = _held_out(model, x, y, sample_weight)
    return _cut(model, _helps(model.tree, leaf, stop))


def reduced_error(
    model: DecisionTree,
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"] | Float[ArrayLike, " n"],
    *,
    ties: Literal["cut", "keep"] = "cut",
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> DecisionTree:
    """Cut every branch that is no better than a leaf on held-out data, from the leaves on.

    Of all trees that can be had by cutting, the answer has the lowest held-out error, and with
    `ties="cut"` is the smallest of those.

    Args:
        model: A fitted tree.
        x: Held-out rows, shape `(n, d)`.
        y: Their classes or targets, shape `(n,)`.
        ties: What to do with a branch that is exactly as good as a leaf; static. A branch that no
            held-out row reaches is such a tie.
        sample_weight: Not negative, shape `(n,)`; zero drops a row, which may hold anything.

    Returns:
        The smaller tree, with as many slots.

    Raises:
        ValueError: As in `node_errors`, or `ties` is not known.
        TypeError: As in `node_errors`.

    Example:
        >>> from mlnotes_jax.trees import decision_tree, pruning
        >>> model = decision_tree.fit([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 0])
        >>> pruned = pruning.reduced_error(model, [[0.0], [1.0], [3.0]], [0, 0, 0])
        >>> int(pruning.num_leaves(model)), int(pruning.num_leaves(pruned))
        (3, 1)

    Reference:
        Quinlan, *Simplifying Decision Trees* (1987), where ties are cut. Zhou, *Machine Learning*
        (2021), section 4.3.2, keeps them in the example.
    """
    _checks.one_of("ties", ties, ("cut", "keep"))
    leaf, stop, _ = _held_out(model, x, y, sample_weight)
    return _cut(model, _stays(model.tree, leaf, stop, ties == "cut"))


# --- A price for leaves ---------------------------------------------------------------------------


def cost_complexity_path(model: DecisionTree, *, risk: Risk = "impurity") -> Path:
    r"""Compute all subtrees that are best at some price $\alpha$ of a leaf.

    Args:
        model: A fitted tree.
        risk: $R$: the impurity of the leaves, weighted by their rows, as the tree was grown (the
            variance, for a regression), or the error rate on the training rows; static.

    Returns:
        The path. Decreases of the risk that differ by rounding only are taken for equal, so that
        the links which tie are cut together.

    Raises:
        ValueError: The model holds more than one tree (use `vmap`), `risk` is not known, or is
            `"error"` for a regression.
        TypeError: The model is no decision tree.

    Example:
        >>> from mlnotes_jax.trees import decision_tree, pruning
        >>> model = decision_tree.fit([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 0])
        >>> path = pruning.cost_complexity_path(model)
        >>> steps = int(path.num_steps)
        >>> path.num_leaves[:steps].tolist(), path.alphas[:steps].tolist()
        ([3, 1], [0.0, 0.1875])

    Reference:
        Breiman, Friedman, Olshen and Stone (1984), section 3.3.

    Note:
        scikit-learn's `cost_complexity_pruning_path` uses the impurity, cuts links that tie one by
        one, so that an alpha may be there several times, and starts with the whole tree. Here
        questions that take nothing away are cut at $\alpha = 0$.
    """
    _one_tree(model)
    _checks.one_of("risk", risk, ("impurity", "error"))
    if risk == "error" and model.task == "regression":
        raise ValueError("risk must be 'impurity' for regression, got 'error'")
    return _path(model.tree, risk)


def subtree(model: DecisionTree, path: Path, alpha: Float[ArrayLike, ""]) -> DecisionTree:
    r"""Give the smallest subtree that minimises $R(T) + \alpha |T|$.

    Args:
        model: The tree that the path was made of.
        path: From `cost_complexity_path`.
        alpha: The price of a leaf, not negative. Traced; `vmap` over it for all subtrees.

    Returns:
        The smaller tree, with as many slots.

    Raises:
        ValueError: Alpha is negative or no scalar, or the path is that of another tree.
        TypeError: The model is no decision tree.

    Example:
        >>> from mlnotes_jax.trees import decision_tree, pruning
        >>> model = decision_tree.fit([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 0])
        >>> path = pruning.cost_complexity_path(model)
        >>> [int(pruning.num_leaves(pruning.subtree(model, path, a))) for a in (0.1, 0.2)]
        [3, 1]
    """
    _one_tree(model)
    if path.collapse.shape != model.tree.feature.shape:
        raise ValueError(
            f"path must be of the same tree as model ({model.tree.feature.shape[0]} slots), "
            f"got {path.collapse.shape[0]}"
        )
    return _cut(model, path.collapse > _alpha(alpha, model, 0))


def path_errors(
    model: DecisionTree,
    path: Path,
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"] | Float[ArrayLike, " n"],
    *,
    alphas: Float[ArrayLike, " m"] | None = None,
    sample_weight: Float[ArrayLike, " n"] | None = None,
) -> Float[Array, " m"]:
    r"""Compute the held-out error of every subtree of a path, with the rows routed once.

    Args:
        model: The tree that the path was made of.
        path: From `cost_complexity_path`.
        x: Held-out rows, shape `(n, d)`.
        y: Their classes or targets, shape `(n,)`.
        alphas: Prices, shape `(m,)`; those of the path by default.
        sample_weight: Not negative, shape `(n,)`; zero drops a row, which may hold anything.

    Returns:
        The share of wrong classes, or the mean squared error, shape `(m,)`.

    Raises:
        ValueError: As in `node_errors` and `subtree`.
        TypeError: As in `node_errors`.

    Example:
        >>> from mlnotes_jax.trees import decision_tree, pruning
        >>> model = decision_tree.fit([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 0])
        >>> path = pruning.cost_complexity_path(model)
        >>> held_out = [[0.0], [1.0], [2.0], [3.0]], [0, 0, 0, 0]
        >>> pruning.path_errors(model, path, *held_out, alphas=[0.0, 0.5]).tolist()
        [0.25, 0.0]
    """
    leaf, stop, weight = _held_out(model, x, y, sample_weight)
    prices = path.alphas if alphas is None else _alpha(alphas, model, 1)
    return _path_errors(model.tree, path.collapse, prices, leaf, stop) / weight[0]


def best_alpha(path: Path, errors: Float[ArrayLike, " steps"]) -> Float[Array, ""]:
    r"""Give the price of the subtree with the lowest error, the smallest subtree of equals.

    Args:
        path: From `cost_complexity_path`.
        errors: Of its subtrees, shape `(steps,)`, on rows that had no say in the tree.

    Returns:
        The geometric mean $\sqrt{\alpha_k \alpha_{k+1}}$ of the ends of the interval in which the
        subtree is best (its lower end, for the root alone): $\alpha$ means the same for a tree
        that is fitted anew, and the middle is farthest from a change.

    Raises:
        ValueError: Shapes do not match.
        TypeError: The errors are not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.trees import pruning
        >>> leaves = jnp.array([4, 2, 1])
        >>> path = pruning.Path(jnp.array([0.0, 0.25, 1.0]), None, leaves, jnp.array(3), None)
        >>> pruning.best_alpha(path, [0.2, 0.1, 0.3]).item()
        0.5

    Reference:
        Breiman, Friedman, Olshen and Stone (1984), section 3.4.
    """
    array = _checks.floating("errors", errors, ndim=1)
    _checks.same_shape(errors=array, alphas=path.alphas)
    return _best_alpha(path.alphas, array)


def fit(
    x: Float[ArrayLike, "n d"],
    y: Int[ArrayLike, " n"] | Float[ArrayLike, " n"],
    *,
    alpha: Float[ArrayLike, "*m"] = 0.0,
    risk: Risk = "impurity",
    sample_weight: Float[ArrayLike, " n"] | None = None,
    **options: Any,
) -> DecisionTree:
    r"""Grow a tree, and cut it back to the smallest one that minimises $R(T) + \alpha |T|$.

    A fit like any other, so that cross-validation can choose $\alpha$.

    Args:
        x: Rows, shape `(n, d)`.
        y: Classes or targets, shape `(n,)`.
        alpha: The price of a leaf, not negative; traced. With several, shape `(m,)`, the tree is
            grown once, and the model has a leading axis of m subtrees.
        risk: As in `cost_complexity_path`; static.
        sample_weight: As in `decision_tree.fit`.
        **options: All other arguments of `decision_tree.fit`.

    Returns:
        The model, for `decision_tree.predict` and the like.

    Raises:
        ValueError: As in `decision_tree.fit`, or alpha is negative, or `risk` is not allowed.
        TypeError: As in `decision_tree.fit`.

    Example:
        >>> from mlnotes_jax.trees import pruning
        >>> model = pruning.fit([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 0], alpha=0.2)
        >>> int(pruning.num_leaves(model))
        1

    Note:
        `alpha` is `ccp_alpha` of scikit-learn's trees.
    """
    model = decision_tree.fit(x, y, sample_weight=sample_weight, **options)
    path = cost_complexity_path(model, risk=risk)
    price = _alpha(alpha, model, (0, 1))

    def at(price: Array) -> DecisionTree:
        return _cut(model, path.collapse > price)

    return jax.vmap(at)(price) if price.ndim else at(price)


def num_leaves(model: DecisionTree) -> Int[Array, "*batch"]:
    """Count the leaves.

    Args:
        model: A fitted tree, or a batch of them.

    Returns:
        Shape `()`, or that of the batch. A node that answers itself where a category has no branch
        is not counted for it.

    Raises:
        TypeError: The model is no decision tree.

    Example:
        >>> from mlnotes_jax.trees import decision_tree, pruning
        >>> int(pruning.num_leaves(decision_tree.fit([[0.0], [1.0]], [0, 1])))
        2
    """
    _is_tree(model)
    return ((model.tree.depth >= 0) & (model.tree.feature < 0)).sum(axis=-1, dtype=jnp.int32)


# --- Walks over a tree ----------------------------------------------------------------------------


def _above(tree: _tree.Tree) -> Array:
    """The parent of each node; out of range where there is none."""
    return jnp.where(tree.parent >= 0, tree.parent, len(tree.parent))


def _from_leaves(
    tree: _tree.Tree, own: Array, settle: Callable[[Array], Array] = lambda total: total
) -> Array:
    """Sum `own` over branches: a node's own value and what its children came to.

    Args:
        tree: One tree.
        own: Shape `(nodes,)`.
        settle: What a node comes to, from the sum; elementwise.

    Returns:
        Shape `(nodes,)`.
    """
    above, deepest = _above(tree), tree.depth.max()

    def level(i: Array, total: Array) -> Array:
        here = jnp.where(tree.depth == deepest - i, settle(total), 0)
        return total + jax.ops.segment_sum(here, above, len(above) + 1)[:-1]

    return settle(lax.fori_loop(0, deepest, level, own))


def _spans(tree: _tree.Tree) -> tuple[Array, Array]:
    """Numbers in depth-first order: those below node t are in [first[t], end[t])."""
    used = (tree.depth >= 0).astype(jnp.int32)
    size = _from_leaves(tree, used)
    there = tree.children >= 0
    below = jnp.where(there, size[jnp.maximum(tree.children, 0)], 0)
    before = 1 + jnp.cumsum(below, axis=1, dtype=jnp.int32) - below
    child = jnp.where(there, tree.children, len(size))
    step = jnp.zeros_like(size).at[child].set(before, mode="drop")

    def level(i: Array, first: Array) -> Array:
        return jnp.where(tree.depth == i, first[jnp.maximum(tree.parent, 0)] + step, first)

    first = lax.fori_loop(1, tree.depth.max() + 1, level, jnp.zeros_like(size))
    first = jnp.where(used > 0, first, -1)
    return first, first + size


# --- Held-out errors ------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="task")
def _errors(
    tree: _tree.Tree, x: Array, y: Array, weight: Array, task: str
) -> tuple[Array, Array, Array]:
    """Sums over held-out rows: as a leaf; of rows that stop at a node; the weight that arrives."""
    nodes = len(tree.feature)
    if task == "regression":
        answer = tree.value[:, 0]
    else:  # -1, no class, where the fit was spoilt, as in `predict`
        spoilt = jnp.isnan(tree.value).any(axis=1)
        answer = jnp.where(spoilt, -1, tree.value.argmax(axis=1).astype(jnp.int32))

    def add(node: Array) -> Array:
        found = answer[jnp.maximum(node, 0)]
        error = jnp.square(y - found) if task == "regression" else found.astype(y.dtype) != y
        error = jnp.where(weight == 0, 0, error.astype(weight.dtype)) * weight
        both = jnp.stack([error, weight], axis=1)
        return jax.ops.segment_sum(both, jnp.where(node >= 0, node, nodes), nodes + 1)[:-1]

    def climb(state: tuple[Array, Array]) -> tuple[Array, Array]:
        node, total = state
        node = jnp.where(node >= 0, tree.parent[jnp.maximum(node, 0)], -1)
        return node, total + add(node)

    node = _tree.route(tree, x)
    stop = add(node)
    total = lax.while_loop(lambda state: (state[0] >= 0).any(), climb, (node, stop))[1]
    return total[:, 0], stop[:, 0], total[:, 1]


def _split(tree: _tree.Tree, leaf: Array, stop: Array) -> Array:
    """With the question asked: `leaf` of the children, and the rows that stop before them."""
    return stop + jax.ops.segment_sum(leaf, _above(tree), len(leaf) + 1)[:-1]


@jax.jit
def _with_questions(tree: _tree.Tree, leaf: Array, stop: Array) -> tuple[Array, Array]:
    return _split(tree, leaf, stop), _from_leaves(tree, stop)


@jax.jit
def _helps(tree: _tree.Tree, leaf: Array, stop: Array) -> Array:
    return _split(tree, leaf, stop) < leaf * (1 - _slack(leaf))


@functools.partial(jax.jit, static_argnames="cut_ties")
def _stays(tree: _tree.Tree, leaf: Array, stop: Array, cut_ties: bool) -> Array:
    # Weights are summed in another order for a leaf than for a branch: ties up to rounding.
    bound = leaf * (1 - _slack(leaf)) if cut_ties else leaf * (1 + _slack(leaf))

    def better(branch: Array) -> Array:
        return branch < bound if cut_ties else branch <= bound

    settled = _from_leaves(tree, stop, lambda branch: jnp.where(better(branch), branch, leaf))
    # A branch of settled children, once more: `settled` has forgotten it where it was cut.
    return better(_split(tree, settled, stop))


def _cut(model: DecisionTree, inner: Array) -> DecisionTree:
    """Only the questions of `inner` are asked; what is below another node goes."""
    return dataclasses.replace(model, tree=_cut_tree(model.tree, inner))


_cut_tree = jax.jit(_grow.cut)


def _slack(like: Array) -> float:
    return 32 * float(jnp.finfo(like.dtype).eps)


# --- The weakest link -----------------------------------------------------------------------------


class _Links(NamedTuple):
    """Between two cuts."""

    taken: Array  # R(t) - R(T_t)
    more: Array  # |T_t| - 1
    open: Array  # inner nodes that still ask
    collapse: Array
    path: tuple[Array, ...]  # alphas, risks, leaves
    step: Array


@functools.partial(jax.jit, static_argnames="risk")
def _path(tree: _tree.Tree, risk: str) -> Path:
    nodes, dtype = len(tree.feature), tree.weight.dtype
    inner = tree.feature >= 0
    if risk == "impurity":
        lost = tree.weight * tree.impurity
    else:
        lost = tree.weight - tree.value.max(axis=1)
    lost = jnp.where(tree.depth >= 0, lost / tree.weight[0], 0)
    there = tree.children >= 0
    below = jnp.where(there, lost[jnp.maximum(tree.children, 0)], 0).sum(axis=1)
    # What a question takes away is never negative; R(t) - R(T_t) is the sum of it over the branch.
    taken = _from_leaves(tree, jnp.where(inner, jnp.maximum(lost - below, 0), 0))
    more = _from_leaves(tree, jnp.where(inner, there.sum(axis=1, dtype=jnp.int32) - 1, 0))
    first, end = _spans(tree)
    same = float(jnp.finfo(dtype).eps) * lost[0]  # decreases below it are rounding

    def record(path: tuple[Array, ...], step: Array, *values: Array) -> tuple[Array, ...]:
        return tuple(part.at[step].set(value) for part, value in zip(path, values, strict=True))

    def cut(state: _Links) -> _Links:
        leaves = jnp.maximum(state.more, 1).astype(dtype)  # 0 if a question had one branch only
        link = jnp.where(state.open, state.taken / leaves, jnp.inf)
        weakest = link.argmin()
        last = state.path[0][state.step]
        tied = link[weakest] <= last * (1 + _slack(last)) + same
        alpha = jnp.where(tied, last, link[weakest])
        inside = (first >= first[weakest]) & (first < end[weakest])
        ancestor = (first <= first[weakest]) & (first[weakest] < end)  # or the node itself
        taken = state.taken - jnp.where(ancestor, state.taken[weakest], 0)
        more = state.more - jnp.where(ancestor, state.more[weakest], 0)
        step = jnp.where(tied, state.step, state.step + 1)
        return _Links(
            taken=taken,
            more=more,
            open=state.open & ~inside,
            collapse=jnp.where(state.open & inside, alpha, state.collapse),
            path=record(state.path, step, alpha, lost[0] - taken[0], 1 + more[0]),
            step=step,
        )

    zero = jnp.zeros((), jnp.int32)
    blank = jnp.zeros(nodes, dtype), jnp.zeros(nodes, dtype), jnp.zeros(nodes, jnp.int32)
    start = record(blank, zero, jnp.zeros((), dtype), lost[0] - taken[0], 1 + more[0])
    state = _Links(taken, more, inner, jnp.full(nodes, -jnp.inf, dtype), start, zero)
    state = lax.while_loop(lambda state: state.open[0], cut, state)
    place = jnp.minimum(jnp.arange(nodes, dtype=jnp.int32), state.step)
    alphas, risks, leaves = (part[place] for part in state.path)
    return Path(alphas, risks, leaves, state.step + 1, state.collapse)


@jax.jit
def _path_errors(
    tree: _tree.Tree, collapse: Array, alphas: Array, leaf: Array, stop: Array
) -> Array:
    above = jnp.where(tree.parent >= 0, collapse[jnp.maximum(tree.parent, 0)], jnp.inf)

    def at(alpha: Array) -> Array:
        # A node answers if it is there and asks nothing; where it asks, some rows may stop.
        there = (above > alpha) & (tree.depth >= 0)
        return jnp.where(there, jnp.where(collapse > alpha, stop, leaf), 0).sum()

    return lax.map(at, alphas)


@jax.jit
def _best_alpha(alphas: Array, errors: Array) -> Array:
    best = len(errors) - 1 - errors[::-1].argmin()
    following = alphas[jnp.minimum(best + 1, len(alphas) - 1)]
    return jnp.sqrt(alphas[best] * following)


# --- What comes in --------------------------------------------------------------------------------


def _is_tree(model: DecisionTree) -> None:
    if not isinstance(model, DecisionTree):
        raise TypeError(f"model must be a DecisionTree, got {type(model).__name__}")


def _one_tree(model: DecisionTree) -> None:
    _is_tree(model)
    if model.tree.feature.ndim != 1:
        raise ValueError(
            f"model must hold one tree, got {model.tree.feature.shape[:-1]}: use jax.vmap"
        )


def _alpha(alpha: ArrayLike, model: DecisionTree, ndim: int | tuple[int, ...]) -> Array:
    array = _checks.floating("alpha", alpha, ndim=ndim)
    _checks.not_negative("alpha", array)
    return array.astype(model.tree.weight.dtype)


def _held_out(
    model: DecisionTree, x: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """What `_errors` says of rows that were looked at."""
    _one_tree(model)
    dtype = model.tree.value.dtype
    rows = _checks.floating("x", x, ndim=2).astype(dtype)
    d = len(model.num_categories)
    if rows.shape[1] != d:
        raise ValueError(f"x must have {d} columns, got shape {rows.shape}")
    _checks.not_empty("x", rows)
    regression = model.task == "regression"
    if regression:
        target = _checks.floating("y", y, ndim=1).astype(dtype)
    else:
        target = _checks.integer("y", y, ndim=1).astype(jnp.int32)
    _checks.same_length(x=rows, y=target)
    weight, counted = _checks.row_weights(sample_weight, target, dtype)
    if weight is None:
        weight = jnp.ones(len(target), dtype)
    if _checks.is_concrete((x, sample_weight)):
        values = np.asarray(x)
        known = counted[:, None] & (not model.missing or ~np.isnan(values))
        _checks.finite("x", np.where(known, values, 0))  # pyright: ignore[reportArgumentType]
    if _checks.is_concrete((y, sample_weight)):
        if regression:
            _checks.finite("y", np.where(counted, np.asarray(y), 0))  # pyright: ignore[reportArgumentType]
        else:
            k = model.tree.value.shape[-1]
            _checks.class_labels("y", y, k, counted=counted)
    return _errors(model.tree, rows, target, weight, model.task)
