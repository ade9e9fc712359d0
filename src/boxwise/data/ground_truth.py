"""Annotations back in COCO's own form, for evaluation: as the json has them, but in upright pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from boxwise.data.coco import Annotated
from boxwise.data.coco_boxes import MEANT, ORIGIN
from boxwise.data.coco_files import Json
from boxwise.data.decode import BadImage, read_header
from boxwise.data.densepose import DENSE_SIDE
from boxwise.data.orientation import upright_boxes, upright_mask, upright_points, upright_size
from boxwise.data.outlines import rle, unpacked


def turn_of(path: Path, said: tuple[int, int], stored: tuple[int, int], orientation: int) -> int:
    """The orientation that boxes must be freed of, so that they fit the upright picture; 1: none.

    `said` is the size in the json, `stored` that of the file; boxes belong to the frame of the size said.
    Where both frames are of one size they are taken as upright, as annotation tools show pictures. Raises
    BadImage where the json's size is neither: then nobody knows where the boxes lie.
    """
    if said == upright_size(*stored, orientation):
        return 1
    if said == stored:
        return orientation
    raise BadImage(
        path,
        f"{stored[0]} x {stored[1]} pixels, but its json says {said[0]} x {said[1]}: boxes cannot be placed; "
        "mend the size in the json, or put the image there that was annotated",
    )


def ground_truth(table: Annotated, images: np.ndarray) -> Json:
    """The json of `table` with nothing but the rows `images`, and what evaluators need.

    Left out are the annotations that `table` left out. Boxes, polygons, RLE and keypoints of images whose
    json is in the frame of the stored file are turned upright; all others are untouched. Annotations are
    numbered anew unless their ids are 1 or more and differ: evaluators take an id of 0 for "no match".
    """
    raw, digest = table.reader()
    if digest != table.digest:
        raise ValueError(f"{table.file}: has changed since it was opened; start again")
    kept_images, kept = [], []
    for image in images:
        entry: Json = dict(raw["images"][image])
        path = table.folder / entry["file_name"]
        stored = read_header(path)
        width, height = (int(v) for v in table.sizes[image])
        turn = turn_of(path, (width, height), (stored.width, stored.height), stored.orientation)
        entry["width"], entry["height"] = upright_size(width, height, turn)
        kept_images.append(entry)
        for k in range(table.first[image], table.first[image + 1]):
            annotation = {**raw["annotations"][table.rows[k]]}
            if table.format in MEANT:
                del annotation[ORIGIN]
            annotation.setdefault("area", float(table.areas[k]))
            annotation["iscrowd"] = int(table.crowd[k])
            kept.append(annotation if turn == 1 else upright(annotation, turn, width=width, height=height))
    ids = [annotation.get("id") for annotation in kept]
    if not all(type(i) is int and i > 0 for i in ids) or len(set(ids)) < len(ids):
        kept = [{**annotation, "id": k} for k, annotation in enumerate(kept, start=1)]
    return {**raw, "info": raw.get("info", {}), "images": kept_images, "annotations": kept}


def upright(annotation: Json, turn: int, *, width: int, height: int) -> Json:
    """Those fields that say where, in the frame of the upright picture; `width` and `height` are the stored one's.

    Whatever of bbox, segmentation, keypoints and DensePose's fields is there is turned, all else is kept.
    """
    turned = dict(annotation)
    if annotation.get("bbox"):
        x, y, w, h = annotation["bbox"]
        corners = np.array([x, y, x + w, y + h], dtype=np.float64)
        left, top, right, bottom = upright_boxes(corners, turn, width=width, height=height).tolist()
        turned["bbox"] = [left, top, right - left, bottom - top]
    outline = annotation.get("segmentation")
    if isinstance(outline, dict):
        turned["segmentation"] = _upright_rle(outline, turn)
    elif outline:
        points = [np.array(p, dtype=np.float64).reshape(-1, 2) for p in outline]
        found = [upright_points(p, turn, width=width, height=height) for p in points]
        turned["segmentation"] = [p.ravel().tolist() for p in found]
    if annotation.get("keypoints"):
        marks = np.array(annotation["keypoints"], dtype=np.float64).reshape(-1, 3)
        seen = marks[:, 2] > 0
        marks[seen, :2] = upright_points(marks[seen, :2], turn, width=width, height=height)
        turned["keypoints"] = marks.ravel().tolist()
    return _upright_dense(turned, turn)


def _upright_dense(annotation: Json, turn: int) -> Json:
    """DensePose's points and part masks lie in a frame that spans the box, whatever its size."""
    if annotation.get("dp_x") and annotation.get("dp_y"):
        points = np.array([annotation["dp_x"], annotation["dp_y"]], dtype=np.float64).T
        x, y = upright_points(points, turn, width=DENSE_SIDE, height=DENSE_SIDE).T
        annotation |= {"dp_x": x.tolist(), "dp_y": y.tolist()}
    if annotation.get("dp_masks"):
        annotation["dp_masks"] = [m and _upright_rle(m, turn) for m in annotation["dp_masks"]]
    return annotation


def _upright_rle(runs: dict[str, Any], turn: int) -> dict[str, Any]:
    return rle(upright_mask(unpacked(runs), turn))
