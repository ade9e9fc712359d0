"""Images/s of a Faster R-CNN FPN in training, beside torchvision's reference model and loop in the same run.

    python benchmarks/finetune_speed.py [--full] [--device auto] [--batch 2] [--steps 3] [--rounds 3] [--out]

Ours: workers that resize, the task, and the whole loop with its guard. Reference: the same network from torchvision's
classes, PIL decoding to float tensors in as many workers, resizing and padding inside the model
(GeneralizedRCNNTransform), and the steps of torchvision's reference script: copy, forward, check of the loss on the
host, backward, SGD, warm-up. It is spared the masks that the reference script makes of every outline. Both read the
same images of the COCO sample in the same order, in one precision. They take turns within each round, so that a slow
moment of the machine meets both; the ratio is the median over rounds of ratios within a round. The first step of a
turn is not counted.

The default is small enough for a CPU, six minutes on two cores: ResNet-18 at 320 px. `--full` is ResNet-50 at 800 px,
for a GPU, which deserves `--batch 8 --steps 30 --rounds 5` as well.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
from torchvision.transforms.v2 import functional as T

from boxwise.config import Schedule
from boxwise.data.loader import Each, Policy, Sampler, default_workers, load_all
from boxwise.data.targets import Labelled, open_labelled
from boxwise.engine.device import device_of
from boxwise.engine.folder import RunFolder
from boxwise.engine.loop import fit
from boxwise.recipes.recipe import TransferRecipe
from boxwise.recipes.transfer import faster_rcnn_fpn
from boxwise.shapes import Scalar
from boxwise.transfer.samples import DetectionBatch, TrainSamples, collate
from boxwise.transfer.task import DetectionTask
from result import RESULTS, machine, save, system_load

DATA = Path(__file__).parents[2] / "shared" / "data" / "coco_sample"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEVELS = 5
WARMUP = 1000
"""Steps over which the reference script raises its rate."""
OPTIONS = {
    "min_size": "min_size",
    "max_size": "max_size",
    "rpn_pre_nms_top_n_train": "rpn_pre_nms_train",
    "rpn_post_nms_top_n_train": "rpn_post_nms_train",
    "rpn_nms_thresh": "rpn_nms_threshold",
    "rpn_batch_size_per_image": "rpn_batch_size_per_image",
    "box_batch_size_per_image": "box_batch_size_per_image",
    "box_positive_fraction": "box_positive_fraction",
}
"""What training depends on, by torchvision's names and by ours."""
FULL = {"backbone": "resnet50", "image_size": 800}


@dataclass(frozen=True)
class Setting:
    """What both arms share."""

    recipe: TransferRecipe
    images: Labelled
    device: torch.device
    workers: int
    steps: int
    """Steps of a turn that are counted."""

    def order(self) -> Sampler:
        """The images of every batch, without an end."""
        run = self.recipe.run
        return Sampler(len(self.images), run.batch_size, run.seed, 0, 10**6, stream=True)


class Ours:
    """The engine's own loop, one call a turn, over batches that workers make all along."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting, self.folder = setting, folder
        recipe, images = setting.recipe, setting.images
        torch.manual_seed(0)
        detector = recipe.detector.build(classes=len(images.categories), mean=MEAN, std=STD)
        self.task = Timed(detector, setting.device)
        samples = TrainSamples(images, recipe.detector, recipe.run.seed)
        self.loads: Iterator[DetectionBatch] = iter(
            load_all(
                Each(samples.sample, collate, Policy("error", len(images), recipe.run.seed)),
                setting.order(),
                workers=setting.workers,
                pin=setting.device.type == "cuda",
            )
        )

    def turn(self) -> float:
        """Seconds of the steps that count."""
        setting, total = self.setting, self.setting.steps + 1
        with RunFolder.open(
            self.folder, kind="finetune", config="name: speed\n", data={}, seed=0, overwrite=True
        ) as folder:
            fit(
                self.task,
                lambda start: itertools.islice(self.loads, total),
                optimiser=setting.recipe.optim,
                schedule=Schedule(steps=total, kind="multistep", warmup_steps=total, warmup_from=1e-3),
                run=setting.recipe.run,
                steps_per_epoch=total,
                total=total,
                folder=folder,
            )
        return self.task.ended - self.task.begun


class Timed(DetectionTask):
    """Notes when the first and the last step of a turn ended."""

    def __init__(self, detector: Any, device: torch.device) -> None:
        super().__init__(detector)
        self.device, self.begun, self.ended = device, 0.0, 0.0

    def after_step(self, step: int, total: int, *, ok: Scalar | None) -> None:
        if step in (0, total - 1):
            wait(self.device)
        self.ended = time.perf_counter()
        if step == 0:
            self.begun = self.ended


class Reference:
    """torchvision's model and the steps of its reference script."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.step = setting, 0
        torch.manual_seed(0)
        self.model = (
            reference_model(setting.recipe, len(setting.images.categories)).to(setting.device).train()
        )
        optim, run = setting.recipe.optim, setting.recipe.run
        self.rate = optim.lr * run.batch_size / optim.lr_batch
        self.descent = torch.optim.SGD(
            self.model.parameters(), lr=self.rate, momentum=0.9, weight_decay=optim.weight_decay
        )
        order = ([item.index for item in batch] for batch in setting.order())
        self.loads = iter(
            DataLoader(
                Photos(setting.images, flip=setting.recipe.detector.flip),
                batch_sampler=order,  # type: ignore[arg-type]
                num_workers=setting.workers,
                collate_fn=lists,
            )
        )

    def turn(self) -> float:
        self._step()
        wait(self.setting.device)
        begun = time.perf_counter()
        for _ in range(self.setting.steps):
            self._step()
        wait(self.setting.device)
        return time.perf_counter() - begun

    def _step(self) -> None:
        device, precision = self.setting.device, self.setting.recipe.run.precision
        images, targets = next(self.loads)
        images = [image.to(device) for image in images]
        targets = [{name: value.to(device) for name, value in target.items()} for target in targets]
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            losses = self.model(images, targets)
            loss = torch.stack([*losses.values()]).sum()
        if not math.isfinite(loss.item()):
            raise ValueError(f"the reference diverged: {losses}")
        self.descent.zero_grad()
        loss.backward()
        self.descent.step()
        self.step += 1
        for group in self.descent.param_groups:
            group["lr"] = self.rate * min(1.0, 1e-3 + self.step / WARMUP)


class Photos(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Files by PIL to float tensors of their own size, mirrored at random."""

    def __init__(self, images: Labelled, *, flip: float) -> None:
        self.images, self.flip = images, flip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        table, row = self.images.table, int(self.images.index[index])
        with Image.open(self.images.path(index)) as file:
            pixels = T.pil_to_tensor(file.convert("RGB"))
        here = slice(int(table.first[row]), int(table.first[row + 1]))
        kept = torch.from_numpy(~table.crowd[here])
        boxes = torch.from_numpy(table.boxes[here].copy())[kept]
        if torch.rand(()) < self.flip:
            pixels = T.horizontal_flip(pixels)
            boxes[:, [0, 2]] = pixels.shape[2] - boxes[:, [2, 0]]
        labels = torch.from_numpy(table.labels[here].copy())[kept]
        return T.to_dtype(pixels, torch.float32, scale=True), {"boxes": boxes, "labels": labels}


def lists(
    samples: Sequence[tuple[Tensor, dict[str, Tensor]]],
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    return [image for image, _ in samples], [target for _, target in samples]


def reference_model(recipe: TransferRecipe, classes: int) -> FasterRCNN:
    """The layers of `fasterrcnn_resnet50_fpn_v2` with the backbone, sizes and counts of `recipe`."""
    detector: Any = recipe.detector
    backbone = resnet_fpn_backbone(
        backbone_name=detector.backbone, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    inputs, width = [block[0].in_channels for block in backbone.fpn.inner_blocks], detector.fpn_channels
    backbone.fpn = FeaturePyramidNetwork(
        inputs, width, extra_blocks=LastLevelMaxPool(), norm_layer=nn.BatchNorm2d
    )
    backbone.out_channels = width
    anchors = AnchorGenerator(tuple((size,) for size in detector.anchors()), ((0.5, 1.0, 2.0),) * LEVELS)
    return FasterRCNN(
        backbone,
        classes + 1,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(width, anchors.num_anchors_per_location()[0], conv_depth=2),
        box_head=FastRCNNConvFCHead((width, 7, 7), [width] * 4, [1024], norm_layer=nn.BatchNorm2d),
        **{theirs: getattr(detector, ours) for theirs, ours in OPTIONS.items()},
    )


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(setting: Setting, *, rounds: int) -> list[tuple[float, float]]:
    """Images/s of ours and of the reference, round by round; a round before them only warms up."""
    images = setting.steps * setting.recipe.run.batch_size
    with tempfile.TemporaryDirectory() as place:
        ours, reference = Ours(setting, Path(place) / "run"), Reference(setting)
        seen = []
        for n in range(rounds + 1):
            first, second = (ours, reference) if n % 2 else (reference, ours)
            rates = {arm: images / arm.turn() for arm in (first, second)}
            seen.append((rates[ours], rates[reference]))
            print(f"round {n}: {seen[-1][0]:.2f} and {seen[-1][1]:.2f} images/s", file=sys.stderr, flush=True)
    return seen[1:]


def page(setting: Setting, rounds: Sequence[tuple[float, float]], *, load: float) -> str:
    """The result as Markdown."""
    ratios = [ours / reference for ours, reference in rounds]
    ours, reference = (statistics.median(column) for column in zip(*rounds, strict=True))
    detector, run = setting.recipe.detector, setting.recipe.run
    return f"""# A training step of Faster R-CNN FPN beside torchvision's reference

{datetime.date.today()}, {machine(setting.device)}, load {load:.1f} before the start. torch {torch.__version__},
{torch.get_num_threads()} threads, {setting.workers} workers, Python {platform.python_version()}. {detector.backbone},
{detector.min_size} px, {run.batch_size} images a step, {run.precision}; {len(rounds)} rounds of {setting.steps} steps.

| | images/s |
|---|---:|
| ours | {ours:.2f} |
| torchvision's reference | {reference:.2f} |
| ratio | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |

The ratio is the median over rounds of ratios within a round; the aim is at least 1. Made by
`python benchmarks/finetune_speed.py`.
"""


def settled(args: argparse.Namespace) -> Setting:
    """What the flags say."""
    device = device_of(args.device)
    size = FULL if args.full else {"backbone": args.backbone, "image_size": args.image_size}
    recipe = faster_rcnn_fpn().changed(
        {**size, "batch_size": args.batch, "device": device.type, "precision": args.precision}
    )
    run = replace(recipe.run, save_every=10**6, log_every=50)  # the loop waits for the device when it logs
    workers = default_workers(device.type == "cuda") if args.workers is None else args.workers
    images = open_labelled(args.data, split="train")
    return Setting(replace(recipe, run=run), images, device, workers, args.steps)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help="a COCO root")
    parser.add_argument("--full", action="store_true", help="ResNet-50 at 800 px")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=2, help="images a step")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--workers", type=int, help="processes that decode, in each arm")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", nargs="?", type=Path, const=RESULTS, help="a folder for the dated result")
    args = parser.parse_args(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    setting, load = settled(args), system_load()
    text = page(setting, measure(setting, rounds=args.rounds), load=load)
    print(text)
    if args.out is not None:
        print(f"written: {save(text, 'finetune-speed', args.out, setting.device)}")


if __name__ == "__main__":
    main()
