"""The one training loop. It knows tasks, but neither boxes nor images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from boxwise.config import Optimiser, Run, Schedule
from boxwise.engine import checkpoint
from boxwise.engine.device import launch, lay_out
from boxwise.engine.folder import RunFolder
from boxwise.engine.guard import Diverged
from boxwise.engine.health import Alarm
from boxwise.engine.journal import Journal
from boxwise.engine.metrics import Clock, Row, fetch
from boxwise.engine.optim import learning_rate
from boxwise.engine.signals import Stop
from boxwise.engine.steps import Steps, Task
from boxwise.nn.joint_norm import synchronise

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Diverged", "Result", "Task", "fit"]

SMALLEST_SCALE = 2.0**-12
"""The fp16 loss scale starts at 2^16 and halves at each overflow: down here it never finds its place."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended."""

    step: int
    """Optimiser steps taken, those before a resume included."""
    seconds: float
    """Time in the loop, that before a resume included."""
    figures: Row
    """The last row of metrics.jsonl; empty when there was nothing left to do."""


def fit(
    task: Task,
    loads: Callable[[int], Iterable[Any]],
    *,
    optimiser: Optimiser,
    schedule: Schedule,
    run: Run,
    steps_per_epoch: int,
    total: int,
    folder: RunFolder,
    resume: bool = False,
    constant_lr: Sequence[str] = (),
    sync_norm: bool = False,
    compiled: Sequence[nn.Module] = (),
) -> Result:
    """Trains `task` for `total` optimiser steps, and leaves rows, events and checkpoints in `folder`.

    `loads(start)` is called once, after the processes of the run have met, and gives this rank's loads from
    step `start` on, `run.accumulate` for each step. With `sync_norm`, BatchNorm sees the batch of all ranks;
    `compiled` are the submodules that `run.compile` compiles. With `resume`, training goes on from the newest
    checkpoint that can be read, and on a CPU equals a run that was never interrupted, bit for bit.

    Raises Diverged when a number is not finite, ValueError when a trainable parameter gets no gradient, and
    SystemExit 143 or 130 once a checkpoint is written after SIGTERM or Ctrl-C.
    """
    fabric = prepared(task.module, run, sync_norm=sync_norm, compiled=compiled)
    steps = Steps(task, run, fabric, optimiser, constant_lr=constant_lr)
    training = checkpoint.Training(task.module, steps.descent, steps.scaler, steps.meter)
    start, before = 0, 0.0
    if resume:
        start, before = training.resume(folder.checkpoints, fabric, threads=run.threads, say=folder.tell)

    begun, row = time.perf_counter(), Row()
    with Stop().listening() as stop, Journal(folder, start=start, total=total) as journal:
        feed, clock = iter(loads(start)), Clock()
        watch = Watch(steps, folder, journal, stop, clock, Alarm(grace=max(100, total // 20)))
        for step in range(start, total):
            lr = learning_rate(
                step, base=steps.base, schedule=schedule, steps_per_epoch=steps_per_epoch, total=total
            )
            steps.take(step, total, feed, clock, lr=lr, first=step == start)

            done = step + 1
            journal.display.advance(done)
            logs = done % run.log_every == 0 or done in (1, total)
            saves = done % run.save_every == 0 or done == total
            if not (logs or saves or (stop.code and fabric.world_size == 1)):
                continue

            # Here, and nowhere else, the host waits for the device.
            seen = watch.look(done, figures=logs)
            if logs:
                row = watch.write(seen, done=done, epoch=done / steps_per_epoch, lr=lr)
            code = stop.agreed(seen)
            if saves or code:
                if folder.writes:
                    seconds = before + time.perf_counter() - begun
                    world = fabric.world_size
                    training.save(folder.checkpoints, step=done, seconds=seconds, world=world, keep=run.keep)
                    folder.mark(done)
                fabric.barrier()
            if code:
                journal.say(f"stopped after step {done} of {total}")
                raise SystemExit(code)
    return Result(max(start, total), before + time.perf_counter() - begun, row)


def prepared(module: nn.Module, run: Run, *, sync_norm: bool, compiled: Sequence[nn.Module]) -> Fabric:
    """The processes of a run, once they have met, and `module` as they train it."""
    fabric = launch(run)
    if run.threads is not None:
        torch.set_num_threads(run.threads)  # launching several processes sets it too
    if sync_norm and fabric.world_size > 1:
        synchronise(module, fabric.device)
    if run.channels_last:
        lay_out(module, fabric.device)
    for slow in compiled if run.compile else ():
        slow.compile(dynamic=False)  # views have few sizes, each worth kernels of its own
    return fabric


@dataclass(slots=True)
class Watch:
    """What the host reads of a run, in one copy from the device at each look, and says of it."""

    steps: Steps
    folder: RunFolder
    journal: Journal
    stop: Stop
    clock: Clock
    alarm: Alarm
    extra: tuple[str, ...] = field(default=(), init=False)
    """Names of the task's own figures of the last look."""

    def look(self, done: int, *, figures: bool) -> dict[str, list[float]]:
        """All that `write` and `Stop.agreed` need. Raises Diverged when a number is not finite."""
        steps = self.steps
        extra = steps.task.figures() if figures else {}
        self.extra = tuple(extra)
        stopped = self.stop.tensors(steps.fabric.device)
        seen = fetch({**steps.meter.tensors(), **steps.guard.tensors(), **stopped, **extra})
        if (wrong := steps.guard.verdict(steps.meter.names, seen)) is not None:
            raise Diverged(f"{wrong}; {_kept(self.folder)}")
        if steps.scaler is not None and steps.scaler.get_scale() < SMALLEST_SCALE:
            raise Diverged(f"step {done}: every gradient overflows fp16; {_kept(self.folder)}")
        return seen

    def write(self, seen: Mapping[str, Sequence[float]], *, done: int, epoch: float, lr: float) -> Row:
        """The row of figures since the last, into the journal, and the alarm where they are bad."""
        meter = self.steps.meter
        row: Row = {"step": done, "epoch": epoch, **meter.figures(seen), "train/lr": lr}
        row |= {name: seen[name][0] for name in self.extra}
        row |= self.clock.read(world=self.steps.fabric.world_size)
        self.journal.write(done, row)
        meter.reset()
        if (message := self.alarm.hear(done, row)) is not None:
            self.journal.say(message)
            self.folder.record(alarm=message)
        return row


def _kept(folder: RunFolder) -> str:
    """Where to go on from, and what usually helps."""
    good = checkpoint.found(folder.checkpoints)
    last = f"the last good checkpoint is {good[0]}" if good else "no checkpoint had been written"
    return f"{last}. Lower the learning rate, lengthen the warm-up, or try --precision fp32"
