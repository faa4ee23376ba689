"""The built site: the project's own, and small ones that show what must fail."""

import os
import re

import pytest
from mlnotes_site import check
from mlnotes_site.__main__ import main

pytestmark = pytest.mark.site

A_PAGE = r"""---
tags: [regression, loss]
description: One
---
# The $\ell_2$ loss

损失函数: $x^2$.

$$
f(x) = x^2
\label{eq:one-square}
$$

!!! note "In a box"

    ```python
    import matplotlib.pyplot as plt
    plt.plot([1, 2])
    plt.title("a line")
    print("printed", 6 * 7)
    ```

=== "Tab"

    By $\eqref{eq:one-square}$.

[`jax.grad`][jax.grad].
"""

API = r"""
[`losses.mse`][mlnotes_jax.foundations.losses.mse]

## API

::: mlnotes_jax.foundations.losses
"""

ANOTHER_PAGE = r"""# Another

See $\eqref{eq:one-square}$ and [the loss](one.md#the-l2-loss).

$$
\nabla f = 0
\label{eq:another-zero}
$$
"""


@pytest.fixture
def small(scratch):
    scratch.write("index.md", "# Home\n\nSee $\\eqref{eq:another-zero}$.\n")
    scratch.write("chapter/one.md", A_PAGE)
    scratch.write("chapter/another.md", ANOTHER_PAGE)
    scratch.write("tags.md", "# Tags\n\n<!-- material/tags -->\n")
    return scratch


class TestOwnSite:
    def test_links_and_anchors(self, site):
        assert check.links(site) == []

    def test_nothing_comes_from_the_network(self, site):
        assert check.requests(site) == []

    def test_every_public_name_is_documented(self, site):
        assert check.undocumented(site) == []

    def test_command(self, site, capsys):
        assert main(["check", "--site-dir", str(site)]) == 0
        assert "no problems" in capsys.readouterr().out

    def test_no_formula_is_left_as_tex(self, site):
        for file in site.rglob("*.html"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r'class="arithmatex">\\[(\[]', text), file


@pytest.mark.parametrize("builder", ["mkdocs", "zensical"])
def test_both_builders_make_the_same(small, builder):
    small.write("chapter/one.md", A_PAGE + API)
    done = small.build(builder)
    assert done.returncode == 0, done.stdout
    assert not re.search(r"\bWARN", done.stdout), done.stdout
    built = small.folder / builder
    assert check.links(built) == []
    assert check.requests(built) == []
    one = (built / "chapter/one/index.html").read_text(encoding="utf-8")
    assert "<title>The ℓ₂ loss - mlnotes_jax</title>" in one
    assert '<a class="equation-reference" href="#eq:one-square">(1)</a>' in one
    assert r"f(x) = x^2\tag{1}" in one
    box = one[one.index("In a box") :]
    assert "printed 42" in box
    assert 'aria-label="a line"' in box
    assert 'id="mlnotes_jax.foundations.losses.mse"' in one
    assert 'href="https://docs.jax.dev/en/latest/_autosummary/jax.grad.html#jax.grad"' in one
    signature = re.sub(r"<[^>]+>", "", one).replace("&#34;", '"').replace("&quot;", '"')
    assert 'predictions: Float[ArrayLike, "..."]' in signature
    assert '<span class="gp">&gt;&gt;&gt; </span>' in one
    # Formulas in docstrings.
    assert one.count('class="katex"') > one.count('class="katex-display"') > 1
    another = (built / "chapter/another/index.html").read_text(encoding="utf-8")
    assert (
        '<a class="equation-reference" href="../one/#eq:one-square">The ℓ₂ loss (1)</a>' in another
    )
    home = (built / "index.html").read_text(encoding="utf-8")
    assert 'href="chapter/another/#eq:another-zero">Another (1)</a>' in home
    assert (built / "assets/notebooks/chapter/one.ipynb").exists()
    assert "regression" in (built / "tags/index.html").read_text(encoding="utf-8")


def test_pages_without_directories(small):
    config = small.folder / "mkdocs.yml"
    config.write_text(config.read_text() + "\nuse_directory_urls: false\n")
    done = small.build()
    assert done.returncode == 0, done.stdout
    built = small.folder / "mkdocs"
    assert check.links(built) == []
    another = (built / "chapter/another.html").read_text(encoding="utf-8")
    assert 'href="one.html#eq:one-square">The ℓ₂ loss (1)</a>' in another


@pytest.mark.parametrize("builder", ["mkdocs", "zensical"])
def test_only_a_repository_shows_edit_and_source_links(scratch, builder):
    scratch.write("index.md", "# Home\n")
    page = scratch.folder / builder / "index.html"
    assert scratch.build(builder, MLNOTES_REPO_URL="").returncode == 0
    assert "md-source" not in page.read_text()
    assert 'rel="edit"' not in page.read_text()
    repository = "https://github.com/someone/mlnotes"
    assert scratch.build(builder, MLNOTES_REPO_URL=repository).returncode == 0
    text = page.read_text()
    assert f'href="{repository}/edit/main/docs/index.md"' in text
    assert 'class="md-source"' in text
    # With this attribute, the theme's script asks GitHub for the number of stars.
    assert 'data-md-component="source"' not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("$\\nosuch$", r"bad.md:3: .*\\nosuch"),
        ("$\\eqref{eq:none}$", "bad.md:3: no page defines the equation 'eq:none'"),
        ("```python\n1 / 0\n```", r"(?s)bad.md:4: a snippet failed.*ZeroDivisionError"),
        ("[x](none.md)", r"(?s)bad\.md.*none\.md"),
        ("[x](index.md#none)", r"(?s)bad\.md.*none"),
        ("[`x`][mlnotes_jax.nosuch]", "mlnotes_jax.nosuch"),
        ("::: mlnotes_jax.nosuch", "mlnotes_jax.nosuch"),
    ],
    ids=["tex", "reference", "snippet", "link", "anchor", "symbol", "module"],
)
@pytest.mark.parametrize("builder", ["mkdocs", "zensical"])
def test_what_is_wrong_fails_the_build(scratch, builder, text, message):
    scratch.write("index.md", "# Home\n")
    scratch.write("bad.md", f"# Bad\n\n{text}\n")
    done = scratch.build(builder)
    assert done.returncode != 0, done.stdout
    assert re.search(message, done.stdout), done.stdout


def test_a_prepared_site_builds_without_a_network(small):
    # Neither pip nor npm nor a browser is asked: every proxy leads nowhere.
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "all_proxy")}
    nowhere |= {name.upper(): url for name, url in nowhere.items()} | {"no_proxy": ""}
    nowhere["npm_config_registry"] = "http://127.0.0.1:9"
    done = small.build(**nowhere)
    assert done.returncode == 0, done.stdout


def test_fonts_are_the_readers(site):
    css = (site / "stylesheets/extra.css").read_text()
    assert "Noto Sans SC" in css
    assert os.listdir(site / "assets/katex/fonts")
