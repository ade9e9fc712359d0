"""The pages of recipes and methods name all that there is, and nothing that is not."""

import re
from pathlib import Path

import pytest

from boxwise.recipes import pretrain, probes, transfer
from boxwise.recipes.paper_rows import Row, rows
from boxwise.recipes.table_transfers import finish
from boxwise.recipes.tables import derived

DOCS = Path(__file__).parents[2] / "docs"
NAMED = re.compile(r"`([^`\n]+)`")
SECTIONS = {"InsLoc": "insloc", "SoCo": "soco", "DetCo": "detco", "ReSim": "resim", "SCRL": "scrl"}
LISTED = {
    *(f.__name__ for f in (*pretrain.PUBLISHED, *pretrain.OURS)),
    *pretrain.METHODS,
    *transfer.FAMILIES,
    *probes.FAMILIES,
}

DATA = {
    "voc": "VOC07+12",
    "coco": "COCO",
    "cityscapes": "Cityscapes",
    "lvis": "LVIS v1",
    "densepose": "DensePose-COCO",
}
SHORTENED = {"text 4.1 (RoIAlign vs PrRoIPool)": "text 4.1", "code README": "repository"}


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_every_recipe_is_on_its_page() -> None:
    """Breaks when a recipe is added, renamed or dropped and docs/recipes.md still says what was."""
    named = set(NAMED.findall(page("recipes.md")))
    assert named >= LISTED
    stem = re.compile(r"[a-z0-9_.]+_(?:r50|r101)_[a-z0-9_.]+")
    assert {name for name in named if stem.fullmatch(name)} <= LISTED | derived().keys()


def test_every_protocol_is_on_its_page() -> None:
    """Breaks when a protocol is added or changed and docs/protocols.md still says what was, or of another table."""
    lines = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \| (.*?) \| (.*?) \| (.*) \|$", page("protocols.md"), re.MULTILINE
    )
    told = {name: (detector, data, steps, used) for name, detector, data, steps, used in lines}
    assert [*told] == [f.__name__ for f in transfer.PROTOCOLS]
    for protocol in transfer.PROTOCOLS:
        detector, data, steps, used = told[protocol.__name__]
        recipe = protocol()
        length = recipe.schedule.steps or f"{recipe.schedule.epochs:g} epochs"
        share = None if recipe.data.labels is None else f"{100 * recipe.data.labels:g} %"
        assert (detector, steps) == (recipe.detector.name, str(length))
        assert data.startswith(DATA[protocol.__name__.partition("_")[0]])
        assert (data.partition(", ")[2] or None) == share
        own = [(row.paper, row.table) for row in rows() if row.role == "own" and by(row) == protocol.__name__]
        tables: dict[str, list[str]] = {}
        for paper, table in dict.fromkeys(own):
            tables.setdefault(paper, []).append(SHORTENED.get(table, table))
        assert dict(part.split(" ", 1) for part in used.split("; ")) == {
            paper: ", ".join(named) for paper, named in tables.items()
        }, protocol.__name__


def test_every_probe_is_on_its_page() -> None:
    """Breaks when a probe is added or renamed, or the page says that it measured another table."""
    lines = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.*?) \|$", page("probe.md"), re.MULTILINE)
    assert [name for name, _, _ in lines] == [f.__name__ for f in probes.PROTOCOLS]
    for probe, (name, question, used) in zip(probes.PROTOCOLS, lines):
        assert probe().probe.name == question
        tables: dict[str, list[str]] = {}
        for row in rows():
            named = SHORTENED.get(row.table, row.table)
            if row.role == "own" and name in finish(row).probes and named not in tables.get(row.paper, []):
                tables.setdefault(row.paper, []).append(named)
        assert dict(part.split(" ", 1) for part in used.split("; ")) == {
            paper: ", ".join(named) for paper, named in tables.items()
        }, name
    assert all(f"| `{name}` |" in page("probe.md") for name in probes.FAMILIES)


def by(row: Row) -> str | None:
    """The protocol that a row is measured by."""
    return finish(row).protocol


def test_a_short_name_stands_for_the_run_that_the_page_names() -> None:
    """Breaks when a short name moves on to another run."""
    told = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|$", page("recipes.md"), re.MULTILINE))
    assert told == {name: run.__name__ for name, run in pretrain.METHODS.items() if name != run.__name__}


@pytest.mark.parametrize("title", SECTIONS)
def test_every_switch_on_the_page_is_a_setting_at_its_default(title: str) -> None:
    """Breaks when a setting is renamed, or its default is no longer the one that the page states."""
    section = page("methods.md").split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (`.*?`) \| (.*?) \| ", section, re.MULTILINE)
    assert len(lines) >= 5
    recipe = pretrain.METHODS[SECTIONS[title]]()
    for keys, default in lines:
        values = NAMED.findall(default)
        for place, key in enumerate(NAMED.findall(keys)):
            value = recipe
            for part in key.split("."):
                value = value[int(part)] if part.isdigit() else getattr(value, part)
            if values:
                assert values[min(place, len(values) - 1)] == as_typed(value), key


def as_typed(value: object) -> str:
    """As a flag has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value)
