"""Detectors of two stages from torchvision's parts: proposals, and what is read in each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict, TypeVar

from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from boxwise.config import settings
from boxwise.shapes import Scalar
from boxwise.transfer.detectors.base import Detector, DetectorConfig, Targets
from boxwise.transfer.detectors.precision import Anchors, BoxPredictor, ProposalHead
from boxwise.transfer.detectors.stages import BETA, BoxHeads, Proposals

S = TypeVar("S", bound=BoxHeads)

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
    "loss_densepose_body": "body",
    "loss_densepose_part": "part",
    "loss_densepose_u": "u",
    "loss_densepose_v": "v",
}
"""torchvision's names of the losses, DensePose's own after them, and ours."""


class Judging(TypedDict):
    """What boxes are judged by, as `TwoStage.second_stage` takes it."""

    pool: nn.Module
    head: nn.Module
    width: int
    classes: int


class RCNN(GeneralizedRCNN, Detector):  # type: ignore[misc]
    """torchvision's R-CNN, whose parts boxwise calls itself: images come resized and normalised."""

    backbone: Any
    rpn: Any
    roi_heads: Any

    def __init__(
        self,
        backbone: nn.Module,
        rpn: Proposals,
        roi_heads: BoxHeads,
        config: DetectorConfig,
        *,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        """Called on its own the model takes float images in 0..1, and resizes and normalises them."""
        resize = GeneralizedRCNNTransform(config.min_size, config.max_size, [*mean], [*std])
        super().__init__(backbone, rpn, roi_heads, resize)
        self.mean, self.std = mean, std

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
    rpn_beta: float = BETA
    """Where the loss of proposals' corners turns from square to straight; 0: straight throughout, as detectron2."""
    box_batch_size_per_image: int = 512
    """Boxes in the loss of each image; most of a step's time follows it where images are small."""
    box_positive_fraction: float = 0.25
    box_beta: float = BETA
    """Where the loss of boxes' corners turns from square to straight; 0: straight throughout, as detectron2."""
    score_threshold: float = 0.05
    """Detections below are dropped."""
    nms_threshold: float = 0.5
    detections_per_image: int = 100

    def problems(self, *, pretrained: bool) -> Iterator[str]:
        yield from DetectorConfig.problems(self, pretrained=pretrained)
        yield from self.outside({"sampling_ratio": (0, 16), **dict.fromkeys(SHARES, (0, 1))})
        yield from self.below_one(COUNTS)
        if min(self.rpn_beta, self.box_beta) < 0:
            yield "detector.rpn_beta, detector.box_beta: expected 0 or more"

    def first_stage(self, channels: int, sizes: Sequence[Sequence[int]], *, convs: int) -> Proposals:
        """Anchors of `sizes`, one entry a map, in three shapes; `convs` convolutions before the verdicts."""
        anchors = Anchors(tuple(tuple(size) for size in sizes), ((0.5, 1.0, 2.0),) * len(sizes))
        count = anchors.num_anchors_per_location()[0]
        stage = Proposals(
            anchors,
            ProposalHead(channels, count, conv_depth=convs),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=self.rpn_batch_size_per_image,
            positive_fraction=0.5,
            pre_nms_top_n={"training": self.rpn_pre_nms_train, "testing": self.rpn_pre_nms_test},
            post_nms_top_n={"training": self.rpn_post_nms_train, "testing": self.rpn_post_nms_test},
            nms_thresh=self.rpn_nms_threshold,
        )
        stage.beta = self.rpn_beta
        return stage

    def second_stage(
        self, kind: type[S], *, pool: nn.Module, head: nn.Module, width: int, classes: int, **more: nn.Module
    ) -> S:
        """Reads `pool`'s crops by `head`, which gives `width` numbers a box; `more` as torchvision's RoIHeads."""
        stage = kind(
            pool,
            head,
            BoxPredictor(width, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=self.box_batch_size_per_image,
            positive_fraction=self.box_positive_fraction,
            bbox_reg_weights=None,
            score_thresh=self.score_threshold,
            nms_thresh=self.nms_threshold,
            detections_per_img=self.detections_per_image,
            **more,
        )
        stage.beta = self.box_beta
        return stage
