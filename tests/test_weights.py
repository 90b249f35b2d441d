"""Weights by entry, by file and none; no network is needed, and none is used where there is one."""

from __future__ import annotations

import gc
import os
import pickle
import socket
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import _api
from torchvision.transforms._presets import ImageClassification

from mvtec_lab.config import SAMPLE_BACKBONE
from mvtec_lab.engine import process
from mvtec_lab.errors import LabError
from mvtec_lab.models import backbones
from mvtec_lab.models.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SAMPLE_FILE,
    WeightsUnavailable,
    load_file,
    load_weights,
)

build: Any = backbones.build  # children by name are no news to a type checker
HALF = (0.5, 0.5, 0.5)
PUBLISHED = "squeezenet1_1-b8a52dc0.pth"  # TorchVision's smallest file, 5 MB


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which TorchVision looks, empty; a fetch fails as it does without a network."""

    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setattr("mvtec_lab.models.weights._unreachable", {})
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def state_dict(backbone: str = "squeezenet1_1", **options: int) -> dict[str, torch.Tensor]:
    return models.get_model(backbone, **options).state_dict()


@pytest.mark.parametrize("weights", [None, "null"])
def test_random(weights: str | None) -> None:
    loaded = load_weights("resnet18", weights)
    assert (loaded.name, loaded.mean, loaded.std, loaded.state_dict) == ("random", IMAGENET_MEAN, IMAGENET_STD, None)


@pytest.mark.parametrize("weights", ["DEFAULT", "default", "IMAGENET1K_V1", "imagenet1k_v1"])
def test_an_entry_in_torch_home(checkpoints: Path, weights: str, caplog: pytest.LogCaptureFixture) -> None:
    state = state_dict()
    torch.save(state, checkpoints / PUBLISHED)
    loaded = load_weights("squeezenet1_1", weights)
    assert (loaded.name, loaded.mean, loaded.std) == ("IMAGENET1K_V1", IMAGENET_MEAN, IMAGENET_STD)
    model = build("squeezenet1_1", 3, weights=loaded.state_dict)
    assert torch.equal(next(model.parameters()), state["features.0.weight"])
    # TorchVision does not check a file that it did not fetch itself.
    assert "is not the file that TorchVision published" in caplog.text


def test_the_normalisation_comes_from_the_entry(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnWeights(models.WeightsEnum):
        MINE = models.Weights("https://x/own.pth", partial(ImageClassification, crop_size=8, mean=HALF, std=HALF), {})
        DEFAULT = MINE

    def own(*, weights: OwnWeights | None = None) -> nn.Module:
        return models.squeezenet1_1()

    own.__annotations__["weights"] = OwnWeights
    monkeypatch.setattr(_api, "BUILTIN_MODELS", _api.BUILTIN_MODELS | {"own": own})
    torch.save(state_dict(), checkpoints / "own.pth")
    loaded = load_weights("own", "DEFAULT")
    assert (loaded.name, loaded.mean, loaded.std) == ("MINE", HALF, HALF)
    assert load_weights("own", str(checkpoints / "own.pth")).mean == HALF


def test_an_entry_that_cannot_be_fetched(checkpoints: Path) -> None:
    with pytest.raises(WeightsUnavailable) as caught:
        load_weights("squeezenet1_1", "DEFAULT")
    message = str(caught.value)
    assert "\n" not in message
    for part in (PUBLISHED, str(checkpoints), "model.weights=FILE", "model.weights=null", "Name or service not known"):
        assert part in message
    assert not list(checkpoints.iterdir())


def test_a_fetched_file_of_another_hash(checkpoints: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "other.pth")
    monkeypatch.setattr("torch.hub.urlopen", lambda _: urlopen((tmp_path / "other.pth").as_uri()))
    with pytest.raises(WeightsUnavailable, match=r'invalid hash value \(expected "b8a52dc0"'):
        load_weights("squeezenet1_1", "DEFAULT")
    assert not list(checkpoints.iterdir())


def test_a_fetch_that_failed_keeps_nothing_of_the_runs_that_asked(checkpoints: Path) -> None:
    class Features:
        pass

    def run() -> weakref.ref:
        features = Features()
        with pytest.raises(WeightsUnavailable, match="Name or service not known"):
            load_weights("squeezenet1_1", "DEFAULT")
        return weakref.ref(features)

    first, second = run(), run()
    gc.collect()
    assert first() is second() is None


def test_a_cached_entry_stands_in_for_a_default_that_cannot_be_had(checkpoints: Path) -> None:
    first = models.MobileNet_V2_Weights.IMAGENET1K_V1
    torch.manual_seed(0)
    torch.save(models.mobilenet_v2().state_dict(), checkpoints / Path(first.url).name)
    loaded = load_weights("mobilenet_v2", "DEFAULT")
    assert loaded.name == "IMAGENET1K_V1"
    assert "IMAGENET1K_V2, the default of mobilenet_v2, cannot be fetched" in (loaded.note or "")
    with pytest.raises(WeightsUnavailable):  # asked for by name, it is that one or none
        load_weights("mobilenet_v2", "IMAGENET1K_V2")


@pytest.mark.parametrize("grid", ["model.weights=gone.pth,lost.pth", "model.backbone=squeezenet1_1,alexnet"])
def test_a_sweep_names_all_weights_that_it_lacks(grid: str, checkpoints: Path, lab, tmp_path: Path, capsys) -> None:
    named = (
        ("model.weights=gone.pth does not exist", "model.weights=lost.pth does not exist")
        if "weights" in grid
        else (f"{PUBLISHED}, IMAGENET1K_V1 of squeezenet1_1, cannot be", "IMAGENET1K_V1 of alexnet, cannot be")
    )
    settings = () if "weights" in grid else ("model.weights=IMAGENET1K_V1", "data.image_size=64")
    assert lab("-m", "attempt=base,cosine", *settings, grid, "hydra.sweep.dir=sweep") == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert error.startswith("error: 2 files of weights are missing: ")
    for what in named:
        assert error.count(what) == 1
    assert not (tmp_path / "sweep").exists()


def test_a_silent_server_is_given_up(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SILENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:  # it lets a client connect and says nothing
        port = server.getsockname()[1]
        monkeypatch.setattr("torch.hub.urlopen", lambda _: urlopen(f"http://127.0.0.1:{port}/"))
        with process.command_line_settings(), pytest.raises(WeightsUnavailable, match="timed out"):
            load_weights("squeezenet1_1", "DEFAULT")
    assert socket.getdefaulttimeout() is None


def test_a_damaged_file_in_torch_home(checkpoints: Path) -> None:
    (checkpoints / PUBLISHED).write_bytes(b"half a download")
    with pytest.raises(LabError, match=f"{PUBLISHED} is damaged") as caught:
        load_weights("squeezenet1_1", "DEFAULT")
    assert not isinstance(caught.value, WeightsUnavailable)


def test_the_samples_own_come_with_the_package(checkpoints: Path) -> None:
    assert SAMPLE_FILE.stat().st_size < 6e6
    for name in ("SAMPLE_V1", "sample_v1"):
        loaded = load_weights(SAMPLE_BACKBONE, name)
        assert (loaded.name, loaded.mean, loaded.std) == ("SAMPLE_V1", IMAGENET_MEAN, IMAGENET_STD)
        assert "drawn pictures of invented products" in (loaded.note or "")
        assert loaded.state_dict is not None
        assert {value.dtype for value in loaded.state_dict.values()} == {torch.float32, torch.int64}
        model = build(SAMPLE_BACKBONE, 3, weights=loaded.state_dict)
        assert torch.equal(next(model.parameters()), next(iter(loaded.state_dict.values())))
    assert list(checkpoints.iterdir()) == []
    with pytest.raises(LabError, match=rf"SAMPLE_V1 is for {SAMPLE_BACKBONE}, not for resnet18: give model.backbone"):
        load_weights("resnet18", "SAMPLE_V1")
    with pytest.raises(LabError, match=r"unknown weights of .*known are IMAGENET1K_V1, SAMPLE_V1"):
        load_weights(SAMPLE_BACKBONE, "SIMPLE")
    with pytest.raises(LabError, match=r"known are IMAGENET1K_V1$"):
        load_weights("resnet18", "SIMPLE")


def test_unknown_names() -> None:
    with pytest.raises(LabError, match=r"unknown weights of resnet50 'IMAGENET1K_V3': .*IMAGENET1K_V1, IMAGENET1K_V2"):
        load_weights("resnet50", "IMAGENET1K_V3")
    with pytest.raises(LabError, match="unknown backbone 'resnet5': did you mean resnet50"):
        load_weights("resnet5", "DEFAULT")


def test_a_registered_model_has_no_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_api, "BUILTIN_MODELS", _api.BUILTIN_MODELS | {"own": lambda: models.squeezenet1_1()})
    with pytest.raises(WeightsUnavailable, match=r"no weights for own, so no DEFAULT: .*FILE, or model.weights=null"):
        load_weights("own", "DEFAULT")


@pytest.mark.parametrize("name", ["mine.pth", "mine.pt", "folder/mine", "mine"])
def test_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    state = state_dict("shufflenet_v2_x0_5", num_classes=7)
    torch.save(state, name)
    loaded = load_weights("shufflenet_v2_x0_5", name)
    assert (loaded.name, loaded.mean) == (f"file:{Path(name).name}", IMAGENET_MEAN)
    model = build("shufflenet_v2_x0_5", 3, weights=loaded.state_dict)
    assert torch.equal(model.stage4.conv5[0].weight, state["conv5.0.weight"])
    assert torch.equal(model.stage4.conv5[1].running_var, state["conv5.1.running_var"])
    assert model.head[-1].weight.shape == (3, 1024)


class Executes:
    """A pickle that would write a file where it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("save", ["torch.save", "pickle"])
def test_a_file_that_would_run_code(save: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    if save == "pickle":
        path.write_bytes(pickle.dumps(Executes(trace), protocol=2))
    else:
        torch.save({"features.0.weight": Executes(trace)}, path)
    with pytest.raises(LabError, match=r"evil.pth was refused, it would run \w+.system") as caught:
        load_weights("squeezenet1_1", str(path))
    assert not trace.exists()
    assert "\n" not in str(caught.value)


def truncated(path: Path) -> None:
    torch.save(state_dict(), path)
    path.write_bytes(path.read_bytes()[:100_000])


def flipped(path: Path) -> None:
    torch.save(state_dict(), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in the values, which are nearly all of it
    path.write_bytes(content)


def with_nan(path: Path) -> None:
    state = state_dict()
    state["features.3.squeeze.bias"][0] = float("nan")
    torch.save(state, path)


@pytest.mark.parametrize(
    ("write", "answer"),
    [
        (lambda path: None, "mine.pth cannot be read .No such file or directory."),
        (lambda path: path.mkdir(), "mine.pth is a folder, a pipe or another special file"),
        (lambda path: path.touch(), "mine.pth is damaged or was not written by PyTorch"),
        (lambda path: path.write_text("these are no weights"), "mine.pth is damaged or was not written by PyTorch"),
        (lambda path: path.write_text("text, again"), "mine.pth is damaged or was not written by PyTorch"),
        (truncated, "model.weights=.*mine.pth is incomplete, its end is missing"),
        (flipped, "mine.pth is damaged .*the checksum of .* does not match.*: copy or fetch it again, or train"),
        (lambda path: torch.save(models.squeezenet1_1(), path), "would run torchvision.models.squeezenet.SqueezeNet"),
        (lambda path: torch.save([1], path), "mine.pth is not a state dict"),
        (lambda path: torch.save({1: 2}, path), "mine.pth is not a state dict"),
        (lambda path: torch.save({"epoch": 1, "state_dict": {}}, path), "mine.pth .* it lacks features.0.weight"),
        (lambda path: torch.save(state_dict("squeezenet1_0"), path), "mine.pth .* size mismatch for features.0.weight"),
        (lambda path: torch.save(state_dict() | {"features.0.weight": 3}, path), 'mine.pth .* "features.0.weight"'),
        (with_nan, "mine.pth holds NaN or infinity in features.3.squeeze.bias"),
    ],
)
def test_a_bad_file(write: Callable[[Path], None], answer: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    write(path)
    with pytest.raises(LabError, match=answer) as caught:
        load_weights("squeezenet1_1", str(path))
    assert "\n" not in str(caught.value)


def test_load_file_reads_plain_values(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "classes": ["good", "hole"], "state": {"a": torch.ones(2)}}, tmp_path / "a.ckpt")
    assert load_file(tmp_path / "a.ckpt")["classes"] == ["good", "hole"]


def test_the_published_mobilenet_v2() -> None:
    entry = models.MobileNet_V2_Weights.IMAGENET1K_V1
    if not (Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name).exists():
        pytest.skip("TORCH_HOME does not hold mobilenet_v2's published weights")
    model = build("mobilenet_v2", 1000, weights=load_weights("mobilenet_v2", "IMAGENET1K_V1").state_dict).eval()
    original = models.mobilenet_v2(weights=entry).eval()
    model.head[-1].load_state_dict(original.classifier[-1].state_dict())
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(images), original(images))
