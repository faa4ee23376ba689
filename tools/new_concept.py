"""Start a concept: copy tools/concept_template into the four places, with the names filled in.

    python tools/new_concept.py optimization/momentum

Then register it: the chapter's `__init__.py` (and the demos'), `DEMOS` in
`mlnotes_jax/demos/__init__.py`, `nav` in `mkdocs.yml`. `tests/test_layout.py` says what is missing.
"""

import re
import sys
from pathlib import Path

TEMPLATE = Path(__file__).parent / "concept_template"
PLACES = {
    "module.py": "mlnotes_jax/{chapter}/{concept}.py",
    "demo.py": "mlnotes_jax/demos/{chapter}/{concept}.py",
    "page.md": "docs/{chapter}/{concept}.md",
    "test.py": "tests/{chapter}/test_{concept}.py",
}


def main(argv: list[str], root: Path) -> int:
    """Write the four files.

    Args:
        argv: One word, `chapter/concept`.
        root: The project's folder.

    Returns:
        0, or 2 when the word is wrong or a file is already there; then nothing is written.
    """
    if len(argv) != 1 or not re.fullmatch(r"[a-z_]+/[a-z_]+", argv[0]):
        print("usage: new_concept.py chapter/concept  (lower case, underscores)", file=sys.stderr)
        return 2
    chapter, concept = argv[0].split("/")
    targets = {
        TEMPLATE / name: root / place.format(chapter=chapter, concept=concept)
        for name, place in PLACES.items()
    }
    for target in targets.values():
        if target.exists():
            print(f"{target} is already there", file=sys.stderr)
            return 2
    title = concept.replace("_", " ").capitalize()
    for template, target in targets.items():
        text = template.read_text(encoding="utf-8")
        for word, value in {
            "CHAPTER": chapter,
            "CONCEPT": concept,
            "FUNCTION": "squared_norm",
            "SUMMARY": f"{title}: one line",
            "TITLE": title,
        }.items():
            text = text.replace(word, value)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        print(target.relative_to(root))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).parents[1]))
