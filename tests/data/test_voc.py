"""VOC's annotations as boxwise reads them: 07+12 and test2007, 1-based boxes, difficult things, hostile XML."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from test_targets import SHARED

from boxwise.data.formats.voc import CLASSES
from boxwise.data.targets import open_labelled
from layouts import voc_devkit, voc_image, voc_lists


def test_07_and_12_train_and_test2007_measures(tmp_path: Path) -> None:
    """Breaks when a year is missing, 2012 is measured on, or images of one name collide."""
    root = voc_devkit(tmp_path)
    train, test = (open_labelled(tmp_path, split=split) for split in ("train", "val"))
    assert [train.name(i) for i in range(3)] == [
        "VOC2007/JPEGImages/000005.jpg",
        "VOC2007/JPEGImages/000007.jpg",
        "VOC2012/JPEGImages/2008_000002.jpg",
    ]
    assert [test.name(i) for i in range(len(test))] == ["VOC2007/JPEGImages/000001.jpg"]
    assert train.format == test.format == "voc"
    assert [c.name for c in train.categories] == [*CLASSES] and train.categories == test.categories
    assert open_labelled(root, split="train").fingerprint() == train.fingerprint()


def test_boxes_become_half_open(tmp_path: Path) -> None:
    """VOC's (1, 1, 40, 30) is the whole of 40 x 30. Breaks when the last row and column are lost, or parts count."""
    voc_devkit(tmp_path)
    train = open_labelled(tmp_path, split="train")
    picture, first = train.read(0)
    assert picture.shape == (3, 30, 40)
    assert first.boxes.tolist() == [[0, 0, 40, 30], [10, 5, 20, 25]]
    assert [train.categories[k - 1].name for k in first.labels] == ["dog", "person"]
    assert first.area.tolist() == [1200, 200]
    assert train.read(2)[1].boxes.tolist() == [[33.5, 10, 40, 29]]
    assert open_labelled(tmp_path, split="val").read(0)[1].boxes.tolist() == [
        [2, 3, 12, 13],
        [19, 19, 20, 20],
    ]


def test_difficult_things_are_told_to_evaluators(tmp_path: Path) -> None:
    """They are trained on. Breaks when they are lost, or measured as crowds."""
    voc_devkit(tmp_path)
    truth = open_labelled(tmp_path, split="val").coco()
    assert [(a["difficult"], a["iscrowd"]) for a in truth["annotations"]] == [(0, 0), (1, 0)]
    assert [a["bbox"] for a in truth["annotations"]] == [[2, 3, 10, 10], [19, 19, 1, 1]]
    assert [image["id"] for image in truth["images"]] == [1]
    assert not any("origin" in a for a in truth["annotations"]), "a place in files is no part of COCO's form"


def test_one_year_alone(tmp_path: Path) -> None:
    """With a test list it is trainval and test; without one, train and val."""
    year = voc_devkit(tmp_path) / "VOC2007"
    assert [len(open_labelled(year, split=split)) for split in ("train", "val")] == [2, 1]
    (year / "ImageSets/Main/test.txt").unlink()
    train, val = (open_labelled(year, split=split) for split in ("train", "val"))
    assert (train.name(0), val.name(0)) == ("000005.jpg", "000007.jpg")
    with pytest.raises(ValueError, match=r"VOC2007/ImageSets/Main/test\.txt: no such list"):
        open_labelled(tmp_path, split="val")


def test_other_classes_are_the_same_in_both_splits(tmp_path: Path) -> None:
    """Breaks when labels are numbered by the names that a split happens to have."""
    voc_image(tmp_path, "a", [("bolt", (2, 2, 5, 5), 0)])
    voc_image(tmp_path, "b", [("nut", (2, 2, 5, 5), 0), ("ant", (2, 2, 5, 5), 0)])
    voc_lists(tmp_path, train=["a 1"], val=["b -1"])
    splits = [open_labelled(tmp_path, split=split) for split in ("train", "val")]
    for labelled in splits:
        assert [(c.id, c.name) for c in labelled.categories] == [(1, "ant"), (2, "bolt"), (3, "nut")]
    assert [labelled.read(0)[1].labels.tolist() for labelled in splits] == [[2], [3, 1]]


def test_changed_annotations_are_noticed(tmp_path: Path) -> None:
    voc_devkit(tmp_path)
    test = open_labelled(tmp_path, split="val")
    voc_image(tmp_path / "VOCdevkit/VOC2007", "000001", [("dog", (3, 4, 12, 13), 0)])
    with pytest.raises(ValueError, match="has changed since it was opened"):
        test.coco()
    assert open_labelled(tmp_path, split="val").fingerprint() != test.fingerprint()


BOMB = """<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""
READS_A_FILE = """<!DOCTYPE annotation [<!ENTITY secret SYSTEM "file:///etc/hostname">]>
<annotation><object><name>&secret;</name></object></annotation>"""


@pytest.mark.parametrize("text", [BOMB, READS_A_FILE])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused(tmp_path: Path, text: str, encoding: str) -> None:
    """Breaks when an annotation can make memory grow without bound, or show other files."""
    year = voc_devkit(tmp_path) / "VOC2007"
    (year / "Annotations/000007.xml").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=r"no plain XML: .*000007\.xml \(a DOCTYPE") as caught:
        open_labelled(tmp_path, split="train")
    assert "aaaa" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation><object>", r"no plain XML: .*000007\.xml"),
        (
            "<annotation><object><name>car</name></object></annotation>",
            r"without name or box: .*000007\.xml, obj",
        ),
        (
            "<annotation><object><name>car</name><bndbox><xmin>a</xmin></bndbox></object></annotation>",
            r"without name or box: .*000007\.xml, object 1",
        ),
    ],
)
def test_broken_annotations_are_named(tmp_path: Path, text: str, said: str) -> None:
    year = voc_devkit(tmp_path) / "VOC2007"
    (year / "Annotations/000007.xml").write_text(text)
    with pytest.raises(ValueError, match=said):
        open_labelled(tmp_path, split="train")


def test_missing_files_and_inverted_boxes_are_named(tmp_path: Path) -> None:
    year = voc_devkit(tmp_path) / "VOC2007"
    (year / "Annotations/000007.xml").unlink()
    with pytest.raises(ValueError, match=r"annotations that cannot be read: .*000007\.xml \(No such file"):
        open_labelled(tmp_path, split="train")
    voc_image(year, "000007", [("car", (9, 5, 5, 9), 0)])
    with pytest.raises(ValueError, match="inverted boxes") as caught:
        open_labelled(tmp_path, split="train")
    where = f"{year}/Annotations/000007.xml, object 1 (xmin 9, ymin 5, xmax 5, ymax 9); xmin, ymin, xmax, ymax count"
    assert where in str(caught.value) and "bbox" not in str(caught.value)
    voc_image(year, "000007", [("car", (5, 5, 9, 9), 0)])
    (year / "JPEGImages/000007.jpg").unlink()
    with pytest.raises(ValueError, match=r"missing image files: 'VOC2007/JPEGImages/000007\.jpg'"):
        open_labelled(tmp_path, split="train")
    voc_lists(year, trainval=["../000005"])
    with pytest.raises(ValueError, match=r"trainval\.txt: '\.\./000005'"):
        open_labelled(tmp_path, split="train")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real photos are not here")
def test_real_annotations_equal_their_json() -> None:
    """BCCD has XML and COCO jsons of the same boxes, whose corners differ by VOC's pixel."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        test = open_labelled(SHARED / "bccd", split="val")
    assert len(test) == 72 and len(open_labelled(SHARED / "bccd", split="train")) == 292
    assert [c.name for c in test.categories] == ["Platelets", "RBC", "WBC"]
    content = json.loads((SHARED / "bccd/coco/bccd_test.json").read_text())
    names = {image["file_name"]: image["id"] for image in content["images"]}
    labels = {c["id"]: c["name"] for c in content["categories"]}
    for i in range(len(test)):
        theirs = [a for a in content["annotations"] if a["image_id"] == names[test.name(i)]]
        ours = test.read(i)[1]
        assert [test.categories[k - 1].name for k in ours.labels] == [
            labels[a["category_id"]] for a in theirs
        ]
        for box, a in zip(ours.boxes.tolist(), theirs, strict=True):
            x, y, w, h = a["bbox"]
            corners = [x, y, x + w, y + h]
            assert all(abs(p - q) <= 1 for p, q in zip(box, corners, strict=True)), (
                test.name(i),
                box,
                corners,
            )
