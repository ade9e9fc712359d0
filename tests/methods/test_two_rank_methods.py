"""Two processes under DDP (gloo) against one with the joint batch, in float64.

MoCo-v2 is exempt, and InsLoc, ReSim and DetCo are held to it without norms: their BatchNorm is each rank's own by
design, and their keys are shuffled over other groups.
"""

from __future__ import annotations

import methods_on_two_ranks
import pytest
import torch
from methods_on_two_ranks import CASES, OWN_CELLS
from torch import Tensor

import processes

Results = tuple[dict[str, dict[str, Tensor]], ...]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What the two processes computed, case by case; they are started once."""
    return processes.two_ranks(methods_on_two_ranks.work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_joint_batch(case: str, ranks: Results, double: None) -> None:
    """Breaks when a mean is over a rank's own rows, a norm sees one rank only, or teachers part ways."""
    joint, (one, two) = methods_on_two_ranks.step(case), (r[case] for r in ranks)
    assert joint.keys() == one.keys() == two.keys()
    for name, want in joint.items():
        if name == "mean loss":
            torch.testing.assert_close((one[name] + two[name]) / 2, want, rtol=1e-10, atol=1e-12, msg=name)
            continue
        floor = 1e-10 * max(float(want.abs().max()), 1e-3)
        torch.testing.assert_close(one[name], want, rtol=1e-8, atol=floor, msg=name)
        assert torch.equal(one[name], two[name]), name
    moved = [v for name, v in joint.items() if name.startswith("gradient")]
    assert any(bool((g != 0).any()) for g in moved) == (case != "scrl, no boxes at all")


@pytest.mark.parametrize("case", OWN_CELLS)
def test_trap_23_cells_of_other_ranks_are_no_negatives(case: str, ranks: Results, double: None) -> None:
    """Breaks when negatives that are a rank's own are gathered, or its windows weigh more for being few."""
    halves, (one, two) = methods_on_two_ranks.halves(case), (r[case] for r in ranks)
    torch.testing.assert_close(
        (one["mean loss"] + two["mean loss"]) / 2, halves["mean loss"], rtol=1e-10, atol=0
    )
    assert {name for name in one if name.startswith("gradient")} == halves.keys() - {"mean loss"}
    for name in halves.keys() - {"mean loss"}:
        floor = 1e-10 * max(float(halves[name].abs().max()), 1e-3)
        torch.testing.assert_close(one[name], halves[name], rtol=1e-8, atol=floor, msg=name)
        assert torch.equal(one[name], two[name]), name
