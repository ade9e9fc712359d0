"""The fine-tuning protocol and the probes of each of the papers' result rows, and the words for rows that have none.

`tables.start` says what makes the weights of a row; here is what was then trained on them and measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from boxwise.recipes import probes, transfer
from boxwise.recipes.paper_rows import Row, rows
from boxwise.recipes.recipe import ProbeRecipe, TransferRecipe
from boxwise.recipes.tables import start

DIVERGED = "diverged: the paper prints no figure"
UNSTATED = "VOC 2007 alone: no source states for how long"


@dataclass(frozen=True, slots=True)
class Finish:
    """How a row's weights are measured: by a protocol with changes, by probes, or by no recipe for a reason."""

    protocol: str | None = None
    """The name of a published protocol."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Dotted settings that the row lays over it."""
    probes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Names of published probes, each with the dotted settings that the row lays over it."""
    beside: bool = False
    """Whether a figure is that of the classifier beside the pretraining: `data.classes` of the row's start."""
    missing: str | None = None
    """What of the row cannot be measured; beside a protocol, the rest of its figures."""

    @property
    def runs(self) -> bool:
        return self.missing is None

    @property
    def recipe(self) -> TransferRecipe | None:
        if self.protocol is None:
            return None
        published = PUBLISHED[self.protocol]()
        return published.changed(self.changes) if self.changes else published

    @property
    def probe_recipes(self) -> tuple[ProbeRecipe, ...]:
        return tuple(PROBES[name]().changed(changes) for name, changes in self.probes.items())

    @property
    def data(self) -> tuple[str, ...]:
        """The data sets and their layouts under `--data`: that of the protocol, then those of the probes."""
        named = (*(() if self.protocol is None else (self.protocol,)), *self.probes)
        return tuple(dict.fromkeys(LAYOUTS[name.partition("_")[0]] for name in named))

    @property
    def labels(self) -> float | int:
        """The share of the training images whose labels are used."""
        recipe = self.recipe
        labels = None if recipe is None else recipe.data.labels
        return 1.0 if labels is None else labels


def finish(row: Row) -> Finish:
    """What measures the weights that `row` starts from."""
    found = {name: changes for metric in row.metrics for name, changes in _probe(metric, row).items()}
    if row.detector is None:
        return Finish(probes=found, beside=BESIDE in row.metrics)
    if all(value == "diverged" for value in row.metrics.values()):
        return Finish(missing=DIVERGED)
    if row.schedule is None:
        return Finish(missing=UNSTATED)
    changes: dict[str, Any] = {}
    if row.backbone.startswith("R101"):
        changes["detector.backbone"] = "resnet101"
    if row.init == "ReSim-FPN" and row.backbone.endswith("FPN"):
        changes["weights.parts"] = ["backbone"]
    return Finish(_protocol(_printed_first(row)), changes, found)


def whole(row: Row) -> bool:
    """Whether recipes here give all figures of a row, from its images to its last number."""
    return start(row).runs and finish(row).runs


def _probe(metric: str, row: Row) -> Mapping[str, Mapping[str, Any]]:
    """The probe that gives a figure, with the row's changes; nothing for a detector's figures."""
    name = next((name for begin, name in PROBED.items() if metric.startswith(begin)), None)
    if name is None:
        return {}
    if name.startswith("imagenet_linear") and row.init in ("BYOL", "SCRL"):
        return {"imagenet_linear_scrl": {"optim.lr": 0.05} if row.init == "BYOL" else {}}
    return {name: {}}


def _protocol(row: Row) -> str:
    found = TRANSFERS[row.paper][row.table]
    while not isinstance(found, str):
        told = (row.backbone, row.schedule, row.dataset, row.detector, row.settings)
        (found,) = (found[word] for word in told if word in found)
    return found


def _printed_first(row: Row) -> Row:
    """The row of another paper that SoCo took a baseline's figures from: protocols differ, and so do heads."""
    if row.paper != "SoCo" or row.role == "own":
        return row
    return next((other for other in rows() if other.paper != "SoCo" and other.metrics == row.metrics), row)


PUBLISHED: Mapping[str, Callable[[], TransferRecipe]] = {f.__name__: f for f in transfer.PROTOCOLS}
PROBES: Mapping[str, Callable[[], ProbeRecipe]] = {f.__name__: f for f in probes.PROTOCOLS}
LAYOUTS: Mapping[str, str] = {
    "voc": "VOC2007 and VOC2012 in one folder: trainval of both to train on, test of 2007 to measure on",
    "coco": "a COCO root: instances_{train,val}2017.json, person_keypoints_* for keypoints",
    "cityscapes": "leftImg8bit/ and gtFine/ in one folder",
    "lvis": "lvis_v1_{train,val}.json beside COCO's train2017/ and val2017/",
    "densepose": "a COCO root: densepose_*2014.json, train2014/ and val2014/; --geodesics FILE for its figures",
    "imagenet": "train/ and val/ in one folder, in each a folder of images for each class",
    "voc07": "VOC2007 alone in a folder: trainval to train on, test to measure on",
}
"""By the first word of a protocol's or probe's name."""
BESIDE = "linear_online_top1"
"""The figure of a classifier that trained beside the pretraining."""
PROBED: Mapping[str, str] = {
    "ImageNet_": "imagenet_linear",
    "Cls_linear": "imagenet_linear",
    "linear_offline": "imagenet_linear_scrl",
    "Loc_linear": "imagenet_patch_location",
    "RoI_linear": "coco_roi_linear",
    "SVM_": "voc07_svm",
    "VOC07_SVM": "voc07_svm",
}
"""By how the names of figures begin that no detector gives: the probe that does. BYOL and SCRL have SCRL's linear one,
the only one that is stated for them; other papers quote their figures."""

VOC, VOC_FROZEN = "voc_faster_rcnn_c4_24k", "voc_faster_rcnn_c4_24k_frozen"
TRANSFERS: Mapping[str, Mapping[str, Any]] = {
    "InsLoc": {
        "1": VOC,
        "2a": "coco_mask_rcnn_c4_2x",
        "2b": "coco_mask_rcnn_fpn_2x_insloc",
        "3a": "coco_mask_rcnn_c4_1x",
        "3b": "coco_mask_rcnn_fpn_1x_insloc",
        "4a": "coco_mask_rcnn_c4_1x",
        "4b": "coco_mask_rcnn_c4_2x",
        "4c": "coco_mask_rcnn_fpn_1x_insloc",
        "4d": "coco_mask_rcnn_fpn_2x_insloc",
        "5": "coco_mask_rcnn_c4_12ep_10pct",
    },
    "SoCo": {
        "1": {"1x (90k)": "coco_mask_rcnn_fpn_1x_soco", "2x (180k)": "coco_mask_rcnn_fpn_2x_soco"},
        "2": {"1x (90k)": "coco_mask_rcnn_c4_1x_soco", "2x (180k)": "coco_mask_rcnn_c4_2x_soco"},
        "3a": VOC,
        "3b": VOC,
        **dict.fromkeys(["4", "5a", "5b", "5c", "5d", "9"], "coco_mask_rcnn_fpn_1x_soco"),
        "6": {"LVIS 1x": "lvis_mask_rcnn_1x", "LVIS 2x": "lvis_mask_rcnn_2x_soco"},
        "7a": "coco_retinanet_1x_soco",
        "7b": "coco_fcos_1x",
        "8": {"COCO 5%": "coco_mask_rcnn_fpn_1x_soco_5pct", "COCO 10%": "coco_mask_rcnn_fpn_1x_soco_10pct"},
        "10": "coco_mask_rcnn_fpn_4x",
    },
    "DetCo": {
        "1": VOC,
        "3": {"R50-C4": "coco_mask_rcnn_c4_12k", "R50-FPN": "coco_mask_rcnn_fpn_12k"},
        "4": {"R50-C4": "coco_mask_rcnn_c4_1x_detco", "R50-FPN": "coco_mask_rcnn_fpn_1x"},
        "5": {
            "12k iters": "coco_retinanet_12k",
            "1x (90k)": "coco_retinanet_1x",
            "2x (180k)": {"RetinaNet": "coco_retinanet_2x", "Keypoint R-CNN": "coco_keypoint_rcnn_fpn_2x"},
        },
        "6": VOC,
        "7": {"Mask R-CNN": "cityscapes_mask_rcnn_24k", "FCN-16s": "cityscapes_fcn16s"},
        "9": "densepose_rcnn_26k",
        "10": {"COCO 1%": "coco_mask_rcnn_fpn_12k_1pct", "COCO 2%": "coco_mask_rcnn_fpn_12k_2pct"},
        "11": {"COCO 5%": "coco_mask_rcnn_fpn_12k_5pct", "COCO 10%": "coco_mask_rcnn_fpn_12k_10pct"},
        "12": {f"COCO {n}%": f"coco_retinanet_12k_{n}pct" for n in (1, 2, 5, 10)},
        "13": {"R50-C4": "coco_mask_rcnn_c4_2x_detco", "R50-FPN": "coco_mask_rcnn_fpn_2x"},
        "14": "lvis_mask_rcnn_2x",
        "15": VOC,
        "16": VOC,
    },
    "ReSim": {
        **dict.fromkeys(["1", "2", "3a", "4"], VOC),
        "3b": VOC_FROZEN,
        "text 4.1 (RoIAlign vs PrRoIPool)": {"full finetune": VOC, "frozen backbone": VOC_FROZEN},
        "5a": "coco_mask_rcnn_fpn_1x",
        "5b": "coco_mask_rcnn_fpn_2x",
        "code README": "coco_mask_rcnn_fpn_2x",
        "6 upper": "densepose_rcnn_1x",
        "6 lower": "cityscapes_mask_rcnn_24k",
    },
    "SCRL": {
        "1": "voc_faster_rcnn_fpn_18k",
        "2": {"Faster R-CNN": "coco_faster_rcnn_fpn_1x", "RetinaNet": "coco_retinanet_1x_scrl"},
        "3": "coco_faster_rcnn_fpn_1x",
        "4": "coco_mask_rcnn_fpn_1x_scrl",
        "5": {"COCO keypoints": "coco_keypoint_rcnn_fpn_1x", "Cityscapes": "cityscapes_mask_rcnn_24k_scrl"},
        "6": "coco_faster_rcnn_fpn_1x",
        "7": "coco_faster_rcnn_fpn_1x",
        "8": "coco_faster_rcnn_fpn_1x_10pct",
        "9": {
            "0.5x (45k)": "coco_faster_rcnn_fpn_45k",
            **{f"{n}x ({90 * n}k)": f"coco_faster_rcnn_fpn_{n}x" for n in (1, 3, 5, 7)},
        },
        "code README": {
            "Faster R-CNN": "coco_faster_rcnn_fpn_1x",
            "Mask R-CNN": "coco_mask_rcnn_fpn_1x_scrl",
        },
    },
}
"""By paper and table: a protocol, or one by what the row says of backbone, schedule, data set, detector or settings."""
