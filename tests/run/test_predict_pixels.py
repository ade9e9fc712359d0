"""Classes of pixels on images without labels, as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import photos

from boxwise.cli import main
from boxwise.data.decode import decode
from boxwise.interop.files import write_state
from boxwise.run.draw import hue
from boxwise.run.predict import predict
from boxwise.strict import plain
from boxwise.transfer.detectors.fcn16s import FCN16s
from boxwise.transfer.evaluate import pixel_classes_in

NAMES = ["background", "one", "two"]
CONFIG = FCN16s(backbone="test_resnet", min_size=64, max_size=64, width=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of random weights and fitting statistics, so that pixels of one image differ in class."""
    place = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    mean, std = (0.5,) * 3, (0.2,) * 3
    model = CONFIG.build(classes=3, mean=mean, std=std)
    torch.nn.init.zeros_(model.classifier[-1].bias)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train().scores(2 * torch.randn(4, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3))
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    card = {"detector": plain(CONFIG), "categories": categories, "classes": NAMES, "mean": mean, "std": std}
    write_state(place / "export", model.state_dict(), card)
    return place


def test_every_image_gets_its_classes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when maps are left at the detector's size, go to another image, or are no longer plain numbers."""
    data, out = photos(tmp_path / "photos", 3, size=48), tmp_path / "found"
    Image.open(data / "000.png").convert("RGB").resize((100, 40)).save(data / "wide.jpg")
    (data / "torn.png").write_bytes(b"no picture")
    words = ["predict", str(run), "--data", str(data), "--out", str(out), "--device", "cpu", "--workers", "0"]
    assert main([*words, "--batch-size", "1", "--max-drawn", "2"]) == 0
    told = capsys.readouterr()
    assert str(out / "classes") in told.out and "torn.png: not an image" in told.err
    assert json.loads((out / "classes.json").read_text()) == NAMES
    files = sorted(str(f.relative_to(out / "classes")) for f in (out / "classes").rglob("*.png"))
    assert files == ["000.png", "002.png", "deeper/001.png", "wide.jpg.png"]
    held = {int(k) for f in files for k in np.unique(np.array(Image.open(out / "classes" / f)))}
    assert len(held) > 1, "a test of one class would test little"
    wide = np.array(Image.open(out / "classes" / "wide.jpg.png"))
    assert wide.shape == (40, 100) and wide.dtype == np.uint8 and set(np.unique(wide)) <= {0, 1, 2}
    drawn = sorted((out / "pictures").rglob("*.png"))
    assert len(drawn) == 2
    for file in drawn:
        name = file.relative_to(out / "pictures")
        classes = np.array(Image.open(out / "classes" / name))
        shown, source = np.array(Image.open(file)).astype(int), decode(data / name).permute(1, 2, 0).numpy()
        assert (shown[classes == 0] == source[classes == 0]).all()
        for k in (1, 2):
            tint = 0.55 * source[classes == k] + 0.45 * np.array(hue(k, 3))
            assert np.abs(shown[classes == k] - tint).max(initial=0) < 0.51
    with pytest.raises(ValueError, match="holds an earlier prediction"):
        predict(run, data, out)


def test_scores_are_stretched_before_the_best_is_taken() -> None:
    """Breaks when classes are enlarged as blocks."""
    scores = torch.zeros(2, 1, 2)
    scores[0, 0, 0], scores[1, 0, 1] = 3.0, 1.0
    assert pixel_classes_in(scores, (1, 8)).tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]


def test_pixels_are_measured_by_no_rules_for_boxes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when rules that were asked for are quietly left out, or a batch of nothing ends in torch's words."""
    words = ["evaluate", str(run), "--data", "/nowhere"]
    assert main([*words, "--metric", "coco"]) == 1
    assert "measured by mean IoU alone" in capsys.readouterr().err
    assert main(["evaluate", "/gone", "--data", "/nowhere"]) == 1
    assert "/gone: no such folder; name one that boxwise finetune wrote" in capsys.readouterr().err
    assert main([*words, "--batch-size", "0"]) == 1
    assert "--batch-size 0: expected 1 or more" in capsys.readouterr().err
