"""Bad files among good ones, met by whole runs: replaced and listed, or the end of the run in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import DETECTOR, facts, flags, photos, rows, settings

from boxwise.cli import main
from boxwise.data.loader import Bad
from boxwise.data.sources import open_images
from boxwise.data.workers import BadImage
from boxwise.engine.folder import RunFolder
from boxwise.run.bad_images import BadImages
from boxwise.run.finetune import finetune
from boxwise.run.pretrain import pretrain
from boxwise.run.scenes import scenes

ONE_PASS = {k: v for k, v in DETECTOR.items() if k != "steps"} | {"epochs": 1.0, "batch_size": 8}
SPOILT = ["001.png", "deeper/cut short.png", "letter.jpg"]


def spoilt(folder: Path, good: int = 61) -> Path:
    """An empty file, half a PNG, a letter that is called a photo; and a letter that is none, which is no image."""
    photos(folder, good)
    whole = (folder / "000.png").read_bytes()
    (folder / "001.png").write_bytes(b"")
    (folder / "deeper" / "cut short.png").write_bytes(whole[: len(whole) // 2])
    (folder / "letter.jpg").write_text("Dear reader,\n" * 40)
    (folder / "notes.txt").write_text("not an image, and not called one")
    return folder


def listed(out: Path) -> dict[str, str]:
    """Names and reasons of bad_images.txt."""
    lines = [line.split("\t") for line in (out / "bad_images.txt").read_text().splitlines()]
    assert all(len(line) == 3 for line in lines)
    assert len({line[1] for line in lines}) == len(lines), "an image counts once"
    return {name: reason for _, name, reason in lines}


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_files_are_replaced_counted_and_listed(
    tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = spoilt(tmp_path / "data"), tmp_path / "run"
    pretrain("simsiam", data, out, settings=settings("simsiam", batch_size=8, steps=16, workers=workers))
    found = listed(out)
    assert sorted(found) == SPOILT, "two passes over all images meet every one of them"
    assert all(found.values()) and "empty" in found["001.png"]
    assert facts(out)["bad_images"] == 3 and facts(out)["data"]["images"] == 64
    assert facts(out)["status"] == "finished" and rows(out)[-1]["step"] == 16
    said = capsys.readouterr().err
    assert "3 of 64 images could not be read" in said and "notes.txt" not in said
    assert "3 of 64 images" in (out / "train.log").read_text()


def test_more_than_one_in_twenty_stops_with_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = spoilt(tmp_path / "data", good=37), tmp_path / "run"
    given = settings("simsiam", batch_size=8, steps=20)
    assert main(["pretrain", "simsiam", "--data", str(data), "--out", str(out), *flags(given)]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        last.startswith("boxwise pretrain: 3 of 40 images cannot be read, more than 5%") and "--data" in last
    )
    assert facts(out)["status"] == "failed" and sorted(listed(out)) == SPOILT
    # It is still too many after a resume.
    argv = ["pretrain", "simsiam", "--data", str(data), "--out", str(out), "--resume", *flags(given)]
    assert main(argv) == 1
    assert "3 of 40 images cannot be read" in capsys.readouterr().err and sorted(listed(out)) == SPOILT


def test_error_stops_at_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = spoilt(tmp_path / "data"), tmp_path / "run"
    given = settings("simsiam", batch_size=8, steps=16, bad_images="error")
    assert main(["pretrain", "simsiam", "--data", str(data), "--out", str(out), *flags(given)]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert any(str(data / name) in last for name in SPOILT)
    assert not (out / "bad_images.txt").exists() and facts(out)["status"] == "failed"
    assert not (out / "export").exists()


def test_a_resumed_run_counts_no_image_twice_and_ends_the_same(tmp_path: Path) -> None:
    """Breaks when the list is begun anew or added to twice, or when replacements depend on what was met before."""
    data = spoilt(tmp_path / "data")
    constant = settings("simsiam", batch_size=8, **{"schedule.kind": "multistep"})  # whatever its length
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain("simsiam", data, whole, settings={**constant, "steps": 16})
    pretrain("simsiam", data, parts, settings={**constant, "steps": 6})
    before = listed(parts)
    with (parts / "bad_images.txt").open("a") as file:
        file.write("7\thalf a li")  # killed while it wrote
    pretrain("simsiam", data, parts, settings={**constant, "steps": 16}, resume=True, allow_drift=True)
    after = listed(parts)
    assert before.items() <= after.items() and len(before) > 0 and sorted(after) == SPOILT
    assert facts(parts)["bad_images"] == facts(whole)["bad_images"] == 3
    ours, theirs = ((p / "export" / "model.safetensors").read_bytes() for p in (parts, whole))
    assert ours == theirs


def test_two_processes_share_one_list(tmp_path: Path) -> None:
    """Each appends what it meets, and counts what the other has found."""
    data = photos(tmp_path / "data", 60)
    images = open_images(data)
    with RunFolder.open(tmp_path / "run", kind="t", config="name: t\n", data={}, seed=0) as folder:
        one, two = BadImages(folder, images), BadImages(folder, images)
        bad = [Bad(i, str(images.path(i)), "no\ttabs\nno lines") for i in range(4)]
        one.add(bad[:2])
        two.add(bad[1:3])
        one.add(bad[:3])
        lines = (tmp_path / "run" / "bad_images.txt").read_text().splitlines()
        assert lines == [f"{i}\t{images.name(i)}\tno tabs no lines" for i in range(3)]
        with pytest.raises(ValueError, match="4 of 60 images cannot be read"):
            one.add(bad[3:])
        with pytest.raises(ValueError, match="4 of 60"):
            two.add(bad[:1])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty labelled scenes, of which one file is empty."""
    root = scenes(tmp_path_factory.mktemp("labelled") / "coco", count=60, val=2, size=64)
    names = sorted(p.name for p in (root / "train2017").iterdir())
    (root / "train2017" / names[30]).write_bytes(b"")
    return root


def test_labelled_data_ends_at_a_bad_image_unless_told(labelled: Path, tmp_path: Path) -> None:
    file = json.loads((labelled / "annotations" / "instances_train2017.json").read_text())["images"][30]
    with pytest.raises(BadImage, match=file["file_name"]):
        finetune("faster_rcnn_fpn", labelled, tmp_path / "strict", settings=ONE_PASS)
    assert facts(tmp_path / "strict")["status"] == "failed"
    out = tmp_path / "lenient"
    finetune("faster_rcnn_fpn", labelled, out, settings={**ONE_PASS, "bad_images": "skip"})
    assert listed(out).keys() == {file["file_name"]} and facts(out)["bad_images"] == 1
    assert (out / "results.json").exists()


def test_nothing_but_bad_images_fails_before_a_run_begins(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_text("no picture")
    with pytest.raises(ValueError, match="none of 5 images tried can be read"):
        pretrain("scrl", tmp_path, tmp_path / "run", settings=settings("scrl"))
    assert not (tmp_path / "run").exists()


def test_odd_pictures_train(tmp_path: Path) -> None:
    """Gray, palette, with alpha, one pixel, thin: all are pictures, none is bad."""
    from PIL import Image

    data = photos(tmp_path / "data", 2)
    for i, mode in enumerate(("L", "LA", "P", "RGBA", "1", "I;16")):
        Image.new(mode, (40, 30), 1).save(data / f"odd{i}.png")
    Image.new("CMYK", (40, 30)).save(data / "cmyk.jpg")
    Image.new("RGB", (1, 1)).save(data / "pixel.png")
    Image.new("RGB", (300, 2)).save(data / "thin.png")
    out = tmp_path / "run"
    pretrain("scrl", data, out, settings=settings("scrl", batch_size=11))
    assert facts(out)["bad_images"] == 0 and facts(out)["data"]["images"] == 11
    assert torch.isfinite(torch.tensor([row["train/loss"] for row in rows(out)])).all()
