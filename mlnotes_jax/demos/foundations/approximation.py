"""A network with one hidden layer is a piecewise-linear curve; how its error falls with its units.

Four curves of different smoothness are replaced by hard sigmoids, in closed form. Then a curve made
of real data, the areas of 569 cell nuclei in ascending order, is also *learned*, with sigmoids and
with ReLUs, and compared with as many pieces in closed form.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.foundations import approximation
from mlnotes_jax.optimization import adam, schedules

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CURVES", "Curve", "Problem", "Result", "plot", "problem", "run", "tables"]

GRID = 3 * 4096  # holds all knots, the middles of all pieces, and 1/3
LARGEST = 256  # pieces
SHOWN = 3  # units of the learned curves in the picture


class Curve(NamedTuple):
    """A curve on [0, 1], and what is known about it."""

    name: str
    f: Callable[[Array], Array]
    smoothness: str


CURVES = (
    Curve("sin πx", lambda x: jnp.sin(jnp.pi * x), "smooth"),
    Curve("|x - 1/3|", lambda x: jnp.abs(x - 1 / 3), "kink"),
    Curve("√x", jnp.sqrt, "steep end"),
    Curve("x > 1/3", lambda x: (x > 1 / 3).astype(x.dtype), "jump"),
)


class Problem(NamedTuple):
    """A curve of real data.

    Attributes:
        x: Rank of each nucleus, from 0 to 1, shape `(569,)`.
        y: Mean area of the nuclei of a tumour, in pixels, ascending, shape `(569,)`.
        source: The data.
    """

    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    source: datasets.Source


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        sizes: Numbers of equal pieces.
        errors: Largest distance from each of `CURVES`, shape `(4, sizes)`.
        bounds: Of the first curve, shape `(sizes,)`.
        orders: Fitted p of an error like n^-p, shape `(4,)`.
        x: Ranks.
        y: Areas.
        counts: Numbers of units.
        closed: Root mean square error of as many pieces in closed form, shape `(counts,)`.
        learned: Of learned sigmoids and ReLUs, the best of a few starts, shape `(2, counts)`.
        curves: Three units on the ranks: pieces in closed form, sigmoids, ReLUs, shape `(3, n)`.
    """

    source: datasets.Source
    sizes: tuple[int, ...]
    errors: np.ndarray
    bounds: np.ndarray
    orders: np.ndarray
    x: np.ndarray
    y: np.ndarray
    counts: tuple[int, ...]
    closed: np.ndarray
    learned: np.ndarray
    curves: np.ndarray


def problem(key: Key[Array, ""] | None = None) -> Problem:
    """Load the tumours, and put their mean areas in order.

    Args:
        key: Not used: nothing is drawn.

    Returns:
        Ranks, areas, source.
    """
    del key
    data = datasets.load("breast_cancer")
    area = np.sort(data.x[:, data.feature_names.index("mean area")])
    return Problem(np.linspace(0, 1, len(area), dtype=np.float32), area, data.source)


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    num_steps: int = 3000,
    learning_rate: float = 0.03,
    num_starts: int = 3,
) -> Result:
    """Measure the errors of the construction, and learn the curve of areas.

    Args:
        key: Draws the starts of the learned curves.
        quick: At most 12 units, two starts, a third of the steps.
        num_steps: Steps of Adam for each learned curve.
        learning_rate: Of Adam at the start; it falls to zero along a cosine.
        num_starts: Learned curves of each kind and size; the best one counts.

    Returns:
        Errors, orders and curves.
    """
    data = problem(key)
    sizes = tuple(2**k for k in range(2, 9))
    grid = jnp.linspace(0.0, 1.0, GRID + 1)
    errors = jnp.stack([_construct(grid, n) for n in sizes], axis=1)
    widths = 1 / jnp.array(sizes)
    orders = [approximation.convergence_order(jnp.array(sizes, float), e) for e in errors]

    counts = (1, 2, SHOWN, 6, 12) if quick else (1, 2, SHOWN, 6, 12, 24)
    steps = num_steps // 3 if quick else num_steps
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    keys = jax.random.split(key, 2 if quick else num_starts)
    closed, learned, shown = [], [], []
    for count in progress.track(counts, "learning"):
        pieces = _pieces(data, count)
        found = [
            _learn(keys, x, y, learning_rate, count, most=counts[-1], kind=kind, num_steps=steps)
            for kind in ("sigmoid", "relu")
        ]
        closed.append(np.sqrt(np.mean((pieces - data.y) ** 2)))
        learned.append([np.sqrt(float(loss)) for loss, _ in found])
        if count == SHOWN:
            shown = [pieces, *(np.asarray(curve) for _, curve in found)]
    return Result(
        source=data.source,
        sizes=sizes,
        errors=np.asarray(errors),
        bounds=np.asarray(approximation.interpolation_bound(np.pi**2, width=widths)),
        orders=np.asarray(orders),
        x=data.x,
        y=data.y,
        counts=counts,
        closed=np.array(closed),
        learned=np.array(learned).T,
        curves=np.stack(shown),
    )


@jax.jit
def _construct(grid: Array, num_pieces: Array) -> Array:
    """Largest error of each curve, with equal pieces; one program for all their numbers."""
    # Always the most knots: those beyond 1 make ramps that have not begun on the grid.
    knots = jnp.arange(LARGEST + 1, dtype=grid.dtype) / num_pieces

    def error(f: Callable[[Array], Array]) -> Array:
        units = approximation.hard_sigmoid_units(knots, f(knots))
        return jnp.abs(approximation.evaluate(units, grid) - f(grid)).max()

    return jnp.stack([error(curve.f) for curve in CURVES])


def _pieces(data: Problem, count: int) -> np.ndarray:
    """The areas by `count` pieces between points of the curve at equal distances."""
    knots = np.round(np.linspace(0, len(data.x) - 1, count + 1)).astype(int)
    # What `hard_sigmoid_units` builds, without a program for each number of units.
    return np.interp(data.x, data.x[knots], data.y[knots])


@functools.partial(jax.jit, static_argnames=("most", "kind", "num_steps"))
def _learn(
    keys: Array,
    x: Array,
    y: Array,
    learning_rate: Array,
    count: Array,
    *,
    most: int,
    kind: approximation.Kind,
    num_steps: int,
) -> tuple[Array, Array]:
    """Mean squared error and curve of the best of several starts, all learned at once.

    One program for all numbers of units: there are always `most`, of which those from `count` on
    have the height 0 and are kept from moving.
    """
    active = (jnp.arange(most) < count).astype(x.dtype)
    optimizer = optax.chain(
        adam.adam(schedules.cosine(learning_rate, num_steps=num_steps)),
        optax.stateless(
            lambda updates, _: jax.tree.map(lambda u: u * active if u.ndim else u, updates)
        ),
    )

    def one(key: Array) -> tuple[Array, Array]:
        jitter, side = jax.random.uniform(key, (2, most))
        places = (jnp.arange(most, dtype=x.dtype) + jitter) / count
        if kind == "relu":
            weight = jnp.where(side < 0.5, -1, jnp.ones_like(side))
        else:
            weight = jnp.full(most, 4.0) * count  # ramps as wide as their distance
        start = approximation.Units(y.mean(), jnp.zeros(most), weight, -weight * places, kind)
        model = approximation.fit(
            key, x, y, num_units=most, optimizer=optimizer, num_steps=num_steps, kind=kind,
            start=start,
        )  # fmt: skip
        return model.loss[-1], approximation.evaluate(model.units, x)

    losses, curves = jax.vmap(one)(keys)
    best = jnp.argmin(jnp.where(jnp.isfinite(losses), losses, jnp.inf))
    return losses[best], curves[best]


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    first, middle, last = 0, len(result.sizes) // 2, len(result.sizes) - 1
    return {
        "Largest error of n hard sigmoids in closed form; it falls like n^-p": [
            {
                "curve": curve.name,
                "shape": curve.smoothness,
                **{f"n = {result.sizes[i]}": f"{errors[i]:.1e}" for i in (first, middle, last)},
                "p": round(float(order), 3),
            }
            for curve, errors, order in zip(CURVES, result.errors, result.orders, strict=True)
        ],
        "Root mean square error, pixels: in closed form, and learned": [
            {
                "units": count,
                "equal pieces": float(closed),
                "sigmoids": float(sigmoid),
                "ReLUs": float(relu),
            }
            for count, closed, sigmoid, relu in zip(
                result.counts, result.closed, *result.learned, strict=True
            )
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw the construction, the errors, the learned curves and their errors."""
    import matplotlib.pyplot as plt

    dashes, marks = ("-", "--", "-.", ":"), ("o", "s", "^", "D")
    with figures.style():
        figure, axes = plt.subplots(2, 2, figsize=(9, 7))
        terms, orders, curves, errors = axes.ravel()

        x = np.linspace(0, 1, 601, dtype=np.float32)
        knots = np.linspace(0, 1, 7, dtype=np.float32)
        heights = np.asarray(CURVES[0].f(jnp.asarray(knots)))
        units = approximation.hard_sigmoid_units(knots, heights)
        for i in range(6):
            ramp = approximation.Units(
                jnp.zeros(()), units.coef[i : i + 1], units.weight[i : i + 1],
                units.bias[i : i + 1], "hard_sigmoid",
            )  # fmt: skip
            label = "the six hard sigmoids" if i == 0 else None
            terms.plot(
                x, approximation.evaluate(ramp, x), "-", color=figures.GREY, lw=0.9, label=label
            )
        terms.plot(x, CURVES[0].f(jnp.asarray(x)), ":", color=figures.VERMILLION, label="sin πx")
        terms.plot(x, approximation.evaluate(units, x), "-", color=figures.BLUE, label="their sum")
        terms.plot(knots, heights, "o", color=figures.BLUE)
        terms.set(xlabel="x", ylabel="f(x)", title="Six hard sigmoids make six pieces")
        terms.legend(fontsize="small")

        n = np.array(result.sizes)
        for curve, error, order, dash, mark in zip(
            CURVES, result.errors, result.orders, dashes, marks, strict=True
        ):
            orders.loglog(n, error, dash, marker=mark, label=f"{curve.name}, p = {order:.2f}")
        orders.loglog(n, result.bounds, "-", color=figures.GREY, lw=1, label="bound for sin πx")
        _ticks(orders, result.sizes)
        orders.set(xlabel="n, units", ylabel="largest error", title="Error falls like 1 / n^p")
        orders.legend(fontsize="small")

        names = ("pieces, closed form", "sigmoids, learned", "ReLUs, learned")
        curves.plot(result.x, result.y, "-", color=figures.GREY, lw=4, alpha=0.5, label="areas")
        for name, values, dash in zip(names, result.curves, dashes, strict=False):
            curves.plot(result.x, values, dash, label=name)
        curves.set(xlabel="rank", ylabel="area (pixels)", title=f"{SHOWN} units")
        curves.legend(fontsize="small")

        for name, values, dash, mark in zip(
            names, (result.closed, *result.learned), dashes, marks, strict=False
        ):
            errors.loglog(result.counts, values, dash, marker=mark, label=name)
        _ticks(errors, result.counts)
        errors.set_yticks([20, 50, 100, 200, 500], ["20", "50", "100", "200", "500"])
        errors.set_yticks([], minor=True)
        errors.set(
            xlabel="units", ylabel="root mean square error (pixels)", title="Areas of nuclei"
        )
        errors.legend(fontsize="small")
    return figure


def _ticks(axes: "Axes", values: tuple[int, ...]) -> None:
    """Mark these places of a logarithmic axis, and no others."""
    axes.set_xticks(values, [str(value) for value in values])
    axes.set_xticks([], minor=True)
