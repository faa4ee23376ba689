"""What filters see in a photograph, what a filter can learn, and what a stack of layers costs.

Five windows made by hand slide over a photograph: two find edges, the others blur, sharpen and find
corners. Then windows that start at random are shown noise and what the windows made by hand make of
it, and gradient descent finds them. Last, the sizes, receptive fields and costs of the
convolutional part of the notes' network.
"""

from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from mlnotes_jax import _checks
from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures
from mlnotes_jax.foundations import gradient_descent as gd
from mlnotes_jax.nets import convolution as cv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FILTERS", "Problem", "Result", "layers", "plot", "problem", "run", "tables"]

#: Windows of 3 by 3 made by hand.
FILTERS = {
    "edges left to right": ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    "edges top to bottom": ((-1, -2, -1), (0, 0, 0), (1, 2, 1)),
    "Laplacian": ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
    "sharper": ((0, -1, 0), (-1, 5, -1), (0, -1, 0)),
    "blurred": ((1 / 16, 2 / 16, 1 / 16), (2 / 16, 4 / 16, 2 / 16), (1 / 16, 2 / 16, 1 / 16)),
}

BRIGHTNESS = (0.299, 0.587, 0.114)  # of red, green and blue, to the eye (ITU-R BT.601)
SIDE, CHANNELS, CLASSES = 128, 3, 11  # of the notes' network
_LICENCE = "CC BY 2.0"
_OWNERS = {"china": "danielbuechele", "flower": "vultilion"}


class Problem(NamedTuple):
    """A photograph `(height, width, 3)` with values in 0..1, and where it comes from."""

    picture: Array
    source: datasets.Source


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The photograph.
        picture: It, made smaller, shape `(height, width, 3)`.
        brightness: Of each pixel, by a convolution with a window of 1, shape `(height, width)`.
        responses: Of the windows of `FILTERS`, shape `(height, width, 5)`.
        edges: Strength of the edges: the two first responses as one length, `(height, width)`.
        pooled: The strongest edge in each window of 8 by 8.
        kernel: The windows, shape `(3, 3, 1, 5)`.
        learned: The windows that descent found, the same shape.
        loss: Mean squared error before each step and after the last.
        shape: One input of the stack.
        costs: Of each layer of the stack.
        batch_size: Pictures at a time, for the memory.
        memory: For training with momentum, for training with Adam, and for prediction.
    """

    source: datasets.Source
    picture: Array
    brightness: Array
    responses: Array
    edges: Array
    pooled: Array
    kernel: Array
    learned: Array
    loss: Array
    shape: tuple[int, int, int]
    costs: tuple[cv.Cost, ...]
    batch_size: int
    memory: tuple[cv.Memory, cv.Memory, cv.Memory]


def problem(
    key: Key[Array, ""] | None = None, *, picture: Literal["china", "flower"] = "china"
) -> Problem:
    """Read a photograph that scikit-learn ships.

    Args:
        key: Not used: nothing is drawn.
        picture: Which one: a Chinese temple, or a flower.

    Returns:
        The photograph and its source.
    """
    del key
    _checks.one_of("picture", picture, tuple(_OWNERS))
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image(f"{picture}.jpg")
    height, width, _ = pixels.shape
    source = datasets.Source(
        name=f"{picture}.jpg",
        origin=f"a photograph by {_OWNERS[picture]}, shipped in scikit-learn",
        licence=_LICENCE,
        size=f"{height} x {width} pixels",
    )
    return Problem(jnp.asarray(pixels, jnp.float32) / 255, source)


def layers(widths: tuple[int, ...] = (64, 128, 256, 512, 512)) -> list[cv.Layer]:
    """The notes' network: 3 by 3 convolutions, each with norm, ReLU and pooling; then dense."""
    stack = []
    for features in widths:
        stack += [
            cv.Layer("conv", features, 3, padding=1),
            cv.Layer("norm"),
            cv.Layer("activation"),
            cv.Layer("pool", window=2),
        ]
    for features in (1024, 512):
        stack += [cv.Layer("dense", features), cv.Layer("activation")]
    return [*stack, cv.Layer("dense", CLASSES)]


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    picture: Literal["china", "flower"] = "china",
    shrink: int = 2,
    num_steps: int = 30,
    learning_rate: float = 0.4,
    batch_size: int = 64,
) -> Result:
    """Filter a photograph, learn the filters, count what a network costs.

    Args:
        key: For the noise that is shown, and for the windows at the start.
        quick: Make the photograph smaller still.
        picture: A photograph of scikit-learn.
        shrink: Side of the squares of pixels whose mean becomes one pixel.
        num_steps: Steps of descent.
        learning_rate: Of descent.
        batch_size: Pictures at a time, for the estimate of the memory.

    Returns:
        Pictures, windows, costs.
    """
    data = problem(key, picture=picture)
    small = cv.average_pool(data.picture, 2 * shrink if quick else shrink)
    kernel = jnp.asarray(list(FILTERS.values()), jnp.float32)
    kernel = jnp.moveaxis(kernel, 0, -1)[:, :, None]
    brightness, responses, edges, pooled = _look(small, kernel)
    learned, loss = _learn(key, kernel, learning_rate, num_steps)

    shape, stack = (SIDE, SIDE, CHANNELS), layers()
    estimate = partial(cv.memory, stack, shape, batch_size=batch_size)
    return Result(
        source=data.source,
        picture=small,
        brightness=brightness,
        responses=responses,
        edges=edges,
        pooled=pooled,
        kernel=kernel,
        learned=learned,
        loss=loss,
        shape=shape,
        costs=cv.costs(stack, shape, strict=True),
        batch_size=batch_size,
        memory=(
            estimate(optimizer_slots=1),
            estimate(optimizer_slots=2),
            estimate(training=False),
        ),
    )


@jax.jit
def _look(picture: Array, kernel: Array) -> tuple[Array, Array, Array, Array]:
    """Brightness, responses, edges, and the strongest of them."""
    weights = jnp.asarray(BRIGHTNESS).reshape(1, 1, 3, 1)
    brightness = cv.conv(picture, weights)
    # With zeros around it, the photograph would have edges where it ends.
    responses = cv.conv(brightness, kernel, padding=1, padding_mode="replicate")
    edges = jnp.sqrt(jnp.square(responses[..., :2]).sum(axis=-1, keepdims=True))
    pooled = cv.max_pool(edges, 8)
    return brightness[..., 0], responses, edges[..., 0], pooled[..., 0]


@partial(jax.jit, static_argnames="num_steps")
def _learn(key: Array, kernel: Array, rate: float, num_steps: int) -> tuple[Array, Array]:
    """Find windows from noise and what they make of it."""
    noise_key, start_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (8, 32, 32, 1))
    answers = cv.conv(noise, kernel)
    start = jax.random.normal(start_key, kernel.shape)

    def loss(kernel: Array, noise: Array, answers: Array) -> Array:
        return jnp.square(cv.conv(noise, kernel) - answers).sum(axis=-1).mean()

    walk = gd.gradient_descent(loss, start, noise, answers, learning_rate=rate, num_steps=num_steps)
    return walk.params, walk.loss


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    error = np.abs(np.asarray(result.learned - result.kernel)).max(axis=(0, 1, 2))
    names = ("training, momentum", "training, Adam", "prediction")
    stack = " x ".join(map(str, result.shape))
    return {
        f"Windows found from noise, {len(result.loss) - 1} steps": [
            {"window": name, "largest weight": round(float(np.abs(taps).max()), 4), "error": each}
            for (name, taps), each in zip(FILTERS.items(), error, strict=True)
        ],
        f"The notes' network, one picture of {stack}": [
            {
                "layer": _name(row.layer),
                "output": "x".join(map(str, row.shape)),
                "sees": row.receptive_field[0],
                "parameters": row.parameters,
                "million products": round(row.multiply_adds / 1e6, 2),
            }
            for row in result.costs
            if row.layer.kind in ("conv", "pool", "dense")
        ],
        f"Memory, {result.batch_size} pictures, float32, MB of 2^20 bytes": [
            {
                "for": name,
                **{part: round(size / 2**20, 1) for part, size in each._asdict().items()},
            }
            for name, each in zip(names, result.memory, strict=True)
        ],
    }


def _name(layer: cv.Layer) -> str:
    return layer.kind if layer.kind == "dense" else f"{layer.kind} {layer.window}x{layer.window}"


def plot(result: Result) -> "Figure":
    """Draw the photograph and what the windows make of it."""
    import matplotlib.pyplot as plt

    names = list(FILTERS)
    with figures.style():
        figure, axes = plt.subplots(2, 4, figsize=(9, 3.9))
        panels = [
            ("photograph", result.picture),
            (names[4], result.responses[..., 4]),
            (names[3], result.responses[..., 3]),
            (names[2], result.responses[..., 2]),
            (names[0], result.responses[..., 0]),
            (names[1], result.responses[..., 1]),
            ("edges, both ways", result.edges),
            ("strongest in 8 x 8", result.pooled),
        ]
        for axis, (title, values) in zip(axes.ravel(), panels, strict=True):
            image = np.asarray(values)
            if image.ndim == 3:
                axis.imshow(image)
            elif title in names[:3]:  # signed: zero in the middle
                limit = float(np.quantile(np.abs(image), 0.99))
                axis.imshow(image, cmap="gray", vmin=-limit, vmax=limit)
            elif title in names:
                axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            else:
                axis.imshow(image, cmap="cividis", vmax=float(np.quantile(image, 0.99)))
            axis.set_title(title, fontsize="small")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
            axis.spines[:].set_visible(False)
        figure.suptitle("A photograph, and what windows of 3 by 3 make of it")
    return figure
