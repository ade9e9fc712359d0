"""The teacher moves by `follow` alone, and by exactly one minus momentum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from boxwise.nn.teacher import Teacher, _approach, cosine_momentum


def student() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def values(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def moved(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in network.parameters():
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return network


@pytest.mark.parametrize("ok", [None, 1.0, 0.0])
@pytest.mark.parametrize("momentum", [0.0, 0.97, 1.0])
def test_it_takes_one_minus_momentum_of_the_student(momentum: float, ok: float | None) -> None:
    """Breaks when momentum and its complement are swapped, or a dropped step still moves the teacher."""
    network = student()
    teacher = Teacher(network)
    before, there = values(teacher.network), values(moved(network))
    teacher.follow(network, momentum, ok=None if ok is None else torch.tensor(ok))
    share = (1 - momentum) * (1.0 if ok is None else ok)
    for now, was, goal in zip(values(teacher.network), before, there):
        torch.testing.assert_close(now, was + share * (goal - was))
    assert ok != 0.0 or all(torch.equal(a, b) for a, b in zip(values(teacher.network), before))


@pytest.mark.parametrize("share", [0.0, 0.03, 1.0])
def test_a_share_that_stays_on_the_device_moves_as_far(share: float) -> None:
    """Breaks on a GPU alone: there nobody may read the flag."""
    mine, theirs = ([torch.randn(3, 4), torch.randn(5)] for _ in range(2))
    expected = [m + share * (t - m) for m, t in zip(mine, theirs)]
    _approach(mine, theirs, torch.tensor(share))
    torch.testing.assert_close(mine, expected)


def test_it_shares_nothing_with_the_student_and_needs_no_gradient() -> None:
    """Breaks when the copy is shallow: then the teacher is the student."""
    network = student()
    teacher = Teacher(network)
    out = teacher(torch.randn(4, 3, 4, 4, requires_grad=True))
    assert not out.requires_grad and not any(p.requires_grad for p in teacher.parameters())
    owned = {t.data_ptr() for t in (*teacher.parameters(), *teacher.buffers())}
    assert owned.isdisjoint(t.data_ptr() for t in (*network.parameters(), *network.buffers()))


def test_statistics_stay_its_own_and_it_never_leaves_training_mode() -> None:
    """Breaks when buffers are averaged, or `eval()` on the method freezes the teacher's norms."""
    network = student()
    teacher = Teacher(network).eval()
    norm = teacher.network.get_submodule("1")
    x = torch.randn(6, 3, 4, 4) + 5
    teacher(x)
    assert norm.training and int(norm.num_batches_tracked) == 1
    mean = teacher.network.get_submodule("0")(x).mean((0, 2, 3)) * 0.1
    torch.testing.assert_close(norm.running_mean, mean)
    teacher.follow(network, 0.5)
    torch.testing.assert_close(norm.running_mean, mean)


def test_copy_takes_weights_and_statistics() -> None:
    """Breaks when weights loaded into the student after building do not reach the teacher."""
    network = student()
    teacher = Teacher(network)
    moved(network)(torch.randn(6, 3, 4, 4))
    teacher.copy(network)
    for name, value in network.state_dict().items():
        assert torch.equal(teacher.network.state_dict()[name], value), name
    assert not any(p.requires_grad for p in teacher.parameters())


def test_restart_is_another_draw_of_the_same_distribution() -> None:
    """Breaks when a restarted target is the student still, or differs from run to run."""
    network = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    teacher, twin, other = Teacher(network), Teacher(network), Teacher(network)
    teacher.restart(1), twin.restart(1), other.restart(2)
    mine, theirs = teacher.network.get_parameter("0.weight"), network.get_parameter("0.weight")
    assert torch.equal(mine, twin.network.get_parameter("0.weight"))
    assert not torch.equal(mine, other.network.get_parameter("0.weight"))
    assert abs(torch.corrcoef(torch.stack([mine.flatten(), theirs.flatten()]))[0, 1]) < 0.08
    torch.testing.assert_close(mine.std(), theirs.std())
    assert torch.equal(teacher.network.get_parameter("1.weight"), torch.ones(64))


def test_momentum_rises_along_half_a_cosine() -> None:
    """Breaks when the rise is linear, starts late or does not end at 1."""
    assert cosine_momentum(0.97, 0, 100) == 0.97
    assert cosine_momentum(0.97, 50, 100) == pytest.approx(0.985)
    assert cosine_momentum(0.97, 25, 100) == pytest.approx(1 - 0.03 * (2**0.5 / 2 + 1) / 2)
    assert cosine_momentum(0.97, 100, 100) == 1
