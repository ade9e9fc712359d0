"""Labelled images as a detector takes them: resized once, in the worker, and batched as uint8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from boxwise.data.targets import IGNORED, Labelled
from boxwise.shapes import Picture
from boxwise.transfer.annotations import Frame, keypoint_names, learned, pixel_classes
from boxwise.transfer.detectors.base import DetectorConfig

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
    extras: dict[str, Tensor] = field(default_factory=dict)
    """What else the detector learns from: masks (N, h, w), keypoints (N, K, 3), semantic (h, w) ..."""


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
    extras: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """By name, one tensor an image, as in its sample; classes of pixels are padded to the block."""

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str) -> DetectionBatch:
        """The same batch on `device`; copies from pinned memory do not wait."""
        return self._each(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> DetectionBatch:
        """Called by torch's DataLoader."""
        return self._each(Tensor.pin_memory)

    def targets(self) -> list[dict[str, Tensor]]:
        """Boxes, labels and extras of each image, as torchvision's detectors take them."""
        split = zip(self.boxes.split(self.counts), self.labels.split(self.counts), strict=True)
        return [
            {"boxes": boxes, "labels": labels, **{name: rows[i] for name, rows in self.extras.items()}}
            for i, (boxes, labels) in enumerate(split)
        ]

    def _each(self, move: Callable[[Tensor], Tensor]) -> DetectionBatch:
        return replace(
            self,
            images=move(self.images),
            boxes=move(self.boxes),
            labels=move(self.labels),
            extras={name: tuple(move(t) for t in rows) for name, rows in self.extras.items()},
        )


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
        draws = np.random.default_rng([self.seed, epoch, index, USE])
        draw, mirror = draws.random(2).tolist()
        picture, labels = self.labelled.read(index)
        config = self.config
        sizes = config.train_sizes or (config.min_size,)
        short, long = sizes[int(draw * len(sizes))], config.train_max_size or config.max_size
        if jitter := config.jitter():
            scale = draws.uniform(*jitter.scales)
            short, long = round(short * scale), round(long * scale)
        image = _resized(picture, short=short, long=long)
        window = _window(_sides(image), jitter.crop, draws) if jitter else None
        frame = Frame(_sides(picture), _sides(image), flip=mirror < config.flip, window=window)
        boxes = frame.boxes(labels.boxes)
        rows = (~labels.crowd & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)).nonzero()[:, 0]
        extras = {name: [values[row] for row in rows.tolist()] for name, values in labels.extras.items()}
        known = learned(config.kinds(), extras, frame, keypoints=keypoint_names(self.labelled.categories))
        if "semantic" in config.kinds():
            known["semantic"] = pixel_classes(self.labelled.semantic(index), frame)
        return Sample(frame.cut(image), boxes[rows], labels.labels[rows], index, frame.source, known)


@dataclass(frozen=True, slots=True)
class TestSamples:
    """Samples to measure on: all images at one size, without boxes, which the measure reads itself."""

    __test__ = False  # no test of pytest's

    labelled: Labelled
    config: DetectorConfig

    def __len__(self) -> int:
        return len(self.labelled)

    def sample(self, index: int, epoch: int = 0) -> Sample:
        """Image `index`, the same in every epoch."""
        picture, _ = self.labelled.read(index)
        return unlabelled(picture, index, self.config)


def unlabelled(picture: Picture, index: int, config: DetectorConfig) -> Sample:
    """One picture at the size that detectors are measured at, without boxes."""
    image = _resized(picture, short=config.min_size, long=config.max_size)
    none = torch.zeros((0, 4))
    return Sample(image, none, none[:, 0].long(), index, _sides(picture))


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
        extras={
            name: tuple(_padded(name, s.extras[name], height, width) for s in samples)
            for name in samples[0].extras
        },
    )


def _padded(name: str, known: Tensor, height: int, width: int) -> Tensor:
    """Classes of pixels reach as far as the block does, unknown beyond their image."""
    if name != "semantic":
        return known
    return F.pad(known, (0, width - known.shape[1], 0, height - known.shape[0]), value=IGNORED)


def _window(sides: tuple[int, int], crop: int, draws: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a cut that may lie anywhere inside."""
    height, width = (min(side, crop) for side in sides)
    top, left = (
        int(draws.integers(side - cut + 1)) for side, cut in zip(sides, (height, width), strict=True)
    )
    return top, left, height, width


def _resized(picture: Picture, *, short: int, long: int) -> UInt8[Tensor, "3 _h _w"]:
    """Antialiased; `picture` itself where it has that size."""
    size = target_size(*_sides(picture), short=short, long=long)
    return picture if size == _sides(picture) else T.resize(picture, [*size], antialias=True)


def _sides(picture: Picture) -> tuple[int, int]:
    return picture.shape[1], picture.shape[2]
