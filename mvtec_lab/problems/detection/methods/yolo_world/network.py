"""YOLO-World's network by ultralytics: its plan, weights and training. Import it inside of ``guest.guest`` only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.models.yolo.world import WorldTrainer
from ultralytics.nn.tasks import WorldModel, torch_safe_load, yaml_model_load
from ultralytics.utils.downloads import attempt_download_asset

from mvtec_lab.errors import LabError
from mvtec_lab.models.weights import WeightsUnavailable

Plan = dict[str, Any]  # the layers, as plain values


def plan_of(size: str) -> Plan:
    """Return the layers of a published network.

    Args:
        size: s, m, l or x.
    """
    return {**yaml_model_load(f"yolov8{size}-worldv2.yaml"), "yaml_file": f"yolov8{size}-worldv2.yaml"}


def build(plan: Plan, text: Tensor) -> Any:
    """Return a network with random weights that looks for the classes of these text embeddings [1, C, 512]."""
    network = WorldModel(plan, ch=3, nc=text.shape[1], verbose=False)
    network.txt_feats = text
    return network


def published(size: str) -> Path:
    """Return the file of the published weights in ``TORCH_HOME``, fetched by ultralytics where it is not there.

    Raises:
        WeightsUnavailable: it cannot be fetched.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / f"yolov8{size}-worldv2.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        attempt_download_asset(path, retry=0, progress=False)
        if not path.is_file():
            raise OSError("nothing arrived")
    except Exception as error:  # of the network, the disk, or a package that ultralytics downloads with
        path.unlink(missing_ok=True)  # a part of it
        reason = " ".join(str(error).split())[:200]
        raise WeightsUnavailable(
            f"{path.name} cannot be fetched ({reason})",
            f"put it into {folder}, or give model.weights=FILE, or model.weights=null for random weights",
        ) from error
    return path


def load(network: Any, path: Path) -> None:
    """Load the weights of a file that ultralytics wrote; nothing in it is run but the classes of its own layers.

    Raises:
        LabError: the file is missing or damaged, would run other code, or is of another network.
    """
    said = f"model.weights={path}"
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        content = torch_safe_load(path, safe_only=True)[0]
        state = (content.get("ema") or content["model"]).float().state_dict()
    except Exception as error:  # its reader may fail in any way
        reason = " ".join(str(error).split())[:200]
        raise LabError(f"{said} is no checkpoint of YOLO-World ({reason}): give yolov8s-worldv2.pt") from error
    own = network.state_dict()
    if wrong := [key for key, value in own.items() if key not in state or state[key].shape != value.shape]:
        raise LabError(
            f"{said} is of another network than {network.yaml['yaml_file']} ({len(wrong)} of {len(own)} parts differ, "
            f"{wrong[0]} first): give model.options.size= of that file"
        )
    network.load_state_dict({key: state[key] for key in own})


class FineTuning(WorldTrainer):
    """Train on a folder in YOLO's format with ultralytics' own loop, and keep the best weights in memory.

    Its name does without the word by which ultralytics would attach reporting services. Nothing is looked up, fetched
    or written beside the folder: texts come from a table, and no checkpoint is pickled.

    Args:
        network: to be trained; ``txt_feats`` are its classes' embeddings [1, C, 512].
        folder: with ``images`` and ``labels`` of train and val.
        images: how many lie in each.
        device: where to train.
        after_epoch: is given this object after every epoch, and returns whether to stop.
        settings: ultralytics' own.

    Raises:
        LabError: ultralytics has left out an image, or the training has diverged.
    """

    def __init__(
        self,
        network: Any,
        folder: Path,
        images: Mapping[str, int],
        device: torch.device,
        after_epoch: Callable[[FineTuning], bool],
        **settings: Any,
    ) -> None:
        self.table, self.folder, self.images = network.txt_feats[0], folder, images
        self.best_state: dict[str, Tensor] = {}
        self.best_epoch = 0
        threads = torch.get_num_threads()
        where = "cpu" if device.type == "cpu" else str(device.index or 0)
        super().__init__(
            overrides={
                "model": network.yaml["yaml_file"],
                "data": str(folder / "data.yaml"),
                "save_dir": str(folder / "run"),
                "device": where,
                "workers": 0,  # the seeds of its workers depend on their number
                "amp": False,  # its check of mixed precision fetches a model
                "plots": False,
                "pretrained": False,
                **settings,
            }
        )
        torch.set_num_threads(threads)  # which it sets to all cores
        self.model = network
        self.callbacks = defaultdict(  # without those of its reporting services
            list, {"on_pretrain_routine_end": [_complete], "on_fit_epoch_end": [self._stopped]}
        )
        self._after_epoch = after_epoch

    def get_dataset(self) -> dict[str, Any]:
        # Classes are numbers here: ultralytics splits names at "/". Its own reader of data.yaml fetches a font.
        names = {i: str(i) for i in range(len(self.table))}
        parts = {split: str(self.folder / "images" / split) for split in ("train", "val")}
        return {**parts, "names": names, "nc": len(names), "channels": 3, "path": str(self.folder)}

    def set_text_embeddings(self, datasets: list[Any], batch: int | None) -> None:
        self.text_embeddings = {str(i): vector for i, vector in enumerate(self.table)}

    def save_model(self) -> bool:
        if self.fitness == self.best_fitness:
            self.best_state = {key: value.detach().clone() for key, value in self.ema.ema.state_dict().items()}
            self.best_epoch = self.epoch
        return False

    def save_metrics(self, metrics: dict[str, float]) -> None:
        pass

    def final_eval(self) -> None:
        pass  # of a file that was not written

    def _handle_nan_recovery(self, epoch: int) -> bool:
        if not all(value.isfinite() for value in self.tloss.values()):  # ultralytics would go back to a file
            raise LabError("the training has diverged, its loss is NaN or infinite: lower optimizer.lr")
        return False

    def _stopped(self, trainer: FineTuning) -> None:
        if self._after_epoch(self):
            self.stop = True


def _complete(trainer: FineTuning) -> None:
    """Raise LabError where ultralytics has left out an image, as it does with a line in its log."""
    for split, loader in (("train", trainer.train_loader), ("val", trainer.test_loader)):
        if (taken := len(loader.dataset)) != trainer.images[split]:
            raise LabError(f"ultralytics takes {taken} of {trainer.images[split]} images of {split}: {trainer.folder}")
