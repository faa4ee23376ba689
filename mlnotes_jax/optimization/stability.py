r"""Keeping training stable: clipping, norm constraints, gradient noise, steps that are skipped.

Gradients longer than $c$ are scaled down to it,

$$g \leftarrow g \cdot \min\!\left(1, \frac{c}{\lVert g \rVert}\right),$$

by the norm of all of them together (which keeps the direction), entry by entry (which does not), or
unit by unit and in relation to the weights (adaptive clipping). The same scaling of a unit's
*weights* is the projection onto the ball of radius $c$, the max-norm constraint. Gaussian noise of
variance $\eta / (1 + t)^\gamma$ may be added, and updates that are not finite left out.

The verbs (`clip_by_global_norm`) are pure functions, which return what they saw beside what they
made of it; the nouns (`global_norm_clipping`) are Optax transformations for `optax.chain`, which
keep it in their state.

Reference: Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*
(ICML 2013), section 3.2; Goodfellow, Bengio and Courville, *Deep Learning* (2016), section 10.11.1.
"""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.optimization import _rules

__all__ = [
    "ClipState",
    "NoiseState",
    "SkipState",
    "adaptive_clip",
    "adaptive_clipping",
    "add_noise",
    "clip_by_global_norm",
    "clip_by_value",
    "global_norm",
    "global_norm_clipping",
    "gradient_noise",
    "max_norm_constraint",
    "noise_variance",
    "project_max_norm",
    "skip_non_finite",
    "unit_axes",
    "value_clipping",
]

#: The axes over which the norm of a unit is taken; or a function from a leaf to them, or to None
#: for a leaf that has no units.
Axis = int | tuple[int, ...] | Callable[[Array], int | tuple[int, ...] | None]


class ClipState(NamedTuple):
    """What a clipping transformation saw.

    Attributes:
        count: Updates done, int32, shape `()`.
        num_clipped: In how many of them anything was clipped, int32, shape `()`.
        seen: What is compared with the limit, of the last update, before clipping (0 before the
            first): the global norm; the largest size of an entry; the largest ratio of a unit.
            Shape `()`.
    """

    count: Int[Array, ""]
    num_clipped: Int[Array, ""]
    seen: Float[Array, ""]


class NoiseState(NamedTuple):
    """What `gradient_noise` remembers.

    Attributes:
        count: Updates done, int32, shape `()`.
        key: As it was given; the noise of a step is drawn from it and the count.
    """

    count: Int[Array, ""]
    key: Key[Array, ""]


class SkipState(NamedTuple):
    """What `skip_non_finite` remembers, and what it reports.

    Attributes:
        count: Updates asked for, int32, shape `()`.
        num_skipped: How many of them were left out, int32, shape `()`.
        in_a_row: How many updates without a break, the last included, were not finite, left out or
            not; int32, shape `()`.
        inner: The state of the wrapped rule, which knows nothing of what was left out.
    """

    count: Int[Array, ""]
    num_skipped: Int[Array, ""]
    in_a_row: Int[Array, ""]
    inner: Any


# --- Norms ----------------------------------------------------------------------------------------


def global_norm(tree: PyTree) -> Float[Array, ""]:
    r"""The Euclidean norm of all leaves together, $\sqrt{\sum_k \lVert g_k \rVert^2}$.

    Squares of numbers above $2^{64} \approx 1.8 \cdot 10^{19}$ are too large for float32, and those
    of numbers below $10^{-19}$ too small. Where that happens the leaves are divided by their
    largest entry first.

    Args:
        tree: Real arrays of any shapes; a pytree.

    Returns:
        The norm, shape `()`, in at least float32. 0 of an empty tree. Infinite where an entry is,
        or where the norm itself is too large; NaN where an entry is. The derivative at 0 is 0.

    Raises:
        TypeError: A leaf is not a real array.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import stability
        >>> print(stability.global_norm({"a": jnp.array([3.0]), "b": jnp.array([[0.0, 4.0]])}))
        5.0
        >>> print(stability.global_norm(jnp.array([3e30, 4e30])))
        5e+30

    Note:
        `optax.tree.norm` and `torch.nn.utils.get_total_norm` are the same without the division:
        infinite for the second example (as 0 for numbers as small as 1e-30).
    """
    leaves = [
        _checks.floating(f"tree{jax.tree_util.keystr(path)}", leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    if not leaves:
        return jnp.zeros(())
    return _norm_of_all([leaf.astype(_rules.wide(leaf.dtype)) for leaf in leaves])


def unit_axes(leaf: Array) -> tuple[int, ...]:
    """The axes that make up a unit by default: all but the last, or the only one.

    Of a kernel (in, out) or (height, width, in, out), what comes in at one output; of a vector, all
    of it.

    Args:
        leaf: An array.

    Returns:
        The axes over which the norm of a unit is taken.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import stability
        >>> [stability.unit_axes(jnp.zeros(shape)) for shape in [(3, 3, 8, 16), (8, 16), (16,), ()]]
        [(0, 1, 2), (0,), (0,), ()]

    Note:
        `optax.adaptive_grad_clip` takes only the first axis of arrays with three, for multi-head
        attention, and a matrix with one row or one column for a vector.
    """
    return tuple(range(leaf.ndim - 1)) or tuple(range(leaf.ndim))


# --- Clipping -------------------------------------------------------------------------------------


def clip_by_global_norm(
    updates: PyTree, max_norm: Float[ArrayLike, ""], *, epsilon: Float[ArrayLike, ""] = 0.0
) -> tuple[PyTree, Float[Array, ""]]:
    r"""Scale a gradient with a larger norm down to it, and say which norm it had.

    $$g_k \leftarrow g_k \cdot \min\!\left(1, \frac{c}{\lVert g \rVert + \epsilon}\right)$$

    with one factor for all leaves: the direction stays.

    Args:
        updates: Gradients: a pytree of arrays of floats.
        max_norm: $c > 0$; infinite for no clipping. Traced.
        epsilon: $\epsilon \ge 0$. With 0 the norm after clipping is $c$. Traced.

    Returns:
        The gradients, clipped, with their dtypes; and the
        [`global_norm`][mlnotes_jax.optimization.stability.global_norm] before, shape `()`. Where
        that norm is not finite there is no direction to keep, and all entries become NaN.

    Raises:
        ValueError: `max_norm` is not positive, `epsilon` negative, or one of them no scalar.
        TypeError: A leaf is no array of floats, or a limit is not numeric.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import stability
        >>> clipped, norm = stability.clip_by_global_norm(jnp.array([3.0, 4.0]), 1.0)
        >>> print(norm, clipped)
        5.0 [0.6 0.8]

    Reference: Pascanu, Mikolov and Bengio (2013), algorithm 1.

    Note:
        `torch.nn.utils.clip_grad_norm_` has $\epsilon$ = 1e-6 and returns the norm too;
        `optax.clip_by_global_norm` has none and does not return it. Where the norm is infinite they
        make zeros of the entries that are finite.
    """
    limit = _limit("max_norm", max_norm)
    _rules.not_negative("epsilon", epsilon)
    norm = global_norm(updates)
    factor = _factor(norm, limit.astype(norm.dtype), jnp.asarray(epsilon, norm.dtype))
    (clipped,) = _rules.per_leaf(lambda g, factor: (g * factor,), 1, updates, scalars=(factor,))
    return clipped, norm


def clip_by_value(
    updates: PyTree, max_value: Float[ArrayLike, ""]
) -> tuple[PyTree, Float[Array, ""]]:
    """Clip each entry to [-max_value, max_value], and say how large the largest was.

    The direction changes: it turns towards the diagonal.

    Args:
        updates: Gradients: a pytree of arrays of floats.
        max_value: The limit, positive; infinite for no clipping. Traced.

    Returns:
        The gradients, clipped, with their dtypes; and the largest size of an entry before, shape
        `()`. An infinite entry becomes the limit, and only the second result tells; NaN stays.

    Raises:
        ValueError: `max_value` is not positive, or no scalar.
        TypeError: A leaf is no array of floats, or the limit is not numeric.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import stability
        >>> clipped, largest = stability.clip_by_value(jnp.array([3.0, -4.0, 0.5]), 1.0)
        >>> print(largest, clipped)
        4.0 [ 1.  -1.   0.5]

    Note:
        `optax.clip` and `torch.nn.utils.clip_grad_value_` clip alike, and return nothing else.
    """
    limit = _limit("max_value", max_value)

    def leaf(g: Array, limit: Array) -> tuple[Array, ...]:
        return jnp.clip(g, -limit, limit), abs(g).max(initial=0)

    clipped, largest = _rules.per_leaf(leaf, 2, updates, scalars=(limit,))
    return clipped, _largest(largest)


def adaptive_clip(
    updates: PyTree,
    params: PyTree,
    *,
    max_ratio: Float[ArrayLike, ""] = 0.01,
    epsilon: Float[ArrayLike, ""] = 1e-3,
    axis: Axis = unit_axes,
) -> tuple[PyTree, Float[Array, ""]]:
    r"""Adaptive clipping: no unit's gradient longer than a share of its weights.

    For each unit $i$, with weights $w_i$ and gradient $g_i$,

    $$g_i \leftarrow g_i \cdot \min\!\left(1,\;
      \lambda\, \frac{\max(\lVert w_i \rVert, \epsilon)}{\lVert g_i \rVert}\right).$$

    Args:
        updates: Gradients: a pytree of arrays of floats.
        params: The weights: a pytree like it.
        max_ratio: $\lambda > 0$; infinite for no clipping. Traced.
        epsilon: $\epsilon > 0$: what weights that are nearly zero count as. Traced.
        axis: The axis or axes that make up a unit: over these, norms are taken. Or a function from
            a leaf to them, or to None for a leaf that is left alone. Static.

    Returns:
        The gradients, clipped, with their dtypes; and the largest
        $\lVert g_i \rVert / \max(\lVert w_i \rVert, \epsilon)$ before, shape `()`. A unit whose
        norm is not finite becomes NaN.

    Raises:
        ValueError: A limit is not positive or no scalar, the trees differ, or a leaf does not have
            an axis.
        TypeError: A leaf is no array of floats, or a limit is not numeric.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import stability
        >>> weights = jnp.array([[3.0, 0.3], [4.0, 0.4]])  # two units, of norm 5 and 0.5
        >>> grads = jnp.full((2, 2), 0.1)
        >>> clipped, ratio = stability.adaptive_clip(grads, weights, max_ratio=0.1)
        >>> print(f"{ratio:.3f}")
        0.283
        >>> print([f"{g:.4f}" for g in clipped[0]])
        ['0.1000', '0.0354']

    Reference: Brock, De, Smith and Simonyan, *High-Performance Large-Scale Image Recognition
    Without Normalization* (2021), section 4. They leave the last layer alone.

    Note:
        `optax.adaptive_grad_clip` is the same; see `unit_axes` for where its units differ.
    """
    limit, least = _limit("max_ratio", max_ratio), _limit("epsilon", epsilon)
    _rules.same_tree("updates", updates, params)
    axes = _axes("params", params, axis)

    def leaf(g: Array, w: Array, limit: Array, least: Array) -> tuple[Array, ...]:
        over = next(order)
        if over is None:
            return g, jnp.zeros((), g.dtype)
        size = _norm(g, over)
        # Divided before it is multiplied, so that an infinite ratio is one.
        allowed = jnp.maximum(_norm(w, over), least)
        ratio = size / allowed
        return g * _factor(ratio, limit), ratio.max(initial=0)

    order = iter(axes)
    clipped, ratios = _rules.per_leaf(leaf, 2, updates, params, scalars=(limit, least))
    return clipped, _largest(ratios)


def global_norm_clipping(
    max_norm: Float[ArrayLike, ""], *, epsilon: Float[ArrayLike, ""] = 0.0
) -> optax.GradientTransformation:
    """`clip_by_global_norm` as a transformation that remembers the norm it saw.

    Args:
        max_norm: As in
            [`clip_by_global_norm`][mlnotes_jax.optimization.stability.clip_by_global_norm].
        epsilon: As there.

    Returns:
        The transformation. Its state is a
        [`ClipState`][mlnotes_jax.optimization.stability.ClipState], `seen` the norm before.

    Raises:
        ValueError: As there.
        TypeError: As there.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from mlnotes_jax.optimization import stability
        >>> rule = optax.chain(stability.global_norm_clipping(1.0), optax.sgd(0.5))
        >>> state = rule.init(jnp.zeros(2))
        >>> update, state = rule.update(jnp.array([3.0, 4.0]), state)
        >>> print(update, state[0].seen, state[0].num_clipped)
        [-0.3 -0.4] 5.0 1
    """
    limit = _limit("max_norm", max_norm)
    _rules.not_negative("epsilon", epsilon)

    def clip(updates: PyTree, params: PyTree | None) -> tuple[PyTree, Array, Array]:
        clipped, norm = clip_by_global_norm(updates, limit, epsilon=epsilon)
        return clipped, norm, norm + jnp.asarray(epsilon, norm.dtype)

    return _clipping(clip, limit)


def value_clipping(max_value: Float[ArrayLike, ""]) -> optax.GradientTransformation:
    """`clip_by_value` as a transformation that remembers the largest entry it saw.

    Args:
        max_value: As in [`clip_by_value`][mlnotes_jax.optimization.stability.clip_by_value].

    Returns:
        The transformation. Its state is a
        [`ClipState`][mlnotes_jax.optimization.stability.ClipState], `seen` the size of the largest
        entry before.

    Raises:
        ValueError: As there.
        TypeError: As there.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import stability
        >>> rule = stability.value_clipping(1.0)
        >>> update, state = rule.update(jnp.array([3.0, -0.5]), rule.init(jnp.zeros(2)))
        >>> print(update, state.seen)
        [ 1.  -0.5] 3.0
    """
    limit = _limit("max_value", max_value)

    def clip(updates: PyTree, params: PyTree | None) -> tuple[PyTree, Array, Array]:
        clipped, largest = clip_by_value(updates, limit)
        return clipped, largest, largest

    return _clipping(clip, limit)


def adaptive_clipping(
    max_ratio: Float[ArrayLike, ""] = 0.01,
    *,
    epsilon: Float[ArrayLike, ""] = 1e-3,
    axis: Axis = unit_axes,
) -> optax.GradientTransformation:
    """`adaptive_clip` as a transformation that remembers the largest ratio it saw.

    Its `update` must be given the parameters.

    Args:
        max_ratio: As in [`adaptive_clip`][mlnotes_jax.optimization.stability.adaptive_clip].
        epsilon: As there.
        axis: As there.

    Returns:
        The transformation. Its state is a
        [`ClipState`][mlnotes_jax.optimization.stability.ClipState], `seen` the largest ratio
        before.

    Raises:
        ValueError: As there; or `update` is called without parameters.
        TypeError: As there.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import stability
        >>> rule, params = stability.adaptive_clipping(0.1), jnp.array([[3.0], [4.0]])
        >>> update, state = rule.update(jnp.array([[2.0], [0.0]]), rule.init(params), params)
        >>> print(update.ravel(), state.seen)
        [0.5 0. ] 0.4
    """
    limit = _limit("max_ratio", max_ratio)
    _limit("epsilon", epsilon)

    def clip(updates: PyTree, params: PyTree | None) -> tuple[PyTree, Array, Array]:
        params = _given(params, "adaptive_clipping compares gradients with them")
        clipped, ratio = adaptive_clip(updates, params, max_ratio=limit, epsilon=epsilon, axis=axis)
        return clipped, ratio, ratio

    return _clipping(clip, limit)


def _clipping(
    clip: Callable[[PyTree, PyTree | None], tuple[PyTree, Array, Array]], limit: Array
) -> optax.GradientTransformation:
    """Make a transformation of `clip(updates, params) -> (clipped, seen, what is limited)`."""

    def init(params: PyTree) -> ClipState:
        _rules.check_params(params)
        zero = jnp.zeros((), jnp.int32)
        return ClipState(zero, zero, jnp.zeros((), _widest(params)))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, ClipState]:
        clipped, seen, compared = clip(updates, params)
        over = ~(compared <= limit.astype(compared.dtype))  # NaN was not left as it was either
        num_clipped = jnp.where(over, _rules.next_count(state.num_clipped), state.num_clipped)
        seen = seen.astype(state.seen.dtype)
        return clipped, ClipState(_rules.next_count(state.count), num_clipped, seen)

    return optax.GradientTransformation(init, update)


# --- Constraints ----------------------------------------------------------------------------------


def project_max_norm(params: PyTree, max_norm: Float[ArrayLike, ""], *, axis: Axis) -> PyTree:
    r"""Max-norm constraint: move each unit's weights to the nearest with a norm of at most $c$.

    $$w_i \leftarrow w_i \cdot \min\!\left(1, \frac{c}{\lVert w_i \rVert}\right)$$

    is the projection of $w_i$ onto the ball of radius $c$; units do not feel each other.

    Args:
        params: Weights: a pytree of arrays of floats.
        max_norm: $c > 0$; infinite for no constraint. Traced.
        axis: The axis or axes that make up a unit: over these, norms are taken. 0 for kernels
            (in, out), whose hidden units are columns; (0, 1, 2) for (height, width, in, out). Or a
            function from a leaf to them, or to None for a leaf that is left alone, such as
            `lambda w: 0 if w.ndim == 2 else None`. Static.

    Returns:
        The weights, with their dtypes. A unit whose norm is not finite becomes NaN.

    Raises:
        ValueError: `max_norm` is not positive or no scalar, or a leaf does not have an axis.
        TypeError: A leaf is no array of floats, or `max_norm` is not numeric.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import stability
        >>> kernel = jnp.array([[3.0, 0.6], [4.0, 0.8]])  # two units, of norm 5 and 1
        >>> print(stability.project_max_norm(kernel, 2.0, axis=0))
        [[1.2 0.6]
         [1.6 0.8]]

    Reference: Srebro and Shraibman, *Rank, Trace-Norm and Max-Norm* (2005); Srivastava et al.,
    *Dropout* (2014), section 5.1, after each update.

    Note:
        `torch.renorm(kernel, 2, 1, c)` is the same; its argument is the axis that *counts* the
        units, not those that make one up. Keras has `MaxNorm(c, axis=0)`.
    """
    limit = _limit("max_norm", max_norm)
    _rules.check_params(params)
    order = iter(_axes("params", params, axis))

    def leaf(w: Array, limit: Array) -> tuple[Array, ...]:
        over = next(order)
        return (w if over is None else w * _factor(_norm(w, over), limit),)

    return _rules.per_leaf(leaf, 1, params, scalars=(limit,))[0]


def max_norm_constraint(
    max_norm: Float[ArrayLike, ""], *, axis: Axis
) -> optax.GradientTransformation:
    """`project_max_norm` as a transformation: shorten an update so that it ends in the ball.

    It must be the last of a chain, and its `update` be given the parameters.

    Args:
        max_norm: As in
            [`project_max_norm`][mlnotes_jax.optimization.stability.project_max_norm].
        axis: As there.

    Returns:
        The transformation, without a state. After `optax.apply_updates` the norms are at most
        `max_norm`, up to the rounding of a difference and a sum.

    Raises:
        ValueError: As there; or `update` is called without parameters.
        TypeError: As there.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from mlnotes_jax.optimization import stability
        >>> rule = optax.chain(optax.sgd(1.0), stability.max_norm_constraint(5.0, axis=0))
        >>> params = jnp.array([[3.0], [3.0]])
        >>> update, _ = rule.update(jnp.array([[-3.0], [-5.0]]), rule.init(params), params)
        >>> print((params + update).ravel())  # of (6, 8)
        [3. 4.]
    """
    limit = _limit("max_norm", max_norm)

    def init(params: PyTree) -> optax.EmptyState:
        _rules.check_params(params)
        _axes("params", params, axis)
        return optax.EmptyState()

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, optax.EmptyState]:
        params = _given(params, "max_norm_constraint shortens a step that leaves the ball")
        order = iter(_axes("params", params, axis))

        def leaf(u: Array, w: Array, limit: Array) -> tuple[Array, ...]:
            over, new = next(order), w + u
            return (u if over is None else new * _factor(_norm(new, over), limit) - w,)

        return _rules.per_leaf(leaf, 1, updates, params, scalars=(limit,))[0], state

    return optax.GradientTransformation(init, update)


# --- Noise ----------------------------------------------------------------------------------------


def noise_variance(
    step: ArrayLike, *, eta: Float[ArrayLike, "..."] = 0.01, gamma: Float[ArrayLike, "..."] = 0.55
) -> Float[Array, "..."]:
    r"""The variance of annealed gradient noise: $\eta / (1 + t)^\gamma$.

    Args:
        step: $t$, how many updates were done before, from 0; a number or an array.
        eta: $\eta \ge 0$: the variance at the start. The paper takes 0.01, 0.3 or 1.
        gamma: $\gamma \ge 0$: how fast it falls.

    Returns:
        The variance, shape of `step`.

    Raises:
        ValueError: An argument is negative.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.optimization import stability
        >>> print(stability.noise_variance([0, 3], eta=0.3, gamma=0.5))
        [0.3  0.15]

    Reference: Neelakantan et al., *Adding Gradient Noise Improves Learning for Very Deep Networks*
    (2015), equation 1.
    """
    t = _checks.floating("step", step)
    eta, gamma = _checks.floating("eta", eta), _checks.floating("gamma", gamma)
    for name, value in (("step", t), ("eta", eta), ("gamma", gamma)):
        _checks.not_negative(name, value)
    return eta.astype(t.dtype) / (1 + t) ** gamma.astype(t.dtype)


def add_noise(key: Key[Array, ""], updates: PyTree, *, variance: Float[ArrayLike, ""]) -> PyTree:
    """Add independent Gaussian noise of mean 0 to every entry.

    Args:
        key: Draws the noise.
        updates: Gradients: a pytree of arrays of floats.
        variance: Of the noise, not negative. Traced.

    Returns:
        The gradients with noise, with their dtypes.

    Raises:
        ValueError: `variance` is negative or no scalar, or `key` is not one key.
        TypeError: A leaf is no array of floats, or `key` is no key.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import stability
        >>> noisy = stability.add_noise(jax.random.key(0), jnp.zeros(10_000), variance=0.25)
        >>> print(f"{noisy.std():.1f}")
        0.5
    """
    _check_key(key)
    _rules.not_negative("variance", variance)
    deviation = jnp.sqrt(_checks.floating("variance", variance))
    index = itertools.count()

    def leaf(g: Array, deviation: Array) -> tuple[Array, ...]:
        noise = jax.random.normal(jax.random.fold_in(key, next(index)), g.shape, g.dtype)
        return (g + deviation * noise,)

    return _rules.per_leaf(leaf, 1, updates, scalars=(deviation,))[0]


def gradient_noise(
    key: Key[Array, ""],
    *,
    eta: Float[ArrayLike, ""] = 0.01,
    gamma: Float[ArrayLike, ""] = 0.55,
) -> optax.GradientTransformation:
    r"""Annealed gradient noise: $g_t + \mathcal N(0, \eta / (1 + t)^\gamma)$, $t$ from 0.

    Args:
        key: Draws all the noise; the same key, the same noise.
        eta: $\eta \ge 0$, as in
            [`noise_variance`][mlnotes_jax.optimization.stability.noise_variance]. Traced.
        gamma: $\gamma \ge 0$, likewise. Traced.

    Returns:
        The transformation. Its state is a
        [`NoiseState`][mlnotes_jax.optimization.stability.NoiseState].

    Raises:
        ValueError: `eta` or `gamma` is negative, not finite or no scalar, or `key` is not one key.
        TypeError: `key` is no key; in `init` or `update`, a leaf is no array of floats.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import stability
        >>> rule = stability.gradient_noise(jax.random.key(0), eta=1.0, gamma=2.0)
        >>> state, still = rule.init(jnp.zeros(10_000)), jnp.zeros(10_000)
        >>> for _ in range(3):
        ...     noise, state = rule.update(still, state)
        ...     print(f"{noise.std():.2f}")
        1.00
        0.50
        0.33

    Reference: Neelakantan et al. (2015), section 3.

    Note:
        `optax.add_noise(eta, gamma, key)` has the same variances and other draws.
    """
    _check_key(key)
    _rules.not_negative("eta", eta)
    _rules.not_negative("gamma", gamma)

    def init(params: PyTree) -> NoiseState:
        _rules.check_params(params)
        return NoiseState(jnp.zeros((), jnp.int32), key)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, NoiseState]:
        del params
        variance = noise_variance(state.count, eta=eta, gamma=gamma)
        now = jax.random.fold_in(state.key, state.count)
        noisy = add_noise(now, updates, variance=variance)
        return noisy, NoiseState(_rules.next_count(state.count), state.key)

    return optax.GradientTransformation(init, update)


# --- Steps left out -------------------------------------------------------------------------------


def skip_non_finite(
    inner: optax.GradientTransformation, *, max_in_a_row: int | None = 10
) -> optax.GradientTransformationExtraArgs:
    """Leave out an update whose gradient, or whose step, is not finite; count it; give up in time.

    A left-out update is zero, and the state of `inner` stays as it was, its count and schedule
    included. Nothing is lost silently: the state counts what was left out, and after more than
    `max_in_a_row` without a break the rule gives up, lets them through, and NaN reaches the
    parameters, where every guard sees it.

    Args:
        inner: The rule, or a chain of them.
        max_in_a_row: How many updates in a row are left out; with 0, none. None never gives up:
            then look at `num_skipped`. May be traced.

    Returns:
        The rule. Its state is a [`SkipState`][mlnotes_jax.optimization.stability.SkipState].

    Raises:
        ValueError: `max_in_a_row` is negative or no scalar.
        TypeError: `inner` is no `optax.GradientTransformation`, or `max_in_a_row` no integer.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from mlnotes_jax.optimization import stability
        >>> rule = stability.skip_non_finite(optax.sgd(0.1))
        >>> state = rule.init(jnp.zeros(2))
        >>> update, state = rule.update(jnp.array([1.0, jnp.nan]), state)
        >>> print(update, state.num_skipped)
        [0. 0.] 1

    Note:
        `optax.apply_if_finite` is the same, but for looking at the gradient only, not at the step
        that `inner` makes of it.
    """
    if not isinstance(inner, optax.GradientTransformation):
        kind = type(inner).__name__
        raise TypeError(f"inner must be an optax.GradientTransformation, got {kind}")
    limit = None
    if max_in_a_row is not None:
        limit = _checks.count("max_in_a_row", max_in_a_row, least=0)
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> SkipState:
        zero = jnp.zeros((), jnp.int32)
        return SkipState(zero, zero, zero, inner.init(params))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, SkipState]:
        step, after = inner.update(updates, state.inner, params, **extra)
        finite = _all_finite((updates, step))
        in_a_row = jnp.where(finite, 0, _rules.next_count(state.in_a_row))
        taken = finite if limit is None else finite | (in_a_row > limit)
        step = jax.tree.map(lambda u: jnp.where(taken, u, jnp.zeros_like(u)), step)
        kept = jax.tree.map(lambda new, old: jnp.where(taken, new, old), after, state.inner)
        skipped = jnp.where(taken, state.num_skipped, _rules.next_count(state.num_skipped))
        return step, SkipState(_rules.next_count(state.count), skipped, in_a_row, kept)

    return optax.GradientTransformationExtraArgs(init, update)


# --- Small parts ----------------------------------------------------------------------------------


def _factor(norm: Array, limit: Array, epsilon: ArrayLike = 0.0) -> Array:
    """What brings a norm down to a limit; NaN where the norm is not finite."""
    over = norm + epsilon > limit
    factor = jnp.where(over, limit / jnp.where(over, norm + epsilon, 1), 1)
    return jnp.where(jnp.isfinite(norm), factor, jnp.nan)


@jax.jit  # once, however often it is called outside of a compiled function
def _norm_of_all(leaves: list[Array]) -> Array:
    # One pass over the numbers on a CPU, where a branch is cheap; it would make a GPU wait.
    return lax.platform_dependent(leaves, cpu=_norm_in_one_pass, default=_norm_in_two_passes)


def _norm_in_one_pass(leaves: list[Array]) -> Array:
    total = _sum(jnp.square(leaf).sum() for leaf in leaves)
    # Where the sum is this large, squares that vanished do not count.
    safe = (total > float(jnp.finfo(total.dtype).tiny) ** 0.5) & (total < jnp.inf)
    root = jnp.sqrt(jnp.where(safe, total, 1))
    return lax.cond(safe, lambda leaves: root, _norm_in_two_passes, leaves)


def _norm_in_two_passes(leaves: list[Array]) -> Array:
    scale = _scale(_largest([abs(leaf).max(initial=0) for leaf in leaves]))
    total = _sum(jnp.square(leaf / scale.astype(leaf.dtype)).sum() for leaf in leaves)
    return scale * _root(total)


def _norm(x: Array, axes: tuple[int, ...]) -> Array:
    """Norms over some axes, which stay with length 1; safe for squares too large or too small."""
    scale = _scale(abs(x).max(axis=axes, keepdims=True, initial=0))
    return scale * _root(jnp.square(x / scale).sum(axis=axes, keepdims=True))


def _scale(largest: Array) -> Array:
    """What to divide by before squaring. The norm does not depend on it, nor does its slope."""
    return lax.stop_gradient(jnp.where(jnp.isfinite(largest) & (largest > 0), largest, 1))


def _root(x: Array) -> Array:
    """The square root, with the derivative 0 at 0."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


def _widest(tree: PyTree) -> Any:
    """The widest dtype of the leaves, at least float32."""
    dtypes = [_rules.wide(jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)]
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits, default=jnp.float32)


def _largest(tree: PyTree) -> Array:
    """The largest of the scalars in a tree, at least 0; NaN where one is."""
    dtype = _widest(tree)
    leaves = [leaf.astype(dtype) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.maximum, leaves, jnp.zeros((), dtype))


def _sum(scalars: Iterable[Array]) -> Array:
    found = list(scalars)
    dtype = _widest(found)
    return sum((scalar.astype(dtype) for scalar in found), jnp.zeros((), dtype))


def _axes(name: str, tree: PyTree, axis: Axis) -> list[tuple[int, ...] | None]:
    """The axes of a unit for each leaf, checked."""
    found: list[tuple[int, ...] | None] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        chosen = axis(leaf) if callable(axis) else axis
        if chosen is None:
            found.append(None)
            continue
        axes = (chosen,) if isinstance(chosen, int) else tuple(chosen)
        ndim = jnp.ndim(leaf)
        if not all(-ndim <= a < ndim for a in axes):
            place = jax.tree_util.keystr(path)
            raise ValueError(
                f"axis must be axes of {name}{place}, of shape {jnp.shape(leaf)}, got {chosen}"
            )
        found.append(axes)
    return found


def _limit(name: str, value: ArrayLike) -> Array:
    array = _checks.floating(name, value, ndim=0)
    _checks.positive(name, array)
    return array


def _given(params: PyTree | None, why: str) -> PyTree:
    if params is None:
        raise ValueError(f"params must be given to update: {why}; got None")
    return params


def _check_key(key: Any) -> None:
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(f"key must be a jax.random.key, got {type(key).__name__}")
    if key.shape:
        raise ValueError(f"key must be one key, got shape {key.shape}")


def _all_finite(tree: PyTree) -> Array:
    checks = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, checks, jnp.ones((), bool))
