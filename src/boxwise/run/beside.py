"""The classifier beside a pretraining: its data, and what it knows at the end."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from boxwise.config import HeldOutData
from boxwise.data.classified import Classified, open_classified
from boxwise.engine.device import device_of
from boxwise.engine.folder import RunFolder
from boxwise.methods.base import Method
from boxwise.methods.beside import Beside
from boxwise.recipes.recipe import Recipe
from boxwise.run.probe_folder import keep_results, still_batches
from boxwise.transfer.evaluate import precision_of
from boxwise.transfer.probes.accuracy import accuracy
from boxwise.transfer.probes.base import Probe
from boxwise.transfer.probes.linear import ClassedPictures, WholePicture
from boxwise.transfer.probes.looks import Still

ClassedSides = tuple[Classified, Classified]
"""What is pretrained on, and what the classifier is measured on."""
HELD_OUT = HeldOutData().held_out
"""Share of each class that is measured on where no split says so."""


def classed(recipe: Recipe, data: str | Path, *, images: Path | None) -> ClassedSides:
    """The folders of classes of `data`, train/ and val/ or parted by the seed. Raises ValueError for other layouts."""
    if images is not None:
        raise ValueError("data.classes: takes folders of classes, and --images goes with a COCO json")
    return open_classified(data, held_out=HELD_OUT, seed=recipe.run.seed, max_value=recipe.data.max_value)


def classifier(method: Method, train: Classified) -> Beside:
    """A classifier of the classes of `train`, beside `method`."""
    return Beside(method, torch.from_numpy(train.labels), len(train.classes))


def measure(beside: Beside, test: Classified, recipe: Recipe, folder: RunFolder, *, seconds: float) -> None:
    """Writes results.json: online_top1, and online_top5 where there are more than five classes.

    Pictures are seen as SCRL's linear evaluation sees them: a shorter side of 8/7 of a view, and of that the middle.
    """
    began, device = time.perf_counter(), device_of(recipe.run.device)
    crop, photo = recipe.views[0].crop, recipe.views[0].photo
    still = Still(size=crop.size, resize=round(crop.size * 8 / 7), interpolation=crop.interpolation)
    reader = WholePicture(beside.method.student.encoder, "c5")
    probe = Probe(reader, classes=beside.classifier.out_features, mean=photo.mean, std=photo.std)
    probe.classifier = beside.classifier
    batches = still_batches(
        ClassedPictures(test),
        still,
        recipe.run.batch_size,
        device,
        folder,
        bad_images=recipe.data.bad_images or "skip",
        workers=recipe.data.workers,
    )
    found = accuracy(probe, batches, device=device, precision=precision_of(recipe.run.precision, device))
    named = {key if key in ("rows", "images") else f"online_{key}": value for key, value in found.items()}
    keep_results(folder.path, named, seconds=seconds + time.perf_counter() - began)
    folder.tell(f"the classifier beside: top-1 {found['top1']:.2f} on {found['images']} images, in 0..100")
