"""PyTorch in a process of its own, as it comes and with its fast paths forced.

What pip installs runs a slow path of the matrix library MKL on processors that are not Intel's, and
gives large buffers back to the system after each use. *Tuned* undoes both: a one-line C library,
loaded first, answers "yes" when MKL asks whether the processor is Intel's, and glibc is told to
keep memory. Both must be set before the process starts. So each peer is a child process: it
prepares the work once, then does it whenever it is told to, and says when it is done (0.1 ms).
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.harness import Job

__all__ = ["job", "jobs", "tuned_environment"]

_ROOT = pathlib.Path(__file__).parents[1]
_SHIM = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"

_environment: dict[str, str] | None = None


def jobs(builder: str, files: str, *, compiled: bool = True, **arguments: Any) -> dict[str, Job]:
    """The four ways to run PyTorch: eager and `torch.compile`, each stock and tuned.

    Args:
        builder: Name of a function in `benchmarks.torch_peers`.
        files: Path of an `.npz` file with its arrays.
        compiled: Whether to run `torch.compile`, too.
        arguments: Further arguments of the builder; plain values.
    """
    modes = {"eager": False, "compiled": True} if compiled else {"eager": False}
    layout = ", channels_last" if arguments.get("channels_last") else ""
    return {
        f"PyTorch {mode}, {kind}{layout}": job(
            builder, files, tuned=kind == "tuned", compiled=flag, **arguments
        )
        for mode, flag in modes.items()
        for kind in ("stock", "tuned")
        if kind == "stock" or tuned_environment() is not None
    }


def job(builder: str, files: str, *, tuned: bool = False, **arguments: Any) -> Job:
    """A peer that runs in a child process; see `jobs`."""

    def prepare() -> Callable[[], "_Child"]:
        child = _Child(builder, files, arguments, tuned=tuned)

        def run() -> _Child:
            child.ask("run")
            return child

        return run

    return Job(prepare, lambda child: child.ask("quality"))


def tuned_environment() -> dict[str, str] | None:
    """Variables of a tuned process; None where no C compiler or no glibc is found."""
    global _environment
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        return None
    if _environment is None:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="mlnotes-bench-"))
        source, library = folder / "mkl.c", folder / "mkl.so"
        source.write_text(_SHIM)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
        _environment = {
            "LD_PRELOAD": str(library),
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
            "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
            "MALLOC_MMAP_THRESHOLD_": str(1 << 33),
            "MALLOC_TOP_PAD_": str(1 << 28),
        }
    return _environment


class _Child:
    """A worker and the pipe to it."""

    def __init__(self, builder: str, files: str, arguments: dict[str, Any], *, tuned: bool):
        extra = tuned_environment() or {} if tuned else {}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.torch_process",
                builder,
                files,
                json.dumps(arguments),
            ],
            cwd=_ROOT,
            env={**os.environ, **extra},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ask(None)  # waits until it is ready

    def ask(self, what: str | None) -> Any:
        if what is not None:
            print(what, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the PyTorch process ended with status {self.process.wait()}")
        return json.loads(line)

    def __del__(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def _serve(builder: str, files: str, arguments: dict[str, Any]) -> None:
    """The child's side: prepare, then answer until the pipe closes."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    import numpy as np
    import torch

    from benchmarks import torch_peers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with np.load(files) as stored:
        arrays = dict(stored)
    run = getattr(torch_peers, builder)(arrays, **arguments)
    result: Any = None
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        if line.strip() == "run":
            result = run()
            print(json.dumps("done"), file=replies, flush=True)
        else:
            value = result() if callable(result) else result  # what takes time is not timed
            print(json.dumps(value), file=replies, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
