"""How TorchVision's networks are cut into stages, pooling and head, each class of networks in a way of its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.swin_transformer import PatchMerging, PatchMergingV2

from mvtec_lab.errors import LabError


@singledispatch
def layout(network: nn.Module) -> dict[str, Any]:
    """Return a network's parts by name, in the order in which they run: stages, ``pool``, ``neck`` if any, ``head``.

    Every parameter belongs to exactly one stage or to ``head``, whose last Linear or Conv2d gives the logits. This
    default is for networks of features, pooling and classifier; other classes have functions of their own below.
    """
    trunk = getattr(network, "features", getattr(network, "layers", None))
    if not isinstance(trunk, nn.Sequential):
        raise no_layout(network)
    return _by_stride((str(i), child) for i, child in enumerate(trunk)) | usual_ending(network)


@layout.register(models.ResNet)
def _(network: models.ResNet) -> dict[str, Any]:
    stem = _sequence(network, "conv1", "bn1", "relu", "maxpool")
    layers = {name: getattr(network, name) for name in ("layer1", "layer2", "layer3", "layer4")}
    return {"stem": stem, **layers, **ending(network.avgpool, network.fc)}


@layout.register(models.RegNet)
def _(network: models.RegNet) -> dict[str, Any]:
    return {"stem": network.stem, **dict(network.trunk_output.named_children()), **ending(network.avgpool, network.fc)}


@layout.register(models.DenseNet)
def _(network: models.DenseNet) -> dict[str, Any]:
    trunk = [*network.features.named_children(), ("relu5", nn.ReLU(inplace=True))]
    groups = _grouped(trunk, lambda name, _: name.startswith("denseblock"))
    blocks = {f"block{i}" if i else "stem": group for i, group in enumerate(groups)}
    return blocks | ending(nn.AdaptiveAvgPool2d(1), network.classifier)


@layout.register(models.ShuffleNetV2)
def _(network: models.ShuffleNetV2) -> dict[str, Any]:
    parts = {"stem": _sequence(network, "conv1", "maxpool"), "stage2": network.stage2, "stage3": network.stage3}
    parts["stage4"] = _sequence(network, "stage4", "conv5")
    return parts | ending(nn.AdaptiveAvgPool2d(1), network.fc)


@layout.register(models.SqueezeNet)
def _(network: models.SqueezeNet) -> dict[str, Any]:
    return _by_stride(network.features.named_children()) | ending(network.classifier, nn.Flatten(1))


@layout.register(models.GoogLeNet)
@layout.register(models.Inception3)
def _(network: models.GoogLeNet | models.Inception3) -> dict[str, Any]:
    trunk = {"input": _Renormalise(network.transform_input), **dict(network.named_children())}
    last = [trunk.pop(name) for name in ("avgpool", "dropout", "fc")]
    return _by_stride(trunk.items()) | ending(*last)


@layout.register(models.SwinTransformer)
def _(network: models.SwinTransformer) -> dict[str, Any]:
    trunk = [*network.features.named_children(), ("norm", network.norm), ("permute", network.permute)]
    return _by_stride(trunk) | ending(network.avgpool, network.flatten, network.head)


@layout.register(models.MaxVit)
def _(network: models.MaxVit) -> dict[str, Any]:
    blocks = {f"block{i}": block for i, block in enumerate(network.blocks, start=1)}
    return {"stem": network.stem, **blocks, **ending(network.classifier)}


@layout.register(models.VisionTransformer)
def _(network: models.VisionTransformer) -> dict[str, Any]:
    *layers, last = network.encoder.layers
    blocks = {f"layer{i}": block for i, block in enumerate([*layers, nn.Sequential(last, network.encoder.ln)])}
    return {"stem": Tokens(network), **blocks, **ending(_ClassToken(), network.heads)}


class Tokens(nn.Module):
    """Turn images [N, 3, S, S] into ViT's tokens [N, 1 + patches, D], the class token first."""

    def __init__(self, network: models.VisionTransformer) -> None:
        super().__init__()
        self.image_size = network.image_size
        self.conv_proj = network.conv_proj
        self.class_token = network.class_token
        self.pos_embedding = network.encoder.pos_embedding
        self.dropout = network.encoder.dropout

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.image_size, self.image_size):
            given = " x ".join(map(str, images.shape[-2:]))
            raise LabError(f"images of {given} pixels do not fit this ViT: give data.image_size={self.image_size}")
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1)
        return self.dropout(tokens + self.pos_embedding)


class _ClassToken(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


class _Renormalise(nn.Module):
    """Change the normalisation from ImageNet's mean and std to 0.5 and 0.5, or keep it; a checkpoint holds which."""

    scale: Tensor
    shift: Tensor

    def __init__(self, active: bool) -> None:
        super().__init__()
        mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if active else ((0.5,) * 3, (0.5,) * 3)
        self.register_buffer("scale", torch.tensor([value / 0.5 for value in std]).view(3, 1, 1))
        self.register_buffer("shift", torch.tensor([(value - 0.5) / 0.5 for value in mean]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


def no_layout(network: nn.Module) -> LabError:
    """Return the error of a network whose parts are not known."""
    kind = type(network).__name__
    return LabError(
        f"{kind} is not just features, a pooling and classifier: name its stages, @register_backbone(NAME, "
        f"stages=[...]), or return its parts from a function under @layout.register({kind})"
    )


def usual_ending(network: nn.Module) -> dict[str, nn.Sequential]:
    """Return pool, neck and head of a network with ``classifier``, ``fc`` or ``head``, as ``ending`` does."""
    classifier = next((c for key in ("classifier", "fc", "head") if (c := getattr(network, key, None))), None)
    if classifier is None:
        raise no_layout(network)
    return ending(getattr(network, "avgpool", nn.AdaptiveAvgPool2d(1)), classifier)


def _sequence(network: nn.Module, *children: str) -> nn.Sequential:
    return nn.Sequential(OrderedDict((name, getattr(network, name)) for name in children))


def _by_stride(trunk: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Sequential]:
    """Return stage1, stage2 ...: each begins where the map shrinks."""
    return {f"stage{i}": group for i, group in enumerate(_grouped(trunk, lambda _, child: _shrinks(child)), start=1)}


def _grouped(trunk: Iterable[tuple[str, nn.Module]], begins: Callable[[str, nn.Module], bool]) -> list[nn.Sequential]:
    groups: list[OrderedDict[str, nn.Module]] = [OrderedDict()]
    for name, child in trunk:
        if begins(name, child) and any(map(learns, groups[-1].values())):
            groups.append(OrderedDict())
        groups[-1][name] = child
    if not any(map(learns, groups[-1].values())):  # VGG's trunk ends in a bare pooling: no stage of its own
        leftover = groups.pop()
        groups[-1].update(leftover)
    return [nn.Sequential(group) for group in groups]


def _shrinks(child: nn.Module) -> bool:
    strides = [m.stride for m in child.modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))]
    return isinstance(child, (PatchMerging, PatchMergingV2)) or any(s not in (1, (1, 1)) for s in strides)


def learns(module: nn.Module) -> bool:
    """Tell whether a module has parameters."""
    return next(module.parameters(), None) is not None


def ending(*modules: nn.Module) -> dict[str, nn.Sequential]:
    """Return what follows the trunk: pool (no parameters), neck (hidden layers, if any), head (last layer, dropout)."""
    flat = [child for module in modules for child in (module if isinstance(module, nn.Sequential) else [module])]
    if not any(isinstance(child, nn.Flatten) for child in flat):
        flat.insert(1, nn.Flatten(1))  # TorchVision mostly writes it into forward(), behind the pooling
    dropouts = [i for i, child in enumerate(flat) if isinstance(child, nn.Dropout)]
    for i in dropouts:
        flat[i].inplace = False  # type: ignore[assignment] # its input may be a cached activation
    head = place_of_last(flat)
    head -= head - 1 in dropouts
    pooled = min(i for i, child in enumerate(flat) if i in dropouts or learns(child))
    parts = {"pool": flat[:pooled], "neck": flat[pooled:head], "head": flat[head:]}
    return {name: nn.Sequential(*children) for name, children in parts.items() if children}


def place_of_last(modules: Iterable[nn.Module]) -> int:
    """Return the place of the last Linear or Conv2d among modules; raise LabError if there is none."""
    layers = [i for i, module in enumerate(modules) if isinstance(module, (nn.Linear, nn.Conv2d))]
    if not layers:
        raise LabError("a classifier without Linear or Conv2d has no last layer to replace: end it with one of them")
    return layers[-1]
