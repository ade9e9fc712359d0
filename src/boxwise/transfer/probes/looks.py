"""Pictures as a probe sees them, and what it asks about each: cut or resized in the worker, batched as uint8."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from boxwise.config import Count, settings
from boxwise.data.cut import Crop, Cut, cut_view, draw_cut, resized
from boxwise.data.order import VIEW, Item, numbers
from boxwise.data.targets import Labelled
from boxwise.shapes import Picture

AskedBoxes = Float[Tensor, "_boxes 5"]
"""Image index, then a box, as RoIAlign takes them; as many as there are questions, or none."""


@settings
class Still:
    """How a picture is seen when it is measured: always the same."""

    size: Count = 224
    """Side of what is seen, in pixels."""
    resize: Count | None = 256
    """Pixels that the shorter side is resized to first; none: the picture is squeezed to `size` at once."""
    squeeze: bool = False
    """Then squeeze it to a square, instead of cutting out its middle."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def problems(self) -> Iterator[str]:
        """What cannot be, one sentence each."""
        if self.size < 32:
            yield f"probe.still.size: {self.size} px is less than a cell of the coarsest level (32)"
        if self.resize is not None and self.resize < self.size and not self.squeeze:
            yield (
                f"probe.still.resize: no {self.size} px can be cut out of {self.resize}; set {self.size} or more"
            )


@dataclass(frozen=True, slots=True)
class Asked:
    """One picture, and the class of the whole of it, or of each of its boxes."""

    picture: Picture
    classes: Int[Tensor, " N"]
    """From 0."""
    boxes: Float[Tensor, "N 4"] | None = None
    """Source pixels; none where the question is of no box of the picture's own."""


@runtime_checkable
class Questions(Protocol):
    """Pictures in a fixed order, with what is asked about each. Cheap to send to worker processes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what is to be told apart."""
        ...

    def __len__(self) -> int: ...
    def ask(self, index: int) -> Asked:
        """Raises BadImage where the file gives no picture."""
        ...

    def name(self, index: int) -> str: ...
    def fingerprint(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ProbeBatch:
    """Pictures of one size, and what is asked about them."""

    images: UInt8[Tensor, "B 3 S S"]
    classes: Int[Tensor, " M"]
    """Image by image."""
    boxes: AskedBoxes
    """Pixels of the images, one for each of `classes`; none at all where no boxes are asked about."""
    index: tuple[int, ...]
    """Row of each image in its set."""

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str) -> ProbeBatch:
        """The same batch on `device`; copies from pinned memory do not wait."""
        return self._each(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> ProbeBatch:
        """Called by torch's DataLoader."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> ProbeBatch:
        images, classes, boxes = (move(t) for t in (self.images, self.classes, self.boxes))
        return replace(self, images=images, classes=classes, boxes=boxes)


@dataclass(frozen=True, slots=True)
class Seen:
    """One picture at the size that the probe sees it."""

    image: UInt8[Tensor, "3 S S"]
    classes: Int[Tensor, " N"]
    boxes: Float[Tensor, "N 4"] | None
    """Pixels of `image`."""
    index: int


@dataclass(frozen=True, slots=True)
class TrainLooks:
    """Pictures to train on: a part of each drawn anew in every pass, and mirrored at random."""

    questions: Questions
    crop: Crop
    seed: int

    def sample(self, index: int, epoch: int) -> Seen:
        """A function of (seed, epoch, index), whichever process asks. Raises what reading raises."""
        asked = self.questions.ask(index)
        height, width = asked.picture.shape[1:]
        cut = draw_cut(numbers(self.seed, VIEW, Item(epoch, index)), self.crop, width=width, height=height)
        image = cut_view(asked.picture, cut, self.crop)
        image = image.flip(-1) if cut.flip else image
        boxes = None if asked.boxes is None else _placed(asked.boxes, cut, self.crop.size)
        return Seen(image, asked.classes, boxes, index)


@dataclass(frozen=True, slots=True)
class StillLooks:
    """Pictures to measure on, the same in every pass."""

    questions: Questions
    still: Still

    def sample(self, index: int, epoch: int = 0) -> Seen:
        """Raises what reading raises."""
        asked = self.questions.ask(index)
        height, width = asked.picture.shape[1:]
        whole = Cut(0, 0, width, height, flip=False)
        boxes = None if asked.boxes is None else _placed(asked.boxes, whole, self.still.size)
        return Seen(still_view(asked.picture, self.still), asked.classes, boxes, index)


def still_view(picture: Picture, still: Still) -> UInt8[Tensor, "3 S S"]:
    """`picture` as it is measured."""
    square = (still.size, still.size)
    if still.resize is not None:
        height, width = picture.shape[1:]
        short = min(height, width)
        sides = tuple(int(still.resize * side / short) for side in (height, width))
        picture = resized(picture, (sides[0], sides[1]), still.interpolation)
        if not still.squeeze:
            return T.center_crop(picture, [*square])
    return resized(picture, square, still.interpolation)


def collate(seen: Sequence[Seen]) -> ProbeBatch:
    """Rows run image by image."""
    boxes = [
        torch.cat([one.boxes.new_full((len(one.boxes), 1), row), one.boxes], dim=1)
        for row, one in enumerate(seen)
        if one.boxes is not None
    ]
    return ProbeBatch(
        images=torch.stack([one.image for one in seen]),
        classes=torch.cat([one.classes for one in seen]),
        boxes=torch.cat(boxes) if boxes else torch.zeros(0, 5),
        index=tuple(one.index for one in seen),
    )


@dataclass(frozen=True, slots=True, eq=False)
class LabelledBoxes:
    """The boxes of a labelled set, each with its category; crowds, which are no one thing, are left out."""

    labelled: Labelled

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.labelled.categories)

    def __len__(self) -> int:
        return len(self.labelled)

    def ask(self, index: int) -> Asked:
        picture, labels = self.labelled.read(index)
        rows = (~labels.crowd).nonzero()[:, 0]
        return Asked(picture, labels.labels[rows].long() - 1, labels.boxes[rows].float())

    def name(self, index: int) -> str:
        return self.labelled.name(index)

    def fingerprint(self) -> str:
        return self.labelled.fingerprint()

    def filled(self) -> LabelledBoxes:
        """The images with a box alone: nothing can be asked about the others."""
        table = self.labelled.table
        first, last = table.first[self.labelled.index], table.first[self.labelled.index + 1]
        counted = np.concatenate([[0], np.cumsum(~table.crowd)])
        return LabelledBoxes(self.labelled.subset(np.flatnonzero(counted[last] > counted[first])))


def _placed(boxes: Float[Tensor, "N 4"], cut: Cut, size: int) -> Float[Tensor, "N 4"]:
    """Source pixels to those of the part at `cut`, `size` pixels a side and mirrored where it says so."""
    across, down = size / cut.width, size / cut.height
    placed = (boxes - boxes.new_tensor([cut.left, cut.top] * 2)) * boxes.new_tensor([across, down] * 2)
    if cut.flip:
        left, top, right, bottom = placed.unbind(-1)
        placed = torch.stack([size - right, top, size - left, bottom], dim=-1)
    return placed
