"""Whole runs on LVIS's and Cityscapes' layouts: what was set is what is trained on, and measured."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny import DETECTOR

from boxwise.data.splits import labelled_splits
from boxwise.recipes.transfer import faster_rcnn_fpn
from boxwise.run.bad_images import BadImages
from boxwise.run.detector_run import batches
from boxwise.run.finetune import finetune
from boxwise.strict import SettingsError
from layouts import cityscapes_set, coco_set, edit, lvis_set


def run(data: Path, out: Path, **given: Any) -> Path:
    return finetune("faster_rcnn_fpn", data, out, settings=DETECTOR | given)


def results(out: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((out / "results.json").read_text())
    return held


def test_settings_of_data_decide_what_is_trained_on(tmp_path: Path) -> None:
    """Breaks when a recipe says drop_empty and the run trains on all."""
    data = coco_set(tmp_path / "coco")
    some = run(data, tmp_path / "some", **{"data.drop_empty": True})
    assert (some / "labelled.txt").read_text().split() == ["train0.png"]
    with pytest.raises(SettingsError, match=r"data\.drop_emty: .* did you mean"):
        run(data, tmp_path / "none", **{"data.drop_emty": True})


def test_rare_categories_come_more_often(tmp_path: Path) -> None:
    """One image in ten is of the rarer kind. Breaks when the threshold is a setting that nothing reads."""
    data = coco_set(tmp_path)

    def fill(content: Any) -> None:
        cat, bee, _ = content["annotations"]
        names = [image["file_name"] for image in content["images"]]
        content["images"] = [
            {"id": k, "file_name": names[k % 2], "width": 40, "height": 30} for k in range(10)
        ]
        content["annotations"] = [
            {**(cat if k else bee), "id": k + 1, "image_id": k, "segmentation": []} for k in range(10)
        ]

    edit(data / "annotations/instances_train2017.json", fill)
    train, _ = labelled_splits(data)
    given = {"steps": 40, "batch_size": 2, "workers": 0, "image_size": 64}
    often: list[Counter[int]] = []
    for threshold in (None, 0.9):
        recipe = faster_rcnn_fpn().changed({**given, "data.repeat_threshold": threshold})
        loads = batches(recipe, train, cast(BadImages, BadImages.__new__(BadImages)), total=40)
        met: Counter[int] = Counter()
        for batch in loads(0):
            met.update(batch.index)
        often.append(met)
    assert [met.total() for met in often] == [80, 80]
    assert often[0][0] == 8 and often[1][0] == 3 * 80 / 12, "sqrt(.9 / .1) = 3 of 12 in a pass"


@pytest.mark.parametrize(("write", "figure"), [(lvis_set, "APr"), (cityscapes_set, "AP50")])
def test_other_layouts_are_trained_and_measured(tmp_path: Path, write: Any, figure: str) -> None:
    """Breaks when ids, sizes or special keys of a layout reach an evaluator that does not take them."""
    torch.manual_seed(0)
    out = run(write(tmp_path / "data"), tmp_path / "run")
    held = results(out)
    assert figure in held and -1 <= held["AP"] <= 100, held


def test_what_cannot_be_meant_leaves_no_folder(tmp_path: Path) -> None:
    """Breaks when a faulty set is refused after a run folder was made."""
    data = coco_set(tmp_path / "coco")

    def shrink(content: Any) -> None:
        for annotation in content["annotations"]:
            annotation["bbox"] = [0.1, 0.2, 0.5, 0.7]

    edit(data / "annotations/instances_train2017.json", shrink)
    with pytest.raises(ValueError, match="look like shares of the image"):
        run(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
