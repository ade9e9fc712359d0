"""Pictures from memory: the same bytes, each file decoded once, and files that cannot be read as they were."""

from __future__ import annotations

import json
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from boxwise.data import targets
from boxwise.data.decode import BadImage
from boxwise.data.kept import Kept, decode_all, decoded_bytes, held
from boxwise.data.targets import Labelled, open_labelled

SIZES = [(40, 30), (20, 50), (33, 17), (64, 64), (31, 32)]
"""Width and height of each image."""


@pytest.fixture
def labelled(tmp_path: Path) -> Labelled:
    """Noise of five sizes; the third is stored on its side."""
    entries = []
    for i, (width, height) in enumerate(SIZES):
        noise = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        exif = Image.Exif()
        if i == 2:
            exif[0x112] = 6
        Image.fromarray(noise).save(tmp_path / f"{i}.png", exif=exif)
        entries.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
    boxes = [
        {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [1, 2, 10, 12]} for i in range(len(SIZES))
    ]
    truth = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return open_labelled(tmp_path / "truth.json", split="train", images=tmp_path)


def test_pictures_and_labels_are_those_of_the_files(labelled: Labelled) -> None:
    """Breaks when offsets, sides, channels or orientations are mixed up."""
    kept = held(labelled, decode_all(labelled))
    for i in range(len(labelled)):
        (theirs, their_labels), (ours, our_labels) = labelled.read(i), kept.read(i)
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()
        assert torch.equal(our_labels.boxes, their_labels.boxes)
        assert kept.decoded(i)[1] == labelled.decoded(i)[1] == (6 if i == 2 else 1)
    assert kept.fingerprint() == labelled.fingerprint()


def test_no_file_is_decoded_twice(labelled: Labelled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when reading, a subset or a copy goes back to the files."""
    seen: list[str] = []
    real = targets.decode_oriented

    def counting(path: Path, **options: int | None) -> object:
        seen.append(path.name)
        return real(path, **options)

    monkeypatch.setattr(targets, "decode_oriented", counting)
    kept = held(labelled.subset([3, 1]), decode_all(labelled.subset([1, 3, 4])))
    assert isinstance(kept.subset([0]), Kept)
    for _ in range(3):
        kept.read(0), kept.read(1), kept.subset([1]).read(0)
    assert sorted(seen) == sorted(labelled.name(i) for i in (1, 3, 4))
    whole = held(labelled, kept.pixels)
    whole.read(0)
    assert seen[-1] == labelled.name(0), "what is not kept comes from its file"


def test_writing_into_a_picture_changes_no_later_one(labelled: Labelled) -> None:
    """Breaks when views of the block are handed out."""
    kept = held(labelled, decode_all(labelled))
    kept.read(0)[0].zero_()
    assert torch.equal(kept.read(0)[0], labelled.read(0)[0])


def test_a_file_that_cannot_be_read_tells_its_reader(labelled: Labelled) -> None:
    """Breaks when a damaged file, or one of another size than its json's, ends the decoding of all."""
    whole = labelled.path(1).read_bytes()
    labelled.path(1).write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (20, 10)).save(labelled.path(2))
    kept = held(labelled, decode_all(labelled))
    for i in (1, 2):
        with pytest.raises(BadImage, match=labelled.name(i)):
            kept.read(i)
    assert all(torch.equal(kept.read(i)[0], labelled.read(i)[0]) for i in (0, 3, 4))


def test_bytes_are_those_of_three_channels(labelled: Labelled) -> None:
    """Breaks when the limit is held against something else than what is taken."""
    part = labelled.subset([0, 2])
    assert decoded_bytes(part) == (40 * 30 + 33 * 17) * 3 == decode_all(part).block.nbytes


def test_workers_of_any_start_method_share_the_pictures(labelled: Labelled) -> None:
    """Breaks when each worker process would be sent a copy: what travels is a handle, not the bytes."""
    kept = held(labelled, decode_all(labelled))
    sent = bytes(ForkingPickler.dumps(kept))
    assert len(sent) < decoded_bytes(labelled) // 2
    for i in range(len(labelled)):
        labelled.path(i).unlink()
    arrived = pickle.loads(sent)
    assert torch.equal(arrived.decoded(4)[0], kept.decoded(4)[0])
    assert arrived.pixels.block.is_shared()
