"""One-class attempts through the real entry point: what a run leaves, what it refuses, and that it can be repeated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SIZE, write_product
from PIL import Image

from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.data.samples import Sample
from mvtec_lab.evaluation import anomaly
from mvtec_lab.evaluation.anomaly import image_metrics
from mvtec_lab.evaluation.statistics import wilson_interval
from mvtec_lab.problems.anomaly.judging import SYNTHETIC, with_pasted_patches
from mvtec_lab.problems.anomaly.methods.autoencoder.model import Autoencoder
from mvtec_lab.problems.anomaly.methods.padim.model import Padim
from mvtec_lab.problems.anomaly.methods.patchcore import model as patchcore
from mvtec_lab.problems.model import load_model
from mvtec_lab.problems.scored import Scored
from mvtec_lab.results import RunResult, find_runs, read_csv

Run = Callable[..., int]
PATCHCORE = ("attempt=patchcore", "model.options.layers=[features.relu1,features.relu2]")
# 32: the least that networks which reconstruct give back
AUTOENCODER = ("attempt=autoencoder", "data.image_size=32", "model.options.latent=8", "optimizer.lr=0.001")
RUN_FILES = {
    "best.ckpt", "config.yaml", "explanations.jpg", "mistakes.jpg", "pixels.npz", "predictions.csv", "result.json",
    "run.log", "samples.csv",
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here looks at an interval's ends, and a run draws for half of its time."""
    monkeypatch.setattr(anomaly, "RESAMPLES", 50)


@pytest.fixture
def widget(product: Path) -> Path:
    """The tiny product with enough good images to learn from: 10 train, 2 validate."""
    return write_product(product, train_good=12)


@pytest.fixture
def run(lab: Run, widget: Path, tmp_path: Path) -> Callable[..., RunResult]:
    """A run that succeeds, in <tmp_path>/<name>: ``run("a", *arguments)``."""

    def go(name: str, *arguments: str) -> RunResult:
        assert lab(f"hydra.run.dir={tmp_path / name}", *arguments) == 0
        return RunResult.load(tmp_path / name)

    return go


@pytest.fixture
def refused(lab: Run, widget: Path, tmp_path: Path, capsys) -> Callable[..., str]:
    """The one line that answers a mistake, which leaves nothing behind."""

    def go(*arguments: str) -> str:
        capsys.readouterr()
        assert lab(f"hydra.run.dir={tmp_path / 'refused'}", *arguments) == 2
        assert not (tmp_path / "refused").exists()
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return line

    return go


def test_a_run_leaves_its_files_threshold_and_metrics(run, tmp_path: Path) -> None:
    result = run("run", *PATCHCORE)
    assert {p.name for p in (tmp_path / "run").iterdir() if not p.name.startswith("events.")} == RUN_FILES
    assert result.method == "patchcore"
    assert result.luck == (result.weights == "random")  # it draws nothing, but a random backbone is drawn
    assert (result.epochs, result.parameters["trained"]) == (0, 0)
    assert min(result.fit_seconds, result.seconds_per_image, result.peak_mib) > 0
    assert result.counts == {
        "train": {"good": 10, "defect": 0}, "val": {"good": 2, "defect": 0}, "test": {"good": 10, "defect": 12},
    }  # fmt: skip
    rows = read_csv(tmp_path / "run/predictions.csv")
    val = [float(row["score"]) for row in rows if row["split"] == "val"]
    assert [result.threshold[key] for key in ("rule", "images", "folds")] == ["quantile", 12, 6]
    assert result.threshold["value"] == pytest.approx(max(val))  # of 12, that is all a quantile of 0.95 can be
    highest = "the highest of their scores: about one good image in 13 is a false reject"
    assert any(highest in w for w in result.warnings)
    for row in rows:
        assert row["prediction"] == ("defect" if np.float32(row["score"]) > result.threshold["value"] else "good")
    metrics = result.metrics["test"]
    assert metrics["image_auroc"] > 0.9
    assert metrics["pixel_auroc"] > 0.9
    assert set(metrics["by_type"]) == {"crack", "hole"}
    model = load_model(tmp_path / "run/best.ckpt")
    assert (model.threshold, model.map_threshold) == (result.threshold["value"], result.threshold["map"])
    assert model.method == "patchcore"
    width, height = Image.open(tmp_path / "run/explanations.jpg").size
    assert (width, height > 100) == (6 * 170 + 10, True)  # two images a row, each as it is, its map and its outlines


def test_the_thresholds_are_those_of_models_that_have_not_seen_the_image(run, tmp_path: Path, widget: Path) -> None:
    """Four images a fold: each is scored by a model of the eight others, those of the first by the run's own."""
    result = run("run", *PATCHCORE, "split.val=0.34", "threshold.quantile=0.8")
    split = {s["path"]: s["split"] for s in read_csv(tmp_path / "run/samples.csv")}
    rows = {r["path"]: r for r in read_csv(tmp_path / "run/predictions.csv") if r["split"] == "val"}
    assert rows.keys() == {path for path in split if path.startswith("train/good/")}
    folds = [[Sample(path, "good") for path in list(rows)[at : at + 4]] for at in (0, 4, 8)]
    assert {split[s.path] for s in folds[0]} == {"val"}
    assert {split[s.path] for s in folds[1] + folds[2]} == {"train"}
    model = load_model(tmp_path / "run/best.ckpt")
    bank, maps = model.module.model.bank.clone(), []

    def images(samples: list[Sample]) -> torch.Tensor:
        data = MVTecDataset(widget, samples, image_size=SIZE, mean=model.mean, std=model.std)
        return data[list(range(len(data)))]["image"]

    with torch.no_grad():
        for fold in folds:
            others = [s for other in folds if other is not fold for s in other]
            if fold is not folds[0]:
                model.module.prepare(lambda others=others: [images(others)])
                assert model.module.model.bank.shape == bank.shape
            scores = model.module(images(fold))
            assert [float(rows[s.path]["score"]) for s in fold] == pytest.approx(scores.image.tolist(), rel=1e-4)
            maps += scores.map.flatten(1).amax(1).tolist()
    assert result.threshold["map"] == pytest.approx(anomaly.quantile_threshold(maps, 0.8), rel=1e-4)


def test_the_folds_of_a_threshold_leave_the_model_as_it_is(run, tmp_path: Path, monkeypatch) -> None:
    """k-means draws its first centres: a fold takes no random number from the run, and changes no model but its own."""
    kmeans = ("attempt=kmeans", "model.options.layers=[features.relu2]", "model.options.clusters=3")
    assert run("all", *kmeans).threshold["folds"] == 6
    monkeypatch.setattr("mvtec_lab.problems.anomaly.judging.cross_folds", lambda train, val, seed: [val])
    assert run("one", *kmeans).threshold["folds"] == 1
    centres = [load_model(tmp_path / name / "best.ckpt").module.model.centres for name in ("all", "one")]
    assert torch.equal(*centres)
    scores = [
        [r["score"] for r in read_csv(tmp_path / name / "predictions.csv") if r["split"] == "test"]
        for name in ("all", "one")
    ]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_a_rate_of_false_rejects_that_was_not_asked_for_is_said(run, widget: Path) -> None:
    asked = run("asked", *PATCHCORE, "threshold.quantile=0.9")
    low, high = asked.metrics["test"]["intervals"]["false_alarm_rate"]
    assert low < 0.1 < high
    assert (asked.threshold["asked"], asked.threshold["kept"]) == (0.1, True)
    assert not any("false rejects than" in line for line in asked.warnings)
    for path in (widget / "test/good").iterdir():  # another lamp
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    other = run("other", *PATCHCORE, "threshold.quantile=0.9")
    assert other.metrics["test"]["false_alarm_rate"] == 1
    assert other.threshold["kept"] is False
    assert any(line.startswith("more false rejects than threshold.quantile=0.9 asks for") for line in other.warnings)


@pytest.mark.slow
def test_every_table_gives_the_intervals_of_false_rejects_and_of_defects_found(
    lab, widget: Path, tmp_path: Path, capsys
) -> None:
    assert lab("-m", *PATCHCORE, "threshold.quantile=0.9,0.5", "hydra.sweep.dir=sweep") == 0
    first, last = read_csv(tmp_path / "sweep/summary.csv")
    assert float(first["test_false_alarm_rate"]) < float(last["test_false_alarm_rate"])
    table, page = capsys.readouterr().out, (tmp_path / "sweep/report.html").read_text()
    for row in (first, last):
        for key in ("test_false_alarm_rate", "test_recall_of_defects"):
            value, low, high = (float(row[f"{key}{bound}"]) for bound in ("", "_low", "_high"))
            images = 10 if key == "test_false_alarm_rate" else 12
            assert (low, high) == pytest.approx(wilson_interval(value * images, images))
            assert f"{value:.3f} [{low:.2f}, {high:.2f}]" in table
            assert f"{value:.3f}<small> [{low:.2f}, {high:.2f}]</small>" in page


def test_what_a_fit_remarks_is_a_warning_of_the_run(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patchcore, "LARGEST", 50)
    remark = "model.options.coreset=0.5 asks for 720 patches: the bank ends at 50"
    assert remark in run("run", *PATCHCORE, "model.options.coreset=0.5").warnings
    assert (tmp_path / "run/run.log").read_text().count(remark) == 1


def test_a_method_without_maps_leaves_no_sheet_of_them(run, tmp_path: Path) -> None:
    result = run("run", "attempt=nearest", "model.options.layers=[features.relu2]", "model.options.neighbours=2")
    assert result.threshold["map"] is None
    assert load_model(tmp_path / "run/best.ckpt").map_threshold is None
    assert not (tmp_path / "run/explanations.jpg").exists()
    assert "pixel_auroc" not in result.metrics["test"]
    assert "AUPRO" not in (tmp_path / "run/run.log").read_text()


def test_a_synthetic_threshold_rests_on_good_images_and_pasted_ones(run, tmp_path: Path) -> None:
    result = run("run", *PATCHCORE, "threshold.rule=synthetic", "split.val=0.5")
    assert result.threshold["rule"] == "synthetic"
    assert not [w for w in result.warnings if "threshold" in w and "rests on them" not in w]
    rows = [row for row in read_csv(tmp_path / "run/predictions.csv") if row["split"] == "val"]
    assert [row["type"] for row in rows] == ["good"] * 12 + [SYNTHETIC] * 12
    assert result.threshold["folds"] == 2
    scores, kinds = [float(row["score"]) for row in rows], [row["type"] for row in rows]
    val = result.metrics["val"]
    again = image_metrics(scores, kinds, result.threshold["value"])
    for name in ("image_auroc", "image_ap", "f1", "false_alarm_rate"):
        assert val[name] == pytest.approx(again[name])
    cuts = [np.nextafter(score, -np.inf) for score in scores]
    assert val["f1"] == pytest.approx(max(image_metrics(scores, kinds, cut)["f1"] for cut in cuts))


def test_pasted_defects_are_drawn_by_their_seed_and_leave_torch_as_it_was(widget: Path) -> None:
    good = MVTecDataset(widget, [Sample(f"test/good/{i:03}.png", "good") for i in range(3)], image_size=SIZE)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, _ = with_pasted_patches(good, 0)
    assert torch.equal(torch.rand(3), expected)
    second, other = (with_pasted_patches(good, seed)[0] for seed in (0, 1))
    assert {s.label for s in first.samples} == {SYNTHETIC}
    for i in range(3):
        assert np.array_equal(first.picture(i), second.picture(i))
        assert (first.picture(i) != good.picture(i)).any()
        assert (first.picture(i) == good.picture(i)).all(axis=2).mean() > 0.5  # a patch, not another image
    assert any((first.picture(i) != other.picture(i)).any() for i in range(3))


def test_the_worst_mistakes_come_first() -> None:
    labels = ("good", "good", "crack", "crack", "good", "crack")
    images = MVTecDataset("nowhere", [Sample(f"{i}", label) for i, label in enumerate(labels)])
    scored = Scored(images, np.array([1.0, 4.5, 2.9, 9.0, 3.5, 0.5]), None)
    assert scored.worst_first(3.0).tolist() == [5, 1, 4, 2, 0, 3]


@pytest.mark.slow
def test_a_threshold_chosen_with_defects_is_marked(run) -> None:
    result = run("run", *PATCHCORE, "threshold.rule=best_f1")
    assert any(w.startswith("threshold chosen on the test images, defects included") for w in result.warnings)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("attempt=autoencoder data.image_size=40", "data.image_size=40 cannot be reconstructed"),
        (
            "attempt=patchcore model.options.layers=[features.relu9]",
            "unknown layer of tiny_lab_net in model.options.layers",
        ),
        ("attempt=patchcore", "tiny_lab_net has no map with cells of 8 pixels"),
        (
            "attempt=padim model.options.layers=[features.relu2] model.options.dimensions=17",
            "these layers have 16 channels",
        ),
        (
            "attempt=nearest model.options.layers=[features.relu2] model.options.neighbours=11",
            "needs at least 11 good images",
        ),
        (
            "attempt=gaussian model.options.layers=[features.relu2] model.options.dimensions=9",
            "needs at least 11 good images",
        ),
    ],
)
def test_what_can_be_known_is_refused_before_anything_is_written(refused, arguments: str, said: str) -> None:
    assert said in refused(*arguments.split())


def test_an_error_of_the_code_is_not_swallowed_by_the_rehearsal(lab, widget: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Padim, "plan", fail)
    assert lab("attempt=padim", *PATCHCORE[1:], f"hydra.run.dir={tmp_path / 'run'}") == 1
    assert not (tmp_path / "run/result.json").exists()


def test_several_devices_and_folds_of_a_single_run_are_refused(lab, widget: Path, tmp_path: Path, capsys) -> None:
    assert lab(*PATCHCORE, "trainer.devices=2", f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert "model.method=patchcore runs on one device: give trainer.devices=1" in capsys.readouterr().err
    assert lab(*PATCHCORE, "cv.folds=2", f"hydra.run.dir={tmp_path / 'run'}") == 2
    assert "cv.folds=2 makes a sweep: give -m as well" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "outputs").exists()


def test_one_bad_job_stops_a_sweep_before_the_first_one_runs(lab, widget: Path, tmp_path: Path, capsys) -> None:
    assert lab("-m", "attempt=nearest", "model.options.layers=[features.relu2]", "model.options.neighbours=2,11") == 2
    needed = "model.options.neighbours=11 needs at least 11 good images to learn from, and got 10"
    assert needed in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_a_bank_larger_than_memory_is_refused_with_its_size(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10_240))
    # 10 images of 12 x 12 cells with 24 channels of 4 bytes
    assert "patches of good images take about 0.000138 GB" in refused(*PATCHCORE)


@pytest.mark.slow
def test_a_run_is_scored_by_its_maps_and_so_are_its_tasks(run, lab, widget: Path, tmp_path: Path) -> None:
    """What the run computes, predict computes: with tiles too, an image's score is the highest of its tiles'."""
    result = run("run", *PATCHCORE, "model.options.score=top", "data.image_size=48", "data.tile=32")
    assert result.metrics["test"]["image_auroc"] > 0.9
    rows = {row["path"]: row for row in read_csv(Path(result.run_dir) / "predictions.csv") if row["split"] == "test"}
    ckpt, source = f"ckpt={result.run_dir}/best.ckpt", f"source={widget / 'test'}"
    assert lab("task=predict", ckpt, source, f"hydra.run.dir={tmp_path / 'out'}") == 0
    predicted = read_csv(tmp_path / "out/predictions.csv")
    assert len(predicted) == len(rows)
    for row in predicted:
        name = f"test/{Path(row['path']).relative_to(widget / 'test').as_posix()}"
        assert float(row["score"]) == pytest.approx(float(rows[name]["score"]), rel=1e-4)
        with Image.open(tmp_path / f"out/maps/{Path(name).relative_to('test').as_posix()}.tiff") as heat:
            assert float(row["score"]) < 0.999 * np.asarray(heat).max()


def test_no_good_images_too_few_and_no_test_folder(refused, widget: Path) -> None:
    good = sorted((widget / "train/good").iterdir())
    for path in good[2:]:
        path.unlink()
    assert "train/good has 2 image(s) or group(s), too few for one_class (at least 3)" in refused(*PATCHCORE)
    shutil.rmtree(widget / "train")
    assert "train/good has 0 image(s)" in refused(*PATCHCORE)
    shutil.rmtree(widget / "test")
    assert "does not hold class folders of images" in refused(*PATCHCORE)


@pytest.mark.slow
def test_three_good_images_are_enough_and_said_to_be_few(run, widget: Path) -> None:
    for path in sorted((widget / "train/good").iterdir())[3:]:
        path.unlink()
    result = run("run", *PATCHCORE)
    assert (result.counts["val"]["good"], result.threshold["folds"]) == (1, 3)
    assert any("about one good image in 4 is a false reject" in w for w in result.warnings)


@pytest.mark.slow
def test_a_test_folder_without_defects_or_without_good_images(run, refused, widget: Path, tmp_path: Path) -> None:
    shutil.move(widget / "test/good", tmp_path / "good")
    result = run("defects", *PATCHCORE)
    assert result.metrics["test"]["image_auroc"] is None
    assert result.metrics["test"]["recall_of_defects"] is not None
    assert any(w.startswith("test/ has no good images") for w in result.warnings)
    shutil.move(tmp_path / "good", widget / "test/good")
    for kind in ("crack", "hole"):
        shutil.rmtree(widget / "test" / kind)
    result = run("good", *PATCHCORE)
    assert result.metrics["test"]["image_auroc"] is None
    assert 0 <= result.metrics["test"]["false_alarm_rate"] <= 1
    assert any(w.startswith("no defects are tested") for w in result.warnings)
    assert "threshold.rule=best_f1 needs defects" in refused(*PATCHCORE, "threshold.rule=best_f1")


@pytest.mark.slow
def test_masks_that_are_missing_or_broken_are_left_out_and_said(run, widget: Path) -> None:
    masks = sorted((widget / "ground_truth/crack").iterdir())
    masks[0].unlink()
    masks[1].write_bytes(masks[1].read_bytes()[:45])  # whose header is sound
    result = run("some", *PATCHCORE)
    assert result.metrics["test"]["pixel_auroc"] > 0.9
    assert "2 defect image(s) without a mask count in no pixel metric" in result.warnings
    shutil.rmtree(widget / "ground_truth")
    result = run("none", *PATCHCORE)
    assert "no defect has a mask: pixel metrics are left out" in result.warnings
    assert "pixel_auroc" not in result.metrics["test"]
    assert result.metrics["test"]["image_auroc"] > 0.9


def test_images_of_different_sizes_are_judged_at_their_own(run, widget: Path) -> None:
    for folder, suffix in ((widget / "test", ""), (widget / "ground_truth", "_mask")):
        path = folder / "crack" / f"000{suffix}.png"
        image = Image.open(path)
        image.resize((40, 30), Image.Resampling.NEAREST).save(path)
    good = widget / "test/good/000.png"
    Image.open(good).resize((31, 50)).save(good)
    counted = run("run", *PATCHCORE)
    assert counted.metrics["test"]["pixel_auroc"] > 0.9
    with np.load(Path(counted.run_dir) / "pixels.npz") as file:
        pixels = dict(zip(file["names"], file["counts"][:, :2].sum((1, 2)), strict=True))
    assert pixels["test/crack/000.png"] == 40 * 30
    assert pixels["test/good/000.png"] == 31 * 50
    assert pixels["test/good/001.png"] == SIZE * SIZE


@pytest.mark.parametrize(
    "method",
    [
        PATCHCORE,
        pytest.param(("attempt=padim", *PATCHCORE[1:]), marks=pytest.mark.slow),
        pytest.param(("attempt=rad", *PATCHCORE[1:]), marks=pytest.mark.slow),
        pytest.param(AUTOENCODER, marks=pytest.mark.slow),
    ],
)
def test_constant_images_give_equal_scores_and_that_is_said(run, widget: Path, method: tuple[str, ...]) -> None:
    for path in [*(widget / "train").rglob("*.png"), *(widget / "test").rglob("*.png")]:
        Image.new("RGB", (SIZE, SIZE), (90, 90, 90)).save(path)
    result = run("run", *method)
    assert result.metrics["test"]["image_auroc"] == 0.5
    assert np.isfinite(result.threshold["value"])
    assert "all test images have the same score: nothing tells them apart" in result.warnings


def test_scores_that_are_not_finite_are_answered_with_one_line(lab, widget: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    one_step = ("trainer.max_epochs=1", "data.batch_size=10")  # the next one would find its loss infinite, and say so
    assert lab(*AUTOENCODER, "optimizer=sgd", "optimizer.lr=1e30", *one_step, f"hydra.run.dir={folder}") == 2
    said = capsys.readouterr().err
    assert "error: the training has diverged, its loss is nan: lower optimizer.lr\n" in said
    assert "Traceback" not in said
    result = RunResult.load(folder)
    assert (result.status, result.error.split(":")[0]) == ("failed", "LabError")
    assert not (folder / "best.ckpt").exists()


@pytest.mark.slow
def test_a_completed_run_is_skipped_and_a_failed_or_stopped_one_starts_anew(
    lab, run, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    again = (*AUTOENCODER, f"hydra.run.dir={folder}", "resume=true")
    whole = Autoencoder.training_step
    for error, status in ((RuntimeError("no such luck"), 1), (KeyboardInterrupt(), 130)):

        def fail(self, batch, batch_idx, error=error):
            if self.current_epoch:
                raise error
            return whole(self, batch, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(Autoencoder, "training_step", fail)
            assert lab(*again) == status
        result = RunResult.load(folder)
        assert result.status == "failed"
        assert result.error.startswith(type(error).__name__)
        assert not {"last.ckpt", "pixels.npz"} & {path.name for path in folder.iterdir()}
        (folder / "pixels.npz").touch()  # of an earlier start
    capsys.readouterr()
    assert lab(*again) == 0
    assert "was stopped before its first last.ckpt: it starts again" in capsys.readouterr().err
    result = RunResult.load(folder)
    assert (result.status, result.error, result.epochs) == ("completed", None, 2)
    fresh = run("fresh", *AUTOENCODER)
    assert fresh.metrics == result.metrics
    started = result.started
    assert lab(*again) == 0
    assert "is completed: nothing to do" in capsys.readouterr().err
    assert RunResult.load(folder).started == started


@pytest.mark.slow
def test_a_fit_that_is_stopped_by_hand_says_so(lab, widget: Path, tmp_path: Path, monkeypatch) -> None:
    def stop(self, batches) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Padim, "prepare", stop)
    assert lab("attempt=padim", *PATCHCORE[1:], f"hydra.run.dir={tmp_path / 'run'}") == 130
    result = RunResult.load(tmp_path / "run")
    assert (result.status, result.error, result.interrupted) == ("failed", "KeyboardInterrupt", True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "full"),
    [
        (PATCHCORE, False),
        pytest.param(AUTOENCODER, False, marks=pytest.mark.slow),
        pytest.param(PATCHCORE, True, marks=pytest.mark.slow),
        pytest.param(("attempt=rad", *PATCHCORE[1:], "model.options.score=max"), True, marks=pytest.mark.slow),
        pytest.param((*AUTOENCODER, "augment=standard"), True, marks=pytest.mark.slow),
        pytest.param(("attempt=draem", "data.image_size=32"), True, marks=pytest.mark.slow),
    ],
)
def test_no_result_depends_on_workers_and_caches(run, method: tuple[str, ...], full: bool) -> None:
    ways = {"cold": (), "no cache": ("cache.dir=null", "data.num_workers=1")}
    if full:
        ways["warm"] = ()
    results = {name: run(name.replace(" ", "_"), *method, *settings) for name, settings in ways.items()}
    tables = {(Path(result.run_dir) / "predictions.csv").read_text() for result in results.values()}
    assert len(tables) == 1
    assert all(result.metrics == results["cold"].metrics for result in results.values())


@pytest.mark.slow
def test_the_size_of_a_batch_changes_no_decision_of_a_method_that_is_fitted_once(run) -> None:
    one, other = run("one", *PATCHCORE, "data.batch_size=3"), run("other", *PATCHCORE, "data.batch_size=32")
    scores = [
        [float(r["score"]) for r in read_csv(Path(result.run_dir) / "predictions.csv")] for result in (one, other)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


@pytest.mark.slow
def test_a_sweep_compares_methods(lab, widget: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    methods = ["patchcore", "padim", "spade", "rad", "autoencoder"]
    assert (
        lab("-m", f"attempt={','.join(methods)}", "data.image_size=32", *PATCHCORE[1:], f"hydra.sweep.dir={sweep}") == 0
    )
    assert {result.method for result in find_runs(sweep) if result.completed} == set(methods)
    assert "<html" in (sweep / "report.html").read_text()


def test_groups_are_not_torn_between_good_images_and_the_test_folder(lab, product: Path, capsys) -> None:
    for i, path in enumerate(sorted((product / "train/good").iterdir())):
        path.rename(path.with_name(f"part{i}_{path.name}"))
    path = product / "test/good/000.png"
    path.rename(path.with_name("part1_000.png"))
    assert lab(*PATCHCORE, r"split.group_by='(part\d+)_'") == 2
    assert "'part1' of split.group_by is in train/good" in capsys.readouterr().err


def test_a_method_that_fails_stands_among_the_methods(lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvtec_lab.tasks.train.build_data", lambda *_: 1 / 0)
    assert lab("-m", "attempt=padim", PATCHCORE[1], "hydra.sweep.dir=sweep") == 1
    assert json.loads((tmp_path / "sweep/comparison.json").read_text())["metric"] == "image_auroc"
