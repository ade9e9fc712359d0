"""What decides a run, as one value: of pretraining, of fine-tuning, and of a probe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from boxwise.config import Brought, LabelledData, Optimiser, Pass, PretrainData, Run, Schedule, TransferData
from boxwise.data.cut import ViewSpec
from boxwise.data.order import whole_batches
from boxwise.data.paste import fewest
from boxwise.methods.base import MethodConfig
from boxwise.nn.backbones import RESNETS, unknown
from boxwise.nn.encoder import EncoderConfig
from boxwise.recipes.built_in import BuiltInOptimiser
from boxwise.recipes.configuration import Configuration, Trained
from boxwise.strict import Raw
from boxwise.transfer.detectors.base import DetectorConfig
from boxwise.transfer.evaluate import Measure
from boxwise.transfer.probes.base import ProbeConfig
from boxwise.transfer.probes.svm import SVM


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Trained):
    """Everything that decides a pretraining run, but for the images and the folder."""

    name: str
    method: MethodConfig
    encoder: EncoderConfig
    views: tuple[ViewSpec, ...]
    optim: Optimiser
    schedule: Schedule
    run: Run = Run()
    data: PretrainData = PretrainData()

    def kinds(self) -> dict[str, Any]:
        return {
            "method": type(self.method),
            "encoder": EncoderConfig,
            "views": tuple[ViewSpec, ...],
            "optim": BuiltInOptimiser,
            "schedule": Schedule,
            "run": Run,
            "data": PretrainData,
        }

    def lasting(self, epochs: float) -> Recipe:
        """The same run for as many epochs, and named after them."""
        stated = self.schedule.epochs
        assert stated is not None, "a run that is stated in epochs"
        name = self.name.replace(f"_{stated:g}ep", f"_{epochs:g}ep")
        return dataclasses.replace(
            self, name=name, schedule=dataclasses.replace(self.schedule, epochs=epochs)
        )

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
        return {"encoder": {"backbone": value}} if key == "backbone" else None

    def implied(self, *layers: Mapping[str, Any]) -> Raw:
        """With `image_size`, what the method states in pixels of the views; with a backbone, how it cannot start."""
        found: Raw = {}
        sizes = [layer[key] for layer in layers for key in ("image_size", "image-size") if key in layer]
        if sizes and type(sizes[-1]) is int:
            resized = self.method.resized(sizes[-1] / self.views[0].crop.size)
            found = {f"method.{key}": value for key, value in resized.items()}
        encoders = [self.nested(layer).get("encoder") for layer in layers]
        bodies = [given["backbone"] for given in encoders if isinstance(given, dict) and "backbone" in given]
        if bodies and bodies[-1] not in RESNETS and self.encoder.zero_init_last:
            found["encoder.zero_init_last"] = False
        return found

    def conflicts(self) -> Iterator[str]:
        yield from unknown(self.encoder.backbone)
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
        if self.data.classes and self.run.compile:
            yield "data.classes: a classifier watches the encoder, and cannot where run.compile compiles it"
        if self.data.classes and self.run.clip_norm is not None:
            yield "data.classes: run.clip_norm would count the classifier's gradient and move the rest; leave one out"
        yield from self.method.conflicts(self.views, self.encoder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferRecipe(Trained):
    """Everything that decides a fine-tuning run, but for the images, the weights and the folder."""

    lengths_fitted: ClassVar[tuple[int, int]] = (600, 12_000)
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
        yield from unknown(self.detector.encoder().backbone)
        yield from self.detector.problems(pretrained=True)  # a run tells what it cannot do without weights
        if self.run.compile:
            yield "run.compile: detectors are not compiled, since their pictures have many sizes; leave it out"
        file = self.measure.geodesics
        if file is not None and not Path(file).is_file():
            yield f"measure.geodesics: no file {file}"
        if self.measure.precise_bn < 0:
            yield f"measure.precise_bn: expected 0 or more, got {self.measure.precise_bn}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeRecipe(Configuration):
    """Everything that decides what is asked of frozen features, but for the images, the weights and the folder."""

    name: str
    probe: ProbeConfig | SVM
    run: Run | Pass
    data: LabelledData

    def kinds(self) -> dict[str, Any]:
        return {"probe": type(self.probe), "run": type(self.run), "data": type(self.data)}

    def widened(self, key: str, value: Any) -> Raw | None:
        if key == "image_size":
            return {"probe": {part: {"size": side} for part, side in self._sides(value).items()}}
        return {"probe": {"backbone": value}} if key == "backbone" else None

    def implied(self, *layers: Mapping[str, Any]) -> Raw:
        """With `image_size`, the side that pictures are resized to before their middle is cut out."""
        sizes = [layer[key] for layer in layers for key in ("image_size", "image-size") if key in layer]
        still = self.probe.still
        if not sizes or type(sizes[-1]) is not int or still.resize is None:
            return {}
        return {"probe.still.resize": round(still.resize * sizes[-1] / still.size)}

    def conflicts(self) -> Iterator[str]:
        yield from unknown(self.probe.backbone)
        yield from self.probe.problems()

    def _sides(self, value: Any) -> dict[str, Any]:
        """`image_size` at each place that it stands for."""
        return {"still": value} if isinstance(self.probe, SVM) else {"crop": value, "still": value}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbeRecipe(ProbeRecipe, Trained):
    """Of a probe that one linear layer is trained for."""

    lengths_fitted: ClassVar[tuple[int, int]] = (200, 5000)
    probe: ProbeConfig
    optim: Optimiser
    schedule: Schedule
    run: Run = Run()

    def kinds(self) -> dict[str, Any]:
        return {**ProbeRecipe.kinds(self), "optim": BuiltInOptimiser, "schedule": Schedule}

    def batches(self, images: int) -> float:
        """Passes follow one another without a gap, so that few images are enough for a batch."""
        return images / self.run.batch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class SVMRecipe(ProbeRecipe):
    """Of support vector machines, which are solved and not trained step by step."""

    probe: SVM = SVM()
    run: Pass = Pass()
    data: LabelledData = LabelledData()
