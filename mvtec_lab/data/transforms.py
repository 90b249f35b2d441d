"""Turn an image of any size into the tensor that the network sees: resize, augment (training only), normalise."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from mvtec_lab.data.frame import Frame, border
from mvtec_lab.data.images import WHITE, read_image
from mvtec_lab.data.tiles import Window, windows
from mvtec_lab.errors import LabError, unknown

_asked = os.environ.get("NO_ALBUMENTATIONS_UPDATE")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would call the network

import albumentations as A  # noqa: E402

if _asked is None:
    del os.environ["NO_ALBUMENTATIONS_UPDATE"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]


def resize(image: np.ndarray, frame: int | Frame) -> np.ndarray:
    """Bring an RGB image [H, W, 3] uint8 into a square, [S, S, 3]: squeezed, or as the frame says.

    Area averaging along an axis that shrinks keeps fine defects; an axis that grows is interpolated (cubic).

    Args:
        frame: S, pixels, or that of a model or data set.
    """
    frame, size = Frame.of(frame), image.shape[:2]
    *_, height, width = frame.place(size)
    if size != (height, width):
        smaller = min(image.shape[1], width), min(image.shape[0], height)
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return frame.pad(image, size, border(image)) if frame.pads else image


def read_picture(path: Path, frame: int | Frame, white: int = WHITE) -> np.ndarray:
    """Return an image file as data sets give it: [S, S, 3] uint8; ``white`` as in ``read_image``."""
    return resize(read_image(path, white), frame)


class Cut(NamedTuple):
    """Hold an image file as a network sees it: as a whole, and in tiles if the frame has some."""

    picture: np.ndarray  # [S, S, 3] uint8, of the whole image
    tiles: np.ndarray | None  # [T, S, S, 3] uint8
    windows: list[Window]  # where they lie


def read_cut(path: Path, frame: Frame, white: int = WHITE) -> Cut:
    """Return an image file as ``read_picture`` does, and the pictures of its tiles if the frame has some."""
    return cut_of(read_image(path, white), frame)


def cut_of(image: np.ndarray, frame: Frame) -> Cut:
    """Return an image [H, W, 3] uint8 as ``read_cut`` does."""
    if frame.tile is None:
        return Cut(resize(image, frame), None, [])
    places = windows(image.shape[0], image.shape[1], frame.tile)
    return Cut(resize(image, frame), pictures_of(image, places, frame), places)


def pictures_of(image: np.ndarray, windows: Sequence[Window | None], frame: Frame) -> np.ndarray:
    """Return pictures [N, S, S, 3] uint8 of windows of an image [H, W, 3]; None: of the whole image."""
    return np.stack([resize(image if window is None else window.of(image), frame) for window in windows])


def read_windows(path: Path, windows: Sequence[Window | None], frame: Frame, white: int = WHITE) -> np.ndarray:
    """Return pictures [N, S, S, 3] of windows of an image file, as ``pictures_of`` does.

    Raises:
        LabError: as ``read_image``; the pixels are fewer than the file's header says, by which the windows were chosen.
    """
    image = read_image(path, white)
    height, width = image.shape[:2]
    if any(w is not None and (w.top + w.height > height or w.left + w.width > width) for w in windows):
        raise LabError(f"{path} has {width} x {height} pixels, and its header says another size: save it again")
    return pictures_of(image, windows, frame)


class Augmentation:
    """Apply random albumentations transforms to an [H, W, 3] uint8 image, drawn from the seed of each call alone.

    Args:
        transforms: albumentations names with their arguments, ``{"Rotate": {"limit": 15}}``, applied in this order.
        size: S of the images; all transforms are tried on one.

    Raises:
        LabError: a name that albumentations does not have, arguments that it does not take, or a result that is not a
            uint8 image of the same size: training normalises images itself.
    """

    def __init__(self, transforms: Mapping[str, Mapping[str, Any] | None], size: int = 224) -> None:
        # its output depends on this, beside image and seed: a part of a cache's key
        self.key = [A.__version__, [[name, dict(arguments or {})] for name, arguments in transforms.items()]]
        built = {name: _transform(name, arguments or {}) for name, arguments in transforms.items()}
        _rehearse(built, size)
        self._compose = A.Compose(list(built.values()))

    def __call__(
        self, image: np.ndarray, seed: int, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the transformed image, and its mask [H, W] moved along; None without a mask."""
        self._compose.set_random_seed(seed)
        moved = self._compose(image=image) if mask is None else self._compose(image=image, mask=mask)
        result = moved["image"]
        if not _is_like(result, image):  # a transform that is applied by chance may not have restored the size
            names = ", ".join(name for name, _ in self.key[1])
            raise LabError(f"augment.transforms ({names}) made {_kind(result)} of {_kind(image)}: {_NEEDED}")
        return result, None if mask is None else np.ascontiguousarray(moved["mask"])


_NEEDED = "training needs uint8 RGB images of one size, and normalises them itself: leave it out"


def _rehearse(transforms: Mapping[str, A.BasicTransform], size: int) -> None:
    """Apply all transforms, whatever their chance, to an image; the error names the last one that leaves no image."""
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    for seed in range(3):  # a random size may happen to be the right one
        result, culprit = image, None
        for name, transform in transforms.items():
            transform.set_random_seed(seed)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = transform(force_apply=True, image=result)["image"]
            except Exception as error:  # of any kind: it needs masks, boxes, or another image
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise LabError(
                    f"augment.transforms.{culprit or name} cannot be applied ({name} of {_kind(result)}: {reason}): "
                    f"{_NEEDED}"
                ) from error
            culprit = None if _is_like(result, image) else culprit or name
        if culprit is not None:
            raise LabError(f"augment.transforms.{culprit} makes {_kind(result)} of {_kind(image)}: {_NEEDED}")


def _is_like(result: Any, image: np.ndarray) -> bool:
    return isinstance(result, np.ndarray) and (result.dtype, result.shape) == (image.dtype, image.shape)


def _kind(image: Any) -> str:
    return f"{'an array' if isinstance(image, np.ndarray) else 'a tensor'} {list(image.shape)} {image.dtype}"


def _transform(name: str, arguments: Mapping[str, Any]) -> A.BasicTransform:
    known = {n: t for n, t in vars(A).items() if isinstance(t, type) and issubclass(t, A.BasicTransform)}
    if name not in known:
        raise unknown("albumentations transform", name, known)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # albumentations only warns of an argument that it does not know
            return known[name](**arguments)
    except Exception as error:  # pydantic's, albumentations' and Python's own kinds
        reason = " ".join(str(error).split()).split(" For further information")[0]
        raise LabError(f"augment.transforms.{name} does not take {dict(arguments)}: {reason}") from error


def normalise(images: torch.Tensor | np.ndarray, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return (image / 255 - mean) / std: [..., 3, H, W] float32, channels last in memory, of [..., H, W, 3] uint8."""
    pixels = torch.as_tensor(images).float()
    shift, scale = (torch.tensor(values, device=pixels.device).mul(255) for values in (mean, std))
    return pixels.sub_(shift).div_(scale).movedim(-1, -3)
