"""Tiny real files and a tiny real network, so that tests run the real entry point in a second or two."""

from __future__ import annotations

import gc
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# The command line chooses by what else runs here, and sums round differently with another number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hydra._internal.hydra import Hydra
from PIL import Image

from mvtec_lab.problems import METHODS
from mvtec_lab.results import PREDICTIONS, RunResult


def pytest_collection_finish() -> None:
    """Leave what the imports made out of garbage collection: runs collect, and would go through it each time."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _mode_as_given() -> Iterator[None]:
    """Spare Hydra a second composing of the same configuration, which looks whether it sets ``hydra.mode``."""
    whole = Hydra.get_mode

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        return whole(self, config_name, overrides) if any("hydra.mode" in words for words in overrides) else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", get_mode)
        yield


ONE_CLASS_METHODS = [name for name in METHODS.names() if METHODS[name].problem == "anomaly"]
SIZE = 24  # pixels of a tiny image
COUNTS = {"good": 10, "crack": 6, "hole": 6}


def write_product(folder: Path, counts: dict[str, int] = COUNTS, train_good: int = 4, size: int = SIZE) -> Path:
    """A product in MVTec's layout whose defects can be learnt: a bar, or a hole, in another colour."""
    rng = np.random.default_rng(0)

    def image(label: str) -> tuple[np.ndarray, np.ndarray]:
        picture = rng.integers(90, 120, (size, size, 3), dtype=np.uint8)
        mask = np.zeros((size, size), np.uint8)
        at = int(rng.integers(4, size - 8))
        if label == "crack":
            mask[at : at + 3, 2:-2] = 255
            picture[mask > 0] = (250, 40, 40)
        elif label != "good":
            mask[at : at + 5, at : at + 5] = 255
            picture[mask > 0] = (20, 20, 250)
        return picture, mask

    def write(path: Path, array: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)

    for i in range(train_good):
        write(folder / "train/good" / f"{i:03}.png", image("good")[0])
    for label, count in counts.items():
        for i in range(count):
            picture, mask = image(label)
            write(folder / "test" / label / f"{i:03}.png", picture)
            if label != "good":
                write(folder / "ground_truth" / label / f"{i:03}_mask.png", mask)
    return folder


def others_slow(names: Iterable[str], *fast: str) -> list:
    """Parameters of a test, of which but a few run by default."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A product folder of 22 test images in three classes, <tmp_path>/products/widget."""
    return write_product(tmp_path / "products" / "widget")


@pytest.fixture(scope="session")
def tiny_net() -> str:
    """The name of a network of two convolutions, registered with TorchVision as a user would."""
    import torchvision
    from torch import nn
    from torchvision.models._api import register_model

    class TinyNet(nn.Module):
        def __init__(self, num_classes: int = 1000) -> None:
            super().__init__()
            self.features = nn.Sequential(
                OrderedDict(
                    conv1=nn.Conv2d(3, 8, 3, stride=2, padding=1),
                    norm1=nn.BatchNorm2d(8),
                    relu1=nn.ReLU(),
                    conv2=nn.Conv2d(8, 16, 3, stride=2, padding=1),
                    norm2=nn.BatchNorm2d(16),
                    relu2=nn.ReLU(),
                )
            )
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(16, num_classes))

        def forward(self, x):
            return self.classifier(self.avgpool(self.features(x)).flatten(1))

    def tiny_lab_net(*, weights=None, progress: bool = True, **kwargs):
        return TinyNet(**kwargs)

    if "tiny_lab_net" not in torchvision.models.list_models():
        register_model("tiny_lab_net")(tiny_lab_net)
    return "tiny_lab_net"


# Of what the fixture lab gives, all that other tasks than train read.
READ = {
    "describe": ("data", "model", "cache"),
    "evaluate": ("data=", "data.root", "data.batch_size", "cache"),
    "predict": ("data.batch_size",),
    "cache": ("cache",),
    "clear_cache": ("cache",),
}


@pytest.fixture
def lab(tiny_net: str, product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command line in an empty folder on the tiny product: ``lab("-m", "attempt=base,cosine")`` -> status."""
    monkeypatch.chdir(tmp_path)
    return laboratory(tiny_net, product, tmp_path)


def laboratory(tiny_net: str, product: Path, folder: Path) -> Callable[..., int]:
    """What the fixture ``lab`` gives, for fixtures that several tests share; caches go to a folder."""
    from mvtec_lab.cli import main

    def run(*arguments: str) -> int:
        task = next((a[5:] for a in arguments if a.startswith("task=")), "train")
        attempt = next((a[8:] for a in arguments if a.startswith("attempt=")), "base")
        given = next((a[13:] for a in arguments if a.startswith("model.method=")), None)
        of_method = given or attempt.removesuffix("_ssim")
        method = METHODS[of_method if of_method in METHODS else "classifier"]
        small = [
            "data=folder",
            f"data.root={product}",
            f"data.image_size={SIZE}",
            "data.batch_size=8",
            *([f"model.backbone={tiny_net}"] if method.backbone else []),
            "model.weights=null",
            *(["trainer.max_epochs=2"] if method.trains else []),
            "trainer.accelerator=cpu",
            f"cache.dir={folder / 'cache'}",
        ]
        return main(
            [
                *(a for a in arguments if a.startswith("-")),
                *(word for word in small if task == "train" or word.startswith(READ.get(task, "-"))),
                *(a for a in arguments if not a.startswith("-")),
            ]
        )

    return run


@pytest.fixture
def resumed(lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Train twice, whole and with a stop within an epoch: ``resumed(Module, 2, "attempt=base")`` -> the second run.

    Both have to end alike, in <tmp_path>/whole and <tmp_path>/run.
    """
    from mvtec_lab.engine import checkpoints

    def run(module: type, epoch: int, *settings: str) -> RunResult:
        assert lab(*settings, "hydra.run.dir=whole") == 0
        step = module.training_step

        def training_step(self, batch, batch_idx):
            if self.current_epoch == epoch:
                raise KeyboardInterrupt
            return step(self, batch, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "EVERY", -1.0)
            patch.setattr(module, "training_step", training_step)
            assert lab(*settings, "hydra.run.dir=run") == 130
        assert lab(*settings, "hydra.run.dir=run", "resume=true") == 0
        whole, again = (RunResult.load(tmp_path / name) for name in ("whole", "run"))
        assert (again.resumed, again.epochs, again.metrics) == (1, whole.epochs, whole.metrics)
        whole_rows, rows = ((tmp_path / name / PREDICTIONS).read_text() for name in ("whole", "run"))
        assert rows == whole_rows
        return again

    return run
