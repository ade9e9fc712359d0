"""Faster R-CNN with FPN from torchvision's parts, in the layout whose parts are pretrained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from boxwise.config import settings
from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.nn.heads import box_head
from boxwise.shapes import Image
from boxwise.transfer.freezing import freeze
from boxwise.transfer.pooler import RoIPooler
from boxwise.transfer.precision import Anchors, BoxPredictor, ProposalHead

LEVELS = {"p2": "0", "p3": "1", "p4": "2", "p5": "3"}
"""Our names of the pyramid's maps, and torchvision's."""
POSITIVE = (
    "fpn_channels",
    "rpn_pre_nms_train",
    "rpn_pre_nms_test",
    "rpn_post_nms_train",
    "rpn_post_nms_test",
    "rpn_batch_size_per_image",
    "box_batch_size_per_image",
    "detections_per_image",
)
"""Settings that count something."""


@settings
class DetectorConfig:
    """Faster R-CNN on a pyramid; torchvision's `fasterrcnn_resnet50_fpn_v2` by default, but for `aligned`."""

    name: Literal["faster_rcnn_fpn"] = "faster_rcnn_fpn"
    backbone: str = "resnet50"
    """torchvision's resnet18, 34, 50 or 101, or any timm backbone with feature maps."""
    fpn_channels: int = 256
    fpn_norm: Literal["bn", "none"] = "bn"
    """BatchNorm after each convolution of the FPN, or none."""
    norm: Literal["bn", "sync", "frozen"] = "bn"
    """BatchNorm on each device's images (bn) or on all devices' (sync), or the backbone's norms as they came,
    statistics and all (frozen; those of FPN and head train)."""
    frozen_stages: int = 0
    """Backbone stages that do not train, norms included: 1 the stem, 2 and the first stage, ... 5 all."""
    head: Literal["4conv1fc"] = "4conv1fc"
    """Four convolutions with BatchNorm and one linear layer: what SoCo and InsLoc pretrain."""
    aligned: bool = True
    """RoIAlign shifted by half a cell to read where the box is, as detectron2 and unlike torchvision."""
    sampling_ratio: int = 2
    """Points a side averaged in each cell of RoIAlign; 0: as many as the box has pixels, as detectron2."""
    min_size: int = 800
    """Pixels of the shorter side."""
    max_size: int = 1333
    """Most pixels of the longer side."""
    train_sizes: tuple[int, ...] = ()
    """Shorter sides to draw from in training; none: `min_size`."""
    flip: float = 0.5
    """Probability of a left-right flip in training."""
    anchor_sizes: tuple[int, int, int, int, int] | None = None
    """Pixels, one for each of p2 to p6; none: 32 to 512 at 800 px, halved for each halving of `min_size`, but
    never below 8 to 128."""
    roi_canonical_size: int | None = None
    """Pixels of the box that is pooled from p4; none: 224 at 800 px, halved together with the anchors."""
    rpn_pre_nms_train: int = 2000
    """Best proposals kept of each level before suppression, in training."""
    rpn_pre_nms_test: int = 1000
    rpn_post_nms_train: int = 2000
    """Proposals kept of each image after suppression, in training."""
    rpn_post_nms_test: int = 1000
    rpn_nms_threshold: float = 0.7
    rpn_batch_size_per_image: int = 256
    """Anchors in the loss of each image."""
    box_batch_size_per_image: int = 512
    """Boxes in the loss of each image; most of a step's time follows it where images are small."""
    box_positive_fraction: float = 0.25
    score_threshold: float = 0.05
    """Detections below are dropped."""
    nms_threshold: float = 0.5
    detections_per_image: int = 100

    def shrink(self) -> float:
        """What default anchors and canonical size are multiplied by: a power of two, 1 at 800 px."""
        return 2.0 ** min(0, max(-2, round(math.log2(self.min_size / 800))))

    def anchors(self) -> tuple[int, ...]:
        """Pixels, one for each of p2 to p6."""
        return self.anchor_sizes or tuple(round(32 * 2**level * self.shrink()) for level in range(5))

    def canonical(self) -> int:
        """Pixels of the box that is pooled from p4."""
        return self.roi_canonical_size or round(224 * self.shrink())

    def encoder(self) -> EncoderConfig:
        return EncoderConfig(
            backbone=self.backbone, fpn=True, fpn_channels=self.fpn_channels, fpn_norm=self.fpn_norm
        )

    def problems(self, *, pretrained: bool) -> Iterator[str]:
        """What cannot be, or cannot work, one sentence each; `pretrained` says whether weights are loaded."""
        ranges = {"frozen_stages": (0, 5), "sampling_ratio": (0, 16), "min_size": (32, self.max_size)}
        for key, (low, high) in ranges.items():
            if not low <= getattr(self, key) <= high:
                yield f"detector.{key}: expected {low} to {high}, got {getattr(self, key)}"
        for key in POSITIVE:
            if getattr(self, key) < 1:
                yield f"detector.{key}: expected 1 or more, got {getattr(self, key)}"
        if any(not 32 <= size <= self.max_size for size in self.train_sizes):
            yield f"detector.train_sizes: expected 32 to {self.max_size} each, got {[*self.train_sizes]}"
        if min(self.anchors()) < 1 or self.canonical() < 1:
            yield "detector.anchor_sizes, detector.roi_canonical_size: expected 1 or more"
        for key in ("flip", "box_positive_fraction", "score_threshold", "nms_threshold", "rpn_nms_threshold"):
            if not 0 <= getattr(self, key) <= 1:
                yield f"detector.{key}: expected 0 to 1, got {getattr(self, key)}"
        if not pretrained and (self.norm == "frozen" or self.frozen_stages):
            yield "detector.norm, detector.frozen_stages: random weights must train; name --weights"


class Pyramid(Encoder):
    """An encoder as torchvision's detectors want it: the pyramid alone, and the level that the RPN adds."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.out_channels = config.fpn_channels

    def forward(self, image: Image) -> dict[str, Float[Tensor, "B C _h _w"]]:
        maps = super().forward(image)
        pyramid = {torchvision: maps[ours] for ours, torchvision in LEVELS.items()}
        return pyramid | {"pool": F.max_pool2d(pyramid["3"], kernel_size=1, stride=2)}


def build_detector(
    config: DetectorConfig, *, classes: int, mean: Sequence[float], std: Sequence[float]
) -> FasterRCNN:
    """A torchvision Faster R-CNN with random weights; names and shapes are `fasterrcnn_resnet50_fpn_v2`'s.

    `classes` counts without background. `mean` and `std` are RGB in 0..1, those of the pretraining. Called on
    its own it takes float images in 0..1 and resizes them; boxwise resizes in workers and calls its parts.
    `norm: sync` is built as BatchNorm: the training loop joins the devices. Never downloads.
    """
    backbone = Pyramid(config.encoder())
    anchors = Anchors(tuple((s,) for s in config.anchors()), ((0.5, 1.0, 2.0),) * 5)
    width = config.fpn_channels
    model = FasterRCNN(
        backbone,
        min_size=config.min_size,
        max_size=config.max_size,
        image_mean=[*mean],
        image_std=[*std],
        rpn_anchor_generator=anchors,
        rpn_head=ProposalHead(width, anchors.num_anchors_per_location()[0], conv_depth=2),
        rpn_pre_nms_top_n_train=config.rpn_pre_nms_train,
        rpn_pre_nms_top_n_test=config.rpn_pre_nms_test,
        rpn_post_nms_top_n_train=config.rpn_post_nms_train,
        rpn_post_nms_top_n_test=config.rpn_post_nms_test,
        rpn_nms_thresh=config.rpn_nms_threshold,
        rpn_batch_size_per_image=config.rpn_batch_size_per_image,
        box_head=box_head(width, size=7),
        box_predictor=BoxPredictor(1024, classes + 1),
        box_score_thresh=config.score_threshold,
        box_nms_thresh=config.nms_threshold,
        box_detections_per_img=config.detections_per_image,
        box_batch_size_per_image=config.box_batch_size_per_image,
        box_positive_fraction=config.box_positive_fraction,
    )
    model.roi_heads.box_roi_pool = RoIPooler(
        {torchvision: backbone.strides[ours] for ours, torchvision in LEVELS.items()},
        output_size=7,
        sampling_ratio=config.sampling_ratio,
        aligned=config.aligned,
        canonical_size=config.canonical(),
    )
    if config.frozen_stages or config.norm == "frozen":
        freeze(backbone.body, stage_ends(backbone), up_to=config.frozen_stages, norms=config.norm == "frozen")
    return model


def parts(model: FasterRCNN) -> dict[str, nn.Module]:
    """What pretrained weights go into, under the names that `Weights.into` takes."""
    return {"backbone": model.backbone.body, "fpn": model.backbone.fpn, "head": model.roi_heads.box_head}


def stage_ends(encoder: Encoder) -> list[str]:
    """Names of the body's modules that give c2 to c5."""
    info = getattr(encoder.body, "feature_info", None)  # timm's; torchvision's ResNets have none
    if info is None:
        return ["layer1", "layer2", "layer3", "layer4"]
    last = dict(zip(info.reduction(), info.module_name(), strict=True))
    return [last[stride] for stride in (4, 8, 16, 32)]
