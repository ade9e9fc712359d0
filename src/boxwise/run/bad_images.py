"""Images that could not be read: listed in the run folder, counted over all its processes and resumptions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from boxwise.data.loader import Bad, Load, Tally
from boxwise.engine.folder import RunFolder

NAME = "bad_images.txt"
LIMIT = 0.05
"""The share of bad images above which a run stops."""


@runtime_checkable
class Named(Protocol):
    """Images, labelled or not."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...


class BadImages:
    """`bad_images.txt`: an image a line, its place in the set, its name and the reason, with tabs between.

    The file is the count: every process appends what it meets and reads what others have added, so that no
    image counts twice, before a crash or after it.
    """

    def __init__(
        self,
        folder: RunFolder,
        images: Named,
        *,
        limit: float = LIMIT,
        then: str = "another image takes its place",
    ) -> None:
        """`limit` is the share of bad images that ends a run; `then` says what becomes of one."""
        self.folder, self.images, self.path = folder, images, folder.path / NAME
        self.then, self.tally = then, Tally(len(images), limit=limit)
        self._read = 0
        """Bytes of the file that are known."""
        if folder.writes:
            self._cut_back()

    def watch(self, loads: Iterable[Load]) -> Iterator[Load]:
        """`loads` as they are; the bad images of each are noted before it is handed on."""
        for load in loads:
            self.add(load.bad)
            yield load

    def add(self, bad: Sequence[Bad]) -> None:
        """Lists those that are new. Raises ValueError when too many of the set cannot be read."""
        if not bad:
            return
        self._catch_up()
        new = [*{one.index: one for one in bad if one.index not in self.tally.found}.values()]
        if not new:
            return
        if not self.tally.found:
            self.folder.tell(f"{new[0].path}: {new[0].reason}; {self.then}, see {self.path}")
        lines = [f"{one.index}\t{_line(self.images.name(one.index))}\t{_line(one.reason)}\n" for one in new]
        with self.path.open("ab") as file:
            file.write("".join(lines).encode(errors="surrogateescape"))
        self.tally.add(new)

    def close(self) -> None:
        """Leaves the count in run.json, and says it when it is not 0."""
        self._catch_up()
        found = len(self.tally.found)
        self.folder.record(bad_images=found)
        if found:
            self.folder.tell(f"{found} of {len(self.images)} images could not be read, see {self.path}")

    def _catch_up(self) -> None:
        """Takes in the lines that were added since, by other processes or before a resume."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(end)
        listed = [line.split("\t") for line in whole.decode(errors="surrogateescape").split("\n")]
        known = [Bad(int(row[0]), row[1], row[2]) for row in listed if len(row) == 3 and row[0].isdecimal()]
        self.tally.add([one for one in known if one.index < len(self.images)])

    def _cut_back(self) -> None:
        """Drops a line that a killed process had begun."""
        if self.path.exists():
            whole, end, _ = self.path.read_bytes().rpartition(b"\n")
            os.truncate(self.path, len(whole) + len(end))


def _line(text: str) -> str:
    """Without what would break a line or a column."""
    return " ".join(text.split())
