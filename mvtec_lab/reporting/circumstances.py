"""Say in what attempts differ beside what they try: images of another size, another backbone, more to learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mvtec_lab.reporting.attempts import Attempt, shared
from mvtec_lab.reporting.runs import Settings, learnt_images
from mvtec_lab.reporting.words import distinct, span
from mvtec_lab.results import RunResult

Words = Callable[[Sequence[RunResult], Sequence[Settings]], str]
Runs = tuple[list[RunResult], list[RunResult]]  # of the best attempt, and of another one


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


def apart(
    best: Mapping[str, Attempt], others: Sequence[Mapping[str, Attempt]], settings: Mapping[str, Settings]
) -> list[str]:
    """Return in what the best attempt differs from others beside what they try, a sentence for those that are alike.

    Args:
        best: the attempt on each product, by the product's name; on a single one, of any name.
        others: each of them likewise.
        settings: of all runs, by their directories.
    """
    found: dict[str, list[str]] = {}
    name = next(iter(best.values())).name
    for other in others:
        if different := _different(best, other, settings):
            what = " and ".join(filter(None, (", ".join(different[:-1]), different[-1])))
            found.setdefault(what, []).append(next(iter(other.values())).name)
    return [
        f"{name} also differs from {', '.join(names)} in {what}, which may be what makes the difference."
        for what, names in found.items()
    ]


def _different(
    best: Mapping[str, Attempt], other: Mapping[str, Attempt], settings: Mapping[str, Settings]
) -> list[str]:
    """Return the circumstances in which two attempts differ, with the values of both.

    Of several products those that differ are put together, and named where others do not differ.
    """
    runs = {product: _runs(best[product], other[product]) for product in best if product in other}
    names = [attempt.name for of in (best, other) for attempt in of.values()]
    found = []
    for key, (title, words) in CIRCUMSTANCES.items():
        if any(f" {key}=" in name for name in names):
            continue

        def said(of: Sequence[RunResult], words: Words = words) -> str:
            return words(of, [settings[run.run_dir] for run in of])

        differs = [p for p, pair in runs.items() if all(map(said, pair)) and said(pair[0]) != said(pair[1])]
        if differs:
            ours, theirs = (said([run for product in differs for run in runs[product][side]]) for side in (0, 1))
            where = "" if len(differs) == len(runs) else f" on {', '.join(differs)}"
            found.append(f"{title}{where} ({ours} and {theirs})")
    return found


def _runs(best: Attempt, other: Attempt) -> Runs:
    """Return the runs of two attempts on the test sets that both have; all of them where they share none."""
    common = shared((best, other))
    ours, theirs = ([tested.run for tested in of.on(common)] or of.done for of in (best, other))
    return ours, theirs
