"""A variational autoencoder: the code of a good image is likely under a prior."""

from mvtec_lab.problems.anomaly import SCORE
from mvtec_lab.problems.base import Method, Option

METHOD = Method(
    "vae",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.vae.model:VariationalAutoencoder",
    backbone=False,
    options={
        "score": SCORE,
        # The autoencoder's, so that the two differ in the prior alone.
        "latent": Option(int, "size of the code", default=100, least=1, most=100_000),
    },
)
