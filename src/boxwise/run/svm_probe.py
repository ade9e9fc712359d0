"""A run of support vector machines: one pass over the images, then a machine for each class on each stage."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int8

from boxwise.data.cores import cores
from boxwise.data.splits import labelled_splits
from boxwise.data.targets import Labelled, choose
from boxwise.data.training_set import DIFFICULT
from boxwise.engine.device import device_of, place
from boxwise.engine.folder import RunFolder
from boxwise.engine.progress import ImageDisplay
from boxwise.interop.files import Weights, pixels
from boxwise.nn.encoder import Encoder, EncoderConfig, build_encoder
from boxwise.recipes.recipe import SVMRecipe
from boxwise.run.find import saved
from boxwise.run.memory import free_memory
from boxwise.run.probe_folder import keep_results, still_batches
from boxwise.run.records import facts, filled, listed
from boxwise.strict import dump_yaml
from boxwise.transfer.evaluate import precision_of
from boxwise.transfer.probes.base import Place
from boxwise.transfer.probes.looks import LabelledBoxes
from boxwise.transfer.probes.stages import Rows, shown, stage_rows
from boxwise.transfer.probes.svm import Judged, judged

HELD = 6
"""What each process that trains a machine holds, in sizes of the rows of one stage: float64, and the solver's table."""


def run_svm(
    recipe: SVMRecipe,
    where: Place,
    out: Path,
    *,
    origin: str,
    weights: Weights | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_drift: bool = False,
) -> Path:
    """Measures every stage that a recipe names on labelled images, and returns `out`. A resumed run starts again."""
    if place()[1] > 1:
        raise ValueError("svm: one process does it all; start it without torchrun or srun")
    train, test = _opened(recipe, where)
    torch.manual_seed(recipe.run.seed)
    encoder = build_encoder(EncoderConfig(backbone=recipe.probe.backbone))
    matched = filled({"backbone": encoder.body}, weights)
    with RunFolder.open(
        out,
        kind="probe",
        config=dump_yaml(saved(recipe, origin)),
        data=facts(train, test, weights),
        seed=recipe.run.seed,
        resume=resume,
        overwrite=overwrite,
        allow_drift=allow_drift,
    ) as folder:
        folder.write("trained_on.txt", listed(train))
        folder.write("match.txt", matched)
        began = time.perf_counter()
        seen, asked = (_seen(recipe, encoder, side, weights, folder) for side in (train, test))
        found: dict[str, Judged] = {}
        for level in recipe.probe.levels:
            found[level] = judged(
                seen.rows[level],
                seen.answers,
                asked.rows[level],
                asked.answers,
                config=recipe.probe,
                seed=recipe.run.seed,
                jobs=_jobs(seen.rows[level].nbytes),
            )
            folder.tell(f"{level}: mAP {found[level].mean:.2f}")
        folder.write("classes.json", json.dumps(_by_class(found, train.classes), indent=2) + "\n")
        figures = {**_figures(found), "images": len(asked.answers)}
        keep_results(folder.path, figures, seconds=time.perf_counter() - began)
    return out


def _opened(recipe: SVMRecipe, where: Place) -> tuple[LabelledBoxes, LabelledBoxes]:
    """What is trained on and what is measured on, images without boxes included."""
    train, test = labelled_splits(
        where.data, images=where.images, val=where.val, max_value=recipe.data.max_value, extras=(DIFFICULT,)
    )
    chosen: Labelled = choose(train, recipe.data.labels, seed=recipe.run.seed)
    return LabelledBoxes(chosen), LabelledBoxes(test)


@dataclass(frozen=True, slots=True)
class Seen:
    """One side of the data, image by image: what the machines read of it, and what it shows."""

    rows: Rows
    answers: Int8[np.ndarray, "n k"]


def _seen(
    recipe: SVMRecipe, encoder: Encoder, images: LabelledBoxes, weights: Weights | None, folder: RunFolder
) -> Seen:
    """Each file is decoded once; those that cannot be read are left out, where the recipe allows it."""
    run, device = recipe.run, device_of(recipe.run.device)
    mean, std = pixels(weights)
    batches = still_batches(
        images,
        recipe.probe.still,
        run.batch_size,
        device,
        folder,
        bad_images=recipe.data.bad_images or "error",
        workers=recipe.data.workers,
    )
    read = stage_rows(
        encoder,
        batches,
        recipe.probe.levels,
        mean=mean,
        std=std,
        device=device,
        precision=precision_of(run.precision, device),
    )
    held: Rows = {}
    index: list[int] = []
    with ImageDisplay("features", start=0, total=len(images)) as display:
        for batch, part in read:
            if not held:
                held = {k: np.empty((len(images), x.shape[1]), dtype=np.float32) for k, x in part.items()}
                _check_room(held)
            for level, x in part.items():
                held[level][len(index) : len(index) + len(batch)] = x
            index += batch.index
            display.advance(len(index))
            display.show(len(index), {})
    return Seen({level: x[: len(index)] for level, x in held.items()}, shown(images.labelled)[index])


def _jobs(stage: int) -> int:
    """Processes for machines on a stage of so many bytes: one a core, as far as memory goes."""
    return max(1, min(cores(), free_memory(torch.device("cpu")) // (HELD * max(1, stage))))


def _check_room(rows: Rows) -> None:
    """Raises ValueError where the rows of all images, and those of a machine, do not fit into memory."""
    need = sum(x.nbytes for x in rows.values()) + HELD * max(x.nbytes for x in rows.values())
    free = free_memory(torch.device("cpu"))
    if need > free:
        raise ValueError(
            f"the pooled maps take {need / 2**30:.1f} GiB, and {free / 2**30:.1f} are free: take fewer images with "
            '--labels, or fewer stages with --probe.levels "[c5]"'
        )


def _figures(found: dict[str, Judged]) -> dict[str, float]:
    """Mean AP of the deepest stage, and of each."""
    return {"mAP": found[max(found)].mean, **{f"mAP_{level}": one.mean for level, one in found.items()}}


def _by_class(found: dict[str, Judged], classes: tuple[str, ...]) -> dict[str, Any]:
    """AP and chosen cost, of each stage and class."""
    return {
        level: {
            name: {"AP": ap, "cost": cost} for name, ap, cost in zip(classes, one.aps, one.costs, strict=True)
        }
        for level, one in found.items()
    }
