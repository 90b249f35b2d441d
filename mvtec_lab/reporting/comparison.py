"""Compare the attempts of some runs pair by pair, and draw a verdict.

Every pair is compared, or each attempt with the one that ``verdict.reference`` names, in the default metric of the
problem or in ``verdict.metric``. Attempts of several problems are compared where one metric judges them all. Holm's
correction is over pairs. Attempts that were run on several products are compared on each, and over all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mvtec_lab.config import VerdictConfig
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation import statistics
from mvtec_lab.evaluation.specs import METRICS, Metric, require_deciding
from mvtec_lab.reporting import products_verdict
from mvtec_lab.reporting.advice import advice, advice_over_products
from mvtec_lab.reporting.attempts import Attempt
from mvtec_lab.reporting.circumstances import apart
from mvtec_lab.reporting.families import at_each, pairs_asked
from mvtec_lab.reporting.grouping import by_attempt
from mvtec_lab.reporting.headline import headline_of
from mvtec_lab.reporting.pairs import ALPHA, Comparison, Pair, pair_of
from mvtec_lab.reporting.product_names import product_of, told_apart
from mvtec_lab.reporting.products import ProductsPair, over_products, products
from mvtec_lab.reporting.products_headline import products_headline
from mvtec_lab.reporting.runs import Settings, require_one, settings_known, sound, tested
from mvtec_lab.reporting.shots import curves_of
from mvtec_lab.reporting.spread import spreads
from mvtec_lab.reporting.verdict import sentences
from mvtec_lab.results import RunResult

NAMED = 5  # runs that a sentence names


def compare(runs: Sequence[RunResult], verdict: VerdictConfig | None = None) -> Comparison:
    """Compare the attempts of some runs pair by pair.

    Args:
        runs: completed, failed and running ones.
        verdict: metric and reference; where it names none, those that the runs' own config.yaml agree on.

    Raises:
        LabError: ``verdict.metric`` is no metric that decides, or the files of all runs are damaged. Of several runs
            those that are damaged are left out, as ``Comparison.damaged`` says.
    """
    # load_runs looks as well, but a script may hand on runs that it made
    runs = [sound(run) for run in told_apart(runs)]
    require_one(runs)
    settings = {run.run_dir: settings_known(run) for run in runs}
    asked = verdict or VerdictConfig()
    key, metric_note = _agreed("verdict.metric", asked.metric, settings.values())
    reference, note = _agreed("verdict.reference", asked.reference, settings.values())
    if key is not None:
        require_deciding(key)
    names = products(runs)
    groups = by_attempt(runs, settings, product_of) if names else by_attempt(runs, settings)
    lacking = set() if key is None else _lacking(METRICS[key], groups.values())
    of_products: dict[str, dict[str, list[RunResult]]] = {name: {} for name in names.values()}
    for name, group in groups.items():
        for run in group:
            of_products.setdefault(names.get(product_of(run), ""), {}).setdefault(name, []).append(run)
    judged_by = {name: None if group[0].problem in lacking else key for name, group in groups.items()}
    attempts = {
        product: [_attempt(name, own, settings, judged_by[name]) for name, own in of.items()]
        for product, of in of_products.items()
    }
    require_one(_runs_of(attempts.values()))
    parts = {product: _compared(of, settings, key, reference) for product, of in attempts.items()}
    agreed = [*filter(None, (metric_note, note))]
    if names:
        over = over_products(parts, reference, [*agreed, *_left_out(_runs_of(attempts.values()))])
        over.verdict = products_verdict.sentences(over)
        over.add(_circumstances(over, over.over, parts))
        if not over.nothing_learnt and (line := advice_over_products(over.best, over.over)):
            over.advice = line
            over.verdict.append(line)
        over.headline = products_headline(over).lines
        return over
    (result,) = parts.values() or (_compared([], settings, key, reference),)
    result.add(agreed)
    return result


def _compared(
    attempts: Sequence[Attempt], settings: Mapping[str, Settings], key: str | None, reference: str | None
) -> Comparison:
    """Return the comparison of attempts, all of them on the same product where there are several."""
    own = {run.run_dir: settings[run.run_dir] for attempt in attempts for run in attempt.runs}
    result, notes = Comparison([*attempts], own), []
    done = [attempt.name for attempt in result.compared]
    if reference in done:
        result.reference = reference
    result.asked = reference
    result.pairs = _pairs(result.compared, reference)
    running = [attempt for attempt in result.attempts if any(run.running for run in attempt.runs)]
    if running:
        names = ", ".join(f"a run of {attempt.name}" if attempt.done else attempt.name for attempt in running)
        notes.append(f"Still running, and not part of this: {names}.")
    if key is not None and key not in result.metrics:
        titles = " and ".join(METRICS[other].title for other in result.metrics)
        notes.append(f"verdict.metric={key} is not what these attempts are judged by: {titles} instead.")
    known = reference in done or at_each(result.compared, reference)
    if reference is not None and not known and len(done) > 1:
        none = "is none of the completed attempts in the table: all pairs are compared."
        notes.append(f"verdict.reference={reference} {none}")
    notes += _left_out(_runs_of([attempts]))
    result.verdict = [
        *sentences(result),
        *_circumstances(result, result.pairs, {"": result}),
        *notes,
        *(curve.sentence for curve in curves_of(result)),
    ]
    result.verdict += [spread.sentence for spread in spreads(result)]
    # Of attempts that learnt nothing the difference is luck, and no plan follows from it.
    result.advice = "" if result.nothing_learnt else advice(result.best, _rivals(result))
    result.verdict += [result.advice] if result.advice else []
    result.headline = headline_of(result).lines
    return result


def _circumstances(
    comparison: Comparison, pairs: Sequence[Pair | ProductsPair], parts: Mapping[str, Comparison]
) -> list[str]:
    """Say in what the best attempt differs from those that it is compared with beside what they try.

    Args:
        comparison: which says what is best.
        pairs: those that decide.
        parts: the comparison on each product, by its name.
    """
    by_name: dict[str, dict[str, Attempt]] = {}
    for product, part in parts.items():
        for attempt in part.done:
            by_name.setdefault(attempt.name, {})[product] = attempt
    best = by_name.get(comparison.best or "")
    if best is None:
        return []
    base = next(iter(best.values())).base
    rivals = {
        name for p in pairs if p.difference for name in (p.first, p.second) if comparison.best in (p.first, p.second)
    }
    others = [of for name, of in by_name.items() if name in rivals and next(iter(of.values())).base != base]
    return apart(best, others, comparison.settings)


def _attempt(name: str, runs: Sequence[RunResult], settings: Mapping[str, Settings], metric: str | None) -> Attempt:
    """Return an attempt; those of its runs whose predictions.csv is damaged have failed."""
    try:
        return Attempt(name, runs, settings, metric)
    except LabError:
        return Attempt(name, [sound(run, tested) for run in runs], settings, metric)


def _runs_of(groups: Iterable[Iterable[Attempt]]) -> list[RunResult]:
    """Return the runs of attempts."""
    return [run for attempts in groups for attempt in attempts for run in attempt.runs]


def _left_out(runs: Sequence[RunResult]) -> list[str]:
    """Return a sentence on the runs that are damaged, if any; the table says which file of each."""
    if not (names := [Path(run.run_dir).name for run in runs if run.damaged]):
        return []
    named = ", ".join(names if len(names) <= NAMED else [*names[:NAMED], "..."])
    return [f"Left out, as a file of theirs is damaged: {len(names)} of {len(runs)} runs ({named})."]


def _rivals(comparison: Comparison) -> list[Pair]:
    """Return the pairs that the advice may be about: those of the best with other attempts, if there are any.

    One attempt at two numbers of training images is no choice between attempts.
    """
    base = {attempt.name: attempt.base for attempt in comparison.done}
    others = [pair for pair in comparison.pairs if base[pair.first] != base[pair.second]]
    mine = [pair for pair in others if comparison.best in (pair.first, pair.second)]
    return mine or others


def _lacking(metric: Metric, groups: Iterable[Sequence[RunResult]]) -> set[str]:
    """Return the problems of ``metric.partly`` that have an attempt, a group of runs, without the metric."""
    lacking = set()
    for group in groups:
        values = [metric.of(run.metrics.get("test", {})) for run in group if run.completed]
        if values and group[0].problem in metric.partly and not any(value is not None for value in values):
            lacking.add(group[0].problem)
    return lacking


def _pairs(attempts: Sequence[Attempt], reference: str | None) -> list[Pair]:
    """Return the pairs of attempts that are asked for, or those with the reference, with Holm's correction for them.

    Those that another metric judges than the reference are compared with each other.
    """
    metric = next((attempt.metric for attempt in attempts if attempt.name == reference), None)
    asked = pairs_asked(attempts, reference)
    tested = [
        # The reference stands second: the question is how much better the others are.
        pair_of(*((second, first) if reference in (first.name, first.base) else (first, second)))
        for first, second in asked
        if metric is None or reference in (first.name, second.name) or metric not in (first.metric, second.metric)
    ]
    judged = [(pair, pair.p) for pair in tested if pair.p is not None]
    adjusted = statistics.holm([p for _, p in judged])
    for (pair, _), p in zip(judged, adjusted, strict=True):
        pair.p_holm, pair.alpha = p, ALPHA / len(judged)  # Holm's first and hardest step
        pair.found = pair.evidence.found(pair.alpha) if pair.evidence else None
    return tested


def _agreed(key: str, asked: str | None, settings: Iterable[Settings]) -> tuple[str | None, str | None]:
    """Return the value that is asked for, or else the runs' own; and a remark where they do not agree."""
    if asked is not None:
        return asked, None
    named = list(dict.fromkeys(value for of_run in settings if (value := of_run.get(key, "null")) != "null"))
    if len(named) > 1:
        return None, f"The runs do not agree on {key} ({', '.join(named)}): task=compare with {key}=NAME decides."
    return (named[0] if named else None), None
