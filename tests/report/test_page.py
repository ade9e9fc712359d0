"""The report: true to the run folders, safe with what they hold, complete in one file."""

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from boxwise.report.charts import Line, line_chart, short, ticks
from boxwise.report.compare import differences, over_seeds, pairs
from boxwise.report.page import write_report
from boxwise.report.read import read_runs
from boxwise.report.sections import _pill

VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Text, tags and attributes of a page; fails on a tag that is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.words.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(self.words)


def make_run(
    path: Path,
    *,
    kind: str = "finetune",
    seed: int = 0,
    ap: float | None = None,
    weights: str | None = None,
    lr: float = 0.02,
    config: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    rows: list[dict[str, Any]] | None = None,
) -> Path:
    path.mkdir(parents=True)
    stated = {
        "kind": kind,
        "status": "finished",
        "recipe": "faster_rcnn_fpn",
        "command": ["boxwise", kind, "--out", "my run"],
        "seed": seed,
        "data": {"images": 100, "fingerprint": f"f{seed}", "test_images": 300, "weights": weights},
        "versions": {"torch": "2.15.0"},
        "hardware": {"cpu": "Some CPU", "cores": 2, "gpus": []},
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 312.0,
    }
    (path / "run.json").write_text(json.dumps(stated | (facts or {})))
    settings = {
        "name": "faster_rcnn_fpn",
        "weights": {"parts": None},
        "optim": {"lr": lr},
        "run": {"seed": seed, "log_every": seed + 1},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(settings | (config or {})))
    rows = (
        [{"step": s, "epoch": s / 9, "train/loss": 1 / s, "train/lr": lr} for s in (1, 2, 3)]
        if rows is None
        else rows
    )
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if ap is not None:
        measured = {"AP": ap, "AP50": 2 * ap, "AP75": 0.9 * ap, "APs": -1.0, "APm": None, "AR100": 3 * ap}
        (path / "results.json").write_text(json.dumps(measured | {"images": 300, "seconds": 1512.2}))
    return path


def page_of(tmp_path: Path, *runs: Path) -> Reader:
    return Reader(write_report(runs, tmp_path / "report.html").read_text())


def test_the_gain_is_of_the_twin_that_shares_all_else(tmp_path: Path) -> None:
    """Breaks if a run is held against one of another rate, seed or data set, or the sign turns."""
    random = make_run(tmp_path / "random", ap=10.0)
    good = make_run(tmp_path / "good", ap=15.25, weights="scrl/export")
    make_run(tmp_path / "rate", ap=3.0, lr=0.1)
    make_run(tmp_path / "seed", ap=4.0, seed=7)
    make_run(
        tmp_path / "data", ap=5.0, facts={"data": {"images": 100, "fingerprint": "other", "test_images": 300}}
    )
    found = pairs(read_runs(sorted(p for p in tmp_path.iterdir())))
    assert [(p.random.path, p.pretrained.path, p.gain()) for p in found] == [(random, good, 5.25)]
    assert found[0].gain("AP50") == 10.5 and found[0].gain("APs") is None
    text = page_of(tmp_path, random, good).text
    assert "10.00" in text and "15.25" in text and "+5.2" in text  # the table; the gain to one decimal
    assert "1\u202f512" in text and "scrl/export" in text
    alone = page_of(tmp_path, tmp_path / "rate", good)
    assert "+12" not in alone.text and "15.25" in alone.text


@pytest.mark.parametrize(
    ("stated", "wanted"), [("scrl/export", "scrl/export"), ("random", None), (None, None)]
)
def test_what_a_detector_started_from(stated: str | None, wanted: str | None, tmp_path: Path) -> None:
    """Breaks if a random run passes for a pretrained one, and no other is held against it."""
    assert read_runs([make_run(tmp_path / "r", weights=stated)])[0].weights == wanted


def test_a_page_needs_no_torch() -> None:
    """Breaks when joining two small folders to a page loads what trains networks first."""
    told = "import sys, boxwise.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0


def test_settings_that_move_no_figure_do_not_part_twins(tmp_path: Path) -> None:
    """Breaks if another logging interval, number of workers or recipe file hides a gain."""
    make_run(tmp_path / "a", ap=10.0, config={"data": {"workers": 0}, "source": "x.py:f"})
    make_run(
        tmp_path / "b",
        ap=9.0,
        weights="w",
        config={"data": {"workers": 4}, "source": "faster_rcnn_fpn", "weights": {"parts": ["backbone"]}},
    )
    (pair,) = pairs(read_runs([tmp_path / "a", tmp_path / "b"]))
    assert pair.gain() == -1.0
    assert "-1.0" in page_of(tmp_path, tmp_path / "a", tmp_path / "b").text


@pytest.mark.parametrize(("std", "paired"), [([0.229, 0.224, 0.225], True), ([1.0, 1.0, 1.0], False)])
def test_twins_see_pixels_alike(tmp_path: Path, std: list[float], paired: bool) -> None:
    """Breaks if two runs on ImageNet's statistics are told apart, or a gain is claimed across two statistics."""
    known = {"images": 100, "fingerprint": "f0", "test_images": 300, "mean": [0.485, 0.456, 0.406]}
    imagenet = known | {"std": [0.229, 0.224, 0.225], "weights": None}
    make_run(tmp_path / "a", ap=10.0, facts={"data": imagenet})
    make_run(tmp_path / "b", ap=12.0, facts={"data": known | {"std": std, "weights": "w"}})
    text = page_of(tmp_path, tmp_path / "a", tmp_path / "b").text
    assert ("same settings, data and seed" in text) == paired and ("+2.0" in text) == paired


def test_seeds_are_summed_up_and_overlap_is_said(tmp_path: Path) -> None:
    """Breaks if arms are mixed up, means are of other runs, or touching ranges are called apart."""
    before, after = [10.0, 11.0, 12.0], [14.0, 15.5, 17.0]
    runs = []
    for seed, (a, b) in enumerate(zip(before, after)):
        runs += [
            make_run(tmp_path / f"r{seed}", ap=a, seed=seed),
            make_run(tmp_path / f"p{seed}", ap=b, seed=seed, weights="w"),
        ]
    (series,) = over_seeds(pairs(read_runs(runs)))
    assert series.values("AP") == (before, after)
    text = page_of(tmp_path, *runs).text
    assert "Means over 3 seeds" in text and "10.0 to 12.0" in text and "apart" in text
    assert "11.0 random weights \u2192 15.5 pretrained +4.5" in text
    extra = [
        make_run(tmp_path / "r9", ap=16.0, seed=9),
        make_run(tmp_path / "p9", ap=18.0, seed=9, weights="w"),
    ]
    assert "the ranges overlap" in page_of(tmp_path, *runs, *extra).text


def test_what_coco_could_not_measure_is_no_number(tmp_path: Path) -> None:
    """Breaks if COCO's -1 for sizes that do not occur is shown as an AP."""
    page = page_of(tmp_path, make_run(tmp_path / "r", ap=10.0))
    assert "-1.00" not in page.text and "\u2013" in page.text and "30.00" in page.text


def test_classes_of_pixels_are_results_too(tmp_path: Path) -> None:
    """Breaks if a run without AP is left out, or its mean IoU is taken for an AP."""
    boxes = make_run(tmp_path / "boxes", ap=10.0, lr=0.1)
    runs = [make_run(tmp_path / "random"), make_run(tmp_path / "good", weights="w")]
    for run, value in zip(runs, (31.5, 40.25)):
        (run / "results.json").write_text(json.dumps({"mIoU": value, "accuracy": 77.0, "images": 300}))
    (pair,) = pairs(read_runs([boxes, *runs]))
    assert pair.gain() == 8.75 and pair.gain("AP") is None
    alone = page_of(tmp_path, *runs).text
    assert "Mean IoU of the detector 31.5 random weights" in alone and "40.25" in alone
    assert "gain in mIoU" in alone and "AP75" not in alone and "twelve" not in alone
    beside = page_of(tmp_path, boxes, *runs).text
    assert "Average precision / Mean IoU, 0 to 100" in beside
    assert "gain in AP or mIoU" in beside and "AP75" in beside and "+8.8" in beside and "10.00" in beside


def test_probes_are_results_too(tmp_path: Path) -> None:
    """Breaks if a probe is left out, called a detector, or held against a detector from random weights."""
    boxes = make_run(tmp_path / "boxes", ap=10.0)
    runs = [
        make_run(tmp_path / name, kind="probe", weights=w) for name, w in (("random", None), ("good", "w"))
    ]
    for run, value in zip(runs, (11.5, 30.25)):
        (run / "results.json").write_text(json.dumps({"top1": value, "top5": 60.0, "rows": 7, "images": 3}))
    (pair,) = pairs(read_runs([boxes, *runs]))
    assert pair.gain() == 18.75 and pair.random.path == runs[0]
    alone = page_of(tmp_path, *runs)
    assert "Top-1 accuracy of the probe 11.5 random weights" in alone.text and "30.25" in alone.text
    assert "gain in top1" in alone.text and "AP" not in alone.text and "Detection" not in alone.text
    machines = make_run(tmp_path / "svm", kind="probe")
    (machines / "results.json").write_text(json.dumps({"mAP": 44.5, "mAP_c5": 44.5, "images": 3}))
    assert "44.50" in page_of(tmp_path, machines).text


def test_differences_list_exactly_what_differs(tmp_path: Path) -> None:
    """Breaks if nested keys are compared as a whole, or a key that only one run has is lost."""
    make_run(tmp_path / "a", config={"detector": {"norm": "bn", "sizes": [8, 16]}})
    make_run(tmp_path / "b", config={"detector": {"norm": "bn", "sizes": [8, 32], "frozen": 1}})
    rows = dict(differences(read_runs([tmp_path / "a", tmp_path / "b"])))
    assert rows == {"detector.sizes": [[8, 16], [8, 32]], "detector.frozen": [..., 1]}
    text = page_of(tmp_path, tmp_path / "a", tmp_path / "b").text
    assert "detector.sizes" in text and "[8, 32]" in text
    same = page_of(
        tmp_path,
        tmp_path / "a",
        make_run(tmp_path / "c", config={"detector": {"norm": "bn", "sizes": [8, 16]}}),
    )
    assert "all settings are the same" in same.text


def test_facts_of_a_run_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", facts={"status": "diverged", "error": "loss_region is not finite"})
    text = page_of(tmp_path, run).text
    for fact in (
        "diverged",
        "loss_region is not finite",
        "Some CPU",
        "torch 2.15.0",
        "f0",
        "2026-01-02",
        "5.2 min",
    ):
        assert fact in text
    assert "boxwise finetune --out 'my run'" in text


EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"


def test_nothing_from_a_run_folder_becomes_markup(tmp_path: Path) -> None:
    """Breaks if one value, key, file name or folder name reaches the page unescaped."""
    run = make_run(
        tmp_path / "<b>bold<",
        ap=10.0,
        weights=EVIL,
        facts={
            "kind": f"kind{EVIL}",
            "status": f'finished" onclick="alert(3) {EVIL}',
            "command": ["boxwise", EVIL],
            "error": EVIL,
            "seed": EVIL,
            "data": {EVIL: EVIL, "weights": EVIL},
            "versions": {EVIL: EVIL},
            "hardware": {"cpu": EVIL, EVIL: [EVIL]},
            "recipe": {EVIL: EVIL},
            "started": [EVIL],
            "seconds": EVIL,
        },
        config={EVIL: EVIL},
        rows=[{"step": s, EVIL: s, f"train/{EVIL}": 2, "train/loss": s} for s in range(3)],
    )
    twin = make_run(tmp_path / "twin", facts={"kind": f"kind{EVIL}"}, config={EVIL: 1, f"x{EVIL}": 2})
    (run / "figures").mkdir()
    Image.new("RGB", (4, 4)).save(run / "figures" / '"><i onload=alert(4)>.png')
    (run / "figures" / "fake.png").write_bytes(EVIL.encode())
    page = page_of(tmp_path, run, twin)
    assert "script" not in page.tags and "b" in page.tags
    assert page.tags.count("img") == 1  # the one true picture: not `fake.png`, not an injected one
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert "alert(1)" in page.text


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    """Breaks if a font, script, style sheet or picture comes from anywhere but the page."""
    run = make_run(tmp_path / "r", kind="pretrain")
    (run / "figures").mkdir()
    Image.new("RGB", (9, 5), (1, 2, 3)).save(run / "figures" / "views.png")
    out = write_report([run], tmp_path / "deep" / "page.html")
    page = Reader(out.read_text())
    sources = [
        value for _, name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")
    ]
    assert len(sources) == 1 and sources[0].startswith("data:image/png;base64,")
    assert base64.b64decode(sources[0].partition(",")[2]) == (run / "figures" / "views.png").read_bytes()
    text = out.read_text()
    assert "http:" not in text and "https:" not in text and "@import" not in text and "url(" not in text
    assert "prefers-color-scheme: dark" in text and not {"script", "link", "iframe"} & set(page.tags)
    assert [p.name for p in out.parent.iterdir()] == ["page.html"]


def test_folders_that_cannot_be_read_are_all_named_in_one_go(tmp_path: Path) -> None:
    """Breaks if the first bad folder hides the next, a traceback comes instead, or half a page is written."""
    good = make_run(tmp_path / "good")
    cut = make_run(tmp_path / "cut")
    (cut / "run.json").write_text('{"kind": "pretr')
    odd = make_run(tmp_path / "odd")
    (odd / "run.json").write_text("[1]")
    torn = make_run(tmp_path / "torn", ap=10.0)
    (torn / "results.json").write_bytes(b"\xff\xfe")
    yam = make_run(tmp_path / "yam")
    (yam / "config.yaml").write_text("a: [1")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError) as caught:
        write_report([good, tmp_path / "nowhere", empty, cut, odd, torn, yam], tmp_path / "report.html")
    lines = str(caught.value).split("\n")
    for name, sign in (
        ("nowhere", "no such folder"),
        ("empty", "holds no run.json"),
        ("cut", "half-written"),
        ("odd", "expected an object"),
        ("torn", "half-written"),
        ("yam", "cannot be read as YAML"),
    ):
        assert any(str(tmp_path / name) in line and sign in line for line in lines), name
    assert str(good) not in str(caught.value) and not (tmp_path / "report.html").exists()
    with pytest.raises(ValueError, match="no run folders"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(ValueError, match="is a folder"):
        write_report([good], tmp_path)


def test_a_run_that_is_still_going_is_shown(tmp_path: Path) -> None:
    """Breaks if a cut last line, a null or a run without figures stops the page."""
    run = make_run(tmp_path / "r", facts={"status": "running"})
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(
            b'{"step": 4, "train/loss": null}\n{"step": 5, "train/loss": 0.7125}\n[3]\n{"step": 6, "train/lo'
        )
    young = make_run(tmp_path / "young", facts={"status": "running"}, rows=[])
    (young / "config.yaml").unlink()
    curve = read_runs([run])[0].curves["train/loss"]
    assert curve[3:] == [(4.0, None), (5.0, 0.7125)]
    text = page_of(tmp_path, run, young).text
    assert "0.7125" in text and "No figures written yet: young" in text and "running" in text


def test_half_characters_do_not_stop_the_page(tmp_path: Path) -> None:
    """Breaks if JSON's lone surrogates, which no file can hold, meet the encoder."""
    run = make_run(tmp_path / "r")
    (run / "run.json").write_text(
        '{"kind": "finetune", "command": ["a\\ud800b"], "seed": 1e999, "seconds": NaN}'
    )
    assert "a?b" in page_of(tmp_path, run).text


def test_names_are_as_short_as_tells_them_apart(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "x" / "det"), make_run(tmp_path / "y" / "det")
    assert [r.name for r in read_runs([a, b, a])] == ["x/det", "y/det"]
    assert [r.name for r in read_runs([a])] == ["det"]


def drawn(chart: str, look: str) -> list[list[tuple[float, float]]]:
    """Points of every path of a class, in pixels of the drawing."""
    paths = re.findall(rf'<path class="{look}[^"]*" d="M([^"]+)"', chart)
    return [[(float(x), float(y)) for x, y in (p.split() for p in path.split("L"))] for path in paths]


def at(chart: str, label: str, axis: str) -> float:
    """Where a tick's label stands."""
    place = {"x": r'x="([\d.]+)" y="\d+"', "y": r'x="\d+" y="([\d.]+)"'}[axis]
    (found,) = set(
        re.findall(rf"<text {place} text-anchor=\"(?:middle|end)\">{re.escape(label)}</text>", chart)
    )
    return float(found)


def test_a_curve_runs_through_its_values() -> None:
    """Breaks if an axis is turned, an offset is off, or labels belong to other places."""
    chart = line_chart("Loss", [Line("run", [(0, 0.0), (50, 3.0), (100, 1.0)], 0)])
    ((first, peak, last),) = drawn(chart, "line")
    assert first[0] == at(chart, "0", "x") and last[0] == at(chart, "100", "x")
    assert peak[0] == pytest.approx((first[0] + last[0]) / 2, abs=0.1)
    for point, label in ((peak, "3"), (last, "1")):
        assert point[1] + 3.5 == pytest.approx(at(chart, label, "y"), abs=0.11)  # labels sit 3.5 px low
    assert peak[1] < last[1] < first[1]
    assert "run <b>1</b>" in chart


def test_gaps_stay_gaps_and_lone_points_show() -> None:
    """Breaks if a line is drawn across steps whose loss was not finite."""
    curve = [(1, 1.0), (2, 2.0), (3, None), (4, 5.0), (5, None), (6, 2.0), (7, 1.0)]
    chart = line_chart("Loss", [Line("run", curve, 0)])
    assert [len(p) for p in drawn(chart, "line")] == [2, 2] and chart.count("<circle") == 1


def test_a_long_curve_is_thinned_without_losing_its_peak() -> None:
    """Breaks if every n-th point is taken (spikes vanish) or all are (pages of megabytes)."""
    curve = [(i, 1.0 + (i == 7777) * 9.0) for i in range(20_000)]
    chart = line_chart("Loss", [Line("run", curve, 0)])
    assert len(chart) < 20_000
    (spread,), (mean,) = drawn(chart, "spread"), drawn(chart, "line")
    assert min(y for _, y in spread) == pytest.approx(at(chart, "10", "y") - 3.5, abs=0.11)
    heights = [y for _, y in mean]
    assert max(heights) - min(heights) < 5  # one spike in 1000 steps hardly moves the mean
    end = at(chart, "0", "x") + (at(chart, "15k", "x") - at(chart, "0", "x")) * 19_999 / 15_000
    assert mean[0][0] == spread[0][0] and mean[-1][0] == pytest.approx(end, abs=0.3)


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (3.0, 98.0, [0, 20, 40, 60, 80, 100]),
        (-0.013, 0.021, [-0.02, -0.01, 0.0, 0.01, 0.02, 0.03]),
        (5.0, 5.0, [4.4, 4.6, 4.8, 5.0, 5.2, 5.4, 5.6]),
    ],
)
def test_ticks_are_round_and_hold_the_range(low: float, high: float, wanted: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [1e-31, 2e-31], [1e29, 1e29 * (1 + 1e-15)], [-1e29, 1e29], [1e16, 1e16 + 2]]
)
def test_extreme_values_still_make_a_chart(values: list[float]) -> None:
    """Breaks if a tick distance becomes 0, or labels are asked for a negative number of decimals."""
    chart = line_chart("x", [Line("run", list(enumerate(values)), 0)])
    assert "nan" not in chart and "inf" not in chart and chart.count('class="grid"') >= 2


def test_numbers_are_short() -> None:
    assert [short(v) for v in (None, 0.123456, 12345.0, 2.5e6, 0.0)] == [
        "\u2013",
        "0.1235",
        "12.35k",
        "2.5M",
        "0",
    ]


@pytest.mark.parametrize("name", ["photo.jpg", "page", "run.json"])
def test_only_a_page_is_written_over(name: str, tmp_path: Path) -> None:
    """Breaks when `--out photo.jpg`, a slip of the hand, replaces a photo by a page."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"ends in \.html"):
        write_report([tmp_path], tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"


def test_a_comparison_is_told_from_a_run(tmp_path: Path) -> None:
    """Breaks when a comparison's folder is called one whose run ended before it began."""
    (tmp_path / "compare.html").write_text("")
    with pytest.raises(ValueError, match=r"is a comparison, whose page is .*compare\.html"):
        read_runs([tmp_path])


def test_a_gain_of_nothing_has_no_sign() -> None:
    """Breaks when two equal detectors are said to differ by -0.0."""
    said = [re.sub("<.*?>", "", _pill(gain)) for gain in (-0.04, 0.0, 0.04, -0.06, 3.15)]
    assert said == ["0.0", "0.0", "0.0", "-0.1", "+3.1"]
