"""YOLO-World (Cheng et al., CVPR 2024): boxes for classes that are given as texts; ultralytics trains it (AGPL-3.0)."""

from __future__ import annotations

from importlib.util import find_spec

from mvtec_lab.config import Config
from mvtec_lab.errors import LabError
from mvtec_lab.problems.base import Method, Option

PACKAGE = "ultralytics"
INSTALL = f'pip install "mvtec_lab[yolo-world]" && pip install --no-deps {PACKAGE}==8.4.190'
STRIDE = 32  # pixels a side of the coarsest cell
_SCHEDULES = ("none", "cosine")


def require() -> None:
    """Raise LabError where ultralytics is not installed, with the line that installs it."""
    if find_spec(PACKAGE) is None:
        raise LabError(f"model.method=yolo_world needs {PACKAGE} (AGPL-3.0), which is not installed: {INSTALL}")


def check(config: Config) -> None:
    """Raise LabError for settings that ultralytics' training cannot follow, or where it is not installed."""
    size, augment = config.data.image_size, config.augment
    if size % STRIDE or size < 2 * STRIDE:
        raise LabError(f"data.image_size={size}: model.method=yolo_world needs a multiple of {STRIDE} from 64 on")
    if augment.transforms or augment.paste or augment.mix != "none":
        raise LabError("model.method=yolo_world flips, scales, shifts and recolours by itself: leave out augment")
    if config.data.sampler != "none":
        raise LabError(
            f"data.sampler={config.data.sampler}: ultralytics draws every image once per epoch: leave it out"
        )
    if config.scheduler.name not in _SCHEDULES:
        raise LabError(
            f"scheduler.name={config.scheduler.name}: model.method=yolo_world knows {', '.join(_SCHEDULES)} alone"
        )
    if config.trainer.precision not in ("auto", "32", "32-true"):
        raise LabError(f"trainer.precision={config.trainer.precision}: model.method=yolo_world trains in 32 bits")
    require()


METHOD = Method(
    "yolo_world",
    "detection",
    home="mvtec_lab.problems.detection.methods.yolo_world.model:YoloWorld",
    backbone=False,
    licence="ultralytics, AGPL-3.0, also for what is built with them, unless a licence is bought",
    own_weights=True,
    options={
        # s: 12.8 million parameters, the smallest that weights are published for
        "size": Option(str, "which of the published networks", default="s", choices=("s", "m", "l", "x")),
    },
    keys=("model.text_embeddings",),
    beside=(PACKAGE, INSTALL),
    rules=check,
)
