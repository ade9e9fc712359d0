"""The figures of a comparison: each run's, each arm's over seeds, and what they come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from boxwise.engine.atomic import read_json
from boxwise.run.compare_arms import RANDOM
from boxwise.run.compare_plan import Cell, spoken
from boxwise.run.verdict import JUDGED, sentence, verdict
from boxwise.transfer.metrics import Kind, Metric, curves

Results = dict[str, Any]

SHOWN = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
    *("mask_AP", "mask_AP50", "mask_AP75", "mask_APs", "mask_APm", "mask_APl"),
    *("kp_AP", "kp_AP50", "kp_AP75", "gps_AP", "gpsm_AP", "mIoU"),
)
"""What a table shows of the figures that a detector has."""
CURVES: Mapping[Kind, tuple[str, str]] = {
    "bbox": ("by_iou", "iou.json"),
    "segm": ("mask_by_iou", "mask_iou.json"),
}
"""AP by the IoU from which a box, or a mask, counts as found: its name in results, and its file in a run folder."""


def collect(cells: Sequence[Cell]) -> Results:
    """What stands in results.json, from the runs that are finished."""
    measured = [cell for cell in cells if cell.state == "finished"]
    runs = [_run(cell) for cell in measured]
    known = [name for name in SHOWN if any(name in run["figures"] for run in runs)]
    judged = [name for name in JUDGED if name in known] or [_expected(cells)]
    arms = list(dict.fromkeys(cell.arm.name for cell in cells))
    shares = list(dict.fromkeys(cell.share.label for cell in cells))
    reference = RANDOM if RANDOM in arms else arms[0]
    return {
        "reference": reference,
        "metrics": judged,
        "arms": arms,
        "shares": [
            {"label": label, "words": spoken(label), "images": images}
            for label, images in dict.fromkeys((cell.share.label, cell.share.images) for cell in cells)
        ],
        "seeds": list(dict.fromkeys(cell.seed for cell in cells)),
        "missing": [
            {"arm": cell.arm.name, "share": cell.share.label, "seed": cell.seed, "state": cell.state}
            for cell in cells
            if cell.state != "finished"
        ],
        "table": [_row(runs, arm, share, known) for share in shares for arm in arms],
        "verdicts": [line for name in judged for line in _verdicts(runs, arms, shares, reference, name)],
        "runs": runs,
    }


def _expected(cells: Sequence[Cell]) -> str:
    """What verdicts will be about, while there is no figure yet."""
    return "mIoU" if "semantic" in cells[0].recipe.detector.kinds() else JUDGED[0]


def as_table(results: Results) -> str:
    """Verdicts first, then every share with its arms: mean and standard deviation over seeds."""
    figures = list(dict.fromkeys(name for row in results["table"] for name in row["figures"]))
    words = {share["label"]: share["words"] for share in results["shares"]}
    width = max(len("weights"), *(len(arm) for arm in results["arms"]))
    lines = [f"{'labels':<12}{'weights':<{width + 2}}{'seeds':>5}" + "".join(f"{n:>15}" for n in figures)]
    for row in results["table"]:
        held = [_figure(row["figures"].get(name)) for name in figures]
        start = f"{words[row['share']]:<12}{row['arm']:<{width + 2}}{row['seeds']:>5}"
        lines.append(start + "".join(f"{text:>15}" for text in held))
    against = f"against {results['reference']}, with 95 % intervals over {_seeds(len(results['seeds']))}:"
    left = [f"{len(results['missing'])} runs without figures"] if results["missing"] else []
    return "\n".join([*lines, "", against, *(f"  {line}" for line in sentences(results)), *left])


def sentences(results: Results) -> list[str]:
    """The verdicts as text, a line for each arm and figure."""
    return [line["text"] for line in results["verdicts"]]


def ap_by_iou(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind, *, metric: Metric
) -> dict[str, float]:
    """AP in 0..100 at each IoU from 0.50 to 0.95; -1 where the truth holds no object."""
    found = curves(truth, results, kind, metric=metric)
    return {f"{iou:.2f}": ap for iou, ap in zip(found["iou"], found["AP"], strict=True)}


def _run(cell: Cell) -> Results:
    held = read_json(cell.folder / "results.json")
    drawn = {name: cell.folder / file for name, file in CURVES.values()}
    return {
        "arm": cell.arm.name,
        "share": cell.share.label,
        "seed": cell.seed,
        "images": cell.share.images,
        "seconds": held.get("seconds"),
        "figures": {name: value for name, value in held.items() if name not in ("images", "seconds")},
        **{name: read_json(file) if file.is_file() else {} for name, file in drawn.items()},
    }


def _row(runs: Sequence[Results], arm: str, share: str, known: Sequence[str]) -> Results:
    mine = [run for run in runs if (run["arm"], run["share"]) == (arm, share)]
    figures: dict[str, Any] = {}
    for name in known:
        values = [run["figures"][name] for run in mine if run["figures"].get(name, -1) >= 0]
        if values:
            figures[name] = {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None}
    curves = {name: _mean_curve(mine, name) for name, _ in CURVES.values()}
    return {"share": share, "arm": arm, "seeds": len(mine), "figures": figures, **curves}


def _mean_curve(runs: Sequence[Results], name: str) -> dict[str, float]:
    curves = [run[name] for run in runs if run[name]]
    if not curves:
        return {}
    return {iou: fmean(values) for iou in curves[0] if min(values := [c[iou] for c in curves]) >= 0}


def _verdicts(
    runs: Sequence[Results], arms: Sequence[str], shares: Sequence[str], reference: str, metric: str
) -> Iterator[Results]:
    """One entry an arm, with one verdict of `metric` a share."""

    def by_seed(arm: str, share: str) -> dict[int, float]:
        mine = [run for run in runs if (run["arm"], run["share"]) == (arm, share)]
        return {run["seed"]: run["figures"][metric] for run in mine if run["figures"].get(metric, -1) >= 0}

    for arm in arms:
        if arm == reference:
            continue
        found = [
            verdict(arm, reference, spoken(s), by_seed(arm, s), by_seed(reference, s), metric=metric)
            for s in shares
        ]
        yield {
            "arm": arm,
            "metric": metric,
            "text": sentence(found),
            "shares": [
                {
                    "share": share,
                    "kind": v.kind,
                    "pairs": v.pairs,
                    "gain": v.gain,
                    "margin": v.margin,
                    "text": v.words,
                }
                for share, v in zip(shares, found, strict=True)
            ],
        }


def _figure(held: Mapping[str, float] | None) -> str:
    if held is None:
        return "-"
    return f"{held['mean']:.2f}" + ("" if held["sd"] is None else f" +- {held['sd']:.2f}")


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count != 1 else ''}"
