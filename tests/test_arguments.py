"""What was typed is what is meant: text, paths, options in any order; and nothing of it runs code."""

from __future__ import annotations

import json
from pathlib import Path

import hydra
import pytest
from conftest import write_product
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime
from omegaconf import OmegaConf

from mvtec_lab.arguments import parse, text, text_keys, unquoted
from mvtec_lab.cli import compose, main
from mvtec_lab.errors import LabError
from mvtec_lab.results import RunResult

ODD = "a b,seed=0 [1] (x) it's $y {z} ~"  # a folder's name that Hydra's grammar refuses, or reads as something else


@pytest.mark.parametrize("typed", ["2024_05", "1.50", "1e3", "007", "true", "inf", "[x]", "{a:b}", "C:\\a\\", ODD])
def test_text_stays_what_was_typed(typed: str) -> None:
    assert compose(f"data.category={typed}").data.category == typed
    assert compose("task=compare", f"dirs={typed}x").dirs == [f"{typed}x"]


@pytest.mark.parametrize("typed", ["resnet18", "it's", "a b", "null", ""])
def test_a_quoted_value_is_read_back(typed: str) -> None:
    assert unquoted(f"data.category={text('data.category', typed)}") == f"data.category={typed}"
    assert unquoted("data.good=[OK,'a b']") == "data.good=[OK,'a b']"


def test_what_hydra_means_by_text_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somebody")
    monkeypatch.setenv("USERPROFILE", "/somebody")
    monkeypatch.setenv("PLACE", "there")
    assert compose("model.weights=null").model.weights is None
    assert compose("model.weights='null'").model.weights == "null"
    assert compose("data.root='a,b'").data.root == compose('data.root="a,b"').data.root == "a,b"
    assert compose("data.root=${oc.env:PLACE}/x").data.root == "there/x"
    assert Path(compose("data.root=~/x").data.root or "") == Path("/somebody/x")
    listed = compose("attempt=patchcore", "model.options.layers=[features.6, '1,5', 2024_05]")
    assert listed.model.options == {"layers": ["features.6", "1,5", "2024_05"]}
    assert compose("attempt=padim", "model.options.layers=null").model.options == {"layers": None}
    assert compose("task=compare", "dirs=s/head,seed=0").dirs == ["s/head,seed=0"]  # one needs no brackets
    assert compose("task=compare", "dirs=[]").dirs == []
    assert compose("optimizer.lr=1e-2", "trainer.precision=32").trainer.precision == "32"
    assert {"data.category", "ckpt", "source", "dirs", "split.file", "hydra.run.dir"} <= text_keys().keys()
    assert not {"attempt", "seed", "model.unfreeze"} & text_keys().keys()


@pytest.mark.slow
def test_a_sweep_parts_text_at_commas_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["2024_05", "1.50", "1e3", "p,q"]
    for name in names:
        write_product(tmp_path / "products" / name, {"good": 6, "hole": 6}, size=16)
    monkeypatch.chdir(tmp_path)
    words = ["-m", "task=describe", "data=folder", "data.root=products", "data.image_size=16", "hydra.sweep.dir=1e3"]
    assert main([*words, "data.category=2024_05,1.50,1e3,'p,q'"]) == 0
    described = [json.loads(path.read_text())["folder"] for path in Path("1e3").rglob("dataset.json")]
    assert sorted(Path(folder).name for folder in described) == sorted(names)


@pytest.mark.slow
def test_a_run_is_found_where_its_path_says(lab, tmp_path: Path) -> None:
    product = write_product(tmp_path / ODD)
    assert lab(f"data.root={product}", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/runs/{ODD}") == 0
    run = tmp_path / "runs" / ODD
    assert RunResult.load(run).completed
    assert lab("task=predict", f"ckpt={run}/best.ckpt", f"source={product}/test/hole", "hydra.run.dir=2024_06") == 0
    assert (tmp_path / "2024_06/predictions.csv").is_file()
    assert lab("task=compare", f"dirs={run}", "hydra.run.dir=both") == 0


@pytest.mark.slow
def test_names_of_runs_need_no_quotes(lab, tmp_path: Path, capsys) -> None:
    sweep = ["-m", "attempt=base", "seed=0,1", "split.seed=0", "trainer.max_epochs=1", "hydra.sweep.dir=s"]
    assert lab(*sweep) == 0
    assert {p.name for p in (tmp_path / "s").iterdir() if p.is_dir()} == {"base-seed_0", "base-seed_1"}
    capsys.readouterr()
    assert lab(*sweep, "resume=true") == 0
    assert "is completed: nothing to do" in "".join(capsys.readouterr())
    assert lab("task=predict", "ckpt=s/base-seed_0/best.ckpt", "source=products", "hydra.run.dir=out") == 0


@pytest.mark.parametrize(
    "words",
    [
        ["seed=1", "-m", "optimizer=sgd", "--config-dir", "mine", "attempt=base"],
        ["--config-dir=mine", "seed=1", "optimizer=sgd", "-m", "attempt=base"],
        ["seed=1", "optimizer=sgd", "attempt=base", "--multirun", "-cd", "mine"],
    ],
)
def test_options_stand_anywhere(words: list[str]) -> None:
    assert parse(words) == (["--multirun", "seed=1", "optimizer='sgd'", "attempt='base'"], "mine")


def test_what_was_quoted_is_quoted_once() -> None:  # as Lightning does for the processes of further devices
    once = parse(["data.category=1e3", f"ckpt={ODD}", "dirs=[a,1.50]", 'hydra.run.dir="a, b"', "source=\\"])[0]
    assert parse(once)[0] == once


@pytest.mark.parametrize(
    "words",
    [
        ["+hydra.callbacks.x._target_=torch.hub.load"],
        ["hydra/callbacks=mine", "--config-dir=mine"],
        ["+optimizer@hydra.callbacks=mine"],
        ["hydra={callbacks:{x:{_target_:os.system}}}"],
        ["hydra.searchpath=[file:///tmp]"],
        ["--config-name=mine"],
        ["--config-path=/tmp"],
        ["--experimental-rerun=config.pickle"],
    ],
)
def test_nothing_on_the_command_line_runs_code(words: list[str], capsys) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "--config-dir=FOLDER adds files of your own" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("mode", [[], ["-m"]])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("hydra.job.chdir=true", "hydra.job.chdir=true would move every relative path"),
        ("hydra.run.dir= hydra.sweep.dir=", "dir is empty: give hydra."),
        ("ckpt=", "ckpt is empty: give a value, or leave it out"),
        ("data.root= data=folder", "data.root is empty: give a value, or leave it out"),
        ("cache.dir=", "cache.dir is empty"),
    ],
)
def test_what_would_send_files_elsewhere_is_refused(lab, tmp_path: Path, capsys, mode, words: str, said: str) -> None:
    assert lab(*mode, *words.split()) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} <= {"products"}


@pytest.mark.parametrize("sweeper", [[], ["hydra/sweeper=optuna"]])
@pytest.mark.parametrize(
    "words",
    [
        "+hydra.sweeper.params.seed='1,2'",
        "hydra.sweeper.params={seed: 'choice(1'}",
        "hydra.sweeper.search_space={a: 3}",
    ],
)
def test_a_grid_is_given_by_its_keys(tmp_path: Path, monkeypatch, capsys, sweeper: list[str], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["-m", *sweeper, words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {words} is a key of a study's file: here, give the keys of the grid themselves, ")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("optimizer.lr=interval(0.1", "error: interval(0.1 cannot be read as a value: close its brackets and quotes\n"),
        ("optimizer.lr=interval(0.1,1)", "error: an interval is for a search: give hydra/sweeper=optuna, or list the"),
    ],
)
def test_values_of_a_search_are_checked(tmp_path: Path, monkeypatch, capsys, words: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["-m", words]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith(said)
    assert complaint.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_another_hydra_application_goes_on(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("a: ${hydra:job.name}\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.2", job_name="their_application"):
        theirs = GlobalHydra.instance().hydra
        assert compose("seed=3").seed == 3
        with pytest.raises(LabError):
            compose("seed=-3")
        assert main(["--help"]) == 0
        assert GlobalHydra.instance().hydra is theirs
        assert JobRuntime.instance().get("name") == "their_application"
        assert str(hydra.version.getbase()) == "1.2"
        composed = hydra.compose("theirs", return_hydra_config=True)
        assert OmegaConf.select(composed, "hydra.job.name") == "their_application"
    assert not GlobalHydra.instance().is_initialized()
