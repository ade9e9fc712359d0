"""The demo's detector from random weights at several rates and lengths: what its rate and length were chosen by.

    python benchmarks/demo_rate.py DEMO RUNS [--rates 5e-4 1e-3 2e-3] [--steps 350 500] [--seed 0] [--out]

DEMO is a folder that `boxwise demo --seed SEED` wrote: its labelled scenes are trained on, its test scenes are
measured. A run that RUNS holds already is read, not trained again. The last weights are measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path

import torch

from boxwise.data.splits import labelled_splits
from boxwise.recipes import demo
from boxwise.run.detector_run import run_transfer
from result import RESULTS, machine, save

Cells = dict[tuple[float, int], float]
"""AP by rate and steps."""


def measure(scenes: Path, runs: Path, *, rates: list[float], lengths: list[int], seed: int) -> Cells:
    """Trains and measures what is missing in `runs`."""
    train, test = labelled_splits(scenes)
    found: Cells = {}
    for steps in lengths:
        for rate in rates:
            folder = runs / f"{rate:g}_{steps}_{seed}"
            if not (folder / "results.json").is_file():
                recipe = demo.finetuning(seed=seed, steps=steps).changed({"lr": rate})
                run_transfer(recipe, train, test, folder, origin="demo", overwrite=folder.exists())
            found[rate, steps] = json.loads((folder / "results.json").read_text())["AP"]
    return found


def report(found: Cells, *, seed: int, threads: int) -> str:
    """A row a rate, a column a length."""
    rates, lengths = (sorted({cell[i] for cell in found}) for i in (0, 1))
    rows = [
        f"| {rate:g} | " + " | ".join(f"{found[rate, steps]:.2f}" for steps in lengths) + " |"
        for rate in rates
    ]
    head = "| rate | " + " | ".join(f"{steps} steps" for steps in lengths) + " |"
    about = (
        f"{datetime.date.today()}, {machine()}, {threads} threads, torch {torch.__version__}. Seed {seed}; AP on the\n"
        "demo's test scenes."
    )
    title = "# The demo's detector from random weights"
    made = "Made by `python benchmarks/demo_rate.py`."
    return "\n".join([title, "", about, "", head, "|---" * (len(lengths) + 1) + "|", *rows, "", made, ""])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--steps", type=int, nargs="+", default=[350, 500])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, nargs="?", const=RESULTS, help="a folder for the dated result")
    given = parser.parse_args(argv)
    scenes = given.demo / "scenes"
    found = measure(scenes, given.runs, rates=given.rates, lengths=given.steps, seed=given.seed)
    text = report(found, seed=given.seed, threads=torch.get_num_threads())
    print(text)
    if given.out is not None:
        save(text, f"demo-rate-seed{given.seed}", given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
