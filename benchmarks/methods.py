"""All methods at the same pretraining time on the built-in scenes, then the demo's fine-tuning: what each is worth.

    python benchmarks/methods.py DIR [--methods mocov2 insloc ...] [--seconds 300] [--finetunings 3] [--seed 0] [--out]

Each method is adapted to a run of minutes in the way of its kind: the demo's backbone, widths, colours and optimiser;
for those that predict a teacher (BYOL, SCRL, SoCo) the demo's batch and rate and whitened targets, since without them
minutes learn two or three directions; for those with a queue a larger batch, whose keys are normalised in groups of
eight, at a lower rate, and a teacher that moves little while a queue lasts. What makes the method stays: how its
views are cut, its regions, heads and objective; SCRL's boxes alone are drawn as the demo's. Its speed is measured
first, then it trains for as many steps as fit into the time, so that time is equal and epochs are not; proposals,
which are made once for a data set, are not in it. Detector, settings and labelled scenes are the demo's, the same for
all.

DIR keeps every run. Called again, the script goes on where it was stopped; the table shows what is there: AP, AP50 and
AP75 as the mean over fine-tuning seeds with the range of AP, pretraining images/s, milliseconds a step and the peak of
memory, and from the end of pretraining how alike embeddings are that belong together and that do not, and how many
directions they take (effective rank): they tell a method that minutes have not taught to tell things apart from one
whose lesson a detector has no use for. A call has one pretraining seed: pass another --seed for a second one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import resource
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from boxwise.data.sources import open_images
from boxwise.data.splits import labelled_splits
from boxwise.engine.metrics import read_rows
from boxwise.interop.files import load_weights
from boxwise.recipes import demo
from boxwise.recipes.pretrain import METHODS
from boxwise.recipes.recipe import Recipe
from boxwise.run.demo import FINETUNE_STEPS, LABELLED, TEST, UNLABELLED
from boxwise.run.detector_run import run_transfer
from boxwise.run.pretrain import run_recipe
from boxwise.run.scenes import scenes
from boxwise.strict import keys
from result import RESULTS, machine, save

RANDOM = "random"
NAMES = (RANDOM, *METHODS)
TRIAL = 40
"""Steps that a method's rate is measured on."""
VIEW = 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COLOURS = ("brightness", "contrast", "saturation", "hue", "jitter", "gray", "blur", "solarize")
FIGURES = ("AP", "AP50", "AP75")
SHORT_RUN: dict[str, Any] = {
    "momentum": 0.98,
    "whitened": True,
    "limits": demo.LIMITS,
    "min_box": 16,
    "max_iou": None,
    "generator": "uniform",
}
"""What minutes ask of a method's settings, where it has them."""
HEALTH = ("ssl/pos_sim", "ssl/neg_sim", "ssl/effective_rank")
"""Of the last row of a pretraining's figures."""
QUEUED: dict[str, Any] = {"queue": 1024, "momentum": 0.996}
QUEUED_BATCH, QUEUED_RATE = 64, 0.3
"""Images a step, and the part of the demo's rate, of methods with a queue."""


def adapted(name: str, *, seed: int, steps: int) -> Recipe:
    """A method's default run, cut down to the demo's size."""
    small, base = demo.pretraining(seed=seed, steps=steps), METHODS[name]()
    has = {key.partition(".")[2] for key in keys(type(base.method), "method")}
    queued, wanted = "queue" in has, dict(SHORT_RUN)
    optim, run = small.optim, small.run
    if queued:
        wanted |= QUEUED
        optim = replace(optim, lr=QUEUED_RATE * optim.lr)
        run = replace(run, batch_size=QUEUED_BATCH)
    wanted |= (
        {"hidden": 256, "width": 1024} if name == "simsiam" else {"hidden": 1024}
    )  # its hidden is a bottleneck
    wanted |= {"width": demo.WIDTH} if "whitened" in has else {}
    photo = {key: getattr(small.views[0].photo, key) for key in COLOURS}
    recipe = base.changed(
        {"backbone": small.encoder.backbone, "image_size": VIEW},
        {f"views.{i}.photo.{key}": value for i in range(len(base.views)) for key, value in photo.items()},
        {"encoder.fpn_channels": demo.CHANNELS} if base.encoder.fpn else {},
        {f"method.{key}": value for key, value in wanted.items() if key in has},
    )
    return replace(recipe, optim=optim, schedule=small.schedule, run=run, data=small.data)


def pretrain(name: str, out: Path, data: Path, seconds: float, seed: int) -> None:
    """A trial, then the run; writes what the table says of it. Runs in a process of its own, for its peak of memory."""
    images, facts = open_images(data / "unlabeled2017"), out / "facts.json"
    known = json.loads(facts.read_text()) if facts.exists() else {}
    if not known:
        trial = adapted(name, seed=seed, steps=TRIAL)
        run_recipe(trial, images, out / "trial", origin="benchmark", overwrite=True)
        rows = read_rows(out / "trial" / "metrics.jsonl")
        rate = statistics.median(row["time/images_per_s"] for row in rows[1:])
        known = {"images_per_s": rate, "step_ms": 1000 * trial.run.batch_size / rate}
        known["steps"] = max(TRIAL, round(1000 * seconds / known["step_ms"]))
        facts.write_text(json.dumps(known))
    recipe, run = adapted(name, seed=seed, steps=known["steps"]), out / "run"
    run_recipe(recipe, images, run, origin="benchmark", resume=run.exists())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    facts.write_text(json.dumps(known | {"peak_mib": peak, "done": True}))


def finetune(weights: Path | None, out: Path, data: Path, seed: int) -> dict[str, float]:
    """COCO's figures of one fine-tuning, made if it is not there."""
    results = out / "results.json"
    if not results.exists():
        train, test = labelled_splits(data)
        recipe = demo.finetuning(seed=seed, steps=FINETUNE_STEPS)
        found = None if weights is None else load_weights(weights)
        run_transfer(recipe, train, test, out, origin="benchmark", weights=found, resume=out.exists())
    figures: dict[str, float] = json.loads(results.read_text())
    return figures


def measured(
    name: str, root: Path, data: Path, seconds: float, seed: int, finetunings: int
) -> Mapping[str, Any]:
    """All runs of one row of the table."""
    home = root / f"{name}-{seconds:g}s-seed{seed}"
    home.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {}
    if name != RANDOM:
        path = home / "facts.json"
        if not (path.exists() and json.loads(path.read_text()).get("done")):
            work = multiprocessing.get_context("spawn").Process(
                target=pretrain, args=(name, home, data, seconds, seed)
            )
            work.start()
            work.join()
            if work.exitcode:
                raise SystemExit(f"{name}: pretraining ended with {work.exitcode}; call again to go on")
        last = read_rows(home / "run" / "metrics.jsonl")[-1]
        facts = json.loads(path.read_text()) | {key: last[key] for key in HEALTH}
    weights = None if name == RANDOM else home / "run"
    runs = [finetune(weights, home / f"finetune{i}", data, i) for i in range(finetunings)]
    return facts | {key: [run[key] for run in runs] for key in FIGURES}


def row(name: str, found: Mapping[str, Any]) -> str:
    """One line of the table."""
    means = [f"{statistics.mean(found[key]):.2f}" for key in FIGURES]
    means[0] += f" ({min(found['AP']):.2f} to {max(found['AP']):.2f})"
    cost = [
        f"{found[key]:.0f}" if key in found else ""
        for key in ("images_per_s", "step_ms", "steps", "peak_mib")
    ]
    health = ["", ""]
    if HEALTH[0] in found:
        together, apart, rank = (found[key] for key in HEALTH)
        health = [f"{together:.2f} / {apart:.2f}", f"{rank:.1f}"]
    return "| " + " | ".join([name, *means, *cost, *health]) + " |"


def page(found: Mapping[str, Mapping[str, Any]], seconds: float, seed: int, finetunings: int) -> str:
    """The result as Markdown."""
    head = ["method", *FIGURES, "images/s", "ms a step", "steps", "peak MiB", "alike / not", "rank"]
    lines = [
        f"# All methods, {seconds:g} seconds of pretraining each, {datetime.date.today()}",
        "",
        f"`python benchmarks/methods.py DIR --seconds {seconds:g} --finetunings {finetunings} --seed {seed}`: "
        f"{UNLABELLED} scenes without labels, {LABELLED} labelled, {TEST} to measure on, {demo.SIZE} px; "
        f"{machine(DEVICE)}, {torch.get_num_threads()} threads; torch {torch.__version__}; "
        f"one pretraining seed ({seed}), {finetunings} fine-tuning seeds, "
        "whose range of AP is in brackets.",
        "",
        "| " + " | ".join(head) + " |",
        "|---|" + "---:|" * (len(head) - 1),
        *(row(name, facts) for name, facts in found.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", type=Path, help="where runs are kept")
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=list(NAMES), metavar="METHOD")
    parser.add_argument("--seconds", type=float, default=300.0, help="pretraining of each method")
    parser.add_argument("--finetunings", type=int, default=3, help="seeds of fine-tuning")
    parser.add_argument("--seed", type=int, default=0, help="seed of pretraining and of the scenes")
    parser.add_argument("--out", action="store_true", help="write the table into benchmarks/results")
    args = parser.parse_args()
    data = args.dir / f"scenes-seed{args.seed}"
    if not (data / "scenes.json").exists():
        scenes(
            data,
            count=LABELLED,
            val=TEST,
            unlabelled=UNLABELLED,
            size=demo.SIZE,
            seed=args.seed,
            overwrite=data.exists(),
        )
    found = {}
    for name in args.methods:
        found[name] = measured(name, args.dir, data, args.seconds, args.seed, args.finetunings)
        print(row(name, found[name]), flush=True)
    text = page(found, args.seconds, args.seed, args.finetunings)
    print(text)
    if args.out:
        print(f"written: {save(text, 'methods', RESULTS, DEVICE)}")


if __name__ == "__main__":
    main()
