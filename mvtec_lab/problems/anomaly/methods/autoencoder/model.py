"""A convolutional autoencoder with a narrow code: Bergmann et al., VISAPP 2019."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from mvtec_lab.errors import unknown
from mvtec_lab.problems.anomaly.convnets import Reconstructor, decode, encode, squared_error

LATENT = 100  # the paper's for textures, and that of MVTec AD, CVPR 2019, for whole objects at 128 pixels


def dissimilarity(made: Tensor, pictures: Tensor) -> Tensor:
    """Return 1 - SSIM around each pixel of two [N, 3, S, S] in [0, 1]: mean over the channels, [N, S, S], float32.

    Wang et al., IEEE TIP 2004: a Gaussian window of 11 pixels (sigma 1.5), constants 0.01 and 0.03. torchmetrics' own
    splits a batch by its size, which torch.export cannot leave open.
    """
    made = made.float()
    mean, other, square, other_square, product = (
        gaussian_blur(values, [11, 11], [1.5, 1.5])
        for values in (made, pictures, made * made, pictures * pictures, made * pictures)
    )
    variances = (square - mean * mean).clamp_min(0) + (other_square - other * other).clamp_min(0)
    structure = (2 * (product - mean * other) + 0.03**2) / (variances + 0.03**2)
    luminance = (2 * mean * other + 0.01**2) / (mean * mean + other * other + 0.01**2)
    return 1 - (luminance * structure).mean(1)


ERRORS = {"l2": squared_error, "ssim": dissimilarity}


class Autoencoder(Reconstructor):
    """
    Args:
        image_size: S.
        latent: of the code.
        reconstruction: ``l2`` or ``ssim``: of each pixel, in training and as residual.

    Raises:
        LabError: another reconstruction.
    """

    def __init__(self, image_size: int, latent: int = LATENT, reconstruction: str = "l2") -> None:
        super().__init__()
        if reconstruction not in ERRORS:
            raise unknown("model.options.reconstruction", reconstruction, ERRORS)
        self.error = ERRORS[reconstruction]
        self.layers = nn.Sequential(encode(image_size, latent), decode(image_size, latent), nn.Sigmoid())

    def loss(self, pictures: Tensor) -> Tensor:
        return self.residual(pictures).mean()

    def residual(self, pictures: Tensor) -> Tensor:
        return self.error(self.layers(pictures), pictures)
