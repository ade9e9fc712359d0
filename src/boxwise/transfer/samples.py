"""Labelled images as a detector takes them: resized once, in the worker, and batched as uint8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as T

from boxwise.data.targets import Labelled
from boxwise.shapes import Picture
from boxwise.transfer.detectors import DetectorConfig

MULTIPLE = 32
"""Sides of a batch are padded to this, the coarsest stride that halves without remainder."""
USE = 0xDE7
"""Keeps these draws apart from others of the same seed, epoch and image."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image at the size that the detector sees it."""

    image: Picture
    boxes: Float[Tensor, "N 4"]
    """Pixels of `image`."""
    labels: Int[Tensor, " N"]
    """1 and up; 0 is the detector's background."""
    index: int
    """Row in the labelled set."""
    source: tuple[int, int]
    """Height and width of the decoded image."""


@dataclass(frozen=True, slots=True)
class DetectionBatch:
    """Images of their own sizes in one block, and the boxes of all of them in one list."""

    images: UInt8[Tensor, "B 3 H W"]
    """Each in the top left corner, black beyond."""
    sizes: tuple[tuple[int, int], ...]
    """Height and width of each image without padding."""
    boxes: Float[Tensor, "M 4"]
    """Pixels of the block, image after image."""
    labels: Int[Tensor, " M"]
    counts: tuple[int, ...]
    """Boxes of each image."""
    index: tuple[int, ...]
    """Row of each image in the labelled set."""
    sources: tuple[tuple[int, int], ...]
    """Height and width of each decoded image."""

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str) -> DetectionBatch:
        """The same batch on `device`; copies from pinned memory do not wait."""
        moved = (t.to(device, non_blocking=True) for t in (self.images, self.boxes, self.labels))
        return self._with(*moved)

    def pin_memory(self) -> DetectionBatch:
        """Called by torch's DataLoader."""
        return self._with(*(t.pin_memory() for t in (self.images, self.boxes, self.labels)))

    def targets(self) -> list[dict[str, Tensor]]:
        """Boxes and labels of each image, as torchvision's detectors take them."""
        split = zip(self.boxes.split(self.counts), self.labels.split(self.counts), strict=True)
        return [{"boxes": boxes, "labels": labels} for boxes, labels in split]

    def _with(self, images: Tensor, boxes: Tensor, labels: Tensor) -> DetectionBatch:
        return replace(self, images=images, boxes=boxes, labels=labels)


@dataclass(frozen=True, slots=True)
class TrainSamples:
    """Samples to train on: short side drawn, flipped at random, crowds left out."""

    labelled: Labelled
    config: DetectorConfig
    seed: int

    def __len__(self) -> int:
        return len(self.labelled)

    def sample(self, index: int, epoch: int) -> Sample:
        """A function of (seed, epoch, index), whichever process asks. Raises what reading raises."""
        size, flip = np.random.default_rng([self.seed, epoch, index, USE]).random(2)
        picture, labels = self.labelled.read(index)
        sizes = self.config.train_sizes or (self.config.min_size,)
        keep = ~labels.crowd
        image, boxes = _resized(
            picture, labels.boxes[keep], short=sizes[int(size * len(sizes))], long=self.config.max_size
        )
        if flip < self.config.flip:
            image, boxes = T.horizontal_flip(image), T.horizontal_flip(boxes)
        boxes = T.clamp_bounding_boxes(boxes)
        seen = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return _sample(image, boxes[seen], labels.labels[keep][seen], index, picture)


@dataclass(frozen=True, slots=True)
class TestSamples:
    """Samples to measure on: all images at one size, without boxes, which the measure reads itself."""

    __test__ = False  # no test of pytest's

    labelled: Labelled
    config: DetectorConfig

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> Sample:
        picture, _ = self.labelled.read(index)
        none = picture.new_zeros((0, 4), dtype=torch.float32)
        image, boxes = _resized(picture, none, short=self.config.min_size, long=self.config.max_size)
        return _sample(image, boxes, none[:, 0].long(), index, picture)


def target_size(height: int, width: int, *, short: int, long: int) -> tuple[int, int]:
    """Height and width with the shorter side at `short`, or the longer at `long` where it would pass it."""
    scale = min(short / min(height, width), long / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def collate(samples: Sequence[Sample]) -> DetectionBatch:
    """Pads to the largest height and width of the batch, rounded up to a multiple of 32."""
    sizes = [(s.image.shape[1], s.image.shape[2]) for s in samples]
    height, width = (-(-max(side) // MULTIPLE) * MULTIPLE for side in zip(*sizes, strict=True))
    block = torch.zeros((len(samples), 3, height, width), dtype=torch.uint8)
    for row, sample, (h, w) in zip(block, samples, sizes, strict=True):
        row[:, :h, :w] = sample.image
    return DetectionBatch(
        images=block,
        sizes=tuple(sizes),
        boxes=torch.cat([s.boxes for s in samples]),
        labels=torch.cat([s.labels for s in samples]),
        counts=tuple(len(s.boxes) for s in samples),
        index=tuple(s.index for s in samples),
        sources=tuple(s.source for s in samples),
    )


def _resized(
    picture: Tensor, boxes: Tensor, *, short: int, long: int
) -> tuple[tv_tensors.Image, tv_tensors.BoundingBoxes]:
    """Antialiased; boxes scale by what each side really became."""
    canvas = (picture.shape[1], picture.shape[2])
    size = target_size(*canvas, short=short, long=long)
    image = tv_tensors.Image(picture)
    placed = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas)
    if size == canvas:
        return image, placed
    return T.resize(image, [*size], antialias=True), T.resize(placed, [*size])


def _sample(image: Tensor, boxes: Tensor, labels: Tensor, index: int, picture: Tensor) -> Sample:
    source = (picture.shape[1], picture.shape[2])
    return Sample(image.as_subclass(Tensor), boxes.as_subclass(Tensor), labels, index, source)
