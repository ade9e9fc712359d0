"""Whole fine-tunings and probes on two CPU processes (gloo), as torchrun starts them."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import DETECTOR, RUN, facts, rows

from boxwise.engine.checkpoint import load
from boxwise.run.scenes import scenes
from processes import as_torchrun, finished, free_port

TOLD: dict[str, Any] = {
    **DETECTOR,
    "detector.norm": "sync",
    "detector.score_threshold": 0.0,
    "detector.detections_per_image": 5,
    "measure.precise_bn": 2,
}
ASKED: dict[str, Any] = {
    **RUN,
    "probe.normalised": True,
    "probe.statistics": "tracked",
    "lr": 1.0,
}
"""Of a probe: norms of the frozen part and of its rows alike go by the batch."""
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["boxwise.run.finetune", "timm", "lightning_fabric", "torch.utils.tensorboard"]
)


def run(recipe: str, data: Path, out: Path, number: int, world: int, port: int) -> None:
    """One process of a run, in float64."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    if world > 1:
        as_torchrun(number, world, port)
    from boxwise.run.finetune import finetune
    from boxwise.run.probe import probe

    with out.with_suffix(f".{number}.log").open("w") as log, contextlib.redirect_stderr(log):
        if recipe == "roi_linear":
            probe(recipe, data, out, settings=ASKED)
        else:
            finetune(recipe, data, out, settings=TOLD)


def train(recipe: str, data: Path, out: Path, *, world: int) -> Path:
    port = free_port()
    ranks = [
        context.Process(target=run, args=(recipe, data, out, number, world, port)) for number in range(world)
    ]
    finished(ranks, out)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("data") / "coco", count=8, val=2, size=64)


def exported(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "export" / "model.safetensors")


def test_two_ranks_end_where_one_process_does(data: Path, tmp_path: Path) -> None:
    """Breaks when ranks read other images than one process would, or norms are measured anew on one rank's alone."""
    one, two = (train("retinanet", data, tmp_path / name, world=n) for name, n in (("one", 1), ("two", 2)))
    alone, joint = exported(one), exported(two)
    assert alone.keys() == joint.keys() and facts(two)["status"] == "finished"
    for name, want in alone.items():
        if name.endswith("num_batches_tracked"):
            assert (int(want), int(joint[name])) == (2, 4)
        else:
            torch.testing.assert_close(joint[name], want, rtol=1e-7, atol=1e-9, msg=name)
    for a, b in zip(rows(one), rows(two), strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-6)
    figures = [json.loads((out / "results.json").read_text()) for out in (one, two)]
    assert figures[0]["AP"] == pytest.approx(figures[1]["AP"], abs=1e-3) and figures[1]["images"] == 2


def test_a_probe_of_two_ranks_is_one_process(data: Path, tmp_path: Path) -> None:
    """Ranks hold different numbers of boxes. Breaks when each takes its own mean, or its own rows' statistics."""
    one, two = (train("roi_linear", data, tmp_path / name, world=n) for name, n in (("one", 1), ("two", 2)))
    states = [load(out / "checkpoints" / "step-00000002.pt")["module"] for out in (one, two)]
    assert states[0].keys() == states[1].keys()
    for name, want in states[0].items():
        torch.testing.assert_close(states[1][name], want, rtol=1e-7, atol=1e-9, msg=name)
    for a, b in zip(rows(one), rows(two), strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-6)
        assert a["train/top1"] == pytest.approx(b["train/top1"], rel=1e-6)
    figures = [json.loads((out / "results.json").read_text()) for out in (one, two)]
    assert figures[0]["top1"] == figures[1]["top1"] and figures[1]["images"] == 2


def test_an_r_cnn_of_two_ranks_trains_and_is_measured(data: Path, tmp_path: Path) -> None:
    """Its ranks draw boxes by themselves: no process alone equals them. Breaks when one waits for the other."""
    out = train("mask_rcnn_fpn", data, tmp_path / "two", world=2)
    assert all(tensor.isfinite().all() for tensor in exported(out).values())
    assert [row["step"] for row in rows(out)] == [1, 2] and facts(out)["status"] == "finished"
    results = json.loads((out / "results.json").read_text())
    assert {"AP", "mask_AP"} <= results.keys()
    assert "norms measured anew on 2 batches" in (out / "train.log").read_text()
