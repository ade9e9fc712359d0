"""Image files of folders and lists. Links are the user's own and are followed; hidden files are not read."""

from __future__ import annotations

import codecs
import os
from dataclasses import dataclass
from pathlib import Path, PurePath

from boxwise.data.problems import Problems

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"),
}
"""What a file in a folder ends in, in upper or lower case. A list may name files of any ending."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What lies in a folder and all folders below it."""

    images: list[str]
    """Relative to the folder, with forward slashes, sorted."""
    others: list[str]
    """Files of other endings."""


def scan(folder: Path) -> Scan:
    """Walks `folder`. Every real folder is read once, by its own name if it has one below `folder`.

    A link that leads nowhere counts as an image if it is named like one: it shall be missed, not overlooked.
    """
    found = Scan([], [])
    seen: set[tuple[int, int]] = set()
    real, linked = [""], list[str]()
    while real or linked:
        below = real.pop() if real else linked.pop()
        place = folder / below
        try:
            about = place.stat()
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(f"{place}: the folder cannot be listed ({error.strerror})") from None
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                (linked if entry.is_symlink() else real).append(name)
            elif entry.is_file() or entry.is_symlink():
                is_image = os.path.splitext(entry.name)[1].lower() in SUFFIXES
                (found.images if is_image else found.others).append(name)
    found.images.sort()
    return found


def read_list(file: Path) -> list[str]:
    """Names as written in `file`, one file or folder a line, relative to the list's own folder or absolute.

    A folder stands for all images in it. Raises ValueError that names every line without a file.
    """
    problems = Problems(file)
    names: list[str] = []
    try:
        lines = file.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        raise ValueError(f"{file}: the list cannot be read ({error.strerror})") from None
    if any(b"\0" in line for line in lines):
        raise ValueError(f"{file}: no text; a list file names one image or folder a line")
    for number, raw in enumerate(lines, start=1):
        line = os.fsdecode(raw).strip()
        path = file.parent / line
        if not line:
            continue
        if path.is_dir():
            held = scan(path).images
            names += [PurePath(line, name).as_posix() for name in held]
            if not held:
                problems.add("a folder without images", f"line {number}: {line}", mend="remove the line")
        elif path.exists():
            names.append(PurePath(line).as_posix())
        else:
            mend = f"mend the line (names are relative to {file.parent}/)"
            problems.add("no such file or folder", f"line {number}: {line}", mend=mend)
    problems.check()
    return names
