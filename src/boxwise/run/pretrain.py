"""`boxwise pretrain`: images without labels in, weights for a detector out."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boxwise.data.loader import Load, feed
from boxwise.data.sources import Images, open_images
from boxwise.engine.folder import RunFolder
from boxwise.engine.health import health
from boxwise.engine.loop import device_of, dtype_of, fit
from boxwise.geometry.views import Batch
from boxwise.interop.files import load_weights, save_weights
from boxwise.methods.base import Method
from boxwise.nn.encoder import build_encoder
from boxwise.recipes.recipe import Recipe
from boxwise.run.find import Found, pretrain_recipe, saved
from boxwise.run.fit import fitted, given_keys, scaled_rate
from boxwise.run.memory import blank_batch, fixed, free_memory, largest_batch
from boxwise.run.show import picture, write_picture
from boxwise.strict import dump_yaml, plain


class Pretraining:
    """A method as the engine's task."""

    def __init__(self, method: Method, recipe: Recipe) -> None:
        self.module, self.recipe = method, recipe

    def prepare(self, load: Load, device: torch.device) -> Batch:
        return load.ready(device)

    def images(self, load: Load) -> int:
        return len(load.batch.index)

    def after_step(self, step: int, total: int, *, ok: Tensor | None) -> None:
        self.module.after_step(step, total, ok=ok)

    def figures(self) -> dict[str, Tensor]:
        seen = self.module.watched
        return {} if seen is None else health(seen.query, seen.key, seen.keep)


def pretrain(
    recipe: str,
    data: str | Path,
    out: str | Path,
    *,
    images: Path | None = None,
    config: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    init: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_drift: bool = False,
    dry_run: bool = False,
) -> Path:
    """Pretrains `recipe` on the images of `data`; returns the folder of the exported weights.

    `settings` are dotted keys of the recipe, as on the command line. Raises ValueError (SettingsError for the
    recipe) with the mend before anything is written when recipe, images or memory do not allow the run.
    """
    found = pretrain_recipe(recipe, config=config, settings=settings)
    source = open_images(data, images=images, max_value=found.recipe.data.max_value)
    resolved, changes = _resolved(found, source, settings or {})
    for line in [*changes, scaled_rate(resolved)]:
        print(f"  {line}", file=sys.stderr)
    if dry_run:
        print(dump_yaml(saved(resolved, found.source)))
        return Path(out)
    return run_recipe(
        resolved,
        source,
        Path(out),
        origin=found.source,
        init=init,
        resume=resume,
        overwrite=overwrite,
        allow_drift=allow_drift,
    )
