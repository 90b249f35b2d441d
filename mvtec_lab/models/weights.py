"""Weights that a backbone starts from: published ones, those of a file, or random ones. Nothing in a file is run."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights

from mvtec_lab.config import SAMPLE_BACKBONE, SAMPLE_WEIGHTS
from mvtec_lab.errors import LabError, MissingWeights, unknown
from mvtec_lab.models import timm_backbones
from mvtec_lab.models.backbones import builder, check_weights
from mvtec_lab.models.files import check_file, damaged
from mvtec_lab.models.finite import not_finite
from mvtec_lab.models.names import TIMM, is_file_name
from mvtec_lab.results import write_whole

log = logging.getLogger(__name__)

SAMPLE_NOTE = f"{SAMPLE_WEIGHTS}: weights pretrained on drawn pictures of invented products, not on photographs"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAMPLE_FILE = Path(__file__).with_name("sample_v1.pth")  # made by ``python -m mvtec_lab.pretrain``, in half precision
# Why URLs failed in this process: a sweep does not wait again for each run. They are texts, as an error that is raised
# again holds every frame that it passes through, and with them the images and features of all runs.
_unreachable: dict[str, str] = {}


class WeightsUnavailable(MissingWeights):
    """Pretrained weights cannot be fetched here and now; random weights can replace them."""


@dataclass(frozen=True)
class Weights:
    """Hold weights and the normalisation that they expect: mean and std of RGB in [0, 1]."""

    name: str  # IMAGENET1K_V1, SAMPLE_V1, file:NAME or random
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    state_dict: Mapping[str, Tensor] | None = None
    note: str | None = None  # what has to be said of them, such as how they differ from those asked for


def normalisation(backbone: str, weights: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of RGB in [0, 1] that weights expect, without loading them: ImageNet's where none says.

    Args:
        weights: as in ``load_weights``.
    """
    if weights in (None, "null"):
        return IMAGENET_MEAN, IMAGENET_STD
    return _normalisation(backbone, _entries(backbone).get(str(weights).upper()))


def _normalisation(backbone: str, entry: WeightsEnum | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if backbone.startswith(TIMM):
        says = timm_backbones.published(backbone)
        return tuple(says.get("mean") or IMAGENET_MEAN), tuple(says.get("std") or IMAGENET_STD)
    transforms = entry.transforms() if entry else None
    return tuple(getattr(transforms, "mean", IMAGENET_MEAN)), tuple(getattr(transforms, "std", IMAGENET_STD))


def weights_names(backbone: str) -> list[str]:
    """Return the names of weights that a backbone has, ``DEFAULT`` apart: TorchVision's entries, and the sample's."""
    own = [SAMPLE_WEIGHTS] if backbone == SAMPLE_BACKBONE else []
    return [*(name for name in _entries(backbone) if name != "DEFAULT"), *own]


def load_weights(backbone: str, weights: str | None) -> Weights:
    """Return the weights asked for; TorchVision's loader fetches them into ``TORCH_HOME`` where they are not cached.

    Args:
        backbone: a backbone's name.
        weights: ``DEFAULT``, the name of a TorchVision entry in any case, ``SAMPLE_V1``, a file with a state dict, None
            or ``null``. Where DEFAULT cannot be fetched, another cached entry of the backbone replaces it, with a note.

    Raises:
        WeightsUnavailable: nothing is published for this backbone, or it cannot be fetched.
        LabError: the backbone or entry is unknown; the file is missing, damaged, unsafe or of another model.
    """
    builder(backbone)
    if weights is None or weights == "null":
        return Weights("random")
    if weights.upper() == SAMPLE_WEIGHTS:
        return _of_sample(backbone)
    entries = _entries(backbone)
    source = f"model.weights={weights}"
    entry, path, note = entries.get(weights.upper()), Path(weights).expanduser(), None
    if entry is not None:
        if weights.upper() == "DEFAULT" and not _cached(entry).is_file():
            entry, note = _default(backbone, entry, entries)
        name, state_dict = entry.name, _fetch(backbone, entry)
    elif backbone.startswith(TIMM) and weights.upper() == "DEFAULT":
        name, state_dict = timm_backbones.tag(backbone), _fetch_timm(backbone)
    elif path.exists() or is_file_name(weights):
        name, entry, state_dict = f"file:{path.name}", entries.get("DEFAULT"), load_file(path, source)
    elif entries:
        raise unknown(f"weights of {backbone}", weights, weights_names(backbone))
    else:
        remedy = "give model.weights=FILE, or model.weights=null for random weights"
        raise WeightsUnavailable(f"there are no weights for {backbone}, so no {weights}", remedy)
    if not isinstance(state_dict, Mapping) or not all(isinstance(key, str) for key in state_dict):
        raise LabError(f"{source} is not a state dict: write one with torch.save(model.state_dict(), FILE)")
    check_weights(backbone, state_dict, source)
    if key := not_finite(state_dict):  # VGG16's IMAGENET1K_FEATURES leaves out its classifier this way
        raise LabError(f"{source} holds NaN or infinity in {key}: choose other weights")
    mean, std = _normalisation(backbone, entry)
    return Weights(name, mean, std, state_dict, note)  # type: ignore[arg-type] # three values each


def _of_sample(backbone: str) -> Weights:
    """Return the weights that the package brings along, pretrained on drawn pictures of invented products."""
    if backbone != SAMPLE_BACKBONE:
        raise LabError(
            f"{SAMPLE_WEIGHTS} is for {SAMPLE_BACKBONE}, not for {backbone}: give model.backbone={SAMPLE_BACKBONE}, or "
            "other model.weights"
        )
    stored = load_file(SAMPLE_FILE)
    state_dict = {key: value.float() if value.is_floating_point() else value for key, value in stored.items()}
    check_weights(backbone, state_dict, str(SAMPLE_FILE))
    return Weights(SAMPLE_WEIGHTS, state_dict=state_dict, note=SAMPLE_NOTE)


def load_file(path: str | os.PathLike[str], source: str | None = None) -> Any:
    """Return what ``torch.save`` wrote, on the CPU: tensors and plain values only; code is refused and never run.

    The file's checksums are compared first: PyTorch writes them and does not read them.

    Args:
        source: the setting that names the file, ``key=FILE``, for error lines; None: the path alone.

    Raises:
        LabError: the file is missing, damaged, not written by PyTorch, or holds more than tensors and plain values.
    """
    source = source or str(path)
    if Path(path).exists():
        check_file(Path(path), source)
    try:
        _verify(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        reason = error.strerror or error
        raise LabError(f"{source} cannot be read ({reason}): give a checkpoint or a file of weights") from error
    except Exception as error:  # its unpickler reads garbage as instructions, which may fail in any way
        raise _unreadable(path, source, error) from error


def fetch_file(url: str, sha256: str, remedy: str) -> Path:
    """Return the file of an address, kept in ``TORCH_HOME`` where TorchVision's weights are.

    Args:
        sha256: its digest, 64 hexadecimal digits; another file is refused.
        remedy: the setting that names a file instead.

    Raises:
        LabError: it cannot be fetched, or is not the file that is meant.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if path.is_file():
        if _sha256(path) != sha256:
            raise LabError(f"{path} is not the file that {url} gave (its SHA-256 differs): delete it, or give {remedy}")
        return path
    try:
        if url in _unreachable:
            raise OSError(_unreachable[url])
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=sys.stderr.isatty())
    except Exception as error:  # of the network, the disk, or another file than expected
        _unreachable[url] = str(error)
        reason = " ".join(str(error).split())
        what = f"{url} cannot be fetched ({reason})"
        raise MissingWeights(what, f"put it into {path.parent}, or give {remedy}") from error
    return path


def save_file(content: Any, path: str | os.PathLike[str]) -> None:
    """Write a file for ``load_file``, completely or not at all.

    Raises:
        DiskFullError: there is no room for it.
    """
    file = io.BytesIO()  # when PyTorch cannot write to the disk, it names neither the file nor the reason
    torch.save(content, file)
    write_whole(Path(path), file.getbuffer())


def _verify(path: str | os.PathLike[str]) -> None:
    """Compare a file's parts with their checksums; files from before PyTorch 1.6 have none.

    Raises:
        BadZipFile: a checksum does not match.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if part := archive.testzip():
                raise zipfile.BadZipFile(f"the checksum of {part} does not match")


def _unreadable(path: str | os.PathLike[str], source: str, error: Exception) -> LabError:
    foreign = re.search(r"GLOBAL (\S+)|whose module (\S+) is blocked", str(error))
    if foreign:
        code = foreign[1] or foreign[2]
        return LabError(
            f"{source} was refused, it would run {code}: save tensors alone, torch.save(model.state_dict())"
        )
    return damaged(source, error if isinstance(error, zipfile.BadZipFile) else type(error).__name__)


def _entries(backbone: str) -> dict[str, WeightsEnum]:
    try:
        return {name.upper(): entry for name, entry in get_model_weights(builder(backbone)).__members__.items()}
    except ValueError:  # a registered backbone whose builder names no WeightsEnum
        return {}


def _cached(entry: WeightsEnum) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(entry.url).path).name


def _default(backbone: str, default: WeightsEnum, entries: Mapping[str, WeightsEnum]) -> tuple[WeightsEnum, str | None]:
    """Return the default entry, fetched into the cache, or another entry that is cached already, with a note."""
    try:
        _fetch(backbone, default)
    except WeightsUnavailable:
        for entry in entries.values():
            if _cached(entry).is_file():
                return entry, f"{default.name}, the default of {backbone}, cannot be fetched: {entry.name} replaces it"
        raise
    return default, None


def _fetch(backbone: str, entry: WeightsEnum) -> Mapping[str, Tensor]:
    path = _cached(entry)
    if path.is_file():
        check_file(path, str(path))
    try:
        if path.is_file():
            _verify(path)
            _warn_of_another_file(path)  # TorchVision checks only what it fetches
        elif entry.url in _unreachable:
            raise OSError(_unreachable[entry.url])
        return entry.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as error:  # of the network, the disk, or from garbage in the file
        if path.is_file():
            raise _unreadable(path, str(path), error) from error
        _unreachable[entry.url] = str(error)
        raise WeightsUnavailable(
            f"{path.name}, {entry.name} of {backbone}, cannot be fetched ({' '.join(str(error).split())})",
            f"put it into {path.parent}, or give model.weights=FILE, or model.weights=null for random weights",
        ) from error


def _fetch_timm(backbone: str) -> Mapping[str, Tensor]:
    try:
        if backbone in _unreachable:
            raise OSError(_unreachable[backbone])
        return builder(backbone)(pretrained=True).state_dict()
    except Exception as error:  # of the network, the disk, or of a model without published weights
        _unreachable[backbone] = str(error)
        raise WeightsUnavailable(
            f"the weights of {backbone} cannot be fetched ({' '.join(str(error).split())[:200]})",
            "give model.weights=FILE, or model.weights=null for random weights",
        ) from error


def _warn_of_another_file(path: Path) -> None:
    wanted = re.search(r"-([0-9a-f]{8,})\.", path.name)  # TorchVision's file names end in the start of their SHA-256
    if wanted and not _sha256(path).startswith(wanted[1]):
        log.warning("%s is not the file that TorchVision published under this name", path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
