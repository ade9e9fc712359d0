"""FCOS (Tian et al., Fully Convolutional One-Stage Object Detection, ICCV 2019) from torchvision's parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.models.detection import fcos as torchvisions
from torchvision.ops import generalized_box_iou_loss

from boxwise.config import settings
from boxwise.nn.ranks import shared_count
from boxwise.shapes import Scalar
from boxwise.transfer.detectors.base import Targets
from boxwise.transfer.detectors.one_stage import (
    OneStage,
    OneStageDetector,
)
from boxwise.transfer.detectors.upper_pyramid import STRIDES, LevelAnchors, UpperPyramid


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
    800 px, half of it at 400 px and below."""

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
            center_sampling_radius=self.center_radius or math.inf,
            **self.options(mean, std),
        )
        return self.finished(model, mean, std)


class FCOSDetector(OneStageDetector, torchvisions.FCOS):  # type: ignore[misc]
    """torchvision's FCOS as one of our detectors. Its anchors are squares of a stride around each place."""

    config: FCOS
    center_sampling_radius: float
    box_coder: Any

    def matched(self, places: Float[Tensor, "A 4"], targets: Targets) -> Int[Tensor, "B A"]:
        limits = places.new_tensor([0.0, *self.config.limits(), math.inf])
        level = torch.log2((places[:, 2] - places[:, 0]) / STRIDES[0]).round().long()
        rows = [
            matches(
                places, target["boxes"], limits[level], limits[level + 1], radius=self.center_sampling_radius
            )
            for target in targets
        ]
        return torch.stack(rows)

    def off(
        self, outputs: dict[str, Tensor], places: Float[Tensor, "B A 4"], boxes: Float[Tensor, "B A 4"]
    ) -> dict[str, Float[Tensor, "B A"]]:
        """Of boxes by GIoU, and of centerness: 1 in the middle of a box, 0 at its border."""
        told = self.box_coder.decode(outputs["bbox_regression"], places)
        sides: Any = self.box_coder.encode(places, boxes)
        share = torch.minimum(sides[..., :2], sides[..., 2:]) / torch.maximum(sides[..., :2], sides[..., 2:])
        return {
            "bbox_regression": generalized_box_iou_loss(told.flatten(0, 1), boxes.flatten(0, 1)).view(
                places.shape[:2]
            ),
            "bbox_ctrness": F.binary_cross_entropy_with_logits(
                outputs["bbox_ctrness"][..., 0], share.prod(-1).sqrt(), reduction="none"
            ),
        }

    def averaging(self, things: Bool[Tensor, "B A"]) -> Callable[[Float[Tensor, "B A"]], Scalar]:
        """The sum by the count of all images, those of other ranks among them."""
        count = shared_count(things.sum())
        return lambda rows: rows.sum() / count


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
