"""What bytes mean: IDX, CIFAR-10 and CSV. Every error names the file and the place."""

import csv
import io
import math
import re
from collections.abc import Collection, Sequence

import numpy as np

# IDX type code -> big-endian dtype of the elements.
IDX_DTYPES = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}

CIFAR_RECORD = 1 + 3 * 32 * 32
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def idx(name: str, data: bytes) -> np.ndarray:
    """Decode an IDX file; see `mlnotes_jax.data.datasets.read_idx`."""
    if len(data) < 4 or data[:2] != b"\0\0":
        raise ValueError(f"{name}: not an IDX file: it begins with {_hex(data[:4])}, not 00 00")
    code, ndim = data[2], data[3]
    if code not in IDX_DTYPES:
        known = ", ".join(f"{c:02x}" for c in IDX_DTYPES)
        raise ValueError(f"{name}: unknown IDX type code {code:02x}, known are {known}")
    start = 4 + 4 * ndim
    if not ndim or len(data) < start:
        raise ValueError(f"{name}: IDX header of {ndim} sizes cut off after {len(data)} bytes")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", ndim, 4))
    if 0 in shape:
        raise ValueError(f"{name}: IDX header gives an empty array, shape {shape}")
    dtype = IDX_DTYPES[code]
    needed, found = math.prod(shape) * dtype.itemsize, len(data) - start
    if found != needed:
        raise ValueError(
            f"{name}: {'cut off' if found < needed else 'too long'}: {needed} bytes of data wanted "
            f"for shape {shape} of {dtype.name}, found {found}"
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def cifar10(name: str, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Decode a batch of CIFAR-10; see `mlnotes_jax.data.datasets.read_cifar10`."""
    if data[:1] == b"\x80":
        raise ValueError(
            f"{name}: this is a batch of the Python version, a pickle, and reading a pickle runs "
            "what is in it: take the binary version, cifar-10-binary.tar.gz"
        )
    count, rest = divmod(len(data), CIFAR_RECORD)
    if rest or not count:
        raise ValueError(
            f"{name}: {len(data)} bytes are no whole number of {CIFAR_RECORD}-byte records"
        )
    records = np.frombuffer(data, np.uint8).reshape(count, CIFAR_RECORD)
    wrong = np.flatnonzero(records[:, 0] > 9)
    if len(wrong):
        raise ValueError(
            f"{name}: label {records[wrong[0], 0]} in record {wrong[0]}, but classes are 0..9"
        )
    planes = records[:, 1:].reshape(count, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].astype(np.int32)


def table(
    name: str,
    text: str,
    *,
    as_text: Sequence[str | int],
    header: bool,
    delimiter: str,
    missing: Collection[str],
) -> tuple[np.ndarray, list[str], dict[str, list[str]]]:
    """Parse a CSV file.

    Returns:
        The numbers as float64 with NaN for what is missing, the names of their columns, and the
        text columns by name.
    """
    rows: list[tuple[int, list[str]]] = []
    blank = 0
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    line = 1  # on which the coming record begins: a quoted cell may span several
    try:
        for cells in reader:
            if not cells:
                blank = blank or line
            elif blank:
                raise ValueError(f"{name}, line {blank}: an empty line inside the table")
            else:
                rows.append((line, [cell.strip() for cell in cells]))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{name}, line {line}: {error}") from error

    if len(rows) <= header:
        raise ValueError(f"{name}: no rows of data")
    width = len(rows[0][1])
    if blank and width == 1:
        raise ValueError(f"{name}, line {blank}: an empty line: a missing value, or none?")
    for line, cells in rows:
        if len(cells) != width:
            raise ValueError(
                f"{name}, line {line}: {len(cells)} cells, but line {rows[0][0]} has {width}"
            )
    names = rows.pop(0)[1] if header else [str(column) for column in range(width)]
    if len(set(names)) < width:
        twice = next(n for n in names if names.count(n) > 1)
        raise ValueError(f"{name}: two columns are called {twice!r}")

    words = {_column(name, names, column) for column in as_text}
    numbers = [column for column in range(width) if column not in words]
    values = np.empty((len(rows), len(numbers)))
    for row, (line, cells) in enumerate(rows):
        for place, column in enumerate(numbers):
            cell = cells[column]
            if cell in missing:
                values[row, place] = np.nan
            elif _NUMBER.fullmatch(cell) and math.isfinite(number := float(cell)):
                values[row, place] = number
            else:
                raise ValueError(
                    f"{name}, line {line}, column {names[column]!r}: {cell!r} is neither a finite "
                    "number nor one of the words for a missing value"
                )
    text_columns = {names[c]: [cells[c] for _, cells in rows] for c in sorted(words)}
    return values, [names[column] for column in numbers], text_columns


def _column(name: str, names: Sequence[str], column: str | int) -> int:
    if isinstance(column, str) and column in names:
        return names.index(column)
    if isinstance(column, int) and -len(names) <= column < len(names):
        return column % len(names)
    raise ValueError(f"{name} has no column {column!r}, only {', '.join(map(repr, names))}")


def _hex(data: bytes) -> str:
    return data.hex(" ") or "nothing"
