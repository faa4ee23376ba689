"""Logistic regression: what a penalty keeps, where regression on classes fails, and XOR.

The rows are 569 tumours with thirty measurements. As the L1 penalty falls, one weight after the
other leaves zero; five folds, one program for all penalties, say how far to go. Then two borders
that go wrong: lines fitted to one-hot classes of three irises, and any line through four clouds of
points in the pattern of XOR, until the product of the two features is a feature.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.classification import logistic_regression
from mlnotes_jax.data import datasets, scaling
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.foundations import affine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Path", "Problem", "Result", "path", "plot", "problem", "run", "tables"]

PETALS = ("petal length (cm)", "petal width (cm)")


class Problem(NamedTuple):
    """Measurements of tumours, in standard deviations, and of irises; and where they come from."""

    x: Float[np.ndarray, "n d"]
    y: Int[np.ndarray, " n"]
    names: tuple[str, ...]
    petals: Float[np.ndarray, "m 2"]
    species: Int[np.ndarray, " m"]
    species_names: tuple[str, ...]
    source: datasets.Source


class Path(NamedTuple):
    """Fits from a strong penalty to a weak one.

    Attributes:
        penalty: Falling, shape `(p,)`.
        coef: Weights of the fits to all rows, shape `(p, d)`.
        loss: Mean log-loss of the held-out rows, shape `(p, folds)`.
        error: Their share of wrong answers, likewise.
        converged: Whether all fits converged.
    """

    penalty: np.ndarray
    coef: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    converged: bool

    @property
    def best(self) -> int:
        """The penalty with the lowest mean held-out loss."""
        return int(self.loss.mean(axis=1).argmin())


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        names: Of the thirty features.
        paths: Kind of penalty, "l1" or "l2", to its path.
        petals: Length and width, shape `(m, 2)`.
        species: Classes of the irises, shape `(m,)`.
        species_names: Their names.
        iris_axes: The grid of the picture, two vectors.
        iris_borders: Method to predicted classes on the grid, second feature first.
        iris_error: Method to the share of wrong answers, of all and of the class in the middle.
        xor: Points and classes of XOR.
        xor_axis: The grid of that picture, the same in both directions.
        xor_odds: Features to log-odds on the grid.
        xor_error: Features to the share of wrong answers.
    """

    source: datasets.Source
    names: tuple[str, ...]
    paths: dict[str, Path]
    petals: np.ndarray
    species: np.ndarray
    species_names: tuple[str, ...]
    iris_axes: tuple[np.ndarray, np.ndarray]
    iris_borders: dict[str, np.ndarray]
    iris_error: dict[str, tuple[float, float]]
    xor: tuple[np.ndarray, np.ndarray]
    xor_axis: np.ndarray
    xor_odds: dict[str, np.ndarray]
    xor_error: dict[str, float]


def problem(key: Key[Array, ""] | None = None) -> Problem:
    """Load the tumours and the irises.

    Args:
        key: Not used: nothing is drawn.

    Returns:
        Rows, classes, names, source.
    """
    del key
    tumours, irises = datasets.load("breast_cancer"), datasets.load("iris")
    columns = [irises.feature_names.index(name) for name in PETALS]
    return Problem(
        np.asarray(scaling.apply(scaling.fit_standard(tumours.x), tumours.x)),
        tumours.y,
        tumours.feature_names,
        irises.x[:, columns],
        irises.y,
        irises.class_names,
        tumours.source,
    )


def run(
    key: Key[Array, ""], *, quick: bool = False, num_penalties: int = 80, num_folds: int = 5
) -> Result:
    """Follow weights along a penalty; then draw borders that are wrong, and what mends them.

    Args:
        key: For the folds and the points of XOR.
        quick: Fewer penalties, and coarser grids.
        num_penalties: Of each kind.
        num_folds: Parts that are held out in turn.

    Returns:
        Paths, borders and errors.
    """
    if quick:
        num_penalties = min(num_penalties, 25)
    data = problem()
    fold_key, xor_key = jax.random.split(key)
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    fold = jax.random.permutation(fold_key, len(y)) % num_folds
    train = (fold[None] != jnp.arange(num_folds)[:, None]).astype(x.dtype)
    # From here on all weights are zero, up to rounding: no slope of the loss at zero is larger.
    largest = 1.001 * float(np.abs(data.x.T @ (data.y - data.y.mean())).max())
    paths = {}
    for kind in progress.track(("l1", "l2"), "paths"):
        first = largest if kind == "l1" else 10 * largest
        penalties = np.geomspace(first, 1e-4 * largest, num_penalties)
        paths[kind] = path(x, y, train, kind, penalties)

    points = 81 if quick else 241
    axes, borders, error = _irises(data, points)
    corner, jitter = jax.random.split(xor_key)
    bits = jax.random.bernoulli(corner, shape=(240, 2)).astype(x.dtype)
    plane = np.asarray(2 * bits - 1 + 0.35 * jax.random.normal(jitter, bits.shape))
    label = np.asarray(bits[:, 0] != bits[:, 1]).astype(np.int32)
    axis = np.linspace(-2.2, 2.2, points, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    lifted, lifted_grid = (np.asarray(affine.lift_products(part)) for part in (plane, grid))
    odds, wrong = {}, {}
    for name, kept in (("x1, x2", (1.0, 1.0, 0.0)), ("x1, x2, x1 x2", (1.0, 1.0, 1.0))):
        rows = lifted * np.array(kept, np.float32)  # without the product, a column of zeros
        model = logistic_regression.fit(rows, label, l2=0.1)
        odds[name] = np.asarray(logistic_regression.decision_function(model, lifted_grid))
        answer = np.asarray(logistic_regression.predict(model, rows))
        wrong[name] = float(np.mean(answer != label))
    return Result(
        source=data.source,
        names=data.names,
        paths=paths,
        petals=data.petals,
        species=data.species,
        species_names=data.species_names,
        iris_axes=axes,
        iris_borders=borders,
        iris_error=error,
        xor=(plane, label),
        xor_axis=axis,
        xor_odds=odds,
        xor_error=wrong,
    )


def path(
    x: Float[Array, "n d"],
    y: Int[Array, " n"],
    train: Float[Array, "folds n"],
    kind: str,
    penalties: Float[np.ndarray, " p"],
) -> Path:
    """Fit two classes along one penalty, to all rows and to folds.

    Args:
        x: Rows.
        y: Classes 0 and 1.
        train: Weights of the rows in each fold; 0 holds a row out.
        kind: Which penalty, `"l1"` or `"l2"`.
        penalties: From strong to weak.

    Returns:
        Weights, and held-out losses and errors.
    """
    both = jnp.asarray(penalties, x.dtype)[:, None] * jnp.array(
        [[kind == "l1", kind == "l2"]], x.dtype
    )
    coef, loss, error, converged = map(np.asarray, _path(x, y, train, both))
    return Path(penalties, coef, loss, error, bool(converged.all()))


@jax.jit
def _path(x: Array, y: Array, train: Array, penalties: Array) -> tuple[Array, ...]:
    weights = jnp.concatenate([jnp.ones_like(train[:1]), train])

    def fit(start: Any, weight: Array, penalty: Array) -> logistic_regression.LogisticRegression:
        return logistic_regression.fit(
            x,
            y,
            l1=penalty[0],
            l2=penalty[1],
            sample_weight=weight,
            num_classes=2,
            start=start,
            tol=1e-5,
        )

    def step(start: Any, penalty: Array) -> tuple[Any, tuple[Array, ...]]:
        # Each fit starts where the one of the penalty before has ended; folds go side by side.
        models = jax.vmap(fit, (0, 0, None))(start, weights, penalty)
        odds = jax.vmap(logistic_regression.decision_function, (0, None))(models, x)[1:]
        held_out = (1 - train) / (1 - train).sum(axis=1, keepdims=True)
        loss = jax.nn.softplus(jnp.where(y[None] == 1, -odds, odds))
        wrong = ((odds > 0) != (y[None] == 1)).astype(x.dtype)
        scores = (held_out * loss).sum(axis=1), (held_out * wrong).sum(axis=1)
        return models, (models.coef[0, 0], *scores, models.converged.all())

    shapes = jax.eval_shape(jax.vmap(lambda weight: fit(None, weight, penalties[0])), weights)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(step, zeros, penalties)[1]


def _irises(data: Problem, points: int) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
    low, high = data.petals.min(axis=0), data.petals.max(axis=0)
    pad = 0.1 * (high - low)
    axes = tuple(
        np.linspace(a, b, points, dtype=np.float32)
        for a, b in zip(low - pad, high + pad, strict=True)
    )
    grid = np.stack(np.meshgrid(*axes), axis=-1)
    models: dict[str, Any] = {
        "softmax": logistic_regression.fit(data.petals, data.species, l2=1e-2),
        "one-hot lines": logistic_regression.fit_one_hot(data.petals, data.species),
    }
    borders, error = {}, {}
    for name, model in models.items():
        borders[name] = np.asarray(logistic_regression.predict(model, grid))
        wrong = np.asarray(logistic_regression.predict(model, data.petals)) != data.species
        error[name] = (float(wrong.mean()), float(wrong[data.species == 1].mean()))
    return axes, borders, error


def tables(result: Result) -> dict[str, list[dict[str, Any]]]:
    """The numbers as tables.

    Args:
        result: What `run` returned.

    Returns:
        Title to rows.
    """
    lasso = result.paths["l1"]
    first = (lasso.coef != 0).argmax(axis=0)
    ever = np.flatnonzero((lasso.coef != 0).any(axis=0))
    order = ever[np.argsort(first[ever], kind="stable")]
    folds = lasso.loss.shape[1]
    return {
        f"Thirty features of tumours: the best of {len(lasso.penalty)} penalties, {folds} folds": [
            {
                "penalty": kind,
                "strength": float(p.penalty[p.best]),
                "weights not 0": int((p.coef[p.best] != 0).sum()),
                "held-out log-loss": _spread(p.loss[p.best]),
                "held-out error": _spread(100 * p.error[p.best], " %"),
            }
            for kind, p in result.paths.items()
        ],
        "The first weights to leave zero": [
            {
                "feature": result.names[j],
                "leaves at l1": float(lasso.penalty[first[j]]),
                "weight at the best": float(lasso.coef[lasso.best, j]),
            }
            for j in order[:6]
        ],
        "Borders": [
            {
                "data": "iris petals",
                "fit": name,
                "wrong": _percent(all_),
                "detail": f"{result.species_names[1]}: {_percent(middle)}",
            }
            for name, (all_, middle) in result.iris_error.items()
        ]
        + [
            {
                "data": "XOR",
                "fit": "logistic",
                "wrong": _percent(wrong),
                "detail": f"features {name}",
            }
            for name, wrong in result.xor_error.items()
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw the path, the held-out loss, and borders before and after.

    Args:
        result: What `run` returned.

    Returns:
        A figure of four panels.
    """
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(2, 2, figsize=(9.4, 7.8))
        _draw_path(axes[0, 0], result)
        _draw_loss(axes[0, 1], result)
        _draw_irises(axes[1, 0], result)
        _draw_xor(axes[1, 1], result)
        figure.suptitle("Logistic regression: weights that pay, and borders that bend")
    return figure


def _draw_path(axes: Any, result: Result) -> None:
    lasso = result.paths["l1"]
    best = lasso.coef[lasso.best]
    named = np.argsort(-np.abs(best))[:5]
    for j in range(lasso.coef.shape[1]):
        if j not in named:
            axes.plot(lasso.penalty, lasso.coef[:, j], "-", color=figures.GREY, lw=0.8, alpha=0.6)
    dashes = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
    for j, color, dash in zip(named, figures.COLORS, dashes, strict=False):
        axes.plot(
            lasso.penalty, lasso.coef[:, j], color=color, linestyle=dash, label=result.names[j]
        )
    axes.axvline(lasso.penalty[lasso.best], color=figures.GREY, linestyle=":", lw=1)
    size = 2.2 * np.abs(best).max()
    axes.set(
        xscale="log",
        ylim=(-size, size),
        xlabel="L1 penalty (strong on the left)",
        ylabel="weight of a standardised feature",
        title="Weights leave zero one by one",
    )
    axes.invert_xaxis()
    axes.legend(fontsize=7, loc="lower left")


def _draw_loss(axes: Any, result: Result) -> None:
    looks = {"l1": (figures.BLUE, "-"), "l2": (figures.VERMILLION, "--")}
    for kind, (color, dash) in looks.items():
        p = result.paths[kind]
        mean = p.loss.mean(axis=1)
        error = p.loss.std(axis=1, ddof=1) / p.loss.shape[1] ** 0.5
        axes.fill_between(p.penalty, mean - error, mean + error, color=color, alpha=0.15, lw=0)
        kept = int((p.coef[p.best] != 0).sum())
        axes.plot(
            p.penalty,
            mean,
            color=color,
            linestyle=dash,
            label=f"{kind}: {kept} weights at the best",
        )
        axes.plot(p.penalty[p.best], mean[p.best], "o", color=color)
    axes.set(
        xscale="log",
        ylim=(0, 0.4),
        xlabel="penalty (strong on the left)",
        ylabel="held-out log-loss (nats)",
        title="How far to go: five folds, and their standard error",
    )
    axes.invert_xaxis()
    axes.legend(fontsize=8)


def _draw_irises(axes: Any, result: Result) -> None:
    colors = (figures.BLUE, figures.VERMILLION, figures.GREEN)
    for k, (name, color, marker) in enumerate(
        zip(result.species_names, colors, "os^", strict=True)
    ):
        rows = result.petals[result.species == k]
        axes.plot(*rows.T, marker, color=color, ms=4, mfc="none", alpha=0.7, label=name)
    for (name, classes), color, dash in zip(
        result.iris_borders.items(), (figures.GREY, figures.PURPLE), ("-", "--"), strict=True
    ):
        axes.contour(
            *result.iris_axes, classes, levels=[0.5, 1.5], colors=[color], linestyles=[dash],
            linewidths=2,
        )  # fmt: skip
        wrong = result.iris_error[name][0]
        axes.plot([], [], dash, color=color, label=f"{name}: {100 * wrong:.0f} % wrong")
    axes.set(
        xlabel=PETALS[0],
        ylabel=PETALS[1],
        title="Lines fitted to classes miss the middle one",
    )
    axes.legend(fontsize=7, loc="upper left")


def _draw_xor(axes: Any, result: Result) -> None:
    points, label = result.xor
    for k, (color, marker) in enumerate(((figures.BLUE, "o"), (figures.VERMILLION, "x"))):
        axes.plot(
            *points[label == k].T,
            marker,
            color=color,
            ms=4,
            mfc="none",
            alpha=0.7,
            label=f"class {k}",
        )
    looks = ((figures.GREY, "--"), (figures.GREEN, "-"))
    for (name, odds), (color, dash) in zip(result.xor_odds.items(), looks, strict=True):
        axes.contour(
            result.xor_axis, result.xor_axis, odds, levels=[0.0], colors=[color],
            linestyles=[dash], linewidths=2,
        )  # fmt: skip
        wrong = result.xor_error[name]
        axes.plot([], [], linestyle=dash, color=color, label=f"{name}: {100 * wrong:.0f} % wrong")
    axes.set(
        ylim=(-2.2, 3.3),
        xlabel="$x_1$",
        ylabel="$x_2$",
        title="XOR: one product more, and a line will do",
    )
    axes.legend(fontsize=7, loc="upper center", ncols=2)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _spread(folds: np.ndarray, unit: str = "") -> str:
    error = folds.std(ddof=1) / len(folds) ** 0.5
    return f"{folds.mean():.3g} ±{error:.1g}{unit}"
