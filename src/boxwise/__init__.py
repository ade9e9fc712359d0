"""Self-supervised pretraining aligned with object detection.

    import boxwise
    weights = boxwise.pretrain("scrl", "photos/", "runs/scrl")
    boxwise.finetune("faster_rcnn_fpn", "coco/", "runs/det", weights=weights)

Names are imported on first use, so that `import boxwise` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boxwise.recipes.recipe import ProbeRecipe, Recipe, TransferRecipe
    from boxwise.run.compare import compare
    from boxwise.run.encoder import load_encoder
    from boxwise.run.evaluate import evaluate
    from boxwise.run.finetune import finetune
    from boxwise.run.predict import predict
    from boxwise.run.pretrain import pretrain
    from boxwise.run.probe import probe
    from boxwise.run.show import show

__all__ = [
    "ProbeRecipe",
    "Recipe",
    "TransferRecipe",
    "compare",
    "evaluate",
    "finetune",
    "load_encoder",
    "predict",
    "pretrain",
    "probe",
    "show",
]

_HOMES = {
    "ProbeRecipe": "boxwise.recipes.recipe",
    "Recipe": "boxwise.recipes.recipe",
    "TransferRecipe": "boxwise.recipes.recipe",
    "compare": "boxwise.run.compare",
    "evaluate": "boxwise.run.evaluate",
    "finetune": "boxwise.run.finetune",
    "load_encoder": "boxwise.run.encoder",
    "predict": "boxwise.run.predict",
    "pretrain": "boxwise.run.pretrain",
    "probe": "boxwise.run.probe",
    "show": "boxwise.run.show",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'boxwise' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
