"""What benchmarks/step.py takes for a method's bare passes and parts."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from tiny import settings

from boxwise.recipes.pretrain import METHODS
from scripts import script

BODIES = {  # (images, gradient wanted) of each pass through a backbone, for 4 images
    "scrl": [(8, True), (8, False)],
    "scrl_fpn": [(8, True), (8, False)],
    "mocov2": [(4, True), (4, False)],
    "byol": [(4, True), (4, True), (4, False), (4, False)],
    "simsiam": [(4, True), (4, True)],
    "detco": [(4, True), (36, True), (4, False), (36, False)],
    "resim": [(4, True), (4, False)],
    "insloc": [(4, True), (4, False)],
    "soco": [(4, True)] * 3 + [(4, False)] * 3,
}


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("step")


@pytest.mark.parametrize("name", METHODS)
def test_bare_is_the_methods_own_passes(name: str, bench: ModuleType) -> None:
    """Breaks when a pass is forgotten, counted twice, or run with gradients that the step does not want."""
    recipe = METHODS[name]().changed(settings(name))
    method, batch = bench.ready(recipe, torch.device("cpu"))
    heard = bench.Heard()
    with heard.listening(method):
        method(batch)
    passes = [(len(args[0]), wanted) for _, args, _, wanted in heard.calls["bare"]]
    assert sum(n for n, wanted in passes if not wanted) == sum(n for n, w in BODIES[name] if not w)
    assert [p for p in passes if p[1]] == [p for p in BODIES[name] if p[1]]
    assert ("fpn" in heard.calls) == bool(recipe.encoder.fpn) and heard.calls["loss"]
    before = len(heard.calls["loss"])
    method(batch)
    assert len(heard.calls["loss"]) == before, "the method's own objective is back"


def test_parts_are_backward_passes_too(bench: ModuleType) -> None:
    recipe = METHODS["byol"]().changed(settings("byol"))
    rounds = bench.measure(recipe, torch.device("cpu"), rounds=2)
    assert len(rounds) == 2
    assert set(rounds[0]) == {"step", "bare", *bench.PARTS} and all(v >= 0 for v in rounds[0].values())
    known = {**dict.fromkeys(bench.PARTS, 0.001), "fpn": 0.004, "step": 0.03, "bare": 0.02}
    slow = {key: 2 * seconds for key, seconds in known.items()}
    disturbed = known | {"step": 0.036}
    cells = bench.row("byol", [slow, disturbed, slow, known]).split(" | ")
    assert cells[1:6] == ["+50% (+80%)", "+20% (+44%)", "30.0", "20.0", "4.0"], (
        "the quickest, then the second"
    )
    assert cells[-1].startswith("-1.0")
