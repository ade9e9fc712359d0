"""What detectors of one stage share: settings, and losses of a guess at every cell of a pyramid from p3 to p7."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import sigmoid_focal_loss

from boxwise.config import settings
from boxwise.nn.encoder import EncoderConfig
from boxwise.nn.pyramid import UpperLevels
from boxwise.shapes import Scalar
from boxwise.transfer.detectors.base import Detector, DetectorConfig, Targets
from boxwise.transfer.detectors.precision import exact

GROUPS = 32
"""Groups of each GroupNorm in a head."""
BETWEEN = Matcher.BETWEEN_THRESHOLDS
"""Of anchors that overlap a thing too much to be of the background, and too little to be its own."""
TERMS = {"classification": "classifier", "bbox_regression": "box", "bbox_ctrness": "centerness"}
"""torchvision's names of the losses, and ours."""


@settings
class OneStage(DetectorConfig):
    """What RetinaNet and FCOS share."""

    least_shrink: ClassVar[float] = 1 / 2  # their maps begin at stride 8, and a thing should span some cells
    fpn_channels: int = 256
    fpn_norm: Literal["bn", "none"] = "bn"
    """BatchNorm after each convolution of the FPN, or none. p6 and p7 have none."""
    p6_from: Literal["c5", "p5"] = "c5"
    """The map that p6 is convolved from."""
    prior: float = 0.01
    """What the head believes at the start to be the probability of a thing, of each class and in each place."""
    focal_alpha: float = 0.25
    """Weight of things in the focal loss; that of the background is 1 - alpha."""
    focal_gamma: float = 2.0
    """How much less the focal loss weighs what is sure already; 0: cross entropy."""
    score_threshold: float = 0.05
    """Detections below are dropped."""
    candidates: int = 1000
    """Best detections kept of each level before suppression."""
    nms_threshold: float = 0.5
    detections_per_image: int = 100

    def encoder(self) -> EncoderConfig:
        return EncoderConfig(
            backbone=self.backbone,
            fpn=True,
            fpn_channels=self.fpn_channels,
            fpn_norm=self.fpn_norm,
            fpn_levels=("p3", "p4", "p5"),
        )

    def problems(self, *, pretrained: bool) -> Iterator[str]:
        yield from DetectorConfig.problems(self, pretrained=pretrained)
        yield from self.outside(
            dict.fromkeys(("focal_alpha", "score_threshold", "nms_threshold"), (0, 1))
            | {"focal_gamma": (0, 10), "prior": (1e-6, 0.5)}
        )
        yield from self.below_one(["fpn_channels", "candidates", "detections_per_image"])

    def ungrouped(self) -> Iterator[str]:
        """What keeps GroupNorm from the head."""
        if self.fpn_channels % GROUPS:
            yield f"detector.fpn_channels: {self.fpn_channels} do not divide into the head's {GROUPS} groups"

    def options(self, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        """What torchvision's models are told, under their own names."""
        return {
            "min_size": self.min_size,
            "max_size": self.max_size,
            "image_mean": [*mean],
            "image_std": [*std],
            "score_thresh": self.score_threshold,
            "nms_thresh": self.nms_threshold,
            "detections_per_img": self.detections_per_image,
            "topk_candidates": self.candidates,
        }

    def finished(
        self, model: OneStageDetector, mean: Sequence[float], std: Sequence[float]
    ) -> OneStageDetector:
        """`model` with its settings, the head's prior, and with what is to be frozen frozen."""
        first: Any = model.head.classification_head.cls_logits.bias
        nn.init.constant_(first, -math.log((1 - self.prior) / self.prior))
        model.config, model.mean, model.std = self, mean, std
        self.hold(model.backbone)
        return model


class OneStageDetector(Detector):
    """torchvision's RetinaNet or FCOS with our losses, whose parts boxwise calls itself: images come resized and
    normalised. To stand before torchvision's own among the bases.

    The class 0 is torchvision's background, which is never in an image: it learns to be nowhere, and is not
    looked for.
    """

    config: Any
    backbone: Any
    head: Any
    anchor_generator: Any
    postprocess_detections: Any

    @abstractmethod
    def matched(self, places: Float[Tensor, "A 4"], targets: Targets) -> Int[Tensor, "B A"]:
        """Row of the thing in its image that each anchor learns to find; below 0: none, and BETWEEN: nothing."""

    @abstractmethod
    def off(
        self, outputs: dict[str, Tensor], places: Float[Tensor, "B A 4"], boxes: Float[Tensor, "B A 4"]
    ) -> dict[str, Float[Tensor, "B A"]]:
        """Of each anchor, how far what is told is off the box that it learns to find, by torchvision's names."""

    @abstractmethod
    def averaging(self, things: Bool[Tensor, "B A"]) -> Callable[[Float[Tensor, "B A"]], Scalar]:
        """How the losses of anchors become one, where `things` are those that learn to find one."""

    def losses(self, images: ImageList, targets: Targets) -> dict[str, Scalar]:
        outputs, anchors, _ = self.read(images)
        return {TERMS[name]: loss for name, loss in self.compute_loss(targets, outputs, anchors).items()}

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], *_: list[int]
    ) -> dict[str, Scalar]:
        """torchvision's interface and names, for models that are called on their own too."""
        config, places = self.config, torch.stack(anchors)
        matched = self.matched(anchors[0], targets)
        labels, boxes = assigned(targets, places, matched)
        scores = focal(head_outputs["cls_logits"], labels, alpha=config.focal_alpha, gamma=config.focal_gamma)
        rows = {"classification": torch.where(matched != BETWEEN, scores, 0)}
        for name, off in self.off(head_outputs, places, boxes).items():
            rows[name] = torch.where(labels > 0, off, 0)
        mean = self.averaging(labels > 0)
        return {name: mean(loss) for name, loss in rows.items()}

    def detect(self, images: ImageList) -> Targets:
        outputs, anchors, cells = self.read(images)
        outputs["cls_logits"][..., 0] = -math.inf
        split = {name: [*rows.split(cells, dim=1)] for name, rows in outputs.items()}
        found: Targets = self.postprocess_detections(
            split, [[*one.split(cells)] for one in anchors], images.image_sizes
        )
        return found

    def parts(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone.body, "fpn": UpperLevels(self.backbone.fpn)}

    def read(self, images: ImageList) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """What the head says of every anchor, never below float32, the anchors of each image, and how many each level
        has."""
        maps = [*self.backbone(images.tensors).values()]
        outputs = {name: exact(rows) for name, rows in self.head(maps).items()}
        each = self.anchor_generator.num_anchors_per_location()[0]
        cells = [x.shape[2] * x.shape[3] * each for x in maps]
        return outputs, self.anchor_generator(images, maps), cells


def assigned(
    targets: Targets, anchors: Float[Tensor, "B A 4"], matched: Int[Tensor, "B A"]
) -> tuple[Int[Tensor, "B A"], Float[Tensor, "B A 4"]]:
    """Of each anchor the label and the box of the thing that it is `matched` with, a row of its image's targets.

    An anchor matched with nothing (below 0) has the label 0, and itself for a box.
    """
    labels, boxes = torch.zeros_like(matched), anchors.clone()
    for i, target in enumerate(targets):
        if len(target["boxes"]):
            row, thing = matched[i].clamp(min=0), matched[i] >= 0
            labels[i] = torch.where(thing, target["labels"][row], 0)
            boxes[i] = torch.where(thing[:, None], target["boxes"][row].to(boxes.dtype), boxes[i])
    return labels, boxes


def focal(
    logits: Float[Tensor, "B A K"], labels: Int[Tensor, "B A"], *, alpha: float, gamma: float
) -> Float[Tensor, "B A"]:
    """The focal loss of each anchor, summed over classes; label 0 stands for none of them."""
    things = (labels > 0).to(logits.dtype)
    truth = torch.zeros_like(logits).scatter_(2, labels[..., None], things[..., None])
    loss: Tensor = sigmoid_focal_loss(logits, truth, alpha=alpha, gamma=gamma)
    return loss.sum(2)
