"""The settings that a classifier can work with. Light to import."""

from __future__ import annotations

from collections.abc import Collection

from mvtec_lab.config import BALANCING, Config


def check(config: Config, typed: Collection[str] = ()) -> None:
    """Refuse settings that exclude each other."""


def findings(config: Config) -> list[str]:
    """Return what the settings take from the worth of the figures, a line each."""
    sampler, weights, loss = config.data.sampler, config.loss.class_weights, config.loss
    balancing = {
        f"data.sampler={sampler}": sampler != "none",
        f"loss.class_weights={weights}": weights != "none",
        f"loss.name={loss.name}": loss.name in BALANCING,
        f"loss.posthoc={loss.posthoc:g}": loss.posthoc > 0,
        "model.generate=true": config.model.generate,
    }
    if len(both := [key for key, on in balancing.items() if on]) > 1:
        return [f"{both[0]} and {both[1]} are both on: rare classes are weighted twice"]
    return []
