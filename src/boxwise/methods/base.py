"""What the training loop needs from a method, and nothing more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from boxwise.data.cut import ViewSpec
from boxwise.data.objects import Objects
from boxwise.geometry.regions import Regions
from boxwise.geometry.views import Batch, View
from boxwise.nn.branch import Branch
from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.shapes import Embeddings, Keep, Scalar


class MethodConfig(ABC):
    """A method's settings, which also know how to build it. Subclasses are `@settings` with a literal `name`."""

    __slots__ = ()
    has_boxes: ClassVar[bool] = True
    """Whether it compares boxes, which nothing that moves content inside a view would take along."""
    composites: ClassVar[bool] = False
    """Whether it knows what to do with images that are pasted on others."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    def objects(self) -> Objects | None:
        """Which of each image's proposed boxes its views are to know; none: the method needs no proposals."""
        return None

    @abstractmethod
    def build(self, encoder: Encoder) -> Method:
        """The method around `encoder`, with fresh heads and teacher."""

    def draws(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes, per image, of the uniform numbers that `losses` reads from `batch.draws`."""
        return {}

    def resized(self, share: float) -> Mapping[str, Any]:
        """Settings in pixels of the views, by key, once the views are `share` times as large."""
        return {}

    def conflicts(self, views: tuple[ViewSpec, ...], encoder: EncoderConfig) -> Iterator[str]:
        """What cannot work with these views or this encoder, one sentence each, key first."""
        if len(views) != 2:
            yield f"views: {self.name} compares 2 views, got {len(views)}"


@dataclass(frozen=True, slots=True)
class Pair:
    """Matched boxes of two of a batch's views, for drawing."""

    a: int
    """Place in `batch.views` of the view that `regions.a` lies in."""
    b: int
    regions: Regions


@dataclass(frozen=True, slots=True)
class Watched:
    """What the health figures are computed from: matched rows of the last forward, without gradient."""

    query: Embeddings
    key: Embeddings
    keep: Keep | None


class Method(nn.Module, ABC):
    """A pretraining objective. Subclasses are final; share by composing `geometry` and `nn`."""

    student: Branch
    sync_norm: ClassVar[bool] = True
    """Over several ranks, every BatchNorm sees the joint batch."""
    constant_lr: ClassVar[tuple[str, ...]] = ()
    """Submodules whose learning rate no schedule moves."""
    watched: Watched | None = None
    ema_momentum: float | None = None
    """What the teacher last moved with."""

    def forward(self, batch: Batch) -> dict[str, Scalar]:
        """Runs `losses` and adds their sum as "loss". The only call that goes through DDP."""
        losses = self.losses(batch)
        return losses | {"loss": torch.stack([*losses.values()]).sum()}

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Scalar]:
        """Named, already weighted loss terms. Must not change parameters or teachers."""

    def pairs(self, batch: Batch) -> list[Pair]:
        """The matched boxes that `losses` would compare, for drawing; none where it compares whole images."""
        return []

    def seen(self, batch: Batch) -> tuple[View, ...]:
        """The views as the networks take them, for drawing: DetCo's come as patches."""
        return batch.views

    def begin(self) -> None:
        """Called when weights from elsewhere have been loaded into the student: teachers take them over."""

    def after_step(self, step: int, total: int, *, ok: Scalar | None = None) -> None:
        """Called once per optimiser step, `step` counted from 0. Teachers move here only.

        `ok` is 1, or 0 when the step was dropped for a non-finite gradient: a teacher then stays.
        """

    def handed_over(self) -> dict[str, nn.Module]:
        """What a detector takes: the student's `backbone`, and where it trained them `fpn` and `head`."""
        return self.student.handed_over()

    def watch(self, query: Embeddings, key: Embeddings, keep: Keep | None = None) -> None:
        """Leaves the rows that the health figures are computed from, at the log interval only."""
        self.watched = Watched(query.detach(), key.detach(), keep)


def of_two_sizes(views: tuple[ViewSpec, ...]) -> Iterator[str]:
    """What keeps views from being one batch, key first."""
    if len(sizes := {view.crop.size for view in views}) > 1:
        said = " and ".join(map(str, sorted(sizes)))
        yield f"views: both are one batch to every BatchNorm; cut them to one crop.size, got {said} px"


def require_levels(encoder: Encoder, read: Iterable[str]) -> None:
    """Raises ValueError when the encoder lacks a level that is read, or has an FPN that is not read whole."""
    levels = [*read]
    if missing := [level for level in levels if level not in encoder.channels]:
        mend = "c5 needs encoder.c4: false" if "c5" in missing else "p2 to p5 need encoder.fpn: true"
        raise ValueError(f"levels: the encoder has no {', '.join(missing)}; {mend}")
    if idle := [level for level in encoder.channels if level.startswith("p") and level not in levels]:
        raise ValueError(
            f"encoder.fpn: nothing would train {', '.join(idle)}, since {', '.join(levels)} alone is read; "
            "leave them out of encoder.fpn_levels, set encoder.fpn: false, or take a method that reads them all, "
            "as scrl_fpn"
        )


def shared_width(encoder: Encoder, levels: Sequence[str]) -> int:
    """Channels of the levels that one head reads.

    Raises ValueError as `require_levels`, and when they differ.
    """
    require_levels(encoder, levels)
    widths = {encoder.channels[level] for level in levels}
    if len(widths) > 1:
        raise ValueError(f"levels: {', '.join(levels)} differ in channels and cannot share a head")
    return widths.pop()
