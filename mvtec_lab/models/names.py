"""Know the names of backbones, of their stages and of files of weights without PyTorch, which takes seconds to import.

A typo is answered at once. What only the libraries know is left to them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from mvtec_lab.errors import LabError, MissingWeights, unknown
from mvtec_lab.models.files import check_file
from mvtec_lab.registry import written

TIMM = "timm/"  # how the name of one of timm's models begins
# What TorchVision writes above the builder of each model.
_BUILDER = re.compile(r"^@register_model\((?:name=)?(?:[\"'](\w+)[\"'])?\)\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
# What timm writes above its builders, and the table of names that it has given up and still takes.
_OF_TIMM = re.compile(r"^@register_model\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_FORMER = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)^\}\)", re.MULTILINE | re.DOTALL)


def _numbered(name: str, first: int, last: int) -> list[str]:
    return [f"{name}{i}" for i in range(first, last + 1)]


# The stages of TorchVision's networks, by how the backbone's name begins, as models/layouts.py makes them; a test
# compares them with the networks.
_STAGES = {
    ("resnet", "resnext", "wide_resnet"): ["stem", *_numbered("layer", 1, 4)],
    ("densenet", "regnet"): ["stem", *_numbered("block", 1, 4)],
    ("maxvit",): ["stem", *_numbered("block", 1, 4), "neck"],
    ("shufflenet",): ["stem", *_numbered("stage", 2, 4)],
    ("squeezenet", "swin"): _numbered("stage", 1, 4),
    ("alexnet",): [*_numbered("stage", 1, 3), "neck"],
    ("convnext",): [*_numbered("stage", 1, 4), "neck"],
    ("mobilenet_v3", "vgg"): [*_numbered("stage", 1, 5), "neck"],
    ("efficientnet", "googlenet", "inception", "mnasnet", "mobilenet_v2"): _numbered("stage", 1, 5),
    ("vit_b",): ["stem", *_numbered("layer", 0, 11)],
    ("vit_l",): ["stem", *_numbered("layer", 0, 23)],
    ("vit_h",): ["stem", *_numbered("layer", 0, 31)],
}


@cache
def torchvision_names() -> frozenset[str]:
    """Return the names of TorchVision's classification models, read from its source; empty where that is unfamiliar."""
    builders = written("torchvision", "models/*.py", _BUILDER)  # other tasks have folders of their own
    names = frozenset(name or function for name, function in builders)
    return names if "resnet18" in names else frozenset()


@cache
def timm_names() -> frozenset[str]:
    """Return the names of timm's models, read from its source; empty where that is unfamiliar."""
    former = "\n".join(written("timm", "models/*.py", _FORMER))
    names = frozenset([*written("timm", "models/*.py", _OF_TIMM), *re.findall(r"[\"'](\w+)[\"'] *:", former)])
    return names if "resnet18" in names else frozenset()


def look(backbone: str | None, weights: str | None, unfreeze: int | str | Sequence[str] = 0) -> None:
    """Refuse a backbone or a stage that does not exist, and a file of weights that is not there or is damaged.

    What only TorchVision or timm know is left to them. So are the names of backbones where TorchVision is imported
    already: this process may have registered one of its own.

    Args:
        backbone: as ``model.backbone``; None where the method takes none.
        weights: as ``model.weights``.
        unfreeze: as ``model.unfreeze``.

    Raises:
        LabError: as above.
    """
    if weights is not None and is_file_name(weights):
        path = Path(weights).expanduser()
        if not path.exists():
            remedy = "give a file, DEFAULT, a name as IMAGENET1K_V1, or null"
            raise MissingWeights(f"model.weights={weights} does not exist", remedy)
        check_file(path, f"model.weights={weights}")
    if backbone is None:
        return
    if backbone.startswith(TIMM):
        _look_at_timm(backbone)
        return
    known = torchvision_names()
    if backbone in known:
        if stages := next((stages for starts, stages in _STAGES.items() if backbone.startswith(starts)), None):
            chosen_stages(stages, unfreeze)
    elif "/" not in backbone and known and "torchvision" not in sys.modules:
        registered = {point.name for point in entry_points(group="mvtec_lab.backbones")}
        if backbone not in registered:
            raise unknown("backbone", backbone, known | registered)


def _look_at_timm(backbone: str) -> None:
    """Refuse a model that timm does not have, as far as its source says, or any where timm is not installed."""
    if "timm" not in sys.modules and find_spec("timm") is None:
        raise LabError(f'{backbone} needs timm, which is not installed: pip install "mvtec_lab[timm]"')
    known = timm_names()
    if known and backbone.removeprefix(TIMM).partition(".")[0] not in known:  # behind the dot stands which weights
        raise unknown("backbone", backbone, [TIMM + name for name in known])


def chosen_stages(known: Sequence[str], unfreeze: int | str | Sequence[str]) -> list[str]:
    """Return the stages that ``model.unfreeze`` chooses, in their order.

    Args:
        known: the names of a network's stages, in order.
        unfreeze: how many of the last stages train, ``"all"``, or the names of stages.

    Raises:
        LabError: there are fewer stages, or none of that name.
    """
    if unfreeze == "all":
        return list(known)
    if type(unfreeze) is int and 0 <= unfreeze <= len(known):
        return list(known[len(known) - unfreeze :])
    chosen = [unfreeze] if isinstance(unfreeze, str) else unfreeze
    if not isinstance(chosen, Sequence):
        remedy = f"give 0 to {len(known)}, all, or some of {', '.join(known)}"
        raise LabError(f"model.unfreeze={unfreeze} does not fit a backbone of {len(known)} stages: {remedy}")
    if strangers := [name for name in chosen if name not in known]:
        raise LabError(f"unknown stage in model.unfreeze {strangers[0]!r}: this backbone has {', '.join(known)}")
    return [name for name in known if name in chosen]


def is_file_name(weights: str) -> bool:
    """Tell whether a value of ``model.weights`` names a file, there or not, and no published entry."""
    return Path(weights).suffix in (".pth", ".pt", ".ckpt") or len(Path(weights).parts) > 1
