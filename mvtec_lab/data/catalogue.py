"""List MVTec AD's fifteen categories: defect types and official image counts.

Bergmann, Fauser, Sattlegger, Steger: "MVTec AD - A Comprehensive Real-World Dataset for Unsupervised Anomaly
Detection", CVPR 2019. The counts describe the official release; a user's folder may hold fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

PAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"  # the archives' addresses change, this one does not
LICENSE = "MVTec AD is licensed under CC BY-NC-SA 4.0 (attribution, not for commercial use): " + PAGE


@dataclass(frozen=True)
class Category:
    """Hold the number of images of a category."""

    train: int  # images in train/good
    test: dict[str, int]  # images in test/, by class


CATEGORIES: dict[str, Category] = {
    "bottle": Category(209, {"good": 20, "broken_large": 20, "broken_small": 22, "contamination": 21}),
    "cable": Category(
        224,
        {
            "good": 58,
            "bent_wire": 13,
            "cable_swap": 12,
            "combined": 11,
            "cut_inner_insulation": 14,
            "cut_outer_insulation": 10,
            "missing_cable": 12,
            "missing_wire": 10,
            "poke_insulation": 10,
        },
    ),
    "capsule": Category(219, {"good": 23, "crack": 23, "faulty_imprint": 22, "poke": 21, "scratch": 23, "squeeze": 20}),
    "carpet": Category(280, {"good": 28, "color": 19, "cut": 17, "hole": 17, "metal_contamination": 17, "thread": 19}),
    "grid": Category(264, {"good": 21, "bent": 12, "broken": 12, "glue": 11, "metal_contamination": 11, "thread": 11}),
    "hazelnut": Category(391, {"good": 40, "crack": 18, "cut": 17, "hole": 18, "print": 17}),
    "leather": Category(245, {"good": 32, "color": 19, "cut": 19, "fold": 17, "glue": 19, "poke": 18}),
    "metal_nut": Category(220, {"good": 22, "bent": 25, "color": 22, "flip": 23, "scratch": 23}),
    "pill": Category(
        267,
        {
            "good": 26,
            "color": 25,
            "combined": 17,
            "contamination": 21,
            "crack": 26,
            "faulty_imprint": 19,
            "pill_type": 9,
            "scratch": 24,
        },
    ),
    "screw": Category(
        320,
        {
            "good": 41,
            "manipulated_front": 24,
            "scratch_head": 24,
            "scratch_neck": 25,
            "thread_side": 23,
            "thread_top": 23,
        },
    ),
    "tile": Category(230, {"good": 33, "crack": 17, "glue_strip": 18, "gray_stroke": 16, "oil": 18, "rough": 15}),
    "toothbrush": Category(60, {"good": 12, "defective": 30}),
    "transistor": Category(213, {"good": 60, "bent_lead": 10, "cut_lead": 10, "damaged_case": 10, "misplaced": 10}),
    "wood": Category(247, {"good": 19, "color": 8, "combined": 11, "hole": 10, "liquid": 10, "scratch": 21}),
    "zipper": Category(
        240,
        {
            "good": 32,
            "broken_teeth": 19,
            "combined": 16,
            "fabric_border": 17,
            "fabric_interior": 16,
            "rough": 17,
            "split_teeth": 18,
            "squeezed_teeth": 16,
        },
    ),
}
