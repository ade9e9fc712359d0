"""The file of proposals: what is written comes back, by any image set that it covers, and nothing else is read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_images import photo
from safetensors.numpy import load_file, save_file

from boxwise.data.proposal_parts import Made, Part, Parts, join
from boxwise.data.proposals import EDGE, Proposals, Stamp, Table
from boxwise.data.sources import Files, open_images


def rects_of(index: int, count: int) -> np.ndarray:
    return np.arange(4 * count).reshape(count, 4) + index


COUNTS = {"a.png": 3, "b/c.png": 0, "b/d.png": 2}


@pytest.fixture
def images(tmp_path: Path) -> Files:
    for k, name in enumerate(COUNTS):
        photo(tmp_path / "photos" / name, 30 + k, 20)
    return open_images(tmp_path / "photos")


def written(tmp_path: Path, images: Files, *, wide: int = 0) -> Path:
    """A file with COUNTS boxes an image, made in two parts and out of order."""
    places = [Part(tmp_path / "parts" / f"{k}.part") for k in range(2)]
    for k in (2, 0, 1):
        name = images.name(k)
        rects = rects_of(k, COUNTS[name])
        places[k % 2].add(Made(name, Stamp.of(images.path(k)), 30 + k + wide, 20, rects))
    parts, out = Parts(tmp_path / "parts"), tmp_path / "boxes"
    parts.refresh()
    with out.open("wb") as file:
        join(parts, images, file, {"name": "test"})
    return out


def xyxy(index: int, count: int) -> list[list[float]]:
    rects = rects_of(index, count)
    return np.concatenate([rects[:, :2], rects[:, :2] + rects[:, 2:]], axis=1).astype(float).tolist()


def test_boxes_come_back_by_image_half_open(tmp_path: Path, images: Files) -> None:
    """Breaks when boxes go to the wrong image, when parts are joined out of order, or widths are stored as ends."""
    found = Proposals.open(written(tmp_path, images), images)
    assert [found.boxes(k).tolist() for k in range(3)] == [xyxy(0, 3), [], xyxy(2, 2)]
    assert found.boxes(0).dtype == np.float32 and found.boxes(1).shape == (0, 4) and len(found) == 3


def test_other_orders_and_parts_of_the_set_find_their_boxes(tmp_path: Path, images: Files) -> None:
    """Breaks when rows are taken by number instead of by name."""
    out = written(tmp_path, images)
    (tmp_path / "photos" / "list.txt").write_text("b/d.png\na.png\n")
    found = Proposals.open(out, open_images(tmp_path / "photos" / "list.txt"))
    assert [found.boxes(k).tolist() for k in range(2)] == [xyxy(2, 2), xyxy(0, 3)]
    sent = pickle.loads(pickle.dumps(found))
    assert sent.boxes(0).tolist() == xyxy(2, 2) and len(sent) == 2


def test_a_worker_is_sent_a_path_not_the_boxes(tmp_path: Path, images: Files) -> None:
    """Breaks when a million boxes are copied to every worker, or read before they are asked for."""
    found = Proposals.open(written(tmp_path, images), images)
    assert len(pickle.dumps(found)) < 1000
    assert isinstance(found.table.boxes, np.memmap) and not found.table.boxes.flags.writeable


def test_the_file_is_small_and_any_safetensors_reader_takes_it(tmp_path: Path, images: Files) -> None:
    """Breaks when a box takes more than its 8 bytes or the file leaves the format."""
    arrays = load_file(written(tmp_path, images))
    assert arrays["boxes"].dtype == np.uint16 and arrays["boxes"].tolist() == [*xyxy(0, 3), *xyxy(2, 2)]
    assert arrays["pixels"].tolist() == [[30, 20], [31, 20], [32, 20]]
    assert bytes(arrays["names"]) == b"a.pngb/c.pngb/d.png" and arrays["ends"].tolist() == [5, 12, 19]
    per_image = sum(a.nbytes for name, a in arrays.items() if name not in ("boxes", "names")) / 3
    assert per_image <= 48


def test_images_too_wide_for_two_bytes_keep_their_boxes(tmp_path: Path, images: Files) -> None:
    """Breaks when a coordinate above 65535 wraps around."""
    out = written(tmp_path, images, wide=70000)
    assert Table(out).boxes.dtype == np.uint32
    assert Proposals.open(out, images).boxes(0).tolist() == xyxy(0, 3)


def test_missing_images_are_named(tmp_path: Path, images: Files) -> None:
    """Breaks when training starts with images that nobody proposed boxes for."""
    out = written(tmp_path, images)
    photo(tmp_path / "photos" / "new.png")
    with pytest.raises(
        ValueError,
        match=r"no proposals for 1 of 4 images \(new.png\); bring it up to date with boxwise proposals --overwrite",
    ):
        Proposals.open(out, open_images(tmp_path / "photos"))
    with pytest.raises(ValueError, match=r"3 of 3 images .*such as a.png: was it made for another folder"):
        Proposals.open(out, elsewhere(tmp_path))


def elsewhere(tmp_path: Path) -> Files:
    for k in range(3):
        photo(tmp_path / "other" / f"{k}.png")
    return open_images(tmp_path / "other")


def test_changed_images_are_named(tmp_path: Path, images: Files) -> None:
    """Breaks when boxes of an earlier picture are used for a later one of the same name."""
    out = written(tmp_path, images)
    photo(tmp_path / "photos" / "b" / "d.png", 60, 50)
    with pytest.raises(ValueError, match=r"1 images have changed .*\(b/d.png\)"):
        Proposals.open(out, images)


def test_a_change_that_keeps_the_length_is_noticed(tmp_path: Path, images: Files) -> None:
    """Breaks when only lengths are compared."""
    out = written(tmp_path, images)
    path = tmp_path / "photos" / "a.png"
    path.write_bytes(bytes(reversed(path.read_bytes())))
    with pytest.raises(ValueError, match=r"1 images have changed .*\(a.png\)"):
        Proposals.open(out, images)


def test_a_stamp_covers_length_and_both_ends(tmp_path: Path) -> None:
    """Breaks when an end is left out, or short files are read past their end."""
    path, content = tmp_path / "x", bytearray(3 * EDGE)
    stamps = set()
    for at in (None, 0, EDGE - 1, 2 * EDGE, 3 * EDGE - 1):
        changed = bytearray(content)
        if at is not None:
            changed[at] = 1
        path.write_bytes(changed)
        stamps.add(Stamp.of(path))
    path.write_bytes(content[:-1])
    stamps.add(Stamp.of(path))
    path.write_bytes(b"")
    stamps.add(Stamp.of(path))
    assert len(stamps) == 7


def tampered(path: Path, change: Any) -> Path:
    """A well-formed safetensors file whose arrays or facts do not fit."""
    arrays = load_file(path)
    about = {"format": 1, "generator": {"name": "test"}, "fingerprint": "", "bad_images": {}}
    change(arrays, about)
    save_file(arrays, path, {"boxwise": json.dumps(about)})
    return path


CHANGES = {
    "first runs past the boxes": lambda arrays, about: arrays["first"].__setitem__(-1, 9),
    "first falls": lambda arrays, about: arrays["first"].__setitem__(1, 4),
    "first starts late": lambda arrays, about: arrays["first"].__setitem__(0, 1),
    "ends run past the names": lambda arrays, about: arrays["ends"].__setitem__(-1, 99),
    "a row too few": lambda arrays, about: arrays.update(digest=arrays["digest"][:-1]),
    "boxes of three numbers": lambda arrays, about: arrays.update(boxes=arrays["boxes"][:, :3].copy()),
    "no boxes": lambda arrays, about: arrays.pop("boxes"),
    "floats": lambda arrays, about: arrays.update(boxes=arrays["boxes"].astype(np.float32)),
    "a later format": lambda arrays, about: about.update(format=2),
    "no generator": lambda arrays, about: about.pop("generator"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_do_not_agree_with_themselves_are_refused(
    change: str, tmp_path: Path, images: Files
) -> None:
    """Breaks when a damaged file reaches a worker, which would read beyond the boxes of an image."""
    out = written(tmp_path, images)
    tampered(out, lambda arrays, about: None)
    Table(out)
    with pytest.raises(ValueError, match="not a file of proposals"):
        Table(tampered(out, CHANGES[change]))


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"\xff" * 64, json.dumps({"a": 1}).encode()])
def test_files_of_another_kind_are_refused(content: bytes, tmp_path: Path) -> None:
    """Breaks when a pickle or any other file gives more than one sentence."""
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match="not a file of proposals"):
        Table(tmp_path / "x")
    with pytest.raises(ValueError, match="no such file; make it with boxwise proposals"):
        Table(tmp_path / "gone")


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, images: Files) -> None:
    """Breaks when the end of a half-copied file is read as zeros."""
    out = written(tmp_path, images)
    out.write_bytes(out.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a file of proposals"):
        Table(out)


@pytest.mark.parametrize("lost", [1, 7, 20, 60])
def test_a_part_that_was_killed_while_writing_goes_on(lost: int, tmp_path: Path) -> None:
    """Breaks when half a record is read as a whole one, or hides what is written after it."""
    path = tmp_path / "parts" / "0.part"
    one, two, three = (Made(f"{k}.png", Stamp(k, 2**63 + k), 9, 8, rects_of(k, 2)) for k in range(3))
    part = Part(path)
    part.add(one)
    part.add(two)
    part.close()
    path.write_bytes(path.read_bytes()[:-lost])
    parts = Parts(path.parent)
    parts.refresh()
    assert [*parts.places] == ["0.png"]
    again = Part(path)
    again.add(three)
    again.close()
    assert parts.refresh() and not parts.refresh()
    assert [*parts.places] == ["0.png", "2.png"]
    back = parts.made(parts.places["2.png"])
    assert (back.name, back.stamp, back.width, back.height) == ("2.png", three.stamp, 9, 8)
    assert back.rects.tolist() == three.rects.tolist()


def test_names_that_are_no_text_survive(tmp_path: Path) -> None:
    """Breaks when a name of foreign bytes stops the whole set."""
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    part = Part(tmp_path / "parts" / "0.part")
    part.add(Made(name, Stamp(1, 1), 9, 8, rects_of(0, 1)))
    part.close()
    parts = Parts(tmp_path / "parts")
    parts.refresh()
    assert [*parts.places] == [name]
