r"""Reproducibility: the same bits again, and a way to see whether they are.

A key is a number that is used once. Two ways make new keys from a key $k$:

$$\operatorname{split}(k, n) = (k_0, \dots, k_{n-1}), \qquad
  \operatorname{fold}(k, m) = k'_m \quad (0 \le m < 2^{32}).$$

Splitting counts: who comes later gets another key when somebody is added before. Folding names:
the key of epoch 7, or of the stream "dropout", does not depend on what else is drawn. A run is then
a function of one key and the data. What is left is the order in which floating-point numbers are
added, since $(a + b) + c \ne a + (b + c)$; it depends on the program, the library and the device.

Reference: Salmon, Moraes, Dror and Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3* (2011);
Goldberg, *What Every Computer Scientist Should Know About Floating-Point Arithmetic* (1991).
"""

import hashlib
import importlib.metadata
import os
import platform
import struct
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, Key, PyTree

from mlnotes_jax import _checks
from mlnotes_jax.training import _trees

__all__ = [
    "Difference",
    "advice",
    "differences",
    "fingerprint",
    "flags",
    "report",
    "same_bits",
    "seed",
    "stream",
    "streams",
]


class Difference(NamedTuple):
    """A leaf in which two trees differ.

    Attributes:
        path: Where; empty for the whole tree.
        what: What differs, in words.
        count: Entries whose bits differ; None where the forms differ.
        largest: Largest absolute difference of numbers; None where there is none.
        ulps: Largest distance in floating-point numbers that lie between, plus one; None where
            there is none.
    """

    path: str
    what: str
    count: int | None
    largest: float | None
    ulps: int | None


def stream(key: Key[Array, ""], name: str, *numbers: Int[ArrayLike, ""]) -> Key[Array, ""]:
    r"""Give a named use of randomness its own key: $\operatorname{fold}(k, h(\text{name}))$.

    $h$ is the first 32 bits of the SHA-256 of the name, the same in every process and version
    (Python's `hash` of a text is not). A stream that is added, or used more often, changes no
    other.

    Args:
        key: $k$, the key of the run.
        name: What it is for: "shuffle", "dropout". Static.
        *numbers: Epoch, step, row: folded in one after the other, each in 0..2³²−1; traced
            (a negative one that cannot be looked at counts modulo 2³²).

    Returns:
        A key. Those of different names, or numbers, count as independent: two of $n$ names share
        one by chance with probability about $n^2 / 2^{33}$; `streams` looks.

    Raises:
        TypeError: `key` is not a typed key, `name` not text, or a number not an integer.
        ValueError: A concrete number is out of range, or not a scalar.

    Example:
        >>> import jax
        >>> from mlnotes_jax.training import reproducibility
        >>> key = jax.random.key(0)
        >>> bool(reproducibility.stream(key, "dropout", 3) == reproducibility.stream(key, "init"))
        False
    """
    key = _key(key)
    if not isinstance(name, str):
        raise TypeError(f"name must be text, got {name!r}")
    key = jax.random.fold_in(key, np.uint32(_number_of(name)))
    for place, number in enumerate(numbers):
        if isinstance(number, int | np.integer):  # JAX's default integers end at 2**31 - 1
            _checks.in_range(f"numbers[{place}]", number, 0, 2**32 - 1)
            number = np.uint32(number)
        value = _checks.integer(f"numbers[{place}]", number, ndim=0)
        _checks.in_range(f"numbers[{place}]", value, 0, 2**32 - 1)
        key = jax.random.fold_in(key, value.astype(jnp.uint32))
    return key


def streams(key: Key[Array, ""], *names: str) -> dict[str, Key[Array, ""]]:
    """Make the keys of several streams; see `stream`.

    Args:
        key: The key of the run.
        *names: What they are for.

    Returns:
        A dictionary from name to key. The order of names does not matter.

    Raises:
        TypeError: As in `stream`.
        ValueError: A name comes twice, or two names happen to share a key.

    Example:
        >>> import jax
        >>> from mlnotes_jax.training import reproducibility
        >>> list(reproducibility.streams(jax.random.key(0), "init", "shuffle"))
        ['init', 'shuffle']
    """
    keys = {name: stream(key, name) for name in names}
    if len(keys) < len(names):
        raise ValueError(f"names must be distinct, got {', '.join(map(repr, names))}")
    taken: dict[int, str] = {}
    for name in names:
        other = taken.setdefault(_number_of(name), name)
        if other != name:
            raise ValueError(f"names {other!r} and {name!r} share a key by chance: rename one")
    return keys


def seed(key: Key[Array, ""]) -> int:
    """Draw a seed for a generator that is not JAX's: NumPy, Grain, `random`, PyTorch.

    Args:
        key: A key that is used for nothing else, such as `stream(key, "grain")`. Concrete.

    Returns:
        A Python integer in 0..2³²−1, which all of them accept.

    Raises:
        TypeError: `key` is not a typed key, or not concrete.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> from mlnotes_jax.training import reproducibility
        >>> key = reproducibility.stream(jax.random.key(0), "numpy")
        >>> generator = np.random.default_rng(reproducibility.seed(key))
    """
    key = _key(key)
    if not _checks.is_concrete(key):
        raise TypeError("key must be concrete: seed runs on the host, not under jit or vmap")
    return int(jax.random.bits(key, dtype=jnp.uint32))


def fingerprint(tree: PyTree) -> str:
    """Hash a tree down to 64 digits: equal if every bit is, and in practice only then.

    Args:
        tree: A pytree of arrays (JAX or NumPy: only the bits matter), typed keys, Python numbers,
            text, bytes and Flax modules. Concrete.

    Returns:
        SHA-256 over the path, dtype, shape and bytes of each leaf, in hexadecimal: the same on
        every machine, whatever its byte order. 0.0 and -0.0 differ, and so do NaNs of different
        bits. Containers count by the paths that they give.

    Raises:
        TypeError: A leaf is something else; the message says which.

    Example:
        >>> import jax.numpy as jnp
        >>> from mlnotes_jax.training import reproducibility
        >>> a = reproducibility.fingerprint({"w": jnp.zeros(2)})
        >>> a[:12], a == reproducibility.fingerprint({"w": -jnp.zeros(2)})
        ('288614f3c1f0', False)
    """
    digest = hashlib.sha256()
    for path, (form, data) in _leaves(tree).items():
        for part in (path.encode(), form.encode(), data):
            digest.update(struct.pack("<Q", len(part)))  # where a part ends is part of the hash
            digest.update(part)
    return digest.hexdigest()


def same_bits(a: PyTree, b: PyTree) -> bool:
    """Tell whether two trees have the same paths, dtypes, shapes and bits.

    Args:
        a: As in `fingerprint`.
        b: Likewise.

    Returns:
        Whether `differences` finds none.

    Example:
        >>> from mlnotes_jax.training import reproducibility
        >>> reproducibility.same_bits((0.1 + 0.2) + 0.3, 0.1 + (0.2 + 0.3))
        False
    """
    return _leaves(a) == _leaves(b)


def differences(a: PyTree, b: PyTree) -> list[Difference]:
    """List the leaves in which two trees differ, and by how much.

    Args:
        a: As in `fingerprint`.
        b: Likewise.

    Returns:
        One entry for each leaf that differs, or is in one tree only.

    Raises:
        TypeError: As in `fingerprint`.

    Example:
        >>> import numpy as np
        >>> from mlnotes_jax.training import reproducibility
        >>> a = np.array([1.0, 2.0], np.float32)
        >>> found = reproducibility.differences({"w": a}, {"w": np.nextafter(a, 3)})
        >>> found[0].path, found[0].count, found[0].ulps
        ("['w']", 2, 1)
    """
    ours, theirs = _leaves(a), _leaves(b)
    found = [Difference(p, "only in the second", None, None, None) for p in theirs.keys() - ours]
    for path, (form, data) in ours.items():
        if path not in theirs:
            found.append(Difference(path, "only in the first", None, None, None))
        elif theirs[path][0] != form:
            found.append(Difference(path, f"{form} and {theirs[path][0]}", None, None, None))
        elif theirs[path][1] != data:
            found.append(_compare(path, form, data, theirs[path][1]))
    return sorted(found, key=lambda difference: difference.path)


def flags(device: str | None = None) -> tuple[str, ...]:
    """Name the flags of XLA that make a program give the same bits in every run on one device.

    They are read from the environment variable `XLA_FLAGS` when JAX first looks for a device:
    set it before Python starts.

    Args:
        device: `"cpu"`, `"gpu"` or `"tpu"`; None for the one in use.

    Returns:
        Flags: for a GPU, one that replaces operations whose order of additions is left to chance
        (scatter, some matrix products and convolutions) and turns off the choice of kernels by
        timing them. None for others: XLA's programs for CPU and TPU have no such operations.

    Raises:
        ValueError: `device` is another word.

    Example:
        >>> from mlnotes_jax.training import reproducibility
        >>> reproducibility.flags("gpu")
        ('--xla_gpu_deterministic_ops=true',)

    Note:
        `--xla_gpu_exclude_nondeterministic_ops=true` is the first half alone: the fastest kernels
        are still chosen by timing, so that two compilations may differ.
    """
    device = jax.default_backend() if device is None else device
    device = "gpu" if device in ("cuda", "rocm") else device
    _checks.one_of("device", device, ("cpu", "gpu", "tpu"))
    return ("--xla_gpu_deterministic_ops=true",) if device == "gpu" else ()


def report() -> dict[str, str]:
    """Collect what decides the bits, besides the program and its key.

    Keep it beside results that somebody may want to have again.

    Returns:
        Names and values: versions of Python and the libraries; device, how many, processes, cores
        that this process may use; JAX's settings of random numbers and precision; `XLA_FLAGS`.

    Example:
        >>> from mlnotes_jax.training import reproducibility
        >>> reproducibility.report()["threefry partitionable"]
        'True'
    """
    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "optax", "numpy"):
        found[name] = importlib.metadata.version(name)
    devices = jax.devices()
    return found | {
        "machine": f"{platform.system()} {platform.machine()}",
        "device": f"{devices[0].platform}: {devices[0].device_kind}",
        "devices": str(len(devices)),
        "processes": str(jax.process_count()),
        "cores": str(_cores()),
        "float64": str(_setting("jax_enable_x64")),
        "matmul precision": str(_setting("jax_default_matmul_precision") or "default"),
        "random generator": str(_setting("jax_default_prng_impl")),
        "threefry partitionable": str(_setting("jax_threefry_partitionable")),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def advice(found: dict[str, str] | None = None) -> list[str]:
    """Say what in a report could give other bits, in the next run or elsewhere.

    Args:
        found: From `report`; None for one made now.

    Returns:
        Sentences; none if two runs on this machine will agree.

    Raises:
        ValueError: `found` lacks an entry.

    Example:
        >>> from mlnotes_jax.training import reproducibility
        >>> lines = reproducibility.report() | {"device": "gpu: NVIDIA H100", "XLA_FLAGS": ""}
        >>> reproducibility.advice(lines)[0].split(":")[0]
        'Set XLA_FLAGS=--xla_gpu_deterministic_ops=true before Python starts'
    """
    found = report() if found is None else found
    missing = [name for name in ("device", *_SETTINGS, "XLA_FLAGS") if name not in found]
    if missing:
        raise ValueError(f"found must come from report, it lacks {', '.join(missing)}")
    lines = []
    kind = found["device"].split(":")[0]
    on = [
        flag for flag in found["XLA_FLAGS"].split() if not flag.lower().endswith(("=false", "=0"))
    ]
    if kind in ("gpu", "cuda", "rocm"):
        wanted = flags("gpu")[0]
        if not any(flag.startswith(wanted.split("=")[0]) for flag in on):
            lines.append(
                f"Set XLA_FLAGS={wanted} before Python starts: GPU kernels that add in any order "
                "are in use."
            )
    if kind not in ("cpu",) and found["matmul precision"] == "default":
        lines.append(
            "Set jax_default_matmul_precision to 'highest' to come near to a CPU: float32 products "
            "are rounded to fewer bits."
        )
    if found["random generator"] != "threefry2x32":
        lines.append(
            f"Use threefry2x32: {found['random generator']} may draw other numbers on another "
            "device, version or sharding."
        )
    if found["threefry partitionable"] != "True":
        lines.append(
            "Set jax_threefry_partitionable to True: it is the default, and other numbers are "
            "drawn without it."
        )
    return lines


_SETTINGS = ("matmul precision", "random generator", "threefry partitionable")


def _key(key: Any) -> Array:
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"key must be a typed key of shape (), as jax.random.key makes, got "
            f"{getattr(key, 'dtype', type(key).__name__)}"
        )
    _checks.check_rank("key", key, 0)
    return key


def _number_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _leaves(tree: PyTree) -> dict[str, tuple[str, bytes]]:
    """Give each leaf by its path: its form in words, and its bytes, little-endian."""
    description, arrays = _trees.describe(_trees.pure(tree))
    forms, remaining = _trees.summary(description), iter(arrays)
    values = dict(_trees.python_leaves(description))
    found = {}
    for path, form in forms.items():
        if path in values:
            found[path] = (form, repr(values[path]).encode())
        else:
            array = _trees.stored(next(remaining))
            found[path] = (form, b"" if array is None else _little(array).tobytes())
    return found


def _little(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind == "V" else array.astype(array.dtype.newbyteorder("<"))


def _compare(path: str, form: str, a: bytes, b: bytes) -> Difference:
    name, _, shape = form.partition(" ")
    if not shape or name.startswith(("key", "<", ">", "|")):  # Python values, keys, text, dates
        return Difference(path, "other value", None, None, None)
    dtype = jnp.dtype(name)
    x, y = (np.frombuffer(data, dtype) for data in (a, b))
    bits = [np.frombuffer(data, "u1").reshape(len(x), -1) for data in (a, b)]
    count = int((bits[0] != bits[1]).any(axis=1).sum())
    what = f"{count} of {len(x)} entries"
    if dtype == np.bool_:
        return Difference(path, what, count, None, None)
    wide = np.complex128 if dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):  # NaNs and infinities are what somebody may be looking for
        gaps = np.abs(x.astype(wide) - y.astype(wide))
        ulps = _ulps(x, y, dtype)
    known = gaps[np.isfinite(gaps)]
    largest = float(known.max()) if len(known) else None
    return Difference(path, what, count, largest, ulps)


def _ulps(x: np.ndarray, y: np.ndarray, dtype: Any) -> int | None:
    """Count floating-point numbers between; their bits, sign apart, are in their order."""
    if not jnp.issubdtype(dtype, np.floating):
        return None
    finite = np.isfinite(x.astype(np.float64)) & np.isfinite(y.astype(np.float64))
    if not finite.any():
        return None
    unsigned = np.dtype(f"u{dtype.itemsize}")
    places = []
    for values in (x, y):
        bits = values[finite].view(unsigned).astype(object)  # Python integers do not overflow
        half = 1 << (8 * dtype.itemsize - 1)
        places.append(np.where(bits >= half, half - bits, bits))
    return int(np.abs(places[0] - places[1]).max())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _setting(name: str) -> Any:
    return getattr(jax.config, name)
