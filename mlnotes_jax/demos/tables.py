"""Tables of a demo's numbers, for a terminal and for a page.

A demo gives `tables(result)`: title -> rows, all rows of a table with the same keys.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["cell", "is_words", "layout", "text"]


def cell(value: Any) -> str:
    """Write one cell: integers in full, other numbers with four significant digits."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def is_words(column: Iterable[Any]) -> bool:
    """Whether a column holds words; `12%` and an empty cell are no words."""
    return any(isinstance(value, str) and value[:1].isalpha() for value in column)


def layout(rows: Sequence[Mapping[str, Any]], **style: Any) -> "Table":
    """Lay rows out for rich: columns of words on the left, of numbers on the right.

    Args:
        rows: At least one, all with the same keys.
        style: Passed to `rich.table.Table`.

    Returns:
        The table.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(**style)
    for name in rows[0]:
        justify = "left" if is_words(row[name] for row in rows) else "right"
        # In a narrow terminal a long word goes on in the next line; nothing is cut off.
        table.add_column(escape(name), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell(value)) for value in row.values()))
    return table


def text(tables: Mapping[str, Sequence[Mapping[str, Any]]], *, width: int = 84) -> str:
    """Write tables as plain text.

    Args:
        tables: Title -> rows.
        width: Characters on a line; longer cells are wrapped.

    Returns:
        Each title, and its table beneath it.
    """
    from rich import box
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None)
    for title, rows in tables.items():
        console.print(title, style=None, markup=False, highlight=False)
        console.print(layout(rows, box=box.SIMPLE_HEAD, pad_edge=False))
    lines = console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    return "\n".join(line.rstrip() for line in lines).strip("\n")
