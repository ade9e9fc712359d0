"""Which recipe makes the weights of each of the papers' result rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from boxwise.config import SGD
from boxwise.methods import detco, image_level, scrl
from boxwise.methods.resim_windows import Windows
from boxwise.recipes import insloc, pretrain, soco
from boxwise.recipes.paper_rows import Row, rows
from boxwise.recipes.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Start:
    """Where a row's weights come from: a recipe, nowhere (random weights), or no recipe for a reason."""

    recipe: Recipe | None = None
    missing: str | None = None

    @property
    def runs(self) -> bool:
        return self.missing is None


def start(row: Row) -> Start:
    """What makes the weights that `row` starts from."""
    if row.role == "random":
        return Start()
    if row.role == "supervised":
        return Start(missing="supervised weights")
    if row.init not in MADE_BY:
        return Start(missing=f"another method: {row.init}")
    recipe = MADE_BY[row.init](row)
    if row.variant is not None and recipe != MADE_BY[row.init](replace(row, variant=None)):
        recipe = replace(recipe, name=f"{recipe.name}__{_words(row.variant)}")
    return Start(recipe)


def derived() -> dict[str, tuple[Row, Recipe]]:
    """Recipes of rows that are no published run as it stands, by name, each with the first of its rows."""
    known = {recipe.__name__ for recipe in pretrain.PUBLISHED}
    found: dict[str, tuple[Row, Recipe]] = {}
    for row in rows():
        recipe = start(row).recipe
        if recipe is not None and recipe.name not in known:
            found.setdefault(recipe.name, (row, recipe))
    return found


def _mocov2(row: Row) -> Recipe:
    base = pretrain.mocov2_r50_200ep().lasting(_epochs(row))
    if row.pretrain_data != "IN-100":
        return base
    return replace(base, name=_on_100(base), method=image_level.MoCoConfig(queue=16_384))


def _byol(row: Row) -> Recipe:
    """Of its own paper; in SCRL's tables on SCRL's base: its views, both in one batch, rates, schedule and momentum."""
    if row.paper != "SCRL":
        return {300: pretrain.byol_r50_300ep, 1000: pretrain.byol_r50_1000ep}[_epochs(row)]()
    base = _scrl_run(row)
    assert isinstance(base.method, scrl.Config)
    return replace(
        base,
        name=base.name.replace("scrl", "byol_as_in_scrl"),
        method=image_level.BYOLConfig(momentum=base.method.momentum, joint=True),
    )


def _simsiam(row: Row) -> Recipe:
    """On 100 classes as ReSim's Table 7 states its base."""
    base = pretrain.simsiam_r50_200ep().lasting(_epochs(row))
    if row.pretrain_data != "IN-100":
        return base
    run = replace(base.run, batch_size=256)
    return replace(base, name=_on_100(base), optim=SGD(lr=0.10, weight_decay=1e-4), run=run)


def _insloc(row: Row) -> Recipe:
    base = _published(f"insloc_r50_{_parts(row)}_{_epochs(row)}ep")
    changed = base if row.variant is None else INSLOC[row.variant](base)
    return replace(changed, name=base.name)


def _soco(row: Row) -> Recipe:
    if row.variant is not None:
        return soco.ablation(row.variant)
    return _published(f"soco_r50_{_parts(row)}_100ep").lasting(_epochs(row))


def _soco_star(row: Row) -> Recipe:
    return _published(f"soco_star_r50_{_parts(row)}_{_epochs(row)}ep")


def _detco(row: Row) -> Recipe:
    base = _published(f"detco_r50_{_epochs(row)}ep")
    return base if row.variant is None else _changed(base, **DETCO[row.variant])


def _detco_aa(row: Row) -> Recipe:
    return _published(f"detco_r50_{_epochs(row)}ep_aa")


def _resim_c4(row: Row) -> Recipe:
    if row.pretrain_data != "IN-100":
        return _published(f"resim_r50_c4_{_epochs(row)}ep")
    base = _published(f"resim_r50_c4_in100_{_epochs(row)}ep")
    return base if row.variant is None else _changed(base, **RESIM[row.variant])


def _resim_fpn(row: Row) -> Recipe:
    """The same weights with T, whose detectors take the FPN's as well."""
    return _published(f"resim_r50_fpn_{_epochs(row)}ep")


def _resim_simsiam(row: Row) -> Recipe:
    return _published(f"resim_simsiam_r50_c4_in100_{_epochs(row)}ep")


def _scrl(row: Row) -> Recipe:
    base = _scrl_run(row)
    if row.variant is None:
        return base
    stated = dict(part.split("=") for part in row.variant.split(", "))
    jitter: dict[str, Any] = JITTER[stated.get("box jitter", "none")]
    max_iou = {"0.5": 0.5, "none": None}[stated.get("IoU threshold", "0.5")]
    return _changed(base, boxes=int(stated["#RoIs"]), max_iou=max_iou, **jitter)


def _scrl_run(row: Row) -> Recipe:
    trunk = "r101" if row.backbone.startswith("R101") else "r50"
    return _published(f"scrl_{trunk}_{_epochs(row)}ep")


MADE_BY: Mapping[str, Callable[[Row], Recipe]] = {
    "MoCo-v2": _mocov2,
    "BYOL": _byol,
    "SimSiam": _simsiam,
    "InsLoc": _insloc,
    "SoCo": _soco,
    "SoCo*": _soco_star,
    "DetCo": _detco,
    "DetCo+AA": _detco_aa,
    "ReSim-C4": _resim_c4,
    "MoCo-v2+ReSim-C4": _resim_c4,
    "SimSiam+ReSim-C4": _resim_simsiam,
    "ReSim-FPN": _resim_fpn,
    "ReSim-FPN^T": _resim_fpn,
    "SCRL": _scrl,
}
INSLOC: Mapping[str, Callable[[Recipe], Recipe]] = {
    "+RoIAlign (holistic features, losses on 4 FPN levels)": insloc.roi_align_only,
    "+RoIAlign +copy-paste": insloc.without_box_augmentation,
    "+RoIAlign +copy-paste +box augmentation (=InsLoc)": lambda whole: whole,
}
ALONE: dict[str, Any] = {"patches": False}
"""DetCo's intermediate losses without its contrast of global and local."""
DETCO: Mapping[str, dict[str, Any]] = {
    "+HIC (intermediate losses)": ALONE,
    "+HIC": ALONE,
    "+HIC +CGLC (= DetCo)": {},
    "one queue shared by all stages": ALONE | {"queues": "shared"},
    "one queue per stage": ALONE,
    "stage weights (res2..res5)=(0,0,0,1)": ALONE | {"weights": (0.0, 0.0, 0.0, 1.0)},
    "stage weights (res2..res5)=(1,1,1,1)": ALONE | {"weights": (1.0, 1.0, 1.0, 1.0)},
    "stage weights (res2..res5)=(1,1,1,1)+Norm": ALONE
    | {"weights": (1.0, 1.0, 1.0, 1.0), "normalise_weights": True},
    "stage weights (res2..res5)=(0.1,0.4,0.7,1)": ALONE,
    "stage weights (res2..res5)=(0.1,0.4,0.7,1)+Norm": ALONE | {"normalise_weights": True},
}
RESIM: Mapping[str, dict[str, Any]] = {
    "W48-S16": {"windows": (Windows(level="c4", size=48, stride=16),)},
    "W48-S32": {"windows": (Windows(level="c4", size=48, stride=32),)},
    "W64-S48": {"windows": (Windows(level="c4", size=64, stride=48),)},
    "RoIAlign instead of PrRoIPool (W48-S32)": {"pool": "align"},
}
JITTER: Mapping[str, dict[str, Any]] = {
    "none": {},
    "10%": {"jitter": 0.1},
    "20%": {"jitter": 0.2},
    "\u221e": {"matched": False},
}


def _published(name: str) -> Recipe:
    return {recipe.__name__: recipe for recipe in pretrain.PUBLISHED}[name]()


def _changed(recipe: Recipe, **settings: Any) -> Recipe:
    """With other settings of the method, and DetCo without its patches' views where it has none."""
    method: Any = replace(recipe.method, **settings)  # type: ignore[type-var]
    whole = isinstance(method, detco.Config) and not method.patches
    return replace(recipe, method=method, views=recipe.views[:2] if whole else recipe.views)


def _on_100(recipe: Recipe) -> str:
    """The name of a run on 100 classes of ImageNet."""
    return recipe.name.replace("_r50_", "_r50_in100_")


def _parts(row: Row) -> str:
    return "c4" if row.backbone == "R50-C4" else "fpn"


def _words(variant: str) -> str:
    """A variant as a part of a name; points stay inside numbers alone."""
    plain = variant.lower().replace("\u221e", "infinite")
    return re.sub(r"(?:[^a-z0-9.]|(?<!\d)\.|\.(?!\d))+", "_", plain).strip("_")


def _epochs(row: Row) -> int:
    assert row.pretrain_epochs is not None
    return row.pretrain_epochs
