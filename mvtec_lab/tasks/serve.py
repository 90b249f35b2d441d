"""Run task=serve: answer images over HTTP with what a checkpoint says of them."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch

from mvtec_lab.checks import validate
from mvtec_lab.config import Config
from mvtec_lab.engine.listening import address_of, is_local, listen, require_server
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.onnx import Look, looking_by, onnx_runner
from mvtec_lab.engine.origin import checkpoint_of
from mvtec_lab.engine.run import versions
from mvtec_lab.errors import LabError
from mvtec_lab.problems.model import load_model
from mvtec_lab.reporting.expected import attempt_of
from mvtec_lab.tasks.export import OnnxFile

log = logging.getLogger(__name__)


def serve(config: Config, run_dir: str | Path) -> dict[str, int]:
    """Answer requests by ``config.ckpt`` until the command is stopped; return how many images had which decision.

    Raises:
        LabError: there is no checkpoint, a library is missing, or the address cannot be used.
    """
    validate(config)
    require_server(config.task, "fastapi", "prometheus_client", "python_multipart")
    ckpt = checkpoint_of(config)
    model = load_model(ckpt)
    from mvtec_lab.serving import server
    from mvtec_lab.serving.app import Runtime, Service

    s = config.serve
    with listen(s.host, s.port, "serve") as listening:
        runtime = Runtime(*run_by(ckpt, model))
        service = Service(model, about(model, ckpt), s, config.data.batch_size, runtime)
        address = address_of(s.host, listening.getsockname()[1])
        if not is_local(s.host):
            log.warning(
                f"serve.host={s.host}: whoever reaches {address} can ask for predictions, without a password and in "
                "the clear: let only the line's own machines reach it, or put a proxy with TLS before it"
            )
        by = runtime.said["runtime"]
        page = f"run by {by}; its page: {address}/docs; Ctrl-C ends it"
        print(f"{service.about['attempt'] or model.method} of {ckpt} answers at {address}/predict   ({page})")
        print(f"try it: curl --data-binary @IMAGE {address}/predict", flush=True)
        server.serve(service.app(), listening, s.timeout)
    counts = service.metrics.count("images")
    said = ", ".join(f"{number} {decision}" for decision, number in counts.items()) or "none"
    print(f"answered {sum(service.metrics.count('requests').values())} request(s); images: {said}")
    return counts


def run_by(ckpt: str, model: Model) -> tuple[Look | None, dict[str, str]]:
    """Return what runs a model's network, and what ``/healthz`` says of it.

    It is ONNX Runtime, which takes about half of PyTorch's time on a CPU, on the file that task=export would write,
    after the same check; PyTorch, and a warning, where there is no such file.
    """
    try:
        file = OnnxFile(ckpt, model)
        runner = onnx_runner(file.content, torch.get_num_threads())  # as many as the command line has chosen
        file.check(runner, "PyTorch runs it")
    except LabError as error:
        log.warning(f"PyTorch runs the network, in up to twice the time of ONNX Runtime: {error}")
        return None, {"runtime": "pytorch", "why": str(error)}
    return looking_by(runner, file.names, file.rows), {"runtime": "onnxruntime"}


def about(model: Model, ckpt: str) -> dict[str, Any]:
    """Return what the service says of its model."""
    return {
        "checkpoint": ckpt,
        "sha256": hashlib.sha256(Path(ckpt).read_bytes()).hexdigest(),
        "attempt": attempt_of(Path(ckpt)),
        "method": model.method,
        "classes": model.classes,
        "image_size": model.image_size,
        "fit": model.fit,
        "tile": model.tile,
        "threshold": model.threshold,
        "accept": model.accept,
        "version": versions()["mvtec_lab"],
    }
