"""What every linear probe is: a frozen reader of pictures or regions, and one linear layer on what it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from boxwise.config import LabelledData, settings
from boxwise.data.cut import Crop
from boxwise.nn.encoder import Encoder, EncoderConfig, build_encoder
from boxwise.nn.ranks import shared_count
from boxwise.nn.row_norm import RowNorm, only_kept
from boxwise.shapes import Image, Scalar
from boxwise.transfer.probes.looks import AskedBoxes, ProbeBatch, Questions, Still

Sides = tuple[Questions, Questions]
"""What is trained on, and what is measured on."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the images lie, as --data, --images and --val say it."""

    data: str | Path
    images: Path | None = None
    val: Path | None = None


class Reader(nn.Module, ABC):
    """What of an encoder is asked about: (B, 3, S, S) to one row of `width` numbers for each question."""

    width: int
    encoder: Encoder

    @abstractmethod
    def forward(self, images: Image, boxes: AskedBoxes) -> Float[Tensor, "M D"]: ...

    @abstractmethod
    def backbone(self) -> nn.Module:
        """What pretrained weights go into."""


@settings
class ProbeConfig(ABC):
    """Settings that all linear probes share. Subclasses are `@settings` with a literal `name`."""

    labelled: ClassVar[bool] = True
    """Whether it is asked about labels: then an image that cannot be read is an error, unless told otherwise."""
    name: str
    backbone: str = "resnet50"
    """torchvision's resnet18, 34, 50 or 101, or any timm backbone with feature maps."""
    crop: Crop = Crop(scale=(0.08, 1.0))
    """How pictures are cut in training."""
    still: Still = Still()
    """How they are seen when they are measured."""
    statistics: Literal["kept", "tracked"] = "kept"
    """Of the frozen norms: as they came (kept), or forgotten and tracked anew while the layer trains, each batch
    normalised by its own (tracked)."""
    normalised: bool = False
    """A BatchNorm without scale and shift before the layer: one rate then suits features of any size."""

    @abstractmethod
    def open(self, place: Place, settings: LabelledData, *, seed: int) -> Sides:
        """The pictures to train and to measure on. Raises ValueError with path and mend."""

    @abstractmethod
    def reader(self) -> Reader:
        """With random weights from torch's global generator. Never downloads."""

    def encoder(self, *, c4: bool = False) -> Encoder:
        """The network that is read."""
        return build_encoder(EncoderConfig(backbone=self.backbone, c4=c4))

    def build(self, *, classes: int, mean: Sequence[float], std: Sequence[float]) -> Probe:
        """The whole probe; `mean` and `std` are RGB in 0..1, those of the pretraining."""
        return Probe(
            self.reader(),
            classes=classes,
            mean=mean,
            std=std,
            tracked=self.statistics == "tracked",
            normalised=self.normalised,
        )

    def problems(self) -> Iterator[str]:
        """What cannot be, one sentence each."""
        yield from self.still.problems()
        if self.crop.size < 32:
            yield f"probe.crop.size: {self.crop.size} px is less than a cell of the coarsest level (32)"
        if self.crop.like is not None or self.crop.flip_like is not None:
            yield "probe.crop.like, probe.crop.flip_like: a probe has one view; leave both out"


class Probe(nn.Module):
    """A frozen reader and the layer that learns; normalises on the device."""

    mean: Tensor
    std: Tensor
    top1: Tensor
    """Share of the last batch's rows, of all ranks, whose surest class was right, once averaged over ranks."""

    def __init__(
        self,
        reader: Reader,
        *,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        tracked: bool = False,
        normalised: bool = False,
    ) -> None:
        super().__init__()
        self.tracked, self.reader, width = tracked, reader.requires_grad_(False), reader.width
        self.norm = RowNorm(width, affine=False) if normalised else nn.Identity()
        self.classifier = nn.Linear(width, classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        for name, rgb in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor([*rgb]).view(3, 1, 1), persistent=False)
        self.register_buffer("top1", torch.zeros(()), persistent=False)
        self.train()  # which holds the frozen part where it is

    def begin(self) -> None:
        """Once the weights have arrived: forgets the statistics that are to be tracked anew."""
        for norm in self.reader.modules() if self.tracked else ():
            if isinstance(norm, _BatchNorm):
                norm.reset_running_stats()

    def train(self, mode: bool = True) -> Probe:
        """Frozen norms stay as they are, but where they are tracked anew."""
        super().train(mode)
        self.reader.train(mode and self.tracked)
        return self

    def forward(self, batch: ProbeBatch) -> dict[str, Scalar]:
        """Cross entropy, a mean over the rows of all ranks; 0 where there are none."""
        scores = self.scores(batch)
        rows = shared_count(batch.classes.new_full((), len(batch.classes)))
        self.top1.copy_((scores.detach().argmax(1) == batch.classes).sum() / rows)
        return {"loss": F.cross_entropy(scores, batch.classes, reduction="sum") / rows}

    def scores(self, batch: ProbeBatch) -> Float[Tensor, "M K"]:
        """Of each class, row by row, in float32 whatever the frozen part is computed in."""
        with torch.no_grad():
            images = (batch.images.to(self.mean.dtype) / 255 - self.mean) / self.std
            read = self.reader(images, batch.boxes)
        rows = read.to(self.classifier.weight.dtype)
        every = torch.ones(len(rows), dtype=torch.bool, device=rows.device)  # a single row is a batch as well
        with torch.autocast(rows.device.type, enabled=False), only_kept(every, self.norm):
            return self.classifier(self.norm(rows))


class Probing:
    """A probe as the engine's task."""

    def __init__(self, probe: Probe) -> None:
        self.module = probe

    def prepare(self, load: ProbeBatch, device: torch.device) -> ProbeBatch:
        return load.to(device)

    def images(self, load: ProbeBatch) -> int:
        return len(load)

    def after_step(self, step: int, total: int, *, ok: Scalar | None) -> None:
        """Nothing follows a probe."""

    def figures(self) -> Mapping[str, Tensor]:
        return {"train/top1": self.module.top1}
