"""RetinaNet and FCOS so small that they take moments."""

from __future__ import annotations

from typing import Any

import torch

from boxwise.transfer.detectors.fcos import FCOS
from boxwise.transfer.detectors.one_stage import OneStage, OneStageDetector
from boxwise.transfer.detectors.retinanet import RetinaNet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "fpn_channels": 32,
    "min_size": 64,
    "max_size": 96,
    "flip": 0.0,
}
GROUPED: dict[Any, dict[str, Any]] = {RetinaNet: {"head_norm": "gn"}, FCOS: {}}
FAMILIES = {"retinanet": RetinaNet, "fcos": FCOS}


def small(family: type[OneStage], **changes: Any) -> OneStageDetector:
    torch.manual_seed(0)
    return family(**{**SMALL, **changes}).build(classes=2, mean=MEAN, std=STD)
