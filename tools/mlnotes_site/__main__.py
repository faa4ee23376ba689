"""The commands: `python -m mlnotes_site prepare | build | serve | check`."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlnotes_site import assets, check, inventories, notebooks, snippets
from mlnotes_site.pages import Pages
from mlnotes_site.project import DOCS, ROOT, SiteError


@contextmanager
def _step(name: str) -> Iterator[list[str]]:
    """Print what is done and how long it took; the body may append remarks."""
    remarks: list[str] = []
    start = time.perf_counter()
    yield remarks
    seconds = time.perf_counter() - start
    print(f"{name:<12} {seconds:6.1f} s  {', '.join(remarks)}".rstrip(), flush=True)


def prepare(docs: Path = DOCS, *, jobs: int | None = None) -> None:
    """Make everything that a build needs: packages, fonts, inventories, notebooks, snippets.

    Args:
        docs: The folder of pages.
        jobs: How many pages run their snippets at the same time.
    """
    with _step("assets") as remarks:
        remarks.append("fetched" if assets.install_packages() else "already there")
        assets.install_katex(docs)
    with _step("inventories") as remarks:
        remarks.append("written" if inventories.write() else "already there")
    pages = Pages(docs).refresh().check()
    with _step("notebooks") as remarks:
        remarks.append(f"{notebooks.write(pages)} pages")
    with _step("snippets") as remarks:
        total, ran = snippets.run_all(pages, jobs=jobs)
        remarks.append(f"{total} pages, {ran} of them run")


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT / "tools"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "NO_MKDOCS_2_WARNING": "1"}
    if environment.get("MLNOTES_REPO_URL"):
        environment.setdefault("MLNOTES_EDIT_URI", "edit/main/docs/")
    return environment


def build(builder: str, config: Path, site: Path) -> None:
    """Render the prepared pages; warnings are errors.

    Args:
        builder: `mkdocs` or `zensical`.
        config: The configuration, `mkdocs.yml`.
        site: Where the site goes.

    Raises:
        SiteError: The builder failed; it has said why.
    """
    environment = _environment()
    if builder == "mkdocs":
        # Never with --quiet: then --strict does not see the warnings.
        command = ["mkdocs", "build", "--strict", "--clean", "--site-dir", str(site.resolve())]
        target = site
    else:
        # Zensical writes only below the folder of its configuration.
        command = ["zensical", "build", "--strict"]
        target = config.resolve().parent / "site-zensical"
        environment["MLNOTES_SITE_DIR"] = target.name
        shutil.rmtree(target, ignore_errors=True)
        # It remembers rendered pages, but knows nothing of snippets and equation numbers. Its
        # files are right in .cache, ours in folders of it.
        for file in (target.parent / ".cache").glob("*"):
            if file.is_file():
                file.unlink()
    command = [sys.executable, "-m", *command, "--config-file", str(config.resolve())]
    with _step(builder):
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if status:
        raise SiteError(f"{builder} failed with status {status}")
    if target.resolve() != site.resolve():
        shutil.rmtree(site, ignore_errors=True)
        shutil.move(target, site)


def serve(config: Path, address: str) -> None:
    """Preview the site; pages are rendered again when they, or the package, change."""
    command = [sys.executable, "-m", "mkdocs", "serve", "--livereload"]
    command += ["--config-file", str(config.resolve()), "--dev-addr", address]
    raise SystemExit(subprocess.run(command, cwd=ROOT, env=_environment(), check=False).returncode)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Those of the command line, by default.

    Returns:
        0, or 1 after an error.
    """
    parser = argparse.ArgumentParser(prog="python -m mlnotes_site", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    making = command("prepare", "Make what a build needs; the only step that may use a network.")
    building = command("build", "Prepare, then build the site; anything wrong is an error.")
    serving = command("serve", "Prepare, then preview the site and follow changes.")
    checking = command("check", "Check a built site: links, requests, undocumented names.")
    for sub in (making, building, serving):
        sub.add_argument("--jobs", type=int, help="pages whose snippets run at the same time")
    for sub in (building, serving):
        sub.add_argument("--config", type=Path, default=ROOT / "mkdocs.yml")
        sub.add_argument("--docs", type=Path, default=DOCS, help="the folder of pages")
    for sub in (building, checking):
        sub.add_argument("--site-dir", type=Path, default=ROOT / "site")
    building.add_argument("--builder", choices=["mkdocs", "zensical"], default="mkdocs")
    serving.add_argument("--address", default="127.0.0.1:8000", help="host and port")
    options = parser.parse_args(arguments)
    try:
        match options.command:
            case "prepare":
                prepare(jobs=options.jobs)
            case "build":
                prepare(options.docs, jobs=options.jobs)
                build(options.builder, options.config, options.site_dir)
            case "serve":
                prepare(options.docs, jobs=options.jobs)
                serve(options.config, options.address)
            case "check":
                found = check.problems(options.site_dir)
                print("\n".join(found) or f"{options.site_dir}: no problems")
                return 1 if found else 0
    except SiteError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
