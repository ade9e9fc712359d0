"""The parts of the report that state what was run: settings that differ, and each run's facts."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import yaml

from boxwise.report.compare import differences
from boxwise.report.read import RunRecord, flat, number

NONE = "&ndash;"
KINDS = {"pretrain": "Pretraining", "finetune": "Fine-tuning", "probe": "Probes"}
STATUS = ("running", "finished", "interrupted", "failed", "diverged")
LONGEST = 300
"""Characters of one value before it is cut."""


def settings(runs: Sequence[RunRecord]) -> str:
    """What differs between the resolved settings of the runs of one kind."""
    parts = []
    for kind in dict.fromkeys(run.kind for run in runs):
        alike = [run for run in runs if run.kind == kind and run.config]
        if len(alike) > 1:
            parts.append(
                f"<h2>{escape(KINDS.get(kind, kind))}: settings that differ</h2>{_differences(alike)}"
            )
    return f"<section>{''.join(parts)}</section>" if parts else ""


def _differences(runs: Sequence[RunRecord]) -> str:
    rows = [[f"<code>{escape(key)}</code>", *map(leaf, values)] for key, values in differences(runs)]
    if not rows:
        return '<div class="card">None: all settings are the same.</div>'
    head = ["setting", *(escape(run.name) for run in runs)]
    return f'<div class="card wide">{table(head, rows, words=len(head))}</div>'


def facts(runs: Sequence[RunRecord]) -> str:
    """What was run, when, on what, with which versions and data."""
    return f'<section><h2>Runs</h2><div class="facts">{"".join(map(_card, runs))}</div></section>'


def _card(run: RunRecord) -> str:
    status = str(run.facts.get("status", "unknown"))
    look = status if status in STATUS else ""
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{v}</dd>" for k, v in _rows(run) if v not in ("", NONE))
    command = run.facts.get("command")
    parts = [
        f'<div class="head"><h3>{escape(run.name)}</h3>'
        f'<span class="pill {look}">{escape(status)}</span></div>',
        f"<dl>{rows}</dl>",
        f"<pre>{escape(_shell(command))}</pre>" if command else "",
    ]
    if run.config:
        text = yaml.safe_dump(run.config, sort_keys=False, default_flow_style=None, width=100)
        parts.append(f"<details><summary>All settings</summary><pre>{escape(text)}</pre></details>")
    return f'<div class="card">{"".join(parts)}</div>'


def _rows(run: RunRecord) -> Iterator[tuple[str, str]]:
    """Names and values, the values escaped."""
    known = run.facts
    yield "error", leaf(known.get("error", ...))
    yield "kind", escape(run.kind)
    yield "recipe", leaf(known.get("recipe", run.config.get("name", ...)))
    if run.kind != "pretrain":
        yield "weights", escape(run.weights or "random")
    yield "seed", leaf(known.get("seed", ...))
    yield "started", leaf(known.get("started", ...))
    yield "took", _duration(known.get("seconds"))
    data = {key: value for key, value in run.data.items() if not key.startswith("weights")}
    for prefix, part in (("data", data), ("", known.get("hardware", {}))):
        for key, value in flat(part):
            yield f"{prefix} {key}".strip().replace("_", " "), leaf(value)
    yield "versions", escape(", ".join(f"{k} {_plain(v)}" for k, v in flat(known.get("versions", {})) if k))
    yield "folder", f"<code>{escape(str(run.path))}</code>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> str:
    """A table of cells that are HTML already; the first `words` columns hold text, the others numbers."""
    looks = ["" if i < words else ' class="n"' for i in range(len(head))]
    top = "".join(f"<th{look}>{name}</th>" for look, name in zip(looks, head, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{look}>{cell}</td>' for look, cell in zip(looks, row, strict=True))}</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def leaf(value: Any) -> str:
    """Any value of JSON or YAML as escaped text; a long one is cut. Ellipsis stands for none."""
    if value is ... or value == {}:
        return NONE
    text = _plain(value)
    return escape(text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text)} characters)")


def amount(value: Any) -> str:
    """A number without decimals, in groups of three."""
    known = number(value)
    return NONE if known is None else f"{known:,.0f}".replace(",", "\u202f")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _shell(command: Any) -> str:
    return shlex.join(map(str, command)) if isinstance(command, list) else str(command)


def _duration(value: Any) -> str:
    seconds = number(value)
    if seconds is None or seconds < 0:
        return NONE
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
