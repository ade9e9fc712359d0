"""The built-in scenes: pure, honest about what is seen, balanced, and on disk what they are in memory."""

import hashlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from boxwise.data.scene_paint import TEXTURES, Dice, Grid
from boxwise.data.scene_stage import LARGEST, VISIBLE, Stage
from boxwise.data.scenes import CLASSES, START, Scene, scene, write_scenes

SIZE = 96


@cache
def many() -> list[Scene]:
    return [scene(i, seed=6, size=SIZE) for i in range(240)]


def digest(s: Scene) -> str:
    return hashlib.sha256(
        b"".join(x.numpy().tobytes() for x in (s.image, s.boxes, s.labels, s.masks))
    ).hexdigest()


def test_the_same_scene_in_another_process_and_order() -> None:
    """Breaks if a draw comes from a global generator, from hash order, or from what was drawn before."""
    here = [digest(scene(i, seed=3, size=64)) for i in (7, 2)]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_scenes import digest, scene\n"
        "scene(99); print(*[digest(scene(i, seed=3, size=64)) for i in (2, 7)])"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    assert other.stdout.split() == here[::-1]


def test_scenes_are_what_they_were_on_any_machine() -> None:
    """Breaks if the drawing changes (the docs' figures are of these very scenes) or a machine differs."""
    joined = "".join(digest(scene(i, seed=0, size=96)) for i in range(12))
    assert (
        hashlib.sha256(joined.encode()).hexdigest()
        == "b7a73bf1d84d635bf38d99fcde9eef173a6d7962a63de41c57b91c037edbc5d8"
    )


def test_seed_index_and_size_each_change_the_scene() -> None:
    """Breaks if one of the three does not reach the generator, or if two add up to the same key."""
    keys = [(0, 0, 64), (1, 0, 64), (0, 1, 64), (1, 1, 64), (0, 2, 64), (2, 0, 64)]
    assert len({digest(scene(i, seed=s, size=n)) for i, s, n in keys}) == len(keys)
    assert not torch.equal(scene(0, size=64).boxes, scene(0, size=65).boxes)


def test_boxes_are_tight_around_masks_that_do_not_overlap() -> None:
    """Breaks if a box bounds the whole thing instead of what is seen, or loses its last pixel."""
    for s in many():
        assert s.image.shape == (3, SIZE, SIZE) and s.image.dtype == torch.uint8
        assert int(s.masks.sum(0).max()) <= 1
        for box, mask in zip(s.boxes, s.masks, strict=True):
            rows, columns = np.nonzero(mask.numpy())
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_masks_lie_where_the_picture_shows_the_thing() -> None:
    """Breaks if things are painted in another order than masks are cut, or at another place."""
    size, checked = 128, 0
    for index in range(12):
        stage, again = (Stage(Dice(8, index, size), size) for _ in range(2))
        things, _ = stage.cast(), again.cast()
        stage.light = again.light = (0.0, 0.0)  # shadows fall under the things
        left_out = index % len(things)
        full = stage.render([t.item for t in things]).astype(int)
        without = again.render([t.item for k, t in enumerate(things) if k != left_out]).astype(int)
        changed = np.abs(full - without).max(0) > 3
        mask = things[left_out].visible
        padded, near = (
            np.pad(mask, 2),
            np.zeros_like(mask),
        )  # two pixels more, for soft edges and the soft lens
        for dy in range(5):
            for dx in range(5):
                near |= padded[dy : dy + size, dx : dx + size]
        assert (
            changed & ~near
        ).sum() <= 0.03 * mask.sum()  # feelers thinner than half a pixel are in no mask
        checked += int((changed & mask).sum() > 0.6 * mask.sum())
    assert checked >= 10  # a thing may be as grey as what is behind it


def test_a_mostly_hidden_thing_is_not_there() -> None:
    """Breaks if the share is taken of what lies in the picture, or is not asked at all."""
    shares = []
    for index in range(60):
        for thing in Stage(Dice(2, index, SIZE), SIZE).cast():
            shares.append(thing.visible.sum() / (thing.item.patch.alpha >= 0.5).sum())
    assert min(shares) >= VISIBLE
    assert np.mean(np.array(shares) < 0.9) > 0.2  # and many are partly hidden


def test_counts_and_sizes_stay_within_what_is_promised() -> None:
    """Breaks if a scene may be empty or crowded, or if one size takes over."""
    numbers = [len(s.labels) for s in many()]
    assert set(numbers) == {2, 3, 4}
    sides = torch.cat([(s.boxes[:, 2:] - s.boxes[:, :2]).amax(1) for s in many()]) / SIZE
    assert float(sides.max()) <= LARGEST + 3 / SIZE  # rows and columns that the edge touches
    assert float((sides < 0.35).float().mean()) > 0.2 and float((sides > 0.45).float().mean()) > 0.2


def test_classes_are_balanced() -> None:
    """Breaks if a class is missing, or is refused its place more often than the others."""
    assert len(CLASSES) >= 6
    counts = torch.bincount(torch.cat([s.labels for s in many()]), minlength=len(CLASSES) + 1)
    assert counts[0] == 0 and len(counts) == len(CLASSES) + 1
    assert counts[1:].max() < 1.5 * counts[1:].min()


def test_shape_tells_the_class_and_colour_does_not() -> None:
    """Breaks if a class gets colours of its own, or outlines become alike (nearest neighbours)."""
    colours, shapes, labels = [], [], []
    for s in many():
        for box, mask, label in zip(s.boxes.long().tolist(), s.masks, s.labels.tolist(), strict=True):
            inside = s.image[:, mask].float()
            colours.append(torch.cat([inside.mean(1), inside.std(1)]))
            window = mask[None, None, box[1] : box[3], box[0] : box[2]].float()
            shapes.append(
                torch.nn.functional.interpolate(window, (12, 12), mode="bilinear", antialias=True).flatten()
            )
            labels.append(label)
    y = torch.tensor(labels)

    def accuracy(features: list[torch.Tensor]) -> float:
        x = torch.stack(features)
        x = (x - x.mean(0)) / (x.std(0) + 1e-6)
        distance = torch.cdist(x, x).fill_diagonal_(torch.inf)
        return float((y[distance.argmin(1)] == y).float().mean())

    chance = 1 / len(CLASSES)
    assert accuracy(shapes) > 3.5 * chance
    assert accuracy(colours) < 1.6 * chance


def test_every_texture_shows_and_stays_in_range() -> None:
    """Breaks if a texture is flat, or leaves 0..1 and would clip the colours."""
    steps = np.linspace(-1, 1, 64, dtype=np.float32)
    grid = Grid(*np.meshgrid(steps, steps), 32.0)
    for texture in TEXTURES:
        field = texture(grid, Dice(1), 3.0)
        assert field.dtype == np.float32 and field.shape == (64, 64)
        assert field.min() >= 0 and field.max() <= 1 and field.std() > 0.1, texture.__name__


@pytest.mark.parametrize(("index", "seed", "size"), [(0, 0, 31), (-1, 0, 64), (0, -1, 64)])
def test_impossible_scenes_are_refused(index: int, seed: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"size must be|count from 0"):
        scene(index, seed=seed, size=size)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"train": 5, "val": 3, "unlabelled": 4}
    return write_scenes(
        tmp_path_factory.mktemp("coco") / "deep" / "scenes", counts=counts, size=48, seed=11, suffix=".png"
    )


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pycocotools")
@pytest.mark.parametrize(("split", "count"), [("train", 5), ("val", 3)])
def test_files_hold_what_the_scenes_hold(root: Path, split: str, count: int) -> None:
    """Breaks on xywh against xyxy, 0-based categories, transposed masks, or another scene under a name."""
    coco = COCO(root / "annotations" / f"instances_{split}2017.json")
    assert [c["name"] for c in coco.loadCats([1, 2, 3, 4, 5, 6, 7, 8])] == list(CLASSES)
    assert coco.getImgIds() == list(range(START[split], START[split] + count))
    for image in coco.loadImgs(coco.getImgIds()):
        wanted = scene(image["id"], seed=11, size=48)
        saved = np.asarray(Image.open(root / f"{split}2017" / image["file_name"]))
        assert np.array_equal(saved.transpose(2, 0, 1), wanted.image.numpy())
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        corners = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in annotations)]
        assert corners == wanted.boxes.tolist()
        assert [a["category_id"] for a in annotations] == wanted.labels.tolist()
        for a, mask in zip(annotations, wanted.masks, strict=True):
            assert np.array_equal(coco.annToMask(a).astype(bool), mask.numpy())
            assert a["area"] == int(mask.sum()) and a["iscrowd"] == 0
            assert rle.toBbox(coco.annToRLE(a)).tolist() == a["bbox"]


def test_unlabelled_scenes_are_images_alone(root: Path) -> None:
    """Breaks if labels leak, or if what is pretrained on is what is measured on."""
    assert {p.name for p in (root / "annotations").iterdir()} == {
        "instances_train2017.json",
        "instances_val2017.json",
    }
    files = sorted((root / "unlabeled2017").iterdir())
    assert [p.stem for p in files] == [f"{START['unlabelled'] + k:012d}" for k in range(4)]
    first = {
        p: np.asarray(Image.open(next(iter(sorted((root / p).iterdir())))))
        for p in ("train2017", "unlabeled2017")
    }
    assert not np.array_equal(first["train2017"], first["unlabeled2017"])


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_many_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    """Breaks if results are gathered as they finish."""
    counts = {"train": 40, "val": 0, "unlabelled": 3}
    one = write_scenes(tmp_path / "one", counts=counts, size=32, workers=0)
    two = write_scenes(tmp_path / "two", counts=counts, size=32, workers=2)
    assert files_of(one) == files_of(two) and not (one / "val2017").exists()
    with Image.open(one / "train2017" / "000000000001.jpg") as image:
        assert image.format == "JPEG"
        error = np.asarray(image).astype(float) - scene(1, size=32).image.permute(1, 2, 0).numpy()
        assert np.abs(error).mean() < 4


def test_who_draws_needs_no_torch() -> None:
    """Breaks when each process that helps loads gigabytes before its first scene."""
    told = "import sys, boxwise.data.scene_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0


def test_a_scene_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few = files_of(write_scenes(tmp_path / "few", counts={"train": 2, "val": 1}, size=32))
    more = files_of(write_scenes(tmp_path / "more", counts={"train": 4, "val": 2}, size=32))
    images = [name for name in few if name.endswith(".jpg")]
    assert len(images) == 3 and all(few[name] == more[name] for name in images)


def test_only_scenes_are_overwritten(tmp_path: Path) -> None:
    """Breaks if `overwrite` on the wrong folder deletes a real data set, or leaves old scenes behind."""
    out = write_scenes(tmp_path / "s", counts={"train": 3, "val": 2}, size=32)
    with pytest.raises(FileExistsError, match="not empty"):
        write_scenes(out, counts={"train": 1}, size=32)
    write_scenes(out, counts={"train": 1}, size=32, overwrite=True)
    assert set(files_of(out)) == {
        "scenes.json",
        "annotations/instances_train2017.json",
        "train2017/000000000001.jpg",
    }
    real = tmp_path / "real"
    (real / "train2017").mkdir(parents=True)
    (real / "train2017" / "photo.jpg").write_bytes(b"dear")
    with pytest.raises(FileExistsError, match="not scenes"):
        write_scenes(real, counts={"train": 1}, size=32, overwrite=True)
    assert files_of(real) == {"train2017/photo.jpg": b"dear"}


def test_a_broken_write_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if images or annotations appear under their names before all are written."""
    out, seen = tmp_path / "s", []

    def fail(path: Path, content: object) -> None:
        seen.extend(p.name for p in out.iterdir())
        raise OSError("disk full")

    monkeypatch.setattr("boxwise.data.scene_files._write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        write_scenes(out, counts={"train": 2}, size=32)
    assert seen == [".partial"] and list(out.iterdir()) == []
    monkeypatch.undo()
    assert json.loads((write_scenes(out, counts={"train": 2}, size=32) / "scenes.json").read_text())[
        "counts"
    ] == {"train": 2}


@pytest.mark.parametrize("counts", [{"test": 3}, {"train": -1}])
def test_impossible_counts_are_refused_before_anything_is_written(
    tmp_path: Path, counts: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=r"no such split|at least 0"):
        write_scenes(tmp_path / "s", counts=counts)
    assert not (tmp_path / "s").exists()
