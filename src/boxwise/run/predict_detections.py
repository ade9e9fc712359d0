"""Detections as files: a COCO json with a score for each, and the images with what was found drawn on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boxwise.data.coco import Category
from boxwise.data.coco_files import read_json
from boxwise.data.one_pass import EachReadable, OnePass
from boxwise.data.outlines import unpacked
from boxwise.data.sources import Images
from boxwise.data.workers import Ahead, Bad
from boxwise.engine.atomic import written
from boxwise.engine.progress import ImageDisplay
from boxwise.run.bad_images import BadImages
from boxwise.run.draw import drawn, encoded, found_things
from boxwise.run.picture_names import picture_names
from boxwise.transfer.detectors.base import Targets
from boxwise.transfer.results import Result, results
from boxwise.transfer.samples import DetectionBatch


@dataclass
class Found:
    """What was found in a set of images, by place in the set."""

    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Height and width of every image that could be read."""
    results: dict[int, list[Result]] = field(default_factory=dict)


def find(
    looked: Iterable[tuple[Targets, DetectionBatch]],
    ids: Sequence[int],
    categories: Sequence[Category],
    *,
    threshold: float,
) -> Found:
    """Detections in COCO's form; `ids` are those of all images of the set."""
    found = Found()
    for one, batch in looked:
        place = dict(zip((ids[index] for index in batch.index), batch.index, strict=True))
        found.sizes |= dict(zip(batch.index, batch.sources, strict=True))
        listed = results(one, batch, images=[*place], categories=categories, sure=threshold)
        for result in listed:
            found.results.setdefault(place[result["image_id"]], []).append(result)
    return found


def as_coco(
    found: Found, source: Images, ids: Sequence[int], categories: Sequence[Category]
) -> dict[str, Any]:
    """A COCO json with a score in each annotation. Images that could not be read are not in it."""
    annotations: list[dict[str, Any]] = []
    for index in sorted(found.results):
        for result in found.results[index]:
            more: dict[str, Any] = {"id": len(annotations) + 1, "area": _area(result), "iscrowd": 0}
            if "keypoints" in result:
                more["num_keypoints"] = sum(seen > 0 for seen in result["keypoints"][2::3])
            annotations.append({**more, **result})
    sizes = sorted(found.sizes.items())
    return {
        "images": [
            {"id": ids[index], "file_name": source.name(index), "width": width, "height": height}
            for index, (height, width) in sizes
        ],
        "categories": [_entry(category) for category in categories],
        "annotations": annotations,
    }


def image_ids(data: Path, count: int) -> list[int]:
    """Those of a json whose images differ in them, so that its labels can be compared; else 1 to `count`."""
    if data.is_file() and data.suffix.lower() == ".json":
        stated = [image.get("id") for image in read_json(data)[0]["images"]]
        if len(stated) == count == len({*stated}) and all(type(one) is int for one in stated):
            return [int(one) for one in stated]
    return [*range(1, count + 1)]


def draw(
    found: Found,
    source: Images,
    categories: Sequence[Category],
    folder: Path,
    *,
    most: int | None,
    workers: int,
    bad: BadImages,
) -> None:
    """Pictures of the first `most` images that could be read, below `folder` under their own names."""
    chosen = sorted(found.sizes)[:most]
    names = picture_names([source.name(index) for index in chosen], [found.sizes[index] for index in chosen])
    listed = tuple(tuple(found.results.get(index, ())) for index in chosen)
    artist = Artist(source, tuple(categories), folder, tuple(chosen), tuple(names), listed)
    folder.mkdir()
    for place in {Path(folder, name).parent for name in names}:
        place.mkdir(parents=True, exist_ok=True)
    pictures = Ahead(
        EachReadable(artist, len, "skip"),
        OnePass(len(chosen), 1),
        workers=workers,
        on_bad=lambda lost: bad.add([Bad(chosen[b.index], b.path, b.reason) for b in lost]),
    )
    with ImageDisplay("pictures", start=0, total=len(chosen), unit="picture") as display:
        for done, _ in enumerate(pictures, start=1):
            display.advance(done)
            display.show(done, {})


@dataclass(frozen=True, slots=True)
class Artist:
    """Worker side: draws one image and writes it."""

    source: Images
    categories: tuple[Category, ...]
    folder: Path
    chosen: tuple[int, ...]
    """Places of the images in the set."""
    names: tuple[str, ...]
    """Of each, the file to write."""
    results: tuple[tuple[Result, ...], ...]

    def __call__(self, k: int) -> None:
        picture = self.source.read(self.chosen[k])
        things = found_things(self.results[k], self.categories)
        path = self.folder / self.names[k]
        with written(path) as file:
            file.write(encoded(drawn(picture, things, self.categories), path.suffix))


def _area(result: Result) -> float:
    """Of the mask where there is one, else of the box."""
    width, height = result["bbox"][2:]
    return float(unpacked(result["segmentation"]).sum()) if "segmentation" in result else width * height


def _entry(category: Category) -> dict[str, Any]:
    """As COCO writes it: keypoints where there are such."""
    entry: dict[str, Any] = {"id": category.id, "name": category.name}
    if category.keypoints:
        entry |= {"keypoints": [*category.keypoints], "skeleton": [[*pair] for pair in category.skeleton]}
    return entry
