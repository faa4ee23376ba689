"""Why a stack must be trained out of fold: a learner that memorises is believed, or is not.

A line and a local mean of neighbours predict how a disease goes on. The bandwidth takes the local
mean from one that knows every training target by heart to one that is nearly constant. At each
bandwidth, on many random halves of the rows, a meta-learner weighs the two by what they say about
rows that they have seen, and by what they say about rows that they have not.
"""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mlnotes_jax.data import datasets, scaling
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.ensembles import stacking
from mlnotes_jax.foundations import linear_regression
from mlnotes_jax.generalization import cross_validation, metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "METHODS",
    "Problem",
    "Result",
    "local_mean",
    "local_mean_fit",
    "plot",
    "problem",
    "run",
    "tables",
]

BANDWIDTHS = (0.1, 0.4, 0.6, 0.8, 1.1, 1.6, 2.5)
METHODS = ("line", "local mean", "average", "in sample", "out of fold", "blend")
NUM_FOLDS = 5


class Problem(NamedTuple):
    """Measurements of patients, the course of their disease a year later, where they come from."""

    x: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, " n"]
    source: datasets.Source


class Result(NamedTuple):
    """What `run` found, at h bandwidths.

    Attributes:
        source: The data.
        num_rows: Rows of the training half, and of the test half.
        num_splits: How many random halves.
        bandwidths: Of the local mean, in standard deviations of a feature.
        own_share: How much of a fitted value is the row's own target, the mean over rows and
            splits, shape `(h,)`; 1 for a learner that memorises.
        rmse: Method -> root mean squared error on the test half, shape `(splits, h)`.
        weight: `"in sample"` or `"out of fold"` -> the meta-learner's weight of the local mean,
            shape `(splits, h)`.
        targets: Of the training half of the last split.
        said: Likewise, what the memorising local mean says about these rows: method -> `(n,)`.
    """

    source: datasets.Source
    num_rows: tuple[int, int]
    num_splits: int
    bandwidths: tuple[float, ...]
    own_share: np.ndarray
    rmse: dict[str, np.ndarray]
    weight: dict[str, np.ndarray]
    targets: np.ndarray
    said: dict[str, np.ndarray]


def problem(key: Key[Array, ""] | None = None) -> Problem:
    """Load the patients.

    Args:
        key: Not used: nothing is drawn.

    Returns:
        Rows in their own units, targets, source.
    """
    del key
    data = datasets.load("diabetes_raw")
    return Problem(data.x, data.y, data.source)


def local_mean_fit(
    x: Float[Array, "n d"],
    y: Float[Array, " n"],
    *,
    bandwidth: float,
    sample_weight: Float[Array, " n"] | None = None,
) -> dict[str, Any]:
    """Keep the rows: nothing is computed before somebody asks.

    Args:
        x: Rows, shape `(n, d)`.
        y: Targets, shape `(n,)`.
        bandwidth: How far a neighbour counts.
        sample_weight: Shape `(n,)`; zero drops a row.

    Returns:
        What `local_mean` needs.
    """
    x = jnp.asarray(x)
    weight = jnp.ones(len(x), x.dtype) if sample_weight is None else jnp.asarray(sample_weight)
    return {"x": x, "y": jnp.asarray(y), "weight": weight, "bandwidth": jnp.asarray(bandwidth)}


@jax.jit
def local_mean(model: dict[str, Any], x: Float[Array, "m d"]) -> Float[Array, " m"]:
    """Mean of the targets, weighted by nearness; for a small bandwidth, that of the nearest row.

    Args:
        model: From `local_mean_fit`.
        x: Rows, shape `(m, d)`.

    Returns:
        Shape `(m,)`.
    """
    return _nearness(model, x) @ model["y"]


def _nearness(model: dict[str, Any], x: Array) -> Array:
    apart = jnp.square(x[:, None] - model["x"][None]).sum(axis=-1)
    scores = -apart / (2 * jnp.square(model["bandwidth"])) + jnp.log(model["weight"])[None]
    return jax.nn.softmax(scores, axis=1)


@jax.jit
def _own_share(model: dict[str, Any]) -> Array:
    return jnp.diagonal(_nearness(model, model["x"])).mean()


def run(key: Key[Array, ""], *, quick: bool = False, num_splits: int = 20) -> Result:
    """Stack a line and a local mean at every bandwidth, on random halves.

    Args:
        key: Draws the halves and the folds.
        quick: Three bandwidths and four halves.
        num_splits: How many halves.

    Returns:
        Errors, weights, and what a memorising learner says.
    """
    bandwidths = BANDWIDTHS[::3] if quick else BANDWIDTHS
    num_splits = min(num_splits, 4) if quick else num_splits
    data = problem()
    half = len(data.y) // 2
    shape = num_splits, len(bandwidths)
    rmse = {name: np.zeros(shape) for name in METHODS}
    weight = {name: np.zeros(shape) for name in ("in sample", "out of fold")}
    own, said, targets = np.zeros(shape), {}, data.y
    scaled = scaling.fit_standard, scaling.apply
    line = stacking.Learner(linear_regression.fit, linear_regression.predict, scaled)
    plain = stacking.Learner(linear_regression.fit, linear_regression.predict)
    for s in progress.track(range(num_splits), "halves"):
        order_key, fold_key = jax.random.split(jax.random.fold_in(key, s))
        order = np.asarray(jax.random.permutation(order_key, len(data.y)))
        train, test = order[:half], order[half:]
        x, y, targets = data.x[train], data.y[train], data.y[train]
        folds = np.asarray(cross_validation.k_fold(fold_key, half, num_folds=NUM_FOLDS))
        for h, bandwidth in enumerate(bandwidths):
            neighbours = functools.partial(local_mean_fit, bandwidth=bandwidth)
            learners = {
                "line": line,
                "local mean": stacking.Learner(neighbours, local_mean, scaled),
            }
            stack = stacking.fit(x, y, learners=learners, meta=plain, folds=folds)
            blend = stacking.blend(x, y, learners=learners, meta=plain, held_out=folds == 0)
            seen, new = stacking.features(stack, x), stacking.features(stack, data.x[test])
            naive = linear_regression.fit(seen, y)
            predictions = {
                "line": new[:, 0],
                "local mean": new[:, 1],
                "average": new.mean(axis=1),
                "in sample": linear_regression.predict(naive, new),
                "out of fold": stacking.predict(stack, data.x[test]),
                "blend": stacking.predict(blend, data.x[test]),
            }
            for name, values in predictions.items():
                rmse[name][s, h] = metrics.rmse(values, data.y[test])
            weight["in sample"][s, h] = naive.coef[1]
            weight["out of fold"][s, h] = stack.meta.model.coef[1]
            own[s, h] = _own_share(stack.models[1].model)
            if h == 0:
                said = {
                    "in sample": np.asarray(seen[:, 1]),
                    "out of fold": np.asarray(stack.training_features[:, 1]),
                }
    return Result(
        source=data.source,
        num_rows=(half, len(data.y) - half),
        num_splits=num_splits,
        bandwidths=bandwidths,
        own_share=own.mean(axis=0),
        rmse=rmse,
        weight=weight,
        targets=targets,
        said=said,
    )


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    places = sorted({0, len(result.bandwidths) // 2, len(result.bandwidths) - 1})
    own = result.own_share
    errors: list[dict[str, object]] = [
        {
            "method": name,
            **{f"{own[h]:.0%} of its own": _mean(result.rmse[name][:, h]) for h in places},
        }
        for name in METHODS
    ]
    weights: list[dict[str, object]] = [
        {
            "bandwidth": bandwidth,
            "its own target": f"{own[h]:.1%}",
            **{name: _mean(values[:, h], 2) for name, values in result.weight.items()},
        }
        for h, bandwidth in enumerate(result.bandwidths)
    ]
    count = f"{result.num_splits} halves"
    return {
        f"Test RMSE, by the local mean's share of its own target ({count})": errors,
        f"Weight of the local mean beside the line ({count}, ± standard error)": weights,
    }


def plot(result: Result) -> "Figure":
    """Draw errors and weights against memory, and what the memorising learner says."""
    import matplotlib.pyplot as plt

    looks = {
        "line": (figures.GREY, ":", "D"),
        "local mean": (figures.OCHRE, "-.", "^"),
        "in sample": (figures.VERMILLION, "--", "s"),
        "out of fold": (figures.BLUE, "-", "o"),
    }
    share = 100 * result.own_share
    with figures.style():
        figure, axes = plt.subplots(1, 3, figsize=(11, 3.6))
        for name, points in result.said.items():
            color, _, mark = looks[name]
            axes[0].plot(
                points, result.targets, mark, color=color, ms=3, alpha=0.6, label=name,
                linestyle="none",
            )  # fmt: skip
        axes[0].set(
            xlabel="what it says (feature)", ylabel="target", title="A learner that memorises"
        )
        for name, values in result.weight.items():
            _curve(axes[1], share, values, looks[name], name)
        axes[1].axhline(0, color=figures.GREY, lw=1)
        axes[1].set(
            xlabel="share of its own target (%)",
            ylabel="weight of the local mean",
            title="Whom the meta-learner believes",
        )
        for name, look in looks.items():
            _curve(axes[2], share, result.rmse[name], look, name)
        axes[2].set(
            xlabel="share of its own target (%)",
            ylabel="test error (RMSE)",
            title="What that costs",
        )
        for one in axes:
            one.legend(fontsize=7)
        figure.suptitle("A line and a local mean, stacked (bars: two standard errors)")
    return figure


def _curve(axes: Any, share: np.ndarray, values: np.ndarray, look: Any, name: str) -> None:
    color, dash, mark = look
    axes.errorbar(
        share, values.mean(axis=0), 2 * _error(values), color=color, linestyle=dash, marker=mark,
        ms=4, capsize=2, label=name,
    )  # fmt: skip


def _error(values: np.ndarray) -> np.ndarray:
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


def _mean(values: np.ndarray, digits: int = 1) -> str:
    return f"{values.mean():.{digits}f} ±{_error(values):.{digits}f}"
