"""Images/s of one core for two augmented views from JPEG files, beside the classic pipeline in the same run.

    python benchmarks/pipeline.py [FOLDER] [--out]

Classic: PIL decodes, then for each view torchvision's RandomResizedCrop, ColorJitter, RandomGrayscale, PIL's Gaussian
blur, flip, tensor, normalise: MoCo-v2's script. Ours: (a) the worker's side alone, which is all that the host of a GPU
does, and (b) everything on the CPU. All arms take the same files, from the page cache, with the same settings and
one thread. They take turns within each round, so that a slow moment of the machine meets all of them; ratios are
the median over rounds of ratios within a round.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageFilter
from torchvision import transforms as T

from boxwise.data.cut import Crop, ViewSpec, cut_view, draw_cut
from boxwise.data.loader import Cutter, Item
from boxwise.data.sources import Files, open_images
from boxwise.recipes.pretrain import MOCO_VIEW
from result import RESULTS, machine, save, system_load

HERE = Path(__file__).parent
PHOTOS = HERE.parents[1] / "shared" / "data" / "coco_sample" / "train2017"
AIMS = {"(a) worker side": 4.0, "(b) all on the CPU": 1.5}
CLASSIC = "classic"


class RadiusBlur:
    """MoCo's blur."""

    def __init__(self, least: float, most: float) -> None:
        self.least, self.most = least, most

    def __call__(self, picture: Image.Image) -> Image.Image:
        return picture.filter(ImageFilter.GaussianBlur(random.uniform(self.least, self.most)))


def classic_view(spec: ViewSpec) -> T.Compose:
    crop, photo = spec.crop, spec.photo
    jitter = T.ColorJitter(photo.brightness, photo.contrast, photo.saturation, photo.hue)
    return T.Compose(
        [
            T.RandomResizedCrop(crop.size, scale=crop.scale, ratio=crop.ratio),
            T.RandomApply([jitter], p=photo.jitter),
            T.RandomGrayscale(p=photo.gray),
            T.RandomApply([RadiusBlur(*photo.sigma)], p=photo.blur),
            T.RandomHorizontalFlip(p=crop.flip),
            T.ToTensor(),
            T.Normalize(photo.mean, photo.std),
        ]
    )


def classic(images: Files, spec: ViewSpec) -> Callable[[Sequence[Item]], object]:
    change = classic_view(spec)

    def run(items: Sequence[Item]) -> object:
        pairs = []
        for item in items:
            with Image.open(images.path(item.index)) as file:
                picture = file.convert("RGB")
            pairs.append((change(picture), change(picture)))
        return [torch.stack(view) for view in zip(*pairs, strict=True)]

    return run


def cut_only(images: Files, crop: Crop) -> Callable[[Sequence[Item]], object]:
    def run(items: Sequence[Item]) -> object:
        rng = np.random.default_rng(0)
        pictures = [images.read(item.index) for item in items]
        return [
            cut_view(p, draw_cut(rng, crop, width=p.shape[2], height=p.shape[1]), crop) for p in pictures * 2
        ]

    return run


def arms(images: Files, spec: ViewSpec) -> dict[str, Callable[[Sequence[Item]], object]]:
    cutter = Cutter(images, (spec, spec), {}, seed=0, bad_images="error")
    return {
        CLASSIC: classic(images, spec),
        "decode alone": lambda items: [images.read(item.index) for item in items],
        "decode and two cuts": cut_only(images, spec.crop),
        "(a) worker side": lambda items: cutter(items, []),
        "(b) all on the CPU": lambda items: cutter(items, []).load((spec, spec)).ready("cpu"),
    }


def measure(images: Files, spec: ViewSpec, *, rounds: int, batch: int) -> dict[str, list[float]]:
    """Seconds per image of each arm, round by round; round 0, which fills caches, is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in arms(images, spec)}
    for n in range(rounds + 1):
        for name, run in arms(images, spec).items():
            start = time.perf_counter()
            for first in range(0, len(images), batch):
                run([Item(n, i) for i in range(first, min(first + batch, len(images)))])
            if n:
                seconds[name].append((time.perf_counter() - start) / len(images))
    return seconds


def table(seconds: dict[str, list[float]]) -> str:
    lines = ["| one core | images/s | ms/image | x classic | lowest and highest round | aim |"]
    lines += ["|---|---:|---:|---:|---|---:|"]
    for name, took in seconds.items():
        ratios = [c / s for c, s in zip(seconds[CLASSIC], took, strict=True)]
        middle, aim = statistics.median(took), AIMS.get(name)
        lines.append(
            f"| {name} | {1 / middle:.0f} | {middle * 1e3:.2f} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f} to {max(ratios):.2f} | {f'{aim:g}x' if aim else ''} |"
        )
    return "\n".join(lines)


def report(images: Files, seconds: dict[str, list[float]], *, rounds: int, load: float) -> str:
    sizes = [images.read(i).shape[1:] for i in range(len(images))]
    pixels = statistics.mean(h * w for h, w in sizes) / 1e6
    return f"""# Two 224 views from JPEG files, one core

{datetime.date.today()}, {machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores,
load {load:.1f} before the start. torch {torch.__version__}, torchvision {torchvision.__version__},
PIL {PIL.__version__}, Python {platform.python_version()}. {len(images)} images of {pixels:.2f} megapixels on average,
{rounds} rounds, one thread, MoCo-v2's augmentation.

{table(seconds)}

(a) is what a GPU's host does: read, decode, draw, cut two views as uint8. (b) adds flip, colour, blur and
normalisation on the same core. Made by `python benchmarks/pipeline.py`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=PHOTOS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", nargs="?", type=Path, const=RESULTS, help="a folder for the dated result")
    given = parser.parse_args()
    torch.set_num_threads(1)
    load = system_load()
    images = open_images(given.folder)
    seconds = measure(images, MOCO_VIEW, rounds=given.rounds, batch=given.batch)
    text = report(images, seconds, rounds=given.rounds, load=load)
    print(text)
    if given.out is not None:
        save(text, "pipeline", given.out)


if __name__ == "__main__":
    main()
