"""The benchmark command runs, and what it writes is what `guide/performance` reads."""

import inspect
import json
import os
import pathlib
import subprocess
import sys

import pytest

from mlnotes_jax import demos

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
        # Times count only at the same quality.
        same_quality(head["benchmark"], row["ours_quality"], row["peer_quality"])


def same_quality(benchmark, ours, peer):
    if benchmark == "optimization/critical_points":
        assert max(ours, peer) <= 1e-4  # two residuals, within one bound
    elif benchmark == "nets/resnet":
        assert ours == pytest.approx(peer, rel=0.15)  # random labels, starts drawn alike
    elif benchmark == "trees/boosting":
        # Held-out losses, means over few splits: ours may be better by any amount.
        assert ours <= peer + max(0.01, 0.05 * peer)
    elif benchmark.startswith("trees/"):
        # Means over few splits; an error of a few in a thousand is a row or two.
        assert abs(ours - peer) <= max(0.01, 0.05 * max(abs(ours), abs(peer)))
    else:
        assert ours == pytest.approx(peer, rel=0.02)  # losses from one start, in float32


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
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert files
    for file in files:
        document = json.loads(file.read_text(encoding="utf-8"))
        check(document)
        assert document["header"]["size"] == "full"


@pytest.mark.parametrize("name", ["mlp"])
def test_pytorch_in_processes(torch, tmp_path, name):
    file = tmp_path / "result.json"
    done = command(name, "--size", "small", "--repeats", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text(encoding="utf-8"))
    check(document)
    peers = {row["peer"] for row in document["rows"]}
    assert {"PyTorch eager, stock", "Flax, nnx.jit step"} <= peers


def test_recorded_experiments_are_those_of_demos():
    files = sorted((ROOT / "benchmarks" / "results" / "experiments").glob("*.json"))
    assert files
    for file in files:
        run = json.loads(file.read_text(encoding="utf-8"))
        parameters = inspect.signature(demos.load(demos.find(run["demo"])).run).parameters
        assert run["options"].keys() <= parameters.keys()
        assert run["tables"]


def test_listing_and_unknown_names():
    listed = command()
    assert listed.returncode == 0
    assert "optimization/critical_points" in listed.stdout
    unknown = command("no_such_thing")
    assert unknown.returncode == 2
    assert "no benchmark 'no_such_thing'" in unknown.stdout


def test_a_single_case(torch, tmp_path):
    file = tmp_path / "result.json"
    quick = "update_rules", "--size", "small", "--repeats", "1", "--json", str(file)
    one = command(*quick, "--case", "Nesterov")
    assert one.returncode == 0, one.stderr
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["header"]["case"] == "Nesterov"
    assert {row["case"] for row in document["rows"]} == {"5 steps of Nesterov, 10000 parameters"}
    none = command(*quick, "--case", "nothing")
    assert none.returncode == 2
    said = " ".join(none.stdout.split())
    assert "--case must be part of one of" in said
    assert "'5 steps of Nesterov, 10000 parameters'" in said
