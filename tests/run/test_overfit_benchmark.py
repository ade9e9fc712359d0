"""benchmarks/overfit.py at tiny size."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from boxwise.data.scenes import write_scenes
from boxwise.data.targets import open_labelled
from boxwise.recipes.transfer import FAMILIES
from scripts import script

TINY: dict[str, Any] = {"fpn_channels": 16, "width": 8, "channels": 8, "detections_per_image": 5}


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("overfit")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scenes")
    write_scenes(place, counts={"train": 12, "val": 1}, size=64)
    return place


def test_every_family_is_adapted_alike(bench: ModuleType) -> None:
    """Breaks when a family keeps its published schedule, flips, scales or frozen stages."""
    for name in FAMILIES:
        recipe = bench.adapted(name, steps=70)
        detector = recipe.detector
        assert detector.backbone == "resnet18" and detector.flip == 0 and detector.norm == "bn", name
        assert (detector.min_size, detector.max_size, recipe.steps(4)) == (256, 256, 70), name
        assert recipe.optim.name == "adamw" and recipe.run.batch_size == 4, name
        assert not [*detector.problems(pretrained=False)], name
        assert getattr(detector, "scales", (1.0, 1.0)) == (1.0, 1.0), name


def test_images_are_plain_enough_to_be_seen(bench: ModuleType, scenes: Path, tmp_path: Path) -> None:
    """Breaks when crowds, tiny things, too many of them, or people without keypoints are taken."""
    file = scenes / "annotations" / "instances_train2017.json"
    told = json.loads(file.read_text())
    images = [image["id"] for image in told["images"]]
    marks = [3, 4, 2] * 9
    one = {"category_id": 1, "bbox": [4, 4, 30, 30], "area": 900, "iscrowd": 0, "keypoints": marks}
    bad = [{"iscrowd": 1}, {"bbox": [4, 4, 5, 30]}, {"keypoints": [3, 4, 2, 0, 0, 0]}]
    listed = [one | {"image_id": images[0]} for _ in range(7)]
    listed += [one | change | {"image_id": images[k + 1]} for k, change in enumerate(bad)]
    listed += [one | {"image_id": image} for image in images[4:]]
    told["annotations"] = [{**a, "id": k + 1} for k, a in enumerate(listed)]
    table = tmp_path / "labels.json"
    table.write_text(json.dumps(told))
    labelled = open_labelled(table, split="train", images=scenes / "train2017", extras=["keypoints"])
    assert bench.chosen(labelled, marked=True) == [4, 5, 6, 7]
    assert bench.chosen(labelled, marked=False) == [3, 4, 5, 6]
    with pytest.raises(ValueError, match="2 images are plain enough"):
        bench.chosen(labelled.subset([0, 1, 5, 6]), marked=False)


@pytest.mark.parametrize("family", ["faster_rcnn_fpn", "fcn16s", "densepose_rcnn"])
@pytest.mark.filterwarnings("ignore")
def test_a_second_call_trains_nothing_again(
    family: str,
    bench: ModuleType,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Breaks when finished families train again, or the figures that count are not those of the family."""
    monkeypatch.setattr(bench, "SMALL", bench.SMALL | TINY)
    monkeypatch.setattr(bench, "LEAST", 0.0)
    command = [str(tmp_path), "--families", family, "--data", str(scenes), "--steps", "2", "--size", "64"]
    bench.main([*command, "--out", str(tmp_path / "results")])
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    first = capsys.readouterr().out
    wanted = {"faster_rcnn_fpn": "AP50", "fcn16s": "mIoU", "densepose_rcnn": "gpsm_AP50"}[family]
    assert f"| {family} | " in first and wanted in first and "| no | 4 |" in first
    bench.main(command)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == weights
    assert capsys.readouterr().out.splitlines()[0] == first.splitlines()[0]
    assert [*(tmp_path / "results").glob("overfit-*.md")]


def test_a_row_passes_only_where_all_figures_do(bench: ModuleType) -> None:
    found = {"AP": 70.0, "AP50": 99.0, "mask_AP50": 90.5, "kp_AP50": -1, "images": 4}
    assert bench.row("mask_rcnn_fpn", found) == "| mask_rcnn_fpn | AP50 99.0, mask_AP50 90.5 | yes | 4 |"
    assert "| no |" in bench.row("mask_rcnn_fpn", found | {"mask_AP50": 89.9})
    assert "| no |" in bench.row("mask_rcnn_fpn", {"images": 4})
