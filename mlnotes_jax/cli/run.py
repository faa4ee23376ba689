"""Run one demo: its progress, its compile and run time, its figure."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich import progress as rich_progress
from rich.console import Console

from mlnotes_jax import demos
from mlnotes_jax.data.datasets import Source
from mlnotes_jax.demos import figures, progress

#: Title -> rows; every row of a table has the same keys.
Tables = dict[str, list[dict[str, Any]]]


class Outcome(NamedTuple):
    """What a demo gave.

    Attributes:
        demo: Which demo.
        seed: Of its key.
        options: Of its `run`.
        device: What it ran on, in words.
        source: The data and their licence.
        tables: The numbers.
        compile_s: Seconds spent tracing, lowering and compiling.
        run_s: The other seconds of `run`.
        svg: The figure, as an element for an HTML page.
        files: Where the figure was saved.
    """

    demo: demos.Demo
    seed: int
    options: dict[str, Any]
    device: str
    source: Source
    tables: Tables
    compile_s: float
    run_s: float
    svg: str
    files: list[Path]


def run_demo(
    demo: demos.Demo, *, seed: int, options: Mapping[str, Any], out: Path, console: Console
) -> Outcome:
    """Run a demo, save its figure as SVG and PNG.

    Args:
        demo: Which one.
        seed: Of the key that `run` receives.
        options: Keyword arguments of `run`.
        out: Folder for the figure; made when missing.
        console: Where the progress bar goes.

    Returns:
        The outcome.
    """
    import matplotlib as mpl

    mpl.use("agg")
    module = demos.load(demo)
    key = jax.random.key(seed)
    with _bar(console), compile_clock() as spans:
        start = time.perf_counter()
        result = jax.block_until_ready(module.run(key, **options))
        total_s = time.perf_counter() - start
    compile_s = min(total(spans), total_s)

    out.mkdir(parents=True, exist_ok=True)
    figure = module.plot(result)
    stem = demo.name.replace("/", "-")
    files = [out / f"{stem}.svg", out / f"{stem}.png"]
    for file in files:
        figures.save(figure, str(file))
    picture = figures.svg(figure)
    import matplotlib.pyplot as plt

    plt.close(figure)
    return Outcome(
        demo=demo,
        seed=seed,
        options=dict(options),
        device=describe(jax.devices()[0].platform, jax.devices()[0].device_kind),
        source=result.source,
        tables=module.tables(result),
        compile_s=compile_s,
        run_s=total_s - compile_s,
        svg=picture,
        files=files,
    )


def describe(platform: str, kind: str) -> str:
    """Name a device in words: `cpu`, `gpu (NVIDIA H200)`."""
    return platform if kind.lower() == platform else f"{platform} ({kind})"


@contextlib.contextmanager
def compile_clock() -> Iterator[list[tuple[float, float]]]:
    """Collect the time spans in which JAX traces, lowers or compiles.

    Yields:
        A list of (start, end) in seconds; spans of nested functions overlap, see `total`.
    """
    spans: list[tuple[float, float]] = []

    def note(event: str, start_time: float, end_time: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            spans.append((start_time, end_time))

    jax.monitoring.register_event_time_span_listener(note)
    try:
        yield spans
    finally:
        jax.monitoring.unregister_event_time_span_listener(note)


def total(spans: list[tuple[float, float]]) -> float:
    """Length of the union of time spans."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length


@contextlib.contextmanager
def _bar(console: Console) -> Iterator[None]:
    """Show a bar for work that takes more than a moment, redrawn four times a second."""
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=24),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeElapsedColumn(),
    )
    with rich_progress.Progress(
        *columns, console=console, refresh_per_second=4, transient=True
    ) as bar:
        tasks: dict[str, rich_progress.TaskID] = {}

        def listen(description: str, done: int, of: int) -> None:
            if description not in tasks:
                tasks[description] = bar.add_task(description, total=of)
            bar.update(tasks[description], completed=done, total=of)

        with progress.listen(listen):
            yield
