"""Made-up truth and detections in COCO's form, for the tests of every metric."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as masks

WIDTH, HEIGHT = 640, 480


def random_detections(
    seed: int, *, images: int = 12, classes: int = 4, noise: float = 0.15
) -> tuple[dict, list[dict]]:
    """Random objects of all sizes with crowds, images without objects or without detections, a category that
    never appears, tied scores, duplicates and false alarms."""
    rng = np.random.default_rng(seed)
    truth: dict = {
        "images": [{"id": 7 * i + 1, "width": WIDTH, "height": HEIGHT} for i in range(images)],
        "categories": [{"id": 2 * c + 1, "name": f"c{c}"} for c in range(classes + 1)],
        "annotations": [],
    }
    results: list[dict] = []
    for image in truth["images"][:-1]:  # the last has neither
        for _ in range(int(rng.integers(0, 9))):
            w, h = 2 ** rng.uniform(2, 8.5, size=2)
            x, y = rng.uniform(0, WIDTH - w), rng.uniform(0, max(HEIGHT - h, 1))
            category = 2 * int(rng.integers(classes)) + 1
            crowd = int(rng.random() < 0.15)
            annotation = {
                "id": len(truth["annotations"]) + 1,
                "image_id": image["id"],
                "category_id": category,
                "bbox": [float(v) for v in (x, y, w, h)],
                "area": float(w * h * rng.uniform(0.5, 1)),
                "iscrowd": crowd,
            }
            truth["annotations"].append(annotation)
            for _ in range(int(rng.integers(0, 3 + 6 * crowd))):
                shift = rng.normal(0, noise, size=4) * [w, h, w, h]
                box = [float(v) for v in np.maximum(np.array([x, y, w, h]) + shift, [0, 0, 1, 1])]
                guess = category if rng.random() < 0.85 else 2 * int(rng.integers(classes)) + 1
                results.append(found(image["id"], guess, box, round(rng.random(), 1)))
        for _ in range(int(rng.integers(0, 4))):
            box = [float(v) for v in (*rng.uniform(0, 300, 2), *rng.uniform(5, 200, 2))]
            guess = 2 * int(rng.integers(classes + 1)) + 1
            results.append(found(image["id"], guess, box, float(rng.random())))
    return truth, results


def found(image: int, category: int, box: list[float], score: float) -> dict:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def with_masks(truth: dict, results: list[dict]) -> tuple[dict, list[dict]]:
    """Every object an octagon in its box, every sixth of two parts, crowds as counts; areas are those of the masks."""
    annotations = []
    for k, annotation in enumerate(truth["annotations"]):
        parts = octagons(annotation["bbox"], 2 if k % 6 == 0 else 1)
        rle = masks.merge(masks.frPyObjects(parts, HEIGHT, WIDTH))
        outline = parts
        if annotation["iscrowd"]:
            outline = {"size": [HEIGHT, WIDTH], "counts": counts(masks.decode(rle))}
        annotations.append({**annotation, "segmentation": outline, "area": float(masks.area(rle))})
    detected = []
    for result in results:
        rle = masks.merge(masks.frPyObjects(octagons(result["bbox"], 1), HEIGHT, WIDTH))
        rle = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
        detected.append({**result, "segmentation": rle})
    return {**truth, "annotations": annotations}, detected


def octagons(box: list[float], parts: int) -> list[list[float]]:
    """Side by side in the box."""
    x, y, w, h = box
    w /= parts
    turns = np.arange(8) * np.pi / 4 + np.pi / 8
    ring = np.stack([0.5 + 0.54 * np.cos(turns), 0.5 + 0.54 * np.sin(turns)], 1)
    return [(np.array([x + p * w, y]) + ring * [w * 0.9, h]).clip(0).ravel().tolist() for p in range(parts)]


def counts(mask: np.ndarray) -> list[int]:
    """Run lengths of a mask, column by column, zeros first: COCO's uncompressed form."""
    flat = np.concatenate([[0], mask.ravel(order="F")])
    edges = np.flatnonzero(np.diff(flat)) if flat[1:].any() else np.array([], dtype=int)
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def with_keypoints(
    truth: dict, results: list[dict], seed: int, *, count: int = 17
) -> tuple[dict, list[dict]]:
    """Points anywhere in the box, a third of them unlabelled, every fifth object without any; what was found is the
    nearest object's points, moved."""
    rng = np.random.default_rng(seed)
    annotations = []
    for k, annotation in enumerate(truth["annotations"]):
        x, y, w, h = annotation["bbox"]
        marks = rng.uniform(size=(count, 3)) * [w, h, 0] + [x, y, 0]
        marks[:, 2] = rng.integers(0, 3, size=count) * (k % 5 != 0)
        marks[marks[:, 2] == 0] = 0
        filled = {"keypoints": marks.ravel().tolist(), "num_keypoints": int((marks[:, 2] > 0).sum())}
        annotations.append({**annotation, **filled})
    detected = []
    for result in results:
        same = [a for a in annotations if a["image_id"] == result["image_id"]]
        x, y, w, h = result["bbox"]
        marks = rng.uniform(size=(count, 2)) * [w, h] + [x, y]
        if same:
            near = min(same, key=lambda a: abs(a["bbox"][0] - x) + abs(a["bbox"][1] - y))
            points = np.array(near["keypoints"]).reshape(-1, 3)
            moved = points[:, :2] + rng.normal(0, rng.choice([0.02, 0.1]), (count, 2)) * np.sqrt(w * h)
            marks = np.where(points[:, 2:] > 0, moved, marks)
        triple = np.concatenate([marks, np.ones((count, 1))], 1)
        detected.append({**result, "keypoints": triple.ravel().tolist()})
    return {**truth, "annotations": annotations}, detected
