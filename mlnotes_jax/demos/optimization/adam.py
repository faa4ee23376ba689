"""Eight rules on one network, each with seven learning rates; and a game that Adam loses.

All rules train the same network from the same weights on the same batches, in one program: the
gradient is the `vmap` over all runs, the updates are each rule's under `vmap` over its rates.
Then the two games of Reddi, Kale and Kumar: most gradients push the wrong way a little, a rare one
pushes the right way a lot. Adam divides the rare one by its own size and soon forgets it, so it
walks to the worst point. AMSGrad, which does not forget, walks to the best.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, Int, Key

from mlnotes_jax.data import datasets, loading
from mlnotes_jax.demos import _pictures, figures, progress
from mlnotes_jax.foundations import losses
from mlnotes_jax.nets import mlp
from mlnotes_jax.optimization import adam, adaptive, bounded, momentum
from mlnotes_jax.training import loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "GAMES",
    "RULES",
    "Game",
    "Network",
    "Result",
    "Walks",
    "critical_decay",
    "drift",
    "play",
    "plot",
    "problem",
    "run",
    "tables",
]

#: Each rule as a function of its learning rate, and the middle one of its rates.
RULES: dict[str, tuple[Callable[[Any], optax.GradientTransformation], float]] = {
    "momentum": (momentum.heavy_ball, 0.05),
    "Adagrad": (adaptive.adagrad, 0.03),
    "RMSProp": (adaptive.rmsprop, 0.002),
    "Adam": (adam.adam, 0.005),
    "AMSGrad": (adam.amsgrad, 0.005),
    "NAdam": (adam.nadam, 0.005),
    "RAdam": (adam.radam, 0.015),
    "AdaBound": (bounded.adabound, 0.005),
}

#: Rates of a rule, relative to the middle one.
SPREAD = tuple(10.0 ** (half / 2) for half in range(-3, 4))
BATCH = 64


class Game(NamedTuple):
    """A sequence of slopes on [-1, 1], over and over: one is `large`, the others are -1.

    The best point is -1 where `large` is more than the others together, the worst is then 1.

    Attributes:
        period: Slopes before they come again.
        large: The first of them.
    """

    period: int
    large: float

    def slopes(self, num_steps: int) -> Float[np.ndarray, " steps"]:
        """The gradients of a player, wherever it stands."""
        return np.where(np.arange(num_steps) % self.period == 0, self.large, -1.0)


#: Of theorem 1, and of the experiment of section 3 (whose slopes are 1010 and -10).
GAMES = (Game(3, 3.0), Game(101, 101.0))


class Network(NamedTuple):
    """What the rules did with one network. Axes: rule, rate (k of them), epoch.

    Attributes:
        rules: Names.
        rates: Learning rates, shape `(rules, k)`.
        loss: Mean training loss of each epoch, each batch with the parameters it met.
        train_loss: After the last epoch, over all training pictures, shape `(rules, k)`.
        accuracy: Of the test pictures, shape `(rules, k)`.
        best: Which rate ended with the lowest training loss, shape `(rules,)`.
        widths: Of the network.
        num_rows: Training pictures.
    """

    rules: tuple[str, ...]
    rates: Float[np.ndarray, "rules k"]
    loss: Float[np.ndarray, "rules k epochs"]
    train_loss: Float[np.ndarray, "rules k"]
    accuracy: Float[np.ndarray, "rules k"]
    best: Int[np.ndarray, " rules"]
    widths: tuple[int, ...]
    num_rows: int


class Walks(NamedTuple):
    r"""Two players of one game, both with the rate $0.5 / \sqrt t$ and from the middle.

    Attributes:
        game: Which.
        beta1: Of both.
        beta2: Of both.
        steps: When they were looked at, shape `(s,)`.
        paths: Where they were: Adam and AMSGrad, shape `(2, s)`.
        regret: How much they had lost on average, compared with the best point, shape `(2, s)`.
        critical: With a larger beta2, and beta1 = 0, Adam goes the right way.
    """

    game: Game
    beta1: float
    beta2: float
    steps: Int[np.ndarray, " s"]
    paths: Float[np.ndarray, "2 s"]
    regret: Float[np.ndarray, "2 s"]
    critical: float


class Result(NamedTuple):
    """What `run` returns.

    Attributes:
        source: Which pictures.
        network: The rules on it.
        walks: The games.
        decays: Some beta2, shape `(b,)`.
        drifts: By the formula, Adam's way in one round of the first game, in learning rates, shape
            `(b,)`.
        measured: By playing: Adam's and AMSGrad's, shape `(2, b)`.
    """

    source: datasets.Source
    network: Network
    walks: tuple[Walks, ...]
    decays: Float[np.ndarray, " b"]
    drifts: Float[np.ndarray, " b"]
    measured: Float[np.ndarray, "2 b"]


def problem(
    key: Key[Array, ""],
    *,
    data: _pictures.Choice = "auto",
    data_dir: Path | None = None,
) -> _pictures.Pictures:
    """Read the pictures.

    Args:
        key: Draws the split of the digits.
        data: Which pictures; `auto`: Fashion-MNIST where it is found, else digits.
        data_dir: Folder of Fashion-MNIST.

    Returns:
        Pictures for training and for testing.
    """
    return _pictures.load(key, data, data_dir=data_dir)


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    data: _pictures.Choice = "auto",
    data_dir: Path | None = None,
    num_epochs: int | None = None,
    num_rows: int = 6000,
    hidden: int = 64,
    num_steps: int = 100_000,
) -> Result:
    """Train one network with every rule, and play the games.

    Args:
        key: For the weights, the order of the pictures, and the split of the digits.
        quick: Digits, half the passes and the hidden units, and shorter games.
        data: Which pictures; `auto`: Fashion-MNIST where it is found, else digits.
        data_dir: Folder of Fashion-MNIST.
        num_epochs: Passes over the pictures; by default 5 for Fashion-MNIST and 20 for digits.
        num_rows: Training pictures at most; half as many test pictures.
        hidden: Units of the hidden layer.
        num_steps: Of the games.

    Returns:
        Curves, walks and drifts.
    """
    if quick:
        data = "digits" if data == "auto" else data
        hidden, num_steps = min(hidden, 32), min(num_steps, 20_000)
    pictures_key, net_key = jax.random.split(key)
    pictures = problem(pictures_key, data=data, data_dir=data_dir)
    small = pictures.x_train.shape[1] < 28
    epochs = num_epochs or ((10 if quick else 20) if small else 5)
    parts: dict[str, Callable[[], Any]] = {
        "network": lambda: _network(net_key, pictures, epochs, num_rows, hidden),
        "games": lambda: (
            _walks(GAMES[0], 0.0, 1 / (1 + GAMES[0].large ** 2), num_steps),
            _walks(GAMES[1], 0.9, 0.99, num_steps),
        ),
        "drifts": _drifts,
    }
    done = [parts[name]() for name in progress.track([*parts], "computing")]
    return Result(pictures.source, done[0], done[1], *done[2])


# The network


def _network(
    key: Array, pictures: _pictures.Pictures, num_epochs: int, num_rows: int, hidden: int
) -> Network:
    weight_key, order_key = jax.random.split(key)
    x, y = (jnp.asarray(a[:num_rows]) for a in (pictures.x_train, pictures.y_train))
    test = [jnp.asarray(a[: num_rows // 2]) for a in (pictures.x_test, pictures.y_test)]
    x, test[0] = (a.reshape(len(a), -1) for a in (x, test[0]))
    widths = (x.shape[1], hidden, len(pictures.class_names))
    params, state, apply = loop.bind(mlp.MLP(widths, rngs=nnx.Rngs(weight_key)))
    rates = np.array([[middle * s for s in SPREAD] for _, middle in RULES.values()])
    count = len(x) // BATCH
    order = _orders(order_key, num_epochs, len(x))[:, : count * BATCH]
    order = order.reshape(num_epochs, count, BATCH)
    loss, train_loss, accuracy = _train(
        apply, params, state, jnp.asarray(rates, jnp.float32), x, y, *test, order
    )
    grid = rates.shape
    final = np.asarray(train_loss).reshape(grid)
    return Network(
        rules=tuple(RULES),
        rates=rates,
        loss=np.asarray(loss).reshape(num_epochs, *grid).transpose(1, 2, 0),
        train_loss=final,
        accuracy=np.asarray(accuracy).reshape(grid),
        best=np.where(np.isfinite(final), final, np.inf).argmin(axis=1),
        widths=widths,
        num_rows=len(x),
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _orders(key: Array, num_epochs: int, num_rows: int) -> Int[Array, "epochs n"]:
    return lax.map(lambda e: loading.epoch_order(key, e, num_rows), jnp.arange(num_epochs))


@functools.partial(jax.jit, static_argnames="apply")
def _train(
    apply: loop.Apply,
    params: Any,
    state: Any,
    rates: Float[Array, "rules k"],
    x: Array,
    y: Array,
    x_test: Array,
    y_test: Array,
    order: Int[Array, "epochs steps batch"],
) -> tuple[Array, Array, Array]:
    """All rules with all rates, side by side: a row of `runs` is the parameters of one of them."""
    makers = [maker for maker, _ in RULES.values()]
    size = rates.shape[1]
    start, restore = ravel_pytree(params)

    def logits(flat: Array, x: Array) -> Array:
        return apply(restore(flat), state, x)[0]

    def loss(flat: Array, x: Array, y: Array) -> Array:
        return losses.softmax_cross_entropy_with_integer_labels(logits(flat, x), y)

    gradients = jax.vmap(jax.value_and_grad(loss), (0, None, None))

    def step(carry: tuple, rows: Array) -> tuple[tuple, Array]:
        runs, states = carry
        values, grads = gradients(runs, x[rows], y[rows])
        moves, new = [], []
        for i, maker in enumerate(makers):
            move, after = jax.vmap(lambda rate, g, s, maker=maker: maker(rate).update(g, s))(
                rates[i], grads[i * size : (i + 1) * size], states[i]
            )
            moves.append(move)
            new.append(after)
        return (runs + jnp.concatenate(moves), new), values

    def epoch(carry: tuple, batches: Array) -> tuple[tuple, Array]:
        carry, values = lax.scan(step, carry, batches)
        return carry, values.mean(axis=0)

    states = [
        jax.vmap(lambda rate, maker=maker: maker(rate).init(start))(rates[i])
        for i, maker in enumerate(makers)
    ]
    runs = jnp.broadcast_to(start, (rates.size, *start.shape))
    (runs, _), history = lax.scan(epoch, (runs, states), order)
    final = jax.vmap(loss, (0, None, None))(runs, x, y)
    accuracy = jax.vmap(lambda p: _pictures.accuracy(logits(p, x_test), y_test))(runs)
    return history, final, accuracy


# The games


def drift(game: Game, beta2: Float[ArrayLike, "*shape"]) -> Float[np.ndarray, "*shape"]:
    r"""How far Adam goes in one round of a game, in learning rates, with beta1 = 0.

    Once the second moments repeat, with $C$ for `large` and $P$ for `period`, they are
    $v_j = 1 + \beta_2^{j-1} (1 - \beta_2)(C^2 - 1) / (1 - \beta_2^P)$ for $j = 1 \dots P$, and

    $$D = - \frac{C}{\sqrt{v_1}} + \sum_{j=2}^{P} \frac{1}{\sqrt{v_j}} .$$

    Args:
        game: Which.
        beta2: $\beta_2$ in [0, 1), any shape.

    Returns:
        $D$; negative is the right way.
    """
    beta2 = np.asarray(beta2, np.float64)[..., None]
    excess = (1 - beta2) * (game.large**2 - 1) / (1 - beta2**game.period)
    moments = 1 + beta2 ** np.arange(game.period) * excess
    return -(game.slopes(game.period) / np.sqrt(moments)).sum(axis=-1)


def critical_decay(game: Game) -> float:
    """The beta2 where the drift of Adam turns from wrong to right, by halving."""
    low, high = 0.0, 1 - 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if drift(game, middle) > 0 else (low, middle)
    return high


@functools.partial(jax.jit, static_argnames=("num_steps", "decaying", "bounds"))
def play(
    period: Int[ArrayLike, ""],
    large: Float[ArrayLike, ""],
    beta1: Float[ArrayLike, ""],
    beta2: Float[ArrayLike, ""],
    *,
    num_steps: int,
    decaying: bool = True,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Float[Array, "2 steps"]:
    r"""Play a game from the middle, once with Adam and once with AMSGrad.

    Args:
        period: Of the game.
        large: Of the game.
        beta1: Of the rules.
        beta2: Of the rules.
        num_steps: How long; static.
        decaying: Whether the rate is $0.5 / \sqrt t$, or stays at 1; static.
        bounds: Where a player is put back to, when it leaves; static.

    Returns:
        Where both players stood when each slope came.
    """

    def rate(count: Any) -> Array:
        return 0.5 / jnp.sqrt(1.0 + count.astype(jnp.float32)) if decaying else jnp.float32(1.0)

    rules = [make(rate, beta1=beta1, beta2=beta2) for make in (adam.adam, adam.amsgrad)]

    def step(players: list, t: Array) -> tuple[list, Array]:
        slope, after = jnp.where(t % period == 0, large, -1.0), []
        for rule, (x, state) in zip(rules, players, strict=True):
            move, state = rule.update(slope, state, x)
            after.append((jnp.clip(x + move, *bounds), state))
        return after, jnp.stack([x for x, _ in players])

    start = jnp.zeros(())
    players = [(start, rule.init(start)) for rule in rules]
    return lax.scan(step, players, jnp.arange(num_steps))[1].T


def _walks(game: Game, beta1: float, beta2: float, num_steps: int) -> Walks:
    paths = play(game.period, game.large, beta1, beta2, num_steps=num_steps)
    paths = np.asarray(paths, np.float64)
    # The best point is -1: its loss at each step is minus the slope.
    lost = np.cumsum(game.slopes(num_steps) * (paths + 1), axis=1)
    rounds = np.geomspace(1, num_steps // game.period, 300).astype(int)
    steps = np.unique(rounds) * game.period  # whole rounds
    return Walks(
        game,
        beta1,
        beta2,
        steps,
        paths[:, steps - 1],
        lost[:, steps - 1] / steps,
        critical_decay(game),
    )


def _drifts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first game without walls and with a constant rate, by formula and by playing."""
    game, rounds = GAMES[0], 200
    decays = 1 - 1 / np.geomspace(1.1, 30, 12)
    paths = jax.vmap(
        lambda beta2: play(
            game.period, game.large, 0.0, beta2,
            num_steps=rounds * game.period + 1, decaying=False, bounds=(-1e9, 1e9),
        )
    )(jnp.asarray(decays, jnp.float32))  # fmt: skip
    half = rounds // 2  # the moments repeat by then
    way = paths[..., -1] - paths[..., half * game.period]
    return decays, drift(game, decays), np.asarray(way).T / half


# What is shown


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    net = result.network
    names = "-".join(map(str, net.widths))
    rows: list[dict[str, object]] = []
    for i, rule in enumerate(net.rules):
        best = net.best[i]
        rows.append(
            {
                "rule": rule,
                "rate": f"{net.rates[i, best]:.2g}",
                "loss": f"{net.train_loss[i, best]:.4f}",
                "accuracy": f"{net.accuracy[i, best]:.1%}",
                "at 1/10": _at(net, i, best - 2),
                "at 10x": _at(net, i, best + 2),
            }
        )
    players: list[dict[str, object]] = [
        {
            "slopes": f"{walk.game.large:g}, then {walk.game.period - 1} of -1",
            "rule": name,
            "beta1": walk.beta1,
            "beta2": walk.beta2,
            "ends at": f"{path[-1]:.3f}",
            "mean regret": f"{regret[-1]:.3f}",
        }
        for walk in result.walks
        for name, path, regret in zip(("Adam", "AMSGrad"), walk.paths, walk.regret, strict=True)
    ]
    critical: list[dict[str, object]] = [
        {
            "period": walk.game.period,
            "critical beta2": f"{walk.critical:.4f}",
            "window": f"{1 / (1 - walk.critical):.1f}",
            "in rounds": f"{1 / (1 - walk.critical) / walk.game.period:.2f}",
        }
        for walk in result.walks
    ]
    return {
        f"{names} on {net.num_rows} pictures, {net.loss.shape[2]} epochs, best rates": rows,
        f"Games of {result.walks[0].steps[-1]} steps; the best point is -1": players,
        "Adam goes the right way with a longer window 1 / (1 - beta2), beta1 = 0": critical,
    }


def _at(net: Network, rule: int, rate: int) -> str:
    """The loss at a rate, where it was tried."""
    return f"{net.train_loss[rule, rate]:.3g}" if 0 <= rate < net.rates.shape[1] else ""


def plot(result: Result) -> "Figure":
    """Draw losses over epochs and over rates, the games, and the drift over the memory."""
    import matplotlib.pyplot as plt

    net = result.network
    looks = (
        (figures.GREY, "-", "o"),
        (figures.OCHRE, "--", "s"),
        (figures.PURPLE, "-.", "^"),
        (figures.BLUE, "-", "D"),
        (figures.VERMILLION, "--", "v"),
        (figures.GREEN, "-.", "P"),
        (figures.PURPLE, ":", "X"),
        (figures.OCHRE, ":", "*"),
    )
    with figures.style():
        figure, axes = plt.subplots(2, 2, figsize=(9, 6.4))
        curves, rates, games, memory = axes.ravel()
        epochs = 1 + np.arange(net.loss.shape[2])
        for i, (rule, (color, dash, mark)) in enumerate(zip(net.rules, looks, strict=True)):
            style = {"color": color, "linestyle": dash, "marker": mark, "markersize": 4}
            curves.semilogy(epochs, net.loss[i, net.best[i]], label=rule, **style)
            rates.loglog(net.rates[i], net.train_loss[i], label=rule, **style)
        curves.xaxis.get_major_locator().set_params(integer=True)
        curves.set(xlabel="epoch", ylabel="training loss", title="Each with its best rate")
        curves.legend(fontsize="small", ncols=2)
        top = np.nanmax(np.where(np.isfinite(net.train_loss), net.train_loss, np.nan))
        rates.set_ylim(top=min(top * 1.5, 10))
        rates.set(xlabel="learning rate", ylabel="training loss at the end", title="All rates")

        marks = ((figures.BLUE, "-"), (figures.VERMILLION, "--"))
        widths = (1.2, 2.4)
        for walk, width in zip(result.walks, widths, strict=True):
            for name, path, (color, dash) in zip(
                ("Adam", "AMSGrad"), walk.paths, marks, strict=True
            ):
                games.semilogx(
                    walk.steps, path, color=color, linestyle=dash, linewidth=width,
                    label=f"{name}, period {walk.game.period}",
                )  # fmt: skip
        games.set(xlabel="step", ylabel="where it is", title="Games: the best point is −1")
        games.set_ylim(-1.1, 2.0)  # room for the legend
        games.set_yticks([-1, -0.5, 0, 0.5, 1])
        games.legend(fontsize="small", ncols=2, loc="upper left")

        window = 1 / (1 - result.decays)
        memory.axhline(0, color=figures.GREY, linewidth=1)
        memory.semilogx(window, result.drifts, color=figures.BLUE, label="Adam, formula")
        memory.plot(
            window, result.measured[0], "o", color=figures.BLUE, markersize=5, label="played"
        )
        memory.plot(
            window, result.measured[1], "s--", color=figures.VERMILLION, markersize=4,
            label="AMSGrad, played",
        )  # fmt: skip
        memory.axvline(1 / (1 - result.walks[0].critical), color=figures.GREY, linestyle=":")
        memory.set(
            xlabel="memory 1 / (1 − beta2), in steps", ylabel="way in one round, in rates",
            title="Period 3: down is right",
        )  # fmt: skip
        memory.legend(fontsize="small")
    return figure
