"""The pretended device sees what a real one would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pretend


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x[:, [0, 1]],
        lambda x: x[torch.tensor([1, 2])],
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.tensor(1.0, device=x.device),
        lambda x: x.__setitem__(0, torch.ones(4)),
        lambda x: torch.ones(4).to(x.device),
        lambda x: x.cpu(),
    ],
)
def test_a_copy_that_is_waited_for(work: Callable[[Tensor], object]) -> None:
    with pretend.cuda() as waits:
        x = torch.zeros(4, 4).to("cuda", non_blocking=True)
        work(x)
        assert len(waits.seen) == 1


@pytest.mark.parametrize(
    "work",
    [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool(x.any()), lambda x: x + torch.ones(4)],
)
def test_what_cannot_be_done_without_numbers_or_on_two_devices(work: Callable[[Tensor], object]) -> None:
    with pretend.cuda(), pytest.raises(RuntimeError, match=r"item|dense|nonzero|on the same device"):
        work(torch.zeros(4, 4).to("cuda"))


def test_what_no_host_waits_for() -> None:
    with pretend.cuda() as waits:
        x = torch.zeros(4, 4).to("cuda", non_blocking=True)
        rows = torch.tensor([1, 2]).to("cuda", non_blocking=True)
        x[0] = 1
        x[rows].fill_(2).mul_(torch.ones(()))
        torch.where(x > 0, torch.arange(4, device="cuda"), 0.5)
        assert waits.seen == []
