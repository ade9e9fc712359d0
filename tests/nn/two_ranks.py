"""What each of two gloo processes computes for test_two_ranks; in a single process, the joint batch."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from boxwise.geometry.views import View
from boxwise.nn.branch import Branch, Tap
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.nn.heads import projector
from boxwise.nn.joint_norm import synchronise
from boxwise.nn.objectives import cosine_distance, info_nce
from boxwise.nn.pools import LevelBySize, Whole
from boxwise.nn.queue import Queue
from boxwise.nn.ranks import gather, rank, row_weight, world
from boxwise.nn.shuffle import Shuffle

Case = Callable[[], Any]
SPLITS = {"even": (4, 4), "uneven": (3, 5), "lone": (7, 1), "none": (8, 0)}
SHAPES = {"1d": (8, 5), "2d": (8, 5, 3, 2)}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mine(x: Tensor, split: tuple[int, int] | None = None) -> Tensor:
    """This rank's rows; all of them in a single process."""
    return x if world() == 1 else x.split(split or len(x) // 2)[rank()]


def norm(shape: str, split: str, *, affine: bool = True, momentum: float | None = 0.1) -> dict[str, Tensor]:
    """Two steps of a norm over data with a large mean: values, gradients, statistics, values in eval mode."""
    build = nn.BatchNorm1d if shape == "1d" else nn.BatchNorm2d
    layer = build(5, affine=affine, momentum=momentum).double()
    if affine:
        layer.weight.data, layer.bias.data = draw(5, seed=1), draw(5, seed=2)
    layer = synchronise(nn.Sequential(layer))
    out = {}
    for step in range(2):
        x = mine(draw(*SHAPES[shape], seed=3 + step) * 3 + 50, SPLITS[split]).requires_grad_()
        y = layer(x)
        (y * mine(draw(*SHAPES[shape], seed=9), SPLITS[split])).sum().backward()
        out |= {f"rows_y{step}": y.detach(), f"rows_grad{step}": x.grad}
    out["rows_eval"] = layer.eval()(mine(draw(*SHAPES[shape], seed=5), SPLITS[split])).detach()
    out |= {f"sum_{name}": p.grad for name, p in layer.named_parameters()}
    return out | {f"same_{name}": b for name, b in layer.named_buffers()}


def gathering() -> dict[str, Tensor]:
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    return {
        "float": gather(torch.arange(6.0).view(3, 2) + 10 * rank()),
        "bool": gather(torch.tensor([True, False, True]) ^ bool(rank())),
        "int": gather(torch.arange(3) + 10 * rank()),
        "image": gather(image),
        "mine": image,
    }


def weights() -> dict[str, Tensor]:
    keeps = {
        "some": torch.tensor([True, False, True, True, False, True, False, False]),
        "one_rank": torch.tensor([True, True, False, True, False, False, False, False]),
        "none": torch.zeros(8, dtype=torch.bool),
    }
    return {name: row_weight(mine(keep)) for name, keep in keeps.items()}


def pushing() -> dict[str, Tensor]:
    torch.manual_seed(0)
    queue = Queue(length=10, width=3)
    for step in range(4):
        queue.push(mine(draw(6, 3, seed=step)).float())
    poisoned = mine(draw(6, 3, seed=9)).float()
    if rank() == world() - 1:
        poisoned[0, 0] = torch.nan
    queue.push(poisoned)
    return dict(queue.state_dict())


def shuffled() -> dict[str, Tensor]:
    """Keys through a norm of each rank's own, maps and regions; and how the images were dealt."""
    joint = View(draw(12, 3, 2, 2, seed=1), draw(12, 4, seed=2), draw(12, seed=3) > 0)
    view = View(mine(joint.image), mine(joint.crop), mine(joint.flip))
    boxes = mine(draw(12, 2, 4, seed=4))
    noise = torch.rand(12, generator=torch.Generator().manual_seed(5))
    layer, seen = nn.BatchNorm2d(3).double(), []

    def embed(view: View, boxes: Any) -> dict[str, Tensor]:
        seen.append(view.crop)
        y = layer(view.image)
        return {"map": y, "flip": view.flip, "box": (boxes + y.mean((1, 2, 3))[:, None, None]).flatten(0, 1)}

    shuffle = Shuffle(mine(noise))
    out = {name: rows.detach() for name, rows in shuffle(embed, view, boxes).items()}
    return out | {"seen": torch.cat(seen), "order": shuffle.order()}


def timm_norm() -> dict[str, Tensor]:
    """A norm that holds its activation, between plain ones."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4), BatchNormAct2d(4, apply_act=False))
    names = list(network.state_dict())
    network = synchronise(network.double())
    assert list(network.state_dict()) == names
    return {"rows_y": network(mine(draw(4, 3, 3, 3, seed=1))).detach()}


def training() -> dict[str, Tensor]:
    """One DDP step of an encoder with an image tap and a region tap, kept rows unlike on the two ranks."""
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(backbone="resnet18", fpn=True, fpn_channels=8))
    taps = {
        "image": Tap(Whole("c5"), projector(512, 16, 6, last_bias=True)),
        "box": Tap(
            LevelBySize({"p2": 8, "p3": 12, "p4": 20, "p5": 32}, 2, aligned=True),
            projector(32, 16, 6, last_bias=False),
        ),
    }
    branch = synchronise(Branch(encoder, taps).double())
    forward = DistributedDataParallel(branch, broadcast_buffers=False) if world() > 1 else branch
    image, corner = draw(4, 3, 32, 32, seed=1), draw(4, 3, 2, seed=2).abs() * 5
    boxes = torch.cat([corner, corner + 4 + draw(4, 3, 2, seed=3).abs() * 9], dim=-1)
    keep = torch.tensor([True, True, False, True, True, True, False, False, False, False, True, False])
    view = View(mine(image), mine(draw(4, 4, seed=4)), torch.zeros(len(mine(image)), dtype=torch.bool))
    out = forward(view, mine(boxes))
    weight, target = row_weight(mine(keep)), mine(draw(12, 6, seed=5))
    losses = {
        "image": info_nce(out["image"], mine(draw(4, 6, seed=6)), draw(9, 6, seed=7), temperature=0.2),
        "box": cosine_distance(out["box"], target, weight),
    }
    sum(losses.values()).backward()
    out = {f"mean_{name}": loss.detach() for name, loss in losses.items()}
    out |= {f"grad_{name}": p.grad for name, p in branch.named_parameters()}
    return out | {f"buffer_{name}": b for name, b in branch.named_buffers() if "running" in name}


CASES: dict[str, Case] = {
    **{f"norm_{s}_{p}": (lambda s=s, p=p: norm(s, p)) for s in SHAPES for p in SPLITS},
    "norm_plain": lambda: norm("1d", "uneven", affine=False, momentum=None),
    "gathering": gathering,
    "weights": weights,
    "pushing": pushing,
    "shuffled": shuffled,
    "timm_norm": timm_norm,
    "training": training,
}


def work(rank: int, folder: str) -> None:
    """Runs all cases on one of two ranks and leaves what they gave in `folder`."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    torch.save({name: case() for name, case in CASES.items()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
