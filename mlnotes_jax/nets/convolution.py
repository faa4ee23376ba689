r"""Convolution and pooling, their gradients, sizes and costs.

One filter with a window of $F \times F$ taps, slid over a picture $x$ with steps of $S$, gives

$$y_{pqo} = b_o + \sum_{i=0}^{F-1} \sum_{j=0}^{F-1} \sum_c
  w_{ijco}\, \bar x_{Sp + Di,\, Sq + Dj,\, c}, \qquad
  N' = \Big\lfloor \frac{N - F' + 2P}{S} \Big\rfloor + 1, \quad F' = D(F - 1) + 1,$$

where $\bar x$ is $x$ with $P$ zeros on every side, $D$ the dilation, $N$ the side of the picture
and $N'$ that of the result. (In signal processing this is a cross-correlation; a convolution
reverses the window. Networks learn the window, so the name does not matter.)

Layouts: channels last. Pictures are `(..., height, width, channels)`, kernels
`(*window, in / groups, out)`; everything works for sequences and volumes, too.

Reference: Dumoulin and Visin, *A guide to convolution arithmetic for deep learning* (2016).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Shaped

from mlnotes_jax import _checks
from mlnotes_jax.nets import _conv_gradients, _initial, _pooling, _windows
from mlnotes_jax.nets._initial import Initializer
from mlnotes_jax.nets._windows import Padding, Size

__all__ = [
    "Conv",
    "Cost",
    "Layer",
    "Memory",
    "Reach",
    "TransposedConv",
    "average_pool",
    "conv",
    "costs",
    "global_average_pool",
    "max_pool",
    "memory",
    "min_pool",
    "output_size",
    "pad",
    "patches",
    "receptive_field",
    "require_channels_last",
    "transposed_conv",
    "transposed_output_size",
]

Gradient = Literal["auto", "jax"]
Mode = Literal["zeros", "reflect", "replicate", "circular"]

_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


class Layer(NamedTuple):
    """One layer of a stack, as far as sizes and costs go.

    Attributes:
        kind: `"conv"`, `"pool"`, `"norm"` (two parameters for each channel), `"activation"`, or
            `"dense"` (fully connected; what comes before is flattened).
        features: Channels, or units, that come out of `"conv"` and `"dense"`; the others keep
            what they get.
        window: Taps F along each axis, of `"conv"` and `"pool"`.
        stride: Steps S; None is 1 for `"conv"` and the window for `"pool"`.
        padding: As in `conv`.
        dilation: Distance D between taps.
        groups: Parts that the channels are cut into.
        use_bias: Whether `"conv"` and `"dense"` add a bias.
    """

    kind: Literal["conv", "pool", "norm", "activation", "dense"]
    features: int | None = None
    window: Size = 1
    stride: Size | None = None
    padding: Padding = 0
    dilation: Size = 1
    groups: int = 1
    use_bias: bool = True


class Reach(NamedTuple):
    """How much of the input one output sees.

    Attributes:
        size: Side of the receptive field along each axis, in pixels of the input.
        jump: How far the fields of two neighbouring outputs lie apart.
    """

    size: tuple[int, ...]
    jump: tuple[int, ...]


class Cost(NamedTuple):
    """What one layer of a stack makes of one example, and what it takes.

    Attributes:
        layer: The layer.
        shape: Of what comes out: `(height, width, channels)`, or `(units,)` after `"dense"`.
        receptive_field: Side along each axis, in pixels of the input; may reach into the padding.
        jump: Distance of the fields of two neighbouring outputs.
        start: First pixel of the first output's field; negative where it lies in the padding.
        parameters: Numbers that are learned.
        multiply_adds: Products, each added to a sum; the ones with a zero of the padding count,
            biases do not.
        activations: Values that come out.
    """

    layer: Layer
    shape: tuple[int, ...]
    receptive_field: tuple[int, ...]
    jump: tuple[int, ...]
    start: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activations: int


class Memory(NamedTuple):
    """Bytes, in the three parts that the notes name.

    Attributes:
        activations: Of all layers for a batch, and as much again for their gradients.
        parameters: Parameters, their gradients and the optimizer's copies.
        rest: The batch of inputs.
        total: All of it. A compiler may take less (it keeps only what is needed, and fuses
            layers) or more (scratch space of a convolution).
    """

    activations: int
    parameters: int
    rest: int
    total: int


# --- Convolution ----------------------------------------------------------------------------------


def conv(
    x: Shaped[ArrayLike, "*in_shape in"],
    kernel: Float[ArrayLike, "*window in_per_group out"],
    *,
    bias: Float[ArrayLike, " out"] | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    padding_mode: Mode = "zeros",
    gradient: Gradient = "auto",
) -> Float[Array, "*out_shape out"]:
    r"""Slide a window over `x` and take a weighted sum at every stop.

    The number of axes of space is that of the kernel less two: two for pictures. With `groups=g`
    the channels are cut into $g$ parts that do not see each other; `groups=in` is a *depthwise*
    convolution, with one window for each channel. A window of 1 mixes channels and nothing else.

    On a CPU the gradient is our own: equal to JAX's up to rounding, and fast inside `lax.scan`,
    where JAX's is not. Other devices get JAX's own. It can be differentiated again, forwards
    (`jax.jvp` of `jax.grad`, the Hessian-vector product) or backwards. What it does not allow is
    forward mode in the first place (`jax.jvp`, `jax.jacfwd`, `jax.linearize` of `conv` itself): for
    that, pass `gradient="jax"`.

    Args:
        x: Inputs, shape `(..., height, width, in)`; any number of batch axes, or none. Integers are
            promoted.
        kernel: Weights $w$, shape `(*window, in / groups, out)`, of the dtype of `x`.
        bias: $b$, shape `(out,)`, or None for none.
        stride: S, one number or one for each axis; static, as all that follow.
        padding: P: one number; or for each axis a number or a pair (before, behind); or `"valid"`
            (none) or `"same"` (N' = ⌈N / S⌉, the odd one behind, as in TensorFlow).
        dilation: D, the distance of neighbouring taps.
        groups: Parts that the channels are cut into; divides `in` and `out`.
        padding_mode: What the padding holds; see `pad`.
        gradient: `"auto"`, or `"jax"` for JAX's own on every device.

    Returns:
        $y$, shape `(..., height', width', out)`; see `output_size`.

    Raises:
        ValueError: Shapes do not fit, a number is out of range, or nothing is left of `x`.
            `x` with channels first and a kernel in PyTorch's layout are recognised and said.
        TypeError: `x` or `kernel` is not real, or they differ in dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import convolution as cv
        >>> step = jnp.array([0.0, 0.0, 1.0, 1.0]).reshape(1, 4, 1)
        >>> edge = jnp.array([-1.0, 1.0]).reshape(2, 1, 1)
        >>> cv.conv(step, edge).ravel().tolist()
        [0.0, 1.0, 0.0]

    Note:
        `torch.nn.functional.conv2d` takes NCHW and kernels `(out, in / groups, height, width)`:
        `jnp.transpose(weight, (2, 3, 1, 0))`. Its `"same"` refuses a stride.

    Reference:
        LeCun and others, *Gradient-Based Learning Applied to Document Recognition* (1998), section
        II.
    """
    x, kernel = _pair(x, kernel)
    rank = kernel.ndim - 2
    window = kernel.shape[:-2]
    _check_kernel(kernel, groups)
    _check_channels_of("in", x, kernel, kernel.shape[-2] * groups, kernel.shape[1] * groups)
    _checks.one_of("gradient", gradient, ("auto", "jax"))
    _checks.one_of("padding_mode", padding_mode, tuple(_MODES))
    geometry = _geometry(x, window, stride, padding, dilation, groups)
    if padding_mode != "zeros":
        x = pad(x, geometry.pads, mode=padding_mode)
        geometry = geometry._replace(pads=((0, 0),) * rank)
    batch, x = _flatten_batch(x, rank)
    slide = _conv_gradients.conv if gradient == "auto" else _conv_gradients.forward
    return _finish(slide(x, kernel, geometry), bias, batch)


def transposed_conv(
    x: Shaped[ArrayLike, "*in_shape in"],
    kernel: Float[ArrayLike, "*window out_per_group in"],
    *,
    bias: Float[ArrayLike, " out"] | None = None,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    gradient: Gradient = "auto",
) -> Float[Array, "*out_shape out"]:
    r"""The adjoint of a convolution: every input paints the window into the output.

    With $A$ the linear map `conv(·, kernel, ...)` it is $A^\top$, without a bias:
    $\langle A u, v \rangle = \langle u, A^\top v \rangle$. So it is the gradient of `conv` with
    respect to its input, used as a layer, and leads from small pictures to large ones. It is no
    inverse.

    Args:
        x: Inputs, shape `(..., height, width, in)`.
        kernel: The kernel *of the convolution whose adjoint this is*, shape
            `(*window, out / groups, in)`: the first of its axes of channels is what comes out here.
        bias: Shape `(out,)`, or None for none.
        stride: S of that convolution: the factor by which the picture grows, about.
        padding: P of that convolution: what is cut off on every side; numbers or pairs, no names.
        output_padding: A convolution with stride S makes the same size from S sizes; 0 is the
            smallest, up to S - 1 more is added behind.
        dilation: D of that convolution.
        groups: As in `conv`.
        gradient: As in `conv`.

    Returns:
        Shape `(..., height', width', out)`; see `transposed_output_size`.

    Raises:
        ValueError: As in `conv`; or `output_padding` is not less than the stride.
        TypeError: As in `conv`.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import convolution as cv
        >>> x = jnp.array([1.0, 10.0]).reshape(1, 2, 1)
        >>> window = jnp.array([1.0, 2.0, 3.0]).reshape(3, 1, 1)
        >>> cv.transposed_conv(x, window, stride=2).ravel().tolist()
        [1.0, 2.0, 13.0, 20.0, 30.0]

    Note:
        As `torch.nn.functional.conv_transpose2d`, whose weight is `(in, out / groups, height,
        width)`: `jnp.transpose(weight, (2, 3, 1, 0))`, the same permutation as for `conv`. There
        `output_padding` may also be less than the dilation. `jax.lax.conv_transpose` pads
        otherwise.

    Reference:
        Zeiler, Krishnan, Taylor and Fergus, *Deconvolutional Networks* (2010); Dumoulin and Visin
        (2016), chapter 4.
    """
    x, kernel = _pair(x, kernel)
    rank = kernel.ndim - 2
    window = kernel.shape[:-2]
    _check_kernel(kernel, groups)
    _check_channels_of("out", x, kernel, kernel.shape[-1], kernel.shape[0])
    _checks.one_of("gradient", gradient, ("auto", "jax"))
    space = x.shape[-rank - 1 : -1]
    out = transposed_output_size(
        space,
        window,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
    )
    geometry = _conv_gradients.Geometry(
        _windows.per_axis("stride", stride, rank),
        _windows.given_pads(padding, rank),
        _windows.per_axis("dilation", dilation, rank),
        groups,
    )
    batch, x = _flatten_batch(x, rank)
    if gradient == "auto":
        y = _conv_gradients.transposed(x, kernel, tuple(out), geometry)
    else:
        inputs = jax.ShapeDtypeStruct((x.shape[0], *out, kernel.shape[-2] * groups), x.dtype)
        y = jax.linear_transpose(lambda u: _conv_gradients.forward(u, kernel, geometry), inputs)(x)[
            0
        ]
    return _finish(y, bias, batch)


def pad(
    x: Shaped[ArrayLike, "*shape channels"],
    padding: Padding,
    *,
    mode: Mode = "zeros",
    rank: int = 2,
) -> Float[Array, "*out_shape channels"]:
    """Add a frame around pictures.

    Args:
        x: Shape `(..., height, width, channels)`.
        padding: One number; or for each axis a number or a pair (before, behind).
        mode: What the frame holds: `"zeros"`; `"reflect"`, the picture mirrored at its last pixels,
            which are not repeated; `"replicate"`, the last pixels; `"circular"`, the other end.
        rank: Axes of space, where `padding` is one number; otherwise as many as `padding` has.

    Returns:
        The framed pictures.

    Raises:
        ValueError: `x` has too few axes, `padding` is negative, or a mirrored or circular frame is
            wider than the picture allows.
        TypeError: `x` is not real, or `padding` is no integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import convolution as cv
        >>> row = jnp.array([1.0, 2.0, 3.0]).reshape(3, 1)
        >>> [cv.pad(row, 2, mode=m, rank=1).ravel().astype(int).tolist() for m in
        ...  ("zeros", "reflect", "replicate", "circular")] # doctest: +NORMALIZE_WHITESPACE
        [[0, 0, 1, 2, 3, 0, 0], [3, 2, 1, 2, 3, 2, 1],
         [1, 1, 1, 2, 3, 3, 3], [2, 3, 1, 2, 3, 1, 2]]

    Note:
        The modes are named as in PyTorch.
    """
    x = _checks.floating("x", x)
    if isinstance(padding, Sequence) and not isinstance(padding, str):
        rank = len(padding)
    _checks.positive_int("rank", rank)
    _checks.one_of("mode", mode, tuple(_MODES))
    pads = _windows.given_pads(padding, rank)
    _windows.check_rank("x", x, rank)
    space = x.shape[-rank - 1 : -1]
    limits = {"reflect": [size - 1 for size in space], "circular": list(space)}
    for size, most, pair in zip(space, limits.get(mode, [math.inf] * rank), pads, strict=True):
        if max(pair) > most:
            raise ValueError(
                f"padding with mode {mode!r} must be at most {most} on an axis of {size}, "
                f"got {max(pair)}"
            )
    return jnp.pad(x, [(0, 0)] * (x.ndim - rank - 1) + [*pads, (0, 0)], mode=_MODES[mode])


def patches(
    x: Shaped[ArrayLike, "*shape channels"],
    window: Size,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
) -> Float[Array, "*out_shape taps"]:
    r"""What the window sees at every stop, as one row: *im2col*.

    A convolution is one matrix product with these rows,
    `patches(x, window, ...) @ kernel.reshape(-1, out)`, at the price of $\prod F$ times the memory.

    Args:
        x: Shape `(..., height, width, channels)`.
        window: Taps along each axis; one number means two axes of space.
        stride: As in `conv`.
        padding: As in `conv`.
        dilation: As in `conv`.

    Returns:
        Shape `(..., height', width', prod(window) * channels)`: taps in reading order, the channels
        of a tap side by side, which is the order of a kernel's entries.

    Raises:
        ValueError: As in `conv`.
        TypeError: `x` is not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import convolution as cv
        >>> cv.patches(jnp.arange(6.0).reshape(2, 3, 1), 2).tolist()
        [[[0.0, 1.0, 3.0, 4.0], [1.0, 2.0, 4.0, 5.0]]]

    Reference:
        Chellapilla, Puri and Simard, *High Performance Convolutional Neural Networks for Document
        Processing* (2006).
    """
    x = _checks.floating("x", x)
    taps = _windows.taps_of(window)
    _windows.check_rank("x", x, len(taps))
    geometry = _geometry(x, taps, stride, padding, dilation, 1)
    batch, x = _flatten_batch(x, len(taps))
    columns = list(_conv_gradients.shifts(x, taps, geometry))
    return _unflatten_batch(jnp.concatenate(columns, axis=-1), batch)


class Conv(nnx.Module):
    """A convolution with learned weights; the function is `conv`.

    Attributes:
        kernel: Param, shape `(*window, in_features / groups, out_features)`.
        bias: Param, shape `(out_features,)`, or None.
        in_features: Channels in.
        out_features: Channels out.
        stride: As in `conv`, and so are the others.
        padding: P.
        dilation: D.
        groups: Parts of the channels.
        padding_mode: What the padding holds.
        gradient: To change it in all layers of a model: `model.set_attributes(gradient="jax")`.

    Args:
        in_features: Channels in.
        out_features: Channels out.
        window: Taps F along each axis; one number means pictures, F by F.
        stride: As in `conv`, and so are the others.
        padding: P; default none.
        dilation: D.
        groups: Parts of the channels.
        use_bias: Whether there is a bias.
        padding_mode: What the padding holds.
        kernel_init: `(key, shape, dtype) -> kernel`. None is He: normal, of variance
            2 / fan-in with fan-in = prod(window) * in / groups; the bias starts at zero.
            `"pytorch"` draws kernel and bias uniformly from ±1 / sqrt(fan-in).
        gradient: `"auto"` or `"jax"`, as in `conv`.
        param_dtype: Of the parameters. `x` must have it, too.
        rngs: Where the weights come from: the stream `params`.

    Raises:
        ValueError: A number is out of range, or `groups` does not divide both channels.
        TypeError: A number is no integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import convolution as cv
        >>> layer = cv.Conv(3, 64, 3, padding=1, rngs=nnx.Rngs(0))
        >>> layer(jnp.zeros((8, 32, 32, 3))).shape
        (8, 32, 32, 64)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        window: Size,
        *,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        use_bias: bool = True,
        padding_mode: Mode = "zeros",
        kernel_init: Initializer | Literal["pytorch"] | None = None,
        gradient: Gradient = "auto",
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        taps = _windows.taps_of(window)
        _check_channels(in_features, out_features, groups)
        self.in_features, self.out_features = in_features, out_features
        self.stride = _windows.per_axis("stride", stride, len(taps))
        self.padding: Padding = (
            padding if isinstance(padding, str) else _windows.given_pads(padding, len(taps))
        )
        if isinstance(padding, str):
            _checks.one_of("padding", padding, ("same", "valid"))
        self.dilation = _windows.per_axis("dilation", dilation, len(taps))
        self.groups = groups
        _checks.one_of("padding_mode", padding_mode, tuple(_MODES))
        self.padding_mode: Mode = padding_mode
        _checks.one_of("gradient", gradient, ("auto", "jax"))
        self.gradient: Gradient = gradient
        shape = (*taps, in_features // groups, out_features)
        self.kernel, self.bias = _parameters(
            shape, math.prod(shape[:-1]), out_features, use_bias, kernel_init, param_dtype, rngs
        )

    def __call__(self, x: Shaped[ArrayLike, "*in_shape in"]) -> Float[Array, "*out_shape out"]:
        """Slide the windows over `x`, shape `(..., height, width, in_features)`."""
        return conv(
            x,
            self.kernel[...],
            bias=None if self.bias is None else self.bias[...],
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            padding_mode=self.padding_mode,
            gradient=self.gradient,
        )


class TransposedConv(nnx.Module):
    """A transposed convolution with learned weights; the function is `transposed_conv`.

    Attributes:
        kernel: Param, shape `(*window, out_features / groups, in_features)`.
        bias: Param, shape `(out_features,)`, or None.
        in_features: Channels in.
        out_features: Channels out.
        stride: As in `transposed_conv`, and so are the others.
        padding: P.
        output_padding: What is added behind.
        dilation: D.
        groups: Parts of the channels.
        gradient: As in `Conv`.

    Args:
        in_features: Channels in.
        out_features: Channels out.
        window: Taps F along each axis; one number means pictures, F by F.
        stride: As in `transposed_conv`, and so are the others.
        padding: P; default none.
        output_padding: What is added behind.
        dilation: D.
        groups: Parts of the channels.
        use_bias: Whether there is a bias.
        kernel_init: As in `Conv`, with fan-in = prod(window) * in / groups. (PyTorch, whose
            weight has its axes in another order here, takes the `out` channels for it; so does
            `"pytorch"`.)
        gradient: `"auto"` or `"jax"`, as in `conv`.
        param_dtype: Of the parameters. `x` must have it, too.
        rngs: Where the weights come from: the stream `params`.

    Raises:
        ValueError: A number is out of range, or `groups` does not divide both channels.
        TypeError: A number is no integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import convolution as cv
        >>> layer = cv.TransposedConv(64, 3, 4, stride=2, padding=1, rngs=nnx.Rngs(0))
        >>> layer(jnp.zeros((8, 16, 16, 64))).shape
        (8, 32, 32, 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        window: Size,
        *,
        stride: Size = 1,
        padding: int | Sequence[int | tuple[int, int]] = 0,
        output_padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        use_bias: bool = True,
        kernel_init: Initializer | Literal["pytorch"] | None = None,
        gradient: Gradient = "auto",
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        taps = _windows.taps_of(window)
        _check_channels(in_features, out_features, groups)
        self.in_features, self.out_features = in_features, out_features
        self.stride = _windows.per_axis("stride", stride, len(taps))
        self.padding = _windows.given_pads(padding, len(taps))
        self.output_padding = _windows.per_axis(
            "output_padding", output_padding, len(taps), least=0
        )
        self.dilation = _windows.per_axis("dilation", dilation, len(taps))
        self.groups = groups
        _checks.one_of("gradient", gradient, ("auto", "jax"))
        self.gradient: Gradient = gradient
        shape = (*taps, out_features // groups, in_features)
        # PyTorch counts the outputs, as the kernel's shape has them; He's rule wants the inputs.
        per_tap = shape[-2] if kernel_init == "pytorch" else in_features // groups
        fan = math.prod(taps) * per_tap
        self.kernel, self.bias = _parameters(
            shape, fan, out_features, use_bias, kernel_init, param_dtype, rngs
        )

    def __call__(self, x: Shaped[ArrayLike, "*in_shape in"]) -> Float[Array, "*out_shape out"]:
        """Enlarge `x`, shape `(..., height, width, in_features)`."""
        return transposed_conv(
            x,
            self.kernel[...],
            bias=None if self.bias is None else self.bias[...],
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
            groups=self.groups,
            gradient=self.gradient,
        )


# --- Pooling --------------------------------------------------------------------------------------


def max_pool(
    x: Shaped[ArrayLike, "*shape channels"],
    window: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
) -> Float[Array, "*out_shape channels"]:
    """The largest value that the window sees, channel by channel.

    Where several are equal the gradient goes to the first in reading order, and to it alone. NaN
    wins. All of autodiff works, forwards and backwards.

    Args:
        x: Shape `(..., height, width, channels)`; any number of batch axes, or none.
        window: F, one number (two axes of space) or one for each axis.
        stride: S; None is the window, so that windows do not overlap.
        padding: P, as in `conv`, less than the window. The frame never wins.

    Returns:
        Shape `(..., height', width', channels)`; see `output_size`.

    Raises:
        ValueError: A number is out of range, the padding is not less than the window, or nothing
            is left of `x`.
        TypeError: `x` is not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import convolution as cv
        >>> x = jnp.array([[1.0, 5.0, 2.0, 0.0], [3.0, 4.0, 7.0, 6.0]])[..., None]
        >>> cv.max_pool(x, 2).ravel().tolist()
        [5.0, 7.0]

    Note:
        As `torch.nn.functional.max_pool2d`, gradient included. JAX's own gradient of
        `lax.reduce_window` also picks one, and is slow on a CPU; that of `jnp.max` of a reshaped
        array shares the gradient among equals.
    """
    x, taps, geometry, batch = _pooling_arguments(x, window, stride, padding)
    pooled = _pooling.max_windows(x, taps, geometry.stride, geometry.pads)
    return _unflatten_batch(pooled, batch)


def min_pool(
    x: Shaped[ArrayLike, "*shape channels"],
    window: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
) -> Float[Array, "*out_shape channels"]:
    """The smallest value that the window sees: `-max_pool(-x)`, of which all else is true.

    Args:
        x: Shape `(..., height, width, channels)`.
        window: As in `max_pool`, and so are the others.
        stride: S.
        padding: P.

    Returns:
        Shape `(..., height', width', channels)`.

    Raises:
        ValueError: As in `max_pool`.
        TypeError: `x` is not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import convolution as cv
        >>> cv.min_pool(jnp.arange(4.0).reshape(2, 2, 1), 2).ravel().tolist()
        [0.0]
    """
    return -max_pool(-_checks.floating("x", x), window, stride=stride, padding=padding)


def average_pool(
    x: Shaped[ArrayLike, "*shape channels"],
    window: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    count_padding: bool = True,
) -> Float[Array, "*out_shape channels"]:
    """The mean of what the window sees, channel by channel.

    Args:
        x: Shape `(..., height, width, channels)`.
        window: As in `max_pool`, and so are the next two.
        stride: S.
        padding: P.
        count_padding: Whether the zeros of the frame count as values.

    Returns:
        Shape `(..., height', width', channels)`.

    Raises:
        ValueError: As in `max_pool`.
        TypeError: `x` is not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import convolution as cv
        >>> cv.average_pool(jnp.arange(4.0).reshape(2, 2, 1), 2).ravel().tolist()
        [1.5]

    Note:
        `count_padding` is `count_include_pad` of `torch.nn.functional.avg_pool2d`; Flax's
        `avg_pool` has the same default.
    """
    x, taps, geometry, batch = _pooling_arguments(x, window, stride, padding)
    dtype = x.dtype
    wide = x.astype(_conv_gradients.wide(dtype))
    total = _pooling.sum_windows(wide, taps, geometry.stride, geometry.pads)
    if count_padding or not any(map(any, geometry.pads)):
        mean = total / math.prod(taps)
    else:
        ones = jnp.ones((1, *x.shape[1:-1], 1), wide.dtype)
        count = _pooling.sum_windows(ones, taps, geometry.stride, geometry.pads)
        mean = total / jnp.broadcast_to(count, total.shape)
    return _unflatten_batch(mean.astype(dtype), batch)


def global_average_pool(
    x: Shaped[ArrayLike, "*shape channels"], *, rank: int = 2
) -> Float[Array, "*batch channels"]:
    """The mean of every channel over the whole picture.

    Args:
        x: Shape `(..., height, width, channels)`.
        rank: Axes of space.

    Returns:
        Shape `(..., channels)`.

    Raises:
        ValueError: `x` has too few axes, or an empty one.
        TypeError: `x` is not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import convolution as cv
        >>> cv.global_average_pool(jnp.arange(4.0).reshape(2, 2, 1)).tolist()
        [1.5]
    """
    x = _checks.floating("x", x)
    _checks.positive_int("rank", rank)
    _windows.check_rank("x", x, rank)
    if 0 in x.shape[-rank - 1 : -1]:
        raise ValueError(f"x must not be empty, got shape {x.shape}")
    axes = tuple(range(-rank - 1, -1))
    return x.astype(_conv_gradients.wide(x.dtype)).mean(axis=axes).astype(x.dtype)


# --- Sizes and costs ------------------------------------------------------------------------------


def output_size(
    size: Size,
    window: Size,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    strict: bool = False,
) -> Any:
    r"""How many stops a window makes: $\lfloor (N - F' + 2P) / S \rfloor + 1$, $F' = D(F-1) + 1$.

    Args:
        size: N, a number, or one for each axis.
        window: F.
        stride: S.
        padding: P, as in `conv`; for one axis also `((before, behind),)`.
        dilation: D.
        strict: Whether the division must have no remainder, as the notes have it. Frameworks floor:
            the last pixels are not seen.

    Returns:
        N', a number, or a tuple as `size`.

    Raises:
        ValueError: A number is out of range; the result would be less than one; or, with `strict`,
            the stride does not fit. The message shows the formula with its numbers.
        TypeError: A number is no integer.

    Example:
        >>> from mlnotes_jax.nets import convolution as cv
        >>> cv.output_size(128, 3, padding=1), cv.output_size((7, 8), 3, stride=2)
        (128, (3, 3))
        >>> cv.output_size(8, 3, stride=2, strict=True)
        ... # doctest: +NORMALIZE_WHITESPACE
        Traceback (most recent call last):
            ...
        ValueError: stride 2 does not fit: (N - F + 2P)/S + 1 = (8 - 3 + 0)/2 + 1 = 3.5 is no
        integer
    """
    single = isinstance(size, int | np.integer)
    sizes = _sizes(size)
    rank = len(sizes)
    taps = _windows.per_axis("window", window, rank)
    strides = _windows.per_axis("stride", stride, rank)
    dilations = _windows.per_axis("dilation", dilation, rank)
    pads = _windows.pads_of(padding, sizes, taps, strides, dilations)
    out = tuple(
        _windows.stops(*numbers, strict=strict)
        for numbers in zip(sizes, taps, strides, pads, dilations, strict=True)
    )
    return out[0] if single else out


def transposed_output_size(
    size: Size,
    window: Size,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
) -> Any:
    r"""The size that a transposed convolution makes: $S(N - 1) + F' - 2P$ + `output_padding`.

    It solves `output_size` for the input, with the remainder as `output_padding`.

    Args:
        size: N, a number, or one for each axis.
        window: F.
        stride: S.
        padding: P, numbers or pairs.
        output_padding: Added behind, less than the stride.
        dilation: D.

    Returns:
        A number, or a tuple as `size`.

    Raises:
        ValueError: A number is out of range, or the result would be less than one.
        TypeError: A number is no integer.

    Example:
        >>> from mlnotes_jax.nets import convolution as cv
        >>> cv.transposed_output_size(16, 4, stride=2, padding=1)
        32
        >>> cv.output_size(32, 4, stride=2, padding=1)
        16
    """
    single = isinstance(size, int | np.integer)
    sizes = _sizes(size)
    rank = len(sizes)
    extra = _windows.per_axis("output_padding", output_padding, rank, least=0)
    out = []
    for n, taps, step, (low, high), dilate, more in zip(
        sizes,
        _windows.per_axis("window", window, rank),
        _windows.per_axis("stride", stride, rank),
        _windows.given_pads(padding, rank),
        _windows.per_axis("dilation", dilation, rank),
        extra,
        strict=True,
    ):
        if more >= step:
            raise ValueError(f"output_padding must be less than the stride, {step}, got {more}")
        result = step * (n - 1) + dilate * (taps - 1) + 1 - low - high + more
        if result < 1:
            raise ValueError(
                "nothing is left: S(N - 1) + D(F - 1) + 1 - 2P + output_padding = "
                f"{step} * {n - 1} + {dilate} * {taps - 1} + 1 - {low + high} + {more} = {result}"
            )
        out.append(result)
    return out[0] if single else tuple(out)


def receptive_field(layers: Sequence[Layer], *, rank: int = 2) -> Reach:
    r"""How far the last layer of a stack sees: $R_l = R_{l-1} + D_l (F_l - 1) J_{l-1}$.

    The jump grows with the strides: $J_l = S_l J_{l-1}$; both begin at 1.

    Args:
        layers: From the input on; without `"dense"`, which sees everything.
        rank: Axes of space.

    Returns:
        Size and jump along each axis.

    Raises:
        ValueError: A number of a layer is out of range, or a layer is `"dense"`.
        TypeError: A number is no integer.

    Example:
        >>> from mlnotes_jax.nets import convolution as cv
        >>> cv.receptive_field([cv.Layer("conv", 64, 3)] * 3)
        Reach(size=(7, 7), jump=(1, 1))

    Reference:
        Araujo, Norris and Sim, *Computing Receptive Fields of Convolutional Neural Networks*
        (2019).
    """
    _checks.positive_int("rank", rank)
    reach = Reach((1,) * rank, (1,) * rank)
    for layer in layers:
        _checks.one_of("kind", layer.kind, ("conv", "pool", "norm", "activation"))
        taps, stride, dilation = _slide_of(layer, rank)
        reach = _further(reach, taps, stride, dilation)
    return reach


def costs(
    layers: Sequence[Layer], shape: Sequence[int], *, strict: bool = False
) -> tuple[Cost, ...]:
    r"""Sizes, receptive field, parameters and work of a stack, layer by layer, for one example.

    A convolution has $F^2 \frac{C}{g} C'$ weights (and $C'$ biases) and uses each once for every
    stop: $N'^2 F^2 \frac{C}{g} C'$ products.

    Args:
        layers: From the input on.
        shape: Of one input: `(height, width, channels)`.
        strict: As in `output_size`.

    Returns:
        One row for each layer.

    Raises:
        ValueError: A number of a layer is out of range, does not fit, or leaves nothing; the
            message says which layer.
        TypeError: A number is no integer.

    Example:
        >>> from mlnotes_jax.nets import convolution as cv
        >>> stack = [cv.Layer("conv", 64, 3, padding=1), cv.Layer("pool", window=2)]
        >>> for row in cv.costs(stack, (32, 32, 3)):
        ...     row.shape, row.receptive_field[0], row.parameters, row.multiply_adds
        ((32, 32, 64), 3, 1792, 1769472)
        ((16, 16, 64), 4, 0, 0)
    """
    shape = tuple(shape)
    if len(shape) < 2:
        raise ValueError(f"shape must be (height, width, channels) or the like, got {shape}")
    for each in shape:
        _checks.positive_int("shape", each)
    rank = len(shape) - 1
    reach, start = Reach((1,) * rank, (1,) * rank), (0,) * rank
    rows: list[Cost] = []
    for number, layer in enumerate(layers):
        try:
            row = _cost(layer, shape, reach, start, strict)
        except (TypeError, ValueError) as error:
            raise type(error)(f"layers[{number}], {layer.kind!r}: {error}") from None
        rows.append(row)
        shape, start = row.shape, row.start
        reach = Reach(row.receptive_field, row.jump)
    return tuple(rows)


def memory(
    layers: Sequence[Layer],
    shape: Sequence[int],
    *,
    batch_size: int = 1,
    bytes_per_value: int = 4,
    optimizer_slots: int = 1,
    training: bool = True,
) -> Memory:
    r"""Estimate the memory of a stack: activations; parameters and optimizer; the rest.

    In training every activation is kept for the way back, and has a gradient of its size; a
    parameter has its gradient and `optimizer_slots` copies more. Otherwise two neighbouring layers
    are all that must be there at once.

    Args:
        layers: From the input on.
        shape: Of one input: `(height, width, channels)`.
        batch_size: Examples at a time.
        bytes_per_value: 4 for float32, 2 for bfloat16, 8 for float64.
        optimizer_slots: What the optimizer keeps for each parameter: 0 for plain descent, 1 with
            momentum, 2 for Adam.
        training: Whether there is a way back.

    Returns:
        Bytes.

    Raises:
        ValueError: As in `costs`, or a number is out of range.
        TypeError: A number is no integer.

    Example:
        The notes' three layers on a picture of 224 × 224 pixels, in MB of $2^{20}$ bytes:

        >>> from mlnotes_jax.nets import convolution as cv
        >>> estimate = cv.memory([cv.Layer("conv", 64, 3, padding=1)] * 3, (224, 224, 3))
        >>> round(estimate.activations / 2**20, 1)
        73.5
    """
    _checks.positive_int("batch_size", batch_size)
    _checks.positive_int("bytes_per_value", bytes_per_value)
    _checks.positive_int("optimizer_slots", optimizer_slots, least=0)
    rows = costs(layers, shape)
    sizes = [math.prod(shape), *(row.activations for row in rows)]
    parameters = sum(row.parameters for row in rows)
    if training:
        activations = 2 * sum(sizes[1:]) * batch_size * bytes_per_value
        held = (2 + optimizer_slots) * parameters * bytes_per_value
    else:
        # The input is counted as the rest.
        pairs = [sizes[1:2], *([a, b] for a, b in itertools.pairwise(sizes[1:]))]
        activations = max(map(sum, pairs)) * batch_size * bytes_per_value
        held = parameters * bytes_per_value
    rest = sizes[0] * batch_size * bytes_per_value
    return Memory(activations, held, rest, activations + held + rest)


# --- Checks ---------------------------------------------------------------------------------------


def require_channels_last(name: str, x: Array, channels: int, *, rank: int = 2) -> None:
    """Raise unless the last axis of `x` holds the channels; say so where they come first.

    Args:
        name: The argument's name, for the message.
        x: Supposed to be `(..., height, width, channels)`.
        channels: How many there must be.
        rank: Axes of space.

    Raises:
        ValueError: `x` has too few axes, or another number on its last axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import convolution as cv
        >>> cv.require_channels_last("x", jnp.zeros((8, 3, 32, 32)), 3)
        ... # doctest: +NORMALIZE_WHITESPACE
        Traceback (most recent call last):
            ...
        ValueError: x must have its 3 channels on the last axis, got shape (8, 3, 32, 32), which
        looks like channels first (NCHW): use jnp.moveaxis(x, -3, -1), of shape (8, 32, 32, 3)
    """
    _windows.check_rank(name, x, rank)
    if x.shape[-1] == channels:
        return
    message = f"{name} must have its {channels} channels on the last axis, got shape {x.shape}"
    if x.shape[-rank - 1] == channels:
        order = "N" + "C" + "DHW"[-rank:] if rank <= 3 else "channels before space"
        *batch, first = x.shape[:-rank]
        right = (*batch, *x.shape[-rank:], first)
        message += (
            f", which looks like channels first ({order}): use "
            f"jnp.moveaxis({name}, {-rank - 1}, -1), of shape {right}"
        )
    raise ValueError(message)


# --- Private --------------------------------------------------------------------------------------


def _pair(x: ArrayLike, kernel: ArrayLike) -> tuple[Array, Array]:
    x = _checks.floating("x", x)
    kernel = _checks.floating("kernel", kernel)
    if kernel.ndim < 3:
        raise ValueError(f"kernel must be (*window, in / groups, out), got shape {kernel.shape}")
    if x.dtype != kernel.dtype:
        raise TypeError(f"x and kernel must have one dtype, got {x.dtype} and {kernel.dtype}")
    return x, kernel


def _check_kernel(kernel: Array, groups: int) -> None:
    if 0 in kernel.shape:
        raise ValueError(f"kernel must not be empty, got shape {kernel.shape}")
    _checks.positive_int("groups", groups)
    if kernel.shape[-1] % groups:
        raise ValueError(
            f"groups must divide the last axis of kernel, {kernel.shape[-1]}, got {groups}"
        )


def _check_channels_of(first: str, x: Array, kernel: Array, needed: int, foreign: int) -> None:
    """Channels of `x` and `kernel` fit; a kernel in PyTorch's layout would make them `foreign`."""
    second = "out" if first == "in" else "in"
    if x.ndim and x.shape[-1] != needed and x.shape[-1] == foreign:
        raise ValueError(
            f"kernel must be (*window, {first} / groups, {second}), got shape {kernel.shape} for "
            f"{x.shape[-1]} channels of x, which looks like PyTorch's ({second}, {first} / groups, "
            "*window): use jnp.moveaxis(kernel, (0, 1), (-1, -2))"
        )
    require_channels_last("x", x, needed, rank=kernel.ndim - 2)


def _check_channels(in_features: int, out_features: int, groups: int) -> None:
    _checks.positive_int("in_features", in_features)
    _checks.positive_int("out_features", out_features)
    _checks.positive_int("groups", groups)
    if in_features % groups or out_features % groups:
        raise ValueError(
            f"groups must divide in_features, {in_features}, and out_features, {out_features}, "
            f"got {groups}"
        )


def _geometry(
    x: Array, window: tuple[int, ...], stride: Size, padding: Padding, dilation: Size, groups: int
) -> _conv_gradients.Geometry:
    rank = len(window)
    space = x.shape[-rank - 1 : -1]
    strides = _windows.per_axis("stride", stride, rank)
    dilations = _windows.per_axis("dilation", dilation, rank)
    pads = _windows.pads_of(padding, space, window, strides, dilations)
    for numbers in zip(space, window, strides, pads, dilations, strict=True):
        try:
            _windows.stops(*numbers, strict=False)
        except ValueError as error:
            raise ValueError(f"x of shape {x.shape}: {error}") from None
    return _conv_gradients.Geometry(strides, pads, dilations, groups)


def _flatten_batch(x: Array, rank: int) -> tuple[tuple[int, ...], Array]:
    batch = x.shape[: -rank - 1]
    return batch, x.reshape(math.prod(batch), *x.shape[-rank - 1 :])


def _unflatten_batch(y: Array, batch: tuple[int, ...]) -> Array:
    return y.reshape(*batch, *y.shape[1:])


def _finish(y: Any, bias: ArrayLike | None, batch: tuple[int, ...]) -> Array:
    if bias is not None:
        bias = _checks.floating("bias", bias, ndim=1)
        if bias.shape != y.shape[-1:]:
            raise ValueError(f"bias must have shape {y.shape[-1:]}, got {bias.shape}")
        if bias.dtype != y.dtype:
            raise TypeError(f"bias must have the dtype of x, {y.dtype}, got {bias.dtype}")
        y = y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
    return _unflatten_batch(y, batch)


def _pooling_arguments(
    x: ArrayLike, window: Size, stride: Size | None, padding: Padding
) -> tuple[Array, tuple[int, ...], _conv_gradients.Geometry, tuple[int, ...]]:
    x = _checks.floating("x", x)
    taps = _windows.taps_of(window)
    _windows.check_rank("x", x, len(taps))
    geometry = _geometry(x, taps, taps if stride is None else stride, padding, 1, 1)
    for size, pair in zip(taps, geometry.pads, strict=True):
        if max(pair) >= size:
            raise ValueError(f"padding must be less than the window, {size}, got {max(pair)}")
    batch, x = _flatten_batch(x, len(taps))
    return x, taps, geometry, batch


def _parameters(
    shape: tuple[int, ...],
    fan_in: int,
    out_features: int,
    use_bias: bool,
    kernel_init: Initializer | Literal["pytorch"] | None,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> tuple[nnx.Param[Array], nnx.Param[Array] | None]:
    draw_kernel, draw_bias = _initial.of_layer(kernel_init, fan_in)
    kernel = nnx.Param(draw_kernel(rngs.params(), shape, dtype))
    if not use_bias:
        return kernel, None
    return kernel, nnx.Param(draw_bias(rngs.params(), (out_features,), dtype))


def _sizes(size: Size) -> tuple[int, ...]:
    sizes = (size,) if isinstance(size, int | np.integer) else tuple(size)
    for each in sizes:
        _checks.positive_int("size", each)
    return tuple(map(int, sizes))


def _slide_of(layer: Layer, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Window, stride and dilation of a layer."""
    taps = _windows.per_axis("window", layer.window, rank)
    default = taps if layer.kind == "pool" else 1
    stride = _windows.per_axis("stride", default if layer.stride is None else layer.stride, rank)
    return taps, stride, _windows.per_axis("dilation", layer.dilation, rank)


def _further(
    reach: Reach, taps: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Reach:
    size = tuple(
        seen + dilate * (window - 1) * jump
        for seen, jump, window, dilate in zip(*reach, taps, dilation, strict=True)
    )
    return Reach(size, tuple(s * j for s, j in zip(stride, reach.jump, strict=True)))


def _cost(
    layer: Layer, shape: tuple[int, ...], reach: Reach, start: tuple[int, ...], strict: bool
) -> Cost:
    _checks.one_of("kind", layer.kind, ("conv", "pool", "norm", "activation", "dense"))
    *space, channels = shape
    if layer.kind == "dense":
        return _dense_cost(layer, shape, reach, start)
    if layer.kind in ("norm", "activation"):
        parameters = 2 * channels if layer.kind == "norm" else 0
        return Cost(layer, shape, *reach, start, parameters, 0, math.prod(shape))
    rank = len(space)
    if rank == 0:
        raise ValueError(f"must not come after 'dense', got an input of shape {shape}")
    taps, stride, dilation = _slide_of(layer, rank)
    pads = _windows.pads_of(layer.padding, space, taps, stride, dilation)
    out = tuple(
        _windows.stops(*numbers, strict=strict)
        for numbers in zip(space, taps, stride, pads, dilation, strict=True)
    )
    further = _further(reach, taps, stride, dilation)
    begin = tuple(
        first - low * jump for first, (low, _), jump in zip(start, pads, reach.jump, strict=True)
    )
    features, parameters, work = channels, 0, 0
    if layer.kind == "conv":
        features = _features_of(layer)
        _check_channels(channels, features, layer.groups)
        weights = math.prod(taps) * (channels // layer.groups) * features
        parameters = weights + features * layer.use_bias
        work = math.prod(out) * weights
    made = (*out, features)
    return Cost(layer, made, *further, begin, parameters, work, math.prod(made))


def _dense_cost(layer: Layer, shape: tuple[int, ...], reach: Reach, start: tuple[int, ...]) -> Cost:
    features = _features_of(layer)
    *space, _ = shape
    seen = reach.size
    if space:  # the fields of all pixels together
        seen = tuple(
            size + (count - 1) * jump
            for size, count, jump in zip(reach.size, space, reach.jump, strict=True)
        )
    weights = math.prod(shape) * features
    parameters = weights + features * layer.use_bias
    return Cost(layer, (features,), seen, reach.jump, start, parameters, weights, features)


def _features_of(layer: Layer) -> int:
    if layer.features is None:
        raise ValueError("features must be given")
    _checks.positive_int("features", layer.features)
    return layer.features
