r"""Approximation: a curve as a constant plus a sum of bends.

One layer of units $\phi$ with one input and one output is

$$ f(x) = b + \sum_{i=1}^{n} c_i\, \phi(w_i x + b_i) . $$

With the hard sigmoid as $\phi$ it is *every* continuous piecewise-linear curve on a bounded
interval, and so it is with the ReLU: both constructions are closed forms. A curve with two
continuous derivatives is then met to $\frac{h^2}{8} \max \lvert f'' \rvert$ by pieces of width
$h$, so that the error falls as $1 / n^2$.

Reference: de Boor, *A Practical Guide to Splines* (1978), chapter III; Cybenko, "Approximation by
Superpositions of a Sigmoidal Function" (1989).
"""

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from mlnotes_jax import _checks
from mlnotes_jax.foundations import activations

if TYPE_CHECKING:
    import optax

__all__ = [
    "Fit",
    "Units",
    "as_relus",
    "convergence_order",
    "evaluate",
    "fit",
    "hard_sigmoid_units",
    "interpolation_bound",
    "pieces_needed",
    "relu_units",
    "smooth",
]

#: Names of the units; the functions are those of `mlnotes_jax.foundations.activations`.
Kind = Literal["hard_sigmoid", "sigmoid", "relu"]

_PHI = {
    "hard_sigmoid": activations.hard_sigmoid,
    "sigmoid": activations.sigmoid,
    "relu": activations.relu,
}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["constant", "coef", "weight", "bias"],
    meta_fields=["kind"],
)
@dataclasses.dataclass(frozen=True)
class Units:
    r"""A constant and a sum of units, $b + \sum_i c_i\, \phi(w_i x + b_i)$: a pytree.

    Attributes:
        constant: $b$, shape `()`.
        coef: $c$, the height of each unit, shape `(n,)`.
        weight: $w$, shape `(n,)`.
        bias: The $b_i$, shape `(n,)`.
        kind: $\phi$: `"hard_sigmoid"`, the ramp $\min(1, \max(0, \tfrac12 + \tfrac14 u))$,
            `"sigmoid"` or `"relu"`; static.
    """

    constant: Float[Array, ""]
    coef: Float[Array, " n"]
    weight: Float[Array, " n"]
    bias: Float[Array, " n"]
    kind: Kind


class Fit(NamedTuple):
    """A curve that was learned.

    Attributes:
        units: The learned units.
        loss: The mean squared error before each step and after the last, in the squared unit of
            `y`, shape `(num_steps + 1,)`. It is not finite where the descent diverged.
    """

    units: Units
    loss: Float[Array, " steps_and_end"]


def evaluate(units: Units, x: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""The curve at `x`, $b + \sum_i c_i\, \phi(w_i x + b_i)$.

    Args:
        units: $n$ units, in the dtype of `x` (or cast to it).
        x: Places, any shape.

    Returns:
        The values, the shape and dtype of `x`; sums are taken in at least float32.

    Raises:
        TypeError: `x` is not numeric, or `units` are no `Units`.

    Example:
        >>> from mlnotes_jax.foundations import approximation
        >>> ramp = approximation.hard_sigmoid_units([0.0, 1.0], [2.0, 5.0])
        >>> print(approximation.evaluate(ramp, [-9.0, 0.5, 9.0]))
        [2.  3.5 5. ]

    Reference: Cybenko (1989), equation 2.
    """
    if not isinstance(units, Units):
        raise TypeError(f"units must be Units, got {type(units).__name__}")
    x = _checks.floating("x", x)
    dtype = x.dtype
    x = x.astype(jnp.float32) if jnp.finfo(dtype).bits < 32 else x
    shape = (1,) * x.ndim + units.coef.shape
    w, b, c = (
        jnp.asarray(v, x.dtype).reshape(shape) for v in (units.weight, units.bias, units.coef)
    )
    bends = c * _PHI[units.kind](w * x[..., None] + b)
    return (jnp.asarray(units.constant, x.dtype) + bends.sum(axis=-1)).astype(dtype)


def hard_sigmoid_units(
    knots: Float[ArrayLike, " n_plus_1"], values: Float[ArrayLike, " n_plus_1"]
) -> Units:
    r"""The curve through given points, straight in between, as a sum of hard sigmoids.

    The ramp that climbs from 0 at $t_{i-1}$ to 1 at $t_i$ is the hard sigmoid of $4 (x - m_i) /
    h_i$ with the middle $m_i$ and the width $h_i$ of the piece. So

    $$ f(x) = y_0 + \sum_{i=1}^{n} (y_i - y_{i-1})\,
       \operatorname{hard\_sigmoid}\!\left( \frac{4}{h_i} x - \frac{4 m_i}{h_i} \right) $$

    is $y_i$ at every knot and straight between them: one unit for each piece, no fitting. Left
    of the first and right of the last knot it is constant, as `numpy.interp`.

    Args:
        knots: $t_0 < t_1 < \dots < t_n$, shape `(n + 1,)`, at least two.
        values: $y_0, \dots, y_n$, the same shape.

    Returns:
        $n$ units of kind `"hard_sigmoid"`.

    Raises:
        ValueError: Shapes differ, there are fewer than two knots, or concrete knots do not
            increase or are not finite.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import approximation
        >>> hat = approximation.hard_sigmoid_units([0.0, 1.0, 2.0], [0.0, 1.0, 0.0])
        >>> print(hat.coef, approximation.evaluate(hat, [0.25, 1.0, 1.5, 7.0]))
        [ 1. -1.] [0.25 1.   0.5  0.  ]

    Reference: Goodfellow, Bengio and Courville, *Deep Learning* (2016), section 6.4.1.
    """
    t, y = _points(knots, values)
    width = jnp.diff(t)
    return Units(y[0], jnp.diff(y), 4 / width, -2 * (t[1:] + t[:-1]) / width, "hard_sigmoid")


def relu_units(
    knots: Float[ArrayLike, " n_plus_1"],
    values: Float[ArrayLike, " n_plus_1"],
    *,
    ends: Literal["flat", "straight"] = "flat",
) -> Units:
    r"""The curve through given points, straight in between, as a sum of ReLUs.

    With the slopes $s_i = (y_i - y_{i-1}) / h_i$ of the pieces, and $s_0 = s_{n+1} = 0$ for flat
    ends, each ReLU adds the *change* of the slope at one knot:

    $$ f(x) = y_0 + \sum_{i=0}^{n} (s_{i+1} - s_i)\, \operatorname{relu}(x - t_i) . $$

    One unit for each knot, $n + 1$. With straight ends the first and the last piece go on to
    infinity, which no sum of hard sigmoids can do: there is then no bend at $t_0$ and at $t_n$,
    and the line through the first piece is $y_0 + s_1 \operatorname{relu}(x - t_0) - s_1
    \operatorname{relu}(t_0 - x)$.

    Args:
        knots: $t_0 < t_1 < \dots < t_n$, shape `(n + 1,)`, at least two.
        values: $y_0, \dots, y_n$, the same shape.
        ends: What the curve does outside the knots; static.

    Returns:
        $n + 1$ units of kind `"relu"`.

    Raises:
        ValueError: As in `hard_sigmoid_units`, or `ends` is unknown.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import approximation
        >>> hat = approximation.relu_units([0.0, 1.0, 2.0], [0.0, 1.0, 0.0])
        >>> print(hat.coef, approximation.evaluate(hat, [0.25, 1.0, 1.5, 7.0]))
        [ 1. -2.  1.] [0.25 1.   0.5  0.  ]

    Note:
        Far from the knots the terms are large and cancel: the rounding error grows with $x \sum_i
        \lvert s_{i+1} - s_i \rvert$. The hard sigmoids, which saturate, do not have this.

    Reference: Goodfellow, Bengio and Courville (2016), section 6.4.1.
    """
    _checks.one_of("ends", ends, ("flat", "straight"))
    t, y = _points(knots, values)
    slopes = jnp.diff(y) / jnp.diff(t)
    ones = jnp.ones_like(t)
    if ends == "flat":
        zero = jnp.zeros_like(t[:1])
        return Units(y[0], jnp.diff(slopes, prepend=zero, append=zero), ones, -t, "relu")
    coef = jnp.concatenate([slopes[:1], -slopes[:1], jnp.diff(slopes)])
    weight = ones.at[1].set(-1)
    return Units(y[0], coef, weight, jnp.concatenate([-t[:1], t[:1], -t[1:-1]]), "relu")


def as_relus(units: Units) -> Units:
    r"""Write every hard sigmoid as two ReLUs; the function stays the same.

    $$ \operatorname{hard\_sigmoid}(u) = \operatorname{relu}(\tfrac u4 + \tfrac12)
       - \operatorname{relu}(\tfrac u4 - \tfrac12) : $$

    the second one stops the climb of the first.

    Args:
        units: $n$ units of kind `"hard_sigmoid"`.

    Returns:
        $2n$ units of kind `"relu"`, the risers first. Where one ramp ends at the knot at which
        the next begins, two of them bend at one place: `relu_units` needs only $n + 1$.

    Raises:
        ValueError: The units are of another kind.

    Example:
        >>> from mlnotes_jax.foundations import approximation
        >>> two = approximation.as_relus(approximation.hard_sigmoid_units([0.0, 2.0], [0.0, 1.0]))
        >>> print(two.coef, two.weight, two.bias)
        [ 1. -1.] [0.5 0.5] [ 0. -1.]
    """
    _of_kind(units, "hard_sigmoid")
    w, b = units.weight / 4, units.bias / 4
    return Units(
        units.constant,
        jnp.concatenate([units.coef, -units.coef]),
        jnp.concatenate([w, w]),
        jnp.concatenate([b + 0.5, b - 0.5]),
        "relu",
    )


def smooth(units: Units) -> Units:
    r"""Put a sigmoid in the place of every hard sigmoid, with the same numbers.

    The ramp is the tangent of the sigmoid in its middle. The two differ most at the ends of the
    ramp, $u = \pm 2$, by $\sigma(-2) = 0.119$; so the curve moves by at most $0.12 \sum_i \lvert
    c_i \rvert$. A good place to start a fit from.

    Args:
        units: Units of kind `"hard_sigmoid"`.

    Returns:
        Units of kind `"sigmoid"`.

    Raises:
        ValueError: The units are of another kind.

    Example:
        >>> from mlnotes_jax.foundations import approximation
        >>> ramp = approximation.hard_sigmoid_units([0.0, 1.0], [0.0, 1.0])
        >>> curve = approximation.smooth(ramp)
        >>> print(*(f"{y:.3f}" for y in approximation.evaluate(curve, [0.0, 0.5, 1.0])))
        0.119 0.500 0.881
    """
    _of_kind(units, "hard_sigmoid")
    return dataclasses.replace(units, kind="sigmoid")


def fit(
    key: Key[Array, ""],
    x: Float[ArrayLike, " rows"],
    y: Float[ArrayLike, " rows"],
    *,
    num_units: int,
    optimizer: "optax.GradientTransformation",
    num_steps: int,
    kind: Kind = "sigmoid",
    start: Units | None = None,
    sample_weight: Float[ArrayLike, " rows"] | None = None,
) -> Fit:
    r"""Learn $b + \sum_i c_i\, \phi(w_i x + b_i)$ by descent on the mean squared error.

    Full-batch steps, one `lax.scan`. Inside, `x` is mapped to $[-1, 1]$ and `y` to mean 0 and
    variance 1, and the units are mapped back at the end: so one learning rate suits every curve.

    Without `start`, the units bend at evenly spaced places, moved a little by `key`; their
    heights are 0, so that the first curve is the mean of `y`. Sigmoids begin as wide as their
    distance; ReLUs look to the left or to the right as the key decides.

    Args:
        key: Draws the start; not used where `start` is given.
        x: Places, shape `(rows,)`.
        y: Heights, the same shape.
        num_units: $n$; static.
        optimizer: Any Optax rule, such as `optax.sgd(0.1, momentum=0.9)` or those of
            [`mlnotes_jax.optimization`](../optimization/index.md).
        num_steps: Steps; static.
        kind: $\phi$; static.
        start: Units to begin with instead, `num_units` of them and of this kind, such as
            `smooth(hard_sigmoid_units(...))`.
        sample_weight: Not negative, shape `(rows,)`; zero drops a row.

    Returns:
        The learned units and the losses on the way.

    Raises:
        ValueError: Shapes differ or are empty, a value is not finite, all places are one, a
            weight is negative, `start` does not fit, or an option is unknown.
        TypeError: An argument is not numeric, or `optimizer` no Optax rule.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from mlnotes_jax.foundations import approximation
        >>> x = jnp.linspace(0.0, 3.0, 50)
        >>> model = approximation.fit(
        ...     jax.random.key(0), x, jnp.sin(x), num_units=4,
        ...     optimizer=optax.sgd(0.1, momentum=0.9), num_steps=300,
        ... )
        >>> bool(model.loss[-1] < 0.01 * model.loss[0])
        True

    Reference: Goodfellow, Bengio and Courville (2016), section 6.4.1.
    """
    x, y = _rows(x, y)
    _checks.positive_int("num_units", num_units)
    _checks.positive_int("num_steps", num_steps)
    _checks.one_of("kind", kind, tuple(_PHI))
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer must be an Optax rule, got {type(optimizer).__name__}")
    weights = _weights(sample_weight, x)
    if start is not None:
        _of_kind(start, kind, name="start")
        if start.coef.shape != (num_units,):
            raise ValueError(f"start must have {num_units} units, got {start.coef.shape[0]}")

    middle, half = _middle(x, weights)
    mean = (weights * y).sum()
    spread = jnp.sqrt((weights * jnp.square(y - mean)).sum())
    spread = jnp.where(spread > 0, spread, 1)  # a constant curve
    u, v = (x - middle) / half, (y - mean) / spread
    # w x + b = (w half) u + (b + w middle)
    if start is None:
        begin = _draw(key, num_units, kind, x.dtype)
    else:
        begin = Units(
            (jnp.asarray(start.constant, x.dtype) - mean) / spread,
            jnp.asarray(start.coef, x.dtype) / spread,
            jnp.asarray(start.weight, x.dtype) * half,
            jnp.asarray(start.bias, x.dtype) + jnp.asarray(start.weight, x.dtype) * middle,
            kind,
        )

    def loss(units: Units) -> Array:
        return (weights * jnp.square(evaluate(units, u) - v)).sum()

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Array]:
        units, state = carry
        value, gradient = jax.value_and_grad(loss)(units)
        updates, state = optimizer.update(gradient, state, units)
        return (jax.tree.map(jnp.add, units, updates), state), value

    state: Any = optimizer.init(begin)  # pyright: ignore[reportArgumentType]
    (end, _), values = jax.lax.scan(step, (begin, state), length=num_steps)
    values = jnp.concatenate([values, loss(end)[None]]) * spread**2
    weight = end.weight / half
    learned = Units(
        end.constant * spread + mean, end.coef * spread, weight, end.bias - weight * middle, kind
    )
    return Fit(learned, values)


def interpolation_bound(
    curvature: Float[ArrayLike, "..."], *, width: Float[ArrayLike, "..."]
) -> Float[Array, "..."]:
    r"""How far a chord can be from a curve: $\frac{h^2}{8} \max \lvert f'' \rvert$.

    For a curve with two continuous derivatives that is replaced by straight pieces between points
    on it. A parabola reaches the bound, in the middle of each piece.

    Args:
        curvature: $\max \lvert f'' \rvert$ on the interval, not negative. Traced.
        width: $h$, the width of the widest piece, not negative; a shape that broadcasts against
            that of `curvature`. Traced.

    Returns:
        The bound.

    Raises:
        ValueError: An argument is negative.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import approximation
        >>> print(approximation.interpolation_bound(2.0, width=1.0))  # x**2 on [0, 1]
        0.25

    Reference: de Boor (1978), chapter III, equation 3.
    """
    m, h = _checks.floating("curvature", curvature), _checks.floating("width", width)
    _checks.not_negative("curvature", m)
    _checks.not_negative("width", h)
    return m * jnp.square(h.astype(m.dtype)) / 8


def pieces_needed(curvature: float, *, length: float, tolerance: float) -> int:
    r"""How many equal pieces are sure to stay within a tolerance.

    $h = L / n$ in the bound gives $n = \left\lceil L \sqrt{M / (8 \epsilon)} \right\rceil$: a
    hundredth of the error costs ten times the units.

    Args:
        curvature: $M = \max \lvert f'' \rvert$, not negative.
        length: $L$, the length of the interval, > 0.
        tolerance: $\epsilon > 0$, in the unit of the curve.

    Returns:
        $n$, at least 1. A Python integer: it sets a shape.

    Raises:
        ValueError: An argument has the wrong sign, or is not finite.

    Example:
        >>> from mlnotes_jax.foundations import approximation
        >>> approximation.pieces_needed(2.0, length=1.0, tolerance=0.0025)
        10
    """
    _checks.not_negative("curvature", curvature)
    _checks.positive("length", length)
    _checks.positive("tolerance", tolerance)
    for name, value in (("curvature", curvature), ("length", length), ("tolerance", tolerance)):
        _checks.finite(name, jnp.asarray(value))
    exact = length * math.sqrt(curvature / (8 * tolerance))
    return max(1, math.ceil(exact * (1 - 1e-12)))  # 10.000000000000002 is 10


def convergence_order(
    sizes: Float[ArrayLike, " k"], errors: Float[ArrayLike, " k"]
) -> Float[Array, ""]:
    r"""The $p$ of an error that falls as $n^{-p}$: minus the slope of the line through the logs.

    Least squares of $\ln e_j$ against $\ln n_j$.

    Args:
        sizes: $n_j > 0$, shape `(k,)`, at least two different ones.
        errors: $e_j > 0$, the same shape.

    Returns:
        $p$, shape `()`.

    Raises:
        ValueError: Shapes differ, there are fewer than two, or a value is not positive.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import approximation
        >>> print(approximation.convergence_order([1.0, 2.0, 4.0], [8.0, 2.0, 0.5]).round(4))
        2.0
    """
    n, e = _checks.floating("sizes", sizes, ndim=1), _checks.floating("errors", errors, ndim=1)
    _checks.same_shape(sizes=n, errors=e)
    if n.size < 2:
        raise ValueError(f"sizes must hold at least two, got shape {n.shape}")
    _checks.positive("sizes", n)
    _checks.positive("errors", e)
    log_n, log_e = jnp.log(n.astype(e.dtype)), jnp.log(e)
    centred = log_n - log_n.mean()
    return -(centred * log_e).sum() / jnp.square(centred).sum()


# --- Helpers --------------------------------------------------------------------------------------


def _points(knots: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    """Knots that increase, and one value for each, in one dtype."""
    t = _checks.floating("knots", knots, ndim=1)
    y = _checks.floating("values", values, ndim=1)
    _checks.same_shape(knots=t, values=y)
    if t.size < 2:
        raise ValueError(f"knots must hold at least two, got shape {t.shape}")
    _checks.finite("knots", t)
    _checks.finite("values", y)
    if _checks.is_concrete(t):
        gaps = np.diff(np.asarray(t))
        if (gaps <= 0).any():
            i = int(np.argmax(gaps <= 0))
            raise ValueError(f"knots must increase, got {t[i]} before {t[i + 1]} at index {i + 1}")
    dtype = _widest(t.dtype, y.dtype)
    return t.astype(dtype), y.astype(dtype)


def _widest(*dtypes: jnp.dtype) -> jnp.dtype:
    """The dtype with the most bits, the first of equals."""
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def _rows(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """Places and heights in one dtype of at least 32 bits."""
    x, y = _checks.floating("x", x, ndim=1), _checks.floating("y", y, ndim=1)
    _checks.same_shape(x=x, y=y)
    _checks.not_empty("x", x)
    _checks.finite("x", x)
    _checks.finite("y", y)
    dtype = _widest(x.dtype, y.dtype, jnp.dtype(jnp.float32))
    return x.astype(dtype), y.astype(dtype)


def _weights(sample_weight: ArrayLike | None, x: Array) -> Array:
    """Weights that add up to one."""
    if sample_weight is None:
        return jnp.full_like(x, 1 / x.size)
    w = _checks.floating("sample_weight", sample_weight, ndim=1)
    _checks.same_shape(x=x, sample_weight=w)
    _checks.finite("sample_weight", w)
    _checks.not_negative("sample_weight", w)
    if _checks.is_concrete(w) and not np.asarray(w).any():
        raise ValueError("sample_weight must not be all zero")
    w = w.astype(x.dtype)
    return w / w.sum()


def _middle(x: Array, weights: Array) -> tuple[Array, Array]:
    """The middle and half the length of the interval in which rows count."""
    low = jnp.where(weights > 0, x, jnp.inf).min()
    high = jnp.where(weights > 0, x, -jnp.inf).max()
    if _checks.is_concrete((low, high)) and not low < high:
        raise ValueError(f"x must have at least two different places, got only {low}")
    return (low + high) / 2, (high - low) / 2


def _draw(key: Array, num_units: int, kind: Kind, dtype: jnp.dtype) -> Units:
    """Flat units whose bends are spread over [-1, 1]."""
    jitter, side = jax.random.uniform(key, (2, num_units), dtype)
    spacing = 2 / num_units
    places = -1 + spacing * (jnp.arange(num_units, dtype=dtype) + jitter)
    if kind == "relu":
        weight = jnp.where(side < 0.5, -1, jnp.ones_like(side))
    else:
        weight = jnp.full(num_units, 4 / spacing, dtype)  # a ramp as wide as the spacing
    zero = jnp.zeros((), dtype)
    return Units(zero, jnp.zeros(num_units, dtype), weight, -weight * places, kind)


def _of_kind(units: Units, kind: Kind, *, name: str = "units") -> None:
    if not isinstance(units, Units):
        raise TypeError(f"{name} must be Units, got {type(units).__name__}")
    if units.kind != kind:
        raise ValueError(f"{name} must be of kind {kind!r}, got {units.kind!r}")
