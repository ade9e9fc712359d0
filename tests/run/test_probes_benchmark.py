"""benchmarks/probes.py at tiny size."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from tiny import settings

from boxwise.run.pretrain import pretrain
from scripts import script


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("probes")


def test_a_second_call_asks_nothing_again(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when a stopped table starts from the beginning, random weights are others, or AP is of one run."""
    methods = script("methods")
    data = methods.scenes(tmp_path / "scenes-seed0", count=8, val=2, unlabelled=16, size=64, seed=0)
    small = {
        "image_size": 64,
        "steps": 2,
        "batch_size": 4,
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
    }
    machines = {key: value for key, value in small.items() if key != "steps"} | {"probe.costs": [1.0]}
    asked = bench.probe

    def quick(name: str, *place: Path, settings: dict[str, object], **more: object) -> Path:
        given = settings | (machines if name == "svm" else small) | {"image_size": 64}
        return asked(name, *place, settings=given, **more)

    monkeypatch.setattr(bench, "probe", quick)
    rows = {}
    for method in ("random", "mocov2"):
        home = tmp_path / f"{method}-1s-seed0"
        for i, ap in enumerate((1.0, 3.0)):
            (home / f"finetune{i}").mkdir(parents=True)
            (home / f"finetune{i}" / "results.json").write_text(json.dumps({"AP": ap}))
        if method == "mocov2":
            pretrain("mocov2", data / "unlabeled2017", home / "run", settings=settings("mocov2"))
        rows[method] = bench.measured(method, tmp_path, 1, 0)
        assert rows[method].keys() == {*bench.FIGURES, "AP", "seconds"} and rows[method]["AP"] == 2.0
    assert "backbone: resnet18" in (tmp_path / "random-1s-seed0/probe_svm/config.yaml").read_text()
    assert "random weights" in (tmp_path / "random-1s-seed0/probe_svm/match.txt").read_text()
    assert "100.0 %" in (tmp_path / "mocov2-1s-seed0/probe_roi_linear_c4/match.txt").read_text()
    monkeypatch.delattr(bench, "probe")
    assert bench.measured("mocov2", tmp_path, 1, 0) == rows["mocov2"]
    with pytest.raises(SystemExit, match=r"call methods\.py"):
        bench.measured("byol", tmp_path, 1, 0)


def test_the_page_says_how_alike_the_orders_are(bench: ModuleType) -> None:
    """Breaks when a probe that orders the methods as AP does is not told from one that turns them round."""
    turned = {
        name: {**dict.fromkeys(bench.FIGURES, float(-i)), "AP": float(i), "seconds": 1.0}
        for i, name in enumerate("abc")
    }
    for row in turned.values():
        row["roi_linear c4 top1"] = row["AP"]
    text = bench.page(turned, 300.0, 0)
    assert "roi_linear c4 top1 +1.00" in text and "svm mAP_c5 -1.00" in text and "over 3 starts" in text
