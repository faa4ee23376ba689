"""Many questions about tumours, each about what the ones before missed.

The rows are 569 tumours, malignant or benign, with thirty measured features. A learner asks one
question ("is this feature above that number?"), and AdaBoost weighs a few hundred of them. The
training error is printed beside the bound that was proved for it, the error of held-out tumours
beside both, for the re-weighting and for the re-sampling version. Then: how the margins grow when
there is no training error left, and what the vote looks like in two features.
"""

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures
from mlnotes_jax.ensembles import adaboost

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Problem", "Result", "check", "plot", "problem", "run", "tables"]

FEATURES = ("worst texture", "worst concave points")  # of the picture
VERSIONS = ("re-weighting", "re-sampling")


class Problem(NamedTuple):
    """Features of each tumour, 1 for benign, the features' names, and where they come from."""

    x: Float[np.ndarray, "n d"]
    y: Int[np.ndarray, " n"]
    names: tuple[str, ...]
    source: datasets.Source


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        x: The rows that were fitted.
        y: Their classes.
        num_test: Rows that were held out.
        models: The two versions, by name.
        test_error: Of each version after each round, by name.
        stages: Rounds after which margins and regions are shown.
        margins: Of the training rows, sorted, by re-weighting: shape `(stages, n)`.
        flat: The two features of the picture, of the training rows.
        axes: The grid of the picture, two vectors.
        regions: Share of the say for benign minus that for malignant on the grid, at each stage:
            shape `(stages, g, g)`, second feature first.
        region_error: Training error of the vote in two features at each stage.
    """

    source: datasets.Source
    x: np.ndarray
    y: np.ndarray
    num_test: int
    models: dict[str, adaboost.AdaBoost]
    test_error: dict[str, np.ndarray]
    stages: tuple[int, ...]
    margins: np.ndarray
    flat: np.ndarray
    axes: tuple[np.ndarray, np.ndarray]
    regions: np.ndarray
    region_error: np.ndarray


def problem(key: Key[Array, ""] | None = None) -> Problem:
    """Load the tumours.

    Args:
        key: Not used: nothing is drawn.

    Returns:
        Rows in their own units, classes, names, source.
    """
    del key
    data = datasets.load("breast_cancer")
    return Problem(data.x, data.y, data.feature_names, data.source)


def run(key: Key[Array, ""], *, quick: bool = False, num_rounds: int = 300) -> Result:
    """Fit both versions to 60 % of the tumours, and the first in two features once more.

    Args:
        key: For the division of the rows, and for the samples.
        quick: Fewer rounds, and a coarser grid.
        num_rounds: Questions of each ensemble.

    Returns:
        Errors, bounds, margins and regions.
    """
    if quick:
        num_rounds = min(num_rounds, 100)
    data = problem()
    split_key, sample_key = jax.random.split(key)
    train, test = datasets.split(split_key, data.y, (0.6, 0.4))
    x, y = jnp.asarray(data.x[train]), jnp.asarray(data.y[train])
    models = {
        VERSIONS[0]: adaboost.fit(x, y, num_rounds=num_rounds),
        VERSIONS[1]: adaboost.fit_resampled(sample_key, x, y, num_rounds=num_rounds),
    }
    test_error = {
        name: np.mean(
            np.asarray(adaboost.staged_predict(model, data.x[test])) != data.y[test], axis=1
        )
        for name, model in models.items()
    }
    stages = tuple(t for t in (1, 10, num_rounds) if t <= num_rounds)
    weighed = models[VERSIONS[0]]
    margins = np.stack(
        [np.sort(adaboost.margins(adaboost.first_rounds(weighed, t), x, y)) for t in stages]
    )

    # No question tells rows apart by a column of zeros: the same program serves two features.
    columns = [data.names.index(name) for name in FEATURES]
    kept = np.isin(np.arange(x.shape[1]), columns)
    flat = adaboost.fit(jnp.where(kept[None], x, 0), y, num_rounds=num_rounds)
    points = 61 if quick else 161
    shown = data.x[train][:, columns]
    low, high = shown.min(axis=0), shown.max(axis=0)
    pad = 0.05 * (high - low)
    axes = tuple(
        np.linspace(a, b, points, dtype=np.float32)
        for a, b in zip(low - pad, high + pad, strict=True)
    )
    grid = np.zeros((points**2, x.shape[1]), np.float32)
    grid[:, columns] = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    parts = [adaboost.first_rounds(flat, t) for t in stages]
    regions = [adaboost.decision_function(part, grid) / part.alpha.sum() for part in parts]
    return Result(
        source=data.source,
        x=data.x[train],
        y=data.y[train],
        num_test=len(test),
        models=models,
        test_error=test_error,
        stages=stages,
        margins=margins,
        flat=shown,
        axes=(axes[0], axes[1]),
        regions=np.stack(regions).reshape(-1, points, points),
        region_error=np.asarray(flat.train_error)[np.array(stages) - 1],
    )


def check(result: Result) -> bool:
    """Whether the training errors obey their bound, and margins grow after the last error.

    Args:
        result: What `run` returned.

    Returns:
        True, or the page is wrong.
    """
    below = all(
        (np.asarray(model.train_error) <= np.asarray(model.bound) + 1e-6).all()
        for model in result.models.values()
    )
    without_error = float(result.models[VERSIONS[0]].train_error[-1]) == 0
    return below and without_error and result.margins[-1].min() > result.margins[1].min()


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """Put the numbers into rows.

    Args:
        result: What `run` returned.

    Returns:
        Title to rows.
    """
    last = len(next(iter(result.test_error.values())))
    rounds = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 300) if t < last] + [last]
    found = {
        f"Error (%) and its bound, {name}": [
            {
                "rounds": t,
                "learner, weighted": _percent(model.error[t - 1]),
                "bound": _percent(model.bound[t - 1]),
                "training": _percent(model.train_error[t - 1]),
                f"{result.num_test} held out": _percent(result.test_error[name][t - 1]),
            }
            for t in rounds
        ]
        for name, model in result.models.items()
    }
    found["How the rounds ended"] = [
        {
            "version": name,
            "learners": int(model.num_used),
            "started again": int(model.restarts.sum()),
            "perfect": bool(model.perfect),
            "too weak": bool(model.too_weak),
        }
        for name, model in result.models.items()
    ]
    found["Margins of the training rows, re-weighting"] = [
        {
            "rounds": t,
            "smallest": f"{result.margins[s, 0]:.3f}",
            "tenth part below": f"{np.quantile(result.margins[s], 0.1):.3f}",
            "median": f"{np.median(result.margins[s]):.3f}",
        }
        for s, t in enumerate(result.stages)
    ]
    return found


def plot(result: Result) -> "Figure":
    """Draw the errors under their bound, the margins, and the vote in two features.

    Args:
        result: What `run` returned.

    Returns:
        A figure of six panels.
    """
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(2, 3, figsize=(11, 7))
        _draw_errors(axes[0, 0], result)
        _draw_learners(axes[0, 1], result)
        _draw_margins(axes[0, 2], result)
        for s in range(len(result.stages)):
            _draw_region(axes[1, s], result, s)
        figure.suptitle("AdaBoost: errors under their bound, margins, and the vote over rounds")
    return figure


def _draw_errors(axes, result: Result) -> None:
    model = result.models[VERSIONS[0]]
    rounds = np.arange(1, len(model.alpha) + 1)
    axes.plot(rounds, 100 * model.bound, "--", color=figures.GREY, label="bound")
    axes.plot(rounds, 100 * model.train_error, "-", color=figures.BLUE, label="training")
    axes.plot(
        rounds, 100 * result.test_error[VERSIONS[0]], "-.", color=figures.VERMILLION,
        label="held out",
    )  # fmt: skip
    axes.plot(
        rounds, 100 * result.test_error[VERSIONS[1]], ":", color=figures.OCHRE,
        label="held out, re-sampling",
    )  # fmt: skip
    axes.set(xscale="log", ylim=(-0.5, 25), xlabel="rounds", ylabel="error (%)")
    axes.set_title("Errors, and the bound of training")
    axes.legend(fontsize=7)


def _draw_learners(axes, result: Result) -> None:
    for name, color, marker in zip(
        VERSIONS, (figures.BLUE, figures.OCHRE), ("o", "x"), strict=True
    ):
        error = np.asarray(result.models[name].error)
        axes.plot(
            np.arange(1, len(error) + 1), 100 * error, marker, color=color, ms=3, mfc="none",
            label=name,
        )  # fmt: skip
    axes.axhline(50, color=figures.GREY, linestyle=":", label="a guess")
    axes.set(xscale="log", xlabel="round", ylabel="weighted error (%)", ylim=(0, 55))
    axes.set_title("The learner of each round")
    axes.legend(fontsize=7)


_STAGES = ((figures.GREEN, ":"), (figures.VERMILLION, "--"), (figures.BLUE, "-"))


def _draw_margins(axes, result: Result) -> None:
    share = np.arange(1, len(result.y) + 1) / len(result.y)
    for t, margins, (color, dash) in zip(result.stages, result.margins, _STAGES, strict=True):
        label = f"{t} round" + "s" * (t > 1)
        axes.step(margins, share, where="post", color=color, linestyle=dash, label=label)
    axes.axvline(0, color=figures.GREY, linewidth=1)
    axes.set(xlabel="margin of a training row", ylabel="share of rows at or below")
    axes.set_title("Margins over rounds")
    axes.legend(fontsize=7)


def _draw_region(axes, result: Result, s: int) -> None:
    region = result.regions[s]
    for levels, color in (
        ([0, 1.01], figures.BLUE),
        ([0.3, 1.01], figures.BLUE),
        ([-1.01, 0], figures.VERMILLION),
        ([-1.01, -0.3], figures.VERMILLION),
    ):
        axes.contourf(*result.axes, region, levels=levels, colors=[color], alpha=0.18)
    axes.contour(*result.axes, region, levels=[0.0], colors=[figures.GREY], linewidths=1.2)
    for k, (name, color, marker) in enumerate(
        (("malignant", figures.VERMILLION, "x"), ("benign", figures.BLUE, "o"))
    ):
        axes.plot(*result.flat[result.y == k].T, marker, color=color, ms=3, mfc="none", label=name)
    t = result.stages[s]
    axes.set(xlabel=FEATURES[0], ylabel=FEATURES[1] if s == 0 else "")
    axes.set_title(f"{t} round" + "s" * (t > 1) + f": {100 * result.region_error[s]:.1f} % missed")
    if s == 0:
        axes.legend(fontsize=7)


def _percent(share: Float[Array, ""] | float) -> str:
    return f"{100 * float(share):.2f}"
