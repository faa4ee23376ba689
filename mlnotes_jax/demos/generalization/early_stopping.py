"""When to stop: four rules on one training run, and sixteen runs that each stop by themselves.

A network with one hidden layer learns handwritten digits from few pictures, and a share of their
labels is wrong. First it learns what digits look like, then it learns the wrong labels by heart.
The validation loss falls and rises again; the rules look at it and say stop.
"""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures
from mlnotes_jax.foundations import losses
from mlnotes_jax.generalization import early_stopping

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Outcome", "Problem", "Result", "Runs", "plot", "problem", "run", "tables"]

NUM_CLASSES, BATCH_SIZE = 10, 32


class Problem(NamedTuple):
    """Pictures in rows, labels, and where they come from.

    Attributes:
        train: Pictures `(n, 64)`, labels `(n,)`, some of them wrong.
        validation: The same; labels wrong as often.
        test: The same; all labels right.
        source: The data.
    """

    train: tuple[Array, Array]
    validation: tuple[Array, Array]
    test: tuple[Array, Array]
    source: datasets.Source


class Outcome(NamedTuple):
    """What a rule would have done to the run.

    Attributes:
        rule: In words.
        stopped_at: The epoch (from 0) after which it stops; -1 if never.
        best_epoch: The epoch with the lowest validation loss until then.
        accuracy_last: Test accuracy after the last epoch it lets run.
        accuracy_kept: Test accuracy of the parameters that are kept.
    """

    rule: str
    stopped_at: int
    best_epoch: int
    accuracy_last: float
    accuracy_kept: float


class Runs(NamedTuple):
    """Several runs in one program, with different starts, validation sets and batches.

    Attributes:
        num_epochs: After how many epochs each stopped, shape `(runs,)`.
        best_epoch: Which parameters it kept, shape `(runs,)`.
        accuracy_kept: Their test accuracy, shape `(runs,)`.
        accuracy_full: Test accuracy after all epochs, without stopping, shape `(runs,)`.
    """

    num_epochs: Array
    best_epoch: Array
    accuracy_kept: Array
    accuracy_full: Array


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        training: Training loss after each epoch, shape `(epochs,)`.
        validation: Validation loss, likewise.
        test: Test loss, likewise.
        accuracy: Test accuracy, likewise.
        each: Validation loss of every single picture, shape `(epochs, n)`.
        goal: The lower threshold.
        limit: The upper threshold.
        outcomes: The rules, in the order of the table.
        runs: The second experiment.
    """

    source: datasets.Source
    training: Array
    validation: Array
    test: Array
    accuracy: Array
    each: Array
    goal: float
    limit: float
    outcomes: tuple[Outcome, ...]
    runs: Runs


def problem(key: Key[Array, ""], *, num_train: int = 500, noise: float = 0.3) -> Problem:
    """Load the digits, split them, and give some labels a wrong value.

    Args:
        key: For the split and the wrong labels.
        num_train: Training pictures, at most 900.
        noise: Share of wrong labels in the training and the validation set.

    Returns:
        Training, validation (400 pictures) and test set.
    """
    if not 1 <= num_train <= 900:
        raise ValueError(f"num_train must be in 1..900, got {num_train}")
    if not 0 <= noise <= 1:
        raise ValueError(f"noise must be in [0, 1], got {noise}")
    data = datasets.load("digits")
    split_key, noise_key = jax.random.split(key)
    order = np.asarray(jax.random.permutation(split_key, len(data.y)))
    x, right = jnp.asarray(data.x[order] / 16.0, jnp.float32), jnp.asarray(data.y[order])
    wrong = _spoil(noise_key, right, noise)
    ends = (num_train, num_train + 400)
    return Problem(
        (x[: ends[0]], wrong[: ends[0]]),
        (x[ends[0] : ends[1]], wrong[ends[0] : ends[1]]),
        (x[ends[1] :], right[ends[1] :]),
        data.source,
    )


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    num_train: int = 500,
    noise: float = 0.3,
    num_epochs: int = 150,
    learning_rate: float = 0.1,
    num_hidden: int = 256,
    patience: int = 10,
    num_runs: int = 16,
) -> Result:
    """Train once to the end, and ask each rule when it would have stopped; then train many.

    Args:
        key: For everything that is drawn.
        quick: Fewer epochs and runs.
        num_train: Training pictures, at most 900.
        noise: Share of wrong labels in the training and the validation set.
        num_epochs: Passes over the training set, without stopping.
        learning_rate: Of stochastic gradient descent with batches of 32.
        num_hidden: Hidden units.
        patience: Of the rules that count epochs.
        num_runs: Runs of the second experiment.

    Returns:
        Losses, where each rule stops, and the runs.
    """
    if quick:
        num_epochs, num_runs = min(num_epochs, 80), min(num_runs, 6)
    data_key, train_key, runs_key = jax.random.split(key, 3)
    data = problem(data_key, num_train=num_train, noise=noise)
    (training, validation, each), (test, accuracy) = _train(
        train_key, data[:3], learning_rate, num_epochs=num_epochs, num_hidden=num_hidden
    )
    lowest = float(validation.min())
    goal, limit = 1.05 * lowest, 1.1 * lowest
    rules = {
        f"loss below {goal:.2f}": early_stopping.threshold(goal, when="below"),
        # The first losses are high: the rule begins when the best is reached, at the latest.
        f"loss above {limit:.2f}": early_stopping.threshold(
            limit, after=int((validation > limit).argmin())
        ),
        f"no new lowest in {patience}": early_stopping.no_improvement(patience),
        f"above training {patience} times": early_stopping.above_training(patience),
    }
    outcomes = []
    for name, rule in rules.items():
        stop = int(early_stopping.stopped_at(rule, training, validation))
        seen = validation[: stop + 1] if stop >= 0 else validation
        best = int(seen.argmin())
        outcomes.append(
            Outcome(name, stop, best, float(accuracy[len(seen) - 1]), float(accuracy[best]))
        )
    whole = int(validation.argmin())
    outcomes.append(Outcome("never", -1, whole, float(accuracy[-1]), float(accuracy[whole])))
    # The patience is traced: the same program trains to the end where it is never used up.
    many = partial(
        _many, jax.random.split(runs_key, num_runs), data[:3], learning_rate,
        num_epochs=num_epochs, num_hidden=num_hidden,
    )  # fmt: skip
    stopped = many(patience)
    runs = Runs(*stopped[:3], accuracy_full=many(num_epochs + 1)[3])
    return Result(
        data.source, training, validation, test, accuracy, each, goal, limit, tuple(outcomes), runs
    )


def _spoil(key: Array, right: Array, noise: Array | float) -> Array:
    """Replace a share of the labels by another class, drawn uniformly."""
    which, shift = jax.random.split(key)
    hit = jax.random.bernoulli(which, noise, right.shape)
    other = (right + jax.random.randint(shift, right.shape, 1, NUM_CLASSES)) % NUM_CLASSES
    return jnp.where(hit, other.astype(right.dtype), right)


def _init(key: Array, num_hidden: int) -> PyTree:
    """He initialization, uniform. One draw for both layers: two take far longer to compile."""
    sizes = 64 * num_hidden, num_hidden * NUM_CLASSES
    first, second = jnp.split(jax.random.uniform(key, (sum(sizes),), minval=-1.0), [sizes[0]])
    return {
        "w1": (6 / 64) ** 0.5 * first.reshape(64, num_hidden),
        "b1": jnp.zeros(num_hidden),
        "w2": (6 / num_hidden) ** 0.5 * second.reshape(num_hidden, NUM_CLASSES),
        "b2": jnp.zeros(NUM_CLASSES),
    }


def _logits(params: PyTree, x: Array) -> Array:
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"][None])
    return hidden @ params["w2"] + params["b2"][None]


def _losses(params: PyTree, data: tuple[Array, Array]) -> Array:
    x, y = data
    return losses.softmax_cross_entropy_with_integer_labels(_logits(params, x), y, reduction="none")


def _mean_loss(params: PyTree, data: tuple[Array, Array]) -> Array:
    return _losses(params, data).mean()


def _accuracy(params: PyTree, data: tuple[Array, Array]) -> Array:
    return (_logits(params, data[0]).argmax(axis=1) == data[1]).astype(jnp.float32).mean()


def _epoch(carry: tuple[Array, PyTree], train: tuple[Array, Array], rate: Array) -> PyTree:
    """Shuffle, and go once through the batches."""
    key, params = carry
    key, order_key = jax.random.split(key)
    n = len(train[1]) // BATCH_SIZE * BATCH_SIZE
    order = jax.random.permutation(order_key, len(train[1]))[:n].reshape(-1, BATCH_SIZE)

    def update(params: PyTree, rows: Array) -> tuple[PyTree, None]:
        grad = jax.grad(_mean_loss)(params, (train[0][rows], train[1][rows]))
        return jax.tree.map(lambda p, g: p - rate.astype(p.dtype) * g, params, grad), None

    return key, jax.lax.scan(update, params, order)[0]


@partial(jax.jit, static_argnames=("num_epochs", "num_hidden"))
def _train(
    key: Array, data: tuple, rate: Array, *, num_epochs: int, num_hidden: int
) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
    """Train without stopping and write down everything."""
    train, validation, test = data
    init_key, key = jax.random.split(key)
    rate = jnp.asarray(rate)

    def epoch(carry: PyTree, _: None) -> tuple[PyTree, tuple]:
        carry = _epoch(carry, train, rate)
        params = carry[1]
        each = _losses(params, validation)
        seen = _mean_loss(params, train), each.mean(), each
        return carry, (seen, (_mean_loss(params, test), _accuracy(params, test)))

    return jax.lax.scan(epoch, (key, _init(init_key, num_hidden)), None, num_epochs)[1]


@partial(jax.jit, static_argnames=("num_epochs", "num_hidden"))
def _many(
    keys: Array, data: tuple, rate: Array, patience: Array, *, num_epochs: int, num_hidden: int
) -> tuple[Array, Array, Array, Array]:
    """Run every key in its own lane; each stops when its own rule says so."""
    pooled = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), data[0], data[1])
    num_train, test = len(data[0][1]), data[2]
    rate = jnp.asarray(rate)

    def one(key: Array) -> tuple[Array, Array, Array, Array]:
        init_key, split_key, key = jax.random.split(key, 3)
        order = jax.random.permutation(split_key, len(pooled[1]))
        x, y = jax.tree.map(lambda leaf: leaf[order], pooled)
        train = x[:num_train], y[:num_train]

        def step(carry: PyTree) -> tuple[PyTree, Array, Array]:
            carry = _epoch(carry, train, rate)
            each = _losses(carry[1], (x, y))
            return carry, each[:num_train].mean(), each[num_train:].mean()

        stopped = early_stopping.until_stopped(
            step,
            (key, _init(init_key, num_hidden)),
            early_stopping.no_improvement(patience),
            max_updates=num_epochs,
            params=lambda carry: carry[1],
        )
        ends = jax.tree.map(lambda *p: jnp.stack(p), stopped.best.params, stopped.carry[1])
        kept, last = jax.lax.map(lambda params: _accuracy(params, test), ends)
        return stopped.num_updates, stopped.best.epoch, kept, last

    return jax.vmap(one)(keys)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    epochs, runs = len(result.training), result.runs
    stops = np.asarray(runs.num_epochs)
    return {
        f"One run of {epochs} epochs (counted from 0)": [
            {
                "rule": outcome.rule,
                "stops after": outcome.stopped_at if outcome.stopped_at >= 0 else "-",
                "keeps": outcome.best_epoch,
                "its accuracy": _percent(outcome.accuracy_kept),
                "accuracy at the end": _percent(outcome.accuracy_last),
            }
            for outcome in result.outcomes
        ],
        f"{len(stops)} runs in one program, each stops by itself": [
            {
                "epochs": f"{stops.min()} to {stops.max()}",
                "mean": round(float(stops.mean()), 1),
                "accuracy kept": _percent(runs.accuracy_kept.mean()),
                f"after {epochs}": _percent(runs.accuracy_full.mean()),
            }
        ],
    }


def _percent(share: float | Array) -> str:
    return f"{100 * float(share):.1f}%"


def plot(result: Result) -> "Figure":
    """Draw the losses, the test accuracy, and the runs."""
    import matplotlib.pyplot as plt

    epoch = np.arange(len(result.training))
    marks = ("o", "s", "^", "D")
    with figures.style():
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 3.4))
        left.plot(epoch, result.training, label="training")
        left.plot(epoch, result.validation, label="validation")
        for bound in (result.goal, result.limit):
            left.axhline(bound, color=figures.GREY, lw=0.8, ls=":")
        middle.plot(epoch, result.accuracy, color=figures.GREEN)
        stopped = [outcome for outcome in result.outcomes if outcome.stopped_at >= 0]
        for outcome, mark in zip(stopped, marks, strict=False):
            at = outcome.stopped_at
            for axes, values in ((left, result.validation), (middle, result.accuracy)):
                label = outcome.rule if axes is middle else None
                axes.plot(
                    at, values[at], mark, color=figures.PURPLE, mfc="none", ms=7, mew=1.6,
                    label=label,
                )  # fmt: skip
        best = int(np.argmin(result.validation))
        left.plot(best, result.validation[best], "*", color=figures.OCHRE, ms=11, label="lowest")
        left.set(xlabel="epoch", ylabel="loss", title="What the rules see", ylim=(0, None))
        middle.set(xlabel="epoch", ylabel="test accuracy", title="What is at stake")
        low = float(result.accuracy[best:].min())
        middle.set_ylim(low - 0.12, float(result.accuracy.max()) + 0.02)
        left.legend(fontsize="small")
        middle.legend(fontsize="x-small", loc="lower right")

        runs = result.runs
        right.plot(runs.num_epochs, runs.accuracy_kept, "o", color=figures.BLUE, label="kept")
        full = np.full(len(runs.accuracy_full), len(epoch))
        right.plot(full, runs.accuracy_full, "s", color=figures.VERMILLION, label="not stopped")
        right.set(xlabel="epochs made", ylabel="test accuracy", xlim=(0, None))
        right.set_title(f"{len(full)} runs, {result.outcomes[2].rule}")
        right.legend(fontsize="small")
    return figure
