"""All that is wrong with one file of the user's, told at once: what, where, how often, and the mend."""

from __future__ import annotations

from pathlib import Path

SHOWN = 3
"""Examples of one kind that are written out; the others are counted."""


class Problems:
    """Collects what is wrong with `path`; `check` raises it as one ValueError."""

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self._found: dict[tuple[str, str], list[str]] = {}

    def add(self, what: str, example: str, *, mend: str) -> None:
        """One case of `what`; cases of the same kind share a line."""
        self._found.setdefault((what, mend), []).append(example)

    def check(self) -> None:
        if self._found:
            raise ValueError(str(self))

    def __str__(self) -> str:
        lines = [f"{what}: {_some(examples)}; {mend}" for (what, mend), examples in self._found.items()]
        if len(lines) == 1:
            return f"{self.path}: {lines[0]}"
        return "\n  ".join([f"{self.path}: {len(lines)} kinds of problems", *lines])


def _some(examples: list[str]) -> str:
    more = f", and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
    return ", ".join(examples[:SHOWN]) + more
