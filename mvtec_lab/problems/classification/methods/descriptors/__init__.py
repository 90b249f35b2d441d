"""The lab's own recipe for a few dozen images: what frozen maps say of each image, and a convex classifier on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mvtec_lab.config import Config
from mvtec_lab.errors import LabError, unknown
from mvtec_lab.problems.base import LAYERS, Method, Option, checked_options
from mvtec_lab.registry import Registry

# What an image is described by: subclasses of parts.Part.
PARTS: Registry[type[Any]] = Registry(
    "part",
    {
        **{
            name: f"{__name__}.parts:{name.capitalize()}"
            for name in ("global", "anomaly", "residual", "local", "where")
        },
        "masks": f"{__name__}.masks:Masks",
    },
    require=["rows"],
)
MEMORYLESS = ("global",)  # parts that ask for no good patches
FITTED = ("masks",)  # parts that learn from training images
HEADS = ("logistic", "ridge", "lda")


def check(config: Config) -> None:
    """Raise LabError as ``check_parts`` does."""
    check_parts(checked_options(METHOD, config.model.options))


def check_parts(options: Mapping[str, Any]) -> None:
    """Raise LabError for a part that is unknown or named twice, or for parts that cannot be tuned; whole options."""
    parts = options["parts"]
    for name in parts:
        PARTS[name]  # raises where it is unknown
    for key, names in (("parts", parts), ("alone", options["alone"] or ())):
        if len(set(names)) < len(names):
            raise LabError(f"model.options.{key} names a part twice: {', '.join(names)}")
    for name in options["alone"] or ():
        if name not in parts:
            raise unknown("part in model.options.alone", name, parts)
    learning = [name for name in parts if name in FITTED]
    if learning and options["tune"]:
        raise LabError(
            f"model.options.tune trains under parts that stay as they are, and {learning[0]} learns from the images: "
            "leave one of them out"
        )


def idle(config: Config) -> dict[str, str]:
    """Return the options that have no effect beside the others."""
    options = config.model.options
    parts = options.get("parts") or METHOD.options["parts"].default
    if set(parts) <= set(MEMORYLESS):
        return {"model.options.memory": f"nothing of parts=[{','.join(parts)}] looks at good patches"}
    return {}


METHOD = Method(
    "descriptors",
    "classification",
    home=f"{__name__}.model:Descriptors",
    trains=False,
    draws=False,
    options={
        "parts": Option(
            list,
            "what an image is described by: global, anomaly, residual, local, where, masks",
            default=["global", "anomaly", "residual", "local", "where"],
        ),
        "alone": Option(
            list, "parts that have a head of their own, beside that of the others: the mean of their logits classifies"
        ),
        # Eight took twice the time of four and brought nothing on MVTec's bottle; one costs it two points.
        "views": Option(int, "views of an image whose maps are averaged", default=4, choices=(1, 2, 4, 8)),
        "layers": LAYERS,
        # 5 MB at 448 pixels. With 25 a drawn product lost six points; with 100 it won one.
        "memory": Option(int, "good images whose patches are remembered", default=50, least=1, most=1000),
        "tune": Option(
            int,
            "epochs in which the backbone's last blocks train under the fitted recipe, where inner folds say that it "
            "helps; 0: they stay as they are",
            default=0,
            least=0,
            most=100,
        ),
        "head": Option(str, "the classifier of the descriptors", default="logistic", choices=HEADS),
    },
    rules=check,
    idle=idle,
)
