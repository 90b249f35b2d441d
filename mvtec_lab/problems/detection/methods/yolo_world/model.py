"""YOLO-World as a detector of the lab: ultralytics' network and loop, the lab's images, boxes and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert

from mvtec_lab.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from mvtec_lab.engine.run import Run
from mvtec_lab.engine.setup import RANDOM_MARK
from mvtec_lab.problems.detection.base import MOST, DetectionModel
from mvtec_lab.problems.detection.methods.yolo_world import METHOD
from mvtec_lab.problems.detection.methods.yolo_world.guest import guest
from mvtec_lab.problems.detection.methods.yolo_world.texts import read_embeddings, stand_ins
from mvtec_lab.problems.detection.methods.yolo_world.training import fine_tune
from mvtec_lab.problems.detection.views import Found

LICENCE = "ultralytics and its weights are under AGPL-3.0, which it claims for weights trained by it as well"
STAND_INS = "no text embeddings: random vectors stand in for the class names, and say nothing about their meaning"
LEAST, OVERLAP = 0.001, 0.7  # score and IoU of neighbours, as ultralytics validates: its scores begin lower than others


class YoloWorld(DetectionModel):
    """Find boxes of the classes that text embeddings stand for.

    Ultralytics builds the network by its own plan of this size; a checkpoint has to fit it exactly.

    Args:
        text_embeddings: as ``model.text_embeddings``; None: stand-ins.
        settings: those of every detector.
    """

    method = METHOD
    no_onnx = "its network is ultralytics', which has an exporter of its own"
    text: Tensor  # [1, C, 512]; a checkpoint holds it
    monitor = "val/map"  # as ultralytics' own loop chooses
    channel_mean: Tensor
    channel_std: Tensor

    def __init__(self, *args: Any, text_embeddings: str | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.hparams["text_embeddings"] = None  # a checkpoint does without the file

    def make(self) -> nn.Module:
        kinds, weights, texts = self.classes[1:], self.hparams["weights"], self.hparams["text_embeddings"]
        vectors = stand_ins(kinds) if texts is None else read_embeddings(texts, kinds)
        self.register_buffer("text", torch.from_numpy(vectors)[None])
        for name, values in (("channel_mean", IMAGENET_MEAN), ("channel_std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.remarks = [LICENCE] if texts else [LICENCE, STAND_INS]
        with guest():
            from mvtec_lab.problems.detection.methods.yolo_world import network

            made: nn.Module = network.build(network.plan_of(self.options["size"]), self.text)
            if weights is None:
                self.weights_note = f"{RANDOM_MARK}: YOLO-World is made to be fine-tuned from published ones"
            else:
                path = network.published(self.options["size"]) if weights == "DEFAULT" else Path(weights).expanduser()
                network.load(made, path)
                self.weights_name = path.stem if weights == "DEFAULT" else f"file:{path.name}"
        return made

    def detect(self, images: Tensor) -> list[Found]:
        pictures = images.float() * self.channel_std + self.channel_mean  # in [0, 1]
        network: Any = self.network
        rows: Tensor = network.predict(pictures, txt_feats=self.text)[0]
        return [boxes_of(each) for each in rows.float()]

    def fit(self, run: Run) -> None:
        """Let ultralytics fine-tune the network. A run that is stopped cannot be resumed: it starts again."""
        for remark in self.remarks:
            run.warn(remark)
        fine_tune(run, self.network)


def boxes_of(rows: Tensor) -> Found:
    """Return the boxes of an image, the highest score first.

    Args:
        rows: [4 + C, A]: centre and size in pixels, and the score of each class.
    """
    kinds, anchors = (rows[4:] >= LEAST).nonzero(as_tuple=True)
    boxes, scores = box_convert(rows[:4, anchors].T, "cxcywh", "xyxy"), rows[4 + kinds, anchors]
    kept = batched_nms(boxes, scores, kinds, OVERLAP)[:MOST]
    return {"boxes": boxes[kept], "labels": kinds[kept] + 1, "scores": scores[kept]}
