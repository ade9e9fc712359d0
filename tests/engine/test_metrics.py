"""Means, rows and what a crash leaves of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from boxwise.engine.metrics import Meter, cut_back, fetch, read_rows, write_row

CPU = torch.device("cpu")


def test_means_are_over_parts_and_over_the_steps_that_counted() -> None:
    """Breaks when a dropped step's NaN enters the row, or when parts are summed."""
    meter = Meter(CPU)
    for ok, norm, parts in [(1.0, 3.0, (1.0, 3.0)), (0.0, math.nan, (math.nan, 7.0)), (1.0, 5.0, (4.0, 8.0))]:
        for value in parts:
            meter.add({"loss_box": torch.tensor(value), "loss": torch.tensor(2 * value)})
        meter.count(meter.step(), torch.tensor(norm), torch.tensor(ok))
    found = meter.figures(fetch(meter.tensors()))
    assert found == {"train/loss": 8.0, "train/loss_box": 4.0, "train/grad_norm": 4.0}


def test_a_meter_goes_on_where_it_was() -> None:
    first, second = Meter(CPU), Meter(CPU)
    first.add({"loss": torch.tensor(1.0)})
    first.count(first.step(), torch.tensor(1.0), torch.tensor(1.0))
    second.load(first.state())
    for meter in (first, second):
        meter.add({"loss": torch.tensor(3.0)})
        meter.count(meter.step(), torch.tensor(1.0), torch.tensor(1.0))
    assert second.figures(fetch(second.tensors())) == first.figures(fetch(first.tensors()))


def test_fetch_keeps_names_shapes_and_digits() -> None:
    parts = {
        "a": torch.tensor([1.5, 2.5]),
        "b": torch.tensor(7),
        "c": torch.zeros(0),
        "d": torch.tensor(1 / 3).double(),
    }
    assert fetch(parts) == {"a": [1.5, 2.5], "b": [7.0], "c": [], "d": [float(torch.tensor(1 / 3))]}


def test_rows_are_strict_json_and_survive_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step, loss in [(1, 0.5), (2, math.nan), (3, math.inf)]:
        write_row(path, {"step": step, "train/loss": loss})
    with path.open("a") as file:
        file.write('{"step": 4, "train/lo')
    json.loads(path.read_text().splitlines()[1], parse_constant=pytest.fail)
    assert read_rows(path) == [{"step": s, "train/loss": v} for s, v in [(1, 0.5), (2, None), (3, None)]]


def test_rows_after_the_checkpoint_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    cut_back(path, 0)
    assert path.read_text() == ""
    for step in (1, 5, 10, 11):
        write_row(path, {"step": step, "train/loss": step / 3})
    kept = path.read_text().splitlines()[:3]
    cut_back(path, 10)
    assert path.read_text().splitlines() == kept
