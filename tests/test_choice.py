"""The same result has the same colour and word, of one product and over several."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_products import write

from mvtec_lab.config import VerdictConfig
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.headline import unsaid
from mvtec_lab.reporting.report import REPORT, show_results, sum_up
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.results import PREDICTIONS

AHEAD, LEVEL, WITHOUT = {"a": 7, "b": 0}, {"a": 3, "b": 3}, {"a": -7, "b": -7}
AGAINST = {"a": 0.1, "b": 0.9}  # what validation says
FLATTERED = ": its figures are a little too good."  # the attempt before it was chosen by the test images


def written(folder: Path, ahead: dict[str, float], validation: dict[str, float], products: int) -> Path:
    """Runs as ``write`` gives them, with these values on eight validation images."""
    write(folder, ahead, products)
    for run in load_runs(folder):
        if run.attempt in validation:
            value = validation[run.attempt]
            run.metrics["val"] = {"balanced_accuracy": value, "accuracy": value, "images": 8}
            run.save()
    return folder


@pytest.mark.parametrize(
    ("ahead", "validation", "reference", "light", "by_test"),
    [
        (AHEAD, {}, None, "● Shown. Use a: ", False),
        (AHEAD, AGAINST, None, "● Shown, against validation. Use a: ", True),
        ({**AHEAD, "c": 7}, {**AGAINST, "c": 0.2}, None, "▲ Open. Use ", True),
        (LEVEL, {}, None, "▲ Open. Use ", False),
        (WITHOUT, {}, None, "■ Nothing learnt. Do not use any of these 2 attempts: ", False),
        ({"a": 7}, {}, None, "● Learnt. a, the only attempt", False),
        (AHEAD, {}, "b", "● Shown. Use a: ", False),
        (AHEAD, AGAINST, "b", "● Shown, against validation. Use a: ", True),
        (AHEAD, {}, "a", "● Shown. Stay with a: ", False),
        (LEVEL, {}, "b", "▲ Open. Stay with b: ", False),
    ],
)
def test_one_product_and_several_say_the_same_of_the_same(
    tmp_path: Path,
    ahead: dict[str, float],
    validation: dict[str, float],
    reference: str | None,
    light: str,
    by_test: bool,
) -> None:
    """What the test showed against validation was green for one product, and amber over three."""
    for products in (1, 3):
        folder = written(tmp_path / str(products), ahead, validation, products)
        headline = compare(load_runs(folder), VerdictConfig(reference=reference)).headline
        assert headline[0].startswith(light), products
        assert any(line.endswith(FLATTERED) for line in headline) == by_test, products


@pytest.mark.parametrize("products", [1, 3])
def test_what_overrules_validation_comes_first_and_each_thing_once(tmp_path: Path, products: int) -> None:
    comparison = compare(load_runs(written(tmp_path, AHEAD, AGAINST, products)))
    first, second, *others = comparison.verdict
    assert first.startswith("a (ahead by ")
    assert first.endswith(" is shown to be better on test than b.")
    assert second.startswith("Validation chose")
    assert "b (balanced accuracy 0.900); test accuracy 0.5" in second
    assert not any("shown to be" in line for line in others)
    assert "Expect the test figure" not in second  # of an attempt that is not to be used
    sum_up(tmp_path)
    page = (tmp_path / REPORT).read_text(encoding="utf-8")
    assert page.count('<span class="chosen">') == page.count('<span class="chosen">use this one</span>') == 1


@pytest.mark.parametrize("products", [1, 2])
def test_page_and_terminal_say_once_that_nothing_is_shown(
    tmp_path: Path, products: int, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = compare(load_runs(written(tmp_path, LEVEL, {}, products)))
    assert comparison.verdict[0].startswith("No attempt is shown to be the best. Best on validation")  # whole by itself
    assert unsaid(comparison.verdict, comparison.headline)[0].startswith("Best on validation")
    sum_up(tmp_path, show=show_results)
    printed = " ".join(capsys.readouterr().out.split()).casefold()
    page = (tmp_path / REPORT).read_text(encoding="utf-8").casefold()
    for text in (printed, page):
        assert text.count("no attempt is shown to be the best") == 1


@pytest.mark.parametrize("products", [1, 2])
def test_models_to_keep_are_untested(tmp_path: Path, products: int) -> None:
    write(tmp_path, {"a": 3, "b": 3}, products, folds=1)
    for run in load_runs(tmp_path):
        run.counts, run.metrics = {"train": {"good": 40}, "test": {}}, {"val": run.metrics["val"]}
        run.save()
        Path(run.run_dir, PREDICTIONS).unlink()
    assert compare(load_runs(tmp_path)).headline[0].startswith("▲ Untested. These models have learnt what would have")
