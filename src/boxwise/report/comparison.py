"""The folder of a comparison to one offline HTML page: verdicts, curves, figures, and what was locked.

Like the report's page it holds no script, loads nothing, and escapes everything that it reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from boxwise.engine.atomic import write_text
from boxwise.report.facts import NONE, table
from boxwise.report.page import document
from boxwise.report.spread_chart import Arm, Point, spread_chart

PAGE = "compare.html"
LOOK = {"better": "up", "worse": "down"}
"""The pill of a verdict; all others are grey."""
CURVES = (("by_iou", "AP", "box"), ("mask_by_iou", "mask_AP", "mask"))
"""Where runs have their curves by IoU, of what figure, and of what things."""


def write_comparison(folder: Path) -> Path:
    """Writes `folder`/compare.html from the results that `boxwise compare` left there; returns its path.

    Raises ValueError where there are none.
    """
    folder = Path(folder)
    file = folder / "results.json"
    if not file.is_file() or not (folder / "compare.yaml").is_file():
        raise ValueError(f"{folder}: holds no results of a comparison; name the --out of boxwise compare")
    results = json.loads(file.read_text(encoding="utf-8"))
    lock = (folder / "compare.yaml").read_text(encoding="utf-8")
    charts = "".join(_by_share(results, metric) for metric in results["metrics"])
    body = "".join(
        [
            f'<section class="lead">{_claims(results)}{charts}</section>',
            _figures(results),
            _by_iou(results),
            "<section><h2>Locked for all runs</h2>"
            f'<div class="card"><pre>{escape(lock)}</pre></div></section>',
        ]
    )
    title = f"{', '.join(results['arms'])}: {', '.join(results['metrics'])}"
    runs = len(results["runs"])
    source = f"{runs} finished run{'s' if runs != 1 else ''}"
    write_text(folder / PAGE, document("boxwise comparison", title, body, source=source))
    return folder / PAGE


def _claims(results: Mapping[str, Any]) -> str:
    """One card with a verdict for each arm and share."""
    parts = []
    for line in results["verdicts"]:
        items = "".join(
            f'<li><span class="pill {LOOK.get(v["kind"], "")}">{escape(v["kind"])}</span> '
            f"{escape(v['text'])}</li>"
            for v in line["shares"]
        )
        of = f": {line['metric']}" if len(results["metrics"]) > 1 else ""
        parts.append(f"<h3>{escape(line['arm'] + of)}</h3><ul>{items}</ul>")
    seeds = len(results["seeds"])
    note = (
        f"Against {escape(results['reference'])}. Means of differences paired over "
        f"{seeds} seed{'s' if seeds != 1 else ''}, with 95 % intervals of Student's t."
    )
    return f'<div class="card claim">{"".join(parts)}<p>{note}{_missing(results)}</p></div>'


def _missing(results: Mapping[str, Any]) -> str:
    count = len(results["missing"])
    return f" {count} run{'s are' if count != 1 else ' is'} without figures." if count else ""


def _by_share(results: Mapping[str, Any], metric: str) -> str:
    """One figure against labelled images, on a scale on which ten times as many are always as far."""
    places = [(math.log10(share["images"]), share["words"]) for share in results["shares"]]
    arms = [
        Arm(
            name,
            tuple(
                Point(at, values)
                for (at, _), share in zip(places, results["shares"], strict=True)
                if (values := _values(results, name, share["label"], metric))
            ),
        )
        for name in results["arms"]
    ]
    return spread_chart(
        f"{metric} against labels",
        arms,
        places,
        axis="labelled images",
        note="line: mean over seeds; band: least to greatest; dots: single runs",
    )


def _values(results: Mapping[str, Any], arm: str, share: str, metric: str) -> tuple[float, ...]:
    mine = [r["figures"].get(metric, -1) for r in results["runs"] if (r["arm"], r["share"]) == (arm, share)]
    return tuple(value for value in mine if value >= 0)


def _by_iou(results: Mapping[str, Any]) -> str:
    """For each share, what each arm gains over the reference at each IoU, seed by seed."""
    charts = "".join(_gains_by_iou(results, share, *one) for one in CURVES for share in results["shares"])
    if not charts:
        return ""
    return f'<section><h2>Gain by IoU</h2><div class="charts">{charts}</div></section>'


def _gains_by_iou(
    results: Mapping[str, Any], share: Mapping[str, Any], curve: str, metric: str, thing: str
) -> str:
    curves = {
        (run["arm"], run["seed"]): run[curve]
        for run in results["runs"]
        if run["share"] == share["label"] and run.get(curve)
    }
    reference = results["reference"]
    arms, colours = [], []
    for colour, name in enumerate(results["arms"]):
        pairs = [
            (curves[name, seed], curves[reference, seed])
            for seed in results["seeds"]
            if name != reference and {(name, seed), (reference, seed)} <= curves.keys()
        ]
        if points := _differences(pairs):
            arms.append(Arm(name, points))
            colours.append(colour)
    places = [(iou / 100, f".{iou}") for iou in range(50, 100, 10)]
    return spread_chart(
        f"{share['words']}: {metric} over {reference}",
        arms,
        places,
        axis=f"IoU from which a {thing} counts",
        colours=colours,
    )


def _differences(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> tuple[Point, ...]:
    points = []
    for iou in sorted({iou for pair in pairs for iou in pair[0]}):
        both = [(ours[iou], theirs[iou]) for ours, theirs in pairs if min(ours[iou], theirs[iou]) >= 0]
        if both:
            points.append(Point(float(iou), tuple(a - b for a, b in both)))
    return tuple(points)


def _figures(results: Mapping[str, Any]) -> str:
    """Means and standard deviations over seeds, the best mean of a share in bold."""
    names = list(dict.fromkeys(name for row in results["table"] for name in row["figures"]))
    words = {share["label"]: share["words"] for share in results["shares"]}
    rows = []
    for row in results["table"]:
        alike = [r["figures"] for r in results["table"] if r["share"] == row["share"]]
        best = {n: max(f[n]["mean"] for f in alike if n in f) for n in names if any(n in f for f in alike)}
        cells = [_figure(row["figures"].get(name), best.get(name)) for name in names]
        rows.append([escape(words[row["share"]]), escape(row["arm"]), str(row["seeds"]), *cells])
    head = ["labels", "weights", "seeds", *map(escape, names)]
    return (
        f'<section><h2>Figures</h2><div class="card wide">{table(head, rows, words=2)}'
        f'<span class="note">Mean and standard deviation over seeds, 0 to 100.</span>{_runs(results)}'
        "</div></section>"
    )


def _figure(held: Mapping[str, float] | None, best: float | None) -> str:
    if held is None:
        return NONE
    mean = f"{held['mean']:.2f}"
    mean = f"<b>{mean}</b>" if held["mean"] == best else mean
    return mean if held["sd"] is None else f"{mean} &plusmn; {held['sd']:.2f}"


def _runs(results: Mapping[str, Any]) -> str:
    """Every run with its figures, behind one line."""
    names = list(dict.fromkeys(name for row in results["table"] for name in row["figures"]))
    words = {share["label"]: share["words"] for share in results["shares"]}
    rows = [
        [
            escape(words[run["share"]]),
            escape(run["arm"]),
            str(run["seed"]),
            str(run["images"]),
            *(_plain(run["figures"].get(name)) for name in names),
        ]
        for run in results["runs"]
    ]
    rows += [
        [escape(words[lost["share"]]), escape(lost["arm"]), str(lost["seed"]), escape(lost["state"])]
        + [NONE] * len(names)
        for lost in results["missing"]
    ]
    head = ["labels", "weights", "seed", "images", *map(escape, names)]
    return f"<details><summary>All {len(rows)} runs</summary>{table(head, rows, words=2)}</details>"


def _plain(value: float | None) -> str:
    return NONE if value is None or value < 0 else f"{value:.2f}"
