"""`boxwise probe`: frozen features and questions in, how often what stands on them answers right out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from boxwise.interop.files import Weights, load_weights
from boxwise.recipes.recipe import LinearProbeRecipe, ProbeRecipe, SVMRecipe
from boxwise.run.find import probe_recipe, say
from boxwise.run.fit import fitted_length, taken_over
from boxwise.run.linear_probe import run_linear
from boxwise.run.svm_probe import run_svm
from boxwise.transfer.probes.base import Place


def probe(
    recipe: str,
    data: str | Path,
    out: str | Path,
    *,
    weights: str | Path | None = None,
    images: Path | None = None,
    val: Path | None = None,
    labels: float | int | None = None,
    config: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_drift: bool = False,
    dry_run: bool = False,
) -> Path:
    """Asks the frozen backbone of `weights` what `recipe` asks, on the images of `data`; returns `out`.

    Without `weights` the backbone is random. `labels` is a share of the images to train on (a float) or a count (an
    int), and stands above the recipe's. Raises ValueError (SettingsError for the recipe) with the mend before
    anything is written.
    """
    settings = dict(settings or {}) | ({} if labels is None else {"data.labels": labels})
    found = probe_recipe(recipe, config=config, settings=settings)
    pretrained = None if weights is None else load_weights(weights).only(("backbone",))
    resolved = found.recipe if pretrained is None else _adopted(found.recipe, pretrained, given=found.given)
    place = Place(data, images, val)
    if isinstance(resolved, SVMRecipe):
        say(resolved, found.changes, source=found.source if dry_run else None)
        if not dry_run:
            run_svm(
                resolved,
                place,
                Path(out),
                origin=found.source,
                weights=pretrained,
                resume=resume,
                overwrite=overwrite,
                allow_drift=allow_drift,
            )
        return Path(out)
    assert isinstance(resolved, LinearProbeRecipe)
    sides = resolved.probe.open(place, resolved.data, seed=resolved.run.seed)
    changes = [*found.changes]
    if found.fitted:
        resolved, fits = fitted_length(resolved, images=len(sides[0]), given=found.given)
        changes += fits
    say(resolved, changes, source=found.source if dry_run else None)
    if dry_run:
        return Path(out)
    return run_linear(
        resolved,
        sides,
        Path(out),
        origin=found.source,
        weights=pretrained,
        resume=resume,
        overwrite=overwrite,
        allow_drift=allow_drift,
    )


def _adopted(recipe: ProbeRecipe, weights: Weights, *, given: Collection[str]) -> ProbeRecipe:
    """`recipe` with the backbone that `weights` are of, where they say it."""
    encoder = weights.config.get("encoder", {})
    theirs = {"backbone": encoder["backbone"]} if "backbone" in encoder else {}
    return taken_over(recipe, "probe", theirs, source=weights.source, given=given)
