"""The conclusions of a comparison, in sentences: nothing about pairs that were not tested."""

from __future__ import annotations

import statistics as st
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from math import inf

from mvtec_lab.evaluation.differences import LEAST_RUNS
from mvtec_lab.evaluation.specs import METRICS, Metric, choosing, metrics_of
from mvtec_lab.evaluation.tested import TestSet
from mvtec_lab.reporting import dropped
from mvtec_lab.reporting.attempts import Attempt, mean, shared, too_few
from mvtec_lab.reporting.choice import CHOSEN, UNDECIDED, ahead
from mvtec_lab.reporting.families import outdone, repeats, said
from mvtec_lab.reporting.pairs import Block, Comparison, Pair
from mvtec_lab.reporting.ranking import Ranking, by_validation
from mvtec_lab.reporting.runs import held_out

MANY_ROUNDS, FEW_IMAGES = 5, 60  # with more rounds of folds of fewer images the test is too sure: benchmarks/README.md
FEW = 5  # with more attempts beside the best, or more pairs, a sentence says less of each: the report's tables have all
Side = tuple[str, float, Pair]  # an attempt, its lead over another one, and the pair of both


def sentences(comparison: Comparison) -> list[str]:
    """Return the verdict of a comparison, and set its best attempt."""
    done, reference = comparison.compared, comparison.reference
    if not done:
        return ["No run was completed: there is nothing to compare."]
    comparison.blocks = blocks = [_block(group) for group in _groups(done)]
    if len(blocks) == 1 and (best := blocks[0].best) is not None:
        comparison.best = best.name if blocks[0].value is not None or len(done) == 1 else None
    lines = [line for block in blocks for line in _of_block(block, comparison, len(blocks) > 1)]
    if reference is not None:
        lines += _against_reference(next(a for a in done if a.name == reference), comparison.pairs)
    lines += _models(comparison.pairs) + _tests(comparison.pairs, done if reference is None else (), comparison.asked)
    for key in comparison.metrics:
        mine = [attempt for attempt in done if attempt.metric.key == key]
        figures = _limits(mine, [pair for pair in comparison.pairs if pair.metric == key], METRICS[key])
        figures += _too_sure([pair for pair in comparison.pairs if pair.metric == key], METRICS[key])
        figures += _baselines(mine, METRICS[key])
        figures += _asides(mine)
        if figures and len(comparison.metrics) > 1:  # they would read alike for each metric
            who = f"{len(mine)} attempts are" if len(mine) > 1 else f"{mine[0].name} is"
            figures = [f"{who} judged by {METRICS[key].title}. {' '.join(figures)}"]
        lines += figures
    return lines + dropped.sentences(comparison) + _runs(comparison)


def _block(group: list[Attempt]) -> Block:
    ranked = _ranked(group)
    return Block(group, ranked, *(_chosen(ranked) if ranked else ()))


def _of_block(block: Block, comparison: Comparison, several: bool) -> list[str]:
    """Name the best of the attempts that compare with each other, and say what it is better than."""
    group, ranked, best, value = block.attempts, block.ranked, block.best, block.value
    unlearnt = line = _nothing_learnt(group)
    names = {attempt.name for attempt in group}
    reference = comparison.reference if comparison.reference in names and len(comparison.compared) > 1 else None
    within = [pair for pair in comparison.pairs if {pair.first, pair.second} <= names]
    if best is None:
        few = too_few(group) or "no test set is done by"
        line += f"Nothing ranks these {len(group)} attempts: {few} all of them."
        return [line, *(_among(within) if reference is None else ())]
    rivals = [attempt.name for attempt in ranked]
    fewer = {attempt.name for attempt in group if outdone(attempt, ranked)}
    first = any(ahead(name, [p for p in within if not {p.first, p.second} & fewer], rivals) for name in rivals)
    if len(ranked) > 1 and value is not None and reference is None and not first and not line:
        line = f"{UNDECIDED} "
    overruled, chose = ([], False) if reference is not None else _overruled(best, within, ranked)
    line += _stated(best, block, several, chose and not unlearnt)
    how = [*filter(None, (block.ranking.sentence, block.ranking.close))] if block.ranking else []
    if fewer:
        how.append("It is named among the attempts with the most training images; those with fewer are for the curves.")
    if reference is not None:
        return [line + _beside(best.name, reference, comparison.pairs), *how, *_unranked(group, ranked)]
    lines = [line, *how, *_unranked(group, ranked), *_against(best, within, ranked), *_among(within, best.name)]
    return [*lines, *overruled] if unlearnt else [*overruled, *lines]  # the one to use comes first, if there is one


def _ranked(group: Sequence[Attempt]) -> list[Attempt]:
    """Return the attempts that share enough test sets to be ranked by them, as pairs are judged; maybe none.

    Those that a race dropped are not: they are shown to be worse, and the others go by all folds. As long as they share
    too few, those with the fewest test sets are left out, all of them: their order decides nothing. At last those that
    trained on fewer images than another of them, which is the same attempt.
    """
    ranked = [attempt for attempt in group if not attempt.dropped] or list(group)
    while len(group) > 1 and ranked and (not shared(ranked) or too_few(ranked)):
        fewest = min(len(attempt.tests) for attempt in ranked)
        ranked = [attempt for attempt in ranked if len(attempt.tests) > fewest]
    return [attempt for attempt in ranked if not outdone(attempt, ranked)]


def _unranked(group: Sequence[Attempt], ranked: Sequence[Attempt]) -> list[str]:
    """Name the attempts of a group that are not ranked beside others, and the test sets that they have."""
    of = max(max(attempt.planned, len(attempt.tests)) for attempt in group)
    names = [
        f"{attempt.name} ({len(attempt.tests)} of {of})"
        for attempt in group
        if attempt not in ranked and not attempt.dropped and not outdone(attempt, ranked)
    ]
    return [f"Not ranked, with too few test sets in common: {', '.join(names)}."] if names else []


def _chosen(group: Sequence[Attempt]) -> tuple[Attempt, Ranking]:
    """Return the best attempt by validation, or on test if not all have a value there; and how validation ranks."""
    common = shared(group)
    ranking = by_validation({attempt.name: [attempt] for attempt in group}, common)
    if ranking.value is None:
        return max(group, key=lambda attempt: _on_test(attempt, common)), ranking
    return next(attempt for attempt in group if attempt.name == ranking.best), ranking


def _tests(pairs: Sequence[Pair], attempts: Sequence[Attempt], reference: str | None) -> list[str]:
    """Name the tests, and the number of comparisons that p is corrected for; all pairs of attempts, or some of them."""
    judged = [f"{pair.test} on {METRICS[pair.metric].title}" for pair in pairs if pair.test]
    tests = " or ".join(sorted(set(judged)))
    many = (
        f", with Holm's correction for {len(judged)} comparisons{said(attempts, reference)}" if len(judged) > 1 else ""
    )
    return [f"Where p comes from: {tests}{many}."] if judged else []


def _on_test(attempt: Attempt, test_sets: Sequence[TestSet]) -> float:
    """Return the metric on some test sets, or on all where the attempt has none of them; the higher the better."""
    values, estimate = attempt.values(test_sets, attempt.metric), attempt.estimate()
    if not len(values) and estimate is None:
        return -inf
    return attempt.metric.sign * (float(values.mean()) if estimate is None or len(values) else estimate.value)


def _stated(best: Attempt, block: Block, several: bool, overruled: bool) -> str:
    """Name the best of several attempts, what chose it, and its test metric.

    Where not all attempts were validated, nothing chooses among them: the best on test is named.

    Args:
        best: of the block.
        block: the attempts that compare with each other.
        several: whether there are other blocks.
        overruled: whether a sentence before this one names another attempt, which the test shows to be better.
    """
    metric, chooser = best.metric, choosing(best.problem)
    of, value = len(block.ranked), block.value
    if of > 1 and value is None and best.estimate() is None:
        return f"Nothing ranks these {of} attempts: none has a test {metric.title}."
    same = ", which is the test set" if any(run.val_is_test for run in best.done) else ""
    text = best.name
    if of > 1 and value is not None:
        among = f", of {of} attempts on the same test images" if several else ""
        what = " of ".join(filter(None, (chooser.title, chooser.words.made_up)))
        text = f"Best on validation{same}{among}: {best.name} ({what} {value:.3f})"
        if overruled:
            text = f"Validation{f'{same},' if same else ''} chose {best.name}{among} ({what} {value:.3f})"
    elif of > 1:
        text = f"Validation cannot choose among these {of} attempts, and the best on test is flattered: {best.name}"
    estimate = best.estimate()
    if estimate is None:
        return f"{text} has no test {metric.title}." if text == best.name else f"{text}; no test {metric.title}."
    figure = f"test {metric.title} {estimate}" + (f" ({estimate.method})" if estimate.method else "")
    return (f"{text} has {figure}." if text == best.name else f"{text}; {figure}.") + _flattered(best, overruled)


def _flattered(best: Attempt, overruled: bool) -> str:
    """Say why the value on validation is no promise, where it is the highest there is or beyond the test's interval.

    Made-up defects are others than those of the test images, and show nothing of the kind. Of an ``overruled`` best
    nothing is to be expected: another attempt is to be used.
    """
    chooser = choosing(best.problem)
    value, test = best.mean(chooser, "val"), best.estimate(chooser.key)
    if value is None or test is None or chooser.words.made_up or any(run.val_is_test for run in best.done):
        return ""
    bound = test.high if chooser.sign > 0 else test.low
    beyond = bound is not None and chooser.sign * (value - bound) > 0
    perfect = chooser.share and value == float(chooser.sign > 0) and test.value != value
    if not (beyond or perfect):
        return ""
    images = mean(run.metrics["val"].get("images") for run in best.done)
    few = f"the {images:g} validation images" if images else "the validation images"
    choice = "settings" if any(run.validates_by for run in best.done) else "epoch"
    return (
        f" The {value:.3f} on validation is no promise for new images: {few} chose the {choice} and the attempt, so "
        f"luck on them is part of it.{'' if overruled else ' Expect the test figure.'}"
    )


def _beside(best: str, reference: str, pairs: Sequence[Pair]) -> str:
    """Compare the best by validation with the reference, in a sentence that follows another."""
    if best == reference:
        return " It is the reference."
    sides = _sides(reference, [pair for pair in pairs if best in (pair.first, pair.second)])
    if not sides:
        return f" It was not compared with {reference}."
    _, lead, pair = sides[0]
    if not pair.different:
        return f" It is not shown to differ from {reference}."
    than = f"shown to be {'better' if lead > 0 else 'worse'} than"
    return f" Its model trained here is {than} that of {reference}." if pair.models else f" It is {than} {reference}."


def _sides(name: str, pairs: Sequence[Pair]) -> list[Side]:
    """Return each attempt that was compared with one of them, and its lead: the largest first."""
    mine = [pair for pair in pairs if pair.difference is not None and name in (pair.first, pair.second)]
    others = [(pair.second if pair.first == name else pair.first, pair) for pair in mine]
    return sorted(((other, pair.lead_of(other), pair) for other, pair in others), key=lambda side: -side[1])


def _sorted_out(sides: Sequence[Side]) -> tuple[list[Side], list[Side], list[Side]]:
    """Return those that are shown to be better, those not shown to differ, and those shown to be worse."""
    different = [side for side in sides if side[2].different]
    level = [side for side in sides if not side[2].different]
    return [side for side in different if side[1] > 0], level, [side for side in different if side[1] <= 0]


def _against_reference(reference: Attempt, pairs: Sequence[Pair]) -> list[str]:
    """Compare each attempt with the reference; the others were not compared among themselves."""
    sides = _sides(reference.name, pairs)
    if not sides:
        return []
    estimate, lines = reference.estimate(), []
    compared = f"Compared with {reference.name}" + (f" ({reference.metric.title} {estimate})" if estimate else "")
    for models in sorted({side[2].models for side in sides}):
        better, level, worse = _sorted_out([side for side in sides if side[2].models == models])
        text = f"{compared}, the models trained here" if models else compared
        lines.append(f"{text}: {f'shown to be better: {_listed(better)}' if better else 'none is shown to be better'}.")
        if worse:
            lines.append(f"Shown to be worse: {_listed(worse)}.")
        if level:
            lines.append(f"Not shown to differ from it: {_listed(level)}.")
    return lines


def _listed(sides: Sequence[Side]) -> str:
    """Return names, leads and p; in a long list those whose p is 1 come last, without it."""
    certain = [side for side in sides if len(sides) > FEW and side[2].p_holm is not None and side[2].p_holm >= 0.9995]
    text = ", ".join(
        f"{name} ({METRICS[pair.metric].difference_of(lead, sign=True)}, p {p_text(pair.p_holm)})"
        for name, lead, pair in sides
        if (name, lead, pair) not in certain
    )
    rest = ", ".join(f"{name} ({METRICS[pair.metric].step_of(lead, sign=True)})" for name, lead, pair in certain)
    return text + ("; " if text and rest else "") + (f"with p = 1: {rest}" if rest else "")


def _in_full(side: Side) -> str:
    """Return an attempt with its lead over another one, p, and the Bayesian probabilities."""
    other, lead, pair = side
    metric = METRICS[pair.metric]
    level = abs(lead) < 5e-4 if metric.share else lead == 0
    where = "level" if level else "behind" if lead < 0 else "ahead"
    by = "" if level else f" by {metric.difference_of(abs(lead))}"
    text = f"{other} ({where}{by}, p {p_text(pair.p_holm)}"
    if pair.bayesian:
        worse, equal, better = pair.bayesian
        further = better if (pair.first == other) == (where == "ahead") else worse
        text += f"; within one point with probability {equal:.2f}"
        text += "" if level else f", {where} by more {further:.2f}"
    return f"{text})"


def _against(best: Attempt, pairs: Sequence[Pair], ranked: Sequence[Attempt]) -> list[str]:
    """Compare the best by validation with each other attempt; only among those that are ranked was it chosen."""
    sides, of = _sides(best.name, pairs), best.metric.phrase
    lost, level, beaten = _sorted_out(sides)

    def listed(some: Sequence[Side]) -> str:
        return ", ".join(map(_in_full, some)) if len(sides) <= FEW else _listed(some)

    def claims(some: Sequence[Side], what: str) -> list[str]:
        about = {models: [side for side in some if side[2].models == models] for models in (False, True)}
        texts = [f"{what[0].upper()}{what[1:]} than {listed(about[False])}."] if about[False] else []
        theirs = "that" if len(about[True]) == 1 else "those"
        model = f"The {best.name} model trained here is {what} than {theirs} of {listed(about[True])}."
        return texts + [model] * bool(about[True])

    lines = claims(beaten, f"shown to be better{of}")
    if level:
        lines.append(f"Not shown to differ from it{of}: {listed(level)}.")
    unranked = [side for side in lost if side[0] not in {attempt.name for attempt in ranked}]
    worse = f"shown to be worse on test{of}"
    return lines + [text.replace("Shown", f"{best.name} is shown", 1) for text in claims(unranked, worse)]


def _overruled(best: Attempt, pairs: Sequence[Pair], ranked: Sequence[Attempt]) -> tuple[list[str], bool]:
    """Name the ranked attempts that the test shows to be better than the best by validation.

    Returns:
        The sentences, and whether validation chose the best among some of these, on the same images.
    """
    named = {attempt.name: attempt for attempt in ranked}
    groups: dict[tuple[bool, bool], list[Side]] = defaultdict(list)
    for side in _sorted_out(_sides(best.name, pairs))[0]:
        if side[0] in named:
            groups[side[2].models, validated_alike(best, named[side[0]])].append(side)
    lines = []
    for (models, alike), some in groups.items():
        who = ", ".join(map(_in_full, some)) if len(some) <= FEW else _listed(some)
        who = f"The model{_s(len(some))} of {who} trained here" if models else who
        be = "is" if len(some) == 1 else "are"
        than = f"that of {best.name}" if models else best.name
        unlike = "" if alike else CHOSEN[alike]
        lines.append(f"{who} {be} shown to be better on test{best.metric.phrase} than {than}{unlike}.")
    return lines, any(alike for _, alike in groups)


def validated_alike(one: Attempt, other: Attempt) -> bool:
    """Tell whether two attempts were validated on the same images, where they share test sets: only then one is chosen.

    Of runs that left no predictions of these images their numbers decide.
    """
    runs = [[tested.run for tested in attempt.on(shared([one, other]))] for attempt in (one, other)]
    images = [{image for run in of if (rows := held_out(run)) for image in rows.images} for of in runs]
    counts = [{run.metrics.get("val", {}).get("images") for run in of} for of in runs]
    return images[0] == images[1] if all(images) else counts[0] == counts[1]


def _among(pairs: Sequence[Pair], best: str | None = None) -> list[str]:
    """Name the pairs of a group that differ, beside those of the best; and say where none of all pairs does."""
    others = [pair for pair in pairs if best not in (pair.first, pair.second)]
    lines, different = [], [pair for pair in others if pair.different]
    of = METRICS[pairs[0].metric].phrase if pairs else ""
    for pair in different if len(different) <= FEW else ():
        high, low = (pair.first, pair.second) if pair.lead > 0 else (pair.second, pair.first)
        subject, other = (f"The {high} model", f"that of {low}") if pair.models else (high, low)
        ahead = f"({METRICS[pair.metric].difference_of(abs(pair.lead))}, p {p_text(pair.p_holm)})"
        lines.append(f"{subject} is shown to be better{of} than {other} {ahead}.")
    if len(different) > FEW:
        whose = f"the {len(others)} pairs of the others" if best else f"{len(others)} pairs"
        lines.append(f"Of {whose}, {len(different)} are shown to differ{of}.")
    judged = [pair for pair in pairs if pair.p is not None]
    if (len(judged) > 1 or best is None) and not any(pair.different for pair in judged):
        what = "No model trained here" if all(pair.models for pair in judged) else "No attempt"
        lines.append(f"{what} is shown to be better{of} than another.")
    return lines


def _limits(done: Sequence[Attempt], pairs: Sequence[Pair], metric: Metric) -> list[str]:
    """Say which differences the test images find, all corrections included: the median over the pairs of a kind."""
    lines, judged = [], [pair for pair in pairs if pair.p is not None and not pair.raced]
    for images, sets in sorted({(pair.images, pair.test_sets) for pair in judged}):
        found = [p.found for p in judged if (p.images, p.test_sets) == (images, sets)]
        median = st.median(min(metric.limit, inf if each is None else each) for each in found)
        where = f"{images} images in {sets} test sets" if sets > 1 else f"{images} test images"
        if median >= metric.limit:
            text = f"{where} are too few to show any difference{metric.phrase} between two attempts"
        else:
            text = f"With {where}, a true difference of {metric.difference_of(median)}{metric.phrase} is shown "
            text += "in eight of ten cases" + (" (Holm's correction included)" if len(judged) > 1 else "")
            text += ", a smaller one less often"
        if metric.words.step and sets == 1:
            one = max(a.resolution([test], metric) for a in done for test in a.tests if len(test) == images)
            text += f"; {metric.words.step} is {metric.difference_of(one)}"
        lines.append(f"{text}.")
    return lines


def _too_sure(pairs: Sequence[Pair], metric: Metric) -> list[str]:
    """Warn of many rounds of folds of few images, which call equal attempts different too often."""
    designs = [pair.evidence.design for pair in pairs if pair.evidence and not metric.inference.once]
    rounds = max((d.repeats for d in designs if d.folds > 1 and d.images < FEW_IMAGES), default=0)
    if rounds <= MANY_ROUNDS:
        return []
    return [
        f"Take p with care: {rounds} rounds of folds of so few images called up to 7% of equal attempts different in "
        f"simulations, {MANY_ROUNDS} rounds up to 6%."
    ]


def _models(pairs: Sequence[Pair]) -> list[str]:
    """Say that the verdict is about models where the luck of a training is not known."""
    judged = [pair for pair in pairs if pair.p is not None]
    about = [pair for pair in judged if pair.models]
    if not about:
        return []
    pairs_about = _named([(pair.first, pair.second) for pair in about])
    where = "This speaks" if len(about) == len(judged) else f"What is said of {pairs_about} speaks"
    return [
        f"{where} of the models trained here, not of the attempts: trained with another seed, they may change places. "
        f"Give {LEAST_RUNS} seeds or more on one split (seed=0,1,2,3,4 split.seed=0), or folds (cv.folds=5)."
    ]


def _nothing_learnt(group: Sequence[Attempt]) -> str:
    """Say first of all where no attempt is better than one that learnt nothing."""
    known = [(a, a.baseline, e) for a in group if a.baseline is not None and (e := a.estimate()) is not None]
    if not known or any(a.learnt is not False for a, _, _ in known):
        return ""
    metric = group[0].metric
    assert metric.chance is not None
    worst = max((baseline for _, baseline, _ in known), key=lambda baseline: metric.sign * baseline)
    beside = f"on test than {metric.chance[1]} ({metric.title} {worst:.3f}). "
    who = f"{group[0].name} is not" if len(group) == 1 else "no attempt is"
    if all(metric.sign * (e.value - baseline) <= 0 for _, baseline, e in known):
        return f"{metric.words.chance[0]}: {who} better {beside}"
    return f"{metric.words.chance[1]}: {who} shown to be better {beside}"


def _baselines(done: Sequence[Attempt], metric: Metric) -> list[str]:
    """Say what an attempt that learnt nothing reaches, and which attempts are not shown to be better."""
    known = [attempt for attempt in done if attempt.learnt is not None]
    values = sorted({f"{attempt.baseline:.3f}" for attempt in known})
    if not values or metric.chance is None:
        return []
    what = metric.chance[1]
    uncertain = [attempt.name for attempt in known if not attempt.learnt]
    text = f"{what[0].upper()}{what[1:]} gives {metric.title} {' or '.join(values)}"
    if uncertain:
        return [f"{text}; not shown to beat it: {', '.join(uncertain)}."]
    names = [attempt.name for attempt in known]
    who = "all attempts" if len(names) == len(done) else ", ".join(names)  # others have no test images, say
    return [f"{text}; {who if len(names) > 1 else names[0]} {'beat' if len(names) > 1 else 'beats'} it."]


def _asides(done: Sequence[Attempt]) -> list[str]:
    """State further metrics of each attempt, or their ranges where there are many attempts."""
    problems = dict.fromkeys(attempt.problem for attempt in done)
    metrics = [m for m in dict.fromkeys(m for problem in problems for m in metrics_of(problem)) if m.words.aside]
    rows = {attempt.name: [attempt.mean(metric) for metric in metrics] for attempt in done}
    known = {name: [v for v in values if v is not None] for name, values in rows.items() if None not in values}
    if not metrics or not known:
        return []
    what = " and ".join(metric.words.aside for metric in metrics)
    if len(known) > FEW + 1:
        texts = [f"{min(values):.3f} to {max(values):.3f}" for values in zip(*known.values(), strict=True)]
        return [f"{what[0].upper()}{what[1:]}: {' and '.join(texts)}; the table has each."]
    texts = [f"{name} {' and '.join(f'{value:.3f}' for value in values)}" for name, values in known.items()]
    return [f"{what[0].upper()}{what[1:]}: {', '.join(texts)}."]


def _runs(comparison: Comparison) -> list[str]:
    """Say what was left out, and why."""
    lines = []
    if kept := [attempt.name for attempt in comparison.done if attempt not in comparison.compared]:
        whose = "its" if len(kept) == 1 else "each one's"
        own = f"Expect the figure that {whose} attempt had in cross-validation"
        lines.append(f"Without test images (split.test=0), and so not compared: {', '.join(kept)}. {own}.")
    refused: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for pair in comparison.pairs:
        if pair.refused:
            refused[pair.refused].append((pair.first, pair.second))
    for why, pairs in refused.items():
        lines.append(f"Not compared: {_named(pairs)}, as {why}.")
    sets = {attempt.name: len(attempt.tests) for attempt in comparison.attempts if attempt.tests}
    if any(not p.refused and p.test_sets < max(sets[p.first], sets[p.second]) for p in comparison.pairs):
        counts = ", ".join(f"{name} {n}" for name, n in sets.items())
        lines.append(f"Test sets differ in number ({counts}): each pair is compared on those that both have.")
    for attempt, first in repeats(comparison.compared).items():
        of_first = ", ".join(f"{key}={value}" for key, value in first.thinned.items())
        lines.append(f"{attempt.name} trains on the same images as {of_first}: these are the same runs, compared once.")
    lines += [
        f"{a.name}: {a.copies} run{_s(a.copies)} of the same seed and images left out, the newest counts."
        for a in comparison.attempts
        if a.copies
    ]
    return lines


def _named(pairs: Sequence[tuple[str, str]]) -> str:
    """Name a few pairs each; of many the attempts on either side, or all of them where there are no two sides."""
    if len(pairs) <= 3:
        return "; ".join(f"{first} and {second}" for first, second in pairs)
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    partners = {name for pair in pairs if names[0] in pair for name in pair} - {names[0]}
    sides = [name for name in names if name not in partners], [name for name in names if name in partners]
    if {frozenset(pair) for pair in pairs} != {frozenset(pair) for pair in product(*sides)}:
        return f"{len(pairs)} pairs of {', '.join(names)}"
    one, many = sorted(sides, key=len)
    first = one[0] if len(one) == 1 else f"each of {', '.join(one)}"
    return f"{first} with each of {', '.join(many)}"


def p_text(value: float | None) -> str:
    return "unknown" if value is None else "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _s(n: int) -> str:
    return "" if n == 1 else "s"


def _groups(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    """Return the attempts in groups that share test sets and a metric: those of different groups do not compare."""
    groups: list[list[Attempt]] = []
    for attempt in attempts:
        touching = [
            group
            for group in groups
            if any(attempt.metric == a.metric and attempt.tests.keys() & a.tests.keys() for a in group)
        ]
        groups = [g for g in groups if g not in touching] + [[*(a for g in touching for a in g), attempt]]
    return sorted(groups, key=lambda group: attempts.index(group[0]))
