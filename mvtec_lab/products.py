"""Let a product of a sweep fail alone: a missing folder or a thin category refuses no other product."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mvtec_lab.config import Config
from mvtec_lab.errors import LabError

log = logging.getLogger(__name__)


class Products:
    """Hold the products of a sweep's jobs, and which of the jobs will fail.

    Args:
        configs: of the jobs.
    """

    def __init__(self, configs: Sequence[Config]) -> None:
        self._configs = configs
        self._names = {_key(config): config.data.category or config.data.root or "" for config in configs}
        self._mistakes: dict[int, LabError] = {}  # by the job's place

    @contextmanager
    def alone(self, job: int) -> Iterator[None]:
        """Keep the mistake that a job's check finds where the sweep has other products: the job will say it itself."""
        try:
            yield
        except LabError as error:
            if len(self._names) == 1:
                raise
            self._mistakes[job] = error

    def fails(self, job: int) -> bool:
        """Tell whether a job's check has found a mistake."""
        return job in self._mistakes

    def require_one(self) -> None:
        """Refuse a sweep without a product whose jobs can all run.

        Raises:
            LabError: the first mistake, with the name of its product.
        """
        sound = self._names.keys() - {_key(self._configs[job]) for job in self._mistakes}
        if self._names and not sound:
            job = min(self._mistakes)
            error = self._mistakes[job]
            raise type(error)(f"{self._names[_key(self._configs[job])]}: {error}") from error

    @property
    def mistakes(self) -> set[str]:
        """Return the lines of all mistakes, which ``say`` has said or counted: no job needs to repeat them."""
        return {str(error) for error in self._mistakes.values()}

    def say(self) -> list[Config]:
        """Warn of the products that fail, a line each, and return the configurations of the jobs that do not."""
        for key, name in self._names.items():
            jobs = [job for job, config in enumerate(self._configs) if _key(config) == key]
            if mistakes := [str(self._mistakes[job]) for job in jobs if self.fails(job)]:
                which = "all" if len(mistakes) == len(jobs) else f"{len(mistakes)} of"
                first, *others = dict.fromkeys(mistakes)
                more = f" (and {len(others)} further reasons, which the table has)" if others else ""
                log.warning("%s: %s %d jobs fail, other products run: %s%s", name, which, len(jobs), first, more)
        return [config for job, config in enumerate(self._configs) if not self.fails(job)]


def _key(config: Config) -> tuple[str, str | None, str | None]:
    return config.data.name, config.data.root, config.data.category
