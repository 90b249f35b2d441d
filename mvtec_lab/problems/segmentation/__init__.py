"""Segmentation: which pixels of an image are defective. Each method is a folder under methods/. Light to import."""

from mvtec_lab.problems.base import Option

TYPES = Option(
    str,
    "how a defect's type is named: region, by the maps within its mask; pixel, by classes of its pixels; none",
    "region",
    choices=("region", "pixel", "none"),
)
