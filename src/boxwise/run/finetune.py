"""`boxwise finetune`: labelled images and weights in, a detector and its COCO figures out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import distributed as dist

from boxwise.data.loader import Each, Policy, Sampler, load_all
from boxwise.data.targets import Labelled, choose, open_labelled
from boxwise.data.training_set import Repeated, needed, repeat_factors, training_set
from boxwise.engine.atomic import write_text
from boxwise.engine.device import leads
from boxwise.engine.folder import RunFolder
from boxwise.engine.loop import device_of, dtype_of, fit
from boxwise.interop.files import IMAGENET_MEAN, IMAGENET_STD, Weights, load_weights, write_state
from boxwise.recipes.recipe import TransferRecipe
from boxwise.run.bad_images import BadImages
from boxwise.run.draw import detections_sheet, write_picture
from boxwise.run.draw_pixels import pixels_sheet
from boxwise.run.find import saved, say, transfer_recipe
from boxwise.run.fit import fitted_transfer
from boxwise.run.overfit import few, verdict
from boxwise.run.preflight import doubts, preflight, suspects
from boxwise.strict import SettingsError, dump_yaml, plain
from boxwise.transfer.detectors.base import Detector
from boxwise.transfer.evaluate import measured
from boxwise.transfer.samples import DetectionBatch, TrainSamples, collate
from boxwise.transfer.statistics import remeasured
from boxwise.transfer.task import DetectionTask


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
    settings = dict(settings or {})
    found = transfer_recipe(recipe, config=config, settings=settings)
    given = found.given
    resolved = found.recipe if labels is None else found.recipe.changed({"data.labels": labels})
    pretrained = None if weights is None else load_weights(weights).only(resolved.weights.parts)
    if pretrained is not None:
        resolved = adopted(resolved, pretrained, given)
    if impossible := list(resolved.detector.problems(pretrained=pretrained is not None)):
        raise SettingsError(impossible)
    if overfit is None:
        train, test = labelled_splits(
            data, images=images, val=val, max_value=resolved.data.max_value, extras=fields(resolved)
        )
        train = training_set(choose(train, resolved.data.labels, seed=resolved.run.seed), resolved.data)
    else:
        train = test = few(data, overfit, resolved, images=images, extras=fields(resolved))
    changes = [*found.changes]
    if found.fitted or overfit is not None:
        resolved, fits = fitted_transfer(resolved, images=len(train), given=given)
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


def labelled_splits(
    data: str | Path,
    *,
    images: Path | None = None,
    val: Path | None = None,
    max_value: int | None = None,
    extras: Collection[str] = (),
) -> tuple[Labelled, Labelled]:
    """What to train and what to measure on, with one list of categories and the fields `extras` of annotations.

    Raises ValueError for a json without another to measure on: nobody is to take its figures for a test's.
    """
    if val is None and Path(data).suffix.lower() == ".json":
        raise ValueError(
            f"{data}: pass --val FILE.json, images to measure on (the same file, to measure on what it trains on)"
        )
    options: dict[str, Any] = {"images": images, "val": val, "max_value": max_value, "extras": extras}
    train = open_labelled(data, split="train", **options)
    test = open_labelled(data, split="val", **options, categories=train.categories)
    return train, test


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
    wrong = [
        f"detector.{key}: {ours[key]} was asked for, but {weights.source} holds {value}"
        for key, value in theirs.items()
        if f"detector.{key}" in given and ours[key] != value
    ]
    if wrong:
        raise SettingsError(wrong)
    return recipe.changed({"detector": theirs})


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
    torch.manual_seed(run.seed)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if weights is None else (weights.mean, weights.std)
    classes = recipe.detector.classes(train)
    detector = recipe.detector.build(classes=len(classes), mean=mean, std=std)
    report = None
    if weights is not None:
        report = weights.into(detector.parts())
        if leads():
            print(report, file=sys.stderr)
        report.require(part for part in weights.parts if part in detector.parts())
    data = {
        "images": len(train),
        "fingerprint": train.fingerprint(),
        "test_images": len(test),
        "test_fingerprint": test.fingerprint(),
        "weights": None if weights is None else weights.source,
        "mean": [*mean],
        "std": [*std],
    }
    with RunFolder.open(
        out,
        kind="finetune",
        config=dump_yaml(saved(recipe, origin)),
        data=data,
        seed=run.seed,
        resume=resume,
        overwrite=overwrite,
        allow_drift=allow_drift,
    ) as folder:
        folder.write("labelled.txt", "".join(f"{train.name(i)}\n" for i in range(len(train))))
        folder.write("match.txt", f"{report}\n" if report is not None else "random weights\n")
        for doubt in () if by_heart else doubts(train, test):
            folder.tell(doubt)
        bad, task, total = BadImages(folder, train), DetectionTask(detector), recipe.steps(len(train))
        done = fit(
            task,
            _loads(recipe, train, bad, total=total),
            optimiser=recipe.optim,
            schedule=recipe.schedule,
            run=run,
            steps_per_epoch=recipe.steps_per_epoch(len(train)),
            total=total,
            folder=folder,
            resume=resume,
            sync_norm=recipe.detector.norm == "sync",
        )
        if more := recipe.measure.precise_bn:  # the batches that would come next
            after = _loads(recipe, train, bad, total=total + more)(total)
            precision = _precision(recipe, device_of(run.device))
            count = remeasured(task.module, after, seed=run.seed, step=total, precision=precision)
            folder.tell(f"statistics of {count} norms measured anew on {more} batches")
        bad.close()
        if folder.writes:
            _keep(folder.path, detector, recipe, train, mean, std)
            results = measure(folder.path, detector, recipe, test, seconds=done.seconds)
            if nothing := suspects(recipe, train, test, results):
                folder.tell(nothing)
    return out


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
        precision=_precision(recipe, device),
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


def _precision(recipe: TransferRecipe, device: torch.device) -> Literal["fp32", "bf16"]:
    return "bf16" if dtype_of(recipe.run.precision, device) == torch.bfloat16 else "fp32"


def _loads(
    recipe: TransferRecipe, train: Labelled, bad: BadImages, *, total: int
) -> Callable[[int], Iterable[DetectionBatch]]:
    """Batches of this rank from any step up to `total`. Few images are passed over again and again without a gap."""
    run, threshold = recipe.run, recipe.data.repeat_threshold
    kind: Callable[..., Sampler] = Sampler
    if threshold is not None:
        kind = partial(Repeated, factors=repeat_factors(train, threshold))

    def loads(start: int) -> Iterable[DetectionBatch]:
        met = dist.is_initialized()
        sampler = kind(
            len(train),
            run.batch_size,
            run.seed,
            start,
            total,
            run.accumulate,
            dist.get_rank() if met else 0,
            dist.get_world_size() if met else 1,
            stream=True,
        )
        samples = TrainSamples(train, recipe.detector, run.seed)
        policy = Policy(recipe.data.bad_images or "error", len(train), run.seed)
        return load_all(
            Each(samples.sample, collate, policy),
            sampler,
            workers=recipe.data.workers,
            pin=device_of(run.device).type == "cuda",
            on_bad=bad.add,
        )

    return loads


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
    }
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    write_state(folder / "export", state, card)
