"""Losses between embeddings. Pure functions: no state, no distributed calls, no views or boxes.

All of them normalise, compare and sum in float32 or better, whatever autocast says. `weight` comes from
`ranks.row_weight`; without it every row counts the same. In the loops below vectors are of unit length.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from boxwise.shapes import Embeddings, RowWeight, Scalar


def info_nce(
    query: Embeddings,
    key: Embeddings,
    negatives: Float[Tensor, "K D"],
    weight: RowWeight | None = None,
    *,
    temperature: float,
    without: Bool[Tensor, "M K"] | None = None,
) -> Scalar:
    """Cross-entropy of picking each query's own key out of that key and the negatives.

    for m in range(M):
        logits = [query[m] @ key[m], *(query[m] @ n for n in negatives)] / temperature
        loss += weight[m] * cross_entropy(logits, 0)

    `weight` is 1 / M where none is given. Negative n does not count for query m where `without[m, n]`. Negatives are
    of unit length already, as a queue holds them; they get no gradient, and may change before the backward pass.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key = unit(query) / temperature, unit(key)
        positive = (query * key).sum(-1)
        others = _OverNegatives.apply(query, negatives.detach().to(query.dtype), without)
        return _mean(torch.logaddexp(positive, others) - positive, weight)


class _OverNegatives(torch.autograd.Function):
    """log(sum(exp(query @ n) for n in negatives)) of each query.

    The gradient is found along with the value, so that nothing of size K is kept for the backward pass: no (M, K)
    logits, and no copy of a queue that takes in new keys meanwhile.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        query: Embeddings,
        negatives: Float[Tensor, "K D"],
        without: Bool[Tensor, "M K"] | None,
    ) -> Float[Tensor, " M"]:
        logits = query @ negatives.T
        if without is not None:
            logits.masked_fill_(
                without, torch.finfo(logits.dtype).min
            )  # minus infinity would make NaN of no negatives
        value = logits.logsumexp(-1)
        ctx.save_for_backward((logits - value[:, None]).exp_() @ negatives)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Float[Tensor, " M"]) -> tuple[Embeddings, None, None]:
        (mean,) = ctx.saved_tensors
        return slope[:, None] * mean, None, None


def cosine_distance(prediction: Embeddings, target: Embeddings, weight: RowWeight | None = None) -> Scalar:
    """BYOL's loss; the target gets no gradient.

    for m in range(M):
        loss += weight[m] * (2 - 2 * prediction[m] @ target[m])
    """
    return _mean(2 - 2 * _cosine(prediction, target), weight)


def negative_cosine(prediction: Embeddings, target: Embeddings, weight: RowWeight | None = None) -> Scalar:
    """SimSiam's loss of one direction; the target gets no gradient.

    for m in range(M):
        loss += weight[m] * -(prediction[m] @ target[m])
    """
    return _mean(-_cosine(prediction, target), weight)


def matched_cosine(
    prediction: Float[Tensor, "B n D"], target: Float[Tensor, "B m D"], match: Float[Tensor, "B n m"]
) -> Scalar:
    """SoCo's loss of one direction; the target gets no gradient.

    for b in range(B):
        matches = sum(match[b])
        for i in range(n):
            for j in range(m):
                loss += -2 * match[b, i, j] * (prediction[b, i] @ target[b, j]) / (matches + 1e-6) / B
    """
    with torch.autocast(prediction.device.type, enabled=False):
        cosine = unit(prediction) @ unit(target.detach()).mT  # (B, n, m)
        return (-2 * (match * cosine).sum((1, 2)) / (match.sum((1, 2)) + 1e-6)).mean()


def _cosine(prediction: Embeddings, target: Embeddings) -> Float[Tensor, " M"]:
    with torch.autocast(prediction.device.type, enabled=False):
        return (unit(prediction) * unit(target.detach())).sum(-1)


def unit(x: Float[Tensor, "*rows _D"]) -> Float[Tensor, "*rows _D"]:
    """Rows of length 1, in float32 or better; zeros stay zeros."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def _mean(per_row: Float[Tensor, " M"], weight: RowWeight | None) -> Scalar:
    return per_row.mean() if weight is None else (per_row * weight).sum()
