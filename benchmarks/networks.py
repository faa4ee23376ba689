"""What the benchmarks of networks share: one start and one order of rows for every contender.

Ours, the idiomatic Flax loop (`nnx.jit`, `nnx.Optimizer`, one call for each step) and PyTorch begin
with the same weights and see the same batches, so the mean loss of the pass must agree.
"""

import itertools
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.harness import Job
from mlnotes_jax.data import loading
from mlnotes_jax.foundations import losses
from mlnotes_jax.training import loop

__all__ = ["fill", "fit_job", "he_start", "mlp_start", "nnx_loop", "order_of", "store"]

#: Name -> weight, as PyTorch names and shapes it.
Weights = Mapping[str, np.ndarray]


def he_start(shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw weights with variance 2 / inputs for names and shapes in PyTorch's layout; biases 0."""
    rng = np.random.default_rng(seed)
    start = {}
    for name, shape in shapes.items():
        scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.0
        start[name] = (scale * rng.normal(size=shape)).astype(np.float32)
    return start


def mlp_start(widths: Sequence[int]) -> dict[str, np.ndarray]:
    """Draw the weights of linear layers with ReLU between them, named as in `nn.Sequential`."""
    shapes = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        shapes |= {f"{2 * i}.weight": (outputs, inputs), f"{2 * i}.bias": (outputs,)}
    return he_start(shapes)


def fill(module: nnx.Module, weights: Weights) -> nnx.Module:
    """Put weights in PyTorch's layout into a Flax module, matched by their shapes.

    Raises:
        ValueError: A kernel of the module finds no weight, or two weights have one shape.
    """
    by_shape: dict[tuple[int, ...], np.ndarray] = {}
    for weight in weights.values():
        if weight.ndim > 1:
            kernel = np.moveaxis(weight, (0, 1), (-1, -2))  # (out, in, ...) -> (..., in, out)
            if kernel.shape in by_shape:
                raise ValueError(f"weights: two of them have the shape {kernel.shape}")
            by_shape[kernel.shape] = kernel
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def replace(old: jax.Array) -> jax.Array:
        if old.ndim < 2:
            return old
        if old.shape not in by_shape:
            raise ValueError(f"weights: none for a kernel of shape {old.shape}")
        return jnp.asarray(by_shape[old.shape])

    return nnx.merge(graphdef, jax.tree.map(replace, params), rest)


def order_of(key: jax.Array, num_rows: int, batch_size: int, *, steps: int | None = None) -> Any:
    """Rows of each step of epoch 0, as `loop.fit` draws them: int32, shape (steps, batch)."""
    rows = np.asarray(loading.epoch_order(key, 0, num_rows))
    steps = num_rows // batch_size if steps is None else steps
    return rows[: steps * batch_size].reshape(steps, batch_size)


def store(**arrays: Any) -> str:
    """Write arrays where a PyTorch process reads them; returns the path."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="mlnotes-bench-"))
    path = folder / "arrays.npz"
    np.savez(path, **arrays)
    return str(path)


def fit_job(
    key: jax.Array,
    model: nnx.Module | loop.Bound,
    optimizer: optax.GradientTransformation,
    data: tuple[jax.Array, jax.Array],
    *,
    batch_size: int,
) -> Job:
    """One epoch by `loop.fit`. Quality: its mean training loss."""

    def epoch() -> Any:
        fitted = loop.fit(
            key,
            model,
            optimizer,
            losses.softmax_cross_entropy_with_integer_labels,
            data,
            num_epochs=1,
            batch_size=batch_size,
        )
        return jax.block_until_ready(fitted.history["loss"])

    def prepare() -> Callable[[], Any]:
        epoch()
        return epoch

    return Job(prepare, lambda history: float(history[0]))


def nnx_loop(
    make: Callable[[], nnx.Module],
    optimizer: optax.GradientTransformation,
    x: Any,
    y: Any,
    order: Any,
) -> Job:
    """The loop of Flax's own tutorials: a compiled step, called from Python."""

    @nnx.jit
    def step(model: nnx.Module, state: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
        def loss(model: Any) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        value, grads = nnx.value_and_grad(loss)(model)
        state.update(model, grads)
        return value

    def prepare() -> Callable[[], jax.Array]:
        def run() -> jax.Array:
            model = make()
            model.train()
            state = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
            losses = [step(model, state, x[rows], y[rows]) for rows in order]
            return jax.block_until_ready(jnp.stack(losses).mean())

        run()
        return run

    return Job(prepare, float)
