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
from mvtec_lab.data.images import check_images, image_size, read_image, read_mask
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


def test_sixteen_bit_colour_keeps_its_high_byte(tmp_path: Path) -> None:
    deep = COLOUR.astype(np.uint16) * 256 + 200
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., ::-1])  # Pillow reads such files but does not write them
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), COLOUR)


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


def test_mask_is_any_nonzero_pixel(tmp_path: Path) -> None:
    expected = np.array([[False, True, True]])
    values = {
        "grey.png": np.array([[0, 1, 255]], dtype=np.uint8),
        "deep.png": np.array([[0, 1, 65535]], dtype=np.uint16),  # 1 must not be scaled to 0
        "label.tif": np.array([[0, 7, 70_000]], dtype=np.int32),
        "float.tif": np.array([[0, 0.001, 1]], dtype=np.float32),
        "colour.png": np.array([[[0, 0, 0], [0, 0, 1], [255, 0, 0]]], dtype=np.uint8),
        "alpha.png": np.array([[[0, 0, 0, 255], [1, 0, 0, 0], [9, 9, 9, 255]]], dtype=np.uint8),
    }
    for name, array in values.items():
        mask = read_mask(saved(tmp_path / name, array))
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, expected, err_msg=name)


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


def test_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    for name, reason in {"empty": "it is empty", "text": "no image", "gone": "No such file", "folder": "."}.items():
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
