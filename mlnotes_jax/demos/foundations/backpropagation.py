"""What the backward pass costs, and how exact the one written by hand is.

Digits go through a chain 64-w-w-10. The forward and the backward pass, both by hand, are compiled
apart and timed for widths up to 2048; operations are counted in closed form and by the compiler. In
double precision, the backward pass of every activation is compared with `jax.vjp`.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mlnotes_jax.data import datasets
from mlnotes_jax.demos import figures, progress
from mlnotes_jax.foundations import backpropagation as bp
from mlnotes_jax.foundations import losses

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Problem", "Result", "plot", "problem", "run", "tables"]

NAMES = get_args(bp.Activation)


class Problem(NamedTuple):
    """A batch of digits.

    Attributes:
        x: Pixels in [0, 1], shape `(n, 64)`.
        y: Digits, shape `(n,)`.
        source: The data.
    """

    x: Float[Array, "n 64"]
    y: Int[Array, " n"]
    source: datasets.Source


class Result(NamedTuple):
    """What was measured.

    Attributes:
        source: The data.
        batch_size: Rows.
        widths: Of the two hidden layers.
        seconds: Median time of the forward pass, of the backward pass, and of
            `jax.value_and_grad`, which is both, shape `(3, widths)`.
        ratios: Backward over forward: by the clock, by the closed form, by the compiler's count,
            shape `(3, widths)`.
        gradient_errors: Relative difference of all adjoints of a chain in float64, by hand and by
            `jax.vjp`, for each activation.
        agreement: The same for the digits in float32 and the gradients of the layers, for each
            width, shape `(widths,)`.
        steps: The table of the notes' example, the sum of squares.
    """

    source: datasets.Source
    batch_size: int
    widths: tuple[int, ...]
    seconds: np.ndarray
    ratios: np.ndarray
    gradient_errors: dict[str, float]
    agreement: np.ndarray
    steps: list[bp.Step]


def problem(key: Key[Array, ""], *, n: int = 256) -> Problem:
    """Load `n` digits.

    Args:
        key: Draws which.
        n: How many.

    Returns:
        Pixels, digits, source.
    """
    data = datasets.load("digits")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    rows = rng.permutation(len(data.x))[:n]
    x = data.x[rows].reshape(n, 64) / 16
    return Problem(jnp.asarray(x, jnp.float32), jnp.asarray(data.y[rows]), data.source)


def run(
    key: Key[Array, ""],
    *,
    quick: bool = False,
    batch_size: int = 256,
    largest: int = 2048,
    num_repeats: int = 9,
) -> Result:
    """Time the two passes for widths 64, 128, … and check the gradients.

    Args:
        key: Draws the digits and the weights.
        quick: Three widths, at most 64 digits, three repeats.
        batch_size: Digits in the batch.
        largest: The largest width.
        num_repeats: How often each program runs; the median counts.

    Returns:
        Times, counts and differences.
    """
    if quick:
        batch_size, num_repeats = min(batch_size, 64), min(num_repeats, 3)
    data = problem(key, n=batch_size)
    widths = tuple(w for w in (64 * 2**k for k in range(20)) if w <= largest) or (largest,)
    if quick and len(widths) > 3:
        widths = (widths[0], widths[len(widths) // 2], widths[-1])
    seconds, counted, agreement = [], [], []
    for width in progress.track(widths, "timing"):
        layers = _layers(key, (64, width, width, 10))
        times, flops, difference = _measure(layers, data.x, data.y, num_repeats)
        seconds.append(times)
        counted.append(flops[1] / flops[0])
        agreement.append(difference)
    clock = np.array(seconds).T
    closed = [bp.cost((64, w, w, 10), batch_size=batch_size).ratio for w in widths]
    x = bp.variable("x", np.array([1.0, -2.0, 3.0]))
    return Result(
        source=data.source,
        batch_size=batch_size,
        widths=widths,
        seconds=clock,
        ratios=np.array([clock[1] / clock[0], closed, counted]),
        gradient_errors=_gradient_errors(),
        agreement=np.array(agreement),
        steps=bp.differentiate((x**2).sum()),
    )


def _layers(key: Array, widths: tuple[int, ...]) -> list[bp.Layer]:
    """He's weights, drawn by NumPy: nothing to compile for each width."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return [
        bp.Layer(jnp.asarray(rng.normal(0, (2 / a) ** 0.5, (a, b)), jnp.float32), jnp.zeros(b))
        for a, b in itertools.pairwise(widths)
    ]


@jax.jit
def _forward(layers: list[bp.Layer], x: Array) -> tuple[Array, bp.Tape]:
    return bp.forward(layers, x)


@jax.jit
def _backward(
    layers: list[bp.Layer], tape: bp.Tape, logits: Array, labels: Array
) -> list[bp.Layer]:
    adjoint = bp.softmax_cross_entropy_backward(logits, labels)
    return bp.backward(layers, tape, adjoint)[0]


@jax.jit
def _by_jax(layers: list[bp.Layer], x: Array, labels: Array) -> tuple[Array, list[bp.Layer]]:
    def loss(layers: list[bp.Layer]) -> Array:
        logits, _ = bp.forward(layers, x)
        return losses.softmax_cross_entropy_with_integer_labels(logits, labels)

    return jax.value_and_grad(loss)(layers)


def _measure(
    layers: list[bp.Layer], x: Array, labels: Array, num_repeats: int
) -> tuple[list[float], list[float], float]:
    """Median seconds of three programs, operations of the first two, and the difference."""
    programs: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [(_forward, (layers, x))]
    logits, tape = _forward(layers, x)
    programs += [
        (_backward, (layers, tape, logits, labels)),
        (_by_jax, (layers, x, labels)),
    ]
    answers = [jax.block_until_ready(f(*arguments)) for f, arguments in programs]  # compiles
    spent: list[list[float]] = [[] for _ in programs]
    for _ in range(num_repeats):
        for times, (f, arguments) in zip(spent, programs, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(f(*arguments))
            times.append(time.perf_counter() - start)
    flops = [f.lower(*arguments).cost_analysis()["flops"] for f, arguments in programs[:2]]
    return [statistics.median(t) for t in spent], flops, _difference(answers[1], answers[2][1])


def _difference(ours: Any, theirs: Any) -> float:
    """Norm of the difference over the norm, all leaves together."""
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)]) for t in (ours, theirs))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _gradient_errors() -> dict[str, float]:
    """A chain of two layers with each activation, in double precision."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        layers = [
            bp.Layer(jnp.asarray(rng.normal(size=(a, b)) / a**0.5), jnp.asarray(rng.normal(size=b)))
            for a, b in itertools.pairwise((5, 8, 3))
        ]
        x, adjoint = jnp.asarray(rng.normal(size=(4, 5))), jnp.asarray(rng.normal(size=(4, 3)))
        return {name: _difference(*_both(layers, x, adjoint, activation=name)) for name in NAMES}


@functools.partial(jax.jit, static_argnames="activation")
def _both(layers: Any, x: Array, adjoint: Array, *, activation: bp.Activation) -> tuple[Any, Any]:
    """All adjoints of a chain, by hand and by JAX."""
    _, tape = bp.forward(layers, x, activation=activation)
    _, pull_back = jax.vjp(lambda p, v: bp.forward(p, v, activation=activation)[0], layers, x)
    return bp.backward(layers, tape, adjoint, activation=activation), pull_back(adjoint)


def tables(result: Result) -> dict[str, list[dict[str, object]]]:
    """The numbers behind the picture."""
    return {
        f"64-w-w-10, {result.batch_size} digits: backward over forward": [
            {
                "w": width,
                "by the clock": round(float(clock), 2),
                "products": round(float(products), 2),
                "compiler's count": round(float(compiler), 2),
            }
            for width, clock, products, compiler in zip(result.widths, *result.ratios, strict=True)
        ],
        "Milliseconds of a batch; relative difference of the gradients": [
            {
                "w": width,
                "forward": f"{1e3 * times[0]:.2f}",
                "backward": f"{1e3 * times[1]:.2f}",
                "jax.grad": f"{1e3 * times[2]:.2f}",
                "differ": f"{difference:.0e}",
            }
            for width, times, difference in zip(
                result.widths, result.seconds.T, result.agreement, strict=True
            )
        ],
        "Chain in float64: by hand against jax.vjp, relative": [
            {"activation": name, "difference": f"{error:.0e}"}
            for name, error in result.gradient_errors.items()
        ],
    }


def plot(result: Result) -> "Figure":
    """Draw the times, the ratio, and the differences."""
    import matplotlib.pyplot as plt

    with figures.style():
        figure, (times, ratio, errors) = plt.subplots(1, 3, figsize=(10, 3.6))
        names = ("forward", "backward", "both, by jax.value_and_grad")
        for name, seconds, mark in zip(names, result.seconds, "os^", strict=True):
            times.loglog(result.widths, 1e3 * seconds, marker=mark, label=name)
        for axes in (times, ratio):
            axes.set_xscale("log")
            axes.set_xticks(result.widths, [str(w) for w in result.widths], rotation=45)
            axes.set_xticks([], minor=True)
        times.yaxis.set_minor_formatter("")
        times.set(xlabel="width", ylabel="milliseconds", title="Time of a batch")
        times.legend(fontsize="small")

        labels = ("by the clock", "products, counted", "compiler's count")
        for label, values, mark in zip(labels, result.ratios, "os^", strict=True):
            ratio.plot(result.widths, values, marker=mark, label=label)
        ratio.axhline(2, color=figures.GREY, lw=1, ls=":")
        ratio.set(xlabel="width", ylabel="backward / forward", title="Cost of the backward pass")
        ratio.set_ylim(0, max(3.0, 1.1 * float(result.ratios.max())))
        ratio.legend(fontsize="small")

        floor = 1e-18  # zero has no place on a log axis
        values = [max(error, floor) for error in result.gradient_errors.values()]
        errors.barh(list(result.gradient_errors), values, color=figures.BLUE)
        errors.axvline(2**-52, color=figures.VERMILLION, ls="--", label="float64 epsilon")
        errors.set(xscale="log", xlabel="relative difference", title="By hand against jax.vjp")
        errors.set_xlim(1e-18, 1e-13)
        errors.legend(fontsize="small")
    return figure
