"""Published protocols of detectors of one stage on COCO: train2017 to train on, val2017 to measure on.

Unless told: 8 GPUs, batch 16, lr .01. The pyramid starts at c3; what weights hold of p2 is not used. RetinaNet's loss
is divided by each image's own count of positive anchors (see its settings), where detectron2 keeps a moving average.
Results in docstrings are the papers', never ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from boxwise.config import SGD, Schedule
from boxwise.recipes.recipe import TransferRecipe
from boxwise.recipes.transfer_schedules import COCO_SIDES, ONE_X, TWELVE_K, TWO_X, protocol
from boxwise.transfer.detectors.fcos import FCOS
from boxwise.transfer.detectors.retinanet import RetinaNet

MMDETECTION_1X = Schedule(
    epochs=12.0, kind="multistep", milestones=(8 / 12, 11 / 12), warmup_steps=500, warmup_from=0.001
)
"""Passes over the images, not steps."""


def _retinanet(name: str, steps: tuple[int, ...], *, precise_bn: int = 200) -> TransferRecipe:
    detector = RetinaNet(norm="sync", train_sizes=COCO_SIDES, smooth_l1_beta=0.0)
    return protocol(name, detector, steps, lr=0.01, precise_bn=precise_bn)


def coco_retinanet_1x() -> TransferRecipe:
    """RetinaNet, COCO 1x (90k): DetCo's, norms in backbone and FPN alone, over all devices.

    Published: DetCo+AA 38.4 (Table 5).
    """
    return _retinanet("coco_retinanet_1x", ONE_X)


def coco_retinanet_2x() -> TransferRecipe:
    """RetinaNet, COCO 2x (180k): DetCo's, as 1x. Published: 39.8 (Table 5)."""
    return _retinanet("coco_retinanet_2x", TWO_X)


def coco_retinanet_12k() -> TransferRecipe:
    """RetinaNet, COCO 12k steps: DetCo's, falls at 9k and 11k. Published: DetCo+AA 25.3 (Table 5)."""
    return _retinanet("coco_retinanet_12k", TWELVE_K)


def coco_retinanet_1x_scrl() -> TransferRecipe:
    """RetinaNet, COCO 1x (90k): SCRL's, 8 V100, detectron2's defaults with norms over all devices.

    Whether its head had norms is not stated, and no file was released: there are none here, and statistics are not
    measured once more. Published: 39.0 (Table 2).
    """
    return _retinanet("coco_retinanet_1x_scrl", ONE_X, precise_bn=0)


def coco_retinanet_1x_soco() -> TransferRecipe:
    """RetinaNet, COCO 12 epochs: SoCo's, MMDetection's 1x; backbone and FPN transferred.

    One size, stem and first stage frozen, and the backbone's norms as they came: there their scale and shift train,
    here they do not. The pyramid has norms, as the pretrained one; no file was released.

    Published: SoCo* 38.3 (Table 7).
    """
    detector = RetinaNet(norm="frozen", frozen_stages=2, smooth_l1_beta=0.0)
    base = protocol("coco_retinanet_1x_soco", detector, ONE_X, lr=0.01, precise_bn=0)
    return replace(base, optim=SGD(lr=0.01, lr_batch=16), schedule=MMDETECTION_1X)


def coco_fcos_1x() -> TransferRecipe:
    """FCOS, COCO 12 epochs: SoCo's, MMDetection's 1x; backbone and FPN transferred.

    One size, stem and first stage frozen, norms of the backbone as they came, gradients of norm 35 at most. There the
    warm-up is constant (here linear) from a third, and biases learn twice as fast (here as all else); neither there nor
    here are they decayed. Losses deviate as the detector's settings say. The pyramid has norms, as the pretrained one.

    Published: SoCo* 37.4 (Table 7).
    """
    base = coco_retinanet_1x_soco()
    return replace(
        base,
        name="coco_fcos_1x",
        detector=FCOS(norm="frozen", frozen_stages=2),
        optim=SGD(lr=0.01, lr_batch=16, decay_1d=False),
        schedule=replace(base.schedule, warmup_from=1 / 3),
        run=replace(base.run, clip_norm=35.0),
    )


COCO_ONE_STAGE: tuple[Callable[[], TransferRecipe], ...] = (
    coco_retinanet_1x,
    coco_retinanet_2x,
    coco_retinanet_12k,
    coco_retinanet_1x_scrl,
    coco_retinanet_1x_soco,
    coco_fcos_1x,
)
