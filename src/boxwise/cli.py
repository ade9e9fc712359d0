"""The command line: verbs to functions. Starts in well under a second, since torch is imported by the verbs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from boxwise.strict import SettingsError, nearest, scalar

USAGE, FAILED = 2, 1
"""Exit codes, beside 0, 130 for Ctrl-C, 143 for SIGTERM, and what an error of ours carries as `exit_code`:
3 for a run that diverged, 4 for weights that did not arrive."""
STOPPED = (130, 143)

Named = Annotated[str, arg(metavar="RECIPE")]
Place = Annotated[Path | None, arg(metavar="PATH")]


@dataclasses.dataclass(kw_only=True)
class Show:
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


@dataclasses.dataclass(kw_only=True)
class Training:
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

    def shared(self) -> dict[str, Any]:
        """The flags of every training, as its function takes them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Training)}


@dataclasses.dataclass(kw_only=True)
class Proposals:
    """Propose boxes for images: SoCo's selective search, random, a grid, or those of a COCO json.

    Goes on where it was stopped. `boxwise proposals check FILE --data PATH` looks at a finished file.
    """

    data: Positional[Annotated[str, arg(metavar="PATH")]]
    """A folder of images, a list file, a root of COCO or another layout, or a COCO json with --images."""
    out: Path
    """The file to write."""
    method: Literal["selective-search", "random", "grid", "coco-json"] = "selective-search"
    boxes: Place = None
    """The json with the boxes of coco-json: labels or detections. Without it: the data's own."""
    values: Literal["unit", "bytes"] = "unit"
    """Selective search as the package of that name does it on [0, 1], or as SoCo's script did, on bytes."""
    count: int = 64
    """Random boxes an image."""
    seed: int = 0
    """Of random boxes."""
    images: Place = None
    """The folder that the file names of a COCO json start from."""
    workers: int | None = None
    """Processes: all cores, unless told."""
    overwrite: bool = False
    """Replace a file of other images or another method."""


@dataclasses.dataclass(kw_only=True)
class CheckProposals:
    """Look at a file of proposals: boxes per image, sizes, shapes, missing and changed images, recall."""

    file: Positional[Annotated[Path, arg(metavar="FILE")]]
    """What `boxwise proposals` wrote."""
    data: str
    """The images: a folder, a list file, a root of COCO or another layout, or a COCO json with --images."""
    images: Place = None
    """The folder that the file names of a COCO json start from."""


@dataclasses.dataclass(kw_only=True)
class CheckData:
    """Look at labelled images before a run: layout, counts, bad files, what will be used, and what to mend.

    The exit code is 1 where a problem was found.
    """

    data: Positional[Annotated[str, arg(metavar="PATH")]]
    """A COCO, LVIS, VOC or Cityscapes root, a YOLO data.yaml, or a COCO json with --images."""
    images: Place = None
    """The folder that the file names of a COCO json start from."""
    val: Place = None
    """The COCO json to measure on, where PATH is a json."""
    all: bool = False
    """Decode every image, not a sample."""


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
    """A pretraining run, its export folder, or a weights file of ours, torchvision's or timm's."""
    val: Place = None
    """The COCO json to measure on, where --data is a json."""
    labels: Annotated[str | None, arg(metavar="SHARE|COUNT")] = None
    """Train on a share (0.1) or a count (100) of the labelled images, drawn by the seed and listed in the run."""
    overfit: Annotated[int | None, arg(metavar="COUNT")] = None
    """A self-test: train on so many images and measure on the same; fails below AP50 80, with suspects."""


@dataclasses.dataclass(kw_only=True)
class Compare:
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


@dataclasses.dataclass(kw_only=True)
class Evaluate:
    """Measure a fine-tuned detector: COCO's twelve figures."""

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


@dataclasses.dataclass(kw_only=True)
class Predict:
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
    """Least score of a detection that is kept."""
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


@dataclasses.dataclass(kw_only=True)
class Report:
    """Join run folders to one offline page."""

    runs: Positional[Annotated[tuple[Path, ...], arg(metavar="RUN ...")]]
    """Folders that `boxwise pretrain` and `boxwise finetune` wrote."""
    out: Path = Path("report.html")
    """The page to write."""


@dataclasses.dataclass(kw_only=True)
class List:
    """What there is: recipes, methods, backbones, or the papers' tables and how many of their rows have a recipe."""

    what: Positional[Literal["recipes", "methods", "backbones", "tables"]]


@dataclasses.dataclass(kw_only=True)
class Scenes:
    """Write procedural scenes with boxes and masks in COCO layout: the built-in data set."""

    out: Path
    """The folder to write: annotations/, train2017/, val2017/ and, on request, unlabeled2017/."""
    count: int
    """Labelled training scenes."""
    val: int = 100
    """Labelled validation scenes."""
    unlabelled: int = 0
    """Scenes without labels."""
    size: int = 128
    """Pixels a side."""
    seed: int = 0
    overwrite: bool = False
    """Empty OUT first."""


@dataclasses.dataclass(kw_only=True)
class Doctor:
    """Check this machine: versions, devices, precision, workers."""


@dataclasses.dataclass(kw_only=True)
class Demo:
    """From nothing to a better detector in minutes: scenes, pretraining, two fine-tunings, a page."""

    out: Path = Path("demo")
    """The folder for scenes, runs, report.html and result.json."""
    seed: int = 0
    scale: float = 1.0
    """Length of everything: 1 takes up to ten minutes on two cores, less gains less."""
    overwrite: bool = False
    """Empty OUT first."""


VERBS: dict[str, type] = {
    "show": Show,
    "proposals": Proposals,
    "pretrain": Pretrain,
    "finetune": Finetune,
    "evaluate": Evaluate,
    "predict": Predict,
    "compare": Compare,
    "report": Report,
    "list": List,
    "scenes": Scenes,
    "doctor": Doctor,
    "demo": Demo,
}
GO_ON = {
    "proposals": "go on with the same command",
    "pretrain": "go on with --resume",
    "finetune": "go on with --resume",
    "compare": "go on with the same command",
    "demo": "start again with --overwrite",
}
"""What to do after a training that a signal ended."""
INNER: dict[str, type] = {"proposals check": CheckProposals, "data check": CheckData}
"""Commands of two words. A folder that is named like the second is reached as ./check."""
WITH_RECIPE = ("show", "pretrain", "finetune", "compare")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code. Results go to stdout; progress and errors to stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else USAGE
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("boxwise"))
        return 0
    two = " ".join(argv[:2])
    if two in INNER:
        return _run(two, argv[2:])
    if argv[0] not in VERBS:
        near = nearest(two if argv[0] == "data" else argv[0], [*VERBS, *INNER])
        return _usage(f"{two if argv[0] == 'data' else argv[0]}: no such command{near}")
    return _run(argv[0], argv[1:])


def _run(verb: str, argv: list[str]) -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        known, overrides = _split(verb, argv)
        arguments: Any = tyro.cli(
            (VERBS | INNER)[verb], args=known, prog=f"boxwise {verb}", config=(tyro.conf.FlagCreatePairsOff,)
        )
        code = CALLS[verb](arguments, overrides) or 0
        sys.stdout.flush()
        return code
    except SettingsError as error:
        return _usage(*error.problems)
    except SystemExit as stop:  # tyro's help and usage errors; the engine's 130 and 143
        if stop.code == 0 and verb in WITH_RECIPE and "--help" in argv:
            _recipe_help(verb, argv)
        if stop.code in STOPPED:
            _say_how_to_go_on(verb)
        return stop.code if isinstance(stop.code, int) else FAILED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"boxwise {verb}: {error}", file=sys.stderr)
        return FAILED
    except RuntimeError as error:
        if not hasattr(error, "exit_code"):
            raise
        print(f"boxwise {verb}: {error}", file=sys.stderr)
        return int(error.exit_code)


def _say_how_to_go_on(verb: str) -> None:
    from boxwise.engine.device import leads

    if verb in GO_ON and leads():
        print(f"boxwise {verb}: {GO_ON[verb]}", file=sys.stderr)


def _split(verb: str, argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The verb's own flags, and settings of the recipe. `--a.b 1`, `--a.b=1` and a bare `--flag` are settings."""
    own = {f.name for f in dataclasses.fields((VERBS | INNER)[verb])} | {"help"}
    known: list[str] = []
    overrides: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name.replace("-", "_").removeprefix("no_") in own:
            known.append(word)
            continue
        if verb not in WITH_RECIPE:
            flags = [f"--{n.replace('_', '-')}" for n in sorted(own - {"help"})]
            raise SettingsError([f"{word}: no such flag{nearest(word, flags)}"])
        if not equals:
            text = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        overrides[name.replace("-", "_")] = scalar(text)
    return known, overrides


def _show(a: Show, overrides: dict[str, Any]) -> None:
    from boxwise.run.show import show

    from_files = {"images": a.images, "config": a.config, "proposals": a.proposals}
    print(show(a.recipe, a.data, a.out, **from_files, settings=overrides, count=a.count))


def _proposals(a: Proposals, overrides: dict[str, Any]) -> None:
    from boxwise.engine.device import leads
    from boxwise.run.proposals import proposals

    done = proposals(
        a.data,
        a.out,
        images=a.images,
        method=a.method,
        boxes=a.boxes,
        values=a.values,
        count=a.count,
        seed=a.seed,
        workers=a.workers,
        overwrite=a.overwrite,
    )
    if leads():
        print(done)


def _check_proposals(a: CheckProposals, overrides: dict[str, Any]) -> int:
    from boxwise.run.check_proposals import check

    found = check(a.file, a.data, images=a.images)
    print(found.text)
    return 0 if found.fits else FAILED


def _check_data(a: CheckData, overrides: dict[str, Any]) -> int:
    from boxwise.run.check_data import check

    found = check(a.data, images=a.images, val=a.val, every=a.all)
    print(found.text)
    return FAILED if found.problems else 0


def _pretrain(a: Pretrain, overrides: dict[str, Any]) -> None:
    from boxwise.engine.device import leads
    from boxwise.run.pretrain import pretrain

    done = pretrain(**a.shared(), settings=overrides, init=a.init, proposals=a.proposals)
    if leads() and not a.dry_run:  # which has printed the recipe, and nothing else may stand in that file
        print(done)


def _finetune(a: Finetune, overrides: dict[str, Any]) -> None:
    from boxwise.engine.device import leads
    from boxwise.run.evaluate import as_table
    from boxwise.run.finetune import finetune

    labels = None if a.labels is None else _amount(a.labels)
    done = finetune(
        **a.shared(), settings=overrides, weights=a.weights, val=a.val, labels=labels, overfit=a.overfit
    )
    if leads() and not a.dry_run:
        print(as_table(json.loads((done / "results.json").read_text())))
        print(done)


def _compare(a: Compare, overrides: dict[str, Any]) -> None:
    from boxwise.report.comparison import write_comparison
    from boxwise.run.compare import RESULTS, compare
    from boxwise.run.compare_results import as_table

    flags = {field.name: getattr(a, field.name) for field in dataclasses.fields(Compare)}
    flags["labels"] = [_amount(text) for text in a.labels] or None
    compare(**flags, settings=overrides, after_run=write_comparison)
    if not a.dry_run:
        print(as_table(json.loads((a.out / RESULTS).read_text())))
        print(write_comparison(a.out))


def _amount(text: str) -> float | int:
    amount = scalar(text)
    if type(amount) not in (int, float):
        raise SettingsError([f"--labels: expected a share (0.1) or a count (100), got {text}"])
    return amount


def _evaluate(a: Evaluate, overrides: dict[str, Any]) -> None:
    from boxwise.run.evaluate import as_table, evaluate

    figures = evaluate(
        a.run,
        a.data,
        images=a.images,
        metric=a.metric,
        geodesics=a.geodesics,
        device=a.device,
        batch_size=a.batch_size,
    )
    print(json.dumps(figures) if a.json else as_table(figures))


def _predict(a: Predict, overrides: dict[str, Any]) -> None:
    from boxwise.run.predict import predict

    flags = {field.name: getattr(a, field.name) for field in dataclasses.fields(Predict)}
    print(predict(**flags))


def _report(a: Report, overrides: dict[str, Any]) -> None:
    from boxwise.report.page import write_report

    if not a.runs:
        raise SettingsError(["report: name the run folders to join, such as runs/scrl runs/det"])
    print(write_report(a.runs, a.out))


def _list(a: List, overrides: dict[str, Any]) -> None:
    from boxwise.run.catalogue import listing

    print(listing(a.what))


def _scenes(a: Scenes, overrides: dict[str, Any]) -> None:
    from boxwise.run.scenes import scenes

    print(
        scenes(
            a.out,
            count=a.count,
            val=a.val,
            unlabelled=a.unlabelled,
            size=a.size,
            seed=a.seed,
            overwrite=a.overwrite,
        )
    )


def _doctor(a: Doctor, overrides: dict[str, Any]) -> int:
    from boxwise.run.doctor import doctor

    text, healthy = doctor()
    print(text)
    return 0 if healthy else FAILED


def _demo(a: Demo, overrides: dict[str, Any]) -> None:
    from boxwise.report.page import write_report
    from boxwise.run.demo import demo

    result = demo(a.out, seed=a.seed, scale=a.scale, overwrite=a.overwrite)
    page = write_report(result.runs, a.out / "report.html")
    print(f"{result}\n{page}")


CALLS: dict[str, Callable[[Any, dict[str, Any]], int | None]] = {
    "show": _show,
    "proposals": _proposals,
    "proposals check": _check_proposals,
    "data check": _check_data,
    "pretrain": _pretrain,
    "finetune": _finetune,
    "evaluate": _evaluate,
    "predict": _predict,
    "compare": _compare,
    "report": _report,
    "list": _list,
    "scenes": _scenes,
    "doctor": _doctor,
    "demo": _demo,
}


def _overview() -> str:
    alone = {two: kind for two, kind in INNER.items() if two.split()[0] not in VERBS}
    lines = [f"  {verb:<10} {(kind.__doc__ or '').splitlines()[0]}" for verb, kind in (VERBS | alone).items()]
    return "\n".join(
        [
            "usage: boxwise COMMAND [--help] ...",
            "",
            "Self-supervised pretraining aligned with object detection: from unlabelled images to a better detector.",
            "",
            *lines,
            "",
            "boxwise COMMAND --help teaches the command; boxwise pretrain scrl --help lists the recipe's settings too.",
        ]
    )


def _recipe_help(verb: str, argv: Sequence[str]) -> None:
    """Every setting of the named recipe with its value, after the verb's own flags."""
    named = [word for word in argv if not word.startswith("-")]
    if verb == "compare":  # whose recipe is a flag
        named = [after for word, after in itertools.pairwise(argv) if word == "--detector"]
    if not named:
        return
    from boxwise.run.catalogue import settings_help

    print(settings_help(named[0], kind="transfer" if verb in ("finetune", "compare") else "pretrain"))


def _usage(*problems: str) -> int:
    for problem in problems:
        print(f"boxwise: {problem}", file=sys.stderr)
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
