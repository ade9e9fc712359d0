"""What support vector machines are given: a row of pooled numbers an image and stage, and which classes it shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Int8
from torch import Tensor

from boxwise.data.targets import Labelled
from boxwise.data.training_set import DIFFICULT, flagged
from boxwise.nn.encoder import Encoder
from boxwise.transfer.probes.looks import ProbeBatch
from boxwise.transfer.probes.svm import Level, pooled

Rows = dict[Level, Float32[np.ndarray, "n _d"]]


def stage_rows(
    encoder: Encoder,
    batches: Iterable[ProbeBatch],
    levels: tuple[Level, ...],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Iterator[tuple[ProbeBatch, Rows]]:
    """Pooled maps of the frozen encoder, batch by batch. Leaves the encoder on `device`, in evaluation mode."""
    device = torch.device(device)
    encoder.to(device).eval()
    centre, scale = (torch.tensor(rgb, device=device).view(3, 1, 1) for rgb in (mean, std))
    for batch in batches:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            maps = encoder.trunk((batch.images.to(device).to(centre.dtype) / 255 - centre) / scale)
        wanted: dict[Level, Tensor] = {level: maps[level].float() for level in levels}
        yield batch, {level: rows.cpu().numpy() for level, rows in pooled(wanted).items()}


def shown(labelled: Labelled) -> Int8[np.ndarray, "n k"]:
    """Which categories each image shows: 1, 0 where it does not, -1 where what it shows of one is difficult alone.

    Crowds count as difficult. The set must have been opened with the extra "difficult".
    """
    table = labelled.table
    hard = table.crowd | flagged(table, DIFFICULT)
    answers = np.zeros((len(labelled), len(table.categories)), dtype=np.int8)
    for row, image in enumerate(labelled.index.tolist()):
        own = slice(int(table.first[image]), int(table.first[image + 1]))
        columns, difficult = table.labels[own] - 1, hard[own]
        answers[row, columns[difficult]] = -1
        answers[row, columns[~difficult]] = 1
    return answers
