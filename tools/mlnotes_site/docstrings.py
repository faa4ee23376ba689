"""How mkdocstrings reads the sources: an extension of Griffe, its parser.

- Shapes stay as they are written, `Float[Array, "n d"]`: Griffe takes a string in an annotation
  for a type that is not defined yet, and `"..."` or `"n"` would lose its quotes.
- A constant is described by the `#:` comment above it.
- `Example:` is Google's name of a section; Griffe knows it as `Examples:`, and would show its
  doctest as quotations.
"""

import ast
import copy
import itertools
import re
from pathlib import Path
from typing import Any

import griffe
import jaxtyping

__all__ = ["SourceReader"]

_EXAMPLE = re.compile(r"^( *)Example:[ ]*$", re.M)


class _Text(str):
    """A string that is shown between double quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return '"' + str(self) + '"'


class _Quoted(ast.NodeTransformer):
    """Marks the shape strings of an annotation."""

    found = False

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        name = ast.unparse(node.value).rpartition(".")[2]
        if hasattr(jaxtyping, name) and isinstance(node.slice, ast.Tuple):
            for part in node.slice.elts[1:]:
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    part.value = _Text(part.value)
                    self.found = True
        return self.generic_visit(node)


def _annotation(node: ast.AST | None, parent: Any) -> Any:
    """The annotation with its shapes, or None if it has none."""
    if node is None:
        return None
    quoted = _Quoted()
    marked = quoted.visit(copy.deepcopy(node))
    return griffe.get_expression(marked, parent, parse_strings=False) if quoted.found else None


def _comment(attr: griffe.Attribute) -> str:
    """The lines above an attribute that begin with `#:`."""
    lines = attr.lines_collection[attr.filepath] if isinstance(attr.filepath, Path) else []
    above = list(
        itertools.takewhile(
            lambda line: line.startswith("#:"), reversed(lines[: (attr.lineno or 1) - 1])
        )
    )
    return "\n".join(line.removeprefix("#:").strip() for line in reversed(above))


class SourceReader(griffe.Extension):
    """Puts back what Griffe leaves out; see the module."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called when anything has been read."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)

    def on_function_instance(self, *, node: Any, func: griffe.Function, **_: Any) -> None:
        """Called when a function has been read."""
        arguments = node.args
        everything = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        for argument in (*everything, arguments.vararg, arguments.kwarg):
            if argument is None:
                continue
            annotation = _annotation(argument.annotation, func.parent)
            if annotation is not None:
                func.parameters[argument.arg].annotation = annotation
        returns = _annotation(node.returns, func.parent)
        if returns is not None:
            func.returns = returns

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        """Called when an attribute of a module or class has been read."""
        source = getattr(node, "annotation", None) or getattr(node, "returns", None)
        annotation = _annotation(source, attr.parent)
        if annotation is not None:
            attr.annotation = annotation
        if attr.docstring is None and (text := _comment(attr)):
            attr.docstring = griffe.Docstring(text, parent=attr)
