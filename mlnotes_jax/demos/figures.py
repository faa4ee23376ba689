"""One look for every picture, readable on a light and on a dark page, in colour and without.

Colours come from Okabe and Ito's colour-blind-safe set, kept to those with a contrast of at least
3 : 1 on white and on a dark page; lines also differ in dash pattern. Text and axes are drawn in a
marker colour that `svg` replaces by `currentColor`, so they follow the page's own text.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "COLORS",
    "GREEN",
    "GREY",
    "OCHRE",
    "PURPLE",
    "VERMILLION",
    "save",
    "style",
    "svg",
]

BLUE = "#0072B2"
VERMILLION = "#D55E00"
GREEN = "#009E73"
PURPLE = "#C05A93"
OCHRE = "#A87900"
GREY = "#808080"
COLORS = (BLUE, VERMILLION, GREEN, PURPLE, OCHRE, GREY)

_INK = "#010203"  # stands for "the colour of the text around the picture"


def _settings() -> Any:
    from cycler import cycler

    dashes = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 3))]
    return {
        "axes.edgecolor": _INK,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": _INK,
        "axes.prop_cycle": cycler(color=list(COLORS)) + cycler(linestyle=dashes),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": _INK,
        "axes.titlesize": "medium",
        "figure.constrained_layout.use": True,
        "figure.facecolor": "none",
        "font.family": "sans-serif",
        "grid.alpha": 0.25,
        "grid.color": GREY,
        "image.cmap": "cividis",
        "legend.edgecolor": "none",
        "legend.framealpha": 0.0,
        "lines.linewidth": 1.8,
        "patch.edgecolor": _INK,
        "savefig.facecolor": "none",
        "svg.fonttype": "path",
        "svg.hashsalt": "mlnotes",
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw everything inside this block in the project's style."""
    import matplotlib as mpl

    with mpl.rc_context(_settings()):
        yield


def svg(figure: "Figure", *, title: str = "") -> str:
    """Write a figure as an `<svg>` element to be put into an HTML page.

    Args:
        figure: Drawn inside `style`.
        title: What the picture shows, for a reader who cannot see it; by default, the figure's
            own title, or those of its axes, or what its axes say.

    Returns:
        The element; its ink is `currentColor`, its ids are unique to its content, and it is the
        same for the same figure.

    Raises:
        ValueError: Nothing says what the picture shows.
    """
    import hashlib
    import html

    title = (
        title
        or figure.get_suptitle()
        or "; ".join(axes.get_title() for axes in figure.axes if axes.get_title())
        or "; ".join(
            f"{axes.get_ylabel()} against {axes.get_xlabel()}"
            for axes in figure.axes
            if axes.get_xlabel() and axes.get_ylabel()
        )
    )
    if not title:
        raise ValueError("the figure needs a title, or labels on its axes, to be described by")
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S).replace(_INK, "currentColor")
    # matplotlib styles every element (`*`): inside a page that would be the page's elements too.
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.S)
    text = text.replace("<svg ", '<svg style="stroke-linejoin:round;stroke-linecap:butt" ', 1)
    # Two pictures on one page must not share ids.
    prefix = "f" + hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def save(figure: "Figure", path: str, *, dpi: int = 150) -> None:
    """Write a figure to a file of its own, dark ink on white.

    Args:
        figure: Drawn inside `style`.
        path: Where to; the ending (`.png`, `.svg`) chooses the format.
        dpi: Dots per inch of a PNG.
    """
    with style():
        figure.savefig(
            path,
            dpi=dpi,
            facecolor="white",
            metadata={"Date": None} if path.endswith(".svg") else None,
        )
