"""CutPaste (Li et al., CVPR 2021): a classifier of good images and of good images with a pasted piece."""

from mvtec_lab.problems.base import Method

METHOD = Method(
    "cutpaste",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.cutpaste.model:CutPaste",
)
