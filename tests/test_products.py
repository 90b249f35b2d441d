"""Attempts on several products: a product that fails alone, a table for each, and one verdict over all."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import write_product
from rich.console import Console
from scipy import stats
from test_pairs import fold, said
from test_reporting import fabricate, fail

from mvtec_lab.config import VerdictConfig
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation import products as tests_of
from mvtec_lab.evaluation import statistics
from mvtec_lab.evaluation.differences import noise_of_test_sets
from mvtec_lab.evaluation.products_planning import OverProducts, ProductsDesign, ways_over_products
from mvtec_lab.reporting import products_figures, summary
from mvtec_lab.reporting.best import best_run
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.product_names import told_apart
from mvtec_lab.reporting.products import ProductsComparison
from mvtec_lab.reporting.products_plan import plan_over_products
from mvtec_lab.reporting.products_plan import said as said_of
from mvtec_lab.reporting.report import REPORT, sum_up
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.results import CONFIG, PREDICTIONS, RESULT, SAMPLES, RunResult, read_csv, write_csv

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is no part of the package

from benchmarks import products as simulated

CATEGORIES = ("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "tile")


def write(folder: Path, ahead: dict[str, float], products: int, folds: int = 4, images: int = 20) -> None:
    """Runs of attempts on products; each attempt is right in so many more images of each fold than half."""
    rng = np.random.default_rng(0)
    for product in CATEGORIES[:products]:
        hard = rng.integers(-2, 3)
        for name, more in ahead.items():
            for number in range(folds):
                right = int(np.clip(images / 2 + hard + more + rng.integers(-1, 2), 0, images))
                place = folder / f"{name}-{product}-{number}"
                fold(place, name, number, right, images, category=product)
                path = place / CONFIG
                path.write_text(f"{path.read_text()}data: {{name: mvtec, category: {product}}}\n")


def compared(folder: Path, verdict: VerdictConfig | None = None) -> ProductsComparison:
    comparison = compare(load_runs(folder), verdict)
    assert isinstance(comparison, ProductsComparison)
    return comparison


def printed(comparison: ProductsComparison, width: int = 100) -> str:
    out = io.StringIO()
    summary.print_table(summary.summarise(comparison), comparison.verdict, Console(file=out, width=width))
    return out.getvalue()


# A sweep --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sound products, and one with a single image of a defect."""
    write_product(tmp_path / "root/widget")
    write_product(tmp_path / "root/gear", {"good": 9, "dent": 7})
    write_product(tmp_path / "root/thin", {"good": 9, "crack": 1})
    return tmp_path / "root"


@pytest.mark.slow
def test_folders_of_one_name_are_products_of_their_own_unless_they_share_images(lab, tmp_path: Path, capsys) -> None:
    """Runs on the widgets of two lines were taken for repeats of one attempt; a copy elsewhere is no other product."""
    lines = [write_product(tmp_path / f"line_{n}/widget", {"good": 8, "crack": 8}, size=24 + n) for n in (1, 2)]
    shutil.copytree(tmp_path / "line_1", tmp_path / "copy")
    roots = ",".join(map(str, [*lines, tmp_path / "copy/widget"]))
    assert lab("-m", f"data.root={roots}", "attempt=base,cosine", "trainer.max_epochs=1", "hydra.sweep.dir=s") == 0
    assert "line_2/widget" in capsys.readouterr().out
    comparison = json.loads((tmp_path / "s/comparison.json").read_text())
    assert sorted(comparison["products"]) == ["line_1/widget", "line_2/widget"]
    known = {(run.attempt, Path(run.paths["data.root"]).parent.name): run.category for run in load_runs("s")}
    assert known["base", "copy"] == known["base", "line_1"] == "line_1/widget"
    copies = [run for run in load_runs("s") if run.category == "line_1/widget"]
    assert not isinstance(alone := compare(copies), ProductsComparison)
    assert [attempt.copies for attempt in alone.attempts] == [1, 1]
    assert {run.category for run in told_apart([run for run in copies if "copy" in run.run_dir])} == {"line_1/widget"}


@pytest.mark.slow
def test_a_product_that_fails_refuses_no_other(lab, root: Path, tmp_path: Path, capsys) -> None:
    words = [f"data.root={root}", "data.category=widget,thin,gear,none", "attempt=head,base", "trainer.max_epochs=1"]
    assert lab("-m", *words, "hydra.sweep.dir=s") == 2
    out, err = capsys.readouterr()
    for text in ("thin: all 2 jobs fail, other products run", "class 'crack'", "unknown category 'none'"):
        assert text in err
    assert err.count("class 'crack'") == err.count("unknown category 'none'") == 1  # a line for each product
    runs = {(run.attempt, run.category): run for run in load_runs("s")}
    assert {key for key, run in runs.items() if run.completed} == {
        (attempt, category) for attempt in ("base", "head") for category in ("widget", "gear")
    }
    assert not runs["base", "thin"].epochs
    assert runs["base", "thin"].exit_status == 2
    assert "class 'crack'" in str(runs["base", "thin"].error)
    assert "thin: no result" in out
    assert "thin is no part of this" in out
    rows = read_csv(tmp_path / "s/summary.csv")
    assert {(row["attempt"], row["category"]) for row in rows} == runs.keys()
    content = json.loads((tmp_path / "s/comparison.json").read_text(encoding="utf-8"))
    assert {entry["category"] for entry in content["attempts"]} == {"widget", "thin", "gear", "none"}
    assert {pair["category"] for pair in content["pairs"]} == {"widget", "gear"}
    assert (tmp_path / "s/dataset.html").is_file()  # of the products that there are


@pytest.mark.slow
def test_a_folder_that_is_missing_has_its_own_name(lab, root: Path, tmp_path: Path) -> None:
    words = [f"data.root={root / 'widget'},{root / 'gone'}", "attempt=head", "trainer.max_epochs=1"]
    assert lab("-m", *words, "hydra.sweep.dir=s") == 2
    assert {run.category: run.completed for run in load_runs("s")} == {"widget": True, "gone": False}


@pytest.mark.slow
def test_a_product_that_failed_is_run_when_its_images_are_there(lab, root: Path, tmp_path: Path) -> None:
    words = [f"data.root={root}", "data.category=thin,gear,none", "attempt=base", "trainer.max_epochs=1"]
    assert lab("-m", *words, "hydra.sweep.dir=s") == 2
    before = (tmp_path / "s/base-data.category_gear" / RESULT).read_bytes()
    write_product(root / "none")
    write_product(root / "thin", {"good": 9, "crack": 5})
    assert lab("-m", *words, "hydra.sweep.dir=s", "resume=true") == 0
    assert all(run.completed for run in load_runs("s"))
    assert (tmp_path / "s/base-data.category_gear" / RESULT).read_bytes() == before


def test_a_sweep_without_a_sound_product_is_refused(lab, root: Path, tmp_path: Path, capsys) -> None:
    words = [f"data.root={root}", "data.category=thin,none", "attempt=base", "trainer.max_epochs=1"]
    assert lab("-m", *words, "hydra.sweep.dir=s") == 2
    assert "thin: " in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
    # one product alone is refused as ever
    assert lab("-m", f"data.root={root}", "data.category=thin", "attempt=base,head", "hydra.sweep.dir=s") == 2
    assert not (tmp_path / "s").exists()


# The verdict ----------------------------------------------------------------------------------------------------------


def test_a_few_products_are_compared_by_their_mean(tmp_path: Path) -> None:
    write(tmp_path, {"a": 7, "b": 0}, 3)
    comparison = compared(tmp_path)
    assert [*comparison.products] == [*CATEGORIES[:3]]
    (pair,) = comparison.over
    assert [*pair.by_product] == [*CATEGORIES[:3]]
    assert pair.difference is not None
    assert pair.difference.method == "random-effects mean over products"
    within = {p.category: p for p in comparison.pairs}
    assert pair.by_product == {name: within[name].difference.value for name in within}
    expected = tests_of.mean_over_products(
        [*pair.by_product.values()], [p.error for p in within.values()], [p.images for p in within.values()]
    )
    assert (pair.p, pair.difference.value) == (pytest.approx(expected.p), pytest.approx(expected.value))
    assert pair.different
    assert comparison.best == "a"
    assert comparison.verdict[0].startswith("Best on validation, in the mean of 3 products: a")
    assert "a is shown to be better than b (behind by" in said(comparison)
    assert "3 products say little of others" in said(comparison)
    mean = np.mean([a.estimate().value for a in comparison.attempts if a.name == "a"])
    assert f"test accuracy {mean:.3f}" in said(comparison)
    assert comparison.headline[0] == "● Shown. Use a: over 3 products it is shown to be better than b."
    assert f"is {mean:.2f} in the mean of the products" in comparison.headline[1]
    assert "escapes" in comparison.headline[2].lower()
    text = printed(comparison)
    assert max(map(len, text.splitlines())) <= 100
    for name in (*CATEGORIES[:3], "all products", f"{mean:.3f}"):
        assert name in text


def test_many_products_are_compared_by_ranks(tmp_path: Path) -> None:
    write(tmp_path, {"a": 6, "b": 2, "c": 0}, 8, folds=3)
    comparison = compared(tmp_path)
    pairs = {(pair.first, pair.second): pair for pair in comparison.over}
    assert {pair.difference.method for pair in pairs.values()} == {"Wilcoxon's signed-rank test over products"}
    assert pairs["a", "c"].p == pytest.approx(2 / 2**8)
    assert pairs["a", "c"].p_holm == pytest.approx(6 / 2**8)
    assert pairs["a", "c"].different
    assert {placed.attempt: placed.rank for placed in comparison.placed}["a"] == 1
    assert comparison.friedman is not None
    assert comparison.friedman < 0.01
    assert "Mean rank over 8 products, 1 is the best: a 1.0" in said(comparison)


def test_five_products_are_too_few_for_ranks_and_that_is_said(tmp_path: Path) -> None:
    write(tmp_path, {"a": 3, "b": 0}, 5, folds=3)
    comparison = compared(tmp_path)
    assert comparison.over[0].difference.method == "random-effects mean over products"
    assert "Ranks of 5 products cannot reach p = 0.05" in said(comparison)
    assert "Mean rank over 5 products" in said(comparison)


def test_the_first_lines_say_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "level", {"a": 3, "b": 3}, 2)
    level = compared(tmp_path / "level").headline
    assert level[0].startswith("▲ Open. Use ")
    assert "no attempt is shown to be the best" in level[0]
    assert level[-1].startswith("Next: ")
    write(tmp_path / "nothing", {"a": -7, "b": -7}, 3)
    nothing = compared(tmp_path / "nothing")
    assert nothing.headline[0].startswith("■ Nothing learnt. Do not use any of these 2 attempts: on no product is")
    assert nothing.verdict[0].startswith("It is not shown that anything was learnt: on none of 3 products")
    assert not nothing.advice
    assert "too close" not in said(nothing)
    assert len(nothing.headline) == 2  # no rates of an attempt that nobody is to use
    against = compared(tmp_path / "level", VerdictConfig(reference="b")).headline
    assert against[0] == "▲ Open. Stay with b: over 2 products no other attempt is shown to be better."


def test_an_attempt_alone_on_the_products_is_called_that(tmp_path: Path) -> None:
    write(tmp_path, {"a": 7}, 2)
    chance = "always naming the most frequent class on each of them"
    alone = f"● Learnt. a, the only attempt on 2 products, is shown to be better than {chance}."
    assert compared(tmp_path).headline[0] == alone
    fabricate(tmp_path / "alone", "c", category="bottle")  # which has one product
    headline = compared(tmp_path).headline
    assert headline[0] == alone
    assert headline[-1] == "Next: compare it with another attempt (-m attempt=a,NAME cv.folds=5)."


def test_where_no_attempt_can_be_named_the_reason_is(tmp_path: Path) -> None:
    for product in ("bottle", "cable"):
        for name in ("a", "b"):
            run = fabricate(tmp_path / f"{name}{product}", name, category=product)
            run.metrics["val"] = {}
            run.save()
    assert "as validation cannot choose among them. Each product's own" in compared(tmp_path).headline[0]


@pytest.mark.slow
def test_files_say_what_the_verdict_says(tmp_path: Path) -> None:
    for number, product in enumerate(CATEGORIES[:5]):
        for name, right in (("a", 17), ("b", 8 + number)):
            fabricate(tmp_path / f"{name}{number}", name, right=right, category=product)
    rows, comparison = sum_up(tmp_path)
    assert [(row["product"], row["attempt"]) for row in rows] == [(p, name) for p in CATEGORIES[:5] for name in "ab"]
    page = (tmp_path / REPORT).read_text(encoding="utf-8")
    for text in ("critical-difference diagram", "Differences by product", 'href="report_bottle.html"', "0.850"):
        assert text in page
    assert "Pair by pair" in (tmp_path / "report_bottle.html").read_text(encoding="utf-8")
    content = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert content["best"] == "a"
    assert content["verdict"] == comparison.verdict
    assert content["products"]["grid"]["best"] == "a"
    assert sum(content["over_products"]["pairs"][0]["weights"].values()) == pytest.approx(1)


def test_a_reference_is_compared_over_products(tmp_path: Path) -> None:
    write(tmp_path, {"a": 4, "b": 0, "c": 1}, 2)
    comparison = compared(tmp_path, VerdictConfig(reference="b"))
    assert {(pair.first, pair.second) for pair in comparison.over} == {("a", "b"), ("c", "b")}
    assert comparison.reference == "b"
    assert comparison.verdict[0].startswith("Best on validation, in the mean of 2 products: ")
    assert "verdict.reference=z is none" in said(compared(tmp_path, VerdictConfig(reference="z")))


def test_lower_is_better_where_the_metric_says_so(tmp_path: Path) -> None:
    write(tmp_path, {"a": 5, "b": 0}, 3)
    for run in load_runs(tmp_path):  # the probabilities that ``fabricate`` takes
        path, rare = Path(run.run_dir, PREDICTIONS), 0.4 / (len(run.classes) - 1)
        rows = [
            row | {f"prob_{name}": 0.6 if name == row["prediction"] else rare for name in run.classes}
            for row in read_csv(path)
        ]
        write_csv(path, rows, list(rows[0]))
    comparison = compared(tmp_path, VerdictConfig(metric="log_loss"))
    assert comparison.over[0].metric == "log_loss"
    assert comparison.over[0].difference.value < 0
    assert comparison.over[0].lead_of("a") > 0
    assert {placed.attempt: placed.rank for placed in comparison.placed} == {"a": 1, "b": 2}
    assert "b (behind by" in said(comparison)


def test_what_does_not_count_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"a": 5, "b": 0}, 3)
    for number in (1, 2, 3):  # of capsule b has one fold of four
        for path in (tmp_path / f"b-capsule-{number}").iterdir():
            path.unlink()
    fabricate(tmp_path / "alone", "c", category="bottle")
    fail(tmp_path / "failed", "a", "ValueError: no such thing")
    run = RunResult.load(tmp_path / "failed")
    run.category = "zipper"
    run.save()
    comparison = compared(tmp_path)
    pair = next(pair for pair in comparison.over if {pair.first, pair.second} == {"a", "b"})
    assert [*pair.by_product] == ["bottle", "cable"]
    assert "capsule does not count for a and b, as only 1 of 4 folds is done by both" in said(comparison)
    assert "Not ranked over products, with too few of them: c (bottle)" in said(comparison)
    assert not any("the only attempt" in line for line in comparison.headline)
    assert "zipper is no part of this: ValueError: no such thing" in said(comparison)
    assert [*comparison.products][-1] == "zipper"
    assert "zipper: no result" in printed(comparison)


def test_the_verdict_ends_with_what_would_tell_two_attempts_apart(tmp_path: Path) -> None:
    write(tmp_path / "two", {"a": 3, "b": 0}, 2)
    two = compared(tmp_path / "two")
    assert two.verdict[-1] == two.advice
    assert "To tell a and b apart over products (15.6 points seen in the mean) you need about " in two.advice
    assert "more products like these" in two.advice
    unknown = "With 2 products it is hardly known how much products differ, and so not whether more images"
    assert unknown in two.advice
    assert "images of each product" not in two.advice
    assert unknown in " ".join(said_of(plan_over_products(two, 10)))  # as the plan says
    write(tmp_path / "shown", {"a": 7, "b": 0}, 3)
    assert compared(tmp_path / "shown").advice == ""
    write(tmp_path / "level", {"a": 1, "b": 0, "c": 1}, 6)
    level = compared(tmp_path / "level")
    assert "Over products c and a are too close (0.6 points seen in the mean): choose by" in level.verdict[-1]
    assert level.headline[-1] == f"Next: {level.advice}"


@pytest.mark.slow
def test_a_plan_over_products(lab, tmp_path: Path, capsys) -> None:
    write(tmp_path / "runs", {"a": 1, "b": 0, "c": 1}, 6)
    assert lab("task=plan", "dirs=[runs]", "difference=5", "hydra.run.dir=planned") == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "3 attempts differ over products like these by 5.0 points in accuracy",
        "Holm's correction for 3 comparisons",
        "With 6 products of 80 labelled images in the mean, as they are there, a difference of ",
        "more products like these",
        "more labelled images of each product",
    ):
        assert words in text
    content = json.loads((tmp_path / "planned/plan.json").read_text(encoding="utf-8"))
    assert content["seen"] == {"products": 6, "images": 80}
    more, larger = content["ways"]
    assert more["design"]["products"] > 6
    assert more["runs"] == 3 * 4 * more["design"]["products"]
    assert larger["design"]["images"] > 80
    assert lab("task=plan", "dirs=[runs]", "difference=60", "hydra.run.dir=easy") == 0
    assert "That is enough." in capsys.readouterr().out
    assert lab("task=plan", "dirs=[runs]", "difference=101", "hydra.run.dir=wrong") == 2


def test_more_products_show_what_more_images_cannot() -> None:
    unlike = OverProducts(variance=0.004, own=0.1, products=5, images=80)
    (more,) = ways_over_products(unlike, 0.05, 0.05)
    assert more.products > 5
    assert unlike.power(more, 0.05)(0.05) >= 0.8
    assert unlike.power(ProductsDesign(more.products - 1, 80), 0.05)(0.05) < 0.8
    found = unlike.found(0.05)
    assert found is not None
    assert ways_over_products(unlike, 1.01 * found, 0.05) == [unlike.design]
    assert ways_over_products(unlike, 0.0001, 0.05) == []
    alike = OverProducts(variance=0.004, own=1.0, products=4, images=80)
    assert [way.products for way in ways_over_products(alike, 0.05, 0.05)][-1] == 4  # more images of each
    alike = OverProducts(variance=0.004, own=1.0, products=3, images=80)  # with three that is luck
    assert all(way.products > 3 for way in ways_over_products(alike, 0.05, 0.05))


def test_the_power_of_ranks_is_that_of_few_products() -> None:
    """It was that of many products, which few do not reach: their p has few steps."""
    assert [tests_of.needed_sum(n, 0.05) for n in (6, 7, 8, 12)] == [21, 26, 33, 65]  # Wilcoxon's table: 0, 2, 3, 13
    six = OverProducts(variance=0.01, own=0.1, products=6, images=80)
    power = six.power(six.design, 0.05)
    for change in (0.05, 0.1, 0.2):
        all_ahead = stats.norm.cdf(change / np.sqrt(0.01 * 5 / stats.chi2.median(5))) ** 6
        assert power(change) == pytest.approx(all_ahead, abs=0.03)
    # Five products are compared by their mean, which shows more.
    assert OverProducts(0.01, 0.1, 5, 80).power(ProductsDesign(5, 80), 0.05)(0.15) > power(0.15)
    uneven = OverProducts(variance=0.01, own=0.1, products=8, images=80, unlike=(0.2, 5.0))
    even = OverProducts(variance=0.01, own=0.1, products=8, images=80)
    assert uneven.power(uneven.design, 0.05)(0.1) < even.power(even.design, 0.05)(0.1) - 0.05


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param(PREDICTIONS, "damaged", marks=pytest.mark.slow),
        (RESULT, ""),
        pytest.param(RESULT, '{"attempt": "b"', marks=pytest.mark.slow),
        pytest.param(RESULT, '{"seconds": NaN}', marks=pytest.mark.slow),
        pytest.param(CONFIG, "- optimizer", marks=pytest.mark.slow),
        (CONFIG, None),
        pytest.param(SAMPLES, "damaged", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_file_of_one_run_refuses_no_other(
    lab, tmp_path: Path, capsys, name: str, content: str | None
) -> None:
    write(tmp_path / "runs", {"a": 5, "b": 0}, 3)
    sound = compared(tmp_path / "runs")
    path = tmp_path / "runs/b-cable-1" / name
    path.write_text("a: [1," if content is None else content)
    if content is None:  # nothing says of which product it is
        path.with_name(RESULT).write_text("[]")
    assert lab("task=compare", f"dirs=[{tmp_path / 'runs'}]", "hydra.run.dir=out") == 1
    out, err = capsys.readouterr()
    assert err.count("error: ") == 1
    assert f"error: {path.with_name(RESULT) if content is None else path} is " in err
    assert "1 of 24 runs (b-cable-1)" in out
    comparison = compared(tmp_path / "runs")
    assert [*comparison.over[0].by_product] == ["bottle", "cable", "capsule"]
    assert comparison.products["capsule"].verdict == sound.products["capsule"].verdict
    (failed,) = (row for row in read_csv("out/summary.csv") if row["failed"] != "0")
    assert failed["error"] == comparison.damaged[0]
    assert (failed["category"], failed["attempt"]) == (("unknown", "b-cable-1") if content is None else ("cable", "b"))
    cable = next(a for a in comparison.products["cable"].attempts if a.name == "b")
    assert len(cable.done) == 3
    json_ = json.loads((Path("out") / "comparison.json").read_text())
    assert json_["damaged"] == comparison.damaged


def test_damaged_samples_leave_a_run_out_only_where_its_images_are_asked_for(tmp_path: Path) -> None:
    """They were taken for none: a run in a folder of the same name elsewhere was then a repeat of another product's."""
    for number, line in enumerate(("line_1", "line_2")):
        for name, right in (("a", 17), ("b", 9)):
            fabricate(tmp_path / line / name, name, right=right, paths={"data.root": f"/{line}/bottle"})
            rows = [{"path": f"{i}.png", "split": "test", "digest": f"{number}{i}"} for i in range(20)]
            write_csv(tmp_path / line / name / SAMPLES, rows, list(rows[0]))
    damaged = tmp_path / "line_2/b" / SAMPLES
    damaged.write_text("path\n1.png\n")
    runs = {(run.attempt, run.category): run for run in load_runs(tmp_path)}
    assert {key for key, run in runs.items() if run.completed} == {
        ("a", "line_1/bottle"),
        ("b", "line_1/bottle"),
        ("a", "line_2/bottle"),
    }
    assert f"{damaged} is damaged (line 2 has no 'split')" in str(runs["b", "line_2/bottle"].error)
    assert compared(tmp_path).damaged == [runs["b", "line_2/bottle"].error]
    assert not compare(load_runs(tmp_path / "line_2")).damaged  # one product: nobody asks


def test_one_product_with_results_has_its_own_verdict(tmp_path: Path) -> None:
    write(tmp_path, {"a": 5, "b": 0}, 1)
    fail(tmp_path / "failed", "a", "ValueError: no such thing")
    run = RunResult.load(tmp_path / "failed")
    run.category = "zipper"
    run.save()
    comparison = compared(tmp_path)
    assert comparison.verdict[0].startswith("Only bottle has completed runs")
    assert comparison.products["bottle"].verdict[0] in comparison.verdict
    sum_up(tmp_path)


def test_an_attempt_that_is_not_the_same_on_all_products_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"a": 5, "b": 0}, 2)
    for path in tmp_path.glob("a-cable-*/config.yaml"):
        config = yaml.safe_load(path.read_text())
        config["optimizer"]["lr"] = 0.25
        path.write_text(yaml.safe_dump(config))
    assert "a is not the same attempt on all products (optimizer.lr: bottle 0.0001, cable 0.25)" in said(
        compared(tmp_path)
    )


def test_settings_name_attempts_alike_on_all_products(tmp_path: Path) -> None:
    for product in CATEGORIES[:2]:
        for lr in (0.001, 0.01):
            if (product, lr) == ("cable", 0.01):  # its only run of that kind is missing
                continue
            run = fabricate(tmp_path / f"{product}{lr}", "base", category=product)
            path = Path(run.run_dir) / CONFIG
            path.write_text(path.read_text(encoding="utf-8").replace("lr: 0.001", f"lr: {lr}"), encoding="utf-8")
    names = {name: [a.name for a in part.attempts] for name, part in compared(tmp_path).products.items()}
    assert names["bottle"] == ["base optimizer.lr=0.001", "base optimizer.lr=0.01"]
    assert names["cable"] == ["base optimizer.lr=0.001"]


def test_products_of_their_own_classes_are_put_together_and_that_is_said(tmp_path: Path) -> None:
    for product, classes in (("bottle", ["good", "crack"]), ("cable", ["good", "cut"])):
        for name in ("a", "b"):
            fabricate(tmp_path / f"{name}{product}", name, category=product, classes=classes)
    assert "no type of defect in common" in said(compared(tmp_path))


def test_there_is_no_best_run_of_several_products(tmp_path: Path) -> None:
    write(tmp_path, {"a": 5, "b": 0}, 2)
    for run in load_runs(tmp_path):
        Path(run.run_dir, "best.ckpt").write_bytes(b"")
    with pytest.raises(LabError, match="several products"):
        best_run(tmp_path)


# The statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "spread"), [(0.01, 0.0), (0.05, 0.5), (0.2, 0.5)])
@pytest.mark.parametrize("products", [3, 8])
def test_the_interval_of_mistakes_over_products_holds_the_truth(products: int, rate: float, spread: float) -> None:
    """Student's by itself held it in 35% of cases, of three products with fifteen defects and a rate of 1%."""
    rng, defects, repeats = np.random.default_rng(0), 15, 200
    odds = np.log(rate / (1 - rate)) + spread * rng.standard_normal((100_000, 1))
    truth = float((1 / (1 + np.exp(-odds))).mean())
    odds = np.log(rate / (1 - rate)) + spread * rng.standard_normal((repeats, products))
    found = rng.binomial(defects, 1 / (1 + np.exp(-odds)))
    own = {count: statistics.wilson_interval(count, defects) for count in range(defects + 1)}
    intervals = [tests_of.mean_of_shares(row / defects, *zip(*(own[c] for c in row), strict=True)) for row in found]
    assert np.mean([low <= truth <= high for low, high in intervals]) >= 0.93


def test_products_without_a_mistake_are_not_certain(tmp_path: Path) -> None:
    for product in CATEGORIES[:3]:
        fabricate(tmp_path / product, "a", right=20, category=product)
    line = next(line for line in compared(tmp_path).headline if line.startswith("Escapes: 0.0% of the defects"))
    low, high = re.findall(r"95%: ([\d.]+) to ([\d.]+)%", line)[0]
    assert float(low) == 0
    assert 5 < float(high) < 20


def test_products_that_agree_weigh_by_their_images() -> None:
    found = tests_of.mean_over_products([0.1, 0.2, 0.12], [0.05, 0.05, 0.05], [20, 20, 200])
    assert found.weights[2] > 2 * found.weights[0]
    assert found.low < found.value < found.high
    equal = tests_of.mean_over_products([0.1, 0.2, 0.3], [0.0, 0.0, 0.0], [10, 10, 10])
    assert equal.value == pytest.approx(0.2)
    half = 4.302653 * 0.1 / np.sqrt(3)  # Student's interval of three equal weights
    assert (equal.low, equal.high) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    apart = tests_of.mean_over_products([-0.4, 0.5, 0.1], [0.01, 0.01, 0.01], [20, 20, 200])
    assert apart.inconsistency > 0.9
    assert apart.weights == pytest.approx((1 / 3,) * 3, abs=0.01)
    with pytest.raises(ValueError, match="not finite"):
        tests_of.mean_over_products([np.nan, 0.1], [0.1, 0.1], [10, 10])
    with pytest.raises(ValueError, match="single product"):
        tests_of.mean_over_products([0.1], [0.1], [10])


def test_ranks_are_exact_with_and_without_ties() -> None:
    assert tests_of.signed_rank([1, 2, 3, 4, 5, 6]) == pytest.approx(2 / 64)
    assert tests_of.signed_rank([0.1] * 6) == pytest.approx(2 / 64)  # all alike
    assert tests_of.signed_rank([0.0] * 6) == 1
    assert tests_of.signed_rank([0.1, -0.1] * 3) == pytest.approx(1)
    assert tests_of.decides_by_ranks(6, 1, 0.05)
    assert not tests_of.decides_by_ranks(5, 1, 0.05)
    assert not tests_of.decides_by_ranks(7, 6, 0.05)
    assert tests_of.friedman([[3, 2, 1]] * 5) == 0
    assert tests_of.friedman([[1, 1, 1]] * 5) == 1
    assert tests_of.friedman([[3, 2, 1], [1, 3, 2], [2, 1, 3]]) == 1


def test_bars_join_attempts_that_are_not_shown_to_differ() -> None:
    different = {frozenset(pair) for pair in (("a", "c"), ("a", "d"))}
    assert products_figures.groups("abcd", different) == [(0, 1), (1, 3)]
    assert products_figures.groups("ab", {frozenset("ab")}) == []


@pytest.mark.parametrize("products", [2, 5, 8, 13, 15])
def test_a_simulated_sweep_is_tested_as_the_verdict_tests_it(products: int) -> None:
    sweeps = simulated.draw(products, 0.03, repeats=5)
    means, p = simulated.by_mean(sweeps, (0, 1)), simulated.by_ranks(sweeps, (0, 1))
    for repeat in range(5):
        changes = [sweep.accuracy[repeat, 0] - sweep.accuracy[repeat, 1] for sweep in sweeps]
        errors = [
            noise_of_test_sets(change, simulated.SHARE, simulated.FOLDS / sweep.images).seen ** 0.5
            for change, sweep in zip(changes, sweeps, strict=True)
        ]
        values = [float(change.mean()) for change in changes]
        found = tests_of.mean_over_products(values, errors, [sweep.images for sweep in sweeps])
        for key in ("value", "p", "error", "own", "weights"):
            assert getattr(means, key)[repeat] == pytest.approx(getattr(found, key)), key
        assert p[repeat] == pytest.approx(tests_of.signed_rank(values))


@pytest.mark.slow
@pytest.mark.parametrize("spread", simulated.SPREADS)
@pytest.mark.parametrize("products", simulated.PRODUCTS)
def test_equal_attempts_are_rarely_called_different_over_products(products: int, spread: float) -> None:
    assert simulated.called(simulated.draw(products, spread)) <= 0.065


@pytest.mark.parametrize("images", [16, 40])
def test_equal_differences_of_few_images_are_no_certainty(images: int) -> None:
    """Two products of equally many images, one split each: the same difference on both is often luck."""
    rng, found = np.random.default_rng(0), []
    for only in rng.multinomial(images, [0.1, 0.1, 0.8], (1000, 2))[..., :2]:  # images that one alone has right
        change, apart = (only[:, 0] - only[:, 1]) / images, only.sum(axis=1)
        errors = np.sqrt(apart - images * change**2 + 1) / images
        found.append(tests_of.mean_over_products(change, errors, [images, images]).p < 0.05)
    assert np.mean(found) <= 0.05


def test_attempts_that_differ_on_all_products_are_told_apart() -> None:
    assert simulated.called(simulated.draw(5, 0.0, repeats=200)) <= 0.1
    assert simulated.called(simulated.draw(8, 0.0, ahead=0.2, repeats=40)) > 0.8
