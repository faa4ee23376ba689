"""A fitted tree as arrays, and the way of a row through it.

Slots `0 .. num_nodes - 1` are in use, in breadth-first order, the root first. A question is either
`x <= threshold` (branch 0 if so, else 1) or "which category" (a table from code to branch).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["Tree", "importance", "leaf_value", "path", "route"]


class Tree(NamedTuple):
    """One tree; a forest holds one of these with a leading axis of trees.

    Attributes:
        feature: Column asked at the node, -1 at a leaf and in unused slots, shape `(nodes,)`.
        threshold: Branch 0 if `x <= threshold`, else 1, shape `(nodes,)`; NaN at a leaf and where
            the question is about a category.
        branch: Branch of each category code, -1 for one that the node does not know, shape
            `(nodes, categories)`; `categories` is 0 if no column is categorical.
        children: Node numbers, -1 for none, shape `(nodes, arity)`; the arity is 2 unless a
            question splits into many.
        missing: Branch of a missing value (NaN), -1 for none, shape `(nodes,)`.
        parent: Node number, -1 at the root and in unused slots, shape `(nodes,)`.
        depth: Number of questions above, 0 at the root, -1 in unused slots, shape `(nodes,)`.
        value: Weight of each class, or the mean of the targets, shape `(nodes, outputs)`.
        weight: Sum of the weights of the training rows that reached the node, shape `(nodes,)`.
        impurity: Of the training rows at the node, by the criterion of the fit, shape `(nodes,)`.
        gain: What the criterion gave for the question, 0 at a leaf, shape `(nodes,)`.
        num_nodes: Number of slots in use, shape `()`.
    """

    feature: Int[Array, "*trees nodes"]
    threshold: Float[Array, "*trees nodes"]
    branch: Int[Array, "*trees nodes categories"]
    children: Int[Array, "*trees nodes arity"]
    missing: Int[Array, "*trees nodes"]
    parent: Int[Array, "*trees nodes"]
    depth: Int[Array, "*trees nodes"]
    value: Float[Array, "*trees nodes outputs"]
    weight: Float[Array, "*trees nodes"]
    impurity: Float[Array, "*trees nodes"]
    gain: Float[Array, "*trees nodes"]
    num_nodes: Int[Array, "*trees"]


def route(tree: Tree, x: Float[Array, "n d"]) -> Int[Array, " n"]:
    """Where each row stops.

    A row stops at a leaf, or at an inner node that has no branch for its value: a category that no
    training row had there, or a missing value where none was learnt.

    Args:
        tree: One tree.
        x: Rows, shape `(n, d)`; category codes are whole numbers held as floats.

    Returns:
        Node numbers, shape `(n,)`.
    """

    def moved(state: tuple[Array, Array]) -> Array:
        return jnp.any(state[1])

    def move(state: tuple[Array, Array]) -> tuple[Array, Array]:
        node = state[0]
        below = _step(tree, x, node)
        # A child has a higher number: also in arrays that are no tree the way ends.
        return jnp.maximum(below, node), below > node

    start = jnp.zeros(x.shape[0], tree.children.dtype)
    return jax.lax.while_loop(moved, move, (start, jnp.ones(x.shape[0], bool)))[0]


def path(tree: Tree, x: Float[Array, "n d"], max_depth: int) -> Int[Array, "n steps"]:
    """The nodes that each row passes, from the root on.

    Args:
        tree: One tree.
        x: Rows, shape `(n, d)`.
        max_depth: Number of questions to follow; static.

    Returns:
        Node numbers, -1 after the row has stopped, shape `(n, max_depth + 1)`.
    """

    def move(node: Array, _: None) -> tuple[Array, Array]:
        below = jnp.where(node >= 0, _step(tree, x, jnp.maximum(node, 0)), -1)
        return below, node

    start = jnp.zeros(x.shape[0], tree.children.dtype)
    return jax.lax.scan(move, start, length=max_depth + 1)[1].T


def leaf_value(tree: Tree, x: Float[Array, "n d"]) -> Float[Array, "n outputs"]:
    """The value of the node where each row stops, shape `(n, outputs)`."""
    return tree.value[route(tree, x)]


def importance(tree: Tree, num_features: int) -> Float[Array, " d"]:
    r"""How much of the impurity each feature took away.

    The sum over the questions about a feature of $w_t\, i_t - \sum_b w_b\, i_b$, with the weight
    $w$ and the impurity $i$ of the node and of its children, divided by the sum over all features.

    Args:
        tree: One tree.
        num_features: d, static.

    Returns:
        Shares with sum one, shape `(d,)`; zeros if the tree asks nothing.
    """
    amount = tree.weight * tree.impurity
    below = jnp.where(tree.children >= 0, amount[jnp.maximum(tree.children, 0)], 0).sum(axis=-1)
    inner = tree.feature >= 0
    taken = jnp.zeros(num_features, amount.dtype)
    taken = taken.at[jnp.maximum(tree.feature, 0)].add(jnp.where(inner, amount - below, 0))
    total = taken.sum()
    return jnp.where(total > 0, taken / jnp.where(total > 0, total, 1), 0)


def _step(tree: Tree, x: Array, node: Array) -> Array:
    """The child that each row goes to from `node`, -1 if it stays."""
    feature = tree.feature[node]
    asked = jnp.take_along_axis(x, jnp.maximum(feature, 0)[:, None], axis=1)[:, 0]
    threshold = tree.threshold[node]
    branch = (asked > threshold).astype(tree.children.dtype)
    categories = tree.branch.shape[-1]
    if categories:
        known = (asked >= 0) & (asked < categories)
        code = jnp.where(known, asked, 0).astype(tree.children.dtype)
        by_category = jnp.where(known, tree.branch[node, code], -1)
        branch = jnp.where(jnp.isnan(threshold), by_category, branch)
    branch = jnp.where(jnp.isnan(asked), tree.missing[node], branch)
    child = tree.children[node, jnp.maximum(branch, 0)]
    return jnp.where((feature >= 0) & (branch >= 0), child, -1)
