"""f-AnoGAN (Schlegl et al., 2019): a generator of good images, and an encoder that finds the code of a similar one."""

from mvtec_lab.config import Config
from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly import SCORE
from mvtec_lab.problems.base import Method, Option


def _check(config: Config) -> None:
    """Raise LabError for settings that leave no epochs to the encoder, which trains last."""
    if config.trainer.patience is not None:
        raise LabError("trainer.patience might stop fanogan before its encoder, which trains last: leave it out")
    if config.trainer.max_epochs < 2:
        raise LabError("trainer.max_epochs=1 leaves none to fanogan's encoder, which trains last: give 2 or more")


METHOD = Method(
    "fanogan",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.fanogan.model:FAnoGan",
    backbone=False,
    rules=_check,
    options={
        "score": SCORE,
        # The official code's.
        "latent": Option(int, "size of the code", default=128, least=1, most=100_000),
    },
)
