"""What C and gamma do to a border, and a fit with its certificate.

Tumours of the breast, malignant or benign, from measurements of cell nuclei. On two of the
measurements the border is drawn while C and gamma grow, and scores become probabilities. On all
thirty a grid of both is scored by cross-validation, and the best machine is fitted and certified.
Then digits: several classes from machines for two.
"""

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.data import datasets, scaling
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.svm import classifier, kernels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Problem", "Result", "Several", "Sweep", "plot", "problem", "run", "tables"]

COLUMNS = ("mean radius", "mean texture")
C_SWEEP = (0.1, 1.0, 100.0)
GAMMA_SWEEP = (0.1, 1.0, 30.0)


class Problem(NamedTuple):
    """Rows for training and for judging, standardised by the training rows."""

    x_train: Float[Array, "n d"]
    y_train: Int[Array, " n"]
    x_test: Float[Array, "m d"]
    y_test: Int[Array, " m"]
    columns: tuple[int, int]
    class_names: tuple[str, ...]
    source: datasets.Source


class Sweep(NamedTuple):
    """Machines on two features, one after the other.

    Attributes:
        C: Cost, shape `(s,)`.
        gamma: Of the Gaussian kernel, shape `(s,)`.
        street: Width $2 / ‖w‖$ in feature space, shape `(s,)`.
        num_free: Support vectors on the edge, shape `(s,)`.
        num_bound: Support vectors that cost all they can, shape `(s,)`.
        gap: Duality gap divided by the primal objective, shape `(s,)`.
        train_error: Share of errors on training rows, shape `(s,)`.
        test_error: The same on the other rows, shape `(s,)`.
        support: Which training rows are support vectors, shape `(s, n)`.
        scores: Decision values on the grid of the picture, shape `(s, k, k)`.
    """

    C: Float[Array, " s"]
    gamma: Float[Array, " s"]
    street: Float[Array, " s"]
    num_free: Int[Array, " s"]
    num_bound: Int[Array, " s"]
    gap: Float[Array, " s"]
    train_error: Float[Array, " s"]
    test_error: Float[Array, " s"]
    support: Array
    scores: Float[Array, "s k k"]


class Several(NamedTuple):
    """One way to tell more than two classes apart.

    Attributes:
        way: `"one_vs_one"` or `"one_vs_rest"`.
        num_machines: How many machines for two classes.
        num_support: Rows that support at least one of them.
        violation: The largest of their KKT violations.
        converged: Whether all machines converged.
        test_error: Share of errors on rows that were not fitted.
    """

    way: str
    num_machines: int
    num_support: int
    violation: float
    converged: bool
    test_error: float


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        points: Two features of the training rows, standardised, shape `(n, 2)`.
        y: Their classes, shape `(n,)`.
        class_names: One for each class.
        axis: Both axes of the picture's grid.
        sweep: Machines on two features: `C_SWEEP`, then `GAMMA_SWEEP`.
        grid_C: Costs of the grid, shape `(a,)`.
        grid_gamma: Gammas of the grid, shape `(b,)`.
        num_features: How many features the grid and the best machine see.
        grid_score: Accuracy in cross-validation, shape `(a, b)`.
        best_C: Cost with the best score.
        best_gamma: Gamma with the best score.
        certificate: Of the machine with both, on all training rows.
        violation: Its largest KKT violation.
        converged: Whether that is within the tolerance.
        gap_bound: The violation times all costs: the gap cannot be above.
        test_error: Its share of errors on the other rows.
        log_loss: On the other rows, of probabilities from two features.
        log_loss_prior: The same for the share of each class, without looking at a row.
        reliability: For bins of the probability of class 1, of rows by machines that did not see
            them: mean prediction, share of class 1, rows; shape `(bins, 3)`.
        several_source: The data with more classes; None in a quick run.
        several: One-vs-one and one-vs-rest on them; empty in a quick run.
    """

    source: datasets.Source
    points: Float[np.ndarray, "n 2"]
    y: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]
    axis: np.ndarray
    sweep: Sweep
    grid_C: Float[np.ndarray, " a"]
    grid_gamma: Float[np.ndarray, " b"]
    num_features: int
    grid_score: Float[np.ndarray, "a b"]
    best_C: float
    best_gamma: float
    certificate: classifier.Certificate
    violation: float
    converged: bool
    gap_bound: float
    test_error: float
    log_loss: float
    log_loss_prior: float
    reliability: Float[np.ndarray, "bins 3"]
    several_source: datasets.Source | None
    several: tuple[Several, ...]


def problem(key: Key[Array, ""], *, name: str = "breast_cancer") -> Problem:
    """Load a bundled set, divide it, and standardise it by its training rows.

    Args:
        key: Draws the division, seven rows to three, by class.
        name: Which of the bundled sets.

    Returns:
        Training and other rows, and where the two features of the picture are.
    """
    data = datasets.load(name)
    train, test = datasets.split(key, data.y, (0.7, 0.3))
    scale = scaling.fit_standard(data.x[train])
    names = data.feature_names
    shown = COLUMNS if name == "breast_cancer" else names[:2]
    return Problem(
        x_train=scaling.apply(scale, data.x[train]),
        y_train=jnp.asarray(data.y[train]),
        x_test=scaling.apply(scale, data.x[test]),
        y_test=jnp.asarray(data.y[test]),
        columns=(names.index(shown[0]), names.index(shown[1])),
        class_names=data.class_names,
        source=data.source,
    )


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    grid_size: int = 7,
    num_folds: int = 5,
    resolution: int = 101,
) -> Result:
    """Sweep C and gamma, search both, and certify and calibrate the best machine.

    Args:
        key: For the division of the rows, and for the folds.
        quick: A smaller grid, on two features; fewer folds, a coarser picture, no digits.
        grid_size: Values of C and of gamma in the grid.
        num_folds: Folds of cross-validation and of calibration.
        resolution: Points along each side of the picture.

    Returns:
        Sweeps, scores, the certificate, and what several classes need.
    """
    if quick:
        grid_size, num_folds, resolution = min(grid_size, 3), min(num_folds, 3), min(resolution, 51)
    split_key, fold_key, several_key = jax.random.split(key, 3)
    data = problem(split_key)
    n = len(data.y_train)

    # Two features: C grows, then gamma.
    columns = np.array(data.columns)
    points, judged = data.x_train[:, columns], data.x_test[:, columns]
    axis = np.linspace(-2.6, 3.6, resolution, dtype=np.float32)
    mesh = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2))
    settings = [(C, 1.0) for C in C_SWEEP] + [(1.0, gamma) for gamma in GAMMA_SWEEP]
    rows = []
    for C, gamma in progress.track(settings, "drawing borders"):
        rows.append(_draw(points, data.y_train, judged, data.y_test, mesh, C, gamma))
    sweep = Sweep(*(jnp.stack(field) for field in zip(*rows, strict=True)))
    sweep = sweep._replace(scores=sweep.scores.reshape(-1, resolution, resolution))

    # Scores of the middle machine become probabilities.
    fit = functools.partial(
        classifier.fit, kernel=kernels.gaussian(GAMMA_SWEEP[0]), C=1.0, num_classes=2
    )
    calibrated = classifier.calibrate(fold_key, points, data.y_train, fit=fit, num_folds=num_folds)
    p_test = np.asarray(classifier.predict_proba(calibrated, judged))[:, 1]
    slope, offset = float(calibrated.sigmoid.slope[0]), float(calibrated.sigmoid.offset[0])
    p_folds = 1 / (1 + np.exp(-slope * np.asarray(calibrated.scores[:, 0]) - offset))
    truth = np.asarray(data.y_test)
    prior = float(jnp.mean(data.y_train == 1))

    # A grid of both, by cross-validation.
    x, x_test = (points, judged) if quick else (data.x_train, data.x_test)
    grid_C = np.logspace(-1, 2, grid_size).astype(np.float32)
    grid_gamma = np.logspace(-3, 0, grid_size).astype(np.float32)
    # Rows of the two parts are in random order: folds may be dealt out in turn.
    score = np.asarray(
        classifier.grid(x, data.y_train, C=grid_C, gamma=grid_gamma, folds=num_folds).scores
    ).mean(axis=-1)
    # The first of equals: the smallest C, then the smallest gamma.
    best = np.unravel_index(score.argmax(), score.shape)
    best_C, best_gamma = float(grid_C[best[0]]), float(grid_gamma[best[1]])
    model = classifier.fit(
        x, data.y_train, kernel=kernels.gaussian(best_gamma), C=best_C, num_classes=2
    )
    proof = classifier.certificate(model, x, data.y_train)
    predicted = classifier.predict(model, x_test)

    several_source, several = None, ()
    if not quick:
        digits = problem(several_key, name="digits")
        ways: tuple[classifier.Multiclass, ...] = ("one_vs_one", "one_vs_rest")
        several_source = digits.source
        several = tuple(_tell_apart(digits, w) for w in progress.track(ways, "several classes"))
    return Result(
        source=data.source,
        points=np.asarray(points),
        y=np.asarray(data.y_train),
        class_names=data.class_names,
        axis=axis,
        sweep=sweep,
        grid_C=grid_C,
        grid_gamma=grid_gamma,
        num_features=x.shape[1],
        grid_score=score,
        best_C=best_C,
        best_gamma=best_gamma,
        certificate=proof,
        violation=float(model.violation[0]),
        converged=bool(model.converged[0]),
        gap_bound=float(model.violation[0]) * best_C * n,
        test_error=float(jnp.mean(predicted != data.y_test)),
        log_loss=_log_loss(p_test, truth),
        log_loss_prior=_log_loss(np.full_like(p_test, prior), truth),
        reliability=_reliability(p_folds, np.asarray(data.y_train)),
        several_source=several_source,
        several=several,
    )


def _draw(
    x: Array, y: Array, judged: Array, truth: Array, mesh: Array, C: float, gamma: float
) -> tuple[Array, ...]:
    """One machine on two features: the fields of `Sweep`."""
    model = classifier.fit(x, y, kernel=kernels.gaussian(gamma), C=C, num_classes=2)
    proof = classifier.certificate(model, x, y)
    return _summary(model, proof, x, y, judged, truth, mesh, C, gamma)


@jax.jit
def _summary(
    model: classifier.SVC,
    proof: classifier.Certificate,
    x: Array,
    y: Array,
    judged: Array,
    truth: Array,
    mesh: Array,
    C: float,
    gamma: float,
) -> tuple[Array, ...]:
    beta = model.dual_coef[0]
    # beta' K beta from scores: sum_i beta_i (f(x_i) - b), and the duals add up to 0.
    norm = jnp.sqrt(beta @ classifier.decision_function(model, x))
    return (
        jnp.asarray(C),
        jnp.asarray(gamma),
        2 / norm,
        proof.num_free[0],
        proof.num_bound[0],
        proof.gap[0] / proof.primal[0],
        jnp.mean(classifier.predict(model, x) != y),
        jnp.mean(classifier.predict(model, judged) != truth),
        model.support,
        classifier.decision_function(model, mesh),
    )


def _tell_apart(data: Problem, way: classifier.Multiclass) -> Several:
    k = len(data.class_names)
    model = classifier.fit(
        data.x_train,
        data.y_train,
        kernel=kernels.gaussian("scale"),
        C=10.0,
        num_classes=k,
        multiclass=way,
    )
    return Several(
        way=way,
        num_machines=len(model.intercept),
        num_support=int(model.support.sum()),
        violation=float(model.violation.max()),
        converged=bool(model.converged.all()),
        test_error=float(jnp.mean(classifier.predict(model, data.x_test) != data.y_test)),
    )


def _log_loss(p: np.ndarray, truth: np.ndarray) -> float:
    return float(-np.mean(np.log(np.where(truth == 1, p, 1 - p))))


def _reliability(p: np.ndarray, truth: np.ndarray, num_bins: int = 5) -> np.ndarray:
    bins = np.minimum((p * num_bins).astype(int), num_bins - 1)
    return np.array(
        [(p[bins == b].mean(), truth[bins == b].mean(), (bins == b).sum())
         for b in range(num_bins) if (bins == b).any()]
    )  # fmt: skip


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    sweep, proof = result.sweep, result.certificate
    rows = [
        {
            "C": float(sweep.C[i]),
            "gamma": float(sweep.gamma[i]),
            "street": round(float(sweep.street[i]), 3),
            "free": int(sweep.num_free[i]),
            "bound": int(sweep.num_bound[i]),
            "train error": f"{float(sweep.train_error[i]):.1%}",
            "test error": f"{float(sweep.test_error[i]):.1%}",
            "gap / primal": f"{float(sweep.gap[i]):.0e}",
        }
        for i in range(len(sweep.C))
    ]
    features = f"{result.num_features} features"
    best = f"C = {result.best_C:.3g}, gamma = {result.best_gamma:.3g}"
    return {
        "C grows (two features)": rows[: len(C_SWEEP)],
        "gamma grows (two features)": rows[len(C_SWEEP) :],
        f"The best machine on {features}, {best}": [
            {
                "primal": round(float(proof.primal[0]), 4),
                "gap": f"{float(proof.gap[0]):.0e}",
                "violation": f"{result.violation:.0e}",
                "converged": result.converged,
                "free": int(proof.num_free[0]),
                "bound": int(proof.num_bound[0]),
            }
        ],
        "On rows it has not seen": [
            {
                "accuracy in cross-validation": f"{result.grid_score.max():.1%}",
                "test error": f"{result.test_error:.1%}",
            }
        ],
        "Probabilities from two features": [
            {
                "log-loss": round(result.log_loss, 4),
                "log-loss of the prior": round(result.log_loss_prior, 4),
            }
        ],
    } | _several_table(result)


def _several_table(result: Result) -> dict[str, list[dict[str, object]]]:
    if result.several_source is None:
        return {}
    return {
        f"Several classes: {result.several_source.name}": [
            {
                "way": row.way.replace("_", "-"),
                "machines": row.num_machines,
                "support": row.num_support,
                "violation": f"{row.violation:.0e}",
                "converged": row.converged,
                "test error": f"{row.test_error:.1%}",
            }
            for row in result.several
        ]
    }


def plot(result: Result) -> "Figure":
    """Draw borders for growing C and gamma, the scores of the grid, and the probabilities."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, panels = plt.subplots(2, 4, figsize=(10, 5.4))
        for i, axes in enumerate(panels[:, :3].ravel()):
            _border(axes, result, i)
        for row in panels[:, 0]:
            row.set_ylabel(COLUMNS[1])
        for axes in panels[1, :3]:
            axes.set_xlabel(COLUMNS[0])
        _scores(figure, panels[0, 3], result)

        axes = panels[1, 3]
        p, share, _ = result.reliability.T
        axes.plot([0, 1], [0, 1], color=figures.GREY, linestyle=":")
        axes.plot(p, share, "o-", color=figures.BLUE)
        axes.set(xlabel="predicted probability", ylabel="share", title="Probabilities, 2 features")
        axes.set_box_aspect(1)
    return figure


def _border(axes: "Axes", result: Result, i: int) -> None:
    sweep = result.sweep
    scores = np.asarray(sweep.scores[i])
    axes.contourf(
        result.axis, result.axis, scores, levels=[-np.inf, 0, np.inf],
        colors=[figures.VERMILLION, figures.BLUE], alpha=0.15,
    )  # fmt: skip
    axes.contour(
        result.axis, result.axis, scores, levels=[-1, 0, 1], colors=figures.GREY,
        linestyles=["--", "-", "--"], linewidths=[1, 1.8, 1],
    )  # fmt: skip
    support = np.asarray(sweep.support[i])
    for label, marker, color in ((0, "s", figures.VERMILLION), (1, "o", figures.BLUE)):
        mine = result.y == label
        axes.plot(
            *result.points[mine & ~support].T, marker, color=color, markersize=2, alpha=0.5,
            linestyle="",
        )  # fmt: skip
        axes.plot(
            *result.points[mine & support].T, marker, color=color, markersize=4.5,
            markerfacecolor="none", linestyle="",
        )  # fmt: skip
    axes.grid(visible=False)
    axes.set(
        title=f"C = {float(sweep.C[i]):g}, γ = {float(sweep.gamma[i]):g}",
        xlim=(-2.4, 3.4), ylim=(-2.4, 3.4),
    )  # fmt: skip
    axes.set_box_aspect(1)


def _scores(figure: "Figure", axes: "Axes", result: Result) -> None:
    edges = [_edges(values) for values in (result.grid_gamma, result.grid_C)]
    mesh = axes.pcolormesh(*edges, result.grid_score)
    figure.colorbar(mesh, ax=axes, shrink=0.8)
    axes.plot(
        result.best_gamma, result.best_C, "*", color="white", markersize=12,
        markeredgecolor="black",
    )  # fmt: skip
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="γ",
        ylabel="C",
        title=f"Accuracy, {result.num_features} features",
    )
    axes.grid(visible=False)
    axes.set_box_aspect(1)


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of cells around points of a logarithmic grid."""
    ratio = np.sqrt(values[1] / values[0])
    return np.append(values / ratio, values[-1] * ratio)
