"""Text embeddings of class names: read from a file, made by CLIP, or replaced by stand-ins."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mvtec_lab.errors import LabError
from mvtec_lab.results import write_whole

DIM = 512  # of CLIP ViT-B/32, which YOLO-World's published weights were trained with
CLIP = "ViT-B-32-quickgelu"
_MAKE = "python -m mvtec_lab.problems.detection.methods.yolo_world FILE.npz NAME ... makes one"


def read_embeddings(path: str | os.PathLike[str], classes: Sequence[str]) -> np.ndarray:
    """Return the embeddings of classes from a file that ``write_embeddings`` wrote.

    Args:
        path: .npz with ``names`` [N] and ``embeddings`` [N, 512], each of length one, in any order; it may name more.

    Returns:
        float32 [C, 512].

    Raises:
        LabError: the file is missing, damaged or of another shape, or lacks a class.
    """
    said = f"model.text_embeddings={path}"
    try:
        with np.load(Path(path).expanduser(), allow_pickle=False) as content:
            names, embeddings = content["names"], content["embeddings"]
    except OSError as error:
        raise LabError(f"{said} cannot be read ({error.strerror or error}): {_MAKE}") from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:100]
        raise LabError(f"{said} is no .npz with names and embeddings ({reason}): {_MAKE}") from error
    if names.ndim != 1 or names.dtype.kind != "U" or embeddings.shape != (len(names), DIM):
        raise LabError(
            f"{said} holds names {list(names.shape)} and embeddings {list(embeddings.shape)}, not [N] texts and "
            f"[N, {DIM}]: {_MAKE}"
        )
    rows = {str(name): i for i, name in enumerate(names)}
    if len(rows) < len(names):
        raise LabError(f"{said} names a class twice: {_MAKE}")
    if lacking := [name for name in classes if name not in rows]:
        raise LabError(f"{said} has no embedding of {lacking[0]!r}, only of {', '.join(rows)[:200]}: {_MAKE}")
    wanted = embeddings[[rows[name] for name in classes]].astype(np.float32)
    lengths = np.linalg.norm(wanted, axis=1)
    if wrong := [i for i, length in enumerate(lengths) if not abs(length - 1) < 1e-2]:  # true of NaN; half precision
        raise LabError(
            f"{said}: the embedding of {classes[wrong[0]]!r} has length {lengths[wrong[0]]:.3g}, not 1: divide by it"
        )
    return wanted / lengths[:, None]


def write_embeddings(path: str | os.PathLike[str], embeddings: Mapping[str, np.ndarray]) -> None:
    """Write a file for ``read_embeddings``: vectors [512] by class name, scaled to length one."""
    vectors = np.stack(list(embeddings.values())).astype(np.float32)
    file = io.BytesIO()
    np.savez(
        file, names=np.array(list(embeddings)), embeddings=vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    )
    write_whole(Path(path), file.getbuffer())


def stand_ins(classes: Sequence[str]) -> np.ndarray:
    """Return a random vector of length one for each class, always the same for a name: float32 [C, 512].

    Two of them are nearly at right angles, so classes can be told apart; they say nothing about what a name means.
    """
    seeds = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in classes]
    vectors = np.stack([np.random.default_rng(seed).standard_normal(DIM) for seed in seeds])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def embed(texts: Sequence[str], weights: str = "openai") -> np.ndarray:
    """Return CLIP ViT-B/32's embeddings of texts, by the package open_clip: float32 [N, 512], each of length one.

    Args:
        weights: a file, or ``openai``: fetched by open_clip where it is not cached.

    Raises:
        LabError: open_clip is not installed, or the weights cannot be loaded.
    """
    try:
        import open_clip
    except ImportError as error:
        raise LabError(
            "text embeddings need CLIP by the package open_clip, which is not installed: pip install open-clip-torch"
        ) from error
    import torch

    try:
        model = open_clip.create_model(CLIP, pretrained=weights).eval()
    except Exception as error:  # of the network, of the file, or of open_clip
        reason = " ".join(str(error).split())[:200]
        raise LabError(
            f"CLIP's weights {weights} cannot be loaded ({reason}): give a file of {CLIP} by --weights FILE"
        ) from error
    with torch.no_grad():
        vectors = model.encode_text(open_clip.get_tokenizer(CLIP)(list(texts)))
    return torch.nn.functional.normalize(vectors.float()).numpy()
