"""What annotations hold beside boxes stays with its box and turns with its picture."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from odd_images import photo
from pycocotools.coco import COCO
from test_targets import SHARED, ground, lit, marked, of_one, opened

from boxwise.data.outlines import rasterise, rle
from boxwise.data.targets import Category, open_labelled

DENSE = {
    "dp_x": [0.0, 255.0],
    "dp_y": [51.0, 0.0],
    "dp_I": [1.0, 2.0],
    "dp_U": [0.5, 0.25],
    "dp_V": [0.1, 0.2],
}


def test_extras_stay_with_their_boxes(tmp_path: Path) -> None:
    """Annotations come out of order, one is left out. Breaks when an outline goes to another box."""
    content = ground()
    for k, annotation in enumerate(content["annotations"]):
        if k != 1:
            annotation["segmentation"] = [[k, 0, 5, 0, 5, 7]]
    content["annotations"][0] |= {"keypoints": [3, 4, 2], "num_keypoints": 1}
    labelled = opened(tmp_path, content, extras=("segmentation", "keypoints"))
    assert labelled.read(0)[1].extras == {"segmentation": (None,), "keypoints": (None,)}
    second = labelled.read(1)[1]
    assert second.extras["segmentation"] == ([[0, 0, 5, 0, 5, 7]], [[2, 0, 5, 0, 5, 7]])
    assert second.extras["keypoints"] == ([3, 4, 2], None)
    assert labelled.read(2)[1].extras == {"segmentation": (), "keypoints": ()}
    assert pickle.loads(pickle.dumps(labelled)).read(1)[1].extras == second.extras
    assert pickle.loads(pickle.dumps(labelled)).coco() == labelled.coco()


def test_none_are_kept_unless_asked_for(tmp_path: Path) -> None:
    """Breaks when every worker gets the outlines that its detector never reads."""
    content = of_one([2, 3, 4, 6], (40, 30), segmentation=[[0, 0, 5, 0, 5, 7]])
    marked(tmp_path, 1)
    assert opened(tmp_path, content).read(0)[1].extras == {}


def test_the_parts_of_densepose_are_one_extra(tmp_path: Path) -> None:
    content = ground()
    content["annotations"][2] |= DENSE
    labelled = opened(tmp_path, content, extras=("dp",))
    assert labelled.read(1)[1].extras == {"dp": (None, DENSE)}


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_outlines_turn_with_the_picture(tmp_path: Path, orientation: int) -> None:
    """Rasterised against the pixels. Breaks when boxes are turned and what belongs to them is not."""
    marked(tmp_path, orientation)
    mask = torch.zeros(30, 40, dtype=torch.uint8)
    mask[3:9, 2:6] = 1
    for outline in ([[2, 3, 6, 3, 6, 9, 2, 9]], rle(mask.numpy())):
        content = of_one([2, 3, 4, 6], (40, 30), segmentation=outline, keypoints=[2, 3, 2, 0, 0, 0])
        labelled = opened(tmp_path, content, extras=("segmentation", "keypoints"))
        picture, found = labelled.read(0)
        shown = rasterise(found.extras["segmentation"][0], source=(40, 30), size=(40, 30))
        assert torch.equal(shown, (picture[0] > 127).to(torch.uint8))
        truth = labelled.coco()["annotations"][0]
        assert (truth["segmentation"], truth["keypoints"]) == tuple(
            found.extras[name][0] for name in ("segmentation", "keypoints")
        )
        x, y, seen = found.extras["keypoints"][0][:3]
        left, top, right, bottom = lit(picture)
        assert x in (left, right) and y in (top, bottom) and seen == 2
        assert found.extras["keypoints"][0][3:] == [0, 0, 0], "what was not seen is nowhere"


def test_densepose_turns_within_its_box(tmp_path: Path) -> None:
    """The stored left edge is the upright top edge at 6 (a quarter to the right). Parts, U and V stay."""
    marked(tmp_path, 6)
    part = torch.zeros(256, 256, dtype=torch.uint8)
    part[:10, :20] = 1
    dense = {**DENSE, "dp_masks": [[], rle(part.numpy())]}
    labelled = opened(tmp_path, of_one([2, 3, 4, 6], (40, 30), **dense), extras=("dp",))
    found = labelled.read(0)[1].extras["dp"][0]
    assert (found["dp_x"], found["dp_y"]) == ([204.0, 255.0], [0.0, 255.0])
    assert {key: found[key] for key in ("dp_I", "dp_U", "dp_V")} == {
        key: DENSE[key] for key in ("dp_I", "dp_U", "dp_V")
    }
    assert found["dp_masks"][0] == []
    turned = rasterise(found["dp_masks"][1], source=(256, 256), size=(256, 256))
    assert torch.equal(turned, part.T.flip(1))


def split_of(root: Path, name: str, folder: str, **annotation: Any) -> None:
    content = of_one([1, 2, 3, 4], (40, 30), **annotation)
    content["categories"] = [{"id": 3, "name": name, "keypoints": ["nose"], "skeleton": [[1, 1]]}]
    photo(root / folder / "1.png", 40, 30)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"{name}.json").write_text(json.dumps(content))


def test_a_root_gives_the_json_that_has_the_extras(tmp_path: Path) -> None:
    """Breaks when a keypoint detector is given the instances, or a box detector people alone."""
    for name, folder in (
        ("instances_train2017", "train2017"),
        ("person_keypoints_train2017", "train2017"),
        ("densepose_coco_2014_train", "train2014"),
        ("densepose_coco_2014_minival", "val2014"),
        ("densepose_coco_2014_valminusminival", "val2014"),
    ):
        split_of(tmp_path, name, folder, keypoints=[1, 1, 2], **DENSE)

    def found(split: Any, *extras: str) -> str:
        labelled = open_labelled(tmp_path, split=split, extras=extras)
        labelled.read(0)
        return labelled.categories[0].name

    assert found("train") == found("train", "segmentation") == "instances_train2017"
    assert found("train", "keypoints") == "person_keypoints_train2017"
    assert found("train", "keypoints", "dp") == "densepose_coco_2014_train"
    assert found("val", "dp") == "densepose_coco_2014_minival"
    people = open_labelled(tmp_path, split="train", extras=("keypoints",)).categories
    assert people == (Category(3, "person_keypoints_train2017", ("nose",), ((1, 1),)),)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real photos are not here")
def test_real_outlines_and_keypoints() -> None:
    """Outlines of a few photos as pycocotools fills them; every keypoint that is seen lies in its picture."""
    oracle = COCO()
    people = open_labelled(SHARED / "coco_sample", split="val", extras=("segmentation", "keypoints"))
    assert [c.name for c in people.categories] == ["person"] and len(people.categories[0].keypoints) == 17
    assert people.categories[0].keypoints[5] == "left_shoulder"
    masks = points = 0
    for i in range(0, len(people), 8):
        picture, labels = people.read(i)
        size = (picture.shape[1], picture.shape[2])
        oracle.imgs = {1: {"height": size[0], "width": size[1]}}
        outlines, keypoints = labels.extras["segmentation"], labels.extras["keypoints"]
        for outline, marks in zip(outlines, keypoints, strict=True):
            filled = rasterise(outline, source=size, size=size).numpy()
            assert (filled == oracle.annToMask({"image_id": 1, "segmentation": outline})).all()
            xyv = torch.tensor(marks, dtype=torch.float32).view(17, 3)
            seen = xyv[xyv[:, 2] > 0, :2]
            assert (seen >= 0).all() and (seen < torch.tensor(size[::-1])).all()
            masks, points = masks + 1, points + len(seen)
    assert masks > 20 and points > 50
