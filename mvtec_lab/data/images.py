"""Image files in: one documented way from every file format to an array, and the check that all of them can be read."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import Progress

from mvtec_lab.errors import LabError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 89_478_485  # Pillow's own limit (9459 x 9459, 268 MB as RGB): up to it, no decoder of Pillow's complains

_WORKERS = min(4, os.cpu_count() or 1)  # each holds one decoded image; decoders release the GIL
_BAR_AFTER = 2.0  # seconds: a check that ends sooner needs no progress bar
_limit_lock = threading.Lock()
_checked: set[tuple[str, int, int]] = set()  # path, size, mtime_ns of the files that could be decoded


def read_image(path: Path) -> np.ndarray:
    """Read an image as HxWx3 uint8 RGB, turned upright by its EXIF orientation.

    8-bit grey is repeated over the channels, 16-bit grey is first divided by 257 (full range to full range: stretching
    each image would make images incomparable), 1-bit becomes 0 and 255, palettes are expanded, alpha is dropped,
    the rest is Pillow's conversion to RGB. Of a multi-page file the first page counts.

    Raises:
        LabError: the file is missing, damaged, no image, larger than ``MAX_PIXELS``, or has 32-bit pixels.
    """
    with _opened(path) as image:
        if image.mode in ("I", "F"):
            raise LabError(f"{path} has 32-bit pixels (mode {image.mode}): convert it to 8 or 16 bits, or remove it")
        if image.format == "PNG" and image.mode in ("L", "RGB"):
            pixels = _read_plain_png(path)
            if pixels is not None:
                return pixels
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):
            grey = (np.asarray(image, dtype=np.uint32) + 128) // 257  # 128: to the nearest level
            return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
        return np.array(_to_rgb(image))


def read_mask(path: Path) -> np.ndarray:
    """Read a mask as HxW bool: True where any colour channel is not zero, whatever the bit depth; alpha is ignored.

    Raises:
        LabError: the file is missing, damaged, no image, or larger than ``MAX_PIXELS``.
    """
    with _opened(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
            return np.asarray(image).astype(bool)
        return np.asarray(_to_rgb(image)).max(axis=2) > 0


def image_size(path: Path) -> tuple[int, int, str]:
    """Width and height (upright) in pixels and Pillow's mode, from the file's header alone.

    Raises:
        LabError: the header is missing or damaged, or says more than ``MAX_PIXELS``.
    """
    with _opened(path) as image:
        width, height = image.size
        # Asked without its header's EXIF, a PNG would be decoded to look for one behind the pixels.
        if "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
            width, height = height, width
        return width, height, image.mode


def check_images(paths: Sequence[Path]) -> None:
    """Decode every file once; files found good before, and unchanged since, are not decoded again.

    Raises:
        LabError: the first file, in the order given, that ``read_image`` cannot read, and how many more there are.
    """
    console = Console(stderr=True)
    progress = Progress(console=console, transient=True, disable=not console.is_interactive)
    task = progress.add_task("checking images", total=len(paths))
    begin = time.monotonic()
    errors = []
    try:
        with ThreadPoolExecutor(_WORKERS) as pool:
            for error in pool.map(_check, paths):
                if error is not None:
                    errors.append(error)
                progress.advance(task)
                if time.monotonic() - begin > _BAR_AFTER:
                    progress.start()
    finally:
        progress.stop()
    if len(errors) > 1:
        raise LabError(f"{errors[0]} (and {len(errors) - 1} more cannot be used)") from errors[0]
    if errors:
        raise errors[0]


def _check(path: Path) -> LabError | None:
    try:
        stat = path.stat()
        key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns)
        if key not in _checked:
            read_image(path)
            _checked.add(key)
    except OSError as error:
        return _unreadable(path, error)
    except LabError as error:
        return error
    return None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image with its header read; whatever goes wrong with it, then or in the body, is a LabError."""
    try:
        # Opened by name, an uncompressed TIFF that has to be turned comes out scrambled (Pillow 11 to 13).
        with path.open("rb") as file:
            with _limit_lock:  # Pillow's limit warns first and refuses only at twice the size: ours stands in for it
                limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                try:
                    image = Image.open(file)
                finally:
                    Image.MAX_IMAGE_PIXELS = limit
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise LabError(f"{path} has {size} pixels, more than {MAX_PIXELS:,}: scale it down or remove it")
            yield image
    except LabError:
        raise
    except Exception as error:  # damaged files make decoders raise nearly anything: SyntaxError, KeyError, struct.error
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> LabError:
    if isinstance(error, UnidentifiedImageError):
        reason = "it is no image" if path.stat().st_size else "it is empty"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = " ".join(str(error).split()) or type(error).__name__
    return LabError(f"{path} cannot be read ({reason}): replace or remove it")


def _to_rgb(image: Image.Image) -> Image.Image:
    image.info.pop("transparency", None)  # else Pillow warns that converting a palette drops it
    return image.convert("RGB")


def _read_plain_png(path: Path) -> np.ndarray | None:
    """An 8-bit grey or RGB PNG through OpenCV: Pillow's array in two thirds of its time. None: leave it to Pillow."""
    data = path.read_bytes()
    depth = data[24]  # in the header, whose place is fixed
    complete = data.endswith(b"IEND\xaeB`\x82")  # a file cut short would make OpenCV print a line of its own
    # animation, and the places of an orientation
    special = (b"acTL", b"eXIf", b"Raw profile type", b"tiff:Orientation")
    if depth != 8 or not complete or any(mark in data for mark in special):
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        return None
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB)
