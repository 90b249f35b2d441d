"""Search what is remembered of good images: the nearest rows of a bank, anywhere or near a place, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from mvtec_lab.errors import LabError

SEARCH_BYTES = 2**26  # what a search may hold beside its arguments, unless a single query takes more
CACHE_BYTES = 2**20  # of patches that are searched at once: they stay in a core's cache from image to image


def nearest(queries: Tensor, bank: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Return the Euclidean distances [N, k] to the k nearest rows of bank [M, D], and their indices [N, k].

    The nearest row comes first. A matrix product finds the rows, in parts that bound the memory; the differences
    measure the distances, which loses no digits.
    """
    norms = bank.square().sum(1)
    rows = max(1, SEARCH_BYTES // (4 * (len(bank) + k * bank.shape[1])))
    parts = []
    # An exported file takes any number of queries: none of its sizes may depend on it.
    for part in (queries,) if torch.compiler.is_compiling() else queries.split(rows):
        squares = torch.addmm(norms, part, bank.T, alpha=-2)  # without the query's own norm, which is the same for all
        indices = squares.argmin(1, keepdim=True) if k == 1 else squares.topk(k, largest=False).indices
        distances, order = (part[:, None] - bank[indices]).square().sum(2).sqrt().sort(dim=1)
        parts.append((distances, indices.gather(1, order)))
    return torch.cat([distances for distances, _ in parts]), torch.cat([indices for _, indices in parts])


def nearest_in_place(
    queries: Tensor, bank: Tensor, radius: int = 1, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return how far cells are from the nearest good patch at their place or beside it, and which patch that is.

    Matrix products at each place find the patches; the differences measure the distances, which loses no digits. Each
    image is multiplied alone, so that its distances are the same, bit for bit, in a batch of any size.

    Args:
        queries: [N, H, W, C] float32, the cells of images.
        bank: [H, W, M, C] float32 or float16: M patches at each place.
        radius: how many cells away, in each direction, a patch may lie.
        hidden: patches that are no candidates, [H, W, M] bool; None: all are.

    Returns:
        Euclidean distances [N, H, W], and the patches' indices [N, H, W] in ``bank.flatten(0, 2)``. Where there is no
        candidate, the distance is infinite.
    """
    height, width, count = bank.shape[:3]
    radius = min(radius, max(height, width) - 1)
    side = 2 * radius + 1
    around = F.pad(queries, (0, 0, radius, radius, radius, radius))
    whole = torch.compiler.is_compiling()  # an exported file takes any number of images: no size may depend on it
    batch = max(1, SEARCH_BYTES // (32 * height * width * side**2))  # values and indices, of places and of queries
    if not whole and len(queries) > batch:
        results = [nearest_in_place(images, bank, radius, hidden) for images in queries.split(batch)]
        return torch.cat([distances for distances, _ in results]), torch.cat([indices for _, indices in results])
    parts = []
    for rows, columns in ((slice(0, height), slice(0, width)),) if whole else _blocks(bank, side**2):
        patches = bank[rows, columns].flatten(0, 1).float()  # [places, M, C]
        norms = patches.square().sum(2)
        norms = norms if hidden is None else norms.masked_fill(hidden[rows, columns].flatten(0, 1), torch.inf)
        cells = around[:, rows.start : rows.stop + 2 * radius, columns.start : columns.stop + 2 * radius]
        least = [_least(images, patches, norms, side) for images in ((cells,) if whole else cells.split(1))]
        parts.append([torch.cat(of_images) for of_images in zip(*least, strict=True)])
    of_places = [torch.cat(of_blocks, 1).unflatten(1, (height, width)) for of_blocks in zip(*parts, strict=True)]
    first = count * torch.arange(height * width, device=bank.device).view(height, width, 1)

    def by_query(values: Tensor, beyond: float) -> Tensor:
        """Turn what each place has of the queries around it into what each query has of the places around it."""
        padded = F.pad(values, (0, 0, radius, radius, radius, radius), value=beyond)
        turned = padded.flip(3).unflatten(3, (side, side))
        cut = [turned[:, y : y + height, x : x + width, y, x] for y in range(side) for x in range(side)]
        return torch.stack(cut, 3)

    squares, place = by_query(of_places[0], torch.inf).min(3, keepdim=True)
    indices = by_query(of_places[1] + first, 0).gather(3, place)[..., 0]
    distances = (queries - bank.flatten(0, 2)[indices].float()).square().sum(3).sqrt()
    return torch.where(squares[..., 0] < torch.inf, distances, torch.inf), indices


def _least(images: Tensor, patches: Tensor, norms: Tensor, side: int) -> list[Tensor]:
    """Return the least squared distance, up to a query's own norm, of a place's patches from each query around it.

    The patches of a place are multiplied with all queries around it, not a query with all patches around it: so a patch
    is read once.

    Args:
        images: [N, h + side - 1, w + side - 1, C], queries with what lies around them.
        patches: [h x w, M, C], and their squared norms, [h x w, M].

    Returns:
        The squares and the patches' numbers, [N, h x w, side x side].
    """
    height, width = (length - side + 1 for length in images.shape[1:3])
    shifted = [images[:, y : y + height, x : x + width] for y in range(side) for x in range(side)]
    queries = torch.stack(shifted, 3).movedim(0, 2).flatten(0, 1).flatten(1, 2)  # [places, images x shifts, C]
    squares = torch.baddbmm(norms[:, None], queries, patches.transpose(1, 2), alpha=-2)
    return [values.view(len(patches), -1, side * side).transpose(0, 1) for values in squares.min(2)]


def _blocks(bank: Tensor, queries: int = 1) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of the places of a bank [H, W, M, C], in order: whole rows, or parts of a row.

    In single precision the patches of a block fit into a core's cache, and what is computed of so many queries at each
    place into ``SEARCH_BYTES``; a block has one place at least.
    """
    height, width, count, channels = bank.shape
    room = SEARCH_BYTES // (4 * queries * (count + channels))
    places = max(1, min(CACHE_BYTES // (4 * count * channels), room))
    rows, columns = max(1, places // width), min(places, width)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield slice(top, min(top + rows, height)), slice(left, min(left + columns, width))


def in_places(maps: Tensor, shown: Tensor | None = None) -> Tensor:
    """Return the patches of good images by place: maps [M, C, H, W] as a bank [H, W, M, C].

    Args:
        shown: which cells show the images, [M, H, W] bool; None: all do. The others hold copies: of the place's patches
            in other images, or of those at the nearest place that an image shows.
    """
    bank = maps.permute(2, 3, 0, 1)
    if shown is None:
        return bank.contiguous()
    height, width, count = bank.shape[:3]
    seen = shown.flatten(1).T  # [places, M]
    home = torch.arange(len(seen), device=seen.device)
    if not seen.any(1).all():
        places = torch.stack([home // width, home % width], 1).float()
        known = seen.any(1).nonzero()[:, 0]
        home = known[nearest(places, places[known])[1][:, 0]]
    order = seen.byte().argsort(dim=1, descending=True, stable=True)[home]
    turns = torch.arange(count, device=seen.device) % seen.sum(1)[home, None]
    return bank.flatten(0, 1)[home[:, None], order.gather(1, turns)].unflatten(0, (height, width))


def thinned(bank: Tensor, count: int) -> Tensor:
    """Return count patches at each place of a bank [H, W, M, C], greedily: each is the farthest from those before.

    This is k-center; the first one is the farthest from the mean. A bank with no more patches is returned as it is.
    """
    if bank.shape[2] <= count:
        return bank
    kept = bank.new_empty(*bank.shape[:2], count, bank.shape[3])
    for rows, columns in _blocks(bank):
        part = bank[rows, columns].flatten(0, 1)
        points = part.float()  # [places, M, C]
        places = torch.arange(len(points), device=bank.device)
        farthest = (points - points.mean(1, keepdim=True)).square().sum(2).argmax(1)
        squares = torch.full(points.shape[:2], torch.inf, device=bank.device)
        for turn in range(count):
            kept[rows, columns, turn] = part[places, farthest].view(*kept[rows, columns, turn].shape)
            newest = points[places, farthest][:, None]
            squares = torch.minimum(squares, (points - newest).square().sum(2))
            squares[places, farthest] = -1  # never again, not even where all rows are equal
            farthest = squares.argmax(1)
    return kept


def require_memory(needed: int, device: torch.device, what: str, remedy: str) -> None:
    """Refuse what needs more memory than is free.

    Args:
        needed: bytes.
        device: where they are needed.
        what: what needs them, and ``remedy`` how to need fewer, for the error line.

    Raises:
        LabError: fewer bytes are free.
    """
    gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if gpu else psutil.virtual_memory().available
    if needed > free:
        raise LabError(f"{what} take about {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free: {remedy}")
