"""`boxwise finetune`: labelled images and weights in, a detector and its COCO figures out."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from boxwise.data.splits import labelled_splits
from boxwise.data.targets import choose
from boxwise.data.training_set import needed, training_set
from boxwise.engine.device import leads
from boxwise.interop.files import Weights, load_weights
from boxwise.recipes.recipe import TransferRecipe
from boxwise.run.detector_run import run_transfer
from boxwise.run.find import say, transfer_recipe
from boxwise.run.fit import fitted_length, taken_over
from boxwise.run.overfit import few, quick, verdict
from boxwise.strict import SettingsError, plain


def finetune(
    recipe: str,
    data: str | Path,
    out: str | Path,
    *,
    weights: str | Path | None = None,
    images: Path | None = None,
    val: Path | None = None,
    labels: float | int | None = None,
    overfit: int | None = None,
    config: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_drift: bool = False,
    dry_run: bool = False,
) -> Path:
    """Trains the detector `recipe` on labelled `data` and measures it on the validation split; returns `out`.

    `labels` is a share of the training images (a float) or a count (an int), and stands above the recipe's. With
    `weights`, the shape of the backbone and FPN and the pixel statistics come from the weights; a setting that
    contradicts them is an error.
    `overfit` is a self-test: so many images are trained on and measured on; raises CannotLearn below its bar.
    """
    if labels is not None and overfit is not None:
        raise ValueError("--labels and --overfit: choose one")
    settings = dict(settings or {}) | ({} if labels is None else {"data.labels": labels})
    found = transfer_recipe(recipe, config=config, settings=settings)
    given = found.given
    resolved = found.recipe
    pretrained = None if weights is None else load_weights(weights).only(resolved.weights.parts)
    if pretrained is not None:
        resolved = adopted(resolved, pretrained, given)
    if impossible := list(resolved.detector.problems(pretrained=pretrained is not None)):
        raise SettingsError(impossible)
    learning: list[str] = []
    if overfit is None:
        train, test = labelled_splits(
            data, images=images, val=val, max_value=resolved.data.max_value, extras=fields(resolved)
        )
        train = training_set(choose(train, resolved.data.labels, seed=resolved.run.seed), resolved.data)
    else:
        train = test = few(data, overfit, resolved, images=images, extras=fields(resolved))
        resolved, learning = quick(resolved, given=given)
    changes = [*found.changes, *learning]
    if found.fitted or overfit is not None:
        resolved, fits = fitted_length(resolved, images=len(train), given=given)
        changes += fits
    say(resolved, changes, source=found.source if dry_run else None)
    if dry_run:
        return Path(out)
    done = run_transfer(
        resolved,
        train,
        test,
        Path(out),
        origin=found.source,
        weights=pretrained,
        resume=resume,
        overwrite=overwrite,
        allow_drift=allow_drift,
    )
    if overfit is not None and leads():
        print(verdict(done, resolved, train), file=sys.stderr)
    return done


def fields(recipe: TransferRecipe) -> tuple[str, ...]:
    """What a recipe reads of annotations beside boxes and categories."""
    return tuple(dict.fromkeys((*recipe.detector.extras(), *needed(recipe.data))))


def adopted(recipe: TransferRecipe, weights: Weights, given: Collection[str]) -> TransferRecipe:
    """`recipe` with the backbone and FPN that `weights` were trained with.

    Raises SettingsError where a setting in `given` contradicts the weights.
    """
    encoder = weights.config.get("encoder", {})
    theirs = {key: encoder[key] for key in ("backbone", "fpn_channels", "fpn_norm") if key in encoder}
    if not encoder.get("fpn"):
        theirs = {key: theirs[key] for key in theirs if key == "backbone"}
    if weights.partial:
        theirs.pop("fpn_norm", None)  # its other levels are new, with norms or without
    ours = plain(recipe.detector)
    theirs = {key: value for key, value in theirs.items() if key in ours}
    return taken_over(recipe, "detector", theirs, source=weights.source, given=given)
