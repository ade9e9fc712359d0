"""What `--data` may be, which images that gives, and what is said where it gives none."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_images import photo, png

from boxwise.data.names import Names
from boxwise.data.sources import BadImage, Files, open_images
from layouts import cityscapes_set, lvis_set, voc_devkit, yolo_set


def names(images: Files) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def refusal(data: Path, **options: object) -> str:
    with pytest.raises(ValueError) as caught:
        open_images(data, **options)
    assert str(data) in str(caught.value), "the message must name what was asked for"
    return str(caught.value)


def coco(root: Path, *, year: str = "2017", **splits: list[str]) -> Path:
    """A COCO root; `splits` name the files of each."""
    (root / "annotations").mkdir(parents=True)
    for split, files in splits.items():
        for name in files:
            photo(root / f"{split}{year}" / name)
        content = {"images": [{"id": i, "file_name": n} for i, n in enumerate(files)]}
        (root / f"annotations/instances_{split}{year}.json").write_text(json.dumps(content))
    return root


# Folders


def test_a_folder_gives_all_images_below_it_in_order(tmp_path: Path) -> None:
    """Breaks when nested folders or endings in capitals are overlooked, or hidden files are read."""
    for name in ("b/2.png", "b/deep/er/1.JPG", "a.jpeg", "B.webp"):
        photo(tmp_path / name)
    for name in (".hidden.jpg", ".thumbnails/a.jpg", "b/._2.png"):
        photo(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    images = open_images(tmp_path)
    assert names(images) == ["B.webp", "a.jpeg", "b/2.png", "b/deep/er/1.JPG"]
    assert images.read(2).shape == (3, 17, 23)
    assert images.path(2) == tmp_path / "b/2.png"


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    """Breaks when linked photos are overlooked, or a link to a folder above is walked for ever."""
    photo(tmp_path / "elsewhere/far.jpg")
    photo(tmp_path / "elsewhere/inner/deep.jpg")
    photo(tmp_path / "data/z/near.jpg")
    (tmp_path / "data/a_file.jpg").symlink_to(tmp_path / "elsewhere/far.jpg")
    (tmp_path / "data/a_folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/z/up").symlink_to(tmp_path / "data")
    for link in ("again", "zz"):  # before and after the real one
        (tmp_path / "data" / link).symlink_to(tmp_path / "data/z")
    expected = ["a_file.jpg", "a_folder/far.jpg", "a_folder/inner/deep.jpg", "z/near.jpg"]
    assert names(open_images(tmp_path / "data")) == expected


def test_a_linked_root_is_followed(tmp_path: Path) -> None:
    photo(tmp_path / "real/a.jpg")
    (tmp_path / "link").symlink_to("real")
    assert names(open_images(tmp_path / "link")) == ["a.jpg"]


def test_a_dead_link_is_missed_not_overlooked(tmp_path: Path) -> None:
    """Breaks when half a data set vanishes with the disk its links lead to, and nothing is said."""
    photo(tmp_path / "a.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    images = open_images(tmp_path)
    assert names(images) == ["a.jpg", "gone.jpg"]
    with pytest.raises(BadImage, match=r"gone.jpg: no such file"):
        images.read(1)


def test_an_empty_folder_fails_at_once(tmp_path: Path) -> None:
    assert "no images; accepted are JPEG" in refusal(tmp_path)
    (tmp_path / "IMG_1.heic").write_bytes(b"x")
    message = refusal(tmp_path)
    assert "no images, only others such as IMG_1.heic" in message
    assert "list file (.txt)" in message and "COCO root" in message


def test_a_folder_of_bad_images_fails_at_once(tmp_path: Path) -> None:
    """Breaks when training starts on nothing; it must not fail for one good image among many bad ones."""
    for i in range(100):
        (tmp_path / f"{i:02d}.jpg").write_bytes(b"no image" if i else b"")
    message = refusal(tmp_path)
    assert "none of 32 images tried can be read" in message and "00.jpg: empty file (0 bytes)" in message
    photo(tmp_path / "99.jpg").rename(tmp_path / "00.jpg")
    assert len(open_images(tmp_path)) == 99


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    assert "no such file or folder; --data takes a folder of images" in refusal(tmp_path / "absent")
    photo(tmp_path / "one.jpg")
    assert "neither a folder nor a .txt, .json or .yaml file" in refusal(tmp_path / "one.jpg")
    assert "--images goes with --data FILE.json" in refusal(tmp_path, images=tmp_path)


def test_names_that_are_no_text_survive(tmp_path: Path) -> None:
    """Breaks when a name in Latin-1 stops the run. Bytes are the system's, so the file is found again."""
    raw = os.fsencode(tmp_path) + b"/f\xfcr.png"
    try:
        photo(tmp_path / "a.png").rename(os.fsdecode(raw))
    except OSError:
        pytest.skip("this file system wants text")
    photo(tmp_path / "日本.png")
    images = open_images(tmp_path)
    assert sorted(os.fsencode(n) for n in names(images)) == [b"f\xfcr.png", "日本.png".encode()]
    assert images.read(0).shape == images.read(1).shape == (3, 17, 23)


# Lists


def test_a_list_names_files_and_folders(tmp_path: Path) -> None:
    """Its lines are the user's: `..`, absolute names and links are followed, order and endings are kept."""
    photo(tmp_path / "far/x.jpg")
    photo(tmp_path / "far/y.jpg")
    photo(tmp_path / "lists/sub/deep/2.png")
    photo(tmp_path / "lists/sub/1.png")
    photo(tmp_path / "lists/with space.jpg").with_suffix("")
    (tmp_path / "lists/odd.data").write_bytes((tmp_path / "far/x.jpg").read_bytes())
    lines = ["../far/y.jpg", "", str(tmp_path / "far/x.jpg"), "sub", "with space.jpg", "./odd.data"]
    (tmp_path / "lists/all.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    images = open_images(tmp_path / "lists/all.txt")
    assert names(images) == [
        *("../far/y.jpg", f"{tmp_path}/far/x.jpg", "sub/1.png", "sub/deep/2.png"),
        *("with space.jpg", "odd.data"),
    ]
    assert all(images.read(i).shape == (3, 17, 23) for i in range(6))


def test_a_list_tells_all_its_wrong_lines(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    (tmp_path / "empty").mkdir()
    lines = ["a.jpg", "empty", *(f"missing{i}.jpg" for i in range(5))]
    (tmp_path / "all.txt").write_text("\n".join(lines))
    message = refusal(tmp_path / "all.txt")
    assert "a folder without images: line 2: empty" in message
    assert "line 3: missing0.jpg, line 4: missing1.jpg, line 5: missing2.jpg, and 2 more" in message
    assert f"relative to {tmp_path}/" in message
    (tmp_path / "none.txt").write_text("\n\n")
    assert "names no images" in refusal(tmp_path / "none.txt")


# COCO


def test_a_coco_root_gives_its_train_images(tmp_path: Path) -> None:
    """Breaks when validation images are pretrained on. The folder counts, unlisted images included."""
    root = coco(tmp_path, train=["1.jpg", "2.jpg"], val=["3.jpg"])
    photo(root / "train2017/unlisted.jpg")
    photo(root / "unlabeled2017/4.jpg")
    images = open_images(root)
    assert names(images) == ["1.jpg", "2.jpg", "unlisted.jpg"]
    assert images.root == root / "train2017"


def test_a_folder_that_splits_share_gives_what_the_json_names(tmp_path: Path) -> None:
    root = coco(tmp_path, train=["1.jpg"], val=["2.jpg"])
    (root / "images").mkdir()
    for split in ("train", "val"):
        for file in (root / f"{split}2017").iterdir():
            file.rename(root / "images" / file.name)
        (root / f"{split}2017").rmdir()
    assert names(open_images(root)) == ["1.jpg"]


def test_a_coco_root_in_doubt_is_refused(tmp_path: Path) -> None:
    root = coco(tmp_path / "a", val=["1.jpg"])
    assert "0 files annotations/instances_train*.json" in refusal(root)
    coco(tmp_path / "b", train=["1.jpg"])
    coco(tmp_path / "c", train=["1.jpg"], year="2014")
    (tmp_path / "c/annotations/instances_train2014.json").rename(
        tmp_path / "b/annotations/instances_train2014.json"
    )
    assert "2 files" in refusal(tmp_path / "b")
    (tmp_path / "b/annotations/instances_train2014.json").unlink()
    assert names(open_images(tmp_path / "b")) == ["1.jpg"]
    (tmp_path / "b/train2017").rename(tmp_path / "b/photos")
    with pytest.raises(ValueError, match=r"its images are not in .*b/train2017/; put them there, or pass"):
        open_images(tmp_path / "b")


def test_a_json_with_its_images(tmp_path: Path) -> None:
    """Three places: stated, COCO's own, and beside the json."""
    root = coco(tmp_path / "root", train=["1.jpg", "sub/2.jpg"])
    file = root / "annotations/instances_train2017.json"
    assert names(open_images(file)) == ["1.jpg", "sub/2.jpg"]
    alone = tmp_path / "alone.json"
    alone.write_bytes(file.read_bytes())
    assert names(open_images(alone, images=root / "train2017")) == ["1.jpg", "sub/2.jpg"]
    assert "missing image files: '1.jpg', 'sub/2.jpg'; put them into" in refusal(alone)
    (root / "train2017/here.json").write_bytes(file.read_bytes())
    assert names(open_images(root / "train2017/here.json")) == ["1.jpg", "sub/2.jpg"]
    with pytest.raises(ValueError, match=r"absent: no such folder; --images"):
        open_images(alone, images=tmp_path / "absent")


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "a/../../secret.jpg", "/etc/secret.jpg", "C:\\secret.jpg", "..\\secret.jpg", ""]
)
def test_a_json_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    """A json comes from others. Breaks when it can make a run read any file of the machine."""
    photo(tmp_path / "secret.jpg")
    photo(tmp_path / "images/a.jpg")
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"images": [{"file_name": "a.jpg"}, {"file_name": name}]}))
    message = refusal(file, images=tmp_path / "images")
    assert "absolute or contain .." in message and repr(name) in message


def test_a_link_among_the_images_of_a_json_is_the_users_own(tmp_path: Path) -> None:
    photo(tmp_path / "far/a.jpg")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").symlink_to(tmp_path / "far/a.jpg")
    (tmp_path / "x.json").write_text(json.dumps({"images": [{"file_name": "a.jpg"}]}))
    assert open_images(tmp_path / "x.json", images=tmp_path / "images").read(0).shape == (3, 17, 23)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"images": [', "not JSON .*line 1 column"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100000, "not JSON"),
        (b"[1, 2]", "a list at the top"),
        (b'{"pictures": []}', 'no list "images"'),
        (b'{"images": {"1": 2}}', 'a dict for a list "images"'),
        (b'{"images": [{"id": 1}, 7]}', r"without file_name \(str\): entry 0: .*entry 1: 7"),
        (b'{"images": []}', "names no images"),
    ],
)
def test_what_is_no_coco_json_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/x.json: .*{said}"):
        open_images(tmp_path / "x.json", images=tmp_path)


# The set itself


def test_the_fingerprint_tells_changes_not_places(tmp_path: Path) -> None:
    """Breaks when a changed data set resumes as if nothing were, or a moved one is refused."""
    photo(tmp_path / "one/a.jpg")
    photo(tmp_path / "one/b.jpg")
    before = open_images(tmp_path / "one").fingerprint()
    (tmp_path / "one").rename(tmp_path / "two")
    assert open_images(tmp_path / "two").fingerprint() == before
    photo(tmp_path / "two/b.jpg", 64, 64)
    resized = open_images(tmp_path / "two").fingerprint()
    photo(tmp_path / "two/c.jpg")
    added = open_images(tmp_path / "two").fingerprint()
    (tmp_path / "two/a.jpg").rename(tmp_path / "two/aa.jpg")
    assert len({before, resized, added, open_images(tmp_path / "two").fingerprint()}) == 4


def test_a_million_names_are_one_block() -> None:
    """Breaks when each worker is sent, and copies page by page, a million Python strings."""
    images = Files(Path("root"), Names.of(f"folder/{i:07d}.jpg" for i in range(100_000)))
    assert len(pickle.dumps(images)) < 100_000 * (len("folder/0000000.jpg") + 8) + 1000
    again = pickle.loads(pickle.dumps(images))
    assert [again.name(i) for i in (0, 1, 99_999, -1)] == [
        *("folder/0000000.jpg", "folder/0000001.jpg", "folder/0099999.jpg", "folder/0099999.jpg")
    ]
    assert sum(sys.getsizeof(getattr(images.names, held)) for held in ("block", "ends")) < 3_000_000
    with pytest.raises(IndexError):
        images.name(100_000)


def test_max_value_reaches_the_decoder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(np.full((2, 2, 1), 1023), colour=0))
    assert open_images(tmp_path, max_value=1023).read(0).unique().tolist() == [255]
    with pytest.warns(UserWarning, match="--data.max-value"):
        assert open_images(tmp_path).read(0).unique().tolist() == [4]
    with pytest.raises(ValueError, match="max_value is 0"):
        open_images(tmp_path, max_value=0)


SHARED = Path(__file__).parents[3] / "shared/data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real photos are not here")
def test_real_data_in_every_form() -> None:
    assert len(open_images(SHARED / "coco_sample")) == len(list((SHARED / "coco_sample/train2017").iterdir()))
    assert len(open_images(SHARED / "bccd/JPEGImages")) == 364
    assert len(open_images(SHARED / "bccd")) == 292, "what is measured on is left out"
    file = SHARED / "bccd/coco/bccd_train.json"
    images = open_images(file, images=SHARED / "bccd/JPEGImages")
    assert len(images) == 205 and images.name(0) == "BloodImage_00001.jpg"
    assert images.read(0).shape == (3, 480, 640)
    with pytest.raises(ValueError, match=r"missing image files.*and 202 more.*--images DIR"):
        open_images(file)


@pytest.mark.parametrize(
    ("write", "wanted"),
    [
        (lvis_set, ["train2017/000000000009.jpg", "train2017/000000000025.jpg"]),
        (
            voc_devkit,
            [
                f"VOC20{name}.jpg"
                for name in ("07/JPEGImages/000005", "07/JPEGImages/000007", "12/JPEGImages/2008_000002")
            ],
        ),
        (cityscapes_set, ["aachen/aachen_000000_000019_leftImg8bit.png"]),
        (yolo_set, ["images/train/a.jpg", "images/train/sub/b.jpg"]),
    ],
)
def test_labelled_sets_give_the_images_to_train_on(tmp_path: Path, write: Any, wanted: list[str]) -> None:
    """Breaks when pretraining sees pictures of labels, or what is measured on later."""
    write(tmp_path)
    assert names(open_images(tmp_path)) == wanted
    if (tmp_path / "data.yaml").exists():
        assert names(open_images(tmp_path / "data.yaml")) == wanted
    for labels in (*tmp_path.rglob("*.xml"), *tmp_path.rglob("labels/**/*.txt"), *tmp_path.rglob("*Ids.png")):
        labels.unlink()
    assert names(open_images(tmp_path)) == wanted, "labels are not needed"


def test_a_voc_folder_without_lists_gives_all_images(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    photo(tmp_path / "JPEGImages/a.jpg")
    photo(tmp_path / "SegmentationClass/a.png")
    assert names(open_images(tmp_path)) == ["a.jpg"]


def test_a_list_that_is_no_text_is_called_that(tmp_path: Path) -> None:
    """Breaks when bytes of a file that was named by mistake are printed as if they were names."""
    (tmp_path / "all.txt").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"all\.txt: no text; a list file names") as caught:
        open_images(tmp_path / "all.txt")
    assert str(caught.value).isprintable()
