"""A whole configuration as one value, and how it is read, changed and checked."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from boxwise.config import Brought, Data, Optimiser, Run, Schedule, TransferData
from boxwise.data.cut import ViewSpec
from boxwise.data.order import whole_batches
from boxwise.data.paste import fewest
from boxwise.methods.base import MethodConfig
from boxwise.nn.backbones import RESNETS
from boxwise.nn.encoder import EncoderConfig
from boxwise.recipes.built_in import BuiltInDetector, BuiltInMethod, BuiltInOptimiser
from boxwise.strict import Raw, SettingsError, keys, merge, nearest, plain, read
from boxwise.transfer.detectors.base import DetectorConfig
from boxwise.transfer.evaluate import Measure

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
    """What pretraining and fine-tuning recipes share: settings in named sections, changed only as a whole."""

    __slots__ = ()
    name: str
    optim: Optimiser
    schedule: Schedule
    run: Run
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

    @abstractmethod
    def batches(self, images: int) -> float:
        """Batches in one pass over `images` images."""

    def steps_per_epoch(self, images: int) -> int:
        """What the schedule takes an epoch for."""
        return max(1, int(self.batches(images)))

    def steps(self, images: int) -> int:
        """Optimiser steps of a whole run on `images` images."""
        return self.schedule.steps or max(1, round((self.schedule.epochs or 0) * self.batches(images)))

    def keys(self) -> list[str]:
        """Every dotted key that can be set."""
        long = (k for name, kind in self.kinds().items() for k in keys(kind, name))
        return [*SHORT, *long, "image_size", "backbone"]

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
        if problems:
            raise SettingsError(problems)
        recipe = dataclasses.replace(self, **sections)  # type: ignore[type-var]
        if impossible := [*lengths_and_batch(recipe), *recipe.conflicts()]:
            raise SettingsError(impossible)
        return recipe

    def _kind(self, section: str, kind: Any, raw: Raw) -> Any:
        """One of another name than the recipe's own is one of ours; a user's own is read as its own class."""
        ours = {"method": BuiltInMethod, "detector": BuiltInDetector}
        if section in ours and raw[section].get("name") != plain(self)[section]["name"]:
            return ours[section]
        return kind

    def nested(self, layer: Mapping[str, Any]) -> Raw:
        """Short flags and dotted keys as nested settings."""
        nest: Raw = {}
        for key, value in layer.items():
            key = key.replace("-", "_")
            wide = self.widened(key, value)
            if wide is None:
                for part in reversed(SHORT.get(key, key).split(".")):
                    value = {part: value}
                wide = value
            nest = merge(nest, wide)
        return nest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Configuration):
    """Everything that decides a pretraining run, but for the images and the folder."""

    name: str
    method: MethodConfig
    encoder: EncoderConfig
    views: tuple[ViewSpec, ...]
    optim: Optimiser
    schedule: Schedule
    run: Run = Run()
    data: Data = Data()

    def kinds(self) -> dict[str, Any]:
        return {
            "method": type(self.method),
            "encoder": EncoderConfig,
            "views": tuple[ViewSpec, ...],
            "optim": BuiltInOptimiser,
            "schedule": Schedule,
            "run": Run,
            "data": Data,
        }

    def batches(self, images: int) -> float:
        """Whole batches alone. Raises ValueError where there is not one."""
        run = self.run
        return whole_batches(images, run.batch_size, parts=run.accumulate * run.devices * run.nodes)

    def widened(self, key: str, value: Any) -> Raw | None:
        if key == "image_size":
            first = self.views[0].crop.size
            shares = [view.crop.size / first if type(value) is int else None for view in self.views]
            sizes = [value if share is None else round(value * share) for share in shares]  # or a wrong type
            return {"views": {str(i): {"crop": {"size": size}} for i, size in enumerate(sizes)}}
        if key == "backbone":
            start = {} if value in RESNETS else {"zero_init_last": False}  # only torchvision's have it
            return {"encoder": {"backbone": value, **start}}
        return None

    def implied(self, *layers: Mapping[str, Any]) -> Raw:
        """With `image_size`, what the method states in pixels of the views."""
        asked = [layer[key] for layer in layers for key in ("image_size", "image-size") if key in layer]
        if not asked or type(asked[-1]) is not int:
            return {}
        resized = self.method.resized(asked[-1] / self.views[0].crop.size)
        return {f"method.{key}": value for key, value in resized.items()}

    def conflicts(self) -> Iterator[str]:
        for i, view in enumerate(self.views):
            if view.crop.size < 32:
                yield f"views.{i}.crop.size: {view.crop.size} px is less than a cell of the coarsest level (32)"
            if view.auto_augment and self.method.has_boxes:
                yield f"views.{i}.auto_augment: turns and shears, which the boxes of {self.method.name} do not follow"
            if view.paste is not None and self.method.has_boxes and not self.method.composites:
                yield f"views.{i}.paste: {self.method.name} would look for its boxes on the wrong picture"
            for key in ("like", "flip_like"):
                earlier = getattr(view.crop, key)
                if earlier is not None and not 0 <= earlier < i:
                    yield f"views.{i}.crop.{key}: {earlier} is not an earlier view"
        parts = self.run.devices * self.run.nodes * self.run.accumulate
        if parts > 0 and self.run.batch_size // parts < fewest(self.views):
            need = fewest(self.views) * parts
            yield f"run.batch_size: each image is pasted on others of its part of a step; set at least {need}"
        yield from self.method.conflicts(self.views, self.encoder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferRecipe(Configuration):
    """Everything that decides a fine-tuning run, but for the images, the weights and the folder."""

    name: str
    detector: DetectorConfig
    optim: Optimiser
    schedule: Schedule
    run: Run = Run()
    data: TransferData = TransferData()
    measure: Measure = Measure()
    weights: Brought = Brought()

    def kinds(self) -> dict[str, Any]:
        return {
            "detector": type(self.detector),
            "optim": BuiltInOptimiser,
            "schedule": Schedule,
            "run": Run,
            "data": TransferData,
            "measure": Measure,
            "weights": Brought,
        }

    def batches(self, images: int) -> float:
        """Passes follow one another without a gap, so that few images are enough for a batch."""
        return images / self.run.batch_size

    def widened(self, key: str, value: Any) -> Raw | None:
        if key == "image_size":
            only = {"min_size": value, "max_size": value, "train_sizes": [], "train_max_size": None}
            return {"detector": only}
        if key == "geodesics":
            return {"measure": {"geodesics": str(value)}}
        return {"detector": {"backbone": value}} if key == "backbone" else None

    def conflicts(self) -> Iterator[str]:
        file = self.measure.geodesics
        if file is not None and not Path(file).is_file():
            yield f"measure.geodesics: no file {file}"
        if self.measure.precise_bn < 0:
            yield f"measure.precise_bn: expected 0 or more, got {self.measure.precise_bn}"


def lengths_and_batch(recipe: Configuration) -> Iterator[str]:
    """What cannot be together in any recipe, one sentence each."""
    run, schedule = recipe.run, recipe.schedule
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


def _one_length(schedule: Any) -> Any:
    """`--steps 100` replaces the recipe's epochs, and the other way round."""
    if not isinstance(schedule, dict):
        return schedule
    given = [k for k in ("epochs", "steps") if schedule.get(k) is not None]
    return schedule if len(given) != 1 else schedule | {({"epochs", "steps"} - {given[0]}).pop(): None}
