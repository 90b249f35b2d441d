"""Segment Anything: MobileSAM, SAM's ViT-B, L and H, and SAM 2 (Ravi et al., 2024) on images, from a file.

The image encoders of MobileSAM and SAM 2 are timm's TinyViT and HieraDet; the ViT encoders, prompt encoder and mask
decoder are the package segment-anything's. Both come with the extra ``sam``. Nothing of the file is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.errors import LabError
from mvtec_lab.models.finite import not_finite
from mvtec_lab.models.weights import fetch_file, load_file

CELL = 16  # pixels of a side of an embedding's cell, in every SAM
MOBILE_SAM = "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt"
MOBILE_SAM_SHA256 = "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"
PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
_HEADS = 8  # of the mask decoder's attention in every SAM: the state dict does not show them
# timm's names of MobileSAM's parts. In timm a stage begins with the downsampling that ends one in MobileSAM.
_NAMES = (
    (r"^image_encoder\.patch_embed\.seq\.0\.", "image_encoder.patch_embed.conv1."),
    (r"^image_encoder\.patch_embed\.seq\.2\.", "image_encoder.patch_embed.conv2."),
    (r"^(image_encoder)\.layers\.(\d+)\.downsample\.", lambda m: f"{m[1]}.stages.{int(m[2]) + 1}.downsample."),
    (r"^image_encoder\.layers\.", "image_encoder.stages."),
    (r"^(image_encoder\..*)\.c\.weight$", r"\1.conv.weight"),
)
# SAM 2 has the names of its own code. What is there for videos alone is not used.
_NAMES_2 = (
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.conv_s(\d)\.", r"image_encoder.fine.\1."),
    (r"^sam_mask_decoder\.obj_score_token\.", "object_token."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^no_mem_embed$", "image_encoder.still"),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"image_encoder.neck.\1."),
    (r"^(image_encoder\..*\.mlp)\.layers\.0\.", r"\1.fc1."),
    (r"^(image_encoder\..*\.mlp)\.layers\.1\.", r"\1.fc2."),
    (r"^(mask_decoder\.transformer\..*\.mlp)\.layers\.0\.", r"\1.lin1."),
    (r"^(mask_decoder\.transformer\..*\.mlp)\.layers\.1\.", r"\1.lin2."),
)
# timm's names of SAM 2's encoders, by channels and blocks: a state dict shows neither heads nor windows.
HIERAS: dict[tuple[int, int], dict[str, Any]] = {
    (96, 12): {"model_name": "sam2_hiera_tiny"},
    (96, 16): {"model_name": "sam2_hiera_small"},
    (112, 24): {"model_name": "sam2_hiera_base_plus"},
    (144, 48): {"model_name": "sam2_hiera_large"},
}
_OF_EVERY_VIT = {"use_rel_pos": True, "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
_UNUSED = re.compile(  # of classification; constants; of videos
    r"image_encoder\.(norm_head|head)\.|.*\.attention_bias_idxs$|memory_|maskmem_|no_mem_pos|obj_ptr|no_obj|"
    r"mask_downsample\.|sam_mask_decoder\.pred_obj"
)


@dataclass(frozen=True)
class Architecture:
    """Hold the numbers that a SAM is built from; ``of`` reads them from a state dict.

    Args:
        encoder: arguments of the image encoder.
        kind: of image encoder: ``tiny_vit``, ``vit`` or ``hiera``, which is SAM 2's.
        dim: channels of the embedding, and of all prompts.
        depth, width: layers of the mask decoder's transformer, and channels inside their MLPs.
        iou_depth, iou_width: the same of the head that predicts a mask's quality.
        mask_dim: channels of the first layers that read a mask prompt.
    """

    encoder: Mapping[str, Any]
    kind: str = "tiny_vit"
    dim: int = 256
    depth: int = 2
    width: int = 2048
    iou_depth: int = 3
    iou_width: int = 256
    mask_dim: int = 16

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Architecture:
        """Return the architecture of a state dict with the names that ``renamed`` gives.

        Raises:
            KeyError: a part is missing.
        """
        shape = {name: tuple(value.shape) for name, value in state.items()}
        first = {"tiny_vit": "image_encoder.patch_embed.conv1.conv.weight", "hiera": "image_encoder.trunk.pos_embed"}
        kind = next((kind for kind, name in first.items() if name in shape), "vit")
        decoder = "mask_decoder.transformer.layers"
        return cls(
            encoder={"tiny_vit": _tiny_vit, "hiera": _hiera, "vit": _vit}[kind](shape),
            kind=kind,
            dim=shape["mask_decoder.iou_token.weight"][1],
            depth=_count(shape, decoder),
            width=shape[f"{decoder}.0.mlp.lin1.weight"][0],
            iou_depth=_count(shape, "mask_decoder.iou_prediction_head.layers"),
            iou_width=shape["mask_decoder.iou_prediction_head.layers.0.weight"][0],
            mask_dim=shape["prompt_encoder.mask_downscaling.3.weight"][0],
        )


class Sam(nn.Module):
    """Segment what prompts point at.

    The image encoder is frozen and always in eval mode; the parts of the mask decoder that give other masks are frozen.
    Prompts and masks are in the pixels of the square images.

    Args:
        architecture: as ``Architecture.of`` reads it.
        image_size: pixels a side of the images, a multiple of 16. The weights are made for 1024.

    Raises:
        LabError: another size, or the extra ``sam`` is not installed.
    """

    def __init__(self, architecture: Architecture, image_size: int = 1024) -> None:
        super().__init__()
        if image_size % CELL:
            raise LabError(f"data.image_size={image_size} does not suit SAM: give a multiple of {CELL}, as 512 or 1024")
        a, parts = architecture, _library("segment_anything.modeling")
        self.architecture, self.image_size = architecture, image_size
        side = image_size // CELL
        if a.kind == "vit":
            self.image_encoder = parts.ImageEncoderViT(**a.encoder, **_OF_EVERY_VIT)
        else:
            self.image_encoder = _Hiera(a) if a.kind == "hiera" else _TinyViT(a)
        self.prompt_encoder = parts.PromptEncoder(a.dim, (side, side), (image_size, image_size), a.mask_dim)
        self.mask_decoder = parts.MaskDecoder(
            transformer_dim=a.dim,
            transformer=parts.TwoWayTransformer(a.depth, a.dim, _HEADS, a.width),
            iou_head_depth=a.iou_depth,
            iou_head_hidden_dim=a.iou_width,
        )
        self.object_token = nn.Embedding(1, a.dim) if a.kind == "hiera" else None
        self.image_encoder.requires_grad_(False)
        # Only the first mask is used, and not how good it is said to be: what has no gradient must not train.
        decoder: Any = self.mask_decoder
        for unused in (decoder.iou_prediction_head, decoder.output_hypernetworks_mlps[1:]):
            unused.requires_grad_(False)

    def train(self, mode: bool = True) -> Sam:
        super().train(mode)
        self.image_encoder.eval()  # it has batch normalisation
        return self

    @property
    def channels(self) -> list[int]:
        """Return the channels of what ``encode`` gives."""
        a = self.architecture
        finer = {"tiny_vit": lambda: a.encoder["embed_dims"][:2], "hiera": lambda: (a.dim // 8, a.dim // 4)}
        return [*(finer[a.kind]() if a.kind in finer else ()), a.dim]

    @property
    def maps(self) -> Maps:
        """Return the network of ``encode``."""
        return Maps(self.image_encoder, self.architecture.kind)

    @torch.no_grad()
    def encode(self, images: Tensor) -> list[Tensor]:
        """Return maps of normalised images [N, 3, S, S]; the last is the embedding [N, C, S / 16, S / 16].

        Before it come MobileSAM's first two stages, or what SAM 2's decoder reads, in cells of 4 and 8 pixels.
        """
        return self.maps(images)

    def decode(
        self,
        maps: Sequence[Tensor],
        *,
        boxes: Tensor | None = None,
        points: Tensor | None = None,
        masks: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """Return a mask's logits for each prompt, [K, S / 4, S / 4].

        Args:
            maps: what ``encode`` gives of one image, [C, h, w] each.
            boxes: [K, 4], x0, y0, x1, y1.
            points: [K, 2], x, y: each is a prompt of its own, inside the object.
            masks: [K, 1, S / 4, S / 4], logits of what is roughly the object.
            tokens: [T, C], further prompts that belong to each of the K.
        """
        labelled = None if points is None else (points[:, None], points.new_ones(len(points), 1))
        sparse, dense = self.prompt_encoder(labelled, boxes, masks)
        if boxes is not None and self.object_token is not None:  # SAM 2 ends boxes, too, with a point that is none
            nowhere = self.prompt_encoder.not_a_point_embed.weight
            tokens = nowhere if tokens is None else torch.cat([nowhere, tokens])
        if tokens is not None:
            sparse = torch.cat([sparse, tokens.expand(len(sparse), -1, -1)], dim=1)
        places = self.prompt_encoder.get_dense_pe()
        if self.object_token is not None:
            return self._decode_2(maps, places, sparse, dense)
        return self.mask_decoder(maps[-1][None], places, sparse, dense, False)[0][:, 0]

    def _decode_2(self, maps: Sequence[Tensor], places: Tensor, sparse: Tensor, dense: Tensor) -> Tensor:
        """Run the mask decoder as SAM 2 does, with a token of the object and the finer maps; only the first mask."""
        decoder: Any = self.mask_decoder
        assert self.object_token is not None
        fine, finer = maps[1], maps[0]
        own = torch.cat([self.object_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
        queries = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
        source = maps[-1] + dense
        answers, tokens = decoder.transformer(source, places.expand(len(source), -1, -1, -1), queries)
        up, norm, bend, up_again, bend_again = decoder.output_upscaling
        grown = bend(norm(up(tokens.transpose(1, 2).unflatten(2, source.shape[-2:])) + fine))
        grown = bend_again(up_again(grown) + finer)
        mask = decoder.output_hypernetworks_mlps[0](answers[:, 2])  # after the object's and the quality's
        return torch.einsum("kc,kchw->khw", mask, grown)


class Maps(nn.Module):
    """Turn normalised images [N, 3, S, S] into maps as ``Sam.encode`` does; in eval mode, where batches do not matter.

    Args:
        encoder: a Sam's image encoder.
        kind: of it, as in ``Architecture``.
    """

    def __init__(self, encoder: nn.Module, kind: str) -> None:
        super().__init__()
        self.encoder, self.kind = encoder, kind

    def forward(self, images: Tensor) -> list[Tensor]:
        images = images.contiguous(memory_format=torch.channels_last)  # other kernels round in another way
        return [self._of_vit(images)] if self.kind == "vit" else self.encoder(images)

    def _of_vit(self, images: Tensor) -> Tensor:
        """Run ImageEncoderViT with its positions resized to the images; it resizes the relative ones itself."""
        encoder: Any = self.encoder
        tokens, places = encoder.patch_embed(images), encoder.pos_embed
        if places.shape[1:3] != tokens.shape[1:3]:
            places = F.interpolate(places.permute(0, 3, 1, 2), tokens.shape[1:3], mode="bicubic").permute(0, 2, 3, 1)
        tokens = tokens + places
        for block in encoder.blocks:
            tokens = block(tokens)
        return encoder.neck(tokens.permute(0, 3, 1, 2))


class _TinyViT(nn.Module):
    """MobileSAM's image encoder: timm's TinyViT, whose last stage keeps the resolution, and SAM's neck."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        norm: Any = _library("segment_anything.modeling.common").LayerNorm2d
        network: Any = _library("timm").create_model("tiny_vit_5m_224", num_classes=0, **architecture.encoder)
        network.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.patch_embed, self.stages = network.patch_embed, network.stages
        inner, outer = architecture.encoder["embed_dims"][-1], architecture.dim
        self.neck = nn.Sequential(
            nn.Conv2d(inner, outer, 1, bias=False),
            norm(outer),
            nn.Conv2d(outer, outer, 3, padding=1, bias=False),
            norm(outer),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.patch_embed(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [maps[1], maps[2], self.neck(maps[-1])]


class _Hiera(nn.Module):
    """SAM 2's image encoder: timm's HieraDet, SAM 2's neck, and what its decoder reads of finer maps."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.trunk: Any = _library("timm").create_model(num_classes=0, **architecture.encoder)
        self.trunk.head = nn.Identity()
        dim, widths = architecture.dim, [info["num_chs"] for info in self.trunk.feature_info]
        self.neck = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in reversed(widths))
        self.fine = nn.ModuleList(nn.Conv2d(dim, dim // part, 1) for part in (8, 4))
        self.still = nn.Parameter(torch.zeros(1, 1, dim))  # an image is a video of one frame, without a memory

    def forward(self, images: Tensor) -> list[Tensor]:
        stages = self.trunk.forward_intermediates(images, intermediates_only=True)
        finest, finer, embedding, coarse = (conv(each) for conv, each in zip(reversed(self.neck), stages, strict=True))
        embedding = embedding + F.interpolate(coarse, embedding.shape[-2:], mode="nearest")
        return [self.fine[0](finest), self.fine[1](finer), embedding + self.still.view(1, -1, 1, 1)]


def load_sam(path: str | None, image_size: int = 1024) -> tuple[Sam, str]:
    """Return a SAM in eval mode with a file's weights, and the file's name.

    Args:
        path: a state dict of MobileSAM, of SAM's ViT-B, L or H or of SAM 2 or 2.1, as published; None: MobileSAM's,
            from its official address, kept in ``TORCH_HOME``.

    Raises:
        LabError: the file is missing, damaged, unsafe or of another architecture; it cannot be fetched; the extra
            ``sam`` is not installed.
    """
    _library("segment_anything"), _library("timm")
    file = fetch_file(MOBILE_SAM, MOBILE_SAM_SHA256, "model.sam_weights=FILE") if path is None else Path(path)
    source = f"model.sam_weights={file}"
    state = load_file(file.expanduser(), source)
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise LabError(f"{source} is not a state dict: give MobileSAM's mobile_sam.pt or SAM's sam_vit_b_01ec64.pth")
    if key := not_finite(state):
        raise LabError(f"{source} holds NaN or infinity in {key}: give another file")
    state, remedy = renamed(state), "give a file of MobileSAM, of SAM's ViT-B, L or H or of SAM 2"
    lacking = [part for part in PARTS if not any(name.startswith(f"{part}.") for name in state)]
    if lacking == list(PARTS):
        raise LabError(f"{source} is no SAM that is known here (it has none of {', '.join(PARTS)}): {remedy}")
    try:
        sam = Sam(Architecture.of(state), image_size)
        lacking = lacking or [name for name in sam.state_dict() if name not in state]
        if not lacking:
            _require_fit(sam, state)
            sam.load_state_dict(state)
    except KeyError as error:  # what an architecture is read from
        lacking = lacking or [error.args[0]]
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise LabError(f"{source} is no SAM that is known here ({reason}): {remedy}") from error
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise LabError(f"{source} is incomplete, it lacks {lacking[0]}{more}: {remedy}, as it was published")
    return sam.eval(), file.name


def _require_fit(sam: Sam, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError for the first tensor that this SAM does not have, or has in another shape."""
    shapes = {name: tuple(value.shape) for name, value in sam.state_dict().items()}
    for name, value in state.items():
        if name not in shapes:
            raise ValueError(f"{name} belongs to none")
        if tuple(value.shape) != shapes[name]:
            raise ValueError(f"{name} has the shape {tuple(value.shape)}, and should have {shapes[name]}")


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state dict with this module's names, and without what is not used."""
    names = {name: name for name in state if not _UNUSED.match(name)}
    mobile, second = "image_encoder.patch_embed.seq.0.c.weight" in names, "image_encoder.trunk.pos_embed" in names
    for pattern, new in _NAMES if mobile else _NAMES_2 if second else ():
        names = {name: re.sub(pattern, new, now) for name, now in names.items()}
    return {now: state[name] for name, now in names.items()}


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise LabError(f'SAM needs {name.split(".")[0]} ({error}): pip install "mvtec_lab[sam]"') from error


def _count(shapes: Mapping[str, Sequence[int]], prefix: str) -> int:
    """Return the number of a list's modules."""
    numbers = [int(name[len(prefix) + 1 :].split(".")[0]) for name in shapes if name.startswith(f"{prefix}.")]
    return max(numbers, default=-1) + 1


def _tiny_vit(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return the arguments of timm's TinyViT."""
    stages = [f"image_encoder.stages.{i}" for i in range(_count(shapes, "image_encoder.stages"))]
    attention = [shapes[f"{stage}.blocks.0.attn.attention_biases"] for stage in stages[1:]]  # heads, window's area
    first = shapes["image_encoder.patch_embed.conv2.conv.weight"][0]
    return {
        "embed_dims": [first, *(shapes[f"{stage}.downsample.conv3.conv.weight"][0] for stage in stages[1:])],
        "depths": [_count(shapes, f"{stage}.blocks") for stage in stages],
        "num_heads": [1, *(heads for heads, _ in attention)],  # the first stage has no attention
        "window_sizes": [1, *(round(area**0.5) for _, area in attention)],
    }


def _hiera(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return the arguments of timm's HieraDet."""
    size = shapes["image_encoder.trunk.patch_embed.proj.weight"][0], _count(shapes, "image_encoder.trunk.blocks")
    if size not in HIERAS:
        raise ValueError("SAM 2 of {} channels and {} blocks".format(*size))
    return HIERAS[size]


def _vit(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return the arguments of segment-anything's ImageEncoderViT that differ between ViT-B, L and H."""
    _, side, _, dim = shapes["image_encoder.pos_embed"]
    blocks = _count(shapes, "image_encoder.blocks")
    spans = [(shapes[f"image_encoder.blocks.{i}.attn.rel_pos_h"][0] + 1) // 2 for i in range(blocks)]
    return {
        "img_size": side * CELL,
        "embed_dim": dim,
        "depth": blocks,
        "num_heads": dim // shapes["image_encoder.blocks.0.attn.rel_pos_h"][1],
        "out_chans": shapes["image_encoder.neck.0.weight"][0],
        "window_size": min(spans),
        "global_attn_indexes": [i for i, span in enumerate(spans) if span == side],
    }
