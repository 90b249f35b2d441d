"""What the entry point says to a mistake: one line, exit status 2, and nothing left behind."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import zlib
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from conftest import write_product
from PIL import Image

from mvtec_lab.models.files import check_file
from mvtec_lab.tasks import evaluate


def bad(product: Path, tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """Name -> what is typed, after the trap is set, and what is answered."""
    (tmp_path / "a_file").write_text("no folder")
    (tmp_path / "split.csv").write_text("path,split\ntest/good/999.png,train\n")
    return {
        "category": (
            ["data.category=wodget", f"data.root={product.parent}"],
            "unknown category 'wodget': did you mean widget?",
        ),
        "attempt": (["attempt=finetun"], "unknown attempt 'finetun': did you mean finetune?"),
        "backbone": (["model.backbone=resnet81"], "unknown backbone 'resnet81': did you mean resnet18"),
        "stage": (["model.unfreeze=[stage9]"], "stage9"),
        "stages": (["model.unfreeze=9"], "a backbone of 2 stages"),
        "optimizer": (["optimizer=adem"], "unknown optimizer 'adem': did you mean adam"),
        "type": (["trainer.max_epochs=many"], "trainer.max_epochs: Value 'many'"),
        "range": (["data.batch_size=0"], "data.batch_size=0 is out of range"),
        "epochs": (["trainer.max_epochs=-1"], "trainer.max_epochs=-1 is out of range"),
        "batch": (
            ["attempt=finetune", "model.backbone=mobilenet_v2", "data.image_size=32", "data.batch_size=1"],
            "data.batch_size=1 gives batches of a single training image, which cannot train here (Expected more than 1",
        ),
        "one-class batch": (
            ["attempt=stfpm", "model.backbone=resnet18", "data.image_size=16", "data.batch_size=1"],
            "data.batch_size=1 gives batches of a single training image",
        ),
        "fractions": (["split.val=0.5", "split.test=0.5"], "nothing is left to train on"),
        "key": (["data.bach_size=4"], "unknown key 'data.bach_size': did you mean data.batch_size"),
        "task": (["task=trane"], "unknown task 'trane': did you mean train?"),
        "root": (["data.root=/no/such/folder"], "data.root=/no/such/folder"),
        "split file": (["split.protocol=file", "split.file=split.csv"], "unknown image 'test/good/999.png'"),
        "too few": (["split.protocol=kfold", "split.folds=8"], "too few for 8 folds"),
        "transform": (
            ["+augment.transforms.Rotat.p=1"],
            "unknown albumentations transform 'Rotat': did you mean Rotate?",
        ),
        "no picture": (
            ["+augment.transforms.ToTensorV2.p=1"],
            "ToTensorV2 makes a tensor [3, 24, 24]",
        ),
        "precision": (
            ["trainer.precision=16-mixed"],
            "this device does not have trainer.precision=16-mixed",
        ),
        "precision name": (["trainer.precision=float8"], "unknown trainer.precision 'float8'"),
        "device": (["trainer.accelerator=tpu"], "trainer.accelerator=tpu"),
        "output": (["hydra.run.dir=a_file/run", "hydra.sweep.dir=a_file/sweep"], "cannot be written"),
        "weights file": (["model.weights=missing.pth"], "missing.pth"),
        "group": (["split.group_by='(serial)'"], "split.group_by='(serial)' matches no image"),
        "devices": (["trainer.devices=abc"], "trainer.devices=abc"),
        "unknown section": (["+foo=1"], "unknown key 'foo'"),
        "no archive": (
            ["data=mvtec", "data.root=new", "data.category=bottle", "data.archive=no.tar"],
            "data.archive=no.tar",
        ),
        "sample folder": (["data=sample", "data.category=cable", "data.root=a_file"], "data.root=a_file"),
        "attempts": (["attempt=[base,cosine]"], "attempt takes one name"),
        "source": (["task=predict", "ckpt=missing.ckpt", "source=nowhere"], "missing.ckpt"),
        "ckpt": (["task=evaluate", "ckpt=missing.ckpt"], "missing.ckpt"),
        "no ckpt": (["task=predict"], "task=predict needs ckpt=FILE"),
    }


BAD = [
    "category", "attempt", "backbone", "stage", "stages", "optimizer", "type", "range", "epochs", "batch",
    "one-class batch", "fractions", "key",
    "task", "root", "split file", "too few", "transform", "no picture", "precision", "precision name", "device",
    "output", "weights file", "ckpt", "no ckpt", "group", "devices", "unknown section", "no archive", "sample folder",
    "attempts",
    "source",
]  # fmt: skip


def test_every_mistake_is_tried(product: Path, tmp_path: Path) -> None:
    assert set(bad(product, tmp_path)) == set(BAD)


def snapshot(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*")}


def refused(lab, tmp_path: Path, capsys, arguments: list[str], said: str) -> None:
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert lab(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1, error
    assert snapshot(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line_and_leaves_nothing(lab, product: Path, tmp_path: Path, capsys, name: str) -> None:
    arguments, said = bad(product, tmp_path)[name]
    refused(lab, tmp_path, capsys, arguments, said)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "category",
        "backbone",
        "attempt",
        "range",
        "root",
        "too few",
        "batch",
        "weights file",
        "output",
        "unknown section",
        "sample folder",
    ],
)
def test_a_sweep_with_a_mistake_trains_nothing(lab, product: Path, tmp_path: Path, capsys, name: str) -> None:
    arguments, said = bad(product, tmp_path)[name]
    if name == "attempt":
        arguments = ["attempt=base,finetun"]
    refused(lab, tmp_path, capsys, ["-m", *arguments], said)


def spoil(product: Path, name: str) -> None:
    image = product / "test/crack/002.png"
    match name:
        case "truncated":
            image.write_bytes(image.read_bytes()[:200])
        case "empty":
            image.write_bytes(b"")
        case "text":
            image.write_text("this is no image")
        case "enormous":  # the header of a picture of 40,000 x 40,000 pixels, and no more
            header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
            chunk = b"IHDR" + header
            image.write_bytes(
                b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
            )
        case "no test":
            shutil.rmtree(product / "test")
        case "empty class":
            [p.unlink() for p in (product / "test/crack").iterdir()]
        case "no mask":
            (product / "ground_truth/crack/002_mask.png").unlink()
        case "mask size":
            Image.new("L", (9, 9)).save(product / "ground_truth/crack/002_mask.png")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("truncated", "002.png"),
        ("empty", "002.png"),
        ("text", "002.png"),
        ("enormous", "002.png"),
        ("no test", "the split has a single class, good, and a classifier"),
        ("empty class", "crack holds no image"),
        ("no mask", "test/crack/002.png has no mask"),
        ("mask size", "002_mask.png is 9 x 9"),
    ],
)
def test_a_spoilt_data_set_is_one_line_and_leaves_nothing(
    lab,
    product: Path,
    tmp_path: Path,
    capsys,
    name: str,
    said: str,
) -> None:
    spoil(product, name)
    refused(lab, tmp_path, capsys, ["data.masks=required"], said)
    refused(lab, tmp_path, capsys, ["-m", "attempt=base,cosine", "data.masks=required"], said)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_file_that_is_no_checkpoint_is_answered_before_it_is_read(lab, tmp_path: Path, capsys, monkeypatch) -> None:
    torch.save({"state_dict": {}}, tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    torch.save({"state_dict": {}}, tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False)
    for name, content, said in (
        ("cut", whole[:-30], "ckpt=cut.ckpt is incomplete, its end is missing"),
        (
            "noise",
            b"<html>404</html>",
            "ckpt=noise.ckpt is damaged or no checkpoint (it begins otherwise): give a run's best.ckpt, its",
        ),
        ("empty", b"", "ckpt=empty.ckpt is damaged or no checkpoint (it is empty)"),
        ("legacy", (tmp_path / "legacy.ckpt").read_bytes(), "ckpt=legacy.ckpt is damaged or no checkpoint"),
    ):
        (tmp_path / f"{name}.ckpt").write_bytes(content)
        with monkeypatch.context() as patch:
            patch.setattr("mvtec_lab.job.function_of", lambda task: pytest.fail(f"{task} was imported"))
            refused(lab, tmp_path, capsys, ["task=evaluate", f"ckpt={name}.ckpt"], said)
    (tmp_path / "noise.pth").write_text("<html>404</html>")
    check_file(tmp_path / "legacy.ckpt", "model.weights")  # which PyTorch reads
    with monkeypatch.context() as patch:
        patch.setattr("mvtec_lab.job.function_of", lambda task: pytest.fail(f"{task} was imported"))
        refused(lab, tmp_path, capsys, ["model.weights=noise.pth"], "model.weights=noise.pth is damaged or was not")


@pytest.mark.slow
def test_checkpoints_that_are_none(lab, product: Path, tmp_path: Path, capsys) -> None:
    assert lab("hydra.run.dir=run") == 0
    good = (tmp_path / "run/best.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(good[: len(good) // 2])
    (tmp_path / "noise.ckpt").write_bytes(b"not a checkpoint")
    (tmp_path / "bomb.ckpt").write_bytes(pickle.dumps(Bomb()))
    torch.save({"hyper_parameters": Bomb(), "state_dict": {}}, tmp_path / "bomb2.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    for name in ("cut", "noise", "bomb", "bomb2", "other"):
        refused(lab, tmp_path, capsys, ["task=evaluate", f"ckpt={name}.ckpt"], f"{name}.ckpt")
    assert not (tmp_path / "exploded").exists()
    write_product(tmp_path / "products/gadget", {"good": 6, "scratch": 6})
    arguments = ["task=evaluate", "ckpt=run/best.ckpt", f"data.root={tmp_path / 'products/gadget'}"]
    refused(lab, tmp_path, capsys, arguments, "knows the classes good, crack, hole, but")


def test_the_remedy_of_other_class_names_is_the_setting_that_lacks() -> None:
    assert evaluate.remedy(["good", "schlecht"], ["gut", "schlecht"]).startswith("give data.good=[gut], the folder of")
    assert evaluate.remedy(["good", "crack"], ["a", "b"]).startswith("give data.good=[NAME], the folder of")
    assert evaluate.remedy(["good", "defect"], ["good", "crack"]).startswith("give data.defects=merged, as it learnt")
    assert "split= settings" in evaluate.remedy(["good", "crack"], ["good", "scratch"])


def test_weights_that_cannot_be_fetched(lab, tmp_path: Path, capsys, monkeypatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setattr("mvtec_lab.models.weights._unreachable", {})
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)  # torch.hub makes it in any case
    wanted = ["model.backbone=squeezenet1_1", "data.image_size=32", "model.weights=DEFAULT"]
    for many in ([], ["-m"]):
        refused(lab, tmp_path, capsys, [*many, *wanted], "or model.weights=null for random weights")


def test_tasks_do_not_write_into_a_run(lab, product: Path, tmp_path: Path, capsys) -> None:
    assert lab("hydra.run.dir=run") == 0
    for task in (
        ["evaluate", "ckpt=run/best.ckpt"],
        ["predict", "ckpt=run/best.ckpt", f"source={product}"],
        ["describe"],
    ):
        arguments = [f"task={task[0]}", *task[1:], "hydra.run.dir=run"]
        refused(lab, tmp_path, capsys, arguments, "run holds another run")


def test_describe_reports_what_would_stop_a_training(lab, product: Path, tmp_path: Path, capsys) -> None:
    spoil(product, "truncated")
    (product / "test/crack/003.png").write_bytes(b"")
    for image in (product / "test/good").iterdir():
        image.write_text("no image")  # a whole class of them
    for image in list((product / "test/hole").iterdir())[2:]:
        image.unlink()
    assert lab("task=describe", "hydra.run.dir=d") == 0
    facts = json.loads((tmp_path / "d/dataset.json").read_text())
    for broken in ("crack/002.png", "crack/003.png", "good/009.png"):
        assert any(broken in warning for warning in facts["warnings"]), broken
    assert any("no split: class 'hole' has 2 image(s)" in warning for warning in facts["warnings"])
    assert facts["classes"] == ["good", "crack", "hole"]


def test_full_error_shows_the_traceback(lab, capsys, monkeypatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert lab("data.root=/no/such/folder") == 2
    assert "Traceback" in capsys.readouterr().err
