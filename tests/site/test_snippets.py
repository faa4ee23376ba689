"""The Python blocks of every page run, through the runner and the cache of the site's build.

`FRESH=1 pytest tests/site/test_snippets.py` runs them even if their answers are known.
"""

import contextlib
import os

import pytest
from mlnotes_site.pages import Pages
from mlnotes_site.project import SiteError
from mlnotes_site.snippets import Runner, run_all

pytestmark = pytest.mark.site

PAGES = [page for page in Pages().refresh() if page.snippets]


@pytest.fixture(scope="module")
def runner(one_at_a_time):
    # All pages that are not known, on all processors; a page that fails says so in its own test.
    with one_at_a_time, contextlib.suppress(SiteError):
        run_all(PAGES)
    runner = Runner()
    yield runner
    runner.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_page_runs(page, runner):
    outputs = runner.outputs(page, fresh=bool(os.environ.get("FRESH")))
    assert len(outputs) == len(page.snippets)
