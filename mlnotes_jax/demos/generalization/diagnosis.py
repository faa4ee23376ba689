"""Five trainings, five verdicts: the lectures' guide at work.

A disc in a square, and handwritten digits. Each experiment trains a small and a large network in
the same way and hands their losses to `diagnosis.diagnose`: layers without a bend between them
(model bias), nine sigmoid layers (optimization issue), fifty digits (over-fitting), digits that
were moved by a pixel (mismatch), and digits as they are (fine).
"""

import functools
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.foundations import activations, losses
from mlnotes_jax.generalization import diagnosis, mismatch
from mlnotes_jax.generalization.diagnosis import Verdict
from mlnotes_jax.nets import mlp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Experiment",
    "Net",
    "Problem",
    "Result",
    "Task",
    "Trained",
    "draw_guide",
    "few",
    "first_weights",
    "plot",
    "problem",
    "run",
    "tables",
    "train",
]

DESIRED = 0.35  # nats; guessing costs ln 2 = 0.69 or ln 10 = 2.3
TOLERANCE = 0.02
NUM_STEPS = 1000
NUM_FEW = 50


class Task(NamedTuple):
    """Rows in three parts, in one array.

    Attributes:
        x: Features, shape `(n, d)`.
        y: Classes, shape `(n,)`.
        part: 0 for training, 1 for validation, 2 for testing, 3 for testing on moved pictures, -1
            for rows that are left out; shape `(n,)`.
    """

    x: Float[np.ndarray, "n d"]
    y: Int[np.ndarray, " n"]
    part: Int[np.ndarray, " n"]


class Problem(NamedTuple):
    """The two tasks.

    Attributes:
        disc: Points of a square; the class says whether they are in a disc of half the area.
        digits: Pictures of 8 x 8 pixels.
        source: Of the digits.
    """

    disc: Task
    digits: Task
    source: datasets.Source


def identity(x: Array) -> Array:
    """No bend."""
    return x


class Net(NamedTuple):
    """A fully connected network.

    Attributes:
        name: For the tables.
        widths: Of the layers.
        activation: Between them.
    """

    name: str
    widths: tuple[int, ...]
    activation: Callable[[Array], Array] = identity


#: Small and large networks; the large one contains the small one.
LINE, LINES = Net("one layer", (2, 2)), Net("two layers", (2, 16, 2))
SIGMOIDS = Net("16 sigmoids", (2, 16, 2), activations.sigmoid)
MANY_SIGMOIDS = Net("8 x 16 sigmoids", (2, *(16,) * 8, 2), activations.sigmoid)
LINEAR = Net("one layer", (64, 10))
RELU = Net("64 ReLU", (64, 64, 10), activations.relu)


class Trained(NamedTuple):
    """What a training leaves.

    Attributes:
        curves: Training and validation loss before each step, shape `(steps, 2)`.
        rows: The loss of every row at the end, shape `(n,)`.
        weights: Kernel and bias of each layer.
    """

    curves: np.ndarray
    rows: np.ndarray
    weights: mlp.Weights


class Experiment(NamedTuple):
    """One training of two networks, and what came of it.

    Attributes:
        name: What was done.
        small: Which network is the small one.
        large: Which is the large one.
        small_curve: Training loss of the small one, at each step.
        large_curves: Training and validation loss of the large one, shape `(steps, 2)`.
        found: The diagnosis.
    """

    name: str
    small: str
    large: str
    small_curve: np.ndarray
    large_curves: np.ndarray
    found: diagnosis.Diagnosis


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        experiments: In the order of the verdicts.
    """

    source: datasets.Source
    experiments: tuple[Experiment, ...]


def problem(key: Key[Array, ""]) -> Problem:
    """Draw the disc, and split the digits.

    Args:
        key: Draws points and the split.

    Returns:
        Both tasks.
    """
    data = datasets.load("digits")
    disc_key, order_key = jax.random.split(key)
    points = np.asarray(jax.random.uniform(disc_key, (600, 2), minval=-1, maxval=1))
    inside = (np.square(points).sum(axis=1) < 2 / np.pi).astype(np.int32)
    order = np.asarray(jax.random.permutation(order_key, len(data.y)))[:900]
    pixels = data.x[order].reshape(-1, 8, 8) / np.float32(16)
    moved = np.pad(pixels[700:], ((0, 0), (0, 0), (1, 0)))[:, :, :-1]
    y = data.y[order]
    digits = Task(
        np.concatenate([pixels, moved]).reshape(-1, 64),
        np.concatenate([y, y[700:]]),
        np.repeat([0, 1, 2, 3], [500, 200, 200, 200]),
    )
    return Problem(Task(points, inside, np.repeat([0, 1], [200, 400])), digits, data.source)


def few(task: Task) -> Task:
    """Leave out all but the first fifty training rows."""
    learns = task.part == 0
    return task._replace(part=np.where(learns & (np.cumsum(learns) > NUM_FEW), -1, task.part))


def run(key: Key[Array, ""], *, quick: bool = False) -> Result:
    """Train a small and a large network four times, and ask what is wrong in five experiments.

    Args:
        key: Draws the data and the first weights.
        quick: Half of the steps.

    Returns:
        Curves and verdicts.
    """
    data_key, small_key, large_key = jax.random.split(key, 3)
    disc, digits, source = problem(data_key)
    steps = NUM_STEPS // 2 if quick else NUM_STEPS
    # Task, networks, and for each experiment its name and the part that tests.
    plans: Any = (
        (disc, LINE, LINES, [("no bend", None)]),
        (disc, SIGMOIDS, MANY_SIGMOIDS, [("sigmoids", None)]),
        (few(digits), LINEAR, RELU, [(f"{NUM_FEW} digits", 2)]),
        (digits, LINEAR, RELU, [("moved digits", 3), ("digits", 2)]),
    )
    experiments = []
    for task, small, large, tests in progress.track(plans, "trainings"):
        small_curves = train(small_key, task, small, num_steps=steps).curves
        curves, rows, _ = train(large_key, task, large, num_steps=steps)
        for name, part in tests:
            test = p_value = None
            if part is not None:
                test = diagnosis.mean_loss(rows[task.part == part])
                learned = task.x[task.part == 0][:NUM_FEW]
                features = mismatch.feature_tests(learned, task.x[task.part == part])
                p_value = features.adjusted.min()
            found = diagnosis.diagnose(
                small_train=small_curves[-1, 0],
                large_train=curves[-1, 0],
                validation=diagnosis.mean_loss(rows[task.part == 1]),
                test=test,
                desired=DESIRED,
                mismatch_p_value=p_value,
                tolerance=TOLERANCE,
            )
            names = name, small.name, large.name
            experiments.append(Experiment(*names, small_curves[:, 0], curves, found))
    return Result(source, tuple(experiments))


def train(key: Key[Array, ""], task: Task, net: Net, *, num_steps: int) -> Trained:
    """Train a network by gradient descent with momentum on all training rows at once.

    Args:
        key: Draws the first weights.
        task: Rows; those of part 0 train.
        net: What is trained.
        num_steps: How many steps.

    Returns:
        Curves, the loss of every row, and the weights.
    """
    x, y, part = (jnp.asarray(leaf) for leaf in task)
    curves, rows, weights = _train(key, x, y, part, net.widths, net.activation, num_steps)
    return Trained(np.asarray(curves), np.asarray(rows), weights)


def first_weights(key: Key[Array, ""], widths: tuple[int, ...]) -> mlp.Weights:
    """Draw kernels, normal of variance one over the inputs; biases are 0.

    Args:
        key: Draws the kernels.
        widths: Of the layers.

    Returns:
        Kernel and bias of each layer.
    """
    pairs = list(itertools.pairwise(widths))
    return [
        (jax.random.normal(k, pair) / pair[0] ** 0.5, jnp.zeros(pair[1]))
        for k, pair in zip(jax.random.split(key, len(pairs)), pairs, strict=True)
    ]


@functools.partial(jax.jit, static_argnames=("widths", "activation", "num_steps"))
def _train(
    key: Array,
    x: Array,
    y: Array,
    part: Array,
    widths: tuple[int, ...],
    activation: Any,
    num_steps: int,
) -> tuple[Array, Array, mlp.Weights]:
    start = first_weights(key, widths)
    member = (part[None] == jnp.arange(2, dtype=part.dtype)[:, None]).astype(x.dtype)
    share = member / member.sum(axis=1, keepdims=True)

    def measure(weights: Any) -> tuple[Array, tuple[Array, Array]]:
        logits = mlp.forward(weights, x, activation=activation)
        rows = losses.softmax_cross_entropy_with_integer_labels(logits, y, reduction="none")
        means = share @ rows
        return means[0], (means, rows)

    def step(carry: Any, _: None) -> tuple[Any, Array]:
        weights, velocity = carry
        (_, (means, _)), gradient = jax.value_and_grad(measure, has_aux=True)(weights)
        velocity = jax.tree.map(lambda v, g: 0.9 * v - 0.1 * g, velocity, gradient)
        return (jax.tree.map(jnp.add, weights, velocity), velocity), means

    still = jax.tree.map(jnp.zeros_like, start)
    (weights, _), curves = jax.lax.scan(step, (start, still), length=num_steps)
    return curves, measure(weights)[1][1], weights


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The losses and the verdicts.

    Args:
        result: What `run` returned.

    Returns:
        Title to rows.
    """

    def row(each: Experiment) -> dict[str, object]:
        test = each.found.test
        return {
            "experiment": each.name,
            "small": _digits(each.small_curve[-1]),
            "large": _digits(each.large_curves[-1, 0]),
            "validation": _digits(each.found.validation.value),
            "test": "" if test is None else _digits(test.value),
            "verdict": _name(each),
        }

    return {
        "Networks": [
            {"experiment": each.name, "small": each.small, "large": each.large}
            for each in result.experiments
        ],
        f"Training losses of both, held-out losses of the large one; {DESIRED} would do": [
            row(each) for each in result.experiments
        ],
    }


def _digits(value: Any) -> float:
    return float(f"{float(value):.2g}")


def _name(each: Experiment) -> str:
    return Verdict(int(each.found.verdict)).name.lower().replace("_", " ")


def plot(result: Result) -> "Figure":
    """Draw the guide, and the curves of the five experiments.

    Args:
        result: What `run` returned.

    Returns:
        A figure of six panels.
    """
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(2, 3, figsize=(9.5, 6.2))
        draw_guide(axes[0, 0])
        for panel, each in zip(axes.ravel()[1:], result.experiments, strict=True):
            steps = np.arange(len(each.small_curve))
            panel.plot(
                steps, each.small_curve, ":", color=figures.GREY, label=f"training, {each.small}"
            )
            for column, (name, color, dash) in enumerate(
                (("training", figures.BLUE, "-"), ("validation", figures.VERMILLION, "--"))
            ):
                label = f"{name}, {each.large}" if column == 0 else name
                panel.plot(steps, each.large_curves[:, column], dash, color=color, label=label)
            if each.found.test is not None:
                loss = float(each.found.test.value)
                panel.plot(steps[-1], loss, "D", color=figures.PURPLE, ms=6, label="test")
            panel.axhline(DESIRED, color=figures.GREEN, linestyle="-.", lw=1, label="would do")
            panel.set(
                xlabel="step",
                ylabel="loss (nats)",
                ylim=(0, None),
                title=f"{each.name}: {_name(each)}",
            )
            panel.legend(fontsize=6.5)
        figure.suptitle("Five trainings, five verdicts")
    return figure


def draw_guide(axes: Any) -> None:
    """Draw the decision tree of the lectures' guide.

    Args:
        axes: Of matplotlib; its frame is taken away.
    """
    axes.set(xlim=(0, 10), ylim=(0, 10), xticks=[], yticks=[], title="The guide")
    axes.grid(visible=False)
    axes.set_frame_on(False)
    train, size, held, where = (5, 9.3), (2.2, 6.3), (7.6, 6.3), (6.3, 3.4)
    arrows = (
        (train, size, "yes"),
        (train, held, "no"),
        (size, (0.9, 2.6), "yes"),
        (size, (3.5, 2.6), "no"),
        (held, where, "yes"),
        (held, (9.4, 3.4), "no"),
        (where, (4.9, 0.5), "no"),
        (where, (8.2, 0.5), "yes"),
    )
    for start, end, answer in arrows:
        line = {"arrowstyle": "->", "color": figures.GREY, "shrinkA": 14, "shrinkB": 12}
        axes.annotate("", end, start, arrowprops=line)
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        side = -0.45 if end[0] < start[0] else 0.45
        axes.text(middle[0] + side, middle[1], answer, fontsize=6.5, ha="center", va="center")
    boxes = (
        (train, "training loss\nlarge?", figures.BLUE),
        (size, "larger than the\nsmall model's?", figures.BLUE),
        (held, "held-out loss\nlarge?", figures.BLUE),
        (where, "rows from\nelsewhere?", figures.BLUE),
        (arrows[2][1], "optimization\nissue", figures.VERMILLION),
        (arrows[3][1], "model\nbias", figures.VERMILLION),
        (arrows[5][1], "fine", figures.GREEN),
        (arrows[6][1], "over-fitting", figures.VERMILLION),
        (arrows[7][1], "mismatch", figures.VERMILLION),
    )
    for place, words, color in boxes:
        axes.text(
            *place, words, fontsize=7.5, ha="center", va="center",
            bbox={"boxstyle": "round", "edgecolor": color, "facecolor": "none"},
        )  # fmt: skip
