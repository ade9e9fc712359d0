"""A queue holds exactly the newest keys, whatever the batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from boxwise.nn.queue import Queue


@pytest.mark.parametrize("batch", [1, 3, 5, 7, 9, 20])
def test_the_newest_keys_stay_in_order(batch: int) -> None:
    """Breaks when a wrap loses a row, or a batch larger than the queue keeps its oldest rows."""
    queue, pushed = Queue(length=7, width=4), torch.randn(20 * batch, 4)
    for keys in pushed.split(batch):
        queue.push(keys)
    oldest_first = queue.keys.roll(-int(queue.cursor), dims=0)
    torch.testing.assert_close(oldest_first, F.normalize(pushed[-7:], dim=-1))


def test_it_starts_with_random_unit_vectors() -> None:
    """Breaks when unfilled rows are zeros, which are the easiest of all negatives."""
    queue = Queue(length=50, width=8)
    torch.testing.assert_close(queue.keys.norm(dim=-1), torch.ones(50))
    assert queue.keys.std() > 0.2 and int(queue.cursor) == 0


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_keys_that_are_not_finite_change_nothing(poison: float) -> None:
    """Breaks when one bad step leaves NaN among the negatives of the next thousand."""
    queue = Queue(length=6, width=3)
    queue.push(torch.randn(4, 3))
    before, cursor = queue.keys.clone(), queue.cursor.clone()
    keys = torch.randn(4, 3)
    keys[2, 1] = poison
    queue.push(keys)
    assert torch.equal(queue.keys, before) and torch.equal(queue.cursor, cursor)


def test_its_state_is_saved_and_restored() -> None:
    """Breaks a resume: a queue without its cursor overwrites the newest keys first."""
    queue, other = Queue(length=5, width=2), Queue(length=5, width=2)
    queue.push(torch.randn(3, 2))
    other.load_state_dict(queue.state_dict())
    for q in (queue, other):
        q.push(torch.arange(8.0).view(4, 2) + 1)
    assert torch.equal(queue.keys, other.keys) and int(other.cursor) == 2
