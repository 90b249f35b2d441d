"""The rows of several products, as a table over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def by_product(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each product, by its name; all below the empty name where there is but one product."""
    products: dict[str, list[Row]] = {}
    for row in rows:
        products.setdefault(row["product"], []).append(row)
    return products


def failed(rows: Sequence[Row]) -> bool:
    """Tell whether no run of one of several products was completed, or is still running: the verdict says why."""
    return bool(rows[0]["product"]) and not any(row["completed"] or row["running"] for row in rows)


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and cells of a table with a row for each attempt and a column for each product.

    The mean is over the products, each counting the same; only of attempts that have them all.
    """
    products = by_product(rows)
    estimates = {(row["attempt"], row["product"]): row["estimate"] for row in rows}
    sound = [product for product, of in products.items() if not failed(of)]
    metric = rows[0]["metric"].title
    headings = ["attempt", f"test {metric},\nmean".replace(" ", "\n", 1), *products]
    cells = []
    for attempt in dict.fromkeys(row["attempt"] for row in rows):
        values = [estimates[attempt, p].value for p in sound if estimates.get((attempt, p)) is not None]
        mean = f"{sum(values) / len(values):.3f}" if values and len(values) == len(sound) else "–"
        of_products = [
            "failed" if p not in sound else f"{e.value:.3f}" if (e := estimates.get((attempt, p))) else "–"
            for p in products
        ]
        cells.append([attempt, mean, *of_products])
    return headings, cells
