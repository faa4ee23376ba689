"""The mirror: module, page, test, demo and navigation entry of every concept."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlnotes_jax
from mlnotes_jax import demos

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlnotes_jax"
NOT_CHAPTERS = {"cli", "demos"}

CHAPTERS = sorted(
    folder.name
    for folder in PACKAGE.iterdir()
    if (folder / "__init__.py").exists() and folder.name not in NOT_CHAPTERS
)


def modules(folder: Path) -> list[str]:
    """`chapter/concept` of each public module in the chapters below `folder`."""
    return sorted(
        f"{chapter}/{file.stem}"
        for chapter in CHAPTERS
        for file in (folder / chapter).glob("*.py")
        if not file.stem.startswith("_")
    )


CONCEPTS = modules(PACKAGE)


def navigation() -> set[str]:
    """Pages named in `nav` of mkdocs.yml."""
    yaml = pytest.importorskip("yaml")

    class Loader(yaml.SafeLoader):
        """Reads mkdocs.yml, whose own tags do not matter here."""

    Loader.add_multi_constructor("", lambda loader, suffix, node: None)
    with open(ROOT / "mkdocs.yml", encoding="utf-8") as file:
        nav = yaml.load(file, Loader)["nav"]

    def pages(node):
        if isinstance(node, str):
            yield node
        else:
            for child in node.values() if isinstance(node, dict) else node:
                yield from pages(child)

    return set(pages(nav))


def test_there_are_chapters_and_concepts():
    assert {"data", "foundations", "optimization"} <= set(CHAPTERS)
    assert "foundations/losses" in CONCEPTS


@pytest.mark.parametrize("concept", CONCEPTS)
def test_concept_has_page_test_and_navigation_entry(concept):
    chapter, name = concept.split("/")
    assert (ROOT / f"docs/{concept}.md").is_file()
    assert (ROOT / f"tests/{chapter}/test_{name}.py").is_file()
    assert f"{concept}.md" in navigation()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_has_a_page_and_loads_all_its_modules(chapter):
    assert f"{chapter}/index.md" in navigation()
    assert (ROOT / f"docs/{chapter}/index.md").is_file()
    package = importlib.import_module(f"mlnotes_jax.{chapter}")
    assert [f"{chapter}/{name}" for name in package.__all__] == [
        concept for concept in CONCEPTS if concept.startswith(f"{chapter}/")
    ]
    assert chapter in mlnotes_jax.__all__


def test_every_page_is_in_the_navigation():
    written = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert written == navigation()


@pytest.mark.parametrize("concept", CONCEPTS)
def test_public_names_are_documented(concept):
    module = importlib.import_module("mlnotes_jax." + concept.replace("/", "."))
    page = (ROOT / f"docs/{concept}.md").read_text(encoding="utf-8")
    assert f"\n::: {module.__name__}\n" in page  # shows every name of `__all__`
    assert inspect.getdoc(module)
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value):
            assert inspect.getdoc(value), f"{module.__name__}.{name} has no docstring"


def test_demos_and_their_registry_agree():
    assert sorted(demo.name for demo in demos.DEMOS) == modules(PACKAGE / "demos")
    for demo in demos.DEMOS:
        module = demos.load(demo)
        package = importlib.import_module(module.__name__.rpartition(".")[0])
        assert demo.name.split("/")[1] in package.__all__
        first, quick, *_ = inspect.signature(module.run).parameters.values()
        assert first.name == "key"
        assert (quick.name, quick.default, quick.kind) == ("quick", False, quick.KEYWORD_ONLY)
        for function in ("problem", "tables", "plot"):
            assert callable(getattr(module, function))
        assert len(demo.summary) <= 60  # one line of `mlnotes demo` in 80 columns


def imports(concept: str) -> set[str]:
    """Modules that a concept's source imports."""
    tree = ast.parse((PACKAGE / f"{concept}.py").read_text(encoding="utf-8"))
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def fresh_python(code: str, **environment: str) -> str:
    """Run code in a new interpreter, return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("concept", CONCEPTS)
def test_only_public_jax_is_imported(concept):
    assert not any(name.startswith("jax._src") for name in imports(concept))


def test_importing_concepts_makes_no_array_and_imports_nothing_heavy():
    # A platform that does not exist: the first array, key or device call would raise.
    concepts = [c for c in CONCEPTS if not any(name.startswith("flax") for name in imports(c))]
    code = "import importlib, sys\n" + "".join(
        f"importlib.import_module('mlnotes_jax.{c.replace('/', '.')}')\n" for c in concepts
    )
    code += "print(*sorted({'flax', 'matplotlib', 'rich', 'sklearn', 'tyro'} & set(sys.modules)))"
    assert fresh_python(code, JAX_PLATFORMS="no_such_platform").strip() == ""


def test_importing_the_package_costs_next_to_nothing():
    code = (
        "import sys, time; start = time.perf_counter(); import mlnotes_jax\n"
        "print(time.perf_counter() - start, 'jax' in sys.modules)"
    )
    runs = [fresh_python(code).split() for _ in range(5)]
    assert {jax for _, jax in runs} == {"False"}
    # It takes about 2 ms; the best of five keeps a busy machine from deciding.
    assert min(float(seconds) for seconds, _ in runs) < 0.05


def test_a_missing_attribute_says_so():
    with pytest.raises(AttributeError, match=r"module 'mlnotes_jax' has no attribute 'losses'"):
        mlnotes_jax.losses
    assert dir(mlnotes_jax.foundations) == mlnotes_jax.foundations.__all__
