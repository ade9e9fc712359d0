"""R-CNNs of two stages from torchvision's parts: proposals, and what is read in each of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList

from boxwise.config import settings
from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.nn.heads import box_head
from boxwise.shapes import Image, Scalar
from boxwise.transfer.detectors.base import Detector, DetectorConfig, Targets
from boxwise.transfer.detectors.pooler import RoIPooler
from boxwise.transfer.detectors.precision import Anchors, BoxPredictor, ProposalHead

LEVELS = {"p2": "0", "p3": "1", "p4": "2", "p5": "3"}
"""Our names of the pyramid's maps, and torchvision's."""
COUNTS = (
    "rpn_pre_nms_train",
    "rpn_pre_nms_test",
    "rpn_post_nms_train",
    "rpn_post_nms_test",
    "rpn_batch_size_per_image",
    "box_batch_size_per_image",
    "detections_per_image",
)
"""Settings that count something."""
SHARES = ("box_positive_fraction", "score_threshold", "nms_threshold", "rpn_nms_threshold")
TERMS = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "rpn_box",
    "loss_classifier": "classifier",
    "loss_box_reg": "box",
    "loss_mask": "mask",
    "loss_keypoint": "keypoint",
}
"""torchvision's names of the losses, and ours."""


class RCNN(FasterRCNN, Detector):  # type: ignore[misc]
    """torchvision's Faster R-CNN, whose parts boxwise calls itself: images come resized and normalised."""

    backbone: Any
    rpn: Any
    roi_heads: Any

    def losses(self, images: ImageList, targets: Targets) -> dict[str, Scalar]:
        features = self.backbone(images.tensors)
        proposals, first = self.rpn(images, features, targets)
        _, second = self.roi_heads(features, proposals, images.image_sizes, targets)
        return {TERMS[name]: loss for name, loss in {**first, **second}.items()}

    def detect(self, images: ImageList) -> Targets:
        features = self.backbone(images.tensors)
        proposals, _ = self.rpn(images, features)
        found, _ = self.roi_heads(features, proposals, images.image_sizes)
        return list(found)

    def parts(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone.body, "fpn": self.backbone.fpn, "head": self.roi_heads.box_head}


@settings
class TwoStage(DetectorConfig):
    """What R-CNNs with and without a pyramid share."""

    aligned: bool = True
    """RoIAlign shifted by half a cell to read where the box is, as detectron2 and unlike torchvision."""
    sampling_ratio: int = 2
    """Points a side averaged in each cell of RoIAlign; 0: as many as the box has pixels, as detectron2."""
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

    def problems(self, *, pretrained: bool) -> Iterator[str]:
        yield from DetectorConfig.problems(self, pretrained=pretrained)
        yield from self.outside({"sampling_ratio": (0, 16), **dict.fromkeys(SHARES, (0, 1))})
        yield from self.below_one(COUNTS)

    def options(self) -> dict[str, Any]:
        """What torchvision's FasterRCNN is told, under its own names."""
        return {
            "min_size": self.min_size,
            "max_size": self.max_size,
            "rpn_pre_nms_top_n_train": self.rpn_pre_nms_train,
            "rpn_pre_nms_top_n_test": self.rpn_pre_nms_test,
            "rpn_post_nms_top_n_train": self.rpn_post_nms_train,
            "rpn_post_nms_top_n_test": self.rpn_post_nms_test,
            "rpn_nms_thresh": self.rpn_nms_threshold,
            "rpn_batch_size_per_image": self.rpn_batch_size_per_image,
            "box_score_thresh": self.score_threshold,
            "box_nms_thresh": self.nms_threshold,
            "box_detections_per_img": self.detections_per_image,
            "box_batch_size_per_image": self.box_batch_size_per_image,
            "box_positive_fraction": self.box_positive_fraction,
        }


@settings
class FasterRCNNFPN(TwoStage):
    """Faster R-CNN on a pyramid; torchvision's `fasterrcnn_resnet50_fpn_v2` by default, but for `aligned`."""

    name: Literal["faster_rcnn_fpn"] = "faster_rcnn_fpn"
    fpn_channels: int = 256
    fpn_norm: Literal["bn", "none"] = "bn"
    """BatchNorm after each convolution of the FPN, or none."""
    head: Literal["4conv1fc"] = "4conv1fc"
    """Four convolutions with BatchNorm and one linear layer: what SoCo and InsLoc pretrain."""
    anchor_sizes: tuple[int, int, int, int, int] | None = None
    """Pixels, one for each of p2 to p6; none: 32 to 512 at 800 px, halved for each halving of `min_size`, but
    never below 8 to 128."""
    roi_canonical_size: int | None = None
    """Pixels of the box that is pooled from p4; none: 224 at 800 px, halved together with the anchors."""

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
        yield from TwoStage.problems(self, pretrained=pretrained)
        yield from self.below_one(["fpn_channels"])
        if min(self.anchors()) < 1 or self.canonical() < 1:
            yield "detector.anchor_sizes, detector.roi_canonical_size: expected 1 or more"

    def build(self, *, classes: int, mean: Sequence[float], std: Sequence[float]) -> RCNN:
        """Names and shapes are `fasterrcnn_resnet50_fpn_v2`'s.

        Called on its own the model takes float images in 0..1 and resizes them; boxwise resizes in workers and
        calls its parts. `norm: sync` is built as BatchNorm: the training loop joins the devices.
        """
        backbone = Pyramid(self.encoder())
        anchors = Anchors(tuple((s,) for s in self.anchors()), ((0.5, 1.0, 2.0),) * 5)
        width = self.fpn_channels
        model = RCNN(
            backbone,
            image_mean=[*mean],
            image_std=[*std],
            rpn_anchor_generator=anchors,
            rpn_head=ProposalHead(width, anchors.num_anchors_per_location()[0], conv_depth=2),
            box_head=box_head(width, size=7),
            box_predictor=BoxPredictor(1024, classes + 1),
            **self.options(),
        )
        model.roi_heads.box_roi_pool = self.pooler(backbone, size=7)
        model.mean, model.std = mean, std
        self.hold(backbone)
        return model

    def pooler(self, backbone: Encoder, *, size: int) -> RoIPooler:
        """Reads `size` by `size` cells of each box, from the level of its size."""
        return RoIPooler(
            {torchvision: backbone.strides[ours] for ours, torchvision in LEVELS.items()},
            output_size=size,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            canonical_size=self.canonical(),
        )


class Pyramid(Encoder):
    """An encoder as torchvision's detectors want it: the pyramid alone, and the level that the RPN adds."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.out_channels = config.fpn_channels

    def forward(self, image: Image) -> dict[str, Float[Tensor, "B C _h _w"]]:
        maps = super().forward(image)
        pyramid = {torchvision: maps[ours] for ours, torchvision in LEVELS.items()}
        return pyramid | {"pool": F.max_pool2d(pyramid["3"], kernel_size=1, stride=2)}
