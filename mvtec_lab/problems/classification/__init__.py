"""Classification: which class an image shows, good or one of the defect types."""

from mvtec_lab.problems.base import Method

METHOD = Method("classifier", "classification", home="mvtec_lab.problems.classification.classifier:DefectClassifier")
