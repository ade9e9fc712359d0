"""FCN-16s: a class for every pixel, from the backbone alone, as MoCo's protocol measures it.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020,
https://arxiv.org/abs/1911.05722, appendix; DetCo reports "FCN-16s, MoCo protocol" and released no configuration.

From the paper: the 3x3 convolutions of conv5 have dilation 2 and stride 1; two 3x3 convolutions of 256 channels
with BatchNorm and ReLU and dilation 6; one 1x1 convolution to the classes; total stride 16; training on pictures
scaled by 0.5 to 2, cut (769 pixels on Cityscapes, 513 on VOC) and mirrored; measured at the pictures' own size.
Left open by it, and chosen here: scales are drawn evenly; a cut that is larger than its picture takes all of it;
scores are stretched bilinearly, cell i over pixel 16 i, where a ResNet reads it; the head starts as torch's
convolutions do.

The loss, as loops, over pixels of all ranks whose class is known (255: unknown, and so is padding):

    for pixel in pixels:
        if truth[pixel] != 255:
            total -= log_softmax(scores[pixel])[truth[pixel]]
            count += 1
    loss = total / max(count, 1)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from boxwise.config import Count, settings
from boxwise.data.targets import IGNORED, Labelled
from boxwise.nn.backbones import RESNETS
from boxwise.nn.encoder import Encoder, EncoderConfig, build_encoder
from boxwise.nn.ranks import shared_count
from boxwise.shapes import Image, Scalar
from boxwise.transfer.detectors.base import Detector, DetectorConfig, Jitter, Kind, Targets, stage_ends
from boxwise.transfer.detectors.freezing import stages
from boxwise.transfer.detectors.precision import exact

STRIDE = 16
"""Pixels between the cells of the last map."""
LAST = 5
"""The stage of the body that makes c5."""


@settings
class FCN16s(DetectorConfig):
    """A fully convolutional network of stride 16, on the backbone; its classes include the background."""

    name: Literal["fcn16s"] = "fcn16s"
    min_size: Count = 1024
    """Pixels of the shorter side at scale 1: Cityscapes' own."""
    max_size: Count = 2048
    """Most pixels of the longer side at scale 1."""
    scales: tuple[float, float] = (0.5, 2.0)
    """Least and largest factor that pictures are scaled by in training."""
    crop: int = 769
    """Pixels a side that are cut from the scaled picture in training."""
    width: int = 256
    """Channels of the two convolutions above the backbone."""
    dilation: int = 6
    """Cells between the taps of those convolutions."""

    def kinds(self) -> tuple[Kind, ...]:
        return ("semantic",)

    def classes(self, labelled: Labelled) -> tuple[str, ...]:
        """Raises ValueError for more classes than bytes can number."""
        names = labelled.semantic_names
        if len(names) > IGNORED:
            raise ValueError(
                f"{labelled.table.file}: {len(names)} classes, the background among them; fcn16s tells at most "
                f"{IGNORED} apart: train a detector of boxes or masks, or join categories"
            )
        return names

    def jitter(self) -> Jitter:
        return Jitter(self.scales, self.crop)

    def encoder(self) -> EncoderConfig:
        return EncoderConfig(backbone=self.backbone)

    def problems(self, *, pretrained: bool) -> Iterator[str]:
        yield from DetectorConfig.problems(self, pretrained=pretrained)
        yield from self.below_one(["width", "dilation"])
        if not 0 < self.scales[0] <= self.scales[1]:
            yield f"detector.scales: expected two factors above 0, the least first, got {[*self.scales]}"
        if self.crop < 32:
            yield f"detector.crop: expected 32 or more, got {self.crop}"

    def build(self, *, classes: int, mean: Sequence[float], std: Sequence[float]) -> FCN:
        """`classes` are all that pixels may be of, the background among them."""
        encoder = build_encoder(self.encoder())
        dilate_last_stage(encoder)
        head = fcn_head(encoder.channels["c5"], self.width, classes, dilation=self.dilation)
        model = FCN(encoder, head)
        model.mean, model.std = mean, std
        self.hold(encoder)
        return model


class FCN(Detector):
    """An encoder whose c5 has stride 16, and scores of each class above it."""

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.backbone = encoder
        self.classifier = head

    def losses(self, images: ImageList, targets: Targets) -> dict[str, Scalar]:
        truth = torch.stack([target["semantic"] for target in targets])
        return {"pixels": pixel_loss(self.scores(images.tensors), truth)}

    def detect(self, images: ImageList) -> Targets:
        """Of each image "semantic": the score of each class at each of its pixels, (K, h, w)."""
        scores = self.scores(images.tensors)
        return [
            {"semantic": one[:, :height, :width]}
            for one, (height, width) in zip(scores, images.image_sizes, strict=True)
        ]

    def parts(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone.body}

    def scores(self, images: Image) -> Float[Tensor, "B K H W"]:
        """Before softmax, and never below float32."""
        cells = self.classifier(self.backbone(images)["c5"])
        return stretched(exact(cells), images.shape[-2], images.shape[-1])


def fcn_head(inputs: int, width: int, classes: int, *, dilation: int) -> nn.Sequential:
    """Two wide-sighted convolutions with BatchNorm, and one to the classes."""
    layers: list[nn.Module] = []
    for channels in (inputs, width):
        wide = nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation, bias=False)
        layers += [wide, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(width, classes, 1))


def pixel_loss(scores: Float[Tensor, "B K H W"], truth: UInt8[Tensor, "B H W"]) -> Scalar:
    """The mean over pixels of all ranks whose class is known; 0 where none is."""
    total = F.cross_entropy(scores, truth.long(), ignore_index=IGNORED, reduction="sum")
    return total / shared_count((truth != IGNORED).sum())


def stretched(cells: Float[Tensor, "B K h w"], height: int, width: int) -> Float[Tensor, "B K H W"]:
    """Bilinear between cells, of which number i lies at pixel 16 i; beyond the last cell its own value."""
    rows, columns = (STRIDE * (side - 1) + 1 for side in cells.shape[-2:])
    between = F.interpolate(cells, (rows, columns), mode="bilinear", align_corners=True)
    beyond = (0, max(0, width - columns), 0, max(0, height - rows))
    return F.pad(between, beyond, mode="replicate")[..., :height, :width]


def dilate_last_stage(encoder: Encoder) -> None:
    """Lets c5 have the stride of c4, its convolutions reaching as far as before. Changes no weight and no name.

    Raises ValueError for a backbone whose last stage halves its map by other means than strided convolutions.
    """
    number = stages(encoder.body, stage_ends(encoder))
    stage, pools = 0, list[str]()
    for name, module in encoder.body.named_modules():
        stage = number.get(name, stage)
        if stage < LAST:
            continue
        if isinstance(module, nn.Conv2d):
            _dilate(module)
        elif isinstance(module, nn.AvgPool2d | nn.MaxPool2d):
            pools.append(name)
    for name in pools:
        parent, _, leaf = name.rpartition(".")
        setattr(encoder.body.get_submodule(parent), leaf, nn.Identity())
    encoder.strides["c5"] = STRIDE
    if encoder.config.backbone not in RESNETS:
        _check_stride(encoder)


def _dilate(convolution: nn.Conv2d) -> None:
    convolution.stride = (1, 1)
    if convolution.kernel_size == (1, 1) or not isinstance(convolution.padding, tuple):
        return
    convolution.dilation = (2, 2)
    convolution.padding = (2 * convolution.padding[0], 2 * convolution.padding[1])


@torch.no_grad()
def _check_stride(encoder: Encoder) -> None:
    """One look through the network: foreign stages may shrink their map in any way."""
    training = encoder.training
    sides = [tuple(encoder.eval()(torch.zeros(1, 3, 64, 64))[level].shape[-2:]) for level in ("c4", "c5")]
    encoder.train(training)
    if sides[0] != sides[1]:
        raise ValueError(
            f"detector.backbone: the last stage of {encoder.config.backbone} cannot be dilated to stride "
            f"{STRIDE}, which fcn16s needs; take {' or '.join(RESNETS)}, or another ResNet"
        )
