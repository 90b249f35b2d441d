"""Judge a classifier on validation and test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.run import Judgement, Run
from mvtec_lab.evaluation.metrics import classification_metrics, confusion, majority_baseline, top_confusions
from mvtec_lab.evaluation.specs import deciding
from mvtec_lab.problems.classification.base import Classifier
from mvtec_lab.problems.classification.explanations import explain
from mvtec_lab.problems.classification.outcome import Outcome
from mvtec_lab.problems.classification.sets import set_metrics
from mvtec_lab.reporting.figures import MOST, confusion_figure
from mvtec_lab.results import EXPLANATIONS, MISTAKES


def judge(run: Run) -> Judgement:
    """Predict validation and test images; with ``val_is_test`` the images are passed once and counted as both.

    Without test images the pictures are of those that validate.
    """
    data, result, classifier = run.data, run.result, run.model.module
    outcomes, result.validates_by = _outcomes(classifier, data, run.model.sets)
    shown = [*outcomes][-1]
    test = outcomes[shown]
    if run.model.sets is not None:
        result.sets = {key: dict(zip(data.classes, of, strict=True)) for key, of in run.model.sets.items()}
    train = [test.dataset.classes.index(s.label) for s in data.of_split("train")]
    if train and shown == "test":  # else there is no most frequent class: every image is tested
        result.majority_baseline = majority_baseline(np.array(train), test.labels)
    result.explained, explanations = explain(classifier, test, data.batch_size)
    no_map = ("", classifier.hides)
    result.captions = {EXPLANATIONS: [*(classifier.shows if explanations is not None else no_map)]}
    pictures = {MISTAKES: test.page}
    board: dict[str, Any] = {}
    for split, outcome in outcomes.items():
        if split == "val" and outcome.dataset is test.dataset:  # validation = test: drawn once
            continue
        board |= _confusion(f"confusion/{split}", f"{run.config.attempt}, {split}", outcome)
        board[f"pictures/{split}_mistakes_first"] = outcome.page
    if explanations is not None:
        pictures[EXPLANATIONS] = board["pictures/explanations"] = explanations
    values = ((metric.title, metric.of(test.metrics)) for metric in deciding("classification"))
    figures = ", ".join(f"{title} {value:.3f}" for title, value in values if value is not None)
    baseline = "" if result.majority_baseline is None else f" (majority baseline {result.majority_baseline:.3f})"
    chosen = f"; best epoch {result.best_epoch} of {result.epochs}" if result.epochs else ""
    summary = f"{shown} {figures}{baseline}, on {test.metrics['images']} images{chosen}"
    metrics = {split: outcome.metrics for split, outcome in outcomes.items()}
    rows = [row for outcome in outcomes.values() for row in outcome.rows()]
    return Judgement(metrics, rows, pictures, board, summary)


def _outcomes(
    classifier: Classifier, data: MVTecDataModule, sets: Mapping[str, Sequence[float]] | None
) -> tuple[dict[str, Outcome], str]:
    """Return the outcome of each split, and what judged the images that validate."""
    outcomes = {}
    trained = classifier.hparams.get("class_counts") or list(data.counts()["train"].values())
    judged, by = {}, ""
    if data.of_split("test"):
        judged["test"] = data.dataset("test"), classifier.probabilities(data.test_dataloader())
    if not data.val_is_test and (validated := classifier.validated(data)) is not None:
        judged["val"], by = (validated.dataset, validated.probabilities), validated.by
    for split, (dataset, probabilities) in judged.items():
        labels = dataset.labels.numpy()
        metrics = classification_metrics(labels, probabilities, data.classes, trained)
        of_split = sets if split == "test" else None
        metrics |= set_metrics(of_split, data.classes, labels, probabilities)
        outcomes[split] = Outcome(split, dataset, labels, probabilities, metrics, of_split)
    if data.val_is_test:
        outcomes["val"] = replace(outcomes["test"], split="val")
    return {split: outcomes[split] for split in ("val", "test") if split in outcomes}, by


def _confusion(tag: str, title: str, outcome: Outcome) -> dict[str, Any]:
    """Return the confusion matrix for TensorBoard: a figure, of many classes the commonest mistakes."""
    classes = outcome.dataset.classes
    matrix = confusion(outcome.labels, outcome.predictions, len(classes))
    if len(classes) <= MOST:
        return {tag: confusion_figure(matrix, classes, title)}
    table = [f"| {title}: class | taken for | how often | of |", "|---|---|---|---|"]
    table += ["| {} | {} | {} | {} |".format(*mistake) for mistake in top_confusions(matrix, classes)]
    return {tag: "\n".join(table)}
