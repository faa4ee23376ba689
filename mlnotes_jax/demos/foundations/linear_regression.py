"""One line by three roads, and how bent the curve should be.

The rows are 442 patients: how far diabetes had progressed after a year, against the body mass
index. A line is fitted by the closed form, by trying every point of a grid and by gradient descent;
then polynomials of growing degree are fitted to few patients and judged on the others; then ridge
smooths the bendiest of them.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures
from mlnotes_jax.foundations import gradient_descent
from mlnotes_jax.foundations import linear_regression as lr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Problem", "Result", "plot", "problem", "run", "tables"]

RIDGES = (0.0, 0.01, 1.0)


class Problem(NamedTuple):
    """Body mass index in kg/m², progression of the disease, and where they come from."""

    bmi: np.ndarray
    progression: np.ndarray
    source: datasets.Source


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        bmi: Body mass index in kg/m², shape `(n,)`.
        y: Progression, shape `(n,)`.
        closed_form: $(w, b)$ of the line: the progression per 5 kg/m², and at 20 kg/m².
        loss: Its mean squared error.
        search: The error surface.
        axes: The grid.
        grid_step: Its steps, shape `(2,)`.
        walk: The descent.
        learning_rate: Its rate.
        eigenvalues: Of the Hessian of the loss, shape `(2,)`.
        num_train: Rows that were fitted in each split.
        train_error: Median over the splits, for each degree from 0.
        held_out_error: The same on the other rows.
        best_degree: Where `held_out_error` is lowest.
        train: Which rows the ridge curves were fitted to.
        curve_bmi: Where the curves were evaluated, shape `(k,)`.
        curves: One for each of `RIDGES`, shape `(3, k)`.
        norms: Their weight norms, shape `(3,)`.
        slopes: Their steepest slopes, per kg/m², shape `(3,)`.
        ridge_errors: Their mean squared errors on training and held-out rows, shape `(3, 2)`.
    """

    source: datasets.Source
    bmi: Array
    y: Array
    closed_form: Array
    loss: Array
    search: lr.ErrorSurface
    axes: tuple[Array, Array]
    grid_step: Array
    walk: gradient_descent.Descent
    learning_rate: Array
    eigenvalues: Array
    num_train: int
    train_error: Array
    held_out_error: Array
    best_degree: int
    train: Array
    curve_bmi: Array
    curves: Array
    norms: Array
    slopes: Array
    ridge_errors: Array


def problem(key: Key[Array, ""] | None = None) -> Problem:
    """Load the patients in the units they were measured in.

    Args:
        key: Not used: nothing is drawn.

    Returns:
        Body mass index, progression, source.
    """
    del key
    from sklearn.datasets import load_diabetes

    bunch: Any = load_diabetes(scaled=False)
    column = bunch.feature_names.index("bmi")
    bmi = np.asarray(bunch.data[:, column], np.float32)
    return Problem(bmi, np.asarray(bunch.target, np.float32), datasets.load("diabetes").source)


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    grid_points: int = 201,
    num_steps: int = 100,
    max_degree: int = 6,
    num_train: int = 40,
) -> Result:
    """Fit a line in three ways, choose a degree, and smooth with ridge.

    Args:
        key: For the splits into training and held-out rows.
        quick: Fewer grid points and splits.
        grid_points: Values tried of each parameter by exhaustive search.
        num_steps: Steps of gradient descent.
        max_degree: Highest polynomial degree.
        num_train: Rows fitted in each split; the others judge.

    Returns:
        The three answers, the error curves, and the ridge curves.
    """
    data = problem(key)
    bmi, y = jnp.asarray(data.bmi), jnp.asarray(data.progression)
    if quick:
        grid_points = min(grid_points, 61)
    axes = (jnp.linspace(-40.0, 140.0, grid_points), jnp.linspace(0.0, 200.0, grid_points))
    start = jnp.array([-30.0, 20.0])
    closed_form, loss, search, eigenvalues, rate, walk = _three_roads(
        (bmi[:, None] - 20) / 5, y, axes, start, num_steps
    )

    # Powers of numbers in [-1, 1] neither explode nor vanish.
    low, high = data.bmi.min(), data.bmi.max()
    z = 2 * (bmi[:, None] - low) / (high - low) - 1
    keys = jax.random.split(key, 50 if quick else 400)
    train_error, held_out_error, train = _judge(keys, z, y, max_degree, num_train)

    at = jnp.linspace(-1.0, 1.0, 241)
    curves, norms, slopes, ridge_errors = _smooth(jnp.array(RIDGES), z, y, train, at, max_degree)
    return Result(
        source=data.source,
        bmi=bmi,
        y=y,
        closed_form=closed_form,
        loss=loss,
        search=search,
        axes=axes,
        grid_step=jnp.array([axes[0][1] - axes[0][0], axes[1][1] - axes[1][0]]),
        walk=walk,
        learning_rate=rate,
        eigenvalues=eigenvalues,
        num_train=num_train,
        train_error=train_error,
        held_out_error=held_out_error,
        best_degree=int(held_out_error.argmin()),
        train=train,
        curve_bmi=low + (at + 1) / 2 * (high - low),
        curves=curves,
        norms=norms,
        slopes=slopes * 2 / (high - low),  # from the scaled axis back to kg/m²
        ridge_errors=ridge_errors,
    )


@partial(jax.jit, static_argnames="num_steps")
def _three_roads(
    x: Array, y: Array, axes: tuple[Array, Array], start: Array, num_steps: int
) -> tuple:
    model = lr.fit(x, y)
    closed_form = jnp.append(model.coef, model.intercept)
    eigenvalues = jnp.linalg.eigvalsh(lr.hessian(x))
    rate = 0.8 * gradient_descent.stable_learning_rate(eigenvalues)
    walk = lr.descend(x, y, learning_rate=rate, num_steps=num_steps, start=start)
    search = lr.error_surface(lr.squared_loss, axes, x, y)
    return closed_form, lr.squared_loss(closed_form, x, y), search, eigenvalues, rate, walk


@partial(jax.jit, static_argnames=("max_degree", "num_train"))
def _judge(
    keys: Array, z: Array, y: Array, max_degree: int, num_train: int
) -> tuple[Array, Array, Array]:
    """Errors of each degree, the median over one split for each key, and the first split."""

    def one(key: Array) -> tuple[Array, Array, Array]:
        held_out = jax.random.permutation(key, len(y)) >= num_train
        chosen = lr.select_degree(z, y, max_degree=max_degree, held_out=held_out)
        return chosen.train_error, chosen.held_out_error, ~held_out

    train_error, held_out_error, train = jax.vmap(one)(keys)
    # The median: a curve that shoots up beyond its last patient can spoil any mean.
    return jnp.median(train_error, axis=0), jnp.median(held_out_error, axis=0), train[0]


@partial(jax.jit, static_argnames="max_degree")
def _smooth(
    ridges: Array, z: Array, y: Array, train: Array, at: Array, max_degree: int
) -> tuple[Array, Array, Array, Array]:
    """For each ridge strength: the curve, the weight norm, the steepest slope, both errors."""
    features = lr.polynomial_features(z, degree=max_degree)
    weights = jnp.stack([train, ~train]).astype(y.dtype)

    def one(ridge: Array) -> tuple[Array, Array, Array, Array]:
        model = lr.fit(features, y, ridge=ridge, sample_weight=weights[0])

        def curve(point: Array) -> Array:
            return lr.predict(model, lr.polynomial_features(point[None], degree=max_degree))

        values, slopes = jax.vmap(jax.value_and_grad(curve))(at)
        errors = weights @ jnp.square(lr.predict(model, features) - y) / weights.sum(axis=1)
        return values, jnp.linalg.norm(model.coef), jnp.abs(slopes).max(), errors

    return jax.vmap(one)(ridges)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    tried = result.search.loss.size
    roads = [
        ("closed form", result.closed_form, result.loss, 0),
        ("exhaustive search", result.search.best, result.search.best_loss, tried),
        ("gradient descent", result.walk.params, result.walk.loss[-1], len(result.walk.loss)),
    ]
    return {
        "One line, three roads": [
            {
                "road": road,
                "w per 5 kg/m²": round(float(params[0]), 3),
                "b at 20 kg/m²": round(float(params[1]), 3),
                "squared error": round(float(loss), 3),
                "losses": int(evaluations),
            }
            for road, params, loss, evaluations in roads
        ],
        f"Degree, {result.num_train} training rows (median of splits)": [
            {
                "degree": degree,
                "training error": round(float(train), 1),
                "held-out error": round(float(other), 1),
                "chosen": "<--" if degree == result.best_degree else "",
            }
            for degree, (train, other) in enumerate(
                zip(result.train_error, result.held_out_error, strict=True)
            )
        ],
        f"Ridge on degree {len(result.train_error) - 1}": [
            {
                "ridge": ridge,
                "weight norm": round(float(norm), 1),
                "slope per kg/m²": round(float(slope), 1),
                "training error": round(float(errors[0]), 1),
                "held-out error": round(float(errors[1]), 1),
            }
            for ridge, norm, slope, errors in zip(
                RIDGES, result.norms, result.slopes, result.ridge_errors, strict=True
            )
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw the error surface with its walk, the error curves, and the ridge curves."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, (surface, degrees, ridge) = plt.subplots(1, 3, figsize=(9, 3.4))
        w, b = result.axes
        excess = np.log10(np.asarray(result.search.loss.T) / float(result.loss))
        filled = surface.contourf(w, b, excess, levels=12)
        surface.grid(visible=False)
        figure.colorbar(filled, ax=surface, label="log₁₀(loss / lowest loss)", shrink=0.9)
        path = np.asarray(result.walk.path)
        surface.plot(*path.T, "-o", color=figures.VERMILLION, markersize=3, label="descent")
        # On the surface itself the ink is white in both modes, because the surface is dark.
        surface.plot(*result.closed_form, "*", color="white", markersize=13, label="closed form")
        surface.set(xlabel="w (per 5 kg/m²)", ylabel="b (at 20 kg/m²)", title="Error surface")
        legend = surface.legend(loc="lower right", fontsize="small")
        for text in legend.get_texts():
            text.set_color("white")

        degree = np.arange(len(result.train_error))
        degrees.semilogy(degree, result.train_error, "o-", label="training rows")
        degrees.semilogy(degree, result.held_out_error, "s--", label="held-out rows")
        degrees.axvline(result.best_degree, color=figures.GREY, linestyle=":", label="chosen")
        degrees.set(xlabel="degree", ylabel="mean squared error (median)", title="Which degree?")
        degrees.legend(fontsize="small")

        train = np.asarray(result.train)
        ridge.plot(
            result.bmi[~train], result.y[~train], ".", color=figures.GREY, alpha=0.25, markersize=3
        )
        ridge.plot(
            result.bmi[train], result.y[train], "o", color=figures.GREY, markersize=4,
            label="training rows",
        )  # fmt: skip
        for strength, curve in zip(RIDGES, result.curves, strict=True):
            ridge.plot(result.curve_bmi, curve, label=f"ridge {strength:g}")
        ridge.set_ylim(0, 480)
        ridge.set(
            xlabel="body mass index (kg/m²)",
            ylabel="progression after a year",
            title=f"Degree {degree[-1]}, smoothed",
        )
        ridge.legend(fontsize="small")
    return figure
