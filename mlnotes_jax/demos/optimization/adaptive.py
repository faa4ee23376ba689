"""A rate for each parameter: on a stretched bowl, and on features of very different scale.

First a bowl that is a hundred times steeper in one direction than in the other, with its axes along
the parameters, and turned by 45 degrees. Then logistic regression on measurements of cell nuclei,
whose scales span five powers of ten: as they are, and standardised. Every rule has the best rate
of one grid.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.data import datasets, scaling
from mlnotes_jax.demos import figures
from mlnotes_jax.foundations import losses
from mlnotes_jax.optimization import adaptive, momentum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "DECAY",
    "RULES",
    "START",
    "STRETCH",
    "Bowl",
    "Features",
    "Problem",
    "Result",
    "bowl_loss",
    "plot",
    "problem",
    "run",
    "tables",
]

#: How much steeper the second direction of the bowl is.
STRETCH = 100.0
#: Where the walks start.
START = (-10.0, 1.0)
#: Of both forms of RMSProp.
DECAY = 0.9

#: Name -> rule of a learning rate.
RULES: dict[str, Callable[[Array], optax.GradientTransformation]] = {
    "descent": momentum.sgd,
    "Adagrad": adaptive.adagrad,
    "root mean": adaptive.root_mean_adagrad,
    "RMSProp": partial(adaptive.rmsprop, decay=DECAY),
    "notes' RMSProp": partial(adaptive.notes_rmsprop, alpha=DECAY),
}
#: One of each kind, for the regression.
KINDS = ("descent", "Adagrad", "RMSProp")


class Problem(NamedTuple):
    """Measurements `(n, 30)` raw and standardised, whether benign `(n,)`, and their source."""

    raw: Float[Array, "n d"]
    standard: Float[Array, "n d"]
    y: Float[Array, " n"]
    source: datasets.Source


class Bowl(NamedTuple):
    """Walks on the bowl, each with the best rate of the grid; axes along the parameters, or turned.

    Attributes:
        names: Of the rules.
        learning_rate: The best rates, shape `(rules, 2)`.
        loss: After each step, shape `(rules, 2, steps + 1)`.
        path: Parameters, axes along, shape `(rules, steps + 1, 2)`.
        rates: Of each parameter in each step, axes along, shape `(rules, steps, 2)`.
        turned_rates: The same, turned.
    """

    names: tuple[str, ...]
    learning_rate: Float[np.ndarray, "rules 2"]
    loss: Float[np.ndarray, "rules 2 states"]
    path: Float[np.ndarray, "rules states 2"]
    rates: Float[np.ndarray, "rules steps 2"]
    turned_rates: Float[np.ndarray, "rules steps 2"]


class Features(NamedTuple):
    """Logistic regression on raw and on standardised features.

    Attributes:
        names: Of the rules.
        grid: Learning rates that were tried, shape `(grid,)`.
        loss: At the end with each of them, shape `(rules, 2, grid)`; raw first.
        best: Index of the best rate, shape `(rules, 2)`.
        best_loss: Its loss, shape `(rules, 2)`.
        scale: Root mean square of each raw feature, shape `(d,)`.
        rates: Rate of each weight in the last step on raw features, shape `(rules, d)`.
        slope: Of log rate against log scale, shape `(rules,)`.
    """

    names: tuple[str, ...]
    grid: Float[np.ndarray, " grid"]
    loss: Float[np.ndarray, "rules 2 grid"]
    best: Int[np.ndarray, "rules 2"]
    best_loss: Float[np.ndarray, "rules 2"]
    scale: Float[np.ndarray, " d"]
    rates: Float[np.ndarray, "rules d"]
    slope: Float[np.ndarray, " rules"]


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The measurements.
        num_steps: Of the regression.
        bowl: The first experiment.
        features: The second.
    """

    source: datasets.Source
    num_steps: int
    bowl: Bowl
    features: Features


def problem(key: Key[Array, ""] | None = None) -> Problem:
    """Load the measurements.

    Args:
        key: Not used: nothing is drawn.

    Returns:
        Features, targets, source.
    """
    del key
    data = datasets.load("breast_cancer")
    standard = scaling.apply(scaling.fit_standard(data.x), data.x)
    return Problem(jnp.asarray(data.x), standard, jnp.asarray(data.y, jnp.float32), data.source)


def bowl_loss(params: Float[Array, "2"], turned: Float[Array, ""] | float = 0.0) -> Array:
    """Half of x squared and a hundred times y squared; `turned` by an angle."""
    cos, sin = jnp.cos(turned), jnp.sin(turned)
    x = cos * params[0] + sin * params[1]
    y = cos * params[1] - sin * params[0]
    return 0.5 * (x**2 + STRETCH * y**2)


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    num_steps: int = 500,
    num_rates: int = 49,
    bowl_steps: int = 100,
) -> Result:
    """Descend on the bowl, and fit the regression, with every rule and every rate.

    Args:
        key: Not used: nothing is drawn.
        quick: Fewer steps and rates.
        num_steps: Updates of the regression, each on all rows.
        num_rates: How many rates are tried, for each rule and each problem.
        bowl_steps: Updates on the bowl.

    Returns:
        Paths, rates and losses.
    """
    data = problem(key)
    if quick:
        num_steps, num_rates = min(num_steps, 200), min(num_rates, 25)
    return Result(
        data.source,
        num_steps,
        _bowl(jnp.geomspace(1e-3, 30.0, 4 * num_rates), bowl_steps),
        _features(data, jnp.geomspace(1e-10, 1e2, num_rates), num_steps),
    )


def _descend(
    names: Sequence[str],
    rate: Array,
    loss: Callable[[Array], Array],
    start: Array,
    num_steps: int,
) -> tuple[Array, Array, Array]:
    """All rules side by side, each with a walk of its own.

    Returns:
        Parameters `(steps + 1, rules, d)` and losses `(steps + 1, rules)` from the start on, and
        the rate of each parameter in each step `(steps, rules, d)`.
    """
    rules = [RULES[name](rate) for name in names]

    def step(carry: tuple[Array, list[optax.OptState]], _: None):
        params, states = carry
        values, gradients = jax.vmap(jax.value_and_grad(loss))(params)
        pairs: list[Any] = [
            rule.update(gradient, state)
            for rule, gradient, state in zip(rules, gradients, states, strict=True)
        ]
        updates = jnp.stack([update for update, _ in pairs])
        # Where it has arrived to the last digit, there is no rate to speak of.
        rates = jnp.where(jnp.abs(gradients) < 1e-20, jnp.nan, -updates / gradients)
        return (params + updates, [state for _, state in pairs]), (params, values, rates)

    params, states = jnp.stack([start] * len(rules)), [rule.init(start) for rule in rules]
    (last, _), (path, values, rates) = jax.lax.scan(step, (params, states), length=num_steps)
    path = jnp.concatenate([path, last[None]])
    return path, jnp.concatenate([values, jax.vmap(loss)(last)[None]]), rates


@partial(jax.jit, static_argnames="num_steps")
def _bowl_walks(grid: Array, start: Array, num_steps: int) -> tuple[Array, ...]:
    """Paths, losses and rates, with leading axes of two angles and of the grid."""

    def walk(angle: Array, rate: Array) -> tuple[Array, ...]:
        # The start turns with the bowl: for plain descent nothing changes.
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        turned = jnp.stack([cos * start[0] - sin * start[1], sin * start[0] + cos * start[1]])
        loss = partial(bowl_loss, turned=angle)
        return _descend(tuple(RULES), rate, loss, turned, num_steps)

    angles = jnp.array([0.0, jnp.pi / 4])
    return jax.vmap(jax.vmap(walk, (None, 0)), (0, None))(angles, grid)


def _bowl(grid: Array, num_steps: int) -> Bowl:
    path, loss, rates = map(np.asarray, _bowl_walks(grid, jnp.array(START), num_steps))
    best = _lowest(loss[:, :, -1])  # (2, rules)
    turned, rule = np.ogrid[:2, : len(RULES)]
    # An index in the middle comes first: (2, rules, steps, ...).
    chosen = [part[turned, best, :, rule] for part in (path, loss, rates)]
    return Bowl(
        names=tuple(RULES),
        learning_rate=np.asarray(grid)[best].T,
        loss=chosen[1].swapaxes(0, 1),
        path=chosen[0][0],
        rates=chosen[2][0],
        turned_rates=chosen[2][1],
    )


def _lowest(loss: np.ndarray) -> np.ndarray:
    """Index of the lowest loss that is a number, along axis 1."""
    return np.where(np.isfinite(loss), loss, np.inf).argmin(axis=1)


@partial(jax.jit, static_argnames="num_steps")
def _fits(both: Array, y: Array, grid: Array, num_steps: int) -> tuple[Array, Array]:
    """Losses at the end `(2, grid, rules)`, and the rates of the last step."""

    def fit(x: Array, rate: Array) -> tuple[Array, Array]:
        def loss(weights: Array) -> Array:
            logits = x @ weights[:-1] + weights[-1]
            return losses.binary_cross_entropy_with_logits(logits, y)

        start = jnp.zeros(x.shape[1] + 1)
        _, values, rates = _descend(KINDS, rate, loss, start, num_steps)
        return values[-1], rates[-1, :, :-1]

    return jax.lax.map(lambda x: jax.vmap(partial(fit, x))(grid), both)


def _features(data: Problem, grid: Array, num_steps: int) -> Features:
    found = _fits(jnp.stack([data.raw, data.standard]), data.y, grid, num_steps)
    loss, rates = map(np.asarray, found)
    best = _lowest(loss)  # (2, rules)
    scale = np.sqrt(np.square(np.asarray(data.raw)).mean(axis=0))
    chosen = rates[0, best[0], np.arange(len(KINDS))]
    return Features(
        names=KINDS,
        grid=np.asarray(grid),
        loss=loss.transpose(2, 0, 1),
        best=best.T,
        best_loss=np.take_along_axis(loss, best[:, None], axis=1)[:, 0].T,
        scale=scale,
        rates=chosen,
        slope=np.array([_slope(np.log(scale), np.log(rate)) for rate in chosen]),
    )


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Of the line through points, without those that are no numbers."""
    kept = np.isfinite(y)
    return float(np.polyfit(x[kept], y[kept], 1)[0])


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    bowl, features = result.bowl, result.features
    steps = bowl.rates.shape[1]
    walks: list[dict[str, object]] = [
        {
            "rule": name,
            "rate": float(bowl.learning_rate[i, 0]),
            "loss": float(bowl.loss[i, 0, -1]),
            "rate, turned": float(bowl.learning_rate[i, 1]),
            "loss, turned": float(bowl.loss[i, 1, -1]),
        }
        for i, name in enumerate(bowl.names)
    ]
    fits: list[dict[str, object]] = [
        {
            "rule": name,
            "rate": f"{float(features.grid[features.best[i, 0]]):.1e}",
            "loss, raw": float(features.best_loss[i, 0]),
            "rate, scaled": f"{float(features.grid[features.best[i, 1]]):.1e}",
            "loss, scaled": float(features.best_loss[i, 1]),
            "slope": _rounded(features.slope[i]),
        }
        for i, name in enumerate(features.names)
    ]
    return {
        f"A bowl stretched {STRETCH:.0f} times, {steps} steps, best rate of each": walks,
        f"Logistic regression, {result.num_steps} steps; slope of rate against scale": fits,
    }


def _rounded(slope: float) -> float:
    return round(float(slope), 2) + 0.0  # no -0.0


def plot(result: Result) -> "Figure":
    """Draw paths, rates, losses, weights of the past, and rates against scales."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    bowl, features = result.bowl, result.features
    marks = dict(zip(RULES, "os^Dv", strict=True))
    colors = dict(zip(RULES, figures.COLORS, strict=False))
    shown = [(bowl.names.index(name), name) for name in KINDS]
    with figures.style():
        figure, axes = plt.subplots(2, 3, figsize=(9.6, 6.2))
        paths, rates, turned, weights, scales, grids = axes.ravel()

        x, y = np.meshgrid(np.linspace(-11, 3, 100), np.linspace(-1.3, 1.3, 80))
        height = 0.5 * (x**2 + STRETCH * y**2)
        paths.contour(x, y, height, np.geomspace(0.2, 150, 9), colors=figures.GREY, linewidths=0.5)
        for i, name in shown:
            paths.plot(
                *np.asarray(bowl.path[i]).T, "-", marker=marks[name], markersize=3, markevery=5,
                color=colors[name],
            )  # fmt: skip
        paths.plot(0, 0, "*", color=figures.GREEN, markersize=12)
        paths.set(xlabel="x", ylabel="y, 100 times steeper", title="Paths down the bowl")

        step = np.arange(1, bowl.rates.shape[1] + 1)
        for part, dash in ((0, "-"), (1, ":")):
            for i, name in shown:
                rates.loglog(step, bowl.rates[i, :, part], dash, color=colors[name])
                turned.semilogy(
                    np.append(step - 1, len(step)), bowl.loss[i, part], dash, color=colors[name]
                )
            for i, name in enumerate(features.names):
                grids.semilogx(
                    features.grid, np.clip(features.loss[i, part], 0, 1), dash,
                    color=colors[name],
                )  # fmt: skip
        rates.set(xlabel="step", ylabel="its rate", title="Rate of x (solid), y (dotted)")
        turned.set_ylim(1e-6, 1e3)
        turned.set(xlabel="step", ylabel="loss", title="Axes along (solid), turned (dotted)")
        grids.set(
            xlabel="learning rate", ylabel=f"loss after {result.num_steps} steps (1: or more)",
            title="Features raw (solid), scaled (dotted)",
        )  # fmt: skip

        pasts = {
            "Adagrad": adaptive.square_weights(20, "adagrad"),
            "root mean": adaptive.square_weights(20, "root_mean_adagrad"),
            "notes' RMSProp": adaptive.square_weights(20, "notes_rmsprop", decay=DECAY),
            "RMSProp": adaptive.square_weights(20, "rmsprop", decay=DECAY),
        }
        for name, past in pasts.items():
            weights.semilogy(past, "-", marker=marks[name], markersize=4, color=colors[name])
        weights.set(xlabel="step of the gradient", ylabel="weight", title="Weights of the squares")
        weights.xaxis.get_major_locator().set_params(integer=True)

        for i, name in enumerate(features.names):
            scales.loglog(
                features.scale, features.rates[i], marks[name], color=colors[name],
                markersize=4, label=f"slope {_rounded(features.slope[i])}",
            )  # fmt: skip
        scales.set(
            xlabel="root mean square of a raw feature", ylabel="rate of its weight",
            title="Rates on raw features",
        )  # fmt: skip
        scales.legend(fontsize="small")

        handles = [
            Line2D([], [], color=colors[name], marker=marks[name], linestyle="-", label=name)
            for name in RULES
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize="small")
    return figure
