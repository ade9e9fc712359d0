"""FCN-16s from the command line: trained, measured by mean IoU, and measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny import DETECTOR, facts, flags, photos, rows, settings

from boxwise.cli import main
from boxwise.run.evaluate import load_detector
from boxwise.run.pretrain import pretrain
from boxwise.run.scenes import scenes

TINY = {key: value for key, value in DETECTOR.items() if key != "detector.fpn_channels"} | {
    "detector.width": 8,
    "steps": 8,
    "lr": 0.2,
}
"""Long enough to tell the background."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("data") / "coco", count=8, val=3, size=64)


def test_a_run_is_measured_by_mean_iou(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a backbone pretrained without a pyramid. Breaks when boxes are asked of a detector that has none, when
    evaluate builds it with one class too few, or when its figures are not the run's."""
    given = {**settings("byol_r50_300ep"), "steps": 1}
    pretrain("byol_r50_300ep", photos(tmp_path / "photos", 4), tmp_path / "byol", settings=given)
    out, more = tmp_path / "run", ["--weights", str(tmp_path / "byol")]
    words = ["finetune", "fcn16s", "--data", str(data), "--out", str(out), *more, *flags(TINY)]
    assert main(words) == 0
    assert "100.0 %" in (out / "match.txt").read_text() and facts(out)["status"] == "finished"
    results = json.loads((out / "results.json").read_text())
    classes = ["background", *(c.name for c in load_detector(out).categories)]
    assert [*results] == ["mIoU", "accuracy", *(f"IoU {c}" for c in classes), "images", "seconds"]
    assert 0 < results["mIoU"] < results["accuracy"] <= 100 and results["images"] == 3
    assert all(row["train/loss_pixels"] == pytest.approx(row["train/loss"]) for row in rows(out))
    assert load_detector(out).model.classifier[-1].out_channels == len(classes)
    assert json.loads((out / "detections.json").read_text()) == []
    width, height = Image.open(out / "figures" / "detections.png").size
    assert (width, height) == (3 * (64 + 6), 2 * (64 + 6)), "truth above what was found, of three images"
    capsys.readouterr()
    assert (
        main(["evaluate", str(out), "--data", str(data), "--device", "cpu", "--batch-size", "4", "--json"])
        == 0
    )
    again = json.loads(capsys.readouterr().out)
    assert again == {key: value for key, value in results.items() if key != "seconds"}
    assert main(["evaluate", str(out), "--data", str(data), "--device", "cpu", "--batch-size", "4"]) == 0
    assert f"{results['mIoU']:6.2f}" in capsys.readouterr().out.splitlines()[0]
