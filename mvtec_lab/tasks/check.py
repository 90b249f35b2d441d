"""Check a job of a sweep before it trains."""

from __future__ import annotations

from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.devices import ONE, check_devices
from mvtec_lab.engine.setup import set_up
from mvtec_lab.errors import LabError
from mvtec_lab.models.weights import WeightsUnavailable, load_weights
from mvtec_lab.problems import METHODS, check, files_of, problem_of
from mvtec_lab.problems.model import build_data

_checked: set[str] = set()  # networks, a third of a second each: the folds of a sweep mostly share theirs


def check_job(config: Config, here: bool = True) -> MVTecDataModule:
    """Check everything about a job of a sweep that can be known before it trains, and return its data.

    Args:
        here: whether this machine is to train it; another one's devices are left to that machine.

    Raises:
        LabError: the first mistake.
    """
    check(config)
    problem = problem_of(config.model.method)
    several = check_devices(config) > 1 if here else config.trainer.devices not in ONE
    if several:  # each further device runs the whole command, the sweep included
        raise LabError(f"trainer.devices={config.trainer.devices} in a sweep: give each attempt a command of its own")
    data, m = build_data(config), config.model
    images = len(data.of_split("train")), data.smallest_batch
    network = repr((m, config.loss, config.threshold, config.data.image_size, data.classes, images))
    if any(files_of(config).values()):  # of another run, which may have seen what a fold is judged on
        network += repr(config.split)
    if network not in _checked:
        problem.rehearse(config, data)
        try:
            if METHODS[m.method].backbone:
                load_weights(m.backbone, m.weights)
        except WeightsUnavailable:
            if config.data.name != "sample":
                raise
        _checked.add(network)
    # last: it takes longest
    set_up(config, data, problem.findings(config), problem.chosen_on_val(config))
    return data
