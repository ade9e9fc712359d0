"""The sweep of the demo's rate trains the demo's own detector, once a cell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boxwise.data.scenes import write_scenes
from boxwise.strict import load_yaml
from scripts import script


def test_each_cell_is_trained_once_at_its_rate_and_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a rate or a length does not reach the run, a cell lands in another's place, or a finished run is
    trained again."""
    write_scenes(tmp_path / "demo" / "scenes", counts={"train": 8, "val": 2}, size=96)
    runs = tmp_path / "runs"
    asked = ["--rates", "0.002", "0.001", "--steps", "1", "2", "--seed", "3"]
    benchmark = script("demo_rate")
    argv = [str(tmp_path / "demo"), str(runs), *asked, "--out", str(tmp_path / "pages")]
    assert benchmark.main(argv) == 0
    config = load_yaml(runs / "0.002_1_3" / "config.yaml")
    assert (config["optim"]["lr"], config["schedule"]["steps"], config["run"]["seed"]) == (0.002, 1, 3)
    for i, name in enumerate(("0.001_1_3", "0.001_2_3", "0.002_1_3", "0.002_2_3")):
        results = runs / name / "results.json"
        results.write_text(json.dumps({**json.loads(results.read_text()), "AP": 10.0 + i}))
    capsys.readouterr()
    assert benchmark.main(argv) == 0
    page = capsys.readouterr().out
    assert "| 0.001 | 10.00 | 11.00 |" in page and "| 0.002 | 12.00 | 13.00 |" in page
    assert next((tmp_path / "pages").glob("demo-rate-seed3-*.md")).read_text() in page
