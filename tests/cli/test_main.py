"""The command line as a person meets it: messages, exit statuses, files."""

import json
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from mlnotes_jax import demos
from mlnotes_jax.cli import cache, demo, doctor, main, report, run


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch):
    """Keep the user's cache folder out of the tests."""
    monkeypatch.setattr(cache, "turn_on", lambda: None)


def mlnotes(*words):
    return main.main(list(words))


# --- words


def test_help_and_version(capsys):
    assert mlnotes("--help") == 0
    assert "demo NAME" in capsys.readouterr().out
    assert mlnotes() == 2
    assert mlnotes("--version") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("mlnotes-jax ")


def test_unknown_command(capsys):
    assert mlnotes("dmeo") == 2
    assert "there is no command 'dmeo'" in capsys.readouterr().err


def test_demo_lists_every_demo(capsys):
    assert mlnotes("demo") == 0
    out = capsys.readouterr().out
    for entry in demos.DEMOS:
        assert entry.name.split("/")[1] in out
        assert entry.summary in out


def test_names():
    by_path = demos.find("foundations/losses")
    assert demos.find("losses") == by_path
    assert demos.find("Critical-Points") == demos.find("optimization/critical_points")


def test_a_concept_in_two_chapters_must_be_named_in_full(monkeypatch):
    twice = (*demos.DEMOS, demos.Demo("optimization/losses", "Another"))
    monkeypatch.setattr(demos, "DEMOS", twice)
    with pytest.raises(demos.UnknownDemo, match="foundations/losses or optimization/losses"):
        demos.find("losses")


def test_unknown_demo_suggests_the_nearest(capsys):
    assert mlnotes("demo", "critcal-point") == 2
    assert "Did you mean 'critical_points'?" in capsys.readouterr().err


def test_missing_extra_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert mlnotes("demo", "losses") == 2
    err = capsys.readouterr().err
    assert 'Matplotlib is missing. Cure: pip install "mlnotes-jax[demos]"' in err
    assert "Traceback" not in err


def test_a_wrong_value_is_a_sentence_and_no_traceback(capsys, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("scale must be positive, got -1.0")

    monkeypatch.setattr(demos.load(demos.find("losses")), "run", refuse)
    monkeypatch.setattr(demo, "parse", lambda *_: demo_options(tmp_path))
    assert mlnotes("demo", "losses") == 2
    assert capsys.readouterr().err == "mlnotes: scale must be positive, got -1.0\n"


def demo_options(out):
    import types

    return types.SimpleNamespace(out=out, json=False, seed=0)


def test_options_come_from_the_signature(capsys):
    with pytest.raises(SystemExit) as stopped:
        mlnotes("demo", "losses", "--help")
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for word in ("--quick", "--seed", "--out", "--json"):
        assert word in out
    with pytest.raises(SystemExit) as stopped:
        mlnotes("demo", "losses", "--no-such-option")
    assert stopped.value.code == 2


def test_control_c_ends_with_130(tmp_path):
    code = (
        "import signal, time\n"
        # A shell that starts a job in the background has it ignore this signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mlnotes_jax import demos\n"
        "from mlnotes_jax.cli import main\n"
        "module = demos.load(demos.find('losses'))\n"
        "def wait(key, *, quick: bool = False):\n"
        "    print('waiting', flush=True)\n"
        "    time.sleep(60)\n"
        "module.run = wait\n"
        "raise SystemExit(main.main(['demo', 'losses']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "waiting\n"
            time.sleep(0.2)
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=30)
        finally:
            child.kill()
    assert child.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err


# --- every demo runs


@pytest.mark.parametrize("entry", demos.DEMOS, ids=lambda entry: entry.name)
def test_demo_runs(entry, capsys, tmp_path):
    with jax.numpy_dtype_promotion("standard"):  # as for a user; Optax's schedules need it
        assert mlnotes("demo", entry.name, "--quick", "--json", "--out", str(tmp_path)) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["demo"] == entry.name
    assert all(outcome["source"].values())
    assert outcome["compile_s"] > 0
    assert outcome["run_s"] > 0
    assert outcome["tables"]
    for rows in outcome["tables"].values():
        assert rows
        assert all(list(row) == list(rows[0]) for row in rows)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".png", ".svg"]
    assert all(p.stat().st_size > 10_000 for p in tmp_path.iterdir())
    jax.clear_caches()  # as in conftest; here a test is as much as a file is elsewhere


def test_demo_prints_tables_within_80_columns(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert mlnotes("demo", "scaling", "--quick", "--out", str(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "device" in out
    assert "licence" in out
    assert "compile" in out
    lines = [line for line in out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80
    assert "…" not in out  # nothing was cut


# --- times


def test_union_of_spans():
    assert run.total([(0, 2), (1, 3), (5, 6), (5.2, 5.4)]) == 4
    assert run.total([]) == 0


def test_compile_clock_sees_a_compilation_and_not_a_second_call():
    f = jax.jit(lambda x: jnp.sin(x) @ x)
    with run.compile_clock() as first:
        f(jnp.ones(7))
    with run.compile_clock() as second:
        f(jnp.ones(7))
    assert run.total(first) > 0
    assert len(second) == 0


# --- the page of the tour


def test_tour_page_is_self_contained(tmp_path, capsys):
    entry = demos.find("scaling")
    from rich.console import Console

    outcome = run.run_demo(
        entry, seed=0, options={"quick": True}, out=tmp_path, console=Console(stderr=True)
    )
    page = report.page([outcome])
    assert entry.summary in page
    assert "<svg " in page
    assert "currentColor" in page
    for word in ("src=", "<link", "<script", "url(http"):
        assert word not in page


def test_a_demo_that_fails_does_not_stop_the_tour(tmp_path, capsys, monkeypatch):
    from mlnotes_jax.cli import tour

    def broken(*args, **kwargs):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(demos, "DEMOS", demos.DEMOS[:1])
    monkeypatch.setattr(tour.run, "run_demo", broken)
    assert mlnotes("tour", "--quick", "--out", str(tmp_path)) == 1
    captured = capsys.readouterr()
    assert "foundations/losses failed: RuntimeError: no such luck" in captured.err
    assert (tmp_path / "index.html").is_file()


# --- doctor


def test_doctor_on_this_machine(capsys):
    status = mlnotes("doctor")
    out = capsys.readouterr().out
    assert jax.__version__ in out
    assert "matmul precision" in out
    assert (status == 1) == ("Problem:" in out)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="JAX sees an accelerator here")
@pytest.mark.parametrize(
    ("driver", "advice"),
    [
        ("580.95.05", 'pip install "mlnotes-jax[cuda]"'),
        ("550.54.14", 'pip install "mlnotes-jax[cuda12]"'),
        ("470.82.01", "too old"),
    ],
)
def test_doctor_names_the_cure_for_an_unseen_gpu(driver, advice, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(doctor, "version", lambda package: "")
    (problem,) = doctor.diagnose([doctor.Gpu("NVIDIA H200", driver)]).problems
    assert problem.startswith("nvidia-smi sees NVIDIA H200, but JAX does not.")
    assert advice in problem


def test_doctor_reads_nvidia_smi(monkeypatch, tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.95.05'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert doctor.nvidia_gpus() == [doctor.Gpu("NVIDIA H200", "580.95.05")]


def test_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    assert cache.folder() == tmp_path
