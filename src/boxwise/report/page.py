"""Run folders to one offline HTML page: what was gained, how training went, what was run.

The page holds no script and loads nothing: styles, charts and pictures are all inside it. Everything read
from run folders is escaped.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from boxwise.engine.atomic import write_text
from boxwise.report import facts, sections
from boxwise.report.compare import over_seeds, pairs
from boxwise.report.read import read_runs


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Writes the page of `runs` (pretraining and fine-tuning folders, in the order to show); returns `out`.

    A run may still be going: what it has written so far is shown. Raises ValueError with one line for each
    folder that is missing or half-written; nothing is written then.
    """
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; name the page, such as {out / 'report.html'}")
    if out.suffix.lower() not in (
        ".html",
        ".htm",
    ):  # a slip of the hand must not cost a photo or a run's file
        raise ValueError(f"{out}: expected a name that ends in .html")
    records = read_runs(runs)
    found = pairs(records)
    body = "".join(
        [
            sections.claims(records, found, over_seeds(found)),
            sections.figures(records, found),
            sections.pictures(records),
            sections.curves(records),
            facts.settings(records),
            facts.facts(records),
        ]
    )
    title = ", ".join(record.name for record in records)
    source = f"{len(records)} run folder{'s' if len(records) > 1 else ''}"
    page = document("boxwise report", title, body, source=source)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    return out


def document(head: str, title: str, body: str, *, source: str) -> str:
    """A whole page around `body`, which is HTML already; `source` is what it was written from."""
    style = files("boxwise.report").joinpath("style.css").read_text(encoding="utf-8")
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>boxwise: {escape(title)}</title><style>{style}</style></head><body><main>"
        f"<header><h1>{escape(head)}</h1><p>{escape(title)}</p></header>{body}"
        f"<footer>Written {now} by boxwise from {escape(source)}. "
        "This page is complete in itself.</footer></main></body></html>\n"
    )
    # JSON may smuggle in half characters, which no encoding can hold.
    return page.encode("utf-8", "replace").decode("utf-8")
