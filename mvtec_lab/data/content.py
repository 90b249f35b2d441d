"""An image in memory, which is read as one in a file is. Light to import."""

from __future__ import annotations

import io
from typing import IO

# How files begin, by the suffix that they would have; a HEIF file names its kind from the fifth byte on.
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"II+\0": ".tif",
    b"MM\0+": ".tif",
}
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"mif1")


def suffix_of(data: bytes) -> str:
    """Return the suffix of the image file that some bytes begin as; empty: they are none that the lab reads."""
    for signature, suffix in _SIGNATURES.items():
        if data.startswith(signature):
            return suffix
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return ".heic" if data[4:8] == b"ftyp" and data[8:12] in _HEIF else ""


class Content:
    """Hold an image file in memory, with that part of a Path's interface by which images are read.

    Args:
        name: it stands for the path in error lines.
        data: what the file holds; it decides what kind of file this is, whatever the name.
    """

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.data, self.suffix = name, data, suffix_of(data)

    def __str__(self) -> str:
        return self.name

    def open(self, mode: str = "rb") -> IO[bytes]:
        """Return a file over the data, to read from."""
        return io.BytesIO(self.data)

    def read_bytes(self) -> bytes:
        """Return the data."""
        return self.data
