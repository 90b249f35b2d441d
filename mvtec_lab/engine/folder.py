"""A task's folder: all of its files or none, also where the process is killed."""

from __future__ import annotations

import glob
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mvtec_lab.engine.setup import claim
from mvtec_lab.errors import LabError, disk_full
from mvtec_lab.locks import held


@contextmanager
def whole_folder(run_dir: Path, marker: str) -> Iterator[Path]:
    """Yield an empty folder beside a task's directory; at the end its files move there, all of them or none.

    Until then the marker lies empty in the directory: it is taken, and not complete. What a killed process left is
    taken over, as the lock of the directory ended with it.

    Args:
        marker: the file by which the directory becomes the task's own, and which moves last.

    Raises:
        LabError: the directory belongs to another run or is in use, or cannot be written.
    """
    begin, end, taken = f"{run_dir.name}.{marker}.", ".tmp", run_dir / marker
    with held(run_dir):
        if not taken.is_file() or taken.stat().st_size:
            claim(run_dir, marker)
        folder, names = None, list[str]()
        try:
            for left in run_dir.parent.glob(f"{glob.escape(begin)}*{end}"):
                shutil.rmtree(left, ignore_errors=True)
            folder = _beside(run_dir, begin, end)
            yield folder
            names = sorted((path.name for path in folder.iterdir()), key=lambda name: (name == marker, name))
            for name in names:  # a move takes no room on the disk
                (folder / name).replace(run_dir / name)
        except BaseException:
            for name in (*names, marker):
                (run_dir / name).unlink(missing_ok=True)
            raise
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _beside(run_dir: Path, begin: str, end: str) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=begin, suffix=end, dir=run_dir.parent))
    except OSError as error:
        reason = f"{run_dir} cannot be written ({error.strerror}): give hydra.run.dir=FOLDER"
        raise disk_full(error, run_dir) or LabError(reason) from error
