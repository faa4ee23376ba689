"""Pictures for the demos of networks: digits, which need no download, or Fashion-MNIST."""

from pathlib import Path
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mlnotes_jax.data import datasets

Name = Literal["digits", "fashion-mnist"]
Choice = Literal["auto", "digits", "fashion-mnist"]


class Pictures(NamedTuple):
    """Pictures in two parts.

    Attributes:
        x_train: Pixels in [0, 1], shape `(n, height, width, 1)`.
        y_train: Classes 0..9, shape `(n,)`.
        x_test: Pixels likewise, shape `(m, height, width, 1)`.
        y_test: Classes, shape `(m,)`.
        class_names: One for each class.
        source: Where they come from.
    """

    x_train: Float[np.ndarray, "n h w 1"]
    y_train: Int[np.ndarray, " n"]
    x_test: Float[np.ndarray, "m h w 1"]
    y_test: Int[np.ndarray, " m"]
    class_names: tuple[str, ...]
    source: datasets.Source


def load(key: Array, name: Choice, *, data_dir: Path | None = None) -> Pictures:
    """Read the pictures.

    Args:
        key: Draws the split of the digits.
        name: `"digits"`: 1797 pictures of 8x8 pixels, a fifth of them, drawn by class, for
            testing; `"fashion-mnist"`: 60 000 and 10 000 pictures of 28x28 pixels, as published;
            `"auto"`: those where they are found, else the digits.
        data_dir: Folder of Fashion-MNIST; see `datasets.fashion_mnist`. Where it is named, `"auto"`
            wants them there.

    Returns:
        The pictures.

    Raises:
        FileNotFoundError: Fashion-MNIST is not found; the message says where it was looked for.
    """
    if name == "auto":
        try:
            return load(key, "fashion-mnist", data_dir=data_dir)
        except FileNotFoundError:
            if data_dir is not None:
                raise
            name = "digits"
    if name == "digits":
        data = datasets.load("digits")
        x = (data.x / 16).astype(np.float32).reshape(-1, 8, 8, 1)
        train, test = datasets.split(key, data.y)
        return Pictures(
            x[train], data.y[train], x[test], data.y[test], data.class_names, data.source
        )
    train = datasets.fashion_mnist(data_dir, part="train")
    test = datasets.fashion_mnist(data_dir, part="test")
    pixels = [(part.x / np.float32(255))[..., None] for part in (train, test)]
    return Pictures(pixels[0], train.y, pixels[1], test.y, train.class_names, train.source)


def accuracy(logits: Float[Array, "n k"], labels: Int[Array, " n"]) -> Float[Array, ""]:
    """Share of rows whose largest logit is that of their class."""
    return (logits.argmax(axis=-1) == labels).mean(dtype=jnp.float32)
