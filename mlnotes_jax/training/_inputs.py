"""What `loop` is given: data as arrays or as batches, a state to go on from; and their checks."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.data import loading

#: A pair (x, targets) of arrays or pytrees, or a function from the epoch to batches of that form.
Source = tuple[PyTree, PyTree] | Callable[[int], Iterable[Any]]


def source(name: str, data: Any) -> Source:
    """Make arrays of a tuple, which are looked through for NaN; else a function of the epoch."""
    if isinstance(data, tuple):
        x, targets = pair(name, data)
        for part, tree in (("x", x), ("targets", targets)):
            for path, leaf in jax.tree.leaves_with_path(tree):
                _finite(f"{part}{jax.tree_util.keystr(path)} of {name}", leaf)
        arrays = jax.tree.map(jnp.asarray, (x, targets))
        num_rows(name, arrays)
        return arrays
    if callable(data):
        return data  # pyright: ignore[reportReturnType]
    if isinstance(data, Iterator):
        raise TypeError(
            f"{name} must give its batches anew in every epoch: a list, a loader, or a function of "
            f"the epoch; got {type(data).__name__}, an iterator, which ends after one"
        )
    if isinstance(data, Iterable):
        return lambda epoch: iter(data)
    raise TypeError(
        f"{name} must be a tuple (x, targets) of arrays, or give batches (x, targets): an iterable "
        f"or a function of the epoch that returns one; got {type(data).__name__}"
    )


def pair(name: str, value: Any) -> tuple[Any, Any]:
    """Raise `TypeError` unless this is `(x, targets)`."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
        raise TypeError(f"{name} must be a pair (x, targets), got {type(value).__name__}{size}")
    return value[0], value[1]


def num_rows(name: str, data: PyTree) -> int:
    """The length of the one leading axis of all leaves."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(data)]
    if not shapes or not all(shapes):
        raise ValueError(f"{name} must be arrays with a leading axis of rows, got shapes {shapes}")
    if len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"{name} must have as many rows in each array, got shapes {shapes}")
    if shapes[0][0] == 0:
        raise ValueError(f"{name} must not be empty, got shapes {shapes}")
    return shapes[0][0]


def num_runs(keys: Any, settings: PyTree) -> int:
    """The length of the one leading axis of `keys`, unless a single key, and of `settings`."""
    leaves = jax.tree.leaves(settings) + ([keys] if jnp.ndim(keys) else [])
    lengths = sorted({leaf.shape[0] if jnp.ndim(leaf) else 0 for leaf in leaves})
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "keys and settings must have one leading axis of runs (or keys be a single key for all "
            f"of them), got lengths {lengths}"
        )
    return lengths[0]


def check_key(name: str, key: Any, ndim: tuple[int, ...]) -> None:
    """Raise unless this is a key made by `jax.random.key`, or an axis of them."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(f"{name} must be made by jax.random.key, got {type(key).__name__}")
    _checks.check_rank(name, key, ndim)


def check_function(name: str, fn: Any) -> None:
    """Raise `TypeError` unless this can be called, and be looked up in a cache."""
    if not callable(fn):
        raise TypeError(f"{name} must be a function, got {type(fn).__name__}")
    if not isinstance(fn, Hashable):
        raise TypeError(f"{name} must be hashable, as functions are, got {type(fn).__name__}")


def check_loss(name: str, outputs: PyTree, loss: Callable[..., Any], targets: PyTree) -> None:
    """Show the loss the real targets, while its arithmetic is only traced: it finds bad labels."""
    value = jax.eval_shape(lambda outputs: loss(outputs, targets), outputs)
    if jnp.shape(value) != ():
        raise ValueError(
            f"loss must return a scalar, the mean over a batch of {name}, got {_kind(value)}"
        )


def check_start(start: Any, fresh: Any) -> None:
    """Refuse a state of another model, optimizer, average or rule, by its name."""
    if type(start) is not type(fresh):
        raise TypeError(f"start must be a TrainState, got {type(start).__name__}")
    for name, wanted in fresh._asdict().items():
        expected = dict(jax.tree.leaves_with_path(wanted))
        found = dict(jax.tree.leaves_with_path(getattr(start, name)))
        for path in [*expected, *found]:
            kinds = [_kind(tree[path]) if path in tree else "nothing" for tree in (expected, found)]
            if kinds[0] != kinds[1]:
                raise ValueError(
                    f"start.{name} must be of this model and these options: expected {kinds[0]} "
                    f"at {jax.tree_util.keystr(path) or name}, got {kinds[1]}"
                )
    if not bool((jax.random.key_data(start.key) == jax.random.key_data(fresh.key)).all()):
        raise ValueError("key must be the one that start was made with, got another")


def batches(
    source: Source, key: Array, epoch: int, *, batch_size: int, remainder: Any
) -> Iterator[Any]:
    """The batches of one epoch; where each run has a key, stacked along an axis of runs."""
    if not isinstance(source, tuple):
        return iter(source(epoch))

    def load(key: Array) -> Iterator[Any]:
        return loading.in_memory(key, source, batch_size=batch_size, remainder=remainder)(epoch)

    if not key.ndim:
        return load(key)
    runs = zip(*[load(own) for own in key], strict=True)
    return (jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch) for batch in runs)


def sizes(num_rows: int, *, batch_size: int, remainder: str) -> np.ndarray:
    """How many rows the batches of an epoch have."""
    full, rest = divmod(num_rows, batch_size)
    return np.asarray([batch_size] * full + [rest] * (rest > 0 and remainder == "keep"), np.float32)


def rows(data: PyTree, start: Any, size: int) -> PyTree:
    """Rows `start` to `start + size - 1`."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), data)


def strong(leaf: Any) -> Array:
    """Without a weak type, which a step would not return: the second epoch would compile again."""
    array = jnp.asarray(leaf)
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return array if is_key else jax.lax.convert_element_type(array, array.dtype)


def _finite(name: str, leaf: Any) -> None:
    if isinstance(leaf, jax.Array) and jax.default_backend() != "cpu":
        floats = jnp.issubdtype(leaf.dtype, jnp.floating)
        if floats and not bool(jnp.isfinite(leaf).all()):  # there, and not copied from there
            _checks.finite(name, leaf)
        return
    array: Any = np.asarray(leaf)
    if array.dtype.kind == "f":
        with np.errstate(all="ignore"):
            total = array.sum()  # a NaN or an infinity anywhere shows in it, without a large mask
        if not np.isfinite(total):
            _checks.finite(name, array)


def _kind(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
