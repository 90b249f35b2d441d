"""A network as an ONNX or OpenVINO file: write it, run it, compare it with the network. Needs the extra ``onnx``."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mvtec_lab.engine.process import without_hints
from mvtec_lab.errors import LabError
from mvtec_lab.results import write_whole

FILES = {"onnx": "model.onnx", "openvino": "model.xml"}  # by format; beside model.xml lies model.bin
INPUT = "images"

Outputs = tuple[Tensor, ...]
Run = Callable[[Tensor], Outputs]  # images [N, 3, S, S], RGB in [0, 1], to outputs


class Normalised(nn.Module):
    """Normalise images, RGB in [0, 1], and run a network."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

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
        raise LabError(f'task=export needs {module} ({error}): pip install "mvtec_lab[{extra}]"') from error


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


def onnx_runner(file: bytes) -> Run:
    """Return a function that runs an ONNX file on the CPU with onnxruntime."""
    runtime = require("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of every mask beyond the one that was traced
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(map(torch.from_numpy, session.run(None, {INPUT: images.numpy()})))


def to_openvino(file: bytes, about: Mapping[str, Any]) -> Any:
    """Return an ONNX file as OpenVINO's model, with ``about`` in its ``model_info``.

    Raises:
        LabError: the extra is not installed.
    """
    openvino = require("openvino", "openvino")
    model = openvino.Core().read_model(model=file)
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


def _in_order_of(wanted: Outputs, outputs: Outputs) -> Outputs:
    """Return outputs with their rows in the order of the wanted ones that they are nearest to, one to one."""
    ours, theirs = (torch.cat([v.double().reshape(len(v), -1)[:, :4] for v in of], dim=1) for of in (wanted, outputs))
    if not theirs.isfinite().all():
        return outputs
    order = torch.from_numpy(linear_sum_assignment(torch.cdist(ours, theirs).numpy())[1])
    return tuple(values[order] for values in outputs)


def difference(wanted: Outputs, run: Run, images: Tensor, batch: int, ordered: bool = True) -> float:
    """Return the largest difference from the wanted outputs, as a share of each output's largest value; NaN if any is.

    Args:
        wanted: the network's outputs for all images.
        run: the file's outputs for some images.
        images: [N, 3, S, S], RGB in [0, 1].
        batch: how many images ``run`` gets at once.
        ordered: rows correspond in their order; False: each with the nearest, as boxes whose scores differ by less than
            rounding does may change places.
    """
    outputs = tuple(map(torch.cat, zip(*(run(part) for part in images.split(batch)), strict=True)))
    if any(a.shape != b.shape for a, b in zip(wanted, outputs, strict=True)):  # another number of boxes
        return float("inf")
    if not ordered:
        outputs = _in_order_of(wanted, outputs)
    pairs = [(a.double(), b.double()) for a, b in zip(wanted, outputs, strict=True) if a.numel()]
    shares = [float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs]
    return float(np.max(shares, initial=0.0))  # Python's max() may pass over NaN
