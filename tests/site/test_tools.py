"""The site's tools: fences, labels, formulas, snippets, notebooks, checks."""

import json
import re
import textwrap
import zlib

import griffe
import markdown
import nbformat
import pytest
from mlnotes_site import assets, check, docstrings, extension, inventories, katex, notebooks
from mlnotes_site.pages import Page, Pages, fences
from mlnotes_site.project import CACHE, ROOT, SiteError
from mlnotes_site.snippets import Runner, run_all, time_limit

pytestmark = pytest.mark.site


@pytest.fixture(scope="module", autouse=True)
def npm():
    assets.install_packages()


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    runner = Runner(cache=tmp_path_factory.mktemp("cache"))
    yield runner
    runner.close()


@pytest.fixture
def convert(tmp_path):
    """Render a page of a folder of pages, as a builder does."""

    def render(path, **pages):
        for name, text in pages.items():
            (tmp_path / f"{name}.md").write_text(textwrap.dedent(text))
        page = Page.parse(path, (tmp_path / path).read_text())
        md = markdown.Markdown(
            extensions=[
                *("pymdownx.arithmatex", "pymdownx.superfences", "admonition", "tables", "toc"),
                extension.SiteExtension(docs=str(tmp_path)),
            ],
            extension_configs={"pymdownx.arithmatex": {"generic": True}},
        )
        return md.convert(page.body)

    return render


def page(text, path="page.md"):
    return Page.parse(path, textwrap.dedent(text))


class TestFences:
    def test_languages_indents_and_nesting(self):
        text = textwrap.dedent(
            """\
            ```python
            a = 1
            ```

            !!! note

                ``` { .python title="x" }
                if a:

                    b = 2
                ```

            ````md
            ```python
            shown, not run
            ```
            ````

            ~~~py
            c
            ~~~
            """
        )
        found = fences(text.split("\n"))
        assert [fence.language for fence in found] == ["python", "python", "md", "py"]
        assert [fence.start for fence in found] == [0, 6, 12, 18]
        assert found[1].indent == "    "
        assert found[1].code == "if a:\n\n    b = 2\n"

    def test_inline_code_with_three_ticks_is_not_a_fence(self):
        assert fences(["```inline``` text"]) == []

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("text\n```python\nx = 1\n", "page.md:4: this code fence is never closed"),
            ("> ```python\n> x\n> ```\n", "page.md:3: a Python block inside a quotation"),
        ],
    )
    def test_errors_name_the_line_of_the_file(self, text, message):
        with pytest.raises(SiteError, match=message):
            _ = Page.parse("page.md", "---\n---\n" + text).fences


class TestPages:
    def test_front_matter(self):
        found = page("---\ntags: [a]\n---\n# A *title* { #x }\n")
        assert (found.meta, found.offset, found.title) == ({"tags": ["a"]}, 3, "A *title*")

    def test_labels_are_numbered_in_order_outside_code(self):
        found = page(
            r"""
            $$ a \label{eq:p-one} $$

            `\label{eq:p-code}`

            ```text
            \label{eq:p-fence}
            ```

            $$ b \label{eq:p-two} $$
            """
        )
        assert found.labels == {"eq:p-one": 1, "eq:p-two": 2}

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (["eq:a", "eq:a"], "page.md:3: the label 'eq:a' is defined twice"),
            (["Eq:a"], "page.md:1: the label 'Eq:a' must look like"),
        ],
    )
    def test_bad_labels(self, labels, message):
        with pytest.raises(SiteError, match=message):
            _ = page("\n\n".join(rf"$$ \label{{{label}}} $$" for label in labels)).labels

    def test_same_label_on_two_pages(self, tmp_path):
        (tmp_path / "a.md").write_text("# A\n\n$$ \\label{eq:x} $$\n")
        (tmp_path / "b.md").write_text("# B\n\n\n$$ \\label{eq:x} $$\n")
        with pytest.raises(SiteError, match=r"b.md:4: the label 'eq:x' is already .* a.md:3"):
            Pages(tmp_path).refresh()

    def test_refresh_sees_changes(self, tmp_path):
        file = tmp_path / "a.md"
        file.write_text("# A\n\n$$ x \\label{eq:old} $$\n")
        pages = Pages(tmp_path).refresh()
        file.write_text("# A\n\n$$ y $$\n\n$$ x \\label{eq:new-name} $$\n")
        assert pages.refresh().equation("eq:new-name")[1] == 1
        with pytest.raises(KeyError, match="did you mean 'eq:new-name'"):
            pages.equation("eq:new-nam")

    def test_check_tells_every_reference_that_leads_nowhere(self, tmp_path):
        (tmp_path / "a.md").write_text("# A\n\n$$ x \\label{eq:a_b-c} $$\n\n$\\ref{eq:a_b-c}$\n")
        assert Pages(tmp_path).refresh().check()
        (tmp_path / "b.md").write_text(
            "# B\n\n$\\eqref{eq:x}$ `$\\eqref{eq:y}$`\n\n$\\ref{eq:z}$\n"
        )
        with pytest.raises(
            SiteError, match=r"(?s)^b.md:3: .*'eq:x'\n?.*b.md:5: .*'eq:z'"
        ) as caught:
            Pages(tmp_path).refresh().check()
        assert "eq:y" not in caught.value.message

    def test_a_page_is_found_whatever_its_white_space(self, tmp_path):
        (tmp_path / "a.md").write_text("---\ntitle: T\n---\n\n# A\n\n\tx  \n")
        found = Pages(tmp_path).refresh().find("# A\n\n    x\n\n")
        assert found is not None
        assert found.path == "a.md"

    def test_two_pages_with_one_text(self, tmp_path):
        for name in ("a.md", "b.md"):
            (tmp_path / name).write_text("# A\n")
        with pytest.raises(SiteError, match="same text"):
            Pages(tmp_path).refresh()

    @pytest.mark.parametrize(
        ("start", "end", "link"),
        [
            ("a/b.md", "a/c.md", "c.md#x"),
            ("a/b.md", "d.md", "../d.md#x"),
            ("d.md", "a/b.md", "a/b.md#x"),
            ("a/b.md", "a/b.md", "#x"),
        ],
    )
    def test_links(self, start, end, link):
        assert page("", start).link_to(end, "x") == link


class TestFormulas:
    def test_html_and_mathml(self):
        html = katex.render(r"\frac{1}{2}", display=True)
        assert "katex-display" in html
        assert "<math" in html

    @pytest.mark.parametrize(
        "tex",
        [r"\frac{1}", r"\nosuch", "损失", r"\begin{align} a"],
        ids=["brace", "name", "cjk", "end"],
    )
    def test_bad_formulas_fail(self, tex):
        with pytest.raises(katex.TexError, match="in the formula"):
            katex.render(tex, display=True)

    @pytest.mark.parametrize(
        ("tex", "text"),
        [
            (r"\ell_2", "ℓ₂"),
            (r"x^2 + y_{ij}", "x²+yᵢⱼ"),
            (r"\frac{a+b}{2}", "(a+b)/2"),
            (r"\hat y", "ŷ"),
            (r"\mathbf{w}^\top x", "wᵀx"),
            (r"a \le \text{损失 b}", "a ≤ 损失 b"),
            (r"e^{-x_1}", "e^(-x₁)"),
        ],
    )
    def test_plain_text(self, tex, text):
        assert katex.plain(tex).replace("−", "-") == text


class TestExtension:
    def test_equations_on_one_page(self, convert):
        html = convert(
            "a.md",
            a=r"""
            # A $\ell_2$

            As $\eqref{eq:a-one}$ and $\ref{eq:a-one}$ say, $x^2$.

            $$
            x = 1
            \label{eq:a-one}
            $$

            !!! note

                $$
                y
                \label{eq:a-two}
                $$
            """,
        )
        assert '<a class="equation-reference" href="#eq:a-one">(1)</a>' in html
        assert '<a class="equation-reference" href="#eq:a-one">1</a>' in html
        assert 'id="eq:a-two"' in html
        assert html.count("katex-tag") == 2
        assert r"\tag{2}" in html
        assert 'id="a-l2"' in html

    def test_equation_on_another_page(self, convert):
        html = convert(
            "b.md",
            a="# The $\\ell_2$ loss\n\n$$\nx \\label{eq:a-one}\n$$\n",
            b="# B\n\n$\\eqref{eq:a-one}$\n",
        )
        assert 'href="a.md#eq:a-one">The ℓ₂ loss (1)</a>' in html

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("# A\n\n$\\eqref{eq:none}$", r"a.md:3: no page defines the equation 'eq:none'"),
            ("# A\n\ntext $\\nosuch$", r"(?s)a.md:3: .*\\nosuch.*in the formula"),
            ("# A $\\nosuch$", r"(?s)a.md:1: .*\\nosuch"),
            ("# A\n\n$x \\label{eq:a}$", "a.md:3: one label, in a formula between"),
            ("# A\n\nnot maths \\label{eq:a}", "a.md:3: 'eq:a' is not in a formula"),
            ("# A\n\nsee $x \\eqref{eq:a}$\n\n$$ \\label{eq:a} $$", "a.md:3: a reference must be"),
        ],
    )
    def test_errors_have_page_and_line(self, convert, text, message):
        with pytest.raises(SiteError, match=message):
            convert("a.md", a=text)

    def test_snippets_that_belong_to_no_page_are_not_dropped(self, tmp_path):
        md = markdown.Markdown(extensions=[extension.SiteExtension(docs=str(tmp_path))])
        with pytest.raises(SiteError, match="not the text of any page"):
            md.convert("```python\nprint(1)\n```")

    def test_output_is_escaped_and_under_its_block(self, convert):
        html = convert(
            "a.md",
            a="""
            # A

            !!! note

                ```python
                print("<b>")
                ```

                after
            """,
        )
        note = html[html.index("admonition") :]
        assert (
            note.index("print") < note.index("&lt;b&gt;\n</code></pre></div>") < note.index("after")
        )
        assert 'href="assets/notebooks/a.ipynb"' in html


class TestSnippets:
    def test_session_output_and_figures(self, runner):
        outputs = runner.outputs(
            page(
                """
                ```python
                import jax
                import jax.numpy as jnp
                x = jnp.ones(3)
                print(x.sum())
                jax.debug.print("late {}", x[0])
                ```

                ```python
                import matplotlib.pyplot as plt
                from matplotlib.figure import Figure
                plt.plot(x)
                plt.title("first")
                alone = Figure()
                alone.suptitle("second")
                alone
                ```
                """
            )
        )
        assert outputs[0].stdout == "3.0\nlate 1.0\n"
        assert [part.stdout for part in outputs[1:]] == [""]
        assert ['aria-label="first"' in outputs[1].figures[0], len(outputs[1].figures)] == [True, 2]
        assert "currentColor" in outputs[1].figures[0]
        assert "<style" not in outputs[1].figures[0]

    def test_pages_do_not_share_a_session(self, runner):
        runner.outputs(page("```python\nx = 1\n```"))
        with pytest.raises(SiteError, match="NameError"):
            runner.outputs(page("```python\nx\n```"))

    @pytest.mark.parametrize(
        ("code", "line", "message"),
        [
            ("x = 1\nx / 0", 6, "ZeroDivisionError"),
            ("x = 1\nx +", 6, "SyntaxError"),
            ("import warnings\nwarnings.warn('careful')", 6, "UserWarning: careful"),
            ("import jax.numpy as jnp\njnp.zeros(2, 'float64')", 6, "float64"),
            ("import os\nos._exit(3)", 5, "ended without an answer"),
            ("import matplotlib.pyplot as plt\nplt.subplots()", 5, "needs a title"),
            ("raise SystemExit", 5, "SystemExit"),
        ],
    )
    def test_failures_have_page_line_and_traceback(self, runner, code, line, message):
        text = f"---\n---\n# A\n```python\n{code}\n```\n"
        with pytest.raises(SiteError, match=rf"(?s)a/b\.md:{line}: a snippet failed.*{message}"):
            runner.outputs(Page.parse("a/b.md", text))

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("while True: pass", "page.md:6: .*over its time limit"),
            (
                "import signal, time\nsignal.signal(signal.SIGALRM, lambda *_: None)\n"
                "while True: time.sleep(1)",
                "page.md:5: .*could not be interrupted",
            ),
        ],
        ids=["python", "stubborn"],
    )
    def test_time_limit(self, runner, code, message):
        head = "---\ntimeout: 0.5\n---\n```python\n"
        first = "\n" if code.startswith("while") else ""
        with pytest.raises(SiteError, match=rf"(?s){message}"):
            runner.outputs(Page.parse("page.md", f"{head}{first}{code}\n```\n"))

    @pytest.mark.parametrize("limit", ["0", "-1", "soon", "true"])
    def test_bad_time_limit(self, limit):
        with pytest.raises(SiteError, match=r"page\.md: timeout must be a positive number"):
            time_limit(page(f"---\ntimeout: {limit}\n---\n"))

    def test_answers_are_kept_until_something_changes(self, tmp_path):
        root = tmp_path / "root"
        (root / "tiny").mkdir(parents=True)
        code = root / "tiny" / "__init__.py"
        code.write_text("from pathlib import Path\nVALUE = 1\n")
        data = root / "tiny" / "data.txt"
        data.write_text("a")
        other = root / "other.py"
        other.write_text("")
        results = root / "results"
        results.mkdir()
        runner = Runner(cache=tmp_path / "cache", root=root)
        found = page(
            """
            ```python
            import time, tiny
            print(tiny.VALUE, (tiny.Path(tiny.__file__).parent / "data.txt").read_text())
            print(len(list(tiny.Path(tiny.__file__).parents[1].joinpath("results").glob("*.json"))))
            print(time.time_ns())
            ```
            """
        )

        def run():
            return runner.outputs(found)[0].stdout.split()

        first = run()
        assert first[:2] == ["1", "a"]
        assert run() == first
        other.write_text("changed = True\n")  # not imported: no matter
        assert run() == first
        code.write_text("from pathlib import Path\nVALUE = 2\n")
        second = run()
        assert second[:2] == ["2", "a"]
        data.write_text("b")
        third = run()
        assert third[:2] == ["2", "b"]
        (results / "new.json").write_text("{}")  # a folder that the page lists
        assert run()[2] == "1"
        assert runner.outputs(found, fresh=True)[0].stdout.split() != third
        assert runner.cached(page("```python\nprint(2)\n```")) is None
        runner.close()

    def test_the_users_environment_does_not_reach_a_page(self, runner, monkeypatch, tmp_path):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
        monkeypatch.setenv("JAX_ENABLE_X64", "1")
        output = runner.outputs(
            page(
                """
                ```python
                import jax
                print(jax.config.jax_compilation_cache_dir, jax.config.jax_enable_x64)
                ```
                """
            )
        )
        assert output[0].stdout == f"{CACHE / 'jax'} False\n"

    def test_run_all_reports_every_failure(self):
        bad = [page(f"```python\nraise ValueError({i})\n```", f"p{i}.md") for i in range(2)]
        with pytest.raises(SiteError, match=r"(?s)p0.md:2.*p1.md:2"):
            run_all(bad, fresh=True, jobs=1)


class TestNotebooks:
    TEXT = """\
        ---
        tags: [x]
        ---
        # A page

        By $\\eqref{eq:p-one}$ and [`f`][mlnotes_jax.f], see [that](other.md#x).

        $$
        x \\label{eq:p-one}
        $$

        ```python
        a = 2
        ```

        !!! warning "Take care"

            Text in it.

            ```python
            b = a + 1
            ```

        ??? success "Solution"

            ```python
            assert b == 3
            ```

        After.

        ```py
        not run
        ```

        ## API

        ::: mlnotes_jax.foundations.losses
            options:
              x: y

        ## References

        A book.
        """

    @pytest.fixture
    def made(self, tmp_path):
        (tmp_path / "a.md").write_text(textwrap.dedent(self.TEXT))
        pages = Pages(tmp_path).refresh()
        assert notebooks.write(pages) == 1
        return nbformat.read(tmp_path / "assets/notebooks/a.ipynb", 4)

    def test_it_is_valid_and_its_cells_run_in_order(self, made):
        nbformat.validate(made)
        code = [cell.source for cell in made.cells if cell.cell_type == "code"]
        assert code == ["a = 2", "b = a + 1", "assert b == 3"]
        exec("\n".join(code), {})

    def test_text_is_plain_markdown(self, made):
        text = "\n\n".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
        assert "By (1) and `f`, see that." in text
        assert r"x\tag{1}" in text
        assert "**Take care**\n\nText in it." in text
        assert "\nAfter.\n\n```py\nnot run\n```" in text
        for left in ("!!!", "???", ":::", "## API", "label", "options"):
            assert left not in text
        assert "## References\n\nA book." in text

    def test_a_page_can_do_without(self, tmp_path):
        (tmp_path / "a.md").write_text("---\nnotebook: false\n---\n```python\n1\n```\n")
        assert notebooks.write(Pages(tmp_path)) == 0

    def test_notebooks_of_removed_pages_go(self, tmp_path, made):
        (tmp_path / "a.md").write_text("# No code\n")
        assert notebooks.write(Pages(tmp_path)) == 0
        assert not list(tmp_path.rglob("*.ipynb"))


class TestAssets:
    def test_only_woff2_fonts(self, tmp_path):
        assert assets.install_katex(tmp_path)
        assert not assets.install_katex(tmp_path)
        folder = tmp_path / "assets/katex"
        css = (folder / "katex.min.css").read_text()
        assert ".ttf" not in css
        assert css.count("url(") == len(list((folder / "fonts").glob("*.woff2"))) == 20
        with pytest.raises(SiteError, match=r"style sheet asks for \['x.png'\]"):
            assets.woff2_only("a{background:url(x.png)}")

    def test_inventories(self, tmp_path):
        assert inventories.write(tmp_path)
        assert not inventories.write(tmp_path)
        entries = {}
        for project in inventories.PROJECTS:
            data = (tmp_path / f"{project}.inv").read_bytes()
            body = zlib.decompress(data.split(b"\n", 4)[4]).decode()
            entries[project] = dict(
                (line.split()[0], line.split()[3]) for line in body.splitlines()
            )
        # As on the sites of these projects.
        expected = {
            ("jax", "jax.numpy.ndarray.at"): "_autosummary/$.html#$",
            ("jax", "jax.grad"): "_autosummary/$.html#$",
            ("jax", "jax.scipy.special.logsumexp"): "_autosummary/$.html#$",
            ("optax", "optax.adamw"): "api/optimizers.html#$",
            ("optax", "optax.apply_updates"): "api/apply_updates.html#$",
            ("optax", "optax.cosine_decay_schedule"): "api/optimizer_schedules.html#$",
            ("optax", "optax.losses.hinge_loss"): "api/losses.html#$",
            ("optax", "optax.squared_error"): "api/losses.html#optax.losses.squared_error",
            ("flax", "flax.nnx.Linear"): "api_reference/flax.nnx/nn/linear.html#$",
            ("flax", "flax.nnx.split"): "api_reference/flax.nnx/graph.html#$",
            ("numpy", "numpy.linalg.lstsq"): "reference/generated/$.html#$",
            ("python", "ValueError"): "library/exceptions.html#$",
            ("sklearn", "sklearn.svm.SVC"): "modules/generated/$.html#$",
        }
        for (project, name), uri in expected.items():
            written = entries[project][name].replace("$", name)
            assert written == uri.replace("$", name), name
        for name in ("jax.numpy.nosuch", "jax.config"):
            assert name not in entries["jax"]


class TestDocstrings:
    SOURCE = '''
from typing import Literal, NamedTuple
from jaxtyping import Array, Float
__all__ = ["LIMIT", "Model", "f"]
#: As much as
#: it may be.
LIMIT = 3
class Model(NamedTuple):
    """Fields."""
    w: Float[Array, " d"]
def f(x: Float[Array, "..."], kind: Literal["n"], *, y: "Model | None" = None) -> Float[Array, ""]:
    """Do.

    Example:
        >>> 1
        1
    """
'''

    @pytest.fixture
    def module(self, tmp_path):
        (tmp_path / "m.py").write_text(self.SOURCE)
        extensions = griffe.load_extensions(docstrings.SourceReader)
        return griffe.load("m", search_paths=[tmp_path], extensions=extensions)

    def test_shapes_keep_their_quotes(self, module):
        parameters = module["f"].parameters
        assert str(parameters["x"].annotation) == 'Float[Array, "..."]'
        assert str(module["f"].returns) == 'Float[Array, ""]'
        assert str(module["Model.w"].annotation) == 'Float[Array, " d"]'
        assert str(parameters["kind"].annotation) == "Literal['n']"
        assert str(parameters["y"].annotation) == "Model | None"

    def test_example_is_a_section(self, module):
        sections = module["f"].docstring.parse("google")
        assert [section.kind.value for section in sections] == ["text", "examples"]

    def test_constants_are_described_by_their_comment(self, module):
        assert module["LIMIT"].docstring.value == "As much as\nit may be."


class TestCheck:
    @pytest.fixture
    def built(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a/index.html").write_text('<h1 id="top">A</h1><a href="../#gone">x</a>')
        (tmp_path / "x.css").write_text("@import 'https://fonts.example/x.css';")
        (tmp_path / "index.html").write_text(
            """<link rel="stylesheet" href="x.css"><link rel="canonical" href="https://e.org/">
            <a href="a/#top">good</a><a href="a/#no">b</a><a href="no.md">c</a>
            <a href="#tiny.m.f">d</a>
            <img src="https://e.org/x.png"><p id="tiny.m"></p><p id="tiny.m.f"></p>
            <svg><use xlink:href="#lost"/></svg><a href="mailto:a@b.c">m</a>"""
        )
        return tmp_path

    def test_links(self, built):
        assert sorted(check.links(built)) == [
            "a/index.html: ../#gone: no such anchor",
            "index.html: #lost: no such anchor",
            "index.html: a/#no: no such anchor",
            "index.html: no.md leads nowhere",
        ]

    def test_requests(self, built):
        assert check.requests(built) == [
            "index.html: loads https://e.org/x.png",
            "x.css: loads https://fonts.example/x.css",
        ]

    def test_undocumented(self, built):
        package = built / "tiny"
        for path, text in {
            "m.py": '__all__ = ["f", "g"]',
            "_private.py": '__all__ = ["h"]',
            "demos/d.py": '__all__ = ["run"]',
            "__init__.py": "",
        }.items():
            (package / path).parent.mkdir(exist_ok=True, parents=True)
            (package / path).write_text(text)
        assert check.undocumented(built, package) == ["tiny.m.g is on no page"]

    def test_public_names_are_those_of_the_package(self):
        names = check.public_names()
        assert "mlnotes_jax.foundations.losses.mse" in names
        assert "mlnotes_jax.foundations.losses" in names
        assert not [name for name in names if re.search(r"\.(demos|cli)\b|\._", name)]


def test_the_cache_holds_what_is_documented(tmp_path):
    runner = Runner(cache=tmp_path)
    runner.outputs(page("```python\nprint(1)\n```"))
    runner.close()
    (file,) = tmp_path.glob("*.json")
    answer = json.loads(file.read_text())
    assert answer["outputs"] == [{"stdout": "1\n", "figures": []}]
    # The style of figures is part of every page.
    assert "mlnotes_jax/demos/figures.py" in answer["reads"]
    assert all((ROOT / name).exists() for name in answer["reads"])
    assert not [name for name in answer["reads"] if name.startswith((".", "tools/", "tests/"))]
