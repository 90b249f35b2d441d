"""What may be concluded from a comparison, in sentences: nothing about pairs that were not tested."""

from __future__ import annotations

import statistics as st
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mvtec_lab.config import METRICS, SCORE_METRICS
from mvtec_lab.evaluation import statistics
from mvtec_lab.evaluation.differences import LEAST_RUNS
from mvtec_lab.reporting.attempts import Attempt, Estimate

if TYPE_CHECKING:
    from mvtec_lab.reporting.comparison import Comparison, Pair

ALPHA = 0.05  # the field's convention; intervals are its 95%
NAMES = {metric: metric.replace("_f1", " F1").replace("_", " ") for metric in METRICS}
NAMES |= {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "pixel_aupro": "AUPRO"}
FEW = 5  # more attempts beside the best, or pairs: a sentence says less of each, the report's tables have the rest
Side: TypeAlias = "tuple[str, float, Pair]"  # an attempt, its lead over another one, and the pair of both


def sentences(comparison: Comparison) -> list[str]:
    """The verdict of a comparison; its best attempt is set on the way."""
    done, reference = [a for a in comparison.attempts if a.done], comparison.reference
    if not done:
        return ["No run was completed: there is nothing to compare."]
    lines = []
    for group in (groups := _groups(done)):
        common = set.intersection(*(set(attempt.tests) for attempt in group))
        best = max(group, key=lambda attempt: attempt.score(common))
        validated = all(np.isfinite(attempt.score(common)[1]) for attempt in group)  # those with made-up defects alone
        chosen = len(group) == 1 or not best.detects or validated
        if not chosen:
            best = max(group, key=_on_test)
        elif len(groups) == 1:
            comparison.best = best.name
        stated = _stated(best, best.score(common)[1] if chosen else -np.inf, len(group), len(groups) > 1)
        lines.append(_nothing_learnt(group) + stated)
        if reference is not None and len(done) > 1:
            lines[-1] += _beside(best.name, reference, comparison.pairs)
        elif len(group) > 1:
            names = {attempt.name for attempt in group}
            within = [pair for pair in comparison.pairs if {pair.first, pair.second} <= names]
            lines += _against(best, within, best.metric)
    if reference is not None:
        lines += _against_reference(next(a for a in done if a.name == reference), comparison.pairs)
    lines += _models(comparison.pairs)
    judged = [f"{pair.test} on {NAMES[pair.metric]}" for pair in comparison.pairs if pair.test]
    if judged:
        tests = " or ".join(sorted(set(judged)))
        lines.append(f"p: {tests}, Holm's correction for {len(judged)} comparison{_s(len(judged))}.")
    for metric in comparison.metrics:
        mine = [attempt for attempt in done if attempt.metric == metric]
        lines += _limits(mine, [pair for pair in comparison.pairs if pair.metric == metric], metric)
        lines += _baselines(mine, metric)
    return lines + _runs(comparison)


def _on_test(attempt: Attempt) -> float:
    estimate = attempt.estimate(attempt.metric)
    return float("-inf") if estimate is None else estimate.value


def _stated(best: Attempt, score: float, of: int, several: bool) -> str:
    """The best attempt's figure. Without defects in validation nothing chooses among one-class methods: the highest on
    test is named, and that it was chosen there."""
    metric = best.metric
    where = "validation, which is the test set" if any(run.val_is_test for run in best.done) else "validation"
    if of == 1:
        text = best.name
    elif np.isfinite(score):
        among = f", of {of} attempts on the same test images" if several else ""
        what = "image AUROC of made-up defects" if best.detects else "balanced accuracy"
        text = f"Best on {where}{among}: {best.name} ({what} {score:.3f})"
    elif best.detects:
        text = (
            f"Good images alone cannot choose among {of} methods; the highest on test, which flatters it: {best.name}"
        )
    else:
        text = f"No validation figures to choose by: {best.name} stands first"
    estimate = best.estimate(metric)
    if estimate is None:
        return f"{text}; it has no test {NAMES[metric]}."
    text += f"; test {_figure(estimate, metric)}"
    return text + (f", {estimate.method}." if estimate.method else ".")


def _figure(estimate: Estimate, metric: str) -> str:
    interval = "" if estimate.low is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{NAMES[metric]} {estimate.value:.3f}{interval}"


def _beside(best: str, reference: str, pairs: Sequence[Pair]) -> str:
    """What is known of the best by validation against the reference, as a sentence that follows another."""
    if best == reference:
        return " It is the reference."
    sides = _sides(reference, [pair for pair in pairs if best in (pair.first, pair.second)])
    if not sides:
        return f" It was not compared with {reference}."
    _, lead, pair = sides[0]
    if not pair.different:
        return f" It cannot be told from {reference}."
    than = f"shown to be {'better' if lead > 0 else 'worse'} than"
    return f" Its model trained here is {than} that of {reference}." if pair.models else f" It is {than} {reference}."


def _sides(name: str, pairs: Sequence[Pair]) -> list[Side]:
    """Each attempt that was compared with one of them, and by how much it is ahead: the farthest first."""
    found = []
    for pair in pairs:
        if pair.difference is not None and name in (pair.first, pair.second):
            value = pair.difference.value
            found.append((pair.second, -value, pair) if pair.first == name else (pair.first, value, pair))
    return sorted(found, key=lambda side: -side[1])


def _sorted_out(sides: Sequence[Side]) -> tuple[list[Side], list[Side], list[Side]]:
    """Those that are shown to be better, those that cannot be told apart, those that are shown to be worse."""
    different = [side for side in sides if side[2].different]
    level = [side for side in sides if not side[2].different]
    return [side for side in different if side[1] > 0], level, [side for side in different if side[1] <= 0]


def _against_reference(reference: Attempt, pairs: Sequence[Pair]) -> list[str]:
    """What is known of each attempt against the reference; of the others among themselves nothing is."""
    metric, sides = reference.metric, _sides(reference.name, pairs)
    if not sides:
        return []
    estimate, lines = reference.estimate(metric), []
    compared = f"Compared with {reference.name}" + (f" ({_figure(estimate, metric)})" if estimate else "")
    for models in sorted({side[2].models for side in sides}):
        better, level, worse = _sorted_out([side for side in sides if side[2].models == models])
        text = f"{compared}, the models trained here" if models else compared
        lines.append(f"{text}: {f'shown to be better: {_listed(better)}' if better else 'none is shown to be better'}.")
        if worse:
            lines.append(f"Shown to be worse: {_listed(worse)}.")
        if level:
            lines.append(f"Cannot be told from it: {_listed(level)}.")
    return lines


def _listed(sides: Sequence[Side]) -> str:
    """Names, leads and p; in a long list those whose p is 1 come last, without it."""
    told = [side for side in sides if len(sides) <= FEW or side[2].p_holm is None or side[2].p_holm < 0.9995]
    text = ", ".join(f"{name} ({100 * lead:+.1f} points, p {_p(pair.p_holm)})" for name, lead, pair in told)
    rest = ", ".join(f"{side[0]} ({100 * side[1]:+.1f})" for side in sides if side not in told)
    return text + ("; " if text and rest else "") + (f"with p = 1: {rest}" if rest else "")


def _told(side: Side) -> str:
    """All that is known of an attempt beside another one."""
    other, lead, pair = side
    where = "level" if abs(lead) < 5e-4 else "behind" if lead < 0 else "ahead"
    by = "" if where == "level" else f" by {abs(100 * lead):.1f} points"
    text = f"{other} ({where}{by}, p {_p(pair.p_holm)}"
    if pair.better is not None and pair.worse is not None and pair.equal is not None:
        so = pair.better if (pair.first == other) == (where == "ahead") else pair.worse
        text += f"; within one point with probability {pair.equal:.2f}"
        text += "" if where == "level" else f", {where} by more {so:.2f}"
    return f"{text})"


def _against(best: Attempt, pairs: Sequence[Pair], metric: str) -> list[str]:
    """What is known of the best by validation against each other attempt, and of the others among themselves."""
    sides, of = _sides(best.name, pairs), _in(metric)
    lost, level, beaten = _sorted_out(sides)

    def listed(some: Sequence[Side]) -> str:
        return ", ".join(map(_told, some)) if len(sides) <= FEW else _listed(some)

    def claims(some: Sequence[Side], what: str, end: str = ".") -> list[str]:
        about = {models: [side for side in some if side[2].models == models] for models in (False, True)}
        texts = [f"{what[0].upper()}{what[1:]} than {listed(about[False])}{end}"] if about[False] else []
        theirs = "that" if len(about[True]) == 1 else "those"
        model = f"The {best.name} model trained here is {what} than {theirs} of {listed(about[True])}{end}"
        return texts + [model] * bool(about[True])

    lines = claims(beaten, f"shown to be better{of}")
    if level:
        lines.append(f"Cannot be told from it{of}: {listed(level)}.")
    lines += claims(lost, f"shown to be worse on test{of}", ": validation chose the wrong one.")
    others = [pair for pair in pairs if best.name not in (pair.first, pair.second)]
    different = [pair for pair in others if pair.different]
    for pair in different if len(different) <= FEW else ():
        assert pair.difference is not None
        high, low = (pair.first, pair.second) if pair.difference.value > 0 else (pair.second, pair.first)
        points = 100 * abs(pair.difference.value)
        subject, other = (f"The {high} model", f"that of {low}") if pair.models else (high, low)
        lines.append(f"{subject} is shown to be better{of} than {other} ({points:.1f} points, p {_p(pair.p_holm)}).")
    if len(different) > FEW:
        lines.append(f"Of the {len(others)} pairs of the others, {len(different)} are shown to differ{of}.")
    judged = [pair for pair in pairs if pair.p is not None]
    if judged and not any(pair.different for pair in judged):
        what = "No model trained here" if all(pair.models for pair in judged) else "No attempt"
        lines.append(f"{what} is shown to be better{of} than another.")
    return lines


def _limits(done: Sequence[Attempt], pairs: Sequence[Pair], metric: str) -> list[str]:
    """Say what differences the test images find, all corrections included: the median over the pairs of a kind."""
    lines, judged = [], [pair for pair in pairs if pair.p is not None]
    for images, sets in sorted({(pair.images, pair.test_sets) for pair in judged}):
        found = [
            1.0 if p.found is None else min(p.found, 1.0) for p in judged if (p.images, p.test_sets) == (images, sets)
        ]
        where = f"{images} images in {sets} test sets" if sets > 1 else f"{images} test images"
        if (points := st.median(found)) >= 1:
            text = f"{where} cannot tell any two attempts apart"
        else:
            text = f"{where} find a difference of {100 * points:.1f} points{_in(metric)} in eight of ten cases"
            text += ", Holm's correction included" if len(judged) > 1 else ""
        if metric == "accuracy" and sets == 1:
            text += f"; one image is {100 / images:.1f} points"
        elif metric == "balanced_accuracy" and sets == 1:
            rarest = max(statistics.image_weights(group[0].labels).max() for a in done for group in a.tests.values())
            text += f"; one image of the rarest class is {100 * rarest:.1f} points"
        lines.append(f"{text}.")
    return lines


def _models(pairs: Sequence[Pair]) -> list[str]:
    """Say of whom the verdict speaks where the luck of a training is not known."""
    judged = [pair for pair in pairs if pair.p is not None]
    about = [pair for pair in judged if pair.models]
    if not about:
        return []
    where = "This speaks" if len(about) == len(judged) else "Where it says so, this speaks"
    folds = ", or folds (cv.folds=5)" if any(pair.metric in METRICS for pair in about) else ""
    return [
        f"{where} of the models trained here, not of the attempts: the luck of their training is not known. "
        f"Give {LEAST_RUNS} seeds or more on one split (seed=0,1,2,3,4 split.seed=0){folds}."
    ]


def _in(metric: str) -> str:
    """The metric where it is not the usual one, to stand in a sentence."""
    return "" if metric == "accuracy" else f" in {NAMES[metric]}"


def _nothing_learnt(group: Sequence[Attempt]) -> str:
    """Say so ahead of everything else where no attempt is better than what knows nothing."""
    pairs = ((a, a.baseline(a.metric), a.estimate(a.metric)) for a in group)
    known = [(a, baseline, e) for a, baseline, e in pairs if baseline is not None and e is not None]
    if not known or any(_above(*figures) for figures in known):
        return ""
    what = "chance" if group[0].detects else "always naming the most frequent class"
    beside = f"on test than {what} ({NAMES[group[0].metric]} {max(baseline for _, baseline, _ in known):.3f}). "
    who = f"{group[0].name} is not" if len(group) == 1 else "no attempt is"
    if all(e.value <= baseline for _, baseline, e in known):
        return f"Nothing was learnt: {who} better {beside}"
    return f"It is not shown that anything was learnt: {who} shown to be better {beside}"


def _above(attempt: Attempt, baseline: float, estimate: Estimate) -> bool:
    """Tell whether a figure is shown to be above a baseline; two test sets, which have no interval, show nothing."""
    if estimate.low is None:
        return len(attempt.tests) < 2 and estimate.value > baseline
    return estimate.low > baseline


def _baselines(done: Sequence[Attempt], metric: str) -> list[str]:
    """Always naming the most frequent class, and what the good images add to an accuracy; of scores chance, and what
    their thresholds do."""
    lines, known = [], []
    for attempt in done:
        baseline, estimate = attempt.baseline(metric), attempt.estimate(metric)
        if baseline is not None and estimate is not None:
            known.append((attempt, baseline, estimate))
    values = sorted({f"{baseline:.3f}" for _, baseline, _ in known})
    if values:
        chance = [figures[0].name for figures in known if not _above(*figures)]
        figures = " or ".join(values)
        reaches = f"is right in {figures} of test images" if metric == "accuracy" else f"has {NAMES[metric]} {figures}"
        text = f"Always naming the most frequent class {reaches}"
        if metric in SCORE_METRICS:
            text = f"By chance {NAMES[metric]} is {figures}"
        lines.append(text + (f"; not shown to be better: {', '.join(chance)}." if chance else "; all are above."))
    defects = {
        a.name: (st.fmean(found), st.fmean(r.metrics["test"]["accuracy"] for r in a.done))
        for a in done
        if not a.detects
        and (found := [v for r in a.done if (v := r.metrics.get("test", {}).get("defect_accuracy")) is not None])
    }
    if len(defects) > FEW + 1:
        alone = [value for value, _ in defects.values()]
        lines.append(f"On defects alone, accuracy is {min(alone):.3f} to {max(alone):.3f}: the table has each.")
    elif defects:
        texts = [f"{name} {alone:.3f} ({with_good:.3f} with good)" for name, (alone, with_good) in defects.items()]
        lines.append(f"On defects alone: {', '.join(texts)}.")
    if metric in SCORE_METRICS and len(done) <= FEW + 1:
        texts = [f"{a.name} {found} and {alarms}" for a in done for found, alarms in [_decided(a)]]
        lines.append(f"At the threshold, defects found and false alarms: {', '.join(texts)}.")
    return lines


def _decided(attempt: Attempt) -> tuple[str, str]:
    keys, runs = ("recall_of_defects", "false_alarm_rate"), [run.metrics.get("test", {}) for run in attempt.done]
    each = [[value for metrics in runs if (value := metrics.get(key)) is not None] for key in keys]
    found, alarms = (f"{st.fmean(values):.0%}" if values else "–" for values in each)
    return found, alarms


def _runs(comparison: Comparison) -> list[str]:
    """What was left out, and why."""
    lines = []
    refused: dict[str, list[str]] = defaultdict(list)
    for pair in comparison.pairs:
        if pair.refused:
            refused[pair.refused].append(f"{pair.first} and {pair.second}")
    for why, pairs in refused.items():
        named = "; ".join(pairs) if len(pairs) <= 3 else f"{len(pairs)} pairs"  # the report's table has them all
        lines.append(f"Not compared: {named}: {why}.")
    sets = {attempt.name: len(attempt.tests) for attempt in comparison.attempts if attempt.tests}
    partial = [p for p in comparison.pairs if p.test_sets and p.test_sets < max(sets[p.first], sets[p.second])]
    if partial:
        counts = ", ".join(f"{name} {n}" for name, n in sets.items())
        lines.append(f"Test sets differ in number ({counts}): each pair is compared on those that both have.")
    lines += [
        f"{a.name}: {a.copies} run{_s(a.copies)} of the same seed and images left out, the newest counts."
        for a in comparison.attempts
        if a.copies
    ]
    return lines


def _p(value: float | None) -> str:
    return "unknown" if value is None else "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _s(n: int) -> str:
    return "" if n == 1 else "s"


def _groups(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    """The attempts in groups that share test sets: those of different groups do not compare."""
    groups: list[list[Attempt]] = []
    for attempt in attempts:
        touching = [g for g in groups if any(attempt.tests.keys() & other.tests.keys() for other in g)]
        groups = [g for g in groups if g not in touching] + [[*(a for g in touching for a in g), attempt]]
    return groups
