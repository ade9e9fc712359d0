"""Boxes lie where they were drawn, whatever the camera did; a json that cannot be true is told so."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval import COCOeval_faster
from odd_images import photo
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from boxwise.data.decode import BadImage
from boxwise.data.targets import Category, Labelled, choose, open_labelled

CATEGORIES = [{"id": 7, "name": "bee"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]


def ground(**changes: Any) -> dict[str, Any]:
    """Three images of 40 x 30, the last without boxes; ids with gaps, annotations out of order."""
    content = {
        "info": {"description": "made by hand"},
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (12, 5, 8)],
        "annotations": [
            {"id": 4, "image_id": 5, "category_id": 90, "bbox": [1, 2, 10, 20], "area": 150, "iscrowd": 1},
            {"id": 9, "image_id": 12, "category_id": 3, "bbox": [0.5, 0, 8.25, 30], "iscrowd": 0},
            {"id": 2, "image_id": 5, "category_id": 7, "bbox": [20, 5, 20, 25]},
        ],
        "categories": CATEGORIES,
    }
    return {**content, **changes}


def written(root: Path, content: dict[str, Any]) -> Path:
    for image in content["images"]:
        if not (root / "photos" / image["file_name"]).exists():
            photo(root / "photos" / image["file_name"], image.get("width", 40), image.get("height", 30))
    (root / "boxes.json").write_text(json.dumps(content))
    return root / "boxes.json"


def opened(root: Path, content: dict[str, Any] | None = None, **options: Any) -> Labelled:
    file = written(root, content or ground())
    return open_labelled(file, split="train", images=root / "photos", **options)


def refusal(root: Path, content: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as caught:
        opened(root, content)
    assert str(root / "boxes.json") in str(caught.value)
    return str(caught.value)


def test_boxes_labels_areas_and_crowds(tmp_path: Path) -> None:
    """Breaks when xywh is taken as xyxy, boxes go to the wrong image, or category ids to the network."""
    labelled = opened(tmp_path)
    assert len(labelled) == 3
    assert labelled.categories == (Category(3, "cat"), Category(7, "bee"), Category(90, "dog"))
    picture, first = labelled.read(0)
    assert picture.shape == (3, 30, 40)
    assert first.boxes.tolist() == [[0.5, 0, 8.75, 30]]
    assert (first.labels.tolist(), first.area.tolist()) == ([1], [8.25 * 30])
    second = labelled.read(1)[1]
    assert second.boxes.tolist() == [[1, 2, 11, 22], [20, 5, 40, 30]]
    assert second.labels.tolist() == [3, 2]
    assert second.area.tolist() == [150, 500], "the stated area; without one the box's"
    assert second.crowd.tolist() == [True, False]
    third = labelled.read(2)[1]
    assert third.boxes.shape == (0, 4) and len(third.labels) == len(third.crowd) == 0
    assert [labelled.image_id(i) for i in range(3)] == [12, 5, 8]
    assert [labelled.name(i) for i in range(3)] == ["12.png", "5.png", "8.png"]


def test_a_sample_can_be_changed(tmp_path: Path) -> None:
    """Breaks when an augmentation in place spoils the boxes of the next epoch."""
    labelled = opened(tmp_path)
    found = labelled.read(1)[1]
    for field in (found.boxes, found.labels, found.area, found.crowd):
        field.zero_()
    again = labelled.read(1)[1]
    assert again.boxes[0].tolist() == [1, 2, 11, 22]
    assert (again.labels[0], again.area[0], again.crowd[0]) == (3, 150, True)


# Orientation: a white box on black, 4 x 6 at (2, 3) of a stored 40 x 30 picture


def marked(root: Path, orientation: int, suffix: str = "png") -> None:
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[3:9, 2:6] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    (root / "photos").mkdir(exist_ok=True)
    Image.fromarray(pixels).save(root / f"photos/1.{suffix}", exif=exif)


def of_one(bbox: list[float], size: tuple[int, int], suffix: str = "png", **more: Any) -> dict[str, Any]:
    return ground(
        images=[{"id": 1, "file_name": f"1.{suffix}", "width": size[0], "height": size[1]}],
        annotations=[{"id": 1, "image_id": 1, "category_id": 3, "bbox": bbox, **more}],
    )


def lit(picture: Any) -> list[int]:
    """The white box as pixels show it."""
    rows, columns = np.nonzero(picture[0].numpy() > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_the_stored_picture_turn_with_it(tmp_path: Path, orientation: int, suffix: str) -> None:
    """The json has the size of the unrotated file. Breaks when pixels are turned and boxes are not."""
    marked(tmp_path, orientation, suffix)
    labelled = opened(tmp_path, of_one([2, 3, 4, 6], (40, 30), suffix))
    picture, found = labelled.read(0)
    assert picture.shape == (3, 40, 30)
    assert found.boxes.tolist() == [lit(picture)]
    truth = labelled.coco()
    x, y, w, h = truth["annotations"][0]["bbox"]
    assert [x, y, x + w, y + h] == lit(picture), "evaluation is in the same frame"
    assert (truth["images"][0]["width"], truth["images"][0]["height"]) == (30, 40)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_boxes_of_the_upright_picture_stay(tmp_path: Path, orientation: int) -> None:
    """The json has the size that people see (2 to 4: both are one). Breaks when boxes are turned twice."""
    marked(tmp_path, orientation)
    size = (40, 30) if orientation < 5 else (30, 40)
    shown = np.array(Image.open(tmp_path / "photos/1.png").convert("L"))
    labelled = opened(tmp_path, of_one([5, 6, 7, 8], size))
    picture, found = labelled.read(0)
    assert found.boxes.tolist() == [[5, 6, 12, 14]]
    assert picture.shape == (3, size[1], size[0]) and shown.shape == (30, 40)
    assert labelled.coco()["annotations"][0]["bbox"] == [5, 6, 7, 8]


def test_a_json_without_sizes_means_what_people_see(tmp_path: Path) -> None:
    marked(tmp_path, 6)
    content = of_one([5, 30, 7, 8], (0, 0))
    for absent in ({}, {"width": None, "height": None}, {"width": 0, "height": 0}):
        content["images"] = [{"id": 1, "file_name": "1.png", **absent}]
        labelled = opened(tmp_path, content)
        assert labelled.read(0)[1].boxes.tolist() == [[5, 30, 12, 38]]
        assert labelled.coco()["images"][0]["height"] == 40


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    """Breaks when boxes of a full-size photo are learned on its thumbnail."""
    marked(tmp_path, 1)
    labelled = opened(tmp_path, of_one([5, 6, 7, 8], (400, 300)))
    for use in (lambda: labelled.read(0), labelled.coco):
        with pytest.raises(BadImage, match=r"1\.png: 40 x 30 pixels, but its json says 400 x 300"):
            use()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_outlines_and_keypoints_turn_with_the_picture(tmp_path: Path) -> None:
    """Polygons, both kinds of RLE, and keypoints, against the pixels. Keypoints not seen stay at zero."""
    marked(tmp_path, 6)
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[3:9, 2:6] = 1
    packed = masks.encode(np.asfortranarray(mask))
    runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel(), [1 - mask[-1, -1]]])))
    outlines = [
        [[2, 3, 6, 3, 6, 9, 2, 9]],
        {"size": [30, 40], "counts": packed["counts"].decode()},
        {"size": [30, 40], "counts": np.diff(np.concatenate([[0], runs])).tolist()},
    ]
    for outline in outlines:
        content = of_one([2, 3, 4, 6], (40, 30), segmentation=outline, keypoints=[2, 3, 2, 0, 0, 0])
        labelled = opened(tmp_path, content)
        truth = labelled.coco()
        oracle = COCO()
        oracle.dataset = truth
        oracle.createIndex()
        shown = labelled.read(0)[0][0].numpy() > 127
        assert (oracle.annToMask(truth["annotations"][0]).astype(bool) == shown).all()
        assert truth["annotations"][0]["keypoints"] == [27, 2, 2, 0, 0, 0]


# Ground truth


def evaluated(truth: dict[str, Any], results: list[dict[str, Any]]) -> list[list[float]]:
    """The twelve figures of pycocotools and of faster-coco-eval."""
    found = []
    for coco, evaluator in ((COCO, COCOeval), (FasterCOCO, COCOeval_faster)):
        held = coco()
        held.dataset = copy.deepcopy(truth)
        held.createIndex()
        run = evaluator(held, held.loadRes(copy.deepcopy(results)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
        found.append([float(figure) for figure in run.stats[:12]])
    return found


def perfect(labelled: Labelled) -> list[dict[str, Any]]:
    """What a detector without fault would hand in."""
    results = []
    for i in range(len(labelled)):
        labels = labelled.read(i)[1]
        for box, label in zip(labels.boxes[~labels.crowd], labels.labels[~labels.crowd]):
            x, y, right, bottom = box.tolist()
            category = labelled.categories[int(label) - 1].id
            one = {"image_id": labelled.image_id(i), "category_id": category, "score": 1.0}
            results.append({**one, "bbox": [x, y, right - x, bottom - y]})
    return results


@pytest.mark.parametrize("first_id", [0, 1, None])
def test_perfect_detections_score_one(tmp_path: Path, first_id: int | None) -> None:
    """Breaks when ids, labels or frames of boxes and ground truth part, or an id of 0 counts as no match."""
    content = ground()
    for k, annotation in enumerate(content["annotations"]):
        annotation.pop("id")
        if first_id is not None:
            annotation["id"] = first_id + 2 - k
    labelled = opened(tmp_path, content)
    for figures in evaluated(labelled.coco(), perfect(labelled)):
        assert [figures[0], figures[8]] == pytest.approx([1.0, 1.0])


def test_a_crowd_is_neither_missed_nor_counted(tmp_path: Path) -> None:
    """Breaks when iscrowd is lost on the way: a detection inside the crowd would cost precision."""
    labelled = opened(tmp_path)
    inside = {"image_id": 5, "category_id": 90, "bbox": [2, 3, 5, 5], "score": 1.0}
    for figures in evaluated(labelled.coco(), [*perfect(labelled), inside]):
        assert figures[0] == pytest.approx(1.0)


def test_ground_truth_is_the_json_itself(tmp_path: Path) -> None:
    """Breaks when outlines, keypoints or licences are lost, or boxes rounded, on the way to an evaluator."""
    content = ground(licenses=[{"id": 1}])
    for annotation in content["annotations"]:
        annotation |= {"segmentation": [[0, 0, 5, 0, 5.125, 7]], "area": 17.5, "iscrowd": 0, "note": "kept"}
    truth = opened(tmp_path, content).coco()
    by_id = {a["id"]: a for a in truth["annotations"]}
    assert by_id == {a["id"]: a for a in content["annotations"]}
    assert {k: v for k, v in truth.items() if k != "annotations"} == {
        k: v for k, v in content.items() if k != "annotations"
    }


def test_a_subset_has_its_own_ground_truth(tmp_path: Path) -> None:
    labelled = opened(tmp_path).subset([2, 1])
    assert [labelled.image_id(i) for i in range(2)] == [8, 5]
    truth = labelled.coco()
    assert [image["id"] for image in truth["images"]] == [8, 5]
    assert sorted(a["id"] for a in truth["annotations"]) == [2, 4]
    assert labelled.subset([1]).read(0)[1].labels.tolist() == [3, 2]


def test_a_json_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    labelled = opened(tmp_path)
    written(tmp_path, ground(info={}))
    with pytest.raises(ValueError, match="has changed since it was opened"):
        labelled.coco()


# What a json may not say


def with_box(bbox: Any, **more: Any) -> dict[str, Any]:
    content = ground()
    content["annotations"].append({"id": 11, "image_id": 8, "category_id": 3, "bbox": bbox, **more})
    return content


@pytest.mark.parametrize(
    ("bbox", "said"),
    [
        ([1, 2, 0, 5], "empty boxes"),
        ([1, 2, 5, 0.0], "empty boxes"),
        ([39, 2, 1e-9, 5], "empty boxes"),
        ([9, 9, -5, 5], "inverted boxes"),
        ([9, 9, 5, -5], "inverted boxes"),
        ([40, 0, 5, 5], "boxes outside their image"),
        ([-9, 0, 5, 5], "boxes outside their image"),
        ([300, 200, 50, 50], "boxes outside their image"),
        ([1, 2, 3], "not four numbers"),
        ([1, 2, 3, "4"], "not four numbers"),
        ([1, 2, 3, None], "not four numbers"),
        ([1, 2, float("nan"), 4], "not four numbers"),
        ([1, 2, float("inf"), 4], "not four numbers"),
    ],
)
def test_boxes_that_cannot_be_are_named(tmp_path: Path, bbox: list[Any], said: str) -> None:
    message = refusal(tmp_path, with_box(bbox))
    assert said in message
    assert "annotation 11 of 8.png [" in message
    assert message.count("annotation ") == 1, "only the bad one"


def test_few_empty_boxes_are_left_out(tmp_path: Path) -> None:
    """COCO's own train2017 holds two. Breaks when that stops a run, or an empty box reaches a detector."""
    content = with_box([1, 2, 0, 5])
    filler = {"image_id": 12, "category_id": 3, "bbox": [1, 1, 2, 2]}
    content["annotations"] += [{"id": 100 + k, **filler} for k in range(1000)]
    with pytest.warns(UserWarning, match=r"left out as empty: 1 of 1004 boxes, .* 11 of 8\.png"):
        labelled = opened(tmp_path, content)
    assert len(labelled.read(2)[1].labels) == 0
    assert len(labelled.read(0)[1].labels) == 1001
    assert all(a["id"] != 11 for a in labelled.coco()["annotations"])
    content["annotations"][-1]["bbox"] = [1, 1, 0, 0]
    assert "annotation 11 of 8.png" in refusal(tmp_path, content)


def test_boxes_over_the_edge_are_clipped(tmp_path: Path) -> None:
    """Silently by a pixel, as rounding does; beyond that with a warning. Evaluation keeps the json's box."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labelled = opened(tmp_path, with_box([-1, 20.5, 10, 10]))
    assert labelled.read(2)[1].boxes.tolist() == [[0, 20.5, 9, 30]]
    with pytest.warns(UserWarning, match=r"boxes\.json: clipped.* 1 of 4 .*8\.png \[30, 20, 20, 5\]"):
        labelled = opened(tmp_path, with_box([30, 20, 20, 5]))
    assert labelled.read(2)[1].boxes.tolist() == [[30, 20, 40, 25]]
    assert [a["bbox"] for a in labelled.coco()["annotations"] if a["id"] == 11] == [[30, 20, 20, 5]]


def test_references_to_nothing_are_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, with_box([1, 1, 2, 2], category_id=55))
    assert "annotation 11 is of category 55" in message and "known: 3 cat, 7 bee, 90 dog" in message
    assert "annotation 11 is of image 77" in refusal(tmp_path, with_box([1, 1, 2, 2], image_id=77))


def test_doubled_ids_are_named(tmp_path: Path) -> None:
    content = ground()
    content["images"][1]["id"] = 12
    assert 'ids used twice in "images": 12' in refusal(tmp_path, content)
    assert 'twice in "categories": 3' in refusal(
        tmp_path, ground(categories=[*CATEGORIES, {"id": 3, "name": "x"}])
    )


@pytest.mark.parametrize("name", ["../12.png", "/12.png", "a/../../12.png"])
def test_names_cannot_lead_out(tmp_path: Path, name: str) -> None:
    written(tmp_path, ground())
    content = ground()
    content["images"][0]["file_name"] = name
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"boxes\.json: names that are absolute or contain \.\."):
        open_labelled(tmp_path / "boxes.json", split="train", images=tmp_path / "photos")


def test_missing_files_are_named(tmp_path: Path) -> None:
    file = written(tmp_path, ground())
    (tmp_path / "photos/5.png").unlink()
    with pytest.raises(ValueError, match=r"boxes\.json: missing image files: '5\.png'; .*--images DIR"):
        open_labelled(file, split="train", images=tmp_path / "photos")


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    """Breaks when users mend one line, start again, and meet the next."""
    content = with_box([1, 2, 3, -4])
    bad = {"image_id": 8, "category_id": 99, "bbox": [500, 500, 1, 1]}
    content["annotations"] += [{"id": 20 + k, **bad} for k in range(9)]
    message = refusal(tmp_path, content)
    assert message.count("\n") == 3 and "3 kinds of problems" in message
    assert "annotation 20 of 8.png [500, 500, 1, 1]" in message
    assert message.count("and 6 more") == 2
    assert "annotation 11 of 8.png [1, 2, 3, -4]" in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"annotations": None}, 'no list "annotations"'),
        ({"categories": {}}, 'a dict for a list "categories"'),
        ({"annotations": []}, '"annotations" is empty'),
        ({"annotations": [{"image_id": 5, "bbox": [1, 2, 3, 4]}]}, r"without category_id \(int\)"),
        ({"annotations": [{"image_id": 5, "category_id": 3}]}, r"without bbox \(list\)"),
        ({"annotations": [{"image_id": "5", "category_id": 3, "bbox": []}]}, r"without image_id \(int\)"),
        ({"categories": [{"id": 3}]}, r"without name \(str\): entry 0: .'id': 3.; add it"),
    ],
)
def test_a_wrong_layout_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = written(tmp_path, ground())
    file.write_text(json.dumps({k: v for k, v in ground(**changes).items() if v is not None}))
    with pytest.raises(ValueError, match=rf"boxes\.json: .*{said}"):
        open_labelled(file, split="train", images=tmp_path / "photos")


def test_unreadable_images_are_refused(tmp_path: Path) -> None:
    """One bad file is met when it is read; a set of nothing else at once."""
    file = written(tmp_path, ground())
    (tmp_path / "photos/12.png").write_bytes(b"")
    labelled = open_labelled(file, split="train", images=tmp_path / "photos")
    with pytest.raises(BadImage, match=r"12\.png: empty file"):
        labelled.read(0)
    for name in ("5.png", "8.png"):
        (tmp_path / "photos" / name).write_bytes(b"?")
    with pytest.raises(ValueError, match="none of 3 images tried can be read"):
        open_labelled(file, split="train", images=tmp_path / "photos")


# Splits


def test_a_root_has_two_splits(tmp_path: Path) -> None:
    for split, image in (("train", 12), ("val", 8)):
        content = of_one([1, 2, 3, 4], (40, 30))
        content["images"][0] |= {"file_name": f"{image}.png", "id": image}
        content["annotations"][0]["image_id"] = image
        photo(tmp_path / f"{split}2017/{image}.png", 40, 30)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    assert open_labelled(tmp_path, split="train").name(0) == "12.png"
    assert open_labelled(tmp_path, split="val").name(0) == "8.png"
    for wrong in ({"images": tmp_path}, {"val": tmp_path / "x.json"}):
        with pytest.raises(ValueError, match="--images and --val go with --data FILE"):
            open_labelled(tmp_path, split="val", **wrong)
    with pytest.raises(ValueError, match=r"train2017: no labels here; --data takes a COCO root"):
        open_labelled(tmp_path / "train2017", split="train")
    with pytest.raises(ValueError, match="absent: no such file or folder"):
        open_labelled(tmp_path / "absent", split="train")


def test_a_json_has_its_val(tmp_path: Path) -> None:
    train = written(tmp_path, ground())
    val = tmp_path / "val.json"
    val.write_text(
        json.dumps(ground(images=ground()["images"][1:2], annotations=ground()["annotations"][:1]))
    )
    options: dict[str, Any] = {"images": tmp_path / "photos", "val": val}
    assert len(open_labelled(train, split="train", **options)) == 3
    assert len(open_labelled(train, split="val", **options)) == 1
    assert len(open_labelled(val, split="val", images=tmp_path / "photos")) == 1


def test_labels_follow_the_detector(tmp_path: Path) -> None:
    """A val json that knows fewer classes must not shift the labels; one that knows others is refused."""
    three = opened(tmp_path).categories
    only_dogs = of_one([1, 2, 3, 4], (40, 30))
    only_dogs["images"][0]["file_name"] = "5.png"
    only_dogs["annotations"][0]["category_id"] = 90
    only_dogs["categories"] = [{"id": 90, "name": "dog"}]
    assert opened(tmp_path, only_dogs).read(0)[1].labels.tolist() == [1]
    assert opened(tmp_path, only_dogs, categories=three).read(0)[1].labels.tolist() == [3]
    only_dogs["categories"] = [{"id": 90, "name": "wolf"}]
    with pytest.raises(ValueError, match="categories unknown to the detector: 90 wolf"):
        opened(tmp_path, only_dogs, categories=three)


# A share of the labels


@pytest.fixture
def many(tmp_path: Path) -> Labelled:
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(200)]
    boxes = [{"id": i + 1, "image_id": i, "category_id": 3, "bbox": [1, 1, 5, 5]} for i in range(200)]
    return opened(tmp_path, ground(images=images, annotations=boxes))


def ids(labelled: Labelled) -> list[int]:
    return [labelled.image_id(i) for i in range(len(labelled))]


def test_a_choice_lies_within_every_larger_one(many: Labelled) -> None:
    """Breaks when 5 % and 10 % of the labels are other images, and their difference is luck."""
    choices = [ids(choose(many, labels, seed=3)) for labels in (1, 0.05, 20, 0.5, 1.0, 200, None)]
    assert [len(c) for c in choices] == [1, 10, 20, 100, 200, 200, 200]
    for smaller, larger in pairwise(choices):
        assert set(smaller) <= set(larger)
        assert larger == sorted(larger)
    assert ids(choose(many, 20, seed=3)) == choices[2] != ids(choose(many, 20, seed=4))
    assert len(choose(many, 0.001, seed=0)) == 1, "a share is at least one image"


def test_anyone_can_draw_the_same_choice(many: Labelled) -> None:
    """Breaks when a published list depends on the order of a json, on a library's generator, or on other images."""

    def lot(name: str) -> bytes:
        return hashlib.sha256(f"3:{name}".encode()).digest()

    names = {many.name(i) for i in range(200)}
    chosen = choose(many, 0.1, seed=3)
    assert {chosen.name(i) for i in range(20)} == set(sorted(names, key=lot)[:20])
    backwards = choose(many.subset(range(199, -1, -1)), 0.1, seed=3)
    assert ids(backwards) == ids(chosen)[::-1]
    assert [chosen.name(i) for i in range(3)] == ["31.png", "45.png", "49.png"], (
        "the draw is the same for ever"
    )


@pytest.mark.parametrize("labels", [0, -1, 201, 0.0, -0.5, 1.5, 100.0, True])
def test_choices_that_cannot_be_are_refused(many: Labelled, labels: float) -> None:
    with pytest.raises(ValueError, match=rf"labels is {labels}; pass a share .* or a count from 1 to 200"):
        choose(many, labels, seed=0)


def test_a_choice_without_boxes_is_refused(tmp_path: Path) -> None:
    labelled = opened(tmp_path).subset([2])
    with pytest.raises(ValueError, match="none of the 1 images drawn has a box"):
        choose(labelled, 1, seed=0)


def test_the_fingerprint_tells_changes(tmp_path: Path, many: Labelled) -> None:
    """Breaks when a run resumes on other labels, boxes or pictures."""
    prints = [
        many.fingerprint(),
        choose(many, 5, seed=0).fingerprint(),
        choose(many, 5, seed=1).fingerprint(),
    ]
    photo(tmp_path / "photos/12.png", 64, 64)
    prints.append(many.fingerprint())
    (tmp_path / "two").mkdir()
    prints += [opened(tmp_path / "two", content).fingerprint() for content in (ground(), ground(info={}))]
    assert len(set(prints)) == 6
    (tmp_path / "two").rename(tmp_path / "three")
    assert opened(tmp_path / "three", ground(info={})).fingerprint() == prints[-1]


def test_a_set_is_cheap_to_send(many: Labelled) -> None:
    """Breaks when every worker gets the whole json."""
    sent = pickle.dumps(many)
    assert len(sent) < 200 * 120 + 3000
    assert pickle.loads(sent).read(7)[1].boxes.tolist() == [[1, 1, 6, 6]]


SHARED = Path(__file__).parents[3] / "shared/data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real photos are not here")
def test_real_annotations() -> None:
    """Every box of the sample of COCO, and BCCD's splits, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        coco = open_labelled(SHARED / "coco_sample", split="val")
        bccd = [
            open_labelled(
                SHARED / "bccd/coco/bccd_train.json",
                split=split,
                images=SHARED / "bccd/JPEGImages",
                val=SHARED / "bccd/coco/bccd_val.json",
            )
            for split in ("train", "val")
        ]
    assert [len(s) for s in bccd] == [205, 87]
    assert [c.name for c in bccd[0].categories] == ["Platelets", "RBC", "WBC"]
    assert len(coco.categories) == 80
    truth = coco.coco()
    original = json.loads((SHARED / "coco_sample/annotations/instances_val2017.json").read_text())
    assert len(truth["annotations"]) == len(original["annotations"]) == 987
    assert {a["id"]: a for a in truth["annotations"]} == {a["id"]: a for a in original["annotations"]}
    crowds = sum(int(coco.read(i)[1].crowd.sum()) for i in range(len(coco)))
    assert crowds == sum(a["iscrowd"] for a in original["annotations"]) > 0
    for figures in evaluated(truth, perfect(coco)):
        assert figures[0] == pytest.approx(1.0)
