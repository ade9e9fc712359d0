"""What every detector is to the rest of the house: settings that can build it, losses, detections, parts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from boxwise.config import Count, settings
from boxwise.data.densepose import DENSE
from boxwise.data.targets import Labelled
from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.shapes import Scalar
from boxwise.transfer.detectors.freezing import freeze

Kind = Literal["bbox", "segm", "keypoints", "semantic", "densepose"]
"""What a detector finds, and is measured by."""
Found = Literal["bbox", "segm", "keypoints"]
"""Kinds that COCO's figures measure."""
ANNOTATIONS: dict[Kind, str] = {
    "segm": "segmentation",
    "keypoints": "keypoints",
    "semantic": "segmentation",
    "densepose": DENSE,
}
"""The field of COCO's annotations that each kind is learned from, beside boxes and categories."""
Targets = list[dict[str, Tensor]]
"""Of each image, what torchvision's detectors take: boxes, labels, and masks or keypoints where there are."""


@dataclass(frozen=True, slots=True)
class Jitter:
    """How training pictures are scaled and cut, before they are mirrored."""

    scales: tuple[float, float]
    """Least and largest factor on the size that they would have, drawn evenly."""
    crop: int
    """Pixels a side of what is cut from the scaled picture; a side that is shorter stays whole."""


class Detector(nn.Module, ABC):
    """A network that finds things in normalised images, under the names that torchvision's models have."""

    mean: Sequence[float]
    """RGB in 0..1 that inputs are normalised by."""
    std: Sequence[float]

    @abstractmethod
    def losses(self, images: ImageList, targets: Targets) -> dict[str, Scalar]:
        """The terms of the loss by our own names, each weighted as it enters the sum."""

    @abstractmethod
    def detect(self, images: ImageList) -> Targets:
        """What is found in each image, the surest first, in pixels of the block; for evaluation mode."""

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """What pretrained weights go into, under the names that `Weights.into` takes."""


@settings
class DetectorConfig(ABC):
    """Settings that all detectors share. Subclasses are `@settings` with a literal `name`."""

    least_shrink: ClassVar[float] = 1 / 4
    """The least that `shrink` says."""
    name: str
    backbone: str = "resnet50"
    """torchvision's resnet18, 34, 50 or 101, or any timm backbone with feature maps."""
    norm: Literal["bn", "sync", "frozen"] = "bn"
    """BatchNorm on each device's images (bn) or on all devices' (sync), or the backbone's norms as they came,
    statistics and all (frozen; those of all other parts train, on each device's images)."""
    frozen_stages: int = 0
    """Backbone stages that do not train, norms included: 1 the stem, 2 and the first stage, ... 5 all."""
    min_size: Count = 800
    """Pixels of the shorter side."""
    max_size: Count = 1333
    """Most pixels of the longer side."""
    train_max_size: int | None = None
    """Most pixels of the longer side in training; none: `max_size`."""
    train_sizes: tuple[int, ...] = ()
    """Shorter sides to draw from in training; none: `min_size`."""
    flip: float = 0.5
    """Probability of a left-right flip in training."""

    def kinds(self) -> tuple[Kind, ...]:
        """What it finds, the main kind first."""
        return ("bbox",)

    def measured(self) -> tuple[Found, ...]:
        """What of it COCO's figures measure."""
        return tuple(kind for kind in ("bbox", "segm", "keypoints") if kind in self.kinds())

    def extras(self) -> tuple[str, ...]:
        """Fields of annotations that it learns from, beside boxes and categories."""
        return tuple(ANNOTATIONS[kind] for kind in self.kinds() if kind in ANNOTATIONS)

    def classes(self, labelled: Labelled) -> tuple[str, ...]:
        """Names of what it tells apart on `labelled`, as many as `build` is told."""
        return tuple(category.name for category in labelled.categories)

    def jitter(self) -> Jitter | None:
        """How training pictures are scaled and cut; none: they are only resized."""
        return None

    @abstractmethod
    def encoder(self) -> EncoderConfig:
        """The network below the detector's heads."""

    @abstractmethod
    def build(self, *, classes: int, mean: Sequence[float], std: Sequence[float]) -> Detector:
        """The detector with random weights from torch's global generator. Never downloads.

        `classes` counts without background. `mean` and `std` are RGB in 0..1, those of the pretraining.
        """

    def problems(self, *, pretrained: bool) -> Iterator[str]:
        """What cannot be, or cannot work, one sentence each; `pretrained` says whether weights are loaded."""
        yield from self.outside({"frozen_stages": (0, 5), "flip": (0, 1)})
        if not 32 <= self.min_size <= self.max_size:
            yield (
                f"detector.min_size: expected 32 or more, and no more than detector.max_size ({self.max_size}), "
                f"got {self.min_size}"
            )
        longest = self.train_max_size or self.max_size
        if any(not 32 <= size <= longest for size in self.train_sizes):
            yield f"detector.train_sizes: expected 32 to {longest} each, got {[*self.train_sizes]}"
        if not pretrained and (self.norm == "frozen" or self.frozen_stages):
            yield "detector.norm, detector.frozen_stages: random weights must train; name --weights"

    def outside(self, ranges: Mapping[str, tuple[float, float]]) -> Iterator[str]:
        """One sentence for each setting that is not in its range."""
        for key, (low, high) in ranges.items():
            if not low <= getattr(self, key) <= high:
                yield f"detector.{key}: expected {low} to {high}, got {getattr(self, key)}"

    def below_one(self, keys: Sequence[str]) -> Iterator[str]:
        """One sentence for each setting that counts something, and counts none."""
        for key in keys:
            if getattr(self, key) < 1:
                yield f"detector.{key}: expected 1 or more, got {getattr(self, key)}"

    def shrink(self) -> float:
        """What default sizes in pixels are multiplied by: a power of two, 1 at 800 px."""
        return max(self.least_shrink, 2.0 ** min(0, round(math.log2(self.min_size / 800))))

    def default_anchors(self) -> tuple[int, ...]:
        """Five sizes in pixels that follow the images'."""
        return tuple(round(32 * 2**level * self.shrink()) for level in range(5))

    def hold(self, encoder: Encoder) -> None:
        """Stops what is to be frozen from training."""
        if self.frozen_stages or self.norm == "frozen":
            ends = stage_ends(encoder)
            freeze(encoder.body, ends, up_to=self.frozen_stages, norms=self.norm == "frozen")


def stage_ends(encoder: Encoder) -> list[str]:
    """Names of the body's modules that give c2 to c5."""
    info = getattr(encoder.body, "feature_info", None)  # timm's; torchvision's ResNets have none
    if info is None:
        return ["layer1", "layer2", "layer3", "layer4"]
    last = dict(zip(info.reduction(), info.module_name(), strict=True))
    return [last[stride] for stride in (4, 8, 16, 32)]
