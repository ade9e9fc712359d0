"""ReSim: Region Similarity Representation Learning (ICCV 2021, https://arxiv.org/abs/2103.12902).

MoCo-v2 or SimSiam on whole images, and beside it, on feature maps, windows of a grid on the query view with what
the key view shows of the same content. In unit vectors, for each level that is compared, on MoCo-v2:

    for windows q of the query that the key shows whole, k the same place in the key:
        loss += cross_entropy([q @ k, *(q @ n for n in cells)] / temperature, 0)
    loss /= number of such windows

where `cells` are the 3 x 3 means of the key's map, stride 1, of all images, this one's own place included.
On SimSiam each window is a row of a projector and predictor of its level's own, and

    loss += (-p(q) @ z(k) - p(k) @ z(q)) / 2

Windows that the key does not show whole are left out. The means are over the windows of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from boxwise.config import settings
from boxwise.data.cut import ViewSpec
from boxwise.geometry.regions import Regions
from boxwise.geometry.views import Batch, View
from boxwise.geometry.windows import windows
from boxwise.methods.base import Method, MethodConfig, Pair, require_levels
from boxwise.nn.backbones import LEVELS
from boxwise.nn.branch import Branch, Tap
from boxwise.nn.cells import KERNEL, means, own_only, touched
from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.nn.heads import conv_projector, moco_projector, simsiam_predictor, simsiam_projector
from boxwise.nn.objectives import info_nce, negative_cosine, unit
from boxwise.nn.pools import Level, Pool, RegionPool, Whole
from boxwise.nn.precise import PrecisePool
from boxwise.nn.queue import Queue
from boxwise.nn.ranks import Shuffle, gather, groups, rank, row_weight
from boxwise.nn.row_norm import only_kept
from boxwise.nn.teacher import Teacher
from boxwise.shapes import Boxes, Scalar

Pixels = Annotated[int, Field(gt=0)]
PoolKind = Literal["precise", "align"]
Maps = Float[Tensor, "B C h w"]


@settings
class Windows:
    """The windows that are compared on one level."""

    level: Literal["c3", "c4", "p3", "p4"] = "p4"
    """c: a map of the backbone; p: a map of the FPN."""
    size: Pixels = 48
    """Side of a window, in pixels of the query view."""
    stride: Pixels = 32
    """Pixels from one window to the next, along x and along y."""
    negatives: Literal["all", "rank", "group"] = "all"
    """Whose cells are negatives: those of all ranks, of the own rank, or of the own group: the own rank again, or
    on a single device one of up to 8 equal parts of its batch, as many as MoCo's published runs had ranks."""


C4 = (Windows(level="c4"),)
FPN = (Windows(level="p4"), Windows(level="p3", size=32, stride=24, negatives="group"))


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
    region_width: int = 128
    """Channels after those convolutions."""
    mask_self_overlap: bool = False
    """Leave out the own image's cells that overlap the window they would be negatives of."""
    width: int = 128
    """Numbers in an image's embedding."""
    hidden: int = 2048
    """Hidden width of the image's projector."""
    queue: int = 65_536
    """Keys of earlier images that serve as negatives; windows need none."""
    temperature: float = 0.2
    """What similarities are divided by."""
    momentum: float = 0.999
    """Teacher momentum, constant."""

    def draws(self) -> Mapping[str, tuple[int, ...]]:
        return {"shuffle": ()}

    def conflicts(self, views: tuple[ViewSpec, ...], encoder: EncoderConfig) -> Iterator[str]:
        yield from MethodConfig.conflicts(self, views, encoder)
        yield from _unfit(self.windows, views, encoder)

    def resized(self, share: float) -> Mapping[str, Any]:
        return _scaled(self.windows, share)

    def build(self, encoder: Encoder) -> ReSim:
        return ReSim(self, encoder)


@settings
class SimSiamConfig(MethodConfig):
    """ReSim on SimSiam, C4."""

    name: Literal["resim_simsiam"] = "resim_simsiam"
    windows: tuple[Windows, ...] = C4
    """One entry a level; without negatives, theirs is not read."""
    pool: PoolKind = "precise"
    """The exact mean of a window, or RoIAlign in the same frame (pixel j at coordinate j)."""
    width: int = 2048
    """Numbers in an image's embedding. A window's has as many as its level has channels."""
    hidden: int = 512
    """Hidden width of the image's predictor; a level's has a quarter of its channels."""

    def conflicts(self, views: tuple[ViewSpec, ...], encoder: EncoderConfig) -> Iterator[str]:
        yield from MethodConfig.conflicts(self, views, encoder)
        yield from _unfit(self.windows, views, encoder)

    def resized(self, share: float) -> Mapping[str, Any]:
        return _scaled(self.windows, share)

    def build(self, encoder: Encoder) -> ReSimSiam:
        return ReSimSiam(self, encoder)


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
        return _pairs(self.config.windows, batch)

    def losses(self, batch: Batch) -> dict[str, Scalar]:
        c, (one, two) = self.config, batch.views
        query = self.student(one)
        key = Shuffle(batch.draws["shuffle"])(self.teacher, two)  # vectors and maps, back in their order
        image = info_nce(query["image"], key["image"], self.queue.keys, temperature=c.temperature)
        self.queue.push(key["image"])
        losses = {"image": image}
        for w, pair in zip(c.windows, self.pairs(batch), strict=True):
            losses[w.level] = self._contrast(w, query[w.level], key[w.level], pair.regions, two)
        return losses

    def _contrast(self, w: Windows, query: Maps, key: Maps, regions: Regions, view: View) -> Scalar:
        """Each window's own place in the key's map against the cells of that map, group by group."""
        pool, size = _pool(self.config.pool, w.level), (view.width, view.height)
        here, there = (
            pool({w.level: x}, boxes, *size).flatten(1).unflatten(0, regions.a.shape[:2])
            for x, boxes in ((query, regions.a), (key, regions.b))
        )  # (B, R, C)
        self.watch(here.flatten(0, 1), there.flatten(0, 1), regions.keep)
        weight = row_weight(regions.keep).view(regions.a.shape[:2])
        cells = unit(means(key))
        overlap = touched(regions.b, key.shape[-2:], size) if self.config.mask_self_overlap else None
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


class ReSimSiam(Method):
    constant_lr = ("predictor",)

    def __init__(self, config: SimSiamConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        levels = [w.level for w in config.windows]
        require_levels(encoder, ["c5", *levels])
        width = config.width
        taps = {"image": Tap(Whole("c5"), simsiam_projector(encoder.channels["c5"], width, width))}
        predictors = {"image": simsiam_predictor(width, config.hidden)}
        for level in levels:
            channels = encoder.channels[level]
            taps[level] = Tap(_pool(config.pool, level), simsiam_projector(channels, channels, channels))
            predictors[level] = simsiam_predictor(channels, max(channels // 4, 1))
        self.student = Branch(encoder, taps)
        self.predictor = nn.ModuleDict(predictors)

    def pairs(self, batch: Batch) -> list[Pair]:
        return _pairs(self.config.windows, batch)

    def losses(self, batch: Batch) -> dict[str, Scalar]:
        found: dict[str, Regions] = {
            w.level: p.regions for w, p in zip(self.config.windows, self.pairs(batch), strict=True)
        }
        boxes: tuple[dict[str, Boxes], ...] = (
            {n: r.a for n, r in found.items()},
            {n: r.b for n, r in found.items()},
        )
        seen = [self._embedded(view, at, found) for view, at in zip(batch.views, boxes, strict=True)]
        losses = {}
        for name in self.student.taps:
            (z1, p1), (z2, p2) = (s[name] for s in seen)
            keep = found[name].keep if name in found else None
            weight = None if keep is None else row_weight(keep)
            losses[name] = (negative_cosine(p1, z2, weight) + negative_cosine(p2, z1, weight)) / 2
            self.watch(p1, z2, keep)
        return losses

    def _embedded(
        self, view: View, boxes: Mapping[str, Boxes], found: Mapping[str, Regions]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Projection and prediction, image and windows; windows that count for nothing stay out of the norms."""
        taps = self.student.taps
        pyramid = self.student.encoder(view.image)
        seen = {}
        for name in taps:
            if name not in found:
                z = taps[name](pyramid, None, view.width, view.height)
                seen[name] = z, self.predictor[name](z)
                continue
            with only_kept(found[name].keep, taps[name], self.predictor[name]):
                z = taps[name](pyramid, boxes, view.width, view.height)
                seen[name] = z, self.predictor[name](z)
        return seen


def parts(images: int, count: int) -> list[slice]:
    """A batch in `count` parts, as equal as can be."""
    edges = [images * i // count for i in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(edges)]


def _pairs(levels: Sequence[Windows], batch: Batch) -> list[Pair]:
    one, two = batch.views
    return [Pair(0, 1, windows(one, two, window=w.size, stride=w.stride)) for w in levels]


def _pool(kind: PoolKind, level: str) -> Pool:
    return PrecisePool(level) if kind == "precise" else RegionPool(level, 1, aligned=False)


def _scaled(levels: Sequence[Windows], share: float) -> dict[str, Any]:
    """Windows as large a part of a view of another size."""
    sizes = [(max(1, round(w.size * share)), max(1, round(w.stride * share))) for w in levels]
    return {"windows": {str(i): {"size": size, "stride": stride} for i, (size, stride) in enumerate(sizes)}}


def _unfit(levels: Sequence[Windows], views: tuple[ViewSpec, ...], encoder: EncoderConfig) -> Iterator[str]:
    """What keeps the windows of these levels from being compared."""
    if len({w.level for w in levels}) < max(len(levels), 1):
        yield "method.windows: name each level once, and at least one"
    read = {w.level for w in levels}
    if encoder.fpn and (idle := [level for level in encoder.fpn_levels if level not in read]):
        yield f"encoder.fpn_levels: nothing would train {', '.join(idle)}"
    side = min((view.crop.size for view in views), default=0)
    for i, w in enumerate(levels):
        if w.level.startswith("p") and not (encoder.fpn and w.level in encoder.fpn_levels):
            yield f"method.windows.{i}.level: {w.level} needs encoder.fpn: true and {w.level} among encoder.fpn_levels"
        least = max(w.size + 1, KERNEL * LEVELS[w.level.replace("p", "c")])
        if side < least:
            yield f"method.windows.{i}: a view of {side} px is too small; it needs {least}"
