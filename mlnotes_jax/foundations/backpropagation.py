r"""Backpropagation: the gradient of a chain of layers, every backward pass written by hand.

The adjoint of a value $v$ is $\bar v = \partial \ell / \partial v$, of the shape of $v$. For
$y = g(x)$ with the Jacobian $J$, $\bar x = J^\top \bar y$; a value that is used twice gets the
sum. From the loss back to the inputs, for $Z = X W + \mathbf 1 b^\top$ and $Y = \phi(Z)$,

$$ \bar Z = \bar Y \odot \phi'(Z), \qquad \bar X = \bar Z W^\top, \qquad
   \bar W = X^\top \bar Z, \qquad \bar b = \bar Z^\top \mathbf 1 . $$

No Jacobian is ever formed, and nothing here calls `jax.grad` or `jax.vjp`: these are the peers.

Reference: Rumelhart, Hinton and Williams, "Learning Representations by Back-propagating Errors"
(1986); Griewank and Walther, *Evaluating Derivatives* (2008), chapters 3 and 4.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from mlnotes_jax import _checks
from mlnotes_jax.foundations import activations, losses

__all__ = [
    "Cost",
    "Layer",
    "Node",
    "Step",
    "Tape",
    "activate",
    "activation_backward",
    "affine_backward",
    "backward",
    "cost",
    "differentiate",
    "forward",
    "loss_and_gradients",
    "softmax_cross_entropy_backward",
    "table",
    "variable",
]

#: Names of the functions in `mlnotes_jax.foundations.activations`.
Activation = Literal[
    "sigmoid",
    "hard_sigmoid",
    "tanh",
    "relu",
    "leaky_relu",
    "prelu",
    "swish",
    "softmax",
    "log_softmax",
]

# The keyword of the parameter that an activation has, and its value where none is given.
_PARAMETERS: dict[str, tuple[str, float]] = {
    "sigmoid": ("beta", 1.0),
    "hard_sigmoid": ("slope", 0.25),
    "leaky_relu": ("alpha", 0.01),
    "prelu": ("alpha", 0.25),
    "swish": ("beta", 1.0),
    "softmax": ("temperature", 1.0),
    "log_softmax": ("temperature", 1.0),
}


class Layer(NamedTuple):
    r"""An affine map and, if it has one, the parameter of the activation behind it.

    Attributes:
        kernel: $W$, shape `(inputs, outputs)`.
        bias: $b$, shape `(outputs,)`.
        parameter: $\beta$ of sigmoid and Swish, $\alpha$ of leaky ReLU and PReLU, the slope of
            the hard sigmoid or the temperature of a softmax: scalar, or for $\beta$ and the
            $\alpha$ of PReLU shape `(outputs,)`. None takes the usual value and learns nothing.
    """

    kernel: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]
    parameter: Float[Array, "..."] | None = None


class Tape(NamedTuple):
    r"""What the forward pass keeps for the backward pass.

    Attributes:
        inputs: What each layer received, $X_0, \dots, X_{L-1}$.
        before: What each activation received, $Z_1, \dots, Z_{L-1}$.
    """

    inputs: tuple[Float[Array, "... d"], ...]
    before: tuple[Float[Array, "... d"], ...]


class Cost(NamedTuple):
    """What the matrix products of one batch cost.

    Attributes:
        forward: Multiplications and additions of the forward pass.
        backward: Those of the backward pass alone.
        kept: Numbers on the tape.
    """

    forward: int
    backward: int
    kept: int

    @property
    def ratio(self) -> float:
        """Backward over forward."""
        return self.backward / self.forward


# --- One layer at a time --------------------------------------------------------------------------


def affine_backward(
    adjoint: Float[ArrayLike, "... m"],
    x: Float[ArrayLike, "... d"],
    kernel: Float[ArrayLike, "d m"],
) -> tuple[Float[Array, "... d"], Float[Array, "d m"], Float[Array, " m"]]:
    r"""Backward pass of $Z = X W + \mathbf 1 b^\top$.

    $\bar X = \bar Z W^\top$, $\bar W = X^\top \bar Z$, $\bar b = \bar Z^\top \mathbf 1$: two
    products of the size of the forward one.

    Args:
        adjoint: $\bar Z$, shape `(..., m)`.
        x: $X$, what the layer received, shape `(..., d)`.
        kernel: $W$, shape `(d, m)`.

    Returns:
        $\bar X$, $\bar W$, $\bar b$; sums over all leading axes.

    Raises:
        ValueError: Shapes do not fit.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import backpropagation as bp
        >>> x_bar, kernel_bar, bias_bar = bp.affine_backward([[1.0]], [[2.0, 3.0]], [[5.0], [7.0]])
        >>> print(x_bar, kernel_bar.ravel(), bias_bar)
        [[5. 7.]] [2. 3.] [1.]

    Reference: Goodfellow, Bengio and Courville, *Deep Learning* (2016), section 6.5.6.
    """
    w = _checks.floating("kernel", kernel, ndim=2)
    g, x = _checks.floating("adjoint", adjoint), _checks.floating("x", x)
    if g.shape[-1:] != w.shape[1:] or x.shape[-1:] != w.shape[:1] or g.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"x and adjoint must be (..., {w.shape[0]}) and (..., {w.shape[1]}) for a kernel of "
            f"shape {w.shape}, got {x.shape} and {g.shape}"
        )
    rows, received = g.reshape(-1, w.shape[1]), x.reshape(-1, w.shape[0])
    return g @ w.T, received.T @ rows, _total(rows, axis=0)


def activate(
    name: Activation, x: Float[ArrayLike, "... d"], parameter: Float[ArrayLike, "..."] | None = None
) -> Float[Array, "... d"]:
    """An activation by its name.

    Args:
        name: `"sigmoid"`, `"hard_sigmoid"`, `"tanh"`, `"relu"`, `"leaky_relu"`, `"prelu"`,
            `"swish"`, `"softmax"` or `"log_softmax"`; static.
        x: Any shape; a softmax goes over the last axis.
        parameter: As in `Layer`.

    Returns:
        The values, the shape and dtype of `x`.

    Raises:
        ValueError: The name is unknown, or the activation has no parameter and one is given.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import backpropagation as bp
        >>> print(bp.activate("leaky_relu", [-2.0, 3.0], 0.5))
        [-1.  3.]
    """
    options, _ = _options(name, parameter)
    return getattr(activations, name)(x, **options)


def activation_backward(
    name: Activation,
    adjoint: Float[ArrayLike, "... d"],
    x: Float[ArrayLike, "... d"],
    parameter: Float[ArrayLike, "..."] | None = None,
) -> tuple[Float[Array, "... d"], Float[Array, "..."] | None]:
    r"""Backward pass of an activation $y = \phi(x)$ with the parameter $a$.

    Elementwise ones: $\bar x = \bar y\, \phi'(x)$ and $\bar a = \sum \bar y\, \partial\phi /
    \partial a$ over all elements that share $a$. The softmax $p$ mixes the entries of a row, but
    its Jacobian is a diagonal less an outer product, so that it too costs one pass:

    $$
    \text{softmax: } \bar x = \tfrac1T\, p \odot (\bar y - (p^\top \bar y) \mathbf 1), \qquad
    \text{log-softmax: } \bar x = \tfrac1T (\bar y - (\mathbf 1^\top \bar y)\, p), \qquad
    \bar T = - \tfrac1T\, x^\top \bar x .
    $$

    Args:
        name: Which; static.
        adjoint: $\bar y$, the shape of `x`.
        x: What the activation received.
        parameter: As in `Layer`.

    Returns:
        $\bar x$, of the shape and dtype of `x`, and $\bar a$, of those of `parameter` (None where
        that is None).

    Raises:
        ValueError: Shapes differ, the name is unknown, or the activation has no parameter and one
            is given.
        TypeError: An argument is not numeric.

    Example:
        >>> from mlnotes_jax.foundations import backpropagation as bp
        >>> x_bar, alpha_bar = bp.activation_backward("prelu", [1.0, 10.0], [-2.0, 3.0], 0.5)
        >>> print(x_bar, alpha_bar)
        [ 0.5 10. ] -2.0

    Reference: Griewank and Walther (2008), section 3.2.
    """
    options, given = _options(name, parameter)
    x, g = _checks.floating("x", x), _checks.floating("adjoint", adjoint)
    _checks.same_shape(x=x, adjoint=g)
    g = g.astype(x.dtype)
    if name in ("softmax", "log_softmax"):
        x_bar, by_parameter = _softmax_backward(name, g, x, options["temperature"], given)
    else:
        x_bar = g * getattr(activations, f"{name}_derivative")(x, **options)
        by_parameter = g * _parameter_slope(name, x, options) if given else None
    if by_parameter is None:
        return x_bar, None
    a = _checks.floating("parameter", parameter)  # pyright: ignore[reportArgumentType]
    axes = tuple(range(x.ndim - a.ndim))
    return x_bar, _total(by_parameter, axis=axes).astype(a.dtype)


def softmax_cross_entropy_backward(
    logits: Float[ArrayLike, "*n k"],
    labels: Int[ArrayLike, "*n"],
    *,
    adjoint: Float[ArrayLike, ""] = 1.0,
) -> Float[Array, "*n k"]:
    r"""Backward pass of the mean cross-entropy of $p = \operatorname{softmax}(z)$.

    $\bar z = \bar\ell\, (p - e_y) / n$ for *every* class: two kernels in one, and no logarithm
    whose slope $1 / p$ could overflow.

    Args:
        logits: $z$, shape `(..., k)`.
        labels: $y$, classes 0..k-1, shape `(...)`; $n$ of them.
        adjoint: $\bar\ell$ of the loss.

    Returns:
        $\bar z$, the shape of `logits`; NaN in the row of a traced label that is no class.

    Raises:
        ValueError: Shapes do not fit, or a concrete label is no class.
        TypeError: `logits` are not numeric, or `labels` not integers.

    Example:
        >>> from mlnotes_jax.foundations import backpropagation as bp
        >>> print(bp.softmax_cross_entropy_backward([[0.0, 0.0]], [1]))
        [[ 0.5 -0.5]]

    Reference: Bishop, *Pattern Recognition and Machine Learning* (2006), equation 4.109.
    """
    z, y = _checks.floating("logits", logits), _checks.integer("labels", labels)
    if z.ndim == 0 or z.shape[:-1] != y.shape:
        raise ValueError(f"labels must be {z.shape[:-1]} for logits {z.shape}, got {y.shape}")
    _checks.not_empty("logits", z)
    k = z.shape[-1]
    _checks.class_labels("labels", y, k)
    wide = z.astype(jnp.float32) if jnp.finfo(z.dtype).bits < 32 else z
    p = activations.softmax(wide)
    scale = _checks.floating("adjoint", adjoint, ndim=0).astype(wide.dtype) / y.size
    z_bar = scale * (p - jax.nn.one_hot(y, k, dtype=wide.dtype))
    known = ((y >= 0) & (y < k))[..., None]
    return jnp.where(known, z_bar, jnp.nan).astype(z.dtype)


# --- A chain of layers ----------------------------------------------------------------------------


def forward(
    layers: Sequence[Layer], x: Float[ArrayLike, "... d"], *, activation: Activation = "relu"
) -> tuple[Float[Array, "... m"], Tape]:
    r"""Forward pass of a chain, with everything that the backward pass needs.

    $Z_l = X_{l-1} W_l + \mathbf 1 b_l^\top$ and $X_l = \phi(Z_l)$; nothing follows the last layer.

    Args:
        layers: $L$ layers, first layer first.
        x: $X_0$, shape `(..., d_0)`.
        activation: $\phi$, by its name as in `activate`; static.

    Returns:
        $Z_L$, shape `(..., d_L)`, and the tape.

    Raises:
        ValueError: There is no layer, shapes do not fit, or the activation is unknown.
        TypeError: An argument is not numeric.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import backpropagation as bp
        >>> half = bp.Layer(jnp.array([[0.5]]), jnp.array([-1.0]))
        >>> output, tape = bp.forward([half, half], [[8.0]])
        >>> print(output, tape.before[0])
        [[0.5]] [[3.]]

    Reference: Goodfellow, Bengio and Courville (2016), algorithm 6.3.
    """
    x = _checks.floating("x", x)
    layers = _layers(layers, x)
    inputs, before = [], []
    for i, layer in enumerate(layers):
        inputs.append(x)
        bias = layer.bias.reshape((1,) * (x.ndim - 1) + layer.bias.shape)
        x = x @ layer.kernel + bias
        if i < len(layers) - 1:
            before.append(x)
            x = activate(activation, x, layer.parameter)
    return x, Tape(tuple(inputs), tuple(before))


def backward(
    layers: Sequence[Layer],
    tape: Tape,
    adjoint: Float[ArrayLike, "... m"],
    *,
    activation: Activation = "relu",
) -> tuple[list[Layer], Float[Array, "... d"]]:
    r"""Backward pass of a chain: from the adjoint of its output to all the others.

    For $l = L, \dots, 1$: the two products of the affine map, then the slope of the activation.

    Args:
        layers: As for `forward`.
        tape: From `forward`.
        adjoint: $\bar Z_L$, the shape of the output.
        activation: As for `forward`.

    Returns:
        The adjoints of the layers, each a `Layer` of the same shapes, and $\bar X_0$. (Under `jit`
        $\bar X_0$ is computed only if it is used.)

    Raises:
        ValueError: Shapes do not fit, or the tape is of another chain.
        TypeError: An argument is not numeric.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import backpropagation as bp
        >>> half = bp.Layer(jnp.array([[0.5]]), jnp.array([-1.0]))
        >>> output, tape = bp.forward([half, half], [[8.0]])
        >>> gradients, x_bar = bp.backward([half, half], tape, jnp.ones((1, 1)))
        >>> [float(g.kernel[0, 0]) for g in gradients], float(x_bar[0, 0])
        ([4.0, 3.0], 0.25)

    Reference: Goodfellow, Bengio and Courville (2016), algorithm 6.4.
    """
    layers = list(layers)
    if len(tape.inputs) != len(layers) or len(tape.before) != len(layers) - 1:
        raise ValueError(
            f"tape must be of a chain of {len(layers)} layers, got one of {len(tape.inputs)}"
        )
    g = _checks.floating("adjoint", adjoint)
    gradients: list[Layer] = []
    parameter_bar: Array | None = None
    for i in reversed(range(len(layers))):
        if i < len(layers) - 1:
            g, parameter_bar = activation_backward(
                activation, g, tape.before[i], layers[i].parameter
            )
        elif (unused := layers[i].parameter) is not None:
            parameter_bar = jnp.zeros_like(unused)  # nothing follows the last layer
        g, kernel_bar, bias_bar = affine_backward(g, tape.inputs[i], layers[i].kernel)
        gradients.append(Layer(kernel_bar, bias_bar, parameter_bar))
        parameter_bar = None
    return gradients[::-1], g


def loss_and_gradients(
    layers: Sequence[Layer],
    x: Float[ArrayLike, "n d"],
    labels: Int[ArrayLike, " n"],
    *,
    activation: Activation = "relu",
) -> tuple[Float[Array, ""], list[Layer]]:
    """Mean softmax cross-entropy of a chain, and its gradient, all by hand.

    Args:
        layers: As for `forward`; the last one gives the logits.
        x: Inputs, shape `(n, d_0)`.
        labels: Classes, shape `(n,)`.
        activation: As for `forward`.

    Returns:
        The loss, and the adjoints of the layers.

    Raises:
        ValueError: Shapes do not fit, or a concrete label is no class.
        TypeError: An argument is not numeric.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.foundations import backpropagation as bp
        >>> loss, (gradient,) = bp.loss_and_gradients(
        ...     [bp.Layer(jnp.zeros((1, 2)), jnp.zeros(2))], [[3.0]], [0]
        ... )
        >>> print(gradient.kernel, gradient.bias)
        [[-1.5  1.5]] [-0.5  0.5]
    """
    logits, tape = forward(layers, x, activation=activation)
    loss = losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    adjoint = softmax_cross_entropy_backward(logits, labels)
    gradients, _ = backward(layers, tape, adjoint, activation=activation)
    return loss, gradients


def cost(widths: Sequence[int], *, batch_size: int, input_gradient: bool = False) -> Cost:
    r"""Count the operations of the matrix products, and the numbers that are kept.

    A product of `(n, a)` and `(a, b)` takes $2nab$ operations. Forward there is one for each
    layer, backward two, but that of $\bar X_0$ can be left out:

    $$ \text{forward} = 2n \sum_{l=1}^{L} d_{l-1} d_l, \qquad
       \text{backward} = 2 \cdot \text{forward} \; [\, - 2n\, d_0 d_1 \,] . $$

    Biases and activations cost $O(n \sum_l d_l)$ more, less by a factor of a width.

    Args:
        widths: $d_0, \dots, d_L$.
        batch_size: $n$.
        input_gradient: Whether $\bar X_0$ is wanted.

    Returns:
        The counts; `kept` is $n (\sum_{l=0}^{L-1} d_l + \sum_{l=1}^{L-1} d_l)$.

    Raises:
        ValueError: There are fewer than two widths, or a count is less than 1.
        TypeError: A count is not an integer.

    Example:
        >>> from mlnotes_jax.foundations import backpropagation as bp
        >>> bp.cost((3, 5, 2), batch_size=10)
        Cost(forward=500, backward=700, kept=130)

    Reference: Griewank and Walther (2008), section 4.6.
    """
    widths = tuple(widths)
    if len(widths) < 2:
        raise ValueError(f"widths must hold those of the input and the output, got {widths}")
    for i, width in enumerate(widths):
        _checks.positive_int(f"widths[{i}]", width)
    _checks.positive_int("batch_size", batch_size)
    ahead = 2 * batch_size * sum(a * b for a, b in itertools.pairwise(widths))
    saved = 0 if input_gradient else 2 * batch_size * widths[0] * widths[1]
    kept = batch_size * (sum(widths[:-1]) + sum(widths[1:-1]))
    return Cost(ahead, 2 * ahead - saved, kept)


# --- A tiny computational graph -------------------------------------------------------------------

#: What a node may be combined with: another node, or a constant.
Operand = Union["Node", float, int]


class Node:
    """A value, and how it was computed from other nodes.

    Arithmetic on nodes makes nodes: `+`, `-`, `*`, `/`, `@` and `**` with a constant exponent, and
    the methods `sum`, `exp`, `log`, `sin`, `tanh`, `relu`. Arrays are combined with arrays of
    their own shape, with scalars and with Python numbers. Begin with
    [`variable`][mlnotes_jax.foundations.backpropagation.variable].

    Attributes:
        value: What came out, an array.
        operation: How, with a place `{}` for each parent; the name of a variable.
        parents: What went in.
        pulls: For each parent, the function from the adjoint of this node to its contribution to
            the adjoint of the parent.
        is_constant: Whether it is a number that was written into an expression.
    """

    __slots__ = ("is_constant", "operation", "parents", "pulls", "value")

    def __init__(
        self,
        value: Array,
        operation: str,
        parents: tuple["Node", ...] = (),
        pulls: tuple[Callable[[Array], Array], ...] = (),
    ) -> None:
        self.value, self.operation = value, operation
        self.parents, self.pulls = parents, pulls
        self.is_constant = False

    def __add__(self, other: Operand) -> "Node":
        return _binary("{} + {}", self, other, jnp.add, lambda g, a, b: (g, g))

    def __radd__(self, other: Operand) -> "Node":
        return _node(other, self) + self

    def __sub__(self, other: Operand) -> "Node":
        return _binary("{} - {}", self, other, jnp.subtract, lambda g, a, b: (g, -g))

    def __rsub__(self, other: Operand) -> "Node":
        return _node(other, self) - self

    def __mul__(self, other: Operand) -> "Node":
        return _binary("{} * {}", self, other, jnp.multiply, lambda g, a, b: (g * b, g * a))

    def __rmul__(self, other: Operand) -> "Node":
        return _node(other, self) * self

    def __truediv__(self, other: Operand) -> "Node":
        def pull(g: Array, a: Array, b: Array) -> tuple[Array, Array]:
            return g / b, -g * a / (b * b)

        return _binary("{} / {}", self, other, jnp.divide, pull)

    def __rtruediv__(self, other: Operand) -> "Node":
        return _node(other, self) / self

    def __matmul__(self, other: "Node") -> "Node":
        a, b = self.value, other.value
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise ValueError(f"@ needs shapes (n, d) and (d, m), got {a.shape} and {b.shape}")
        return Node(a @ b, "{} @ {}", (self, other), (lambda g: g @ b.T, lambda g: a.T @ g))

    def __pow__(self, exponent: float) -> "Node":
        if isinstance(exponent, bool) or not isinstance(exponent, int | float):
            raise TypeError(f"exponent must be a Python number, got {type(exponent).__name__}")
        x = self.value
        # x ** 0 is 1, also at 0, where 0 * x ** -1 would be NaN.
        slope = jnp.zeros_like(x) if exponent == 0 else exponent * x ** (exponent - 1)
        return Node(x**exponent, f"{{}} ** {exponent:g}", (self,), (lambda g: g * slope,))

    def __neg__(self) -> "Node":
        return Node(-self.value, "-{}", (self,), (jnp.negative,))

    def sum(self) -> "Node":
        """Sum of all entries; every entry gets the adjoint of the sum."""
        shape = self.value.shape
        return Node(self.value.sum(), "sum({})", (self,), (lambda g: jnp.full(shape, g),))

    def exp(self) -> "Node":
        """Exponential, its own slope."""
        y = jnp.exp(self.value)
        return Node(y, "exp({})", (self,), (lambda g: g * y,))

    def log(self) -> "Node":
        """Natural logarithm."""
        x = self.value
        return Node(jnp.log(x), "log({})", (self,), (lambda g: g / x,))

    def sin(self) -> "Node":
        """Sine."""
        x = self.value
        return Node(jnp.sin(x), "sin({})", (self,), (lambda g: g * jnp.cos(x),))

    def tanh(self) -> "Node":
        """Hyperbolic tangent."""
        x = self.value
        slope = activations.tanh_derivative
        return Node(activations.tanh(x), "tanh({})", (self,), (lambda g: g * slope(x),))

    def relu(self) -> "Node":
        """Rectified linear unit."""
        x = self.value
        slope = activations.relu_derivative
        return Node(activations.relu(x), "relu({})", (self,), (lambda g: g * slope(x),))


class Step(NamedTuple):
    """A row of the table: one node and its adjoint.

    Attributes:
        name: Of a variable, or `v1`, `v2`, … in the order of the forward pass.
        operation: What was computed, in these names; empty for a variable.
        value: Forward.
        adjoint: Backward, of the shape of the value.
    """

    name: str
    operation: str
    value: Array
    adjoint: Array


def variable(name: str, value: Float[ArrayLike, "..."]) -> Node:
    """Begin a graph: a named input.

    Args:
        name: For the table.
        value: Any shape.

    Returns:
        The node.

    Raises:
        ValueError: `name` is empty, or one of those that steps get, `v1`, `v2`, ….
        TypeError: `value` is not numeric, or `name` no string.

    Example:
        >>> from mlnotes_jax.foundations import backpropagation as bp
        >>> x = bp.variable("x", 3.0)
        >>> print((x * x + 1).value)
        10.0
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}")
    if not name or re.fullmatch(r"v\d+", name):
        raise ValueError(f"name must not be empty, nor v1, v2, ... (the steps), got {name!r}")
    return Node(_checks.floating("value", value), name)


def differentiate(output: Node) -> list[Step]:
    r"""Backward pass through a graph: the adjoint of every node.

    The nodes are sorted so that each comes after its parents. Then, from the last to the first,
    every node hands its adjoint on: $\bar u \mathrel{+}= (\partial v / \partial u)^\top \bar v$.
    As a node is visited after all nodes that use it, its sum is complete by then.

    Args:
        output: A scalar; its adjoint is 1.

    Returns:
        One row for each node, inputs first. Constants are left out.

    Raises:
        ValueError: The output is no scalar, or two variables have one name.
        TypeError: The output is no `Node`.

    Example:
        >>> from mlnotes_jax.foundations import backpropagation as bp
        >>> x = bp.variable("x", [1.0, 2.0])
        >>> for step in bp.differentiate((x**2).sum()):
        ...     print(step.name, step.value, step.adjoint)
        x [1. 2.] [2. 4.]
        v1 [1. 4.] [1. 1.]
        v2 5.0 1.0

    Reference: Griewank and Walther (2008), section 3.2.
    """
    if not isinstance(output, Node):
        raise TypeError(f"output must be a Node, got {type(output).__name__}")
    if output.value.shape != ():
        raise ValueError(f"output must be a scalar, got shape {output.value.shape}")
    order = _sorted(output)
    adjoints = {id(node): jnp.zeros_like(node.value) for node in order}
    adjoints[id(output)] = jnp.ones_like(output.value)
    for node in reversed(order):
        for parent, pull in zip(node.parents, node.pulls, strict=True):
            adjoints[id(parent)] = adjoints[id(parent)] + pull(adjoints[id(node)])
    names: dict[int, str] = {}
    computed = 0
    for node in order:
        if node.parents:
            computed += 1
        names[id(node)] = f"v{computed}" if node.parents else node.operation
    inputs = [node.operation for node in order if not node.parents and not node.is_constant]
    twice = next((name for i, name in enumerate(inputs) if name in inputs[:i]), None)
    if twice is not None:
        raise ValueError(f"output must depend on one variable of each name, got two {twice!r}")
    return [
        Step(
            names[id(node)],
            node.operation.format(*(names[id(p)] for p in node.parents)) if node.parents else "",
            node.value,
            adjoints[id(node)],
        )
        for node in order
        if not node.is_constant
    ]


def table(steps: Sequence[Step]) -> str:
    """Write the rows of `differentiate` as text: node, operation, value, adjoint.

    Args:
        steps: Rows with concrete values.

    Returns:
        Lines of equal columns.

    Example:
        >>> from mlnotes_jax.foundations import backpropagation as bp
        >>> x = bp.variable("x", 3.0)
        >>> print(bp.table(bp.differentiate(x * x)))
        node  operation  value  adjoint
        x                3      6
        v1    x * x      9      1
    """
    rows = [("node", "operation", "value", "adjoint")]
    rows += [(s.name, s.operation, _text(s.value), _text(s.adjoint)) for s in steps]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


# --- Helpers --------------------------------------------------------------------------------------


def _options(name: str, parameter: ArrayLike | None) -> tuple[dict[str, Any], bool]:
    """Keyword arguments of an activation, and whether its parameter was given."""
    _checks.one_of("activation", name, get_args(Activation))
    if name not in _PARAMETERS:
        if parameter is not None:
            raise ValueError(f"parameter must be None: {name} has none, got {parameter}")
        return {}, False
    keyword, usual = _PARAMETERS[name]
    return {keyword: usual if parameter is None else parameter}, parameter is not None


def _parameter_slope(name: str, x: Array, options: dict[str, Any]) -> Array:
    """The derivative of an elementwise activation with respect to its parameter."""
    if name in ("sigmoid", "swish"):
        return getattr(activations, f"{name}_beta_derivative")(x, **options)
    if name == "hard_sigmoid":
        return jnp.where(activations.hard_sigmoid_derivative(x, **options) > 0, x, 0)
    return activations.prelu_alpha_derivative(x)


def _softmax_backward(
    name: str, g: Array, x: Array, temperature: ArrayLike, with_temperature: bool
) -> tuple[Array, Array | None]:
    """Adjoints of the input of a softmax or log-softmax, and of each entry's temperature."""
    dtype = x.dtype
    if jnp.finfo(dtype).bits < 32:
        x, g = x.astype(jnp.float32), g.astype(jnp.float32)
    t = _checks.floating("temperature", temperature, ndim=0).astype(x.dtype)
    p = activations.softmax(x, temperature=t)
    if name == "softmax":
        x_bar = p * (g - (p * g).sum(axis=-1, keepdims=True)) / t
    else:
        x_bar = (g - g.sum(axis=-1, keepdims=True) * p) / t
    if not with_temperature:
        return x_bar.astype(dtype), None
    # An entry of -inf has x_bar = 0 and no part in the sum.
    return x_bar.astype(dtype), -jnp.where(x_bar == 0, 0, x * x_bar) / t


def _total(x: Array, *, axis: int | tuple[int, ...]) -> Array:
    """A sum in at least float32, in the dtype of `x`."""
    wide = x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
    return wide.sum(axis=axis).astype(x.dtype)


def _layers(layers: Sequence[Layer], x: Array) -> list[Layer]:
    """Check that layers fit together."""
    layers = list(layers)
    if not layers:
        raise ValueError("layers must hold at least one layer, got none")
    features = x.shape[-1:]
    for i, layer in enumerate(layers):
        k, b = jnp.shape(layer.kernel), jnp.shape(layer.bias)
        if len(k) != 2 or k[:1] != features or b != k[1:]:
            raise ValueError(
                f"layer {i} must have a kernel (inputs, outputs) for inputs of shape "
                f"(..., {', '.join(map(str, features))}) and a bias (outputs,), got {k} and {b}"
            )
        features = k[1:]
    return layers


def _node(value: Operand, like: Node) -> Node:
    """A node as it is; a number as a node without a name, in the dtype of `like`."""
    if isinstance(value, Node):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a node is combined with a node or a number, got {type(value).__name__}")
    node = Node(jnp.asarray(value, like.value.dtype), f"{value:g}")
    node.is_constant = True
    return node


def _binary(
    operation: str,
    left: Node,
    right: Operand,
    function: Callable[[Array, Array], Array],
    pull: Callable[[Array, Array, Array], tuple[Array, Array]],
) -> Node:
    other = _node(right, left)
    a, b = left.value, other.value
    if a.shape != b.shape and () not in (a.shape, b.shape):
        raise ValueError(f"nodes must have one shape, or be scalars, got {a.shape} and {b.shape}")

    def part(i: int, shape: tuple[int, ...]) -> Callable[[Array], Array]:
        def pulled(g: Array) -> Array:
            mine = pull(g, a, b)[i]
            # A scalar that was spread over an array gets the sum of its uses.
            return mine if mine.shape == shape else mine.sum()

        return pulled

    return Node(function(a, b), operation, (left, other), (part(0, a.shape), part(1, b.shape)))


def _sorted(output: Node) -> list[Node]:
    """Every node below `output`, each after its parents; without recursion."""
    order: list[Node] = []
    done: set[int] = set()
    stack = [(output, False)]
    while stack:
        node, parents_done = stack.pop()
        if id(node) in done:
            continue
        if parents_done:
            done.add(id(node))
            order.append(node)
        else:
            stack.append((node, True))
            stack.extend((p, False) for p in reversed(node.parents))
    return order


def _text(value: Array) -> str:
    """A value on one line, with four significant digits."""
    if value.ndim == 0:
        return f"{float(value):.4g}"
    text = np.array2string(
        np.asarray(value), formatter={"float_kind": lambda v: f"{v:.4g}"}, max_line_width=10**6
    )
    return " ".join(text.split())
