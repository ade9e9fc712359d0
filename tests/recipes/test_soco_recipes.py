"""SoCo's published values and the rows of its ablations."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

import boxwise.recipes as house
from boxwise.config import LARS
from boxwise.data.objects import shared_parts
from boxwise.engine.optim import learning_rate
from boxwise.methods import soco
from boxwise.recipes.soco import (
    ablation,
    soco_r50_c4_100ep,
    soco_r50_c4_400ep,
    soco_r50_fpn_100ep,
    soco_r50_fpn_400ep,
    soco_star_r50_fpn_400ep,
)

STEPS = (
    "whole image",
    "+selective search",
    "+FPN",
    "+R-CNN head",
    "+scale-aware assignment",
    "+box jitter",
    "+multi-view (V3) = SoCo",
)


def test_published_values() -> None:
    """Breaks when a value drifts from the paper's or the official code's."""
    base = soco_r50_fpn_100ep()
    assert base.method == soco.Config(), "the settings' defaults are the published run"
    assert isinstance(base.optim, LARS) and (base.optim.lr, base.optim.weight_decay) == (1.0, 1e-5)
    assert (base.optim.momentum, base.optim.trust, base.optim.eps, base.optim.norm) == (
        0.9,
        0.001,
        1e-8,
        "joint",
    )
    assert (base.run.batch_size, base.schedule.epochs, soco_r50_fpn_400ep().schedule.epochs) == (
        2048,
        100,
        400,
    )
    assert base.method.limits == (48, 96, 192) and base.method.objects.count == 4
    first, second, third = base.views
    assert first.crop.whole and second.crop.scale == (0.5, 1.0) and third.crop.like == 1
    assert [v.crop.size for v in base.views] == [224, 224, 112]
    assert {v.crop.interpolation for v in base.views} == {"bilinear"}
    assert [(v.photo.blur, v.photo.solarize) for v in base.views] == [(1.0, 0.0), (0.1, 0.2), (0.1, 0.2)]
    assert all((v.photo.saturation, v.photo.blur_kind, v.cutout.share) == (0.2, "pil", 0) for v in base.views)
    assert [v.crop.size for v in soco_star_r50_fpn_400ep().views] == [224, 224, 192, 112]
    for c4, epochs in ((soco_r50_c4_100ep(), 100), (soco_r50_c4_400ep(), 400)):
        assert len(c4.views) == 2 and c4.views[1].crop.scale == (0.6, 1.0) and c4.schedule.epochs == epochs
        assert c4.encoder.c4 and c4.encoder.zero_init_last and not c4.encoder.fpn
        assert c4.method.objects.jitter == 0 and c4.method.pool_size == 14


def test_trap_18_rate_warms_up_from_a_hundredth_and_moves_every_step() -> None:
    """Breaks when the rate stands still within an epoch, is read a step ahead, starts at 0 or ends there."""
    schedule, steps = soco_r50_fpn_100ep().schedule, 7
    rates = [
        learning_rate(k, base=8.0, schedule=schedule, steps_per_epoch=steps, total=100 * steps)
        for k in range(100 * steps + 1)
    ]
    assert rates[0] == pytest.approx(0.08) and rates[70] == pytest.approx(8.0)
    assert rates[35] == pytest.approx((0.08 + 8.0) / 2)
    assert rates[-1] == pytest.approx(1e-6) and rates[-2] > 1e-6
    assert all(a < b for a, b in pairwise(rates[:71]))
    assert all(a > b for a, b in pairwise(rates[70:]))


def test_trap_12_both_third_views_can_be_asked_for() -> None:
    """Breaks when the released code's own crop cannot be had, or SoCo* has no set of its own for its crop."""
    base = soco_r50_fpn_100ep()
    own = base.changed({"views.2.crop.like": None})
    assert shared_parts([v.crop for v in base.views]) == [1, 1]
    assert shared_parts([v.crop for v in own.views]) == [1, 2] and own.views[2].crop.scale == (0.5, 1.0)
    assert shared_parts([v.crop for v in soco_star_r50_fpn_400ep().views]) == [1, 2, 1]


def test_every_ablation_of_the_paper_is_a_recipe() -> None:
    """Breaks when a row has no recipe, or its recipe cannot be."""
    file = Path(house.__file__).parent / "paper_rows.json"
    told = json.loads(file.read_text())
    rows = [dict(zip(told["columns"], row, strict=True)) for row in told["rows"]]
    variants = {row["variant"] for row in rows if row["paper"] == "SoCo" and row["variant"]}
    assert len(variants) > 20
    for variant in variants:
        recipe = ablation(variant)
        assert recipe.changed() == recipe, variant


def test_ablations_change_what_they_name() -> None:
    """Breaks when a row's switch is read nowhere, or moves more than one step of Table 4."""
    table = [ablation(variant) for variant in STEPS]
    assert table[-1] == soco_r50_fpn_100ep()
    changed = [
        {key for key in vars(a) if key != "name" and getattr(a, key) != getattr(b, key)}
        for a, b in pairwise(table)
    ]
    assert changed == [{"method"}, {"method", "encoder"}, {"method"}, {"method"}, {"method"}, {"views"}]
    assert [r.method.box_head for r in table] == [False] * 3 + [True] * 4
    assert [r.method.scale_aware for r in table[3:]] == [False, True, True, True]
    assert [r.method.objects.jitter for r in table[4:]] == [0.0, 0.5, 0.5]
    assert table[0].method.objects.proposals == "whole" and table[0].method.objects.count == 1
    assert ablation("V3 size=160").views[2].crop.size == 160
    assert ablation("EMA tau=0.993").method.momentum == 0.993
    assert ablation("batch size=4096").run.batch_size == 4096
    many = ablation("random boxes, K=8").method.objects
    assert (many.count, many.proposals) == (8, "random")
    assert replace(many, count=4, proposals="selective-search") == soco_r50_fpn_100ep().method.objects
