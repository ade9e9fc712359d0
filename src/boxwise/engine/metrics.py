"""Figures of a run: summed on the device, read once per log interval, written as lines of JSON."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boxwise.engine.atomic import write_text
from boxwise.shapes import Scalar

Row = dict[str, float]


class Meter:
    """Means of the loss terms and of the gradient's norm over the steps since the last row, on the device."""

    def __init__(self, device: torch.device) -> None:
        self.names: tuple[str, ...] = ()
        self.sums = torch.zeros(0, device=device)
        self.steps = torch.zeros((), device=device)
        self._parts: list[Tensor] = []

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """The losses of one part of the coming step."""
        if not self.names:
            self.names = tuple(losses)
            self.sums = self.sums.new_zeros(len(losses) + 1)
        self._parts.append(torch.stack([losses[name].detach().float() for name in self.names]))

    def step(self) -> Tensor:
        """The losses of the step that has just ended, in the order of `names`: means over its parts."""
        values = torch.stack(self._parts).mean(0)
        self._parts.clear()
        return values

    def count(self, losses: Tensor, norm: Scalar, ok: Scalar) -> None:
        """Takes a step into the means, unless it was dropped."""
        values = torch.cat([losses, norm.float().reshape(1)])
        self.sums += torch.where(ok > 0, values, torch.zeros_like(values))
        self.steps += ok

    def reset(self) -> None:
        self.sums.zero_()
        self.steps.zero_()

    def state(self) -> dict[str, Any]:
        return {"names": list(self.names), "sums": self.sums.cpu(), "steps": self.steps.cpu()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.names = tuple(state["names"])
        self.sums, self.steps = state["sums"].to(self.sums.device), state["steps"].to(self.sums.device)

    def tensors(self) -> dict[str, Tensor]:
        """What `figures` reads, still on the device."""
        return {"sums": self.sums, "steps": self.steps}

    def figures(self, seen: Mapping[str, Sequence[float]]) -> Row:
        """Means as metrics.jsonl names them, from `tensors` on the host; NaN when every step was dropped."""
        (steps,) = seen["steps"]
        *means, norm = [total / steps if steps else math.nan for total in seen["sums"]]
        row: Row = {"train/loss": means[self.names.index("loss")]}
        for name, mean in zip(self.names, means, strict=True):
            if name != "loss":
                row[f"train/loss_{name.removeprefix('loss_')}"] = mean
        return row | {"train/grad_norm": norm}


class Clock:
    """Host time between two rows: images, and how long the step waited for them."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.waited, self.images = 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun

    def read(self, *, world: int) -> Row:
        """Images a second over all processes since the last reading, and the share of time lost to data."""
        now = time.perf_counter()
        spent = max(now - self.started, 1e-9)
        row: Row = {"time/images_per_s": self.images * world / spent, "time/data_wait": self.waited / spent}
        self.started, self.waited, self.images = now, 0.0, 0
        return row


def fetch(parts: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Values of any number of tensors in one copy from the device, averaged over the ranks in one call."""
    wide = torch.float32 if any(t.device.type == "mps" for t in parts.values()) else torch.float64
    packed = torch.cat([t.detach().reshape(-1).to(wide) for t in parts.values()])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(packed)
        packed /= torch.distributed.get_world_size()
    values: list[float] = packed.tolist()
    ends = torch.tensor([t.numel() for t in parts.values()]).cumsum(0).tolist()
    return {name: values[end - t.numel() : end] for (name, t), end in zip(parts.items(), ends, strict=True)}


def write_row(path: Path, row: Row) -> None:
    """Appends one line, at once; a figure that is not finite becomes null."""
    strict = {key: value if math.isfinite(value) else None for key, value in row.items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(strict, allow_nan=False) + "\n")


def read_rows(path: Path) -> list[dict[str, float | None]]:
    """The rows of a metrics.jsonl; a last line that a crash cut short is left out."""
    rows: list[dict[str, float | None]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def cut_back(path: Path, step: int) -> None:
    """Drops the rows after `step`: the steps from there on are about to be taken again."""
    kept = [json.dumps(row) for row in read_rows(path) if (row["step"] or 0) <= step]
    write_text(path, "".join(f"{line}\n" for line in kept))
