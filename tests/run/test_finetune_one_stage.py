"""RetinaNet and FCOS through the command line, and runs that end while norms are measured anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import DETECTOR, facts, flags, photos, rows, settings

from boxwise.cli import main
from boxwise.run import detector_run
from boxwise.run.evaluate import load_detector
from boxwise.run.finetune import finetune
from boxwise.run.pretrain import pretrain
from boxwise.run.scenes import scenes
from boxwise.strict import load_yaml
from boxwise.transfer.metrics import FIGURES

WIDE: dict[str, Any] = {**DETECTOR, "detector.fpn_channels": 32}
TERMS = {"retinanet": {"classifier", "box"}, "fcos": {"classifier", "box", "centerness"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("data") / "coco", count=8, val=2, size=64)


def state(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


@pytest.mark.parametrize("family", [*TERMS])
def test_a_detector_of_one_stage_is_trained_and_evaluated(
    family: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when what a run saved is not what it measured, or a family cannot be told from the command line."""
    out = tmp_path / "run"
    words = ["finetune", family, "--data", str(data), "--out", str(out)]
    assert main([*words, *flags({**WIDE, "detector.score_threshold": 0.0})]) == 0
    before = json.loads((out / "results.json").read_text())
    for row in rows(out):
        found = {key.removeprefix("train/loss_") for key in row if key.startswith("train/loss_")}
        assert found == TERMS[family]
    assert json.loads((out / "detections.json").read_text())
    assert load_yaml(out / "config.yaml")["detector"]["name"] == family
    capsys.readouterr()
    assert main(["evaluate", str(out), "--data", str(data), "--json", "--device", "cpu"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == {key: before[key] for key in (*FIGURES["bbox"], "images")}
    assert load_detector(out).config.name == family
    assert load_yaml(out / "config.yaml")["optim"]["lr"] == 0.01


@pytest.mark.parametrize("family", [*TERMS])
def test_pretrained_weights_arrive_and_what_is_not_used_is_said(
    family: str, data: Path, tmp_path: Path
) -> None:
    """Breaks when the box head, which these detectors lack, or p2's blocks stop a run or are dropped in silence."""
    given = settings("scrl_fpn", **{"encoder.fpn_channels": 32})
    pretrain("scrl_fpn", photos(tmp_path / "photos", 6), tmp_path / "pretrained", settings=given)
    told = {key: value for key, value in WIDE.items() if key not in ("backbone", "detector.fpn_channels")}
    out = finetune(
        family, data, tmp_path / "run", settings={**told, "lr": 0.0}, weights=tmp_path / "pretrained"
    )
    ours, theirs = state(out), state(tmp_path / "pretrained")
    body = [n for n in theirs if n.startswith("backbone.body.") and n.endswith("weight")]
    assert body and all(torch.equal(ours[n], theirs[n]) for n in body)
    for level in range(3):
        for kind in ("inner_blocks", "layer_blocks"):
            name = "backbone.fpn.{}.{}.0.weight"
            assert torch.equal(ours[name.format(kind, level)], theirs[name.format(kind, level + 1)])
    match = (out / "match.txt").read_text()
    assert match.count("100.0 %") == 2
    assert "fpn, not used, there is no such level: inner_blocks.0" in match
    assert "head      not used, there is no such part" in match
    assert facts(out)["status"] == "finished"


def test_a_run_killed_while_norms_are_measured_ends_as_if_it_had_not_been(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when the measure starts from statistics, or from draws, of which the checkpoint knows nothing."""
    given = {**DETECTOR, "measure.precise_bn": 3, "detector.box_batch_size_per_image": 4}
    whole = finetune("faster_rcnn_fpn", data, tmp_path / "whole", settings=given)
    honest = detector_run.remeasured

    def killed(module: Any, batches: Any, **more: Any) -> int:
        honest(module, [next(iter(batches))], **more)
        raise OSError("the machine went away")

    monkeypatch.setattr(detector_run, "remeasured", killed)
    with pytest.raises(OSError, match="went away"):
        finetune("faster_rcnn_fpn", data, tmp_path / "cut", settings=given)
    assert not (tmp_path / "cut" / "export").exists()
    monkeypatch.undo()
    torch.manual_seed(99)
    cut = finetune("faster_rcnn_fpn", data, tmp_path / "cut", settings=given, resume=True)
    ours, theirs = state(cut), state(whole)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    results = [json.loads((run / "results.json").read_text()) | {"seconds": 0} for run in (cut, whole)]
    assert results[0] == results[1]


def test_what_a_detector_cannot_have_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a slip of the sign means no measure at all, or a wish is passed over in silence."""
    words = ["finetune", "faster_rcnn_fpn", "--data", str(data), "--out", str(tmp_path / "run")]
    assert main([*words, *flags({**DETECTOR, "measure.precise_bn": -1}), "--compile"]) == 2
    told = capsys.readouterr().err
    assert "measure.precise_bn: expected 0 or more, got -1" in told
    assert "run.compile: detectors are not compiled" in told
