from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from mvtec_lab.evaluation.metrics import classification_metrics, confusion, frequency_groups, majority_baseline

CLASSES = ["crack", "good", "scratch", "hole"]


def test_agrees_with_scikit_learn_where_classes_are_missing() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2], 60)  # no hole among the labels, but holes among the predictions
    probabilities = rng.dirichlet(np.ones(4), 60).astype(np.float32)
    predictions = probabilities.argmax(1)
    assert 3 in predictions
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = classification_metrics(labels, probabilities, CLASSES)

    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predictions))
    assert found["balanced_accuracy"] == pytest.approx(
        sk.recall_score(labels, predictions, labels=[0, 1, 2], average="macro")
    )
    assert found["macro_f1"] == pytest.approx(sk.f1_score(labels, predictions, average="macro", zero_division=0))
    assert found["loss"] == pytest.approx(sk.log_loss(labels, probabilities, labels=range(4)), rel=1e-5)
    assert found["defect_accuracy"] == pytest.approx((predictions == labels)[labels != 1].mean())
    assert found["recall"]["crack"] == pytest.approx((predictions == 0)[labels == 0].mean())
    assert found["recall"]["hole"] is None
    assert found["images"] == 60
    assert json.loads(json.dumps(found)) == found


def test_by_hand() -> None:
    # truth a a b b; the second a is named b: recall 1/2 and 1, F1 2/3 and 4/5
    found = classification_metrics([0, 0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.5, 0.5 + 1e-9], [0.0, 1.0]], ["a", "b"])
    assert found["accuracy"] == found["balanced_accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.2, 0.5, 1]).mean())
    assert found["defect_accuracy"] is None  # no class is called good


def test_defect_accuracy_is_none_without_defects_and_a_hopeless_loss_is_finite() -> None:
    found = classification_metrics([1], [[1, 0, 0, 0]], CLASSES)
    assert found["defect_accuracy"] is None
    assert found["accuracy"] == found["macro_f1"] == 0
    assert found["loss"] == pytest.approx(-np.log(np.finfo(np.float64).eps))


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([], np.zeros((0, 4)), "no images"),
        ([0], np.zeros((1, 3)), "expected"),
        ([0, 1], np.full((2, 4), np.nan), "not finite"),
        ([4], np.full((1, 4), 0.25), "lie in"),
        ([-1], np.full((1, 4), 0.25), "lie in"),
    ],
)
def test_refuses(labels: list[int], probabilities: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics(labels, probabilities, CLASSES)


def test_confusion_has_truth_in_its_rows() -> None:
    assert confusion([0, 0, 2], [0, 1, 0], 3).tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert confusion([], [], 2).tolist() == [[0, 0], [0, 0]]


def test_majority_is_trainings_and_a_tie_goes_to_the_lowest() -> None:
    assert majority_baseline([2, 2, 0], [0, 2, 2, 1]) == 0.5
    assert majority_baseline([1, 0, 0, 1], [0, 0, 1]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("images", [1, 7, 60, 500])
def test_calibration_error_is_torchmetrics(images: int) -> None:
    import torch
    from torchmetrics.classification import MulticlassCalibrationError

    rng = np.random.default_rng(images)
    for sharpness in (0.2, 1, 5):
        labels = rng.integers(0, 4, images)
        probabilities = rng.dirichlet(np.full(4, sharpness), images)
        expected = MulticlassCalibrationError(num_classes=4, n_bins=15, norm="l1")
        value = expected(torch.tensor(probabilities), torch.tensor(labels)).item()
        found = classification_metrics(labels, probabilities, CLASSES)["calibration_error"]
        assert found == pytest.approx(value, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[1 + 1e-7, 0], [1, 0], [0.6, 0.4], [0.6, 0.4]], dtype=np.float32)
    # sure twice and right once; of 0.6, right both times
    found = classification_metrics([0, 1, 0, 0], probabilities, ["a", "b"])["calibration_error"]
    assert found == pytest.approx((2 * 0.5 + 2 * 0.4) / 4)


def test_groups_are_relative_to_the_most_frequent_class() -> None:
    assert frequency_groups([50, 25, 24, 11, 10, 0]) == ["head", "head", "middle", "middle", "tail", "tail"]
    assert frequency_groups([3, 3]) == ["head", "head"]


def test_recall_of_groups() -> None:
    labels, predictions = [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0]
    probabilities = np.eye(4)[predictions]
    found = classification_metrics(labels, probabilities, CLASSES, train_counts=[40, 30, 4, 12])
    assert found["group_recall"] == {"head": 0.75, "middle": None, "tail": 0.5}  # no hole among the labels
    assert classification_metrics(labels, probabilities, CLASSES)["group_recall"] == {}
