"""Every method's own state survives `kill -9`: queues, teachers, boxes of its images, all to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from killed import start
from tiny import facts, flags, photos, rows, settings

from boxwise.engine import checkpoint
from processes import kill, until

STEPS = 4
HELD = {
    "insloc": ("teacher", "queues.p2", "queues.p5"),
    "soco": ("teacher", "predictor"),
    "detco": ("teacher", "queues.global_c2", "queues.local_c5"),
    "resim": ("teacher", "queue"),
    "simsiam": ("predictor",),  # its rate stays while the others' falls
}
"""Besides the student; scrl and mocov2 are killed more often in test_resume.py."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("images"), 14)


def logged(run: Path) -> int:
    """Steps that the run has written down."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.parametrize("recipe", HELD)
def test_kill_9_costs_no_method_a_bit(recipe: str, images: Path, tmp_path: Path) -> None:
    """Breaks when a method keeps something of its past steps that no checkpoint holds."""
    calm, out, log = tmp_path / "calm", tmp_path / "run", tmp_path / "log"
    given: dict[str, Any] = settings(recipe, steps=STEPS, **{"run.save_every": 2})
    words = ["pretrain", recipe, "--data", str(images), *flags(given), "--out"]
    undisturbed = start([*words, str(calm)], log)
    undisturbed.join()

    process = start([*words, str(out)], log)
    until(lambda: logged(out) > 2, process)
    kill(process)  # two steps are saved, a third is lost
    assert facts(out)["status"] == "running" and len(checkpoint.found(out / "checkpoints")) > 0
    last = start([*words, str(out), "--resume"], log)
    last.join()

    assert undisturbed.exitcode == last.exitcode == 0, log.read_text()[-3000:]
    assert facts(out)["status"] == "finished"
    ours, theirs = (checkpoint.load(run / "checkpoints" / f"step-{STEPS:08d}.pt") for run in (out, calm))
    assert ours["module"].keys() == theirs["module"].keys()
    for part in HELD[recipe]:
        assert any(name.startswith(f"{part}.") for name in theirs["module"]), part
    for name, tensor in theirs["module"].items():
        assert torch.equal(ours["module"][name], tensor), name
    for i, state in theirs["optimiser"]["state"].items():
        assert torch.equal(ours["optimiser"]["state"][i]["momentum_buffer"], state["momentum_buffer"])
    kept = [
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows(run)]
        for run in (out, calm)
    ]
    assert kept[0] == kept[1] and [row["step"] for row in kept[0]] == [*range(1, STEPS + 1)]
    exported = [(run / "export" / "model.safetensors").read_bytes() for run in (out, calm)]
    assert exported[0] == exported[1]
