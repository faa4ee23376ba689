"""What every update rule shares: its rate, checks of its trees, dtypes, and the walk over leaves.

A rule is an `optax.GradientTransformation` whose `update` returns what is *added* to the
parameters. Moments are held in at least float32, whatever the parameters are; the update has the
dtype of the gradient. A tree without leaves is allowed and gives an empty update, as `optax.masked`
and `optax.partition` hand such trees to the rules that they wrap.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Int, PyTree

from mlnotes_jax import _checks

#: A learning rate: a number, traced or not, or a function of the number of updates done before.
Rate = ArrayLike | optax.Schedule


def rate(value: Rate, *, name: str = "learning_rate") -> Callable[[Int[Array, ""]], Array]:
    """Check a learning rate, and make it a function of the number of updates done before.

    Raises:
        TypeError: It is no real number and no function.
        ValueError: It is negative or not finite, or no scalar.
    """
    if callable(value):
        return lambda count: _checks.floating(name, value(count), ndim=0)
    not_negative(name, value)
    # An array only where it is used: a rule made outside of double precision serves within it.
    return lambda count: _checks.floating(name, value)


def scalar(name: str, value: ArrayLike) -> Array:
    """Check a hyper-parameter: a finite real scalar."""
    array = _checks.floating(name, value, ndim=0)
    _checks.finite(name, array)
    return array


def share(name: str, value: ArrayLike) -> None:
    """Raise `ValueError` unless a concrete `value` is a scalar in [0, 1), as decays are."""
    scalar(name, value)
    if _checks.is_concrete(value) and not 0 <= float(np.asarray(value)) < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def not_negative(name: str, value: ArrayLike) -> None:
    """Raise `ValueError` unless a concrete `value` is a finite scalar >= 0."""
    scalar(name, value)
    _checks.not_negative(name, value)


def check_params(params: PyTree) -> None:
    """Raise `TypeError` with the path of the first leaf that is no array of real floats."""
    _check_leaves("params", params)


def _check_leaves(name: str, tree: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None and isinstance(leaf, float):
            continue
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            place = jax.tree_util.keystr(path)
            got = type(leaf).__name__ if dtype is None else f"dtype {dtype}"
            raise TypeError(
                f"{name}{place} must be a floating-point array, got {got}; "
                "leave other leaves out with optax.masked or optax.partition"
            )


def same_tree(name: str, tree: PyTree, like: PyTree, *, of: str = "params") -> None:
    """Raise `ValueError` unless two trees have one structure and their leaves the same shapes."""
    here, there = jax.tree.structure(tree), jax.tree.structure(like)
    if here != there:
        raise ValueError(f"{name} must have the structure of {of}, {there}, got {here}")
    pairs = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(like), strict=True)
    for (path, leaf), other in pairs:
        if jnp.shape(leaf) != jnp.shape(other):
            place = jax.tree_util.keystr(path)
            raise ValueError(
                f"{name}{place} must have the shape {jnp.shape(other)} of {of}, "
                f"got {jnp.shape(leaf)}"
            )


def wide(dtype: Any) -> Any:
    """At least float32: the dtype in which moments of a leaf are held."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def zeros(params: PyTree) -> PyTree:
    """Zeros of the parameters' shapes, in at least float32: the start of a moment."""
    return full(params, 0.0)


def full(params: PyTree, value: ArrayLike) -> PyTree:
    """A constant in the parameters' shapes, in at least float32."""

    def leaf(p: Any) -> Array:
        dtype = wide(jnp.result_type(p))
        return jnp.full(jnp.shape(p), jnp.asarray(value, dtype), dtype)

    return jax.tree.map(leaf, params)


def per_leaf(
    function: Callable[..., tuple[Array, ...]],
    num_results: int,
    updates: PyTree,
    *trees: PyTree,
    scalars: tuple[ArrayLike, ...] = (),
) -> tuple[PyTree, ...]:
    """Apply `function(g, *leaves, *scalars)` to the leaves of the gradient and of other trees.

    Args:
        function: Takes arrays of one shape in at least float32, and the scalars cast to that dtype;
            returns `num_results` arrays: what is added to the parameters first.
        num_results: How many results it has.
        updates: The gradient.
        *trees: Moments, or the parameters: trees like `updates`.
        scalars: Numbers that depend on the step only; the same for all leaves.

    Returns:
        A tree for each result. The first has the dtypes of `updates`; the others stay wide.

    Raises:
        TypeError: A leaf of `updates` is no array of floats.
        ValueError: The trees differ in structure or in a shape.
    """
    _check_leaves("updates", updates)
    for tree in trees:
        same_tree("updates", updates, tree, of="the parameters that `init` saw")
    leaves, structure = jax.tree.flatten(updates)
    results = []
    for group in zip(leaves, *map(jax.tree.leaves, trees), strict=True):
        dtype = wide(jnp.result_type(group[0]))
        numbers = [jnp.asarray(s, dtype) for s in scalars]
        first, *rest = function(*(jnp.asarray(leaf, dtype) for leaf in group), *numbers)
        results.append((first.astype(jnp.result_type(group[0])), *rest))
    columns = zip(*results, strict=True) if results else [()] * num_results
    return tuple(structure.unflatten(column) for column in columns)


def next_count(count: Int[Array, ""]) -> Int[Array, ""]:
    """The number of updates, this one included; it stays at the largest int32."""
    return jnp.asarray(optax.safe_increment(count))
