"""Every result row of the papers leads to what measured it, a detector or a probe, or to the reason why nothing can."""

import re
from functools import cache
from pathlib import Path

import pytest

from boxwise.recipes import probes, transfer
from boxwise.recipes.paper_rows import Row, rows
from boxwise.recipes.recipe import TransferRecipe
from boxwise.recipes.table_transfers import (
    BESIDE,
    DIVERGED,
    LAYOUTS,
    PROBES,
    PUBLISHED,
    TRANSFERS,
    UNSTATED,
    Finish,
    finish,
    whole,
)
from boxwise.recipes.tables import start
from boxwise.run.catalogue import listing
from boxwise.run.find import saved, transfer_recipe
from boxwise.strict import dump_yaml

PAPERS = Path(__file__).parents[3] / "shared/papers"
MIXED = {("InsLoc", "3a"), ("DetCo", "1")}
"""Tables that print a probe and a transfer side by side."""
CHANGED = {
    (found.protocol, str(found.changes)): found for found in (finish(row) for row in rows()) if found.changes
}
"""Protocols as rows change them."""


def the(paper: str, table: str, init: str, **stated: object) -> tuple[Row, Finish, TransferRecipe]:
    """The first row that is told so, and how it is measured."""
    row = next(
        row
        for row in rows()
        if (row.paper, row.table, row.init) == (paper, table, init)
        and all(getattr(row, key) == value for key, value in stated.items())
    )
    found = finish(row)
    assert found.recipe is not None
    return row, found, found.recipe


def solver(recipe: TransferRecipe) -> tuple[float, int, list[int], int, float]:
    """Rate, steps, falls, batch and weight decay."""
    total = recipe.steps(118_287)
    falls = [round(share * total) for share in recipe.schedule.milestones]
    return recipe.optim.lr, total, falls, recipe.run.batch_size, recipe.optim.weight_decay


FIGURES = {
    "imagenet_linear": {"ImageNet_top1", "ImageNet_top5", "Cls_linear_top1"},
    "imagenet_linear_scrl": {"ImageNet_top1", "ImageNet_top5", "Cls_linear_top1", "linear_offline_top1"},
    "imagenet_patch_location": {"Loc_linear_acc"},
    "coco_roi_linear": {"RoI_linear_acc"},
    "voc07_svm": {"VOC07_SVM_mAP", *(f"SVM_res{stage}" for stage in (2, 3, 4, 5))},
}
"""What each probe gives, in the papers' words."""
DETECTED = ("AP", "mIoU")
"""How a detector's figures begin."""


def test_every_row_has_a_protocol_or_a_reason() -> None:
    """Breaks when a row is left out in silence, or a probe is given a detector that cannot print its figure."""
    for row in rows():
        found = finish(row)
        if row.detector is None:
            assert found.probes and found.protocol is None, row
            assert found.missing is None and found.beside == ("linear_online_top1" in row.metrics), row
        elif row.schedule is None:
            assert found == Finish(missing=UNSTATED) and row.table == "text 4.2 (VOC07)", row
        elif set(row.metrics.values()) == {"diverged"}:
            assert found == Finish(missing=DIVERGED) and not whole(row), row
        else:
            assert found.protocol in PUBLISHED, row
            assert bool(found.probes) == ((row.paper, row.table) in MIXED) and found.runs, row


def test_every_protocol_measures_some_row() -> None:
    """Breaks when a protocol is published by nobody."""
    used = {finish(row).protocol for row in rows() if row.role == "own"}
    assert {*PUBLISHED} == used - {None} == {f.__name__ for f in transfer.PROTOCOLS}


def test_every_figure_of_a_row_is_measured() -> None:
    """Breaks when a row counts as whole of which a figure comes from nowhere, or a probe is published by nobody."""
    used: set[str] = set()
    for row in rows():
        found = finish(row)
        used |= {*found.probes}
        if not found.runs:
            continue
        given = set[str]().union(*(FIGURES[name] for name in found.probes))
        given |= {BESIDE} if found.beside else set()
        left = {metric for metric in row.metrics if metric not in given}
        assert all(metric.startswith(DETECTED) for metric in left), (row, left)
        assert not left or found.protocol is not None, row
    assert used == {*PROBES} == {*FIGURES} == {f.__name__ for f in probes.PROTOCOLS}


# paper, table, init; the probes with the row's changes
ASKED = [
    ("InsLoc", "3a", "InsLoc", {"imagenet_linear": {}, "imagenet_patch_location": {}}),
    ("DetCo", "1", "DetCo", {"imagenet_linear": {}}),
    ("DetCo", "2", "DetCo", {"voc07_svm": {}}),
    ("DetCo", "8", "DetCo", {"imagenet_linear": {}, "voc07_svm": {}}),
    ("DetCo", "8", "BYOL", {"imagenet_linear_scrl": {"optim.lr": 0.05}}),
    ("ReSim", "text A.2", "ReSim-C4", {"imagenet_linear": {}}),
    ("SCRL", "10", "SCRL", {"imagenet_linear_scrl": {}, "coco_roi_linear": {}}),
    ("SCRL", "10", "BYOL", {"imagenet_linear_scrl": {"optim.lr": 0.05}, "coco_roi_linear": {}}),
    ("SCRL", "10", "MoCo-v2", {"imagenet_linear": {}, "coco_roi_linear": {}}),
]


@pytest.mark.parametrize(("paper", "table", "init", "expected"), ASKED)
def test_rows_are_probed_as_their_papers_say(
    paper: str, table: str, init: str, expected: dict[str, dict[str, float]]
) -> None:
    """Breaks when a row is asked by another probe, or at another's rate."""
    row = next(r for r in rows() if (r.paper, r.table, r.init) == (paper, table, init))
    found = finish(row)
    assert found.probes == expected
    for recipe, (name, changes) in zip(found.probe_recipes, expected.items()):
        assert recipe == PROBES[name]().changed(changes)
        assert recipe.name == name


def test_the_protocol_is_the_rows_own() -> None:
    """Breaks when a row is measured by another detector, backbone, length, data set or share of the labels."""
    detectors = {
        "Faster R-CNN": "faster_rcnn",
        "Mask R-CNN": "mask_rcnn",
        "Mask R-CNN (keypoints)": "keypoint_rcnn_fpn",
        "Keypoint R-CNN": "keypoint_rcnn_fpn",
        "RetinaNet": "retinanet",
        "RetinaNet (MMDetection)": "retinanet",
        "FCOS (MMDetection)": "fcos",
        "FCN-16s": "fcn16s",
        "DensePose R-CNN": "densepose_rcnn",
    }
    steps = {
        "1x (90k)": 90_000,
        "2x (180k)": 180_000,
        "4x": 360_000,
        "12k iters": 12_000,
        "24k iters": 24_000,
        "26k iters": 26_000,
        "180k iters": 180_000,
        "LVIS 1x": 90_000,
        "LVIS 2x": 180_000,
        "0.5x (45k)": 45_000,
        "3x (270k)": 270_000,
        "5x (450k)": 450_000,
        "7x (630k)": 630_000,
    }
    for row in rows():
        found = finish(row)
        if found.protocol is None:
            continue
        recipe = recipe_of(found.protocol, str(found.changes))
        assert recipe is not None and row.detector is not None
        trunk, _, neck = row.backbone.partition("-")
        assert recipe.detector.backbone == {"R50": "resnet50", "R101": "resnet101"}[trunk], row
        assert recipe.detector.name.startswith(detectors[row.detector]), row
        assert not neck or "rcnn" not in recipe.detector.name or neck.lower() in row_neck(recipe), row
        if row.schedule in steps:
            assert recipe.schedule.steps == steps[row.schedule], row
        share = {"COCO 1%": 0.01, "COCO 2%": 0.02, "COCO 5%": 0.05}.get(row.dataset)
        assert (recipe.data.labels or 1.0) == (share or (0.1 if "10%" in row.dataset else 1.0)), row


@cache
def recipe_of(protocol: str, changes: str) -> TransferRecipe | None:
    """The recipe of rows that are measured so, built once."""
    return next(f for f in map(finish, rows()) if (f.protocol, str(f.changes)) == (protocol, changes)).recipe


def row_neck(recipe: TransferRecipe) -> str:
    """c4 or fpn."""
    return "c4" if recipe.detector.name.endswith("c4") else "fpn"


def test_every_finish_can_be_and_survives_yaml(tmp_path: Path) -> None:
    """Breaks when a row's changes cannot be laid over its protocol, or mean something else once read again."""
    assert {tuple(found.changes) for found in CHANGED.values()} == {
        ("detector.backbone",),
        ("weights.parts",),
    }
    file = tmp_path / "config.yaml"
    for found in CHANGED.values():
        recipe = found.recipe
        assert recipe is not None and [*recipe.detector.problems(pretrained=True)] == []
        file.write_text(dump_yaml(saved(recipe, recipe.name)))
        assert transfer_recipe(found.protocol, config=file).recipe == recipe
        assert transfer_recipe(found.protocol, settings=found.changes).recipe == recipe


def test_weights_are_brought_as_the_row_says() -> None:
    """Breaks when ReSim-FPN without its T takes the pyramid along, or the row with T leaves it behind."""
    for init, parts in (("ReSim-FPN", ("backbone",)), ("ReSim-FPN^T", None)):
        for table in ("5a", "5b", "6 upper", "6 lower"):
            assert the("ReSim", table, init)[2].weights.parts == parts
    assert the("ReSim", "4", "ReSim-FPN")[2].weights.parts is None, "no pyramid in C4"
    assert the("SoCo", "7a", "SoCo*")[2].weights.parts is None


# paper, table, init, what else; lr, steps, falls, batch, weight decay; other settings
SPOTS = [
    ("InsLoc", "1", "InsLoc", {}, (0.02, 24_000, [18_000, 22_000], 16, 1e-4), {"min_size": 800}),
    ("InsLoc", "2a", "InsLoc", {}, (0.02, 180_000, [120_000, 160_000], 16, 1e-4), {"train_max_size": None}),
    ("InsLoc", "4c", "MoCo-v2", {}, (0.02, 90_000, [60_000, 80_000], 16, 1e-4), {"head_extra_norm": True}),
    ("SoCo", "1", "SoCo", {"schedule": "2x (180k)"}, (0.02, 180_000, [120_000, 160_000], 16, 2.5e-5), {}),
    ("SoCo", "3a", "SoCo", {}, (0.02, 24_000, [18_000, 22_000], 16, 1e-4), {"head_extra_norm": True}),
    ("SoCo", "6", "SoCo*", {}, (0.02, 90_000, [60_000, 80_000], 16, 2.5e-5), {"detections_per_image": 300}),
    ("SoCo", "10", "SoCo*", {}, (0.02, 360_000, [240_000, 320_000], 16, 2.5e-5), {"head": "4conv1fc"}),
    (
        "DetCo",
        "3",
        "DetCo",
        {"backbone": "R50-C4"},
        (0.02, 12_000, [9000, 11_000], 16, 1e-4),
        {"train_max_size": 1200},
    ),
    ("DetCo", "5", "DetCo", {"detector": "RetinaNet"}, (0.01, 12_000, [9000, 11_000], 16, 1e-4), {}),
    (
        "DetCo",
        "5",
        "DetCo",
        {"detector": "Keypoint R-CNN"},
        (0.02, 180_000, [120_000, 160_000], 16, 1e-4),
        {"box_beta": 0.5, "rpn_post_nms_train": 1500},
    ),
    (
        "DetCo",
        "7",
        "DetCo",
        {"detector": "Mask R-CNN"},
        (0.01, 24_000, [18_000], 8, 1e-4),
        {"min_size": 1024, "max_size": 2048, "train_sizes": (800, 832, 864, 896, 928, 960, 992, 1024)},
    ),
    ("ReSim", "3b", "ReSim-C4", {}, (0.02, 24_000, [18_000, 22_000], 16, 1e-4), {"frozen_stages": 4}),
    (
        "ReSim",
        "5a",
        "ReSim-FPN^T",
        {},
        (0.02, 90_000, [60_000, 80_000], 16, 1e-4),
        {"head": "2fc", "mask_norm": "none", "train_sizes": (640, 672, 704, 736, 768, 800)},
    ),
    ("SCRL", "1", "SCRL", {}, (0.02, 18_000, [12_000, 16_000], 16, 1e-4), {"head": "2fc"}),
    ("SCRL", "5", "SCRL", {"dataset": "Cityscapes"}, (0.01, 24_000, [18_000], 8, 1e-4), {"mask_norm": "bn"}),
    ("SCRL", "3", "SCRL", {}, (0.02, 90_000, [60_000, 80_000], 16, 1e-4), {"backbone": "resnet101"}),
]


@pytest.mark.parametrize(("paper", "table", "init", "stated", "rates", "others"), SPOTS)
def test_rows_are_measured_as_their_papers_say(
    paper: str,
    table: str,
    init: str,
    stated: dict[str, object],
    rates: tuple[object, ...],
    others: dict[str, object],
) -> None:
    """Breaks when a row is trained otherwise than the setup sections of the papers say."""
    _, _, recipe = the(paper, table, init, **stated)
    assert solver(recipe) == rates
    assert {key: getattr(recipe.detector, key) for key in others} == others


WORDS = {
    "insloc": (
        "decayed to be 10 times smaller after 18k and 22k iterations",
        "fine-tune the network for 12 epochs",
    ),
    "soco": (r"weight decay of  $2.5 \times e^{-5}$", "a batch size of 16 split across 8 GPUs"),
    "detco": ("only train detectors with 12k iterations", "fine-tune Densepose RCNN with 26k iterations"),
    "resim": ("decreased by a factor of 1/10 at the 18,000 and 22,000 iteration", "weights in RPN and $C5$"),
    "scrl": ("An input image is in [800, 1024] pixels", "(45k iterations) to 7"),
}


@pytest.mark.parametrize("paper", WORDS)
def test_the_papers_say_so(paper: str) -> None:
    """Breaks when the words that the values above were read from are not the papers'."""
    file = PAPERS / f"{paper}.txt"
    if not file.is_file():
        pytest.skip("the papers' texts are not here")
    text = " ".join(file.read_text(encoding="utf-8").split())
    assert [words for words in WORDS[paper] if " ".join(words.split()) not in text] == []


def test_a_borrowed_row_is_measured_where_it_comes_from() -> None:
    """SoCo prints other papers' figures. Breaks when its own weight decay and head are said to have made them."""
    told = {
        ("random", "1x (90k)"): "coco_mask_rcnn_fpn_1x",
        ("random", "2x (180k)"): "coco_mask_rcnn_fpn_2x_insloc",
        ("MoCo-v2", "1x (90k)"): "coco_mask_rcnn_fpn_1x_insloc",
        ("BYOL", "1x (90k)"): "coco_mask_rcnn_fpn_1x_scrl",
        ("BYOL", "2x (180k)"): "coco_mask_rcnn_fpn_2x_insloc",
        ("ReSim-FPN^T", "1x (90k)"): "coco_mask_rcnn_fpn_1x",
        ("SoCo", "1x (90k)"): "coco_mask_rcnn_fpn_1x_soco",
    }
    for (init, schedule), protocol in told.items():
        assert the("SoCo", "1", init, schedule=schedule)[1].protocol == protocol
    assert the("SoCo", "10", "supervised")[1].protocol == "coco_mask_rcnn_fpn_4x", "no other paper prints it"


def test_mini_coco_of_insloc_is_counted_in_passes() -> None:
    """Breaks when 12 epochs of a tenth become 12 epochs' worth of all images."""
    _, found, recipe = the("InsLoc", "5", "InsLoc")
    assert found.labels == 0.1 and recipe.steps(11_829) == round(12 * 11_829 / 16)
    falls = [round(share * 8872) for share in recipe.schedule.milestones]
    assert recipe.steps(11_829) == 8872 and falls == [5915, 7886]


def test_every_data_set_has_its_layout_told() -> None:
    """Breaks when a row does not say what to download, or says it of another data set."""
    for row in rows():
        found = finish(row)
        if found.protocol is not None:
            first = found.protocol.partition("_")[0]
            assert found.data[0] == LAYOUTS[first]
            named = row.dataset.lower().replace("coco densepose", "densepose").replace("imagenet / ", "")
            assert named.startswith(first), row
    svm = next(row for row in rows() if (row.paper, row.table) == ("DetCo", "2"))
    assert finish(svm).data == (LAYOUTS["voc07"],)
    both = next(row for row in rows() if (row.paper, row.table) == ("SCRL", "10"))
    assert finish(both).data == (LAYOUTS["imagenet"], LAYOUTS["coco"])


def test_whole_rows_are_counted() -> None:
    """Breaks when a row counts that lacks its weights or its figures, or the count on the page is another."""
    said = listing("tables")
    begun = [row for row in rows() if start(row).runs]
    runs = [row for row in begun if finish(row).runs]
    assert [whole(row) for row in begun[:40]] == [row in runs for row in begun[:40]]
    assert f"\nin all  {len(runs)} / {len(rows())} (" in said
    assert f"{UNSTATED} " in said and re.search(rf"{DIVERGED} +2 rows\n", said)
    measured = [row for row in begun if finish(row).protocol is not None]
    assert all(row in runs for row in measured)
    assert {(row.paper, row.table) for row in rows()} >= {(p, t) for p in TRANSFERS for t in TRANSFERS[p]}
