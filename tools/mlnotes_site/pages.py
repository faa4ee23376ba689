"""The pages of the site: front matter, code fences, equation labels.

A page is found by its text, not by asking the site builder which page it is rendering: that works
in every builder, and while the builder renders the docstrings inside a page.
"""

import dataclasses
import difflib
import functools
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from mlnotes_site.project import DOCS, SiteError

__all__ = ["Fence", "Page", "Pages", "fences"]

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*\n", re.S | re.M)
_OPENING = re.compile(r"(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<info>[^`]*)")
_LANGUAGE = re.compile(r"\{?\s*\.?([\w+#-]+)")
_QUOTED_FENCE = re.compile(r"\s*>[\s>]*(```|~~~)\s*\{?\.?python\b")
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
_LABEL = re.compile(r"\\label\{([^}]*)\}")
_LABEL_NAME = re.compile(r"eq:[a-z0-9]+([-_][a-z0-9]+)*")
_REFERENCE = re.compile(r"\\(?:eq)?ref\{([^}]*)\}")
_TITLE = re.compile(r"^# +(.+?)(?: *\{[^}]*\})? *$", re.M)


@dataclasses.dataclass(frozen=True)
class Fence:
    """A fenced block of code.

    Attributes:
        start: Index of the line that opens it.
        end: Index of the line that closes it.
        indent: The spaces in front of it, inside an admonition, a tab or a list.
        language: The word after the fence, or `""`.
        code: The lines between, without the indent, each ended by a newline.
    """

    start: int
    end: int
    indent: str
    language: str
    code: str


def fences(lines: Sequence[str]) -> list[Fence]:
    """Find the fenced blocks of a text, at any indent.

    Args:
        lines: The lines, without their line ends.

    Returns:
        The blocks in order. A fence inside a fence is part of the outer one's code.

    Raises:
        ValueError: A fence is not closed, or a Python block is inside a quotation, where it
            would be shown but not run; the message begins with the line's number, from 1.
    """
    found = []
    start = 0
    while start < len(lines):
        match = _OPENING.fullmatch(lines[start])
        if match is None:
            if _QUOTED_FENCE.match(lines[start]):
                raise ValueError(f"{start + 1}: a Python block inside a quotation is not run")
            start += 1
            continue
        closing = re.compile(rf" *{re.escape(match['fence'][0])}{{{len(match['fence'])},}} *")
        end = start + 1
        while end < len(lines) and not closing.fullmatch(lines[end]):
            end += 1
        if end == len(lines):
            raise ValueError(f"{start + 1}: this code fence is never closed")
        indent = match["indent"]
        code = "".join(line.removeprefix(indent) + "\n" for line in lines[start + 1 : end])
        language = _LANGUAGE.match(match["info"])
        found.append(Fence(start, end, indent, language[1] if language else "", code))
        start = end + 1
    return found


def fingerprint(text: str) -> str:
    """The text without differences of white space, which Markdown preprocessors change."""
    return " ".join(text.split())


@dataclasses.dataclass(frozen=True)
class Page:
    """One Markdown file.

    Attributes:
        path: Relative to the folder of pages, with `/`: `foundations/losses.md`.
        body: The text after the front matter.
        meta: The front matter.
        offset: How many lines of the file come before `body`.
    """

    path: str
    body: str
    meta: dict[str, Any]
    offset: int

    @classmethod
    def parse(cls, path: str, text: str) -> "Page":
        """Take a page apart into front matter and body."""
        match = _FRONT_MATTER.match(text)
        if match is None:
            return cls(path, text, {}, 0)
        try:
            meta = yaml.safe_load(match[1]) or {}
        except yaml.YAMLError as error:
            raise SiteError(f"{path}: front matter: {error}") from error
        if not isinstance(meta, dict):
            raise SiteError(f"{path}: front matter must be a mapping")
        return cls(path, text[match.end() :], meta, text[: match.end()].count("\n"))

    @functools.cached_property
    def lines(self) -> list[str]:
        """The lines of `body`."""
        return self.body.split("\n")

    @functools.cached_property
    def fences(self) -> list[Fence]:
        """The fenced blocks of `body`."""
        try:
            return fences(self.lines)
        except ValueError as error:
            line, _, problem = str(error).partition(": ")
            raise self.error(int(line) - 1, problem) from None

    @property
    def snippets(self) -> list[Fence]:
        """The blocks that are run: those whose language is `python`."""
        return [fence for fence in self.fences if fence.language == "python"]

    @functools.cached_property
    def prose(self) -> str:
        """`body` with fenced blocks and code spans blanked; lines keep their numbers."""
        lines = list(self.lines)
        for fence in self.fences:
            lines[fence.start : fence.end + 1] = [""] * (fence.end + 1 - fence.start)
        return "\n".join(_CODE_SPAN.sub("", line) for line in lines)

    @functools.cached_property
    def title(self) -> str:
        """The first-level heading, as written, or the front matter's `title`."""
        match = _TITLE.search(self.prose)
        return str(self.meta.get("title") or (match[1] if match else Path(self.path).stem))

    @functools.cached_property
    def labels(self) -> dict[str, int]:
        """Equation labels and the numbers they stand for: 1, 2, ... in order.

        Raises:
            SiteError: A label is malformed, or defined twice.
        """
        numbers: dict[str, int] = {}
        for index, line in enumerate(self.prose.split("\n")):
            for label in _LABEL.findall(line):
                if not _LABEL_NAME.fullmatch(label):
                    raise self.error(
                        index,
                        f"the label {label!r} must look like 'eq:concept-name' (lower case, "
                        "digits, - and _)",
                    )
                if label in numbers:
                    raise self.error(index, f"the label {label!r} is defined twice")
                numbers[label] = len(numbers) + 1
        return numbers

    def line_of(self, text: str) -> int | None:
        """The line of the file, from 1, where `text` is first found in the body."""
        index = next((i for i, line in enumerate(self.lines) if text in line), None)
        return None if index is None else index + self.offset + 1

    def error(self, index: int, problem: str) -> SiteError:
        """An error at a line of `body`, counted from 0."""
        return SiteError(f"{self.path}:{index + self.offset + 1}: {problem}")

    def link_to(self, path: str, anchor: str = "") -> str:
        """The relative link from this page's source to another file's, as an author writes it."""
        target = posixpath.relpath(path, posixpath.dirname(self.path) or ".")
        return (target if path != self.path else "") + (f"#{anchor}" if anchor else "")


class Pages:
    """All pages under a folder; `refresh` reads what has changed."""

    def __init__(self, folder: Path = DOCS) -> None:
        """Nothing is read before the first `refresh`.

        Args:
            folder: Where the Markdown files are.
        """
        self.folder = folder
        self._stamps: dict[str, tuple[int, int]] = {}
        self._pages: dict[str, Page] = {}
        self._by_text: dict[str, Page] = {}
        self._owners: dict[str, Page] = {}

    def __iter__(self) -> Iterator[Page]:
        """The pages, by path."""
        return iter(self._pages.values())

    def refresh(self) -> "Pages":
        """Read the files that are new or have changed, and check labels across pages.

        Returns:
            This object.

        Raises:
            SiteError: Two pages define the same label, or have the same text.
        """
        stamps = {}
        for file in sorted(self.folder.rglob("*.md")):
            status = file.stat()
            path = file.relative_to(self.folder).as_posix()
            stamps[path] = (status.st_mtime_ns, status.st_size)
        if stamps == self._stamps:
            return self
        self._pages = {
            path: self._pages[path]
            if self._stamps.get(path) == stamp
            else Page.parse(path, (self.folder / path).read_text(encoding="utf-8"))
            for path, stamp in stamps.items()
        }
        self._by_text, self._owners = {}, {}
        for page in self:
            same = self._by_text.setdefault(fingerprint(page.body), page)
            if same is not page and page.body.strip():
                raise SiteError(f"{page.path} and {same.path} have the same text")
            for label in page.labels:
                owner = self._owners.setdefault(label, page)
                if owner is not page:
                    where = f"{owner.path}:{owner.line_of(label)}"
                    raise SiteError(
                        f"{page.path}:{page.line_of(label)}: the label {label!r} is already "
                        f"defined at {where}"
                    )
        self._stamps = stamps
        return self

    def check(self) -> "Pages":
        """Look up every reference to an equation.

        Returns:
            This object.

        Raises:
            SiteError: Some lead nowhere; the message has all of them.
        """
        problems = []
        for page in self:
            for index, line in enumerate(page.prose.split("\n")):
                for label in _REFERENCE.findall(line):
                    try:
                        self.equation(label)
                    except KeyError as error:
                        problems.append(page.error(index, str(error.args[0])).message)
        if problems:
            raise SiteError("\n".join(problems))
        return self

    def find(self, text: str) -> Page | None:
        """The page with this text, whatever its white space; None if there is none."""
        return self._by_text.get(fingerprint(text))

    def equation(self, label: str) -> tuple[Page, int]:
        """The page that defines an equation, and the equation's number there.

        Raises:
            KeyError: No page defines it; the message suggests the nearest label.
        """
        if label in self._owners:
            return self._owners[label], self._owners[label].labels[label]
        near = difflib.get_close_matches(label, self._owners, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise KeyError(f"no page defines the equation {label!r}{hint}")
