"""Make a checked configuration of what Hydra composed and the user typed, before anything is imported or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mvtec_lab import problems
from mvtec_lab.arguments import OPTIONS, as_typed, typed_keys
from mvtec_lab.config import SAMPLE_BACKBONE, SAMPLE_WEIGHTS, Config, ModelConfig
from mvtec_lab.data.incoming import look as look_at_source
from mvtec_lab.data.names import look as look_at_transforms
from mvtec_lab.engine.hardware import look as look_at_devices
from mvtec_lab.engine.loggers import require_loggers
from mvtec_lab.engine.origin import TAKEN, origin_of
from mvtec_lab.errors import LabError, MissingWeights, unknown
from mvtec_lab.knobs import asking, changing, settings
from mvtec_lab.models.names import look as look_at_names
from mvtec_lab.own import CONF, OWN
from mvtec_lab.results import CONFIG, flatten
from mvtec_lab.tasks import TASKS


def to_config(cfg: DictConfig, hydra: Any) -> Config:
    """Return a composed configuration as plain objects.

    What an attempt's file sets and what was typed leaves without effect has its default: nobody could leave it out.
    Another method is no reason: an attempt that it leaves without effect is a mistake.

    Args:
        hydra: what Hydra says about the configuration.
    """
    values = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(values, dict)
    values.pop("hydra", None)
    values["attempt"] = hydra.runtime.choices["attempt"]
    # Merged into the classes once more, because +key=value escapes their check when Hydra composes.
    config = OmegaConf.to_object(OmegaConf.merge(_schema(), values))
    assert isinstance(config, Config)
    if config.model.method in problems.METHODS:
        typed = typed_keys(as_typed(hydra.overrides.task))
        _limit_sample_weights(config, typed)
        untouched = deepcopy(config)
        for key in typed.keys() - {"model.method"}:
            _reset(untouched, key)
        for key in problems.idle(config).keys() - problems.idle(untouched).keys() - typed.keys():
            _reset(config, key)
    return config


@cache
def _schema() -> DictConfig:
    """Return the keys and their types, which take longer to read than a job's values; merging copies them."""
    return OmegaConf.structured(Config)


def _limit_sample_weights(config: Config, typed: Mapping[str, str]) -> None:
    """Leave what conf/data/sample.yaml chooses to methods with a backbone, and its weights to their own backbone."""
    m, default = config.model, ModelConfig()
    chosen = "model.backbone" not in typed and m.backbone == SAMPLE_BACKBONE
    if chosen and not problems.METHODS[m.method].backbone:
        m.backbone = default.backbone
    if "model.weights" not in typed and m.weights == SAMPLE_WEIGHTS and m.backbone != SAMPLE_BACKBONE:
        m.weights = default.weights


def _reset(config: Config, key: str) -> None:
    """Give a key of a section its default; the name of an optimizer or schedule with all that its group's file set."""
    default, (section, _, name) = Config(), key.rpartition(".")
    if name == "name" and section in ("optimizer", "scheduler"):
        setattr(config, section, getattr(default, section))
    elif key.startswith(OPTIONS):
        config.model.options.pop(name, None)
    elif hasattr(getattr(config, section, None), name):
        setattr(getattr(config, section), name, getattr(getattr(default, section), name))


def check(config: Config, typed: Mapping[str, str]) -> None:
    """Check a configuration, and that its task reads every key that was typed.

    Raises:
        LabError: the first mistake.
    """
    for line in unread(config, typed).values():
        raise LabError(line)
    problems.check(config, typed)


def look_at_files(config: Config, here: bool = True) -> None:
    """Refuse names and devices that do not exist and a file that is not there, before PyTorch is imported.

    Args:
        here: whether this machine runs the job; another one has devices of its own.

    Raises:
        LabError: the first one, with the key and what it takes.
    """
    task, m = TASKS[config.task], config.model
    if not task.torch or config.resume:  # what is completed needs no file any more
        return
    if task.takes("model.weights"):
        look_at_names(m.backbone if problems.METHODS[m.method].backbone else None, m.weights, m.unfreeze)
    if task.takes("trainer.accelerator"):
        look_at_devices(config.trainer, here)
        if here:
            require_loggers(config)
    if task.takes("augment.transforms"):
        look_at_transforms(config.augment.transforms)
    files = {
        "split.file": (config.split.file, "a CSV with columns path,split"),
        "model.sam_weights": (m.sam_weights, "a file of SAM's weights"),
        "model.text_embeddings": (m.text_embeddings, "a file .npz"),
    }
    for key, (file, wanted) in files.items():
        if file is not None and task.takes(key) and not Path(file).expanduser().exists():
            kind = MissingWeights if key == "model.sam_weights" else LabError
            raise kind(f"{key}={file} does not exist: give {wanted}")
    if task.takes("source") and config.source is not None:
        look_at_source(config.source)


def look_at_data(config: Config, scans: dict[str, Any] | None = None) -> None:
    """Refuse data whose place, layout or split is wrong, before the task imports torch.

    Args:
        scans: what was read for other jobs of a sweep, as ``look_at_split`` of data.source keeps it.

    Raises:
        LabError: what ``look`` and ``look_at_split`` say.
    """
    task = TASKS[config.task]
    if task.torch and task.takes("data.root") and not config.resume:  # what is completed needs no data any more
        from mvtec_lab.data import source  # and with it NumPy and OpenCV, which other mistakes need not pay for

        folder = source.look(config.data)
        if folder is not None and config.task == "train":  # task=describe describes what has no split
            source.look_at_split(folder, config.data, config.split, {} if scans is None else scans)


def unread(config: Config, typed: Mapping[str, str]) -> dict[str, str]:
    """Return the error line of every typed key that the configuration's task does not read."""
    if config.task not in TASKS:
        raise unknown("task", config.task, TASKS)
    task, values = TASKS[config.task], asking(Config, settings(config))
    lines: dict[str, str] = {}
    for key in typed:
        if key in values and not task.takes(key):
            said = key if isinstance(values[key], dict) else f"{key}={values[key]}"
            lines[key] = f"{said} does nothing for task={config.task}: leave it out"
    return lines


def idle(config: Config, typed: Mapping[str, str]) -> dict[str, str]:
    """Return the error line of every key that was given and has no effect, whatever the reason."""
    return problems.idle(config, typed) | unread(config, typed)


def settle(config: Config, typed: Mapping[str, str]) -> dict[str, str]:
    """Reset what was typed for a sweep's other jobs and has no effect in this one; return what remains as typed."""
    left = dict(typed)
    while idle_keys := idle(config, left).keys() & left:  # one may depend on another
        for key in idle_keys:
            del left[key]
            _reset(config, key)
    return left


def searches(hydra: Any) -> bool:
    """Tell whether the sweeper of Hydra's own configuration makes up its jobs, instead of running a grid."""
    return not str(hydra.sweeper._target_).endswith(".BasicSweeper")


def take_data_of_run(config: Config, given: set[str]) -> bool:
    """Take the data and the split of a checkpoint's own run, except for the keys that are given.

    Returns:
        Whether the images must be those of the run.

    Raises:
        LabError: its settings do not lie beside it, and no data are given.
    """
    run = origin_of(Path(str(config.ckpt)))
    if run is None:
        if config.data.name == "sample" and "data" not in given:
            raise LabError(
                f"{config.ckpt} has no {CONFIG} of its run beside it, so the images to judge it on are not known: give "
                "data=mvtec data.category=NAME, data=folder data.root=FOLDER or data=sample"
            )
        return False
    for section in {"data", "split"} - given:  # if no other one was chosen as a whole
        for name in TAKEN[section]:
            if f"{section}.{name}" not in given:
                setattr(getattr(config, section), name, getattr(getattr(run, section), name))
    if "seed" not in given:
        config.seed = run.seed
    elif "split.seed" not in given:
        config.split.seed = config.seed
    config.model.method = run.model.method  # the split's protocol depends on it
    others = bool(given & {"data", "data.name", "data.root", "data.category", "data.archive"})
    if others and config.data.name == "folder" and config.split.protocol == "own" and "split.protocol" not in given:
        config.split.protocol = "auto"  # another folder need not be divided
    return not others


def stand_ins(job: Any) -> list[str]:
    """Return a line for every chosen name that stands for a file of the user's, although the lab has its own."""
    return [
        f"{group}={choice} is {file}, not the lab's own of that name"
        for source in job.runtime.config_sources
        if source.provider == OWN
        for group, choice in job.runtime.choices.items()
        if (file := Path(source.path, group, f"{choice}.yaml")).is_file() and (CONF / group / file.name).is_file()
    ]


def replaced(job: Any, config: Config, words: list[str]) -> list[str]:
    """Return a line if what was typed for all jobs replaces values that the attempt's own file sets; no line if not.

    What a sweep varies is in the names of its attempts, and what changes no result needs no word.
    """
    attempt = job.runtime.choices["attempt"]
    folders = [*(source.path for source in job.runtime.config_sources if source.provider == OWN), CONF]
    values = _of_attempt(attempt, folders)
    merged = OmegaConf.merge(OmegaConf.structured(Config), values)  # numbers as the keys have them
    (of_file, of_run), named = (_flat(merged), _flat(config)), flatten(_plain(values))
    fixed = [key for key, value in typed_keys(words).items() if not {",", "("} & {*value}]
    others = changing(Config, "run", "nothing")
    keys = [key for key in fixed if key in named and key not in others and of_file[key] != of_run.get(key)]
    if not keys:
        return []
    said = ", ".join(f"{key}={of_run.get(key, 'null')} in place of {of_file[key]}" for key in keys)
    return [f"what was typed replaces what attempt={attempt} sets: {said}"]


def _of_attempt(attempt: str, folders: Sequence[str | Path]) -> DictConfig:
    """Return the values that an attempt's file sets, and those of the attempts that it is made of."""
    file = next(file for folder in folders if (file := Path(folder, "attempt", f"{attempt}.yaml")).is_file())
    values = OmegaConf.load(file)
    assert isinstance(values, DictConfig)
    begun_from = [e for e in values.pop("defaults", ()) if isinstance(e, str) and e.startswith("/attempt/")]
    merged = OmegaConf.merge(*(_of_attempt(name.removeprefix("/attempt/"), folders) for name in begun_from), values)
    assert isinstance(merged, DictConfig)
    return merged


def _plain(values: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.create(values), resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _flat(values: Any) -> dict[str, str]:
    return flatten(_plain(OmegaConf.structured(values) if isinstance(values, Config) else values))
