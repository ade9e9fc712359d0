"""Which runs may be held against each other, and what one gained over another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from boxwise import config
from boxwise.report.read import MAIN, RunRecord, flat

FREE = {*config.FREE, "source", "weights.parts"}
"""Settings that no measured figure depends on, and what is taken of the weights that are compared."""


@dataclass(frozen=True)
class Pair:
    """A detector from pretrained weights and the one from random weights that shares all else."""

    random: RunRecord
    pretrained: RunRecord

    @property
    def main(self) -> str:
        """The figure that both are judged by."""
        return self.random.main

    def gain(self, key: str | None = None) -> float | None:
        """What the pretrained one has more of a figure: of the main one, unless told."""
        key = key or self.main
        before, after = self.random.figure(key), self.pretrained.figure(key)
        return None if before is None or after is None else after - before


@dataclass(frozen=True)
class Series:
    """Pairs that differ in nothing but the seed."""

    pairs: tuple[Pair, ...]

    @property
    def main(self) -> str:
        """The figure that all are judged by."""
        return self.pairs[0].main

    def values(self, key: str) -> tuple[list[float], list[float]]:
        """The figure in the random and in the pretrained arms, in the order of the pairs that have both."""
        both = [(p.random.figure(key), p.pretrained.figure(key)) for p in self.pairs]
        kept = [(a, b) for a, b in both if a is not None and b is not None]
        return [a for a, _ in kept], [b for _, b in kept]


def measured(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Runs that hold a figure that detectors are judged by."""
    return [r for r in runs if any(r.figure(key) is not None for key in (*MAIN, "AP50"))]


def pairs(runs: Sequence[RunRecord]) -> list[Pair]:
    """Every pretrained run beside its random twin: same settings, data, seed and number of test images.

    A run with two random twins is paired with the first; twins are equal but for the machine.
    """
    randoms: dict[str, RunRecord] = {}
    for run in measured(runs):
        if run.weights is None:
            randoms.setdefault(_key(run, seeded=True), run)
    return [
        Pair(randoms[key], run)
        for run in measured(runs)
        if run.weights is not None and (key := _key(run, seeded=True)) in randoms
    ]


def over_seeds(found: Sequence[Pair]) -> list[Series]:
    """Pairs gathered by all but the seed, where there are at least two seeds and one pair for each."""
    groups: dict[str, list[Pair]] = {}
    for pair in found:
        groups.setdefault(_key(pair.pretrained, seeded=False), []).append(pair)
    return [
        Series(tuple(group))
        for group in groups.values()
        if len(group) > 1 and len({str(p.random.seed) for p in group}) == len(group)
    ]


def differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[Any]]]:
    """Settings that are not the same in all runs: dotted key, and each run's value (Ellipsis for none)."""
    tables = [dict(flat(run.config)) for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = [(key, [table.get(key, ...) for table in tables]) for key in keys]
    return [(key, values) for key, values in rows if len({_canonical(v) for v in values}) > 1]


def _key(run: RunRecord, *, seeded: bool) -> str:
    """All that two runs must share. Another seed draws other labels, so the data has another fingerprint."""
    settings = {k: v for k, v in flat(run.config) if k not in FREE and (seeded or k != "run.seed")}
    data = {
        k: v for k, v in run.data.items() if not k.startswith("weights") and (seeded or k.endswith("images"))
    }
    return _canonical([run.kind, settings, data, run.seed if seeded else None, run.results.get("images")])


def _canonical(value: Any) -> str:
    return "missing" if value is ... else json.dumps(value, sort_keys=True, default=str)
