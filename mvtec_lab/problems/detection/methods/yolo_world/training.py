"""Fine-tune YOLO-World by ultralytics' own loop, on the run's own split in YOLO's format."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from mvtec_lab.config import Config
from mvtec_lab.data.annotations.export import Annotated
from mvtec_lab.data.annotations.yolo import write_yolo
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.regions import Region
from mvtec_lab.engine.run import Run
from mvtec_lab.engine.setup import training_seed
from mvtec_lab.problems.detection.methods.yolo_world.guest import guest

_OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop"}


def fine_tune(run: Run, network: nn.Module) -> None:
    """Train the network of a run and leave its best weights in it; history.csv gets a row per epoch.

    The best epoch is the one with the highest mAP50-95 of the validation images, as ultralytics counts it, the latest
    of equals. Ultralytics sees the training and the validation images, in a folder that is removed afterwards.

    Raises:
        LabError: the training has diverged, or ultralytics has left out an image.
    """
    trainer, module, patience = run.build_trainer(), run.model.module, run.config.trainer.patience
    history, device = run.history, trainer.strategy.root_device
    module.to(device)
    run.watch_memory()
    started = began = time.perf_counter()

    def after_epoch(loop: Any) -> bool:
        nonlocal began
        now = time.perf_counter()
        counted = loop.metrics
        values = {
            "train/loss": sum(float(value) for value in loop.tloss.values()),
            "val/loss": sum(float(value) for key, value in counted.items() if key.startswith("val/")),
            "val/map50": float(counted["metrics/mAP50(B)"]),
            "val/map": float(counted["metrics/mAP50-95(B)"]),
            "lr": float(loop.optimizer.param_groups[0]["lr"]),
        }
        history.add({**values, "seconds": round(now - began, 4)}, trainer)
        for logger in trainer.loggers:
            logger.log_metrics(values, len(history.rows))
        began = now
        return in_vain([row["val/map"] for row in history.rows], patience)

    with tempfile.TemporaryDirectory(prefix="mvtec_lab-yolo-") as folder, guest():
        from mvtec_lab.problems.detection.methods.yolo_world.network import FineTuning

        images = write_split(Path(folder), run.data)
        began = time.perf_counter()
        loop = FineTuning(network, Path(folder), images, device, after_epoch, **settings(run.config))
        try:
            loop.train()
        finally:
            run.result.seconds, run.result.epochs = time.perf_counter() - started, len(history.rows)
        for name in ("args", "criterion", "names"):  # which it has hung on the network
            if hasattr(network, name):
                delattr(network, name)
    network.load_state_dict(loop.best_state)
    run.result.best_epoch = loop.best_epoch + 1  # ultralytics counts from 0
    module.to(device).eval()


def in_vain(maps: Sequence[float], patience: int | None) -> bool:
    """Tell whether the best of these values, one per epoch, came ``patience`` epochs ago or earlier."""
    return patience is not None and len(maps) - 1 - maps.index(max(maps)) >= patience


def settings(config: Config) -> dict[str, Any]:
    """Return ultralytics' settings for a configuration. The others are its own: flips, scales, shifts and colours."""
    o, t = config.optimizer, config.trainer
    cosine = config.scheduler.name == "cosine"
    return {
        "epochs": t.max_epochs,
        "batch": config.data.batch_size,
        "nbs": config.data.batch_size,  # a step per batch: by default it sums up the gradients of 64 images
        "imgsz": config.data.image_size,
        "seed": training_seed(config),
        "optimizer": _OPTIMIZERS[o.name],
        "lr0": o.lr,
        "lrf": 0.0 if cosine else 1.0,  # share of the learning rate that is left at the end
        "cos_lr": cosine,
        "momentum": o.momentum,
        "weight_decay": o.weight_decay,
        "warmup_bias_lr": 0.0,  # 0.1, its default, is written for SGD
        "patience": t.max_epochs,  # ``after_epoch`` stops, by what also chooses the epoch
        "mosaic": 0.0,  # four images in one: a defect of a few pixels is lost at these sizes
        "close_mosaic": 0,
        "augmentations": [],  # its default ones draw from a generator without a seed
    }


def write_split(folder: Path, data: MVTecDataModule) -> dict[str, int]:
    """Write the training and validation images as the lab sees them, with their boxes, in YOLO's format.

    They are squares already, and 8 bits deep: what is trained on is what will be judged.

    Returns:
        The number of images of each.
    """
    pictures = folder / "pictures"
    pictures.mkdir()
    images = []
    for split in ("train", "val"):
        dataset = data.images(data.of_split(split))
        size = (dataset.frame.size, dataset.frame.size)
        for place in range(len(dataset)):
            source = pictures / f"{split}{place:05}.png"  # PNG keeps every pixel
            Image.fromarray(dataset.picture(place)).save(source)
            item = dataset[place]
            regions = tuple(
                Region(data.kinds[label - 1], tuple(box), size)
                for box, label in zip(item["boxes"].tolist(), item["labels"].tolist(), strict=True)
            )
            images.append(Annotated(source, source.name, split, size, regions))
    write_yolo(folder, images, data.kinds)
    return {split: sum(image.split == split for image in images) for split in ("train", "val")}
