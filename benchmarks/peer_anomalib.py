"""Measure anomalib's side of ``anomaly.py``: PatchCore or PaDiM as its users run it, by Engine, model and data module.

    PYTHON peer_anomalib.py JOB.json

It runs in an environment of its own, which has anomalib and neither needs nor imports the lab. The job's keys are the
arguments of ``run``, whose result is written to ``out`` with .json in place of .npz.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any


def run(
    method: str,
    root: str,
    category: str,
    backbone: str,
    weights: str | None,
    layers: list[str],
    size: int,
    coreset: float,
    dimensions: int,
    batch_size: int,
    fit_workers: int,
    score_workers: int,
    seed: int,
    out: str,
) -> dict[str, Any]:
    """Fit on train/good and score test/; raw scores and maps go to ``out``, .npz.

    Engine writes a checkpoint at the end of a fit: it is timed by itself and not counted in the fit.
    """
    import numpy as np
    import torch
    import torchvision
    from anomalib import __version__
    from anomalib.data import MVTecAD
    from anomalib.engine import Engine
    from anomalib.metrics import AUPRO
    from anomalib.models import Padim, Patchcore
    from lightning.pytorch import Trainer

    saving, save = 0.0, Trainer.save_checkpoint

    def save_timed(*args: Any, **kwargs: Any) -> None:
        nonlocal saving
        began = time.perf_counter()
        save(*args, **kwargs)
        saving += time.perf_counter() - began

    Trainer.save_checkpoint = save_timed
    torch.manual_seed(seed)
    network = torchvision.models.get_model(backbone, weights=weights)
    chosen: dict[str, Any] = {
        "backbone": network,
        "layers": layers,
        "pre_trained": False,
    }  # the network has them
    # Everything beside the method itself is left out: scores scaled to [0, 1], metrics, pictures.
    chosen |= {"post_processor": False, "evaluator": False, "visualizer": False}
    if method == "patchcore":
        chosen["pre_processor"] = Patchcore.configure_pre_processor((size, size))
        model = Patchcore(coreset_sampling_ratio=coreset, **chosen)
    else:
        chosen["pre_processor"] = Padim.configure_pre_processor((size, size))
        model = Padim(n_features=dimensions, **chosen)
    with tempfile.TemporaryDirectory() as folder:
        data = MVTecAD(
            root,
            category,
            train_batch_size=batch_size,
            eval_batch_size=batch_size,
            num_workers=fit_workers,
            val_split_mode="none",
        )
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        engine = Engine(default_root_dir=folder, accelerator="cpu", limit_val_batches=0, **quiet)
        began = time.perf_counter()
        engine.fit(model=model, datamodule=data)
        fitted = time.perf_counter()
        data.num_workers = score_workers
        batches = engine.predict(model=model, datamodule=data) or []
        scored = time.perf_counter()
    paths = [Path(path).relative_to(Path(root) / category).as_posix() for batch in batches for path in batch.image_path]
    np.savez(
        out,
        paths=paths,
        scores=torch.cat([batch.pred_score.flatten() for batch in batches]).numpy(),
        maps=torch.cat([batch.anomaly_map.flatten(0, -3) for batch in batches]).numpy(),
    )
    peak = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    # Its AUROC of raw scores is wrong: torchmetrics takes values above 1 for logits and rounds their sigmoids to 1.
    own = AUPRO(fields=("anomaly_map", "gt_mask"))
    for batch in batches:
        own.update(batch)
    return {
        "version": __version__,
        "trained": len(data.train_data),
        "fit": fitted - began - saving,
        "saving": saving,
        "image": (scored - fitted) / len(paths),
        "peak": int(peak[1]) / 1024 if peak else float("nan"),
        "own_aupro": float(own.compute()),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(job["out"]).with_suffix(".json").write_text(json.dumps(run(**job)), encoding="utf-8")
