"""The verbs that take a recipe: show, pretrain, finetune, probe, compare. Each of its settings is a flag as well."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from boxwise.cli.verb import Named, Place, Verb
from boxwise.config import Some
from boxwise.strict import SettingsError, read, scalar


@dataclasses.dataclass(kw_only=True)
class Show(Verb):
    """Draw the views of a recipe with their matched boxes: look before you train.

    Every setting of a recipe is a flag too: `boxwise show scrl --help` lists them.
    """

    recipe: Positional[Named]
    """A method (scrl), a published run (scrl_r50_200ep), or FILE.py:FUNCTION."""
    data: str
    """A folder of images, a list file, a root of COCO or another layout, or a COCO json with --images."""
    out: Path
    """The picture to write, PNG or JPEG."""
    images: Place = None
    """The folder that the file names of a COCO json start from."""
    config: Place = None
    """Settings from a YAML file, laid over the recipe."""
    proposals: Place = None
    """Boxes that `boxwise proposals` wrote, for soco; without them, those of the few images are made."""
    count: int = 4
    """How many images to draw."""

    def call(self, settings: dict[str, Any]) -> None:
        from boxwise.run.show import show

        from_files = {"images": self.images, "config": self.config, "proposals": self.proposals}
        print(show(self.recipe, self.data, self.out, **from_files, settings=settings, count=self.count))


@dataclasses.dataclass(kw_only=True)
class Training(Verb):
    """What every training takes."""

    recipe: Positional[Named]
    data: str
    out: Path
    """The run folder."""
    images: Place = None
    """The folder that the file names of a COCO json start from."""
    config: Place = None
    """Settings from a YAML file, laid over the recipe; flags are laid over both."""
    resume: bool = False
    """Go on from the newest checkpoint in OUT."""
    overwrite: bool = False
    """Empty OUT first."""
    allow_drift: bool = False
    """Resume although recipe or images have changed."""
    dry_run: bool = False
    """Print the resolved recipe and stop."""

    def tell(self, done: Path) -> None:
        """Prints the figures of a run, and where it lies."""
        from boxwise.engine.device import leads
        from boxwise.run.evaluate import as_table

        if leads() and not self.dry_run:
            print(as_table(json.loads((done / "results.json").read_text())))
            print(done)

    def shared(self) -> dict[str, Any]:
        """The flags of every training, as its function takes them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Training)}


@dataclasses.dataclass(kw_only=True)
class Pretrain(Training):
    """Pretrain a backbone, and where the recipe has them FPN and box head, on images without labels.

    Every setting of a recipe is a flag too: `boxwise pretrain scrl --help` lists them.
    """

    recipe: Positional[Named]
    """A method (scrl: fitted to the images and the device), a published run (scrl_r50_200ep), or FILE.py:FUNCTION."""
    data: str
    """A folder of images (nested, no labels needed), a list file, a root of COCO or another layout, or a COCO json
    with --images."""
    out: Path
    """The run folder: weights come to rest in OUT/export."""
    init: Place = None
    """Start from these weights: ours, torchvision's or timm's."""
    proposals: Place = None
    """Boxes that `boxwise proposals` wrote, for soco; without them, they are made first, beside OUT."""

    def call(self, settings: dict[str, Any]) -> None:
        from boxwise.engine.device import leads
        from boxwise.run.pretrain import pretrain

        done = pretrain(**self.shared(), settings=settings, init=self.init, proposals=self.proposals)
        if leads() and not self.dry_run:  # a dry run has printed the recipe, a file that --config takes back
            print(done)


@dataclasses.dataclass(kw_only=True)
class Finetune(Training):
    """Train a detector on labelled images, from random or pretrained weights, and measure it.

    Every setting of a recipe is a flag too: `boxwise finetune faster_rcnn_fpn --help` lists them.
    """

    recipe: Positional[Named]
    """A detector (faster_rcnn_fpn: as long as the data asks for) or FILE.py:FUNCTION."""
    data: str
    """A root of COCO, LVIS, VOC or Cityscapes, a YOLO data.yaml, or a COCO json with --images and --val."""
    weights: Place = None
    """A run of pretraining or fine-tuning, its export folder, or a weights file of ours, torchvision's or timm's."""
    val: Place = None
    """The COCO json to measure on, where --data is a json."""
    labels: Annotated[str | None, arg(metavar="SHARE|COUNT")] = None
    """Train on a share (0.1) or a count (100) of the labelled images, drawn by the seed and listed in the run."""
    overfit: Annotated[int | None, arg(metavar="COUNT")] = None
    """A self-test: train on so many images and measure on the same; fails below AP50 80, with suspects."""

    def call(self, settings: dict[str, Any]) -> None:
        from boxwise.run.finetune import finetune

        labels = None if self.labels is None else _amount(self.labels)
        done = finetune(
            **self.shared(),
            settings=settings,
            weights=self.weights,
            val=self.val,
            labels=labels,
            overfit=self.overfit,
        )
        self.tell(done)


@dataclasses.dataclass(kw_only=True)
class Probe(Training):
    """Ask frozen features what they know, without a detector: classes of pictures or boxes, places of patches.

    Every setting of a recipe is a flag too: `boxwise probe roi_linear --help` lists them.
    """

    recipe: Positional[Named]
    """linear, roi_linear, patch_location, svm, a published protocol (imagenet_linear), or FILE.py:FUNCTION."""
    data: str
    """roi_linear, svm: labelled images, as finetune takes them. linear: folders named after classes, or train/ and
    val/ of such. patch_location: any images."""
    weights: Place = None
    """A run of pretraining or fine-tuning, its export folder, or a weights file; none: random weights."""
    val: Place = None
    """What to measure on: a json beside a json, a folder of class folders, or images."""
    labels: Annotated[str | None, arg(metavar="SHARE|COUNT")] = None
    """Train on a share (0.1) or a count (100) of the labelled images, drawn by the seed and listed in the run."""

    def call(self, settings: dict[str, Any]) -> None:
        from boxwise.run.probe import probe

        labels = None if self.labels is None else _amount(self.labels)
        self.tell(
            probe(**self.shared(), settings=settings, weights=self.weights, val=self.val, labels=labels)
        )


@dataclasses.dataclass(kw_only=True)
class Compare(Verb):
    """Will it help? One detector from several starts, all else locked, at shares of the labels.

    A stopped comparison goes on with the same command. Every setting of the detector's recipe is a flag too.
    """

    data: str
    """A root of COCO, LVIS, VOC or Cityscapes, a YOLO data.yaml, or a COCO json with --images and --val."""
    init: Annotated[tuple[str, ...], arg(metavar="START ...")]
    """random, runs, export folders or weights files, and torchvision: your own cached file of it."""
    out: Path
    """The folder for lock, runs, results.json and compare.html."""
    labels: Annotated[tuple[str, ...], arg(metavar="SHARE|COUNT ...")] = ()
    """Shares (0.1) or counts (100) of the labelled images; all of them, unless the recipe says otherwise."""
    seeds: int = 3
    """Runs of each start at each share, from run.seed up."""
    detector: Named = "faster_rcnn_fpn"
    """A detector's recipe, or FILE.py:FUNCTION."""
    images: Place = None
    """The folder that the file names of a COCO json start from."""
    val: Place = None
    """The COCO json to measure on, where --data is a json."""
    config: Place = None
    """Settings from a YAML file, laid over the recipe; flags are laid over both."""
    cache: Annotated[float, arg(metavar="GIB")] = 4.0
    """Memory for decoded images, which all runs share where all of them fit."""
    overwrite: bool = False
    """Start again: empty OUT of an earlier comparison first."""
    dry_run: bool = False
    """Print the lock and the list of runs, and stop."""

    def call(self, settings: dict[str, Any]) -> None:
        from boxwise.report.comparison import write_comparison
        from boxwise.run.compare import RESULTS, compare
        from boxwise.run.compare_results import as_table

        flags = {**vars(self), "labels": [_amount(text) for text in self.labels] or None}
        compare(**flags, settings=settings, after_run=write_comparison)
        if not self.dry_run:
            print(as_table(json.loads((self.out / RESULTS).read_text())))
            print(write_comparison(self.out))


def _amount(text: str) -> float | int:
    amount = scalar(text)
    if type(amount) not in (int, float):
        raise SettingsError([f"--labels: expected a share (0.1) or a count (100), got {text}"])
    return read(Some, amount, at="--labels")
