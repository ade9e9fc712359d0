"""Proposals for a whole set: resumed, shared by ranks and processes, made when they are needed, checked."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from boxwise.cli import main
from boxwise.data.proposals import Proposals, Table
from boxwise.data.propose import GridBoxes, RandomBoxes, SelectiveSearch
from boxwise.data.sources import open_images
from boxwise.run import proposals as room
from boxwise.run.check_proposals import check
from boxwise.run.proposals import ensure, make, proposals

COUNT = 18


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """COUNT images of blocks."""
    folder = tmp_path / "photos"
    for k in range(COUNT):
        cells = np.random.default_rng(k).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        path = folder / ("deep" if k % 3 else ".") / f"{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(cells).resize((96, 80), Image.Resampling.NEAREST).save(path)
    return folder


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images that boxes are made for, as they are."""
    indices: list[int] = []
    slow = room.made_of

    def watched(images: Any, todo: Sequence[int], generator: Any, *, workers: int) -> Iterator[Any]:
        for index, one in zip(todo, slow(images, todo, generator, workers=workers)):
            indices.append(index)
            yield one

    monkeypatch.setattr(room, "made_of", watched)
    return indices


def contents(out: Path) -> dict[str, Any]:
    table = Table(out)
    return {"boxes": table.boxes.tolist(), "first": table.first.tolist(), "settings": table.generator}


def test_the_file_holds_what_the_generator_makes_of_each_image(photos: Path, tmp_path: Path) -> None:
    """Breaks when pixels reach the search transposed, or boxes an image of another index."""
    out, source = proposals(photos, tmp_path / "p", workers=0), open_images(photos)
    found = Proposals.open(out, source)
    for index in (0, 7, COUNT - 1):
        with Image.open(source.path(index)) as file:
            rects = SelectiveSearch().rects(np.asarray(file), "")
        xyxy = np.concatenate([rects[:, :2], rects[:, :2] + rects[:, 2:]], axis=1)
        assert found.boxes(index).tolist() == xyxy.tolist()
    assert Table(out).generator["scale"] == 300.0 and not [*tmp_path.glob("p.parts*")]


def test_processes_make_the_same_file(photos: Path, tmp_path: Path) -> None:
    """Breaks when chunks are lost, made twice or joined in the order in which they came."""
    one = make(open_images(photos), tmp_path / "one", RandomBoxes(count=7), workers=0)
    two = make(open_images(photos), tmp_path / "two", RandomBoxes(count=7), workers=2)
    assert one.read_bytes() == two.read_bytes()


def test_what_was_killed_goes_on(photos: Path, tmp_path: Path, made: list[int]) -> None:
    """Breaks when a stopped run begins anew, leaves a half-made file, or its end is unlike a run of one piece."""

    class Dies(RandomBoxes):
        def rects(self, pixels: Any, name: str) -> Any:
            if len(made) == 5:
                raise KeyboardInterrupt
            return RandomBoxes().rects(pixels, name)

    out, source = tmp_path / "p", open_images(photos)
    with pytest.raises(KeyboardInterrupt):
        make(source, out, Dies(), workers=0)
    assert not out.exists() and made == [*range(5)]
    make(source, out, RandomBoxes(), workers=0)
    assert made == [*range(COUNT)]
    assert contents(out) == contents(make(source, tmp_path / "q", RandomBoxes(), workers=0))


class Ends(RandomBoxes):
    """The system takes the process away."""

    def rects(self, pixels: Any, name: str) -> Any:
        os._exit(9)


def test_a_process_that_the_system_ends_is_told_of(photos: Path, tmp_path: Path) -> None:
    """Breaks when a user whose memory is short meets a traceback of the pool, or a run that hangs."""
    with pytest.raises(ValueError, match="pass fewer --workers; what is done stays done"):
        make(open_images(photos), tmp_path / "p", Ends(), workers=2)


def test_an_image_that_changed_meanwhile_is_made_again(photos: Path, tmp_path: Path, made: list[int]) -> None:
    """Breaks when a resumed run keeps the boxes of an earlier picture."""
    source, out = open_images(photos), tmp_path / "p"
    folder = room._parts_folder(out, GridBoxes())
    folder.mkdir()
    room._make_part(source, room.Parts(folder), GridBoxes(), None, 0, 1, 0)
    del made[:]
    Image.new("RGB", (64, 200)).save(source.path(3))
    make(open_images(photos), out, GridBoxes(), workers=0)
    assert made == [3] and Table(out).pixels[3].tolist() == [64, 200]


def test_a_finished_file_is_not_made_again_and_another_is_not_lost(
    photos: Path, tmp_path: Path, made: list[int]
) -> None:
    """Breaks when a command that is repeated costs a day, or one with other settings takes that day's file."""
    out, source = tmp_path / "p", open_images(photos)
    make(source, out, GridBoxes(), workers=0)
    make(source, out, GridBoxes(), workers=0)
    assert len(made) == COUNT
    before = out.read_bytes()
    with pytest.raises(ValueError, match="pass --overwrite"):
        make(source, out, RandomBoxes(), workers=0)
    assert out.read_bytes() == before
    make(source, out, RandomBoxes(), workers=0, overwrite=True)
    assert Table(out).generator["name"] == "random"


def test_a_set_that_grew_keeps_the_boxes_of_images_that_stayed(
    photos: Path, tmp_path: Path, made: list[int]
) -> None:
    """Breaks when one new image costs a day of work for all others, or a changed one keeps its boxes, at any length."""
    (photos / "a.png").write_bytes(b"bad")
    out = tmp_path / "p"
    make(open_images(photos), out, SelectiveSearch(), workers=0)
    Image.new("RGB", (70, 50)).save(photos / "new.png")
    changed = photos / "deep" / "01.png"
    held = bytearray(changed.read_bytes())
    held[-1] ^= 1
    changed.write_bytes(held)
    del made[:]
    source = open_images(photos)
    make(source, out, SelectiveSearch(), workers=0, overwrite=True)
    assert sorted(source.name(k) for k in made) == ["deep/01.png", "new.png"]
    fresh = make(source, tmp_path / "q", SelectiveSearch(), workers=0)
    assert out.read_bytes() == fresh.read_bytes() and [*Table(out).bad] == ["a.png"]


def test_ranks_share_the_images_and_all_return_to_a_whole_file(
    photos: Path, tmp_path: Path, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when ranks make each other's images, when rank 0 joins before the others are done, or when a rank
    returns before there is a file."""
    here = threading.local()
    monkeypatch.setattr(room, "place", lambda: (here.rank, 3, 3))
    monkeypatch.setattr(room, "POLL", 0.02)
    source, out, lengths = open_images(photos), tmp_path / "p", []

    def rank(number: int) -> None:
        here.rank = number
        lengths.append(len(ensure(source, out, method=RandomBoxes(), workers=0)))

    ranks = [threading.Thread(target=rank, args=(k,)) for k in (2, 0, 1)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(timeout=30)
    assert lengths == [COUNT] * 3 and sorted(made) == [*range(COUNT)]
    monkeypatch.undo()
    assert contents(out) == contents(make(source, tmp_path / "q", RandomBoxes(), workers=0))


def test_a_rank_that_is_gone_does_not_hold_the_others_for_ever(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when rank 0 waits for parts that nobody writes."""
    monkeypatch.setattr(room, "place", lambda: (0, 2, 2))
    monkeypatch.setattr(room, "POLL", 0.01)
    monkeypatch.setattr(room, "STALLED", 0.1)
    with pytest.raises(ValueError, match="start the command again"):
        make(open_images(photos), tmp_path / "p", GridBoxes(), workers=0)
    monkeypatch.undo()
    assert len(Table(make(open_images(photos), tmp_path / "p", GridBoxes(), workers=0))) == COUNT


def test_a_node_that_does_not_lead_waits_for_the_one_that_does(
    photos: Path, tmp_path: Path, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when nodes that Lightning started each make the whole file, or fall over the lock of the first."""
    source, out, done = open_images(photos), tmp_path / "p", threading.Event()
    monkeypatch.setattr(room, "POLL", 0.02)
    monkeypatch.setattr(room, "leads", lambda: threading.current_thread().name == "first")

    def second() -> None:
        make(source, out, GridBoxes(), workers=0)
        assert out.exists()
        done.set()

    waiting = threading.Thread(target=second)
    waiting.start()
    assert not done.wait(0.3) and not made
    first = threading.Thread(
        target=make, args=(source, out, GridBoxes()), kwargs={"workers": 0}, name="first"
    )
    first.start()
    first.join(30)
    assert done.wait(30) and made == [*range(COUNT)]


def test_bad_images_are_skipped_listed_and_said(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when one broken file of a million ends the run, or goes unsaid."""
    (photos / "deep" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (photos / "empty.png").write_bytes(b"")
    out = proposals(photos, tmp_path / "p", method="grid", workers=0)
    said = capsys.readouterr().err
    assert (
        "deep/broken.jpg" in said and "empty.png: empty file" in said and "2 images could not be read" in said
    )
    assert {*Table(out).bad} == {"deep/broken.jpg", "empty.png"}
    found, source = Proposals.open(out, open_images(photos)), open_images(photos)
    broken = [source.name(k) for k in range(len(source))].index("empty.png")
    assert found.boxes(broken).shape == (0, 4)
    report = check(out, photos)
    assert report.fits and "unreadable  2: deep/broken.jpg (" in report.text


def test_pretraining_makes_the_file_it_lacks_and_says_so(
    photos: Path, tmp_path: Path, made: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Breaks when a made file is not used again, or one of other images or another method is."""
    out = tmp_path / "run" / "proposals"
    first = ensure(open_images(photos), out, method="random", workers=0)
    assert "making" in capsys.readouterr().err and len(made) == COUNT and len(first.boxes(0)) > 0
    ensure(open_images(photos), out, method="random", workers=0)
    assert "making" not in capsys.readouterr().err and len(made) == COUNT
    (photos / "00.png").rename(photos / "zz.png")
    ensure(open_images(photos), out, method="random", workers=0)
    assert len(made) == COUNT + 1
    assert Table(out).generator["name"] == "random"
    ensure(open_images(photos), out, method="grid", workers=0)
    assert Table(out).generator["name"] == "grid"


def coco(photos: Path) -> Path:
    """Labels of the first two images, as a json beside them."""
    boxes = [(1, [0, 0, 96, 80]), (1, [10, 10, 40, 30]), (2, [8, 8, 2, 2])]
    raw = {
        "images": [{"id": 1, "file_name": "00.png"}, {"id": 2, "file_name": "deep/01.png"}],
        "annotations": [
            {"id": k, "image_id": i, "bbox": b, "category_id": 1} for k, (i, b) in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "block"}],
    }
    (photos / "labels.json").write_text(json.dumps(raw))
    return photos / "labels.json"


def test_labels_as_proposals_find_all_labels(photos: Path, tmp_path: Path) -> None:
    """Breaks when the boxes of a json move, or when recall is measured against anything but them."""
    out = proposals(coco(photos), tmp_path / "p", method="coco-json", workers=0)
    assert Proposals.open(out, open_images(coco(photos))).boxes(0).tolist() == [
        [0, 0, 96, 80],
        [10, 10, 50, 40],
    ]
    found = check(out, coco(photos))
    assert (
        found.fits and "100.0% at IoU 0.5, 100.0% at IoU 0.7; mean best IoU 1.000, of 3 labels" in found.text
    )


def test_recall_counts_the_best_box_of_each_label(photos: Path, tmp_path: Path) -> None:
    """Breaks when overlaps are wrong, or when an image without boxes is not taken as a whole."""
    seen = [
        {"image_id": 1, "bbox": [10, 10, 20, 30], "score": 0.9},
        {"image_id": 1, "bbox": [0, 0, 96, 60], "score": 0.9},
    ]
    (photos / "seen.json").write_text(json.dumps(seen))
    out = proposals(coco(photos), tmp_path / "p", method="coco-json", boxes=photos / "seen.json", workers=0)
    best = np.mean([0.75, 0.5, 4 / (96 * 80)])  # the last image has no box: the whole of it is compared
    found = check(out, coco(photos)).text
    assert f"66.7% at IoU 0.5, 33.3% at IoU 0.7; mean best IoU {best:.3f}, of 3 labels in 2 images" in found


def test_check_finds_what_is_missing_and_changed(photos: Path, tmp_path: Path) -> None:
    """Breaks when a file that no longer fits the images passes."""
    out = proposals(photos, tmp_path / "p", method="grid", workers=0)
    assert check(out, photos).fits
    Image.new("RGB", (9, 9)).save(photos / "later.png")
    Image.new("RGB", (9, 9)).save(photos / "deep" / "01.png")
    found = check(out, photos)
    assert not found.fits
    assert "missing     1: later.png" in found.text and "changed     1: deep/01.png" in found.text


def test_the_commands(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when the two-word command is taken for a folder named check, or a flag is lost on its way."""
    out = tmp_path / "p"
    command = ["proposals", str(photos), "--out", str(out), "--workers", "0"]
    assert main([*command, "--method", "random", "--count", "3", "--seed", "5"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert Table(out).generator == {"name": "random", "count": 3, "seed": 5}
    assert main(["proposals", "check", str(out), "--data", str(photos)]) == 0
    assert "boxes per image             3        3        3" in capsys.readouterr().out
    Image.new("RGB", (9, 9)).save(photos / "later.png")
    assert main(["proposals", "check", str(out), "--data", str(photos)]) == 1
    assert main([*command, "--values", "bytes", "--overwrite"]) == 0
    assert Table(out).generator["values"] == "bytes"
    assert main([*command, "--boxes", "x.json"]) == 1 and "coco-json" in capsys.readouterr().err
    assert (
        main([*command, "--method", "random", "--count", "0"]) == 1 and "--count 0" in capsys.readouterr().err
    )


def test_nothing_but_proposals_is_replaced(photos: Path, tmp_path: Path) -> None:
    """Breaks when --overwrite with the name of a photo or of weights costs it, or a damaged file stays for good."""
    photo = next(photos.rglob("*.png"))
    before = photo.read_bytes()
    for out in (photo, photos, coco(photos)):
        with pytest.raises(ValueError, match="is no file of proposals; choose another name"):
            proposals(photos, out, method="grid", workers=0, overwrite=True)
    assert photo.read_bytes() == before
    made = proposals(photos, tmp_path / "p", method="grid", workers=0)
    whole = made.read_bytes()
    made.write_bytes(whole[:-9])
    assert proposals(photos, made, method="grid", workers=0, overwrite=True).read_bytes() == whole
