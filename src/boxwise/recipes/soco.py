"""SoCo's published runs and ablations. Results in docstrings are the paper's, never ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from boxwise.config import LARS, Run, Schedule
from boxwise.data.augment import Photo
from boxwise.data.cut import Crop, ViewSpec
from boxwise.data.objects import Objects
from boxwise.methods import soco
from boxwise.nn.encoder import EncoderConfig
from boxwise.recipes.recipe import Recipe

PHOTO = Photo(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.8, gray=0.2, blur_kind="pil")
FIRST = ViewSpec(crop=Crop(whole=True), photo=replace(PHOTO, blur=1.0, solarize=0.0))
"""The whole image, always blurred."""


def _other(crop: Crop) -> ViewSpec:
    """Seldom blurred, sometimes solarised."""
    return ViewSpec(crop=crop, photo=replace(PHOTO, blur=0.1, solarize=0.2))


CROP = _other(Crop(scale=(0.5, 1.0)))
HALF = _other(Crop(size=112, scale=(0.5, 1.0), like=1))
"""The second view's part at half the size."""


def soco_r50_fpn_100ep() -> Recipe:
    """SoCo, ResNet-50 FPN, 100 epochs of ImageNet. 16 V100, batch 2048, mixed precision.

    The third view is the second at half its size, as the paper has it; the released weights were made with a crop of
    its own there (--views.2.crop.like null) and with holes in the boxes (--views.1.cutout.share 0.5, views.2 too).

    Published: COCO Mask R-CNN FPN (4conv1fc), box AP 42.3 at 1x (Table 1), 43.2 at 2x.
    """
    return Recipe(
        name="soco_r50_fpn_100ep",
        method=soco.Config(),
        encoder=EncoderConfig(backbone="resnet50", fpn=True, fpn_init="kaiming", zero_init_last=True),
        views=(FIRST, CROP, HALF),
        optim=LARS(lr=1.0, weight_decay=1e-5),
        schedule=Schedule(epochs=100, warmup_epochs=10, warmup_from=0.01, final_lr=1e-6),
        run=Run(batch_size=2048),
    )


def soco_r50_fpn_400ep() -> Recipe:
    """SoCo, ResNet-50 FPN, 400 epochs. 16 V100, batch 2048, mixed precision.

    Published: COCO Mask R-CNN FPN, box AP 43.0 at 1x (Table 1), 44.0 at 2x.
    """
    return soco_r50_fpn_100ep().lasting(400)


def soco_star_r50_fpn_400ep() -> Recipe:
    """SoCo*, four views: one more crop, of 192 pixels. ResNet-50 FPN, 400 epochs.

    16 V100, batch 2048, mixed precision.
    Published: COCO Mask R-CNN FPN, box AP 43.2 at 1x (Table 1), 44.3 at 2x; LVIS 1x 26.3 (Table 6).
    """
    views = (FIRST, CROP, _other(Crop(size=192, scale=(0.5, 1.0))), HALF)
    return replace(soco_r50_fpn_400ep(), name="soco_star_r50_fpn_400ep", views=views)


def soco_r50_c4_100ep() -> Recipe:
    """SoCo, ResNet-50 C4, two views, no jitter, 100 epochs. 16 V100, batch 2048, mixed precision.

    Its second view is at least .6 of the image.
    Published: COCO Mask R-CNN C4, box AP 40.4 at 1x (Table 2); VOC07+12 Faster R-CNN C4, AP 59.1 (Table 3).
    """
    return replace(
        soco_r50_fpn_100ep(),
        name="soco_r50_c4_100ep",
        method=soco.Config(levels=("c4",), limits=(), pool_size=14, objects=Objects(jitter=0.0)),
        encoder=EncoderConfig(backbone="resnet50", c4=True, zero_init_last=True),
        views=(FIRST, _other(Crop(scale=(0.6, 1.0)))),
    )


def soco_r50_c4_400ep() -> Recipe:
    """SoCo, ResNet-50 C4, 400 epochs. 16 V100, batch 2048, mixed precision.

    Published: COCO Mask R-CNN C4, box AP 40.9 at 1x (Table 2); VOC07+12 Faster R-CNN C4, AP 59.7 (Table 3).
    """
    return soco_r50_c4_100ep().lasting(400)


def ablation(variant: str) -> Recipe:
    """The 100-epoch FPN run as Tables 4 and 5 change it, by the name of the row in the paper.

    The paper does not say how boxes are read before it adds FPN and head: here as the mean of c5, or of each level.
    Raises KeyError for a name that no row has.
    """
    return (_steps() | _values())[variant]


def _steps() -> dict[str, Recipe]:
    """Table 4, from the last row to the first."""
    whole = soco_r50_fpn_100ep()
    two = replace(whole, views=(FIRST, CROP))
    still = _with(two, objects=Objects(jitter=0.0))
    unaware = _with(still, scale_aware=False)
    headless = _with(unaware, pool_size=1, box_head=False)
    trunk = replace(
        _with(headless, levels=("c5",), limits=()),
        encoder=EncoderConfig(backbone="resnet50", zero_init_last=True),
    )
    image = _with(trunk, objects=Objects(jitter=0.0, count=1, proposals="whole"))
    return {
        "whole image": image,
        "+selective search": trunk,
        "+FPN": headless,
        "+R-CNN head": unaware,
        "+scale-aware assignment": still,
        "+box jitter": two,
        "+multi-view (V3) = SoCo": whole,
    }


def _values() -> dict[str, Recipe]:
    """Table 5."""
    base = soco_r50_fpn_100ep()
    half = {size: _other(Crop(size=size, scale=(0.5, 1.0), like=1)) for size in (96, 112, 128, 160, 192)}
    batches, momenta = (512, 1024, 2048, 4096), (0.98, 0.99, 0.993)
    found = {k: _with(base, objects=Objects(count=k)) for k in (1, 4, 8, 16)}
    drawn = {k: _with(base, objects=Objects(count=k, proposals="random")) for k in (1, 4, 8)}
    return (
        {f"V3 size={size}": replace(base, views=(FIRST, CROP, view)) for size, view in half.items()}
        | {f"batch size={size}": replace(base, run=Run(batch_size=size)) for size in batches}
        | {f"EMA tau={m:g}": _with(base, momentum=m) for m in momenta}
        | {f"selective search, K={k}": recipe for k, recipe in found.items()}
        | {f"random boxes, K={k}": recipe for k, recipe in drawn.items()}
    )


def _with(recipe: Recipe, **settings: Any) -> Recipe:
    """With other settings of the method."""
    assert isinstance(recipe.method, soco.Config)
    return replace(recipe, method=replace(recipe.method, **settings))


PUBLISHED = (
    soco_r50_fpn_100ep,
    soco_r50_fpn_400ep,
    soco_star_r50_fpn_400ep,
    soco_r50_c4_100ep,
    soco_r50_c4_400ep,
)
