"""The verbs that take what a run has left: evaluate, predict, report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from boxwise.cli.verb import Place, Verb
from boxwise.strict import SettingsError


@dataclasses.dataclass(kw_only=True)
class Evaluate(Verb):
    """Measure a fine-tuned detector on labelled images, by the rules of its data."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """A folder that `boxwise finetune` wrote."""
    data: str
    """A root of COCO, LVIS, VOC or Cityscapes, a YOLO data.yaml, or a COCO json with --images."""
    images: Place = None
    """The folder that the file names of a COCO json start from."""
    metric: Literal["auto", "coco", "voc", "voc07", "lvis", "cityscapes"] | None = None
    """Whose rules: the run's own, unless told; voc07 takes VOC's eleven points."""
    geodesics: Annotated[Path | None, arg(metavar="FILE")] = None
    """Distances along the body's surface, for GPS and GPSm of DensePose: the run's own, unless told."""
    json: bool = False
    """Print the figures as JSON."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    batch_size: int = 8
    workers: int | None = None
    """Processes that decode ahead; unless told, as many as help."""

    def call(self, settings: dict[str, Any]) -> None:
        from boxwise.run.evaluate import as_table, evaluate

        figures = evaluate(
            self.run,
            self.data,
            images=self.images,
            metric=self.metric,
            geodesics=self.geodesics,
            device=self.device,
            batch_size=self.batch_size,
            workers=self.workers,
        )
        print(json.dumps(figures) if self.json else as_table(figures))


@dataclasses.dataclass(kw_only=True)
class Predict(Verb):
    """Run a fine-tuned detector over images: COCO json and drawn pictures. No labels needed."""

    run: Positional[Annotated[Path, arg(metavar="RUN")]]
    """A folder that `boxwise finetune` wrote."""
    data: str
    """A folder of images, a list file, a COCO root (its train split), or a COCO json with --images."""
    out: Path
    """The folder for detections.json and pictures/."""
    images: Place = None
    """The folder that the file names of a COCO json start from."""
    threshold: float = 0.5
    """Least score of a detection that is kept; lower than the detector's own, it stands for that too."""
    batch_size: int = 8
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    workers: int | None = None
    """Processes that decode and draw: fitted to the machine, unless told."""
    pictures: bool = True
    """Write the json alone."""
    max_drawn: int | None = None
    """Draw no more than the first so many images."""
    bad_images: Literal["error", "skip"] = "skip"
    """Leave out and list files that cannot be read, or stop at the first."""
    max_value: int | None = None
    """The white of 16-bit images, where it is not 65535."""
    overwrite: bool = False
    """Replace an earlier prediction in OUT."""

    def call(self, settings: dict[str, Any]) -> None:
        from boxwise.run.predict import predict

        print(predict(**vars(self)))


@dataclasses.dataclass(kw_only=True)
class Report(Verb):
    """Join run folders to one offline page."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN ...")]]
    """Folders that `boxwise pretrain` and `boxwise finetune` wrote."""
    out: Path = Path("report.html")
    """The page to write."""

    def call(self, settings: dict[str, Any]) -> None:
        from boxwise.report.page import write_report

        if not self.runs:
            raise SettingsError(["report: name the run folders to join, such as runs/scrl runs/det"])
        print(write_report(self.runs, self.out))
