"""The self-test of fine-tuning: which images, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import DETECTOR, flags

from boxwise.cli import main
from boxwise.config import AdamW
from boxwise.data.scenes import write_scenes
from boxwise.data.targets import open_labelled
from boxwise.recipes.transfer import faster_rcnn_fpn, mask_rcnn_fpn
from boxwise.run.finetune import finetune
from boxwise.run.fit import rate
from boxwise.run.overfit import BAR, CannotLearn, few, quick, suspects, verdict


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose first and third images have no boxes, or a crowd's alone."""
    place = tmp_path_factory.mktemp("scenes")
    write_scenes(place, counts={"train": 6, "val": 2}, size=64)
    file = place / "annotations" / "instances_train2017.json"
    told = json.loads(file.read_text())
    first, third = told["images"][0]["id"], told["images"][2]["id"]
    told["annotations"] = [a for a in told["annotations"] if a["image_id"] != first]
    for one in told["annotations"]:
        one["iscrowd"] = int(one["image_id"] == third)
        if one["iscrowd"]:
            one["segmentation"] = {"size": [64, 64], "counts": [0, 64 * 64]}
    file.write_text(json.dumps(told))
    return place


def recipe(**more: Any) -> Any:
    return faster_rcnn_fpn().changed({**DETECTOR, **more})


def run_with(folder: Path, losses: list[float], **results: float) -> Path:
    """What a finished run leaves."""
    (folder / "results.json").write_text(json.dumps(results))
    rows = [json.dumps({"train/loss": loss}) for loss in losses]
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def test_the_seed_draws_images_that_have_boxes(scenes: Path) -> None:
    """Breaks when an image without boxes, from which nothing can be learned, is drawn, or the seed does not count."""
    drawn = {seed: few(scenes, 3, recipe(seed=seed), images=None, extras=()) for seed in range(6)}
    choices = {tuple(one.index.tolist()) for one in drawn.values()}
    assert len(choices) > 1 and not {0, 2} & {i for choice in choices for i in choice}
    assert all(list(choice) == sorted(choice) for choice in choices)
    again = few(scenes, 3, recipe(seed=5), images=None, extras=())
    assert np.array_equal(again.index, drawn[5].index)
    with pytest.raises(ValueError, match=r"--overfit 5: .* has 4 images with boxes"):
        few(scenes, 5, recipe(), images=None, extras=())


def test_every_kind_must_reach_the_bar(scenes: Path, tmp_path: Path) -> None:
    """Breaks when good boxes hide bad masks, or a figure that cannot be measured counts as failed."""
    images = few(scenes, 2, recipe(), images=None, extras=())
    good = run_with(tmp_path, [5.0, 0.1], AP=60.0, AP50=93.21, mask_AP50=80.0, kp_AP50=-1)
    assert "AP50 93.2, mask_AP50 80.0 on the 2 images" in verdict(good, recipe(), images)
    for results in ({"AP50": 93.0, "mask_AP50": 79.9}, {"mIoU": 20.0}, {"AP50": -1}):
        with pytest.raises(CannotLearn, match="keeps it from learning"):
            verdict(run_with(tmp_path, [5.0, 0.1], **results), recipe(), images)


def test_suspects_are_those_that_are_there(scenes: Path, tmp_path: Path) -> None:
    """Breaks when small boxes are judged before resizing, doubled boxes are missed, or good labels are suspected."""
    images = few(scenes, 4, recipe(), images=None, extras=())
    clean = [*suspects(run_with(tmp_path, [5.0, 1.0], AP50=1.0), recipe(), images, {"AP50": 1.0})]
    assert clean[0].startswith("the loss fell from 5 to 1; 2 steps may be few: --steps 8")
    assert len(clean) == 2 and "detections.png" in clean[1]
    results = {"AP50": 1.0, "AR100": 70.0}
    run = run_with(tmp_path, [5.0, 4.0], **results)
    small = recipe(image_size=32, **{"detector.detections_per_image": 1})
    told = "\n".join(suspects(run, small, images, results))
    assert "from 5 to 4 only" in told and "under other names" in told and "detections_per_image is 1" in told
    file = tmp_path / "doubled.json"
    labels = json.loads((scenes / "annotations" / "instances_train2017.json").read_text())
    labels["annotations"] = [
        {**one, "bbox": [1, 1, 20, 7], "id": k + 1} for k, one in enumerate(labels["annotations"][-1:] * 2)
    ]
    file.write_text(json.dumps(labels))
    doubled = open_labelled(file, split="train", images=scenes / "train2017")
    told = "\n".join(suspects(run, recipe(), doubled, results))
    assert (
        "2 of 2 boxes are less than 8 px" in told.replace("pixels across", "px")
        and "1 boxes are there twice" in told
    )


def test_a_run_that_learns_nothing_ends_with_one(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when the self-test trains on other images than it measures, wants a validation split, or passes."""
    file = scenes / "annotations" / "instances_train2017.json"
    out = tmp_path / "run"
    command = [
        "finetune",
        "faster_rcnn_fpn",
        "--data",
        str(file),
        "--out",
        str(out),
        "--overfit",
        "2",
        *flags(DETECTOR),
    ]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert "on the 2 images that it was trained on (bar: 80)" in told and "Suspects:" in told
    assert "figures will be too good" not in told
    names = (out / "labelled.txt").read_text().split()
    chosen = few(file, 2, recipe(), images=None, extras=())
    assert names == [chosen.name(i) for i in range(2)]
    data = json.loads((out / "run.json").read_text())["data"]
    assert data["fingerprint"] == data["test_fingerprint"] and data["test_images"] == 2
    with pytest.raises(ValueError, match="choose one"):
        finetune("faster_rcnn_fpn", scenes, tmp_path / "both", labels=0.5, overfit=2)


def test_a_pipeline_that_is_in_order_passes(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when the self-test's own settings cannot learn two images by heart, or a good run fails."""
    small = DETECTOR | {
        "detector.fpn_channels": 32,
        "batch_size": 2,
        "steps": 140,
        "lr": 0.002,
        "detector.box_batch_size_per_image": 32,
        "detector.rpn_pre_nms_train": 200,
        "detector.rpn_post_nms_train": 60,
        "run.log_every": 70,
    }
    out = tmp_path / "run"
    command = ["finetune", "faster_rcnn_fpn", "--data", str(scenes), "--out", str(out), "--overfit", "2"]
    assert main([*command, *flags(small)]) == 0
    told = capsys.readouterr().err
    assert "on the 2 images that it was trained on (bar: 80): this pipeline can learn" in told
    assert "to learn by heart: adamw at lr 0.002, schedule.kind cosine, run.clip_norm 10.0" in told
    assert json.loads((out / "results.json").read_text())["AP50"] >= BAR


def test_what_the_user_tells_stands_above_what_learns_by_heart() -> None:
    """Breaks when the self-test trains with other settings than those that were asked for."""
    base = mask_rcnn_fpn().changed({"detector.train_sizes": (640, 800)})
    ours, (line,) = quick(base, given=())
    assert ours.optim == AdamW(lr=1e-3, lr_batch=base.run.batch_size) and rate(ours) == 1e-3
    assert (ours.schedule.kind, ours.run.clip_norm) == ("cosine", 10.0) and "adamw at lr 0.001" in line
    assert (ours.detector.flip, ours.detector.train_sizes) == (0.0, ())
    told = {"optim.momentum": 0.8, "schedule.kind": "multistep", "run.clip_norm": 1.0, "detector.flip": 0.5}
    theirs, _ = quick(base.changed(told), given=told)
    assert theirs == base.changed(told, {"detector.train_sizes": ()})
    warm, _ = quick(base.changed({"lr": 5e-4}), given={"optim.lr"})
    assert warm.optim == AdamW(lr=5e-4, lr_batch=base.run.batch_size)
