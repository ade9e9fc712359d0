"""YOLO: a data.yaml, a text file of labels an image; boxes are centre and size in shares of the image."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml

from boxwise.data.coco_boxes import ORIGIN
from boxwise.data.coco_files import OUTSIDE, Json
from boxwise.data.decode import BadImage, read_header
from boxwise.data.listing import scan
from boxwise.data.orientation import upright_size
from boxwise.data.problems import Problems

NAMES = ("data.yaml", "data.yml")
BOX, POLYGON = 5, 7
"""Numbers in the line of a box, and the least in that of a polygon, the class included."""
SLACK = 0.01
"""How far a share may leave 0 to 1, by rounding."""
LINE = 'a line is "class cx cy width height" or "class x y x y x y ...", in shares of the image from 0 to 1'
LAYOUT = "data.yaml with train, val (folders or lists of images), names, and labels/ beside images/"


def yolo_file(data: Path) -> Path | None:
    """The data.yaml that `data` is or holds."""
    if data.is_dir():
        return next((data / name for name in NAMES if (data / name).is_file()), None)
    return data if data.suffix.lower() in (".yaml", ".yml") and data.is_file() else None


def yolo_root(file: Path) -> Path:
    """The folder that names of images start from: "path" of the yaml, or where the yaml lies."""
    return _root(file, _settings(file))


def yolo_names(file: Path) -> list[str]:
    """The images to train on, relative to `yolo_root`."""
    held = _settings(file)
    return _images(file, _root(file, held), held, "train")


def read_yolo(file: Path, split: Literal["train", "val"]) -> tuple[Json, str]:
    """One split as COCO writes it, and a digest of yaml and labels.

    Images without a file of labels have no boxes. Sizes are those of the files, upright, as the shares are of
    them. A line of three or more points is an outline, and its box the least around it. Categories keep their
    numbers from 0. Raises ValueError for all that is wrong.
    """
    held, problems = _settings(file), Problems(file)
    root, names = _root(file, held), _names(file, held)
    digest = hashlib.blake2b(file.read_bytes(), digest_size=16)
    images: list[Json] = []
    annotations: list[Json] = []
    labelled = 0
    for name in _images(file, root, held, split):
        digest.update(os.fsencode(name))
        try:
            header = read_header(root / name)
        except BadImage as bad:
            problems.add(
                "images of unknown size", str(bad), mend="mend or remove them: shares are of their size"
            )
            continue
        width, height = upright_size(header.width, header.height, header.orientation)
        images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
        labels = root / _labels(name)
        if not labels.is_file():
            continue
        labelled += 1
        content = labels.read_bytes()
        digest.update(content)
        for found in _objects(labels, content.decode(errors="replace"), names, problems, width, height):
            annotations.append({"id": len(annotations) + 1, "image_id": len(images), **found})
    if images and not labelled:
        example = f"{images[0]['file_name']} needs {_labels(images[0]['file_name'])}"
        problems.add("no image has a file of labels", example, mend=f"put them below {root}; {LINE}")
    problems.check()
    categories = [{"id": number, "name": name} for number, name in sorted(names.items())]
    return {"images": images, "annotations": annotations, "categories": categories}, digest.hexdigest()


def _settings(file: Path) -> Mapping[str, Any]:
    try:
        held = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: no YAML that can be read ({error}); accepted is {LAYOUT}") from None
    if not isinstance(held, dict) or not {"train", "names"} <= set(held):
        raise ValueError(f"{file}: has no train and names; accepted is {LAYOUT}")
    if "kpt_shape" in held:
        raise ValueError(f"{file}: labels of keypoints are read from COCO jsons only; convert them")
    return held


def _root(file: Path, held: Mapping[str, Any]) -> Path:
    """Where "path" of the yaml leads, which may be anywhere: its user named it, and all else must lie below."""
    path = str(held.get("path") or ".")
    root = file.parent / path
    if not root.is_dir():
        raise ValueError(
            f"{file}: path: {path}: there is no folder {root}; name the one that train and val start from, "
            "absolute or from the yaml, or take the line out where the data lies beside the yaml"
        )
    return root


def _names(file: Path, held: Mapping[str, Any]) -> dict[int, str]:
    names = held["names"]
    found = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(found, dict) or not found or not all(type(k) is int and k >= 0 for k in found):
        raise ValueError(f"{file}: names: write a list, [cat, dog], or a number for each, {{0: cat, 1: dog}}")
    if held.get("nc") not in (None, len(found)):
        raise ValueError(f"{file}: nc: {held['nc']} and {len(found)} names; make them agree")
    return {number: str(name) for number, name in found.items()}


def _images(file: Path, root: Path, held: Mapping[str, Any], split: Literal["train", "val"]) -> list[str]:
    """Names of the images of a split, relative to `root`."""
    stated = held.get(split)
    if not stated:
        raise ValueError(f"{file}: has no {split}; name a folder or a list of images, such as images/{split}")
    names: list[str] = []
    for place in stated if isinstance(stated, list) else [stated]:
        inside = _inside(file, root, str(place), split)
        there = root / inside
        if there.is_dir():
            names += [(inside / name).as_posix() for name in scan(there).images]
        elif there.is_file() and there.suffix.lower() == ".txt":
            lines = there.read_text(errors="surrogateescape").splitlines()
            names += [_listed(there, root, line.strip()) for line in lines if line.strip()]
        else:
            raise ValueError(f"{file}: {split}: {place} is neither a folder nor a .txt in {root}/")
    if not names:
        raise ValueError(f"{file}: {split}: {stated} holds no images")
    return names


def _inside(file: Path, root: Path, place: str, split: str) -> PurePosixPath:
    """`place` relative to `root`. Exports that write ../train/images for train/images mean the latter."""
    if place.startswith("../") and (root / place.removeprefix("../")).exists():
        place = place.removeprefix("../")
    whole = os.path.normpath(root.absolute())
    if Path(place).is_absolute() and Path(place).is_relative_to(whole):
        place = Path(place).relative_to(whole).as_posix()
    if OUTSIDE.match(place):
        raise ValueError(
            f"{file}: {split}: {place} leads out of {root}/; name what lies inside, images/{split}"
        )
    return PurePosixPath(place)


def _listed(file: Path, root: Path, line: str) -> str:
    """A line of a list, which is relative to the list's own folder, relative to `root`."""
    path = Path(os.path.normpath(file.parent.absolute() / line))
    if not path.is_relative_to(os.path.normpath(root.absolute())):
        raise ValueError(f"{file}: {line!r} leads out of {root}/; names are relative to {file.parent}/")
    return path.relative_to(os.path.normpath(root.absolute())).as_posix()


def _labels(name: str) -> str:
    """The last images/ of a path becomes labels/, and its ending .txt."""
    parts = list(PurePosixPath(name).with_suffix(".txt").parts)
    places = [k for k, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return "/".join(parts)


def _objects(
    file: Path, content: str, names: Mapping[int, str], problems: Problems, width: int, height: int
) -> Iterator[Json]:
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file} line {number}: {line.strip()[:60]!r}"
        values = _values(line)
        if len(values) != BOX and (len(values) < POLYGON or len(values) % 2 == 0):
            problems.add("lines that are neither box nor polygon", where, mend=LINE)
        elif values[0] not in names:
            mend = f"numbers of classes are {min(names)} to {max(names)}: mend them, or names in the yaml"
            problems.add("classes that names does not have", where, mend=mend)
        elif not all(-SLACK <= value <= 1 + SLACK for value in values[1:]):
            problems.add("coordinates that are no shares of the image", where, mend=LINE)
        else:
            placed = _placed(values[1:], width, height)
            yield {"category_id": int(values[0]), "iscrowd": 0, **placed, ORIGIN: where}


def _values(line: str) -> list[float]:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        return []
    return values if all(map(math.isfinite, values)) else []


def _placed(values: list[float], width: int, height: int) -> Json:
    if len(values) == BOX - 1:
        x, y, w, h = (value * side for value, side in zip(values, (width, height) * 2, strict=True))
        return {"bbox": [x - w / 2, y - h / 2, w, h], "area": w * h}
    xs, ys = [x * width for x in values[::2]], [y * height for y in values[1::2]]
    polygon = [value for point in zip(xs, ys, strict=True) for value in point]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {"bbox": box, "area": _area(xs, ys), "segmentation": [polygon]}


def _area(xs: list[float], ys: list[float]) -> float:
    """Of a polygon, by the shoelace formula."""
    crossed = (xs[k - 1] * ys[k] - xs[k] * ys[k - 1] for k in range(len(xs)))
    return abs(sum(crossed)) / 2
