"""Run the Python blocks of pages, and remember what came out.

The same runner serves the site's build, its preparation and pytest. An answer is kept under
`.cache/snippets` as long as the blocks, every file of the repository that they imported or read,
and the versions of Python and the numerical packages stay the same.
"""

import atexit
import concurrent.futures
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlnotes_site.pages import Page
from mlnotes_site.project import CACHE, ROOT, SiteError
from mlnotes_site.worker import FORKS

__all__ = ["Output", "Runner", "run_all", "time_limit"]

#: Seconds that the blocks of a page may take together, unless its front matter says `timeout`.
TIMEOUT = 600

_PACKAGES = ("chex", "flax", "jax", "jaxlib", "matplotlib", "numpy", "optax", "scikit-learn")
_KEPT = 30 * 24 * 3600  # seconds that an answer nobody asks for is kept


@dataclasses.dataclass(frozen=True)
class Output:
    """What a block printed and drew.

    Attributes:
        stdout: The text.
        figures: The pictures, as `<svg>` elements.
    """

    stdout: str
    figures: list[str]


def time_limit(page: Page) -> float:
    """Seconds that the blocks of a page may take together.

    Raises:
        SiteError: The page's `timeout` is not a positive number.
    """
    limit = page.meta.get("timeout", TIMEOUT)
    if isinstance(limit, bool) or not isinstance(limit, int | float) or limit <= 0:
        raise SiteError(f"{page.path}: timeout must be a positive number of seconds, got {limit!r}")
    return limit


def _hash(path: Path) -> str | None:
    try:
        if path.is_dir():
            names = sorted(entry for entry in os.listdir(path) if not entry.startswith("__"))
            return hashlib.sha256("\n".join(names).encode()).hexdigest()
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _environment() -> dict[str, str]:
    """The environment of a page: no setting of the user's shell changes what it shows."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_", "XLA_", "MPL", "PYTHON", "MLNOTES_"))
    }
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    fixed = {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg", "PYTHONHASHSEED": "0"}
    # A compiled file counts as fresh if second and size agree: a quick edit would be missed.
    fixed["PYTHONDONTWRITEBYTECODE"] = "1"
    # Pages share compiled programs with each other, with the tests and with their own next run.
    fixed["JAX_COMPILATION_CACHE_DIR"] = str(CACHE / "jax")
    fixed["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return {**kept, **fixed, "PYTHONPATH": path, "PYTHONUTF8": "1"}


class Runner:
    """Answers for pages from the cache, or from one worker process.

    Not to be shared between threads: `run_all` gives each its own.
    """

    def __init__(self, cache: Path = CACHE / "snippets", root: Path = ROOT) -> None:
        """Nothing is started before a page has to run.

        Args:
            cache: The folder of answers.
            root: The repository; changes of files under it are noticed.
        """
        self._cache = cache
        self._root = root
        self._process: subprocess.Popen[str] | None = None
        self._salt = [
            hashlib.sha256(Path(__file__).with_name("worker.py").read_bytes()).hexdigest(),
            platform.python_version(),
            platform.machine(),
            *(importlib.metadata.version(package) for package in _PACKAGES),
        ]

    def outputs(self, page: Page, *, fresh: bool = False) -> list[Output]:
        """What the blocks of a page print and draw, one entry for each block.

        Args:
            page: The page.
            fresh: Run it even if the answer is known.

        Raises:
            SiteError: A block failed or the page took too long; the message has the page, the
                line and the traceback.
        """
        if not page.snippets:
            return []
        known = None if fresh else self.cached(page)
        if known is not None:
            return known
        limit = time_limit(page)
        answer = self._ask(page, limit)
        if "error" in answer:
            raise SiteError(
                f"{page.path}:{answer['line']}: a snippet failed "
                f"(time limit of the page: {limit:g} s)\n{answer['error'].rstrip()}"
            )
        reads = {name: _hash(self._root / name) for name in answer["reads"]}
        self._store(page, {"reads": reads, "outputs": answer["outputs"]})
        return [Output(**output) for output in answer["outputs"]]

    def cached(self, page: Page) -> list[Output] | None:
        """What is known of a page, or None if it must run."""
        file = self._file(page)
        if not file.exists():
            return None
        answer = json.loads(file.read_text(encoding="utf-8"))
        if any(_hash(self._root / name) != known for name, known in answer["reads"].items()):
            return None
        os.utime(file)
        return [Output(**output) for output in answer["outputs"]]

    def close(self) -> None:
        """End the worker process."""
        atexit.unregister(self.close)
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _file(self, page: Page) -> Path:
        content = json.dumps([self._salt, [fence.code for fence in page.snippets]])
        key = hashlib.sha256(content.encode()).hexdigest()[:24]
        return self._cache / f"{Path(page.path).stem}-{key}.json"

    def _store(self, page: Page, answer: dict[str, Any]) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        for old in self._cache.glob("*.json"):
            if old.stat().st_mtime < time.time() - _KEPT:
                old.unlink(missing_ok=True)
        file = self._file(page)
        part = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        part.write_text(json.dumps(answer), encoding="utf-8")
        part.replace(file)

    def _ask(self, page: Page, limit: float) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlnotes_site.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                env=_environment(),
                cwd=self._root,
            )
            atexit.register(self.close)
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        request = {
            "path": page.path,
            "lines": [*([""] * page.offset), *page.lines],
            "blocks": [[page.offset + f.start + 2, f.code] for f in page.snippets],
            "timeout": limit,
            "root": str(self._root),
        }
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        if FORKS:
            text = process.stdout.readline()
        else:
            # The worker ends after one page; here is nobody else to stop it.
            timer = threading.Timer(limit + 60, process.kill)
            timer.start()
            text = process.stdout.readline()
            timer.cancel()
            self.close()
        if not text:
            self.close()
            return {"line": 1, "error": "the worker process ended without an answer"}
        return json.loads(text)


def run_all(
    pages: Iterable[Page], *, fresh: bool = False, jobs: int | None = None
) -> tuple[int, int]:
    """Run every page whose answer is not known, several at a time.

    Args:
        pages: The pages.
        fresh: Run all of them.
        jobs: How many at a time; by default, the number of processors, and at most 8.

    Returns:
        How many pages have blocks, and how many of them were run.

    Raises:
        SiteError: Pages failed; the message has every failure.
    """
    with_blocks = [page for page in pages if page.snippets]
    probe = Runner()
    stale = [page for page in with_blocks if fresh or probe.cached(page) is None]
    mine = threading.local()
    runners: list[Runner] = []

    def run(page: Page) -> str | None:
        if not hasattr(mine, "runner"):
            mine.runner = Runner()
            runners.append(mine.runner)
        try:
            mine.runner.outputs(page, fresh=fresh)
        except SiteError as error:
            return error.message
        return None

    with concurrent.futures.ThreadPoolExecutor(jobs or min(os.cpu_count() or 1, 8)) as pool:
        failures = [failure for failure in pool.map(run, stale) if failure]
    for runner in runners:
        runner.close()
    if failures:
        raise SiteError("\n\n".join(failures))
    return len(with_blocks), len(stale)
