"""The settings that an anomaly model can work with. Light to import."""

from __future__ import annotations

from collections.abc import Collection

from mvtec_lab.config import Config


def check(config: Config, typed: Collection[str] = ()) -> None:
    """Refuse settings that exclude each other."""
