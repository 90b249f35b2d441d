"""Attempts that were run on several products: a comparison on each, and one over all of them.

A product is a block: attempts are compared within it, as on a single product, and only their differences are put
together. The products stand for others like them.
"""

from __future__ import annotations

import statistics as st
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mvtec_lab.evaluation import statistics
from mvtec_lab.evaluation.products import (
    RANKS,
    Overall,
    decides_by_ranks,
    friedman,
    mean_over_products,
    ranks,
    signed_rank,
)
from mvtec_lab.evaluation.products_planning import OverProducts
from mvtec_lab.evaluation.specs import METRICS
from mvtec_lab.reporting.attempts import Attempt, Estimate
from mvtec_lab.reporting.families import at_each, pairs_asked
from mvtec_lab.reporting.grouping import RUN_KEYS
from mvtec_lab.reporting.pairs import ALPHA, Comparison, Pair
from mvtec_lab.reporting.product_names import product_of
from mvtec_lab.reporting.ranking import Ranking, by_validation
from mvtec_lab.reporting.runs import Settings
from mvtec_lab.results import RunResult

# What may differ between products of one attempt.
OF_PRODUCT = {*RUN_KEYS, "data.name", "data.category", "data.archive", "split.file"}
MEAN, RANKED = "random-effects mean over products", "Wilcoxon's signed-rank test over products"


@dataclass
class ProductsPair:
    """Hold how two attempts compare over the products that both were judged on.

    Differences are the first's value minus the second's.
    """

    first: str  #: names of the two attempts
    second: str
    metric: str  #: the key of the metric that they are compared in
    by_product: dict[str, float] = field(default_factory=dict)  #: the difference on each product that counts
    left_out: dict[str, str] = field(default_factory=dict)  #: why another product does not count
    weights: dict[str, float] = field(default_factory=dict)  #: of the products in the mean, with the sum 1
    difference: Estimate | None = None  #: the mean with its 95% interval; its ``method`` names the test of p
    spread: float | None = None  #: the standard deviation of the true differences between products, as estimated
    inconsistency: float | None = None  #: the share of the differences' variance that is not the products' own noise
    p: float | None = None  #: of this pair by itself
    p_holm: float | None = None  #: p for the number of pairs; the verdict goes by it
    refused: str | None = None  #: why they were not compared
    #: what says how many products, or images of each, would show a difference, and the level at which
    evidence: OverProducts | None = field(default=None, repr=False)
    alpha: float = ALPHA
    labelled: bool = False  #: over folds, where all labelled images are tested

    @property
    def different(self) -> bool:
        """Tell whether one is shown to be better: by ranks only where the mean and most products point the same way."""
        if self.p_holm is None or self.difference is None or self.p_holm >= ALPHA:
            return False
        return self.difference.value * st.median(self.by_product.values()) > 0

    @property
    def models(self) -> bool:
        """Return False: each product has trainings of its own, so that their luck is part of the spread."""
        return False

    def lead_of(self, name: str) -> float:
        """Return how much better one of the two is than the other, in the mean."""
        lead = 0.0 if self.difference is None else METRICS[self.metric].sign * self.difference.value
        return lead if name == self.first else -lead

    @property
    def described(self) -> dict[str, Any]:
        """Return the pair's part of comparison.json."""
        mine = {key: value for key, value in asdict(self).items() if key not in ("evidence", "alpha", "labelled")}
        return mine | {"test": self.difference and self.difference.method, "different": self.different}


@dataclass
class Placed:
    """Hold what an attempt reaches on the products.

    Args:
        attempt: its name.
        values: its metric on each product where it has one.
        mean: over the products that all ranked attempts have, each counting the same; None: it is not ranked.
        rank: its mean rank over these products, the best is 1; None: it is not ranked.
    """

    attempt: str
    values: dict[str, float]
    mean: float | None = None
    rank: float | None = None


@dataclass
class ProductsComparison(Comparison):
    """Hold a comparison on each product, and the one over all of them.

    ``attempts`` and ``pairs`` are those of all products, one after the other; ``best`` and ``verdict`` are over all.
    """

    products: dict[str, Comparison] = field(default_factory=dict)  #: by the product's name, failed ones included
    over: list[ProductsPair] = field(default_factory=list)  #: the pairs over all products
    placed: list[Placed] = field(default_factory=list)  #: the attempts over all products
    common: list[str] = field(default_factory=list)  #: the products that means and ranks are over
    friedman: float | None = None  #: p that all attempts rank alike, from RANKS products and three attempts on
    ranking: Ranking | None = None  #: how validation ranks the attempts, by the mean over the common products
    notes: list[str] = field(default_factory=list)  #: what is said of the settings, after the verdict

    @property
    def validation(self) -> float | None:
        """Return what chose the best on validation; None where nothing did."""
        return self.ranking.value if self.ranking else None

    @property
    def rankings(self) -> list[Ranking]:
        """Return how validation ranks the attempts over all products."""
        return [self.ranking] if self.ranking else []

    @property
    def described(self) -> dict[str, Any]:
        """Return what comparison.json says."""
        parts = {name: {"best": part.best, "verdict": part.verdict} for name, part in self.products.items()}
        over = {
            "common": self.common,
            "attempts": [asdict(placed) for placed in self.placed],
            "friedman_p": self.friedman,
            "pairs": [pair.described for pair in self.over],
        }
        return super().described | {"products": parts, "over_products": over}


def products(runs: Sequence[RunResult]) -> dict[tuple[str, str], str]:
    """Return the names of the products of some runs; none where no attempt was run on two of them."""
    of_attempt: dict[str, set[tuple[str, str]]] = {}
    for run in runs:
        of_attempt.setdefault(run.attempt, set()).add(product_of(run))
    if all(len(found) < 2 for found in of_attempt.values()):
        return {}
    known = dict.fromkeys(product_of(run) for run in sorted(runs, key=lambda run: not run.started))  # failed ones last
    categories = [category for _, category in known]
    return {(data, name): name if categories.count(name) == 1 else f"{data}/{name}" for data, name in known}


def over_products(
    parts: Mapping[str, Comparison], reference: str | None, notes: Sequence[str] = ()
) -> ProductsComparison:
    """Return the comparison over products.

    Args:
        parts: the comparison on each product, by its name.
        reference: the attempt that every pair has; None: all pairs are compared.
        notes: sentences that follow the verdict.
    """
    attempts = [attempt for part in parts.values() for attempt in part.attempts]
    settings = {run_dir: own for part in parts.values() for run_dir, own in part.settings.items()}
    result = ProductsComparison(attempts, settings, products=dict(parts))
    result.pairs = [pair for part in parts.values() for pair in part.pairs]
    by_name = {
        name: {product: a for product, part in parts.items() for a in part.done if a.name == name}
        for name in dict.fromkeys(attempt.name for attempt in attempts)
    }
    known = {name: of for name, of in by_name.items() if of}
    result.reference = reference if reference in known else None
    result.over = _pairs(known, parts, reference)
    _place(result, known)
    result.notes = [*_settings_apart(known, settings), *notes]
    beside = at_each([next(iter(of.values())) for of in known.values()], reference)
    if reference is not None and result.reference is None and not beside and len(known) > 1:
        result.notes.append(f"verdict.reference={reference} is none of the completed attempts: all pairs are compared.")
    return result


def _pairs(
    known: Mapping[str, Mapping[str, Attempt]], parts: Mapping[str, Comparison], reference: str | None
) -> list[ProductsPair]:
    """Return the pairs over all products, with Holm's correction for their number."""
    pairs, errors = [], {}
    asked = pairs_asked([next(iter(of.values())) for of in known.values()], reference)
    for a, b in asked:
        first, second = a.name, b.name
        if reference in known and reference not in (first, second):
            continue
        names = (second, first) if reference in (first, a.base) else (first, second)
        metric = next(iter(known[names[0]].values())).metric.key
        pair = ProductsPair(*names, metric)
        found = {product: _pair_of(names, part.pairs) for product, part in parts.items()}
        judged = {
            product: each for product, each in found.items() if each and each.difference and each.error is not None
        }
        for product, each in found.items():
            if each is not None and product not in judged:
                pair.left_out[product] = each.refused or "it has no test"
        if len(judged) < 2:
            pair.refused = f"only {', '.join(judged)} has both" if judged else "no product has both"
        for product, each in judged.items():
            assert each.difference is not None
            pair.by_product[product] = each.difference.value * (1 if each.first == names[0] else -1)
        errors[names] = [(each.error or 0.0, each.images) for each in judged.values()]
        pair.labelled = any(each.test_sets > 1 for each in judged.values())
        pairs.append(pair)
    tested = [pair for pair in pairs if not pair.refused]
    for pair in tested:
        _test(pair, errors[pair.first, pair.second], len(tested))
    for pair, p in zip(tested, statistics.holm([pair.p for pair in tested if pair.p is not None]), strict=True):
        pair.p_holm = p
    return pairs


def _pair_of(names: tuple[str, str], pairs: Sequence[Pair]) -> Pair | None:
    return next((pair for pair in pairs if {pair.first, pair.second} == {*names}), None)


def _test(pair: ProductsPair, errors: Sequence[tuple[float, int]], comparisons: int) -> None:
    """Set the mean difference of a pair over its products, and p."""
    values, metric = [*pair.by_product.values()], METRICS[pair.metric]
    found: Overall = mean_over_products(values, *zip(*errors, strict=True))
    ranked = decides_by_ranks(len(values), comparisons, ALPHA)
    pair.p = signed_rank(values) if ranked else found.p
    bounds = metric.clip(found.low, found.high, change=True)
    pair.difference = Estimate(found.value, *bounds, RANKED if ranked else MEAN)
    pair.spread, pair.inconsistency = found.spread, found.inconsistency
    pair.weights = dict(zip(pair.by_product, found.weights, strict=True))
    number, images = len(values), round(st.fmean(images for _, images in errors))
    unlike = tuple(1 / (number * weight) for weight in found.weights)
    pair.evidence = OverProducts(found.error**2 * number, found.own, number, images, unlike, metric.limit)
    pair.alpha = ALPHA / comparisons


def _place(result: ProductsComparison, known: Mapping[str, Mapping[str, Attempt]]) -> None:
    """Set means, ranks and the best attempt over the products that the ranked attempts have in common."""
    estimates = {name: {p: e.value for p, a in of.items() if (e := a.estimate())} for name, of in known.items()}
    result.placed = [Placed(name, values) for name, values in estimates.items()]
    metrics = {attempt.metric.key for of in known.values() for attempt in of.values()}
    if len(metrics) > 1:  # of several problems that no metric judges together
        return
    ranked = [placed for placed in result.placed if placed.values]
    while len(ranked) > 1 and len(_common(ranked)) < 2:
        fewest = min(len(placed.values) for placed in ranked)
        ranked = [placed for placed in ranked if len(placed.values) > fewest]
    result.common = _common(ranked)
    if len(result.common) < 2:
        return
    sign = METRICS[metrics.pop()].sign
    table = np.array([[sign * placed.values[product] for placed in ranked] for product in result.common])
    for placed, mean, rank in zip(ranked, table.mean(axis=0), ranks(table), strict=True):
        placed.mean, placed.rank = float(sign * mean), float(rank)
    if len(ranked) > 2 and len(result.common) >= RANKS:
        result.friedman = friedman(table)
    result.ranking = by_validation(
        {placed.attempt: [known[placed.attempt][p] for p in result.common] for placed in ranked}
    )
    if result.validation is not None:
        result.best = result.ranking.best


def _common(placed: Sequence[Placed]) -> list[str]:
    if not placed:
        return []
    return [product for product in placed[0].values if all(product in each.values for each in placed)]


def _settings_apart(known: Mapping[str, Mapping[str, Attempt]], settings: Mapping[str, Settings]) -> list[str]:
    """Name the settings in which an attempt differs from product to product: runs of other days may."""
    lines = []
    for name, of in known.items():
        own = {product: settings[attempt.done[0].run_dir] for product, attempt in of.items()}
        keys = dict.fromkeys(key for each in own.values() for key in each)
        apart = [key for key in keys if key not in OF_PRODUCT and len({each.get(key) for each in own.values()}) > 1]
        if apart:
            shown = "; ".join(
                f"{key}: {', '.join(f'{p} {each.get(key)}' for p, each in own.items())}" for key in apart[:3]
            )
            more = f", and {len(apart) - 3} further keys" if len(apart) > 3 else ""
            lines.append(f"{name} is not the same attempt on all products ({shown}{more}).")
    return lines
