"""Say in what attempts differ beside what they try: images of another size, another backbone, more to learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mvtec_lab.reporting.attempts import Attempt, shared
from mvtec_lab.reporting.runs import Settings, learnt_images
from mvtec_lab.reporting.words import distinct, span
from mvtec_lab.results import RunResult

Words = Callable[[Sequence[RunResult], Sequence[Settings]], str]


def _setting(key: str) -> Words:
    return lambda runs, settings: ", ".join(distinct(own.get(key, "") for own in settings))


def _learnt(runs: Sequence[RunResult], settings: Sequence[Settings]) -> str:
    images = [learnt_images(run) for run in runs]
    return span(images) if all(images) else ""


def _backbone(runs: Sequence[RunResult], settings: Sequence[Settings]) -> str:
    return ", ".join(distinct(run.backbone for run in runs if run.backbone != "none"))


def _weights(runs: Sequence[RunResult], settings: Sequence[Settings]) -> str:
    return ", ".join(distinct(run.weights for run in runs if run.weights and run.backbone != "none"))


# By the key that varies where a sweep is about it; then it is no circumstance.
CIRCUMSTANCES: dict[str, tuple[str, Words]] = {
    "data.image_size": ("image size", _setting("data.image_size")),
    "model.backbone": ("backbone", _backbone),
    "model.weights": ("weights", _weights),
    "data.per_class": ("images learnt from", _learnt),
}


def apart(best: Attempt, others: Sequence[Attempt], settings: Mapping[str, Settings]) -> list[str]:
    """Return in what the best attempt differs from others beside what they try, a sentence for those that are alike."""
    found: dict[str, list[str]] = {}
    for other in others:
        different, common = [], shared((best, other))
        runs = [[tested.run for tested in of.on(common)] or of.done for of in (best, other)]
        for key, (title, words) in CIRCUMSTANCES.items():
            ours, theirs = (words(of, [settings[run.run_dir] for run in of]) for of in runs)
            if ours and theirs and ours != theirs and not any(f" {key}=" in of.name for of in (best, other)):
                different.append(f"{title} ({ours} and {theirs})")
        if different:
            found.setdefault(" and ".join(different), []).append(other.name)
    return [
        f"{best.name} also differs from {', '.join(names)} in {what}, which may be what makes the difference."
        for what, names in found.items()
    ]
