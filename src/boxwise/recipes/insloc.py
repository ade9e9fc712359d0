"""InsLoc's published runs and the rows of its ablation. Results in docstrings are the paper's, never ours."""

from __future__ import annotations

from dataclasses import replace

from boxwise.config import SGD, Run, Schedule
from boxwise.data.cut import Crop, Paste, ViewSpec
from boxwise.methods import insloc
from boxwise.nn.encoder import EncoderConfig
from boxwise.recipes.recipe import Recipe
from boxwise.recipes.views import MOCO_VIEW


def composite(ratio: float) -> ViewSpec:
    """A part of at most `ratio` to 1, pasted on another picture of 256 pixels a side; colours and blur as MoCo-v2."""
    crop = Crop(size=256, scale=(0.2, 1.0), ratio=(1 / ratio, ratio))
    return replace(MOCO_VIEW, crop=crop, paste=Paste())


def insloc_r50_fpn_200ep() -> Recipe:
    """InsLoc, ResNet-50 with FPN and box head, 200 epochs of ImageNet. 8 GPUs, batch 256, fp32.

    Published: COCO Mask R-CNN FPN 1x, box AP 41.4, mask AP 37.1; 2x, 43.2 and 38.7 (Table 4).
    """
    return Recipe(
        name="insloc_r50_fpn_200ep",
        method=insloc.Config(),
        encoder=EncoderConfig(backbone="resnet50", fpn=True, fpn_init="xavier"),
        views=(composite(2), composite(2)),
        optim=SGD(lr=0.03, weight_decay=1e-4, nesterov=True),
        schedule=Schedule(epochs=200, per="epoch"),
        run=Run(batch_size=256, precision="fp32"),
    )


def insloc_r50_fpn_400ep() -> Recipe:
    """InsLoc, ResNet-50 with FPN and box head, 400 epochs. 8 GPUs, batch 256, fp32.

    Published: COCO Mask R-CNN FPN 1x, box AP 42.0, mask AP 37.6; 2x, 43.3 and 38.8 (Table 4).
    """
    return insloc_r50_fpn_200ep().lasting(400)


def insloc_r50_c4_200ep() -> Recipe:
    """InsLoc, ResNet-50-C4, 200 epochs of ImageNet. 8 GPUs, batch 256, fp32.

    From the paper, since the official code holds no such run: c4 in 14 x 14 bins as C4 detectors have them, the
    last stage, its mean, and MoCo-v2's two layers; the query's box is always augmented.
    Published: VOC07+12 Faster R-CNN C4, AP 57.9 (Table 1); COCO Mask R-CNN C4 1x, box AP 39.5; 2x, 41.4 (Table 4).
    """
    return replace(
        insloc_r50_fpn_200ep(),
        name="insloc_r50_c4_200ep",
        method=insloc.Config(levels=("c4",), augmented=(True,), pool_size=14, hidden=2048),
        encoder=EncoderConfig(backbone="resnet50", c4=True),
        views=(composite(3), composite(3)),
    )


def insloc_r50_c4_400ep() -> Recipe:
    """InsLoc, ResNet-50-C4, 400 epochs. 8 GPUs, batch 256, fp32.

    Published: VOC07+12 Faster R-CNN C4, AP 58.4 (Table 1); COCO Mask R-CNN C4 1x, box AP 39.8; 2x, 41.8 (Table 4).
    """
    return insloc_r50_c4_200ep().lasting(400)


def without_box_augmentation(recipe: Recipe) -> Recipe:
    """Table 3b, "+RoIAlign +copy-paste": the query's boxes are the true ones on every level.

    Published, of R50-FPN at 200 epochs: COCO Mask R-CNN FPN 1x, box AP 41.1, mask AP 36.9.
    """
    method = recipe.method
    assert isinstance(method, insloc.Config), "an ablation of InsLoc"
    still = replace(method, augmented=(False,) * len(method.levels))
    return replace(recipe, name=f"{recipe.name}_no_box_augmentation", method=still)


def roi_align_only(recipe: Recipe) -> Recipe:
    """Table 3b, "+RoIAlign": MoCo-v2's views, pooled whole from every level through the box head.

    Published, of R50-FPN at 200 epochs: COCO Mask R-CNN FPN 1x, box AP 40.2, mask AP 36.4.
    """
    base = without_box_augmentation(recipe)
    return replace(base, name=f"{recipe.name}_roi_align_only", views=(MOCO_VIEW, MOCO_VIEW))


PUBLISHED = (insloc_r50_fpn_200ep, insloc_r50_fpn_400ep, insloc_r50_c4_200ep, insloc_r50_c4_400ep)
