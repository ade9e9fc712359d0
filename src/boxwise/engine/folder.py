"""The folder of one run: who owns it, what was asked, how it went."""

from __future__ import annotations

import datetime
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import yaml

from boxwise.config import FREE
from boxwise.engine.atomic import read_json, write_json, write_text
from boxwise.engine.device import hardware, leads, versions
from boxwise.engine.guard import Diverged
from boxwise.engine.lock import NAME as LOCK
from boxwise.engine.lock import Lock
from boxwise.engine.signals import ending_on_term

Status = Literal["running", "finished", "interrupted", "failed", "diverged"]

PLACES = ("data set.weights", "data set.init")
"""Where initial weights lie; their digest tells which they are."""


class RunFolder:
    """An open run folder, locked for this process, with config.yaml, run.json, train.log, metrics.jsonl.

    Leaving the `with` block records how the run ended. Processes of other ranks see it, but write nothing.
    """

    def __init__(self, path: Path, facts: dict[str, Any], lock: Lock | None) -> None:
        self.path, self.facts = path, facts
        self._term = ending_on_term()
        self._lock, self._begun, self._earlier = lock, time.monotonic(), 0.0

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        kind: str,
        config: str,
        data: Mapping[str, Any],
        seed: int,
        resume: bool = False,
        overwrite: bool = False,
        allow_drift: bool = False,
    ) -> RunFolder:
        """Makes or reopens a run. `config` is the text of config.yaml, `data` what names the images.

        Raises ValueError for a folder that is not empty (unless `resume` or `overwrite`), that another
        process holds, that is no run of ours (nothing of it is ever deleted), or whose recipe or data differ
        from those given (unless `allow_drift`; each difference is listed).
        """
        path = Path(path)
        if not leads():
            return cls(path, {}, None)
        if resume and overwrite:
            raise ValueError("resume and overwrite: choose one")
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path}: is a file; choose a folder for the run")
        _admit(path, resume=resume, overwrite=overwrite)
        path.mkdir(parents=True, exist_ok=True)
        lock = Lock(path)
        try:
            if overwrite:
                _empty(path)
            folder = cls(path, _facts(kind, config, data, seed), lock)
            folder._start(config, resumed=resume and (path / "run.json").exists(), allow_drift=allow_drift)
        except BaseException:
            lock.release()
            raise
        return folder

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return self._lock is not None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def log(self, text: str) -> None:
        """A dated line in train.log."""
        if self.writes:
            with (self.path / "train.log").open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{_now()}  {text}\n")

    def tell(self, text: str) -> None:
        """A line in train.log and on stderr."""
        if self.writes:
            print(text, file=sys.stderr, flush=True)
            self.log(text)

    def record(self, **facts: Any) -> None:
        """Adds to run.json."""
        self.facts |= facts
        if self.writes:
            write_json(self.path / "run.json", self.facts)

    def mark(self, step: int) -> None:
        """Notes in run.json how far the run has come: what is known of it after a crash."""
        self.record(step=step, seconds=self._seconds())

    def write(self, name: str, text: str) -> None:
        """A text file in the folder, whole or not at all."""
        if self.writes:
            write_text(self.path / name, text)

    def _start(self, config: str, *, resumed: bool, allow_drift: bool) -> None:
        if resumed:
            before = read_json(self.path / "run.json")
            drift = [*_drift(before, self.facts, self.path / "config.yaml", config)]
            if drift and not allow_drift:
                listed = "\n  ".join(drift)
                raise ValueError(
                    f"{self.path}: this run was started otherwise; resume it as it was, or pass --allow-drift"
                    f"\n  {listed}"
                )
            resumptions = [*before.get("resumed", []), {"at": _now(), "drift": drift}]
            carried = {key: before[key] for key in ("started", "seconds", "step") if key in before}
            self.facts |= carried | {"resumed": resumptions}
            for line in drift:
                self.log(f"drift: {line}")
        self._earlier = self.facts["seconds"]
        self.write("config.yaml", config)
        self.record(status="running")
        self.log(f"{'resumed' if resumed else 'started'}: {' '.join(self.facts['command'])}")

    def _seconds(self) -> float:
        return round(self._earlier + time.monotonic() - self._begun, 3)

    def __enter__(self) -> RunFolder:
        self._term.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._term.__exit__(kind, error, trace)
        if self._lock is None:
            return
        try:
            status = _status(error)
            why = {} if status == "finished" else {"error": f"{type(error).__name__}: {error}"}
            self.record(status=status, ended=_now(), seconds=self._seconds(), **why)
            self.log(" ".join([status, *why.values()]))
        finally:
            self._lock.release()


def _admit(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuses a folder that is not empty, unless it is a run of ours and the caller said what to do."""
    inside = sorted(p.name for p in path.iterdir() if not p.name.startswith(LOCK)) if path.exists() else []
    if not inside:
        return
    listed = ", ".join(inside[:4]) + (", ..." if len(inside) > 4 else "")
    ours = "run.json" in inside or all(n == "config.yaml" or n.endswith(".tmp") for n in inside)
    if not ours:
        raise ValueError(f"{path}: not empty, and not a run of boxwise ({listed}); choose another folder")
    if not (resume or overwrite):
        raise ValueError(f"{path}: not empty ({listed}); pass --resume to go on, --overwrite to start again")


def _empty(path: Path) -> None:
    for inside in path.iterdir():
        if inside.name.startswith(LOCK):
            continue
        if inside.is_dir() and not inside.is_symlink():
            shutil.rmtree(inside)
        else:
            inside.unlink()


def _facts(kind: str, config: str, data: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {
        "kind": kind,
        "status": "running",
        "recipe": (yaml.safe_load(config) or {}).get("name"),
        "command": sys.argv,
        "seed": seed,
        "data": dict(data),
        "versions": versions(),
        "hardware": hardware(),
        "started": _now(),
        "seconds": 0.0,
    }


def _drift(before: Mapping[str, Any], now: Mapping[str, Any], file: Path, config: str) -> Iterator[str]:
    """What differs from the run's beginning, one line each."""
    if before["kind"] != now["kind"]:
        yield f"kind: {before['kind']} -> {now['kind']}"
    old = _flat({**(yaml.safe_load(file.read_text()) or {}), "data set": before["data"]})
    new = _flat({**(yaml.safe_load(config) or {}), "data set": now["data"]})
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and key not in (*FREE, *PLACES):
            yield f"{key}: {old.get(key)} -> {new.get(key)}"


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if isinstance(value, list):
        value = {str(i): v for i, v in enumerate(value)}
    if not isinstance(value, dict):
        return {at: value}
    return {
        k: v
        for key, inner in value.items()
        for k, v in _flat(inner, f"{at}.{key}" if at else str(key)).items()
    }


def _status(error: BaseException | None) -> Status:
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "finished"
    if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code in (130, 143)):
        return "interrupted"
    return "diverged" if isinstance(error, Diverged) else "failed"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
