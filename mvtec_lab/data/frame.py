"""The square that images of any size are brought into: what networks see, and what masks, boxes and maps refer to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    """Say how an image of any size becomes a square picture.

    Args:
        size: S, pixels a side of the square.
        tile: pixels a side of the tiles that a large image is cut into, each a picture of its own; None: it is not cut.
    """

    size: int = 224
    tile: int | None = None

    @classmethod
    def of(cls, size: int | Frame) -> Frame:
        """Return a frame of this size, or the frame itself."""
        return size if isinstance(size, Frame) else cls(size)

    def __str__(self) -> str:  # names entries of the cache
        return str(self.size)
