"""What a GPU alone can show: mixed precision, arrays in its memory, and agreement with the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ONE_CLASS_METHODS, write_product

from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.problems import METHODS
from mvtec_lab.problems.anomaly import judging
from mvtec_lab.problems.classification.classifier import DefectClassifier
from mvtec_lab.results import RunResult, read_csv

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use"),
]
GPU = "trainer.accelerator=gpu"
LAYERS = "model.options.layers=[features.relu1,features.relu2]"


def values(folder: Path, columns: str) -> np.ndarray:
    """Return some columns of a run's predictions.csv for the test images, [N, columns], by path."""
    rows = sorted(read_csv(folder / "predictions.csv"), key=lambda row: row["path"])
    kept = [[float(v) for k, v in row.items() if k.startswith(columns)] for row in rows if row["split"] == "test"]
    assert kept
    assert kept[0]
    return np.array(kept)


def test_a_run_is_mixed_and_its_arrays_lie_on_the_gpu(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[dict[str, torch.Tensor]] = []
    loaders = []
    step, loader = DefectClassifier.training_step, MVTecDataModule._loader

    def noted(self: Any, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        batches.append(batch)
        return step(self, batch, batch_idx)

    def seen(self: Any, *args: Any) -> Any:
        loaders.append(loader(self, *args))
        return loaders[-1]

    monkeypatch.setattr(DefectClassifier, "training_step", noted)
    monkeypatch.setattr(MVTecDataModule, "_loader", seen)
    assert lab("attempt=finetune", GPU, "hydra.run.dir=run") == 0
    result = RunResult.load("run")
    assert result.device == "cuda:0"
    assert result.precision == ("bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed")
    assert all(batch["features"].is_cuda for batch in batches)
    first = next(iter(loaders[0]))  # before Lightning moves it
    assert first["features"].is_cuda


def test_mixed_precision_and_32_bits_agree(lab) -> None:
    for name, more in {"mixed": [GPU], "full": [GPU, "trainer.precision=32"], "cpu": []}.items():
        assert lab("attempt=finetune", "seed=1", f"hydra.run.dir={name}", *more) == 0
    mixed, full, cpu = (values(Path(name), "prob_") for name in ("mixed", "full", "cpu"))
    np.testing.assert_allclose(full, cpu, atol=2e-3)  # TensorFloat-32 in convolutions: ten bits of mantissa
    np.testing.assert_allclose(mixed, full, atol=2e-2)  # bfloat16: seven


def test_two_runs_are_equal(lab) -> None:
    for name in ("one", "two"):
        assert lab("attempt=full", "augment=standard", GPU, f"hydra.run.dir={name}") == 0
    assert Path("one/predictions.csv").read_text() == Path("two/predictions.csv").read_text()


def test_a_stopped_run_ends_as_if_it_had_not_been(resumed) -> None:
    resumed(DefectClassifier, 3, "attempt=finetune", "trainer.max_epochs=5", GPU)


def test_what_was_trained_on_a_gpu_serves_without_one(lab, product: Path) -> None:
    assert lab("attempt=finetune", GPU, "hydra.run.dir=run") == 0
    compare_on_cpu(lab, "prob_", 2e-2)  # the run itself judges in mixed precision
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test/crack'}", "hydra.run.dir=new") == 0
    pytest.importorskip("onnxscript")
    assert lab("task=export", "ckpt=run/best.ckpt", "hydra.run.dir=exported") == 0
    assert list(Path("exported").glob("*.onnx"))


@pytest.mark.parametrize("attempt", ONE_CLASS_METHODS)
def test_an_anomaly_model_fits_and_scores_there(attempt: str, lab, product: Path) -> None:
    write_product(product, train_good=12)
    layers = [LAYERS] if "layers" in METHODS[attempt].options else []
    settings = (f"attempt={attempt}", "data.image_size=32", "optimizer.lr=0.001", *layers)
    if not METHODS[attempt].trains:
        settings = tuple(word for word in settings if not word.startswith("optimizer"))
    assert lab(*settings, GPU, "hydra.run.dir=run") == 0
    result = RunResult.load("run")
    assert result.device == "cuda:0"
    compare_on_cpu(lab, "score")
    if not result.luck:  # nothing is drawn: fitted on the CPU it is the same model
        assert lab(*settings, "hydra.run.dir=cpu") == 0
        there, here = (values(Path(name), "score") for name in ("run", "cpu"))
        np.testing.assert_allclose(there, here, rtol=1e-3, atol=2e-2 * np.ptp(here))


def test_an_anomaly_model_warms_up_before_its_clock_runs(lab, product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image's seconds held those of the kernels' first use: 75 ms in place of 2 with STFPM on an H200."""
    calls = []
    for name in ("warm_up", "score"):
        real = getattr(judging, name)
        monkeypatch.setattr(judging, name, lambda *a, n=name, f=real, **k: (calls.append(n), f(*a, **k))[1])
    write_product(product, train_good=12)
    assert lab("attempt=patchcore", LAYERS, "data.image_size=32", GPU, "hydra.run.dir=run") == 0
    assert calls[:2] == ["warm_up", "score"]


def compare_on_cpu(lab, column: str, tolerance: float = 0.0) -> None:
    """Judge the run again on the CPU, as task=evaluate does, and compare what it says of the test images."""
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=here") == 0
    there, here = (values(Path(name), column) for name in ("run", "here"))
    np.testing.assert_allclose(there, here, rtol=1e-3, atol=tolerance or 2e-2 * np.ptp(here))
