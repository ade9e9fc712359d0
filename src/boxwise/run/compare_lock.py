"""What all runs of a comparison share: written once, and held to ever after."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from boxwise.config import FREE
from boxwise.data.targets import Labelled
from boxwise.engine.device import device_of, dtype_of
from boxwise.recipes.recipe import TransferRecipe
from boxwise.run.compare_arms import Arm
from boxwise.run.compare_plan import Share
from boxwise.run.fit import flat
from boxwise.strict import dump_yaml, load_yaml, plain, scalar

Lock = dict[str, Any]

LOCK = "compare.yaml"
OPEN = ("arms", "shares", "draws")
"""Sections to which entries may be added later: more arms, shares and seeds leave the runs that there are valid."""
TOLD = {
    "arms": "the initial weights, which alone differ, each with the pixel statistics it was trained with",
    "draws": "digests of the drawn images, by share and seed: all arms of a seed train on the same",
}
"""What a reader of the lock must know of a section."""


def lock_of(
    recipe: TransferRecipe,
    source: str,
    arms: Sequence[Arm],
    brought: Mapping[str, Sequence[str]],
    shares: Sequence[Share],
    train: Labelled,
    test: Labelled,
) -> Lock:
    """Everything that decides the runs, as YAML holds it. `run.seed` and `data.labels` vary on purpose."""
    device = device_of(recipe.run.device)
    precision = dtype_of(recipe.run.precision, device)
    lock = {
        "recipe": {"source": source, **_fixed(recipe)},
        "device": {"kind": device.type, "precision": str(precision).removeprefix("torch.")},
        "data": {
            "train": {"images": len(train), "fingerprint": train.fingerprint()},
            "test": {"images": len(test), "fingerprint": test.fingerprint()},
            "categories": [category.name for category in train.categories],
        },
        "arms": {
            arm.name: {
                "weights": None if arm.weights is None else arm.weights.source,
                "digest": arm.digest,
                "parts": list(brought[arm.name]),
                "mean": list(arm.mean),
                "std": list(arm.std),
            }
            for arm in arms
        },
        "shares": {share.label: share.length() for share in shares},
        "draws": {
            share.label: {f"seed {seed}": _digest(drawn) for seed, drawn in share.drawn.items()}
            for share in shares
        },
    }
    held: Lock = scalar(dump_yaml(lock))  # as it will be read back
    return held


def joined(folder: Path, lock: Lock) -> Lock:
    """`lock` with the entries that earlier commands added to the one in `folder`.

    Raises ValueError that lists what differs from it.
    """
    file = folder / LOCK
    before: Lock = load_yaml(file) if file.is_file() else {}
    if before and (changed := [*changes(before, lock)]):
        listed = "\n  ".join(changed)
        raise ValueError(
            f"{folder}: this comparison was started otherwise, and its runs cannot be held against others; take "
            f"the settings back, choose another folder, or pass --overwrite to start again\n  {listed}"
        )
    return lock | {section: _joined(before.get(section, {}), lock[section]) for section in OPEN}


def changes(before: Lock, now: Lock) -> Iterator[str]:
    """One line for each value that is not what it was. What only one of both names in an open section is no change."""
    old, new = flat(before), flat(now)
    for key in sorted(old.keys() | new.keys()):
        section, name = key.partition(".")[0], key.rpartition(".")[2]
        if section in OPEN and not (key in old and key in new):
            continue
        moved = section == "arms" and name == "weights"  # the same file elsewhere: its digest tells
        if not moved and old.get(key) != new.get(key):
            yield f"{key}: {old.get(key)} -> {new.get(key)}"


def text_of(lock: Lock) -> str:
    """The lock as YAML with a line of explanation above the sections that need one."""
    parts = []
    for section, value in lock.items():
        told = f"# {TOLD[section]}\n" if section in TOLD else ""
        parts.append(told + dump_yaml({section: value}))
    return "".join(parts)


def _fixed(recipe: TransferRecipe) -> Lock:
    """The settings but for seed and share, and those that move no weight."""
    whole: Lock = plain(recipe)
    for key in ("run.seed", "data.labels", *FREE):
        section, _, name = key.partition(".")
        whole[section].pop(name)
    return whole


def _joined(before: Mapping[str, Any], now: Mapping[str, Any]) -> Lock:
    both = {key: before[key] | value for key, value in now.items() if key in before}
    return {**before, **now, **both}


def _digest(drawn: Labelled) -> str:
    names = "\n".join(drawn.name(i) for i in range(len(drawn)))
    return hashlib.blake2b(os.fsencode(names), digest_size=8).hexdigest()
