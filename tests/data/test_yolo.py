"""YOLO's labels as boxwise reads them: shares become pixels, polygons outlines, and no path leads out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boxwise.data.targets import open_labelled
from layouts import picture, yolo_set


def test_boxes_and_polygons(tmp_path: Path) -> None:
    """On 40 x 30. Breaks when a centre is taken for a corner, or a polygon for a box."""
    file = yolo_set(tmp_path)
    for data in (file, tmp_path):
        train = open_labelled(data, split="train", extras=("segmentation",))
        assert [train.name(i) for i in range(2)] == ["images/train/a.jpg", "images/train/sub/b.jpg"]
        labels = train.read(0)[1]
        assert labels.boxes.tolist() == [[15, 12, 25, 18], [4, 3, 20, 15]]
        assert labels.labels.tolist() == [1, 2] and labels.area.tolist() == [60, 96]
        assert labels.extras["segmentation"] == (None, [[4, 3, 20, 3, 20, 15]])
        assert train.read(1)[1].boxes.shape == (0, 4), "no file of labels: no boxes"
        assert [(c.id, c.name) for c in train.categories] == [(0, "cat"), (1, "dog")]
        assert train.format == "yolo"
    val = open_labelled(file, split="val", categories=train.categories)
    assert val.read(0)[1].boxes.tolist() == [[0, 0, 20, 30]] and val.read(0)[1].labels.tolist() == [2]
    assert val.coco()["annotations"][0]["category_id"] == 1


def test_shares_are_of_the_upright_picture(tmp_path: Path) -> None:
    """Breaks when boxes of a photo that was held upright are scaled by its stored width."""
    file = yolo_set(tmp_path)
    picture(tmp_path / "images/val/c.jpg", exif=6)
    pixels, labels = open_labelled(file, split="val").read(0)
    assert pixels.shape == (3, 40, 30)
    assert labels.boxes.tolist() == [[0, 0, 15, 40]]


def test_lists_names_and_roots(tmp_path: Path) -> None:
    """A list is relative to its own folder; names may be numbered; ../train of exports is train."""
    (tmp_path / "set").mkdir()
    file = yolo_set(
        tmp_path / "set", names={0: "cat", 1: "dog"}, train=["lists/one.txt"], val="../images/val"
    )
    (tmp_path / "set/lists").mkdir()
    (tmp_path / "set/lists/one.txt").write_text("../images/train/a.jpg\n\n")
    assert [open_labelled(file, split="train").name(0)] == ["images/train/a.jpg"]
    assert open_labelled(file, split="val").name(0) == "images/val/c.jpg"
    (tmp_path / "data.yaml").write_text(file.read_text() + f"path: {tmp_path}/set\n")
    assert open_labelled(tmp_path / "data.yaml", split="val").name(0) == "images/val/c.jpg"
    (tmp_path / "data.yaml").write_text(f"train: {tmp_path}/set/images/train\nnames: [cat, dog]\n")
    assert len(open_labelled(tmp_path / "data.yaml", split="train")) == 2


def test_changed_labels_are_noticed(tmp_path: Path) -> None:
    train = open_labelled(yolo_set(tmp_path), split="train")
    (tmp_path / "labels/train/sub").mkdir()
    (tmp_path / "labels/train/sub/b.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(ValueError, match=r"data\.yaml: has changed since it was opened"):
        train.coco()


def test_a_path_may_lead_anywhere(tmp_path: Path) -> None:
    """Ultralytics' own yamls lie apart from their data. Breaks when the folder that a user states is refused."""
    yolo_set(tmp_path / "datasets/y")
    file = tmp_path / "code/data.yaml"
    file.parent.mkdir()
    for path, inside in (
        ("../datasets/y", "."),
        ("../datasets/y", tmp_path / "datasets/y"),
        (tmp_path, "datasets/y"),
    ):
        file.write_text(f"path: {path}\ntrain: {inside}/images/train\nval: images/val\nnames: [cat, dog]\n")
        train = open_labelled(file, split="train")
        assert [Path(train.name(i)).name for i in range(2)] == ["a.jpg", "b.jpg"]
        assert train.read(0)[1].boxes.tolist() == [[15, 12, 25, 18], [4, 3, 20, 15]]


@pytest.mark.parametrize("key", ["train", "val"])
@pytest.mark.parametrize("place", ["..", "../other", "/", "a/../..", ["images/val", "../other"]])
@pytest.mark.parametrize("path", [None, "../set"])
def test_nothing_leads_out_of_the_path(tmp_path: Path, key: Any, place: Any, path: str | None) -> None:
    """Breaks when a yaml from elsewhere makes a run read any file of the user's."""
    (tmp_path / "other").mkdir()
    file = yolo_set(tmp_path / "set", path=path, **{key: place})
    with pytest.raises(ValueError, match=rf"data\.yaml: {key}: .* leads out of"):
        open_labelled(file, split=key)


def test_no_line_of_a_list_leads_out(tmp_path: Path) -> None:
    file = yolo_set(tmp_path / "set", train="train.txt")
    picture(tmp_path / "secret.jpg")
    for line in ("../secret.jpg", str(tmp_path / "secret.jpg")):
        (tmp_path / "set/train.txt").write_text(f"{line}\n")
        with pytest.raises(ValueError, match=r"train\.txt: .*secret\.jpg' leads out of"):
            open_labelled(file, split="train")


def test_a_yaml_builds_no_objects(tmp_path: Path) -> None:
    """Breaks when a yaml can run code."""
    file = yolo_set(tmp_path)
    file.write_text(file.read_text() + f"x: !!python/object/apply:pathlib.Path.touch [{tmp_path}/ran]\n")
    with pytest.raises(ValueError, match=r"data\.yaml: no YAML that can be read"):
        open_labelled(file, split="train")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2 0.5 0.5 0.1 0.1", "classes that names does not have: .*numbers of classes are 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", "classes that names does not have"),
        ("0 20 12 10 6", "coordinates that are no shares of the image"),
        ("0 0.5 0.5 0.1", "lines that are neither box nor polygon"),
        ("0 0.5 0.5 0.1 0.1 0.3", "lines that are neither box nor polygon"),
        ("0 0.5 0.5 nan 0.1", "lines that are neither box nor polygon"),
        ("cat 0.5 0.5 0.1 0.1", "lines that are neither box nor polygon"),
        ("0 0.5 0.5 0.0 0.1", "empty boxes"),
        ("0 0.5 0.5 -0.005 0.1", "inverted boxes .*; cx cy width height, or x y of each point, are shares"),
    ],
)
def test_lines_that_cannot_be_are_named(tmp_path: Path, line: str, said: str) -> None:
    file = yolo_set(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text(f"0 0.5 0.5 0.25 0.2\n{line}\n")
    with pytest.raises(ValueError, match=rf"(?s)data\.yaml: {said}") as caught:
        open_labelled(file, split="train")
    assert f"labels/train/a.txt line 2: {line!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"names": None}, "has no train and names"),
        ({"names": "cat"}, "names: write a list"),
        ({"nc": 3}, "nc: 3 and 2 names"),
        ({"train": "images/none"}, "train: images/none is neither a folder nor a .txt"),
        ({"train": "labels"}, "train: labels holds no images"),
        ({"val": None}, "has no val"),
        ({"kpt_shape": [17, 3]}, "keypoints are read from COCO jsons only"),
        ({"path": "none"}, "path: none: there is no folder .*/none; name"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    file = yolo_set(tmp_path, **settings)
    with pytest.raises(ValueError, match=rf"data\.yaml: .*{said}"):
        for split in ("train", "val"):
            open_labelled(file, split=split)


def test_labels_in_the_wrong_place_are_named(tmp_path: Path) -> None:
    """Breaks when a whole set counts as images without boxes because its labels were not found."""
    file = yolo_set(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "txt")
    with pytest.raises(
        ValueError, match=r"no image has a file of labels: .*a\.jpg needs labels/train/a\.txt"
    ):
        open_labelled(file, split="train")
