"""The verbs that read or write images before a run: proposals, proposals check, data check, scenes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from boxwise.cli.verb import FAILED, Place, Verb


@dataclasses.dataclass(kw_only=True)
class Proposals(Verb):
    """Propose boxes for images: SoCo's selective search, random, a grid, or those of a COCO json.

    Goes on where it was stopped. `boxwise proposals check FILE --data PATH` looks at a finished file.
    """

    data: Positional[Annotated[str, arg(metavar="PATH")]]
    """A folder of images, a list file, a root of COCO or another layout, or a COCO json with --images."""
    out: Path
    """The file to write."""
    method: Literal["selective-search", "random", "grid", "coco-json"] = "selective-search"
    boxes: Place = None
    """The json with the boxes of coco-json: labels or detections. Without it: the data's own."""
    values: Literal["unit", "bytes"] = "unit"
    """Selective search as the package of that name does it on [0, 1], or as SoCo's script did, on bytes."""
    count: int = 64
    """Random boxes an image."""
    seed: int = 0
    """Of random boxes."""
    images: Place = None
    """The folder that the file names of a COCO json start from."""
    workers: int | None = None
    """Processes: all cores, unless told."""
    overwrite: bool = False
    """Replace a file of other images or another method."""

    def call(self, settings: dict[str, Any]) -> None:
        from boxwise.engine.device import leads
        from boxwise.run.proposals import proposals

        done = proposals(
            self.data,
            self.out,
            images=self.images,
            method=self.method,
            boxes=self.boxes,
            values=self.values,
            count=self.count,
            seed=self.seed,
            workers=self.workers,
            overwrite=self.overwrite,
        )
        if leads():
            print(done)


@dataclasses.dataclass(kw_only=True)
class CheckProposals(Verb):
    """Look at a file of proposals: boxes per image, sizes, shapes, missing and changed images, recall."""

    file: Positional[Annotated[Path, arg(metavar="FILE")]]
    """What `boxwise proposals` wrote."""
    data: str
    """The images: a folder, a list file, a root of COCO or another layout, or a COCO json with --images."""
    images: Place = None
    """The folder that the file names of a COCO json start from."""

    def call(self, settings: dict[str, Any]) -> int:
        from boxwise.run.check_proposals import check

        found = check(self.file, self.data, images=self.images)
        print(found.text)
        return 0 if found.fits else FAILED


@dataclasses.dataclass(kw_only=True)
class CheckData(Verb):
    """Look at images before a run: layout, counts, bad files, what will be used, and what to mend.

    The exit code is 1 where a problem was found.
    """

    data: Positional[Annotated[str, arg(metavar="PATH")]]
    """A COCO, LVIS, VOC or Cityscapes root, a YOLO data.yaml, a COCO json with --images; or images without labels."""
    images: Place = None
    """The folder that the file names of a COCO json start from."""
    val: Place = None
    """The COCO json to measure on, where PATH is a json."""
    all: bool = False
    """Decode every image, not a sample."""

    def call(self, settings: dict[str, Any]) -> int:
        from boxwise.run.check_data import check

        found = check(self.data, images=self.images, val=self.val, every=self.all)
        print(found.text)
        return FAILED if found.problems else 0


@dataclasses.dataclass(kw_only=True)
class Scenes(Verb):
    """Write procedural scenes with boxes and masks in COCO layout: the built-in data set."""

    out: Path
    """The folder to write: annotations/, train2017/, val2017/ and, on request, unlabeled2017/."""
    count: int
    """Labelled training scenes."""
    val: int = 100
    """Labelled validation scenes."""
    unlabelled: int = 0
    """Scenes without labels."""
    size: int = 128
    """Pixels a side."""
    seed: int = 0
    overwrite: bool = False
    """Empty OUT first."""

    def call(self, settings: dict[str, Any]) -> None:
        from boxwise.run.scenes import scenes

        print(
            scenes(
                self.out,
                count=self.count,
                val=self.val,
                unlabelled=self.unlabelled,
                size=self.size,
                seed=self.seed,
                overwrite=self.overwrite,
            )
        )
