"""LVIS's photos by address and its federated labels; Cityscapes' things, groups and classes of pixels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boxwise.data.formats.cityscapes import SEMANTIC
from boxwise.data.outlines import rasterise
from boxwise.data.targets import Labelled, open_labelled
from layouts import LVIS_CATEGORIES, city_ids, cityscapes_set, densepose_set, lvis_set


def test_lvis_finds_photos_by_their_address(tmp_path: Path) -> None:
    """A val split with photos of train2017. Breaks when only the last part of an address is taken."""
    lvis_set(tmp_path)
    train, val = (
        open_labelled(tmp_path, split=split, extras=("segmentation",)) for split in ("train", "val")
    )
    assert [val.name(i) for i in range(2)] == ["val2017/000000000139.jpg", "train2017/000000000030.jpg"]
    assert train.name(0) == "train2017/000000000009.jpg"
    assert train.format == val.format == "lvis"
    labels = val.read(1)[1]
    assert (labels.boxes.tolist(), labels.labels.tolist()) == ([[4, 5, 10, 12]], [2])
    assert labels.extras["segmentation"] == ([[4, 5, 10, 5, 10, 12, 4, 12]],)


def test_lvis_keeps_what_its_metric_needs(tmp_path: Path) -> None:
    """Breaks when images lose the categories that were looked for, or categories their frequency."""
    truth = open_labelled(lvis_set(tmp_path), split="val").coco()
    assert [image["neg_category_ids"] for image in truth["images"]] == [[3], [3]]
    assert [image["not_exhaustive_category_ids"] for image in truth["images"]] == [[2], [2]]
    assert truth["categories"] == LVIS_CATEGORIES


def test_lvis_by_its_jsons(tmp_path: Path) -> None:
    """In annotations/, named by themselves, or under another name: the federated metric is LVIS's by its fields."""
    lvis_set(tmp_path)
    (tmp_path / "annotations").mkdir()
    for file in sorted(tmp_path.glob("*.json")):
        file.rename(tmp_path / "annotations" / file.name)
    assert len(open_labelled(tmp_path, split="train")) == 2
    file = tmp_path / "annotations/lvis_v1_val.json"
    assert open_labelled(file, split="val").path(0) == tmp_path / "val2017/000000000139.jpg"
    assert open_labelled(file, split="val", images=tmp_path).format == "lvis"
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["file_name"] = "/".join(image.pop("coco_url").split("/")[-2:])
    (tmp_path / "mine.json").write_text(json.dumps(content))
    assert open_labelled(tmp_path / "mine.json", split="val").format == "lvis"
    shutil.rmtree(tmp_path / "train2017")
    shutil.rmtree(tmp_path / "val2017")
    with pytest.raises(
        ValueError, match=r"lvis_v1_val\.json: COCO's train2017/ and val2017/ are not beside it"
    ):
        open_labelled(tmp_path, split="val")


def test_lvis_cannot_lead_out(tmp_path: Path) -> None:
    lvis_set(tmp_path)
    content = json.loads((tmp_path / "lvis_v1_val.json").read_text())
    content["images"][0]["coco_url"] = "http://x/../secret.jpg"
    (tmp_path / "lvis_v1_val.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"absolute or contain \.\.: '\.\./secret\.jpg'"):
        open_labelled(tmp_path, split="val")


@pytest.fixture(params=["pictures", "polygons"])
def city(request: pytest.FixtureRequest, tmp_path: Path) -> Labelled:
    """Both ways of telling the same things."""
    cityscapes_set(tmp_path, pictures=request.param == "pictures")
    return open_labelled(tmp_path, split="train", extras=("segmentation",))


def test_cityscapes_things(city: Labelled) -> None:
    """Breaks when a car hides nothing, a last pixel is lost, a group is learned, or a license plate is a thing."""
    assert city.name(0) == "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    assert city.format == "cityscapes"
    assert {c.id: c.name for c in city.categories} == {
        **{24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train"},
        **{32: "motorcycle", 33: "bicycle"},
    }
    labels = city.read(0)[1]
    names = [city.categories[k - 1].name for k in labels.labels]
    ids = city_ids(counted=True)
    values = {26: "car", 24000: "person", 26000: "car", 26001: "car"}
    assert names == [*values.values()]
    assert labels.crowd.tolist() == [True, False, False, False]
    assert labels.boxes.tolist() == [[20, 10, 25, 15], [30, 20, 33, 28], [2, 3, 12, 9], [8, 3, 16, 7]]
    for value, outline, area in zip(values, labels.extras["segmentation"], labels.area, strict=True):
        mask = rasterise(outline, source=(30, 40), size=(30, 40)).numpy()
        assert (mask == (ids == value)).all() and area == mask.sum()


def test_cityscapes_classes_of_pixels(city: Labelled) -> None:
    """Breaks when label ids are taken for train ids, or what has none is learned."""
    table = np.full(34, 255, dtype=np.uint8)
    table[[7, 24, 26]] = (SEMANTIC.index("road"), SEMANTIC.index("person"), SEMANTIC.index("car"))
    assert (table[[7, 24, 26]] == (0, 11, 13)).all() and len(SEMANTIC) == 19
    assert (city.semantic(0).numpy() == table[city_ids(counted=False)]).all()
    assert city.semantic_names == SEMANTIC


def test_cityscapes_ground_truth_and_val(tmp_path: Path) -> None:
    val = open_labelled(cityscapes_set(tmp_path), split="val")
    truth = val.coco()
    assert [(a["category_id"], a["iscrowd"]) for a in truth["annotations"]] == [
        (26, 1),
        (24, 0),
        (26, 0),
        (26, 0),
    ]
    assert [a["area"] for a in truth["annotations"]] == [25, 24, 60 - 16, 32]
    ids = city_ids(counted=True)
    ids[0, 0] = 33000
    Image.fromarray(ids).save(next((tmp_path / "gtFine/val").glob("*/*_instanceIds.png")))
    with pytest.raises(ValueError, match="has changed since it was opened"):
        val.coco()


def test_cityscapes_without_labels_is_named(tmp_path: Path) -> None:
    cityscapes_set(tmp_path, pictures=False)
    file = next((tmp_path / "gtFine/train").glob("*/*_polygons.json"))
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"polygons\.json: no outlines of Cityscapes \(KeyError"):
        open_labelled(tmp_path, split="train")
    file.unlink()
    with pytest.raises(ValueError, match=r"polygons\.json: No such file .*; accepted is leftImg8bit/"):
        open_labelled(tmp_path, split="train")
    shutil.rmtree(tmp_path / "leftImg8bit/train")
    with pytest.raises(ValueError, match=r"leftImg8bit/train: no \*/\*_leftImg8bit\.png"):
        open_labelled(tmp_path, split="train")


def test_densepose_in_its_own_layout(tmp_path: Path) -> None:
    densepose_set(tmp_path)
    train, val = (
        open_labelled(tmp_path, split=split, extras=("dp", "keypoints")) for split in ("train", "val")
    )
    assert train.name(0) == "COCO_train2014_000000000009.jpg"
    assert val.path(0) == tmp_path / "val2014/COCO_val2014_000000000009.jpg"
    first, second = val.read(0)[1].extras["dp"]
    assert (first["dp_x"], first["dp_I"]) == ([10.0, 200.5], [2.0, 23.0]) and second is None
    assert len(first["dp_masks"]) == 14


def test_classes_of_pixels_from_outlines(tmp_path: Path) -> None:
    """The small lies on the large, whichever comes first; a crowd counts for nothing. Turned as the picture is."""
    from test_targets import CATEGORIES, ground, marked, opened

    marked(tmp_path, 6)
    outlines = {
        90: ([[10, 10, 12, 10, 12, 12, 10, 12]], 4, 0),
        7: ([[8, 8, 20, 8, 20, 20, 8, 20]], 144, 0),
        3: ([[30, 0, 40, 0, 40, 10, 30, 10]], 100, 1),
    }
    stored = np.zeros((30, 40), dtype=np.uint8)
    stored[8:20, 8:20], stored[10:12, 10:12], stored[0:10, 30:40] = 2, 3, 255
    annotations = [
        {
            "image_id": 1,
            "category_id": k,
            "bbox": [1, 1, 9, 9],
            "segmentation": s,
            "area": area,
            "iscrowd": crowd,
        }
        for k, (s, area, crowd) in outlines.items()
    ]
    images = [{"id": 1, "file_name": "1.png", "width": 40, "height": 30}]
    labelled = opened(tmp_path, ground(images=images, annotations=annotations), extras=("segmentation",))
    assert len(CATEGORIES) == 3 and labelled.semantic_names == ("background", "cat", "bee", "dog")
    turned = torch.from_numpy(np.ascontiguousarray(np.rot90(stored, -1)))
    assert torch.equal(labelled.semantic(0), turned)
