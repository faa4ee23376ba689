"""Full batch, mini-batch and single examples on one problem, and how fast descent can be.

Linear regression of the progression of diabetes on ten measurements of 442 patients, all scaled to
mean 0 and variance 1. The loss is a quadratic whose minimum and Hessian are known, so everything
that the theory says about descent can be measured.
"""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures
from mlnotes_jax.foundations import gradient_descent as gd
from mlnotes_jax.foundations import linear_regression as lr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Problem", "Rates", "Result", "curve", "loss", "plot", "problem", "run", "tables"]

DECAY = 0.95
START, END = -6.0, 6.0


class Problem(NamedTuple):
    """Scaled measurements `(n, 10)`, scaled progression `(n,)`, and where they come from."""

    x: Array
    y: Array
    source: datasets.Source


class Rates(NamedTuple):
    r"""Full-batch walks with constant rates.

    Attributes:
        lowest: The lowest loss there is, by the closed form.
        eigenvalues: Of the Hessian of the loss, ascending, shape `(11,)`.
        shares: The rates, divided by $2 / \lambda_{\max}$, shape `(3,)`.
        distances: Distance to the minimum after each step, shape `(3, steps + 1)`.
        diverged: Whether each walk diverged, shape `(3,)`.
        predicted: The worst factor of a step that the eigenvalues allow, shape `(3,)`.
        measured: The factor of a step over the second half of the walk, shape `(3,)`.
    """

    lowest: Array
    eigenvalues: Array
    shares: Array
    distances: Array
    diverged: Array
    predicted: Array
    measured: Array


class Result(NamedTuple):
    r"""What `run` found.

    Attributes:
        source: The data.
        batch_sizes: Of the three ways: all rows, the mini-batch, 1.
        counts: Their updates.
        trainings: What each of them did.
        learning_rate: The rate of all three.
        smoothed: The batch losses of the mini-batch way: debiased average and the average that
            starts from zero, shape `(2, updates)`.
        rates: The second experiment.
        noise_sizes: Batch sizes of the third experiment.
        noise_formula: Variance of the batch gradient (summed over its entries) by the formula.
        noise_measured: The same, over drawn batches.
        found: The walks down `curve`.
    """

    source: datasets.Source
    batch_sizes: tuple[int, ...]
    counts: tuple[gd.Counts, ...]
    trainings: tuple[gd.Training, ...]
    learning_rate: float
    smoothed: Array
    rates: Rates
    noise_sizes: tuple[int, ...]
    noise_formula: Array
    noise_measured: Array
    found: gd.MultiStart


def problem(key: Key[Array, ""] | None = None) -> Problem:
    """Load the patients and scale every column.

    Args:
        key: Not used: nothing is drawn.

    Returns:
        Measurements, progression, source.
    """
    del key
    data = datasets.load("diabetes")
    x = (data.x - data.x.mean(axis=0)) / data.x.std(axis=0)
    y = (data.y - data.y.mean()) / data.y.std()
    return Problem(jnp.asarray(x), jnp.asarray(y), data.source)


def loss(params: Array, batch: tuple[Array, Array]) -> Array:
    """Mean squared error of a linear function: ten weights, then the intercept."""
    x, y = batch
    return jnp.square(y - x @ params[:-1] - params[-1]).mean()


def curve(x: Array) -> Array:
    """A curve with four valleys between -6 and 6, of different depth."""
    return jnp.sin(2 * x) + 0.05 * (x - 1) ** 2


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    batch_size: int = 32,
    num_epochs: int = 60,
    learning_rate: float = 0.005,
    num_steps: int = 1000,
    num_starts: int = 24,
) -> Result:
    """Compare batch sizes, learning rates and starting points.

    Args:
        key: For shuffling, drawn batches and starting points.
        quick: Fewer epochs and drawn batches.
        batch_size: Rows of a mini-batch, between 2 and 441.
        num_epochs: Passes over the data with each batch size.
        learning_rate: Of all three batch sizes. At 0.05 single examples diverge.
        num_steps: Full-batch steps with each share of the largest stable rate.
        num_starts: Starting points of the walks down the curve with several valleys.

    Returns:
        Losses, distances, variances and walks.
    """
    data = problem(key)
    batch, n = (data.x, data.y), len(data.y)
    if quick:
        num_epochs = min(num_epochs, 20)
    keys = jax.random.split(key, 3)
    batch_sizes = (n, batch_size, 1)
    noise_sizes = (1, 4, 16, 64, 256, n)

    trainings, smoothed = _train(keys[0], batch, learning_rate, batch_sizes, num_epochs)
    rates = _rates(batch, num_steps)
    noise = _noise(keys[1], batch, noise_sizes, 500 if quick else 4000)
    found = _search(keys[2], num_starts)
    return Result(
        source=data.source,
        batch_sizes=batch_sizes,
        counts=tuple(gd.counts(n, batch_size=b, num_epochs=num_epochs) for b in batch_sizes),
        trainings=trainings,
        learning_rate=learning_rate,
        smoothed=smoothed,
        rates=rates,
        noise_sizes=noise_sizes,
        noise_formula=noise[0],
        noise_measured=noise[1],
        found=found,
    )


@partial(jax.jit, static_argnames=("sizes", "num_epochs"))
def _train(
    key: Array, data: tuple[Array, Array], rate: Array, sizes: tuple[int, ...], num_epochs: int
) -> tuple[tuple[gd.Training, ...], Array]:
    """Train from zero with each batch size; smooth the batch losses of the second."""
    start = jnp.zeros(data[0].shape[1] + 1)
    trainings = tuple(
        gd.minimize(
            key, loss, start, data, batch_size=size, num_epochs=num_epochs, learning_rate=rate
        )
        for size in sizes
    )
    noisy = trainings[1].batch_loss.ravel()
    debiased = gd.exponential_average(noisy, decay=DECAY)
    from_zero = gd.exponential_average(noisy, decay=DECAY, start="zero")
    return trainings, jnp.stack([debiased, from_zero])


@partial(jax.jit, static_argnames="num_steps")
def _rates(data: tuple[Array, Array], num_steps: int) -> Rates:
    """Walk with half the largest stable rate, the best one, and one that is too large."""
    model = lr.fit(*data)
    best = jnp.append(model.coef, model.intercept)
    eigenvalues = jnp.linalg.eigvalsh(lr.hessian(data[0]))
    limit = gd.stable_learning_rate(eigenvalues)
    shares = jnp.stack(
        [jnp.array(0.5), gd.best_learning_rate(eigenvalues) / limit, jnp.array(1.02)]
    )

    def walk(rate: Array) -> tuple[Array, ...]:
        start = jnp.zeros_like(best)
        descent = gd.gradient_descent(loss, start, data, learning_rate=rate, num_steps=num_steps)
        distance = jnp.linalg.norm(descent.path - best[None], axis=1)
        late = distance[num_steps // 2 :]
        measured = (late[-1] / late[0]) ** (1 / (len(late) - 1))
        predicted = gd.contraction_factor(eigenvalues, learning_rate=rate)
        return distance, descent.diverged, predicted, measured

    return Rates(loss(best, data), eigenvalues, shares, *jax.vmap(walk)(shares * limit))


@partial(jax.jit, static_argnames=("sizes", "num_draws"))
def _noise(
    key: Array, data: tuple[Array, Array], sizes: tuple[int, ...], num_draws: int
) -> tuple[Array, Array]:
    """Variance of the batch gradient at zero: the formula, and over draws without replacement."""
    gradients = gd.example_gradients(loss, jnp.zeros(data[0].shape[1] + 1), data)
    formula = [gd.minibatch_variance(gradients, batch_size=size).sum() for size in sizes]

    def draw(key: Array) -> Array:
        # The first rows of one permutation are a batch of every size.
        shuffled = gradients[jax.random.permutation(key, len(gradients))]
        return jnp.stack([shuffled[:size].mean(axis=0) for size in sizes])

    means = jax.lax.map(draw, jax.random.split(key, num_draws), batch_size=100)
    return jnp.stack(formula), jnp.square(means - gradients.mean(axis=0)[None, None]).sum(2).mean(0)


@partial(jax.jit, static_argnames="num_starts")
def _search(key: Array, num_starts: int) -> gd.MultiStart:
    starts = jax.random.uniform(key, (num_starts,), minval=START, maxval=END)
    return gd.multi_start(curve, starts, learning_rate=0.1, num_steps=100)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    names = ("full batch", "mini-batch", "stochastic")
    found = result.found
    final = np.asarray(found.runs.loss[:, -1])
    epochs = len(result.trainings[0].epoch_loss) - 1
    return {
        f"{epochs} epochs, rate {result.learning_rate} (median loss of the last half)": [
            {
                "descent": name,
                "batch size": size,
                "updates": count.num_updates,
                "example gradients": count.examples_seen,
                # One stochastic epoch may end high or low by luck.
                "loss above lowest": round(
                    float(jnp.median(training.epoch_loss[epochs // 2 :]) - result.rates.lowest), 5
                ),
            }
            for name, size, count, training in zip(
                names, result.batch_sizes, result.counts, result.trainings, strict=True
            )
        ],
        "Distance to the minimum, full batch, each step": [
            {
                "rate / limit": round(float(share), 4),
                "shrinks by, predicted": round(1 - float(predicted), 6),
                "shrinks by, measured": round(1 - float(measured), 6),
                "diverged": "yes" if bool(diverged) else "no",
            }
            for share, predicted, measured, diverged in zip(
                result.rates.shares,
                result.rates.predicted,
                result.rates.measured,
                result.rates.diverged,
                strict=True,
            )
        ],
        "Variance of the batch gradient": [
            {
                "batch size": size,
                "formula": round(float(formula), 5),
                "measured": round(float(measured), 5),
            }
            for size, formula, measured in zip(
                result.noise_sizes, result.noise_formula, result.noise_measured, strict=True
            )
        ],
        "Many starts on a curve with several valleys": [
            {
                "starts": len(final),
                "ended in the lowest valley": int((final < final.min() + 1e-3).sum()),
                "lowest at x": round(float(found.best.params), 4),
                "value there": round(float(found.best.loss[-1]), 4),
            }
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw losses, distances, averages, variances and walks."""
    import matplotlib.pyplot as plt

    names = ("full batch", "mini-batch", "stochastic")
    dashes, marks = ("-", "--", "-."), ("o", "s", "^")
    with figures.style():
        figure, axes = plt.subplots(2, 3, figsize=(9, 5.8))
        updates, epochs, rates, averages, noise, valleys = axes.ravel()

        for name, count, training, dash, mark in zip(
            names, result.counts, result.trainings, dashes, marks, strict=True
        ):
            excess = np.asarray(training.epoch_loss) - float(result.rates.lowest)
            epoch = np.arange(len(excess))
            updates.loglog(
                epoch[1:] * count.updates_per_epoch, excess[1:], dash, marker=mark, markersize=3,
                label=name,
            )  # fmt: skip
            epochs.semilogy(epoch, excess, dash, marker=mark, markersize=3, label=name)
        updates.set(xlabel="updates", ylabel="loss above the lowest", title="Counted in updates")
        epochs.set(xlabel="epochs", ylabel="loss above the lowest", title="Counted in epochs")
        updates.legend(fontsize="small")

        step = np.arange(result.rates.distances.shape[1])
        labels = ("half the limit", "the best rate", "1.02 × the limit")
        for label, distance, factor, dash in zip(
            labels, result.rates.distances, result.rates.predicted, dashes, strict=True
        ):
            rates.semilogy(step, distance, dash, label=label)
            rates.semilogy(
                step, float(distance[0]) * float(factor) ** step, ":", color=figures.GREY, lw=1
            )
        rates.plot([], [], ":", color=figures.GREY, lw=1, label="factor predicted")
        rates.set_ylim(1e-3, 1e2)
        rates.set(xlabel="full-batch steps", ylabel="distance to the minimum", title="Three rates")
        rates.legend(fontsize="small")

        shown = slice(0, 150)
        update = np.arange(1, result.smoothed.shape[1] + 1)[shown]
        averages.plot(
            update, result.trainings[1].batch_loss.ravel()[shown], ".", color=figures.GREY,
            markersize=3, label="each batch",
        )  # fmt: skip
        averages.plot(update, result.smoothed[0][shown], label="debiased average")
        averages.plot(update, result.smoothed[1][shown], label="started from zero")
        averages.set(xlabel="updates", ylabel="batch loss", title=f"Average, decay {DECAY}")
        averages.legend(fontsize="small")

        sizes = result.noise_sizes[
            :-1
        ]  # the variance of the full batch is 0: no place on a log axis
        noise.loglog(sizes, result.noise_formula[:-1], "-", label="formula")
        noise.loglog(
            sizes, result.noise_measured[:-1], "o", color=figures.VERMILLION, label="measured"
        )
        noise.loglog(
            sizes, float(result.noise_formula[0]) / np.array(sizes), ":", color=figures.GREY,
            label="1 / batch size",
        )  # fmt: skip
        noise.set(xlabel="batch size", ylabel="variance of the gradient", title="Gradient noise")
        noise.legend(fontsize="small")

        at = np.linspace(START, END, 400)
        valleys.plot(at, jax.vmap(curve)(jnp.asarray(at)))
        ends, starts = result.found.runs.params, result.found.runs.path[:, 0]
        valleys.plot(
            starts, jax.vmap(curve)(starts), "o", color=figures.GREY, markersize=4, label="starts"
        )
        valleys.plot(
            ends, jax.vmap(curve)(ends), "s", color=figures.VERMILLION, markersize=5, label="ends"
        )
        valleys.plot(
            result.found.best.params, result.found.best.loss[-1], "*", color=figures.GREEN,
            markersize=14, label="best",
        )  # fmt: skip
        valleys.set(xlabel="x", ylabel="f(x)", title="Many starts")
        valleys.legend(fontsize="small")
    return figure
