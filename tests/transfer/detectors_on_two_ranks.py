"""What one of two ranks does for test_two_rank_detectors.py, and what one process does with the joint batch.

Two things keep an R-CNN on two ranks from being one on the joint batch: each rank draws anchors and boxes by itself,
and divides by its own counts, as detectron2's do. Here the last ones of each image are drawn, which are its things'
own boxes, and as many of each image: nothing then depends on how images are dealt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from boxwise.data.targets import IGNORED
from boxwise.engine.steps import seed_draws
from boxwise.nn.joint_norm import synchronise
from boxwise.nn.ranks import rank, world
from boxwise.transfer.detectors.base import DetectorConfig
from boxwise.transfer.detectors.c4 import FasterRCNNC4, MaskRCNNC4
from boxwise.transfer.detectors.densepose import DensePoseRCNN
from boxwise.transfer.detectors.fcn16s import FCN16s
from boxwise.transfer.detectors.fcos import FCOS
from boxwise.transfer.detectors.keypoint_rcnn import KeypointRCNNFPN
from boxwise.transfer.detectors.mask_rcnn import MaskRCNNFPN
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN
from boxwise.transfer.detectors.retinanet import RetinaNet
from boxwise.transfer.samples import DetectionBatch
from boxwise.transfer.statistics import remeasured
from boxwise.transfer.task import Detection
from rcnns import discs

SIDE, IMAGES, KEYPOINTS = 64, 4, 3
TINY: dict[str, Any] = {"backbone": "test_resnet", "min_size": SIDE, "max_size": SIDE, "norm": "sync"}
DRAWN: dict[str, Any] = {
    **TINY,
    "rpn_batch_size_per_image": 16,
    "rpn_post_nms_train": 40,
    "box_batch_size_per_image": 8,
}
PYRAMID: dict[str, Any] = {**DRAWN, "fpn_channels": 8}
CASES: dict[str, DetectorConfig] = {
    "faster_rcnn_fpn": FasterRCNNFPN(**PYRAMID, head_extra_norm=True),
    "mask_rcnn_fpn": MaskRCNNFPN(**PYRAMID, head="2fc"),
    "keypoint_rcnn_fpn": KeypointRCNNFPN(**PYRAMID, keypoints=KEYPOINTS, keypoint_channels=8),
    "densepose_rcnn": DensePoseRCNN(**PYRAMID, cells=7, channels=8),
    "faster_rcnn_c4": FasterRCNNC4(**DRAWN),
    "mask_rcnn_c4": MaskRCNNC4(**DRAWN),
    "retinanet": RetinaNet(**TINY, fpn_channels=8),
    "fcos": FCOS(**TINY, fpn_channels=32, center_radius=1.5),
    "fcos, frozen": FCOS(**(TINY | {"norm": "frozen"}), fpn_channels=32, fpn_norm="none", frozen_stages=2),
    "fcn16s": FCN16s(**TINY, width=8),
}
STATISTICS = {"own": ((0,), (1, 2)), "joint": ((0, 1), (0, 1))}
"""Numbers of the batches that each rank measures norms on: norms of its own, and of both ranks together."""


def joint(*, seed: int = 0, empty: Sequence[int] = ()) -> DetectionBatch:
    """Two or three things an image, and everything that can be known of them; nothing on `empty` images."""
    torch.manual_seed(seed)
    images = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8)
    boxes, extras = [], [dict[str, Tensor]() for _ in range(IMAGES)]
    for i, extra in enumerate(extras):
        corner = torch.tensor([[4.0, 6], [28, 18], [20, 2]])[: 0 if i in empty else 2 + i % 2] + i
        box = torch.cat([corner, corner + torch.tensor([[22.0, 30], [30, 40], [36, 28]])[: len(corner)]], 1)
        places = box[:, None, :2] + torch.rand(len(box), 6, 2) * (box[:, None, 2:] - box[:, None, :2])
        row = torch.arange(float(len(box)))[:, None, None].expand(-1, 6, 1)
        rest = torch.rand(len(box), 6, 2)
        boxes.append(box)
        extra["masks"] = discs(box, (SIDE, SIDE))
        extra["keypoints"] = torch.cat([places[:, :KEYPOINTS], torch.full((len(box), KEYPOINTS, 1), 2.0)], -1)
        extra["dp_points"] = torch.cat([row, places, 1.0 + row, rest], -1).flatten(0, 1)
        extra["dp_boxes"], extra["dp_body"] = box, (torch.rand(len(box), 256, 256) < 0.5).to(torch.uint8)
        extra["semantic"] = extra["masks"].sum(0).clamp(max=2).to(torch.uint8)
        extra["semantic"][: 9 * i] = IGNORED  # known pixels of the ranks differ
    return DetectionBatch(
        images=images,
        sizes=((SIDE, SIDE),) * IMAGES,
        boxes=torch.cat(boxes),
        labels=torch.cat([torch.arange(len(box)) % 2 + 1 for box in boxes]),
        counts=tuple(len(box) for box in boxes),
        index=tuple(range(IMAGES)),
        sources=((SIDE, SIDE),) * IMAGES,
        extras={name: tuple(extra[name] for extra in extras) for name in extras[0]},
    )


def mine(batch: DetectionBatch) -> DetectionBatch:
    """This rank's images; all of them in a single process."""
    part = slice(rank() * IMAGES // world(), (rank() + 1) * IMAGES // world())
    targets = batch.targets()[part]
    return DetectionBatch(
        images=batch.images[part],
        sizes=batch.sizes[part],
        boxes=torch.cat([t["boxes"] for t in targets]),
        labels=torch.cat([t["labels"] for t in targets]),
        counts=batch.counts[part],
        index=batch.index[part],
        sources=batch.sources[part],
        extras={name: rows[part] for name, rows in batch.extras.items()},
    )


@contextmanager
def last_drawn() -> Iterator[None]:
    """torchvision's sampler takes the last anchors and boxes instead of any."""
    with mock.patch.object(torch, "randperm", lambda count, **_: torch.arange(count).flip(0)):
        yield


def built(case: str, *, sync: bool = True) -> tuple[Detection, nn.Module]:
    """A detector and what its batches go through, in training."""
    torch.manual_seed(0)
    module = Detection(CASES[case].build(classes=3, mean=(0.5,) * 3, std=(0.25,) * 3)).train()
    for name, tensor in module.state_dict().items():
        if tensor.dim() == 1 and name.endswith("weight"):  # timm's blocks start as the identity
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() == 1 and name.endswith(
            "bias"
        ):  # what a GroupNorm gives of one cell: 0 is ReLU's edge
            tensor.add_(torch.rand_like(tensor), alpha=0.1)
    if sync and CASES[case].norm == "sync":
        synchronise(module)
    return module, DistributedDataParallel(module, broadcast_buffers=False) if world() > 1 else module


def step(case: str) -> dict[str, Tensor]:
    """Losses, gradients and statistics of one step on the joint batch."""
    module, forward = built(case)
    with last_drawn():
        losses = forward(mine(joint()))
    losses["loss"].backward()
    seen = {f"mean {name}": loss.detach() for name, loss in losses.items()}
    seen |= {f"gradient of {n}": few(p.grad) for n, p in module.named_parameters() if p.requires_grad}
    return seen | {f"statistic {n}": few(b) for n, b in module.named_buffers() if "running" in n}


def lopsided(case: str) -> dict[str, Any]:
    """Two steps of the descent where the last rank's images show nothing, boxes drawn as in a run."""
    module, forward = built(case)
    descent = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.01)
    seen: dict[str, Any] = {}
    for number in range(2):
        seed_draws(0, number, 0, rank(), device=torch.device("cpu"))
        descent.zero_grad()
        losses = forward(mine(joint(seed=number, empty=(2, 3))))
        losses["loss"].backward()
        descent.step()
        seen |= {f"{name} {number}": loss.detach() for name, loss in losses.items()}
    seen["silent"] = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    return seen | {f"weight {n}": few(p.detach()) for n, p in module.named_parameters()}


def statistics(norms: str) -> dict[str, Tensor]:
    """Statistics measured anew on the batches of both ranks; batch 0 shows nothing, so that no mask is read there."""
    module, _ = built("mask_rcnn_fpn", sync=norms == "joint")
    shares = STATISTICS[norms]
    if norms == "own":  # no joint batch: one process meets all of them one by one
        numbers = shares[rank()] if world() > 1 else [n for share in shares for n in share]
        given = [halved(number) for number in numbers]
    else:
        given = [mine(joint(seed=number)) for number in shares[rank()]]
    with last_drawn():
        count = remeasured(module, given)
    seen = {n: b for n, b in module.named_buffers() if "running" in n or "tracked" in n}
    return seen | {"norms": torch.tensor(count)}


def halved(number: int) -> DetectionBatch:
    """Two images."""
    batch = joint(seed=number, empty=(0, 1, 2, 3) if number == 0 else ())
    with mock.patch(f"{__name__}.rank", lambda: 0), mock.patch(f"{__name__}.world", lambda: 2):
        return mine(batch)


def few(tensor: Tensor | None) -> Tensor:
    """Some numbers of `tensor` and its norm; those of all detectors would fill gigabytes."""
    assert tensor is not None
    flat = tensor.flatten()
    return torch.cat([flat[:: max(1, len(flat) // 40)], flat.norm()[None]])


def work(rank: int, folder: str) -> None:
    """Runs every case on one of two ranks and leaves what it gave in `folder`."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found = {
        "step": {case: step(case) for case in CASES},
        "lopsided": {case: lopsided(case) for case in CASES},
        "statistics": {norms: statistics(norms) for norms in STATISTICS},
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
