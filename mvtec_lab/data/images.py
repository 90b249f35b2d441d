"""Image files in: one documented way from every file format to an array, and the check that all of them can be read."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL import __version__ as pillow_version
from rich.console import Console
from rich.progress import Progress

from mvtec_lab.errors import LabError

# What pixels depend on beside the file: counted up when read_image or resize changes what it returns.
RULES = {"version": 1, "opencv": cv2.__version__, "pillow": pillow_version}
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 89_478_485  # Pillow's own limit (9459 x 9459, 268 MB as RGB): up to it, no decoder of Pillow's complains

_WORKERS = min(4, os.cpu_count() or 1)  # each holds one decoded image; decoders release the GIL
_limit_lock = threading.Lock()
_Stamp = tuple[str, int, int, int]  # of a file, a new one whenever it is replaced: path, size, and two times
_checked: set[_Stamp] = set()  # the files that could be decoded
_digests: dict[_Stamp, str] = {}

T = TypeVar("T")


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
    with Progress(console=console, transient=True, disable=not console.is_interactive) as progress:
        deque(progress.track(each_image(paths, _check), len(paths), description="checking images"), maxlen=0)


def digests(paths: Sequence[Path]) -> list[str]:
    """A digest of every file's content; read again only where the file has changed.

    Raises:
        LabError: a file that cannot be read.
    """
    return list(each_image(paths, _digest))


def each_image(paths: Sequence[Path], work: Callable[[Path], T]) -> Iterator[T]:
    """What ``work`` makes of each file, in order, several at a time; memory holds a few dozen results.

    Raises:
        LabError: after the last file, the first one whose ``work`` raised it, and how many more did.
    """

    def attempt(path: Path) -> T | LabError:
        try:
            return work(path)
        except OSError as error:
            return _unreadable(path, error)
        except LabError as error:
            return error

    errors: list[LabError] = []
    with ThreadPoolExecutor(_WORKERS) as pool:
        for start in range(0, len(paths), 64):  # so many results may wait: 10 MB at 224 x 224
            for result in pool.map(attempt, paths[start : start + 64]):
                if isinstance(result, LabError):
                    errors.append(result)
                elif not errors:
                    yield result
    if len(errors) > 1:
        raise LabError(f"{errors[0]} (and {len(errors) - 1} more cannot be used)") from errors[0]
    if errors:
        raise errors[0]


def _check(path: Path) -> None:
    stamp = _stamp(path)
    if stamp not in _checked:
        read_image(path)
        _checked.add(stamp)


def _digest(path: Path) -> str:
    stamp = _stamp(path)
    if stamp not in _digests:
        _digests[stamp] = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return _digests[stamp]


def _stamp(path: Path) -> _Stamp:
    stat = path.stat()
    return str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns  # ctime: cp -p keeps the other


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
