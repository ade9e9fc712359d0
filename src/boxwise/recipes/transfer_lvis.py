"""Published protocols on LVIS v1: 1203 categories, rare ones read more often, 300 detections an image.

8 GPUs, batch 16, lr .02, every norm trained and over all devices. Results in docstrings are the papers', never ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from boxwise.config import TransferData
from boxwise.recipes.recipe import TransferRecipe
from boxwise.recipes.transfer_schedules import COCO_SIDES, FPN, ONE_X, TWO_X, protocol
from boxwise.transfer.detectors.mask_rcnn import MaskRCNNFPN

MANY: dict[str, Any] = {"score_threshold": 1e-4, "detections_per_image": 300}
DATA = TransferData(drop_empty=True, repeat_threshold=0.001)


def _soco(name: str, steps: tuple[int, ...]) -> TransferRecipe:
    detector = MaskRCNNFPN(head="4conv1fc", mask_norm="bn", train_sizes=COCO_SIDES, **FPN, **MANY)
    return protocol(name, detector, steps, weight_decay=2.5e-5, data=DATA)


def lvis_mask_rcnn_1x() -> TransferRecipe:
    """Mask R-CNN FPN with 4conv1fc, LVIS v1, 90k steps: SoCo's "1x", weight decay 2.5e-5.

    detectron2 calls 180k steps 1x; SoCo's own file halves them. Published: SoCo* 26.3 (Table 6).
    """
    return _soco("lvis_mask_rcnn_1x", ONE_X)


def lvis_mask_rcnn_2x_soco() -> TransferRecipe:
    """Mask R-CNN FPN with 4conv1fc, LVIS v1, 180k steps: SoCo's "2x". Published: SoCo* 28.3 (Table 6)."""
    return _soco("lvis_mask_rcnn_2x_soco", TWO_X)


def lvis_mask_rcnn_2x() -> TransferRecipe:
    """Mask R-CNN FPN with 2fc, LVIS v1, 180k steps: MoCo's protocol, as DetCo's. Published: 23.5 (Table 14)."""
    detector = MaskRCNNFPN(head="2fc", mask_norm="none", train_sizes=COCO_SIDES, **FPN, **MANY)
    return protocol("lvis_mask_rcnn_2x", detector, TWO_X, data=DATA)


LVIS: tuple[Callable[[], TransferRecipe], ...] = (
    lvis_mask_rcnn_1x,
    lvis_mask_rcnn_2x_soco,
    lvis_mask_rcnn_2x,
)
