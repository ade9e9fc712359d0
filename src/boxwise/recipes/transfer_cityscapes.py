"""Published protocols on Cityscapes: the finely labelled train split to train on, val to measure on.

Results in docstrings are the papers', never ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from boxwise.recipes.recipe import TransferRecipe
from boxwise.recipes.transfer_schedules import CITYSCAPES_SIDES, FPN, protocol
from boxwise.transfer.detectors.fcn16s import FCN16s
from boxwise.transfer.detectors.mask_rcnn import MaskRCNNFPN


def _instances(name: str, *, mask_norm: Literal["bn", "none"], precise_bn: int) -> TransferRecipe:
    """Steps are detectron2's; its file starts from a detector trained on COCO, the papers from their weights."""
    detector = MaskRCNNFPN(
        head="2fc", mask_norm=mask_norm, train_sizes=CITYSCAPES_SIDES, min_size=1024, max_size=2048, **FPN
    )
    return protocol(name, detector, (24_000, 18_000), lr=0.01, batch=8, precise_bn=precise_bn)


def cityscapes_mask_rcnn_24k() -> TransferRecipe:
    """Mask R-CNN FPN with 2fc, Cityscapes instances, 24k steps: MoCo's protocol, as DetCo's and ReSim's.

    8 GPUs, batch 8, norms in backbone and FPN, over all devices. Published mask AP: DetCo 34.7 (Table 7), ReSim-FPN
    35.6 (Table 6).
    """
    return _instances("cityscapes_mask_rcnn_24k", mask_norm="none", precise_bn=200)


def cityscapes_mask_rcnn_24k_scrl() -> TransferRecipe:
    """Mask R-CNN FPN with 2fc, Cityscapes instances, 24k steps: SCRL's, norms in the mask head as well.

    8 V100, batch 8, detectron2's defaults; no file was released. Published: mask AP 34.7 (Table 5).
    """
    return _instances("cityscapes_mask_rcnn_24k_scrl", mask_norm="bn", precise_bn=0)


def cityscapes_fcn16s() -> TransferRecipe:
    """FCN-16s, Cityscapes classes of pixels, 90k steps: MoCo's protocol, which DetCo names. Batch 16, lr .01.

    Falls at 70 and 90 % of the steps, scales .5 to 2, cuts of 769 pixels, measured at the pictures' own size: by
    the appendix of He et al., "Momentum Contrast", 2020. Nothing was released; a warm-up is not mentioned, and
    there is none. Published: mIoU 76.5 (Table 7).
    """
    base = protocol(
        "cityscapes_fcn16s",
        FCN16s(norm="sync", scales=(0.5, 2.0), crop=769),
        (90_000, 63_000, 81_000),
        lr=0.01,
        warmup=0,
        precise_bn=0,
    )
    return replace(base, data=replace(base.data, drop_empty=False))


CITYSCAPES: tuple[Callable[[], TransferRecipe], ...] = (
    cityscapes_mask_rcnn_24k,
    cityscapes_mask_rcnn_24k_scrl,
    cityscapes_fcn16s,
)
