"""COCO's figures of boxes, masks and keypoints, by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

Kind = Literal["bbox", "segm", "keypoints"]
"""What is compared: boxes, masks, or keypoints."""

Result = Mapping[str, Any]
"""A detection as COCO writes it: image_id, category_id, score, bbox as xywh in source pixels; where there are such,
segmentation as RLE and keypoints as x, y, v of each."""

PREFIX: Mapping[Kind, str] = {"bbox": "", "segm": "mask_", "keypoints": "kp_"}
"""What stands before the name of a figure."""

_BOX = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_POINTS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")

FIGURES: Mapping[Kind, tuple[str, ...]] = {
    "bbox": _BOX,
    "segm": tuple(PREFIX["segm"] + name for name in _BOX),
    "keypoints": tuple(PREFIX["keypoints"] + name for name in _POINTS),
}
"""In COCO's own order."""

IOUS = tuple(n / 100 for n in range(50, 100, 5))
"""The ten thresholds, of IoU or of what stands for it, that AP is the mean over."""

FEDERATED_DETECTIONS = 300
"""Detections an image that LVIS counts."""

PERSON = 17
"""Keypoints of COCO's persons."""

OTHER_SIGMA = 0.05
"""How exactly a keypoint is taken to be placed where an object has not PERSON of them; theirs run from 0.025 (eyes) to
0.107 (hips)."""

_FIELD: Mapping[Kind, str] = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


def coco_figures(
    truth: Mapping[str, Any], results: Sequence[Result], kind: Kind = "bbox"
) -> dict[str, float]:
    """COCO's figures in 0..100, by name; -1 where the truth has no object of that size.

    `truth` is COCO json as a dict. Ids of annotations are given anew, since an object of id 0 would count as
    missed. The size of a found mask is its own area, not that of its box. Objects without keypoints are
    ignored where keypoints are measured: found or not, they change nothing.
    """
    stats = [float(value) for value in judged(truth, results, kind).stats]
    return {name: percent(s) for name, s in zip(FIGURES[kind], stats, strict=True)}


def check_objects(truth: Mapping[str, Any], kind: Kind) -> None:
    """Raises ValueError where objects lack what `kind` compares."""
    if kind == "segm":
        _check_outlines(truth["annotations"])
    if kind == "keypoints":
        _with_keypoints(truth["annotations"], [])


def over_iou(judge: COCOeval_faster) -> list[float]:
    """AP in 0..100 at each of IOUS, over all sizes and with as many detections as count."""
    precision = judge.eval["precision"][:, :, :, 0, -1]  # threshold, recall, category
    return [percent(mean_where_defined(p)) for p in precision]


def by_category(truth: Mapping[str, Any], results: Sequence[Result], kind: Kind = "bbox") -> dict[int, float]:
    """AP of each category, by its id; -1 where the truth has no object of it."""
    judge = judged(truth, results, kind)
    precision = np.moveaxis(judge.eval["precision"][:, :, :, 0, -1], 2, 0)
    found = zip(judge.params.catIds, precision, strict=True)
    measured = {int(category): percent(mean_where_defined(p)) for category, p in found}
    return {c["id"]: measured.get(c["id"], -1.0) for c in truth["categories"]}


def judged(
    truth: Mapping[str, Any], results: Sequence[Result], kind: Kind, *, federated: bool = False
) -> COCOeval_faster:
    """The evaluator after its work; both arguments stay as they are. `federated`: by LVIS's rules."""
    annotations = [{**a, "id": i + 1} for i, a in enumerate(truth["annotations"])]
    check_objects(truth, kind)
    if kind == "keypoints":
        annotations = _with_keypoints(annotations, results)
    coco = COCO({**truth, "annotations": annotations})
    found = coco.loadRes(_only(results, kind))
    judge = COCOeval_faster(
        coco,
        found,
        kind,
        print_function=_silent,
        lvis_style=federated,
        kpt_oks_sigmas=_sigmas(annotations, kind),
    )
    if federated:
        judge.params.maxDets = [FEDERATED_DETECTIONS]
    judge.run()
    return judge


def mean_where_defined(values: np.ndarray) -> float:
    """-1 where nothing is defined, as COCO has it."""
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else -1.0


def percent(value: float) -> float:
    """0..1 as 0..100; -1 stays."""
    return 100 * value if value >= 0 else -1.0


def _only(results: Sequence[Result], kind: Kind) -> list[dict[str, Any]]:
    """Copies that hold what `kind` compares. A mask loses its box, whose area would else decide on its size."""
    field = _FIELD[kind]
    for result in results:
        if result.get(field) is None:
            raise ValueError(
                f"a detection on image {result['image_id']} has no {field}: leave {kind!r} out of the kinds that are "
                "measured, or take a detector that finds it"
            )
    left_out = {
        "bbox": {"segmentation", "keypoints"},
        "segm": {"bbox", "keypoints"},
        "keypoints": {"segmentation"},
    }
    return [{key: value for key, value in r.items() if key not in left_out[kind]} for r in results]


def _check_outlines(annotations: Sequence[Mapping[str, Any]]) -> None:
    for number, a in enumerate(annotations, start=1):
        if not a.get("segmentation"):
            raise ValueError(
                f"annotation {number} in the order of the json, on image {a['image_id']}, has no segmentation: "
                "give every object one, or measure boxes alone"
            )


def _with_keypoints(
    annotations: Sequence[Mapping[str, Any]], results: Sequence[Result]
) -> list[dict[str, Any]]:
    """Objects without keypoints get unlabelled ones, and every object their count."""
    known = [a["keypoints"] for a in annotations if a.get("keypoints")]
    lengths = {len(points) for points in (*known, *(r.get("keypoints", ()) for r in results))}
    if len(lengths) > 1:
        counts = " or ".join(str(n // 3) for n in sorted(lengths))
        raise ValueError(f"objects or detections have {counts} keypoints: let all have the same")
    nothing = [0] * (lengths.pop() if lengths else 3 * PERSON)
    filled = [{**a, "keypoints": a.get("keypoints") or nothing} for a in annotations]
    return [{**a, "num_keypoints": sum(v > 0 for v in a["keypoints"][2::3])} for a in filled]


def _sigmas(annotations: Sequence[Mapping[str, Any]], kind: Kind) -> list[float] | None:
    """None: those of COCO's persons."""
    if kind != "keypoints" or not annotations:
        return None
    count = len(annotations[0]["keypoints"]) // 3
    return None if count == PERSON else [OTHER_SIGMA] * count


def _silent(*words: object) -> None:
    """faster-coco-eval talks through the function it is given."""
