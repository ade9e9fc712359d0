import socket

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn_v2
from torchvision.ops import FrozenBatchNorm2d

from boxwise.interop.files import load_weights, save_weights
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.nn.heads import box_head
from boxwise.transfer.detectors.c4 import MaskRCNNC4
from boxwise.transfer.detectors.fcos import FCOS
from boxwise.transfer.detectors.keypoint_rcnn import KeypointRCNNFPN
from boxwise.transfer.detectors.mask_rcnn import MaskRCNNFPN
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN
from boxwise.transfer.detectors.retinanet import RetinaNet
from rcnns import awake, silent

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = {"backbone": "resnet18", "fpn_channels": 32, "min_size": 96, "max_size": 160}


def small(**changes: object) -> FasterRCNN:
    return FasterRCNNFPN(**{**SMALL, **changes}).build(classes=2, mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def pair() -> tuple[FasterRCNN, FasterRCNN]:
    """Our detector and torchvision's with the same weights and options."""
    config = FasterRCNNFPN(
        backbone="resnet50",
        aligned=False,
        min_size=96,
        max_size=160,
        anchor_sizes=(32, 64, 128, 256, 512),
        roi_canonical_size=224,
        box_batch_size_per_image=16,
        rpn_post_nms_train=100,
        rpn_post_nms_test=40,
        score_threshold=0.01,
    )
    torch.manual_seed(0)
    ours = config.build(classes=4, mean=MEAN, std=STD)
    theirs = fasterrcnn_resnet50_fpn_v2(
        weights=None,
        weights_backbone=None,
        num_classes=5,
        min_size=96,
        max_size=160,
        box_batch_size_per_image=16,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=40,
        box_score_thresh=0.01,
    )
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def pictures() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 96, 120, generator=generator), torch.rand(3, 110, 96, generator=generator)]
    boxes = torch.tensor([[5.0, 8.0, 40.0, 60.0], [30.0, 20.0, 90.0, 80.0]])
    return images, [{"boxes": boxes + i, "labels": torch.tensor([1, 2])} for i in range(2)]


def test_names_and_shapes_are_those_of_torchvisions_v2(pair: tuple[FasterRCNN, FasterRCNN]) -> None:
    """Its published weights, and every tool that reads them, must fit."""
    ours, theirs = ({n: t.shape for n, t in m.state_dict().items()} for m in pair)
    assert ours == theirs
    assert [n for n, _ in pair[0].named_parameters()] == [n for n, _ in pair[1].named_parameters()]


def test_losses_gradients_and_predictions_equal_torchvisions(pair: tuple[FasterRCNN, FasterRCNN]) -> None:
    """A wrong default (thresholds, top n, init of a sampler), anchor or pool shows in a loss or a box."""
    images, targets = pictures()
    losses, grads = [], []
    for model in pair:
        model.train().zero_grad()
        torch.manual_seed(3)
        out = model(images, targets)
        sum(out.values()).backward()
        losses.append(out)
        grads.append([p.grad for p in model.parameters()])
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[0].items():
        torch.testing.assert_close(loss, losses[1][name], atol=1e-5, rtol=1e-5)
    norm = torch.stack([g.norm() for g in grads[1]]).norm()
    difference = torch.stack([(a - b).norm() for a, b in zip(*grads)]).norm()
    assert difference < 1e-4 * norm
    with torch.no_grad():
        found, expected = (model.eval()(images) for model in pair)
    assert sum(len(f["scores"]) for f in expected) > 10
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(ours["scores"], theirs["scores"], atol=1e-5, rtol=0)
        assert torch.equal(ours["labels"], theirs["labels"])


class Blocked(Exception):
    pass


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise Blocked("something asked for the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.mark.parametrize(
    "backbone",
    ["resnet18", "resnet34", "resnet50", "resnet101", "resnet26", "convnext_atto", "efficientnet_b0"],
)
def test_nothing_is_downloaded(backbone: str, no_network: None, tmp_path, monkeypatch) -> None:
    """torchvision's builders and timm fetch weights unless told not to; a cache on the machine hides it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with torch.device("meta"):  # names and shapes without numbers: quick
        build_encoder(EncoderConfig(backbone=backbone))
        build_encoder(EncoderConfig(backbone=backbone, fpn=True))
        for config in (FasterRCNNFPN, MaskRCNNFPN, KeypointRCNNFPN, RetinaNet, FCOS):
            config(backbone=backbone).build(classes=3, mean=MEAN, std=STD)
        if backbone != "efficientnet_b0":  # its last stage does not come off
            MaskRCNNC4(backbone=backbone).build(classes=3, mean=MEAN, std=STD)
    assert not any(tmp_path.rglob("*.*"))


def test_the_block_on_the_network_holds(no_network: None) -> None:
    with pytest.raises(Blocked):
        torchvision.models.resnet18(weights="DEFAULT")


@pytest.mark.parametrize("backbone", ["resnet26", "convnext_atto"])
def test_timm_backbones_train(backbone: str) -> None:
    """Every parameter of a foreign backbone must get a gradient through our pyramid."""
    model = awake(small(backbone=backbone, min_size=64, max_size=64, box_batch_size_per_image=8))
    images, targets = (
        [torch.rand(3, 64, 64)],
        [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}],
    )
    sum(model(images, targets).values()).backward()
    assert silent(model) == []


def frozen_and_training(model: FasterRCNN) -> tuple[set[str], set[str]]:
    """Body modules that hold parameters which do not train, and those that do, by their first name."""
    fixed, trained = set(), set()
    for name, parameter in model.backbone.body.named_parameters():
        (trained if parameter.requires_grad else fixed).add(name.split(".")[0])
    return fixed, trained


@pytest.mark.parametrize(
    ("count", "fixed"),
    [
        (0, set()),
        (1, {"conv1"}),
        (2, {"conv1", "layer1"}),
        (4, {"conv1", "layer1", "layer2", "layer3"}),
        (5, {"conv1", "layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_frozen_stages_of_a_resnet(count: int, fixed: set[str]) -> None:
    model = small(frozen_stages=count)
    assert frozen_and_training(model)[0] == fixed
    names = {
        n.split(".")[0] for n, m in model.backbone.body.named_modules() if isinstance(m, FrozenBatchNorm2d)
    }
    assert names == {n.replace("conv1", "bn1") for n in fixed}
    assert all(p.requires_grad for n, p in model.named_parameters() if not n.startswith("backbone.body"))


def test_frozen_stages_of_timm_backbones() -> None:
    """Names differ (stages.0 and stages_0, blocks.1): a wrong cut freezes too little or everything."""
    assert frozen_and_training(small(backbone="convnext_atto", frozen_stages=2)) == (
        {"stem_0", "stem_1", "stages_0"},
        {"stages_1", "stages_2", "stages_3"},
    )
    model = small(backbone="efficientnet_b0", frozen_stages=2)
    fixed = {
        ".".join(n.split(".")[:2]) for n, p in model.backbone.body.named_parameters() if not p.requires_grad
    }
    assert fixed == {"conv_stem.weight", "blocks.0", "blocks.1"}
    assert (
        next(n for n, m in model.backbone.body.named_modules() if isinstance(m, nn.BatchNorm2d))
        == "blocks.2.0.bn1"
    )


def running(model: FasterRCNN) -> dict[str, torch.Tensor]:
    return {n: b.clone() for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))}


@pytest.mark.parametrize(("norm", "stages"), [("bn", 0), ("sync", 0), ("bn", 2), ("frozen", 0)])
def test_which_norms_use_running_statistics_in_training(norm: str, stages: int) -> None:
    """Statistics that move where they should stand, or the other way round, or constant norms that train."""
    torch.manual_seed(0)
    model = small(norm=norm, frozen_stages=stages, min_size=96).train()
    before = running(model)
    images, targets = pictures()
    sum(model(images, targets).values()).backward()
    stood = {n for n, b in running(model).items() if torch.equal(b, before[n])}
    body = {n for n in before if n.startswith("backbone.body.")}
    expected = (
        body if norm == "frozen" else {n for n in body if stages and ("body.bn1." in n or "layer1." in n)}
    )
    assert stood == expected
    trains = {n.rpartition(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trains.isdisjoint({n.rpartition(".")[0] for n in expected})


def test_a_frozen_norm_computes_with_the_statistics_it_was_given(tmp_path) -> None:
    """Statistics, scale and shift loaded after building must be what the constant norm uses."""
    torch.manual_seed(0)
    source = build_encoder(EncoderConfig(backbone="resnet18"))
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    save_weights(tmp_path, {"backbone": source.body}, {})
    model = small(norm="frozen").train()
    load_weights(tmp_path).into(model.parts()).require(["backbone"])
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.eval()(image)["c5"]
        found = model.backbone.body(image)[-1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_frozen_norms_need_batch_norm() -> None:
    with pytest.raises(ValueError, match="none; choose norm: bn"):
        small(backbone="convnext_atto", norm="frozen")


def test_pretrained_backbone_fpn_and_head_arrive_whole(tmp_path) -> None:
    """One missed prefix, and that part of the detector starts from random weights."""
    torch.manual_seed(1)
    encoder = build_encoder(EncoderConfig(backbone="resnet18", fpn=True, fpn_channels=32))
    head = box_head(32)
    save_weights(tmp_path, {"backbone": encoder.body, "fpn": encoder.fpn, "head": head}, {"mean": [0.5] * 3})
    weights = load_weights(tmp_path)
    model = FasterRCNNFPN(**SMALL).build(classes=2, mean=weights.mean, std=weights.std)
    report = weights.into(model.parts())
    report.require()
    assert report.share == 1 and report.promised == ("backbone", "fpn", "head")
    state = model.state_dict()
    for prefix, module in (
        ("backbone.body", encoder.body),
        ("backbone.fpn", encoder.fpn),
        ("roi_heads.box_head", head),
    ):
        for name, tensor in module.state_dict().items():
            assert torch.equal(state[f"{prefix}.{name}"], tensor), name
    assert model.transform.image_mean == [0.5] * 3 and model.transform.image_std == [*STD]


@pytest.mark.parametrize(
    ("size", "anchors", "canonical"),
    [
        (800, 32, 224),
        (600, 32, 224),
        (400, 16, 112),
        (224, 8, 56),
        (128, 8, 56),
        (64, 8, 56),
        (1333, 32, 224),
    ],
)
def test_anchors_follow_the_image_size(size: int, anchors: int, canonical: int) -> None:
    config = FasterRCNNFPN(min_size=size, max_size=2000)
    assert config.anchors() == tuple(anchors << i for i in range(5)) and config.canonical() == canonical
    told = FasterRCNNFPN(min_size=size, max_size=2000, anchor_sizes=(4, 8, 20, 40, 90), roi_canonical_size=77)
    assert told.anchors() == (4, 8, 20, 40, 90) and told.canonical() == 77


def test_settings_reach_the_model() -> None:
    """A setting that is dropped on the way changes nothing and nobody notices."""
    model = small(
        min_size=128,
        sampling_ratio=3,
        rpn_pre_nms_train=11,
        rpn_pre_nms_test=12,
        rpn_post_nms_train=13,
        rpn_post_nms_test=14,
        rpn_nms_threshold=0.15,
        rpn_batch_size_per_image=16,
        box_batch_size_per_image=17,
        box_positive_fraction=0.18,
        score_threshold=0.19,
        nms_threshold=0.21,
        detections_per_image=22,
    )
    rpn, heads = model.rpn, model.roi_heads
    assert (rpn._pre_nms_top_n, rpn._post_nms_top_n) == (
        {"training": 11, "testing": 12},
        {"training": 13, "testing": 14},
    )
    assert (rpn.nms_thresh, rpn.fg_bg_sampler.batch_size_per_image) == (0.15, 16)
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (17, 0.18)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.19, 0.21, 22)
    assert (heads.box_roi_pool.sampling_ratio, heads.box_roi_pool.aligned) == (3, True)
    assert heads.box_roi_pool.canonical_size == 56
    assert heads.box_predictor.cls_score.out_features == 3


def test_boxes_stay_exact_in_bfloat16() -> None:
    """torchvision rounds anchors and boxes to bfloat16 under autocast: up to 2 px at 600 px."""
    torch.manual_seed(0)
    model = small(fpn_channels=8, min_size=600, max_size=640, rpn_post_nms_test=5).eval()
    images = torchvision.models.detection.image_list.ImageList(torch.rand(1, 3, 608, 640), [(600, 640)])
    anchors, dtypes = [], []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            maps = model.backbone(images.tensors)
            anchors.append(model.rpn.anchor_generator(images, [*maps.values()])[0])
            proposals, _ = model.rpn(images, maps)
            found, _ = model.roi_heads(maps, proposals, images.image_sizes)
            dtypes += [proposals[0].dtype, found[0]["boxes"].dtype, found[0]["scores"].dtype]
    assert maps["0"].dtype == torch.bfloat16
    assert torch.equal(*anchors) and dtypes == [torch.float32] * 6


def test_problems_are_named() -> None:
    bad = FasterRCNNFPN(frozen_stages=6, min_size=900, max_size=800, flip=1.5)
    keys = {line.split(":")[0] for line in bad.problems(pretrained=True)}
    assert keys == {"detector.frozen_stages", "detector.min_size", "detector.flip"}
    bad = FasterRCNNFPN(box_batch_size_per_image=0, train_sizes=(640, 2000), roi_canonical_size=-5)
    keys = {line.split(":")[0].split(",")[0] for line in bad.problems(pretrained=True)}
    assert keys == {"detector.box_batch_size_per_image", "detector.train_sizes", "detector.anchor_sizes"}
    assert not [*FasterRCNNFPN(frozen_stages=2).problems(pretrained=True)]
    assert "random weights" in next(FasterRCNNFPN(norm="frozen").problems(pretrained=False))
    assert not [*FasterRCNNFPN().problems(pretrained=False)]
