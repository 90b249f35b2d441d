"""Files of one's own (--config-dir): they come first, their faults are named, and none of them runs code."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvtec_lab.cli import main
from mvtec_lab.results import RunResult, find_runs

PLANT = "{_target_: os.mkdir, path: planted}"
GLOBAL = "# @package _global_\n"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write files below my_conf/, and run the command line with them: its status."""
    monkeypatch.chdir(tmp_path)

    def run(files: dict[str, str], *words: str) -> int:
        for name, text in files.items():
            path = tmp_path / "my_conf" / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return main([*words, "--config-dir", "my_conf"])

    return run


@pytest.mark.parametrize("mode", [[], ["-m"], ["--cfg", "job"]])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("attempt/mine", f"hydra: {{callbacks: {{x: {PLANT}}}}}"),
        ("attempt/mine", "hydra: {job: {env_set: {PATH: /tmp}}}"),
        ("attempt/mine", "defaults: [override /hydra/launcher: joblib]"),
        ("attempt/mine", "defaults: [{/optimizer@hydra.callbacks: sgd}]"),
        ("attempt/mine", f"augment: {{transforms: {{x: {PLANT}}}}}"),
        ("attempt/mine", "data: {archive: 'http://elsewhere/${oc.env:HOME}'}"),
        ("attempt/mine", "data: {archive: 'x${oc.decode:${oc.env:HOME}}'}"),
        ("attempt/mine", "data: {archive: '${${task}.env:HOME}'}"),
        ("study/mine", f"hydra: {{sweeper: {{params: {{attempt: base}}, x: {PLANT}}}}}"),
        ("study/mine", f"hydra: {{sweeper: {{params: {{+hydra.callbacks.x: '{PLANT}'}}}}}}"),
        ("study/mine", "hydra: {sweeper: {params: {optimizer@hydra.callbacks: sgd}}}"),
        ("optimizer/mine", f"x: {PLANT}"),
    ],
)
def test_a_file_of_ones_own_runs_no_code(own, tmp_path: Path, capsys, mode: list[str], name: str, text: str) -> None:
    group = name.split("/")[0]
    assert own({name: GLOBAL + text}, *mode, f"{'+' if group == 'study' else ''}{group}=mine") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/my_conf/{name}.yaml may not set ")
    assert said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["my_conf"]


def test_the_primary_configuration_stays_the_labs(own, tmp_path: Path, capsys) -> None:
    files = {"config": f"hydra: {{callbacks: {{x: {PLANT}}}}}", "schema": "seed: 5", "attempt/mine": GLOBAL}
    assert own(files, "attempt=mine", "--cfg", "job") == 0
    assert "seed: 0\n" in capsys.readouterr().out
    assert not (tmp_path / "planted").exists()
    launcher = {"hydra/launcher/mine": "_target_: os.mkdir"}
    assert own(launcher, "-m", "attempt=mine", "hydra/launcher=mine") == 2
    assert "hydra/launcher/mine.yaml may not set hydra.*" in capsys.readouterr().err


def test_what_a_file_of_ones_own_may_say(own, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVTEC_ROOT", "/data")
    files = {
        "attempt/mine": f"{GLOBAL}defaults: [/attempt/finetune, override /optimizer: mine]\n"
        "data: {root: '${oc.env:MVTEC_ROOT,null}/${data.category}', category: '2024_05'}\n"
        "augment: {transforms: {Rotate: {limit: 5}}}\nreported: {accuracy: 0.7}\ntrainer: {precision: 32}\n",
        "optimizer/mine": "name: sgd\nlr: 1e-2\n",
        "study/mine": f"{GLOBAL}hydra: {{sweeper: {{params: {{attempt: 'base,mine', seed: '0,1'}}}}}}\n",
    }
    assert own(files, "attempt=mine", "--cfg", "job", "--resolve") == 0
    said = capsys.readouterr().out
    assert "root: /data/2024_05\n" in said
    assert "category: '2024_05'\n" in said
    assert "unfreeze: 1\n" in said
    assert "lr: 0.01\n" in said
    assert own({}, "+study=mine", "--cfg", "hydra", "-p", "hydra.sweeper.params") == 0
    assert "attempt: base,mine" in capsys.readouterr().out


def test_a_files_name_is_no_number(own, capsys) -> None:
    names = ("2024_05", "1.50", "1e3")
    assert own({f"attempt/{name}": f"{GLOBAL}optimizer: {{lr: 0.0123}}" for name in names}, "--cfg", "job") == 0
    for name in names:
        assert own({}, f"attempt={name}", "--cfg", "job") == 0
        assert "lr: 0.0123" in capsys.readouterr().out
    grid = ["-m", "attempt=2024_05,1.50,1e3,base", "task=backbones", "seed=1"]
    assert own({}, *grid) == 2
    assert "seed=1 does nothing for task=backbones" in capsys.readouterr().err  # all four were composed


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("attempt/mine", f"{GLOBAL}modl: {{unfreeze: 1}}", "unknown key 'modl': did you mean model"),
        ("attempt/mine", f"{GLOBAL}model: {{unfreze: 1}}", "unknown key 'model.unfreze': did you mean model.unfreeze"),
        ("attempt/mine", f"{GLOBAL}optimizer: {{lr: fast}}", "optimizer.lr: Value 'fast'"),
        ("attempt/mine", "model: {unfreeze: 1}", "its first line must be # @package _global_"),
        ("attempt/mine", f"{GLOBAL}model: [", "cannot be read: "),
        ("attempt/mine", f"{GLOBAL}- model", "holds no keys"),
        ("attempt/mine", f"{GLOBAL}data: {{category: 2024_05}}", "2024_05 is 202405 to YAML: write '2024_05'"),
        ("attempt/mine", f"{GLOBAL}data: {{category: 1e3}}", "write '1e3'"),
        ("attempt/mine", f"{GLOBAL}dirs: [1.50]", "write '1.50'"),
        ("attempt/mine", f"{GLOBAL}defaults: [/attempt/finetun]", "unknown attempt 'finetun': did you mean finetune?"),
        ("attempt/mine", f"{GLOBAL}defaults: [override /optimzer: sgd]", "Could not override 'optimzer'"),
        ("optimizer/mine", "lrr: 1", "unknown key 'optimizer.lrr': did you mean optimizer.lr"),
        ("study/mine", f"{GLOBAL}hydra: {{sweeper: {{params: {{data.category: 1_0}}}}}}", "1_0 is 10 to YAML"),
    ],
)  # fmt: skip
def test_a_fault_in_it_is_named(own, tmp_path: Path, capsys, name: str, text: str, said: str) -> None:
    group = name.split("/")[0]
    assert own({name: text}, "-m", f"{'+' if group == 'study' else ''}{group}=mine") == 2
    complaint = capsys.readouterr().err
    assert str(Path("my_conf") / f"{name}.yaml") in complaint
    assert said in complaint
    assert complaint.count("\n") == 1


def test_an_unknown_directory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--config-dir=mine", "attempt=base"]) == 2
    assert capsys.readouterr().err == (
        "error: --config-dir=mine is no folder: give one with files like attempt/mine.yaml in it\n"
    )


def test_a_folder_of_the_wrong_level_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own/attempt").mkdir(parents=True)
    (tmp_path / "own/attempt/mine.yaml").write_text("# @package _global_\nmodel: {unfreeze: 2}\n")
    assert main(["attempt=mine", "--config-dir", "own/attempt"]) == 2
    said = "--config-dir=own/attempt has no folder attempt/ or of another group (study, data ...): give --config-dir="
    assert capsys.readouterr().err == f"error: {said}{tmp_path / 'own'}\n"
    (tmp_path / "other").mkdir()
    assert main(["--cfg", "job", "--config-dir=other"]) == 2
    assert "(study, data ...): put your files there" in capsys.readouterr().err
    assert main(["--cfg", "job", "attempt=mine", "--config-dir=own"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_a_name_of_the_labs_is_taken_by_ones_own_and_said(lab, tmp_path: Path, capsys, mode: list[str]) -> None:
    (tmp_path / "mine/attempt").mkdir(parents=True)
    (tmp_path / "mine/attempt/finetune.yaml").write_text(f"{GLOBAL}optimizer: {{lr: 0.0123}}\n")
    words = ["attempt=finetune", "trainer.max_epochs=1", "hydra.run.dir=s/finetune", "hydra.sweep.dir=s"]
    assert lab(*mode, "--config-dir=mine", *words) == 0
    assert "lr: 0.0123" in (tmp_path / "s/finetune/config.yaml").read_text()
    line = f"attempt=finetune is {tmp_path}/mine/attempt/finetune.yaml, not the lab's own of that name"
    assert line in RunResult.load(tmp_path / "s/finetune").warnings
    assert line in "".join(capsys.readouterr()).replace("\n", "")


@pytest.mark.slow
def test_what_is_typed_in_place_of_what_an_attempt_sets_is_said(
    own, tiny_net: str, product: Path, tmp_path: Path, capsys
) -> None:
    """A row called tiny that is another network must not pass without a word."""
    files = {
        "attempt/tiny": f"{GLOBAL}model: {{backbone: resnet18, unfreeze: all}}\noptimizer: {{lr: 1e-2}}",
        "attempt/other": f"{GLOBAL}optimizer: {{lr: 1e-2}}",
        "attempt/from_tiny": f"{GLOBAL}defaults: [/attempt/tiny]\noptimizer: {{weight_decay: 1e-3}}",
    }
    words = ["data=folder", f"data.root={product}", "data.image_size=24", "model.weights=null"]
    words += ["trainer.max_epochs=1", "trainer.accelerator=cpu", f"model.backbone={tiny_net}", "optimizer.lr=0.01"]
    assert own(files, "-m", "attempt=tiny,other,from_tiny", *words, "hydra.sweep.dir=sweep") == 0
    line = f"what was typed replaces what attempt=tiny sets: model.backbone={tiny_net} in place of resnet18"
    printed = capsys.readouterr()
    assert line in " ".join((printed.out + printed.err).split())
    warnings = {run.attempt: run.warnings for run in find_runs("sweep")}
    assert line in warnings["tiny"]
    assert line.replace("=tiny sets", "=from_tiny sets") in warnings["from_tiny"]  # so does what it begins from
    assert not [warning for warning in warnings["other"] if "typed" in warning]
    assert line in (tmp_path / "sweep/report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_what_a_sweep_varies_is_not_said_to_replace_anything(own, tiny_net: str, product: Path) -> None:
    files = {"attempt/mine": f"{GLOBAL}optimizer: {{lr: 1e-3}}"}
    words = ["data=folder", f"data.root={product}", "data.image_size=24", "model.weights=null"]
    words += ["trainer.max_epochs=1", "trainer.accelerator=cpu", f"model.backbone={tiny_net}"]
    assert own(files, "-m", "attempt=mine", "optimizer.lr=0.01,0.1", *words, "hydra.sweep.dir=sweep") == 0
    runs = find_runs("sweep")
    assert len(runs) == 2
    assert not [warning for run in runs for warning in run.warnings if "typed" in warning]
