"""`boxwise finetune --overfit N`: can this pipeline learn at all? A few images, trained on and measured on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from boxwise.config import AdamW
from boxwise.data.targets import Labelled, Labels, open_labelled
from boxwise.engine.atomic import read_json
from boxwise.engine.metrics import read_rows
from boxwise.recipes.recipe import TransferRecipe
from boxwise.run.fit import rate
from boxwise.strict import keys, plain
from boxwise.transfer.samples import target_size

BAR = 80.0
"""Least AP50 of every kind that a detector finds, and least mIoU, on the images that it was trained on."""
WATCHED = ("AP50", "mask_AP50", "kp_AP50", "gps_AP50", "gpsm_AP50", "mIoU")
TINY, TINY_SHARE = 8.0, 0.1
"""Pixels a side of a box that a pyramid hardly sees, and the share of such boxes that is worth a word."""
FALLEN = 0.5
"""A loss above this share of its first value has not fallen."""
FOUND = 60.0
"""AR100 from which on things count as found."""
TWICE = 0.9
"""IoU from which on two boxes are the same."""
OVERFIT = 0x0F17
"""Keeps this draw apart from others of the same seed."""


RATE = 1e-3
"""Of AdamW, whatever the batch."""
QUICK: Mapping[str, Any] = {
    "schedule.kind": "cosine",
    "run.clip_norm": 10.0,
    "detector.flip": 0.0,
    "detector.scales": (1.0, 1.0),
    "detector.train_sizes": (),
    "detector.train_max_size": None,
}
"""What learns a few images in hundreds of steps, of the settings that a detector has: changing views take thousands."""


class CannotLearn(RuntimeError):
    """The self-test stayed below its bar."""

    exit_code = 1


def few(
    data: str | Path, count: int, recipe: TransferRecipe, *, images: Path | None, extras: Collection[str]
) -> Labelled:
    """`count` training images with boxes, drawn by the recipe's seed, in the order of the set.

    Raises ValueError where there are fewer.
    """
    labelled = open_labelled(
        data, split="train", images=images, max_value=recipe.data.max_value, extras=extras
    )
    table = labelled.table
    things = np.concatenate([[0], np.cumsum(~table.crowd)])[table.first]
    shown = np.flatnonzero(np.diff(things)[labelled.index] > 0)
    if not 0 < count <= len(shown):
        raise ValueError(
            f"--overfit {count}: {table.file} has {len(shown)} images with boxes; pass 1 to {len(shown)}"
        )
    drawn = np.random.default_rng([OVERFIT, recipe.run.seed]).permutation(shown)[:count]
    return labelled.subset(np.sort(drawn))


def quick(recipe: TransferRecipe, *, given: Collection[str]) -> tuple[TransferRecipe, list[str]]:
    """`recipe` with the optimiser, schedule and views that learn by heart, and a line that says so.

    Settings named in `given` are the user's and stay: a rate alone is AdamW's, any other setting of an optimiser
    keeps the recipe's own.
    """
    has = {*keys(type(recipe.detector), "detector")}
    own = {k: v for k, v in QUICK.items() if k not in given and (k in has or not k.startswith("detector."))}
    told = [f"{key} {value}" for key, value in own.items() if not key.startswith("detector.")]
    recipe = recipe.changed(own)
    if not any(key.startswith("optim.") and key != "optim.lr" for key in given):
        lr = recipe.optim.lr if "optim.lr" in given else RATE
        recipe = replace(recipe, optim=AdamW(lr=lr, lr_batch=recipe.run.batch_size))
        told = [f"adamw at lr {lr:g}", *told]
    return recipe, [f"to learn by heart: {', '.join([*told, 'no flips or other scales'])}; flags stand above"]


def verdict(run: Path, recipe: TransferRecipe, images: Labelled) -> str:
    """What the finished self-test in `run` says in one sentence. Raises CannotLearn, with suspects, below the bar."""
    results: dict[str, Any] = read_json(run / "results.json")
    reached = {name: results[name] for name in WATCHED if results.get(name, -1) >= 0}
    told = ", ".join(f"{name} {value:.1f}" for name, value in reached.items()) or "nothing to measure"
    sentence = f"overfit: {told} on the {len(images)} images that it was trained on (bar: {BAR:g})"
    if reached and min(reached.values()) >= BAR:
        return f"{sentence}: this pipeline can learn"
    listed = "\n  ".join(suspects(run, recipe, images, results))
    raise CannotLearn(f"{sentence}: something keeps it from learning. Suspects:\n  {listed}")


def suspects(
    run: Path, recipe: TransferRecipe, images: Labelled, results: Mapping[str, Any]
) -> Iterator[str]:
    """What to look at, the likeliest first."""
    rows = read_rows(run / "metrics.jsonl")
    losses = [loss for row in rows if (loss := row.get("train/loss")) is not None]
    steps = recipe.steps(len(images))
    if losses and losses[-1] > FALLEN * losses[0]:
        yield (
            f"the loss went from {losses[0]:.3g} to {losses[-1]:.3g} only, in {steps} steps at lr "
            f"{rate(recipe):.3g}: try --steps {4 * steps}, then another --lr"
        )
    elif losses:
        yield f"the loss fell from {losses[0]:.3g} to {losses[-1]:.3g}; {steps} steps may be few: --steps {4 * steps}"
    yield from _labels(recipe, [images.read(i) for i in range(len(images))])
    if results.get("AR100", 0) >= FOUND and results.get("AP50", 0) < BAR:
        yield (
            f"things are found (AR100 {results['AR100']:.1f}), but under other names: look whether category ids "
            "mean the same in every image"
        )
    if recipe.detector.frozen_stages:
        yield f"detector.frozen_stages {recipe.detector.frozen_stages}: those stages learn nothing here"
    yield f"labels of other images: look at {run / 'figures' / 'detections.png'}, truth above, detections below"


def _labels(recipe: TransferRecipe, read: list[tuple[torch.Tensor, Labels]]) -> Iterator[str]:
    """What is odd about the boxes, at the size that the detector sees."""
    detector, total, tiny, twice, most = recipe.detector, 0, 0, 0, 0
    for picture, labels in read:
        height, width = picture.shape[1:]
        tall, _ = target_size(height, width, short=detector.min_size, long=detector.max_size)
        boxes = labels.boxes[~labels.crowd]
        kinds = labels.labels[~labels.crowd]
        sides = (boxes[:, 2:] - boxes[:, :2]).amin(1) * tall / height
        total, tiny, most = total + len(boxes), tiny + int((sides < TINY).sum()), max(most, len(boxes))
        same = (box_iou(boxes, boxes) > TWICE) & (kinds[:, None] == kinds)
        twice += int(same.triu(1).sum())
    if tiny > TINY_SHARE * total:
        size = 2 * detector.min_size
        yield f"{tiny} of {total} boxes are less than {TINY:g} pixels across at this size: try --image-size {size}"
    if twice:
        yield f"{twice} boxes are there twice under one name: a detector gives each thing one"
    limit = plain(detector).get("detections_per_image")
    if limit is not None and most > limit:
        yield f"an image has {most} boxes, and detector.detections_per_image is {limit}"
