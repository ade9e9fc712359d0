"""What probes say of the weights that methods.py made, beside the AP of the detectors that were fine-tuned from them.

    python benchmarks/probes.py DIR [--methods mocov2 insloc ...] [--seconds 300] [--seed 0] [--out]

DIR, --seconds and --seed are those that methods.py was called with: its weights are asked by `roi_linear` on three
stages and by `svm`, on its own scenes and at their size, with all else as these probes have it. Probes are kept in
DIR, and a second call shows what is there. `patch_location` is left out: at 96 px random weights know every place,
which the zeros around the picture tell.

The table has the accuracy of boxes' categories and the mean AP of support vector machines on each stage, in 0..100,
the seconds of all probes, and the mean AP over methods.py's fine-tunings. Below it, how well each ranks the methods
as AP does: Spearman's correlation, 1 for the same order. Some methods pretrained parts that no probe reads, FPN and
box head, and AP has those in it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from boxwise.recipes import demo
from boxwise.recipes.pretrain import METHODS
from boxwise.run.probe import probe
from result import RESULTS, machine, save


def title(name: str, level: str | None, key: str) -> str:
    """A column's head."""
    return " ".join([name, *([level] if level else []), key])


RANDOM = "random"
NAMES = (RANDOM, *METHODS)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LEVELS = ("c3", "c4", "c5")
ASKED: dict[tuple[str, str | None], tuple[str, ...]] = {
    **{("roi_linear", level): ("top1",) for level in LEVELS},
    ("svm", None): ("mAP_c2", "mAP_c3", "mAP_c4", "mAP_c5"),
}
"""The figures of each probe, and stage where one is chosen, that the table shows."""
FIGURES = [title(*asked, key) for asked, keys in ASKED.items() for key in keys]
SETTINGS: dict[str, Any] = {"image_size": demo.SIZE}
BACKBONE = demo.pretraining(seed=0, steps=1).encoder.backbone
"""Of methods.py, for random weights, which do not say it themselves."""


def results(home: Path, data: Path, name: str, level: str | None, method: str) -> dict[str, float]:
    """Of one probe of a method's weights, made if they are not there."""
    out = home / "_".join(["probe", name, *([level] if level else [])])
    file = out / "results.json"
    if not file.exists():
        settings = SETTINGS | ({"probe.level": level} if level else {})
        settings |= {"backbone": BACKBONE} if method == RANDOM else {}
        weights = None if method == RANDOM else home / "run"
        probe(name, data, out, weights=weights, settings=settings, overwrite=out.exists())
    found: dict[str, float] = json.loads(file.read_text())
    return found


def measured(method: str, root: Path, seconds: float, seed: int) -> dict[str, float]:
    """One row of the table."""
    home, data = root / f"{method}-{seconds:g}s-seed{seed}", root / f"scenes-seed{seed}"
    runs = [json.loads(file.read_text()) for file in sorted(home.glob("finetune*/results.json"))]
    if not runs:
        raise SystemExit(
            f"{home}: holds no fine-tuned detector; call methods.py with the same arguments first"
        )
    row: dict[str, float] = {"seconds": 0.0}
    for (name, level), keys in ASKED.items():
        found = results(home, data, name, level, method)
        row |= {title(name, level, key): found[key] for key in keys}
        row["seconds"] += found["seconds"]
    return row | {"AP": statistics.mean(run["AP"] for run in runs)}


def page(found: Mapping[str, Mapping[str, float]], seconds: float, seed: int) -> str:
    """The result as Markdown."""
    columns = [*FIGURES, "AP"]
    lines = [
        f"# What probes say of {seconds:g} seconds of pretraining, {datetime.date.today()}",
        "",
        f"`python benchmarks/probes.py DIR --seconds {seconds:g} --seed {seed}` after `benchmarks/methods.py` with the "
        f"same: a ResNet-18 at {demo.SIZE} px on scenes; {machine(DEVICE)}, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}; one pretraining seed, one seed of each probe, AP as the mean over fine-tunings.",
        "",
        "| method | " + " | ".join([*columns, "seconds"]) + " |",
        "|---|" + "---:|" * (len(columns) + 1),
        *(
            f"| {name} | " + " | ".join(f"{row[key]:.1f}" for key in columns) + f" | {row['seconds']:.0f} |"
            for name, row in found.items()
        ),
    ]
    if len(found) > 2:
        ap = [row["AP"] for row in found.values()]
        ranks = {key: spearmanr([row[key] for row in found.values()], ap).statistic for key in FIGURES}
        told = ", ".join(f"{key} {rank:+.2f}" for key, rank in ranks.items())
        lines += ["", f"Spearman's correlation with AP over {len(found)} starts: {told}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", type=Path, help="where methods.py has kept its runs")
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=list(NAMES), metavar="METHOD")
    parser.add_argument("--seconds", type=float, default=300.0, help="as methods.py was told")
    parser.add_argument("--seed", type=int, default=0, help="as methods.py was told")
    parser.add_argument("--out", action="store_true", help="write the table into benchmarks/results")
    args = parser.parse_args()
    found = {name: measured(name, args.dir, args.seconds, args.seed) for name in args.methods}
    text = page(found, args.seconds, args.seed)
    print(text)
    if args.out:
        print(f"written: {save(text, 'probes', RESULTS, DEVICE)}")


if __name__ == "__main__":
    main()
