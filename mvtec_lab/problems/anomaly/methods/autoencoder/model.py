"""A convolutional autoencoder with a narrow code: Bergmann et al., VISAPP 2019."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.problems.anomaly.convnets import Reconstructor, decode, encode, squared_error
from mvtec_lab.problems.anomaly.methods.autoencoder import METHOD
from mvtec_lab.problems.anomaly.reconstruction import ReconstructionModel


def dissimilarity(reconstructions: Tensor, pictures: Tensor) -> Tensor:
    """Return 1 - SSIM around each pixel of [N, 3, S, S] in [0, 1], mean over the channels: [N, S, S], float32.

    Wang et al., IEEE TIP 2004: a Gaussian window of 11 pixels (sigma 1.5), constants 0.01 and 0.03. The steps are those
    of torchmetrics' function, to the bit, which itself divides a batch by its size and so cannot be exported.
    """
    offsets = torch.arange(-5.0, 6.0, device=pictures.device)
    line = (-((offsets / 1.5) ** 2) / 2).exp()
    line = (line / line.sum())[None]
    a, b = (F.pad(values, (5, 5, 5, 5), mode="reflect") for values in (reconstructions.float(), pictures))
    moments = F.conv2d(torch.cat([a, b, a * a, b * b, a * b]), (line.T @ line).expand(3, 1, 11, 11), groups=3)
    mean_a, mean_b, square_a, square_b, product = moments.unflatten(0, (5, -1))
    squares_a, squares_b, means = mean_a.pow(2), mean_b.pow(2), mean_a * mean_b
    variances = (square_a - squares_a).clamp(min=0) + (square_b - squares_b).clamp(min=0)
    upper, lower = 2 * (product - means) + 0.03**2, variances + 0.03**2
    return 1 - ((2 * means + 0.01**2) * upper / ((squares_a + squares_b + 0.01**2) * lower)).mean(1)


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
