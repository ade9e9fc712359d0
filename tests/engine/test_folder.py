"""Who may enter a run folder, and what it remembers."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toy_task import open_folder

from boxwise.engine.guard import Diverged

CONFIG = "name: toy\noptim:\n  name: sgd\n  lr: 0.3\nrun: {save_every: 5}\nviews: [{size: 96}]\n"


def facts(path: Path) -> dict[str, Any]:
    return json.loads((path / "run.json").read_text())


def test_a_run_tells_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    with open_folder(path, config=CONFIG) as folder:
        assert facts(path)["status"] == "running"
        folder.mark(7)
    told = facts(path)
    assert (path / "config.yaml").read_text() == CONFIG
    assert told["status"] == "finished" and told["kind"] == "toy" and told["recipe"] == "toy"
    assert told["seed"] == 0 and told["data"] == {"images": 40, "fingerprint": "f"} and told["step"] == 7
    assert told["command"] == sys.argv and told["versions"]["python"].startswith("3.")
    assert {"torch", "boxwise", "lightning-fabric"} <= told["versions"].keys() and told["hardware"][
        "cores"
    ] >= 1
    assert told["started"] <= told["ended"] and told["seconds"] >= 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SystemExit(143), "interrupted"),
        (SystemExit(130), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (Diverged("step 3: loss term far is nan"), "diverged"),
        (OSError("disk"), "failed"),
        (SystemExit(0), "finished"),
    ],
)
def test_the_status_says_how_it_ended(tmp_path: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), open_folder(tmp_path):
        raise error
    assert facts(tmp_path)["status"] == status
    assert (status == "finished") == ("error" not in facts(tmp_path))
    assert not (tmp_path / ".lock").exists()


def test_names_that_are_no_text_are_written(tmp_path: Path) -> None:
    """Breaks when one image whose name is Latin-1 ends a run: its bytes stay in lists, and are spelt out in the log."""
    name = os.fsdecode(b"caf\xe9.jpg")
    with open_folder(tmp_path / "run") as folder:
        folder.write("labelled.txt", f"{name}\n")
        folder.tell(f"skipped {name}")
    assert (tmp_path / "run" / "labelled.txt").read_bytes() == b"caf\xe9.jpg\n"
    assert r"skipped caf\udce9.jpg" in (tmp_path / "run" / "train.log").read_text()


def test_a_folder_that_is_not_empty_is_refused_with_the_mend(tmp_path: Path) -> None:
    with open_folder(tmp_path / "a"):
        pass
    with pytest.raises(ValueError, match=r"not empty \(config.yaml, run.json, train.log\); pass --resume"):
        open_folder(tmp_path / "a")
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "me.jpg").write_bytes(b"dear")
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ValueError, match="not a run of boxwise"):
            open_folder(foreign, **flags)
    assert [p.name for p in foreign.iterdir()] == ["me.jpg"]
    with pytest.raises(ValueError, match="is a file"):
        open_folder(foreign / "me.jpg")
    with pytest.raises(ValueError, match="choose one"):
        open_folder(tmp_path / "b", resume=True, overwrite=True)


def test_overwrite_empties_and_resume_keeps(tmp_path: Path) -> None:
    with open_folder(tmp_path):
        (tmp_path / "figures").mkdir()
        (tmp_path / "figures" / "views.png").write_bytes(b"x")
    started = facts(tmp_path)["started"]
    with open_folder(tmp_path, resume=True):
        assert (tmp_path / "figures" / "views.png").exists()
        told = facts(tmp_path)
        assert told["started"] == started and len(told["resumed"]) == 1 and "ended" not in told
    with open_folder(tmp_path, overwrite=True):
        assert not (tmp_path / "figures").exists() and "resumed" not in facts(tmp_path)


def test_a_resume_of_nothing_is_a_start(tmp_path: Path) -> None:
    """A run that was killed before it had written run.json, or that was always started with --resume."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "run.json.7.tmp").write_text("{")
    with open_folder(tmp_path, resume=True):
        assert facts(tmp_path)["status"] == "running" and "resumed" not in facts(tmp_path)


def test_what_changed_is_listed_and_refused(tmp_path: Path) -> None:
    with open_folder(tmp_path, config=CONFIG):
        pass
    changed = CONFIG.replace("0.3", "0.4").replace("save_every: 5", "save_every: 9").replace("96", "128")
    data = {"images": 41, "fingerprint": "g"}
    with pytest.raises(ValueError, match="--allow-drift") as refused:
        open_folder(tmp_path, config=changed, data=data, resume=True)
    listed = [line.strip() for line in str(refused.value).splitlines()[1:]]
    assert listed == [
        "data set.fingerprint: f -> g",
        "data set.images: 40 -> 41",
        "optim.lr: 0.3 -> 0.4",
        "views.0.size: 96 -> 128",
    ]
    assert (tmp_path / "config.yaml").read_text() == CONFIG
    with open_folder(tmp_path, config=changed, data=data, resume=True, allow_drift=True):
        pass
    assert facts(tmp_path)["resumed"][0]["drift"] == listed
    assert "drift: optim.lr: 0.3 -> 0.4" in (tmp_path / "train.log").read_text()
    with open_folder(tmp_path, config=changed, data=data, resume=True):
        pass


def test_weights_are_known_by_their_digest(tmp_path: Path) -> None:
    """Breaks when the same weights by another path are drift, or others under the same name are none."""
    data = {"weights": "runs/a.pth", "weights_digest": "a", "init": None, "init_digest": None}
    with open_folder(tmp_path, data=data):
        pass
    moved = {**data, "weights": "/home/me/runs/a.pth"}
    with open_folder(tmp_path, data=moved, resume=True):
        pass
    assert facts(tmp_path)["resumed"][0]["drift"] == [] and facts(tmp_path)["data"] == moved
    with pytest.raises(ValueError, match=r"data set.weights_digest: a -> b$"):
        open_folder(tmp_path, data={**data, "weights_digest": "b"}, resume=True)


def test_a_living_owner_keeps_others_out(tmp_path: Path) -> None:
    with open_folder(tmp_path):
        for flags in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
                open_folder(tmp_path, **flags)
        assert facts(tmp_path)["status"] == "running"


def test_a_dead_owner_does_not(tmp_path: Path) -> None:
    with open_folder(tmp_path):
        lock = json.loads((tmp_path / ".lock").read_text())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for stale in (lock | {"pid": ended.pid}, lock | {"born": "1"}, {}):
        (tmp_path / ".lock").write_text(json.dumps(stale))
        with open_folder(tmp_path, resume=True):
            assert json.loads((tmp_path / ".lock").read_text()) == lock


def test_an_owner_elsewhere_cannot_be_asked_and_counts_as_alive(tmp_path: Path) -> None:
    with open_folder(tmp_path):
        lock = json.loads((tmp_path / ".lock").read_text())
    (tmp_path / ".lock").write_text(json.dumps(lock | {"host": "another"}))
    with pytest.raises(ValueError, match=r"on another; wait for it, or delete .*\.lock"):
        open_folder(tmp_path, resume=True)


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with open_folder(tmp_path / "run") as folder:
        folder.log("hello"), folder.tell("hello"), folder.record(a=1), folder.write("config.yaml", "")
        assert not folder.writes
    assert not (tmp_path / "run").exists()


def test_a_disk_without_links_keeps_a_lock_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a run cannot begin on exFAT or a network drive, or when two runs share a folder there."""

    def refuse(*paths: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with open_folder(tmp_path), pytest.raises(ValueError, match="in use by process"):
        open_folder(tmp_path, resume=True)
    assert facts(tmp_path)["status"] == "finished" and not [*tmp_path.glob(".lock*")]
