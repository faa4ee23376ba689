"""Thousands of fits to thousands of data sets, and where their error comes from.

A known curve is measured with noise at twenty places, again and again. Polynomials of every degree
are fitted to each measurement, and their error is taken apart: once from the fits, once in closed
form. The same with ridge, and with more data. Then one real data set, resampled: the progression of
diabetes, predicted by the mean of the most similar patients.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures
from mlnotes_jax.foundations import linear_regression as lr
from mlnotes_jax.generalization import bias_variance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Problem", "Result", "plot", "problem", "run", "tables", "truth"]

FANS = (1, 3, 9)  # degrees whose fits are drawn
SIZES = (15, 30, 60, 120)
SIZE_DEGREES = (1, 5)
NUM_FAN = 40
NEIGHBOURS = (1, 2, 4, 8, 16, 32, 64)


class Problem(NamedTuple):
    """Where fits to the curve are judged, and the patients.

    Attributes:
        x: The points at which the error is measured, shape `(m,)`.
        patients: Ten measurements of each, scaled to mean 0 and variance 1, shape `(442, 10)`.
        progression: Of their disease after a year, shape `(442,)`.
        source: Where the patients come from.
    """

    x: np.ndarray
    patients: np.ndarray
    progression: np.ndarray
    source: datasets.Source


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data of the resampled part.
        x: The points.
        num_rows: Rows of each data set.
        num_datasets: How many data sets were drawn.
        fans: The first fits of each degree of `FANS`, shape `(3, 40, m)`.
        mean_fans: The mean of all fits, shape `(3, m)`.
        targets: One draw of fresh targets, shape `(m,)`.
        degree: Parts of the error for degree 0 to 9: numbers of shape `(10,)`.
        degree_exact: The same in closed form.
        best_degree: Where the exact sum is lowest.
        ridges: Strengths.
        ridge: Parts of the error for each strength, with degree 9.
        ridge_exact: The same in closed form.
        sizes: Numbers of rows.
        size: Parts of the error, shape `(2, 4)`: for each of `SIZE_DEGREES` and each size.
        size_exact: The same in closed form.
        real: What resampling the patients showed: numbers of shape `(7,)`, for each of
            `NEIGHBOURS`.
        num_patients: How many patients were resampled.
    """

    source: datasets.Source
    x: np.ndarray
    num_rows: int
    num_datasets: int
    fans: np.ndarray
    mean_fans: np.ndarray
    targets: np.ndarray
    degree: bias_variance.Parts
    degree_exact: bias_variance.ClosedForm
    best_degree: int
    ridges: np.ndarray
    ridge: bias_variance.Parts
    ridge_exact: bias_variance.ClosedForm
    sizes: tuple[int, ...]
    size: bias_variance.Parts
    size_exact: bias_variance.ClosedForm
    real: bias_variance.OutOfBag
    num_patients: int


def truth(x: Array | np.ndarray) -> Array:
    """The curve that is measured."""
    return jnp.sin(np.pi * x + 1)


def problem(key: Key[Array, ""] | None = None) -> Problem:
    """Lay out the points, and load the patients.

    Args:
        key: Not used: nothing is drawn.

    Returns:
        Points, patients.
    """
    del key
    data = datasets.load("diabetes")
    # Points between the rows too: the largest errors are there.
    return Problem(
        x=np.linspace(-1, 1, 61, dtype=np.float32),
        patients=(data.x - data.x.mean(axis=0)) / data.x.std(axis=0),
        progression=data.y,
        source=data.source,
    )


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    num_datasets: int = 4000,
    num_rows: int = 20,
    noise: float = 0.5,
    max_degree: int = 9,
    num_patients: int = 200,
) -> Result:
    """Decompose the error over the degree, the ridge strength and the number of rows.

    Args:
        key: Draws the noise, the patients and the resamples.
        quick: A quarter of the data sets and resamples.
        num_datasets: How many data sets are drawn, and fitted with every setting.
        num_rows: Rows of each data set.
        noise: Standard deviation of the noise.
        max_degree: Highest polynomial degree, 9 or more.
        num_patients: How many patients are in the resampled set.

    Returns:
        Measured and exact parts of the error.

    Raises:
        ValueError: `max_degree` or `num_patients` is out of its range.
    """
    if max_degree < FANS[-1]:
        raise ValueError(f"max_degree must be at least {FANS[-1]}, got {max_degree}")
    data = problem()
    if not NEIGHBOURS[-1] < num_patients <= len(data.patients):
        raise ValueError(
            f"num_patients must be in {NEIGHBOURS[-1] + 1}..{len(data.patients)}, "
            f"got {num_patients}"
        )
    if quick:
        num_datasets = max(3, num_datasets // 4)
    key, patient_key, resample_key = jax.random.split(key, 3)

    # All sweeps are one batch of settings: rows (those of weight 0 only fill up), which powers of x
    # may be used, how much ridge.
    degrees, most = np.arange(max_degree + 1), max(num_rows, SIZES[-1])
    ridges = np.logspace(-4, 2, 13)
    plan = [(num_rows, degree, 0.0) for degree in degrees]
    plan += [(num_rows, max_degree, ridge) for ridge in ridges]
    plan += [(size, degree, 0.0) for degree in SIZE_DEGREES for size in SIZES]
    settings = _Setting(
        x=jnp.asarray([np.pad(np.linspace(-1, 1, n), (0, most - n)) for n, _, _ in plan], "f4"),
        weight=jnp.asarray([np.arange(most) < n for n, _, _ in plan], "f4"),
        powers=jnp.asarray([degrees[1:] <= degree for _, degree, _ in plan], "f4"),
        ridge=jnp.asarray([ridge for _, _, ridge in plan], "f4"),
    )
    measured, predictions, mean, targets = jax.device_get(
        _measure(key, settings, data.x, noise, num_datasets)
    )
    exact = jax.device_get(_exact(settings, data.x, noise))
    fans, ends = np.array(FANS), np.cumsum([len(degrees), len(ridges)])

    order = np.asarray(jax.random.permutation(patient_key, len(data.patients)))
    rows = order[:num_patients]
    real = _resample(
        resample_key,
        jnp.asarray(NEIGHBOURS, jnp.float32),
        jnp.asarray(data.patients[rows]),
        jnp.asarray(data.progression[rows]),
        100 if quick else 400,
    )
    return Result(
        source=data.source,
        x=data.x,
        num_rows=num_rows,
        num_datasets=num_datasets,
        fans=predictions[fans],
        mean_fans=mean[fans],
        targets=targets,
        degree=_take(measured, slice(ends[0])),
        degree_exact=_take(exact, slice(ends[0])),
        best_degree=int(exact.total[: ends[0]].argmin()),
        ridges=ridges,
        ridge=_take(measured, slice(*ends)),
        ridge_exact=_take(exact, slice(*ends)),
        sizes=SIZES,
        size=_fold(_take(measured, slice(ends[1], None))),
        size_exact=_fold(_take(exact, slice(ends[1], None))),
        real=real,
        num_patients=num_patients,
    )


class _Setting(NamedTuple):
    """One way to fit: the rows and their weights, the powers of x that are allowed, ridge."""

    x: Array
    weight: Array
    powers: Array
    ridge: Array

    def fit(self, x: Array, y: Array) -> lr.LinearModel:
        features = self.features(x)
        return lr.fit(features, y, ridge=self.ridge, sample_weight=self.weight)

    def predict(self, model: lr.LinearModel, x: Array) -> Array:
        return lr.predict(model, self.features(x))

    def features(self, x: Array) -> Array:
        every = lr.polynomial_features(x[:, None], degree=self.powers.shape[0])
        return every * self.powers[None]


def _draw(key: Array, x: Array, noise: Array | float) -> Array:
    return truth(x) + noise * jax.random.normal(key, x.shape)


@partial(jax.jit, static_argnames="num_datasets")
def _measure(
    key: Array, settings: _Setting, x: Array, noise: Array, num_datasets: int
) -> tuple[bias_variance.Parts, Array, Array, Array]:
    """For each setting the averaged parts, first fits and mean fit; and one draw of targets."""

    def one(setting: _Setting) -> tuple[bias_variance.Parts, Array, Array, Array]:
        found = bias_variance.decompose(
            key,  # the same for all settings: they see the same noise
            setting.fit,
            setting.predict,
            lambda key: (setting.x, _draw(key, setting.x, noise)),
            x,
            observe=lambda key, x: _draw(key, x, noise),
            truth=truth,
            num_datasets=num_datasets,
        )
        first = found.predictions[:NUM_FAN]
        return found.average, first, found.mean_prediction, found.targets[0]

    return jax.vmap(one, out_axes=(0, 0, 0, None))(settings)


@jax.jit
def _exact(settings: _Setting, x: Array, noise: Array) -> bias_variance.ClosedForm:
    """The same in closed form, averaged over the points."""

    def one(setting: _Setting) -> bias_variance.ClosedForm:
        smoother = bias_variance.linear_smoother(setting.fit, setting.predict, setting.x, x)
        return bias_variance.closed_form(
            smoother, truth(setting.x), truth(x), noise_variance=noise**2
        )

    return jax.tree.map(lambda part: part.mean(axis=1), jax.vmap(one)(settings))


@partial(jax.jit, static_argnames="num_resamples")
def _resample(
    key: Array, neighbours: Array, x: Array, y: Array, num_resamples: int
) -> bias_variance.OutOfBag:
    """The mean of the k nearest patients, for each k, judged by patients that it has not seen."""
    squares = jnp.square(x).sum(axis=1)
    distance = squares[:, None] + squares[None, :] - 2 * x @ x.T
    nearest = jnp.argsort(distance, axis=1)

    def fit(x: Array, y: Array, *, sample_weight: Array) -> Array:
        return sample_weight

    def one(k: Array) -> bias_variance.OutOfBag:
        def predict(count: Array, x: Array) -> Array:
            # Patients in the order of their distance, each as often as it was drawn, until k.
            drawn = count[nearest]
            before = jnp.cumsum(drawn, axis=1) - drawn
            used = jnp.clip(k - before, 0, drawn)
            return (used * y[nearest]).sum(axis=1) / k

        return bias_variance.out_of_bag(key, fit, predict, x, y, num_resamples=num_resamples)

    return jax.lax.map(one, neighbours)


def _take(parts: Any, rows: slice) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], parts)


def _fold(parts: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(len(SIZE_DEGREES), len(SIZES)), parts)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    return {
        f"{result.num_datasets} data sets of {result.num_rows} rows, with noise": [
            {
                "degree": degree,
                "bias²": _number(result.degree.bias_squared.value[degree]),
                "variance": _number(result.degree.variance.value[degree]),
                "noise": _number(result.degree.noise.value[degree]),
                "sum": _number(result.degree.total.value[degree]),
                "error": _number(result.degree.error.value[degree]),
                "gap / its error": _sigmas(result.degree.gap, degree),
                "exact": _number(result.degree_exact.total[degree]),
                "": "<--" if degree == result.best_degree else "",
            }
            for degree in range(len(result.degree_exact.total))
        ],
        f"Ridge on degree {len(result.degree_exact.total) - 1}": [
            {
                "ridge": float(f"{ridge:.2g}"),
                "bias²": _number(result.ridge.bias_squared.value[i]),
                "variance": _number(result.ridge.variance.value[i]),
                "error": _number(result.ridge.error.value[i]),
                "exact sum": _number(result.ridge_exact.total[i]),
            }
            for i, ridge in enumerate(result.ridges)
            if i % 2 == 0
        ],
        "More rows": [
            {
                "degree": degree,
                "rows": size,
                "bias²": _number(result.size.bias_squared.value[d, i]),
                "exact bias²": _number(result.size_exact.bias_squared[d, i]),
                "variance": _number(result.size.variance.value[d, i]),
                "exact variance": _number(result.size_exact.variance[d, i]),
            }
            for d, degree in enumerate(SIZE_DEGREES)
            for i, size in enumerate(result.sizes)
        ],
        f"{result.num_patients} patients, resampled": [
            {
                "neighbours": k,
                "bias² + noise": round(float(result.real.bias_squared_and_noise.value[i])),
                "variance": round(float(result.real.variance.value[i])),
                "error": round(float(result.real.error.value[i])),
                "±": round(float(result.real.error.standard_error[i])),
            }
            for i, k in enumerate(NEIGHBOURS)
        ],
    }


def _number(value: Array) -> float:
    return round(float(value), 3) + 0.0  # no negative zero


def _sigmas(part: bias_variance.Estimate, i: int) -> float:
    return round(float(part.value[i] / part.standard_error[i]), 1)


def plot(result: Result) -> "Figure":
    """Draw the fans, and the parts of the error over degree, ridge, rows and neighbours."""
    import matplotlib.pyplot as plt

    with figures.style():
        rows: Any = [[f"fan{i}" for i in range(3) for _ in range(4)]]
        rows += [[name for name in ("degree", "ridge", "size", "real") for _ in range(3)]]
        figure, axes = plt.subplot_mosaic(rows, figsize=(10, 6))
        for i, (degree, fan, mean) in enumerate(
            zip(FANS, result.fans, result.mean_fans, strict=True)
        ):
            panel = axes[f"fan{i}"]
            panel.plot(
                result.x, np.asarray(fan).T, "-", color=figures.BLUE, alpha=0.25, linewidth=0.7
            )
            panel.plot([], [], "-", color=figures.BLUE, linewidth=0.7, label=f"{len(fan)} fits")
            panel.plot(result.x, mean, "--", color=figures.GREEN, label="mean of all fits")
            panel.plot(result.x, truth(result.x), "-", color=figures.VERMILLION, label="truth")
            panel.plot(
                result.x[::3], result.targets[::3], "o", color=figures.GREY, markersize=3,
                label="one draw of targets",
            )  # fmt: skip
            panel.set(ylim=(-2.5, 3.5), xlabel="x", title=f"Degree {degree}")
        axes["fan0"].set_ylabel("y")
        axes["fan0"].legend(fontsize="small", loc="upper left")

        degrees = np.arange(len(result.degree_exact.total))
        _draw_parts(axes["degree"], degrees, result.degree, result.degree_exact)
        axes["degree"].set(
            xticks=degrees, xlabel="degree", ylabel="squared error", title="The U over the degree"
        )
        axes["degree"].legend(fontsize="small")
        _draw_parts(axes["ridge"], result.ridges, result.ridge, result.ridge_exact)
        axes["ridge"].set(
            xscale="log", xlabel="ridge strength λ", title=f"Ridge on degree {degrees[-1]}"
        )
        for name, color in (("bias_squared", figures.VERMILLION), ("variance", figures.BLUE)):
            for d, degree in enumerate(SIZE_DEGREES):
                exact, value = getattr(result.size_exact, name)[d], getattr(result.size, name)
                label = f"{name.replace('_squared', '²')}, degree {degree}"
                axes["size"].plot(result.sizes, exact, "-:"[d], color=color, label=label)
                # An estimate of almost 0 may be negative, and has no logarithm.
                shown = np.where(value.value[d] > 0, value.value[d], np.nan)
                axes["size"].plot(result.sizes, shown, "os"[d], color=color, markersize=4)
        axes["size"].set(xscale="log", yscale="log", xlabel="rows", title="More data")
        axes["size"].set_xticks(result.sizes, [str(size) for size in result.sizes], minor=False)
        axes["size"].legend(fontsize="small", loc="center", bbox_to_anchor=(0.5, 0.3))
        for name, color, mark in (
            ("bias_squared_and_noise", figures.VERMILLION, "o-"),
            ("variance", figures.BLUE, "s--"),
            ("error", figures.GREEN, "D-."),
        ):
            part = getattr(result.real, name)
            label = name.replace("_squared_and_", "² + ")
            axes["real"].plot(NEIGHBOURS, part.value, mark, color=color, markersize=4, label=label)
        axes["real"].set(
            xscale="log", ylim=(0, None), xlabel="neighbours",
            title=f"{result.num_patients} patients, resampled",
        )  # fmt: skip
        axes["real"].set_xticks(NEIGHBOURS, [str(k) for k in NEIGHBOURS], minor=False)
        axes["real"].legend(fontsize="small")
        for name in ("size", "real"):
            axes[name].tick_params(which="minor", bottom=False, labelbottom=False)
    return figure


def _draw_parts(
    axes: Any, at: np.ndarray, measured: bias_variance.Parts, exact: bias_variance.ClosedForm
) -> None:
    """Lines are the closed form, marks what was measured."""
    for name, line, mark, color, style in (
        ("bias²", exact.bias_squared, measured.bias_squared, figures.VERMILLION, "-o"),
        ("variance", exact.variance, measured.variance, figures.BLUE, "--s"),
        ("error", exact.total, measured.error, figures.GREEN, "-.D"),
    ):
        axes.plot(at, line, style[:-1], color=color, label=name)
        axes.plot(at, mark.value, style[-1], color=color, markersize=4)
    axes.plot(at, exact.noise, ":", color=figures.GREY, label="noise")
