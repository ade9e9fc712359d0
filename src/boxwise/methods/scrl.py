"""SCRL: Spatially Consistent Representation Learning (CVPR 2021, https://arxiv.org/abs/2103.06122).

BYOL whose embeddings are pooled from matched random boxes instead of whole images. In unit vectors:

    for boxes a, b that show the same source rectangle in views 1, 2:
        loss += 2 - 2 * predictor(student(view 1, a)) @ teacher(view 2, b)
        loss += 2 - 2 * predictor(student(view 2, b)) @ teacher(view 1, a)
    loss /= number of box pairs

As in the official code, both views are one batch to every BatchNorm of student, predictor and teacher.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch

from boxwise.config import Amount, Count, Share, settings
from boxwise.data.cut import ViewSpec
from boxwise.geometry.regions import Generator, Regions, matched, random_in_overlap, random_in_view
from boxwise.geometry.views import Batch, join
from boxwise.methods.base import Method, MethodConfig, Pair, of_two_sizes, shared_width
from boxwise.nn.branch import Branch, Tap
from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.nn.heads import BOX_HEAD_WIDTH, box_head, projector
from boxwise.nn.objectives import cosine_distance
from boxwise.nn.pools import LevelBySize, Pool, RegionPool
from boxwise.nn.ranks import row_weight
from boxwise.nn.row_norm import only_kept, whitened
from boxwise.nn.teacher import Teacher, cosine_momentum
from boxwise.shapes import Scalar


@settings
class Config(MethodConfig):
    """The authors' 200-epoch run. Where paper and code differ, the code's value, which made their weights."""

    name: Literal["scrl"] = "scrl"
    boxes: int = 10
    """Box pairs per image."""
    min_box: int = 32
    """Shortest side of a box, in pixels of the view that shows it smaller."""
    generator: Generator = "grid"
    """Boxes inside a random cell of a random grid (the code), or anywhere in the overlap (the paper)."""
    max_iou: Share | None = 0.5
    """A box that overlaps one of its image's earlier boxes this much is drawn again; none: never."""
    tries: int = 50
    """Draws per box before an overlapping one is taken after all."""
    jitter: Amount = 0.0
    """Move and scale the second view's boxes by up to this share of their size."""
    matched: bool = True
    """The second view's boxes show what the first view's show; else they are drawn anywhere in it, as for the
    paper's infinite jitter."""
    levels: tuple[str, ...] = ("c5",)
    """Feature levels, finest first; a box is read from the first whose limit it does not exceed."""
    limits: tuple[float, ...] = (48.0, 96.0, 192.0)
    """Largest box size sqrt(w * h), in view pixels, of each level but the last; one level needs none."""
    pool_size: int = 1
    """Bins a side that a box is pooled to."""
    aligned: bool = False
    """Put the centre of the first cell at half a cell, as detectors do, instead of at 0."""
    box_head: bool = False
    """Pass the pooled boxes through the detector's 4conv1fc head, which is then handed over as well."""
    width: Count = 256
    """Numbers in an embedding."""
    hidden: Count = 4096
    """Hidden width of projector and predictor."""
    last_bias: bool = False
    """A bias in the last layer of projector and predictor."""
    whitened: bool = False
    """Ours, for runs of minutes: a norm without scale and shift ends the projector, and the targets are whitened, so
    that predicting what all boxes share, or the few things that differ most, is not enough."""
    momentum: Share = 0.97
    """Teacher momentum at the first step; rises to 1 along a cosine."""
    target_init: Literal["copy", "random"] = "copy"
    """The teacher starts as the student, or as a network of its own, as in the code."""

    def __post_init__(self) -> None:
        if not self.levels or 1 < len(self.levels) != len(self.limits) + 1:
            raise ValueError(f"{len(self.levels)} levels need one limit fewer, got {len(self.limits)} limits")
        if min(self.boxes, self.tries, self.min_box, self.pool_size) < 1:
            raise ValueError("boxes, tries, min_box and pool_size start at 1")
        if self.jitter and not self.matched:
            raise ValueError("jitter moves matched boxes: set one of jitter: 0 and matched: true")

    def draws(self) -> Mapping[str, tuple[int, ...]]:
        tries = 1 if self.max_iou is None else self.tries
        boxes = (self.boxes, tries, 8)
        also = {"jitter": (self.boxes, 4)} if self.jitter else {} if self.matched else {"others": boxes}
        return {"boxes": boxes, **also}

    def resized(self, share: float) -> Mapping[str, Any]:
        least = {"min_box": max(1, round(self.min_box * share))}
        limits = {"limits": [round(limit * share, 1) for limit in self.limits]}
        return least | limits if len(self.levels) > 1 else least

    def conflicts(self, views: tuple[ViewSpec, ...], encoder: EncoderConfig) -> Iterator[str]:
        yield from MethodConfig.conflicts(self, views, encoder)  # super() is blind to slots
        yield from of_two_sizes(views)
        if any(level.startswith("p") for level in self.levels) and not encoder.fpn:
            yield f"method.levels: {', '.join(self.levels)} need encoder.fpn: true"

    def build(self, encoder: Encoder) -> SCRL:
        return SCRL(self, encoder)


class SCRL(Method):
    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.student = Branch(encoder, {"box": tap(config, encoder)})
        self.predictor = projector(config.width, config.hidden, config.width, last_bias=config.last_bias)
        self.teacher = Teacher(self.student)
        if config.target_init == "random":
            self.teacher.restart(int(torch.randint(2**62, ())))

    def regions(self, batch: Batch) -> Regions:
        c, (one, two) = self.config, batch.views
        regions = random_in_overlap(
            one,
            two,
            batch.draws["boxes"],
            min_size=c.min_box,
            generator=c.generator,
            max_iou=c.max_iou,
            jitter=c.jitter,
            jitter_noise=batch.draws.get("jitter"),
        )
        if c.matched:
            return regions
        others = random_in_view(
            two, batch.draws["others"], min_size=c.min_box, generator=c.generator, max_iou=c.max_iou
        )
        return matched(one, two, regions.a, others, regions.keep.view(others.shape[:2]))

    def pairs(self, batch: Batch) -> list[Pair]:
        return [Pair(0, 1, self.regions(batch))]

    def losses(self, batch: Batch) -> dict[str, Scalar]:
        regions = self.regions(batch)
        views, boxes = join(*batch.views), torch.cat([regions.a, regions.b])
        keep = regions.keep.repeat(2)
        with only_kept(keep, self):  # images without boxes stay out of the projectors' BatchNorm
            prediction = self.predictor(self.student(views, boxes)["box"])  # (2M, D): view 1, then view 2
            target = self.teacher(views, boxes)["box"]
        if self.config.whitened:
            target = whitened(target, keep)
        here, there = target.chunk(2)
        target = torch.cat([there, here])  # row by row, the other view's
        self.watch(prediction, target, keep)
        return {"box": cosine_distance(prediction, target, row_weight(regions.keep).repeat(2))}

    def after_step(self, step: int, total: int, *, ok: Scalar | None = None) -> None:
        self.ema_momentum = cosine_momentum(self.config.momentum, step, total)
        self.teacher.follow(self.student, self.ema_momentum, ok=ok)

    def begin(self) -> None:
        if self.config.target_init == "copy":
            self.teacher.copy(self.student)


def tap(config: Config, encoder: Encoder) -> Tap:
    """Pools boxes from the level of their size and projects them, through the detector's head where asked."""
    channels = shared_width(encoder, config.levels)
    size, aligned = config.pool_size, config.aligned
    pool: Pool = RegionPool(config.levels[0], size, aligned=aligned)
    if len(config.levels) > 1:
        limits = dict(zip(config.levels, (*config.limits, float("inf")), strict=True))
        pool = LevelBySize(limits, size, aligned=aligned)
    head = box_head(channels, size=size) if config.box_head else None
    inputs = channels * size**2 if head is None else BOX_HEAD_WIDTH
    project = projector(
        inputs, config.hidden, config.width, last_bias=config.last_bias, centred=config.whitened
    )
    return Tap(pool, project, box_head=head)
