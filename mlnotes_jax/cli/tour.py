"""`mlnotes tour`: every demo, and one page of the results."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from mlnotes_jax import demos
from mlnotes_jax.cli import cache, demo, report, run


@dataclasses.dataclass
class Options:
    """Run every demo, and write one self-contained page with their tables and figures."""

    out: Annotated[Path, tyro.conf.arg(help="Folder for the page and the figures.")] = (
        demo.DEFAULT_OUT
    )
    quick: Annotated[bool, tyro.conf.arg(help="Smaller problems.")] = False
    seed: Annotated[int, tyro.conf.arg(help="Seed of every demo's random key.")] = 0


def main(args: list[str]) -> int:
    """Run the tour.

    Args:
        args: The words after `mlnotes tour`.

    Returns:
        0, or 1 when a demo failed; the others still run.
    """
    options = tyro.cli(tyro.conf.FlagCreatePairsOff[Options], prog="mlnotes tour", args=args)
    cache.turn_on()
    console = Console()
    start = time.perf_counter()
    outcomes, failed = [], []
    for entry in demos.DEMOS:
        try:
            outcome = run.run_demo(
                entry,
                seed=options.seed,
                options={"quick": options.quick},
                out=options.out,
                console=console,
            )
        except ModuleNotFoundError:
            raise
        except Exception as error:
            failed.append(entry.name)
            print(f"mlnotes: {entry.name} failed: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        demo.show(outcome, console)
        console.print()
        outcomes.append(outcome)
    page = options.out / "index.html"
    options.out.mkdir(parents=True, exist_ok=True)
    page.write_text(report.page(outcomes), encoding="utf-8")
    seconds = time.perf_counter() - start
    console.print(
        f"{len(outcomes)} of {len(demos.DEMOS)} demos in {seconds:.0f} s. "
        f"Open {page} in a browser.",
        highlight=False,
        soft_wrap=True,
    )
    return 1 if failed else 0
