"""Two processes under gloo against one process with the joint batch, in float64."""

from __future__ import annotations

import pytest
import torch
import two_ranks
from torch import Tensor
from two_ranks import CASES, SHAPES, SPLITS, draw

import processes

Results = tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What the two processes computed, case by case; they are started once."""
    return processes.two_ranks(two_ranks.work, tmp_path_factory.mktemp("ranks"))


@pytest.fixture
def float64() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


NORMS = [f"norm_{shape}_{split}" for shape in SHAPES for split in SPLITS] + ["norm_plain"]


@pytest.mark.parametrize("case", NORMS)
def test_all_reduce_norm_is_batchnorm_over_the_joint_batch(case: str, ranks: Results, float64: None) -> None:
    """Breaks when a rank's share, the variance's correction or a gradient through the statistics is off."""
    joint = CASES[case]()
    one, two = (r[case] for r in ranks)
    assert {name.split("_")[0] for name in joint} >= {"rows", "same"}
    for name, value in joint.items():
        kind = name.split("_")[0]
        if kind == "rows":
            torch.testing.assert_close(torch.cat([one[name], two[name]]), value, msg=name)
        elif kind == "sum":
            torch.testing.assert_close(one[name] + two[name], value, msg=name)
        else:
            torch.testing.assert_close(one[name], value, msg=name)
            assert torch.equal(one[name], two[name]), name


def test_norms_with_an_activation_inside_keep_it(ranks: Results, float64: None) -> None:
    """Breaks every timm backbone: its norm is a BatchNorm that also activates."""
    joint = CASES["timm_norm"]()["rows_y"]
    torch.testing.assert_close(torch.cat([r["timm_norm"]["rows_y"] for r in ranks]), joint)


def test_gather_puts_ranks_one_after_the_other(ranks: Results) -> None:
    """Breaks when rows interleave, or a type or a memory layout loses its values on the way."""
    for r in ranks:
        got = r["gathering"]
        assert got["float"].tolist() == [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13], [14, 15]]
        assert got["bool"].tolist() == [True, False, True, False, True, False]
        assert got["int"].tolist() == [0, 1, 2, 10, 11, 12]
        assert torch.equal(got["image"], torch.cat([other["gathering"]["mine"] for other in ranks]))


@pytest.mark.parametrize("case", ["some", "one_rank", "none"])
def test_weighted_rows_average_to_the_joint_mean(case: str, ranks: Results, float64: None) -> None:
    """Breaks when each rank divides by its own count, or a rank that kept nothing gives NaN."""
    joint, rows = CASES["weights"]()[case], draw(8, seed=1)
    losses = [(r["weights"][case] * part).sum() for r, part in zip(ranks, rows.split(4))]
    kept = joint > 0
    expected = rows[kept].mean() if kept.any() else torch.zeros(())
    torch.testing.assert_close(torch.stack(losses).mean(), expected)
    torch.testing.assert_close((joint * rows).sum(), expected)


def test_queues_of_all_ranks_hold_the_keys_of_all_ranks(ranks: Results, float64: None) -> None:
    """Breaks when ranks keep queues of their own, or one rank's NaN is dropped by that rank alone."""
    torch.manual_seed(0)
    joint = CASES["pushing"]()
    for name, value in joint.items():
        torch.testing.assert_close(ranks[0]["pushing"][name], value)
        assert torch.equal(ranks[0]["pushing"][name], ranks[1]["pushing"][name])


def test_shuffled_keys_come_back_in_place_with_statistics_of_mixed_company(ranks: Results) -> None:
    """Breaks when keys come back to the wrong image, boxes stay behind, or a rank normalises its own."""
    images, boxes, crops = draw(12, 3, 2, 2, seed=1), draw(12, 2, 4, seed=4), draw(12, 4, seed=2)
    order = ranks[0]["shuffled"]["order"]
    assert torch.equal(order, ranks[1]["shuffled"]["order"]) and sorted(order.tolist()) == [*range(12)]
    expected = torch.empty_like(images)
    for got, group in zip(ranks, order.split(6)):
        assert sorted(group.tolist() < 6 for group in group) == [False] * 3 + [True] * 3
        assert torch.equal(got["shuffled"]["seen"], crops[group])
        x = images[group]
        spread = (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        expected[group] = (x - x.mean((0, 2, 3), keepdim=True)) / spread
    for got, rows, places, flip in zip(
        ranks, expected.split(6), boxes.split(6), (draw(12, seed=3) > 0).split(6)
    ):
        torch.testing.assert_close(got["shuffled"]["map"], rows)
        torch.testing.assert_close(
            got["shuffled"]["box"], (places + rows.mean((1, 2, 3))[:, None, None]).flatten(0, 1)
        )
        assert torch.equal(got["shuffled"]["flip"], flip)


def test_a_step_of_two_ranks_is_a_step_on_the_joint_batch(ranks: Results, float64: None) -> None:
    """Breaks when any loss, gradient or statistic depends on how many processes share a batch."""
    joint = CASES["training"]()
    one, two = (r["training"] for r in ranks)
    assert any(name.startswith("grad_encoder.fpn") for name in joint)
    for name, value in joint.items():
        got = (one[name] + two[name]) / 2 if name.startswith("mean_") else one[name]
        torch.testing.assert_close(got, value, rtol=1e-9, atol=1e-10, msg=name)
        assert name.startswith("mean_") or torch.equal(one[name], two[name]), name
