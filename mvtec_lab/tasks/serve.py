"""Run task=serve: answer images over HTTP with what a checkpoint says of them."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from mvtec_lab.checks import validate
from mvtec_lab.config import Config
from mvtec_lab.engine.listening import address_of, is_local, listen, require_server
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.origin import checkpoint_of
from mvtec_lab.engine.run import versions
from mvtec_lab.problems.model import load_model

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
    from mvtec_lab.serving.app import Service

    s = config.serve
    with listen(s.host, s.port, "serve") as listening:
        service = Service(model, about(model, ckpt), s, config.data.batch_size)
        address = address_of(s.host, listening.getsockname()[1])
        if not is_local(s.host):
            log.warning(
                f"serve.host={s.host}: whoever reaches {address} can ask for predictions, without a password and in "
                "the clear: let only the line's own machines reach it, or put a proxy with TLS before it"
            )
        print(f"{model.method} of {ckpt} answers at {address}/predict   (its page: {address}/docs; Ctrl-C ends it)")
        print(f"try it: curl --data-binary @IMAGE {address}/predict", flush=True)
        server.serve(service.app(), listening, s.timeout)
    counts = service.metrics.count("images")
    said = ", ".join(f"{number} {decision}" for decision, number in counts.items()) or "none"
    print(f"answered {sum(service.metrics.count('requests').values())} request(s); images: {said}")
    return counts


def about(model: Model, ckpt: str) -> dict[str, Any]:
    """Return what the service says of its model."""
    return {
        "checkpoint": ckpt,
        "sha256": hashlib.sha256(Path(ckpt).read_bytes()).hexdigest(),
        "method": model.method,
        "classes": model.classes,
        "image_size": model.image_size,
        "fit": model.fit,
        "tile": model.tile,
        "threshold": model.threshold,
        "accept": model.accept,
        "version": versions()["mvtec_lab"],
    }
