"""InsLoc against the arrays of its official code; test_parity_nn.py has its pools, and gradients of FPN and head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_parity_nn import fill, stage
from torch import Tensor, nn

from boxwise.data.paste import fitted_size, rooms
from boxwise.geometry.anchors import anchor_grid, candidates, near_pairs, survivors
from boxwise.geometry.boxes import iou
from boxwise.geometry.views import View
from boxwise.methods.insloc import Config, compare, push, tap
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.nn.queue import Queue

Golden = dict[str, np.ndarray]
SIDE = 256
"""Of the official composite."""


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def test_anchors(golden) -> None:
    """Breaks when an anchor moves, changes size or place in the order."""
    a = golden("insloc_anchors")
    ours = anchor_grid() * SIDE
    torch.testing.assert_close(ours, tensor(a["anchors"]), rtol=0, atol=1e-4)
    exact = ours.double()
    stats = torch.stack([exact.sum(0), exact.square().sum(0), exact.amin(0), exact.amax(0)])
    torch.testing.assert_close(stats, tensor(a["statistics"]), rtol=1e-6, atol=1e-2)


def test_trap_03_candidates_are_the_official_ones(golden) -> None:
    """Breaks when the IoU counts a pixel more, half is enough, or anchors outside the view are left out."""
    a = golden("insloc_anchors")
    grid, boxes = anchor_grid() * SIDE, tensor(a["boxes"])[:, None]
    first = iou(boxes[: len(a["iou_first_boxes"]), 0], grid)
    torch.testing.assert_close(first, tensor(a["iou_first_boxes"]), rtol=0, atol=1e-5)
    found = candidates(boxes, grid)
    either = {(int(box), int(anchor)) for box, anchor in a["near_half"]}
    for i, want in enumerate(per_box(a["candidate_index"], a["candidate_count"])):
        if len(want):
            ours = set(found[i].nonzero()[:, 0].tolist())
            assert {(i, anchor) for anchor in ours ^ set(want.tolist())} <= either, i
        else:
            assert found[i].sum() == 4000, i


def test_suppression_keeps_the_official_survivors(golden) -> None:
    """Breaks when NEAR, the order by score or the comparison with the kept ones is another."""
    a, pairs = golden("insloc_anchors"), near_pairs()
    lists = per_box(a["candidate_index"], a["candidate_count"])[: len(a["nms_keep_count"])]
    scores = per_box(a["nms_scores"], np.array([len(x) for x in lists]))
    for index, score, want in zip(lists, scores, per_box(a["nms_keep"], a["nms_keep_count"]), strict=True):
        keep = survivors(tensor(index).long()[None], tensor(score)[None], pairs)[0]
        assert keep.nonzero()[:, 0].tolist() == want.tolist()


def per_box(rows: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(counts)[:-1])


def test_trap_01_pasted_size_and_place(golden) -> None:
    """Breaks when the crop is squeezed into its frame, rounded another way, or may touch the last column."""
    a = golden("insloc_paste")
    for w, h, one, two, width, height, right, below in a["rows"].tolist():
        assert fitted_size(w, h, (one, two)) == (width, height)
        assert rooms((width, height), SIDE) == (right, below)


def test_trap_02_a_flip_takes_the_box_along(golden) -> None:
    """Breaks when a composite is mirrored and its box is not, or left and right are not exchanged."""
    a = golden("insloc_paste")
    boxes, count = tensor(a["boxes"]).float()[:, None], len(a["boxes"])
    crop = torch.tensor([0.0, 0, SIDE, SIDE]).expand(count, 4)
    blank = torch.zeros(1, 3, SIDE, SIDE).expand(count, 3, SIDE, SIDE)
    for flip, want in ((False, a["boxes"]), (True, a["boxes_flipped"])):
        view = View(blank, crop, torch.full((count,), flip), boxes)
        assert torch.equal(view.place(boxes)[:, 0], tensor(want).float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_and_queues_over_steps(golden, dtype: torch.dtype) -> None:
    """Breaks when levels share a queue, rows are level-major, keys are queued first, or the pointer runs astray."""
    a = golden("insloc_loss")
    start = tensor(a["queues_start"]).to(dtype).mT  # (levels, K, D)
    levels, length, width = start.shape
    queues = nn.ModuleDict({f"p{i + 2}": Queue(length, width) for i in range(levels)}).to(dtype)
    for queue, keys in zip(queues.values(), start, strict=True):
        queue.keys.copy_(keys)
    steps = sum(name.startswith("q_") for name in a)
    assert steps
    for step in range(steps):
        query = tensor(a[f"q_{step}"]).to(dtype).requires_grad_()
        key = tensor(a[f"k_{step}"]).to(dtype)
        losses = torch.stack([*compare(query, key, queues, temperature=0.2).values()])
        losses.sum().backward()
        push(key, queues)
        loose = 1e-5 if dtype == torch.float32 else 1e-7
        got = losses.detach().double()
        torch.testing.assert_close(got, tensor(a[f"losses_{step}"]), rtol=loose, atol=0)
        want, grad = tensor(a[f"grad_q_{step}"]), query.grad
        assert grad is not None
        floor = (1e-4 if dtype == torch.float32 else 1e-6) * float(want.abs().max())
        torch.testing.assert_close(grad.double(), want, rtol=0, atol=floor)
        assert {int(queue.cursor) for queue in queues.values()} == {int(a[f"queue_ptr_{step}"][0])}
        if f"queues_after_{step}" in a:
            after = tensor(a[f"queues_after_{step}"]).to(dtype).mT
            torch.testing.assert_close(
                torch.stack([q.keys for q in queues.values()]), after, rtol=0, atol=1e-6
            )
    assert any(name.startswith("queues_after_") for name in a)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_trap_16_neck_and_head_as_the_method_builds_them(golden, dtype: torch.dtype) -> None:
    """Breaks when a layer is missing between FPN and embedding, or levels pass the head one by one."""
    a = golden("insloc_neck_head")
    encoder = build_encoder(EncoderConfig(backbone="resnet50", fpn=True))
    assert encoder.fpn is not None
    made = tap(Config(width=a["out"].shape[1]), encoder)
    assert made.box_head is not None
    network = nn.ModuleList([encoder.fpn, made.box_head, made.project])
    fill(network, a)
    network.to(dtype)
    maps = {f"c{i}": stage(a, i).to(dtype) for i in range(2, 6)}
    image, boxes = tensor(a["boxes"][:, 0]).long(), tensor(a["boxes"][:, None, 1:]).to(dtype)
    pyramid = {n.replace("c", "p"): x[image] for n, x in encoder.fpn(maps).items()}  # one box each
    out = made(pyramid, boxes, 4 * a["m2"].shape[-1]).detach().double()
    limit = (1e-6 if dtype == torch.float64 else 1e-3) * float(np.abs(a["out"]).max())
    torch.testing.assert_close(out, tensor(a["out"]).double(), rtol=0, atol=limit)
    unit = nn.functional.normalize(out, dim=-1)
    torch.testing.assert_close(
        unit, tensor(a["unit"]).double(), rtol=0, atol=1e-6 if dtype == torch.float64 else 1e-3
    )
