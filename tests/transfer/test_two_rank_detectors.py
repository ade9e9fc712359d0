"""Two processes under DDP (gloo) against one with the joint batch, in float64."""

from __future__ import annotations

from typing import Any

import detectors_on_two_ranks
import pytest
import torch
from detectors_on_two_ranks import CASES, STATISTICS

import processes

Ranks = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What the two processes computed, case by case; they are started once."""
    return processes.two_ranks(detectors_on_two_ranks.work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_joint_batch(case: str, ranks: Ranks, double: None) -> None:
    """Breaks when a loss of one stage or of pixels is divided by what its own rank counted, a norm of any part sees
    one rank alone, or a part of the detector is left out of DDP. What R-CNNs draw is fixed here."""
    alone, (one, two) = detectors_on_two_ranks.step(case), (r["step"][case] for r in ranks)
    assert alone.keys() == one.keys() == two.keys()
    floor = 1e-10 * max(float(t.abs().max()) for n, t in alone.items() if n.startswith("gradient"))
    for name, want in alone.items():
        if name.startswith("mean"):
            torch.testing.assert_close((one[name] + two[name]) / 2, want, rtol=1e-10, atol=1e-12, msg=name)
            continue
        torch.testing.assert_close(
            one[name], want, rtol=1e-7, atol=floor, msg=name
        )  # biases before norms: noise
        assert torch.equal(one[name], two[name]), name
    assert one["mean loss"] != two["mean loss"]
    assert [n for n, t in one.items() if n.startswith("gradient") and not t.any()] == []


@pytest.mark.parametrize("case", CASES)
def test_a_rank_whose_images_show_nothing_trains_along(case: str, ranks: Ranks) -> None:
    """Breaks when a head that no box reaches on one rank leaves the other waiting, gets no gradient there, or spoils
    the weights of both."""
    one, two = (r["lopsided"][case] for r in ranks)
    assert one["silent"] == two["silent"] == []
    for name in one.keys() - {"silent"}:
        assert one[name].isfinite().all() and two[name].isfinite().all(), name
        assert not name.startswith("weight") or torch.equal(one[name], two[name]), name
    assert one["loss 0"] != two["loss 0"] and one["loss 1"] < 1e3


@pytest.mark.parametrize("norms", STATISTICS)
def test_statistics_of_norms_are_those_of_all_ranks(norms: str, ranks: Ranks, double: None) -> None:
    """Breaks when ranks end with unlike statistics, a rank of fewer batches counts as much, or one whose mask head
    met nothing pulls its norms to 0."""
    alone = detectors_on_two_ranks.statistics(norms)
    one, two = (r["statistics"][norms] for r in ranks)
    assert alone.keys() == one.keys() == two.keys() and int(alone["norms"]) == 27
    for name, want in alone.items():
        assert torch.equal(one[name], two[name]), name
        if "tracked" not in name:
            torch.testing.assert_close(one[name], want, rtol=1e-8, atol=1e-10, msg=name)
    counts = {n: int(v) for n, v in one.items() if "tracked" in n}
    masked = {counts[n] for n in counts if "mask_head" in n}
    assert ({*counts.values()}, masked) == (({2, 3}, {2}) if norms == "own" else ({4}, {4}))
