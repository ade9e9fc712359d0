"""Fine-tuning protocols: which detector, how long, at what rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from boxwise.config import SGD, Run, Schedule, TransferData
from boxwise.recipes.recipe import TransferRecipe
from boxwise.recipes.transfer_cityscapes import CITYSCAPES
from boxwise.recipes.transfer_coco import COCO
from boxwise.recipes.transfer_coco_one_stage import COCO_ONE_STAGE
from boxwise.recipes.transfer_densepose import DENSEPOSE
from boxwise.recipes.transfer_few_labels import FEW_LABELS
from boxwise.recipes.transfer_lvis import LVIS
from boxwise.recipes.transfer_voc import VOC
from boxwise.transfer.detectors.c4 import FasterRCNNC4, MaskRCNNC4
from boxwise.transfer.detectors.densepose import DensePoseRCNN
from boxwise.transfer.detectors.fcn16s import FCN16s
from boxwise.transfer.detectors.fcos import FCOS
from boxwise.transfer.detectors.keypoint_rcnn import KeypointRCNNFPN
from boxwise.transfer.detectors.mask_rcnn import MaskRCNNFPN
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN
from boxwise.transfer.detectors.retinanet import RetinaNet


def faster_rcnn_fpn() -> TransferRecipe:
    """Ours: Faster R-CNN with FPN and the 4conv1fc head that SoCo and InsLoc pretrain, for a user's own data.

    lr .02 at batch 16 with a warm-up, falling at 2/3 and 8/9, as the papers' 1x; the length follows the data.
    """
    return TransferRecipe(
        name="faster_rcnn_fpn",
        detector=FasterRCNNFPN(backbone="resnet50"),
        optim=SGD(lr=0.02, lr_batch=16, weight_decay=1e-4),
        schedule=Schedule(
            epochs=24, kind="multistep", milestones=(2 / 3, 8 / 9), warmup_steps=100, warmup_from=0.001
        ),
        run=Run(batch_size=8, save_every=1000),
    )


def mask_rcnn_fpn() -> TransferRecipe:
    """Ours: Mask R-CNN with FPN, the 4conv1fc head, and norms in the mask head, for a user's own data.

    Rate and length as `faster_rcnn_fpn`; the data must have outlines.
    """
    return replace(faster_rcnn_fpn(), name="mask_rcnn_fpn", detector=MaskRCNNFPN(backbone="resnet50"))


def keypoint_rcnn_fpn() -> TransferRecipe:
    """Ours: Keypoint R-CNN with FPN and the 2fc head, for a user's own data; set `detector.keypoints` to its own.

    Rate and length as `faster_rcnn_fpn`. As in DetCo's protocol boxes' loss turns straight at .5 and 1500 proposals
    are trained on. Images without a labelled keypoint are left out, as in detectron2.
    """
    return replace(
        faster_rcnn_fpn(),
        name="keypoint_rcnn_fpn",
        detector=KeypointRCNNFPN(backbone="resnet50", box_beta=0.5, rpn_post_nms_train=1500),
        data=TransferData(min_keypoints=1),
    )


def faster_rcnn_c4() -> TransferRecipe:
    """Ours: Faster R-CNN on c4 with a norm behind res5, for a user's own data: slow, and what most papers of VOC use.

    Rate and length as `faster_rcnn_fpn`.
    """
    return replace(faster_rcnn_fpn(), name="faster_rcnn_c4", detector=FasterRCNNC4(backbone="resnet50"))


def mask_rcnn_c4() -> TransferRecipe:
    """Ours: Mask R-CNN on c4 with a norm behind res5, for a user's own data; it must have outlines.

    Rate and length as `faster_rcnn_fpn`.
    """
    return replace(faster_rcnn_fpn(), name="mask_rcnn_c4", detector=MaskRCNNC4(backbone="resnet50"))


def retinanet() -> TransferRecipe:
    """Ours: RetinaNet on a pyramid from c3, with norms in backbone and FPN, for a user's own data.

    lr .01 at batch 16, as the papers'; warm-up, falls and length as `faster_rcnn_fpn`.
    """
    return replace(
        faster_rcnn_fpn(),
        name="retinanet",
        detector=RetinaNet(backbone="resnet50"),
        optim=SGD(lr=0.01, lr_batch=16, weight_decay=1e-4),
    )


def fcos() -> TransferRecipe:
    """Ours: FCOS on a pyramid from c3, for a user's own data; cells around the centre of a thing answer for it.

    Rate and length as `retinanet`.
    """
    return replace(retinanet(), name="fcos", detector=FCOS(backbone="resnet50", center_radius=1.5))


def fcn16s() -> TransferRecipe:
    """A class for every pixel, for a user's own data: FCN-16s as MoCo's protocol has it.

    lr .01 at batch 16, falling at 70 % and 90 % of training, on pictures of about VOC's size with its cut of 513
    pixels; the length follows the data. MoCo trains 90k steps on Cityscapes, at its own size with a cut of 769.
    """
    return TransferRecipe(
        name="fcn16s",
        detector=FCN16s(backbone="resnet50", min_size=512, max_size=1024, crop=513),
        optim=SGD(lr=0.01, lr_batch=16, weight_decay=1e-4),
        schedule=Schedule(
            epochs=24, kind="multistep", milestones=(0.7, 0.9), warmup_steps=100, warmup_from=0.001
        ),
        run=Run(batch_size=8, save_every=1000),
    )


def densepose_rcnn() -> TransferRecipe:
    """Ours: DensePose R-CNN with FPN as detectron2 builds it, with norms in the FPN, for data with DensePose's points.

    lr .01 at batch 16, as detectron2's; the length follows the data, and the rate falls as in `faster_rcnn_fpn`.
    `--geodesics FILE` adds GPS and GPSm to the figures of boxes.
    """
    return replace(
        faster_rcnn_fpn(),
        name="densepose_rcnn",
        detector=DensePoseRCNN(backbone="resnet50", box_beta=0.0, rpn_beta=0.0),
        optim=SGD(lr=0.01, lr_batch=16, weight_decay=1e-4),
    )


FAMILIES: dict[str, Callable[[], TransferRecipe]] = {
    "faster_rcnn_fpn": faster_rcnn_fpn,
    "mask_rcnn_fpn": mask_rcnn_fpn,
    "keypoint_rcnn_fpn": keypoint_rcnn_fpn,
    "faster_rcnn_c4": faster_rcnn_c4,
    "mask_rcnn_c4": mask_rcnn_c4,
    "retinanet": retinanet,
    "fcos": fcos,
    "fcn16s": fcn16s,
    "densepose_rcnn": densepose_rcnn,
}
"""Short names: trained for a length that is fitted to the data."""
PROTOCOLS: tuple[Callable[[], TransferRecipe], ...] = (
    *VOC,
    *COCO,
    *COCO_ONE_STAGE,
    *FEW_LABELS,
    *CITYSCAPES,
    *LVIS,
    *DENSEPOSE,
)
"""Published protocols, changed by nothing unless told."""
