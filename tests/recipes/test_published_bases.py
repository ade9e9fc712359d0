"""Every value of the published runs of MoCo-v2, BYOL, SimSiam, SCRL and InsLoc, written down once more.

From the papers and their official code, by way of nothing in `recipes`: a default that moves moves here as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from boxwise.recipes import insloc, pretrain, resim
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
    "resim_simsiam_r50_c4_in100_500ep": {
        "encoder": R50 | {"zero_init_last": True},
        "optim": SGD | {"lr": 0.10, "nesterov": False},
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
}
"""What is stated of each; what is not named here is no fact of the run."""
RUNS = {f.__name__: f() for f in (*pretrain.PUBLISHED, *insloc.PUBLISHED, *resim.PUBLISHED)} | {
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
