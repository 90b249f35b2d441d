"""Read BTAD's layout: MVTec AD's with the classes ok and ko, and masks called as their images are.

Mishra, Verk, Fornasier, Piciarelli, Foresti: "VT-ADL: A Vision Transformer Network for Image Anomaly Detection and
Localization", ISIE 2021.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mvtec_lab.data.layouts.base import Layout, class_folders
from mvtec_lab.data.layouts.mvtec import scan
from mvtec_lab.data.samples import Scan


def fits(folder: Path, good: Collection[str]) -> bool:
    """Tell whether a folder trains on ok and tests on ok and ko."""
    trained, tested = ({path.name for path in class_folders(folder / part)} for part in ("train", "test"))
    return trained == {"ok"} and "ko" in tested


def read(folder: Path, good: Collection[str]) -> Scan:
    """List the images as MVTec AD's; ok is good.

    Raises:
        LabError: as ``scan`` of mvtec.py.
    """
    return scan(folder, [*good, "ok"])


LAYOUT = Layout("BTAD's", "train/ok, test/{ok,ko}, ground_truth/ko", fits, read)
