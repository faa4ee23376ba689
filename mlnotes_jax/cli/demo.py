"""`mlnotes demo`: list the demos, or run one."""

import dataclasses
import inspect
import itertools
import json
import sys
import typing
from pathlib import Path
from typing import Annotated, Any

import docstring_parser
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlnotes_jax import demos
from mlnotes_jax.cli import cache
from mlnotes_jax.demos import Demo, tables

DEFAULT_OUT = Path("mlnotes-out")


def main(args: list[str]) -> int:
    """List the demos when no name is given; otherwise run that demo.

    Args:
        args: The words after `mlnotes demo`.

    Returns:
        The exit status.
    """
    if not args:
        list_demos(Console())
        return 0
    if args[0] in ("-h", "--help"):
        print(
            "usage: mlnotes demo [NAME [OPTIONS]]\n\n`mlnotes demo NAME --help` shows a demo's "
            "options.\n"
        )
        list_demos(Console())
        return 0
    try:
        demo = demos.find(args[0])
    except demos.UnknownDemo as error:
        print(f"mlnotes: {error}", file=sys.stderr)
        return 2
    chosen = parse(demo, args[1:])
    options = {name: value for name, value in vars(chosen).items() if name not in _COMMON_NAMES}

    from mlnotes_jax.cli import run

    cache.turn_on()
    console = Console(stderr=True) if chosen.json else Console()
    try:
        outcome = run.run_demo(
            demo, seed=chosen.seed, options=options, out=chosen.out, console=console
        )
    except (ValueError, OSError) as error:  # an option or a file that the demo refused
        print(f"mlnotes: {error}", file=sys.stderr)
        return 2
    if chosen.json:
        print(json.dumps(as_json(outcome), indent=2, default=_plain))
    else:
        show(outcome, console)
    return 0


# --- options: those of every demo, and those that its `run` has


def _common() -> list[tuple[str, Any, Any]]:
    return [
        ("out", Annotated[Path, tyro.conf.arg(help="Folder for the figure.")], DEFAULT_OUT),
        ("json", Annotated[bool, tyro.conf.arg(help="Print JSON instead of tables.")], False),
        ("seed", Annotated[int, tyro.conf.arg(help="Seed of the random key.")], 0),
    ]


_COMMON_NAMES = {name for name, _, _ in _common()}


def parse(demo: Demo, args: list[str]) -> Any:
    """Read a demo's options from the words after its name, by the signature of its `run`.

    Args:
        demo: Which one.
        args: The words.

    Returns:
        An object with `out`, `json`, `seed` and one field for each keyword argument of `run`.
    """
    run = demos.load(demo).run
    hints = typing.get_type_hints(run)
    docs = {
        p.arg_name: p.description for p in docstring_parser.parse(inspect.getdoc(run) or "").params
    }
    fields = _common()
    for name, parameter in itertools.islice(inspect.signature(run).parameters.items(), 1, None):
        annotation = Annotated[hints[name], tyro.conf.arg(help=docs.get(name, ""))]
        fields.append((name, annotation, parameter.default))
    options = dataclasses.make_dataclass("Options", fields, kw_only=True)
    return tyro.cli(
        tyro.conf.FlagCreatePairsOff[options],
        prog=f"mlnotes demo {demo.name}",
        description=f"{demo.summary}.",
        args=args,
    )


# --- what is printed


def list_demos(console: Console) -> None:
    """Print the registry, by chapter."""
    for chapter, entries in itertools.groupby(demos.DEMOS, lambda demo: demo.name.split("/")[0]):
        console.print(f"[bold]{chapter}[/bold]")
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        for demo in entries:
            table.add_row(f"  {demo.name.split('/')[1]}", demo.summary)
        console.print(table)


def show(outcome: Any, console: Console) -> None:
    """Print an outcome: device, data, tables, times, files."""
    console.print(f"[bold]{outcome.demo.name}[/bold]  {outcome.demo.summary}", highlight=False)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    source = outcome.source
    facts.add_row("device", outcome.device)
    facts.add_row("data", f"{source.name} ({source.origin}), {source.size}")
    facts.add_row("licence", source.licence)
    console.print(facts, highlight=False)
    for title, rows in outcome.tables.items():
        console.print(f"\n[italic]{escape(title)}[/italic]", highlight=False)
        console.print(tables.layout(rows), highlight=False)
    console.print(f"compile {outcome.compile_s:.2f} s   run {outcome.run_s:.2f} s", highlight=False)
    for file in outcome.files:
        console.print(f"figure  {file}", highlight=False, soft_wrap=True)


def as_json(outcome: Any) -> dict[str, Any]:
    """Turn an outcome into plain values for `json.dumps`."""
    import jax

    return {
        "demo": outcome.demo.name,
        "seed": outcome.seed,
        "options": outcome.options,
        "jax": jax.__version__,
        "device": outcome.device,
        "source": outcome.source._asdict(),
        "tables": outcome.tables,
        "compile_s": outcome.compile_s,
        "run_s": outcome.run_s,
        "files": [str(file) for file in outcome.files],
    }


def _plain(value: Any) -> Any:
    """Turn what `json` does not know into what it does: scalars of NumPy and JAX, paths."""
    if hasattr(value, "item"):
        return value.item()
    return str(value)
