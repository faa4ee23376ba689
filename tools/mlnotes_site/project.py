"""Where things are, and how an error is reported."""

from pathlib import Path

import click

__all__ = ["CACHE", "DOCS", "ROOT", "SiteError"]

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
CACHE = ROOT / ".cache"


class SiteError(click.ClickException):
    """The site cannot be built; the message says where and why.

    MkDocs and Zensical both report a `ClickException` without a traceback and exit with 1.
    """
