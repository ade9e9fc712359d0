"""Where in a picture a patch lies, by one linear layer on frozen features: InsLoc's localisation task (5.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from boxwise.config import Count, HeldOutData, LabelledData, settings
from boxwise.data.classified import open_held_out
from boxwise.data.sources import Files
from boxwise.geometry.boxes import rows
from boxwise.nn.encoder import Encoder
from boxwise.nn.heads import Res5Head
from boxwise.nn.pools import Align
from boxwise.shapes import Image, Rows
from boxwise.transfer.probes.base import Place, ProbeConfig, Reader, Sides
from boxwise.transfer.probes.looks import Asked, AskedBoxes


@settings
class PatchLocation(ProbeConfig):
    """Which of the patches of a grid over the picture a patch is.

    A patch is read as C4 detectors read a box: RoIAlign on c4 of the whole picture, then the last stage, and its
    mean; or straight from c5. No labels are needed.
    """

    labelled: ClassVar[bool] = False
    name: Literal["patch_location"] = "patch_location"
    grid: Annotated[int, Field(ge=2)] = 3
    """Patches a side: M = 9 of the paper."""
    level: Literal["c4", "c5"] = "c4"
    """The map that RoIAlign reads: c4, with the last stage as head (the paper), or c5, without a head."""
    bins: Count = 14
    """Bins a side of what RoIAlign reads; the mean of the head's cells, or of these, is the row."""
    aligned: bool = True
    """The centre of the first cell lies at half a cell, as in InsLoc's pretraining."""

    def open(self, place: Place, settings: LabelledData, *, seed: int) -> Sides:
        """Any pictures, without labels."""
        assert isinstance(settings, HeldOutData)
        if settings.labels is not None:
            raise ValueError("--labels: this probe reads no labels; leave it out")
        train, test = open_held_out(
            place.data,
            images=place.images,
            val=place.val,
            held_out=settings.held_out,
            seed=seed,
            max_value=settings.max_value,
        )
        return Patches(train, self.grid), Patches(test, self.grid)

    def reader(self) -> Reader:
        align = Align(self.bins, self.aligned)
        if self.level == "c4":
            return PatchesThroughHead(self.encoder(c4=True), self.grid, align)
        return PatchesOfMap(self.encoder(), self.grid, align)


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """Pictures, of each of which every patch of a grid is asked about, row by row."""

    files: Files
    grid: int

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(f"row {i // self.grid}, column {i % self.grid}" for i in range(self.grid**2))

    def __len__(self) -> int:
        return len(self.files)

    def ask(self, index: int) -> Asked:
        return Asked(self.files.read(index), torch.arange(self.grid**2))

    def name(self, index: int) -> str:
        return self.files.name(index)

    def fingerprint(self) -> str:
        return self.files.fingerprint()


class PatchesOfMap(Reader):
    """The mean of what RoIAlign reads of c5 at each patch."""

    def __init__(self, encoder: Encoder, grid: int, align: Align) -> None:
        super().__init__()
        self.encoder, self.grid, self.align = encoder, grid, align
        self.width = encoder.channels["c5"]

    def forward(self, images: Image, boxes: AskedBoxes) -> Float[Tensor, "M D"]:
        view = images.shape[-1], images.shape[-2]
        crops = self.align(self.encoder(images)["c5"], patches(images, self.grid), view)
        return crops.float().mean((-2, -1))

    def backbone(self) -> nn.Module:
        return self.encoder.body


class PatchesThroughHead(Reader):
    """What the last stage makes of RoIAlign's crops of c4, one for each patch."""

    def __init__(self, encoder: Encoder, grid: int, align: Align) -> None:
        super().__init__()
        self.encoder, self.grid, self.align = encoder, grid, align
        self.head = Res5Head(encoder)
        self.width = self.head.width

    def forward(self, images: Image, boxes: AskedBoxes) -> Float[Tensor, "M D"]:
        view = images.shape[-1], images.shape[-2]
        return self.head(self.align(self.encoder(images)["c4"], patches(images, self.grid), view))

    def backbone(self) -> nn.Module:
        return self.head.backbone(self.encoder.body)


def patches(images: Image, grid: int) -> Rows:
    """Each patch of a `grid` x `grid` split of every image, row by row: (B * grid^2, 5)."""
    edge = torch.arange(grid, device=images.device, dtype=torch.float32)
    top, left = torch.meshgrid(edge, edge, indexing="ij")
    corners = (
        torch.stack([left, top, left + 1, top + 1], dim=-1).flatten(0, 1) / grid
    )  # (grid^2, 4), of the side
    across, down = images.shape[-1], images.shape[-2]
    boxes = torch.stack([c * (across, down)[i % 2] for i, c in enumerate(corners.unbind(-1))], dim=-1)
    return rows(boxes.expand(len(images), -1, -1))
