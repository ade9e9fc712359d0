"""Procedural scenes on disk, in COCO layout. Imports no torch, so that its worker processes start at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boxwise.data.cores import cores
from boxwise.data.scene_stage import CLASSES, draw

START = {"train": 1, "val": 1_000_000_001, "unlabelled": 2_000_000_001}
"""The first scene of each split. An image's id, and the number in its file's name, is its scene's index."""

FOLDERS = {"train": "train2017", "val": "val2017", "unlabelled": "unlabeled2017"}
MARKER = "scenes.json"
ALONE = 400  # scenes that one process draws before others would have started


def write_scenes(
    out: Path | str,
    *,
    counts: Mapping[str, int],
    size: int = 128,
    seed: int = 0,
    suffix: Literal[".jpg", ".png"] = ".jpg",
    overwrite: bool = False,
    workers: int | None = None,
) -> Path:
    """Writes scenes as a COCO root and returns it. Scene k of a split is the same whatever the counts are.

    out/annotations/instances_train2017.json with out/train2017/, val likewise, and out/unlabeled2017/ with
    images alone. `counts` maps "train", "val" and "unlabelled" to numbers; a split of none is left out. JPEGs
    have quality 95 and full chroma. Nothing appears under its name before all of it is written.

    Raises FileExistsError if `out` holds anything; with `overwrite`, only if what it holds is not scenes, so
    that no real data set can be lost.
    """
    out = Path(out)
    if unknown := sorted(set(counts) - set(START)):
        raise ValueError(f"no such split: {', '.join(unknown)} (known: {', '.join(START)})")
    if wrong := [f"{name}: {count}" for name, count in counts.items() if not 0 <= count < 10**9]:
        raise ValueError(f"a number of scenes must be at least 0: {', '.join(wrong)}")
    _refuse(out, overwrite)
    partial_root = out / ".partial"
    shutil.rmtree(partial_root, ignore_errors=True)
    try:
        with _mapper(sum(counts.values()), workers) as mapped:
            for split in (s for s in START if counts.get(s, 0)):
                _write_split(partial_root, split, counts[split], mapped, size=size, seed=seed, suffix=suffix)
        about = {"size": size, "seed": seed, "counts": dict(counts), "classes": CLASSES}
        _write_json(partial_root / MARKER, about)
        _move_in(partial_root, out)
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)
    return out


def _refuse(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; scenes need a folder")
    held = {p.name for p in out.iterdir()} - {".partial"} if out.exists() else set()
    if held and not overwrite:
        raise FileExistsError(f"{out} is not empty: choose another folder, or pass --overwrite")
    if held and MARKER not in held:
        raise FileExistsError(
            f"{out} holds files that are not scenes (no {MARKER}); they are not overwritten"
        )


def _move_in(source: Path, out: Path) -> None:
    """Marker first: a broken move can be overwritten. Annotations last: they never name what is not there."""
    os.replace(source / MARKER, out / MARKER)
    shutil.rmtree(out / "annotations", ignore_errors=True)
    for name in (*FOLDERS.values(), "annotations"):
        shutil.rmtree(out / name, ignore_errors=True)
        if (source / name).exists():
            os.replace(source / name, out / name)


@contextmanager
def _mapper(total: int, workers: int | None) -> Iterator[Any]:
    """`map` over this process or many; the order of results is that of the inputs either way."""
    workers = workers if workers is not None else (cores() if total > ALONE else 0)
    if workers <= 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield partial(pool.map, chunksize=32)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write_split(
    root: Path, split: str, count: int, mapped: Any, *, size: int, seed: int, suffix: str
) -> None:
    folder = root / FOLDERS[split]
    folder.mkdir(parents=True)
    labelled = split != "unlabelled"
    job = partial(_write_one, folder=folder, size=size, seed=seed, suffix=suffix, labelled=labelled)
    indices = range(START[split], START[split] + count)
    found: Iterable[list[dict[str, Any]]] = list(mapped(job, indices))
    if not labelled:
        return
    annotations = [a for image in found for a in image]
    ground_truth = {
        "info": {"description": "boxwise procedural scenes", "seed": seed, "size": size},
        "images": [{"id": i, "file_name": _name(i, suffix), "height": size, "width": size} for i in indices],
        "annotations": [{"id": k, **a} for k, a in enumerate(annotations, 1)],
        "categories": [
            {"id": k, "name": name, "supercategory": "thing"} for k, name in enumerate(CLASSES, 1)
        ],
    }
    _write_json(root / "annotations" / f"instances_{FOLDERS[split]}.json", ground_truth)


def _name(index: int, suffix: str) -> str:
    return f"{index:012d}{suffix}"


def _write_one(
    index: int, *, folder: Path, size: int, seed: int, suffix: str, labelled: bool
) -> list[dict[str, Any]]:
    """Draws and saves one scene; returns its COCO annotations, still without ids, if it is `labelled`."""
    drawn = draw(index, seed=seed, size=size)
    picture = Image.fromarray(np.ascontiguousarray(drawn.image.transpose(1, 2, 0)))
    how: dict[str, Any] = {"quality": 95, "subsampling": 0} if suffix == ".jpg" else {"compress_level": 4}
    picture.save(folder / _name(index, suffix), **how)
    if not labelled:
        return []
    return [
        {
            "image_id": index,
            "category_id": int(label),
            "bbox": [float(x), float(y), float(p - x), float(q - y)],
            "area": int(mask.sum()),
            "iscrowd": 0,
            "segmentation": {"size": [size, size], "counts": _runs(mask)},
        }
        for (x, y, p, q), label, mask in zip(drawn.boxes, drawn.labels, drawn.masks, strict=True)
    ]


def _runs(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed run lengths: down the columns, the first run counts unset pixels."""
    flat = np.concatenate([[False], mask.T.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(n) for n in np.diff(np.concatenate([[0], changes, [mask.size]]))]


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file)
