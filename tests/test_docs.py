"""What README.md and docs/ say: every command runs or composes, every link leads somewhere, every name is listed."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SIZE, write_product
from test_package import project

import mvtec_lab
from mvtec_lab import job, reference, sweep, tasks
from mvtec_lab.cli import main
from mvtec_lab.data import source
from mvtec_lab.results import find_runs
from mvtec_lab.tasks import check

REPOSITORY = Path(__file__).resolve().parents[1]
README, CONTRIBUTING = REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
LAB = "python -m mvtec_lab "


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language; a block without one, fenced or indented, is of the shell."""
    fenced = re.findall(r"^```(\S*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:^|\n\n)((?: {4}.*\n?)+)", rest)
    written = [(name or "bash", code) for name, code in fenced] + [("bash", code) for code in indented]
    return [code for name, code in written if name == language]


def commands(page: Path) -> Iterator[str]:
    """The commands of a page's blocks, one a line, without comments."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield from " ".join(map(shlex.quote, words)).split(" '&&' ")


def few_folds(words: list[str]) -> list[str]:
    return [re.sub(r"^(cv\.folds|cv\.repeats)=\d+", r"\1=2", word) for word in words]


def of_tables(page: Path) -> Iterator[str]:
    """The commands of a page's tables, which leave out how each of them begins."""
    for words in re.findall(r"^\|.*`(-m [^`]+)`", page.read_text(encoding="utf-8"), re.MULTILINE):
        yield LAB + words


ALL = [(page.name, command) for page in PAGES for command in (*commands(page), *of_tables(page))]


def test_commands_of_measured_figures_name_their_weights() -> None:
    """MobileNetV2's default weights are newer than those that the tables were made with."""
    for page, command in ALL:
        words = shlex.split(command)
        newer = "model.backbone=mobilenet_v2" in words or page == "results.md"  # where attempts name it as well
        if newer and "bottle" in command and "segment/sam," not in command:  # which has SAM's
            assert any(word.startswith("model.weights=") for word in words), (page, command)


# README.md, as somebody reads it


@pytest.fixture
def small(tiny_net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The settings that make a command's images, network and training tiny; the folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    return [
        f"data.image_size={SIZE}",
        "data.batch_size=8",
        f"model.backbone={tiny_net}",
        "model.weights=null",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
    ]


@pytest.fixture
def places(tmp_path: Path) -> Callable[[str], str]:
    """Replace the folders of the text by tiny ones."""
    write_product(tmp_path / "mvtec/bottle")
    write_product(tmp_path / "my_product")
    return lambda words: words.replace("/data/", f"{tmp_path}/").replace(
        "FILE_OR_FOLDER", f"{tmp_path}/my_product/test"
    )


@pytest.mark.slow
def test_every_command_of_the_readme_runs(small: list[str], places: Callable[[str], str], tmp_path: Path) -> None:
    """In their order, each at a tiny size: what one leaves the next one takes."""
    ran = []
    for command in commands(README):
        if not command.startswith(LAB):
            continue
        words = few_folds(shlex.split(places(command))[3:])
        words = [word.replace("lab/all", "head") for word in words]  # the tiny network has no maps for the recipe
        if not any(word.startswith(("data=", "ckpt=")) for word in words):
            words += ["data=folder", f"data.root={tmp_path}/my_product"]  # drawing the sample takes seconds
        task = next((word[5:] for word in words if word.startswith("task=")), "train")
        reads = tasks.TASKS[task]
        words += [
            word for word in small if word.startswith(reads.reads) and not word.startswith(("ckpt", *reads.ignores))
        ]
        assert main(words) == 0, command
        ran.append(task)
    assert {"train", "describe", "evaluate", "predict", "export"} <= {*ran}
    assert (tmp_path / "outputs/exported/model.onnx").is_file()
    assert all(run.completed for run in find_runs(tmp_path / "outputs"))


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, REPOSITORY / "docs/python.md"], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(
    page: Path, tiny_net: str, small: list[str], places: Callable[[str], str], tmp_path: Path
) -> None:
    of_network = "model.backbone=mobilenet_v2"  # which has the layers that methods take by default
    tiny = [w for w in small if not w.startswith(("trainer.max_epochs", "model.backbone"))]  # methods have no epochs
    settings = [*tiny, of_network, "data=mvtec", f"data.root={tmp_path}/mvtec", "data.category=bottle"]
    names: dict[str, Any] = {"settings": settings}
    for block in blocks(page, "python"):
        if "read_results" in block and importlib.util.find_spec("pandas") is None:
            continue
        code = re.sub(r"(compose|run_sweep)\(([^)]*)\)", r"\1(\2, *settings)", places(block))
        code = code.replace("data.classes, unfreeze", "data.classes, weights=None, unfreeze")
        exec(code.replace("outputs/patchcore", "outputs/mine"), names)
    assert names["result"].completed


# Every page

NEEDS = {
    "hydra/sweeper=optuna": "hydra_plugins.hydra_optuna_sweeper",
    "hydra/launcher=parallel": "hydra_plugins.hydra_joblib_launcher",
    "attempt=detect/yolo_world": "ultralytics",
    "trainer.logger=[tensorboard,mlflow]": "mlflow",
}


class CheckedError(SystemExit):
    """Ends a command where its first job would begin."""

    code = 0


@pytest.fixture
def unstarted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(*args: Any, **options: Any) -> None:
        raise CheckedError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVTEC_ROOT", "mvtec")
    monkeypatch.setattr(source, "look", lambda *args, **options: None)  # there are no images
    monkeypatch.setattr(check.Checks, "job", stop)
    monkeypatch.setattr(job, "function_of", lambda task: stop)
    monkeypatch.setattr(sweep, "function_of", lambda task: None if task == "train" else stop())


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            command, id=f"{page}: {command.removeprefix(LAB)}", marks=[pytest.mark.slow] * ("study" in command)
        )
        for command, page in {command: page for page, command in reversed(ALL)}.items()
        if command.startswith(LAB) and "ckpt=" not in command and " reference=" not in command  # test_way.py runs these
    ],
)
def test_every_command_composes(command: str, unstarted: None, capsys: Any) -> None:
    """Its keys exist, have these values and an effect together: of every job of a sweep."""
    words = few_folds(shlex.split(command)[3:])
    for word, module in NEEDS.items():
        if word in words:
            pytest.importorskip(module)
    assert main(words) == 0, capsys.readouterr().err


def test_every_other_command_has_what_it_names() -> None:
    extras = {*project()["optional-dependencies"]}
    for page, command in ALL:
        if "ckpt=" in command:  # it needs a run, as README.md's have one
            assert command in commands(README), (page, command)
        words = shlex.split(command)
        if words[:2] == ["pip", "install"]:
            assert set(re.findall(r"(?:mvtec_lab|\.)\[([\w-]+)\]", command)) <= extras, (page, command)
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), (page, command)
        else:
            assert words[0] in ("make", "tensorboard", "jupyter"), (page, command)


@pytest.mark.parametrize("page", [*PAGES, CONTRIBUTING], ids=lambda page: page.name)
def test_the_make_targets_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"(?:^ {4}|`)make (\w+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    targets = set(re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= targets
    assert named or page not in (README, CONTRIBUTING)


def anchors(page: Path) -> set[str]:
    """The places that a link can lead to, as GitHub and MyST name the headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", [*PAGES, CONTRIBUTING], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for path, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if ":" in path:
            continue
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {path}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {path}#{anchor}"


def test_the_readme_is_read_in_one_go() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 260


def test_the_page_of_keys_has_every_key() -> None:
    spec = importlib.util.spec_from_file_location("docs_conf", REPOSITORY / "docs/conf.py")
    assert spec is not None
    assert spec.loader is not None
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    listed = re.findall(r"^```{confval} (\S+)$", conf.every_key(), re.MULTILINE)
    assert sorted(listed) == sorted(entry.key for entry in reference.entries())
    assert {"seed", "data.root", "model.options.coreset", "reported.split", "dirs"} < {*listed}
    assert "<!-- keys -->" in (REPOSITORY / "docs/keys.md").read_text(encoding="utf-8")


def test_every_exported_name_is_in_the_reference() -> None:
    text = (REPOSITORY / "docs/api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\.\. auto\w+:: (\w+)", text, re.MULTILINE)
    assert sorted(listed) == sorted({*mvtec_lab.__all__} - {"__version__"})


def test_every_page_is_listed() -> None:
    index = (REPOSITORY / "docs/index.md").read_text(encoding="utf-8")
    assert {page.stem for page in PAGES} - {"README", "index"} <= {*re.findall(r"^\w+$", index, re.MULTILINE)}


def test_the_map_of_the_house_names_every_module_and_folder_of_the_package() -> None:
    house = CONTRIBUTING.read_text(encoding="utf-8").split("## The house")[1].split("\n## ")[0]
    package = REPOSITORY / "mvtec_lab"
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert {name for name in modules | folders if name not in house} == set()


RESULTS = ("Comparison", "Pair", "Estimate", "RunResult", "Sample", "Scores")


@pytest.mark.parametrize("name", RESULTS)
def test_the_reference_shows_every_attribute_of_a_result(name: str) -> None:
    """Sphinx leaves a field without a comment out, unless it is asked for all."""
    text = (REPOSITORY / "docs/api.md").read_text(encoding="utf-8")
    entry = re.search(rf"^\.\. autoclass:: {name}\b.*\n((?: {{3}}:.*\n)*)", text, re.MULTILINE)
    assert entry is not None
    assert entry[1].split() == [":members:", ":undoc-members:"]
