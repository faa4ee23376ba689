"""The widest street between two classes, or a proof that there is none.

For pairs of classes of four real data sets the demo asks for the separating hyperplane of the
widest margin. The answer comes with two numbers between which the true margin lies, or with the
weights of a point that both convex hulls have in common; and sometimes float32 cannot tell and
float64 can. All sets are padded to one shape, by rows of weight zero and features that are zero:
one program is compiled for all.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.svm import margin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Answer",
    "Pair",
    "Problem",
    "Result",
    "flowers",
    "hull",
    "padded",
    "plot",
    "problem",
    "run",
    "tables",
]

_SHAPE = (569, 64)  # room for every pair of classes
_WORDS = ("yes", "none", "unknown")  # for margin.STATUSES
_SOURCE = datasets.Source(
    name="iris, wine, breast_cancer, digits",
    origin="scikit-learn",
    licence="CC BY 4.0 (UCI Machine Learning Repository); shipped in scikit-learn (BSD-3-Clause)",
    size="150, 178, 569 and 1797 rows",
)


class Problem(NamedTuple):
    """One data set, and some pairs of its classes.

    Attributes:
        name: What it is called.
        x: Features, float32: as they are, or standardized where they have different units.
        y: Classes.
        pairs: Which two classes, shape `(p, 2)`.
        class_names: One for each class.
    """

    name: str
    x: Float[np.ndarray, "n d"]
    y: Int[np.ndarray, " n"]
    pairs: Int[np.ndarray, "p 2"]
    class_names: tuple[str, ...]


class Answer(NamedTuple):
    """What can be said about one data set; every field of the answers has an axis for the pairs.

    Attributes:
        problem: The question.
        double: In float64, as NumPy arrays.
        single: In float32; None if not asked.
    """

    problem: Problem
    double: margin.Separation
    single: margin.Separation | None


class Pair(NamedTuple):
    """Flowers of two species of iris.

    Attributes:
        x: Length of the petals and width of the sepals in cm, float32, shape `(100, 2)`.
        y: Classes 0 and 1, shape `(100,)`.
        names: Of the species.
    """

    x: Float[np.ndarray, "n 2"]
    y: Int[np.ndarray, " n"]
    names: tuple[str, str]


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        answers: For each data set.
        pictures: Setosa and versicolor, then versicolor and virginica, in two dimensions, with the
            answers in float64.
    """

    source: datasets.Source
    answers: list[Answer]
    pictures: list[tuple[Pair, margin.Separation]]


def problem(
    key: Key[Array, ""] | None = None, *, name: str = "iris", num_pairs: int = 45
) -> Problem:
    """Load a data set and list pairs of its classes.

    Args:
        key: Not used: nothing is drawn.
        name: `iris`, `wine`, `breast_cancer` or `digits`.
        num_pairs: At most so many.

    Returns:
        The data. Wine and breast cancer mix units: their features are standardized.
    """
    del key
    data = datasets.load(name)
    x = data.x
    if name in ("wine", "breast_cancer"):
        x = ((x - x.mean(axis=0, dtype=np.float64)) / x.std(axis=0, dtype=np.float64)).astype(
            np.float32
        )
    classes = len(data.class_names)
    pairs = np.stack(np.triu_indices(classes, k=1), axis=1)
    return Problem(name, x, data.y, pairs[:num_pairs], data.class_names)


def flowers(first: str, second: str) -> Pair:
    """Load the flowers of two species.

    Args:
        first: Name of a species, class 0.
        second: Another, class 1.

    Returns:
        Two of their measures, and the classes.
    """
    data = datasets.load("iris")
    columns = [data.feature_names.index(name) for name in ("petal length (cm)", "sepal width (cm)")]
    classes = [data.class_names.index(name) for name in (first, second)]
    rows = np.isin(data.y, classes)
    x, y = data.x[rows][:, columns], (data.y[rows] == classes[1]).astype(np.int32)
    return Pair(x, y, (first, second))


def padded(
    x: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fill a problem up to one shape, with rows that do not count and features that are 0.

    Args:
        x: Points, shape `(n, d)`, at most 569 and 64.
        y: Classes, shape `(n,)`.

    Returns:
        Points, classes, and 1 for the rows that count, 0 for the others.
    """
    rows, columns = _SHAPE[0] - x.shape[0], _SHAPE[1] - x.shape[1]
    return (
        np.pad(x, ((0, rows), (0, columns))),
        np.pad(np.asarray(y, np.int32), (0, rows)),
        np.pad(np.ones(len(y), x.dtype), (0, rows)),
    )


def _street(x: np.ndarray, y: np.ndarray) -> margin.Separation:
    """The answer in the precision of x, as NumPy arrays."""
    with jax.enable_x64(x.dtype == np.float64):
        wide, labels, weight = padded(x, y)
        found = jax.tree.map(np.asarray, margin.separate(wide, labels, sample_weight=weight))
    n, d = x.shape
    return found._replace(w=found.w[:d], weights=found.weights[:n], nearest=found.nearest[:, :d])


def _streets(task: Problem, dtype: type[np.floating]) -> margin.Separation:
    found = []
    for first, second in task.pairs:
        rows = np.isin(task.y, (first, second))
        one = _street(task.x[rows].astype(dtype), (task.y[rows] == second).astype(np.int32))
        weights = np.zeros(len(task.y), dtype)
        weights[rows] = one.weights
        found.append(one._replace(weights=weights))
    return jax.tree.map(lambda *v: np.stack(v), *found)


def run(key: Key[Array, ""], *, quick: bool = False, num_pairs: int = 45) -> Result:
    """Separate pairs of classes, in float32 and in float64.

    Args:
        key: Not used: nothing is drawn.
        quick: Five pairs of digits, and float64 alone.
        num_pairs: Pairs of digits, of 45.

    Returns:
        Streets and proofs.
    """
    names = ("iris", "wine", "breast_cancer", "digits")
    answers = []
    for name in progress.track(names, "separating"):
        task = problem(key, name=name, num_pairs=min(num_pairs, 5) if quick else num_pairs)
        single = None if quick else _streets(task, np.float32)
        answers.append(Answer(task, _streets(task, np.float64), single))
    pairs = [flowers("setosa", "versicolor"), flowers("versicolor", "virginica")]
    return Result(
        _SOURCE, answers, [(pair, _street(pair.x.astype(np.float64), pair.y)) for pair in pairs]
    )


def tables(result: Result) -> dict[str, list[dict[str, Any]]]:
    """The rows that the command line prints."""
    streets = []
    for task, double, _ in result.answers[:-1]:
        for p, (first, second) in enumerate(task.pairs):
            rows = np.isin(task.y, (first, second))
            streets.append(
                {
                    "pair": ", ".join(
                        task.class_names[c].replace("class_", "cultivator ")
                        for c in (first, second)
                    ),
                    "rows": int(rows.sum()),
                    "street": _WORDS[double.status[p]],
                    "margin": float(double.margin[p]),
                    "bound": float(double.bound[p]),
                    "rests on": int((double.weights[p] > 0).sum()),
                }
            )
    digits = result.answers[-1]
    order = np.argsort(digits.double.margin, kind="stable")
    chosen = order if len(order) <= 6 else np.concatenate([order[:3], order[-3:]])
    return {
        "The widest street, or a proof of none (float64)": streets,
        f"Digits, {len(order)} pairs: the narrowest and the widest streets": [
            {
                "pair": f"{digits.problem.pairs[p, 0]} and {digits.problem.pairs[p, 1]}",
                "street": _WORDS[digits.double.status[p]],
                "margin": float(digits.double.margin[p]),
                "bound - margin": f"{digits.double.bound[p] - digits.double.margin[p]:.0e}",
                "rests on": int((digits.double.weights[p] > 0).sum()),
                "steps": int(digits.double.num_iterations[p]),
            }
            for p in chosen
        ],
        "What each precision can tell (the worst pair)": [
            {
                "data": task.name,
                "pairs": len(task.pairs),
                "precision": precision,
                "proved": int((found.status != margin.UNDECIDED).sum()),
                "bound - margin": f"{(found.bound - found.margin).max():.0e}",
                "steps": int(found.num_iterations.max()),
            }
            for task, double, single in result.answers
            for precision, found in (("float32", single), ("float64", double))
            if found is not None
        ],
    }


def hull(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "c 2"]:
    """The corners of the convex hull of points in the plane, in order, by Andrew's method.

    Args:
        points: Shape `(n, 2)`.

    Returns:
        Corners, counter-clockwise; points on an edge are left out.
    """
    ordered = sorted(map(tuple, np.unique(np.asarray(points, np.float64), axis=0)))

    def half(sequence: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        chain: list[tuple[float, ...]] = []
        for p in sequence:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax) > 0:
                    break
                chain.pop()
            chain.append(p)
        return chain

    lower, upper = half(ordered), half(ordered[::-1])
    return np.array(lower[:-1] + upper[:-1]) if len(ordered) > 1 else np.array(ordered)


def plot(result: Result) -> "Figure":
    """Draw the street, the hulls with the shortest segment, a common point, and all margins."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(2, 2, figsize=(10, 7.4))
        _draw_street(axes[0, 0], *result.pictures[0])
        _draw_hulls(axes[0, 1], *result.pictures[0], "The shortest segment between the hulls")
        _draw_hulls(axes[1, 0], *result.pictures[1], "No street: the hulls have a common point")
        _draw_digits(axes[1, 1], result.answers[-1])
    return figure


_LOOK = ((figures.BLUE, "o"), (figures.VERMILLION, "s"))


def _points(axes: "Axes", pair: Pair, found: margin.Separation) -> None:
    for label, (color, mark) in enumerate(_LOOK):
        mine = pair.x[pair.y == label]
        axes.plot(*mine.T, mark, color=color, markersize=4, alpha=0.8, label=pair.names[label])
    held = np.asarray(found.support)
    axes.plot(
        *pair.x[held].T, "o", color=figures.GREEN, markersize=11, fillstyle="none", linestyle="none"
    )
    axes.set(xlabel="petal length, cm", ylabel="sepal width, cm")
    axes.set_aspect("equal", adjustable="datalim")


def _draw_street(axes: "Axes", pair: Pair, found: margin.Separation) -> None:
    _points(axes, pair, found)
    w, b = np.asarray(found.w), float(found.b)
    along = np.array([-w[1], w[0]]) / np.linalg.norm(w)
    middle = np.asarray(found.nearest).mean(axis=0)
    ends = middle + np.array([[-1.6], [1.6]]) * along
    for level, dash in ((-1, "--"), (0, "-"), (1, "--")):
        line = ends - (ends @ w + b - level)[:, None] * w / (w @ w)
        axes.plot(*line.T, dash, color=figures.GREY if level else figures.PURPLE, lw=1.6)
    axes.annotate("", *found.nearest, arrowprops={"arrowstyle": "<->", "color": figures.GREEN})
    axes.set_title(f"The widest street: {2 * float(found.margin):.3f} cm")
    axes.legend(loc="lower right", fontsize="small")


def _draw_hulls(axes: "Axes", pair: Pair, found: margin.Separation, title: str) -> None:
    for label, (color, _) in enumerate(_LOOK):
        corners = hull(pair.x[pair.y == label])
        axes.fill(*corners.T, facecolor=color, alpha=0.18, edgecolor=color, linewidth=1.2)
    _points(axes, pair, found)
    near = np.asarray(found.nearest)
    if int(found.status) == margin.SEPARABLE:
        axes.plot(*near.T, "-", color=figures.GREEN, lw=2.5)
    else:
        axes.plot(*near.mean(axis=0), "*", color=figures.GREEN, markersize=15)
    axes.set_title(title)
    axes.legend(loc="lower right", fontsize="small")


def _draw_digits(axes: "Axes", digits: Answer) -> None:
    order = np.argsort(digits.double.margin, kind="stable")
    place = np.arange(len(order))
    axes.bar(place, digits.double.margin[order], color=figures.BLUE, width=0.7)
    names = [f"{a}{b}" for a, b in digits.problem.pairs[order]]
    axes.set_xticks(place, names, rotation=90, fontsize=7 if len(names) > 12 else 10)
    axes.set(
        xlabel="pair of digits", ylabel="margin, grey values", title="How far apart are two digits?"
    )
    axes.grid(visible=False, axis="x")
