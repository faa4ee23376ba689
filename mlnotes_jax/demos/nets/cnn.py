"""A convolutional network of three blocks on pictures: digits, or Fashion-MNIST."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import _pictures, figures
from mlnotes_jax.foundations import losses
from mlnotes_jax.nets import cnn, convolution
from mlnotes_jax.training import loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PEAK_RATE, WEIGHT_DECAY, BATCH = 5e-3, 5e-4, 128


class Flipped(nnx.Module):
    """A network whose pictures are mirrored left to right with probability one half, in training.

    Args:
        network: Takes pictures `(n, h, w, c)`.
        rngs: Stream `dropout`; `loop.bind` gives it a new key in every step.
    """

    def __init__(self, network: nnx.Module, *, rngs: nnx.Rngs):
        self.network = network
        self.deterministic = False
        self.stream = nnx.RngStream(rngs.dropout(), tag="dropout")

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        """Logits."""
        if not self.deterministic:
            flip = jax.random.bernoulli(self.stream(), 0.5, (x.shape[0], 1, 1, 1))
            x = jnp.where(flip, x[:, :, ::-1], x)
        return self.network(x)


class Result(NamedTuple):
    """What was measured.

    Attributes:
        source: Which pictures.
        history: One number for each epoch: `loss`, `validation_loss`, `validation_accuracy`; the
            last two are of the test pictures, by which nothing is chosen.
        costs: Of the layers, from `convolution.costs`.
        accuracy: Share of the test pictures that the network after the last epoch names right.
        confusion: How often class i (row) was called class j (column), shape `(k, k)`.
        class_names: One for each class.
        pictures: The test pictures that it is most sure about and wrong, shape `(m, h, w)`.
        said: What it calls them, shape `(m,)`.
        truth: What they are, shape `(m,)`.
        filters: Of the first convolution, shape `(3, 3, filters)`.
    """

    source: datasets.Source
    history: dict[str, np.ndarray]
    costs: list[convolution.Cost]
    accuracy: float
    confusion: np.ndarray
    class_names: tuple[str, ...]
    pictures: np.ndarray
    said: np.ndarray
    truth: np.ndarray
    filters: np.ndarray


def problem(
    key: Array, *, data: _pictures.Name = "digits", data_dir: Path | None = None
) -> _pictures.Pictures:
    """Read the pictures; see `mlnotes_jax.demos._pictures.load`."""
    return _pictures.load(key, data, data_dir=data_dir)


def run(
    key: Array,
    *,
    quick: bool = False,
    data: _pictures.Name = "digits",
    data_dir: Path | None = None,
    num_epochs: int = 8,
) -> Result:
    """Train the network once, with AdamW and a one-cycle learning rate.

    Args:
        key: Draws the split, the weights, the order of the rows and the flips.
        quick: Two epochs on a third of the pictures.
        data: Which pictures. Fashion-MNIST takes several minutes on a CPU.
        data_dir: Folder of Fashion-MNIST.
        num_epochs: Passes over the training pictures.

    Returns:
        Curves, the final accuracy, and what went wrong.
    """
    split_key, weight_key, fit_key = jax.random.split(key, 3)
    pictures = problem(split_key, data=data, data_dir=data_dir)
    x, y = pictures.x_train, pictures.y_train
    if quick:
        x, y, num_epochs = x[::3], y[::3], 2
    digits = data == "digits"
    network = cnn.small_cnn(
        in_shape=x.shape[1:],
        widths=(16, 32, 64) if digits else (32, 64, 128),
        num_classes=len(pictures.class_names),
        rngs=nnx.Rngs(weight_key),
    )
    # A mirrored digit is no digit; a mirrored shoe is a shoe.
    model = network if digits else Flipped(network, rngs=nnx.Rngs(dropout=weight_key))
    mean, scale = x.mean(), x.std()
    x, x_test = (jnp.asarray((part - mean) / scale) for part in (x, pictures.x_test))
    y, y_test = jnp.asarray(y), jnp.asarray(pictures.y_test)

    batch = min(BATCH, len(x) // 8)
    steps = num_epochs * (len(x) // batch)
    rate = optax.cosine_onecycle_schedule(steps, PEAK_RATE, pct_start=0.2)
    fitted = loop.fit(
        fit_key,
        model,
        optax.adamw(rate, weight_decay=WEIGHT_DECAY),
        losses.softmax_cross_entropy_with_integer_labels,
        (x, y),
        num_epochs=num_epochs,
        batch_size=batch,
        validation=(x_test, y_test),
        metrics={"accuracy": _pictures.accuracy},
        keep_best=False,
    )
    logits = loop.predict(fitted.model, x_test, batch_size=500)
    chances = np.asarray(jax.nn.softmax(logits))
    said, truth = chances.argmax(axis=1), np.asarray(y_test)
    confusion = np.zeros((chances.shape[1],) * 2, int)
    np.add.at(confusion, (truth, said), 1)
    wrong = np.flatnonzero(said != truth)
    worst = wrong[np.argsort(-chances[wrong, said[wrong]])][:8]
    best = fitted.model if digits else fitted.model.network
    return Result(
        source=pictures.source,
        history={name: np.asarray(values) for name, values in fitted.history.items()},
        costs=list(convolution.costs(cnn.layers(network), network.in_shape)),
        accuracy=float((said == truth).mean()),
        confusion=confusion,
        class_names=pictures.class_names,
        pictures=pictures.x_test[worst, ..., 0],
        said=said[worst],
        truth=truth[worst],
        filters=np.asarray(best.blocks[0].conv.kernel[...])[:, :, 0],
    )


def tables(result: Result) -> dict[str, list[dict[str, Any]]]:
    """The layers, the epochs, and the classes that are confused most often."""
    counted = [cost for cost in result.costs if cost.layer.kind != "activation"]
    layers = [
        {
            "layer": kind(cost.layer),
            "output": " x ".join(map(str, cost.shape)),
            "parameters": cost.parameters,
            "multiply-adds": cost.multiply_adds,
        }
        for cost in counted
    ]
    total = {
        "layer": "all",
        "output": "",
        "parameters": sum(cost.parameters for cost in counted),
        "multiply-adds": sum(cost.multiply_adds for cost in counted),
    }
    history = result.history
    epochs = [
        {
            "epoch": i + 1,
            "training loss": float(history["loss"][i]),
            "test loss": float(history["validation_loss"][i]),
            "test accuracy": f"{history['validation_accuracy'][i]:.2%}",
        }
        for i in range(len(history["loss"]))
    ]
    off = result.confusion * (1 - np.eye(len(result.confusion), dtype=int))
    pairs = np.argsort(-off, axis=None)[:3]
    confused = [
        {
            "is": result.class_names[i],
            "called": result.class_names[j],
            "times": int(off[i, j]),
        }
        for i, j in (np.unravel_index(pair, off.shape) for pair in pairs)
    ]
    return {
        "For one picture": [*layers, total],
        "Training": epochs,
        "Confused most often": confused,
    }


def kind(layer: convolution.Layer) -> str:
    """What a layer is, with its window: `conv 3x3`."""
    if layer.kind not in ("conv", "pool"):
        return layer.kind
    window = layer.window if isinstance(layer.window, tuple) else (layer.window,) * 2
    return f"{layer.kind} {'x'.join(map(str, window))}"


def plot(result: Result) -> "Figure":
    """Loss and accuracy by epoch, and the surest mistakes.

    Args:
        result: From `run`.

    Returns:
        The figure.
    """
    import matplotlib.pyplot as plt

    with figures.style():
        figure = plt.figure(figsize=(9, 4.2))
        left, right = np.asarray(figure.subfigures(1, 2, width_ratios=(5, 4)))
        loss, share = left.subplots(1, 2)
        epochs = np.arange(1, len(result.history["loss"]) + 1)
        loss.plot(epochs, result.history["loss"], marker="o", label="training")
        loss.plot(epochs, result.history["validation_loss"], marker="s", label="test")
        loss.set(xlabel="epoch", ylabel="cross-entropy, nats", title="Loss")
        loss.legend()
        share.plot(epochs, 100 * result.history["validation_accuracy"], marker="o")
        share.set(xlabel="epoch", ylabel="test pictures named right, %", title="Accuracy")
        for axes in (loss, share):
            axes.xaxis.get_major_locator().set_params(integer=True)
        right.suptitle("Surest mistakes", fontsize="medium")
        axes = right.subplots(2, 4).ravel()
        for ax in axes:
            ax.set_axis_off()
        shown = zip(axes, result.pictures, result.said, result.truth, strict=False)
        for ax, picture, said, truth in shown:
            ax.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
            names = result.class_names[said], result.class_names[truth]
            ax.set_title(f"called {names[0]}\nis {names[1]}", fontsize="x-small")
    return figure
