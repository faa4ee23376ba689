r"""Augmentation: train on pictures that were moved, turned, spoilt or mixed, with their labels.

A map $g$ of pictures, drawn anew each time, is put before the model: instead of the loss of the
rows, training lowers the mean

$$ \frac1n \sum_{i=1}^n \mathbb E_g\, L\big(f(g\, x_i),\, y_i\big) , $$

which is right if $g$ keeps the label. `mixup` also mixes the labels, which are probabilities then.

- A random function takes a key, then one picture `(h, w, c)` or a batch `(n, h, w, c)`. A batch is
  the single form with one key for each picture: `f(key, x)[i]` is `f(split(key, n)[i], x[i])`.
- `flip`, `crop`, `shift`, `rotate`, `cutout` and `mix` are the maps themselves, without a draw.
- Pictures keep their dtype. What computes new grey values (rotation, noise, mixing) wants floats.

Reference: Shorten and Khoshgoftaar, *A survey on Image Data Augmentation for Deep Learning* (2019).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key, Num, Shaped

from mlnotes_jax import _checks

__all__ = [
    "compose",
    "crop",
    "cutout",
    "flip",
    "gaussian_noise",
    "mix",
    "mixup",
    "random_crop",
    "random_cutout",
    "random_flip",
    "random_rotation",
    "random_shift",
    "rotate",
    "shift",
]

#: A random map of one picture or a batch: `(key, x) -> x`.
Transform = Callable[[Array, Array], Array]

Axis = Literal["width", "height"]
Mode = Literal["constant", "edge", "reflect"]


# --- Maps -----------------------------------------------------------------------------------------


def flip(x: Shaped[ArrayLike, "*n h w c"], *, axis: Axis = "width") -> Shaped[Array, "*n h w c"]:
    """Mirror pictures: left and right change places, or top and bottom.

    Args:
        x: One picture or many, shape `(..., h, w, c)`, any dtype.
        axis: `"width"` exchanges left and right, `"height"` top and bottom; static.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: `x` has fewer than three axes, or `axis` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import augmentation
        >>> x = jnp.arange(4.0).reshape(2, 2, 1)
        >>> augmentation.flip(x)[..., 0].tolist()
        [[1.0, 0.0], [3.0, 2.0]]
    """
    _checks.one_of("axis", axis, ("width", "height"))
    return jnp.flip(_pictures(x), -2 if axis == "width" else -3)


def crop(
    x: Shaped[ArrayLike, "h w c"],
    corner: Int[ArrayLike, "2"],
    *,
    size: tuple[int, int],
    mode: Mode = "constant",
    fill: Num[ArrayLike, "..."] = 0,
) -> Shaped[Array, "height width c"]:
    r"""Cut a window out of a picture; it may reach over the border.

    $$ \text{out}[i, j] = x[t + i,\, l + j] $$

    Outside of the picture stands `fill` (mode `"constant"`), the nearest pixel (`"edge"`), or the
    picture's mirror image (`"reflect"`), as in `numpy.pad`.

    Args:
        x: One picture, shape `(h, w, c)`, any dtype.
        corner: $(t, l)$, row and column of the first pixel of the window; may be negative. Traced.
        size: Height and width of the window; static.
        mode: What lies outside; static.
        fill: One number, or one for each channel. Traced.

    Returns:
        The window, shape `(*size, c)`, in the dtype of `x`.

    Raises:
        ValueError: A shape does not fit, or an option is not allowed.
        TypeError: `corner` is not integer, or `size` not a pair of integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import augmentation
        >>> x = jnp.arange(1.0, 5.0).reshape(2, 2, 1)
        >>> augmentation.crop(x, [-1, 0], size=(2, 2))[..., 0].tolist()
        [[0.0, 0.0], [1.0, 2.0]]
    """
    picture = _pictures(x, ndim=3)
    at = _pair("corner", corner)
    _check_size("size", size)
    _checks.one_of("mode", mode, ("constant", "edge", "reflect"))
    return _crop(picture, at, _fill(fill, picture), size, mode)


def shift(
    x: Shaped[ArrayLike, "h w c"],
    offset: Int[ArrayLike, "2"],
    *,
    mode: Mode = "constant",
    fill: Num[ArrayLike, "..."] = 0,
) -> Shaped[Array, "h w c"]:
    r"""Move a picture by whole pixels: $\text{out}[i, j] = x[i - d_r,\, j - d_c]$.

    Args:
        x: One picture, shape `(h, w, c)`, any dtype.
        offset: $(d_r, d_c)$, downwards and to the right. Traced.
        mode: What comes in at the border, as in `crop`; static.
        fill: One number, or one for each channel. Traced.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: A shape does not fit, or an option is not allowed.
        TypeError: `offset` is not integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import augmentation
        >>> x = jnp.arange(1.0, 5.0).reshape(2, 2, 1)
        >>> augmentation.shift(x, [1, 0])[..., 0].tolist()
        [[0.0, 0.0], [1.0, 2.0]]
    """
    picture = _pictures(x, ndim=3)
    return crop(
        picture, -_pair("offset", offset), size=_height_width(picture), mode=mode, fill=fill
    )


def rotate(
    x: Float[ArrayLike, "h w c"],
    angle: Float[ArrayLike, ""],
    *,
    fill: Num[ArrayLike, "..."] = 0,
) -> Float[Array, "h w c"]:
    r"""Turn a picture about its centre, anticlockwise as it is seen, with bilinear interpolation.

    With $u$ to the right and $v$ upwards from the centre, the pixel at $(u, v)$ is looked up at

    $$ u' = u \cos\theta + v \sin\theta, \qquad v' = -u \sin\theta + v \cos\theta $$

    and is the mean of the four pixels around it, weighted by how near they are. Outside of the
    picture stands `fill`.

    Args:
        x: One picture, shape `(h, w, c)`.
        angle: $\theta$ in radians. Traced; the result is differentiable in it almost everywhere.
        fill: One number, or one for each channel. Traced.

    Returns:
        The same shape and dtype; corners that left the frame are lost. Computed in at least
        float32.

    Raises:
        ValueError: A shape does not fit.
        TypeError: `x` is not floating-point.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import augmentation
        >>> x = jnp.arange(4.0).reshape(2, 2, 1)
        >>> augmentation.rotate(x, jnp.pi / 2)[..., 0].round(4).tolist()
        [[1.0, 3.0], [0.0, 2.0]]

    Note:
        `scipy.ndimage.rotate(x, degrees, reshape=False, order=1, mode="grid-constant")`.
    """
    picture = _pictures(x, ndim=3, floating=True)
    theta = _checks.floating("angle", angle, ndim=0)
    return _rotate(picture, theta, _fill(fill, picture))


def cutout(
    x: Shaped[ArrayLike, "h w c"],
    centre: Int[ArrayLike, "2"],
    *,
    size: int,
    fill: Num[ArrayLike, "..."] = 0,
) -> Shaped[Array, "h w c"]:
    """Cover a square of a picture; what of it lies outside is cut off.

    Rows `centre[0] - size // 2` to `centre[0] - size // 2 + size - 1` are covered, and columns
    likewise.

    Args:
        x: One picture, shape `(h, w, c)`, any dtype.
        centre: Row and column. Traced.
        size: Side of the square; static.
        fill: One number, or one for each channel. Traced.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: A shape does not fit, or `size` is less than 1.
        TypeError: `centre` or `size` is not integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import augmentation
        >>> augmentation.cutout(jnp.ones((2, 3, 1)), [0, 0], size=2)[..., 0].tolist()
        [[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]

    Reference: DeVries and Taylor, *Improved Regularization of Convolutional Neural Networks with
    Cutout* (2017).
    """
    picture = _pictures(x, ndim=3)
    at = _pair("centre", centre)
    _checks.positive_int("size", size)
    return _cutout(picture, at, _fill(fill, picture), size)


def mix(
    x: Float[ArrayLike, "n ..."],
    y: Float[ArrayLike, "n k"],
    partner: Int[ArrayLike, " n"],
    weight: Float[ArrayLike, " n"],
) -> tuple[Float[Array, "n ..."], Float[Array, "n k"]]:
    r"""Mix each row with a partner, inputs and labels alike.

    $$ \tilde x_i = \lambda_i x_i + (1 - \lambda_i)\, x_{\pi(i)}, \qquad
       \tilde y_i = \lambda_i y_i + (1 - \lambda_i)\, y_{\pi(i)} . $$

    Args:
        x: Inputs, shape `(n, ...)`: pictures, or rows of features.
        y: Labels as probabilities, shape `(n, k)`; `data.labels.one_hot` makes them of classes.
        partner: $\pi(i)$ in 0..n-1, shape `(n,)`. Under a transformation another one makes its
            row NaN.
        weight: $\lambda_i$ in [0, 1], shape `(n,)`.

    Returns:
        Inputs and labels, in their shapes and dtypes.

    Raises:
        ValueError: Shapes do not fit, or a concrete value is out of range.
        TypeError: `x` or `y` are not floating-point, or `partner` is not integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import augmentation
        >>> x, y = jnp.array([[0.0], [8.0]]), jnp.eye(2)
        >>> x, y = augmentation.mix(x, y, [1, 0], [0.75, 1.0])
        >>> x.tolist(), y.tolist()
        ([[2.0], [8.0]], [[0.75, 0.25], [0.0, 1.0]])

    Reference: Zhang, Cisse, Dauphin and Lopez-Paz, *mixup: Beyond Empirical Risk Minimization*
    (ICLR 2018).
    """
    inputs, targets = _mixable(x, y)
    others = _checks.integer("partner", partner, ndim=1)
    shares = _checks.floating("weight", weight, ndim=1)
    _checks.same_length(x=inputs, partner=others, weight=shares)
    if _checks.is_concrete(others):
        _checks.in_range("partner", others, 0, len(inputs) - 1)
    _checks.in_range("weight", shares, 0, 1)
    shares = jnp.where((others >= 0) & (others < len(inputs)), shares, jnp.nan)
    return _mixed(inputs, others, shares), _mixed(targets, others, shares)


# --- Draws ----------------------------------------------------------------------------------------


def random_flip(
    key: Key[Array, ""],
    x: Shaped[ArrayLike, "*n h w c"],
    *,
    probability: Float[ArrayLike, ""] = 0.5,
    axis: Axis = "width",
) -> Shaped[Array, "*n h w c"]:
    """Mirror each picture with a probability.

    Args:
        key: For the draws.
        x: One picture or a batch, shape `(h, w, c)` or `(n, h, w, c)`, any dtype.
        probability: That a picture is flipped, in [0, 1]. Traced.
        axis: As in `flip`; static.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: A shape does not fit, or an option is not allowed.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import augmentation
        >>> x = jnp.arange(2.0).reshape(1, 2, 1) * jnp.ones((1000, 1, 1, 1))
        >>> 450 < int(augmentation.random_flip(jax.random.key(0), x)[:, 0, 0].sum()) < 550
        True
    """
    p = _checks.floating("probability", probability, ndim=0)
    _checks.in_range("probability", p, 0, 1)
    _checks.one_of("axis", axis, ("width", "height"))
    return _each(key, x, _random_flip, (p,), axis)


def random_crop(
    key: Key[Array, ""],
    x: Shaped[ArrayLike, "*n h w c"],
    *,
    size: tuple[int, int],
    padding: int = 0,
    mode: Mode = "constant",
    fill: Num[ArrayLike, "..."] = 0,
) -> Shaped[Array, "*n height width c"]:
    """Cut a window at a random place out of each picture with a border around it.

    All places at which the window fits are equally likely. `size` of the picture and `padding=4`
    are what networks for CIFAR are trained with.

    Args:
        key: For the draws.
        x: One picture or a batch, shape `(h, w, c)` or `(n, h, w, c)`, any dtype.
        size: Height and width of the window; static.
        padding: Width of the border on each side, >= 0; static.
        mode: What the border holds, as in `crop`; static.
        fill: One number, or one for each channel. Traced.

    Returns:
        Windows, shape `(*size, c)` or `(n, *size, c)`, in the dtype of `x`.

    Raises:
        ValueError: A shape does not fit, or an option is not allowed.
        TypeError: `size` or `padding` is not integer.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import augmentation
        >>> x = jnp.ones((5, 28, 28, 1))
        >>> augmentation.random_crop(jax.random.key(0), x, size=(24, 24)).shape
        (5, 24, 24, 1)
    """
    pictures = _pictures(x, ndim=(3, 4))
    _check_size("size", size)
    _checks.positive_int("padding", padding, least=0)
    _checks.one_of("mode", mode, ("constant", "edge", "reflect"))
    height, width = _height_width(pictures)
    if size[0] > height + 2 * padding or size[1] > width + 2 * padding:
        raise ValueError(
            f"size must fit into the padded picture {height + 2 * padding, width + 2 * padding}, "
            f"got {size}"
        )
    return _each(key, pictures, _random_crop, (_fill(fill, pictures),), (*size, padding, mode))


def random_shift(
    key: Key[Array, ""],
    x: Shaped[ArrayLike, "*n h w c"],
    *,
    max_shift: int,
    mode: Mode = "constant",
    fill: Num[ArrayLike, "..."] = 0,
) -> Shaped[Array, "*n h w c"]:
    """Move each picture by up to `max_shift` pixels in both directions, all moves equally likely.

    The same as `random_crop` with the picture's own size and `padding=max_shift`.

    Args:
        key: For the draws.
        x: One picture or a batch, shape `(h, w, c)` or `(n, h, w, c)`, any dtype.
        max_shift: Most pixels, >= 0; static.
        mode: What comes in at the border, as in `crop`; static.
        fill: One number, or one for each channel. Traced.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: A shape does not fit, or an option is not allowed.
        TypeError: `max_shift` is not an integer.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import augmentation
        >>> augmentation.random_shift(jax.random.key(0), jnp.ones((8, 8, 1)), max_shift=1).shape
        (8, 8, 1)
    """
    pictures = _pictures(x, ndim=(3, 4))
    _checks.positive_int("max_shift", max_shift, least=0)
    return random_crop(
        key, pictures, size=_height_width(pictures), padding=max_shift, mode=mode, fill=fill
    )


def random_rotation(
    key: Key[Array, ""],
    x: Float[ArrayLike, "*n h w c"],
    *,
    max_angle: Float[ArrayLike, ""],
    fill: Num[ArrayLike, "..."] = 0,
) -> Float[Array, "*n h w c"]:
    r"""Turn each picture by an angle uniform in $[-\theta, \theta]$; see `rotate`.

    Args:
        key: For the draws.
        x: One picture or a batch, shape `(h, w, c)` or `(n, h, w, c)`.
        max_angle: $\theta \ge 0$ in radians. Traced.
        fill: One number, or one for each channel. Traced.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: A shape does not fit, or `max_angle` is negative.
        TypeError: `x` is not floating-point.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import augmentation
        >>> key, x = jax.random.key(0), jnp.ones((2, 8, 8, 1))
        >>> augmentation.random_rotation(key, x, max_angle=jnp.pi / 12).shape
        (2, 8, 8, 1)
    """
    pictures = _pictures(x, ndim=(3, 4), floating=True)
    most = _checks.floating("max_angle", max_angle, ndim=0)
    _checks.not_negative("max_angle", most)
    return _each(key, pictures, _random_rotation, (most, _fill(fill, pictures)))


def gaussian_noise(
    key: Key[Array, ""], x: Float[ArrayLike, "*n h w c"], *, scale: Float[ArrayLike, ""]
) -> Float[Array, "*n h w c"]:
    r"""Add independent noise $\sigma \epsilon$ to every grey value; nothing is clipped.

    Args:
        key: For the draws.
        x: One picture or a batch, shape `(h, w, c)` or `(n, h, w, c)`.
        scale: $\sigma \ge 0$, in the unit of the grey values. Traced.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: A shape does not fit, or `scale` is negative.
        TypeError: `x` is not floating-point.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import augmentation
        >>> x = augmentation.gaussian_noise(jax.random.key(0), jnp.zeros((64, 64, 1)), scale=0.5)
        >>> round(float(x.std()), 1)
        0.5

    Reference: Bishop, *Training with Noise is Equivalent to Tikhonov Regularization* (1995).
    """
    pictures = _pictures(x, ndim=(3, 4), floating=True)
    sigma = _checks.floating("scale", scale, ndim=0)
    _checks.not_negative("scale", sigma)
    return _each(key, pictures, _gaussian_noise, (sigma,))


def random_cutout(
    key: Key[Array, ""],
    x: Shaped[ArrayLike, "*n h w c"],
    *,
    size: int,
    fill: Num[ArrayLike, "..."] = 0,
) -> Shaped[Array, "*n h w c"]:
    """Cover a square around a random pixel of each picture; see `cutout`.

    Args:
        key: For the draws.
        x: One picture or a batch, shape `(h, w, c)` or `(n, h, w, c)`, any dtype.
        size: Side of the square; static.
        fill: One number, or one for each channel. Traced.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: A shape does not fit, or `size` is less than 1.
        TypeError: `size` is not an integer.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import augmentation
        >>> x = augmentation.random_cutout(jax.random.key(0), jnp.ones((8, 8, 1)), size=1)
        >>> float(x.sum())
        63.0
    """
    pictures = _pictures(x, ndim=(3, 4))
    _checks.positive_int("size", size)
    return _each(key, pictures, _random_cutout, (_fill(fill, pictures),), size)


def mixup(
    key: Key[Array, ""],
    x: Float[ArrayLike, "n ..."],
    y: Float[ArrayLike, "n k"],
    *,
    alpha: Float[ArrayLike, ""] = 0.2,
) -> tuple[Float[Array, "n ..."], Float[Array, "n k"]]:
    r"""Mix each row with another, by a share $\lambda_i \sim \operatorname{Beta}(\alpha, \alpha)$.

    The partners are a random permutation, so that every row is a partner once. $\mathbb E
    \lambda = \tfrac12$ and $\mathbb E\, \lambda (1 - \lambda) = \frac{\alpha}{2 (2 \alpha + 1)}$:
    0 leaves the rows alone or replaces them, infinity takes the middle.

    Args:
        key: For the draws.
        x: Inputs, shape `(n, ...)`.
        y: Labels as probabilities, shape `(n, k)`.
        alpha: $\alpha > 0$. Traced.

    Returns:
        Inputs and labels, in their shapes and dtypes; see `mix`.

    Raises:
        ValueError: Shapes do not fit, or `alpha` is not positive.
        TypeError: `x` or `y` are not floating-point.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import augmentation
        >>> x, y = augmentation.mixup(jax.random.key(0), jnp.ones((4, 8, 8, 1)), jnp.eye(4))
        >>> x.shape, [round(float(total), 3) for total in y.sum(axis=1)]
        ((4, 8, 8, 1), [1.0, 1.0, 1.0, 1.0])

    Reference: Zhang and others (2018). There one $\lambda$ serves a whole batch; here each row has
    its own.
    """
    inputs, targets = _mixable(x, y)
    spread = _checks.floating("alpha", alpha, ndim=0)
    _checks.positive("alpha", spread)
    return _mixup(key, inputs, targets, spread)


def compose(*transforms: Transform) -> Transform:
    """Do one map after the other, each with a key of its own.

    Args:
        *transforms: Functions `(key, x) -> x`, in the order in which they are applied. Settings are
            given by `functools.partial`.

    Returns:
        A function `(key, x) -> x`.

    Raises:
        TypeError: One of them cannot be called.

    Example:
        >>> import functools
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.generalization import augmentation
        >>> augment = augmentation.compose(
        ...     functools.partial(augmentation.random_shift, max_shift=2),
        ...     functools.partial(augmentation.gaussian_noise, scale=0.1),
        ... )
        >>> augment(jax.random.key(0), jnp.ones((5, 8, 8, 1))).shape
        (5, 8, 8, 1)
    """
    for i, transform in enumerate(transforms):
        if not callable(transform):
            raise TypeError(f"transforms must be functions (key, x) -> x, got {transform!r} at {i}")

    def composed(key: Array, x: Any) -> Any:
        for part, transform in zip(jax.random.split(key, len(transforms)), transforms, strict=True):
            x = transform(part, x)
        return x

    return composed


# --- One picture ----------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("size", "mode"))
def _crop(x: Array, corner: Array, fill: Array, size: tuple[int, int], mode: str) -> Array:
    out = x
    for axis, (length, first) in enumerate(zip(size, corner, strict=True)):
        place = jnp.arange(length, dtype=jnp.int32) + first
        last = x.shape[axis] - 1
        inside = (place >= 0) & (place <= last)
        if mode == "reflect":  # to and fro between the first pixel and the last
            place = last - jnp.abs(place % max(2 * last, 1) - last)
        out = jnp.take(out, jnp.clip(place, 0, last), axis=axis)
        if mode == "constant":
            out = jnp.where(inside.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1)), out, fill)
    return out


@jax.jit
def _rotate(x: Array, angle: Array, fill: Array) -> Array:
    height, width, _ = x.shape
    wide = _wide(x)
    cos, sin = jnp.cos(angle.astype(wide)), jnp.sin(angle.astype(wide))
    up = ((height - 1) / 2 - jnp.arange(height, dtype=jnp.int32).astype(wide))[:, None]
    right = (jnp.arange(width, dtype=jnp.int32).astype(wide) - (width - 1) / 2)[None]
    row = (height - 1) / 2 + right * sin - up * cos
    column = (width - 1) / 2 + right * cos + up * sin
    above, left = jnp.floor(row), jnp.floor(column)
    out = jnp.zeros(x.shape, wide)
    for r, share_r in ((above, 1 - (row - above)), (above + 1, row - above)):
        for c, share_c in ((left, 1 - (column - left)), (left + 1, column - left)):
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            pixel = x[
                jnp.clip(r, 0, height - 1).astype(jnp.int32),
                jnp.clip(c, 0, width - 1).astype(jnp.int32),
            ]
            pixel = jnp.where(inside[..., None], pixel, fill).astype(wide)
            out = out + (share_r * share_c)[..., None] * pixel
    return out.astype(x.dtype)


@functools.partial(jax.jit, static_argnames="size")
def _cutout(x: Array, centre: Array, fill: Array, size: int) -> Array:
    covered = []
    for length, middle in zip(_height_width(x), centre, strict=True):
        place = jnp.arange(length, dtype=jnp.int32) - middle + size // 2
        covered.append((place >= 0) & (place < size))
    return jnp.where((covered[0][:, None] & covered[1][None])[..., None], fill, x)


def _random_flip(key: Array, x: Array, probability: Array, axis: str) -> Array:
    mirrored = jnp.flip(x, -2 if axis == "width" else -3)
    return jnp.where(jax.random.bernoulli(key, probability), mirrored, x)


def _random_crop(key: Array, x: Array, fill: Array, options: tuple[int, int, int, str]) -> Array:
    height, width, padding, mode = options
    room = jnp.array([x.shape[0] - height, x.shape[1] - width], jnp.int32) + padding
    corner = jax.random.randint(key, (2,), -padding, room + 1, jnp.int32)
    return _crop(x, corner, fill, (height, width), mode)


def _random_rotation(key: Array, x: Array, max_angle: Array, fill: Array, _: None) -> Array:
    return _rotate(x, max_angle * jax.random.uniform(key, (), max_angle.dtype, -1, 1), fill)


def _gaussian_noise(key: Array, x: Array, scale: Array, _: None) -> Array:
    wide = _wide(x)
    noise = scale.astype(wide) * jax.random.normal(key, x.shape, wide)
    return (x.astype(wide) + noise).astype(x.dtype)


def _random_cutout(key: Array, x: Array, fill: Array, size: int) -> Array:
    ends = jnp.array(_height_width(x), jnp.int32)
    return _cutout(x, jax.random.randint(key, (2,), 0, ends, jnp.int32), fill, size)


# --- Batches --------------------------------------------------------------------------------------


def _each(
    key: Array,
    x: ArrayLike,
    one: Callable[..., Array],
    numbers: tuple[Array, ...],
    options: Any = None,
) -> Array:
    return _each_compiled(key, _pictures(x, ndim=(3, 4)), numbers, one, options)


@functools.partial(jax.jit, static_argnames=("one", "options"))
def _each_compiled(
    key: Array, x: Array, numbers: tuple[Array, ...], one: Callable[..., Array], options: Any
) -> Array:
    def alone(key: Array, x: Array) -> Array:
        return one(key, x, *numbers, options)

    return alone(key, x) if x.ndim == 3 else jax.vmap(alone)(jax.random.split(key, len(x)), x)


@jax.jit
def _mixup(key: Array, x: Array, y: Array, alpha: Array) -> tuple[Array, Array]:
    partner_key, share_key = jax.random.split(key)
    partner = jax.random.permutation(partner_key, jnp.arange(len(x), dtype=jnp.int32))
    wide = _wide(x)
    share = jax.random.beta(share_key, alpha.astype(wide), alpha.astype(wide), (len(x),), wide)
    return _mixed(x, partner, share), _mixed(y, partner, share)


def _mixed(values: Array, partner: Array, share: Array) -> Array:
    wide = _wide(values)
    own = share.astype(wide).reshape((-1,) + (1,) * (values.ndim - 1))
    both = values.astype(wide)
    return (own * both + (1 - own) * both[partner]).astype(values.dtype)


# --- What comes in --------------------------------------------------------------------------------


def _pictures(
    x: ArrayLike, *, ndim: int | tuple[int, ...] | None = None, floating: bool = False
) -> Array:
    try:
        array = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"x must be an array, got {type(x).__name__}") from error
    _checks.check_rank("x", array, ndim)
    if array.ndim < 3:
        raise ValueError(f"x must have axes (..., h, w, c), got shape {array.shape}")
    if floating:
        _check_floating("x", array)
    return array


def _check_floating(name: str, array: Array) -> None:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating-point: scale it first; got dtype {array.dtype}")


def _wide(x: Array) -> Any:
    return np.promote_types(x.dtype, np.float32)


def _height_width(x: Array) -> tuple[int, int]:
    return x.shape[-3], x.shape[-2]


def _pair(name: str, value: ArrayLike) -> Array:
    array = _checks.integer(name, value, ndim=1)
    if array.shape != (2,):
        raise ValueError(f"{name} must have shape (2,), got {array.shape}")
    return array.astype(jnp.int32)


def _check_size(name: str, size: Any) -> None:
    if not isinstance(size, tuple) or len(size) != 2:
        raise TypeError(f"{name} must be a pair (height, width), got {size!r}")
    for part in size:
        _checks.positive_int(name, part)


def _fill(fill: ArrayLike, x: Array) -> Array:
    array = jnp.asarray(fill)
    if array.shape not in ((), x.shape[-1:]):
        raise ValueError(f"fill must have shape () or {x.shape[-1:]}, got {array.shape}")
    return jnp.broadcast_to(array.astype(x.dtype), (1, 1, x.shape[-1]))


def _mixable(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    inputs, targets = jnp.asarray(x), jnp.asarray(y)
    _check_floating("x", inputs)
    if not jnp.issubdtype(targets.dtype, jnp.floating):
        raise TypeError(f"y must be probabilities: use labels.one_hot; got dtype {targets.dtype}")
    _checks.check_rank("y", targets, 2)
    if inputs.ndim == 0:
        raise ValueError("x must have rows, got shape ()")
    _checks.same_length(x=inputs, y=targets)
    return inputs, targets
