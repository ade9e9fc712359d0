"""Files that are there whole or not at all, whenever the process dies."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` once the block ends and its bytes are on the disk."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """UTF-8, with no line ends translated; names of files that are no UTF-8 keep their bytes."""
    with written(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: a number that is not finite is an error here, and must be given as None."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises ValueError for a file that a power cut or an editor has spoilt."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error}); was it changed by hand?") from None


def _sync_folder(folder: Path) -> None:
    """The new name survives a power cut too; Windows has no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
