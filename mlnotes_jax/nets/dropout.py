r"""Dropout: switch off random units while training, all of them on when it counts.

`rate` $= r$ is the probability to **drop** a unit, $q = 1 - r$ the probability to keep it. With a
mask of independent bits $m_j$, $P(m_j = 1) = q$, one multiplication differs between two forms:

| kind | in training | in evaluation | mean in training | variance in training |
| --- | --- | --- | --- | --- |
| inverted | $m \odot x / q$ | $x$ | $x$ | $x^2\, r / q$ |
| vanilla | $m \odot x$ | $q\, x$ | $q\, x$ | $x^2\, r q$ |

In both, evaluation gives the mean of what training gives.

Reference: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, *Dropout: A Simple Way to
Prevent Neural Networks from Overfitting* (JMLR 15, 2014), sections 4 and 10.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float, Key

from mlnotes_jax import _checks

__all__ = [
    "Dropout",
    "dropout",
    "linear_penalty",
    "mask",
    "vanilla_dropout",
    "vanilla_evaluate",
    "variance",
]

KINDS = ("inverted", "vanilla")


def mask(
    key: Key[Array, ""], shape: tuple[int, ...], *, rate: Float[ArrayLike, ""]
) -> Bool[Array, "..."]:
    r"""Draw independent bits, each true (kept) with probability $1 - r$.

    Args:
        key: For the draw.
        shape: Of the result.
        rate: $r$, the probability to drop, in $[0, 1)$. A float, or traced.

    Returns:
        True where a unit is kept. A traced `rate` outside of $[0, 1)$ drops none or all.

    Raises:
        ValueError: `rate` is not a number in $[0, 1)$.
        TypeError: `key` is not a random key.

    Example:
        >>> import jax
        >>> from mlnotes_jax.nets import dropout
        >>> kept = dropout.mask(jax.random.key(0), (1000,), rate=0.25)
        >>> 700 < int(kept.sum()) < 800
        True

    Reference: Srivastava and others (2014), section 4.
    """
    _check_key(key)
    return jax.random.bernoulli(key, 1 - _rate(rate), shape)


def dropout(
    key: Key[Array, ""],
    x: Float[ArrayLike, "..."],
    *,
    rate: Float[ArrayLike, ""],
    shared_axes: tuple[int, ...] = (),
) -> Float[Array, "..."]:
    r"""Inverted dropout in training: $m \odot x / (1 - r)$; the mean stays, so evaluation is $x$.

    Args:
        key: For the mask; the same key drops the same units.
        x: Any shape.
        rate: $r$, the probability to **drop**, in $[0, 1)$. Traced, so it may be batched. No
            gradient flows to it: a drawn mask has none.
        shared_axes: Axes along which one bit serves for all, static: `(1, 2)` drops whole channels
            of NHWC pictures (`torch.nn.Dropout2d`).

    Returns:
        The shape and dtype of `x`; NaN where a traced `rate` is outside of $[0, 1)$.

    Raises:
        ValueError: `rate` is not a number in $[0, 1)$, or `x` has no such axis.
        TypeError: `key` is not a random key, or `x` is not numeric.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import dropout
        >>> print(dropout.dropout(jax.random.key(1), jnp.ones(8), rate=0.5))
        [2. 0. 2. 2. 0. 0. 0. 0.]

    Note:
        `rate` is the `p` of `torch.nn.functional.dropout` and the `rate` of `flax.nnx.Dropout`.
        cs231n and part of the notes call the probability to *keep* `p`.

    Reference: Srivastava and others (2014), section 10.
    """
    x = _checks.floating("x", x)
    kept = _broadcast_mask(key, x, rate, shared_axes)
    keep = 1 - _rate(rate)
    # An impossible traced rate must not pass for a possible one.
    scale = jnp.where((keep > 0) & (keep <= 1), 1 / keep, jnp.nan)
    return jnp.where(kept, x, jnp.zeros((), x.dtype)) * _like(scale, x)


def vanilla_dropout(
    key: Key[Array, ""],
    x: Float[ArrayLike, "..."],
    *,
    rate: Float[ArrayLike, ""],
    shared_axes: tuple[int, ...] = (),
) -> Float[Array, "..."]:
    r"""Vanilla dropout in training: $m \odot x$. Evaluate with `vanilla_evaluate`.

    Args:
        key: For the mask; the same key drops the same units as in `dropout`.
        x: Any shape.
        rate: $r$, the probability to **drop**, in $[0, 1)$; traced.
        shared_axes: As in `dropout`.

    Returns:
        The shape and dtype of `x`; NaN where a traced `rate` is outside of $[0, 1)$.

    Raises:
        ValueError: `rate` is not a number in $[0, 1)$, or `x` has no such axis.
        TypeError: `key` is not a random key, or `x` is not numeric.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import dropout
        >>> print(dropout.vanilla_dropout(jax.random.key(1), jnp.ones(8), rate=0.5))
        [1. 0. 1. 1. 0. 0. 0. 0.]

    Reference: Srivastava and others (2014), section 4.
    """
    x = _checks.floating("x", x)
    kept = _broadcast_mask(key, x, rate, shared_axes)
    keep = 1 - _rate(rate)
    scale = jnp.where((keep > 0) & (keep <= 1), 1.0, jnp.nan)
    return jnp.where(kept, x, jnp.zeros((), x.dtype)) * _like(scale, x)


def vanilla_evaluate(
    x: Float[ArrayLike, "..."], *, rate: Float[ArrayLike, ""]
) -> Float[Array, "..."]:
    r"""Vanilla dropout in evaluation: $(1 - r)\, x$, the mean of what training gives.

    Args:
        x: Any shape.
        rate: $r$, the probability to **drop** in training, in $[0, 1)$; traced.

    Returns:
        The shape and dtype of `x`; NaN where a traced `rate` is outside of $[0, 1)$.

    Raises:
        ValueError: `rate` is not a number in $[0, 1)$.
        TypeError: `x` is not numeric.

    Example:
        >>> from mlnotes_jax.nets import dropout
        >>> print(dropout.vanilla_evaluate([1.0, 2.0], rate=0.25))
        [0.75 1.5 ]

    Reference: Srivastava and others (2014), figure 2.
    """
    x = _checks.floating("x", x)
    keep = 1 - _rate(rate)
    return x * _like(jnp.where((keep > 0) & (keep <= 1), keep, jnp.nan), x)


def variance(
    x: Float[ArrayLike, "..."],
    *,
    rate: Float[ArrayLike, ""],
    kind: Literal["inverted", "vanilla"] = "inverted",
) -> Float[Array, "..."]:
    r"""Variance, over masks, of each entry: $x^2\, r / (1 - r)$, or $x^2\, r (1 - r)$ for vanilla.

    Args:
        x: Any shape.
        rate: $r$, the probability to **drop**, in $[0, 1)$; traced.
        kind: Which form; static.

    Returns:
        The shape and dtype of `x`.

    Raises:
        ValueError: `rate` is not a number in $[0, 1)$, or `kind` is unknown.
        TypeError: `x` is not numeric.

    Example:
        >>> from mlnotes_jax.nets import dropout
        >>> print(dropout.variance([1.0, 3.0], rate=0.5))
        [1. 9.]

    Reference: Srivastava and others (2014), section 10.
    """
    x = _checks.floating("x", x)
    _checks.one_of("kind", kind, KINDS)
    r = _rate(rate)
    factor = r / (1 - r) if kind == "inverted" else r * (1 - r)
    return jnp.square(x) * _like(factor, x)


def linear_penalty(
    x: Float[ArrayLike, "n d"], coef: Float[ArrayLike, " d"], *, rate: Float[ArrayLike, ""]
) -> Float[Array, ""]:
    r"""What inverted dropout of the inputs adds to the mean squared error of linear regression.

    Averaged over all masks, exactly,

    $$ \mathbb E_m \frac1n \sum_i \Big(y_i - \sum_j \frac{m_{ij}}{1 - r} x_{ij} w_j\Big)^2 =
       \frac1n \sum_i \big(y_i - x_i^\top w\big)^2 +
       \frac{r}{1 - r} \sum_j w_j^2\, \frac1n \sum_i x_{ij}^2 , $$

    and this is the last term: an L2 penalty in which each weight is measured in the size of its
    feature. Where every feature has mean square 1 it is ridge regression.

    Args:
        x: Inputs, shape `(n, d)`.
        coef: Weights $w$, shape `(d,)`. The intercept is not dropped and adds nothing.
        rate: $r$, the probability to **drop**, in $[0, 1)$; traced.

    Returns:
        The penalty, shape `()`, the dtype of `coef`; sums run in at least float32.

    Raises:
        ValueError: `rate` is not a number in $[0, 1)$, or the shapes do not fit.
        TypeError: An array is not numeric.

    Example:
        >>> from mlnotes_jax.nets import dropout
        >>> float(dropout.linear_penalty([[1.0, 2.0], [3.0, 0.0]], [1.0, -1.0], rate=0.5))
        7.0

    Reference: Srivastava and others (2014), section 9.1; Wager, Wang and Liang, *Dropout Training
        as Adaptive Regularization* (NeurIPS 2013).
    """
    x = _checks.floating("x", x, ndim=2)
    coef = _checks.floating("coef", coef, ndim=1)
    if coef.shape != x.shape[1:]:
        raise ValueError(
            f"coef must have one weight for each column of x, got {coef.shape} for x {x.shape}"
        )
    _checks.not_empty("x", x)
    wide = np.result_type(x.dtype, coef.dtype, np.float32)
    second_moment = jnp.square(x.astype(wide)).mean(axis=0)
    return variance(coef.astype(wide), rate=rate).dot(second_moment).astype(coef.dtype)


class Dropout(nnx.Module):
    r"""Dropout as a layer: it drops in training, and gives the mean in evaluation.

    Args:
        rate: $r$, the probability to **drop**, a Python float in $[0, 1)$; static.
        kind: `"inverted"` scales in training, `"vanilla"` in evaluation; static.
        shared_axes: As in [`dropout`][mlnotes_jax.nets.dropout.dropout]; static.
        rngs: Gives the first key: from its stream `dropout` or, without one, from `default`.

    Attributes:
        deterministic: False in training. `model.train()` and `model.eval()` set it.
        stream: The layer's own random stream; it is *called* `dropout` in any case, so that
            `nnx.reseed(model, dropout=key)` always reaches it. (A `flax.nnx.Dropout` made with
            `nnx.Rngs(0)` is not reached, and then drops the same units in every step.)

    Raises:
        ValueError: `rate` is not in $[0, 1)$, `kind` is unknown, or `rngs` has neither stream.
        TypeError: `rate` is not a Python number, or `rngs` is not an `nnx.Rngs`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets.dropout import Dropout
        >>> layer = Dropout(0.5, rngs=nnx.Rngs(dropout=1))
        >>> print(layer(jnp.ones(8)))
        [2. 2. 0. 0. 0. 0. 2. 0.]
        >>> layer.eval()
        >>> print(layer(jnp.ones(8)))
        [1. 1. 1. 1. 1. 1. 1. 1.]

    Reference: Srivastava and others (2014), section 10.
    """

    def __init__(
        self,
        rate: float,
        *,
        kind: Literal["inverted", "vanilla"] = "inverted",
        shared_axes: tuple[int, ...] = (),
        rngs: nnx.Rngs,
    ):
        if isinstance(rate, jax.Array) or not isinstance(rate, int | float):
            raise TypeError(
                f"rate must be a Python number (the function `dropout` takes traced rates), "
                f"got {type(rate).__name__}"
            )
        _rate(rate)
        _checks.one_of("kind", kind, KINDS)
        self.rate = float(rate)
        self.kind = kind
        self.shared_axes = tuple(shared_axes)
        self.deterministic = False
        self.stream = nnx.RngStream(_first_key(rngs), tag="dropout")

    def __call__(self, x: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
        """Drop in training, give the mean in evaluation.

        Args:
            x: Any shape.

        Returns:
            The shape and dtype of `x`.
        """
        if self.deterministic or self.rate == 0:
            if self.kind == "inverted":
                return _checks.floating("x", x)
            return vanilla_evaluate(x, rate=self.rate)
        drop = dropout if self.kind == "inverted" else vanilla_dropout
        return drop(self.stream(), x, rate=self.rate, shared_axes=self.shared_axes)


def _rate(rate: ArrayLike) -> Array:
    """A rate as a scalar of at least float32, without gradient; checked where concrete."""
    value = _checks.floating("rate", rate, ndim=0)
    if _checks.is_concrete(value) and not 0 <= float(value) < 1:
        raise ValueError(f"rate, the probability to drop, must be in [0, 1), got {float(value)}")
    wide = np.promote_types(value.dtype, np.float32)
    return jax.lax.stop_gradient(value.astype(wide))


def _like(scale: Array, x: Array) -> Array:
    """A scalar in the dtype and rank of `x`."""
    return scale.astype(x.dtype).reshape((1,) * x.ndim)


def _check_key(key: Any) -> None:
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key must come from jax.random.key, got {type(key).__name__}")
    if key.shape != ():
        raise ValueError(f"key must be one key, got an array of keys of shape {key.shape}")


def _broadcast_mask(
    key: Key[Array, ""], x: Array, rate: ArrayLike, shared_axes: tuple[int, ...]
) -> Array:
    """The mask of `x`: one bit for all places that differ along shared axes only."""
    shape = list(x.shape)
    for axis in shared_axes:
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(f"shared_axes must be axes of x {x.shape}, got {axis}")
        shape[axis] = 1
    return jnp.broadcast_to(mask(key, tuple(shape), rate=rate), x.shape)


def _first_key(rngs: Any) -> Array:
    """A key from the stream `dropout`, or from `default` where there is none."""
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"rngs must be an nnx.Rngs, got {type(rngs).__name__}")
    for name in ("dropout", "default"):
        if name in rngs:
            return rngs[name]()
    raise ValueError("rngs must have a stream `dropout` or `default`, got neither")
