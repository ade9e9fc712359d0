"""Everything that README and docs tell a reader to type is done here, at tiny size, in the order of the page."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import boxwise
from boxwise.cli import _split, main
from boxwise.data.scenes import write_scenes
from boxwise.interop.files import save_weights, write_state
from boxwise.recipes import probes
from boxwise.recipes.configuration import SHORT
from boxwise.recipes.pretrain import scrl_fpn
from boxwise.recipes.transfer import FAMILIES, PROTOCOLS
from boxwise.run.pretrain import build, card
from layouts import voc_devkit, yolo_set

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"# (\S+\.\w+)\n")
"""A block that begins so is the file of that name."""

RUN: dict[str, Any] = {
    "backbone": "test_resnet",  # timm's, 0.4 million parameters
    "image_size": 64,
    "batch_size": 4,
    "workers": 0,
    "device": "cpu",
    "precision": "fp32",
    "run.threads": 1,
}
FAMILY = "faster_rcnn_fpn"
"""The detector of the pages."""
DETECTOR: dict[str, Any] = {
    "detector.fpn_channels": 16,
    "detector.rpn_pre_nms_train": 50,
    "detector.rpn_pre_nms_test": 50,
    "detector.rpn_post_nms_test": 20,
    "detector.box_batch_size_per_image": 16,
}
MACHINES = ("svm", "voc07_svm")
"""Probes that are solved, and not trained step by step."""
ASKED = {f.__name__ for f in probes.PROTOCOLS}
TRANSFERS = {**FAMILIES, **{f.__name__: f for f in PROTOCOLS}}


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    page: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        named = FILE.match(self.text)
        return named[1] if named else None

    def commands(self) -> list[list[str]]:
        """The words of each line, without prompts, comments and continued lines."""
        lines = self.text.replace("\\\n", " ").splitlines() if self.language in ("bash", "console") else []
        words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
        return [one for one in words if one]


def blocks(page: Path) -> list[Block]:
    return [Block(page.name, language, text) for language, text in BLOCK.findall(page.read_text())]


def tiny(argv: list[str]) -> list[str]:
    """A documented command with what makes it take seconds. Every word of the page stays in it."""
    verb = argv[0]
    if verb == "demo":
        return [*argv, "--scale", "0.001"]
    if verb not in ("show", "pretrain", "finetune", "probe", "compare"):
        return argv
    _, given = _split(verb, argv[1:])
    recipe = (
        argv[1]
        if verb != "compare"
        else argv[argv.index("--detector") + 1]
        if "--detector" in argv
        else FAMILY
    )
    settings = RUN | small(recipe, length="epochs" if "epochs" in given else "steps")
    if recipe in MACHINES:
        del settings["run.threads"]
    for key in ("method.queue", "method.boxes"):
        if key in given:
            settings.pop(key, None)
    return [*argv, *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]


def small(recipe: str, *, length: str) -> dict[str, Any]:
    """The settings of `recipe` that cost time."""
    size: dict[str, Any] = {"epochs": 0.5} if length == "epochs" else {"steps": 2}
    if recipe in MACHINES:
        return {"probe.costs": [1.0]}
    if recipe in probes.FAMILIES or recipe in ASKED:
        return size
    if recipe in TRANSFERS:
        has = {f"detector.{field.name}" for field in fields(TRANSFERS[recipe]().detector)}
        return size | {key: value for key, value in DETECTOR.items() if key in has}
    if ".py" not in recipe:
        size |= {"method.hidden": 16, "method.width": 8}
    if recipe == "scrl" or recipe == "scrl_fpn":
        size |= {"method.boxes": 3, "method.tries": 4, "method.min_box": 8}
    if recipe == "mocov2":
        size |= {"method.queue": 12}
    return size | ({"encoder.fpn_channels": 16} if recipe == "scrl_fpn" else {})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: photos, labelled images, weights, and finished runs."""
    place = tmp_path_factory.mktemp("world")
    write_scenes(place / "coco", counts={"train": 8, "val": 4}, size=64)
    (place / "photos" / "deeper").mkdir(parents=True)
    for i in range(16):
        noise = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        folder = place / "photos" / ("deeper" if i % 2 else ".")
        Image.fromarray(noise).resize((48, 48)).save(folder / f"{i}.png")
    (place / "list.txt").write_text("photos\ncoco/train2017\n")
    for split in ("train", "val"):
        shutil.copy(place / f"coco/annotations/instances_{split}2017.json", place / f"{split}.json")
        shutil.copytree(place / f"coco/{split}2017", place / "images", dirs_exist_ok=True)
    for name, images in (("classes/train/a", 3), ("classes/train/b", 3), ("classes/val/b", 2)):
        (place / name).mkdir(parents=True)
        for i in range(images):
            shutil.copy(
                place / "photos" / f"{2 * i}.png", place / name / f"{name[-5:].replace('/', '')}{i}.png"
            )
    voc_devkit(place / "voc")
    yolo_set(place / "yolo")
    torch.save(timm.create_model("test_resnet").state_dict(), place / "resnet50.pth")
    cached = place / "torch" / "hub" / "checkpoints"  # what a user has fetched before, of the small backbone
    cached.mkdir(parents=True)
    shutil.copy(place / "resnet50.pth", cached / "test_resnet-0000.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for command in (
            "pretrain scrl --data photos/ --out runs/scrl",
            "finetune faster_rcnn_fpn --data coco/ --weights runs/scrl --out runs/det",
            "finetune faster_rcnn_fpn --data coco/ --out runs/random",
        ):
            assert main(tiny(command.split())) == 0, command
    recipe = scrl_fpn()
    recipe = replace(recipe, method=replace(recipe.method, hidden=16))
    save_weights(place / "runs/scrl_fpn/export", build(recipe).handed_over(), card(recipe))
    detector = FAMILIES[FAMILY]().detector.build(classes=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    categories = [{"id": k, "name": str(k)} for k in range(3)]
    write_state(place / "runs/detector/export", detector.state_dict(), {"categories": categories})
    return place


@pytest.fixture
def desk(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to type in. Its data are those of `world`."""
    for thing in world.iterdir():
        if thing.name != "runs":
            (tmp_path / thing.name).symlink_to(thing)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(world / "torch"))
    for name, recipe in (
        ("pretrain", "scrl"),
        ("finetune", FAMILY),
        ("compare", FAMILY),
        ("probe", "roi_linear"),
    ):
        slow, sizes = getattr(boxwise, name), small(recipe, length="steps")
        monkeypatch.setattr(boxwise, name, partial(slow, settings=RUN | sizes), raising=False)
    return tmp_path


def lent_out(source: str, target: str) -> None:
    """A copy; of weights, which are large and only ever replaced whole, another name."""
    (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)


def make_room(words: list[str], lent: set[Path]) -> None:
    """Takes away a run that was there from the start, where the page now makes its own under that name."""
    out = Path(words[words.index("--out") + 1]) if "--out" in words else None
    if out in lent and not {"--resume", "--overwrite"} & set(words):
        shutil.rmtree(out)
        lent.discard(out)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore")
def test_the_page_does_what_it_says(
    page: Path, desk: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world / "runs", desk / "runs", copy_function=lent_out)
    lent = {Path("runs") / run.name for run in (world / "runs").iterdir()}
    for block in blocks(page):
        if block.file is not None:
            Path(block.file).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, f"{block.page}, a python block", "exec"), {"__name__": page.stem})
        for words in block.commands():
            if words[0] == "boxwise":
                capsys.readouterr()
                make_room(words, lent)
                code = main(tiny(words[1:]))
                expected = 1 if "--overfit" in words else 0  # two steps know nothing by heart
                assert code == expected, (
                    f"{block.page}: {shlex.join(words)}: {code}\n{capsys.readouterr().err}"
                )
                left = Path(words[words.index("--out") + 1]) if "--out" in words else None
                assert left is None or "--dry-run" in words or left.exists(), (
                    f"{shlex.join(words)}: no {left}"
                )


def test_every_line_of_a_shell_block_is_a_command_that_is_looked_at() -> None:
    known = {"boxwise", "make", "pip"}
    strange = [(b.page, c) for page in PAGES for b in blocks(page) for c in b.commands() if c[0] not in known]
    assert not strange


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = {c[1] for page in PAGES for b in blocks(page) for c in b.commands() if c[0] == "make"}
    named |= {name for page in PAGES for name in re.findall(r"`make ([a-z]+)", page.read_text())}
    assert {"demo", "test"} <= named <= targets


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for link in LINK.findall(page.read_text()):
            target, _, anchor = link.partition("#")
            if target.startswith(("http:", "https:")):
                continue
            file = (page.parent / target) if target else page
            assert file.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(file), f"{page.name}: {link}"


def anchors(page: Path) -> set[str]:
    """What headings can be linked by."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_flags_named_in_prose_exist() -> None:
    """`--flag` between backticks, outside of blocks."""
    from boxwise.recipes.pretrain import METHODS

    known = {key.replace("_", "-") for key in flags_of_verbs()}
    families = (*METHODS.values(), *FAMILIES.values(), *probes.FAMILIES.values())
    recipes: list[Any] = [make() for make in families]
    known |= {key.replace("_", "-") for recipe in recipes for key in [*recipe.keys()]}
    known |= {"shm-size", "help", "version", "run.", "no-pictures"}
    for page in PAGES:
        prose = BLOCK.sub("", page.read_text())
        for flag in re.findall(r"`--([a-z][\w.\-]*)", prose):
            plain = re.sub(r"^views\.\d", "views.0", flag.replace("_", "-"))
            assert plain in known, f"{page.name}: --{flag}"


def flags_of_verbs() -> Iterator[str]:
    from boxwise.cli import INNER, VERBS

    for verb in (*VERBS.values(), *INNER.values()):
        yield from (field.name for field in fields(verb))


def test_the_tables_of_short_flags_are_whole() -> None:
    text = (ROOT / "docs/recipes.md").read_text()
    lacking = [key for key in SHORT if f"`--{key.replace('_', '-')}`" not in text]
    assert not lacking


def test_every_verb_has_its_page() -> None:
    from boxwise.cli import VERBS

    index = (ROOT / "docs/index.md").read_text()
    assert all(
        (ROOT / f"docs/{verb}.md").is_file() and f"({verb}.md)" in index for verb in (*VERBS, "data-check")
    )


@pytest.mark.parametrize(
    "planted",
    [
        "boxwise pretrian scrl",
        "boxwise evaluate runs/det --data coco/ --jsn",
        "boxwise show scrl --data gone/ --out v.png",
        "boxwise show scrl --data photos/ --out v.png --method.boxs 4",
    ],
)
def test_a_wrong_command_on_a_page_is_noticed(
    planted: str, desk: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```bash\n{planted}\n```\n")
    with pytest.raises(AssertionError, match=re.escape(planted)):
        test_the_page_does_what_it_says(page, desk, world, capsys)


def test_what_a_dry_run_prints_is_a_file_that_config_takes_back(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tiny(["pretrain", "scrl", "--data", "photos/", "--out", "runs/plan", "--dry-run"])
    assert main(plan) == 0
    first = capsys.readouterr().out
    (desk / "plan.yaml").write_text(first)
    again = ["pretrain", "scrl", "--data", "photos/", "--out", "runs/plan", "--config", "plan.yaml"]
    assert main([*again, "--dry-run"]) == 0
    assert capsys.readouterr().out == first
    assert not (desk / "runs/plan").exists()


def test_finetune_ends_with_the_figures_it_has_measured(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny(["finetune", "faster_rcnn_fpn", "--data", "coco/", "--out", "runs/told"])) == 0
    *figures, last = capsys.readouterr().out.splitlines()
    results = json.loads((desk / "runs/told/results.json").read_text())
    assert figures[0] == f"AP     {results['AP']:6.2f}" and last == "runs/told"
