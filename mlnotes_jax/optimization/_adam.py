"""Parts of Adam's step, for `adam` and the rules that are built on it.

A rule takes the numbers of a step once, `step_numbers(count, ...)`, and hands them to its leaves as
`scalars` of `_rules.per_leaf`, where `Step(*numbers)` puts their names back. In a leaf, `moments`
moves both averages, and `m * step.scale1 / root(v, step)` is Adam's direction.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int


class Step(NamedTuple):
    r"""The numbers of one step, the same for all parameters: `scalars` of `_rules.per_leaf`.

    Attributes:
        beta1: $\beta_1$.
        beta2: $\beta_2$.
        share1: $1 - \beta_1$.
        share2: $1 - \beta_2$.
        scale1: $1 / (1 - \beta_1^t)$.
        scale2: $1 / (1 - \beta_2^t)$.
        epsilon: $\epsilon$.
    """

    beta1: Any
    beta2: Any
    share1: Any
    share2: Any
    scale1: Any
    scale2: Any
    epsilon: Any


def step_numbers(
    count: Int[Array, ""], beta1: ArrayLike, beta2: ArrayLike, epsilon: ArrayLike
) -> Step:
    """Make the numbers of the step that is the `count`-th, from 1."""
    share1, share2 = complement(beta1), complement(beta2)
    t = count.astype(jnp.result_type(float))
    scale1, scale2 = 1 / weight(share1, t), 1 / weight(share2, t)
    return Step(beta1, beta2, share1, share2, scale1, scale2, epsilon)


def moments(g: Array, m: Array, v: Array, step: Step) -> tuple[Array, Array]:
    """Both averages of one leaf, with its newest gradient, not corrected."""
    return step.beta1 * m + step.share1 * g, step.beta2 * v + step.share2 * (g * g)


def root(v: Array, step: Step, *, in_root: bool = False, hat: bool = False) -> Array:
    """The root of the corrected second moment of one leaf, with epsilon where it belongs.

    Adam's direction is `m * step.scale1 / root(v, step)`.
    """
    if hat:
        raw = jnp.sqrt(v + step.epsilon) if in_root else jnp.sqrt(v) + step.epsilon
        return raw * jnp.sqrt(step.scale2)
    v = v * step.scale2
    return jnp.sqrt(v + step.epsilon) if in_root else jnp.sqrt(v) + step.epsilon


def weight(share: Any, t: Array) -> Array:
    r"""$1 - \beta^t$ from $1 - \beta$: nothing cancels where $\beta$ is near 1."""
    return -jnp.expm1(t * jnp.log1p(-jnp.asarray(share, t.dtype)))


def complement(beta: ArrayLike) -> Any:
    r"""$1 - \beta$; of a Python number in double precision, as float32 would lose digits."""
    return 1 - (beta if isinstance(beta, Array) else np.asarray(beta, np.float64).item())
