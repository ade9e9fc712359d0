"""The dependency order of the house: a room may import rooms on lower floors only, never beside or above."""

import ast
from pathlib import Path

import boxwise

FLOORS = [
    ["shapes", "config", "strict"],
    ["geometry"],
    ["data", "nn"],
    ["methods", "engine", "interop"],
    ["transfer"],
    ["recipes"],
    ["run", "report"],
    ["cli"],
]  # lowest first
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
HOUSE = Path(boxwise.__file__).parent


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Rooms that a file imports, inside functions too."""
    tree = ast.parse(path.read_text())
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports, so that floors can be read"
            modules |= (
                {node.module or ""} if node.module != "boxwise" else {f"boxwise.{a.name}" for a in node.names}
            )
        elif isinstance(node, ast.Import):
            modules |= {a.name for a in node.names}
    return {m.split(".")[1] for m in modules if m.startswith("boxwise.")}


def files() -> list[Path]:
    return [p for p in HOUSE.rglob("*.py") if room_of(p) not in ("__init__", "__main__")]


def test_every_room_has_a_floor() -> None:
    assert {room_of(p) for p in files()} == set(LEVEL)


def test_imports_only_go_down() -> None:
    climbs = [
        f"{path.relative_to(HOUSE)} imports {used}"
        for path in files()
        for used in imports_of(path)
        if used != room_of(path) and LEVEL.get(used, 99) >= LEVEL[room_of(path)]
    ]
    assert not climbs


def test_the_reader_of_imports_sees_a_climb(tmp_path: Path) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(
        "def f():\n    from boxwise.run import pretrain\n    import boxwise.cli\n    from boxwise import report\n"
    )
    assert imports_of(probe) == {"run", "cli", "report"}
