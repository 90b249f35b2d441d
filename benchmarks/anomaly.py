"""Compare PatchCore and PaDiM with anomalib's: same network, layers, images and machine, judged by the same metrics."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common

BACKBONE, LAYERS = "mobilenet_v2", ["features.6", "features.13"]
SETTINGS = {"layers": LAYERS, "size": 224, "coreset": 0.01, "dimensions": 100, "batch_size": 32}
PEER = Path(__file__).with_name("peer_anomalib.py")
METRICS = ("image_auroc", "pixel_auroc", "pixel_aupro")
TARGETS = {"patchcore": 5, "padim": 2}  # how many times faster than anomalib's the fit should be
WITHIN = (0.002, 0.002, 0.005)  # how near to anomalib's the METRICS should be
INSTALL = 'python -m venv PEER && PEER/bin/pip install "anomalib[cpu]==2.7.0"'


def product(data: list[str]) -> str:
    """Return the folder of the images, all of them decoded once: no side is the first to read them."""
    from mvtec_lab import compose
    from mvtec_lab.problems.model import build_data

    built = build_data(compose("attempt=patchcore", *data, "cache.dir=null"))
    built.setup()
    return str(built.folder.resolve())


def run_lab(
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
    seed: int,
    out: str,
) -> dict[str, Any]:
    """Fit on train/good and score test/, as ``peer_anomalib.run``; raw scores and maps go to ``out``, .npz."""
    import numpy as np
    import torch

    from mvtec_lab.data.dataset import MVTecDataset
    from mvtec_lab.data.layouts.mvtec import scan
    from mvtec_lab.problems.anomaly.models import build_anomaly_model
    from mvtec_lab.problems.anomaly.scores import score

    torch.manual_seed(seed)
    folder = Path(root) / category
    own = {"coreset": coreset} if method == "patchcore" else {"dimensions": dimensions}
    settings = {"backbone": backbone, "weights": weights, "image_size": size}
    model = build_anomaly_model(method, **settings, layers=layers, **own).eval()

    def images(split: str) -> MVTecDataset:
        samples = [s for s in scan(folder).samples if s.path.startswith(split)]
        return MVTecDataset(folder, samples, image_size=size, mean=model.mean, std=model.std)

    def fit() -> int:
        good = images("train/good/")
        places = [list(range(len(good)))[start : start + batch_size] for start in range(0, len(good), batch_size)]
        with torch.no_grad():
            model.prepare(lambda: (good[batch]["image"] for batch in places))
        return len(good)

    fitting, trained = common.timed(fit)
    test = images("test/")
    scoring, (scores, maps) = common.timed(score, model, test, batch_size, torch.device("cpu"))
    np.savez(out, paths=[s.path for s in test.samples], scores=scores, maps=maps)
    return {"trained": trained, "fit": fitting, "image": scoring / len(test)}


def run_peer(python: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run the same job by anomalib, in the interpreter that has it."""
    job_file = Path(job["out"]).with_name("job.json")
    job_file.write_text(json.dumps(job), encoding="utf-8")
    run = subprocess.run([python, str(PEER), str(job_file)], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{python} {PEER.name} ended with {run.returncode}: {run.stderr}")
    measured: dict[str, Any] = json.loads(Path(job["out"]).with_suffix(".json").read_text(encoding="utf-8"))
    return measured


def faster_workers(python: str, job: dict[str, Any]) -> dict[str, int]:
    """Return anomalib's numbers of loader workers that are faster here: 0 or 2, for the fit and for the scores.

    Each number runs twice, and its better run counts.
    """
    trials = [(n, run_peer(python, {**job, "fit_workers": n, "score_workers": n})) for n in (0, 2, 2, 0)]
    steps = {"fit_workers": "fit", "score_workers": "image"}
    return {name: min(trials, key=lambda trial: trial[1][step])[0] for name, step in steps.items()}


def judge(folder: str, out: str) -> dict[str, float]:
    """Return the METRICS of raw scores and maps, at the masks' size."""
    import numpy as np

    from mvtec_lab.data.images import image_size, read_mask
    from mvtec_lab.data.layouts.mvtec import scan
    from mvtec_lab.evaluation.anomaly import PixelScores, image_metrics

    samples = {s.path: s for s in scan(Path(folder)).samples}
    with np.load(out) as file:
        maps, scores, tested = file["maps"], file["scores"], [samples[path] for path in file["paths"]]
    pixels = PixelScores(maps)
    for sample, heat in zip(tested, maps, strict=True):
        width, height, _ = image_size(Path(folder) / sample.path)
        mask = read_mask(Path(folder) / sample.mask) if sample.mask else None
        pixels.add(sample.path, heat, mask, sample.label, (height, width))
    metrics = image_metrics(scores, [s.label for s in tested]) | pixels.metrics()
    return {name: metrics[name] for name in METRICS} | {"tested": len(tested)}


def main() -> None:
    args = common.options(__doc__)
    data = common.data_overrides(args.data_root)
    folder = common.fresh(product, data).value
    weights = common.model(BACKBONE)[0]
    job: dict[str, Any] = {"root": str(Path(folder).parent), "category": Path(folder).name}
    job |= {"backbone": BACKBONE, "weights": weights, **SETTINGS}
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        out, workers = f"{scratch}/scores.npz", dict[str, int]()
        if args.peer:
            workers = faster_workers(args.peer, {**job, "method": "padim", "seed": 0, "out": out})
        else:
            print(f"anomalib is left out; to have it beside ours:\n    {INSTALL}", file=sys.stderr)
            print("    python -m benchmarks.anomaly --peer PEER/bin/python", file=sys.stderr)
        for seed in range(args.repeats):  # the sides take turns; each repeat of PaDiM draws other channels
            for method in TARGETS:
                ours = {**job, "method": method, "seed": seed, "out": out}
                if args.peer:
                    peer = run_peer(args.peer, {**ours, **workers})
                    runs[method, "anomalib"].append(peer | common.fresh(judge, folder, out).value)
                measured = common.fresh(run_lab, **ours)
                lab = {**measured.value, "peak": measured.resident}
                runs[method, "lab"].append(lab | common.fresh(judge, folder, out).value)
    first = runs["patchcore", "lab"][0]
    if len({(run["trained"], run["tested"]) for repeats in runs.values() for run in repeats}) > 1:
        raise RuntimeError("the two sides did not have the same images")
    notes = [
        f"{data[-1]}: fitted on all {first['trained']} images of train/good, tested on all {first['tested']} of test; "
        f"{BACKBONE} {weights or 'random'}, {' and '.join(LAYERS)}, {SETTINGS['size']} pixels; "
        f"PatchCore keeps {SETTINGS['coreset']:.0%}, PaDiM {SETTINGS['dimensions']} channels, others in each repeat",
        "fit: from the image files, none of them cached, to the fitted model; ms per image: from its file to raw score "
        "and map; models are built before",
        "peak: resident memory of the process that fits and scores, imports included (VmHWM)",
        "metrics: the lab's, of both sides' raw scores and maps",
        f"medians of {args.repeats} repeats",
    ]
    if args.peer:
        peer = runs["patchcore", "anomalib"][0]
        saved = (f"{median(r['saving'] for r in runs[method, 'anomalib']):.2g} s ({method})" for method in TARGETS)
        notes[3:3] = [
            f"anomalib {peer['version']} by Engine, Patchcore or Padim, and MVTecAD, without validation, "
            f"post-processor and metrics; the fit without Engine's checkpoint, {' and '.join(saved)}",
            f"anomalib's loader workers: {workers['fit_workers']} for the fit and {workers['score_workers']} for the "
            "scores, each the faster of 0 and 2 in two runs of PaDiM here; their memory is not counted",
        ]
        own = (f"{method} {runs[method, 'anomalib'][0]['own_aupro']:.3f}" for method in TARGETS)
        notes.insert(6, f"AUPRO by anomalib's own metric, at its maps' size, first repeat: {', '.join(own)}")
    header = ["method", "side", "image AUROC", "pixel AUROC", "AUPRO", "fit, s", "anomalib / it", "ms per image"]
    common.show("anomaly", notes, [*header, "anomalib / it", "peak MiB"], rows(runs))


def rows(runs: dict[tuple[str, str], list[dict[str, Any]]]) -> list[list[str | float]]:
    """Return the table's rows: medians of the repeats, with our targets if anomalib ran."""
    middle = {k: {n: median(run[n] for run in v) for n in (*METRICS, "fit", "image", "peak")} for k, v in runs.items()}
    table: list[list[str | float]] = []
    for (method, side), it in middle.items():
        peer, ours = middle.get((method, "anomalib")), side == "lab"
        cells = [f"{it[n]:.3f}" for n in METRICS]
        fit = image = ""
        peak: str | float = it["peak"]
        if peer:
            fit, image = f"{peer['fit'] / it['fit']:.2f}", f"{peer['image'] / it['image']:.2f}"
        if peer and ours:
            cells = [f"{c} (target {peer[n]:.3f} ± {near})" for c, n, near in zip(cells, METRICS, WITHIN, strict=True)]
            fit += f" (target {TARGETS[method]})"
            peak = f"{it['peak']:,.0f} (target below {peer['peak']:,.0f})"
        table.append([method, side, *cells, it["fit"], fit, it["image"] * 1e3, image, peak])
    return table


if __name__ == "__main__":
    main()
