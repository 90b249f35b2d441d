"""How far probabilities can be trusted: calibration, coverage against accuracy, conformal sets."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mvtec_lab.engine.model import Model
from mvtec_lab.evaluation.confidence import (
    aurc,
    calibrate,
    coverage_curve,
    fit_dirichlet,
    fit_temperature,
    set_thresholds,
    sets_of,
    smallest_alpha,
    sure,
)
from mvtec_lab.models.weights import load_file, save_file
from mvtec_lab.problems.classification.classifier import DefectClassifier
from mvtec_lab.problems.classification.sets import doubt
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.figures import MOST, coverage_figure
from mvtec_lab.reporting.report import REPORT, sum_up
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.reporting.summary import summarise
from mvtec_lab.results import BEST, PREDICTIONS, RESULT, RunResult, read_csv

Lab = Callable[..., int]


def drawn(images: int, seed: int = 0, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the log-probabilities by which they were drawn: calibrated ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (images, classes))
    probabilities = calibrate(logits, 1.0)
    return (probabilities.cumsum(axis=1) < rng.random((images, 1))).sum(axis=1), np.log(probabilities)


def loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_scaling_recovers_the_temperature_and_keeps_the_predictions(temperature: float) -> None:
    labels, right = drawn(20_000)
    spoilt = right * temperature
    found = fit_temperature(labels, spoilt)
    assert found == pytest.approx(temperature, rel=0.04)
    restored = calibrate(spoilt, 1 / found)
    assert loss(labels, restored) <= loss(labels, calibrate(spoilt, 1.0)) + 1e-9
    assert (restored.argmax(axis=1) == spoilt.argmax(axis=1)).all()
    assert fit_temperature(labels, spoilt + 7.0) == pytest.approx(found)  # logits as well as log-probabilities


def test_temperature_of_images_that_are_all_right_is_bounded() -> None:
    assert fit_temperature([0, 1], np.log([[0.6, 0.4], [0.4, 0.6]])) == pytest.approx(0.1, rel=1e-3)


def test_dirichlet_calibration_repairs_what_a_temperature_cannot() -> None:
    labels, right = drawn(20_000)
    spoilt = 2 * right + [1.5, 0.0, -1.5]  # a class that is named too often
    by_temperature = calibrate(spoilt, 1 / fit_temperature(labels, spoilt))
    weights, bias = fit_dirichlet(labels, spoilt, 1e-4)
    by_dirichlet = calibrate(spoilt, weights, bias)
    assert loss(labels, by_dirichlet) < loss(labels, by_temperature) - 0.05
    assert loss(labels, by_dirichlet) == pytest.approx(loss(labels, np.exp(right)), abs=0.01)
    assert bias[2] - bias[0] == pytest.approx(1.5, abs=0.15)

    def objective(weights: np.ndarray, bias: np.ndarray, strength: float) -> float:  # the paper's, for three classes
        off = weights[~np.eye(3, dtype=bool)]
        return loss(labels, calibrate(spoilt, weights, bias)) + strength * ((off**2).mean() + (bias**2).mean())

    weights, bias = fit_dirichlet(labels, spoilt, 1.0)
    least, rng = objective(weights, bias, 1.0), np.random.default_rng(0)
    for _ in range(20):  # nothing near it is better
        moved = weights + rng.normal(0, 1e-3, (3, 3)), bias + rng.normal(0, 1e-3, 3)
        assert objective(*moved, 1.0) > least - 1e-8
    # ODIR: what lies off the diagonal, and the bias, go to zero.
    weights, bias = fit_dirichlet(labels, spoilt, 1e4)
    assert np.abs(weights - np.diag(np.diag(weights))).max() < 1e-3
    assert np.abs(bias).max() < 1e-3


@pytest.mark.parametrize(("held_out", "alpha"), [(12, 0.1), (12, 1 / 13), (16, 0.2), (4, 0.2), (9, 0.1)])
def test_sets_hold_the_class_of_the_promised_share_of_each_class(held_out: int, alpha: float) -> None:
    """Over many draws: 1 - alpha at least, and not 1 / (n + 1) more; of the rare class as of the frequent one."""
    rng = np.random.default_rng(0)
    covered, draws = np.zeros(2), 3_000
    labels = np.repeat([0, 1], [held_out, 5 * held_out])
    for _ in range(draws):
        # The classes differ in how well they are known, so that one threshold for both would miss the harder one.
        of_truth = np.concatenate([rng.beta(1, 1, held_out + 1), rng.beta(6, 1, 5 * held_out + 1)])
        known = np.concatenate([of_truth[:held_out], of_truth[held_out + 1 : -1]])
        probabilities = np.where(labels[:, None] == [0, 1], known[:, None], 1 - known[:, None])
        thresholds = set_thresholds(labels, probabilities, alpha)
        covered += [of_truth[held_out] >= thresholds[0], of_truth[-1] >= thresholds[1]]
    shares = covered / draws
    assert (shares >= 1 - alpha - 0.02).all()  # three standard deviations of 3,000 draws
    assert shares[0] <= 1 - alpha + 1 / (held_out + 1) + 0.02


def test_too_few_images_give_the_full_set() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [12, 40])
    probabilities = rng.dirichlet([1, 1], 52)
    assert smallest_alpha(12) == pytest.approx(0.0769, abs=1e-4)
    below, at = set_thresholds(labels, probabilities, 0.076), set_thresholds(labels, probabilities, 1 / 13)
    assert below[0] == 0
    assert below[1] > 0
    assert at[0] == probabilities[labels == 0, 0].min()  # the least of all twelve
    assert sets_of([[0.0, 1.0]], below).tolist() == [[True, True]]
    # One image more or less than 0.1 asks for, and classes without any.
    thresholds = [set_thresholds([0] * n, np.full((n, 2), 0.5), 0.1).tolist() for n in (8, 9)]
    assert thresholds == [[0, 0], [0.5, 0]]
    assert set_thresholds(labels, probabilities, [0.5, 0.01])[1] == 0  # a share per class


def test_sure_is_the_prediction_alone_in_the_set() -> None:
    thresholds = [0.5, 0.2, 0.3]
    probabilities = [
        [0.8, 0.1, 0.1],  # the prediction alone
        [0.6, 0.3, 0.1],  # two
        [0.45, 0.15, 0.25],  # none
        [0.45, 0.25, 0.2],  # another one than the prediction
    ]
    assert sets_of(probabilities, thresholds).sum(axis=1).tolist() == [1, 2, 0, 1]
    assert sure(probabilities, thresholds).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("of_image", "said"),
    [
        ("(none)", ", less typical of small than 83% of known small images"),
        ("big", ", big not ruled out"),
        ("big|cut|small", ", big or cut not ruled out"),
        ("small", ", unsure"),  # a threshold named another class than the likeliest
    ],
)
def test_an_unsure_image_is_said_to_be_what_else(of_image: str, said: str) -> None:
    assert doubt("small", of_image, 1 / 6) == said  # five of small are held out


def test_coverage_curve_by_hand_and_ties() -> None:
    coverage, accuracy = coverage_curve([0.9, 0.5, 0.7], [1, 0, 1])
    assert coverage.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert accuracy.tolist() == pytest.approx([1, 1, 2 / 3])
    assert aurc([0.9, 0.5, 0.7], [1, 0, 1]) == pytest.approx(1 / 9)
    tied = [0.9, 0.5, 0.5, 0.5]
    for right in ([1, 1, 0, 0], [1, 0, 0, 1]):  # the order of equal ones is nobody's merit
        assert coverage_curve(tied, right)[1].tolist() == pytest.approx([1, (1 + 1 / 3) / 2, (1 + 2 / 3) / 3, 0.5])


def test_the_figure_of_coverage_shows_what_lies_low_and_says_what_it_leaves_out() -> None:
    coverage, accuracy = np.arange(1, 21) / 20, np.linspace(0, 0.62, 20)  # wrong where it is most confident
    figure = coverage_figure({"a": (coverage, accuracy), "b": (coverage, accuracy[::-1])}, {"b": (0.4, 0.35)})
    (axis,) = figure.axes
    assert [len(line.get_xdata()) for line in axis.lines] == [20, 20, 1]
    assert axis.get_ylim()[0] == 0
    assert coverage_figure({"a": (coverage, 1 - accuracy / 2)}, {}).axes[0].get_ylim()[0] == pytest.approx(0.6)
    many = coverage_figure({str(i): (coverage, accuracy) for i in range(MOST + 1)}, {}).axes[0]
    assert len(many.lines) == MOST
    assert f"the first {MOST} of {MOST + 1} attempts" in many.get_xlabel()


def rows_of(run: Path, split: str = "test") -> list[dict[str, str]]:
    return [row for row in read_csv(run / PREDICTIONS) if row.get("split", split) == split]


def without_sets(run: Path) -> None:
    """Make a run as the lab left it before there were sets."""
    content = load_file(run / BEST)
    del content["about"]["sets"]
    save_file(content, run / BEST)
    rows = read_csv(run / PREDICTIONS)
    columns = [key for key in rows[0] if key not in ("set", "certainty")]
    with (run / PREDICTIONS).open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    result = json.loads((run / RESULT).read_text())
    del result["sets"]
    for values in result["metrics"].values():
        for key in ("sure", "sure_accuracy", "aurc", "set_coverage", "intervals"):
            values.pop(key, None)
    (run / RESULT).write_text(json.dumps(result))


@pytest.mark.slow
def test_a_run_says_of_which_test_images_it_is_sure(
    lab: Lab, product: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, settings = tmp_path / "run", ["split.val=0.3", "optimizer.lr=0.05"]
    assert lab(*settings, f"hydra.run.dir={run}") == 0
    result, rows = RunResult.load(run), rows_of(run)
    assert result.sets is not None
    held_out = result.sets["held_out"]
    assert held_out == {name: result.counts["val"][name] for name in result.classes}
    assert result.sets["alpha"] == {name: max(0.1, 1 / (n + 1)) for name, n in held_out.items()}
    # The least probability that a class's own validation images gave it, as alpha is the least that they allow.
    for name, least in result.sets["least"].items():
        own = [float(row[f"prob_{name}"]) for row in rows_of(run, "val") if row["label"] == name]
        assert least == pytest.approx(min(own), rel=1e-4)
    assert all(row["set"] == row["certainty"] == "" for row in rows_of(run, "val"))
    for row in rows:
        members = [n for n in result.classes if float(row[f"prob_{n}"]) >= result.sets["least"][n] * (1 - 1e-5)]
        assert row["set"] == ("|".join(members) or "(none)")
        assert row["certainty"] == ("sure" if members == [row["prediction"]] else "unsure")
    test = result.metrics["test"]
    certain = [row for row in rows if row["certainty"] == "sure"]
    assert test["sure"] == pytest.approx(len(certain) / len(rows))
    for name, share in test["set_coverage"].items():
        assert share == pytest.approx(np.mean([name in row["set"].split("|") for row in rows if row["label"] == name]))
    if certain:
        right = [row["label"] == row["prediction"] for row in certain]
        assert test["sure_accuracy"] == pytest.approx(np.mean(right))
        low, high = test["intervals"]["sure_accuracy"]
        assert low <= np.mean(right) <= high
    assert "sure" not in result.metrics["val"]

    # A loaded checkpoint says the same of the same images, and changes nothing of itself.
    before = (run / BEST).read_bytes()
    assert lab("task=evaluate", f"ckpt={run}", f"hydra.run.dir={tmp_path / 'judged'}") == 0
    assert rows_of(tmp_path / "judged") == rows
    assert json.loads((tmp_path / "judged" / "metrics.json").read_text())["sets"] == result.sets
    assert (run / BEST).read_bytes() == before
    capsys.readouterr()
    assert lab("task=predict", f"ckpt={run}", f"source={product}/test", f"hydra.run.dir={tmp_path / 'new'}") == 0
    new = {Path(row["path"]).relative_to(product).as_posix(): row for row in read_csv(tmp_path / "new" / PREDICTIONS)}
    assert all(new[row["path"]][key] == row[key] for row in rows for key in ("prediction", "set", "certainty"))
    unsure = sum(row["certainty"] == "unsure" for row in new.values())
    said = capsys.readouterr().out
    assert f"{unsure} of {len(new)} images are unsure" in said
    assert re.search(r"\nthe aim: at most .*% of .* images are given a wrong class without being called unsure\n", said)
    assert f"the aim rests on {sum(held_out.values())} held-out images" in said
    for path, row in new.items():
        alpha = result.sets["alpha"][row["prediction"]]
        mark = doubt(row["prediction"], row["set"], alpha) if row["certainty"] == "unsure" else ""
        assert f"{row['prediction']} ({float(row['confidence']):.2f}){mark}  {product / path}\n" in said
    sum_up(run)
    assert "Coverage against accuracy" in (run / REPORT).read_text(encoding="utf-8")
    aims = [f"<td>{1 - share:.3g}</td>" for share in result.sets["alpha"].values()]
    assert all(cell in (run / REPORT).read_text(encoding="utf-8") for cell in aims)
    assert "Own class in the set" in (run / REPORT).read_text(encoding="utf-8")
    assert f"The aim rests on {sum(held_out.values())} held-out images" in (run / REPORT).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_run_from_before_there_were_sets_is_loaded_and_compared(
    lab: Lab, product: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for attempt in ("base", "cosine"):
        assert lab(f"attempt={attempt}", f"hydra.run.dir={tmp_path / 'runs' / attempt}") == 0
    old = tmp_path / "runs" / "base"
    without_sets(old)
    assert lab("task=predict", f"ckpt={old}", f"source={product}/test", f"hydra.run.dir={tmp_path / 'p'}") == 0
    assert not {"set", "certainty"} & read_csv(tmp_path / "p" / PREDICTIONS)[0].keys()
    assert "this model has no sets of possible classes" in capsys.readouterr().out
    assert lab("task=evaluate", f"ckpt={old}", f"hydra.run.dir={tmp_path / 'e'}") == 0
    assert not {"set", "certainty"} & read_csv(tmp_path / "e" / PREDICTIONS)[0].keys()
    comparison = compare(load_runs(tmp_path / "runs"))
    assert comparison.pairs[0].refused is None
    rows = {row["attempt"]: row for row in summarise(comparison)}
    assert rows["base"]["test_sure"] is None
    assert rows["cosine"]["test_sure"] is not None
    sum_up(tmp_path / "runs")


def test_changed_certainty_is_noticed(lab: Lab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert lab(f"hydra.run.dir={run}") == 0
    text, other = (run / PREDICTIONS).read_text(), {"sure": "unsure", "unsure": "sure"}
    first = rows_of(run)[0]["certainty"]
    changed = text.rsplit(f",{first}", 1)
    (run / PREDICTIONS).write_text(f",{other[first]}".join(changed))
    with pytest.raises(Exception, match="says test sure"):
        compare(load_runs(run))


@pytest.mark.slow
def test_an_alpha_that_cannot_be_promised_gives_full_sets_and_a_warning(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert lab("threshold.alpha=0.01", f"hydra.run.dir={run}") == 0
    result = RunResult.load(run)
    assert result.sets is not None
    assert set(result.sets["least"].values()) == {0}
    assert any("threshold.alpha=0.01 is too small for few held-out images" in text for text in result.warnings)
    assert {row["set"] for row in rows_of(run)} == {"|".join(result.classes)}
    assert result.metrics["test"]["sure"] == 0
    assert "sure_accuracy" not in result.metrics["test"]
    assert set(result.metrics["test"]["set_coverage"].values()) == {1}
    sum_up(run)  # without a dot
    assert lab("threshold.alpha=0.01", "split.val_is_test=true") == 2
    assert "no images are held out" in capsys.readouterr().err
    assert lab("attempt=patchcore", "threshold.alpha=0.2") == 2
    assert "threshold.alpha" in capsys.readouterr().err
    assert lab("threshold.alpha=1.5") == 2


def test_validation_on_the_test_images_chooses_no_sets(lab: Lab, tmp_path: Path) -> None:
    assert lab("split.val_is_test=true", f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert RunResult.load(tmp_path / "run").sets is None
    assert "certainty" not in rows_of(tmp_path / "run")[0]


@pytest.mark.slow
@pytest.mark.parametrize("sets", [{"least": [0.1]}, {"least": ["a"] * 3}, [1], {"least": [-1.0] * 3}])
def test_a_checkpoint_with_sets_that_are_none_is_refused(
    lab: Lab, tmp_path: Path, product: Path, sets: object, capsys: pytest.CaptureFixture[str]
) -> None:
    module = DefectClassifier("resnet18", ["crack", "good", "hole"], weights=None, image_size=32)
    model = Model(module, "classifier", module.classes, 32, 65_535, [0.5] * 3, [0.2] * 3)
    content = model.content()
    content["about"]["sets"] = sets
    save_file(content, tmp_path / "a.ckpt")
    assert lab("task=predict", f"ckpt={tmp_path / 'a.ckpt'}", f"source={product}/test") == 2
    assert "sets that are none" in capsys.readouterr().err
