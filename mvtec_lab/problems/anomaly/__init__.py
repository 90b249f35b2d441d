"""Anomaly models learn good images alone; each method is a folder under methods/, with its figures in a README."""

from mvtec_lab.problems.base import Option

# What every method with a map takes; ``base.of_map`` computes it.
SCORE = Option(
    str,
    "an image's score: max, its map's maximum; top, the mean of the map's highest 1%; null: the method's own",
    choices=("max", "top"),
)
