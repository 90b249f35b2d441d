"""Metrics of boxes: the figures of COCO's own code, in draws of images too."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from mvtec_lab.evaluation import detection
from mvtec_lab.evaluation.detection import Box, as_text, box_intervals, box_metrics, drawn, draws, from_text, match

KINDS = ["a", "b", "c"]
Images = tuple[list[list[Box]], list[list[Box]], list[str]]


def made_up(images: int = 40, seed: int = 0) -> Images:
    """Images with one to three true boxes of a type, boxes near them, some of a wrong type, and boxes elsewhere."""
    rng = np.random.default_rng(seed)

    def corners(at: np.ndarray, size: np.ndarray) -> list[float]:
        return [*at, *(at + np.maximum(size, 2))]

    found, truth, labels = [], [], []
    for _ in range(images):
        label = str(rng.choice(["good", *KINDS]))
        ours: list[Box] = []
        theirs: list[Box] = []
        for _ in range(0 if label == "good" else int(rng.integers(1, 4))):
            at, size = rng.uniform(0, 180, 2), rng.uniform(5, 60, 2)
            theirs.append(Box(label, 1.0, *corners(at, size)))
            for _ in range(int(rng.integers(0, 3))):
                kind, score = (
                    str(rng.choice([label, label, "a"])),
                    round(float(rng.uniform()), 1),
                )  # with ties
                ours.append(Box(kind, score, *corners(at + rng.normal(0, 3, 2), size + rng.normal(0, 3, 2))))
        for _ in range(int(rng.integers(0, 3))):
            at, size = rng.uniform(0, 180, 2), rng.uniform(5, 60, 2)
            ours.append(Box(str(rng.choice(KINDS)), round(float(rng.uniform()), 1), *corners(at, size)))
        found.append(ours)
        truth.append(theirs)
        labels.append(label)
    return found, truth, labels


def of_coco(found: list[list[Box]], truth: list[list[Box]]) -> tuple[float, float]:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")

    def row(image: int, box: Box) -> dict:
        wide, high = box.x1 - box.x0, box.y1 - box.y0
        place = {"image_id": image, "category_id": KINDS.index(box.kind), "bbox": [box.x0, box.y0, wide, high]}
        return {**place, "area": wide * high, "iscrowd": 0, "score": box.score}

    with contextlib.redirect_stdout(io.StringIO()):
        data = coco.COCO()
        rows = [row(i, box) for i, boxes in enumerate(truth) for box in boxes]
        data.dataset = {
            "images": [{"id": i} for i in range(len(truth))],
            "annotations": [{**row, "id": i} for i, row in enumerate(rows, start=1)],
            "categories": [{"id": i, "name": name} for i, name in enumerate(KINDS)],
        }
        data.createIndex()
        judged = evaluation.COCOeval(
            data, data.loadRes([row(i, box) for i, boxes in enumerate(found) for box in boxes]), "bbox"
        )
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged.stats[1], judged.stats[0]


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_coco(seed: int) -> None:
    found, truth, labels = made_up(seed=seed)
    metrics = box_metrics(match(found, truth, labels))
    assert (metrics["map50"], metrics["map"]) == pytest.approx(of_coco(found, truth), abs=1e-12)


def test_torchmetrics_gives_the_same_figures() -> None:
    pytest.importorskip("pycocotools")
    import torch
    from torchmetrics.detection import MeanAveragePrecision

    found, truth, labels = made_up()

    def tensors(boxes: list[Box]) -> dict[str, torch.Tensor]:
        corners = torch.tensor([box[2:] for box in boxes], dtype=torch.float64).reshape(-1, 4)
        scores = torch.tensor([box.score for box in boxes], dtype=torch.float64)
        return {"boxes": corners, "scores": scores, "labels": torch.tensor([KINDS.index(b.kind) for b in boxes]).long()}

    # Its own recalls are rounded to single precision, so that 7 of 100 boxes do not reach 0.07.
    metric = MeanAveragePrecision(rec_thresholds=detection.RECALLS.tolist())
    metric.update([tensors(boxes) for boxes in found], [tensors(boxes) for boxes in truth])
    theirs, ours = metric.compute(), box_metrics(match(found, truth, labels))
    assert ours["map50"] == pytest.approx(float(theirs["map_50"]), abs=1e-6)
    assert ours["map"] == pytest.approx(float(theirs["map"]), abs=1e-6)


def test_a_draw_of_images_is_judged_as_if_its_images_were_there_twice() -> None:
    found, truth, labels = made_up()
    matches = match(found, truth, labels)
    rng = np.random.default_rng(1)
    for _ in range(3):
        picked = np.sort(rng.integers(0, len(labels), len(labels)))
        weights = np.bincount(picked, minlength=len(labels))[None].astype(float)
        value = np.nanmean(matches.precisions(weights)[0][:, 0])
        assert value == pytest.approx(of_coco([found[i] for i in picked], [truth[i] for i in picked])[0], abs=1e-12)


def test_draws_keep_the_images_of_every_label() -> None:
    labels = ["good", "a", "b", "a", "good", "good"]
    weights = draws(labels)
    for name in set(labels):
        here = [label == name for label in labels]
        assert set(weights[:, here].sum(axis=1)) == {sum(here)}


def test_boxes_found_are_counted_where_one_good_image_in_ten_has_a_false_box() -> None:
    true, size = Box("a", 1.0, 0, 0, 10, 10), 20
    good = [[Box("a", 0.9, 0, 0, 5, 5)], [Box("b", 0.7, 0, 0, 5, 5)], [Box("a", 0.5, 0, 0, 5, 5)]]
    found = [[true._replace(score=0.6)], [true._replace(score=0.4)], *good, *[[]] * (size - len(good))]
    truth = [[true], [true], *[[]] * size]
    matches = match(found, truth, ["a", "a", *["good"] * size])
    assert matches.threshold() == 0.5  # two of twenty good images may have a box: those of 0.9 and 0.7
    assert box_metrics(matches)["box_recall"] == 0.5
    assert box_metrics(match(found[:2], truth[:2], ["a", "a"]))["box_recall"] is None
    assert box_metrics(match([[]], [[]], ["good"]))["map50"] is None


def test_intervals_hold_the_value_and_have_a_width_where_all_is_right() -> None:
    found, truth, labels = made_up()
    matches = match(found, truth, labels)
    metrics = box_metrics(matches)
    for key, (low, high) in box_intervals(matches, metrics).items():
        assert 0 <= low < metrics[key] < high <= 1
    exact = match(truth, truth, labels)
    assert np.ptp(drawn(exact, "map50")) == 0
    low, high = box_intervals(exact, box_metrics(exact))["map50"]
    assert low < 0.97
    assert high == 1


def test_boxes_go_into_a_cell_and_back() -> None:
    boxes = [Box("broken, large", 0.25, 1, 2.5, 3, 4), Box("ö", 1.0, 0, 0, 1, 1)]
    assert from_text(as_text(boxes)) == boxes
    for text in ('[["a", 1, 2]]', "[[1, 1, 0, 0, 1, 1]]", '[["a", NaN, 0, 0, 1, 1]]', "[["):
        with pytest.raises(ValueError):  # noqa: PT011 # json's own as well
            from_text(text)


def test_a_better_one_of_two_is_told_from_its_equal() -> None:
    from mvtec_lab.evaluation.differences import resampled_difference

    found, truth, labels = made_up()
    ours, theirs = match(truth, truth, labels), match(found, truth, labels)
    change = drawn(ours, "map50") - drawn(theirs, "map50")
    value = box_metrics(ours)["map50"] - box_metrics(theirs)["map50"]
    difference, name = resampled_difference(value, change, len(labels))
    assert name == "paired bootstrap over images"
    assert difference.p < 0.001
    assert difference.low < value < difference.high
    same, _ = resampled_difference(0.0, np.zeros(detection.RESAMPLES), len(labels))
    assert same.p == 1
