r"""Residual networks: each block adds a correction to what it receives.

A block computes, from its input $x$ and a small stack of layers $F$ (its *branch*),

$$ y = S(x) + F(x), $$

where the *shortcut* $S$ is the identity wherever the shapes allow it. The Jacobian of a chain of
blocks with $S(x) = x$ is $\prod_l (I + F_l')$, of its *plain twin*, the same layers without
shortcuts, $\prod_l F_l'$.

Pictures are `(n, height, width, channels)`. Batch normalization follows PyTorch: running statistics
keep 0.9 of their past at each step (PyTorch calls 0.1 the momentum), the running variance is the
unbiased one, epsilon is 1e-5. A bottleneck has its stride in the 3×3 convolution, as torchvision
does ("v1.5"); the paper has it in the first 1×1.

Reference: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", arXiv 1512.03385
(2015), sections 3 and 4.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.nets import _initial, _torchvision, convolution, normalization

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "PreActivationBlock",
    "ResNet",
    "cifar_resnet",
    "freeze",
    "labels",
    "load_torchvision",
    "pad_shortcut",
    "parts",
    "resnet18",
    "resnet34",
    "resnet50",
    "save_torchvision",
]

Shortcut = Literal["A", "B", "C"]
Block = Literal["basic", "bottleneck", "preactivation"]


def pad_shortcut(
    x: Float[Array, "*n h w c"], *, features: int, stride: int = 1
) -> Float[Array, "*n out_h out_w features"]:
    r"""Shortcut A: every `stride`-th pixel, and zeros as the new channels. It has no parameters.

    $$ S(x)_{i, j, k} = x_{si,\, sj,\, k} \text{ for } k < c, \qquad 0 \text{ for } c \le k. $$

    Args:
        x: Pictures, channels last.
        features: Channels afterwards, at least as many as before.
        stride: $s$, at least 1.

    Returns:
        Pictures with sides $\lceil h / s \rceil$ and $\lceil w / s \rceil$, dtype of `x`.

    Raises:
        ValueError: `features` is less than the channels of `x`, or `stride` less than 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.nets import resnet
        >>> resnet.pad_shortcut(jnp.ones((2, 8, 8, 16)), features=32, stride=2).shape
        (2, 4, 4, 32)

    Reference:
        He and others (2015), section 3.3, option (A).

    Note:
        Some implementations put half of the zeros before the old channels: the same network, with
        its channels in another order.
    """
    _checks.positive_int("stride", stride)
    added = features - x.shape[-1]
    if added < 0:
        raise ValueError(
            f"features must be at least the {x.shape[-1]} channels of x for shortcut 'A', got "
            f"{features}: use 'B'"
        )
    picked = x[..., ::stride, ::stride, :]
    return jnp.pad(picked, [(0, 0)] * (x.ndim - 1) + [(0, added)])


class Projection(nnx.Module):
    """Shortcuts B and C: a 1×1 convolution, and (in a post-activation net) batch normalization."""

    def __init__(
        self, in_features: int, features: int, *, stride: int, norm: bool, rngs: nnx.Rngs
    ) -> None:
        self.conv = _conv(in_features, features, 1, stride=stride, rngs=rngs)
        self.norm = normalization.BatchNorm(features, rngs=rngs) if norm else None

    def __call__(self, x: Array) -> Array:
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)


class _Block(nnx.Module):
    """What the three kinds of block share: their shortcut."""

    expansion = 1

    def _make_shortcut(
        self,
        in_features: int,
        features: int,
        *,
        stride: int,
        shortcut: Shortcut,
        plain: bool,
        norm: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        _checks.one_of("shortcut", shortcut, ("A", "B", "C"))
        for name, value in (("in_features", in_features), ("features", features)):
            _checks.positive_int(name, value)
        _checks.positive_int("stride", stride)
        changes = stride != 1 or in_features != features
        project = not plain and (shortcut == "C" or (shortcut == "B" and changes))
        self.projection = (
            Projection(in_features, features, stride=stride, norm=norm, rngs=rngs)
            if project
            else None
        )
        self.in_features, self.features, self.stride = in_features, features, stride
        self.plain = plain

    def _add(
        self, branch: Array, x: Array, skip: ArrayLike | None, projected: Array | None = None
    ) -> Array:
        """`branch` and the shortcut of `x`; a projection starts from `projected`."""
        if self.plain:
            return branch
        if self.projection is not None:
            shortcut = self.projection(x if projected is None else projected)
        else:
            shortcut = pad_shortcut(x, features=self.features, stride=self.stride)
        if skip is not None:
            shortcut = jnp.asarray(skip, shortcut.dtype) * shortcut
        return branch + shortcut


class BasicBlock(_Block):
    r"""Two 3×3 convolutions and a shortcut: the block of ResNet-18 and -34.

    $$ y = \operatorname{ReLU}(S(x) + N(K_2 * \operatorname{ReLU}(N(K_1 * x)))) $$

    with kernels $K$ and batch normalization $N$. `x` has shape `(n, h, w, in_features)`, `y`
    `(n, ceil(h / stride), ceil(w / stride), features)`.

    Args:
        in_features: Channels of `x`.
        features: Channels of `y`.
        stride: Of the first convolution, and of the shortcut.
        shortcut: What the shortcut is where the shape changes: `"A"` is `pad_shortcut`, `"B"` a
            1×1 convolution with batch normalization; `"C"` is that convolution everywhere.
        plain: Whether to leave the shortcut out: the plain twin.
        zero_init: Whether the last scale starts at zero, so that the block starts as
            $\operatorname{ReLU}(S(x))$.
        rngs: For the kernels.

    Raises:
        ValueError: A size is less than 1, or `shortcut` is none of the three.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import resnet
        >>> block = resnet.BasicBlock(4, 8, stride=2, rngs=nnx.Rngs(0))
        >>> block(jnp.ones((2, 6, 6, 4))).shape
        (2, 3, 3, 8)

    Reference:
        He and others (2015), figure 5, left.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        stride: int = 1,
        shortcut: Shortcut = "B",
        plain: bool = False,
        zero_init: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self._make_shortcut(
            in_features, features, stride=stride, shortcut=shortcut, plain=plain, rngs=rngs
        )
        self.conv1 = _conv(in_features, features, 3, stride=stride, rngs=rngs)
        self.norm1 = normalization.BatchNorm(features, rngs=rngs)
        self.conv2 = _conv(features, features, 3, rngs=rngs)
        self.norm2 = _last_norm(features, zero_init, rngs)

    def __call__(
        self, x: Float[Array, "n h w c"], *, skip: Float[ArrayLike, ""] | None = None
    ) -> Float[Array, "n out_h out_w features"]:
        """Apply the block, with its shortcut times `skip`."""
        branch = jax.nn.relu(self.norm1(self.conv1(x)))
        branch = self.norm2(self.conv2(branch))
        return jax.nn.relu(self._add(branch, x, skip))


class Bottleneck(_Block):
    """A 1×1 convolution to fewer channels, a 3×3 one, and a 1×1 one to four times as many.

    Normalization after each, ReLU after the first two and after the sum. The wide ends are cheap,
    and the 3×3 works on few channels: at 256 channels it has 69 632 weights where two 3×3 have
    1 179 648.

    Args:
        in_features: Channels of the input.
        features: Channels inside; the output has `4 * features`.
        stride: Of the 3×3 convolution, and of the shortcut.
        shortcut: As in `BasicBlock`.
        plain: As in `BasicBlock`.
        zero_init: As in `BasicBlock`.
        rngs: For the kernels.

    Raises:
        ValueError: As in `BasicBlock`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import resnet
        >>> resnet.Bottleneck(16, 4, rngs=nnx.Rngs(0))(jnp.ones((2, 6, 6, 16))).shape
        (2, 6, 6, 16)

    Reference:
        He and others (2015), figure 5, right; the stride as in torchvision.
    """

    expansion = 4

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        stride: int = 1,
        shortcut: Shortcut = "B",
        plain: bool = False,
        zero_init: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        out = 4 * features
        self._make_shortcut(
            in_features, out, stride=stride, shortcut=shortcut, plain=plain, rngs=rngs
        )
        self.conv1 = _conv(in_features, features, 1, rngs=rngs)
        self.norm1 = normalization.BatchNorm(features, rngs=rngs)
        self.conv2 = _conv(features, features, 3, stride=stride, rngs=rngs)
        self.norm2 = normalization.BatchNorm(features, rngs=rngs)
        self.conv3 = _conv(features, out, 1, rngs=rngs)
        self.norm3 = _last_norm(out, zero_init, rngs)

    def __call__(
        self, x: Float[Array, "n h w c"], *, skip: Float[ArrayLike, ""] | None = None
    ) -> Float[Array, "n out_h out_w features"]:
        """Apply the block, with its shortcut times `skip`."""
        branch = jax.nn.relu(self.norm1(self.conv1(x)))
        branch = jax.nn.relu(self.norm2(self.conv2(branch)))
        branch = self.norm3(self.conv3(branch))
        return jax.nn.relu(self._add(branch, x, skip))


class PreActivationBlock(_Block):
    r"""Normalization and ReLU *before* each convolution: $y = x + K_2 * r(K_1 * r(x))$.

    $r(x) = \operatorname{ReLU}(N(x))$. Nothing stands between two sums, so that along a chain of
    such blocks $x_L = x_l + \sum_{i = l}^{L - 1} F_i(x_i)$ holds exactly. Where the shape changes,
    a projection starts from $r(x)$ and has no normalization of its own.

    Args:
        in_features: Channels of the input.
        features: Channels of the output.
        stride: Of the first convolution, and of the shortcut.
        shortcut: As in `BasicBlock`.
        plain: As in `BasicBlock`.
        zero_init: Whether the second convolution starts at zero.
        rngs: For the kernels.

    Raises:
        ValueError: As in `BasicBlock`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import resnet
        >>> block = resnet.PreActivationBlock(4, 4, zero_init=True, rngs=nnx.Rngs(0))
        >>> x = jnp.arange(288.0).reshape(2, 6, 6, 4)
        >>> bool((block(x) == x).all())
        True

    Reference:
        He, Zhang, Ren and Sun, "Identity Mappings in Deep Residual Networks", arXiv 1603.05027
        (2016), figure 1.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        stride: int = 1,
        shortcut: Shortcut = "B",
        plain: bool = False,
        zero_init: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self._make_shortcut(
            in_features,
            features,
            stride=stride,
            shortcut=shortcut,
            plain=plain,
            norm=False,
            rngs=rngs,
        )
        self.norm1 = normalization.BatchNorm(in_features, rngs=rngs)
        self.conv1 = _conv(in_features, features, 3, stride=stride, rngs=rngs)
        self.norm2 = normalization.BatchNorm(features, rngs=rngs)
        init = nnx.initializers.zeros if zero_init else _kernel_init
        self.conv2 = _conv(features, features, 3, kernel_init=init, rngs=rngs)

    def __call__(
        self, x: Float[Array, "n h w c"], *, skip: Float[ArrayLike, ""] | None = None
    ) -> Float[Array, "n out_h out_w features"]:
        """Apply the block, with its shortcut times `skip`."""
        active = jax.nn.relu(self.norm1(x))
        branch = self.conv1(active)
        branch = self.conv2(jax.nn.relu(self.norm2(branch)))
        return self._add(branch, x, skip, projected=active)


_BLOCKS: dict[str, type[BasicBlock | Bottleneck | PreActivationBlock]] = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
    "preactivation": PreActivationBlock,
}


class Stem(nnx.Module):
    """The first convolution: 7×7 and pooling, a quarter of the side, or 3×3, all of it."""

    def __init__(
        self, in_channels: int, width: int, *, small: bool, norm: bool, rngs: nnx.Rngs
    ) -> None:
        window, stride = (3, 1) if small else (7, 2)
        self.conv = _conv(in_channels, width, window, stride=stride, rngs=rngs)
        self.norm = normalization.BatchNorm(width, rngs=rngs) if norm else None
        self.small = small

    def __call__(self, x: Array) -> Array:
        x = self.conv(x)
        if self.norm is not None:
            x = jax.nn.relu(self.norm(x))
        return x if self.small else convolution.max_pool(x, 3, stride=2, padding=1)


class ResNet(nnx.Module):
    r"""A stem, stages of residual blocks, the mean over space, and a linear layer.

    The first block of every stage but the first halves the side and doubles the channels. The
    convolutions have no bias (normalization would take it out again); kernels start by He's rule on
    the number of outputs, scales at 1. `model.train()` and `model.eval()` choose between statistics
    of the batch and the running ones.

    Args:
        num_blocks: Blocks in each stage, at least one stage.
        block: `"basic"`, `"bottleneck"` or `"preactivation"`.
        num_classes: Outputs.
        in_channels: Channels of a picture.
        width: Channels of the first stage (a quarter of them, for bottlenecks).
        stem: `"imagenet"`, a 7×7 convolution of stride 2 and 3×3 max-pooling of stride 2, or
            `"cifar"`, a 3×3 convolution. Before pre-activation blocks the stem has no
            normalization; there they are followed by one, and ReLU.
        shortcut: As in `BasicBlock`.
        plain: Whether to leave all shortcuts out.
        zero_init: Whether each branch starts at zero.
        rngs: For the kernels.

    Attributes:
        frozen: Names of the parts that are frozen; see `freeze`.

    Raises:
        ValueError: A size is less than 1, or an option is none of its choices.
        TypeError: A size is not an integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import resnet
        >>> model = resnet.ResNet([1, 1], width=4, stem="cifar", num_classes=3, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 8, 8, 3))).shape
        (2, 3)

    Reference:
        He and others (2015), table 1 and section 4.2.
    """

    def __init__(
        self,
        num_blocks: Sequence[int],
        *,
        block: Block = "basic",
        num_classes: int = 1000,
        in_channels: int = 3,
        width: int = 64,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        shortcut: Shortcut = "B",
        plain: bool = False,
        zero_init: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        _checks.one_of("block", block, tuple(_BLOCKS))
        _checks.one_of("stem", stem, ("imagenet", "cifar"))
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
        sizes |= {f"num_blocks[{i}]": count for i, count in enumerate(num_blocks)}
        for name, value in sizes.items():
            _checks.positive_int(name, value)
        if not num_blocks:
            raise ValueError("num_blocks must have at least one stage, got none")

        kind = _BLOCKS[block]
        last = kind is PreActivationBlock
        self.in_channels = in_channels
        self.frozen: tuple[str, ...] = ()
        self.stem = Stem(in_channels, width, small=stem == "cifar", norm=not last, rngs=rngs)
        stages, channels = [], width
        for i, count in enumerate(num_blocks):
            blocks = []
            for j in range(count):
                blocks.append(
                    kind(
                        channels,
                        width * 2**i,
                        stride=2 if i and not j else 1,
                        shortcut=shortcut,
                        plain=plain,
                        zero_init=zero_init,
                        rngs=rngs,
                    )
                )
                channels = width * 2**i * kind.expansion
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.norm = normalization.BatchNorm(channels, rngs=rngs) if last else None
        self.head = nnx.Linear(channels, num_classes, kernel_init=_head_init, rngs=rngs)

    def __call__(
        self, x: Float[Array, "n h w c"], *, skip: Float[ArrayLike, ""] | None = None
    ) -> Float[Array, "n classes"]:
        """Compute logits.

        Args:
            x: Pictures, channels last.
            skip: A factor of all shortcuts: 1 changes nothing, 0 leaves the plain twin. It is
                traced, so that one program serves both. Where None, nothing is multiplied.

        Returns:
            Logits, shape `(n, num_classes)`.

        Raises:
            ValueError: `x` is not 4-D, or its last axis is not the channels; channels-first
                pictures are recognised.
        """
        x = _checks.floating("x", x, ndim=4)
        convolution.require_channels_last("x", x, self.in_channels)
        x = self.stem(x)
        for stage in self.stages:
            for block in stage:
                x = block(x, skip=skip)
        if self.norm is not None:
            x = jax.nn.relu(self.norm(x))
        return self.head(convolution.global_average_pool(x))

    def train(self, **attributes: Any) -> None:
        """Choose train mode, but for the frozen parts, which stay in eval mode."""
        super().train(**attributes)
        for part in self.frozen:
            for module in _modules(self, part):
                module.eval()


def resnet18(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    shortcut: Shortcut = "B",
    plain: bool = False,
    zero_init: bool = False,
    rngs: nnx.Rngs,
) -> ResNet:
    """ResNet-18: stages of 2, 2, 2, 2 basic blocks; 11 689 512 parameters for 1000 classes.

    Args:
        num_classes: Outputs.
        in_channels: Channels of a picture.
        shortcut: As in `BasicBlock`.
        plain: Whether to leave all shortcuts out.
        zero_init: Whether each branch starts at zero.
        rngs: For the kernels.

    Returns:
        The network.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import resnet
        >>> shapes = nnx.eval_shape(lambda: resnet.resnet18(rngs=nnx.Rngs(0)))  # makes no array
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param)))
        11689512

    Reference:
        He and others (2015), table 1.
    """
    return ResNet(
        (2, 2, 2, 2),
        num_classes=num_classes,
        in_channels=in_channels,
        shortcut=shortcut,
        plain=plain,
        zero_init=zero_init,
        rngs=rngs,
    )


def resnet34(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    shortcut: Shortcut = "B",
    plain: bool = False,
    zero_init: bool = False,
    rngs: nnx.Rngs,
) -> ResNet:
    """ResNet-34: stages of 3, 4, 6, 3 basic blocks; 21 797 672 parameters for 1000 classes.

    Args:
        num_classes: Outputs.
        in_channels: Channels of a picture.
        shortcut: As in `BasicBlock`.
        plain: Whether to leave all shortcuts out.
        zero_init: Whether each branch starts at zero.
        rngs: For the kernels.

    Returns:
        The network.

    Reference:
        He and others (2015), table 1.
    """
    return ResNet(
        (3, 4, 6, 3),
        num_classes=num_classes,
        in_channels=in_channels,
        shortcut=shortcut,
        plain=plain,
        zero_init=zero_init,
        rngs=rngs,
    )


def resnet50(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    shortcut: Shortcut = "B",
    plain: bool = False,
    zero_init: bool = False,
    rngs: nnx.Rngs,
) -> ResNet:
    """ResNet-50: stages of 3, 4, 6, 3 bottlenecks; 25 557 032 parameters for 1000 classes.

    Args:
        num_classes: Outputs.
        in_channels: Channels of a picture.
        shortcut: As in `BasicBlock`.
        plain: Whether to leave all shortcuts out.
        zero_init: Whether each branch starts at zero.
        rngs: For the kernels.

    Returns:
        The network.

    Reference:
        He and others (2015), table 1.
    """
    return ResNet(
        (3, 4, 6, 3),
        block="bottleneck",
        num_classes=num_classes,
        in_channels=in_channels,
        shortcut=shortcut,
        plain=plain,
        zero_init=zero_init,
        rngs=rngs,
    )


def cifar_resnet(
    depth: int = 20,
    num_classes: int = 10,
    *,
    block: Block = "basic",
    in_channels: int = 3,
    width: int = 16,
    shortcut: Shortcut = "A",
    plain: bool = False,
    zero_init: bool = False,
    rngs: nnx.Rngs,
) -> ResNet:
    r"""The kind of ResNet that He and others made for CIFAR-10: depth $6 n + 2$.

    A 3×3 convolution, three stages of $n$ blocks with `width`, `2 width` and `4 width` channels on
    the whole, half and a quarter of the side, and a linear layer. With two convolutions in a block
    the depth is $1 + 3 \cdot 2 n + 1$; with the three of a bottleneck, $9 n + 2$.

    Parameters at `width` 16, ten classes and shortcut A: 269 722 (depth 20), 464 154 (32), 658 586
    (44), 853 018 (56).

    Args:
        depth: Layers with weights: 8, 14, 20, 32, 44, 56, 110, ... (bottlenecks: 11, 20, 29, ...).
        num_classes: Outputs.
        block: As in `ResNet`. A bottleneck's output is four times as wide.
        in_channels: Channels of a picture.
        width: Channels of the first stage.
        shortcut: As in `BasicBlock`. The paper's is A: then the plain twin has the same parameters.
        plain: Whether to leave all shortcuts out.
        zero_init: Whether each branch starts at zero.
        rngs: For the kernels.

    Returns:
        The network.

    Raises:
        ValueError: There is no network of that depth.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import resnet
        >>> shapes = nnx.eval_shape(lambda: resnet.cifar_resnet(20, rngs=nnx.Rngs(0)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(shapes, nnx.Param)))
        269722

    Reference:
        He and others (2015), section 4.2 and table 6.
    """
    _checks.one_of("block", block, tuple(_BLOCKS))
    _checks.positive_int("depth", depth)
    layers = 9 if block == "bottleneck" else 6
    count, rest = divmod(depth - 2, layers)
    if rest or count < 1:
        raise ValueError(
            f"depth must be {layers}n + 2 with n >= 1 for {block!r} blocks, got {depth}"
        )
    return ResNet(
        (count,) * 3,
        block=block,
        num_classes=num_classes,
        in_channels=in_channels,
        width=width,
        stem="cifar",
        shortcut=shortcut,
        plain=plain,
        zero_init=zero_init,
        rngs=rngs,
    )


def parts(model: ResNet) -> tuple[str, ...]:
    """Name the parts that can be frozen: `"stem"`, `"stage1"`, ..., `"head"`.

    Args:
        model: A residual network.

    Returns:
        The names, from the input to the output.
    """
    return ("stem", *(f"stage{i + 1}" for i in range(len(model.stages))), "head")


def freeze(model: ResNet, stages: Iterable[str]) -> ResNet:
    """Make a copy whose named parts are frozen: for fine-tuning.

    What this changes is the batch normalization of those parts: in train mode, too, it uses its
    running statistics and leaves them as they are, bit for bit. That their *parameters* stay is the
    optimizer's business, which has to leave out what `labels` calls `"frozen"`:

        model = resnet.freeze(model, ["stem", "stage1"])
        optimizer = optax.multi_transform(
            {"trained": optax.sgd(0.01), "frozen": optax.set_to_zero()}, resnet.labels(model)
        )

    A plain gradient mask is not enough: weight decay and momentum would still move them.

    Args:
        model: The network; it is not changed.
        stages: Names out of `parts(model)`; none unfreezes everything.

    Returns:
        A network with the same values and modes.

    Raises:
        ValueError: A name is not one of `parts(model)`.
        TypeError: `stages` is one string.

    Example:
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import resnet
        >>> model = resnet.cifar_resnet(8, width=2, rngs=nnx.Rngs(0))
        >>> resnet.freeze(model, ["stem", "stage1"]).frozen
        ('stem', 'stage1')
    """
    if isinstance(stages, str):
        raise TypeError(f"stages must be a list of names, got the string {stages!r}")
    names = parts(model)
    chosen = set()
    for stage in stages:
        _checks.one_of("stages", stage, names)
        chosen.add(stage)
    copy = nnx.clone(model)
    copy.frozen = tuple(name for name in names if name in chosen)
    return copy


def labels(model: ResNet) -> PyTree[str]:
    """Label each parameter `"frozen"` or `"trained"`, for `optax.multi_transform`.

    Args:
        model: A network from `freeze`; of any other, all is `"trained"`.

    Returns:
        The structure of `loop.bind(model).params`, with a string for each array. For
        `optax.masked`, `jax.tree.map(lambda label: label == "trained", labels(model))` is a mask.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import resnet
        >>> model = resnet.cifar_resnet(8, width=2, rngs=nnx.Rngs(0))
        >>> every = jax.tree.leaves(resnet.labels(resnet.freeze(model, ["head"])))
        >>> every.count("frozen"), len(every)
        (2, 23)
    """

    def label(path: tuple[Any, ...], _: Array) -> str:
        return "frozen" if _part(_keys(path)) in model.frozen else "trained"

    return jax.tree_util.tree_map_with_path(label, nnx.as_pure(nnx.state(model, nnx.Param)))


def load_torchvision(model: ResNet, path: str | os.PathLike[str], *, head: bool = True) -> ResNet:
    """Make a copy with weights from a safetensors file in torchvision's layout.

    Names (`layer1.0.conv1.weight`, `bn1.running_mean`, `fc.weight`) and shapes must be those of
    the model, all of them, or nothing is loaded. Values take the dtype that the model has.
    torchvision's counters `num_batches_tracked` are passed over: they take no part in the
    mathematics.

    Args:
        model: The network that the file must fit; it is not changed. It may be abstract, from
            `nnx.eval_shape`: then no array is made in vain.
        path: The file.
        head: Whether to read the last layer. False leaves the model's own, for fine-tuning with
            other classes.

    Returns:
        The network with the file's values.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or no safetensors file, or arrays are missing, unexpected,
            of another shape or not of floating point; the message lists them.

    Example:
        >>> import pathlib, tempfile
        >>> from flax import nnx
        >>> from mlnotes_jax.nets import resnet
        >>> trained = resnet.cifar_resnet(8, width=2, rngs=nnx.Rngs(0))
        >>> other = resnet.cifar_resnet(8, 3, width=2, rngs=nnx.Rngs(1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "weights.safetensors"
        ...     resnet.save_torchvision(trained, path)
        ...     tuned = resnet.load_torchvision(other, path, head=False)
        >>> bool((tuned.stem.conv.kernel[...] == trained.stem.conv.kernel[...]).all())
        True

    Note:
        PyTorch writes such a file by `safetensors.torch.save_file(model.state_dict(), path)`. A
        `.pth` file is a pickle, which can run what is in it, and is not read.
    """
    graphdef, arrays, rest = nnx.split(model, (nnx.Param, nnx.BatchStat), ...)
    leaves, tree = jax.tree_util.tree_flatten_with_path(nnx.as_pure(arrays))
    own = {_torchvision.name(_keys(where)): leaf for where, leaf in leaves}
    kept = {name: leaf for name, leaf in own.items() if not head and name.startswith("fc.")}
    wanted = {
        name: _torchvision.torch_shape(leaf.shape) for name, leaf in own.items() if name not in kept
    }
    read = _torchvision.read(path, wanted, skipped=kept)
    values = [
        kept[name]
        if name in kept
        else jnp.asarray(_torchvision.from_torch(read[name]), dtype=leaf.dtype)
        for name, leaf in own.items()
    ]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, values), rest)


def save_torchvision(model: ResNet, path: str | os.PathLike[str]) -> None:
    """Write parameters and running statistics in torchvision's names and layout.

    The file takes its name only when it is complete. `torchvision.models.resnet18()` and the like
    read it by `model.load_state_dict(safetensors.torch.load_file(path))`.

    Args:
        model: A network. For a pre-activation one the names are of the same kind, but torchvision
            has no such network.
        path: The file to write, by custom `*.safetensors`.

    Raises:
        OSError: The file cannot be written.
    """
    arrays = nnx.as_pure(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    _torchvision.write(
        path,
        {
            _torchvision.name(_keys(where)): _torchvision.to_torch(np.asarray(leaf))
            for where, leaf in leaves
        },
    )


# --- Private --------------------------------------------------------------------------------------


def _kernel_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """He's rule, by the number of outputs: keeps the size of gradients through ReLU."""
    return _initial.he(math.prod(shape[:-2]) * shape[-1])(key, shape, dtype)


def _head_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """The variance that PyTorch's uniform numbers have."""
    return _initial.normal(key, shape, dtype, variance=1 / (3 * shape[0]))


def _conv(
    in_features: int,
    features: int,
    window: int,
    *,
    stride: int = 1,
    kernel_init: Callable[..., Array] = _kernel_init,
    rngs: nnx.Rngs,
) -> convolution.Conv:
    """A convolution without bias that keeps the side (at stride 1)."""
    return convolution.Conv(
        in_features,
        features,
        window,
        stride=stride,
        padding=window // 2,
        use_bias=False,
        kernel_init=kernel_init,
        rngs=rngs,
    )


def _last_norm(features: int, zero_init: bool, rngs: nnx.Rngs) -> normalization.BatchNorm:
    init = nnx.initializers.zeros if zero_init else nnx.initializers.ones
    return normalization.BatchNorm(features, scale_init=init, rngs=rngs)


def _keys(path: tuple[Any, ...]) -> tuple[str | int, ...]:
    return tuple(entry.key for entry in path)


def _part(path: tuple[str | int, ...]) -> str:
    """The part, as in `parts`, that holds the parameter at `path`."""
    first, second = path[:2]
    if first == "stages":
        return f"stage{int(second) + 1}"
    return "head" if first in ("head", "norm") else str(first)


def _modules(model: ResNet, part: str) -> list[nnx.Module]:
    """The modules of one part."""
    if part == "stem":
        return [model.stem]
    if part == "head":
        return [model.head] if model.norm is None else [model.norm, model.head]
    return list(model.stages[int(part.removeprefix("stage")) - 1])
