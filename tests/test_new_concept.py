"""A new concept starts from files that already pass."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def new_concept():
    spec = importlib.util.spec_from_file_location("new_concept", ROOT / "tools/new_concept.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_writes_four_files_once(new_concept, tmp_path, capsys):
    assert new_concept.main(["optimization/bowl"], tmp_path) == 0
    written = capsys.readouterr().out.split()
    assert written == [
        "mlnotes_jax/optimization/bowl.py",
        "mlnotes_jax/demos/optimization/bowl.py",
        "docs/optimization/bowl.md",
        "tests/optimization/test_bowl.py",
    ]
    for file in written:
        text = (tmp_path / file).read_text()
        assert not any(word in text for word in ("CHAPTER", "CONCEPT", "FUNCTION", "TITLE"))
    assert new_concept.main(["optimization/bowl"], tmp_path) == 2
    assert "already there" in capsys.readouterr().err


def test_refuses_a_wrong_name(new_concept, tmp_path):
    assert new_concept.main(["Bowl"], tmp_path) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_skeleton_passes_its_own_test(new_concept, tmp_path):
    new_concept.main(["foundations/bowl"], tmp_path)
    # The package of the project, with the new files beside its own.
    run = (
        "import sys, pytest, mlnotes_jax.foundations as f, mlnotes_jax.demos.foundations as d;"
        f"f.__path__.append('{tmp_path}/mlnotes_jax/foundations');"
        f"d.__path__.append('{tmp_path}/mlnotes_jax/demos/foundations');"
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-c', '{ROOT}/pyproject.toml',"
        f"'--confcutdir={ROOT}/tests', '-p', 'conftest', '{tmp_path}/tests']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", run],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**__import__("os").environ, "PYTHONPATH": str(ROOT / "tests")},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
