"""Half-planes, XOR, and the regions that more neurons and more layers cut.

Can one line tell the iris versicolor from the two other species by the length and the width of its
petals? It cannot, and the demo prints the proof; a strip between two lines nearly can. Small ReLU
networks are trained on the flowers, and the polygons that they cut the plane into are counted. A
deep network that folds the plane shows how many there can be.
"""

import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.foundations import activations, affine, losses
from mlnotes_jax.optimization import adam, schedules

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Fold",
    "Network",
    "Problem",
    "Result",
    "fold_network",
    "plot",
    "problem",
    "run",
    "tables",
]

WIDEST = 8
NETWORKS = ((1,), (2,), (3,), (WIDEST,), (4, 4))


class Problem(NamedTuple):
    """Petals.

    Attributes:
        x: Length and width of the petals, in millimetres, whole numbers, shape `(150, 2)`.
        labels: +1 for versicolor, else -1, shape `(150,)`.
        source: The data.
    """

    x: Int[np.ndarray, "n 2"]
    labels: Int[np.ndarray, " n"]
    source: datasets.Source


class Network(NamedTuple):
    """A trained network.

    Attributes:
        hidden: Widths of its hidden layers.
        weights: Kernels and biases; its inputs are standardized petals.
        accuracy: On the flowers it was trained on.
        regions: Polygons on which it is affine, in the square that holds the flowers.
        bound: The most that so many units can cut.
    """

    hidden: tuple[int, ...]
    weights: list[tuple[np.ndarray, np.ndarray]]
    accuracy: float
    regions: list[affine.Region]
    bound: int


class Fold(NamedTuple):
    """A network that folds the unit square in both directions, again and again.

    Attributes:
        depth: Layers of four units.
        regions: Counted in the unit square.
        shallow: The most that as many units in one layer can cut.
    """

    depth: int
    regions: int
    shallow: int


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        x: Standardized petals, shape `(150, 2)`.
        labels: As in `Problem`.
        flowers: Whether a line separates versicolor, and the proof.
        num_flowers: How many flowers the proof needs.
        xor: For each space, its name and whether a hyperplane separates XOR there.
        networks: Trained, from one unit on.
        folds: By depth.
    """

    source: datasets.Source
    x: Float[np.ndarray, "n 2"]
    labels: Int[np.ndarray, " n"]
    flowers: affine.Separability
    num_flowers: int
    xor: list[tuple[str, affine.Separability]]
    networks: list[Network]
    folds: list[Fold]


def problem(key: Key[Array, ""] | None = None) -> Problem:
    """Load the petals.

    Args:
        key: Not used: nothing is drawn.

    Returns:
        Petals in whole millimetres, labels, source.
    """
    del key
    data = datasets.load("iris")
    columns = [data.feature_names.index(f"petal {side} (cm)") for side in ("length", "width")]
    x = np.round(10 * data.x[:, columns]).astype(int)  # measured to a millimetre
    return Problem(x, np.where(data.y == data.class_names.index("versicolor"), 1, -1), data.source)


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    num_steps: int = 2000,
    learning_rate: float = 0.03,
    num_starts: int = 16,
) -> Result:
    """Prove what a line cannot do, train small networks, count their regions.

    Args:
        key: Draws the starts of the networks.
        quick: Three networks and a quarter of the steps.
        num_steps: Steps of Adam for each network.
        learning_rate: Of Adam.
        num_starts: Networks of each kind; the one with the lowest loss counts.

    Returns:
        Proofs, networks, counts.
    """
    data = problem(key)
    x = (data.x - data.x.mean(axis=0)) / data.x.std(axis=0)
    flowers = affine.separability(data.x, data.labels)
    kinds = ((1,), (2,), (4, 4)) if quick else NETWORKS
    steps = num_steps // 4 if quick else num_steps
    networks = []
    for hidden in progress.track(kinds, "training"):
        starts = _starts(key, (2, *hidden, 1), num_starts)
        found, accuracy = _train(
            starts, jnp.asarray(x, jnp.float32), jnp.asarray(data.labels), learning_rate, steps
        )
        widths = (2, *hidden, 1)
        weights = [
            (np.asarray(k)[:rows, :columns], np.asarray(b)[:columns])
            for (k, b), rows, columns in zip(found, widths, widths[1:], strict=False)
        ]
        networks.append(
            Network(
                hidden,
                weights,
                float(accuracy),
                affine.activation_regions(weights, low=(-2.5, -2.5), high=(2.5, 2.5)),
                affine.region_bound((2, *hidden)),
            )
        )
    folds = [
        Fold(
            depth,
            len(affine.activation_regions(fold_network(depth), low=(0, 0), high=(1, 1))),
            affine.region_bound((2, 4 * depth)),
        )
        for depth in range(1, 5 if quick else 6)
    ]
    return Result(
        source=data.source,
        x=x,
        labels=data.labels,
        flowers=flowers,
        num_flowers=sum(m > 0 for m in flowers.multipliers or ()),
        xor=_xor_spaces(),
        networks=networks,
        folds=folds,
    )


def fold_network(depth: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights that fold the unit square `depth` times in both directions: `4**depth` regions.

    One fold of one coordinate is the tent `2 relu(t) - 4 relu(t - 1/2)`, two units.
    """
    eye = np.eye(2)
    bias = np.tile([0.0, -0.5], 2)
    spread = np.kron(eye, np.ones((1, 2)))  # each coordinate to its two units
    fold = np.kron(eye, np.array([[2.0], [-4.0]]))  # and back
    layers = [(spread, bias)] + [(fold @ spread, bias)] * (depth - 1)
    return [*layers, (fold.sum(axis=1, keepdims=True), np.zeros(1))]


def _xor_spaces() -> list[tuple[str, affine.Separability]]:
    """XOR in the plane, after an affine lift, and after two lifts that bend."""
    points, labels = affine.xor()
    kernel = np.array([[1, 0, 1], [0, 1, 1]])
    hidden = affine.xor_network()[0]
    spaces = {
        "the plane": points,
        "3-D, by an affine map": points @ kernel + np.array([0, 0, -1]),
        "3-D, with the product": np.asarray(affine.lift_products(points)),
        "2-D, after two ReLUs": np.asarray(activations.relu(affine.affine(points, *hidden))),
    }
    return [(name, affine.separability(x, labels)) for name, x in spaces.items()]


def _starts(key: Array, widths: tuple[int, ...], num_starts: int) -> Any:
    """He's weights and random bends, for one program for all networks with one hidden layer.

    They are filled up with units whose weights are zero. Such a unit gives 0 and receives no
    gradient, so that it stays as it is.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    full = (2, WIDEST, 1) if len(widths) == 3 else widths
    layers = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        kernel = np.zeros((num_starts, full[i], full[i + 1]), np.float32)
        bias = np.zeros((num_starts, full[i + 1]), np.float32)
        kernel[:, :a, :b] = rng.normal(0, (2 / a) ** 0.5, (num_starts, a, b))
        bias[:, :b] = rng.normal(0, 0.5, (num_starts, b))
        layers.append((jnp.asarray(kernel), jnp.asarray(bias)))
    return layers


def _logits(weights: Any, x: Array) -> Array:
    *hidden, last = weights
    for layer in hidden:
        x = activations.relu(affine.affine(x, *layer))
    return affine.affine(x, *last)[:, 0]


@functools.partial(jax.jit, static_argnames="num_steps")
def _train(
    starts: Any, x: Array, labels: Array, learning_rate: Array, num_steps: int
) -> tuple[Any, Array]:
    """Weights and accuracy of the best of several networks, trained at once on all flowers."""
    optimizer = adam.adam(schedules.cosine(learning_rate, num_steps=num_steps))
    targets = (labels > 0).astype(x.dtype)
    # As there are two other species, versicolor counts twice: both labels weigh the same.
    weights_of_rows = 1 + targets

    def loss(weights: Any) -> Array:
        return losses.binary_cross_entropy_with_logits(
            _logits(weights, x), targets, weights=weights_of_rows
        )

    def one(weights: Any) -> tuple[Any, Array]:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            weights, state = carry
            updates, state = optimizer.update(jax.grad(loss)(weights), state, weights)
            return (optax.apply_updates(weights, updates), state), None

        (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), length=num_steps)
        return weights, loss(weights)

    trained, values = jax.vmap(one)(starts)
    best = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
    weights = jax.tree.map(lambda leaf: leaf[best], trained)
    right = (_logits(weights, x) > 0) == (labels > 0)
    return weights, right.astype(x.dtype).mean()


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    rows: list[dict[str, object]] = []
    spaces = [("iris, versicolor or not", result.flowers), *result.xor]
    for name, verdict in spaces:
        if verdict.separable:
            assert verdict.weight is not None
            proof = f"w = ({', '.join(map(str, verdict.weight))}), b = {verdict.bias}"
        else:
            assert verdict.multipliers is not None
            used = [str(m) for m in verdict.multipliers if m]
            proof = f"{len(used)} multipliers: {', '.join(used)}"
        name = name if rows == [] else f"XOR, {name}"
        rows.append({"points": name, "separable": verdict.separable, "exact proof": proof})
    return {
        "Does a hyperplane separate them?": rows,
        "ReLU networks on the petals": [
            {
                "hidden units": " + ".join(map(str, network.hidden)),
                "regions in the square": len(network.regions),
                "at most": network.bound,
                "accuracy": f"{network.accuracy:.1%}",
            }
            for network in result.networks
        ],
        "Regions of a network that folds the square": [
            {
                "layers of 4 units": fold.depth,
                "regions": fold.regions,
                "one layer of as many units, at most": fold.shallow,
            }
            for fold in result.folds
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw XOR before and after the lift, the polygons of three networks, and the folds."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(2, 3, figsize=(10, 6.6))
        _draw_xor(axes[0, 0], axes[0, 1])
        shown = [n for n in result.networks if n.hidden in ((1,), (2,), (4, 4))]
        places = (axes[0, 2], axes[1, 0], axes[1, 1])
        for one, network in zip(places, shown, strict=True):
            _draw_network(one, result, network)
        folds = axes[1, 2]
        units = [4 * fold.depth for fold in result.folds]
        folds.semilogy(units, [f.regions for f in result.folds], marker="o", label="deep: folds")
        folds.semilogy(
            units, [f.shallow for f in result.folds], marker="s", label="one layer: at most"
        )
        folds.set_xticks(units)
        folds.set(xlabel="units", ylabel="regions", title="Depth folds, width cuts")
        folds.legend(fontsize="small")
    return figure


def _draw_xor(plane: "Axes", lifted: "Axes") -> None:
    """The four points with their hulls, and what two ReLUs make of them."""
    points, labels = affine.xor()
    hidden = affine.xor_network()[0]
    moved = np.asarray(activations.relu(affine.affine(points, *hidden)))
    for axes, where in ((plane, points), (lifted, moved)):
        for sign, color, mark in ((1, figures.BLUE, "o"), (-1, figures.VERMILLION, "s")):
            mine = where[labels == sign]
            axes.plot(*mine.T, "-", color=color, lw=1.2)
            axes.plot(*mine.T, mark, color=color, markersize=9)
    middle = affine.common_point(points, labels, [1, 1, 1, 1])
    plane.plot(*map(float, middle), "*", color=figures.GREEN, markersize=14)
    plane.annotate("in both hulls", (0.5, 0.5), xytext=(0.58, 0.46))
    plane.set(xlabel="x₁", ylabel="x₂", title="XOR: the hulls meet")
    h = np.array([0.2, 2.2])
    lifted.plot(h, (h - 0.5) / 2, "--", color=figures.GREEN)
    lifted.set(xlabel="relu(x₁ + x₂)", ylabel="relu(x₁ + x₂ - 1)", title="XOR after two ReLUs")


def _draw_network(axes: "Axes", result: Result, network: Network) -> None:
    """Polygons of a network, its decision region, and the flowers."""
    line = np.linspace(-2.5, 2.5, 200)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2).astype(np.float32)
    values = np.asarray(_logits(network.weights, jnp.asarray(grid))).reshape(200, 200)
    high = max(float(values.max()), 1e-6)
    axes.contourf(line, line, values, [0, high], colors=[figures.BLUE], alpha=0.25)
    for region in network.regions:
        closed = np.concatenate([region.corners, region.corners[:1]])
        axes.plot(*closed.T, "-", color=figures.GREY, lw=0.8)
    for sign, color, mark in ((1, figures.BLUE, "o"), (-1, figures.VERMILLION, "s")):
        axes.plot(*result.x[result.labels == sign].T, mark, color=color, markersize=3)
    hidden = " + ".join(map(str, network.hidden))
    axes.set(
        xlabel="petal length, standardized", ylabel="petal width, standardized",
        title=f"{hidden} hidden: {len(network.regions)} regions, {network.accuracy:.0%}",
        xlim=(-2.5, 2.5), ylim=(-2.5, 2.5),
    )  # fmt: skip
