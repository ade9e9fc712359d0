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
    """Predicts a teacher's embedding and shuns those in a queue, with noise on its input."""

    def __init__(self, *, norm: bool = True, noise: float = 0.1) -> None:
        super().__init__()
        between = nn.BatchNorm1d(8) if norm else nn.Tanh()
        self.student = nn.Sequential(nn.Linear(INPUTS, 8), between, nn.ReLU(), nn.Linear(8, OUTPUTS))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.noise = noise
        self.register_buffer("queue", torch.randn(QUEUE, OUTPUTS))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        query = self.student(x + self.noise * torch.randn_like(x))
        with torch.no_grad():
            key = self.teacher(x)
        near = (query - key).square().mean()
        far = (query @ self.queue.clone().T).square().mean()
        if self.training:
            with torch.no_grad():
                rows = (self.cursor + torch.arange(len(key))) % QUEUE
                self.queue[rows] = key
                self.cursor += len(key)
        return {"near": near, "far": 0.1 * far, "loss": near + 0.1 * far}


class ToyTask:
    """`poison(step)` may change a batch; `seen` are the (step, ok) that `after_step` was given."""

    def __init__(self, module: nn.Module, poison: Callable[[int, Tensor], Tensor] | None = None) -> None:
        self.module, self.poison = module, poison
        self.seen: list[tuple[int, float]] = []

    def prepare(self, load: tuple[int, Tensor], device: torch.device) -> Tensor:
        step, x = load
        x = self.poison(step, x) if self.poison else x
        return x.to(device)

    def images(self, load: tuple[int, Tensor]) -> int:
        return len(load[1])

    def after_step(self, step: int, total: int, *, ok: Tensor | None) -> None:
        self.seen.append((step, float(ok)))
        for t, s in zip(self.module.teacher.parameters(), self.module.student.parameters(), strict=True):
            t.lerp_(s.detach(), 0.1 * float(ok))

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
    constant_lr: tuple[str, ...] = (),
    **run: Any,
) -> Result:
    settings: dict[str, Any] = {"batch_size": 8, "device": "cpu", "precision": "fp32", "save_every": 5, "log_every": 4}
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
            constant_lr=constant_lr,
        )


def fresh(**options: Any) -> Toy:
    torch.manual_seed(0)
    return Toy(**options)
