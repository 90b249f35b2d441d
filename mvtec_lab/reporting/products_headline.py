"""Say what to do with a comparison over several products, for somebody who reads nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from mvtec_lab.evaluation.differences import LEAST_RUNS
from mvtec_lab.evaluation.products import RANKS, mean_of_shares
from mvtec_lab.evaluation.specs import METRICS
from mvtec_lab.reporting.attempts import Attempt, Estimate
from mvtec_lab.reporting.choice import Choice, Light, alone, unlearnt
from mvtec_lab.reporting.headline import (
    MARKS,
    Headline,
    chance_of,
    flattered,
    headline_of,
    likely,
    mistakes_of,
    untested,
)
from mvtec_lab.reporting.products import Placed, ProductsComparison
from mvtec_lab.reporting.products_verdict import UNLIKE, contest_of


def products_headline(many: ProductsComparison) -> Headline:
    """Return the headline of a comparison over products."""
    usable = [part for part in many.products.values() if part.done]
    if len(usable) < 2:
        return headline_of(usable[0] if usable else many)
    if all(run.untested for attempt in many.done for run in attempt.done):
        return untested()
    if many.nothing_learnt:
        names = list(dict.fromkeys(attempt.name for attempt in many.done))
        choice, to_do = unlearnt(names, likely(many.done[0]), len(usable)), "see that one attempt learns at all"
        return Headline(choice.light, choice.word, choice.use, next=f"Next: {to_do} on one product.")
    placed = next((placed for placed in many.placed if placed.attempt == (many.reference or many.best)), None)
    if placed is None or placed.mean is None:
        why = "validation cannot choose among them" if many.common else "they have no two products in common"
        why = "they are judged by different metrics" if len(many.metrics) > 1 else why
        use = f"No single attempt can be named over these products, as {why}."
        return Headline("amber", "Open", f"{use} Each product's own report names the best there.")
    choice = _choice(many, placed)
    of = [attempt for attempt in many.done if attempt.name == choice.name]
    sure, further = _sure(many, choice), _next(many, choice.light)
    name, mark = (choice.name, MARKS[choice.light]) if len({a.name for a in many.done}) > 1 else ("", "")
    return Headline(choice.light, choice.word, choice.use, sure, further, _mistakes(of), name, mark)


def _choice(many: ProductsComparison, placed: Placed) -> Choice:
    """Return which attempt to use; ``placed``: the reference, which is in use, or else the best on validation."""
    if _single(many):
        of = [attempt for attempt in many.done if attempt.name == placed.attempt]
        learnt = all(attempt.learnt for attempt in of)
        return alone(placed.attempt, learnt, chance_of(of[0].metric), len(of))
    return contest_of(many).choice()


def _single(many: ProductsComparison) -> str:
    """Return the only attempt that is ranked, maybe beside others on too few products; empty where there are more."""
    names = [placed.attempt for placed in many.placed if placed.mean is not None]
    return names[0] if len(names) == 1 else ""


def _sure(many: ProductsComparison, choice: Choice) -> str:
    """Say what an attempt reaches on the products, the worst of them named."""
    metric = METRICS[many.metrics[0]]
    values = next(placed.values for placed in many.placed if placed.attempt == choice.name)
    products = many.common if {*many.common} <= values.keys() else [*values]
    low, *_, high = sorted(products, key=lambda product: metric.sign * values[product])
    ends = f"{values[low]:.2f} on {low}, the worst, to {values[high]:.2f} on {high}"
    mean = sum(values[product] for product in products) / len(products)
    return f"On test its {metric.title} is {mean:.2f} in the mean of the products: from {ends}.{flattered(choice)}"


def _mistakes(attempts: Sequence[Attempt]) -> dict[str, Estimate]:
    """Return the share of each kind of mistake in the mean of the products, with an interval from three on."""
    of_products = [mistakes_of(attempt) for attempt in attempts]
    found = {}
    for kind in dict.fromkeys(kind for mistakes in of_products for kind in mistakes):
        shares = [mistakes[kind] for mistakes in of_products if kind in mistakes]
        values = [share.value for share in shares]
        known = [(share.low, share.high) for share in shares if share.low is not None and share.high is not None]
        bounds: tuple[float | None, float | None] = (None, None)
        if len(known) == len(values) >= LEAST_RUNS:
            bounds = mean_of_shares(values, *zip(*known, strict=True))
        found[kind] = Estimate(sum(values) / len(values), *bounds, f"mean of {len(values)} products")
    return found


def _next(many: ProductsComparison, light: Light) -> str:
    """Say what to do next."""
    failed = [name for name, part in many.products.items() if not part.done]
    if failed:
        return f"Next: see why there is no result for {', '.join(failed)}, at the end of the verdict."
    if any(pair.inconsistency is not None and pair.inconsistency >= UNLIKE for pair in many.over):
        return "Next: look at each product's own report, as the products do not agree which attempt is better."
    if name := _single(many):
        return f"Next: compare it with another attempt (-m attempt={name},NAME cv.folds=5)."
    if light == "green":
        return "Next: judge it on images of another day or batch before it decides on a line (task=evaluate)."
    if many.advice:
        return f"Next: {many.advice}"
    if len(many.common) < RANKS:
        return "Next: add products, which say more than further images of these; or decide for each by its own report."
    return "Next: take the simplest of those that are not shown to differ."
