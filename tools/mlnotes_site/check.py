"""What must hold of the built site.

- Every link and source inside the site leads to a file, every `#fragment` to an anchor.
- Nothing is loaded from another site: no script, style sheet, font or picture.
- Every public name of the package's chapters is documented on some page.
"""

import ast
import re
import urllib.parse
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from mlnotes_site.project import ROOT

__all__ = ["links", "problems", "public_names", "requests", "undocumented"]

_VOID_LINKS = ("mailto:", "tel:", "javascript:", "data:")
_LOADING = {"preload", "prefetch", "preconnect", "dns-prefetch", "stylesheet", "icon", "manifest"}


class _Document(HTMLParser):
    """Anchors, links and what a page loads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self._in_svg = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self._in_svg += tag == "svg"
        for name in ("id", "name"):
            if name in values and (name == "id" or tag == "a"):
                self.anchors.add(values[name])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and _LOADING & set(values.get("rel", "").split()):
            self.loads.append(values.get("href", ""))
        elif self._in_svg and (target := values.get("xlink:href") or values.get("href")):
            self.links.append(target)
        if "src" in values:
            self.loads.append(values["src"])
        self.loads += [part.split()[0] for part in values.get("srcset", "").split(",") if part]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        self._in_svg -= tag == "svg"


def _documents(site: Path) -> dict[Path, _Document]:
    files = sorted(site.rglob("*.html"))
    return {file: _Document(file.read_text(encoding="utf-8")) for file in files}


def _external(url: str) -> bool:
    return bool(urllib.parse.urlsplit(url).netloc)


def links(site: Path) -> list[str]:
    """Links of the built site that lead nowhere.

    Args:
        site: The folder of the built site.

    Returns:
        One line for each.
    """
    documents = _documents(site)
    root = site.resolve()
    found = []
    for file, document in documents.items():
        for url in [*document.links, *document.loads]:
            parts = urllib.parse.urlsplit(url)
            if parts.scheme or parts.netloc or url.startswith(_VOID_LINKS):
                continue
            path = urllib.parse.unquote(parts.path)
            if path.startswith("/"):  # 404.html does not know where it will be shown
                target = root / path.lstrip("/")
            else:
                target = (file.parent / path).resolve() if path else file.resolve()
            if target.is_dir():
                target = target / "index.html"
            name = file.relative_to(site)
            if not target.is_relative_to(root) or not target.exists():
                found.append(f"{name}: {url} leads nowhere")
                continue
            fragment = urllib.parse.unquote(parts.fragment)
            other = documents.get(site / target.relative_to(root))
            if fragment and other is not None and fragment not in other.anchors:
                found.append(f"{name}: {url}: no such anchor")
    return found


def requests(site: Path) -> list[str]:
    """What pages and style sheets would load from other sites.

    Args:
        site: The folder of the built site.

    Returns:
        One line for each.
    """
    found = [
        f"{file.relative_to(site)}: loads {url}"
        for file, document in _documents(site).items()
        for url in document.loads
        if _external(url)
    ]
    for file in sorted(site.rglob("*.css")):
        text = file.read_text(encoding="utf-8")
        for url in re.findall(r"(?:url\(|@import\s+)[\"']?([^\"')\s;]+)", text):
            if _external(url):
                found.append(f"{file.relative_to(site)}: loads {url}")
    return found


def _modules(package: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        # Chapters only: not the package itself, its demos or its command line.
        if parts and parts[0] not in {"demos", "cli"} and not any(p.startswith("_") for p in parts):
            yield ".".join((package.name, *parts)), file


def public_names(package: Path = ROOT / "mlnotes_jax") -> list[str]:
    """Modules and public names of the package's chapters.

    Args:
        package: Its folder. Its files are read, not imported.

    Returns:
        Full names: `mlnotes_jax.foundations.losses`, `mlnotes_jax.foundations.losses.mse`, ...
    """
    names = []
    for module, file in _modules(package):
        if file.name == "__init__.py":
            continue
        names.append(module)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
                assert isinstance(node, ast.Assign)
                names += [f"{module}.{name}" for name in ast.literal_eval(node.value)]
    return names


def undocumented(site: Path, package: Path = ROOT / "mlnotes_jax") -> list[str]:
    """Public names that no page documents.

    Args:
        site: The folder of the built site.
        package: The package's folder.

    Returns:
        One line for each.
    """
    anchors = set().union(*(document.anchors for document in _documents(site).values()))
    return [f"{name} is on no page" for name in public_names(package) if name not in anchors]


def problems(site: Path) -> list[str]:
    """Everything that is wrong with a built site."""
    return [*links(site), *requests(site), *undocumented(site)]
