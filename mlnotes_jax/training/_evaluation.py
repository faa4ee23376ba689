"""Programs that apply a model to a whole data set in eval mode, and one question to a program."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from mlnotes_jax.training import _inputs


class Evaluator(NamedTuple):
    """Means of functions over arrays as a whole, or over one batch."""

    whole: Any
    batch: Any


@functools.lru_cache(maxsize=64)
def evaluator(
    apply: Callable[..., Any], fns: tuple[tuple[str, Callable[..., Any]], ...], lanes: str
) -> Evaluator:
    def batch(params, state, pair):
        x, targets = pair
        outputs, _ = apply(params, state, x, train=False)
        return {name: wide(fn(outputs, targets)) for name, fn in fns}

    def whole(params, state, data, *, batch_size):
        n = _inputs.num_rows("data", data)
        count, rest = divmod(n, batch_size)

        def means(start: Any, size: int) -> dict[str, Array]:
            return batch(params, state, _inputs.rows(data, start, size))

        parts = []
        if count:
            starts = batch_size * jnp.arange(count, dtype=jnp.int32)
            values = jax.lax.map(lambda start: means(start, batch_size), starts)
            share = (n - rest) / n
            parts.append(jax.tree.map(lambda value: share * value.mean(), values))
        if rest:
            values = means(count * batch_size, rest)
            parts.append(jax.tree.map(lambda value: rest / n * value, values))
        return jax.tree.map(lambda *values: sum(values[1:], values[0]), *parts)

    if lanes == "none":
        return Evaluator(jax.jit(whole, static_argnames="batch_size"), jax.jit(batch))

    def wholes(params, state, data, *, batch_size):
        run = functools.partial(whole, batch_size=batch_size)
        return jax.vmap(run, (0, 0, None))(params, state, data)

    batches = jax.vmap(batch, (0, 0, None))
    return Evaluator(jax.jit(wholes, static_argnames="batch_size"), jax.jit(batches))


def evaluate(
    check: Evaluator, params: PyTree, state: PyTree, source: Any, batch_size: int
) -> dict[str, Any]:
    """Means over a data set: compiled as a whole, or batch by batch where it comes so."""
    if isinstance(source, tuple):
        return check.whole(params, state, source, batch_size=batch_size)
    rows, sizes = [], []
    for batch in source(0):
        batch = _inputs.pair("a batch of data", batch)
        rows.append(check.batch(params, state, batch))
        sizes.append(jax.tree.leaves(batch)[0].shape[0])
    if not rows:
        raise ValueError("data must give at least one batch, got none")
    share = np.asarray(sizes, np.float32) / np.float32(sum(sizes))
    host = jax.device_get(rows)
    return {name: np.stack([row[name] for row in host], axis=-1) @ share for name in host[0]}


@functools.lru_cache(maxsize=64)
def predictor(apply: Callable[..., Any]) -> Any:
    def run(params, state, x, *, batch_size):
        count, rest = divmod(_inputs.num_rows("x", x), batch_size)

        def outputs(start: Any, size: int) -> PyTree:
            return apply(params, state, _inputs.rows(x, start, size), train=False)[0]

        parts = []
        if count:
            starts = batch_size * jnp.arange(count, dtype=jnp.int32)
            full = jax.lax.map(lambda start: outputs(start, batch_size), starts)
            parts.append(jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), full))
        if rest:
            parts.append(outputs(count * batch_size, rest))
        return jax.tree.map(lambda *y: jnp.concatenate(y), *parts)

    return jax.jit(run, static_argnames="batch_size")


def scans_well(traced: Any) -> bool:
    """Whether XLA compiles this epoch well as a loop.

    Its compiler for CPUs brings a convolution into the one layout that it has fast code for, but
    not inside a loop. The gradient to the kernel, as JAX writes it, is in another layout (it
    contracts over the batch), and then runs tens of times slower.
    """
    if jax.default_backend() != "cpu" or not _holds_convolution(traced.jaxpr.jaxpr):
        return True
    layouts = re.findall(r"dim_numbers = \[(.*?)\]x\[(.*?)\]", traced.lower().as_text())
    return all(re.fullmatch(r"b, .*f x .*i, o", " x ".join(layout)) for layout in layouts)


def _holds_convolution(jaxpr: Any) -> bool:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            return True
        for value in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns") and _holds_convolution(inner):
                return True
    return False


def wide(value: ArrayLike) -> Array:
    array = jnp.asarray(value)
    return array if array.dtype == jnp.float64 else array.astype(jnp.float32)
