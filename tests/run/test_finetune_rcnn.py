"""R-CNNs from the command line: trained from pretrained weights, measured, and measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import DETECTOR, flags, photos, rows, settings

from boxwise.cli import main
from boxwise.interop.files import load_weights
from boxwise.run.evaluate import load_detector
from boxwise.run.pretrain import pretrain
from boxwise.run.scenes import scenes
from boxwise.transfer.metrics import FIGURES

POINTS = ["left_top", "right_top", "foot"]
NARROW = {key: value for key, value in DETECTOR.items() if key != "detector.fpn_channels"}
FAST = {"detector.rpn_post_nms_train": 40, "detector.rpn_post_nms_test": 10, "detector.score_threshold": 0.0}
TOLD: dict[str, dict[str, Any]] = {
    "mask_rcnn_fpn": {"detector.fpn_channels": 16, "detector.head_extra_norm": True},
    "keypoint_rcnn_fpn": {
        "detector.fpn_channels": 16,
        "detector.keypoints": 3,
        "detector.keypoint_channels": 8,
    },
    "faster_rcnn_c4": {"detector.frozen_stages": 4},
    "mask_rcnn_c4": {},
}
TERMS = {"mask_rcnn_fpn": "mask", "keypoint_rcnn_fpn": "keypoint", "mask_rcnn_c4": "mask"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with three points on the edge of each thing."""
    root = scenes(tmp_path_factory.mktemp("data") / "coco", count=8, val=3, size=64)
    for file in (root / "annotations").iterdir():
        table = json.loads(file.read_text())
        for category in table["categories"]:
            category["keypoints"] = POINTS
        for annotation in table["annotations"]:
            x, y, w, h = annotation["bbox"]
            marks = [x, y, 2, x + w - 1, y, 1, x + w / 2, y + h - 1, 2]
            annotation |= {"keypoints": marks, "num_keypoints": 3}
        file.write_text(json.dumps(table))
    return root


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    given = {**settings("byol_r50_300ep"), "steps": 1}
    pretrain("byol_r50_300ep", photos(folder / "photos", 4), folder / "run", settings=given)
    return folder / "run"


def words(name: str, data: Path, out: Path, *more: str, **given: Any) -> list[str]:
    told = {**NARROW, "precision": "auto", **FAST, **TOLD[name], **given}
    return ["finetune", name, "--data", str(data), "--out", str(out), *more, *flags(told)]


@pytest.mark.parametrize("name", [*TOLD])
def test_a_run_is_measured_by_all_that_it_finds(
    name: str, data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a family's name, weights, losses or figures are lost between the command line and its detector."""
    out = tmp_path / "run"
    assert main(words(name, data, out, "--weights", str(backbone))) == 0
    assert "100.0 %" in (out / "match.txt").read_text()
    results = json.loads((out / "results.json").read_text())
    kinds = load_detector(out).config.measured()
    assert {*results} == {*(f for kind in kinds for f in FIGURES[kind]), "images", "seconds"}
    assert all(f"train/loss_{TERMS[name]}" in row for row in rows(out) if name in TERMS)
    found = json.loads((out / "detections.json").read_text())
    extras = {"segm": "segmentation", "keypoints": "keypoints"}
    assert len(found) > 3 and all(extras[k] in f for f in found for k in kinds if k in extras)
    capsys.readouterr()
    again = ["evaluate", str(out), "--data", str(data), "--device", "cpu", "--batch-size", "4", "--json"]
    assert main(again) == 0
    assert json.loads(capsys.readouterr().out) == {k: v for k, v in results.items() if k != "seconds"}


def test_the_number_of_points_is_told_before_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when COCO's 17 are taught three points."""
    out = tmp_path / "run"
    assert main(words("keypoint_rcnn_fpn", data, out, **{"detector.keypoints": 17})) == 1
    said = capsys.readouterr().err
    assert "name 3 (left_top, right_top, foot); set detector.keypoints: 3" in said and not out.exists()


def test_a_frozen_backbone_stays_and_its_detector_starts_another(
    data: Path, backbone: Path, tmp_path: Path
) -> None:
    """ReSim's protocol. Breaks when something from the stem to c4 moves, when res5 does not, or when a finished C4
    detector no longer gives a whole backbone."""
    out = tmp_path / "run"
    assert main(words("faster_rcnn_c4", data, out, "--weights", str(backbone), lr=0.5)) == 0
    theirs = load_file(backbone / "export" / "model.safetensors")
    ours = load_file(out / "export" / "model.safetensors")
    last = "backbone.body.layer4."
    for name, tensor in theirs.items():
        if not name.startswith(last) and not name.endswith("num_batches_tracked"):
            assert torch.equal(ours[name], tensor), name
    moved = [n for n in theirs if n.startswith(last) and n.endswith(("conv1.weight", "running_mean"))]
    inside = {n: ours[n.replace("backbone.body.", "roi_heads.box_head.last.")] for n in moved}
    assert moved and all(not torch.equal(inside[n], theirs[n]) for n in moved)
    whole = load_weights(out)
    assert whole.parts == ("backbone",) and {*whole.state} >= {
        n for n in theirs if not n.endswith("num_batches_tracked")
    }
    assert all(torch.equal(whole.state[n], inside[n]) for n in moved)
