"""A branch turns a view into named embeddings: one encoder, then taps that pool and project."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jaxtyping import Float
from torch import Tensor, nn

from boxwise.geometry.views import View
from boxwise.nn.encoder import Encoder
from boxwise.nn.heads import Res5Head
from boxwise.nn.pools import BoxesAt, Pool, Pyramid


class Tap(nn.Module):
    """Pools rows from the pyramid, passes them through the detector's head if there is one, and projects."""

    def __init__(self, pool: Pool, project: nn.Module, *, box_head: nn.Module | None = None) -> None:
        super().__init__()
        self.pool, self.box_head, self.project = pool, box_head, project

    def forward(
        self, pyramid: Pyramid, boxes: BoxesAt, width: int, height: int | None = None
    ) -> Float[Tensor, "_M _D ..."]:
        """One row per region the pool reads, in the pool's order; a map for each image where it reads whole levels."""
        crops = self.pool(pyramid, boxes, width, height)
        return self.project(crops if self.box_head is None else self.box_head(crops))


class Branch(nn.Module):
    """Encoder plus taps. Student and teacher are two of these with the same parts."""

    taps: nn.ModuleDict

    def __init__(self, encoder: Encoder, taps: Mapping[str, Tap]) -> None:
        super().__init__()
        if encoder.last is not None:
            raise ValueError(
                "encoder.c4: nothing would train the last stage; set encoder.c4: false, or take a method with a "
                "C4 box head, as insloc_r50_c4_200ep"
            )
        self.encoder, self.taps = encoder, nn.ModuleDict(taps)

    def forward(
        self, view: View, boxes: BoxesAt = None, *, taps: Iterable[str] | None = None
    ) -> dict[str, Float[Tensor, "_M _D ..."]]:
        """Embeds `view`, running the encoder once. `taps` limits which taps run (default: all).

        Patches of an image are rows of their own, in its order.
        """
        pyramid = self.encoder(view.image.flatten(0, -4))
        names = self.taps if taps is None else taps
        return {name: self.taps[name](pyramid, boxes, view.width, view.height) for name in names}

    def handed_over(self) -> dict[str, nn.Module]:
        """What a detector takes: `backbone`, and where it is trained the `fpn` and the first tap's `head`.

        A C4 detector's head is the backbone's last stage, and is handed over as that.
        """
        body, head = self.encoder.body, next(iter(self.taps.values())).box_head
        if isinstance(head, Res5Head):
            return {"backbone": head.backbone(body)}
        parts = {"backbone": body, "fpn": self.encoder.fpn, "head": head}
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
