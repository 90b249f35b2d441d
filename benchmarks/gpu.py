"""A GPU's figures: images per second beside a plain loop and the limit, torch.compile, methods, four runs.

    python -m benchmarks.gpu --data-root DIR                  # all of it; needs a GPU
    python -m benchmarks.gpu --data-root DIR throughput       # a part: throughput, steps, anomaly, where or grid

Throughput is that of generated images; no weights are fetched for it, as speed does not depend on them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common, growth, limit, speed

RUNS = (  # backbone, attempt, and batch size: the lab's default, and one that fills a GPU
    ("resnet50", "full", 32),
    ("resnet50", "full", 128),
    ("resnet50", "finetune", 32),
    ("vit_b_16", "full", 32),
    ("vit_b_16", "finetune", 32),
)
GOALS = {False: 0.9, True: 0.6}  # of the limit, without augmentation and with it
WORKERS = 8  # of the plain loop; as many as the lab's
GENERATED = {"throughput", "steps"}  # parts that need generated images
ANOMALY = ("padim", "patchcore", "stfpm")
SIZES = (224, 448)
WHERE = {  # attempts that learn masks or boxes, and the metric shown of each
    "segment/fpn": "iou",
    "segment/deeplab": "iou",
    "segment/sam": "iou",
    "detect/fcos": "map50",
    "detect/fasterrcnn": "map50",
    "detect/maskrcnn": "map50",
}


def settings(folder: str, backbone: str, attempt: str, batch: int, epochs: int) -> list[str]:
    """Return the overrides of a run on generated images, of which four fifths train."""
    data = ["data=folder", f"data.root={folder}/images", "data.image_size=224", f"data.batch_size={batch}"]
    data += ["split.val=0.1", "split.test=0.1", f"cache.dir={folder}/cache"]
    return [
        *data,
        f"model.backbone={backbone}",
        "model.weights=null",
        f"attempt={attempt}",
        f"trainer.max_epochs={epochs}",
    ]


def rate(images: int, seconds: list[float]) -> float:
    """Return images per second of the median epoch without the first."""
    return images / common.later(seconds)


def bare(overrides: list[str], epochs: int) -> list[float]:
    """Return the seconds of epochs of the trained stages alone, in bfloat16: their input lies on the GPU.

    Nothing is measured, logged or drawn, and PyTorch may choose kernels that do not repeat exactly.
    """
    import torch
    import torch.nn.functional as F

    from mvtec_lab import compose
    from mvtec_lab.problems.model import build_data, build_model

    config = compose(*overrides)
    data = build_data(config)
    data.setup()
    classifier = build_model(config, data)[0].module.cuda().train()
    mixed = torch.autocast("cuda", torch.bfloat16)
    with torch.no_grad(), mixed:
        batches = [
            (classifier.model.extract(batch["image"].cuda()), batch["label"].cuda())
            for batch in data.train_dataloader()
        ]
    optimizer = torch.optim.Adam(
        [p for p in classifier.parameters() if p.requires_grad], lr=config.optimizer.lr, fused=True
    )

    def epoch() -> None:
        for features, labels in batches:
            optimizer.zero_grad()
            with mixed:
                loss = F.cross_entropy(classifier.logits({"features": features}), labels, classifier.criterion.weights)
            loss.backward()
            optimizer.step()
        torch.cuda.synchronize()

    return [common.timed(epoch)[0] for _ in range(epochs)]


def throughput(folder: str, epochs: int, images: int, **_: Any) -> None:
    """Measure RUNS: images per second of the lab, the loop and the limit."""
    common.fresh(rates, folder, epochs, images)


def rates(folder: str, epochs: int, generated: int) -> None:
    from benchmarks import plain

    notes = [
        f"{generated} generated images at 224 pixels, four fifths of which train; random weights, bf16; the median of "
        f"{epochs} epochs without the first",
        "lab: a real run, from an epoch's start to the end of its last training batch; images decoded and kept",
        f"plain loop: decodes in each epoch, {WORKERS} loader workers, the same autocast and memory layout",
        "limit: steps of the trained stages, forward, backward and Adam's, their input on the GPU",
    ]
    header = ["backbone", "attempt", "batch", "augmentation", "lab, images/s", "plain loop", "limit"]
    header += ["lab / plain loop", "lab / limit"]
    described = speed.prepare(settings(folder, *RUNS[0], epochs))
    images = len(described["splits"]["train"])
    rows: list[list[str | float]] = []
    for backbone, attempt, batch in RUNS:
        ours = settings(folder, backbone, attempt, batch, epochs)
        most = rate(images, bare(ours, epochs))
        for augmented in (False, True):
            with tempfile.TemporaryDirectory() as run_dir:
                more = ["augment=standard"] if augmented else []
                lab = rate(images, limit.training_epochs([*ours, *more], run_dir))
            about = {"backbone": backbone, "epochs": epochs, "workers": WORKERS, "batch_size": batch}
            loop = plain.train(attempt, **described | about, augmented=augmented, device="cuda")
            theirs = rate(images, loop["training"])
            cells = [lab, theirs, most, f"{lab / theirs:.2f}", f"{lab / most:.2f} (target {GOALS[augmented]})"]
            rows.append([backbone, attempt, batch, "standard" if augmented else "none", *cells])
            common.show("gpu_throughput", notes, header, rows)  # now: a machine may be lent for minutes


def compiled(folder: str, epochs: int) -> list[list[Any]]:
    """Return rows with torch.compile off and on: the first epoch's seconds, and a later one's."""
    rows = []
    for compile_ in (False, True):
        ours = settings(folder, *RUNS[0], epochs)
        with tempfile.TemporaryDirectory() as run_dir:
            seconds = limit.training_epochs([*ours, f"trainer.compile={str(compile_).lower()}"], run_dir)
        rows.append(["on" if compile_ else "off", seconds[0], common.later(seconds)])
    return rows


# Lightning's names of what it profiles, and what they are here.
PARTS = {
    "[_TrainingEpochLoop].train_dataloader_next": "next batch",
    "[Strategy]SingleDeviceStrategy.batch_to_device": "batch to the GPU",
    "[Strategy]SingleDeviceStrategy.training_step": "forward and loss",
    "[Strategy]SingleDeviceStrategy.backward": "backward",
    "[LightningModule]DefectClassifier.optimizer_step": "forward to optimizer",
    "run_training_epoch": "all of an epoch, validation included",
}


def profiled(folder: str, epochs: int) -> list[list[Any]]:
    """Return rows of where an epoch's time goes: milliseconds of a step, with and without waiting for the GPU."""
    from pytorch_lightning.profilers import SimpleProfiler

    profiler = SimpleProfiler()
    ours = settings(folder, *RUNS[0], epochs)
    with tempfile.TemporaryDirectory() as run_dir:
        seconds = limit.training_epochs(ours, run_dir, profiler)
    recorded = {name: values for name, values in profiler.recorded_durations.items() if len(values) >= epochs}
    rows: list[list[Any]] = [["an epoch's training", 1, common.later(seconds) * 1e3]]
    for name, title in PARTS.items():
        if values := recorded.get(name):
            rows.append([title, len(values), median(values) * 1e3])
    hooks = {name: values for name, values in recorded.items() if name.startswith("[Callback]") and "Timer" not in name}
    for name, values in sorted(hooks.items(), key=lambda item: -sum(item[1]))[:4]:
        rows.append([name.removeprefix("[Callback]"), len(values), median(values) * 1e3])
    return rows


def steps(folder: str, epochs: int, **_: Any) -> None:
    note = "resnet50, full, batch 32, bf16, no augmentation"
    header = ["torch.compile", "first epoch, s", "a later one, s"]
    common.show("gpu_compile", [note], header, common.fresh(compiled, folder, epochs).value)
    notes = [note, "by Lightning's SimpleProfiler: the CPU's time, of which some is spent waiting for the GPU"]
    common.show("gpu_parts", notes, ["part", "times", "median, ms"], common.fresh(profiled, folder, epochs).value)


def method(attempt: str, data: list[str], accelerator: str, folder: str) -> tuple[list[float], dict[str, Any]]:
    """Return the fit's seconds, milliseconds per image and peak MiB of a run in a new folder, and its test metrics.

    Args:
        data: overrides of the data, and whatever else the attempt needs.
    """
    from mvtec_lab import compose, run_attempt

    weights = common.weights_at_hand("mobilenet_v2")
    ours = [*data, f"attempt={attempt}", f"trainer.accelerator={accelerator}", f"cache.dir={folder}/cache"]
    if not any(override.startswith("model.sam_weights=") for override in data):  # which has a network of its own
        ours += ["model.backbone=mobilenet_v2", f"model.weights={weights or 'null'}"]
    result = run_attempt(compose(*ours), tempfile.mkdtemp(dir=folder))
    cells = [result.fit_seconds or 0, (result.seconds_per_image or 0) * 1e3, result.peak_mib or 0]
    return cells, result.metrics["test"]


def method_notes(data: list[str]) -> list[str]:
    weights = common.weights_at_hand("mobilenet_v2") or "random"
    return [
        f"{data[-1]}; mobilenet_v2 {weights}; layers and epochs of the attempts",
        "peak: GPU memory that PyTorch held at once, or the CPU's resident memory; a run before them warms up",
    ]


def one_class(data: list[str], accelerator: str, rows: list[list[Any]]) -> list[list[Any]]:
    """Return and show rows of one-class runs, fitted and scored on a device, behind those of another."""
    header = ["method", "pixels", "device", "fit, s", "ms per image", "peak MiB", "image AUROC", "pixel AUROC"]
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            for number, name in enumerate((ANOMALY[0], *ANOMALY)):
                cells, metrics = method(name, [*data, f"data.image_size={size}"], accelerator, folder)
                if number:
                    rows.append([name, size, accelerator, *cells, metrics["image_auroc"], metrics["pixel_auroc"]])
                    common.show("gpu_anomaly", method_notes(data), header, rows)
    return rows


def anomaly(data: list[str], **_: Any) -> None:
    rows: list[list[Any]] = []
    for accelerator in ("gpu", "cpu"):
        rows = common.fresh(one_class, data, accelerator, rows).value


def located(data: list[str], sam_weights: str | None) -> None:
    """Show rows of attempts that learn where a defect is, on the first of five folds."""
    header = ["attempt", "fit, s", "ms per image", "peak MiB", "metric", "value"]
    rows: list[list[str | float]] = []
    fold = ["split.protocol=kfold", "split.folds=5", "split.fold=0"]
    attempts = [name for name in WHERE if sam_weights or name != "segment/sam"]
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate((attempts[0], *attempts)):
            more = [f"model.sam_weights={sam_weights}"] if name == "segment/sam" else []
            cells, metrics = method(name, [*data, *fold, *more], "gpu", folder)
            if number:
                rows.append([name, *cells, WHERE[name], metrics[WHERE[name]]])
                notes = [*method_notes(data), "the test images of the first of five folds, one seed"]
                common.show("gpu_where", notes, header, rows)


def where(data: list[str], sam_weights: str | None, **_: Any) -> None:
    common.fresh(located, data, sam_weights)


def sweep(data: list[str], folder: str, *more: str) -> float:
    """Return the seconds of the README's four attempts by the command line, the process's start included."""
    command = [sys.executable, "-m", "mvtec_lab", "-m", f"attempt={','.join(speed.GRID)}", *data]
    command += ["model.weights=null", "trainer.max_epochs=30", f"cache.dir={folder}/cache"]
    command += [f"hydra.sweep.dir={folder}/sweep", *more]
    seconds, run = common.timed(subprocess.run, command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"the sweep ended with {run.returncode}: {run.stderr}")
    return seconds


def grid(data: list[str], **_: Any) -> None:
    notes = [
        f"{data[-1]}: {', '.join(speed.GRID)}, resnet18 random, up to 30 epochs each; cold cache, process start and "
        "report included"
    ]
    rows: list[list[str | float]] = []
    at_once = ["hydra/launcher=parallel", f"hydra.launcher.n_jobs={len(speed.GRID)}"]
    for name, more in {"one after the other": [], "four at once": at_once}.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append([name, sweep(data, folder, *more)])
        common.show("gpu_grid", notes, ["runs", "seconds"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    every: dict[str, Callable[..., None]] = {
        "throughput": throughput,
        "steps": steps,
        "anomaly": anomaly,
        "where": where,
        "grid": grid,
    }
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(every)}; default: all")
    parser.add_argument("--data-root", default=os.environ.get("MVTEC_ROOT"), help="holds bottle/; else the sample")
    parser.add_argument("--epochs", type=int, default=4, help="of a timed run")
    parser.add_argument("--images", type=int, default=2500, help="that are generated")
    parser.add_argument("--sam-weights", help="MobileSAM's file, for segment/sam; left out without it")
    parser.add_argument("--folder", help="keeps the generated images and their cache for another call")
    args = parser.parse_args()
    if unknown := set(args.parts) - every.keys():
        parser.error(f"{', '.join(unknown)}: no part; known are {', '.join(every)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or scratch
        if GENERATED & set(args.parts or every) and not Path(folder, "images").exists():
            common.fresh(growth.generate, Path(folder) / "images", args.images)
        data = common.data_overrides(args.data_root)
        for name in args.parts or every:
            every[name](folder=folder, data=data, epochs=args.epochs, images=args.images, sam_weights=args.sam_weights)


if __name__ == "__main__":
    main()
