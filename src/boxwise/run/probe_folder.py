"""What runs of all probes share: weights in, the pictures to measure on, and what their folders hold."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from boxwise.data.loader import Bad, Tally, default_workers
from boxwise.data.one_pass import EachReadable, OnePass
from boxwise.data.workers import Ahead
from boxwise.engine.atomic import write_text
from boxwise.engine.device import leads
from boxwise.engine.folder import RunFolder
from boxwise.interop.files import Weights
from boxwise.transfer.probes.looks import ProbeBatch, Questions, Still, StillLooks, collate


def filled(backbone: nn.Module, weights: Weights | None) -> str:
    """Puts `weights` into `backbone`; what of them arrived. Raises WeightsError where it was not all of it."""
    if weights is None:
        return "random weights\n"
    report = weights.into({"backbone": backbone})
    if leads():
        print(report, file=sys.stderr)
    report.require(["backbone"])
    return f"{report}\n"


def facts(train: Questions, test: Questions, weights: Weights | None) -> dict[str, Any]:
    """What names the images and the weights of a run."""
    return {
        "images": len(train),
        "fingerprint": train.fingerprint(),
        "test_images": len(test),
        "test_fingerprint": test.fingerprint(),
        "weights": None if weights is None else weights.source,
        "weights_digest": None if weights is None else weights.digest,
    }


def still_batches(
    questions: Questions,
    still: Still,
    batch_size: int,
    device: torch.device,
    folder: RunFolder,
    *,
    bad_images: Literal["error", "skip"],
    workers: int | None,
) -> Iterator[ProbeBatch]:
    """Every image once, in its order, without those that cannot be read: each of these is told, and too many raise
    ValueError; under the policy "error" the first raises BadImage."""
    on_gpu, tally = device.type == "cuda", Tally(len(questions))

    def note(bad: Sequence[Bad]) -> None:
        for one in tally.add(bad):
            folder.tell(f"{one.path}: {one.reason}; left out")

    batches = Ahead(
        EachReadable(StillLooks(questions, still).sample, collate, bad_images),
        OnePass(len(questions), batch_size),
        workers=default_workers(on_gpu) if workers is None else workers,
        pin=on_gpu,
        on_bad=note,
    )
    return (batch for batch in batches if batch is not None)


def keep_results(folder: Path, figures: Mapping[str, float], *, seconds: float) -> None:
    """Writes results.json."""
    results = {**figures, "seconds": round(seconds, 1)}
    write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")


def listed(questions: Questions) -> str:
    """The names of the images, one a line."""
    return "".join(f"{questions.name(i)}\n" for i in range(len(questions)))
