"""What one of two ranks does for test_two_rank_methods.py, and what one process does with the joint batch."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from known_objects import composites, with_objects
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from boxwise.data.objects import Objects
from boxwise.geometry.views import Batch, View
from boxwise.methods import detco, image_level, insloc, resim, resim_simsiam, scrl, soco
from boxwise.methods.base import Method, MethodConfig
from boxwise.methods.resim_windows import Windows
from boxwise.nn.joint_norm import synchronise
from boxwise.nn.ranks import rank, world
from encoders import TinyEncoder

IMAGES = 6
SMALL = {"width": 6, "hidden": 10}
PYRAMID = ("p2", "p3", "p4", "p5")
WINDOWS = (  # every cell of every rank is a negative: what a rank keeps to itself is no joint batch
    Windows(level="p4", size=14, stride=9),
    Windows(level="p3", size=9, stride=7),
)
CASES: dict[
    str, tuple[MethodConfig, bool | tuple[str, ...], list[int]]
] = {  # settings, FPN, images that share nothing
    "scrl": (scrl.Config(**SMALL, min_box=16, boxes=3, tries=4), False, [1]),
    "scrl, a rank without boxes": (scrl.Config(**SMALL, min_box=16, boxes=3, tries=4), False, [3, 4, 5]),
    "scrl, no boxes at all": (scrl.Config(**SMALL, min_box=16, boxes=3, tries=4), False, [*range(IMAGES)]),
    "scrl, whitened": (scrl.Config(**SMALL, min_box=16, boxes=3, tries=4, whitened=True), False, [1]),
    "scrl, fpn": (
        scrl.Config(
            **SMALL,
            boxes=3,
            min_box=8,
            tries=4,
            levels=PYRAMID,
            limits=(12, 16, 24),
            pool_size=3,
            aligned=True,
        ),
        True,
        [],
    ),
    "soco": (soco.Config(**SMALL, objects=Objects(count=2), limits=(10, 20, 36), pool_size=3), True, [1]),
    "soco, used levels": (
        soco.Config(**SMALL, objects=Objects(count=2), limits=(10, 20, 36), pool_size=3, statistics="used"),
        True,
        [3, 4, 5],
    ),
    "resim, no norms": (resim.Config(**SMALL, queue=20, windows=WINDOWS), ("p3", "p4"), [1]),
    "resim, masked, no norms": (
        resim.Config(**SMALL, queue=20, windows=WINDOWS, mask_self_overlap=True),
        ("p3", "p4"),
        [3, 4, 5],
    ),
    "resim, simsiam": (
        resim_simsiam.Config(**SMALL, windows=(Windows(level="c4", size=14, stride=9),)),
        False,
        [1],
    ),
    "insloc, no norms": (insloc.Config(**SMALL, queue=20, pool_size=3), True, []),
    "detco, no norms": (detco.Config(**SMALL, queue=20, symmetric_gl=True), False, []),
    "byol": (image_level.BYOLConfig(**SMALL), False, []),
    "byol, joint": (image_level.BYOLConfig(**SMALL, joint=True), False, []),
    "simsiam": (image_level.SimSiamConfig(**SMALL), False, []),
}
OWN_CELLS: dict[str, tuple[MethodConfig, bool | tuple[str, ...], list[int]]] = {
    f"resim, cells of the {whose}, no norms": (
        resim.Config(**SMALL, queue=20, windows=tuple(replace(w, negatives=whose) for w in WINDOWS)),
        ("p3", "p4"),
        [1],
    )
    for whose in ("group", "rank")
}
"""What is no joint batch: negatives are each rank's own. `halves` tells what they are to give."""


def mine(batch: Batch) -> Batch:
    """This rank's images."""

    return part(batch, world(), rank())


def part(batch: Batch, parts: int, turn: int) -> Batch:
    """One of a batch's equal parts."""

    def some(x: Tensor) -> Tensor:
        return x.chunk(parts)[turn]

    views = tuple(
        View(*(None if (x := getattr(v, f.name)) is None else some(x) for f in fields(v)))
        for v in batch.views
    )
    return Batch(views, some(batch.index), {name: some(draw) for name, draw in batch.draws.items()})


def prepared(case: str) -> tuple[Method, Batch]:
    """The method with its norms synchronised, and the joint batch: the same at every call."""
    config, fpn, apart = (CASES | OWN_CELLS)[case]
    torch.manual_seed(0)
    method = config.build(TinyEncoder(6, fpn=fpn))
    if case.endswith("no norms"):  # each rank's own, and shuffled for the keys: no joint batch has them
        without_norms(method)
    with torch.no_grad():
        for p in method.student.parameters():
            p += 0.1 * torch.randn_like(p)
    views = 4 if case.startswith("detco") else 2
    pixels, corners = torch.rand(views, IMAGES, 3, 64, 64), 30 * torch.rand(views, IMAGES, 2)
    corners[1, apart] += 500
    crops, flips = torch.cat([corners, corners + 90], dim=-1), torch.rand(views, IMAGES) < 0.5
    noise = {name: torch.rand(IMAGES, *shape) for name, shape in config.draws().items()}
    made = tuple(View(*parts) for parts in zip(pixels, crops, flips))
    batch = Batch(made, torch.arange(IMAGES), noise)
    if case.startswith("insloc"):
        batch = composites(batch, torch.Generator().manual_seed(1))
    if config.objects is not None:
        batch = with_objects(batch, config.objects, torch.Generator().manual_seed(1), own=True, apart=apart)
    synchronise(method)
    return method, batch


def halves(case: str) -> dict[str, Tensor]:
    """Loss and gradients of ReSim's two halves of the joint batch, each embedded and compared alone.

    Images count the same, and so do windows, of whichever half they are.
    """
    shares = []
    for turn in range(2):
        method, batch = prepared(case)
        half = part(batch, 2, turn)
        windows = {
            w.level: pair.regions.keep.sum() for w, pair in zip(method.config.windows, method.pairs(half))
        }
        shares.append((method, method(half), windows))
    every = {level: sum(share[2][level] for share in shares) for level in shares[0][2]}
    for _, found, windows in shares:
        total = found["image"] / 2
        for level, count in windows.items():
            total = total + found[level] * count / every[level]
        total.backward()
        found["share"] = total.detach()
    grads = [dict(method.named_parameters()) for method, _, _ in shares]
    return {"mean loss": sum(found["share"] for _, found, _ in shares)} | {
        f"gradient of {name}": p.grad + grads[1][name].grad
        for name, p in grads[0].items()
        if p.grad is not None
    }


def step(case: str) -> dict[str, Tensor]:
    """One step: the loss averaged over ranks, gradients, teacher and statistics afterwards."""
    method, batch = prepared(case)
    alone = world() == 1
    forward = method if alone else DistributedDataParallel(method, broadcast_buffers=False)
    loss = forward(mine(batch))["loss"]
    loss.backward()
    method.after_step(0, 10)
    seen = {"mean loss": loss.detach()}
    seen |= {f"gradient of {n}": p.grad for n, p in method.named_parameters() if p.grad is not None}
    seen |= {f"weight {n}": p.detach() for n, p in method.named_parameters() if n.startswith("teacher")}
    kept = ("running", "queue")
    return seen | {f"buffer {n}": b for n, b in method.named_buffers() if any(part in n for part in kept)}


def without_norms(module: nn.Module) -> None:
    """Replaces every BatchNorm inside by nothing."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.Identity())
        without_norms(child)


def work(rank: int, folder: str) -> None:
    """Runs every case on one of two ranks and leaves what it gave in `folder`."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    torch.save({case: step(case) for case in (*CASES, *OWN_CELLS)}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
