"""A fitted tree for people: as text, in the language of Graphviz, and as a picture."""

import html
import math
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Array

from mlnotes_jax.trees._tree import Tree

__all__ = ["Box", "Picture", "graphviz", "picture", "positions", "svg", "text"]

#: Tints of the classes: Okabe and Ito's colours that stand out from white and from black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#C05A93", "#A87900", "#808080")

_LINE, _GAP, _STEP, _PAD = 18, 16, 58, 8  # heights and distances in pixels


class Box(NamedTuple):
    """A node, or the answer of a category that has none.

    Attributes:
        label: Its question, or its answer.
        answer: The class it answers, -1 for a number.
        share: Of that class in the weight; 1 for a number.
        children: What the branches are called, and which boxes they lead to.
    """

    label: str
    answer: int
    share: float
    children: tuple[tuple[str, int], ...]


Picture = list[Box]  # the root first


def picture(
    tree: Tree,
    num_categories: Sequence[int],
    task: str,
    feature_names: Sequence[str] | None,
    class_names: Sequence[str] | None,
    category_names: Sequence[Sequence[str]] | None,
    max_depth: int | None,
) -> Picture:
    """Say everything in words; the boxes are in the order of the nodes."""
    tree = Tree(*(cast(Array, np.asarray(leaf)) for leaf in tree))
    features = _names("feature_names", feature_names, len(num_categories), "x[{}]")
    outputs = tree.value.shape[1]
    classes = _names("class_names", class_names, outputs, "{}")
    if category_names is not None and len(category_names) != len(num_categories):
        raise ValueError(
            f"category_names must have {len(num_categories)} entries, got {len(category_names)}"
        )
    boxes: Picture = []
    extra: Picture = []  # answers of categories without a branch
    deepest = tree.depth.max() if max_depth is None else max_depth
    shown = np.flatnonzero((tree.depth >= 0) & (tree.depth <= deepest))
    place = {int(node): i for i, node in enumerate(shown)}

    def answer(node: int, rows: bool = True) -> Box:
        value, weight = tree.value[node], float(tree.weight[node])
        if task == "regression":
            label = f"{value[0]:.4g}" + (f" ({weight:.4g})" if rows else " (no rows)")
            return Box(label, -1, 1.0, ())
        best = int(value.argmax())
        most = float(value[best])
        # Weights are sums: what agrees up to rounding is all of it.
        count = f"{weight:.4g}" if most > 0.999999 * weight else f"{most:.4g} of {weight:.4g}"
        return Box(
            f"{classes[best]} ({count})" if rows else f"{classes[best]} (no rows)",
            best,
            most / weight if weight > 0 else 0.0,
            (),
        )

    for node in map(int, shown):
        box, column = answer(node), int(tree.feature[node])
        if column < 0:
            boxes.append(box)
            continue
        if max_depth is not None and tree.depth[node] == max_depth:
            boxes.append(box._replace(label=f"... {box.label}"))
            continue
        children = [int(child) for child in tree.children[node]]
        threshold, lost = float(tree.threshold[node]), int(tree.missing[node])
        question, nowhere = features[column], []
        if not math.isnan(threshold):
            question += " is known" if math.isinf(threshold) else f" <= {threshold:.4g}"
            names = {0: ["yes"], 1: ["no"]}
        else:
            given = None if category_names is None else category_names[column]
            categories = _names(f"category_names[{column}]", given, num_categories[column], "{}")
            names = {branch: [] for branch, child in enumerate(children) if child >= 0}
            for name, branch in zip(categories, tree.branch[node].tolist(), strict=False):
                names[branch].append(name) if branch >= 0 else nowhere.append(name)
        if lost >= 0 and not math.isinf(threshold):
            names[lost].append("missing")
        links = [(" | ".join(names[branch]), place[children[branch]]) for branch in names]
        for name in nowhere:
            links.append((name, len(shown) + len(extra)))
            extra.append(answer(node, rows=False))
        boxes.append(box._replace(label=f"{question}?", children=tuple(links)))
    return boxes + extra


def text(boxes: Picture) -> str:
    """One line for each box, with the lines of a tree."""
    lines = [boxes[0].label]

    def below(box: Box, indent: str) -> None:
        for i, (name, child) in enumerate(box.children):
            last = i == len(box.children) - 1
            lines.append(f"{indent}{'└' if last else '├'}── {name}: {boxes[child].label}")
            below(boxes[child], indent + ("    " if last else "│   "))

    below(boxes[0], "")
    return "\n".join(lines)


def graphviz(boxes: Picture) -> str:
    """A directed graph; leaves are boxes in the colour of their class."""
    lines = [
        "digraph tree {",
        '  node [shape=box, style="rounded,filled", fillcolor=white, fontname="sans-serif"];',
        '  edge [fontname="sans-serif"];',
    ]
    for i, box in enumerate(boxes):
        tint = ""
        if not box.children and box.answer >= 0:
            tint = f', fillcolor="{COLORS[box.answer % len(COLORS)]}40"'
        lines.append(f"  {i} [label={_quoted(box.label)}{tint}];")
    for i, box in enumerate(boxes):
        lines += [f"  {i} -> {to} [label={_quoted(name)}];" for name, to in box.children]
    return "\n".join([*lines, "}"])


def positions(boxes: Picture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where to draw: leaves side by side, every other box above the middle of its children.

    Returns:
        Centre and width of each box in pixels, and its depth.
    """
    widths = np.array([_width(box.label) + 2 * _PAD for box in boxes], float)
    for box in boxes:  # the name of a branch stands above its box
        for name, child in box.children:
            widths[child] = max(widths[child], _width(name) + 4)
    offset, depth = np.zeros(len(boxes)), np.zeros(len(boxes), int)

    def outline(i: int) -> list[tuple[float, float]]:
        """Place what is below box i; gives left and right ends, level by level, from its centre."""
        merged: list[tuple[float, float]] = []
        for _, child in boxes[i].children:
            ends = outline(child)
            # As far to the left as no level touches what is there.
            both = zip(merged, ends, strict=False)
            offset[child] = max((there[1] - own[0] + _GAP for there, own in both), default=0.0)
            moved = [(left + offset[child], right + offset[child]) for left, right in ends]
            common = [(a[0], b[1]) for a, b in zip(merged, moved, strict=False)]
            merged = common + merged[len(common) :] + moved[len(common) :]
        below = [child for _, child in boxes[i].children]
        middle = (offset[below[0]] + offset[below[-1]]) / 2 if below else 0.0
        for child in below:
            offset[child] -= middle
        own = widths[i] / 2
        return [(-own, own), *((left - middle, right - middle) for left, right in merged)]

    offset[0] = -min(left for left, _ in outline(0))
    order = [0]
    for i in order:  # grows while it is read: parents come before their children
        for _, child in boxes[i].children:
            offset[child] += offset[i]
            depth[child] = depth[i] + 1
            order.append(child)
    return offset, widths, depth


def svg(boxes: Picture, title: str) -> str:
    """An `<svg>` element whose ink is the colour of the text around it."""
    centre, widths, depth = positions(boxes)
    width = float((centre + widths / 2).max())
    height = (int(depth.max()) + 1) * _STEP - _STEP + _LINE + 2 * _PAD
    tall = _LINE + _PAD
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{html.escape(title)}" '
        f'width="{width + 4:.0f}" height="{height:.0f}" '
        f'viewBox="-2 -2 {width + 4:.0f} {height:.0f}" '
        'font-family="sans-serif" font-size="12" fill="currentColor" text-anchor="middle">'
    ]
    for i, box in enumerate(boxes):
        for name, child in box.children:
            x, y = centre[child], depth[child] * _STEP
            way = f"M{centre[i]:.1f} {depth[i] * _STEP + tall}V{y - 24}H{x:.1f}V{y - 18}"
            lines.append(
                f'<path d="{way}M{x:.1f} {y - 4}V{y}" fill="none" stroke="currentColor" '
                'stroke-opacity="0.5"/>'
            )
            lines.append(
                f'<text x="{x:.1f}" y="{y - 7}" font-size="11" font-style="italic">'
                f"{html.escape(name)}</text>"
            )
    for i, box in enumerate(boxes):
        color = COLORS[box.answer % len(COLORS)] if box.answer >= 0 else "currentColor"
        strength = 0.35 if not box.children and box.answer >= 0 else 0.06
        wide = _width(box.label) + 2 * _PAD
        x, y = round(centre[i] - wide / 2, 1) + 0.0, depth[i] * _STEP  # never -0.0
        lines.append(
            f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{tall}" '
            f'rx="{4 if box.children else 11}" fill="{color}" fill-opacity="{strength}" '
            f'stroke="{color}"/>'
        )
        lines.append(f'<text x="{centre[i]:.1f}" y="{y + 17}">{html.escape(box.label)}</text>')
    return "\n".join([*lines, "</svg>"])


# --- Words ----------------------------------------------------------------------------------------


def _names(what: str, given: Sequence[str] | None, count: int, default: str) -> list[str]:
    if given is None:
        return [default.format(i) for i in range(count)]
    if len(given) != count:
        raise ValueError(f"{what} must have {count} names, got {len(given)}")
    return [str(name) for name in given]


def _quoted(label: str) -> str:
    escaped = label.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _width(label: str) -> float:
    """About how wide, in pixels, at 12 pixels."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in label)
    return (125 * wide + 68 * (len(label) - wide)) / 10
