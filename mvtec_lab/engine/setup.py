"""From a configuration to its data and its directory. Nothing is written but a data set that has to be fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mvtec_lab.cache import ArrayCache
from mvtec_lab.config import Config
from mvtec_lab.data.contents import Contents, require_same
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.frame import Frame
from mvtec_lab.data.images import digests
from mvtec_lab.data.layouts import read_folder
from mvtec_lab.data.sampling import Sampling
from mvtec_lab.data.source import locate
from mvtec_lab.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from mvtec_lab.errors import LabError, disk_full
from mvtec_lab.results import CONFIG, PREDICTIONS, stopped_run

SAMPLE_MARK = "sample data: drawn procedurally, not images of a real product"
RANDOM_MARK = "random weights"


def data_module(
    config: Config,
    normalisation: tuple[Sequence[float], Sequence[float]] = (IMAGENET_MEAN, IMAGENET_STD),
    targets: Sequence[str] = (),
    good_alone: bool = False,
    known: int = 0,
) -> MVTecDataModule:
    """Return the data module of a configuration, not yet split; a missing folder is fetched or drawn.

    Args:
        normalisation: mean and std of RGB in [0, 1].
        targets: what items have beside image and label, as in MVTecDataset.
        good_alone, known: as in Sampling.
    """
    d, c = config.data, config.cache
    assert d.root is not None
    folder = locate(d.name, d.root, d.category, d.archive, d.sha256)
    return MVTecDataModule(
        read_folder(folder, d.name, d.good, d.labels, d.defects),
        image_size=Frame(d.image_size, d.fit, d.tile),
        white=d.white,
        batch_size=d.batch_size,
        num_workers=d.num_workers,
        masks=d.masks,
        split=config.split,
        sampling=Sampling(d.sampler, d.sampler_beta, d.imbalance, good_alone, known, d.per_class),
        augment=config.augment,
        cache=None if c.dir is None else ArrayCache(c.dir, c.max_gb),
        mean=normalisation[0],
        std=normalisation[1],
        targets=targets,
        seed=training_seed(config),
    )


def training_seed(config: Config) -> int:
    """Return the seed of initial weights, batches and augmentation, another one for every fold.

    With one seed for all, an attempt that is lucky in one draw would be lucky in all of its folds, and the folds would
    call that a difference.
    """
    s = config.split
    if s.protocol != "kfold":
        return config.seed
    return int(np.random.SeedSequence([config.seed, s.seed, s.fold]).generate_state(1)[0])


def build_data(
    config: Config,
    normalisation: tuple[Sequence[float], Sequence[float]],
    targets: Sequence[str] = (),
    good_alone: bool = False,
    known: int = 0,
) -> MVTecDataModule:
    """Return the data module of a configuration, scanned and split, not decoded, with the marks of what was asked for.

    Args:
        normalisation, targets, good_alone, known: as in ``data_module``.
    """
    data = data_module(config, normalisation, targets, good_alone, known)
    for mark in marks(config):
        data.warn(mark)
    data.scan()
    if config.augment.views is not None:
        data.warn(f"augment.views={config.augment.views}: training sees this many views of each image, no new ones")
    return data


def marks(config: Config) -> list[str]:
    """Return what has to be said of the images, whatever is done with them."""
    return [SAMPLE_MARK] if config.data.name == "sample" else []


def absolute_paths(config: Config, of_method: Mapping[str, str | None]) -> dict[str, str]:
    """Return the paths among the settings as absolute ones, by their keys: another directory reads others in the same
    words.

    Args:
        of_method: the paths among the options of its method, by their keys.
    """
    weights = config.model.weights
    given = {
        "data.root": config.data.root,
        "data.labels": config.data.labels if config.data.labels and Path(config.data.labels).is_file() else None,
        "split.file": config.split.file,
        "model.weights": weights if weights and Path(weights).expanduser().is_file() else None,
        "model.sam_weights": config.model.sam_weights,
        "model.text_embeddings": config.model.text_embeddings,
        **of_method,
    }
    return {key: str(Path(path).expanduser().absolute()) for key, path in given.items() if path is not None}


def digests_of(paths: Mapping[str, str]) -> dict[str, str]:
    """Return a digest of each file that the model begins with, by its key: the name alone does not say what it holds.

    Args:
        paths: as ``absolute_paths`` returns them.

    Raises:
        LabError: a file that cannot be read.
    """
    files = {key: Path(path) for key, path in paths.items() if key.startswith("model.") and Path(path).is_file()}
    return dict(zip(files, digests(list(files.values())), strict=True))


def set_up(
    config: Config,
    data: MVTecDataModule,
    findings: Sequence[str],
    chosen: str,
    checked: Mapping[str, Contents] | None = None,
) -> None:
    """Decode the images and audit them: what is found joins the warnings.

    Args:
        findings: of the configuration itself, which join those of the images.
        chosen: what rests on the validation images, in words.
        checked: the files that a sweep's check read, by product folder.

    Raises:
        LabError: a broken image, other files than the check read, or with ``audit=strict`` a finding.
    """
    data.setup()
    if (then := (checked or {}).get(str(data.folder.absolute()))) is not None:
        remedy = "restore them, or start another sweep"
        require_same(data.folder, data.contents(), then, "when this sweep was checked", remedy)
    findings = [*data.findings(chosen), *findings]
    if findings and config.audit == "strict":
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise LabError(f"audit=strict: {findings[0]}{more}: repair it, or audit=warn continues")
    data.warn(*findings)


def rehearse_batch(config: Config, data: MVTecDataModule, step: Callable[[torch.Tensor], object]) -> None:
    """Refuse a batch of a single image that training would fail on: where batch normalisation meets a 1 x 1 map.

    Args:
        step: what training does with images [N, 3, S, S].
    """
    if data.smallest_batch > 1:
        return
    size = config.data.image_size
    try:
        step(torch.zeros(1, 3, size, size))
    except ValueError as error:
        raise LabError(
            f"data.batch_size={config.data.batch_size} gives batches of a single training image, which cannot train "
            f"here ({error}): give data.batch_size=2 or more and two images, or a larger data.image_size"
        ) from error


def _held(run_dir: Path, marker: str) -> str:
    """Say what a directory holds that is not free, and what to type."""
    other = "give another directory (hydra.run.dir=)"
    if (run := stopped_run(run_dir, ours=marker == CONFIG)) is not None:
        goes_on = "the same command with resume=true goes on with it"
        what = f"{run_dir} holds a run of {run.attempt} that was stopped"
        return f"{what}: {goes_on}, or {other}" if marker == CONFIG else f"{what}: {other}"
    if marker == PREDICTIONS and not (run_dir / CONFIG).exists():
        goes_on = "those of a watched folder go on by the same command with resume=true"
        return f"{run_dir} holds other predictions: {other} or remove them; {goes_on}"
    remedy = "resume it (resume=true)" if marker == CONFIG else "remove it"
    return f"{run_dir} holds another run: {other} or {remedy}"


def claim(run_dir: str | Path, marker: str) -> Path:
    """Make a directory a task's own, by the file that it will leave there: two runs never share one.

    Raises:
        LabError: it belongs to another run already, or cannot be written.
    """
    run_dir = Path(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if (run_dir / CONFIG).exists():
            raise FileExistsError
        (run_dir / marker).touch(exist_ok=False)  # of two processes one succeeds
    except FileExistsError as error:
        raise LabError(_held(run_dir, marker)) from error
    except OSError as error:
        reason = f"{run_dir} cannot be written ({error.strerror}): give hydra.run.dir=FOLDER"
        raise disk_full(error, run_dir) or LabError(reason) from error
    return run_dir
