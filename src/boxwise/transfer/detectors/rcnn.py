"""R-CNNs of two stages on a pyramid."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from boxwise.config import settings
from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.nn.heads import BOX_HEAD_WIDTH
from boxwise.shapes import Image
from boxwise.transfer.detectors.heads import BoxHead, box_head, pretrained_head
from boxwise.transfer.detectors.pooler import RoIPooler
from boxwise.transfer.detectors.stages import BoxHeads
from boxwise.transfer.detectors.two_stage import RCNN, Judging, TwoStage

LEVELS = {"p2": "0", "p3": "1", "p4": "2", "p5": "3"}
"""Our names of the pyramid's maps, and torchvision's."""
BOX_CELLS = 7
"""Cells a side that boxes are judged by, on a pyramid."""


class PyramidRCNN(RCNN):
    """Whose backbone has a pyramid."""

    def parts(self) -> dict[str, nn.Module]:
        head = pretrained_head(self.roi_heads.box_head)
        return {"backbone": self.backbone.body, "fpn": self.backbone.fpn, **head}


@settings
class OnPyramid(TwoStage):
    """What R-CNNs on a pyramid share; torchvision's second version of layers by default, but for `aligned`."""

    fpn_channels: int = 256
    fpn_norm: Literal["bn", "none"] = "bn"
    """BatchNorm after each convolution of the FPN, or none."""
    rpn_convs: int | None = None
    """Convolutions before the verdict on anchors; none: 2 beside the 4conv1fc head, as torchvision's second
    version, 1 beside 2fc, as its first. detectron2 has 1."""
    head: BoxHead = "4conv1fc"
    """What boxes are judged by: four convolutions with BatchNorm and one linear layer, which SoCo and InsLoc
    pretrain (4conv1fc), or two linear layers (2fc)."""
    head_extra_norm: bool = False
    """One more BatchNorm behind the linear layer of 4conv1fc, as InsLoc's detectors have."""
    anchor_sizes: tuple[int, int, int, int, int] | None = None
    """Pixels, one for each of p2 to p6; none: 32 to 512 at 800 px, halved for each halving of `min_size`, but
    never below 8 to 128."""
    roi_canonical_size: int | None = None
    """Pixels of the box that is pooled from p4; none: 224 at 800 px, halved together with the anchors."""

    def anchors(self) -> tuple[int, ...]:
        """Pixels, one for each of p2 to p6."""
        return self.anchor_sizes or self.default_anchors()

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
        if self.rpn_convs is not None:
            yield from self.below_one(["rpn_convs"])
        if self.head_extra_norm and self.head == "2fc":
            yield "detector.head_extra_norm: follows the one linear layer of 4conv1fc; choose head: 4conv1fc"

    def build(self, *, classes: int, mean: Sequence[float], std: Sequence[float]) -> PyramidRCNN:
        """Names and shapes are those of torchvision's model of the same layers.

        `norm: sync` is built as BatchNorm: the training loop joins the devices.
        """
        backbone = Pyramid(self.encoder())
        convs = self.rpn_convs or (2 if self.head == "4conv1fc" else 1)
        rpn = self.first_stage(self.fpn_channels, [[size] for size in self.anchors()], convs=convs)
        model = PyramidRCNN(backbone, rpn, self.heads(backbone, classes), self, mean=mean, std=std)
        self.hold(backbone)
        return model

    @abstractmethod
    def heads(self, backbone: Encoder, classes: int) -> BoxHeads:
        """The second stage. `classes` counts without background."""

    def judging(self, backbone: Encoder, classes: int) -> Judging:
        """What boxes are judged by, as `second_stage` takes it."""
        head = box_head(self.head, self.fpn_channels, size=BOX_CELLS, extra_norm=self.head_extra_norm)
        pool = self.pooler(backbone, size=BOX_CELLS)
        return {"pool": pool, "head": head, "width": BOX_HEAD_WIDTH, "classes": classes}

    def pooler(self, backbone: Encoder, *, size: int) -> RoIPooler:
        """Reads `size` by `size` cells of each box, from the level of its size."""
        return RoIPooler(
            {torchvision: backbone.strides[ours] for ours, torchvision in LEVELS.items()},
            output_size=size,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            canonical_size=self.canonical(),
        )


@settings
class FasterRCNNFPN(OnPyramid):
    """Faster R-CNN on a pyramid: `fasterrcnn_resnet50_fpn_v2` by default, with 2fc and without norms its first
    version."""

    name: Literal["faster_rcnn_fpn"] = "faster_rcnn_fpn"

    def heads(self, backbone: Encoder, classes: int) -> BoxHeads:
        return self.second_stage(BoxHeads, **self.judging(backbone, classes))


class Pyramid(Encoder):
    """An encoder as torchvision's detectors want it: the pyramid alone, and the level that the RPN adds."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.out_channels = config.fpn_channels

    def forward(self, image: Image) -> dict[str, Float[Tensor, "B C _h _w"]]:
        maps = super().forward(image)
        pyramid = {torchvision: maps[ours] for ours, torchvision in LEVELS.items()}
        return pyramid | {"pool": F.max_pool2d(pyramid["3"], kernel_size=1, stride=2)}
