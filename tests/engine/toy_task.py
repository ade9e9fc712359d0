"""A toy task with all that a run must keep: weights, BatchNorm, a teacher, a queue, draws inside the step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from boxwise.config import SGD, Run, Schedule
from boxwise.engine.folder import RunFolder
from boxwise.engine.loop import Result, fit

INPUTS, OUTPUTS, QUEUE = 6, 4, 12


class Toy(nn.Module):
    """Predicts a teacher's embedding and shuns those in a queue, with noise on its input.

    `spoil` breaks what its keys name: a term, by adding the value, or the gradient alone.
    """

    def __init__(self, *, norm: bool = True, noise: float = 0.1, push: bool = True) -> None:
        super().__init__()
        between = nn.BatchNorm1d(8) if norm else nn.Tanh()
        self.student = nn.Sequential(nn.Linear(INPUTS, 8), between, nn.ReLU(), nn.Linear(8, OUTPUTS))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.noise, self.push = noise, push
        self.spoil: dict[str, float] = {}
        self.forwards: list[tuple[bool, torch.dtype]] = []
        self.register_buffer("queue", torch.randn(QUEUE, OUTPUTS))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.forwards.append((torch.is_autocast_enabled(x.device.type), x.dtype))
        if self.noise:
            x = x + self.noise * torch.randn_like(x)
        query = self.student(x)
        with torch.no_grad():
            key = self.teacher(x)
        near = (query - key).square().mean() + self.spoil.get("near", 0)
        far = 0.1 * (query @ self.queue.clone().T).square().mean() + self.spoil.get("far", 0)
        if "gradient" in self.spoil:
            far = far + (0 * query.sum()).sqrt()  # zero, with an infinite slope
        if self.push:
            with torch.no_grad():
                rows = (self.cursor + torch.arange(len(key))) % QUEUE
                self.queue[rows] = key.to(self.queue)
                self.cursor += len(key)
        return {"near": near, "far": far, "loss": near + far}


class ToyTask:
    """`before(step)` runs ahead of each part; `seen` are the (step, ok) that `after_step` was given."""

    def __init__(self, module: Toy, before: Callable[[int], None] | None = None) -> None:
        self.module, self.before = module, before
        self.seen: list[tuple[int, Tensor]] = []

    def prepare(self, load: tuple[int, Tensor], device: torch.device) -> Tensor:
        step, x = load
        if self.before is not None:
            self.before(step)
        return x.to(device)

    def images(self, load: tuple[int, Tensor]) -> int:
        return len(load[1])

    def after_step(self, step: int, total: int, *, ok: Tensor | None) -> None:
        assert ok is not None
        self.seen.append((step, ok))
        for t, s in zip(self.module.teacher.parameters(), self.module.student.parameters(), strict=True):
            t.lerp_(s.detach(), 0.1 * ok.to(t))

    def figures(self) -> dict[str, Tensor]:
        return {"train/ema_momentum": torch.tensor(0.9)}


def batch_of(step: int, *, size: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, INPUTS, dtype=dtype, generator=torch.Generator().manual_seed(1000 + step))


def loads(
    total: int, *, accumulate: int = 1, size: int = 8, dtype: torch.dtype = torch.float32
) -> Callable[[int], Iterator[tuple[int, Tensor]]]:
    """Batches as a function of the step, each in `accumulate` parts."""

    def feed(start: int) -> Iterator[tuple[int, Tensor]]:
        for step in range(start, total):
            for part in batch_of(step, size=size, dtype=dtype).chunk(accumulate):
                yield step, part

    return feed


def open_folder(path: Path, **flags: Any) -> RunFolder:
    return RunFolder.open(
        path,
        kind="toy",
        config=flags.pop("config", "name: toy\n"),
        data=flags.pop("data", {"images": 40, "fingerprint": "f"}),
        seed=0,
        **flags,
    )


def train(
    path: Path,
    task: ToyTask,
    *,
    total: int = 20,
    resume: bool = False,
    feed: Any = None,
    optimiser: Any = None,
    schedule: Schedule | None = None,
    sync_norm: bool = False,
    **run: Any,
) -> Result:
    settings: dict[str, Any] = {
        "batch_size": 8,
        "device": "cpu",
        "precision": "fp32",
        "save_every": 5,
        "log_every": 4,
    }
    settings |= run
    with open_folder(path, resume=resume) as folder:
        return fit(
            task,
            feed or loads(total, accumulate=settings.get("accumulate", 1)),
            optimiser=optimiser or SGD(lr=0.3, lr_batch=8, momentum=0.9, weight_decay=1e-3),
            schedule=schedule or Schedule(steps=total, warmup_steps=3),
            run=Run(**settings),
            steps_per_epoch=5,
            total=total,
            folder=folder,
            resume=resume,
            sync_norm=sync_norm,
        )


def fresh(**options: Any) -> Toy:
    torch.manual_seed(0)
    return Toy(**options)
