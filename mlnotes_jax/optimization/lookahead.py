r"""Lookahead: k steps forward with any rule, then one step back to a slow copy.

Fast weights $\theta$ start at the slow weights $\phi$ and take $k$ steps of an inner rule; then the
slow weights move a share $\alpha$ of the way, and the fast weights start again from there:

$$\theta_{t,0} = \phi_{t-1}, \qquad \theta_{t,j} = \theta_{t,j-1} + u(\theta_{t,j-1}), \qquad
  \phi_t = \phi_{t-1} + \alpha\, (\theta_{t,k} - \phi_{t-1}).$$

Where plain descent multiplies the distance to the minimum by $a = 1 - \eta h$, a period multiplies
it by $1 - \alpha + \alpha a^k$; the variance at which the slow weights settle is the share
$\alpha (1 + a^k) / (2 - \alpha (1 - a^k))$ of that of plain descent.

Reference: Zhang, Lucas, Hinton and Ba, *Lookahead Optimizer: k steps forward, 1 step back*
(NeurIPS 2019).
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.optimization import _rules

__all__ = [
    "LookaheadState",
    "lookahead",
    "slow_variance",
    "slow_weights",
    "sync_factor",
]


class LookaheadState(NamedTuple):
    r"""What `lookahead` remembers.

    Attributes:
        count: Updates done, shape `()`; a period has ended where `sync_period` divides it.
        slow: The slow weights $\phi$ of the last period's end; like the parameters, in at least
            float32.
        inner: The state of the inner rule.
    """

    count: Int[Array, ""]
    slow: PyTree
    inner: PyTree


def lookahead(
    inner: optax.GradientTransformation,
    *,
    sync_period: Int[ArrayLike, ""] = 5,
    slow_step_size: Float[ArrayLike, ""] = 0.5,
    inner_state: Literal["keep", "reset"] = "keep",
) -> optax.GradientTransformationExtraArgs:
    r"""Wrap a rule: after every $k$ of its steps, go back to a share $\alpha$ of the way.

    The parameters outside are the fast weights: the gradient is taken there. The slow weights are
    in the state. The update is that of the inner rule, $u$; in the step that ends a period it leads
    to the new slow weights instead, $\phi + \alpha\, (\theta + u - \phi) - \theta$. So it must be
    the last link of a chain: what changes the update behind it would part the two copies.

    Args:
        inner: Any rule.
        sync_period: $k \ge 1$, traced or not.
        slow_step_size: $\alpha$ in [0, 1], traced or not. 1 is the inner rule alone; 0 never leaves
            the start.
        inner_state: What becomes of the inner rule's state at the end of a period; static. `"keep"`
            it, or `"reset"` it to what its `init` makes of the new parameters.

    Returns:
        The rule. Its `update` needs `params`, and hands other keyword arguments on to `inner`. Its
        state is a [`LookaheadState`][mlnotes_jax.optimization.lookahead.LookaheadState].

    Raises:
        ValueError: `sync_period` is less than 1, `slow_step_size` is not in [0, 1], or
            `inner_state` is unknown; in `update`, `params` is missing or not like that of `init`.
        TypeError: `inner` is no gradient transformation, `sync_period` no integer; in `init` or
            `update`, a leaf is no array of floats.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from mlnotes_jax.optimization import lookahead, momentum
        >>> rule = lookahead.lookahead(momentum.sgd(1.0), sync_period=2, slow_step_size=0.5)
        >>> params = jnp.array(0.0)
        >>> state = rule.init(params)
        >>> for _ in range(4):
        ...     update, state = rule.update(jnp.array(-1.0), state, params)
        ...     params = optax.apply_updates(params, update)
        ...     print(params)
        1.0
        1.0
        2.0
        2.0

    Note:
        `optax.lookahead` holds the same numbers as pairs: its parameters are an
        `optax.LookaheadParams` of both copies. Here they are ordinary, and 32 bits of the slow
        copy are kept also where the parameters have 16. The paper's own code offers both choices
        of `inner_state`, and a third that mixes the inner state as it mixes the weights.

    Reference: Zhang et al. (2019), algorithm 1.
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"inner must be an optax.GradientTransformation, got {inner!r}")
    period = _checks.count("sync_period", sync_period)
    _rules.scalar("slow_step_size", slow_step_size)
    _checks.in_range("slow_step_size", slow_step_size, 0, 1)
    _checks.one_of("inner_state", inner_state, ("keep", "reset"))
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> LookaheadState:
        _rules.check_params(params)
        # A copy, so that both trees can be donated.
        slow = jax.tree.map(lambda p: jnp.array(p, _rules.wide(jnp.result_type(p))), params)
        return LookaheadState(jnp.zeros((), jnp.int32), slow, inner.init(params))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: PyTree
    ) -> tuple[PyTree, LookaheadState]:
        if params is None:
            raise ValueError("params must be given to the update of lookahead, got None")
        steps, inner_next = inner.update(updates, state.inner, params, **extra)
        count = _rules.next_count(state.count)
        ends = count % period == 0

        def leaf(u: Array, theta: Array, slow: Array, alpha: Array) -> tuple[Array, ...]:
            after = slow + alpha * (theta + u - slow)
            return jnp.where(ends, after - theta, u), jnp.where(ends, after, slow)

        step, slow = _rules.per_leaf(leaf, 2, steps, params, state.slow, scalars=(slow_step_size,))
        if inner_state == "reset":
            fresh = inner.init(optax.apply_updates(params, step))
            inner_next = jax.tree.map(lambda new, old: jnp.where(ends, new, old), fresh, inner_next)
        return step, LookaheadState(count, slow, inner_next)

    return optax.GradientTransformationExtraArgs(init, update)


def slow_weights(state: LookaheadState, params: PyTree) -> PyTree:
    """Read the slow weights: what to evaluate, and what to keep at the end.

    Args:
        state: Of [`lookahead`][mlnotes_jax.optimization.lookahead.lookahead]. In the state of a
            chain, it is the entry of that link.
        params: The parameters, for their dtypes.

    Returns:
        The slow weights of the last period's end, with the dtypes of `params`.

    Raises:
        TypeError: `state` is another one.
        ValueError: `params` are not like the slow weights.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import lookahead, momentum
        >>> rule = lookahead.lookahead(momentum.sgd(1.0))
        >>> state = rule.init(jnp.array(3.0))
        >>> _, state = rule.update(jnp.array(1.0), state, jnp.array(3.0))
        >>> print(lookahead.slow_weights(state, jnp.array(2.0)))  # the fast ones have moved
        3.0
    """
    if not isinstance(state, LookaheadState):
        raise TypeError(f"state must be a LookaheadState, got {type(state).__name__}")
    _rules.same_tree("params", params, state.slow, of="the slow weights")
    return jax.tree.map(lambda slow, p: slow.astype(jnp.result_type(p)), state.slow, params)


def sync_factor(
    curvature: Float[ArrayLike, "..."],
    *,
    learning_rate: Float[ArrayLike, ""],
    sync_period: Int[ArrayLike, ""] = 5,
    slow_step_size: Float[ArrayLike, ""] = 0.5,
) -> Float[Array, "..."]:
    r"""What one period does to the distance from the minimum of a quadratic: $1-\alpha+\alpha a^k$.

    The inner rule is plain descent, $a = 1 - \eta h$ in a direction of curvature $h$.

    Args:
        curvature: $h$, any shape; elementwise.
        learning_rate: $\eta > 0$.
        sync_period: $k \ge 1$.
        slow_step_size: $\alpha$ in [0, 1].

    Returns:
        The factor, with its sign, shape of `curvature`. Between $-1$ and $1$ is convergence. For
        one step, take the $k$-th root of its size.

    Raises:
        ValueError: `learning_rate` is not positive, `sync_period` is less than 1, or
            `slow_step_size` is not in [0, 1].
        TypeError: `sync_period` is no integer.

    Example:
        >>> from mlnotes_jax.optimization import lookahead
        >>> print(lookahead.sync_factor(1.0, learning_rate=0.5, sync_period=2))
        0.625

    Reference: Zhang et al. (2019), section 3.2, without momentum.
    """
    h = _checks.floating("curvature", curvature)
    eta, k, alpha = _settings(h, learning_rate, sync_period, slow_step_size)
    return 1 - alpha * (1 - (1 - eta * h) ** k)


def slow_variance(
    curvature: Float[ArrayLike, "..."],
    *,
    learning_rate: Float[ArrayLike, ""],
    noise_variance: Float[ArrayLike, ""],
    sync_period: Int[ArrayLike, ""] = 5,
    slow_step_size: Float[ArrayLike, ""] = 0.5,
) -> Float[Array, "..."]:
    r"""Variance at which the slow weights settle in a bowl, under noisy gradients.

    $$\frac{\alpha\, (1 + a^k)}{2 - \alpha\, (1 - a^k)}\, s^2, \qquad a = 1 - \eta h, \qquad
      s^2 = \frac{\eta^2 v}{1 - a^2},$$

    where $s^2$ is that of plain descent,
    [`averaging.iterate_variance`][mlnotes_jax.optimization.averaging.iterate_variance].

    Args:
        curvature: $h > 0$, any shape; elementwise.
        learning_rate: $\eta > 0$.
        noise_variance: $v \ge 0$, of each gradient; independent from step to step.
        sync_period: $k \ge 1$.
        slow_step_size: $\alpha$ in (0, 1]; at 0 the slow weights would stay where they begin.

    Returns:
        The variance, shape of `curvature`; infinite where `sync_factor` is not between $-1$ and
        $1$. For an odd $k$ that is further than where plain descent diverges.

    Raises:
        ValueError: `curvature`, `learning_rate` or `slow_step_size` is not positive,
            `noise_variance` negative, `sync_period` less than 1 or `slow_step_size` more than 1.
        TypeError: `sync_period` is no integer.

    Example:
        >>> from mlnotes_jax.optimization import lookahead
        >>> options = {"learning_rate": 1.0, "noise_variance": 3.0}  # a = 0: s^2 = 3
        >>> print(lookahead.slow_variance(1.0, **options))
        1.0

    Reference: Zhang et al. (2019), proposition 2, in a simpler form.
    """
    h = _checks.floating("curvature", curvature)
    _checks.positive("curvature", h)
    _checks.positive("slow_step_size", slow_step_size)
    _checks.not_negative("noise_variance", noise_variance)
    eta, k, alpha = _settings(h, learning_rate, sync_period, slow_step_size)
    a = 1 - eta * h
    power = a**k
    # The noise of the k steps of a period: 1 + a^2 + ... + a^(2k - 2), which is k at a = -1.
    gap = eta * h * (1 + a)
    edge = jnp.abs(gap) < jnp.sqrt(jnp.finfo(h.dtype).eps)
    series = (1 - power * power) / jnp.where(edge, 1.0, gap)
    series = jnp.where(edge, k, series)
    left = (1 - power) * (2 - alpha * (1 - power))  # (1 - factor^2) / alpha
    stable = left > 0
    noise = jnp.square(eta) * jnp.asarray(noise_variance, h.dtype) * series
    return jnp.where(stable, alpha * noise / jnp.where(stable, left, 1.0), jnp.inf)


def _settings(
    h: Array, learning_rate: ArrayLike, sync_period: ArrayLike, slow_step_size: ArrayLike
) -> tuple[Array, Array, Array]:
    """Rate, period and slow step, checked, in the dtype of the curvature."""
    _checks.positive("learning_rate", learning_rate)
    k = _checks.count("sync_period", sync_period)
    _checks.in_range("slow_step_size", slow_step_size, 0, 1)
    # The period as a float: a power with a whole exponent has its sign, and a gradient.
    eta, k, alpha = (jnp.asarray(v, h.dtype) for v in (learning_rate, k, slow_step_size))
    return eta, k, alpha
