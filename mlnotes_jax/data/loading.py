r"""Batches: in which order rows come, how they are grouped, and who reads them.

An *epoch* e is one pass over the n rows, in the order of a permutation that is drawn for it alone;
*batch* t is the next B rows of that order:

$$\pi_e = \operatorname{permutation}(\operatorname{fold\_in}(\text{key}, e)), \qquad
  \mathcal{B}_{e,t} = \bigl( \pi_e(tB),\ \dots,\ \pi_e(tB + B - 1) \bigr).$$

The order is a function of the key, the epoch and n. It does not depend on where the rows lie
(`in_memory`, `map_style`), nor on how many threads or workers read them.

Reference: Bottou, Curtis and Nocedal, *Optimization Methods for Large-Scale Machine Learning*
(SIAM Review, 2018), section 3.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int, Key, PyTree

from mlnotes_jax import _checks

__all__ = [
    "BatchIndices",
    "BatchIterator",
    "Loader",
    "Padded",
    "batch_indices",
    "collate",
    "epoch_order",
    "in_memory",
    "iterable",
    "map_style",
    "prefetch",
]

Remainder = Literal["drop", "keep", "pad"]


class BatchIndices(NamedTuple):
    """Which rows the batches of one epoch hold.

    Attributes:
        full: Batches of full size, shape `(num_full, rows)`, int32. Under `"pad"` the last one is
            filled up with rows from the start of the order.
        mask: Which entries of `full` are rows of their own and not padding, same shape.
        rest: Under `"keep"` the last, smaller batch, shape `(rest,)`; else of shape `(0,)`.
    """

    full: Int[Array, "num_full rows"]
    mask: Bool[Array, "num_full rows"]
    rest: Int[Array, " rest"]


class Padded(NamedTuple):
    """A batch under `remainder="pad"`.

    Attributes:
        batch: The rows, always as many.
        mask: Which of them are rows of their own, shape `(rows,)`. Weight the loss with it: padding
            repeats rows that the epoch has already seen.
    """

    batch: PyTree
    mask: Bool[ArrayLike, " rows"]


@dataclasses.dataclass(frozen=True)
class Loader:
    """Batches of any epoch: what `in_memory`, `map_style` and `iterable` return.

    `loader(epoch)` is an iterator over the batches of that epoch, `loader(epoch, first_batch=k)`
    the same without the first k, and `len(loader)` how many batches an epoch has. A loader holds no
    position: calling it twice gives the same batches twice. `training.loop.fit` takes one as its
    data.

    Attributes:
        read: Reads an epoch: `read(epoch, first_batch)`.
        num_batches: Batches of an epoch; None where only reading tells (`iterable`).
        identity: All that the order depends on, in plain numbers and words; part of the state that
            `BatchIterator.get_state` returns, so that no other loader can take it for its own.
    """

    read: Callable[[int, int], Iterator[PyTree]]
    num_batches: int | None
    identity: Mapping[str, Any]

    def __call__(self, epoch: int, *, first_batch: int = 0) -> Iterator[PyTree]:
        """Iterate over the batches of one epoch.

        Args:
            epoch: Which, from 0.
            first_batch: The batch to begin with.

        Returns:
            An iterator. Close it, or use it up, where workers read: that ends them.
        """
        _checks.positive_int("epoch", epoch, least=0)
        _checks.positive_int("first_batch", first_batch, least=0)
        return self.read(int(epoch), int(first_batch))

    def __len__(self) -> int:
        if self.num_batches is None:
            raise TypeError("an iterable source has no length: its batches are counted by reading")
        return self.num_batches

    def iterate(self, *, num_epochs: int | None = None) -> "BatchIterator":
        """Iterate over the batches of many epochs, with a position that can be saved.

        Args:
            num_epochs: How many epochs; without end, where None.

        Returns:
            An iterator with `get_state` and `set_state`.
        """
        if num_epochs is not None:
            _checks.positive_int("num_epochs", num_epochs)
        return BatchIterator(self, num_epochs)


class BatchIterator:
    """The batches of many epochs, one after the other; made by `Loader.iterate`.

    Args:
        loader: Where the batches come from.
        num_epochs: How many epochs; without end, where None.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> from mlnotes_jax.data import loading
        >>> loader = loading.in_memory(jax.random.key(0), np.arange(6), batch_size=2)
        >>> batches = loader.iterate()  # without end
        >>> for _ in range(4):
        ...     _ = next(batches)
        >>> state = batches.get_state()
        >>> state["epoch"], state["batch"]
        (1, 1)
        >>> resumed = loader.iterate()
        >>> resumed.set_state(state)
        >>> bool((next(resumed) == next(batches)).all())
        True
    """

    def __init__(self, loader: Loader, num_epochs: int | None = None):
        self._loader, self._num_epochs = loader, num_epochs
        self._epoch, self._batch = 0, 0
        self._running: Iterator[PyTree] | None = None

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> PyTree:
        while self._num_epochs is None or self._epoch < self._num_epochs:
            if self._running is None:
                self._running = self._loader(self._epoch, first_batch=self._batch)
            for batch in self._running:
                self._batch += 1
                if self._batch == self._loader.num_batches:
                    self._start(self._epoch + 1, 0)
                return batch
            self._start(self._epoch + 1, 0)
        raise StopIteration

    def get_state(self) -> dict[str, Any]:
        """The position: the epoch, the batches of it that were handed out, and whose they are.

        Returns:
            A dictionary of integers, strings and lists of integers: it goes into JSON or any
            checkpoint. It says nothing of threads or workers, which may differ on resuming.
        """
        return {"epoch": self._epoch, "batch": self._batch, **self._loader.identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go to a position.

        Args:
            state: What `get_state` returned, of an iterator over the same rows in the same order:
                the loader may be another, `in_memory` instead of `map_style` for instance.

        Raises:
            ValueError: The state is of another order, or lacks an entry; the message says which.
        """
        own = self.get_state()
        if missing := [name for name in own if name not in state]:
            raise ValueError(f"state must have the entries {list(own)}, got none for {missing}")
        for name, value in self._loader.identity.items():
            if state[name] != value:
                raise ValueError(
                    f"state must be of a loader with {name} = {value!r}, got {state[name]!r}"
                )
        _checks.positive_int("state['epoch']", state["epoch"], least=0)
        _checks.positive_int("state['batch']", state["batch"], least=0)
        self._start(int(state["epoch"]), int(state["batch"]))

    def close(self) -> None:
        """Stop reading, and end the workers; the position stays."""
        self._start(self._epoch, self._batch)

    def _start(self, epoch: int, batch: int) -> None:
        if self._running is not None:
            self._running.close()  # pyright: ignore[reportAttributeAccessIssue]
        self._running, self._epoch, self._batch = None, epoch, batch


def epoch_order(
    key: Key[Array, ""], epoch: Int[ArrayLike, ""], num_rows: int
) -> Int[Array, " num_rows"]:
    r"""Draw the order of the rows in one epoch, on the device.

    $\pi_e$, a permutation of 0..n−1 where every one is equally likely.

    Args:
        key: Of the whole run. Every epoch folds its number into it, so that no chain of keys has to
            be carried along.
        epoch: e, from 0; traced.
        num_rows: n, static.

    Returns:
        Row numbers, shape `(num_rows,)`, int32.

    Raises:
        TypeError: `key` is not a key, or a number not an integer.
        ValueError: `epoch` is negative, or `num_rows` less than 1.

    Example:
        >>> import jax
        >>> from mlnotes_jax.data import loading
        >>> sorted(loading.epoch_order(jax.random.key(0), 3, 5).tolist())
        [0, 1, 2, 3, 4]

    Note:
        With the default generator (threefry) the same integers on every device. With `rbg` keys
        they may differ between devices.
    """
    _key(key)
    epoch = _checks.integer("epoch", epoch, ndim=0)
    _checks.not_negative("epoch", epoch)
    _checks.positive_int("num_rows", num_rows)
    return jax.random.permutation(
        jax.random.fold_in(key, epoch), jnp.arange(num_rows, dtype=jnp.int32)
    )


def batch_indices(
    order: Int[ArrayLike, " n"],
    *,
    batch_size: int,
    remainder: Remainder = "drop",
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIndices:
    r"""Cut an order into batches; with several processes, into one process's part of each.

    Process p of P takes a block of B/P rows out of each batch: together they have exactly the
    batch that one process alone would have, row for row. So a run means the same on any number of
    processes.

    Args:
        order: Row numbers, shape `(n,)`, as from `epoch_order`. Traced; all else is static.
        batch_size: B, the rows of a batch over all processes, from 1 to n.
        remainder: What becomes of the last n mod B rows. `"drop"`: they are left out. `"keep"`:
            they are a smaller batch. `"pad"`: they are filled up with rows from the start of the
            order, and a mask says which.
        process_index: p, from 0: who asks; `jax.process_index()` where JAX runs on several hosts.
        process_count: P, which must divide B, and under `"keep"` the remainder.

    Returns:
        The indices. `full` and `mask` have B/P columns.

    Raises:
        TypeError: A count is not an integer, or `order` not of integers.
        ValueError: A count is out of its range, `remainder` is unknown, or `order` not a vector.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.data import loading
        >>> found = loading.batch_indices(jnp.array([2, 0, 1]), batch_size=2, remainder="pad")
        >>> found.full.tolist(), found.mask.tolist()
        ([[2, 0], [1, 2]], [[True, True], [True, False]])
    """
    rows = _checks.integer("order", order, ndim=1)
    layout = _Layout(rows.shape[0], batch_size, remainder, process_index, process_count)
    full, mask, rest = layout.positions()
    if isinstance(order, np.ndarray):
        rows = order  # on the host there is nothing to compile
    full, rest = (jnp.asarray(rows[places], jnp.int32) for places in (full, rest))
    return BatchIndices(full, jnp.asarray(mask), rest)


def in_memory(
    key: Key[Array, ""],
    data: PyTree,
    *,
    batch_size: int,
    remainder: Remainder = "drop",
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
) -> Loader:
    """Load from arrays that lie in the device's memory: an epoch is one permutation there.

    Nothing is copied from the host while training; a batch is one compiled gather. Under `jit`, use
    its two parts, `epoch_order` and `batch_indices`: `training.loop.fit` scans over them.

    Args:
        key: Decides the order, with the epoch.
        data: An array, or a pytree of arrays such as `(x, y)`, with one leading axis of n rows.
        batch_size: As in `batch_indices`, and so are the three below.
        remainder: The last rows of an epoch.
        shuffle: Whether to draw an order, or else take the rows as they come in every epoch.
        process_index: Who asks.
        process_count: How many processes share a batch.

    Returns:
        The loader. Batches are like `data` with a leading axis of `batch_size / process_count`,
        as JAX arrays; under `"pad"`, `Padded`.

    Raises:
        TypeError: As in `batch_indices`, or `key` is not a key.
        ValueError: As in `batch_indices`, or leaves of `data` are empty or of different lengths.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> from mlnotes_jax.data import loading
        >>> x, y = np.arange(10.0).reshape(5, 2), np.arange(5)
        >>> loader = loading.in_memory(jax.random.key(0), (x, y), batch_size=2, remainder="keep")
        >>> [batch_y.shape for batch_x, batch_y in loader(epoch=0)]
        [(2,), (2,), (1,)]
    """
    data = jax.tree.map(jnp.asarray, data)
    num_rows = _columns_length("data", data)
    layout = _Layout(num_rows, batch_size, remainder, process_index, process_count)

    def read(epoch: int, first: int) -> Iterator[PyTree]:
        order = _order(key, epoch, num_rows, shuffle)
        full, mask, rest = layout.positions()
        for index in range(first, len(full)):
            batch = _gather(data, order, full[index])
            yield Padded(batch, jnp.asarray(mask[index])) if remainder == "pad" else batch
        if len(rest) and first <= len(full):
            yield _gather(data, order, rest)

    return Loader(read, layout.num_batches, layout.identity(key, shuffle))


def map_style(
    key: Key[Array, ""],
    source: Any,
    *,
    batch_size: int,
    remainder: Remainder = "drop",
    shuffle: bool = True,
    transform: Callable[[Any], PyTree] | None = None,
    num_workers: int = 0,
    num_threads: int = 1,
    read_ahead: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> Loader:
    """Load by row number from a source that need not fit into memory, through Grain.

    The order is that of `in_memory` for the same key. Rows are read when their batch is due, in
    background threads or in worker processes.

    Args:
        key: Decides the order, with the epoch.
        source: Rows: anything with `__len__` and `__getitem__`, for instance a class over a folder
            of files. If it has `__getitems__`, that is asked for a list of rows at once. Or
            columns: a NumPy array, memory-mapped or not, or a tuple or dictionary of them with one
            length.
        batch_size: As in `batch_indices`.
        remainder: As in `batch_indices`.
        shuffle: As in `in_memory`.
        transform: Applied to each row where it is read, such as a decoder. A row is a number, an
            array, or a pytree of them.
        num_workers: Processes that read. They are started for each epoch and know nothing of the
            accelerator; a script that uses them needs `if __name__ == "__main__":`. 0: none.
        num_threads: Threads that read, where there are no workers. More than one only if the source
            may be asked by several at once. 0: read while the caller waits.
        read_ahead: Batches that wait to be asked for; for each worker, where there are workers.
        process_index: As in `batch_indices`.
        process_count: As in `batch_indices`.

    Returns:
        The loader. Batches are pytrees of NumPy arrays, rows stacked; under `"pad"`, `Padded`.

    Raises:
        TypeError: `source` cannot be asked by row number, or as in `batch_indices`.
        ValueError: As in `batch_indices`; the source is empty; on reading, rows of unlike shapes.
        ImportError: Grain is not installed (on reading).

    Example:
        >>> import jax
        >>> from mlnotes_jax.data import loading
        >>> squares = [(i, i * i) for i in range(6)]  # or files, decoded on demand
        >>> loader = loading.map_style(jax.random.key(0), squares, batch_size=3)
        >>> all((y == x * x).all() for x, y in loader(epoch=0))
        True

    Note:
        Grain's own `MapDataset.shuffle` draws another permutation. Here its dataset is one of
        batches, whose rows this module has already chosen.
    """
    columns = isinstance(source, np.ndarray | jax.Array | tuple | dict)
    if columns:
        source = jax.tree.map(_as_numpy, source)
        num_rows = _columns_length("source", source)
    elif not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise TypeError(
            f"source must have __len__ and __getitem__, got {type(source).__name__}; see `iterable`"
        )
    else:
        num_rows = len(source)
    layout = _Layout(num_rows, batch_size, remainder, process_index, process_count)
    _checks.positive_int("num_workers", num_workers, least=0)
    _checks.positive_int("num_threads", num_threads, least=0)
    _checks.positive_int("read_ahead", read_ahead)

    def read(epoch: int, first: int) -> Iterator[PyTree]:
        order = np.asarray(_order(key, epoch, num_rows, shuffle))
        full, mask, rest = layout.positions()
        rows = [order[positions] for positions in full] + ([order[rest]] if len(rest) else [])
        batches = _grain().read_batches(
            source,
            rows[first:],
            columns=columns,
            transform=transform,
            num_workers=num_workers,
            num_threads=num_threads,
            read_ahead=read_ahead,
        )
        for index, batch in enumerate(batches, first):
            yield Padded(batch, mask[index]) if remainder == "pad" else batch

    return Loader(read, layout.num_batches, layout.identity(key, shuffle))


def iterable(
    key: Key[Array, ""],
    source: Iterable[Any],
    *,
    batch_size: int,
    window: int = 1,
    remainder: Remainder = "drop",
    transform: Callable[[Any], PyTree] | None = None,
    num_workers: int = 0,
    read_ahead: int = 16,
    process_index: int = 0,
    process_count: int = 1,
) -> Loader:
    r"""Load from a source that can only be read from front to back, through Grain.

    Such rows cannot be permuted as a whole. They are shuffled in windows: W rows are read, handed
    out in an order drawn from the key, the epoch and the number of the window, then the next W.
    This is *another order* than that of `in_memory` and `map_style`, and less of a shuffle: a row
    moves by less than W places.

    Args:
        key: Decides the order, with the epoch.
        source: Rows that can be read again for every epoch: `iter(source)` starts anew each time. A
            list or a class with `__iter__` will do, a generator will not.
        batch_size: As in `batch_indices`.
        window: W, rows held in memory to be shuffled. 1: the order of the source.
        remainder: As in `batch_indices`.
        transform: As in `map_style`.
        num_workers: As in `map_style`. Each worker goes through the whole source and hands on every
            `num_workers`-th row: worth it if `transform` costs more than reading.
        read_ahead: Rows that wait to be asked for, for each worker.
        process_index: As in `batch_indices`. Every process reads all rows and keeps its own; if
            each has a source of its own, leave both at their defaults.
        process_count: As in `batch_indices`.

    Returns:
        The loader, whose length is not known. To begin in the middle of an epoch, it reads the
        rows before and throws them away.

    Raises:
        TypeError: `source` cannot be read again, or as in `batch_indices`.
        ValueError: As in `batch_indices`; a source with no row or fewer than `batch_size`, rows of
            unlike shapes, or a remainder that the processes cannot share (on reading).
        ImportError: Grain is not installed (on reading).

    Example:
        >>> import jax
        >>> from mlnotes_jax.data import loading
        >>> loader = loading.iterable(jax.random.key(0), range(6), batch_size=3, window=3)
        >>> [sorted(batch.tolist()) for batch in loader(epoch=0)]
        [[0, 1, 2], [3, 4, 5]]
    """
    _key(key)
    if not isinstance(source, Iterable) or iter(source) is source:
        raise TypeError(
            "source must be iterable from its start again and again (not a generator), "
            f"got {type(source).__name__}"
        )
    _checks.positive_int("window", window)
    _checks.positive_int("num_workers", num_workers, least=0)
    _checks.positive_int("read_ahead", read_ahead)
    layout = _Layout(None, batch_size, remainder, process_index, process_count)

    def ordered(epoch: int) -> Iterator[tuple[int, Any]]:
        rows = _grain().read_rows(source, transform, num_workers, read_ahead)
        fold = jax.random.fold_in(key, epoch)
        for number in itertools.count():
            held = list(itertools.islice(rows, window))
            if not held:
                return
            # One row has one order: without windows nothing is drawn.
            order = np.asarray(_drawn(fold, number, len(held)) if window > 1 else [0])
            yield from ((number * window + i, held[i]) for i in order.tolist())

    def read(epoch: int, first: int) -> Iterator[PyTree]:
        rows, start = ordered(epoch), []
        for number in itertools.count():
            chunk = list(itertools.islice(rows, batch_size))
            start = start or chunk  # what padding repeats
            num_rows = number * batch_size + len(chunk)
            if len(chunk) < batch_size:
                if number == 0:
                    layout.check(num_rows)  # fewer rows than one batch
                if not chunk or remainder == "drop":
                    return
                layout.check(num_rows)
            count = len(chunk)
            if remainder == "pad":
                chunk = chunk + start[: batch_size - count]
            if number >= first:
                local = layout.share(len(chunk))
                batch = collate(
                    [row for _, row in chunk[local]], numbers=[i for i, _ in chunk[local]]
                )
                mask = (np.arange(batch_size) < count)[local]
                yield Padded(batch, mask) if remainder == "pad" else batch
            if count < batch_size:
                return

    return Loader(read, None, layout.identity(key, True) | {"window": window})


def collate(rows: Sequence[Any], *, numbers: Sequence[int] | None = None) -> PyTree:
    """Stack rows into a batch.

    Args:
        rows: Pytrees of one structure, whose leaves are numbers or NumPy arrays; leaves in the same
            place have one shape and one dtype.
        numbers: What the rows are called in messages; 0, 1, ... where None.

    Returns:
        The structure of a row, its leaves NumPy arrays with a leading axis.

    Raises:
        TypeError: A leaf is not numeric.
        ValueError: There is no row, or a row differs from the first; the message names it.

    Example:
        >>> from mlnotes_jax.data import loading
        >>> loading.collate([{"x": 1, "y": 2.5}, {"x": 3, "y": 4.5}])
        {'x': array([1, 3]), 'y': array([2.5, 4.5])}
    """
    if not rows:
        raise ValueError("rows must not be empty, got none")
    names = range(len(rows)) if numbers is None else numbers
    paths, structure = jax.tree.flatten_with_path(rows[0])
    if not paths:
        raise ValueError(f"row {names[0]} must hold at least one number or array, got {rows[0]!r}")
    first: list[np.ndarray] = []
    columns: list[list[np.ndarray]] = [[] for _ in paths]
    for name, row in zip(names, rows, strict=True):
        leaves, own = jax.tree.flatten(row)
        if own != structure:
            raise ValueError(
                f"row {name} must be built like row {names[0]}, {structure}, got {own}"
            )
        for (path, _), column, leaf in zip(paths, columns, leaves, strict=True):
            array = np.asarray(leaf)
            where = f"row {name}{jax.tree_util.keystr(path)}"
            if array.dtype.kind in "OSU":
                raise TypeError(f"{where} must be numeric, got {type(leaf).__name__}")
            if not column:
                first.append(array)
            wanted = column[0] if column else array
            if (array.shape, array.dtype) != (wanted.shape, wanted.dtype):
                raise ValueError(
                    f"{where} must have shape {wanted.shape} and dtype {wanted.dtype} like "
                    f"row {names[0]}, got {array.shape} and {array.dtype}"
                )
            column.append(array)
    return jax.tree.unflatten(structure, [np.stack(column) for column in columns])


def prefetch(
    batches: Iterable[PyTree],
    *,
    size: int = 2,
    device: jax.Device | jax.sharding.Sharding | None = None,  # pyright: ignore
) -> "Prefetch":
    """Move batches to the device before they are asked for.

    A transfer does not make Python wait. With a few batches under way, the device finds its next
    batch there when it has done with the last.

    Args:
        batches: From `loader(epoch)`, `loader.iterate()`, or any other iterable of pytrees.
        size: How many batches are under way beyond the one in use: that many more are in the
            device's memory.
        device: A device, the default one where None; or a sharding, for which each process gives
            its own part of the batch and gets the whole, spread over all their devices.

    Returns:
        An iterator over the same batches as JAX arrays. If `batches` has `get_state` and
        `set_state`, so has this, and counts only what it has handed out.

    Raises:
        TypeError: `batches` is not iterable, or `size` not an integer.
        ValueError: `size` is less than 1.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> from mlnotes_jax.data import loading
        >>> batches = loading.prefetch([np.ones(2), np.zeros(2)], size=1)
        >>> [type(batch) is not np.ndarray for batch in batches]
        [True, True]
    """
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be iterable, got {type(batches).__name__}")
    _checks.positive_int("size", size)
    return Prefetch(batches, size, device)


class Prefetch:
    """Batches on their way to the device; made by `prefetch`.

    Args:
        batches: Where they come from.
        size: How many are under way beyond the one in use.
        device: Where they go.
    """

    def __init__(
        self,
        batches: Iterable[PyTree],
        size: int,
        device: jax.Device | jax.sharding.Sharding | None,  # pyright: ignore
    ):
        self._source, self._size, self._device = batches, size, device
        self._batches = iter(batches)
        self._states = hasattr(batches, "get_state")
        self._queue: collections.deque[tuple[PyTree, Any]] = collections.deque()
        self._position = self._source_state()

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> PyTree:
        while len(self._queue) <= self._size:
            try:
                batch = next(self._batches)
            except StopIteration:
                break
            self._queue.append((self._put(batch), self._source_state()))
        if not self._queue:
            raise StopIteration
        batch, self._position = self._queue.popleft()
        return batch

    def get_state(self) -> Any:
        """The position after the last batch that was handed out, not after those under way."""
        if not self._states:
            raise TypeError(f"{type(self._source).__name__} has no get_state; see Loader.iterate")
        return self._position

    def set_state(self, state: Any) -> None:
        """Go to a position; the batches under way are dropped."""
        if not self._states:
            raise TypeError(f"{type(self._source).__name__} has no set_state; see Loader.iterate")
        self._source.set_state(state)  # pyright: ignore[reportAttributeAccessIssue]
        self._queue.clear()
        self._position = self._source_state()

    def close(self) -> None:
        """Drop the batches under way and close where they come from."""
        self._queue.clear()
        if hasattr(self._batches, "close"):
            self._batches.close()  # pyright: ignore[reportAttributeAccessIssue]

    def _source_state(self) -> Any:
        return self._source.get_state() if self._states else None  # pyright: ignore

    def _put(self, batch: PyTree) -> PyTree:
        if isinstance(self._device, jax.sharding.Sharding):
            whole = functools.partial(jax.make_array_from_process_local_data, self._device)
            return jax.tree.map(lambda leaf: whole(np.asarray(leaf)), batch)
        return jax.device_put(batch, self._device)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Places of an epoch's order, cut into batches and shares of processes."""

    num_rows: int | None  # None: not known before the end
    batch_size: int
    remainder: str
    process_index: int
    process_count: int

    def __post_init__(self) -> None:
        _checks.positive_int("batch_size", self.batch_size)
        _checks.one_of("remainder", self.remainder, ("drop", "keep", "pad"))
        _checks.positive_int("process_count", self.process_count)
        _checks.positive_int("process_index", self.process_index, least=0)
        if self.process_index >= self.process_count:
            raise ValueError(
                f"process_index must be in 0..{self.process_count - 1} (process_count = "
                f"{self.process_count}), got {self.process_index}"
            )
        if self.batch_size % self.process_count:
            raise ValueError(
                "batch_size, over all processes, must be a multiple of process_count = "
                f"{self.process_count}, got {self.batch_size}"
            )
        if self.num_rows is not None:
            self.check(self.num_rows)

    def check(self, num_rows: int) -> None:
        """Raise unless an epoch of so many rows can be cut."""
        if num_rows == 0:
            raise ValueError("the source must not be empty, got no row")
        if self.batch_size > num_rows:
            raise ValueError(
                f"batch_size must be at most the number of rows, {num_rows}, got {self.batch_size}"
            )
        rest = num_rows % self.batch_size
        if self.remainder == "keep" and rest % self.process_count:
            raise ValueError(
                f'remainder="keep" would leave {rest} rows to {self.process_count} processes, '
                'which cannot share them equally; use "drop" or "pad"'
            )

    @property
    def num_batches(self) -> int:
        full, rest = divmod(self.num_rows or 0, self.batch_size)
        return full + (rest > 0 and self.remainder != "drop")

    def share(self, num_rows: int) -> slice:
        """Which rows of a batch of `num_rows` are this process's."""
        rows = num_rows // self.process_count
        return slice(self.process_index * rows, (self.process_index + 1) * rows)

    def positions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `BatchIndices`, with places in the order instead of rows."""
        assert self.num_rows is not None
        num_full, rest = divmod(self.num_rows, self.batch_size)
        end = num_full * self.batch_size
        last = np.arange(end, self.num_rows if self.remainder == "keep" else end, dtype=np.int32)
        padded = num_full + (rest > 0 and self.remainder == "pad")
        full = np.arange(padded * self.batch_size, dtype=np.int32).reshape(padded, -1)
        full = full[:, self.share(self.batch_size)]
        return full % self.num_rows, full < self.num_rows, last[self.share(len(last))]

    def identity(self, key: Key[Array, ""], shuffle: bool) -> dict[str, Any]:
        """What the order depends on; not the process count, by the construction of `share`."""
        _key(key)
        numbers = np.asarray(jax.random.key_data(key)).ravel().tolist()
        return {
            "key": f"{jax.random.key_impl(key)}:" + "-".join(f"{number:08x}" for number in numbers),
            "num_rows": self.num_rows or 0,
            "batch_size": int(self.batch_size),
            "remainder": self.remainder,
            "shuffle": int(shuffle),
        }


def _key(key: Any) -> None:
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key must come from jax.random.key, got {type(key).__name__}")
    if key.shape:
        raise ValueError(f"key must be one key, got an array of keys of shape {key.shape}")


def _as_numpy(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, np.ndarray | jax.Array):
        raise TypeError(
            "source, as a tuple or dictionary, must hold columns, which are NumPy arrays; got "
            f"{type(leaf).__name__} (rows go into a list)"
        )
    return leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)


def _columns_length(name: str, columns: PyTree) -> int:
    shapes = [leaf.shape for leaf in jax.tree.leaves(columns)]
    if not shapes or any(not shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"{name} must hold arrays with one common first axis, got shapes {shapes}")
    return shapes[0][0]


def _order(key: Key[Array, ""], epoch: int, num_rows: int, shuffle: bool) -> Array:
    if shuffle:
        return _drawn(key, epoch, num_rows)
    return jnp.arange(num_rows, dtype=jnp.int32)


@functools.partial(jax.jit, static_argnums=2)
def _drawn(key: Key[Array, ""], epoch: Array, num_rows: int) -> Array:
    return epoch_order(key, epoch, num_rows)


@jax.jit
def _gather(data: PyTree, order: Array, positions: Array) -> PyTree:
    rows = order[positions]
    return jax.tree.map(lambda leaf: leaf[rows], data)


def _grain() -> Any:
    try:
        from mlnotes_jax.data import _grain
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "grain":
            raise
        raise ImportError(
            'Grain is missing; it reads what is not in memory: pip install "mlnotes-jax[data]"'
        ) from error
    return _grain
