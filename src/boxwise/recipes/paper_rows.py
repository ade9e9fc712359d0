"""The papers' result rows as they were printed: their figures, never ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Row:
    """One result as a paper or its authors' repository printed it, empty where nothing was stated."""

    paper: str
    table: str
    role: str
    """own, baseline, supervised or random."""
    init: str
    """What the weights are, in the paper's words."""
    pretrain_epochs: int | None
    backbone: str
    """R50-C4, R50-FPN and so on, of the detector."""
    ablation: bool | None
    variant: str | None
    """What an ablation changed, in the paper's words."""
    pretrain_data: str | None
    """Images that were pretrained on; ImageNet where nothing is stated."""
    detector: str | None
    schedule: str | None
    dataset: str
    task: str
    settings: str | None
    note: str | None
    metrics: Mapping[str, float | str]
    """The paper's figures."""


@cache
def rows() -> tuple[Row, ...]:
    """All rows, in the order of papers and tables."""
    stored = json.loads(files("boxwise.recipes").joinpath("paper_rows.json").read_text(encoding="utf-8"))
    return tuple(Row(**dict(zip(stored["columns"], row, strict=True))) for row in stored["rows"])
