"""Mathematics to HTML: KaTeX in one Node process that lives as long as the build."""

import atexit
import functools
import json
import re
import subprocess
import threading
import unicodedata
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from mlnotes_site import assets

__all__ = ["TexError", "plain", "render"]

_SERVER = Path(__file__).with_name("katex_server.cjs")
_MATHML = re.compile(r"<math.*?</math>", re.S)
_SUPERSCRIPT = str.maketrans("0123456789+-−=()niTx⊤′*∗", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿⁱᵀˣᵀ′**")
_SUBSCRIPT = str.maketrans("0123456789+-−=()aeijkmnpx", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎ₐₑᵢⱼₖₘₙₚₓ")


class TexError(ValueError):
    """KaTeX does not accept a formula."""


class _Node:
    """The process, started on first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, object]) -> dict[str, str]:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [assets.node(), str(_SERVER), str(assets.katex_script())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    encoding="utf-8",
                )
                atexit.register(self.close)
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the Node process that renders formulas ended without an answer")
        return json.loads(answer)

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()  # the end of its input ends it
            self._process = None


_node = _Node()


@functools.cache
def render(tex: str, *, display: bool) -> str:
    r"""Render one formula.

    Args:
        tex: Without delimiters.
        display: A formula on lines of its own.

    Returns:
        HTML for the eye and MathML for screen readers.

    Raises:
        TexError: The formula has an error, or is accepted by KaTeX only with a warning.
    """
    answer = _node.ask({"tex": tex, "display": display})
    if "error" in answer:
        # "KaTeX parse error: ... at position 7: \frac{1̲": the underlined letters come from KaTeX.
        raise TexError(f"{answer['error']}\n  in the formula: {tex}")
    return answer["html"]


@functools.cache
def plain(tex: str) -> str:
    r"""A formula as plain text, for tables of contents, titles and search.

    `\ell_2` becomes `ℓ₂`; what has no Unicode form keeps `^` and `_`.

    Args:
        tex: Without delimiters.

    Returns:
        One line of text.
    """
    match = _MATHML.search(render(tex, display=False))
    assert match is not None
    text = _text(ElementTree.fromstring(match[0])).strip()
    return unicodedata.normalize("NFC", text)  # a letter and its hat become one


def _text(node: ElementTree.Element) -> str:
    tag = node.tag.rpartition("}")[2]
    if tag == "annotation":
        return ""
    parts = [_text(child) for child in node]
    match tag, parts:
        case "msup", [base, exponent]:
            return base + _script(exponent, "^", _SUPERSCRIPT)
        case "msub", [base, index]:
            return base + _script(index, "_", _SUBSCRIPT)
        case "msubsup", [base, index, exponent]:
            return base + _script(index, "_", _SUBSCRIPT) + _script(exponent, "^", _SUPERSCRIPT)
        case "mfrac", [top, bottom]:
            return f"{_group(top)}/{_group(bottom)}"
        case "msqrt", _:
            return f"√{_group(''.join(parts))}"
        case "mover", [base, "^"]:
            return base + "\u0302"
        case "mover", [base, "ˉ" | "‾" | "¯"]:
            return base + "\u0304"
        case "mover", [base, "~"]:
            return base + "\u0303"
        case "mo", _:
            return _operator(node)
        case "mspace", _:
            return " "
        case "mtext" | "mi" | "mn", _:
            return (node.text or "").replace("\u00a0", " ").replace("\u2061", "")
    return "".join(parts)


def _operator(node: ElementTree.Element) -> str:
    text = (node.text or "").replace("\u2061", "").replace("\u200b", "")
    return f" {text} " if text in {"=", "<", ">", "≤", "≥", "≈", "→", "∈", "≠", "∼"} else text


def _script(text: str, mark: str, table: dict[int, int]) -> str:
    if text and all(ord(letter) in table for letter in text):
        return text.translate(table)
    return mark + _group(text)


def _group(text: str) -> str:
    return text if len(text) == 1 or text.isalnum() else f"({text})"
