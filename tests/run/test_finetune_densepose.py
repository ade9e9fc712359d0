"""DensePose R-CNN from the command line: trained on points, measured with a mesh and without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import DETECTOR, facts, flags, rows

from boxwise.cli import main
from boxwise.transfer.metrics import FIGURES
from boxwise.transfer.metrics.densepose import DENSEPOSE_FIGURES, unpacked
from surfaces import write_mesh, write_people

TINY = DETECTOR | {
    "detector.cells": 5,
    "detector.channels": 8,
    "detector.box_batch_size_per_image": 8,
    "detector.score_threshold": 0.0,
    "detector.detections_per_image": 5,
}


def test_a_run_is_measured_along_the_mesh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when the flag does not reach the measure, or evaluate forgets the run's own mesh."""
    data, out = write_people(tmp_path / "coco", count=4), tmp_path / "run"
    mesh = write_mesh(tmp_path / "mesh.npz")
    words = ["finetune", "densepose_rcnn", "--data", str(data), "--out", str(out), *flags(TINY)]
    assert main([*words, "--geodesics", str(tmp_path / "lost.npz")]) == 2
    assert "measure.geodesics: no file" in capsys.readouterr().err and not out.exists()
    (tmp_path / "short.npz").write_bytes(mesh.read_bytes()[:-100])
    assert main([*words, "--geodesics", str(tmp_path / "short.npz")]) == 1
    assert "short.npz: cannot be read" in capsys.readouterr().err and not out.exists()
    assert main([*words, "--geodesics", str(mesh)]) == 0
    assert facts(out)["status"] == "finished"
    results = json.loads((out / "results.json").read_text())
    assert results.keys() == {*FIGURES["bbox"], *DENSEPOSE_FIGURES, "images", "seconds"}
    terms = {name.removeprefix("train/loss_") for name in rows(out)[0] if name.startswith("train/loss_")}
    assert {"body", "part", "u", "v"} <= terms
    found = json.loads((out / "detections.json").read_text())
    assert len(found) == 10 and all(unpacked(one).shape[0] == 3 for one in found)
    capsys.readouterr()
    again = ["evaluate", str(out), "--data", str(data), "--device", "cpu", "--batch-size", "4", "--json"]
    assert main(again) == 0
    assert json.loads(capsys.readouterr().out) == {k: v for k, v in results.items() if k != "seconds"}
    mesh.rename(tmp_path / "moved.npz")
    assert main([*again, "--geodesics", str(tmp_path / "moved.npz")]) == 0
    assert json.loads(capsys.readouterr().out)["gps_AP50"] == results["gps_AP50"]


def test_without_a_mesh_boxes_alone_are_measured(tmp_path: Path) -> None:
    data, out = write_people(tmp_path / "coco", count=2, val=1), tmp_path / "run"
    with pytest.warns(UserWarning, match="GPS and GPSm need --geodesics FILE"):
        assert main(["finetune", "densepose_rcnn", "--data", str(data), "--out", str(out), *flags(TINY)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results.keys() == {*FIGURES["bbox"], "images", "seconds"}


def test_data_without_points_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a detector of surfaces trains on boxes alone."""
    data = write_people(tmp_path / "coco", count=2, val=1)
    file = data / "annotations" / "densepose_train2014.json"
    table = json.loads(file.read_text())
    for entry in table["annotations"]:
        for name in [key for key in entry if key.startswith("dp_")]:
            del entry[name]
    file.write_text(json.dumps(table))
    words = ["finetune", "densepose_rcnn", "--data", str(data), "--out", str(tmp_path / "run"), *flags(TINY)]
    assert main(words) == 1
    assert "none of 4 annotations has dp" in capsys.readouterr().err
