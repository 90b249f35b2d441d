"""A network as an ONNX or OpenVINO file: write it, run it, compare it with the network. Needs the extra ``onnx``."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mvtec_lab.engine.process import without_hints
from mvtec_lab.errors import LabError
from mvtec_lab.models.finite import require_finite
from mvtec_lab.results import write_whole

FILES = {"onnx": "model.onnx", "openvino": "model.xml"}  # by format; beside model.xml lies model.bin
INPUT = "images"
# Noise of normalised values that moves outputs about as far as rounding does: of a Mask R-CNN at 256 pixels 1e-6 moved
# corners by up to 6e-5 pixels, onnxruntime by 5e-5. What it moved across a cut crossed it in a third of the tries, two
# at once in a ninth: 32 tries miss that in 2 cases of 100.
NOISE, TRIES = 3e-6, 32

Outputs = tuple[Tensor, ...]
Run = Callable[[Tensor], Outputs]  # images [N, 3, S, S], RGB in [0, 1], to outputs
# Pictures uint8 [N, S, S, 3] to what a network gives of each, by name, without the axis of images.
Look = Callable[[np.ndarray], list[Mapping[str, Tensor]]]


class Normalised(nn.Module):
    """Normalise images, RGB in [0, 1], and run a network."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.eval()  # an exporter gives every part of it the mode back that it has itself

    def forward(self, images: Tensor) -> Outputs:
        return self.network((images - self.mean) / self.std)


def require(module: str, extra: str) -> Any:
    """Import an optional library.

    Raises:
        LabError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise LabError(f'an ONNX file needs {module} ({error}): pip install "mvtec_lab[{extra}]"') from error


@torch.no_grad()
def to_onnx(
    network: nn.Module, outputs: Sequence[str], size: int, about: Mapping[str, Any], what: str, single: bool = False
) -> bytes:
    """Return a network as an ONNX file for images of any number, or for one image.

    Args:
        network: images [N, 3, S, S], RGB in [0, 1], to a tuple of tensors [N, ...]; or, where ``single``, one image
            [1, 3, S, S] to tensors with a row for each thing that it shows, however many.
        outputs: names of these tensors.
        size: S, pixels.
        about: plain values for the file's metadata, as text or JSON.
        what: the network's name in error lines.

    Raises:
        LabError: the extra is not installed, or the network cannot be written as ONNX.
    """
    for library in ("onnx", "onnxscript", "onnxruntime"):
        require(library, "onnx")
    images = torch.rand(1 if single else 2, 3, size, size, generator=torch.Generator().manual_seed(0))
    loggers = ("onnxscript", "onnx_ir", "torch.onnx")
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), without_hints(*loggers):
            warnings.simplefilter("ignore")  # about PyTorch's own code
            if single:
                return _traced(network, images, outputs, about)
            program: Any = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim("N")},),
            )
            if isinstance(number := program.model.graph.inputs[0].shape[0], int):  # the exporter's last resort
                raise ValueError(f"the file would take {number} images at once, and no other number")
            program.model.metadata_props.update(_texts(about))
            return program.model_proto.SerializeToString()
    except Exception as error:  # the exporter fails in many ways
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise LabError(f"{what} cannot be written as ONNX ({reason}): use task=predict") from error


def _traced(network: nn.Module, image: Tensor, outputs: Sequence[str], about: Mapping[str, Any]) -> bytes:
    """Write by the exporter that traces: the other one cannot follow how many boxes are left (torch 2.14)."""
    onnx: Any = require("onnx", "onnx")
    file: Any = io.BytesIO()
    torch.onnx.export(
        network,
        (image,),
        file,
        dynamo=False,
        opset_version=17,  # from onnxruntime 1.12 on
        input_names=[INPUT],
        output_names=list(outputs),
        dynamic_axes={name: {0: "K"} for name in outputs},
    )
    model = onnx.load_model_from_string(file.getvalue())
    onnx.helper.set_model_props(model, _texts(about))
    return model.SerializeToString()


def _texts(about: Mapping[str, Any]) -> dict[str, str]:
    return {key: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for key, v in about.items()}


def onnx_runner(file: bytes, threads: int = 0) -> Run:
    """Return a function that runs an ONNX file on the CPU with onnxruntime.

    Args:
        threads: of an image; 0: a thread for each core.
    """
    runtime = require("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a service's other threads need the cores
    options.log_severity_level = 3  # errors: it warns of every mask beyond the one that was traced
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(map(torch.from_numpy, session.run(None, {INPUT: images.numpy()})))


def looking_by(run: Run, names: Sequence[str], rows: str) -> Look:
    """Return what runs a file on pictures, as ``problems.model.looking`` runs the checkpoint.

    Args:
        names: of its outputs.
        rows: what these have a row for: N images, the 1 that the file takes, or K things that this one shows.
    """

    def look(pictures: np.ndarray) -> list[Mapping[str, Tensor]]:
        images = torch.from_numpy(pictures).movedim(-1, 1).float() / 255
        outputs: list[Mapping[str, Tensor]] = []
        for part in images.split(len(images) if rows == "N" else 1):
            named = dict(zip(names, run(part), strict=True))
            for name, values in named.items():
                require_finite(values, f"the {name}")
            outputs += [named] if rows == "K" else [{n: v[i] for n, v in named.items()} for i in range(len(part))]
        return outputs

    return look


def to_openvino(file: bytes, about: Mapping[str, Any], what: str) -> Any:
    """Return an ONNX file as OpenVINO's model, with ``about`` in its ``model_info``.

    Args:
        what: the network's name in error lines.

    Raises:
        LabError: the extra is not installed, or OpenVINO cannot read the file: it has no loop over masks, for one.
    """
    openvino = require("openvino", "openvino")
    try:
        model = openvino.Core().read_model(model=file)
    except Exception as error:  # RuntimeErrors of many lines
        failed = re.search(r"onversion is failed for: (.*)", str(error))
        reason = f"it has no {failed[1]}" if failed else " ".join(str(error).split())[:200]
        raise LabError(f"{what} cannot be read by OpenVINO ({reason}): give format=onnx") from error
    for key, text in _texts(about).items():
        model.set_rt_info(text, ["model_info", key])
    return model


def openvino_runner(model: Any) -> Run:
    """Return a function that runs OpenVINO's model on the CPU in float32."""
    openvino = require("openvino", "openvino")
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: tuple(torch.from_numpy(values) for values in compiled(images.numpy()).values())


def write(model: bytes | Any, path: Path) -> None:
    """Write an ONNX file, or OpenVINO's model as ``.xml`` and ``.bin``."""
    if isinstance(model, bytes):
        write_whole(path, model)
    else:
        require("openvino", "openvino").save_model(model, path, compress_to_fp16=False)


class Difference(NamedTuple):
    """Hold where a file is least like its network: by which share of the largest value of which output, of which image.

    The share is infinite where the file gives another number of rows, NaN where it gives one. ``rows``: how many rows
    the file and the network give of this image. ``at_cuts``: the images in which rounding moves a value of the
    network's own across a cut.
    """

    share: float
    output: int
    image: int
    rows: tuple[int, int]
    at_cuts: list[int]


@torch.no_grad()
def difference(
    network: Run, seen: Tensor, run: Run, images: Tensor, batches: Sequence[int], allowed: float, single: bool = False
) -> Difference:
    """Return the largest difference of a file's outputs from its network's.

    Rounding of the last digit may move a box across a cut: its corner to the next whole pixel, at which its mask is
    drawn, or its score below another's, which then is the one that is kept. Where an image differs by more than
    ``allowed``, the file therefore has to give all that the network gives of that image with one noise of this size.

    Args:
        network: normalised images to outputs.
        seen: images as the network takes them, [N, 3, S, S].
        run: the file's outputs for images.
        images: the same as the file takes them, RGB in [0, 1].
        batches: how many images ``run`` gets at once, each in turn.
        allowed: the largest share that is as good as none.
        single: a file of one image, whose outputs have a row for each thing that it shows, in any order.

    Raises:
        LabError: the network gives NaN or infinity.
    """
    wanted = _of_each(network, seen, 1 if single else len(seen), single)
    for values in zip(*wanted, strict=True):
        require_finite(torch.cat(values), "scores, maps or probabilities")
    tops = [max(float(v.abs().max()) if v.numel() else 0.0 for v in values) for values in zip(*wanted, strict=True)]
    tops = [max(top, 1e-30) for top in tops]
    looks = []
    for batch in batches:
        for image, given in enumerate(_of_each(run, images, batch, single)):
            looks.append((_apart(given, wanted[image], tops), image, given))
    # The worst first, NaN as the worst of all: one that cannot be explained ends the search.
    looks.sort(key=lambda look: -float(look[0].max().nan_to_num(nan=float("inf"))))
    at_cuts: list[int] = []
    worst = Difference(0.0, 0, 0, (0, 0), at_cuts)
    for shares, image, given in looks:
        if not float(shares.max()) <= allowed:
            shares = _with_noise(network, seen[image : image + 1], given, shares, tops, allowed)
            if float(shares.max()) <= allowed and image not in at_cuts:
                at_cuts.append(image)
        if not float(shares.max()) < worst.share:
            rows = len(given[0]), len(wanted[image][0])
            worst = Difference(float(shares.max()), int(shares.argmax()), image, rows, at_cuts)
            if not worst.share <= allowed:
                break
    at_cuts.sort()
    return worst


def _of_each(network: Run, images: Tensor, batch: int, single: bool) -> list[Outputs]:
    """Return a network's outputs for each image, with a row for it, or for each thing that it shows."""
    parts = [network(part) for part in images.split(batch)]
    return (
        parts if single else [tuple(rows) for part in parts for rows in zip(*(v.split(1) for v in part), strict=True)]
    )


def _with_noise(
    network: Run, image: Tensor, given: Outputs, shares: Tensor, tops: Sequence[float], allowed: float
) -> Tensor:
    """Return the least shares, as of ``_apart``, of what is given and what a network gives of an image with noise."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(TRIES):
        (noisy,) = _of_each(network, image + NOISE * torch.randn(image.shape, generator=generator), 1, True)
        shares = min(shares, _apart(given, noisy, tops), key=lambda of: float(of.max()))
        if float(shares.max()) <= allowed:
            break
    return shares


def _apart(given: Outputs, wanted: Outputs, tops: Sequence[float]) -> Tensor:
    """Return by how much rows differ from wanted ones, one to one, as shares of each output's largest value.

    Each row is compared with the one that is nearest where all are taken together.

    Returns:
        [outputs], float64; infinite where the numbers or the shapes of rows differ, NaN where a value is.
    """
    if [v.shape for v in given] != [v.shape for v in wanted]:
        return torch.full((len(tops),), float("inf"), dtype=torch.float64)
    if not len(given[0]):
        return torch.zeros(len(tops), dtype=torch.float64)
    ours, theirs = (
        [v.double().reshape(len(v), -1) / top for v, top in zip(of, tops, strict=True)] for of in (given, wanted)
    )
    first, second = (torch.cat([v[:, :4] for v in of], dim=1) for of in (ours, theirs))
    far = torch.cdist(first, second, p=float("inf")).nan_to_num(nan=1e30, posinf=1e30)
    _, order = linear_sum_assignment(far.numpy())
    return torch.stack([(a - b[order]).abs().max() for a, b in zip(ours, theirs, strict=True)])
