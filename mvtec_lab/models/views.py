"""The eight views of a square image: mirrored and turned."""

from __future__ import annotations

from torch import Tensor


def view(image: Tensor, number: int) -> Tensor:
    """Return a view [..., S, S] of a square image or map: 0 itself, 1 to 3 mirrored, 4 to 7 these, turned over.

    Bit 0 mirrors left and right, bit 1 top and bottom, bit 2 then swaps rows and columns.
    """
    image = image.flip(-1) if number & 1 else image
    image = image.flip(-2) if number & 2 else image
    return image.transpose(-1, -2) if number & 4 else image


def unviewed(image: Tensor, number: int) -> Tensor:
    """Return the image that ``view`` made this view of."""
    image = image.transpose(-1, -2) if number & 4 else image
    return view(image, number & 3)
