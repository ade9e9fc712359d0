"""Reads run folders for the report. What it returns is checked in kind, but unescaped text of others."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwise.strict import load_yaml

Curve = list[tuple[float, float | None]]
"""Step and value along a run; None where the run had no finite value."""

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve, in its order."""

MAIN = {"AP": "Average precision", "mIoU": "Mean IoU", "top1": "Top-1 accuracy", "mAP": "Mean AP of classes"}
"""What a run is judged by: the first that it was measured by, and its name in words."""

LARGEST = 1e30
"""Numbers beyond are taken for broken ones, as infinities are."""

COMPARISON = "compare.html"
"""What tells the folder of a comparison from a run's."""

_IMAGES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True)
class Picture:
    """A file of figures/ whose first bytes say that it is an image."""

    name: str
    kind: str
    content: bytes


@dataclass(frozen=True)
class RunRecord:
    """What one run folder says about itself."""

    path: Path
    name: str
    """The least of the path that tells it from the other runs of the page."""
    facts: dict[str, Any]
    """run.json."""
    config: dict[str, Any]
    """config.yaml; empty when the run ended before it was written."""
    curves: dict[str, Curve]
    results: dict[str, Any]
    """results.json; empty when nothing was measured."""
    pictures: tuple[Picture, ...]

    @property
    def kind(self) -> str:
        return str(self.facts["kind"])

    @property
    def data(self) -> dict[str, Any]:
        """What the run recorded about its images."""
        stated = self.facts.get("data")
        return stated if isinstance(stated, dict) else {}

    @property
    def seed(self) -> Any:
        return self.facts.get("seed")

    @property
    def weights(self) -> str | None:
        """What a detector started from, as the run recorded it; None for random weights."""
        given = self.data.get("weights")
        return None if given in (None, "random") else str(given)

    @property
    def main(self) -> str:
        """The key of the figure that it is judged by."""
        return next((key for key in MAIN if self.figure(key) is not None), next(iter(MAIN)))

    def figure(self, key: str) -> float | None:
        """A number of results.json; None where there is none (COCO marks sizes that do not occur by -1)."""
        value = number(self.results.get(key))
        return None if value is None or value < 0 else value


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Raises ValueError with one line for each folder that cannot be read as a run. Repeats count once."""
    unique = list(dict.fromkeys(Path(p).resolve() for p in paths))
    if not unique:
        raise ValueError("no run folders given: name at least one")
    problems, runs = [], []
    for path, name in zip(unique, _names(unique), strict=True):
        try:
            runs.append(_read_run(path, name))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return runs


def number(value: Any) -> float | None:
    """A number that can be drawn, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and abs(value) < LARGEST else None


def flat(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaves of nested settings; a list of plain values is one leaf."""
    if isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{at}.{key}" if at else str(key))
    else:
        yield at, value


def _read_run(path: Path, name: str) -> RunRecord:
    if not path.is_dir():
        raise ValueError(
            f"{path}: {'not a folder' if path.exists() else 'no such folder'}; name a run's folder"
        )
    if (page := path / COMPARISON).is_file():
        raise ValueError(
            f"{path}: is a comparison, whose page is {page}; name runs, such as those in {path / 'runs'}"
        )
    if not (path / "run.json").is_file():
        raise ValueError(
            f"{path}: holds no run.json, so it is no run folder or its run ended before it began to write"
        )
    facts = _json(path / "run.json")
    if not isinstance(facts.get("kind"), str):
        raise ValueError(f"{path / 'run.json'}: says no kind of run; was it written by boxwise?")
    config = load_yaml(path / "config.yaml") if (path / "config.yaml").exists() else {}
    results = _json(path / "results.json") if (path / "results.json").exists() else {}
    return RunRecord(
        path, name, facts, config, _curves(path / "metrics.jsonl"), results, _pictures(path / "figures")
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error}); the file may be half-written") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected an object with named values")
    return value


def _curves(path: Path) -> dict[str, Curve]:
    """Every figure that has a number; a line that is not whole (the last of a killed run) is passed over."""
    curves: dict[str, Curve] = {}
    if not path.is_file():
        return curves
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        step = number(row.get("step")) if isinstance(row, dict) else None
        if step is None:
            continue
        for key, value in row.items():
            if key not in ("step", "epoch") and (value is None or isinstance(value, int | float)):
                curves.setdefault(str(key), []).append((step, number(value)))
    return {
        key: sorted(c, key=lambda p: p[0]) for key, c in curves.items() if any(v is not None for _, v in c)
    }


def _pictures(folder: Path) -> tuple[Picture, ...]:
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() not in (".png", ".jpg", ".jpeg") or not path.is_file():
            continue
        content = path.read_bytes()
        kinds = [kind for start, kind in _IMAGES.items() if content.startswith(start)]
        if kinds:
            found.append(Picture(path.stem, kinds[0], content))
    return tuple(found)


def _names(paths: Sequence[Path]) -> list[str]:
    """Last parts of the paths, as many as it takes to differ."""
    longest = max(len(p.parts) for p in paths)
    for n in range(1, longest + 1):
        names = ["/".join(p.parts[-n:]) for p in paths]
        if len(set(names)) == len(names):
            return names
    return [str(p) for p in paths]
