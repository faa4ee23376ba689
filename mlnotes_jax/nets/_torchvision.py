"""A residual network's arrays under torchvision's names, in its layout, in a safetensors file.

An array has a path here, such as `stages, 0, 1, conv1, kernel`, and a name there,
`layer1.1.conv1.weight`, with its axes in another order.
"""

import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

#: What an array is called there, by what it is called here.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_MODULES = (
    (r"^stages\.(\d+)", lambda match: f"layer{int(match[1]) + 1}"),
    (r"\bprojection\.conv\b", "downsample.0"),
    (r"\bprojection\.norm\b", "downsample.1"),
    (r"^stem\.conv", "conv1"),
    (r"^stem\.norm", "bn1"),
    (r"\bnorm(\d*)$", r"bn\1"),
    (r"^head$", "fc"),
)
_TO_TORCH = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}  # HWIO to OIHW, (in, out) to (out, in)
_FROM_TORCH = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}

#: A counter of torch's batch normalization that takes no part in the mathematics.
_IGNORED = "num_batches_tracked"
_FLOATS = ("F16", "F32", "F64")
_SHOWN = 8


def name(path: Iterable[str | int]) -> str:
    """Name the array at `path` as torchvision does."""
    *modules, leaf = (str(part) for part in path)
    text = ".".join(modules)
    for pattern, replacement in _MODULES:
        text = re.sub(pattern, replacement, text)
    return f"{text}.{_LEAVES[leaf]}"


def to_torch(array: np.ndarray) -> np.ndarray:
    """Put the axes in torch's order."""
    return np.ascontiguousarray(array.transpose(_TO_TORCH[array.ndim]))


def from_torch(array: np.ndarray) -> np.ndarray:
    """Put the axes in our order."""
    return np.ascontiguousarray(array.transpose(_FROM_TORCH[array.ndim]))


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape there of an array of shape `shape` here."""
    return tuple(shape[axis] for axis in _TO_TORCH[len(shape)])


def read(
    path: str | os.PathLike[str], wanted: Mapping[str, tuple[int, ...]], skipped: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """Read the wanted arrays, after everything about the file has been checked.

    Args:
        path: The file.
        wanted: Name -> shape, both as torch has them.
        skipped: Names that may be there, and are not read.

    Returns:
        Name -> array.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no complete safetensors file, or the names, shapes or types do not fit;
            the message lists them.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must name a safetensors file, but {path} is no file")
    try:
        with safe_open(path, framework="np") as file:
            names = [n for n in file.keys() if n.rpartition(".")[2] != _IGNORED]  # noqa: SIM118
            found = {n: file.get_slice(n) for n in names if n not in set(skipped)}
            shapes = {n: tuple(part.get_shape()) for n, part in found.items()}
            types = {n: part.get_dtype() for n, part in found.items()}
            _check(path, wanted, shapes, types)
            return {n: file.get_tensor(n) for n in wanted}
    except (SafetensorError, struct.error) as error:
        raise ValueError(f"{path}: no complete safetensors file: {error}") from error


def _check(
    path: Path,
    wanted: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    types: Mapping[str, str],
) -> None:
    both = [n for n in wanted if n in shapes]
    faults = {
        "missing": [n for n in wanted if n not in shapes],
        "unexpected": [n for n in shapes if n not in wanted],
        "wrong shape": [
            f"{n} is {shapes[n]}, must be {wanted[n]}" for n in both if shapes[n] != wanted[n]
        ],
        "wrong type": [
            f"{n} is {types[n]}, must be one of {', '.join(_FLOATS)}"
            for n in both
            if types[n] not in _FLOATS
        ],
    }
    if any(faults.values()):
        lines = "".join(f"\n  {what}: {_listed(which)}" for what, which in faults.items() if which)
        raise ValueError(f"{path} does not fit the model, and nothing was loaded:{lines}")


def _listed(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return "; ".join(names[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays, in torch's layout, to a new file that appears only when it is complete."""
    from safetensors.numpy import save

    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(save(dict(arrays), metadata={"format": "pt"}))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
