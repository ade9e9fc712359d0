"""Fits a recipe to the images and the device at hand, and says what it changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from boxwise.data.paste import fewest
from boxwise.engine.device import processes
from boxwise.recipes.configuration import Configuration, Trained
from boxwise.recipes.recipe import Recipe
from boxwise.strict import SettingsError, load_yaml, plain

R = TypeVar("R", bound=Configuration)
C = TypeVar("C", bound=Trained)
CPU_BATCH = 64
"""More images a step only make a CPU wait longer for the next one."""
WARMUP_SHARE = 0.1
FITTED = ("run.batch_size", "method.queue", "schedule.warmup_epochs", "schedule.warmup_steps")
"""What fitting a pretraining recipe may change."""


def on_ranks(recipe: R) -> R:
    """`recipe` with the processes that torchrun or SLURM has started, where one of them has and it can use them."""
    if not isinstance(recipe, Trained):
        return recipe
    devices, nodes = processes(recipe.run)
    if (devices, nodes) == (recipe.run.devices, recipe.run.nodes):
        return recipe
    return recipe.changed({"run.devices": devices, "run.nodes": nodes})


def fitted(
    recipe: Recipe, *, images: int, room: int, on_cpu: bool, given: Collection[str]
) -> tuple[Recipe, list[str]]:
    """`recipe` for `images` images on a device that holds `room` of them at a time, and one line per change.

    Settings named in `given` are the user's and stay. The learning rate follows the batch by itself.
    """
    changes: dict[str, Any] = {}
    why: list[str] = []
    run = recipe.run
    parts = run.devices * run.nodes * run.accumulate
    if "run.batch_size" not in given:
        fits = min(room, CPU_BATCH) if on_cpu else room
        least = max(2, 1 << (fewest(recipe.views) - 1).bit_length())
        batch = _round(min(run.batch_size, fits * parts, max(images // 4, least)), parts, least)
        if batch != run.batch_size:
            changes["run.batch_size"] = batch
            why.append(f"batch size {run.batch_size} -> {batch} (fits {images} images and this device)")
    batch = changes.get("run.batch_size", run.batch_size)
    queue = plain(recipe.method).get("queue")
    if queue and "method.queue" not in given and queue > images // 2:
        most = max(1, images // 2)
        length = most // batch * batch or most  # of a batch that is longer, the newest keys are kept
        changes["method.queue"] = length
        why.append(f"queue {queue} -> {length} (at most half of {images} images)")
    recipe = recipe.changed(changes)
    return _short_warmup(recipe, images, given, why), why


def as_started(recipe: Recipe, out: Path, *, given: Collection[str]) -> Recipe | None:
    """`recipe` as it was fitted when the run in `out` began, however much memory is free by now.

    Settings named in `given` are the user's and stay. None where no run of this recipe began there.
    """
    file = out / "config.yaml"
    before = flat(load_yaml(file)) if file.is_file() else {}
    if before.get("name") != recipe.name:
        return None
    now = flat(plain(recipe))
    return recipe.changed({k: before[k] for k in FITTED if k in before and k in now and k not in given})


def fitted_length(recipe: C, *, images: int, given: Collection[str]) -> tuple[C, list[str]]:
    """A family recipe whose length follows `images` images to train on, and one line per change."""
    why: list[str] = []
    batch, (least, most) = recipe.run.batch_size, recipe.lengths_fitted
    if not {"schedule.epochs", "schedule.steps"} & set(given):
        epochs = recipe.schedule.epochs or 0
        steps = int(min(max(epochs * images / batch, least), most))
        recipe = recipe.changed({"schedule.steps": steps})
        why.append(
            f"{steps} steps of {batch} images ({steps * batch / images:.0f} passes over {images} images)"
        )
    return _short_warmup(recipe, images, given, why), why


def taken_over(
    recipe: R, section: str, theirs: Mapping[str, Any], *, source: str, given: Collection[str]
) -> R:
    """`recipe` with the settings of `section` that weights from `source` decide.

    Raises SettingsError where a setting in `given` contradicts the weights.
    """
    ours = plain(getattr(recipe, section))
    wrong = [
        f"{section}.{key}: {ours[key]} was asked for, but {source} holds {value}"
        for key, value in theirs.items()
        if f"{section}.{key}" in given and ours[key] != value
    ]
    if wrong:
        raise SettingsError(wrong)
    return recipe.changed({section: dict(theirs)})


def scaled_rate(recipe: Trained) -> str:
    """How the learning rate follows the batch, in one line."""
    lr = rate(recipe)
    optim, batch = recipe.optim, recipe.run.batch_size
    return f"lr {optim.lr:g} at batch {optim.lr_batch} -> {lr:g} at batch {batch}"


def rate(recipe: Trained) -> float:
    """The learning rate at this recipe's batch size."""
    return recipe.optim.lr * recipe.run.batch_size / recipe.optim.lr_batch


def given_keys(settings: Mapping[str, Any], recipe: Configuration) -> set[str]:
    """The full dotted keys that a user set."""
    return set(flat(recipe.nested(settings)))


def flat(nest: Any, at: str = "") -> dict[str, Any]:
    """Values by full dotted key."""
    if not isinstance(nest, dict):
        return {at: nest}
    return {
        k: v for key, inner in nest.items() for k, v in flat(inner, f"{at}.{key}" if at else str(key)).items()
    }


def _short_warmup(recipe: C, images: int, given: Collection[str], why: list[str]) -> C:
    schedule, total = recipe.schedule, recipe.steps(images)
    warmup = schedule.warmup_steps + schedule.warmup_epochs * recipe.steps_per_epoch(images)
    if warmup <= WARMUP_SHARE * total or {"schedule.warmup_epochs", "schedule.warmup_steps"} & set(given):
        return recipe
    shorter = int(WARMUP_SHARE * total)
    why.append(f"warm-up {warmup:.0f} -> {shorter} steps (a tenth of {total})")
    return recipe.changed({"schedule.warmup_epochs": 0.0, "schedule.warmup_steps": shorter})


def _round(batch: int, parts: int, least: int) -> int:
    """Down to a power of two, or to what the parts divide, with at least `least` images in each part."""
    power = 1 << max(1, batch.bit_length() - 1)
    return max(least * parts, power // parts * parts)
