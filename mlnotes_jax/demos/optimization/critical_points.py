"""A saddle and its two ways down; both ends of a network's Hessian; how rare minima are.

Three parts. The toy network $y = w_1 w_2 x$ on the single point (1, 1) has a saddle at the origin:
its error surface is drawn with the escape to either side. A network with more than 100 000
parameters is trained on handwritten digits and stopped at a loss of 0.1 (at a loss of zero its
Hessian would have collapsed to nothing worth showing); both ends of the spectrum come from
Lanczos, with their residuals. Last, random Hessians and random functions are sampled to see which
share of critical points are minima as the dimension grows.
"""

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.optimization import critical_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Digits",
    "Network",
    "Rarity",
    "Result",
    "Toy",
    "network_loss",
    "plot",
    "problem",
    "run",
    "tables",
    "toy_loss",
    "train",
]

# Random functions and matrices are sampled in 1 to so many dimensions; waves of each function.
_DIMENSIONS = 6
_WAVES = 40

#: One weight matrix and one bias for each layer.
Parameters = list[tuple[Array, Array]]


class Digits(NamedTuple):
    """The pictures, and a network that knows nothing yet.

    Attributes:
        x: Pixels in [0, 1], shape `(n, 64)`.
        y: Classes 0..9, shape `(n,)`.
        params: Weights and biases of a tanh network with two hidden layers.
        source: Where the pictures come from.
    """

    x: Float[Array, "n 64"]
    y: Int[Array, " n"]
    params: Parameters
    source: datasets.Source


class Toy(NamedTuple):
    """The saddle of the toy network.

    Attributes:
        saddle: The second-order test at the origin.
        paths: Escape to either side, then descent, shape `(2, steps, 2)`.
        first: The two escape steps.
        plain: Descent from a point that first slides towards the saddle, shape `(steps, 2)`.
    """

    saddle: critical_points.CriticalPoint
    paths: Float[Array, "2 s 2"]
    first: critical_points.Escape
    plain: Float[Array, "s 2"]


class Network(NamedTuple):
    """The trained network and what its Hessian says.

    Attributes:
        num_parameters: How many weights and biases.
        num_updates: Steps of full-batch gradient descent until the target.
        loss: Mean cross-entropy reached, in nats.
        gradient_norm: There.
        kind: Index into `KINDS`: the strict verdict.
        ends: The outer eigenpairs; the vectors are dropped.
        escape: The step along the lowest eigenvector; its `params` are dropped.
        lengths: Lengths along that direction, shape `(t,)`.
        losses: The loss at each, shape `(t,)`.
        model: The Taylor model at each, shape `(t,)`.
        whole_step: The loss after a step by the whole unit eigenvector, downhill.
    """

    num_parameters: int
    num_updates: Int[Array, ""]
    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    kind: Int[Array, ""]
    ends: critical_points.SpectrumEnds
    escape: critical_points.Escape
    lengths: Float[Array, " t"]
    losses: Float[Array, " t"]
    model: Float[Array, " t"]
    whole_step: Float[Array, ""]


class Rarity(NamedTuple):
    """Share of minima for each dimension.

    Attributes:
        dimensions: d, shape `(k,)`.
        matrices: Share of positive definite ones among random symmetric matrices, shape `(k,)`.
        functions: Share of minima among critical points of random functions, shape `(k,)`.
        low_functions: The same, among the tenth with the lowest values, shape `(k,)`.
        found: How many critical points Newton's method found, shape `(k,)`.
        num_matrices: How many matrices were drawn for each dimension.
    """

    dimensions: Int[Array, " k"]
    matrices: Float[Array, " k"]
    functions: Float[Array, " k"]
    low_functions: Float[Array, " k"]
    found: Int[Array, " k"]
    num_matrices: int


class Result(NamedTuple):
    """What `run` returns.

    Attributes:
        source: The digits.
        toy: The toy network.
        network: The trained network.
        rarity: Minima against dimension.
    """

    source: datasets.Source
    toy: Toy
    network: Network
    rarity: Rarity


def toy_loss(w: Float[Array, "2"]) -> Float[Array, ""]:
    """Squared error of $y = w_1 w_2 x$ on the single point x = 1, y = 1."""
    return (1 - w[0] * w[1]) ** 2


def network_loss(params: Parameters, x: Float[Array, "n d"], y: Int[Array, " n"]) -> Array:
    """Mean cross-entropy of a tanh network: smooth, so the Hessian exists everywhere."""
    for weight, bias in params[:-1]:
        x = jnp.tanh(x @ weight + bias[None])
    weight, bias = params[-1]
    log_probabilities = jax.nn.log_softmax(x @ weight + bias[None])
    return -jnp.take_along_axis(log_probabilities, y[:, None], axis=1).mean()


def problem(
    key: Key[Array, ""], *, widths: tuple[int, int] = (256, 320), rows: int | None = None
) -> Digits:
    """Load the digits and draw a network's first weights.

    Args:
        key: Draws the weights.
        widths: Units in the two hidden layers; the default makes 102 090 parameters.
        rows: How many pictures; all 1797 by default.

    Returns:
        Pictures, classes, parameters and the source.
    """
    data = datasets.load("digits")
    sizes = (data.x.shape[1], *widths, len(data.class_names))
    params = [
        (jax.random.normal(k, (m, n)) / np.sqrt(m), jnp.zeros(n))
        for k, m, n in zip(jax.random.split(key, 3), sizes, sizes[1:], strict=False)
    ]
    return Digits(jnp.asarray(data.x[:rows] / 16), jnp.asarray(data.y[:rows]), params, data.source)


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    target_loss: float = 0.1,
    num_pairs: int = 4,
    num_steps: int = 160,
    tol: float = 1e-4,
    num_matrices: int = 100_000,
    num_functions: int = 2000,
) -> Result:
    """Draw the saddle, look into a network's Hessian, and count minima.

    Args:
        key: Draws weights, Lanczos' start and the random functions.
        quick: A third of the pictures, fewer Lanczos steps and samples.
        target_loss: Where training stops, in nats.
        num_pairs: Eigenvalues wanted at each end of the spectrum.
        num_steps: Lanczos steps at most.
        tol: Lanczos stops at residuals below this, relative to the largest eigenvalue.
        num_matrices: Random matrices for each dimension.
        num_functions: Random functions for each dimension, one start of Newton's method each.

    Returns:
        Paths, spectrum and shares.
    """
    if quick:
        rows, num_steps = 600, min(num_steps, 64)
        num_matrices, num_functions = min(num_matrices, 4000), min(num_functions, 400)
    else:
        rows = None
    net_key, spectrum_key, rarity_key = jax.random.split(key, 3)
    digits = problem(net_key, rows=rows)
    parts = {
        "the toy's saddle": _toy,
        "the network": lambda: _network(
            spectrum_key, digits, target_loss, tol, num_pairs, num_steps
        ),
        "random functions": lambda: _rarity(rarity_key, num_matrices, num_functions),
    }
    done = [jax.block_until_ready(parts[name]()) for name in progress.track([*parts], "computing")]
    return Result(digits.source, *done)


@jax.jit
def _toy() -> Toy:
    origin = jnp.zeros(2)
    _, direction = critical_points.escape_direction(toy_loss, origin)
    sides = jnp.stack([direction, -direction])
    first = jax.vmap(lambda u: critical_points.escape(toy_loss, origin, u, step=0.5))(sides)

    def descend(start: Array) -> Array:
        def update(w: Array, _: None) -> tuple[Array, Array]:
            return w - 0.05 * jax.grad(toy_loss)(w), w

        return lax.scan(update, start, length=120)[1]

    paths = jax.vmap(descend)(first.params)
    paths = jnp.concatenate([jnp.zeros((2, 1, 2)), paths], axis=1)
    plain = descend(jnp.array([-1.4, 1.41]))
    return Toy(critical_points.classify(toy_loss, origin), paths, first, plain)


def _network(
    key: Array,
    digits: Digits,
    target: float,
    tol: float,
    num_pairs: int,
    num_steps: int,
) -> Network:
    params, updates = train(digits.params, digits.x, digits.y, target)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    measured = _look(
        key,
        params,
        digits.x,
        digits.y,
        tol,
        num_pairs=num_pairs,
        num_steps=num_steps,
    )
    return Network(size, updates, *measured)


@jax.jit
def train(params: Parameters, x: Array, y: Array, target: float) -> tuple[Parameters, Array]:
    """Descend with the whole batch until the loss is at most `target`, 500 updates at most.

    Args:
        params: Where to start.
        x: Pictures, shape `(n, 64)`.
        y: Classes, shape `(n,)`.
        target: Mean cross-entropy in nats.

    Returns:
        The parameters, and how many updates that took.
    """

    def update(carry: tuple) -> tuple:
        params, _, count = carry
        loss, gradient = jax.value_and_grad(network_loss)(params, x, y)
        # The loss belongs to the parameters before the update: keep those once it is low enough.
        rate = jnp.where(loss <= target, 0, 0.5)
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
        return params, loss, count + jnp.where(loss <= target, 0, 1)

    start = (params, jnp.array(jnp.inf), jnp.int32(0))
    params, _, count = lax.while_loop(
        lambda carry: (carry[1] > target) & (carry[2] < 500), update, start
    )
    return params, count


@functools.partial(jax.jit, static_argnames=("num_pairs", "num_steps"))
def _look(
    key: Array,
    params: Parameters,
    x: Array,
    y: Array,
    tol: float,
    *,
    num_pairs: int,
    num_steps: int,
) -> tuple:
    def loss(p: Parameters) -> Array:
        return network_loss(p, x, y)

    operator = critical_points.hessian_operator(loss, params)
    ends = critical_points.lanczos(
        key, operator, params, num_pairs=num_pairs, num_steps=num_steps, tol=tol
    )
    norm = critical_points.gradient_norm(loss, params)
    values = jnp.concatenate([ends.lowest.values, ends.highest.values])
    errors = jnp.concatenate([ends.lowest.residuals, ends.highest.residuals])
    verdict = critical_points.kind(norm, values, error=errors)

    lowest = jax.tree.map(lambda v: v[0], ends.lowest.vectors)
    escape = critical_points.escape(loss, params, lowest)
    side = jnp.where(escape.step < 0, -1, 1)
    direction = jax.tree.map(lambda u: side * u, lowest)
    here, slope = jax.jvp(loss, (params,), (direction,))

    def along(length: Array) -> Array:
        return loss(jax.tree.map(lambda p, u: p + length * u, params, direction))

    lengths = jnp.linspace(-0.6, 1.05, 34)
    losses = lax.map(along, lengths)
    model = here + slope * lengths + 0.5 * escape.curvature * lengths**2
    ends = ends._replace(
        lowest=ends.lowest._replace(vectors=None), highest=ends.highest._replace(vectors=None)
    )
    escape = escape._replace(params=None)
    whole = along(jnp.array(1.0))
    return here, norm, verdict, ends, escape, lengths, losses, model, whole


def _newton_point(waves: Array, phases: Array, start: Array, free: Array) -> tuple[Array, ...]:
    """Find a critical point, of any kind, of a random periodic function by Newton's method.

    All dimensions share one program: the coordinates that are not free sit in a bowl of curvature
    one, so they stay at zero and leave the verdict "minimum" to the others.
    """
    waves = jnp.where(free[None], waves, 0)

    def f(x: Array) -> Array:
        bowl = 0.5 * jnp.sum(jnp.where(free, 0, x) ** 2)
        return jnp.cos(waves @ x + phases).sum() / np.sqrt(_WAVES / 2) + bowl

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        point = carry[0]
        value, gradient = jax.value_and_grad(f)(point)
        curvature = critical_points.hessian(f, point)
        move = jnp.linalg.solve(curvature, gradient)
        move = move * jnp.minimum(1, 0.5 / jnp.linalg.norm(move))
        return (point - move, value, gradient, curvature), None

    start = jnp.where(free, start, 0)
    empty = (start, jnp.zeros(()), jnp.zeros_like(start), jnp.outer(start, start))
    # Value, gradient and Hessian belong to the last point but one: the same, once it has converged.
    (_, value, gradient, curvature), _ = lax.scan(step, empty, length=40)
    norm = jnp.linalg.norm(gradient)
    kind = critical_points.kind(norm, jnp.linalg.eigvalsh(curvature))
    found = kind != critical_points.KINDS.index("not critical")
    return found, kind == critical_points.KINDS.index("minimum"), value


def _is_definite(normals: Array, free: Array) -> Array:
    """Whether a symmetric Gaussian matrix (GOE: variance 2 on the diagonal, 1 off it) is."""
    inside = free[:, None] & free[None, :]
    symmetric = (normals + normals.T) / np.sqrt(2)
    matrix = jnp.where(inside, symmetric, jnp.eye(_DIMENSIONS))
    return critical_points.minimum_ratio(jnp.linalg.eigvalsh(matrix)) == 1


# These two run once, for a fraction of a second: less optimisation by the compiler is faster.
_QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0}


@functools.partial(jax.jit, static_argnames="num_matrices", compiler_options=_QUICK_TO_COMPILE)
def _definite_shares(key: Array, dimensions: Array, *, num_matrices: int) -> Array:
    def one_dimension(dimension: Array) -> Array:
        free = jnp.arange(_DIMENSIONS) < dimension
        shape = (num_matrices, _DIMENSIONS, _DIMENSIONS)
        normals = jax.random.normal(jax.random.fold_in(key, dimension), shape)
        return jax.vmap(_is_definite, in_axes=(0, None))(normals, free).mean()

    return lax.map(one_dimension, dimensions)


@functools.partial(jax.jit, static_argnames="num_functions", compiler_options=_QUICK_TO_COMPILE)
def _minimum_shares(key: Array, dimensions: Array, *, num_functions: int) -> tuple[Array, ...]:
    def one_dimension(dimension: Array) -> tuple[Array, ...]:
        free = jnp.arange(_DIMENSIONS) < dimension
        # One draw for all: a generator takes long to compile.
        shape = (num_functions, _WAVES + 1, _DIMENSIONS + 1)
        draws = jax.random.uniform(jax.random.fold_in(key, dimension), shape)
        waves = jnp.floor(5 * draws[:, 1:, 1:]) - 2  # whole numbers -2..2: f has period 2 pi
        phases, starts = 2 * np.pi * draws[:, 1:, 0], 2 * np.pi * draws[:, 0, 1:]
        found, minimum, value = jax.vmap(_newton_point, in_axes=(0, 0, 0, None))(
            waves, phases, starts, free
        )
        low = found & (value <= jnp.nanquantile(jnp.where(found, value, jnp.nan), 0.1))
        return minimum.sum() / found.sum(), (minimum & low).sum() / low.sum(), found.sum()

    return lax.map(one_dimension, dimensions)


def _rarity(key: Array, num_matrices: int, num_functions: int) -> Rarity:
    matrix_key, function_key = jax.random.split(key)
    dimensions = jnp.arange(1, _DIMENSIONS + 1)
    # One program after the other: with two batches of small factorisations side by side in one
    # program, jaxlib 0.10's CPU threads can wait for each other for ever.
    matrices = jax.block_until_ready(
        _definite_shares(matrix_key, dimensions, num_matrices=num_matrices)
    )
    functions, low_functions, found = _minimum_shares(
        function_key, dimensions, num_functions=num_functions
    )
    return Rarity(dimensions, matrices, functions, low_functions, found, num_matrices)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """Put the numbers into rows.

    Args:
        result: What `run` returned.

    Returns:
        Title to rows.
    """
    toy, net, rarity = result.toy, result.network, result.rarity
    kinds = critical_points.KINDS
    norm = max(abs(float(v)) for v in (net.ends.lowest.values[0], net.ends.highest.values[-1]))
    near = int((np.linalg.norm(toy.plain, axis=1) < 0.3).sum())
    ends = [
        {
            "end": name,
            "eigenvalue": _digits(value),
            "residual": _digits(residual),
            "residual / |eigenvalue|": _digits(residual / abs(value)),
            "residual / norm": _digits(residual / norm),
        }
        for name, pairs in (("lowest", net.ends.lowest), ("highest", net.ends.highest))
        for value, residual in zip(
            np.asarray(pairs.values), np.asarray(pairs.residuals), strict=True
        )
    ]
    lowest, highest = (float(v) for v in np.asarray(toy.saddle.eigenvalues))
    escape = net.escape
    return {
        "The toy network y = w1 w2 x at the origin": [
            {"quantity": "kind", "value": kinds[int(toy.saddle.kind)]},
            {"quantity": "eigenvalues", "value": f"{lowest:.4f}, {highest:.4f}"},
            {"quantity": "loss there", "value": 1.0},
            {"quantity": "loss after the escape step", "value": float(toy.first.value[0])},
            {
                "quantity": "loss at the end of the descent",
                "value": _digits(toy_loss(toy.paths[0, -1])),
            },
            {"quantity": "updates of plain descent within 0.3 of the saddle", "value": near},
        ],
        "The network on the digits": [
            {"quantity": "parameters", "value": net.num_parameters},
            {"quantity": "updates of gradient descent", "value": int(net.num_updates)},
            {"quantity": "loss (nats)", "value": round(float(net.loss), 6)},
            {"quantity": "gradient norm", "value": _digits(net.gradient_norm)},
            {"quantity": "kind, strictly", "value": kinds[int(net.kind)]},
            {"quantity": "Lanczos steps", "value": int(net.ends.num_steps)},
            {
                "quantity": "loss after a whole unit eigenvector",
                "value": round(float(net.whole_step), 6),
            },
            {"quantity": "escape: length found", "value": abs(float(escape.step))},
            {"quantity": "escape: loss", "value": round(float(escape.value), 6)},
            {"quantity": "escape: loss lowered by", "value": _digits(escape.decrease)},
        ],
        "Both ends of its Hessian's spectrum (norm: the largest |eigenvalue|)": ends,
        "Share of minima": [
            {
                "dimension": int(d),
                "random matrices": _digits(m),
                "bound 2^-d": 2.0 ** -int(d),
                "random functions": _digits(f),
                "their lowest tenth": _digits(low),
                "points found": int(n),
            }
            for d, m, f, low, n in np.stack(rarity[:5], axis=1)
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw the saddle, the spectrum, the escape and the share of minima.

    Args:
        result: What `run` returned.

    Returns:
        A figure of four panels.
    """
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(2, 2, figsize=(9, 8.2))
        _draw_surface(axes[0, 0], result.toy)
        _draw_spectrum(axes[0, 1], result.network)
        _draw_escape(axes[1, 0], result.network)
        _draw_rarity(axes[1, 1], result.rarity)
        figure.suptitle("Critical points: a saddle, a network's Hessian, and how rare minima are")
    return figure


def _draw_surface(axes, toy: Toy) -> None:
    grid = np.linspace(-1.75, 1.75, 141)
    w1, w2 = np.meshgrid(grid, grid)
    levels = [0.01, 0.1, 0.3, 0.6, 1.0, 1.6, 3, 6, 10]
    surface = (1 - w1 * w2) ** 2
    contours = axes.contour(w1, w2, surface, levels, colors=figures.GREY, linewidths=0.8)
    axes.clabel(contours, levels=[0.1, 0.6, 1.6, 6], fontsize=7, fmt="%g")
    valley = np.linspace(grid[-1] ** -1, grid[-1], 50)
    for side in (valley, -valley):
        label = "valley, loss 0" if side is valley else None
        axes.plot(side, 1 / side, "-.", color=figures.GREEN, label=label)
    for path, dash, label in zip(
        np.asarray(toy.paths), ("-", "--"), ("escape along $u$", "escape along $-u$"), strict=True
    ):
        axes.plot(*path.T, dash, color=figures.VERMILLION, marker="o", ms=3, label=label)
    axes.plot(
        *np.asarray(toy.plain).T, ":", color=figures.BLUE, marker="s", ms=2.5, label="plain descent"
    )
    axes.plot(0, 0, "X", color=figures.PURPLE, ms=10, label="saddle", linestyle="none")
    axes.grid(False)
    axes.set(
        xlabel="$w_1$", ylabel="$w_2$", aspect="equal", title="Error surface $(1 - w_1 w_2)^2$"
    )
    axes.legend(loc="lower right", fontsize=7, handlelength=2)


def _draw_spectrum(axes, net: Network) -> None:
    lowest, highest = np.asarray(net.ends.lowest.values), np.asarray(net.ends.highest.values)
    width = 0.01 * (highest[-1] - lowest[0])
    grid = np.linspace(lowest[0] - 6 * width, highest[-1] + 6 * width, 600)
    nodes, weights = np.asarray(net.ends.density.nodes), np.asarray(net.ends.density.weights)
    bumps = np.exp(-0.5 * ((grid[:, None, None] - nodes) / width) ** 2) / (
        width * np.sqrt(2 * np.pi)
    )
    density = (bumps * weights).sum(axis=2).mean(axis=1)
    axes.semilogy(grid, density, color=figures.BLUE, label="density (one probe)")
    floor = 1e-7
    rug = {"linestyle": "none", "ms": 8, "mew": 1.6}
    axes.plot(
        lowest,
        np.full_like(lowest, 4 * floor),
        "|",
        color=figures.VERMILLION,
        label=f"{len(lowest)} lowest, from {lowest[0]:.3f}",
        **rug,
    )
    axes.plot(
        highest,
        np.full_like(highest, 4 * floor),
        "x",
        color=figures.GREEN,
        label=f"{len(highest)} highest, to {highest[-1]:.2f}",
        **{**rug, "ms": 6},
    )
    axes.set(
        xlabel="eigenvalue of the Hessian",
        ylabel="share per unit",
        ylim=(floor, 100),
        title=f"Spectrum of a network of {net.num_parameters:,} parameters",
    )
    axes.legend(fontsize=7)


def _draw_escape(axes, net: Network) -> None:
    lengths, here = np.asarray(net.lengths), float(net.loss)
    change, model = 1e3 * (np.asarray(net.losses) - here), 1e3 * (np.asarray(net.model) - here)
    step, decrease = abs(float(net.escape.step)), 1e3 * float(net.escape.decrease)
    whole = 1e3 * (float(net.whole_step) - here)
    # The whole picture, and the dip enlarged.
    inset = axes.inset_axes(
        (0.12, 0.09, 0.42, 0.38), xlim=(-0.45, 0.55), ylim=(-4 * decrease, 3 * decrease)
    )
    for panel in (axes, inset):
        panel.plot(lengths, change, color=figures.BLUE, label="loss")
        panel.plot(lengths, model, "--", color=figures.VERMILLION, label="Taylor model")
        panel.plot(step, -decrease, "o", color=figures.GREEN, label="step found")
        panel.plot(1, whole, "s", color=figures.PURPLE, label="whole unit vector")
    inset.tick_params(labelsize=7)
    axes.set(
        xlabel="length along the lowest eigenvector, downhill",
        ylabel="change of the loss ($10^{-3}$ nats)",
        title="Escape: the model is only local",
    )
    axes.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0.58, 0.02))


def _draw_rarity(axes, rarity: Rarity) -> None:
    d = np.asarray(rarity.dimensions)
    found = np.asarray(rarity.found)
    for values, count, marker, dash, label in (
        (rarity.low_functions, found / 10, "^", "-.", "random functions, lowest tenth"),
        (rarity.functions, found, "s", "--", "random functions (Newton)"),
        (2.0**-d, np.inf, "", ":", "bound $2^{-d}$ for matrices"),
        (rarity.matrices, rarity.num_matrices, "o", "-", "random matrices"),
    ):
        values = np.asarray(values, float)
        # A share that rests on fewer than four sightings is not drawn.
        shown = np.where(values * count >= 4, values, np.nan)
        axes.semilogy(d, shown, marker=marker, linestyle=dash, ms=5, label=label)
    axes.set(xlabel="dimension $d$", ylabel="share of minima", title="Minima become rare")
    axes.set_ylim(top=40)
    axes.legend(fontsize=7, loc="upper right")


def _digits(value: ArrayLike) -> float:
    # Three significant digits are enough to read.
    return float(f"{np.asarray(value):.3g}")
