"""Deep SVDD: good images are drawn together around a point, and others land elsewhere."""

from mvtec_lab.problems.anomaly.methods.deep_svdd.detector import Detector

__all__ = ["Detector"]
