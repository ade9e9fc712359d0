"""What there is, for `boxwise list` and `--help`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from boxwise.nn.backbones import backbones
from boxwise.recipes import pretrain as pretraining
from boxwise.recipes import probes as probing
from boxwise.recipes import table_transfers as transfers
from boxwise.recipes import tables
from boxwise.recipes import transfer as transferring
from boxwise.recipes.paper_rows import Row, rows
from boxwise.run.find import FINDERS
from boxwise.strict import plain


def listing(what: Literal["recipes", "methods", "backbones", "tables"]) -> str:
    """Names with one line each."""
    if what == "backbones":
        return "\n".join(backbones())
    if what == "tables":
        return _coverage()
    if what == "methods":
        return _table({name: _first_line(f) for name, f in pretraining.METHODS.items()})
    blocks: dict[str, Mapping[str, Callable[[], Any]]] = {
        "pretrain, fitted to the images and the device": pretraining.METHODS,
        "pretrain, published": _by_name(pretraining.PUBLISHED),
        "finetune, fitted to the data": transferring.FAMILIES,
        "finetune, published": _by_name(transferring.PROTOCOLS),
        "probe, for any data": probing.FAMILIES,
        "probe, published": _by_name(probing.PROTOCOLS),
    }
    lines = {
        title: {name: _first_line(f) for name, f in recipes.items()} for title, recipes in blocks.items()
    }
    changed = {name: _place(row) for name, (row, _) in tables.derived().items()}
    lines = {**lines, "pretrain, as rows of the papers' tables change a published run": changed}
    return "\n\n".join(f"{title}\n{_table(named)}" for title, named in lines.items())


def _by_name(recipes: Iterable[Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    return {f.__name__: f for f in recipes}


def _place(row: Row) -> str:
    words = f"{row.paper} {_title(row.table)}: {row.init}, {row.pretrain_epochs} epochs"
    words = words if row.variant is None else f"{words}, {row.variant}"
    return words.replace("\u221e", "infinite")  # for terminals that know ASCII alone


def _title(table: str) -> str:
    return f"Table {table}" if table[0].isdigit() else table


def _coverage() -> str:
    """Per paper and table, how many rows can be run from images to figures; and why others cannot."""
    ends = [(row, tables.start(row).missing, transfers.finish(row).missing) for row in rows()]
    told = [(row, start or finish) for row, start, finish in ends]
    blocks = [
        "rows that recipes here run whole, from pretraining (or random weights) to the paper's figures / rows in all"
    ]
    for paper in dict.fromkeys(row.paper for row, _ in told):
        of_paper = [(row.table, missing is None) for row, missing in told if row.paper == paper]
        counts = {
            _title(table): _ratio([runs for t, runs in of_paper if t == table])
            for table in dict.fromkeys(table for table, _ in of_paper)
        }
        blocks.append(f"{paper}  {_ratio([runs for _, runs in of_paper])}\n{_table(counts)}")
    missing = Counter(why for _, why in told if why is not None)
    why = {reason: f"{count} rows" if count > 1 else "1 row" for reason, count in missing.most_common()}
    weights = sum(start is None for _, start, _ in ends)
    measured = sum(finish is None for _, _, finish in ends)
    total = _ratio([missing is None for _, missing in told])
    return "\n\n".join(
        [
            *blocks,
            f"no recipe\n{_table(why)}",
            f"in all  {total} (weights of {weights} and figures of {measured} rows)",
        ]
    )


def _ratio(runs: Sequence[bool]) -> str:
    return f"{sum(runs)} / {len(runs)}"


def settings_help(named: str, *, verb: str) -> str:
    """Every setting of a recipe that `verb` takes: its key, its value, its help."""
    recipe = FINDERS[verb](named).recipe
    lines = [f"settings of {recipe.name} (--KEY VALUE):"]
    for field in dataclasses.fields(recipe):
        if field.name != "name":
            lines += _settings(getattr(recipe, field.name), field.name)
    sections = {field.name for field in dataclasses.fields(recipe)}
    short = [
        f"--{key.replace('_', '-')}" for key in [*recipe.keys()] if "." not in key and key not in sections
    ]
    lines.append(textwrap.fill(f"short: {', '.join(short)}", 110, subsequent_indent="  "))
    return "\n".join(lines)


def _settings(value: Any, at: str) -> list[str]:
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return [line for i, v in enumerate(value) for line in _settings(v, f"{at}.{i}")]
    if not dataclasses.is_dataclass(value):
        return [f"  --{at} {plain(value)}"]
    helps = _helps(type(value))
    lines = []
    for field in dataclasses.fields(value):
        inner = _settings(getattr(value, field.name), f"{at}.{field.name}")
        if field.name in helps and len(inner) == 1:
            inner = [f"{inner[0]:<44}  {helps[field.name]}"]
        lines += inner
    return lines


def _helps(kind: type) -> dict[str, str]:
    """The string under each field, its own and those that it inherits, read from the source."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if dataclasses.is_dataclass(one):
            found |= _own_helps(one)
    return found


def _own_helps(kind: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in itertools.pairwise(body.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    found[field.target.id] = " ".join(text.split())
    return found


def _first_line(function: Callable[[], Any]) -> str:
    return (inspect.getdoc(function) or "").splitlines()[0]


def _table(rows: dict[str, str]) -> str:
    width = max((len(name) for name in rows), default=0)
    return "\n".join(f"  {name:<{width}}  {line}" for name, line in rows.items())
