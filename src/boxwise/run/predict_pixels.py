"""Classes of pixels as files: a picture of numbers for every image, and the images tinted by them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from boxwise.data.sources import Images
from boxwise.engine.atomic import write_text, written
from boxwise.run.draw import encoded, overlaid
from boxwise.run.draw_pixels import background
from boxwise.run.picture_names import JPEG_SIDE, picture_names
from boxwise.transfer.detectors.base import Targets
from boxwise.transfer.evaluate import pixel_classes_in
from boxwise.transfer.samples import DetectionBatch

CLASSES, NAMES, PICTURES = "classes", "classes.json", "pictures"


def write_classes(
    looked: Iterable[tuple[Targets, DetectionBatch]],
    source: Images,
    names: Sequence[str],
    out: Path,
    *,
    most: int | None,
) -> int:
    """Below `out`/classes a grey PNG an image, whose values are places in the list of classes.json; below
    `out`/pictures the first `most` images, tinted. Returns how many images could be read.

    All are of the upright image's own size, and named as it is with .png behind.
    """
    write_text(out / NAMES, json.dumps([*names], indent=2) + "\n")
    # longer than a JPEG can be: numbers must come back as they were written
    files = picture_names([source.name(i) for i in range(len(source))], [(JPEG_SIDE + 1, 1)] * len(source))
    count = 0
    for maps, batch in looked:
        for one, index, size in zip(maps, batch.index, batch.sources, strict=True):
            classes = pixel_classes_in(one["semantic"], size).cpu()
            grey = io.BytesIO()
            Image.fromarray(classes.numpy()).save(grey, "PNG")
            _write(out / CLASSES / files[index], grey.getvalue())
            if most is None or count < most:
                plain = background(names)
                tinted = overlaid(source.read(index), classes, count=len(names), background=plain)
                _write(out / PICTURES / files[index], encoded(tinted, ".png"))
            count += 1
    return count


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as file:
        file.write(content)
