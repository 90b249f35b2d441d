"""An ONNX file whose convolutions compute in 8-bit integers. Needs the extra ``onnx``."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvtec_lab.engine.onnx import INPUT, require
from mvtec_lab.errors import LabError

CALIBRATED = 64  # training images: the ranges of activations hardly change beyond
TIMED = 20  # images, each alone, as on a line; their median counts


class _Reader:
    """Hand images to the calibration, one after another."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.images: Iterator[np.ndarray] = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {INPUT: image}


def to_int8(file: bytes, images: Sequence[np.ndarray], what: str) -> bytes:
    """Return an ONNX file with its convolutions in integers: weights by channel, activations by the range they have.

    What else it computes stays in 32 bits: the distances of an anomaly model to its memory, whose differences are
    smaller than an 8-bit step, would be lost.

    Args:
        images: as the file takes them, [1, 3, S, S] each, that the ranges are measured on.
        what: the network's name in error lines.

    Raises:
        LabError: the extra is not installed, the file has no convolution, or onnxruntime cannot quantise it.
    """
    onnx: Any = require("onnx", "onnx")
    quantization: Any = require("onnxruntime.quantization", "onnx")
    model = onnx.load_model_from_string(file)
    if not any(node.op_type == "Conv" for node in model.graph.node):
        raise LabError(f"{what} has no convolution to compute in 8 bits: leave out format=int8")
    reader = type("Reader", (_Reader, quantization.CalibrationDataReader), {})(images)
    before = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)  # of an optimisation that changes no convolution
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            quantization.quantize_static(
                model,
                path,
                reader,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
            return path.read_bytes()
    except Exception as error:  # it fails in many ways
        reason = " ".join(str(error).split())[:200]
        raise LabError(f"{what} cannot be quantised ({reason}): leave out format=int8") from error
    finally:
        logging.disable(before)


def milliseconds(file: Path, images: Sequence[np.ndarray]) -> float:
    """Return the median time that onnxruntime takes on this machine's processor for an image alone, on one thread."""
    runtime: Any = require("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session, times = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]), []
    session.run(None, {INPUT: images[0]})  # which allocates
    for image in images[:TIMED]:
        began = time.perf_counter()
        session.run(None, {INPUT: image})
        times.append(time.perf_counter() - began)
    return float(1000 * np.median(times))
