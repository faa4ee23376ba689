"""Runnable examples: `mlnotes demo <chapter>/<concept>` prints numbers and draws a picture.

A demo is a module `mlnotes_jax.demos.<chapter>.<concept>` with

- `problem(key, *, ...)`: make or load the data;
- `run(key, *, quick=False, ...) -> Result`: the work; its keyword arguments are the options of
  the command line; `Result` is a NamedTuple with a field `source` (a
  `mlnotes_jax.data.datasets.Source`: which data, under what licence);
- `tables(result) -> dict[str, list[dict]]`: title -> rows, all rows of a table with the same keys;
- `plot(result) -> Figure`: the picture, drawn inside `mlnotes_jax.demos.figures.style()`.
"""

import difflib
import importlib
from types import ModuleType
from typing import NamedTuple

from mlnotes_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.submodules(
    __name__,
    [
        "classification",
        "data",
        "ensembles",
        "figures",
        "foundations",
        "generalization",
        "nets",
        "optimization",
        "progress",
        "svm",
        "tables",
        "training",
        "trees",
    ],
)
__all__ += ["DEMOS", "Demo", "UnknownDemo", "find", "load"]


class Demo(NamedTuple):
    """An entry of the registry.

    Attributes:
        name: `chapter/concept`.
        summary: One line for the listing.
    """

    name: str
    summary: str


#: Every demo, in reading order.
DEMOS: tuple[Demo, ...] = (
    Demo("foundations/losses", "Why classifiers learn by cross-entropy, not squared error"),
    Demo("foundations/activations", "Seven activations, their slopes, and how they saturate"),
    Demo("foundations/linear_regression", "One line by three roads; which polynomial degree"),
    Demo("foundations/gradient_descent", "Full batch, mini-batch and single examples; how fast"),
    Demo("foundations/approximation", "A network is a piecewise-linear curve; error over units"),
    Demo("foundations/affine", "Half-planes, XOR, and the regions that more layers cut"),
    Demo("foundations/backpropagation", "The backward pass by hand; what it costs"),
    Demo("optimization/critical_points", "A saddle and its two ways down; the spectrum of a net"),
    Demo("optimization/sharpness", "Flat and sharp minima, and pictures of the loss"),
    Demo("optimization/momentum", "Momentum on a plateau; batch sizes from 1 to 4096"),
    Demo("optimization/adaptive", "A rate for each parameter, on a stretched bowl"),
    Demo("optimization/adam", "Adam and its kin on one network, curve by curve"),
    Demo("optimization/bounded", "From Adam to SGD: closing bounds, and one switch"),
    Demo("optimization/weight_decay", "L2 in the loss against decay of the weights"),
    Demo("optimization/schedules", "Learning rates that change; why Adam is warmed up"),
    Demo("optimization/stability", "A cliff in the loss, with and without clipping"),
    Demo("classification/logistic_regression", "Log-odds on a line; XOR lifted; a path over L1"),
    Demo("classification/gaussian", "A Gaussian for each class; drawn against fitted borders"),
    Demo("svm/margin", "The widest street between two classes, or a proof of none"),
    Demo("svm/kernels", "XOR under three kernels; a kernel that is none"),
    Demo("svm/duality", "Two sides of one problem: bounds that meet at the optimum"),
    Demo("svm/classifier", "What C and gamma do; a fit with its certificate"),
    Demo("svm/regressor", "A tube around the data, and who holds it up"),
    Demo("trees/criteria", "Which question tells most; which criteria can be fooled"),
    Demo("trees/decision_tree", "A tree to read, how deep is too deep, where greed fails"),
    Demo("trees/pruning", "Melons and diabetes: cutting a tree by three rules"),
    Demo("trees/forest", "Many trees: out of bag, what they share, what they use"),
    Demo("trees/boosting", "A sum of trees, stage by stage; what a small step buys"),
    Demo("ensembles/adaboost", "Stumps that mend misses: errors, bound, margins, regions"),
    Demo("ensembles/stacking", "Whom to believe: a stack in sample and out of fold"),
    Demo("ensembles/networks", "Five ways to an ensemble, and one network taught by it"),
    Demo("generalization/bias_variance", "Thousands of fits: bias, variance, and the U-curve"),
    Demo("generalization/bounds", "How often a bound is broken, against what it allows"),
    Demo("generalization/cross_validation", "Folds, their error bars, and a leak"),
    Demo("generalization/search", "Grid, random, coarse to fine: what each one misses"),
    Demo("generalization/early_stopping", "When to stop: four rules on one training run"),
    Demo("generalization/mismatch", "Digits moved or dimmed: which change is noticed?"),
    Demo("generalization/diagnosis", "Five trainings, five verdicts of the guide"),
    Demo("nets/mlp", "The notes' network on pictures; and a better recipe"),
    Demo("nets/normalization", "Batch norm against none; what it does to the surface"),
    Demo("nets/dropout", "Random zeros: the same mean, more variance, less over-fit"),
    Demo("nets/convolution", "What filters see; sizes and costs of a stack"),
    Demo("nets/cnn", "A small convolutional network on pictures"),
    Demo("nets/resnet", "Deeper is worse, until shortcuts make it better"),
    Demo("training/loop", "Sixteen learning rates trained in one program"),
    Demo("data/scaling", "What scaling does to the condition number and to descent"),
)


class UnknownDemo(LookupError):
    """No demo, or more than one, goes by that name."""


def find(name: str) -> Demo:
    """Look a demo up by `chapter/concept`, or by `concept` where that is unique.

    Args:
        name: The name; `-` and `_` are the same, case does not matter.

    Returns:
        The entry of the registry.

    Raises:
        UnknownDemo: Nothing matches; the message suggests the nearest name.
    """
    wanted = name.strip().strip("/").lower().replace("-", "_")
    by_name = {demo.name: demo for demo in DEMOS}
    by_concept: dict[str, list[Demo]] = {}
    for demo in DEMOS:
        by_concept.setdefault(demo.name.split("/")[1], []).append(demo)
    if wanted in by_name:
        return by_name[wanted]
    matches = by_concept.get(wanted, [])
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = " or ".join(demo.name for demo in matches)
        raise UnknownDemo(f"{name!r} is not unique: say {names}")
    near = difflib.get_close_matches(wanted, [*by_name, *by_concept], n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UnknownDemo(f"there is no demo {name!r}.{hint} `mlnotes demo` lists them all.")


def load(demo: Demo) -> ModuleType:
    """Import the module of a demo."""
    return importlib.import_module(f"{__name__}.{demo.name.replace('/', '.')}")
