"""The first lines of a verdict: which attempt to use, how sure, its mistakes, what next; in terminal, page and file."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from test_detection_report import detect
from test_pairs import cross_validated, fold, of_folds
from test_reporting import fabricate, fail, text_of

from mvtec_lab.config import VerdictConfig
from mvtec_lab.evaluation.specs import METRICS
from mvtec_lab.reporting import report, summary
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.headline import Headline, headline_of
from mvtec_lab.reporting.pairs import COMPARISON
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.results import PREDICTIONS, RESULT, read_csv


def of(directory: Path, **verdict: Any) -> Headline:
    return headline_of(compare(load_runs(directory), VerdictConfig(**verdict)))


def test_an_attempt_that_is_shown_to_be_the_best_is_named_on_green(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[11, 12, 11, 10, 12], b=[6, 7, 5, 6, 7], c=[5, 6, 5, 5, 6])
    headline = of(tmp_path)
    assert (headline.light, headline.word) == ("green", "Shown")
    assert headline.use == "Use a: it is shown to be better than all 2 others."
    assert "No attempt is shown" not in " ".join(compare(load_runs(tmp_path)).verdict)  # the green light's opposite
    assert headline.sure.startswith("On new images like these expect accuracy 0.93, between 0.")
    assert "task=evaluate" in headline.next


def test_an_open_comparison_says_so_and_what_to_do(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[11, 12, 11, 10, 12], b=[11, 11, 10, 11, 12], c=[6, 5, 6, 6, 5])
    headline = of(tmp_path)
    assert (headline.light, headline.word) == ("amber", "Open")
    assert "Use a if one has to be chosen now" in headline.use
    assert "better than 1 of the 2 others; no attempt is shown to be the best" in headline.use
    advice = compare(load_runs(tmp_path)).verdict[-1]
    assert advice.startswith("a and b are too close for these images to tell apart (1.7 points seen): choose by time,")
    assert advice.endswith(" would show which is better.")  # thousands of images, and so said last
    assert headline.next.casefold() == f"next: {advice.casefold()}"


def test_one_training_each_is_about_models_and_asks_for_folds(tmp_path: Path) -> None:
    for name, right in (("good", 20), ("bad", 6)):
        fabricate(tmp_path / name, name, right=right)
    headline = of(tmp_path)
    assert headline.use == "Use the model of good that was trained here: it is shown to be better than bad."
    assert headline.word == "Shown for these models"
    assert compare(load_runs(tmp_path)).verdict[0].startswith("Best on validation: good ")
    for name, right in (("fair", 18), ("other", 16)):
        fabricate(tmp_path / "more" / name, name, right=right)
    assert "cv.folds=5" in of(tmp_path / "more").next


def test_validation_that_chose_the_wrong_one_is_overruled_in_words(tmp_path: Path) -> None:
    for name, right, chosen in (("a", [11, 12, 11, 10, 12], 0.1), ("b", [6, 7, 5, 6, 7], 0.9)):
        for i, count in enumerate(right):
            run = fold(tmp_path / f"{name}{i}", name, i, count)
            run.metrics["val"] = {"balanced_accuracy": chosen, "accuracy": chosen, "images": 8}
            run.save()
    headline = of(tmp_path)
    assert (headline.light, headline.word, headline.mark) == ("green", "Shown, against validation", "use this one")
    assert headline.use == "Use a: it is shown to be better on test than b, which validation chose."
    verdict = compare(load_runs(tmp_path)).verdict
    assert verdict[0].startswith("a (ahead by ")
    assert verdict[0].endswith(" is shown to be better on test than b.")
    assert verdict[1].startswith("Validation chose b (balanced accuracy 0.900); test accuracy 0.5")
    assert "No attempt is shown" not in " ".join(verdict)
    assert "accuracy 0.93" in headline.sure  # of the one that is named
    assert headline.sure.endswith(" The same test images chose a: its figures are a little too good.")
    for path in tmp_path.glob(f"b*/{RESULT}"):
        path.write_text(path.read_text().replace('"images": 8', '"images": 9'))
    headline = of(tmp_path)
    assert (headline.light, headline.word) == ("green", "Shown")
    assert headline.use.endswith(" than b; they were validated on different images.")
    cross_validated(tmp_path, c=[11, 12, 11, 10, 12])
    headline = of(tmp_path)
    assert (headline.light, headline.word, headline.mark) == ("amber", "Open", "if one has to be chosen")
    assert headline.use.endswith(" no attempt is shown to be the best.")


@pytest.mark.parametrize(
    ("rival", "light", "use"),
    [
        ([11, 12, 10, 10, 12], "amber", "Stay with old: no other attempt is shown to be better."),
        ([6, 7, 6, 6, 7], "green", "Stay with old: it is shown to be better than new."),
        ([12, 12, 12, 12, 12], "green", "Use new: it is shown to be better than old."),
    ],
)
def test_a_reference_stays_in_use_until_another_is_shown_to_be_better(
    tmp_path: Path, rival: list[int], light: str, use: str
) -> None:
    cross_validated(tmp_path, old=[9, 9, 8, 9, 9] if "Use" in use else [11, 12, 11, 10, 12], new=rival)
    headline = of(tmp_path, reference="old")
    assert (headline.light, headline.use) == (light, use)


def test_where_nothing_was_learnt_the_likely_reasons_are_said(tmp_path: Path) -> None:
    fabricate(tmp_path / "a", "base", right=6, weights="random", epochs=3, counts={"train": {"good": 20, "crack": 2}})
    headline = of(tmp_path)
    assert (headline.light, headline.word) == ("red", "Nothing learnt")
    assert headline.use.startswith("Do not use base: it is not shown that anything was learnt. Likely because ")
    for reason in ("random weights", "best epoch 3 of 3; give trainer.max_epochs", "only 2 training images"):
        assert reason in headline.use
    assert not headline.sure  # a figure to expect would be no use


def test_of_attempts_that_learnt_nothing_there_is_no_advice_and_no_rate(lab, tmp_path: Path, capsys) -> None:
    """Below "Nothing learnt" stood how many more images would tell the two apart, and escapes of nobody knew which."""
    for name, right in (("base", 6), ("head", 5)):
        fabricate(tmp_path / name, name, right=right)
    comparison = compare(load_runs(tmp_path))
    assert headline_of(comparison).word == "Nothing learnt"
    assert not headline_of(comparison).mistakes
    assert not comparison.advice
    assert "too close" not in " ".join(comparison.verdict)
    assert lab("task=plan", f"dirs=[{tmp_path}]") == 0
    out, err = capsys.readouterr()
    assert "see that one learns before you plan by them" in " ".join((out + err).split())


def test_two_test_sets_do_not_show_that_nothing_was_learnt(tmp_path: Path) -> None:
    """They have no interval: 90% right on both was called nothing learnt."""
    for name in ("a", "b"):
        for i in range(2):
            fold(tmp_path / f"{name}{i}", name, i, 11)
    comparison = compare(load_runs(tmp_path))
    assert "learnt" not in comparison.verdict[0]
    headline = headline_of(comparison)
    assert headline.light == "amber"
    assert "2 test sets have no interval" in headline.sure


def test_a_single_attempt_and_no_run_at_all(tmp_path: Path) -> None:
    fail(tmp_path / "fail", "base")
    assert of(tmp_path).light == "red"
    fabricate(tmp_path / "a", "a", right=18)
    headline = of(tmp_path)
    assert (headline.light, headline.word) == ("green", "Learnt")
    assert "always naming the most frequent class" in headline.use


def test_attempts_on_different_images_have_no_single_answer(tmp_path: Path) -> None:
    fabricate(tmp_path / "a", "a", right=18)
    fabricate(tmp_path / "c", "c", right=19)
    fold(tmp_path / "b", "b", 1, 11)
    headline = of(tmp_path)
    assert headline.use.startswith("No single attempt can be named, as they were judged on different images. The best")
    assert ", the best of 2 on validation; b (accuracy 0.917 [0.65, 0.99]), the only one there." in headline.use
    assert headline.next == "Next: give all of them the same data and split."


def test_of_several_metrics_the_best_in_each_is_named(tmp_path: Path) -> None:
    fabricate(tmp_path / "a", "a", right=18)
    detect(tmp_path / "padim", "padim", 2.0)
    detect(tmp_path / "patchcore", "patchcore", 1.0)
    headline = of(tmp_path)
    assert headline.use.startswith("No single attempt can be named, as they were judged by different metrics. The best")
    assert "a (accuracy 0.900" in headline.use
    assert "padim (image AUROC" in headline.use
    assert headline.next == "Next: choose by the metric that your line needs."


def test_of_many_groups_the_verdict_alone_has_the_names(tmp_path: Path) -> None:
    for number in range(6):
        fold(tmp_path / f"b{number}", f"b{number}", number, 11)
    assert of(tmp_path).use.endswith("The verdict names the best of each of 6 groups.")


def test_where_validation_cannot_choose_the_headline_says_so(tmp_path: Path) -> None:
    for name, right in (("a", 18), ("b", 12)):
        run = fabricate(tmp_path / name, name, right=right)
        if name == "a":
            run.metrics["val"] = {}
            run.save()
    headline = of(tmp_path)
    assert headline.use.startswith(
        "Validation cannot choose among these 2 attempts; on test the best is a (accuracy 0.9"
    )
    assert "task=evaluate" in headline.next


def test_where_nothing_ranks_the_headline_says_what_is_missing(tmp_path: Path) -> None:
    of_folds(tmp_path, "a", {0: 10, 1: 10})
    of_folds(tmp_path, "b", {1: 10, 2: 10})
    headline = of(tmp_path)
    assert headline.use == "None of these 2 attempts can be named: only 1 of 2 folds is done by all of them."
    assert "resume=true" in headline.next


def test_escapes_and_false_rejects_are_counted_with_intervals(tmp_path: Path) -> None:
    """Of 20 images the classes take turns; the six last ones are wrong: a class is taken for the one after it."""
    fabricate(tmp_path / "a", "a", right=14)
    mistakes = of(tmp_path).mistakes
    escapes, rejects = mistakes["escapes"], mistakes["false rejects"]
    assert escapes.value == pytest.approx(2 / 15)  # 15 and 19, of the last class, are taken for the first: good
    assert rejects.value == pytest.approx(1 / 5)  # 16
    assert (escapes.low, escapes.high) == pytest.approx((0.0373, 0.3788), abs=1e-4)  # Wilson, 2 of 15
    assert (rejects.low, rejects.high) == pytest.approx((0.0362, 0.6245), abs=1e-4)


def test_no_mistake_in_any_fold_is_no_certainty(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[12, 12, 12, 12, 12])
    for share in of(tmp_path).mistakes.values():
        assert share.value == share.low == 0
        assert share.high is not None
        assert 0.03 < share.high < 0.5


def test_where_no_class_is_good_nothing_can_escape() -> None:
    """It was said that 0% of the defects pass as good, of a model that cannot call anything good."""
    rows = [{"label": "crack", "prediction": kind, "prob_crack": "0.5", "prob_OK": "0.5"} for kind in ("OK", "crack")]
    assert np.isnan(METRICS["escapes"].of_images(rows)).all()
    some = [{**rows[0], "prob_good": "0.1"}, {**rows[1], "prediction": "good"}]
    assert METRICS["escapes"].of_images(some).tolist() == [0, 1]


def test_of_anomaly_models_what_is_not_found_escapes(tmp_path: Path) -> None:
    run = detect(tmp_path / "a", "patchcore")
    found = run.metrics["test"]["recall_of_defects"]
    run.metrics["test"]["intervals"]["recall_of_defects"] = [low, high] = [0.5 * found, 0.5 + 0.5 * found]
    run.save()
    escapes = of(tmp_path).mistakes["escapes"]
    assert (escapes.value, escapes.low, escapes.high) == pytest.approx((1 - found, 1 - high, 1 - low))


def test_terminal_page_and_file_begin_with_it(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[11, 12, 11, 10, 12], b=[6, 7, 5, 6, 7])
    rows, comparison = report.sum_up(tmp_path)
    out = io.StringIO()
    summary.print_table(rows, comparison.verdict, Console(file=out, width=100), headline=comparison.headline)
    assert out.getvalue().startswith("● Shown. Use a: it is shown to be better than b.\n")
    assert re.search(r"pass as good \(\d+ of \d+; 95%: ", out.getvalue().partition("attempt")[0])
    assert json.loads((tmp_path / COMPARISON).read_text())["headline"] == comparison.headline
    html = (tmp_path / report.REPORT).read_text(encoding="utf-8")
    text = text_of(html)
    places = [text.index(part) for part in ("2 attempts", "Shown", "Use a:", "Escapes", "Next:", "Holdout")]
    assert places == sorted(places)
    assert '<circle cx="10"' in html  # a shape beside the colour and the word
    assert html.count('<details class="attempt">') == 2  # folded


def test_rates_have_their_counts_and_the_table_marks_the_one_to_use(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[11, 12, 11, 10, 12], b=[6, 7, 5, 6, 7], c=[5, 6, 5, 5, 6])
    headline = of(tmp_path)
    rows = [row for i in range(5) for row in read_csv(tmp_path / f"a-{i}" / PREDICTIONS)]
    good = [row["prediction"] for row in rows if row["label"] == "good"]
    refused = len(good) - good.count("good")
    assert headline.mistakes["false rejects"].method == f"{refused} of {len(good)}"
    assert f" of the good products are refused ({refused} of {len(good)}; 95%: " in " ".join(headline.lines)
    assert (headline.chosen, headline.mark) == ("a", "use this one")
    report.sum_up(tmp_path)
    html = (tmp_path / report.REPORT).read_text(encoding="utf-8")
    assert html.count('<span class="chosen">') == 1
    assert re.search(r'>a</a> <span class="chosen">use this one</span>', html)


def test_several_decisions_on_an_image_are_called_that(tmp_path: Path) -> None:
    for seed in range(3):
        fabricate(tmp_path / f"{seed}", "a", seed=seed, right=18)
    assert of(tmp_path).mistakes["false rejects"].method.endswith(" of 15 decisions")


def test_page_and_terminal_say_the_advice_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cross_validated(tmp_path, a=[11, 12, 11, 10, 12], b=[11, 11, 10, 11, 12], c=[6, 5, 6, 6, 5])
    _, comparison = report.sum_up(tmp_path, show=report.show_results)
    advice = comparison.verdict[-1][1:]
    assert " ".join(capsys.readouterr().out.split()).count(advice) == 1
    assert text_of((tmp_path / report.REPORT).read_text(encoding="utf-8")).count(advice) == 1
    assert advice in (tmp_path / COMPARISON).read_text(encoding="utf-8")


def test_an_attempt_with_too_few_folds_denies_no_other_to_be_the_best(tmp_path: Path) -> None:
    """Headline and verdict said the opposite of each other: it could not be compared, and is not ranked."""
    cross_validated(tmp_path, a=[11, 12, 11, 10, 12], b=[6, 7, 5, 6, 7])
    of_folds(tmp_path, "c", {0: 12})
    comparison = compare(load_runs(tmp_path))
    assert comparison.headline[0] == "● Shown. Use a: it is shown to be better than b."
    assert "No attempt is shown" not in " ".join(comparison.verdict)
    assert "Not ranked, with too few test sets in common: c (1 of 5)." in comparison.verdict
