"""Check the jobs of a sweep before they train."""

from __future__ import annotations

from typing import NamedTuple

from mvtec_lab.config import Config
from mvtec_lab.data.contents import Contents
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.devices import ONE, check_devices
from mvtec_lab.engine.setup import set_up
from mvtec_lab.errors import LabError, MissingWeights
from mvtec_lab.models.weights import WeightsUnavailable, load_weights
from mvtec_lab.problems import METHODS, check, files_of, problem_of
from mvtec_lab.problems.model import build_data


class Images(NamedTuple):
    """Hold what was found out about the images of a job."""

    folder: str
    contents: Contents
    network: str  # what a network has to fit


class Checks:
    """Check the jobs of a sweep before they train: what several of them share is looked at once.

    Weights that are not there are no error of a job: the sweep names all that are ``missing``.
    """

    def __init__(self) -> None:
        self._devices: dict[str, int] = {}
        self._images: dict[str, Images] = {}
        self._networks: set[str] = set()
        self.missing: list[MissingWeights] = []

    def job(self, config: Config, here: bool = True) -> Images:
        """Check everything about a job that can be known before it trains.

        Args:
            here: whether this machine is to train it; another one's devices are left to that machine.

        Raises:
            LabError: the first mistake.
        """
        check(config)
        m, problem = config.model, problem_of(config.model.method)
        several = self._devices_of(config) > 1 if here else config.trainer.devices not in ONE
        if several:  # each further device runs the whole command, the sweep included
            raise LabError(
                f"trainer.devices={config.trainer.devices} in a sweep: give each attempt a command of its own"
            )
        found = problem.findings(config), problem.chosen_on_val(config)
        learnt = problem.name, problem.targets_of(m.method), problem.known_defects(config), found
        drawn = repr((config.data, config.split, config.seed, config.augment, config.cache, config.audit, learnt))
        network = repr((m, config.loss, config.threshold, config.data.image_size))
        if any(files_of(config).values()):  # of another run, which may have seen what a fold is judged on
            network += repr(config.split)
        images = self._images.get(drawn)
        if images is None or images.network + network not in self._networks:
            data = build_data(config)
            shapes = repr((data.classes, len(data.of_split("train")), data.smallest_batch))
            if shapes + network not in self._networks:
                try:
                    _rehearse(config, data)
                except MissingWeights as error:
                    self.missing.append(error)
                self._networks.add(shapes + network)
            if self.missing:
                return Images(str(data.folder.absolute()), {}, shapes)
            if images is None:  # last: it takes longest
                set_up(config, data, *found)
                images = self._images[drawn] = Images(str(data.folder.absolute()), data.contents(), shapes)
        return images

    def _devices_of(self, config: Config) -> int:
        key = repr((config.trainer, config.model, config.loss))
        if key not in self._devices:
            self._devices[key] = check_devices(config)
        return self._devices[key]


def _rehearse(config: Config, data: MVTecDataModule) -> None:
    """Refuse a network that could not be built or trained: a third of a second, and folds mostly share theirs."""
    problem_of(config.model.method).rehearse(config, data)
    try:
        if METHODS[config.model.method].backbone:
            load_weights(config.model.backbone, config.model.weights)
    except WeightsUnavailable:
        if config.data.name != "sample":
            raise
