r"""Averages of the parameters along the way, which are often better than where it ends.

With parameters $\theta_1, \theta_2, \dots$ after each update,

$$m_t = \beta\, m_{t-1} + (1 - \beta)\, \theta_t, \qquad
  \hat\theta_t = \frac{m_t}{1 - \beta^t} \quad (m_0 = 0), \qquad\qquad
  \bar\theta = \frac1n \sum_{i=1}^{n} \theta_{s + ik}$$

are the exponential moving average, debiased, and the uniform average of every $k$-th of them from a
start step on: Polyak's average for $k = 1$, stochastic weight averaging in general.

Reference: Polyak and Juditsky, *Acceleration of Stochastic Approximation by Averaging* (1992);
Izmailov et al., *Averaging Weights Leads to Wider Optima and Better Generalization* (2018).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from mlnotes_jax import _checks

__all__ = [
    "Average",
    "AverageState",
    "Snapshots",
    "decay_of_half_life",
    "ema",
    "ema_variance",
    "half_life",
    "held",
    "iterate_variance",
    "polyak",
    "snapshots",
    "uniform",
    "uniform_variance",
]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["num_updates", "weight", "mean"],
    meta_fields=["dtypes", "size"],
)
@dataclasses.dataclass(frozen=True)
class AverageState:
    r"""What an average remembers: a pytree, for the carry of a loop.

    Attributes:
        num_updates: How often it was updated, shape `()`.
        weight: An exponential average: the sum of the weights of the parameters seen so far,
            $1 - \beta^t$. The others: how many parameters are in it. Shape `()`.
        mean: The average, in at least float32; of `snapshots`, the parameters held. Leaves that
            are not floats (counters, masks, keys) have no average: they hold the newest value.
        dtypes: Those of the leaves of the parameters; static.
        size: Of `snapshots`, how many are held at most; else 0; static.
    """

    num_updates: Int[Array, ""]
    weight: Array
    mean: PyTree
    dtypes: tuple[Any, ...]
    size: int = 0


class Average(NamedTuple):
    """A way to average: three pure functions, for `jit`, `scan` and `vmap`.

    Attributes:
        init: `init(params) -> state`. The initial parameters are not part of the average.
        update: `update(state, params) -> state`, with the parameters after an update.
        value: `value(state) -> params`: the average, with the structure and dtypes of `params`.
            Before anything is in it, the newest parameters (at first the initial ones).
    """

    init: Callable[[PyTree], AverageState]
    update: Callable[[AverageState, PyTree], AverageState]
    value: Callable[[AverageState], PyTree]


class Snapshots(NamedTuple):
    """Parameters that were kept.

    Attributes:
        params: As the parameters, with a leading axis of `size`, oldest first.
        filled: Which entries hold a snapshot, shape `(size,)`: the last ones do.
    """

    params: PyTree
    filled: Bool[Array, " size"]


def ema(
    decay: Float[ArrayLike, ""],
    *,
    debias: bool = True,
    start: Literal["zero", "params"] = "zero",
) -> Average:
    r"""Exponential moving average: $m_t = \beta m_{t-1} + (1 - \beta) \theta_t$.

    From $m_0 = 0$ the weights add up to $w_t = 1 - \beta^t$ only; debiasing divides by that sum. It
    is computed as a step of $m_t / w_t$ towards the newest parameters,

    $$\frac{m_t}{w_t} = \frac{m_{t-1}}{w_{t-1}}
      + \frac{1 - \beta}{w_t} \left(\theta_t - \frac{m_{t-1}}{w_{t-1}}\right), \qquad
      w_t = \beta w_{t-1} + (1 - \beta).$$

    Args:
        decay: $\beta$, in [0, 1). Traced.
        debias: Whether to divide by the sum of the weights; static.
        start: $m_0$ of an average without debiasing: zero, as in `optax.ema(debias=False)`, or the
            initial parameters, which then keep the weight $\beta^t$; static.

    Returns:
        The average.

    Raises:
        ValueError: `decay` is not in [0, 1), `start` is unknown, or `debias` is asked for with
            `start="params"`, whose weights add up to 1.

    Example:
        >>> from mlnotes_jax.optimization import averaging
        >>> average = averaging.ema(0.5)
        >>> state = average.init(0.0)
        >>> for params in (8.0, 2.0):
        ...     state = average.update(state, params)
        >>> round(float(average.value(state)), 4)  # (0.5 * 2 + 0.25 * 8) / 0.75
        4.0

    Reference:
        Kingma and Ba, *Adam* (2015), section 3, for the correction.

    Note:
        `optax.ema` is the same rule on updates. Its divisor is `1 - decay**t`; ours is summed up
        with the same roundings as the average, so that a constant stays that constant.
    """
    decay = _checks.floating("decay", decay, ndim=0)
    _checks.not_negative("decay", decay)
    _checks.positive("1 - decay", 1 - decay)
    _checks.one_of("start", start, ("zero", "params"))
    if debias and start == "params":
        raise ValueError("debias must be False with start='params', whose weights add up to 1")

    def init(params: PyTree) -> AverageState:
        state = _start(params, jnp.zeros((), jnp.result_type(float)))
        if debias or start == "params":
            return state
        zeros = jax.tree.map(lambda m: jnp.zeros_like(m) if _averaged(m) else m, state.mean)
        return dataclasses.replace(state, mean=zeros)

    def update(state: AverageState, params: PyTree) -> AverageState:
        beta = decay.astype(state.weight.dtype)
        weight = beta * state.weight + (1 - beta)
        share = (1 - beta) / weight if debias else 1 - beta
        return _step(state, params, weight, share)

    return Average(init, update, _value)


def uniform(*, start: Int[ArrayLike, ""] = 0, every: Int[ArrayLike, ""] = 1) -> Average:
    r"""Uniform average of every k-th parameters from a start step: stochastic weight averaging.

    Updates are counted from 0; those with $t \ge s$ and $(t - s) \bmod k = 0$ are taken in.

    Args:
        start: $s$, how many first updates are left out. Traced.
        every: $k \ge 1$. With a cyclic learning rate, the length of the cycle. Traced.

    Returns:
        The average.

    Raises:
        ValueError: `start` is negative or `every` is less than 1.
        TypeError: One of them is not an integer.

    Example:
        >>> from mlnotes_jax.optimization import averaging
        >>> average = averaging.uniform(start=1, every=2)
        >>> state = average.init(0.0)
        >>> for params in (100.0, 1.0, 50.0, 3.0):
        ...     state = average.update(state, params)
        >>> float(average.value(state))  # of 1 and 3
        2.0

    Reference:
        Izmailov, Podoprikhin, Garipov, Vetrov and Wilson, *Averaging Weights Leads to Wider Optima
        and Better Generalization* (2018), algorithm 1.

    Note:
        Statistics of batch normalization are not parameters: after averaging, compute them anew
        with the averaged parameters.
    """
    start, every = _checks.count("start", start, least=0), _checks.count("every", every)

    def init(params: PyTree) -> AverageState:
        return _start(params, jnp.zeros((), jnp.int32))

    def update(state: AverageState, params: PyTree) -> AverageState:
        taken = _taken(state.num_updates, start, every)
        count = state.weight + taken.astype(jnp.int32)
        wide = jnp.result_type(float)
        share = taken.astype(wide) / jnp.maximum(count, 1).astype(wide)
        # With nothing in it yet, follow the newest.
        return _step(state, params, count, jnp.where(count == 0, 1.0, share))

    return Average(init, update, _value)


def polyak(*, start: Int[ArrayLike, ""] = 0) -> Average:
    r"""Polyak's average: the uniform average of all parameters from a start step on.

    On a quadratic its variance falls as $v / (\lambda^2 n)$ whatever the learning rate; see
    `uniform_variance`.

    Args:
        start: How many first updates are left out: those that still travel. Traced.

    Returns:
        The average: `uniform(start=start)`.

    Raises:
        ValueError: `start` is negative.
        TypeError: `start` is not an integer.

    Example:
        >>> from mlnotes_jax.optimization import averaging
        >>> average = averaging.polyak(start=1)
        >>> state = average.init(0.0)
        >>> for params in (100.0, 1.0, 3.0):
        ...     state = average.update(state, params)
        >>> float(average.value(state))
        2.0

    Reference:
        Polyak and Juditsky, *Acceleration of Stochastic Approximation by Averaging* (1992).
    """
    return uniform(start=start)


def snapshots(
    size: int, *, start: Int[ArrayLike, ""] = 0, every: Int[ArrayLike, ""] = 1
) -> Average:
    """Keep the last few of every k-th parameters: for an ensemble, or for their average.

    `value` averages the parameters held; `held` gives them one by one, so that their *outputs* can
    be averaged. They are kept in the dtype of the parameters.

    Args:
        size: How many are kept; static. That many times the memory of the parameters.
        start: How many first updates are left out. Traced.
        every: One in so many updates from there is kept. Traced.

    Returns:
        The average over those held.

    Raises:
        ValueError: `size` or `every` is less than 1, or `start` is negative.
        TypeError: One of them is not an integer.

    Example:
        >>> from mlnotes_jax.optimization import averaging
        >>> average = averaging.snapshots(2)
        >>> state = average.init(0.0)
        >>> for params in (1.0, 2.0, 5.0):
        ...     state = average.update(state, params)
        >>> averaging.held(state).params.tolist(), float(average.value(state))
        ([2.0, 5.0], 3.5)

    Reference:
        Huang et al., *Snapshot Ensembles: Train 1, Get M for Free* (2017).
    """
    _checks.positive_int("size", size)
    start, every = _checks.count("start", start, least=0), _checks.count("every", every)

    def init(params: PyTree) -> AverageState:
        state = _start(params, jnp.zeros((), jnp.int32))
        params = jax.tree.unflatten(jax.tree.structure(params), _cast(state))
        kept = jax.tree.map(lambda leaf: jnp.stack([leaf] * size), params)
        return dataclasses.replace(state, mean=kept, size=size)

    def update(state: AverageState, params: PyTree) -> AverageState:
        params = _like(state, params)
        taken = _taken(state.num_updates, start, every)
        count = jnp.minimum(state.weight + taken.astype(jnp.int32), size)

        def push(kept: Array, new: Array) -> Array:
            shifted = jnp.concatenate([kept[1:], new[None]])
            # With nothing held yet, the last place shows the newest.
            shown = kept.at[-1].set(jnp.where(count == 0, new, kept[-1]))
            shown = shown if _averaged(new) else kept.at[-1].set(new)
            return jnp.where(taken, shifted, shown)

        kept = jax.tree.map(push, state.mean, params)
        return AverageState(state.num_updates + 1, count, kept, state.dtypes, size)

    def value(state: AverageState) -> PyTree:
        filled = _filled(jnp.maximum(state.weight, 1), size)

        def average(kept: Array) -> Array:
            if not _averaged(kept):
                return kept[-1]
            wide = _wide(kept)
            weights = filled.astype(wide.dtype) / filled.sum().astype(wide.dtype)
            return jnp.tensordot(weights, wide, 1)

        return _value(dataclasses.replace(state, mean=jax.tree.map(average, state.mean)))

    return Average(init, update, value)


def held(state: AverageState) -> Snapshots:
    """The snapshots one by one: the members of an ensemble.

    Args:
        state: Of `snapshots`.

    Returns:
        The parameters, oldest first, for `vmap`; and which of the entries are filled.

    Raises:
        ValueError: `state` is that of another average.

    Example:
        >>> from mlnotes_jax.optimization import averaging
        >>> average = averaging.snapshots(3, every=2)
        >>> state = average.init(0.0)
        >>> for params in (1.0, 2.0, 3.0):
        ...     state = average.update(state, params)
        >>> kept = averaging.held(state)
        >>> kept.params.tolist()[1:], kept.filled.tolist()
        ([1.0, 3.0], [False, True, True])
    """
    if not state.size:
        raise ValueError("state must be one of snapshots(...), got that of another average")
    return Snapshots(state.mean, _filled(state.weight, state.size))


def half_life(decay: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    r"""After how many updates a weight has halved: $h = \ln \tfrac12 / \ln \beta$.

    Args:
        decay: $\beta$, between 0 and 1, any shape.

    Returns:
        The half-life in updates, shape of `decay`; about $0.69 / (1 - \beta)$ near 1.

    Raises:
        ValueError: A decay is not between 0 and 1.

    Example:
        >>> from mlnotes_jax.optimization import averaging
        >>> float(averaging.half_life(0.5)), round(float(averaging.half_life(0.999)), 1)
        (1.0, 692.8)
    """
    decay = _checks.floating("decay", decay)
    _checks.positive("decay", decay)
    _checks.positive("1 - decay", 1 - decay)
    # By log1p: near 1 the difference to 1 is what matters, and 1 - decay is exact there.
    return jnp.log(0.5).astype(decay.dtype) / jnp.log1p(-(1 - decay))


def decay_of_half_life(num_updates: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    r"""The decay with a given half-life: $\beta = 2^{-1/h}$.

    Args:
        num_updates: $h > 0$, in updates, any shape.

    Returns:
        $\beta$, shape of `num_updates`.

    Raises:
        ValueError: A half-life is not positive.

    Example:
        >>> from mlnotes_jax.optimization import averaging
        >>> float(averaging.decay_of_half_life(1.0))
        0.5
    """
    num_updates = _checks.floating("num_updates", num_updates)
    _checks.positive("num_updates", num_updates)
    return jnp.exp2(-1 / num_updates)


def iterate_variance(
    curvature: Float[ArrayLike, ""],
    *,
    learning_rate: Float[ArrayLike, ""],
    noise_variance: Float[ArrayLike, ""],
) -> Float[Array, ""]:
    r"""Variance at which noisy descent settles in a bowl: $\eta v / (\lambda (2 - \eta \lambda))$.

    For $\theta_{t+1} = \theta_t - \eta (\lambda \theta_t + \xi_t)$ with independent $\xi_t$ of mean
    0 and variance $v$.

    Args:
        curvature: $\lambda > 0$.
        learning_rate: $\eta > 0$.
        noise_variance: $v \ge 0$.

    Returns:
        The variance, shape `()`; infinite where $\eta \lambda \ge 2$: it never settles.

    Raises:
        ValueError: `curvature` or `learning_rate` is not positive, or `noise_variance` is negative.

    Example:
        >>> from mlnotes_jax.optimization import averaging
        >>> float(averaging.iterate_variance(1.0, learning_rate=1.0, noise_variance=3.0))
        3.0
    """
    rate, curvature, noise = _bowl(curvature, learning_rate, noise_variance)
    left = 2 - rate * curvature
    stable = left > 0
    return jnp.where(stable, rate * noise / (curvature * jnp.where(stable, left, 1.0)), jnp.inf)


def ema_variance(
    curvature: Float[ArrayLike, ""],
    *,
    learning_rate: Float[ArrayLike, ""],
    noise_variance: Float[ArrayLike, ""],
    decay: Float[ArrayLike, ""],
) -> Float[Array, ""]:
    r"""Variance of the exponential average of a settled iterate.

    $$s^2\, \frac{1 - \beta}{1 + \beta} \cdot \frac{1 + a \beta}{1 - a \beta}, \qquad
      a = 1 - \eta \lambda,$$

    with $s^2$ from `iterate_variance`.

    Args:
        curvature: As in `iterate_variance`.
        learning_rate: As in `iterate_variance`.
        noise_variance: As in `iterate_variance`.
        decay: $\beta$, in [0, 1).

    Returns:
        The variance, shape `()`.

    Raises:
        ValueError: As in `iterate_variance`, or `decay` is not in [0, 1).

    Example:
        >>> from mlnotes_jax.optimization import averaging
        >>> float(
        ...     averaging.ema_variance(1.0, learning_rate=1.0, noise_variance=3.0, decay=0.5)
        ... )  # at a = 0 the iterates are independent
        1.0
    """
    rate, curvature, noise = _bowl(curvature, learning_rate, noise_variance)
    beta = _checks.floating("decay", decay, ndim=0).astype(rate.dtype)
    _checks.not_negative("decay", beta)
    _checks.positive("1 - decay", 1 - beta)
    variance = iterate_variance(curvature, learning_rate=rate, noise_variance=noise)
    correlated = (1 - rate * curvature) * beta
    return variance * (1 - beta) / (1 + beta) * (1 + correlated) / (1 - correlated)


def uniform_variance(
    curvature: Float[ArrayLike, ""],
    *,
    learning_rate: Float[ArrayLike, ""],
    noise_variance: Float[ArrayLike, ""],
    num: int,
    every: int = 1,
) -> Float[Array, ""]:
    r"""Variance of the uniform average of $n$ settled iterates, each $k$ updates apart.

    $$\frac{s^2}{n} \Big(1 + 2 \sum_{j=1}^{n-1} \big(1 - \tfrac jn\big) \rho^j\Big)
      \;\to\; \frac{s^2}{n} \cdot \frac{1 + \rho}{1 - \rho}, \qquad \rho = (1 - \eta\lambda)^k,$$

    with $s^2$ from `iterate_variance`. For $k = 1$ the limit is $v / (\lambda^2 n)$, free of the
    learning rate.

    Args:
        curvature: As in `iterate_variance`.
        learning_rate: As in `iterate_variance`.
        noise_variance: As in `iterate_variance`.
        num: $n$, how many are averaged; static. The sum is written out: $n$ numbers of memory.
        every: $k$; static.

    Returns:
        The variance, shape `()`.

    Raises:
        ValueError: As in `iterate_variance`, or `num` or `every` is less than 1.
        TypeError: `num` or `every` is not an integer.

    Example:
        >>> from mlnotes_jax.optimization import averaging
        >>> float(
        ...     averaging.uniform_variance(1.0, learning_rate=1.0, noise_variance=3.0, num=6)
        ... )  # at a = 0 the iterates are independent
        0.5
    """
    rate, curvature, noise = _bowl(curvature, learning_rate, noise_variance)
    _checks.positive_int("num", num)
    _checks.positive_int("every", every)
    variance = iterate_variance(curvature, learning_rate=rate, noise_variance=noise)
    lag = jnp.arange(1, num, dtype=rate.dtype)
    # Not the closed form of the sum: that is a small difference of large numbers for a slow walk.
    correlation = (1 - rate * curvature) ** (lag * every)
    return variance / num * (1 + 2 * ((1 - lag / num) * correlation).sum())


def _start(params: PyTree, weight: Array) -> AverageState:
    if not jax.tree.leaves(params):
        raise ValueError(f"params must hold at least one array, got {params!r}")
    arrays = jax.tree.map(jnp.asarray, params)
    dtypes = tuple(leaf.dtype for leaf in jax.tree.leaves(arrays))
    return AverageState(jnp.zeros((), jnp.int32), weight, jax.tree.map(_wide, arrays), dtypes)


def _step(state: AverageState, params: PyTree, weight: Array, share: Array) -> AverageState:
    """Move every average by `share` of the way to the new parameters."""
    params = _like(state, params)

    def move(mean: Array, new: Array) -> Array:
        if not _averaged(new):
            return new
        new, part = new.astype(mean.dtype), share.astype(mean.dtype)
        moved = mean + part * (new - mean)
        # Exactly, and whatever the other one is: NaN times 0 is NaN.
        return jnp.where(share == 1, new, jnp.where(share == 0, mean, moved))

    mean = jax.tree.map(move, state.mean, params)
    return AverageState(state.num_updates + 1, weight, mean, state.dtypes)


def _value(state: AverageState) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(state.mean), _cast(state))


def _cast(state: AverageState) -> list[Array]:
    """The leaves in the dtypes of the parameters."""
    leaves = zip(jax.tree.leaves(state.mean), state.dtypes, strict=True)
    return [leaf.astype(dtype) if _averaged(leaf) else leaf for leaf, dtype in leaves]


def _averaged(leaf: Array) -> bool:
    """Whether a leaf has an average: counters, masks and keys do not."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _wide(leaf: Array) -> Array:
    narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
    return leaf.astype(jnp.float32) if narrow else leaf


def _like(state: AverageState, params: PyTree) -> PyTree:
    """Check that `params` is what the average was begun with."""
    if jax.tree.structure(params) != jax.tree.structure(state.mean):
        raise ValueError(
            f"params must have the structure {jax.tree.structure(state.mean)} as at init, "
            f"got {jax.tree.structure(params)}"
        )
    params = jax.tree.map(jnp.asarray, params)
    wanted = jax.tree_util.tree_leaves_with_path(state.mean)
    for (path, mean), new, dtype in zip(wanted, jax.tree.leaves(params), state.dtypes, strict=True):
        shape = mean.shape[1:] if state.size else mean.shape
        if (new.shape, new.dtype) != (shape, dtype):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} must have shape {shape} and dtype {dtype} "
                f"as at init, got {new.shape} and {new.dtype}"
            )
    return params


def _taken(t: Array, start: Array, every: Array) -> Array:
    return (t >= start) & ((t - start) % every == 0)


def _filled(count: Array, size: int) -> Array:
    return jnp.arange(size, dtype=jnp.int32) >= size - count


def _bowl(curvature: ArrayLike, rate: ArrayLike, noise: ArrayLike) -> tuple[Array, Array, Array]:
    curvature = _checks.floating("curvature", curvature, ndim=0)
    _checks.positive("curvature", curvature)
    _checks.positive("learning_rate", rate)
    _checks.not_negative("noise_variance", noise)
    dtype = curvature.dtype
    return jnp.asarray(rate, dtype), curvature, jnp.asarray(noise, dtype)
