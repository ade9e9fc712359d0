"""Every odd image file is decoded to the right pixels, or refused with a reason."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from odd_images import corners, noted, photo, png, tiff
from PIL import Image, ImageOps

from boxwise.data import decode as module
from boxwise.data.decode import BadImage, decode, decode_oriented, read_header


def pixels(path: Path, **options: int) -> np.ndarray:
    return decode(path, **options).permute(1, 2, 0).numpy()


def written(tmp_path: Path, content: bytes, name: str = "image.png") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def refusal(path: Path, **options: int) -> str:
    with pytest.raises(BadImage) as caught:
        decode(path, **options)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    return caught.value.reason


JPEGS = {
    "plain": {},
    "full chroma": {"subsampling": 0},
    "half chroma": {"subsampling": 1},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 1},
    "rgb": {"keep_rgb": True},
    "poor": {"quality": 5},
}


@pytest.mark.parametrize("save", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("size", [(23, 17), (64, 48), (1, 1), (8, 200)])
def test_jpeg_has_the_pixels_that_pil_sees(tmp_path: Path, save: dict, size: tuple[int, int]) -> None:
    """Breaks when the fast decoder reads colours, chroma or edges in another way than everybody else's."""
    path = photo(tmp_path / "a.jpg", *size, **save)
    theirs = np.array(Image.open(path).convert("RGB"), dtype=int)
    assert abs(pixels(path) - theirs).max() <= 2  # 0 with equal versions of libjpeg-turbo


def test_gray_jpeg_has_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(corners()[..., 0]).save(tmp_path / "g.jpg", quality=100)
    found = pixels(tmp_path / "g.jpg")
    assert (found == found[..., :1]).all()
    assert abs(found[..., 0].astype(int) - corners()[..., 0]).max() <= 2


def test_plain_jpeg_takes_the_fast_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when photos without EXIF fall back to PIL, a quarter slower, with nobody noticing."""
    plain, with_notes = photo(tmp_path / "a.jpg"), noted(tmp_path / "b.jpg", 6)
    monkeypatch.setattr(module, "_any", lambda *_: pytest.fail("decoded by PIL"))
    assert decode(with_notes).shape == (3, 23, 17)
    monkeypatch.setattr(module, "_open", lambda *_: pytest.fail("opened by PIL"))
    assert decode(plain).shape == (3, 17, 23)


def test_without_the_fast_decoder_pixels_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision will drop its decoders. Breaks when boxwise then fails, or forgets to turn pictures."""
    path = noted(tmp_path / "a.jpg", 6)
    fast = pixels(path)
    monkeypatch.setattr(module, "decode_jpeg", None)
    assert abs(pixels(path).astype(int) - fast).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_pixels_lie_row_by_row(tmp_path: Path, orientation: int, suffix: str) -> None:
    """Breaks when a picture arrives in another memory order, for which resizing is several times slower."""
    picture = decode(noted(tmp_path / f"a.{suffix}", orientation))
    assert picture.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_pictures_are_turned_upright_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    """Breaks when a turn is left out, made twice (PIL turns TIFFs itself) or made in the wrong sense."""
    path = noted(tmp_path / f"a.{suffix}", orientation)
    upright = np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"), dtype=int)
    picture, stated = decode_oriented(path)
    assert picture.shape[1:] == upright.shape[:2]
    assert abs(picture.permute(1, 2, 0).numpy() - upright).max() <= 2
    assert stated == max(orientation, 1)  # 0 is no orientation
    assert read_header(path) == (23, 17, max(orientation, 1))


def test_a_portrait_photo_stands(tmp_path: Path) -> None:
    """Orientation 6: the stored left edge is the upright top. Breaks when PIL and we are wrong alike."""
    found = pixels(noted(tmp_path / "a.png", 6))
    assert (found == np.rot90(corners(), -1)).all()


def test_late_exif_of_a_png_counts(tmp_path: Path) -> None:
    """Breaks when the search for notes in a PNG stops at the pixels."""
    content = noted(tmp_path / "a.png", 8).read_bytes()
    at = content.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(content[at : at + 4])
    late = content[:at] + content[end:-12] + content[at:end] + content[-12:]
    assert (pixels(written(tmp_path, late, "late.png")) == np.rot90(corners())).all()


def test_broken_exif_does_no_harm(tmp_path: Path) -> None:
    """Breaks when a good picture is refused for its notes."""
    content = noted(tmp_path / "a.jpg", 6).read_bytes()
    at = content.index(b"Exif\0\0") + 6
    broken = written(tmp_path, content[:at] + b"\xff" * 20 + content[at + 20 :], "b.jpg")
    assert decode(broken).shape == (3, 17, 23)


@pytest.mark.filterwarnings("error")
def test_modes_become_rgb(tmp_path: Path) -> None:
    """Values by hand, and no warnings. Breaks when alpha, palette or ink change colours."""
    red, half = (200, 10, 30), 128
    made = {
        "gray.png": (Image.new("L", (2, 3), 77), (77, 77, 77)),
        "gray_alpha.png": (Image.new("LA", (2, 3), (77, half)), (77, 77, 77)),
        "rgba.png": (Image.new("RGBA", (2, 3), (*red, half)), red),
        "clear.png": (Image.new("RGBA", (2, 3), (*red, 0)), red),
        "palette.png": (Image.new("RGB", (2, 3), red).convert("P", palette=Image.Palette.ADAPTIVE), red),
        "palette.gif": (Image.new("RGB", (2, 3), red).convert("P", palette=Image.Palette.ADAPTIVE), red),
        "bits.png": (Image.new("1", (2, 3), 1), (255, 255, 255)),
        "photo.bmp": (Image.new("RGB", (2, 3), red), red),
        "cmyk.tif": (Image.new("CMYK", (2, 3), (0, 255, 0, 0)), (255, 0, 255)),
    }
    for name, (image, expected) in made.items():
        image.save(tmp_path / name)
        assert (pixels(tmp_path / name) == expected).all(), name


def test_cmyk_jpeg_is_not_a_negative(tmp_path: Path) -> None:
    """Adobe writes ink upside down. Breaks when a decoder takes it as it is, or has its own idea of ink."""
    ink = np.concatenate([corners(), corners()[..., :1] // 2], axis=-1)
    image = Image.frombytes("CMYK", (23, 17), ink.tobytes())
    image.save(tmp_path / "ink.jpg", quality=100, subsampling=0)
    paper = np.array(image.convert("RGB"), dtype=int)
    assert abs(pixels(tmp_path / "ink.jpg") - paper).max() <= 4


@pytest.mark.filterwarnings("error")
def test_palette_with_clear_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 200, 10, 30])
    image.save(tmp_path / "p.png", transparency=bytes([255, 128]))
    assert (pixels(tmp_path / "p.png") == (200, 10, 30)).all()


def test_the_first_frame_counts(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (4, 4), c) for c in ((255, 0, 0), (0, 0, 255)))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert (pixels(tmp_path / "a.gif") == (255, 0, 0)).all()


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").tolist() == [[[1]], [[2]], [[3]]]


# More than 8 bits


def deep(channels: int) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, channels))
    values[0, 0], values[0, 1] = 0, 65535
    return values


@pytest.mark.parametrize(("channels", "colour"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_sixteen_bit_png_is_divided_by_257(tmp_path: Path, channels: int, colour: int) -> None:
    """Breaks when PIL's conversion turns such images white, or cuts the low byte off."""
    values = deep(channels)
    expected = np.rint(values / 257)
    expected = expected[..., :3] if channels > 2 else expected[..., [0, 0, 0]]
    assert (pixels(written(tmp_path, png(values, colour=colour))) == expected).all()


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_tiff_keeps_the_low_byte(
    tmp_path: Path, channels: int, order: str, packed: bool, orientation: int
) -> None:
    """12 bits of colour in 16: of the high byte alone, 15 shades would be left."""
    values = deep(channels) % 4096
    path = written(tmp_path, tiff(values, order=order, packed=packed, orientation=orientation), "a.tif")
    expected = np.rint(values[..., :3] * (255 / 4095))
    expected = np.rot90(expected, -1) if orientation == 6 else expected
    assert (pixels(path, max_value=4095) == expected).all()
    with pytest.warns(UserWarning, match="max-value"):
        assert pixels(path).max() == 16


@pytest.mark.parametrize("orientation", [1, 5])
def test_sixteen_bit_gray_tiff(tmp_path: Path, orientation: int) -> None:
    values = deep(1)[..., 0].astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(tmp_path / "a.tif", exif=exif)
    expected = np.rint((values.T if orientation == 5 else values) / 257)
    assert (pixels(tmp_path / "a.tif") == expected[..., None]).all()


def test_dark_images_warn_and_max_value_brightens_them(tmp_path: Path) -> None:
    """12 bits in 16: almost black unless the user says what is white. Values above white stay white."""
    values = np.array([[[0], [2048], [4095]]])
    path = written(tmp_path, png(values, colour=0))
    with pytest.warns(UserWarning, match=f"{tmp_path}.*--data.max-value"):
        assert pixels(path)[0, :, 0].tolist() == [0, 8, 16]
    assert pixels(path, max_value=4095)[0, :, 0].tolist() == [0, 128, 255]
    assert pixels(path, max_value=2048)[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.filterwarnings("error")
def test_no_warning_without_cause(tmp_path: Path) -> None:
    """Breaks when bright or wholly black images warn, or 8-bit ones are touched by max_value."""
    bright, black = np.array([[[4096]]]), np.array([[[0]]])
    assert pixels(written(tmp_path, png(bright, colour=0))).max() == 16
    assert pixels(written(tmp_path, png(black, colour=0))).max() == 0
    eight = photo(tmp_path / "eight.png")
    assert (pixels(eight, max_value=4095) == corners()).all()


def test_values_beyond_sixteen_bits_need_their_white(tmp_path: Path) -> None:
    """Breaks when 32-bit or float images are guessed at."""
    Image.fromarray(np.array([[0, 100000]], dtype=np.int32)).save(tmp_path / "i.tif")
    Image.fromarray(np.array([[0.25, 0.5]], dtype=np.float32)).save(tmp_path / "f.tif")
    for name in ("i.tif", "f.tif"):
        assert "--data.max-value" in refusal(tmp_path / name)
    assert pixels(tmp_path / "i.tif", max_value=200000)[0, :, 0].tolist() == [0, 128]
    assert pixels(tmp_path / "f.tif", max_value=1)[0, :, 0].tolist() == [64, 128]


# Refusals


SUFFIXES = ["jpg", "png", "bmp", "gif", "tif", "webp", "ppm", "jp2"]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of notes that are cut off
@pytest.mark.parametrize("suffix", [*SUFFIXES, "progressive.jpg", "16.png", "16.tif", "noted.jpg"])
def test_files_cut_short_are_refused(tmp_path: Path, suffix: str) -> None:
    """At any cut there is a reason or the whole picture, never one that is half gray."""
    whole = tmp_path / f"whole.{suffix}"
    if suffix == "16.png":
        whole.write_bytes(png(deep(3), colour=2))
    elif suffix == "16.tif":
        whole.write_bytes(tiff(deep(3), packed=True))
    elif suffix == "noted.jpg":
        noted(whole, 3, 64, 48)
    else:
        photo(whole, 64, 48, **({"progressive": True} if "progressive" in suffix else {}))
    content, expected = whole.read_bytes(), pixels(whole)
    refused = 0
    for cut in range(1, len(content), max(1, len(content) // 40)):
        path = written(tmp_path, content[:cut], f"cut.{suffix}")
        try:
            assert (pixels(path) == expected).all(), f"{cut} of {len(content)} bytes gave another picture"
        except BadImage:
            refused += 1
    assert refused > 20


def test_a_truncated_jpeg_says_so(tmp_path: Path) -> None:
    content = photo(tmp_path / "a.jpg", 64, 48).read_bytes()
    for cut in (len(content) - 2, len(content) // 2, 100):
        assert "cut short" in refusal(written(tmp_path, content[:cut], "b.jpg"))


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    assert "0 bytes" in refusal(written(tmp_path, b"", "empty.jpg"))
    assert "JPEG, PNG" in refusal(written(tmp_path, b"<html>not found</html>", "page.jpg"))
    assert "no such file" in refusal(tmp_path / "missing.jpg")
    assert "irectory" in refusal(tmp_path)
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    assert "no such file" in refusal(tmp_path / "link.jpg")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "regular file" in refusal(tmp_path / "pipe.jpg")


@pytest.mark.parametrize("side", [12000, 25000])
def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path, side: int) -> None:
    """144 million pixels in a hundred bytes; and 625 million, whatever the file."""
    bomb = png(np.zeros((4, 4, 1)), colour=0, depth=8, size=(side, side))
    path = written(tmp_path, bomb)
    reason = refusal(path)
    assert f"{side} x {side} pixels" in reason
    assert "bomb" in reason if side == 12000 else "tiles" in reason
    with pytest.raises(BadImage, match=f"{side} x {side} pixels"):
        read_header(path)


def test_a_jpeg_bomb_is_refused(tmp_path: Path) -> None:
    content = bytearray(photo(tmp_path / "a.jpg").read_bytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = (15000).to_bytes(2) + (15000).to_bytes(2)
    assert "bomb" in refusal(written(tmp_path, bytes(content), "b.jpg"))


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_huge_photos_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when PIL's limits, made for web servers, refuse a large photo, or warn of it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    monkeypatch.setattr("boxwise.data.limits.PLAIN_PIXELS", 10)
    for name in ("a.png", "a.jpg", "b.tif"):
        path = photo(tmp_path / name, 64, 48)
        assert decode(path).shape == (3, 48, 64)
        assert read_header(path) == (64, 48, 1)
    path = written(tmp_path, tiff(deep(3)), "deep.tif")
    assert decode(path).shape == (3, 5, 7)
    assert Image.MAX_IMAGE_PIXELS == 10, "the user's own limit is put back"


def test_a_refusal_crosses_processes(tmp_path: Path) -> None:
    """Breaks when a worker's BadImage arrives as something else, or not at all."""
    sent = pickle.loads(pickle.dumps(BadImage(tmp_path / "a.jpg", "empty")))
    assert (sent.path, sent.reason, str(sent)) == (tmp_path / "a.jpg", "empty", f"{tmp_path}/a.jpg: empty")


def test_warnings_made_errors_stay_warnings(tmp_path: Path) -> None:
    """Breaks when a strict caller's warning is taken for damage of the file."""
    path = written(tmp_path, png(np.array([[[9]]]), colour=0))
    with warnings.catch_warnings(), pytest.raises(UserWarning):
        warnings.simplefilter("error")
        decode(path)


COCO = Path(__file__).parents[3] / "shared/data/coco_sample"


@pytest.mark.skipif(not COCO.is_dir(), reason="the sample of COCO is not here")
def test_real_photos_have_the_pixels_that_pil_sees() -> None:
    files = sorted(COCO.glob("*2017/*.jpg"))
    assert len(files) > 200
    for path in files[::5]:
        theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(path.read_bytes()))).convert("RGB")
        assert abs(pixels(path) - np.array(theirs, dtype=int)).max() <= 2, path
