"""Say what to do with a comparison over several products, for somebody who reads nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from mvtec_lab.evaluation import statistics
from mvtec_lab.evaluation.differences import LEAST_RUNS
from mvtec_lab.evaluation.products import RANKS
from mvtec_lab.evaluation.specs import METRICS
from mvtec_lab.reporting.attempts import Attempt, Estimate
from mvtec_lab.reporting.headline import Headline, Light, headline_of, likely, mistakes_of
from mvtec_lab.reporting.products import Placed, ProductsComparison, ProductsPair
from mvtec_lab.reporting.products_verdict import UNLIKE


def products_headline(many: ProductsComparison) -> Headline:
    """Return the headline of a comparison over products."""
    usable = [part for part in many.products.values() if part.done]
    if len(usable) < 2:
        return headline_of(usable[0] if usable else many)
    if all(attempt.learnt is False for attempt in many.done):
        why = f" Likely because {reason}." if (reason := likely(many.done[0])) else ""
        use = f"Use none of these attempts: on no product is it shown that anything was learnt.{why}"
        return Headline("red", "Nothing learnt", use, next="Next: see that one attempt learns at all on one product.")
    placed = next((placed for placed in many.placed if placed.attempt == (many.reference or many.best)), None)
    if placed is None or placed.mean is None:
        why = "validation cannot choose among them" if many.common else "they have no two products in common"
        why = "they are judged by different metrics" if len(many.metrics) > 1 else why
        use = f"No single attempt can be named over these products, as {why}."
        return Headline("amber", "Open", f"{use} Each product's own report names the best there.")
    light, word, use, chosen = _use(many, placed)
    of = [attempt for attempt in many.done if attempt.name == chosen.attempt]
    return Headline(light, word, use, _sure(many, chosen), _next(many, light), _mistakes(of))


def _use(many: ProductsComparison, placed: Placed) -> tuple[Light, str, str, Placed]:
    """Return light, word and the sentence that says which attempt to use, and that attempt.

    Args:
        placed: the reference, which is in use, or else the best on validation.
    """
    name, over = placed.attempt, f"over {len(many.common)} products"
    ranked = {each.attempt: each for each in many.placed if each.mean is not None}
    mine = sorted((p for p in many.over if name in (p.first, p.second)), key=lambda pair: pair.lead_of(name))
    shown = {_other(name, pair): pair.lead_of(name) for pair in mine if pair.different}
    better, worse = ([other for other, lead in shown.items() if (lead < 0) == ahead] for ahead in (True, False))
    if len(ranked) == 1:
        return "amber", "Open", f"{name} is the only attempt on these products: compare it with another one.", placed
    if better:
        other = many.best if many.best in better else better[0]
        use = f"Use {other}: {over} it is shown to be better than {name}"
        if many.reference:
            return "green", "Shown", f"{use}.", ranked.get(other, placed)
        return "amber", "Open", f"{use}, which validation chose.", ranked.get(other, placed)
    verb = "Stay with" if many.reference else "Use"
    if len(worse) == len(ranked) - 1:
        others = worse[0] if len(worse) == 1 else f"all {len(worse)} others"
        return "green", "Shown", f"{verb} {name}: {over} it is shown to be better than {others}.", placed
    if many.reference:
        return "amber", "Open", f"Stay with {name}: {over} no other attempt is shown to be better.", placed
    some = f", and is shown to be better than {len(worse)} of the {len(ranked) - 1} others" if worse else ""
    use = f"Use {name} if one has to be chosen for all products: {over} it is the best on validation{some}; no attempt "
    return "amber", "Open", f"{use}is shown to be the best.", placed


def _other(name: str, pair: ProductsPair) -> str:
    return pair.second if pair.first == name else pair.first


def _sure(many: ProductsComparison, chosen: Placed) -> str:
    """Say what an attempt reaches on the products, the worst of them named."""
    metric = METRICS[many.metrics[0]]
    low, *_, high = sorted(many.common, key=lambda product: metric.sign * chosen.values[product])
    ends = f"{chosen.values[low]:.2f} on {low}, the worst, to {chosen.values[high]:.2f} on {high}"
    return f"On test its {metric.title} is {chosen.mean:.2f} in the mean of the products: from {ends}."


def _mistakes(attempts: Sequence[Attempt]) -> dict[str, Estimate]:
    """Return the share of each kind of mistake in the mean of the products, Student's interval from three on."""
    of_products = [mistakes_of(attempt) for attempt in attempts]
    found = {}
    for kind in dict.fromkeys(kind for mistakes in of_products for kind in mistakes):
        values = [mistakes[kind].value for mistakes in of_products if kind in mistakes]
        bounds: tuple[float | None, float | None] = (None, None)
        if len(values) >= LEAST_RUNS:
            low, high = statistics.corrected_interval(values, 0.0)  # products share no image
            bounds = max(low, 0.0), min(high, 1.0)
        found[kind] = Estimate(sum(values) / len(values), *bounds, f"mean of {len(values)} products")
    return found


def _next(many: ProductsComparison, light: Light) -> str:
    """Say what to do next."""
    failed = [name for name, part in many.products.items() if not part.done]
    if failed:
        return f"Next: see why there is no result for {', '.join(failed)}, at the end of the verdict."
    if any(pair.inconsistency is not None and pair.inconsistency >= UNLIKE for pair in many.over):
        return "Next: look at each product's own report, as the products do not agree which attempt is better."
    if light == "green":
        return "Next: judge it on images of another day or batch before it decides on a line (task=evaluate)."
    if many.advice:
        return f"Next: {many.advice}"
    if len(many.common) < RANKS:
        return "Next: add products, which say more than further images of these; or decide for each by its own report."
    return "Next: take the simplest of those that are not shown to differ."
