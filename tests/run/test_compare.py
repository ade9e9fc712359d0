"""Whole comparisons at tiny size: what is locked, what is kept and resumed, what is refused and said."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from tiny import DETECTOR, facts, flags, rows

import boxwise
from boxwise.cli import main
from boxwise.data import targets
from boxwise.data.outlines import rle
from boxwise.engine.guard import Diverged
from boxwise.run import compare as verb
from boxwise.run import detector_run
from boxwise.run.compare import compare
from boxwise.run.scenes import scenes
from boxwise.strict import load_yaml
from boxwise.transfer.metrics import curves

TINY: dict[str, Any] = DETECTOR | {
    "batch_size": 2,
    "detector.rpn_pre_nms_train": 50,
    "detector.rpn_pre_nms_test": 50,
    "detector.rpn_post_nms_test": 20,
    "detector.box_batch_size_per_image": 16,
    "run.save_every": 1,
}
LABELS, SEEDS = (0.5, 1.0), 2
INIT = ("random", "weights.pth")
ARMS = ("random", "weights")
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and a backbone."""
    folder = tmp_path_factory.mktemp("place")
    scenes(folder / "coco", count=6, val=2, size=64)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "weights.pth")
    return folder


@pytest.fixture(autouse=True)
def at_the_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def started(out: Path, **more: Any) -> Path:
    options: dict[str, Any] = {"init": INIT, "labels": LABELS, "seeds": SEEDS, "settings": TINY} | more
    return compare("coco", out, **options)


def results(out: Path) -> dict[str, Any]:
    """Without the times, which no two runs share."""
    held: dict[str, Any] = json.loads((out / "results.json").read_text())
    held["runs"] = [run | {"seconds": None} for run in held["runs"]]
    return held


@pytest.fixture(scope="module")
def decoded() -> list[str]:
    """Every file that the whole comparison has decoded."""
    return []


@pytest.fixture(scope="module")
def whole(place: Path, decoded: list[str]) -> Path:
    """Two starts at two shares with two seeds, never interrupted."""
    real = targets.decode_oriented

    def counting(path: Path, **options: int | None) -> object:
        decoded.append(path.name)
        return real(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(targets, "decode_oriented", counting)
        return started(place / "whole")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders of the runs that are trained, as they begin."""
    begun: list[str] = []
    real = verb.run_transfer

    def counting(*args: Any, **options: Any) -> Path:
        begun.append(args[3].name)
        return real(*args, **options)

    monkeypatch.setattr(verb, "run_transfer", counting)
    return begun


def test_arms_of_a_seed_share_all_but_their_weights(whole: Path) -> None:
    """Breaks when arms draw other labels, other seeds or other settings, or small shares lie beside large ones."""
    runs = whole / "runs"
    assert sorted(run.name for run in runs.iterdir()) == sorted(
        f"{arm}_{share}_{seed}" for arm in ARMS for share in LABELS for seed in (0, 1)
    )
    for seed in (0, 1):
        drawn = {}
        for share in LABELS:
            pair = [runs / f"{arm}_{share}_{seed}" for arm in ARMS]
            lists = [(run / "labelled.txt").read_text().split() for run in pair]
            assert lists[0] == lists[1] and len(lists[0]) == 6 * share
            assert (pair[0] / "config.yaml").read_text() == (pair[1] / "config.yaml").read_text()
            assert load_yaml(pair[0] / "config.yaml")["run"]["seed"] == seed
            data = [facts(run)["data"] for run in pair]
            start = dict.fromkeys(("weights", "weights_digest"))
            assert data[0] | start == data[1] | start
            assert (data[0]["weights"], data[1]["weights"]) == (None, "weights.pth")
            drawn[share] = set(lists[0])
        assert drawn[0.5] < drawn[1.0]


def test_every_file_is_decoded_once_for_all_runs(whole: Path, decoded: list[str]) -> None:
    """Breaks when runs decode for themselves: 8 runs of 2 steps of 2 images, and 2 test images in each."""
    assert len(decoded) == len(set(decoded)) == 6 + 2


def test_the_lock_tells_what_is_shared_and_what_is_not(whole: Path) -> None:
    """Breaks when a setting escapes the lock, or the arms' own statistics are not told."""
    lock = load_yaml(whole / "compare.yaml")
    assert lock["recipe"]["detector"]["fpn_channels"] == 16 and "seed" not in lock["recipe"]["run"]
    assert lock["shares"] == {
        "0.5": {"images": 3, "steps": 2, "warmup_steps": 0},
        "1.0": {"images": 6, "steps": 2, "warmup_steps": 0},
    }
    assert lock["device"] == {"kind": "cpu", "precision": "float32"}
    assert lock["arms"]["weights"]["parts"] == ["backbone"] and lock["arms"]["random"]["parts"] == []
    assert lock["arms"]["random"]["mean"] == lock["arms"]["weights"]["mean"] == [0.485, 0.456, 0.406]
    assert lock["draws"]["0.5"]["seed 0"] != lock["draws"]["0.5"]["seed 1"]


def test_results_are_those_of_the_runs(whole: Path) -> None:
    """Breaks when figures are filed under another run, or the mean is not over seeds."""
    held = results(whole)
    assert (held["reference"], held["metrics"], held["seeds"]) == ("random", ["AP"], [0, 1])
    for run in held["runs"]:
        folder = whole / "runs" / f"{run['arm']}_{run['share']}_{run['seed']}"
        own = json.loads((folder / "results.json").read_text())
        assert run["figures"]["AP50"] == own["AP50"] and run["images"] == facts(folder)["data"]["images"]
    for row in held["table"]:
        pair = [
            r["figures"]["AP"] for r in held["runs"] if (r["arm"], r["share"]) == (row["arm"], row["share"])
        ]
        assert row["seeds"] == 2 and row["figures"]["AP"]["mean"] == pytest.approx(sum(pair) / 2)
        assert row["figures"]["AP"]["sd"] == pytest.approx(abs(pair[0] - pair[1]) / 2**0.5)
    (line,) = held["verdicts"]
    assert line["arm"] == "weights" and [v["share"] for v in line["shares"]] == ["0.5", "1.0"]
    assert not held["missing"]


def test_curves_by_iou_are_those_of_the_detections(whole: Path) -> None:
    """Breaks when a curve is of another run or on another scale."""
    truth = targets.open_labelled("coco", split="val").coco()
    for run in results(whole)["runs"]:
        folder = whole / "runs" / f"{run['arm']}_{run['share']}_{run['seed']}"
        found = curves(truth, json.loads((folder / "detections.json").read_text()))
        assert [*run["by_iou"].values()] == pytest.approx(found["AP"])
        assert sum(run["by_iou"].values()) / 10 == pytest.approx(run["figures"]["AP"])
        assert [*run["by_iou"]] == [f"{n / 100:.2f}" for n in range(50, 100, 5)]


def test_an_interrupted_comparison_goes_on_where_it_was(
    whole: Path, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when finished runs are trained again, the interrupted one is not resumed, or results differ for it."""
    out = tmp_path / "out"
    real, calls = detector_run.measure, iter(range(9))

    def stopping(*args: Any, **options: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(detector_run, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        started(out)
    first = ["random_0.5_0", "weights_0.5_0", "random_1.0_0"]
    assert trained == first and facts(out / "runs" / first[2])["status"] == "interrupted"
    early = results(out)
    assert [r["arm"] for r in early["runs"]] == [*ARMS] and len(early["missing"]) == 6
    monkeypatch.setattr(detector_run, "measure", real)
    trained.clear()
    started(out)
    assert trained == [first[2], "weights_1.0_0", *(name[:-1] + "1" for name in [*first, "weights_1.0_0"])]
    assert len(facts(out / "runs" / first[2])["resumed"]) == 1
    assert [row["step"] for row in rows(out / "runs" / first[2])] == [1, 2], "no step is taken twice"
    assert results(out) == results(whole)
    trained.clear()
    started(out)
    assert not trained


def test_a_run_that_was_killed_is_resumed(whole: Path, trained: list[str], tmp_path: Path) -> None:
    """Breaks when a run that never said how it ended passes for finished."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    run = out / "runs" / "weights_1.0_1"
    (run / "checkpoints" / "step-00000002.pt").unlink()
    (run / "results.json").unlink()
    (run / "run.json").write_text(json.dumps(facts(run) | {"status": "running"}))
    started(out)
    assert trained == ["weights_1.0_1"] and results(out) == results(whole)


def test_a_signal_between_two_runs_ends_the_comparison_in_order(trained: list[str], tmp_path: Path) -> None:
    """Breaks when SIGTERM between runs kills the process, and the folder stays locked by a living one."""
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        started(out, labels=[2], seeds=1, after_run=lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert stop.value.code == 143 and trained == ["random_2_0"]
    started(out, labels=[2], seeds=1)
    assert trained == ["random_2_0", "weights_2_0"]


def test_more_seeds_shares_and_arms_join_the_runs_that_there_are(
    whole: Path, trained: list[str], tmp_path: Path
) -> None:
    """Breaks when what is added makes finished runs void, or the lock forgets what is left out for once."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    started(out, seeds=1, labels=[1.0])
    assert not trained and len(results(out)["runs"]) == 2
    assert set(load_yaml(out / "compare.yaml")["shares"]) == {"0.5", "1.0"}
    shutil.copy("weights.pth", tmp_path / "other.pth")
    started(out, init=(*INIT, tmp_path / "other.pth"), seeds=1, labels=[1.0])
    assert trained == ["other_1.0_0"]
    assert [line["arm"] for line in results(out)["verdicts"]] == ["weights", "other"]


@pytest.mark.parametrize(
    ("change", "listed"),
    [
        ({"settings": TINY | {"lr": 0.5}}, r"recipe.optim.lr: 0.02 -> 0.5"),
        ({"settings": TINY | {"steps": 3}}, r"(?s)recipe.schedule.steps: 2 -> 3.*shares.1.0.steps: 2 -> 3"),
        ({"settings": TINY | {"image_size": 96}}, r"recipe.detector.min_size: 64 -> 96"),
        ({"init": ("random", "changed/weights.pth")}, r"arms.weights.digest: \w+ -> \w+"),
    ],
)
def test_a_changed_lock_is_refused(
    whole: Path, trained: list[str], place: Path, change: dict[str, Any], listed: str
) -> None:
    """Breaks when runs under other settings, or from other weights of the same name, are put into one table."""
    (place / "changed").mkdir(exist_ok=True)
    torch.save({k: v + 1 for k, v in torch.load("weights.pth").items()}, place / "changed" / "weights.pth")
    before = (whole / "compare.yaml").read_text()
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=listed):
            started(whole, **change, dry_run=dry_run)
    assert not trained and (whole / "compare.yaml").read_text() == before


def test_overwrite_starts_again_and_takes_nothing_of_others(
    whole: Path, trained: list[str], tmp_path: Path
) -> None:
    """Breaks when --overwrite keeps an old run, or deletes a file that no comparison wrote."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "notes.txt").write_text("mine")
    started(out, labels=[1.0], seeds=1, settings=TINY | {"lr": 0.01}, overwrite=True)
    assert (
        sorted(trained)
        == sorted(run.name for run in (out / "runs").iterdir())
        == [f"{a}_1.0_0" for a in ARMS]
    )
    assert (out / "notes.txt").read_text() == "mine"


def test_settings_that_move_no_weight_may_change(whole: Path, trained: list[str]) -> None:
    """Breaks when another number of workers makes a comparison void."""
    started(whole, settings=TINY | {"workers": 1, "run.log_every": 7})
    assert not trained


def test_a_dry_run_writes_nothing_and_lists_every_run(
    tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a dry run trains, or its steps are not those that would be taken."""
    out = tmp_path / "out"
    words = [
        "compare",
        "--data",
        "coco",
        "--init",
        *INIT,
        "--labels",
        "0.5",
        "6",
        "--out",
        str(out),
        "--dry-run",
    ]
    assert main([*words, *flags(TINY)]) == 0
    said = capsys.readouterr().out
    assert not trained and not out.exists()
    assert "weights, 50 % of the labels, seed 2: 3 images, 2 steps" in said
    assert "# to do: 12 runs, 24 steps, 48 images" in said
    (tmp_path / "lock.yaml").write_text(said)
    assert load_yaml(tmp_path / "lock.yaml")["recipe"]["source"] == "faster_rcnn_fpn"


def test_the_command_prints_figures_verdicts_and_the_page(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when stdout lacks the answer, or the lock and the progress are not told."""
    words = ["compare", "--data", "coco", "--init", *INIT, "--labels", "0.5", "1.0", "--seeds", "2"]
    assert main([*words, "--out", str(whole), *flags(TINY)]) == 0
    said = capsys.readouterr()
    assert (
        "against random, with 95 % intervals over 2 seeds:\n  weights: nothing to compare at 50 %" in said.out
    )
    assert said.out.splitlines()[-1] == str(whole / "compare.html") and (whole / "compare.html").is_file()
    assert "everything but the initial weights is locked" in said.err and "8 runs, 8 of them done" in said.err
    assert boxwise.compare is compare


def test_progress_tells_the_run_and_the_time_left(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a long comparison does not say how far it is."""
    started(tmp_path / "out", labels=[2], seeds=1, cache=0.0)
    said = capsys.readouterr().err
    assert "run 1 of 2: random, 2 images, seed 0\n" in said
    assert "run 2 of 2: weights, 2 images, seed 0; about" in said
    assert "do not fit into 0.00 GiB (--cache)" in said


def test_a_diverged_run_leaves_the_others_and_is_told(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when one run without figures ends the comparison, counts as AP 0, or is passed over in silence."""
    out = tmp_path / "out"
    counted = verb.run_transfer

    def diverging(*args: Any, **options: Any) -> Path:
        if args[3].name != "weights_2_0":
            return counted(*args, **options)
        args[3].mkdir(parents=True)
        (args[3] / "run.json").write_text(json.dumps({"status": "diverged"}))
        raise Diverged("the loss is not finite")

    monkeypatch.setattr(verb, "run_transfer", diverging)
    for _ in range(2):
        with pytest.raises(Diverged, match="weights, 2 images, seed 0; try a lower --lr"):
            started(out, labels=[2], seeds=2)
    assert sorted(trained) == ["random_2_0", "random_2_1", "weights_2_1"]
    held = results(out)
    assert held["missing"] == [{"arm": "weights", "share": "2", "seed": 0, "state": "diverged"}]
    assert held["verdicts"][0]["shares"][0]["pairs"] == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--init", "random"], 1, "--init: name at least two starts"),
        (["--init", "random", "random"], 1, "random stands there twice"),
        (["--init", "random", "weights.pth", "./weights.pth"], 1, "stands there twice"),
        (["--init", "random", "gone.pth", "lost"], 1, "lost: no such file or folder"),
        (["--labels", "0.5", "3"], 1, "0.5 and 3 are the same 3 of 6 images"),
        (["--labels", "half"], 2, "--labels: expected a share"),
        (["--labels", "7"], 1, "1 to 6"),
        (["--seeds", "0"], 2, "--seeds: expected 1 or more, got 0"),
        (["--cache", "-1"], 2, "--cache: expected GiB"),
        (["--detector", "faster_rcn_fpn"], 2, "did you mean faster_rcnn_fpn"),
        (["--detector.fpn_chanels", "8"], 2, "did you mean detector.fpn_channels"),
        (["--devices", "2"], 2, "compare trains on one device"),
        (["--detector.frozen_stages", "2"], 2, "random: detector.norm, detector.frozen_stages"),
    ],
)
def test_bad_inputs_are_told_before_anything_is_trained(
    words: list[str],
    code: int,
    said: str,
    trained: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Breaks when a mistake costs the runs before it, or its message does not name it."""
    start = [] if "--init" in words else ["--init", *INIT]
    argv = ["compare", "--data", "coco", "--out", str(tmp_path / "out"), *start, *words, *flags(TINY)]
    assert main(argv) == code
    assert said in capsys.readouterr().err
    assert not trained and not (tmp_path / "out").exists()


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, trained: list[str]) -> None:
    """Breaks when --overwrite empties a folder that holds no comparison."""
    (tmp_path / "photo.jpg").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="no comparison of boxwise"):
            started(tmp_path, overwrite=overwrite)
    with pytest.raises(ValueError, match="is a file"):
        started(tmp_path / "photo.jpg")
    assert (tmp_path / "photo.jpg").read_text() == "mine" and not trained


def test_without_labels_the_recipe_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when a recipe of few labels is compared at all of them, or runs do not record their share."""
    for given, said in (
        ({}, "100 % of the labels, seed 0: 6 images"),
        ({"data.labels": 2}, "2 images, seed 0: 2"),
    ):
        started(tmp_path / "out", labels=None, settings=TINY | given, dry_run=True)
        assert said in capsys.readouterr().out


def test_runs_record_their_share(whole: Path) -> None:
    """Breaks when a run's own recipe, given back, would train on all labels."""
    found = {run.name: load_yaml(run / "config.yaml")["data"]["labels"] for run in (whole / "runs").iterdir()}
    assert all(name.split("_")[1] == str(labels) for name, labels in found.items())


def test_masks_have_sizes_and_curves_of_their_own(tmp_path: Path) -> None:
    """Breaks when figures by size and curves by IoU are of boxes alone, or those of masks are the boxes'."""
    out = tmp_path / "out"
    options: dict[str, Any] = {"labels": [4], "seeds": 1, "detector": "mask_rcnn_fpn"}
    started(out, **options)
    truth = targets.open_labelled("coco", split="val", extras=("segmentation",)).coco()
    run = out / "runs" / "weights_4_0"
    exact = [{key: a[key] for key in ("image_id", "category_id", "bbox")} for a in truth["annotations"]]
    everywhere = {"score": 0.9, "segmentation": rle(np.ones((64, 64), dtype=np.uint8))}
    (run / "detections.json").write_text(json.dumps([one | everywhere for one in exact]))
    for file in ("iou.json", "mask_iou.json"):
        (run / file).unlink()
    started(out, **options)
    row, one = results(out)["table"][1], results(out)["runs"][1]
    assert set(row["by_iou"].values()) == {100.0} and set(row["mask_by_iou"].values()) == {0.0}
    assert one["mask_by_iou"] == row["mask_by_iou"] and one["by_iou"] == row["by_iou"]
    sizes = [name for name in ("mask_APs", "mask_APm", "mask_APl") if one["figures"][name] >= 0]
    assert sizes and set(sizes) <= row["figures"].keys()


def test_masks_are_judged_beside_boxes(whole: Path, tmp_path: Path) -> None:
    """Breaks when a verdict on masks is one on boxes, or a detector without boxes has none."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for run in (out / "runs").iterdir():
        arm, seed = run.name.split("_")[0], int(run.name[-1])
        figures = {"AP": 10.0 + seed, "mask_AP": 20.0 + (3.0 if arm == "weights" else 0.0) + seed}
        (run / "results.json").write_text(json.dumps(figures | {"images": 2, "seconds": 1.0}))
    started(out)
    lines = {line["metric"]: line["text"] for line in results(out)["verdicts"]}
    assert lines["mask_AP"] == "weights: +3.0 +- 0.0 mask_AP at 50 %, +3.0 +- 0.0 mask_AP at 100 %"
    assert (
        lines["AP"]
        == "weights: no difference at 50 % (0.0 +- 0.0 AP), no difference at 100 % (0.0 +- 0.0 AP)"
    )
