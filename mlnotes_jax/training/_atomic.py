"""A folder that is there as a whole or not at all, and whose every byte is known.

A checkpoint is written under a hidden name and renamed at the very end; a rename is one step for
the file system. Its manifest lists every file with its SHA-256, and ends with its own.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError:  # not POSIX: a live save cannot be told from a dead one
    fcntl = None

FORMAT = "mlnotes_jax checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
ARRAYS = "arrays"


def commit(
    target: Path, body: dict[str, Any], arrays: dict[str, np.ndarray], *, replace: bool = False
) -> None:
    """Write arrays (by Orbax) and a manifest under a hidden name, then rename to `target`.

    With `replace`, what was at `target` is there until everything of the new one is written.

    Raises:
        FileExistsError: `target` has appeared meanwhile.
    """
    with _hidden(target) as work:
        if arrays:
            import orbax.checkpoint as ocp

            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                checkpointer.save(work / ARRAYS, args=ocp.args.PyTreeSave(arrays))
        files = {name: _digest(work / name, sync=True) for name in _files(work)}
        body = {"format": FORMAT, "version": VERSION, **body, "files": files}
        text = json.dumps({"body": body, "sha256": _checksum(body)}, indent=1)
        (work / MANIFEST).write_text(text, encoding="utf-8")
        _digest(work / MANIFEST, sync=True)
        for folder in {(work / name).parent for name in files} | {work}:
            _sync(folder)
        old = None
        if target.exists():
            if not replace:
                raise FileExistsError(f"{target} exists: another process has saved it meanwhile")
            old = hidden_name(target)
            os.rename(target, old)
        os.rename(work, target)  # from here on it is complete
        _sync(target.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def discard(target: Path) -> None:
    """Remove a checkpoint: it is gone in one step, its bytes in many."""
    old = hidden_name(target)
    os.rename(target, old)
    shutil.rmtree(old, ignore_errors=True)  # what is left, `clean` removes


def clean(folder: Path, name: str) -> None:
    """Remove what interrupted saves have left in a folder; `name` is a regular expression."""
    pattern = re.compile(rf"\.{name}\.[0-9a-f]{{16}}\.part")
    for leftover in [path for path in folder.iterdir() if pattern.fullmatch(path.name)]:
        with contextlib.suppress(OSError), _locked(leftover) as free:
            if free:  # else another process is at work there
                shutil.rmtree(leftover, ignore_errors=True)


def hidden_name(target: Path) -> Path:
    """Make up a name beside `target` that nothing reads."""
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check the manifest of a checkpoint.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It is not a checkpoint, is damaged, or of another version.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    file = path / MANIFEST
    if not file.is_file():
        raise ValueError(
            f"{path} is not a checkpoint of mlnotes_jax, or it is damaged: there is no {MANIFEST}"
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        body, digest = found["body"], found["sha256"]
        kind, version = body["format"], body["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged, or foreign: {type(error).__name__}: {error}"
        ) from error
    if kind != FORMAT:
        raise ValueError(f"{file} must have the format {FORMAT!r}, got {kind!r}")
    if version != VERSION:
        raise ValueError(f"{file} has version {version}, but this library reads version {VERSION}")
    if digest != _checksum(body):
        raise ValueError(f"{file} is damaged: its checksum does not fit")
    return body


def check_files(path: Path, files: dict[str, Any]) -> None:
    """Raise `ValueError` unless the files are those of the manifest, to the last bit."""
    found = set(_files(path)) - {MANIFEST}
    if missing := sorted(set(files) - found):
        raise ValueError(f"{path / missing[0]} is missing: the checkpoint is damaged")
    if extra := sorted(found - set(files)):
        raise ValueError(f"{path / extra[0]} is foreign: the manifest does not list it")
    for name, wanted in files.items():
        size = (path / name).stat().st_size
        if size != wanted["bytes"]:
            raise ValueError(
                f"{path / name} is damaged: it has {size} bytes, the manifest says "
                f"{wanted['bytes']}"
            )
        if _digest(path / name) != wanted:
            raise ValueError(f"{path / name} is damaged: its SHA-256 is not that of the manifest")


def read_arrays(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Read arrays that `commit` has written."""
    if not names:
        return {}
    import orbax.checkpoint as ocp

    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        try:
            return checkpointer.restore(
                path / ARRAYS, args=ocp.args.PyTreeRestore(restore_args=as_numpy)
            )
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(f"{path / ARRAYS} could not be read by Orbax: {error}") from error


@contextlib.contextmanager
def _hidden(target: Path) -> Iterator[Path]:
    """Make a hidden, locked folder beside `target`; remove it unless it was renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    while True:
        work = hidden_name(target)
        work.mkdir()
        with _locked(work) as free:
            if not free or not work.exists():
                continue  # `clean` of another process was faster than the lock
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)
            return


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder; the system frees it when the process dies, however it dies."""
    if fcntl is None:
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()
    )


def _digest(file: Path, *, sync: bool = False) -> dict[str, Any]:
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if sync:
            os.fsync(stream.fileno())
        return {"bytes": os.fstat(stream.fileno()).st_size, "sha256": digest}


def _checksum(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _sync(folder: Path) -> None:
    """Make names in a folder survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
