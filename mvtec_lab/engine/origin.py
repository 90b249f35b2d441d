"""Read the settings of a checkpoint's own run that decide which images it is judged on. Light to import.

The run may come from elsewhere: its config.yaml is data. Keys that fetch, write or run something are ignored, and a
text is never evaluated.
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path

from mvtec_lab.checks import validate
from mvtec_lab.config import Config
from mvtec_lab.errors import LabError
from mvtec_lab.foreign import damaged, file_of, misfit, read_json, read_yaml
from mvtec_lab.models.files import check_file
from mvtec_lab.results import BEST, CONFIG, OPERATING, RESULT, SAMPLES, path_of_run

log = logging.getLogger(__name__)

_WORD = re.compile(r"\+{0,2}(?!hydra)[a-z]\w*([./]\w+)*=[^\n]*")

_READING = ("image_size", "fit", "tile", "white", "batch_size")
# Which images, their splits, and how they are read; neither where they could be fetched from, nor training settings.
TAKEN = {
    "data": ("name", "root", "category", "good", "labels", "defects", "masks", "imbalance", "per_class", *_READING),
    "split": tuple(Config().split.__dataclass_fields__),
    "model": ("method",),  # which goes with the split's protocol
    "threshold": ("rule",),
}


def origin_of(ckpt: Path) -> Config | None:
    """Return the settings of a checkpoint's run, with defaults for all that is not TAKEN; None if it has none.

    Raises:
        LabError: they are damaged.
    """
    run_dir = ckpt.parent
    path = file_of(run_dir, CONFIG)
    if path is None:
        return None
    config, said = Config(), read_yaml(path)
    for section, names in TAKEN.items():
        part, values = getattr(config, section), said.get(section, {})
        taken = {name: values[name] for name in names if name in values} if isinstance(values, dict) else None
        if taken is None or (wrong := misfit(taken, type(part))):
            raise damaged(path, f"{section}: {wrong if taken is not None else 'no keys'}")
        for name, value in taken.items():
            setattr(part, name, value)
    config.seed = said.get("seed", config.seed)
    if wrong := misfit({"seed": config.seed}, Config):
        raise damaged(path, wrong)
    if config.split.protocol == "file":  # the run's own list says the same, and is no path to follow
        config.split.file = str(run_dir / SAMPLES)
    try:
        validate(config)
    except LabError as error:
        raise damaged(path, error) from error
    config.data.root = _root(run_dir, config)
    if config.data.labels is not None:
        config.data.labels = path_of_run(run_dir, "data.labels", config.data.labels)
    return config


def typed_for(run_dir: Path) -> list[str]:
    """Return what was typed for a run, ``key=value`` each, from its result.json or what task=threshold made of it.

    Nothing where neither says it. Words that no run of the lab's own commands has are left out.
    """
    path = file_of(run_dir, RESULT) or file_of(run_dir, OPERATING)
    with suppress(LabError):  # a damaged file is named where its figures are read
        said = read_json(path) if path else {}
        words = said.get("typed") if isinstance(said, dict) else None
        if isinstance(words, list):
            return [word for word in words if isinstance(word, str) and _WORD.fullmatch(word)]
    return []


def checkpoint_of(config: Config, key: str = "ckpt") -> str:
    """Return the file of the checkpoint that a task was given: of a run's directory, its best.ckpt; of a sweep's, that
    of its best run by validation, which is logged.

    Args:
        key: under which it was given.

    Raises:
        LabError: none is given, there is none, its file is damaged, or validation cannot choose among the runs of a
            sweep.
    """
    if (value := getattr(config, key)) is None:
        raise LabError(f"task={config.task} needs {key}=FILE: a run's {BEST}, its directory or a sweep's")
    given = Path(value).expanduser()
    if not given.exists():
        raise LabError(f"{key}={value} does not exist: give a run's {BEST}, its directory or a sweep's")
    if not given.is_dir():
        check_file(given, f"{key}={value}", archive=True)
        return str(given)
    if (given / BEST).is_file():
        check_file(given / BEST, str(given / BEST), archive=True)
        return str(given / BEST)
    from mvtec_lab.reporting.best import best_run  # and with it SciPy, which a file does without

    run, reason = best_run(given)
    log.info("%s=%s: %s is %s", key, value, run.run_dir, reason)
    return str(Path(run.run_dir, BEST))


def _root(run_dir: Path, config: Config) -> str | None:
    """Return the run's data.root; for the sample, which is drawn if it is missing, only if it exists."""
    root = config.data.root
    if root is not None:
        root = path_of_run(run_dir, "data.root", root)
        if config.data.name == "sample" and not Path(root, "cable").expanduser().is_dir():
            return Config().data.root
    return root
