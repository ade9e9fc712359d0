"""The published fine-tuning protocols, held to what papers and official configurations state."""

import inspect
import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from boxwise.config import SGD
from boxwise.engine.optim import learning_rate
from boxwise.interop.files import IMAGENET_MEAN, IMAGENET_STD
from boxwise.recipes import transfer
from boxwise.recipes.paper_rows import rows
from boxwise.recipes.recipe import TransferRecipe
from boxwise.recipes.table_transfers import finish
from boxwise.run.find import saved, transfer_recipe
from boxwise.strict import dump_yaml

PROTOCOLS = {f.__name__: f for f in transfer.PROTOCOLS}
RECIPES = {name: f() for name, f in PROTOCOLS.items()}
BUILT = {dump_yaml(r.detector): r for r in RECIPES.values()}
"""Protocols whose networks differ, or at least their settings."""
COCO_2017 = 118_287
FEW = [name for name in PROTOCOLS if name.endswith("pct")]

# lr, batch, weight decay, steps, falls, warm-up
STATED = {
    "voc_faster_rcnn_c4_24k": (0.02, 16, 1e-4, 24_000, (18_000, 22_000), 100),
    "voc_faster_rcnn_c4_24k_frozen": (0.02, 16, 1e-4, 24_000, (18_000, 22_000), 100),
    "voc_faster_rcnn_fpn_18k": (0.02, 16, 1e-4, 18_000, (12_000, 16_000), 100),
    "coco_mask_rcnn_c4_1x": (0.02, 16, 1e-4, 90_000, (60_000, 80_000), 1000),
    "coco_mask_rcnn_c4_2x": (0.02, 16, 1e-4, 180_000, (120_000, 160_000), 1000),
    "coco_mask_rcnn_c4_12k": (0.02, 16, 1e-4, 12_000, (9000, 11_000), 1000),
    "coco_mask_rcnn_c4_1x_detco": (0.02, 16, 1e-4, 90_000, (60_000, 80_000), 1000),
    "coco_mask_rcnn_c4_2x_detco": (0.02, 16, 1e-4, 180_000, (120_000, 160_000), 1000),
    "coco_mask_rcnn_c4_1x_soco": (0.02, 16, 2.5e-5, 90_000, (60_000, 80_000), 1000),
    "coco_mask_rcnn_c4_2x_soco": (0.02, 16, 2.5e-5, 180_000, (120_000, 160_000), 1000),
    "coco_mask_rcnn_fpn_1x": (0.02, 16, 1e-4, 90_000, (60_000, 80_000), 1000),
    "coco_mask_rcnn_fpn_2x": (0.02, 16, 1e-4, 180_000, (120_000, 160_000), 1000),
    "coco_mask_rcnn_fpn_12k": (0.02, 16, 1e-4, 12_000, (9000, 11_000), 1000),
    "coco_mask_rcnn_fpn_1x_insloc": (0.02, 16, 1e-4, 90_000, (60_000, 80_000), 1000),
    "coco_mask_rcnn_fpn_2x_insloc": (0.02, 16, 1e-4, 180_000, (120_000, 160_000), 1000),
    "coco_mask_rcnn_fpn_1x_soco": (0.02, 16, 2.5e-5, 90_000, (60_000, 80_000), 1000),
    "coco_mask_rcnn_fpn_2x_soco": (0.02, 16, 2.5e-5, 180_000, (120_000, 160_000), 1000),
    "coco_mask_rcnn_fpn_4x": (0.02, 16, 2.5e-5, 360_000, (240_000, 320_000), 1000),
    "coco_mask_rcnn_fpn_1x_scrl": (0.02, 16, 1e-4, 90_000, (60_000, 80_000), 1000),
    "coco_faster_rcnn_fpn_45k": (0.02, 16, 1e-4, 45_000, (30_000, 40_000), 1000),
    "coco_faster_rcnn_fpn_1x": (0.02, 16, 1e-4, 90_000, (60_000, 80_000), 1000),
    "coco_faster_rcnn_fpn_3x": (0.02, 16, 1e-4, 270_000, (210_000, 250_000), 1000),
    "coco_faster_rcnn_fpn_5x": (0.02, 16, 1e-4, 450_000, (390_000, 430_000), 1000),
    "coco_faster_rcnn_fpn_7x": (0.02, 16, 1e-4, 630_000, (570_000, 610_000), 1000),
    "coco_keypoint_rcnn_fpn_1x": (0.02, 16, 1e-4, 90_000, (60_000, 80_000), 1000),
    "coco_keypoint_rcnn_fpn_2x": (0.02, 16, 1e-4, 180_000, (120_000, 160_000), 1000),
    "coco_retinanet_1x": (0.01, 16, 1e-4, 90_000, (60_000, 80_000), 1000),
    "coco_retinanet_2x": (0.01, 16, 1e-4, 180_000, (120_000, 160_000), 1000),
    "coco_retinanet_12k": (0.01, 16, 1e-4, 12_000, (9000, 11_000), 1000),
    "coco_retinanet_1x_scrl": (0.01, 16, 1e-4, 90_000, (60_000, 80_000), 1000),
    "coco_retinanet_1x_soco": (0.01, 16, 1e-4, 88_715, (59_143, 81_322), 500),  # 12 epochs: falls at 8 and 11
    "coco_fcos_1x": (0.01, 16, 1e-4, 88_715, (59_143, 81_322), 500),
    "cityscapes_mask_rcnn_24k": (0.01, 8, 1e-4, 24_000, (18_000,), 1000),
    "cityscapes_mask_rcnn_24k_scrl": (0.01, 8, 1e-4, 24_000, (18_000,), 1000),
    "cityscapes_fcn16s": (0.01, 16, 1e-4, 90_000, (63_000, 81_000), 0),
    "lvis_mask_rcnn_1x": (0.02, 16, 2.5e-5, 90_000, (60_000, 80_000), 1000),
    "lvis_mask_rcnn_2x_soco": (0.02, 16, 2.5e-5, 180_000, (120_000, 160_000), 1000),
    "lvis_mask_rcnn_2x": (0.02, 16, 1e-4, 180_000, (120_000, 160_000), 1000),
    "densepose_rcnn_26k": (0.01, 16, 1e-4, 26_000, (20_000, 24_000), 1000),
    "densepose_rcnn_1x": (0.01, 16, 1e-4, 130_000, (100_000, 120_000), 1000),
}
"""Of section 6 of the notes on the official configurations."""
WARMED_FROM = {"coco_fcos_1x": 1 / 3, "densepose_rcnn_26k": 0.1, "densepose_rcnn_1x": 0.1}
"""Share of the rate at the first step; elsewhere a thousandth."""
SIZES = {
    "voc": (range(480, 801, 32), 800, 1333, 1333),
    "coco": (range(640, 801, 32), 800, 1333, 1333),
    "lvis": (range(640, 801, 32), 800, 1333, 1333),
    "densepose": (range(640, 801, 32), 800, 1333, 1333),
    "cityscapes": (range(800, 1025, 32), 1024, 2048, 2048),
}
"""Shorter sides in training, then in the test, the longest side in training, and in the test."""
DETCO_C4 = ("coco_mask_rcnn_c4_12k", "coco_mask_rcnn_c4_1x_detco", "coco_mask_rcnn_c4_2x_detco")
MMDETECTION = ("coco_retinanet_1x_soco", "coco_fcos_1x")


def base_of(name: str) -> str:
    """The protocol on all labels that one on a share is of."""
    return name.rpartition("_")[0].replace("12ep", "1x")


@pytest.mark.parametrize("name", STATED)
def test_rates_are_the_official_ones_at_every_turn(name: str) -> None:
    """Breaks when a protocol trains at another rate, for another length, or falls a step early or late."""
    lr, batch, decay, total, falls, warmup = STATED[name]
    recipe = RECIPES[name]
    assert isinstance(recipe.optim, SGD) and (recipe.optim.momentum, recipe.optim.nesterov) == (0.9, False)
    assert (recipe.run.batch_size, recipe.optim.weight_decay) == (batch, decay)
    assert recipe.steps(COCO_2017) == total and recipe.schedule.warmup_steps == warmup

    def rate(step: int) -> float:
        base = recipe.optim.lr * recipe.run.batch_size / recipe.optim.lr_batch
        epoch = recipe.steps_per_epoch(COCO_2017)
        return learning_rate(step, base=base, schedule=recipe.schedule, steps_per_epoch=epoch, total=total)

    first = WARMED_FROM.get(name, 0.001)
    if warmup:
        assert rate(0) == pytest.approx(lr * first, rel=1e-12)
        assert rate(warmup // 2) == pytest.approx(lr * (first + 1) / 2, rel=1e-12)
    assert rate(warmup) == lr
    ends = [*falls, total]
    assert rate(falls[0] - 1) == lr
    for k, (start, end) in enumerate(itertools.pairwise(ends), start=1):
        assert [rate(start), rate(end - 1)] == pytest.approx([lr / 10**k] * 2, rel=1e-12)


def test_no_protocol_is_left_out_of_the_table() -> None:
    """Breaks when a protocol is added, and what it trains is held to nothing."""
    assert {*PROTOCOLS} == {*STATED, *FEW}
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    assert not {*PROTOCOLS} & {*transfer.FAMILIES}


@pytest.mark.parametrize("name", STATED)
def test_sizes_and_batches_of_images(name: str) -> None:
    """Breaks when images are smaller or larger than the paper's, or one of 300 is left out."""
    detector = RECIPES[name].detector
    if name == "cityscapes_fcn16s":
        assert (detector.scales, detector.crop) == ((0.5, 2.0), 769)
        assert (detector.min_size, detector.max_size) == (1024, 2048), "Cityscapes' own"
        return
    sides, test, longest, longest_test = SIZES[name.partition("_")[0]]
    assert detector.train_sizes == (() if name in MMDETECTION else tuple(sides))
    assert (detector.min_size, detector.max_size) == (test, longest_test)
    assert (detector.train_max_size or detector.max_size) == (1200 if name in DETCO_C4 else longest)
    many = name.startswith("lvis")
    assert detector.detections_per_image == (300 if many else 100)
    assert detector.score_threshold == (1e-4 if many else 0.05)


@pytest.mark.parametrize("name", STATED)
def test_trap_24_norms_are_trained_over_all_devices_and_nothing_is_frozen(name: str) -> None:
    """Breaks when the first stages stay frozen, as they do by default, or statistics are those of two images."""
    recipe = RECIPES[name]
    frozen = 2 if name in MMDETECTION else 4 if name.endswith("_frozen") else 0
    assert (recipe.detector.norm, recipe.detector.frozen_stages) == (
        "frozen" if name in MMDETECTION else "sync",
        frozen,
    )
    assert recipe.run.precision == "fp32"
    told = not isinstance(recipe.optim, SGD) or recipe.optim.decay_norms
    assert told == (name in MMDETECTION), "detectron2 decays no norm"


def test_statistics_are_measured_once_more_where_the_files_say_so() -> None:
    """Breaks when detectors are measured with running averages against the official files, or SCRL's are not."""
    plain = {name for name, recipe in RECIPES.items() if recipe.measure.precise_bn == 0}
    scrl = {name for name in PROTOCOLS if name.endswith("_scrl") or name.startswith("coco_faster")}
    assert plain == {
        *scrl,
        *MMDETECTION,
        "voc_faster_rcnn_fpn_18k",
        "coco_keypoint_rcnn_fpn_1x",
        "cityscapes_fcn16s",
    }
    assert {recipe.measure.precise_bn for recipe in RECIPES.values()} == {0, 200}


def test_heads_are_each_papers_own() -> None:
    """Breaks when gains of a better head are booked as gains of the weights: 4conv1fc is worth more than 2fc."""
    fpn = {name: r.detector for name, r in RECIPES.items() if hasattr(r.detector, "head")}
    four = {name for name, detector in fpn.items() if detector.head == "4conv1fc"}
    soco = {name for name in fpn if "_soco" in name} | {"coco_mask_rcnn_fpn_4x", "lvis_mask_rcnn_1x"}
    insloc = {"coco_mask_rcnn_fpn_1x_insloc", "coco_mask_rcnn_fpn_2x_insloc"}
    assert four == soco | insloc
    assert {name for name, detector in fpn.items() if detector.head_extra_norm} == insloc
    masks = {name: d for name, d in fpn.items() if hasattr(d, "mask_norm")}
    assert {name for name, d in masks.items() if d.mask_norm == "bn"} == four | {
        "coco_mask_rcnn_fpn_1x_scrl",
        "cityscapes_mask_rcnn_24k_scrl",
    }
    assert all(detector.fpn_norm == "bn" for detector in fpn.values())


def test_first_stages_propose_as_detectron2s() -> None:
    """Breaks when torchvision's own numbers of proposals, or its rounder loss, take the place of detectron2's."""
    for name, recipe in RECIPES.items():
        detector = recipe.detector
        if not hasattr(detector, "rpn_post_nms_train"):
            continue
        before, after = (12_000, 6000), (2000, 1000)
        if hasattr(detector, "fpn_channels"):
            before, after = (2000, 1000), (1500 if "keypoint" in name else 1000, 1000)
            assert detector.rpn_convs == 1
        assert (detector.rpn_pre_nms_train, detector.rpn_pre_nms_test) == before, name
        assert (detector.rpn_post_nms_train, detector.rpn_post_nms_test) == after, name
        assert (detector.rpn_beta, detector.box_beta) == (0, 0.5 if "keypoint" in name else 0), name
        dense = name.startswith("densepose")
        assert (detector.aligned, detector.sampling_ratio) == (not dense, 2 if dense else 0), name


def test_one_stage_detectors_are_the_papers() -> None:
    """Breaks when RetinaNet's head has norms that DetCo left out, or the loss of its boxes is round."""
    for name, recipe in RECIPES.items():
        if "retinanet" in name:
            detector = recipe.detector
            assert (detector.fpn_norm, detector.head_norm, detector.p6_from) == ("bn", "none", "c5"), name
            assert (detector.smooth_l1_beta, detector.focal_gamma, detector.focal_alpha) == (0, 2, 0.25)
    fcos = RECIPES["coco_fcos_1x"]
    assert (fcos.detector.p6_from, fcos.detector.center_radius) == ("p5", 0), "MMDetection's 1x"
    assert (fcos.run.clip_norm, fcos.optim.decay_1d) == (35, False)


@pytest.mark.parametrize("name", FEW)
def test_few_labels_change_nothing_but_the_images(name: str) -> None:
    """Breaks when a run on a share of the labels differs from the whole in more than the papers say."""
    share = {"1pct": 0.01, "2pct": 0.02, "5pct": 0.05, "10pct": 0.1}[name.rpartition("_")[2]]
    recipe, whole = RECIPES[name], RECIPES[base_of(name)]
    assert (recipe.data.labels, whole.data.labels) == (share, None)
    back = recipe.changed({"data.labels": None})
    assert (back.detector, back.optim, back.data, back.measure, back.run) == (
        whole.detector,
        whole.optim,
        whole.data,
        whole.measure,
        whole.run,
    )
    if "12ep" in name:
        assert recipe.schedule.milestones == whole.schedule.milestones
        assert recipe.steps(11_829) == round(12 * 11_829 / 16) == 8872
    else:
        assert recipe.schedule == whole.schedule


def test_data_is_chosen_as_the_papers_do() -> None:
    """Breaks when empty images, or people without keypoints, are trained on, or rare categories are not repeated."""
    for name, recipe in RECIPES.items():
        assert recipe.data.drop_empty == (name != "cityscapes_fcn16s")
        assert recipe.data.difficult and recipe.data.bad_images is None
        assert recipe.data.min_keypoints == ("keypoint" in name)
        assert recipe.data.repeat_threshold == (0.001 if name.startswith("lvis") else None)
        assert recipe.measure.metric == ("voc07" if name.startswith("voc") else "auto")


@pytest.mark.parametrize("recipe", BUILT.values(), ids=lambda recipe: recipe.name)
def test_every_protocol_builds(recipe: TransferRecipe) -> None:
    """Breaks when a protocol's settings cannot be built, or ask for what cannot be."""
    assert [*recipe.detector.problems(pretrained=True)] == []
    with torch.device("meta"):
        detector = recipe.detector.build(classes=20, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    frozen = sum(p.numel() for p in detector.parameters() if not p.requires_grad)
    assert sum(p.numel() for p in detector.parameters()) > 2.3e7
    assert bool(frozen) == bool(recipe.detector.frozen_stages)
    assert "backbone" in detector.parts()


def test_every_protocol_survives_yaml(tmp_path: Path) -> None:
    """Breaks when a protocol means something else, or another detector, once its config.yaml is read again."""
    file = tmp_path / "config.yaml"
    for name, recipe in RECIPES.items():
        file.write_text(dump_yaml(saved(recipe, name)))
        assert transfer_recipe(name, config=file).recipe == recipe
    for recipe in {type(recipe.detector): recipe for recipe in RECIPES.values()}.values():
        file.write_text(dump_yaml(saved(recipe, recipe.name)))
        again = transfer_recipe("faster_rcnn_fpn", config=file).recipe
        assert replace(again, name=recipe.name) == recipe


def test_protocols_are_run_as_they_stand() -> None:
    """Breaks when a published protocol is fitted to the data, or cannot be changed by a flag."""
    found = transfer_recipe("coco_mask_rcnn_fpn_12k_1pct", settings={"batch_size": 8})
    assert not found.fitted and found.recipe.data.labels == 0.01
    assert found.recipe.run.batch_size == 8 and found.recipe.optim.lr_batch == 16


@pytest.mark.parametrize("name", PROTOCOLS)
def test_published_figures_are_those_of_rows_of_the_protocol(name: str) -> None:
    """Breaks when a docstring prints a figure that no paper got by this protocol, or none at all."""
    said = inspect.getdoc(PROTOCOLS[name]).partition("Published")[2]
    told = {float(value) for value in re.findall(r"\d+\.\d(?=\s\(Table)", said)}
    printed = {
        value
        for row in rows()
        if finish(row).protocol == name and row.role == "own"
        for value in row.metrics.values()
    }
    assert told and told <= printed, told - printed
