"""Detections on images without labels, as files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from tiny import photos

from boxwise.cli import main
from boxwise.data.decode import BadImage
from boxwise.data.scenes import write_scenes
from boxwise.data.targets import Category, open_labelled
from boxwise.engine.device import dtype_of
from boxwise.interop.files import write_state
from boxwise.run.evaluate import load_detector
from boxwise.run.picture_names import JPEG_SIDE, picture_names
from boxwise.run.predict import predict
from boxwise.run.predict_detections import Found, as_coco
from boxwise.strict import plain
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN
from boxwise.transfer.evaluate import predict as predict_labelled

CONFIG = FasterRCNNFPN(
    backbone="test_resnet",
    fpn_channels=16,
    min_size=64,
    max_size=96,
    rpn_post_nms_test=30,
    score_threshold=0.0,
    detections_per_image=9,
)
QUIET: dict[str, Any] = {"device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scenes")
    write_scenes(place, counts={"train": 5, "val": 3}, size=64)
    return place


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> Path:
    """A detector of random weights, as `boxwise finetune` leaves one."""
    place = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    categories = open_labelled(scenes, split="val").categories
    mean, std = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    model = CONFIG.build(classes=len(categories), mean=mean, std=std)
    card = {"detector": plain(CONFIG), "categories": [plain(c) for c in categories], "mean": mean, "std": std}
    write_state(place / "export", model.state_dict(), card)
    return place


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "detections.json").read_text())
    return found


def test_the_json_holds_what_evaluation_would_find(run: Path, scenes: Path, tmp_path: Path) -> None:
    """Breaks when ids, order, pixels or scores differ from those that figures are made of, or the threshold is
    applied to another number than the score."""
    labels = scenes / "annotations" / "instances_val2017.json"
    told = json.loads(labels.read_text())
    for image in told["images"]:
        image["id"] += 500
    for one in told["annotations"]:
        one["image_id"] += 500
    file = tmp_path / "val.json"
    file.write_text(json.dumps(told))
    saved = load_detector(run)
    images = scenes / "val2017"
    test = open_labelled(file, split="val", images=images, categories=saved.categories)
    precision = "bf16" if dtype_of("auto", torch.device("cpu")) == torch.bfloat16 else "fp32"
    every = predict_labelled(saved.model, test, config=CONFIG, batch_size=2, precision=precision)
    middle = sorted(one["score"] for one in every)[len(every) // 2]
    expected = [one for one in every if one["score"] >= middle]
    path = predict(run, file, tmp_path / "out", images=images, threshold=middle, batch_size=2, **QUIET)
    found = read(path.parent)
    assert [{key: one[key] for key in expected[0]} for one in found["annotations"]] == [
        {**one, "bbox": pytest.approx(one["bbox"]), "score": pytest.approx(one["score"])} for one in expected
    ]
    assert [image["id"] for image in found["images"]] == [image["id"] for image in told["images"]]
    assert found["categories"] == [{"id": c.id, "name": c.name} for c in saved.categories]


def test_pycocotools_reads_it(run: Path, scenes: Path, tmp_path: Path) -> None:
    """Breaks when a key that COCO's own reader wants is missing, or ids meet."""
    path = predict(run, scenes / "val2017", tmp_path / "out", threshold=0.0, pictures=False, **QUIET)
    coco = COCO(str(path))
    again = coco.loadRes(read(path.parent)["annotations"])
    assert len(coco.anns) == len(again.anns) > 0
    assert {one["id"] for one in coco.loadImgs(coco.getImgIds())} == {1, 2, 3}
    assert not (path.parent / "pictures").exists()


def test_masks_and_keypoints_come_along() -> None:
    """Breaks when areas are the boxes', or keypoints lose their count or skeleton."""
    rle = {"size": [4, 4], "counts": [0, 3, 13]}
    one = {"image_id": 7, "category_id": 2, "bbox": [0, 0, 4, 4], "score": 0.9, "segmentation": rle}
    one |= {"keypoints": [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]}
    person = Category(2, "person", ("nose", "eye"), ((1, 2),))

    class One:
        def __len__(self) -> int:
            return 1

        def name(self, index: int) -> str:
            return "a.png"

        def read(self, index: int) -> Any: ...
        def fingerprint(self) -> str: ...

    made = as_coco(Found({0: (4, 5)}, {0: [one]}), One(), [7], [person])
    assert made["images"] == [{"id": 7, "file_name": "a.png", "width": 5, "height": 4}]
    assert made["annotations"][0]["area"] == 3 and made["annotations"][0]["num_keypoints"] == 1
    assert made["categories"][0]["skeleton"] == [[1, 2]]


def test_workers_change_nothing(run: Path, tmp_path: Path) -> None:
    """Breaks when batches come in another order, or a worker draws another image's boxes."""
    images = photos(tmp_path / "images", 7)
    outs = [tmp_path / "alone", tmp_path / "helped"]
    for out, workers in zip(outs, (0, 2)):
        predict(run, images, out, threshold=0.0, batch_size=2, device="cpu", workers=workers)
    assert read(outs[0]) == read(outs[1])
    drawn = [{p.relative_to(out): p.read_bytes() for p in out.rglob("*.png")} for out in outs]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 7 and Path("pictures/deeper/001.png") in drawn[0]


def test_pictures_are_upright_and_of_the_sources_size(run: Path, tmp_path: Path) -> None:
    """Breaks when what was resized for the detector is drawn, or a camera's turn is forgotten in json or picture."""
    images = tmp_path / "images"
    images.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright by a quarter turn
    Image.new("RGB", (150, 100), "white").save(images / "a.jpg", exif=exif)
    Image.new("L", (31, 20)).save(images / "b.tif")
    predict(run, images, tmp_path / "out", threshold=1.0, **QUIET)
    sizes = {
        image["file_name"]: (image["width"], image["height"]) for image in read(tmp_path / "out")["images"]
    }
    assert sizes == {"a.jpg": (100, 150), "b.tif": (31, 20)}
    for name, size in (("a.jpg", (100, 150)), ("b.tif.png", (31, 20))):
        with Image.open(tmp_path / "out" / "pictures" / name) as picture:
            assert picture.size == size and 0x0112 not in picture.getexif()


def test_bad_images_are_left_out_and_listed(run: Path, tmp_path: Path) -> None:
    """Breaks when a bad file ends the run, shifts the names of those after it, or empties a batch."""
    images = photos(tmp_path / "images", 6)
    bad = sorted(images.glob("00*.png"))[:2]
    for path in bad:
        path.write_bytes(b"no picture")
    out = tmp_path / "out"
    predict(run, images, out, threshold=0.0, batch_size=1, **QUIET)
    names = [image["file_name"] for image in read(out)["images"]]
    assert names == ["004.png", "deeper/001.png", "deeper/003.png", "deeper/005.png"]
    assert [image["id"] for image in read(out)["images"]] == [3, 4, 5, 6]
    listed = [line.split("\t")[:2] for line in (out / "bad_images.txt").read_text().splitlines()]
    assert listed == [["0", "000.png"], ["1", "002.png"]]
    assert len([*out.rglob("pictures/**/*.png")]) == 4
    with pytest.raises(BadImage, match=r"000\.png"):
        predict(run, images, tmp_path / "strict", bad_images="error", **QUIET)


def test_a_folder_is_never_emptied_by_mistake(run: Path, tmp_path: Path) -> None:
    """Breaks when --overwrite takes a trained detector, or a user's files, for an earlier prediction."""
    images = photos(tmp_path / "images", 2)
    (tmp_path / "det").mkdir()
    (tmp_path / "det" / "run.json").write_text('{"kind": "finetune"}')
    for held in (tmp_path / "det", images):
        before = sorted(held.rglob("*"))
        with pytest.raises(ValueError, match="no earlier prediction; choose another folder"):
            predict(run, images, held, overwrite=True, **QUIET)
        assert sorted(held.rglob("*")) == before
    out = tmp_path / "out"
    predict(run, images, out, **QUIET)
    with pytest.raises(ValueError, match="pass --overwrite to replace it"):
        predict(run, images, out, **QUIET)
    predict(run, images, out, max_drawn=1, overwrite=True, **QUIET)
    assert [p.name for p in (out / "pictures").iterdir()] == ["000.png"]


def test_a_threshold_below_the_detectors_own_counts(run: Path, scenes: Path, tmp_path: Path) -> None:
    """Breaks when what a user asks to see was dropped by the detector before."""
    strict = tmp_path / "strict"
    shutil.copytree(run, strict)
    card = strict / "export" / "config.json"
    told = json.loads(card.read_text())
    told["detector"]["score_threshold"] = 0.99
    card.write_text(json.dumps(told))
    given: dict[str, Any] = {"threshold": 0.0, "pictures": False, **QUIET}
    free = read(predict(run, scenes / "val2017", tmp_path / "free", **given).parent)
    held = read(predict(strict, scenes / "val2017", tmp_path / "held", **given).parent)
    assert len(free["annotations"]) == 27 and held["annotations"] == free["annotations"]
    assert load_detector(strict, least=0.995).config == load_detector(strict).config


@pytest.mark.parametrize("flag", [["--threshold", "2"], ["--batch-size", "0"], ["--max-drawn", "-1"]])
def test_a_flag_out_of_range_is_named(
    flag: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = photos(tmp_path / "images", 1)
    assert main(["predict", str(run), "--data", str(images), "--out", str(tmp_path / "out"), *flag]) == 1
    assert f"{flag[0]} {flag[1]}" in capsys.readouterr().err.replace(".0:", ":")
    assert not (tmp_path / "out").exists()


def test_pictures_have_names_of_their_own_below_one_folder() -> None:
    """Breaks when a name climbs out, or one picture takes another's place."""
    names = [
        "a/x.jpg",
        "b/x.jpg",
        "/etc/x.jpg",
        "../../x.JPG",
        "x.jpg",
        "x.tif",
        "x.tif.png",
        "..",
        "C:\\d\\y.png",
    ]
    sizes = [(4, 4)] * len(names)
    made = picture_names(names, sizes)
    assert made == [
        "a/x.jpg",
        "b/x.jpg",
        "etc/x.jpg",
        "x.JPG",
        "x-2.jpg",
        "x.tif.png",
        "x.tif-2.png",
        "picture.png",
        "C_/d/y.png",
    ]
    assert picture_names(["a.png", "../a.png/b.png", "c.png/d.png", "../c.png"], [(4, 4)] * 4) == [
        "a.png",
        "a.png-2/b.png",
        "c.png/d.png",
        "c-2.png",
    ]
    assert picture_names(["wide.jpg", "wide.png"], [(9, JPEG_SIDE + 1)] * 2) == ["wide.jpg.png", "wide.png"]
