"""Raw values from YAML and flags, merged over defaults and validated once: every problem in one message."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
Raw = dict[str, Any]
UNITED = (typing.Union, types.UnionType, tuple, typing.Annotated)
"""Types that are made of others."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number, as in YAML 1.2 and everywhere else."""


_Loader.yaml_implicit_resolvers = yaml.SafeLoader.yaml_implicit_resolvers.copy()
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"), list("-+.0123456789")
)


class SettingsError(ValueError):
    """Settings that cannot be: one line a problem, each naming the key."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


def plain(value: Any) -> Any:
    """Settings as what YAML and JSON hold: dicts, lists, numbers, strings."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return value


def merge(base: Any, over: Any) -> Any:
    """`over` laid on `base`, key by key. A dict with another `name` replaces its base whole: the defaults of
    one optimiser mean nothing to another. Lists are replaced, or changed at the indices that a dict names."""
    if isinstance(base, list) and isinstance(over, dict) and all(str(k).isdigit() for k in over):
        changed = list(base)
        for key, value in over.items():
            if int(key) < len(base):
                changed[int(key)] = merge(base[int(key)], value)
            else:
                changed.append(value)
        return changed
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if "name" in base and over.get("name", base["name"]) != base["name"]:
        return over
    return base | {key: merge(base.get(key), value) for key, value in over.items()}


def scalar(text: str) -> Any:
    """What the text of a flag means: a number, true, a list, or the text itself."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def read(kind: type[T] | Any, raw: Any, *, at: str = "") -> T:
    """`raw` as settings of `kind`, strictly: unknown keys, wrong types and all else that is off, at once.

    `at` is the dotted place of `raw` in the whole, for messages. Raises SettingsError.
    """
    try:
        return typing.cast(T, TypeAdapter(kind).validate_json(json.dumps(raw)))
    except ValidationError as error:
        raise SettingsError([_problem(kind, e, at) for e in error.errors()]) from None


def keys(kind: Any, at: str = "") -> Iterator[str]:
    """Every dotted key that settings of `kind` have; those of a list at its first place."""
    if typing.get_origin(kind) is tuple:
        at = f"{at}.0" if at else "0"
    if typing.get_origin(kind) in UNITED:
        for part in typing.get_args(kind):
            yield from keys(part, at)
    elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
        for field in dataclasses.fields(kind):
            key = f"{at}.{field.name}" if at else field.name
            yield key
            yield from keys(_hints(kind)[field.name], key)


def nearest(word: str, known: Sequence[str] | Iterator[str]) -> str:
    """ ", did you mean ...?" with the closest known word, or nothing."""
    known = list(dict.fromkeys(known))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:  # a key may be right but for the place it stands at
        close = [k for k in known if k.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]][:1]
    return f", did you mean {close[0]}?" if close else ""


def load_yaml(path: Path) -> Raw:
    """A mapping of settings from a file; ValueError when it is not one."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML ({_in_one_line(error)})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected settings as `key: value` lines")
    return value


def _in_one_line(error: Exception) -> str:
    """YAML's own words quote the file over several lines."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, OSError):
        return str(error.strerror or error)
    return str(error).partition("\n")[0]


def dump_yaml(value: Any) -> str:
    """Settings as YAML that `read` takes back."""
    return yaml.safe_dump(plain(value), sort_keys=False, default_flow_style=None, width=100)


def _problem(kind: Any, error: Any, at: str) -> str:
    place = [str(p) for p in error["loc"]]
    tags = {name for member in _reachable(kind) for name in (_tag(member), member.__name__) if name}
    key = ".".join([*([at] if at else []), *(p for i, p in enumerate(place) if not _is_tag(place, i, tags))])
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: no such setting{nearest(key, (_placed(k, key) for k in keys(kind, at)))}"
    if error["type"] == "union_tag_invalid":
        key = f"{key}.name" if key else "name"
        return f"{key}: {error['ctx']['tag']} is none of {error['ctx']['expected_tags']}"
    if error["type"] == "value_error":  # what a settings class of ours says of its fields together
        return f"{key}: {error['msg'].removeprefix('Value error, ')}"
    given = "" if error["type"].startswith(("missing", "union_tag")) else f", got {error['input']!r}"
    mend = "; null stands for none" if error.get("input") in ("none", "None") else ""
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}{given}{mend}"


def _placed(known: str, typed: str) -> str:
    """A known key, at the places in lists that were typed."""
    places = (part for part in typed.split(".") if part.isdigit())
    return ".".join(next(places, part) if part.isdigit() else part for part in known.split("."))


def _is_tag(place: list[str], i: int, tags: set[str]) -> bool:
    """pydantic writes the chosen member of a union into the place; users never wrote it."""
    return place[i] in tags and not (i == len(place) - 1 and i > 0 and place[i - 1] in tags)


def _tag(member: type) -> str | None:
    for field in dataclasses.fields(member):
        hint = _hints(member)[field.name]
        if field.name == "name" and typing.get_origin(hint) is Literal:
            return str(typing.get_args(hint)[0])
    return None


def _hints(member: type) -> dict[str, Any]:
    return typing.get_type_hints(member)


def _classes(kind: Any) -> list[type]:
    """The settings classes that a type may be: itself, or members of a union, a tuple, an Annotated."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return [kind]
    if typing.get_origin(kind) in UNITED:
        return [c for part in typing.get_args(kind) for c in _classes(part)]
    return []


def _reachable(kind: Any) -> Iterator[type]:
    for member in _classes(kind):
        yield member
        for hint in _hints(member).values():
            yield from _reachable(hint)
