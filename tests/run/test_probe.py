"""Whole runs of probes: what arrives, what is asked, what is measured, how they go on, and what they refuse."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import RUN, colours, facts, flags, photos, rows, settings

import boxwise
from boxwise.cli import main
from boxwise.data.targets import open_labelled
from boxwise.engine import checkpoint
from boxwise.recipes import probes
from boxwise.recipes.recipe import LinearProbeRecipe
from boxwise.run.find import probe_recipe, saved
from boxwise.run.pretrain import pretrain
from boxwise.run.probe import probe
from boxwise.run.scenes import scenes
from boxwise.strict import SettingsError, dump_yaml
from boxwise.transfer.probes.svm import POOLS

MACHINES: dict[str, Any] = {
    **{key: value for key, value in RUN.items() if key != "steps" and not key.startswith("run.")},
    "probe.costs": [1.0, 0.01],
}
"""Flags that make support vector machines quick."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("data") / "coco", count=12, val=6, size=64)


@pytest.fixture(scope="module", name="colours")
def _colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours(tmp_path_factory.mktemp("colours"), train=16, val=8)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone with pixel statistics of its own."""
    folder = tmp_path_factory.mktemp("pretrained")
    given = settings("mocov2", **{f"views.{i}.photo.mean": [0.5, 0.4, 0.3] for i in range(2)})
    pretrain("mocov2", photos(folder / "photos", 8), folder / "run", settings=given)
    return folder / "run"


def results(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "results.json").read_text())
    return found


def layer(run: Path, step: int) -> dict[str, torch.Tensor]:
    """All that the probe is made of after a step, frozen parts too."""
    state: dict[str, torch.Tensor] = checkpoint.load(run / "checkpoints" / f"step-{step:08d}.pt")["module"]
    return state


def test_what_any_network_sees_is_told_apart(colours: Path, tmp_path: Path) -> None:
    """Breaks when labels, features and layer do not belong together: red and blue are no question at all."""
    out = probe("linear", colours, tmp_path / "run", settings=RUN | {"steps": 40, "batch_size": 8, "lr": 3.0})
    found = results(out)
    assert found["top1"] == 100.0 and "top5" not in found
    assert (found["rows"], found["images"]) == (16, 16) and found["seconds"] > 0
    last = rows(out)[-1]
    assert last["train/top1"] == 1.0 and last["train/loss"] < 0.3
    known = facts(out)
    assert (known["kind"], known["status"], known["data"]["images"], known["data"]["test_images"]) == (
        "probe",
        "finished",
        32,
        16,
    )
    assert (out / "match.txt").read_text() == "random weights\n"
    assert len((out / "trained_on.txt").read_text().split()) == 32


def test_boxes_are_asked_about(data: Path, pretrained: Path, tmp_path: Path) -> None:
    """Breaks when rows are images and no boxes, or weights do not arrive, or another mean is subtracted."""
    out = probe("roi_linear", data, tmp_path / "run", weights=pretrained, settings=RUN)
    test = open_labelled(data, split="val")
    boxes = sum(int((~test.read(i)[1].crowd).sum()) for i in range(len(test)))
    assert results(out)["rows"] == boxes > 6
    assert 0 <= results(out)["top1"] <= 100
    assert "100.0 %" in (out / "match.txt").read_text()
    assert facts(out)["data"]["weights_digest"]
    from boxwise.interop.files import load_weights

    kept, given = layer(out, 2), load_weights(pretrained).state
    names = [name for name in kept if name.startswith("reader.encoder.body.")]
    assert len(names) > 20
    for name in names:
        theirs = given[name.replace("reader.encoder.", "backbone.")]
        assert torch.equal(kept[name], theirs), f"{name} is not as it came"


def test_the_backbone_and_the_pixels_are_those_of_the_weights(
    data: Path, pretrained: Path, tmp_path: Path
) -> None:
    """Breaks when a flag silently replaces the backbone that the weights are of."""
    own = {key: value for key, value in RUN.items() if key != "backbone"}
    out = probe("roi_linear", data, tmp_path / "run", weights=pretrained, settings=own)
    assert "backbone: test_resnet" in (out / "config.yaml").read_text()
    with pytest.raises(
        SettingsError, match=r"probe\.backbone: resnet18 was asked for, but .* holds test_resnet"
    ):
        probe("roi_linear", data, tmp_path / "x", weights=pretrained, settings=RUN | {"backbone": "resnet18"})
    with pytest.raises(SettingsError, match=r"probe\.backbone: resnet18 was asked for"):
        probe("svm", data, tmp_path / "x", weights=pretrained, settings=MACHINES | {"backbone": "resnet18"})


def test_patches_need_no_labels(tmp_path: Path) -> None:
    """Breaks when a folder of photos is not enough, or what is measured on is trained on."""
    folder = photos(tmp_path / "photos", 12)
    out = probe("patch_location", folder, tmp_path / "run", settings=RUN | {"data.held_out": 0.25})
    found = results(out)
    assert (found["images"], found["rows"]) == (3, 27) and {"top1", "top5"} <= found.keys()
    assert len((out / "trained_on.txt").read_text().split()) == 9
    with pytest.raises(ValueError, match="--labels: this probe reads no labels"):
        probe("patch_location", folder, tmp_path / "x", labels=0.5, settings=RUN)


def test_files_that_cannot_be_read(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when one bad file of a folder ends a probe, one of a labelled set passes unseen, or figures count it."""
    folder = photos(tmp_path / "photos", 60)
    val = photos(tmp_path / "val", 21)
    for bad in (folder / "004.png", val / "006.png"):
        bad.write_bytes(b"")
    out = probe("patch_location", folder, tmp_path / "run", val=val, settings=RUN | {"steps": 20})
    assert results(out)["images"] == 20 and "006.png: " in capsys.readouterr().err
    assert "004.png" in (out / "bad_images.txt").read_text()
    torn = tmp_path / "coco"
    shutil.copytree(data, torn)
    (file := sorted((torn / "val2017").iterdir())[0]).write_bytes(b"")
    for recipe, given in (("roi_linear", RUN), ("svm", MACHINES)):
        with pytest.raises(ValueError, match=re.escape(file.name)):
            probe(recipe, torn, tmp_path / recipe, settings=given)
        more = given | {"bad_images": "skip"}
        with pytest.raises(ValueError, match="more than 5%"):
            probe(recipe, torn, tmp_path / recipe, settings=more, overwrite=True)


def test_patches_of_c5_need_no_head(tmp_path: Path) -> None:
    """Breaks when a backbone without a separate last stage cannot be asked."""
    folder = photos(tmp_path / "photos", 6)
    swin = RUN | {"backbone": "test_efficientnet"}
    out = probe("patch_location", folder, tmp_path / "run", settings=swin | {"probe.level": "c5"})
    assert results(out)["rows"] == 9


def test_machines_on_every_stage(data: Path, pretrained: Path, tmp_path: Path) -> None:
    """Breaks when a stage is left out, or the main figure is not the deepest stage's."""
    out = probe("svm", data, tmp_path / "run", weights=pretrained, settings=MACHINES)
    found = results(out)
    assert [*found] == ["mAP", "mAP_c2", "mAP_c3", "mAP_c4", "mAP_c5", "images", "seconds"]
    assert found["mAP"] == found["mAP_c5"] and found["images"] == 6
    by_class = json.loads((out / "classes.json").read_text())
    assert [*by_class] == ["c2", "c3", "c4", "c5"]
    for level, classes in by_class.items():
        assert [*classes] == [c.name for c in open_labelled(data, split="val").categories]
        aps = [one["AP"] for one in classes.values() if one["AP"] >= 0]
        assert found[f"mAP_{level}"] == pytest.approx(sum(aps) / len(aps))
        assert all(one["cost"] in (1.0, 0.01) for one in classes.values() if one["AP"] >= 0)
    again = probe("svm", data, tmp_path / "again", weights=pretrained, settings=MACHINES)
    assert json.loads((again / "classes.json").read_text()) == by_class
    one = probe(
        "svm", data, tmp_path / "one", weights=pretrained, settings=MACHINES | {"probe.levels": ["c3"]}
    )
    assert results(one)["mAP"] == found["mAP_c3"]


def test_few_labels_are_drawn_by_the_seed_and_listed(data: Path, colours: Path, tmp_path: Path) -> None:
    """Breaks when a share is drawn otherwise than a detector's."""
    from boxwise.data.targets import choose

    train = open_labelled(data, split="train")
    few = choose(train, 0.5, seed=3)
    for recipe, flags_ in (("roi_linear", RUN), ("svm", MACHINES)):
        out = probe(recipe, data, tmp_path / recipe, labels=0.5, settings=flags_ | {"seed": 3})
        assert (out / "trained_on.txt").read_text().split() == [few.name(i) for i in range(len(few))]
        assert facts(out)["data"]["images"] == 6
    out = probe("linear", colours, tmp_path / "linear", labels=5, settings=RUN)
    assert len((out / "trained_on.txt").read_text().split()) == 5


@pytest.mark.parametrize("recipe", ["roi_linear", "coco_roi_linear"])
def test_a_run_goes_on_where_it_was(recipe: str, data: Path, tmp_path: Path) -> None:
    """Breaks when a resumed probe trains on other draws, or forgets statistics that it tracks."""
    given = RUN | {"steps": 4, "run.save_every": 2, "run.batch_size": 4}
    whole = probe(recipe, data, tmp_path / "whole", settings=given)
    torn = tmp_path / "torn"
    shutil.copytree(whole, torn)
    (torn / "checkpoints" / "step-00000004.pt").unlink()
    (torn / "results.json").unlink()
    probe(recipe, data, torn, settings=given, resume=True)
    first, second = layer(whole, 4), layer(torn, 4)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert results(whole)["top1"] == results(torn)["top1"]
    before = layer(whole, 2)
    tracked = [n for n in first if n.startswith("reader.") and n.endswith("running_mean")]
    moved = [not torch.equal(first[n], before[n]) for n in tracked]
    assert tracked and all(moved) == any(moved) == (recipe == "coco_roi_linear")


def test_other_weights_are_another_run(data: Path, pretrained: Path, tmp_path: Path) -> None:
    """Breaks when a resumed probe goes on with features of something else."""
    probe("roi_linear", data, tmp_path / "run", settings=RUN)
    with pytest.raises(ValueError, match="started otherwise"):
        probe("roi_linear", data, tmp_path / "run", weights=pretrained, settings=RUN, resume=True)


def test_typed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when the command does less than the function, or prints no figure."""
    words = ["probe", "roi_linear", "--data", str(data), "--out", str(tmp_path / "run"), "--labels", "6"]
    assert main([*words, *flags(RUN)]) == 0
    printed = capsys.readouterr().out
    found = results(tmp_path / "run")
    assert f"top1     {found['top1']:6.2f}\n" in printed
    assert f"balanced {found['balanced']:6.2f}\n" in printed and "on 6 images, in 0..100" in printed
    assert printed.splitlines()[-1] == str(tmp_path / "run")
    assert main(["probe", "svm", *words[2:5], str(tmp_path / "svm"), *flags(MACHINES)]) == 0
    assert f"mAP    {results(tmp_path / 'svm')['mAP']:6.2f}" in capsys.readouterr().out
    assert boxwise.probe is probe


def test_a_dry_run_writes_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when looking at a recipe trains it, or what is printed cannot be read back."""
    for recipe, given in (("roi_linear", RUN), ("svm", MACHINES)):
        words = ["probe", recipe, "--data", str(data), "--out", str(tmp_path / "no"), "--dry-run"]
        assert main([*words, *flags(given)]) == 0
        (tmp_path / "told.yaml").write_text(capsys.readouterr().out)
        told = probe_recipe(recipe, config=tmp_path / "told.yaml")
        assert told.recipe == probe_recipe(recipe, settings=given).recipe and not told.fitted
    assert not (tmp_path / "no").exists()


def test_the_length_follows_the_data(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a probe of few images takes the steps of an epoch, or a published one is fitted."""
    lengths = {}
    for recipe in ("roi_linear", "coco_roi_linear"):
        words = ["probe", recipe, "--data", str(data), "--out", str(tmp_path / "no"), "--dry-run"]
        assert main(words) == 0
        lengths[recipe] = "steps: 200" in capsys.readouterr().out
    assert lengths == {"roi_linear": True, "coco_roi_linear": False}


WRONG = [
    (["probe", "roi_linr"], "no such recipe, did you mean roi_linear?"),
    (["probe", "scrl"], "is a recipe of boxwise pretrain"),
    (["finetune", "roi_linear"], "is a recipe of boxwise probe"),
    (["probe", "svm", "--lr", "1"], "lr: no such setting"),
    (["probe", "svm", "--probe.cost", "[1.0]"], "did you mean probe.costs?"),
    (["probe", "linear", "--probe.still.resize", "100"], "no 224 px can be cut out of 100"),
    (["probe", "roi_linear", "--probe.crop.whole", "false"], "boxes may lie outside"),
    (["probe", "linear", "--image-size", "16"], "less than a cell"),
    (["probe", "linear", "--backbone", "resnet5"], "unknown backbone"),
    (["probe", "linear", "--init", "x"], "probe reads the weights of --weights"),
    (["probe", "linear", "--labels", "some"], "expected a share"),
]


@pytest.mark.parametrize(("words", "said"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_usage_is_told_before_anything_is_written(
    words: list[str], said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a slip is found out later, or in another's words."""
    assert main([*words, "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "run").exists()


def test_other_data_than_asked_for(data: Path, colours: Path, tmp_path: Path) -> None:
    """Breaks when a probe meets data of another kind with a traceback, or with nothing to ask."""
    with pytest.raises(ValueError, match="holds a folder of images for each class"):
        probe("linear", data, tmp_path / "x", settings=RUN)
    with pytest.raises(ValueError, match="COCO root"):
        probe("roi_linear", colours, tmp_path / "x", settings=RUN)
    json_ = data / "annotations" / "instances_train2017.json"
    for recipe, given in (("roi_linear", RUN), ("svm", MACHINES)):
        with pytest.raises(ValueError, match="pass --val"):
            probe(recipe, json_, tmp_path / "x", images=data / "train2017", settings=given)
    empty = tmp_path / "empty"
    shutil.copytree(data, empty)
    for split in ("train", "val"):
        file = empty / "annotations" / f"instances_{split}2017.json"
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(ValueError, match="a detector needs images with boxes"):
        probe("roi_linear", empty, tmp_path / "x", settings=RUN)
    assert not (tmp_path / "x").exists()


def test_too_many_features_are_told_in_time(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when memory runs out after the pass over all images, without a mend."""
    monkeypatch.setattr("boxwise.run.svm_probe.free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match=r"GiB.*--labels.*--probe\.levels"):
        probe("svm", data, tmp_path / "x", settings=MACHINES)


def test_one_process_alone_solves(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when every rank of a torchrun solves the same."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process does it all"):
        probe("svm", data, tmp_path / "x", settings=MACHINES)


ALL = [f() for f in (*probes.FAMILIES.values(), *probes.PROTOCOLS)]


@pytest.mark.parametrize("recipe", ALL, ids=lambda r: r.name)
def test_every_probe_survives_yaml_and_can_be(recipe: Any, tmp_path: Path) -> None:
    """Breaks when a probe means something else once its config.yaml is read again, or cannot be built."""
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(saved(recipe, recipe.name)))
    assert probe_recipe(recipe.name, config=file).recipe == recipe
    assert recipe.changed() == recipe and [*recipe.conflicts()] == []
    if isinstance(recipe, LinearProbeRecipe):
        with torch.device("meta"):
            built = recipe.probe.build(classes=7, mean=(0.5,) * 3, std=(0.2,) * 3)
        trained = [n for n, p in built.named_parameters() if p.requires_grad]
        assert trained == ["classifier.weight", "classifier.bias"]
        assert built.classifier.in_features == 2048


def test_the_papers_values() -> None:
    """Breaks when a protocol drifts from section 7 of the papers' facts."""
    moco = probes.imagenet_linear()
    assert (moco.optim.lr, moco.optim.lr_batch, moco.run.batch_size, moco.optim.weight_decay) == (
        30,
        256,
        256,
        0,
    )
    images = 1_281_167
    total = moco.steps(images)
    assert total == round(100 * images / 256)
    falls = [round(m * total) for m in moco.schedule.milestones]
    assert [round(fall / total * 100) for fall in falls] == [60, 80]
    assert (moco.probe.crop.scale, moco.probe.crop.flip) == ((0.08, 1.0), 0.5)
    assert (moco.probe.still.resize, moco.probe.still.size, moco.probe.statistics) == (256, 224, "kept")
    scrl = probes.imagenet_linear_scrl()
    assert (scrl.optim.lr, scrl.optim.momentum, scrl.optim.nesterov, scrl.run.batch_size) == (
        0.2,
        0.9,
        True,
        4096,
    )
    assert (scrl.schedule.epochs, scrl.schedule.warmup_epochs, scrl.optim.weight_decay) == (80, 5, 0)
    assert scrl.probe.crop.interpolation == scrl.probe.still.interpolation == "bicubic"
    boxes = probes.coco_roi_linear()
    assert (boxes.optim.lr, boxes.optim.lr_batch, boxes.run.batch_size) == (0.1, 512, 512)
    assert (boxes.schedule.epochs, boxes.schedule.warmup_epochs, boxes.schedule.kind) == (80, 5, "cosine")
    crop = boxes.probe.crop
    assert (crop.size, crop.whole, crop.flip, boxes.probe.still.size) == (800, True, 0.5, 800)
    assert (boxes.probe.statistics, boxes.probe.bins, boxes.probe.level) == ("tracked", 1, "c5")
    places = probes.imagenet_patch_location()
    assert (places.probe.grid, places.probe.level) == (3, "c4")
    machines = probes.voc07_svm().probe
    assert sorted(machines.costs) == sorted([1, 10, 100, *(0.5**n for n in range(4, 20))])
    assert (machines.folds, machines.tolerance, machines.iterations, machines.positive_weight) == (
        3,
        1e-4,
        2000,
        2,
    )
    assert (machines.still.resize, machines.still.size, machines.still.squeeze) == (256, 224, True)
    assert [*POOLS] == ["c2", "c3", "c4", "c5"]
