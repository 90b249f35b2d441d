"""The data set of one product: its images, or features of them, by place."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mvtec_lab.data.frame import Frame, Place, Size, border, inside
from mvtec_lab.data.images import WHITE, each_image
from mvtec_lab.data.layouts import read_folder
from mvtec_lab.data.paste import Paste
from mvtec_lab.data.regions import box_around
from mvtec_lab.data.samples import Sample, classes_of, kinds_of
from mvtec_lab.data.targets import TARGETS, boxes_of, resize_mask
from mvtec_lab.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Augmentation, normalise, read_windows
from mvtec_lab.errors import LabError, unknown
from mvtec_lab.results import GOOD

Key = int | tuple[int, int]  # the place of a sample, or that and the seed of what is random


class Rows:
    """Some rows of an array [M, ...], read when they are asked for.

    Args:
        array: on any device; a mapped file stays on disk.
        rows: which of its rows, by place.
    """

    def __init__(self, array: Tensor, rows: Sequence[int]) -> None:
        self.array, self.rows = array, torch.tensor(rows)

    def __getitem__(self, places: list[int]) -> Tensor:
        return self.array.index_select(0, self.rows[places].to(self.array.device))

    def near(self, device: torch.device) -> Rows:
        """Return these rows on a device, if they leave half of its free memory to the network; else where they are."""
        if device.type == "cpu" or len(self.rows) * self.array[0].nbytes > free_memory(device) // 2:
            return self
        return Rows(self.array.index_select(0, self.rows).to(device), range(len(self.rows)))


def free_memory(device: torch.device) -> int:
    """Return the free memory of a GPU in bytes; 0 for devices that do not say."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


class MVTecDataset(Dataset[dict[str, Any]]):
    """Give the images of one product folder with their class.

    An item is ``{"image": float32 [3, S, S], normalised; "label": class index, -1 if unknown; "index": place in
    samples}``. A list of keys gives a batch: image [N, 3, S, S], channels last in memory, label and index [N].

    With ``targets``, items also have ``mask``, uint8 [S, S], 1 in a defect ([N, S, S] in a batch), and ``mixed``, bool,
    whether the label names but one of several types in it; or ``boxes``, float32 [K, 4] in pixels (x0, y0, x1, y1),
    with ``labels``, int64 [K], which count the defect types from 1; a batch has lists of N of both. An image without a
    defect has K = 0. Masks are moved along with their images. They have ``seed`` as well, the one of their key, 0
    without one: a problem that draws views of its own takes them from it.

    Args:
        folder: the product folder, ``.../bottle``.
        samples: which of its images, or tiles of them (``MVTecDataModule.tiles``); None: all images.
        classes: the class names in the order of their index; None: those of ``samples``, good first.
        kinds: the defect types in the order of ``labels``; None: those of ``samples``.
        image_size: S, pixels, or the frame of a model or data module.
        white: the value of 16-bit files that becomes 255.
        augmentation: random transforms, or None.
        paste: replaces defect images at random, before they are augmented; None: never.
        mean, std: of RGB in [0, 1].
        pictures: the decoded images, one uint8 row [S, S, 3] per sample; None: each is read when it is asked for.
        targets: some of ``TARGETS``.

    Raises:
        LabError: an unknown target, or targets of a defect image that has no mask.
    """

    def __init__(
        self,
        folder: str | Path,
        samples: Sequence[Sample] | None = None,
        *,
        classes: Sequence[str] | None = None,
        kinds: Sequence[str] | None = None,
        image_size: int | Frame = 224,
        white: int = WHITE,
        augmentation: Augmentation | None = None,
        paste: Paste | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        pictures: Rows | None = None,
        targets: Sequence[str] = (),
    ) -> None:
        self.folder = Path(folder)
        self.samples = list(read_folder(self.folder).samples if samples is None else samples)
        self.classes = list(classes_of(self.samples) if classes is None else classes)
        self.frame, self.augmentation, self.mean, self.std = Frame.of(image_size), augmentation, mean, std
        self.white, self.pictures, self.paste, self.targets = white, pictures, paste, targets
        self._small: dict[int, np.ndarray] = {}
        self._inside: dict[int, Tensor] = {}
        index = {name: i for i, name in enumerate(self.classes)}
        self.labels = torch.tensor([index.get(sample.label, -1) for sample in self.samples])
        kinds = kinds_of(self.samples) if kinds is None else kinds
        self._kinds = {name: i for i, name in enumerate(kinds, start=1)}
        if strangers := [name for name in targets if name not in TARGETS]:
            raise unknown("target", strangers[0], TARGETS)
        if targets and (bare := [s.path for s in self.samples if s.label != GOOD and s.mask is None]):
            raise LabError(f"{self.folder / bare[0]} has no mask to learn from: add it, or remove the image")
        if "mask" in targets and (boxed := [s for s in self.samples if s.mask and not s.outlined]):
            raise LabError(
                f"{self.folder / boxed[0].path} has boxes alone ({boxed[0].mask}), but masks are to be learnt: give "
                "its objects outlines, or choose a method that learns boxes"
            )

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def random(self) -> bool:
        """Return whether an image differs each time that it is asked for."""
        return self.augmentation is not None or self.paste is not None

    @property
    def in_memory(self) -> bool:
        """Return whether items are merely rows of an array."""
        return self.pictures is not None and not self.random and not self.targets

    def near(self, device: torch.device) -> MVTecDataset:
        """Return this data set with its decoded images on a device, where they fit."""
        near = copy(self)
        near.pictures = None if self.pictures is None else self.pictures.near(device)
        return near

    def picture(self, place: int) -> np.ndarray:
        """Return the image itself, resized: [S, S, 3] uint8."""
        return self.pictures_at([place])[0]

    def pictures_at(self, places: list[int]) -> np.ndarray:
        """Return the pictures of several places: [N, S, S, 3] uint8. A file is read once, of however many tiles."""
        if self.pictures is not None:
            return self.pictures[places].cpu().numpy()
        of_file: dict[Path, list[int]] = {}
        for row, place in enumerate(places):
            of_file.setdefault(self.folder / self.samples[place].path, []).append(row)

        def read(path: Path) -> np.ndarray:
            windows = [self.samples[places[row]].window for row in of_file[path]]
            return read_windows(path, windows, self.frame, self.white)

        pictures = np.concatenate(list(each_image(list(of_file), read)))
        rows = [row for of_one in of_file.values() for row in of_one]
        return pictures[np.argsort(rows)]

    def _size(self, place: int) -> Size | Path:
        """Return what ``Frame`` takes for an image, its file, or for a tile, its size."""
        window = self.samples[place].window
        return self.folder / self.samples[place].path if window is None else (window.height, window.width)

    def place(self, place: int) -> Place:
        """Return where an image or a tile lies in its square."""
        return self.frame.place(self._size(place))

    def inside(self, place: int) -> Tensor:
        """Return where an image lies in its square, [S, S] bool, as ``frame.inside`` recognises it."""
        if place not in self._inside:
            self._inside[place] = inside(torch.from_numpy(self.picture(place)).movedim(-1, 0)[None].float())[0]
        return self._inside[place]

    def cut(self, place: int, square: np.ndarray) -> np.ndarray:
        """Return the part [h, w, ...] of a picture, a mask or a map that shows the image, as ``Frame.cut`` does."""
        return self.frame.cut(square, self._size(place))

    def padded(self, place: int, part: np.ndarray) -> np.ndarray:
        """Return the picture [S, S, 3] around what shows the image, [h, w, 3] uint8: ``shown`` the other way round."""
        return self.frame.pad(part, self._size(place), border(part))

    def shown(self, place: int) -> np.ndarray:
        """Return the image to look at: [h, w, 3] uint8, its picture without padding."""
        return self.cut(place, self.picture(place))

    def mask(self, place: int) -> np.ndarray | None:
        """Return the image's mask in its file's size, [H, W] bool, to draw or to measure.

        None where there is none, it marks nothing or cannot be read.
        """
        try:
            mask = self.samples[place].read_mask(self.folder)
        except LabError:
            return None
        return mask if mask is not None and mask.any() else None

    def view(self, key: Key) -> tuple[np.ndarray, np.ndarray | None]:
        """Return an image as training sees it, pasted and augmented but not normalised, and its mask.

        Returns:
            [S, S, 3] uint8, and [S, S] uint8, or None where no target asks for it.
        """
        image, mask = self._seen(key)
        return image, mask if mask is None or mask.ndim == 2 else mask.max(axis=2)

    def _seen(self, key: Key) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the same, with a mask [S, S, K] of K annotated objects: they may overlap, and keep their types."""
        place, seed = key if isinstance(key, tuple) else (key, int(torch.randint(2**31, ())) if self.random else 0)
        mask = self._small_mask(place) if self.targets else None
        image, mask = self.paste(self.picture, place, seed, mask) if self.paste else (self.picture(place), mask)
        return self.augmentation(image, seed, mask) if self.augmentation else (image, mask)

    def __getitem__(self, key: Key | list[int] | list[tuple[int, int]]) -> dict[str, Any]:
        if not isinstance(key, list):
            return {name: values[0] for name, values in self[[key]].items()}  # type: ignore[index]
        places = [k[0] if isinstance(k, tuple) else k for k in key]
        index = torch.tensor(places)
        masks: Sequence[Any] = ()
        if self.random:
            pictures, masks = zip(*map(self._seen, key), strict=True)
            images = torch.from_numpy(np.stack(pictures))
        else:
            masks = [self._small_mask(place) for place in places] if self.targets else ()
            images = torch.from_numpy(self.pictures_at(places)) if self.pictures is None else self.pictures[places]
        item: dict[str, Any] = {
            "image": normalise(images, self.mean, self.std),
            "label": self.labels[index],
            "index": index,
        }
        if self.targets:
            item["seed"] = torch.tensor([k[1] if isinstance(k, tuple) else 0 for k in key])
            item |= self._targets_of(places, masks)
        return item

    def _targets_of(self, places: Sequence[int], masks: Sequence[Any]) -> dict[str, Any]:
        item: dict[str, Any] = {}
        if "mask" in self.targets:
            item["mask"] = torch.from_numpy(np.stack([_joined(mask) for mask in masks]))
            item["mixed"] = torch.tensor([self.samples[place].mixed for place in places])
        if "boxes" in self.targets:
            pairs = [self._boxes(place, mask) for place, mask in zip(places, masks, strict=True)]
            item["boxes"], item["labels"] = (list(values) for values in zip(*pairs, strict=True))
        return item

    def _boxes(self, place: int, mask: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the boxes of a mask that ``_seen`` gave, and their labels; an object that moved out has none."""
        sample = self.samples[place]
        if not sample.objects:
            boxes = boxes_of(mask)
            return boxes, torch.full((len(boxes),), self._kinds.get(sample.label, 0))
        parts = mask.reshape(*mask.shape[:2], -1)  # a single object's may have lost its axis
        kept = [k for k in range(parts.shape[2]) if parts[..., k].any()]
        boxes = torch.tensor([box_around(parts[..., k]) for k in kept]).reshape(-1, 4)
        return boxes, torch.tensor([self._kinds[sample.objects[k].label] for k in kept], dtype=torch.int64)

    def small_targets(self, places: Sequence[int]) -> dict[str, Any]:
        """Return the targets of images that are not augmented, as items have them."""
        return self._targets_of(places, [self._small_mask(place) for place in places])

    def small_masks(self, places: Sequence[int]) -> Tensor:
        """Return the masks to learn from, uint8 [N, S, S], of images that are not augmented."""
        return torch.from_numpy(np.stack([_joined(self._small_mask(place)) for place in places]))

    def _small_mask(self, place: int) -> np.ndarray:
        """Return the mask to learn from: [S, S] uint8, or [S, S, K] of K annotated objects."""
        if place not in self._small:  # a large mask takes longer to read than its image to be trained on
            self._small[place] = self._read_small(place)
        return self._small[place]

    def _read_small(self, place: int) -> np.ndarray:
        sample = self.samples[place]
        window = sample.window

        def small(mask: np.ndarray) -> np.ndarray:
            return resize_mask(mask if window is None else window.of(mask), self.frame)

        if sample.objects:
            return np.stack([small(r.mask()) for r in sample.objects], axis=2)
        mask = sample.read_mask(self.folder)
        if mask is None:
            return np.zeros((self.frame.size, self.frame.size), np.uint8)
        return small(mask)


def _joined(mask: np.ndarray) -> np.ndarray:
    """Return the masks [S, S, K] of an image's objects as one, [S, S]."""
    return mask if mask.ndim == 2 else mask.max(axis=2)


class FeatureDataset(Dataset[dict[str, Any]]):
    """Give features of a data set's images: ``{"features": [N, ...], "label": [N], "index": [N]}``.

    Where the data set has ``targets``, so has this one, and ``seed``, as MVTecDataset does. Items of letterboxed images
    have where these lie in their squares: ``inside``, bool [N, S, S].

    Args:
        dataset: the images, for their labels and masks.
        features: one row per image, or ``views`` consecutive rows per image; four-dimensional ones channels last.
        views: the seed of an item's key says which of them it is.
    """

    in_memory = True

    def __init__(self, dataset: MVTecDataset, features: Rows, views: int = 1) -> None:
        self.dataset, self.features, self.views = dataset, features, views

    def __len__(self) -> int:
        return len(self.dataset)

    def near(self, device: torch.device) -> FeatureDataset:
        """Return this data set with its features on a device, where they fit."""
        return FeatureDataset(self.dataset, self.features.near(device), self.views)

    def __getitem__(self, keys: list[int] | list[tuple[int, int]]) -> dict[str, Any]:
        pairs = [k if isinstance(k, tuple) else (k, 0) for k in keys]
        features = self.features[[place * self.views + seed % self.views for place, seed in pairs]]
        places = [place for place, _ in pairs]
        index = torch.tensor(places)
        item = {
            "features": features.permute(0, 3, 1, 2) if features.ndim == 4 else features,
            "label": self.dataset.labels[index],
            "index": index,
        }
        if self.dataset.targets:
            item |= self.dataset.small_targets(places)
            item["seed"] = torch.tensor([seed for _, seed in pairs])
        if self.dataset.frame.pads:  # an image shows it itself
            item["inside"] = torch.stack([self.dataset.inside(place) for place in places])
        return item
