"""What cannot be meant stops a run before its first step; what misleads is said; a failed run names its suspects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boxwise.config import SGD, Run, Schedule, TransferData
from boxwise.data.splits import labelled_splits
from boxwise.recipes.transfer import faster_rcnn_fpn
from boxwise.run.finetune import fields
from boxwise.run.preflight import doubts, preflight, suspects
from layouts import coco_set, densepose_set, edit, picture


def splits(root: Path, **options: Any) -> Any:
    return labelled_splits(root, **options)


def test_a_good_set_passes_in_silence(tmp_path: Path) -> None:
    """Breaks when a check cries at what is as it should be."""
    train, test = splits(coco_set(tmp_path), extras=("segmentation",))
    preflight(train, test, extras=("segmentation",))
    assert list(doubts(train, test)) == []


def test_labels_that_lack_what_is_learned(tmp_path: Path) -> None:
    """Breaks when a keypoint detector trains for hours on none."""
    train, test = splits(coco_set(tmp_path), extras=("keypoints",))
    with pytest.raises(ValueError, match=r"instances_train2017\.json: none of 3 annotations has keypoints"):
        preflight(train, test, extras=("keypoints",))
    densepose_set(tmp_path / "dense")
    train, test = splits(tmp_path / "dense", extras=("dp",))
    preflight(train, test, extras=("dp",))


def test_shares_for_pixels(tmp_path: Path) -> None:
    """Boxes of 0 to 1 are boxes of a pixel in the corner. Breaks when they are learned as such."""

    def shrink(content: Any) -> None:
        for annotation in content["annotations"]:
            annotation["bbox"] = [0.1, 0.2, 0.5, 0.7]

    edit(coco_set(tmp_path) / "annotations/instances_train2017.json", shrink)
    train, test = splits(tmp_path)
    with pytest.raises(ValueError, match=r"instances_train2017\.json: all 3 boxes end within 0\.9 pixels"):
        preflight(train, test, extras=())


def test_images_of_other_sizes_than_their_labels(tmp_path: Path) -> None:
    """Breaks when the first step of a long run, or its last measurement, meets what the heads of the files say."""
    coco_set(tmp_path)
    picture(tmp_path / "val2017/val0.png", 20, 15)
    train, test = splits(tmp_path)
    with pytest.raises(
        ValueError, match=r"val2017\.json: 1 of 1 images tried do not fit; .*json says 40 x 30"
    ):
        preflight(train, test, extras=())
    picture(tmp_path / "train2017/train1.png", 20, 15)
    with pytest.raises(ValueError) as caught:
        preflight(train, test, extras=("keypoints",))
    assert "instances_train2017" not in str(caught.value), (
        "one bad image of two is for the policy of bad images"
    )


def test_categories_that_are_measured_and_never_learned(tmp_path: Path) -> None:
    train, test = splits(coco_set(tmp_path, bees=False))
    (doubt,) = doubts(train, test)
    assert "no training box of categories that are measured, bee" in doubt
    assert list(doubts(train.subset([1]), test.subset([]))) == [], "nothing is measured"


def test_images_that_are_trained_and_measured(tmp_path: Path) -> None:
    """Breaks when figures on the training images are taken for a test's."""
    file = coco_set(tmp_path) / "annotations/instances_train2017.json"
    train, test = splits(file, val=file)
    (doubt,) = doubts(train, test)
    assert "2 of 2 images to measure on are trained on too (train0.png, train1.png)" in doubt


def test_a_main_figure_next_to_nothing_names_its_suspects(tmp_path: Path) -> None:
    """Breaks when a run that learned nothing ends like any other, or a good one is suspected."""
    train, test = splits(coco_set(tmp_path, bees=False))
    recipe = faster_rcnn_fpn().changed({"steps": 3, "batch_size": 2, "lr": 0.04, "optim.lr_batch": 8})
    said = suspects(recipe, train, test, {"AP": 0.0, "AP50": 0.0})
    assert said is not None and said.startswith("AP is 0.00 at the end of training: ")
    for word in (
        "too few steps: 3 are 3.0 passes over 2 images, which is few",
        "learning rate: 0.01 ",
        "the first category is 3 cat; 0 of 2 have boxes in both splits",
        f"wrong folder of images: {tmp_path / 'train2017'} and {tmp_path / 'val2017'}",
    ):
        assert word in said
    assert suspects(recipe, train, test, {"AP": 1.0, "mask_AP": 40.0, "kp_AP50": 0.0}) is None
    assert suspects(recipe, train, test, {"AP": -1.0}) is None, "there was nothing to find"


def test_every_main_figure_is_judged(tmp_path: Path) -> None:
    """Breaks when good boxes hide masks or keypoints that were not learned, or a picture of sky alone passes."""
    train, test = splits(coco_set(tmp_path))

    def judged(**results: float) -> str | None:
        said = suspects(faster_rcnn_fpn(), train, test, results)
        return None if said is None else said.partition(" at the end")[0]

    assert judged(AP=30.0, mask_AP=0.4, kp_AP=0.05, mask_AP50=9.0) == "mask_AP is 0.40, kp_AP is 0.05"
    assert judged(AP=30.0, mask_AP=30.0, gps_AP=-1.0) is None
    one = {"IoU sky": 60.0, "IoU dog": 0.0, "IoU cat": -1.0}
    assert judged(mIoU=30.0, **one) == "mIoU is 30.00"
    assert judged(mIoU=33.5, **{**one, "IoU dog": 7.0}) is None
    assert judged(mIoU=0.0) == "mIoU is 0.00"


def test_settings_of_data_ask_for_their_fields() -> None:
    """Breaks when a set is filtered by a field that was not read."""
    recipe = faster_rcnn_fpn()
    assert fields(recipe) == ()
    asked = recipe.changed({"data.min_keypoints": 1, "data.difficult": False, "data.repeat_threshold": 0.001})
    assert fields(asked) == ("difficult", "keypoints")
    assert asked.data == TransferData(min_keypoints=1, difficult=False, repeat_threshold=0.001)
    assert (type(asked.optim), type(asked.schedule), type(asked.run)) == (SGD, Schedule, Run)
