"""From what a user names on the command line to a recipe."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from boxwise.config import Run
from boxwise.data.paste import fewest
from boxwise.engine.device import leads, processes
from boxwise.recipes import pretrain as pretraining
from boxwise.recipes import probes as probing
from boxwise.recipes import tables
from boxwise.recipes import transfer as transferring
from boxwise.recipes.configuration import Configuration, Trained
from boxwise.recipes.recipe import ProbeRecipe, Recipe, TransferRecipe
from boxwise.run.fit import flat, given_keys, on_ranks, scaled_rate
from boxwise.strict import SettingsError, dump_yaml, load_yaml, merge, nearest, plain, read

R = TypeVar("R", bound=Configuration)
WHY = {"encoder.zero_init_last": "only torchvision's ResNets can start so"}
"""Why some settings follow from others."""


@dataclass(frozen=True, slots=True)
class Found(Generic[R]):
    """A recipe, where it came from, and whether it may be fitted to images and device before it starts."""

    recipe: R
    source: str
    """What was named: a recipe's name or FILE.py:FUNCTION, absolute."""
    fitted: bool
    """A short method or family name: length and batch follow the data. Published runs stay as they are."""
    given: frozenset[str]
    """The full dotted keys that file and flags set: these are the user's, and nothing fits them."""
    changes: tuple[str, ...] = ()
    """One line for each setting that follows from another that was set."""


def pretrain_recipe(
    named: str, *, config: Path | None = None, settings: Mapping[str, Any] | None = None
) -> Found[Recipe]:
    """The pretraining recipe that `named` stands for, with a YAML file and flags laid over it.

    Raises SettingsError for an unknown name (with the nearest) and for settings that cannot be.
    """
    known = {f.__name__: f for f in (*pretraining.PUBLISHED, *pretraining.OURS)}
    if ".py:" not in named and named not in {**known, **pretraining.METHODS}:
        known |= {name: partial(_itself, recipe) for name, (_, recipe) in tables.derived().items()}
    return _found(named, pretraining.METHODS, known, Recipe, config, settings)


def _itself(recipe: Recipe) -> Recipe:
    return recipe


def transfer_recipe(
    named: str, *, config: Path | None = None, settings: Mapping[str, Any] | None = None
) -> Found[TransferRecipe]:
    """The fine-tuning recipe that `named` stands for, with a YAML file and flags laid over it."""
    known = {f.__name__: f for f in transferring.PROTOCOLS}
    return _found(named, transferring.FAMILIES, known, TransferRecipe, config, settings)


def probe_recipe(
    named: str, *, config: Path | None = None, settings: Mapping[str, Any] | None = None
) -> Found[ProbeRecipe]:
    """The probe that `named` stands for, with a YAML file and flags laid over it."""
    known = {f.__name__: f for f in probing.PROTOCOLS}
    return _found(named, probing.FAMILIES, known, ProbeRecipe, config, settings)


FINDERS: Mapping[str, Callable[..., Found[Any]]] = {
    "show": pretrain_recipe,
    "pretrain": pretrain_recipe,
    "finetune": transfer_recipe,
    "compare": transfer_recipe,
    "probe": probe_recipe,
}
"""What finds the recipe of each verb that takes one."""


def say(recipe: Configuration, changes: Iterable[str], *, source: str | None = None) -> None:
    """What was changed and how the rate follows the batch, before a run; with `source`, the whole recipe too."""
    if not leads():
        return
    for line in [*changes, *([scaled_rate(recipe)] if isinstance(recipe, Trained) else [])]:
        print(f"  {line}", file=sys.stderr)
    if source is not None:
        print(dump_yaml(saved(recipe, source)), end="")


def saved(recipe: Configuration, source: str) -> dict[str, Any]:
    """What config.yaml holds: the resolved recipe, and the function that a user's own method came from."""
    return {"source": source, **plain(recipe)}


def _found(
    named: str,
    short: Mapping[str, Callable[[], R]],
    known: Mapping[str, Callable[[], R]],
    kind: type[R],
    config: Path | None,
    settings: Mapping[str, Any] | None,
) -> Found[R]:
    source, fitted = named, named in short
    if ".py:" in named:
        recipe, source = _from_file(named, kind)
    elif named in short or named in known:
        recipe = {**known, **short}[named]()
    else:
        raise SettingsError([_unknown(named, [*short, *known], kind)])
    layers: list[Mapping[str, Any]] = []
    if config is not None:
        file = _settings_in(config)
        file.pop("source", None)
        file.pop("name", None)
        layers.append(file)
        fitted = fitted and not _whole(file, recipe)
    layers.append(settings or {})
    given = frozenset(key for layer in layers for key in given_keys(layer, recipe))
    parted: dict[str, int] = {}
    if fitted and isinstance(recipe, Recipe) and "run.batch_size" not in given:
        parted = _parted(recipe, layers)
    changed = recipe.changed(parted, *layers)
    changes = [
        f"batch size {recipe.run.batch_size} -> {batch} (a multiple of run.accumulate * run.devices * run.nodes)"
        for batch in parted.values()
    ]
    changes += _implied(recipe, changed, layers, given)
    return Found(on_ranks(changed), source, fitted, given, tuple(changes))


def _parted(recipe: Recipe, layers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The batch, which is going to be fitted, made one that can be parted as `layers` ask; nothing where it is.

    Nothing either where `layers` ask for what is impossible, which is told with all else that is wrong.
    """
    asked = plain(recipe.run)
    for layer in layers:
        asked = merge(asked, recipe.nested(layer).get("run", {}))
    try:
        run: Run = read(Run, asked)
    except SettingsError:
        return {}
    devices, nodes = processes(run)
    parts = run.accumulate * devices * nodes
    batch = max(fewest(recipe.views), run.batch_size // parts) * parts
    return {} if batch == run.batch_size else {"run.batch_size": batch}


def _unknown(named: str, words: Sequence[str], kind: type[Configuration]) -> str:
    """What to tell of a name that is no recipe of this kind."""
    others: dict[tuple[str, type[Configuration]], Collection[str]] = {
        ("pretrain", Recipe): {*pretraining.METHODS, *(f.__name__ for f in pretraining.PUBLISHED)},
        ("finetune", TransferRecipe): {
            *transferring.FAMILIES,
            *(f.__name__ for f in transferring.PROTOCOLS),
        },
        ("probe", ProbeRecipe): {*probing.FAMILIES, *(f.__name__ for f in probing.PROTOCOLS)},
    }
    for (verb, other), names in others.items():
        if named in names and other is not kind:
            return f"{named}: is a recipe of boxwise {verb}; boxwise list recipes says what there is"
    return f"{named}: no such recipe{nearest(named, words)} (boxwise list recipes; or FILE.py:FUNCTION)"


def _settings_in(config: Path) -> dict[str, Any]:
    """A file of settings that is none is wrong usage, as a wrong flag is."""
    try:
        return load_yaml(config)
    except ValueError as error:
        raise SettingsError([str(error)]) from None


def _implied(
    recipe: Configuration, changed: Configuration, layers: Sequence[Mapping[str, Any]], given: Collection[str]
) -> Iterator[str]:
    """What follows from other settings, and was not set by itself."""
    before, after = flat(plain(recipe)), flat(plain(changed))
    for key in recipe.implied(*layers):
        if key not in given and key in after and after[key] != before[key]:
            why = WHY.get(key, "pixels of a view, and views are resized")
            yield f"{key} {before[key]} -> {after[key]} ({why})"


def _whole(file: Mapping[str, Any], recipe: Configuration) -> bool:
    """A file that holds every section is a resolved recipe: nothing in it is fitted again."""
    return set(file) >= set(recipe.kinds())


def _from_file(named: str, kind: type[R]) -> tuple[R, str]:
    """Runs `function` of `file.py`; the module enters sys.modules first, so that its dataclasses can be read."""
    file, _, function = named.rpartition(":")
    path = Path(file).resolve()
    if not path.is_file():
        raise SettingsError([f"{file}: no such file (expected FILE.py:FUNCTION)"])
    name = f"boxwise_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if not callable(made := getattr(module, function, None)):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise SettingsError([f"{file}: has no function {function}{nearest(function, names)}"])
    recipe = made()
    if not isinstance(recipe, kind):
        raise SettingsError([f"{named}: returned {type(recipe).__name__}, expected {kind.__name__}"])
    return recipe, f"{path}:{function}"
