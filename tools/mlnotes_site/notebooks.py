"""A notebook of every page that has Python blocks.

The page's text becomes the notebook's: what only the site understands (the API section's `:::`,
admonitions, tabs, links to symbols and pages, equation labels) is turned into plain Markdown, and
every Python block becomes a code cell, in order, wherever on the page it stands.
"""

import re
from collections.abc import Sequence

import nbformat

from mlnotes_site.pages import Fence, Page, Pages, fences

__all__ = ["notebook", "path", "wanted", "write"]

_CONTAINER = re.compile(r'^(?P<indent> *)(?:!!!|\?\?\?\+?|===\+?) *[\w -]*?(?:"(?P<title>.*)")? *$')
_KIND = re.compile(r"^ *(?:!!!|\?\?\?\+?) *([\w-]+)")
_SYMBOL_LINK = re.compile(r"(?<!!)\[(`[^`]+`|[^\]\[]+)\]\[[^\]]*\]")
_PAGE_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)")
_ATTRIBUTES = re.compile(r" ?\{:?(?: *[.#][\w-]+| *[\w-]+=(?:\"[^\"]*\"|[^\s}]+))+ *\}")
_LABEL = re.compile(r"\s*\\label\{([^}]*)\}")
_REFERENCE = re.compile(r"\$\\(eq)?ref\{([^}]*)\}\$")


def _flatten(lines: Sequence[str], blocks: Sequence[Fence]) -> list[str]:
    """Take text out of admonitions, folded blocks and tabs; their titles become bold lines."""
    code = {line for block in blocks for line in range(block.start, block.end + 1)}
    flat: list[str] = []
    margins = [0]
    for number, line in enumerate(lines):
        if number in code:
            flat.append(line)
            continue
        depth = len(line) - len(line.lstrip(" "))
        while line.strip() and depth < margins[-1]:
            margins.pop()
        line = line[margins[-1] :] if line.strip() else ""
        if match := _CONTAINER.match(line):
            kind = _KIND.match(line)
            title = match["title"] or (kind[1].capitalize() if kind else "")
            flat += [f"**{title}**", ""]
            margins.append(depth + 4)
        else:
            flat.append(line)
    return flat


def _plain(text: str, page: Page, pages: Pages) -> str:
    """Markdown that a notebook understands."""

    def reference(match: re.Match[str]) -> str:
        owner, number = pages.equation(match[2])
        shown = f"({number})" if match[1] else str(number)
        return shown if owner is page else f"{owner.title} {shown}"

    text = re.sub(r"^ *::: .*\n(?:(?: {4}.*)?\n)*", "", text + "\n", flags=re.M)
    text = re.sub(r"^## API\s*(?=^## |\Z)", "", text, flags=re.M)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = _REFERENCE.sub(reference, text)
    text = _LABEL.sub(lambda match: rf"\tag{{{page.labels[match[1]]}}}", text)
    for pattern in (_SYMBOL_LINK, _PAGE_LINK):
        text = pattern.sub(r"\1", text)
    return re.sub(r"\n{3,}", "\n\n", _ATTRIBUTES.sub("", text)).strip()


def notebook(page: Page, pages: Pages) -> nbformat.NotebookNode:
    """Make a page's notebook.

    Args:
        page: The page.
        pages: All pages, for the equations that it refers to.

    Returns:
        A valid notebook of format 4, without outputs; the same for the same page.
    """
    lines = _flatten(page.lines, page.fences)
    cells = []
    start = 0
    # Code keeps its indent in `lines`, so its fences are found again, at their new places.
    for block in (*(f for f in fences(lines) if f.language == "python"), None):
        text = _plain("\n".join(lines[start : block.start if block else len(lines)]), page, pages)
        if text:
            cells.append(nbformat.v4.new_markdown_cell(text, id=f"cell-{len(cells)}"))
        if block:
            cells.append(nbformat.v4.new_code_cell(block.code.rstrip(), id=f"cell-{len(cells)}"))
            start = block.end + 1
    note = (
        f"*Made from the page `{page.path}` of mlnotes_jax. To run it, install mlnotes_jax with "
        "its extra `demos`.*"
    )
    cells.insert(0, nbformat.v4.new_markdown_cell(note, id="cell-note"))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.validate(made)
    return made


def wanted(page: Page) -> bool:
    """Whether a page has a notebook: it has code, and not `notebook: false` in its front matter."""
    return bool(page.snippets) and page.meta.get("notebook") is not False


def path(page: Page) -> str:
    """Where the notebook of a page is, relative to the folder of pages."""
    return f"assets/notebooks/{page.path.removesuffix('.md')}.ipynb"


def write(pages: Pages) -> int:
    """Write the notebooks of all pages under `assets/notebooks`, and remove those without a page.

    Args:
        pages: All pages.

    Returns:
        How many there are.
    """
    folder = pages.folder / "assets" / "notebooks"
    kept = set()
    for page in pages.refresh():
        if not wanted(page):
            continue
        file = pages.folder / path(page)
        text = nbformat.writes(notebook(page, pages)) + "\n"
        kept.add(file)
        # A file that does not change keeps its time, so a live preview does not start again.
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    for file in set(folder.rglob("*.ipynb")) - kept:
        file.unlink()
    return len(kept)
