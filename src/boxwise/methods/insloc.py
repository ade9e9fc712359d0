"""InsLoc: Instance Localization for Self-supervised Detection Pretraining (CVPR 2021, https://arxiv.org/abs/2102.08318).

MoCo-v2 whose embeddings are pooled from where an image was pasted on another, on every level that a detector reads:

    for image i, with its box in view 1 and in view 2:
        for level l:
            q = student(view 1, augmented box if augmented[l] else box)[l]
            k = teacher(view 2, box)[l]
            loss += cross_entropy([q @ k, *(q @ n for n in queue[l])] / temperature, 0)
    loss /= number of images

One head embeds the crops of all levels in one forward, so that its BatchNorm mixes them. Keys are embedded in other
company than their queries, boxes and all, and queued after they have been compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from boxwise.config import Above, Count, Share, settings
from boxwise.data.cut import ViewSpec
from boxwise.geometry.anchors import ANCHORS, anchor_grid, near_pairs, nearby
from boxwise.geometry.regions import Regions
from boxwise.geometry.views import Batch, View
from boxwise.methods.base import Method, MethodConfig, Pair, require_levels
from boxwise.nn.branch import Branch, Tap
from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.nn.heads import BOX_HEAD_WIDTH, Res5Head, box_head, moco_projector
from boxwise.nn.objectives import info_nce
from boxwise.nn.pools import EveryLevel
from boxwise.nn.queue import Queue
from boxwise.nn.shuffle import Shuffle
from boxwise.nn.teacher import Teacher
from boxwise.shapes import Boxes, Embeddings, Scalar

PYRAMID = ("p2", "p3", "p4", "p5")


@settings
class Config(MethodConfig):
    """The authors' FPN runs. Where paper and code differ, the code's value, which made their weights."""

    composites: ClassVar[bool] = True
    name: Literal["insloc"] = "insloc"
    levels: tuple[str, ...] = PYRAMID
    """Levels that each box is pooled from: p2 to p5, or c4 alone, whose head is the backbone's last stage."""
    augmented: tuple[bool, ...] = (False, False, False, True)
    """Levels whose query is pooled from an anchor near its box instead: p5 alone (the code). The paper names none."""
    apart: bool = True
    """Draw that anchor from those left by non-maximum suppression (the code), or from all that overlap (the paper)."""
    pool_size: int = 7
    """Bins a side that a box is pooled to; 14 for c4, since the last stage halves them."""
    width: Count = 128
    """Numbers in an embedding."""
    hidden: Count = 1024
    """Hidden width of the two layers behind the box head; 2048 for c4."""
    queue: Count = 65_536
    """Keys of earlier images in each level's queue."""
    temperature: Above = 0.2
    """What similarities are divided by."""
    momentum: Share = 0.999
    """Teacher momentum, constant."""

    def __post_init__(self) -> None:
        if self.levels not in (PYRAMID, ("c4",)):
            raise ValueError(f"levels: p2, p3, p4, p5 or c4 alone, got {', '.join(self.levels)}")
        if len(self.augmented) != len(self.levels):
            raise ValueError(f"augmented: one switch for each of {', '.join(self.levels)}")
        if self.pool_size < 1:
            raise ValueError("pool_size starts at 1")

    def draws(self) -> Mapping[str, tuple[int, ...]]:
        return {"shuffle": ()} | ({"anchors": (ANCHORS + 1,)} if any(self.augmented) else {})

    def conflicts(self, views: tuple[ViewSpec, ...], encoder: EncoderConfig) -> Iterator[str]:
        yield from MethodConfig.conflicts(self, views, encoder)  # super() is blind to slots
        if self.levels == PYRAMID and not encoder.fpn:
            yield "method.levels: p2 to p5 need encoder.fpn: true"
        if self.levels == ("c4",) and not encoder.c4:
            yield "method.levels: c4 is read through the last stage, which needs encoder.c4: true"

    def build(self, encoder: Encoder) -> InsLoc:
        return InsLoc(self, encoder)


class InsLoc(Method):
    sync_norm = False  # queries keep to their own rank, keys are shuffled
    grid: Float[Tensor, "A 4"]
    near: Int[Tensor, "A W"]

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.student = Branch(encoder, {"box": tap(config, encoder)})
        self.teacher = Teacher(self.student)
        queues = {level: Queue(config.queue, config.width) for level in config.levels}
        self.queues = nn.ModuleDict(queues)
        self.register_buffer("grid", anchor_grid(), persistent=False)
        self.register_buffer("near", near_pairs(), persistent=False)

    def losses(self, batch: Batch) -> dict[str, Scalar]:
        one, two = batch.views
        query = self.student(one, self._query_boxes(batch))["box"]  # (B*L, D), level by level of each image
        key = Shuffle(batch.draws["shuffle"])(self.teacher, two, pasted(two))["box"]
        self.watch(query, key)
        losses = compare(query, key, self.queues, temperature=self.config.temperature)
        push(key, self.queues)
        return losses

    def pairs(self, batch: Batch) -> list[Pair]:
        """Every box that a query is pooled from, with its key's."""
        query, there = self._query_boxes(batch), pasted(batch.views[1])
        at = {
            augmented: query[level]
            for level, augmented in zip(self.config.levels, self.config.augmented, strict=True)
        }
        a = torch.cat([*at.values()], dim=1)
        keep = torch.ones(a.shape[:2], dtype=torch.bool, device=a.device)
        return [Pair(0, 1, Regions(a, there.expand_as(a), keep.flatten()))]

    def after_step(self, step: int, total: int, *, ok: Scalar | None = None) -> None:
        # The official code moves the teacher as the next forward opens, which is the same.
        self.ema_momentum = self.config.momentum
        self.teacher.follow(self.student, self.ema_momentum, ok=ok)

    def begin(self) -> None:
        self.teacher.copy(self.student)

    def _query_boxes(self, batch: Batch) -> dict[str, Boxes]:
        """View 1's boxes, level by level."""
        view, c = batch.views[0], self.config
        true = moved = pasted(view)
        if any(c.augmented):
            grid = self.grid.to(true.dtype) * view.width
            moved = nearby(true, grid, batch.draws["anchors"], pairs=self.near if c.apart else None)
        return {
            level: moved if augmented else true
            for level, augmented in zip(c.levels, c.augmented, strict=True)
        }


def pasted(view: View) -> Boxes:
    """Where each image lies in `view`, in its pixels: all of it, where nothing was pasted."""
    if view.objects is None:
        return view.whole().expand(len(view.image), 1, 4)
    return view.place(view.objects)


def compare(
    query: Embeddings, key: Embeddings, queues: nn.ModuleDict, *, temperature: float
) -> dict[str, Scalar]:
    """The loss of each level against its own queue. Rows run image by image, level by level."""
    rows = zip(queues.items(), _by_level(query, queues), _by_level(key, queues), strict=True)
    return {
        level: info_nce(q, k, queue.get_buffer("keys"), temperature=temperature)
        for (level, queue), q, k in rows
    }


def push(key: Embeddings, queues: nn.ModuleDict) -> None:
    """Each level's keys into its own queue; all queues stand at the same place."""
    for queue, keys in zip(queues.values(), _by_level(key, queues), strict=True):
        assert isinstance(queue, Queue)
        queue.push(keys)


def _by_level(rows: Embeddings, queues: nn.ModuleDict) -> list[Float[Tensor, "B D"]]:
    return [*rows.unflatten(0, (-1, len(queues))).unbind(1)]


def tap(config: Config, encoder: Encoder) -> Tap:
    """Every box on every level, through the detector's box head, and a projector that stays behind."""
    require_levels(encoder, config.levels)
    pool = EveryLevel(config.levels, config.pool_size, aligned=True)
    if config.levels == ("c4",):
        last = Res5Head(encoder)
        return Tap(pool, moco_projector(last.width, config.hidden, config.width), box_head=last)
    head = box_head(encoder.channels[config.levels[0]], size=config.pool_size)
    project = moco_projector(BOX_HEAD_WIDTH, config.hidden, config.width)
    _as_published([*head.modules(), *project.modules()])
    return Tap(pool, project, box_head=head)


@torch.no_grad()
def _as_published(parts: Iterable[nn.Module]) -> None:
    """Initial weights of all linear layers as in the official code; the convolutions have theirs from torch."""
    linear = [m for m in parts if isinstance(m, nn.Linear)]
    for layer in linear:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.normal_(linear[-1].weight, std=0.01)
