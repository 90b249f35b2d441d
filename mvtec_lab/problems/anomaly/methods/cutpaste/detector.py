"""CutPaste's classifier of good, patched and scarred images, and the density of its embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mvtec_lab.problems.anomaly.base import AnomalyDetector, Batches, Scores
from mvtec_lab.problems.anomaly.frozen import collect
from mvtec_lab.problems.anomaly.methods.cutpaste.model import Density, paste_patch, paste_scar
from mvtec_lab.problems.anomaly.pretext import FineTuned


class Detector(AnomalyDetector):
    """The 3-way variant: a score is the Mahalanobis distance of an image's embedding from good ones; there is no map.

    Args:
        backbone, weights: as in FineTuned.
        optimizer, lr, weight_decay, momentum: as in OptimizerConfig.
    """

    trains = True

    def __init__(
        self,
        *,
        backbone: str = "resnet18",
        weights: str | None = "DEFAULT",
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.classifier = FineTuned(backbone, weights, ways=3)
        self.density = Density()
        self.mean, self.std = self.classifier.mean, self.classifier.std
        self.weights_name, self.weights_note = self.classifier.weights_name, self.classifier.weights_note

    def loss(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (self.mean, self.std))
        pictures = (images * std + mean).clamp(0, 1)
        made = torch.stack([paste(picture) for paste in (paste_patch, paste_scar) for picture in pictures])
        target = torch.arange(3, device=images.device).repeat_interleave(len(images))
        return F.cross_entropy(self.classifier(torch.cat([images, (made - mean) / std])), target)

    @torch.no_grad()
    def finish(self, batches: Batches) -> None:
        """Fit the density.

        Raises:
            LabError: fewer than two good images.
        """
        self.eval()
        self.density.fit(collect(map(self.classifier.embed, batches()), 0, "embeddings", "give fewer images"))

    def forward(self, images: Tensor) -> Scores:
        embeddings = self.classifier.embed(images)
        with torch.autocast(images.device.type, enabled=False):  # squares of small differences want float32
            return Scores(self.density(embeddings), None)
