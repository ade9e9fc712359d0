"""Published protocols on PASCAL VOC: trainval of 2007 and 2012 to train on, test of 2007 to measure on.

Results in docstrings are the papers', never ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from boxwise.recipes.recipe import TransferRecipe
from boxwise.recipes.transfer_schedules import C4, FPN, VOC_SIDES, protocol
from boxwise.transfer.detectors.c4 import FasterRCNNC4
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN


def voc_faster_rcnn_c4_24k() -> TransferRecipe:
    """Faster R-CNN C4, VOC07+12, 24k steps: MoCo's protocol. 8 GPUs, batch 16, every norm over all devices.

    InsLoc, SoCo, DetCo and ReSim measure by it, as means of 5 runs: repeat it with --seed 0 to 4. res5 ends in one
    more norm. AP is VOC's own at eleven recalls, over ten overlaps.

    Published: InsLoc 58.4 (Table 1), SoCo 59.7 (Table 3), DetCo 58.2 (Table 6), ReSim-FPN 59.2 (Table 4).
    """
    return protocol(
        "voc_faster_rcnn_c4_24k",
        FasterRCNNC4(train_sizes=VOC_SIDES, **C4),
        (24_000, 18_000, 22_000),
        warmup=100,
        metric="voc07",
    )


def voc_faster_rcnn_c4_24k_frozen() -> TransferRecipe:
    """The same with stem to c4 frozen, norms included: ReSim's measure of features. Needs --weights.

    RPN and res5 train, as does the norm behind res5; whether that one was there is not stated.

    Published: ReSim-C4 on 100 classes of ImageNet 50.0 (Table 3b).
    """
    base = voc_faster_rcnn_c4_24k()
    return replace(
        base, name="voc_faster_rcnn_c4_24k_frozen", detector=replace(base.detector, frozen_stages=4)
    )


def voc_faster_rcnn_fpn_18k() -> TransferRecipe:
    """Faster R-CNN FPN with 2fc, VOC07+12, 18k steps: SCRL's. 8 V100, batch 16, every norm over all devices.

    The paper names detectron2's defaults, of which the steps are (falls at 12k and 16k), and releases no file;
    whether statistics were measured once more is open, and they are not here, as by default there.

    Published: SCRL 57.2 (Table 1).
    """
    return protocol(
        "voc_faster_rcnn_fpn_18k",
        FasterRCNNFPN(head="2fc", train_sizes=VOC_SIDES, **FPN),
        (18_000, 12_000, 16_000),
        warmup=100,
        precise_bn=0,
        metric="voc07",
    )


VOC: tuple[Callable[[], TransferRecipe], ...] = (
    voc_faster_rcnn_c4_24k,
    voc_faster_rcnn_c4_24k_frozen,
    voc_faster_rcnn_fpn_18k,
)
