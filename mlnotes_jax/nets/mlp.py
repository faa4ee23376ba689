r"""Fully connected networks: affine maps with a bend between them.

With the rows of $X_0$ as examples, kernels $W_l$ of shape `(inputs, outputs)` and an activation
$\phi$, a network of $L$ affine layers is

$$ X_l = \phi\big(X_{l-1} W_l + \mathbf 1\, b_l^\top\big), \quad l = 1, \dots, L - 1, \qquad
   f(X_0) = X_{L-1} W_L + \mathbf 1\, b_L^\top . $$

Nothing follows the last layer: its outputs are logits, or predicted numbers. With widths
$d_0, \dots, d_L$ it has $\sum_l (d_{l-1} + 1)\, d_l$ parameters.

Reference: Goodfellow, Bengio and Courville, *Deep Learning* (2016), chapter 6; for depth,
Telgarsky, *Benefits of depth in neural networks* (COLT 2016).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from mlnotes_jax import _checks
from mlnotes_jax.foundations import activations
from mlnotes_jax.nets import _initial, normalization
from mlnotes_jax.nets._initial import Initializer
from mlnotes_jax.nets.dropout import Dropout

__all__ = [
    "MLP",
    "NOTES_WIDTHS",
    "Weights",
    "breakpoints",
    "flatten",
    "forward",
    "notes_mlp",
    "num_parameters",
    "parity_deep",
    "parity_wide",
    "tent",
    "weights",
]

#: Kernel `(inputs, outputs)` and bias `(outputs,)` of each affine layer, first layer first.
Weights = Sequence[tuple[Float[Array, "inputs outputs"], Float[Array, " outputs"]]]

#: The widths of the notes' network for pictures of 28 x 28 pixels in ten classes.
NOTES_WIDTHS = (784, 512, 256, 128, 64, 10)

Activation = Callable[[Array], Array]
Norm = Literal["batch", "layer"]


def forward(
    weights: Weights,
    x: Float[ArrayLike, "... inputs"],
    *,
    activation: Activation = activations.relu,
) -> Float[Array, "... outputs"]:
    r"""The network as a pure function; nothing follows the last affine map.

    $X_l = \phi(X_{l-1} W_l + \mathbf 1 b_l^\top)$ for $l < L$, and the same without $\phi$ for $L$.

    Args:
        weights: For each layer $(W_l, b_l)$, of shapes `(d_{l-1}, d_l)` and `(d_l,)`.
        x: Inputs, features last, shape `(..., d_0)`.
        activation: $\phi$; static.

    Returns:
        Outputs, shape `(..., d_L)`.

    Raises:
        ValueError: There is no layer, or shapes do not fit; the message names the layer.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import mlp
        >>> half, double = jnp.array([[0.5]]), jnp.array([[2.0]])
        >>> print(mlp.forward([(half, jnp.array([-1.0])), (double, jnp.zeros(1))], [[4.0], [1.0]]))
        [[2.]
         [0.]]

    Reference: Goodfellow, Bengio and Courville (2016), section 6.4.
    """
    x = _checks.floating("x", x)
    _check_weights(weights, x)
    *hidden, last = weights
    for kernel, bias in hidden:
        x = activation(_affine(x, kernel, bias))
    return _affine(x, *last)


class MLP(nnx.Module):
    r"""A fully connected network: affine, norm, activation, dropout; the last layer affine alone.

    Args:
        widths: $d_0, \dots, d_L$: inputs, hidden layers, outputs; at least two.
        activation: $\phi$ of the hidden layers; static.
        norm: `"batch"` or `"layer"` normalization between the affine map and the activation of each
            hidden layer, or None; static. See `mlnotes_jax.nets.normalization`.
        dropout: Probability to **drop** a hidden unit, in $[0, 1)$; 0 leaves the layers out.
        kernel_init: None is He: normal of variance $2 / d_{l-1}$, biases 0. `"pytorch"` is
            what `torch.nn.Linear` does: kernels and biases uniform in $\pm 1 / \sqrt{d_{l-1}}$, a
            sixth of He's variance. Or an initializer `(key, shape, dtype) -> kernel`, biases 0.
        param_dtype: Of the parameters. The outputs are as wide as the wider of `x` and these.
        rngs: For the parameters, and the first key of dropout.

    Attributes:
        layers: The affine layers, `flax.nnx.Linear`: Params `kernel`, `(inputs, outputs)`, and
            `bias`.
        norms: The norms of the hidden layers, or none.
        dropouts: The dropout layers behind the hidden layers, or none.
        widths: As given.

    Raises:
        ValueError: `widths` are fewer than two or not positive, `norm` or `kernel_init` is unknown,
            or `dropout` is not in $[0, 1)$.
        TypeError: A width is not an integer, `activation` is not callable, or `dropout` is not a
            Python number.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets.mlp import MLP
        >>> net = MLP((4, 8, 3), norm="layer", dropout=0.5, rngs=nnx.Rngs(0))
        >>> net(jnp.ones((2, 4))).shape
        (2, 3)

    Note:
        Pictures are flattened, see [`flatten`][mlnotes_jax.nets.mlp.flatten]. Kernels are the
        transposes of PyTorch's `weight`. An affine layer keeps its bias in front of a norm, as
        `torch.nn.Sequential` of the default layers does, though batch norm cancels it.

    Reference: He, Zhang, Ren and Sun, *Delving Deep into Rectifiers* (ICCV 2015).
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: Activation = activations.relu,
        norm: Norm | None = None,
        dropout: float = 0.0,
        kernel_init: Initializer | Literal["pytorch"] | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.widths = _widths(widths)
        if not callable(activation):
            raise TypeError(f"activation must be a function, got {type(activation).__name__}")
        _checks.one_of("norm", norm, (None, "batch", "layer"))
        if isinstance(dropout, bool) or not isinstance(dropout, int | float):
            raise TypeError(f"dropout must be a Python number, got {type(dropout).__name__}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout, the probability to drop, must be in [0, 1), got {dropout}")
        self.activation = activation
        hidden = self.widths[1:-1]
        self.layers = nnx.List(
            [
                _linear(inputs, outputs, kernel_init, param_dtype, rngs)
                for inputs, outputs in itertools.pairwise(self.widths)
            ]
        )
        self.norms = nnx.List(
            [_norm(norm, width, param_dtype, rngs) for width in hidden] if norm else []
        )
        # After the parameters, so that `nnx.Rngs(0)` draws the same ones with and without dropout.
        self.dropouts = nnx.List([Dropout(dropout, rngs=rngs) for _ in hidden] if dropout else [])

    def __call__(self, x: Float[ArrayLike, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Outputs of the last layer.

        Args:
            x: A batch of inputs, shape `(n, d_0)`; of pictures, `(n, height, width)` or
                `(n, height, width, channels)`; or one input, `(d_0,)`.

        Returns:
            Shape `(n, d_L)`, or `(d_L,)`.

        Raises:
            ValueError: `x` does not have $d_0$ features, or looks like NCHW.
            TypeError: `x` is not numeric.
        """
        z = flatten(x, self.widths[0])
        for i, layer in enumerate(self.layers[:-1]):
            z = layer(z)
            if self.norms:
                z = self.norms[i](z)
            z = self.activation(z)
            if self.dropouts:
                z = self.dropouts[i](z)
        return self.layers[-1](z)


def notes_mlp(
    *,
    kernel_init: Initializer | Literal["pytorch"] | None = None,
    rngs: nnx.Rngs,
) -> MLP:
    """The notes' network, 784-512-256-128-64-10 with ReLU: 575 050 parameters.

    Args:
        kernel_init: As in [`MLP`][mlnotes_jax.nets.mlp.MLP]; `"pytorch"` is what the notes' code
            starts from.
        rngs: For the parameters.

    Returns:
        The network.

    Example:
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import mlp
        >>> net = mlp.notes_mlp(rngs=nnx.Rngs(0))
        >>> net.widths, mlp.num_parameters(net.widths)
        ((784, 512, 256, 128, 64, 10), 575050)
    """
    return MLP(NOTES_WIDTHS, kernel_init=kernel_init, rngs=rngs)


def num_parameters(widths: Sequence[int], *, norm: Norm | None = None) -> int:
    r"""Count the parameters, $\sum_l (d_{l-1} + 1)\, d_l$, and $2 d_l$ for each norm.

    Args:
        widths: $d_0, \dots, d_L$.
        norm: As in [`MLP`][mlnotes_jax.nets.mlp.MLP]; both kinds have a scale and a shift for each
            hidden unit. (Running statistics are not parameters.)

    Returns:
        The count.

    Raises:
        ValueError: `widths` are fewer than two or not positive, or `norm` is unknown.
        TypeError: A width is not an integer.

    Example:
        >>> from mlnotes_jax.nets import mlp
        >>> mlp.num_parameters((2, 3, 1)), mlp.num_parameters((2, 3, 1), norm="batch")
        (13, 19)
    """
    widths = _widths(widths)
    _checks.one_of("norm", norm, (None, "batch", "layer"))
    affine = sum((i + 1) * o for i, o in itertools.pairwise(widths))
    return affine + (2 * sum(widths[1:-1]) if norm else 0)


def flatten(x: ArrayLike, num_features: int) -> Float[Array, "*batch features"]:
    """Turn a batch of pictures into rows, in the order of the memory.

    Pixel `(i, j)` of channel `c` becomes column `(i * width + j) * channels + c`. All pixels are
    kept, but which were neighbours is forgotten: a fixed permutation of the pixels would change
    nothing for a fully connected network.

    Args:
        x: Shape `(n, ...)` whose other axes have `num_features` elements; or `(num_features,)`, one
            input, returned as it is. Integers are promoted to floats, and not scaled.
        num_features: What the network takes.

    Returns:
        Shape `(n, num_features)`, or `(num_features,)`.

    Raises:
        ValueError: The number of features is another, or a batch of pictures has its channels in
            front (NCHW): its columns would come in another order.
        TypeError: `x` is not numeric.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import mlp
        >>> mlp.flatten(jnp.zeros((5, 28, 28)), 784).shape
        (5, 784)
    """
    x = _checks.floating("x", x)
    # Not (n, 3, 3, 512), which a convolutional network may give.
    if x.ndim == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) > 4:
        n, c, h, w = x.shape
        raise ValueError(
            f"x must be NHWC, (n, height, width, channels), got {x.shape}, which looks like NCHW: "
            f"use jnp.transpose(x, (0, 2, 3, 1)), which gives {(n, h, w, c)}"
        )
    if x.ndim == 0 or math.prod(x.shape[1:] if x.ndim > 1 else x.shape) != num_features:
        one = x.ndim > 1 and x.size == num_features
        hint = "; for one picture, add a batch axis: x[None]" if one else ""
        raise ValueError(
            f"x must have {num_features} features, as (n, {num_features}), ({num_features},) or "
            f"pictures of as many pixels (n, height, width[, channels]), got shape {x.shape}{hint}"
        )
    return x if x.ndim == 1 else x.reshape(len(x), num_features)


def weights(model: MLP) -> list[tuple[Array, Array]]:
    """Read the affine layers of a network, for `forward`.

    Args:
        model: A network; norms and dropout are not part of the answer.

    Returns:
        For each layer its kernel `(inputs, outputs)` and bias `(outputs,)`.

    Raises:
        TypeError: `model` is not an `MLP`.

    Example:
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import mlp
        >>> [k.shape for k, b in mlp.weights(mlp.MLP((3, 5, 2), rngs=nnx.Rngs(0)))]
        [(3, 5), (5, 2)]
    """
    if not isinstance(model, MLP):
        raise TypeError(f"model must be an MLP, got {type(model).__name__}")
    pairs = []
    for layer in model.layers:
        assert layer.bias is not None
        pairs.append((layer.kernel[...], layer.bias[...]))
    return pairs


# --- Depth against width, by construction ---------------------------------------------------------


def tent(depth: int) -> list[tuple[Array, Array]]:
    r"""Weights of a ReLU network that folds $[0, 1]$ `depth` times: a saw with $2^{k-1}$ teeth.

    One fold is the tent $t(x) = 2\,\mathrm{relu}(x) - 4\,\mathrm{relu}(x - \tfrac12)$, two units.
    The composition $t \circ \dots \circ t$ of $k$ tents has $2^k$ linear pieces on $[0, 1]$, from
    $k$ hidden layers of two units and $6k + 1$ parameters.

    Args:
        depth: $k$, the hidden layers, at least 1; static.

    Returns:
        Weights for [`forward`][mlnotes_jax.nets.mlp.forward], widths 1-2-…-2-1. In float32 the
        network is exact at all $x = i / 2^k$, as long as $k \le 24$.

    Raises:
        ValueError: `depth` is less than 1.
        TypeError: `depth` is not an integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import mlp
        >>> print(mlp.forward(mlp.tent(2), jnp.linspace(0.0, 1.0, 5).reshape(5, 1)).ravel())
        [0. 1. 0. 1. 0.]

    Reference: Telgarsky, *Benefits of depth in neural networks* (COLT 2016), section 3.
    """
    _checks.positive_int("depth", depth)
    bias = jnp.array([0.0, -0.5])
    fold = jnp.array([[2.0, 2.0], [-4.0, -4.0]])  # t of the layer before, once for each unit
    first = (jnp.ones((1, 2)), bias)
    return [first, *[(fold, bias)] * (depth - 1), (fold[:, :1], jnp.zeros(1))]


def parity_wide(num_bits: int) -> list[tuple[Array, Array]]:
    r"""Weights of one hidden layer that computes the parity of $n$ bits with $n$ units.

    Parity depends on $s = \sum_i x_i$ alone, and $\mathrm{relu}(s) - 2\,\mathrm{relu}(s - 1) +
    2\,\mathrm{relu}(s - 2) - \dots$ goes 0, 1, 0, 1, … at $s = 0, 1, 2, 3, \dots$ It has
    $(n + 1)^2$ parameters.

    Args:
        num_bits: $n$, at least 1; static.

    Returns:
        Weights for [`forward`][mlnotes_jax.nets.mlp.forward], widths n-n-1; inputs are 0 or 1.

    Raises:
        ValueError: `num_bits` is less than 1.
        TypeError: `num_bits` is not an integer.

    Example:
        >>> from mlnotes_jax.nets import mlp
        >>> print(mlp.forward(mlp.parity_wide(3), [[1, 0, 0], [1, 0, 1], [1, 1, 1]]).ravel())
        [1. 0. 1.]
    """
    _checks.positive_int("num_bits", num_bits)
    signs = np.where(np.arange(num_bits) % 2 == 0, 2.0, -2.0)
    signs[0] = 1.0
    bias = -jnp.arange(num_bits, dtype=jnp.result_type(float))
    return [
        (jnp.ones((num_bits, num_bits)), bias),
        (jnp.asarray(signs, bias.dtype).reshape(num_bits, 1), jnp.zeros(1)),
    ]


def parity_deep(num_bits: int) -> list[tuple[Array, Array]]:
    r"""Weights of a deep network that computes the parity of $n$ bits: the saw of `tent`.

    With $k = \lceil \log_2 n \rceil$ folds (at least one), the saw is 0 at even and 1 at odd
    multiples of $2^{-k}$: so parity is the saw at $2^{-k} \sum_i x_i$. $k$ hidden layers of two
    units, $2n + 6k - 1$ parameters.

    Args:
        num_bits: $n$, at least 1; static.

    Returns:
        Weights for [`forward`][mlnotes_jax.nets.mlp.forward], widths n-2-…-2-1; inputs are 0 or 1.

    Raises:
        ValueError: `num_bits` is less than 1.
        TypeError: `num_bits` is not an integer.

    Example:
        >>> from mlnotes_jax.nets import mlp
        >>> print(mlp.forward(mlp.parity_deep(3), [[1, 0, 0], [1, 0, 1], [1, 1, 1]]).ravel())
        [1. 0. 1.]
    """
    _checks.positive_int("num_bits", num_bits)
    depth = max(1, math.ceil(math.log2(num_bits)))
    (kernel, bias), *rest = tent(depth)
    return [(jnp.tile(kernel, (num_bits, 1)) * 0.5**depth, bias), *rest]


def breakpoints(
    weights: Weights, *, low: float = 0.0, high: float = 1.0
) -> Float[np.ndarray, " breaks"]:
    """Where a ReLU network of one input bends, exactly, layer by layer.

    Between two neighbouring bends of what a layer receives, each of its units is a straight line
    before the ReLU, and so has at most one zero there. A bend that the next layers flatten is left
    out. Runs on the host, in double precision.

    Args:
        weights: Of a network with one input and one output, for `forward` with ReLU.
        low: Left end of the interval.
        high: Right end.

    Returns:
        The places strictly inside the interval, ascending; the network has one more linear piece
        there.

    Raises:
        ValueError: The network has not one input and one output, or `low` is not below `high`.

    Example:
        >>> from mlnotes_jax.nets import mlp
        >>> print(mlp.breakpoints(mlp.tent(2)))
        [0.25 0.5  0.75]
    """
    pairs = [(np.asarray(k, np.float64), np.asarray(b, np.float64)) for k, b in weights]
    if not pairs or pairs[0][0].shape[0] != 1 or pairs[-1][0].shape[1] != 1:
        shapes = [k.shape for k, _ in pairs]
        raise ValueError(f"weights must be of one input and one output, got kernels {shapes}")
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
    at = np.array([low, high], np.float64)  # the bends so far, with both ends
    values = at[:, None]
    for kernel, bias in pairs[:-1]:
        before = values @ kernel + bias
        left, right = before[:-1], before[1:]
        piece, unit = np.nonzero(left * right < 0)
        a, b = left[piece, unit], right[piece, unit]
        share = a / (a - b)  # in (0, 1): where the line crosses zero
        zeros = at[piece] + share * (at[piece + 1] - at[piece])
        # The same zero of two units may come twice, a rounding apart.
        new = np.unique(np.concatenate([at, zeros]))
        new = new[np.concatenate([[True], np.diff(new) > 1e-13 * max(abs(low), abs(high))])]
        line = np.stack([np.interp(new, at, column) for column in before.T], axis=1)
        at, values = new, np.maximum(line, 0)
    kernel, bias = pairs[-1]
    output = (values @ kernel + bias)[:, 0]
    slopes = np.diff(output) / np.diff(at)
    bends = np.abs(np.diff(slopes)) > 1e-9 * max(np.abs(slopes).max(), 1e-300)
    return at[1:-1][bends]


# --- Helpers --------------------------------------------------------------------------------------


def _affine(x: Array, kernel: ArrayLike, bias: ArrayLike) -> Array:
    kernel, bias = jnp.asarray(kernel), jnp.asarray(bias)
    return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


def _check_weights(weights: Weights, x: Array) -> None:
    if not len(weights):
        raise ValueError("weights must hold at least one layer, got none")
    features = x.shape[-1:]
    for i, (kernel, bias) in enumerate(weights):
        k, b = np.shape(kernel), np.shape(bias)
        if len(k) != 2 or k[:1] != features or b != k[1:]:
            raise ValueError(
                f"layer {i} of weights must have a kernel (inputs, outputs) for inputs of shape "
                f"(..., {', '.join(map(str, features))}) and a bias (outputs,), got {k} and {b}"
            )
        features = k[1:]


def _widths(widths: Sequence[int]) -> tuple[int, ...]:
    widths = tuple(widths)
    if len(widths) < 2:
        raise ValueError(f"widths must hold those of the input and the output, got {widths}")
    for i, width in enumerate(widths):
        _checks.positive_int(f"widths[{i}]", width)
    return tuple(map(int, widths))


def _linear(
    inputs: int,
    outputs: int,
    kernel_init: Initializer | Literal["pytorch"] | None,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """An affine layer, initialised as asked for."""
    kernel, bias = _initial.of_layer(kernel_init, inputs)
    return nnx.Linear(
        inputs, outputs, kernel_init=kernel, bias_init=bias, param_dtype=dtype, rngs=rngs
    )


def _norm(norm: Norm, width: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
    kinds = {"batch": normalization.BatchNorm, "layer": normalization.LayerNorm}
    return kinds[norm](width, param_dtype=dtype, rngs=rngs)
