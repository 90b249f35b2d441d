"""The notebook is committed without outputs, and runs from its first cell to its last."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from mvtec_lab.results import find_runs

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOK = REPOSITORY / "notebooks/01_quickstart.ipynb"


def test_the_notebook_is_committed_without_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)  # the checkout need not be installed
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # Without kernel folders "python3" is the interpreter that runs the tests, not one installed for the user.
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(notebook, km=manager, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(cleanup_kc=True)  # a manager of one's own keeps its kernel otherwise, and warns in a later test

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 4  # the classes, the confusion matrix, the mistakes, the new image
    runs = find_runs(tmp_path / "outputs/notebook")
    assert [run.attempt for run in runs] == ["head", "finetune"]
    assert all(run.completed for run in runs)
    assert "did you mean finetune?" in str(outputs)
    assert "test accuracy" in str(outputs)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["outputs"]
