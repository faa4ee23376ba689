"""A tree that knows too much, cut back by three rules.

First the melons of Zhou's book: ten to grow from, seven to judge, and the trees that pre-pruning
and reduced-error pruning leave. Then real rows with noise: rules that judge by held-out rows, which
the tree then cannot grow from, against a price for leaves that cross-validation chooses, so that
all rows serve both.
"""

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.demos.trees import criteria as melon_demo
from mlnotes_jax.trees import criteria, decision_tree, pruning
from mlnotes_jax.trees.decision_tree import DecisionTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "ORDER",
    "RULES",
    "SETS",
    "Comparison",
    "Curve",
    "MelonTrees",
    "Result",
    "melon_trees",
    "plot",
    "problem",
    "run",
    "tables",
]

#: Of questions that tie, the tree asks the first. The book's example of pruning asks about the
#: navel first, then goes by the order of its table; its other example goes by the table alone.
ORDER = ("navel", "colour", "root", "knock", "texture", "touch")
RULES = (
    "unpruned",
    "pre-pruned",
    "reduced error",
    "price, held out",
    "price, cross-validated",
)
SETS = ("diabetes", "breast_cancer")
_FOLDS, _PARTS = 6, 8  # parts 0..5 are for growing and pruning, 6 and 7 for the test


class MelonTrees(NamedTuple):
    """The book's melons, pruned.

    Attributes:
        models: Rule -> tree; columns are in the order of `ORDER`.
        accuracy: Rule -> share of the seven held-out melons that are told right.
        errors: Of each node of the unpruned tree, on these seven.
        root_gains: Information gain of each attribute on the ten melons for training.
    """

    models: dict[str, DecisionTree]
    accuracy: dict[str, float]
    errors: pruning.NodeErrors
    root_gains: dict[str, float]


class Curve(NamedTuple):
    """One tree's path.

    Attributes:
        alphas: Where the subtree changes, without the root alone.
        num_leaves: Of each subtree.
        training: Mean squared error on the rows it grew from.
        folds: On the rows left out, by trees grown without them: shape `(folds, steps)`.
        test: On rows that had no say.
        chosen: Number of the subtree that the folds chose.
    """

    alphas: np.ndarray
    num_leaves: np.ndarray
    training: np.ndarray
    folds: np.ndarray
    test: np.ndarray
    chosen: int


class Comparison(NamedTuple):
    """Rules on one set of data, shape `(splits, rules)` each.

    Attributes:
        num_leaves: Leaves that are left.
        error: On test rows: the share of wrong classes, or the root of the mean squared error.
    """

    num_leaves: np.ndarray
    error: np.ndarray


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data of the curve.
        melons: The book's example.
        curve: The path of one tree.
        comparisons: Name of the data -> rules, over random splits.
        num_splits: How many.
    """

    source: datasets.Source
    melons: MelonTrees
    curve: Curve
    comparisons: dict[str, Comparison]
    num_splits: int


def problem(key: Key[Array, ""] | None = None, *, name: str = "diabetes") -> datasets.Dataset:
    """Load rows with much noise.

    Args:
        key: Not used: nothing is drawn.
        name: Of the data.

    Returns:
        Rows, targets, source.
    """
    del key
    return datasets.load(name)


def melon_trees() -> MelonTrees:
    """Grow the book's tree from ten melons, and prune it by the other seven."""
    data = melon_demo.melons()
    names = [name.split()[0] for name in melon_demo.ATTRIBUTES]
    columns = [names.index(name) for name in ORDER]
    codes = data.codes[:, columns]
    train = data.train.astype(np.float32)
    models, answers, errors = _melons(codes.astype(np.float32), data.y, train)
    held_out = ~data.train
    rules = ("unpruned", "pre-pruned", "ties kept", "ties cut")
    gains = {
        name: float(
            criteria.information_gain(
                criteria.table(c, data.y, sample_weight=train, num_branches=3, num_classes=2)
            )
        )
        for name, c in zip(ORDER, codes.T, strict=True)
    }
    return MelonTrees(
        models=dict(zip(rules, models, strict=True)),
        accuracy={
            rule: float(np.mean(np.asarray(answer)[held_out] == data.y[held_out]))
            for rule, answer in zip(rules, answers, strict=True)
        },
        errors=errors,
        root_gains=gains,
    )


@jax.jit
def _melons(
    x: Array, y: Array, train: Array
) -> tuple[tuple[DecisionTree, ...], tuple[Array, ...], pruning.NodeErrors]:
    sizes = [len(melon_demo.ATTRIBUTES[name]) for name in melon_demo.ATTRIBUTES]
    whole = decision_tree.fit(
        x,
        y,
        method="id3",
        categorical=range(6),
        num_categories=sizes,  # navel and touch change places with columns of as many values
        sample_weight=train,
        num_classes=2,
    )
    rows = 1 - train
    models = (
        whole,
        pruning.pre_prune(whole, x, y, sample_weight=rows),
        pruning.reduced_error(whole, x, y, ties="keep", sample_weight=rows),
        pruning.reduced_error(whole, x, y, ties="cut", sample_weight=rows),
    )
    answers = tuple(decision_tree.predict(model, x) for model in models)
    return models, answers, pruning.node_errors(whole, x, y, sample_weight=rows)


def run(key: Key[Array, ""], *, quick: bool = False, num_splits: int = 20) -> Result:
    """Prune melons, then trees of real rows by each rule, on random splits.

    Args:
        key: For the splits.
        quick: Fewer splits, and one set of data.
        num_splits: Random splits into rows for growing, pruning and testing.

    Returns:
        Trees of melons, the path of one tree, and the comparison.
    """
    names = SETS[:1] if quick else SETS
    num_splits = min(num_splits, 8) if quick else num_splits
    comparisons, curve = {}, None
    for name in names:
        data = problem(name=name)
        regression = name == "diabetes"
        leaves, errors = [], []
        for i in progress.track(range(num_splits), name):
            part = jax.random.permutation(jax.random.fold_in(key, i), len(data.y)) % _PARTS
            count, error, found = _split(data, np.asarray(part), regression)
            leaves.append(count)
            errors.append(error)
            curve = found if curve is None else curve
        comparisons[name] = Comparison(np.stack(leaves), np.stack(errors))
    assert curve is not None
    return Result(problem().source, melon_trees(), curve, comparisons, num_splits)


def _split(
    data: datasets.Dataset, part: np.ndarray, regression: bool
) -> tuple[np.ndarray, np.ndarray, Curve]:
    """Apply all rules to one split. All trees have one shape, so every function compiles once."""
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    use, hold, test = part < _FOLDS, _weight(part < 2), _weight(part >= _FOLDS)

    def grow(rows: np.ndarray) -> tuple[DecisionTree, pruning.Path]:
        weight = _weight(rows)
        if regression:
            model = decision_tree.fit(x, y, task="regression", sample_weight=weight)
        else:
            model = decision_tree.fit(x, y, sample_weight=weight, num_classes=2)
        return model, pruning.cost_complexity_path(model)

    # For rules that hold rows out; for rules that need not; and without each fold
    some, some_path = grow(use & (part >= 2))
    every, every_path = grow(use)
    by_errors = pruning.path_errors(some, some_path, x, y, sample_weight=hold)
    # The folds judge prices: in the middle of the intervals of the tree of all rows.
    following = jnp.append(every_path.alphas[1:], every_path.alphas[-1:])
    prices = jnp.sqrt(every_path.alphas * following)
    by_folds = jnp.stack(
        [
            pruning.path_errors(
                *grow(use & (part != k)), x, y, alphas=prices, sample_weight=_weight(part == k)
            )
            for k in range(_FOLDS)
        ]
    )
    alpha = pruning.best_alpha(every_path, by_folds.mean(axis=0))
    found = (
        every,
        pruning.pre_prune(some, x, y, sample_weight=hold),
        pruning.reduced_error(some, x, y, sample_weight=hold),
        pruning.subtree(some, some_path, pruning.best_alpha(some_path, by_errors)),
        pruning.subtree(every, every_path, alpha),
    )
    wrong = np.stack([np.asarray(decision_tree.predict(model, x)) for model in found]) - data.y
    wrong = np.where(wrong != 0, 1, 0) if not regression else np.square(wrong)
    errors = wrong[:, part >= _FOLDS].mean(axis=1)
    steps = int(every_path.num_steps) - 1
    curve = Curve(
        alphas=np.asarray(every_path.alphas)[:steps],
        num_leaves=np.asarray(every_path.num_leaves)[:steps],
        training=np.asarray(every_path.risks)[:steps],
        folds=np.asarray(by_folds)[:, :steps],
        test=np.asarray(pruning.path_errors(every, every_path, x, y, sample_weight=test))[:steps],
        chosen=min(int((every_path.alphas <= alpha).sum()), steps) - 1,
    )
    leaves = np.array([int(pruning.num_leaves(model)) for model in found])
    return leaves, np.sqrt(errors) if regression else errors, curve


def _weight(rows: np.ndarray) -> Array:
    return jnp.asarray(rows, jnp.float32)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """Put the numbers into rows.

    Args:
        result: What `run` returned.

    Returns:
        Title to rows.
    """
    found: dict[str, list[dict[str, object]]] = {
        "The melons: seven held out": [
            {
                "rule": rule,
                "leaves": int(pruning.num_leaves(model)),
                "told right": f"{100 * result.melons.accuracy[rule]:.1f} %",
            }
            for rule, model in result.melons.models.items()
        ]
    }
    for name, rules in result.comparisons.items():
        regression = name == "diabetes"
        kind = "root of the mean squared error" if regression else "error (%)"
        scale = 1 if regression else 100
        spread = rules.error.std(axis=0, ddof=1) / np.sqrt(len(rules.error))
        found[f"{name}: test {kind}, {result.num_splits} splits, ± standard error"] = [
            {
                "rule": rule,
                "leaves": round(float(rules.num_leaves[:, i].mean()), 1),
                "test error": f"{scale * rules.error[:, i].mean():.1f} ±{scale * spread[i]:.1f}",
            }
            for i, rule in enumerate(RULES)
        ]
    return found


def plot(result: Result) -> "Figure":
    """Draw the path of a tree, how the folds choose, and where the melon tree is cut.

    Args:
        result: What `run` returned.

    Returns:
        A figure of three panels.
    """
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplot_mosaic(
            [["leaves", "alpha"], ["tree", "tree"]], figsize=(9, 7.4), height_ratios=[1, 1.1]
        )
        _draw_leaves(axes["leaves"], result.curve)
        _draw_alpha(axes["alpha"], result.curve)
        _draw_tree(axes["tree"], result.melons)
        figure.suptitle("A smaller tree is a better one")
    return figure


def _draw_leaves(axes, curve: Curve) -> None:
    axes.plot(curve.num_leaves, curve.training, label="training rows")
    axes.plot(curve.num_leaves, curve.folds.mean(axis=0), label="rows left out, six folds")
    axes.plot(curve.num_leaves, curve.test, label="test rows")
    at = curve.num_leaves[curve.chosen]
    axes.axvline(at, color=figures.GREY, lw=1, ls=":")
    axes.annotate(
        f"chosen: {at} leaves", (at, axes.get_ylim()[1]), xytext=(4, -8),
        textcoords="offset points", fontsize=8,
    )  # fmt: skip
    axes.set(
        xscale="log",
        xlabel="leaves",
        ylabel="mean squared error",
        ylim=(0, None),
        title="Diabetes: every subtree of the path",
    )
    axes.legend(fontsize=7, loc="center right")


def _draw_alpha(axes, curve: Curve) -> None:
    mean = curve.folds.mean(axis=0)
    error = curve.folds.std(axis=0, ddof=1) / np.sqrt(len(curve.folds))
    alphas = curve.alphas[1:]
    axes.plot(alphas, mean[1:], color=figures.VERMILLION, ls="-", label="mean of six folds")
    axes.fill_between(
        alphas, (mean - error)[1:], (mean + error)[1:], color=figures.VERMILLION, alpha=0.2,
        label="± standard error", lw=0,
    )  # fmt: skip
    axes.axvline(curve.alphas[curve.chosen], color=figures.GREY, lw=1, ls=":")
    axes.set(
        xscale="log",
        xlabel=r"price of a leaf $\alpha$",
        ylabel="mean squared error",
        title="The folds choose a price",
    )
    axes.legend(fontsize=7)


_VALUES = {
    name.split()[0]: [value.rsplit(" ", 1)[0] for value in values]
    for name, values in melon_demo.ATTRIBUTES.items()
}


def _draw_tree(axes, melons: MelonTrees) -> None:
    """Draw the unpruned tree, and who asks each question."""
    tree = jax.tree.map(np.asarray, melons.models["unpruned"].tree)
    asked = {rule: _questions(melons.models[rule], tree) for rule in melons.models}
    place: dict[int, float] = {}

    def put(node: int, leaves: int) -> int:
        below = [c for c in tree.children[node] if c >= 0]
        for child in below:
            leaves = put(child, leaves)
        place[node] = sum(place[c] for c in below) / len(below) if below else float(leaves)
        return leaves + (not below)

    put(0, 0)
    for node, x in place.items():
        y = -float(tree.depth[node])
        answer = ("good", "bad")[int(tree.value[node].argmax())]
        if tree.feature[node] < 0:
            text, color = answer, figures.GREY
        else:
            name = ORDER[tree.feature[node]]
            text = f"{name}?\n({answer})"
            color = figures.VERMILLION
            color = figures.OCHRE if node in asked["ties kept"] else color
            color = figures.BLUE if node in asked["pre-pruned"] else color
            for code, branch in enumerate(tree.branch[node][: len(_VALUES[name])]):
                if branch < 0:
                    continue
                child = tree.children[node][branch]
                below = place[child], -float(tree.depth[child])
                end = below[1] + (0.3 if tree.feature[child] >= 0 else 0.18)
                axes.plot([x, below[0]], [y - 0.3, end], "-", color=figures.GREY, lw=1)
                axes.text(
                    (x + below[0]) / 2, (y - 0.3 + end) / 2, f" {_VALUES[name][code]} ",
                    fontsize=7, ha="right" if below[0] < x else "left",
                    va="bottom" if abs(below[0] - x) > 0.4 else "top",
                )  # fmt: skip
        axes.text(
            x, y, text, ha="center", va="center", fontsize=8,
            bbox={"boxstyle": "round", "fc": "none", "ec": color, "lw": 1.8},
        )  # fmt: skip
    for color, label in (
        (figures.BLUE, "asked by all"),
        (figures.OCHRE, "reduced error with ties kept asks it, pre-pruning does not"),
        (figures.VERMILLION, "only the unpruned tree asks it"),
    ):
        axes.plot([], [], "s", color=color, mfc="none", label=label)
    axes.set(
        title="The melons: which questions survive (in parentheses: the answer instead)",
        ylim=(-4.9, 0.5),
    )
    axes.axis("off")
    axes.legend(fontsize=7, loc="lower left")


def _questions(model: DecisionTree, whole) -> set[int]:
    """The nodes of the whole tree whose questions a smaller one keeps."""
    tree = jax.tree.map(np.asarray, model.tree)
    kept, front = set(), [(0, 0)]
    for small, large in front:
        if tree.feature[small] >= 0:
            kept.add(large)
            front += [
                (a, b)
                for a, b in zip(tree.children[small], whole.children[large], strict=True)
                if a >= 0
            ]
    return kept
