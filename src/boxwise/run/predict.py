"""`boxwise predict`: a detector and images in, detections as COCO json and drawn pictures out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from boxwise.data.loader import default_workers
from boxwise.data.one_pass import EachReadable, OnePass
from boxwise.data.sources import Images, open_images
from boxwise.data.workers import Ahead
from boxwise.engine.atomic import read_json as read_facts
from boxwise.engine.atomic import write_text
from boxwise.engine.device import device_of
from boxwise.engine.folder import RunFolder
from boxwise.engine.progress import ImageDisplay
from boxwise.run.bad_images import BadImages
from boxwise.run.draw import SURE
from boxwise.run.evaluate import SavedDetector, load_detector
from boxwise.run.predict_detections import as_coco, draw, find, image_ids
from boxwise.run.predict_pixels import CLASSES, write_classes
from boxwise.strict import dump_yaml, plain
from boxwise.transfer.detectors.base import DetectorConfig, Targets
from boxwise.transfer.evaluate import detections, precision_of
from boxwise.transfer.samples import DetectionBatch, Sample, collate, unlabelled

KIND = "predict"
DETECTIONS, PICTURES = "detections.json", "pictures"


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
    `threshold`, also where the detector was measured with a higher one. With `pictures`, the first `max_drawn`
    images (all, unless told) are drawn at their own size below `out`/pictures. `bad_images` says whether a file that
    cannot be read is left out and listed, or ends the run. Raises ValueError with the mend before anything is written
    where run, images, settings or `out` do not allow it.
    """
    _check(threshold, batch_size, max_drawn, workers)
    saved, source, out = (
        load_detector(Path(run), least=threshold),
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
    precision = precision_of(saved.precision, device)
    readable = (batch for batch in batches if batch is not None)
    with ImageDisplay(KIND, start=0, total=len(source)) as display:
        for one, batch in detections(saved.model, readable, device=device, precision=precision):
            yield one, batch
            done = batch.index[-1] + 1
            display.advance(done)
            display.show(done, {})


def _sample(source: Images, config: DetectorConfig, index: int) -> Sample:
    return unlabelled(source.read(index), index, config)


def _check(threshold: float, batch_size: int, max_drawn: int | None, workers: int | None) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"--threshold {threshold}: a score lies from 0 to 1")
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size}: expected 1 or more")
    if max_drawn is not None and max_drawn < 0:
        raise ValueError(f"--max-drawn {max_drawn}: expected 0 or more")
    if workers is not None and workers < 0:
        raise ValueError(f"--workers {workers}: expected 0 or more")


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
