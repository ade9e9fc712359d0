"""Every value of the published runs of pretraining, written down once more.

From the papers and their official code, by way of nothing in `recipes`: a default that moves moves here as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from boxwise.recipes import pretrain
from boxwise.recipes.recipe import Recipe
from boxwise.recipes.tables import derived
from boxwise.strict import plain

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
MOCO_PHOTO = IMAGENET | {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "jitter": 0.8,
    "gray": 0.2,
    "blur": 0.5,
    "blur_kind": "pil",
    "sigma": (0.1, 2.0),
    "solarize": 0.0,
    "order": ("jitter", "gray", "blur", "solarize"),
}
BYOL_PHOTO = MOCO_PHOTO | {"saturation": 0.2, "blur_kind": "gauss23"}
CROP: dict[str, Any] = {
    "size": 224,
    "scale": (0.2, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "interpolation": "bilinear",
    "flip": 0.5,
    "whole": False,
    "like": None,
    "flip_like": None,
}
BICUBIC = CROP | {"interpolation": "bicubic"}
MOCO_VIEW = {"crop": CROP, "photo": MOCO_PHOTO, "paste": None, "auto_augment": False}
SGD = {
    "name": "sgd",
    "lr_batch": 256,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "decay_1d": True,
    "decay_norms": True,
}
LARS = {"name": "lars", "lr_batch": 256, "momentum": 0.9, "trust": 0.001, "eps": 1e-8}
PER_EPOCH = {"kind": "cosine", "per": "epoch", "warmup_epochs": 0.0, "warmup_steps": 0, "final_lr": 0.0}
PER_STEP = {"kind": "cosine", "per": "step", "warmup_epochs": 10.0, "warmup_from": 0.0, "final_lr": 0.0}


def asymmetric(crop: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Always blurred; seldom blurred, sometimes solarised."""
    return [
        {"crop": crop, "photo": BYOL_PHOTO | {"blur": 1.0, "solarize": 0.0}},
        {"crop": crop, "photo": BYOL_PHOTO | {"blur": 0.1, "solarize": 0.2}},
    ]


def pasted(ratio: float) -> dict[str, Any]:
    crop = CROP | {"size": 256, "ratio": (1 / ratio, ratio)}
    paste = {"paste_size": "frame", "augment": "composite", "backgrounds": "apart"}
    return {"crop": crop, "photo": MOCO_PHOTO, "paste": paste, "auto_augment": False}


MOCO = {"width": 128, "hidden": 2048, "queue": 65_536, "temperature": 0.2, "momentum": 0.999}
HEAD = {"width": 256, "hidden": 4096, "last_bias": False}
R50 = {"backbone": "resnet50", "fpn": False, "c4": False, "zero_init_last": False}
BYOL = {"encoder": R50 | {"zero_init_last": True}, "views": asymmetric(BICUBIC | {"scale": (0.08, 1.0)})}
SCRL = {"encoder": R50, "views": asymmetric(BICUBIC), "schedule": PER_STEP | {"epochs": 200.0, "early": True}}
SOCO_PHOTO = MOCO_PHOTO | {"saturation": 0.2}
SOCO_CROP = CROP | {"scale": (0.5, 1.0)}
SOCO_SCHEDULE = {
    "kind": "cosine",
    "per": "step",
    "warmup_epochs": 10.0,
    "warmup_steps": 0,
    "warmup_from": 0.01,
    "final_lr": 1e-6,
    "early": False,
}


def blurred(crop: Mapping[str, Any]) -> dict[str, Any]:
    """SoCo's first view."""
    return socos(crop | {"whole": True}, blur=1.0, solarize=0.0)


def seldom(crop: Mapping[str, Any]) -> dict[str, Any]:
    """SoCo's other views."""
    return socos(crop, blur=0.1, solarize=0.2)


def socos(crop: Mapping[str, Any], **photo: float) -> dict[str, Any]:
    view = {"paste": None, "auto_augment": False, "cutout": {"share": 0.0}}
    return view | {"crop": crop, "photo": SOCO_PHOTO | photo}


SOCO_OBJECTS = {
    "count": 4,
    "proposals": "selective-search",
    "jitter": 0.5,
    "jitter_amount": 0.1,
    "jitter_anchor": "corner",
    "jitter_shared": False,
    "min_visible": 0.0,
    "attempts": 5,
}
SOCO_THREE = [blurred(CROP), seldom(SOCO_CROP), seldom(SOCO_CROP | {"size": 112, "like": 1})]
SOCO_STAR = [
    blurred(CROP),
    seldom(SOCO_CROP),
    seldom(SOCO_CROP | {"size": 192}),
    seldom(SOCO_CROP | {"size": 112, "like": 1}),
]
SOCO_TWO = [blurred(CROP), seldom(CROP | {"scale": (0.6, 1.0)})]
SOCO = {
    "method": {
        "name": "soco",
        "objects": SOCO_OBJECTS,
        "levels": ("p2", "p3", "p4", "p5"),
        "limits": (48.0, 96.0, 192.0),
        "scale_aware": True,
        "statistics": "exact",
        "pool_size": 7,
        "box_head": True,
        "count_repeats": True,
        "width": 256,
        "hidden": 4096,
        "whitened": False,
        "momentum": 0.99,
    },
    "encoder": R50
    | {
        "fpn": True,
        "fpn_norm": "bn",
        "fpn_channels": 256,
        "fpn_levels": ("p2", "p3", "p4", "p5"),
        "fpn_init": "kaiming",
        "zero_init_last": True,
    },
    "views": SOCO_THREE,
    "optim": LARS | {"lr": 1.0, "weight_decay": 1e-5, "norm": "joint"},
    "run": {"batch_size": 2048, "precision": "auto", "accumulate": 1, "clip_norm": None},
}
SOCO_C4 = SOCO | {
    "method": SOCO["method"]
    | {"levels": ("c4",), "limits": (), "pool_size": 14, "objects": SOCO_OBJECTS | {"jitter": 0.0}},
    "encoder": R50 | {"c4": True, "zero_init_last": True},
    "views": SOCO_TWO,
}
DETCO_LOCAL = MOCO_VIEW | {"crop": CROP | {"size": 255, "scale": (0.6, 1.0)}}
DETCO_VIEWS = [MOCO_VIEW, MOCO_VIEW, DETCO_LOCAL, DETCO_LOCAL]
DETCO = {
    "method": MOCO
    | {
        "name": "detco",
        "stages": ("c2", "c3", "c4", "c5"),
        "weights": (0.1, 0.4, 0.7, 1.0),
        "normalise_weights": False,
        "patches": True,
        "global_local": True,
        "symmetric_gl": False,
        "patch": (64, 85),
        "shuffle_patches": True,
        "queues": "stage",
    },
    "encoder": R50,
    "views": DETCO_VIEWS,
    "optim": SGD | {"lr": 0.06, "nesterov": False},
    "run": {"batch_size": 256, "precision": "auto", "accumulate": 1, "clip_norm": None},
}
DETCO_AA = DETCO | {"views": [view | {"auto_augment": True} for view in DETCO_VIEWS]}
RESIM_PHOTO = MOCO_PHOTO | {"order": ("blur", "jitter", "gray")}
RESIM_VIEWS = [MOCO_VIEW | {"photo": RESIM_PHOTO, "crop": CROP | {"flip_like": like}} for like in (None, 0)]
RESIM_C4 = [{"level": "c4", "size": 48, "stride": 32, "negatives": "all"}]
RESIM_P4_P3 = [
    {"level": "p4", "size": 48, "stride": 32, "negatives": "all"},
    {"level": "p3", "size": 32, "stride": 24, "negatives": "group"},
]
RESIM_FPN = R50 | {"fpn": True, "fpn_norm": "none", "fpn_channels": 256, "fpn_levels": ("p3", "p4")}
RESIM = {
    "method": MOCO
    | {
        "name": "resim",
        "windows": RESIM_P4_P3,
        "pool": "precise",
        "region_proj": False,
        "mask_self_overlap": False,
    },
    "encoder": RESIM_FPN,
    "views": RESIM_VIEWS,
    "optim": SGD | {"lr": 0.03, "nesterov": False},
    "run": {"batch_size": 256, "precision": "fp32", "accumulate": 1, "clip_norm": None},
}
RESIM_ON_C4 = RESIM | {
    "method": RESIM["method"] | {"windows": RESIM_C4, "region_proj": True, "region_width": 128},
    "encoder": R50,
}
IN_100 = {"queue": 16_384}
RESIM_SIMSIAM = {
    "method": {"name": "resim_simsiam", "windows": RESIM_C4, "pool": "precise", "width": 2048, "hidden": 512},
    "encoder": R50 | {"zero_init_last": True},
    "views": RESIM_VIEWS,
    "optim": SGD | {"lr": 0.10, "nesterov": False},
    "schedule": PER_EPOCH | {"epochs": 500.0, "early": False},
    "run": RESIM["run"],
}


def lasting(stated: Mapping[str, Any], schedule: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    return {**stated, "schedule": {**schedule, "epochs": float(epochs)}}


STATED: dict[str, dict[str, Any]] = {
    "mocov2_r50_200ep": {
        "method": MOCO,
        "encoder": R50,
        "views": [MOCO_VIEW] * 2,
        "optim": SGD | {"lr": 0.03, "nesterov": False},
        "schedule": PER_EPOCH | {"epochs": 200.0, "early": False},
        "run": {"batch_size": 256, "precision": "fp32", "clip_norm": None, "accumulate": 1},
    },
    "mocov2_r50_800ep": {"method": MOCO, "schedule": PER_EPOCH | {"epochs": 800.0}},
    "byol_r50_300ep": BYOL
    | {
        "method": HEAD | {"momentum": 0.99, "joint": False},
        "optim": LARS | {"lr": 0.3, "weight_decay": 1e-6, "norm": "joint"},
        "schedule": PER_STEP | {"epochs": 300.0, "early": False},
        "run": {"batch_size": 4096},
    },
    "byol_r50_1000ep": BYOL
    | {
        "method": HEAD | {"momentum": 0.996, "joint": False},
        "optim": LARS | {"lr": 0.2, "weight_decay": 1.5e-6, "norm": "joint"},
        "schedule": PER_STEP | {"epochs": 1000.0, "early": False},
    },
    "simsiam_r50_200ep": {
        "method": {"width": 2048, "hidden": 512},
        "encoder": R50 | {"zero_init_last": True},
        "views": [MOCO_VIEW] * 2,
        "optim": SGD | {"lr": 0.05, "nesterov": False},
        "schedule": PER_EPOCH | {"epochs": 200.0},
        "run": {"batch_size": 512, "precision": "fp32"},
    },
    "simsiam_r50_in100_500ep": {
        "encoder": R50 | {"zero_init_last": True},
        "optim": SGD | {"lr": 0.10},
        "schedule": PER_EPOCH | {"epochs": 500.0},
        "run": {"batch_size": 256},
    },
    "scrl_r50_200ep": SCRL
    | {
        "method": HEAD
        | {"momentum": 0.97, "boxes": 10, "min_box": 32, "generator": "grid", "max_iou": 0.5, "tries": 50},
        "optim": LARS | {"lr": 0.45, "weight_decay": 1e-6, "norm": "sum"},
        "run": {"batch_size": 8192},
    },
    "scrl_r50_1000ep": SCRL
    | {
        "method": HEAD | {"momentum": 0.996, "boxes": 10, "min_box": 32, "generator": "grid"},
        "optim": LARS | {"lr": 0.2, "weight_decay": 1.5e-6, "norm": "sum"},
        "schedule": SCRL["schedule"] | {"epochs": 1000.0},
        "run": {"batch_size": 8192},
    },
    "scrl_r101_200ep": SCRL
    | {
        "encoder": R50 | {"backbone": "resnet101"},
        "method": HEAD | {"momentum": 0.97},
        "optim": LARS | {"lr": 0.45, "weight_decay": 1e-6, "norm": "sum"},
        "run": {"batch_size": 8192},
    },
    "byol_as_in_scrl_r50_200ep": SCRL
    | {
        "method": HEAD | {"momentum": 0.97, "joint": True},
        "optim": LARS | {"lr": 0.45, "weight_decay": 1e-6, "norm": "sum"},
        "run": {"batch_size": 8192},
    },
    "insloc_r50_fpn_200ep": {
        "method": {
            "levels": ("p2", "p3", "p4", "p5"),
            "augmented": (False, False, False, True),
            "apart": True,
            "pool_size": 7,
            "width": 128,
            "hidden": 1024,
            "queue": 65_536,
            "temperature": 0.2,
            "momentum": 0.999,
        },
        "encoder": R50 | {"fpn": True, "fpn_init": "xavier", "fpn_norm": "bn", "fpn_channels": 256},
        "views": [pasted(2)] * 2,
        "optim": SGD | {"lr": 0.03, "nesterov": True},
        "schedule": PER_EPOCH | {"epochs": 200.0},
        "run": {"batch_size": 256, "precision": "fp32"},
    },
    "insloc_r50_c4_200ep": {
        "method": MOCO | {"levels": ("c4",), "augmented": (True,), "apart": True, "pool_size": 14},
        "encoder": R50 | {"c4": True},
        "views": [pasted(3)] * 2,
        "optim": SGD | {"lr": 0.03, "nesterov": True},
    },
    "insloc_r50_fpn_400ep": {"views": [pasted(2)] * 2, "schedule": PER_EPOCH | {"epochs": 400.0}},
    "insloc_r50_c4_400ep": {"views": [pasted(3)] * 2, "schedule": PER_EPOCH | {"epochs": 400.0}},
    "soco_r50_fpn_100ep": lasting(SOCO, SOCO_SCHEDULE, 100),
    "soco_r50_fpn_400ep": lasting(SOCO, SOCO_SCHEDULE, 400),
    "soco_star_r50_fpn_400ep": lasting(SOCO | {"views": SOCO_STAR}, SOCO_SCHEDULE, 400),
    "soco_r50_c4_100ep": lasting(SOCO_C4, SOCO_SCHEDULE, 100),
    "soco_r50_c4_400ep": lasting(SOCO_C4, SOCO_SCHEDULE, 400),
    **{f"detco_r50_{n}ep": lasting(DETCO, PER_EPOCH, n) for n in (100, 200, 800)},
    **{f"detco_r50_{n}ep_aa": lasting(DETCO_AA, PER_EPOCH, n) for n in (100, 200, 800)},
    "resim_r50_c4_200ep": lasting(RESIM_ON_C4, PER_EPOCH, 200),
    "resim_r50_fpn_200ep": lasting(RESIM, PER_EPOCH, 200),
    "resim_r50_fpn_400ep": lasting(RESIM, PER_EPOCH, 400),
    "resim_r50_c4_in100_500ep": lasting(
        RESIM_ON_C4 | {"method": RESIM_ON_C4["method"] | IN_100}, PER_EPOCH, 500
    ),
    "resim_r50_fpn_in100_500ep": lasting(RESIM | {"method": RESIM["method"] | IN_100}, PER_EPOCH, 500),
    "resim_simsiam_r50_c4_in100_500ep": RESIM_SIMSIAM,
    "resim_simsiam_r50_fpn_in100_500ep": RESIM_SIMSIAM
    | {
        "method": RESIM_SIMSIAM["method"] | {"windows": RESIM_P4_P3},
        "encoder": RESIM_FPN | {"zero_init_last": True},
    },
}
"""What is stated of each; what is not named here is no fact of the run."""
RUNS = {f.__name__: f() for f in pretrain.PUBLISHED} | {
    name: recipe for name, (_, recipe) in derived().items()
}


def assert_holds(has: Any, stated: Any, at: str) -> None:
    """Whether every stated value is there; lists are as long as stated."""
    if isinstance(stated, Mapping):
        for key, value in stated.items():
            assert_holds(has[key], value, f"{at}.{key}")
    elif isinstance(stated, list | tuple):
        assert len(has) == len(stated), at
        for i, value in enumerate(stated):
            assert_holds(has[i], value, f"{at}.{i}")
    else:
        assert has == stated, f"{at}: {has!r}, stated {stated!r}"


@pytest.mark.parametrize("name", STATED)
def test_a_published_run_is_as_stated(name: str) -> None:
    """Breaks when a default of views, heads, optimiser or schedule moves from what paper and code state."""
    assert_holds(plain(RUNS[name]), STATED[name], name)


def test_every_published_run_is_stated() -> None:
    """Breaks when a run is added whose values nobody has written down."""
    assert {f.__name__ for f in pretrain.PUBLISHED} <= STATED.keys()


@pytest.mark.parametrize("made", pretrain.PUBLISHED, ids=lambda f: f.__name__)
def test_trap_24_pixels_are_red_first_and_divided_by_their_spread(made: Callable[[], Recipe]) -> None:
    """Breaks when a run sees blue first, or a std of 1, as supervised weights of Caffe's time do."""
    for view in made().views:
        assert [255 * m for m in view.photo.mean] == pytest.approx([123.675, 116.28, 103.53])
        assert [255 * s for s in view.photo.std] == pytest.approx([58.395, 57.12, 57.375])
