"""Values that would end a run in a worker are named before its first step, with file and place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from boxwise.data.targets import open_labelled
from boxwise.transfer.readable import check_readable
from layouts import coco_set, edit
from surfaces import write_people


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("segmentation", [[4, 5, 14, 5, 14]], "5 numbers in a polygon"),
        ("segmentation", [4, 5, 14, 5, 14, 25], "neither polygons nor run lengths"),
        ("segmentation", {"counts": "abc"}, "run lengths without size or counts"),
        (
            "segmentation",
            {"size": [15, 20], "counts": [300]},
            r"run lengths of size \[15, 20\] in an image of \[30, 40\]",
        ),
        ("keypoints", [1, 2, 2], "3 numbers, not 6 for 2 names"),
        ("keypoints", [1, 2, 2, 3, 4, 2, 9], "7 numbers, not 6 for 2 names"),
        ("keypoints", [1, 2, 2, "3", 4, 2], "'3' is no number"),
        ("keypoints", [1, 2, 2, None, 4, 2], "None is no number"),
        ("keypoints", 7, "no list"),
        ("segmentation", [[4, 5, 14, 5, 14, float("nan")]], "nan is no number"),
        ("segmentation", [[4, 5, 14, 5, 14, 25], [4, 5, 14, "5", 14, 25]], "'5' is no number"),
    ],
)
def test_outlines_and_keypoints(field: str, value: Any, said: str, tmp_path: Path) -> None:
    """Breaks when one of many annotations ends a run hours after it began, in a trace that names no file."""

    def good(content: Any) -> None:
        content["categories"][0]["keypoints"] = ["nose", "tail"]
        content["annotations"][0]["keypoints"] = [1, 2, 2, 3, 4, 2]
        content["annotations"][2]["segmentation"] = {"size": [30, 40], "counts": [1200]}

    file = coco_set(tmp_path) / "annotations/instances_train2017.json"
    edit(file, good)
    check_readable(open_labelled(tmp_path, split="train", extras=("segmentation", "keypoints", "bbox")))
    edit(file, lambda content: content["annotations"][1].update({field: value}))
    labelled = open_labelled(tmp_path, split="train", extras=(field,))
    with pytest.raises(
        ValueError, match=rf"instances_train2017.json: {field} that .*annotation 1 .*, {said};"
    ):
        check_readable(labelled)
    check_readable(labelled.subset([1]))  # its annotations are all of the other image
    check_readable(open_labelled(tmp_path, split="train"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dp_x": [1.0]}, "lists of unlike lengths, dp_x 1, dp_y 24"),
        ({"dp_x": 1.0}, "dp_x: no list"),
        ({"dp_V": ["up"] * 24}, "dp_V: 'up' is no number"),
        ({"dp_I": [25.0] * 24}, "dp_I holds 25.0"),
        ({"dp_U": [-0.1] * 24}, "dp_U holds -0.1"),
        ({"dp_masks": [{"size": [100, 256], "counts": "x"}]}, r"a mask of size \[100, 256\]"),
    ],
)
def test_points_on_surfaces(change: dict[str, object], said: str, tmp_path: Path) -> None:
    """Breaks when points that cannot be end a run in a worker, or good ones are refused."""
    root = write_people(tmp_path / "coco", count=1, val=1)
    check_readable(open_labelled(root, split="train", extras=("dp", "bbox")))
    file = root / "annotations" / "densepose_train2014.json"
    table = json.loads(file.read_text())
    table["annotations"][1] |= change
    file.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=rf"densepose_train2014.json: .*annotation 1 .*{said}"):
        check_readable(open_labelled(root, split="train", extras=("dp", "bbox")))
