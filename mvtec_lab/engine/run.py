"""One run of any problem: its directory, its trainer, and where an interrupted one continues."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, RichProgressBar
from rich.console import Console

from mvtec_lab.config import Config
from mvtec_lab.data.contents import contents_listed, require_same
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.boards import board_of, build_loggers, close, hyperparameters, log_results
from mvtec_lab.engine.checkpoints import Checkpoints, WholeFiles, read_last
from mvtec_lab.engine.devices import build_trainer
from mvtec_lab.engine.history import History
from mvtec_lab.engine.memory import peak_memory
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.pictures import log_picture, write_picture
from mvtec_lab.engine.process import without_hints
from mvtec_lab.engine.resume import as_yaml, earlier_run
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.specs import deciding
from mvtec_lab.models.weights import save_file
from mvtec_lab.results import (
    BEST,
    CONFIG,
    HISTORY,
    IN_TABLE,
    LAST,
    PREDICTIONS,
    SAMPLES,
    RunResult,
    table_of,
    write_csv,
    write_whole,
)

if TYPE_CHECKING:  # a third of a second that only those who draw need pay
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

_SPLIT = ("path", "label", "split", "fold", "group", "mask")  # columns of samples.csv that a resumed run must repeat
_ELSEWHERE = "restore them, or give another directory"


@dataclass
class Judgement:
    """Hold what a problem makes of a model's predictions on validation and test images.

    Args:
        metrics: by split, ``val`` and ``test``: plain values by metric key, ``images`` among them.
        rows: of predictions.csv, with ``split`` and ``path`` at least.
        pictures: uint8 RGB [H, W, 3] by file name, for the run's directory.
        board: what TensorBoard shows, by tag: pictures, Matplotlib figures, or Markdown.
        summary: one line for the log.
    """

    metrics: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]
    pictures: Mapping[str, np.ndarray]
    board: Mapping[str, np.ndarray | Figure | str]
    summary: str = ""

    def write(self, run_dir: Path) -> None:
        """Write predictions.csv and the pictures."""
        columns = dict.fromkeys(key for row in self.rows for key in row)  # a split may have more than another
        write_csv(run_dir / PREDICTIONS, self.rows, list(columns))
        for name, picture in self.pictures.items():
            write_picture(run_dir / name, picture)


@dataclass
class Run:
    """Carry a run from its start to its judgement.

    Args:
        model: to be trained, fitted or judged.
        result: what becomes result.json; problems fill in what they know.
        began: ``time.perf_counter()`` when the task began.
        step: the optimizer step that the run continues from; None where it starts.
        varied: the keys that vary in its sweep; None: it is part of no grid.

    ``peak_mib()`` is the most memory that was held since ``watch_memory``; None where nobody counts it.
    """

    config: Config
    data: MVTecDataModule
    model: Model
    result: RunResult
    began: float
    step: int | None = None
    varied: Sequence[str] | None = None
    checkpoints: Checkpoints | None = field(default=None, init=False)
    peak_mib: Callable[[], float | None] = lambda: None

    @property
    def run_dir(self) -> Path:
        return Path(self.result.run_dir)

    def warn(self, text: str) -> None:
        """Add a warning to result.json, the table and the log."""
        self.result.warnings.append(text)
        log.warning(text, extra=IN_TABLE)

    def watch_memory(self) -> None:
        """Count the memory that is held from now on; it takes a third of a second, and returns what was kept."""
        self.peak_mib = peak_memory(self.trainer.strategy.root_device)

    def build_trainer(self, monitor: str | None = None, awaited: str = "val/loss") -> pl.Trainer:
        """Return the run's trainer, with its history, its loggers and, where asked for, early stopping.

        Args:
            monitor: the logged metric that chooses best.ckpt, the lowest one of ``.../loss``, else the highest; the
                run can then be resumed. None: the problem writes best.ckpt itself.
            awaited: the logged metric that early stopping waits for, as ``monitor``.
        """
        t = self.config.trainer
        self.history = History(self.run_dir / HISTORY)
        self.checkpoints = None if monitor is None else Checkpoints(self.run_dir, monitor, self.model.about())
        interactive = Console(stderr=True).is_interactive
        callbacks: list[pl.Callback] = [c for c in (self.checkpoints, self.history) if c]
        if t.patience is not None:
            mode = "min" if awaited.endswith("loss") else "max"
            callbacks.append(EarlyStopping(awaited, patience=t.patience, mode=mode))
        if interactive:
            callbacks.append(RichProgressBar(leave=False))
        self.trainer = build_trainer(
            self.config,
            max_epochs=t.max_epochs,
            callbacks=callbacks,
            enable_checkpointing=False,  # Checkpoints does
            plugins=[WholeFiles()],
            logger=build_loggers(self.config, self.run_dir, self.step),
            enable_progress_bar=interactive,
            log_every_n_steps=1,  # an epoch has a handful of batches
        )
        device = self.trainer.strategy.root_device
        self.result.device = str(device)
        if device.type == "cuda":
            self.result.machine = f"{self.result.machine}, {torch.cuda.get_device_name(device)}"
        self.result.precision = str(self.trainer.precision)
        return self.trainer

    def fit(self, **loaders: Any) -> None:
        """Train the model by gradient, from the beginning or from last.ckpt, and keep its best weights.

        Args:
            loaders: as ``Trainer.fit`` takes them; none: the run's data module.
        """
        started, module = time.perf_counter(), self.model.module
        try:
            with quiet():
                self.trainer.fit(
                    module,
                    **(loaders or {"datamodule": self.data}),
                    ckpt_path=None if self.step is None else self.run_dir / LAST,
                )
        except SystemExit as stop:  # Lightning's answer to Ctrl-C and to SIGTERM
            raise KeyboardInterrupt(f"stopped (Ctrl-C or SIGTERM) after {len(self.history.rows)} epochs") from stop
        finally:
            self.result.seconds = self.history.earlier_seconds + time.perf_counter() - started
            self.result.epochs = len(self.history.rows)
        self.result.best_epoch = self.result.epochs
        if self.checkpoints is not None:
            module.load_state_dict(self.checkpoints.best["state_dict"])
            self.result.best_epoch = self.checkpoints.best["epoch"] + 1  # Lightning counts from 0
        module.to(self.trainer.strategy.root_device)  # from which Lightning takes it at the end

    def keep(self) -> None:
        """Write best.ckpt again, with what was chosen or fitted after training: a threshold."""
        trained = {} if self.checkpoints is None else self.checkpoints.best
        save_file({**trained, **self.model.content()}, self.run_dir / BEST)

    def show_picture(self, name: str, picture: np.ndarray) -> None:
        """Show a picture of the run's beginning, uint8 RGB [H, W, 3], in TensorBoard."""
        if (board := board_of(self.trainer.loggers)) is not None:
            log_picture(board.experiment, f"pictures/{name}", picture, 0)

    def show(self, judgement: Judgement) -> None:
        """Put a judgement, the configuration and the row of hyperparameters into TensorBoard and the other loggers."""
        step = self.trainer.global_step
        if (board := board_of(self.trainer.loggers)) is not None:
            writer = board.experiment
            for name, content in judgement.board.items():
                tag = f"pictures/{name.removeprefix('pictures/')}"  # after the losses, whatever they show
                if isinstance(content, str):
                    writer.add_text(tag, content, step)
                elif isinstance(content, np.ndarray):
                    log_picture(writer, tag, content, step)
                else:
                    writer.add_figure(tag, content, step)
            block = "    " + as_yaml(self.config).replace("\n", "\n    ")  # four spaces: a code block in Markdown
            writer.add_text("config", block, 0)
        decides = self.config.verdict.metric or deciding(self.result.problem)[0].key
        log_results(self.trainer.loggers, hyperparameters(self.config, self.varied), judgement.metrics, decides)

    @contextmanager
    def logged(self) -> Iterator[None]:
        """End the loggers' runs when the run ends, well or not."""
        status = "failed"
        try:
            yield
            status = "success"
        finally:
            if (trainer := getattr(self, "trainer", None)) is not None:
                close(trainer.loggers, status)

    def resume(self) -> bool:
        """Take up the run that was interrupted in this directory; False where there is none to continue.

        Raises:
            LabError: its images, split or weights are no longer those that it began with.
        """
        run_dir, result = self.run_dir, self.result
        # Asked again: this process holds the directory only now.
        earlier = earlier_run(run_dir, self.config) if self.config.resume else None
        if earlier is None:
            return False
        if earlier.completed:
            raise LabError(f"{run_dir} was completed by another process in the meantime")
        if not earlier.interrupted:
            log.info("%s failed (%s): it starts again", run_dir, earlier.error)
            return False
        if not (run_dir / LAST).exists():
            log.info("%s was stopped before its first %s: it starts again", run_dir, LAST)
            return False
        try:
            checkpoint = read_last(run_dir)
        except LabError as error:
            log.warning("%s; the run starts again", error)
            return False
        self._require_as_begun(earlier)
        self.model.module.load_state_dict(checkpoint["state_dict"])  # now: features are made before Lightning does
        result.started, result.resumed = earlier.started or result.started, earlier.resumed + 1
        changed = [
            f"{name} {earlier.versions[name]}, now {version}"
            for name, version in result.versions.items()
            if earlier.versions.get(name, version) != version
        ]
        if changed:
            result.warnings.append(f"resumed under other versions ({'; '.join(changed)}): no exact repetition")
        if earlier.threads not in (None, result.threads):
            begun = f"resumed with {result.threads} CPU thread(s), begun with {earlier.threads}"
            result.warnings.append(f"{begun}: no exact repetition")
        log.info("%s continues after epoch %d of %d", run_dir, checkpoint["epoch"], self.config.trainer.max_epochs)
        self.step = checkpoint["global_step"]
        return True

    def _require_as_begun(self, earlier: RunResult) -> None:
        """Raise LabError where weights, files, images or split are no longer those that the run began with."""
        run_dir, result = self.run_dir, self.result
        if earlier.weights not in (None, result.weights):
            raise LabError(
                f"{run_dir} began with the weights {earlier.weights}, these are {result.weights}: {_ELSEWHERE}"
            )
        if changed := [key for key, digest in earlier.digests.items() if result.digests.get(key) != digest]:
            path = result.paths.get(changed[0])
            raise LabError(f"{run_dir} began with another content of {changed[0]}={path}: {_ELSEWHERE}")
        if not (run_dir / SAMPLES).exists():
            raise LabError(f"{run_dir / SAMPLES} is missing: which images this run has seen is not known; {_ELSEWHERE}")
        began, rows = table_of(run_dir, SAMPLES) or [], sample_rows(self.data, result.fold)
        require_same(
            self.data.folder, self.data.contents(), contents_listed(began), f"{run_dir} began with", _ELSEWHERE
        )
        split = [{key: "" if row[key] is None else str(row[key]) for key in _SPLIT} for row in rows]
        if [{key: row.get(key) for key in _SPLIT} for row in began] != split:
            raise LabError(f"{run_dir / SAMPLES} names another split than {self.data.folder} has now: {_ELSEWHERE}")

    def write_inputs(self) -> None:
        """Write config.yaml and samples.csv."""
        write_whole(self.run_dir / CONFIG, as_yaml(self.config))
        rows = sample_rows(self.data, self.result.fold)
        write_csv(self.run_dir / SAMPLES, rows, list(rows[0]))


def sample_rows(data: MVTecDataModule, fold: int | None) -> list[dict[str, Any]]:
    """Return the rows of samples.csv: every image with its split, group, mask and digests."""
    digests = data.contents()
    return [
        {
            "path": s.path,
            "label": s.label,
            "split": s.split,
            "fold": fold,
            "group": s.group,
            "mask": s.mask,
            "digest": digests[s.path],
            "mask_digest": digests[s.mask] if s.mask else None,
        }
        for s in data.samples
    ]


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out those of Lightning's hints that do not apply here."""
    hints = (
        "does not have many workers",  # nothing to gain at a few dozen small images
        "smaller than the logging interval",
        "exists and is not empty",  # the run's own config.yaml
        "in eval mode at the start",  # frozen stages stay there on purpose
        "`training_step` returned `None`",  # a vote of neighbours has nothing to train
        "LeafSpec",  # Lightning's own use of PyTorch
    )
    with warnings.catch_warnings(), without_hints("pytorch_lightning"):
        for hint in hints:
            warnings.filterwarnings("ignore", f".*{hint}.*")
        yield


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    names = ("mvtec_lab", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "albumentations", "numpy")
    installed = {"python": platform.python_version()}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a bare checkout is not installed
            installed[name] = "not installed"
    return installed


def git_revision() -> str | None:
    """Return the revision of the checkout that this package runs from; None where it is installed."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    git = ["git", "--no-optional-locks", "-C", os.fspath(here)]  # status would rewrite the index
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if dirty else "")
