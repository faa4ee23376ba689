"""The site's tests: the tools, the snippets of the pages, the built site, and a browser on it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

HAS_DOCS = all(importlib.util.find_spec(name) for name in ("mkdocs", "mlnotes_site"))

if not HAS_DOCS:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header():
    return [] if HAS_DOCS else ["tests/site is left out: the extra `docs` is not installed"]


if HAS_DOCS:
    from mlnotes_site.__main__ import main
    from mlnotes_site.project import CACHE, ROOT


class Scratch:
    """A small site with the project's configuration and pages of a test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.docs = folder / "docs"
        text = (ROOT / "mkdocs.yml").read_text()
        text = re.sub(r"^nav:\n(?: .*\n)*", "", text, flags=re.M)
        text = re.sub(r"^watch: .*\n", "", text, flags=re.M)
        for old, new in {
            "custom_dir: overrides": f"custom_dir: {ROOT / 'overrides'}",
            "paths: [.]": f"paths: [{ROOT}]",
            "    docs: docs": f"    docs: {self.docs}",
        }.items():
            assert old in text, old
            text = text.replace(old, new)
        (folder / "mkdocs.yml").write_text(text)
        self.write("stylesheets/extra.css", (ROOT / "docs/stylesheets/extra.css").read_text())

    def write(self, path: str, text: str) -> None:
        file = self.docs / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def build(self, builder: str = "mkdocs", **environment: str) -> subprocess.CompletedProcess:
        """Build it to `<builder>/`; what was printed, without colours, is in `stdout`."""
        command = [sys.executable, "-m", "mlnotes_site", "build", "--builder", builder]
        command += ["--config", str(self.folder / "mkdocs.yml"), "--docs", str(self.docs)]
        command += ["--site-dir", str(self.folder / builder)]
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        done.stdout = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
        return done


@pytest.fixture
def scratch(tmp_path):
    return Scratch(tmp_path)


@pytest.fixture(scope="session")
def one_at_a_time():
    """What only one worker may do at a time: running the pages, building the site."""
    CACHE.mkdir(exist_ok=True)
    return filelock.FileLock(CACHE / "site-test.lock")


@pytest.fixture(scope="session")
def site(one_at_a_time, testrun_uid):
    """The project's own site, built once; snippets whose answers are known do not run again."""
    folder = CACHE / "site-test"
    outcome = CACHE / "site-test.outcome"
    with one_at_a_time:
        if not (outcome.exists() and outcome.read_text().startswith(testrun_uid)):
            status = main(["build", "--site-dir", str(folder)])
            outcome.write_text(f"{testrun_uid} {status}")
    assert outcome.read_text().endswith(" 0"), "the site does not build"
    return folder
