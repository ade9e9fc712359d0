"""The parts of the report that show results: run records to HTML, empty where there is nothing to show."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from statistics import fmean

from boxwise.report.charts import Line, bar_chart, line_chart
from boxwise.report.compare import Pair, Series, measured
from boxwise.report.facts import KINDS, NONE, amount, leaf, table
from boxwise.report.read import FIGURES, MAIN, Picture, RunRecord

BOXES = ("AP", "AP50", "AP75")
OTHERS = ("mask_AP", "kp_AP", "gps_AP", "gpsm_AP", "mIoU", "top1", "top5", "mAP")
"""Shown where a run has them."""

CHARTS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("ssl/feature_std",), "Spread of embeddings", "1 is even over the sphere, 0 is collapse"),
    (("ssl/effective_rank",), "Effective rank of embeddings", "1 is collapse"),
    (("ssl/pos_sim", "ssl/neg_sim"), "Similarity", "of matched regions (solid) and of others (dashed)"),
    (("train/lr",), "Learning rate", ""),
    (("train/grad_norm",), "Gradient norm", ""),
    (("train/ema_momentum",), "Momentum of the teacher", ""),
    (("time/images_per_s",), "Images per second", ""),
    (("time/data_wait",), "Share of time waiting for data", ""),
)
"""Keys drawn together, the title, and what a reader needs to know. The losses stand before all."""

FROM_ZERO = {"train/lr", "time/images_per_s", "time/data_wait", "ssl/feature_std"}


def claims(runs: Sequence[RunRecord], pairs: Sequence[Pair], series: Sequence[Series]) -> str:
    """What pretraining gained, large: over seeds where there are several, else pair by pair; and the bars."""
    shown = measured(runs)
    if not shown:
        return ""
    if series:
        cards = [_series_claim(s) for s in series if s.values(s.main)[0]]
    else:
        cards = [_pair_claim(p) for p in pairs if p.gain() is not None]
    keys = _columns(shown)
    rows = [(run.name, i, [run.figure(k) for k in keys]) for i, run in enumerate(shown)]
    bars = bar_chart(f"{_words(shown)}, 0 to 100", keys, rows)
    return f'<section class="lead">{"".join(cards)}{bars}</section>'


def _columns(runs: Sequence[RunRecord]) -> list[str]:
    """The figures that at least one run has; those of boxes together."""
    known = {key for key in (*BOXES, *OTHERS) if any(run.figure(key) is not None for run in runs)}
    return [*(BOXES if known & {*BOXES} else ()), *(key for key in OTHERS if key in known)]


def _words(runs: Sequence[RunRecord]) -> str:
    """What the runs are judged by."""
    return " / ".join(words for key, words in MAIN.items() if key in {run.main for run in runs})


def _pair_claim(pair: Pair) -> str:
    before, after = pair.random.figure(pair.main) or 0.0, pair.pretrained.figure(pair.main) or 0.0
    others = (key for key in _columns([pair.random]) if key != pair.main)
    rest = [f"{_signed(gain)} {key}" for key in others if (gain := pair.gain(key)) is not None]
    names = f"{escape(pair.pretrained.name)} against {escape(pair.random.name)}"
    text = f"{names}: same settings, data and seed{'; ' if rest else ''}{' and '.join(rest)}."
    return _claim(pair, before, after, text)


def _series_claim(series: Series) -> str:
    before, after = series.values(series.main)
    spans = [f"{min(v):.1f} to {max(v):.1f}" for v in (before, after)]
    apart = "the ranges are apart" if min(after) > max(before) else "the ranges overlap"
    text = f"Means over {len(before)} seeds. Random {spans[0]}, pretrained {spans[1]}: {apart}."
    return _claim(series.pairs[0], fmean(before), fmean(after), text)


def _claim(pair: Pair, before: float, after: float, text: str) -> str:
    judged = "probe" if pair.random.kind == "probe" else "detector"
    return (
        f'<div class="card claim"><h3>{MAIN[pair.main]} of the {judged}</h3><div class="arms">'
        f'<span class="from">{before:.1f}<small>random weights</small></span>'
        f'<span class="arrow">&rarr;</span><span class="to">{after:.1f}<small>pretrained</small></span>'
        f"{_pill(after - before)}</div><p>{text}</p></div>"
    )


def figures(runs: Sequence[RunRecord], pairs: Sequence[Pair]) -> str:
    """The table of figures, with the gain of every run that has a random twin, and all of COCO's."""
    shown = measured(runs)
    if not shown:
        return ""
    gains = {p.pretrained.path: p.gain() for p in pairs}
    keys = _columns(shown)
    best = {k: max(r.figure(k) or 0.0 for r in shown) if len(shown) > 1 else -1.0 for k in (*FIGURES, *keys)}
    rows, rest = [], []
    for run in shown:
        gain = gains.get(run.path)
        rows.append(
            [
                escape(run.name),
                escape(run.weights or "random"),
                leaf(run.seed),
                *(_figure(run, k, best[k]) for k in keys),
                NONE if gain is None else _pill(gain),
                *(amount(run.results.get(k)) for k in ("images", "seconds")),
            ]
        )
        if run.main == "AP":
            rest.append([escape(run.name), *(_figure(run, k, best[k]) for k in FIGURES)])
    gained = "gain in " + " or ".join(key for key in MAIN if key in {run.main for run in shown})
    main = table(["run", "weights", "seed", *keys, gained, "images", "seconds"], rows, words=2)
    twelve = table(["run", *FIGURES], rest, words=1)
    more = f"<details><summary>All twelve COCO figures</summary>{twelve}</details>" if rest else ""
    asked = any(run.kind == "probe" for run in shown)
    title = "Figures" if asked else "Detection"
    return f'<section><h2>{title}</h2><div class="card wide">{main}{more}</div></section>'


def _figure(run: RunRecord, key: str, best: float) -> str:
    value = run.figure(key)
    if value is None:
        return NONE
    return f"<b>{value:.2f}</b>" if value == best else f"{value:.2f}"


def _pill(gain: float) -> str:
    look = "up" if gain > 0.05 else "down" if gain < -0.05 else ""
    return f'<span class="pill {look}">{_signed(gain)}</span>'


def _signed(gain: float) -> str:
    """What rounds to nothing has no sign."""
    return f"{gain:+.1f}" if round(abs(gain), 1) > 0 else "0.0"


def pictures(runs: Sequence[RunRecord]) -> str:
    """Every picture of figures/, inside the page; those of one name side by side."""
    names = dict.fromkeys(picture.name for run in runs for picture in run.pictures)
    rows = ["".join(_picture(r, p) for r in runs for p in r.pictures if p.name == name) for name in names]
    shown = "".join(f'<div class="pictures">{row}</div>' for row in rows)
    return f"<section><h2>Pictures</h2>{shown}</section>" if rows else ""


def _picture(run: RunRecord, picture: Picture) -> str:
    known = {"views": "Views with their matched boxes", "detections": "Detections"}
    title = escape(known.get(picture.name, picture.name.replace("_", " ")))
    name, data = escape(run.name), base64.b64encode(picture.content).decode()
    return (
        f'<figure class="picture"><figcaption>{title}<span class="note">{name}</span></figcaption>'
        f'<img alt="{title}, {name}" src="data:{picture.kind};base64,{data}"></figure>'
    )


def curves(runs: Sequence[RunRecord]) -> str:
    """One section for each kind of run; runs of a kind share the charts, a colour each."""
    kinds = dict.fromkeys(run.kind for run in runs)
    return "".join(_curves_of(kind, [run for run in runs if run.kind == kind]) for kind in kinds)


def _curves_of(kind: str, runs: Sequence[RunRecord]) -> str:
    silent = ", ".join(run.name for run in runs if not run.curves)
    note = f'<p class="empty">No figures written yet: {escape(silent)}.</p>' if silent else ""
    charts = "".join(_chart(runs, keys, title, hint) for keys, title, hint in _listed(runs))
    return (
        f'<section><h2>{escape(KINDS.get(kind, kind))}</h2>{note}<div class="charts">{charts}</div></section>'
    )


def _listed(runs: Sequence[RunRecord]) -> list[tuple[tuple[str, ...], str, str]]:
    """The loss and its terms, the charts that every run has, and whatever else a run recorded."""
    known = {key for keys, _, _ in CHARTS for key in keys}
    found = sorted({key for run in runs for key in run.curves} - known)
    own = {key: ((key,), key.removeprefix("train/").replace("_", " ").capitalize(), "") for key in found}
    first = [chart for key, chart in own.items() if key.startswith("train/loss")]
    return [*first, *CHARTS, *(chart for chart in own.values() if chart not in first)]


def _chart(runs: Sequence[RunRecord], keys: Sequence[str], title: str, note: str) -> str:
    lines = [
        Line(
            f"{run.name} {key.rpartition('/')[2]}" if len(keys) > 1 else run.name,
            run.curves[key],
            colour,
            dash,
        )
        for colour, run in enumerate(runs)
        for dash, key in enumerate(keys)
        if key in run.curves
    ]
    return line_chart(title, lines, note=note, zero=not FROM_ZERO.isdisjoint(keys)) if lines else ""
