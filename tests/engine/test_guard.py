"""The guard by itself: what it lets through, and what it says."""

from __future__ import annotations

import math

import pytest
import torch

from boxwise.engine.guard import Guard
from boxwise.engine.metrics import fetch

NAMES = ("box", "view", "loss")
GOOD = (1.0, 2.0, 3.0)


def judged(guard: Guard, steps: list[tuple[tuple[float, ...], float]]) -> list[float]:
    return [
        float(guard.judge(i, torch.tensor(losses), torch.tensor(norm)))
        for i, (losses, norm) in enumerate(steps)
    ]


def verdict(guard: Guard) -> str | None:
    return guard.verdict(NAMES, fetch(guard.tensors()))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_bad_loss_freezes_and_the_first_is_named(scaled: bool) -> None:
    """Breaks when a later step, or a term that only followed, takes the blame."""
    guard = Guard(torch.device("cpu"), scaled=scaled)
    worse = (math.nan, math.nan, math.nan)
    assert judged(guard, [(GOOD, 1.0), ((1.0, -math.inf, -math.inf), 1.0), (worse, 1.0), (GOOD, 1.0)]) == [
        1,
        0,
        0,
        0,
    ]
    assert verdict(guard) == "step 2: loss term view is -inf"


def test_an_overflowing_gradient_ends_a_run_but_under_fp16_only_drops_its_step() -> None:
    steps = [(GOOD, 1.0), (GOOD, math.inf), (GOOD, 1.0)]
    strict, scaled = Guard(torch.device("cpu"), scaled=False), Guard(torch.device("cpu"), scaled=True)
    assert judged(strict, steps) == [1, 0, 0] and judged(scaled, steps) == [1, 0, 1]
    assert verdict(strict) == "step 2: the loss is finite but the gradient's norm is inf"
    assert verdict(scaled) is None


def test_finite_terms_whose_sum_overflows_are_told_apart() -> None:
    guard = Guard(torch.device("cpu"), scaled=False)
    judged(guard, [((3e38, 3e38, math.inf), math.nan)])
    assert verdict(guard) == "step 1: the loss is inf"
