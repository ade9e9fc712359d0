"""Settings in named sections as one value: how they are changed, all at once or not at all, and checked."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from boxwise.config import Data, Optimiser, Pass, Run, Schedule
from boxwise.recipes.built_in import BuiltInDetector, BuiltInMethod, BuiltInProbe
from boxwise.strict import Raw, SettingsError, keys, merge, nearest, plain, read

C = TypeVar("C", bound="Configuration")

SHORT = {
    "batch_size": "run.batch_size",
    "seed": "run.seed",
    "device": "run.device",
    "devices": "run.devices",
    "precision": "run.precision",
    "accumulate": "run.accumulate",
    "compile": "run.compile",
    "epochs": "schedule.epochs",
    "steps": "schedule.steps",
    "lr": "optim.lr",
    "workers": "data.workers",
    "bad_images": "data.bad_images",
}
"""Flags so common that they need no dots."""


class Configuration(ABC):
    """What all recipes share: settings in named sections, changed only as a whole."""

    __slots__ = ()
    name: str
    run: Run | Pass
    data: Data

    @abstractmethod
    def kinds(self) -> dict[str, Any]:
        """The type that each section is read as."""

    @abstractmethod
    def conflicts(self) -> Iterator[str]:
        """What cannot be together, one sentence each."""

    @abstractmethod
    def widened(self, key: str, value: Any) -> Raw | None:
        """What `image_size` and `backbone` stand for in this kind of recipe; none for a flag that stands for itself."""

    def implied(self, *layers: Mapping[str, Any]) -> Raw:
        """Dotted settings that follow from those of `layers`, unless they are set there as well."""
        return {}

    def lengths(self) -> Iterator[str]:
        """What cannot be of a recipe's length and batch, one sentence each."""
        yield from ()

    def keys(self) -> list[str]:
        """Every dotted key that can be set."""
        long = [k for name, kind in self.kinds().items() for k in keys(kind, name)]
        return [*(k for k, meant in SHORT.items() if meant in long), *long, "image_size", "backbone"]

    def changed(self: C, *layers: Mapping[str, Any]) -> C:
        """This recipe with dotted or nested settings laid over it, the last layer on top.

        Raises SettingsError that lists every unknown key, wrong type and impossible combination at once.
        """
        raw: Raw = plain(self)
        problems: list[str] = []
        for layer in (self.implied(*layers), *layers):
            for key, value in self.nested(layer).items():
                if key == "name":
                    continue
                if key not in raw:
                    problems.append(f"{key}: no such setting{nearest(key, self.keys())}")
                    continue
                raw[key] = merge(raw[key], _one_length(value) if key == "schedule" else value)
        sections: dict[str, Any] = {}
        for section, kind in self.kinds().items():
            try:
                sections[section] = read(self._kind(section, kind, raw), raw[section], at=section)
            except SettingsError as error:
                problems += error.problems
        recipe = dataclasses.replace(self, **sections)  # type: ignore[type-var]
        if problems := [*problems, *_impossible(recipe, self.kinds().keys() - sections.keys())]:
            raise SettingsError(problems)
        return recipe

    def _kind(self, section: str, kind: Any, raw: Raw) -> Any:
        """One of another name than the recipe's own is one of ours; a user's own is read as its own class."""
        ours = {"method": BuiltInMethod, "detector": BuiltInDetector, "probe": BuiltInProbe}
        if section in ours and raw[section].get("name") != plain(self)[section]["name"]:
            return ours[section]
        return kind

    def nested(self, layer: Mapping[str, Any]) -> Raw:
        """Short flags and dotted keys as nested settings."""
        nest: Raw = {}
        sections = self.kinds()
        for key, value in layer.items():
            key = key.replace("-", "_")
            wide = self.widened(key, value)
            if wide is None:
                meant = SHORT.get(key, key)
                for part in reversed((meant if meant.partition(".")[0] in sections else key).split(".")):
                    value = {part: value}
                wide = value
            nest = merge(nest, wide)
        return nest


class Trained(Configuration):
    """What is trained step by step: by an optimiser, along a schedule."""

    __slots__ = ()
    lengths_fitted: ClassVar[tuple[int, int]] = (1, 2**31)
    """Fewest and most steps of a run whose length follows the data."""
    optim: Optimiser
    schedule: Schedule
    run: Run

    @abstractmethod
    def batches(self, images: int) -> float:
        """Batches in one pass over `images` images."""

    def steps_per_epoch(self, images: int) -> int:
        """What the schedule takes an epoch for."""
        return max(1, int(self.batches(images)))

    def steps(self, images: int) -> int:
        """Optimiser steps of a whole run on `images` images."""
        return self.schedule.steps or max(1, round((self.schedule.epochs or 0) * self.batches(images)))

    def lengths(self) -> Iterator[str]:
        """What cannot be of a recipe's length and batch, one sentence each."""
        run, schedule = self.run, self.schedule
        if (schedule.epochs is None) == (schedule.steps is None):
            yield "schedule.epochs, schedule.steps: set exactly one of the two"
        elif (schedule.epochs or schedule.steps or 0) <= 0:
            yield "schedule: a run needs more than 0 epochs or steps"
        parts = run.accumulate * run.devices * run.nodes
        if parts < 1 or run.batch_size < 1 or run.batch_size % parts:
            yield (
                f"run.batch_size: {run.batch_size} is not a multiple of {parts} "
                "(run.accumulate * run.devices * run.nodes)"
            )


def _impossible(recipe: Configuration, unread: Collection[str]) -> Iterator[str]:
    """What cannot be together, but for sentences on sections that could not be read, whose old values stand there."""
    for sentence in (*recipe.lengths(), *recipe.conflicts()):
        if not any(re.search(rf"\b{section}[.:]", sentence) for section in unread):
            yield sentence


def _one_length(schedule: Any) -> Any:
    """`--steps 100` replaces the recipe's epochs, and the other way round."""
    if not isinstance(schedule, dict):
        return schedule
    given = [k for k in ("epochs", "steps") if schedule.get(k) is not None]
    return schedule if len(given) != 1 else schedule | {({"epochs", "steps"} - {given[0]}).pop(): None}
