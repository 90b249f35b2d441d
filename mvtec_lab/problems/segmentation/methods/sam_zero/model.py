"""SamBox, whose SAM stays as it is."""

from __future__ import annotations

from mvtec_lab.problems.segmentation.methods.sam_box.model import SamBox
from mvtec_lab.problems.segmentation.methods.sam_zero import METHOD


class SamZero(SamBox):
    """Segment what a light decoder finds, or another run, with SAM as it is: only the light decoder learns."""

    method = METHOD
    tuned = False
