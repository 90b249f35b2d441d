"""What is known about a job of a sweep before it trains."""

from __future__ import annotations

from mvtec_lab.config import Config, validate
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.effects import FROM_SCRATCH
from mvtec_lab.engine.devices import ONE, check_devices
from mvtec_lab.engine.setup import build_data, set_up
from mvtec_lab.errors import LabError
from mvtec_lab.models.weights import WeightsUnavailable, load_weights
from mvtec_lab.problems.anomaly.build import rehearse
from mvtec_lab.problems.classification.build import config_findings, rehearse_classifier

_checked: set[str] = set()  # networks, a third of a second each: the folds of a sweep mostly share theirs


def check(config: Config, here: bool = True) -> MVTecDataModule:
    """Everything about a job of a sweep that can be known before it trains; raises LabError for the first mistake.

    Returns the job's data. Where another machine is to train it (not ``here``), its devices are left to that machine.
    """
    validate(config)
    several = check_devices(config) > 1 if here else config.trainer.devices not in ONE
    if several:  # each further device runs the whole command, the sweep included
        raise LabError(f"trainer.devices={config.trainer.devices} in a sweep: give each attempt a command of its own")
    data, m = build_data(config), config.model
    images = len(data.of_split("train")), data.smallest_batch
    network = repr((m, config.loss, config.threshold, config.data.image_size, data.classes, images))
    if network not in _checked:
        if m.method == "classifier":
            rehearse_classifier(config, data)
        else:
            rehearse(config, data)
        try:
            if m.method not in FROM_SCRATCH:
                load_weights(m.backbone, m.weights)
        except WeightsUnavailable:
            if config.data.name != "sample":
                raise
        _checked.add(network)
    set_up(config, data, findings=config_findings(config))  # last: it takes longest
    return data
