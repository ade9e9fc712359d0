"""What is trained, and one optimiser step of it: work is handed to the device, and none of it is waited for."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from boxwise.config import Optimiser, Run
from boxwise.engine.guard import Guard
from boxwise.engine.metrics import Clock, Meter
from boxwise.engine.optim import build_optimiser
from boxwise.shapes import Scalar

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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


class Steps:
    """Takes the steps of one run. `feed` gives this rank's loads, `run.accumulate` for each step."""

    def __init__(
        self, task: Task, run: Run, fabric: Fabric, optimiser: Optimiser, *, constant_lr: Sequence[str] = ()
    ) -> None:
        self.task, self.run, self.fabric = task, run, fabric
        self.forward = fabric.setup_module(task.module)
        self.base = optimiser.lr * run.batch_size / optimiser.lr_batch
        """The rate that a schedule moves."""
        self.descent = build_optimiser(task.module, optimiser, lr=self.base, constant_lr=constant_lr)
        self.trained = [p for group in self.descent.param_groups for p in group["params"]]
        self.scaler: torch.amp.GradScaler | None = getattr(fabric.strategy.precision, "scaler", None)
        self.guard, self.meter = Guard(fabric.device, scaled=self.scaler is not None), Meter(fabric.device)

    def take(
        self, step: int, total: int, feed: Iterator[Any], clock: Clock, *, lr: float, first: bool
    ) -> None:
        """Gradients of all parts of a step, then the step, unless they are not finite."""
        self.descent.set_rate(lr, base=self.base)
        self.descent.zero_grad()
        for part in range(self.run.accumulate):
            with clock.waiting():
                load = next(feed, None)
            if load is None:
                raise ValueError(f"the data ended at step {step} of {total}")
            seed_draws(self.run.seed, step, part, self.fabric.global_rank, device=self.fabric.device)
            clock.images += self.task.images(load)
            self._backward(load, last=part == self.run.accumulate - 1)
        if first:
            require_gradients(self.task.module)
        self._update(step, total)

    def _backward(self, load: Any, *, last: bool) -> None:
        batch = self.task.prepare(load, self.fabric.device)
        with self.fabric.no_backward_sync(self.forward, enabled=not last):
            losses = self.forward(batch)
            self.fabric.backward(losses["loss"] / self.run.accumulate)
        self.meter.add(losses)

    def _update(self, step: int, total: int) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.descent)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        means = self.meter.step()
        ok = self.guard.judge(step, means, norm)
        if self.run.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.trained, self.run.clip_norm, norm)
        self.descent.step_if(ok)
        if self.scaler is not None:
            self.scaler.update()
        self.task.after_step(step, total, ok=ok)
        self.meter.count(means, norm, ok)


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
