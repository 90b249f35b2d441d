"""Any TorchVision classification model as one flat Sequential: its stages in order, then pool, then head.

A frozen prefix is the slice ``model[:k]``, the trained suffix ``model[k:]``, and what enters ``pool`` is the last map.
Hidden layers between pool and head (VGG, MobileNetV3 ...) are a last stage of their own, ``neck``.

A backbone of your own: register its builder with TorchVision (``torchvision.models._api.register_model``). If it runs
``features``, a pooling and ``classifier`` (or ``fc``), that is all; otherwise one function tells its order, under
``@layout.register(MyNet)``.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.maxvit import MaxVitBlock
from torchvision.models.swin_transformer import PatchMerging, PatchMergingV2
from torchvision.models.vision_transformer import interpolate_embeddings

from mvtec_lab.errors import LabError, unknown

# Auxiliary classifiers serve ImageNet alone; init_weights=None, the default, warns and then does the same as True.
_OPTIONS = {key: {"init_weights": True, "aux_logits": False} for key in ("googlenet", "inception_v3")}
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# DenseNet's published files still name denselayer1.norm.1 what is denselayer1.norm1 today.
_DENSENET_DOT = re.compile(r"(\.denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")


def names() -> list[str]:
    """TorchVision's classification models and whatever else was registered with it."""
    others = (models.detection, models.segmentation, models.video, models.optical_flow, models.quantization)
    return sorted(set(models.list_models()).difference(*(models.list_models(module=m) for m in others)))


def build(name: str, num_classes: int, *, weights: Mapping[str, Tensor] | None = None) -> nn.Sequential:
    """A backbone with a fresh last layer: images [N, 3, S, S] to logits [N, num_classes].

    Args:
        weights: a TorchVision state dict of that model, with any number of classes; None: random values.

    Raises:
        LabError: an unknown name, weights of another model, a model whose layout is not known.
    """
    network = _construct(name)
    if weights is not None:
        _load(network, name, weights, "model.weights")
    children = layout(network)
    if not type(network).__module__.startswith("torchvision."):  # whose order the tests have seen
        _check_order(network, nn.Sequential(OrderedDict(children)))
    head = children["head"]
    head[_last(head)] = _fresh(head[_last(head)], num_classes)  # last: one seed gives one head, weights or none
    return nn.Sequential(OrderedDict(children))


def pretrained(name: str, weights: Mapping[str, Tensor] | None) -> nn.Module:
    """TorchVision's own network of that name with these weights, whose last layer is of no use; None: random values."""
    network = _construct(name)
    if weights is not None:
        _load(network, name, weights, "model.weights")
    return network


class CosineLinear(nn.Module):
    """``scale`` times the cosine between features [N, D] and each class's weights: logits [N, C], without a bias."""

    def __init__(self, features: int, outputs: int, scale: float = 30.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(outputs, features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as nn.Linear: its length is of no account

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


def last_layer(model: nn.Sequential) -> nn.Module:
    """The layer that gives a model's logits."""
    return [child for child in model.get_submodule("head").children() if _learns(child)][-1]


def last_linear(model: nn.Sequential) -> nn.Linear:
    """That layer, before ``use_cosine``.

    Raises:
        LabError: it is a convolution, whose features are maps.
    """
    last = last_layer(model)
    if not isinstance(last, nn.Linear):
        raise LabError(
            "this backbone ends in a convolution, not in features of an image: model.head, model.generate and "
            "loss.name=group_softmax need another one, such as mobilenet_v2"
        )
    return last


def use_cosine(model: nn.Sequential, scale: float) -> None:
    """Put a ``CosineLinear`` in the place of a model's last layer."""
    last, head = last_linear(model), model.get_submodule("head")
    name = next(name for name, child in head.named_children() if child is last)
    head.register_module(name, CosineLinear(last.in_features, last.out_features, scale))


def stages(model: nn.Sequential) -> list[str]:
    """The names of a model's stages in order: every child but pool and head."""
    return [name for name, _ in model.named_children() if name not in ("pool", "head")]


def trainable_stages(model: nn.Sequential, unfreeze: int | str | Sequence[str]) -> list[str]:
    """The stages that train beside the head: the last ``unfreeze``, ``"all"``, or those named; in the model's order.

    Raises:
        LabError: more stages than there are, or a name that is none of them.
    """
    known = stages(model)
    if unfreeze == "all":
        return known
    if type(unfreeze) is int and 0 <= unfreeze <= len(known):
        return known[len(known) - unfreeze :]
    chosen = [unfreeze] if isinstance(unfreeze, str) else unfreeze
    if not isinstance(chosen, Sequence):
        remedy = f"give 0 to {len(known)}, all, or some of {', '.join(known)}"
        raise LabError(f"model.unfreeze={unfreeze} is no choice among {len(known)} stages: {remedy}")
    if strangers := [name for name in chosen if name not in known]:
        raise unknown("stage in model.unfreeze", strangers[0], known)
    return [name for name in known if name in chosen]


def input_size(model: nn.Module) -> int | None:
    """The one image size S (pixels) that a model takes, None where there is a choice."""
    for module in model.modules():
        if isinstance(module, (models.VisionTransformer, _Tokens)):
            return module.image_size
        if isinstance(module, MaxVitBlock):
            return 4 * module.grid_size[0]  # the stem and this first block halve it
    return None


def check_image_size(name: str, size: int) -> None:
    """Raises LabError where a backbone cannot take images [3, size, size]: too small for it, or not its one size."""
    network = _skeleton(name)
    if not _accepts(network, size):
        remedy = input_size(network) or 224  # what nearly all pretrained weights were trained on
        if _accepts(network, remedy):  # otherwise it cannot run without values, and training will tell
            raise LabError(f"data.image_size={size} does not fit {name}: give data.image_size={remedy}")


def check_weights(name: str, weights: Mapping[str, Tensor], source: str) -> None:
    """Raises LabError, which names ``source``, where ``weights`` is no TorchVision state dict of that backbone."""
    _load(_skeleton(name), name, weights, source)


@singledispatch
def layout(network: nn.Module) -> dict[str, Any]:
    """A network's parts by name, in the order in which they run; this one is for features, pooling, classifier.

    Every parameter is in exactly one stage or in ``head``, whose last Linear or Conv2d gives the logits.
    """
    trunk = getattr(network, "features", getattr(network, "layers", None))
    classifier = getattr(network, "classifier", getattr(network, "fc", None))
    if not isinstance(trunk, nn.Sequential) or classifier is None:
        raise _no_layout(network)
    ending = _ending(getattr(network, "avgpool", nn.AdaptiveAvgPool2d(1)), classifier)
    return _by_stride((str(i), child) for i, child in enumerate(trunk)) | ending


@layout.register(models.ResNet)
def _(network: models.ResNet) -> dict[str, Any]:
    stem = _sequence(network, "conv1", "bn1", "relu", "maxpool")
    layers = {name: getattr(network, name) for name in ("layer1", "layer2", "layer3", "layer4")}
    return {"stem": stem, **layers, **_ending(network.avgpool, network.fc)}


@layout.register(models.RegNet)
def _(network: models.RegNet) -> dict[str, Any]:
    return {"stem": network.stem, **dict(network.trunk_output.named_children()), **_ending(network.avgpool, network.fc)}


@layout.register(models.DenseNet)
def _(network: models.DenseNet) -> dict[str, Any]:
    trunk = [*network.features.named_children(), ("relu5", nn.ReLU(inplace=True))]
    groups = _grouped(trunk, lambda name, _: name.startswith("denseblock"))
    blocks = {f"block{i}" if i else "stem": group for i, group in enumerate(groups)}
    return blocks | _ending(nn.AdaptiveAvgPool2d(1), network.classifier)


@layout.register(models.ShuffleNetV2)
def _(network: models.ShuffleNetV2) -> dict[str, Any]:
    parts = {"stem": _sequence(network, "conv1", "maxpool"), "stage2": network.stage2, "stage3": network.stage3}
    parts["stage4"] = _sequence(network, "stage4", "conv5")
    return parts | _ending(nn.AdaptiveAvgPool2d(1), network.fc)


@layout.register(models.SqueezeNet)
def _(network: models.SqueezeNet) -> dict[str, Any]:
    return _by_stride(network.features.named_children()) | _ending(network.classifier, nn.Flatten(1))


@layout.register(models.GoogLeNet)
@layout.register(models.Inception3)
def _(network: models.GoogLeNet | models.Inception3) -> dict[str, Any]:
    trunk = {"input": _Renormalise(network.transform_input), **dict(network.named_children())}
    ending = _ending(*(trunk.pop(name) for name in ("avgpool", "dropout", "fc")))
    return _by_stride(trunk.items()) | ending


@layout.register(models.SwinTransformer)
def _(network: models.SwinTransformer) -> dict[str, Any]:
    trunk = [*network.features.named_children(), ("norm", network.norm), ("permute", network.permute)]
    return _by_stride(trunk) | _ending(network.avgpool, network.flatten, network.head)


@layout.register(models.MaxVit)
def _(network: models.MaxVit) -> dict[str, Any]:
    blocks = {f"block{i}": block for i, block in enumerate(network.blocks, start=1)}
    return {"stem": network.stem, **blocks, **_ending(network.classifier)}


@layout.register(models.VisionTransformer)
def _(network: models.VisionTransformer) -> dict[str, Any]:
    *layers, last = network.encoder.layers
    blocks = {f"layer{i}": block for i, block in enumerate([*layers, nn.Sequential(last, network.encoder.ln)])}
    return {"stem": _Tokens(network), **blocks, **_ending(_ClassToken(), network.heads)}


class _Tokens(nn.Module):
    """ViT before its encoder: images [N, 3, S, S] to tokens [N, 1 + patches, D], the class token first."""

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
    """From ImageNet's mean and std to 0.5 and 0.5, or nothing; in buffers, so that a checkpoint tells which."""

    scale: Tensor
    shift: Tensor

    def __init__(self, active: bool) -> None:
        super().__init__()
        mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if active else ((0.5,) * 3, (0.5,) * 3)
        self.register_buffer("scale", torch.tensor([value / 0.5 for value in std]).view(3, 1, 1))
        self.register_buffer("shift", torch.tensor([(value - 0.5) / 0.5 for value in mean]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


def _no_layout(network: nn.Module) -> LabError:
    kind = type(network).__name__
    return LabError(f"{kind} is not just features, a pooling and classifier: tell its order, @layout.register({kind})")


def _sequence(network: nn.Module, *children: str) -> nn.Sequential:
    return nn.Sequential(OrderedDict((name, getattr(network, name)) for name in children))


def _by_stride(trunk: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Sequential]:
    """stage1, stage2 ...: each begins where the map shrinks."""
    return {f"stage{i}": group for i, group in enumerate(_grouped(trunk, lambda _, child: _shrinks(child)), start=1)}


def _grouped(trunk: Iterable[tuple[str, nn.Module]], begins: Callable[[str, nn.Module], bool]) -> list[nn.Sequential]:
    groups: list[OrderedDict[str, nn.Module]] = [OrderedDict()]
    for name, child in trunk:
        if begins(name, child) and any(map(_learns, groups[-1].values())):
            groups.append(OrderedDict())
        groups[-1][name] = child
    if not any(map(_learns, groups[-1].values())):  # VGG's trunk ends in a bare pooling: no stage of its own
        leftover = groups.pop()
        groups[-1].update(leftover)
    return [nn.Sequential(group) for group in groups]


def _shrinks(child: nn.Module) -> bool:
    strides = [m.stride for m in child.modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))]
    return isinstance(child, (PatchMerging, PatchMergingV2)) or any(s not in (1, (1, 1)) for s in strides)


def _learns(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _ending(*modules: nn.Module) -> dict[str, nn.Sequential]:
    """What follows the trunk: pool (no parameters), neck (hidden layers, if any), head (the last and its dropout)."""
    flat = [child for module in modules for child in (module if isinstance(module, nn.Sequential) else [module])]
    if not any(isinstance(child, nn.Flatten) for child in flat):
        flat.insert(1, nn.Flatten(1))  # which TorchVision mostly writes into forward(), behind the pooling
    dropouts = [i for i, child in enumerate(flat) if isinstance(child, nn.Dropout)]
    for i in dropouts:
        flat[i].inplace = False  # type: ignore[assignment] # its input may be a cached activation
    head = _last(flat)
    head -= head - 1 in dropouts
    pooled = min(i for i, child in enumerate(flat) if i in dropouts or _learns(child))
    parts = {"pool": flat[:pooled], "neck": flat[pooled:head], "head": flat[head:]}
    return {name: nn.Sequential(*children) for name, children in parts.items() if children}


def _last(modules: Iterable[nn.Module]) -> int:
    layers = [i for i, module in enumerate(modules) if isinstance(module, (nn.Linear, nn.Conv2d))]
    if not layers:
        raise LabError("a classifier without Linear or Conv2d has no last layer to replace: end it in one of them")
    return layers[-1]


def _fresh(last: Any, num_classes: int) -> nn.Module:
    bias = last.bias is not None
    if isinstance(last, nn.Linear):
        return nn.Linear(last.in_features, num_classes, bias=bias)
    return nn.Conv2d(last.in_channels, num_classes, last.kernel_size, last.stride, last.padding, bias=bias)


def _construct(name: str) -> nn.Module:
    if name not in names():
        raise unknown("backbone", name, names())
    options = _OPTIONS.get(name, {})
    try:
        return models.get_model(name, **options)
    except RuntimeError:  # on the meta device: RegNet works its widths out with tensors
        with torch.device("cpu"):
            network = models.get_model(name, **options)
        return network.to(torch.get_default_device())


def _skeleton(name: str) -> nn.Module:
    with torch.device("meta"):  # shapes without values: no memory, no initialisation
        return _construct(name).eval()


def _load(network: nn.Module, name: str, weights: Mapping[str, Tensor], source: str) -> None:
    """Fill all but the last layer."""
    head = layout(network)["head"]
    last = head[_last(head)]
    prefix = next(path for path, module in network.named_modules() if module is last)
    needed = ((key, value) for key, value in weights.items() if not key.startswith(_AUXILIARY))
    state = OrderedDict((_DENSENET_DOT.sub(r"\1", key), value) for key, value in needed)
    state.update({f"{prefix}.{key}": value for key, value in last.state_dict().items()})
    # MNASNet insists on a version, which a plain dict does not carry.
    state._metadata = getattr(weights, "_metadata", {"": {"version": network._version}})  # type: ignore[attr-defined]
    try:
        if isinstance(network, models.VisionTransformer) and "encoder.pos_embedding" in state:
            # Some entries were trained on larger images; TorchVision's own remedy leaves one image size per backbone.
            state = interpolate_embeddings(network.image_size, network.patch_size, state)
        found = network.load_state_dict(state, strict=False, assign=last.weight.is_meta)
        reasons = [f"it lacks {key}" for key in found.missing_keys]
        reasons += [f"{name} has no {key}" for key in found.unexpected_keys]
    except (RuntimeError, ValueError) as error:
        lines = str(error).splitlines()
        reasons = lines[1:] or lines  # the first of several only says that more follow
    if reasons:
        raise LabError(f"{source} is no TorchVision state dict of {name}: {reasons[0].strip()}")
    if hasattr(network, "transform_input"):
        network.transform_input = True  # type: ignore[assignment] # TorchVision's weights expect it


@torch.no_grad()
def _check_order(network: nn.Module, flat: nn.Sequential) -> None:
    images = torch.linspace(-1, 1, 3 * 224 * 224).view(1, 3, 224, 224)
    try:
        same = images.is_meta or torch.allclose(network.eval()(images), flat.eval()(images))
    except RuntimeError:
        same = False
    flat.train()
    if not same:
        raise _no_layout(network)


def _accepts(network: nn.Module, size: int) -> bool:
    try:
        network(torch.empty(1, 3, size, size, device="meta"))
    except (RuntimeError, AssertionError):
        return False
    return True
