"""YOLO-World: texts, what is missing, a process that is left as it was; and, where ultralytics is installed, a run."""

from __future__ import annotations

import os
import random
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mvtec_lab.composing import settle
from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.errors import LabError
from mvtec_lab.problems import check
from mvtec_lab.problems.detection.methods import yolo_world
from mvtec_lab.problems.detection.methods.yolo_world.__main__ import main
from mvtec_lab.problems.detection.methods.yolo_world.guest import guest
from mvtec_lab.problems.detection.methods.yolo_world.texts import DIM, read_embeddings, stand_ins, write_embeddings
from mvtec_lab.problems.detection.methods.yolo_world.training import in_vain, settings, write_split
from mvtec_lab.problems.model import load_model
from mvtec_lab.tasks.train import run_attempt

installed = pytest.mark.skipif(find_spec(yolo_world.PACKAGE) is None, reason="ultralytics is not installed")
CLASSES = ["crack", "hole"]


def config(**changes: object) -> Config:
    made = Config()
    made.model.method, made.model.backbone, made.data.image_size = "yolo_world", "resnet18", 96
    for key, value in changes.items():
        section, _, name = key.partition("__")
        setattr(getattr(made, section), name, value)
    return made


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An ultralytics that does to the process what the real one does, and more."""
    (tmp_path / "ultralytics.py").write_text(
        "import logging, os, random, warnings\n"
        "import cv2, numpy as np, torch\n"
        "assert os.environ['YOLO_OFFLINE'] == '1' and os.environ['YOLO_AUTOINSTALL'] == '0'\n"
        "log = logging.getLogger('ultralytics')\n"
        "log.setLevel(logging.INFO)\n"
        "log.info('new settings')\n"
        "os.environ['KINETO_LOG_LEVEL'] = '5'\n"
        "torch.save = None\n"
        "cv2.setNumThreads(1)\n"
        "np.set_printoptions(precision=3)\n"
        "torch.set_printoptions(linewidth=320)\n"
        "torch.serialization.add_safe_globals([random.Random])\n"
        "torch.use_deterministic_algorithms(True)\n"
        "torch.manual_seed(0); random.seed(0); np.random.seed(0)\n"
        "warnings.filterwarnings('ignore')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "ultralytics"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    sys.modules.pop("ultralytics", None)


def test_the_process_is_left_as_it_was(pretended: None, caplog: pytest.LogCaptureFixture) -> None:
    def state() -> list[object]:
        drawn = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
        printed = str(torch.rand(50)), str(np.linspace(0, 1, 3) / 3)
        torch.set_rng_state(torch.tensor(drawn[0], dtype=torch.uint8))
        flags = torch.are_deterministic_algorithms_enabled(), cv2.getNumThreads()
        return [dict(os.environ), torch.save, set(torch.serialization.get_safe_globals()), drawn, printed, flags]

    cv2.setNumThreads(3)
    before = state()
    with guest():
        import ultralytics  # noqa: F401

        assert torch.save is None
    assert state() == before
    assert not caplog.records


def test_a_missing_package_is_one_line_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yolo_world, "find_spec", lambda name: None)
    with pytest.raises(LabError, match=r"AGPL-3.0.*pip install .*--no-deps ultralytics==") as caught:
        check(config())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__image_size": 100}, "multiple of 32"),
        ({"data__image_size": 32}, "from 64 on"),
        ({"augment__transforms": {"HorizontalFlip": {}}}, "leave out augment"),
        ({"scheduler__name": "plateau"}, "none, cosine"),
        ({"trainer__precision": "bf16-mixed"}, "trains in 32 bits"),
        ({"model__options": {"size": "n"}}, "size"),
    ],
)
def test_settings_that_ultralytics_cannot_follow_are_refused(
    changes: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yolo_world, "find_spec", lambda name: True)
    check(config())
    with pytest.raises(LabError, match=said):
        check(config(**changes))


def test_weights_of_its_own_are_given_as_those_of_a_backbone_are(
    lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yolo_world, "find_spec", lambda name: True)
    monkeypatch.chdir(tmp_path)
    torch.save({}, "world.pt")
    method = ["task=describe", "attempt=detect/yolo_world", "model.method=yolo_world", "data.image_size=64"]
    assert lab(*method, "model.weights=world.pt") == 0
    assert settle(config(model__weights="world.pt"), {"model.weights": "world.pt"}) == {"model.weights": "world.pt"}
    for refused in ([*method, "model.backbone=resnet50"], ["task=describe", "attempt=vae", "model.weights=world.pt"]):
        assert lab(*refused) == 2
        assert f"error: {refused[-1]} does nothing for" in capsys.readouterr().err


def test_text_embeddings_belong_to_this_method_alone() -> None:
    made = Config()
    made.model.text_embeddings = "texts.npz"
    with pytest.raises(LabError, match=r"model.text_embeddings=texts.npz does nothing .*yolo_world"):
        check(made)


def test_embeddings_are_found_by_name_whatever_their_order(tmp_path: Path) -> None:
    vectors = dict(zip(["hole", "other/with slash", "crack"], stand_ins(["a", "b", "c"]), strict=True))
    write_embeddings(tmp_path / "texts.npz", {name: 3 * vector for name, vector in vectors.items()})
    read = read_embeddings(tmp_path / "texts.npz", CLASSES)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, [vectors["crack"], vectors["hole"]], atol=1e-6)


def write(path: Path, names: object = CLASSES, embeddings: object = None) -> Path:
    np.savez(path, names=np.array(names), embeddings=stand_ins(CLASSES) if embeddings is None else embeddings)
    return path


@pytest.mark.parametrize(
    ("names", "embeddings", "said"),
    [
        (["crack", "dent"], None, "no embedding of 'hole', only of crack, dent"),
        (["crack", "crack"], None, "twice"),
        (CLASSES, np.ones((2, 7), np.float32), r"\[2, 7\]"),
        (CLASSES, 2 * stand_ins(CLASSES), "has length 2, not 1"),
        (CLASSES, np.full((2, DIM), np.nan, np.float32), "has length nan"),
        ([1, 2], None, "texts"),
    ],
)
def test_a_wrong_file_of_embeddings_is_one_line(tmp_path: Path, names: object, embeddings: object, said: str) -> None:
    path = write(tmp_path / "texts.npz", names, embeddings)
    with pytest.raises(LabError, match=said) as caught:
        read_embeddings(path, CLASSES)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_missing_or_damaged_file_of_embeddings_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "texts.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LabError, match=r"texts.npz .*makes one"):
        read_embeddings(path, CLASSES)


def test_a_pickle_in_a_file_of_embeddings_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "texts.npz", names=np.array(CLASSES, dtype=object), embeddings=stand_ins(CLASSES))
    with pytest.raises(LabError, match=r"is no \.npz"):
        read_embeddings(tmp_path / "texts.npz", CLASSES)


def test_stand_ins_are_fixed_of_length_one_and_apart() -> None:
    vectors = stand_ins(["a/b", "a/c", "hole"])
    np.testing.assert_array_equal(vectors[2:], stand_ins(["hole"]))
    assert np.abs(vectors @ vectors.T - np.eye(3)).max() < 0.2


def test_the_command_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert main([str(tmp_path / "texts.npz"), "crack"]) == 2
    assert "pip install open-clip-torch" in capsys.readouterr().err
    assert main([str(tmp_path / "crack"), "hole"]) == 2
    assert "is no .npz" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_writes_what_a_run_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def embed(texts: list[str], weights: str) -> np.ndarray:
        asked.extend(texts)
        return stand_ins(texts)

    monkeypatch.setattr("mvtec_lab.problems.detection.methods.yolo_world.__main__.embed", embed)
    assert main([str(tmp_path / "texts.npz"), "broken_large", "hole=a hole in glass"]) == 0
    assert asked == ["broken large", "a hole in glass"]
    read = read_embeddings(tmp_path / "texts.npz", ["hole", "broken_large"])
    np.testing.assert_allclose(read, stand_ins(asked)[::-1], atol=1e-6)


def test_ultralytics_sees_the_images_and_boxes_of_train_and_val_alone(product: Path, tmp_path: Path) -> None:
    data = MVTecDataModule(product, image_size=64, targets=("boxes",))
    data.setup()
    folder = tmp_path / "yolo"
    folder.mkdir()
    counts = write_split(folder, data)
    assert counts == {split: len(data.of_split(split)) for split in ("train", "val")}
    assert sorted(path.name for path in (folder / "images").iterdir()) == ["train", "val"]
    for split in ("train", "val"):
        dataset = data.images(data.of_split(split))
        pictures = [cv2.imread(str(path))[..., ::-1] for path in sorted((folder / "images" / split).iterdir())]
        labels = [path.read_text().split("\n")[:-1] for path in sorted((folder / "labels" / split).iterdir())]
        for place in range(len(dataset)):
            item = dataset[place]
            np.testing.assert_array_equal(pictures[place], dataset.picture(place))
            rows = np.array([[float(word) for word in row.split()] for row in labels[place]]).reshape(-1, 5)
            centre, size = rows[:, 1:3] * 64, rows[:, 3:] * 64
            np.testing.assert_allclose(np.hstack([centre - size / 2, centre + size / 2]), item["boxes"], atol=1e-3)
            np.testing.assert_array_equal(rows[:, 0] + 1, item["labels"])


def test_the_configuration_reaches_ultralytics() -> None:
    made = config(optimizer__name="adamw", optimizer__lr=0.002, scheduler__name="cosine", data__batch_size=4)
    told = settings(made)
    assert (told["optimizer"], told["lr0"], told["batch"], told["nbs"], told["imgsz"]) == ("AdamW", 0.002, 4, 4, 96)
    assert (told["cos_lr"], told["lrf"]) == (True, 0.0)
    assert settings(config())["lrf"] == 1.0  # scheduler=none: it stays


def test_training_stops_by_what_chooses_the_epoch() -> None:
    assert [in_vain([0.0, 0.2, 0.1, 0.2], patience) for patience in (None, 1, 2, 3)] == [False, True, True, False]
    assert not in_vain([0.1, 0.2], 1)


@installed
@pytest.mark.slow
def test_a_run_by_ultralytics_is_a_run_of_the_lab(product: Path, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "texts.npz", dict(zip(["hole", "crack"], stand_ins(["one", "two"]), strict=True)))
    made = config(data__image_size=64, data__batch_size=4, model__weights=None, optimizer__name="adamw")
    made.data.name, made.data.root, made.data.category = "folder", str(product.parent), product.name
    made.trainer.max_epochs, made.cache.dir = 1, None
    made.model.text_embeddings = str(tmp_path / "texts.npz")
    before = dict(os.environ), torch.save, torch.are_deterministic_algorithms_enabled()
    results = [run_attempt(made, tmp_path / name) for name in ("first", "second")]
    assert (dict(os.environ), torch.save, torch.are_deterministic_algorithms_enabled()) == before
    first, second = results
    assert first.metrics == second.metrics
    assert (first.epochs, first.weights, first.problem) == (1, "random", "detection")
    assert isinstance(first.metrics["test"]["map50"], float)
    assert [line.split()[0] for line in first.warnings[-2:]] == ["random", "ultralytics"]
    assert len((tmp_path / "first/history.csv").read_text().splitlines()) == 2
    (tmp_path / "texts.npz").unlink()  # the checkpoint does without it
    models = [load_model(tmp_path / name / "best.ckpt").module for name in ("first", "second")]
    np.testing.assert_allclose(models[0].text[0], stand_ins(["two", "one"]), atol=1e-6)  # crack, hole
    for one, other in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert not (tmp_path / "first/last.ckpt").exists()


@installed
@pytest.mark.slow
def test_weights_are_read_from_a_file_of_ultralytics_and_nothing_in_it_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    with guest():
        from mvtec_lab.problems.detection.methods.yolo_world import network

        texts = [torch.from_numpy(stand_ins([str(i) for i in range(count)]))[None] for count in (80, 2)]
        published, own = (network.build(network.plan_of("s"), text) for text in texts)
        larger = network.build(network.plan_of("m"), texts[1])
        torch.save({"model": published}, tmp_path / "world.pt")
        torch.save({"model": Evil()}, tmp_path / "evil.pt")
        network.load(own, tmp_path / "world.pt")
        for key, value in own.state_dict().items():
            assert torch.equal(value, published.state_dict()[key])
        with pytest.raises(LabError, match=r"another network than yolov8m.*model.options.size"):
            network.load(larger, tmp_path / "world.pt")
        for name in ("evil.pt", "missing.pt"):
            with pytest.raises(LabError, match=rf"{name} is no checkpoint of YOLO-World"):
                network.load(own, tmp_path / name)
    assert not (tmp_path / "ran").exists()


@installed
@pytest.mark.slow
def test_an_image_that_ultralytics_leaves_out_is_an_error(product: Path, tmp_path: Path) -> None:
    data = MVTecDataModule(product, image_size=64, targets=("boxes",))
    data.setup()
    images = write_split(tmp_path, data)
    next((tmp_path / "labels/train").iterdir()).write_text("0 2 0.5 0.1 0.1\n")
    with guest():
        from mvtec_lab.problems.detection.methods.yolo_world import network

        net = network.build(network.plan_of("s"), torch.from_numpy(stand_ins(CLASSES))[None])
        told = settings(config(data__image_size=64))
        loop = network.FineTuning(net, tmp_path, images, torch.device("cpu"), lambda _: False, **told)
        with pytest.raises(LabError, match=rf"{images['train'] - 1} of {images['train']} images of train"):
            loop.train()
