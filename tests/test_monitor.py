"""task=monitor: new images that are like the known good ones of a run, and such that are not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import laboratory, write_product

from mvtec_lab.data.appearance import appearance
from mvtec_lab.data.images import read_image
from mvtec_lab.evaluation.drift import ALPHA, Sample, all_tested, least_new, p_of
from mvtec_lab.reporting.monitored import counted, sentences, write_monitored
from mvtec_lab.results import read_csv
from mvtec_lab.tasks.batch import Judged, Side
from mvtec_lab.tasks.monitor import compared, samples_of


@pytest.fixture(scope="module")
def line(tiny_net: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[..., int]]:
    """A folder with a run of a classifier, and the command line in it."""
    folder = tmp_path_factory.mktemp("line")
    product = write_product(folder / "products/widget", {"good": 24, "crack": 6, "hole": 6})
    lab = laboratory(tiny_net, product, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert lab("attempt=base", "hydra.run.dir=run") == 0
    return folder, lab


@pytest.fixture
def monitor(line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Compare altered images with those of the run: ``monitor(change, ...)`` -> exit status, monitor.json."""
    folder, lab = line
    monkeypatch.chdir(folder)

    def run(change: Callable[[np.ndarray], np.ndarray], predict: bool = False) -> tuple[int, dict[str, Any]]:
        altered(folder, tmp_path / "new", change)
        new = tmp_path / "new"
        if predict:
            assert lab("task=predict", "ckpt=run", f"source={new}", f"hydra.run.dir={tmp_path / 'day'}") == 0
            new = tmp_path / "day"
        status = lab("task=monitor", "reference=run", f"predictions={new}", f"hydra.run.dir={tmp_path / 'out'}")
        return status, json.loads((tmp_path / "out/monitor.json").read_text())

    return run


def altered(folder: Path, target: Path, change: Callable[[np.ndarray], np.ndarray], count: int = 20) -> None:
    target.mkdir()
    for path in sorted((folder / "products/widget/test/good").glob("*.png"))[:count]:
        cv2.imwrite(str(target / path.name), change(read_image(path))[..., ::-1])


def test_unchanged_images_are_not_called_changed(monitor, capsys: pytest.CaptureFixture[str]) -> None:
    status, facts = monitor(np.flipud, predict=True)
    assert (status, facts["changed"]) == (0, False)
    assert "NO CHANGE SHOWN: 20 new images" in capsys.readouterr().out
    assert {test["name"] for test in facts["tests"]} == {"brightness", "sharpness", "colour", "features", "score"}


def test_brighter_images_are_called_so(monitor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, facts = monitor(lambda image: (image * 1.1).astype(np.uint8))
    assert (status, facts["changed"]) == (3, True)
    captured = capsys.readouterr()
    assert "CHANGED: images are 9." in captured.out
    assert "changed: images are 9." in captured.err
    changed = {test["name"] for test in facts["tests"] if test["changed"]}
    assert "brightness" in changed
    assert "sharpness" not in changed
    page = (tmp_path / "out/report.html").read_text()
    assert "brighter" in page
    assert page.count("<img") == 5 + 2 * 6
    assert "of training" not in page
    captions = re.findall(r"known good, (train|val|test)</b>.*?<br>.*?<br>(\S+?)</figcaption>", page, re.DOTALL)
    split = {Path(row["path"]).name: row["split"] for row in read_csv("run/samples.csv") if row["label"] == "good"}
    assert [part for part, _ in captions] == [split[Path(path).name] for _, path in captions]
    assert len(captions) == 6
    table = [re.findall(r"<span>([^<]*)</span>", row) for row in page.split("<tr>")]
    cells = {row[0]: row[-1] for row in table if row}
    assert cells["colour"] == cells["features"] == "–"
    assert re.fullmatch(r"[\d.e-]+ in score", cells["score"])
    assert cells["brightness"].endswith("%")
    assert sum(facts["images"]["parts"].values()) == facts["images"]["reference"]
    rows = read_csv(tmp_path / "out/images.csv")
    assert [row["set"] for row in rows].count("new") == 20


def test_defects_come_and_go_and_are_not_compared_unless_most_are() -> None:
    kept, notes = compared([judged("OK")] * 15 + [judged("REJECT")] * 5 + [judged("UNKNOWN")])
    assert len(kept) == 16
    assert "5 of 21 new images are rejected and not compared" in notes[0]
    kept, notes = compared([judged("OK")] * 5 + [judged("REJECT")] * 6)
    assert len(kept) == 11
    assert "more than half: all are compared" in notes[0]


def judged(decision: str) -> Judged:
    return Judged(Path("a.png"), {"decision": decision})


def test_p_is_exact_and_a_difference_is_found() -> None:
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(300):
        values = rng.standard_exponential((30, 3))
        p_values.append(p_of(Sample("any", values[:22], values[22:]), 199))
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.08
    assert 0.42 <= np.mean(p_values) <= 0.58
    for change in (lambda values: values + 2, lambda values: values * 4):  # another mean, another spread
        found = [
            p_of(Sample("any", rng.normal(size=(40, 1)), change(rng.normal(size=(20, 1)))), 199) for _ in range(40)
        ]
        assert np.mean(np.array(found) <= 0.05) > 0.9


def test_so_few_images_can_show_something_at_all() -> None:
    least = least_new(8, 5)
    assert comb(8 + least, least) * ALPHA >= 5 > comb(8 + least - 1, least - 1) * ALPHA
    far = Sample("any", np.arange(8.0)[:, None], 100 + np.arange(float(least))[:, None])
    assert p_of(far) * 5 <= ALPHA


def test_small_differences_of_many_images_are_no_alarm() -> None:
    rng = np.random.default_rng(0)
    small = Sample("brightness", rng.normal(size=(400, 1)), 0.4 + rng.normal(size=(400, 1)))
    large = Sample("brightness", small.reference, small.new + 3)
    tests = all_tested([small, large])
    assert [test.shown for test in tests] == [True, True]
    assert [test.changed for test in tests] == [False, True]


@pytest.mark.parametrize("size", [8, 20, 129])
@pytest.mark.parametrize("distances", [False, True])
def test_the_share_of_unusual_images_without_a_change_is_known_for_any_number(size: int, distances: bool) -> None:
    rng = np.random.default_rng(0)
    draws = [Sample("any", rng.random((size, 1)), rng.random((50, 1))) for _ in range(2000)]
    if distances:  # the same values, taken for distances
        draws = [replace(draw, nearest=True) for draw in draws]
        shares = [float((draw.new > np.quantile(draw.reference, 0.95)).mean()) for draw in draws]
    else:
        shares = [draw.unusual() for draw in draws]
    assert np.mean(shares) == pytest.approx(draws[0].expected(), rel=0.05)


def test_an_alarm_needs_more_unusual_images_where_few_are_known() -> None:
    few, many = np.linspace(0, 1, 20)[:, None], np.linspace(0, 1, 400)[:, None]
    new = np.concatenate([np.linspace(0.5, 0.95, 60), np.full(40, 1.1)])[:, None]  # 40 of 100 are outside
    (of_few,), (of_many,) = all_tested([Sample("brightness", few, new)]), all_tested([Sample("any", many, new)])
    assert of_few.unusual == of_many.unusual == 0.4
    assert (of_few.shown, of_few.changed) == (True, False)
    assert "40% of new images are unusual in that; it is an alarm from 56%" in sentences([of_few], 100, "20")[1]
    assert (of_many.shown, of_many.changed) == (True, True)
    assert of_few.alarm == 0.56
    (all_outside,) = all_tested([Sample("any", few[:6], few + 9)])
    assert all_outside.changed, "what all new images show is an alarm with any number of known ones"


def test_a_difference_that_does_not_matter_is_green(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tests = all_tested([Sample("score", rng.normal(size=(400, 1)), 0.4 + rng.normal(size=(400, 1)))])
    said = sentences(tests, 400, counted({"train": 380, "test": 20}))
    assert said[0] == "NO CHANGE THAT MATTERS: 400 new images beside 400 known good images (380 train, 20 test)"
    write_monitored(tmp_path, said, [], tests, [], "run", "new", counted({"train": 380, "test": 20}))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'class="headline green"' in page
    assert "<circle" in page


def test_measures_tell_light_sharpness_and_colour_apart() -> None:
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(40, 180, (64, 64, 3), dtype=np.uint8), (0, 0), 1)
    plain = appearance(image)
    brighter, blurred = appearance((image * 1.3).astype(np.uint8)), appearance(cv2.GaussianBlur(image, (0, 0), 2))
    assert brighter.brightness == pytest.approx(1.3 * plain.brightness, rel=0.01)
    assert brighter.sharpness == pytest.approx(plain.sharpness, rel=0.05)
    assert blurred.sharpness < 0.8 * plain.sharpness
    assert blurred.brightness == pytest.approx(plain.brightness, rel=0.01)
    redder = appearance(np.clip(image * [1.2, 1, 0.9], 0, 255).astype(np.uint8))
    assert np.exp(redder.red - plain.red) == pytest.approx(1.2, rel=0.02)
    assert np.exp(redder.blue - plain.blue) == pytest.approx(0.9, rel=0.02)
    assert (brighter.red, brighter.blue) == pytest.approx((plain.red, plain.blue), abs=0.01)
    assert np.isfinite(appearance(np.zeros((8, 8, 3), np.uint8))[:4]).all()


@pytest.fixture
def refused(line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run task=monitor, which is refused: ``refused(predictions)`` -> its line; nothing is written."""
    folder, lab = line
    monkeypatch.chdir(folder)

    def run(predictions: Path | str, reference: Path | str = "run") -> str:
        words = (f"reference={reference}", f"predictions={predictions}", f"hydra.run.dir={tmp_path / 'out'}")
        assert lab("task=monitor", *words) == 2
        assert not (tmp_path / "out").exists()
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
        return line

    return run


def test_what_is_no_batch_of_new_images_is_refused(line, refused, tmp_path: Path) -> None:
    folder, _ = line
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"predictions={empty} holds no image: give the directory that task=predict wrote" in refused(empty)
    assert "predictions=nowhere does not exist: give the directory" in refused("nowhere")
    assert "predictions=0 is no list of images" in refused("0")
    assert "predictions=run is a run, whose images are those of training" in refused("run")
    altered(folder, tmp_path / "few", lambda image: image + 1)
    for path in sorted((tmp_path / "few").glob("*.png"))[2:]:
        path.unlink()
    assert "2 images to compare: 5 tests against 19 known good images (" in (said := refused(tmp_path / "few"))
    assert ") can show nothing with fewer than 3" in said
    own = folder / "products/widget/test"
    assert "the new images are those of the run itself" in refused(own)


def test_images_of_the_run_itself_are_not_compared_with_themselves(line, monkeypatch, tmp_path: Path) -> None:
    folder, lab = line
    monkeypatch.chdir(folder)
    altered(folder, tmp_path / "new", np.flipud, 15)
    for path in sorted((folder / "products/widget/test/good").glob("*.png"))[:5]:
        shutil.copy(path, tmp_path / "new" / f"copy_{path.name}")
    words = ("task=monitor", "reference=run", f"predictions={tmp_path / 'new'}")
    assert lab(*words, f"hydra.run.dir={tmp_path / 'out'}") == 0
    facts = json.loads((tmp_path / "out/monitor.json").read_text())
    images = {test["name"]: test["images"] for test in facts["tests"]}
    assert "5 new images are images of the run itself" in facts["warnings"][0]
    assert images["brightness"]["new"] == 20
    assert 19 - 5 <= images["brightness"]["reference"] < 19  # some are not compared, as the model rejects them
    assert images["score"]["new"] == 15


def test_a_reference_without_its_images_is_refused(line, refused, tmp_path: Path) -> None:
    folder, _ = line
    altered(folder, tmp_path / "new", lambda image: image + 1)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "run/best.ckpt", alone)
    assert "has no list of its run's images beside its checkpoint" in refused(tmp_path / "new", alone)
    product = folder / "products/widget"
    shutil.copytree(product, tmp_path / "kept")
    for path in product.glob("t*/good/*.png"):
        shutil.copy(tmp_path / "new/000.png", path)
    assert "is not the image that the run of reference=run/best.ckpt had: restore it" in refused(tmp_path / "new")
    shutil.rmtree(product)
    (tmp_path / "kept").rename(product)
    product.rename(folder / "products/gone")
    try:
        assert "are gone" in refused(tmp_path / "new")
    finally:
        (folder / "products/gone").rename(product)


def test_images_that_moved_and_broken_ones_are_named(
    line, refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, lab = line
    new, day = tmp_path / "new", tmp_path / "day"
    altered(folder, new, np.flipud)
    assert lab("task=predict", "ckpt=run", f"source={new}", f"hydra.run.dir={day}") == 0
    (new / "000.png").unlink()
    (new / "001.png").write_text("no image")
    words = ("task=monitor", "reference=run", f"predictions={day}")
    assert lab(*words, f"hydra.run.dir={tmp_path / 'some'}") == 1
    said = capsys.readouterr().err
    assert f"{new / '000.png'} is gone" in said
    assert f"{new / '001.png'} cannot be read" in said
    facts = json.loads((tmp_path / "some/monitor.json").read_text())
    assert (facts["images"]["new"], len(facts["images"]["broken"])) == (18, 2)
    new.rename(tmp_path / "moved")
    assert "none of its 20 images is there: restore" in refused(day)


@pytest.mark.parametrize("score", ["nan", "inf", "abc"])
def test_a_score_that_is_none_is_refused(score: str, line, refused, tmp_path: Path) -> None:
    folder, _ = line
    day, other = tmp_path / "day", tmp_path / "other"
    day.mkdir()
    (day / "predictions.csv").write_text(f"path,prediction,score\na.png,good,{score}\n")
    assert "predictions.csv is damaged (the score in line 2 is no finite number)" in refused(day)
    shutil.copytree(folder / "run", other)
    text = (other / "predictions.csv").read_text().splitlines()
    text[0] += ",score"
    (other / "predictions.csv").write_text("\n".join([text[0], *(f"{row},{score}" for row in text[1:])]) + "\n")
    assert f"{other / 'predictions.csv'} is damaged (the score in line 2" in refused(tmp_path, other)
    with pytest.raises(ValueError, match="no finite number"):
        p_of(Sample("score", np.zeros((4, 1)), np.array([[1.0], [np.nan]])))


@pytest.mark.parametrize("about", ["[]", '{"ckpt": 3, "directory": 7}', '{"ckpt": null, "directory": null}'])
def test_damaged_predictions_are_named(about: str, refused, tmp_path: Path) -> None:
    day = tmp_path / "day"
    day.mkdir()
    (day / "predictions.csv").write_text("path,prediction,score\na.png,good,0.5\n")
    (day / "predicted.json").write_text(about)
    assert "predicted.json is damaged (it does not name its model)" in refused(day)
    (day / "predicted.json").unlink()
    (day / "predictions.csv").write_text("path,prediction,score\na.png,good,0.5\n,good,0.5\n")
    assert "predictions.csv is damaged (line 3 names no image)" in refused(day)


def test_an_image_counts_once(line, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder, lab = line
    monkeypatch.chdir(folder)
    new, day = tmp_path / "new", tmp_path / "day"
    altered(folder, new, np.flipud)
    shutil.copy(new / "000.png", new / "copy.png")
    assert lab("task=predict", "ckpt=run", f"source={new}", f"hydra.run.dir={day}") == 0
    rows = (day / "predictions.csv").read_text().splitlines()
    (day / "predictions.csv").write_text("\n".join([*rows, *rows[-3:]]) + "\n")
    read: list[Path] = []
    bytes_of = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or bytes_of(path))
    assert lab("task=monitor", "reference=run", f"predictions={day}", f"hydra.run.dir={tmp_path / 'out'}") == 0
    facts = json.loads((tmp_path / "out/monitor.json").read_text())
    assert facts["images"]["new"] == 20
    assert read.count(new / "000.png") == 1, "a file is read once, for its digest and its pixels"
    assert facts["warnings"] == [
        "3 rows of predictions.csv name a file once more: its last row counts",
        "1 of 21 new images are copies of others, and count once",
    ]


def test_predictions_of_another_model_are_refused(line, refused, tmp_path: Path) -> None:
    folder, lab = line
    altered(folder, tmp_path / "new", lambda image: image + 1)
    assert lab("attempt=base", "seed=1", f"hydra.run.dir={tmp_path / 'other'}") == 0
    day = tmp_path / "day"
    assert lab("task=predict", f"ckpt={tmp_path / 'other'}", f"source={tmp_path / 'new'}", f"hydra.run.dir={day}") == 0
    assert "are of another model" in refused(day)


def test_what_is_equal_in_all_images_is_not_compared(monitor) -> None:
    def plain(image: np.ndarray) -> np.ndarray:  # but for a pixel, as copies count once
        return np.where(np.arange(image.size).reshape(image.shape) < 3, image, 7).astype(np.uint8)

    assert monitor(plain)[0] == 3
    same = Side([], [appearance(np.full((8, 8, 3), 7, np.uint8))] * 4, None, np.ones(4))
    samples, notes = samples_of(same, same)
    assert not samples
    assert "brightness is not compared: it is the same in all images" in notes


@pytest.mark.slow
@pytest.mark.parametrize("attempt", ["segment/fpn", "patchcore"])
def test_other_problems_are_compared_as_well(attempt: str, lab, product: Path, tmp_path: Path) -> None:
    """Segmentation has no frozen features: what images show is compared at 16 x 16 pixels."""
    write_product(product, {"good": 24, "crack": 6, "hole": 6}, train_good=30)
    layers = "model.options.layers=[features.relu1,features.relu2]"
    assert lab(f"attempt={attempt}", layers, "hydra.run.dir=run") == 0
    altered(tmp_path, tmp_path / "new", lambda image: np.roll(image // 2, 3, axis=0))
    assert lab("task=monitor", "reference=run", "predictions=new", "hydra.run.dir=out") == 3
    facts = json.loads((tmp_path / "out/monitor.json").read_text())
    assert {"layout", "features"} & {test["name"] for test in facts["tests"]} == {
        "features" if attempt == "patchcore" else "layout"
    }
    unseen = [row for row in read_csv("run/samples.csv") if row["label"] == "good" and row["split"] in ("val", "test")]
    images = {test["name"]: test["images"]["reference"] for test in facts["tests"]}
    assert 0 < images["score"] <= len(unseen) < images["brightness"]
