"""The notebooks: each answers one question, is short, and was saved with what the current code prints."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from test_real import ROOT

import mvtec_lab

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
assert spec is not None
assert spec.loader is not None
execute_notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(execute_notebooks)

each_notebook = pytest.mark.parametrize("path", execute_notebooks.NOTEBOOKS, ids=lambda path: path.stem)
ALLOWED = {*sys.stdlib_module_names, "numpy", "matplotlib", "IPython", "mvtec_lab"}
MADE = ("measured", "timed")  # tags of cells whose figures depend on how a processor rounds, or on the time


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: NotebookNode) -> str:
    """Return what a cell printed, and the kinds of its pictures, without colours and the time in a folder's name."""
    parts = []
    for output in cell.outputs:
        data = output.get("data", {})
        text = output.get("text") or data.get("text/markdown") or data.get("text/plain", "")
        parts += [text, *sorted(kind for kind in data if kind.startswith("image/"))]
    plain = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(parts))
    return re.sub(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", "TIME", plain)


def kinds(cell: NotebookNode) -> list[list[str]]:
    return [[output.output_type, *output.get("data", ())] for output in cell.outputs]


def test_there_is_a_notebook_for_each_question() -> None:
    listed = re.findall(r"\(\.\./notebooks/(\S+\.ipynb)\)", (FOLDER.parent / "docs/notebooks.md").read_text())
    assert [name[:3] for name in listed] == ["01_", "02_", "03_", "04_", "05_", "06_"]
    assert listed == [path.name for path in execute_notebooks.NOTEBOOKS]


@each_notebook
def test_a_notebook_is_short_and_saved_with_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert 10 <= len(notebook.cells) <= 15
    assert path.stat().st_size < 300_000
    assert notebook.cells[0].source.startswith(f"# Question {path.name[1]}: ")
    assert notebook.cells[-1].source.startswith("## The answer\n")
    assert [cell.execution_count for cell in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
    assert sum(execute_notebooks.SETTINGS in cell.metadata.get("tags", ()) for cell in notebook.cells) == 1
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert sum(any(kind.startswith("image/") for kind in output.get("data", ())) for output in outputs) >= 2
    assert all(output.output_type != "error" for output in outputs)
    assert tempfile.gettempdir() not in str(outputs)


@each_notebook
def test_a_notebook_uses_what_the_lab_exports_alone(path: Path) -> None:
    for cell in code(nbformat.read(path, as_version=4)):
        lines = cell.source.splitlines()
        assert all(len(line) <= 110 for line in lines)  # as many as a browser shows
        tree = ast.parse("\n".join(line for line in lines if not line.startswith("%")))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert str(node.module).split(".")[0] in ALLOWED
                if str(node.module).startswith("mvtec_lab"):
                    assert node.module == "mvtec_lab"
                    assert {alias.name for alias in node.names} <= {*mvtec_lab.__all__}
            elif isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= ALLOWED


@pytest.mark.slow
@each_notebook
def test_a_notebook_shows_what_the_current_code_prints(path: Path, tmp_path: Path) -> None:
    """Where these fail and the code is right: make notebooks, then read the answer again."""
    saved, fresh = nbformat.read(path, as_version=4), execute_notebooks.execute(path, tmp_path)
    alike = saved.metadata["made_with"] == fresh.metadata["made_with"]
    for old, new in zip(code(saved), code(fresh), strict=True):
        tags = {*new.metadata.get("tags", ())}
        if tags.isdisjoint(MADE) or (alike and "timed" not in tags):
            assert texts(new) == texts(old)
        elif alike:
            assert re.sub(r"[\d\s]+", " ", texts(new)) == re.sub(r"[\d\s]+", " ", texts(old))
        else:
            assert kinds(new) == kinds(old)


@pytest.mark.slow
@pytest.mark.mvtec
@pytest.mark.skipif(not (ROOT / "bottle").is_dir(), reason="no MVTec images at hand")
@each_notebook
def test_a_notebook_runs_on_real_images(path: Path, tmp_path: Path) -> None:
    """With the sample's weights, which need no network, and as few epochs and folds as there can be."""
    data = ["data=mvtec", f"data.root={ROOT}", "data.category=bottle"]
    weights = ["model.backbone=shufflenet_v2_x1_0", "model.weights=SAMPLE_V1"]
    execute_notebooks.execute(path, tmp_path, f"DATA, EPOCHS, FOLDS = {data + weights}, 2, 3")
    assert not (tmp_path / "outputs/data").exists()  # where the sample would be drawn
