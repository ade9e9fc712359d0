"""A run of a detector: trained as its recipe says, measured, and kept with all it takes to build it again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from boxwise.data.loader import Each, Policy, Sampler
from boxwise.data.targets import Labelled
from boxwise.data.training_set import Repeated, repeat_factors, training_set
from boxwise.engine.atomic import write_text
from boxwise.engine.device import device_of
from boxwise.engine.folder import RunFolder
from boxwise.engine.loop import fit
from boxwise.interop.files import Weights, pixels, write_state
from boxwise.recipes.recipe import TransferRecipe
from boxwise.run.bad_images import BadImages
from boxwise.run.draw import detections_sheet, write_picture
from boxwise.run.draw_pixels import pixels_sheet
from boxwise.run.find import saved
from boxwise.run.preflight import doubts, preflight, suspects
from boxwise.run.records import facts, filled, listed
from boxwise.run.stream import stream
from boxwise.strict import dump_yaml, plain
from boxwise.transfer.detectors.base import Detector
from boxwise.transfer.evaluate import measurable, measured, precision_of
from boxwise.transfer.readable import check_readable
from boxwise.transfer.samples import DetectionBatch, TrainSamples, collate
from boxwise.transfer.statistics import remeasured
from boxwise.transfer.task import DetectionTask


def run_transfer(
    recipe: TransferRecipe,
    train: Labelled,
    test: Labelled,
    out: Path,
    *,
    origin: str,
    weights: Weights | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_drift: bool = False,
) -> Path:
    """Trains a recipe as it stands, measures it on `test` with its last weights, and returns `out`."""
    run, by_heart = recipe.run, train is test  # a self-test is meant to measure what it trains on
    if not len(train):
        raise ValueError("no labelled image to train on: raise --labels")
    train = training_set(train, recipe.data)
    preflight(train, test, extras=recipe.detector.extras())
    check_readable(train)
    measurable(test, config=recipe.detector, measure=recipe.measure)
    torch.manual_seed(run.seed)
    mean, std = pixels(weights)
    classes = recipe.detector.classes(train)
    detector = recipe.detector.build(classes=len(classes), mean=mean, std=std)
    matched = filled(detector.parts(), weights)
    with RunFolder.open(
        out,
        kind="finetune",
        config=dump_yaml(saved(recipe, origin)),
        data={**facts(train, test, weights), "mean": [*mean], "std": [*std]},
        seed=run.seed,
        resume=resume,
        overwrite=overwrite,
        allow_drift=allow_drift,
    ) as folder:
        folder.write("labelled.txt", listed(train))
        folder.write("match.txt", matched)
        for doubt in () if by_heart else doubts(train, test):
            folder.tell(doubt)
        bad, task, total = BadImages(folder, train), DetectionTask(detector), recipe.steps(len(train))
        done = fit(
            task,
            batches(recipe, train, bad, total=total),
            optimiser=recipe.optim,
            schedule=recipe.schedule,
            run=run,
            steps_per_epoch=recipe.steps_per_epoch(len(train)),
            total=total,
            folder=folder,
            resume=resume,
            sync_norm=recipe.detector.norm == "sync",
        )
        if recipe.measure.precise_bn:
            folder.tell(_precise_norms(task, recipe, train, bad, total=total))
        bad.close()
        if folder.writes:
            _keep(folder.path, detector, recipe, train, mean, std)
            results = measure(folder.path, detector, recipe, test, seconds=done.seconds)
            if nothing := suspects(recipe, train, test, results):
                folder.tell(nothing)
    return out


def _precise_norms(
    task: DetectionTask, recipe: TransferRecipe, train: Labelled, bad: BadImages, *, total: int
) -> str:
    """Measures the statistics of norms anew on the batches that would come next; says how many those were."""
    run, more = recipe.run, recipe.measure.precise_bn
    after = batches(recipe, train, bad, total=total + more)(total)
    precision = precision_of(run.precision, device_of(run.device))
    count = remeasured(task.module, after, seed=run.seed, step=total, precision=precision)
    return f"statistics of {count} norms measured anew on {more} batches"


def batches(
    recipe: TransferRecipe, train: Labelled, bad: BadImages, *, total: int
) -> Callable[[int], Iterable[DetectionBatch]]:
    """Batches of this rank from any step up to `total`."""
    threshold = recipe.data.repeat_threshold
    kind: Callable[..., Sampler] = Sampler
    if threshold is not None:
        kind = partial(Repeated, factors=repeat_factors(train, threshold))
    samples = TrainSamples(train, recipe.detector, recipe.run.seed)
    policy = Policy(recipe.data.bad_images or "error", len(train), recipe.run.seed)
    return stream(
        Each(samples.sample, collate, policy), recipe, bad, count=len(train), total=total, kind=kind
    )


def measure(
    folder: Path, detector: Detector, recipe: TransferRecipe, test: Labelled, *, seconds: float
) -> dict[str, Any]:
    """Writes detections.json, results.json and figures/detections.png; returns the results.

    `seconds` of training, to which the time of the measurement is added.
    """
    began, device = time.perf_counter(), device_of(recipe.run.device)
    found = measured(
        detector,
        test,
        config=recipe.detector,
        measure=recipe.measure,
        batch_size=recipe.run.batch_size,
        device=device,
        precision=precision_of(recipe.run.precision, device),
        workers=recipe.data.workers,
    )
    seconds += time.perf_counter() - began
    results = {**found.figures, "images": len(test), "seconds": round(seconds, 1)}
    write_text(folder / "detections.json", json.dumps(found.results))
    write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
    sheet = (
        pixels_sheet(test, found.pixels) if found.pixels else detections_sheet(test, found.results, count=6)
    )
    write_picture(sheet, folder / "figures" / "detections.png")
    return results


def _keep(
    folder: Path,
    detector: Detector,
    recipe: TransferRecipe,
    train: Labelled,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """The whole detector, under torchvision's names, with all that is needed to build it again."""
    categories = [plain(c) for c in train.categories]
    card = {
        "detector": plain(recipe.detector),
        "measure": plain(recipe.measure),
        "categories": categories,
        "classes": [*recipe.detector.classes(train)],
        "mean": [*mean],
        "std": [*std],
        "precision": "fp32" if recipe.run.precision == "fp16" else recipe.run.precision,
        "channels_last": recipe.run.channels_last,
    }
    write_state(folder / "export", detector.state_dict(), card)
