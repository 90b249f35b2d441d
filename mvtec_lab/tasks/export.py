"""task=export: a checkpoint as one TorchScript file, for which nothing but PyTorch is needed."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor, nn

from mvtec_lab.config import Config, validate
from mvtec_lab.data.images import digests, each_image
from mvtec_lab.data.transforms import normalise, read_picture
from mvtec_lab.engine.origin import checkpoint_of
from mvtec_lab.engine.setup import claim
from mvtec_lab.errors import LabError
from mvtec_lab.models.finite import require_finite
from mvtec_lab.problems.anomaly.base import AnomalyDetector
from mvtec_lab.problems.anomaly.scores import CLASSES
from mvtec_lab.problems.classification.classifier import DefectClassifier
from mvtec_lab.problems.model import load_model
from mvtec_lab.results import write_whole
from mvtec_lab.tasks.evaluate import run_of

log = logging.getLogger(__name__)

MODEL, EXPORT, META = "model.ts", "export.json", "meta.json"  # the last one is inside the first
CHECKED = 8  # images that the file is compared on
BATCHES = (1, 3, CHECKED)  # a trace made of one image is to take them all
LARGEST = 1e-4  # difference, as a share of the largest value: kernels differ in their rounding, by 6e-6 measured

Outputs = tuple[Tensor, ...]  # score [N] and map [N, h, w], where there is one; of a classifier, probabilities [N, C]


class _Detector(nn.Module):
    """Image by image, because a trace is of one batch: loops over images and parts of a search stand still in it."""

    def __init__(self, one: Callable[[Tensor], Outputs], image_size: int, localises: bool) -> None:
        super().__init__()
        self.one, self.image_size, self.localises = one, image_size, localises

    def forward(self, images: Tensor) -> tuple[Tensor, Optional[Tensor]]:  # noqa: UP045 # TorchScript knows no other
        if images.dtype != torch.float32 or images.shape[1:] != [3, self.image_size, self.image_size]:
            raise ValueError(f"give float32 images [N, 3, {self.image_size}, {self.image_size}], RGB in [0, 1]")
        scores: list[Tensor] = []
        maps: list[Tensor] = []
        for image in images.split(1):
            found = self.one(image)
            scores.append(found[0])
            maps.append(found[-1])
        return torch.cat(scores), torch.cat(maps) if self.localises else None


class _Classifier(nn.Module):
    """As ``_Detector``."""

    def __init__(self, one: Callable[[Tensor], Tensor], image_size: int) -> None:
        super().__init__()
        self.one, self.image_size = one, image_size

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.float32 or images.shape[1:] != [3, self.image_size, self.image_size]:
            raise ValueError(f"give float32 images [N, 3, {self.image_size}, {self.image_size}], RGB in [0, 1]")
        return torch.cat([self.one(image) for image in images.split(1)])


def export(config: Config, run_dir: str | Path) -> dict[str, Any]:
    """Write ``config.ckpt`` as model.ts, checked against the checkpoint, and what there is to know of it: export.json.

    The file takes float32 images [N, 3, S, S], RGB in [0, 1], and gives score [N] and map [N, h, w] (None where the
    method does not localise); of a classifier, probabilities [N, C]. meta.json inside it holds threshold, classes,
    image size and method.

    Raises:
        LabError: no checkpoint, one that cannot be read or traced, or a file that gives something else than it does.
    """
    validate(config)
    loaded = load_model(checkpoint_of(config))
    assert config.ckpt is not None
    model, about = loaded.module, loaded.about()
    size, white = about["image_size"], about["white"]
    meta: dict[str, Any] = {
        "method": about.get("method", "classifier"),
        "classes": CLASSES if isinstance(model, AnomalyDetector) else model.classes,
        "image_size": size,
        "input": f"float32 [N, 3, {size}, {size}], RGB in [0, 1]",
        # Another one moves scores across the threshold: OpenCV's default gave 7 false alarms in 20 good bottles, not 0.
        "resize": "squeezed into the square by cv2.INTER_AREA where a side shrinks, cv2.INTER_CUBIC where it grows",
        "white": white,  # of 16-bit files, which are divided by it; of 8-bit ones it is 255
    }
    if isinstance(model, AnomalyDetector):
        meta["output"] = "score [N], a defect above threshold; map [N, h, w] or None, which covers the whole image"
        meta |= {"threshold": about["threshold"], "map_threshold": about["map_threshold"]}
    else:
        meta["output"] = "probabilities [N, classes]"
    pictures, source = _pictures(Path(config.ckpt), size, white)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a trace holds still: the check below is of just that
        file = io.BytesIO()
        torch.jit.save(_script(model, about), file, _extra_files={META: json.dumps(meta)})
        file.seek(0)
        exported = torch.jit.load(file)
        wanted = _run(model, normalise(pictures, about["mean"], about["std"]))
        images = torch.from_numpy(pictures).movedim(-1, 1).float() / 255
        for values in wanted:
            require_finite(values, "scores, maps or probabilities")
        difference = float(np.max([_difference(wanted, exported, images, batch) for batch in BATCHES]))
    if not difference <= LARGEST:  # NaN as well
        raise LabError(
            f"{config.ckpt} cannot be exported: the file's values differ by {difference:.2g} of the largest from the "
            f"checkpoint's, more than {LARGEST:g}: use task=predict"
        )
    check = {"images": len(images), "of": source, "batches": BATCHES, "difference": difference, "allowed": LARGEST}
    written = {**meta, "ckpt": config.ckpt, "torch": torch.__version__, "check": check}
    run_dir = claim(run_dir, EXPORT)
    write_whole(run_dir / MODEL, file.getbuffer())
    write_whole(run_dir / EXPORT, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    print(f"{MODEL}: {meta['method']}, {file.getbuffer().nbytes / 2**20:.1f} MiB; input {meta['input']}")
    print(
        f"checked with {len(images)} images ({source}) in batches of {', '.join(map(str, BATCHES))}: differs from the "
        f"checkpoint by {difference:.1g} of the largest value at most"
    )
    print(f"written to {run_dir}")
    return written


def _script(model: AnomalyDetector | DefectClassifier, about: dict[str, Any]) -> torch.jit.ScriptModule:
    """
    Raises:
        LabError: the model does what cannot be traced.
    """
    size = about["image_size"]
    mean, std = (torch.tensor(about[name]).view(3, 1, 1) for name in ("mean", "std"))
    example = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    model.requires_grad_(False)  # a traced function takes them for constants

    def one(image: Tensor) -> Outputs | Tensor:
        found = _run(model, (image - mean) / std)
        return found if isinstance(model, AnomalyDetector) else found[0]

    try:
        localises = len(one(example)) > 1
        # Not the module: Lightning's properties cannot be traced without a trainer.
        traced = torch.jit.trace(one, example, check_trace=False)
        whole = _Detector(traced, size, localises) if isinstance(model, AnomalyDetector) else _Classifier(traced, size)
        # Frozen, what was made anew for each image on the CPU becomes a constant, which map_location moves.
        return torch.jit.freeze(torch.jit.script(whole.eval()))
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LabError(f"{about.get('method', 'this classifier')} cannot be exported: {reason}") from error


def _run(model: AnomalyDetector | DefectClassifier, images: Tensor) -> Outputs:
    """Of normalised images."""
    if isinstance(model, AnomalyDetector):
        scores = model(images)
        return (scores.image,) if scores.map is None else tuple(scores)
    return (model(images).float().softmax(1),)


def _difference(wanted: Outputs, exported: torch.jit.ScriptModule, images: Tensor, batch: int) -> float:
    """The largest, as a share of each output's largest value."""
    parts = [exported(part) for part in images.split(batch)]
    parts = [part if isinstance(part, tuple) else (part,) for part in parts]
    found = [torch.cat(each) for each in zip(*parts, strict=True) if each[0] is not None]
    shares = [float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in zip(wanted, found, strict=True)]
    return float(np.max(shares))  # NaN, if one is: max() may pass it over


def _pictures(ckpt: Path, size: int, white: int) -> tuple[np.ndarray, str]:
    """Images [N, S, S, 3] uint8 to check with, and what they are."""
    run = run_of(ckpt)
    rows = [row for row in run[1] if row["split"] == "test"] if run else []
    try:
        taken = [rows[i] for i in np.linspace(0, len(rows) - 1, CHECKED).astype(int)] if rows else []
        shown = [run[0] / row["path"] for row in taken] if run else []
        same = all(row.get("digest") in (None, digest) for row, digest in zip(taken, digests(shown), strict=True))
        if shown and same:
            return np.stack(
                list(each_image(shown, lambda path: read_picture(path, size, white)))
            ), "the run's test images"
    except LabError as error:
        log.info("checked without the run's images: %s", error)
    return np.random.default_rng(0).integers(0, 256, (CHECKED, size, size, 3), np.uint8), "noise, the run's not at hand"
