"""What cannot be measured is refused before anything is trained, or looked for: all that the figures need is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from boxwise.data.decode import BadImage
from boxwise.data.targets import Labelled, open_labelled
from boxwise.transfer.detectors.base import Detector, DetectorConfig, Targets
from boxwise.transfer.detectors.densepose import DensePoseRCNN
from boxwise.transfer.detectors.fcn16s import FCN16s
from boxwise.transfer.detectors.keypoint_rcnn import KeypointRCNNFPN
from boxwise.transfer.detectors.mask_rcnn import MaskRCNNFPN
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN
from boxwise.transfer.evaluate import Measure, measurable, measured
from layouts import coco_set, edit, picture
from surfaces import write_mesh, write_people

BOXES, MASKS, PIXELS, MARKS = FasterRCNNFPN(), MaskRCNNFPN(), FCN16s(), KeypointRCNNFPN(keypoints=2)
SURFACES = DensePoseRCNN()


class Blind(Detector):
    """Never to be asked."""

    mean = std = (0.5,) * 3

    def losses(self, images: ImageList, targets: Targets) -> dict[str, Tensor]:
        raise AssertionError

    def detect(self, images: ImageList) -> Targets:
        raise AssertionError

    def parts(self) -> dict[str, nn.Module]:
        return {}


def refused(labelled: Labelled, config: DetectorConfig, said: str, **measure: Any) -> None:
    """Before training, and before a trained detector looks at the first image."""
    told: Any = {"config": config, "measure": Measure(**measure)}
    with pytest.raises(ValueError, match=said):
        measurable(labelled, **told)
    with pytest.raises(ValueError, match=said):
        measured(Blind(), labelled, **told)


def val(root: Path, config: DetectorConfig) -> Labelled:
    return open_labelled(root, split="val", extras=config.extras())


@pytest.mark.parametrize(
    ("metric", "said"), [("voc", "voc measures bbox, not segm"), ("lvis", "no neg_category_ids")]
)
def test_rules_that_do_not_measure_what_is_found(tmp_path: Path, metric: str, said: str) -> None:
    """Breaks when a run trains for hours and only then learns that nothing can be measured."""
    test = val(coco_set(tmp_path), MASKS)
    measurable(test, config=MASKS, measure=Measure())
    measurable(test, config=MASKS, measure=Measure(metric="coco"))
    measurable(test, config=BOXES, measure=Measure(metric="voc"))
    refused(test, MASKS, said, metric=metric)


def bare(annotation: dict[str, Any]) -> None:
    del annotation["segmentation"]


def longer(annotation: dict[str, Any]) -> None:
    annotation["keypoints"] = [1, 2, 2] * 3


@pytest.mark.parametrize(
    ("config", "spoil", "said"),
    [
        (MASKS, bare, "annotation 2 in the order of the json, on image 0, has no segmentation"),
        (PIXELS, bare, r"instances_val2017.json: none of its annotations has an outline"),
        (MARKS, longer, "annotation 1 in the order of the json, 9 numbers, not 6 for 2 names"),
    ],
)
def test_objects_that_lack_what_is_measured(
    config: DetectorConfig, spoil: Callable[[Any], None], said: str, tmp_path: Path
) -> None:
    """Breaks when one object in thousands ends an evaluation, and with it a night of training. Data that has no rules
    of its own is measured by COCO's, which need an outline of each."""

    def change(content: Any) -> None:
        first = content["annotations"][0] | {"keypoints": [1, 2, 2] * 2}
        content["annotations"] = [first, {**first, "id": 2}]
        content["categories"][0]["keypoints"] = ["nose", "tail"]

    file = coco_set(tmp_path) / "annotations/instances_val2017.json"
    edit(file, change)
    measurable(val(tmp_path, config), config=config, measure=Measure())
    every = config is PIXELS
    edit(file, lambda content: [spoil(a) for a in content["annotations"][0 if every else 1 :]])
    refused(val(tmp_path, config), config, said)


def test_an_image_whose_boxes_have_no_place(tmp_path: Path) -> None:
    """Breaks when one image of another size than its json says ends an evaluation."""
    test = val(coco_set(tmp_path), BOXES)
    picture(tmp_path / "val2017/val0.png", 20, 15)
    with pytest.raises(BadImage, match="its json says 40 x 30"):
        measurable(test, config=BOXES, measure=Measure())


def test_a_mesh_and_points_are_read_before(tmp_path: Path) -> None:
    """Breaks when a mesh that was cut short in copying, or points of the images to measure on that cannot be, are met
    once a detector of surfaces is trained."""
    root, mesh = write_people(tmp_path / "coco"), write_mesh(tmp_path / "mesh.npz")
    test = val(root, SURFACES)
    measurable(test, config=SURFACES, measure=Measure(geodesics=str(mesh)))
    with pytest.warns(UserWarning, match="GPS and GPSm need --geodesics FILE"):
        measurable(test, config=SURFACES, measure=Measure())
    short = tmp_path / "short.npz"
    short.write_bytes(mesh.read_bytes()[:-100])
    refused(test, SURFACES, "short.npz: cannot be read", geodesics=str(short))
    file = root / "annotations/densepose_minival2014.json"

    def change(content: Any) -> None:
        for key in ("dp_masks", "segmentation"):
            del content["annotations"][0][key]

    edit(file, change)
    refused(val(root, SURFACES), SURFACES, "neither dp_masks nor segmentation", geodesics=str(mesh))
    edit(file, lambda content: content["annotations"][0].update(dp_U=[0.5]))
    refused(val(root, SURFACES), SURFACES, "lists of unlike lengths", geodesics=str(mesh))
