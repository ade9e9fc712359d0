"""The page of a comparison: true to its results, safe with what they hold, complete in one file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from test_page import Reader

from boxwise.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from boxwise.report.comparison import write_comparison
from boxwise.report.spread_chart import Arm, Point, spread_chart
from scripts import script

IOUS = [f"{n / 100:.2f}" for n in range(50, 100, 5)]
APS = {
    "random": {"0.1": [10.0, 12.0, 11.0], "1.0": [30.0, 31.0]},
    "scrl": {"0.1": [14.0, 15.5, 15.0], "1.0": [30.5, 31.0]},
}


def made(folder: Path, *, labels: tuple[str, ...] = ("0.1", "1.0"), **more: Any) -> Path:
    """What a comparison of two arms leaves: three seeds at 10 %, two of three at 100 %."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = [
        {
            "arm": arm,
            "share": share,
            "seed": seed,
            "images": 100 if share == "0.1" else 1000,
            "figures": {"AP": ap, "AP50": 2 * ap, "APs": -1.0},
            "by_iou": {iou: ap + (1 - float(iou)) * (20 if arm == "scrl" else 10) for iou in IOUS},
        }
        for arm, shares in APS.items()
        for share, aps in shares.items()
        if share in labels
        for seed, ap in enumerate(aps)
    ]
    table = [
        {
            "share": share,
            "arm": arm,
            "seeds": len(APS[arm][share]),
            "figures": {"AP": {"mean": sum(APS[arm][share]) / len(APS[arm][share]), "sd": 0.75}},
        }
        for share in labels
        for arm in APS
    ]
    verdicts = [
        {"share": "0.1", "kind": "better", "text": "+3.8 +- 1.0 AP at 10 %"},
        {"share": "1.0", "kind": "same", "text": "no difference at 100 % (+0.3 +- 0.6 AP)"},
    ]
    results = {
        "reference": "random",
        "metrics": ["AP"],
        "arms": [*APS],
        "shares": [
            {
                "label": label,
                "words": f"{float(label):.0%}".replace("%", " %"),
                "images": int(1000 * float(label)),
            }
            for label in labels
        ],
        "seeds": [0, 1, 2],
        "missing": [{"arm": arm, "share": "1.0", "seed": 2, "state": "open"} for arm in APS],
        "table": table,
        "verdicts": [{"arm": "scrl", "metric": "AP", "text": "", "shares": verdicts}],
        "runs": runs,
    }
    (folder / "results.json").write_text(json.dumps(results | more))
    (folder / "compare.yaml").write_text("recipe: {name: faster_rcnn_fpn}\n")
    return folder


def test_verdicts_figures_and_lock_stand_on_the_page(tmp_path: Path) -> None:
    """Breaks when a verdict, a mean, a run without figures or the lock is left out."""
    page = write_comparison(made(tmp_path))
    assert page == tmp_path / "compare.html"
    text = Reader(page.read_text()).text
    for words in (
        "better +3.8 +- 1.0 AP at 10 %",
        "same no difference at 100 % (+0.3 +- 0.6 AP)",
        "2 runs are without figures",
        "10 % scrl 3 14.83",
        "100 % random 2 30.50",
        "All 12 runs",
        "recipe: {name: faster_rcnn_fpn}",
        "AP against labels",
        "10 %: AP over random",
    ):
        assert words in text, words
    assert "<b>14.83</b>" in page.read_text() and "<b>11.00</b>" not in page.read_text()


def test_every_figure_that_is_judged_has_its_chart_and_verdicts(tmp_path: Path) -> None:
    """Breaks when masks are measured and only boxes are shown."""
    lines = [{"arm": "scrl", "metric": name, "text": "", "shares": []} for name in ("AP", "AP50")]
    text = Reader(write_comparison(made(tmp_path, metrics=["AP", "AP50"], verdicts=lines)).read_text()).text
    assert "AP50 against labels" in text and "scrl: AP50" in text


def test_the_page_loads_nothing_and_escapes_all_names(tmp_path: Path) -> None:
    """Breaks when a folder's name becomes a tag, or a page calls out."""
    trick = "<script>alert(1)</script>"
    text = (made(tmp_path) / "results.json").read_text().replace("scrl", trick.replace("/", "\\/"))
    (tmp_path / "results.json").write_text(text)
    (tmp_path / "compare.yaml").write_text(f"arms: {trick}\n")
    page = write_comparison(tmp_path).read_text()
    reader = Reader(page)
    assert "script" not in reader.tags and trick in reader.text
    assert not [
        v for _, name, v in reader.attributes if name in ("src", "href") and not v.startswith("data:")
    ]
    assert "default-src 'none'" in page


def test_curves_by_iou_are_differences_paired_by_seed(tmp_path: Path) -> None:
    """Breaks when a curve is not what the arm has over the reference of its own seed."""
    page = write_comparison(made(tmp_path)).read_text()
    chart = next(f for f in re.findall(r"<figure.*?</figure>", page) if "10 %: AP over random" in f)
    shown = [float(v) for v in re.findall(r"<title>scrl: (-?[\d.]+)</title>", chart)]
    gains = [4.0, 3.5, 4.0]
    assert shown == pytest.approx([gain + 10 * (1 - float(iou)) for iou in IOUS for gain in gains], abs=0.006)
    assert "<title>random" not in chart and "mask_AP over" not in page


def test_masks_have_a_curve_of_their_own(tmp_path: Path) -> None:
    """Breaks when the curve of masks is missing, or is that of boxes."""
    file = made(tmp_path) / "results.json"
    results = json.loads(file.read_text())
    for run in results["runs"]:
        run["mask_by_iou"] = dict.fromkeys(IOUS, 7.0 if run["arm"] == "scrl" else 5.0)
    file.write_text(json.dumps(results))
    page = write_comparison(tmp_path).read_text()
    chart = next(f for f in re.findall(r"<figure.*?</figure>", page) if "10 %: mask_AP over random" in f)
    assert {float(v) for v in re.findall(r"<title>scrl: (-?[\d.]+)</title>", chart)} == {2.0}
    assert "IoU from which a mask counts" in chart and "10 %: AP over random" in page


def test_points_lie_where_their_values_are() -> None:
    """Breaks when the band is not least to greatest, the line not the mean, or the places are not to scale."""
    arms = [Arm("a", (Point(1.0, (0.0, 10.0)), Point(3.0, (20.0,))))]
    drawn = spread_chart("AP", arms, [(1.0, "1 %"), (2.0, "10 %"), (3.0, "100 %")], axis="images")
    dots = [
        (float(x), float(y)) for x, y in re.findall(r'<circle class="dot s0" cx="(.*?)" cy="(.*?)"', drawn)
    ]
    high, foot, free = TOP, HEIGHT - BOTTOM, (WIDTH - LEFT - RIGHT) * 0.12 / 2.24
    left, right = LEFT + free, WIDTH - RIGHT - free
    places = [(left, foot), (left, (high + foot) / 2), (right, high)]
    assert dots == [pytest.approx(place, abs=0.06) for place in places]
    band, line = re.findall(r' d="(M.*?)"', drawn)
    corners = [tuple(map(float, c.split())) for c in band[1:-1].split("L")]
    assert corners == [pytest.approx(p, abs=0.06) for p in (places[1], places[2], places[2], places[0])]
    start = tuple(map(float, line[1:].split("L")[0].split()))
    assert start == pytest.approx((left, foot - (foot - high) / 4), abs=0.06)
    assert all(f">{words}</text>" in drawn for words in ("1 %", "10 %", "100 %", "images"))


def test_the_chart_stands_alone_as_a_picture(tmp_path: Path) -> None:
    """Breaks when the published chart is no file of its own, or is not the page's."""
    folder = made(tmp_path / "compare")
    page = write_comparison(folder).read_text()
    drawn = script("compare_chart").picture(folder)
    root = ElementTree.fromstring(drawn)
    assert root.tag.endswith("svg") and [text.text for text in root.iter()][-3::2] == ["random", "scrl"]
    inside = re.search(r"<svg [^>]*>(.*?)</svg>", page, re.DOTALL)
    assert inside is not None and inside[1] in drawn and "scrl: 15.50" in inside[1]


def test_one_share_and_no_figures_are_drawn_without_fault(tmp_path: Path) -> None:
    """Breaks when a single place has no width, or nothing measured yet has no page."""
    one = write_comparison(made(tmp_path / "one", labels=("1.0",))).read_text()
    dots = re.findall(r'<circle class="dot s0" cx="(.*?)"', one)
    assert dots == [f"{(LEFT + WIDTH - RIGHT) / 2:.1f}"] * 2 and "nan" not in one
    none = write_comparison(made(tmp_path / "none", runs=[], table=[], verdicts=[])).read_text()
    assert "<figure" not in none and "nan" not in none


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    """Breaks when a wrong folder gives a traceback, or a page of nothing."""
    with pytest.raises(ValueError, match="holds no results of a comparison"):
        write_comparison(tmp_path)
