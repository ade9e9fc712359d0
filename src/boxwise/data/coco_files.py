"""Where COCO keeps what (annotations/instances_train2017.json, train2017/); the files a json may name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from boxwise.data.densepose import DENSE
from boxwise.data.problems import Problems

Json = dict[str, Any]
OUTSIDE = re.compile(r"$|[/\\]|[A-Za-z]:[/\\]|(.*[/\\])?\.\.([/\\]|$)|.*\0", re.DOTALL)
"""Names that are empty, absolute or climb, as any system writes them: a json may come from another one."""
KINDS = {"densepose": DENSE, "person_keypoints": "keypoints", "instances": None}
"""COCO's kinds of jsons, by what is in them alone, the most special first."""
SHAPE = 'expected {"images": [...], "annotations": [...], "categories": [...]}'


@dataclass(frozen=True, slots=True)
class Split:
    """A json and the folder of the images that it names."""

    file: Path
    folder: Path
    shared: bool
    """Other splits' images lie in the same folder."""


def is_coco_root(folder: Path) -> bool:
    """Whether there are annotations/instances_*.json, or those of people alone."""
    return any(any((folder / "annotations").glob(f"{kind}_*.json")) for kind in KINDS)


def coco_split(root: Path, split: Literal["train", "val"], *, extras: Collection[str] = ()) -> Split:
    """The one annotations/instances_SPLIT*.json (a year may follow) of `root`, and its images.

    With "keypoints" or "dp" in `extras`, person_keypoints_*.json or densepose_*.json where there are such; the
    val split of DensePose is its minival. Images lie in SPLIT*/, images/SPLIT*/ (with the year or without), or
    images/. Raises ValueError where json or folder is missing or in doubt.
    """
    every = sorted((root / "annotations").glob("*_*.json"))
    wanted = [kind for kind, field in KINDS.items() if field is None or field in extras]
    for kind in [*wanted, *reversed(KINDS)]:
        files = [f for f in every if _kind_and_split(f.stem)[:2] == (kind, split)]
        if files:
            break
    if len(files) != 1:
        held = ", ".join(f.name for f in every) or "nothing"
        raise ValueError(
            f"{root}: {len(files)} files annotations/{kind if files else 'instances'}_{split}*.json where one is "
            f"needed (found: {held}); pass --data FILE.json --images DIR"
        )
    return _with_images(files[0], root)


def _kind_and_split(stem: str) -> tuple[str, str, str]:
    """What a json of COCO's is of, the split, and the names that its folder of images may have."""
    if found := re.fullmatch(r"(instances|person_keypoints)_((train|val)\d*)", stem):
        return found[1], found[3], found[2]
    if found := re.fullmatch(r"densepose_(?:coco_(2014)_)?(train|minival|val)(2014)?", stem):
        split = "train" if found[2] == "train" else "val"
        return "densepose", split, f"{split}{found[1] or found[3] or ''}"
    kind, _, name = stem.partition("_")
    return kind, "", name


def image_folder(file: Path, images: Path | str | None) -> Path:
    """`images`; without it, where COCO keeps the images of a json of that name, or the json's own folder."""
    if images is not None:
        if not Path(images).is_dir():
            raise ValueError(
                f"{images}: no such folder; --images is the folder of the files that {file} names"
            )
        return Path(images)
    if file.parent.name == "annotations" and re.fullmatch(rf"({'|'.join(KINDS)})_\w+\.json", file.name):
        return _with_images(file, file.parent.parent).folder
    return file.parent


def _with_images(file: Path, root: Path) -> Split:
    name = _kind_and_split(file.stem)[2]
    own = [root / inside / n for n in (name, name.rstrip("0123456789")) for inside in (".", "images")]
    for folder in own:
        if folder.is_dir():
            return Split(file, folder, shared=False)
    if (root / "images").is_dir():
        return Split(file, root / "images", shared=True)
    raise ValueError(f"{file}: its images are not in {root / name}/; put them there, or pass --images DIR")


def read_json(file: Path) -> tuple[Json, str]:
    """The object in `file`, and a digest of its bytes. Raises ValueError that says where it is no JSON."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}); pass a COCO json") from None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error}); pass a COCO json, {SHAPE}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: not a COCO json (a {type(found).__name__} at the top); {SHAPE}")
    return found, hashlib.blake2b(content, digest_size=16).hexdigest()


def entries(raw: Json, file: Path, key: str, **needed: type) -> list[Json]:
    """The list `key` of a json. Raises ValueError unless each entry holds values of the types `needed`."""
    listed = raw.get(key)
    if not isinstance(listed, list):
        there = "no" if listed is None else f"a {type(listed).__name__} for a"
        raise ValueError(f'{file}: not a COCO json ({there} list "{key}"); {SHAPE}')
    problems = Problems(file)
    for number, entry in enumerate(listed):
        held = entry if isinstance(entry, dict) else {}
        if lacking := [name for name, kind in needed.items() if type(held.get(name)) is not kind]:
            wanted = " and ".join(f"{name} ({needed[name].__name__})" for name in lacking)
            example = f"entry {number}: {str(entry)[:80]}"
            problems.add(f'entries of "{key}" without {wanted}', example, mend="add it to each")
    problems.check()
    return listed


def image_names(raw: Json, file: Path, folder: Path) -> list[str]:
    """The files that `raw`, the content of `file`, names, all of which lie below `folder`."""
    listed = entries(raw, file, "images", file_name=str)
    problems = Problems(file)
    names = [image["file_name"] for image in listed]
    check_names(names, folder, problems)
    problems.check()
    return names


def check_names(names: list[str], folder: Path, problems: Problems) -> set[str]:
    """Adds names that lead out of `folder` and files that are not there; returns them."""
    lost = set[str]()
    for name in names:
        if OUTSIDE.match(name):
            mend = f"write file names relative to the folder of images ({folder}), or list files in a .txt"
            problems.add("names that are absolute or contain ..", repr(name), mend=mend)
            lost.add(name)
        elif not (folder / name).is_file():
            mend = f"put them into {folder}, pass the right --images DIR, or remove them from the json"
            problems.add("missing image files", repr(name), mend=mend)
            lost.add(name)
    return lost
