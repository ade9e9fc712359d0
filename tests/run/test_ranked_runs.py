"""Whole runs on two CPU processes (gloo), as torchrun starts them, against one with the joint batch, in float64.

The methods with queues are exempt: their queries' BatchNorm is each rank's own and their keys are shuffled over other
groups, by design, and InsLoc's backgrounds come from the images that a rank reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import facts, photos, rows, settings

from boxwise.engine import checkpoint
from boxwise.strict import load_yaml
from processes import as_torchrun, finished, free_port

SYNCHRONISED = ("scrl", "scrl_fpn", "byol", "simsiam", "soco", "resim_simsiam_r50_c4_in100_500ep")
QUEUES = {"mocov2": 1, "insloc": 4, "detco": 8, "resim": 1}
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["boxwise.cli", "boxwise.run.pretrain", "timm", "lightning_fabric", "torch.utils.tensorboard"]
)


def run(
    recipe: str, data: Path, out: Path, number: int, world: int, port: int, double: bool, steps: int
) -> None:
    """One process of a run; images are turned to float64 where they enter the method."""
    torch.set_num_threads(1)
    if world > 1:
        as_torchrun(number, world, port)
    from boxwise.run import pretrain as verb

    if double:
        torch.set_default_dtype(torch.float64)
        verb.Pretraining.prepare = in_double  # type: ignore[method-assign]
    given = settings(recipe, batch_size=8, steps=steps, **{"run.save_every": 1, "run.keep": 2})
    given |= {"optim.weight_decay": 0.0, "schedule.warmup_epochs": 0.0}
    with out.with_suffix(f".{number}.log").open("w") as log, contextlib.redirect_stderr(log):
        verb.pretrain(recipe, data, out, settings=given)


def in_double(self: Any, load: Any, device: torch.device) -> Any:
    batch = load.ready(device)
    views = [dataclasses.replace(v, image=v.image.double(), crop=v.crop.double()) for v in batch.views]
    draws = {name: numbers.double() for name, numbers in batch.draws.items()}
    return dataclasses.replace(batch, views=tuple(views), draws=draws)


def train(recipe: str, data: Path, out: Path, *, world: int, double: bool = True, steps: int = 2) -> None:
    port = free_port()
    ranks = [
        context.Process(target=run, args=(recipe, data, out, number, world, port, double, steps))
        for number in range(world)
    ]
    finished(ranks, out)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("data"), 20)


@pytest.mark.parametrize("recipe", SYNCHRONISED)
def test_two_ranks_train_on_the_joint_batch(recipe: str, data: Path, tmp_path: Path) -> None:
    """Breaks when ranks read other images or draws than one process would, or see half a batch in loss or norms."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(recipe, data, one, world=1)
    train(recipe, data, two, world=2)
    for step in (1, 2):
        alone, joint = (checkpoint.load(p / "checkpoints" / f"step-{step:08d}.pt") for p in (one, two))
        assert (alone["world"], joint["world"]) == (1, 2)
        assert alone["module"].keys() == joint["module"].keys()
        for name, want in alone["module"].items():
            torch.testing.assert_close(
                joint["module"][name], want, rtol=1e-7, atol=1e-9, msg=f"{step} {name}"
            )
        # With a fresh optimiser, no decay and no warm-up this is the gradient, or for LARS a multiple of it.
        moved = [
            (a["momentum_buffer"], b["momentum_buffer"])
            for a, b in zip(alone["optimiser"]["state"].values(), joint["optimiser"]["state"].values())
        ]
        assert len(moved) > 20 and any(bool(want.abs().max() > 0) for want, _ in moved)
        floor = 1e-9 * max(float(want.abs().max()) for want, _ in moved)  # biases before a norm get noise
        for want, have in moved:
            assert want.dtype == torch.float64
            torch.testing.assert_close(have, want, rtol=1e-6, atol=floor)
    for a, b in zip(rows(one), rows(two), strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-6)  # figures are float32
        assert a["train/grad_norm"] == pytest.approx(b["train/grad_norm"], rel=1e-6)
    asked = load_yaml(two / "config.yaml")["run"]
    assert (asked["devices"], asked["nodes"], facts(two)["status"]) == (2, 1, "finished")


@pytest.mark.parametrize("recipe", QUEUES)
def test_methods_with_queues_run_on_two_ranks_and_fill_each_alike(
    recipe: str, data: Path, tmp_path: Path
) -> None:
    """Breaks when a queue misses the keys of a rank: 2 steps of 8 fill its 12 places."""
    out = tmp_path / "two"
    train(recipe, data, out, world=2, double=False)
    before, after = (
        {name: keys for name, keys in checkpoint.load(file)["module"].items() if name.endswith(".keys")}
        for file in (out / "checkpoints" / f"step-{step:08d}.pt" for step in (1, 2))
    )
    assert len(after) == QUEUES[recipe] and facts(out)["status"] == "finished"
    for name, keys in after.items():
        changed = (before[name] != keys).any(dim=1)
        assert changed.nonzero()[:, 0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11], name
        torch.testing.assert_close(keys.norm(dim=1), torch.ones(12))
    assert all(math.isfinite(row["train/loss"]) for row in rows(out))


def test_both_ranks_list_their_bad_images_once(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", 40)
    for i in (8, 9):
        next(data.rglob(f"{i:03d}.png")).write_bytes(b"")
    out = tmp_path / "two"
    train("byol", data, out, world=2, double=False, steps=5)  # one pass over all
    names = [line.split("\t")[1] for line in (out / "bad_images.txt").read_text().splitlines()]
    assert sorted(names) == ["008.png", "deeper/009.png"] and facts(out)["bad_images"] == 2
