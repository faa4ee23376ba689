"""The guide pages say what the project does: versions, extras, options, terms."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from mlnotes_jax.cli import doctor

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def page(name: str) -> str:
    return (ROOT / f"docs/guide/{name}.md").read_text(encoding="utf-8")


def rows(text: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading."""
    below = text.split(f"# {heading}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", below, flags=re.M)
    assert table, heading
    lines = table.group().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_install_commands_bring_what_pyproject_says():
    for _, command, brings in rows(page("environment"), "Install"):
        extra = re.fullmatch(r'`pip install "\.(?:\[(\w+)\])?"`', command)
        assert extra, command
        if extra[1]:
            assert EXTRAS[extra[1]] == [brings.strip("`")]


def test_drivers_are_those_that_doctor_asks_for():
    table = rows(page("environment"), "Which driver goes with which wheel")
    said = {row[0].strip("`"): row[2] for row in table}
    assert said == {extra: f"{oldest} or newer" for extra, oldest in doctor.OLDEST_DRIVER.items()}
    for extra, cuda, *_ in table:
        assert EXTRAS[extra.strip("`")] == [f"jax[cuda{cuda}]"]


def test_every_extra_is_explained():
    table = rows(page("environment"), "Extras")
    named = [extra for row in table for extra in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(EXTRAS)
    inside = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) & set(EXTRAS) for row in table}
    for extra, others in inside.items():  # "`demos`, and PyTorch": an extra that holds another
        if extra in EXTRAS:
            nested = re.findall(r"mlnotes-jax\[([\w,]+)\]", " ".join(EXTRAS[extra]))
            assert others == {name for names in nested for name in names.split(",")}


def test_oldest_python():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert f"Python {oldest} or newer is needed" in page("environment")


def test_options_of_the_benchmarks():
    named = set(re.findall(r"`(--[a-z]+)", page("performance")))
    assert named == {"--size", "--case", "--threads", "--repeats", "--json"}
    command = [sys.executable, "-m", "benchmarks", "--help"]
    help_text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert named <= set(re.findall(r"--[a-z]+", help_text))


def test_glossary():
    terms = rows(page("glossary"), "Glossary")
    assert len(terms) >= 80
    english = [re.sub(r"[`*]", "", row[0]).casefold() for row in terms]
    assert english == sorted(set(english))  # each once, and in order
    for row in terms:
        assert re.search(r"[\u4e00-\u9fff]", row[1]), row
        assert len(row) == 4, row
        assert re.search(r"\]\([\w./#-]+\)|\]\[mlnotes_jax[\w.]+\]", row[3]), row
