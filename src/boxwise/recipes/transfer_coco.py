"""Published protocols of R-CNNs on COCO: train2017 to train on, val2017 to measure on.

Unless told: 8 GPUs, batch 16, every norm trained and over all devices, and res5 of a C4 detector ends in one more
norm. Results in docstrings are the papers', never ours; box AP unless told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from boxwise.config import TransferData
from boxwise.recipes.recipe import TransferRecipe
from boxwise.recipes.transfer_schedules import C4, COCO_SIDES, FPN, ONE_X, TWELVE_K, TWO_X, protocol
from boxwise.transfer.detectors.c4 import MaskRCNNC4
from boxwise.transfer.detectors.keypoint_rcnn import KeypointRCNNFPN
from boxwise.transfer.detectors.mask_rcnn import MaskRCNNFPN
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN

FOUR_X = (360_000, 240_000, 320_000)
"""SoCo's file was never released: its rule, falls at 2/3 and 8/9."""
SOCO_DECAY = 2.5e-5
DETCO_C4: dict[str, Any] = {"train_max_size": 1200}
SOCO_HEAD: dict[str, Any] = {"head": "4conv1fc", "mask_norm": "bn"}
INSLOC_HEAD: dict[str, Any] = {**SOCO_HEAD, "head_extra_norm": True}
SCRL_HEAD: dict[str, Any] = {"head": "2fc", "mask_norm": "bn"}
MOCO_HEAD: dict[str, Any] = {"head": "2fc", "mask_norm": "none"}


def _c4(name: str, steps: tuple[int, ...], weight_decay: float = 1e-4, **changes: Any) -> TransferRecipe:
    detector = MaskRCNNC4(train_sizes=COCO_SIDES, **C4, **changes)
    return protocol(name, detector, steps, weight_decay=weight_decay)


def _mask_fpn(name: str, steps: tuple[int, ...], **head: Any) -> TransferRecipe:
    return protocol(name, MaskRCNNFPN(train_sizes=COCO_SIDES, **FPN, **head), steps)


def _soco_fpn(name: str, steps: tuple[int, ...]) -> TransferRecipe:
    detector = MaskRCNNFPN(train_sizes=COCO_SIDES, **FPN, **SOCO_HEAD)
    return protocol(name, detector, steps, weight_decay=SOCO_DECAY)


def _faster_fpn(name: str, steps: tuple[int, ...]) -> TransferRecipe:
    """Without measuring statistics once more: detectron2's default, and SCRL released no file."""
    return protocol(name, FasterRCNNFPN(head="2fc", train_sizes=COCO_SIDES, **FPN), steps, precise_bn=0)


def coco_mask_rcnn_c4_1x() -> TransferRecipe:
    """Mask R-CNN C4, COCO 1x (90k): MoCo's protocol, which InsLoc measures by. Published: InsLoc 39.8 (Table 4a)."""
    return _c4("coco_mask_rcnn_c4_1x", ONE_X)


def coco_mask_rcnn_c4_2x() -> TransferRecipe:
    """Mask R-CNN C4, COCO 2x (180k): MoCo's protocol, which InsLoc measures by. Published: InsLoc 41.8 (Table 2a)."""
    return _c4("coco_mask_rcnn_c4_2x", TWO_X)


def coco_mask_rcnn_c4_12k() -> TransferRecipe:
    """Mask R-CNN C4, COCO 12k steps: DetCo's, longer sides of at most 1200 in training.

    Published: DetCo+AA 29.8 (Table 3).
    """
    return _c4("coco_mask_rcnn_c4_12k", TWELVE_K, **DETCO_C4)


def coco_mask_rcnn_c4_1x_detco() -> TransferRecipe:
    """Mask R-CNN C4, COCO 1x: DetCo's, longer sides of at most 1200 in training.

    Published: DetCo+AA 39.8 (Table 4).
    """
    return _c4("coco_mask_rcnn_c4_1x_detco", ONE_X, **DETCO_C4)


def coco_mask_rcnn_c4_2x_detco() -> TransferRecipe:
    """Mask R-CNN C4, COCO 2x: DetCo's, longer sides of at most 1200 in training.

    Published: 41.4 (Table 13).
    """
    return _c4("coco_mask_rcnn_c4_2x_detco", TWO_X, **DETCO_C4)


def coco_mask_rcnn_c4_1x_soco() -> TransferRecipe:
    """Mask R-CNN C4, COCO 1x: SoCo's, weight decay 2.5e-5. Published: 40.9 (Table 2)."""
    return _c4("coco_mask_rcnn_c4_1x_soco", ONE_X, SOCO_DECAY)


def coco_mask_rcnn_c4_2x_soco() -> TransferRecipe:
    """Mask R-CNN C4, COCO 2x: SoCo's, weight decay 2.5e-5. Published: 42.0 (Table 2)."""
    return _c4("coco_mask_rcnn_c4_2x_soco", TWO_X, SOCO_DECAY)


def coco_mask_rcnn_fpn_1x() -> TransferRecipe:
    """Mask R-CNN FPN with 2fc, COCO 1x (90k): MoCo's protocol, which DetCo and ReSim measure by.

    Norms in backbone and FPN alone. ReSim's released files freeze the stem and res2 against the paper's words;
    nothing is frozen here. Published: DetCo+AA 40.1 (Table 4), ReSim-FPN^T 39.8 (Table 5).
    """
    return _mask_fpn("coco_mask_rcnn_fpn_1x", ONE_X, **MOCO_HEAD)


def coco_mask_rcnn_fpn_2x() -> TransferRecipe:
    """Mask R-CNN FPN with 2fc, COCO 2x (180k): as 1x. Published: DetCo 41.5 (Table 13), ReSim-FPN 41.4 (Table 5)."""
    return _mask_fpn("coco_mask_rcnn_fpn_2x", TWO_X, **MOCO_HEAD)


def coco_mask_rcnn_fpn_12k() -> TransferRecipe:
    """Mask R-CNN FPN with 2fc, COCO 12k steps: DetCo's. Published: DetCo+AA 29.6 (Table 3)."""
    return _mask_fpn("coco_mask_rcnn_fpn_12k", TWELVE_K, **MOCO_HEAD)


def coco_mask_rcnn_fpn_1x_insloc() -> TransferRecipe:
    """Mask R-CNN FPN with 4conv1fc, COCO 1x: InsLoc's, a norm behind the linear layer as well.

    The weights hold none for that norm: it starts as the identity. Published: 42.0 (Table 4c).
    """
    return _mask_fpn("coco_mask_rcnn_fpn_1x_insloc", ONE_X, **INSLOC_HEAD)


def coco_mask_rcnn_fpn_2x_insloc() -> TransferRecipe:
    """Mask R-CNN FPN with 4conv1fc, COCO 2x: InsLoc's, a norm behind the linear layer. Published: 43.3 (Table 2b)."""
    return _mask_fpn("coco_mask_rcnn_fpn_2x_insloc", TWO_X, **INSLOC_HEAD)


def coco_mask_rcnn_fpn_1x_soco() -> TransferRecipe:
    """Mask R-CNN FPN with 4conv1fc, COCO 1x: SoCo's, 8 V100, weight decay 2.5e-5. Published: SoCo* 43.2 (Table 1)."""
    return _soco_fpn("coco_mask_rcnn_fpn_1x_soco", ONE_X)


def coco_mask_rcnn_fpn_2x_soco() -> TransferRecipe:
    """Mask R-CNN FPN with 4conv1fc, COCO 2x: SoCo's, weight decay 2.5e-5. Published: SoCo* 44.3 (Table 1)."""
    return _soco_fpn("coco_mask_rcnn_fpn_2x_soco", TWO_X)


def coco_mask_rcnn_fpn_4x() -> TransferRecipe:
    """Mask R-CNN FPN with 4conv1fc, COCO 4x (360k): SoCo's, weight decay 2.5e-5. Published: SoCo* 44.5 (Table 10).

    No other paper has a 4x, and its file was not released: the falls are by the paper's rule.
    """
    return _soco_fpn("coco_mask_rcnn_fpn_4x", FOUR_X)


def coco_mask_rcnn_fpn_1x_scrl() -> TransferRecipe:
    """Mask R-CNN FPN with 2fc, COCO 1x: SCRL's, 8 V100, norms in the mask head as well. Published: 41.3 (Table 4).

    detectron2's defaults with norms wherever there may be some; no file was released.
    """
    return replace(
        _mask_fpn("coco_mask_rcnn_fpn_1x_scrl", ONE_X, **SCRL_HEAD),
        measure=coco_faster_rcnn_fpn_1x().measure,
    )


def coco_faster_rcnn_fpn_45k() -> TransferRecipe:
    """Faster R-CNN FPN with 2fc, COCO 0.5x (45k): SCRL's, falls at 2/3 and 8/9. Published: 38.3 (Table 9)."""
    return _faster_fpn("coco_faster_rcnn_fpn_45k", (45_000, 30_000, 40_000))


def coco_faster_rcnn_fpn_1x() -> TransferRecipe:
    """Faster R-CNN FPN with 2fc, COCO 1x (90k): SCRL's, 8 V100, detectron2's defaults. Published: 40.9 (Table 2).

    With --backbone resnet101 SCRL's Table 3. Statistics are not measured once more, as by default in detectron2; no
    file was released.
    """
    return _faster_fpn("coco_faster_rcnn_fpn_1x", ONE_X)


def coco_faster_rcnn_fpn_3x() -> TransferRecipe:
    """Faster R-CNN FPN with 2fc, COCO 3x (270k): SCRL's, with detectron2's falls. Published: 42.3 (Table 9)."""
    return _faster_fpn("coco_faster_rcnn_fpn_3x", (270_000, 210_000, 250_000))


def coco_faster_rcnn_fpn_5x() -> TransferRecipe:
    """Faster R-CNN FPN with 2fc, COCO 5x (450k): SCRL's; the falls are not stated: 60k and 20k before the end.

    Published: 42.5 (Table 9).
    """
    return _faster_fpn("coco_faster_rcnn_fpn_5x", (450_000, 390_000, 430_000))


def coco_faster_rcnn_fpn_7x() -> TransferRecipe:
    """Faster R-CNN FPN with 2fc, COCO 7x (630k): SCRL's; the falls are not stated: 60k and 20k before the end.

    Published: 42.6 (Table 9).
    """
    return _faster_fpn("coco_faster_rcnn_fpn_7x", (630_000, 570_000, 610_000))


def coco_keypoint_rcnn_fpn_1x() -> TransferRecipe:
    """Keypoint R-CNN FPN with 2fc, COCO keypoints, 1x (90k): SCRL's, 8 V100. Published: keypoint AP 66.5 (Table 5).

    The paper names detectron2's defaults and prints no length: 1x is the first of its two files.
    """
    return replace(_keypoints("coco_keypoint_rcnn_fpn_1x", ONE_X), measure=coco_faster_rcnn_fpn_1x().measure)


def coco_keypoint_rcnn_fpn_2x() -> TransferRecipe:
    """Keypoint R-CNN FPN with 2fc, COCO keypoints, 2x (180k): MoCo's protocol, as DetCo's.

    Published: keypoint AP 67.2 (Table 5).
    """
    return _keypoints("coco_keypoint_rcnn_fpn_2x", TWO_X)


def _keypoints(name: str, steps: tuple[int, ...]) -> TransferRecipe:
    """More proposals than other detectors on a pyramid, and a box loss that is round near 0."""
    special = {"head": "2fc", "rpn_post_nms_train": 1500, "box_beta": 0.5}
    detector = KeypointRCNNFPN(train_sizes=COCO_SIDES, **(FPN | special))
    return protocol(name, detector, steps, data=TransferData(drop_empty=True, min_keypoints=1))


COCO: tuple[Callable[[], TransferRecipe], ...] = (
    coco_mask_rcnn_c4_1x,
    coco_mask_rcnn_c4_2x,
    coco_mask_rcnn_c4_12k,
    coco_mask_rcnn_c4_1x_detco,
    coco_mask_rcnn_c4_2x_detco,
    coco_mask_rcnn_c4_1x_soco,
    coco_mask_rcnn_c4_2x_soco,
    coco_mask_rcnn_fpn_1x,
    coco_mask_rcnn_fpn_2x,
    coco_mask_rcnn_fpn_12k,
    coco_mask_rcnn_fpn_1x_insloc,
    coco_mask_rcnn_fpn_2x_insloc,
    coco_mask_rcnn_fpn_1x_soco,
    coco_mask_rcnn_fpn_2x_soco,
    coco_mask_rcnn_fpn_4x,
    coco_mask_rcnn_fpn_1x_scrl,
    coco_faster_rcnn_fpn_45k,
    coco_faster_rcnn_fpn_1x,
    coco_faster_rcnn_fpn_3x,
    coco_faster_rcnn_fpn_5x,
    coco_faster_rcnn_fpn_7x,
    coco_keypoint_rcnn_fpn_1x,
    coco_keypoint_rcnn_fpn_2x,
)
