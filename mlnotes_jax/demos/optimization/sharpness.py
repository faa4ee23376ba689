"""How sharp the minima of a network are, and what batch size and learning rate have to do with it.

First the network of the demo `critical_points`, trained to a loss of 0.1: its largest eigenvalue by
power iteration and by Lanczos, and the highest loss in a small ball and a small box. Then a smaller
network is trained to one and the same loss in four ways: with small and with large batches at one
rate, and with a high and a low rate at full batches. The sharpness of each is measured in several
ways, beside the loss on pictures that were not trained on.
"""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.demos.optimization import critical_points as trained
from mlnotes_jax.optimization import critical_points, sharpness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "RECIPES",
    "Minimum",
    "Point",
    "Recipe",
    "Result",
    "descend",
    "plot",
    "problem",
    "run",
    "tables",
]


class Recipe(NamedTuple):
    """How a minimum is reached.

    Attributes:
        name: In a word.
        batch_size: Rows of a batch; 0 for all.
        rate: Learning rate of plain descent.
    """

    name: str
    batch_size: int
    rate: float


#: Two pairs: other batches at one rate, and another rate with full batches.
RECIPES = (
    Recipe("small batches", 16, 0.5),
    Recipe("large batches", 0, 0.5),
    Recipe("high rate", 0, 1.0),
    Recipe("low rate", 0, 0.1),
)


class Point(NamedTuple):
    """The trained network of `critical_points`, looked at once more.

    Attributes:
        num_parameters: Of the network.
        measured: Its sharpness, with a leading axis of one.
        lanczos: The highest eigenvalue by Lanczos.
        lanczos_residual: Its residual.
        lanczos_steps: Products that it took.
    """

    num_parameters: int
    measured: "Minimum"
    lanczos: Array
    lanczos_residual: Array
    lanczos_steps: Array


class Minimum(NamedTuple):
    """What one recipe found; a leading axis of starts.

    Attributes:
        num_updates: Updates until the loss was reached.
        loss: On the training pictures, in nats.
        test_loss: On the others.
        test_accuracy: On the others.
        gradient_norm: Of the training loss: a loss of this height is not yet a minimum.
        top: Largest eigenvalue of the Hessian of the training loss.
        residual: Of it.
        num_products: That power iteration took.
        ball: Epsilon-sharpness in the ball, percent.
        box: In the box, percent.
        rise: Mean rise of the training loss after a random shift of length `RADIUS`.
        line: Training loss along a filter-normalised direction, shape `(starts, lengths)`.
        test_line: Test loss along the same.
    """

    num_updates: Array
    loss: Array
    test_loss: Array
    test_accuracy: Array
    gradient_norm: Array
    top: Array
    residual: Array
    num_products: Array
    ball: Array
    box: Array
    rise: Array
    line: Array
    test_line: Array


class Result(NamedTuple):
    """What `run` returns.

    Attributes:
        source: The digits.
        point: The network of `critical_points`.
        minima: One for each recipe.
        target: The loss at which they all stop.
        num_parameters: Of their network.
        num_rows: Pictures for training, and others.
        lengths: Of the slices, shape `(k,)`.
        plane: Training loss around the first and the second minimum, shape `(2, k, k)`.
    """

    source: datasets.Source
    point: Point
    minima: tuple[Minimum, ...]
    target: float
    num_parameters: int
    num_rows: tuple[int, int]
    lengths: Float[np.ndarray, " k"]
    plane: Float[np.ndarray, "2 k k"]


EPSILON = 1e-3  # of the box, as in Keskar et al.
BALL = 0.05  # radius of the ball, in the units of the weights
RADIUS = 1.0  # of random shifts
LENGTHS = 21

# What runs a few times is compiled in a hurry.
_HURRY = {"xla_backend_optimization_level": 0}


def problem(
    key: Key[Array, ""], *, widths: tuple[int, int] = (64, 64), train_rows: int = 1200
) -> tuple[trained.Digits, tuple[Array, Array], tuple[Array, Array]]:
    """Load the digits, split them, and draw a network's first weights.

    Args:
        key: Draws the weights and the split.
        widths: Units in the two hidden layers.
        train_rows: Pictures for training.

    Returns:
        The digits with the parameters, training pictures with their classes, and the others.
    """
    split_key, weight_key = jax.random.split(key)
    digits = trained.problem(weight_key, widths=widths)
    # On the host: a generator takes long to compile.
    seed = np.asarray(jax.random.key_data(split_key))
    order = np.random.default_rng(seed).permutation(len(digits.y))
    parts = (order[:train_rows], order[train_rows:])
    train, test = ((digits.x[rows], digits.y[rows]) for rows in parts)
    return digits, train, test


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    target_loss: float = 0.03,
    num_starts: int = 5,
) -> Result:
    """Measure the sharpness of trained networks.

    Args:
        key: Draws weights, batches, the start of the iterations and the directions.
        quick: A smaller network and fewer pictures.
        target_loss: Training loss at which the four recipes stop, in nats.
        num_starts: Starts of each recipe, each from its own weights, with its own pictures.

    Returns:
        Eigenvalues, sharpness, slices.
    """
    point_key, net_key, look_key = jax.random.split(key, 3)
    widths, rows, point_widths, point_rows = (64, 64), 1200, (256, 320), None
    if quick:
        # One shape for both networks: half as many programs.
        widths = point_widths = (24, 24)
        rows = point_rows = 400
        target_loss = max(target_loss, 0.1)
    # Each start has its own weights and its own pictures for training.
    keys = jax.random.split(net_key, num_starts)
    starts = [problem(k, widths=widths, train_rows=rows) for k in keys]

    work = ["critical point", *(recipe.name for recipe in RECIPES)]
    point, minima, ends = None, [], []
    for name in progress.track(work, "measuring"):
        if point is None:
            point = _point(point_key, look_key, starts[0][2], point_widths, point_rows)
            continue
        recipe = next(one for one in RECIPES if one.name == name)
        found = []
        for k, (digits, train, test) in zip(keys, starts, strict=True):
            params, updates = descend(
                k, digits.params, *train, recipe.rate, target_loss,
                batch_size=recipe.batch_size or rows,
            )  # fmt: skip
            found.append(_look(look_key, params, updates, train, test))
            ends.append(params)
        minima.append(_stack(found))
    digits, train, test = starts[0]
    assert point is not None
    lengths = np.linspace(-1, 1, LENGTHS, dtype=np.float32)
    plane = [_plane(look_key, ends[i * num_starts], *train, lengths) for i in (0, 1)]
    return Result(
        source=digits.source,
        point=point,
        minima=tuple(minima),
        target=target_loss,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(digits.params)),
        num_rows=(len(train[1]), len(test[1])),
        lengths=lengths,
        plane=np.stack(plane),
    )


@functools.partial(jax.jit, static_argnames="batch_size")
def descend(
    key: Array,
    params: trained.Parameters,
    x: Array,
    y: Array,
    rate: float,
    target: float,
    *,
    batch_size: int,
) -> tuple[trained.Parameters, Array]:
    """Descend with random batches until the loss of all rows is at most `target`.

    The loss is looked at after as many updates as an epoch has, and after 30 000 updates training
    ends in any case.

    Args:
        key: Draws the batches.
        params: Where to start.
        x: Pictures.
        y: Classes.
        rate: Learning rate.
        target: Mean cross-entropy in nats.
        batch_size: Rows of a batch; all of them, in their order, where it is that many.

    Returns:
        The parameters, and how many updates that took.
    """
    n = len(y)
    between = max(1, n // batch_size)

    def update(step: Array, carry: tuple) -> tuple:
        params, begin = carry
        batch = (x, y)
        if batch_size < n:
            rows = jax.random.randint(jax.random.fold_in(key, begin + step), (batch_size,), 0, n)
            batch = (x[rows], y[rows])
        gradient = jax.grad(trained.network_loss)(params, *batch)
        return jax.tree.map(lambda p, g: p - rate * g, params, gradient), begin

    def some(carry: tuple) -> tuple:
        params, done, _ = carry
        params, _ = lax.fori_loop(0, between, update, (params, done))
        return params, done + between, trained.network_loss(params, x, y)

    params, done, _ = lax.while_loop(
        lambda carry: (carry[2] > target) & (carry[1] < 30_000),
        some,
        (params, jnp.int32(0), jnp.array(jnp.inf)),
    )
    return params, done


def _stack(found: list[Minimum]) -> Minimum:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(found))


def _point(
    key: Array,
    look_key: Array,
    test: tuple[Array, Array],
    widths: tuple[int, int],
    rows: int | None,
) -> Point:
    digits = trained.problem(key, widths=widths, rows=rows)
    data = (digits.x, digits.y)
    params, updates = trained.train(digits.params, *data, 0.1)
    measured = _stack([_look(look_key, params, updates, data, test)])
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Point(size, measured, *jax.device_get(_lanczos(look_key, params, *data)))


@functools.partial(jax.jit, compiler_options=_HURRY)
def _lanczos(key: Array, params: trained.Parameters, x: Array, y: Array) -> tuple[Array, ...]:
    operator = critical_points.hessian_operator(lambda p: trained.network_loss(p, x, y), params)
    ends = critical_points.lanczos(key, operator, params, num_steps=32)
    return ends.highest.values[0], ends.highest.residuals[0], ends.num_steps


@functools.partial(jax.jit, compiler_options=_HURRY)
def _look(
    key: Array,
    params: trained.Parameters,
    updates: Array,
    train: tuple[Array, Array],
    test: tuple[Array, Array],
) -> Minimum:
    def loss(p: trained.Parameters) -> Array:
        return trained.network_loss(p, *train)

    def test_loss(p: trained.Parameters) -> Array:
        return trained.network_loss(p, *test)

    top = sharpness.top_eigenvalue(key, loss, params)
    ball = sharpness.epsilon_sharpness(key, loss, params, epsilon=BALL, region="ball")
    box = sharpness.epsilon_sharpness(key, loss, params, epsilon=EPSILON, num_steps=10)
    rises = sharpness.shift_increase(key, loss, params, radius=RADIUS, num_shifts=16)
    direction = sharpness.filter_normalized_direction(key, params)
    lengths = jnp.linspace(-1, 1, LENGTHS)
    return Minimum(
        num_updates=updates,
        loss=loss(params),
        test_loss=test_loss(params),
        test_accuracy=_accuracy(params, *test),
        gradient_norm=critical_points.gradient_norm(loss, params),
        top=top.value,
        residual=top.residual,
        num_products=top.num_steps,
        ball=ball.value,
        box=box.value,
        rise=rises.mean(),
        line=sharpness.slice_1d(loss, params, direction, lengths, batch_size=LENGTHS),
        test_line=sharpness.slice_1d(test_loss, params, direction, lengths, batch_size=LENGTHS),
    )


@functools.partial(jax.jit, compiler_options=_HURRY)
def _plane(key: Array, params: trained.Parameters, x: Array, y: Array, lengths: Array) -> Array:
    directions = sharpness.filter_normalized_directions(key, params)
    u, v = (jax.tree.map(lambda leaf, i=i: leaf[i], directions) for i in (0, 1))
    return sharpness.slice_2d(
        lambda p: trained.network_loss(p, x, y), params, u, v, lengths, lengths, batch_size=LENGTHS
    )


def _accuracy(params: trained.Parameters, x: Array, y: Array) -> Array:
    for weight, bias in params[:-1]:
        x = jnp.tanh(x @ weight + bias[None])
    weight, bias = params[-1]
    return ((x @ weight + bias[None]).argmax(axis=1) == y).mean(dtype=jnp.float32)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """Put the numbers into rows.

    Args:
        result: What `run` returned.

    Returns:
        Title to rows.
    """
    point = result.point
    here = {name: np.mean(getattr(point.measured, name)).item() for name in Minimum._fields}
    bound = _bound(here["loss"], here["gradient_norm"], here["top"])
    rows = [
        ("parameters", point.num_parameters),
        ("loss (nats)", f"{here['loss']:.4f}"),
        ("gradient norm", f"{here['gradient_norm']:.3g}"),
        ("largest eigenvalue, power iteration", f"{here['top']:.4f}"),
        ("residual", f"{here['residual']:.1e}"),
        ("products", round(here["num_products"])),
        ("largest eigenvalue, Lanczos", f"{float(point.lanczos):.4f}"),
        ("residual of Lanczos", f"{float(point.lanczos_residual):.1e}"),
        ("products of Lanczos", int(point.lanczos_steps)),
        (f"highest loss in a ball of {BALL:g}, percent", f"{here['ball']:.3f}"),
        ("at most, to second order", f"{bound:.3f}"),
        (f"highest loss in the box of {EPSILON:g}, percent", f"{here['box']:.3f}"),
    ]
    found = []
    for recipe, one in zip(RECIPES, result.minima, strict=True):
        mean = {name: float(np.mean(getattr(one, name))) for name in Minimum._fields}
        found.append((recipe, mean))
    train_rows, test_rows = result.num_rows
    title = f"Loss {result.target:g} on {train_rows} digits, {result.num_parameters} parameters"
    return {
        "The network of critical_points": [{"quantity": q, "value": v} for q, v in rows],
        title: [
            {
                "recipe": recipe.name,
                "batch": recipe.batch_size or train_rows,
                "rate": recipe.rate,
                "updates": round(mean["num_updates"]),
            }
            for recipe, mean in found
        ],
        f"Largest eigenvalue, and other sharpness (means of {len(result.minima[0].top)})": [
            {
                "recipe": recipe.name,
                "largest": f"{mean['top']:.2f}",
                "2/rate": f"{2 / recipe.rate:g}",
                "rise": f"{mean['rise']:.5f}",
                "ball %": f"{mean['ball']:.2f}",
                "box %": f"{mean['box']:.2f}",
            }
            for recipe, mean in found
        ],
        f"Slope there, and loss on {test_rows} other digits": [
            {
                "recipe": recipe.name,
                "gradient": f"{mean['gradient_norm']:.3f}",
                "test loss": f"{mean['test_loss']:.4f}",
                "accuracy": f"{mean['test_accuracy']:.1%}",
            }
            for recipe, mean in found
        ],
        "Starts in which the first of a pair is": [
            {
                "pair": f"{a.name} / {b.name}",
                "flatter": f"{int((one.top < other.top).sum())} of {len(one.top)}",
                "better elsewhere": (
                    f"{int((one.test_loss < other.test_loss).sum())} of {len(one.top)}"
                ),
            }
            for a, b, one, other in (
                (*RECIPES[:2], *result.minima[:2]),
                (*RECIPES[2:], *result.minima[2:]),
            )
        ],
    }


def _bound(loss: float, slope: float, top: float) -> float:
    """The most that slope and curvature allow in the ball, in percent."""
    return 100 * (BALL * slope + 0.5 * BALL**2 * top) / (1 + loss)


def plot(result: Result) -> "Figure":
    """Draw the loss around minima, their eigenvalues, and the loss on other pictures.

    Args:
        result: What `run` returned.

    Returns:
        A figure of five panels.
    """
    import matplotlib.pyplot as plt

    marks = ("o", "s", "^", "D")
    with figures.style():
        figure = plt.figure(figsize=(9, 6.6))
        parts: Any = figure.subfigures(2, 1)
        upper, lower = parts
        *planes, line = upper.subplots(1, 3)
        levels = np.geomspace(1.5 * result.target, 4, 9)
        hues = (figures.BLUE, figures.VERMILLION)
        for axes, plane, recipe, hue in zip(planes, result.plane, RECIPES[:2], hues, strict=True):
            grid = (result.lengths, result.lengths)
            drawn = axes.contour(*grid, plane.T, levels, colors=hue, linewidths=1)
            axes.clabel(drawn, levels=levels[2::3], fontsize=6, fmt="%.2g")
            axes.plot(0, 0, "*", color=hue, markersize=9)
            axes.grid(visible=False)
            axes.set(title=recipe.name, xlabel="first direction", aspect="equal")
        planes[0].set_ylabel("second direction")
        for recipe, one, color in zip(RECIPES, result.minima, hues, strict=False):
            line.semilogy(result.lengths, one.line[0], "-", color=color, label=recipe.name)
            line.semilogy(result.lengths, one.test_line[0], ":", color=color)
        line.plot([], [], ":", color=figures.GREY, label="other digits")
        line.set(xlabel="along the first direction", ylabel="loss", title="A slice")
        line.legend(fontsize="x-small")

        eigenvalues, test = lower.subplots(1, 2)
        for place, (recipe, one, mark) in enumerate(
            zip(RECIPES, result.minima, marks, strict=True)
        ):
            spread = place + 0.06 * (np.arange(len(one.top)) - (len(one.top) - 1) / 2)
            (drawn,) = eigenvalues.semilogy(spread, one.top, mark, linestyle="none")
            limit = "limit $2/\\eta$ of full batches" if place == 0 else None
            eigenvalues.plot(
                [place - 0.3, place + 0.3],
                [2 / recipe.rate] * 2,
                "-",
                color=figures.GREY,
                label=limit,
            )
            test.plot(
                one.top, one.test_loss, mark, linestyle="none", color=drawn.get_color(),
                label=f"{recipe.name}, rate {recipe.rate:g}",
            )  # fmt: skip
        eigenvalues.set_xticks(range(len(RECIPES)), [recipe.name for recipe in RECIPES])
        eigenvalues.tick_params(axis="x", labelsize="small")
        eigenvalues.set(ylabel=r"$\lambda_{\max}$", title="Largest eigenvalue of the training loss")
        eigenvalues.legend(fontsize="x-small")
        test.set(
            xlabel=r"$\lambda_{\max}$ of the training loss",
            ylabel="loss on other digits",
            title="Does flat mean better?",
        )
        test.legend(fontsize="x-small")
        figure.suptitle(f"Four ways to the training loss {result.target:g}")
    return figure
