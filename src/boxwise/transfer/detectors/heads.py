"""What is read in each box: the networks between pooled features and predictors, under torchvision's names."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads

from boxwise.nn.heads import BOX_HEAD_WIDTH
from boxwise.nn.heads import box_head as conv_head

BoxHead = Literal["4conv1fc", "2fc"]


def box_head(kind: BoxHead, channels: int, *, size: int, extra_norm: bool) -> nn.Module:
    """Crops (M, C, size, size) to rows (M, 1024).

    `extra_norm` puts InsLoc's BatchNorm behind the last ReLU of 4conv1fc; no pretraining holds it.
    """
    if kind == "2fc":
        assert not extra_norm, "2fc has no place for it"
        return TwoMLPHead(channels * size**2, BOX_HEAD_WIDTH)
    head = conv_head(channels, size=size)
    return head.append(nn.BatchNorm1d(BOX_HEAD_WIDTH)) if extra_norm else head  # type: ignore[operator]


def pretrained_head(head: nn.Module) -> dict[str, nn.Module]:
    """What of a box head pretraining can give: 4conv1fc without the norm behind it, and nothing of 2fc, which no
    method trains."""
    if not isinstance(head, FastRCNNConvFCHead):
        return {}
    layers = [*head]
    bare = nn.Sequential(*layers[:-1]) if isinstance(layers[-1], nn.modules.batchnorm._BatchNorm) else head
    return {"head": bare}


def mask_head(channels: int, *, norm: Literal["bn", "none"]) -> nn.Module:
    """Four convolutions that keep (M, C, s, s)."""
    return MaskRCNNHeads(channels, [channels] * 4, 1, norm_layer=nn.BatchNorm2d if norm == "bn" else None)


def keypoint_head(channels: int, width: int) -> nn.Module:
    """Eight convolutions from (M, C, s, s) to (M, width, s, s)."""
    return KeypointRCNNHeads(channels, [width] * 8)
