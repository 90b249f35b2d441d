"""Find what a directory holds of an earlier run, for ``resume=true``. Light to import: a sweep asks before torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mvtec_lab.config import Config
from mvtec_lab.errors import LabError, redacted
from mvtec_lab.foreign import file_of, read_yaml
from mvtec_lab.knobs import changing
from mvtec_lab.results import CONFIG, FILES, LAST, RESULT, RunResult, category_of, flatten

# Device and precision are not free: they change the last digits of every step.
FREE = changing(Config, "nothing")


def as_yaml(config: Config) -> str:
    """Return the configuration as it is shown and kept: without the credentials of the archive's address."""
    archive = config.data.archive
    shown = replace(config, data=replace(config.data, archive=None if archive is None else redacted(archive)))
    return OmegaConf.to_yaml(OmegaConf.structured(shown))


def as_begun(run_dir: Path, config: Config) -> Config:
    """Return a configuration with what the run in a directory began with where nothing was given.

    That is the protocol that ``auto`` came to, and the options of the method: their defaults may be others by now.

    Raises:
        LabError: its config.yaml is damaged.
    """
    path = file_of(run_dir, CONFIG)
    said = read_yaml(path) if path is not None and path.stat().st_size else {}
    split, model = (part if isinstance(part := said.get(key), dict) else {} for key in ("split", "model"))
    if config.split.protocol == "auto" and split.get("protocol") in ("own", "holdout"):
        config = replace(config, split=replace(config.split, protocol=split["protocol"]))
    if model.get("method") == config.model.method and (run_dir / RESULT).exists():
        unsaid, options = RunResult.load(run_dir).by_default, model.get("options") or {}
        then = {name: options[name] for name in unsaid if name in options}
        given = {name: value for name, value in config.model.options.items() if value is not None}
        config = replace(config, model=replace(config.model, options={**then, **given}))
    return config


def earlier_run(run_dir: Path, config: Config) -> RunResult | None:
    """Return the run that a directory holds, completed or not; None if it holds none.

    Raises:
        LabError: it has other settings, or its config.yaml or result.json is damaged.
    """
    settings = run_dir / CONFIG
    if (run_dir / RESULT).exists():
        earlier = RunResult.load(run_dir)
    elif settings.exists():
        d = config.data
        earlier = RunResult(config.attempt, config.seed, d.name, category_of(d), config.model.backbone, str(run_dir))
    else:
        return None
    if settings.exists() and settings.stat().st_size:  # empty: killed right after the directory was claimed
        _require_same(settings, config)
    elif earlier.completed or (run_dir / LAST).exists():
        raise LabError(f"{settings} is missing or empty: with which settings this run was made is not known; remove it")
    return earlier


def _require_same(path: Path, config: Config) -> None:
    try:
        old = _settings(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path)))
    except Exception as error:  # OmegaConf's, YAML's and Python's own kinds
        reason = str(error).split("\n")[0]
        raise LabError(f"{path} cannot be compared with these settings ({reason}): give another directory") from error
    new = _settings(OmegaConf.structured(config))
    differing = [
        f"{key}={old.get(key, 'unset')}, now {new.get(key, 'unset')}"
        for key in {**new, **old}
        if key not in FREE and old.get(key, "unset") != new.get(key, "unset")
    ]
    if differing:
        more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
        raise LabError(
            f"{path.parent} holds a run with other settings: {'; '.join(differing[:3])}{more}: "
            "give the same settings, or another directory"
        )


def _settings(config: Any) -> dict[str, str]:
    values = OmegaConf.to_container(config)
    assert isinstance(values, dict)
    flat = flatten(values)  # type: ignore[arg-type]
    # An option that is null is one that nobody gave.
    return {key: value for key, value in flat.items() if value != "null" or not key.startswith("model.options.")}


def clear(run_dir: Path) -> None:
    """Remove what a run left in its directory, and nothing else; the log is continued."""
    if not any((run_dir / name).exists() for name in (CONFIG, RESULT)):
        return
    for name in FILES:
        (run_dir / name).unlink(missing_ok=True)
    for folder in ("", "train", "val"):  # as TensorBoard's logger has them
        for path in (run_dir / folder).glob("events.out.tfevents.*"):
            path.unlink()
