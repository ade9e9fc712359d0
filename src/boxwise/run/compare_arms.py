"""The arms of a comparison: the initial weights, under names of their own, and the one shape that they share."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from boxwise.interop.files import IMAGENET_MEAN, IMAGENET_STD, Weights, load_weights
from boxwise.interop.keys import WeightsError
from boxwise.nn.backbones import RESNETS
from boxwise.recipes.recipe import TransferRecipe
from boxwise.run.finetune import adopted
from boxwise.run.fit import flat
from boxwise.strict import SettingsError, plain

RANDOM, TORCHVISION = "random", "torchvision"
"""Words of --init that are no paths; a folder of that name is reached as ./random."""


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One start of the detector."""

    name: str
    """What it is called in tables and folders."""
    weights: Weights | None = None

    @property
    def digest(self) -> str | None:
        """Of the bytes of the weights' file."""
        return None if self.weights is None else self.weights.digest

    @property
    def mean(self) -> tuple[float, float, float]:
        return IMAGENET_MEAN if self.weights is None else self.weights.mean

    @property
    def std(self) -> tuple[float, float, float]:
        return IMAGENET_STD if self.weights is None else self.weights.std


def open_arms(
    init: Sequence[str | Path], recipe: TransferRecipe, given: Collection[str]
) -> tuple[list[Arm], TransferRecipe]:
    """The arms in the order of `init`, and `recipe` with the backbone and FPN that all of them share.

    Raises ValueError for fewer than two, for one named twice, for weights that cannot be read, and for arms of
    different shapes; SettingsError where a setting in `given` contradicts them.
    """
    words = [str(word) for word in init]
    names = arm_names(words)
    problems: list[str] = []
    arms: dict[str, Arm] = {}
    for word, name in zip(words, names, strict=True):
        if word in (RANDOM, TORCHVISION):
            continue
        try:
            arms[name] = _read(name, Path(word), recipe)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    recipe = _one_shape(recipe, [arms[name] for name in names if name in arms], given)
    if TORCHVISION in words:
        arms[TORCHVISION] = _read(TORCHVISION, hub_file(recipe.detector.backbone), recipe)
    if RANDOM in words:
        arms[RANDOM] = Arm(RANDOM)
    return [arms[name] for name in names], recipe


def arm_names(words: Sequence[str]) -> list[str]:
    """A short name for each word of --init: the least of its path that tells it from the others.

    Raises ValueError for fewer than two words, and for one that stands there twice.
    """
    if len(words) < 2:
        raise ValueError("--init: name at least two starts, such as --init random runs/scrl")
    paths = {word: _telling(word) for word in words}
    twice = [word for i, word in enumerate(words) if word in words[:i]]
    twice += [b for a in paths for b in paths if a < b and paths[a] == paths[b]]
    if twice:
        raise ValueError(f"--init: {twice[0]} stands there twice; each start is one arm")
    longest = max(len(parts) for parts in paths.values())
    for count in range(1, longest + 1):
        names = ["-".join(paths[word][-count:]) for word in words]
        if len({name.lower() for name in names}) == len(names):  # some file systems know no case
            break
    else:
        raise ValueError(f"--init: {', '.join(words)} cannot be told apart by name; rename one")
    return names


def hub_file(backbone: str) -> Path:
    """torchvision's weights of `backbone` in the user's own cache. Nothing is ever fetched.

    Raises ValueError, with the way to get them, where there are none, or more than one file of them.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = sorted(folder.glob(f"{backbone}-*.pth"))
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(str(file) for file in found)
        raise ValueError(f"torchvision: {len(found)} files could be meant; name one in --init: {listed}")
    missing = f"torchvision: no {backbone}-*.pth in {folder}, and nothing is fetched without being asked"
    if backbone not in RESNETS:
        raise ValueError(f"{missing}; name a file of this backbone's weights in --init instead")
    fetch = f'import torchvision; torchvision.models.{backbone}(weights="IMAGENET1K_V1")'
    raise ValueError(f"{missing}; name your file in --init, or fetch it once: python -c '{fetch}'")


def refuse_misfits(arms: Sequence[Arm], recipe: TransferRecipe, *, classes: int) -> Mapping[str, list[str]]:
    """What each arm brings into the detector, by the arm's name; all of it before anything is trained.

    Raises SettingsError for a detector that cannot start so, ValueError for weights that would not arrive whole.
    """
    impossible = [
        f"{arm.name}: {problem}"
        for arm in arms
        for problem in recipe.detector.problems(pretrained=arm.weights is not None)
    ]
    if impossible:
        raise SettingsError([*dict.fromkeys(impossible)])
    detector = recipe.detector.build(classes=classes, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    parts = detector.parts()
    brought: dict[str, list[str]] = {}
    problems: list[str] = []
    for arm in arms:
        held = () if arm.weights is None else arm.weights.parts
        brought[arm.name] = [part for part in held if part in parts]
        if arm.weights is None:
            continue
        report = arm.weights.match(parts)
        try:
            report.require(brought[arm.name])
        except WeightsError:
            lost = [p for p in brought[arm.name] if p not in report.parts or not report.parts[p].complete]
            what = (
                f"{' and '.join(lost)} of these weights cannot fill"
                if lost
                else "none of these weights are in"
            )
            problems.append(
                f"{arm.weights.source}: {what} the detector of this comparison ({recipe.detector.name}, "
                f"{recipe.detector.backbone}); compare weights of one shape, or set --backbone to theirs"
            )
    if problems:
        raise ValueError("\n".join(problems))
    return brought


def _read(name: str, path: Path, recipe: TransferRecipe) -> Arm:
    weights = load_weights(path).only(recipe.weights.parts)
    return Arm(name, weights)


def _telling(word: str) -> tuple[str, ...]:
    """The parts of a path that may name an arm: without endings, and without `export`, which all runs have."""
    if word in (RANDOM, TORCHVISION):
        return (word,)
    path = Path(word).absolute()
    parts = [*path.parts[1:-1], path.stem if path.is_file() else path.name]
    while len(parts) > 1 and parts[-1] in ("export", "model"):
        parts.pop()
    return tuple(part.replace(" ", "_") for part in parts)


def _one_shape(recipe: TransferRecipe, arms: Sequence[Arm], given: Collection[str]) -> TransferRecipe:
    """`recipe` with what all `arms` state of their shapes. Raises ValueError where two of them disagree."""
    shared = recipe
    for arm in arms:
        assert arm.weights is not None
        shared = adopted(shared, arm.weights, given)
    told = [*_disagreements(shared, arms)]
    if told:
        raise ValueError(
            "--init: arms of one comparison share the detector, but "
            + "; ".join(told)
            + "; compare weights of one shape"
        )
    return shared


def _disagreements(shared: TransferRecipe, arms: Sequence[Arm]) -> Iterator[str]:
    """The last arm that states a shape has had its way: whoever would change it again states another."""
    last = flat(plain(shared.detector))
    for arm in arms:
        assert arm.weights is not None
        own = flat(plain(adopted(shared, arm.weights, ()).detector))
        apart = [f"detector.{key} is {own[key]}" for key in own if own[key] != last.get(key)]
        if apart:
            others = ", ".join(str(last.get(key)) for key in own if own[key] != last.get(key))
            yield f"{' and '.join(apart)} in {arm.weights.source} and {others} in the others"
