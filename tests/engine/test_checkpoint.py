"""Checkpoints are whole or not there, and a damaged one is never the end of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from boxwise.engine import checkpoint
from boxwise.engine.atomic import read_json
from small_files import small_files


def filled(folder: Path, steps: list[int], keep: int = 9) -> None:
    for step in steps:
        checkpoint.save(folder, step, {"step": step, "w": torch.full((2000,), float(step))}, keep=keep)


def test_the_newest_are_kept_and_found_first(tmp_path: Path) -> None:
    filled(tmp_path, [5, 10, 15, 100], keep=2)
    assert [p.name for p in checkpoint.found(tmp_path)] == ["step-00000100.pt", "step-00000015.pt"]
    path, state = checkpoint.newest(tmp_path, pytest.fail)
    assert (path.name, state["step"], float(state["w"].sum())) == ("step-00000100.pt", 100, 200000.0)


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1  # in the middle of the tensor: the file still opens
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda p: p.write_bytes(p.read_bytes()[:-700]),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_text("hello"),
    ],
    ids=["bit", "cut", "empty", "text"],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage) -> None:
    filled(tmp_path, [5, 10])
    damage(tmp_path / "step-00000010.pt")
    said: list[str] = []
    _, state = checkpoint.newest(tmp_path, said.append)
    assert state["step"] == 5 and "step-00000010.pt: damaged" in said[0]
    filled(tmp_path, [7], keep=1)  # the damaged one is not counted among the kept
    assert [p.name for p in checkpoint.found(tmp_path)] == ["step-00000007.pt"]


def test_nothing_readable_is_an_error_but_nothing_at_all_is_a_start(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none", pytest.fail) is None
    filled(tmp_path, [5])
    (tmp_path / "step-00000005.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match="none of 1 checkpoints can be read"):
        checkpoint.newest(tmp_path, lambda text: None)


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: the older checkpoint stays, no half file is found, and the next save cleans up."""
    filled(tmp_path, [5])

    def torn(state: object, file) -> None:
        file.write(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        with pytest.raises(OSError, match="no space"):
            filled(tmp_path, [10])
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005.pt"]
    (tmp_path / "step-00000010.pt.77.tmp").write_bytes(b"left by a killed process")
    filled(tmp_path, [15])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005.pt", "step-00000015.pt"]


def test_a_full_disk_is_told_and_costs_no_earlier_checkpoint(tmp_path: Path) -> None:
    """Breaks when a disk that takes no more ends in torch's traceback, or leaves half a checkpoint."""
    checkpoint.save(tmp_path, 1, {"a": torch.zeros(4)}, keep=2)
    with small_files(100_000), pytest.raises(OSError, match=r"step-00000002\.pt: cannot be written"):
        checkpoint.save(tmp_path, 2, {"a": torch.zeros(100_000)}, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_spoilt_facts_are_named(tmp_path: Path) -> None:
    """Breaks when a run.json that was cut short is told as "Expecting value: line 1"."""
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: cannot be read as JSON"):
        read_json(tmp_path / "run.json")
