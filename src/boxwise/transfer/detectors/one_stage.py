"""What detectors of one stage share: a pyramid from p3 to p7, and a guess at every cell of it."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, sigmoid_focal_loss
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from boxwise.config import settings
from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.nn.pyramid import UpperLevels
from boxwise.shapes import Image, Scalar
from boxwise.transfer.detectors.base import Detector, DetectorConfig, Targets
from boxwise.transfer.detectors.precision import Anchors

STRIDES = (8, 16, 32, 64, 128)
"""Pixels of the image per cell of p3 to p7."""
GROUPS = 32
"""Groups of each GroupNorm in a head."""
TERMS = {"classification": "classifier", "bbox_regression": "box", "bbox_ctrness": "centerness"}
"""torchvision's names of the losses, and ours."""


@settings
class OneStage(DetectorConfig):
    """What RetinaNet and FCOS share."""

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
        """`model` with the head's prior, and with what is to be frozen frozen."""
        first: Any = model.head.classification_head.cls_logits.bias
        nn.init.constant_(first, -math.log((1 - self.prior) / self.prior))
        model.mean, model.std = mean, std
        self.hold(model.backbone)
        return model


class UpperPyramid(Encoder):
    """An encoder as detectors of one stage want it: p3 to p5, and p6 and p7 convolved on top.

    Names are torchvision's, whose pyramid counts its blocks from c3. The map c2 is there, but nothing reads it.
    """

    fpn: Any

    def __init__(self, config: EncoderConfig, *, p6_from: Literal["c5", "p5"]) -> None:
        super().__init__(dataclasses.replace(config, fpn=False))
        below, width = [self.channels[name] for name in ("c3", "c4", "c5")], config.fpn_channels
        above = UpperBlocks(width if p6_from == "p5" else below[-1], width)
        above.use_P5 = p6_from == "p5"  # torchvision goes by the widths, which may be equal
        norm = nn.BatchNorm2d if config.fpn_norm == "bn" else None
        self.fpn = FeaturePyramidNetwork(below, width, extra_blocks=above, norm_layer=norm)
        self.out_channels = width

    def forward(self, image: Image) -> dict[str, Float[Tensor, "B C _h _w"]]:
        maps = self.trunk(image)
        found: dict[str, Tensor] = self.fpn(
            OrderedDict((str(i), maps[name]) for i, name in enumerate(("c3", "c4", "c5")))
        )
        return found


class UpperBlocks(LastLevelP6P7):  # type: ignore[misc]
    """torchvision's p6 and p7, the zeros around their maps written out.

    On a CPU in bfloat16 torch 2.15 leaves some gradients of a convolution that pads and strides unwritten where the
    map has one column, as p6 of an image of 64 px has: what lay in their memory moves the weights.
    """

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        p6 = _halved(self.p6, p[-1] if self.use_P5 else c[-1])
        p7 = _halved(self.p7, F.relu(p6))
        return [*p, p6, p7], [*names, "p6", "p7"]


def _halved(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """3 x 3 cells around every second one."""
    return F.conv2d(F.pad(x, (1, 1, 1, 1)), convolution.weight, convolution.bias, stride=2)


class LevelAnchors(Anchors):
    """Anchors at multiples of the very strides of p3 to p7, from the corner of the image on.

    torchvision divides the image's side by the map's, which was rounded up: at 800 px it takes p7's stride for
    114 instead of 128. Both agree where sides are multiples of 128.
    """

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        one = feature_maps[0]
        dtype = torch.promote_types(one.dtype, torch.float32)
        self.set_cell_anchors(dtype, one.device)
        steps = [[torch.tensor(stride, device=one.device)] * 2 for stride in STRIDES]
        levels = self.grid_anchors([[*x.shape[-2:]] for x in feature_maps], steps)
        return [torch.cat(levels)] * len(image_list.image_sizes)


class OneStageDetector(Detector):
    """torchvision's RetinaNet or FCOS, whose parts boxwise calls itself: images come resized and normalised.

    The class 0 is torchvision's background, which is never in an image: it learns to be nowhere, and is not
    looked for.
    """

    backbone: Any
    head: Any
    anchor_generator: Any
    postprocess_detections: Any

    @abstractmethod
    def terms(
        self, targets: Targets, outputs: dict[str, Tensor], anchors: list[Tensor], cells: list[int]
    ) -> dict[str, Scalar]:
        """torchvision's losses under its own names; `cells` counts the anchors of each level."""

    def losses(self, images: ImageList, targets: Targets) -> dict[str, Scalar]:
        outputs, anchors, cells = self._read(images)
        terms = self.terms(targets, outputs, anchors, cells)
        return {TERMS[name]: loss for name, loss in terms.items()}

    def detect(self, images: ImageList) -> Targets:
        outputs, anchors, cells = self._read(images)
        outputs["cls_logits"][..., 0] = -math.inf
        split = {name: [*rows.split(cells, dim=1)] for name, rows in outputs.items()}
        found: Targets = self.postprocess_detections(
            split, [[*one.split(cells)] for one in anchors], images.image_sizes
        )
        return found

    def parts(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone.body, "fpn": UpperLevels(self.backbone.fpn)}

    def _read(self, images: ImageList) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """What the head says of every anchor, the anchors of each image, and how many each level has."""
        maps = [*self.backbone(images.tensors).values()]
        outputs = self.head(maps)
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
