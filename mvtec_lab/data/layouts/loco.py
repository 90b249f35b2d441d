"""Read MVTec LOCO AD's layout: logical and structural anomalies, and a folder of masks for each image.

Bergmann, Batzner, Fauser, Sattlegger, Steger: "Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly
Detection and Localization", IJCV 130, 2022. ``ground_truth/<class>/<image>/`` holds a mask for each defect, whose grey
value names its type in defects_config.json. An image's masks are merged. Its class is that of its folder.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mvtec_lab.data.layouts.base import Layout, class_folders
from mvtec_lab.data.layouts.parts import read

KINDS = {"logical_anomalies", "structural_anomalies"}


def fits(folder: Path, good: Collection[str]) -> bool:
    """Tell whether a folder has test images of one of the two kinds."""
    return any(path.name in KINDS for path in class_folders(folder / "test"))


LAYOUT = Layout(
    "MVTec LOCO AD's",
    "{train,validation}/good, test/{good,logical_anomalies,structural_anomalies}, ground_truth/<class>/<image>/*.png",
    fits,
    read,
)
