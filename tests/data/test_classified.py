"""Folders of class folders: which class a picture has, what is held out, and what is said of other layouts."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_images import png
from PIL import Image

from boxwise.data.classified import Classified, open_classified, open_held_out
from boxwise.data.sources import BadImage, Files, open_images
from layouts import voc_devkit, yolo_set

HELD: dict[str, Any] = {"held_out": 0.25, "seed": 0}


def grey(path: Path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), (value, value, value)).save(path)


def folders(root: Path, **counts: int) -> Path:
    """Class folders with so many images each."""
    for name, count in counts.items():
        for i in range(count):
            grey(root / name / f"{i}.png")
    return root


def names(images: Classified | Files) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def labelled(images: Classified) -> dict[str, str]:
    """The class of each name."""
    return {images.name(i): images.classes[label] for i, label in enumerate(images.labels.tolist())}


def refusal(place: Path, *called: Any, by: Callable[..., Any] = open_classified, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        by(*called, **HELD | options)
    message = str(caught.value)
    assert message.startswith(f"{place}: "), message
    return message.removeprefix(f"{place}: ")


def drawn(listed: Sequence[str], count: int, seed: int) -> set[str]:
    """The rule that is written down, once more."""
    return set(sorted(listed, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())[:count])


# Layouts


@pytest.mark.parametrize("split", ["val", "valid", "validation", "test"])
def test_a_root_with_splits(tmp_path: Path, split: str) -> None:
    """Breaks when a split goes unseen and part of train/ is measured on in its place."""
    folders(tmp_path / "train", cat=2, bee=1)
    folders(tmp_path / split, bee=1)
    grey(tmp_path / ".cache/a.png")
    (tmp_path / "train/.hidden").mkdir()
    (tmp_path / "wnids.txt").write_text("bee\ncat\n")
    train, measured = open_classified(tmp_path, **HELD)
    assert labelled(train) == {"bee/0.png": "bee", "cat/0.png": "cat", "cat/1.png": "cat"}
    assert labelled(measured) == {"bee/0.png": "bee"}
    assert train.classes == measured.classes == ("bee", "cat")
    assert measured.path(0) == tmp_path / split / "bee/0.png"


def test_val_goes_before_test(tmp_path: Path) -> None:
    """Breaks when figures of a test split are looked at while there is one to choose by."""
    for k, split in enumerate(("train", "test", "validation", "valid", "val")):
        folders(tmp_path / split, a=k + 1, b=1)
    for left, split in ((5, "val"), (4, "valid"), (3, "validation"), (2, "test")):
        assert len(open_classified(tmp_path, **HELD)[1]) == left + 1
        shutil.rmtree(tmp_path / split)


def test_labels_follow_the_classes_of_train(tmp_path: Path) -> None:
    """Breaks when the val side numbers its own folders: `cat`, alone there, would be class 0."""
    folders(tmp_path / "train", ant=1, bee=1, cat=1)
    folders(tmp_path / "val", cat=2)
    train, measured = open_classified(tmp_path, **HELD)
    assert (train.labels.tolist(), measured.labels.tolist()) == ([0, 1, 2], [2, 2])
    assert measured.classes == ("ant", "bee", "cat")


def test_images_anywhere_below_a_class_are_of_it(tmp_path: Path) -> None:
    """Breaks when the innermost folder is taken for the class, as images/ of Tiny ImageNet would be."""
    for name in ("n01/images/a.png", "n01/images/deep/b.JPEG", "n02/c.png", "n02/cat/d.png", "a dir/e.png"):
        grey(tmp_path / "train" / name)
    grey(tmp_path / "val/n01/f.png")
    train, _ = open_classified(tmp_path, **HELD)
    assert labelled(train) == {
        **{"n01/images/a.png": "n01", "n01/images/deep/b.JPEG": "n01"},
        **{"n02/c.png": "n02", "n02/cat/d.png": "n02", "a dir/e.png": "a dir"},
    }
    assert train.classes == ("a dir", "n01", "n02")


def test_another_folder_to_measure_on(tmp_path: Path) -> None:
    """Breaks when `val` is overlooked beside a split, or images are held out although it is given."""
    folders(tmp_path / "data", a=3, b=3)
    folders(tmp_path / "other", b=2)
    train, measured = open_classified(tmp_path / "data", val=str(tmp_path / "other"), held_out=0, seed=0)
    assert len(train) == 6 and labelled(measured) == {"b/0.png": "b", "b/1.png": "b"}
    folders(tmp_path / "root/train", a=1, b=1)
    folders(tmp_path / "root/val", a=1)
    train, measured = open_classified(tmp_path / "root", val=tmp_path / "other", **HELD)
    assert train.files.root == tmp_path / "root/train"
    assert measured.files.root == tmp_path / "other"


def test_train_alone_is_held_out_from(tmp_path: Path) -> None:
    """Breaks when train/ is taken for a class, or `data` and `data/train` part differently."""
    folders(tmp_path / "train", a=8, b=4)
    train, measured = open_classified(tmp_path, **HELD)
    assert train.classes == ("a", "b") and (len(train), len(measured)) == (9, 3)
    assert names(open_classified(tmp_path / "train", **HELD)[1]) == names(measured)


def test_a_train_is_a_vehicle_too(tmp_path: Path) -> None:
    """Breaks when a class of VOC's is taken for the split, and all others are dropped without a word."""
    folders(tmp_path, bus=2, train=2)
    assert open_classified(tmp_path, **HELD)[0].classes == ("bus", "train")
    grey(tmp_path / "train/steam/1.png")
    message = refusal(tmp_path, tmp_path)
    assert "train/ may be a split (it holds steam/) or a class (beside it lies bus/)" in message
    assert f"pass --data {tmp_path}/train if it is a split, or rename it" in message


def test_linked_folders_are_classes(tmp_path: Path) -> None:
    """Breaks when a set made of links is empty, or a class that is gone is overlooked."""
    folders(tmp_path / "far", x=2, y=2)
    (tmp_path / "data").mkdir()
    for name, to in (("bee", "x"), ("cat", "y")):
        (tmp_path / "data" / name).symlink_to(tmp_path / "far" / to)
    train, measured = open_classified(tmp_path / "data", **HELD)
    assert train.classes == ("bee", "cat") and (len(train), len(measured)) == (2, 2)
    (tmp_path / "far/y").rename(tmp_path / "far/z")
    assert "class folders without images: cat; remove the folder" in refusal(
        tmp_path / "data", tmp_path / "data"
    )


# What is held out


def test_the_least_of_each_class_are_held_out(tmp_path: Path) -> None:
    """Breaks when the draw runs over all classes at once, which leaves small ones without an image to measure on."""
    folders(tmp_path, a=20, b=3, c=2, d=1)
    train, measured = open_classified(tmp_path, held_out=0.2, seed=7)
    wanted = drawn([f"a/{i}.png" for i in range(20)], 4, 7) | drawn([f"b/{i}.png" for i in range(3)], 1, 7)
    wanted |= drawn(["c/0.png", "c/1.png"], 1, 7)
    assert names(measured) == sorted(wanted)
    assert sorted(names(train) + names(measured)) == names(open_images(tmp_path))
    assert not set(names(train)) & set(names(measured))
    for side in (train, measured):
        assert all(name.startswith(f"{of}/") for name, of in labelled(side).items())
    assert train.classes == measured.classes == ("a", "b", "c", "d")
    assert names(open_classified(tmp_path, held_out=0.2, seed=8)[1]) != names(measured)


def test_no_class_is_held_out_whole(tmp_path: Path) -> None:
    """Breaks when a large share leaves a class with nothing to learn from."""
    folders(tmp_path, a=3, b=2)
    train, measured = open_classified(tmp_path, held_out=0.9, seed=0)
    assert (train.labels.tolist(), measured.labels.tolist()) == ([0, 1], [0, 0, 1])


def test_the_draw_knows_names_alone(tmp_path: Path) -> None:
    """Breaks when the order of files on the disk, or other classes, decide what is measured on."""
    for root, order in (("one", range(12)), ("two", reversed(range(12)))):
        for i in order:
            for name in ("a", "b") if root == "one" else ("b", "a"):
                grey(tmp_path / root / name / f"{i}.png")
    _, measured = open_classified(tmp_path / "one", **HELD)
    assert names(open_classified(tmp_path / "two", **HELD)[1]) == names(measured)
    folders(tmp_path / "two", **{"0": 5})
    for i in range(12, 40):
        grey(tmp_path / "two/b" / f"{i}.png")
    grown = open_classified(tmp_path / "two", **HELD)[1]
    assert [n for n in names(grown) if n[0] == "a"] == [n for n in names(measured) if n[0] == "a"]
    assert len(grown) == 1 + 3 + 10


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("by", [open_classified, open_held_out])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: float, by: Callable[..., Any]) -> None:
    folders(tmp_path, a=2, b=2)
    message = refusal(tmp_path, tmp_path, by=by, held_out=share, val=None)
    assert message == (
        f"held_out is {share}; pass a share above 0 and below 1, or images to measure on as --val"
    )


# Refusals


def test_what_is_not_there_or_no_folder_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent", tmp_path / "absent").startswith(
        "no such folder; --data takes a folder"
    )
    grey(tmp_path / "a.png")
    assert refusal(tmp_path / "a.png", tmp_path / "a.png").startswith("a file, not a folder; --data takes")
    data = folders(tmp_path / "data", a=1, b=1)
    assert "no such folder" in refusal(tmp_path / "absent", data, val=tmp_path / "absent")
    assert "--val takes a folder of class folders" in refusal(
        tmp_path / "a.png", data, val=tmp_path / "a.png"
    )


def test_a_flat_folder_is_told_to_be_sorted(tmp_path: Path) -> None:
    """ImageNet's val images come in one folder, and train/ of unlabelled images has none either."""
    folders(tmp_path / "train", a=1, b=1)
    for name in ("ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"):
        grey(tmp_path / "val" / name)
    message = refusal(tmp_path / "val", tmp_path)
    assert message.startswith(
        "no class folders, but 2 images such as ILSVRC2012_val_00000001.JPEG; sort the images"
    )
    assert "into a folder for each class, as those of ImageNet's val split must be" in message
    assert "no class folders, but 2" in refusal(tmp_path / "val", tmp_path / "val")
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty", tmp_path / "empty").startswith("no class folders; sort the images")
    grey(tmp_path / "root/train/1.png")
    assert "no class folders, but 1" in refusal(tmp_path / "root/train", tmp_path / "root")


def test_all_that_is_wrong_with_class_folders_is_told_at_once(tmp_path: Path) -> None:
    """Breaks when images without a class are dropped, or a class whose files have another ending is."""
    folders(tmp_path, a=1, b=1)
    for name in ("5.png", "6.png"):
        grey(tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone/1.heic").write_bytes(b"x")
    message = refusal(tmp_path, tmp_path)
    assert (
        "beside the class folders: 5.png, 6.png; move each into the folder of its class, or away" in message
    )
    assert "without images: empty, phone (only others such as phone/1.heic); remove the folder" in message


def test_one_class_is_no_task(tmp_path: Path) -> None:
    """Breaks when the folder above the root is named, and a probe reaches 100 %."""
    folders(tmp_path, a=3)
    assert refusal(tmp_path, tmp_path).startswith("one class (a), and two are needed; add class folders.")


def test_classes_that_are_not_trained_on_are_listed(tmp_path: Path) -> None:
    folders(tmp_path / "train", a=1, b=1)
    folders(tmp_path / "val", a=1, c=1, d=1)
    message = refusal(tmp_path / "val", tmp_path)
    mend = "name the folders as those that are trained on, or remove them"
    assert message == f"classes that are not trained on: c, d; {mend}"


def test_classes_of_one_image_leave_nothing_to_measure_on(tmp_path: Path) -> None:
    folders(tmp_path, a=1, b=1)
    message = refusal(tmp_path, tmp_path)
    assert message == "no class has two images, one of them to measure on; add some or pass --val"


@pytest.mark.parametrize("write", [voc_devkit, yolo_set])
def test_roots_of_boxes_are_no_classes(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    """Breaks when Annotations/ is called a class without images, and the user is told to remove it."""
    write(tmp_path)
    assert refusal(tmp_path, tmp_path).startswith("a root of images with boxes, not of class folders; --data")


def test_folders_of_bad_images_fail_at_once(tmp_path: Path) -> None:
    """Breaks when only one side is tried."""
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png"):
        grey(tmp_path / name)
    (tmp_path / "val/a/1.png").write_bytes(b"no image")
    assert refusal(tmp_path / "val", tmp_path).startswith("none of 1 images tried can be read (the first:")
    (tmp_path / "train/b/1.png").write_bytes(b"")
    with pytest.raises(BadImage, match="empty file"):
        open_classified(tmp_path, val=tmp_path / "train", **HELD)[0].read(1)


def test_images_of_both_sides_are_refused(tmp_path: Path) -> None:
    """Breaks when a folder is measured on that is part of what is trained on; the very same may be meant."""
    data = tmp_path / "data"
    for name in ("a/a/0.png", "a/b/0.png", "b/0.png"):
        grey(data / name)
    (tmp_path / "link").symlink_to(data)
    message = refusal(tmp_path / "link/a", data, val=tmp_path / "link/a")
    mend = f"pass others as --val, or move them out of {data}"
    assert message == f"images that are trained on too: a/0.png, b/0.png; {mend}"
    assert len(open_classified(data, val=tmp_path / "link", **HELD)[1]) == 3


# The set itself


def test_pictures_are_those_of_the_names(tmp_path: Path) -> None:
    """Breaks when a subset shifts files against labels, here or in a worker process."""
    for value, name in enumerate(("a/0.png", "a/1.png", "b/2.png", "c/3.png")):
        grey(tmp_path / name, value)
    every = open_classified(tmp_path, val=tmp_path, **HELD)[0]
    chosen = pickle.loads(pickle.dumps(every.subset([3, 0, 1]).subset(np.array([0, 2]))))
    assert names(chosen) == ["c/3.png", "a/1.png"] and chosen.labels.tolist() == [2, 0]
    assert [chosen.read(i).unique().tolist() for i in range(2)] == [[3], [1]]
    assert chosen.classes == ("a", "b", "c") and chosen.path(1) == tmp_path / "a/1.png"
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(BadImage, match=r"a/1.png: no such file"):
        chosen.read(1)


def test_max_value_reaches_both_sides(tmp_path: Path) -> None:
    """Breaks when 12-bit images are black on one side."""
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(np.full((2, 2, 1), 1023), colour=0))
    for by in (open_classified, open_held_out):
        for side in by(tmp_path, val=None, max_value=1023, **HELD):
            assert side.read(0).unique().tolist() == [255]


def test_the_fingerprint_knows_classes(tmp_path: Path) -> None:
    """Breaks when features of one labelling are taken for those of another."""
    folders(tmp_path / "one", a=3, b=2)

    def opened(root: Path) -> Classified:
        return open_classified(root, val=root, **HELD)[0]

    before = opened(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert opened(tmp_path / "two").fingerprint() == before.fingerprint()
    assert replace(before, labels=before.labels[::-1].copy()).fingerprint() != before.fingerprint()
    (tmp_path / "two/a/2.png").rename(tmp_path / "two/b/2.png")
    assert opened(tmp_path / "two").fingerprint() != before.fingerprint()
    assert before.subset([0, 1]).fingerprint() != before.subset([1, 0]).fingerprint()


# Unlabelled images


def test_unlabelled_images_are_held_out_by_name(tmp_path: Path) -> None:
    """Breaks when the order is lost, or the draw is another than that of labelled images."""
    for i in range(20):
        grey(tmp_path / f"{i % 3}/{i}.png", i)
    train, measured = open_held_out(str(tmp_path), val=None, **HELD)
    every = names(open_images(tmp_path))
    assert set(names(measured)) == drawn(every, 5, 0)
    assert names(measured) == [name for name in every if name in names(measured)]
    assert names(train) == [name for name in every if name not in names(measured)]
    assert measured.read(0).unique().tolist() == [int(Path(measured.name(0)).stem)]


def test_a_plain_folder_with_splits_is_those_two(tmp_path: Path) -> None:
    """Breaks when the split is trained on. Without one, train/ is a folder like others."""
    grey(tmp_path / "train/1.png")
    grey(tmp_path / "train/2.png")
    grey(tmp_path / "more/3.png")
    assert sum(map(len, open_held_out(tmp_path, val=None, **HELD))) == 3
    grey(tmp_path / "test/4.png")
    train, measured = open_held_out(tmp_path, val=None, **HELD)
    assert (names(train), names(measured)) == (["1.png", "2.png"], ["4.png"])
    train, measured = open_held_out(tmp_path, val=tmp_path / "more", held_out=0, seed=0)
    assert (names(train), names(measured)) == (["1.png", "2.png"], ["3.png"])


def test_other_images_to_measure_on(tmp_path: Path) -> None:
    """Of any kind: a folder, a list, a json with the same images. Breaks when a json looks for them elsewhere."""
    for name in ("photos/1.png", "photos/2.png", "other/3.png"):
        grey(tmp_path / name)
    for name in ("1.png", "2.png"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"images": [{"file_name": name}]}))
    (tmp_path / "list.txt").write_text("other/3.png\n")
    one, two, photos = tmp_path / "1.png.json", tmp_path / "2.png.json", tmp_path / "photos"
    for data, images, val, wanted in (
        (one, photos, two, (["1.png"], ["2.png"])),
        (one, photos, tmp_path / "other", (["1.png"], ["3.png"])),
        (photos, None, tmp_path / "list.txt", (["1.png", "2.png"], ["other/3.png"])),
    ):
        assert tuple(map(names, open_held_out(data, images=images, val=val, held_out=0, seed=0))) == wanted
    message = refusal(photos, tmp_path, val=photos, by=open_held_out)
    assert message.startswith("images that are trained on too: 1.png, 2.png; pass others as --val")


def test_the_train_split_of_a_labelled_root_is_parted(tmp_path: Path) -> None:
    """Breaks when folders called train/ and val/ count for more than what the layout says is trained on."""
    for name in ("train/1.png", "train/2.png", "more/3.png", "val/4.png"):
        grey(tmp_path / name)
    (tmp_path / "data.yaml").write_text("train: [train, more]\nval: val\nnames: [bee]\n")
    sides = open_held_out(tmp_path, val=None, **HELD)
    every = sorted(name for side in sides for name in names(side))
    assert every == ["more/3.png", "train/1.png", "train/2.png"] == sorted(names(open_images(tmp_path)))
    assert [len(side) for side in sides] == [2, 1]


def test_one_image_is_not_parted(tmp_path: Path) -> None:
    """Breaks when one side is empty, or an image that a list names twice is on both."""
    grey(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\n./a.png\n")
    for data in (tmp_path, tmp_path / "list.txt"):
        message = refusal(data, data, val=None, by=open_held_out)
        assert message == "one image, and another is needed to measure on; add images or pass --val"
    grey(tmp_path / "b.png")
    (tmp_path / "list.txt").write_text("a.png\nb.png\na.png\n")
    train, measured = open_held_out(tmp_path / "list.txt", val=None, **HELD)
    assert sorted([names(train), names(measured)]) == [["a.png", "a.png"], ["b.png"]]


def test_names_that_are_no_text_are_drawn_too(tmp_path: Path) -> None:
    """Breaks when a name in Latin-1 stops the draw, or the name of its class is lost on the way."""
    folders(tmp_path, a=2)
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/\xfc")
    except OSError:
        pytest.skip("this file system wants text")
    odd = os.fsdecode(b"\xfc")
    folders(tmp_path, **{odd: 2})
    train, measured = open_classified(tmp_path, **HELD)
    assert train.classes == ("a", odd) and measured.labels.tolist() == [0, 1]
