"""`boxwise demo`: from nothing to a measurably better detector, in minutes on two CPU cores."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from boxwise.data.cores import cores
from boxwise.data.sources import open_images
from boxwise.data.splits import labelled_splits
from boxwise.engine.atomic import read_json, write_json
from boxwise.engine.progress import say
from boxwise.engine.signals import Stop
from boxwise.interop.files import load_weights
from boxwise.recipes import demo as recipes
from boxwise.recipes.recipe import TransferRecipe
from boxwise.run.detector_run import run_transfer
from boxwise.run.draw import detections_sheet, write_picture
from boxwise.run.preflight import some
from boxwise.run.pretrain import run_recipe
from boxwise.run.scenes import scenes
from boxwise.run.verdict import signed

UNLABELLED, LABELLED, TEST = 3000, 300, 600
"""Scenes to pretrain on, to fine-tune on, and to measure on."""
PRETRAIN_STEPS, FINETUNE_STEPS = 700, 500
"""What fits into ten minutes on two cores."""
LEAST = 32
"""Scenes of a kind at any scale: one batch."""
SCENES_SHOWN = 6
"""Scenes in the picture."""
ARMS = ("random", "pretrained")
SHOWN = ("AP", "AP50", "AP75")
OWN = ("scenes", "pretrain", "random", "pretrained", "result.json", "demo.png", "report.html")
"""What a demo leaves in its folder."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo found; `str()` is its table."""

    runs: tuple[Path, ...]
    arms: Mapping[str, Mapping[str, Any]]
    """`random` and `pretrained`, each with COCO's figures, images and seconds."""

    @property
    def gain(self) -> float:
        """AP points that pretraining added."""
        return float(self.arms["pretrained"]["AP"] - self.arms["random"]["AP"])

    def __str__(self) -> str:
        head = f"{'weights':<12}" + "".join(f"{name:>7}" for name in SHOWN) + f"{'images':>8}{'seconds':>9}"
        lines = [
            f"{arm:<12}"
            + "".join(f"{f[name]:7.2f}" for name in SHOWN)
            + f"{f['images']:8d}{f['seconds']:9.0f}"
            for arm, f in self.arms.items()
        ]
        return "\n".join([head, *lines, f"gain: {signed(self.gain, 2)} AP"])


def demo(out: Path, *, seed: int = 0, scale: float = 1.0, overwrite: bool = False) -> Outcome:
    """Draws scenes, pretrains, fine-tunes from random and pretrained weights with all else locked.

    Writes `out`/result.json, and `out`/demo.png: scenes as they are, as the random, and as the pretrained detector
    sees them. `scale` shortens everything alike; the figures then mean little.
    """
    if not 0 < scale <= 10:
        raise ValueError(f"--scale: expected a number in (0, 10], got {scale}")
    _admit(out, overwrite=overwrite)
    counts = [max(LEAST, round(n * scale)) for n in (UNLABELLED, LABELLED, TEST)]
    data = out / "scenes"
    say(f"1/3 drawing {sum(counts)} scenes")
    scenes(
        data,
        count=counts[1],
        val=counts[2],
        unlabelled=counts[0],
        size=recipes.SIZE,
        seed=seed,
        overwrite=overwrite,
    )
    say("2/3 pretraining on scenes without labels")
    run_recipe(
        recipes.pretraining(seed=seed, steps=max(2, round(PRETRAIN_STEPS * scale))),
        open_images(data / "unlabeled2017"),
        out / "pretrain",
        origin="demo",
        overwrite=overwrite,
    )
    recipe = recipes.finetuning(seed=seed, steps=max(2, round(FINETUNE_STEPS * scale)))
    runs = {arm: out / arm for arm in ARMS}
    say(f"3/3 fine-tuning from random and from pretrained weights on {counts[1]} labelled scenes")
    _finetune(recipe, data, runs, weights=out / "pretrain", overwrite=overwrite)
    arms = {arm: read_json(folder / "results.json") for arm, folder in runs.items()}
    write_json(out / "result.json", arms)
    found = [read_json(folder / "detections.json") for folder in runs.values()]
    _, test = labelled_splits(data)
    write_picture(detections_sheet(test, *found, count=SCENES_SHOWN), out / "demo.png")
    return Outcome((out / "pretrain", *runs.values()), arms)


def _finetune(
    recipe: TransferRecipe, data: Path, runs: Mapping[str, Path], *, weights: Path, overwrite: bool
) -> None:
    """Both arms side by side, each on its half of the cores: on so small a network two trainings of one thread get
    further than one of two threads. The arm from pretrained `weights` shows how it gets on."""
    threads = max(1, cores() // len(runs))
    recipe = replace(recipe, run=replace(recipe.run, threads=threads))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(runs), mp_context=context) as pool, Stop().listening() as stop:
        working = [
            pool.submit(_arm, recipe, data, out, weights if arm == "pretrained" else None, overwrite)
            for arm, out in runs.items()
        ]
        while wait(working, timeout=0.5).not_done:
            if stop.code is not None:
                for process in multiprocessing.active_children():
                    process.terminate()  # each saves what it has
                raise SystemExit(stop.code)
        for done in working:
            done.result()


def _arm(recipe: TransferRecipe, data: Path, out: Path, weights: Path | None, overwrite: bool) -> None:
    """One arm, in a process of its own."""
    train, test = labelled_splits(data)
    shown = sys.stderr if weights is not None else io.StringIO()
    with contextlib.redirect_stderr(shown):
        found = None if weights is None else load_weights(weights)
        run_transfer(recipe, train, test, out, origin="demo", weights=found, overwrite=overwrite)


def _admit(out: Path, *, overwrite: bool) -> None:
    """Refuses a folder that holds anything, unless it is an earlier demo's that may go."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; choose a folder for the demo")
    inside = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if strange := [name for name in inside if name not in OWN]:
        raise ValueError(f"{out}: not empty, and no earlier demo ({some(strange)}); choose another folder")
    if inside and not overwrite:
        raise ValueError(f"{out}: holds an earlier demo; choose another folder, or pass --overwrite")
