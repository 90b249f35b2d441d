"""What a script or a notebook needs is exported by mvtec_lab itself, and raises what the command line prints."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SIZE
from matplotlib.figure import Figure

import mvtec_lab as lab

ROOT = Path(__file__).resolve().parents[1]
Tiny = Callable[..., list[str]]


@pytest.fixture
def tiny(tiny_net: str, product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Settings of tiny images, or those of a tiny training as well."""
    monkeypatch.chdir(tmp_path)
    data = ["data=folder", f"data.root={product}"]
    network = [f"model.backbone={tiny_net}", "model.weights=null", f"data.image_size={SIZE}", "trainer.max_epochs=2"]
    return lambda trains=True: data + network * trains


@pytest.mark.slow
def test_a_script_of_thirty_lines(tiny: Tiny, product: Path, tmp_path: Path, capsys) -> None:
    comparison = lab.run_sweep("attempt=base,full", "seed=0,1", "split.seed=0", *tiny(), directory="outputs/s w=1")
    assert [attempt.name for attempt in comparison.attempts] == ["base", "full"]
    assert comparison.best in ("base", "full")
    assert comparison.verdict[0] in " ".join(capsys.readouterr().out.split())

    run, _ = lab.best_run("outputs/s w=1")
    assert run.attempt == comparison.best
    model = lab.load_model(Path(run.run_dir, "best.ckpt"))
    image = lab.resize(lab.read_image(product / "test/hole/000.png"), model.frame)
    logits = model.module(lab.normalise(image, model.mean, model.std)[None])
    assert logits.shape == (1, len(model.classes))

    judged = lab.run_task("task=evaluate", "ckpt=outputs/s w=1", directory="judged")
    assert judged["metrics"] == run.metrics  # on the run's own data, which nobody named
    rows = lab.run_task("task=predict", f"ckpt={run.run_dir}", f"source={product / 'test/hole'}", directory="new")
    assert len(rows) == 6
    assert lab.run_task("task=describe", *tiny(False), directory="d")["classes"] == model.classes
    assert lab.run_task("attempt=head", *tiny(), directory="outputs/single").attempt == "head"

    runs = lab.load_runs("outputs")
    again = lab.compare(runs, lab.VerdictConfig(metric="macro_f1", reference="head"))
    assert len(runs) == 5
    assert again.reference == "head"
    lab.print_table(lab.summarise(again), again.verdict)
    rows = [row for row in lab.read_csv(f"{run.run_dir}/predictions.csv") if row["split"] == "test"]
    places = [[model.classes.index(row[key]) for row in rows] for key in ("label", "prediction")]
    counts = lab.confusion(*places, len(model.classes))
    assert counts.sum() == len(rows)
    assert isinstance(lab.confusion_figure(counts, model.classes), Figure)
    assert lab.sheet([image], ["a hole"], [None]).dtype == np.uint8


@pytest.mark.slow
def test_a_mistake_is_raised(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(lab.LabError, match="unknown attempt 'bse': did you mean base"):
        lab.run_sweep("attempt=bse", *tiny(), directory="sweep")
    with pytest.raises(lab.LabError, match="does nothing for task=evaluate"):
        lab.run_task("task=evaluate", "data.white=3", directory="run")
    with pytest.raises(lab.LabError, match="ckpt=nowhere does not exist"):
        lab.run_task("task=evaluate", "ckpt=nowhere", directory="run")
    assert not (tmp_path / "sweep").exists()
    lab.run_sweep("attempt=base", *tiny(), directory="sweep")
    with pytest.raises(lab.LabError, match="sweep/base holds another run"):
        lab.run_sweep("attempt=base", *tiny(), directory="sweep")


@pytest.mark.slow
def test_a_failing_run_of_a_sweep_stands_in_its_comparison(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from mvtec_lab.problems.classification.classifier import DefectClassifier

    step = DefectClassifier.training_step

    def failing(self: DefectClassifier, *batch: object) -> object:
        if self.trainer.max_epochs == 3:
            raise RuntimeError("broken")
        return step(self, *batch)

    monkeypatch.setattr(DefectClassifier, "training_step", failing)
    words = [word for word in tiny() if "max_epochs" not in word]
    comparison = lab.run_sweep("attempt=base", "trainer.max_epochs=1,3", *words, directory="sweep")
    assert sorted(str(run.error) for attempt in comparison.attempts for run in attempt.runs) == [
        "None",
        "RuntimeError: broken",
    ]
    with pytest.raises(RuntimeError, match="broken"):
        lab.run_task("attempt=base", "trainer.max_epochs=3", *words, directory="run")


def test_a_stop_is_raised(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from mvtec_lab.problems.classification.classifier import DefectClassifier

    def stopped(self: DefectClassifier, *batch: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(DefectClassifier, "training_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        lab.run_task("attempt=base", *tiny(), directory="run")
    with pytest.raises(KeyboardInterrupt):
        lab.run_sweep("attempt=base", *tiny(), directory="sweep")


def test_every_exported_name_is_documented_and_typed() -> None:
    for name in {*lab.__all__} - {"__version__"}:
        value = getattr(lab, name)
        assert value.__doc__, name
        if not isinstance(value, type):
            hints = dict(value.__annotations__)
            assert "return" in hints, name
            assert value.__code__.co_argcount + value.__code__.co_kwonlyargcount <= len(hints) - 1, name
    source = ast.parse((ROOT / "mvtec_lab/__init__.py").read_text())
    checked = {alias.name for node in ast.walk(source) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {*lab.__all__} - {"__version__"} <= checked  # a type checker sees them as well
