"""Say in figures what it takes to show a difference between attempts over several products."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from rich.console import Console

from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.differences import POWER
from mvtec_lab.evaluation.products_planning import (
    MOST_PRODUCTS,
    ProductsDesign,
    ways_over_products,
)
from mvtec_lab.evaluation.specs import METRICS
from mvtec_lab.reporting.advice import closest_rival, same_products, way_over_products
from mvtec_lab.reporting.plan import (
    PlanOf,
    Way,
    at_once,
    duration,
    machines_of,
    of_100,
    of_time,
    seconds_of_a_run,
    size_of,
)
from mvtec_lab.reporting.products import ProductsComparison, ProductsPair
from mvtec_lab.reporting.terminal import print_columns


@dataclass(frozen=True)
class ProductsPlan(PlanOf[ProductsDesign]):
    """Hold a plan over products; ``pair`` stands in the middle, as that of ``Plan``."""

    pair: ProductsPair


def plan_over_products(many: ProductsComparison, difference: float | None) -> ProductsPlan:
    """Return what it takes to show a difference over products.

    Args:
        many: the comparison of runs that exist.
        difference: as ``plan`` takes it.

    Raises:
        LabError: nothing can be planned from these runs, or a difference that the metric cannot have.
    """
    judged = [pair for pair in many.over if pair.evidence is not None]
    if not judged:
        reasons = "; ".join(dict.fromkeys(pair.refused for pair in many.over if pair.refused)) or "there is one attempt"
        raise LabError(f"no two of these attempts can be compared over products, so there is no plan: {reasons}")
    if len(keys := {pair.metric for pair in judged}) > 1:
        titles = " and ".join(METRICS[key].title for key in sorted(keys))
        raise LabError(f"these attempts are judged by different metrics ({titles}): give verdict.metric=NAME")
    metric, names = METRICS[judged[0].metric], [placed.attempt for placed in many.placed]
    size = size_of(metric, difference)
    varied = [(p, p.evidence.found(p.alpha)) for p in judged if p.evidence is not None and p.evidence.variance > 0]
    if not varied:
        raise LabError(f"{', '.join(names)} do not differ on any product, so nothing says how large luck is")
    pair = closest_rival(many.best, [pair for pair, _ in varied])
    pair = pair or sorted(varied, key=lambda each: inf if each[1] is None else each[1])[len(varied) // 2][0]
    found = next(value for each, value in varied if each is pair)
    evidence, runs = pair.evidence, [run for attempt in many.done for run in attempt.done]
    assert evidence is not None
    power, seconds = evidence.power(evidence.design, pair.alpha)(size), seconds_of_a_run(runs)
    per_product = len(runs) / sum(bool(part.done) for part in many.products.values())
    costs = []
    for design in [] if power >= POWER else ways_over_products(evidence, size, pair.alpha):
        if design.products > evidence.products:
            new = per_product * (design.products - evidence.products)
        else:  # all of them once more, and longer ones
            new = len(runs) * design.images / evidence.images
        number = round(per_product * design.products)
        costs.append(Way(design, number, None if seconds is None else seconds * new))
    known = (names, metric, size, len(judged), evidence.design, found, power, costs, at_once(runs), machines_of(runs))
    return ProductsPlan(*known, pair)


def show(plan: ProductsPlan) -> None:
    """Print a plan over products."""
    console, seen = Console(), plan.seen
    rows = [
        [
            way_over_products(way.design, seen, plan.pair.labelled),
            f"{way.design.products}",
            f"{way.design.images:,}",
            f"{way.runs}",
            duration(way.seconds),
        ]
        for way in plan.ways
    ]
    for line in said(plan):
        console.print(line, markup=False, highlight=False)
    if rows:
        console.print()
        print_columns(
            console, ["what shows it", "products", "images\nof each", "runs\nin all", "time for\nnew runs"], rows
        )
        if plan.ways[0].seconds is not None:
            console.print(of_time(plan.jobs, plan.machines), markup=False, highlight=False)


def said(plan: ProductsPlan) -> list[str]:
    """Return in sentences what can be shown with the products that are there, and what cannot."""
    metric, pair, many, seen = plan.metric, plan.pair, plan.comparisons > 1, plan.seen
    wanted, found = metric.difference_of(plan.difference), plan.found
    names = f"{len(plan.attempts)} attempts" if many else " and ".join(plan.attempts)
    corrected = f", with Holm's correction for {plan.comparisons} comparisons" if many else ""
    each = f"{seen.images} {'labelled' if pair.labelled else 'test'} images"
    there = f"With {seen.products} products of {each} in the mean, as they are there, "
    if found is None:
        there += "no difference is shown in eight of ten cases"
    else:
        between = f" between {pair.first} and {pair.second}" if many else ""
        there += f"a difference of {metric.difference_of(found)}{between} is shown in eight of ten cases"
    lines = [
        f"To show that {names} differ over products like these by {wanted} in {metric.title}, in eight of ten cases"
        f"{corrected}:",
        f"{there}, and one of {wanted} in {of_100(plan.shown)}.",
    ]
    if plan.enough:
        return [*lines, "That is enough."]
    if not plan.ways:
        lines.append(
            f"Not even {MOST_PRODUCTS} products show it: plan for a larger difference, or decide for each product by "
            "its own report."
        )
    assert pair.evidence is not None
    return [*lines, *filter(None, [same_products(pair.evidence, [way.design for way in plan.ways])])]
