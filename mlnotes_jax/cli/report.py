"""One self-contained HTML page of what the demos gave: no script, no request, light and dark."""

from collections.abc import Sequence
from html import escape
from typing import Any

import jax

import mlnotes_jax
from mlnotes_jax.cli.run import Outcome
from mlnotes_jax.demos import tables

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, "Noto Sans", "Noto Sans CJK SC", sans-serif; margin: 0 auto;
       max-width: 62rem; padding: 1rem; color: light-dark(#1b1b1b, #e6e6e6);
       background: light-dark(#ffffff, #1e2129); }
a { color: light-dark(#00588a, #7cc4f5); }
h1, h2, li { overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
h2 { border-top: 1px solid #8888; margin-top: 2.5rem; padding-top: 1rem; }
nav ul { columns: 18rem 2; padding-left: 1.2rem; }
.facts { color: light-dark(#555555, #b0b0b0); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: .9rem; }
caption { text-align: left; font-style: italic; white-space: nowrap; }
th, td { padding: .15rem .7rem; border-bottom: 1px solid #8884; text-align: right;
         font-variant-numeric: tabular-nums; }
th.word, td.word { text-align: left; }
svg { max-width: 100%; height: auto; }
"""


def page(outcomes: Sequence[Outcome]) -> str:
    """Write the page.

    Args:
        outcomes: In the order in which they should stand.

    Returns:
        A complete HTML document.
    """
    links = "\n".join(
        f'<li><a href="#{_anchor(o)}">{escape(o.demo.name)}</a>: {escape(o.demo.summary)}</li>'
        for o in outcomes
    )
    device = outcomes[0].device if outcomes else "no device"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>mlnotes tour</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>mlnotes tour</h1>
<p class="facts">mlnotes-jax {mlnotes_jax.__version__}, JAX {jax.__version__}, {escape(device)}.
Each part is one command: <code>mlnotes demo NAME</code>.</p>
<nav aria-label="Demos"><ul>
{links}
</ul></nav>
<main>
{"".join(_section(o) for o in outcomes)}
</main>
</body>
</html>
"""


def _section(outcome: Outcome) -> str:
    source = outcome.source
    numbers = "\n".join(_table(title, rows) for title, rows in outcome.tables.items())
    return f"""<section id="{_anchor(outcome)}">
<h2>{escape(outcome.demo.name)}</h2>
<p>{escape(outcome.demo.summary)}.</p>
<p class="facts">Data: {escape(source.name)} ({escape(source.origin)}), {escape(source.size)};
licence: {escape(source.licence)}. Compile {outcome.compile_s:.2f} s, run {outcome.run_s:.2f} s.</p>
{numbers}
<figure class="scroll">{outcome.svg}</figure>
</section>
"""


def _table(title: str, rows: list[dict[str, Any]]) -> str:
    kinds = [
        ' class="word"' if tables.is_words(row[name] for row in rows) else "" for name in rows[0]
    ]

    def cells(tag: str, values: Sequence[Any]) -> str:
        return "".join(
            f"<{tag}{kind}>{escape(tables.cell(value))}</{tag}>"
            for kind, value in zip(kinds, values, strict=True)
        )

    head = cells("th", list(rows[0]))
    body = "\n".join(f"<tr>{cells('td', list(row.values()))}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><caption>{escape(title)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _anchor(outcome: Outcome) -> str:
    return outcome.demo.name.replace("/", "-")
