"""A memory-augmented autoencoder: it reconstructs an image from codes of good images."""

from mvtec_lab.problems.anomaly import SCORE
from mvtec_lab.problems.base import Method, Option

METHOD = Method(
    "memae",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.memae.model:MemoryAutoencoder",
    backbone=False,
    options={
        "score": SCORE,
        # Half of the encoder's channels.
        "latent": Option(int, "channels of a code", default=64, least=1, most=100_000),
        # The paper's for CIFAR-10: a few for each of the 64 cells of a picture of 128 pixels. A single slot would have
        # the weight 1, which is not above 1 / slots.
        "slots": Option(int, "codes in the memory", default=500, least=2, most=100_000),
    },
)
