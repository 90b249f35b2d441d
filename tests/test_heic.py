"""HEIC files of phones: read with an extra, and answered with its name where it is missing."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_layouts import fill

from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.images import RULES, check_images, image_size, read_image, rules_of
from mvtec_lab.data.layouts import read_folder
from mvtec_lab.errors import LabError

# 128 x 64 pixels: red on the left, blue on the right, the upper half darker.
PHOTO = base64.b64decode(
    "AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAVRtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ACJpbG9jAAAAAERAAAEAAQAAAAABeAABAAAAAAAAAFMAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    "AAAAAAABAAAA1GlwcnAAAAC1aXBjbwAAAHZodmNDAQQIAAAAnjgAAAAAHvAA/P/4+AAADwNgAAEAF0ABDAH//wQIAAADAJ44AAAD"
    "AAAeugJAYQABAClCAQEECAAAAwCeOAAAAwAAHpACBAgst1JJTXNwENBgQAAABkAAAAMAQmIAAQAIRAHBcoYMAiQAAAATY29scm5j"
    "bHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAgAAAAEAAAAAQcGl4aQAAAAADCAgIAAAAF2lwbWEAAAAAAAAAAQABBIECAwQAAABbbWRh"
    "dAAAAE8oAa8TgHjVhci///tyUf/aZnh7s8WIpRW+m8b/nVsX2i2gNoOdv8zOC1Rx4Ob+8QGMJCpj3XNIGf/czuj5pgf/HBR3x3Vf"
    "ibv9hPr1V+0+"
)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(PHOTO)
    return path


def test_a_photo_of_a_phone(photo: Path) -> None:
    pytest.importorskip("pi_heif")
    formats = dict(Image.EXTENSION), list(Image.ID)
    wanted = np.zeros((64, 128, 3), np.uint8)
    wanted[:, :64], wanted[:, 64:] = (200, 40, 40), (40, 40, 200)
    wanted[:32] //= 2
    pixels = read_image(photo)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.astype(int), wanted.astype(int), atol=8)
    assert image_size(photo)[:2] == (128, 64)
    assert (dict(Image.EXTENSION), list(Image.ID)) == formats  # a library changes nothing around it
    photo.write_bytes(PHOTO[:-30])
    with pytest.raises(LabError, match=r"IMG_0001.HEIC cannot be read \(.*\): replace or remove it"):
        read_image(photo)


def test_photos_are_a_data_set(tmp_path: Path) -> None:
    pytest.importorskip("pi_heif")
    fill(tmp_path / "good", 4)
    (tmp_path / "scratch").mkdir()
    for i in range(4):
        (tmp_path / f"scratch/IMG_{i}.heic").write_bytes(PHOTO)
    data = MVTecDataModule(read_folder(tmp_path), image_size=16)
    data.setup()
    assert [s.path for s in data.samples if s.label == "scratch"] == [f"scratch/IMG_{i}.heic" for i in range(4)]
    assert "heic" in data.content(data.samples)["rules"]
    assert rules_of([tmp_path / "good/000.png"]) == RULES  # keys of other caches stay


def test_a_missing_extra_is_named(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(LabError, match=r'an HEIC file needs an extra\): pip install "mvtec_lab\[heic\]", or save it'):
        check_images([photo])
