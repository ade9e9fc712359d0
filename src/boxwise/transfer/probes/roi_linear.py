"""The category of each labelled box, by one linear layer on a frozen map: SCRL's RoI linear evaluation (4.2.5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from boxwise.config import Count, LabelledData, settings
from boxwise.data.cut import Crop
from boxwise.data.splits import labelled_splits
from boxwise.data.targets import choose
from boxwise.nn.encoder import Encoder
from boxwise.nn.pools import Align
from boxwise.shapes import Image
from boxwise.transfer.probes.base import Place, ProbeConfig, Reader, Sides
from boxwise.transfer.probes.looks import AskedBoxes, LabelledBoxes, Still


@settings
class RoILinear(ProbeConfig):
    """The category of each labelled box, from what RoIAlign reads of one map at the box."""

    name: Literal["roi_linear"] = "roi_linear"
    crop: Crop = Crop(size=800, whole=True)
    """How pictures are cut in training: whole, squeezed to a square."""
    still: Still = Still(size=800, resize=None)
    level: Literal["c2", "c3", "c4", "c5"] = "c5"
    """The map that is read."""
    bins: Count = 1
    """Bins a side of what is read of a box; the layer sees all of them."""
    aligned: bool = False
    """The centre of the first cell lies at half a cell, else at 0, as in SCRL's pretraining."""

    def open(self, place: Place, settings: LabelledData, *, seed: int) -> Sides:
        """Labelled images of any layout; of a json, `val` names the other to measure on."""
        train, test = labelled_splits(
            place.data, images=place.images, val=place.val, max_value=settings.max_value
        )
        chosen = LabelledBoxes(choose(train, settings.labels, seed=seed)).filled()
        asked = LabelledBoxes(test).filled()
        for side in (chosen, asked):
            if not len(side):
                raise ValueError(f"{side.labelled.table.file}: none of its images has a box to ask about")
        return chosen, asked

    def reader(self) -> Reader:
        return LabelledRegions(self.encoder(), self.level, Align(self.bins, self.aligned))

    def problems(self) -> Iterator[str]:
        yield from ProbeConfig.problems(self)
        if not self.crop.whole:
            yield "probe.crop.whole: boxes may lie outside of a part; set it to true"
        if self.still.resize is not None and not self.still.squeeze:
            yield "probe.still.squeeze: boxes may lie outside of the middle; set it, or probe.still.resize to null"


class LabelledRegions(Reader):
    """What RoIAlign reads of one map at the boxes asked about."""

    def __init__(self, encoder: Encoder, level: str, align: Align) -> None:
        super().__init__()
        self.encoder, self.level, self.align = encoder, level, align
        self.width = encoder.channels[level] * align.size**2

    def forward(self, images: Image, boxes: AskedBoxes) -> Float[Tensor, "M D"]:
        view = images.shape[-1], images.shape[-2]
        return self.align(self.encoder(images)[self.level], boxes, view).flatten(1)

    def backbone(self) -> nn.Module:
        return self.encoder.body
