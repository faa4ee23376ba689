"""How sharp the minima of a network are, and what batch size and learning rate have to do with it.

First the network of the demo `critical_points`, trained to a loss of 0.1: its largest eigenvalue by
power iteration and by Lanczos, and the highest loss in a small ball and a small box. Then the same
network is trained to one and the same loss in four ways: with small and with large batches, with a
low and with a high learning rate. For each the sharpness is measured in four ways, beside the loss on
pictures that were not trained on.
"""

import functools
from typing import TYPE_CHECKING, NamedTuple

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

__all__ = ["RECIPES", "Minimum", "Point", "Recipe", "Result", "descend", "plot", "run", "tables"]


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


#: Two pairs: a batch size against another at one rate, and a rate against another with full batches.
RECIPES = (
    Recipe("small batches", 16, 0.1),
    Recipe("large batches", 0, 0.1),
    Recipe("high rate", 0, 0.5),
    Recipe("low rate", 0, 0.02),
)


class Point(NamedTuple):
    """The trained network of `critical_points`, looked at once more.

    Attributes:
        num_parameters: Of the network.
        loss: Mean cross-entropy, in nats.
        gradient_norm: There.
        top: By power iteration; the vector is dropped.
        lanczos: The highest eigenvalue by Lanczos.
        lanczos_residual: Its residual.
        lanczos_steps: Products that it took.
        ball: Sharpness in a ball of radius `epsilon`, its displacement dropped.
        box: In the box of Keskar et al. with this `epsilon`.
        epsilon: Of both.
    """

    num_parameters: int
    loss: Array
    gradient_norm: Array
    top: sharpness.TopEigenvalue
    lanczos: Array
    lanczos_residual: Array
    lanczos_steps: Array
    ball: sharpness.EpsilonSharpness
    box: sharpness.EpsilonSharpness
    epsilon: float


class Minimum(NamedTuple):
    """What one recipe found; a leading axis of starts.

    Attributes:
        num_updates: Updates until the loss was reached.
        loss: On the training pictures, in nats.
        test_loss: On the others.
        test_accuracy: On the others.
        top: Largest eigenvalue of the Hessian of the training loss.
        residual: Of it.
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
    top: Array
    residual: Array
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
    order = jax.random.permutation(split_key, len(digits.y))
    parts = (order[:train_rows], order[train_rows:])
    train, test = ((digits.x[rows], digits.y[rows]) for rows in parts)
    return digits, train, test


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    target_loss: float = 0.03,
    num_starts: int = 3,
) -> Result:
    """Measure the sharpness of trained networks.

    Args:
        key: Draws weights, batches, the start of the iterations and the directions.
        quick: A smaller network, fewer pictures and one start.
        target_loss: Training loss at which the four recipes stop, in nats.
        num_starts: Starts of each recipe.

    Returns:
        Eigenvalues, sharpness, slices.
    """
    point_key, net_key, look_key = jax.random.split(key, 3)
    widths, rows = ((64, 64), 1200)
    if quick:
        widths, rows, num_starts, target_loss = (24, 24), 400, 1, max(target_loss, 0.1)
    _, train, test = problem(net_key, widths=widths, train_rows=rows)
    keys = jax.random.split(net_key, num_starts)
    starts = [trained.problem(k, widths=widths).params for k in keys]

    work = ["critical point", *(recipe.name for recipe in RECIPES)]
    point, minima, ends = None, [], []
    for name in progress.track(work, "measuring"):
        if point is None:
            point = _point(point_key, quick)
            continue
        recipe = next(one for one in RECIPES if one.name == name)
        size = recipe.batch_size or len(train[1])
        rows_ = []
        for k, params in zip(keys, starts, strict=True):
            params, updates = descend(k, params, *train, recipe.rate, target_loss, batch_size=size)
            rows_.append(_look(look_key, params, updates, train, test))
            ends.append(params)
        minima.append(jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(rows_)))
    assert point is not None
    lengths = np.linspace(-1, 1, LENGTHS, dtype=np.float32)
    plane = [_plane(look_key, ends[i * num_starts], *train, lengths) for i in (0, 1)]
    return Result(
        source=trained.problem(key, widths=(2, 2), rows=2).source,
        point=point,
        minima=tuple(minima),
        target=target_loss,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(starts[0])),
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

    The loss is looked at after every 1200 / `batch_size` updates or so, and after at most 30 000 of
    them training ends in any case.

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


def _point(key: Array, quick: bool) -> Point:
    widths, rows = ((48, 48), 400) if quick else ((256, 320), 1200)
    digits = trained.problem(key, widths=widths, rows=rows)
    params, _ = trained.train(digits.params, digits.x, digits.y, 0.1)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Point(size, *jax.device_get(_measure(key, params, digits.x, digits.y)), BALL)


@jax.jit
def _measure(key: Array, params: trained.Parameters, x: Array, y: Array) -> tuple:
    def loss(p: trained.Parameters) -> Array:
        return trained.network_loss(p, x, y)

    operator = critical_points.hessian_operator(loss, params)
    ends = critical_points.lanczos(key, operator, params, num_steps=32)
    top = sharpness.top_eigenvalue(key, loss, params)
    ball = sharpness.epsilon_sharpness(key, loss, params, epsilon=BALL, region="ball")
    box = sharpness.epsilon_sharpness(key, loss, params, epsilon=EPSILON, num_steps=10)
    return (
        loss(params),
        critical_points.gradient_norm(loss, params),
        top._replace(vector=None),
        ends.highest.values[0],
        ends.highest.residuals[0],
        ends.num_steps,
        ball._replace(displacement=None),
        box._replace(displacement=None),
    )


@jax.jit
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
        top=top.value,
        residual=top.residual,
        ball=ball.value,
        box=box.value,
        rise=rises.mean(),
        line=sharpness.slice_1d(loss, params, direction, lengths),
        test_line=sharpness.slice_1d(test_loss, params, direction, lengths),
    )


@jax.jit
def _plane(key: Array, params: trained.Parameters, x: Array, y: Array, lengths: Array) -> Array:
    directions = sharpness.filter_normalized_directions(key, params)
    u, v = (jax.tree.map(lambda leaf, i=i: leaf[i], directions) for i in (0, 1))
    return sharpness.slice_2d(
        lambda p: trained.network_loss(p, x, y), params, u, v, lengths, lengths
    )


def _accuracy(params: trained.Parameters, x: Array, y: Array) -> Array:
    for weight, bias in params[:-1]:
        x = jnp.tanh(x @ weight + bias[None])
    weight, bias = params[-1]
    return ((x @ weight + bias[None]).argmax(axis=1) == y).mean(dtype=jnp.float32)
