"""The image-level baselines' losses, queue and moving average against slow loops' arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from boxwise.nn.objectives import cosine_distance, info_nce, negative_cosine
from boxwise.nn.queue import Queue
from boxwise.nn.teacher import Teacher, cosine_momentum
from given import t

TEMPERATURE = 0.2  # a switch that the arrays do not hold


def numbered(arrays: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    """name_0, name_1, ... in order."""
    return [arrays[f"{name}_{i}"] for i in range(sum(k.startswith(f"{name}_") for k in arrays))]


def test_moco_steps(golden) -> None:
    """Breaks when the key itself is missing among the logits, or keys are queued in another order."""
    arrays = golden("common_moco")
    queue = Queue(*arrays["queue_start"].T.shape).double()
    queue.keys.copy_(t(arrays["queue_start"]).T)
    queue.cursor.fill_(int(arrays["ptr_start"]))
    for i, (query, key) in enumerate(zip(numbered(arrays, "q"), numbered(arrays, "k"))):
        q, k = t(query).requires_grad_(), t(key)
        loss = info_nce(q, k, queue.keys.clone(), temperature=TEMPERATURE)
        queue.push(k)
        loss.backward()
        assert loss.item() == pytest.approx(float(arrays[f"loss_{i}"]), rel=1e-7)
        want = t(arrays[f"grad_q_{i}"])  # the stored queue is of unit length in single precision only
        torch.testing.assert_close(q.grad, want, rtol=0, atol=1e-7 * float(want.abs().max()))
        torch.testing.assert_close(queue.keys.T, t(arrays[f"queue_after_{i}"]), rtol=0, atol=1e-6)
        assert int(queue.cursor) == int(arrays[f"ptr_after_{i}"])


def test_byol_loss(golden) -> None:
    """Breaks when the views are not crossed, or the two directions are averaged instead of added."""
    arrays = golden("common_byol_simsiam")
    p1, p2 = (t(arrays[k]).requires_grad_() for k in ("p1", "p2"))
    z1, z2 = (t(arrays[k]).requires_grad_() for k in ("z1", "z2"))
    loss = cosine_distance(p1, z2) + cosine_distance(p2, z1)
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["byol_loss"]), rel=1e-8)
    torch.testing.assert_close(p1.grad, t(arrays["byol_grad_p1"]), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(p2.grad, t(arrays["byol_grad_p2"]), rtol=1e-8, atol=1e-12)
    assert z1.grad is None and z2.grad is None
    for i in range(len(p1)):
        one, two = (
            cosine_distance(p1[i : i + 1], z2[i : i + 1]),
            cosine_distance(p2[i : i + 1], z1[i : i + 1]),
        )
        assert one.item() == pytest.approx(arrays["byol_per_sample_12"][i], rel=1e-8)
        assert two.item() == pytest.approx(arrays["byol_per_sample_21"][i], rel=1e-8)


def test_simsiam_loss(golden) -> None:
    """Breaks when the directions are added instead of averaged, or the projection gets a gradient."""
    arrays = golden("common_byol_simsiam")
    p1, p2 = (t(arrays[k]).requires_grad_() for k in ("p1", "p2"))
    z1, z2 = (t(arrays[k]).requires_grad_() for k in ("z1", "z2"))
    loss = (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["simsiam_loss"]), rel=1e-8)
    torch.testing.assert_close(p1.grad, t(arrays["simsiam_grad_p1"]), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(p2.grad, t(arrays["simsiam_grad_p2"]), rtol=1e-8, atol=1e-12)
    assert z1.grad is None and z2.grad is None


class Weight(nn.Module):
    """One parameter, and a buffer that no average may touch."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values)
        self.register_buffer("seen", torch.zeros(()))


@pytest.mark.parametrize("ok", [None, torch.ones((), dtype=torch.float64)], ids=["plain", "guarded"])
def test_moving_average(golden, ok: Tensor | None) -> None:
    """Breaks when momentum and its complement change places, or buffers are averaged."""
    arrays = golden("common_ema_schedules")
    teacher = Teacher(Weight(t(arrays["target_start"])))
    targets = [arrays[f"target_{i}"] for i in range(len(arrays["momentum"]))]
    steps = zip(numbered(arrays, "online"), arrays["momentum"], targets)
    for online, momentum, want in steps:
        student = Weight(t(online))
        student.seen += 1
        teacher.follow(student, float(momentum), ok=ok)
        torch.testing.assert_close(teacher.network.weight.data, t(want), rtol=1e-9, atol=1e-12)
        assert teacher.network.seen == 0


def test_cosine_momentum(golden) -> None:
    """Breaks when steps are counted from 1, or the schedule ends a step early."""
    for m0, total, step, want in golden("common_ema_schedules")["cosine_schedule"]:
        assert cosine_momentum(m0, int(step), int(total)) == pytest.approx(want, rel=1e-9)
