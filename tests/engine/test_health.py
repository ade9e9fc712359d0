"""Health figures against slow loops, and an alarm that sounds for collapse and for nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from boxwise.engine.health import FIGURES, Alarm, health


def rows(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("masked", [True, False])
def test_figures_are_the_slow_loops(masked: bool) -> None:
    """Breaks when rows that are not kept count, or when a pair counts as its own negative."""
    query, key = rows(9, 5, 0), rows(9, 5, 1)
    keep = torch.tensor([True, False, True, True, True, False, True, True, True]) if masked else None
    if masked:
        query[1], key[5] = math.nan, math.inf
    kept = [i for i in range(9) if keep is None or keep[i]]
    found = health(query, key, keep)
    unit = torch.stack([query[i] / query[i].norm() for i in kept])
    pairs = [(i, j, float(cosine_similarity(query[i], key[j], dim=0))) for i in kept for j in kept]
    same, other = [s for i, j, s in pairs if i == j], [s for i, j, s in pairs if i != j]
    shares = torch.linalg.svdvals(unit)
    shares = shares / shares.sum()
    expected = {
        "ssl/feature_std": float(unit.std(0, correction=0).mean()) * 5**0.5,
        "ssl/effective_rank": math.exp(-sum(float(s) * math.log(float(s)) for s in shares)),
        "ssl/pos_sim": sum(same) / len(same),
        "ssl/neg_sim": sum(other) / len(other),
    }
    assert {k: float(v) for k, v in found.items()} == pytest.approx(expected, rel=1e-9)


def test_the_scale_of_the_figures() -> None:
    """Spread evenly: std near 1 and full rank. One vector: std 0 and rank 1."""
    even = health(rows(4000, 8, 0), rows(4000, 8, 0))
    assert float(even["ssl/feature_std"]) == pytest.approx(1, abs=0.01)
    assert float(even["ssl/effective_rank"]) == pytest.approx(8, abs=0.05)
    one = health(torch.ones(6, 8), torch.ones(6, 8))
    assert [float(one[name]) for name in FIGURES] == pytest.approx([0, 1, 1, 1], abs=1e-3)


def test_too_few_or_broken_rows_give_nan_and_no_error() -> None:
    query = rows(3, 4, 0)
    lonely = health(query, query, torch.tensor([True, False, False]))
    broken = health(query.masked_fill(query > 1, math.nan).index_fill(0, torch.tensor(0), math.nan), query)
    assert all(math.isnan(v) for found in (lonely, broken) for v in found.values())


def row(
    std: float = 0.8, rank: float = 60.0, positive: float = 0.7, negative: float = 0.1
) -> dict[str, float]:
    return dict(zip(FIGURES, (std, rank, positive, negative), strict=True)) | {"train/loss": 1.0}


@pytest.mark.parametrize(
    ("figures", "cause"),
    [
        (row(std=0.01, rank=1.0, positive=1.0, negative=0.99), "nearly one vector"),
        (row(rank=1.8), "one or two directions"),
        (row(positive=0.1, negative=0.1), "no nearer to its own partner"),
    ],
)
def test_the_alarm_names_the_cause_once(figures: dict[str, float], cause: str) -> None:
    alarm = Alarm(grace=100, patience=3)
    heard = [alarm.hear(step, figures) for step in range(50, 200, 10)]
    (message,) = [m for m in heard if m is not None]
    assert cause in message and heard.index(message) == (130 - 50) // 10


def test_the_alarm_is_silent_for_health_blips_and_other_tasks() -> None:
    alarm = Alarm(grace=0, patience=3)
    blips = [row(), row(std=0.01), row(std=0.01), row(), row(rank=1.0), row(std=0.01), row(std=0.01), row()]
    nothing = {name: math.nan for name in FIGURES}
    assert [
        alarm.hear(i + 1, r) for i, r in enumerate([*blips, *[nothing] * 9, *[{"train/loss": 1.0}] * 9])
    ] == [None] * 26
