"""R-CNNs without a pyramid: proposals from c4, and the backbone's last stage as the head of all that is read.

Ren, He, Girshick, Sun, Faster R-CNN, NeurIPS 2015, https://arxiv.org/abs/1506.01497
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from boxwise.config import settings
from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.nn.heads import Res5Head
from boxwise.shapes import Image
from boxwise.transfer.detectors.base import Kind, stage_ends
from boxwise.transfer.detectors.freezing import freeze
from boxwise.transfer.detectors.mask_rcnn import MASK_WIDTH, MaskHeads
from boxwise.transfer.detectors.pooler import RoIPooler
from boxwise.transfer.detectors.precision import MaskPredictor
from boxwise.transfer.detectors.stages import BoxHeads, Features, Sampled, Sizes
from boxwise.transfer.detectors.two_stage import RCNN, Judging, TwoStage

CELLS = 14
"""Cells a side that are cut from c4; the last stage leaves half as many."""


class C4(Encoder):
    """An encoder that stops at c4, as torchvision's detectors want it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.out_channels = self.channels["c4"]

    def forward(self, image: Image) -> dict[str, Float[Tensor, "B C _h _w"]]:
        return {"0": super().forward(image)["c4"]}


class Res5(Res5Head):
    """The last stage as a box head, with one more norm behind it or none."""

    def __init__(self, encoder: Encoder, *, extra_norm: bool) -> None:
        super().__init__(encoder)
        self.norm: nn.Module = nn.BatchNorm2d(self.width) if extra_norm else nn.Identity()

    def maps(self, crops: Float[Tensor, "M C s s"]) -> Float[Tensor, "M _D _t _t"]:
        """What boxes and masks are read from."""
        return self.norm(self.last(crops))

    def forward(self, crops: Float[Tensor, "M C s s"]) -> Float[Tensor, "M _D"]:
        return self.maps(crops).mean((-2, -1))


class C4Heads(BoxHeads):
    """Boxes judged by the mean of what the last stage makes of their crops."""

    def crops(self, features: Features, boxes: Sequence[Tensor], sizes: Sizes) -> Float[Tensor, "M _D _t _t"]:
        return self.box_head.maps(self.box_roi_pool(features, boxes, sizes))

    def judge(self, crops: Float[Tensor, "M C s s"]) -> tuple[Tensor, Tensor]:
        return self.box_predictor(crops.mean((-2, -1)))


class C4MaskHeads(C4Heads, MaskHeads):
    """Masks read from the very maps that boxes are judged by."""

    def learned_crops(
        self, features: Features, crops: Tensor, sampled: Sampled, positives: Sampled, sizes: Sizes
    ) -> Float[Tensor, "M C s s"]:
        return crops[torch.cat([*sampled.labels]) > 0]

    def found_crops(
        self, features: Features, boxes: Sequence[Tensor], sizes: Sizes
    ) -> Float[Tensor, "M C s s"]:
        return self.crops(features, boxes, sizes)


class C4RCNN(RCNN):
    """Whose last stage sits in the box head."""

    def parts(self) -> dict[str, nn.Module]:
        return {"backbone": self.roi_heads.box_head.backbone(self.backbone.body)}


@settings
class OnC4(TwoStage):
    """What R-CNNs on c4 share. Weights are those of a whole backbone."""

    rpn_pre_nms_train: int = 12_000
    """Best proposals kept of each image before suppression, in training."""
    rpn_pre_nms_test: int = 6000
    rpn_convs: int = 1
    """Convolutions before the verdict on anchors."""
    head_extra_norm: bool = True
    """One more BatchNorm behind the last stage, which the papers' detectors have; no pretraining holds it."""
    anchor_sizes: tuple[int, int, int, int, int] | None = None
    """Pixels, all at every cell of c4; none: 32 to 512 at 800 px, halved for each halving of `min_size`, but never
    below 8 to 128."""

    def anchors(self) -> tuple[int, ...]:
        """Pixels, all at every cell of c4."""
        return self.anchor_sizes or self.default_anchors()

    def encoder(self) -> EncoderConfig:
        return EncoderConfig(backbone=self.backbone, c4=True)

    def problems(self, *, pretrained: bool) -> Iterator[str]:
        yield from TwoStage.problems(self, pretrained=pretrained)
        yield from self.below_one(["rpn_convs"])
        if min(self.anchors()) < 1:
            yield "detector.anchor_sizes: expected 1 or more"

    def build(self, *, classes: int, mean: Sequence[float], std: Sequence[float]) -> C4RCNN:
        """Raises ValueError for a backbone whose last stage cannot be taken off.

        `norm: sync` is built as BatchNorm: the training loop joins the devices.
        """
        backbone = C4(self.encoder())
        rpn = self.first_stage(backbone.out_channels, [self.anchors()], convs=self.rpn_convs)
        res5 = Res5(backbone, extra_norm=self.head_extra_norm)
        pool = RoIPooler(
            {"0": backbone.strides["c4"]},
            output_size=CELLS,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
        )
        judging: Judging = {"pool": pool, "head": res5, "width": res5.width, "classes": classes}
        model = C4RCNN(backbone, rpn, self.heads(judging), self, mean=mean, std=std)
        self.hold_whole(backbone, res5)
        return model

    @abstractmethod
    def heads(self, judging: Judging) -> BoxHeads:
        """The second stage, with `judging` for `second_stage`."""

    def hold_whole(self, encoder: Encoder, res5: Res5) -> None:
        """Stops what is to be frozen from training, stages counted over the whole backbone."""
        if not self.frozen_stages and self.norm != "frozen":
            return
        whole = res5.backbone(encoder.body)
        freeze(whole, stage_ends(encoder), up_to=self.frozen_stages, norms=self.norm == "frozen")
        for part in (encoder.body, res5.last):  # norms right below `whole` were replaced there alone
            for name in part._modules:
                setattr(part, name, getattr(whole, name))


@settings
class FasterRCNNC4(OnC4):
    """Faster R-CNN on c4, as detectron2's `faster_rcnn_R_50_C4`, with the papers' norm behind res5."""

    name: Literal["faster_rcnn_c4"] = "faster_rcnn_c4"

    def heads(self, judging: Judging) -> C4Heads:
        return self.second_stage(C4Heads, **judging)


@settings
class MaskRCNNC4(OnC4):
    """Mask R-CNN on c4, as detectron2's `mask_rcnn_R_50_C4`, with the papers' norm behind res5: a transposed and a
    1x1 convolution on the maps that boxes are judged by."""

    name: Literal["mask_rcnn_c4"] = "mask_rcnn_c4"

    def kinds(self) -> tuple[Kind, ...]:
        return ("bbox", "segm")

    def heads(self, judging: Judging) -> C4MaskHeads:
        more: dict[str, Any] = {
            "mask_head": nn.Identity(),
            "mask_predictor": MaskPredictor(judging["width"], MASK_WIDTH, judging["classes"] + 1),
        }
        return self.second_stage(C4MaskHeads, **judging, **more)
