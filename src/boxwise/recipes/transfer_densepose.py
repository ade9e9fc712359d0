"""Published protocols on DensePose-COCO: a person's surface, pixel by pixel. `--geodesics FILE` measures it.

8 GPUs, batch 16, lr .01, norms in backbone and FPN, over all devices; all else is detectron2's project of that name.
Pictures are not mirrored in training, for want of its tables. Real annotations have not been tried. Results in
docstrings are the papers', never ours.
"""

from __future__ import annotations

from collections.abc import Callable

from boxwise.recipes.recipe import TransferRecipe
from boxwise.recipes.transfer_schedules import COCO_SIDES, FPN, protocol
from boxwise.transfer.detectors.densepose import DensePoseRCNN


def _densepose(name: str, steps: tuple[int, ...]) -> TransferRecipe:
    detector = DensePoseRCNN(train_sizes=COCO_SIDES, **{**FPN, "sampling_ratio": 2, "aligned": False})
    return protocol(name, detector, steps, lr=0.01, warmup_from=0.1)


def densepose_rcnn_26k() -> TransferRecipe:
    """DensePose R-CNN FPN, DensePose-COCO, 26k steps: DetCo's, measured by gps. Published: 51.3 (Table 9).

    The falls are not stated: those of detectron2's s1x, at 10/13 and 12/13.
    """
    return _densepose("densepose_rcnn_26k", (26_000, 20_000, 24_000))


def densepose_rcnn_1x() -> TransferRecipe:
    """DensePose R-CNN FPN, DensePose-COCO 2014, 1x: ReSim's, measured by gpsm. Published: ReSim-FPN 67.1 (Table 6).

    Read as detectron2's s1x, 130k steps. The paper trains on train2014 and measures on val2014; the file that is
    measured on here is val2014's minival, as detectron2's.
    """
    return _densepose("densepose_rcnn_1x", (130_000, 100_000, 120_000))


DENSEPOSE: tuple[Callable[[], TransferRecipe], ...] = (densepose_rcnn_26k, densepose_rcnn_1x)
