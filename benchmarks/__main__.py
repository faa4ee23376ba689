"""Command line: `python -m benchmarks <chapter>/<concept> [options]`; alone, it lists them."""

import dataclasses
import pathlib
import sys
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import harness


@dataclasses.dataclass(frozen=True)
class Options:
    """Time a concept against its peers; without a name, list the benchmarks."""

    name: tyro.conf.Positional[str | None] = None
    """`chapter/concept`, or `concept` alone where that is unique."""
    size: Literal["small", "full"] = "full"
    """`small` takes seconds and shows that it runs; `full` is what claims are made from."""
    case: str | None = None
    """Only the cases whose name holds this."""
    threads: int | None = None
    """Cores to use; all that the process may use, where none is given."""
    repeats: int = 5
    """How often each is timed."""
    json: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to write the rows."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = tyro.cli(Options, prog="python -m benchmarks", args=arguments)
    console = Console()
    if options.name is None:
        table = Table("benchmark", "what is compared", title="Benchmarks")
        for entry in harness.listing():
            table.add_row(*entry)
        console.print(table)
        return 0
    if options.repeats < 1 or (options.threads is not None and options.threads < 1):
        console.print("--repeats and --threads must be at least 1", style="red")
        return 2
    try:
        name = harness.find(options.name)
    except LookupError as error:
        console.print(str(error), style="red", markup=False)
        return 2
    if options.threads is not None:
        harness.limit_threads(options.threads)
    module = harness.load(name)  # only now: this imports JAX
    head = harness.header(name, size=options.size, threads=options.threads, quality=module.QUALITY)
    head["case"] = options.case
    cases = (c for c in module.cases(options.size) if (options.case or "") in c.name)
    rows = list(harness.measure(cases, repeats=options.repeats))
    if not rows:
        names = ", ".join(repr(case.name) for case in module.cases(options.size))
        text = f"--case must be part of one of {names}, got {options.case!r}"
        console.print(text, style="red", markup=False)
        return 2
    summary = module.summary(rows) if hasattr(module, "summary") else []
    _show(console, head, rows, summary)
    if options.json is not None:
        harness.write(options.json, head, rows)
        console.print(f"wrote {options.json}")
    return 0


def _show(console: Console, head: dict, rows: list[harness.Row], summary: list[str]) -> None:
    for case in dict.fromkeys(row.case for row in rows):
        table = Table(title=f"{head['benchmark']}: {case}")
        table.add_column("peer")
        for column in ("ours, s", "peer, s", "peer / ours", "our quality", "peer quality"):
            table.add_column(column, justify="right")
        of_case = [row for row in rows if row.case == case]
        for row in of_case:
            table.add_row(
                row.peer,
                f"{row.ours_s:.3g} +- {row.ours_spread_s / 2:.1g}",
                f"{row.peer_s:.3g} +- {row.peer_spread_s / 2:.1g}",
                f"{row.ratio:.2f}",
                f"{row.ours_quality:.4g}",
                f"{row.peer_quality:.4g}",
            )
        console.print(table)
        console.print(
            f"median of {of_case[0].repeats} +- half the range; "
            f"ours took {of_case[0].compile_s:.2f} s to compile"
        )
        if (moved := of_case[0].gigabytes) is not None:
            rates = ", ".join(f"{row.peer} {moved / row.peer_s:.3g}" for row in of_case)
            console.print(
                f"{moved:.3g} GB to be moved; GB/s: ours {moved / of_case[0].ours_s:.3g}, {rates}"
            )
    for line in summary:
        console.print(line)
    threads = "all allowed" if head["threads"] is None else head["threads"]
    console.print(f"quality: {head['quality']}")
    console.print(f"{head['machine']}; {head['device']}; threads: {threads}; {head['date']}")
    console.print(", ".join(f"{k} {v}" for k, v in head["versions"].items()), style="dim")


if __name__ == "__main__":
    sys.exit(main())
