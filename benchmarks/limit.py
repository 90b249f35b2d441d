"""Distance to the limit: the floating-point operations of the trained stages over the machine's convolution rate."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from statistics import median
from typing import Any
from unittest import mock

from benchmarks import common

BATCH = 32
SHAPES = ((128, 28), (256, 14), (512, 7))  # channels and side of ResNet18's 3x3 convolutions at 224: layer2 to layer4
TRIES = 20  # of each convolution; the best counts, for a limit is what the machine can do
TARGET = 1.5


def convolution_rate() -> float:
    """GFLOP/s of the fastest of the shapes: fp32, forward, channels-last, all threads."""
    import torch
    from torch import nn

    rates = []
    for channels, side in SHAPES:
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
        images = torch.randn(BATCH, channels, side, side).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            best = min(common.timed(convolution, images)[0] for _ in range(TRIES))
        rates.append(2 * 9 * channels**2 * BATCH * side**2 / best / 1e9)  # a multiply-add is two
    return max(rates)


class _EnoughError(Exception):
    """End a run whose epochs are measured."""


def training_epochs(overrides: list[str], run_dir: str, profiler: Any = None) -> list[float]:
    """Seconds of each epoch of a real run, from its start to the end of its last training batch.

    The run ends with its training: nothing is judged.

    Args:
        profiler: Lightning's, or None.
    """
    import pytorch_lightning as pl
    import torch

    from mvtec_lab import compose, run_attempt
    from mvtec_lab.engine.devices import build_trainer

    class Timer(pl.Callback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_train_epoch_start(self, *_: Any) -> None:
            self.began = time.perf_counter()
            self.seconds.append(0.0)

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.is_last_batch and torch.cuda.is_available():
                torch.cuda.synchronize()  # what was asked of a GPU belongs to the epoch
            self.seconds[-1] = time.perf_counter() - self.began

        def on_train_end(self, *_: Any) -> None:
            raise _EnoughError

    timer = Timer()

    def with_timer(*args: Any, callbacks: list[pl.Callback], **kwargs: Any) -> pl.Trainer:
        return build_trainer(*args, callbacks=[*callbacks, timer], profiler=profiler, **kwargs)

    # the run as it is, one callback more
    with mock.patch("mvtec_lab.engine.run.build_trainer", with_timer), suppress(_EnoughError):
        run_attempt(compose(*overrides), run_dir)
    return timer.seconds


def bare_epochs(overrides: list[str], epochs: int) -> dict[str, Any]:
    """The steps of the trained stages with their input in memory and nothing around them; and their operations."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from mvtec_lab import compose
    from mvtec_lab.problems.model import build_data, build_model

    config = compose(*overrides, "cache.dir=null")
    data = build_data(config)
    data.setup()
    classifier = build_model(config, data)[0].module
    classifier.train()
    with torch.no_grad():
        batches = [(classifier.model.extract(batch["image"]), batch["label"]) for batch in data.train_dataloader()]
    optimizer = torch.optim.Adam([p for p in classifier.parameters() if p.requires_grad], lr=config.optimizer.lr)

    def epoch() -> None:
        for features, labels in batches:
            optimizer.zero_grad()
            logits = classifier.logits({"features": features})
            F.cross_entropy(logits, labels, weight=classifier.criterion.weights).backward()
            optimizer.step()

    operations = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal operations
        if isinstance(module, (nn.Conv2d, nn.Linear)):  # nearly all there is
            passes = 2 + inputs[0].requires_grad  # forward, the gradient of the weights, that of the input where needed
            operations += 2 * passes * output.numel() * module.weight[0].numel()

    # PyTorch's own counter takes the backward pass of a depthwise convolution for that of a full one.
    with nn.modules.module.register_module_forward_hook(count):
        epoch()
    seconds = [common.timed(epoch)[0] for _ in range(epochs)]
    return {"gflop": operations / 1e9, "seconds": seconds, "images": sum(len(y) for _, y in batches)}


def main() -> None:
    args = common.options(__doc__)
    rates, lab, bare, runs = [], defaultdict(list), defaultdict(list), {}
    with tempfile.TemporaryDirectory() as folder:
        for backbone in ("resnet18", "mobilenet_v2"):
            run = [*common.data_overrides(args.data_root), *common.model(backbone)[1], "attempt=finetune"]
            runs[backbone] = [*run, f"trainer.max_epochs={args.epochs}", f"cache.dir={folder}/cache"]
            common.fresh(training_epochs, runs[backbone], f"{folder}/{backbone}")  # makes the cache
        for repeat in range(args.repeats):
            rates.append(common.fresh(convolution_rate).value)
            for name, overrides in runs.items():
                bare[name].append(common.fresh(bare_epochs, overrides, args.epochs).value)
                lab[name].append(common.fresh(training_epochs, overrides, f"{folder}/{name}-{repeat}").value)
    rate, rows = max(rates), []
    for name in runs:
        first = bare[name][0]
        limit = first["gflop"] / rate
        alone = median(common.later(repeat["seconds"]) for repeat in bare[name])
        inside = median(common.later(seconds) for seconds in lab[name])
        target = f" (target {TARGET})" if name == "resnet18" else ""
        cells = [name, first["images"], first["gflop"], limit, alone, f"{alone / limit:.2f}"]
        rows.append([*cells, inside, f"{inside / limit:.2f}{target}"])
    shapes = ", ".join(f"{channels} channels of {side}x{side}" for channels, side in SHAPES)
    notes = [
        f"convolution rate {rate:.0f} GFLOP/s: the best of 3x3, batch {BATCH}, channels-last, {shapes}",
        "the lab's seconds: from an epoch's start to the end of its last training batch, loader, metrics and loggers "
        "included, validation and checkpoints not; cache warm",
        f"medians of {args.repeats} repeats, {args.epochs} epochs each without the first",
    ]
    header = ["finetune", "images", "GFLOP an epoch", "limit, s", "bare steps, s", "/ limit", "lab, s", "/ limit"]
    common.show("limit", notes, header, rows)


if __name__ == "__main__":
    main()
