"""Losses between embeddings. Pure functions: no state, no distributed calls, no views or boxes.

All of them normalise, compare and sum in float32 or better, whatever autocast says. `weight` comes from
`ranks.row_weight`; without it every row counts the same. In the loops below vectors are of unit length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

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

    `weight` is 1 / M where none is given. Negative n does not count for query m where `without[m, n]`.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key, negatives = _unit(query) / temperature, _unit(key), _unit(negatives)
        positive = (query * key).sum(-1)
        logits = query @ negatives.T  # the one large product: (M, K)
        if without is not None:
            lowest = torch.finfo(logits.dtype).min  # minus infinity has no gradient
            logits = logits.masked_fill(without, lowest)
        others = logits.logsumexp(-1)
        return _mean(torch.logaddexp(positive, others) - positive, weight)


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
        cosine = _unit(prediction) @ _unit(target.detach()).mT  # (B, n, m)
        return (-2 * (match * cosine).sum((1, 2)) / (match.sum((1, 2)) + 1e-6)).mean()


def _cosine(prediction: Embeddings, target: Embeddings) -> Float[Tensor, " M"]:
    with torch.autocast(prediction.device.type, enabled=False):
        return (_unit(prediction) * _unit(target.detach())).sum(-1)


def _unit(x: Float[Tensor, "*rows _D"]) -> Float[Tensor, "*rows _D"]:
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def _mean(per_row: Float[Tensor, " M"], weight: RowWeight | None) -> Scalar:
    return per_row.mean() if weight is None else (per_row * weight).sum()
