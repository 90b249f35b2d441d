"""PatchCore (Roth et al., CVPR 2022): an image is compared with the patches of good images that are remembered."""

from mvtec_lab.problems.base import Method, Option

METHOD = Method(
    "patchcore",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.patchcore.detector:Detector",
    trains=False,
    draws=False,
    options={
        "layers": Option(list, "layers of the backbone, by TorchVision's node names: features.6, layer2"),
        "coreset": Option(float, "share of the patches that is remembered; null: 0.01", above=0, most=1),
    },
)
