"""The watch for numbers that are not finite: on the device, so that no step waits for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from boxwise.shapes import Scalar


class Diverged(RuntimeError):
    """A loss or a gradient is no longer finite. Weights and checkpoints are those from before that step."""

    exit_code = 3


class Guard:
    """Freezes a run at the first step whose loss or gradient is not finite, and remembers what it saw.

    Under fp16 (`scaled`) a gradient that overflows is common and only drops its step; a loss that is not
    finite still freezes the run.
    """

    def __init__(self, device: torch.device, *, scaled: bool) -> None:
        self.scaled = scaled
        self.good = torch.ones((), device=device)
        self.bad_step = torch.full((), -1.0, device=device)
        self.witness: Tensor | None = None

    def judge(self, step: int, losses: Tensor, norm: Scalar) -> Scalar:
        """1 where this step may be taken, else 0: a number on the device, equal on all ranks."""
        seen = torch.cat([losses, norm.to(losses).reshape(1)])
        finite = torch.isfinite(seen)
        verdicts = torch.stack([finite[:-1].all(), finite.all()]).float()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(verdicts, torch.distributed.ReduceOp.MIN)
        sound = verdicts[0] if self.scaled else verdicts[1]
        fresh = self.good > 0
        self.witness = seen if self.witness is None else torch.where(fresh, seen, self.witness)
        self.bad_step = torch.where(fresh & (sound == 0), torch.full_like(self.bad_step, step), self.bad_step)
        self.good = self.good * sound
        return self.good * verdicts[1]

    def tensors(self) -> dict[str, Tensor]:
        """What `verdict` reads, still on the device."""
        assert self.witness is not None
        return {"good": self.good, "bad_step": self.bad_step, "witness": self.witness}

    def verdict(self, names: Sequence[str], seen: Mapping[str, Sequence[float]]) -> str | None:
        """What went wrong and where, from `tensors` on the host; None while all is well."""
        if seen["good"][0] > 0:
            return None
        *losses, norm = seen["witness"]
        named = dict(zip(names, losses, strict=True))
        whole = named.pop("loss")
        bad = [f"loss term {name} is {value}" for name, value in named.items() if not math.isfinite(value)]
        if not bad:
            finite = math.isfinite(whole)
            bad = [
                f"the loss is finite but the gradient's norm is {norm}" if finite else f"the loss is {whole}"
            ]
        return f"step {round(seen['bad_step'][0]) + 1}: {', '.join(bad)}"
