"""A run of a linear probe: one layer trained on frozen features, measured, and its figures kept."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from boxwise.data.loader import Each, Policy
from boxwise.engine.device import device_of
from boxwise.engine.folder import RunFolder
from boxwise.engine.loop import fit
from boxwise.interop.files import Weights, pixels
from boxwise.recipes.recipe import LinearProbeRecipe
from boxwise.run.bad_images import BadImages
from boxwise.run.find import saved
from boxwise.run.probe_folder import keep_results, still_batches
from boxwise.run.records import facts, filled, listed
from boxwise.run.stream import stream
from boxwise.strict import dump_yaml
from boxwise.transfer.evaluate import precision_of
from boxwise.transfer.probes.accuracy import accuracy
from boxwise.transfer.probes.base import Probing, Sides
from boxwise.transfer.probes.looks import TrainLooks, collate


def run_linear(
    recipe: LinearProbeRecipe,
    sides: Sides,
    out: Path,
    *,
    origin: str,
    weights: Weights | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_drift: bool = False,
) -> Path:
    """Trains the layer of a recipe as it stands, measures it with its last weights, and returns `out`."""
    run, (train, test) = recipe.run, sides
    torch.manual_seed(run.seed)
    mean, std = pixels(weights)
    probe = recipe.probe.build(classes=len(train.classes), mean=mean, std=std)
    matched = filled({"backbone": probe.reader.backbone()}, weights)
    probe.begin()
    with RunFolder.open(
        out,
        kind="probe",
        config=dump_yaml(saved(recipe, origin)),
        data=facts(train, test, weights),
        seed=run.seed,
        resume=resume,
        overwrite=overwrite,
        allow_drift=allow_drift,
    ) as folder:
        folder.write("trained_on.txt", listed(train))
        folder.write("match.txt", matched)
        bad, total = BadImages(folder, train), recipe.steps(len(train))
        bad_images = recipe.data.bad_images or ("error" if recipe.probe.labelled else "skip")
        policy = Policy(bad_images, len(train), run.seed)
        looks = TrainLooks(train, recipe.probe.crop, run.seed)
        done = fit(
            Probing(probe),
            stream(Each(looks.sample, collate, policy), recipe, bad, count=len(train), total=total),
            optimiser=recipe.optim,
            schedule=recipe.schedule,
            run=run,
            steps_per_epoch=recipe.steps_per_epoch(len(train)),
            total=total,
            folder=folder,
            resume=resume,
            sync_norm=recipe.probe.statistics == "tracked",
            compiled=[probe.reader.encoder],
        )
        bad.close()
        if folder.writes:
            began, device = time.perf_counter(), device_of(run.device)
            batches = still_batches(
                test,
                recipe.probe.still,
                run.batch_size,
                device,
                folder,
                bad_images=bad_images,
                workers=recipe.data.workers,
            )
            figures = accuracy(probe, batches, device=device, precision=precision_of(run.precision, device))
            keep_results(folder.path, figures, seconds=done.seconds + time.perf_counter() - began)
    return out
