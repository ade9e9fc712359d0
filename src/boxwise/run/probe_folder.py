"""What runs of all probes share: the pictures to measure on, and the figures that they keep."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from boxwise.data.loader import Bad, Tally, default_workers
from boxwise.data.one_pass import EachReadable, OnePass
from boxwise.data.workers import Ahead
from boxwise.engine.atomic import write_text
from boxwise.engine.folder import RunFolder
from boxwise.transfer.probes.looks import ProbeBatch, Questions, Still, StillLooks, collate


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
