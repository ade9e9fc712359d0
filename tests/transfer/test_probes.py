"""Linear probes: what they read of frozen features, what of them trains, and how often they are right."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import pretend
from boxwise.data.cut import Crop
from boxwise.transfer.probes.base import Probe, ProbeConfig, Probing
from boxwise.transfer.probes.linear import Linear
from boxwise.transfer.probes.looks import ProbeBatch, Still
from boxwise.transfer.probes.patch_location import PatchLocation
from boxwise.transfer.probes.roi_linear import RoILinear

MEAN, STD = (0.375, 0.5, 0.625), (0.25, 0.1875, 0.3125)
"""The same in every precision."""
SIDE = 72
"""Of views: c5 has 3 cells of 24 pixels, where a stride of 32 would be assumed."""
PROBES: dict[str, ProbeConfig] = {
    "linear": Linear(backbone="test_resnet"),
    "roi_linear": RoILinear(backbone="test_resnet"),
    "patch_location": PatchLocation(backbone="test_resnet"),
}
every_probe = pytest.mark.parametrize("name", PROBES)


def awake(model: nn.Module) -> nn.Module:
    """`model` with norms as training leaves them, of which none is the identity or zero."""
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
    return model


def a_batch(name: str, *, seed: int = 0, classes: int = 9, counts: tuple[int, ...] = (2, 0, 3)) -> ProbeBatch:
    """As many pictures as `counts`; of those that show boxes, one shows none."""
    dice = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (len(counts), 3, 9, 9), generator=dice, dtype=torch.uint8)
    images = F.interpolate(coarse, (SIDE, SIDE))
    boxes, rows = torch.zeros(0, 5), len(counts)
    if name == "roi_linear":
        corners = torch.rand(sum(counts), 2, 2, generator=dice).sort(dim=1).values.flatten(1) * SIDE
        index = torch.tensor([float(i) for i, count in enumerate(counts) for _ in range(count)])
        boxes, rows = torch.cat([index[:, None], corners], dim=1), sum(counts)
    asked = torch.randint(0, classes, (rows,), generator=dice)
    if name == "patch_location":
        asked = torch.arange(9).repeat(len(counts))
    return ProbeBatch(images, asked, boxes, tuple(range(len(counts))))


def build(name: str, *, classes: int = 9, **changes: Any) -> Probe:
    torch.manual_seed(0)
    probe = replace(PROBES[name], **changes).build(classes=classes, mean=MEAN, std=STD)
    awake(probe.reader)
    nn.init.normal_(probe.classifier.weight, std=0.5)
    nn.init.normal_(probe.classifier.bias)
    return probe


def slow_rows(name: str, whole: torchvision.models.ResNet, batch: ProbeBatch) -> Tensor:
    """What each probe reads, of torchvision's whole network, in float64."""
    pictures = []
    for picture in batch.images:
        colours = [(picture[k].double() / 255 - MEAN[k]) / STD[k] for k in range(3)]
        pictures.append(torch.stack(colours))
    c4 = nn.Sequential(*[*whole.children()][:7])(torch.stack(pictures))
    if name == "linear":
        return torch.stack([cells.flatten(1).sum(1) / cells[0].numel() for cells in whole.layer4(c4)])
    if name == "roi_linear":
        c5 = whole.layer4(c4)
        scale = c5.shape[-1] / SIDE
        read = [
            torchvision.ops.roi_align(c5[int(i)][None], [torch.stack(box)[None].double()], 1, scale)[0]
            for i, *box in (row.unbind() for row in batch.boxes)
        ]
        return torch.stack([crop[:, 0, 0] for crop in read])
    crops, step, scale = [], SIDE / 3, c4.shape[-1] / SIDE
    for cells in c4:
        for row in range(3):
            for column in range(3):
                box = [column * step, row * step, (column + 1) * step, (row + 1) * step]
                place = [torch.tensor([box], dtype=torch.float64)]
                crops.append(torchvision.ops.roi_align(cells[None], place, 14, scale, aligned=True))
    return whole.layer4(torch.cat(crops)).flatten(2).sum(2) / 49


def slow_step(
    rows: Tensor, classes: Tensor, weight: Tensor, bias: Tensor
) -> tuple[float, float, Tensor, Tensor]:
    """Cross entropy, the share that is right, and the gradients of weight and bias, row by row."""
    loss, right, of_weight, of_bias = 0.0, 0.0, torch.zeros_like(weight), torch.zeros_like(bias)
    for row, k in zip(rows, classes.tolist()):
        likely = (weight @ row + bias).exp()
        likely = likely / likely.sum()
        loss -= float(likely[k].log()) / len(rows)
        right += float(likely[k] == likely.max()) / len(rows)
        likely[k] -= 1
        of_weight += likely[:, None] * row / len(rows)
        of_bias += likely / len(rows)
    return loss, right, of_weight, of_bias


@every_probe
@pytest.mark.parametrize(("statistics", "normalised"), [("kept", False), ("tracked", True)])
def test_two_steps_equal_slow_ones_of_torchvisions_network(
    name: str, statistics: Literal["kept", "tracked"], normalised: bool
) -> None:
    """Breaks when weights go elsewhere than into what is read; when pictures are normalised, maps or boxes read, or
    rows ordered otherwise; when the loss is no mean over the rows; when statistics of the frozen norms are kept where
    they are to be tracked anew or the other way round; and when the rows' norm is skipped or measures by its batch."""
    probe = build(name, backbone="resnet18", statistics=statistics, normalised=normalised).double()
    whole = awake(torchvision.models.resnet18().double()).train(statistics == "tracked")
    state = {n: t.clone() for n, t in whole.state_dict().items() if not n.startswith("fc.")}
    probe.reader.backbone().load_state_dict(state)  # strict: all names agree
    probe.begin()
    for norm in whole.modules():
        if isinstance(norm, _BatchNorm) and statistics == "tracked":
            norm.running_mean.zero_(), norm.running_var.fill_(1)
    weight, bias = (p.detach().clone() for p in probe.classifier.parameters())
    centre, spread = 0.0, 1.0
    for seed in (1, 2):
        batch = a_batch(name, seed=seed, counts=(2, 0) if name == "patch_location" else (2, 0, 3))
        with torch.no_grad():
            rows = slow_rows(name, whole, batch)
        if normalised:
            centre, spread = 0.9 * centre + 0.1 * rows.mean(0), 0.9 * spread + 0.1 * rows.var(0)
            rows = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
        loss, right, of_weight, of_bias = slow_step(rows, batch.classes, weight, bias)
        probe.train().zero_grad()
        found = probe(batch)
        found["loss"].backward()
        assert found.keys() == {"loss"} and float(found["loss"].detach()) == pytest.approx(loss, rel=1e-5)
        assert float(Probing(probe).figures()["train/top1"]) == pytest.approx(right)
        scale = float(of_weight.abs().max())
        torch.testing.assert_close(probe.classifier.weight.grad, of_weight, rtol=1e-5, atol=1e-5 * scale)
        torch.testing.assert_close(probe.classifier.bias.grad, of_bias, rtol=1e-5, atol=1e-7)
    held = whole.state_dict() if statistics == "tracked" else state
    for key, tensor in probe.reader.backbone().state_dict().items():
        if "num_batches" not in key:
            torch.testing.assert_close(tensor, held[key], rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        rows = slow_rows(name, whole.eval(), batch)
        rows = (rows - centre) / (spread + 1e-5) ** 0.5 if normalised else rows
        torch.testing.assert_close(probe.eval().scores(batch), rows @ weight.T + bias, rtol=1e-4, atol=1e-4)


@every_probe
def test_what_pretrained_weights_go_into_has_torchvisions_names(name: str) -> None:
    """Breaks when the last stage, taken off as a head, is left out, or names of the reader slip in."""
    with torch.device("meta"):
        probe = replace(PROBES[name], backbone="resnet18").build(classes=2, mean=MEAN, std=STD)
        names = torchvision.models.resnet18().state_dict().keys()
    assert probe.reader.backbone().state_dict().keys() == names - {"fc.weight", "fc.bias"}


@every_probe
@pytest.mark.parametrize(("statistics", "normalised"), [("kept", True), ("tracked", False)])
def test_the_classifier_alone_trains(name: str, statistics: str, normalised: bool) -> None:
    """Breaks when the frozen part learns, decays or forgets, or the rows' norm has a scale: a step of a decaying
    optimiser changes nothing but the classifier, and statistics that are to change."""
    probe = build(name, statistics=statistics, normalised=normalised)
    assert {m.training for m in probe.reader.modules()} == {statistics == "tracked"}  # as it is made
    assert {n for n, p in probe.named_parameters() if p.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }
    before = {n: t.clone() for n, t in probe.state_dict().items()}
    probe.train()
    assert {m.training for m in probe.reader.modules()} == {statistics == "tracked"}
    optimiser = torch.optim.SGD(probe.parameters(), lr=0.1, weight_decay=0.1)
    probe(a_batch(name))["loss"].backward()
    optimiser.step()
    changed = {n for n, t in probe.state_dict().items() if not torch.equal(t, before[n])}
    told = {"kept": {"norm"}, "tracked": {"reader"}}[statistics]
    assert {n.partition(".")[0] for n in changed} == {"classifier"} | told
    assert {n.rpartition(".")[2] for n in changed} == {
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert {n for n, p in probe.named_parameters() if p.grad is not None} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert not any(m.training for m in probe.eval().modules())


@every_probe
def test_only_statistics_that_are_to_be_tracked_are_forgotten(name: str) -> None:
    """Breaks when pretrained statistics are forgotten where they are kept, or averaged with new ones elsewhere."""
    kept, tracked = build(name), build(name, statistics="tracked")
    before = copy.deepcopy(kept.state_dict())
    kept.begin(), tracked.begin()
    assert all(torch.equal(t, before[n]) for n, t in kept.state_dict().items())
    norms = [m for m in tracked.reader.modules() if isinstance(m, _BatchNorm)]
    assert len(norms) > 5
    for norm in norms:
        assert not norm.running_mean.any() and (norm.running_var == 1).all() and not norm.num_batches_tracked
        assert norm.weight.std() > 0.1


def test_a_layer_starts_small_and_normal() -> None:
    """Breaks when the layer starts as torch's, uniform in the root of its inputs, where the protocols say N(0, .01)."""
    torch.manual_seed(0)
    layer = Linear(backbone="test_resnet").build(classes=200, mean=MEAN, std=STD).classifier
    weight = layer.weight.detach()
    assert not layer.bias.any() and weight.numel() > 15_000
    assert float(weight.std()) == pytest.approx(0.01, rel=0.03)
    assert abs(float(weight.mean())) < 3e-4
    assert float((weight.abs() > 0.02).float().mean()) == pytest.approx(0.0455, abs=0.01)


@pytest.mark.parametrize("normalised", [False, True])
def test_pictures_without_a_box_ask_nothing_and_teach_nothing(normalised: bool) -> None:
    """Breaks when the mean over no rows is not a number, and the next step with it, or when no row counts as zeros in
    the statistics of rows."""
    probe = build("roi_linear", normalised=normalised).train()
    probe(a_batch("roi_linear"))
    before = copy.deepcopy(probe.state_dict())
    loss = probe(a_batch("roi_linear", counts=(0, 0)))["loss"]
    loss.backward()
    assert float(loss.detach()) == 0 and float(probe.top1) == 0
    assert all(p.grad is not None and not p.grad.any() for p in probe.classifier.parameters())
    assert {n for n, t in probe.state_dict().items() if not torch.equal(t, before[n])} <= {
        "norm.num_batches_tracked"
    }


def test_a_single_box_is_a_batch() -> None:
    """Breaks when one row, whose spread is 0, is refused or no number: normalised it is 0, and the bias is asked."""
    probe = build("roi_linear", normalised=True).train()
    batch = a_batch("roi_linear", counts=(0, 1))
    loss = probe(batch)["loss"]
    loss.backward()
    expected = F.cross_entropy(probe.classifier.bias[None], batch.classes)
    torch.testing.assert_close(loss, expected)
    assert probe.classifier.bias.grad.any() and not probe.classifier.weight.grad.any()
    assert all(t.isfinite().all() for t in probe.state_dict().values())


@every_probe
def test_the_layer_is_exact_where_the_frozen_part_is_not(name: str) -> None:
    """Breaks when autocast rounds the layer or its rows' norm to bfloat16, or leaves the frozen part in float32."""
    probe, batch = build(name, normalised=True).train(), a_batch(name)
    plain = probe.scores(batch)
    with torch.autocast("cpu", torch.bfloat16):
        images = (batch.images / 255 - probe.mean) / probe.std
        read = probe.reader(images, batch.boxes).float()
        scores = probe.scores(batch)
    rows = (read - read.mean(0)) / (read.var(0, correction=0) + 1e-5).sqrt()
    expected = rows @ probe.classifier.weight.T + probe.classifier.bias
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    assert 1e-3 < (scores - plain).abs().max() < 3


@every_probe
@pytest.mark.parametrize(("statistics", "normalised"), [("kept", False), ("tracked", True)])
def test_nothing_waits_for_the_device(
    name: str, statistics: str, normalised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when a step makes a number on the host, or reads one back: on a GPU each makes the host wait."""
    probe, batch = build(name, statistics=statistics, normalised=normalised).train(), a_batch(name)
    with pretend.cuda() as waits:
        there, moved = copy.deepcopy(probe).to("cuda"), batch.to("cuda")
        waits.seen.clear()
        loss = there(moved)["loss"]
        figures = Probing(there).figures()
        assert {loss.device.type, figures["train/top1"].device.type} == {"cuda"} and waits.seen == []
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no meta device
    probe.to("meta")(batch.to("meta"))["loss"].backward()
    assert probe.classifier.weight.grad is not None


@every_probe
def test_what_is_compiled_is_what_is_read(name: str) -> None:
    """Breaks when the encoder is read past its call: run.compile compiles that, and would change nothing."""
    probe, calls = build(name), []
    probe.reader.encoder.register_forward_hook(lambda *_: calls.append(1))
    probe(a_batch(name))
    assert calls == [1]


def test_a_probe_is_a_task_of_the_loop() -> None:
    """Breaks when rows are counted as images, or something of a probe moves without a gradient."""
    probe, batch = build("roi_linear"), a_batch("roi_linear")
    task, before = Probing(probe), copy.deepcopy(probe.state_dict())
    assert task.images(batch) == 3 and torch.equal(
        task.prepare(batch, torch.device("cpu")).boxes, batch.boxes
    )
    task.after_step(0, 10, ok=torch.tensor(1.0))
    assert all(torch.equal(t, before[n]) for n, t in probe.state_dict().items())
    assert not {"mean", "std", "top1"} & before.keys()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Linear(still=Still(size=31, resize=40)), ["probe.still.size: 31 px"]),
        (Linear(still=Still(size=224, resize=223)), ["probe.still.resize: no 224 px can be cut out of 223"]),
        (Linear(still=Still(size=224, resize=223, squeeze=True)), []),
        (Linear(still=Still(size=224, resize=224)), []),
        (Linear(crop=Crop(size=31)), ["probe.crop.size: 31 px"]),
        (Linear(crop=Crop(size=32), still=Still(size=32)), []),
        (Linear(crop=Crop(like=0)), ["probe.crop.like, probe.crop.flip_like"]),
        (PatchLocation(crop=Crop(flip_like=0)), ["probe.crop.like, probe.crop.flip_like"]),
        (RoILinear(crop=Crop(size=320)), ["probe.crop.whole"]),
        (RoILinear(still=Still(size=320, resize=340)), ["probe.still.squeeze"]),
        (RoILinear(still=Still(size=320, resize=340, squeeze=True)), []),
        (
            RoILinear(crop=Crop(size=16, like=1), still=Still(size=16, resize=8)),
            [
                "probe.still.size: 16 px",
                "probe.still.resize: no 16 px",
                "probe.crop.size: 16 px",
                "probe.crop.like",
                "probe.crop.whole",
                "probe.still.squeeze",
            ],
        ),
        *((config(), []) for config in (Linear, RoILinear, PatchLocation)),
    ],
)
def test_what_cannot_be_is_said(config: ProbeConfig, said: list[str]) -> None:
    """Breaks when a setting that hides boxes, or leaves a map without a cell, runs in silence; or when one that can be
    is refused."""
    found = [*config.problems()]
    assert len(found) == len(said)
    assert all(sentence.startswith(start) for sentence, start in zip(found, said))
