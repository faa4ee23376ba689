r"""Convolutional networks (卷积神经网络) from one pattern, the notes' own among them.

A convolutional network shrinks a picture in stages and reads the rest with a fully connected
network:

$$[\,[\text{conv} \to \text{ReLU}] \cdot N \to \text{pool?}\,] \cdot M
  \to [\text{linear} \to \text{ReLU}] \cdot K \to \text{linear}$$

with N convolutions in each of M stages and K hidden linear layers. Convolutions with an odd window
F, stride 1 and padding (F - 1)/2 keep the side of the picture; only pooling changes it.

Reference: LeCun, Bottou, Bengio and Haffner, *Gradient-based learning applied to document
recognition* (Proceedings of the IEEE, 1998), section II; the form of the pattern is that of the
course CS231n (Stanford), *Convolutional networks*, "Layer patterns".
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mlnotes_jax import _checks
from mlnotes_jax.foundations import activations
from mlnotes_jax.nets import _initial, convolution
from mlnotes_jax.nets.dropout import Dropout
from mlnotes_jax.nets.normalization import BatchNorm

__all__ = [
    "CNN",
    "ConvBlock",
    "Stage",
    "advice",
    "layers",
    "notes_cnn",
    "pattern",
    "small_cnn",
]

Order = Literal["conv-norm-relu", "relu-conv-norm"]
ORDERS = ("conv-norm-relu", "relu-conv-norm")


class Stage(NamedTuple):
    """Convolutions, then one pooling.

    Attributes:
        widths: Filters of each convolution; as many convolutions as entries (N in the pattern).
        window: Side F of the square filters, odd; the padding is (F - 1)/2.
        pool: Side of the max-pooling window, which is also its stride; None for no pooling.
    """

    widths: tuple[int, ...]
    window: int = 3
    pool: int | None = 2


class ConvBlock(nnx.Module):
    r"""A convolution with its normalization and activation, in either order.

    Args:
        in_features: Channels of the input.
        out_features: Filters.
        window: Side F of the filters, odd; stride 1, padding (F - 1)/2.
        order: `"conv-norm-relu"`, the usual order, or `"relu-conv-norm"`, the notes' variant for
            stacks that begin with a convolution of their own.
        norm: `"batch"`, or None for no normalization.
        use_bias: Whether the convolution has a bias. Before batch normalization it changes
            nothing but the running mean; PyTorch's networks often keep it.
        activation: A function of an array.
        rngs: Gives the weights; stream `params`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        window: int = 3,
        order: Order = "conv-norm-relu",
        norm: Literal["batch"] | None = "batch",
        use_bias: bool = True,
        activation: Callable[[Array], Array] = activations.relu,
        rngs: nnx.Rngs,
    ):
        _checks.one_of("order", order, ORDERS)
        _checks.one_of("norm", norm, ("batch", None))
        self.conv = convolution.Conv(
            in_features,
            out_features,
            window,
            padding=_padding(window),
            use_bias=use_bias,
            rngs=rngs,
        )
        self.norm = BatchNorm(out_features, rngs=rngs) if norm else None
        self.order = order
        self.activation = activation

    def __call__(self, x: Float[Array, "n h w in"]) -> Float[Array, "n h w out"]:
        """Apply the block; height and width stay."""
        if self.order == "relu-conv-norm":
            x = self.activation(x)
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return self.activation(x) if self.order == "conv-norm-relu" else x


class CNN(nnx.Module):
    r"""A network of the pattern in the module's docstring.

    Args:
        in_shape: Height, width and channels of a picture.
        stages: The M stages, see [`Stage`][mlnotes_jax.nets.cnn.Stage].
        hidden: Widths of the K hidden linear layers; may be empty.
        num_classes: Width of the last linear layer.
        stem: Filters of a single convolution before the stages; None for none.
        order: As in [`ConvBlock`][mlnotes_jax.nets.cnn.ConvBlock]. With `"relu-conv-norm"` a
            `stem` is needed: without one, the first activation would cut the picture itself.
        norm: As in [`ConvBlock`][mlnotes_jax.nets.cnn.ConvBlock].
        use_bias: As in [`ConvBlock`][mlnotes_jax.nets.cnn.ConvBlock].
        dropout: Probability to drop a unit of a hidden linear layer, before its activation.
        activation: A function of an array.
        rngs: Gives weights (stream `params`) and dropout's keys (stream `dropout`).

    Raises:
        ValueError: A size is below one, a window is even, or a pooling window is larger than what
            is left of the picture; the message names the stage.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import cnn
        >>> stages = cnn.pattern((16, 32), convs=2)
        >>> net = cnn.CNN((28, 28, 1), stages, hidden=(64,), num_classes=10, rngs=nnx.Rngs(0))
        >>> net(jnp.zeros((5, 28, 28, 1))).shape
        (5, 10)

    Reference: CS231n (Stanford), *Convolutional networks*, "Layer patterns".
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        stages: Sequence[Stage],
        *,
        hidden: Sequence[int] = (),
        num_classes: int,
        stem: int | None = None,
        order: Order = "conv-norm-relu",
        norm: Literal["batch"] | None = "batch",
        use_bias: bool = True,
        dropout: float = 0.0,
        activation: Callable[[Array], Array] = activations.relu,
        rngs: nnx.Rngs,
    ):
        height, width, channels = sides = _in_shape(in_shape)
        stages = tuple(Stage(*stage) for stage in stages)
        _check_stages(stages)
        _checks.positive_int("num_classes", num_classes)
        _checks.one_of("order", order, ORDERS)
        if stem is not None:
            _checks.positive_int("stem", stem)
        elif order == "relu-conv-norm":
            raise ValueError(
                "stem must be a number of filters for order 'relu-conv-norm', got None"
            )
        self.in_shape = sides
        self.stages = stages
        self.num_classes = num_classes
        self.activation = activation
        window = stages[0].window if stages else 3
        self.stem = (
            None
            if stem is None
            else convolution.Conv(
                channels, stem, window, padding=_padding(window), use_bias=use_bias, rngs=rngs
            )
        )
        channels = stem or channels
        blocks = []
        for number, stage in enumerate(stages):
            for filters in stage.widths:
                blocks.append(
                    ConvBlock(
                        channels,
                        filters,
                        window=stage.window,
                        order=order,
                        norm=norm,
                        use_bias=use_bias,
                        activation=activation,
                        rngs=rngs,
                    )
                )
                channels = filters
            height, width = _pooled(number, (height, width), stage.pool)
        self.blocks = nnx.List(blocks)
        features = height * width * channels
        linear = []
        for units in (*hidden, num_classes):
            _checks.positive_int("hidden", units)
            linear.append(_linear(features, units, rngs))
            features = units
        self.linear = nnx.List(linear)
        self.dropout = nnx.List([Dropout(dropout, rngs=rngs) for _ in hidden] if dropout else [])

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n num_classes"]:
        """Logits of a batch of pictures.

        Args:
            x: Pictures, channels last, of the height, width and channels that the network was
                built for.

        Returns:
            One row of logits for each picture.

        Raises:
            ValueError: The shape does not fit; pictures with channels first are recognised.
        """
        _check_pictures(x, self.in_shape)
        if self.stem is not None:
            x = self.stem(x)
        done = 0
        for stage in self.stages:
            for block in self.blocks[done : done + len(stage.widths)]:
                x = block(x)
            done += len(stage.widths)
            if stage.pool is not None:
                x = convolution.max_pool(x, stage.pool)
        x = x.reshape(x.shape[0], -1)
        for i, layer in enumerate(self.linear[:-1]):
            x = layer(x)
            if self.dropout:
                x = self.dropout[i](x)
            x = self.activation(x)
        return self.linear[-1](x)


def pattern(
    widths: Sequence[int], *, convs: int = 1, window: int = 3, pool: int | None = 2
) -> tuple[Stage, ...]:
    """Stages of the pattern: `convs` equal convolutions, then one pooling, for each width.

    Args:
        widths: Filters of each stage; as many stages as entries (M in the pattern).
        convs: Convolutions in each stage (N in the pattern).
        window: Side of the filters, odd.
        pool: Side of the pooling windows; None for no pooling.

    Returns:
        The stages.

    Raises:
        ValueError: A number is below one, or the window is even.

    Example:
        >>> from mlnotes_jax.nets import cnn
        >>> cnn.pattern((16, 32), convs=2)[1]
        Stage(widths=(32, 32), window=3, pool=2)
    """
    _checks.positive_int("convs", convs)
    stages = tuple(Stage((width,) * convs, window, pool) for width in widths)
    _check_stages(stages)
    return stages


def notes_cnn(*, dropout: float = 0.0, rngs: nnx.Rngs) -> CNN:
    """The network of the notes: 128x128x3 pictures of food in eleven classes.

    Five stages of one 3x3 convolution, batch normalization, ReLU and 2x2 pooling, with 64, 128,
    256, 512 and 512 filters; then linear layers of 1024, 512 and 11 units. It has 12 833 803
    parameters, with and without dropout.

    Args:
        dropout: Probability to drop a unit of the two hidden linear layers: 0.5 in document 000, 0
            in document 003.
        rngs: Streams `params` and `dropout`.

    Returns:
        The network.
    """
    return CNN(
        (128, 128, 3),
        pattern((64, 128, 256, 512, 512)),
        hidden=(1024, 512),
        num_classes=11,
        dropout=dropout,
        rngs=rngs,
    )


def small_cnn(
    *,
    in_shape: Sequence[int] = (28, 28, 1),
    widths: Sequence[int] = (32, 64, 128),
    num_classes: int = 10,
    rngs: nnx.Rngs,
) -> CNN:
    """A small network for 28x28 pictures: three blocks and one linear layer, 104 426 parameters.

    Args:
        in_shape: Height, width and channels of a picture.
        widths: Filters of each block: 3x3 convolution without bias, batch normalization, ReLU, 2x2
            pooling.
        num_classes: Width of the linear layer.
        rngs: Stream `params`.

    Returns:
        The network.
    """
    return CNN(in_shape, pattern(widths), num_classes=num_classes, use_bias=False, rngs=rngs)


def advice(in_shape: Sequence[int], stages: Sequence[Stage]) -> tuple[str, ...]:
    r"""What the notes' rules for sizes say against a plan; empty where they have no objection.

    The rules: the side of the picture can be divided by every pooling window in turn, so that no
    row of pixels is lost; filters are small, 3x3 or 5x5, except in the first convolution; pooling
    windows are 2, at most 3. Even windows are not a matter of advice: they are refused.

    Args:
        in_shape: Height, width and channels of a picture.
        stages: See [`Stage`][mlnotes_jax.nets.cnn.Stage].

    Returns:
        One sentence for each objection.

    Example:
        >>> from mlnotes_jax.nets import cnn
        >>> print(*cnn.advice((28, 28, 1), cnn.pattern((32, 64, 128))), sep="\n")
        stage 3: height 7 is not divisible by its pooling window 2; 1 row of pixels is not seen
        stage 3: width 7 is not divisible by its pooling window 2; 1 column of pixels is not seen

    Reference: CS231n (Stanford), *Convolutional networks*, "Layer sizing patterns".
    """
    height, width, _ = _in_shape(in_shape)
    stages = tuple(Stage(*stage) for stage in stages)
    _check_stages(stages)
    said = []
    for number, stage in enumerate(stages):
        here = f"stage {number + 1}: "
        if stage.window > 5 and number > 0:
            count = (stage.window - 1) // 2
            said.append(
                f"{here}window {stage.window} is large; {count} convolutions 3x3 see as far with "
                "fewer parameters"
            )
        if stage.pool is None:
            continue
        if stage.pool > 3:
            kept = 1 / stage.pool**2
            said.append(f"{here}pooling window {stage.pool} keeps one of {1 / kept:.0f} values")
        for name, line, side in (("height", "row", height), ("width", "column", width)):
            lost = side % stage.pool
            if lost:
                lines = f"{lost} {line}{'s' if lost > 1 else ''} of pixels "
                said.append(
                    f"{here}{name} {side} is not divisible by its pooling window {stage.pool}; "
                    f"{lines}{'are' if lost > 1 else 'is'} not seen"
                )
        height, width = _pooled(number, (height, width), stage.pool)
    return tuple(said)


def layers(model: CNN) -> tuple[convolution.Layer, ...]:
    """Describe a network layer by layer, for the calculators of `convolution`.

    Args:
        model: The network.

    Returns:
        What `convolution.costs`, `receptive_field` and `memory` take.

    Example:
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import cnn, convolution
        >>> net = cnn.small_cnn(rngs=nnx.Rngs(0))
        >>> costs = convolution.costs(cnn.layers(net), net.in_shape)
        >>> sum(cost.parameters for cost in costs)
        104426
        >>> [cost.shape for cost in costs if cost.layer.kind == "pool"]
        [(14, 14, 32), (7, 7, 64), (3, 3, 128)]
    """
    made = []

    def convolve(conv: convolution.Conv) -> None:
        *window, _, filters = conv.kernel.shape
        made.append(
            convolution.Layer(
                "conv",
                filters,
                tuple(window),
                padding=_padding(window[0]),
                use_bias=conv.bias is not None,
            )
        )

    if model.stem is not None:
        convolve(model.stem)
    done = 0
    for stage in model.stages:
        for block in model.blocks[done : done + len(stage.widths)]:
            parts = [convolution.Layer("norm")] if block.norm is not None else []
            activation = convolution.Layer("activation")
            if block.order == "relu-conv-norm":
                made.append(activation)
            convolve(block.conv)
            made += parts
            if block.order == "conv-norm-relu":
                made.append(activation)
        done += len(stage.widths)
        if stage.pool is not None:
            made.append(convolution.Layer("pool", window=stage.pool))
    for layer in model.linear:
        made += [
            convolution.Layer("dense", layer.kernel.shape[1]),
            convolution.Layer("activation"),
        ]
    return tuple(made[:-1])


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, kernel_init=_initial.he(inputs), rngs=rngs)


def _padding(window: int) -> int:
    """(F - 1)/2, which keeps the side of a picture."""
    _checks.positive_int("window", window)
    if window % 2 == 0:
        raise ValueError(f"window must be odd, so that its padding (F - 1)/2 fits, got {window}")
    return (window - 1) // 2


def _in_shape(in_shape: Sequence[int]) -> tuple[int, int, int]:
    shape = tuple(in_shape)
    if len(shape) != 3:
        raise ValueError(f"in_shape must be (height, width, channels), got {shape}")
    for size in shape:
        _checks.positive_int("in_shape", size)
    return shape


def _check_stages(stages: Sequence[Stage]) -> None:
    for stage in stages:
        _padding(stage.window)
        if not stage.widths:
            raise ValueError("stages: each must have at least one convolution, got widths ()")
        for filters in stage.widths:
            _checks.positive_int("widths", filters)
        if stage.pool is not None:
            _checks.positive_int("pool", stage.pool)


def _pooled(number: int, sides: tuple[int, int], pool: int | None) -> tuple[int, int]:
    """Height and width after a stage's pooling."""
    if pool is None:
        return sides
    if min(sides) < pool:
        raise ValueError(
            f"stages: the pooling window {pool} of stage {number + 1} is larger than what is left "
            f"of the picture, {sides[0]}x{sides[1]}; use fewer stages or a larger picture"
        )
    height, width = (convolution.output_size(side, pool, stride=pool) for side in sides)
    return height, width


def _check_pictures(x: Any, in_shape: tuple[int, int, int]) -> None:
    shape = jnp.shape(x)
    if len(shape) != 4:
        raise ValueError(f"x must be a batch of pictures, 4-D, got shape {shape}")
    convolution.require_channels_last("x", x, in_shape[-1])
    if shape[1:3] != in_shape[:2]:
        raise ValueError(
            f"x must hold pictures of {in_shape[0]}x{in_shape[1]} pixels, as the network was built "
            f"for, got shape {shape}"
        )
