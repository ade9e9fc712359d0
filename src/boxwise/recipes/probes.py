"""Probes: what frozen features know without a detector. Ours for any data, and the papers' protocols.

Results in docstrings are the papers', never ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from boxwise.config import LARS, SGD, HeldOutData, LabelledData, Run, Schedule
from boxwise.data.cut import Crop
from boxwise.recipes.recipe import LinearProbeRecipe, ProbeRecipe, SVMRecipe
from boxwise.transfer.probes.linear import Linear
from boxwise.transfer.probes.looks import Still
from boxwise.transfer.probes.patch_location import PatchLocation
from boxwise.transfer.probes.roi_linear import RoILinear


def linear() -> LinearProbeRecipe:
    """Ours: the class of a picture, for a user's own folders of classes.

    The layer stands on normalised features, so that one rate suits those of any method; the length follows the data.
    """
    return LinearProbeRecipe(
        name="linear",
        probe=Linear(normalised=True),
        optim=SGD(lr=0.1, weight_decay=0.0),
        schedule=Schedule(epochs=20),
        run=Run(batch_size=64, save_every=1000),
        data=HeldOutData(),
    )


def roi_linear() -> LinearProbeRecipe:
    """Ours: the category of each labelled box, for a user's own boxes: minutes where a detector takes hours.

    As `linear`, on whole pictures squeezed to 320 pixels; the length follows the data.
    """
    return LinearProbeRecipe(
        name="roi_linear",
        probe=RoILinear(crop=Crop(size=320, whole=True), still=Still(size=320, resize=None), normalised=True),
        optim=SGD(lr=0.1, lr_batch=64, weight_decay=0.0),
        schedule=Schedule(epochs=10),
        run=Run(batch_size=16, save_every=1000),
        data=LabelledData(),
    )


def patch_location() -> LinearProbeRecipe:
    """Ours: where in the picture one of nine patches lies, for any pictures. Needs no labels.

    As `linear`, on large parts of pictures that are never mirrored; nine rows a picture need fewer passes.
    """
    return replace(
        linear(),
        name="patch_location",
        probe=PatchLocation(crop=Crop(scale=(0.5, 1.0), flip=0.0), normalised=True),
        optim=SGD(lr=0.1, lr_batch=32, weight_decay=0.0),
        schedule=Schedule(epochs=4),
        run=Run(batch_size=32, save_every=1000),
    )


def svm() -> SVMRecipe:
    """Which categories a picture shows, by support vector machines on every stage: DetCo's protocol, on any boxes.

    Settings are those of `voc07_svm`.
    """
    return replace(voc07_svm(), name="svm")


def imagenet_linear() -> LinearProbeRecipe:
    """MoCo's linear evaluation: lr 30 at batch 256, 100 epochs, falling at 60 and 80. 8 GPUs.

    Published: MoCo-v2 67.5, DetCo 68.6 (DetCo's Table 8), ReSim-C4 66.1 (ReSim, A.2); 200 epochs of pretraining.
    """
    return LinearProbeRecipe(
        name="imagenet_linear",
        probe=Linear(),
        optim=SGD(lr=30.0, weight_decay=0.0),
        schedule=Schedule(epochs=100, kind="multistep", milestones=(0.6, 0.8)),
        run=Run(batch_size=256),
        data=HeldOutData(),
    )


def imagenet_linear_scrl() -> LinearProbeRecipe:
    """SCRL's linear evaluation: LARS with Nesterov's momentum, lr .2 at batch 256, batch 4096, 80 epochs. 32 GPUs.

    Published: SCRL at 1000 epochs 70.3 (Table 10). Its baseline BYOL takes `--lr 0.05`: 74.3.
    """
    return LinearProbeRecipe(
        name="imagenet_linear_scrl",
        probe=Linear(
            crop=Crop(scale=(0.08, 1.0), interpolation="bicubic"), still=Still(interpolation="bicubic")
        ),
        optim=LARS(lr=0.2, weight_decay=0.0, norm="sum", nesterov=True),
        schedule=Schedule(epochs=80, warmup_epochs=5, early=True),
        run=Run(batch_size=4096),
        data=HeldOutData(),
    )


def imagenet_patch_location() -> LinearProbeRecipe:
    """InsLoc's localisation task on ImageNet's pictures: which of nine patches is it?

    Published: InsLoc 74.2, MoCo-v2 71.9, BYOL 67.6 (Table 3a). The paper states neither rate nor length nor views:
    those are of `imagenet_linear`.
    """
    return replace(imagenet_linear(), name="imagenet_patch_location", probe=PatchLocation())


def coco_roi_linear() -> LinearProbeRecipe:
    """SCRL's RoI linear evaluation: COCO's boxes on pictures of 800 x 800, batch 512, lr .1, 80 epochs. 8 V100.

    Published: SCRL 74.8, BYOL 71.5, MoCo-v2 at 800 epochs 69.3 (Table 10). Statistics of norms are tracked anew.
    The paper states no bins and no weight decay: 1 and 0 here.
    """
    return LinearProbeRecipe(
        name="coco_roi_linear",
        probe=RoILinear(statistics="tracked"),
        optim=SGD(lr=0.1, lr_batch=512, weight_decay=0.0),
        schedule=Schedule(epochs=80, warmup_epochs=5),
        run=Run(batch_size=512),
        data=LabelledData(),
    )


def voc07_svm() -> SVMRecipe:
    """DetCo's VOC07 classification: a linear SVM for each class on each stage, the cost chosen over three folds.

    Published: DetCo at 100 epochs res2 51.6, res3 69.7, res4 82.5, res5 84.3 (Table 2); at 200 epochs 85.1 (Table 8).
    """
    return SVMRecipe(name="voc07_svm")


FAMILIES: Mapping[str, Callable[[], ProbeRecipe]] = {
    "linear": linear,
    "roi_linear": roi_linear,
    "patch_location": patch_location,
    "svm": svm,
}
"""Short names: trained for a length that is fitted to the data."""
PROTOCOLS: tuple[Callable[[], ProbeRecipe], ...] = (
    imagenet_linear,
    imagenet_linear_scrl,
    imagenet_patch_location,
    coco_roi_linear,
    voc07_svm,
)
"""Published protocols, changed by nothing unless told."""
