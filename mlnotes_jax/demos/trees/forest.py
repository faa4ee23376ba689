"""Many trees judge a tumour: how the error falls, what they look at, and how much they agree.

The rows are 569 tumours with the means of ten measured features, and two columns of pure noise: one
that is different in every row, and a coin. A third of the rows is held out by a weight of zero. The
forest's error is told by the rows that each tree left out, and by the held-out ones. Its features
are rated in two ways, and one of them believes in noise. Then forests on random halves of the
training rows: how much one tree changes from half to half, and how much the mean of B trees.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.trees import forest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NOISE", "SETTINGS", "Problem", "Result", "plot", "problem", "run", "tables"]

NOISE = ("noise, all different", "noise, a coin")
FEATURES = ("mean texture", "mean concave points")  # of the picture
SETTINGS = {"max_nodes": 255, "num_bins": 64, "num_classes": 2}  # one program for all forests


class Problem(NamedTuple):
    """Features and noise, 1 for benign, weight 0 for a held-out row, names, and the source."""

    x: Float[np.ndarray, "n d"]
    y: Int[np.ndarray, " n"]
    train: Float[np.ndarray, " n"]
    names: tuple[str, ...]
    source: datasets.Source


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        names: Of the columns.
        train_size: Rows to learn from.
        test_size: Rows held out.
        out_of_bag: Error of the first 1, 2, ... trees, by the rows that they left out.
        held_out: The same, by the held-out rows.
        left_out: Mean share of the training rows that a tree has not seen.
        impurity: Share of the impurity that each column took away, shape `(d,)`.
        permuted: Mean rise of the error on held-out rows if the column is shuffled, shape `(d,)`.
        permuted_error: Standard error of that, shape `(d,)`.
        points: The two features of the picture and the class of the training rows.
        axes: The grid of the picture, two vectors.
        regions: Probability of "benign" on the grid: of one tree, and of the forest.
        num_sets: Random halves of the training rows.
        tree_variance: Variance from half to half of one tree's probability; mean over held-out
            rows, as all that follow.
        correlation: Of two trees of one forest, over the halves.
        sizes: Numbers of trees.
        variance: Variance from half to half of the mean of so many trees, shape `(sizes,)`.
        law: What rho sigma^2 + (1 - rho) sigma^2 / B says, shape `(sizes,)`.
        set_error: Mean error on the held-out rows of one tree, and of a forest.
    """

    source: datasets.Source
    names: tuple[str, ...]
    train_size: int
    test_size: int
    out_of_bag: np.ndarray
    held_out: np.ndarray
    left_out: float
    impurity: np.ndarray
    permuted: np.ndarray
    permuted_error: np.ndarray
    points: tuple[np.ndarray, np.ndarray]
    axes: tuple[np.ndarray, np.ndarray]
    regions: tuple[np.ndarray, np.ndarray]
    num_sets: int
    tree_variance: float
    correlation: float
    sizes: tuple[int, ...]
    variance: np.ndarray
    law: np.ndarray
    set_error: tuple[float, float]


def problem(key: Key[Array, ""]) -> Problem:
    """Load the tumours, add noise, and hold a third of the rows out.

    Args:
        key: For the noise and the split.

    Returns:
        Rows, classes, weights, names, source.
    """
    data = datasets.load("breast_cancer")
    columns = [i for i, name in enumerate(data.feature_names) if name.startswith("mean ")]
    names = tuple(data.feature_names[i] for i in columns)
    drawn = np.asarray(jax.random.uniform(key, (3, len(data.y))))
    x = np.column_stack([data.x[:, columns], drawn[0], drawn[1] < 0.5]).astype(np.float32)
    held_out = drawn[2] < np.quantile(drawn[2], 1 / 3)
    return Problem(x, data.y, (~held_out).astype(np.float32), names + NOISE, data.source)


def run(
    key: Key[Array, ""], *, quick: bool = False, num_trees: int = 100, num_sets: int = 60
) -> Result:
    """Fit a forest, rate its features, and measure how much trees and forests vary.

    Args:
        key: For the problem, the forests, the shuffles and the halves.
        quick: Fewer trees, fewer halves, and a coarser grid.
        num_trees: Trees of a forest.
        num_sets: Random halves of the training rows.

    Returns:
        Errors, importances, regions, variances.
    """
    if quick:
        num_trees, num_sets = min(num_trees, 50), min(num_sets, 20)
    problem_key, fit_key, shuffle_key, flat_key, sets_key = jax.random.split(key, 5)
    x, y, train, names, source = problem(problem_key)
    held_out = 1 - train
    settings: dict[str, Any] = {**SETTINGS, "num_trees": num_trees}

    model = forest.fit(fit_key, x, y, sample_weight=train, **settings)
    bag = forest.out_of_bag(model, x, y, sample_weight=train)
    shuffled = forest.permutation_importance(
        shuffle_key, model, x, y, sample_weight=held_out, num_repeats=5 if quick else 20
    )

    # Columns of zeros are never asked about: two features, and the program is still the same.
    pair = [names.index(name) for name in FEATURES]
    flat = np.zeros_like(x)
    flat[:, pair] = x[:, pair]
    drawn = forest.fit(flat_key, flat, y, sample_weight=train, **settings)
    axes, grid = _grid(flat, pair, 41 if quick else 121)
    answers = np.asarray(forest.tree_predictions(drawn, grid))[..., 1]
    shape = len(axes[1]), len(axes[0])

    votes = _halves(sets_key, x, y, train, num_sets, settings)
    sizes = tuple(size for size in (1, 2, 5, 10, 20, 50, 100, 200) if size <= num_trees)
    tree_variance, correlation, variance = _variances(votes, sizes)
    law = correlation * tree_variance + (1 - correlation) / np.array(sizes) * tree_variance
    test = y[held_out > 0]
    return Result(
        source=source,
        names=names,
        train_size=int(train.sum()),
        test_size=int(held_out.sum()),
        out_of_bag=np.asarray(bag.curve),
        held_out=np.asarray(forest.staged_error(model, x, y, sample_weight=held_out)),
        left_out=float(np.mean(np.asarray(bag.num_trees)[train > 0]) / num_trees),
        impurity=np.asarray(forest.importance(model)),
        permuted=np.asarray(shuffled.mean),
        permuted_error=np.std(np.asarray(shuffled.rise), axis=1) / shuffled.rise.shape[1] ** 0.5,
        points=(x[train > 0][:, pair], y[train > 0]),
        axes=axes,
        regions=(answers[0].reshape(shape), answers.mean(axis=0).reshape(shape)),
        num_sets=num_sets,
        tree_variance=tree_variance,
        correlation=correlation,
        sizes=sizes,
        variance=variance,
        law=law,
        set_error=(
            float(np.mean((votes > 0.5) != test)),
            float(np.mean((votes.mean(axis=1) > 0.5) != test)),
        ),
    )


def _grid(
    x: np.ndarray, pair: list[int], points: int
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Two axes that cover the data, and their grid as rows, zeros in the other columns."""
    low, high = x[:, pair].min(axis=0), x[:, pair].max(axis=0)
    first, second = (np.linspace(a, b, points) for a, b in zip(low, high, strict=True))
    grid = np.zeros((points * points, x.shape[1]), np.float32)
    grid[:, pair] = np.stack(np.meshgrid(first, second), axis=-1).reshape(-1, 2)
    return (first, second), grid


def _halves(
    key: Array, x: np.ndarray, y: np.ndarray, train: np.ndarray, num_sets: int, settings: dict
) -> np.ndarray:
    """What each tree says about the held-out rows, shape `(halves, trees, rows)`."""
    found = []
    keys = jax.random.split(key, num_sets + 1)
    drawn = np.asarray(jax.random.uniform(keys[0], (num_sets, len(y))))
    for fit_key, rank in zip(progress.track(list(keys[1:]), "halves"), drawn, strict=True):
        half = train * (rank < np.median(rank[train > 0])).astype(np.float32)
        model = forest.fit(fit_key, x, y, sample_weight=half, **settings)
        found.append(np.asarray(forest.tree_predictions(model, x))[:, train == 0, 1])
    return np.stack(found)


def _variances(votes: np.ndarray, sizes: tuple[int, ...]) -> tuple[float, float, np.ndarray]:
    """Variance of one tree and correlation of two, by every other half; by the rest, of means."""
    judged, others = votes[::2], votes[1::2]
    count, num_trees = judged.shape[:2]
    away = judged - judged.mean(axis=0)
    one = (away**2).sum(axis=0).mean() / (count - 1)
    # The mean product of two trees: that of all pairs less those of a tree with itself.
    pairs = (away.sum(axis=1) ** 2 - (away**2).sum(axis=1)) / (num_trees * (num_trees - 1))
    two = pairs.sum(axis=0).mean() / (count - 1)
    several = []
    for size in sizes:
        parts = others[:, : num_trees // size * size]
        means = parts.reshape(len(others), -1, size, votes.shape[2]).mean(axis=2)
        several.append(np.var(means, axis=0, ddof=1).mean())
    return float(one), float(two / one), np.array(several)


def tables(result: Result) -> dict[str, list[dict]]:
    """Tables of a result.

    Args:
        result: What `run` returned.

    Returns:
        Title to rows.
    """
    errors = (result.out_of_bag, result.held_out)
    counts = sorted({1, 5, 20, len(errors[0])})
    order = np.argsort(-result.impurity)
    shown = [*order[:4], *(result.names.index(name) for name in NOISE)]
    unseen = f"a tree has not seen {result.left_out:.1%} of the rows"
    return {
        f"Error (%) by the number of trees; {unseen}": [
            {
                "trees": count,
                f"out of bag ({result.train_size} rows)": f"{100 * errors[0][count - 1]:.1f}",
                f"held out ({result.test_size} rows)": f"{100 * errors[1][count - 1]:.1f}",
            }
            for count in counts
        ],
        "What a column is worth": [
            {
                "column": result.names[j],
                "impurity": f"{result.impurity[j]:.1%}",
                "error if shuffled (points)": _signed(result, j),
            }
            for j in shown
        ],
        f"Spread over {result.num_sets} halves of the rows, correlation {result.correlation:.2f}": [
            {
                "trees": size,
                "variance": f"{variance:.4f}",
                "by the law": f"{law:.4f}",
            }
            for size, variance, law in zip(result.sizes, result.variance, result.law, strict=True)
        ],
    }


def _signed(result: Result, j: int) -> str:
    return f"{100 * result.permuted[j]:+.1f} ±{100 * result.permuted_error[j]:.1f}"


def plot(result: Result) -> "Figure":
    """Draw the error, the importances, the regions, and the variance.

    Args:
        result: What `run` returned.

    Returns:
        A figure of six panels.
    """
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(3, 2, figsize=(9, 10.5))
        _draw_error(axes[0, 0], result)
        _draw_variance(axes[0, 1], result)
        _draw_importance(
            axes[1, 0], result, 100 * result.impurity, "impurity taken away (%), training rows"
        )
        _draw_importance(
            axes[1, 1], result, 100 * result.permuted, "rise of the held-out error (points)"
        )
        for axis, region, name in zip(
            axes[2], result.regions, ("One tree", f"{len(result.held_out)} trees"), strict=True
        ):
            _draw_region(axis, result, region, name)
        figure.suptitle("A forest: error, spread, what it looks at, and its regions")
    return figure


def _draw_error(axes, result: Result) -> None:
    count = np.arange(1, len(result.held_out) + 1)
    for curve, name, color, dash in (
        (result.out_of_bag, "out of bag", figures.BLUE, "-"),
        (result.held_out, "held out", figures.VERMILLION, "--"),
    ):
        axes.semilogx(count, 100 * curve, dash, color=color, label=name)
    axes.set(xlabel="trees", ylabel="error (%)", title="Error by the number of trees")
    axes.legend()


def _draw_variance(axes, result: Result) -> None:
    axes.loglog(result.sizes, result.variance, "o", color=figures.BLUE, label="measured")
    axes.loglog(result.sizes, result.law, "-", color=figures.BLUE, label="law")
    floor = result.correlation * result.tree_variance
    axes.axhline(floor, color=figures.GREY, linestyle=":", label=r"$\rho\, \sigma^2$")
    axes.set(
        xlabel="trees $B$",
        ylabel="variance of the answer",
        title=rf"Trees agree by $\rho = {result.correlation:.2f}$",
    )
    axes.legend()


def _draw_importance(axes, result: Result, worth: np.ndarray, label: str) -> None:
    order = np.argsort(result.impurity)
    noise = np.isin(np.array(result.names)[order], NOISE)
    place = np.arange(len(order))
    for rows, color, hatch, name in (
        (~noise, figures.BLUE, "", "measured feature"),
        (noise, figures.VERMILLION, "//", "noise"),
    ):
        axes.barh(place[rows], worth[order][rows], color=color, hatch=hatch, label=name)
    axes.set_yticks(place, [result.names[j].removeprefix("mean ") for j in order], fontsize=7)
    axes.axvline(0, color=figures.GREY, lw=1)
    axes.set(xlabel=label, title="By impurity" if "impurity" in label else "By shuffling")
    axes.legend(fontsize=7)


def _draw_region(axes, result: Result, region: np.ndarray, name: str) -> None:
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    # Each class in the colour of its points, paler than they are, and nothing in between.
    ends = to_rgba(figures.VERMILLION, 0.4), to_rgba(figures.GREY, 0), to_rgba(figures.BLUE, 0.4)
    tints = LinearSegmentedColormap.from_list("classes", ends)
    picture = axes.pcolormesh(
        *result.axes, region, vmin=0, vmax=1, cmap=tints, shading="nearest", rasterized=True
    )
    x, y = result.points
    for k, (marker, color) in enumerate((("x", figures.VERMILLION), ("o", figures.BLUE))):
        axes.plot(*x[y == k].T, marker, color=color, ms=3, mfc="none", alpha=0.8)
    title = f"{name} (x malignant, o benign)"
    axes.set(xlabel=FEATURES[0], ylabel=FEATURES[1], title=title)
    axes.figure.colorbar(picture, ax=axes, label='probability of "benign"')
