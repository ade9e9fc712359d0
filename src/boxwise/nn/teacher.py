"""The slow copy of the student. Exactly one method moves it."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from boxwise.shapes import Scalar


class Teacher(nn.Module):
    """An exponential moving average of a student's parameters, run without gradients.

    Buffers are not averaged: as in MoCo, BYOL, SoCo and SCRL the copy stays in training mode and keeps
    BatchNorm statistics of its own.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives."""
        return self.network(*args, **kwargs)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in training mode, whatever the mode of the method around it."""
        return super().train(True)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float, *, ok: Scalar | None = None) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student, in place.

        `ok` is 1 or 0 on the device; at 0 the teacher stays. Nobody waits for it.
        """
        mine: list[Tensor] = [*self.network.parameters()]
        theirs: list[Tensor] = [*student.parameters()]
        if ok is None or ok.device.type == "cpu":  # a CPU's flag is read for nothing
            torch._foreach_lerp_(mine, theirs, (1 - momentum) * (1.0 if ok is None else float(ok)))
        else:
            _approach(mine, theirs, ok * (1 - momentum))

    @torch.no_grad()
    def copy(self, student: nn.Module) -> None:
        """Takes over the student whole, buffers too: after weights have been loaded into it."""
        self.network.load_state_dict(student.state_dict())

    @torch.no_grad()
    def restart(self, seed: int) -> None:
        """Makes the teacher a random network of its own, as SCRL's official code starts its target.

        The numbers of every tensor are put in a new order: a draw from whatever distribution the layer was
        initialised by. Meant for a student that has not been trained.
        """
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.network.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _approach(mine: list[Tensor], theirs: list[Tensor], share: Scalar) -> None:
    """A lerp whose weight stays on the device."""
    gap = torch._foreach_sub(theirs, mine)
    torch._foreach_mul_(gap, share)
    torch._foreach_add_(mine, gap)


def cosine_momentum(base: float, step: int, total: int) -> float:
    """Rises from `base` at step 0 to 1 at step `total` along half a cosine."""
    return 1 - (1 - base) * (math.cos(math.pi * step / total) + 1) / 2
