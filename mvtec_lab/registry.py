"""Names of backbones, losses, methods and metrics: the lab's own, those registered in Python, those of packages."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mvtec_lab.errors import LabError, unknown

if TYPE_CHECKING:  # with the package email below it, it is a tenth of what a config error costs
    from importlib.metadata import EntryPoint

T = TypeVar("T")
V = TypeVar("V")


class Registry(Generic[T]):
    """Map names to values, which are imported when they are first used.

    An installed package adds a name by an entry point ``name = "package.module:object"`` in the group
    ``mvtec_lab.backbones`` (``mvtec_lab.losses`` ...). Every process of a sweep then knows the name. ``register`` adds
    a name to this process alone.

    Args:
        kind: what a name stands for, as error lines say it: ``backbone``.
        known: the lab's own names, with their values or with ``module:attribute``.
        require: the attributes that every value has; a value that lacks one is refused.
    """

    def __init__(self, kind: str, known: Mapping[str, T | str] | None = None, require: Iterable[str] = ()) -> None:
        self.kind = kind
        self.group = f"mvtec_lab.{kind.replace(' ', '_')}{'es' if kind.endswith('s') else 's'}"
        self.require = tuple(require)
        self._own: dict[str, T | str] = dict(known or {})
        self._packages: dict[str, EntryPoint] | None = None  # read when a name is not among the lab's own

    def register(self, name: str, value: T) -> T:
        """Add a name and return its value. The same object, or an entry point to it, may be registered again.

        Raises:
            LabError: the name belongs to another value, or the value lacks an attribute that is required.
        """
        taken = self._own.get(name, self._entry_points().get(name))
        if taken is not None and not _same(taken, value):
            raise LabError(
                f"two registrations of the {self.kind} {name!r}: {_origin(taken)} and {_origin(value)}: "
                "give one of them another name"
            )
        self._own[name] = self._checked(name, value)
        return value

    def decorator(self, name: str) -> Callable[[V], V]:
        """Return a decorator that registers a function or class under this name."""

        def register(value: V) -> V:
            self.register(name, value)  # type: ignore[arg-type] # V is a T that keeps its own type
            return value

        return register

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted({*self._own, *self._entry_points()})

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._entry_points()

    def __getitem__(self, name: str) -> T:
        """Return the value of a name.

        Raises:
            LabError: the name is unknown, its entry point cannot be imported, or its value lacks an attribute that is
                required.
        """
        value: Any = self._own.get(name)
        if isinstance(value, str):
            module, _, attribute = value.partition(":")
            value = self._own[name] = getattr(importlib.import_module(module), attribute)
        if value is None:
            point = self._entry_points().get(name)
            if point is None:
                raise unknown(self.kind, name, self.names())
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
            what = "is not callable" if lacking == ["__call__"] else f"has no {', '.join(lacking)}"
            raise LabError(f"the {self.kind} {name!r} ({_origin(value)}) {what}")
        return value

    def _entry_points(self) -> dict[str, EntryPoint]:
        if self._packages is None:
            from importlib.metadata import entry_points

            points: dict[str, EntryPoint] = {}
            for point in entry_points(group=self.group):
                other = points.get(point.name, self._own.get(point.name))
                if other is not None and not _same(other, point):
                    raise LabError(
                        f"two registrations of the {self.kind} {point.name!r}: {_origin(other)} and {_origin(point)}: "
                        "uninstall one of the packages"
                    )
                points[point.name] = point
            self._packages = points
        return self._packages


def written(package: str, files: str, pattern: re.Pattern[str]) -> list[Any]:
    """Return what a pattern finds in a package's source, as ``findall`` does; importing it would take seconds.

    Args:
        package: an installed package; without it, nothing is found.
        files: a glob below its folder.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return []
    sources = (file.read_text(encoding="utf-8") for file in sorted(Path(spec.origin).parent.glob(files)))
    return [match for source in sources for match in pattern.findall(source)]


def _same(one: Any, other: Any) -> bool:
    from importlib.metadata import EntryPoint

    if isinstance(one, EntryPoint) and _home(other) is None:  # an object, perhaps registered by the point's own module
        module = sys.modules.get(one.module)
        return module is not None and getattr(module, one.attr, other) is other
    return one is other or (_home(one) is not None and _home(one) == _home(other))


def _home(value: Any) -> str | None:
    """Return where a function or class is defined, ``module:attribute``; None for another object."""
    from importlib.metadata import EntryPoint

    if isinstance(value, EntryPoint | str):
        return value.value if isinstance(value, EntryPoint) else value
    return f"{value.__module__}:{value.__qualname__}" if hasattr(value, "__qualname__") else None


def _origin(value: Any) -> str:
    """Return where a value comes from, for an error line."""
    from importlib.metadata import EntryPoint

    package = f" ({value.dist.name if value.dist else 'a package'})" if isinstance(value, EntryPoint) else ""
    return (_home(value) or repr(value)) + package
