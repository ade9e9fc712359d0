"""Every detector family knows four photos by heart: AP50 (boxes, masks, keypoints), mIoU or GPS above 90.

    python benchmarks/overfit.py DIR [--families faster_rcnn_fpn ...] [--steps 400] [--out]

A detector that cannot learn four images by heart has a fault in data, targets, losses or detections. Each family of
`boxwise list recipes` trains a ResNet-18 from random weights at 256 px, narrow and without flips or scales, and is
measured on the images that it was trained on: the first four of the COCO sample whose one to six things are all
large enough to be seen at this size, people with keypoints for detectors of keypoints. FCN-16s learns classes that
are painted from outlines; DensePose, of which there are no labels here, learns the painted people of its tests.

DIR keeps every run. Called again, the script goes on where it was stopped, and the table shows what is there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boxwise.config import Schedule
from boxwise.data.targets import Labelled, open_labelled
from boxwise.recipes.recipe import TransferRecipe
from boxwise.recipes.transfer import FAMILIES
from boxwise.run.detector_run import run_transfer
from boxwise.run.finetune import fields
from boxwise.run.overfit import WATCHED, quick
from boxwise.strict import keys
from result import RESULTS, machine, save

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "coco_sample"
BAR = 90.0
IMAGES, SIZE, STEPS = 4, 256, 400
THINGS = (1, 6)
"""Fewest and most things of an image."""
LEAST = 24.0
"""Pixels across the smallest thing of an image, at `SIZE`."""
MARKS = 8
"""Labelled keypoints of each person, where they are learned."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL: dict[str, Any] = {
    "fpn_channels": 64,
    "channels": 64,
    "cells": 14,
    "rpn_pre_nms_train": 500,
    "rpn_pre_nms_test": 500,
    "rpn_post_nms_train": 200,
    "rpn_post_nms_test": 100,
    "box_batch_size_per_image": 48,
    "crop": 2 * SIZE,
    "frozen_stages": 0,
    "negative_iou": 0.5,  # anchors that no loss reads say anything where all others are known by heart
    "norm": "bn",
}
"""What a run of minutes asks of a detector's settings, where it has them, beside what `--overfit` itself does."""
RES5_BOXES = 16
"""Boxes of an image that train a head which is a whole stage of the backbone."""


def adapted(family: str, *, steps: int, seed: int = 0, size: int = SIZE) -> TransferRecipe:
    """A family's recipe at the size of this benchmark."""
    base = FAMILIES[family]()
    has = {key.partition(".")[2] for key in keys(type(base.detector), "detector")}
    own = {f"detector.{key}": value for key, value in SMALL.items() if key in has}
    if base.detector.encoder().c4:
        own["detector.box_batch_size_per_image"] = RES5_BOXES
    recipe = base.changed(
        {"backbone": "resnet18", "image_size": size, "seed": seed, "batch_size": IMAGES, "workers": 0}, own
    )
    recipe, _ = quick(recipe, given=own)
    schedule = Schedule(steps=steps, kind=recipe.schedule.kind, warmup_steps=min(50, steps // 4))
    run = replace(recipe.run, save_every=100, log_every=10)
    return replace(recipe, schedule=schedule, run=run)


def learned_by_heart(
    recipe: TransferRecipe, home: Path, data: Path, *, size: int = SIZE
) -> tuple[TransferRecipe, Labelled]:
    """The images that a recipe is trained and measured on, and what else measuring them takes."""
    if "densepose" in recipe.detector.kinds():
        return _people(recipe, home, size)
    labelled = open_labelled(data, split="train", extras=fields(recipe))
    return recipe, labelled.subset(chosen(labelled, marked="keypoints" in recipe.detector.kinds(), size=size))


def chosen(labelled: Labelled, *, marked: bool, size: int = SIZE) -> list[int]:
    """The first images that are plain enough; with `marked`, of people with keypoints. ValueError for too few."""
    table, found = labelled.table, list[int]()
    for index in range(len(labelled)):
        row = int(labelled.index[index])
        here = slice(int(table.first[row]), int(table.first[row + 1]))
        sides = (table.boxes[here, 2:] - table.boxes[here, :2]) * size / table.sizes[row].max()
        if not THINGS[0] <= len(sides) <= THINGS[1] or table.crowd[here].any() or sides.min() < LEAST:
            continue
        if marked and min(_marks(table.extras["keypoints"][k]) for k in range(here.start, here.stop)) < MARKS:
            continue
        found.append(index)
        if len(found) == IMAGES:
            return found
    raise ValueError(f"{table.file}: {len(found)} images are plain enough, {IMAGES} are needed")


def _marks(text: str) -> int:
    return int((np.array(json.loads(text) or [0, 0, 0])[2::3] > 0).sum())


def _people(recipe: TransferRecipe, home: Path, size: int) -> tuple[TransferRecipe, Labelled]:
    """Painted people whose colours say part, u and v, and a mesh on which every part is far from all others."""
    sys.path.append(str(HERE.parent / "tests"))
    from surfaces import write_mesh, write_people

    root, mesh = home / "people", home / "mesh.npz"
    if not (root / "annotations" / "densepose_minival2014.json").exists():
        write_people(root, count=IMAGES, size=64)
        write_mesh(mesh)
    labelled = open_labelled(root, split="train", extras=fields(recipe))
    return recipe.changed({"measure.geodesics": str(mesh)}), labelled


def trained(
    family: str, root: Path, data: Path, *, steps: int, seed: int = 0, size: int = SIZE
) -> dict[str, Any]:
    """The figures of one family, made if they are not there."""
    home = place(root, family, steps=steps, seed=seed, size=size)
    results = home / "run" / "results.json"
    if not results.exists():
        home.mkdir(parents=True, exist_ok=True)
        recipe = adapted(family, steps=steps, seed=seed, size=size)
        recipe, images = learned_by_heart(recipe, home, data, size=size)
        out = home / "run"
        run_transfer(recipe, images, images, out, origin="benchmark", resume=out.exists())
    found: dict[str, Any] = json.loads(results.read_text())
    return found


def place(root: Path, family: str, *, steps: int, seed: int, size: int) -> Path:
    """Where a run of these settings is kept."""
    return root / f"{family}-{steps}steps-{size}px-seed{seed}"


def watched(found: Mapping[str, Any]) -> dict[str, float]:
    """The figures that must pass the bar."""
    return {name: found[name] for name in WATCHED if found.get(name, -1) >= 0}


def row(family: str, found: Mapping[str, Any]) -> str:
    """One line of the table."""
    figures = watched(found)
    told = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
    passed = "yes" if figures and min(figures.values()) > BAR else "no"
    return f"| {family} | {told} | {passed} | {found['images']} |"


def page(found: Mapping[str, Mapping[str, Any]], *, steps: int, seed: int, size: int) -> str:
    """The result as Markdown."""
    return f"""# Four images by heart, {datetime.date.today()}

`python benchmarks/overfit.py DIR --steps {steps} --size {size} --seed {seed}`: ResNet-18 from random weights,
{size} px, {steps} steps of {IMAGES} images, measured on the same images; {machine(DEVICE)},
{torch.get_num_threads()} threads, torch {torch.__version__}.

| family | figures | all above {BAR:g} | images |
|---|---|---|---:|
{chr(10).join(row(family, one) for family, one in found.items())}

Photos are those of the COCO sample; densepose_rcnn learns painted people, since labels of real ones are not at hand.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", type=Path, help="where runs are kept")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--data", type=Path, default=DATA, help="a COCO root with boxes, masks and keypoints")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--size", type=int, default=SIZE, help="pixels of both sides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", nargs="?", type=Path, const=RESULTS, help="a folder for the dated result")
    args = parser.parse_args(arguments)
    for family in args.families:
        found = trained(family, args.dir, args.data, steps=args.steps, seed=args.seed, size=args.size)
        print(row(family, found), flush=True)
    known = {
        family: json.loads(file.read_text())
        for family in FAMILIES
        if (
            file := place(args.dir, family, steps=args.steps, seed=args.seed, size=args.size)
            / "run"
            / "results.json"
        ).exists()
    }
    text = page(known, steps=args.steps, seed=args.seed, size=args.size)
    print(text)
    if args.out is not None:
        print(f"written: {save(text, 'overfit', args.out, DEVICE)}")


if __name__ == "__main__":
    main()
