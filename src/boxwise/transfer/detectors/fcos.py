"""FCOS (Tian et al., Fully Convolutional One-Stage Object Detection, ICCV 2019) from torchvision's parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.models.detection import fcos as torchvisions
from torchvision.ops import generalized_box_iou_loss

from boxwise.config import settings
from boxwise.nn.ranks import shared_count
from boxwise.shapes import Scalar
from boxwise.transfer.detectors.base import Targets
from boxwise.transfer.detectors.one_stage import (
    STRIDES,
    LevelAnchors,
    OneStage,
    OneStageDetector,
    UpperPyramid,
    assigned,
    focal,
)
from boxwise.transfer.detectors.precision import exact


@settings
class FCOS(OneStage):
    """FCOS with the settings of MMDetection's 1x, on torchvision's parts, which differ in this:

    - distances to the four sides are in strides and cut off at 0, not the exponential of a number with a factor
      learned for each level;
    - GIoU loss instead of the logarithm of the IoU, not weighted by centerness;
    - centerness is told from the features of boxes, not of classes, and a detection's score is the root of
      class score times centerness; it is the root that `score_threshold` looks at;
    - places lie at the corners of cells, multiples of the stride, not half a stride on;
    - a column of class scores for the background that no image has, kept for torchvision's names and labels;
    - norm in the FPN, unless `fpn_norm: none`: that of the pretrained pyramid.

    torchvision's `fcos_resnet50_fpn` is `fpn_norm: none`, `center_radius: 1.5`, `score_threshold: 0.2` and
    `nms_threshold: 0.6`.
    """

    name: Literal["fcos"] = "fcos"
    p6_from: Literal["c5", "p5"] = "p5"
    """The map that p6 is convolved from."""
    center_radius: float = 0.0
    """Cells around a thing's centre, within it, that answer for it; 0: all cells within it."""
    ranges: tuple[int, int, int, int] | None = None
    """Pixels: the farthest side of a box that p3, p4, p5 and p6 answer for, p7 for all beyond; none: 64 to 512 at
    800 px, halved for each halving of `min_size`, but never below 16 to 128."""

    def limits(self) -> tuple[int, ...]:
        """Pixels, one for each of p3 to p6."""
        return self.ranges or tuple(round(64 * 2**level * self.shrink()) for level in range(4))

    def problems(self, *, pretrained: bool) -> Iterator[str]:
        yield from OneStage.problems(self, pretrained=pretrained)
        yield from self.outside({"center_radius": (0, 100)})
        yield from self.ungrouped()
        limits = [*self.limits()]
        if min(limits) < 1 or limits != sorted({*limits}):
            yield f"detector.ranges: expected 1 or more, rising, got {limits}"

    def build(self, *, classes: int, mean: Sequence[float], std: Sequence[float]) -> OneStageDetector:
        """Names and shapes are those of torchvision's `fcos_resnet50_fpn`, but for norms that it lacks.

        Called on its own the model takes float images in 0..1 and resizes them; boxwise resizes in workers and
        calls its parts. `norm: sync` is built as BatchNorm: the training loop joins the devices.
        """
        model = FCOSDetector(
            UpperPyramid(self.encoder(), p6_from=self.p6_from),
            classes + 1,
            anchor_generator=LevelAnchors(tuple((s,) for s in STRIDES), ((1.0,),) * 5),
            head=Head(self, classes + 1),
            center_sampling_radius=self.center_radius or math.inf,
            **self.options(mean, std),
        )
        model.limits = self.limits()
        return self.finished(model, mean, std)


class FCOSDetector(torchvisions.FCOS, OneStageDetector):  # type: ignore[misc]
    """torchvision's FCOS as one of our detectors. Its anchors are squares of a stride around each place."""

    limits: tuple[int, ...]
    center_sampling_radius: float

    def terms(
        self, targets: Targets, outputs: dict[str, Tensor], anchors: list[Tensor], cells: list[int]
    ) -> dict[str, Scalar]:
        return self.compute_loss(targets, outputs, anchors, cells)

    def compute_loss(
        self,
        targets: Targets,
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        num_anchors_per_level: list[int],
    ) -> dict[str, Scalar]:
        places = anchors[0]
        limits = places.new_tensor([0.0, *self.limits, math.inf])
        level = torch.repeat_interleave(torch.tensor(num_anchors_per_level, device=places.device))
        matched = [
            matches(
                places, target["boxes"], limits[level], limits[level + 1], radius=self.center_sampling_radius
            )
            for target in targets
        ]
        found: dict[str, Scalar] = self.head.compute_loss(targets, head_outputs, anchors, matched)
        return found


def matches(
    places: Float[Tensor, "A 4"],
    boxes: Float[Tensor, "N 4"],
    least: Float[Tensor, " A"],
    most: Float[Tensor, " A"],
    *,
    radius: float,
) -> Int[Tensor, " A"]:
    """Row of the box that each place answers for, -1 where there is none: the smallest of those around it whose
    farthest side is within (`least`, `most`] and whose centre is less than `radius` sides of its square away."""
    if not len(boxes):
        return torch.full((len(places),), -1, device=places.device)
    at, side = (places[:, None, :2] + places[:, None, 2:]) / 2, (places[:, 2] - places[:, 0])[:, None]
    sides = torch.cat([at - boxes[:, :2], boxes[:, 2:] - at], dim=2)  # (A, N, 4), all positive within
    off = (at - (boxes[:, :2] + boxes[:, 2:]) / 2).abs().amax(2)
    farthest = sides.amax(2)
    fits = (sides.amin(2) > 0) & (off < radius * side)
    fits &= (farthest > least[:, None]) & (farthest <= most[:, None])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    smallest, row = torch.where(fits, area, math.inf).min(1)
    return torch.where(smallest.isinf(), -1, row)


class Head(torchvisions.FCOSHead):  # type: ignore[misc]
    """torchvision's, with settings for its losses, and outputs never below float32."""

    def __init__(self, config: FCOS, columns: int) -> None:
        super().__init__(config.fpn_channels, 1, columns)
        self.config = config

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: exact(rows) for name, rows in super().forward(x).items()}

    def compute_loss(
        self,
        targets: Targets,
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Scalar]:
        config, places = self.config, torch.stack(anchors)
        labels, boxes = assigned(targets, places, torch.stack(matched_idxs))
        things = labels > 0
        count = shared_count(things.sum())
        scores = focal(head_outputs["cls_logits"], labels, alpha=config.focal_alpha, gamma=config.focal_gamma)
        found = self.box_coder.decode(head_outputs["bbox_regression"], places)
        off = generalized_box_iou_loss(found.flatten(0, 1), boxes.flatten(0, 1)).view_as(labels)
        centred = F.binary_cross_entropy_with_logits(
            head_outputs["bbox_ctrness"][..., 0], self._centred(places, boxes), reduction="none"
        )
        return {
            "classification": scores.sum() / count,
            "bbox_regression": torch.where(things, off, 0).sum() / count,
            "bbox_ctrness": torch.where(things, centred, 0).sum() / count,
        }

    def _centred(self, places: Tensor, boxes: Tensor) -> Tensor:
        """1 in the middle of a box, 0 at its border."""
        sides: Any = self.box_coder.encode(places, boxes)
        share = torch.minimum(sides[..., :2], sides[..., 2:]) / torch.maximum(sides[..., :2], sides[..., 2:])
        return share.prod(-1).sqrt()
