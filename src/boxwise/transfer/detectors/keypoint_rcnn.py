"""Keypoint R-CNN on a pyramid: the places of a thing's named points, read in its box.

He, Gkioxari, Dollar, Girshick, Mask R-CNN, ICCV 2017, https://arxiv.org/abs/1703.06870, section 5
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor
from torchvision.models.detection.roi_heads import keypointrcnn_inference, keypointrcnn_loss

from boxwise.config import settings
from boxwise.data.targets import Labelled
from boxwise.nn.encoder import Encoder
from boxwise.shapes import Scalar
from boxwise.transfer.annotations import keypoint_names
from boxwise.transfer.detectors.base import Kind, Targets
from boxwise.transfer.detectors.heads import BoxHead, keypoint_head
from boxwise.transfer.detectors.precision import KeypointPredictor
from boxwise.transfer.detectors.rcnn import OnPyramid
from boxwise.transfer.detectors.stages import BoxHeads, Features, Sampled, Sizes

KEYPOINT_CELLS = 14
"""Cells a side that keypoints are read from; their heatmaps have four times as many."""


class KeypointHeads(BoxHeads):
    """Boxes, and the keypoints of the thing in each."""

    keypoint_roi_pool: Any
    keypoint_head: Any
    keypoint_predictor: Any

    def losses(
        self, features: Features, crops: Tensor, sampled: Sampled, sizes: Sizes, targets: Targets
    ) -> dict[str, Scalar]:
        """The mean over keypoints that are labelled and inside the box; things without any are not looked at."""
        marks = [t["keypoints"] for t in targets]
        shown = sampled.positives()
        shown = shown.only([(m[..., 2] > 0).any(1)[k] for m, k in zip(marks, shown.matched, strict=True)])
        logits = self._heatmaps(features, shown.boxes, sizes)
        return {"loss_keypoint": keypointrcnn_loss(logits, shown.boxes, marks, shown.matched)}

    def more(self, features: Features, found: Targets, sizes: Sizes) -> None:
        """Adds "keypoints" (n, K, 3) as x, y and 1, and how sure each is as "keypoints_scores" (n, K)."""
        boxes = [f["boxes"] for f in found]
        marks, scores = keypointrcnn_inference(self._heatmaps(features, boxes, sizes), boxes)
        for f, places, sure in zip(found, marks, scores, strict=True):
            f |= {"keypoints": places, "keypoints_scores": sure}

    def _heatmaps(self, features: Features, boxes: Any, sizes: Sizes) -> Tensor:
        return self.keypoint_predictor(self.keypoint_head(self.keypoint_roi_pool(features, boxes, sizes)))


@settings
class KeypointRCNNFPN(OnPyramid):
    """Keypoint R-CNN on a pyramid: torchvision's `keypointrcnn_resnet50_fpn` with `fpn_norm: none`, but for
    `aligned`.

    As in detectron2, things of which no keypoint is labelled are found and not read.
    """

    name: Literal["keypoint_rcnn_fpn"] = "keypoint_rcnn_fpn"
    head: BoxHead = "2fc"
    """What boxes are judged by: two linear layers (2fc), or four convolutions with BatchNorm and one linear layer,
    which SoCo and InsLoc pretrain (4conv1fc)."""
    keypoints: int = 17
    """Named points of a thing, as many as the data has; COCO's persons have 17."""
    keypoint_channels: int = 512
    """Of each of the keypoint head's eight convolutions."""

    def kinds(self) -> tuple[Kind, ...]:
        return ("bbox", "keypoints")

    def classes(self, labelled: Labelled) -> tuple[str, ...]:
        """Raises ValueError where the data names another number of keypoints."""
        names = keypoint_names(labelled.categories)
        if len(names) != self.keypoints:
            said = f" ({', '.join(names)})" if names else ""
            raise ValueError(
                f"detector.keypoints: {self.keypoints}, but the categories of {labelled.table.file} name "
                f"{len(names)}{said}; "
                + (
                    f"set detector.keypoints: {len(names)}"
                    if names
                    else "keypoints cannot be learned from it"
                )
            )
        return OnPyramid.classes(self, labelled)

    def problems(self, *, pretrained: bool) -> Iterator[str]:
        yield from OnPyramid.problems(self, pretrained=pretrained)
        yield from self.below_one(["keypoints", "keypoint_channels"])

    def heads(self, backbone: Encoder, classes: int) -> KeypointHeads:
        return self.second_stage(
            KeypointHeads,
            **self.judging(backbone, classes),
            keypoint_roi_pool=self.pooler(backbone, size=KEYPOINT_CELLS),
            keypoint_head=keypoint_head(self.fpn_channels, self.keypoint_channels),
            keypoint_predictor=KeypointPredictor(self.keypoint_channels, self.keypoints),
        )
