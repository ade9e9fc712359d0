"""Mask R-CNN on a pyramid: the outline of each thing, read in its box.

He, Gkioxari, Dollar, Girshick, ICCV 2017, https://arxiv.org/abs/1703.06870
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.models.detection.roi_heads import maskrcnn_inference
from torchvision.ops import roi_align

from boxwise.config import settings
from boxwise.nn.encoder import Encoder
from boxwise.shapes import Rows, Scalar
from boxwise.transfer.detectors.base import Kind, Targets
from boxwise.transfer.detectors.heads import mask_head
from boxwise.transfer.detectors.precision import MaskPredictor
from boxwise.transfer.detectors.rcnn import OnPyramid
from boxwise.transfer.detectors.stages import BoxHeads, Features, Sampled, Sizes

MASK_CELLS = 14
"""Cells a side that masks are read from; masks have twice as many."""
MASK_WIDTH = 256
"""Channels before the last layer of a mask head."""


class MaskHeads(BoxHeads):
    """Boxes, and the mask of each."""

    mask_roi_pool: Any
    mask_head: Any
    mask_predictor: Any

    def losses(
        self, features: Features, crops: Tensor, sampled: Sampled, sizes: Sizes, targets: Targets
    ) -> dict[str, Scalar]:
        """The mean over the cells of the right class's mask, in boxes that hold a thing."""
        positives = sampled.positives()
        read = self.learned_crops(features, crops, sampled, positives, sizes)
        logits = self.mask_predictor(self.mask_head(read))
        wanted = [
            mask_targets(
                t["masks"],
                torch.cat([matched[:, None].to(boxes), boxes], dim=1),
                size=logits.shape[-1],
                aligned=self.box_roi_pool.aligned,
            )
            for t, boxes, matched in zip(targets, positives.boxes, positives.matched, strict=True)
        ]
        return {"loss_mask": mask_loss(logits, torch.cat([*positives.labels]), torch.cat(wanted))}

    def more(self, features: Features, found: Targets, sizes: Sizes) -> None:
        """Adds "masks": probabilities (n, 1, s, s) over each box."""
        read = self.found_crops(features, [f["boxes"] for f in found], sizes)
        logits = self.mask_predictor(self.mask_head(read))
        for f, masks in zip(found, maskrcnn_inference(logits, [f["labels"] for f in found]), strict=True):
            f["masks"] = masks

    def learned_crops(
        self, features: Features, crops: Tensor, sampled: Sampled, positives: Sampled, sizes: Sizes
    ) -> Float[Tensor, "M C s s"]:
        """What masks are learned from, of the positives alone; `crops` is what all boxes were judged by."""
        return self.mask_roi_pool(features, positives.boxes, sizes)

    def found_crops(
        self, features: Features, boxes: Sequence[Tensor], sizes: Sizes
    ) -> Float[Tensor, "M C s s"]:
        """What the masks of what was found are read from."""
        return self.mask_roi_pool(features, boxes, sizes)


def mask_targets(
    masks: UInt8[Tensor, "N H W"], rows: Rows, *, size: int, aligned: bool
) -> Float[Tensor, "M size size"]:
    """What a mask should be in each box: the share of each cell that the thing covers. `rows` name the thing and
    its box in pixels; `aligned` as in the pooler of features."""
    return roi_align(masks[:, None].to(rows), rows, (size, size), 1.0, aligned=aligned)[:, 0]


def mask_loss(
    logits: Float[Tensor, "M classes s s"], labels: Tensor, wanted: Float[Tensor, "M s s"]
) -> Scalar:
    """Binary cross entropy of each row's own class; 0, with gradients of 0, where there is no row."""
    if not len(labels):
        return logits.sum() * 0
    own = logits[torch.arange(len(labels), device=labels.device), labels]
    return F.binary_cross_entropy_with_logits(own, wanted.to(own))


@settings
class MaskRCNNFPN(OnPyramid):
    """Mask R-CNN on a pyramid: torchvision's `maskrcnn_resnet50_fpn_v2` by default, but for `aligned`."""

    name: Literal["mask_rcnn_fpn"] = "mask_rcnn_fpn"
    mask_norm: Literal["bn", "none"] = "bn"
    """BatchNorm after each of the mask head's four convolutions, as InsLoc, SoCo and SCRL have, or none, as MoCo,
    DetCo and ReSim."""

    def kinds(self) -> tuple[Kind, ...]:
        return ("bbox", "segm")

    def heads(self, backbone: Encoder, classes: int) -> MaskHeads:
        width = self.fpn_channels
        return self.second_stage(
            MaskHeads,
            **self.judging(backbone, classes),
            mask_roi_pool=self.pooler(backbone, size=MASK_CELLS),
            mask_head=mask_head(width, norm=self.mask_norm),
            mask_predictor=MaskPredictor(width, MASK_WIDTH, classes + 1),
        )
