"""A memory-augmented autoencoder: it reconstructs an image from codes of good images."""

from mvtec_lab.problems.base import Method, Option

METHOD = Method(
    "memae",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.memae.detector:Detector",
    backbone=False,
    options={
        "latent": Option(int, "channels of a code; null: 64", least=1),
        # A single slot would have the weight 1, which is not above 1 / slots.
        "slots": Option(int, "codes in the memory; null: 500", least=2),
    },
)
