"""What dropout does to a network that over-fits, and what the mean over masks really is.

A network with two hidden layers learns digits from very few pictures, once with every rate and
several starts, all in one program. Then masks are drawn for a trained network, and the mean of what
it says is compared with the one evaluation that stands for it.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.foundations import losses
from mlnotes_jax.nets import dropout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Problem", "Result", "network", "plot", "problem", "run", "start", "tables"]

RATES = (0.0, 0.25, 0.5, 0.75)
WIDTHS = (64, 128, 128, 10)
BATCH = 50
LEARNING_RATE, MOMENTUM = 0.05, 0.9
STEPS_PER_POINT = 20
SHOWN = 2  # whose masks are drawn: the index of the rate


class Problem(NamedTuple):
    """Few pictures to learn from, many to test with; pixels in [0, 1]."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    source: datasets.Source


class Data(NamedTuple):
    """A `Problem` without words, for compiled functions."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        num_train: Pictures to learn from.
        num_seeds: Starts for each rate.
        rates: Of dropping.
        steps: Updates done at each point of the curves.
        train_loss: Without dropout, shape `(rates, points)`, mean over the starts.
        test_loss: Likewise, on the test pictures.
        accuracy: On the test pictures at the end, shape `(rates, seeds)`.
        masks: Numbers of masks averaged over.
        head_error: Distance of the mean logits from those of evaluation, where only the last hidden
            layer is dropped; relative root mean square, shape `(masks,)`.
        head_predicted: The same by the formula for the variance.
        full_error: Likewise, where both hidden layers are dropped.
        ensemble: For each number of masks, accuracy and loss of the mean of the probabilities.
        scaled: Accuracy and loss of the one evaluation.
    """

    source: datasets.Source
    num_train: int
    num_seeds: int
    rates: tuple[float, ...]
    steps: np.ndarray
    train_loss: np.ndarray
    test_loss: np.ndarray
    accuracy: np.ndarray
    masks: tuple[int, ...]
    head_error: np.ndarray
    head_predicted: np.ndarray
    full_error: np.ndarray
    ensemble: np.ndarray
    scaled: np.ndarray


def problem(key: Key[Array, ""], *, num_train: int = 200) -> Problem:
    """Take a few of the digits, as many of each class as can be.

    Args:
        key: For the split.
        num_train: Pictures to learn from, at least 50 and at most 1700.

    Returns:
        Pictures, classes, source.
    """
    if not BATCH <= num_train <= 1700:
        raise ValueError(f"num_train must be in {BATCH}..1700, got {num_train}")
    data = datasets.load("digits")
    share = num_train / len(data.y)
    train, test = datasets.split(key, data.y, (share, 1 - share))
    x, y = jnp.asarray(data.x) / 16, jnp.asarray(data.y)
    return Problem(x[train], y[train], x[test], y[test], data.source)


def start(key: Key[Array, ""]) -> list[tuple[Array, Array]]:
    """Draw He's normal weights for two hidden layers."""
    keys = jax.random.split(key, len(WIDTHS) - 1)
    return [
        (jnp.sqrt(2 / i) * jax.random.normal(k, (i, o)), jnp.zeros(o))
        for k, i, o in zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
    ]


def network(
    params: list[tuple[Array, Array]],
    x: Array,
    *,
    rate: Array | float = 0.0,
    keys: tuple[Array | None, Array | None] = (None, None),
) -> Array:
    """Logits; inverted dropout behind each hidden layer that has a key."""
    for (kernel, bias), key in zip(params[:-1], keys, strict=True):
        x = jax.nn.relu(x @ kernel + bias.reshape(1, -1))
        if key is not None:
            x = dropout.dropout(key, x, rate=rate)
    return x @ params[-1][0] + params[-1][1].reshape(1, -1)


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    num_train: int = 200,
    num_seeds: int = 4,
    num_steps: int = 400,
    num_masks: int = 4096,
) -> Result:
    """Train with every rate, then average over masks.

    Args:
        key: For the split, the starts, the batches and the masks.
        quick: Half the starts and updates, and fewer masks.
        num_train: Pictures to learn from.
        num_seeds: Starts for each rate.
        num_steps: Updates, a multiple of 20.
        num_masks: Masks to average over, at least 4.

    Returns:
        Curves, accuracies, and distances between mean and evaluation.
    """
    if quick:
        num_seeds, num_steps, num_masks = min(num_seeds, 2), min(num_steps, 200), 256
    if num_steps < STEPS_PER_POINT or num_steps % STEPS_PER_POINT:
        raise ValueError(f"num_steps must be a multiple of {STEPS_PER_POINT}, got {num_steps}")
    if num_masks < 4 or num_seeds < 1:
        raise ValueError(f"too few masks or starts: {num_masks} and {num_seeds}")
    split_key, train_key, mask_key = jax.random.split(key, 3)
    *arrays, source = problem(split_key, num_train=num_train)
    data = Data(*arrays)
    rates = jnp.array(RATES)

    seeds = jax.random.split(train_key, num_seeds)
    params, opt_state = _begin(seeds)
    points = [_curves(params, data)]
    for point in progress.track(range(num_steps // STEPS_PER_POINT), "training"):
        params, opt_state = _train(params, opt_state, seeds, rates, data, point)
        points.append(_curves(params, data))
    train_loss, test_loss, accuracy = (np.stack(part) for part in zip(*points, strict=True))

    trained = jax.tree.map(lambda leaf: leaf[SHOWN, 0], params)
    rate = rates[SHOWN]
    few = data._replace(x_test=data.x_test[:100], y_test=data.y_test[:100])
    both, head, evaluated, deviation = _draw(mask_key, trained, rate, few, num_masks)
    masks = tuple(4**i for i in range(12) if 4**i <= num_masks)
    size = np.sqrt(np.mean(np.square(evaluated)))

    def distance(logits: np.ndarray) -> np.ndarray:
        means = np.cumsum(logits, axis=0)[np.array(masks) - 1] / np.array(masks).reshape(-1, 1, 1)
        return np.sqrt(np.square(means - np.asarray(evaluated)[None]).mean(axis=(1, 2))) / size

    chances = np.cumsum(jax.nn.softmax(both), axis=0)
    return Result(
        source=source,
        num_train=len(data.y_train),
        num_seeds=num_seeds,
        rates=RATES,
        steps=np.arange(len(points)) * STEPS_PER_POINT,
        train_loss=train_loss.mean(axis=2).T,
        test_loss=test_loss.mean(axis=2).T,
        accuracy=accuracy[-1],
        masks=masks,
        head_error=distance(head),
        head_predicted=float(deviation) / size / np.sqrt(masks),
        full_error=distance(both),
        ensemble=np.array([_judge(chances[n - 1] / n, few.y_test) for n in masks]),
        scaled=_judge(np.asarray(jax.nn.softmax(evaluated)), few.y_test),
    )


_OPTIMIZER = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)


@jax.jit
def _begin(seeds: Array) -> Any:
    """The same starts for every rate: leading axes (rates, seeds)."""
    params = jax.vmap(start)(seeds)
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(RATES)), params)
    return params, jax.vmap(jax.vmap(_OPTIMIZER.init))(params)


@jax.jit
def _train(
    params: list[tuple[Array, Array]],
    opt_state: optax.OptState,
    seeds: Array,
    rates: Array,
    data: Data,
    point: int,
) -> Any:
    """A few updates of all networks; `vmap` over the rates, too: they are traced."""

    def one(params, opt_state, seed, rate):
        def step(carry, key):
            params, opt_state = carry
            rows_key, *keys = jax.random.split(key, 3)
            rows = jax.random.randint(rows_key, (BATCH,), 0, len(data.y_train))

            def loss(params):
                logits = network(params, data.x_train[rows], rate=rate, keys=tuple(keys))
                return losses.softmax_cross_entropy_with_integer_labels(logits, data.y_train[rows])

            updates, opt_state = _OPTIMIZER.update(jax.grad(loss)(params), opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        keys = jax.random.split(jax.random.fold_in(seed, point), STEPS_PER_POINT)
        return jax.lax.scan(step, (params, opt_state), keys)[0]

    over_seeds = jax.vmap(one, in_axes=(0, 0, 0, None))
    return jax.vmap(over_seeds, in_axes=(0, 0, None, 0))(params, opt_state, seeds, rates)


@jax.jit
def _curves(params: list[tuple[Array, Array]], data: Data) -> tuple[Array, Array, Array]:
    """Training loss, test loss and test accuracy, each (rates, seeds)."""

    def one(params):
        train, test = network(params, data.x_train), network(params, data.x_test)
        return (
            losses.softmax_cross_entropy_with_integer_labels(train, data.y_train),
            losses.softmax_cross_entropy_with_integer_labels(test, data.y_test),
            (test.argmax(axis=1) == data.y_test).mean(),
        )

    return jax.vmap(jax.vmap(one))(params)


def _draw(
    key: Array, params: list[tuple[Array, Array]], rate: Array, data: Data, num_masks: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Array]:
    """Logits for each mask of both layers, and of the last one; of evaluation; their deviation."""
    keys = jax.random.split(key, num_masks)
    return jax.tree.map(np.asarray, _masked(keys, params, rate, data.x_test))


@jax.jit
def _masked(
    keys: Array, params: list[tuple[Array, Array]], rate: Array, x: Array
) -> tuple[Array, Array, Array, Array]:
    def one(key: Array) -> tuple[Array, Array]:
        first, second = jax.random.split(key)
        both = network(params, x, rate=rate, keys=(first, second))
        return both, network(params, x, rate=rate, keys=(None, second))

    both, head = jax.lax.map(one, keys)
    hidden = x
    for kernel, bias in params[:-1]:
        hidden = jax.nn.relu(hidden @ kernel + bias.reshape(1, -1))
    # The logits are linear in what is dropped: variances add up, with squared weights.
    variance = dropout.variance(hidden, rate=rate) @ jnp.square(params[-1][0])
    return both, head, network(params, x), jnp.sqrt(variance.mean())


def _judge(chances: np.ndarray, y: Array) -> np.ndarray:
    """Accuracy and mean negative log-likelihood."""
    labels = np.asarray(y)
    right = chances.argmax(axis=1) == labels
    return np.array([right.mean(), -np.log(chances[np.arange(len(labels)), labels]).mean()])


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    accuracy = result.accuracy
    seeds = accuracy.shape[1]
    error = accuracy.std(axis=1, ddof=1) / seeds**0.5 if seeds > 1 else np.full(len(accuracy), 0.0)
    learned: list[dict[str, object]] = [
        {
            "dropped": f"{rate:.0%}",
            "training loss": float(result.train_loss[i, -1]),
            "test loss": float(result.test_loss[i, -1]),
            "test accuracy": f"{accuracy[i].mean():.1%}",
            "standard error": f"{error[i]:.1%}",
        }
        for i, rate in enumerate(result.rates)
    ]
    averaged: list[dict[str, object]] = [
        {
            "masks": str(masks),
            "last layer": f"{head:.4f}",
            "by formula": f"{predicted:.4f}",
            "both layers": f"{full:.4f}",
            "test loss": f"{loss:.4f}",
        }
        for masks, head, predicted, full, (_, loss) in zip(
            result.masks,
            result.head_error,
            result.head_predicted,
            result.full_error,
            result.ensemble,
            strict=True,
        )
    ]
    averaged.append(
        {
            "masks": "scaled",
            "last layer": "0",
            "by formula": "0",
            "both layers": "0",
            "test loss": f"{result.scaled[1]:.4f}",
        }
    )
    few, updates = result.num_train, result.steps[-1]
    return {
        f"Digits from {few} pictures, {updates} updates, {seeds} starts": learned,
        f"Mean over masks, {result.rates[SHOWN]:.0%} dropped: distance of the logits from those "
        "of the scaled network, and loss of the mean probabilities": averaged,
    }


def plot(result: Result) -> "Figure":
    """Draw the losses, the accuracy against the rate, and the mean over masks."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, (curves, rates, means) = plt.subplots(1, 3, figsize=(9, 3.2))
        lines = ("-", "--", "-.", ":")
        for i, (rate, color, line) in enumerate(
            zip(result.rates, figures.COLORS, lines, strict=False)
        ):
            label = f"{rate:.0%}" if rate else "none"
            curves.semilogy(
                result.steps[1:], result.test_loss[i, 1:], line, color=color, label=label
            )
            curves.semilogy(
                result.steps[1:], result.train_loss[i, 1:], line, color=color, alpha=0.45, lw=1.2
            )
        curves.set(xlabel="updates", ylabel="loss", title="Test (bold), training (thin)")
        curves.legend(title="dropped", fontsize="small", title_fontsize="small", ncols=2)

        mean = result.accuracy.mean(axis=1)
        for seed in result.accuracy.T:
            rates.plot(result.rates, 100 * seed, ".", color=figures.GREY)
        rates.plot(result.rates, 100 * mean, "o-", color=figures.BLUE, label="mean of the starts")
        rates.set(
            xlabel="rate of dropping", ylabel="test accuracy, %", title="Too little, too much"
        )
        rates.legend(fontsize="small")

        means.loglog(
            result.masks, result.full_error, "s-", color=figures.VERMILLION, label="both layers"
        )
        means.loglog(result.masks, result.head_error, "o", color=figures.BLUE, label="last layer")
        means.loglog(
            result.masks,
            result.head_predicted,
            ":",
            color=figures.GREY,
            label="formula, last layer",
        )
        means.set(
            xlabel="masks averaged",
            ylabel="relative distance",
            title="Mean over masks − evaluation",
        )
        means.legend(fontsize="small")
    return figure
