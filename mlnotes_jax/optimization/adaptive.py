r"""A rate for each parameter: Adagrad and RMSProp, the usual forms and the notes' own.

Every rule of this module divides the gradient, entry by entry, by a root of its past squares:

$$\theta_{t+1} = \theta_t - \eta_t\, \frac{g_t}{\sqrt{v_t} + \varepsilon}, \qquad
  v_t = \sum_{k=0}^{t} w_{t,k}\, g_k^2 ,$$

and the rules differ in the weights $w_{t,k}$ alone: 1 (Adagrad), $1/(t+1)$ (the notes' root mean
square), $(1 - \alpha)\, \alpha^{t-k}$ (RMSProp), and the same with the rest $\alpha^{t+1}$ given to
the first gradient (the notes' recursion). `square_weights` lists them.

Reference: Duchi, Hazan and Singer, *Adaptive Subgradient Methods for Online Learning and Stochastic
Optimization* (2011), figure 1; Tieleman and Hinton, *Neural Networks for Machine Learning*, lecture
6.5 (2012).
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.optimization import _rules

__all__ = [
    "AdagradState",
    "RMSPropState",
    "adagrad",
    "notes_rmsprop",
    "rmsprop",
    "root_mean_adagrad",
    "square_weights",
]

Rule = Literal["adagrad", "root_mean_adagrad", "rmsprop", "notes_rmsprop"]


class AdagradState(NamedTuple):
    """What Adagrad remembers.

    Attributes:
        count: Updates done, shape `()`, int32.
        square: Sum of the squared gradients (`root_mean_adagrad`: their mean), like the
            parameters, in at least float32.
    """

    count: Int[Array, ""]
    square: PyTree


class RMSPropState(NamedTuple):
    """What RMSProp remembers; each tree is like the parameters, in at least float32.

    Attributes:
        count: Updates done, shape `()`, int32.
        square: Average of the squared gradients; when centered, their variance.
        mean: Average of the gradients; None unless centered.
        velocity: Of the momentum; None without momentum.
    """

    count: Int[Array, ""]
    square: PyTree
    mean: PyTree | None
    velocity: PyTree | None


def adagrad(
    learning_rate: _rules.Rate,
    *,
    initial_accumulator: Float[ArrayLike, ""] = 0.0,
    epsilon: Float[ArrayLike, ""] = 1e-10,
    epsilon_in_root: bool = False,
) -> optax.GradientTransformation:
    r"""Adagrad, the standard form: divide by the root of the *sum* of all squared gradients.

    $$v_t = v_{t-1} + g_t^2, \qquad
      \theta_{t+1} = \theta_t - \eta_t\, g_t / (\sqrt{v_t} + \varepsilon)$$

    Args:
        learning_rate: $\eta$: a number, traced or not, or an Optax schedule.
        initial_accumulator: $v_{-1} \ge 0$. Traced.
        epsilon: $\varepsilon \ge 0$. Traced. With 0, an entry whose gradients were all zero stays.
        epsilon_in_root: Whether to divide by $\sqrt{v_t + \varepsilon}$ instead; static.

    Returns:
        The rule; its state is an `AdagradState`.

    Raises:
        ValueError: A number is negative or not finite, or no scalar.
        TypeError: A number is not real; in `init` and `update`, a leaf is no array of floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import adaptive
        >>> rule = adaptive.adagrad(0.625)
        >>> state = rule.init(jnp.zeros(2))
        >>> for gradient in ([3.0, 0.03], [4.0, 0.04]):
        ...     updates, state = rule.update(jnp.array(gradient), state)
        ...     print(updates.round(4).tolist())
        [-0.625, -0.625]
        [-0.5, -0.5]

    Reference:
        Duchi, Hazan and Singer (2011), figure 1, diagonal version.

    Note:
        `torch.optim.Adagrad` has these defaults, and `lr_decay`, which here is the schedule
        `lambda t: lr / (1 + t * lr_decay)`. `optax.adagrad` is `initial_accumulator=0.1,
        epsilon=1e-7, epsilon_in_root=True`. TensorFlow starts from 0.1, too.
    """
    rate = _rules.rate(learning_rate)
    _rules.not_negative("initial_accumulator", initial_accumulator)
    _rules.not_negative("epsilon", epsilon)
    _checks.one_of("epsilon_in_root", epsilon_in_root, (False, True))

    def init(params: PyTree) -> AdagradState:
        _rules.check_params(params)
        return AdagradState(jnp.zeros((), jnp.int32), _rules.full(params, initial_accumulator))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, AdagradState]:
        del params

        def leaf(g: Array, square: Array, eta: Array, eps: Array) -> tuple[Array, Array]:
            square = square + g * g
            return -eta * _divided(g, square, eps, epsilon_in_root), square

        scalars = (rate(state.count), epsilon)
        out, square = _rules.per_leaf(leaf, 2, updates, state.square, scalars=scalars)
        return out, AdagradState(_rules.next_count(state.count), square)

    return optax.GradientTransformation(init, update)


def root_mean_adagrad(
    learning_rate: _rules.Rate,
    *,
    epsilon: Float[ArrayLike, ""] = 1e-10,
    epsilon_in_root: bool = False,
) -> optax.GradientTransformation:
    r"""The notes' Adagrad: divide by the root of the *mean* of all squared gradients.

    $$v_t = \frac{1}{t+1} \sum_{k=0}^{t} g_k^2, \qquad
      \theta_{t+1} = \theta_t - \eta_t\, g_t / (\sqrt{v_t} + \varepsilon)$$

    The mean is the sum divided by $t + 1$. So, for $\varepsilon = 0$, this rule with the rate
    $\eta_t$ is the standard one with $\eta_t \sqrt{t+1}$; and with the decay $\eta / \sqrt{t+1}$
    it is the standard one with the constant $\eta$.

    Args:
        learning_rate: $\eta$: a number, traced or not, or an Optax schedule.
        epsilon: $\varepsilon \ge 0$; the notes have none. Traced.
        epsilon_in_root: Whether to divide by $\sqrt{v_t + \varepsilon}$ instead; static.

    Returns:
        The rule; its state is an `AdagradState`, which holds the mean: it cannot overflow where
        the squares do not.

    Raises:
        ValueError: A number is negative or not finite, or no scalar.
        TypeError: A number is not real; in `init` and `update`, a leaf is no array of floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import adaptive
        >>> rule = adaptive.root_mean_adagrad(0.5)
        >>> state = rule.init(0.0)
        >>> for gradient in (3.0, 3.0, 3.0):  # the same gradient: the step does not shrink
        ...     update, state = rule.update(gradient, state)
        ...     print(round(float(update), 4))
        -0.5
        -0.5
        -0.5
    """
    rate = _rules.rate(learning_rate)
    _rules.not_negative("epsilon", epsilon)
    _checks.one_of("epsilon_in_root", epsilon_in_root, (False, True))

    def init(params: PyTree) -> AdagradState:
        _rules.check_params(params)
        return AdagradState(jnp.zeros((), jnp.int32), _rules.zeros(params))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, AdagradState]:
        del params
        count = _rules.next_count(state.count)

        def leaf(
            g: Array, square: Array, eta: Array, share: Array, eps: Array
        ) -> tuple[Array, Array]:
            square = square + share * (g * g - square)
            return -eta * _divided(g, square, eps, epsilon_in_root), square

        scalars = (rate(state.count), 1 / count.astype(jnp.result_type(float)), epsilon)
        out, square = _rules.per_leaf(leaf, 2, updates, state.square, scalars=scalars)
        return out, AdagradState(count, square)

    return optax.GradientTransformation(init, update)


def rmsprop(
    learning_rate: _rules.Rate,
    *,
    decay: Float[ArrayLike, ""] = 0.99,
    epsilon: Float[ArrayLike, ""] = 1e-8,
    epsilon_in_root: bool = False,
    centered: bool = False,
    momentum: Float[ArrayLike, ""] = 0.0,
    rate_in_momentum: bool = False,
    initial_accumulator: Float[ArrayLike, ""] = 0.0,
) -> optax.GradientTransformation:
    r"""RMSProp: divide by the root of an exponential average of the squared gradients.

    $$v_t = \alpha\, v_{t-1} + (1 - \alpha)\, g_t^2, \qquad
      \theta_{t+1} = \theta_t - \eta_t\, g_t / (\sqrt{v_t} + \varepsilon)$$

    Centered, $v_t$ is replaced by the variance $v_t - m_t^2$ with $m_t = \alpha m_{t-1} + (1 -
    \alpha) g_t$. It is carried as $\alpha (v_{t-1} - m_{t-1}^2 + (1 - \alpha) (g_t - m_{t-1})^2)$,
    which is the same, and is never negative.

    Args:
        learning_rate: $\eta$: a number, traced or not, or an Optax schedule.
        decay: $\alpha$, in [0, 1). Traced.
        epsilon: $\varepsilon \ge 0$. Traced.
        epsilon_in_root: Whether to divide by $\sqrt{v_t + \varepsilon}$ instead; static.
        centered: Whether to divide by the root of the variance; static.
        momentum: $\beta$ of a heavy ball that rolls on the divided gradient, in [0, 1). Traced; a
            Python 0 spares its memory.
        rate_in_momentum: Whether the velocity sums $\eta_t$ times the divided gradient, or is
            multiplied by $\eta_t$ afterwards; the same for a constant rate. Static.
        initial_accumulator: $v_{-1} \ge 0$. Traced.

    Returns:
        The rule; its state is an `RMSPropState`.

    Raises:
        ValueError: `decay` or `momentum` is not in [0, 1); a number is negative or not finite, or
            no scalar.
        TypeError: A number is not real; in `init` and `update`, a leaf is no array of floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import adaptive
        >>> rule = adaptive.rmsprop(0.1, decay=0.75)
        >>> state = rule.init(0.0)
        >>> for gradient in (3.0, 3.0, 3.0):  # from zero: the first step is 1 / sqrt(0.25) too long
        ...     update, state = rule.update(gradient, state)
        ...     print(round(float(update), 4))
        -0.2
        -0.1512
        -0.1315

    Reference:
        Tieleman and Hinton (2012), lecture 6.5; Graves, *Generating Sequences with Recurrent Neural
        Networks* (2013), equations 38 to 45, for the centered form.

    Note:
        `torch.optim.RMSprop` has these defaults. `optax.rmsprop` is `decay=0.9,
        epsilon_in_root=True`, and with momentum `rate_in_momentum=True`. TensorFlow 1 started from
        `initial_accumulator=1`. Divided by $1 - \alpha^{t+1}$, the weights add up to one: that is
        `adam.adam(beta1=0)`.
    """
    return _rmsprop(
        learning_rate,
        ("decay", decay),
        epsilon,
        epsilon_in_root,
        centered=centered,
        momentum=momentum,
        rate_in_momentum=rate_in_momentum,
        initial_accumulator=initial_accumulator,
    )


def notes_rmsprop(
    learning_rate: _rules.Rate,
    *,
    alpha: Float[ArrayLike, ""] = 0.9,
    epsilon: Float[ArrayLike, ""] = 1e-8,
    epsilon_in_root: bool = False,
) -> optax.GradientTransformation:
    r"""The notes' RMSProp: the recursion with alpha, started from the first gradient.

    $$\sigma_0 = |g_0|, \qquad
      \sigma_t = \sqrt{\alpha\, \sigma_{t-1}^2 + (1 - \alpha)\, g_t^2}, \qquad
      \theta_{t+1} = \theta_t - \eta_t\, g_t / (\sigma_t + \varepsilon)$$

    This is `rmsprop` with $v_{-1} = g_0^2$ in place of 0: $\sigma_t^2 = v_t + \alpha^{t+1} g_0^2$.
    The weights of the squares add up to one from the start, so the first step has the length
    $\eta$.

    Args:
        learning_rate: $\eta$: a number, traced or not, or an Optax schedule.
        alpha: $\alpha$, in [0, 1): the weight of the past. Traced.
        epsilon: $\varepsilon \ge 0$; the notes have none. Traced.
        epsilon_in_root: Whether to divide by $\sqrt{\sigma_t^2 + \varepsilon}$ instead; static.

    Returns:
        The rule; its state is an `RMSPropState` with $\sigma_t^2$ in `square`.

    Raises:
        ValueError: `alpha` is not in [0, 1); a number is negative or not finite, or no scalar.
        TypeError: A number is not real; in `init` and `update`, a leaf is no array of floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import adaptive
        >>> rule = adaptive.notes_rmsprop(0.1, alpha=0.75)
        >>> state = rule.init(0.0)
        >>> for gradient in (3.0, 3.0, 5.0):
        ...     update, state = rule.update(gradient, state)
        ...     print(round(float(update), 4), float(state.square))
        -0.1 9.0
        -0.1 9.0
        -0.1387 13.0
    """
    return _rmsprop(
        learning_rate, ("alpha", alpha), epsilon, epsilon_in_root, from_first_gradient=True
    )


def square_weights(
    num_steps: int, rule: Rule, *, decay: Float[ArrayLike, ""] = 0.9
) -> Float[Array, " num_steps"]:
    r"""The weights $w_{t,k}$ of all past squared gradients in the divisor.

    The rules of this module are one rule, $v_t = \sum_k w_{t,k}\, g_k^2$, with four kinds of
    weights. What a rule remembers, and whether its rate dies, can be read off them.

    Args:
        num_steps: How many gradients there were, $t + 1 \ge 1$; static.
        rule: `"adagrad"`, `"root_mean_adagrad"`, `"rmsprop"` (from zero) or `"notes_rmsprop"`.
        decay: $\alpha$ of the last two, in [0, 1). Traced.

    Returns:
        The weights, oldest first, shape `(num_steps,)`.

    Raises:
        ValueError: `num_steps` is less than 1, `rule` is unknown, or `decay` not in [0, 1).
        TypeError: `num_steps` is not an integer, or `decay` not real.

    Example:
        >>> from mlnotes_jax.optimization import adaptive
        >>> adaptive.square_weights(3, "rmsprop", decay=0.5).tolist()
        [0.125, 0.25, 0.5]
        >>> adaptive.square_weights(3, "notes_rmsprop", decay=0.5).tolist()
        [0.25, 0.25, 0.5]
    """
    _checks.positive_int("num_steps", num_steps)
    _checks.one_of("rule", rule, ("adagrad", "root_mean_adagrad", "rmsprop", "notes_rmsprop"))
    _rules.share("decay", decay)
    if rule == "adagrad":
        return jnp.ones(num_steps)
    if rule == "root_mean_adagrad":
        return jnp.full(num_steps, 1 / num_steps)
    alpha = _checks.floating("decay", decay)
    age = jnp.arange(num_steps - 1, -1, -1)
    weights = (1 - alpha) * alpha ** age.astype(alpha.dtype)
    if rule == "notes_rmsprop":
        weights = weights.at[0].add(alpha**num_steps)
    return weights


def _rmsprop(
    learning_rate: _rules.Rate,
    decay: tuple[str, ArrayLike],
    epsilon: ArrayLike,
    epsilon_in_root: bool,
    *,
    centered: bool = False,
    momentum: ArrayLike = 0.0,
    rate_in_momentum: bool = False,
    initial_accumulator: ArrayLike = 0.0,
    from_first_gradient: bool = False,
) -> optax.GradientTransformation:
    rate, alpha = _rules.rate(learning_rate), decay[1]
    _rules.share(*decay)
    _rules.share("momentum", momentum)
    _rules.not_negative("epsilon", epsilon)
    _rules.not_negative("initial_accumulator", initial_accumulator)
    flags = {
        "epsilon_in_root": epsilon_in_root,
        "centered": centered,
        "rate_in_momentum": rate_in_momentum,
    }
    for name, flag in flags.items():
        _checks.one_of(name, flag, (False, True))
    # By its type, so that a rule has one state whether its numbers are traced or not.
    rolls = not (isinstance(momentum, int | float) and momentum == 0)

    def init(params: PyTree) -> Any:
        _rules.check_params(params)
        return RMSPropState(
            count=jnp.zeros((), jnp.int32),
            square=_rules.full(params, initial_accumulator),
            mean=_rules.zeros(params) if centered else None,
            velocity=_rules.zeros(params) if rolls else None,
        )

    def leaf(g: Array, square: Array, *rest: Array) -> tuple[Array, ...]:
        *moments, eta, keep, share, eps, beta = rest
        results = []
        if centered:
            mean = moments[0]
            square = keep * (square + share * (g - mean) ** 2)
            results.append(keep * mean + share * g)
        else:
            square = keep * square + share * (g * g)
        step = _divided(g, square, eps, epsilon_in_root)
        if rolls and rate_in_momentum:
            step = beta * moments[-1] + eta * step
            results.append(step)
        elif rolls:
            velocity = beta * moments[-1] + step
            results.append(velocity)
            step = eta * velocity
        else:
            step = eta * step
        return -step, square, *results

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        del params
        keep, share = alpha, 1 - alpha
        if from_first_gradient:
            first = state.count == 0
            dtype = jnp.result_type(float)
            keep = jnp.where(first, 0.0, jnp.asarray(keep, dtype))
            share = jnp.where(first, 1.0, jnp.asarray(share, dtype))
        moments = [tree for tree in (state.mean, state.velocity) if tree is not None]
        out, square, *rest = _rules.per_leaf(
            leaf,
            2 + len(moments),
            updates,
            state.square,
            *moments,
            scalars=(rate(state.count), keep, share, epsilon, momentum),
        )
        return out, RMSPropState(
            count=_rules.next_count(state.count),
            square=square,
            mean=rest[0] if centered else None,
            velocity=rest[-1] if rolls else None,
        )

    return optax.GradientTransformation(init, update)


def _divided(g: Array, square: Array, epsilon: Array, epsilon_in_root: bool) -> Array:
    """Divide by the root; 0 / 0 is 0: where all gradients were zero, nothing moves."""
    root = jnp.sqrt(square + epsilon) if epsilon_in_root else jnp.sqrt(square) + epsilon
    return g / jnp.where(root == 0, 1.0, root)
