"""Backbones of timm (PyTorch Image Models), ``timm/NAME``. They need the extra ``timm``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from mvtec_lab.errors import LabError, unknown
from mvtec_lab.models.names import TIMM

_OF_TOKENS = ("patch_embed", "pos_drop", "patch_drop", "norm_pre")


def builder(name: str) -> Callable[..., nn.Module]:
    """Return the function that builds the network ``timm/NAME``; it takes ``pretrained``.

    Raises:
        LabError: timm is not installed, or has no model of that name.
    """
    try:
        timm: Any = import_module("timm")
    except ImportError as error:
        raise LabError(f'{name} needs timm ({error}): pip install "mvtec_lab[timm]"') from error
    model = name.removeprefix(TIMM)
    if not timm.is_model(model):
        raise unknown("backbone", name, [TIMM + known for known in timm.list_models()])
    return partial(timm.create_model, model)


def published(name: str) -> dict[str, Any]:
    """Return what timm says about the published weights of ``timm/NAME``: mean, std, input_size and others."""
    timm: Any = import_module("timm.models")
    pretrained = timm.get_pretrained_cfg(name.removeprefix(TIMM))
    return pretrained.to_dict() if pretrained else {}


def tag(name: str) -> str:
    """Return the name of the weights that timm publishes by default: ``a1_in1k``."""
    return str(published(name).get("tag") or "DEFAULT")


def parts(network: Any) -> tuple[dict[str, nn.Sequential], list[nn.Module]]:
    """Return a network's stages, by timm's own groups of layers, and the modules from the pooling on, both in order.

    A module belongs to the group of its parameters, and one without parameters to the group before it. Whether the
    network runs its modules in the order in which it holds them is left to the caller to check.
    """
    timm: Any = import_module("timm.models")
    groups: Mapping[str, int] = timm.group_parameters(network, network.group_matcher(coarse=True), reverse=True)
    last, units = max(groups.values()), list(_units(network, groups))
    pools = [i for i, (name, _) in enumerate(units) if name.endswith("global_pool")]
    stages: dict[int, list[nn.Module]] = {}
    group = 0
    for i, (name, module) in enumerate(units):
        group = max((groups[f"{name}.{key}"] for key, _ in module.named_parameters() if name), default=group)
        if i == pools[0] if pools else group == last:
            break
        stages.setdefault(min(group, last - 1), []).append(module)
    return {f"stage{n}": nn.Sequential(*stages[g]) for n, g in enumerate(sorted(stages), 1)}, [m for _, m in units[i:]]


def _units(network: Any, groups: Mapping[str, int]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that are not taken apart, with their names, in order."""
    tokens = hasattr(network, "_pos_embed")  # ViT: forward() adds tokens and positions, and takes the class token
    for name, child in network.named_children():
        several = len({groups[f"{name}.{key}"] for key, _ in child.named_parameters()}) > 1
        if tokens and name == "patch_embed":
            yield "", _Tokens(network)
        elif tokens and name in _OF_TOKENS:
            continue
        elif (several or name == "head") and list(child.children()):
            yield from ((f"{name}.{key}", part) for key, part in child.named_children())
        else:
            yield name, child
        if tokens and name == "norm":
            yield "global_pool", _Pool(network)


class _Tokens(nn.Module):
    """Turn images into ViT's tokens, as the network does before its blocks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = _with_only(network, *_OF_TOKENS)

    def forward(self, images: Tensor) -> Tensor:
        return self.network.forward_features(images)  # type: ignore[operator]


class _Pool(nn.Module):
    """Take what the head sees from ViT's tokens."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = _with_only(network, "attn_pool")
        self.network._parameters = {}

    def forward(self, tokens: Tensor) -> Tensor:
        return self.network.pool(tokens)  # type: ignore[operator]


def _with_only(network: nn.Module, *names: str) -> nn.Module:
    """Return the network with its own parameters, and with empty modules in the place of all but the named ones."""
    part = copy.copy(network)
    children = network._modules.items()
    part._modules = {name: m if name in names or m is None else nn.Sequential() for name, m in children}
    part._parameters = dict(network._parameters)
    return part
