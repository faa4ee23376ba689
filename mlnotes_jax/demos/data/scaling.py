"""What scaling does to the condition number of least squares, and to gradient descent on it.

One of a wine's 13 measurements, the alcohol, is predicted from the other 12, as they come and after
each scaling. The learning rate is 1 over the largest curvature every time.
"""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mlnotes_jax import _checks
from mlnotes_jax.data import datasets, scaling
from mlnotes_jax.demos import figures, progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SCALINGS", "Problem", "Result", "Surface", "plot", "problem", "run", "tables"]

#: The scalings that are compared, in the order of the tables.
SCALINGS = ("none", "divide by maximum", "min-max", "standardise")

Data = Literal["wine", "diabetes", "breast_cancer"]

# Two features of each set whose spreads differ by a factor that a picture can show.
_PAIRS = {
    "wine": ("magnesium", "color_intensity"),
    "diabetes": ("bp", "bmi"),
    "breast_cancer": ("mean perimeter", "mean texture"),
}


class Problem(NamedTuple):
    """A regression problem in its own units.

    Attributes:
        x: Features of the training rows, float32, shape `(n, d)`.
        y: Target of the training rows, float32, shape `(n,)`.
        x_test: Features of the other rows, shape `(m, d)`.
        y_test: Target of the other rows, shape `(m,)`.
        names: Of the features.
        target: What is predicted.
        source: The data.
    """

    x: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, " n"]
    x_test: Float[np.ndarray, "m d"]
    y_test: Float[np.ndarray, " m"]
    names: tuple[str, ...]
    target: str
    source: datasets.Source


class Surface(NamedTuple):
    """The loss over the weights of two centred features, and a descent on it.

    Attributes:
        title: Which scaling.
        names: Of the two features.
        hessian: Of the loss, shape `(2, 2)`.
        best: Where the loss is least, shape `(2,)`.
        path: Weights after 0, 1, ... steps, shape `(steps + 1, 2)`.
    """

    title: str
    names: tuple[str, str]
    hessian: Float[np.ndarray, "2 2"]
    best: Float[np.ndarray, " 2"]
    path: Float[Array, "t 2"]


class Result(NamedTuple):
    """What `run` gives; lists follow `SCALINGS`.

    Attributes:
        condition: Condition number of the Hessian, weights and bias together.
        steps: Steps that descent took to come within `within` of the best loss; at most
            `max_steps`.
        reached: Whether it came there.
        predicted: Steps that the spectrum of the Hessian predicts.
        test_rmse: Root mean square error on the test rows, in units of the target.
        curves: For each scaling, (steps, loss above the best, as a share of the best).
        surfaces: Two features, as they are and standardised.
        narrowest: Feature with the smallest standard deviation, and that.
        widest: Feature with the largest standard deviation, and that.
        target: What is predicted.
        within: The goal.
        max_steps: The limit.
        source: The data.
    """

    condition: list[float]
    steps: list[int]
    reached: list[bool]
    predicted: list[float]
    test_rmse: list[float]
    curves: list[tuple[list[int], list[float]]]
    surfaces: list[Surface]
    narrowest: tuple[str, float]
    widest: tuple[str, float]
    target: str
    within: float
    max_steps: int
    source: datasets.Source


def problem(key: Array, *, data: Data = "wine") -> Problem:
    """Load a set in its own units and hold a fifth of its rows back.

    Args:
        key: Draws the rows that are held back, class by class where there are classes.
        data: `wine`: alcohol from the other measurements; `diabetes`: progression of the disease;
            `breast_cancer`: the class, 0 or 1, as a number.

    Returns:
        The problem.
    """
    loaded = datasets.load("diabetes_raw" if data == "diabetes" else data)
    x, y = loaded.x, loaded.y.astype(np.float32)
    names, target = loaded.feature_names, "progression" if data == "diabetes" else "class"
    if data == "wine":
        x, y, names, target = x[:, 1:], x[:, 0], names[1:], "alcohol"
    groups = loaded.y if loaded.class_names else np.zeros(len(y), np.int32)
    train, test = datasets.split(key, groups, (0.8, 0.2))
    return Problem(x[train], y[train], x[test], y[test], names, target, loaded.source)


def run(
    key: Array,
    *,
    quick: bool = False,
    data: Data = "wine",
    within: float = 0.01,
    max_steps: int = 200_000,
) -> Result:
    """Descend on least squares once for each scaling, from zero weights.

    Args:
        key: Draws the test rows.
        quick: At most 10 000 steps.
        data: Which data: wine, diabetes or breast_cancer, all in their own units.
        within: How near to the best training loss to come, as a share of it.
        max_steps: Give up after so many steps.

    Returns:
        Condition numbers, steps and curves.
    """
    _checks.positive("within", within)
    _checks.positive_int("max_steps", max_steps)
    if quick:
        max_steps = min(max_steps, 10_000)
    task = problem(key, data=data)
    result = Result(
        condition=[],
        steps=[],
        reached=[],
        predicted=[],
        test_rmse=[],
        curves=[],
        surfaces=_surfaces(task, _PAIRS[data]),
        narrowest=_spread(task, np.argmin),
        widest=_spread(task, np.argmax),
        target=task.target,
        within=within,
        max_steps=max_steps,
        source=task.source,
    )
    for name in progress.track(SCALINGS, "descending"):
        x, x_test = _scaled(name, task)
        eigenvalues, best_loss, predicted = _spectrum(x, task.y, within)
        goal = best_loss * (1 + within)
        weights = jnp.zeros(x.shape[1], x.dtype)
        steps, curve = jnp.int32(0), ([], [])
        limits = [min(2**i, max_steps) for i in range(max_steps.bit_length() + 1)]
        for limit in sorted(set(limits)):
            weights, steps, loss = _descend(x, task.y, weights, steps, limit, goal, eigenvalues[-1])
            curve[0].append(int(steps))
            curve[1].append(max(float(loss) / best_loss - 1, 0.0))
            if loss <= goal:
                break
        result.condition.append(float(eigenvalues[-1] / eigenvalues[0]))
        result.steps.append(curve[0][-1])
        result.reached.append(curve[1][-1] <= within * (1 + 1e-3))  # float32 and back
        result.predicted.append(predicted)
        missed = np.asarray(x_test) @ np.asarray(weights) - task.y_test
        result.test_rmse.append(float(np.sqrt(np.mean(missed**2))))
        result.curves.append(curve)
    return result


def tables(result: Result) -> dict[str, list[dict[str, Any]]]:
    """Lay the numbers out: title -> rows."""
    return {
        f"Steps to {100 * result.within:g} % above the best training loss": [
            {
                "scaling": name,
                "condition number": f"{result.condition[i]:.3g}",
                "steps": f"{result.steps[i]:,}" if result.reached[i] else f"> {result.steps[i]:,}",
                "predicted": f"{result.predicted[i]:,.0f}",
                f"test RMSE of {result.target}": round(result.test_rmse[i], 3),
            }
            for i, name in enumerate(SCALINGS)
        ],
        "The features, unscaled": [
            {"feature": name, "standard deviation": float(f"{spread:.3g}"), "which": which}
            for which, (name, spread) in (
                ("narrowest", result.narrowest),
                ("widest", result.widest),
            )
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw the loss over two weights, unscaled and standardised, and all four descents."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(1, 3, figsize=(9, 3.6))
        for ax, surface in zip(axes, result.surfaces, strict=False):
            _draw(ax, surface)
        colors = (figures.GREY, figures.OCHRE, figures.GREEN, figures.BLUE)
        for name, (steps, excess), color, marker in zip(
            SCALINGS, result.curves, colors, "xs^o", strict=True
        ):
            axes[2].loglog(steps, excess, color=color, marker=marker, markersize=3, label=name)
        axes[2].axhline(result.within, color=figures.VERMILLION, linestyle=":", linewidth=1)
        axes[2].set(
            title="All features: four descents",
            xlabel="steps",
            ylabel="loss above the best (share of it)",
        )
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def _scaled(name: str, task: Problem) -> tuple[Array, Array]:
    """Training and test rows after a scaling that was fitted on the training rows, with a bias."""
    fits = {
        "divide by maximum": scaling.fit_max_abs,
        "min-max": scaling.fit_min_max,
        "standardise": scaling.fit_standard,
    }

    @jax.jit
    def prepare(x, x_test):
        if name in fits:
            model = fits[name](x)
            x, x_test = scaling.apply(model, x), scaling.apply(model, x_test)
        return _with_bias(x), _with_bias(x_test)

    return prepare(task.x, task.x_test)


def _with_bias(x: Array) -> Array:
    return jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], axis=1)


def _spectrum(x: Array, y: np.ndarray, within: float) -> tuple[np.ndarray, float, float]:
    """Eigenvalues of the Hessian, the best loss, and the steps that they predict.

    On the host in double precision: float32 would lose the small eigenvalues beside the large. In
    the basis of eigenvectors each coordinate of the error shrinks by its own factor in each step.
    """
    rows, target = np.asarray(x, np.float64), np.asarray(y, np.float64)
    eigenvalues, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    best = np.linalg.lstsq(rows, target, rcond=None)[0]
    best_loss = float(np.mean((rows @ best - target) ** 2) / 2)
    error = vectors.T @ best  # of the start, weights zero
    shrink = np.log1p(-np.minimum(eigenvalues / eigenvalues[-1], 1 - 1e-15))

    def excess(steps: float) -> float:
        return float(np.sum(eigenvalues * error**2 * np.exp(2 * steps * shrink)) / 2)

    low, high = 0.0, 1e18  # the excess falls: halve the interval
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > within * best_loss else (low, middle)
    return eigenvalues, best_loss, float(np.ceil(high))


@jax.jit
def _descend(
    x: Float[Array, "n d"],
    y: Float[Array, " n"],
    weights: Float[Array, " d"],
    steps: Int[Array, ""],
    limit: Int[Array, ""],
    goal: Float[Array, ""],
    curvature: Float[Array, ""],
) -> tuple[Float[Array, " d"], Int[Array, ""], Float[Array, ""]]:
    """Descend until the loss is at the goal or `limit` steps are done, counted from the start."""

    def residual(weights):
        return x @ weights - y

    def loss(weights):
        return jnp.mean(residual(weights) ** 2) / 2

    def step(state):
        weights, steps, _ = state
        weights = weights - (residual(weights) @ x) / len(x) / curvature.astype(x.dtype)
        return weights, steps + 1, loss(weights)

    def unfinished(state):
        return (state[1] < limit) & (state[2] > goal)

    return jax.lax.while_loop(unfinished, step, (weights, steps, loss(weights)))


def _surfaces(task: Problem, pair: tuple[str, str]) -> list[Surface]:
    """The loss over two weights, the bias being at its best: features and target are centred."""
    x = task.x[:, [task.names.index(name) for name in pair]].astype(np.float64)
    y = task.y - task.y.mean(dtype=np.float64)
    centred = x - x.mean(axis=0)
    spread = centred.std(axis=0)
    surfaces = []
    for title, unit in (("Unscaled", np.ones(2)), ("Standardised", spread)):
        rows = centred / unit
        best = np.linalg.lstsq(rows, y, rcond=None)[0]
        hessian = rows.T @ rows / len(rows)
        # The same function in both: a weight times its unit. It lies off the floor of the valley.
        start = best + 1.5 * np.linalg.norm(best / unit) * np.array([0.6, 0.8]) * unit
        path = _path(hessian.astype(np.float32), best.astype(np.float32), start.astype(np.float32))
        surfaces.append(Surface(title, pair, hessian, best, path))
    return surfaces


@jax.jit
def _path(
    hessian: Float[Array, "2 2"], best: Float[Array, " 2"], start: Float[Array, " 2"]
) -> Float[Array, "t 2"]:
    rate = 1 / jnp.linalg.eigvalsh(hessian)[-1]

    def step(weights, _):
        return weights - rate * hessian @ (weights - best), weights

    return jax.lax.scan(step, start, length=41)[1]


def _spread(task: Problem, pick: Any) -> tuple[str, float]:
    deviations = task.x.std(axis=0, dtype=np.float64)
    column = int(pick(deviations))
    return task.names[column], float(deviations[column])


def _draw(ax: Any, surface: Surface) -> None:
    path = np.asarray(surface.path)
    reach = 1.25 * np.abs(path - surface.best).max()
    axis = np.linspace(-reach, reach, 121)
    first, second = np.meshgrid(axis, axis)
    h = surface.hessian
    loss = (h[0, 0] * first**2 + 2 * h[0, 1] * first * second + h[1, 1] * second**2) / 2
    at_start = (path[0] - surface.best) @ h @ (path[0] - surface.best) / 2
    ax.contour(
        first + surface.best[0],
        second + surface.best[1],
        loss,
        levels=at_start * np.geomspace(1 / 256, 4, 11),
        colors=figures.GREY,
        linewidths=0.8,
    )
    ax.plot(*path.T, color=figures.BLUE, linestyle="-", marker="o", markersize=3, linewidth=1)
    ax.plot(*surface.best, color=figures.VERMILLION, marker="*", markersize=9, linestyle="none")
    first_name, second_name = (name.replace("_", " ") for name in surface.names)
    ax.set(
        title=f"{surface.title}: {len(path) - 1} steps",
        xlabel=f"weight of {first_name}",
        ylabel=f"weight of {second_name}",
        aspect="equal",
    )
