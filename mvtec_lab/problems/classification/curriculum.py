"""What trains in which epoch."""

from __future__ import annotations

import pytorch_lightning as pl

from mvtec_lab.models.backbones import last_layer
from mvtec_lab.models.modes import PartlyFrozen
from mvtec_lab.problems.classification.losses import Criterion, GroupSoftmax


class Curriculum(pl.Callback):
    """Put off parts of a DefectClassifier's training.

    In the warm-up epochs the head trains alone. Class weights begin after the share ``defer`` of the epochs, as do the
    groups of ``group_softmax``: these start from the plain classifier's last layer, and then the head trains alone.

    Args:
        network: the classifier's, whose parts rest or train.
        criterion: its training loss.
        warmup_epochs: the number of epochs.
        defer: in [0, 1).
    """

    def __init__(self, network: PartlyFrozen, criterion: Criterion, warmup_epochs: int, defer: float) -> None:
        self.network, self.criterion, self.warmup_epochs, self.defer = network, criterion, warmup_epochs, defer

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch, begin = trainer.current_epoch, int(self.defer * (trainer.max_epochs or 1))
        self.criterion.defer(epoch < begin)
        head_alone = epoch < self.warmup_epochs
        if isinstance(self.criterion, GroupSoftmax) and 0 < begin <= epoch:
            head_alone = True
            if epoch == begin:
                self.criterion.begin(last_layer(self.network))
                trainer.optimizers[0].state.clear()  # it is of outputs that had no part so far
        self.network.train_only({"head"} if head_alone else self.network.trained)
