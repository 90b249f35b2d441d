"""Execute the notebooks on the built-in sample and save their outputs: python notebooks/execute.py [FILE ...].

One thread computes, so that the same machine prints the same figures each time.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import torch
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PATIENCE = 1800  # seconds for a cell: a sweep on real images takes minutes, on a busy machine more
SETTINGS = "settings"  # the tag of the cell where a reader chooses the images


def execute(path: Path, folder: Path, settings: str = "") -> NotebookNode:
    """Return a notebook with the outputs of its cells, which were run one after the other.

    Args:
        path: of the notebook.
        folder: an empty one, where the cells write; nothing is written beside the notebook.
        settings: code that is run after the cell of settings, to choose other images.

    Raises:
        CellExecutionError: a cell ended with an error.
    """
    notebook = nbformat.read(path, as_version=4)
    places = [k for k, cell in enumerate(notebook.cells) if SETTINGS in cell.metadata.get("tags", ())]
    if settings:
        notebook.cells.insert(places[0] + 1, nbformat.v4.new_code_cell(settings))
    paths = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}  # the checkout need not be installed
    # Without kernel folders "python3" is the interpreter that runs this, not one installed for the user.
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=PATIENCE,
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,  # where one line ends and the next begins is not left to timing
    )
    client.execute(env=env, cleanup_kc=True)  # a manager of one's own keeps its kernel otherwise, and warns later
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "text" in output:
                output.text = output.text.replace(f"{folder}{os.sep}", "")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "made_with": made_with(),
    }
    return notebook


def made_with() -> list[str]:
    """Return what decides how sums are rounded, and with it what a training prints."""
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():  # Linux's answer is mostly empty
        processor = re.search(r"model name\s*: (.*)|$", Path("/proc/cpuinfo").read_text())[1] or processor
    return [torch.__version__, processor, torch.backends.cpu.get_cpu_capability()]


def main() -> None:
    """Execute the notebooks that are named, or all."""
    for path in [Path(name).resolve() for name in sys.argv[1:]] or NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(path, Path(folder)), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
