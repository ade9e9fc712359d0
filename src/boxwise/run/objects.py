"""Where the proposed boxes of a run come from: a file that is named, a file that is made first, or nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boxwise.data.objects import Proposer, WholeImage
from boxwise.data.proposals import Proposals
from boxwise.data.propose import Generator
from boxwise.data.sources import Files
from boxwise.recipes.recipe import Recipe
from boxwise.run.proposals import chosen, ensure


@dataclass(frozen=True, slots=True)
class OnTheSpot:
    """Boxes of an image when they are asked for: a second or less each, for the few that are drawn."""

    images: Files
    generator: Generator

    def boxes(self, index: int) -> NDArray[np.float32]:
        pixels = self.images.read(index).permute(1, 2, 0).contiguous().numpy()
        found = self.generator.rects(pixels, self.images.name(index)).astype(np.float32)
        return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)


def run_proposals(recipe: Recipe, images: Files, out: Path, file: Path | None) -> Proposer | None:
    """The boxes that a run of `recipe` in `out` chooses its objects from; none where it needs none.

    Without a `file`, one is made beside `out`, and said; it serves all runs there on these images. Raises
    ValueError for a file of other images, or for a recipe that takes no boxes.
    """
    kind = _kind(recipe, file)
    if kind is None:
        return None
    if file is not None:
        return Proposals.open(file, images)
    if kind == "whole":
        return WholeImage()
    made = out.absolute().parent / f"proposals-{kind}-{images.fingerprint()[:8]}.safetensors"
    return ensure(images, made, method=chosen(kind), workers=recipe.data.workers)


def shown_proposals(recipe: Recipe, images: Files, file: Path | None) -> Proposer | None:
    """As `run_proposals`, for a look at a few images: nothing is written."""
    kind = _kind(recipe, file)
    if kind is None:
        return None
    if file is not None:
        return Proposals.open(file, images)
    return WholeImage() if kind == "whole" else OnTheSpot(images, chosen(kind))


def identity(proposer: Proposer | None) -> dict[str, object]:
    """What of the proposals must be the same when a run is resumed."""
    if isinstance(proposer, Proposals):
        return {"proposals": {**proposer.table.generator, "boxes": len(proposer.table.boxes)}}
    return {}


def _kind(recipe: Recipe, file: Path | None) -> str | None:
    objects = recipe.method.objects
    if objects is not None:
        return objects.proposals
    if file is not None:
        raise ValueError(f"--proposals: {recipe.method.name} compares no proposed boxes; leave the flag out")
    return None
