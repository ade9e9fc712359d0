"""Published protocols on a share of COCO's labels: the same detectors and rates, fewer images.

Which images the papers drew was never released. Here `data.labels` draws them by `run.seed`: a smaller share lies
within every larger one of the same seed. Results in docstrings are the papers', never ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from boxwise.recipes.recipe import TransferRecipe
from boxwise.recipes.transfer_coco import (
    coco_faster_rcnn_fpn_1x,
    coco_mask_rcnn_c4_1x,
    coco_mask_rcnn_fpn_1x_soco,
    coco_mask_rcnn_fpn_12k,
)
from boxwise.recipes.transfer_coco_one_stage import coco_retinanet_12k


def _of(base: TransferRecipe, name: str, share: float) -> TransferRecipe:
    return replace(base, name=name, data=replace(base.data, labels=share))


def coco_mask_rcnn_fpn_12k_1pct() -> TransferRecipe:
    """Mask R-CNN FPN with 2fc, 1 % of COCO, 12k steps: DetCo's. Published: DetCo+AA 12.4 (Table 10)."""
    return _of(coco_mask_rcnn_fpn_12k(), "coco_mask_rcnn_fpn_12k_1pct", 0.01)


def coco_mask_rcnn_fpn_12k_2pct() -> TransferRecipe:
    """Mask R-CNN FPN with 2fc, 2 % of COCO, 12k steps: DetCo's. Published: DetCo+AA 16.0 (Table 10)."""
    return _of(coco_mask_rcnn_fpn_12k(), "coco_mask_rcnn_fpn_12k_2pct", 0.02)


def coco_mask_rcnn_fpn_12k_5pct() -> TransferRecipe:
    """Mask R-CNN FPN with 2fc, 5 % of COCO, 12k steps: DetCo's. Published: DetCo+AA 21.9 (Table 11)."""
    return _of(coco_mask_rcnn_fpn_12k(), "coco_mask_rcnn_fpn_12k_5pct", 0.05)


def coco_mask_rcnn_fpn_12k_10pct() -> TransferRecipe:
    """Mask R-CNN FPN with 2fc, 10 % of COCO, 12k steps: DetCo's. Published: DetCo+AA 26.0 (Table 11)."""
    return _of(coco_mask_rcnn_fpn_12k(), "coco_mask_rcnn_fpn_12k_10pct", 0.1)


def coco_retinanet_12k_1pct() -> TransferRecipe:
    """RetinaNet, 1 % of COCO, 12k steps: DetCo's. Published: DetCo+AA 9.9 (Table 12)."""
    return _of(coco_retinanet_12k(), "coco_retinanet_12k_1pct", 0.01)


def coco_retinanet_12k_2pct() -> TransferRecipe:
    """RetinaNet, 2 % of COCO, 12k steps: DetCo's. Published: DetCo+AA 13.5 (Table 12)."""
    return _of(coco_retinanet_12k(), "coco_retinanet_12k_2pct", 0.02)


def coco_retinanet_12k_5pct() -> TransferRecipe:
    """RetinaNet, 5 % of COCO, 12k steps: DetCo's. Published: DetCo+AA 18.7 (Table 12)."""
    return _of(coco_retinanet_12k(), "coco_retinanet_12k_5pct", 0.05)


def coco_retinanet_12k_10pct() -> TransferRecipe:
    """RetinaNet, 10 % of COCO, 12k steps: DetCo's. Published: DetCo+AA 21.9 (Table 12)."""
    return _of(coco_retinanet_12k(), "coco_retinanet_12k_10pct", 0.1)


def coco_mask_rcnn_fpn_1x_soco_5pct() -> TransferRecipe:
    """Mask R-CNN FPN with 4conv1fc, 5 % of COCO: SoCo's Mini COCO at "1x". Published: SoCo* 26.8 (Table 8).

    Read as 90k steps; whether 12 passes over the share were meant cannot be told.
    """
    return _of(coco_mask_rcnn_fpn_1x_soco(), "coco_mask_rcnn_fpn_1x_soco_5pct", 0.05)


def coco_mask_rcnn_fpn_1x_soco_10pct() -> TransferRecipe:
    """Mask R-CNN FPN with 4conv1fc, 10 % of COCO: SoCo's Mini COCO at "1x". Published: SoCo* 31.1 (Table 8).

    Read as 90k steps; whether 12 passes over the share were meant cannot be told.
    """
    return _of(coco_mask_rcnn_fpn_1x_soco(), "coco_mask_rcnn_fpn_1x_soco_10pct", 0.1)


def coco_mask_rcnn_c4_12ep_10pct() -> TransferRecipe:
    """Mask R-CNN C4, 10 % of COCO, 12 epochs: InsLoc's Mini COCO, all else as 1x. Published: 26.0 (Table 5)."""
    base = coco_mask_rcnn_c4_1x()
    shorter = replace(base, schedule=replace(base.schedule, steps=None, epochs=12.0))
    return _of(shorter, "coco_mask_rcnn_c4_12ep_10pct", 0.1)


def coco_faster_rcnn_fpn_1x_10pct() -> TransferRecipe:
    """Faster R-CNN FPN with 2fc, 10 % of COCO, 1x (90k): SCRL's, nothing else changed. Published: 26.4 (Table 8)."""
    return _of(coco_faster_rcnn_fpn_1x(), "coco_faster_rcnn_fpn_1x_10pct", 0.1)


FEW_LABELS: tuple[Callable[[], TransferRecipe], ...] = (
    coco_mask_rcnn_fpn_12k_1pct,
    coco_mask_rcnn_fpn_12k_2pct,
    coco_mask_rcnn_fpn_12k_5pct,
    coco_mask_rcnn_fpn_12k_10pct,
    coco_retinanet_12k_1pct,
    coco_retinanet_12k_2pct,
    coco_retinanet_12k_5pct,
    coco_retinanet_12k_10pct,
    coco_mask_rcnn_fpn_1x_soco_5pct,
    coco_mask_rcnn_fpn_1x_soco_10pct,
    coco_mask_rcnn_c4_12ep_10pct,
    coco_faster_rcnn_fpn_1x_10pct,
)
