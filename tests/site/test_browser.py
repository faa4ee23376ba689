"""The built site in Chromium: every page, search, dark mode, accessibility."""

import functools
import http.server
import importlib.util
import os
import shutil
import threading
from pathlib import Path

import pytest
from mlnotes_site import assets
from mlnotes_site.pages import Pages

pytestmark = pytest.mark.site

# No sandbox in a container; no request of the browser's own; no name resolves but this machine's.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


def _url(path: str) -> str:
    return path.removesuffix("index.md").replace(".md", "/")


SCHEME = "document.body.getAttribute('data-md-color-scheme')"

#: Pixels that do not fit. Side bars slide to their places, which takes a busy machine a while.
OVERFLOW = """async () => {
    const excess = () => document.documentElement.scrollWidth - innerWidth;
    for (let tries = 0; tries < 60 && excess() > 0; tries++) {
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
    return excess();
}"""

#: Displayed equations that do not fit beside the side bars.
WIDE = """() => [...document.querySelectorAll("article div.arithmatex")]
    .filter((box) => box.scrollWidth > box.clientWidth + 1)
    .map((box) => box.textContent.slice(0, 80))"""

#: The rules that page content breaks, with the first elements that break them.
AXE = """async (rules) => {
    const options = {resultTypes: ["violations"], ...(rules && {runOnly: rules})};
    const {violations} = await axe.run("article", options);
    const explain = (node) => `${node.html.slice(0, 200)} ${node.failureSummary}`;
    return violations
        .filter((rule) => ["serious", "critical"].includes(rule.impact))
        .map((rule) => [rule.id, ...rule.nodes.slice(0, 3).map(explain)].join(" | "));
}"""

#: A formula, a coloured word of code and a picture are looked at once for each kind on a page:
#: axe takes half a minute on a page of 40 000 elements, nearly all of them these.
STRIP = """() => {
    const seen = new Set();
    const again = (kind) => seen.has(kind) || !seen.add(kind);
    for (const word of document.querySelectorAll("article code span")) {
        if (again(word.className)) word.replaceWith(...word.childNodes);
    }
    for (const formula of document.querySelectorAll("article .katex")) {
        if (again(formula.parentElement.className)) formula.replaceWith("x");
    }
    for (const part of document.querySelectorAll("article svg > :not(title, desc)")) part.remove();
}"""

PAGES = sorted(_url(page.path) for page in Pages().refresh())


class _Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def base(site):
    handler = functools.partial(_Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    missing = [
        name
        for name, found in [
            ("Playwright (the extra `test`)", importlib.util.find_spec("playwright")),
            ("Chromium (Debian: apt-get install chromium)", program),
        ]
        if not found
    ]
    if missing:
        reason = f"not installed: {', '.join(missing)}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, base):
    """Open a page; at the end, nothing may have gone wrong on any."""
    contexts = []
    problems = []

    def watch(page):
        page.on("console", lambda m: m.type in {"error", "warning"} and problems.append(m.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        page.on("response", lambda r: r.status >= 400 and problems.append(f"{r.status} {r.url}"))
        page.on(
            "request",
            lambda request: (
                request.url.startswith((base, "data:", "blob:"))
                or problems.append(f"external: {request.url}")
            ),
        )

    def open_(path, width=1300, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        watch(page)
        page.goto(base + path, wait_until="load")
        page.evaluate("document.fonts.ready")
        return page

    yield open_
    found = list(problems)  # before closing: what a page still loads then, it need not have
    for context in contexts:
        context.close()
    assert found == []


@pytest.mark.parametrize("path", PAGES)
def test_page_fits_and_is_accessible(open_page, path):
    page = open_page(path)
    assert page.locator("article h1").count() == 1
    for width in (390, 1300):
        page.set_viewport_size({"width": width, "height": 900})
        overflow = page.evaluate(OVERFLOW)
        assert overflow <= 0, f"{overflow} px too wide at {width}"
    assert page.evaluate(WIDE) == []
    page.evaluate(STRIP)
    page.evaluate(Path(assets.axe_script()).read_text(encoding="utf-8"))
    for scheme, rules in {"light": None, "dark": ["color-contrast", "link-in-text-block"]}.items():
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(f"{SCHEME} === '{'slate' if scheme == 'dark' else 'default'}'")
        found = page.evaluate(AXE, rules)
        assert found == [], f"{scheme}: {found}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [("cross-entropy", "losses"), ("损失函数", "losses"), ("huber", "losses")],
)
def test_search(open_page, words, expected):
    page = open_page("")
    page.keyboard.press("/")
    page.locator("[data-md-component=search-query]:focus").wait_for()
    page.keyboard.type(words)
    page.keyboard.press("End")  # the theme waits for a key; typed Chinese sends none
    result = page.locator(f".md-search-result__link[href*='{expected}']").first
    result.wait_for(timeout=10_000)


def test_colours_follow_the_system_and_the_reader(open_page):
    page = open_page("", scheme="dark")
    assert page.evaluate(SCHEME) == "slate"
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"{SCHEME} === 'default'")
    ink = page.evaluate("getComputedStyle(document.body).color")
    for _ in range(2):  # the system's -> light -> dark
        page.locator("label.md-header__button[for^=__palette]:visible").click()
    page.wait_for_function(f"{SCHEME} === 'slate'")
    assert page.evaluate("getComputedStyle(document.body).color") != ink
    page.wait_for_load_state("networkidle")  # a reload would cut off what still loads
    page.reload()
    assert page.evaluate(SCHEME) == "slate"  # remembered


def test_figures_take_the_colour_of_the_text(open_page):
    path = next(_url(page.path) for page in Pages().refresh() if "plot(" in page.body)
    page = open_page(path)
    colour = "getComputedStyle(document.querySelector('.snippet-figure')).color"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{colour} !== '{light}'")


def test_code_has_a_copy_button(open_page):
    page = open_page("")
    code = page.locator("article .highlight pre").first
    code.hover()
    assert page.locator("article .highlight button, article .highlight .md-clipboard").count() > 0


def test_home_fits_one_screen(open_page):
    page = open_page("")
    bottom = page.evaluate("document.querySelector('article').getBoundingClientRect().bottom")
    assert bottom <= 900
