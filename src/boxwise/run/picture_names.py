"""File names for drawn pictures: the sources' own, below one folder, no two alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

WRITTEN = (".jpg", ".jpeg", ".png")
"""Endings that a drawn picture keeps. Others get .png."""
JPEG_SIDE = 65_500
"""Longest side that a JPEG can have."""


def picture_names(names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[str]:
    """For each source image a relative name that cannot lead out of a folder.

    `names` may be absolute or climb, as lists of files have them: what leads out is dropped. Names that meet, if
    only on systems that do not tell a from A, get a number; so does one that another needs as a folder.
    """
    files: set[str] = set()
    folders: set[str] = set()
    found: list[str] = []
    for name, size in zip(names, sizes, strict=True):
        wanted = _inside(name, size)
        free, number = wanted, 1
        while not _fits(free, files, folders):
            number += 1
            free = _numbered(wanted, number, files)
        files.add(free.casefold())
        folders |= {str(above).casefold() for above in PurePosixPath(free).parents}
        found.append(free)
    return found


def _inside(name: str, size: tuple[int, int]) -> str:
    """`name` without root, drive and climbing, and with an ending that pictures are written in."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    parts = [part.replace(":", "_") for part in parts] or ["picture"]
    path = PurePosixPath(*parts)
    keeps = path.suffix.lower() in WRITTEN and (path.suffix.lower() == ".png" or max(size) <= JPEG_SIDE)
    return str(path if keeps else path.with_name(f"{path.name}.png"))


def _fits(name: str, files: set[str], folders: set[str]) -> bool:
    folded = name.casefold()
    above = {str(one).casefold() for one in PurePosixPath(name).parents}
    return folded not in files and folded not in folders and not above & files


def _numbered(name: str, number: int, files: set[str]) -> str:
    """The number goes to the first part that is in the way: a folder that is a file's name, or the file."""
    path = PurePosixPath(name)
    for above in reversed(path.parents):
        if str(above).casefold() in files:
            return str(PurePosixPath(f"{above}-{number}", path.relative_to(above)))
    return str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
