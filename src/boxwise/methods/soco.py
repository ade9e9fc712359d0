"""SoCo: Aligning Pretraining for Detection via Object-Level Contrastive Learning (NeurIPS 2021,
https://arxiv.org/abs/2106.02637).

BYOL of objects, through the detector's own FPN and box head. The first view (the whole image) is paired with every
other (a crop, and the same crop at half the size); a pair shows K proposed boxes. In unit vectors, with p the
predicted and z the target embeddings of the boxes of one image:

    for first, other in ((1, 2), (1, 3)):
        for a, b in ((first, other), (other, first)):
            matches = [(i, j) for i in boxes(a) for j in boxes(b) if id(i) == id(j)]
            loss += -2 * sum(p[a][i] @ z[b][j] for i, j in matches) / (len(matches) + 1e-6)

and the mean over images. A box is read from the level of its size in its own view, so that an object may be compared
across levels. Images with fewer than K proposals repeat them, which the number of matches counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from boxwise.config import Count, Share, settings
from boxwise.data.cut import ViewSpec
from boxwise.data.objects import Objects
from boxwise.geometry.regions import same_objects
from boxwise.geometry.views import Batch, View
from boxwise.methods.base import Method, MethodConfig, Pair, shared_width
from boxwise.nn.branch import Branch, Tap
from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.nn.heads import BOX_HEAD_WIDTH, Res5Head, box_head, projector
from boxwise.nn.objectives import matched_cosine
from boxwise.nn.pools import BoxesAt, Crops, EveryLevel, Pyramid
from boxwise.nn.row_norm import whitened
from boxwise.nn.teacher import Teacher, cosine_momentum
from boxwise.shapes import Embeddings, Scalar


@settings
class Config(MethodConfig):
    """The authors' FPN run. Where paper and code differ, the code's value, but for views (see the recipes)."""

    name: Literal["soco"] = "soco"
    objects: Objects = Objects()
    levels: tuple[str, ...] = ("p2", "p3", "p4", "p5")
    """Feature levels, finest first; a box is compared as the first shows it whose limit it does not exceed."""
    limits: tuple[float, ...] = (48.0, 96.0, 192.0)
    """Largest box size sqrt(w * h), in view pixels, of each level but the last."""
    scale_aware: bool = True
    """Compare each box as the level of its size shows it; else as every level does, level with level."""
    statistics: Literal["exact", "used"] = "exact"
    """exact: every box passes the heads from every level, level by level and pair by pair, as in the code, and so do
    their BatchNorm statistics; used: a box passes from its own level alone, all boxes of a view at once, which a step
    does in less time."""
    pool_size: int = 7
    """Bins a side that a box is pooled to."""
    box_head: bool = True
    """Pass the pooled boxes through the detector's head: 4conv1fc, or the last stage where the encoder stops at c4."""
    count_repeats: bool = True
    """An object that repeated boxes list m times in one view and n times in the other counts m * n times; else once."""
    width: Count = 256
    """Numbers in an embedding."""
    hidden: Count = 4096
    """Hidden width of projector and predictor."""
    whitened: bool = False
    """Ours, for runs of minutes, as SCRL's: a norm without scale and shift ends the projector, and the targets of all
    rows of a view that may be compared are whitened."""
    momentum: Share = 0.99
    """Teacher momentum at the first step; rises to 1 along a cosine."""

    def __post_init__(self) -> None:
        if not self.levels or len(self.levels) != len(self.limits) + 1:
            raise ValueError(f"{len(self.levels)} levels need one limit fewer, got {len(self.limits)} limits")
        if [*self.limits] != sorted(self.limits):
            raise ValueError(f"limits must rise from level to level, got {self.limits}")
        if self.pool_size < 1:
            raise ValueError("pool_size starts at 1")

    def resized(self, share: float) -> Mapping[str, Any]:
        return {"limits": tuple(limit * share for limit in self.limits)} if self.limits else {}

    def conflicts(self, views: tuple[ViewSpec, ...], encoder: EncoderConfig) -> Iterator[str]:
        if len(views) < 2:
            yield f"views: soco pairs the first view with others, and needs 2 or more; got {len(views)}"
        if any(level.startswith("p") for level in self.levels) and not encoder.fpn:
            yield f"method.levels: {', '.join(self.levels)} need encoder.fpn: true"
        if encoder.c4 and not self.box_head:
            yield "method.box_head: an encoder that stops at c4 needs it, or nothing trains the last stage"

    def build(self, encoder: Encoder) -> SoCo:
        return SoCo(self, encoder)


class SoCo(Method):
    edges: Float[Tensor, " L-1"]

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.student = Branch(encoder, {"box": tap(config, encoder)})
        self.predictor = projector(config.width, config.hidden, config.width, last_bias=True)
        self.teacher = Teacher(self.student)
        self.register_buffer("edges", torch.tensor(config.limits), persistent=False)

    def losses(self, batch: Batch) -> dict[str, Scalar]:
        p, z, ids = zip(*(self.embed(view, i) for i, view in enumerate(batch.views)), strict=True)
        losses = {}
        for i in range(1, len(batch.views)):
            match = ids[0][:, :, None] == ids[i][:, None]
            losses[f"1_to_{i + 1}"] = self.compare(p[0], z[i], match)
            losses[f"{i + 1}_to_1"] = self.compare(p[i], z[0], match.mT)
        match = ids[0][:, :, None] == ids[1][:, None]
        partner = match.int().argmax(2)[..., None].expand_as(p[0])
        self.watch(p[0].flatten(0, 1), z[1].gather(1, partner).flatten(0, 1), match.any(2).flatten())
        return losses

    def compare(
        self, prediction: Float[Tensor, "B n D"], target: Float[Tensor, "B m D"], match: Bool[Tensor, "B n m"]
    ) -> Scalar:
        weight = match.to(torch.promote_types(prediction.dtype, torch.float32))
        if not self.config.count_repeats:
            copies = weight.sum(1, keepdim=True) * weight.sum(2, keepdim=True)
            weight = weight / copies.clamp(min=1)
        return matched_cosine(prediction, target, weight)

    def embed(
        self, view: View, place: int
    ) -> tuple[Float[Tensor, "B n D"], Float[Tensor, "B n D"], Int[Tensor, "B n"]]:
        """Predictions, targets and ids of the rows of view number `place`."""
        boxes, ids, blocks = self.read(view, place)
        online, target = (network(view, boxes)["box"] for network in (self.student, self.teacher))
        online = torch.cat([self.predictor(block) for block in online.chunk(blocks)])
        p, z = (
            x.view(blocks, len(ids), -1, x.shape[1]).transpose(0, 1).flatten(1, 2) for x in (online, target)
        )
        if self.config.whitened:
            z = whitened(z.flatten(0, 1), (ids >= 0).flatten()).view_as(z)
        return p, z, ids

    def read(self, view: View, place: int) -> tuple[BoxesAt, Int[Tensor, "B n"], int]:
        """Where the rows of a view are read, whose they are, and in how many blocks the heads see them.

        A row that is not to be compared bears a negative id of its view's own.
        """
        assert view.objects is not None and view.ids is not None, "SoCo compares known objects"
        c, level, boxes = self.config, self.levels(view), view.place(view.objects)
        if c.statistics == "used" and c.scale_aware:
            return {name: boxes * (level == i)[..., None] for i, name in enumerate(c.levels)}, view.ids, 1
        pairs, count = boxes.shape[1] // c.objects.count, len(c.levels)
        ids = [
            torch.where(level == i, view.ids, -1 - place) if c.scale_aware else view.ids * count + i
            for i in range(count)
        ]
        by_pair = torch.stack([x.unflatten(1, (pairs, -1)) for x in ids], dim=2)  # (B, pairs, L, K)
        return boxes, by_pair.flatten(1), pairs * count

    def levels(self, view: View) -> Int[Tensor, "B N"]:
        """Which level each of a view's objects is compared on: by its whole pixels, before the view is mirrored."""
        assert view.objects is not None, "SoCo compares known objects"
        straight = replace(view, flip=torch.zeros_like(view.flip)).place(view.objects).trunc()
        area = (straight[..., 2:] - straight[..., :2] + 1).prod(-1)
        return torch.bucketize(area, self.edges.to(area.dtype).square())

    def pairs(self, batch: Batch) -> list[Pair]:
        first, *others = batch.views
        return [Pair(0, i, same_objects(first, view)) for i, view in enumerate(others, start=1)]

    def after_step(self, step: int, total: int, *, ok: Scalar | None = None) -> None:
        # The official code moves the teacher as the next forward opens, with that forward's momentum.
        self.ema_momentum = cosine_momentum(self.config.momentum, step + 1, total)
        self.teacher.follow(self.student, self.ema_momentum, ok=ok)

    def begin(self) -> None:
        self.teacher.copy(self.student)


class LevelByLevel(Tap):
    """Head and projector see the boxes of one level and one pair of views at a time, and so do their BatchNorms."""

    pool: EveryLevel

    def __init__(
        self, pool: EveryLevel, project: nn.Module, *, box_head: nn.Module | None, boxes: int
    ) -> None:
        super().__init__(pool, project, box_head=box_head)
        self.boxes = boxes

    def forward(self, pyramid: Pyramid, boxes: BoxesAt, width: int, height: int | None = None) -> Embeddings:
        """Rows run pair by pair (`boxes` boxes each), level by level, image by image, box by box."""
        assert isinstance(boxes, Tensor), "every level reads the same boxes"
        crops = self.pool(pyramid, boxes, width, height)
        by_place = crops.unflatten(
            0, (len(boxes), -1, self.boxes, len(self.pool.levels))
        )  # (B, pairs, K, L, ...)
        pairs = by_place.unbind(1)
        return torch.cat([self.alone(block.flatten(0, 1)) for pair in pairs for block in pair.unbind(2)])

    def alone(self, crops: Crops) -> Embeddings:
        """One block."""
        return self.project(crops if self.box_head is None else self.box_head(crops))


class OwnLevel(EveryLevel):
    """Each box on the level that lists it. On all others it is empty, which RoIAlign reads as zeros at no cost."""

    def forward(self, pyramid: Pyramid, boxes: BoxesAt, width: int, height: int | None = None) -> Crops:
        return super().forward(pyramid, boxes, width, height).unflatten(0, (-1, len(self.levels))).sum(1)


def tap(config: Config, encoder: Encoder) -> Tap:
    """Pools boxes with half-pixel alignment, passes them through the detector's head where asked, projects."""
    channels = shared_width(encoder, config.levels)
    size = config.pool_size
    head: nn.Module | None = None
    inputs = channels * size**2
    if config.box_head and encoder.last is not None:
        head, inputs = Res5Head(encoder), encoder.last_channels
    elif config.box_head:
        head, inputs = box_head(channels, size=size), BOX_HEAD_WIDTH
    project = projector(inputs, config.hidden, config.width, last_bias=True, centred=config.whitened)
    if config.statistics == "used" and config.scale_aware:
        return Tap(OwnLevel(config.levels, size, aligned=True), project, box_head=head)
    every = EveryLevel(config.levels, size, aligned=True)
    return LevelByLevel(every, project, box_head=head, boxes=config.objects.count)
