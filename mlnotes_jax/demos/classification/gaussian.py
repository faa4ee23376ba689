"""A Gaussian for each class; drawn against fitted borders.

The rows are 569 tumours, malignant or benign, with the means of ten measured features. One Gaussian
per class, in two features, gives three borders: a line, a curve, and a curve with upright axes.
Then all ten features, and the question which is better with few rows and which with many: a
Gaussian per class (generative), or a border fitted straight away (logistic regression,
discriminative). Every size of the training set is tried on many random subsets, as weights 0 and 1.
"""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.classification import gaussian
from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["METHODS", "Problem", "Result", "fit_logistic", "plot", "problem", "run", "tables"]

KINDS = ("naive", "shared", "own")
METHODS = (*KINDS, "logistic")
SIZES = (20, 30, 45, 70, 110, 170, 260, 400)
FEATURES = ("mean texture", "mean concavity")  # of the picture
RIDGE = 0.01  # of the logistic fit: just enough for an answer where the classes can be separated


class Problem(NamedTuple):
    """Ten features of each tumour, 1 for benign, the features' names, and where they come from."""

    x: Float[np.ndarray, "n d"]
    y: Int[np.ndarray, " n"]
    names: tuple[str, ...]
    source: datasets.Source


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        x: The two features of the picture, shape `(n, 2)`.
        y: Classes, shape `(n,)`.
        models: The three models of these two features.
        axes: The grid of the picture, two vectors.
        log_odds: Of benign over malignant on the grid: kind -> shape `(g, g)`, second feature
            first.
        drawn: Rows and classes drawn from the model with own covariances, as many as in the data.
        sizes: Rows of the training sets.
        num_subsets: Random subsets of each size.
        num_held_out: Rows that judge, in each subset others.
        num_parameters: Of each method.
        train_error: Mean share of wrong answers on the training rows, shape `(methods, sizes)`,
            over the subsets in which the method has an answer; NaN where fewer than half have.
        held_out_error: The same on the held-out rows.
        standard_error: Of `held_out_error`, from the spread over the subsets.
        train_loss: Mean log-loss on the training rows, in nats.
        held_out_loss: The same on the held-out rows.
        answered: Share of subsets in which the covariance has an inverse, likewise.
        gradient: Largest gradient entry per row that Newton's method left, over all logistic fits.
    """

    source: datasets.Source
    x: np.ndarray
    y: np.ndarray
    models: dict[str, gaussian.Gaussian]
    axes: tuple[np.ndarray, np.ndarray]
    log_odds: dict[str, Array]
    drawn: tuple[Array, Array]
    sizes: tuple[int, ...]
    num_subsets: int
    num_held_out: int
    num_parameters: tuple[int, ...]
    train_error: np.ndarray
    held_out_error: np.ndarray
    standard_error: np.ndarray
    train_loss: np.ndarray
    held_out_loss: np.ndarray
    answered: np.ndarray
    gradient: float


def problem(key: Key[Array, ""] | None = None) -> Problem:
    """Load the tumours: the ten features that are means over the cells of a sample.

    Args:
        key: Not used: nothing is drawn.

    Returns:
        Rows in their own units, classes, names, source.
    """
    del key
    data = datasets.load("breast_cancer")
    columns = [i for i, name in enumerate(data.feature_names) if name.startswith("mean ")]
    names = tuple(data.feature_names[i] for i in columns)
    return Problem(data.x[:, columns], data.y, names, data.source)


def run(key: Key[Array, ""], *, quick: bool = False, num_subsets: int = 200) -> Result:
    """Fit and draw in two features; then compare four methods as the rows grow in number.

    Args:
        key: For the drawn rows and the subsets.
        quick: Fewer subsets, and a coarser grid.
        num_subsets: Random subsets of each size.

    Returns:
        The models, their borders, draws, and the learning curves.
    """
    if quick:
        num_subsets = min(num_subsets, 40)
    data = problem()
    draw_key, subset_key = jax.random.split(key)

    flat = data.x[:, [data.names.index(name) for name in FEATURES]]
    points = 61 if quick else 161
    low, high = flat.min(axis=0), flat.max(axis=0)
    pad = 0.15 * (high - low)
    axes = tuple(
        np.linspace(a, b, points, dtype=np.float32)
        for a, b in zip(low - pad, high + pad, strict=True)
    )
    grid = np.stack(np.meshgrid(*axes), axis=-1)
    models = {kind: gaussian.fit(flat, data.y, covariance=kind) for kind in KINDS}
    log_odds = {kind: gaussian.decision_function(model, grid) for kind, model in models.items()}
    drawn = gaussian.sample(draw_key, models["own"], len(flat))

    # Units do not matter to a Gaussian; the tiny ridge of the logistic fit wants them alike.
    x = jnp.asarray((data.x - data.x.mean(axis=0)) / data.x.std(axis=0))
    y = jnp.asarray(data.y)
    rank = jnp.argsort(jax.random.uniform(subset_key, (num_subsets, len(y))), axis=1)
    # One program after the other: two batches of small factorisations side by side in one program
    # can wait for each other for ever on a CPU.
    found = [
        jax.block_until_ready(_learning_curve(x, y, rank, method=method))
        for method in progress.track(METHODS, "learning curves")
    ]
    measures, answered, gradients = (np.stack(part) for part in zip(*found, strict=True))
    kept = np.where(answered, 1.0, np.nan)[..., None, None]
    with np.errstate(invalid="ignore"):
        # A mean over the few subsets that happen to have an answer would be one of lucky ones.
        count = np.where(answered.mean(axis=1) > 0.5, answered.sum(axis=1), np.nan)
        # methods, sizes, (train, held out), (error, loss); NaN where no subset has an answer
        sums = np.nansum(measures * kept, axis=1)
        means = sums / count[..., None, None]
        spread = np.nansum((measures * kept - means[:, None]) ** 2, axis=1)[:, :, 1, 0]
        standard_error = np.sqrt(spread / count / (count - 1))
    d = x.shape[1]
    return Result(
        source=data.source,
        x=flat,
        y=data.y,
        models=models,
        axes=(axes[0], axes[1]),
        log_odds=log_odds,
        drawn=drawn,
        sizes=SIZES,
        num_subsets=num_subsets,
        num_held_out=len(y) - SIZES[-1],
        num_parameters=(
            1 + 2 * d + 2 * d,
            1 + 2 * d + d * (d + 1) // 2,
            1 + 2 * d + d * (d + 1),
            1 + d,
        ),
        train_error=means[:, :, 0, 0],
        held_out_error=means[:, :, 1, 0],
        standard_error=standard_error,
        train_loss=means[:, :, 0, 1],
        held_out_loss=means[:, :, 1, 1],
        answered=answered.mean(axis=1),
        gradient=float(gradients[-1].max()),
    )


@functools.partial(jax.jit, static_argnames="method")
def _learning_curve(x: Array, y: Array, rank: Array, *, method: Any) -> tuple[Array, Array, Array]:
    """For each subset and size: (train, held out) x (error, loss), answered, gradient left."""
    sizes = jnp.array(SIZES, rank.dtype)

    def one(rank: Array, size: Array) -> tuple[Array, Array, Array]:
        train = (rank < size).astype(x.dtype)
        held_out = (rank >= SIZES[-1]).astype(x.dtype)
        if method == "logistic":
            theta, gradient = fit_logistic(x, y, train)
            log_odds = x @ theta[:-1] + theta[-1]
            answered = jnp.asarray(True)
        else:
            model = gaussian.fit(x, y, covariance=method, sample_weight=train, num_classes=2)
            log_odds = gaussian.decision_function(model, x)
            answered, gradient = ~model.singular.any(), jnp.zeros((), x.dtype)
        wrong = ((log_odds > 0) != (y == 1)).astype(x.dtype)
        loss = jax.nn.softplus(jnp.where(y == 1, -log_odds, log_odds))
        weight = jnp.stack([train, held_out])
        share = weight / weight.sum(axis=1, keepdims=True)
        return share @ jnp.stack([wrong, loss], axis=1), answered, gradient

    # One program for all; one subset after the other, since a CPU factors small matrices faster
    # one by one than in a batch. For a GPU, `vmap` would take the place of `map`.
    return jax.lax.map(lambda rank: jax.lax.map(lambda size: one(rank, size), sizes), rank)


def fit_logistic(
    x: Float[Array, "n d"],
    y: Int[Array, " n"],
    weight: Float[Array, " n"],
    *,
    ridge: float = RIDGE,
    num_steps: int = 20,
) -> tuple[Float[Array, " d_plus_1"], Float[Array, ""]]:
    """Fit the discriminative side: logistic regression by Newton's method, a dozen lines.

    Args:
        x: Rows.
        y: Classes 0 and 1.
        weight: Of the rows; 0 drops one.
        ridge: Half of this times the squared weights is added to the summed log-loss, because
            classes that can be separated would have no answer.
        num_steps: Newton steps. Each goes the best of 1, 1/2, ..., 1/32 of its length.

    Returns:
        Weights with the intercept last, and the largest entry of the gradient that is left,
        divided by the total weight.
    """
    design = jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    penalty = jnp.append(jnp.full(x.shape[1], ridge, x.dtype), jnp.zeros((), x.dtype))
    target = y.astype(x.dtype)

    def loss(theta: Array) -> Array:
        logits = design @ theta
        losses = jax.nn.softplus(logits) - target * logits
        return weight @ losses + 0.5 * penalty @ jnp.square(theta)

    def gradient(theta: Array, p: Array) -> Array:
        return design.T @ (weight * (p - target)) + penalty * theta

    def step(theta: Array, _: None) -> tuple[Array, None]:
        p = jax.nn.sigmoid(design @ theta)
        hessian = (design * (weight * p * (1 - p))[:, None]).T @ design + jnp.diag(penalty)
        # Where all rows are sure the Hessian is nearly 0: 1e-4 keeps the step finite.
        hessian = hessian + 1e-4 * jnp.eye(len(theta), dtype=x.dtype)
        factor = jax.scipy.linalg.cho_factor(hessian)
        down = jax.scipy.linalg.cho_solve(factor, gradient(theta, p))
        tried = theta[None] - 0.5 ** jnp.arange(6.0)[:, None] * down[None]
        return tried[jnp.argmin(jax.vmap(loss)(tried))], None

    theta, _ = jax.lax.scan(step, jnp.zeros_like(design[0]), length=num_steps)
    left = gradient(theta, jax.nn.sigmoid(design @ theta))
    return theta, jnp.abs(left).max() / weight.sum()


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """Put the numbers into rows.

    Args:
        result: What `run` returned.

    Returns:
        Title to rows.
    """
    wrong = {
        kind: np.mean(np.asarray(gaussian.predict(model, result.x)) != result.y)
        for kind, model in result.models.items()
    }
    return {
        f"Two features ({' and '.join(FEATURES)}), all rows": [
            {
                "covariance": kind,
                "border": {"naive": "upright quadric", "shared": "line", "own": "quadric"}[kind],
                "training error": f"{100 * wrong[kind]:.1f} %",
            }
            for kind in KINDS
        ],
        f"Held-out error (%) of ten features, {result.num_subsets} subsets, ± standard error": [
            {
                "rows": size,
                **{
                    method: _percent(result.held_out_error[m, s], result.standard_error[m, s])
                    for m, method in enumerate(METHODS)
                },
            }
            for s, size in enumerate(result.sizes)
        ],
        "Log-loss (nats)": [
            {
                "method": method,
                "numbers": result.num_parameters[m],
                "rows": result.sizes[s],
                "training": _digits(result.train_loss[m, s]),
                "held out": _digits(result.held_out_loss[m, s]),
            }
            for s in (3, -1)
            for m, method in enumerate(METHODS)
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw the borders, what the model draws, and the learning curves.

    Args:
        result: What `run` returned.

    Returns:
        A figure of four panels.
    """
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(2, 2, figsize=(9, 7.6))
        _draw_borders(axes[0, 0], result)
        _draw_draws(axes[0, 1], result)
        _draw_curves(axes[1, 0], result)
        _draw_gap(axes[1, 1], result)
        figure.suptitle("One Gaussian per class: borders, draws, and few rows against many")
    return figure


_CLASSES = (("malignant", figures.VERMILLION, "x"), ("benign", figures.BLUE, "o"))
_LOOKS = {
    "naive": (figures.OCHRE, "-.", "^"),
    "shared": (figures.BLUE, "-", "o"),
    "own": (figures.VERMILLION, "--", "s"),
    "logistic": (figures.GREEN, ":", "D"),
}


def _draw_borders(axes, result: Result) -> None:
    for k, (name, color, marker) in enumerate(_CLASSES):
        axes.plot(
            *result.x[result.y == k].T,
            marker,
            color=color,
            ms=3,
            alpha=0.45,
            label=name,
            mfc="none",
        )
        axes.plot(*_ellipse(result.models["own"], k), "-", color=color, lw=1)
    for kind in KINDS:
        color, dash, _ = _LOOKS[kind]
        axes.contour(
            *result.axes, result.log_odds[kind], levels=[0.0], colors=[color], linestyles=[dash],
            linewidths=2,
        )  # fmt: skip
        axes.plot([], [], dash, color=color, label=f"border: {kind}")
    axes.set(
        xlabel=FEATURES[0], ylabel=FEATURES[1], title="Three borders, and each class's two sigma"
    )
    axes.legend(fontsize=7)


def _ellipse(model: gaussian.Gaussian, k: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = 2 * np.stack([np.cos(angle), np.sin(angle)])
    return np.asarray(model.means)[k][:, None] + np.asarray(model.factor)[k] @ circle


def _draw_draws(axes, result: Result) -> None:
    x, y = (np.asarray(part) for part in result.drawn)
    for k, (name, color, marker) in enumerate(_CLASSES):
        axes.plot(
            *x[y == k].T, marker, color=color, ms=3, alpha=0.45, label=f"drawn, {name}", mfc="none"
        )
        axes.plot(*_ellipse(result.models["own"], k), "-", color=color, lw=1)
    axes.axhline(0, color=figures.GREY, linestyle=":", label="no tumour is below")
    axes.set(xlabel=FEATURES[0], ylabel=FEATURES[1], title="What the model takes them for")
    axes.legend(fontsize=7)


def _draw_curves(axes, result: Result) -> None:
    for m, method in enumerate(METHODS):
        color, dash, marker = _LOOKS[method]
        axes.errorbar(
            result.sizes, 100 * result.held_out_error[m], 200 * result.standard_error[m],
            color=color, linestyle=dash, marker=marker, ms=4, label=method, capsize=2,
        )  # fmt: skip
    axes.set(
        xscale="log",
        xlabel="training rows",
        ylabel="held-out error (%)",
        title="Few rows and many (bars: two standard errors)",
    )
    axes.set_xticks(result.sizes, [str(size) for size in result.sizes])
    axes.minorticks_off()
    axes.legend(fontsize=7)


def _draw_gap(axes, result: Result) -> None:
    for method in ("shared", "own", "logistic"):
        m = METHODS.index(method)
        color, dash, marker = _LOOKS[method]
        axes.plot(
            result.sizes, result.held_out_loss[m], color=color, linestyle=dash, marker=marker, ms=4,
            label=f"{method}, held out",
        )  # fmt: skip
        axes.plot(
            result.sizes, result.train_loss[m], color=color, linestyle=dash, marker=marker, ms=4,
            mfc="none", alpha=0.55, label=f"{method}, training",
        )  # fmt: skip
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="training rows",
        ylabel="log-loss (nats)",
        title="Over-fitting is the gap",
    )
    axes.set_xticks(result.sizes, [str(size) for size in result.sizes])
    axes.minorticks_off()
    axes.legend(fontsize=7)


def _percent(share: float, error: float) -> str:
    return f"{100 * share:.1f} ±{100 * error:.1f}" if np.isfinite(share) else "-"


def _digits(value: float) -> float:
    return float(f"{value:.3g}")
