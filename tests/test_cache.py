"""Caches: made once, shared, bounded, replaced when anything changes, and never a part of the result."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIZE, write_product
from PIL import Image

from mvtec_lab import MVTecDataModule
from mvtec_lab.cache import ArrayCache
from mvtec_lab.config import SplitConfig
from mvtec_lab.data import transforms
from mvtec_lab.models.modes import PartlyFrozen
from mvtec_lab.problems.classification.features import BATCH
from mvtec_lab.problems.model import load_model


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvtec_lab.cache._said", set())


def numbers(cache: ArrayCache, key: object = "k", rows: int = 6, dtype: str = "<f4") -> np.ndarray | None:
    made = np.arange(rows * 4, dtype=dtype).reshape(rows, 4)
    return cache.get("numbers of a test", key, rows, dtype, lambda: (made[i : i + 2] for i in range(0, rows, 2)))


def test_an_array_is_made_once_for_each_key(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path / "c")
    first = numbers(cache)
    np.testing.assert_array_equal(first, np.arange(24, dtype="<f4").reshape(6, 4))
    again = cache.get("numbers of a test", "k", 6, "<f4", lambda: pytest.fail("made twice"))
    np.testing.assert_array_equal(again, first)
    assert isinstance(again, np.memmap)
    numbers(cache, {"other": 1})
    assert [(e.shape, e.dtype, e.bytes) for e in cache.entries()] == [((6, 4), "float32", 96 + 128 + 4)] * 2


def flip(path: Path, at: int) -> None:
    """Flip one bit of a file, which keeps its size."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage"),
        lambda path: np.save(path, np.load(path).astype(">f4")),  # another machine's byte order
        lambda path: np.save(path, np.load(path)[:5]),
        lambda path: np.save(path, np.load(path).astype(np.float64)),  # an older version's
        lambda path: np.save(path, np.load(path)[:, :2]),
        lambda path: flip(path, 140),  # in the first row: behind 128 bytes of header
        lambda path: flip(path, 130 - 128),  # in the header
        lambda path: path.write_bytes(path.read_bytes()[:170].ljust(path.stat().st_size, b"\0")),
    ],
    ids=["truncated", "empty", "garbage", "byte order", "rows", "type", "shape", "bit", "header", "zeros"],
)
def test_a_damaged_entry_is_made_anew_and_said_once(damage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ArrayCache(tmp_path)
    numbers(cache)
    (path,) = tmp_path.iterdir()
    for _ in range(2):
        damage(path)
        np.testing.assert_array_equal(numbers(cache), np.arange(24, dtype="<f4").reshape(6, 4))
    assert len(caplog.messages) == 1
    assert "made again" in caplog.text


def test_an_entry_is_verified_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers(ArrayCache(tmp_path))
    monkeypatch.setattr("mvtec_lab.cache.zlib.crc32", lambda *_: pytest.fail("read again"))
    assert numbers(ArrayCache(tmp_path)) is not None


@pytest.mark.slow
def test_a_run_on_damaged_entries_is_the_run_without(lab, tmp_path: Path) -> None:
    assert lab("attempt=finetune", "cache.dir=null", "hydra.run.dir=without") == 0
    assert lab("attempt=finetune", "hydra.run.dir=first") == 0
    features, images_ = sorted((tmp_path / "cache").iterdir(), key=lambda path: "images" in path.name)
    content = features.read_bytes()
    features.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
    np.save(images_, np.load(images_)[:, :1])
    assert lab("attempt=finetune", "hydra.run.dir=second") == 0
    same(tmp_path / "second", tmp_path / "without", tolerance=1e-6)


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    for _ in range(2):
        assert numbers(ArrayCache(tmp_path / "file" / "c")) is None
    assert len(caplog.messages) == 1
    assert "going on without" in caplog.text


def test_a_full_disk_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> Iterator[np.ndarray]:
        yield np.zeros((1, 4), "<f4")
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = ArrayCache(tmp_path / "c")
    assert cache.get("n", "k", 6, "<f4", full) is None
    assert not (tmp_path / "c").exists()  # nothing half-written, nor a folder for nothing
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))
    assert numbers(cache) is None


def test_a_folder_of_somebody_else_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers(ArrayCache(tmp_path))

    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "utime", denied)
    monkeypatch.setattr(Path, "mkdir", denied)
    assert numbers(ArrayCache(tmp_path)) is not None
    assert numbers(ArrayCache(tmp_path), "another") is None


def test_what_was_used_least_recently_makes_room(tmp_path: Path) -> None:
    size = 96 + 128 + 4
    cache = ArrayCache(tmp_path, max_gb=2.5 * size / 1e9)
    mine = tmp_path / "my_own.npy"
    np.save(mine, np.zeros(1000))
    for age, key in ((30, "a"), (20, "b")):
        numbers(cache, key)
        newest = max(cache.entries(), key=lambda e: e.used)
        os.utime(newest.path, (newest.used - age, newest.used - age))
    numbers(cache, "a")  # used again
    numbers(cache, "c")
    assert len(cache.entries()) == 2
    assert cache.get("numbers of a test", "a", 6, "<f4", lambda: pytest.fail("a was dropped")) is not None
    assert numbers(cache, "large", rows=600) is None  # larger than the whole cache: nothing is dropped for it
    assert len(cache.entries()) == 2
    assert cache.clear() == 2 * size
    assert list(tmp_path.iterdir()) == [mine]


KILLED = """
import sys, time
import numpy as np
from mvtec_lab.cache import ArrayCache
def blocks():
    yield np.zeros((1, 4), "<f4")
    print("writing", flush=True)
    time.sleep(60)
ArrayCache(sys.argv[1]).get("numbers of a test", "k", 6, "<f4", blocks)
"""


def test_a_kill_in_the_middle_leaves_no_entry(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    cache = ArrayCache(tmp_path)
    (left,) = tmp_path.iterdir()
    assert cache.entries() == []
    np.testing.assert_array_equal(numbers(cache), np.arange(24, dtype="<f4").reshape(6, 4))
    assert left.exists()  # for all this process knows, another one is still at it
    os.utime(left, (time.time() - 3600,) * 2)
    numbers(cache, "another")
    assert not left.exists()


def test_two_writers_at_once(tmp_path: Path) -> None:
    def blocks() -> Iterator[np.ndarray]:
        yield np.zeros((3, 4), "<f4")
        inner = numbers(ArrayCache(tmp_path))  # the other one is faster
        assert inner is not None
        yield np.zeros((3, 4), "<f4")

    cache = ArrayCache(tmp_path)
    np.testing.assert_array_equal(cache.get("numbers of a test", "k", 6, "<f4", blocks), np.zeros((6, 4)))
    assert len(list(tmp_path.iterdir())) == 1


def images(product: Path, folder: Path, **kwargs: object) -> MVTecDataModule:
    data = MVTecDataModule(product, image_size=SIZE, cache=ArrayCache(folder), **kwargs)  # type: ignore[arg-type]
    data.setup()
    return data


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    seen: list[Path] = []
    read = transforms.read_image
    monkeypatch.setattr(transforms, "read_image", lambda path, *rest: seen.append(path) or read(path, *rest))
    return seen


def test_every_image_is_decoded_once_for_all_folds_and_seeds(
    product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = decoded(monkeypatch)
    for fold in range(3):
        split = SplitConfig(protocol="kfold", folds=3, fold=fold)
        data = images(product, tmp_path / "c", split=split, seed=fold)
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
            assert sum(len(batch["label"]) for batch in loader) > 0
    assert len(seen) == len(set(seen)) == 22


def test_cached_images_are_the_decoded_ones(product: Path, tmp_path: Path) -> None:
    with_cache, without = images(product, tmp_path / "c"), MVTecDataModule(product, image_size=SIZE)
    without.setup()
    for split in ("train", "val", "test"):
        ours, theirs = with_cache.dataset(split), without.dataset(split)
        assert len(ours) == len(theirs) > 0
        for place in range(len(ours)):
            assert torch.equal(ours[place]["image"], theirs[place]["image"])
            assert ours[place]["label"] == theirs[place]["label"]
            np.testing.assert_array_equal(ours.picture(place), theirs.picture(place))


@pytest.mark.parametrize("size", [SIZE, SIZE + 8])
def test_a_replaced_image_is_noticed(size: int, product: Path, tmp_path: Path) -> None:
    path = product / "test/hole/000.png"
    images(product, tmp_path / "c")
    before, stat = path.read_bytes(), path.stat()
    flipped = np.asarray(Image.open(path))[::-1]
    Image.fromarray(flipped).save(path)
    path.write_bytes(path.read_bytes().ljust(len(before), b"\0")[: len(before)] if size == SIZE else before)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same name, and size, and time
    data = MVTecDataModule(product, image_size=size, cache=ArrayCache(tmp_path / "c"))
    data.setup()
    everything = data.images([s for s in data.samples if s.path == "test/hole/000.png"])
    expected = transforms.read_picture(path, size)
    np.testing.assert_array_equal(everything.picture(0), expected)


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def runs(lab, tmp_path: Path, *arguments: str) -> tuple[Path, Path]:
    """The same run with and without caches."""
    for name, cache in (("with", tmp_path / "cache"), ("without", "null")):
        assert lab(*arguments, f"cache.dir={cache}", f"hydra.run.dir={name}") == 0
    return tmp_path / "with", tmp_path / "without"


def same(ours: Path, theirs: Path, tolerance: float = 1e-4) -> None:
    """Losses of every epoch, predictions and probabilities of every image, and accuracies agree."""
    for mine, other in zip(read(ours / "history.csv"), read(theirs / "history.csv"), strict=True):
        for key in ("train/loss", "val/loss"):
            assert float(mine[key]) == pytest.approx(float(other[key]), abs=tolerance)
    for mine, other in zip(read(ours / "predictions.csv"), read(theirs / "predictions.csv"), strict=True):
        assert (mine["path"], mine["prediction"]) == (other["path"], other["prediction"])
        for key in (key for key in mine if key.startswith("prob_")):
            assert float(mine[key]) == pytest.approx(float(other[key]), abs=max(tolerance, 1e-6))  # six digits are kept
    for split, metrics in metrics_of(ours).items():
        for key in ("accuracy", "balanced_accuracy", "macro_f1"):
            assert metrics[key] == metrics_of(theirs)[split][key]


def metrics_of(run: Path) -> dict[str, dict]:
    return json.loads((run / "result.json").read_text())["metrics"]


def features_of(run: Path) -> list[str]:
    return json.loads((run / "result.json").read_text())["features"]


ALL = ["test", "train", "val"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["attempt=head"], ALL),
        (["attempt=finetune"], ALL),
        (["attempt=warmup", "model.warmup_epochs=1"], ALL),
        (["attempt=full"], []),
        (["attempt=augment"], ["test", "val"]),
        (["attempt=augment", "augment.views=3"], ALL),
        (["attempt=finetune", "data.sampler=inverse", "split.val_is_test=true"], ALL),
        (["attempt=full", "augment=standard", "augment.views=3"], []),
    ],
    ids=lambda value: "_".join(value) if value and "=" in value[0] else "",
)
def test_a_run_with_caches_is_the_run_without(arguments: list[str], expected: list[str], lab, tmp_path: Path) -> None:
    ours, theirs = runs(lab, tmp_path, *arguments)
    same(ours, theirs, tolerance=1e-6 if "train" in expected else 1e-4)  # else validation's batches round differently
    assert features_of(ours) == expected
    assert features_of(theirs) == []


@pytest.mark.slow
def test_features_are_made_once_for_a_sweep_and_the_next(lab, tmp_path: Path, monkeypatch) -> None:
    made = []
    extract = PartlyFrozen.extract
    monkeypatch.setattr(PartlyFrozen, "extract", lambda self, x, n: made.append(len(x)) or extract(self, x, n))
    for sweep in ("one", "two"):
        assert lab("-m", "attempt=head,cosine,earlystop", f"hydra.sweep.dir={sweep}") == 0
    assert sum(made) == 22
    assert lab("attempt=head", "seed=1", "hydra.run.dir=other_weights") == 0  # random weights of another seed
    assert sum(made) == 44


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["cache", "null"])
def test_features_are_made_in_batches_of_one_size(cache: str, lab, product: Path, tmp_path: Path, monkeypatch) -> None:
    """Another size takes other kernels, whose rounding a training of many epochs makes larger: up to other labels."""
    shapes, run = set(), PartlyFrozen.run

    def recorded(self, values: torch.Tensor, part: slice) -> torch.Tensor:
        if part.start is None and self.prefix:
            shapes.add(len(values))
        return run(self, values, part)

    monkeypatch.setattr(PartlyFrozen, "run", recorded)
    for i in range(20):
        shutil.copy(product / "test/good/000.png", product / f"test/good/{100 + i}.png")  # 42 images
    assert lab("attempt=head", "trainer.max_epochs=1", f"cache.dir={cache}", "hydra.run.dir=run") == 0
    assert features_of(tmp_path / "run") == (ALL if cache == "cache" else [])
    assert shapes == {BATCH}


def test_the_checkpoint_takes_images(lab, tmp_path: Path) -> None:
    """task=evaluate runs the whole network on images: its predictions are those that the run made from features."""
    assert lab("attempt=finetune", "hydra.run.dir=run") == 0
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=judged") == 0
    for mine, other in zip(
        read(tmp_path / "run/predictions.csv"), read(tmp_path / "judged/predictions.csv"), strict=True
    ):
        assert mine["prediction"] == other["prediction"]
        assert float(mine["prob_good"]) == pytest.approx(float(other["prob_good"]), abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_network_is_the_same_one(lab, tmp_path: Path) -> None:
    network = [
        "model.backbone=resnet18",
        "data.image_size=32",
        "trainer.max_epochs=1",
    ]  # without dropout: its draws differ
    for compiled in ("true", "false"):
        assert lab(*network, f"trainer.compile={compiled}", f"hydra.run.dir=compile_{compiled}") == 0
    same(tmp_path / "compile_true", tmp_path / "compile_false", tolerance=1e-3)


def test_views_are_marked(lab, tmp_path: Path) -> None:
    assert lab("attempt=augment", "augment.views=2", "hydra.run.dir=run") == 0
    assert "augment.views=2" in " ".join(json.loads((tmp_path / "run/result.json").read_text())["warnings"])


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["no room", "a full disk"])
def test_a_cache_without_room_changes_no_result(trouble: str, lab, tmp_path: Path, monkeypatch) -> None:
    """The features' making is broken off in the middle: the network must train in train mode nevertheless."""
    settings = ["attempt=finetune", "cache.dir=null", "hydra.run.dir=without"]
    assert lab(*settings) == 0
    room = ["cache.max_gb=0.000045"]  # for the 22 images of 24 x 24 x 3 bytes, not for their features
    if trouble == "a full disk":
        room, header = [], np.lib.format.write_array_header_1_0

        def write(file, of: dict) -> None:
            if of["descr"] != "|u1":
                raise OSError(errno.ENOSPC, "No space left on device")
            header(file, of)

        monkeypatch.setattr(np.lib.format, "write_array_header_1_0", write)
    assert lab("attempt=finetune", *room, "hydra.run.dir=with") == 0
    same(tmp_path / "with", tmp_path / "without", tolerance=1e-6)


@pytest.mark.slow
def test_trouble_with_the_cache_changes_no_result(lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no folder")
    ours, theirs = runs(lab, tmp_path, "attempt=finetune")
    assert lab("-m", "attempt=finetune,cosine", "cache.dir=file", "hydra.sweep.dir=blocked") == 0
    same(tmp_path / "blocked/finetune", theirs, tolerance=0)
    assert capsys.readouterr().err.count("cache:") == 1
    assert lab("attempt=finetune", "cache.max_gb=1e-6", "hydra.run.dir=small") == 0
    same(tmp_path / "small", theirs, tolerance=0)
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    assert lab("attempt=finetune", f"cache.dir={tmp_path / 'cache'}", "hydra.run.dir=rebuilt") == 0
    same(tmp_path / "rebuilt", ours, tolerance=0)


def test_the_cache_is_listed_and_cleared(lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab("attempt=head") == 0
    capsys.readouterr()
    assert lab("task=cache") == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert "widget images at 24" in listed
    assert f"{SIZE} x {SIZE} x 3 uint8" in listed
    assert lab("task=clear_cache") == 0
    assert list((tmp_path / "cache").iterdir()) == []
    assert lab("task=cache", "cache.dir=null") == 2


@pytest.mark.parametrize(
    ("backbone", "unfreeze", "size"),
    [
        ("resnet18", "1", 64),
        ("mobilenet_v2", "2", 64),
        ("mobilenet_v3_small", "1", 64),
        ("squeezenet1_1", "1", 64),
        ("densenet121", "1", 64),
        ("shufflenet_v2_x0_5", "1", 64),
        ("swin_t", "1", 64),
        ("vit_b_32", "1", 224),
        ("regnet_y_400mf", "1", 64),
        ("googlenet", "0", 96),
        ("efficientnet_b0", "1", 64),
        ("convnext_tiny", "1", 64),
        ("maxvit_t", "1", 224),
        ("inception_v3", "1", 96),
    ],
)
@pytest.mark.slow
def test_every_family_trains_the_same_from_features(
    backbone: str, unfreeze: str, size: int, lab, tmp_path: Path
) -> None:
    ours, theirs = runs(
        lab,
        tmp_path,
        "attempt=base",
        f"model.backbone={backbone}",
        f"model.unfreeze={unfreeze}",
        f"data.image_size={size}",
        "trainer.max_epochs=1",
        "optimizer.lr=1e-4",  # a random network under a large rate amplifies the last digit without bound
        "split.per_class=3",
    )
    assert features_of(ours) == ALL
    same(ours, theirs)
    for run in (ours, theirs):
        load_model(run / "best.ckpt")


@pytest.mark.slow
def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    product = write_product(tmp_path / "widget")
    script = (
        "import sys; from mvtec_lab import MVTecDataModule; from mvtec_lab.cache import ArrayCache\n"
        "data = MVTecDataModule(sys.argv[1], image_size=24, cache=ArrayCache(sys.argv[2])); data.setup()\n"
        "print(int(sum(data.dataset('train').picture(i).sum() for i in range(3))))"
    )
    command = [sys.executable, "-c", script, str(product), str(tmp_path / "c")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    first, second = (process.communicate()[0] for process in processes)
    assert first == second != b""
    assert len(list((tmp_path / "c").iterdir())) == 1
