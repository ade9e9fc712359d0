"""The class of a whole picture, by one linear layer on the mean of a frozen map.

MoCo's protocol, which DetCo and ReSim take, and SCRL's, differ in optimiser, rate and length: values of recipes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from boxwise.config import HeldOutData, LabelledData, settings
from boxwise.data.classified import Classified, open_classified
from boxwise.data.names import count_of, draw
from boxwise.nn.encoder import Encoder
from boxwise.shapes import Image
from boxwise.transfer.probes.base import Place, ProbeConfig, Reader, Sides
from boxwise.transfer.probes.looks import Asked, AskedBoxes


@settings
class Linear(ProbeConfig):
    """The class of a picture, from the mean of one map."""

    name: Literal["linear"] = "linear"
    level: Literal["c2", "c3", "c4", "c5"] = "c5"
    """The map whose mean is read."""

    def open(self, place: Place, settings: LabelledData, *, seed: int) -> Sides:
        """Folders named after classes, as `open_classified` takes them."""
        if place.images is not None:
            raise ValueError("--images goes with a COCO json, and this probe takes folders of classes")
        assert isinstance(settings, HeldOutData)
        train, test = open_classified(
            place.data, val=place.val, held_out=settings.held_out, seed=seed, max_value=settings.max_value
        )
        names = [train.name(i) for i in range(len(train))]
        drawn = draw(names, count_of(settings.labels, len(train)), seed=seed)
        return ClassedPictures(train.subset(drawn)), ClassedPictures(test)

    def reader(self) -> Reader:
        return WholePicture(self.encoder(), self.level)


@dataclass(frozen=True, slots=True, eq=False)
class ClassedPictures:
    """Pictures, each with its class."""

    pictures: Classified

    @property
    def classes(self) -> tuple[str, ...]:
        return self.pictures.classes

    def __len__(self) -> int:
        return len(self.pictures)

    def ask(self, index: int) -> Asked:
        return Asked(self.pictures.read(index), torch.tensor([int(self.pictures.labels[index])]))

    def name(self, index: int) -> str:
        return self.pictures.name(index)

    def fingerprint(self) -> str:
        return self.pictures.fingerprint()


class WholePicture(Reader):
    """The mean of one map."""

    def __init__(self, encoder: Encoder, level: str) -> None:
        super().__init__()
        self.encoder, self.level, self.width = encoder, level, encoder.channels[level]

    def forward(self, images: Image, boxes: AskedBoxes) -> Float[Tensor, "M D"]:
        return self.encoder(images)[self.level].float().mean((-2, -1))

    def backbone(self) -> nn.Module:
        return self.encoder.body
