"""The demo's comparison: two arms side by side, with all but their first weights alike."""

from __future__ import annotations

import json
from pathlib import Path

from tiny import facts

from boxwise.report.compare import pairs
from boxwise.report.read import read_runs
from boxwise.run.demo import demo


def test_both_arms_are_one_recipe_and_the_figures_are_theirs(tmp_path: Path) -> None:
    """Breaks when an arm gets another length, rate, seed or number of threads, or weights that did not arrive."""
    out = tmp_path / "demo"
    outcome = demo(out, scale=0.001)
    random, pretrained = out / "random", out / "pretrained"
    assert (random / "config.yaml").read_text() == (pretrained / "config.yaml").read_text()
    assert (facts(random)["status"], facts(pretrained)["status"]) == ("finished", "finished")
    assert (pretrained / "match.txt").read_text().count("100.0 %") == 3
    assert (
        facts(random)["data"].get("weights") != str(out / "pretrain") == facts(pretrained)["data"]["weights"]
    )
    figures = json.loads((out / "result.json").read_text())
    for arm, run in (("random", random), ("pretrained", pretrained)):
        assert figures[arm] == json.loads((run / "results.json").read_text()) == outcome.arms[arm]
        assert {"AP", "AP50", "AP75", "images", "seconds"} <= figures[arm].keys()
    (pair,) = pairs(read_runs([random, pretrained]))  # as the page holds them against each other
    assert (pair.random.path, pair.pretrained.path) == (random, pretrained)
