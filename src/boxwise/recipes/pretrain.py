"""Published pretraining runs, and our own. A recipe derives from another by calling it and changing values.

Results in docstrings are the papers', never ours.
"""

from __future__ import annotations

from dataclasses import replace

from boxwise.config import LARS, SGD, Run, Schedule
from boxwise.data.augment import Photo
from boxwise.data.cut import Crop, ViewSpec
from boxwise.methods import image_level, scrl
from boxwise.nn.encoder import EncoderConfig
from boxwise.recipes import detco, insloc, resim, soco
from boxwise.recipes.recipe import Recipe
from boxwise.recipes.views import MOCO_VIEW


def _asymmetric(crop: Crop) -> tuple[ViewSpec, ViewSpec]:
    """BYOL's pair: always blurred, and seldom blurred but sometimes solarised."""
    photo = Photo(
        brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.8, gray=0.2, blur_kind="gauss23"
    )
    return (
        ViewSpec(crop=crop, photo=replace(photo, blur=1.0, solarize=0.0)),
        ViewSpec(crop=crop, photo=replace(photo, blur=0.1, solarize=0.2)),
    )


def scrl_r50_200ep() -> Recipe:
    """SCRL, ResNet-50, 200 epochs of ImageNet. 32 V100, batch 8192, mixed precision.

    Published: COCO Faster R-CNN FPN 1x, AP 40.2 (Table 6, 10 boxes); 40.5 in the authors' repository.
    """
    return Recipe(
        name="scrl_r50_200ep",
        method=scrl.Config(momentum=0.97),
        encoder=EncoderConfig(backbone="resnet50"),
        views=_asymmetric(Crop(scale=(0.2, 1.0), interpolation="bicubic")),
        optim=LARS(lr=0.45, weight_decay=1e-6, norm="sum"),
        schedule=Schedule(epochs=200, warmup_epochs=10, early=True),
        run=Run(batch_size=8192),
    )


def scrl_r50_1000ep() -> Recipe:
    """SCRL, ResNet-50, 1000 epochs, with the official code's values (the paper prints lr .45 and momentum .97).

    32 V100, batch 8192, mixed precision.
    Published: COCO Faster R-CNN FPN 1x, AP 40.9 (Table 2); VOC07+12 AP 57.2 (Table 1).
    """
    return replace(
        scrl_r50_200ep().lasting(1000),
        method=scrl.Config(momentum=0.996),
        optim=LARS(lr=0.2, weight_decay=1.5e-6, norm="sum"),
    )


def scrl_r101_200ep() -> Recipe:
    """SCRL, ResNet-101, 200 epochs. 32 V100, batch 8192, mixed precision.

    Published: COCO Faster R-CNN R101-FPN 1x, AP 42.9 (Table 3).
    """
    return replace(scrl_r50_200ep(), name="scrl_r101_200ep", encoder=EncoderConfig(backbone="resnet101"))


def mocov2_r50_200ep() -> Recipe:
    """MoCo-v2, ResNet-50, 200 epochs of ImageNet. 8 V100, batch 256, fp32.

    Published: VOC07+12 Faster R-CNN C4, AP 57.0 (InsLoc's Table 1); ImageNet linear 67.5 (DetCo's Table 8) to 67.7
    (InsLoc's Table 3).
    """
    return Recipe(
        name="mocov2_r50_200ep",
        method=image_level.MoCoConfig(),
        encoder=EncoderConfig(backbone="resnet50"),
        views=(MOCO_VIEW, MOCO_VIEW),
        optim=SGD(lr=0.03, weight_decay=1e-4),
        schedule=Schedule(epochs=200, per="epoch"),
        run=Run(batch_size=256, precision="fp32"),
    )


def mocov2_r50_800ep() -> Recipe:
    """MoCo-v2, ResNet-50, 800 epochs. 8 V100, batch 256, fp32.

    Published: VOC07+12 Faster R-CNN C4, AP 57.4 (InsLoc's Table 1); ImageNet linear 71.1 (SCRL's Table 10).
    """
    return mocov2_r50_200ep().lasting(800)


def byol_r50_300ep() -> Recipe:
    """BYOL, ResNet-50, 300 epochs of ImageNet. 512 TPU v3 cores, batch 4096.

    Published: ImageNet linear 72.5 (its own paper); COCO Mask R-CNN FPN 2x, box AP 42.3 (InsLoc's Table 2, SoCo's
    Table 1).
    """
    return Recipe(
        name="byol_r50_300ep",
        method=image_level.BYOLConfig(momentum=0.99),
        encoder=EncoderConfig(backbone="resnet50", zero_init_last=True),
        views=_asymmetric(Crop(scale=(0.08, 1.0), interpolation="bicubic")),
        optim=LARS(lr=0.3, weight_decay=1e-6),
        schedule=Schedule(epochs=300, warmup_epochs=10),
        run=Run(batch_size=4096),
    )


def byol_r50_1000ep() -> Recipe:
    """BYOL, ResNet-50, 1000 epochs. 512 TPU v3 cores, batch 4096.

    Published: ImageNet linear 74.3 (DetCo's Table 8, SCRL's Table 10).
    """
    return replace(
        byol_r50_300ep().lasting(1000),
        method=image_level.BYOLConfig(momentum=0.996),
        optim=LARS(lr=0.2, weight_decay=1.5e-6),
    )


def simsiam_r50_200ep() -> Recipe:
    """SimSiam, ResNet-50, 200 epochs of ImageNet. 8 GPUs, batch 512, fp32.

    Published: ImageNet linear 70.0 (its own paper); VOC07+12 Faster R-CNN C4, AP 57.0 (SoCo's Table 3).
    """
    return Recipe(
        name="simsiam_r50_200ep",
        method=image_level.SimSiamConfig(),
        encoder=EncoderConfig(backbone="resnet50", zero_init_last=True),
        views=(MOCO_VIEW, MOCO_VIEW),
        optim=SGD(lr=0.05, weight_decay=1e-4),
        schedule=Schedule(epochs=200, per="epoch"),
        run=Run(batch_size=512, precision="fp32"),
    )


def scrl_fpn() -> Recipe:
    """Ours: SCRL's boxes and loss on p2..p5 through the detector's own box head, so that all of it is pretrained.

    No paper has published this run.
    """
    base = scrl_r50_200ep()
    return replace(
        base,
        name="scrl_fpn",
        method=scrl.Config(
            levels=("p2", "p3", "p4", "p5"), pool_size=7, box_head=True, aligned=True, momentum=0.97
        ),
        encoder=EncoderConfig(backbone="resnet50", fpn=True),
        run=Run(batch_size=1024),
    )


PUBLISHED = (
    scrl_r50_200ep,
    scrl_r50_1000ep,
    scrl_r101_200ep,
    mocov2_r50_200ep,
    mocov2_r50_800ep,
    byol_r50_300ep,
    byol_r50_1000ep,
    simsiam_r50_200ep,
    *insloc.PUBLISHED,
    *soco.PUBLISHED,
    *detco.PUBLISHED,
    *resim.PUBLISHED,
)
OURS = (scrl_fpn,)
METHODS = {
    "scrl": scrl_r50_200ep,
    "mocov2": mocov2_r50_200ep,
    "byol": byol_r50_300ep,
    "simsiam": simsiam_r50_200ep,
    "scrl_fpn": scrl_fpn,
    "insloc": insloc.insloc_r50_fpn_200ep,
    "soco": soco.soco_r50_fpn_100ep,
    "detco": detco.detco_r50_200ep,
    "resim": resim.resim_r50_fpn_200ep,
}
"""Short names: the run that each stands for, fitted to the images and the device before it starts."""
