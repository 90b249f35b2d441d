"""The loop that a careful student would write with PyTorch and TorchVision alone.

Every image is decoded and every layer runs in every epoch; frozen layers take no gradient and stay in eval mode.
Written for the benchmarks, to stand beside the lab: same images, same initial weights, same attempts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models
from torchvision.transforms import v2

Sample = tuple[str, int]  # an image's path and its class index

PATIENCE = 5  # epochs without a lower validation loss; as conf/attempt/earlystop.yaml


class Images(Dataset[tuple[Tensor, int]]):
    def __init__(self, samples: Sequence[Sample], size: int, augment: bool = False) -> None:
        self.samples = samples
        # The values of conf/augment/standard.yaml, after the resizing: before it they would cost 16 times as much. v2
        # on PIL images is the fastest of TorchVision's ways (2.1 ms an image at 224; v1 2.6, v2 on tensors 3.6).
        random = [
            v2.RandomApply([v2.RandomRotation(15, v2.InterpolationMode.BILINEAR)], 0.8),
            v2.RandomApply([v2.ColorJitter(0.2, 0.2, 0.2, 0.02)], 0.8),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
        ]
        self.transform = v2.Compose(
            [
                v2.Resize((size, size)),
                *(random if augment else []),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        path, label = self.samples[place]
        with Image.open(Path(path)) as image:
            return self.transform(image.convert("RGB")), label


def network(backbone: str, weights: str | None, classes: int, attempt: str) -> tuple[nn.Module, list[nn.Module]]:
    """Return a TorchVision model with a fresh head, and its parts that train: the head, the last stage, or all."""
    model = models.get_model(backbone, weights=weights)
    if backbone.startswith("resnet"):
        model.fc = nn.Linear(model.fc.in_features, classes)
        head, stage = model.fc, model.layer4
    elif backbone.startswith("vit"):
        model.heads.head = nn.Linear(model.heads.head.in_features, classes)
        head, stage = nn.ModuleList([model.encoder.ln, model.heads]), model.encoder.layers[-1]
    else:
        model.classifier[-1] = nn.Linear(model.classifier[-1].in_features, classes)
        head, stage = model.classifier, model.features[14:]  # mobilenet_v2: from the last stride on
    trained = {"finetune": [stage, head], "full": [model]}.get(attempt, [head])
    model.requires_grad_(False)
    for part in trained:
        part.requires_grad_(True)
    return model, trained


def train(
    attempt: str,
    splits: Mapping[str, Sequence[Sample]],
    classes: int,
    backbone: str = "resnet18",
    weights: str | None = None,
    size: int = 224,
    epochs: int = 5,
    workers: int = 0,
    seed: int = 0,
    batch_size: int = 32,
    augmented: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train one of head, finetune, full, augment, earlystop, cosine; the best epoch on val is judged on test.

    On a GPU the forward pass is in bfloat16 and convolutions are channels-last, as PyTorch's tuning guide says.

    Returns:
        ``epochs``: seconds of each, training and validation; ``training``: of which training; ``losses``: their
        training losses; ``accuracy`` on test.
    """
    torch.manual_seed(seed)
    model, trained = network(backbone, weights, classes, attempt)
    gpu = device != "cpu"
    if gpu:
        model.to(device, memory_format=torch.channels_last)
    counts = torch.bincount(torch.tensor([label for _, label in splits["train"]]), minlength=classes)
    balance = (counts.sum() / (classes * counts.clamp(min=1))).to(device)
    loaders = {
        split: DataLoader(
            Images(samples, size, split == "train" and (augmented or attempt == "augment")),
            batch_size=batch_size,
            shuffle=split == "train",
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=gpu,
        )
        for split, samples in splits.items()
    }
    parameters = [p for part in trained for p in part.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01 if attempt == "head" else 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs) if attempt == "cosine" else None
    seconds, training, losses, best, lowest, waited = [], [], [], (-1.0, {}), float("inf"), 0
    for _ in range(epochs):
        began, total = time.perf_counter(), 0.0
        model.eval()
        for part in trained:
            part.train()
        for images, labels in loaders["train"]:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16, enabled=gpu):
                loss = F.cross_entropy(model(images), labels, weight=balance)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        if schedule:
            schedule.step()
        training.append(time.perf_counter() - began)
        loss, score, _ = evaluate(model, loaders["val"], classes, device)
        if score > best[0]:
            best = score, {name: value.clone() for name, value in model.state_dict().items()}
        waited = 0 if loss < lowest else waited + 1
        lowest = min(lowest, loss)
        seconds.append(time.perf_counter() - began)
        losses.append(total / len(splits["train"]))
        if attempt == "earlystop" and waited >= PATIENCE:
            break
    model.load_state_dict(best[1])
    accuracy = evaluate(model, loaders["test"], classes, device)[2]
    return {"epochs": seconds, "training": training, "losses": losses, "accuracy": accuracy}


@torch.inference_mode()
def evaluate(
    model: nn.Module, loader: DataLoader[Any], classes: int, device: str = "cpu"
) -> tuple[float, float, float]:
    """Mean cross-entropy, balanced accuracy (by which the lab chooses its checkpoint too) and accuracy."""
    model.eval()
    with torch.autocast("cuda", torch.bfloat16, enabled=device != "cpu"):
        batches = [(model(images.to(device)).float().cpu(), labels) for images, labels in loader]
    logits, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    right = logits.argmax(1) == labels
    recalls = [right[labels == c].float().mean() for c in range(classes) if (labels == c).any()]
    loss = F.cross_entropy(logits, labels)
    return loss.item(), torch.stack(recalls).mean().item(), right.float().mean().item()
