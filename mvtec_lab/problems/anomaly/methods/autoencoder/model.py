"""A convolutional autoencoder with a narrow code: Bergmann et al., VISAPP 2019."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from mvtec_lab.problems.anomaly.convnets import Reconstructor, decode, encode, squared_error
from mvtec_lab.problems.anomaly.methods.autoencoder import METHOD
from mvtec_lab.problems.anomaly.reconstruction import ReconstructionModel


def dissimilarity(reconstructions: Tensor, pictures: Tensor) -> Tensor:
    """Return 1 - SSIM around each pixel of [N, 3, S, S] in [0, 1], mean over the channels: [N, S, S], float32.

    Wang et al., IEEE TIP 2004: a Gaussian window of 11 pixels (sigma 1.5), constants 0.01 and 0.03. The function of
    torchmetrics splits a batch by its size, which an export for any size forbids.
    """
    a, b = reconstructions.float(), pictures
    mean_a, mean_b, square_a, square_b, product = (
        gaussian_blur(values, [11, 11], [1.5, 1.5]) for values in (a, b, a * a, b * b, a * b)
    )
    variances = (square_a - mean_a * mean_a).clamp_min(0) + (square_b - mean_b * mean_b).clamp_min(0)
    structure = (2 * (product - mean_a * mean_b) + 0.03**2) / (variances + 0.03**2)
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a * mean_a + mean_b * mean_b + 0.01**2)
    return 1 - (luminance * structure).mean(1)


ERRORS = {"l2": squared_error, "ssim": dissimilarity}


class AutoencoderNetwork(Reconstructor):
    """Reconstruct a picture from a narrow code, which a defect does not pass.

    Args:
        image_size: S.
        latent: size of the code.
        reconstruction: a name of ``ERRORS``, the error of each pixel, in training and as residual.
    """

    def __init__(self, image_size: int, latent: int, reconstruction: str) -> None:
        super().__init__()
        self.error = ERRORS[reconstruction]
        self.layers = nn.Sequential(encode(image_size, latent), decode(image_size, latent), nn.Sigmoid())

    def loss(self, pictures: Tensor) -> Tensor:
        return self.residual(pictures).mean()

    def residual(self, pictures: Tensor) -> Tensor:
        return self.error(self.layers(pictures), pictures)


class Autoencoder(ReconstructionModel):
    """Score an image by what does not pass the narrow code of an autoencoder."""

    method, network_class = METHOD, AutoencoderNetwork
