"""Know the names of albumentations' transforms without importing it: a typo is answered at once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from mvtec_lab.errors import unknown
from mvtec_lab.registry import written

_CLASS = re.compile(r"^class ((?!Base)\w+)\(", re.MULTILINE)


@cache
def class_names() -> frozenset[str]:
    """Return the names of albumentations' classes, among them every transform; empty where they are not found."""
    names = frozenset(written("albumentations", "**/*.py", _CLASS))
    return names if "Rotate" in names else frozenset()


def look(transforms: Iterable[str]) -> None:
    """Refuse a name that albumentations does not have.

    Raises:
        LabError: the first one, with the near misses.
    """
    for name in transforms:
        if (known := class_names()) and name not in known:
            raise unknown("albumentations transform", name, known)
