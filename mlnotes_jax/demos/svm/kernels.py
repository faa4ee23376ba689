"""XOR under three kernels; the spectra of five Gram matrices, one with negative eigenvalues.

Four clouds of points carry the labels of XOR: the same in opposite corners. A support vector
machine is fitted with each of three kernels, and asked about points that it has not seen. Then the
Gram matrices of real cell nuclei are taken apart: a kernel has no negative eigenvalue beyond
rounding, and the sigmoid function has many. Last, random Fourier features replace the Gaussian
kernel, and their error falls as one over the root of their number.
"""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.svm import classifier, kernels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Fourier",
    "Machine",
    "Problem",
    "Result",
    "Spectrum",
    "plot",
    "problem",
    "run",
    "tables",
]

_CORNERS = ((1, 1), (-1, -1), (1, -1), (-1, 1))
_LIMIT = 2.2  # of the pictures of XOR, in either direction

_gram = jax.jit(kernels.gram)


class Problem(NamedTuple):
    """Points of XOR, and real ones.

    Attributes:
        x: Four clouds, shape `(n, 2)`.
        y: +1 where both coordinates of the cloud's centre have one sign, else -1, shape `(n,)`.
        nuclei: Standardised measurements of cell nuclei, shape `(m, 30)`.
        source: Of the nuclei.
    """

    x: Float[Array, "n 2"]
    y: Float[Array, " n"]
    nuclei: Float[Array, "m 30"]
    source: datasets.Source


class Machine(NamedTuple):
    """A decision function and what it is worth.

    Attributes:
        name: Of the kernel.
        values: On a square grid, rows are `y`, shape `(g, g)`.
        accuracy: On points that were not fitted.
        num_support: How many of the fitted points are support vectors.
    """

    name: str
    values: Float[Array, "g g"]
    accuracy: Float[Array, ""]
    num_support: Int[Array, ""]


class Spectrum(NamedTuple):
    """Eigenvalues of a Gram matrix.

    Attributes:
        name: Of the kernel.
        eigenvalues: Largest first, divided by the largest absolute one, shape `(m,)`.
        verdict: Whether the matrix is positive semidefinite up to rounding.
    """

    name: str
    eigenvalues: Float[np.ndarray, " m"]
    verdict: bool


class Fourier(NamedTuple):
    """Random Fourier features against the kernel that they estimate.

    Attributes:
        sizes: Numbers of features, shape `(s,)`.
        error: Root mean square over pairs of nuclei and over draws, shape `(s,)`.
        expected: The same from the formula, shape `(s,)`.
    """

    sizes: tuple[int, ...]
    error: Float[Array, " s"]
    expected: Float[Array, " s"]


class Result(NamedTuple):
    """What `run` returns.

    Attributes:
        source: The nuclei.
        x: The fitted points of XOR, shape `(n, 2)`.
        y: Their labels, +1 and -1, shape `(n,)`.
        machines: One for each kernel.
        spectra: One for each kernel, and the sigmoid function.
        fourier: Errors of random Fourier features.
    """

    source: datasets.Source
    x: Float[Array, "n 2"]
    y: Float[Array, " n"]
    machines: list[Machine]
    spectra: list[Spectrum]
    fourier: Fourier


def problem(
    key: Key[Array, ""], *, num_points: int = 240, spread: float = 0.4, rows: int = 300
) -> Problem:
    """Draw the clouds of XOR and load the nuclei.

    Args:
        key: Draws the clouds.
        num_points: How many points of XOR.
        spread: Standard deviation of a cloud; the centres are 2 apart.
        rows: How many nuclei.

    Returns:
        Points, labels, nuclei and their source.
    """
    data = datasets.load("breast_cancer")
    centres = jnp.asarray(np.resize(_CORNERS, (num_points, 2)), jnp.float32)
    x = centres + spread * jax.random.normal(key, centres.shape)
    nuclei = ((data.x - data.x.mean(axis=0)) / data.x.std(axis=0))[:rows]
    return Problem(x, centres.prod(axis=1), jnp.asarray(nuclei), data.source)


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    gamma: float = 1.0,
    degree: int = 2,
    spread: float = 0.4,
    num_draws: int = 16,
) -> Result:
    """Fit XOR with three kernels, compute spectra, measure random features.

    Args:
        key: Draws points and frequencies.
        quick: Fewer nuclei and fewer draws.
        gamma: Of the Gaussian kernel on XOR.
        degree: Of the polynomial kernel on XOR; it has no offset.
        spread: Standard deviation of the clouds of XOR.
        num_draws: Independent sets of random Fourier features.

    Returns:
        Decision values, eigenvalues and errors.
    """
    rows, num_draws = (150, min(num_draws, 4)) if quick else (300, num_draws)
    sizes = (16, 64, 256, 1024) if quick else (16, 64, 256, 1024, 4096)
    data_key, fourier_key = jax.random.split(key)
    data = problem(data_key, spread=spread, rows=rows)
    half = len(data.x) // 2
    fitted, unseen = (data.x[:half], data.y[:half]), (data.x[half:], data.y[half:])
    chosen = {
        "linear": kernels.linear(),
        f"polynomial, degree {degree}": kernels.polynomial(degree),
        f"Gaussian, gamma {gamma:g}": kernels.gaussian(gamma),
    }
    keys = jax.random.split(fourier_key, num_draws)
    parts = {
        "XOR": lambda: [_machine(name, k, fitted, unseen) for name, k in chosen.items()],
        "spectra": lambda: _spectra(data.nuclei),
        "random features": lambda: Fourier(sizes, *_fourier(keys, data.nuclei, sizes=sizes)),
    }
    done = [jax.block_until_ready(parts[name]()) for name in progress.track([*parts], "computing")]
    return Result(data.source, *fitted, *done)


def _measured() -> dict[str, kernels.Kernel]:
    """Four kernels and the sigmoid function, each with a gamma that fits standardised data."""
    return {
        "linear": kernels.linear(),
        "polynomial": kernels.polynomial(3, gamma="scale", offset=1.0),
        "Gaussian": kernels.gaussian("scale"),
        "Laplacian": kernels.laplacian("scale"),
        "sigmoid": kernels.sigmoid("scale", offset=-1.0),
    }


def _grid() -> Array:
    line = jnp.linspace(-_LIMIT, _LIMIT, 81)
    return jnp.stack(jnp.meshgrid(line, line), axis=-1)


@jax.jit
def _decide(own: Array, y: Array, rows: Array) -> tuple[Array, Array]:
    """Decision values and the number of support vectors; from Gram matrices, for any kernel."""
    model = classifier.fit(own, (y > 0).astype(int), kernel="precomputed", num_classes=2)
    return classifier.decision_function(model, rows), model.support.sum()


def _machine(name: str, k: kernels.Kernel, fitted: tuple, unseen: tuple) -> Machine:
    grid = _grid()
    at = jnp.concatenate([grid.reshape(-1, 2), unseen[0]])
    x, y = fitted
    values, count = _decide(_gram(k, x), y, _gram(k, at, x))
    values, held_out = values[: -len(unseen[0])], values[-len(unseen[0]) :]
    right = (held_out > 0) == (unseen[1] > 0)
    return Machine(name, values.reshape(grid.shape[:2]), right.mean(), count)


@jax.jit
def _grams(ks: dict[str, kernels.Kernel], x: Array) -> dict[str, Array]:
    return {name: kernels.gram(kernels.resolve(k, x), x) for name, k in ks.items()}


def _spectra(x: Array) -> list[Spectrum]:
    found = []
    verdict = jax.jit(kernels.is_positive_semidefinite)
    matrices = _grams(_measured(), x)
    for name in _measured():  # a program gives its dictionaries back in another order
        values = np.linalg.eigvalsh(np.asarray(matrices[name], float))[::-1]
        found.append(Spectrum(name, values / np.abs(values).max(), bool(verdict(matrices[name]))))
    return found


@functools.partial(jax.jit, static_argnames="sizes")
def _fourier(keys: Array, x: Array, *, sizes: tuple[int, ...]) -> tuple[Array, Array]:
    """Root mean square errors, measured and expected, for each number of features."""
    k: Any = kernels.resolve(kernels.gaussian("scale"), x)
    exact = kernels.gram(k, x)
    pairs = 1 - jnp.eye(len(x))

    def mean(square: Array) -> Array:
        return jnp.sum(pairs * square) / jnp.sum(pairs)

    def errors(key: Array) -> Array:
        # The first frequencies of a large map are a small map.
        phi = kernels.random_fourier_features(key, max(sizes), x.shape[1], gamma=k.gamma)
        maps = [kernels.FourierFeatures(phi.frequencies[:, : size // 2]) for size in sizes]
        estimates = [kernels.gram(kernels.linear(), one(x)) for one in maps]
        return jnp.stack([mean(jnp.square(estimate - exact)) for estimate in estimates])

    measured = jax.lax.map(errors, keys).mean(axis=0)
    expected = [mean(jnp.square(1 - exact**2)) / size for size in sizes]
    return jnp.sqrt(measured), jnp.sqrt(jnp.stack(expected))


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture.

    Args:
        result: What `run` returned.

    Returns:
        Title -> rows.
    """
    return {
        "XOR, on points that were not fitted": [
            {
                "kernel": machine.name,
                "accuracy": f"{float(machine.accuracy):.1%}",
                "support vectors": f"{int(machine.num_support)} of {len(result.x)}",
            }
            for machine in result.machines
        ],
        "Eigenvalues of the Gram matrix of cell nuclei, the largest in size being 1": [
            {
                "kernel": name,
                "smallest": float(f"{values[-1]:.1g}"),
                "below -1e-4": int((values < -1e-4).sum()),
                "above 1e-4": int((values > 1e-4).sum()),
                "PSD": verdict,
            }
            for name, values, verdict in result.spectra
        ],
        "Random Fourier features: error of an entry (root mean square)": [
            {"features": size, "measured": float(error), "from the formula": float(expected)}
            for size, error, expected in zip(*result.fourier, strict=True)
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw XOR under three kernels, the kernels' shapes, their spectra, and the random features.

    Args:
        result: What `run` returned.

    Returns:
        A figure of six panels.
    """
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(2, 3, figsize=(10, 6.6))
        for one, machine in zip(axes[0], result.machines, strict=True):
            _draw_machine(one, result, machine)
        _draw_shapes(axes[1, 0])
        _draw_spectra(axes[1, 1], result.spectra)
        _draw_fourier(axes[1, 2], result.fourier)
        figure.suptitle("Kernels: XOR, shapes, spectra, random features")
    return figure


def _draw_machine(axes: "Axes", result: Result, machine: Machine) -> None:
    line = np.linspace(-_LIMIT, _LIMIT, len(machine.values))
    values = np.asarray(machine.values)
    top = max(float(np.abs(values).max()), 1e-6)
    axes.contourf(
        line, line, values, [-top, 0, top], colors=[figures.VERMILLION, figures.BLUE], alpha=0.18
    )
    levels = [-1, -0.5, 0, 0.5, 1]
    contours = axes.contour(line, line, values, levels, colors=figures.GREY, linewidths=1)
    axes.clabel(contours, fontsize=7, fmt="%g")
    x, y = np.asarray(result.x), np.asarray(result.y)
    for sign, color, mark in ((1, figures.BLUE, "o"), (-1, figures.VERMILLION, "s")):
        axes.plot(*x[y == sign].T, mark, color=color, markersize=3)
    axes.set(
        xlabel="$x_1$",
        ylabel="$x_2$",
        aspect="equal",
        title=f"{machine.name}: {float(machine.accuracy):.0%}",
    )
    axes.grid(False)


def _draw_shapes(axes: "Axes") -> None:
    z = np.linspace(-2.5, 2.5, 301, dtype=np.float32)
    for label, k in {
        "linear": kernels.linear(),
        "$(xz + 1)^2$": kernels.polynomial(2, offset=1.0),
        "Gaussian": kernels.gaussian(1.0),
        "Laplacian": kernels.laplacian(1.0),
        "$\\tanh(xz - 1)$": kernels.sigmoid(1.0, offset=-1.0),
    }.items():
        axes.plot(z, np.asarray(kernels.gram(k, np.ones((1, 1), np.float32), z[:, None]))[0])
        axes.lines[-1].set_label(label)
    axes.set(ylim=(-1.6, 2.6), xlabel="$z$", ylabel="$k(1, z)$", title="Shapes, seen from $x = 1$")
    axes.legend(fontsize=7, loc="lower right")


def _draw_spectra(axes: "Axes", spectra: list[Spectrum]) -> None:
    for spectrum, color in zip(spectra, figures.COLORS, strict=False):
        sizes = np.abs(spectrum.eigenvalues)
        order = np.argsort(-sizes)
        sizes, signs = sizes[order], np.sign(spectrum.eigenvalues[order])
        seen = sizes > 1e-6
        rank = np.arange(1, len(sizes) + 1)
        axes.loglog(rank[seen], sizes[seen], color=color, lw=1.2, label=spectrum.name)
        below = (sizes > 1e-4) & (signs < 0)
        axes.plot(rank[below], sizes[below], "x", color=color, ms=6, mew=1.6)
    axes.plot([], [], "x", color=figures.GREY, ms=6, mew=1.6, label="negative")
    axes.set(
        xlabel="rank", ylabel="|eigenvalue| / largest", ylim=(1e-6, 2), title="Spectra on real data"
    )
    axes.legend(fontsize=7, loc="lower left")


def _draw_fourier(axes: "Axes", fourier: Fourier) -> None:
    axes.loglog(fourier.sizes, np.asarray(fourier.error), "o-", label="measured")
    axes.loglog(fourier.sizes, np.asarray(fourier.expected), "--", label="formula")
    axes.set(
        xlabel="features $D$",
        ylabel="error of an entry (rms)",
        title="Random Fourier features: $1/\\sqrt{D}$",
    )
    axes.legend(fontsize="small")
