"""The verdict over several products, in sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from mvtec_lab.evaluation.products import RANKS
from mvtec_lab.evaluation.specs import METRICS, Metric, choosing
from mvtec_lab.reporting.attempts import Attempt
from mvtec_lab.reporting.choice import CHOSEN, UNDECIDED, AnyPair, Contest, ahead, sides
from mvtec_lab.reporting.pairs import Comparison
from mvtec_lab.reporting.products import MEAN, Placed, ProductsComparison
from mvtec_lab.reporting.runs import failure
from mvtec_lab.reporting.verdict import FEW, p_text, validated_alike
from mvtec_lab.results import GOOD

UNLIKE = 0.5  # I squared from which on Higgins et al., BMJ 327, 2003, call differences moderately inconsistent
# The standard errors by which a mean of so few products must differ from 0: Student's t at 5%, two-sided.
ASKED = {2: 12.7, 3: 4.3, 4: 3.2}


def sentences(many: ProductsComparison) -> list[str]:
    """Return the verdict over products; where only one has completed runs, that product's own."""
    usable = {name: part for name, part in many.products.items() if part.done}
    if not usable:
        return ["No run was completed: there is nothing to compare."]
    lines: list[str]
    if len(usable) == 1:
        ((name, only),) = usable.items()
        lines = [f"Only {name} has completed runs: nothing is said over products, and this is its own verdict."]
        many.advice, many.verdict = only.advice, [*lines, *only.verdict]
        many.add([*_failed(many), *many.notes])
        return many.verdict
    nothing, contest = _nothing_learnt(usable), contest_of(many)
    lines = [nothing + _best(many, len(usable), contest, bool(nothing)), *_against_best(many, contest), *_among(many)]
    overruled = _overruled(contest)
    lines = [*lines, *overruled] if nothing else [*overruled, *lines]  # the one to use comes first, if there is one
    lines += [*_disagreement(many), *_tests(many), *_few(many), *_ranks(many)]
    lines += [*_each(usable), *_not_learnt(usable), *_classes(usable)]
    return [*lines, *_left_out(many), *_unranked(many), *_failed(many), *many.notes]


def contest_of(many: ProductsComparison) -> Contest:
    """Return what decides between the attempts over all products."""
    by_name: dict[str, dict[str, Attempt]] = defaultdict(dict)
    for product, part in many.products.items():
        for attempt in part.done:
            by_name[attempt.name][product] = attempt
    best = by_name.get(many.best or "", {})

    def alike(name: str) -> bool:
        other = by_name[name]
        return all(validated_alike(best[product], other[product]) for product in best.keys() & other.keys())

    ranked = [placed.attempt for placed in many.placed if placed.mean is not None]
    return Contest(many.best, many.over, [*by_name], ranked, alike, many.reference, len(many.common))


def _best(many: ProductsComparison, usable: int, contest: Contest, nothing: bool) -> str:
    """Name the best attempt, what chose it, and its metric on each product; ``nothing``: no attempt has learnt."""
    ranked = [placed for placed in many.placed if placed.mean is not None]
    if not ranked:
        return f"Nothing ranks these attempts: no two of {usable} products have results of the same attempts."
    metric, over = _metric(many), f"{len(many.common)} products"
    best = next((placed for placed in ranked if placed.attempt == many.best), None)
    if best is None:
        best = max(ranked, key=lambda placed: metric.sign * (placed.mean or 0.0))
        text = f"Validation cannot choose among these attempts, and the best on test is flattered: {best.attempt}"
    elif len(ranked) == 1:
        text = f"{best.attempt} over {over}"
    else:
        chooser = choosing(next(a.problem for a in many.done if a.name == best.attempt))
        decided = any(ahead(name, many.over, contest.ranked) for name in contest.ranked)
        text = "" if nothing or many.reference or decided else f"{UNDECIDED} "
        overruled = not nothing and any(contest.alike(name) for name, _ in contest.overruling)
        text += (
            f"Validation chose, in the mean of {over}," if overruled else f"Best on validation, in the mean of {over}:"
        )
        text += f" {best.attempt} ({chooser.title} {many.validation:.3f})"
    how = f" {many.ranking.sentence}" if many.ranking and many.ranking.sentence else ""
    return f"{text}; test {metric.title} {best.mean:.3f}, the mean of {_values(best, many.common)}.{how}"


def _values(placed: Placed, products: Sequence[str]) -> str:
    """Return the metric on each product, of many the lowest and the highest."""
    shown = sorted(products, key=lambda product: placed.values[product])
    texts = {product: f"{product} {placed.values[product]:.3f}" for product in products}
    if len(products) <= FEW + 1:
        return ", ".join(texts.values())
    return f"{len(products)}, from {texts[shown[0]]} to {texts[shown[-1]]}"


def _overruled(contest: Contest) -> list[str]:
    """Name the attempts that the test shows to be better than the best by validation."""
    lines = []
    for alike in (True, False):
        some = [_side(pair, str(contest.best)) for name, pair in contest.overruling if contest.alike(name) == alike]
        be, unlike = "is" if len(some) == 1 else "are", "" if alike else CHOSEN[alike]
        if some:
            lines.append(f"{', '.join(some)} {be} shown to be better on test than {contest.best}{unlike}.")
    return lines


def _against_best(many: ProductsComparison, contest: Contest) -> list[str]:
    """Compare the reference, or else the best attempt, with each other one that no sentence before has named."""
    name = many.reference or many.best
    if name is None:
        return []
    beaten, level, lost = sides(name, many.over)
    kinds = {
        f"{name} is shown to be better than": beaten,
        f"Not shown to differ from {name}:": level,
        f"{name} is shown to be worse than": [side for side in lost if side not in contest.overruling],
    }
    return [f"{what} {', '.join(_side(pair, name) for _, pair in of)}." for what, of in kinds.items() if of]


def _side(pair: AnyPair, name: str) -> str:
    """Return the other of a pair, how far it is behind or ahead, with the interval and p."""
    metric, difference = METRICS[pair.metric], pair.difference
    assert difference is not None
    other, lead = (pair.second if pair.first == name else pair.first), -pair.lead_of(name)
    where = "level" if abs(lead) < 5e-4 else f"{'ahead' if lead > 0 else 'behind'} by {metric.difference_of(abs(lead))}"
    turn = (1 if pair.first == other else -1) * metric.sign * (1 if lead > 0 else -1)
    bounds = sorted(turn * bound for bound in (difference.low, difference.high) if bound is not None)
    interval = f" [{', '.join(metric.step_of(bound) for bound in bounds)}]" if bounds and where != "level" else ""
    return f"{other} ({where}{interval}, p {p_text(pair.p_holm)})"


def _among(many: ProductsComparison) -> list[str]:
    """Name the pairs beside those of the best that differ; and say where none of all pairs does."""
    named = many.reference or many.best
    different = [pair for pair in many.over if pair.different]
    others = [pair for pair in different if named not in (pair.first, pair.second)]
    lines = []
    for pair in others[:FEW]:
        high = pair.first if pair.lead_of(pair.first) > 0 else pair.second
        lines.append(f"{high} is shown to be better than {_side(pair, high)}.")
    if len(others) > FEW:
        lines.append(f"{len(others) - FEW} further pairs are shown to differ; the report has all.")
    judged = [pair for pair in many.over if pair.p is not None]
    if len(judged) > 1 and not different:
        lines.append("No attempt is shown to be better than another over these products.")
    return lines


def _disagreement(many: ProductsComparison) -> list[str]:
    """Say of which pairs the difference is not the same on all products."""
    named = many.reference or many.best
    pairs = [p for p in many.over if p.inconsistency is not None and p.inconsistency >= UNLIKE]
    lines = []
    for pair in sorted(pairs, key=lambda pair: named not in (pair.first, pair.second))[:FEW]:
        metric, values = METRICS[pair.metric], pair.by_product
        low, high = min(values, key=lambda p: values[p]), max(values, key=lambda p: values[p])
        ends = " to ".join(f"{metric.step_of(values[product], sign=True)} on {product}" for product in (low, high))
        lines.append(
            f"Products do not agree on {pair.first} less {pair.second}: from {ends}, and {pair.inconsistency:.0%} of "
            "that spread is more than the luck of the test images: look at each product."
        )
    return lines


def _tests(many: ProductsComparison) -> list[str]:
    judged = [pair for pair in many.over if pair.difference is not None]
    tests = dict.fromkeys(f"{p.difference.method} on {METRICS[p.metric].title}" for p in judged if p.difference)
    sizes = sorted({len(pair.by_product) for pair in judged})
    many_pairs = f", with Holm's correction for {len(judged)} comparisons" if len(judged) > 1 else ""
    counted = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}" if sizes else ""
    return [f"Where p comes from: {' or '.join(tests)}, {counted} of them{many_pairs}."] if judged else []


def _few(many: ProductsComparison) -> list[str]:
    """Say how little a few products show, and why ranks do not decide yet."""
    by_mean = [pair for pair in many.over if pair.difference is not None and pair.difference.method == MEAN]
    if not by_mean:
        return []
    fewest = min(len(pair.by_product) for pair in by_mean)
    if fewest in ASKED:
        return [
            f"{fewest} products say little of others like them: with Student's t of {fewest - 1} degree"
            f"{'s' if fewest > 2 else ''} of freedom a mean must lie {ASKED[fewest]} standard errors from 0. What "
            "holds on each of them, its own verdict says."
        ]
    return [
        f"Ranks of {fewest} products cannot reach p = 0.05 for {len(by_mean)} pair{'s' if len(by_mean) > 1 else ''}: "
        "the mean decides."
    ]


def _ranks(many: ProductsComparison) -> list[str]:
    ranked = sorted((p for p in many.placed if p.rank is not None), key=lambda placed: placed.rank or 0.0)
    if len(many.common) < RANKS or len(ranked) < 2:
        return []
    test = "" if many.friedman is None else f"; that all rank alike has p {p_text(many.friedman)} (Friedman's test)"
    names = ", ".join(f"{placed.attempt} {placed.rank:.1f}" for placed in ranked[: 2 * FEW])
    return [f"Mean rank over {len(many.common)} products, 1 is the best: {names}{test}."]


def _each(usable: dict[str, Comparison]) -> list[str]:
    best = {name: part.best for name, part in usable.items() if part.best and len(part.done) > 1}
    if not best:
        return []
    if len({*best.values()}) == 1:
        return [f"{next(iter(best.values()))} is the best on validation on each of them."] if len(best) > 1 else []
    return [f"Best on validation: {', '.join(f'{attempt} on {name}' for name, attempt in best.items())}."]


def _learnt(part: Comparison) -> list[Attempt]:
    return [attempt for attempt in part.done if attempt.learnt is not None]


def _nothing_learnt(usable: dict[str, Comparison]) -> str:
    """Say first of all where on no product an attempt is better than one that learnt nothing."""
    known = [attempt for part in usable.values() for attempt in _learnt(part)]
    if not known or any(attempt.learnt for attempt in known) or known[0].metric.chance is None:
        return ""
    metric = known[0].metric
    return f"{metric.words.chance[1]}: on none of {len(usable)} products is an attempt better than {_chance(metric)}. "


def _not_learnt(usable: dict[str, Comparison]) -> list[str]:
    """Name the products on which no attempt is shown to be better than chance, where there are others."""
    parts = {name: _learnt(part) for name, part in usable.items() if _learnt(part)}
    names = [name for name, known in parts.items() if not any(attempt.learnt for attempt in known)]
    if not names or len(names) == len(parts):
        return []
    return [
        f"No attempt is shown to be better than {_chance(next(iter(parts.values()))[0].metric)} on: {', '.join(names)}."
    ]


def _chance(metric: Metric) -> str:
    return metric.chance[1] if metric.chance else "chance"


def _metric(many: ProductsComparison) -> Metric:
    return METRICS[many.metrics[0]]


def _classes(usable: dict[str, Comparison]) -> list[str]:
    """Say that differences are put together, and not classes, where products have their own."""
    classes = [{*attempt.done[0].classes} - {GOOD} for part in usable.values() for attempt in part.done[:1]]
    if not all(classes) or set.intersection(*classes):
        return []
    return [
        "These products have no type of defect in common: attempts are compared on each product, and only their "
        "differences are put together."
    ]


def _left_out(many: ProductsComparison) -> list[str]:
    """Say which product does not count for which pairs, and why."""
    why: dict[tuple[str, str], list[str]] = defaultdict(list)
    for pair in many.over:
        for product, reason in pair.left_out.items():
            why[product, reason].append(f"{pair.first} and {pair.second}")
        if pair.refused and not pair.left_out:
            why["", pair.refused].append(f"{pair.first} and {pair.second}")
    return [
        f"{f'{product} does not count' if product else 'Not compared'} for "
        f"{'; '.join(pairs) if len(pairs) <= 3 else f'{len(pairs)} pairs'}, as {reason}."
        for (product, reason), pairs in why.items()
    ]


def _unranked(many: ProductsComparison) -> list[str]:
    names = [f"{p.attempt} ({', '.join(p.values) or 'no result'})" for p in many.placed if p.mean is None]
    ranked = any(placed.mean is not None for placed in many.placed)
    return [f"Not ranked over products, with too few of them: {'; '.join(names)}."] if names and ranked else []


def _failed(many: ProductsComparison) -> list[str]:
    """Say which products have no result, and why."""
    lines = []
    for name, part in many.products.items():
        if not part.done:
            ended = [run for attempt in part.attempts for run in attempt.runs if not run.running]
            reasons = list(dict.fromkeys(map(failure, ended))) or ["its runs are still running"]
            more = f" (and {len(reasons) - 1} further reasons)" if len(reasons) > 1 else ""
            lines.append(f"{name} is no part of this: {reasons[0]}{more}.")
    return lines
