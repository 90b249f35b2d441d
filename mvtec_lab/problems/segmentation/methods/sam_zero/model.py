"""SamBox, of which nothing trains."""

from __future__ import annotations

from typing import Any

from mvtec_lab.errors import LabError
from mvtec_lab.problems.segmentation.methods.sam_box.model import SamBox
from mvtec_lab.problems.segmentation.methods.sam_zero import METHOD


class SamZero(SamBox):
    """Segment what another run marks, with SAM as it is.

    Raises:
        LabError: no run is given, so that nothing would say where to look.
    """

    method = METHOD

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.finder is None:
            raise LabError(
                "model.method=sam_zero trains nothing, so nothing says where to look: give "
                "model.options.prompts=CKPT, best.ckpt of a detector or of a one-class run (attempt=patchcore)"
            )
        self.requires_grad_(False)
