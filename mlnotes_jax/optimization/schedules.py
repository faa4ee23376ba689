r"""Learning rates that change: a schedule maps the number of updates done before to a rate.

An update rule asks its schedule for $\eta_0$ at the first update, $\eta_1$ at the second, and so
on. With a rate $\eta$, a length $T$ and a number $w$ of first updates to warm up in,

$$\eta\,\gamma^{\lfloor t / k \rfloor}, \qquad \eta\,\gamma^{t / k}, \qquad
  \frac{\eta}{\sqrt{1 + t/s}}, \qquad \eta \cdot \tfrac12\bigl(1 + \cos \pi \tfrac tT\bigr), \qquad
  \eta \cdot \min\bigl(\tfrac tw, 1\bigr)$$

are the step, exponential, inverse-square-root and cosine decay, and the linear warm-up. The cycles
(`triangular`, `warm_restarts`, `one_cycle`) are pieces of such lines and cosines.

Every function here makes an Optax schedule: it takes a count, or an array of counts (which gives
the whole curve), and returns values of the same shape in the default float precision. All
hyper-parameters may be traced; counts are exact up to $2^{24}$ in float32.

Reference: Loshchilov and Hutter, *SGDR* (2017), section 3; Smith, *Cyclical Learning Rates for
Training Neural Networks* (2017), sections 3.1 and 3.3; Goyal et al., *Accurate, Large Minibatch
SGD* (2017), section 2.2.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.optimization import _rules

__all__ = [
    "RangeTest",
    "constant",
    "cosine",
    "effective_samples",
    "exponential",
    "inverse_square_root",
    "join",
    "linear",
    "linear_warmup",
    "multi_step",
    "noam",
    "one_cycle",
    "range_test",
    "range_test_model",
    "resnet_warmup",
    "step",
    "triangular",
    "warm_restarts",
]

Rate = Float[ArrayLike, ""]
Count = Int[ArrayLike, ""]


class RangeTest(NamedTuple):
    r"""What happened while the learning rate rose.

    Attributes:
        rates: The rate of each update, rising, shape `(n,)`.
        losses: The loss before each update, shape `(n,)`; NaN from where it had diverged.
        smoothed: The same, averaged over both sides, shape `(n,)`.
        num_steps: How many losses there are before it diverged, shape `()`.
        diverged: Whether it did, shape `()`.
        steepest: The rate at which the smoothed loss falls fastest over $\ln \eta$, shape `()`: a
            rate to train with. NaN where the loss never fell.
        largest: The rate of the last update before the smoothed loss is lowest, shape `()`: above
            it, updates did harm. NaN where the loss never fell; `high` where it was still falling.
    """

    rates: Float[Array, " n"]
    losses: Float[Array, " n"]
    smoothed: Float[Array, " n"]
    num_steps: Int[Array, ""]
    diverged: Bool[Array, ""]
    steepest: Float[Array, ""]
    largest: Float[Array, ""]


# --- Decays ---------------------------------------------------------------------------------------


def constant(learning_rate: Rate) -> optax.Schedule:
    r"""Make the schedule that stays: $\eta_t = \eta$.

    Args:
        learning_rate: $\eta \ge 0$.

    Returns:
        A schedule.

    Raises:
        TypeError: `learning_rate` is not real.
        ValueError: It is negative, not finite, or no scalar.

    Example:
        >>> from mlnotes_jax.optimization import schedules
        >>> print(schedules.constant(0.5)(1000))
        0.5
    """
    return _schedule("learning_rate", _rate("learning_rate", learning_rate))


def linear(learning_rate: Rate, *, num_steps: Count, final_rate: Rate = 0.0) -> optax.Schedule:
    r"""Make the straight line from $\eta$ to $\eta_\text{final}$, which then stays.

    Args:
        learning_rate: $\eta$, at count 0.
        num_steps: $T \ge 1$: the last rate is reached at count $T$.
        final_rate: $\eta_\text{final}$; it may be higher.

    Returns:
        A schedule.

    Raises:
        TypeError: A rate is not real, or `num_steps` is not an integer.
        ValueError: A rate is negative or not finite, or `num_steps` is less than 1.

    Example:
        >>> from mlnotes_jax.optimization import schedules
        >>> print(schedules.linear(1.0, num_steps=4)([0, 1, 2, 4, 9]))
        [1.   0.75 0.5  0.   0.  ]

    Note:
        `optax.linear_schedule`; PyTorch's `LinearLR` with factors of its optimizer's rate.
    """
    first, last = _rate("learning_rate", learning_rate), _rate("final_rate", final_rate)
    length = _steps("num_steps", num_steps)
    return lambda count: _straight(first, last, _share(_time(count), length))


def step(learning_rate: Rate, *, every: Count, factor: Rate = 0.1) -> optax.Schedule:
    r"""Make the staircase $\eta_t = \eta\, \gamma^{\lfloor t/k \rfloor}$.

    Args:
        learning_rate: $\eta$.
        every: $k \ge 1$, the updates of one stair.
        factor: $\gamma \ge 0$, one stair against the one before.

    Returns:
        A schedule.

    Raises:
        TypeError: A number is not real, or `every` is not an integer.
        ValueError: A number is negative or not finite, or `every` is less than 1.

    Example:
        >>> from mlnotes_jax.optimization import schedules
        >>> print(schedules.step(1.0, every=3, factor=0.5)([0, 2, 3, 6]))
        [1.   1.   0.5  0.25]

    Note:
        PyTorch's `StepLR`; `optax.exponential_decay` with `staircase=True`.
    """
    rate, factor = _rate("learning_rate", learning_rate), _rate("factor", factor)
    period = _steps("every", every)
    return lambda count: rate * factor ** _split(_time(count), period)[0]


def multi_step(
    learning_rate: Rate, *, boundaries: Int[ArrayLike, " k"] | Sequence[int], factor: Rate = 0.1
) -> optax.Schedule:
    r"""Make a staircase with given edges: $\eta\, \gamma^{n}$ after the $n$-th of them.

    Args:
        learning_rate: $\eta$.
        boundaries: The counts at which the rate is multiplied, in any order, shape `(k,)`.
        factor: $\gamma \ge 0$.

    Returns:
        A schedule.

    Raises:
        TypeError: A number is not real, or `boundaries` are not integers.
        ValueError: A number is negative or not finite, or `boundaries` is not a vector.

    Example:
        >>> from mlnotes_jax.optimization import schedules
        >>> print(schedules.multi_step(0.5, boundaries=[2, 4])([1, 2, 3, 4]))
        [0.5   0.05  0.05  0.005]

    Note:
        PyTorch's `MultiStepLR`; `optax.piecewise_constant_schedule` with equal scales.
    """
    rate, factor = _rate("learning_rate", learning_rate), _rate("factor", factor)
    edges = _checks.integer("boundaries", _array(boundaries), ndim=1)
    _checks.not_negative("boundaries", edges)
    edges = edges.astype(rate.dtype)

    def schedule(count: ArrayLike) -> Array:
        time = _time(count)
        shape = (1,) * time.ndim + edges.shape
        return rate * factor ** jnp.sum(time[..., None] >= edges.reshape(shape), axis=-1).astype(
            rate.dtype
        )

    return schedule


def exponential(learning_rate: Rate, *, factor: Rate, every: Count = 1) -> optax.Schedule:
    r"""Make the exponential decay $\eta_t = \eta\, \gamma^{t/k}$.

    Args:
        learning_rate: $\eta$.
        factor: $\gamma \ge 0$.
        every: $k \ge 1$: the rate has fallen by $\gamma$ after so many updates.

    Returns:
        A schedule.

    Raises:
        TypeError: A number is not real, or `every` is not an integer.
        ValueError: A number is negative or not finite, or `every` is less than 1.

    Example:
        >>> from mlnotes_jax.optimization import schedules
        >>> print(schedules.exponential(1.0, factor=0.25, every=2)([0, 1, 2]))
        [1.   0.5  0.25]

    Note:
        PyTorch's `ExponentialLR` with `every=1`; `optax.exponential_decay`.
    """
    rate, factor = _rate("learning_rate", learning_rate), _rate("factor", factor)
    period = _steps("every", every)
    return lambda count: rate * factor ** (_time(count) / period)


def inverse_square_root(learning_rate: Rate, *, timescale: Count = 1) -> optax.Schedule:
    r"""Make the decay $\eta_t = \eta / \sqrt{1 + t/s}$.

    Args:
        learning_rate: $\eta$, at count 0.
        timescale: $s \ge 1$: the rate has fallen to $\eta / \sqrt 2$ after so many updates.

    Returns:
        A schedule.

    Raises:
        TypeError: `learning_rate` is not real, or `timescale` is not an integer.
        ValueError: `learning_rate` is negative or not finite, or `timescale` is less than 1.

    Example:
        >>> from mlnotes_jax.optimization import schedules
        >>> print(schedules.inverse_square_root(1.0)([0, 3, 8, 15])) # 1 / sqrt(t + 1)
        [1.         0.5        0.33333334 0.25      ]

    Note:
        With `timescale=1` this is the notes' $\eta / \sqrt{t + 1}$. With the length of a warm-up in
        front of it, it is the Transformer's; see `noam`.
    """
    rate, scale = _rate("learning_rate", learning_rate), _steps("timescale", timescale)
    return lambda count: rate / jnp.sqrt(1 + _time(count) / scale)


def cosine(learning_rate: Rate, *, num_steps: Count, final_rate: Rate = 0.0) -> optax.Schedule:
    r"""Make half a cosine, from $\eta$ down to $\eta_\text{final}$, which then stays.

    $$\eta_t = \eta_\text{final} + (\eta - \eta_\text{final}) \cdot
      \tfrac12 \bigl(1 + \cos(\pi \min(t/T, 1))\bigr)$$

    Args:
        learning_rate: $\eta$.
        num_steps: $T \ge 1$: the last rate is reached at count $T$.
        final_rate: $\eta_\text{final}$.

    Returns:
        A schedule.

    Raises:
        TypeError: A rate is not real, or `num_steps` is not an integer.
        ValueError: A rate is negative or not finite, or `num_steps` is less than 1.

    Example:
        >>> from mlnotes_jax.optimization import schedules
        >>> print(schedules.cosine(1.0, num_steps=4)([0, 2, 4, 5]).round(6))
        [1.  0.5 0.  0. ]

    Reference: Loshchilov and Hutter, *SGDR* (2017), equation 5.

    Note:
        `optax.cosine_decay_schedule`, whose `alpha` is our `final_rate / learning_rate`. PyTorch's
        `CosineAnnealingLR` is the same up to $T$; then it rises again.
    """
    first, last = _rate("learning_rate", learning_rate), _rate("final_rate", final_rate)
    length = _steps("num_steps", num_steps)
    return lambda count: _half_cosine(first, last, _share(_time(count), length))


# --- Warm-up --------------------------------------------------------------------------------------


def linear_warmup(
    schedule: optax.Schedule | Rate,
    *,
    warmup_steps: Count,
    start_factor: Rate = 0.0,
    overlap: bool = False,
) -> optax.Schedule:
    r"""Put a linear rise in front of any schedule.

    With $f$ from the start factor to 1 along $w$ updates, $f_t = a + (1 - a) \min(t/w, 1)$,

    $$\eta_t = f_t \cdot \eta'_{\max(t - w,\ 0)} \qquad\text{or, with overlap,}\qquad
      \eta_t = f_t \cdot \eta'_t.$$

    Args:
        schedule: $\eta'$, a schedule or a rate that stays.
        warmup_steps: $w \ge 1$.
        start_factor: $a \ge 0$, the share of the rate at count 0. With 0 the first update does not
            move. The common factor $(t + 1)/n$ is `warmup_steps=n - 1, start_factor=1 / n`.
        overlap: Whether the schedule runs from count 0 on, rather than from the end of the rise;
            static.

    Returns:
        A schedule.

    Raises:
        TypeError: `schedule` is neither a function nor real, or `warmup_steps` is not an integer.
        ValueError: A number is negative or not finite, or `warmup_steps` is less than 1.

    Example:
        >>> from mlnotes_jax.optimization import schedules
        >>> warm = schedules.linear_warmup(schedules.step(1.0, every=2), warmup_steps=4)
        >>> print(warm([0, 1, 2, 4, 5, 6]))
        [0.   0.25 0.5  1.   1.   0.1 ]

    Reference: Goyal et al., *Accurate, Large Minibatch SGD* (2017), section 2.2 ("gradual warmup").

    Note:
        `optax.join_schedules` of a `linear_schedule` and the other one; PyTorch's `SequentialLR` of
        a `LinearLR` and the other, or `ChainedScheduler` with overlap.
    """
    after = _schedule("schedule", schedule)
    length, start = _steps("warmup_steps", warmup_steps), _rate("start_factor", start_factor)

    def warmed(count: ArrayLike) -> Array:
        factor = _straight(start, jnp.ones_like(start), _share(_time(count), length))
        return factor * after(count if overlap else _later(count, length))

    return warmed


def resnet_warmup(
    schedule: optax.Schedule | Rate = 0.1,
    *,
    warmup_steps: Count = 400,
    warmup_rate: Rate = 0.01,
) -> optax.Schedule:
    r"""Use a small constant rate first, then the schedule: ResNet's 0.01 and then 0.1.

    $\eta_t$ is `warmup_rate` for $t < w$, then $\eta'_t$. The schedule is not shifted: the paper
    counts its boundaries (32 000 and 48 000 of 64 000 updates) from the first update.

    Args:
        schedule: $\eta'$, a schedule or a rate that stays.
        warmup_steps: $w \ge 1$. The paper waits until the training error is below 80 %, about
            400 updates.
        warmup_rate: The rate before.

    Returns:
        A schedule.

    Raises:
        TypeError: `schedule` is neither a function nor real, or `warmup_steps` is not an integer.
        ValueError: A number is negative or not finite, or `warmup_steps` is less than 1.

    Example:
        >>> from mlnotes_jax.optimization import schedules
        >>> print(schedules.resnet_warmup()([0, 399, 400]))
        [0.01 0.01 0.1 ]

    Reference: He, Zhang, Ren and Sun, *Deep Residual Learning for Image Recognition* (2016),
        section 4.2: the network of 110 layers.
    """
    after, before = _schedule("schedule", schedule), _rate("warmup_rate", warmup_rate)
    length = _steps("warmup_steps", warmup_steps)
    return lambda count: jnp.where(_time(count) < length, before, after(count))


def noam(width: Count, *, warmup_steps: Count = 4000, scale: Rate = 1.0) -> optax.Schedule:
    r"""Make the Transformer's schedule: a linear rise, then an inverse square root.

    With $n = t + 1$, the number of the update from 1,

    $$\eta_t = s\, d^{-1/2} \min\bigl(n^{-1/2},\ n\, w^{-3/2}\bigr).$$

    It is highest at $n = w$, with $s / \sqrt{d w}$.

    Args:
        width: $d$, the features of the model.
        warmup_steps: $w \ge 1$.
        scale: $s \ge 0$.

    Returns:
        A schedule.

    Raises:
        TypeError: A number is not real, or a count is not an integer.
        ValueError: `scale` is negative or not finite, or a count is less than 1.

    Example:
        >>> from mlnotes_jax.optimization import schedules
        >>> rates = schedules.noam(512)([0, 3999, 15999])
        >>> print(rates[1], rates[1] / rates[2])
        0.00069877127 2.0

    Reference: Vaswani et al., *Attention Is All You Need* (2017), section 5.3.

    Note:
        With $\eta$ its highest value, `noam(...)(t)` is `linear_warmup(inverse_square_root(eta,
        timescale=w), warmup_steps=w)(t + 1)`: the paper counts updates from 1.
    """
    width, length = _steps("width", width), _steps("warmup_steps", warmup_steps)
    scale = _rate("scale", scale)

    def schedule(count: ArrayLike) -> Array:
        n = _time(count) + 1
        # Factored by the highest value: w ** 1.5 would lose digits.
        return scale / jnp.sqrt(width * length) * jnp.minimum(jnp.sqrt(length / n), n / length)

    return schedule


# --- Cycles ---------------------------------------------------------------------------------------


def triangular(
    low: Rate,
    high: Rate,
    *,
    steps_up: Count = 2000,
    steps_down: Count | None = None,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    gamma: Rate = 1.0,
) -> optax.Schedule:
    r"""Make the triangular cycle and its variants: up and down between two rates, again and again.

    With $z_t$ from 0 up to 1 and back, and $c = \lfloor t / \text{period} \rfloor$ cycles done,

    $$\eta_t = \eta_\text{low} + (\eta_\text{high} - \eta_\text{low})\, z_t\, a_t, \qquad
      a_t = 1, \quad 2^{-c}, \quad \gamma^t.$$

    Args:
        low: $\eta_\text{low}$, at the start of each cycle.
        high: $\eta_\text{high}$, at the tip of the first.
        steps_up: Updates of the rise.
        steps_down: Updates of the fall; as many as those of the rise where None.
        mode: Which $a_t$: tips that stay, `"triangular2"` halves them after each cycle,
            `"exp_range"` lets them decay at every update; static.
        gamma: $\gamma$ of `"exp_range"`; the paper uses 0.99994.

    Returns:
        A schedule.

    Raises:
        TypeError: A number is not real, or a count is not an integer.
        ValueError: A number is negative or not finite, a count is less than 1, or `mode` is
            unknown.

    Example:
        >>> from mlnotes_jax.optimization import schedules
        >>> print(schedules.triangular(0.0, 1.0, steps_up=2, mode="triangular2")(range(9)))
        [0.   0.5  1.   0.5  0.   0.25 0.5  0.25 0.  ]

    Reference: Smith, *Cyclical Learning Rates for Training Neural Networks* (2017), section 3.

    Note:
        PyTorch's `CyclicLR` (which by default cycles the momentum too).
    """
    low, high, gamma = _rate("low", low), _rate("high", high), _rate("gamma", gamma)
    _checks.one_of("mode", mode, ("triangular", "triangular2", "exp_range"))
    up = _steps("steps_up", steps_up)
    down = up if steps_down is None else _steps("steps_down", steps_down)

    def schedule(count: ArrayLike) -> Array:
        time = _time(count)
        cycles, rest = _split(time, up + down)
        height = jnp.where(rest <= up, rest / up, (up + down - rest) / down)
        if mode == "triangular2":
            height = height * 0.5**cycles
        elif mode == "exp_range":
            height = height * gamma**time
        return low + (high - low) * height

    return schedule


def warm_restarts(
    learning_rate: Rate,
    *,
    first_period: Count,
    period_factor: Count = 1,
    final_rate: Rate = 0.0,
) -> optax.Schedule:
    r"""Make SGDR: half a cosine after the other, each longer than the one before.

    Period $i$ has $T_i = T_0\, m^i$ updates; in it the rate falls from $\eta$ towards
    $\eta_\text{final}$ like `cosine`. At its end it jumps back: a warm restart.

    Args:
        learning_rate: $\eta$, at each restart.
        first_period: $T_0 \ge 1$.
        period_factor: $m \ge 1$, an integer.
        final_rate: $\eta_\text{final}$, approached at the end of each period.

    Returns:
        A schedule.

    Raises:
        TypeError: A rate is not real, or a count is not an integer.
        ValueError: A rate is negative or not finite, or a count is less than 1.

    Example:
        >>> from mlnotes_jax.optimization import schedules
        >>> rates = schedules.warm_restarts(1.0, first_period=2, period_factor=2)
        >>> print((100 * rates(range(7))).round())  # restarts at 2 and 6
        [100.  50. 100.  85.  50.  15. 100.]

    Reference: Loshchilov and Hutter, *SGDR: Stochastic Gradient Descent with Warm Restarts* (2017),
        section 3.

    Note:
        PyTorch's `CosineAnnealingWarmRestarts`, stepped by one: where an epoch is passed to its
        `step`, it takes a logarithm that rounds to the wrong period at some restarts (243, with
        $T_0 = 1$ and $m = 3$). `optax.sgdr_schedule` lists the periods.
    """
    first, last = _rate("learning_rate", learning_rate), _rate("final_rate", final_rate)
    period, factor = _steps("first_period", first_period), _steps("period_factor", period_factor)
    # Whole numbers, so exact while they are below 2^24. With m >= 2 that is 24 periods; m = 1,
    # which has no end, is done by division.
    lengths = period * jnp.cumprod(jnp.where(jnp.arange(32) == 0, 1, factor))
    starts = jnp.concatenate([jnp.zeros_like(lengths[:1]), jnp.cumsum(lengths)[:-1]])

    def schedule(count: ArrayLike) -> Array:
        time = _time(count)
        shape = (1,) * time.ndim + (32,)
        begun = time[..., None] >= starts.reshape(shape)
        begin = jnp.max(jnp.where(begun, starts.reshape(shape), 0), axis=-1)
        length = jnp.max(jnp.where(begun, lengths.reshape(shape), 0), axis=-1)
        same = factor == 1
        since = jnp.where(same, _split(time, period)[1], time - begin)
        return _half_cosine(first, last, since / jnp.where(same, period, length))

    return schedule


def one_cycle(
    peak: Rate,
    *,
    num_steps: Count,
    warmup_share: Rate = 0.3,
    return_share: Rate | None = None,
    start_divisor: Rate = 25.0,
    final_divisor: Rate = 1e4,
    shape: Literal["cosine", "linear"] = "cosine",
    convention: Literal["torch", "optax"] = "torch",
) -> optax.Schedule:
    r"""Make one cycle: up to a high rate, down again, and far below at the end.

    The rate goes from $\eta_\text{peak} / a$ to $\eta_\text{peak}$ at share $p$ of the updates, and
    on to $\eta_\text{peak} / (a b)$ at the end. With a `return_share` $q$ it is back at
    $\eta_\text{peak} / a$ at share $q$: three phases.

    | | `"torch"` | `"optax"` |
    |---|---|---|
    | the top is at count | $pT - 1$ | $\lfloor pT \rfloor$ |
    | back at the start at | $qT - 2$ | $\lfloor qT \rfloor$ |
    | the end is at | $T - 1$, the last update | $T$, one later |

    Args:
        peak: $\eta_\text{peak}$.
        num_steps: $T \ge 1$, all updates.
        warmup_share: $p$ in [0, 1].
        return_share: $q$ in [p, 1]; PyTorch's `three_phase=True` has $2p$, Optax's linear cycle
            0.85. None: two phases.
        start_divisor: $a > 0$.
        final_divisor: $b > 0$.
        shape: How to go from one rate to the next; static.
        convention: Where the phases end; static.

    Returns:
        A schedule; past the end the last rate stays.

    Raises:
        TypeError: A number is not real, or `num_steps` is not an integer.
        ValueError: A number is out of its range, or an option is unknown.

    Example:
        >>> from mlnotes_jax.optimization import schedules
        >>> rates = schedules.one_cycle(
        ...     1.0, num_steps=12, warmup_share=0.5, start_divisor=4.0, shape="linear"
        ... )
        >>> print(rates([0, 5, 8]))
        [0.25      1.        0.5000125]

    Reference: Smith and Topin, *Super-Convergence* (2018), section 3.

    Note:
        PyTorch's `OneCycleLR` (which also cycles the momentum, and refuses counts past the end);
        `optax.cosine_onecycle_schedule` and `linear_onecycle_schedule`.
    """
    _checks.one_of("shape", shape, ("cosine", "linear"))
    _checks.one_of("convention", convention, ("torch", "optax"))
    peak, total = _rate("peak", peak), _steps("num_steps", num_steps)
    shares = [("warmup_share", warmup_share)]
    if return_share is not None:
        shares.append(("return_share", return_share))
    for name, value in shares:
        _rules.scalar(name, value)
        _checks.in_range(name, value, 0, 1)
    numbers = [_rate(name, value) for name, value in shares]
    for name, value in (("start_divisor", start_divisor), ("final_divisor", final_divisor)):
        _rules.scalar(name, value)
        _checks.positive(name, value)
    start = peak / _rate("start_divisor", start_divisor)
    final = start / _rate("final_divisor", final_divisor)

    if convention == "torch":
        ends = [share * total - i for i, share in enumerate(numbers, start=1)] + [total - 1]
    else:
        ends = [jnp.floor(share * total) for share in numbers] + [total]
    rates = [start, peak, final] if return_share is None else [start, peak, start, final]
    between = _half_cosine if shape == "cosine" else _straight

    def schedule(count: ArrayLike) -> Array:
        time = _time(count)
        begin, value = jnp.zeros_like(total), jnp.full_like(time, start)
        for i, end in enumerate(ends):
            # A phase of no length is over at once.
            length = jnp.where(end > begin, end - begin, 1)
            share = jnp.where(end > begin, jnp.clip((time - begin) / length, 0, 1), 1)
            here = between(rates[i], rates[i + 1], share)
            value = here if i == 0 else jnp.where(time > begin, here, value)
            begin = end
        return value

    return schedule


def join(
    schedules: Sequence[optax.Schedule | Rate], boundaries: Int[ArrayLike, " k"] | Sequence[int]
) -> optax.Schedule:
    r"""Put schedules one after the other, each counted from its own beginning.

    Args:
        schedules: $k + 1$ schedules, or rates that stay.
        boundaries: The counts at which the next one begins, ascending, shape `(k,)`.

    Returns:
        A schedule.

    Raises:
        TypeError: One is neither a function nor real, or `boundaries` are not integers.
        ValueError: There is not one boundary less than schedules, or they descend.

    Example:
        >>> from mlnotes_jax.optimization import schedules
        >>> both = schedules.join([0.5, schedules.step(1.0, every=2)], [3])
        >>> print(both([0, 2, 3, 4, 5]))
        [0.5 0.5 1.  1.  0.1]

    Note:
        `optax.join_schedules`, PyTorch's `SequentialLR`. A schedule is never asked for a negative
        count.
    """
    made = [_schedule(f"schedules[{i}]", one) for i, one in enumerate(schedules)]
    edges = _checks.integer("boundaries", _array(boundaries), ndim=1)
    if len(made) != len(edges) + 1:
        raise ValueError(
            f"boundaries must be one fewer than the {len(made)} schedules, got {len(edges)}"
        )
    _checks.not_negative("boundaries", edges)
    if _checks.is_concrete(edges) and (np.diff(np.asarray(edges)) < 0).any():
        raise ValueError(f"boundaries must ascend, got {np.asarray(edges).tolist()}")

    def schedule(count: ArrayLike) -> Array:
        value = made[0](count)
        for edge, one in zip(edges.astype(value.dtype), made[1:], strict=True):
            value = jnp.where(_time(count) < edge, value, one(_later(count, edge)))
        return value

    return schedule


# --- The learning-rate range test -----------------------------------------------------------------


def range_test(
    loss: Callable[[Any, Any], Float[Array, ""]],
    params: PyTree,
    batches: PyTree,
    *,
    low: Rate = 1e-6,
    high: Rate = 10.0,
    num_steps: int = 100,
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation] = optax.sgd,
    rise: Literal["exponential", "linear"] = "exponential",
    smoothing: Rate = 0.8,
    divergence: Rate = 4.0,
) -> RangeTest:
    r"""Train for a while with a rising rate, and see what the loss does.

    Update $t$ has the rate $\eta_t = \eta_\text{low} (\eta_\text{high} /
    \eta_\text{low})^{t/(n-1)}$. While it is too small nothing happens; then the loss falls; then it
    explodes. The loss is smoothed with weights $\beta^{|i - j|}$ to both sides, so that its curve
    does not lag behind its rates.

    The run ends, in that nothing moves any more, once the running average of the loss is above
    `divergence` times its lowest value so far (for a negative lowest value $v$: above
    $v + (\text{divergence} - 1) |v|$), or the loss is not finite.

    Args:
        loss: `loss(params, batch) -> scalar`. Compiled once for the same function.
        params: Where to start; not changed.
        batches: A pytree of arrays whose leading axis runs over batches. They are used in turn,
            again from the first after the last.
        low: $\eta_\text{low} > 0$. Traced.
        high: $\eta_\text{high}$, above `low`. Traced.
        num_steps: $n \ge 3$; static.
        optimizer: Makes a rule from a schedule, such as `optax.sgd` or `adam.adam`; static.
        rise: By a constant factor or by a constant amount; static.
        smoothing: $\beta$ in [0, 1). Traced.
        divergence: Above 1. Traced.

    Returns:
        The curve, and two rates.

    Raises:
        TypeError: A number is not real, or `loss` or `optimizer` is no function.
        ValueError: A number is out of its range, `loss` is no scalar, or `batches` have no one
            leading axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.optimization import schedules
        >>> def bowl(x, batch):  # of curvature 4: descent is stable below 2 / 4
        ...     return 2 * x**2 + 0 * batch
        >>> found = schedules.range_test(  # without noise there is nothing to smooth
        ...     bowl, 1.0, jnp.zeros(1), low=1e-4, high=10.0, smoothing=0.0
        ... )
        >>> print(bool(found.diverged), f"{found.steepest:.2f} {found.largest:.2f}")
        True 0.01 0.49

    Reference: Smith, *Cyclical Learning Rates for Training Neural Networks* (2017), section 3.3.

    Note:
        Smith raises the rate linearly and looks at the accuracy. fastai's `lr_find` is exponential,
        smooths to one side, and also ends at four times the lowest loss.
    """
    for name, fn in (("loss", loss), ("optimizer", optimizer)):
        if not callable(fn):
            raise TypeError(f"{name} must be a function, got {type(fn).__name__}")
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)]
    if (
        not shapes
        or len({shape[:1] for shape in shapes}) > 1
        or not all(s and s[0] for s in shapes)
    ):
        raise ValueError(
            f"batches must hold arrays with one leading axis of batches, got shapes {shapes}"
        )
    return _range_test(
        _Batches(loss),
        params,
        batches,
        low,
        high,
        num_steps,
        optimizer,
        rise,
        smoothing,
        divergence,
    )


def range_test_model(
    key: Key[Array, ""],
    model: Any,
    loss: Callable[[Any, Any], Float[Array, ""]],
    data: tuple[PyTree, PyTree],
    *,
    batch_size: int = 64,
    num_steps: int = 100,
    **options: Any,
) -> RangeTest:
    """Run the range test on a network, in train mode, on mini-batches in the order of `loop.fit`.

    Args:
        key: Decides the order of the rows, and all that the model draws.
        model: A Flax module or a `loop.Bound`, as `training.loop.fit` takes it; not changed.
        loss: `loss(outputs, targets)`, the mean over the batch.
        data: `(x, targets)`, arrays or pytrees of arrays with one leading axis of rows.
        batch_size: Rows of a batch; static.
        num_steps: Updates; static.
        **options: As in `range_test`.

    Returns:
        As `range_test`.

    Raises:
        TypeError: `model` is no model, or as in `range_test`.
        ValueError: There are fewer rows than `batch_size`, or as in `range_test`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.foundations import losses
        >>> from mlnotes_jax.optimization import schedules
        >>> x = jnp.linspace(-1.0, 1.0, 32).reshape(32, 1)
        >>> line = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        >>> found = schedules.range_test_model(
        ...     jax.random.key(0), line, losses.mse, (x, 3 * x), batch_size=8
        ... )
        >>> bool(found.steepest < found.largest)
        True
    """
    from flax import nnx

    from mlnotes_jax.data import loading
    from mlnotes_jax.training import loop

    if isinstance(model, nnx.Module):
        model = loop.bind(model)
    elif not isinstance(model, loop.Bound):
        raise TypeError(f"model must be an nnx.Module or a Bound, got {type(model).__name__}")
    _checks.positive_int("batch_size", batch_size)
    _checks.positive_int("num_steps", num_steps, least=3)
    data = jax.tree.map(jnp.asarray, data)
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or not all(lengths):
        shapes = [leaf.shape for leaf in jax.tree.leaves(data)]
        raise ValueError(f"data must be arrays with one leading axis of rows, got shapes {shapes}")
    num_rows = lengths.pop()[0]
    if num_rows < batch_size:
        raise ValueError(
            f"batch_size must be at most the number of rows, {num_rows}, got {batch_size}"
        )
    rows, epoch = [], 0
    while len(rows) < num_steps:
        order = loading.epoch_order(key, epoch, num_rows)
        rows.extend(np.asarray(loading.batch_indices(order, batch_size=batch_size).full))
        epoch += 1
    everything = (model.state, data, jnp.asarray(np.stack(rows[:num_steps])), key)
    defaults = range_test.__kwdefaults__ or {}
    if unknown := sorted(set(options) - set(defaults)):
        raise TypeError(f"options must be among those of range_test, got {unknown}")
    return _range_test(
        _Network(model.apply, loss),
        model.params,
        everything,
        **{**defaults, **options, "num_steps": num_steps},
    )


def effective_samples(
    decay: Float[ArrayLike, "*shape"], num_steps: Float[ArrayLike, "*shape"]
) -> Float[Array, "*shape"]:
    r"""Count how many independent numbers a debiased exponential average is worth.

    The average of the first $t$ numbers has weights $w_i = (1 - \beta)\, \beta^{t-i} / (1 -
    \beta^t)$. The variance of independent numbers falls by $\sum_i w_i^2 = 1/n_t$, with

    $$n_t = \frac{(1 + \beta)(1 - \beta^t)}{(1 - \beta)(1 + \beta^t)}.$$

    It is 1 at first, about $t$ while $t \ll 1/(1 - \beta)$, and $(1 + \beta) / (1 - \beta)$ in the
    end. This is why the first steps of Adam are uncertain.

    Args:
        decay: $\beta$ in [0, 1), any shape.
        num_steps: $t \ge 1$, how many numbers were averaged; the same shape, or a scalar.

    Returns:
        $n_t$, elementwise.

    Raises:
        TypeError: An argument is not real.
        ValueError: `decay` is not in [0, 1), or `num_steps` is below 1.

    Example:
        >>> from mlnotes_jax.optimization import schedules
        >>> schedules.effective_samples(0.999, [1, 10, 1_000_000]).round().tolist()
        [1.0, 10.0, 1999.0]

    Note:
        RAdam's $\rho_t$ is another count for the same thing, with the same limit.
    """
    _checks.floating("decay", decay)
    _checks.not_negative("decay", decay)
    # 1 - beta in double precision where it is not traced: near 1 it is all that counts.
    rest = 1 - (decay if isinstance(decay, jax.Array) else np.asarray(decay, np.float64))
    _checks.positive("1 - decay", rest)
    rest = jnp.asarray(rest, jnp.result_type(float))
    time = _time(num_steps)
    _checks.positive("num_steps", time)
    log = jnp.log1p(-rest) * time  # of beta^t; -inf, as it should be, where beta is 0
    return (2 - rest) * -jnp.expm1(log) / (rest * (1 + jnp.exp(log)))


# --- Small parts ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Batches:
    """The loss of update t where batches are given; equal for the same function."""

    loss: Callable[[Any, Any], Array]

    def __call__(self, params: PyTree, index: Array, batches: PyTree) -> Array:
        def pick(leaf: ArrayLike) -> Array:
            leaf = jnp.asarray(leaf)
            return leaf[index % len(leaf)]

        return self.loss(params, jax.tree.map(pick, batches))


@dataclasses.dataclass(frozen=True)
class _Network:
    """The loss of update t of a network: rows, keys and statistics as in training."""

    apply: Callable[..., Any]
    loss: Callable[[Any, Any], Array]

    def __call__(self, params: PyTree, index: Array, everything: PyTree) -> Array:
        state, (x, targets), rows, key = everything
        x, targets = jax.tree.map(lambda leaf: leaf[rows[index]], (x, targets))
        key = jax.random.fold_in(key, index)
        return self.loss(self.apply(params, state, x, key=key, train=True)[0], targets)


def _range_test(
    loss: Callable[[PyTree, Array, PyTree], Array],
    params: PyTree,
    data: PyTree,
    low: Rate,
    high: Rate,
    num_steps: int,
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation],
    rise: str,
    smoothing: Rate,
    divergence: Rate,
) -> RangeTest:
    _checks.positive_int("num_steps", num_steps, least=3)
    _checks.one_of("rise", rise, ("exponential", "linear"))
    _rules.share("smoothing", smoothing)
    numbers = {"low": low, "high": high, "divergence": divergence}
    for name, value in numbers.items():
        _rules.scalar(name, value)
        _checks.positive(name, value)
    for name, value, least in (("high", high, low), ("divergence", divergence, 1.0)):
        both = (value, least)
        if _checks.is_concrete(both) and not float(np.asarray(value)) > float(np.asarray(least)):
            raise ValueError(f"{name} must be above {least}, got {value}")
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), params)
    _rules.check_params(params)
    value = jax.eval_shape(loss, params, jnp.int32(0), data)
    if getattr(value, "shape", None) != ():
        raise ValueError(f"loss must return a scalar, got {value}")
    settings = [_rate(n, v) for n, v in {**numbers, "smoothing": smoothing}.items()]
    return _rise(loss, optimizer, rise, num_steps, params, data, *settings)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _rise(
    loss: Callable[[PyTree, Array, PyTree], Array],
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation],
    rise: str,
    num_steps: int,
    params: PyTree,
    data: PyTree,
    low: Array,
    high: Array,
    divergence: Array,
    beta: Array,
) -> RangeTest:
    share = jnp.arange(num_steps, dtype=low.dtype) / (num_steps - 1)
    rates = low * (high / low) ** share if rise == "exponential" else _straight(low, high, share)
    rule = optax.with_extra_args_support(optimizer(lambda count: rates[count]))

    def update(carry: tuple, index: Array) -> tuple[tuple, Array]:
        params, opt_state, mean, weight, lowest, alive = carry
        value, gradient = jax.value_and_grad(loss)(params, index, data)
        wide = value.astype(mean.dtype)
        weight = beta * weight + (1 - beta)
        mean = mean + (1 - beta) / weight * (wide - mean)
        lowest = jnp.minimum(lowest, mean)
        # A NaN fails the comparison.
        alive = alive & (mean <= lowest + (divergence - 1) * jnp.abs(lowest)) & jnp.isfinite(wide)
        updates, new_state = rule.update(gradient, opt_state, params, value=value)
        moved = (optax.apply_updates(params, updates), new_state)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(alive, new, old), moved, (params, opt_state)
        )
        return (params, opt_state, mean, weight, lowest, alive), jnp.where(alive, wide, jnp.nan)

    zero = jnp.zeros_like(low)
    start = (params, rule.init(params), zero, zero, zero + jnp.inf, jnp.bool_(True))
    _, losses = lax.scan(update, start, jnp.arange(num_steps, dtype=jnp.int32))
    return _read_curve(rates, losses, beta)


def _read_curve(rates: Array, losses: Array, beta: Array) -> RangeTest:
    seen = ~jnp.isnan(losses)
    place = jnp.arange(len(losses), dtype=losses.dtype)
    apart = jnp.abs(place[:, None] - place.reshape(1, -1))
    weights = jnp.where(seen.reshape(1, -1), beta**apart, 0)
    known = jnp.where(seen, losses, 0)
    smoothed = jnp.matmul(weights, known, precision="highest") / jnp.maximum(
        weights.sum(axis=1), jnp.finfo(losses.dtype).tiny
    )
    low_place = jnp.argmin(jnp.where(seen, smoothed, jnp.inf))
    smoothed = jnp.where(seen, smoothed, jnp.nan)

    log = jnp.log(rates)
    slopes = (smoothed[2:] - smoothed[:-2]) / (log[2:] - log[:-2])
    inside = ~jnp.isnan(slopes) & (jnp.arange(1, len(losses) - 1) <= low_place)
    slopes = jnp.where(inside, slopes, jnp.inf)
    falls = jnp.min(slopes) < 0
    # Update t moves from loss t to loss t + 1.
    last = jnp.where(low_place == len(losses) - 1, low_place, jnp.maximum(low_place - 1, 0))
    return RangeTest(
        rates=rates,
        losses=losses,
        smoothed=smoothed,
        num_steps=seen.sum(dtype=jnp.int32),
        diverged=~seen.all(),
        steepest=jnp.where(falls, rates[1 + jnp.argmin(slopes)], jnp.nan),
        largest=jnp.where(falls, rates[last], jnp.nan),
    )


def _rate(name: str, value: ArrayLike) -> Float[Array, ""]:
    """A number that is not negative, in the default float precision."""
    _rules.not_negative(name, value)
    return _rules.scalar(name, value).astype(jnp.result_type(float))


def _steps(name: str, value: ArrayLike) -> Float[Array, ""]:
    """A whole number of at least 1, as a float."""
    return _checks.count(name, value).astype(jnp.result_type(float))


def _array(count: ArrayLike | Sequence[Any]) -> Array:
    return jnp.asarray(count if isinstance(count, jax.Array) else np.asarray(count))


def _time(count: ArrayLike) -> Float[Array, "*shape"]:
    """Counts as floats, in any shape."""
    return _checks.floating("count", _array(count)).astype(jnp.result_type(float))


def _later(count: ArrayLike, begin: Array) -> Array:
    """The count since another one, at least 0; integers stay integers."""
    count = _array(count)
    return jnp.maximum(count - begin.astype(count.dtype), 0)


def _schedule(name: str, value: optax.Schedule | ArrayLike) -> Callable[[ArrayLike], Array]:
    if not callable(value):
        rate = _rate(name, value)
        return lambda count: jnp.full_like(_time(count), rate)
    return lambda count: _checks.floating(f"{name}(count)", value(_array(count))).astype(
        jnp.result_type(float)
    )


def _split(time: Array, period: Array) -> tuple[Array, Array]:
    """Whole periods done, and updates since; exact, also where division is not (on some GPUs)."""
    rest = jnp.mod(time, period)
    return jnp.round((time - rest) / period), rest


def _share(time: Array, length: Array) -> Array:
    return jnp.clip(time / length, 0, 1)


def _straight(first: Array, last: Array, share: Array) -> Array:
    return first + (last - first) * share


def _half_cosine(first: Array, last: Array, share: Array) -> Array:
    return last + (first - last) * (0.5 * (1 + jnp.cos(jnp.pi * share)))
