"""ReSim's windows as settings: which are compared on which levels, how they are read, and what they ask of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from boxwise.config import settings
from boxwise.data.cut import ViewSpec
from boxwise.geometry.regions import Regions
from boxwise.geometry.views import View
from boxwise.geometry.windows import windows
from boxwise.nn.backbones import LEVELS
from boxwise.nn.cells import KERNEL
from boxwise.nn.encoder import EncoderConfig
from boxwise.nn.pools import Pool, RegionPool
from boxwise.nn.precise import PrecisePool

Pixels = Annotated[int, Field(gt=0)]
PoolKind = Literal["precise", "align"]


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

    def between(self, a: View, b: View) -> Regions:
        """The windows of the grid on `a`, and where `b` shows the same."""
        return windows(a, b, window=self.size, stride=self.stride)


C4 = (Windows(level="c4"),)
"""Of ReSim-C4."""
FPN = (Windows(level="p4"), Windows(level="p3", size=32, stride=24, negatives="group"))
"""Of ReSim-FPN: p3 has too many cells to be sent to all ranks."""


def window_pool(kind: PoolKind, level: str) -> Pool:
    """What reads one level's windows: one row each."""
    return PrecisePool(level) if kind == "precise" else RegionPool(level, 1, aligned=False)


def resized(levels: Sequence[Windows], share: float) -> dict[str, Any]:
    """Windows as large a part of a view of another size."""
    sizes = [(max(1, round(w.size * share)), max(1, round(w.stride * share))) for w in levels]
    return {"windows": {str(i): {"size": size, "stride": stride} for i, (size, stride) in enumerate(sizes)}}


def unfit(levels: Sequence[Windows], views: tuple[ViewSpec, ...], encoder: EncoderConfig) -> Iterator[str]:
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
