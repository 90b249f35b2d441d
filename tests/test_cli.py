"""The real entry point on tiny real files: runs, sweeps and tasks."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SIZE, write_product
from PIL import Image

from mvtec_lab.cli import main
from mvtec_lab.problems.classification.classifier import DefectClassifier
from mvtec_lab.results import RunResult, find_runs, read_csv

RUN_FILES = {
    "best.ckpt", "config.yaml", "explanations.jpg", "history.csv", "last.ckpt", "mistakes.jpg", "predictions.csv",
    "result.json", "run.log", "samples.csv", "train", "val",
}  # fmt: skip


def the_sweep(folder: Path) -> Path:
    (found,) = folder.glob("outputs/*/*")
    return found


def test_a_sweep_leaves_runs_table_and_report(lab, tmp_path: Path, capsys) -> None:
    assert lab("-m", "attempt=finetune,augment,earlystop,cosine") == 0
    sweep = the_sweep(tmp_path)
    assert sorted(p.name for p in sweep.iterdir() if p.is_dir()) == ["augment", "cosine", "earlystop", "finetune"]
    for run in find_runs(sweep):
        directory = Path(run.run_dir)
        names = {p.name for p in directory.iterdir()}
        assert names - {n for n in names if n.startswith("events.")} == RUN_FILES
        assert any(n.startswith("events.") for n in names)
        assert run.completed
        assert run.error is None
        assert run.epochs == 2
        assert run.weights == "random"
        assert run.metrics["test"].keys() >= {"accuracy", "balanced_accuracy", "macro_f1", "defect_accuracy"}
        assert run.startup_seconds > 0
        assert run.total_seconds > run.startup_seconds + run.seconds
        assert re.search(r", \d+ cores?$", run.machine)
        assert run.versions["torch"] == torch.__version__.split("+")[0] or run.versions["torch"] == torch.__version__
        samples, predictions = read_csv(directory / "samples.csv"), read_csv(directory / "predictions.csv")
        assert len(samples) == 26  # every image, the unused ones as well
        held_out = {s["path"] for s in samples if s["split"] in ("val", "test")}
        assert {p["path"] for p in predictions} == held_out
        for row in predictions:
            assert sum(float(row[f"prob_{name}"]) for name in run.classes) == pytest.approx(1, abs=1e-4)
        right = [p["label"] == p["prediction"] for p in predictions if p["split"] == "test"]
        assert sum(right) / len(right) == pytest.approx(run.metrics["test"]["accuracy"])
    rows = read_csv(sweep / "summary.csv")
    assert [row["attempt"] for row in rows] == ["finetune", "augment", "earlystop", "cosine"]
    assert {row["completed"] for row in rows} == {"1"}
    assert "<html" in (sweep / "report.html").read_text()
    said = capsys.readouterr().out
    assert f"tensorboard --logdir {sweep.relative_to(tmp_path)}" in said.replace("\n", "")


def test_the_same_seed_gives_the_same_run_whatever_the_workers(lab, tmp_path: Path) -> None:
    for name, workers in (("one", 0), ("two", 0), ("three", 2)):
        assert lab("attempt=all_of_them", f"data.num_workers={workers}", "seed=7", f"hydra.run.dir={name}") == 0
    results = [RunResult.load(tmp_path / name) for name in ("one", "two", "three")]
    assert results[0].metrics == results[1].metrics == results[2].metrics
    predictions = [(tmp_path / name / "predictions.csv").read_text() for name in ("one", "two", "three")]
    assert predictions[0] == predictions[1] == predictions[2]
    assert lab("attempt=all_of_them", "seed=8", "hydra.run.dir=four") == 0
    assert (tmp_path / "four/predictions.csv").read_text() != predictions[0]


def test_training_beats_chance_on_images_that_can_be_learnt(lab, tmp_path: Path) -> None:
    assert lab("attempt=full", "trainer.max_epochs=30", "optimizer.lr=0.01", "hydra.run.dir=run") == 0
    result = RunResult.load(tmp_path / "run")
    assert result.metrics["test"]["accuracy"] > (result.majority_baseline or 1)


@pytest.mark.slow
def test_a_failing_run_stands_in_the_table_and_the_others_go_on(lab, tmp_path: Path, capsys) -> None:
    status = lab(
        "-m", "attempt=base", "optimizer.lr=1e-3,1e38", "optimizer=sgd", "model.unfreeze=all", "trainer.max_epochs=6"
    )
    assert status == 1
    runs = {Path(run.run_dir).name: run for run in find_runs(the_sweep(tmp_path))}
    assert runs["base-optimizer.lr_0.001"].completed
    failed = runs["base-optimizer.lr_1e+38"]
    assert failed.status == "failed"
    assert "TrainingDivergedError" in (failed.error or "")
    assert "in epoch" in (failed.error or "")
    rows = read_csv(the_sweep(tmp_path) / "summary.csv")
    assert [(row["completed"], row["failed"]) for row in rows] == [("1", "0"), ("0", "1")]
    assert "TrainingDivergedError" in rows[1]["error"]
    assert "TrainingDivergedError" in (Path(failed.run_dir) / "run.log").read_text()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_jobs_of_a_grid_have_directories_of_their_own(lab, tmp_path: Path) -> None:
    assert lab("-m", "attempt=base,cosine", "seed=0,1", "optimizer=adam,sgd", "trainer.max_epochs=1") == 0
    names = sorted(Path(run.run_dir).name for run in find_runs(the_sweep(tmp_path)))
    assert len(names) == 8
    assert "cosine-seed_1-optimizer_sgd" in names


def test_an_attempt_from_a_directory_of_ones_own(lab, tmp_path: Path) -> None:
    (tmp_path / "mine/attempt").mkdir(parents=True)
    (tmp_path / "mine/attempt/slow.yaml").write_text("# @package _global_\noptimizer:\n  lr: 0.0001\n")
    assert lab("attempt=slow", f"--config-dir={tmp_path / 'mine'}", "hydra.run.dir=run") == 0
    assert RunResult.load(tmp_path / "run").attempt == "slow"
    assert "lr: 0.0001" in (tmp_path / "run/config.yaml").read_text()


def test_two_runs_never_share_a_directory(lab, tmp_path: Path, capsys) -> None:
    assert lab("hydra.run.dir=run") == 0
    before = (tmp_path / "run/result.json").read_text()
    assert lab("hydra.run.dir=run", "attempt=cosine") == 2
    assert "holds another run" in capsys.readouterr().err
    assert (tmp_path / "run/result.json").read_text() == before


def test_val_is_test_is_marked(lab, tmp_path: Path, capsys) -> None:
    assert lab("split.val_is_test=true", "split.per_class=5", "hydra.run.dir=run") == 0
    result = RunResult.load(tmp_path / "run")
    assert result.val_is_test
    assert result.metrics["val"] == result.metrics["test"]
    assert "validation = test" in capsys.readouterr().out


def test_sampler_and_class_weights_together_are_a_warning(lab, tmp_path: Path) -> None:
    assert lab("data.sampler=inverse", "loss.class_weights=inverse", "hydra.run.dir=run") == 0
    assert any("both on" in warning for warning in RunResult.load(tmp_path / "run").warnings)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["cosine", "step", "onecycle", "plateau"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_optimizers_and_schedulers_run(lab, tmp_path: Path, optimizer: str, scheduler: str) -> None:
    own = {
        "step": ["scheduler.step_size=1", "scheduler.gamma=0.5"],
        "plateau": ["scheduler.patience=0", "scheduler.gamma=0.5"],
    }
    settings = [f"optimizer={optimizer}", f"scheduler={scheduler}", "trainer.max_epochs=3", *own.get(scheduler, [])]
    assert lab(*settings, "hydra.run.dir=run") == 0
    rates = [float(row["lr"]) for row in read_csv(tmp_path / "run/history.csv")]
    assert len(rates) == 3
    if scheduler != "plateau":  # which moves only once the loss stops falling
        assert len(set(rates)) > 1


@pytest.mark.parametrize(("unfreeze", "trained"), [("all", ["head", "stage2", "stage1"]), (1, ["head", "stage2"])])
def test_rates_fall_with_depth(lab, tmp_path: Path, unfreeze, trained: list[str]) -> None:
    assert lab("attempt=full_cycle", "scheduler=none", f"model.unfreeze={unfreeze}", "hydra.run.dir=run") == 0
    last = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    groups = last["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 1e-4, 1e-5][: len(trained)])
    network = DefectClassifier(**{**last["hyper_parameters"], "weights": None}).model
    assert [len(group["params"]) for group in groups] == [
        len(list(network.get_submodule(p).parameters())) for p in trained
    ]
    assert {float(row["lr"]) for row in read_csv(tmp_path / "run/history.csv")} == {1e-3}  # the head's


@pytest.mark.slow
def test_warmup_trains_the_head_first(lab, tmp_path: Path) -> None:
    def run(name: str, *settings: str) -> tuple[torch.Tensor, str]:
        assert lab("seed=3", "trainer.max_epochs=2", f"hydra.run.dir={name}", *settings) == 0
        state = torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        return state["model.stage2.3.weight"], read_csv(tmp_path / name / "history.csv")[0]["train/loss"]

    base, base_loss = run("base")
    warm, warm_loss = run("warm", "attempt=warmup", "model.warmup_epochs=1")
    tuned, tuned_loss = run("tuned", "attempt=finetune")
    assert warm_loss == base_loss != tuned_loss  # its first epoch is the base's
    assert not torch.equal(warm, base)  # then the stage moved
    assert not torch.equal(warm, tuned)


def test_earlystop_stops(lab, tmp_path: Path) -> None:
    assert (
        lab(
            "attempt=earlystop", "trainer.patience=1", "optimizer.lr=1e-9", "trainer.max_epochs=30", "hydra.run.dir=run"
        )
        == 0
    )
    assert RunResult.load(tmp_path / "run").epochs < 30


def test_describe(lab, tmp_path: Path, capsys) -> None:
    assert lab("task=describe", "hydra.run.dir=run") == 0
    facts = json.loads((tmp_path / "run/dataset.json").read_text())
    assert facts["classes"] == ["good", "crack", "hole"]
    assert facts["images_used"] == 22
    assert facts["found"] == {"train/good": 4, "test/good": 10, "test/crack": 6, "test/hole": 6}
    assert facts["dimensions"] == [{"width": SIZE, "height": SIZE, "mode": "RGB", "images": 26}]
    assert facts["mask_coverage"]["hole"]["mean"] == pytest.approx(25 / SIZE**2)
    assert facts["imbalance_ratio"] == 6 / 4
    assert Image.open(tmp_path / "run/dataset.jpg").width > 100
    assert "crack" in capsys.readouterr().out


def test_evaluate_repeats_the_run_and_predict_takes_new_images(lab, product: Path, tmp_path: Path, capsys) -> None:
    assert lab("hydra.run.dir=run") == 0
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=again") == 0
    metrics = json.loads((tmp_path / "again/metrics.json").read_text())
    run = RunResult.load(tmp_path / "run")
    assert metrics["metrics"] == run.metrics
    assert (metrics["threads"], metrics["device"]) == (run.threads, "cpu")
    chosen = "the choice of the epoch by val/balanced_accuracy"  # evaluate chooses nothing
    begun = [line.replace(chosen, "every figure of it") for line in RunResult.load(tmp_path / "run").warnings]
    assert metrics["warnings"] == begun[:-1]  # all but the random weights
    assert (tmp_path / "again/predictions.csv").read_text() == (tmp_path / "run/predictions.csv").read_text()

    assert lab("task=evaluate", "ckpt=run/best.ckpt", "seed=1", "hydra.run.dir=leak") == 0
    assert "trained this checkpoint" in (tmp_path / "leak/metrics.json").read_text()

    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test'}", "hydra.run.dir=new") == 0
    rows = {
        Path(row["path"]).relative_to(product).as_posix(): row for row in read_csv(tmp_path / "new/predictions.csv")
    }
    assert len(rows) == 22
    for row in read_csv(tmp_path / "run/predictions.csv"):  # the same image, the same probabilities
        for name in ("good", "crack", "hole"):
            assert float(rows[row["path"]][f"prob_{name}"]) == pytest.approx(float(row[f"prob_{name}"]), abs=1e-5)
    one = product / "test/good/000.png"
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={one}", "hydra.run.dir=single") == 0
    assert len(read_csv(tmp_path / "single/predictions.csv")) == 1
    assert f"judged by cpu, {run.threads} CPU thread(s)" in capsys.readouterr().err


@pytest.mark.slow
def test_backbones_are_listed(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["task=backbones"]) == 0
    said = capsys.readouterr().out
    assert "resnet18" in said
    assert "vit_b_16" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_that_cannot_begin_stands_in_the_table(lab, tmp_path: Path, monkeypatch) -> None:
    from mvtec_lab.tasks import train

    build = train.build_model

    def fail_for_cosine(config, *rest):
        if config.attempt == "cosine":
            raise RuntimeError("no memory left")
        return build(config, *rest)

    monkeypatch.setattr(train, "build_model", fail_for_cosine)
    assert lab("-m", "attempt=base,cosine", "hydra.sweep.dir=s") == 1
    rows = {row["attempt"]: row for row in read_csv(tmp_path / "s/summary.csv")}
    assert rows["base"]["completed"] == rows["cosine"]["failed"] == "1"
    assert rows["cosine"]["error"] == "RuntimeError: no memory left"


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_says_so(product: Path, tmp_path: Path, sent: signal.Signals) -> None:
    command = [
        sys.executable, "-m", "mvtec_lab", "-m", "data=folder", f"data.root={product}", "data.image_size=32",
        "model.backbone=squeezenet1_1", "model.weights=null", "trainer.max_epochs=100000", "trainer.accelerator=cpu",
        "hydra.sweep.dir=s",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}

    def heed_interrupts() -> None:  # which a shell's background jobs ignore, and their children with them
        signal.signal(signal.SIGINT, signal.default_int_handler)

    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("epoch"):
                break
        process.send_signal(sent)
        process.communicate(timeout=60)
    finally:
        process.kill()
    result = RunResult.load(tmp_path / "s/base")
    assert not result.completed
    if sent == signal.SIGKILL:
        assert process.returncode == -sent
    else:
        assert process.returncode == 130
        assert "stopped (Ctrl-C or SIGTERM) after" in (result.error or "")
        assert (tmp_path / "s/report.html").is_file()


def test_evaluate_takes_the_data_of_its_run(lab, tmp_path: Path) -> None:
    assert lab("seed=4", "hydra.run.dir=run") == 0
    assert main(["task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=again"]) == 0
    metrics = json.loads((tmp_path / "again/metrics.json").read_text())
    assert metrics["metrics"] == RunResult.load(tmp_path / "run").metrics


def test_evaluate_judges_all_new_images_or_says_how(lab, product: Path, tmp_path: Path, capsys) -> None:
    new = tmp_path / "monday"
    shutil.copytree(product / "test", new)
    assert lab("hydra.run.dir=run", "trainer.max_epochs=1") == 0
    arguments = ["task=evaluate", "ckpt=run", "data=folder", f"data.root={new}"]
    images = sum(1 for path in new.rglob("*.png"))
    assert main([*arguments, "hydra.run.dir=part"]) == 0
    assert f"of {images} images are judged: split.protocol=test_only judges all" in capsys.readouterr().err
    assert main([*arguments, "hydra.run.dir=all", "split.protocol=test_only"]) == 0
    assert "are judged" not in capsys.readouterr().err
    metrics = json.loads((tmp_path / "all/metrics.json").read_text())["metrics"]
    assert metrics.keys() == {"test"}
    assert metrics["test"]["images"] == len(read_csv(tmp_path / "all/predictions.csv")) == images
    assert lab("split.protocol=test_only") == 2
    assert "split.protocol=test_only is for task=evaluate" in capsys.readouterr().err


@pytest.mark.slow
def test_a_grid_of_lists_and_paths_stays_inside_its_sweep(lab, product: Path, tmp_path: Path) -> None:
    roots = f"data.root={product},{product.parent}/../products/widget"
    assert lab("-m", "model.unfreeze=[stage1],[stage2]", roots, "hydra.sweep.dir=s", "trainer.max_epochs=1") == 0
    names = {p.name for p in (tmp_path / "s").iterdir() if p.is_dir()}
    assert len(names) == 4
    assert all((tmp_path / "s" / name / "result.json").is_file() for name in names)
    rows = read_csv(tmp_path / "s/summary.csv")  # where the data lie makes no other attempt, what trains does
    assert [(r["attempt"], r["runs"]) for r in rows] == [
        ("base model.unfreeze=[stage1]", "2"),
        ("base model.unfreeze=[stage2]", "2"),
    ]


@pytest.mark.slow
def test_names_that_are_markup(lab, tmp_path: Path, capsys) -> None:
    folder = write_product(tmp_path / "products/[bold]x", {"good": 6, "a [red] one, ü": 6})
    assert lab("task=describe", f"data.root='{folder}'", "hydra.run.dir=d") == 0
    assert "a [red] one, ü" in capsys.readouterr().out
    assert lab("-m", f"data.root='{folder}'", "hydra.sweep.dir=s") == 0
    assert "a [red] one, ü" in (tmp_path / "s/report.html").read_text()


@pytest.mark.slow
def test_summary_is_csv_that_others_read(lab, tmp_path: Path) -> None:
    assert lab("-m", "attempt=base") == 0
    with (the_sweep(tmp_path) / "summary.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    wanted = (
        "attempt runs completed failed test_accuracy test_balanced_accuracy test_macro_f1 test_defect_accuracy "
        "val_accuracy majority_baseline epochs seconds weights data"
    )
    assert [c for c in wanted.split() if c not in columns] == []


@pytest.mark.slow
def test_a_warning_is_printed_once(lab, tmp_path: Path, capfd) -> None:
    """Each run logged its warnings, and the table said them again."""
    warning = "random weights, as asked for"
    assert lab("hydra.run.dir=run") == 0
    shown = "".join(capfd.readouterr())
    assert shown.count(warning) == 1
    assert lab("hydra.run.dir=run", "resume=true") == 0  # no run logs it now, so the table does
    shown = "".join(capfd.readouterr())
    assert shown.count(warning) == 1
    assert lab("-m", "attempt=base,cosine", "hydra.sweep.dir=sweep") == 0
    shown = "".join(capfd.readouterr())
    assert shown.count(warning) == 1
    assert warning in (tmp_path / "sweep/base/run.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("attempt=finetune,augment",), "attempt=finetune,augment gives several values: a sweep takes -m in front"),
        (("seed=1,2",), "seed=1,2 gives several values: a sweep takes -m in front, a list [brackets]"),
        (("help",), "help is no setting: write key=value; --help lists the keys"),
        (
            ("config-dir=my_own", "attempt=mine"),
            "config-dir=my_own is an option, no setting: write --config-dir=my_own",
        ),
        (("config_dir=my_own",), "config_dir=my_own is an option, no setting: write --config-dir=my_own"),
        (("help=data",), "help=data is an option, no setting: write --help"),
        (("study=longtail",), "nothing has chosen a study yet: write a + before it, +study=NAME"),
        (
            ("-m", "attempt=base,", "head"),
            "attempt=base, head: leave out the blank behind the comma: attempt=base,head",
        ),
        (("lr=0.1",), "unknown key 'lr': did you mean optimizer.lr?"),
        (("epochs=3",), "unknown key 'epochs': did you mean model.warmup_epochs, trainer.max_epochs?"),
        (("+attempt=head",), "attempt is set already: leave out the + before it"),
        (("-m", "hydra.run.dir=run"), "hydra.run.dir is a single run's directory: give hydra.sweep.dir=FOLDER"),
        (("hydra.sweep.dir=s",), "hydra.sweep.dir is a sweep's directory: give hydra.run.dir=FOLDER, or -m as well"),
    ],
)
def test_a_command_line_that_hydra_misunderstands(lab, capsys, words: tuple[str, ...], said: str) -> None:
    assert lab(*words) == 2
    assert f"error: {said}" in capsys.readouterr().err
    assert not Path("s").exists()


def test_a_folder_that_is_typed_alone_is_told_how(product: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for word, folder in (("products/widget", "products/widget"), ("data=products", "products")):
        assert main([word]) == 2
        assert capsys.readouterr().err.endswith(f"; images of your own: data=folder data.root={folder}\n")
    for word in ("nowhere", "data=nowhere", "attempt=products"):
        assert main([word]) == 2
        assert "images of your own" not in capsys.readouterr().err
