"""DensePose's average precision by geodesic point similarity, plain (GPS) and masked (GPSm).

    GPS  = the mean over an object's annotated points of exp(-d^2 / (2 n^2)),
           d: along the surface, from the point that is annotated to the one that was found at that pixel
           n: the mean distance within the annotated point's part
    GPSm = sqrt(GPS * IoU of the masks)

AP is COCO's, with the similarity in place of IoU. Objects without points are ignored, and so are detections in images
that have no other, and those whose box is that of such an object (IoU of 0.8). The rules are those of the detectron2
project's evaluator; they are held to slow loops on a small made-up mesh. Real annotations and the real mesh have not
been tried here.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import zoom

from boxwise.data import outlines
from boxwise.data.densepose import BODY_SIDE, DENSE_SIDE, PARTS
from boxwise.transfer.metrics.coco import Result
from boxwise.transfer.metrics.geodesics import Geodesics
from boxwise.transfer.metrics.similarity import NAMES, Scene, similarity_figures

DENSEPOSE_FIGURES = tuple(f"{prefix}_{name}" for prefix in ("gps", "gpsm") for name in NAMES)

Surface = UInt8[NDArray[np.uint8], "3 h w"]
"""Part, u and v of each pixel of a box; part 0 is background, u and v are in 255ths."""


def densepose_figures(
    truth: Mapping[str, Any], results: Sequence[Result], geodesics: Geodesics
) -> dict[str, float]:
    """gps_AP ... and gpsm_AP ... in 0..100; -1 where the truth has no object with points of that size.

    `truth` is DensePose-COCO's json as a dict. Each of `results` holds its box and what `packed` gives.
    """
    objects: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in truth["annotations"]:
        objects[annotation["category_id"], annotation["image_id"]].append(annotation)
    found: dict[tuple[int, int], list[Result]] = defaultdict(list)
    for result in results:
        found[result["category_id"], result["image_id"]].append(result)
    plain: dict[int, list[Scene]] = defaultdict(list)
    masked: dict[int, list[Scene]] = defaultdict(list)
    for category in (c["id"] for c in truth["categories"]):
        for image in truth["images"]:
            here = category, image["id"]
            if objects[here] or found[here]:
                one, other = _scenes(image, objects[here], found[here], geodesics)
                plain[category].append(one)
                masked[category].append(other)
    gps, gpsm = similarity_figures(plain), similarity_figures(masked)
    return {f"gps_{n}": v for n, v in gps.items()} | {f"gpsm_{n}": v for n, v in gpsm.items()}


def check_surfaces(truth: Mapping[str, Any]) -> None:
    """Raises ValueError for an object with points that has no mask."""
    for annotation in truth["annotations"]:
        if "dp_x" in annotation and "dp_masks" not in annotation and not annotation.get("segmentation"):
            raise ValueError(
                f"an object on image {annotation['image_id']} has points and neither dp_masks nor segmentation, which "
                "GPSm is measured with: take DensePose-COCO's json, or measure boxes alone"
            )


def _scenes(
    image: Mapping[str, Any],
    objects: Sequence[Mapping[str, Any]],
    results: Sequence[Result],
    geodesics: Geodesics,
) -> tuple[Scene, Scene]:
    """One image by GPS and by GPSm."""
    results = Scene.surest(results)
    boxes, surfaces = [r["bbox"] for r in results], [unpacked(r) for r in results]
    size = image["height"], image["width"]
    seen = [_placed(surface[0] > 0, box, size) for surface, box in zip(surfaces, boxes, strict=True)]
    gps = np.zeros((len(results), len(objects)))
    overlap = np.zeros_like(gps)
    for g, annotation in enumerate(objects):
        if "dp_x" not in annotation:
            continue
        body = _body(annotation, size)
        for d, (surface, box) in enumerate(zip(surfaces, boxes, strict=True)):
            gps[d, g] = point_similarity(annotation, surface, box, geodesics)
            overlap[d, g] = (body & seen[d]).sum() / max((body | seen[d]).sum(), 1)
    return (
        Scene.of(objects, results, gps, pointed="dp_x"),
        Scene.of(objects, results, np.sqrt(gps * overlap), pointed="dp_x"),
    )


def point_similarity(
    annotation: Mapping[str, Any], surface: Surface, box: Sequence[float], geodesics: Geodesics
) -> float:
    """GPS of one object and one detection, whose `surface` fills `box`. Points beyond the box count as missed."""
    part = np.asarray(annotation["dp_I"]).astype(np.int64)
    kept = (part > 0) & (part <= PARTS)
    if not kept.any():
        return 0.0
    left, top, width, height = annotation["bbox"]
    # Cut to whole pixels, as the evaluator of the papers does; what is less than one before the edge is inside.
    column = (np.asarray(annotation["dp_x"]) * width / DENSE_SIDE + left - box[0]).astype(np.int64)
    row = (np.asarray(annotation["dp_y"]) * height / DENSE_SIDE + top - box[1]).astype(np.int64)
    inside = (column >= 0) & (row >= 0) & (column < int(box[2])) & (row < int(box[3]))
    at = surface[:, np.where(inside, row, 0), np.where(inside, column, 0)]
    there = geodesics.nearest(np.where(inside, at[0], 0).astype(np.int64), at[1:].T / 255.0)
    known = geodesics.nearest(
        part, np.stack([annotation["dp_U"], annotation["dp_V"]], axis=1).astype(np.float64)
    )
    apart = geodesics.between(known[kept], there[kept])
    return float(np.exp(-(apart**2) / (2 * geodesics.norms[part[kept] - 1] ** 2)).mean())


def packed(surface: Surface) -> dict[str, Any]:
    """`surface` as results of DensePose hold it: uv_shape, and a PNG in base64 as uv_data."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.moveaxis(surface, 0, 2))).save(file, format="png")
    return {"uv_shape": list(surface.shape), "uv_data": base64.b64encode(file.getvalue()).decode("ascii")}


def unpacked(result: Result) -> Surface:
    """The surface in a result; at least a pixel, as large as the box in whole pixels.

    Raises ValueError where there is none, or one of another size.
    """
    where = f"a detection on image {result['image_id']}"
    if result.get("uv_data") is None:
        raise ValueError(f"{where} has no uv_data: take a detector that finds surfaces")
    with Image.open(io.BytesIO(base64.b64decode(result["uv_data"]))) as picture:
        surface = np.moveaxis(np.asarray(picture.convert("RGB")), 2, 0)
    width, height = (max(int(side), 1) for side in result["bbox"][2:])
    if surface.shape != (3, height, width):
        raise ValueError(f"{where} has a surface of {surface.shape[1:]} pixels in a box of {(height, width)}")
    return surface


def _body(annotation: Mapping[str, Any], size: tuple[int, int]) -> Bool[NDArray[np.bool_], "h w"]:
    """The object's mask: of its annotated parts, squares that are stretched over the box."""
    if "dp_masks" not in annotation:
        return outlines.rasterise(annotation["segmentation"], source=size, size=size).numpy().astype(bool)
    whole = np.zeros((BODY_SIDE, BODY_SIDE))
    for part in annotation["dp_masks"]:
        if part:
            whole = np.maximum(whole, outlines.unpacked(part) > 0)
    _, _, width, height = annotation["bbox"]
    sides = max(height, 1) / BODY_SIDE, max(width, 1) / BODY_SIDE
    stretched = zoom(whole, sides, order=1, prefilter=False) > 0.5
    return _placed(stretched, annotation["bbox"], size)


def _placed(
    mask: Bool[NDArray[np.bool_], "a b"], box: Sequence[float], size: tuple[int, int]
) -> Bool[NDArray[np.bool_], "h w"]:
    """`mask` with its first pixel at the whole pixel of the box's corner, cut to the box and the image."""
    whole = np.zeros(size, dtype=bool)
    (left, top), (right, bottom) = (int(v) for v in box[:2]), (int(box[0] + box[2]), int(box[1] + box[3]))
    rows = slice(max(top, 0), min(bottom, size[0], top + mask.shape[0]))
    columns = slice(max(left, 0), min(right, size[1], left + mask.shape[1]))
    if rows.start < rows.stop and columns.start < columns.stop:
        part = mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        whole[rows, columns] = part
    return whole
