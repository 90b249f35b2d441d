"""Write the page over several products; each of them has a page like that of a single product beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from mvtec_lab.evaluation.products import RANKS
from mvtec_lab.evaluation.products_planning import HARDLY_KNOWN
from mvtec_lab.evaluation.specs import METRICS
from mvtec_lab.reporting import figures, products_figures, products_table, summary
from mvtec_lab.reporting.attempts import Estimate
from mvtec_lab.reporting.headline import mistake_of, unsaid
from mvtec_lab.reporting.origin import data_pages
from mvtec_lab.reporting.pages import write_page
from mvtec_lab.reporting.products import ProductsComparison, ProductsPair
from mvtec_lab.reporting.products_headline import products_headline
from mvtec_lab.reporting.verdict import FEW


def pages(comparison: ProductsComparison, report: str) -> dict[str, str]:
    """Return the file name of each product's page, for those that have completed runs.

    Args:
        report: the name of the page over all of them.
    """
    stem, names = report.removesuffix(".html"), dict[str, str]()
    for name, part in comparison.products.items():
        if part.done:
            readable = re.sub(r"[^\w.+-]+", "_", name)
            page = f"{stem}_{readable}.html"
            names[name] = page if page not in names.values() else f"{stem}_{len(names)}.html"
    return names


def write_products_report(
    comparison: ProductsComparison, rows: list[summary.Row], path: Path, pages: Mapping[str, str]
) -> None:
    """Write the page over all products, complete or not at all.

    Args:
        rows: of all attempts on all products.
        path: of the page.
        pages: as above; they lie beside it.
    """
    headings, table = products_table.table(rows)
    runs = [run for attempt in comparison.attempts for run in attempt.runs]
    different = {frozenset((pair.first, pair.second)) for pair in comparison.over if pair.different}
    ranks = {placed.attempt: placed.rank for placed in comparison.placed if placed.rank is not None}
    drawn = len(comparison.common) >= RANKS and len(ranks) > 1
    judged = [pair for pair in comparison.over if pair.difference]
    named = comparison.reference or comparison.best
    mine = [pair for pair in judged if named in (pair.first, pair.second)] or judged
    headline = products_headline(comparison)
    write_page(
        path,
        "products.html.j2",
        products=[{"name": name, "page": quote(pages[name]) if name in pages else ""} for name in comparison.products],
        attempts=len({attempt.name for attempt in comparison.attempts}),
        headline=headline,
        mistake_of=mistake_of,
        verdict=unsaid(comparison.verdict, headline.lines),
        headings=headings,
        table=table,
        common=comparison.common,
        ranks=figures.to_data_uri(products_figures.ranks_figure(ranks, different)) if drawn else None,
        differences=[_drawn(comparison, pair, pair.second == named) for pair in mine[: FEW + 1]],
        pairs=comparison.over,
        tested=len(judged),
        hardly_known=HARDLY_KNOWN,
        metrics=METRICS,
        marks=summary.remarks(rows, "marks"),
        warnings=summary.remarks(rows, "warnings"),
        data_pages=data_pages(comparison, runs, path.parent)["data_pages"],
    )


def _drawn(comparison: ProductsComparison, pair: ProductsPair, turn: bool) -> tuple[str, str]:
    """Return the picture of a pair's differences on the products, and what it is of; ``turn``: second less first."""
    first, second = (pair.second, pair.first) if turn else (pair.first, pair.second)
    lines = []
    for name in pair.by_product:
        within = next(p for p in comparison.products[name].pairs if {p.first, p.second} == {first, second})
        difference = _turned(within.difference, within.first != first)
        lines.append(products_figures.Line(name, difference, pair.weights[name]))
    lines.append(products_figures.Line("mean", _turned(pair.difference, turn)))
    names = f"{first} less {second}"
    return figures.to_data_uri(products_figures.differences_figure(lines, METRICS[pair.metric], names)), names


def _turned(estimate: Estimate | None, turn: bool) -> Estimate:
    assert estimate is not None
    if not turn:
        return estimate
    low, high = (None if bound is None else -bound for bound in (estimate.high, estimate.low))
    return Estimate(-estimate.value, low, high, estimate.method)
