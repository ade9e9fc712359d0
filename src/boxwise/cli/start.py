"""The verbs to start with: list, doctor, demo."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from boxwise.cli.verb import FAILED, Verb


@dataclasses.dataclass(kw_only=True)
class List(Verb):
    """What there is: recipes, methods, backbones, or the papers' tables and how many of their rows have a recipe."""

    what: Positional[Literal["recipes", "methods", "backbones", "tables"]]

    def call(self, settings: dict[str, Any]) -> None:
        from boxwise.run.catalogue import listing

        print(listing(self.what))


@dataclasses.dataclass(kw_only=True)
class Doctor(Verb):
    """Check this machine: versions, devices, precision, workers."""

    def call(self, settings: dict[str, Any]) -> int:
        from boxwise.run.doctor import doctor

        text, healthy = doctor()
        print(text)
        return 0 if healthy else FAILED


@dataclasses.dataclass(kw_only=True)
class Demo(Verb):
    """From nothing to a better detector in minutes: scenes, pretraining, two fine-tunings, a page."""

    out: Path = Path("demo")
    """The folder for scenes, runs, report.html and result.json."""
    seed: int = 0
    scale: float = 1.0
    """Length of everything: 1 takes up to ten minutes on two cores, less gains less."""
    overwrite: bool = False
    """Replace an earlier demo in OUT."""

    def call(self, settings: dict[str, Any]) -> None:
        from boxwise.report.page import write_report
        from boxwise.run.demo import demo

        result = demo(self.out, seed=self.seed, scale=self.scale, overwrite=self.overwrite)
        page = write_report(result.runs, self.out / "report.html")
        print(f"{result}\n{page}")
