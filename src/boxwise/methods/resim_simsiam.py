"""ReSim on SimSiam (ICCV 2021, https://arxiv.org/abs/2103.12902): the paper's second base, which has no negatives.

SimSiam on whole images, and beside it on windows, which are rows of a projector and predictor of their level's own. In
unit vectors, for each level that is compared:

    for windows a of view 1 that view 2 shows whole, b the same place in view 2:
        loss += (-p(a) @ z(b) - p(b) @ z(a)) / 2
    loss /= number of such windows

with p = predictor(z), and z without gradient where it is compared with. The means are over the windows of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Literal

from torch import Tensor, nn

from boxwise.config import Count, settings
from boxwise.data.cut import ViewSpec
from boxwise.geometry.regions import Regions
from boxwise.geometry.views import Batch, View
from boxwise.methods.base import Method, MethodConfig, Pair, require_levels
from boxwise.methods.resim_windows import C4, PoolKind, Windows, resized, unfit, window_pool
from boxwise.nn.branch import Branch, Tap
from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.nn.heads import simsiam_predictor, simsiam_projector
from boxwise.nn.objectives import negative_cosine
from boxwise.nn.pools import BoxesAt, Whole
from boxwise.nn.ranks import row_weight
from boxwise.nn.row_norm import only_kept
from boxwise.shapes import Scalar


@settings
class Config(MethodConfig):
    """ReSim on SimSiam, C4."""

    name: Literal["resim_simsiam"] = "resim_simsiam"
    windows: tuple[Windows, ...] = C4
    """One entry a level; without negatives, theirs is not read."""
    pool: PoolKind = "precise"
    """The exact mean of a window, or RoIAlign in the same frame (pixel j at coordinate j)."""
    width: Count = 2048
    """Numbers in an image's embedding. A window's has as many as its level has channels."""
    hidden: Count = 512
    """Hidden width of the image's predictor; a level's has a quarter of its channels."""

    def conflicts(self, views: tuple[ViewSpec, ...], encoder: EncoderConfig) -> Iterator[str]:
        yield from MethodConfig.conflicts(self, views, encoder)
        yield from unfit(self.windows, views, encoder)

    def resized(self, share: float) -> Mapping[str, Any]:
        return resized(self.windows, share)

    def build(self, encoder: Encoder) -> ReSimSiam:
        return ReSimSiam(self, encoder)


class ReSimSiam(Method):
    constant_lr = ("predictor",)

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        levels = [w.level for w in config.windows]
        require_levels(encoder, ["c5", *levels])
        width = config.width
        taps = {"image": Tap(Whole("c5"), simsiam_projector(encoder.channels["c5"], width, width))}
        predictors = {"image": simsiam_predictor(width, config.hidden)}
        for level in levels:
            channels = encoder.channels[level]
            taps[level] = Tap(
                window_pool(config.pool, level), simsiam_projector(channels, channels, channels)
            )
            predictors[level] = simsiam_predictor(channels, max(channels // 4, 1))
        self.student = Branch(encoder, taps)
        self.predictor = nn.ModuleDict(predictors)

    def pairs(self, batch: Batch) -> list[Pair]:
        return [Pair(0, 1, w.between(*batch.views)) for w in self.config.windows]

    def losses(self, batch: Batch) -> dict[str, Scalar]:
        one, two = batch.views
        found: dict[str, Regions] = {w.level: w.between(one, two) for w in self.config.windows}
        z1, p1 = self._embedded(one, {level: regions.a for level, regions in found.items()}, found)
        z2, p2 = self._embedded(two, {level: regions.b for level, regions in found.items()}, found)
        losses = {}
        for name in self.student.taps:
            keep = found[name].keep if name in found else None
            weight = None if keep is None else row_weight(keep)
            one_way = negative_cosine(p1[name], z2[name], weight)
            losses[name] = (one_way + negative_cosine(p2[name], z1[name], weight)) / 2
            self.watch(p1[name], z2[name], keep)
        return losses

    def _embedded(
        self, view: View, boxes: BoxesAt, found: Mapping[str, Regions]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Projections and predictions of image and windows; windows that count for nothing stay out of the norms."""
        pyramid, z, p = self.student.encoder(view.image), {}, {}
        for name, tap in self.student.taps.items():
            predictor = self.predictor[name]
            with only_kept(found[name].keep, tap, predictor) if name in found else nullcontext():
                z[name] = tap(pyramid, boxes, view.width, view.height)
                p[name] = predictor(z[name])
        return z, p
