"""One process: nothing to exchange, and shuffled BatchNorm in groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from boxwise.geometry.views import View
from boxwise.nn import joint_norm
from boxwise.nn.joint_norm import AllReduceNorm, synchronise
from boxwise.nn.ranks import gather, rank, row_weight, shared_count, world
from boxwise.nn.shuffle import Shuffle


def test_alone_there_is_nothing_to_exchange() -> None:
    """Breaks when a single process asks torch.distributed, which is not initialised."""
    x = torch.randn(3, 2, requires_grad=True)
    assert (world(), rank()) == (1, 0)
    assert torch.equal(gather(x), x) and not gather(x).requires_grad
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert synchronise(network) is network and type(network[1]) is nn.BatchNorm1d


@pytest.mark.parametrize(("device", "kind"), [("cpu", AllReduceNorm), ("cuda", nn.SyncBatchNorm)])
def test_every_norm_is_joined_under_its_own_name(
    device: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when a norm is left out, a name changes, or the weights are no longer those of the optimiser."""
    monkeypatch.setattr(joint_norm, "world", lambda: 2)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(BatchNormAct2d(4)))
    before = dict(network.named_parameters()) | dict(network.named_buffers())
    assert synchronise(network, device) is network
    assert isinstance(network[1], kind) and isinstance(network[2][0], kind)
    after = dict(network.named_parameters()) | dict(network.named_buffers())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert isinstance(network[2][0].act, nn.ReLU)


def test_no_rows_are_sent_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask head in bfloat16, of whose ranks one reads nothing. Breaks when that rank sends half the bytes that the
    others wait for, as torch's norm on an accelerator does."""
    monkeypatch.setattr(joint_norm, "world", lambda: 2)
    seen: list[torch.dtype] = []
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda self, x: seen.append(x.dtype) or x)
    norm = synchronise(nn.Sequential(nn.BatchNorm2d(3)), "cuda")
    for count in (0, 2):
        norm(torch.zeros(count, 3, 2, 2, dtype=torch.bfloat16))
    assert seen == [torch.float32, torch.bfloat16]


def test_a_norm_without_rows_on_any_rank_learns_nothing() -> None:
    """A mask head where no image shows a thing. Breaks when its statistics become NaN for good."""
    norm = AllReduceNorm(3).train()
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    assert norm._normalised(torch.zeros(0, 3, 2, 2)).shape == (0, 3, 2, 2)
    assert torch.equal(norm.running_mean, before["running_mean"])
    assert torch.equal(norm.running_var, before["running_var"])


def test_row_weight_is_the_mean_over_kept_rows() -> None:
    """Breaks when rows are averaged over all of them, or an empty batch divides by zero."""
    assert row_weight(torch.tensor([True, False, True, True])).tolist() == pytest.approx(
        [1 / 3, 0, 1 / 3, 1 / 3]
    )
    assert row_weight(torch.zeros(2, dtype=torch.bool)).tolist() == [0, 0]


def test_a_count_alone_is_its_own() -> None:
    """Breaks when a sum over nothing is divided by 0. Two ranks: tests/transfer/test_two_rank_detectors.py."""
    assert [int(shared_count(torch.tensor(n))) for n in (0, 1, 7)] == [1, 1, 7]


def test_a_joined_norm_alone_is_batchnorm() -> None:
    """Breaks evaluation on one process of what was trained on many."""
    mine, theirs, x = AllReduceNorm(3), nn.BatchNorm2d(3), torch.randn(4, 3, 2, 2)
    assert torch.equal(mine(x), theirs(x)) and torch.equal(mine.eval()(x), theirs.eval()(x))
    assert list(mine.state_dict()) == list(theirs.state_dict())


def view(images: int) -> View:
    """Image i is filled with i."""
    image = torch.arange(float(images))[:, None, None, None].expand(images, 3, 2, 2)
    return View(image, torch.zeros(images, 4), torch.zeros(images, dtype=torch.bool))


def companies(images: int, *, seed: int = 0) -> list[list[int]]:
    """Which images are embedded together."""
    seen: list[list[int]] = []

    def embed(view: View, boxes: Any) -> dict[str, Tensor]:
        seen.append(view.image[:, 0, 0, 0].int().tolist())
        return {"image": view.image[:, :1, 0, 0]}

    noise = torch.rand(images, generator=torch.Generator().manual_seed(seed))
    out = Shuffle(noise)(embed, view(images))["image"]
    assert out.flatten().tolist() == list(range(images)), "keys came back in another order"
    return seen


@pytest.mark.parametrize("images", [8, 9, 11, 16, 30, 64, 100])
@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_a_part_of_the_batch_as_it_lies(images: int, seed: int) -> None:
    """Breaks MoCo: a pair whose key keeps its query's company can be told by its statistics alone."""
    groups = companies(images, seed=seed)
    assert sorted(i for group in groups for i in group) == list(range(images))
    assert len(groups) == min(8, images // 4) and min(map(len, groups)) >= 4
    size = -(-images // len(groups))
    for group in groups:
        assert len({i // size for i in group}) > 1, group


def test_the_deal_is_a_function_of_the_noise() -> None:
    """Breaks a resume, and a shuffle that is the same every step."""
    assert companies(16, seed=1) == companies(16, seed=1) != companies(16, seed=2)


def test_a_batch_too_small_to_split_is_one_group() -> None:
    """Breaks when BatchNorm is left with two or three images."""
    assert [len(group) for group in companies(7)] == [7]


def test_groups_have_statistics_of_their_own_and_rows_come_back_in_order() -> None:
    """Breaks when the batch is normalised as a whole, or the regions of an image are torn apart."""
    torch.manual_seed(0)
    images = torch.randn(9, 3, 2, 2) * torch.arange(1.0, 10)[:, None, None, None]
    boxes = torch.arange(9.0)[:, None, None].expand(9, 2, 4) + torch.tensor([0, 0.5])[None, :, None]
    layer, groups = nn.BatchNorm2d(3), []

    def embed(view: View, boxes: Any) -> dict[str, Tensor]:
        groups.append(boxes["c5"][:, 0, 0].int())
        return {"map": layer(view.image), "box": boxes["c5"].flatten(0, 1)}

    whole = View(images, torch.zeros(9, 4), torch.zeros(9, dtype=torch.bool))
    out = Shuffle(torch.rand(9))(embed, whole, {"c5": boxes})
    assert torch.equal(out["box"], boxes.flatten(0, 1))
    assert len(groups) == 2
    for group in groups:
        torch.testing.assert_close(out["map"][group], nn.BatchNorm2d(3)(images[group]))
    assert not torch.allclose(out["map"], nn.BatchNorm2d(3)(images), atol=1e-2)
