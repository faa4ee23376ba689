r"""Activations: the bend between two linear maps, and its slope in closed form.

Each elementwise $f$ comes with $f'$ as `<name>_derivative`, of the same arguments. A parameter
($\beta$ of the sigmoid and of Swish, $\alpha$ of PReLU) is traced, so it may be learned; it is a
scalar, or has shape `(c,)`, one value for each channel of the last axis.

At a kink, where $f'$ does not exist, the slope is the one from the left: 0 for ReLU, $\alpha$ for
leaky ReLU and PReLU; for the hard sigmoid it is 0 at both ends. The closed form and `jax.grad`
agree there. `jax.nn` and PyTorch choose the same, but for `jax.nn.leaky_relu`, which takes 1 at 0.

Outputs have the dtype of `x`; the softmax computes bfloat16 and float16 in float32.

Reference: Goodfellow, Bengio and Courville, *Deep Learning* (2016), sections 3.10 and 6.3.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from mlnotes_jax import _checks

__all__ = [
    "dead_units",
    "hard_sigmoid",
    "hard_sigmoid_derivative",
    "leaky_relu",
    "leaky_relu_derivative",
    "log_softmax",
    "log_softmax_jacobian",
    "prelu",
    "prelu_alpha_derivative",
    "prelu_derivative",
    "relu",
    "relu_derivative",
    "saturation",
    "sigmoid",
    "sigmoid_beta_derivative",
    "sigmoid_derivative",
    "softmax",
    "softmax_jacobian",
    "swish",
    "swish_beta_derivative",
    "swish_derivative",
    "tanh",
    "tanh_derivative",
]


def sigmoid(
    x: Float[ArrayLike, "..."], *, beta: Float[ArrayLike, "..."] = 1.0
) -> Float[Array, "..."]:
    r"""Logistic sigmoid with slope parameter, $\sigma_\beta(x) = 1 / (1 + e^{-\beta x})$.

    It rises from 0 to 1 through $\sigma_\beta(0) = \tfrac12$, where its slope is $\beta / 4$. With
    $\beta = 1$ it is `jax.nn.sigmoid`.

    Args:
        x: Any shape.
        beta: $\beta$, scalar or one for each channel, shape `(c,)` for `x` of shape `(..., c)`.

    Returns:
        $\sigma_\beta(x)$, the shape and dtype of `x`.

    Raises:
        ValueError: `beta` is neither scalar nor of the last axis of `x`.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.sigmoid([-1e4, 0.0, 1e4]))
        [0.  0.5 1. ]

    Reference: Goodfellow, Bengio and Courville (2016), section 3.10.
    """
    x = _checks.floating("x", x)
    return jax.lax.logistic(_channelwise("beta", beta, x) * x)


def sigmoid_derivative(
    x: Float[ArrayLike, "..."], *, beta: Float[ArrayLike, "..."] = 1.0
) -> Float[Array, "..."]:
    r"""Slope of the sigmoid, $\sigma_\beta' = \beta\,\sigma_\beta (1 - \sigma_\beta)$.

    At most $\lvert\beta\rvert / 4$, at $x = 0$. Computed as
    $\beta\,\sigma_\beta(x)\,\sigma_\beta(-x)$: in float32 $1 - \sigma(x)$ is 0 from about
    $x = 17$ on, and $\sigma(-x)$ is not.

    Args:
        x: Any shape.
        beta: As in [`sigmoid`][mlnotes_jax.foundations.activations.sigmoid].

    Returns:
        The derivative with respect to `x`, the shape and dtype of `x`.

    Raises:
        ValueError: `beta` is neither scalar nor of the last axis of `x`.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.sigmoid_derivative(0.0, beta=2.0))
        0.5

    Reference: Goodfellow, Bengio and Courville (2016), section 3.10.
    """
    x = _checks.floating("x", x)
    b = _channelwise("beta", beta, x)
    return b * jax.lax.logistic(b * x) * jax.lax.logistic(-b * x)


def sigmoid_beta_derivative(
    x: Float[ArrayLike, "..."], *, beta: Float[ArrayLike, "..."] = 1.0
) -> Float[Array, "..."]:
    r"""What a learnable $\beta$ receives from the sigmoid, $x\,\sigma_\beta (1 - \sigma_\beta)$.

    Args:
        x: Any shape.
        beta: As in [`sigmoid`][mlnotes_jax.foundations.activations.sigmoid].

    Returns:
        The derivative with respect to the `beta` of each element, the shape and dtype of `x`; sum
        it over the elements that share a `beta`.

    Raises:
        ValueError: `beta` is neither scalar nor of the last axis of `x`.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.sigmoid_beta_derivative(2.0, beta=0.0))
        0.5

    Reference: Goodfellow, Bengio and Courville (2016), section 3.10.
    """
    x = _checks.floating("x", x)
    b = _channelwise("beta", beta, x)
    return x * jax.lax.logistic(b * x) * jax.lax.logistic(-b * x)


def hard_sigmoid(
    x: Float[ArrayLike, "..."], *, slope: Float[ArrayLike, ""] = 0.25
) -> Float[Array, "..."]:
    r"""The ramp, $\min(1, \max(0, \tfrac12 + s x))$: flat, straight, flat.

    With $s$ = `slope`. The default ¼ makes it the tangent of the sigmoid at 0. Others use other
    ramps: `slope=1/6` is `jax.nn.hard_sigmoid` and `torch.nn.Hardsigmoid`, `slope=0.2` that of
    older Keras.

    Args:
        x: Any shape.
        slope: $s > 0$; the ramp goes from $-1/(2s)$ to $1/(2s)$. Traced.

    Returns:
        The ramp, in [0, 1], the shape and dtype of `x`.

    Raises:
        ValueError: `slope` is not positive.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.hard_sigmoid([-3.0, -1.0, 0.0, 3.0]))
        [0.   0.25 0.5  1.  ]

    Reference: Courbariaux, Bengio and David, "BinaryConnect" (2015), section 2.2.
    """
    ramp = _ramp(x, slope)[0]
    # A NaN fails both tests and is kept.
    return jnp.where(ramp <= 0, 0, jnp.where(ramp >= 1, 1, ramp))


def hard_sigmoid_derivative(
    x: Float[ArrayLike, "..."], *, slope: Float[ArrayLike, ""] = 0.25
) -> Float[Array, "..."]:
    r"""Slope of the ramp: $s$ inside, 0 outside and at both kinks.

    Args:
        x: Any shape.
        slope: As in [`hard_sigmoid`][mlnotes_jax.foundations.activations.hard_sigmoid].

    Returns:
        The derivative with respect to `x`, the shape and dtype of `x`.

    Raises:
        ValueError: `slope` is not positive.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.hard_sigmoid_derivative([-2.0, 0.0, 2.0]))
        [0.   0.25 0.  ]

    Reference: Courbariaux, Bengio and David (2015), section 2.2.
    """
    ramp, s = _ramp(x, slope)
    return jnp.where((ramp <= 0) | (ramp >= 1), 0, s)


def tanh(x: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Hyperbolic tangent, $\tanh x = (e^x - e^{-x}) / (e^x + e^{-x}) = 2\sigma(2x) - 1$.

    Args:
        x: Any shape.

    Returns:
        The value, in (−1, 1), the shape and dtype of `x`.

    Raises:
        TypeError: `x` is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.tanh([-1e4, 0.0, 1e4]))
        [-1.  0.  1.]

    Reference: Goodfellow, Bengio and Courville (2016), section 6.3.2.
    """
    return jnp.tanh(_checks.floating("x", x))


def tanh_derivative(x: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Slope of the hyperbolic tangent, $1 - \tanh^2 x = 4\sigma(2x)\sigma(-2x)$.

    At most 1, at $x = 0$. The second form is computed: the first loses its digits where
    $\tanh^2 x$ is near 1.

    Args:
        x: Any shape.

    Returns:
        The derivative, the shape and dtype of `x`.

    Raises:
        TypeError: `x` is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.tanh_derivative([0.0, 1e4]))
        [1. 0.]

    Reference: Goodfellow, Bengio and Courville (2016), section 6.3.2.
    """
    x = _checks.floating("x", x)
    return 4 * jax.lax.logistic(2 * x) * jax.lax.logistic(-2 * x)


def relu(x: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Rectified linear unit, $\max(0, x)$.

    It is linear on each side of 0 and not linear as a whole:
    $\operatorname{relu}(-1) + \operatorname{relu}(1) \ne \operatorname{relu}(0)$.

    Args:
        x: Any shape.

    Returns:
        The value, the shape and dtype of `x`. A NaN stays a NaN.

    Raises:
        TypeError: `x` is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.relu([-2.0, 0.0, 3.0]))
        [0. 0. 3.]

    Reference: Glorot, Bordes and Bengio, "Deep Sparse Rectifier Neural Networks" (2011), section 3.
    """
    x = _checks.floating("x", x)
    return jnp.where(x <= 0, 0, x)


def relu_derivative(x: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Slope of ReLU: 1 for $x > 0$, 0 for $x \le 0$.

    Args:
        x: Any shape.

    Returns:
        The derivative, the shape and dtype of `x`.

    Raises:
        TypeError: `x` is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.relu_derivative([-2.0, 0.0, 3.0]))
        [0. 0. 1.]

    Reference: Glorot, Bordes and Bengio (2011), section 3.
    """
    x = _checks.floating("x", x)
    return (x > 0).astype(x.dtype)


def leaky_relu(
    x: Float[ArrayLike, "..."], *, alpha: Float[ArrayLike, ""] = 0.01
) -> Float[Array, "..."]:
    r"""Leaky ReLU, $x$ for $x > 0$ and $\alpha x$ for $x \le 0$.

    Args:
        x: Any shape.
        alpha: $\alpha$, the slope on the left, a fixed number; `negative_slope` of `jax.nn` and
            PyTorch. Traced.

    Returns:
        The value, the shape and dtype of `x`.

    Raises:
        ValueError: `alpha` is not a scalar.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.leaky_relu([-2.0, 3.0], alpha=0.5))
        [-1.  3.]

    Reference: Maas, Hannun and Ng, "Rectifier Nonlinearities Improve Neural Network Acoustic
    Models" (2013), section 2.
    """
    x = _checks.floating("x", x)
    return jnp.where(x <= 0, _scalar("alpha", alpha, x) * x, x)


def leaky_relu_derivative(
    x: Float[ArrayLike, "..."], *, alpha: Float[ArrayLike, ""] = 0.01
) -> Float[Array, "..."]:
    r"""Slope of leaky ReLU: 1 for $x > 0$, $\alpha$ for $x \le 0$.

    At 0 `jax.nn.leaky_relu` takes 1; PyTorch takes $\alpha$, as here.

    Args:
        x: Any shape.
        alpha: As in [`leaky_relu`][mlnotes_jax.foundations.activations.leaky_relu].

    Returns:
        The derivative with respect to `x`, the shape and dtype of `x`.

    Raises:
        ValueError: `alpha` is not a scalar.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.leaky_relu_derivative([-2.0, 0.0, 3.0], alpha=0.5))
        [0.5 0.5 1. ]

    Reference: Maas, Hannun and Ng (2013), section 2.
    """
    x = _checks.floating("x", x)
    return jnp.where(x <= 0, _scalar("alpha", alpha, x), jnp.ones_like(x))


def prelu(x: Float[ArrayLike, "..."], *, alpha: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Parametric ReLU: leaky ReLU whose $\alpha$ is learned, one for all channels or one for each.

    Args:
        x: Shape `(..., c)`, or any for a scalar `alpha`.
        alpha: $\alpha$, scalar or shape `(c,)`, a parameter of the network (0.25 to begin with, in
            the paper). Channels are last; in `torch.nn.PReLU` they are on axis 1.

    Returns:
        The value, the shape and dtype of `x`.

    Raises:
        ValueError: `alpha` is neither scalar nor of the last axis of `x`.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.prelu([[-2.0, -2.0], [3.0, -4.0]], alpha=[0.5, 0.25]))
        [[-1.  -0.5]
         [ 3.  -1. ]]

    Reference: He, Zhang, Ren and Sun, "Delving Deep into Rectifiers" (2015), section 2.1.
    """
    x = _checks.floating("x", x)
    return jnp.where(x <= 0, _channelwise("alpha", alpha, x) * x, x)


def prelu_derivative(
    x: Float[ArrayLike, "..."], *, alpha: Float[ArrayLike, "..."]
) -> Float[Array, "..."]:
    r"""Slope of PReLU: 1 for $x > 0$, $\alpha$ for $x \le 0$.

    Args:
        x: Shape `(..., c)`, or any for a scalar `alpha`.
        alpha: As in [`prelu`][mlnotes_jax.foundations.activations.prelu].

    Returns:
        The derivative with respect to `x`, the shape and dtype of `x`.

    Raises:
        ValueError: `alpha` is neither scalar nor of the last axis of `x`.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.prelu_derivative([-2.0, 3.0], alpha=[0.5, 0.25]))
        [0.5 1. ]

    Reference: He, Zhang, Ren and Sun (2015), section 2.1.
    """
    x = _checks.floating("x", x)
    return jnp.where(x <= 0, _channelwise("alpha", alpha, x), jnp.ones_like(x))


def prelu_alpha_derivative(x: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""What the learned slope of PReLU receives, $\partial f / \partial \alpha = \min(0, x)$.

    It does not depend on $\alpha$.

    Args:
        x: Any shape.

    Returns:
        The derivative with respect to the `alpha` of each element, the shape and dtype of `x`;
        sum it over the elements that share an `alpha`.

    Raises:
        TypeError: `x` is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.prelu_alpha_derivative([-2.0, 3.0]))
        [-2.  0.]

    Reference: He, Zhang, Ren and Sun (2015), equation 3.
    """
    return jnp.minimum(_checks.floating("x", x), 0)


def swish(
    x: Float[ArrayLike, "..."], *, beta: Float[ArrayLike, "..."] = 1.0
) -> Float[Array, "..."]:
    r"""Swish, $x\,\sigma(\beta x)$: smooth, not monotone, with a learnable $\beta$.

    $\beta = 1$ is SiLU (`jax.nn.silu`, `torch.nn.SiLU`); $\beta \to 0$ gives the linear $x / 2$,
    $\beta \to \infty$ gives ReLU.

    Args:
        x: Any shape.
        beta: $\beta$, scalar or one for each channel, shape `(c,)` for `x` of shape `(..., c)`.

    Returns:
        The value, the shape and dtype of `x`.

    Raises:
        ValueError: `beta` is neither scalar nor of the last axis of `x`.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.swish([-2.0, 4.0], beta=[0.0, 1e4]))
        [-1.  4.]

    Reference: Ramachandran, Zoph and Le, "Searching for Activation Functions" (2017), section 4.
    """
    x = _checks.floating("x", x)
    return x * sigmoid(x, beta=beta)


def swish_derivative(
    x: Float[ArrayLike, "..."], *, beta: Float[ArrayLike, "..."] = 1.0
) -> Float[Array, "..."]:
    r"""Slope of Swish, $\sigma(\beta x) + \beta x\,\sigma(\beta x)(1 - \sigma(\beta x))$.

    Args:
        x: Any shape.
        beta: As in [`swish`][mlnotes_jax.foundations.activations.swish].

    Returns:
        The derivative with respect to `x`, the shape and dtype of `x`.

    Raises:
        ValueError: `beta` is neither scalar nor of the last axis of `x`.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.swish_derivative([-1e3, 0.0, 1e3]))
        [0.  0.5 1. ]

    Reference: Ramachandran, Zoph and Le (2017), section 4.
    """
    x = _checks.floating("x", x)
    return sigmoid(x, beta=beta) + x * sigmoid_derivative(x, beta=beta)


def swish_beta_derivative(
    x: Float[ArrayLike, "..."], *, beta: Float[ArrayLike, "..."] = 1.0
) -> Float[Array, "..."]:
    r"""What a learnable $\beta$ receives from Swish, $x^2 \sigma(\beta x)(1 - \sigma(\beta x))$.

    Args:
        x: Any shape.
        beta: As in [`swish`][mlnotes_jax.foundations.activations.swish].

    Returns:
        The derivative with respect to the `beta` of each element, the shape and dtype of `x`; sum
        it over the elements that share a `beta`.

    Raises:
        ValueError: `beta` is neither scalar nor of the last axis of `x`.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.swish_beta_derivative(-2.0, beta=0.0))
        1.0

    Reference: Ramachandran, Zoph and Le (2017), section 4.
    """
    x = _checks.floating("x", x)
    return x * sigmoid_beta_derivative(x, beta=beta)


def softmax(
    x: Float[ArrayLike, "..."], *, temperature: Float[ArrayLike, ""] = 1.0, axis: int = -1
) -> Float[Array, "..."]:
    r"""Softmax with temperature, $p_i = e^{x_i / T} / \sum_j e^{x_j / T}$.

    $T \to 0$ puts everything on the largest entry, $T \to \infty$ spreads it evenly. Adding a
    constant to all of `x` changes nothing: the largest entry is subtracted first, so nothing
    overflows, and *then* the division by $T$ takes place.

    Args:
        x: At least one axis, which may hold −∞ (an entry of probability 0).
        temperature: $T > 0$. Traced.
        axis: The axis that sums to 1; static.

    Returns:
        The probabilities, the shape and dtype of `x`.

    Raises:
        ValueError: `temperature` is not positive, or `x` has no such axis.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.softmax([0.0, 0.0, -jnp.inf]))
        [0.5 0.5 0. ]

    Reference: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015),
    section 2.
    """
    shifted, dtype = _shifted(x, temperature, axis)
    weights = jnp.exp(shifted)
    return (weights / weights.sum(axis, keepdims=True)).astype(dtype)


def log_softmax(
    x: Float[ArrayLike, "..."], *, temperature: Float[ArrayLike, ""] = 1.0, axis: int = -1
) -> Float[Array, "..."]:
    r"""Logarithm of the softmax, $x_i / T - \ln \sum_j e^{x_j / T}$.

    Finite where the softmax itself has underflowed to 0.

    Args:
        x: At least one axis.
        temperature: $T > 0$. Traced.
        axis: The axis whose probabilities sum to 1; static.

    Returns:
        The log-probabilities, the shape and dtype of `x`.

    Raises:
        ValueError: `temperature` is not positive, or `x` has no such axis.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.log_softmax([1e4, -1e4]))
        [     0. -20000.]

    Reference: Goodfellow, Bengio and Courville (2016), section 6.2.2.3.
    """
    shifted, dtype = _shifted(x, temperature, axis)
    return (shifted - jnp.log(jnp.exp(shifted).sum(axis, keepdims=True))).astype(dtype)


def softmax_jacobian(
    x: Float[ArrayLike, " k"], *, temperature: Float[ArrayLike, ""] = 1.0
) -> Float[Array, "k k"]:
    r"""Jacobian of the softmax, $(\operatorname{diag}(p) - p p^\top) / T$.

    Symmetric and positive semidefinite; its rows sum to 0.

    Args:
        x: One example, shape `(k,)`; `jax.vmap` for more.
        temperature: $T > 0$. Traced.

    Returns:
        $\partial p_i / \partial x_j$ in row $i$ and column $j$, shape `(k, k)`.

    Raises:
        ValueError: `x` is not a vector, or `temperature` is not positive.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.softmax_jacobian([0.0, 0.0]))
        [[ 0.25 -0.25]
         [-0.25  0.25]]

    Reference: Bishop, *Pattern Recognition and Machine Learning* (2006), equation 4.106.
    """
    x = _checks.floating("x", x, ndim=1)
    p = softmax(x, temperature=temperature)
    return (jnp.diag(p) - jnp.outer(p, p)) / _scalar("temperature", temperature, x)


def log_softmax_jacobian(
    x: Float[ArrayLike, " k"], *, temperature: Float[ArrayLike, ""] = 1.0
) -> Float[Array, "k k"]:
    r"""Jacobian of the log-softmax, $(I - \mathbf{1} p^\top) / T$.

    Args:
        x: One example, shape `(k,)`; `jax.vmap` for more.
        temperature: $T > 0$. Traced.

    Returns:
        $\partial \ln p_i / \partial x_j$ in row $i$ and column $j$, shape `(k, k)`.

    Raises:
        ValueError: `x` is not a vector, or `temperature` is not positive.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.log_softmax_jacobian([0.0, 0.0]))
        [[ 0.5 -0.5]
         [-0.5  0.5]]

    Reference: Bishop (2006), section 4.3.4.
    """
    x = _checks.floating("x", x, ndim=1)
    p = softmax(x, temperature=temperature)
    jacobian = jnp.eye(x.size, dtype=x.dtype) - p[None, :]
    return jacobian / _scalar("temperature", temperature, x)


def saturation(
    slopes: Float[ArrayLike, "..."],
    *,
    bound: Float[ArrayLike, ""] = 0.01,
    axis: int | tuple[int, ...] | None = None,
) -> Float[Array, "..."]:
    r"""Share of the units that pass on almost no gradient: $\lvert f'(x) \rvert <$ `bound`.

    Args:
        slopes: $f'$ of the inputs, such as `sigmoid_derivative(x)`, any shape; a unit counts once
            for each example.
        bound: Below which a slope is called flat, > 0. Traced. 0.01 is 4 % of the sigmoid's
            steepest slope and is reached at $\lvert x \rvert = 4.6$.
        axis: The axes to count over, all by default: `axis=0` gives one share for each unit of
            slopes of shape `(n, units)`. Static.

    Returns:
        The share, in [0, 1], without the axes counted over; NaN where a slope is NaN.

    Raises:
        ValueError: `slopes` is empty, or `bound` is not positive.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> print(activations.saturation(activations.sigmoid_derivative([-9.0, 0.0, 1.0, 9.0])))
        0.5

    Reference: Glorot and Bengio, "Understanding the Difficulty of Training Deep Feedforward
    Neural Networks" (2010), section 3.
    """
    d = _checks.floating("slopes", slopes)
    _checks.not_empty("slopes", d)
    _checks.positive("bound", bound)
    d = d.astype(jnp.float32) if jnp.finfo(d.dtype).bits < 32 else d
    flat = (jnp.abs(d) < _scalar("bound", bound, d)).astype(d.dtype)
    return jnp.where(jnp.isnan(d), d, flat).mean(axis)


def dead_units(
    slopes: Float[ArrayLike, "n *units"], *, bound: Float[ArrayLike, ""] = 0.0
) -> Bool[Array, "*units"]:
    r"""Which units are dead: flat, $\lvert f'(x) \rvert \le$ `bound`, on every example.

    No example of the data set moves the weights of such a unit. A ReLU that is off for some of
    the examples is not dead; that is how it is meant to work.

    Args:
        slopes: $f'$ of the inputs over the *whole* data set, such as `relu_derivative(x)`, shape
            `(n, ...)`, examples first.
        bound: Up to which a slope counts as none, >= 0; the default 0 is right for ReLU. Traced.

    Returns:
        One Boolean for each unit, shape `(...)`; its mean is the share of dead units.

    Raises:
        ValueError: `slopes` is a scalar or empty, or `bound` is negative.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import activations
        >>> inputs = [[-1.0, -1.0], [-2.0, 3.0]]
        >>> print(activations.dead_units(activations.relu_derivative(inputs)))
        [ True False]

    Reference: Maas, Hannun and Ng (2013), section 2.
    """
    d = _checks.floating("slopes", slopes)
    _checks.not_empty("slopes", d)
    _checks.not_negative("bound", bound)
    if d.ndim == 0:
        raise ValueError("slopes must have examples on the first axis, got shape ()")
    return (jnp.abs(d) <= _scalar("bound", bound, d)).all(axis=0)


def _scalar(name: str, value: ArrayLike, x: Array) -> Array:
    """A parameter of rank 0 in the dtype of `x`."""
    return _checks.floating(name, value, ndim=0).astype(x.dtype)


def _channelwise(name: str, value: ArrayLike, x: Array) -> Array:
    """A parameter in the dtype of `x`: a scalar, or one for each channel of the last axis."""
    parameter = _checks.floating(name, value, ndim=(0, 1)).astype(x.dtype)
    if parameter.ndim == 0:
        return parameter
    if x.shape[-1:] != parameter.shape:
        raise ValueError(
            f"{name} must be a scalar or have one value for each channel of x, of shape {x.shape}, "
            f"got shape {parameter.shape}"
        )
    return parameter.reshape((1,) * (x.ndim - 1) + parameter.shape)


def _ramp(x: ArrayLike, slope: ArrayLike) -> tuple[Array, Array]:
    """The straight line that the hard sigmoid cuts off, and its slope."""
    x = _checks.floating("x", x)
    _checks.positive("slope", slope)
    s = _scalar("slope", slope, x)
    return 0.5 + s * x, s


def _shifted(x: ArrayLike, temperature: ArrayLike, axis: int) -> tuple[Array, jnp.dtype]:
    """(x - max x) / T in at least float32, and the dtype to give back."""
    x = _checks.floating("x", x)
    _checks.positive("temperature", temperature)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis must be an axis of x, of shape {x.shape}, got {axis}")
    dtype = x.dtype
    x = x.astype(jnp.float32) if jnp.finfo(dtype).bits < 32 else x
    # The result does not depend on the shift, so nor does its gradient.
    top = jax.lax.stop_gradient(x.max(axis, keepdims=True))
    return (x - top) / _scalar("temperature", temperature, x), dtype
