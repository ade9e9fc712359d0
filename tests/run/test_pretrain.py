"""Whole pretraining runs: every recipe for two steps, what they leave, and what they refuse."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny import facts, flags, method_of, photos, rows, settings
from torchvision.models import resnet18
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

from boxwise.cli import main
from boxwise.engine import checkpoint
from boxwise.geometry.views import Batch
from boxwise.interop.keys import WeightsError
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.recipes.pretrain import METHODS, OURS, PUBLISHED
from boxwise.run import pretrain as verb
from boxwise.run.encoder import load_encoder
from boxwise.run.find import pretrain_recipe
from boxwise.run.memory import SLACK, blank_batch, fixed, kept, room
from boxwise.run.pretrain import pretrain, run_recipe
from boxwise.strict import load_yaml

RECIPES = [*dict.fromkeys([*METHODS, *(f.__name__ for f in (*PUBLISHED, *OURS))])]
ALWAYS = {
    "step",
    "epoch",
    "train/loss",
    "train/lr",
    "train/grad_norm",
    "time/data_wait",
    "time/images_per_s",
    "ssl/feature_std",
    "ssl/effective_rank",
    "ssl/pos_sim",
    "ssl/neg_sim",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("images"), 12)


@pytest.fixture(scope="module")
def done(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of plain SCRL."""
    out = tmp_path_factory.mktemp("done") / "scrl"
    pretrain("scrl", images, out, settings=settings("scrl", backbone="resnet18"))
    return out


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_two_steps(recipe: str, images: Path, tmp_path: Path) -> None:
    """The methods by their short names with torchvision's smallest network, published runs with a smaller one."""
    backbone = "resnet18" if recipe in METHODS else "test_resnet"
    out, given = tmp_path / "run", settings(recipe, backbone=backbone)
    assert pretrain(recipe, images, out, settings=given) == out / "export"

    # The settings come back as the same recipe, from the file alone.
    source = load_yaml(out / "config.yaml")["source"]
    assert source == recipe
    again = pretrain_recipe(source, config=out / "config.yaml")
    expected = pretrain_recipe(recipe, settings=given).recipe
    assert not again.fitted
    schedule = replace(expected.schedule, warmup_epochs=0.0, warmup_steps=0)
    fitted = recipe in METHODS and expected.schedule.warmup_epochs > 0
    if fitted and method_of(recipe) != "mocov2":
        expected = replace(expected, schedule=schedule)
    assert again.recipe == expected

    facts_ = facts(out)
    assert (facts_["status"], facts_["kind"], facts_["data"]["images"], facts_["step"]) == (
        "finished",
        "pretrain",
        12,
        2,
    )
    assert facts_["bad_images"] == 0 and not (out / "bad_images.txt").exists()

    teacher = set() if expected.method.name.endswith("simsiam") else {"train/ema_momentum"}
    seen = rows(out)
    assert [row["step"] for row in seen] == [1, 2]
    for row in seen:
        terms = {key for key in row if key.startswith("train/loss_")}
        assert terms and row.keys() == ALWAYS | terms | teacher
        assert all(math.isfinite(v) for k, v in row.items()), row
        assert sum(row[term] for term in terms) == pytest.approx(row["train/loss"], abs=1e-5)

    state = load_file(out / "export" / "model.safetensors")
    torch.manual_seed(0)
    fresh = build_encoder(replace(expected.encoder, c4=False))
    start = fresh.body.state_dict()
    torchvisions = resnet18().state_dict().keys() - {"fc.weight", "fc.bias"}
    parts = {"backbone.body": torchvisions if recipe in METHODS else set(start)}
    if fresh.fpn is not None:
        parts["backbone.fpn"] = set(fresh.fpn.state_dict())
    if fresh.fpn is not None and method_of(recipe) in ("scrl", "insloc", "soco"):
        detector = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
        assert parts["backbone.fpn"] == set(detector.backbone.fpn.state_dict()) - {"extra_blocks"}
        parts["roi_heads.box_head"] = set(detector.roi_heads.box_head.state_dict())
    assert set(state) == {f"{part}.{name}" for part, names in parts.items() for name in names}
    card = json.loads((out / "export" / "config.json").read_text())
    assert card["encoder"]["backbone"] == backbone and card["encoder"]["fpn"] == (fresh.fpn is not None)
    sides = [view.crop.size for view in expected.views]
    assert card["mean"] == list(expected.views[0].photo.mean) and card["input_size"] == sides[0] == 64
    assert card["parts"] == ["backbone", "fpn", "head"][: len(parts)]

    # What is handed over is the student, and it has moved.
    last = checkpoint.load(out / "checkpoints" / "step-00000002.pt")["module"]
    for name in [n for n in start if n.endswith("weight")]:
        places = (f"student.encoder.body.{name}", f"student.taps.box.box_head.last.{name}")  # C4: in the head
        assert torch.equal(state[f"backbone.body.{name}"], *(last[at] for at in places if at in last))
        assert start[name].ndim < 4 or not torch.equal(state[f"backbone.body.{name}"], start[name])

    with Image.open(out / "figures" / "views.png") as figure:
        # 4 images, one column a view, a gap of 6 after each; DetCo's patches three by three, 3 between them
        if method_of(recipe) == "detco":
            sides[2:] = [3 * 18 + 2 * 3] * 2
        assert figure.size == (sum(side + 6 for side in sides), 4 * (max(sides) + 6))
        assert len(figure.resize((20, 20)).getcolors(400)) > 50
    assert {"train.log", "metrics.jsonl", "run.json", "config.yaml"} <= {p.name for p in out.iterdir()}


def test_an_exported_encoder_comes_back(done: Path) -> None:
    encoder = load_encoder(done)
    state = load_file(done / "export" / "model.safetensors")
    assert torch.equal(encoder.body.state_dict()["conv1.weight"], state["backbone.body.conv1.weight"])
    assert not encoder.training


def test_init_takes_our_export(done: Path, images: Path, tmp_path: Path) -> None:
    """With a rate of 0 the weights go through unchanged; the teacher starts from them too."""
    out = tmp_path / "run"
    pretrain("byol", images, out, settings=settings("byol", lr=0.0, backbone="resnet18"), init=done)
    old, new = (load_file(p / "export" / "model.safetensors") for p in (done, out))
    weights = [n for n in old if n.endswith("weight") or n.endswith("bias")]
    assert len(weights) == 60 and all(torch.equal(old[n], new[n]) for n in weights)
    module = checkpoint.load(out / "checkpoints" / "step-00000002.pt")["module"]
    twin = [n for n in module if n.startswith("teacher") and n.endswith("body.conv1.weight")]
    assert len(twin) == 1 and torch.equal(module[twin[0]], old["backbone.body.conv1.weight"])
    assert facts(out)["data"]["init"] == str(done)


def test_a_resumed_run_knows_its_start_by_what_it_is(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when the same weights by another path are drift, or others under the same name are none."""
    file, out, given = tmp_path / "start.pth", tmp_path / "run", settings("simsiam", backbone="resnet18")
    torch.save(resnet18().state_dict(), file)
    pretrain("simsiam", images, out, settings=given, init=file)
    known = facts(out)["data"]
    assert known["init_digest"] == hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
    monkeypatch.chdir(tmp_path)
    pretrain("simsiam", images, out, settings=given, init=Path("start.pth"), resume=True)
    assert facts(out)["data"] == known | {"init": "start.pth"}
    torch.save(resnet18().state_dict(), file)
    with pytest.raises(ValueError, match=r"data set.init_digest: \w+ -> \w+$"):
        pretrain("simsiam", images, out, settings=given, init=file, resume=True)


def test_init_takes_torchvisions_files(images: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    theirs, out = resnet18().state_dict(), tmp_path / "run"
    torch.save(theirs, tmp_path / "resnet18.pth")
    pretrain(
        "simsiam",
        images,
        out,
        settings=settings("simsiam", lr=0.0, backbone="resnet18"),
        init=tmp_path / "resnet18.pth",
    )
    ours = load_file(out / "export" / "model.safetensors")
    assert torch.equal(ours["backbone.body.layer3.0.conv1.weight"], theirs["layer3.0.conv1.weight"])


def test_init_of_another_backbone_does_not_arrive(images: Path, tmp_path: Path) -> None:
    torch.save(build_encoder(EncoderConfig(backbone="resnet34")).body.state_dict(), tmp_path / "r34.pth")
    with pytest.raises(WeightsError, match="backbone did not arrive"):
        pretrain("scrl", images, tmp_path / "run", settings=settings("scrl"), init=tmp_path / "r34.pth")
    assert not (tmp_path / "run").exists()
    argv = ["pretrain", "scrl", "--data", str(images), "--out", str(tmp_path / "run")]
    assert main([*argv, "--init", str(tmp_path / "r34.pth"), *flags(settings("scrl"))]) == 4


def test_init_must_fill_all_parts_that_both_have(images: Path, tmp_path: Path) -> None:
    """An FPN of another width is not left random in silence."""
    out = tmp_path / "fpn"
    pretrain("scrl_fpn", images, out, settings=settings("scrl_fpn"))
    wider = settings("scrl_fpn", **{"encoder.fpn_channels": 24})
    with pytest.raises(WeightsError, match="fpn, head did not arrive"):
        pretrain("scrl_fpn", images, tmp_path / "run", settings=wider, init=out)
    pretrain("scrl", images, tmp_path / "plain", settings=settings("scrl"), init=out)  # its backbone is whole


@pytest.mark.parametrize("name", ["scrl", "scrl_r50_200ep"])
def test_fewer_images_than_a_batch_name_a_batch_that_fits(name: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"12 images are fewer than one batch of 32.*--batch-size 12"
    ) as info:
        pretrain(name, images, tmp_path / "run", settings=settings(name, batch_size=32))
    assert "\n" not in str(info.value) and not (tmp_path / "run").exists()
    mend = int(str(info.value).rpartition(" ")[2])
    pretrain(name, images, tmp_path / "run", settings=settings(name, batch_size=mend))


def test_too_little_memory_names_a_batch_that_fits(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"bytes": 1}
    monkeypatch.setattr("boxwise.run.memory.free_memory", lambda device, **_: free["bytes"])
    recipe = pretrain_recipe("scrl_r50_200ep", settings=settings("scrl_r50_200ep", batch_size=12)).recipe
    with pytest.raises(ValueError, match="needs more memory than there is: choose a smaller backbone"):
        pretrain("scrl_r50_200ep", images, tmp_path / "run", settings=settings("scrl", batch_size=12))
    method = verb.build(recipe)

    def batch_of(count: int) -> Batch:
        return blank_batch(recipe.views, recipe.method.draws(), count=count)

    need = kept(method, batch_of, dtype=torch.float32)
    free["bytes"] = int(fixed(method) + need.once + 6.5 * need.per_image * SLACK)
    fits = room(recipe, method)
    assert fits == 6
    with pytest.raises(ValueError, match=f"--batch-size {fits},.* --accumulate"):
        pretrain("scrl_r50_200ep", images, tmp_path / "run", settings=settings("scrl", batch_size=12))
    assert not (tmp_path / "run").exists()
    for mend in ({"batch_size": fits}, {"batch_size": 12, "accumulate": 3}):
        out = tmp_path / f"mended{len(mend)}"
        pretrain("scrl_r50_200ep", images, out, settings=settings("scrl", **mend))
        assert facts(out)["status"] == "finished"
    # A short name fits its batch by itself.
    given: dict[str, Any] = settings("scrl")
    del given["batch_size"]
    pretrain("scrl", images, tmp_path / "fitted", settings=given)
    assert load_yaml(tmp_path / "fitted" / "config.yaml")["run"]["batch_size"] <= fits


def test_a_fitted_run_resumes_as_it_began_whatever_is_free_now(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when free memory at the time of a resume decides the batch: the run would drift by itself."""
    given = settings("mocov2", steps=1)
    del given["batch_size"], given["method.queue"]
    out = tmp_path / "run"
    monkeypatch.setattr(verb, "room", lambda recipe, method: 64)
    pretrain("mocov2", images, out, settings=given)
    before = (out / "config.yaml").read_text()
    assert yaml.safe_load(before)["run"]["batch_size"] == 2
    (out / "config.yaml").write_text(before.replace("batch_size: 2", "batch_size: 3"))
    pretrain("mocov2", images, out, settings=given, resume=True)
    assert load_yaml(out / "config.yaml")["run"]["batch_size"] == 3
    with pytest.raises(ValueError, match=r"run\.batch_size: 3 -> 4"):
        pretrain("mocov2", images, out, settings={**given, "batch_size": 4}, resume=True)


def test_a_file_s_settings_are_as_much_the_users_as_flags(images: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("run: {batch_size: 6}\n")
    given = settings("scrl")
    del given["batch_size"]
    pretrain("scrl", images, tmp_path / "run", config=tmp_path / "mine.yaml", settings=given)
    assert load_yaml(tmp_path / "run" / "config.yaml")["run"]["batch_size"] == 6


def test_a_run_folder_is_refused_resumed_and_overwritten(images: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "run", settings("simsiam")
    pretrain("simsiam", images, out, settings=given)
    with pytest.raises(ValueError, match="--resume to go on, --overwrite to start again"):
        pretrain("simsiam", images, out, settings=given)
    first = (out / "export" / "model.safetensors").read_bytes()

    pretrain("simsiam", images, out, settings=given, resume=True)  # nothing left to do
    assert (out / "export" / "model.safetensors").read_bytes() == first
    assert [row["step"] for row in rows(out)] == [1, 2] and len(facts(out)["resumed"]) == 1

    with pytest.raises(ValueError, match=r"(?s)--allow-drift.*optim.lr: 0.05 -> 0.1"):
        pretrain("simsiam", images, out, settings={**given, "lr": 0.1}, resume=True)
    fewer = photos(tmp_path / "fewer", 8)
    with pytest.raises(ValueError, match=r"(?s)data set.fingerprint.*data set.images: 12 -> 8"):
        pretrain("simsiam", fewer, out, settings=given, resume=True)
    assert facts(out)["status"] == "finished", "a refusal changes nothing"
    pretrain("simsiam", images, out, settings={**given, "lr": 0.1, "steps": 3}, resume=True, allow_drift=True)
    assert [row["step"] for row in rows(out)] == [1, 2, 3]
    assert "optim.lr: 0.05 -> 0.1" in facts(out)["resumed"][-1]["drift"]

    pretrain("simsiam", images, out, settings=given, overwrite=True)
    assert (out / "export" / "model.safetensors").read_bytes() == first
    assert "resumed" not in facts(out) and not (out / "checkpoints" / "step-00000003.pt").exists()


def test_a_dry_run_prints_the_recipe_and_writes_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain("mocov2", images, tmp_path / "run", settings=settings("mocov2"), dry_run=True)
    said = capsys.readouterr()
    printed = yaml.safe_load(said.out)
    assert printed["method"]["queue"] == 12 and printed["run"]["batch_size"] == 4
    assert "lr 0.03 at batch 256 -> 0.00046875 at batch 4" in said.err
    assert not (tmp_path / "run").exists()


def test_the_printed_recipe_can_be_run(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain("byol", images, tmp_path / "run", settings=settings("byol"), dry_run=True)
    (tmp_path / "byol.yaml").write_text(capsys.readouterr().out)
    found = pretrain_recipe("byol", config=tmp_path / "byol.yaml")
    assert not found.fitted and found.recipe.run.batch_size == 4
    source = verb.open_images(images)
    assert run_recipe(found.recipe, source, tmp_path / "run", origin="byol").is_dir()


@pytest.mark.parametrize("name", ["insloc", "soco", "detco", "resim"])
def test_a_lost_end_is_trained_again_to_the_last_bit(name: str, images: Path, tmp_path: Path) -> None:
    """Breaks when queues, pointers, a teacher or an image's boxes and backgrounds are not what they were."""
    out = tmp_path / "run"
    given = settings(name, steps=4, **{"run.save_every": 2, "run.keep": 5})
    pretrain(name, images, out, settings=given)
    whole = load_file(out / "export" / "model.safetensors")
    figures = [row["train/loss"] for row in rows(out)]
    last = max((out / "checkpoints").glob("step-*.pt"))
    before = torch.load(last, weights_only=True)["module"]
    last.unlink()
    shutil.rmtree(out / "export")
    pretrain(name, images, out, settings=given, resume=True)
    assert [row["train/loss"] for row in rows(out)] == figures and len(figures) == 4
    again = torch.load(last, weights_only=True)["module"]
    assert before.keys() == again.keys() and all(torch.equal(before[key], again[key]) for key in before)
    assert all(
        torch.equal(x, whole[key]) for key, x in load_file(out / "export" / "model.safetensors").items()
    )


def test_a_rising_loss_is_announced_where_a_queue_fills() -> None:
    """Breaks when a newcomer takes MoCo's first steps for a fault, or is told to wait by a method without a queue."""
    moco = pretrain_recipe("mocov2_r50_200ep", settings=settings("mocov2", **{"method.queue": 14})).recipe
    said = verb.rises(moco)
    assert said is not None and "14 keys" in said and "first 4 steps" in said
    assert verb.rises(pretrain_recipe("byol_r50_300ep", settings=settings("byol")).recipe) is None
    bare = pretrain_recipe("resim_simsiam_r50_c4_in100_500ep", settings=settings("resim_simsiam")).recipe
    assert verb.rises(bare) is None
