"""The one training loop. It knows tasks, but neither boxes nor images."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from boxwise.config import Optimiser, Run, Schedule
from boxwise.engine import checkpoint
from boxwise.engine.device import device_of, dtype_of, launch
from boxwise.engine.folder import RunFolder
from boxwise.engine.guard import Diverged, Guard
from boxwise.engine.health import Alarm
from boxwise.engine.journal import Journal
from boxwise.engine.metrics import Clock, Meter, Row, fetch
from boxwise.engine.optim import build_optimiser, learning_rate
from boxwise.engine.signals import Stop
from boxwise.nn.joint_norm import synchronise
from boxwise.shapes import Scalar

__all__ = ["Diverged", "Result", "Task", "device_of", "dtype_of", "fit"]

SMALLEST_SCALE = 2.0**-12
"""The fp16 loss scale starts at 2^16 and halves at each overflow: down here it never finds its place."""


@runtime_checkable
class Task(Protocol):
    """What is trained. One object lives through a run; all that must survive a crash is in `module`."""

    @property
    def module(self) -> nn.Module:
        """`forward(batch)` gives named loss terms, and "loss": what is minimised. Teachers are part of it."""
        ...

    def prepare(self, load: Any, device: torch.device) -> Any:
        """What the loader gave, as a batch on `device`."""
        ...

    def images(self, load: Any) -> int:
        """How many images `load` holds."""
        ...

    def after_step(self, step: int, total: int, *, ok: Scalar | None) -> None:
        """Called once per optimiser step, from 0. `ok` is 0, on the device, when the step was dropped."""
        ...

    def figures(self) -> Mapping[str, Tensor]:
        """Further figures of the last batch, under their full names; asked for at the log interval only."""
        ...


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
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    fabric = launch(run)
    device, world, rank = fabric.device, fabric.world_size, fabric.global_rank
    scaler = getattr(fabric.strategy.precision, "scaler", None)

    module = task.module
    if sync_norm and world > 1:
        synchronise(module, device)
    if run.channels_last:
        module.to(memory_format=torch.channels_last)
    for slow in compiled if run.compile else ():
        slow.compile()
    forward = fabric.setup_module(module)

    base = optimiser.lr * run.batch_size / optimiser.lr_batch
    rate = partial(learning_rate, base=base, schedule=schedule, steps_per_epoch=steps_per_epoch, total=total)
    descent = build_optimiser(module, optimiser, lr=base, constant_lr=constant_lr)
    trained = [p for group in descent.param_groups for p in group["params"]]
    guard, meter, alarm = (
        Guard(device, scaled=scaler is not None),
        Meter(device),
        Alarm(grace=max(100, total // 20)),
    )
    training = checkpoint.Training(module, descent, scaler, meter)
    start, before = 0, 0.0
    if resume:
        start, before = training.resume(folder.checkpoints, fabric, threads=run.threads, say=folder.tell)

    begun, row = time.perf_counter(), Row()
    with Stop().listening() as stop, Journal(folder, start=start, total=total) as journal:
        feed, clock = iter(loads(start)), Clock()
        for step in range(start, total):
            descent.set_rate(lr := rate(step), base=base)
            descent.zero_grad()
            for part in range(run.accumulate):
                with clock.waiting():
                    load = next(feed, None)
                if load is None:
                    raise ValueError(f"the data ended at step {step} of {total}")
                seed_draws(run.seed, step, part, rank, device=device)
                batch = task.prepare(load, device)
                clock.images += task.images(load)
                with fabric.no_backward_sync(forward, enabled=part < run.accumulate - 1):
                    losses = forward(batch)
                    fabric.backward(losses["loss"] / run.accumulate)
                meter.add(losses)
            if step == start:
                require_gradients(module)

            if scaler is not None:
                scaler.unscale_(descent)
            norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
            means = meter.step()
            ok = guard.judge(step, means, norm)
            if run.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(trained, run.clip_norm, norm)
            descent.step_if(ok)
            if scaler is not None:
                scaler.update()
            task.after_step(step, total, ok=ok)
            meter.count(means, norm, ok)

            done = step + 1
            journal.display.advance(done)
            logs = done % run.log_every == 0 or done in (1, total)
            saves = done % run.save_every == 0 or done == total
            if not (logs or saves or (stop.code and world == 1)):
                continue

            # Here, and nowhere else, the host waits for the device.
            extra = task.figures() if logs else {}
            seen = fetch({**meter.tensors(), **guard.tensors(), **stop.tensors(device), **extra})
            if (wrong := guard.verdict(meter.names, seen)) is not None:
                raise Diverged(f"{wrong}; {_kept(folder)}")
            if scaler is not None and scaler.get_scale() < SMALLEST_SCALE:
                raise Diverged(f"step {done}: every gradient overflows fp16; {_kept(folder)}")
            if logs:
                row = {"step": done, "epoch": done / steps_per_epoch, **meter.figures(seen), "train/lr": lr}
                row |= {name: seen[name][0] for name in extra} | clock.read(world=world)
                journal.write(done, row)
                meter.reset()
                if (message := alarm.hear(done, row)) is not None:
                    journal.say(message)
                    folder.record(alarm=message)
            code = stop.agreed(seen)
            if saves or code:
                if folder.writes:
                    seconds = before + time.perf_counter() - begun
                    training.save(folder.checkpoints, step=done, seconds=seconds, world=world, keep=run.keep)
                    folder.mark(done)
                fabric.barrier()
            if code:
                journal.say(f"stopped after step {done} of {total}")
                raise SystemExit(code)
    return Result(max(start, total), before + time.perf_counter() - begun, row)


def seed_draws(*place: int, device: torch.device) -> None:
    """Draws inside a step depend on its place in the run alone, so a resumed run makes the same ones.

    Seeds only what the run draws from: torch.manual_seed also visits, and queues for, every other backend.
    """
    drawn = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(drawn >> 1)
    if device.type == "cuda":
        torch.cuda.manual_seed(drawn >> 1)
    elif device.type == "mps":
        torch.mps.manual_seed(drawn >> 1)
    random.seed(drawn)
    np.random.seed(drawn % 2**32)


def require_gradients(module: nn.Module) -> None:
    """Raises ValueError that names every trainable parameter which the first backward pass left untouched."""
    without = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    if without:
        listed = "\n  ".join(without)
        raise ValueError(
            f"{len(without)} trainable parameters got no gradient from the loss; use them, or freeze them "
            f"with requires_grad_(False):\n  {listed}"
        )


def _kept(folder: RunFolder) -> str:
    """Where to go on from, and what usually helps."""
    good = checkpoint.found(folder.checkpoints)
    last = f"the last good checkpoint is {good[0]}" if good else "no checkpoint had been written"
    return f"{last}. Lower the learning rate, lengthen the warm-up, or try --precision fp32"
