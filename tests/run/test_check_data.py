"""`boxwise data check`: counts by hand, every layout, and what is wrong said with its mend and its exit code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from boxwise.cli import main
from boxwise.run.check_data import UNUSABLE, Checked, check
from layouts import cityscapes_set, coco_set, densepose_set, edit, lvis_set, picture, voc_devkit, yolo_set

TRAIN = "annotations/instances_train2017.json"


def part(found: Checked, split: str) -> dict[str, str]:
    """What is said of a split, by the word that begins each line."""
    lines = found.text.splitlines()
    begin = next(k for k, line in enumerate(lines) if re.match(rf"{split}\s", line))
    told: dict[str, str] = {}
    for line in lines[begin + 1 :]:
        if not line.startswith("  "):
            break
        if not line.startswith("   "):
            told[line[2:14].strip()] = line[14:]
    return told


def test_a_coco_root_by_hand(tmp_path: Path) -> None:
    """Breaks when crowds count as boxes of a category, or sizes are of boxes where areas are stated."""
    found = check(coco_set(tmp_path))
    assert part(found, "train") == {
        "images": "2, 1 without boxes",
        "boxes": "3, 1 crowds, 0 difficult",
        "sizes": "2 small (below 32 x 32), 0 medium, 0 large (from 96 x 96)",
        "categories": "2, 0 without a box",
        "masks": "3 of 3 boxes",
        "keypoints": "none",
        "densepose": "none",
        "semantic": "from masks, 3 classes",
        "bad files": "0 (heads of 2 and pixels of 2 read)",
    }
    assert part(found, "val")["categories"] == "2, 1 without a box"
    assert re.search(r"\n +1  3 cat\n +1  7 bee\n", found.text)
    assert "trains on 2 images, measures on 1 by COCO's rules" in found.text
    assert found.text.endswith("notes         none\nproblems      none")
    assert found.problems == ()


@pytest.mark.parametrize(
    ("write", "split", "told", "rules"),
    [
        (
            voc_devkit,
            "train",
            {"images": "3, 0 without boxes", "boxes": "4, 0 crowds, 1 difficult"},
            "COCO's",
        ),
        (yolo_set, "train", {"images": "2, 1 without boxes", "masks": "1 of 2 boxes"}, "COCO's"),
        (lvis_set, "val", {"images": "2, 0 without boxes", "categories": "3, 1 without a box"}, "LVIS's"),
        (
            cityscapes_set,
            "val",
            {"boxes": "4, 1 crowds, 0 difficult", "semantic": "stated, 19 classes"},
            "Citys",
        ),
        (
            densepose_set,
            "val",
            {"keypoints": "2 of 2 boxes, 2 points", "densepose": "1 of 2 boxes, 2 points"},
            "COCO's",
        ),
    ],
)
def test_every_layout(tmp_path: Path, write: Any, split: str, told: dict[str, str], rules: str) -> None:
    """Breaks when a layout is not seen, or its special annotations are not counted."""
    write(tmp_path)
    found = check(tmp_path)
    assert found.problems == (), found.text
    assert told.items() <= part(found, split).items()
    assert f" by {rules}" in found.text


def test_keypoints_lie_in_a_json_of_their_own(tmp_path: Path) -> None:
    coco_set(tmp_path)
    people = tmp_path / "annotations/person_keypoints_train2017.json"
    people.write_bytes((tmp_path / TRAIN).read_bytes())

    def mark(content: Any) -> None:
        content["annotations"][0]["keypoints"] = [5, 6, 2, 7, 8, 1, 0, 0, 0]

    edit(people, mark)
    told = part(check(tmp_path), "train")
    assert told["keypoints"] == "1 of 3 boxes, 2 points, in person_keypoints_train2017.json"
    edit(people, lambda content: content.pop("categories"))
    found = check(tmp_path)
    assert part(found, "train")["keypoints"] == "labels that cannot be used, see below"
    assert 'person_keypoints_train2017.json: not a COCO json (no list "categories")' in found.problems[0]


def test_bad_files_are_counted_and_named(tmp_path: Path) -> None:
    """A head can be good where pixels are cut short. Breaks when only one of both is looked at."""
    coco_set(tmp_path)
    file = tmp_path / "train2017/train1.png"
    file.write_bytes(file.read_bytes()[:-40])
    picture(tmp_path / "train2017/train0.png", 20, 15)
    found = check(tmp_path, every=True)
    assert part(found, "train")["bad files"] == "2 (heads of 2 and pixels of 2 read)"
    assert "train0.png: 20 x 15 pixels, but its json says 40 x 30" in found.problems[0]
    assert "train1.png: damaged or cut short" in found.problems[0]
    assert "--bad-images skip" in found.problems[0]


def test_all_decodes_what_a_sample_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boxwise.run.check_images.SAMPLE", 1)
    coco_set(tmp_path)
    file = tmp_path / "train2017/train1.png"
    file.write_bytes(file.read_bytes()[:-40])
    sampled = check(tmp_path)
    assert part(sampled, "train")["bad files"] == "0 (heads of 2 and pixels of 1 read; --all reads all)"
    assert sampled.problems == () and len(check(tmp_path, every=True).problems) == 1


def test_every_problem_of_both_splits_is_told(tmp_path: Path) -> None:
    """Breaks when the first fault hides the second."""

    def invert(content: Any) -> None:
        content["annotations"][0]["bbox"] = [9, 9, -5, 5]

    coco_set(tmp_path)
    edit(tmp_path / TRAIN, invert)
    (tmp_path / "val2017/val0.png").unlink()
    found = check(tmp_path)
    assert len(found.problems) == 2
    assert "instances_train2017.json: inverted boxes" in found.problems[0]
    assert "instances_val2017.json: missing image files: 'val0.png'" in found.problems[1]
    assert "problems      2\n  - " in found.text


def test_what_a_run_would_refuse_to_read_is_a_problem(tmp_path: Path) -> None:
    """Breaks when data passes here and `finetune` refuses it: outlines, keypoints or points on bodies."""

    def spoil(content: Any) -> None:
        content["annotations"][0]["segmentation"] = [[4, 5, 14, 5, 14]]
        content["annotations"][1]["segmentation"] = {"size": [15, 20], "counts": [300]}

    def misname(content: Any) -> None:
        content["categories"][0]["keypoints"] = ["nose", "tail"]
        content["annotations"][0] |= {"category_id": 3, "keypoints": [1, 2, 2]}

    val = "annotations/{}_val2017.json"
    coco_set(tmp_path / "coco")
    people = tmp_path / "coco" / val.format("person_keypoints")
    people.write_bytes((tmp_path / "coco" / val.format("instances")).read_bytes())
    edit(tmp_path / "coco" / TRAIN, spoil)
    edit(people, misname)
    found = check(tmp_path / "coco")
    train, test = found.problems
    assert "instances_train2017.json: segmentation that cannot be read: annotation 0" in train
    assert "5 numbers in a polygon" in train and "run lengths of size [15, 20]" in train
    assert "person_keypoints_val2017.json: keypoints that cannot be read" in test
    assert "3 numbers, not 6 for 2 names" in test
    assert part(found, "train")["masks"] == part(found, "val")["keypoints"] == UNUSABLE
    densepose_set(tmp_path / "bodies")
    edit(
        tmp_path / "bodies/annotations/densepose_coco_2014_minival.json",
        lambda content: content["annotations"][0].update(dp_I=[2.0, 25.0]),
    )
    (said,) = check(tmp_path / "bodies").problems
    assert "densepose_coco_2014_minival.json: dp that cannot be read" in said and "dp_I holds 25.0" in said


def test_no_fault_hides_another(tmp_path: Path) -> None:
    """Breaks when boxes and categories are looked at only once every file is there, or val only once train is right."""

    def spoil(content: Any) -> None:
        content["annotations"][0]["bbox"] = [9, 9, -5, 5]
        content["annotations"][1]["category_id"] = 8
        del content["images"][1]["width"]
        content["images"][1]["file_name"] = "../val2017/val0.png"
        content["images"].append({"id": 2, "file_name": "none.png"})
        content["annotations"][2] |= {"image_id": 2, "bbox": [500, 5, 10, 10]}

    coco_set(tmp_path)
    edit(tmp_path / TRAIN, spoil)
    edit(
        tmp_path / "annotations/instances_val2017.json",
        lambda content: content["categories"].append({"id": 9, "name": "wolf"}),
    )
    first, second = check(tmp_path).problems
    assert "4 kinds of problems" in first  # a box of an image whose size nobody knows is no fifth
    assert "names that are absolute or contain ..: '../val2017/val0.png'" in first
    assert "missing image files: 'none.png'" in first
    assert "inverted boxes (negative width or height): annotation 1 of train0.png [9, 9, -5, 5]" in first
    assert 'categories not in "categories": annotation 2 is of category 8' in first
    assert "instances_val2017.json: categories unknown to the detector: 9 wolf" in second


def test_what_is_odd_and_no_error_is_noted(tmp_path: Path) -> None:
    """Boxes twice, images twice, boxes over the edge, classes that are measured alone."""

    def spoil(content: Any) -> None:
        first = content["annotations"][0]
        content["annotations"] += [{**first, "id": 8}, {**first, "id": 9, "bbox": [30, 20, 25, 5]}]
        content["images"].append({**content["images"][1], "id": 77})

    coco_set(tmp_path, bees=False)
    edit(tmp_path / TRAIN, spoil)
    found = check(tmp_path)
    assert found.problems == ()
    for note in (
        "1 boxes are there twice, in train0.png",
        "1 images are listed twice: train1.png",
        "clipped, they reach over the edge: 1 of 5 boxes",
        "no training box of categories that are measured, bee",
    ):
        assert note in found.text
    assert "\nnotes         4\n" in found.text


def test_a_json_alone(tmp_path: Path) -> None:
    """Breaks when a json is measured on itself unasked."""
    coco_set(tmp_path)
    found = check(tmp_path / TRAIN)
    assert "needs --val FILE.json" in found.text and found.problems == ()
    both = check(tmp_path / TRAIN, images=tmp_path / "train2017", val=tmp_path / TRAIN)
    assert "2 of 2 images to measure on are trained on too" in both.text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a script cannot tell a good set from a bad one."""
    coco_set(tmp_path)
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "problems      none" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "none")]) == 1
    said = capsys.readouterr().out
    assert "none: no such file or folder; --data takes a COCO root" in said and "YOLO" in said
    assert main(["data", "chekc", str(tmp_path)]) == 2
    assert "data chekc: no such command, did you mean data check?" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "data check" in capsys.readouterr().out


def test_images_without_labels_are_looked_at_as_a_pretraining_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a folder that `boxwise pretrain` takes is called wrong for want of labels."""
    for k in range(30):
        picture(tmp_path / ("deep" if k % 2 else ".") / f"{k}.PNG", 200 + k, 150)
    (tmp_path / "deep/cut.jpg").write_bytes(b"")
    assert main(["data", "check", str(tmp_path), "--all"]) == 0
    told = part(Checked(capsys.readouterr().out, ()), "images")
    assert told["images"] == "31 in 2 folders" and told["formats"] == "30 .png, 1 .jpg"
    assert told["sizes"] == "200 x 150 to 229 x 150; median of the shorter sides: 150"
    assert told["bad files"] == "1 (pixels of 31 read)"
    found = check(tmp_path, every=True)
    assert "trains on 31 images" in found.text and "1 of 31 images cannot be read" in found.text
    (tmp_path / "more.jpg").write_bytes(b"no image")
    assert main(["data", "check", str(tmp_path), "--all"]) == 1
    assert "remove them: a run stops above 5%" in capsys.readouterr().out


def test_small_images_and_empty_folders_are_told(tmp_path: Path) -> None:
    """Breaks when a newcomer with thumbnails learns of it after a night, or a folder of nothing passes."""
    (tmp_path / "none").mkdir()
    assert "no images" in check(tmp_path / "none").problems[0]
    picture(tmp_path / "few/a.png", 90, 40)
    picture(tmp_path / "few/b.png", 40, 90)
    found = check(tmp_path / "few")
    assert not found.problems and "pass --image-size" in found.text
    (tmp_path / "list.txt").write_text("few/a.png\n")
    assert "trains on 1 image\n" in check(tmp_path / "list.txt").text
