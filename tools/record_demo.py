"""Keep what a long demo printed: `python tools/record_demo.py FILE NAME [OPTIONS]`.

Runs `mlnotes demo NAME OPTIONS --json` and writes its answer, without times and file names, to
`benchmarks/results/experiments/FILE.json`, where the pages find it.
"""

import contextlib
import io
import json
import pathlib
import sys
import tempfile

from mlnotes_jax.cli import main as command

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks" / "results" / "experiments"


def main(file: str, *arguments: str) -> int:
    """Run the demo and write the file; returns the exit status."""
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(printed):
        status = command.main(["demo", *arguments, "--json", "--out", out])
    if status != 0:
        return status
    run = json.loads(printed.getvalue())
    for transient in ("compile_s", "run_s", "files"):
        del run[transient]
    run["source"]["origin"] = pathlib.Path(run["source"]["origin"]).name  # not this machine's path
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{file}.json"
    path.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
