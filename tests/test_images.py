"""Every kind of image file becomes the one documented array, and every kind of broken file one clear line."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mvtec_lab.data import images
from mvtec_lab.data.images import (
    check_images,
    grey_masks,
    image_size,
    odd_masks,
    read_image,
    read_mask,
    too_bright,
    white_level,
)
from mvtec_lab.errors import LabError

GREY = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)


@pytest.fixture(autouse=True)
def no_warning_leaks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def saved(path: Path, image: Image.Image | np.ndarray, **options: object) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def grey_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def huge_png(path: Path) -> Path:
    """A header that claims 40000 x 40000 pixels, and hardly a byte behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("extension", ["png", "bmp", "tif"])
@pytest.mark.parametrize("array", [GREY, COLOUR], ids=["grey", "colour"])
def test_eight_bit(tmp_path: Path, array: np.ndarray, extension: str) -> None:
    pixels = read_image(saved(tmp_path / f"a.{extension}", array))
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable  # torch.from_numpy warns about arrays that are not
    np.testing.assert_array_equal(pixels, array if array.ndim == 3 else grey_rgb(array))


def test_alpha_is_dropped(tmp_path: Path) -> None:
    alpha = np.linspace(0, 255, GREY.size, dtype=np.uint8).reshape(GREY.shape)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", np.dstack([COLOUR, alpha]))), COLOUR)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "b.png", np.dstack([GREY, alpha]))), grey_rgb(GREY))
    np.testing.assert_array_equal(read_image(saved(tmp_path / "c.png", COLOUR, transparency=(0, 1, 2))), COLOUR)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "d.png", GREY, transparency=10)), grey_rgb(GREY))


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80\xff"], ids=["opaque", "one", "each"])
def test_palette_is_expanded(tmp_path: Path, transparency: int | bytes | None) -> None:
    index = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)
    palette = np.array([[255, 0, 0], [1, 2, 3], [0, 0, 0]], dtype=np.uint8)
    image = Image.fromarray(index).convert("P")
    image.putpalette(palette.tobytes())
    path = saved(tmp_path / "a.png", image, **({} if transparency is None else {"transparency": transparency}))
    np.testing.assert_array_equal(read_image(path), palette[index])


def test_one_bit(tmp_path: Path) -> None:
    bits = GREY > 100
    for extension in ("png", "bmp", "tif"):
        path = saved(tmp_path / f"a.{extension}", Image.fromarray(bits))
        np.testing.assert_array_equal(read_image(path), grey_rgb(bits * np.uint8(255)))
        np.testing.assert_array_equal(read_mask(path), bits)


@pytest.mark.parametrize(("extension", "dtype"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2")])
def test_sixteen_bit_grey_keeps_its_scale(tmp_path: Path, extension: str, dtype: str) -> None:
    deep = np.array([[0, 257, 128 * 257], [65535, 1000, 300]], dtype=dtype)  # the dark half is not stretched
    mode = "I;16" if dtype == "<u2" else "I;16B"
    path = saved(tmp_path / f"a.{extension}", Image.frombytes(mode, (3, 2), deep.tobytes()))
    np.testing.assert_array_equal(read_image(path), grey_rgb(np.array([[0, 1, 128], [255, 4, 1]], dtype=np.uint8)))
    assert image_size(path) == (3, 2, mode)


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("white", [65_535, 4_095])
def test_sixteen_bit_colour_is_scaled_like_grey(tmp_path: Path, extension: str, white: int) -> None:
    deep = np.linspace(0, white, COLOUR.size).astype(np.uint16).reshape(COLOUR.shape)
    cv2.imwrite(str(tmp_path / f"a.{extension}"), deep[..., ::-1])  # Pillow reads such files but does not write them
    expected = np.floor(deep * (255 / white) + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{extension}", white), expected)


def test_twelve_bit_grey_keeps_its_levels(tmp_path: Path) -> None:
    """Scaled by the full range of 16 bits, 4,096 levels would become 16."""
    camera = saved(tmp_path / "a.png", np.arange(4096, dtype=np.uint16).reshape(64, 64))
    dark = saved(tmp_path / "b.png", np.full((4, 4), 700, np.uint16))  # one rule for both
    eight = saved(tmp_path / "c.png", GREY)
    white = white_level([dark, camera, eight])
    assert white == 4095
    pixels = read_image(camera, white)[..., 0]
    assert len(np.unique(pixels)) == 256
    assert pixels[0, 0] == 0
    assert pixels[-1, -1] == 255
    assert read_image(dark, white).max() == round(700 * 255 / 4095)
    np.testing.assert_array_equal(read_image(eight, white), grey_rgb(GREY))
    assert too_bright([dark, camera, eight], white) == []
    assert too_bright([dark, camera, eight], white_level([dark]))[0].startswith("1 16-bit image(s), ")
    assert read_image(camera, white_level([dark])).max() == 255


def test_eight_bit_values_in_sixteen_bit_files_keep_their_levels(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", GREY.astype(np.uint16))
    np.testing.assert_array_equal(read_image(path, white_level([path])), grey_rgb(GREY))
    assert white_level([saved(tmp_path / "b.png", GREY)]) == images.WHITE


def test_cmyk_jpeg(tmp_path: Path) -> None:
    cmyk = np.zeros((8, 8, 4), dtype=np.uint8)
    cmyk[:, :, 0] = 255  # all cyan
    pixels = read_image(saved(tmp_path / "a.jpg", Image.fromarray(cmyk, mode="CMYK"), quality=100))
    np.testing.assert_allclose(pixels, np.broadcast_to([0, 255, 255], (8, 8, 3)), atol=2)


@pytest.mark.parametrize(
    ("extension", "options"), [("jpg", {}), ("png", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"})]
)
def test_exif_orientation(tmp_path: Path, extension: str, options: dict[str, str]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    blocks = np.kron(np.array([[0, 255, 255]], dtype=np.uint8), np.ones((16, 16), dtype=np.uint8))
    path = saved(tmp_path / f"a.{extension}", blocks, exif=exif, **options)
    expected = np.rot90(blocks, -1)
    np.testing.assert_allclose(read_image(path), grey_rgb(expected), atol=2)
    np.testing.assert_array_equal(read_mask(path), expected > 0)
    assert image_size(path) == (16, 48, "L")


def test_orientation_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>')
    path = saved(tmp_path / "a.png", COLOUR, pnginfo=text)
    np.testing.assert_array_equal(read_image(path), np.rot90(COLOUR, 2))


def test_first_page(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", COLOUR, save_all=True, append_images=[Image.fromarray(255 - COLOUR)])
    np.testing.assert_array_equal(read_image(path), COLOUR)


@pytest.mark.parametrize("array", [GREY, COLOUR], ids=["grey", "colour"])
def test_fast_path_is_pillow(tmp_path: Path, array: np.ndarray) -> None:
    path = saved(tmp_path / "a.png", array, dpi=(300, 300))
    fast = images._read_plain_png(path)
    assert fast is not None
    with Image.open(path) as image:
        np.testing.assert_array_equal(fast, np.asarray(image.convert("RGB")))


def test_mask_is_the_brighter_half_of_its_range(tmp_path: Path) -> None:
    """Grey edges and JPEG's ringing are no defect; label numbers and alpha channels are."""
    expected = np.array([[False, True, True]])
    values = {
        "grey.png": np.array([[0, 200, 255]], dtype=np.uint8),
        "smooth.png": np.array([[100, 200, 255]], dtype=np.uint8),
        "deep.png": np.array([[20_000, 50_000, 65_535]], dtype=np.uint16),
        "binary.png": np.array([[0, 1, 1]], dtype=np.uint8),
        "labels.png": np.array([[0, 1, 12]], dtype=np.uint8),
        "label.tif": np.array([[0, 7, 70_000]], dtype=np.int32),
        "float.tif": np.array([[0.3, 0.8, 1]], dtype=np.float32),
        "colour.png": np.array([[[0, 0, 99], [0, 0, 200], [255, 0, 0]]], dtype=np.uint8),
        "colour_and_alpha.png": np.array([[[0, 0, 0, 255], [255, 0, 0, 0], [255, 9, 9, 255]]], dtype=np.uint8),
        "shape_in_alpha.png": np.array([[[255, 255, 255, a] for a in (0, 200, 255)]], dtype=np.uint8),
        "black_in_alpha.png": np.array([[[0, 0, 0, a] for a in (60, 200, 255)]], dtype=np.uint8),
        "grey_and_alpha.png": np.array([[[255, a] for a in (0, 200, 255)]], dtype=np.uint8),
    }
    for name, array in values.items():
        mask = read_mask(saved(tmp_path / name, array))
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, expected, err_msg=name)
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 40, 0, 0, 255, 0, 0])  # a dark colour is a label nevertheless
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "palette.png", palette)), expected)
    for level, all_of_it in ((0, False), (9, True)):
        flat = saved(tmp_path / "flat.png", np.full((2, 2), level, np.uint8))
        assert (read_mask(flat) == all_of_it).all()


def test_a_jpeg_mask_is_the_mask_that_was_saved(tmp_path: Path) -> None:
    disc = np.hypot(*np.mgrid[-32:32, -32:32]) < 15
    mask = read_mask(saved(tmp_path / "a.jpg", (disc * 255).astype(np.uint8), quality=75))
    assert (mask ^ disc).sum() <= 0.02 * disc.sum()  # any value but 0 would mark 1.3 times its area


def test_masks_that_cannot_be_right_are_named(tmp_path: Path) -> None:
    disc = np.hypot(*np.mgrid[-16:16, -16:16]) < 6
    sound = saved(tmp_path / "a.png", (disc * 255).astype(np.uint8))
    inverted = saved(tmp_path / "b.png", (~disc * 255).astype(np.uint8))
    empty = saved(tmp_path / "c.png", np.zeros((4, 4), np.uint8))
    broken = tmp_path / "d.png"
    broken.write_bytes(sound.read_bytes()[:60])
    lines = odd_masks([sound, inverted, empty, broken])
    assert [Path(line.split()[0]).name for line in lines] == ["b.png", "c.png", "d.png"]
    assert "marks 89% of its image: invert it" in lines[0]
    assert "marks nothing" in lines[1]
    assert "cannot be read" in lines[2]


def test_grey_is_named_where_it_is_not_an_edge(tmp_path: Path) -> None:
    disc = (255 * (np.hypot(*np.mgrid[-64:64, -64:64]) < 30)).astype(np.uint8)
    spot = disc.copy()
    spot[10:20, 10:20] = 120  # which the middle of the range leaves out
    grey = {"ramp": np.tile(np.linspace(0, 199, 128).astype(np.uint8), (128, 1)), "spot": spot, "labels": spot // 120}
    edges = {
        "binary": disc,
        "one label": disc // 255,
        "smooth": cv2.blur(disc, (4, 4)),
        "small": cv2.resize(disc[::4, ::4], (128, 128), interpolation=cv2.INTER_LINEAR),
    }
    for name, values in edges.items():
        for suffix, options in ((".png", {}), (".jpg", {"quality": 50}))[: 1 if "label" in name else 2]:
            assert grey_masks([saved(tmp_path / f"{name}{suffix}", values, **options)]) == [], name + suffix
    paths = [saved(tmp_path / f"{name}.png", values) for name, values in grey.items()]
    for path in paths:
        assert len(grey_masks([path])) == 1, path
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"none")
    (line,) = grey_masks([broken, *paths])
    assert line.startswith(f"3 mask(s), {paths[0]} first, ")


@pytest.mark.parametrize(
    "numbers", [(1, 255), (1, 2, 255), (60, 255), (200, 255), (192, 255), (63, 127, 255), (40, 80, 120, 160, 200)]
)
def test_values_that_a_mask_drops_or_merges_are_named(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    """Label numbers beside 255, as VOC's void: only the brightest half is learnt from."""
    mask = np.zeros((200, 64), np.uint8)
    for place, number in enumerate(numbers):
        mask[10 + 35 * place : 30 + 35 * place, 20:50] = number
    assert len(grey_masks([saved(tmp_path / "a.png", mask)])) == 1


@pytest.mark.parametrize("quality", [10, 20, 40, 62, 75, 90])
def test_the_ringing_of_jpeg_is_no_grey(tmp_path: Path, quality: int) -> None:
    disc = (255 * (np.hypot(*np.mgrid[-64:64, -64:64]) < 30)).astype(np.uint8)
    block = np.zeros((64, 64), np.uint8)
    block[13:37, 21:50] = 255
    for name, mask in {"disc": disc, "block": block}.items():
        jpeg = read_image(saved(tmp_path / f"{name}.jpg", mask, quality=quality))[..., 0]
        assert grey_masks([tmp_path / f"{name}.jpg", saved(tmp_path / f"{name}.png", jpeg)]) == []
    disc[10:30, 10:30] = 60  # an area, whose defects the middle leaves out
    assert len(grey_masks([saved(tmp_path / "area.jpg", disc, quality=quality)])) == 1


def test_image_size_reads_the_header_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:200])
    assert image_size(path) == (120, 90, "RGB")


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "tif"])
def test_truncated(tmp_path: Path, extension: str, capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    path = saved(tmp_path / f"a.{extension}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(LabError, match=rf"a\.{extension} cannot be read \(.+\): replace or remove it$"):
        read_image(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
def test_one_flipped_bit_in_a_png_is_damage(tmp_path: Path, mode: str) -> None:
    """Pillow does not look at checksums when it decodes: a flipped bit then becomes wrong pixels without a word."""
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)  # smooth, as photographs of products are
    image = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    path = saved(tmp_path / "a.png", image)
    data = path.read_bytes()
    read_image(path)
    start = data.index(b"IDAT") + 4
    for place in range(start, data.index(b"IEND") - 8, 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        for read in (read_image, read_mask):
            with pytest.raises(LabError, match=r"a\.png cannot be read \(.+\): replace or remove it$"):
                read(path)


def test_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    for name, reason in {"empty": "it is empty", "text": "not an image", "gone": "No such file", "folder": "."}.items():
        for read in (read_image, read_mask, image_size):
            with pytest.raises(LabError, match=rf"{name}\.png cannot be read \(.*{reason}.*\): replace or remove it"):
                read(tmp_path / f"{name}.png")


@pytest.mark.parametrize("read", [read_image, read_mask, image_size])
def test_enormous_is_refused_from_the_header(tmp_path: Path, read) -> None:
    with pytest.raises(LabError, match=r"huge\.png has 40000 x 40000 pixels, more than"):
        read(huge_png(tmp_path / "huge.png"))
    assert Image.MAX_IMAGE_PIXELS == images.MAX_PIXELS  # Pillow's own limit is back


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_thirty_two_bits_are_refused(tmp_path: Path, dtype: type) -> None:
    with pytest.raises(LabError, match=r"a\.tif has 32-bit pixels .*convert it to 8 or 16 bits"):
        read_image(saved(tmp_path / "a.tif", GREY.astype(dtype)))


def test_check_names_the_first_bad_file(tmp_path: Path) -> None:
    good = [saved(tmp_path / f"{i}.png", COLOUR) for i in range(6)]
    (bad := tmp_path / "z.png").touch()
    (other := tmp_path / "a.png").write_text("hello")
    check_images(good)
    with pytest.raises(LabError, match=r"z\.png cannot be read \(it is empty\): replace or remove it$"):
        check_images([*good, bad])
    with pytest.raises(LabError, match=r"z\.png .* \(and 2 more cannot be used\)$"):
        check_images([*good, bad, other, tmp_path / "gone.png"])


def test_check_decodes_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(images, "read_image", lambda path: seen.append(path.name))
    paths = [saved(tmp_path / f"{i}.png", COLOUR) for i in range(2)]
    check_images(paths)
    check_images(paths)
    assert sorted(seen) == ["0.png", "1.png"]
    os.utime(paths[1], ns=(0, 0))
    check_images(paths)
    assert sorted(seen) == ["0.png", "1.png", "1.png"]


def test_check_does_not_remember_a_bad_file(tmp_path: Path) -> None:
    (path := tmp_path / "a.png").touch()
    for _ in range(2):
        with pytest.raises(LabError, match="it is empty"):
            check_images([path])
