"""The benchmark command runs, and what it writes is what `guide/performance` reads."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NUMBERS = ("ours_s", "peer_s", "ratio", "ours_quality", "peer_quality", "compile_s")


def command(*arguments):
    # A process of its own: the benchmark pins itself to cores before JAX is imported.
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def check(document):
    head = document["header"]
    assert {"machine", "versions", "threads", "date", "device", "size", "quality"} <= head.keys()
    assert {"python", "jax", "jaxlib", "numpy"} <= head["versions"].keys()
    assert document["rows"]
    for row in document["rows"]:
        assert {"case", "peer", "repeats", *NUMBERS} <= row.keys()
        assert all(isinstance(row[name], float) and row[name] > 0 for name in NUMBERS)
        assert row["ratio"] == pytest.approx(row["peer_s"] / row["ours_s"])
        # Times count only at the same quality: the two within one bound, here 1e-4.
        assert max(row["ours_quality"], row["peer_quality"]) <= 1e-4


def test_small_run(tmp_path):
    file = tmp_path / "deep" / "result.json"
    done = command(
        "critical-points",
        "--size",
        "small",
        "--threads",
        "1",
        "--repeats",
        "1",
        "--json",
        str(file),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text(encoding="utf-8"))
    check(document)
    assert document["header"]["threads"] == 1
    assert document["header"]["size"] == "small"
    assert all(row["repeats"] == 1 for row in document["rows"])
    for row in document["rows"]:
        assert row["peer"] in done.stdout


def test_recorded_results_have_the_same_shape():
    files = sorted((ROOT / "benchmarks" / "results").glob("*critical_points*.json"))
    assert files
    for file in files:
        document = json.loads(file.read_text(encoding="utf-8"))
        check(document)
        assert document["header"]["size"] == "full"


def test_listing_and_unknown_names():
    listed = command()
    assert listed.returncode == 0
    assert "optimization/critical_points" in listed.stdout
    unknown = command("no_such_thing")
    assert unknown.returncode == 2
    assert "no benchmark 'no_such_thing'" in unknown.stdout
