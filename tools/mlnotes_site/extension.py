r"""The Python-Markdown extension of the site: snippets, equations, a link to the notebook.

It works on the text alone, so every builder that uses Python-Markdown can use it:

- each ```` ```python ```` block is followed by what it printed and drew;
- `$...$` and `$$...$$` (found by `pymdownx.arithmatex`) become HTML, by KaTeX;
- `\label{eq:...}` in a display formula gives it a number and an anchor, and `$\eqref{eq:...}$`
  or `$\ref{eq:...}$` links to it from any page;
- a page with Python blocks gets a link to its notebook, unless it says `notebook: false`.

The same extension renders the docstrings inside a page: formulas work there, labels and snippets
do not (a docstring has doctests).
"""

import html
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor
from markdown.treeprocessors import Treeprocessor
from markdown.util import AtomicString

from mlnotes_site import katex, notebooks
from mlnotes_site.pages import Page, Pages, fences
from mlnotes_site.project import ROOT, SiteError
from mlnotes_site.snippets import Output, Runner

__all__ = ["SiteExtension", "makeExtension"]

_LABEL = re.compile(r"\s*\\label\{([^}]*)\}")
_REFERENCE = re.compile(r"\\(eq)?ref\{([^}]*)\}")
_HEADING = re.compile(r"h[1-6]")

#: Pages and running snippets are shared by every page that a process renders.
_pages: dict[Path, Pages] = {}
_runner = Runner()


class _State:
    """What is known of the text that is being rendered."""

    #: The page that a docstring is on, for messages.
    around = "some page"

    def __init__(self, folder: Path) -> None:
        self.pages = _pages.setdefault(folder, Pages(folder))
        self.page: Page | None = None
        self.runs = True
        self.numbered: set[str] = set()

    @property
    def name(self) -> str:
        return self.page.path if self.page else f"a docstring on {_State.around}"

    def error(self, problem: str, text: str = "") -> SiteError:
        """An error in this page; `text` is looked up to tell the line."""
        line = self.page.line_of(text) if self.page and text else None
        return SiteError(f"{self.name}{f':{line}' if line else ''}: {problem}")


class _Snippets(Preprocessor):
    """Finds out which page this is, and puts the outputs of its blocks beneath them."""

    def __init__(self, md: markdown.Markdown, state: _State) -> None:
        super().__init__(md)
        self.state = state

    def run(self, lines: list[str]) -> list[str]:
        state = self.state
        state.numbered = set()
        if "mkdocstrings_headings" in self.md.treeprocessors:
            state.page = None  # a docstring: only mkdocstrings' inner Markdown has this
            return lines
        state.page = state.pages.refresh().find("\n".join(lines))
        blocks = [fence for fence in fences(lines) if fence.language == "python"]
        if state.page is None:
            if blocks or any("\\label{" in line for line in lines):
                raise SiteError(
                    "this text has snippets or labels, but is not the text of any page under "
                    f"{state.pages.folder}:\n" + "\n".join(lines[:5])
                )
            return lines
        _State.around = state.page.path
        if not (blocks and state.runs):
            return lines
        outputs = _runner.outputs(state.page)
        for block, output in reversed(list(zip(blocks, outputs, strict=True))):
            shown = [block.indent + self.md.htmlStash.store(part) for part in _parts(output)]
            lines[block.end + 1 : block.end + 1] = ["", *(x for part in shown for x in (part, ""))]
        return lines


def _parts(output: Output) -> list[str]:
    parts = []
    if output.stdout.strip():
        text = html.escape(output.stdout.rstrip())
        parts.append(
            '<div class="snippet-output no-copy" data-search-exclude>'
            f'<pre tabindex="0"><code>{text}\n</code></pre></div>'
        )
    for figure in output.figures:
        # The style sheet shrinks a figure to a phone, but not so far that it cannot be read.
        width = re.search(r'<svg [^>]*?\bwidth="([\d.]+)pt"', figure)
        natural = f' style="--natural-width: {width[1]}pt"' if width else ""
        parts.append(
            f'<figure class="snippet-figure" tabindex="0" data-search-exclude{natural}>'
            f"{figure}</figure>"
        )
    return parts


def _formulas(root: ElementTree.Element) -> list[tuple[ElementTree.Element, int]]:
    """Parents and child indices of the elements that arithmatex made."""
    return [
        (parent, index)
        for parent in root.iter()
        for index, child in enumerate(parent)
        if "arithmatex" in (child.get("class") or "").split()
    ]


def _tex(element: ElementTree.Element) -> tuple[str, bool]:
    """The formula of an arithmatex element, and whether it is displayed."""
    text = html.unescape(str(element.text)).strip()
    return text[2:-2].strip(), text.startswith("\\[")


class _Equations(Treeprocessor):
    """Numbers, anchors and references; plain text for formulas in headings.

    Runs before headings get their ids and builders collect anchors and titles.
    """

    def __init__(self, md: markdown.Markdown, state: _State) -> None:
        super().__init__(md)
        self.state = state

    def run(self, root: ElementTree.Element) -> None:
        page = self.state.page
        for parent, index in _formulas(root):
            element = parent[index]
            tex, display = _tex(element)
            if reference := _REFERENCE.fullmatch(tex):
                self._refer(element, reference[2], parenthesised=bool(reference[1]))
            elif "\\eqref" in tex or "\\ref{" in tex:
                raise self._error("a reference must be a formula of its own", tex)
            elif labels := _LABEL.findall(tex):
                if page is None:
                    raise self._error("an equation in a docstring has no number", tex)
                if not display or len(labels) > 1:
                    raise self._error("one label, in a formula between $$", tex)
                if labels[0] not in page.labels:
                    raise self._error(f"the label {labels[0]!r} is not where it is looked for", tex)
                self.state.numbered.add(labels[0])
                element.set("id", labels[0])
            elif parent.tag == "p" and display:
                raise self._error("put blank lines around a displayed formula", tex)
        if page is not None:
            if lost := set(page.labels) - self.state.numbered:
                raise self._error(f"{min(lost)!r} is not in a formula between $$", min(lost))
            self._plain_headings(root)
            self._link_notebook(root, page)
        else:
            self._plain_headings(root)

    def _refer(self, element: ElementTree.Element, label: str, *, parenthesised: bool) -> None:
        page = self.state.page
        if page is None:
            raise self._error(f"a docstring cannot refer to {label!r}")
        try:
            owner, number = self.state.pages.equation(label)
        except KeyError as error:
            raise self._error(str(error.args[0]), label) from None
        text = f"({number})" if parenthesised else str(number)
        if owner is not page:
            text = f"{_plain_markdown(owner.title)} {text}"
        element.tag = "a"
        element.attrib.clear()
        element.set("class", "equation-reference")
        element.set("href", page.link_to(owner.path, label))
        element.text = AtomicString(text)

    def _plain_headings(self, root: ElementTree.Element) -> None:
        for heading in root.iter():
            if not _HEADING.fullmatch(heading.tag):
                continue
            for parent, index in _formulas(heading):
                tex, _ = _tex(parent[index])
                parent[index].set("data-tex", tex)
                parent[index].text = AtomicString(self._render(katex.plain, tex))

    def _link_notebook(self, root: ElementTree.Element, page: Page) -> None:
        title = next((i for i, element in enumerate(root) if element.tag == "h1"), None)
        if title is None or not notebooks.wanted(page):
            return
        line = ElementTree.Element("p", {"class": "page-actions", "data-search-exclude": ""})
        href = page.link_to(notebooks.path(page))
        link = ElementTree.SubElement(line, "a", {"href": href, "download": ""})
        link.text = "Download this page as a notebook"
        root.insert(title + 1, line)

    def _error(self, problem: str, text: str = "") -> SiteError:
        return self.state.error(problem + (f"\n  in: {text}" if text else ""), _needle(text))

    def _render(self, renderer: Any, tex: str, **options: Any) -> str:
        try:
            return renderer(tex, **options)
        except katex.TexError as error:
            raise self.state.error(str(error), _needle(tex)) from None


class _Render(_Equations):
    """Formulas to HTML, after headings and titles have been read."""

    def run(self, root: ElementTree.Element) -> None:
        for parent, index in _formulas(root):
            old = parent[index]
            # mkdocstrings keeps copies of headings that share their children: change none.
            new = ElementTree.Element(old.tag, dict(old.attrib))
            new.tail = old.tail
            parent[index] = new
            if "data-tex" in new.attrib:
                tex, display, words = new.attrib.pop("data-tex"), False, str(old.text)
            else:
                (tex, display), words = _tex(old), ""
            page = self.state.page
            tag = _LABEL.search(tex)
            if tag and page is not None:
                tex = _LABEL.sub("", tex) + rf"\tag{{{page.labels[tag[1]]}}}"
            markup = self._render(katex.render, tex, display=display)
            if display:
                new.set("data-search-exclude", "")
                new.set("tabindex", "0")  # a formula wider than the screen scrolls
            else:
                words = words or self._render(katex.plain, tex)
                # Search reads the words. The excluded element must not contain its own kind: the
                # theme's parser would end at the first closing tag.
                markup = (
                    f"<bdi data-search-exclude>{markup}</bdi>"
                    f"<span hidden>{html.escape(words)}</span>"
                )
            new.text = AtomicString(self.md.htmlStash.store(markup))


def _needle(tex: str) -> str:
    """The first line of a formula, to look its place up."""
    return tex.strip().split("\n")[0].strip()


def _plain_markdown(text: str) -> str:
    """A title without code marks, and with its formulas as text."""
    text = re.sub(r"\$([^$]+)\$", lambda match: katex.plain(match[1]), text)
    return text.replace("`", "")


class SiteExtension(Extension):
    """Registers the parts; see the module.

    Options:
        docs: The folder of pages, relative to the repository.
        run: Whether snippets are run; without it, pages show code only.
    """

    def __init__(self, **options: Any) -> None:
        self.config = {
            "docs": ["docs", "The folder of pages, relative to the repository"],
            "run": [True, "Run the Python blocks"],
        }
        super().__init__(**options)

    def extendMarkdown(self, md: markdown.Markdown) -> None:
        """Add the processors; the comments name the neighbours that fix each priority."""
        md.registerExtension(self)
        state = _State((ROOT / self.getConfig("docs")).resolve())
        state.runs = self.getConfig("run")
        # Before superfences (25), which takes code blocks out of the text.
        md.preprocessors.register(_Snippets(md, state), "mlnotes_snippets", 28)
        # After inline patterns (20), before toc and MkDocs' search for anchors (5).
        md.treeprocessors.register(_Equations(md, state), "mlnotes_equations", 6)
        # After titles are read (1), before links are made relative (0).
        md.treeprocessors.register(_Render(md, state), "mlnotes_render", 0.5)


def makeExtension(**options: Any) -> SiteExtension:
    """Python-Markdown's way to load an extension by the name of its module."""
    return SiteExtension(**options)
