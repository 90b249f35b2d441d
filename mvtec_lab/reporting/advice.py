"""Say at a verdict's end what would tell two attempts apart that are not shown to differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from mvtec_lab.evaluation.planning import MOST_IMAGES, MOST_REPEATS, Design, rounded, ways
from mvtec_lab.evaluation.products_planning import (
    HARDLY_KNOWN,
    MOST_PRODUCTS,
    OverProducts,
    ProductsDesign,
    ways_over_products,
)
from mvtec_lab.evaluation.specs import METRICS
from mvtec_lab.reporting.pairs import Pair
from mvtec_lab.reporting.products import ProductsPair

AnyPair = TypeVar("AnyPair", Pair, ProductsPair)
FAR = 1_000  # images more, which few label to compare two attempts: MVTec AD's largest product has 480 in all


def closest_rival(best: str | None, pairs: Sequence[AnyPair]) -> AnyPair | None:
    """Return the pair of the best attempt and its closest rival: verdict, first lines and plan are about it.

    The rival is the attempt that, of those not shown to differ, has the highest figures on test. None where no attempt
    is the best, or where it is told from all others.
    """
    level = [pair for pair in pairs if best in (pair.first, pair.second) and pair.evidence and not pair.different]
    return None if best is None else min(level, key=lambda pair: pair.lead_of(best), default=None)


def advice(best: str | None, pairs: Sequence[Pair]) -> str:
    """Return what would tell the best attempt from its closest rival; empty where it is told from all others.

    The difference that is to be shown is the one that was seen: it is the best guess of the true one, and no more than
    that.

    Args:
        best: the attempt that validation chooses; None: none is chosen.
        pairs: of attempts that were compared.
    """
    pair = closest_rival(best, pairs)
    if best is None or pair is None:
        return ""
    return _of_pair(pair, pair.second if pair.first == best else pair.first, best)


def _of_pair(pair: Pair, rival: str, best: str) -> str:
    assert pair.evidence is not None
    metric, seen, size = METRICS[pair.metric], pair.evidence.design, abs(pair.lead)
    found = ways(pair.evidence, size, pair.alpha) if size > 0 else []
    if found == [seen]:  # what is there would mostly do: this was bad luck, of which a plan knows nothing
        return ""
    who = f"{best} and {rival}" if not pair.models else f"the models of {best} and {rival}"
    apart = f"{metric.difference_of(size)} seen{metric.phrase}"
    if not found:
        even = [f"even {MOST_IMAGES:,} {_images(seen.folds > 1)} would not tell them apart"]
        even += [f"nor would {MOST_REPEATS} repeats"] if seen.folds > 1 else []
        who = f"T{who[1:]}" if pair.models else who  # a name stays as it is
        return (
            f"{who} are too close ({apart}): choose by time or memory, or ask what shows a difference that matters to "
            f"you (task=plan). E{', '.join(even)[1:]}."
        )
    near = [design for design in found if design.images - seen.images < FAR]
    if not near:
        who = f"T{who[1:]}" if pair.models else who
        least = way_of(min(found, key=lambda design: design.images), seen)
        return (
            f"{who} are too close for these images to tell apart ({apart}): choose by time, memory or what a mistake "
            f"costs. {least[0].upper()}{least[1:]} would show which is better."
        )
    few = near if len(near) < 3 else [near[0], near[-1]]  # a sentence has room for two
    first, *others = [way_of(design, seen) for design in few]
    others = [text.replace(f" more {_images(seen.folds > 1)}", " more") for text in others]
    return f"To tell {who} apart ({apart}) you need {', or '.join([first, *others])}."


def advice_over_products(best: str | None, pairs: Sequence[ProductsPair]) -> str:
    """Return what would tell the best attempt from its closest rival over products; empty where nothing is needed.

    Args:
        best: the attempt that validation chooses; None: none is chosen.
        pairs: of attempts over all products.
    """
    pair = closest_rival(best, pairs)
    if best is None or pair is None:
        return ""
    evidence, metric, size = pair.evidence, METRICS[pair.metric], abs(pair.lead_of(best))
    assert evidence is not None
    who = f"{best} and {pair.second if pair.first == best else pair.first}"
    apart = f"{metric.difference_of(size)} seen{metric.phrase} in the mean"
    found = ways_over_products(evidence, size, pair.alpha) if size > 0 else []
    if found == [evidence.design]:
        return ""
    images = same_products(evidence, found)
    if not found:
        return (
            f"Over products {who} are too close ({apart}): choose by time or memory, or ask what shows a difference "
            f"that matters to you (task=plan). Even {MOST_PRODUCTS} products would not tell the two apart. {images}"
        )
    needed = ", or ".join(way_over_products(design, evidence.design, pair.labelled) for design in found)
    return " ".join(filter(None, (f"To tell {who} apart over products ({apart}) you need {needed}.", images)))


def same_products(evidence: OverProducts, ways: Sequence[ProductsDesign]) -> str:
    """Say why more images of the same products are not among the ways to show a difference; empty where they are."""
    if any(design.images > evidence.images for design in ways):
        return ""
    if evidence.products <= HARDLY_KNOWN:
        return (
            f"With {evidence.products} products it is hardly known how much products differ, and so not whether more "
            "images of these show it."
        )
    if evidence.own < 0.5:
        return "More images of these products do not show it: how products differ is the larger part."
    return f"More images of these products do not show it, not even {MOST_IMAGES:,} of each."


def way_over_products(design: ProductsDesign, seen: ProductsDesign, labelled: bool) -> str:
    """Return in words what a design over products takes beyond the one that was seen."""
    if design.products > seen.products:
        more = rounded(design.products - seen.products)
        return f"about {more} more product{'s' if more > 1 else ''} like these"
    return f"about {rounded(design.images - seen.images):,} more {_images(labelled)} of each product"


def way_of(design: Design, seen: Design) -> str:
    """Return in words what a design takes beyond the one that was seen."""
    if design.folds == seen.folds and design.images > seen.images:
        further = f" with cv.repeats={design.repeats}" if design.folds > 1 else f" and {design.repeats} seeds of each"
        more = f"about {rounded(design.images - seen.images):,} more {_images(seen.folds > 1)}"
        return more + (further if design.repeats != seen.repeats else "")
    if design.folds == 1:
        return f"{design.repeats} seeds of each"
    repeats = f" cv.repeats={design.repeats}" if design.repeats > 1 else ""
    which = "the same images" if seen.folds > 1 else f"all {design.images} labelled images"
    return f"cv.folds={design.folds}{repeats} on {which} ({design.runs} runs of each)"


def _images(labelled: bool) -> str:
    """Return which images a design needs: over folds every labelled image is tested."""
    return "labelled images" if labelled else "test images"
