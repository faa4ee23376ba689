"""The notes' fully connected network on pictures, with the notes' recipe and a better one.

The network is 784-512-256-128-64-10 (64 inputs for digits); the recipes differ in how it starts and
how it descends, and in nothing else.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Key

from mlnotes_jax.data import datasets, scaling
from mlnotes_jax.demos import _pictures, figures, progress
from mlnotes_jax.foundations import losses
from mlnotes_jax.nets import mlp
from mlnotes_jax.training import loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RECIPES", "Recipe", "Result", "Run", "plot", "problem", "run", "tables"]

BATCH = 64  # of every recipe, as in the notes


class Recipe(NamedTuple):
    """How a network starts and descends.

    Attributes:
        name: In a word.
        kernel_init: As in `mlp.MLP`.
        learning_rate: At the start.
        momentum: Of SGD.
        nesterov: Whether the gradient is taken ahead.
        cosine: Whether the rate falls to zero along a cosine, or stays.
    """

    name: str
    kernel_init: Literal["pytorch"] | None
    learning_rate: float
    momentum: float
    nesterov: bool
    cosine: bool

    def optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """SGD with the rate of each of `num_steps` updates."""
        rate = self.learning_rate
        return optax.sgd(
            optax.cosine_decay_schedule(rate, num_steps) if self.cosine else rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
        )


#: From the notes' recipe to the improved one, one change at a time.
RECIPES = (
    Recipe("notes", "pytorch", 0.01, 0.5, nesterov=False, cosine=False),
    Recipe("+ He start", None, 0.01, 0.5, nesterov=False, cosine=False),
    Recipe("+ longer steps", None, 0.02, 0.9, nesterov=True, cosine=False),
    Recipe("improved", None, 0.02, 0.9, nesterov=True, cosine=True),
)


class Run(NamedTuple):
    """One recipe's training.

    Attributes:
        recipe: Which.
        history: One number for each epoch: `loss` of the training batches, `validation_loss` and
            `validation_accuracy` of the test pictures. Nothing is chosen by them.
        train_accuracy: After the last epoch.
        accuracy: Of the test pictures, after the last epoch.
    """

    recipe: Recipe
    history: dict[str, np.ndarray]
    train_accuracy: float
    accuracy: float


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: Which pictures.
        widths: Of the network.
        num_parameters: Of the network.
        runs: One for each recipe.
        confusion: Of the last recipe: how often class i (row) was called class j, shape `(10, 10)`.
        class_names: One for each class.
        pictures: The test pictures that the last network is most sure about and wrong.
        said: What it calls them.
        truth: What they are.
    """

    source: datasets.Source
    widths: tuple[int, ...]
    num_parameters: int
    runs: tuple[Run, ...]
    confusion: np.ndarray
    class_names: tuple[str, ...]
    pictures: np.ndarray
    said: np.ndarray
    truth: np.ndarray


def problem(
    key: Key[Array, ""], *, data: _pictures.Name = "digits", data_dir: Path | None = None
) -> _pictures.Pictures:
    """Read the pictures and scale them: mean 0 and variance 1 over all training pixels.

    Args:
        key: Draws the split of the digits.
        data: Which pictures.
        data_dir: Folder of Fashion-MNIST.

    Returns:
        Pictures `(n, h, w, 1)`, classes, names, source.
    """
    pictures = _pictures.load(key, data, data_dir=data_dir)
    # One mean and one deviation for all pixels. The notes write those of MNIST as 0.1307, 0.3081.
    scale = scaling.fit_standard(pictures.x_train.reshape(-1, 1))
    both = [
        np.asarray(scaling.apply(scale, part.reshape(-1, 1))).reshape(part.shape)
        for part in (pictures.x_train, pictures.x_test)
    ]
    return pictures._replace(x_train=both[0], x_test=both[1])


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    data: _pictures.Name = "digits",
    data_dir: Path | None = None,
    recipe: Literal["notes", "improved", "both", "ladder"] = "both",
    num_epochs: int | None = None,
) -> Result:
    """Train the notes' network, once with each recipe, from one key.

    Args:
        key: Draws the split, the weights and the order of the rows.
        quick: A quarter of the epochs; of Fashion-MNIST, a tenth of the training pictures.
        data: Which pictures. Fashion-MNIST takes some ten seconds a recipe on a CPU.
        data_dir: Folder of Fashion-MNIST.
        recipe: Which recipe; `both` of them, or the `ladder` from one to the other.
        num_epochs: Passes over the pictures; by default 10 for Fashion-MNIST and 40 for digits.

    Returns:
        Curves, accuracies, and what went wrong.
    """
    split_key, weight_key, fit_key = jax.random.split(key, 3)
    pictures = problem(split_key, data=data, data_dir=data_dir)
    epochs = num_epochs if num_epochs is not None else (40 if data == "digits" else 10)
    x, y = pictures.x_train, pictures.y_train
    if quick:
        epochs = max(1, epochs // 4)
        x, y = (x, y) if data == "digits" else (x[::10], y[::10])
    train = (jnp.asarray(x), jnp.asarray(y))
    test = (jnp.asarray(pictures.x_test), jnp.asarray(pictures.y_test))
    widths = (int(np.prod(x.shape[1:])), *mlp.NOTES_WIDTHS[1:])

    chosen = {
        "notes": RECIPES[:1],
        "improved": RECIPES[-1:],
        "both": (RECIPES[0], RECIPES[-1]),
        "ladder": RECIPES,
    }[recipe]
    ticks = progress.track(range(len(chosen) * epochs), "training")
    next(ticks, None)
    runs, model = [], None

    def tick(state: loop.TrainState, numbers: dict[str, Any]) -> None:
        next(ticks, None)

    for one in chosen:
        start = mlp.MLP(widths, kernel_init=one.kernel_init, rngs=nnx.Rngs(weight_key))
        fitted = loop.fit(
            fit_key,
            start,
            one.optimizer(epochs * (len(x) // BATCH)),
            losses.softmax_cross_entropy_with_integer_labels,
            train,
            num_epochs=epochs,
            batch_size=BATCH,
            validation=test,
            metrics={"accuracy": _pictures.accuracy},
            keep_best=False,
            on_epoch=tick,
        )
        model = fitted.model
        history = {name: np.asarray(values) for name, values in fitted.history.items()}
        runs.append(
            Run(
                recipe=one,
                history=history,
                train_accuracy=float(
                    loop.evaluate(model, train, _pictures.accuracy, batch_size=1000)
                ),
                accuracy=float(history["validation_accuracy"][-1]),
            )
        )
    assert model is not None
    confusion, worst, said = _mistakes(model, *test)
    return Result(
        source=pictures.source,
        widths=widths,
        num_parameters=mlp.num_parameters(widths),
        runs=tuple(runs),
        confusion=confusion,
        class_names=pictures.class_names,
        pictures=pictures.x_test[worst, ..., 0],
        said=said[worst],
        truth=pictures.y_test[worst],
    )


def _mistakes(model: nnx.Module, x: Array, y: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confusion matrix; rows of the most confident mistakes; the class named for each row."""
    chances = np.asarray(jax.nn.softmax(loop.predict(model, x, batch_size=1000)))
    said, truth = chances.argmax(axis=1), np.asarray(y)
    confusion = np.zeros((chances.shape[1],) * 2, int)
    np.add.at(confusion, (truth, said), 1)
    wrong = np.flatnonzero(said != truth)
    return confusion, wrong[np.argsort(-chances[wrong, said[wrong]])][:8], said


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    recipes: list[dict[str, object]] = [
        {
            "recipe": one.name,
            "start": one.kernel_init or "He",
            "rate": f"{one.learning_rate}{', cosine' if one.cosine else ''}",
            "momentum": f"{one.momentum}{', Nesterov' if one.nesterov else ''}",
        }
        for one, *_ in result.runs
    ]
    epochs = len(result.runs[0].history["loss"])
    results: list[dict[str, object]] = [
        {
            "recipe": one.recipe.name,
            "training loss": float(one.history["loss"][-1]),
            "training accuracy": f"{one.train_accuracy:.2%}",
            "test loss": float(one.history["validation_loss"][-1]),
            "test accuracy": f"{one.accuracy:.2%}",
        }
        for one in result.runs
    ]
    names, confusion = result.class_names, result.confusion.copy()
    np.fill_diagonal(confusion, 0)
    places = np.argsort(-confusion, axis=None)[:4]
    mistakes: list[dict[str, object]] = [
        {"is": names[i], "called": names[j], "how often": int(confusion[i, j])}
        for i, j in zip(*np.unravel_index(places, confusion.shape), strict=True)
    ]
    network = "-".join(map(str, result.widths))
    return {
        f"Recipes for {network}, batches of {BATCH}": recipes,
        f"After {epochs} epochs, {result.num_parameters} parameters": results,
        f"What the last one mixes up (of {result.confusion.sum()})": mistakes,
    }


def plot(result: Result) -> "Figure":
    """Draw losses, accuracies, the confusion matrix and confident mistakes."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    with figures.style():
        figure = plt.figure(figsize=(9, 5))
        parts: Any = figure.subfigures(2, 1, height_ratios=(2.6, 1))
        upper, lower = parts
        loss, accuracy, matrix = upper.subplots(1, 3)
        marks = ("o", "s", "^", "D")
        for one, mark in zip(result.runs, marks, strict=False):
            history = one.history
            epoch = np.arange(1, len(history["loss"]) + 1)
            every = {"markersize": 4, "markevery": max(1, len(epoch) // 10), "marker": mark}
            loss.semilogy(epoch, history["loss"], label=one.recipe.name, **every)
            accuracy.plot(
                epoch, 100 * history["validation_accuracy"], label=one.recipe.name, **every
            )
        for axis in (loss, accuracy):
            axis.xaxis.get_major_locator().set_params(integer=True)
        loss.set(xlabel="epoch", ylabel="training loss", title="Training")
        accuracy.set(xlabel="epoch", ylabel="test accuracy, %", title="Test")
        top = max(one.accuracy for one in result.runs)
        low = min(one.history["validation_accuracy"][-1] for one in result.runs)
        accuracy.set_ylim(100 * max(0.0, low - 3 * (top - low) - 0.04), min(100.5, 100 * top + 1))
        accuracy.legend(fontsize="small")

        counts = np.where(result.confusion > 0, result.confusion, np.nan)
        image = matrix.imshow(counts, norm=LogNorm(1, max(2, result.confusion.max())))
        matrix.grid(visible=False)
        names = result.class_names
        ticks = range(len(names))
        short = [name if len(name) < 9 else name[:7] + "." for name in names]
        matrix.set_xticks(ticks, short, rotation=90 if len(max(names, key=len)) > 2 else 0)
        matrix.set_yticks(ticks, short)
        matrix.tick_params(labelsize="x-small")
        matrix.set(xlabel="called", ylabel="is", title=f"Confusion, {result.runs[-1].recipe.name}")
        upper.colorbar(image, ax=matrix, label="pictures")

        axes = lower.subplots(1, 8)
        for axis in axes:
            axis.axis("off")
        for axis, picture, said, truth in zip(
            axes, result.pictures, result.said, result.truth, strict=False
        ):
            axis.imshow(picture, cmap="gray")
            axis.set_title(f"{short[truth]}:\n{short[said]}?", fontsize="x-small")
        lower.suptitle("Sure, and wrong", fontsize="medium")
    return figure
