"""Measurements of the lab: ``make bench``, or ``python -m benchmarks.speed`` and the like for one of them."""
