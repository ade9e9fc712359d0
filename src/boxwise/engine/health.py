"""Figures that show a collapse while the loss looks fine, and an alarm that names it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize

from boxwise.shapes import Embeddings, Keep

FIGURES = ("ssl/feature_std", "ssl/effective_rank", "ssl/pos_sim", "ssl/neg_sim")


@torch.no_grad()
def health(query: Embeddings, key: Embeddings, keep: Keep | None = None) -> dict[str, Tensor]:
    """Figures over the kept rows of matched embeddings; NaN where fewer than two rows are kept.

    - `ssl/feature_std`: standard deviation of the unit queries, mean over dimensions, times sqrt(D): 1 when
      they spread evenly over the sphere, 0 when all are one vector.
    - `ssl/effective_rank`: exp of the entropy of the queries' singular values: from 1 to min(M, D)
      (RankMe, https://arxiv.org/abs/2210.02885).
    - `ssl/pos_sim`, `ssl/neg_sim`: mean cosine of a query with its own key, and with the keys of other rows.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    rows = torch.ones(len(query), device=query.device) if keep is None else keep
    rows = rows.to(wide)
    q = torch.where(rows[:, None] > 0, normalize(query.to(wide), dim=1), 0)
    k = torch.where(rows[:, None] > 0, normalize(key.to(wide), dim=1), 0)
    count, matched = rows.sum(), (q * k).sum()
    centred = (q - q.sum(0) / count) * rows[:, None]
    figures = (
        (centred.square().sum(0) / count).sqrt().mean() * query.shape[1] ** 0.5,
        _effective_rank(q),
        matched / count,
        (q.sum(0) @ k.sum(0) - matched) / (count * (count - 1)),
    )
    sound = (count > 1) & torch.isfinite(matched)
    return {name: torch.where(sound, value, torch.nan) for name, value in zip(FIGURES, figures, strict=True)}


def _effective_rank(rows: Embeddings) -> Tensor:
    sizes = torch.linalg.svdvals(torch.nan_to_num(rows))
    shares = sizes / sizes.sum()
    return torch.special.entr(shares).sum().exp()


class Alarm:
    """Says once what a collapse is and what to try, when the figures have shown it `patience` times in a row.

    The first `grace` steps are left alone: fresh networks map all images to nearly one vector.
    """

    def __init__(self, *, grace: int = 100, patience: int = 5) -> None:
        self.grace, self.patience = grace, patience
        self._seen: dict[str, int] = {}

    def hear(self, step: int, row: Mapping[str, float]) -> str | None:
        """A message, or None. A row without the figures of `health` never alarms."""
        figures = {name: row[name] for name in FIGURES if name in row}
        if step <= self.grace or len(figures) < len(FIGURES):
            return None
        shown = self._cause(figures)
        for cause in CAUSES:
            self._seen[cause] = self._seen.get(cause, 0) + 1 if cause == shown else 0
        if shown is None or self._seen[shown] != self.patience:
            return None
        values = ", ".join(f"{name.removeprefix('ssl/')} {value:.3g}" for name, value in figures.items())
        return f"collapse: {CAUSES[shown]} ({values})"

    def _cause(self, figures: Mapping[str, float]) -> str | None:
        std, rank = figures["ssl/feature_std"], figures["ssl/effective_rank"]
        positive, negative = figures["ssl/pos_sim"], figures["ssl/neg_sim"]
        if std < 0.05:
            return "point"
        if rank < 2.5:
            return "line"
        if positive - negative < 0.01:
            return "strangers"
        return None


CAUSES = {
    "point": (
        "all embeddings are nearly one vector. Lower the learning rate or lengthen the warm-up; check that "
        "each device sees at least 16 images (BatchNorm) and that the teacher's momentum is not too low"
    ),
    "line": (
        "embeddings differ along one or two directions only. Lower the learning rate, raise the batch size, "
        "or make the views share less (stronger colour jitter, smaller crops)"
    ),
    "strangers": (
        "an embedding is no nearer to its own partner than to any other. Views may share too little: look "
        "at them with `boxwise show`, and raise the crop's smallest scale"
    ),
}
