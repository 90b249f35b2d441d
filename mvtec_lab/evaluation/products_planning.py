"""Say how many products, or how many images of each, show a difference of a given size between two attempts.

The mean over products has Student's power. That of the signed-rank test has no formula for a handful of products, where
its p has few steps, nor for products that scatter unlike each other: it is simulated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from mvtec_lab.evaluation.differences import POWER, Noise, least_found, power_of, true_variance
from mvtec_lab.evaluation.planning import MOST_IMAGES, NO_GROWTH, Power, least
from mvtec_lab.evaluation.products import decides_by_ranks, needed_sum

# MVTec AD has 15, VisA 12, Real-IAD 30. Those that ask for most are the careful ones: with a limit of 50, which one
# simulated pilot in four passed, the rest showed their difference in 72 to 80% of cases, with 100 in 80 to 81%.
MOST_PRODUCTS = 100
# The 95% interval of a standard deviation spans a factor of 71 with two products, of 12 with three and of 7 with four:
# up to three nobody can tell how products differ, and so whether more images of the same ones show anything.
HARDLY_KNOWN = 3
DRAWS = 1_000  # of the products of a signed-rank test: its power is then known to within 1.3 points


@dataclass(frozen=True)
class ProductsDesign:
    """Say on how many products two attempts are compared, and on how many images of each."""

    products: int
    images: int


@dataclass(frozen=True)
class OverProducts:
    """Hold what two attempts showed over products, from which the power of other designs is computed.

    Args:
        variance: of the difference on one product, as the weighted mean has it.
        own: the share of it that is the luck of the product's images; the rest is how products differ.
        products: their number.
        images: of each, the mean.
        unlike: the variance on each product in units of ``variance``: ranks do not know which products are small.
        most: the largest difference that there can be.
    """

    variance: float
    own: float
    products: int
    images: int
    unlike: tuple[float, ...] = (1.0,)
    most: float = 1.0

    @property
    def design(self) -> ProductsDesign:
        return ProductsDesign(self.products, self.images)

    def found(self, alpha: float) -> float | None:
        """Return the difference that is found on these products with a probability of POWER; None: none."""
        most = 100 * self.variance**0.5 if np.isinf(self.most) else self.most  # far beyond what any power needs
        return least_found(self.power(self.design, alpha), most)

    def power(self, design: ProductsDesign, alpha: float) -> Power:
        """Return how often the test at level ``alpha`` finds a difference in another design."""
        variance = self.variance * (1 - self.own + self.own * self.images / design.images)
        known = None if design == self.design else self.products - 1
        mean = variance / design.products
        noise = Noise(mean, mean, design.products - 1, grows=False, known=known)
        if not decides_by_ranks(design.products, 1, alpha):
            return power_of([noise], NO_GROWTH, alpha)
        true = true_variance(noise, np.random.default_rng(1), DRAWS)
        scatter = np.sqrt(variance * true)[:, None] * _drawn(design.products)
        scatter *= np.sqrt(np.resize(self.unlike, design.products))
        needed, ranks = needed_sum(design.products, alpha), np.arange(1, design.products + 1)

        def power(change: float) -> float:
            values = scatter + change
            ascending = np.take_along_axis(values, np.abs(values).argsort(axis=1), axis=1)
            return float(np.mean((ascending > 0) @ ranks >= needed))

        return power


@lru_cache(maxsize=MOST_PRODUCTS)
def _drawn(products: int) -> np.ndarray:
    """Return standard normal differences of DRAWS x ``products``, which are always the same."""
    return np.random.default_rng(0).normal(size=(DRAWS, products))


def ways_over_products(evidence: OverProducts, difference: float, alpha: float) -> list[ProductsDesign]:
    """Return what shows a difference with a probability of POWER: more products, or more images of each.

    Images of each are no way with HARDLY_KNOWN products or fewer.

    Returns:
        The design that was seen alone where it is enough; empty where neither MOST_PRODUCTS nor MOST_IMAGES are.
    """

    def shows(design: ProductsDesign) -> bool:
        return evidence.power(design, alpha)(difference) >= POWER

    seen = evidence.design
    if shows(seen):
        return [seen]
    ranked = next((n for n in range(seen.products + 1, MOST_PRODUCTS) if decides_by_ranks(n, 1, alpha)), MOST_PRODUCTS)
    products = None
    # By the mean, and then by ranks: six products by their ranks show less than five by their mean.
    for low, high in ((seen.products + 1, ranked - 1), (ranked, MOST_PRODUCTS)):
        products = products or least(lambda n: shows(replace(seen, products=n)), low, high)
    images = None
    if seen.products > HARDLY_KNOWN:
        images = least(lambda n: shows(replace(seen, images=n)), seen.images + 1, MOST_IMAGES)
    found = [replace(seen, products=products)] if products else []
    return [*found, replace(seen, images=images)] if images else found
