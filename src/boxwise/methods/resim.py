"""ReSim: Region Similarity Representation Learning (ICCV 2021, https://arxiv.org/abs/2103.12902).

MoCo-v2 on whole images, and beside it, on feature maps, windows of a grid on the query view with what the key view
shows of the same content. In unit vectors, for each level that is compared:

    for windows q of the query that the key shows whole, k the same place in the key:
        loss += cross_entropy([q @ k, *(q @ n for n in cells)] / temperature, 0)
    loss /= number of such windows

where `cells` are the 3 x 3 means of the key's map, stride 1, of all images, this one's own place included. Windows
that the key does not show whole are left out. The means are over the windows of all ranks. `resim_simsiam` does the
same on SimSiam.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from boxwise.config import Above, Count, Share, settings
from boxwise.data.cut import ViewSpec
from boxwise.geometry.regions import Regions
from boxwise.geometry.views import Batch, View
from boxwise.methods.base import Method, MethodConfig, Pair, require_levels
from boxwise.methods.resim_windows import FPN, PoolKind, Windows, resized, unfit, window_pool
from boxwise.nn.branch import Branch, Tap
from boxwise.nn.cells import means, own_only, touched
from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.nn.heads import conv_projector, moco_projector
from boxwise.nn.objectives import info_nce, unit
from boxwise.nn.pools import Level, Whole
from boxwise.nn.queue import Queue
from boxwise.nn.ranks import gather, rank, row_weight
from boxwise.nn.shuffle import Shuffle, groups
from boxwise.nn.teacher import Teacher
from boxwise.shapes import Scalar

Maps = Float[Tensor, "B C _h _w"]


@settings
class Config(MethodConfig):
    """ReSim on MoCo-v2. Values are the released FPN's; the paper's C4 differs in `windows` and `region_proj`."""

    name: Literal["resim"] = "resim"
    windows: tuple[Windows, ...] = FPN
    """One entry a level."""
    pool: PoolKind = "precise"
    """The exact mean of a window, or RoIAlign in the same frame (pixel j at coordinate j)."""
    region_proj: bool = False
    """Two 3x3 convolutions between a level and its windows, as in the paper; none in the released FPN."""
    region_width: Count = 128
    """Channels after those convolutions."""
    mask_self_overlap: bool = False
    """Leave out the own image's cells that overlap the window they would be negatives of."""
    width: Count = 128
    """Numbers in an image's embedding."""
    hidden: Count = 2048
    """Hidden width of the image's projector."""
    queue: Count = 65_536
    """Keys of earlier images that serve as negatives; windows need none."""
    temperature: Above = 0.2
    """What similarities are divided by."""
    momentum: Share = 0.999
    """Teacher momentum, constant."""

    def draws(self) -> Mapping[str, tuple[int, ...]]:
        return {"shuffle": ()}

    def conflicts(self, views: tuple[ViewSpec, ...], encoder: EncoderConfig) -> Iterator[str]:
        yield from MethodConfig.conflicts(self, views, encoder)
        yield from unfit(self.windows, views, encoder)

    def resized(self, share: float) -> Mapping[str, Any]:
        return resized(self.windows, share)

    def build(self, encoder: Encoder) -> ReSim:
        return ReSim(self, encoder)


class ReSim(Method):
    sync_norm = False  # as in MoCo-v2

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        levels = [w.level for w in config.windows]
        require_levels(encoder, ["c5", *levels])
        taps = {
            "image": Tap(Whole("c5"), moco_projector(encoder.channels["c5"], config.hidden, config.width))
        }
        for level in levels:
            channels = encoder.channels[level]
            project = conv_projector(channels, config.region_width) if config.region_proj else nn.Identity()
            taps[level] = Tap(Level(level), project)
        self.student = Branch(encoder, taps)
        self.teacher = Teacher(self.student)
        self.queue = Queue(config.queue, config.width)

    def pairs(self, batch: Batch) -> list[Pair]:
        return [Pair(0, 1, w.between(*batch.views)) for w in self.config.windows]

    def losses(self, batch: Batch) -> dict[str, Scalar]:
        c, views = self.config, batch.views
        query = self.student(views[0])
        key = Shuffle(batch.draws["shuffle"])(self.teacher, views[1])  # vectors and maps, back in their order
        image = info_nce(query["image"], key["image"], self.queue.keys, temperature=c.temperature)
        self.queue.push(key["image"])
        losses = {"image": image}
        for w, pair in zip(c.windows, self.pairs(batch), strict=True):
            losses[w.level] = self._contrast(w, query[w.level], key[w.level], pair.regions, views)
        return losses

    def _contrast(
        self, w: Windows, query: Maps, key: Maps, regions: Regions, views: tuple[View, ...]
    ) -> Scalar:
        """Each window's own place in the key's map against the cells of that map, group by group."""
        pool, seen = window_pool(self.config.pool, w.level), views[1]
        here, there = (
            pool({w.level: x}, boxes, view.width, view.height).flatten(1).unflatten(0, boxes.shape[:2])
            for x, boxes, view in zip((query, key), (regions.a, regions.b), views, strict=True)
        )  # (B, R, C)
        self.watch(here.flatten(0, 1), there.flatten(0, 1), regions.keep)
        weight = row_weight(regions.keep).view(regions.a.shape[:2])
        cells = unit(means(key))
        overlap = None
        if self.config.mask_self_overlap:
            overlap = touched(regions.b, key.shape[-2:], (seen.width, seen.height))
        everyone = gather(cells) if w.negatives == "all" else cells
        total = weight.new_zeros(())
        for some in parts(len(cells), groups(len(cells)) if w.negatives == "group" else 1):
            others, first = (everyone, rank() * len(cells)) if w.negatives == "all" else (cells[some], 0)
            total = total + info_nce(
                here[some].flatten(0, 1),
                there[some].flatten(0, 1),
                others.flatten(0, 1),
                weight[some].flatten(),
                temperature=self.config.temperature,
                without=None if overlap is None else own_only(overlap[some], first, len(others)),
            )
        return total

    def after_step(self, step: int, total: int, *, ok: Scalar | None = None) -> None:
        # The official code moves the teacher as the next forward opens, which is the same.
        self.ema_momentum = self.config.momentum
        self.teacher.follow(self.student, self.ema_momentum, ok=ok)

    def begin(self) -> None:
        self.teacher.copy(self.student)


def parts(images: int, count: int) -> list[slice]:
    """A batch in `count` parts, as equal as can be."""
    edges = [images * i // count for i in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(edges)]
