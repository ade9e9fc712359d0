"""Proposals for a whole image set: made by all cores and ranks, resumed, joined."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from boxwise.data.coco_files import coco_split, is_coco_root
from boxwise.data.cores import cores
from boxwise.data.proposal_parts import Part, Parts, join, kept
from boxwise.data.proposal_pool import made_of
from boxwise.data.proposals import Proposals, Table
from boxwise.data.propose import (
    CocoBoxes,
    Generator,
    GridBoxes,
    RandomBoxes,
    SelectiveSearch,
    coco_boxes,
    stated,
)
from boxwise.data.selective_search import Values
from boxwise.data.sources import Files, open_images
from boxwise.engine.atomic import written
from boxwise.engine.device import leads, place
from boxwise.engine.lock import Lock
from boxwise.engine.progress import ImageDisplay

Method = Literal["selective-search", "random", "grid", "coco-json"]
HEAD = 4096
"""Bytes in which a file of proposals says what it is."""
POLL, STALLED = 0.5, 1800.0
"""Seconds between two looks at the other ranks' parts, and without any growth until a rank gives up."""


def proposals(
    data: str | Path,
    out: Path,
    *,
    images: Path | None = None,
    method: Method = "selective-search",
    boxes: Path | None = None,
    values: Values = "unit",
    count: int = 64,
    seed: int = 0,
    workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes proposals for the images of `data` to `out`, or goes on where an earlier call was stopped.

    `boxes` is the COCO json of the method "coco-json", without it, that of `data`; `values` belongs to selective
    search, `count` (boxes an image) and `seed` to random boxes. Returns `out`, at once if it holds what would be made.
    """
    if boxes is not None and method != "coco-json":
        raise ValueError("--boxes goes with --method coco-json")
    if count < 1:
        raise ValueError(f"--count {count}: an image needs one box at least")
    source = open_images(data, images=images)
    if method == "coco-json":
        generator: Generator = _labels(Path(data), boxes)
    else:
        generator = chosen(method, values=values, count=count, seed=seed)
    return make(source, out, generator, workers=workers, overwrite=overwrite)


def ensure(
    images: Files, out: Path, *, method: Method | Generator = "selective-search", workers: int | None = None
) -> Proposals:
    """The proposals of `images` in `out`, which is made first, and said, where it is not there or of other images.

    All ranks call this together, and all return once the file stands.
    """
    generator = chosen(method) if isinstance(method, str) else method
    if not _holds(out, images, generator):
        if leads():
            print(f"no proposals for these images yet: making {out} ({generator.name})", file=sys.stderr)
        make(images, out, generator, workers=workers, overwrite=True)
    return Proposals.open(out, images)


def chosen(method: str, *, values: Values = "unit", count: int = 64, seed: int = 0) -> Generator:
    """The generator of that name."""
    generators = (SelectiveSearch(values=values), RandomBoxes(count=count, seed=seed), GridBoxes())
    known: dict[str, Generator] = {g.name: g for g in generators}
    if method not in known:
        raise ValueError(f"{method}: no such way to propose boxes; known are {', '.join(known)}")
    return known[method]


def make(
    images: Files, out: Path, generator: Generator, *, workers: int | None = None, overwrite: bool = False
) -> Path:
    """`proposals` for images that are open already."""
    if not overwrite and _holds(out, images, generator):
        return out
    if out.exists() and not _proposed(out):
        raise ValueError(f"{out}: is there, and is no file of proposals; choose another name")
    if out.exists() and not overwrite:
        raise ValueError(
            f"{out}: is there, of other images or made otherwise; pass --overwrite to replace it (boxes of images "
            "that have not changed are kept, if they were made in the same way)"
        )
    rank, world, neighbours = place()
    parts = Parts(_parts_folder(out, generator))
    parts.folder.mkdir(parents=True, exist_ok=True)
    if world == 1 and not leads():  # Lightning's own nodes know that another leads, not how many they are
        _await(out, images, parts, generator, 1)
        return out
    lock = Lock(parts.folder) if rank == 0 else None
    try:
        earlier = _table(out, generator)
        helpers = max(1, cores() // neighbours) if workers is None else workers
        _make_part(images, parts, generator, earlier, rank, world, helpers)
        if world > 1:
            _await(out, images, parts, generator, rank)
        if rank == 0:
            _finish(out, images, parts, generator)
    finally:
        parts.close()
        if lock is not None:
            lock.release()
    if rank == 0:
        shutil.rmtree(parts.folder, ignore_errors=True)
    return out


def _labels(data: Path, boxes: Path | None) -> CocoBoxes:
    """The boxes of a json, and where those are detections, of the images that the data's own json names."""
    own = data if data.suffix.lower() == ".json" else None
    if data.is_dir() and is_coco_root(data):
        own = coco_split(data, "train").file
    if boxes is None and own is None:
        raise ValueError(f"{data}: has no COCO json of its own; pass --boxes FILE.json")
    return coco_boxes(boxes or own or data, images=own)


def _holds(out: Path, images: Files, generator: Generator) -> bool:
    """Whether `out` is what `make` would make."""
    table = _table(out, generator)
    return table is not None and table.fingerprint == images.fingerprint()


def _table(out: Path, generator: Generator) -> Table | None:
    """What is in `out`, if it was made with these settings."""
    try:
        table = Table(out)
    except ValueError:  # none, or of another kind
        return None
    return table if table.generator == _settings(generator) else None


def _proposed(out: Path) -> bool:
    """Whether `out` is a file of proposals, if a damaged one: nothing else is ever replaced."""
    if not out.is_file():
        return False
    with out.open("rb") as file:
        return b'"boxwise"' in file.read(HEAD)


def _settings(generator: Generator) -> dict[str, Any]:
    """As they come back from a file."""
    return json.loads(json.dumps(stated(generator)))


def _parts_folder(out: Path, generator: Generator) -> Path:
    """Parts of other settings never meet."""
    key = hashlib.blake2b(json.dumps(_settings(generator), sort_keys=True).encode(), digest_size=4)
    return out.with_name(f"{out.name}.parts-{key.hexdigest()}")


def _make_part(
    images: Files,
    parts: Parts,
    generator: Generator,
    earlier: Table | None,
    rank: int,
    world: int,
    workers: int,
) -> None:
    """The boxes of every `world`-th image that nobody has made before, now or in an earlier file."""
    parts.refresh()
    mine = range(rank, len(images), world)
    part = Part(parts.folder / f"{rank}.part")
    todo = [i for i in mine if not parts.done(images, i)]
    if earlier is not None:
        todo = _not_kept(earlier, images, todo, part)
    if len(todo) < len(mine) and rank == 0:
        print(f"going on: {len(mine) - len(todo)} of {len(mine)} images are done", file=sys.stderr)
    bad, start = 0, len(mine) - len(todo)
    display = ImageDisplay("proposals", start=start, total=len(mine), shown=rank == 0)
    try:
        with display:
            for done, made in enumerate(made_of(images, todo, generator, workers=workers), start=start + 1):
                part.add(made)
                display.advance(done)
                display.show(done, {})
                if made.reason:
                    bad += 1
                    display.say(f"{made.name}: {made.reason}; it has no proposals")
    finally:
        part.close()
    if bad:
        print(f"{bad} images could not be read and have no proposals", file=sys.stderr)


def _not_kept(earlier: Table, images: Files, todo: Sequence[int], part: Part) -> list[int]:
    """Takes over what `earlier` holds of the same files; returns the others."""
    rows, others = earlier.rows(images), []
    for index in todo:
        row = int(rows[index])
        if row >= 0 and earlier.holds(row, images.path(index)):
            part.add(kept(earlier, row))
        else:
            others.append(index)
    return others


def _await(out: Path, images: Files, parts: Parts, generator: Generator, rank: int) -> None:
    """Rank 0 waits until the parts of all are whole, the others until it has joined them."""
    last, told = time.monotonic(), False
    lacking = set(range(len(images))) if rank == 0 else set()
    while True:
        if parts.folder.exists() and parts.refresh():
            last = time.monotonic()
        lacking = {i for i in lacking if images.name(i) not in parts.places}
        if rank == 0 and not lacking:
            return
        if rank and _holds(out, images, generator):
            return
        if rank == 0 and not told:
            print("waiting for the other ranks", file=sys.stderr)
            told = True
        if time.monotonic() - last > STALLED:
            raise ValueError(
                f"{out}: no rank has made a proposal for {STALLED / 60:.0f} minutes: start the command again, "
                "it goes on from here"
            )
        time.sleep(POLL)


def _finish(out: Path, images: Files, parts: Parts, generator: Generator) -> None:
    parts.refresh()
    out.parent.mkdir(parents=True, exist_ok=True)
    with written(out) as file:
        join(parts, images, file, _settings(generator))
