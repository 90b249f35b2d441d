"""What a key means stands where it is declared, and --help prints it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvtec_lab.cli import main
from mvtec_lab.config import Config
from mvtec_lab.errors import LabError
from mvtec_lab.knobs import settings
from mvtec_lab.own import CONF
from mvtec_lab.problems import METHODS
from mvtec_lab.reference import choices, entries, page, sections
from mvtec_lab.tasks import TASKS


def test_every_key_and_every_option_has_an_entry_with_its_meaning() -> None:
    keys = [entry.key for entry in entries()]
    assert settings(Config()).keys() <= {*keys}
    options = {f"model.options.{name}" for method in METHODS.names() for name in METHODS[method].options}
    assert {*keys} == {*settings(Config()), "model.options", *options}
    for entry in entries():
        assert len(entry.about) > 12, entry.key
        assert not entry.about.endswith("."), entry.key
        assert entry.tasks, entry.key
    assert {key.partition(".")[0] for key in keys if "." in key} == {*sections()}
    assert all(about.endswith(".") for about in sections().values())
    assert all(task.about for task in TASKS.values())


def test_an_entry_says_what_a_key_takes_and_when_it_has_an_effect() -> None:
    by_key = {entry.key: entry for entry in entries()}
    beta = by_key["data.sampler_beta"]
    assert (beta.kind, beta.default, beta.takes) == ("number", "0.99", "in [0, 1)")
    assert beta.needs == ("data.sampler=effective",)
    assert beta.tasks == ("train", "describe", "evaluate", "annotate")
    (elsewhere,) = by_key["data.image_size"].elsewhere
    assert elsewhere.startswith("224 with data=")
    assert {"folder", "mvtec"} < {*elsewhere.removeprefix("224 with data=").split(", ")}
    assert by_key["data.root"].elsewhere[-1] == "$MVTEC_ROOT with data=mvtec"
    assert (by_key["data.white"].kind, by_key["data.white"].takes) == ("whole number or null", "1 to 65535")
    assert by_key["data.sampler"].takes == "none, inverse, sqrt, effective"
    assert by_key["loss.name"].takes.startswith("balanced_softmax, cross_entropy")
    assert "patchcore" in by_key["model.method"].takes
    assert by_key["data.sha256"].needs == ("data.archive other than null",)
    assert by_key["model.sam_weights"].methods == ("sam", "sam_box", "sam_zero")
    neighbours = [entry for entry in entries() if entry.key == "model.options.neighbours"]
    assert [(entry.default, entry.methods) for entry in neighbours] == [("5", ("nearest",)), ("50", ("spade",))]


def test_every_file_of_a_group_says_what_it_is() -> None:
    groups = [folder.relative_to(CONF).as_posix() for folder in CONF.rglob("*") if any(folder.glob("*.yaml"))]
    for group in groups:
        for name, about in choices(group).items():
            assert about, f"{group}/{name}.yaml begins without a comment"


def test_help_with_a_key_prints_its_page(capsys) -> None:
    assert main(["--help", "trainer.patience", "model.options.coreset"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("trainer.patience=null\n    stops after this many epochs")
    assert "of model.method=patchcore" in said
    assert "whole number or null: 1 or more" in said
    assert "another value makes another attempt" in said
    assert max(map(len, said.splitlines())) <= 100


def test_help_with_a_group_prints_its_choices_and_keys(tmp_path: Path, capsys) -> None:
    (tmp_path / "attempt").mkdir()
    (tmp_path / "attempt/mine.yaml").write_text("# @package _global_\n# Mine. And more.\nmodel: {unfreeze: 2}\n")
    assert main(["--help", "attempt", f"--config-dir={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "attempt=mine " in said
    assert "  Mine.\n" in said
    assert "attempt=longtail/focal" in said
    assert page("study").startswith("+study=bottle ")
    assert page("data").startswith("data: Choose the images")
    assert "\ndata=mvtec  " in page("data")
    assert "task=compare      compares runs" in page("task")
    assert "launcher=parallel" not in page("data")


def test_help_of_a_sweep_shows_the_first_of_its_values(capsys) -> None:
    words = [
        "attempt=finetune,head",
        "seed=3,4",
        "optimizer.lr=interval(0.1,0.2)",
        "data.good=[a,b],[c]",
        "data=folder",
    ]
    assert main(["--help", "-m", *words]) == 0
    said = capsys.readouterr().out
    assert "seed: 3\n" in said
    assert "unfreeze: 1\n" in said  # finetune's
    assert "lr: 0.001\n" in said
    assert said.endswith("Of several values the first is shown: attempt=finetune seed=3 data.good=[a,b]\n")
    assert main(["--help", "-m", "seed=3"]) == 0
    assert "several values" not in capsys.readouterr().out
    assert main(["--help", *words]) == 2  # without -m it is a mistake, as it would be without --help
    assert "gives several values: a sweep takes -m in front" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--help", "data.rot"], "unknown key 'data.rot': did you mean data.root"),
        (["--help", "seed", "data=mvtec"], "--help with a key takes no settings: leave out data="),
        (["--vers"], "unknown option '--vers': did you mean --version?"),  # Hydra would print its own
        (["attempt=base", "--sweep=3"], "unknown option '--sweep'"),
        (["doctor"], "doctor is a task: write task=doctor"),
        (["--config-dir"], "argument --config-dir/-cd: expected one argument: --help lists the options"),
    ],
)
def test_a_wrong_option_is_answered_in_one_line(words: list[str], said: str, capsys) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_page_of_no_key_is_refused() -> None:
    with pytest.raises(LabError, match="unknown key 'dta': did you mean data"):
        page("dta")
