"""RetinaNet (Lin et al., Focal Loss for Dense Object Detection, ICCV 2017) from torchvision's parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.models.detection import retinanet as torchvisions
from torchvision.ops import box_iou, generalized_box_iou_loss

from boxwise.config import settings
from boxwise.shapes import Scalar
from boxwise.transfer.detectors.base import Targets
from boxwise.transfer.detectors.one_stage import (
    GROUPS,
    OneStage,
    OneStageDetector,
)
from boxwise.transfer.detectors.upper_pyramid import LevelAnchors, UpperPyramid


@settings
class RetinaNet(OneStage):
    """RetinaNet with the settings of detectron2, on torchvision's parts, which differ in this:

    - the loss of each image is divided by its own positive anchors, then averaged, where detectron2 divides the
      sum over all images by a moving average of their count;
    - a column of class scores for the background that no image has, kept for torchvision's names and labels;
    - sides of anchors in whole pixels.

    torchvision's `retinanet_resnet50_fpn` is `fpn_norm: none`, `p6_from: p5`, `smooth_l1_beta: 0` and 300
    detections; its `_v2` is `fpn_norm: none`, `head_norm: gn`, `box_loss: giou` and 300 detections.
    """

    name: Literal["retinanet"] = "retinanet"
    head_norm: Literal["none", "gn"] = "none"
    """GroupNorm of 32 groups after each of the head's convolutions, or none."""
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    """On what boxes are encoded as, or on the boxes themselves."""
    smooth_l1_beta: float = 0.1
    """Below it the loss is a square; 0: nowhere, as torchvision."""
    positive_iou: float = 0.5
    """An anchor is of the thing that it overlaps at least so much; each thing's best anchors are its own too."""
    negative_iou: float = 0.4
    """An anchor that overlaps all things less is of the background; those between do not count."""
    anchor_sizes: tuple[int, int, int, int, int] | None = None
    """Pixels, one for each of p3 to p7, each with two more at a third and two thirds of an octave; none: 32 to
    512 at 800 px, half of it at 400 px and below."""

    def anchors(self) -> tuple[int, ...]:
        """Pixels, the first of each of p3 to p7."""
        return self.anchor_sizes or self.default_anchors()

    def problems(self, *, pretrained: bool) -> Iterator[str]:
        yield from OneStage.problems(self, pretrained=pretrained)
        yield from self.outside({"smooth_l1_beta": (0, 10), "positive_iou": (self.negative_iou, 1)})
        yield from self.outside({"negative_iou": (0, 1)})
        if self.head_norm == "gn":
            yield from self.ungrouped()
        if min(self.anchors()) < 1:
            yield "detector.anchor_sizes: expected 1 or more"

    def build(self, *, classes: int, mean: Sequence[float], std: Sequence[float]) -> OneStageDetector:
        """Names and shapes are those of torchvision's `retinanet_resnet50_fpn` (or its `_v2`).

        Called on its own the model takes float images in 0..1 and resizes them; boxwise resizes in workers and
        calls its parts. `norm: sync` is built as BatchNorm: the training loop joins the devices.
        """
        backbone = UpperPyramid(self.encoder(), p6_from=self.p6_from)
        sizes = tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in self.anchors())
        anchors = LevelAnchors(sizes, ((0.5, 1.0, 2.0),) * 5)
        each = anchors.num_anchors_per_location()[0]
        norm = partial(nn.GroupNorm, GROUPS) if self.head_norm == "gn" else None
        model = RetinaNetDetector(
            backbone,
            classes + 1,
            anchor_generator=anchors,
            head=torchvisions.RetinaNetHead(self.fpn_channels, each, classes + 1, norm_layer=norm),
            fg_iou_thresh=self.positive_iou,
            bg_iou_thresh=self.negative_iou,
            **self.options(mean, std),
        )
        return self.finished(model, mean, std)


class RetinaNetDetector(OneStageDetector, torchvisions.RetinaNet):  # type: ignore[misc]
    """torchvision's RetinaNet as one of our detectors."""

    config: RetinaNet
    proposal_matcher: Any

    def matched(self, places: Float[Tensor, "A 4"], targets: Targets) -> Int[Tensor, "B A"]:
        none = torch.full((len(places),), -1, device=places.device)
        rows = [
            self.proposal_matcher(box_iou(target["boxes"], places)) if len(target["boxes"]) else none
            for target in targets
        ]
        return torch.stack(rows)

    def off(
        self, outputs: dict[str, Tensor], places: Float[Tensor, "B A 4"], boxes: Float[Tensor, "B A 4"]
    ) -> dict[str, Float[Tensor, "B A"]]:
        coder: Any = self.head.regression_head.box_coder
        told, anchors, wanted = (t.flatten(0, 1) for t in (outputs["bbox_regression"], places, boxes))
        if self.config.box_loss == "giou":
            loss = generalized_box_iou_loss(coder.decode_single(told, anchors), wanted)
        else:
            truth, beta = coder.encode_single(wanted, anchors), self.config.smooth_l1_beta
            loss = F.smooth_l1_loss(told, truth, beta=beta, reduction="none").sum(1)
        return {"bbox_regression": loss.view(places.shape[:2])}

    def averaging(self, things: Bool[Tensor, "B A"]) -> Callable[[Float[Tensor, "B A"]], Scalar]:
        """Each image's sum by its own count, then the mean over images."""
        count = things.sum(1).clamp(min=1)
        return lambda rows: (rows.sum(1) / count).mean()
