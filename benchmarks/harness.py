"""Time ours and the peers: interleaved, median of several, compile time apart."""

import datetime
import gc
import importlib
import json
import os
import pathlib
import pkgutil
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

__all__ = ["Case", "Job", "Row", "find", "header", "limit_threads", "listing", "measure", "write"]

_ROOT = pathlib.Path(__file__).parent

#: Variables that the BLAS and OpenMP libraries read when they are loaded.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Job(NamedTuple):
    """One way of doing the work.

    Attributes:
        prepare: Compiles, and returns the function to be timed. That function takes nothing, waits
            for its result and returns it.
        quality: Measures how good a result is; the same measure for ours and the peers.
    """

    prepare: Callable[[], Callable[[], Any]]
    quality: Callable[[Any], float]


class Case(NamedTuple):
    """One piece of work.

    Attributes:
        name: What is done, on what.
        ours: This library.
        peers: Name to job.
        gigabytes: What must be read and written at least, in 1e9 bytes, where memory is the limit.
    """

    name: str
    ours: Job
    peers: dict[str, Job]
    gigabytes: float | None = None


class Row(NamedTuple):
    """One comparison; times are medians in seconds of wall-clock time.

    Attributes:
        case: The work.
        peer: The other library.
        ours_s: Our time.
        peer_s: Its time.
        ratio: `peer_s / ours_s`; above one, ours is faster.
        ours_quality: As the benchmark's `QUALITY` says.
        peer_quality: The same measure.
        compile_s: Our tracing and compiling, once.
        repeats: How often each was timed.
        ours_spread_s: Slowest less fastest of ours.
        peer_spread_s: Slowest less fastest of the peer.
        gigabytes: What must be read and written at least, in 1e9 bytes; None where that is not
            what limits the work.
    """

    case: str
    peer: str
    ours_s: float
    peer_s: float
    ratio: float
    ours_quality: float
    peer_quality: float
    compile_s: float
    repeats: int
    ours_spread_s: float
    peer_spread_s: float
    gigabytes: float | None


def listing() -> Iterator[tuple[str, str]]:
    """Every benchmark, as `chapter/concept` and the first line of its docstring (not imported)."""
    import ast

    for chapter in pkgutil.iter_modules([str(_ROOT)]):
        if not chapter.ispkg:
            continue
        for module in pkgutil.iter_modules([str(_ROOT / chapter.name)]):
            path = _ROOT / chapter.name / f"{module.name}.py"
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            yield f"{chapter.name}/{module.name}", text.partition("\n")[0]


def find(name: str) -> str:
    """Full name of a benchmark from `chapter/concept`, or `concept` alone where that is unique."""
    wanted = name.strip().strip("/").lower().replace("-", "_")
    names = [full for full, _ in listing()]
    matches = [full for full in names if wanted in (full, full.split("/")[1])]
    if len(matches) == 1:
        return matches[0]
    raise LookupError(f"there is no benchmark {name!r}: there are {', '.join(names)}")


def limit_threads(threads: int) -> None:
    """Keep this process, and every library it loads from now on, to so many cores.

    Must run before JAX, NumPy or PyTorch is imported. Where the system lets a process choose its
    cores (Linux), that binds them all; elsewhere only the BLAS and OpenMP pools are limited.
    """
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[:threads])


def header(name: str, *, size: str, threads: int | None, quality: str) -> dict[str, Any]:
    """Say when, where and with which versions."""
    import jax

    packages = (
        "mlnotes-jax",
        "jax",
        "jaxlib",
        "numpy",
        "scipy",
        "scikit-learn",
        "torch",
        "lightgbm",
        "xgboost-cpu",
    )
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "benchmark": name,
        "size": size,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {platform.system()} {platform.machine()}",
        "device": f"{jax.default_backend()}: {jax.devices()[0].device_kind}",
        "threads": threads,
        "versions": versions,
        "quality": quality,
    }


def measure(cases: Iterable[Case], *, repeats: int) -> Iterator[Row]:
    """Run every case; ours and each peer take turns within each repeat."""
    for case in cases:
        jobs = {"": case.ours, **case.peers}
        run, qualities, prepared_s = {}, {}, {}
        for name, job in jobs.items():
            start = time.perf_counter()
            run[name] = job.prepare()
            prepared_s[name] = time.perf_counter() - start
            qualities[name] = job.quality(run[name]())  # the first run warms caches; not timed
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(repeats):
            for name, function in run.items():
                gc.collect()
                start = time.perf_counter()
                result = function()
                seconds[name].append(time.perf_counter() - start)
                del result
        ours = seconds.pop("")
        for peer, theirs in seconds.items():
            ours_s, peer_s = statistics.median(ours), statistics.median(theirs)
            yield Row(
                case=case.name,
                peer=peer,
                ours_s=ours_s,
                peer_s=peer_s,
                ratio=peer_s / ours_s,
                ours_quality=qualities[""],
                peer_quality=qualities[peer],
                compile_s=prepared_s[""],
                repeats=repeats,
                ours_spread_s=max(ours) - min(ours),
                peer_spread_s=max(theirs) - min(theirs),
                gigabytes=case.gigabytes,
            )


def write(path: pathlib.Path, head: dict[str, Any], rows: Iterable[Row]) -> None:
    """Write the header and the rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"header": head, "rows": [row._asdict() for row in rows]}
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def load(name: str) -> Any:
    """Import a benchmark by its full name."""
    return importlib.import_module(f"benchmarks.{name.replace('/', '.')}")


def _processor() -> str:
    if sys.platform == "linux":
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
