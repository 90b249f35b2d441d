"""Names of a kind (backbones, losses, methods ...): the lab's own, those registered in Python, those of packages."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from mvtec_lab.errors import LabError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from names to values, which are imported when they are asked for.

    An installed package adds a name by an entry point ``name = "package.module:object"`` in the group
    ``mvtec_lab.<kind>s``, so that every process of a sweep knows it; plain Python adds one by ``register``.

    Args:
        kind: what a name stands for, as error lines say it: ``backbone``.
        known: the lab's own, as values or as ``module:attribute``.
        require: the attributes that every value has; one that lacks some is refused.
    """

    def __init__(self, kind: str, known: Mapping[str, T | str] | None = None, require: Iterable[str] = ()) -> None:
        self.kind, self.group = kind, f"mvtec_lab.{kind.replace(' ', '_')}s"
        self.require = tuple(require)
        self._own: dict[str, T | str] = dict(known or {})
        self._packages: dict[str, EntryPoint] | None = None  # found when a name is first looked for

    def register(self, name: str, value: T) -> T:
        """Add a name and return its value.

        Raises:
            LabError: the name is taken by another value, or the value lacks what every value of this kind has.
        """
        taken = self._own.get(name, self._of_packages().get(name))
        if taken is not None and taken is not value:
            raise LabError(f"two registrations of the {self.kind} {name!r}: {_origin(taken)} and {_origin(value)}")
        self._own[name] = self._checked(name, value)
        return value

    def decorator(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates."""
        return lambda value: self.register(name, value)

    def names(self) -> list[str]:
        """Return every name, sorted."""
        return sorted({*self._own, *self._of_packages()})

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._of_packages()

    def __getitem__(self, name: str) -> T:
        """Return the value of a name.

        Raises:
            LabError: an unknown name, with near misses; an entry point that cannot be imported, or whose value lacks
                what every value of this kind has.
        """
        value: Any = self._own.get(name)
        if isinstance(value, str):
            module, _, attribute = value.partition(":")
            value = self._own[name] = getattr(importlib.import_module(module), attribute)
        if value is None:
            if name not in self._of_packages():
                raise unknown(self.kind, name, self.names())
            point = self._of_packages()[name]
            try:
                value = point.load()
            except Exception as error:  # a package's own code may fail in any way
                raise LabError(
                    f"the {self.kind} {name!r} of {_origin(point)} cannot be imported "
                    f"({type(error).__name__}: {error}): repair or uninstall that package"
                ) from error
            self._own[name] = self._checked(name, value)
        return value

    def _checked(self, name: str, value: T) -> T:
        if lacking := [attribute for attribute in self.require if not hasattr(value, attribute)]:
            raise LabError(f"the {self.kind} {name!r} ({_origin(value)}) has no {', '.join(lacking)}")
        return value

    def _of_packages(self) -> dict[str, EntryPoint]:
        if self._packages is None:
            found: dict[str, EntryPoint] = {}
            for point in entry_points(group=self.group):
                other = found.get(point.name, self._own.get(point.name))
                if other is not None and getattr(other, "value", None) != point.value:
                    raise LabError(
                        f"two registrations of the {self.kind} {point.name!r}: {_origin(other)} and {_origin(point)}: "
                        "uninstall one of the packages"
                    )
                found[point.name] = point
            self._packages = found
        return self._packages


def _origin(value: Any) -> str:
    """Say where a value comes from."""
    if isinstance(value, EntryPoint):
        return f"{value.value} ({value.dist.name if value.dist else 'a package'})"
    if isinstance(value, str):
        return value
    return (
        f"{getattr(value, '__module__', type(value).__module__)}:{getattr(value, '__qualname__', type(value).__name__)}"
    )
