"""A classifier beside a pretraining: it learns, is measured, goes on after a stop, and moves nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import colours, photos, rows, settings

from boxwise.cli import main
from boxwise.engine.checkpoint import load
from boxwise.run.find import pretrain_recipe
from boxwise.run.pretrain import pretrain
from boxwise.strict import SettingsError

WATCHED: dict[str, Any] = {"data.classes": True}


@pytest.fixture(scope="module", name="colours")
def _colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours(tmp_path_factory.mktemp("colours"), train=8, val=4)


def state(run: Path, step: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load(run / "checkpoints" / f"step-{step:08d}.pt")["module"]
    return found


@pytest.mark.parametrize("recipe", ["scrl", "byol", "mocov2", "detco", "soco", "insloc", "resim"])
def test_what_is_pretrained_stays_the_same_to_the_last_bit(
    recipe: str, colours: Path, tmp_path: Path
) -> None:
    """Breaks when labels reach the features, or the classifier's presence moves a draw or a rate."""
    given = settings(recipe, steps=3)
    pretrain(recipe, colours / "train", tmp_path / "plain", settings=given)
    pretrain(recipe, colours, tmp_path / "watched", settings=given | WATCHED)
    plain, watched = state(tmp_path / "plain", 3), state(tmp_path / "watched", 3)
    assert watched.keys() == {f"method.{name}" for name in plain} | {"classifier.weight", "classifier.bias"}
    for name, want in plain.items():
        assert torch.equal(watched[f"method.{name}"], want), name
    exports = [(tmp_path / run / "export" / "model.safetensors").read_bytes() for run in ("plain", "watched")]
    assert exports[0] == exports[1]


def test_it_learns_and_is_measured(colours: Path, tmp_path: Path) -> None:
    """Breaks when labels and images do not belong together: red and blue are no question at all."""
    out = tmp_path / "run"
    given = settings("mocov2", steps=60, lr=0.5) | WATCHED
    pretrain("mocov2", colours, out, settings=given)
    found = json.loads((out / "results.json").read_text())
    assert found["online_top1"] == 100.0 and found["images"] == 8 and "online_top5" not in found
    terms = [row["train/loss_classifier"] for row in rows(out)]
    assert terms[-1] < 0.3 < 0.5 < terms[0]


def test_it_goes_on_where_it_was(colours: Path, tmp_path: Path) -> None:
    """Breaks when the classifier starts again with a resumed run."""
    given = settings("scrl", steps=4, **{"run.save_every": 2}) | WATCHED
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    pretrain("scrl", colours, whole, settings=given)
    shutil.copytree(whole, torn)
    (torn / "checkpoints" / "step-00000004.pt").unlink()
    pretrain("scrl", colours, torn, settings=given, resume=True)
    first, second = state(whole, 4), state(torn, 4)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_tenth_of_each_class_is_held_out_where_no_split_is(colours: Path, tmp_path: Path) -> None:
    """Breaks when the classifier is measured on what it was trained on."""
    out = tmp_path / "run"
    pretrain("mocov2", colours / "train", out, settings=settings("mocov2") | WATCHED)
    assert json.loads((out / "results.json").read_text())["images"] == 2
    assert json.loads((out / "run.json").read_text())["data"]["images"] == 14


def test_what_it_refuses(tmp_path: Path, colours: Path) -> None:
    """Breaks when a folder without classes, a C4 encoder or a compiled one is found out late, or not at all."""
    flat = photos(tmp_path / "photos", 8)
    with pytest.raises(ValueError, match="folder"):
        pretrain("mocov2", flat, tmp_path / "x", settings=settings("mocov2") | WATCHED)
    with pytest.raises(ValueError, match="reads c5, and this encoder stops at c4"):
        given = settings("insloc", **{"encoder.fpn_channels": 256}) | WATCHED
        given.pop("encoder.fpn_channels")
        pretrain("insloc_r50_c4_200ep", colours, tmp_path / "x", settings=given)
    with pytest.raises(SettingsError, match=r"data\.classes: a classifier watches the encoder"):
        pretrain_recipe("scrl", settings=WATCHED | {"compile": True})
    with pytest.raises(SettingsError, match=r"run\.clip_norm would count the classifier's gradient"):
        pretrain_recipe("scrl", settings=WATCHED | {"run.clip_norm": 1.0})
    assert not (tmp_path / "x").exists()
    assert main(["finetune", "faster_rcnn_fpn", "--data", "x", "--out", "y", "--data.classes", "true"]) == 2
