"""STFPM (Wang et al., BMVC 2021): a student of good images departs from its teacher at a defect."""

from mvtec_lab.problems.base import Method, Option

METHOD = Method(
    "stfpm",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.stfpm.detector:Detector",
    options={
        "layers": Option(list, "layers of the backbone, by TorchVision's node names: features.6, layer2"),
    },
)
