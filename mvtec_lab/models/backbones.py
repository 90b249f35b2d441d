"""Backbones as one flat Sequential each: the stages in order, then pool, then head.

A frozen prefix is the slice ``model[:k]``, the trained suffix ``model[k:]``, and what enters ``pool`` is the last map.
Hidden layers between pool and head (VGG, MobileNetV3 ...) are a last stage of their own, ``neck``.

A backbone is a TorchVision classification model, ``timm/NAME``, or a builder under ``@register_backbone``. If your
network runs ``features``, a pooling and ``classifier`` (or ``fc``), nothing more is needed. Otherwise name its stages
there, or return its parts from a function under ``@layout.register(MyNet)`` (``mvtec_lab.models.layouts``).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.maxvit import MaxVitBlock
from torchvision.models.vision_transformer import interpolate_embeddings

from mvtec_lab.errors import LabError, unknown
from mvtec_lab.models import timm_backbones
from mvtec_lab.models.layouts import Tokens, ending, layout, learns, no_layout, place_of_last, usual_ending
from mvtec_lab.models.names import TIMM, chosen_stages
from mvtec_lab.registry import Registry

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

BACKBONES: Registry[Callable[..., nn.Module]] = Registry("backbone", require=["__call__"])  # beside TorchVision's
_DECLARED: dict[str, Sequence[str]] = {}  # stages of registered backbones
# Auxiliary classifiers serve ImageNet alone; init_weights=None, the default, warns and then does the same as True.
_OPTIONS = {key: {"init_weights": True, "aux_logits": False} for key in ("googlenet", "inception_v3")}
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# DenseNet's published files still name denselayer1.norm.1 what is denselayer1.norm1 today.
_DENSENET_DOT = re.compile(r"(\.denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")


def register_backbone(name: str, stages: Sequence[str] = ()) -> Callable[[Builder], Builder]:
    """Return a decorator that makes a builder a backbone, ``model.backbone=NAME``.

    The builder is a function like TorchVision's, or a class, whose arguments all have defaults. Its network takes
    images [N, 3, S, S] and returns logits. The last Linear or Conv2d is replaced for the classes of the product.

    Args:
        name: the backbone's name.
        stages: the names of the network's submodules in the order in which they run, up to the pooling; the pooling is
            ``avgpool`` (or global average pooling), the rest ``classifier``, ``fc`` or ``head``. Leave it out for
            networks with ``features``, and for those with a function under ``@layout.register``.

    Raises:
        LabError: the name belongs to another backbone.
    """

    def register(builder: Builder) -> Builder:
        if name in models.list_models():
            raise LabError(f"two registrations of the backbone {name!r}: TorchVision has one: give yours another name")
        BACKBONES.register(name, builder)
        _DECLARED[name] = stages
        return builder

    return register


def names() -> list[str]:
    """Return the names of TorchVision's classification models and of all registered backbones."""
    others = (models.detection, models.segmentation, models.video, models.optical_flow, models.quantization)
    own = set(models.list_models()).difference(*(models.list_models(module=m) for m in others))
    return sorted({*own, *BACKBONES.names()})


def builder(name: str) -> Callable[..., nn.Module]:
    """Return the function that builds a backbone's network.

    Raises:
        LabError: the name is unknown, or its package cannot be imported.
    """
    if name.startswith(TIMM):
        return timm_backbones.builder(name)
    if name in BACKBONES:
        return BACKBONES[name]
    if name not in names():
        raise unknown("backbone", name, names())
    return models.get_model_builder(name)


def build(name: str, num_classes: int, *, weights: Mapping[str, Tensor] | None = None) -> nn.Sequential:
    """Return a backbone with a fresh last layer: images [N, 3, S, S] to logits [N, num_classes].

    Args:
        name: a backbone's name.
        num_classes: outputs of the last layer.
        weights: the network's own state dict, with any number of classes; None: random values.

    Raises:
        LabError: the name is unknown, the weights belong to another model, or the order of its parts is not known.
    """
    network = pretrained(name, weights)
    children = _parts(name, network)
    if not type(network).__module__.startswith("torchvision."):  # whose order the tests have seen
        _check_order(name, network, nn.Sequential(OrderedDict(children)))
    head = children["head"]
    place = place_of_last(head)
    head[place] = _fresh(head[place], num_classes)  # at the end: one seed gives one head, weights or none
    return nn.Sequential(OrderedDict(children))


def pretrained(name: str, weights: Mapping[str, Tensor] | None) -> nn.Module:
    """Return a backbone's own network with these weights (None: random values); its last layer stays random."""
    network = _construct(name)
    if weights is not None:
        _load(network, name, weights, "model.weights")
    return network


class CosineLinear(nn.Module):
    """Return ``scale`` times the cosine between features [N, D] and each class's weights, [N, C]; no bias."""

    def __init__(self, features: int, outputs: int, scale: float = 30.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(outputs, features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as nn.Linear; a cosine ignores the length

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


def last_layer(model: nn.Sequential) -> nn.Module:
    """Return the layer that gives a model's logits."""
    return [child for child in model.get_submodule("head").children() if learns(child)][-1]


def last_linear(model: nn.Sequential) -> nn.Linear:
    """Return the layer that gives a model's logits, before ``use_cosine``.

    Raises:
        LabError: the layer is a convolution, whose features are maps.
    """
    last = last_layer(model)
    if not isinstance(last, nn.Linear):
        raise LabError(
            "this backbone ends in a convolution, not in features of an image: model.head, model.generate and "
            "loss.name=group_softmax need another one, such as mobilenet_v2"
        )
    return last


def use_cosine(model: nn.Sequential, scale: float) -> None:
    """Replace a model's last layer by a ``CosineLinear``."""
    last, head = last_linear(model), model.get_submodule("head")
    name = next(name for name, child in head.named_children() if child is last)
    head.register_module(name, CosineLinear(last.in_features, last.out_features, scale))


def stages(model: nn.Sequential) -> list[str]:
    """Return the names of a model's stages in order: all children but pool and head."""
    return [name for name, _ in model.named_children() if name not in ("pool", "head")]


def trainable_stages(model: nn.Sequential, unfreeze: int | str | Sequence[str]) -> list[str]:
    """Return the stages that train beside the head, in the model's order.

    Args:
        model: a backbone from ``build``.
        unfreeze: as in ``chosen_stages``.

    Raises:
        LabError: the model has fewer stages, or no stage of that name.
    """
    return chosen_stages(stages(model), unfreeze)


def stage_modules(name: str, network: nn.Module, unfreeze: int | str | Sequence[str]) -> list[nn.Module]:
    """Return the stages of a backbone's own network that train, as ``trainable_stages`` chooses them; [] for 0.

    Raises:
        LabError: as ``trainable_stages``; the order of the network's parts is not known.
    """
    if unfreeze in (0, []):
        return []
    model = nn.Sequential(OrderedDict(_parts(name, network)))
    return [model.get_submodule(stage) for stage in trainable_stages(model, unfreeze)]


def input_size(model: nn.Module) -> int | None:
    """Return the only image size S (pixels) that a model takes; None where it takes several."""
    for module in model.modules():
        if (config := getattr(module, "pretrained_cfg", None)) and config.get("fixed_input_size"):  # timm's
            return config["input_size"][-1]
        if isinstance(module, (models.VisionTransformer, Tokens)):
            return module.image_size
        if isinstance(module, MaxVitBlock):
            return 4 * module.grid_size[0]  # the stem and this first block halve it
    return None


def check_image_size(name: str, size: int) -> None:
    """Refuse an image size that a backbone cannot take.

    Raises:
        LabError: images [3, size, size] are too small for it, or not of its only size.
    """
    network = _skeleton(name)
    if not _accepts(network, size):
        remedy = input_size(network) or 224  # what nearly all pretrained weights were trained on
        if _accepts(network, remedy):  # otherwise it cannot run on the meta device, and training checks the size
            raise LabError(f"data.image_size={size} does not fit {name}: give data.image_size={remedy}")


def check_weights(name: str, weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not a state dict of that backbone's network.

    Raises:
        LabError: a key is missing, unknown, or of another shape; the line names ``source``.
    """
    _load(_skeleton(name), name, weights, source)


def _not_in_order(name: str) -> LabError:
    return LabError(f"{name} does not run its modules one after the other: choose another model of timm")


def _parts(name: str, network: nn.Module) -> dict[str, Any]:
    """Return a backbone's parts: by the stages that its builder declares, or by ``layout``."""
    if name.startswith(TIMM):
        try:
            stages, last = timm_backbones.parts(network)
            return stages | ending(*last)
        except Exception as error:  # its networks differ in many ways
            raise _not_in_order(name) from error
    builder(name)  # imports the package of a backbone, which may declare its stages
    if not (declared := _DECLARED.get(name)):
        return layout(network)
    try:
        trunk = {stage.replace(".", "_"): network.get_submodule(stage) for stage in declared}
    except AttributeError as error:
        raise LabError(f"the backbone {name!r} declares stages that its network does not have: {error}") from error
    return trunk | usual_ending(network)


def _fresh(last: Any, num_classes: int) -> nn.Module:
    bias = last.bias is not None
    if isinstance(last, nn.Linear):
        return nn.Linear(last.in_features, num_classes, bias=bias)
    return nn.Conv2d(last.in_channels, num_classes, last.kernel_size, last.stride, last.padding, bias=bias)


def _construct(name: str) -> nn.Module:
    make, options = builder(name), _OPTIONS.get(name, {})
    try:
        return make(**options)
    except RuntimeError:  # on the meta device: RegNet computes its widths with tensors
        with torch.device("cpu"):
            network = make(**options)
        return network.to(torch.get_default_device())
    except Exception as error:  # code of a script or a package may fail in any way
        if name in BACKBONES:
            raise LabError(f"the backbone {name!r} cannot be built: {type(error).__name__}: {error}") from error
        raise


def _skeleton(name: str) -> nn.Module:
    with torch.device("meta"):  # shapes without values: no memory, no initialisation
        return _construct(name).eval()


def _load(network: nn.Module, name: str, weights: Mapping[str, Tensor], source: str) -> None:
    """Fill all parameters but those of the last layer."""
    head = _parts(name, network)["head"]
    last = head[place_of_last(head)]
    prefix = next(path for path, module in network.named_modules() if module is last)
    needed = ((key, value) for key, value in weights.items() if not key.startswith(_AUXILIARY))
    state = OrderedDict((_DENSENET_DOT.sub(r"\1", key), value) for key, value in needed)
    state.update({f"{prefix}.{key}": value for key, value in last.state_dict().items()})
    # MNASNet requires a version, which a plain dict does not carry.
    state._metadata = getattr(weights, "_metadata", {"": {"version": network._version}})  # type: ignore[attr-defined]
    try:
        if isinstance(network, models.VisionTransformer) and "encoder.pos_embedding" in state:
            # Some entries were trained on larger images. TorchVision's own remedy leaves one image size per backbone.
            state = interpolate_embeddings(network.image_size, network.patch_size, state)
        mismatch = network.load_state_dict(state, strict=False, assign=last.weight.is_meta)
        reasons = [f"it lacks {key}" for key in mismatch.missing_keys]
        reasons += [f"{name} has no {key}" for key in mismatch.unexpected_keys]
    except (RuntimeError, ValueError) as error:
        lines = str(error).splitlines()
        reasons = lines[1:] or lines  # the first line only announces the others
    if reasons:
        raise LabError(f"{source} is not a state dict of {name}: {reasons[0].strip()}")
    if hasattr(network, "transform_input"):
        network.transform_input = True  # type: ignore[assignment] # TorchVision's weights expect it


@torch.no_grad()
def _check_order(name: str, network: nn.Module, flat: nn.Sequential) -> None:
    size = input_size(network) or 224
    images = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    try:
        same = images.is_meta or torch.allclose(network.eval()(images), flat.eval()(images))
    except (RuntimeError, IndexError, AssertionError):
        same = False
    flat.train()
    if not same:
        raise _not_in_order(name) if name.startswith(TIMM) else no_layout(network)


def _accepts(network: nn.Module, size: int) -> bool:
    try:
        network(torch.empty(1, 3, size, size, device="meta"))
    except (RuntimeError, AssertionError):
        return False
    return True
