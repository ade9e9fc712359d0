"""DetCo's published pretraining runs. Results in docstrings are the paper's, never ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from boxwise.config import SGD, Run, Schedule
from boxwise.data.cut import Crop, ViewSpec
from boxwise.methods import detco
from boxwise.nn.encoder import EncoderConfig
from boxwise.recipes.recipe import Recipe
from boxwise.recipes.views import MOCO_VIEW


def views() -> tuple[ViewSpec, ...]:
    """Two of MoCo-v2's, and two of 255 pixels that show at least 60 % of the image, to be cut in patches."""
    local = replace(MOCO_VIEW, crop=Crop(size=255, scale=(0.6, 1.0)))
    return MOCO_VIEW, MOCO_VIEW, local, local


def with_auto_augment(recipe: Recipe) -> Recipe:
    """The paper's "+AA": AutoAugment on all four views, before the flip and MoCo-v2's colours.

    The paper states neither the rules nor their place, and gives RandAugment's paper as the source of "Auto
    Augmentation". These are AutoAugment's rules for ImageNet.
    """
    changed = tuple(replace(view, auto_augment=True) for view in recipe.views)
    return replace(recipe, name=f"{recipe.name}_aa", views=changed)


def detco_r50_200ep() -> Recipe:
    """DetCo, ResNet-50, 200 epochs of ImageNet. 8 V100, batch 256, mixed precision.

    Published: COCO Mask R-CNN FPN 1x, box AP 39.5 (Table 4); VOC07+12 AP 57.8 (Table 6); ImageNet linear 68.6
    (Table 8).
    """
    return Recipe(
        name="detco_r50_200ep",
        method=detco.Config(),
        encoder=EncoderConfig(backbone="resnet50"),
        views=views(),
        optim=SGD(lr=0.06, weight_decay=1e-4),
        schedule=Schedule(epochs=200, per="epoch"),
        run=Run(batch_size=256),
    )


def detco_r50_100ep() -> Recipe:
    """DetCo, ResNet-50, 100 epochs. 8 V100, batch 256, mixed precision.

    Published: VOC07+12 AP 57.4 (Tables 1 and 6); ImageNet linear 66.6 (Table 1).
    """
    return detco_r50_200ep().lasting(100)


def detco_r50_800ep() -> Recipe:
    """DetCo, ResNet-50, 800 epochs. 8 V100, batch 256, mixed precision.

    Published: VOC07+12 AP 58.2 (Table 6).
    """
    return detco_r50_200ep().lasting(800)


def detco_r50_100ep_aa() -> Recipe:
    """DetCo with AutoAugment, ResNet-50, 100 epochs. 8 V100, batch 256, mixed precision.

    The paper prints no result of this length.
    """
    return with_auto_augment(detco_r50_100ep())


def detco_r50_200ep_aa() -> Recipe:
    """DetCo with AutoAugment, ResNet-50, 200 epochs. 8 V100, batch 256, mixed precision.

    Published: COCO Mask R-CNN FPN 1x, box AP 40.1 (Table 4); 12k iterations, 29.6 (Table 3).
    """
    return with_auto_augment(detco_r50_200ep())


def detco_r50_800ep_aa() -> Recipe:
    """DetCo with AutoAugment, ResNet-50, 800 epochs. 8 V100, batch 256, mixed precision.

    The paper prints no result of this length.
    """
    return with_auto_augment(detco_r50_800ep())


PUBLISHED: tuple[Callable[[], Recipe], ...] = (
    detco_r50_100ep,
    detco_r50_200ep,
    detco_r50_800ep,
    detco_r50_100ep_aa,
    detco_r50_200ep_aa,
    detco_r50_800ep_aa,
)
