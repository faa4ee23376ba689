"""From Adam to SGD on pictures: bounds that close, and one switch.

A small network is trained five times from one start: by SGD with momentum, by Adam, and by the
three rules that begin as Adam and end as SGD. Of AdaBound it is recorded which rates some of the
parameters would have had and which they got; of Adam, the rate of SGD that each of its steps stands
for; of SWATS, when it switched, and to which rate.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import _pictures, figures, progress
from mlnotes_jax.foundations import losses
from mlnotes_jax.nets import mlp
from mlnotes_jax.optimization import bounded, momentum
from mlnotes_jax.training import loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Result", "Run", "Switch", "plot", "problem", "recorded", "run", "tables"]

BATCH = 64
WATCHED = 60  # parameters whose rates are recorded
ADAM_RATE = 1e-3
LOSS = losses.softmax_cross_entropy_with_integer_labels


class Run(NamedTuple):
    """One rule's training.

    Attributes:
        name: Of the rule.
        history: One number for each epoch: `loss` of the training batches, `validation_loss` and
            `validation_accuracy` of the test pictures. Nothing is chosen by them.
        accuracy: Of the test pictures, after the last epoch.
    """

    name: str
    history: dict[str, np.ndarray]
    accuracy: float


class Switch(NamedTuple):
    """Adam's steps as SWATS sees them, and what it did.

    Attributes:
        estimates: The rate of SGD that each step of Adam stands for, where it never switches, shape
            `(updates,)`.
        averages: Their average so far, corrected, shape `(updates,)`.
        switched_at: The last update as Adam of the run that may switch; 0 if it did not.
        rate: The rate found then.
        num_updates: In all.
    """

    estimates: Float[np.ndarray, " updates"]
    averages: Float[np.ndarray, " updates"]
    switched_at: int
    rate: float
    num_updates: int


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: Which pictures.
        num_parameters: Of the network.
        runs: One for each rule.
        updates: How many updates were done after each epoch, shape `(epochs,)`.
        free: Rates that Adam would have given some parameters then, shape `(epochs, watched)`.
        held: Rates that AdaBound gave them.
        bounds: Of AdaBound, each of shape `(epochs,)`.
        final_rate: On which they close.
        swats: What SWATS did.
    """

    source: datasets.Source
    num_parameters: int
    runs: tuple[Run, ...]
    updates: np.ndarray
    free: Float[np.ndarray, "epochs watched"]
    held: Float[np.ndarray, "epochs watched"]
    bounds: bounded.Bounds
    final_rate: float
    swats: Switch


class Recorded(NamedTuple):
    """A rule's state, and numbers of it after each update.

    Attributes:
        state: Of the rule.
        rows: Shape `(num_updates, ...)`; zero where nothing has been written yet.
    """

    state: Any
    rows: Array


def recorded(
    rule: optax.GradientTransformation, look: Callable[[Any], Array], num_updates: int
) -> optax.GradientTransformation:
    """Write down some numbers of a rule's state after each update.

    Args:
        rule: Whose state is looked at; its updates are not changed.
        look: `look(state) -> numbers`, an array.
        num_updates: How many are written down; the rest is not.

    Returns:
        The rule, with a `Recorded` state.
    """

    def init(params: PyTree) -> Recorded:
        state = rule.init(params)
        numbers = look(state)
        return Recorded(state, jnp.zeros((num_updates, *numbers.shape), numbers.dtype))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, Recorded]:
        after: Any
        step, after = rule.update(updates, state.state, params)
        place = after.count - 1
        return step, Recorded(after, state.rows.at[place].set(look(after), mode="drop"))

    return optax.GradientTransformation(init, update)


def problem(
    key: Key[Array, ""], *, data: _pictures.Name = "digits", data_dir: Path | None = None
) -> _pictures.Pictures:
    """Read the pictures.

    Args:
        key: Draws the split of the digits.
        data: Which pictures.
        data_dir: Folder of Fashion-MNIST.

    Returns:
        Pictures `(n, h, w, 1)` with pixels in [0, 1], classes, names, source.
    """
    return _pictures.load(key, data, data_dir=data_dir)


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    data: _pictures.Name = "digits",
    data_dir: Path | None = None,
    final_rate: float = 0.1,
    gamma: float = 0.01,
    relative_tolerance: float = 0.01,
    num_epochs: int | None = None,
) -> Result:
    """Train one network with five rules, from one key.

    Args:
        key: Draws the split, the weights and the order of the rows.
        quick: A quarter of the epochs, and three of the rules.
        data: Which pictures.
        data_dir: Folder of Fashion-MNIST.
        final_rate: Of SGD, and on which the bounds close.
        gamma: How fast they do.
        relative_tolerance: Of SWATS.
        num_epochs: Passes over the pictures; by default 40 for digits and 10 for Fashion-MNIST.

    Returns:
        Curves, rates, and the switch.
    """
    split_key, weight_key, fit_key = jax.random.split(key, 3)
    pictures = problem(split_key, data=data, data_dir=data_dir)
    epochs = num_epochs if num_epochs is not None else (40 if data == "digits" else 10)
    if quick:
        epochs = max(2, epochs // 4)
    x, y = jnp.asarray(pictures.x_train), jnp.asarray(pictures.y_train)
    test = (jnp.asarray(pictures.x_test), jnp.asarray(pictures.y_test))
    widths = (int(np.prod(x.shape[1:])), 64, len(pictures.class_names))
    updates = np.arange(1, epochs + 1) * (len(x) // BATCH)

    bound: Any = {"final_rate": final_rate, "gamma": gamma}
    rules = {
        "SGD, momentum": momentum.heavy_ball(
            final_rate, momentum=0.9, dampening=0.9, dampen_first=True
        ),
        "AdaBound": bounded.adabound(ADAM_RATE, **bound),
        "AMSBound": bounded.amsbound(ADAM_RATE, **bound),
    }
    if quick:
        rules = {"AdaBound": rules["AdaBound"]}
    model = mlp.MLP(widths, kernel_init="pytorch", rngs=nnx.Rngs(weight_key))
    ticks = progress.track(range((len(rules) + 1) * epochs), "training")
    next(ticks, None)
    moments = []

    def tick(name: str, state: loop.TrainState) -> None:
        if name == "AdaBound":
            leaves = jax.tree.leaves(state.opt_state.second_moment)
            moments.append(np.concatenate([np.ravel(leaf) for leaf in leaves]))
        next(ticks, None)

    options: Any = {
        "num_epochs": epochs,
        "batch_size": BATCH,
        "validation": test,
        "metrics": {"accuracy": _pictures.accuracy},
        "keep_best": False,
    }
    runs = []
    for name, rule in rules.items():
        fitted = loop.fit(
            fit_key,
            model,
            rule,
            LOSS,
            (x, y),
            on_epoch=lambda state, numbers, name=name: tick(name, state),
            **options,
        )
        runs.append(_run(name, fitted.history))

    # SWATS, and the same with a tolerance of zero: Adam, which never switches.
    def swats(relative: Array) -> optax.GradientTransformation:
        rule = bounded.swats(ADAM_RATE, tolerance=0.0, relative_tolerance=relative)
        look = lambda state: jnp.stack([state.estimate, state.average])  # noqa: E731
        return recorded(rule, look, int(updates[-1]))

    pair = loop.fit_many(
        fit_key,
        model,
        swats,
        jnp.array([0.0, relative_tolerance]),
        LOSS,
        (x, y),
        on_epoch=lambda state, numbers: tick("SWATS", state),
        **options,
    )
    for i, name in enumerate(("Adam", "SWATS")):
        runs.append(_run(name, {key: values[i] for key, values in pair.history.items()}))
    free, bounds = _rates(np.stack(moments), updates, **bound)
    return Result(
        source=pictures.source,
        num_parameters=mlp.num_parameters(widths),
        runs=tuple(runs),
        updates=updates,
        free=free,
        held=np.clip(free, bounds.low[:, None], bounds.high[:, None]),
        bounds=bounds,
        final_rate=final_rate,
        swats=_switch(pair.states.opt_state),
    )


def _run(name: str, history: dict[str, np.ndarray]) -> Run:
    return Run(name, history, float(history["validation_accuracy"][-1]))


def _switch(ends: Recorded) -> Switch:
    """Of two runs: Adam's rows, and what the other reports."""
    estimates, averages = np.asarray(ends.rows[0], float).T
    averages = averages / (1 - 0.999 ** np.arange(1, len(estimates) + 1))
    at, rate = int(ends.state.switched_at[1]), float(ends.state.rate[1])
    return Switch(estimates, averages, at, rate, len(estimates))


def _rates(
    moments: np.ndarray, updates: np.ndarray, *, final_rate: float, gamma: float
) -> tuple[np.ndarray, bounded.Bounds]:
    """Adam's rates of some parameters that have a gradient, and the bounds."""
    alive = np.flatnonzero(moments.min(axis=0) > 0)
    alive = alive[:: max(1, len(alive) // WATCHED)][:WATCHED]
    t = updates[:, None].astype(float)
    size = ADAM_RATE * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    bounds = bounded.bounds(updates, final_rate=final_rate, gamma=gamma)
    free = size / (np.sqrt(moments[:, alive].astype(float)) + 1e-8)
    return free, jax.device_get(bounds)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    ends: list[dict[str, object]] = [
        {
            "rule": one.name,
            "training loss": float(one.history["loss"][-1]),
            "test loss": float(one.history["validation_loss"][-1]),
            "test accuracy": f"{one.accuracy:.2%}",
        }
        for one in result.runs
    ]
    places = sorted({0, len(result.updates) // 4, len(result.updates) - 1})
    rates: list[dict[str, object]] = [
        {
            "updates": int(result.updates[i]),
            "Adam's, lowest": float(result.free[i].min()),
            "highest": float(result.free[i].max()),
            "bound, low": float(result.bounds.low[i]),
            "high": float(result.bounds.high[i]),
            "held back": f"{(result.free[i] != result.held[i]).mean():.0%}",
        }
        for i in places
    ]
    switch: list[dict[str, object]] = [
        {
            "switched after": result.swats.switched_at or "never",
            "of updates": result.swats.num_updates,
            "rate of SGD": result.swats.rate,
            "rate of Adam": ADAM_RATE,
        }
    ]
    epochs = len(result.updates)
    return {
        f"After {epochs} epochs, {result.num_parameters} parameters": ends,
        f"Rates of {result.free.shape[1]} parameters in AdaBound": rates,
        "SWATS": switch,
    }


def plot(result: Result) -> "Figure":
    """Draw the losses, the closing bounds, and the estimates of SWATS."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, axes = plt.subplots(1, 3, figsize=(10, 3.3))
        curves: Any = axes
        loss, rates, switch = curves
        epoch = np.arange(1, len(result.updates) + 1)
        for one, mark in zip(result.runs, "os^Dv", strict=False):
            every = max(1, len(epoch) // 8)
            loss.semilogy(
                epoch,
                one.history["loss"],
                marker=mark,
                markersize=4,
                markevery=every,
                label=one.name,
            )
        loss.set(xlabel="epoch", ylabel="training loss", title="Five rules, one start")
        loss.legend(fontsize="small")

        t = result.updates
        rates.loglog(t, result.free, "-", lw=0.5, color=figures.GREY, alpha=0.5)
        rates.loglog(t, result.held, "-", lw=0.7, color=figures.BLUE)
        for bound in result.bounds:
            rates.loglog(t, bound, "--", color=figures.VERMILLION)
        names = [("Adam's", figures.GREY, "-"), ("AdaBound's", figures.BLUE, "-")]
        for name, colour, dash in [*names, ("bounds", figures.VERMILLION, "--")]:
            rates.plot([], [], dash, color=colour, label=name)
        rates.set(xlabel="update", ylabel="rate of a parameter", title="The bounds close")
        rates.legend(fontsize="small")

        swats = result.swats
        now, up = np.arange(1, swats.num_updates + 1), swats.estimates > 0
        switch.semilogy(
            now[up], swats.estimates[up], ".", ms=3, color=figures.GREY, label="of one step"
        )
        average = np.where(swats.averages > 0, swats.averages, np.nan)
        switch.semilogy(now, average, "-", color=figures.BLUE, label="average")
        if swats.switched_at:
            place = {"ms": 12, "color": figures.VERMILLION, "zorder": 3}
            switch.plot(swats.switched_at, swats.rate, "*", label="the switch", **place)
        switch.set(
            xlabel="update", ylabel="rate of SGD, where positive", title="What Adam stands for"
        )
        switch.legend(fontsize="small")
    return figure
