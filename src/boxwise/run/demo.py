"""`boxwise demo`: from nothing to a measurably better detector, in minutes on two CPU cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwise.data.sources import open_images
from boxwise.engine.atomic import read_json, write_json
from boxwise.engine.progress import say
from boxwise.interop.files import load_weights
from boxwise.recipes import demo as recipes
from boxwise.run.detector_run import run_transfer
from boxwise.run.draw import detections_sheet, write_picture
from boxwise.run.finetune import labelled_splits
from boxwise.run.preflight import some
from boxwise.run.pretrain import run_recipe
from boxwise.run.scenes import scenes
from boxwise.run.verdict import signed

UNLABELLED, LABELLED, TEST = 3000, 300, 600
"""Scenes to pretrain on, to fine-tune on, and to measure on."""
PRETRAIN_STEPS, FINETUNE_STEPS = 800, 500
"""What fits into ten minutes on two cores."""
LEAST = 32
"""Scenes of a kind at any scale: one batch."""
SCENES_SHOWN = 6
"""Scenes in the picture."""
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
    say(f"1/4 drawing {sum(counts)} scenes")
    scenes(
        data,
        count=counts[1],
        val=counts[2],
        unlabelled=counts[0],
        size=recipes.SIZE,
        seed=seed,
        overwrite=overwrite,
    )
    say("2/4 pretraining on scenes without labels")
    run_recipe(
        recipes.pretraining(seed=seed, steps=max(2, round(PRETRAIN_STEPS * scale))),
        open_images(data / "unlabeled2017"),
        out / "pretrain",
        origin="demo",
        overwrite=overwrite,
    )
    recipe = recipes.finetuning(seed=seed, steps=max(2, round(FINETUNE_STEPS * scale)))
    train, test = labelled_splits(data)
    runs = {arm: out / arm for arm in ("random", "pretrained")}
    for part, (arm, folder) in enumerate(runs.items(), start=3):
        say(f"{part}/4 fine-tuning from {arm} weights on {len(train)} labelled scenes")
        weights = load_weights(out / "pretrain") if arm == "pretrained" else None
        run_transfer(recipe, train, test, folder, origin="demo", weights=weights, overwrite=overwrite)
    arms = {arm: read_json(folder / "results.json") for arm, folder in runs.items()}
    write_json(out / "result.json", arms)
    found = [read_json(folder / "detections.json") for folder in runs.values()]
    write_picture(detections_sheet(test, *found, count=SCENES_SHOWN), out / "demo.png")
    return Outcome((out / "pretrain", *runs.values()), arms)


def _admit(out: Path, *, overwrite: bool) -> None:
    """Refuses a folder that holds anything, unless it is an earlier demo's that may go."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; choose a folder for the demo")
    inside = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if strange := [name for name in inside if name not in OWN]:
        raise ValueError(f"{out}: not empty, and no earlier demo ({some(strange)}); choose another folder")
    if inside and not overwrite:
        raise ValueError(f"{out}: holds an earlier demo; choose another folder, or pass --overwrite")
