"""Feature maps of a pretrained backbone: which of its layers give them is found for any network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from mvtec_lab.errors import LabError, unknown
from mvtec_lab.models.backbones import pretrained, stage_modules
from mvtec_lab.models.views import view
from mvtec_lab.models.weights import load_weights

# Pixels that a CPU gets at once, 4 images of 224. The first maps of 8 images take more than 32 MB, which glibc fetches
# from the kernel for every batch: MobileNetV2 takes 34 ms per image in one part of 32 images, and 12 in parts of 4.
PART = 4 * 224**2


class FeatureMaps(nn.Module):
    """Turn normalised images [N, 3, S, S] into float32 maps [N, C, H, W] of some layers.

    It is frozen and always in eval mode, but for the stages of ``unfreeze``. ``channels`` holds C of each map,
    ``layers`` their names, ``weights`` what the weights say about themselves.

    Args:
        backbone: a classification model by its TorchVision name.
        weights: as in ``load_weights``.
        layers: names of layers by TorchVision's node names, ``features.6`` (``get_graph_node_names`` lists them); None:
            the last layer with each of these cells.
        cells: pixels a side of the maps' cells.
        unfreeze: the backbone's stages that train, as in ``ModelConfig``.

    Raises:
        LabError: an unknown layer, one named twice, or one that gives no map; a backbone that cannot be traced, or that
            has no layer with such cells.
    """

    def __init__(
        self,
        backbone: str,
        weights: str | None = "DEFAULT",
        layers: Sequence[str] | None = None,
        cells: Sequence[int] = (8, 16),
        unfreeze: int | str | Sequence[str] = 0,
    ) -> None:
        super().__init__()
        loaded = load_weights(backbone, weights)
        self.weights = replace(loaded, state_dict=None)
        network = pretrained(backbone, loaded.state_dict).eval()
        known = _nodes(backbone)
        for name in layers or ():
            if not any(node == name or node.startswith(f"{name}.") for node in known):
                raise unknown(f"layer of {backbone} in model.options.layers", name, known)
        self.layers = list(layers) if layers else list(_last(backbone, tuple(cells)))
        self.network = create_feature_extractor(network, {name: name for name in self.layers})
        self.requires_grad_(False)
        self.trained = stage_modules(backbone, network, unfreeze)
        shapes = self._shapes(224)
        if len(shapes) < len(self.layers):  # a module and the last node in it are the same layer, too
            raise LabError(f"model.options.layers names a layer of {backbone} twice: give {', '.join(shapes)}")
        remedy = "give another in model.options.layers"
        for name, shape in shapes.items():
            # [1, H, W, C] of a square image has two equal sides. [1, C, H, W] may have by chance, but not at two sizes.
            if len(shape) == 4 and shape[1] == shape[2] and self._shapes(192)[name][1] != shape[1]:
                last = f"layer {name} of {backbone} has its channels last, {list(shape)}"
                raise LabError(f"{last}: {remedy}, or another backbone")
            if len(shape) != 4 or shape[2] != shape[3] or shape[2] == 1:
                raise LabError(f"layer {name} of {backbone} gives no map of the image: {remedy}")
        self.channels = [shape[1] for shape in shapes.values()]
        for stage in self.trained:
            stage.requires_grad_(True)

    def extra_repr(self) -> str:
        return f"layers={self.layers}"  # which a cache's key has to tell apart: the network is the same

    def _shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each layer's output for one image of this size."""
        return {name: tuple(output.shape) for name, output in self.network(torch.zeros(1, 3, size, size)).items()}

    def train(self, mode: bool = True) -> FeatureMaps:
        super().train(False)
        for stage in self.trained:
            stage.train(mode)
        return self

    def last_blocks(self, most: int) -> tuple[nn.Module, nn.Module]:
        """Return two networks that lead from the map of the last layer but one to the last layer's, one after another.

        The second one has the backbone's last blocks, as many as have ``most`` parameters in all, but at least one. The
        modules of both are this network's own.

        Raises:
            LabError: there is one layer, or the last one's map is not made of that of the one before alone.
        """
        best = None
        ends = [_result(self.network).get(name) for name in self.layers[-2:]]
        whole = _between(self.network, *ends) if len(ends) == 2 else None
        for first in [] if whole is None else _first_of_blocks(whole)[::-1]:
            assert whole is not None
            begin = first.all_input_nodes[0]
            before = _between(whole, next(iter(whole.graph.nodes)), begin)
            blocks = _between(whole, begin, _result(whole))
            if before is None or blocks is None:
                continue
            if best is not None and sum(p.numel() for p in blocks.parameters()) > most:
                break
            best = before, blocks
        if best is None:
            raise LabError(
                f"the map of {self.layers[-1]} is not made of that of the layer before alone: its blocks cannot be "
                "trained by themselves: name other layers in model.options.layers"
            )
        return best

    def forward(self, images: Tensor) -> list[Tensor]:
        any_size = torch.compiler.is_compiling() or type(images) is not Tensor  # of the batch
        if any_size or self.trained or images.device.type != "cpu":
            return [output.float() for output in self.network(images).values()]
        parts = images.split(max(1, PART // images[0, 0].numel()))
        return [torch.cat(outputs).float() for outputs in zip(*(self.network(p).values() for p in parts), strict=True)]


def _between(network: fx.GraphModule, start: fx.Node, end: fx.Node) -> fx.GraphModule | None:
    """Return what leads from one node of a network to another, or None where more than the first one does."""
    graph = fx.Graph()
    copies = {start: graph.placeholder("map")}
    for node in network.graph.nodes:
        inputs = node.all_input_nodes
        known = node.op == "get_attr" or (inputs and all(given in copies for given in inputs))
        if node not in copies and known and node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    if end not in copies:
        return None
    graph.output(copies[end])
    part = fx.GraphModule(network, graph)
    part.graph.eliminate_dead_code()
    part.delete_all_unused_submodules()
    part.recompile()
    return part.eval()


def _result(network: fx.GraphModule) -> Any:
    """Return the node that a network's output is, or the nodes of several by their names."""
    return next(node for node in network.graph.nodes if node.op == "output").args[0]


def _first_of_blocks(network: fx.GraphModule) -> list[fx.Node]:
    """Return the first node of each block that has weights of its own: a norm or an activation begins none."""
    blocks: dict[str, fx.Node] = {}
    for node in network.graph.nodes:
        if node.op == "call_module":
            weights = any(p.ndim > 1 for p in network.get_submodule(node.target).parameters())
            name = _outermost([node.target])[0]
            if weights or name in blocks:
                blocks.setdefault(name, node)
    return list(blocks.values())


# A sweep builds the same network for each of its runs, and follows it a first time here.
@cache
def _nodes(backbone: str) -> list[str]:
    """Return the names of a backbone's nodes.

    Raises:
        LabError: it cannot be traced.
    """
    network = _random(backbone)
    try:
        return get_graph_node_names(network)[1]
    except Exception as error:  # torch.fx may fail in any way on a network that it cannot follow
        raise LabError(f"the layers of {backbone} cannot be told apart: choose another backbone") from error


@cache
@torch.no_grad()
def _last(backbone: str, cells: tuple[int, ...]) -> list[str]:
    """Return the last whole module with each of these cells, not counting a lone convolution of single cells.

    That one widens the last map for the classifier of another data set: MobileNetV2's from 320 channels to 1,280.
    """
    network = _random(backbone)
    modules = dict(network.named_modules())
    whole = [name for name in _outermost(_nodes(backbone)) if name in modules and not _widens(modules[name])]
    by_cell: dict[int, str] = {}
    images = torch.zeros(1, 3, 224, 224, device="cpu")
    outputs = create_feature_extractor(network, {name: name for name in whole})(images)
    for name, output in outputs.items():
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3]:
            by_cell[round(224 / output.shape[2])] = name
    if lacking := [cell for cell in cells if cell not in by_cell]:
        raise LabError(
            f"{backbone} has no map with cells of {lacking[0]} pixels: give a convolutional backbone (mobilenet_v2, "
            "resnet50, convnext_tiny; a transformer gives tokens), or name layers of it in model.options.layers"
        )
    return [by_cell[cell] for cell in cells]


def _random(backbone: str) -> nn.Module:
    """Return a backbone with random weights, without a number of the run's own generator."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return pretrained(backbone, None).eval()


def _widens(module: nn.Module) -> bool:
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    return len(convolutions) == 1 and convolutions[0].kernel_size == (1, 1)


def _outermost(known: Sequence[str]) -> list[str]:
    """Return each node's name down to its first number, ``features.6``, or its first part if it has no number."""
    names = []
    for node in known:
        parts = node.split(".")
        stop = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
        names.append(".".join(parts[: stop + 1]))
    return list(dict.fromkeys(names))


@torch.no_grad()
def of_each(network: nn.Module, images: Tensor) -> Tensor:
    """Return what a network makes of images: of each alone, and channels last, whatever batch it comes from.

    More at once, or another order in memory, take other kernels, which round in another way. So does mixed precision,
    which is for training: in it the network gets single precision nevertheless.
    """
    with torch.autocast(images.device.type, enabled=False):
        return torch.cat([network(one.contiguous(memory_format=torch.channels_last)) for one in images.split(1)])


@torch.no_grad()
def of_views(network: nn.Module, image: Tensor, numbers: Sequence[int]) -> Tensor:
    """Return what a network makes of some views of an image [1, 3, S, S], a row for each, as ``of_each`` does.

    A network that looks at the image itself, whatever the view, has a method of this name, which is asked.

    Args:
        numbers: of the views (``models.views.view``).
    """
    own = getattr(network, "of_views", None)
    if own is None:
        return of_each(network, torch.cat([view(image, number) for number in numbers]))
    with torch.autocast(image.device.type, enabled=False):
        return own(image.contiguous(memory_format=torch.channels_last), numbers)


class Joined(nn.Module):
    """Give what several networks make of images as one row per image. The cache keeps what each makes apart.

    So another network beside the same encoder does not have the encoder's maps computed and kept again.

    Args:
        parts: networks of images [N, 3, S, S] that give [N, ...], float32.
    """

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([part(images).flatten(1) for part in self.parts], dim=1)

    def of_views(self, image: Tensor, numbers: Sequence[int]) -> Tensor:
        """Return its rows of some views of an image, as the function ``of_views`` does."""
        return torch.cat([of_views(part, image, numbers).flatten(1) for part in self.parts], dim=1)


class Flat(nn.Module):
    """Give the maps of a network that returns several as one row per image, which a cache can keep.

    Args:
        network: images [N, 3, S, S] to maps [N, C, H, W].
        size: S, pixels.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            maps = network(torch.zeros(1, 3, size, size))
        self.shapes = [tuple(each.shape[1:]) for each in maps]
        self.width = sum(each[0].numel() for each in maps)

    def forward(self, images: Tensor) -> Tensor:
        # Channels last: so convolutions read them fastest.
        return torch.cat([each.permute(0, 2, 3, 1).flatten(1) for each in self.network(images)], dim=1)

    def maps(self, rows: Tensor) -> list[Tensor]:
        """Return the maps [N, C, H, W] of rows."""
        parts = rows.split([c * h * w for c, h, w in self.shapes], dim=1)
        return [part.unflatten(1, (h, w, c)).permute(0, 3, 1, 2) for part, (c, h, w) in zip(parts, self.shapes)]  # noqa: B905
