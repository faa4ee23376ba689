r"""Two ways to make weights small: L2 in the loss, and decay beside the rule.

$$\underbrace{g_t = \nabla L(\theta_t) + \lambda\, \theta_t}_{\text{L2: the penalty }
  \frac\lambda2 \lVert\theta\rVert^2 \text{ goes through the rule}}, \qquad
  \underbrace{\theta_{t+1} = \theta_t - s_t \lambda\, \theta_t
  + u_t}_{\text{decoupled: the rule's update } u_t \text{ never sees it}}$$

For plain descent both are the same (with $s_t = \eta_t$); under momentum, and above all under a
rule that divides by the size of the gradients, they are not.

Reference: Loshchilov and Hutter, *Decoupled Weight Decay Regularization* (2019), algorithms 1, 2.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.optimization import _rules
from mlnotes_jax.optimization import adam as _adam
from mlnotes_jax.optimization import momentum as _momentum

__all__ = ["adam_l2", "adamw", "matrices", "sgd_l2", "sgdw"]

#: Which leaves decay: a tree of bools like the parameters, or a prefix of it, or a function that
#: makes it from the parameters.
Mask = PyTree | Callable[[PyTree], PyTree]
DecayBy = Literal["learning_rate", "multiplier"]


def sgd_l2(
    learning_rate: _rules.Rate,
    *,
    weight_decay: _rules.Rate = 1e-2,
    momentum: Float[ArrayLike, ""] = 0.0,
    rate_in_momentum: bool = False,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    r"""SGD on the loss plus $\frac\lambda2 \lVert\theta\rVert^2$.

    $$v_t = \beta\, v_{t-1} + g_t + \lambda\, \theta_t, \qquad
      \theta_{t+1} = \theta_t - \eta_t v_t$$

    Args:
        learning_rate: $\eta$: a number, traced or not, or an Optax schedule.
        weight_decay: $\lambda \ge 0$: likewise.
        momentum: $\beta$, in [0, 1). Traced; a Python 0 spares the memory of the velocity.
        rate_in_momentum: Whether the velocity sums $\eta_t (g_t + \lambda \theta_t)$, or is
            multiplied by $\eta_t$ afterwards; the same for a constant rate. Static.
        mask: Which leaves decay, as in Optax: a tree of bools like the parameters or a prefix of
            it, or a function from the parameters to it; all, where None. See `matrices`.

    Returns:
        The rule; `update` needs the parameters. Its state is that of `momentum.sgd`, or of
        `momentum.heavy_ball` (`notes_momentum`, if the rate is in the momentum).

    Raises:
        ValueError: A number is negative or not finite, or no scalar; `momentum` is not in [0, 1);
            `mask` does not fit; `update` was not given the parameters.
        TypeError: A number is not real, `mask` holds something else than bools; in `init` and
            `update`, a leaf is no array of floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import weight_decay
        >>> rule, params = weight_decay.sgd_l2(0.5, weight_decay=0.25), jnp.array([8.0, -8.0])
        >>> updates, _ = rule.update(jnp.array([1.0, 1.0]), rule.init(params), params)
        >>> updates.tolist()
        [-1.5, 0.5]

    Reference:
        Loshchilov and Hutter (2019), algorithm 1, for `rate_in_momentum=True`.

    Note:
        `torch.optim.SGD(momentum=, weight_decay=)`, and `optax.add_decayed_weights` before
        `optax.sgd`. Some write the penalty as $\lambda \lVert\theta\rVert^2$: their $\lambda$ is
        half of ours.
    """
    inner = _sgd(learning_rate, momentum, rate_in_momentum)
    return _coupled(inner, weight_decay, mask)


def sgdw(
    learning_rate: _rules.Rate,
    *,
    weight_decay: _rules.Rate = 1e-2,
    momentum: Float[ArrayLike, ""] = 0.0,
    rate_in_momentum: bool = False,
    multiplier: _rules.Rate = 1.0,
    decay_by: DecayBy = "learning_rate",
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    r"""SGD, and beside it every weight shrinks by a share of itself.

    $$v_t = \beta\, v_{t-1} + g_t, \qquad
      \theta_{t+1} = \theta_t - \eta_t \alpha_t\, v_t - s_t \lambda_t\, \theta_t, \qquad
      s_t = \eta_t \alpha_t \text{ or } \eta_t$$

    Args:
        learning_rate: $\alpha$: a number, traced or not, or an Optax schedule.
        weight_decay: $\lambda \ge 0$: likewise.
        momentum: $\beta$, in [0, 1). Traced; a Python 0 spares the memory of the velocity.
        rate_in_momentum: Whether the velocity sums $\eta_t \alpha_t g_t$; static.
        multiplier: $\eta$, the schedule multiplier of the paper: a factor of the rate *and* of the
            decay. A number or an Optax schedule.
        decay_by: $s_t$: `"learning_rate"` is $\eta_t \alpha_t$; `"multiplier"` is $\eta_t$ alone,
            so that a change of $\alpha$ leaves the decay as it is. Static.
        mask: Which leaves decay; see `sgd_l2`.

    Returns:
        The rule; `update` needs the parameters. Its state is as in `sgd_l2`.

    Raises:
        ValueError: As in `sgd_l2`; or `decay_by` is unknown.
        TypeError: As in `sgd_l2`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import weight_decay
        >>> params, slope = jnp.array(8.0), jnp.array(1.0)
        >>> for decay_by in ("learning_rate", "multiplier"):
        ...     rule = weight_decay.sgdw(0.5, weight_decay=0.25, decay_by=decay_by)
        ...     print(rule.update(slope, rule.init(params), params)[0])  # -0.5 - s * 0.25 * 8
        -1.5
        -2.5

    Reference:
        Loshchilov and Hutter (2019), algorithm 1: `rate_in_momentum=True, decay_by="multiplier"`.
    """
    rate, shrink = _scales(learning_rate, weight_decay, multiplier, decay_by)
    return _decoupled(_sgd(rate, momentum, rate_in_momentum), shrink, mask)


def adam_l2(
    learning_rate: _rules.Rate = 1e-3,
    *,
    weight_decay: _rules.Rate = 1e-2,
    beta1: Float[ArrayLike, ""] = 0.9,
    beta2: Float[ArrayLike, ""] = 0.999,
    epsilon: Float[ArrayLike, ""] = 1e-8,
    epsilon_in_root: bool = False,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    r"""Adam on the loss plus $\frac\lambda2 \lVert\theta\rVert^2$.

    Both moments see $g_t + \lambda \theta_t$. So the decay is divided by the size of the gradients,
    too: weights with large gradients hardly decay, weights without gradient go to zero at full
    speed.

    Args:
        learning_rate: $\eta$: a number, traced or not, or an Optax schedule.
        weight_decay: $\lambda \ge 0$: likewise.
        beta1: Decay of the first moment, in [0, 1). Traced.
        beta2: Decay of the second moment, in [0, 1). Traced.
        epsilon: As in `adam.adam`.
        epsilon_in_root: As in `adam.adam`; static.
        mask: Which leaves decay; see `sgd_l2`.

    Returns:
        The rule; `update` needs the parameters. Its state is that of `adam.adam`.

    Raises:
        ValueError: As in `sgd_l2`; or a beta is not in [0, 1).
        TypeError: As in `sgd_l2`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import weight_decay
        >>> rule, params = weight_decay.adam_l2(0.5, weight_decay=0.25), jnp.array([8.0, -8.0])
        >>> updates, _ = rule.update(jnp.array([1.0, 1.0]), rule.init(params), params)
        >>> updates.round(4).tolist()  # whatever the decay: the first step is the rate
        [-0.5, 0.5]

    Reference:
        Loshchilov and Hutter (2019), algorithm 2 without the green.

    Note:
        `torch.optim.Adam(weight_decay=)`, and `optax.add_decayed_weights` before `optax.adam`.
    """
    inner = _adam.adam(
        learning_rate,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
        epsilon_in_root=epsilon_in_root,
    )
    return _coupled(inner, weight_decay, mask)


def adamw(
    learning_rate: _rules.Rate = 1e-3,
    *,
    weight_decay: _rules.Rate = 1e-2,
    beta1: Float[ArrayLike, ""] = 0.9,
    beta2: Float[ArrayLike, ""] = 0.999,
    epsilon: Float[ArrayLike, ""] = 1e-8,
    epsilon_in_root: bool = False,
    multiplier: _rules.Rate = 1.0,
    decay_by: DecayBy = "learning_rate",
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    r"""AdamW: Adam, and beside it every weight shrinks by a share of itself.

    $$\theta_{t+1} = \theta_t - \eta_t \alpha_t\, \frac{\hat m_t}{\sqrt{\hat v_t} + \varepsilon}
      - s_t \lambda_t\, \theta_t, \qquad s_t = \eta_t \alpha_t \text{ or } \eta_t$$

    Args:
        learning_rate: $\alpha$: a number, traced or not, or an Optax schedule.
        weight_decay: $\lambda \ge 0$: likewise.
        beta1: Decay of the first moment, in [0, 1). Traced.
        beta2: Decay of the second moment, in [0, 1). Traced.
        epsilon: As in `adam.adam`.
        epsilon_in_root: As in `adam.adam`; static.
        multiplier: $\eta$, the schedule multiplier of the paper: a factor of the rate *and* of the
            decay. A number or an Optax schedule.
        decay_by: $s_t$: `"learning_rate"` (PyTorch, Optax) is $\eta_t \alpha_t$; `"multiplier"`
            (the paper) is $\eta_t$ alone. Static.
        mask: Which leaves decay; see `sgd_l2`.

    Returns:
        The rule; `update` needs the parameters. Its state is that of `adam.adam`.

    Raises:
        ValueError: As in `sgd_l2`; a beta is not in [0, 1), or `decay_by` is unknown.
        TypeError: As in `sgd_l2`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import weight_decay
        >>> rule, params = weight_decay.adamw(0.5, weight_decay=0.25), jnp.array([8.0, -8.0])
        >>> updates, _ = rule.update(jnp.array([1.0, 1.0]), rule.init(params), params)
        >>> updates.round(4).tolist()
        [-1.5, 0.5]

    Reference:
        Loshchilov and Hutter (2019), algorithm 2.

    Note:
        `torch.optim.AdamW` has these defaults; `optax.adamw` differs in `weight_decay=1e-4`. The
        $\lambda$ of the paper is the $\alpha\lambda$ of these two. A mask that is a function is to
        be named in `static_args` of `optax.inject_hyperparams`, as with Optax's own rules.
    """
    rate, shrink = _scales(learning_rate, weight_decay, multiplier, decay_by)
    inner = _adam.adam(
        rate, beta1=beta1, beta2=beta2, epsilon=epsilon, epsilon_in_root=epsilon_in_root
    )
    return _decoupled(inner, shrink, mask)


def matrices(params: PyTree) -> PyTree:
    """The usual mask: kernels decay, biases and the scales of normalisation do not.

    Args:
        params: The parameters.

    Returns:
        A tree like `params`: whether a leaf has two axes or more.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import weight_decay
        >>> weight_decay.matrices({"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)})
        {'bias': False, 'kernel': True}
    """
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)


# --- The two ways, around any rule that counts its updates ----------------------------------------


def _coupled(
    inner: optax.GradientTransformation, weight_decay: _rules.Rate, mask: Mask | None
) -> optax.GradientTransformation:
    """Add lambda theta to the gradient, before the rule."""
    decay = _rules.rate(weight_decay, name="weight_decay")

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        return inner.update(_plus(updates, decay(state.count), params, mask), state, params)

    return optax.GradientTransformation(_init(inner, mask), update)


def _decoupled(
    inner: optax.GradientTransformation, shrink: optax.Schedule, mask: Mask | None
) -> optax.GradientTransformation:
    """Take a share of theta away, after the rule."""

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        step, new_state = inner.update(updates, state, params)
        return _plus(step, -jnp.asarray(shrink(state.count)), params, mask), new_state

    return optax.GradientTransformation(_init(inner, mask), update)


def _init(inner: optax.GradientTransformation, mask: Mask | None) -> optax.TransformInitFn:
    def init(params: PyTree) -> Any:
        state = inner.init(params)
        _chosen(mask, params)
        return state

    return init


def _sgd(
    rate: _rules.Rate, momentum: ArrayLike, rate_in_momentum: bool
) -> optax.GradientTransformation:
    _checks.one_of("rate_in_momentum", rate_in_momentum, (False, True))
    # By its type, so that a rule has one state whether its numbers are traced or not.
    if isinstance(momentum, int | float) and momentum == 0:
        return _momentum.sgd(rate)
    rule = _momentum.notes_momentum if rate_in_momentum else _momentum.heavy_ball
    return rule(rate, momentum=momentum)


def _scales(
    learning_rate: _rules.Rate,
    weight_decay: _rules.Rate,
    multiplier: _rules.Rate,
    decay_by: DecayBy,
) -> tuple[optax.Schedule, optax.Schedule]:
    """The learning rate, and the share by which weights shrink, of each update."""
    alpha = _rules.rate(learning_rate)
    decay = _rules.rate(weight_decay, name="weight_decay")
    eta = _rules.rate(multiplier, name="multiplier")
    _checks.one_of("decay_by", decay_by, ("learning_rate", "multiplier"))
    dtype = jnp.result_type(float)

    def rate(count: ArrayLike) -> Array:
        count = jnp.asarray(count)
        return eta(count).astype(dtype) * alpha(count).astype(dtype)

    def shrink(count: ArrayLike) -> Array:
        count = jnp.asarray(count)
        scale = rate(count) if decay_by == "learning_rate" else eta(count).astype(dtype)
        return scale * decay(count).astype(dtype)

    return rate, shrink


def _plus(updates: PyTree, factor: Array, params: PyTree | None, mask: Mask | None) -> PyTree:
    """`updates + factor * params` on the leaves that decay."""
    if params is None:
        raise ValueError(
            "params must be given, as weights decay: call update(updates, state, params)"
        )
    chosen = iter(_chosen(mask, params))  # `per_leaf` takes the leaves in their order

    def leaf(u: Array, p: Array, factor: Array) -> tuple[Array]:
        return (u + factor * p if next(chosen) else u,)

    (total,) = _rules.per_leaf(leaf, 1, updates, params, scalars=(factor,))
    return total


def _chosen(mask: Mask | None, params: PyTree) -> list[bool]:
    """Which leaves decay, in their order."""
    if mask is None:
        return [True] * len(jax.tree.leaves(params))
    tree = mask(params) if callable(mask) else mask
    try:
        spread = jax.tree.map(lambda on, part: jax.tree.map(lambda _: on, part), tree, params)
    except ValueError as error:
        raise ValueError(
            f"mask must have the structure of params or of its upper part: {error}"
        ) from error
    for on in jax.tree.leaves(tree):
        if not isinstance(on, bool | np.bool_):
            raise TypeError(f"mask must be a tree of bools, got {type(on).__name__}")
    return jax.tree.leaves(spread)
