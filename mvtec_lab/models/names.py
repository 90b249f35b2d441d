"""Know the names of TorchVision's backbones without importing it, which takes seconds: a typo is answered at once."""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from mvtec_lab.errors import LabError, unknown
from mvtec_lab.registry import written

# What TorchVision writes above the builder of each model.
_BUILDER = re.compile(r"^@register_model\((?:name=)?(?:[\"'](\w+)[\"'])?\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


@cache
def torchvision_names() -> frozenset[str]:
    """Return the names of TorchVision's classification models, read from its source; empty where that is unfamiliar."""
    builders = written("torchvision", "models/*.py", _BUILDER)  # other tasks have folders of their own
    names = frozenset(name or function for name, function in builders)
    return names if "resnet18" in names else frozenset()


def look(backbone: str | None, weights: str | None) -> None:
    """Refuse a backbone that does not exist, and a file of weights that is not there.

    What only TorchVision or timm know is left to them, and so is everything where TorchVision is imported already: this
    process may have registered a backbone of its own.

    Args:
        backbone: as ``model.backbone``; None where the method takes none.
        weights: as ``model.weights``.

    Raises:
        LabError: as above.
    """
    if weights is not None and is_file_name(weights) and not Path(weights).expanduser().exists():
        raise LabError(
            f"model.weights={weights} does not exist: give a file, DEFAULT, a name as IMAGENET1K_V1, or null"
        )
    known = torchvision_names()
    if backbone is None or "/" in backbone or not known or backbone in known or "torchvision" in sys.modules:
        return
    registered = {point.name for point in entry_points(group="mvtec_lab.backbones")}
    if backbone not in registered:
        raise unknown("backbone", backbone, known | registered)


def is_file_name(weights: str) -> bool:
    """Tell whether a value of ``model.weights`` names a file, there or not, and no published entry."""
    return Path(weights).suffix in (".pth", ".pt", ".ckpt") or len(Path(weights).parts) > 1
