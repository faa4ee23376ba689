r"""Momentum: a step remembers the steps before it.

With the gradient $g_t$, the learning rate $\eta$ and the momentum $\lambda \in [0, 1)$,

$$v_t = \lambda\, v_{t-1} + g_t, \qquad v_0 = 0,$$

and the parameters move by $-\eta\, g_t$ (plain descent), $-\eta\, v_t$ (the heavy ball) or
$-\eta\, (g_t + \lambda\, v_t)$ (Nesterov). Written out, $v_t = \sum_{s \le t} \lambda^{t-s} g_s$: a
weighted sum of all past gradients. Under a constant gradient its size tends to $1 / (1 - \lambda)$
gradients, the terminal speed.

Reference: Polyak, *Some methods of speeding up the convergence of iteration methods* (1964);
Sutskever, Martens, Dahl and Hinton, *On the importance of initialization and momentum in deep
learning* (ICML 2013).
"""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.optimization import _rules

__all__ = [
    "MomentumState",
    "SGDState",
    "Settings",
    "best_settings",
    "contraction_factor",
    "gradient_weights",
    "heavy_ball",
    "nesterov",
    "notes_momentum",
    "sgd",
    "terminal_speed",
]

Kind = Literal["heavy_ball", "nesterov"]


class SGDState(NamedTuple):
    """What `sgd` remembers.

    Attributes:
        count: Updates done, shape `()`.
    """

    count: Int[Array, ""]


class MomentumState(NamedTuple):
    r"""What the rules with momentum remember.

    Attributes:
        count: Updates done, shape `()`.
        velocity: $v_t$, in gradients (of `notes_momentum`: $m_t$, in parameters); like the
            parameters, in at least float32.
    """

    count: Int[Array, ""]
    velocity: PyTree


class Settings(NamedTuple):
    """A rule for a quadratic.

    Attributes:
        learning_rate: Shape `()`.
        momentum: Shape `()`.
        factor: What a step multiplies the distance to the minimum by, in the long run, shape `()`.
    """

    learning_rate: Float[Array, ""]
    momentum: Float[Array, ""]
    factor: Float[Array, ""]


# --- The rules ------------------------------------------------------------------------------------


def sgd(learning_rate: _rules.Rate) -> optax.GradientTransformation:
    r"""Plain descent: the update is $-\eta_t\, g_t$.

    Args:
        learning_rate: $\eta \ge 0$: a number, traced or not, or an Optax schedule.

    Returns:
        The rule. Its state is an [`SGDState`][mlnotes_jax.optimization.momentum.SGDState].

    Raises:
        ValueError: `learning_rate` is negative, not finite, or no scalar.
        TypeError: `learning_rate` is no number and no schedule; in `init` or `update`, a leaf is no
            array of floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import momentum
        >>> rule = momentum.sgd(0.5)
        >>> update, state = rule.update(jnp.array([2.0, -4.0]), rule.init(jnp.zeros(2)))
        >>> print(update)
        [-1.  2.]

    Note:
        The same as `optax.sgd` and `torch.optim.SGD` without momentum.
    """
    rate = _rules.rate(learning_rate)

    def init(params: PyTree) -> SGDState:
        _rules.check_params(params)
        return SGDState(jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, SGDState]:
        if params is not None:
            _rules.same_tree("updates", updates, params)
        (step,) = _rules.per_leaf(
            lambda g, eta: (-eta * g,), 1, updates, scalars=(rate(state.count),)
        )
        return step, SGDState(_rules.next_count(state.count))

    return optax.GradientTransformation(init, update)


def heavy_ball(
    learning_rate: _rules.Rate,
    *,
    momentum: Float[ArrayLike, ""] = 0.9,
    dampening: Float[ArrayLike, ""] = 0.0,
    dampen_first: bool = False,
) -> optax.GradientTransformation:
    r"""Polyak's heavy ball: the update is $-\eta_t\, v_t$.

    $$v_t = \lambda\, v_{t-1} + (1 - \tau)\, g_t, \qquad v_1 = g_1,$$

    where $\lambda$ is `momentum` and $\tau$ is `dampening`.

    Args:
        learning_rate: $\eta \ge 0$: a number, traced or not, or an Optax schedule. It multiplies
            the whole velocity; `notes_momentum` keeps the rate of each gradient instead.
        momentum: $\lambda$ in [0, 1).
        dampening: $\tau$ in [0, 1).
        dampen_first: Whether the first gradient is damped too, $v_1 = (1 - \tau)\, g_1$; static. It
            matters only with a `dampening`.

    Returns:
        The rule. Its state is a
        [`MomentumState`][mlnotes_jax.optimization.momentum.MomentumState].

    Raises:
        ValueError: `learning_rate` is negative or not finite, `momentum` or `dampening` is not in
            [0, 1), or one of them is no scalar; in `update`, the tree is not that of `init`.
        TypeError: A hyper-parameter is not numeric, or `dampen_first` is no bool; in `init` or
            `update`, a leaf is no array of floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import momentum
        >>> rule = momentum.heavy_ball(1.0, momentum=0.5)
        >>> state, slope = rule.init(jnp.array(0.0)), jnp.array(1.0)
        >>> for _ in range(4):
        ...     update, state = rule.update(slope, state)
        ...     print(update)
        -1.0
        -1.5
        -1.75
        -1.875

    Note:
        `torch.optim.SGD(momentum=, dampening=)` is this, first gradient undamped (where its
        momentum is 0, it leaves the dampening out). `optax.sgd(momentum=)` has no dampening;
        `optax.ema(decay, debias=False)` is $\tau = \lambda$ with `dampen_first=True`.

    Reference: Polyak (1964), section 2.
    """
    rate = _rules.rate(learning_rate)
    _rules.share("momentum", momentum)
    _rules.share("dampening", dampening)
    _check_flag("dampen_first", dampen_first)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, MomentumState]:
        del params
        weight = 1 - jnp.asarray(dampening, jnp.result_type(float))
        if not dampen_first:
            weight = jnp.where(state.count == 0, jnp.ones_like(weight), weight)

        def leaf(g: Array, v: Array, eta: Array, lam: Array, weight: Array) -> tuple[Array, ...]:
            v = lam * v + weight * g
            return -eta * v, v

        scalars = (rate(state.count), momentum, weight)
        step, velocity = _rules.per_leaf(leaf, 2, updates, state.velocity, scalars=scalars)
        return step, MomentumState(_rules.next_count(state.count), velocity)

    return optax.GradientTransformation(_at_rest, update)


def nesterov(
    learning_rate: _rules.Rate, *, momentum: Float[ArrayLike, ""] = 0.9
) -> optax.GradientTransformation:
    r"""Nesterov's momentum: the update is $-\eta_t\, (g_t + \lambda\, v_t)$.

    With $v_t = \lambda\, v_{t-1} + g_t$. The parameters are the points at which gradients are
    taken, one momentum step ahead of where Nesterov's own iterates are; at a minimum both are the
    same.

    Args:
        learning_rate: $\eta \ge 0$: a number, traced or not, or an Optax schedule.
        momentum: $\lambda$ in [0, 1).

    Returns:
        The rule. Its state is a
        [`MomentumState`][mlnotes_jax.optimization.momentum.MomentumState].

    Raises:
        ValueError: As in [`heavy_ball`][mlnotes_jax.optimization.momentum.heavy_ball].
        TypeError: As there.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import momentum
        >>> rule = momentum.nesterov(1.0, momentum=0.5)
        >>> update, state = rule.update(jnp.array(1.0), rule.init(jnp.array(0.0)))
        >>> print(update)
        -1.5

    Note:
        The same as `torch.optim.SGD(nesterov=True)` and `optax.sgd(nesterov=True)`. Keras keeps
        the rate inside the sum: `notes_momentum(nesterov=True)`. With a constant rate they are
        equal.

    Reference: Nesterov (1983); in this form Sutskever, Martens, Dahl and Hinton (2013), section 2.
    """
    rate = _rules.rate(learning_rate)
    _rules.share("momentum", momentum)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, MomentumState]:
        del params

        def leaf(g: Array, v: Array, eta: Array, lam: Array) -> tuple[Array, ...]:
            v = lam * v + g
            return -eta * (g + lam * v), v

        scalars = (rate(state.count), momentum)
        step, velocity = _rules.per_leaf(leaf, 2, updates, state.velocity, scalars=scalars)
        return step, MomentumState(_rules.next_count(state.count), velocity)

    return optax.GradientTransformation(_at_rest, update)


def notes_momentum(
    learning_rate: _rules.Rate,
    *,
    momentum: Float[ArrayLike, ""] = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    r"""The notes' momentum, which remembers the movement: $m_t = \lambda m_{t-1} - \eta_t g_t$.

    The update is $m_t$; with `nesterov` it is $\lambda\, m_t - \eta_t\, g_t$. Every gradient keeps
    the learning rate of its own time, $m_t = -\sum_{s \le t} \lambda^{t-s}\, \eta_s\, g_s$. With a
    constant rate $m_t = -\eta\, v_t$, and the rule is
    [`heavy_ball`][mlnotes_jax.optimization.momentum.heavy_ball] (or
    [`nesterov`][mlnotes_jax.optimization.momentum.nesterov]).

    Args:
        learning_rate: $\eta \ge 0$: a number, traced or not, or an Optax schedule.
        momentum: $\lambda$ in [0, 1).
        nesterov: Whether the parameters are the points one momentum step ahead; static. They then
            move as Nesterov's scheme with a gradient at $\theta + \lambda m$ does, exactly, also
            where the rate changes.

    Returns:
        The rule. Its state is a
        [`MomentumState`][mlnotes_jax.optimization.momentum.MomentumState] with $m_t$ as `velocity`.

    Raises:
        ValueError: As in [`heavy_ball`][mlnotes_jax.optimization.momentum.heavy_ball].
        TypeError: As there; or `nesterov` is no bool.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import momentum
        >>> falling = lambda count: jnp.where(count == 0, 1.0, 0.0)  # only the first step
        >>> rule = momentum.notes_momentum(falling, momentum=0.5)
        >>> state, slope = rule.init(jnp.array(0.0)), jnp.array(1.0)
        >>> for _ in range(3):
        ...     update, state = rule.update(slope, state)
        ...     print(update)
        -1.0
        -0.5
        -0.25

    Note:
        Keras and Sutskever et al. (2013) write momentum like this; PyTorch and Optax like
        `heavy_ball`, which would stand still from the second step of this example on.

    Reference: the notes on momentum; Sutskever, Martens, Dahl and Hinton (2013), equations 1 to 4.
    """
    rate = _rules.rate(learning_rate)
    _rules.share("momentum", momentum)
    _check_flag("nesterov", nesterov)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, MomentumState]:
        del params

        def leaf(g: Array, m: Array, eta: Array, lam: Array) -> tuple[Array, ...]:
            m = lam * m - eta * g
            return (lam * m - eta * g if nesterov else m), m

        scalars = (rate(state.count), momentum)
        step, velocity = _rules.per_leaf(leaf, 2, updates, state.velocity, scalars=scalars)
        return step, MomentumState(_rules.next_count(state.count), velocity)

    return optax.GradientTransformation(_at_rest, update)


# --- What they do ---------------------------------------------------------------------------------


def gradient_weights(
    num_steps: int,
    momentum: Float[ArrayLike, ""],
    *,
    dampening: Float[ArrayLike, ""] = 0.0,
    dampen_first: bool = False,
    nesterov: bool = False,
) -> Float[Array, " num_steps"]:
    r"""How much each past gradient counts in the step number `num_steps`.

    The step is $-\eta \sum_{s=1}^{t} w_s\, g_s$ with $w_s = \lambda^{t-s}$ for the heavy ball. With
    dampening, $w_s = (1 - \tau)\, \lambda^{t-s}$, but for the first where it is not damped. For
    Nesterov, $w_s = \lambda^{t-s+1}$ and one more for the last, $w_t = 1 + \lambda$.

    Args:
        num_steps: $t$, at least 1; static.
        momentum: $\lambda$ in [0, 1).
        dampening: $\tau$ in [0, 1), as in `heavy_ball`.
        dampen_first: As in `heavy_ball`; static.
        nesterov: Whether to give the weights of `nesterov`, without dampening; static.

    Returns:
        $w_1, \dots, w_t$, oldest first, shape `(num_steps,)`. Without dampening they add up to
        $(1 - \lambda^t) / (1 - \lambda)$; for Nesterov to $(1 - \lambda^{t+1}) / (1 - \lambda)$.

    Raises:
        ValueError: `num_steps` is less than 1, `momentum` or `dampening` is not in [0, 1), or there
            is a `dampening` with `nesterov`.
        TypeError: `num_steps` is no integer, or a flag is no bool.

    Example:
        >>> from mlnotes_jax.optimization import momentum
        >>> print(momentum.gradient_weights(4, 0.5))
        [0.125 0.25  0.5   1.   ]
        >>> print(momentum.gradient_weights(4, 0.5, nesterov=True))
        [0.0625 0.125  0.25   1.5   ]
    """
    _checks.positive_int("num_steps", num_steps)
    _rules.share("momentum", momentum)
    _rules.share("dampening", dampening)
    _check_flag("dampen_first", dampen_first)
    _check_flag("nesterov", nesterov)
    if nesterov and not (_checks.is_concrete(dampening) and np.asarray(dampening) == 0):
        raise ValueError(f"dampening must be 0 with nesterov, got {dampening}")
    lam, tau = _rules.scalar("momentum", momentum), _rules.scalar("dampening", dampening)
    age = jnp.arange(num_steps - 1, -1, -1)
    newest = age == 0
    # Apart, as the slope of 0^0 is not a number.
    weights = jnp.where(newest, 1.0, lam ** jnp.where(newest, 1, age).astype(lam.dtype))
    if nesterov:
        weights = lam * weights + newest.astype(lam.dtype)
    undamped = (age == num_steps - 1) & (not dampen_first)
    return jnp.where(undamped, 1.0, 1 - tau.astype(lam.dtype)) * weights


def terminal_speed(momentum: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""How many times faster than plain descent a long constant slope is run down: $1/(1-\lambda)$.

    After $t$ steps the speed is $(1 - \lambda^t)$ of it.

    Args:
        momentum: $\lambda$ in [0, 1), any shape.

    Returns:
        The factor, shape of `momentum`.

    Raises:
        ValueError: `momentum` is not in [0, 1).

    Example:
        >>> from mlnotes_jax.optimization import momentum
        >>> print(momentum.terminal_speed([0.0, 0.5, 0.75]))
        [1. 2. 4.]
    """
    lam = _checks.floating("momentum", momentum)
    _checks.not_negative("momentum", lam)
    _checks.positive("1 - momentum", 1 - lam)
    return 1 / (1 - lam)


def contraction_factor(
    eigenvalues: Float[ArrayLike, " d"],
    *,
    learning_rate: Float[ArrayLike, ""],
    momentum: Float[ArrayLike, ""],
    kind: Kind = "heavy_ball",
) -> Float[Array, ""]:
    r"""The worst factor of one step on a quadratic, in the long run.

    In a direction of curvature $h$ two steps in a row obey $e_{t+1} = b\, e_t - c\, e_{t-1}$, with
    $b = 1 + \lambda - \eta h$ and $c = \lambda$ for the heavy ball, and with $b = (1 + \lambda)(1 -
    \eta h)$ and $c = \lambda\, (1 - \eta h)$ for Nesterov. The distance shrinks like the larger
    $|z|$ of the two roots of $z^2 - b z + c = 0$: $\sqrt c$ where they are complex.

    Args:
        eigenvalues: Of the Hessian, in any order, shape `(d,)`. A negative one gives the factor by
            which a saddle is left.
        learning_rate: $\eta > 0$.
        momentum: $\lambda$ in [0, 1); 0 is plain descent.
        kind: `"heavy_ball"` or `"nesterov"`; static.

    Returns:
        The largest $|z|$ over the eigenvalues, shape `()`: less than 1 is convergence from
        everywhere. Where the two roots of a direction are equal, as at `best_settings`, a rounding
        error $\epsilon$ moves them by $\sqrt\epsilon$: 3e-4 in float32.

    Raises:
        ValueError: `eigenvalues` is not a non-empty vector, `learning_rate` is not positive,
            `momentum` is not in [0, 1), or `kind` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import momentum
        >>> ends = jnp.array([4.0, 16.0])
        >>> print(momentum.contraction_factor(ends, learning_rate=0.125, momentum=0.25))
        0.5

    Reference: Polyak (1964); Lessard, Recht and Packard, *Analysis and Design of Optimization
    Algorithms via Integral Quadratic Constraints* (2016), appendix A.
    """
    curvature = _checks.floating("eigenvalues", eigenvalues, ndim=1)
    _checks.not_empty("eigenvalues", curvature)
    _checks.positive("learning_rate", learning_rate)
    _rules.share("momentum", momentum)
    _checks.one_of("kind", kind, ("heavy_ball", "nesterov"))
    dtype = curvature.dtype
    lam = jnp.asarray(momentum, dtype)
    move = jnp.asarray(learning_rate, dtype) * curvature
    if kind == "heavy_ball":
        b, c = 1 + lam - move, lam
        # b^2 - 4 c, with less rounding
        discriminant = jnp.square(1 - lam) - move * (2 * (1 + lam) - move)
    else:
        q = 1 - move
        b, c = (1 + lam) * q, lam * q
        discriminant = q * (jnp.square(1 - lam) - jnp.square(1 + lam) * move)
    real = discriminant > 0
    root = jnp.sqrt(jnp.where(real, discriminant, 1.0))  # never of 0: its slope is infinite
    spin = jnp.sqrt(jnp.where(real, 1.0, c))
    return jnp.where(real, (jnp.abs(b) + root) / 2, spin).max()


def best_settings(
    eigenvalues: Float[ArrayLike, " d"], *, kind: Literal["sgd"] | Kind = "heavy_ball"
) -> Settings:
    r"""The rate and the momentum for a quadratic, and how fast they are.

    With the ends $\mu \le L$ of the spectrum and $\kappa = L / \mu$:

    - `"sgd"`: $\eta = 2 / (\mu + L)$, factor $(\kappa - 1) / (\kappa + 1)$. No rate is better.
    - `"heavy_ball"`: $\eta = 4 / (\sqrt\mu + \sqrt L)^2$, $\lambda$ the square of the factor
      $(\sqrt\kappa - 1) / (\sqrt\kappa + 1)$. No rate and momentum are better.
    - `"nesterov"`: $\eta = 1 / L$, which is safe beyond quadratics, and the best momentum for it,
      $\lambda = (\sqrt\kappa - 1) / (\sqrt\kappa + 1)$; factor $1 - 1 / \sqrt\kappa$.

    Args:
        eigenvalues: Of the Hessian, all positive, in any order, shape `(d,)`; the ends are enough.
        kind: Which rule; static.

    Returns:
        Rate, momentum and factor.

    Raises:
        ValueError: `eigenvalues` is not a non-empty vector, has an entry that is not positive, or
            `kind` is unknown.

    Example:
        >>> from mlnotes_jax.optimization import momentum
        >>> for kind in ("sgd", "heavy_ball", "nesterov"):
        ...     found = momentum.best_settings([1.0, 100.0], kind=kind)
        ...     print(kind, *(round(float(number), 4) for number in found))
        sgd 0.0198 0.0 0.9802
        heavy_ball 0.0331 0.6694 0.8182
        nesterov 0.01 0.8182 0.9

    Reference: Polyak (1964); Nesterov, *Lectures on Convex Optimization* (2018), section 2.2.
    """
    values = _checks.floating("eigenvalues", eigenvalues, ndim=1)
    _checks.not_empty("eigenvalues", values)
    _checks.positive("eigenvalues", values)
    _checks.one_of("kind", kind, ("sgd", "heavy_ball", "nesterov"))
    low, high = values.min(), values.max()
    if kind == "sgd":
        return Settings(2 / (low + high), jnp.zeros_like(low), (high - low) / (high + low))
    root_low, root_high = jnp.sqrt(low), jnp.sqrt(high)
    ratio = (root_high - root_low) / (root_high + root_low)
    if kind == "heavy_ball":
        return Settings(4 / jnp.square(root_low + root_high), jnp.square(ratio), ratio)
    return Settings(1 / high, ratio, 1 - root_low / root_high)


def _at_rest(params: PyTree) -> MomentumState:
    """What a rule with momentum begins with: `init` of each."""
    _rules.check_params(params)
    return MomentumState(jnp.zeros((), jnp.int32), _rules.zeros(params))


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
