"""What of `loading` stands on Grain: reading in threads and in worker processes."""

import contextlib
import dataclasses
import itertools
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import PyTree

from mlnotes_jax.data import loading


def read_batches(
    source: Any,
    rows: Sequence[np.ndarray],
    *,
    columns: bool,
    transform: Callable[[Any], PyTree] | None,
    num_workers: int,
    num_threads: int,
    read_ahead: int,
) -> Iterator[PyTree]:
    """Read batches, given as lists of row numbers, in this order."""
    batches = grain.MapDataset.source(_Batches(source, rows, columns, transform))
    here = num_workers == 0 and num_threads > 0
    dataset = batches.to_iter_dataset(
        grain.ReadOptions(
            num_threads=min(num_threads, read_ahead) if here else 0,
            prefetch_buffer_size=read_ahead if here else 0,
        )
    )
    yield from _run(dataset, num_workers, read_ahead)


def read_rows(
    source: Iterable[Any],
    transform: Callable[[Any], PyTree] | None,
    num_workers: int,
    read_ahead: int,
) -> Iterator[PyTree]:
    """Read rows from front to back; workers take turns, so that the order stays."""
    yield from _run(_Rows(source, transform), num_workers, read_ahead)


def _run(dataset: grain.IterDataset, num_workers: int, read_ahead: int) -> Iterator[Any]:
    if num_workers:
        # Grain reads this flag of its own even where no program has parsed flags, and would raise
        # (google/grain, issue 1355); a flag that counts as present is read as its default.
        profiling = "grain_enable_multiprocess_worker_profiling"
        if profiling in flags.FLAGS and not flags.FLAGS.is_parsed():
            flags.FLAGS[profiling].present = 1
        options = grain.MultiprocessingOptions(
            num_workers=num_workers, per_worker_buffer_size=read_ahead
        )
        dataset = dataset.mp_prefetch(options, worker_init_fn=_without_accelerator)
    with contextlib.closing(iter(dataset)) as batches:
        for boxed in batches:
            yield boxed.content


def _without_accelerator(index: int, count: int) -> None:
    # A worker that touched a GPU would take the memory that training needs.
    jax.config.update("jax_platforms", "cpu")


@dataclasses.dataclass(frozen=True)
class _Boxed:
    """What Grain shall not look into.

    It leaves out elements that are None, and moves the arrays that it finds from a worker in shared
    memory, which a container often has little of and which is freed by threads that do not
    outlive the program. An opaque object goes through a pipe.
    """

    content: Any


class _Batches:
    """A source of batches; picklable, so that it can be sent to a worker."""

    def __init__(
        self,
        source: Any,
        rows: Sequence[np.ndarray],
        columns: bool,
        transform: Callable[[Any], PyTree] | None,
    ):
        self.source, self.rows, self.columns, self.transform = source, rows, columns, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> _Boxed:
        return _Boxed(self._read(self.rows[index]))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.columns:
            state["source"] = jax.tree.map(_Mapped.wrap, self.source)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.columns:
            self.source = jax.tree.map(
                lambda leaf: leaf.open() if isinstance(leaf, _Mapped) else leaf, self.source
            )

    def _read(self, numbers: np.ndarray) -> PyTree:
        if self.columns and self.transform is None:
            # The rows of a memory-mapped file are read from the disk here.
            return jax.tree.map(lambda leaf: np.asarray(leaf[numbers]), self.source)
        listed = [int(number) for number in numbers]
        if self.columns:
            rows = [
                jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), self.source) for i in listed
            ]
        elif hasattr(self.source, "__getitems__"):
            rows = self.source.__getitems__(listed)
            if len(rows) != len(listed):
                raise ValueError(
                    f"source.__getitems__ must give as many rows as asked for, {len(listed)}, "
                    f"got {len(rows)}"
                )
        else:
            rows = [self.source[i] for i in listed]
        if self.transform is not None:
            rows = [self.transform(row) for row in rows]
        return loading.collate(rows, numbers=listed)


class _Mapped:
    """A memory-mapped array as the name of its file: NumPy would pickle all of its rows."""

    def __init__(self, array: np.memmap):
        self.arguments = {
            "filename": array.filename,
            "dtype": array.dtype,
            "shape": array.shape,
            "offset": array.offset,
            "order": "C" if array.flags.c_contiguous else "F",
        }

    @classmethod
    def wrap(cls, leaf: Any) -> Any:
        # A slice of a map remembers the offset of the whole; only the whole is named.
        whole = isinstance(leaf, np.memmap) and isinstance(leaf.base, mmap.mmap)
        return cls(leaf) if whole and leaf.filename is not None else leaf

    def open(self) -> np.memmap:
        return np.memmap(mode="r", **self.arguments)


class _Rows(grain.IterDataset):
    """Rows of an iterable; `set_slice` is how Grain gives each worker its turn."""

    def __init__(self, source: Iterable[Any], transform: Callable[[Any], PyTree] | None):
        super().__init__()
        self.source, self.transform = source, transform
        self.turn = slice(None)

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        del sequential_slice
        self.turn = sl

    def __iter__(self) -> "_RowsIterator":
        return _RowsIterator(self)


class _RowsIterator(grain.DatasetIterator):
    def __init__(self, rows: _Rows):
        super().__init__()
        self.rows = rows
        self.set_state({"next_index": 0})

    def __next__(self) -> _Boxed:
        row = next(self.iterator)
        self.index += 1
        return _Boxed(row if self.rows.transform is None else self.rows.transform(row))

    def get_state(self) -> dict[str, int]:
        return {"next_index": self.index}

    def set_state(self, state: dict[str, int]) -> None:
        self.index = state["next_index"]
        turn = self.rows.turn
        taken = itertools.islice(iter(self.rows.source), turn.start, None, turn.step)
        self.iterator = itertools.islice(taken, self.index, None)
