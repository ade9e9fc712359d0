"""Objectives against the loops in their docstrings."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from boxwise.nn.objectives import cosine_distance, info_nce, negative_cosine


def embeddings(*rows: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(m, 6, generator=generator, dtype=dtype) * 3 for m in rows]


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def sample(*rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and negatives."""
    query, key, negatives = embeddings(*rows, dtype=dtype)
    return query, key, unit(negatives)


@pytest.mark.parametrize("weighted", [False, True])
def test_info_nce_is_its_loop_in_value_and_gradient(weighted: bool) -> None:
    """Breaks when a temperature, a sign, the positive's place or the weighting slips."""
    query, key, negatives = sample(5, 5, 7)
    weight = torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0], dtype=torch.float64) if weighted else None
    query.requires_grad_()
    loss = info_nce(query, key, negatives, weight, temperature=0.2)
    (grad,) = torch.autograd.grad(loss, query)

    q, k, n = unit(query), unit(key), negatives
    loops = torch.zeros((), dtype=torch.float64)
    for m in range(5):
        logits = torch.stack([q[m] @ k[m], *(q[m] @ row for row in n)]) / 0.2
        share = 1 / 5 if weight is None else weight[m]
        loops = loops + share * F.cross_entropy(logits[None], torch.tensor([0]))
    (expected,) = torch.autograd.grad(loops, query)
    torch.testing.assert_close(loss, loops)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize(
    ("objective", "of_cosine"), [(cosine_distance, lambda c: 2 - 2 * c), (negative_cosine, lambda c: -c)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_cosine_losses_are_their_loops(objective, of_cosine, weighted: bool) -> None:
    """Breaks when a row is weighed twice, or the mean of cosines becomes the cosine of means."""
    prediction, target = embeddings(4, 4)
    weight = torch.tensor([0.0, 0.5, 0.2, 0.3], dtype=torch.float64) if weighted else None
    p, z = unit(prediction), unit(target)
    loops = sum((0.25 if weight is None else weight[m]) * of_cosine(p[m] @ z[m]) for m in range(4))
    torch.testing.assert_close(objective(prediction, target, weight), loops)


@pytest.mark.parametrize("objective", [cosine_distance, negative_cosine])
def test_the_target_gets_no_gradient(objective) -> None:
    """Breaks SimSiam: without its stop-gradient it collapses."""
    prediction, target = (x.requires_grad_() for x in embeddings(4, 4))
    objective(prediction, target).backward()
    assert prediction.grad is not None and prediction.grad.abs().sum() > 0
    assert target.grad is None


def test_rows_without_weight_do_not_reach_the_gradient() -> None:
    """Breaks when padding rows train the network."""
    prediction, target = embeddings(3, 3)
    prediction.requires_grad_()
    cosine_distance(prediction, target, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)).backward()
    assert prediction.grad is not None
    assert prediction.grad[[0, 2]].abs().max() == 0 and prediction.grad[1].abs().max() > 0


def test_under_autocast_all_is_computed_in_float32() -> None:
    """Breaks when the similarities of a queue are rounded to bfloat16: the loss moves in the third digit."""
    query, key, negatives = sample(16, 16, 300, dtype=torch.float32)
    plain = info_nce(query, key, negatives, temperature=0.2), cosine_distance(query, key)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = info_nce(query, key, negatives, temperature=0.2), cosine_distance(query, key)
    assert cast == plain
    half = query.bfloat16(), key.bfloat16()
    assert cosine_distance(*half).dtype == torch.float32
    torch.testing.assert_close(cosine_distance(*half), cosine_distance(*(x.float() for x in half)))


def test_a_sharp_temperature_stays_finite() -> None:
    """Breaks when exponentials are summed without taking out the largest."""
    query, key, negatives = sample(4, 4, 9, dtype=torch.float32)
    assert info_nce(query, key, negatives, temperature=1e-3).isfinite()
    same = info_nce(query, query, -unit(query), temperature=1e-3)
    torch.testing.assert_close(same, torch.zeros(()))


def test_negatives_that_do_not_count_are_not_there() -> None:
    """Breaks when they still weigh something, and when a query without any negative gives NaN."""
    query, key, negatives = sample(3, 3, 6)
    query.requires_grad_()
    without = torch.zeros(3, 6, dtype=torch.bool)
    without[0, [1, 4]] = True
    without[2] = True
    loss = info_nce(query, key, negatives, temperature=0.2, without=without)
    few = info_nce(query[:1], key[:1], negatives[[0, 2, 3, 5]], temperature=0.2)
    whole = info_nce(query[1:2], key[1:2], negatives, temperature=0.2)
    torch.testing.assert_close(loss, (few + whole) / 3)
    (grad,) = torch.autograd.grad(loss, query)
    assert grad.isfinite().all() and (grad[2] == 0).all() and grad[:2].abs().sum() > 0


def test_a_queue_may_take_in_keys_before_the_backward_pass() -> None:
    """Breaks when the gradient is computed with negatives that came after the comparison, or keeps a copy of them."""
    query, key, negatives = sample(4, 4, 50)
    query.requires_grad_()
    held: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x.shape[0]) or x, lambda x: x):
        loss = info_nce(query, key, negatives, temperature=0.2)
    (before,) = torch.autograd.grad(loss, query, retain_graph=True)
    negatives.neg_()
    (after,) = torch.autograd.grad(loss, query)
    assert torch.equal(before, after) and max(held) == 4
