"""`boxwise pretrain`: images without labels in, weights for a detector out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from boxwise.data.loader import Load, feed
from boxwise.data.objects import Proposer
from boxwise.data.sources import Files, Images, open_images
from boxwise.engine.device import device_of, leads
from boxwise.engine.folder import RunFolder
from boxwise.engine.health import health
from boxwise.engine.loop import fit
from boxwise.geometry.views import Batch
from boxwise.interop.files import Weights, load_weights, save_weights
from boxwise.methods.base import Method
from boxwise.methods.beside import Beside
from boxwise.nn.encoder import build_encoder
from boxwise.recipes.recipe import Recipe
from boxwise.run.bad_images import BadImages
from boxwise.run.beside import ClassedSides, classed, classifier, measure
from boxwise.run.draw import write_picture
from boxwise.run.find import pretrain_recipe, saved, say
from boxwise.run.fit import as_started, fitted
from boxwise.run.memory import check_memory, room
from boxwise.run.objects import identity, run_proposals
from boxwise.run.show import picture
from boxwise.strict import dump_yaml, plain


class Pretraining:
    """A method as the engine's task, with the classifier beside it where there is one."""

    def __init__(self, method: Method, beside: Beside | None = None) -> None:
        self.method, self.module = method, method if beside is None else beside

    def prepare(self, load: Load, device: torch.device) -> Batch:
        return load.ready(device)

    def images(self, load: Load) -> int:
        return len(load.batch.index)

    def after_step(self, step: int, total: int, *, ok: Tensor | None) -> None:
        self.method.after_step(step, total, ok=ok)

    def figures(self) -> dict[str, Tensor]:
        method, watched = self.method, self.method.watched
        seen = {} if watched is None else health(watched.query, watched.key, watched.keep)
        if method.ema_momentum is not None:
            device = next(method.parameters()).device
            seen["train/ema_momentum"] = torch.full((), method.ema_momentum, device=device)
        return seen


def pretrain(
    recipe: str,
    data: str | Path,
    out: str | Path,
    *,
    images: Path | None = None,
    config: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    init: Path | None = None,
    proposals: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_drift: bool = False,
    dry_run: bool = False,
) -> Path:
    """Pretrains `recipe` on the images of `data`; returns the folder of the exported weights.

    `settings` are dotted keys of the recipe, as on the command line; `proposals` is a file of boxes, for a method
    that compares such: without it, one is made first. Raises ValueError (SettingsError for the
    recipe) with the mend before anything is written when recipe, images or memory do not allow the run.
    """
    settings = dict(settings or {})
    found = pretrain_recipe(recipe, config=config, settings=settings)
    resolved, sides = found.recipe, None
    if resolved.data.classes:
        sides = classed(resolved, data, images=images)
        source = sides[0].files
    else:
        source = open_images(data, images=images, max_value=resolved.data.max_value)
    changes = [*found.changes]
    if found.fitted:
        started = as_started(resolved, Path(out), given=found.given) if resume else None
        if started is None:
            started, fits = fitted(
                resolved,
                images=len(source),
                room=room(resolved, build(resolved)),
                on_cpu=device_of(resolved.run.device).type == "cpu",
                given=found.given,
            )
            changes += fits
        resolved = started
    say(resolved, changes, source=found.source if dry_run else None)
    if dry_run:
        return Path(out)
    return run_recipe(
        resolved,
        source,
        Path(out),
        origin=found.source,
        sides=sides,
        init=init,
        proposals=proposals,
        resume=resume,
        overwrite=overwrite,
        allow_drift=allow_drift,
    )


def run_recipe(
    recipe: Recipe,
    source: Files,
    out: Path,
    *,
    origin: str,
    sides: ClassedSides | None = None,
    init: Path | None = None,
    proposals: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_drift: bool = False,
) -> Path:
    """Trains a recipe as it stands on `source`; returns `out`/export.

    With `sides`, the first of which is `source` with its classes, a classifier trains beside.
    """
    run, total = recipe.run, recipe.steps(len(source))
    steps_per_epoch = recipe.steps_per_epoch(len(source))
    method = build(recipe)
    weights = None if init is None else load_weights(init)
    if weights is not None:
        _start_from(weights, method)
    check_memory(recipe, method)
    beside = None if sides is None else classifier(method, sides[0])
    proposer = run_proposals(recipe, source, out, proposals)
    with RunFolder.open(
        out,
        kind="pretrain",
        config=dump_yaml(saved(recipe, origin)),
        data={
            "images": len(source),
            "fingerprint": source.fingerprint(),
            "init": None if weights is None else weights.source,
            "init_digest": None if weights is None else weights.digest,
            **identity(proposer),
            **({} if sides is None else {"classes": sides[0].fingerprint()}),
        },
        seed=run.seed,
        resume=resume,
        overwrite=overwrite,
        allow_drift=allow_drift,
    ) as folder:
        if not resume and (note := rises(recipe)) is not None:
            folder.tell(note)
        bad = BadImages(folder, source)
        figure = folder.path / "figures" / "views.png"
        if folder.writes and not figure.exists():
            write_picture(
                picture(recipe, method, source, count=min(4, len(source)), proposals=proposer), figure
            )
        done = fit(
            Pretraining(method, beside),
            _loads(recipe, source, total, bad, proposer),
            optimiser=recipe.optim,
            schedule=recipe.schedule,
            run=run,
            steps_per_epoch=steps_per_epoch,
            total=total,
            folder=folder,
            resume=resume,
            constant_lr=method.constant_lr,
            sync_norm=method.sync_norm,
            compiled=[method.student.encoder],
        )
        bad.close()
        if not folder.writes:
            return folder.path / "export"
        exported = save_weights(folder.path / "export", method.handed_over(), card(recipe))
        if beside is not None and sides is not None:
            measure(beside, sides[1], recipe, folder, seconds=done.seconds)
        return exported


def _start_from(weights: Weights, method: Method) -> None:
    """Fills what `method` trains and `weights` hold. Raises WeightsError where some of it did not arrive."""
    modules = method.handed_over()
    report = weights.into(modules)
    if leads():
        print(report, file=sys.stderr)
    report.require(["backbone", *(part for part in weights.parts if part in modules and part != "backbone")])
    method.begin()


def build(recipe: Recipe) -> Method:
    """The recipe's method with weights that its seed decides."""
    torch.manual_seed(recipe.run.seed)
    return recipe.method.build(build_encoder(recipe.encoder))


def rises(recipe: Recipe) -> str | None:
    """What of a healthy run looks like a fault: a loss against a queue rises while real keys replace random ones."""
    keys = plain(recipe.method).get("queue")
    if not keys:
        return None
    full = -(-keys // recipe.run.batch_size)
    return (
        f"the queue of {keys} keys starts random and fills in the first {full} steps: the loss rises in them"
    )


def card(recipe: Recipe) -> dict[str, Any]:
    """What a detector must know of the weights, beside the weights."""
    photo = recipe.views[0].photo
    return {
        "encoder": plain(recipe.encoder),
        "mean": list(photo.mean),
        "std": list(photo.std),
        "channels": "RGB",
        "input_size": recipe.views[0].crop.size,
        "method": recipe.method.name,
        "recipe": recipe.name,
    }


def _loads(
    recipe: Recipe, source: Images, total: int, bad: BadImages, proposer: Proposer | None
) -> Callable[[int], Iterable[Load]]:
    """Batches of this rank from any step on."""
    run = recipe.run

    def loads(start: int) -> Iterable[Load]:
        met = dist.is_initialized()
        world = dist.get_world_size() if met else 1
        made = feed(
            source,
            recipe.views,
            recipe.method.draws(),
            batch_size=run.batch_size,
            accumulate=run.accumulate,
            seed=run.seed,
            start=start,
            total=total,
            rank=dist.get_rank() if met else 0,
            world=world,
            workers=recipe.data.workers,
            bad_images=recipe.data.bad_images or "skip",
            pin=device_of(run.device).type == "cuda",
            objects=recipe.method.objects,
            proposals=proposer,
        )
        return bad.watch(made)

    return loads
