"""Learning rates that change; the range test on a network; Adam with and without a warm-up.

All schedules are drawn over the same updates. The range test is run with SGD and with Adam, on a
tanh network of five hidden layers. Then the early steps of Adam are looked at: many runs from the
same weights see different batches, and the variance over the runs says how far the second moment,
and the step itself, can be trusted. Last, the network is trained with a ladder of rates, from
several starts, with and without a warm-up.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import _pictures, figures, progress
from mlnotes_jax.foundations import losses
from mlnotes_jax.nets import mlp
from mlnotes_jax.optimization import adam, schedules
from mlnotes_jax.training import loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Early", "Ladder", "Result", "curves", "plot", "problem", "run", "tables"]

LOSS = losses.softmax_cross_entropy_with_integer_labels
HIDDEN = (64,) * 5
BATCH = 64
WARMUP = 20  # updates
BETA1, BETA2 = 0.9, 0.999  # of Adam


class Early(NamedTuple):
    r"""The first steps of Adam, over many runs that see other batches.

    Attributes:
        moment: Relative variance of the corrected second moment with the weights at rest, over the
            runs: the median over the weights. Shape `(steps,)`.
        at_rest: Variance over the runs of the direction $\\hat m_t / \\sqrt{\\hat v_t}$ with the
            weights at rest: the mean over the weights. Shape `(steps,)`.
        plain: Variance over the runs of the step in training without a warm-up, in units of the
            rate squared: the mean over the weights. Shape `(steps,)`.
        warm: The same with a warm-up.
        num_runs: How many runs.
        rate: At which they train.
    """

    moment: Float[np.ndarray, " steps"]
    at_rest: Float[np.ndarray, " steps"]
    plain: Float[np.ndarray, " steps"]
    warm: Float[np.ndarray, " steps"]
    num_runs: int
    rate: float


class Ladder(NamedTuple):
    """Training with many rates, without and with a warm-up.

    Attributes:
        rates: Shape `(rates,)`.
        plain: Mean training loss of the last epoch without a warm-up, shape `(rates, seeds)`;
            infinite where a run ended at a loss that is not finite.
        warm: The same with a warm-up.
        num_epochs: How long.
        num_steps: The same in updates. In all runs the rate falls along a cosine.
    """

    rates: Float[np.ndarray, " rates"]
    plain: Float[np.ndarray, "rates seeds"]
    warm: Float[np.ndarray, "rates seeds"]
    num_epochs: int
    num_steps: int


class Result(NamedTuple):
    """What was measured.

    Attributes:
        source: Which pictures.
        num_rows: How many of them are trained on.
        num_parameters: Of the network.
        curves: Name of a schedule to its rates, relative to the highest.
        range_tests: Name of a rule to what its range test found.
        early: The first steps of Adam.
        ladder: Rates with and without a warm-up.
    """

    source: datasets.Source
    num_rows: int
    num_parameters: int
    curves: dict[str, np.ndarray]
    range_tests: dict[str, schedules.RangeTest]
    early: Early
    ladder: Ladder


def problem(
    key: Key[Array, ""],
    *,
    data: _pictures.Choice = "auto",
    data_dir: Path | None = None,
    rows: int | None = None,
) -> tuple[Array, Array, datasets.Source]:
    """Read the pictures and scale them: mean 0 and variance 1 over all training pixels.

    Args:
        key: Draws the split of the digits.
        data: Which pictures. `auto`: Fashion-MNIST where it is found, else the digits.
        data_dir: Folder of Fashion-MNIST.
        rows: How many training pictures at most.

    Returns:
        Training pictures as rows, their classes, and the source.
    """
    pictures = _pictures.load(key, data, data_dir=data_dir)
    x = pictures.x_train[:rows]
    x = ((x - x.mean()) / x.std()).reshape(len(x), -1)
    return jnp.asarray(x), jnp.asarray(pictures.y_train[:rows]), pictures.source


def curves(num_steps: int) -> dict[str, np.ndarray]:
    """Every schedule over the same updates, relative to its highest rate.

    Args:
        num_steps: How many updates.

    Returns:
        Name to rates, shape `(num_steps,)`.
    """
    rates = jax.device_get(_curves(num_steps))
    return {name: values / values.max() for name, values in rates.items()}


@functools.partial(jax.jit, static_argnums=0)
def _curves(num_steps: int) -> dict[str, Any]:
    n, w = num_steps, num_steps // 10
    made: dict[str, optax.Schedule] = {
        "constant": schedules.constant(1.0),
        "step": schedules.step(1.0, every=n // 4, factor=0.5),
        "exponential": schedules.exponential(1.0, factor=0.1, every=n),
        "inverse square root": schedules.inverse_square_root(1.0, timescale=w),
        "linear": schedules.linear(1.0, num_steps=n),
        "cosine": schedules.cosine(1.0, num_steps=n),
        "warm-up, then cosine": schedules.linear_warmup(
            schedules.cosine(1.0, num_steps=n - w), warmup_steps=w
        ),
        "ResNet": schedules.resnet_warmup(
            schedules.multi_step(1.0, boundaries=[n // 2, 3 * n // 4]),
            warmup_steps=w,
            warmup_rate=0.1,
        ),
        "Noam": schedules.noam(512, warmup_steps=w),
        "one cycle": schedules.one_cycle(1.0, num_steps=n),
        "triangular": schedules.triangular(0.1, 1.0, steps_up=n // 6),
        "triangular2": schedules.triangular(0.1, 1.0, steps_up=n // 6, mode="triangular2"),
        "exp_range": schedules.triangular(
            0.1, 1.0, steps_up=n // 6, mode="exp_range", gamma=0.4 ** (1 / n)
        ),
        "warm restarts": schedules.warm_restarts(1.0, first_period=-(-n // 7), period_factor=2),
    }
    return {name: schedule(np.arange(n)) for name, schedule in made.items()}


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    data: _pictures.Choice = "auto",
    data_dir: Path | None = None,
    num_epochs: int = 3,
    num_seeds: int = 3,
    num_runs: int = 16,
    num_steps: int = 60,
) -> Result:
    """Draw the schedules, test the range, watch Adam's first steps, and train with many rates.

    Args:
        key: Draws the split of the digits, the weights and the batches.
        quick: Digits, a shallower network, fewer runs and rates.
        data: Which pictures. `auto`: Fashion-MNIST where it is found, else the digits.
        data_dir: Folder of Fashion-MNIST.
        num_epochs: Passes over the pictures for each rate.
        num_seeds: Starts for each rate.
        num_runs: Runs over which the variance of the first steps is taken.
        num_steps: How many first steps.

    Returns:
        Curves, range tests, variances and losses.
    """
    split_key, weight_key, range_key, early_key, ladder_key = jax.random.split(key, 5)
    exponents, hidden = np.linspace(-3.0, -1.0, 5), HIDDEN
    if quick:
        hidden = HIDDEN[:3]
        data, num_seeds, exponents = "digits", min(num_seeds, 2), exponents[[1, 4]]
        num_runs, num_steps = min(num_runs, 8), min(num_steps, 30)
    x, y, source = problem(split_key, data=data, data_dir=data_dir, rows=4000)
    widths = (x.shape[1], *hidden, 10)
    model = _network(weight_key, widths)
    # As many updates for the fewer digits.
    num_epochs = num_epochs * max(1, 4000 // len(x))
    rates = 10.0**exponents
    parts = {
        "range tests": lambda: _range_tests(range_key, model, x, y),
        "first steps": lambda: _first_steps(early_key, model, x, y, num_runs, num_steps),
        "rates": lambda: _ladder(ladder_key, widths, x, y, rates, num_seeds, num_epochs),
    }
    tests, early, ladder = [parts[name]() for name in progress.track([*parts], "computing")]
    return Result(source, len(x), mlp.num_parameters(widths), curves(300), tests, early, ladder)


def _network(key: Array, widths: tuple[int, ...]) -> mlp.MLP:
    return mlp.MLP(widths, activation=jnp.tanh, rngs=nnx.Rngs(key))


def _range_tests(key: Array, model: mlp.MLP, x: Array, y: Array) -> dict[str, schedules.RangeTest]:
    settings: dict[str, tuple[Any, float, float]] = {
        "SGD": (optax.sgd, 1e-4, 10.0),
        "Adam": (adam.adam, 1e-6, 1.0),
    }
    return {
        name: jax.device_get(
            schedules.range_test_model(
                key, model, LOSS, (x, y), batch_size=BATCH, low=low, high=high, optimizer=rule
            )
        )
        for name, (rule, low, high) in settings.items()
    }


def _first_steps(
    key: Array, model: mlp.MLP, x: Array, y: Array, num_runs: int, num_steps: int
) -> Early:
    bound, rate = loop.bind(model), 1e-2
    measured = _watch(bound.apply, num_runs, num_steps, key, bound.params, bound.state, x, y, rate)
    moment, at_rest, plain, warm = (np.asarray(part) for part in measured)
    return Early(moment, at_rest, plain, warm, num_runs, rate)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _watch(
    apply: Any,
    num_runs: int,
    num_steps: int,
    key: Array,
    params: Any,
    state: Any,
    x: Array,
    y: Array,
    rate: float,
) -> tuple[Array, ...]:
    counts = np.arange(num_steps)
    warm = schedules.linear_warmup(rate, warmup_steps=WARMUP, start_factor=1 / WARMUP)(counts)
    # Three kinds of run: with the weights at rest, without a warm-up, and with one.
    rates = jnp.stack([jnp.zeros_like(warm), jnp.full_like(warm, rate), warm], axis=1)
    units = jnp.array([1.0, 1 / rate**2, 1 / rate**2])
    rule = adam.adam(1.0)  # its steps are scaled afterwards: Adam itself does not know its rate

    def one(rows: Array, eta: Array, params: Any, memory: Any) -> tuple[Any, ...]:
        gradient = jax.grad(lambda p: LOSS(apply(p, state, x[rows])[0], y[rows]))(params)
        direction, memory = rule.update(gradient, memory, params)
        step = jax.tree.map(lambda leaf: eta * leaf, direction)
        return optax.apply_updates(params, step), memory, direction

    every = jax.vmap(jax.vmap(one, in_axes=(0, None, 0, 0)), in_axes=(None, 0, 0, 0))

    def advance(carry: tuple, now: tuple) -> tuple[tuple, tuple[Array, Array]]:
        key, eta = now
        rows = jax.random.randint(key, (num_runs, BATCH), 0, len(y))
        params, memory, direction = every(rows, eta, *carry)
        # The correction is the same for all runs: it cancels in a relative variance.
        moments = [leaf[0].reshape(num_runs, -1) for leaf in jax.tree.leaves(memory.second_moment)]
        moments = jnp.concatenate(moments, axis=1)
        # Pixels that are never inked have no gradient, and no variance: NaN.
        relative = moments.var(axis=0) / jnp.square(moments.mean(axis=0))
        variances = jax.vmap(_mean_variance)(direction) * jnp.where(eta > 0, eta**2, 1) * units
        return (params, memory), (jnp.nanmedian(relative), variances)

    def copies(leaf: Array) -> Array:
        return jnp.broadcast_to(leaf, (3, num_runs, *leaf.shape))

    start = jax.tree.map(copies, (params, rule.init(params)))
    _, (moment, variances) = lax.scan(advance, start, (jax.random.split(key, num_steps), rates))
    return moment, *variances.T


def _mean_variance(tree: Any) -> Array:
    """Variance over the first axis, averaged over the weights that have any step at all."""
    parts = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)]
    every = jnp.concatenate(parts, axis=1)
    moves = jnp.any(every != 0, axis=0)
    return jnp.where(moves, every.var(axis=0), 0).sum() / moves.sum(dtype=every.dtype)


def _warmed(setting: dict[str, Array]) -> optax.GradientTransformation:
    """Adam of one run, the rate falling along a cosine; a start factor of 1 is no warm-up."""
    decay = schedules.cosine(setting["rate"], num_steps=setting["steps"])
    return adam.adam(
        schedules.linear_warmup(
            decay, warmup_steps=WARMUP, start_factor=setting["start"], overlap=True
        )
    )


def _ladder(
    key: Array,
    widths: tuple[int, ...],
    x: Array,
    y: Array,
    rates: np.ndarray,
    num_seeds: int,
    num_epochs: int,
) -> Ladder:
    num_steps = num_epochs * (len(x) // BATCH)
    # Axes: warm-up, rate, seed. A pair with and without has the same weights and batches.
    shape = (2, len(rates), num_seeds)
    seeds = jax.random.split(key, num_seeds)
    bound = [loop.bind(_network(seed, widths)) for seed in seeds]
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one.params for one in bound))
    settings = {
        "rate": jnp.broadcast_to(jnp.asarray(rates, jnp.float32).reshape(1, -1, 1), shape),
        "start": jnp.broadcast_to(jnp.array([1.0, 1 / WARMUP]).reshape(2, 1, 1), shape),
        "steps": jnp.full(shape, num_steps),
        "params": jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (*shape[:2], *leaf.shape)), starts
        ),
    }
    settings = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:]), settings)
    runs = loop.fit_many(
        jnp.tile(seeds, 2 * len(rates)),
        lambda setting: bound[0]._replace(params=setting["params"]),
        _warmed,
        settings,
        LOSS,
        (x, y),
        num_epochs=num_epochs,
        batch_size=BATCH,
    )
    final = runs.history["loss"][:, -1].reshape(shape)
    plain, warm = np.where(np.isfinite(final), final, np.inf)
    return Ladder(np.asarray(rates), plain, warm, num_epochs, num_steps)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    early, ladder = result.early, result.ladder
    steps = [t for t in (1, 2, 5, 10, 20, 30, 60, 100) if t <= len(early.moment)]
    return {
        "Range tests": [
            {
                "rule": name,
                "steepest": f"{float(found.steepest):.2g}",
                "largest": f"{float(found.largest):.2g}",
                "updates": f"{int(found.num_steps)} of {len(found.rates)}",
                "lowest loss": f"{np.nanmin(found.smoothed):.3f}",
            }
            for name, found in result.range_tests.items()
        ],
        f"Weights at rest: variance over {early.num_runs} runs": [
            {
                "step": t,
                "second moment": f"{early.moment[t - 1]:.3f}",
                "Gaussian": f"{2 / float(schedules.effective_samples(BETA2, t)):.3f}",
                "direction": f"{early.at_rest[t - 1]:.3f}",
                "pure noise": f"{1 / float(schedules.effective_samples(BETA1, t)):.3f}",
            }
            for t in steps
        ],
        "In training: variance of Adam's step, over the rate squared": [
            {
                "step": t,
                "no warm-up": f"{early.plain[t - 1]:.3f}",
                "warm-up": f"{early.warm[t - 1]:.4f}",
            }
            for t in steps
        ],
        f"Training loss after {ladder.num_steps} updates (medians), warm-up of none or {WARMUP}": [
            {
                "rate": f"{rate:.2g}",
                "none": f"{np.median(plain):.4f}",
                "worst": f"{plain.max():.4f}",
                "warm-up": f"{np.median(warm):.4f}",
                "its worst": f"{warm.max():.4f}",
            }
            for rate, plain, warm in zip(ladder.rates, ladder.plain, ladder.warm, strict=True)
        ],
    }


_DECAYS = ("step", "exponential", "inverse square root", "linear", "cosine")
_RISES = ("warm-up, then cosine", "ResNet", "Noam", "one cycle")
_CYCLES = ("triangular", "triangular2", "exp_range", "warm restarts")


def plot(result: Result) -> "Figure":
    """Draw the schedules, the range tests, the variances and the ladder of rates.

    Args:
        result: What `run` returned.

    Returns:
        A figure of seven panels.
    """
    import matplotlib.pyplot as plt

    early, ladder = result.early, result.ladder
    with figures.style():
        figure = plt.figure(figsize=(9, 8.4))
        parts: Any = figure.subfigures(2, 1, height_ratios=(1, 2.1))
        upper, lower = parts
        groups = (("Decays", _DECAYS), ("A rise first", _RISES), ("Cycles", _CYCLES))
        for axes, (title, names) in zip(upper.subplots(1, 3), groups, strict=True):
            for name in names:
                axes.plot(result.curves[name], label=name, linewidth=1.5)
            axes.set(xlabel="update", title=title, ylim=(-0.03, 1.75), yticks=(0, 0.5, 1))
            axes.legend(fontsize="x-small", loc="upper left", ncols=1 if len(names) < 5 else 2)
        upper.axes[0].set_ylabel("rate / highest rate")

        (tested, moment), (step, final) = lower.subplots(2, 2)
        for (name, found), color in zip(
            result.range_tests.items(), (figures.BLUE, figures.VERMILLION), strict=True
        ):
            tested.semilogx(found.rates, found.losses, ".", color=color, markersize=3)
            dash = "-" if name == "SGD" else "--"
            tested.semilogx(found.rates, found.smoothed, dash, color=color, label=name)
            for rate, mark in ((found.steepest, "o"), (found.largest, "s")):
                height = np.interp(rate, found.rates, found.smoothed)
                tested.plot(rate, height, mark, color=color, markersize=8)
        tested.plot([], [], "o", color=figures.GREY, label="steepest")
        tested.plot([], [], "s", color=figures.GREY, label="largest")
        tested.set(xlabel="learning rate", ylabel="training loss", title="Range test")
        start = max(found.smoothed[0] for found in result.range_tests.values())
        tested.set_ylim(0, 1.6 * start)
        tested.legend(fontsize="small", loc="lower left")

        t = np.arange(1, len(early.moment) + 1)
        samples1, samples2 = (
            np.asarray(schedules.effective_samples(beta, t)) for beta in (BETA1, BETA2)
        )
        moment.loglog(t, early.moment, "o-", markersize=3, label="measured")
        moment.loglog(t, 2 / samples2, "--", label="$2 / n_t$, Gaussian gradients")
        moment.set(xlabel="step", ylabel="relative variance", title=r"The second moment $\hat v_t$")
        moment.legend(fontsize="small")

        step.semilogy(t, early.plain, "o-", markersize=3, label="no warm-up")
        step.semilogy(t, early.warm, "s--", markersize=3, label=f"warm-up, {WARMUP} steps")
        step.semilogy(t, 1 / samples1, ":", color=figures.GREY, label="pure noise, $1 / n_t$")
        step.set(
            xlabel="step",
            ylabel=r"variance / $\eta^2$",
            title=f"Steps of {early.num_runs} runs of Adam, rate {early.rate:g}",
        )
        step.legend(fontsize="small")

        for losses_, mark, label in (
            (ladder.plain, "o-", "no warm-up"),
            (ladder.warm, "s--", f"warm-up, {WARMUP} updates"),
        ):
            (line,) = final.semilogx(ladder.rates, np.median(losses_, axis=1), mark, label=label)
            fine = np.where(np.isfinite(losses_), losses_, np.nan)
            for column in fine.T:
                final.semilogx(ladder.rates, column, ".", color=line.get_color(), markersize=4)
        final.set(
            xlabel="learning rate of Adam",
            ylabel="training loss",
            title=f"After {ladder.num_steps} updates",
        )
        final.legend(fontsize="small")
        figure.suptitle("Schedules, the range test, and why Adam is warmed up")
    return figure
