"""Whole fine-tuning runs: what arrives from pretraining, what is measured, and what they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import DETECTOR, facts, flags, photos, rows, settings

from boxwise.cli import main
from boxwise.data.targets import open_labelled
from boxwise.interop.files import load_weights, write_state
from boxwise.interop.keys import WeightsError
from boxwise.run.evaluate import load_detector
from boxwise.run.find import transfer_recipe
from boxwise.run.finetune import finetune
from boxwise.run.pretrain import pretrain
from boxwise.run.scenes import scenes
from boxwise.strict import SettingsError, load_yaml
from boxwise.transfer.metrics import FIGURES

STILL = {"lr": 0.0}
"""Weights end as they began."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("data") / "coco", count=12, val=3, size=64)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbone, an FPN of 24 channels and the box head, with pixel statistics of their own."""
    folder = tmp_path_factory.mktemp("pretrained")
    given = settings("scrl_fpn", **{"encoder.fpn_channels": 24, "views.0.photo.mean": [0.5, 0.4, 0.3]})
    given |= {"views.1.photo.mean": [0.5, 0.4, 0.3]}
    pretrain("scrl_fpn", photos(folder / "photos", 6), folder / "run", settings=given)
    return folder / "run"


@pytest.fixture(scope="module")
def random_arm(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune("faster_rcnn_fpn", data, tmp_path_factory.mktemp("random") / "run", settings=DETECTOR)


def without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in DETECTOR.items() if key not in names}


def argv(data: Path, out: Path, *more: str, given: dict[str, Any] = DETECTOR) -> list[str]:
    return ["finetune", "faster_rcnn_fpn", "--data", str(data), "--out", str(out), *more, *flags(given)]


def state(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


def test_from_random_weights(random_arm: Path, data: Path) -> None:
    results = json.loads((random_arm / "results.json").read_text())
    assert results.keys() == {*FIGURES["bbox"], "images", "seconds"} and results["images"] == 3
    assert all(-1 <= results[name] <= 100 for name in FIGURES["bbox"]) and results["seconds"] > 0
    assert (random_arm / "match.txt").read_text() == "random weights\n"
    train = open_labelled(data, split="train")
    assert (random_arm / "labelled.txt").read_text().split() == [train.name(i) for i in range(12)]
    known = facts(random_arm)
    assert (known["kind"], known["status"], known["data"]["images"], known["data"]["test_images"]) == (
        "finetune",
        "finished",
        12,
        3,
    )
    assert known["data"]["weights"] is None and known["data"]["mean"] == [0.485, 0.456, 0.406]
    losses = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    for row in rows(random_arm):
        terms = {key for key in row if key.startswith("train/loss_")}
        assert len(terms) == len(losses)
        assert sum(row[t] for t in terms) == pytest.approx(row["train/loss"], rel=1e-4)
        assert math.isfinite(row["train/grad_norm"])
    assert transfer_recipe("faster_rcnn_fpn", config=random_arm / "config.yaml").recipe == transfer_recipe(
        "faster_rcnn_fpn", settings=DETECTOR
    ).recipe.changed({"schedule.warmup_steps": 0, "schedule.warmup_epochs": 0.0})
    assert (random_arm / "figures" / "detections.png").stat().st_size > 1000


def test_evaluate_gives_the_runs_own_figures(
    random_arm: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((random_arm / "results.json").read_text())
    assert main(["evaluate", str(random_arm), "--data", str(data), "--json", "--device", "cpu"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == {key: before[key] for key in (*FIGURES["bbox"], "images")}
    assert main(["evaluate", str(random_arm), "--data", str(data), "--device", "cpu"]) == 0
    assert f"AP50   {before['AP50']:6.2f}" in capsys.readouterr().out


def test_pretrained_weights_arrive_in_a_detector_of_their_shape(
    pretrained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a rate of 0 the detector ends with the very weights; FPN width, mean and std are theirs unasked."""
    out = tmp_path / "run"
    given = {**without("backbone", "detector.fpn_channels"), **STILL}
    assert main(argv(data, out, "--weights", str(pretrained), given=given)) == 0
    assert str(out) in capsys.readouterr().out
    ours, theirs = state(out), state(pretrained)
    learnt = [
        name for name in theirs if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    assert {name.split(".")[1] for name in learnt} == {"body", "fpn", "box_head"}
    assert all(torch.equal(ours[name], theirs[name]) for name in learnt)
    found = load_detector(out)
    assert (found.config.backbone, found.config.fpn_channels) == ("test_resnet", 24)
    assert found.precision == "fp32"  # as it was measured: bfloat16 moves figures
    assert next(found.model.backbone.parameters()).is_contiguous(memory_format=torch.channels_last)
    assert found.model.mean == pytest.approx([0.5, 0.4, 0.3])
    assert [c.name for c in found.categories] == [
        c.name for c in open_labelled(data, split="train").categories
    ]
    assert load_yaml(out / "config.yaml")["detector"]["fpn_channels"] == 24
    match = (out / "match.txt").read_text()
    assert str(pretrained) in match and match.count("100.0 %") == 3 and "missing" in match
    known = facts(out)["data"]
    assert (known["weights"], known["weights_digest"]) == (str(pretrained), load_weights(pretrained).digest)


def test_both_arms_tell_what_pixels_were_normalised_by(
    pretrained: Path, random_arm: Path, data: Path, tmp_path: Path
) -> None:
    """A comparison can see that its arms differ in more than weights."""
    given = without("backbone", "detector.fpn_channels")
    out = finetune("faster_rcnn_fpn", data, tmp_path / "run", settings=given, weights=pretrained)
    assert facts(out)["data"]["mean"] == [0.5, 0.4, 0.3] != facts(random_arm)["data"]["mean"]
    assert facts(out)["data"]["std"] == facts(random_arm)["data"]["std"] == [0.229, 0.224, 0.225]
    ours, theirs = state(out), state(pretrained)
    assert any(not torch.equal(ours[n], theirs[n]) for n in theirs if n.endswith("conv1.weight")), "it trains"


def test_a_setting_against_the_weights_is_a_usage_error(
    pretrained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given = {**DETECTOR, "backbone": "resnet18"}
    assert main(argv(data, out, "--weights", str(pretrained), given=given)) == 2
    said = capsys.readouterr().err
    assert "detector.backbone: resnet18 was asked for" in said and "test_resnet" in said
    assert "detector.fpn_channels: 16 was asked for" in said and not out.exists()
    (tmp_path / "mine.yaml").write_text("detector: {fpn_channels: 16}\n")
    with pytest.raises(SettingsError, match="fpn_channels: 16 was asked for"):
        finetune("faster_rcnn_fpn", data, out, weights=pretrained, config=tmp_path / "mine.yaml")
    agreeing = {**DETECTOR, "detector.fpn_channels": 24}
    finetune("faster_rcnn_fpn", data, out, weights=pretrained, settings=agreeing)


@pytest.mark.parametrize(("labels", "count"), [("0.5", 6), ("4", 4)])
def test_few_labels_are_drawn_by_the_seed_and_listed(
    labels: str, count: int, data: Path, tmp_path: Path
) -> None:
    chosen = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(number)
        assert main(argv(data, out, "--labels", labels, "--seed", str(seed))) == 0
        chosen.append((out / "labelled.txt").read_text().splitlines())
        assert facts(out)["data"]["images"] == count == len(set(chosen[-1]))
    assert chosen[0] == chosen[1] != chosen[2]
    known = open_labelled(data, split="train")
    assert set(chosen[0]) <= {known.name(i) for i in range(12)}


def test_too_many_labels_are_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv(data, tmp_path / "run", "--labels", "13")) == 1
    assert "1 to 12" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_weights_that_do_not_arrive_end_the_command_with_4(
    pretrained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_weights(pretrained)
    lost = "backbone.body.layer2.0.conv1.weight"
    held = {name: tensor for name, tensor in weights.state.items() if name != lost}
    assert len(held) == len(weights.state) - 1
    write_state(tmp_path / "torn", held, weights.config)
    given = without("backbone", "detector.fpn_channels")
    assert main(argv(data, tmp_path / "run", "--weights", str(tmp_path / "torn"), given=given)) == 4
    said = capsys.readouterr().err
    assert "backbone did not arrive as promised" in said and lost.removeprefix("backbone.body.") in said
    assert not (tmp_path / "run").exists()
    with pytest.raises(WeightsError):
        finetune("faster_rcnn_fpn", data, tmp_path / "run", settings=given, weights=tmp_path / "torn")


def test_a_run_resumes_to_the_same_weights_and_figures(data: Path, random_arm: Path, tmp_path: Path) -> None:
    """Cut off after its first step: the second is taken as if nothing had been."""
    out = tmp_path / "run"
    given = {**DETECTOR, "run.save_every": 1}
    finetune("faster_rcnn_fpn", data, out, settings=given)
    assert state(out).keys() == state(random_arm).keys()
    (out / "checkpoints" / "step-00000002.pt").unlink()
    for gone in ("results.json", "export/model.safetensors"):
        (out / gone).unlink()
    finetune("faster_rcnn_fpn", data, out, settings=given, resume=True)
    assert all(torch.equal(tensor, state(random_arm)[name]) for name, tensor in state(out).items())
    figures = [json.loads((run / "results.json").read_text()) for run in (out, random_arm)]
    assert figures[0] | {"seconds": 0} == figures[1] | {"seconds": 0}
    assert [row["step"] for row in rows(out)] == [1, 2]
    other = scenes(tmp_path / "other", count=11, val=3, size=64)
    with pytest.raises(ValueError, match=r"(?s)data set.fingerprint.*data set.images: 12 -> 11"):
        finetune("faster_rcnn_fpn", other, out, settings=given, resume=True)


def test_a_json_with_its_images_and_another_to_measure_on(data: Path, tmp_path: Path) -> None:
    """The layout of sets that are no COCO root; without --val the run would measure on its training images."""
    flat = tmp_path / "images"
    flat.mkdir()
    for split in ("train2017", "val2017"):
        for picture in (data / split).iterdir():
            (flat / f"{split}-{picture.name}").write_bytes(picture.read_bytes())
        table = json.loads((data / "annotations" / f"instances_{split}.json").read_text())
        for image in table["images"]:
            image["file_name"] = f"{split}-{image['file_name']}"
        (tmp_path / f"{split}.json").write_text(json.dumps(table))
    more = ["--images", str(flat), "--val", str(tmp_path / "val2017.json")]
    out = tmp_path / "run"
    assert main(argv(tmp_path / "train2017.json", out, *more)) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["images"] == 3 and facts(out)["data"]["images"] == 12


def test_a_fine_tuned_detector_brings_its_own_shape(
    random_arm: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a detector that stands in as weights needs --backbone and the width of its FPN told again."""
    shapeless = without("backbone", "detector.fpn_channels")
    finetune("faster_rcnn_fpn", data, tmp_path, weights=random_arm, settings=shapeless, dry_run=True)
    detector = yaml.safe_load(capsys.readouterr().out)["detector"]
    assert (detector["backbone"], detector["fpn_channels"]) == ("test_resnet", 16)
