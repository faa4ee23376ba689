"""Bytes from files and from the network; whatever is wrong is said with the file's name."""

import gzip
import hashlib
import os
import secrets
import urllib.error
import urllib.parse
import urllib.request
import zlib
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any

LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def content(path: str | os.PathLike[str], *, sha256: str | None = None) -> bytes:
    """Read a file; undo gzip, whose own checksum is then checked.

    Args:
        path: The file.
        sha256: What its SHA-256 must be, as it lies on the disk.

    Returns:
        The bytes, unpacked.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The checksum differs, or the gzip stream is damaged or cut off.
    """
    data = Path(path).read_bytes()
    if sha256 is not None:
        check_digest(str(path), data, sha256)
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file: {error}") from error


def check_digest(name: str, data: bytes, sha256: str) -> None:
    """Raise `ValueError` unless the SHA-256 of `data` is as it should be."""
    found = hashlib.sha256(data).hexdigest()
    if found != _digest("sha256", sha256):
        raise ValueError(f"{name}: wrong checksum: SHA-256 is {found}, expected {sha256}")


def text(path: str | os.PathLike[str], *, sha256: str | None = None) -> str:
    """Read UTF-8 text, without a byte-order mark; `ValueError` where a byte does not belong."""
    data = content(path, sha256=sha256)
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}, "
            f"line {line}: {error.reason}"
        ) from error


def fetch(url: str, to: Path, sha256: str, timeout: float) -> Path:
    """Download `url` to the file `to`; see `mlnotes_jax.data.datasets.fetch`."""
    wanted = _digest("sha256", sha256)
    _check_scheme(url)
    if to.is_file():
        with open(to, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == wanted:
                return to
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f"{to.name}.{secrets.token_hex(8)}.part")  # same folder: one file system
    digest = hashlib.sha256()
    opener = urllib.request.build_opener(_SafeRedirects)
    try:
        with opener.open(url, timeout=timeout) as answer, open(part, "xb") as file:
            while block := answer.read(1 << 20):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != wanted:
            raise ValueError(
                f"{url}: wrong checksum: SHA-256 is {digest.hexdigest()}, expected {wanted}; "
                "the download was removed"
            )
        os.replace(part, to)  # nobody ever sees half a file under the name `to`
    except (OSError, HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise OSError(f"{url} could not be downloaded to {to}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return to


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirection only to where a download might have started."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl).scheme == "file":
            raise ValueError(f"{req.full_url} redirects to a file: {newurl}")
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in ("https", "file") or (parts.scheme == "http" and parts.hostname in LOOPBACK):
        return
    raise ValueError(f"url must begin with https: or file: (or http: to this machine), got {url!r}")


def _digest(name: str, value: Any) -> str:
    digest = value.lower() if isinstance(value, str) else ""
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError(f"{name} must be 64 hexadecimal digits, got {value!r}")
    return digest
