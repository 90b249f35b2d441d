"""What is imported when, from where the lab runs, and that the files around the code agree with it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from conftest import write_product
from packaging.requirements import Requirement

import mvtec_lab
from mvtec_lab.cli import main
from mvtec_lab.results import find_runs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it on 3.10

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "torchvision", "pytorch_lightning", "albumentations", "matplotlib"}
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q")


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """The output of another process, which must succeed; ``path`` is the whole of its PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# What is imported when


def test_the_package_itself_imports_the_standard_library_alone(tmp_path: Path) -> None:
    code = "import sys; before = {*sys.modules}; import mvtec_lab; print(*sys.modules.keys() - before)"
    names = run(sys.executable, "-c", code, cwd=tmp_path, path=REPOSITORY).split()
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"mvtec_lab"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("--help", 0),
        ("--cfg job", 0),
        ("attempt=finetun", 2),
        ("data.bach_size=4", 2),
        ("data.batch_size=0", 2),
        ("-m attempt=finetun", 2),
        ("-m attempt=base data.batch_size=0", 2),
        ("-m attempt=base seed=0,-1", 2),  # the second job's mistake, before the first is looked at closely
        ("--help data attempt", 0),
        ("--help -m attempt=head,finetune seed=0,1", 0),
        ("model.backbone=resnet81", 2),
        ("-m attempt=base,cosine model.backbone=resnet81", 2),
        ("model.weights=no/such.pth", 2),
        ("attempt=segment/sam model.sam_weights=none.pt", 2),
        ("split.protocol=file split.file=none.csv", 2),
        ("+augment.transforms.Rotat.p=1", 2),
        ("trainer.devices=abc", 2),
        ("trainer.accelerator=gpux", 2),
        ("trainer.strategy=dpp", 2),
        ("trainer.accelerator=cpu trainer.precision=16-mixed", 2),
        ("model.unfreeze=[stage9]", 2),
        ("model.unfreeze=9 model.backbone=mobilenet_v2", 2),
        ("model.backbone=timm/resnet81", 2),
        ("task=evaluate", 2),
        ("task=predict ckpt=none.ckpt source=x", 2),
        ("task=export ckpt=.", 2),  # a folder without a run
    ],
)
def test_what_does_not_train_imports_no_torch(tmp_path: Path, arguments: str, status: int) -> None:
    code = (
        "import sys; from mvtec_lab.cli import main; status = main(sys.argv[1:]); "
        "print(); print(status, len(sys.modules), *sys.modules)"
    )
    said = run(sys.executable, "-c", code, *arguments.split(), cwd=tmp_path, path=REPOSITORY)
    left, count, *names = said.splitlines()[-1].split()
    assert int(left) == status
    assert HEAVY & {*names} == set()
    assert int(count) < 600  # 340 to 560 when this was written; torch alone brings more than a thousand
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_an_unknown_backbone_is_refused_before_a_file_is_written(
    mode: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*mode, "model.backbone=resnet81"]) == 2
    said = capsys.readouterr().err
    assert "unknown backbone 'resnet81': did you mean resnet18" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_the_labs(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mvtec_lab {mvtec_lab.__version__}\n"


def test_every_public_name_can_be_had() -> None:
    assert {"compose", "run_attempt", "DefectClassifier", "MVTecDataModule"} < {*mvtec_lab.__all__}
    for name in mvtec_lab.__all__:
        assert getattr(mvtec_lab, name) is not None
        assert name in dir(mvtec_lab)
    with pytest.raises(AttributeError, match="no attribute 'DefectClasifier'"):
        _ = mvtec_lab.DefectClasifier


# From where it runs


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the package is made of: building must leave nothing in the checkout itself."""
    copy = tmp_path / "checkout"
    for name in ("mvtec_lab", "conf"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(REPOSITORY / name, copy)
    return copy


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder to work in that knows nothing of the package, with a product in it."""
    write_product(tmp_path / "elsewhere/widget")
    return tmp_path / "elsewhere"


def train(*command: str | Path, cwd: Path, path: Path | None = None) -> None:
    """A sweep of one tiny run, which leaves a completed run, a table and a report."""
    settings = "data=folder data.root=widget data.image_size=32 model.backbone=squeezenet1_1 model.weights=null"
    settings += " trainer.max_epochs=1 trainer.accelerator=cpu hydra.sweep.dir=sweep"
    run(*command, "-m", "attempt=base", *settings.split(), cwd=cwd, path=path)
    (result,) = find_runs(cwd / "sweep")
    assert result.completed
    assert (cwd / "sweep/summary.csv").is_file()
    assert "<html" in (cwd / "sweep/report.html").read_text(encoding="utf-8")


def origin(interpreter: str | Path, cwd: Path, path: Path | None = None) -> Path:
    """The folder that a process imports the package from."""
    return Path(
        run(interpreter, "-c", "import mvtec_lab; print(mvtec_lab.__file__)", cwd=cwd, path=path).strip()
    ).parent


def test_a_bare_checkout_composes(checkout: Path, elsewhere: Path) -> None:
    said = run(sys.executable, "-m", "mvtec_lab", "--cfg", "job", cwd=elsewhere, path=checkout)
    assert "backbone: shufflenet_v2_x1_0" in said  # the sample's
    assert origin(sys.executable, elsewhere, checkout) == checkout / "mvtec_lab"


@pytest.mark.slow
def test_a_bare_checkout_trains(checkout: Path, elsewhere: Path) -> None:
    train(sys.executable, "-m", "mvtec_lab", cwd=elsewhere, path=checkout)


@pytest.mark.slow
def test_a_wheel_trains(checkout: Path, elsewhere: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "-w", tmp_path, checkout, cwd=elsewhere)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    files = ("conf/config.yaml", "reporting/report.html.j2", "models/sample_v1.pth", "py.typed")
    assert {f"mvtec_lab/{file}" for file in files} < {*names}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mvtec_lab"}  # no tests, no conf of its own

    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", *OFFLINE, "--target", site, wheel, cwd=elsewhere)
    shutil.rmtree(checkout)
    assert origin(sys.executable, elsewhere, site) == site / "mvtec_lab"
    train(sys.executable, "-m", "mvtec_lab", cwd=elsewhere, path=site)
    (installed,) = metadata.distributions(name="mvtec_lab", path=[str(site)])
    (script,) = installed.entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("mvtec-lab", "mvtec_lab.cli:main")


@pytest.mark.slow
def test_an_editable_install_has_its_command_and_follows_the_checkout(
    checkout: Path, elsewhere: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=elsewhere)
    (site,) = environment.glob("lib/python*/site-packages")
    # It borrows the libraries, and pip, of the interpreter that runs the tests: nothing is downloaded.
    borrowed = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    run(environment / "bin/python", "-m", "pip", "install", *OFFLINE, "-e", checkout, cwd=elsewhere)

    assert origin(environment / "bin/python", elsewhere) == checkout / "mvtec_lab"
    train(environment / "bin/mvtec-lab", cwd=elsewhere)
    (checkout / "conf/attempt/mine.yaml").write_text("# @package _global_\nseed: 17\n", encoding="utf-8")
    assert "seed: 17" in run(environment / "bin/mvtec-lab", "attempt=mine", "--cfg", "job", cwd=elsewhere)


# The files around the code


def test_the_version_is_said_once() -> None:
    assert project()["version"] == mvtec_lab.__version__


def test_the_tested_versions_lie_in_the_ranges() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = (line.split(";")[0].strip() for line in lines if line and not line.startswith("#"))
    pins = dict(pin.lower().split("==") for pin in pinned)
    declared = chain(project()["dependencies"], *project()["optional-dependencies"].values())
    for requirement in map(Requirement, declared):
        if requirement.name == project()["name"]:  # an extra that takes in others
            continue
        assert requirement.name.lower() in pins
        assert requirement.specifier.contains(pins[requirement.name.lower()]), requirement


def test_the_malicious_releases_of_lightning_are_excluded() -> None:
    requirements = {
        requirement.name: requirement.specifier for requirement in map(Requirement, project()["dependencies"])
    }
    lightning = requirements["pytorch-lightning"]
    assert "2.6.1" in lightning
    assert "2.6.2" not in lightning
    assert "2.6.3" not in lightning
    assert "2.6.4" in lightning


def tracked() -> list[Path]:
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("this is no git checkout")
    # safe.directory: a checkout that another user made, as build machines have it, will do.
    names = run("git", "-c", "safe.directory=*", "ls-files", "-z", cwd=REPOSITORY).split("\0")
    return [REPOSITORY / name for name in names if (REPOSITORY / name).is_file()]


def test_tracked_files_are_small_and_name_no_place_on_one_machine() -> None:
    # Roots that no file has a reason to name; brackets, so that this file does not match itself.
    place = re.compile(rb"/[h]ome/\w|/[r]oot/|/[U]sers/\w|/[w]ork/|/[t]mp/|[A-Z]:\\[U]sers")
    for file in tracked():
        most = 6e6 if file.name == "sample_v1.pth" else 2**20  # the sample's weights
        assert file.stat().st_size < most, file
        found = place.search(file.read_bytes())
        assert found is None, f"{file}: {found}"


def test_configurations_hold_names_and_numbers_alone() -> None:
    files = list((REPOSITORY / "conf").rglob("*.yaml"))
    assert files
    assert [file for file in files if "_target_" in file.read_text(encoding="utf-8")] == []
