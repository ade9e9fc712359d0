"""torchvision's detector parts whose boxes stay exact under autocast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
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
        return [exact(t) for t in logits], [exact(t) for t in deltas]


class BoxPredictor(FastRCNNPredictor):  # type: ignore[misc]
    """Outputs never below float32, since decoded boxes take on the precision of their deltas."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return exact(scores), exact(deltas)


class MaskPredictor(MaskRCNNPredictor):  # type: ignore[misc]
    """Outputs never below float32: their sigmoid is stretched over whole boxes and cut at a half."""

    def forward(self, x: Tensor) -> Tensor:
        return exact(super().forward(x))


class KeypointPredictor(KeypointRCNNPredictor):  # type: ignore[misc]
    """Never below float32 from its input on: in bfloat16 many cells of a heatmap share the largest value, and the
    first of them would be the keypoint."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            coarse = self.kps_score_lowres(exact(x))
            fine = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        return fine.contiguous()  # torchvision's loss views each heatmap as a row


def exact(t: Tensor) -> Tensor:
    """`t` in float32, where it is of less."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _exact_like(t: Tensor) -> Tensor:
    """Size, device and least precision of `t` without its memory."""
    return t.new_zeros((), dtype=torch.promote_types(t.dtype, torch.float32)).expand(t.shape)
