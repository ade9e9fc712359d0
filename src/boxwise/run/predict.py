"""`boxwise predict`: a detector and images in, detections as COCO json and drawn pictures out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from boxwise.data.coco import Category
from boxwise.data.coco_files import read_json
from boxwise.data.loader import default_workers
from boxwise.data.one_pass import EachReadable, OnePass
from boxwise.data.outlines import unpacked
from boxwise.data.sources import Images, open_images
from boxwise.data.workers import Ahead, Bad
from boxwise.engine.atomic import read_json as read_facts
from boxwise.engine.atomic import write_text, written
from boxwise.engine.folder import RunFolder
from boxwise.engine.loop import device_of
from boxwise.engine.progress import ImageDisplay
from boxwise.run.bad_images import BadImages
from boxwise.run.draw import SURE, drawn, encoded, found_things
from boxwise.run.evaluate import SavedDetector, load_detector
from boxwise.run.picture_names import picture_names
from boxwise.run.predict_pixels import CLASSES, write_classes
from boxwise.strict import dump_yaml, plain
from boxwise.transfer.detectors.base import DetectorConfig, Targets
from boxwise.transfer.evaluate import detections, precision_of
from boxwise.transfer.results import Result, results
from boxwise.transfer.samples import DetectionBatch, Sample, collate, unlabelled

KIND = "predict"
DETECTIONS, PICTURES = "detections.json", "pictures"


@dataclass
class Found:
    """What was found in a set of images, by place in the set."""

    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Height and width of every image that could be read."""
    results: dict[int, list[Result]] = field(default_factory=dict)


def predict(
    run: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    images: Path | None = None,
    threshold: float = SURE,
    batch_size: int = 8,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    workers: int | None = None,
    pictures: bool = True,
    max_drawn: int | None = None,
    bad_images: Literal["error", "skip"] = "skip",
    max_value: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Runs the detector of `run` over all images of `data`, which need no labels; returns `out`/detections.json.

    A detector that tells pixels apart leaves `out`/classes instead. Kept are detections with a score of at least
    `threshold`. With `pictures`, the first `max_drawn` images (all,
    unless told) are drawn at their own size below `out`/pictures. `bad_images` says whether a file that cannot be
    read is left out and listed, or ends the run. Raises ValueError with the mend before anything is written
    where run, images, settings or `out` do not allow it.
    """
    _check(threshold, batch_size, max_drawn)
    saved, source, out = (
        load_detector(Path(run)),
        open_images(data, images=images, max_value=max_value),
        Path(out),
    )
    _admit(out, overwrite=overwrite)
    where = device_of(device)
    workers = default_workers(where.type == "cuda") if workers is None else workers
    asked = {"name": KIND, "run": str(run), "threshold": threshold, "detector": plain(saved.config)}
    facts = {"images": len(source), "fingerprint": source.fingerprint()}
    with RunFolder.open(
        out, kind=KIND, config=dump_yaml(asked), data=facts, seed=0, overwrite=overwrite
    ) as folder:
        bad = BadImages(folder, source, limit=1.0, then="left out")
        looked = looked_at(
            saved,
            source,
            batch_size=batch_size,
            device=where,
            workers=workers,
            bad_images=bad_images,
            bad=bad,
        )
        if "semantic" in saved.config.kinds():
            count = write_classes(looked, source, saved.classes, out, most=max_drawn if pictures else 0)
            bad.close()
            folder.record(read=count)
            return out / CLASSES
        ids = image_ids(Path(data), len(source))
        found = find(looked, ids, saved.categories, threshold=threshold)
        write_text(out / DETECTIONS, json.dumps(as_coco(found, source, ids, saved.categories)))
        if pictures:
            draw(found, source, saved.categories, out / PICTURES, most=max_drawn, workers=workers, bad=bad)
        bad.close()
        folder.record(detections=sum(map(len, found.results.values())), read=len(found.sizes))
    return out / DETECTIONS


def looked_at(
    saved: SavedDetector,
    source: Images,
    *,
    batch_size: int,
    device: torch.device,
    workers: int,
    bad_images: Literal["error", "skip"],
    bad: BadImages,
) -> Iterator[tuple[Targets, DetectionBatch]]:
    """What is found in every image that can be read, workers decoding ahead of the device."""
    sample = partial(_sample, source, saved.config)
    batches = Ahead(
        EachReadable(sample, collate, bad_images),
        OnePass(len(source), batch_size),
        workers=workers,
        pin=device.type == "cuda",
        on_bad=bad.add,
    )
    precision = precision_of("auto", device)
    readable = (batch for batch in batches if batch is not None)
    with ImageDisplay(KIND, start=0, total=len(source)) as display:
        for one, batch in detections(saved.model, readable, device=device, precision=precision):
            yield one, batch
            done = batch.index[-1] + 1
            display.advance(done)
            display.show(done, {})


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
    with ImageDisplay("pictures", start=0, total=len(chosen)) as display:
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


def _sample(source: Images, config: DetectorConfig, index: int) -> Sample:
    return unlabelled(source.read(index), index, config)


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


def _check(threshold: float, batch_size: int, max_drawn: int | None) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"--threshold {threshold}: a score lies from 0 to 1")
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size}: expected 1 or more")
    if max_drawn is not None and max_drawn < 0:
        raise ValueError(f"--max-drawn {max_drawn}: expected 0 or more")


def _admit(out: Path, *, overwrite: bool) -> None:
    """Only an earlier prediction is ever emptied: a run that trained a detector is one slip of the hand away."""
    if not out.is_dir() or not any(out.iterdir()):
        return
    facts = out / "run.json"
    ours = facts.is_file() and read_facts(facts).get("kind") == KIND
    if not ours:
        raise ValueError(f"{out}: not empty, and no earlier prediction; choose another folder")
    if not overwrite:
        raise ValueError(f"{out}: holds an earlier prediction; pass --overwrite to replace it")
