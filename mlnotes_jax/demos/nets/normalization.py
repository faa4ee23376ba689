r"""Batch normalization against none: learning rates, the error surface, and what layers see.

Three questions, put to a network with five hidden layers of 100 units on handwritten digits (or on
Fashion-MNIST):

1. At which learning rates does it train, with ReLU and with the sigmoid; without normalization, with
   it before the activation, and after? All rates of a network train together, in one `vmap`.
2. How smooth is the error surface? After each batch we look along the step that gradient descent is
   about to take, from half to four times its length: how much do the loss and its gradient vary?
3. How much does each layer's input move (internal covariate shift)? Measured in two ways: as the
   drift of what comes into the activations, and as what a layer's gradient changes when the layers
   before it take their step.

`draw_axes` draws which entries are averaged together by each kind of normalization. It asks the
functions themselves: an entry belongs to the set if the derivative says so.

Reference: Santurkar, Tsipras, Ilyas and Madry, "How Does Batch Normalization Help Optimization?"
(2018), sections 2 and 3.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.demos.nets import _pictures
from mlnotes_jax.foundations import activations, losses
from mlnotes_jax.nets import normalization
from mlnotes_jax.training import loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "ACTIVATIONS",
    "PLACES",
    "Network",
    "Probe",
    "Result",
    "Sweep",
    "draw_axes",
    "plot",
    "problem",
    "run",
    "tables",
]

#: Where the normalization is, seen from the activation.
PLACES = ("none", "before", "after")
#: What is probed; `noisy` is `before` with a random shift and scale behind it.
PROBED = ("none", "before", "noisy")
ACTIVATIONS = ("relu", "sigmoid")
BATCH, HIDDEN, NOISE = 64, (100,) * 4, 0.5
#: Lengths looked at along the step, in learning rates: half of it to four times.
REACH = (0.5, 1.0, 2.0, 4.0)

Place = Literal["none", "before", "after", "noisy"]
Activation = Literal["relu", "sigmoid"]


class Network(nnx.Module):
    """Fully connected layers, with batch normalization before or after each activation, or not.

    Calling it gives the logits and, for each hidden layer, what comes into its activation. At the
    place `"noisy"` the normalized inputs are, in training, multiplied by a number around 1 and
    shifted by one around 0, both drawn anew for each unit in each step.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        *,
        place: Place = "none",
        activation: Activation = "relu",
        rngs: nnx.Rngs,
    ) -> None:
        # He's variance 2 / inputs for ReLU, 1 / inputs for the sigmoid.
        gain = 2.0 if activation == "relu" else 1.0
        init = nnx.initializers.variance_scaling(gain, "fan_in", "normal")
        self.layers = nnx.List(
            [
                nnx.Linear(inputs, outputs, kernel_init=init, rngs=rngs)
                for inputs, outputs in zip(widths[:-1], widths[1:], strict=True)
            ]
        )
        self.norms = nnx.List(
            [
                normalization.BatchNorm(width, rngs=rngs)
                for width in (() if place == "none" else widths[1:-1])
            ]
        )
        self.place, self.activation = place, activation
        self.deterministic = False
        self.stream = nnx.RngStream(rngs.dropout(), tag="dropout") if place == "noisy" else None

    def __call__(self, x: Float[Array, "n d"]) -> tuple[Array, tuple[Array, ...]]:
        """Logits, and what comes into the activations."""
        bend = getattr(activations, self.activation)
        seen = []
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            if self.place in ("before", "noisy"):
                x = self.norms[i](x)
            if self.stream is not None and not self.deterministic:
                noise = jax.random.normal(self.stream(), (2, 1, x.shape[1]))
                x = x * (1 + NOISE * noise[0]) + NOISE * noise[1]
            seen.append(x)
            x = bend(x)
            if self.place == "after":
                x = self.norms[i](x)
        return self.layers[-1](x), tuple(seen)


class Problem(NamedTuple):
    """Pictures as rows, each pixel's scale being that of all pixels together.

    Attributes:
        x: Shape `(n, d)`.
        y: Classes 0..9, shape `(n,)`.
        x_test: Shape `(m, d)`.
        y_test: Shape `(m,)`.
        source: Where they come from.
    """

    x: Float[Array, "n d"]
    y: Int[Array, " n"]
    x_test: Float[Array, "m d"]
    y_test: Int[Array, " m"]
    source: datasets.Source


class Sweep(NamedTuple):
    """One network at all learning rates.

    Attributes:
        loss: Mean loss of the batches of the last epoch, shape `(rates,)`; not finite where the
            training blew up.
        accuracy: On the test pictures, in eval mode, shape `(rates,)`.
    """

    loss: Float[Array, " rates"]
    accuracy: Float[Array, " rates"]


class Probe(NamedTuple):
    r"""What the surface and the layers did while a network trained.

    Attributes:
        loss: Of each batch before its step, shape `(steps,)`.
        low: The lowest loss along the step, up to four times its length, shape `(steps,)`.
        high: The highest, shape `(steps,)`.
        smoothness: $\max_t \lVert g(\theta - t\, g) - g \rVert / (t \lVert g \rVert)$, the largest
            change of the gradient for each unit of length, shape `(steps,)`.
        turn: $\lVert g(\theta - 4\eta\, g) - g \rVert / \lVert g \rVert$, shape `(steps,)`.
        shift: $\lVert g'_i - g_i \rVert / \lVert g_i \rVert$ of the kernel of each hidden layer but
            the first, where $g'_i$ is its gradient on the same batch after the layers before it took
            their step, shape `(steps, layers)`.
        drift: How far the mean of each unit's input to the activation moved in a step, in
            standard deviations of that input, over all training rows; mean over the units, shape
            `(steps - 1, layers)`.
    """

    loss: Float[Array, " steps"]
    low: Float[Array, " steps"]
    high: Float[Array, " steps"]
    smoothness: Float[Array, " steps"]
    turn: Float[Array, " steps"]
    shift: Float[Array, "steps layers"]
    drift: Float[Array, "moves layers"]


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The pictures.
        rates: The learning rates, ascending.
        sweeps: `{activation: {place: Sweep}}`.
        probe_rate: The learning rate of the probes.
        probes: `{place: Probe}` for `PROBED`, with ReLU.
        num_epochs: Of the sweeps.
    """

    source: datasets.Source
    rates: Float[np.ndarray, " rates"]
    sweeps: dict[str, dict[str, Sweep]]
    probe_rate: float
    probes: dict[str, Probe]
    num_epochs: int


def problem(
    key: Array,
    *,
    data: _pictures.Name = "digits",
    data_dir: Path | None = None,
    num_examples: int = 10_000,
) -> Problem:
    """Read the pictures as rows.

    Args:
        key: Draws the split of the digits.
        data: Which pictures.
        data_dir: Folder of Fashion-MNIST.
        num_examples: At most so many are trained on.

    Returns:
        The rows.
    """
    pictures = _pictures.load(key, data, data_dir=data_dir)
    x, y = pictures.x_train[:num_examples], pictures.y_train[:num_examples]
    mean, scale = x.mean(), x.std()

    def rows(part: np.ndarray) -> Array:
        return jnp.asarray(((part - mean) / scale).reshape(len(part), -1))

    return Problem(
        rows(x), jnp.asarray(y), rows(pictures.x_test), jnp.asarray(pictures.y_test), pictures.source
    )


def run(
    key: Array,
    *,
    quick: bool = False,
    data: _pictures.Name = "digits",
    data_dir: Path | None = None,
    num_examples: int = 10_000,
    num_epochs: int = 20,
    num_rates: int = 9,
    probe_rate: float = 0.1,
    probe_steps: int = 150,
) -> Result:
    """Train all networks, and look at the surface under two of them.

    Args:
        key: Draws the split, the weights and the order of the rows.
        quick: Five learning rates, a quarter of the epochs and of the probe's steps.
        data: Which pictures.
        data_dir: Folder of Fashion-MNIST.
        num_examples: At most so many are trained on; the digits have 1437.
        num_epochs: Of each training in the sweep.
        num_rates: How many learning rates from 0.001 to 10, all trained at once.
        probe_rate: The learning rate of the two trainings that are probed.
        probe_steps: Their length, in batches.

    Returns:
        Sweeps and probes.
    """
    if quick:
        num_rates, num_epochs, probe_steps = 5, max(num_epochs // 4, 1), max(probe_steps // 4, 2)
    split_key, weight_key, order_key, noise_key = jax.random.split(key, 4)
    given = problem(split_key, data=data, data_dir=data_dir, num_examples=num_examples)
    rates = np.geomspace(1e-3, 10, num_rates).astype(np.float32)
    widths = (given.x.shape[1], *HIDDEN, 10)
    order = _order(order_key, len(given.y), num_epochs)

    jobs = [(bend, place) for bend in ACTIVATIONS for place in PLACES]
    sweeps: dict[str, dict[str, Sweep]] = {bend: {} for bend in ACTIVATIONS}
    for bend, place in progress.track(jobs, "learning rates"):
        start = _start(weight_key, widths, place, bend)
        apply = _apply(widths, place, bend)
        sweeps[bend][place] = jax.block_until_ready(_sweep(start, given[:4], order, rates, apply))

    repeats = -(-probe_steps // (order.shape[0] * order.shape[1]))
    batches = jnp.tile(order.reshape(-1, order.shape[-1]), (repeats, 1))[:probe_steps]
    keys = jax.random.split(noise_key, probe_steps)
    probes = {}
    for place in progress.track(PROBED, "error surface"):
        start, apply = _start(weight_key, widths, place, "relu"), _apply(widths, place, "relu")
        probe = _probe(start, given[:2], batches, keys, jnp.float32(probe_rate), apply)
        probes[place] = jax.block_until_ready(probe)
    return Result(given.source, rates, sweeps, probe_rate, probes, num_epochs)


def _start(key: Array, widths: tuple[int, ...], place: Place, bend: Activation) -> tuple[Any, Any]:
    """Parameters and state; the same weights at every place of the normalization."""
    network = Network(widths, place=place, activation=bend, rngs=nnx.Rngs(params=key, dropout=key))
    return loop.bind(network)[:2]


@functools.cache
def _apply(widths: tuple[int, ...], place: Place, bend: Activation) -> Callable[..., Any]:
    """The pure function of a network: one object for each, so that jit knows it again."""
    abstract = nnx.eval_shape(
        lambda: Network(widths, place=place, activation=bend, rngs=nnx.Rngs(params=0, dropout=0))
    )
    return loop.bind(abstract).apply


@functools.partial(jax.jit, static_argnums=(1, 2))
def _order(key: Array, num_rows: int, num_epochs: int) -> Int[Array, "epochs batches rows"]:
    """A fresh permutation for each epoch, cut into batches; the remainder is dropped."""
    batch = min(BATCH, num_rows)
    keys = jax.random.split(key, num_epochs)
    whole = jax.vmap(lambda key: jax.random.permutation(key, num_rows))(keys)
    used = num_rows // batch * batch
    return whole[:, :used].reshape(num_epochs, -1, batch)


@functools.partial(jax.jit, static_argnames="apply")
def _sweep(
    start: tuple[Any, Any],
    data: tuple[Array, ...],
    order: Array,
    rates: Array,
    apply: Callable[..., Any],
) -> Sweep:
    """Train with every learning rate from the same start, on the same batches."""
    x, y, x_test, y_test = data

    def loss(params: Any, state: Any, rows: Array) -> tuple[Array, Any]:
        (logits, _), state = apply(params, state, x[rows], train=True)
        return _cross_entropy(logits, y[rows]), state

    def train(rate: Array) -> Sweep:
        def step(carry: Any, rows: Array) -> tuple[Any, Array]:
            params, state = carry
            (value, state), grad = jax.value_and_grad(loss, has_aux=True)(params, state, rows)
            return (_move(params, grad, rate), state), value

        def epoch(carry: Any, batches: Array) -> tuple[Any, Array]:
            carry, values = jax.lax.scan(step, carry, batches)
            return carry, values.mean()

        (params, state), history = jax.lax.scan(epoch, start, order)
        (logits, _), _ = apply(params, state, x_test)
        return Sweep(history[-1], (logits.argmax(axis=1) == y_test).mean())

    return jax.vmap(train)(rates)


@functools.partial(jax.jit, static_argnames="apply")
def _probe(
    start: tuple[Any, Any],
    data: tuple[Array, ...],
    batches: Array,
    keys: Array,
    rate: Array,
    apply: Callable[..., Any],
) -> Probe:
    """Train, and look along each step before it is taken."""
    x, y = data
    reach = rate * jnp.array(REACH, jnp.float32)

    def loss(params: Any, state: Any, rows: Array, key: Array) -> tuple[Array, Any]:
        (logits, seen), state = apply(params, state, x[rows], key=key, train=True)
        return _cross_entropy(logits, y[rows]), (state, seen)

    def step(carry: Any, rows_and_key: Any) -> tuple[Any, Any]:
        params, state = carry
        rows, key = rows_and_key
        both = jax.value_and_grad(loss, has_aux=True)
        (value, (new_state, _)), grad = both(params, state, rows, key)
        moved = _move(params, grad, rate)

        # One program for all the places where loss and gradient are wanted: along the step, and,
        # for each layer i, where the layers before it have moved and the others have not.
        places = [_move(params, grad, length) for length in reach]
        places += [_before(params, moved, i) for i in range(1, len(HIDDEN))]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *places)
        (values, _), grads = jax.lax.map(lambda at: both(at, state, rows, key), stacked)

        size = _norm(grad)
        away = jax.tree.map(lambda there, here: there[: len(REACH)] - here[None], grads, grad)
        change = jax.vmap(_norm)(away)
        shift = []
        for i in range(1, len(HIDDEN)):
            here = grad["layers"][i]["kernel"]
            there = grads["layers"][i]["kernel"][len(REACH) + i - 1]
            shift.append(jnp.linalg.norm(there - here) / jnp.linalg.norm(here))
        probe = Probe(
            loss=value,
            low=values[: len(REACH)].min(),
            high=values[: len(REACH)].max(),
            smoothness=(change / (reach * size)).max(),
            turn=change[-1] / size,
            shift=jnp.stack(shift),
            drift=value,  # from the moments of all steps, below
        )
        _, (_, whole) = loss(params, state, jnp.arange(len(x)), key)
        seen = jnp.stack(whole)
        return (moved, new_state), (probe, seen.mean(axis=1), seen.std(axis=1))

    _, (probe, mean, deviation) = jax.lax.scan(step, start, (batches, keys))
    drift = jnp.abs(mean[1:] - mean[:-1]) / jnp.maximum(deviation[:-1], 1e-6)
    return probe._replace(drift=drift.mean(axis=2))


def _cross_entropy(logits: Array, y: Array) -> Array:
    return losses.softmax_cross_entropy_with_integer_labels(logits, y)


def _move(params: Any, grad: Any, rate: Array) -> Any:
    return jax.tree.map(lambda p, g: p - rate * g, params, grad)


def _norm(tree: Any) -> Array:
    """Euclidean length."""
    return jnp.sqrt(sum((jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)), jnp.zeros(())))


def _before(old: Any, new: Any, index: int) -> Any:
    """`old`, with the layers (and their normalization) before `index` taken from `new`."""

    def pick(path: Any, a: Array, b: Array) -> Array:
        return b if path[1].key < index else a

    return jax.tree_util.tree_map_with_path(pick, old, new)
