"""The weights that a row starts from fit the detector that it ends in, whole, and change nothing of its protocol."""

from functools import cache

import pytest
import torch
from torch import nn

from boxwise.interop.files import Weights
from boxwise.interop.keys import PARTS
from boxwise.recipes.paper_rows import Row, rows
from boxwise.recipes.recipe import Recipe, TransferRecipe
from boxwise.recipes.table_transfers import PUBLISHED, finish
from boxwise.recipes.tables import start
from boxwise.run.finetune import adopted
from boxwise.run.pretrain import build, card
from boxwise.strict import dump_yaml
from boxwise.transfer.detectors.base import DetectorConfig


def pairs() -> dict[str, Row]:
    """One row for each kind of weights in each kind of detector."""
    found: dict[str, Row] = {}
    for row in rows():
        recipe, end = start(row).recipe, finish(row)
        if recipe is not None and end.protocol is not None:
            detector = PUBLISHED[end.protocol]().detector
            kind = (detector.name, getattr(detector, "head", ""), *end.changes)
            found.setdefault(" ".join((recipe.method.name, dump_yaml(recipe.encoder), *kind)), row)
    return found


PAIRS = [*pairs().values()]
MADE: dict[str, Recipe] = {}
"""What was built, by the settings that decide its shapes."""


@cache
def handed_over(settings: str) -> Weights:
    """What a run of `MADE` leaves, without its numbers."""
    recipe = MADE[settings]
    with torch.device("meta"):
        parts = build(recipe).handed_over()
    state = {PARTS[part] + n: t for part, module in parts.items() for n, t in module.state_dict().items()}
    return Weights(recipe.name, state, card(recipe))


@cache
def parts_of(config: DetectorConfig) -> dict[str, nn.Module]:
    with torch.device("meta"):
        return config.build(classes=3, mean=(0.5,) * 3, std=(0.2,) * 3).parts()


def test_there_is_a_pair_of_every_kind() -> None:
    """Breaks when the walk below goes round a method or a detector."""
    ends = {finish(row).recipe.detector.name for row in PAIRS}
    assert ends == {recipe().detector.name for recipe in PUBLISHED.values()}
    assert {row.init for row in PAIRS} >= {
        "MoCo-v2",
        "BYOL",
        "InsLoc",
        "SoCo",
        "DetCo",
        "ReSim-FPN^T",
        "SCRL",
    }
    assert len(PAIRS) > 40


@pytest.mark.parametrize("row", PAIRS, ids=lambda row: f"{row.paper}-{row.table}-{row.init}")
def test_weights_arrive_and_the_protocol_stays(row: Row) -> None:
    """Breaks when the weights of a row do not fit its detector, or their FPN takes its norms away."""
    before, end = start(row).recipe, finish(row).recipe
    assert before is not None and isinstance(end, TransferRecipe)
    settings = dump_yaml([before.method, before.encoder])
    MADE.setdefault(settings, before)
    weights = handed_over(settings).only(end.weights.parts)
    assert adopted(end, weights, ()) == end
    parts = parts_of(end.detector)
    report = weights.match(parts)
    taken = [part for part in weights.parts if part in parts]
    report.require(taken)
    assert report.parts["backbone"].complete and report.parts["backbone"].share == 1
    held = {
        "InsLoc": ("fpn", "head"),
        "SoCo": ("fpn", "head"),
        "SoCo*": ("fpn", "head"),
        "ReSim-FPN^T": ("fpn",),
    }
    pyramid = row.backbone.endswith("FPN") and row.variant not in ("whole image", "+selective search")
    least = [part for part in held.get(row.init, ()) if part in parts] if pyramid else []
    assert taken == ["backbone", *least]
