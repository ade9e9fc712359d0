"""Which runs a comparison is made of, in the order in which they are worth most."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from boxwise.data.targets import Labelled, choose
from boxwise.data.training_set import training_set
from boxwise.engine.atomic import read_json
from boxwise.recipes.recipe import TransferRecipe
from boxwise.run.compare_arms import Arm
from boxwise.run.fit import fitted_length

State = Literal["finished", "diverged", "open"]


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A share (0.1) or a count (100) of the labels, as drawn by each seed."""

    label: str
    """As it is typed, and as folders have it."""
    drawn: Mapping[int, Labelled]
    """By seed."""
    recipe: TransferRecipe
    """With the length that follows the number of images."""

    @property
    def images(self) -> int:
        return len(next(iter(self.drawn.values())))

    @property
    def steps(self) -> int:
        return self.recipe.steps(self.images)

    def length(self) -> dict[str, Any]:
        """How long its runs train."""
        schedule, epoch = self.recipe.schedule, self.recipe.steps_per_epoch(self.images)
        warmup = schedule.warmup_steps + schedule.warmup_epochs * epoch
        return {"images": self.images, "steps": self.steps, "warmup_steps": round(warmup)}


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One run: an arm, a share, a seed."""

    arm: Arm
    share: Share
    seed: int
    folder: Path

    @property
    def recipe(self) -> TransferRecipe:
        return self.share.recipe.changed({"run.seed": self.seed})

    @property
    def state(self) -> State:
        """`open`: not begun, or begun and not measured."""
        facts = self.folder / "run.json"
        status = read_json(facts)["status"] if facts.is_file() else None
        if status == "finished" and (self.folder / "results.json").is_file():
            return "finished"
        return "diverged" if status == "diverged" else "open"

    def __str__(self) -> str:
        part = spoken(self.share.label) + (" of the labels" if "." in self.share.label else "")
        return f"{self.arm.name}, {part}, seed {self.seed}"


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All that a comparison will do."""

    cells: list[Cell]
    source: str
    lock: dict[str, Any]
    train: Labelled
    test: Labelled

    @property
    def open(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.state == "open"]

    def listing(self, *, fresh: bool) -> str:
        """The runs as comments of YAML, so that all of a dry run is a file that can be read; `fresh`: none is kept."""
        lines = [
            f"# {i:>3}  {cell}: {cell.share.images} images, {cell.share.steps} steps"
            + ("" if fresh or cell.state == "open" else f" ({cell.state})")
            for i, cell in enumerate(self.cells, start=1)
        ]
        ahead = self.cells if fresh else self.open
        steps = sum(cell.share.steps for cell in ahead)
        pixels = steps * self.cells[0].recipe.run.batch_size
        return "\n".join(["# runs", *lines, f"# to do: {len(ahead)} runs, {steps} steps, {pixels} images"])


def open_shares(
    labels: Sequence[float | int],
    seeds: Sequence[int],
    train: Labelled,
    recipe: TransferRecipe,
    *,
    fitted: bool,
    given: Collection[str],
) -> list[Share]:
    """The draws of every share, the smallest first. For one seed a smaller one lies within every larger one.

    Raises ValueError for no share, for one named twice, and for what `choose` refuses.
    """
    if not labels:
        raise ValueError("--labels: name at least one share (0.1) or count (100) of the labelled images")
    made: list[Share] = []
    for label in labels:
        drawn = {seed: training_set(choose(train, label, seed=seed), recipe.data) for seed in seeds}
        count = len(drawn[seeds[0]])
        fits = fitted_length(recipe, images=count, given=given)[0] if fitted else recipe
        made.append(Share(share_label(label), drawn, fits.changed({"data.labels": label})))
    made.sort(key=lambda share: share.images)
    for smaller, larger in pairwise(made):
        if smaller.images == larger.images:
            raise ValueError(
                f"--labels: {smaller.label} and {larger.label} are the same {smaller.images} of {len(train)} "
                "images; name each amount once"
            )
    return made


def cells(arms: Sequence[Arm], shares: Sequence[Share], seeds: Sequence[int], out: Path) -> list[Cell]:
    """Seed by seed, so that a comparison that is stopped early has all arms at all shares."""
    return [
        Cell(arm, share, seed, out / "runs" / f"{arm.name}_{share.label}_{seed}")
        for seed in seeds
        for share in shares
        for arm in arms
    ]


def share_label(label: float | int) -> str:
    """0.1 or 100: a share has its point, a count has none."""
    return str(label) if isinstance(label, int) else f"{label:.6f}".rstrip("0").ljust(3, "0")


def spoken(label: str) -> str:
    """10 %, or 100 images."""
    if "." not in label:
        return f"{label} image{'s' if label != '1' else ''}"
    return f"{100 * float(label):.4g} %"
