"""A tree that can be read, how deep is too deep, and where greed fails.

The rows are 569 tumours, malignant or benign, with thirty measurements. A tree of three questions
about two of them is drawn, with the rectangles that it cuts the plane into, beside those of a tree
that is grown until nothing is left to tell apart. Then all measurements, many random halves of the
rows, and trees of every depth: errors, and which measurements are asked. Last, sixteen rows on
which the best first question leads to a tree of twice the leaves.
"""

import functools
import itertools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures
from mlnotes_jax.trees import _export, decision_tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Problem", "Result", "chessboard", "plot", "problem", "run", "tables"]

FEATURES = ("worst concave points", "worst area")  # of the picture
DEPTHS = 10
DEPTH = 3  # of the tree that is drawn


class Problem(NamedTuple):
    """Measurements, 1 for benign, names of both, and where they come from."""

    x: Float[np.ndarray, "n d"]
    y: Int[np.ndarray, " n"]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    source: datasets.Source


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        data: The problem.
        columns: Numbers of the two features of the picture.
        drawn: The tree of depth 3 on these two.
        axes: The grid of the picture, two vectors.
        regions: What that tree, and the one without a bound, answer on the grid.
        leaves: How many leaves these two have.
        num_splits: Random halves.
        error: Mean share of wrong answers at depths 1.., shape `(depths, 2)`: training, held out.
        spread: Standard deviation over the halves, likewise.
        num_leaves: Mean number of leaves at each depth.
        importance: Mean over the halves, shape `(d,)`.
        importance_spread: Standard deviation over the halves.
        roots: How often each feature was asked first.
        greedy: Wrong answers of sixteen rows at depths 1, 2, 3 if every question is the best one.
        optimal: Wrong answers of the best of all trees of depth 1 and 2.
    """

    source: datasets.Source
    data: Problem
    columns: tuple[int, int]
    drawn: decision_tree.DecisionTree
    axes: tuple[np.ndarray, np.ndarray]
    regions: tuple[np.ndarray, np.ndarray]
    leaves: tuple[int, int]
    num_splits: int
    error: np.ndarray
    spread: np.ndarray
    num_leaves: np.ndarray
    importance: np.ndarray
    importance_spread: np.ndarray
    roots: np.ndarray
    greedy: tuple[int, ...]
    optimal: tuple[int, ...]


def problem(key: Key[Array, ""] | None = None) -> Problem:
    """Load the tumours.

    Args:
        key: Not used: nothing is drawn.

    Returns:
        Rows in their own units, classes, names, source.
    """
    del key
    data = datasets.load("breast_cancer")
    return Problem(data.x, data.y, data.feature_names, data.class_names, data.source)


def chessboard() -> tuple[Int[np.ndarray, "16 3"], Int[np.ndarray, " 16"]]:
    """Sixteen rows: the class is whether the first two columns differ, the third is a hint.

    Returns:
        Three columns of 0 and 1, and the class, which the third column tells of twelve rows.
    """
    rows = np.array(list(itertools.product((0, 1), repeat=4)))
    first, second, which, other = rows.T
    y = first ^ second
    hint = np.where((which == 1) & (other == 1), 1 - y, y)  # wrong in one row of four
    return np.stack([first, second, hint], axis=1), y.astype(np.int32)


def run(key: Key[Array, ""], *, quick: bool = False, num_splits: int = 100) -> Result:
    """Fit and draw in two features; then trees of every depth on many halves of the rows.

    Args:
        key: For the halves.
        quick: Fewer halves, and a coarser grid.
        num_splits: Random halves.

    Returns:
        Trees, their regions, errors and importances.
    """
    if quick:
        num_splits = min(num_splits, 20)
    data = problem()
    n, d = data.x.shape
    columns = tuple(data.names.index(name) for name in FEATURES)

    # One program serves all: columns of zeros ask nothing, rows of weight zero do not count.
    fit = functools.partial(decision_tree.fit, num_classes=2, max_nodes=2 * n - 1)
    order = decision_tree.presort(data.x)
    flat = np.zeros_like(data.x)
    flat[:, columns] = data.x[:, columns]
    ones = np.ones(n, np.float32)
    drawn = fit(flat, data.y, max_depth=DEPTH, sample_weight=ones, order=order)
    whole = fit(flat, data.y, sample_weight=ones, order=order)
    points = 81 if quick else 241
    low, high = flat[:, columns].min(axis=0), flat[:, columns].max(axis=0)
    axes = tuple(
        np.linspace(a, b, points, dtype=np.float32) for a, b in zip(low, high, strict=True)
    )
    grid = np.zeros((points, points, d), np.float32)
    grid[..., columns] = np.stack(np.meshgrid(*axes), axis=-1)
    regions = tuple(np.asarray(decision_tree.predict(model, grid)) for model in (drawn, whole))

    halves = jax.random.uniform(key, (num_splits, n)) < 0.5
    errors, leaves, shares, roots = [], [], [], []
    for half in np.asarray(halves):
        model = fit(data.x, data.y, sample_weight=half.astype(np.float32), order=order)
        found = _by_depth(model, data.x, data.y, half)
        errors.append(found[0])
        leaves.append(found[1])
        shares.append(decision_tree.importance(model))
        roots.append(int(model.tree.feature[0]))
    error, share = np.stack(errors), np.stack(shares)

    board, label = chessboard()
    rows, labels, weight = np.zeros((n, d), np.float32), np.zeros(n, np.int32), np.zeros(n)
    rows[:16, :3], labels[:16], weight[:16] = board, label, 1
    order = decision_tree.presort(rows)
    greedy = []
    for depth in (1, 2, 3):
        model = fit(rows, labels, max_depth=depth, sample_weight=weight, order=order)
        greedy.append(int((np.asarray(decision_tree.predict(model, rows))[:16] != label).sum()))
    return Result(
        source=data.source,
        data=data,
        columns=(columns[0], columns[1]),
        drawn=drawn,
        axes=(axes[0], axes[1]),
        regions=(regions[0], regions[1]),
        leaves=(_count(drawn), _count(whole)),
        num_splits=num_splits,
        error=error.mean(axis=0),
        spread=error.std(axis=0),
        num_leaves=np.stack(leaves).mean(axis=0),
        importance=share.mean(axis=0),
        importance_spread=share.std(axis=0),
        roots=np.bincount(roots, minlength=d),
        greedy=tuple(greedy),
        optimal=tuple(_fewest_errors(board, label, depth) for depth in (1, 2)),
    )


def _count(model: decision_tree.DecisionTree) -> int:
    return int(((model.tree.depth >= 0) & (model.tree.feature < 0)).sum())


@jax.jit
def _by_depth(
    model: decision_tree.DecisionTree, x: Array, y: Array, half: Array
) -> tuple[Array, Array]:
    """Errors, (depths, 2), and leaves of the trees of depth 1, 2, ...: all are in the whole one."""
    # A tree of depth k is what is above depth k: the last node of the first k + 1 of the path.
    path = decision_tree.decision_path(model, x, max_depth=DEPTHS)
    last = jax.lax.cummax(path, axis=1)[:, 1:]
    wrong = (model.tree.value.argmax(axis=1)[last] != y[:, None]).astype(jnp.float32)
    weight = jnp.stack([half, ~half]).astype(jnp.float32)
    error = (weight @ wrong / weight.sum(axis=1, keepdims=True)).T
    depth = jnp.arange(1, DEPTHS + 1, dtype=jnp.int32)[:, None]
    there = (model.tree.depth >= 0)[None] & (model.tree.depth[None] <= depth)
    ends = there & ((model.tree.feature < 0)[None] | (model.tree.depth[None] == depth))
    return error, ends.sum(axis=1)


def _fewest_errors(x: np.ndarray, y: np.ndarray, depth: int) -> int:
    """Wrong answers of the best tree of all, by trying every one."""
    stop = int(min(y.sum(), (1 - y).sum()))
    if depth == 0 or stop == 0:
        return stop
    sides = ([x[:, j] == v for v in (0, 1)] for j in range(x.shape[1]))
    return min(sum(_fewest_errors(x[s], y[s], depth - 1) for s in pair) for pair in sides)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """Put the numbers into rows.

    Args:
        result: What `run` returned.

    Returns:
        Title to rows.
    """
    data = result.data
    top = np.argsort(-result.importance)[:6]
    return {
        f"Depth, {result.num_splits} random halves of {len(data.y)} tumours": [
            {
                "depth": depth,
                "leaves": round(float(leaves), 1),
                "training error": f"{100 * error[0]:.1f} %",
                "held-out error": f"{100 * error[1]:.1f} % ±{100 * spread[1]:.1f}",
            }
            for depth, leaves, error, spread in zip(
                range(1, DEPTHS + 1), result.num_leaves, result.error, result.spread, strict=True
            )
        ],
        "What is asked": [
            {
                "measurement": data.names[j],
                "importance": f"{result.importance[j]:.2f} ±{result.importance_spread[j]:.2f}",
                "asked first": f"{result.roots[j]} of {result.num_splits}",
            }
            for j in top
        ],
        "Chessboard with a hint: wrong answers of 16 rows": [
            {
                "questions on a way": depth,
                "greedy": result.greedy[depth - 1],
                "best of all trees": result.optimal[depth - 1] if depth < 3 else 0,
            }
            for depth in (1, 2, 3)
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw the tree, its regions, the errors, and the importances.

    Args:
        result: What `run` returned.

    Returns:
        A figure of four panels.
    """
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(2, 2, figsize=(9.6, 7.6))
        _draw_tree(axes[0, 0], result)
        _draw_regions(axes[0, 1], result)
        _draw_errors(axes[1, 0], result)
        _draw_importance(axes[1, 1], result)
        figure.suptitle("Questions in order: a tree, its regions, its depth, and what it asks")
    return figure


_CLASSES = ((figures.VERMILLION, "x"), (figures.BLUE, "o"))


def _draw_tree(axes, result: Result) -> None:
    data = result.data
    short = [name.replace("worst ", "").replace("concave ", "conc. ") for name in data.names]
    boxes = _export.picture(
        result.drawn.tree, result.drawn.num_categories, "classification", short, data.classes,
        None, None,
    )  # fmt: skip
    boxes = [  # narrow enough for half a page
        box._replace(
            label=box.label.replace("? ", "?\n").replace(" (", "\n(").replace(" <=", "\n<=")
        )
        for box in boxes
    ]
    centre, _, depth = _export.positions(
        [box._replace(label=max(box.label.split("\n"), key=len)) for box in boxes]
    )
    for i, box in enumerate(boxes):
        for name, child in box.children:
            ends = [centre[i], centre[child]], [-depth[i] - 0.16, -depth[child] + 0.16]
            axes.plot(*ends, "-", color=figures.GREY, lw=1)
            side = "right" if centre[child] < centre[i] else "left"
            axes.text(np.mean(ends[0]), np.mean(ends[1]), f" {name} ", ha=side, fontsize=7)
        color = figures.GREY if box.children else _CLASSES[box.answer][0]
        axes.text(
            centre[i], -depth[i], box.label, ha="center", va="center", fontsize=6,
            bbox={"boxstyle": "round,pad=0.3", "fc": "none", "ec": color, "lw": 1.2},
        )  # fmt: skip
    axes.set(
        xlim=(centre.min() - 60, centre.max() + 60),
        ylim=(-depth.max() - 0.5, 0.5),
        xticks=[],
        yticks=-np.arange(depth.max() + 1),
        yticklabels=np.arange(depth.max() + 1),
        xlabel="answers: weight of the class there, of all",
        ylabel="depth",
        title=f"Depth {DEPTH}, {result.leaves[0]} leaves",
    )
    axes.grid(visible=False)


def _draw_regions(axes, result: Result) -> None:
    x, y = result.data.x[:, result.columns], result.data.y
    from matplotlib.colors import ListedColormap

    tints = ListedColormap([color for color, _ in _CLASSES])
    axes.pcolormesh(*result.axes, result.regions[0], cmap=tints, alpha=0.22, rasterized=True)
    axes.contour(
        *result.axes, result.regions[1], levels=[0.5], colors=[figures.GREEN], linewidths=1.4,
        linestyles=["--"],
    )  # fmt: skip
    for k, (color, marker) in enumerate(_CLASSES):
        axes.plot(
            *x[y == k].T, marker, color=color, ms=3, mfc="none", alpha=0.7,
            label=result.data.classes[k],
        )  # fmt: skip
    axes.plot([], [], "--", color=figures.GREEN, label=f"border, {result.leaves[1]} leaves")
    axes.set(
        xlabel=FEATURES[0],
        ylabel=FEATURES[1],
        title="Its regions (tinted), and of a tree without a bound",
    )
    axes.legend(fontsize=7)
    axes.grid(visible=False)


def _draw_errors(axes, result: Result) -> None:
    depth = np.arange(1, DEPTHS + 1)
    for part, (label, color, dash) in enumerate(
        (("training", figures.BLUE, "o-"), ("held out", figures.VERMILLION, "s--"))
    ):
        mean, spread = 100 * result.error[:, part], 100 * result.spread[:, part]
        axes.plot(depth, mean, dash, color=color, ms=4, label=label)
        axes.fill_between(depth, mean - spread, mean + spread, color=color, alpha=0.15, lw=0)
    axes.set(
        xlabel="depth",
        ylabel="error (%)",
        title=f"All measurements, {result.num_splits} random halves (± one std)",
        ylim=(0, None),
    )
    axes.legend()


def _draw_importance(axes, result: Result) -> None:
    top = np.argsort(-result.importance)[:8][::-1]
    place = np.arange(len(top))
    axes.barh(
        place, result.importance[top], xerr=result.importance_spread[top], color=figures.BLUE,
        alpha=0.6, error_kw={"ecolor": figures.GREY, "capsize": 2},
    )  # fmt: skip
    axes.set(
        yticks=place,
        yticklabels=[result.data.names[j] for j in top],
        xlabel="importance (± one std over the halves)",
        ylabel="measurement",
        title="What takes the impurity away",
        xlim=(0, None),
    )
    axes.tick_params(axis="y", labelsize=7)
