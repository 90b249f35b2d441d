"""Maps from inside a frozen pretrained backbone, which most methods look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from mvtec_lab.errors import LabError, unknown
from mvtec_lab.models.backbones import pretrained
from mvtec_lab.models.weights import load_weights

CELLS = (
    8,
    16,
)  # pixels a side: PatchCore's and SPADE's middle layers, where a cell sees an object's part, not its class
# Pixels that a CPU is given at once, 4 images of 224: what is above 32 MB, as the first maps of 8 images are, glibc
# takes from the kernel each time anew. MobileNetV2 takes 34 ms an image in one part of 32, and 12 in parts of 4.
PART = 4 * 224**2


class FeatureMaps(nn.Module):
    """Images [N, 3, S, S], normalised, to float32 maps [N, C, H, W] of some layers; frozen, always in eval mode.

    Args:
        backbone: a TorchVision classification model by name.
        weights: as in DefectClassifier.
        layers: its layers by TorchVision's node names, ``features.6`` (``get_graph_node_names`` lists them); None: the
            last ones of these cells.
        cells: pixels a side.

    ``channels`` are C of each, ``layers`` their names, ``mean`` and ``std`` (of RGB in [0, 1]) what the weights were
    trained with, ``weights_name`` and ``weights_note`` as in DefectClassifier.

    Raises:
        LabError: an unknown layer, one named twice, or one that gives no map; a backbone that cannot be traced, or has
            none such.
    """

    def __init__(
        self,
        backbone: str,
        weights: str | None = "DEFAULT",
        layers: Sequence[str] | None = None,
        cells: Sequence[int] = CELLS,
    ) -> None:
        super().__init__()
        loaded = load_weights(backbone, weights)
        self.mean, self.std = list(loaded.mean), list(loaded.std)
        self.weights_name, self.weights_note = loaded.name, loaded.note
        network = pretrained(backbone, loaded.state_dict).eval()
        try:
            known = get_graph_node_names(network)[1]
        except Exception as error:  # what torch.fx cannot follow fails in any way there is
            raise LabError(f"the layers of {backbone} cannot be told apart: choose another backbone") from error
        if strangers := [name for name in layers or () if not any(_below(node, name) for node in known)]:
            raise unknown(f"layer of {backbone} in model.options.layers", strangers[0], known)
        self.layers = list(layers) if layers else _last(network, known, backbone, cells)
        self.network = create_feature_extractor(network, {name: name for name in self.layers})
        self.requires_grad_(False)
        shapes = self._shapes(224)
        if len(shapes) < len(self.layers):  # also as a module and as the last node in it
            raise LabError(f"model.options.layers names a layer of {backbone} twice: give {', '.join(shapes)}")
        for name, shape in shapes.items():
            # As [1, H, W, C] of a square image always are; [1, C, H, W] may be by chance, but not of two sizes.
            if len(shape) == 4 and shape[1] == shape[2] and self._shapes(192)[name][1] != shape[1]:
                raise LabError(
                    f"layer {name} of {backbone} has its channels last, {list(shape)}: give another in "
                    "model.options.layers, or another backbone"
                )
            if len(shape) != 4 or shape[2] != shape[3] or shape[2] == 1:
                raise LabError(
                    f"layer {name} of {backbone} gives no map of the image: give another in model.options.layers"
                )
        self.channels = [shape[1] for shape in shapes.values()]

    def _shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        """Of what each layer gives for an image of this size."""
        return {name: tuple(found.shape) for name, found in self.network(torch.zeros(1, 3, size, size)).items()}

    def train(self, mode: bool = True) -> FeatureMaps:
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        whole = torch.compiler.is_compiling() or type(images) is not Tensor  # a batch of any size
        if whole or images.device.type != "cpu":
            return [found.float() for found in self.network(images).values()]
        parts = images.split(max(1, PART // images[0, 0].numel()))
        return [torch.cat(found).float() for found in zip(*(self.network(p).values() for p in parts), strict=True)]


def _below(node: str, layer: str) -> bool:
    return node == layer or node.startswith(f"{layer}.")


@torch.no_grad()
def _last(network: nn.Module, known: Sequence[str], backbone: str, cells: Sequence[int]) -> list[str]:
    """Of whole modules the last one of each cell size."""
    modules = {name for name, _ in network.named_modules()}
    whole = [name for name in _outermost(known) if name in modules]
    found: dict[int, str] = {}
    maps = create_feature_extractor(network, {name: name for name in whole})(torch.zeros(1, 3, 224, 224))
    for name, values in maps.items():
        if isinstance(values, Tensor) and values.ndim == 4 and values.shape[2] == values.shape[3]:
            found[round(224 / values.shape[2])] = name
    if lacking := [cell for cell in cells if cell not in found]:
        raise LabError(
            f"{backbone} has no map with cells of {lacking[0]} pixels: name layers of it in model.options.layers"
        )
    return [found[cell] for cell in cells]


def _outermost(known: Sequence[str]) -> list[str]:
    """features.6 rather than what lies within: of each module the name down to its first number, or its first part."""
    names = []
    for node in known:
        parts = node.split(".")
        stop = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
        names.append(".".join(parts[: stop + 1]))
    return list(dict.fromkeys(names))
