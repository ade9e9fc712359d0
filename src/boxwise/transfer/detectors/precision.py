"""torchvision's detector parts whose boxes stay exact under autocast."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead


class Anchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors never below float32: torchvision gives them the maps' precision, and in bfloat16 those beyond
    256 px land up to a pixel off."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        return super().forward(image_list, [_exact_like(m) for m in feature_maps])


class ProposalHead(RPNHead):  # type: ignore[misc]
    """Outputs never below float32, since decoded boxes take on the precision of their deltas."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [_exact(t) for t in logits], [_exact(t) for t in deltas]


class BoxPredictor(FastRCNNPredictor):  # type: ignore[misc]
    """Outputs never below float32, since decoded boxes take on the precision of their deltas."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return _exact(scores), _exact(deltas)


def _exact(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _exact_like(t: Tensor) -> Tensor:
    """Size, device and least precision of `t` without its memory."""
    return t.new_zeros((), dtype=torch.promote_types(t.dtype, torch.float32)).expand(t.shape)
